/* test_whole.c - whole models on a table with memory of its own, beside the CPU: losses, every gradient, steps of training, logits
 * through the cache, and a run that goes from the CPU to the table and back. Bounds are ten times what the float reference
 * (under --compute bf16: the reference that rounds the same operands) deviates from the double one.
 *
 *     test_whole [BACKEND [STEPS]]     a name or a path; without: the CUDA kernels over the emulator, and few steps */
#include "test.h"
#include "rounded.h"
#include "tiny.h"

enum { ROWS = 5, LENGTH = 24, TARGETS = 96, MOST_STEPS = 20 };

/* ---- models: each family's shape, each kind of base ---- */

struct kind {
    const char *name;
    void (*shape)(struct config *c);
    int base, twice;            /* the linears' type; its scales quantised too */
    double dropout;
    int full, optim, keep, share;
};

static void llama(struct config *c) { c->tied = 0; }
static void tied(struct config *c) { c->tied = 1; }
static void qwen2(struct config *c) { c->qkv_bias = 1; c->NKV = 1; }
static void qwen3(struct config *c) { c->qk_norm = 1; c->HS = 10; }
static void phi3(struct config *c) { c->fused = 1; c->NKV = 4; }
static void mistral(struct config *c) { c->window = 5; c->L = 3; }
static void blocks(struct config *c) { c->C = 32; c->HS = 8; c->F = 64; c->o_bias = c->mlp_bias = 1; }

static const struct kind kinds[] = {
    { "llama, f32", llama, TYPE_F32, 0, 0, 0, OPTIM_ADAMW, -1, 0 },
    { "llama with its embedding as head, NF4 twice, beginnings shared", tied, TYPE_NF4, 1, 0, 0, OPTIM_ADAMW, -1, 1 },
    { "qwen2, bf16, a layer recomputed", qwen2, TYPE_BF16, 0, 0, 0, OPTIM_ADAMW, 1, 1 },
    { "qwen3, int8, moments in 8 bits", qwen3, TYPE_INT8, 0, 0, 0, OPTIM_ADAMW8BIT, -1, 0 },
    { "phi3, FP4, dropout", phi3, TYPE_FP4, 0, 0.2, 0, OPTIM_ADAMW, -1, 0 },
    { "mistral, f16, all recomputed", mistral, TYPE_F16, 0, 0, 0, OPTIM_ADAMW, 0, 0 },
    { "llama with all biases, Q8_0 in GGUF's order", blocks, TYPE_Q8_0, 0, 0, 0, OPTIM_ADAMW, -1, 1 },
    { "llama, every weight trained", llama, TYPE_F32, 0, 0, 1, OPTIM_ADAMW, -1, 0 }
};

/* Q8_0 of numbers: blocks of a half, the scale, and 32 bytes. */
static void to_q8_0(unsigned char *p, const float *x, size_t n)
{
    size_t i, j;
    for (i = 0; i < n; i += 32, p += 34) {
        float most = 0;
        uint16_t h;
        for (j = 0; j < 32; j++) most = fmaxf(most, fabsf(x[i + j]));
        h = f32_to_f16(most / 127);
        memcpy(p, &h, 2);
        for (j = 0; j < 32; j++) p[2 + j] = (unsigned char)(signed char)lrintf(x[i + j] / f16_to_f32(h));
    }
}

/* The matrix in another type, in memory of its own. */
static void convert(struct weight *w, const struct kind *k, int rotary, int HS)
{
    const struct quantise how = { k->base, 32, k->twice };
    const float *x = (const float *)w->data;
    size_t n = (size_t)w->rows * (size_t)w->cols, i;
    struct weight made = *w;
    unsigned char *p;
    if (k->base == TYPE_NF4 || k->base == TYPE_FP4 || k->base == TYPE_INT8) {
        if (weight_quantise(&made, &how, w->rows, w->cols, weight_row, w, 1, "test", NULL)) abort();
        *w = made;
        return;
    }
    if (!(p = malloc(4 * n + 1))) abort();
    for (i = 0; i < n; i++) {
        uint16_t h = k->base == TYPE_F16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
        if (k->base == TYPE_F16 || k->base == TYPE_BF16) memcpy(p + 2 * i, &h, 2);
    }
    if (k->base == TYPE_Q8_0) to_q8_0(p, x, n);
    w->type = k->base;
    w->data = p;
    if (k->base == TYPE_Q8_0 && rotary) w->head_rows = HS;
}

