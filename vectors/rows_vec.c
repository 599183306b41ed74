/* rows_vec.c - what goes over a buffer, or row by row: moving, RMSNorm, positions, SwiGLU, the loss. Part of a table's
 * file, kernels_avx2.c or another, in its vectors.
 *
 * Elementwise work is bounded by memory; loops that compilers vectorise by themselves are left in
 * plain C. What sums over a row keeps running sums in lanes and adds those up in a fixed way. */
#include "vectors.h"

#include <math.h>

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
    vec s = vec_all(0);
    int i;
    for (i = 0; i < n; i += LANES)
        s = vec_fmadd(vec_mul(vec_load_lanes(a + i, n - i), vec_load_lanes(b + i, n - i)), vec_load_lanes(c + i, n - i), s);
    return vec_sum(s);
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

/* e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2, ln 2 in two parts; e^r by its Taylor
 * polynomial of degree 7, whose remainder is below 6e-9 of the result. Error below 1.07 ulp (units of
 * 2^-149 below the normal numbers), over all floats: each was tried. -inf gives 0, +inf gives inf, NaN
 * gives NaN. */
static inline vec vec_exp(vec x)
{
    vec n, r, p;
    x = vec_min(vec_all(89), vec_max(vec_all(-105), x));
    n = vec_round(vec_mul(x, vec_all(1.44269504f)));
    r = vec_fnmadd(n, vec_all(0.693359375f), x);
    r = vec_fnmadd(n, vec_all(-2.12194440e-4f), r);
    p = vec_all(1.0f / 5040);
    p = vec_fmadd(p, r, vec_all(1.0f / 720));
    p = vec_fmadd(p, r, vec_all(1.0f / 120));
    p = vec_fmadd(p, r, vec_all(1.0f / 24));
    p = vec_fmadd(p, r, vec_all(1.0f / 6));
    p = vec_fmadd(p, r, vec_all(0.5f));
    p = vec_fmadd(vec_mul(p, r), r, r);
    p = vec_add(p, vec_all(1));
    return vec_times_power(p, n);
}

/* 1 / (1 + e^-x) */
static inline vec sigmoid(vec x) { return vec_div(vec_all(1), vec_add(vec_all(1), vec_exp(vec_sub(vec_all(0), x)))); }

static void swiglu(struct kernel_ctx *c, buf *out_, const buf *gate_, const buf *up_, size_t n)
{
    long long k;
#pragma omp parallel for num_threads(c->threads) if(n * 8.0 > PARALLEL_WORK)
    for (k = 0; k < chunks_of(n); k++) {
        float *out = (float *)out_ + k * CHUNK;
        const float *gate = (const float *)gate_ + k * CHUNK, *up = (const float *)up_ + k * CHUNK;
        int i, have = chunk_size(n, k);
        for (i = 0; i < have; i += LANES) {
            vec z = vec_load_lanes(gate + i, have - i);
            vec_store_lanes(out + i, have - i, vec_mul(vec_mul(z, sigmoid(z)), vec_load_lanes(up + i, have - i)));
        }
    }
}

/* s = sigmoid(z) and 1 - s, from e^-|z|: near 1 a difference would have no digits left. */
static void sigmoids(vec z, vec *s, vec *rest)
{
    vec e = vec_exp(vec_minus_size(z));
    vec large = vec_div(vec_all(1), vec_add(vec_all(1), e));
    vec small = vec_mul(e, large);
    *s = vec_by_sign(z, small, large);
    *rest = vec_by_sign(z, large, small);
}

static void swiglu_backward(struct kernel_ctx *c, buf *dgate_, buf *dup_, buf *out_, const buf *dout_,
                            const buf *gate_, const buf *up_, size_t n)
{
    long long k;
#pragma omp parallel for num_threads(c->threads) if(n * 8.0 > PARALLEL_WORK)
    for (k = 0; k < chunks_of(n); k++) {
        float *dgate = (float *)dgate_ + k * CHUNK, *dup = (float *)dup_ + k * CHUNK, *out = (float *)out_ + k * CHUNK;
        const float *dout = (const float *)dout_ + k * CHUNK;
        const float *gate = (const float *)gate_ + k * CHUNK, *up = (const float *)up_ + k * CHUNK;
        int i, have = chunk_size(n, k);
        for (i = 0; i < have; i += LANES) {
            vec z = vec_load_lanes(gate + i, have - i), u = vec_load_lanes(up + i, have - i), s, rest, ds;
            sigmoids(z, &s, &rest);
            ds = vec_mul(vec_load_lanes(dout + i, have - i), s);
            vec_store_lanes(dup + i, have - i, vec_mul(ds, z));
            vec_store_lanes(dgate + i, have - i, vec_mul(vec_mul(ds, u), vec_fmadd(z, rest, vec_all(1))));
            vec_store_lanes(out + i, have - i, vec_mul(vec_mul(z, s), u));
        }
    }
}

/* ---- loss ---- exponentials as powers of 2, to the base e again by the same number */

#define LOG2E 1.44269504f

/* The largest of z[n] and its first index, as a walk with > from z[0] finds them. */
static float largest(const float *z, int n, int *index)
{
    vec m = vec_all(z[0]), m2 = m;
    float max;
    int i;
    for (i = 0; i + 2 * LANES <= n; i += 2 * LANES) {
        m = vec_max(vec_load(z + i), m);
        m2 = vec_max(vec_load(z + i + LANES), m2);
    }
    max = vec_largest(vec_max(m2, m));
    for (; i < n; i++) if (z[i] > max) max = z[i];
    m = vec_all(max);
    for (i = 0; i + LANES <= n && !vec_any_equal(vec_load(z + i), m); i += LANES) ;
    for (; i < n && z[i] != max; i++) ;
    *index = i < n ? i : 0;
    return max;
}

/* sum of 2^(z log2(e) - top), in double; when `keep`, z becomes these numbers */
static double sum_exp(float *z, int n, float top, int keep)
{
    struct doubles sum = { { 0 }, { 0 } };
    const vec log2e = vec_all(LOG2E), minus = vec_all(-top);
    int i;
    for (i = 0; i < n; i += LANES) {
        vec e = vec_exp2(vec_fmadd(vec_load_lanes(z + i, n - i), log2e, minus));
        if (keep) vec_store_lanes(z + i, n - i, e);
        if (n - i < LANES) e = vec_between(e, vec_all(0), 0, n - i);
        add_doubles(&sum, e);
    }
    return doubles_sum(&sum);
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
