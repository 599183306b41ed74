/* bench_step.c - lora bench --step and --profile: whole training steps on a model, timed.
 *
 * For the profile the table of kernels is wrapped: each entry of the wrapper takes the time of the
 * same entry of the table behind it. The model's code knows nothing of it. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the wrapper ---- */

/* Products with a thin side are the adapters'. */
enum operation {
    OP_MATMUL, OP_MATMUL_DX, OP_MATMUL_DW, OP_THIN_MATMUL, OP_THIN_DX, OP_ATTENTION, OP_ATTENTION_BACKWARD,
    OP_RMSNORM, OP_RMSNORM_BACKWARD, OP_ROPE, OP_SWIGLU, OP_SWIGLU_BACKWARD, OP_CROSS_ENTROPY, OP_EMBED,
    OP_DROPOUT, OP_MOVING, OP_ADAMW, OP_CHECKS, OPERATIONS
};
static const char *const operation_names[] = {
    "matmul", "matmul_dx", "matmul_dw (adapters)", "matmul (adapters)", "matmul_dx (adapters)", "attention",
    "attention_backward", "rmsnorm", "rmsnorm_backward", "rope", "swiglu", "swiglu_backward", "cross_entropy",
    "embed", "dropout", "copy, zero, add, gather", "adamw", "sum_squares, not_finite"
};

/* An operation is told nothing but its context, so what the wrapper stands before is kept here. */
static struct { struct kernels k; double seconds[OPERATIONS]; long calls[OPERATIONS]; int thin; } timed;

static void count(int op, double start)
{
    timed.seconds[op] += seconds_now() - start;
    timed.calls[op]++;
}

static int is_thin(const struct weight *w) { return w->type == TYPE_REAL && (w->rows <= timed.thin || w->cols <= timed.thin); }

/* One entry: the same parameters, timed. (A macro because C cannot wrap functions of many types.) */
#define TIMED(entry, op, parameters, arguments) \
    static void timed_##entry parameters { double start = seconds_now(); timed.k.entry arguments; count(op, start); }

static int timed_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias,
                        double scale, int accumulate, int N)
{
    double start = seconds_now();
    int code = timed.k.matmul(c, out, x, w, bias, scale, accumulate, N);
    count(is_thin(w) ? OP_THIN_MATMUL : OP_MATMUL, start);
    return code;
}

static int timed_matmul_dx(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w,
                           double scale, int accumulate, int N)
{
    double start = seconds_now();
    int code = timed.k.matmul_dx(c, dx, dout, w, scale, accumulate, N);
    count(is_thin(w) ? OP_THIN_DX : OP_MATMUL_DX, start);
    return code;
}

static int timed_embed(struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N)
{
    double start = seconds_now();
    int code = timed.k.embed(c, out, w, ids, N);
    count(OP_EMBED, start);
    return code;
}

static double timed_sum_squares(struct kernel_ctx *c, const buf *x, size_t n)
{
    double start = seconds_now(), sum = timed.k.sum_squares(c, x, n);
    count(OP_CHECKS, start);
    return sum;
}

static long long timed_not_finite(struct kernel_ctx *c, const buf *x, size_t n)
{
    double start = seconds_now();
    long long at = timed.k.not_finite(c, x, n);
    count(OP_CHECKS, start);
    return at;
}

TIMED(zero, OP_MOVING, (struct kernel_ctx *c, buf *x, size_t n), (c, x, n))
TIMED(copy, OP_MOVING, (struct kernel_ctx *c, buf *out, const buf *x, size_t n), (c, out, x, n))
TIMED(gather, OP_MOVING, (struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C), (c, out, x, rows, M, C))
TIMED(scatter_add, OP_MOVING, (struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C), (c, out, x, rows, M, C))
TIMED(add, OP_MOVING, (struct kernel_ctx *c, buf *out, const buf *x, size_t n), (c, out, x, n))
TIMED(matmul_dw, OP_MATMUL_DW,
      (struct kernel_ctx *c, buf *dw, const buf *dout, const buf *x, double scale, int N, int O, int I),
      (c, dw, dout, x, scale, N, O, I))
TIMED(rmsnorm, OP_RMSNORM, (struct kernel_ctx *c, buf *out, const buf *x, const buf *w, int N, int C, double eps),
      (c, out, x, w, N, C, eps))
TIMED(rmsnorm_backward, OP_RMSNORM_BACKWARD,
      (struct kernel_ctx *c, buf *dx, buf *dw, const buf *dout, const buf *x, const buf *w, int N, int C, double eps, int accumulate),
      (c, dx, dw, dout, x, w, N, C, eps, accumulate))
