/* kernels_avx2.c - the table "avx2": 256-bit vectors and fused multiply-adds. The products are in
 * vectors/gemm_vec.c, attention in attention_vec.c there, what goes by rows in rows_vec.c; here is the rest. */
#define _DEFAULT_SOURCE         /* madvise() */
#include "vectors/vectors.h"
#include "vectors/bf16.h"
#include "nf4.h"

#include <math.h>
#include <stdio.h>
#include <sys/mman.h>

#ifdef HAVE_AVX2
#include "vectors/rows_vec.c"

#include <cpuid.h>

/* ---- the table itself ---- */

static int usable(char *why, size_t n)
{
    unsigned a, b, f, d;
    __builtin_cpu_init();       /* asks the system too whether it saves 256-bit registers */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
        && __get_cpuid(1, &a, &b, &f, &d) && (f & bit_F16C))
        return 1;
    snprintf(why, n, "this processor has no AVX2 with FMA and F16C");
    return 0;
}

static size_t work_bytes(const struct kernel_sizes *s)
{
    const size_t all[] = { avx2_gemm_bytes(s), avx2_attention_bytes(s), bf16_gemm_bytes(s), avx2_few_bytes(s) };
    size_t most = 0, i;
    for (i = 0; i < sizeof all / sizeof *all; i++) if (all[i] > most) most = all[i];
    return most;
}

/* ---- memory ---- */

/* Large memory is asked for in pages of 2 MiB, where the system has them: translating addresses of small ones costs
 * products time. Advice alone: pages still come as they are used. */
static void *alloc(struct kernel_ctx *c, size_t bytes)
{
    char *p = kernels_ref.alloc(c, bytes);
#ifdef MADV_HUGEPAGE
    const size_t page = (size_t)1 << 21;
    size_t before = p ? (page - (uintptr_t)p % page) % page : 0;
    if (p && bytes >= before + page) madvise(p + before, (bytes - before) / page * page, MADV_HUGEPAGE);
#endif
    return p;
}

/* ---- dropout ---- */

/* a * b of 64 bits, four at a time */
static __m256i multiply64(__m256i a, uint64_t b)
{
    const __m256i low = _mm256_set1_epi64x((long long)(b & 0xffffffff)), high = _mm256_set1_epi64x((long long)(b >> 32));
    __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(a, high), _mm256_mul_epu32(_mm256_srli_epi64(a, 32), low));
    return _mm256_add_epi64(_mm256_mul_epu32(a, low), _mm256_slli_epi64(cross, 32));
}

/* All ones where random_bits(key, i) >> 11 >= limit, for four i: z is key + golden ratio * (i + 1). */
static __m256i kept4(__m256i z, __m256i below)
{
    z = multiply64(_mm256_xor_si256(z, _mm256_srli_epi64(z, 30)), 0xbf58476d1ce4e5b9ull);
    z = multiply64(_mm256_xor_si256(z, _mm256_srli_epi64(z, 27)), 0x94d049bb133111ebull);
    z = _mm256_xor_si256(z, _mm256_srli_epi64(z, 31));
    return _mm256_cmpgt_epi64(_mm256_srli_epi64(z, 11), below);
}

/* A row of C channels, whose first number of the stream has this index. */
static void dropout_row(float *out, const float *x, int C, uint64_t key, uint64_t index, uint64_t limit,
                        float keep, int accumulate)
{
    const uint64_t golden = 0x9e3779b97f4a7c15ull;
    const __m256i step = _mm256_set1_epi64x((long long)(8 * golden)), below = _mm256_set1_epi64x((long long)limit - 1);
    const __m256i four = _mm256_set1_epi64x((long long)(4 * golden)), order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    __m256i z = _mm256_add_epi64(_mm256_set1_epi64x((long long)(key + golden * (index + 1))),
        _mm256_setr_epi64x(0, (long long)golden, (long long)(2 * golden), (long long)(3 * golden)));
    int i;
    for (i = 0; i < C; i += 8, z = _mm256_add_epi64(z, step)) {
        __m256i a = kept4(z, below), b = kept4(_mm256_add_epi64(z, four), below);
        __m256i kept = _mm256_blend_epi32(a, b, 0xaa);          /* lanes 0 4 1 5 2 6 3 7 */
        __m256 y = _mm256_mul_ps(load_lanes(x + i, C - i), _mm256_set1_ps(keep));
        y = _mm256_and_ps(y, _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(kept, order)));
        if (accumulate) y = _mm256_add_ps(load_lanes(out + i, C - i), y);
        store_lanes(out + i, C - i, y);
    }
}

