/* bench_step.c - lora bench --step and --profile: whole training steps, timed, over each type of weights.
 *
 * For the profile the table of kernels is wrapped: each entry of the wrapper takes the time of the
 * same entry of the table behind it. The model's code knows nothing of it. */
#include "bench.h"
#include "measure.h"
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* ---- the wrapper ---- */

/* Products with a thin side are the adapters'. */
enum operation {
    OP_LINEAR, OP_LINEAR_DX, OP_MATMUL, OP_MATMUL_DX, OP_MATMUL_DW, OP_THIN_MATMUL, OP_THIN_DX, OP_ATTENTION, OP_ATTENTION_BACKWARD,
    OP_RMSNORM, OP_RMSNORM_BACKWARD, OP_ROPE, OP_SWIGLU, OP_SWIGLU_BACKWARD, OP_CROSS_ENTROPY, OP_EMBED,
    OP_DROPOUT, OP_MOVING, OP_ADAMW, OP_CHECKS, OPERATIONS
};
static const char *const operation_names[] = {
    "linear", "linear_dx", "matmul", "matmul_dx", "matmul_dw (adapters)", "matmul (adapters)", "matmul_dx (adapters)", "attention",
    "attention_backward", "rmsnorm", "rmsnorm_backward", "rope", "swiglu", "swiglu_backward", "cross_entropy",
    "embed", "dropout", "copy, zero, gather, scatter_add", "adamw", "sum_squares, not_finite"
};

/* What each is counted as in the shares of a step. */
enum share { SHARE_PRODUCTS, SHARE_ADAPTERS, SHARE_ATTENTION, SHARE_REST, SHARES };
static const char *const share_names[] = { "products", "adapters", "attention", "the rest" };

static int share_of(int op)
{
    switch (op) {
    case OP_LINEAR: case OP_LINEAR_DX: case OP_MATMUL: case OP_MATMUL_DX: return SHARE_PRODUCTS;
    case OP_MATMUL_DW: case OP_THIN_MATMUL: case OP_THIN_DX: return SHARE_ADAPTERS;
    case OP_ATTENTION: case OP_ATTENTION_BACKWARD: return SHARE_ATTENTION;
    default: return SHARE_REST;
    }
}

/* An operation is told nothing but its context, so what the wrapper stands before is kept here, and which
 * type's step is on. The probe is what comes back when a device is done with an operation. */
static struct { struct kernels k; buf *probe; double seconds[MAX_TYPES][OPERATIONS]; long calls[OPERATIONS]; int thin, type; } timed;

static void count(struct kernel_ctx *c, int op, double start)
{
    bench_wait(&timed.k, c, timed.probe);
    timed.seconds[timed.type][op] += seconds_now() - start;
    timed.calls[op]++;
}

static int is_thin(const struct weight *w) { return w->type == TYPE_REAL && (w->rows <= timed.thin || w->cols <= timed.thin); }

/* One entry: the same parameters, timed. (Macros because C cannot wrap functions of many types.) */
#define TIMED(entry, op, parameters, arguments) \
    static void timed_##entry parameters { double start = seconds_now(); timed.k.entry arguments; count(c, op, start); }
#define TIMED_RESULT(type, entry, op, parameters, arguments) \
    static type timed_##entry parameters \
    { \
        double start = seconds_now(); \
        type result = timed.k.entry arguments; \
        count(c, op, start); \
        return result; \
    }

TIMED_RESULT(int, matmul, is_thin(w) ? OP_THIN_MATMUL : OP_MATMUL,
             (struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias, double scale, int accumulate, int N),
             (c, out, x, w, bias, scale, accumulate, N))
TIMED_RESULT(int, matmul_dx, is_thin(w) ? OP_THIN_DX : OP_MATMUL_DX,
             (struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w, double scale, int accumulate, int N),
             (c, dx, dout, w, scale, accumulate, N))
TIMED_RESULT(int, linear, OP_LINEAR,
             (struct kernel_ctx *c, buf *out, buf *h, const buf *x, const struct weight *w, const buf *bias,
              const struct low_rank *ab, int accumulate, int N),
             (c, out, h, x, w, bias, ab, accumulate, N))
TIMED_RESULT(int, linear_dx, OP_LINEAR_DX,
             (struct kernel_ctx *c, buf *dx, buf *gh, const buf *dout, const struct weight *w, const struct low_rank *ab,
              int accumulate_gh, int accumulate, int N),
             (c, dx, gh, dout, w, ab, accumulate_gh, accumulate, N))
