/* a1 - Attention as its formula reads: all scores, then p, then the sums of values.
 *
 * That is three goes over a matrix of N x N for each head: the scores are written, read and made into p, and
 * read again. For 512 tokens it is 1 MiB and stays in a cache; for 8192 it is 256 MiB, and training would have to
 * keep one for every head of every layer, as the backward pass asks for p.
 *
 * Dot products and what is added to out are in vectors already (rung 04); the exponentials are not. */
#include "ladder.h"

#include <math.h>

static void softmax(float *s, int n)
{
    float max = s[0], sum = 0;
    int j;
    for (j = 1; j < n; j++) if (s[j] > max) max = s[j];
    for (j = 0; j < n; j++) sum += s[j] = expf(s[j] - max);
    for (j = 0; j < n; j++) s[j] /= sum;
}

void rung_matrix(const struct attention *a)
{
    const float scale = 1 / sqrtf((float)a->HS);
    int h, n, j, N = a->N, HS = a->HS;
    for (h = 0; h < a->NH; h++) {
        float *s = a->scores;
        for (n = 0; n < N; n++)
            for (j = 0; j <= n; j++) s[(size_t)n * N + j] = scale * dot(query(a, n, h), key(a, a->k, j, h), HS);
        for (n = 0; n < N; n++) softmax(s + (size_t)n * N, n + 1);
        for (n = 0; n < N; n++) {
            float *out = result(a, n, h);
            memset(out, 0, sizeof *out * (size_t)HS);
            for (j = 0; j <= n; j++) add_times(out, s[(size_t)n * N + j], key(a, a->v, j, h), HS);
        }
    }
}