static void model_of(struct tiny *t, const struct kind *k)
{
    struct config c = tiny_config();
    int id, layer;
    k->shape(&c);
    tiny_open(t, &c, 11);
    for (layer = 0; layer < c.L && k->base != TYPE_F32; layer++)
        for (id = 0; id < T_COUNT; id++)
            if (tensor_present(&c, id) && tensor_specs[id].linear)
                convert(&t->model.weights[(size_t)layer * T_COUNT + (size_t)id], k, id == T_WQ || id == T_WK, c.HS);
}

static void model_free(struct tiny *t, const struct kind *k)
{
    size_t i;
    for (i = 0; i < (size_t)t->model.config.L * T_COUNT && k->base != TYPE_F32; i++) {
        struct weight *w = &t->model.weights[i];
        if (w->q) weight_free(w);
        else if (w->type == k->base) free((void *)w->data);
    }
    tiny_close(t);
}

static struct adapter *make_adapter(const struct config *c, double dropout)
{
    struct adapter_settings s = { .r = 3, .alpha = 6, .dropout = dropout, .target_modules = "all-linear",
                                  .rank_pattern = "down_proj=9" };
    struct adapter *a = NULL;
    size_t i;
    if (adapter_new(&a, c, &s, NULL) || adapter_init(a, 1, NULL)) abort();
    for (i = 0; i < a->size; i++) a->values[i] += (float)(0.1 * random_normal(5, i));
    return a;
}

/* ---- runs ---- */

/* Losses and gradients of one pack, losses of steps and what they end in, logits of a prompt in two parts. */
struct outcome {
    int targets, steps;
    size_t n, V;
    double losses[TARGETS], step[MOST_STEPS], logits[2 * 128];
    double *gradient, *trained;
};

static void make_pack(struct pack *p, int V, int share, int adapter)
{
    static const int lengths[ROWS] = { 17, 9, 8, 11, 4 };
    struct pack_input rows[ROWS];
    unsigned char mask[LENGTH];
    int ids[ROWS][LENGTH], i, t;
    for (t = 0; t < LENGTH; t++) mask[t] = (unsigned char)(t > 2);
    for (i = 0; i < ROWS; i++) {        /* the first three begin alike */
        for (t = 0; t < lengths[i]; t++)
            ids[i][t] = (int)(random_bits(91, (uint64_t)(100 * (i < 3 && t < 6 ? 0 : i) + t)) % (uint64_t)V);
        memset(&rows[i], 0, sizeof rows[i]);
        rows[i].ids = ids[i];
        rows[i].mask = mask;
        rows[i].n = lengths[i];
        rows[i].visit = i;
    }
    if (pack_rows(p, rows, ROWS, adapter, share, NULL) || pack_finish(p, NULL)) abort();
}

static struct lora *must_open(const struct lora_setup *s)
{
    struct lora_error err = { 0 };
    struct lora *l = NULL;
    if (lora_open(&l, s, &err)) {
        CHECK(0, "%s: %s: expected %s, found %s", err.what, err.where, err.expected, err.found);
        exit(test_end());
    }
    return l;
}

static double weighted(const struct pack *p, const double *losses)
{
    double sum = 0, all = 0;
    int t;
    for (t = 0; t < p->T; t++) {
        sum += (double)p->target_weight[t] * losses[t];
        all += (double)p->target_weight[t];
    }
    return sum / all;
}

/* All that a run has learnt, to a lora of the same kind on another table. */
static void hand_over(struct lora *to, const struct lora *from)
{
    int b;
    for (b = LORA_PARAMETERS; b <= LORA_ABSMAX2; b++) {
        size_t n = lora_buffer_size(from, b);
        double *x = malloc((n + 1) * sizeof *x);
        if (!x) abort();
        if (b == LORA_GRADIENTS || !n) { free(x); continue; }
        lora_get64(from, b, x);
        lora_set64(to, b, x);
        free(x);
    }
    for (; b <= LORA_CODES2; b++) {
        unsigned char *codes = malloc(lora_buffer_size(from, b) + 1);
        if (!codes) abort();
        lora_get_codes(from, b, codes);
        CHECK(!lora_set_codes(to, b, codes));
        free(codes);
    }
    lora_set_steps(to, lora_steps(from));
}

