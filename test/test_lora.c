/* test_lora.c - the whole model: gradients against central differences, and everything that must be
 * equal: packed = separate, prefix shared = not, recomputed = kept, 1 thread = N, cache = no cache. */
#include "model_cases.h"

/* sum of weight * loss with the dropout of training, in double */
static double train_loss(struct lora *l, const struct pack *p, double scale)
{
    double losses[64], sum = 0;
    int t;
    CHECK(!lora_train(l, p, scale, losses, NULL, NULL));
    for (t = 0; t < p->T; t++) sum += losses[t] * (double)p->target_weight[t];
    return sum * scale;
}

/* ---- gradients --------------------------------------------------------------------------------- */

/* The derivative of the loss along direction d of the flat parameters, by central differences of
 * fourth order: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h. */
static double difference(struct lora *l, const struct pack *p, double scale, double *x, const double *d,
                         size_t from, size_t n, double h)
{
    static const double steps[4] = { 1, -1, 2, -2 };
    size_t total = lora_trained_size(l), i;
    double f[4], *y = malloc(total * sizeof *y);
    int side;
    for (side = 0; side < 4; side++) {
        memcpy(y, x, total * sizeof *y);
        for (i = 0; i < n; i++) y[from + i] += steps[side] * h * d[i];
        lora_set64(l, LORA_PARAMETERS, y);
        f[side] = train_loss(l, p, scale);
    }
    free(y);
    lora_set64(l, LORA_PARAMETERS, x);
    return (8 * (f[0] - f[1]) - (f[2] - f[3])) / (12 * h);
}

/* Each trained tensor: about ten entries, two under an emulator, and a random direction
 * through all of it. 1e-6 of the larger of the two numbers, with a floor of 1e-3 of the tensor's
 * largest gradient: below it the difference of two losses near 3 has no digits left. */
static void check_gradients(const char *name, const struct lora_setup *s, const struct pack *p)
{
    struct lora *l = must_open(s);
    const struct trained *list;
    int n = lora_trained(l, &list), i;
    size_t total = lora_trained_size(l), j;
    double *g = malloc(total * sizeof *g), *x = malloc(total * sizeof *x), *d = malloc(total * sizeof *d);
    double scale = 1.0 / p->T;
    struct worst w = { 0, 0, 0, 0, 0 }, dir = { 0, 0, 0, 0, 0 };
    lora_get64(l, LORA_PARAMETERS, x);
    lora_zero_gradients(l);
    train_loss(l, p, scale);
    lora_get64(l, LORA_GRADIENTS, g);
    for (i = 0; i < n; i++) {
        size_t size = (size_t)list[i].rows * (size_t)list[i].cols, from = list[i].offset, step = size / (test_emulated() ? 2 : 10) + 1;
        double largest = 0, dot = 0, one = 1, norm = 0;
        for (j = 0; j < size; j++) if (fabs(g[from + j]) > largest) largest = fabs(g[from + j]);
        CHECK(largest > 0, "%s: no gradient at all", list[i].name);
        for (j = 0; j < size; j += step) {
            double fd = difference(l, p, scale, x, &one, from + j, 1, 3e-4), a = g[from + j];
            double big = fabs(fd) > fabs(a) ? fabs(fd) : fabs(a);
            if (big < 1e-3 * largest) big = 1e-3 * largest;
            worst_add(&w, fabs(fd - a), 1e-6 * big, from + j);
        }
        for (j = 0; j < size; j++) {
            d[j] = random_normal(random_key(5, list[i].name), j);
            dot += d[j] * g[from + j];
            norm += fabs(d[j] * g[from + j]);
        }
        worst_add(&dir, fabs(dot - difference(l, p, scale, x, d, from, size, 1e-4)), 1e-6 * norm, (size_t)i);
    }
    {   /* through the whole model at once */
        double dot = 0, norm = 0;
        for (j = 0; j < total; j++) {
            d[j] = random_normal(random_key(6, "all"), j);
            dot += d[j] * g[j];
            norm += fabs(d[j] * g[j]);
        }
        worst_add(&dir, fabs(dot - difference(l, p, scale, x, d, 0, total, 1e-4)), 1e-6 * norm, 0);
    }
    {
        char label[96];
        snprintf(label, sizeof label, "%s, entries", name);
        CHECK_WORST(w, label);
        snprintf(label, sizeof label, "%s, directions", name);
        CHECK_WORST(dir, label);
    }
    free(g); free(x); free(d);
    lora_close(l);
}

/* Rows where two segments continue one prefix, whose last position predicts two different tokens. */
static void prefix_pack(struct pack *p, const struct rows *r, int adapter)
{
    int prefix, a, b, t;
    CHECK(!pack_segment(p, r->ids[0], 6, -1, adapter, 0, &prefix, NULL));
    CHECK(!pack_segment(p, r->ids[1], 4, prefix, adapter, 1, &a, NULL));
    CHECK(!pack_segment(p, r->ids[2], 7, prefix, adapter, 2, &b, NULL));
    CHECK(!pack_target(p, prefix, 3, 4, 2, NULL));      /* in the prefix: counts for both rows */
    CHECK(!pack_target(p, prefix, 5, r->ids[1][0], 1, NULL));
    CHECK(!pack_target(p, prefix, 5, r->ids[2][0], 1, NULL));
    for (t = 0; t < 4; t++) CHECK(!pack_target(p, a, t, r->ids[1][t + 1], 1, NULL));
    for (t = 0; t < 7; t += 2) CHECK(!pack_target(p, b, t, r->ids[2][t + 1], 1, NULL));
    CHECK(!pack_finish(p, NULL));
}

