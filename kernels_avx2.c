/* kernels_avx2.c - the table "avx2": 256-bit vectors and fused multiply-adds. The products are in
 * gemm_vec.c, attention in attention_vec.c; here is the rest.
 *
 * Elementwise work is bounded by memory; loops that compilers vectorise by themselves are left in
 * plain C. What sums over a row keeps running sums of 8 lanes and adds those up in a fixed way. */
#define _DEFAULT_SOURCE         /* madvise() */
#include "vectors.h"
#include "bf16.h"
#include "nf4.h"

#include <math.h>
#include <stdio.h>
#include <sys/mman.h>

#ifdef HAVE_AVX2
#include <cpuid.h>

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-parameter"     /* not every operation needs its context */
#endif

enum { CHUNK = 4096 };      /* elements that a thread takes at a time: whole cache lines */

static long long chunks_of(size_t n) { return (long long)((n + CHUNK - 1) / CHUNK); }
static int chunk_size(size_t n, long long i)
{
    size_t left = n - (size_t)i * CHUNK;
    return left < CHUNK ? (int)left : CHUNK;
}

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

/* ---- moving ---- */

static void zero(struct kernel_ctx *c, buf *x, size_t n)
{
    long long i;
#pragma omp parallel for num_threads(c->threads) if(n > PARALLEL_WORK)
    for (i = 0; i < chunks_of(n); i++) memset((float *)x + i * CHUNK, 0, sizeof(float) * (size_t)chunk_size(n, i));
}

static void copy(struct kernel_ctx *c, buf *out, const buf *x, size_t n)
{
    long long i;
#pragma omp parallel for num_threads(c->threads) if(n > PARALLEL_WORK)
    for (i = 0; i < chunks_of(n); i++)
        memcpy((float *)out + i * CHUNK, (const float *)x + i * CHUNK, sizeof(float) * (size_t)chunk_size(n, i));
}

static void gather(struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C)
{
    int m;
#pragma omp parallel for num_threads(c->threads) if((double)M * C > PARALLEL_WORK)
    for (m = 0; m < M; m++)
        memcpy((float *)out + (size_t)m * (size_t)C,
               (const float *)x + (size_t)((const int *)rows)[m] * (size_t)C, sizeof(float) * (size_t)C);
}

static void add_to(float *restrict out, const float *restrict x, int n)
{
    int i;
    for (i = 0; i < n; i++) out[i] += x[i];
}

static void scatter_add(struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C)
{
    int m;
#pragma omp parallel for num_threads(c->threads) if((double)M * C > PARALLEL_WORK)
    for (m = 0; m < M; m++)
        add_to((float *)out + (size_t)((const int *)rows)[m] * (size_t)C,
               (const float *)x + (size_t)m * (size_t)C, C);
}

static void add(struct kernel_ctx *c, buf *out, const buf *x, size_t n)
{
    long long i;
#pragma omp parallel for num_threads(c->threads) if(n > PARALLEL_WORK)
    for (i = 0; i < chunks_of(n); i++)
        add_to((float *)out + i * CHUNK, (const float *)x + i * CHUNK, chunk_size(n, i));
}

/* ---- embedding ---- */

static void embed_backward(struct kernel_ctx *c, buf *dw, const buf *dout, const ints *ids, int N, int C)
{
    int i;
#pragma omp parallel for num_threads(c->threads) if((double)N * C > PARALLEL_WORK)
    for (i = 0; i < C; i += 64) {       /* an id may come twice: own columns */
        int n;
        for (n = 0; n < N; n++)
            add_to((float *)dw + (size_t)((const int *)ids)[n] * (size_t)C + i,
                   (const float *)dout + (size_t)n * (size_t)C + i, smaller(64, C - i));
    }
}

/* ---- products: what gemm_vec.c leaves ---- */

static void bias_backward(struct kernel_ctx *c, buf *db, const buf *dout, int N, int O)
{
    int o;
#pragma omp parallel for num_threads(c->threads) if((double)N * O > PARALLEL_WORK)
    for (o = 0; o < O; o += 64) {
        float sum[64] = { 0 };
        int n, have = smaller(64, O - o);
        for (n = 0; n < N; n++) add_to(sum, (const float *)dout + (size_t)n * (size_t)O + o, have);
        add_to((float *)db + o, sum, have);
    }
}