static void train_steps(struct lora *l, const struct pack *p, struct outcome *o, int from, int to)
{
    static const struct lora_hyper h = { 0.01, 0.9, 0.999, 1e-8, 0.01, 1 };
    struct lora_error err = { 0 };
    double losses[TARGETS], norm;
    int i, bad;
    for (i = from; i < to; i++) {
        bad = lora_train(l, p, 1.0 / p->T, losses, NULL, &err) || lora_step(l, &h, &norm, &err);
        CHECK(!bad, "step %d: %s: %s: %s", i + 1, err.what, err.where, err.found);
        if (bad) return;
        o->step[i] = weighted(p, losses);
    }
}

/* Two sequences of 7 tokens, 4 and then 3, the second behind a token of the first's. */
static void through_cache(struct lora_setup s, struct outcome *o)
{
    struct lora *l;
    struct pack p = { 0 };
    float logits[2 * 128];
    int ids[2][7], i, t, k, n;
    static const int rows[2] = { 2, 5 };
    s.sizes.backward = 0;
    s.sizes.keys = 16;
    s.optim = OPTIM_ADAMW;
    s.full = 0;
    l = must_open(&s);
    for (i = 0; i < 2; i++) for (t = 0; t < 7; t++) ids[i][t] = (int)(random_bits(17, (uint64_t)(9 * i + t)) % o->V);
    for (n = 4; n <= 7; n += 3) {
        k = n == 4 ? 4 : 3;
        pack_clear(&p);
        for (i = 0; i < 2; i++) CHECK(!pack_cached(&p, ids[i] + n - k, k, 8 * i, n, -1, 0, s.n_adapters ? 0 : -1, NULL, NULL));
        CHECK(!pack_finish(&p, NULL) && !lora_forward(l, &p, NULL));
    }
    CHECK(!lora_logits(l, rows, 2, logits, NULL));
    for (i = 0; i < 2 * (int)o->V; i++) o->logits[i] = logits[i];
    pack_free(&p);
    lora_close(l);
}

/* other: the table that takes over in the middle of the steps and hands back for the last; NULL: none does. */
static struct outcome run(const struct tiny *t, const struct kind *kind, const struct kernels *k, const struct kernels *other,
                          int compute, int steps)
{
    struct outcome o = { 0 };
    struct adapter *a = kind->full ? NULL : make_adapter(&t->model.config, kind->dropout);
    struct lora_setup s = { .kernels = k, .threads = 1, .compute = compute, .model = &t->model, .adapters = &a,
                            .n_adapters = a != NULL, .full = kind->full, .seed = 3, .optim = kind->optim };
    struct pack p = { 0 };
    struct lora *l, *l2;
    make_pack(&p, t->model.config.V, kind->share, kind->full ? -1 : 0);
    lora_sizes_raise(&s.sizes, &p);
    s.sizes.backward = 1;
    s.sizes.keep = kind->keep;
    l = must_open(&s);
    o.V = (size_t)t->model.config.V;
    o.targets = p.T;
    o.steps = steps;
    o.n = lora_trained_size(l);
    o.gradient = malloc(2 * o.n * sizeof *o.gradient);
    if (!o.gradient || p.T > TARGETS || o.V > 128) abort();
    o.trained = o.gradient + o.n;
    CHECK(!lora_train(l, &p, 1.0 / p.T, o.losses, NULL, NULL));
    lora_get64(l, LORA_GRADIENTS, o.gradient);
    lora_zero_gradients(l);
    train_steps(l, &p, &o, 0, other ? steps / 3 : steps);
    if (other) {
        struct lora_setup there = s;
        there.kernels = other;
        l2 = must_open(&there);
        hand_over(l2, l);
        train_steps(l2, &p, &o, steps / 3, 2 * steps / 3);
        hand_over(l, l2);
        lora_close(l2);
        train_steps(l, &p, &o, 2 * steps / 3, steps);
    }
    lora_get64(l, LORA_PARAMETERS, o.trained);
    lora_close(l);
    through_cache(s, &o);
    pack_free(&p);
    adapter_free(a);
    return o;
}

/* ---- comparing ---- */

static double farthest(const double *a, const double *b, size_t n)
{
    double most = 0;
    size_t i;
    for (i = 0; i < n; i++) most = fmax(most, fabs(a[i] - b[i]));
    return most;
}

/* Ten times the reference's own deviation, and what the goldens allow beside it: `least` of the largest number. */
static void hold(const char *what, const double *exact, const double *reference, const double *tried, size_t n, double least)
{
    struct worst w = { 0 };
    double bound = 10 * farthest(exact, reference, n), largest = 0;
    size_t i;
    for (i = 0; i < n; i++) largest = fmax(largest, fabs(exact[i]));
    if (!(bound >= least * largest)) bound = least * largest;
    for (i = 0; i < n; i++) worst_add(&w, fabs(tried[i] - exact[i]), bound, i);
    CHECK_WORST(w, what);
    if (n > 3) CHECK(largest > 0, "%s: nothing but zeros", what);
}