static void test_gradients(void)
{
    struct pack p, q;
    int i;
    memset(&p, 0, sizeof p);
    memset(&q, 0, sizeof q);
    for (i = 0; i < VARIANTS; i++) {
        struct config c = variant_config(i);
        struct tiny t;
        struct adapter *a;
        struct lora_setup s;
        struct rows r;
        char name[64];
        tiny_open(&t, &c, 11);
        r = make_rows(c.V);
        pack_clear(&p);
        rows_pack(&p, &r, 0, r.n, 0);
        pack_clear(&q);
        prefix_pack(&q, &r, 0);
        a = make_adapter(&c, 3, 0, "all-linear");
        s = make_setup(&t.model, &a, "ref64");
        snprintf(name, sizeof name, "gradients: LoRA, %s", variant_names[i]);
        test_begin(name);
        check_gradients(name + 11, &s, &p);
        if (i == 0) {
            test_begin("gradients: LoRA over a shared prefix");
            check_gradients("shared prefix", &s, &q);
            adapter_free(a);
            a = make_adapter(&c, 3, 0.3, "all-linear");
            s = make_setup(&t.model, &a, "ref64");
            test_begin("gradients: LoRA with dropout");
            check_gradients("dropout", &s, &p);
            adapter_free(a);
            a = make_adapter(&c, 3, 0, "up_proj,q_proj");
            s = make_setup(&t.model, &a, "ref64");
            test_begin("gradients: LoRA on two modules");
            check_gradients("q and up", &s, &p);
            adapter_free(a);
            a = make_adapter(&c, 3, 0, "down_proj");
            s = make_setup(&t.model, &a, "ref64");
            test_begin("gradients: LoRA on the last linear of a layer, nothing trained below it");
            check_gradients("down", &s, &p);
        }
        if (c.fused) {
            adapter_free(a);
            a = make_adapter(&c, 3, 0, "gate_up_proj");
            s = make_setup(&t.model, &a, "ref64");
            test_begin("gradients: LoRA on one fused module");
            check_gradients("gate and up", &s, &p);
        }
        if (i < 5) {
            s = make_setup(&t.model, NULL, "ref64");
            pack_clear(&p);
            if (i) rows_pack(&p, &r, 0, r.n, -1);
            else prefix_pack(&p, &r, -1);
            snprintf(name, sizeof name, "gradients: full, %s", variant_names[i]);
            test_begin(name);
            check_gradients(name + 11, &s, &p);
        }
        adapter_free(a);
        tiny_close(&t);
    }
    pack_free(&p);
    pack_free(&q);
}

/* Rows that begin alike and are given other ids to learn: each target once for all rows that have it, and a row's own once. */
static void test_labels(void)
{
    enum { LENGTH = 5, ROWS = 3 };
    static const int ids[LENGTH] = { 3, 4, 5, 6, 7 };
    static const int labels[ROWS][LENGTH] = { { 0, 11, 5, 6, 12 }, { 0, 4, 5, 13, 12 }, { 0, 11, 5, 6, 7 } };
    static const unsigned char mask[LENGTH] = { 0, 1, 1, 1, 1 };
    struct pack_input in[ROWS];
    struct pack p = { 0 };
    float weight[LENGTH][20] = { { 0 } };
    int i, t;
    test_begin("labels of rows that share their inputs");
    for (i = 0; i < ROWS; i++) {
        in[i].ids = ids;
        in[i].mask = mask;
        in[i].n = LENGTH;
        in[i].visit = i;
        in[i].labels = labels[i];
    }
    CHECK(!pack_rows(&p, in, ROWS, -1, 1, NULL) && !pack_finish(&p, NULL) && p.N == LENGTH - 1 && p.S == 1, "%d tokens", p.N);
    for (t = 0; t < p.T; t++) weight[p.target_row[t] + 1][p.target_id[t]] += p.target_weight[t];
    for (i = 0; i < ROWS; i++) for (t = 1; t < LENGTH; t++) weight[t][labels[i][t]] -= 1;
    for (t = 0; t < LENGTH; t++) for (i = 0; i < 20; i++) CHECK(weight[t][i] == 0, "position %d, id %d: %g too many", t, i, (double)weight[t][i]);
    pack_free(&p);
}

