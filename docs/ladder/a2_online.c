/* a2 - Online: a query goes over its keys once, in blocks, and no score outlives its block.
 *
 * A softmax needs the largest score and the sum of all e^z, which are known only at the end. But both can be put
 * right later (Milakov and Gimelshein 2018). With m the largest so far, the query keeps
 *
 *     sum = sum of e^(z_j - m),   out = sum of e^(z_j - m) v_j
 *
 * and when a block has a larger one, m', all that was added up before is multiplied by e^(m - m'), and is what it
 * would have been with m' from the start. In the end out / sum is the result. The matrix is gone, and with
 * lse = m + log sum kept, the backward pass makes any p again.
 *
 * The operations are the same, and so is the time: what this brings is memory, and blocks to go on with. */
#include "ladder.h"

#include <math.h>

enum { KEYS = 64 };

void rung_online(const struct attention *a)
{
    const float scale = 1 / sqrtf((float)a->HS);
    int h, n, j, from, HS = a->HS;
    for (h = 0; h < a->NH; h++)
        for (n = 0; n < a->N; n++) {
            float z[KEYS], max = -INFINITY, sum = 0, *out = result(a, n, h);
            memset(out, 0, sizeof *out * (size_t)HS);
            for (from = 0; from <= n; from += KEYS) {
                int keys = smaller(KEYS, n + 1 - from);
                float before = max, f;
                for (j = 0; j < keys; j++) {
                    z[j] = scale * dot(query(a, n, h), key(a, a->k, from + j, h), HS);
                    if (z[j] > max) max = z[j];
                }
                f = expf(before - max);         /* the first time e^-inf = 0, of nothing */
                sum *= f;
                times(out, f, HS);
                for (j = 0; j < keys; j++) {
                    float p = expf(z[j] - max);
                    sum += p;
                    add_times(out, p, key(a, a->v, from + j, h), HS);
                }
            }
            times(out, 1 / sum, HS);
        }
}