/* uniform < p is asked of the 53 bits as an integer: both sides are multiples of 2^-53 once p 2^53
 * is rounded up. So the masks are the reference's, bit for bit. */
static void dropout(struct kernel_ctx *c, buf *out, const buf *x, const ints *visit, const ints *pos,
                    int N, int C, double p, uint64_t key, int accumulate)
{
    const uint64_t limit = (uint64_t)ceil(p * 9007199254740992.0);
    int n;
#pragma omp parallel for num_threads(c->threads) if((double)N * C * 4 > PARALLEL_WORK)
    for (n = 0; n < N; n++)
        dropout_row((float *)out + (size_t)n * (size_t)C, (const float *)x + (size_t)n * (size_t)C, C, key,
                    (((uint64_t)((const int *)visit)[n] << 20) + (uint64_t)((const int *)pos)[n]) << 20,
                    limit, (float)(1 / (1 - p)), accumulate);
}

/* ---- optimizer ---- */

ALWAYS_INLINE void adamw_run(float *restrict p, float *restrict m, float *restrict v, const float *restrict g, int n,
                             const struct adamw_step *s)
{
    const double decay = 1 - s->lr * s->weight_decay, rate = s->lr / s->correction1;
    int i;
    for (i = 0; i < n; i++) {
        double gi = g[i] * s->grad_scale;
        double mi = s->beta1 * m[i] + (1 - s->beta1) * gi;
        double vi = s->beta2 * v[i] + (1 - s->beta2) * gi * gi;
        m[i] = (float)mi;
        v[i] = (float)vi;
        p[i] = (float)(p[i] * decay - rate * mi / (sqrt(vi / s->correction2) + s->eps));
    }
}

static void adamw(struct kernel_ctx *c, buf *p_, buf *m_, buf *v_, const buf *g_, size_t n,
                  const struct adamw_step *s)
{
    long long k;
#pragma omp parallel for num_threads(c->threads) if(n * 8.0 > PARALLEL_WORK)
    for (k = 0; k < chunks_of(n); k++)
        adamw_run((float *)p_ + k * CHUNK, (float *)m_ + k * CHUNK, (float *)v_ + k * CHUNK,
                  (const float *)g_ + k * CHUNK, chunk_size(n, k), s);
}

/* The numbers of a map, and the bounds between them: bound[k] lies above code k. */
struct map8 { float value[256], bound[256]; };

static void map8_make(struct map8 *map, int is_signed)
{
    dynamic_map(map->value, is_signed);
    code_midpoints(map->bound, map->value, 256);
}

static void decode_moments(float *x, const unsigned char *codes, float absmax, const struct map8 *map)
{
    int i;
    for (i = 0; i < MOMENT_BLOCK; i += 8) {
        __m256i k = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + i)));
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_i32gather_ps(map->value, k, 4), _mm256_set1_ps(absmax)));
    }
}

/* encode_8bit() of nf4.h for a whole block: the same search, 4 times 8 numbers side by side, as each step
 * of one has to wait for its gather. */
static void encode_moments(unsigned char *codes, float *absmax, const float *x, const struct map8 *map)
{
    enum { SIDE = 4 };
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 most = _mm256_setzero_ps(), inverse;
    int i, j, half;
    for (i = 0; i < MOMENT_BLOCK; i += 8) most = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(x + i), magnitude), most);
    *absmax = max8(most);
    inverse = _mm256_set1_ps(1 / block_divisor(*absmax));
    for (i = 0; i < MOMENT_BLOCK; i += 8 * SIDE) {
        __m256 y[SIDE];
        __m256i k[SIDE];
        for (j = 0; j < SIDE; j++) {
            y[j] = _mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * j), inverse);
            k[j] = _mm256_setzero_si256();
        }
        for (half = 128; half; half /= 2)
            for (j = 0; j < SIDE; j++) {
                __m256 above = _mm256_cmp_ps(y[j], _mm256_i32gather_ps(map->bound + half - 1, k[j], 4), _CMP_GT_OQ);
                k[j] = _mm256_add_epi32(k[j], _mm256_and_si256(_mm256_castps_si256(above), _mm256_set1_epi32(half)));
            }
        for (j = 0; j < SIDE; j++) {
            __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(k[j]), _mm256_extracti128_si256(k[j], 1));
            _mm_storel_epi64((__m128i *)(codes + i + 8 * j), _mm_packus_epi16(words, words));
        }
    }
}

