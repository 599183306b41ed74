/* 05 - A tile of 4 rows by 3 outputs: what is loaded is used more than once.
 *
 * Rung 4 loads 5 vectors for 4 multiply-adds, and a core starts two loads and two multiply-adds in a
 * cycle: the loads are the limit, even when all lies in the first cache. A tile of 4 x 3 loads 7 for 12:
 * each vector of x meets three of W, each of W four of x. It takes 12 registers for the sums, 3 for x or W
 * and 1 for the other: all 16 that AVX2 has; a larger tile would spill. Twelve sums are also more than the
 * 8 that two multiply-adds a cycle, of 4 cycles each, need under way.
 *
 * And W goes by once for four tokens, a quarter as often. It still goes by from far away. */
#include "ladder.h"

static void put(const struct product *p, int n, int o, float s0, float s1, float s2)
{
    float *out = p->out + (size_t)n * (size_t)p->O + (size_t)o;
    if (n >= p->N) return;
    out[0] = s0;
    if (o + 1 < p->O) out[1] = s1;
    if (o + 2 < p->O) out[2] = s2;
}

void dot_tile(const struct product *p, int n, int o)
{
    int I = p->I, i;
    const float *x0 = row(p->x, p->N, n, I), *x1 = row(p->x, p->N, n + 1, I);
    const float *x2 = row(p->x, p->N, n + 2, I), *x3 = row(p->x, p->N, n + 3, I);
    const float *w0 = row(p->w, p->O, o, I), *w1 = row(p->w, p->O, o + 1, I), *w2 = row(p->w, p->O, o + 2, I);
    float s00 = 0, s01 = 0, s02 = 0, s10 = 0, s11 = 0, s12 = 0, s20 = 0, s21 = 0, s22 = 0, s30 = 0, s31 = 0, s32 = 0;
#pragma omp simd reduction(+:s00, s01, s02, s10, s11, s12, s20, s21, s22, s30, s31, s32)
    for (i = 0; i < I; i++) {
        s00 += x0[i] * w0[i]; s01 += x0[i] * w1[i]; s02 += x0[i] * w2[i];
        s10 += x1[i] * w0[i]; s11 += x1[i] * w1[i]; s12 += x1[i] * w2[i];
        s20 += x2[i] * w0[i]; s21 += x2[i] * w1[i]; s22 += x2[i] * w2[i];
        s30 += x3[i] * w0[i]; s31 += x3[i] * w1[i]; s32 += x3[i] * w2[i];
    }
    put(p, n, o, s00, s01, s02);
    put(p, n + 1, o, s10, s11, s12);
    put(p, n + 2, o, s20, s21, s22);
    put(p, n + 3, o, s30, s31, s32);
}

void rung_tile(const struct product *p)
{
    int n, o;
    for (n = 0; n < p->N; n += 4)
        for (o = 0; o < p->O; o += 3) dot_tile(p, n, o);
}
