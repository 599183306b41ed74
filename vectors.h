/* vectors.h - what the files of vector instructions share: partial vectors, exp, and what they offer each other.
 *
 *     decode_vec.c        weights of any type to numbers; codes_avx2.h is its vectors
 *     gemm_vec.c          products with them
 *     few_vec.c           products of few rows
 *     attention_vec.c     attention, forward and backward
 *     kernels_avx2.c      everything else, and the table
 *     kernels_avx512.c    the table of what is faster in 512 bits
 *
 * Those named *_vec.c are written in the vectors of tile.h, and the Makefile compiles them for each width: gemm_vec.c
 * becomes gemm_avx2.o and, with WIDE, gemm_avx512.o. NAMED() names their functions. */
#ifndef VECTORS_H
#define VECTORS_H

#include "kernels.h"

#ifdef HAVE_AVX2
#include <immintrin.h>
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

/* ---- partial vectors of 256 bits: the first n of 8 lanes, the others 0 or untouched ---- */

static inline __m256i lanes(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline __m256 load_lanes(const float *p, int n)
{
    return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes(n));
}
static inline void store_lanes(float *p, int n, __m256 v)
{
    if (n >= 8) _mm256_storeu_ps(p, v);
    else _mm256_maskstore_ps(p, lanes(n), v);
}

static inline float sum8(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float max8(__m256 v)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
static inline double sum4d(__m256d v)
{
    __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

/* a . b over n elements: four running sums of 8 lanes, always added up in the same way. */
static inline float dot(const float *a, const float *b, int n)
{
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
        s1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), s1);
        s2 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 16), _mm256_loadu_ps(b + i + 16), s2);
        s3 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 24), _mm256_loadu_ps(b + i + 24), s3);
    }
    for (; i < n; i += 8) s0 = _mm256_fmadd_ps(load_lanes(a + i, n - i), load_lanes(b + i, n - i), s0);
    return sum8(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
}

/* ---- exp ----
 * e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2, ln 2 in two parts; e^r by its Taylor
 * polynomial of degree 7, whose remainder is below 6e-9 of the result. Error below 1.07 ulp (units of
 * 2^-149 below the normal numbers), over all floats: each was tried. -inf gives 0, +inf gives inf, NaN
 * gives NaN. */
static inline __m256 exp8(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    __m256 n, r, p;
    __m256i i, half;
    x = _mm256_min_ps(_mm256_set1_ps(89.0f), _mm256_max_ps(_mm256_set1_ps(-105.0f), x));
    n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(_mm256_mul_ps(p, r), r, r);
    p = _mm256_add_ps(p, one);
    /* 2^n in two factors, since n reaches from -152 to 128 */
    i = _mm256_cvtps_epi32(n);
    half = _mm256_srai_epi32(i, 1);
    i = _mm256_sub_epi32(i, half);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, _mm256_set1_epi32(127)), 23)));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(i, _mm256_set1_epi32(127)), 23)));
}

/* 2^x for x <= 127, 0 below -126: what a softmax needs, where a number that small does not count. The
 * polynomial is the best of degree 6 (2e-9 of the result); n goes straight into the exponent. Error
 * below 1.1 ulp. NaN gives NaN. */
#define EXP2_1 0.6931472f
#define EXP2_2 0.24022646f
#define EXP2_3 0.055503286f
#define EXP2_4 0.009618489f
#define EXP2_5 0.0013399931f
#define EXP2_6 0.00015345812f
static inline __m256 exp2_8(__m256 x)
{
    __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm256_sub_ps(x, n);
    __m256 p = _mm256_set1_ps(EXP2_6);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP2_5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP2_4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP2_3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP2_2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP2_1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
    return _mm256_and_ps(p, _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_NLT_UQ));
}

