/* measure.c - see measure.h. */
#include "measure.h"
#include "../util.h"

double median(double *x, int n)
{
    int i, j;
    for (i = 1; i < n; i++) {
        double v = x[i];
        for (j = i; j > 0 && x[j - 1] > v; j--) x[j] = x[j - 1];
        x[j] = v;
    }
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* Twelve chains of 256-bit fused multiply-adds: more than the unit has in flight. */
__attribute__((target("avx2,fma")))
static float fma_chains(long n)
{
    __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
    __m256 a = x, b = y, c = a + b, d = c + a, e = d + a, f = e + a, g = f + a, h = g + a, i = h + a, j = i + a,
           k = j + a, l = k + a;        /* all different, or a compiler makes one of them */
    for (; n; n--) {
        a = _mm256_fmadd_ps(a, x, y); b = _mm256_fmadd_ps(b, x, y); c = _mm256_fmadd_ps(c, x, y);
        d = _mm256_fmadd_ps(d, x, y); e = _mm256_fmadd_ps(e, x, y); f = _mm256_fmadd_ps(f, x, y);
        g = _mm256_fmadd_ps(g, x, y); h = _mm256_fmadd_ps(h, x, y); i = _mm256_fmadd_ps(i, x, y);
        j = _mm256_fmadd_ps(j, x, y); k = _mm256_fmadd_ps(k, x, y); l = _mm256_fmadd_ps(l, x, y);
    }
    a = _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)),
                      _mm256_add_ps(_mm256_add_ps(e, f), _mm256_add_ps(g, h)));
    a = _mm256_add_ps(a, _mm256_add_ps(_mm256_add_ps(i, j), _mm256_add_ps(k, l)));
    return _mm256_cvtss_f32(a);
}

double measure_peak(int threads)
{
    const long n = 2000000;
    float sum = 0;
    double start;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    start = seconds_now();
#pragma omp parallel num_threads(threads) reduction(+:sum)
    sum += fma_chains(n);
    start = seconds_now() - start;
    return sum >= 0 ? 1e-9 * 12 * 16 * (double)n * threads / start : 0;
}
#else
double measure_peak(int threads)
{
    (void)threads;
    return 0;
}
#endif