TIMED(rope, OP_ROPE,
      (struct kernel_ctx *c, buf *x, const buf *cosines, const buf *sines, const ints *pos, int N, int heads, int HS, int backward),
      (c, x, cosines, sines, pos, N, heads, HS, backward))
TIMED(attention, OP_ATTENTION,
      (struct kernel_ctx *c, buf *out, buf *lse, const buf *q, const buf *k, const buf *v, const ints *segments, int S,
       int NH, int NKV, int HS, double scale, int window),
      (c, out, lse, q, k, v, segments, S, NH, NKV, HS, scale, window))
TIMED(attention_backward, OP_ATTENTION_BACKWARD,
      (struct kernel_ctx *c, buf *dq, buf *dk, buf *dv, buf *delta, const buf *dout, const buf *out, const buf *lse,
       const buf *q, const buf *k, const buf *v, const ints *segments, int S, int N, int NH, int NKV, int HS, double scale, int window),
      (c, dq, dk, dv, delta, dout, out, lse, q, k, v, segments, S, N, NH, NKV, HS, scale, window))
TIMED(swiglu, OP_SWIGLU, (struct kernel_ctx *c, buf *out, const buf *gate, const buf *up, size_t n), (c, out, gate, up, n))
TIMED(swiglu_backward, OP_SWIGLU_BACKWARD,
      (struct kernel_ctx *c, buf *dgate, buf *dup, const buf *dout, const buf *gate, const buf *up, size_t n),
      (c, dgate, dup, dout, gate, up, n))
TIMED(dropout, OP_DROPOUT,
      (struct kernel_ctx *c, buf *out, const buf *x, const ints *visit, const ints *pos, int N, int C, double p, uint64_t key, int accumulate),
      (c, out, x, visit, pos, N, C, p, key, accumulate))
TIMED(cross_entropy, OP_CROSS_ENTROPY,
      (struct kernel_ctx *c, buf *losses, ints *best, buf *logits, const ints *first, const ints *id, const buf *weight,
       int U, int V, int grad, double grad_scale),
      (c, losses, best, logits, first, id, weight, U, V, grad, grad_scale))
TIMED(adamw, OP_ADAMW,
      (struct kernel_ctx *c, buf *p, buf *m, buf *v, const buf *g, size_t n, const struct adamw_step *step),
      (c, p, m, v, g, n, step))

static struct kernels wrapped(const struct kernels *k, int thin)
{
    struct kernels w;
    memset(&timed, 0, sizeof timed);
    timed.thin = thin;
    kernels_complete(&timed.k, k);
    w = timed.k;
    w.zero = timed_zero;
    w.copy = timed_copy;
    w.gather = timed_gather;
    w.scatter_add = timed_scatter_add;
    w.add = timed_add;
    w.embed = timed_embed;
    w.matmul = timed_matmul;
    w.matmul_dx = timed_matmul_dx;
    w.matmul_dw = timed_matmul_dw;
    w.rmsnorm = timed_rmsnorm;
    w.rmsnorm_backward = timed_rmsnorm_backward;
    w.rope = timed_rope;
    w.attention = timed_attention;
    w.attention_backward = timed_attention_backward;
    w.swiglu = timed_swiglu;
    w.swiglu_backward = timed_swiglu_backward;
    w.dropout = timed_dropout;
    w.cross_entropy = timed_cross_entropy;
    w.adamw = timed_adamw;
    w.sum_squares = timed_sum_squares;
    w.not_finite = timed_not_finite;
    return w;
}

/* ---- the step ---- */

/* Rows of row_tokens tokens, the last targets of each (as a support message's label is). */
static int fill_pack(struct pack *p, const struct bench *b, int V, struct lora_error *err)
{
    int laid = 0, rows = (b->tokens + b->row_tokens - 1) / b->row_tokens, i, t, segment;
    int *ids = new_array((size_t)b->row_tokens, sizeof *ids, err), bad = !ids;
    pack_clear(p);
    for (i = 0; i < rows && !bad; i++) {
        int n = b->tokens - laid < b->row_tokens ? b->tokens - laid : b->row_tokens;
        int targets = (int)((long long)b->targets * (i + 1) / rows - (long long)b->targets * i / rows);
        for (t = 0; t < n; t++) ids[t] = (int)(random_bits(3, (uint64_t)(laid + t)) % (uint64_t)V);
        bad = pack_segment(p, ids, n, -1, 0, i, &segment, err);
        for (t = n - (targets < n ? targets : n); t < n && !bad; t++)
            bad = pack_target(p, segment, t, ids[(t + 1) % n], 1, err);
        laid += n;
    }
    free(ids);
    return bad || pack_finish(p, err) ? -1 : 0;
}

