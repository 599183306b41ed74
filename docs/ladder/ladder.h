/* ladder.h - what the rungs compute, a product or attention, and what later ones take from earlier ones.
 *
 *     out[N,O] = x[N,I] W^T,   W [O,I], row-major:   out[n][o] = sum over i of x[n][i] * w[o][i]
 *
 * the forward pass of a linear layer with I inputs and O outputs over N tokens. Each rung is a file of
 * its own and changes one thing in the one before; docs/ladder.md walks through them and run.c measures
 * them. Sizes are any: what a tile reads past an edge is a copy or a zero, and is not stored. */
#ifndef LADDER_H
#define LADDER_H

#include "../../kernels.h"

#include <string.h>

struct product {
    int N, O, I;
    const float *x, *w;             /* [N,I] [O,I] */
    const struct weight *nf4;       /* the same W as 4-bit codes: what rungs 8 to 10 read instead of w */
    float *out;                     /* [N,O], overwritten */
    float *packed;                  /* scratch for x in panels: packed_floats() */
    struct library *library;        /* rung 10 */
    int threads;
};

void rung_weights(const struct product *p);
void rung_rows(const struct product *p);
void rung_sums(const struct product *p);
void rung_vectors(const struct product *p);
void rung_tile(const struct product *p);
void rung_blocks(const struct product *p);
void rung_panels(const struct product *p);
void rung_decode(const struct product *p);
void rung_threads(const struct product *p);
void rung_library(const struct product *p);

/* 05: rows n .. n+3 and outputs o .. o+2. */
void dot_tile(const struct product *p, int n, int o);

/* 07: tiles of TILE_ROWS rows of x, each [I][TILE_ROWS] ... */
#ifdef __GNUC__
enum { TILE_ROWS = 6, TILE_COLUMNS = 16 };      /* two vectors of eight */
#else
enum { TILE_ROWS = 6, TILE_COLUMNS = 2 };
#endif
size_t packed_floats(int N, int I);
void pack_tile(const struct product *p, int t);
/* ... and all rows times a panel of W: outputs o .. o + TILE_COLUMNS - 1. The packer fills panel[k][TILE_COLUMNS]
 * with w[o + c][i + k], k < n. */
typedef void packer(float *panel, const struct product *p, int o, int i, int n);
void panel_product(const struct product *p, packer *pack, int o);
/* Its tile: sums[TILE_ROWS][TILE_COLUMNS] = sum over k < K of a[k][TILE_ROWS] times b[k][TILE_COLUMNS]. */
void panel_tile(float *sums, int K, const float *a, const float *b);

/* 08: a packer that reads codes. */
packer pack_nf4;

/* 10: the best table of kernels here, with the scratch that it asks for. Close it even after -1. */
struct library { struct kernels table; struct kernel_ctx context; };
int library_open(struct library *l, const struct kernel_sizes *sizes, struct lora_error *err);
void library_close(struct library *l);

static inline int smaller(int a, int b) { return a < b ? a : b; }

/* Row n of a matrix; past the end the last row once more, as its results are not stored. */
static inline const float *row(const float *m, int rows, int n, int width)
{
    return m + (size_t)smaller(n, rows - 1) * (size_t)width;
}

/* Attention of one row of N tokens: query n sees the keys 0 .. n. Query head h uses key head h / (NH / NKV).
 *
 *     z_j = q.k_j / sqrt(HS),   p_j = e^z_j / sum over i of e^z_i,   out = sum over j of p_j v_j */
struct attention {
    int N, NH, NKV, HS;
    const float *q, *k, *v;         /* [N,NH*HS] [N,NKV*HS] [N,NKV*HS] */
    float *out;                     /* [N,NH*HS], overwritten */
    float *scores;                  /* scratch of a1: [N,N] */
    float *lse;                     /* [N,NH], which the library writes besides */
    struct library *library;
    int threads;
};

void rung_matrix(const struct attention *a);
void rung_online(const struct attention *a);
void rung_tiles(const struct attention *a);
void rung_attention(const struct attention *a);     /* in 10_library.c */

enum { HEAD_MOST = 128, GROUP_MOST = 96 };          /* of HS and of NH / NKV, in a3 */

static inline const float *query(const struct attention *a, int n, int h) { return a->q + ((size_t)n * a->NH + h) * a->HS; }
static inline float *result(const struct attention *a, int n, int h) { return a->out + ((size_t)n * a->NH + h) * a->HS; }
/* Row j of m, which is k or v, for query head h. */
static inline const float *key(const struct attention *a, const float *m, int j, int h)
{
    return m + ((size_t)j * a->NKV + h / (a->NH / a->NKV)) * a->HS;
}

static inline float dot(const float *a, const float *b, int n)
{
    float sum = 0;
    int i;
#pragma omp simd reduction(+:sum)
    for (i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static inline void add_times(float *out, float f, const float *x, int n)
{
    int i;
#pragma omp simd
    for (i = 0; i < n; i++) out[i] += f * x[i];
}

static inline void times(float *out, float f, int n)
{
    int i;
    for (i = 0; i < n; i++) out[i] *= f;
}

#endif
