/* few_avx2.c - products of few rows, as in generation: each weight is read once and no panel pays. */
#include "avx2.h"

#ifdef HAVE_AVX2

enum { STRIP = 2048 };      /* elements decoded at a time */

void avx2_product_few(struct kernel_ctx *c, float *out, const float *x, const struct weight *w,
                      const float *bias, float scale, int accumulate, int N)
{
    int I = w->cols, O = w->rows, chunk = larger(NR, round_up(O / (8 * c->threads), NR)), i;
#pragma omp parallel for schedule(dynamic) num_threads(c->threads) if((double)N * O * I > PARALLEL_WORK)
    for (i = 0; i < O; i += chunk) {
        float space[STRIP];
        int o, k, n;
        for (o = i; o < smaller(i + chunk, O); o++) {
            float sum[FEW_ROWS] = { 0 };
            for (k = 0; k < I; k += STRIP) {
                const float *s = avx2_strip(w, o, k, smaller(STRIP, I - k), space);
                for (n = 0; n < N; n++) sum[n] += dot(s, x + (size_t)n * (size_t)I + (size_t)k, smaller(STRIP, I - k));
            }
            for (n = 0; n < N; n++) {
                float *p = out + (size_t)n * (size_t)O + (size_t)o, v = scale * sum[n] + (bias ? bias[o] : 0);
                *p = accumulate ? *p + v : v;
            }
        }
    }
}

#endif
