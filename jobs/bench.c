/* bench.c - lora bench: how fast the products of a training step are on this machine, beside what its
 * multiply-adds could do, and how long a whole step takes, operation by operation.
 *
 * Everything is measured round by round, the peak too, and medians are shown: a machine whose clock
 * or whose neighbours change changes all of them alike. */
#include "bench.h"
#include "measure.h"
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct option options[] = {
    { "tokens", NULL, OPTION_INT, offsetof(struct bench, tokens), NULL, "N", "tokens of the step (default 512)", 1, 1 << 20 },
    { "targets", NULL, OPTION_INT, offsetof(struct bench, targets), NULL, "N",
      "of them with a target, and so with logits (default: an eighth)", 1, 1 << 20 },
    { "row-tokens", NULL, OPTION_INT, offsetof(struct bench, row_tokens), NULL, "N",
      "tokens of a row, for the whole step (default 64)", 2, 1 << 20 },
    { "lora-r", "r|rank", OPTION_INT, offsetof(struct bench, rank), NULL, "R",
      "rank of the adapters on all linear layers (default 16)", 1, 4096 },
    { "rounds", NULL, OPTION_INT, offsetof(struct bench, rounds), NULL, "N", "rounds that medians are of (default 7)", 1, MAX_ROUNDS },
    { "dtype", NULL, OPTION_TEXT, offsetof(struct bench, dtype), NULL, "TYPE[,TYPE]",
      "types of the weights, side by side: f32, q4_1, nf4, nf4-dq (double quantisation) ... (default bf16)", 0, 0 },
    { "block-size", NULL, OPTION_INT, offsetof(struct bench, block), NULL, "N", "numbers to a scale, of nf4 and fp4 (default 64)", 32, 4096 },
    { "step", NULL, OPTION_FLAG, offsetof(struct bench, step), NULL, NULL,
      "measure a whole training step too, and the products of one token", 0, 0 },
    { "profile", NULL, OPTION_FLAG, offsetof(struct bench, profile), NULL, NULL,
      "the same, with the time of each operation", 0, 0 },
    { "generate", NULL, OPTION_FLAG, offsetof(struct bench, generate), NULL, NULL,
      "measure generation instead: over the model as its file has it, or random weights of each --dtype", 0, 0 },
    { "prompt-tokens", NULL, OPTION_INT, offsetof(struct bench, prompt), NULL, "N", "tokens of the prompt that is read (default 512)", 1, 1 << 20 },
    { "new-tokens", NULL, OPTION_INT, offsetof(struct bench, new_tokens), NULL, "N", "tokens that are generated (default 128)", 1, 1 << 20 },
    { "together", NULL, OPTION_INT, offsetof(struct bench, batch), NULL, "N", "sequences at a time, where several are (default 8)", 1, 4096 },
    { "json", NULL, OPTION_TEXT, offsetof(struct bench, json), NULL, "FILE", "the figures as JSON (- for stdout)", 0, 0 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

/* ---- what the machine can do ---- */

/* The best of several passes, as of the peaks (measure.c): one that was disturbed once said a seventh. */
static double read_bandwidth(const uint64_t *p, size_t n, int threads)
{
    double best = 0;
    int pass;
    (void)threads;          /* a build without OpenMP has one */
    for (pass = 0; pass < 4; pass++) {
        double start = seconds_now(), rate;
        uint64_t sum = 0;
        long long i;
#pragma omp parallel for num_threads(threads) reduction(^:sum)
        for (i = 0; i < (long long)n; i += 8)
            sum ^= p[i] ^ p[i + 1] ^ p[i + 2] ^ p[i + 3] ^ p[i + 4] ^ p[i + 5] ^ p[i + 6] ^ p[i + 7];
        rate = 8e-9 * (double)n / (seconds_now() - start);
        if (rate > best && sum != 1) best = rate;       /* the sum is used, so that it is made */
    }
    return best;
}

void bench_wait(const struct kernels *k, struct kernel_ctx *c, const buf *p)
{
    float one;
    if (k->own_memory) k->down(c, &one, p, 1);
}

static double copy_bandwidth(const struct kernels *k, size_t n)
{
    enum { TIMES = 4 };
    struct kernel_ctx c = { .threads = 1 };
    buf *to = k->alloc(&c, n * sizeof(float)), *from = k->alloc(&c, n * sizeof(float));
    double start = 0;
    int i;
    for (i = -1; to && from && i < TIMES; i++) {        /* the first warms up */
        k->copy(&c, to, from, n);
        if (i < 0) {
            bench_wait(k, &c, to);
            start = seconds_now();
        }
    }
    if (to && from) bench_wait(k, &c, to);
    start = seconds_now() - start;
    if (to) k->release(&c, to);
    if (from) k->release(&c, from);
    return to && from ? 1e-9 * TIMES * 2 * (double)(n * sizeof(float)) / start : 0;
}

double bench_bandwidth(const struct bench *b)
{
    return b->kernels->own_memory ? copy_bandwidth(b->kernels, BENCH_READ) : read_bandwidth(b->memory, BENCH_READ, b->threads);
}

/* ---- the products of a step ---- */

enum { FORWARD, BACKWARD_X, LORA_FORWARD, LORA_BACKWARD, KINDS };
static const char *const kind_names[] = { "forward", "dx", "lora forward", "lora backward" };

struct product {
    char name[64];              /* "wq+wo" */
    int O, I, N, kind;
    int type;                   /* which of the bench's, or -1: only adapters, which are floats */
    double times;               /* a step has so many */
    double flops;
    double seconds[MAX_ROUNDS];
};

struct products {
    struct product list[4 * T_COUNT * MAX_TYPES];
    int n;
    size_t x, y, w, rows;       /* the most elements of an input, an output and a weight, and rows of a weight */
    double share;               /* of the time of its threads that this process got */
    double peaks[MAX_ROUNDS], peaks_bf16[MAX_ROUNDS], bandwidths[MAX_ROUNDS];
};

static double product_flops(const struct product *p, int r)
{
    double n = p->N;
    return p->kind <= BACKWARD_X ? 2 * n * p->O * p->I : (p->kind == LORA_FORWARD ? 2 : 4) * n * r * ((double)p->O + p->I);
}

static void at_least(size_t *size, size_t n) { if (n > *size) *size = n; }

static void add_product(struct products *s, const char *name, int O, int I, int N, int kind, int type, double times, int r)
{
    struct product *p;
    int i;
    for (i = 0; i < s->n; i++) {
        p = &s->list[i];
        if (p->O != O || p->I != I || p->N != N || p->kind != kind || p->type != type) continue;
        p->times += times;
        if (strlen(p->name) + strlen(name) + 2 < sizeof p->name) strcat(strcat(p->name, "+"), name);
        return;
    }
    p = &s->list[s->n++];
    *p = (struct product){ .O = O, .I = I, .N = N, .kind = kind, .type = type, .times = times };
    snprintf(p->name, sizeof p->name, "%s", name);
    p->flops = product_flops(p, r);
    at_least(&s->x, (size_t)I * (size_t)N);
    at_least(&s->y, (size_t)O * (size_t)N);
    at_least(&s->w, (size_t)O * (size_t)I);
    at_least(&s->rows, (size_t)O);
}

/* The same product over each type of weights: they stand, and are measured, one beside the other. */
static void add_products(struct products *s, const struct bench *b, const char *name, int O, int I, int N, int kind, double times)
{
    int i;
    if (kind > BACKWARD_X) add_product(s, name, O, I, N, kind, -1, times, b->rank);
    else for (i = 0; i < b->n_types; i++) add_product(s, name, O, I, N, kind, i, times, b->rank);
}

/* Each linear forward once and back once, with its adapter; the head at the rows with a target. */
static void list_products(struct products *s, const struct bench *b)
{
    const struct config *c = &b->shape;
    int kind, id, head = b->targets < 160 ? b->targets : 160;
    for (kind = 0; kind < KINDS; kind++)
        for (id = 0; id < T_COUNT; id++)
            if (tensor_present(c, id) && tensor_specs[id].linear)
                add_products(s, b, tensor_specs[id].name, tensor_rows(c, id), tensor_cols(c, id), b->tokens, kind, c->L);
    for (kind = FORWARD; kind <= BACKWARD_X; kind++)
        add_products(s, b, "head", c->V, c->C, head, kind, (double)b->targets / head);
}

struct memory {
    struct table t;
    buf *x, *y, *h, *a, *b, *da, *db;
    struct weight weights[MAX_TYPES];       /* of each type one, of the largest matrix's size: all are views of it */
    struct weight there[MAX_TYPES];         /* the same as the table reads it */
    struct quantised scales[MAX_TYPES];
};

static void release(struct memory *m)
{
    int i;
    table_close(&m->t);
    for (i = 0; i < MAX_TYPES; i++) bench_weight_free(&m->weights[i]);
}

static int reserve_weights(struct memory *m, const struct products *s, const struct bench *b, struct lora_error *err)
{
    size_t cols = (s->w + s->rows - 1) / s->rows;
    int i, bad = 0;
    cols = (cols + 255) / 256 * 256;        /* whole blocks of any type */
    for (i = 0; i < b->n_types && !bad; i++)
        bad = bench_weight(&m->weights[i], b, &b->types[i], (int)s->rows, (int)cols, err)
              || table_weight(&m->t, &m->there[i], &m->scales[i], &m->weights[i], err);
    return bad;
}

static int reserve(struct memory *m, const struct products *s, const struct bench *b, struct lora_error *err)
{
    struct kernel_sizes sizes = { .threads = b->threads, .N = b->tokens, .width = b->rank, .V = 1 };
    size_t na, nh = (size_t)b->tokens * (size_t)b->rank;
    int i, widest = 1;
    for (i = 0; i < s->n; i++) {
        const struct product *p = &s->list[i];
        int w = p->O > p->I ? p->O : p->I;
        if (!strcmp(p->name, "head")) sizes.V = p->O;
        else if (w > widest) widest = w;
    }
    na = (size_t)widest * (size_t)b->rank;
    if (widest > sizes.width) sizes.width = widest;
    return table_open(&m->t, b->kernels, &sizes, b->common.compute, err)
           || !(m->x = table_buf(&m->t, s->x, err)) || !(m->y = table_buf(&m->t, s->y, err))
           || !(m->h = table_buf(&m->t, nh, err)) || !(m->a = table_buf(&m->t, na, err)) || !(m->b = table_buf(&m->t, na, err))
           || !(m->da = table_buf(&m->t, na, err)) || !(m->db = table_buf(&m->t, na, err))
           || reserve_weights(m, s, b, err) ? -1 : 0;
}

/* Ordinary numbers into what products read: they grow when results are added to them. */
static int refill(struct memory *m, const struct products *s, const struct bench *b, struct lora_error *err)
{
    size_t nh = (size_t)b->tokens * (size_t)b->rank, n = s->x > s->y ? s->x : s->y, i;
    float *values = new_array(n, sizeof *values, err);
    if (!values) return -1;
    for (i = 0; i < n; i++) values[i] = 1e-4f * (float)((long long)(random_bits(1, i) % 2001) - 1000);
    m->t.k.up(&m->t.ctx, m->x, values, s->x);
    m->t.k.up(&m->t.ctx, m->y, values, s->y);
    m->t.k.up(&m->t.ctx, m->h, values, nh < s->x ? nh : s->x);
    free(values);
    return 0;
}

static struct weight real_weight(const buf *data, int rows, int cols)
{
    return (struct weight){ .type = TYPE_REAL, .rows = rows, .cols = cols, .data = data };
}

static int run_product(struct memory *m, const struct product *p, int r)
{
    struct kernel_ctx *c = &m->t.ctx;
    struct weight w = m->there[p->type < 0 ? 0 : p->type], a = real_weight(m->a, r, p->I), b = real_weight(m->b, p->O, r);
    w.rows = p->O;
    w.cols = p->I;
    switch (p->kind) {
    case FORWARD: return kernels_matmul(&m->t.k, c, m->y, m->x, &w, NULL, 1, 0, p->N);
    case BACKWARD_X: return kernels_matmul_dx(&m->t.k, c, m->x, m->y, &w, 1, 0, p->N);
    case LORA_FORWARD: return kernels_matmul(&m->t.k, c, m->h, m->x, &a, NULL, 1, 0, p->N)
        || kernels_matmul(&m->t.k, c, m->y, m->h, &b, NULL, 2, 1, p->N);
    default:
        m->t.k.matmul_dw(c, m->db, m->y, m->h, 2, p->N, p->O, r);
        if (kernels_matmul_dx(&m->t.k, c, m->h, m->y, &b, 2, 0, p->N)) return -1;
        m->t.k.matmul_dw(c, m->da, m->h, m->x, 1, p->N, r, p->I);
        return kernels_matmul_dx(&m->t.k, c, m->x, m->h, &a, 1, 1, p->N);
    }
}

/* Seconds of one run; short ones are repeated so that the clock can tell. */
static int time_product(struct memory *m, const struct product *p, int r, double *seconds)
{
    double start = seconds_now(), took;
    int n = 0, more = 1, i;
    do {        /* waiting for a device costs time too: less and less often */
        for (i = 0; i < more; i++) if (run_product(m, p, r)) return -1;
        bench_wait(&m->t.k, &m->t.ctx, m->x);
        n += more;
        if (m->t.k.own_memory) more *= 2;
        took = seconds_now() - start;
    } while (took < 0.005);
    *seconds = took / n;
    return 0;
}

/* Is the peak of this processor's vectors what the table's products could reach? */
static int has_peak(const struct kernels *k) { return !strncmp(k->name, "avx", 3) || !strcmp(k->name, "neon"); }

static int measure(struct products *s, struct memory *m, const struct bench *b, struct lora_error *err)
{
    int round, i, bad = 0;
    double start = seconds_now();
    clock_t cpu = clock();
    for (round = -1; round < b->rounds && !bad; round++) {          /* round -1 warms up */
        int to = round < 0 ? 0 : round;
        bad = refill(m, s, b, err);
        s->peaks[to] = has_peak(b->kernels) ? measure_peak(b->threads) : 0;
        s->peaks_bf16[to] = b->common.compute == COMPUTE_BF16 ? measure_peak_bf16(b->threads) : 0;
        s->bandwidths[to] = bench_bandwidth(b);
        progress("round %d of %d", to + 1, b->rounds);
        for (i = 0; i < s->n && !bad; i++)
            if (time_product(m, &s->list[i], b->rank, &s->list[i].seconds[to])) {
                fail(err, "bench", "%s", m->t.k.name);
                bad = found(err, "a table that does not read %s", b->types[s->list[i].type].name);
            }
    }
    progress_done();
    s->share = (double)(clock() - cpu) / CLOCKS_PER_SEC / (seconds_now() - start) / b->threads;
    return bad ? -1 : 0;
}

/* ---- what is shown ---- */

static void share(char *text, size_t n, double flops, double peak)
{
    if (peak > 0) snprintf(text, n, "%5.1f %%", 100 * flops / peak);
    else snprintf(text, n, "-");
}

/* Medians of the peaks, and which of them a product could reach. */
struct peaks { double f32, bf16; };

static double peak_of(const struct product *p, const struct bench *b, const struct peaks *peaks)
{
    return b->common.compute == COMPUTE_BF16 && p->kind <= BACKWARD_X && p->N >= FEW_ROWS ? peaks->bf16 : peaks->f32;
}

/* All products of a step over each type. */
static void show_sums(struct products *s, const struct bench *b, const struct peaks *peaks, struct text *json)
{
    double flops, seconds, least, first = 0;
    char part[32];
    int i, type;
    fprintf(b->out, "\n");
    text_puts(json, "],\"step_products\":[");
    for (type = 0; type < b->n_types; type++) {
        for (i = 0, flops = seconds = least = 0; i < s->n; i++) {
            struct product *p = &s->list[i];
            if (p->type >= 0 && p->type != type) continue;
            flops += p->times * p->flops;
            least += p->times * p->flops / peak_of(p, b, peaks);        /* infinite where a peak is not known */
            seconds += p->times * median(p->seconds, b->rounds);
        }
        if (!type) first = seconds;
        share(part, sizeof part, 1e-9 * flops / seconds, flops / least);
        fprintf(b->out, "all products of a step, %-7s  %.1f GFLOP in %.3f s, %.1f GFLOP/s, %s of the peak, %.3f of %s's time\n", b->types[type].name,
               1e-9 * flops, seconds, 1e-9 * flops / seconds, part, seconds / first, b->types[0].name);
        text_printf(json, "%s{\"type\":\"%s\",\"gflop\":%.9g,\"seconds\":%.9g,\"gflops\":%.9g,\"ratio\":%.9g}", type ? "," : "",
                    b->types[type].name, 1e-9 * flops, seconds, 1e-9 * flops / seconds, seconds / first);
    }
    text_puts(json, "]");
}

static void show(struct products *s, const struct bench *b, struct text *json)
{
    double bandwidth = median(s->bandwidths, b->rounds);
    struct peaks peaks;
    char part[32];
    int i;
    if (s->share < 0.8 && !b->kernels->own_memory)
        status("this machine is busy with other work: bench got %.0f %% of the time of %d threads, so times are too long",
               100 * s->share, b->threads);
    peaks.f32 = median(s->peaks, b->rounds);
    peaks.bf16 = median(s->peaks_bf16, b->rounds);
    if (peaks.f32 > 0) fprintf(b->out, "peak of multiply-adds          %.1f GFLOP/s\n", peaks.f32);
    if (peaks.bf16 > 0) fprintf(b->out, "peak of bf16 multiply-adds     %.1f GFLOP/s\n", peaks.bf16);
    fprintf(b->out, "%-30s %.1f GB/s\n\n", b->kernels->own_memory ? "copying in its memory" : "reading memory", bandwidth);
    text_printf(json, "{\"backend\":\"%s\",\"threads\":%d,\"tokens\":%d,\"targets\":%d,\"rank\":%d,\"rounds\":%d,"
                      "\"compute\":\"%s\",\"peak_gflops\":%.9g,\"peak_bf16_gflops\":%.9g,\"read_gb_per_s\":%.9g,\"products\":[",
                b->kernels->name, b->threads, b->tokens, b->targets, b->rank, b->rounds,
                b->common.compute == COMPUTE_BF16 ? "bf16" : "f32", peaks.f32, peaks.bf16, bandwidth);
    fprintf(b->out, "%-14s %-14s %-7s %6s %6s %6s %9s %10s  %s\n", "product", "linear", "type", "N", "I", "O", "ms", "GFLOP/s", "of peak");
    for (i = 0; i < s->n; i++) {
        const struct product *p = &s->list[i];
        const char *type = p->type < 0 ? "" : b->types[p->type].name;
        double t = median(s->list[i].seconds, b->rounds), rate = 1e-9 * p->flops / t;
        share(part, sizeof part, rate, peak_of(p, b, &peaks));
        fprintf(b->out, "%-14s %-14s %-7s %6d %6d %6d %9.3f %10.1f  %s\n", kind_names[p->kind], p->name, type, p->N, p->I, p->O, 1e3 * t, rate, part);
        text_printf(json, "%s{\"product\":\"%s\",\"linear\":\"%s\",\"type\":\"%s\",\"N\":%d,\"I\":%d,\"O\":%d,\"times\":%.9g,\"seconds\":%.9g,"
                          "\"gflops\":%.9g}", i ? "," : "", kind_names[p->kind], p->name, type, p->N, p->I, p->O, p->times, t, rate);
    }
    show_sums(s, b, &peaks, json);
}

/* ---- the job ---- */

static struct config smollm2_135m(void)
{
    return (struct config){
        .C = 576, .V = 49152, .L = 30, .NH = 9, .NKV = 3, .HS = 64, .F = 1536, .tied = 1, .norm_eps = 1e-5,
        .rope.theta = 100000, .max_positions = 8192
    };
}

static int bench_products(struct bench *b, struct text *json, struct lora_error *err)
{
    struct products *s = new_array(1, sizeof *s, err);
    struct memory m;
    int bad, i;
    if (!s) return -1;
    memset(&m, 0, sizeof m);
    list_products(s, b);
    bad = reserve(&m, s, b, err) || measure(s, &m, b, err);
    for (i = 0; i < b->rounds && !bad; i++)
        if (s->peaks[i] > b->peak) b->peak = s->peaks[i];
    if (!bad) show(s, b, json);
    release(&m);
    free(s);
    return bad ? -1 : 0;
}

static int bench_all(struct bench *b, struct model *m, struct text *json, struct lora_error *err)
{
    const char *path = b->common.model, *name = m ? path : "the shapes of SmolLM2-135M";
    if (b->generate) {
        int from_file = path && !b->dtype && !shape_alone(path);
        fprintf(b->out, "%s, backend %s, %d threads, a prompt of %d tokens, %d new ones, %d sequences together\n",
                name, b->kernels->name, b->threads, b->prompt, b->new_tokens, b->batch);
        text_printf(json, "{\"backend\":\"%s\",\"threads\":%d,\"rounds\":%d,", b->kernels->name, b->threads, b->rounds);
        return bench_generate(b, from_file ? m : NULL, json, err);
    }
    if (!b->targets) b->targets = (b->tokens + 7) / 8;
    if (b->targets > b->tokens) b->targets = b->tokens;
    fprintf(b->out, "%s, backend %s, %d threads, %d tokens, %d with a target, LoRA of rank %d on all linear layers%s\n",
            name, b->kernels->name, b->threads, b->tokens, b->targets, b->rank,
            b->common.compute == COMPUTE_BF16 ? ", frozen weights multiplied in bf16" : "");
    return bench_products(b, json, err) || ((b->step || b->profile) && bench_step(b, json, err)) ? -1 : 0;
}

static int bench(struct bench *b, struct lora_error *err)
{
    struct model *m = NULL;
    struct text json = { 0 };
    const char *path = b->common.model;
    int bad;
    b->threads = usable_threads(b->common.threads);
    b->shape = smollm2_135m();
    if (!(b->kernels = kernels_find(b->common.backend, err)) || kernels_check_compute(b->kernels, b->common.compute, err)
        || (path && (shape_alone(path) ? shape_open(&m, path, NULL, err) : model_open(&m, path, err)))) return -1;
    if (m) b->shape = m->config;
    if ((b->memory = new_array(BENCH_READ, sizeof *b->memory, err)))
        memset(b->memory, 1, BENCH_READ * sizeof *b->memory);       /* pages of its own */
    bad = !b->memory || bench_all(b, m, &json, err);
    text_puts(&json, "}\n");
    if (!bad && b->json) bad = text_check(&json, err) || job_write_json(b->json, &json, err);
    text_free(&json);
    free(b->memory);
    model_close(m);
    return bad ? -1 : 0;
}

static int run(void *settings, struct lora_error *err)
{
    struct bench *b = settings;
    const struct base_settings *base = &b->common.base;
    int code = bench_types_read(b);
    if (code) return code;
    if (base->in_4bit > 0 || base->in_8bit > 0 || base->quant_type >= 0 || base->double_quant > 0)
        return job_usage_error(&job_bench, "--load-in-4bit and its kin: --dtype says which types are measured, as nf4, nf4-dq, fp4 or int8");
    if (b->generate && (b->step || b->profile))
        return job_usage_error(&job_bench, "--generate measures generation alone: no --step or --profile");
    b->out = b->json && !strcmp(b->json, "-") ? stderr : stdout;
    return bench(b, err);
}

static const struct bench defaults = {
    .common = COMMON_DEFAULTS, .tokens = 512, .row_tokens = 64, .rank = 16, .rounds = 7, .block = 64, .prompt = 512,
    .new_tokens = 128, .batch = 8
};

const struct job job_bench = {
    "bench", "how fast this machine is at the products of a training step, and at a step",
    "[--model PATH] [--dtype TYPE,...] [--step | --profile | --generate] [options]", options, common_options,
    sizeof defaults, &defaults, run
};
