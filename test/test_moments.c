/* test_moments.c - moments in 8 bits against bitsandbytes' AdamW8bit, and training with each --optim: the
 * plan's bytes, threads, going on from a state, a file for the moments, numbers that are not finite. */
#include "test.h"
#include "tiny.h"
#include "verify/moments.h"
#include "../formats/safetensors.h"
#include "../optim.h"

#include <unistd.h>

static struct lora_error err;
/* ---- bitsandbytes' figures: test/goldens/make_optim.py ---- */

enum { N = 4096 + 77, STEPS = 20, BLOCKS = 17 };

/* After some step: parameters, and both moments as codes and scales. */
struct state {
    float p[N], scale[2][BLOCKS];
    unsigned char codes[2][N];
};

static float map[2][256];

static double uniform(uint64_t bits) { return ((double)(bits >> 40) - 8388608) / 8388608; }

static void golden_gradient(float *g, int step)
{
    int i;
    for (i = 0; i < N; i++) {
        uint64_t bits = random_bits((uint64_t)step, (uint64_t)i);
        int block = i / 256;
        g[i] = (float)ldexp(uniform(bits), -(int)(bits & 15) - block);
        if (block == 3 || (block == 5 && step == 1)) g[i] = 0;
    }
}

static struct adamw_step golden_step(int step)
{
    struct adamw_step s = { 0.01, 0.9, 0.999, 1e-8, 0.1, 0, 0, 1 };
    s.correction1 = 1 - pow(s.beta1, step);
    s.correction2 = 1 - pow(s.beta2, step);
    return s;
}

static void start_state(struct state *s)
{
    int i;
    memset(s, 0, sizeof *s);
    for (i = 0; i < N; i++) s->p[i] = (float)uniform(random_bits(0, (uint64_t)i));
}

static int read_tensor(void *out, const struct safetensors *f, int step, const char *part, size_t bytes)
{
    char name[32];
    const struct st_tensor *t;
    snprintf(name, sizeof name, "%d.%s", step, part);
    t = safetensors_find(f, name);
    if (!t || t->bytes != bytes) return -1;
    memcpy(out, t->data, bytes);
    return 0;
}

static int read_state(struct state *s, const struct safetensors *f, int step)
{
    return read_tensor(s->p, f, step, "p", sizeof s->p)
        || read_tensor(s->codes[0], f, step, "m", N) || read_tensor(s->scale[0], f, step, "mmax", sizeof *s->scale)
        || read_tensor(s->codes[1], f, step, "v", N) || read_tensor(s->scale[1], f, step, "vmax", sizeof *s->scale);
}

/* One step on a table. */
static void table_step(const struct kernels *table, struct state *s, int step)
{
    static float g[N];
    struct adamw_step how = golden_step(step);
    struct kernel_ctx c = { .threads = 2 };
    struct kernels k;
    buf *p, *scale[2], *gradient;
    int i;
    kernels_complete(&k, table);
    CHECK(!k.open(&c));
    p = k.alloc(&c, N * (size_t)k.elem);
    gradient = k.alloc(&c, N * (size_t)k.elem);
    golden_gradient(g, step);
    k.up(&c, p, s->p, N);
    k.up(&c, gradient, g, N);
    for (i = 0; i < 2; i++) {
        scale[i] = k.alloc(&c, BLOCKS * (size_t)k.elem);
        k.up(&c, scale[i], s->scale[i], BLOCKS);
    }
    k.adamw8bit(&c, p, s->codes[0], scale[0], s->codes[1], scale[1], gradient, N, &how);
    k.down(&c, s->p, p, N);
    for (i = 0; i < 2; i++) {
        k.down(&c, s->scale[i], scale[i], BLOCKS);
        k.release(&c, scale[i]);
    }
    k.release(&c, p);
    k.release(&c, gradient);
    k.close(&c);
}

/* What the step gives in double, and how far from it codes and numbers may be. */
struct bounds {
    double p[N], p_error[N], scale[2][BLOCKS], scale_error[2][BLOCKS];
    int code[2][N], slack[2][N];
};