/* Whole blocks; a short one at the end is the reference's. */
static void adamw8bit(struct kernel_ctx *c, buf *p_, void *m_, buf *mmax_, void *v_, buf *vmax_, const buf *g_,
                      size_t n, const struct adamw_step *s)
{
    float *p = (float *)p_, *mmax = (float *)mmax_, *vmax = (float *)vmax_;
    const float *g = (const float *)g_;
    unsigned char *m = m_, *v = v_;
    long long blocks = (long long)(n / MOMENT_BLOCK), k;
    size_t done = (size_t)blocks * MOMENT_BLOCK;
    struct map8 m_map, v_map;
    map8_make(&m_map, 1);
    map8_make(&v_map, 0);
#pragma omp parallel for num_threads(c->threads) if(n * 16.0 > PARALLEL_WORK)
    for (k = 0; k < blocks; k++) {
        float mb[MOMENT_BLOCK], vb[MOMENT_BLOCK];
        long long at = k * MOMENT_BLOCK;
        decode_moments(mb, m + at, mmax[k], &m_map);
        decode_moments(vb, v + at, vmax[k], &v_map);
        adamw_run(p + at, mb, vb, g + at, MOMENT_BLOCK, s);
        encode_moments(m + at, &mmax[k], mb, &m_map);
        encode_moments(v + at, &vmax[k], vb, &v_map);
    }
    if (done < n)
        kernels_ref.adamw8bit(c, (buf *)(p + done), m + done, (buf *)(mmax + blocks), v + done, (buf *)(vmax + blocks),
                              (const buf *)(g + done), n - done, s);
}

/* The tree: 64 pieces of equal length, in each two sums of four lanes. */
static double sum_squares(struct kernel_ctx *c, const buf *x_, size_t n)
{
    enum { PIECES = 64 };
    const size_t length = (n / PIECES + 16) / 16 * 16;
    double part[PIECES], sum = 0;
    int k;
#pragma omp parallel for num_threads(c->threads) if(n > PARALLEL_WORK)
    for (k = 0; k < PIECES; k++) {
        size_t i = (size_t)k * length, end = n < i + length ? n : i + length;
        __m256d low = _mm256_setzero_pd(), high = low;
        for (; i < end; i += 8) {
            __m256 x = load_lanes((const float *)x_ + i, end - i < 8 ? (int)(end - i) : 8);
            __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128(x)), b = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
            low = _mm256_fmadd_pd(a, a, low);
            high = _mm256_fmadd_pd(b, b, high);
        }
        part[k] = sum4d(_mm256_add_pd(low, high));
    }
    for (k = 0; k < PIECES; k++) sum += part[k];
    return sum;
}

#else

static int usable(char *why, size_t n)
{
    snprintf(why, n, "not built: the compiler makes no AVX2 code for this family of processors");
    return 0;
}

#endif

/* What is missing here is the reference's (kernels_complete). */
const struct kernels kernels_avx2 = {
    .abi = KERNELS_ABI, .bytes = sizeof(struct kernels),
    .name = "avx2", .about = "256-bit vectors and fused multiply-adds, x86-64",
    .elem = sizeof(float), .own_memory = 0, .below = &kernels_ref, .usable = usable, .has_bf16 = bf16_usable,
#ifdef HAVE_AVX2
    .work_bytes = work_bytes, .alloc = alloc,
    .zero = zero, .copy = copy, .gather = gather, .scatter_add = scatter_add,
    .embed = avx2_embed, .embed_backward = embed_backward,
    .matmul = avx2_matmul, .matmul_dx = avx2_matmul_dx, .linear = avx2_linear, .linear_dx = avx2_linear_dx, .matmul_dw = avx2_matmul_dw,
    .bias_backward = bias_backward, .rmsnorm = rmsnorm, .rmsnorm_backward = rmsnorm_backward,
    .rope = rope, .attention = avx2_attention, .attention_backward = avx2_attention_backward,
    .swiglu = swiglu, .swiglu_backward = swiglu_backward, .dropout = dropout,
    .cross_entropy = cross_entropy,
    .adamw = adamw, .adamw8bit = adamw8bit, .sum_squares = sum_squares, .not_finite = not_finite
#endif
};