/* ---- RMSNorm ---- */

static float rms_inverse(const float *x, int C, double eps)
{
    return (float)(1 / sqrt((double)dot(x, x, C) / C + eps));
}

static void rmsnorm(struct kernel_ctx *c, buf *out_, const buf *x_, const buf *w_, int N, int C, double eps)
{
    const float *w = (const float *)w_;
    int n;
#pragma omp parallel for num_threads(c->threads) if((double)N * C > PARALLEL_WORK)
    for (n = 0; n < N; n++) {
        const float *restrict x = (const float *)x_ + (size_t)n * (size_t)C;
        float *restrict out = (float *)out_ + (size_t)n * (size_t)C, rstd = rms_inverse(x, C, eps);
        int i;
        for (i = 0; i < C; i++) out[i] = x[i] * rstd * w[i];
    }
}

/* sum of a b c over n elements */
static float dot3(const float *a, const float *b, const float *c, int n)
{
    __m256 s = _mm256_setzero_ps();
    int i;
    for (i = 0; i < n; i += 8)
        s = _mm256_fmadd_ps(_mm256_mul_ps(load_lanes(a + i, n - i), load_lanes(b + i, n - i)),
                            load_lanes(c + i, n - i), s);
    return sum8(s);
}

static void rmsnorm_backward(struct kernel_ctx *c, buf *dx_, buf *dw_, const buf *dout_, const buf *x_,
                             const buf *w_, int N, int C, double eps, int accumulate)
{
    const float *w = (const float *)w_;
    int n, i0;
#pragma omp parallel for num_threads(c->threads) if((double)N * C > PARALLEL_WORK)
    for (n = 0; n < N; n++) {
        const float *restrict x = (const float *)x_ + (size_t)n * (size_t)C;
        const float *restrict dout = (const float *)dout_ + (size_t)n * (size_t)C;
        float *restrict dx = (float *)dx_ + (size_t)n * (size_t)C;
        float rstd = rms_inverse(x, C, eps), mean = dot3(dout, w, x, C) * rstd / (float)C;
        int i;
        if (accumulate)
            for (i = 0; i < C; i++) dx[i] += rstd * (dout[i] * w[i] - x[i] * rstd * mean);
        else
            for (i = 0; i < C; i++) dx[i] = rstd * (dout[i] * w[i] - x[i] * rstd * mean);
    }
    if (!dw_) return;
#pragma omp parallel for num_threads(c->threads) if((double)N * C > PARALLEL_WORK)
    for (i0 = 0; i0 < C; i0 += 256) {   /* one owner sums a column over all rows */
        float sum[256] = { 0 };
        int m, i, have = smaller(256, C - i0);
        for (m = 0; m < N; m++) {
            const float *x = (const float *)x_ + (size_t)m * (size_t)C;
            const float *dout = (const float *)dout_ + (size_t)m * (size_t)C + i0;
            float rstd = rms_inverse(x, C, eps);
            for (i = 0; i < have; i++) sum[i] += dout[i] * (x[i0 + i] * rstd);
        }
        add_to((float *)dw_ + i0, sum, have);
    }
}

/* ---- rotary positions ---- */

static void rotate(float *restrict a, float *restrict b, const float *restrict cosines,
                   const float *restrict sines, float sign, int n)
{
    int i;
    for (i = 0; i < n; i++) {
        float x = a[i], y = b[i], s = sign * sines[i];
        a[i] = x * cosines[i] - y * s;
        b[i] = y * cosines[i] + x * s;
    }
}