TIMED_RESULT(int, embed, OP_EMBED, (struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N), (c, out, w, ids, N))
TIMED_RESULT(double, sum_squares, OP_CHECKS, (struct kernel_ctx *c, const buf *x, size_t n), (c, x, n))
TIMED_RESULT(long long, not_finite, OP_CHECKS, (struct kernel_ctx *c, const buf *x, size_t n), (c, x, n))
TIMED(zero, OP_MOVING, (struct kernel_ctx *c, buf *x, size_t n), (c, x, n))
TIMED(copy, OP_MOVING, (struct kernel_ctx *c, buf *out, const buf *x, size_t n), (c, out, x, n))
TIMED(gather, OP_MOVING, (struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C), (c, out, x, rows, M, C))
TIMED(scatter_add, OP_MOVING, (struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C), (c, out, x, rows, M, C))
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
      (struct kernel_ctx *c, buf *dgate, buf *dup, buf *out, const buf *dout, const buf *gate, const buf *up, size_t n),
      (c, dgate, dup, out, dout, gate, up, n))
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
    w.embed = timed_embed;
    w.matmul = timed_matmul;
    w.matmul_dx = timed_matmul_dx;
    w.matmul_dw = timed_matmul_dw;
    if (w.linear) w.linear = timed_linear;
    if (w.linear_dx) w.linear_dx = timed_linear_dx;
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
static int fill_pack(struct pack *p, const struct bench *b, struct lora_error *err)
{
    int laid = 0, rows = (b->tokens + b->row_tokens - 1) / b->row_tokens, i, t, segment;
    int *ids = new_array((size_t)b->row_tokens, sizeof *ids, err), bad = !ids;
    pack_clear(p);
    for (i = 0; i < rows && !bad; i++) {
        int n = b->tokens - laid < b->row_tokens ? b->tokens - laid : b->row_tokens;
        int targets = (int)((long long)b->targets * (i + 1) / rows - (long long)b->targets * i / rows);
        for (t = 0; t < n; t++) ids[t] = (int)(random_bits(3, (uint64_t)(laid + t)) % (uint64_t)b->shape.V);
        bad = pack_segment(p, ids, n, -1, 0, i, &segment, err);
        for (t = n - (targets < n ? targets : n); t < n && !bad; t++)
            bad = pack_target(p, segment, t, ids[(t + 1) % n], 1, err);
        laid += n;
    }
    free(ids);
    return bad || pack_finish(p, err) ? -1 : 0;
}

static int open_lora(struct lora **l, struct adapter **a, const struct bench *b, const struct kernels *k,
                     const struct model *m, const struct pack *p, struct lora_error *err)
{
    const struct adapter_settings settings = { .r = b->rank, .alpha = 2 * b->rank, .target_modules = "all-linear" };
    struct lora_setup setup = {
        .kernels = k, .threads = b->threads, .compute = b->common.compute, .model = m, .adapters = a, .n_adapters = 1,
        .max_memory = memory_limit(&b->common, k)
    };
    if (adapter_new(a, &m->config, &settings, err) || adapter_init(*a, (uint64_t)b->common.seed, err)) return -1;
    lora_sizes_raise(&setup.sizes, p);
    setup.sizes.backward = 1;
    setup.sizes.keep = -1;
    return lora_open(l, &setup, err);
}

/* What is measured over one type of weights. */
struct runner {
    struct model *m;
    struct adapter *a;
    struct lora *l;
    double seconds[MAX_ROUNDS], processor[MAX_ROUNDS];      /* of a step, by the clock and of all threads */
    double own[MAX_ROUNDS];                                 /* of the thread that calls */
    double token[MAX_ROUNDS], token_processor[MAX_ROUNDS];  /* the same of a token */
    double bytes;                                           /* that a token reads */
};