static void bounds_of(struct bounds *b, const struct state *before, int step, double times)
{
    static float g[N];
    struct adamw_step how = golden_step(step);
    double x[2][256], error[2][256];
    int i, k, j, n;
    golden_gradient(g, step);
    for (k = 0; k < BLOCKS; k++) {
        n = N - k * 256 < 256 ? N - k * 256 : 256;
        for (j = 0; j < n; j++) {
            float m, v;
            struct stepped r;
            i = k * 256 + j;
            m = map[0][before->codes[0][i]] * before->scale[0][k];
            v = map[1][before->codes[1][i]] * before->scale[1][k];
            r = step_number(before->p[i], m, v, g[i], &how, ldexp(1, -24));
            b->p[i] = r.p;
            b->p_error[i] = times * r.p_error;
            x[0][j] = r.m; error[0][j] = r.m_error;
            x[1][j] = r.v; error[1][j] = r.v_error;
        }
        for (j = 0; j < 2; j++)
            b->scale[j][k] = encode_numbers(b->code[j] + k * 256, b->slack[j] + k * 256, &b->scale_error[j][k], x[j],
                                            error[j], n, times, map[j]);
    }
}

/* The state is within its bounds; returns how many codes are not the nearest ones of the exact moments. */
static int check_state(const struct bounds *b, const struct state *s, const char *whose, struct worst *w)
{
    int i, j, off = 0, wrong = 0;
    for (i = 0; i < N; i++) worst_add(w, fabs(s->p[i] - b->p[i]), b->p_error[i], (size_t)i);
    for (j = 0; j < 2; j++) {
        for (i = 0; i < BLOCKS; i++)
            worst_add(w, fabs(s->scale[j][i] - b->scale[j][i]), b->scale_error[j][i], (size_t)i);
        for (i = 0; i < N; i++) {
            int d = abs(s->codes[j][i] - b->code[j][i]);
            off += d != 0;
            wrong += d > b->slack[j][i];
        }
    }
    CHECK(!wrong, "%s: %d codes are wrong", whose, wrong);
    return off;
}

static int differing(const struct state *a, const struct state *b)
{
    int i, j, n = 0;
    for (j = 0; j < 2; j++) for (i = 0; i < N; i++) n += a->codes[j][i] != b->codes[j][i];
    return n;
}

/* Each step from bitsandbytes' own state before it: theirs and ours are one rounding of the same numbers. */
static void check_steps(const struct kernels *k, const struct safetensors *f)
{
    static const int before[] = { 0, 1, 19 };
    static struct state start, theirs, ours;
    static struct bounds b;
    struct worst w[2] = { { 0, 0, 0, 0, 0 }, { 0, 0, 0, 0, 0 } };
    char name[64], why[128];
    int i, off[2], differ;
    if (!k->usable(why, sizeof why)) {
        test_skip(k->name, why);
        return;
    }
    snprintf(name, sizeof name, "%s: AdamW8bit as in bitsandbytes", k->name);
    test_begin(name);
    for (i = 0; i < 3; i++) {
        if (before[i]) CHECK(!read_state(&start, f, before[i]));
        else start_state(&start);
        CHECK(!read_state(&theirs, f, before[i] + 1));
        bounds_of(&b, &start, before[i] + 1, 1);
        ours = start;
        table_step(k, &ours, before[i] + 1);
        off[0] = check_state(&b, &theirs, "theirs", &w[0]);
        off[1] = check_state(&b, &ours, "ours", &w[1]);
        differ = differing(&ours, &theirs);
        printf("  step %d: of %d codes %d of theirs and %d of ours are not the nearest, %d differ\n", before[i] + 1,
               2 * N, off[0], off[1], differ);
    }
    CHECK_WORST(w[0], "theirs: parameters and scales");
    CHECK_WORST(w[1], "ours: parameters and scales");
}

/* 20 steps alone. A code may differ from theirs only where some step came so close to a midpoint that the
 * roundings until then, those of one step at each, could decide. */
