/* ladder.h - the product that every rung computes, and what later rungs take from earlier ones.
 *
 *     out[N,O] = x[N,I] W^T,   W [O,I], row-major:   out[n][o] = sum over i of x[n][i] * w[o][i]
 *
 * the forward pass of a linear layer with I inputs and O outputs over N tokens. Each rung is a file of
 * its own and changes one thing in the one before; docs/ladder.md walks through them and run.c measures
 * them. Sizes are any: what a tile reads past an edge is a copy or a zero, and is not stored. */
#ifndef LADDER_H
#define LADDER_H

#include "../../kernels.h"

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
enum { TILE_ROWS = 6 };
size_t packed_floats(int N, int I);
void pack_tile(const struct product *p, int t);
/* ... and all rows times a panel of W: outputs o .. o + *columns - 1. The packer fills panel[k][columns]
 * with w[o + c][i + k], k < n. */
typedef void packer(float *panel, const struct product *p, int o, int i, int n);
extern const int panel_columns;
void panel_product(const struct product *p, packer *pack, int o);

/* 08: a packer that reads codes. */
packer pack_nf4;

/* 10: the best table of kernels here, with the scratch that it asks for. Close it even after -1. */
struct library { struct kernels table; struct kernel_ctx context; };
int library_open(const struct product *p, struct lora_error *err);
void library_close(const struct product *p);

static inline int smaller(int a, int b) { return a < b ? a : b; }

/* Row n of a matrix; past the end the last row once more, as its results are not stored. */
static inline const float *row(const float *m, int rows, int n, int width)
{
    return m + (size_t)smaller(n, rows - 1) * (size_t)width;
}

#endif