static int open_lora(struct lora **l, struct adapter **a, const struct bench *b, const struct kernels *k,
                     const struct model *m, const struct pack *p, int threads, struct lora_error *err)
{
    struct adapter_settings settings;
    struct lora_setup setup;
    memset(&settings, 0, sizeof settings);
    settings.r = b->rank;
    settings.alpha = 2 * b->rank;
    settings.target_modules = "all-linear";
    if (adapter_new(a, &m->config, &settings, err) || adapter_init(*a, (uint64_t)b->common.seed, err)) return -1;
    memset(&setup, 0, sizeof setup);
    setup.kernels = k;
    setup.threads = threads;
    setup.model = m;
    setup.adapters = a;
    setup.n_adapters = 1;
    setup.sizes.N = p->N;
    setup.sizes.S = p->S;
    setup.sizes.T = p->T;
    setup.sizes.U = p->U;
    setup.sizes.positions = b->row_tokens;
    setup.sizes.backward = 1;
    setup.sizes.keep = -1;
    setup.max_memory = memory_limit(&b->common);
    return lora_open(l, &setup, err);
}

static int time_steps(struct lora *l, const struct pack *p, const struct bench *b, double *seconds, struct lora_error *err)
{
    const struct lora_hyper h = { 1e-6, 0.9, 0.999, 1e-8, 0, 1 };
    double *losses = new_array((size_t)p->T + 1, sizeof *losses, err), norm;
    int round, bad = !losses;
    for (round = -1; round < b->rounds && !bad; round++) {
        double start = seconds_now();
        progress("step %d of %d", round < 0 ? 1 : round + 1, b->rounds);
        bad = lora_train(l, p, 1.0 / p->T, losses, NULL, err) || lora_step(l, &h, &norm, err);
        if (round < 0) {            /* the first reads the weights from disk */
            memset(timed.seconds, 0, sizeof timed.seconds);
            memset(timed.calls, 0, sizeof timed.calls);
        } else {
            seconds[round] = seconds_now() - start;
        }
    }
    progress_done();
    free(losses);
    return bad ? -1 : 0;
}

static void show_profile(const struct bench *b, struct text *json)
{
    int shown[OPERATIONS] = { 0 }, i, j;
    double all = 0;
    for (i = 0; i < OPERATIONS; i++) all += timed.seconds[i];
    text_puts(json, ",\"profile\":[");
    for (i = 0; i < OPERATIONS; i++) {
        int top = -1;
        for (j = 0; j < OPERATIONS; j++)
            if (!shown[j] && (top < 0 || timed.seconds[j] > timed.seconds[top])) top = j;
        shown[top] = 1;
        if (!timed.calls[top]) continue;
        printf("  %-24s %6ld calls %9.2f ms  %5.1f %%\n", operation_names[top], timed.calls[top] / b->rounds,
               1e3 * timed.seconds[top] / b->rounds, 100 * timed.seconds[top] / all);
        text_printf(json, "%s{\"operation\":\"%s\",\"calls\":%ld,\"seconds\":%.6g}", i ? "," : "", operation_names[top],
                    timed.calls[top] / b->rounds, timed.seconds[top] / b->rounds);
    }
    text_puts(json, "]");
}

int bench_step(const struct bench *b, const struct kernels *k, const struct model *m, int threads,
               struct text *json, struct lora_error *err)
{
    struct kernels w = wrapped(k, b->rank);
    struct pack p;
    struct adapter *a = NULL;
    struct lora *l = NULL;
    double *seconds = new_array((size_t)b->rounds, sizeof *seconds, err), t;
    int bad = !seconds;
    memset(&p, 0, sizeof p);
    bad = bad || fill_pack(&p, b, m->config.V, err) || open_lora(&l, &a, b, b->profile ? &w : k, m, &p, threads, err)
        || time_steps(l, &p, b, seconds, err);
    if (!bad) {
        t = median(seconds, b->rounds);
        printf("\na whole step: %.3f s, %.1f tokens/s (%d rows of %d tokens)\n", t, p.N / t, p.S, b->row_tokens);
        text_printf(json, ",\"step\":{\"seconds\":%.6g,\"tokens_per_second\":%.6g,\"rows\":%d}", t, p.N / t, p.S);
        if (b->profile) show_profile(b, json);
    }
    lora_close(l);
    adapter_free(a);
    pack_free(&p);
    free(seconds);
    return bad ? -1 : 0;
}