static void check_run(const struct safetensors *f)
{
    static struct state ours, theirs;
    static struct bounds b;
    static char near[N];
    static double error[N];
    struct worst w = { 0, 0, 0, 0, 0 };
    int step, i, n_near = 0, wrong = 0;
    test_begin("20 steps of AdamW8bit end where bitsandbytes' do");
    start_state(&ours);
    for (step = 1; step <= STEPS; step++) {
        bounds_of(&b, &ours, step, step);
        table_step(&kernels_ref, &ours, step);
        for (i = 0; i < N; i++) {
            near[i] |= b.slack[0][i] || b.slack[1][i];
            error[i] += b.p_error[i];
        }
    }
    CHECK(!read_state(&theirs, f, STEPS));
    for (i = 0; i < N; i++) {
        n_near += near[i];
        if (near[i]) continue;
        wrong += ours.codes[0][i] != theirs.codes[0][i] || ours.codes[1][i] != theirs.codes[1][i];
        worst_add(&w, fabs((double)ours.p[i] - (double)theirs.p[i]), 2 * error[i], (size_t)i);
    }
    CHECK(!wrong, "%d numbers have other codes", wrong);
    CHECK(n_near < N / 20, "%d of %d came near a midpoint", n_near, N);
    CHECK_WORST(w, "parameters");
    printf("  %d of %d codes differ; %d of %d numbers came near a midpoint\n", differing(&ours, &theirs), 2 * N, n_near, N);
}

static void check_goldens(void)
{
    struct safetensors f;
    int i;
    dynamic_map(map[0], 1);
    dynamic_map(map[1], 0);
    test_begin("bitsandbytes' figures are there");
    CHECK_DONE(safetensors_open(&f, "test/goldens/data/adamw8bit.safetensors", &err));
    if (test_bad) return;
    for (i = 0; kernels_all[i]; i++) check_steps(kernels_all[i], &f);
    check_run(&f);
    safetensors_close(&f);
}

/* ---- training ---- */

/* Tensors of fewer than 4096 numbers, of just as many, and of more whose last block is short. */
static struct config small_config(void)
{
    struct config c = tiny_config();
    c.C = 64; c.V = 101; c.NH = 4; c.NKV = 2; c.HS = 16; c.F = 99;
    return c;
}

struct work {
    struct tiny tiny;
    struct adapter *adapter;
    struct lora_setup setup;
    struct pack pack;
};

static void work_open(struct work *w, int full)
{
    struct config c = small_config();
    struct adapter_settings settings;
    int ids[4][12], i, t;
    unsigned char mask[12];
    memset(w, 0, sizeof *w);
    memset(&settings, 0, sizeof settings);
    tiny_open(&w->tiny, &c, 11);
    settings.r = 64;
    settings.alpha = 64;
    settings.target_modules = "all-linear";
    if (!full) {
        CHECK_DONE(adapter_new(&w->adapter, &c, &settings, &err));
        CHECK_DONE(adapter_init(w->adapter, 1, &err));
    }
    for (i = 0; i < 4; i++) {
        for (t = 0; t < 12; t++) ids[i][t] = (int)(random_bits(5, (uint64_t)(i * 12 + t)) % 101);
        memset(mask, 1, sizeof mask);
        CHECK_DONE(pack_row(&w->pack, ids[i], mask, 12, full ? -1 : 0, i, &err));
    }
    CHECK_DONE(pack_finish(&w->pack, &err));
    w->setup.kernels = kernels_find("auto", NULL);
    w->setup.threads = 1;
    w->setup.model = &w->tiny.model;
    w->setup.adapters = &w->adapter;
    w->setup.n_adapters = !full;
    w->setup.full = full;
    w->setup.sizes.backward = 1;
    w->setup.sizes.keep = -1;
    lora_sizes_raise(&w->setup.sizes, &w->pack);
}

static void work_close(struct work *w)
{
    pack_free(&w->pack);
    adapter_free(w->adapter);
    tiny_close(&w->tiny);
}

static const struct lora_hyper hyper = { 5e-4, 0.9, 0.999, 1e-8, 0.01, 1 };

/* Some steps; the mean loss before the last. */
static double steps(struct lora *l, struct work *w, int n)
{
    double losses[64], norm, sum = 0;
    int i;
    for (; n > 0; n--) {
        CHECK_DONE(lora_train(l, &w->pack, 1.0 / w->pack.T, losses, NULL, &err));
        CHECK_DONE(lora_step(l, &hyper, &norm, &err));
    }
    for (i = 0; i < w->pack.T; i++) sum += losses[i];
    return sum / w->pack.T;
}