/* 1 / (1 + e^-x) */
static inline __m256 sigmoid8(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    return _mm256_div_ps(one, _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

/* ---- weights as numbers ---- */

int vec_can_read(const struct weight *w);
/* Index in the data of W[row][col], of TYPE_REAL too. */
size_t vec_element(const struct weight *w, int row, int col);
/* out[i] = W[row][col + i], i < n: the bits of weight_decode(). */
void vec_decode(const struct weight *w, int row, int col, int n, float *out);
/* Rows of floats one after the other: no decoding. */
int vec_lies_as_floats(const struct weight *w);
/* The elements where they lie when they are floats, else decoded into `space`. */
const float *vec_strip(const struct weight *w, int row, int col, int n, float *space);

/* ---- the operations of the other files ---- */

/* out[i*stride + r] = rows[r][i], r < 8, i < n */
void vec_transpose(float *out, size_t stride, const float *const *rows, int n);

/* The product of matmul below for N < FEW_ROWS. */
void avx2_product_few(struct kernel_ctx *c, float *out, const float *x, const struct weight *w,
                      const float *bias, float scale, int accumulate, int N);

size_t avx2_few_bytes(const struct kernel_sizes *s);
size_t avx2_gemm_bytes(const struct kernel_sizes *s);
int avx2_embed(struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N);
int avx2_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w,
                const buf *bias, double scale, int accumulate, int N);
int avx2_matmul_dx(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w,
                   double scale, int accumulate, int N);
int avx2_linear(struct kernel_ctx *c, buf *out, buf *h, const buf *x, const struct weight *w,
                const buf *bias, const struct low_rank *ab, int accumulate, int N);
int avx2_linear_dx(struct kernel_ctx *c, buf *dx, buf *gh, const buf *dout, const struct weight *w,
                   const struct low_rank *ab, int accumulate_gh, int accumulate, int N);
void avx2_matmul_dw(struct kernel_ctx *c, buf *dw, const buf *dout, const buf *x,
                    double scale, int N, int O, int I);

size_t avx2_attention_bytes(const struct kernel_sizes *s);
void avx2_attention(struct kernel_ctx *c, buf *out, buf *lse, const buf *q, const buf *k,
                    const buf *v, const ints *segments, int S, int NH, int NKV, int HS,
                    double scale, int window);
void avx2_attention_backward(struct kernel_ctx *c, buf *dq, buf *dk, buf *dv, buf *delta,
                             const buf *dout, const buf *out, const buf *lse, const buf *q,
                             const buf *k, const buf *v, const ints *segments, int S,
                             int N, int NH, int NKV, int HS, double scale, int window);

/* ---- the same in 512 bits ---- */

void avx512_product_few(struct kernel_ctx *c, float *out, const float *x, const struct weight *w,
                        const float *bias, float scale, int accumulate, int N);
size_t avx512_gemm_bytes(const struct kernel_sizes *s);
int avx512_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w,
                  const buf *bias, double scale, int accumulate, int N);
int avx512_matmul_dx(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w,
                     double scale, int accumulate, int N);
int avx512_linear(struct kernel_ctx *c, buf *out, buf *h, const buf *x, const struct weight *w,
                const buf *bias, const struct low_rank *ab, int accumulate, int N);
int avx512_linear_dx(struct kernel_ctx *c, buf *dx, buf *gh, const buf *dout, const struct weight *w,
                   const struct low_rank *ab, int accumulate_gh, int accumulate, int N);
void avx512_matmul_dw(struct kernel_ctx *c, buf *dw, const buf *dout, const buf *x,
                      double scale, int N, int O, int I);

size_t avx512_attention_bytes(const struct kernel_sizes *s);
void avx512_attention(struct kernel_ctx *c, buf *out, buf *lse, const buf *q, const buf *k,
                      const buf *v, const ints *segments, int S, int NH, int NKV, int HS,
                      double scale, int window);
void avx512_attention_backward(struct kernel_ctx *c, buf *dq, buf *dk, buf *dv, buf *delta,
                               const buf *dout, const buf *out, const buf *lse, const buf *q,
                               const buf *k, const buf *v, const ints *segments, int S,
                               int N, int NH, int NKV, int HS, double scale, int window);

#include "tile.h"

#endif
#endif