static void rope(struct kernel_ctx *c, buf *x_, const buf *cos_, const buf *sin_, const ints *pos,
                 int N, int heads, int HS, int backward)
{
    int n, half = HS / 2;
#pragma omp parallel for num_threads(c->threads) if((double)N * heads * HS > PARALLEL_WORK)
    for (n = 0; n < N; n++) {
        size_t angle = (size_t)((const int *)pos)[n] * (size_t)half;
        float *x = (float *)x_ + (size_t)n * (size_t)heads * (size_t)HS;
        int h;
        for (h = 0; h < heads; h++, x += HS)
            rotate(x, x + half, (const float *)cos_ + angle, (const float *)sin_ + angle, backward ? -1.0f : 1.0f, half);
    }
}

/* ---- SwiGLU ---- */

static void swiglu(struct kernel_ctx *c, buf *out_, const buf *gate_, const buf *up_, size_t n)
{
    long long k;
#pragma omp parallel for num_threads(c->threads) if(n * 8.0 > PARALLEL_WORK)
    for (k = 0; k < chunks_of(n); k++) {
        float *out = (float *)out_ + k * CHUNK;
        const float *gate = (const float *)gate_ + k * CHUNK, *up = (const float *)up_ + k * CHUNK;
        int i, have = chunk_size(n, k);
        for (i = 0; i < have; i += 8) {
            __m256 z = load_lanes(gate + i, have - i);
            store_lanes(out + i, have - i, _mm256_mul_ps(_mm256_mul_ps(z, sigmoid8(z)), load_lanes(up + i, have - i)));
        }
    }
}

/* s = sigmoid(z) and 1 - s, from e^-|z|: near 1 a difference would have no digits left. */
static void sigmoids8(__m256 z, __m256 *s, __m256 *rest)
{
    __m256 e = exp8(_mm256_or_ps(z, _mm256_set1_ps(-0.0f)));
    __m256 large = _mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_add_ps(_mm256_set1_ps(1.0f), e));
    __m256 small = _mm256_mul_ps(e, large);
    *s = _mm256_blendv_ps(large, small, z);         /* by the sign of z */
    *rest = _mm256_blendv_ps(small, large, z);
}

static void swiglu_backward(struct kernel_ctx *c, buf *dgate_, buf *dup_, const buf *dout_,
                            const buf *gate_, const buf *up_, size_t n)
{
    long long k;
#pragma omp parallel for num_threads(c->threads) if(n * 8.0 > PARALLEL_WORK)
    for (k = 0; k < chunks_of(n); k++) {
        float *dgate = (float *)dgate_ + k * CHUNK, *dup = (float *)dup_ + k * CHUNK;
        const float *dout = (const float *)dout_ + k * CHUNK;
        const float *gate = (const float *)gate_ + k * CHUNK, *up = (const float *)up_ + k * CHUNK;
        int i, have = chunk_size(n, k);
        for (i = 0; i < have; i += 8) {
            __m256 z = load_lanes(gate + i, have - i), u = load_lanes(up + i, have - i), s, rest, ds;
            sigmoids8(z, &s, &rest);
            ds = _mm256_mul_ps(load_lanes(dout + i, have - i), s);
            store_lanes(dup + i, have - i, _mm256_mul_ps(ds, z));
            store_lanes(dgate + i, have - i, _mm256_mul_ps(_mm256_mul_ps(ds, u), _mm256_fmadd_ps(z, rest, _mm256_set1_ps(1.0f))));
        }
    }
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

/* ---- loss ---- exponentials as powers of 2, to the base e again by the same number */

#define LOG2E 1.44269504f

/* The largest of z[n] and its first index, as a walk with > from z[0] finds them. */
static float largest(const float *z, int n, int *index)
{
    __m256 m = _mm256_set1_ps(z[0]), m2 = m;
    float max;
    int i;
    for (i = 0; i + 16 <= n; i += 16) {
        m = _mm256_max_ps(_mm256_loadu_ps(z + i), m);
        m2 = _mm256_max_ps(_mm256_loadu_ps(z + i + 8), m2);
    }
    max = max8(_mm256_max_ps(m2, m));
    for (; i < n; i++) if (z[i] > max) max = z[i];
    m = _mm256_set1_ps(max);
    for (i = 0; i + 8 <= n && !_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(z + i), m, _CMP_EQ_OQ)); i += 8) ;
    for (; i < n && z[i] != max; i++) ;
    *index = i < n ? i : 0;
    return max;
}

