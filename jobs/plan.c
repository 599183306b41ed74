/* plan.c - what a run will take: memory by purpose, steps, tokens, time; and `lora plan`. */
#include "measure.h"
#include "train.h"

#include <string.h>

/* ---- time ---- */

/* Floating point operations of the products of a mean step: forward, dX, dW where the weight is trained,
 * and forward again where activations are not kept. A product of N rows takes 2 N rows cols. */
static double step_operations(const struct run *r)
{
    const struct config *c = &r->setup.model->config;
    double tokens = (double)r->steps.computed / (double)(r->total ? r->total : 1);
    double targets = (double)r->data.report.targets / (double)r->steps.per_epoch;
    double head = (double)c->V * c->C, times = r->setup.full ? 3 : 2, n;
    int kept = r->setup.sizes.keep < 0 ? c->L : r->setup.sizes.keep;
    size_t linears, bytes;
    base_linears(r->setup.model, &linears, &bytes);
    n = tokens * 2 * (double)linears * (times + 1.0 - (double)kept / c->L) + targets * 2 * head * times;
    return n + (r->adapter ? tokens * 2 * 3 * (double)r->adapter->size : 0);
}

/* Seconds of y[N,rows] = x W^T: the best of several, as others may be at work here; -1: it cannot be done. */
static double product_seconds(struct table *t, buf *y, const buf *x, const struct weight *w, int N)
{
    double start = seconds_now(), best = -1;
    float one;
    int n;
    for (n = 0; n < 5 || seconds_now() - start < 0.1; n++) {
        double before = seconds_now(), seconds;
        if (kernels_matmul(&t->k, &t->ctx, y, x, w, NULL, 1, 0, N)) break;
        t->k.down(&t->ctx, &one, y, 1);     /* a device is done when something comes back */
        seconds = seconds_now() - before;
        if (!n || seconds < best) best = seconds;
    }
    return best;
}

/* Operations a second of a product with a slice of one of the model's own weights. */
static double product_rate(const struct run *r)
{
    struct kernel_sizes sizes = { .threads = r->setup.threads, .V = 1, .HS = 1, .NH = 1, .NKV = 1, .keys = 1, .segments = 1 };
    struct weight w = *model_weight(r->setup.model, T_WDOWN, 0), there;
    struct quantised scales;
    struct table t;
    double seconds = -1;
    int N = r->setup.sizes.N < 256 ? r->setup.sizes.N : 256;
    buf *x, *y;
    if (!w.data) return -1;
    if (w.rows > 512) w.rows = 512;
    sizes.N = N;
    sizes.width = w.cols > w.rows ? w.cols : w.rows;
    if (!table_open(&t, r->setup.kernels, &sizes, r->setup.compute, NULL)
        && (x = table_buf(&t, (size_t)N * (size_t)w.cols, NULL)) && (y = table_buf(&t, (size_t)N * (size_t)w.rows, NULL))
        && !table_weight(&t, &there, &scales, &w, NULL)) seconds = product_seconds(&t, y, x, &there, N);
    table_close(&t);
    return seconds > 0 ? 2.0 * N * w.rows * w.cols / seconds : -1;
}

double plan_seconds(const struct run *r)
{
    double rate = product_rate(r);
    return rate > 0 ? step_operations(r) * (double)(r->total - r->state.step) / rate : -1;
}

/* ---- what is not in the arena ---- */

/* The base's matrices by type and by where they lie: quantised while loading, or in the file. */
struct base { size_t data[2][TYPE_COUNT], scales[2][TYPE_COUNT], bytes[2]; };
enum { HEAP, MAPPED };

static void add_weight(struct base *b, const struct weight *w)
{
    size_t all = base_bytes(w), count = (size_t)w->rows * (size_t)w->cols, data = all;
    int place = w->q && w->q->heap >= all ? HEAP : MAPPED;
    if (w->q) data = w->type == TYPE_INT8 ? count : (count + 1) / 2;
    b->data[place][w->type] += data;
    b->scales[place][w->type] += all - data;
    b->bytes[place] += all;
    if (!w->q) return;
    if (place == MAPPED) b->bytes[HEAP] += w->q->heap;      /* scales that do not lie aligned in the file */
    else b->bytes[HEAP] += w->q->heap - all;
}

