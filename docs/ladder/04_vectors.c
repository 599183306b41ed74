/* 04 - The same four sums in vectors: one line more.
 *
 * The pragma allows the compiler what C forbids it: to add the terms of these sums in another order, in
 * this loop and nowhere else (-ffast-math would allow it everywhere, and take NaN and infinity away
 * besides). So each sum becomes a vector of eight, lane j of which adds the terms j, j + 8, j + 16 ...,
 * and one instruction does eight multiply-adds. This file is compiled for AVX2 and FMA, which also
 * fuses the product and the sum: one operation, one rounding.
 *
 * Eight times the work an instruction, and nowhere near eight times the speed: a multiply-add needs a
 * vector of W, used once and not again before the next token. By then all of W has gone by, 3.5 MB,
 * so it comes from the third cache or from memory, for every token anew. */
#include "ladder.h"

void rung_vectors(const struct product *p)
{
    int n, o, i;
    for (n = 0; n < p->N; n++)
        for (o = 0; o < p->O; o += 4) {
            const float *x = p->x + (size_t)n * (size_t)p->I;
            const float *w0 = row(p->w, p->O, o, p->I), *w1 = row(p->w, p->O, o + 1, p->I);
            const float *w2 = row(p->w, p->O, o + 2, p->I), *w3 = row(p->w, p->O, o + 3, p->I);
            float *out = p->out + (size_t)n * (size_t)p->O + (size_t)o;
            float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+:s0, s1, s2, s3)
            for (i = 0; i < p->I; i++) {
                s0 += x[i] * w0[i];
                s1 += x[i] * w1[i];
                s2 += x[i] * w2[i];
                s3 += x[i] * w3[i];
            }
            out[0] = s0;
            if (o + 1 < p->O) out[1] = s1;
            if (o + 2 < p->O) out[2] = s2;
            if (o + 3 < p->O) out[3] = s3;
        }
}