/* sum of 2^(z log2(e) - top), in double; when `keep`, z becomes these numbers */
static double sum_exp(float *z, int n, float top, int keep)
{
    __m256d low = _mm256_setzero_pd(), high = low;
    const __m256 log2e = _mm256_set1_ps(LOG2E), minus = _mm256_set1_ps(-top);
    int i;
    for (i = 0; i < n; i += 8) {
        __m256 e = exp2_8(_mm256_fmadd_ps(load_lanes(z + i, n - i), log2e, minus));
        if (keep) store_lanes(z + i, n - i, e);
        if (n - i < 8) e = _mm256_and_ps(e, _mm256_castsi256_ps(lanes(n - i)));
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(e)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(e, 1)));
    }
    return sum4d(_mm256_add_pd(low, high));
}

/* One row. Its logits give way to e^(z - max), nearly, and then to gradients, so what the targets need of
 * them is put aside in losses. */
static void cross_entropy_row(float *losses, int *best, float *z, const int *id, const float *weight,
                              int T, int V, int grad, double grad_scale)
{
    float top = LOG2E * largest(z, V, best), factor;
    double lse, sum, total = 0;
    int t, s, v;
    for (t = 0; t < T; t++) {
        losses[t] = z[id[t]];
        total += weight[t];
    }
    sum = sum_exp(z, V, top, grad);
    lse = top / (double)LOG2E + log(sum);
    if (grad) {
        factor = (float)(grad_scale * total / sum);
        for (v = 0; v < V; v++) z[v] *= factor;
        for (t = 0; t < T; t++) {
            double d = total * exp(losses[t] - lse);        /* d lse / d z[v] = softmax(z)[v] */
            for (s = 0; s < T; s++) if (id[s] == id[t]) d -= weight[s];
            z[id[t]] = (float)(grad_scale * d);
        }
    }
    for (t = 0; t < T; t++) losses[t] = (float)(lse - losses[t]);
}

static void cross_entropy(struct kernel_ctx *c, buf *losses, ints *best, buf *logits,
                          const ints *first_, const ints *id, const buf *weight, int U, int V,
                          int grad, double grad_scale)
{
    const int *first = (const int *)first_;
    int u;
#pragma omp parallel for schedule(dynamic) num_threads(c->threads) if((double)U * V * 8 > PARALLEL_WORK)
    for (u = 0; u < U; u++)
        cross_entropy_row((float *)losses + first[u], (int *)best + u, (float *)logits + (size_t)u * (size_t)V,
                          (const int *)id + first[u], (const float *)weight + first[u],
                          first[u + 1] - first[u], V, grad, grad_scale);
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

static long long not_finite(struct kernel_ctx *c, const buf *x_, size_t n)
{
    long long k;
    for (k = 0; k < chunks_of(n); k++) {
        const float *x = (const float *)x_ + k * CHUNK;
        int i, have = chunk_size(n, k), bad = 0;
        for (i = 0; i < have; i++) bad |= !(x[i] - x[i] == 0);
        for (i = 0; bad && i < have; i++) if (!(x[i] - x[i] == 0)) return k * CHUNK + i;
    }
    return -1;
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
    .zero = zero, .copy = copy, .gather = gather, .scatter_add = scatter_add, .add = add,
    .embed = avx2_embed, .embed_backward = embed_backward,
    .matmul = avx2_matmul, .matmul_dx = avx2_matmul_dx, .linear = avx2_linear, .linear_dx = avx2_linear_dx, .matmul_dw = avx2_matmul_dw,
    .bias_backward = bias_backward, .rmsnorm = rmsnorm, .rmsnorm_backward = rmsnorm_backward,
    .rope = rope, .attention = avx2_attention, .attention_backward = avx2_attention_backward,
    .swiglu = swiglu, .swiglu_backward = swiglu_backward, .dropout = dropout,
    .cross_entropy = cross_entropy,
    .adamw = adamw, .adamw8bit = adamw8bit, .sum_squares = sum_squares, .not_finite = not_finite
#endif
};