/* A segment that says of its prefix what is not so. */
static void test_refused_packs(void)
{
    static const int ids[4] = { 3, 4, 5, 6 };
    struct lora_error err = { "", "", "", "", "" };
    struct pack p = { 0 };
    int root;
    test_begin("a pack whose positions do not go on from a prefix is refused");
    CHECK(!pack_cached(&p, ids, 3, 0, 3, -1, 7, -1, &root, NULL) && !pack_cached(&p, ids, 2, 3, 2, root, 10, -1, NULL, NULL));
    CHECK(!pack_finish(&p, NULL) && p.pos[3] == 10 && p.pos[4] == 11);
    pack_clear(&p);
    CHECK(!pack_cached(&p, ids, 3, 0, 3, -1, 7, -1, &root, NULL) && !pack_cached(&p, ids, 2, 3, 2, root, 9, -1, NULL, NULL));
    CHECK(pack_finish(&p, &err) == -1 && !strcmp(err.where, "segment 1") && strstr(err.expected, "position 10"), "%s: %s", err.where, err.expected);
    pack_clear(&p);
    CHECK(pack_cached(&p, ids, 2, 0, 2, 0, 0, -1, NULL, &err) == -1 && pack_cached(&p, ids, 2, 0, 1, -1, 0, -1, NULL, &err) == -1);
    pack_free(&p);
}

/* The plan is what is taken, and too little memory is an error before anything runs. */
/* A pack that is as large as the plan in everything is taken, and one that is larger in anything, or has an id that the model
 * has not, is refused by name. */
static void test_too_large(void)
{
    enum { N, S, T, U, POSITIONS, KEYS, ADAPTER, ID, NEGATIVE, TARGET, NEGATIVE_TARGET, CASES };
    static const char *const names[CASES] = { "tokens", "segments", "targets", "rows with a target", "positions", "keys", "adapters" };
    static const struct { int id, target; } ids[CASES] = { [ID] = { 29, 4 }, [NEGATIVE] = { -1, 4 }, [TARGET] = { 3, 29 }, [NEGATIVE_TARGET] = { 3, -1 } };
    struct config c = tiny_config();
    struct tiny t;
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear");
    struct lora_setup s;
    struct pack p = { 0 };
    double losses[8];
    int i, past[1] = { 5 };
    float logits[29];
    test_begin("a pack that is larger than the plan is refused by name");
    tiny_open(&t, &c, 11);
    CHECK(c.V == 29);
    for (i = -1; i < CASES; i++) {
        struct lora_error err = { "", "", "", "", "" };
        struct lora *l;
        int one[2] = { 3, 28 }, target = 4, bad;
        if (i >= ID) one[1] = ids[i].id, target = ids[i].target;
        pack_clear(&p);
        CHECK(!pack_segment(&p, one, 2, -1, 0, 0, NULL, NULL) && !pack_cached(&p, one, 2, 1, 3, -1, 0, i == ADAPTER, NULL, NULL));
        CHECK(!pack_target(&p, 0, 1, target, 1, NULL) && !pack_target(&p, 0, 1, 28, 1, NULL) && !pack_target(&p, 1, 1, 0, 1, NULL));
        CHECK(!pack_finish(&p, NULL) && p.N == 4 && p.S == 2 && p.T == 3 && p.U == 2 && p.keys == 4);
        s = make_setup(&t.model, &a, "ref");
        s.sizes = (struct lora_sizes){ .N = 4 - (i == N), .S = 2 - (i == S), .T = 3 - (i == T), .U = 2 - (i == U),
                                       .positions = 3 - (i == POSITIONS), .keys = 4 - (i == KEYS) };
        l = must_open(&s);
        bad = lora_eval(l, &p, losses, NULL, &err);
        CHECK(bad == (i < 0 ? 0 : -1), "case %d", i);
        if (i >= 0 && i < ID) CHECK(!strcmp(err.what, "the pack is larger than the plan") && !strcmp(err.where, names[i]), "%s: %s", err.what, err.where);
        if (i >= ID) CHECK(!strcmp(err.what, "bad token id") && strstr(err.expected, "0 to 28"), "%s: %s", err.what, err.expected);
        if (i < 0) {
            past[0] = 3;
            CHECK(lora_logits(l, past, 1, logits, &err) == -1 && strstr(err.expected, "lora_forward()"), "after lora_eval()");
            CHECK(!lora_forward(l, &p, NULL) && !lora_logits(l, past, 1, logits, NULL));
            past[0] = 4;
            CHECK(lora_logits(l, past, 1, logits, &err) == -1 && !strcmp(err.where, "row"));
            CHECK(!pack_target(&p, 0, 0, 4, 1, NULL) && lora_eval(l, &p, losses, NULL, &err) == -1
                  && !strcmp(err.what, "the pack is not finished"), "a target more: %s", err.what);
            CHECK(!pack_finish(&p, NULL) && !pack_segment(&p, one, 0, -1, 0, 0, NULL, NULL) && lora_forward(l, &p, &err) == -1, "a segment more");
            CHECK(pack_segment(&p, one, -3, -1, 0, 0, NULL, &err) == -1 && !strcmp(err.what, "bad segment"), "-3 tokens");
        }
        lora_close(l);
    }
    /* and one without targets computes nothing: what was computed before is not taken for its logits */
    s = make_setup(&t.model, &a, "ref");
    {
        struct lora *l = must_open(&s);
        struct lora_error err = { "", "", "", "", "" };
        const int ids[2] = { 3, 28 };
        pack_clear(&p);
        past[0] = 1;
        CHECK(!pack_segment(&p, ids, 2, -1, 0, 0, NULL, NULL) && !pack_finish(&p, NULL) && p.U == 0);
        CHECK(!lora_forward(l, &p, NULL) && !lora_logits(l, past, 1, logits, NULL));
        CHECK(!lora_eval(l, &p, losses, NULL, NULL) && lora_logits(l, past, 1, logits, &err) == -1 && strstr(err.expected, "lora_forward()"));
        lora_close(l);
    }
    pack_free(&p);
    adapter_free(a);
    tiny_close(&t);
}