static void hold_all(const struct outcome *exact, const struct outcome *reference, const struct outcome *tried)
{
    hold("losses", exact->losses, reference->losses, tried->losses, (size_t)exact->targets, 1e-5);
    hold("gradients", exact->gradient, reference->gradient, tried->gradient, exact->n, 1e-4);
    hold("losses of the steps", exact->step, reference->step, tried->step, (size_t)exact->steps, 1e-5);
    hold("what they end in", exact->trained, reference->trained, tried->trained, exact->n, 1e-4);
    hold("logits through the cache", exact->logits, reference->logits, tried->logits, 2 * exact->V, 1e-4);
}

static int same_bits(const struct outcome *a, const struct outcome *b)
{
    return !memcmp(a->losses, b->losses, sizeof a->losses) && !memcmp(a->step, b->step, sizeof a->step)
        && !memcmp(a->logits, b->logits, sizeof a->logits) && !memcmp(a->gradient, b->gradient, 2 * a->n * sizeof *a->gradient);
}

/* quick: not again, and not handed over, but for one kind each. */
static void test_kind(const struct kind *kind, const struct kernels *k, int compute, int steps, int quick)
{
    struct kernels rounding = rounding_reference();
    struct kind kept = *kind;
    struct tiny t;
    struct outcome exact, reference, tried, again, mixed;
    char name[128];
    snprintf(name, sizeof name, "%s: %s%s", k->name, kind->name, compute == COMPUTE_BF16 ? ", in bf16" : "");
    test_begin(name);
    model_of(&t, kind);
    exact = run(&t, kind, &kernels_ref64, NULL, COMPUTE_F32, steps);
    reference = run(&t, kind, compute == COMPUTE_BF16 ? &rounding : &kernels_ref, NULL, compute, steps);
    tried = run(&t, kind, k, NULL, compute, steps);
    hold_all(&exact, &reference, &tried);
    CHECK(tried.step[steps - 1] < tried.step[0], "nothing is learnt: %g to %g", tried.step[0], tried.step[steps - 1]);
    if (!quick || kind == &kinds[0]) {
        kept.keep = kind->keep < 0 ? 0 : -1;
        again = run(&t, &kept, k, NULL, compute, steps);
        CHECK(same_bits(&tried, &again), "other bits a second time, with other layers kept");
        free(again.gradient);
    }
    if (compute == COMPUTE_F32 && (!quick || kind->optim == OPTIM_ADAMW8BIT)) {
        mixed = run(&t, kind, &kernels_ref, k, compute, steps);
        hold("losses, from the CPU to it and back", exact.step, reference.step, mixed.step, (size_t)steps, 1e-5);
        free(mixed.gradient);
    }
    free(exact.gradient);
    free(reference.gradient);
    free(tried.gradient);
    model_free(&t, kind);
}

int main(int argc, char **argv)
{
    char path[1024], why[256] = "";
    const char *slash = strrchr(argv[0], '/');
    struct lora_error err = { 0 };
    const struct kernels *k;
    int steps = argc > 2 ? atoi(argv[2]) : argc > 1 ? MOST_STEPS : 2, quick = argc < 2;
    int fewer = quick && test_emulated();       /* an emulator over an emulator */
    size_t i;
    snprintf(path, sizeof path, "%.*scuda_emulated.so", slash ? (int)(slash + 1 - argv[0]) : 0, argv[0]);
    k = kernels_find(argc > 1 ? argv[1] : path, &err);
    if (!k) {
        test_skip(argc > 1 ? argv[1] : "whole models on the CUDA kernels, emulated", err.found[0] ? err.found : err.what);
        return test_end();
    }
    if (steps < 2 || steps > MOST_STEPS) steps = MOST_STEPS;
    for (i = 0; i < sizeof kinds / sizeof *kinds; i += fewer ? 4 : 1) test_kind(&kinds[i], k, COMPUTE_F32, steps, quick);
    if (fewer) test_skip("the other kinds of models", "too slow under an emulator");
    for (i = (size_t)quick; !fewer && i < (quick ? 2 : 3); i++) {
        if (k->has_bf16 && k->has_bf16(why, sizeof why)) test_kind(&kinds[i], k, COMPUTE_BF16, steps, quick);
        else test_skip("in bf16", why[0] ? why : "the table has none");
    }
    return test_end();
}
