/* bf16.h - products of frozen weights in bf16 (--compute bf16), where the processor multiplies it.
 *
 *     gemm_bf16.c     packing, the product, and the register tile of AVX512-BF16
 *     gemm_amx.c      the tile of AMX, which takes its place where there is AMX
 *
 * Numbers: both operands are rounded to bf16, to nearest, ties to even (weights stored as bf16 are what
 * they were); products are exact in float, sums are float, in runs of at most BF16_KC terms that are
 * added up in memory. Denormal operands and sums count as 0: the instructions know no others. The same bits at any
 * number of threads and of rows; those of AMX and of AVX512-BF16 differ, as each has its order within 32
 * terms. */
#ifndef BF16_H
#define BF16_H

#include "../kernels.h"

enum {
    BF16_ROWS = 16,         /* of A to a tile, 32 terms long: 64 bytes a row, as AMX has it */
    BF16_COLUMNS = 16,      /* of B to a panel, pairs of terms one after the other */
    BF16_TERMS = 32,        /* to which runs are filled up with zeros */
    BF16_KC = 768,          /* terms of a run at most: a panel is 24 KiB of a 32 KiB L1, and A goes by from L2 */
    BF16_LOW_RANK = 64      /* of an adapter that one product can take with it */
};

/* 1: this build and this processor multiply in bf16, and by what. 0: why not. */
int bf16_usable(char *why, size_t n);
/* Is this product one of bf16? Those of few rows are not: they wait for memory, not for multiplications. */
static inline int bf16_applies(const struct kernel_ctx *c, const struct weight *w, int N)
{
    return c->compute == COMPUTE_BF16 && w->type != TYPE_REAL && N >= FEW_ROWS;
}

size_t bf16_gemm_bytes(const struct kernel_sizes *s);
/* matmul and matmul_dx of kernels.h, of weights that are not TYPE_REAL. With an adapter's h[N,r] and B[O,r], or gh[N,r] and
 * A[r,I] (TYPE_REAL; r at most BF16_LOW_RANK and scale 1; else NULL), + h B^T or + gh A, in f32. */
int bf16_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias, double scale,
                const buf *h, const struct weight *b, int accumulate, int N);
int bf16_matmul_dx(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w, double scale,
                   const buf *gh, const struct weight *a, int accumulate, int N);

/* ---- gemm_amx.c ---- */

/* Is there AMX with bf16 here, and may this process use it? Asks the system, which is cheap. */
int amx_ready(void);
/* What a thread does before and after its amx_sums(). */
void amx_begin(void);
void amx_end(void);
/* out[16 i + r][c] = sum over `terms` (a multiple of 32) of a tile's row r times the panel's column c, i < tiles,
 * tiles from 1 to 4; packed as gemm_bf16.c says, tile i begins at a + i * tile. */
void amx_sums(float *out, const uint16_t *a, size_t tile, const uint16_t *panel, int tiles, int terms);

#endif