/* Losses and the likeliest ids come in the order in which targets were added, whatever rows they are of. */
static void test_order(void)
{
    enum { LENGTH = 12 };
    struct config c = tiny_config();
    struct tiny t;
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear");
    struct rows r = make_rows(c.V);
    struct lora_setup s = make_setup(&t.model, &a, "ref");
    struct lora *l;
    struct pack p = { 0 };
    double losses[2][LENGTH];
    int best[2][LENGTH], turn, i, seen = 0;
    test_begin("targets in any order");
    tiny_open(&t, &c, 11);
    l = must_open(&s);
    for (turn = 0; turn < 2; turn++) {
        pack_clear(&p);
        CHECK(!pack_segment(&p, r.ids[2], LENGTH, -1, 0, 0, NULL, NULL));
        for (i = 0; i < LENGTH; i++) {
            int at = turn ? LENGTH - 1 - i : i;
            CHECK(!pack_target(&p, 0, at, r.ids[2][at + 1], 1, NULL));
        }
        CHECK(!pack_finish(&p, NULL) && !lora_eval(l, &p, losses[turn], best[turn], NULL));
    }
    for (i = 0; i < LENGTH; i++) {
        CHECK(losses[0][i] == losses[1][LENGTH - 1 - i] && best[0][i] == best[1][LENGTH - 1 - i]);
        seen += best[0][i] != best[1][i];
    }
    CHECK(seen > 0, "the same id everywhere");
    lora_close(l);
    pack_free(&p);
    adapter_free(a);
    tiny_close(&t);
}

/* What a program may pass to lora_open() by mistake is refused by name, by lora_plan() too. */
static void test_wrong_setups(void)
{
    enum { KERNELS, MODEL, ADAPTERS, NO_ADAPTER, NO_VALUES, LAYERS, ROWS, COLS, OPTIM, NO_OPTIM, COMPUTE, NO_COMPUTE, THREADS,
        TARGETS, CACHE, CASES };
    static const char *const where[CASES] = { "kernels", "model", "adapters", "adapter 0", "adapter 0",
        "adapter 0, model.layers.2.self_attn.q_proj.weight", "adapter 0, model.layers.0.mlp.gate_proj.weight",
        "adapter 0, model.layers.0.self_attn.q_proj.weight", "optim", "optim", "backend ref", "backend ref", "sizes", "sizes", "sizes.keys" };
    struct config c = tiny_config(), other[3] = { c, c, c };
    struct tiny t;
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear"), *none = NULL, *empty, *foreign[3];
    int i;
    test_begin("a wrong setup is refused by name");
    tiny_open(&t, &c, 11);
    other[0].L++;
    other[1].F++;
    other[2].C++;
    for (i = 0; i < 3; i++) foreign[i] = make_adapter(&other[i], 3, 0, "all-linear");
    empty = make_adapter(&c, 3, 0, "all-linear");
    free(empty->values);
    empty->values = NULL;
    for (i = 0; i < CASES; i++) {
        struct lora_setup s = make_setup(&t.model, &a, "ref");
        struct lora_error err = { "", "", "", "", "" };
        struct lora_plan plan;
        struct lora *l = (struct lora *)&t;
        if (i == KERNELS) s.kernels = NULL;
        if (i == MODEL) s.model = NULL;
        if (i == ADAPTERS) s.adapters = NULL;
        if (i == NO_ADAPTER) s.adapters = &none;
        if (i == NO_VALUES) s.adapters = &empty;
        if (i >= LAYERS && i <= COLS) s.adapters = &foreign[i - LAYERS];
        if (i == OPTIM) s.optim = OPTIM_PAGED_ADAMW + 1;
        if (i == NO_OPTIM) s.optim = -1;
        if (i == COMPUTE) s.compute = COMPUTE_BF16 + 1;
        if (i == NO_COMPUTE) s.compute = -1;
        if (i == THREADS) s.threads = 0;
        if (i == TARGETS) s.sizes.T = -1;
        if (i == CACHE) s.sizes.keys = 40;
        CHECK(lora_open(&l, &s, &err) == -1 && !l && !strcmp(err.where, where[i]) && err.expected[0], "case %d: %s: %s", i, err.what, err.where);
        CHECK(lora_plan(&plan, &s, &err) == -1 && !strcmp(err.where, where[i]), "case %d: %s", i, err.where);
    }
    adapter_free(a);
    adapter_free(empty);
    for (i = 0; i < 3; i++) adapter_free(foreign[i]);
    tiny_close(&t);
}

