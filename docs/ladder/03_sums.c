/* 03 - Four outputs at once: four sums that do not wait for each other.
 *
 * While one addition is under way the other three start, so the adders have something to do in nearly
 * every cycle. x[i] is loaded once for four terms: five loads for four multiply-adds instead of eight.
 * Each sum is still added up in the order of rung 2: the results are the same to the bit.
 *
 * Each operation still handles one number, in registers that hold eight. */
#include "ladder.h"

void rung_sums(const struct product *p)
{
    int n, o, i;
    for (n = 0; n < p->N; n++)
        for (o = 0; o < p->O; o += 4) {
            const float *x = p->x + (size_t)n * (size_t)p->I;
            const float *w0 = row(p->w, p->O, o, p->I), *w1 = row(p->w, p->O, o + 1, p->I);
            const float *w2 = row(p->w, p->O, o + 2, p->I), *w3 = row(p->w, p->O, o + 3, p->I);
            float *out = p->out + (size_t)n * (size_t)p->O + (size_t)o;
            float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
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
