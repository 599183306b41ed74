/* a3 - Tiles: a block of queries meets a block of keys in two products of panels.
 *
 * Rung a2 takes a key for one query, two loads to a multiply-add. Here S = Q K^T and out += P V are products of
 * blocks, with the tile of rung 07. The query heads that share a key head are rows of the same block, so that keys
 * and values are copied into panels once for 96 rows. Each row has a largest score and a sum of its own, and the
 * block's rows are put right as in a2. A block that no query of the other sees is left out; on the diagonal a tile
 * computes some scores that are not used.
 *
 * Now expf, one number at a time, would take longer than both products. So e^z is 2^(z log2 e), for 2^x is a
 * whole number put into the exponent and a polynomial, without a branch: the compiler makes vectors of it.
 *
 * vectors/attention_vec.c is this, and besides: exponents and tiles in its own vectors, p where it lies instead of a copy
 * in panels, tasks for threads, prefixes, windows, and the backward pass, which goes over the same blocks. */
#include "ladder.h"

#include <math.h>

enum { ROWS = GROUP_MOST, KEYS = 64 };
#define LN2 0.6931472f
#define LOG2E 1.442695f

/* Panels of ROWS / 6 tiles and of columns; s and acc are rows as they are. */
struct block {
    float q[ROWS * HEAD_MOST], k[KEYS * HEAD_MOST], v[KEYS * HEAD_MOST], p[ROWS * KEYS];
    float s[ROWS * KEYS], acc[ROWS * HEAD_MOST], max[ROWS], sum[ROWS];
    int rows, wide;                 /* wide: HS up to whole panels */
};

/* 2^x for x <= 0, and not below 2^-126, which is nothing beside the 1 of the largest. The series of e^r ends where it is
 * below half of 2^-24. */
static inline float power_of_2(float x)
{
    int whole = (int)(x - 0.5f), n = whole < -126 ? -126 : whole;      /* the nearest: the conversion cuts towards 0 */
    float r = (x - (float)whole) * LN2;
    r = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f + r / 5040))))));
    return r * float_of((uint32_t)(n + 127) << 23);
}

/* Row i of K numbers into panels of `width` rows: [K][width] each. */
static void put_row(float *panels, int width, int i, const float *from, int K)
{
    float *to = panels + i / width * width * K + i % width;
    int k;
    for (k = 0; k < K; k++) to[k * width] = from[k];
}

/* c[rows][columns] = a b, or +=, of panels a [K][TILE_ROWS] and b [K][TILE_COLUMNS]. */
static void multiply(float *c, const float *a, const float *b, int rows, int columns, int K, int add)
{
    float sums[TILE_ROWS * TILE_COLUMNS];
    int m, n, r, i;
    for (n = 0; n < columns; n += TILE_COLUMNS)
        for (m = 0; m < rows; m += TILE_ROWS) {
            panel_tile(sums, K, a + m * K, b + n * K);
            for (r = 0; r < TILE_ROWS; r++)
                for (i = 0; i < TILE_COLUMNS; i++) {
                    float *to = c + (m + r) * columns + n + i;
                    *to = sums[r * TILE_COLUMNS + i] + (add ? *to : 0);
                }
        }
}

/* Row r's scores become p, of which it sees the first `seen`; into panels. */
static void soften(struct block *b, int r, int seen, float scale)
{
    float *s = b->s + r * KEYS, max = b->max[r], sum = 0, f;
    int j;
    for (j = 0; j < seen; j++) {
        s[j] *= scale;
        max = s[j] > max ? s[j] : max;
    }
#pragma omp simd reduction(+:sum)
    for (j = 0; j < seen; j++) sum += s[j] = power_of_2(s[j] - max);
    for (j = seen > 0 ? seen : 0; j < KEYS; j++) s[j] = 0;
    put_row(b->p, TILE_ROWS, r, s, KEYS);
    f = b->max[r] == -INFINITY ? 0 : power_of_2(b->max[r] - max);
    b->sum[r] = b->sum[r] * f + sum;
    b->max[r] = max;
    times(b->acc + r * b->wide, f, b->wide);
}

/* The keys from j on, against all rows: row r is query i + r / G, head g G + r % G. Past the last key p is 0. */
static void meet(const struct attention *a, struct block *b, int g, int i, int j)
{
    int G = a->NH / a->NKV, HS = a->HS, r, n, d, keys = smaller(KEYS, a->N - j);
    for (n = 0; n < keys; n++) {
        put_row(b->k, TILE_COLUMNS, n, key(a, a->k, j + n, g * G), HS);
        for (d = 0; d < HS; d += TILE_COLUMNS)
            memcpy(b->v + d * KEYS + n * TILE_COLUMNS, key(a, a->v, j + n, g * G) + d, sizeof(float) * (size_t)smaller(TILE_COLUMNS, HS - d));
    }
    multiply(b->s, b->q, b->k, b->rows, KEYS, HS, 0);
    for (r = 0; r < b->rows; r++) soften(b, r, smaller(i + r / G + 1 - j, keys), LOG2E / sqrtf((float)HS));
    multiply(b->acc, b->p, b->v, b->rows, b->wide, KEYS, 1);
}

void rung_tiles(const struct attention *a)
{
    static const struct block none;
    struct block b = none;
    int G = a->NH / a->NKV, queries = ROWS / G, g, i, j, r, d;
    b.wide = (a->HS + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS;
    for (g = 0; g < a->NKV; g++)
        for (i = 0; i < a->N; i += queries) {
            b.rows = smaller(queries, a->N - i) * G;
            memset(b.acc, 0, sizeof b.acc);
            for (r = 0; r < b.rows; r++) {
                put_row(b.q, TILE_ROWS, r, query(a, i + r / G, g * G + r % G), a->HS);
                b.max[r] = -INFINITY;
                b.sum[r] = 0;
            }
            for (j = 0; j < i + b.rows / G; j += KEYS) meet(a, &b, g, i, j);
            for (r = 0; r < b.rows; r++)
                for (d = 0; d < a->HS; d++) result(a, i + r / G, g * G + r % G)[d] = b.acc[r * b.wide + d] / b.sum[r];
        }
}