/* And to the calls after it: numbers of adapters, rows and buffers that there are not. */
static void test_wrong_numbers(void)
{
    static const int ids[2] = { 3, 28 }, rows[1] = { 0 };
    struct config c = tiny_config();
    struct tiny t;
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear");
    struct lora_setup s = make_setup(&t.model, &a, "ref");
    struct lora_error err = { "", "", "", "", "" };
    struct pack p = { 0 };
    struct lora *l;
    float logits[29];
    test_begin("adapters, rows and buffers that there are not");
    tiny_open(&t, &c, 11);
    l = must_open(&s);
    CHECK(pack_segment(&p, ids, 2, -1, -7, 0, NULL, &err) == -1 && strstr(err.found, "adapter -7") && !p.S && !p.N, "%s", err.found);
    CHECK(!pack_segment(&p, ids, 2, -1, 0, 0, NULL, NULL) && !pack_finish(&p, NULL) && !lora_forward(l, &p, NULL));
    CHECK(lora_logits(l, rows, -1, logits, &err) == -1 && !strcmp(err.found, "-1 rows"), "%s", err.found);
    CHECK(!lora_logits(l, rows, 1, logits, NULL) && !lora_logits(l, rows, 0, logits, NULL));
    CHECK(!pack_segment(&p, ids, 2, -1, 1, 0, NULL, NULL) && !pack_finish(&p, NULL) && lora_forward(l, &p, NULL) == -1);
    CHECK(lora_logits(l, rows, 1, logits, &err) == -1 && !strcmp(err.what, "no logits"), "logits of a pack that was refused");
    CHECK(!lora_buffer_size(l, -1) && !lora_buffer_size(l, 77) && lora_buffer_size(l, LORA_GRADIENTS) == a->size);
    CHECK(!lora_floats(l, -1) && !lora_floats(l, 77) && !lora_floats(l, LORA_CODES1) && lora_floats(l, LORA_MOMENT2));
    logits[0] = 5;
    lora_get(l, 77, logits);
    lora_set(l, -1, logits);
    CHECK(logits[0] == 5);
    lora_close(l);
    pack_free(&p);
    adapter_free(a);
    tiny_close(&t);
}

static void test_plan(void)
{
    struct config c = tiny_config();
    struct tiny t;
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear");
    struct lora_setup s;
    struct lora_plan all, less;
    struct lora_error err;
    struct lora *l = NULL;
    test_begin("the plan");
    memset(&err, 0, sizeof err);
    tiny_open(&t, &c, 11);
    s = make_setup(&t.model, &a, "ref");
    CHECK(!lora_plan(&all, &s, &err));
    s.sizes.keep = 0;
    CHECK(!lora_plan(&less, &s, &err));
    CHECK(less.activations < all.activations, "%zu %zu", less.activations, all.activations);
    CHECK(all.total == all.weights + all.trainable + all.gradients + all.moments + all.activations
                       + all.workspace + all.cache);
    s.max_memory = less.total - 1;
    CHECK(lora_open(&l, &s, &err) == -1 && !l && err.hint[0], "opened in less than the plan");
    s.max_memory = less.total;
    CHECK(!lora_open(&l, &s, &err));
    lora_close(l);
    adapter_free(a);
    tiny_close(&t);
}

/* A NaN in a weight is found and named; ids outside the vocabulary are refused. */
static void test_not_finite(void)
{
    struct config c = tiny_config();
    struct tiny t;
    struct rows r = make_rows(c.V);
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear");
    struct lora_setup s;
    struct lora_error err;
    struct lora *l;
    struct pack p;
    double losses[64];
    int best[64], i;
    memset(&err, 0, sizeof err);
    memset(&p, 0, sizeof p);
    test_begin("a NaN is named");
    tiny_open(&t, &c, 11);
    ((float *)(size_t)model_weight(&t.model, T_WUP, 1)->data)[5] = NAN;
    s = make_setup(&t.model, &a, "ref");
    l = must_open(&s);
    rows_pack(&p, &r, 0, r.n, 0);
    CHECK(!lora_train(l, &p, 1, losses, NULL, &err) && losses[0] != losses[0]);
    CHECK(lora_find_not_finite(l, &p, &err) == -1 && strstr(err.where, "layer 1, up_proj"), "%s", err.where);
    for (i = 0; kernels_all[i]; i++) {      /* the likeliest of logits that are no numbers is an id all the same */
        struct lora *other;
        char why[256];
        if (!kernels_all[i]->usable(why, sizeof why)) continue;
        s.kernels = kernels_all[i];
        other = must_open(&s);
        best[0] = c.V;
        CHECK(!lora_eval(other, &p, losses, best, NULL) && losses[0] != losses[0] && best[0] >= 0 && best[0] < c.V, "%s: %d", s.kernels->name, best[0]);
        lora_close(other);
    }
    for (i = 0; i < 3; i++) p.ids[i] = i;       /* and of an embedding the token that has it */
    ((float *)(size_t)model_weight(&t.model, T_EMBED, 0)->data)[2 * c.C + 1] = NAN;
    CHECK(lora_find_not_finite(l, &p, &err) == -1 && strstr(err.where, "embed_tokens, token 2 "), "%s", err.where);
    p.ids[0] = c.V;
    CHECK(lora_eval(l, &p, losses, NULL, &err) == -1 && strstr(err.what, "token id"), "%s", err.what);
    lora_close(l);
    pack_free(&p);
    adapter_free(a);
    tiny_close(&t);
}

