/* kernels_ref.c - every operation of kernels.h as its equation reads: the reference.
 *
 * Compiled twice: with real = float it is the table "ref", with -DREF64 and real = double it is
 * "ref64", the oracle that the others are measured with. Strict C99: sums run in the order in which
 * they are written. Sums of products and of rows are kept in `real`; norms, losses and whatever
 * holds for one element alone are computed in double and rounded once. No operation needs scratch
 * memory.
 *
 * A name that ends in _ is an argument as it comes, opaque; the first lines say what it is. */
#include "kernels.h"
#include "nf4.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef REF64
typedef double real;
#else
typedef float real;
#endif

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-parameter"     /* not every operation needs its context */
#endif

/* A product works on tiles of ROWS rows by STRIP columns, so that a strip of a weight is decoded
 * once for ROWS rows. The order of the sums does not depend on them. */
enum { ROWS = 32, STRIP = 256 };

static int readable(const struct weight *w)
{
    return w->type == TYPE_REAL || weight_types[w->type].decode;
}

/* W[row][col .. col + n - 1], n <= STRIP: where it lies, or decoded into space[STRIP]. */
static const real *strip(const struct weight *w, int row, int col, int n, real *space)
{
    float decoded[STRIP];
    int i;
    if (w->type == TYPE_REAL)
        return (const real *)w->data + w->offset + (size_t)row * (size_t)w->cols + col;
    weight_decode(w, row, col, n, decoded);
    for (i = 0; i < n; i++) space[i] = decoded[i];
    return space;
}

static int smaller(int a, int b) { return a < b ? a : b; }