/* Processor seconds of this thread. */
static double own_seconds(void)
{
    struct timespec t = { 0, 0 };
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int train_step(struct runner *r, const struct pack *p, double *losses, int round, struct lora_error *err)
{
    const struct lora_hyper h = { 1e-6, 0.9, 0.999, 1e-8, 0, 1 };
    double start = seconds_now(), own = own_seconds(), norm;
    clock_t processor = clock();
    if (lora_train(r->l, p, 1.0 / p->T, losses, NULL, err) || lora_step(r->l, &h, &norm, err)) return -1;
    r->seconds[round] = seconds_now() - start;
    r->own[round] = own_seconds() - own;
    r->processor[round] = (double)(clock() - processor) / CLOCKS_PER_SEC;
    return 0;
}

/* A token through all matrices: what generating one costs beside little else. Not of a table with its own memory, where
 * the model's weights are not: lora bench --generate has the whole token there. */
static int token(struct table *t, struct runner *r, buf *y, const buf *x, int round)
{
    double start = seconds_now();
    clock_t processor = clock();
    int id = -1, layer = 0, head = r->m->config.tied ? T_EMBED : T_HEAD;
    r->bytes = 0;
    if (t->k.own_memory) return 0;
    while (tensor_next(&r->m->config, &id, &layer)) {
        const struct weight *w = model_weight(r->m, id, layer);
        if (!tensor_specs[id].linear && id != head) continue;
        if (kernels_matmul(&t->k, &t->ctx, y, x, w, NULL, 1, 0, 1)) return -1;
        r->bytes += (double)base_bytes(w);
    }
    r->token[round] = seconds_now() - start;
    r->token_processor[round] = (double)(clock() - processor) / CLOCKS_PER_SEC;
    return 0;
}

static int measure(struct runner *all, const struct pack *p, const struct bench *b, struct table *t, buf *y, const buf *x,
                   struct lora_error *err)
{
    double *losses = new_array((size_t)p->T + 1, sizeof *losses, err);
    int round, i, bad = !losses;
    for (round = -1; round < b->rounds && !bad; round++) {      /* round -1 warms up */
        int to = round < 0 ? 0 : round;
        progress("step %d of %d", to + 1, b->rounds);
        for (i = 0; i < b->n_types && !bad; i++) {
            timed.type = i;
            bad = train_step(&all[i], p, losses, to, err);
            if (!bad && token(t, &all[i], y, x, to)) bad = fail(err, "bench", "%s", b->types[i].name);
        }
        if (round < 0) {
            memset(timed.seconds, 0, sizeof timed.seconds);
            memset(timed.calls, 0, sizeof timed.calls);
        }
    }
    progress_done();
    free(losses);
    return bad ? -1 : 0;
}

/* Scratch, a row in and a row out for the products of a token. */
static int measure_with_memory(struct runner *all, const struct pack *p, const struct bench *b, struct lora_error *err)
{
    const struct config *f = &b->shape;
    int width = 3 * (f->C + f->F + f->NH * f->HS), bad;     /* no matrix is wider, fused or not */
    struct kernel_sizes sizes = { .threads = b->threads, .N = 1, .width = width, .V = f->V };
    size_t row = (size_t)(width > f->V ? width : f->V);
    struct table t;
    buf *x, *y;
    bad = table_open(&t, b->kernels, &sizes, b->common.compute, err) || !(x = table_buf(&t, row, err))
          || !(y = table_buf(&t, row, err)) || measure(all, p, b, &t, y, x, err);
    table_close(&t);
    return bad;
}

/* ---- what is shown ---- */

static long calls_of_step(const struct bench *b, int op) { return timed.calls[op] / b->rounds / b->n_types; }

static void show_profile(const struct bench *b, struct text *json)
{
    int shown[OPERATIONS] = { 0 }, i, j, type;
    fprintf(b->out, "\n%-24s %7s", "ms of a step", "calls");
    for (type = 0; type < b->n_types; type++) fprintf(b->out, " %9s", b->types[type].name);
    text_puts(json, ",\"profile\":[");
    for (i = 0; i < OPERATIONS; i++) {
        int top = -1;
        for (j = 0; j < OPERATIONS; j++)
            if (!shown[j] && (top < 0 || timed.seconds[0][j] > timed.seconds[0][top])) top = j;
        shown[top] = 1;
        if (!timed.calls[top]) continue;
        fprintf(b->out, "\n%-24s %7ld", operation_names[top], calls_of_step(b, top));
        text_printf(json, "%s{\"operation\":\"%s\",\"calls\":%ld,\"seconds\":[", i ? "," : "", operation_names[top],
                    calls_of_step(b, top));
        for (type = 0; type < b->n_types; type++) {
            fprintf(b->out, " %9.2f", 1e3 * timed.seconds[type][top] / b->rounds);
            text_printf(json, "%s%.9g", type ? "," : "", timed.seconds[type][top] / b->rounds);
        }
        text_puts(json, "]}");
    }
    fprintf(b->out, "\n");
    text_puts(json, "]");
}

/* Operations of attention's own products in a step, a multiply-add being two: scores and output forward; scores again, dV, dP, dQ and
 * dK backward (FlashAttention-2, Dao 2023, algorithms 1 and 2), over the keys that each query sees. */
static double attention_flops(const struct pack *p, const struct bench *b)
{
    const struct config *f = &b->shape;
    double seen = 0;
    int i;
    for (i = 0; i < p->N; i++) seen += f->window && p->pos[i] >= f->window ? f->window : p->pos[i] + 1;
    return seen * f->NH * f->HS * 2 * (double)(2 * calls_of_step(b, OP_ATTENTION) + 5 * calls_of_step(b, OP_ATTENTION_BACKWARD));
}

/* What a step's time goes to. Between the operations there is little: it counts as the rest. Attention multiplies matrices
 * too: what that takes at the peak is the least of its time that is not outside the products. */
static void show_shares(const struct runner *all, const struct bench *b, const struct pack *p, struct text *json)
{
    double own = b->peak > 0 ? 1e-9 * attention_flops(p, b) / b->peak * b->rounds : 0;
    int type, i;
    text_puts(json, ",\"shares\":[");
    for (type = 0; type < b->n_types; type++) {
        double sums[SHARES] = { 0 }, step = 0;
        for (i = 0; i < b->rounds; i++) step += all[type].seconds[i];
        sums[SHARE_REST] = step;
        for (i = 0; i < OPERATIONS; i++) {
            if (share_of(i) == SHARE_REST) continue;
            sums[share_of(i)] += timed.seconds[type][i];
            sums[SHARE_REST] -= timed.seconds[type][i];
        }
        fprintf(b->out, "%s%-7s ", type ? "" : "\nshares of a step: ", b->types[type].name);
        text_printf(json, "%s{\"type\":\"%s\"", type ? "," : "", b->types[type].name);
        for (i = 0; i < SHARES; i++) {
            fprintf(b->out, " %s %.1f %%,", share_names[i], 100 * sums[i] / step);
            text_printf(json, ",\"%s\":%.9g", share_names[i], sums[i] / step);
        }
        fprintf(b->out, " so %.1f %% outside the products with weights", 100 * (sums[SHARE_ATTENTION] + sums[SHARE_REST]) / step);
        if (own > 0)
            fprintf(b->out, "; attention's own are at least %.1f, so at most %.1f %% outside all matrix products", 100 * own / step,
                    100 * (sums[SHARE_ATTENTION] + sums[SHARE_REST] - own) / step);
        fprintf(b->out, "\n");
        text_printf(json, ",\"attention_products\":%.9g}", own / step);
    }
    text_puts(json, "]");
}

/* The median of a / b, round by round: what slows the machine for a while slows both. */
static double ratio(const double *a, const double *b, int rounds)
{
    double all[MAX_ROUNDS];
    int i;
    for (i = 0; i < rounds; i++) all[i] = a[i] / b[i];
    return median(all, rounds);
}

static void show_steps(struct runner *all, const struct bench *b, const struct pack *p, struct text *json)
{
    double clock_ratios[MAX_TYPES], processor_ratios[MAX_TYPES], token_ratios[MAX_TYPES];
    int i;
    for (i = 0; i < b->n_types; i++) {          /* before the medians sort the rounds */
        clock_ratios[i] = ratio(all[i].seconds, all[0].seconds, b->rounds);
        processor_ratios[i] = ratio(all[i].processor, all[0].processor, b->rounds);
        token_ratios[i] = ratio(all[i].token_processor, all[0].token_processor, b->rounds);
    }
    fprintf(b->out, "\na whole step of %d tokens%s: by the clock and in processor time\n%-7s %9s %9s %7s %11s %7s", p->N,
            all[0].bytes > 0 ? ", and the products of one token alone" : "", "type", "step s", "tokens/s", "times", "processor s", "times");
    if (all[0].bytes > 0) fprintf(b->out, "   %9s %9s %6s %7s", "token ms", "tokens/s", "GB/s", "times");
    fprintf(b->out, "\n");
    text_puts(json, ",\"steps\":[");
    for (i = 0; i < b->n_types; i++) {
        double step = median(all[i].seconds, b->rounds), processor = median(all[i].processor, b->rounds), one = median(all[i].token, b->rounds);
        fprintf(b->out, "%-7s %9.3f %9.1f %7.3f %11.3f %7.3f", b->types[i].name, step, p->N / step, clock_ratios[i], processor, processor_ratios[i]);
        text_printf(json, "%s{\"type\":\"%s\",\"seconds\":%.9g,\"tokens_per_second\":%.9g,\"ratio\":%.9g,\"processor_seconds\":%.9g,"
                          "\"processor_ratio\":%.9g", i ? "," : "", b->types[i].name, step, p->N / step, clock_ratios[i], processor, processor_ratios[i]);
        if (all[i].bytes > 0) {
            fprintf(b->out, "   %9.2f %9.1f %6.1f %7.3f", 1e3 * one, 1 / one, 1e-9 * all[i].bytes / one, token_ratios[i]);
            text_printf(json, ",\"token_seconds\":%.9g,\"token_bytes\":%.0f,\"token_processor_ratio\":%.9g", one, all[i].bytes, token_ratios[i]);
        }
        fprintf(b->out, "\n");
        text_puts(json, "}");
    }
    text_puts(json, "]");
}

/* What the thread that calls works for longer than the others do on average is not shared out. Processor time, not
 * the clock's: what other programs take does not count, and neither does waiting, if it does not spin. */
static void show_serial(const struct runner *r, const struct bench *b, struct text *json)
{
    const char *policy = getenv("OMP_WAIT_POLICY");
    double share[MAX_ROUNDS], serial;
    int i;
    if (!policy || strcasecmp(policy, "passive")) {
        fprintf(b->out, "\nwith OMP_WAIT_POLICY=passive threads that wait take no processor time, and the share of a step that one thread does\n"
               "alone can be told\n");
        return;
    }
    for (i = 0; i < b->rounds; i++) {
        double others = (r->processor[i] - r->own[i]) / (b->threads - 1);
        share[i] = r->own[i] > others ? (r->own[i] - others) / r->processor[i] : 0;
    }
    serial = median(share, b->rounds);
    fprintf(b->out, "\nof a step over %s %.1f %% is done by one thread alone: by Amdahl's law 16 threads would be %.1f times as fast as one\n",
           b->types[0].name, 100 * serial, 1 / (serial + (1 - serial) / 16));
    text_printf(json, ",\"serial\":%.9g", serial);
}

static int prepare(struct runner *all, const struct pack *p, const struct bench *b, const struct kernels *k,
                   struct lora_error *err)
{
    int i;
    for (i = 0; i < b->n_types; i++) {
        progress("weights: %s", b->types[i].name);
        if (bench_model(&all[i].m, b, &b->types[i], err) || open_lora(&all[i].l, &all[i].a, b, k, all[i].m, p, err)) return -1;
    }
    return 0;
}

int bench_step(const struct bench *b, struct text *json, struct lora_error *err)
{
    struct kernels w = wrapped(b->kernels, b->rank);
    struct runner *all = new_array((size_t)b->n_types, sizeof *all, err);
    struct kernel_ctx c0 = { .threads = 1 };
    struct pack p;
    int bad = !all, i;
    memset(&p, 0, sizeof p);
    if (!bad && !(timed.probe = w.alloc(&c0, sizeof(double)))) bad = fail_memory(err, "bench", sizeof(double));
    bad = bad || fill_pack(&p, b, err) || prepare(all, &p, b, b->profile ? &w : b->kernels, err)
        || measure_with_memory(all, &p, b, err);
    if (!bad && b->threads > 1 && !b->profile && !b->kernels->own_memory) show_serial(&all[0], b, json);    /* before the medians sort the rounds */
    if (!bad) show_steps(all, b, &p, json);
    if (!bad && b->profile) {
        show_profile(b, json);
        show_shares(all, b, &p, json);
    }
    for (i = 0; all && i < b->n_types; i++) {
        lora_close(all[i].l);
        adapter_free(all[i].a);
        bench_model_free(all[i].m);
    }
    if (timed.probe) w.release(&c0, timed.probe);
    pack_free(&p);
    free(all);
    return bad ? -1 : 0;
}