/* The channels of x that a module's dropout leaves out, seen in the gradient of A, which is made of drop(x): of two tokens,
 * where a channel left out of both has no gradient at all. They are those that kernels.h says, of a key that is the module's own. */
static void test_masks(const char *backend)
{
    enum { VISIT = 5 };
    const double p = 0.5;
    struct config c = tiny_config();
    struct tiny t;
    struct adapter *a = make_adapter(&c, 3, p, "all-linear");
    struct lora_setup s;
    struct lora *l;
    struct pack pack = { 0 };
    const struct trained *list;
    const int ids[3] = { 3, 4, 5 };
    const unsigned char mask[3] = { 0, 1, 1 };
    double losses[2];
    float *g;
    int i, j, n, seen = 0;
    test_begin_with(backend, "", "which channels are dropped");
    tiny_open(&t, &c, 11);
    s = make_setup(&t.model, &a, backend);
    s.seed = 77;
    l = must_open(&s);
    CHECK(!pack_row(&pack, ids, mask, 3, 0, VISIT, NULL) && !pack_finish(&pack, NULL) && pack.N == 2);
    lora_zero_gradients(l);
    CHECK(!lora_train(l, &pack, 1, losses, NULL, NULL));
    g = malloc(lora_trained_size(l) * sizeof *g);
    lora_get(l, LORA_GRADIENTS, g);
    n = lora_trained(l, &list);
    for (i = 0; i < n; i++) {
        uint64_t key = random_key(s.seed, list[i].name);
        if (list[i].is_b || list[i].id == T_WQ || list[i].id == T_WK) continue;     /* the first token's q counts for nothing */
        for (j = 0; j < list[i].cols; j++, seen++) {
            uint64_t first = (uint64_t)VISIT << 40 | (uint64_t)j, second = first + (1 << 20);
            int dropped = random_uniform(key, first) < p && random_uniform(key, second) < p;
            CHECK((g[list[i].offset + (size_t)j] == 0) == dropped, "%s, channel %d", list[i].name, j);
        }
    }
    CHECK(seen == 2 * (16 + 24 + 16 + 16 + 20), "%d channels", seen);
    free(g);
    lora_close(l);
    pack_free(&pack);
    adapter_free(a);
    tiny_close(&t);
}

/* Rows without a target, which are left out behind the last attention, give what they give with targets that weigh nothing:
 * in the reference the same bits, as their terms are zeros in the same sums. */
static void test_left_out(const char *backend, double dropout, int full)
{
    struct config c = tiny_config();
    struct tiny t;
    struct rows r = make_rows(c.V);
    struct adapter *a = make_adapter(&c, 3, dropout, "all-linear");
    struct lora_setup s;
    struct lora *l;
    struct result out[2];
    int weightless, i, n, exact = !strncmp(backend, "ref", 3);
    test_begin_with(backend, full ? ", full" : dropout > 0 ? ", dropout" : "", "rows without a target are left out");
    tiny_open(&t, &c, 11);
    s = make_setup(&t.model, full ? NULL : &a, backend);
    l = must_open(&s);
    for (weightless = 0; weightless < 2; weightless++) {
        struct result *o = &out[weightless];
        struct pack p = { 0 };
        double losses[64];
        for (i = 0; i < r.n; i++) {
            CHECK(!pack_row(&p, r.ids[i], r.mask[i], r.len[i], full ? -1 : 0, i, NULL));
            for (n = 0; weightless && n < p.segments[i].q_len; n++)
                if (!r.mask[i][n + 1]) CHECK(!pack_target(&p, i, n, 1, 0, NULL));
        }
        lora_zero_gradients(l);
        CHECK(!pack_finish(&p, NULL) && !lora_train(l, &p, 1.0 / count_targets(&r), losses, NULL, NULL));
        CHECK(weightless ? p.U == p.N : p.U < p.N && p.U == p.T);
        memset(o, 0, sizeof *o);
        for (i = 0; i < p.T; i++) if (p.target_weight[i] > 0) o->losses[o->T++] = losses[i];
        o->n = lora_trained_size(l);
        o->g = malloc(o->n * sizeof *o->g);
        lora_get(l, LORA_GRADIENTS, o->g);
        pack_free(&p);
    }
    (exact ? check_same_bits : check_close)(&out[0], &out[1], "left out");
    for (i = 0; i < 2; i++) free(out[i].g);
    lora_close(l);
    adapter_free(a);
    tiny_close(&t);
}