/* Norms and biases are copied into the arena; under `full` all is. On a table with its own memory all is copied there
 * too, and this is where it is copied from. */
static void add_base(struct base *b, const struct run *r)
{
    const struct model *m = r->setup.model;
    int id = -1, layer = 0;
    memset(b, 0, sizeof *b);
    while (!r->setup.full && tensor_next(&m->config, &id, &layer))
        if (tensor_specs[id].cols != '1') add_weight(b, model_weight(m, id, layer));
}

static size_t row_bytes(const struct run *r)
{
    return data_memory(&r->data) + data_memory(&r->eval) + (r->steps.order ? (size_t)r->data.n * sizeof *r->steps.order : 0);
}

/* A copy of all that is trained, for checks, and for writing it: where it does not lie here as floats. */
static size_t copy_bytes(const struct run *r)
{
    size_t elem = r->setup.kernels->elem > 4 ? (size_t)r->setup.kernels->elem : 4;
    if (!r->setup.kernels->own_memory && r->setup.kernels->elem == sizeof(float)) return 0;
    return r->plan.trainable / (size_t)r->setup.kernels->elem * elem;
}

/* Bytes outside the arena: base weights that were quantised here, tokenizer, rows, copies of what is trained. The base
 * by its parts is in *b then. */
static size_t heap_bytes(const struct run *r, struct base *b)
{
    add_base(b, r);
    return b->bytes[HEAP] + copy_bytes(r) + tokenizer_memory(r->session.tokenizer) + row_bytes(r);
}

/* ---- how many layers are kept ---- */

static int plan_with(struct run *r, int keep, struct lora_error *err)
{
    r->setup.sizes.keep = keep;
    return lora_plan(&r->plan, &r->setup, err);
}

/* What --max-memory leaves for the arena, of a run that has been planned once: all of it where the arena lies in
 * memory of the table's own. */
static size_t arena_limit(const struct run *r)
{
    struct base b;
    size_t most = r->session.max_memory, heap = r->setup.kernels->own_memory ? 0 : heap_bytes(r, &b);
    return !most ? 0 : most > heap ? most - heap : 1;
}

/* Keeping more layers takes more memory and never changes a bit: auto keeps what fits. */
int plan_choose(struct run *r, struct lora_error *err)
{
    int low = 0, high = r->setup.model->config.L;
    size_t limit;
    if (plan_with(r, r->set->gradient_checkpointing == CHECKPOINTING_ON ? 0 : -1, err)) return -1;
    limit = r->setup.max_memory = arena_limit(r);
    if (r->set->gradient_checkpointing != CHECKPOINTING_AUTO || !limit || r->plan.total <= limit) return 0;
    while (low < high - 1) {    /* low fits or is 0, high does not */
        int middle = low + (high - low) / 2;
        if (plan_with(r, middle, err)) return -1;
        if (r->plan.total <= limit) low = middle;
        else high = middle;
    }
    return plan_with(r, low, err);
}

/* ---- printing ---- */

static void put_bytes(FILE *f, const char *name, size_t bytes)
{
    if (bytes) fprintf(f, "  %-34s %15zu  %10.1f MB\n", name, bytes, (double)bytes / 1e6);
}

static void put_time(FILE *f, double seconds)
{
    if (seconds < 120) fprintf(f, "%.0f s", seconds);
    else if (seconds < 7200) fprintf(f, "%.0f min", seconds / 60);
    else fprintf(f, "%.1f h", seconds / 3600);
}

static void put_types(FILE *f, const struct base *b, int place)
{
    char name[64];
    int type;
    for (type = 0; type < TYPE_COUNT; type++) {
        snprintf(name, sizeof name, "  in %s%s", weight_types[type].name, b->scales[place][type] ? ": codes" : "");
        put_bytes(f, name, b->data[place][type]);
        put_bytes(f, "      and their scales", b->scales[place][type]);
    }
}