static struct lora *start(struct work *w, const char *backend, int optim, int threads)
{
    struct lora *l = NULL;
    w->setup.kernels = kernels_find(backend, NULL);
    w->setup.optim = optim;
    w->setup.threads = threads;
    CHECK_DONE(lora_open(&l, &w->setup, &err));
    if (!l) exit(1);
    return l;
}

/* All that a step changes, of all buffers, in one piece to be freed. */
static double *snapshot(const struct lora *l, size_t *n)
{
    size_t total = 0, size, i;
    double *out;
    unsigned char *codes;
    int b;
    for (b = LORA_PARAMETERS; b <= LORA_CODES2; b++) total += lora_buffer_size(l, b);
    out = malloc(total * sizeof *out);
    codes = malloc(total);
    for (*n = 0, b = LORA_PARAMETERS; b <= LORA_CODES2; b++, *n += size) {
        size = lora_buffer_size(l, b);
        if (b < LORA_CODES1) {
            lora_get64(l, b, out + *n);
            continue;
        }
        lora_get_codes(l, b, codes);
        for (i = 0; i < size; i++) out[*n + i] = codes[i];
    }
    free(codes);
    return out;
}

static void check_same(const struct lora *a, const struct lora *b, const char *what)
{
    size_t n, m;
    double *x = snapshot(a, &n), *y = snapshot(b, &m);
    CHECK(n == m && n > 0, "%s: sizes", what);
    CHECK(n == m && !memcmp(x, y, n * sizeof *x), "%s: not the same bytes", what);
    free(x);
    free(y);
}