/* Rows of the base stand between those of an adapter that trains, with dropout and without: what each row does in a pack of its own. */
static void test_base_between(const char *backend, int fused, double dropout)
{
    struct config c = tiny_config();
    struct tiny t;
    struct rows r = make_rows(c.V);
    struct adapter *a;
    struct lora_setup s;
    struct lora *l;
    struct pack p = { 0 };
    struct worst w = { 0, 0, 0, 0, 0 };
    double losses[2][64];
    float *g[2];
    size_t n;
    int apart, i, done = 0;
    test_begin_with(backend, fused ? ", fused" : "", "rows of the base between those that train");
    for (i = 0; i < r.n; i++) r.mask[i][1] = 1;     /* a target of the very first token */
    c.fused = fused;
    a = make_adapter(&c, 3, dropout, "all-linear");
    tiny_open(&t, &c, 11);
    s = make_setup(&t.model, &a, backend);
    l = must_open(&s);
    n = lora_trained_size(l);
    for (apart = 0; apart < 2; apart++) {
        g[apart] = malloc(n * sizeof **g);
        lora_zero_gradients(l);
        for (i = done = 0; i < r.n; i++) {
            CHECK(!pack_row(&p, r.ids[i], r.mask[i], r.len[i], i % 2 ? -1 : 0, i, NULL));
            if (!apart && i + 1 < r.n) continue;
            CHECK(!pack_finish(&p, NULL) && !lora_train(l, &p, 1.0 / count_targets(&r), losses[apart] + done, NULL, NULL));
            done += p.T;
            pack_clear(&p);
        }
        lora_get(l, LORA_GRADIENTS, g[apart]);
    }
    CHECK(done == count_targets(&r));
    for (i = 0; i < done; i++) worst_add(&w, fabs(losses[0][i] - losses[1][i]), 1e-5, (size_t)i);
    worst_add_gradients(&w, g[0], g[1], n);
    CHECK_WORST(w, "losses and gradients");
    for (i = 0; i < 2; i++) free(g[i]);
    lora_close(l);
    pack_free(&p);
    adapter_free(a);
    tiny_close(&t);
}

/* Dropout is training's alone: evaluated, an adapter that has it is the one that has none. */
static void test_evaluation(const char *backend)
{
    struct config c = tiny_config();
    struct tiny t;
    struct adapter *a[2];
    struct rows r = make_rows(c.V);
    struct lora_setup s;
    struct lora *l;
    struct pack p = { 0 };
    double losses[3][64];
    int i;
    test_begin_with(backend, "", "nothing is dropped in evaluation");
    tiny_open(&t, &c, 11);
    rows_pack(&p, &r, 0, r.n, 0);
    for (i = 0; i < 2; i++) {
        a[i] = make_adapter(&c, 3, i ? 0.5 : 0, "all-linear");
        s = make_setup(&t.model, &a[i], backend);
        l = must_open(&s);
        if (i) CHECK(!lora_train(l, &p, 1, losses[2], NULL, NULL));
        CHECK(!lora_eval(l, &p, losses[i], NULL, NULL));
        lora_close(l);
    }
    CHECK(!memcmp(losses[0], losses[1], (size_t)p.T * sizeof **losses), "dropout in evaluation");
    CHECK(memcmp(losses[0], losses[2], (size_t)p.T * sizeof **losses), "no dropout in training");
    pack_free(&p);
    for (i = 0; i < 2; i++) adapter_free(a[i]);
    tiny_close(&t);
}

/* So large a vocabulary that logits are made of 16 rows at a time: losses, the likeliest ids and gradients of 35 targets are those
 * of packs that have few. */
static void test_chunks(const char *backend)
{
    enum { TARGETS = 35, EACH = 7 };
    struct config c = tiny_config();
    struct tiny t;
    struct adapter *a;
    struct lora_setup s;
    struct lora *l;
    struct pack p = { 0 };
    struct worst w = { 0, 0, 0, 0, 0 };
    double losses[2][TARGETS], largest = 0;
    float *g[2];
    int best[2][TARGETS], ids[EACH + 1], apart, i, k, done;
    unsigned char mask[EACH + 1];
    size_t n, j;
    test_begin_with(backend, "", "logits in parts");
    c.V = 200003;
    c.L = 1;
    c.tied = 1;
    a = make_adapter(&c, 3, 0, "down_proj");
    tiny_open(&t, &c, 11);
    s = make_setup(&t.model, &a, backend);
    l = must_open(&s);
    n = lora_trained_size(l);
    memset(mask, 1, sizeof mask);
    for (apart = 0; apart < 2; apart++) {
        g[apart] = malloc(n * sizeof **g);
        lora_zero_gradients(l);
        pack_clear(&p);
        for (i = done = 0; i < TARGETS / EACH; i++) {
            for (k = 0; k <= EACH; k++) ids[k] = (int)(random_bits(5, (uint64_t)(i * 8 + k)) % (uint64_t)c.V);
            CHECK(!pack_row(&p, ids, mask, EACH + 1, 0, i, NULL));
            if (!apart && i + 1 < TARGETS / EACH) continue;
            CHECK(!pack_finish(&p, NULL) && !lora_train(l, &p, 1.0 / TARGETS, losses[apart] + done, best[apart] + done, NULL));
            done += p.T;
            pack_clear(&p);
        }
        CHECK(done == TARGETS);
        lora_get(l, LORA_GRADIENTS, g[apart]);
    }
    for (i = 0; i < TARGETS; i++) worst_add(&w, fabs(losses[0][i] - losses[1][i]), 1e-5, (size_t)i);
    for (j = 0; j < n; j++) largest = fmax(largest, fabs((double)g[0][j]));
    for (j = 0; j < n; j++) worst_add(&w, fabs((double)g[0][j] - (double)g[1][j]), 1e-5 * largest, j);
    CHECK_WORST(w, "losses and gradients");
    CHECK(largest > 0 && !memcmp(best[0], best[1], sizeof best[0]), "other ids are the likeliest");
    for (i = 0; i < 2; i++) free(g[i]);
    lora_close(l);
    pack_free(&p);
    adapter_free(a);
    tiny_close(&t);
}

