/* measure.c - see measure.h. */
#include "measure.h"
#include "../vectors/bf16.h"

#include <string.h>

double median(double *x, int n)
{
    int i, j;
    for (i = 1; i < n; i++) {
        double v = x[i];
        for (j = i; j > 0 && x[j - 1] > v; j--) x[j] = x[j - 1];
        x[j] = v;
    }
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static void *take(struct table *t, size_t bytes, struct lora_error *err)
{
    void *p = t->k.alloc(&t->ctx, bytes);
    if (p) t->taken[t->n++] = p;
    else fail_memory(err, "bench", bytes);
    return p;
}

int table_open(struct table *t, const struct kernels *k, const struct kernel_sizes *sizes, int compute,
               struct lora_error *err)
{
    memset(t, 0, sizeof *t);
    kernels_complete(&t->k, k);
    t->ctx.threads = sizes->threads;
    t->ctx.compute = compute;
    t->ctx.work_bytes = kernels_work_bytes(&t->k, sizes);
    if (t->ctx.work_bytes && !(t->ctx.work = take(t, t->ctx.work_bytes, err))) return -1;
    if (t->k.open(&t->ctx)) return fail(err, "cannot start the backend", "%s", t->k.name);
    t->opened = 1;
    return 0;
}

void table_close(struct table *t)
{
    if (t->opened) t->k.close(&t->ctx);
    while (t->n) t->k.release(&t->ctx, t->taken[--t->n]);
}

buf *table_buf(struct table *t, size_t n, struct lora_error *err) { return take(t, n * (size_t)t->k.elem, err); }

int table_weight(struct table *t, struct weight *there, struct quantised *scales, const struct weight *w,
                 struct lora_error *err)
{
    void *copy;
    *there = *w;
    if (!t->k.own_memory) return 0;
    if (!(copy = kernels_copy_weight(&t->k, &t->ctx, there, scales, w)))
        return fail_memory(err, "bench: a weight on the device", (size_t)w->rows * (size_t)w->cols);
    t->taken[t->n++] = copy;
    return 0;
}

/* ---- peaks ---- */

#if defined(__GNUC__) && (defined(__x86_64__) || defined(__aarch64__))

/* GFLOP/s, the best of several: what comes between makes it less, nothing makes it more. */
static double best_of(double (*chains)(long n, float *sum), int threads)
{
    double best = 0;
    float sum = 0;
    int t;
    (void)threads;      /* a build without OpenMP has one */
    for (t = 0; t < 6; t++) {
        double start = seconds_now(), flops = 0;
#pragma omp parallel num_threads(threads) reduction(+:sum, flops)
        flops += chains(200000, &sum);
        flops *= 1e-9 / (seconds_now() - start);
        if (flops > best && sum >= 0) best = flops;
    }
    return best;
}
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>

/* Twelve chains of fused multiply-adds, more than the units have in flight: FLOPs of n rounds. They are all different,
 * or a compiler makes one of them; two turns to a round, as the loop's own instructions are in the way. A macro,
 * because each width has its own types and its own leave to use them. */
#define TURN(fma) \
    a = fma(a, x, y); b = fma(b, x, y); c = fma(c, x, y); d = fma(d, x, y); e = fma(e, x, y); f = fma(f, x, y); \
    g = fma(g, x, y); h = fma(h, x, y); i = fma(i, x, y); j = fma(j, x, y); k = fma(k, x, y); l = fma(l, x, y);
#define CHAINS(name, instructions, vec, all, fma) \
    __attribute__((target(instructions))) static double name(long n, float *sum) \
    { \
        vec x = all(0.999f), y = all(0.001f), a = x, b = y, c = a + b, d = c + a, e = d + a, f = e + a, g = f + a, \
            h = g + a, i = h + a, j = i + a, k = j + a, l = k + a; \
        double flops = 2.0 * 24 * (double)(sizeof(vec) / sizeof(float)) * (double)n; \
        for (; n; n--) { TURN(fma) TURN(fma) } \
        a += b + c + d + e + f + g + h + i + j + k + l; \
        *sum += a[0]; \
        return flops; \
    }
CHAINS(chains256, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps)
CHAINS(chains512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps)

double measure_peak(int threads)
{
    double narrow, wide = 0;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    narrow = best_of(chains256, threads);
    if (__builtin_cpu_supports("avx512f")) wide = best_of(chains512, threads);
    return wide > narrow ? wide : narrow;
}

#ifdef HAVE_BF16
/* Each lane multiplies two pairs, which are the halves of x's and y's numbers here. */
#define DOT_BF16(sum, x, y) _mm512_dpbf16_ps(sum, (__m512bh)(x), (__m512bh)(y))
CHAINS(chains_bf16, "avx512f,avx512bf16", __m512, _mm512_set1_ps, DOT_BF16)
#endif

#elif defined(__GNUC__) && defined(__aarch64__)
#include <arm_neon.h>

/* Twenty chains: the widest cores have four units with four cycles to a multiply-add. These add to what they hold, as the
 * instruction does. */
static double chains128(long n, float *sum)
{
    const float32x4_t x = vdupq_n_f32(0.999f), y = vdupq_n_f32(0.001f);
    float32x4_t a = x, b = a + x, c = b + x, d = c + x, e = d + x, f = e + x, g = f + x, h = g + x, i = h + x, j = i + x,
                k = j + x, l = k + x, m = l + x, o = m + x, p = o + x, q = p + x, r = q + x, s = r + x, t = s + x, u = t + x;
    double flops = 2.0 * 20 * 4 * (double)n;
    for (; n; n--) {
        a = vfmaq_f32(a, x, y); b = vfmaq_f32(b, x, y); c = vfmaq_f32(c, x, y); d = vfmaq_f32(d, x, y);
        e = vfmaq_f32(e, x, y); f = vfmaq_f32(f, x, y); g = vfmaq_f32(g, x, y); h = vfmaq_f32(h, x, y);
        i = vfmaq_f32(i, x, y); j = vfmaq_f32(j, x, y); k = vfmaq_f32(k, x, y); l = vfmaq_f32(l, x, y);
        m = vfmaq_f32(m, x, y); o = vfmaq_f32(o, x, y); p = vfmaq_f32(p, x, y); q = vfmaq_f32(q, x, y);
        r = vfmaq_f32(r, x, y); s = vfmaq_f32(s, x, y); t = vfmaq_f32(t, x, y); u = vfmaq_f32(u, x, y);
    }
    a += b + c + d + e + f + g + h + i + j + k + l + m + o + p + q + r + s + t + u;
    *sum += vgetq_lane_f32(a, 0);
    return flops;
}

double measure_peak(int threads) { return best_of(chains128, threads); }
#else
double measure_peak(int threads)
{
    (void)threads;
    return 0;
}
#endif

double measure_peak_bf16(int threads)
{
#ifdef HAVE_BF16
    char by[64];
    if (bf16_usable(by, sizeof by) && !strcmp(by, "AVX512-BF16")) return 2 * best_of(chains_bf16, threads);
#endif
    (void)threads;
    return 0;
}