static real dot(const real *a, const real *b, int n)
{
    real sum = 0;
    int i;
    for (i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* ---- the table itself ---- */

static int usable(char *why, size_t n) { return 1; }

static size_t work_bytes(const struct kernel_sizes *sizes) { return 0; }

static int open(struct kernel_ctx *c) { return 0; }

static void close(struct kernel_ctx *c) { }

/* ---- memory ---- */

/* Fresh pages of the system are zero, so calloc need not touch them: what is never used takes no memory. */
static void *alloc(struct kernel_ctx *c, size_t bytes)
{
    char *start = bytes < (size_t)-1 - 128 ? calloc(1, bytes + 128) : NULL, *p;
    if (!start) return NULL;
    p = start + 128 - (uintptr_t)start % 64;
    ((void **)p)[-1] = start;
    return p;
}

static void release(struct kernel_ctx *c, void *p) { free(((void **)p)[-1]); }

static void up(struct kernel_ctx *c, buf *dst_, const float *src, size_t n)
{
    real *dst = (real *)dst_;
    size_t i;
    for (i = 0; i < n; i++) dst[i] = (real)src[i];
}

static void up64(struct kernel_ctx *c, buf *dst_, const double *src, size_t n)
{
    real *dst = (real *)dst_;
    size_t i;
    for (i = 0; i < n; i++) dst[i] = (real)src[i];
}

static void up_ints(struct kernel_ctx *c, ints *dst, const int *src, size_t n)
{
    if (n) memcpy(dst, src, n * sizeof *src);
}

static int up_bytes(struct kernel_ctx *c, void *dst, const void *src, size_t n)
{
    if (n) memcpy(dst, src, n);
    return 0;
}

static void down(struct kernel_ctx *c, float *dst, const buf *src_, size_t n)
{
    const real *src = (const real *)src_;
    size_t i;
    for (i = 0; i < n; i++) dst[i] = (float)src[i];
}

static void down64(struct kernel_ctx *c, double *dst, const buf *src_, size_t n)
{
    const real *src = (const real *)src_;
    size_t i;
    for (i = 0; i < n; i++) dst[i] = (double)src[i];
}

static void down_ints(struct kernel_ctx *c, int *dst, const ints *src, size_t n)
{
    if (n) memcpy(dst, src, n * sizeof *dst);
}

static void down_bytes(struct kernel_ctx *c, void *dst, const void *src, size_t n)
{
    if (n) memcpy(dst, src, n);
}

/* ---- moving ---- */

static void zero(struct kernel_ctx *c, buf *x_, size_t n)
{
    real *x = (real *)x_;
    size_t i;
    for (i = 0; i < n; i++) x[i] = 0;
}

static void copy(struct kernel_ctx *c, buf *out_, const buf *x_, size_t n)
{
    real *out = (real *)out_;
    const real *x = (const real *)x_;
    size_t i;
    for (i = 0; i < n; i++) out[i] = x[i];
}

static void gather(struct kernel_ctx *c, buf *out_, const buf *x_, const ints *rows_, int M, int C)
{
    real *out = (real *)out_;
    const real *x = (const real *)x_;
    const int *rows = (const int *)rows_;
    int m;
    #pragma omp parallel for num_threads(c->threads)
    for (m = 0; m < M; m++) {
        real *out_m = out + (size_t)m * C;
        const real *x_m = x + (size_t)rows[m] * C;
        int i;
        for (i = 0; i < C; i++) out_m[i] = x_m[i];
    }
}

static void scatter_add(struct kernel_ctx *c, buf *out_, const buf *x_, const ints *rows_, int M, int C)
{
    real *out = (real *)out_;
    const real *x = (const real *)x_;
    const int *rows = (const int *)rows_;
    int m;
    #pragma omp parallel for num_threads(c->threads)
    for (m = 0; m < M; m++) {
        real *out_m = out + (size_t)rows[m] * C;
        const real *x_m = x + (size_t)m * C;
        int i;
        for (i = 0; i < C; i++) out_m[i] += x_m[i];
    }
}

/* ---- embedding ---- */

static int embed(struct kernel_ctx *c, buf *out_, const struct weight *w, const ints *ids_, int N)
{
    real *out = (real *)out_;
    const int *ids = (const int *)ids_;
    int n;
    if (!readable(w)) return KERNEL_UNSUPPORTED;
    #pragma omp parallel for num_threads(c->threads)
    for (n = 0; n < N; n++) {
        real *out_n = out + (size_t)n * w->cols, space[STRIP];
        int i0, i;
        for (i0 = 0; i0 < w->cols; i0 += STRIP) {
            int width = smaller(STRIP, w->cols - i0);
            const real *w_id = strip(w, ids[n], i0, width, space);
            for (i = 0; i < width; i++) out_n[i0 + i] = w_id[i];
        }
    }
    return 0;
}

static void embed_backward(struct kernel_ctx *c, buf *dw_, const buf *dout_, const ints *ids_,
                           int N, int C)
{
    real *dw = (real *)dw_;
    const real *dout = (const real *)dout_;
    const int *ids = (const int *)ids_;
    int i;
    #pragma omp parallel for num_threads(c->threads)        /* an id may come twice: own columns */
    for (i = 0; i < C; i++) {
        int n;
        for (n = 0; n < N; n++)
            dw[(size_t)ids[n] * C + i] += dout[(size_t)n * C + i];      /* out[n,i] = w[ids[n],i] */
    }
}

/* ---- products ---- */

static int matmul(struct kernel_ctx *c, buf *out_, const buf *x_, const struct weight *w,
                  const buf *bias_, double scale, int accumulate, int N)
{
    real *out = (real *)out_;
    const real *x = (const real *)x_, *bias = (const real *)bias_;
    int O = w->rows, I = w->cols, o;
    if (!readable(w)) return KERNEL_UNSUPPORTED;
    #pragma omp parallel for num_threads(c->threads)
    for (o = 0; o < O; o++) {
        real space[STRIP], sum[ROWS];
        int n0, n, i0, i;
        for (n0 = 0; n0 < N; n0 += ROWS) {
            int rows = smaller(ROWS, N - n0);
            for (n = 0; n < rows; n++) sum[n] = 0;
            for (i0 = 0; i0 < I; i0 += STRIP) {
                int width = smaller(STRIP, I - i0);
                const real *w_o = strip(w, o, i0, width, space);
                for (n = 0; n < rows; n++) {
                    const real *x_n = x + (size_t)(n0 + n) * I + i0;
                    real s = sum[n];
                    for (i = 0; i < width; i++) s += x_n[i] * w_o[i];
                    sum[n] = s;
                }
            }
            for (n = 0; n < rows; n++) {
                real *out_no = out + (size_t)(n0 + n) * O + o;
                real y = (real)(scale * sum[n] + (bias ? bias[o] : 0));
                *out_no = accumulate ? *out_no + y : y;
            }
        }
    }
    return 0;
}

static int matmul_dx(struct kernel_ctx *c, buf *dx_, const buf *dout_, const struct weight *w,
                     double scale, int accumulate, int N)
{
    real *dx = (real *)dx_;
    const real *dout = (const real *)dout_;
    int O = w->rows, I = w->cols, n0, i0;
    if (!readable(w)) return KERNEL_UNSUPPORTED;
    #pragma omp parallel for collapse(2) num_threads(c->threads)
    for (n0 = 0; n0 < N; n0 += ROWS) {
        for (i0 = 0; i0 < I; i0 += STRIP) {
            int rows = smaller(ROWS, N - n0), width = smaller(STRIP, I - i0), n, i, o;
            real space[STRIP], sum[ROWS][STRIP];
            for (n = 0; n < rows; n++)
                for (i = 0; i < width; i++) sum[n][i] = 0;
            for (o = 0; o < O; o++) {
                const real *w_o = strip(w, o, i0, width, space);
                for (n = 0; n < rows; n++) {
                    real d = dout[(size_t)(n0 + n) * O + o];
                    for (i = 0; i < width; i++) sum[n][i] += d * w_o[i];    /* out[n,o] = x[n,i] w[o,i] */
                }
            }
            for (n = 0; n < rows; n++) {
                real *dx_n = dx + (size_t)(n0 + n) * I + i0;
                for (i = 0; i < width; i++) {
                    real y = (real)(scale * sum[n][i]);
                    dx_n[i] = accumulate ? dx_n[i] + y : y;
                }
            }
        }
    }
    return 0;
}

static void matmul_dw(struct kernel_ctx *c, buf *dw_, const buf *dout_, const buf *x_,
                      double scale, int N, int O, int I)
{
    real *dw = (real *)dw_;
    const real *dout = (const real *)dout_, *x = (const real *)x_;
    int o;
    #pragma omp parallel for num_threads(c->threads)
    for (o = 0; o < O; o++) {
        real sum[STRIP];
        int i0, i, n;
        for (i0 = 0; i0 < I; i0 += STRIP) {
            int width = smaller(STRIP, I - i0);
            real *dw_o = dw + (size_t)o * I + i0;
            for (i = 0; i < width; i++) sum[i] = 0;
            for (n = 0; n < N; n++) {
                const real *x_n = x + (size_t)n * I + i0;
                real d = dout[(size_t)n * O + o];
                for (i = 0; i < width; i++) sum[i] += d * x_n[i];           /* out[n,o] = x[n,i] w[o,i] */
            }
            for (i = 0; i < width; i++) dw_o[i] += (real)(scale * sum[i]);
        }
    }
}

static void bias_backward(struct kernel_ctx *c, buf *db_, const buf *dout_, int N, int O)
{
    real *db = (real *)db_;
    const real *dout = (const real *)dout_;
    int o;
    #pragma omp parallel for num_threads(c->threads)
    for (o = 0; o < O; o++) {
        real sum = 0;
        int n;
        for (n = 0; n < N; n++) sum += dout[(size_t)n * O + o];             /* out[n,o] += bias[o] */
        db[o] += sum;
    }
}

/* ---- RMSNorm ---- */

/* 1 / sqrt(mean(x^2) + eps) */
static double rms_inverse(const real *x, int C, double eps)
{
    double sum = 0;
    int i;
    for (i = 0; i < C; i++) sum += (double)x[i] * x[i];
    return 1 / sqrt(sum / C + eps);
}

static void rmsnorm(struct kernel_ctx *c, buf *out_, const buf *x_, const buf *w_,
                    int N, int C, double eps)
{
    real *out = (real *)out_;
    const real *x = (const real *)x_, *w = (const real *)w_;
    int n;
    #pragma omp parallel for num_threads(c->threads)
    for (n = 0; n < N; n++) {
        const real *x_n = x + (size_t)n * C;
        double rstd = rms_inverse(x_n, C, eps);
        int i;
        for (i = 0; i < C; i++) out[(size_t)n * C + i] = (real)(x_n[i] * rstd * w[i]);
    }
}

static void rmsnorm_backward(struct kernel_ctx *c, buf *dx_, buf *dw_, const buf *dout_, const buf *x_,
                             const buf *w_, int N, int C, double eps, int accumulate)
{
    real *dx = (real *)dx_, *dw = (real *)dw_;
    const real *dout = (const real *)dout_, *x = (const real *)x_, *w = (const real *)w_;
    int n, i0;
    #pragma omp parallel for num_threads(c->threads)
    for (n = 0; n < N; n++) {
        const real *x_n = x + (size_t)n * C, *dout_n = dout + (size_t)n * C;
        real *dx_n = dx + (size_t)n * C;
        double rstd = rms_inverse(x_n, C, eps), mean = 0;
        int i;
        for (i = 0; i < C; i++) mean += (double)dout_n[i] * w[i] * (x_n[i] * rstd) / C;
        for (i = 0; i < C; i++) {
            double g = (double)dout_n[i] * w[i], norm = x_n[i] * rstd;      /* out = norm * w */
            real d = (real)(rstd * (g - norm * mean));                      /* norm = x * rstd(x) */
            dx_n[i] = accumulate ? dx_n[i] + d : d;
        }
    }
    if (!dw) return;
    #pragma omp parallel for num_threads(c->threads)        /* one owner sums a column over all rows */
    for (i0 = 0; i0 < C; i0 += STRIP) {
        int width = smaller(STRIP, C - i0), m, i;
        real sum[STRIP];
        for (i = 0; i < width; i++) sum[i] = 0;
        for (m = 0; m < N; m++) {
            const real *x_m = x + (size_t)m * C, *dout_m = dout + (size_t)m * C;
            double rstd = rms_inverse(x_m, C, eps);
            for (i = 0; i < width; i++) sum[i] += (real)(dout_m[i0 + i] * (x_m[i0 + i] * rstd));
        }
        for (i = 0; i < width; i++) dw[i0 + i] += sum[i];
    }
}

/* ---- rotary positions ---- */

static void rope(struct kernel_ctx *c, buf *x_, const buf *cos_, const buf *sin_, const ints *pos_,
                 int N, int heads, int HS, int backward)
{
    real *x = (real *)x_;
    const real *cosines = (const real *)cos_, *sines = (const real *)sin_;
    const int *pos = (const int *)pos_;
    int n, half = HS / 2;
    #pragma omp parallel for num_threads(c->threads)
    for (n = 0; n < N; n++) {
        const real *cos_n = cosines + (size_t)pos[n] * half, *sin_n = sines + (size_t)pos[n] * half;
        int h, i;
        for (h = 0; h < heads; h++) {
            real *x_h = x + ((size_t)n * heads + h) * HS;
            for (i = 0; i < half; i++) {
                double a = x_h[i], b = x_h[i + half], co = cos_n[i];
                double si = backward ? -sin_n[i] : sin_n[i];
                x_h[i] = (real)(a * co - b * si);
                x_h[i + half] = (real)(b * co + a * si);
            }
        }
    }
}

/* ---- attention ---- */

/* Row `row` of one head: HS elements. */
static size_t head_at(int row, int heads, int head, int HS)
{
    return ((size_t)row * heads + head) * HS;
}

/* Query i of segment s sees the keys *from .. *to - 1 of segment t, which is s or in its chain of
 * prefixes: of its own segment those up to itself, of a prefix all; of these, those in the window. */
static void seen(const struct segment *segments, int s, int t, int i, int window, int *from, int *to)
{
    int own = segments[s].k_len - segments[s].q_len + i;
    int oldest = segments[s].pos + own - window + 1;        /* first position in the window */
    *to = t == s ? own + 1 : segments[t].k_len;
    *from = window > 0 && oldest > segments[t].pos ? oldest - segments[t].pos : 0;
}

/* Is t the segment s, its prefix, the prefix's prefix ...? */
static int continues(const struct segment *segments, int s, int t)
{
    while (s > t) s = segments[s].prefix;       /* a prefix has a lower index */
    return s == t;
}

/* log sum exp(scale * q.k_j) over the keys that query i of segment s sees, in one walk: the sum is
 * kept relative to the largest so far. */
static double attention_lse(const real *q, const real *k, const struct segment *segments, int s, int i,
                            int NKV, int g, int HS, double scale, int window)
{
    double max = -INFINITY, sum = 0;
    int t, j, to;
    for (t = s; t >= 0; t = segments[t].prefix) {
        for (seen(segments, s, t, i, window, &j, &to); j < to; j++) {
            double z = scale * dot(q, k + head_at(segments[t].k_start + j, NKV, g, HS), HS);
            if (z > max) {
                sum = sum * exp(max - z) + 1;
                max = z;
            } else {
                sum += exp(z - max);
            }
        }
    }
    return max + log(sum);
}

static void attention(struct kernel_ctx *c, buf *out_, buf *lse_, const buf *q_, const buf *k_,
                      const buf *v_, const ints *segments_, int S, int NH, int NKV, int HS,
                      double scale, int window)
{
    real *out = (real *)out_, *lse = (real *)lse_;
    const real *q = (const real *)q_, *k = (const real *)k_, *v = (const real *)v_;
    const struct segment *segments = (const struct segment *)segments_;
    int s, h;
    #pragma omp parallel for collapse(2) schedule(dynamic) num_threads(c->threads)
    for (s = 0; s < S; s++) {
        for (h = 0; h < NH; h++) {
            int g = h / (NH / NKV), i, t, j, to, d;
            for (i = 0; i < segments[s].q_len; i++) {
                int n = segments[s].q_start + i;
                const real *q_n = q + head_at(n, NH, h, HS);
                real *out_n = out + head_at(n, NH, h, HS);
                double l = attention_lse(q_n, k, segments, s, i, NKV, g, HS, scale, window);
                lse[(size_t)n * NH + h] = (real)l;
                for (d = 0; d < HS; d++) out_n[d] = 0;
                for (t = s; t >= 0; t = segments[t].prefix) {
                    for (seen(segments, s, t, i, window, &j, &to); j < to; j++) {
                        size_t kv = head_at(segments[t].k_start + j, NKV, g, HS);
                        real p = (real)exp(scale * dot(q_n, k + kv, HS) - l);
                        for (d = 0; d < HS; d++) out_n[d] += p * v[kv + d];
                    }
                }
            }
        }
    }
}

/* The operands of attention_backward, for its two halves. */
struct attention_grad {
    real *dq, *dk, *dv, *delta;
    const real *dout, *out, *lse, *q, *k, *v;
    const struct segment *segments;
    int S, NH, NKV, HS, window;
    double scale;
};

/* What query row n, head h, passes back to the key at kv: its p and scale * ds. */
static void attention_pair(const struct attention_grad *a, int n, int h, size_t kv, real *p, real *ds)
{
    size_t nh = (size_t)n * a->NH + h, qn = nh * a->HS;
    double z = a->scale * dot(a->q + qn, a->k + kv, a->HS);
    *p = (real)exp(z - a->lse[nh]);                             /* p = softmax(z) */
    *ds = (real)(a->scale * *p * (dot(a->dout + qn, a->v + kv, a->HS) - a->delta[nh]));  /* out = sum p v */
}

/* dq and delta of the queries of segment s, head h. */
static void attention_dq(const struct attention_grad *a, int s, int h)
{
    int g = h / (a->NH / a->NKV), i, t, j, to, d;
    for (i = 0; i < a->segments[s].q_len; i++) {
        int n = a->segments[s].q_start + i;
        size_t qn = head_at(n, a->NH, h, a->HS);
        a->delta[(size_t)n * a->NH + h] = dot(a->dout + qn, a->out + qn, a->HS);
        for (d = 0; d < a->HS; d++) a->dq[qn + d] = 0;
        for (t = s; t >= 0; t = a->segments[t].prefix) {
            for (seen(a->segments, s, t, i, a->window, &j, &to); j < to; j++) {
                size_t kv = head_at(a->segments[t].k_start + j, a->NKV, g, a->HS);
                real p, ds;
                attention_pair(a, n, h, kv, &p, &ds);
                for (d = 0; d < a->HS; d++) a->dq[qn + d] += ds * a->k[kv + d];     /* z = scale q.k */
            }
        }
    }
}

/* dk and dv of key j of segment t, key head g: over segments, then queries, then heads. */
static void attention_dkv(const struct attention_grad *a, int t, int j, int g)
{
    size_t kv = head_at(a->segments[t].k_start + j, a->NKV, g, a->HS);
    int group = a->NH / a->NKV, s, i, h, d, from, to;
    for (d = 0; d < a->HS; d++) a->dk[kv + d] = a->dv[kv + d] = 0;
    for (s = t; s < a->S; s++) {
        if (!continues(a->segments, s, t)) continue;
        for (i = 0; i < a->segments[s].q_len; i++) {
            int n = a->segments[s].q_start + i;
            seen(a->segments, s, t, i, a->window, &from, &to);
            if (j < from || j >= to) continue;
            for (h = g * group; h < (g + 1) * group; h++) {
                size_t qn = head_at(n, a->NH, h, a->HS);
                real p, ds;
                attention_pair(a, n, h, kv, &p, &ds);
                for (d = 0; d < a->HS; d++) {
                    a->dv[kv + d] += p * a->dout[qn + d];                           /* out = sum p v */
                    a->dk[kv + d] += ds * a->q[qn + d];                             /* z = scale q.k */
                }
            }
        }
    }
}

/* Does segment t get gradients: has it queries, or does another continue it? */
static int has_gradient(const struct segment *segments, int S, int t)
{
    int s, yes = segments[t].q_len > 0;
    for (s = t + 1; s < S && !yes; s++) yes = continues(segments, s, t);
    return yes;
}

static void attention_backward(struct kernel_ctx *c, buf *dq_, buf *dk_, buf *dv_, buf *delta_,
                               const buf *dout_, const buf *out_, const buf *lse_, const buf *q_,
                               const buf *k_, const buf *v_, const ints *segments_, int S,
                               int N, int NH, int NKV, int HS, double scale, int window)
{
    struct attention_grad a = {
        (real *)dq_, (real *)dk_, (real *)dv_, (real *)delta_,
        (const real *)dout_, (const real *)out_, (const real *)lse_,
        (const real *)q_, (const real *)k_, (const real *)v_,
        (const struct segment *)segments_, S, NH, NKV, HS, window, scale
    };
    int s, h, t, g;
    #pragma omp parallel for collapse(2) schedule(dynamic) num_threads(c->threads)
    for (s = 0; s < S; s++)
        for (h = 0; h < NH; h++) attention_dq(&a, s, h);
    #pragma omp parallel for collapse(2) schedule(dynamic) num_threads(c->threads)
    for (t = 0; t < S; t++) {
        for (g = 0; g < NKV; g++) {
            int j;
            if (!has_gradient(a.segments, S, t)) continue;
            for (j = 0; j < a.segments[t].k_len; j++) attention_dkv(&a, t, j, g);
        }
    }
}

/* ---- SwiGLU ---- */

static double sigmoid(double z) { return 1 / (1 + exp(-z)); }

static void swiglu(struct kernel_ctx *c, buf *out_, const buf *gate_, const buf *up_, size_t n)
{
    real *out = (real *)out_;
    const real *gate = (const real *)gate_, *up = (const real *)up_;
    long long i;
    #pragma omp parallel for num_threads(c->threads)
    for (i = 0; i < (long long)n; i++) out[i] = (real)(gate[i] * sigmoid(gate[i]) * up[i]);
}

static void swiglu_backward(struct kernel_ctx *c, buf *dgate_, buf *dup_, buf *out_, const buf *dout_,
                            const buf *gate_, const buf *up_, size_t n)
{
    real *dgate = (real *)dgate_, *dup = (real *)dup_, *out = (real *)out_;
    const real *dout = (const real *)dout_, *gate = (const real *)gate_, *up = (const real *)up_;
    long long i;
    #pragma omp parallel for num_threads(c->threads)
    for (i = 0; i < (long long)n; i++) {
        double d = dout[i], z = gate[i], u = up[i], s = sigmoid(z);         /* out = z s u, s = sigmoid(z) */
        dgate[i] = (real)(d * u * s * (1 + z * (1 - s)));                   /* ds/dz = s (1 - s) */
        dup[i] = (real)(d * z * s);
        out[i] = (real)(z * s * u);
    }
}

/* ---- dropout ---- */

static void dropout(struct kernel_ctx *c, buf *out_, const buf *x_, const ints *visit_, const ints *pos_,
                    int N, int C, double p, uint64_t key, int accumulate)
{
    real *out = (real *)out_;
    const real *x = (const real *)x_;
    const int *visit = (const int *)visit_, *pos = (const int *)pos_;
    int n;
    #pragma omp parallel for num_threads(c->threads)
    for (n = 0; n < N; n++) {
        uint64_t index = (((uint64_t)visit[n] << 20) + (uint64_t)pos[n]) << 20;
        int i;
        for (i = 0; i < C; i++) {
            size_t ni = (size_t)n * C + i;
            int kept = !(random_uniform(key, index + (uint64_t)i) < p);
            real y = kept ? (real)(x[ni] / (1 - p)) : 0;
            out[ni] = accumulate ? out[ni] + y : y;
        }
    }
}

/* ---- loss ---- */

static void cross_entropy(struct kernel_ctx *c, buf *losses_, ints *best_, buf *logits_,
                          const ints *first_, const ints *id_, const buf *weight_, int U, int V,
                          int grad, double grad_scale)
{
    real *losses = (real *)losses_, *logits = (real *)logits_;
    const real *weight = (const real *)weight_;
    const int *first = (const int *)first_, *id = (const int *)id_;
    int *best = (int *)best_, u;
    #pragma omp parallel for num_threads(c->threads)
    for (u = 0; u < U; u++) {
        real *z = logits + (size_t)u * V;
        double sum = 0, lse, total = 0;
        int v, t, top = 0;
        for (v = 1; v < V; v++) if (z[v] > z[top]) top = v;
        for (v = 0; v < V; v++) sum += exp((double)z[v] - z[top]);
        lse = z[top] + log(sum);
        best[u] = top;
        for (t = first[u]; t < first[u + 1]; t++) {
            losses[t] = (real)(lse - z[id[t]]);
            total += weight[t];
        }
        if (!grad) continue;
        for (v = 0; v < V; v++) {
            double d = total * exp(z[v] - lse);                 /* d lse / d z[v] = softmax(z)[v] */
            for (t = first[u]; t < first[u + 1]; t++) if (id[t] == v) d -= weight[t];
            z[v] = (real)(grad_scale * d);
        }
    }
}

/* ---- optimizer ---- */

static void adamw_one(real *p, real *m, real *v, real g, const struct adamw_step *a)
{
    double g_i = g * a->grad_scale;
    double p_i = *p * (1 - a->lr * a->weight_decay);
    double m_i = a->beta1 * *m + (1 - a->beta1) * g_i;
    double v_i = a->beta2 * *v + (1 - a->beta2) * g_i * g_i;
    *m = (real)m_i;
    *v = (real)v_i;
    *p = (real)(p_i - a->lr / a->correction1 * m_i / (sqrt(v_i / a->correction2) + a->eps));
}

static void adamw(struct kernel_ctx *c, buf *p_, buf *m_, buf *v_, const buf *g_, size_t n,
                  const struct adamw_step *a)
{
    real *p = (real *)p_, *m = (real *)m_, *v = (real *)v_;
    const real *g = (const real *)g_;
    long long i;
    #pragma omp parallel for num_threads(c->threads)
    for (i = 0; i < (long long)n; i++) adamw_one(&p[i], &m[i], &v[i], g[i], a);
}

/* A block's moments out of their codes, and back. */
static void decode_block(real *x, const unsigned char *codes, real largest, int n, const float *map)
{
    float decoded[MOMENT_BLOCK], absmax = (float)largest;
    int i;
    decode_8bit(decoded, codes, &absmax, (size_t)n, MOMENT_BLOCK, map);
    for (i = 0; i < n; i++) x[i] = decoded[i];
}

static void encode_block(unsigned char *codes, real *largest, const real *x, int n, const float *map)
{
    float rounded[MOMENT_BLOCK], absmax;
    int i;
    for (i = 0; i < n; i++) rounded[i] = (float)x[i];
    encode_8bit(codes, &absmax, rounded, (size_t)n, MOMENT_BLOCK, map);
    *largest = absmax;
}

static void adamw8bit(struct kernel_ctx *c, buf *p_, void *m_, buf *mmax_, void *v_, buf *vmax_, const buf *g_,
                      size_t n, const struct adamw_step *a)
{
    real *p = (real *)p_, *mmax = (real *)mmax_, *vmax = (real *)vmax_;
    const real *g = (const real *)g_;
    unsigned char *m = m_, *v = v_;
    long long blocks = (long long)block_count(n, MOMENT_BLOCK), b;
    float m_map[256], v_map[256];
    dynamic_map(m_map, 1);
    dynamic_map(v_map, 0);
    #pragma omp parallel for num_threads(c->threads)
    for (b = 0; b < blocks; b++) {
        size_t start = (size_t)b * MOMENT_BLOCK;
        int have = n - start < MOMENT_BLOCK ? (int)(n - start) : MOMENT_BLOCK, i;
        real mb[MOMENT_BLOCK], vb[MOMENT_BLOCK];
        decode_block(mb, m + start, mmax[b], have, m_map);
        decode_block(vb, v + start, vmax[b], have, v_map);
        for (i = 0; i < have; i++) adamw_one(&p[start + i], &mb[i], &vb[i], g[start + i], a);
        encode_block(m + start, &mmax[b], mb, have, m_map);
        encode_block(v + start, &vmax[b], vb, have, v_map);
    }
}

/* The tree: halves, down to runs of at most 256 that are summed in order. */
static double sum_squares(struct kernel_ctx *c, const buf *x_, size_t n)
{
    const real *x = (const real *)x_;
    double sum = 0;
    size_t i;
    if (n > 256)
        return sum_squares(c, x_, n / 2) + sum_squares(c, (const buf *)(x + n / 2), n - n / 2);
    for (i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

static long long not_finite(struct kernel_ctx *c, const buf *x_, size_t n)
{
    const real *x = (const real *)x_;
    size_t i;
    for (i = 0; i < n; i++) if (!(x[i] - x[i] == 0)) return (long long)i;
    return -1;
}

#ifdef REF64
const struct kernels kernels_ref64 = {
    .name = "ref64", .about = "the reference in double: the oracle, slow",
#else
const struct kernels kernels_ref = {
    .name = "ref", .about = "the reference: plain C99 in float, any machine",
#endif
    .abi = KERNELS_ABI, .bytes = sizeof(struct kernels), .elem = sizeof(real), .own_memory = 0,
    .usable = usable, .work_bytes = work_bytes, .open = open, .close = close,
    .alloc = alloc, .release = release, .up = up, .up64 = up64, .up_ints = up_ints,
    .up_bytes = up_bytes, .down = down, .down64 = down64, .down_ints = down_ints,
    .down_bytes = down_bytes,
    .zero = zero, .copy = copy, .gather = gather, .scatter_add = scatter_add,
    .embed = embed, .embed_backward = embed_backward,
    .matmul = matmul, .matmul_dx = matmul_dx, .matmul_dw = matmul_dw, .bias_backward = bias_backward,
    .rmsnorm = rmsnorm, .rmsnorm_backward = rmsnorm_backward,
    .rope = rope, .attention = attention, .attention_backward = attention_backward,
    .swiglu = swiglu, .swiglu_backward = swiglu_backward, .dropout = dropout,
    .cross_entropy = cross_entropy,
    .adamw = adamw, .adamw8bit = adamw8bit, .sum_squares = sum_squares, .not_finite = not_finite
};