/* The heap and the file, and what must fit. */
static void put_rest(FILE *f, const struct run *r)
{
    struct base b;
    size_t heap = heap_bytes(r, &b);
    int own = r->setup.kernels->own_memory;
    put_bytes(f, "base weights, quantised here", b.bytes[HEAP]);
    put_types(f, &b, HEAP);
    put_bytes(f, "a copy of what is trained", copy_bytes(r));
    put_bytes(f, "tokenizer", tokenizer_memory(r->session.tokenizer));
    put_bytes(f, "rows", row_bytes(r));
    put_bytes(f, own ? "heap here: all of these" : "heap: all of these", heap);
    if (!own) put_bytes(f, "peak: arena and heap", r->plan.total + heap);
    put_bytes(f, "base weights, mapped from the file", b.bytes[MAPPED]);
    put_types(f, &b, MAPPED);
    if (own && r->setup.kernels->memory) put_bytes(f, "free on the device", r->setup.kernels->memory());
    if (!r->session.max_memory) return;
    put_bytes(f, own ? "--max-memory, on the device" : "--max-memory", r->session.max_memory);
    if (r->plan.total + (own ? 0 : heap) > r->session.max_memory) fprintf(f, "  it does not fit\n");
}

void plan_print(FILE *f, const struct run *r, double seconds)
{
    const struct lora_plan *p = &r->plan;
    const struct lora_sizes *z = &r->setup.sizes;
    int L = r->setup.model->config.L, kept = z->keep < 0 || z->keep > L ? L : z->keep;
    long long parameters = config_parameters(&r->setup.model->config), trained = r->adapter ? (long long)r->adapter->size : parameters;
    char activations[64];
    snprintf(activations, sizeof activations, "activations, %s%d of %d layers kept", kept < L ? "at least " : "", kept, L);
    fprintf(f, "parameters: %lld; %lld to train (%.2f %%)\n", parameters, trained,
            100 * (double)trained / (double)parameters);
    fprintf(f, "plan, in bytes:\n");
    put_bytes(f, "copies of base weights", p->weights);
    put_bytes(f, "trained weights", p->trainable);
    put_bytes(f, "gradients", p->gradients);
    put_bytes(f, "moments of the optimizer", p->moments);
    put_bytes(f, activations, p->activations);
    put_bytes(f, "workspace", p->workspace);
    put_bytes(f, r->setup.kernels->own_memory ? "on the device: all of these" : "arena: all of these", p->total);
    put_bytes(f, "moments, mapped from a file", p->paged);
    put_rest(f, r);
    fprintf(f, "steps: %lld (%lld an epoch), %lld of them warm-up; %d rows a step, packs of at most %d tokens\n",
            r->total, r->steps.per_epoch, r->warmup, r->steps.per_step, z->N);
    fprintf(f, "tokens: %lld an epoch, %lld of them targets; %lld are computed in all steps, shared beginnings once\n",
            r->data.report.tokens, r->data.report.targets, r->steps.computed);
    if (seconds >= 0) {
        fprintf(f, "time: about ");
        put_time(f, seconds);
        fprintf(f, " for the products of all steps, by a short timing of one (%s, %d thread%s)\n",
                r->setup.kernels->name, r->setup.threads, r->setup.threads > 1 ? "s" : "");
    }
    fflush(f);
}

/* ---- the job ---- */

static int run(void *settings, struct lora_error *err)
{
    struct train_settings *set = settings;
    struct run r;
    int code = train_check(&job_plan, set, 0);
    if (code) return code;
    set->dry_run = 1;
    if (!(code = run_open(&r, set, err))) plan_print(stdout, &r, plan_seconds(&r));
    run_close(&r);
    return code;
}

const struct job job_plan = {
    "plan", "what a training run would take: memory by purpose, steps, time",
    "--model M [--data D] [options of train]; a config.json is model enough", train_options, common_options,
    sizeof train_defaults, &train_defaults, run
};
