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

/* Each trained tensor: about ten entries, and a random direction
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
        size_t size = (size_t)list[i].rows * (size_t)list[i].cols, from = list[i].offset, step = size / 10 + 1;
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

/* The plan is what is taken, and too little memory is an error before anything runs. */
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
    p.ids[0] = c.V;
    CHECK(lora_eval(l, &p, losses, NULL, &err) == -1 && strstr(err.what, "token id"), "%s", err.what);
    lora_close(l);
    pack_free(&p);
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
    for (i = 0; kernels_all[i]; i++) {
        char why[256], name[96];
        const char *backend = kernels_all[i]->name;
        snprintf(name, sizeof name, "%s: what must be equal", backend);
        if (!kernels_all[i]->usable(why, sizeof why)) { test_skip(name, why); continue; }
        test_equal(backend, 0);
        test_equal(backend, 1);
        test_prefix(backend);
        test_sharing(backend);
        test_adapters(backend);
        test_cache(backend);
    }
    test_backends();
    test_plan();
    test_not_finite();
    return test_end();
}