static size_t whole(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* The plan's bytes, counted again from the table of tensors. */
static void check_plan(struct work *w, const char *backend)
{
    struct lora_plan plain, small, paged;
    struct lora *l = start(w, backend, OPTIM_ADAMW8BIT, 1);
    const struct trained *list;
    size_t codes = 0, blocks = 0, few = 0, elem = (size_t)w->setup.kernels->elem;
    int i, n = lora_trained(l, &list);
    for (i = 0; i < n; i++) {
        size_t count = (size_t)list[i].rows * (size_t)list[i].cols;
        if (count < 4096) few += count;
        else codes += count, blocks += (count + 255) / 256;
    }
    CHECK_DONE(lora_plan(&small, &w->setup, &err));
    w->setup.optim = OPTIM_ADAMW;
    CHECK_DONE(lora_plan(&plain, &w->setup, &err));
    w->setup.optim = OPTIM_PAGED_ADAMW;
    CHECK_DONE(lora_plan(&paged, &w->setup, &err));
    CHECK(codes > 0 && few > 0 && codes + few == lora_trained_size(l), "%zu in 8 bits, %zu not", codes, few);
    CHECK(lora_buffer_size(l, LORA_CODES1) == codes && lora_buffer_size(l, LORA_ABSMAX2) == blocks
          && lora_buffer_size(l, LORA_MOMENT1) == few, "sizes of the buffers");
    CHECK(small.moments == 2 * (whole(few * elem) + whole(blocks * elem) + whole(codes)), "%zu", small.moments);
    CHECK(plain.moments == 2 * whole((codes + few) * elem) && !plain.paged && !small.paged, "%zu", plain.moments);
    CHECK(!paged.moments && paged.paged == plain.moments, "%zu in the arena, %zu in a file", paged.moments, paged.paged);
    CHECK(plain.total - plain.moments == small.total - small.moments && plain.total - plain.moments == paged.total,
          "the rest of the arena");
    printf("  %zu numbers: adamw %zu bytes, adamw8bit %zu\n", codes + few, plain.moments, small.moments);
    lora_close(l);
}

static void check_training(struct work *w, const char *name)
{
    struct lora *l, *other;
    double first, plain, small;
    test_begin(name);
    check_plan(w, "auto");
    check_plan(w, "ref64");
    l = start(w, "auto", OPTIM_ADAMW, 1);
    other = start(w, "auto", OPTIM_PAGED_ADAMW, 2);
    first = steps(l, w, 1);
    steps(other, w, 1);
    plain = steps(l, w, 19);
    steps(other, w, 19);
    check_same(l, other, "paged_adamw");
    lora_close(l);
    lora_close(other);
    l = start(w, "auto", OPTIM_ADAMW8BIT, 1);
    other = start(w, "auto", OPTIM_ADAMW8BIT, 3);
    small = steps(l, w, 20);
    steps(other, w, 20);
    check_same(l, other, "adamw8bit on three threads");
    printf("  loss %.4f; after 20 steps of adamw %.4f, of adamw8bit %.4f\n", first, plain, small);
    CHECK(plain < first / 2, "nothing is learnt");
    CHECK(!!(fabs(small - plain) <= 0.02 * (first - plain)), "adamw8bit ends at %g, adamw at %g", small, plain);
    lora_close(l);
    lora_close(other);
}

/* The parameters after three steps are those of each tensor stepped alone, with moments of its own. */
static void check_layout(struct work *w, const char *name)
{
    struct lora *l = start(w, "auto", OPTIM_ADAMW8BIT, 1);
    struct kernels k;
    struct kernel_ctx c = { .threads = 1 };
    struct lora_hyper h = hyper;
    const struct trained *list;
    size_t n = lora_trained_size(l);
    int i, step, count = lora_trained(l, &list);
    float *p = malloc(n * sizeof *p), *g = malloc(3 * n * sizeof *g);
    test_begin(name);
    kernels_complete(&k, w->setup.kernels);
    h.max_grad_norm = 0;
    lora_get(l, LORA_PARAMETERS, p);
    for (step = 0; step < 3; step++) {
        double losses[64], norm;
        CHECK_DONE(lora_train(l, &w->pack, 1.0 / w->pack.T, losses, NULL, &err));
        lora_get(l, LORA_GRADIENTS, g + (size_t)step * n);
        CHECK_DONE(lora_step(l, &h, &norm, &err));
    }
    for (i = 0; i < count; i++) {
        size_t at = list[i].offset, size = (size_t)list[i].rows * (size_t)list[i].cols;
        int in_8bit = size >= 4096;
        buf *m[2];
        void *codes[2];
        for (step = 0; step < 2; step++) {
            m[step] = k.alloc(&c, size * sizeof(float));
            codes[step] = k.alloc(&c, size);
        }
        for (step = 0; step < 3; step++) {
            struct adamw_step s = { h.learning_rate, h.beta1, h.beta2, h.eps, h.weight_decay, 0, 0, 1 };
            buf *to = (buf *)(p + at);
            const buf *gradient = (const buf *)(g + (size_t)step * n + at);
            s.correction1 = 1 - pow(s.beta1, step + 1);
            s.correction2 = 1 - pow(s.beta2, step + 1);
            if (in_8bit) k.adamw8bit(&c, to, codes[0], m[0], codes[1], m[1], gradient, size, &s);
            else k.adamw(&c, to, m[0], m[1], gradient, size, &s);
        }
        for (step = 0; step < 2; step++) {
            k.release(&c, m[step]);
            k.release(&c, codes[step]);
        }
    }
    lora_get(l, LORA_PARAMETERS, g);
    for (i = 0; i < count; i++)
        CHECK(!memcmp(g + list[i].offset, p + list[i].offset, (size_t)list[i].rows * (size_t)list[i].cols * sizeof *p),
              "%s", list[i].name);
    free(p);
    free(g);
    lora_close(l);
}

/* 5 steps, all buffers into another lora, 5 more: as 10. */
static void check_resume(struct work *w, const char *name)
{
    struct lora *whole_run, *first, *second;
    int b;
    test_begin(name);
    whole_run = start(w, "auto", OPTIM_ADAMW8BIT, 1);
    first = start(w, "auto", OPTIM_ADAMW8BIT, 1);
    second = start(w, "auto", OPTIM_ADAMW8BIT, 2);
    steps(whole_run, w, 10);
    steps(first, w, 5);
    for (b = LORA_PARAMETERS; b <= LORA_CODES2; b++) {
        size_t n = lora_buffer_size(first, b);
        void *values = malloc(n * sizeof(float) + 1);
        if (b < LORA_CODES1) lora_get(first, b, values), lora_set(second, b, values);
        else {
            lora_get_codes(first, b, values);
            CHECK(!lora_set_codes(second, b, values));
        }
        free(values);
    }
    lora_set_steps(second, 5);
    steps(second, w, 5);
    check_same(whole_run, second, "5 + 5 steps");
    lora_close(whole_run);
    lora_close(first);
    lora_close(second);
}

static void check_not_finite(struct work *w)
{
    struct lora *l = start(w, "auto", OPTIM_ADAMW8BIT, 1);
    struct lora_hyper open = hyper;
    size_t n = lora_trained_size(l), i, size;
    float *g = calloc(n, sizeof *g);
    double *before, *after, losses[64], norm;
    test_begin("gradients and moments that are not finite");
    steps(l, w, 1);
    before = snapshot(l, &size);
    g[n / 2] = NAN;
    lora_set(l, LORA_GRADIENTS, g);
    CHECK(lora_step(l, &hyper, &norm, &err) == -1 && !strcmp(err.what, "a gradient is not finite"), "%s", err.what);
    lora_zero_gradients(l);
    after = snapshot(l, &i);
    CHECK(!memcmp(before, after, size * sizeof *before), "a step that is refused changed something");
    /* a square that is no float: found at the next loss */
    open.max_grad_norm = 0;
    for (i = 0; i < n; i++) g[i] = 1e25f;
    for (i = 0; i < 2; i++) {
        lora_set(l, LORA_GRADIENTS, g);
        CHECK_DONE(lora_step(l, &open, &norm, &err));
    }
    CHECK_DONE(lora_train(l, &w->pack, 1, losses, NULL, &err));
    CHECK(!(losses[0] - losses[0] == 0), "the loss is %g", losses[0]);
    CHECK(lora_find_not_finite(l, &w->pack, &err) == -1 && !strcmp(err.what, "a trained tensor is not finite"), "%s",
          err.what);
    free(g);
    free(before);
    free(after);
    lora_close(l);
}

/* ---- the file of paged_adamw ---- */

static void check_pages(struct work *w)
{
    struct kernels own = *kernels_find("ref", NULL);
    struct lora *l = NULL;
    unsigned char *pages;
    size_t i, bytes = 300001;
    char place[] = "/tmp/lora-moments-XXXXXX";
    int sum = 0;
    test_begin("a file for the moments");
    CHECK(mkdtemp(place) != NULL);
    CHECK((pages = pages_open(place, bytes, &err)) != NULL, "%s: %s", err.what, err.found);
    if (!pages) return;
    for (i = 0; i < bytes; i++) sum |= pages[i];
    CHECK(!sum, "not zeros");
    memset(pages, 7, bytes);
    CHECK(!rmdir(place), "the file still has a name");
    CHECK(pages[bytes - 1] == 7);
    pages_close(pages, bytes);
    w->setup.optim = OPTIM_PAGED_ADAMW;
    w->setup.page_directory = place;            /* is gone */
    CHECK(lora_open(&l, &w->setup, &err) == -1 && !l, "no error");
    CHECK(!strcmp(err.what, "cannot make a file for the optimizer's moments") && !strcmp(err.where, place), "%s: %s",
          err.what, err.where);
    w->setup.page_directory = NULL;
    own.own_memory = 1;
    own.name = "mine";
    w->setup.kernels = &own;
    CHECK(lora_open(&l, &w->setup, &err) == -1 && !l && strstr(err.what, "paged_adamw") && !strcmp(err.where, "mine"),
          "%s: %s", err.what, err.where);
}

int main(void)
{
    struct work w;
    check_goldens();
    test_begin("a tiny model");
    work_open(&w, 1);
    check_training(&w, "every weight: plan, 20 steps, threads, pages");
    check_layout(&w, "every weight: each tensor has moments of its own");
    check_resume(&w, "every weight: 5 steps, the buffers taken over, 5 more");
    work_close(&w);
    test_begin("a tiny adapter");
    work_open(&w, 0);
    check_training(&w, "LoRA: plan, 20 steps, threads, pages");
    check_layout(&w, "LoRA: each tensor has moments of its own");
    check_resume(&w, "LoRA: 5 steps, the buffers taken over, 5 more");
    check_not_finite(&w);
    check_pages(&w);
    work_close(&w);
    return test_end();
}
