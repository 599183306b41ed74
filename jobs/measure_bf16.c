/* measure_bf16.c - the peak of multiply-adds in bf16: see measure.h. It has the flags of AVX512-BF16. */
#include "measure.h"
#include "../bf16.h"

#include <string.h>

#ifdef HAVE_BF16
#include <immintrin.h>

/* Twelve chains, as in measure.c; all start differently. */
static float bf16_chains(long n)
{
    const __m512 x = _mm512_set1_ps(0.999f);
    __m512 a = x, b = _mm512_add_ps(a, x), c = _mm512_add_ps(b, x), d = _mm512_add_ps(c, x), e = _mm512_add_ps(d, x),
           f = _mm512_add_ps(e, x), g = _mm512_add_ps(f, x), h = _mm512_add_ps(g, x), i = _mm512_add_ps(h, x),
           j = _mm512_add_ps(i, x), k = _mm512_add_ps(j, x), l = _mm512_add_ps(k, x);
    const __m512bh p = _mm512_cvtne2ps_pbh(x, x), q = _mm512_cvtne2ps_pbh(_mm512_setzero_ps(), x);
    for (; n; n--) {
        a = _mm512_dpbf16_ps(a, p, q); b = _mm512_dpbf16_ps(b, p, q); c = _mm512_dpbf16_ps(c, p, q);
        d = _mm512_dpbf16_ps(d, p, q); e = _mm512_dpbf16_ps(e, p, q); f = _mm512_dpbf16_ps(f, p, q);
        g = _mm512_dpbf16_ps(g, p, q); h = _mm512_dpbf16_ps(h, p, q); i = _mm512_dpbf16_ps(i, p, q);
        j = _mm512_dpbf16_ps(j, p, q); k = _mm512_dpbf16_ps(k, p, q); l = _mm512_dpbf16_ps(l, p, q);
    }
    a = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)),
                      _mm512_add_ps(_mm512_add_ps(e, f), _mm512_add_ps(g, h)));
    return _mm512_reduce_add_ps(_mm512_add_ps(a, _mm512_add_ps(_mm512_add_ps(i, j), _mm512_add_ps(k, l))));
}

double measure_peak_bf16(int threads)
{
    const long n = 1000000;
    char by[64];
    float sum = 0;
    double start;
    if (!bf16_usable(by, sizeof by) || strcmp(by, "AVX512-BF16")) return 0;
    start = seconds_now();
#pragma omp parallel num_threads(threads) reduction(+:sum)
    sum += bf16_chains(n);
    start = seconds_now() - start;
    return sum >= 0 ? 1e-9 * 12 * 64 * (double)n * threads / start : 0;
}
#else
double measure_peak_bf16(int threads)
{
    (void)threads;
    return 0;
}
#endif
