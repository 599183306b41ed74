/* vectors.h - what the files of vector instructions share, and what they offer each other and the tables.
 *
 *     decode_vec.c        weights of any type to numbers; codes_x86.h is its vectors
 *     gemm_vec.c          products with them
 *     few_vec.c           products of few rows, on x86-64
 *     attention_vec.c     attention, forward and backward
 *     rows_vec.c          what goes over a buffer or row by row
 *     gemm_bf16.c         products in bf16; gemm_amx.c has its tile on AMX
 *     ../kernels_avx2.c   the tables, and what one alone has
 *     ../kernels_avx512.c
 *     ../kernels_neon.c
 *
 * Those named *_vec.c are written in the vectors of tile.h, and the Makefile compiles them for each instruction set: gemm_vec.c
 * becomes gemm_avx2.o and, with WIDE, gemm_avx512.o, or gemm_neon.o. NAMED() names their functions. */
#ifndef VECTORS_H
#define VECTORS_H

#include "../kernels.h"

#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __GNUC__
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NEVER_INLINE __attribute__((noinline))
#else
#define ALWAYS_INLINE static inline
#define NEVER_INLINE
#endif

/* Below this many multiply-adds a team of threads costs more than it brings. */
#define PARALLEL_WORK 60000.0

static inline int thread_number(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }
static inline int smaller(int a, int b) { return a < b ? a : b; }
static inline int larger(int a, int b) { return a > b ? a : b; }

/* ---- the operations of the other files ---- */

/* What the files define for each instruction set: operations of kernels.h, and the scratch memory that they take. The
 * product of few rows is matmul for N < FEW_ROWS. decode_rows: out[r*apart + i] = W[row + r][col + i], r < rows, i < n,
 * with the bits of weight_decode(). transpose: out[i*stride + r] = rows[r][i], r < TURNED, i < n. */
#define OPERATIONS(set) \
    void set##_decode_rows(const struct weight *w, int row, int rows, int col, int n, float *out, size_t apart); \
    void set##_transpose(float *out, size_t stride, const float *const *rows, int n); \
    size_t set##_gemm_bytes(const struct kernel_sizes *s); \
    int set##_embed(struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N); \
    void set##_product_few(struct kernel_ctx *c, float *out, const float *x, const struct weight *w, \
                           const float *bias, float scale, int accumulate, int N); \
    int set##_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, \
                     const buf *bias, double scale, int accumulate, int N); \
    int set##_matmul_dx(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w, \
                        double scale, int accumulate, int N); \
    int set##_linear(struct kernel_ctx *c, buf *out, buf *h, const buf *x, const struct weight *w, \
                     const buf *bias, const struct low_rank *ab, int accumulate, int N); \
    int set##_linear_dx(struct kernel_ctx *c, buf *dx, buf *gh, const buf *dout, const struct weight *w, \
                        const struct low_rank *ab, int accumulate_gh, int accumulate, int N); \
    void set##_matmul_dw(struct kernel_ctx *c, buf *dw, const buf *dout, const buf *x, \
                         double scale, int N, int O, int I); \
    size_t set##_attention_bytes(const struct kernel_sizes *s); \
    void set##_attention(struct kernel_ctx *c, buf *out, buf *lse, const buf *q, const buf *k, const buf *v, \
                         const ints *segments, int S, int NH, int NKV, int HS, double scale, int window); \
    void set##_attention_backward(struct kernel_ctx *c, buf *dq, buf *dk, buf *dv, buf *delta, \
                                  const buf *dout, const buf *out, const buf *lse, const buf *q, \
                                  const buf *k, const buf *v, const ints *segments, int S, \
                                  int N, int NH, int NKV, int HS, double scale, int window);
OPERATIONS(avx2)
OPERATIONS(avx512)
OPERATIONS(neon)
size_t avx2_few_bytes(const struct kernel_sizes *s);

#ifdef HAVE_AVX2
#include "avx2.h"
#endif
#if defined HAVE_AVX2 || defined HAVE_NEON
#include "tile.h"

/* ---- weights as numbers ---- */

static inline int vec_can_read(const struct weight *w)
{
    return w->type == TYPE_REAL || (w->type >= 0 && w->type < TYPE_COUNT && weight_types[w->type].decode);
}

/* Index in the data of W[row][col], of TYPE_REAL too. */
static inline size_t vec_element(const struct weight *w, int row, int col)
{
    int r = w->type == TYPE_REAL ? row : weight_file_row(w, row);
    return w->offset + (size_t)r * (size_t)w->cols + (size_t)col;
}

/* Rows of floats one after the other: no decoding. */
static inline int vec_lies_as_floats(const struct weight *w)
{
    return w->type == TYPE_REAL || (w->type == TYPE_F32 && !w->head_rows && (uintptr_t)w->data % sizeof(float) == 0);
}

/* out[i] = W[row][col + i], i < n */
static inline void vec_decode(const struct weight *w, int row, int col, int n, float *out)
{
    NAMED(decode_rows)(w, row, 1, col, n, out, 0);
}

/* The same where they lie when they are floats, else decoded into `space`. */
static inline const float *vec_strip(const struct weight *w, int row, int col, int n, float *space)
{
    if (vec_lies_as_floats(w)) return (const float *)w->data + vec_element(w, row, col);
    vec_decode(w, row, col, n, space);
    return space;
}

#endif
#endif