/* Four steps from given gradients, clipped and not, are those of PyTorch's AdamW and clip_grad_norm_ in double. */
static void test_steps(const char *backend)
{
    static const double sizes[4] = { 3, 1e-6, 2e-7, 1e-3 };        /* of the gradients: norms far above and around what is allowed */
    static const struct lora_hyper h = { 0.01, 0.8, 0.95, 2e-8, 0.1, 2e-6 };
    struct config c = tiny_config();
    struct tiny t;
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear");
    struct lora_setup s;
    struct lora *l;
    struct worst w = { 0, 0, 0, 0, 0 };
    double *p, *m, *v, *g, *got, norm, sum;
    size_t n, i;
    int step;
    test_begin_with(backend, "", "steps by hand");
    tiny_open(&t, &c, 11);
    s = make_setup(&t.model, &a, backend);
    l = must_open(&s);
    n = lora_trained_size(l);
    p = calloc(5 * n, sizeof *p);
    m = p + n, v = m + n, g = v + n, got = g + n;
    lora_get64(l, LORA_PARAMETERS, p);
    for (step = 0; step < 4; step++) {
        double scale = 1, clipped;
        for (sum = 0, i = 0; i < n; i++) {
            g[i] = sizes[step] * random_normal(random_key(9, "g"), (uint64_t)step * n + i) / sqrt((double)n);
            sum += g[i] * g[i];
        }
        clipped = h.max_grad_norm / (sqrt(sum) + 1e-6);
        if (clipped < 1) scale = clipped;
        lora_set64(l, LORA_GRADIENTS, g);
        CHECK(!lora_step(l, &h, &norm, NULL) && fabs(norm - sqrt(sum)) <= 1e-6 * sqrt(sum), "norm %g, not %g", norm, sqrt(sum));
        lora_get64(l, LORA_PARAMETERS, got);
        for (i = 0; i < n; i++) {
            double x = scale * g[i];
            m[i] = h.beta1 * m[i] + (1 - h.beta1) * x;
            v[i] = h.beta2 * v[i] + (1 - h.beta2) * x * x;
            p[i] -= h.learning_rate * h.weight_decay * p[i];
            p[i] -= h.learning_rate * m[i] / (1 - pow(h.beta1, step + 1)) / (sqrt(v[i] / (1 - pow(h.beta2, step + 1))) + h.eps);
            worst_add(&w, fabs(got[i] - p[i]), 1e-6 * (fabs(p[i]) + h.learning_rate), i);
        }
    }
    CHECK(lora_steps(l) == 4);
    CHECK_WORST(w, "parameters");
    free(p);
    lora_close(l);
    adapter_free(a);
    tiny_close(&t);
}

static void test_backends(void)
{
    struct config c = tiny_config();
    struct tiny t;
    struct rows r = make_rows(c.V);
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear");
    int i;
    tiny_open(&t, &c, 11);
    for (i = 0; kernels_all[i]; i++) {
        char name[96], why[256];
        snprintf(name, sizeof name, "%s against ref64, whole model", kernels_all[i]->name);
        if (!kernels_all[i]->usable(why, sizeof why)) { test_skip(name, why); continue; }
        if (kernels_all[i]->elem == 8) continue;
        test_begin(name);
        check_against_ref64(kernels_all[i]->name, &t.model, a, &r);
    }
    adapter_free(a);
    tiny_close(&t);
}

int main(void)
{
    int i;
    test_gradients();
    if (test_emulated()) test_skip("eight in ten entries of each gradient", "too slow under an emulator");
    for (i = 0; kernels_all[i]; i++) {
        char why[256], name[96];
        const char *backend = kernels_all[i]->name;
        snprintf(name, sizeof name, "%s: what must be equal", backend);
        if (!kernels_all[i]->usable(why, sizeof why)) { test_skip(name, why); continue; }
        if (test_emulated() && kernels_all[i]->elem == 8) {
            test_skip(name, "too slow under an emulator: the source is that of ref");
            continue;
        }
        test_equal(backend, 0);
        test_equal(backend, 1);
        test_prefix(backend);
        test_sharing(backend);
        test_adapters(backend);
        test_cache(backend);
        test_masks(backend);
        test_left_out(backend, 0, 0);
        test_left_out(backend, 0.3, 0);
        test_left_out(backend, 0, 1);
        test_base_between(backend, 0, 0.3);
        test_base_between(backend, 1, 0);
        test_evaluation(backend);
        test_steps(backend);
    }
    test_chunks("auto");
    test_backends();
    test_labels();
    test_refused_packs();
    test_too_large();
    test_order();
    test_wrong_setups();
    test_wrong_numbers();
    test_plan();
    test_not_finite();
    return test_end();
}
