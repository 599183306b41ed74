/* 07 - Panels: both operands are copied first into the order in which the tile reads them.
 *
 * With w[o .. o+15][k] side by side, the lanes of a vector are sixteen outputs instead of eight terms of
 * one: a number of x, broadcast to all lanes, meets two vectors of W, and no lanes are ever added up. The
 * tile becomes 6 x 16, again 12 sums: 2 loads and 6 broadcasts for 12 multiply-adds, all from two
 * addresses that just go forward. Six rows of x are a panel [I][6]; 256 terms of sixteen outputs a panel
 * [256][16] of 16 KiB, which stays in the first cache while all rows of x go by.
 *
 * Copying reads and writes each number of x and W once; each is then used O or N times. That is the
 * bargain of all fast products (Goto and van de Geijn 2008). It is none for a handful of rows.
 *
 * The vectors are GNU C's: `s += a * v` is a broadcast and a fused multiply-add, on AVX2 one instruction
 * each. With another compiler a "vector" is one float, slow and right. */
#include "ladder.h"

#include <string.h>

#ifdef __GNUC__
typedef float vec __attribute__((vector_size(32)));
#define ALIGNED __attribute__((aligned(64)))
#else
typedef float vec;
#define ALIGNED
#endif

enum { LANES = TILE_COLUMNS / 2, TERMS = 320 };

static inline vec load(const float *p)
{
    vec v;
    memcpy(&v, p, sizeof v);        /* one instruction, wherever p points */
    return v;
}

/* The sums have names of their own: gcc keeps an array of them in memory, and is half as fast. */
void panel_tile(float *sums, int K, const float *a, const float *b)
{
    vec l0 = { 0 }, l1 = l0, l2 = l0, l3 = l0, l4 = l0, l5 = l0, h0 = l0, h1 = l0, h2 = l0, h3 = l0, h4 = l0, h5 = l0;
    int k;
    for (k = 0; k < K; k++, a += TILE_ROWS, b += TILE_COLUMNS) {
        vec low = load(b), high = load(b + LANES);
        l0 += a[0] * low; h0 += a[0] * high;
        l1 += a[1] * low; h1 += a[1] * high;
        l2 += a[2] * low; h2 += a[2] * high;
        l3 += a[3] * low; h3 += a[3] * high;
        l4 += a[4] * low; h4 += a[4] * high;
        l5 += a[5] * low; h5 += a[5] * high;
    }
    {
        const vec all[2 * TILE_ROWS] = { l0, h0, l1, h1, l2, h2, l3, h3, l4, h4, l5, h5 };
        memcpy(sums, all, sizeof all);
    }
}

static void put(const struct product *p, int n, int o, const float *sums, int add)
{
    int r, c, rows = smaller(TILE_ROWS, p->N - n), columns = smaller(TILE_COLUMNS, p->O - o);
    for (r = 0; r < rows; r++, sums += TILE_COLUMNS) {
        float *out = p->out + (size_t)(n + r) * (size_t)p->O + (size_t)o;
        if (columns == TILE_COLUMNS && add) for (c = 0; c < TILE_COLUMNS; c++) out[c] += sums[c];     /* what most are */
        else for (c = 0; c < columns; c++) out[c] = sums[c] + (add ? out[c] : 0);
    }
}

size_t packed_floats(int N, int I) { return (size_t)(N + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS * (size_t)I; }

void pack_tile(const struct product *p, int t)
{
    float *to = p->packed + (size_t)t * TILE_ROWS * (size_t)p->I;
    int r, i;
    for (r = 0; r < TILE_ROWS; r++) {
        const float *x = row(p->x, p->N, t * TILE_ROWS + r, p->I);
        for (i = 0; i < p->I; i++) to[(size_t)i * TILE_ROWS + (size_t)r] = x[i];
    }
}

void panel_product(const struct product *p, packer *pack, int o)
{
    float panel[TERMS * TILE_COLUMNS] ALIGNED, sums[TILE_ROWS * TILE_COLUMNS] ALIGNED;
    int i, n, runs = (p->I + TERMS - 1) / TERMS, even = (p->I + runs - 1) / runs;
    for (i = 0; i < p->I; i += even) {
        int K = smaller(even, p->I - i);
        pack(panel, p, o, i, K);
        for (n = 0; n < p->N; n += TILE_ROWS) {
            panel_tile(sums, K, p->packed + (size_t)n * (size_t)p->I + (size_t)i * TILE_ROWS, panel);
            put(p, n, o, sums, i > 0);
        }
    }
}

static void pack_floats(float *panel, const struct product *p, int o, int i, int n)
{
    int c, k;
    for (c = 0; c < TILE_COLUMNS; c++) {
        const float *w = row(p->w, p->O, o + c, p->I) + i;
        for (k = 0; k < n; k++) panel[k * TILE_COLUMNS + c] = w[k];
    }
}

void rung_panels(const struct product *p)
{
    int t, o;
    for (t = 0; t * TILE_ROWS < p->N; t++) pack_tile(p, t);
    for (o = 0; o < p->O; o += TILE_COLUMNS) panel_product(p, pack_floats, o);
}
