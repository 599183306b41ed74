/* model_cases.h - a tiny model over any table of kernels: rows, adapters, the families' variants, and everything that must
 * be equal: packed = separate, prefix shared = not, recomputed = kept, 1 thread = N, cache = no cache. `backend` is a name
 * or a path as kernels_find() takes it. */
#ifndef MODEL_CASES_H
#define MODEL_CASES_H

#include "test.h"
#include "tiny.h"

#define MAX_ROWS 4
struct rows { int n, len[MAX_ROWS]; int ids[MAX_ROWS][24]; unsigned char mask[MAX_ROWS][24]; };

static inline struct rows make_rows(int V)
{
    static const int lengths[MAX_ROWS] = { 11, 5, 17, 3 };
    struct rows r;
    int i, t;
    uint64_t key = random_key(7, "rows");
    r.n = MAX_ROWS;
    for (i = 0; i < r.n; i++) {
        r.len[i] = lengths[i];
        for (t = 0; t < lengths[i]; t++) {
            r.ids[i][t] = (int)(random_bits(key, (uint64_t)(100 * i + t)) % (uint64_t)V);
            r.mask[i][t] = (unsigned char)(t && (t > lengths[i] / 2 || t % 3 == 0));
        }
    }
    return r;
}

/* The test's name begins with the backend's: of a path its last part. */
static inline void test_begin_with(const char *backend, const char *model, const char *what)
{
    const char *slash = strrchr(backend, '/');
    char name[160];
    snprintf(name, sizeof name, "%.60s%s: %s", slash ? slash + 1 : backend, model, what);
    test_begin(name);
}

static inline int count_targets(const struct rows *r)
{
    int i, t, n = 0;
    for (i = 0; i < r->n; i++) for (t = 1; t < r->len[i]; t++) n += r->mask[i][t];
    return n;
}

static inline void rows_pack(struct pack *p, const struct rows *r, int from, int to, int adapter)
{
    int i;
    for (i = from; i < to; i++)
        CHECK(!pack_row(p, r->ids[i], r->mask[i], r->len[i], adapter, i, NULL));
    CHECK(!pack_finish(p, NULL));
}

static inline struct lora_setup make_setup(const struct model *m, struct adapter **a, const char *backend)
{
    struct lora_setup s;
    memset(&s, 0, sizeof s);
    s.kernels = kernels_find(backend, NULL);
    s.threads = 1;
    s.model = m;
    s.adapters = a;
    s.n_adapters = a != NULL;
    s.full = a == NULL;
    s.sizes.N = s.sizes.T = s.sizes.U = 64;
    s.sizes.S = 8;
    s.sizes.positions = 32;
    s.sizes.backward = 1;
    s.sizes.keep = -1;
    return s;
}

/* An adapter on all linears with different ranks and alphas, B far from zero. */
static inline struct adapter *make_adapter(const struct config *c, int rank, double dropout, const char *targets)
{
    struct adapter_settings s;
    struct lora_error err = { "", "", "", "", "" };
    struct adapter *a = NULL;
    uint64_t key = random_key(3, "adapter");
    size_t i;
    memset(&s, 0, sizeof s);
    s.r = rank;
    s.alpha = 2 * rank;
    s.dropout = dropout;
    s.target_modules = targets;
    if (!strcmp(targets, "all-linear")) {
        s.rank_pattern = c->fused ? "down_proj=1,layers.1.self_attn.qkv_proj=5" : "down_proj=1,layers.1.self_attn.v_proj=5";
        s.alpha_pattern = c->fused ? "gate_up_proj=7" : "gate_proj=7";
    }
    if (adapter_new(&a, c, &s, &err) || adapter_init(a, 1, &err)) {
        CHECK(0, "%s: %s", err.what, err.where);
        exit(1);
    }
    for (i = 0; i < a->size; i++) a->values[i] += (float)(0.2 * random_normal(key, i));
    return a;
}

static inline struct lora *must_open(const struct lora_setup *s)
{
    struct lora_error err = { "", "", "", "", "" };
    struct lora *l = NULL;
    int bad = lora_open(&l, s, &err);
    CHECK(!bad, "%s: %s: %s %s", err.what, err.where, err.expected, err.found);
    if (bad) exit(1);
    return l;
}

/* ---- what models differ in ---- */

enum { VARIANTS = 9 };
static const char *const variant_names[VARIANTS] = {
    "llama", "tied", "biases", "qk norm", "fused", "window", "llama3 rope", "yarn", "linear rope"
};

static inline struct config variant_config(int i)
{
    struct config c = tiny_config();
    if (i == 1) c.tied = 1;
    if (i == 2) c.qkv_bias = c.o_bias = c.mlp_bias = 1;
    if (i == 3) c.qk_norm = 1;
    if (i == 4) c.fused = 1;
    if (i == 5) c.window = 4;
    if (i == 6) { c.rope.type = ROPE_LLAMA3; c.rope.factor = 4; c.rope.original = 16; }
    if (i == 7) { c.rope.type = ROPE_YARN; c.rope.factor = 4; c.rope.original = 16; }
    if (i == 8) { c.rope.type = ROPE_LINEAR; c.rope.factor = 4; }
    return c;
}

/* ---- what must be equal ---- */

struct result { double losses[64]; float *g; size_t n; int T, N; };      /* N of the last pack */

static inline struct result run_rows(const struct lora_setup *s, const struct rows *r, int per_pack)
{
    struct lora *l = must_open(s);
    struct result out;
    struct pack p;
    int i, scale = count_targets(r);
    memset(&p, 0, sizeof p);
    memset(&out, 0, sizeof out);
    lora_zero_gradients(l);
    for (i = 0; i < r->n; i += per_pack) {
        pack_clear(&p);
        rows_pack(&p, r, i, i + per_pack < r->n ? i + per_pack : r->n, 0);
        CHECK(!lora_train(l, &p, 1.0 / scale, out.losses + out.T, NULL, NULL));
        out.T += p.T;
    }
    out.N = p.N;
    out.n = lora_trained_size(l);
    out.g = malloc(out.n * sizeof *out.g);
    lora_get(l, LORA_GRADIENTS, out.g);
    pack_free(&p);
    lora_close(l);
    return out;
}

static inline void check_same_bits(const struct result *a, const struct result *b, const char *what)
{
    CHECK(a->T == b->T && a->T > 0, "%s", what);
    CHECK(!memcmp(a->losses, b->losses, (size_t)a->T * sizeof *a->losses), "losses: %s", what);
    CHECK(!memcmp(a->g, b->g, a->n * sizeof *a->g), "gradients: %s", what);
}

/* Gradients in other orders of summation: 1e-5 of the largest, float's own noise here. */
static inline void worst_add_gradients(struct worst *w, const float *a, const float *b, size_t n)
{
    double largest = 0;
    size_t i;
    for (i = 0; i < n; i++) largest = fmax(largest, fabs((double)a[i]));
    for (i = 0; i < n; i++) worst_add(w, fabs((double)a[i] - (double)b[i]), 1e-5 * largest, i);
}

static inline void check_close(const struct result *a, const struct result *b, const char *what)
{
    struct worst w = { 0, 0, 0, 0, 0 };
    int t;
    for (t = 0; t < a->T; t++) worst_add(&w, fabs(a->losses[t] - b->losses[t]), 1e-5, (size_t)t);
    worst_add_gradients(&w, a->g, b->g, a->n);
    CHECK_WORST(w, what);
}

static inline void test_equal(const char *backend, int fused)
{
    static const int threads[] = { 2, 3, 8 };
    struct config c = tiny_config();
    struct tiny t;
    struct rows r = make_rows(c.V);
    struct adapter *a, *b;
    struct lora_setup s;
    struct result base, other, plain;
    const char *model = fused ? ", fused" : "";
    int i;
    c.fused = fused;
    a = make_adapter(&c, 3, 0.2, "all-linear");
    b = make_adapter(&c, 3, 0, "all-linear");
    tiny_open(&t, &c, 11);
    s = make_setup(&t.model, &a, backend);
    base = run_rows(&s, &r, MAX_ROWS);
    test_begin_with(backend, model, "1 thread = N");
    for (i = 0; i < 3; i++) {
        s.threads = threads[i];
        other = run_rows(&s, &r, MAX_ROWS);
        check_same_bits(&base, &other, "threads");
        free(other.g);
    }
    s.threads = 1;
    test_begin_with(backend, model, "recomputed = kept");
    for (i = 0; i < 3; i++) {
        s.sizes.keep = i % 2;
        s.sizes.N = i < 2 ? base.N : 64;        /* a pack as large as the plan; a smaller one keeps more */
        other = run_rows(&s, &r, MAX_ROWS);
        check_same_bits(&base, &other, "recompute");
        free(other.g);
    }
    s.sizes.keep = -1;
    s.sizes.N = 64;
    test_begin_with(backend, model, "packed = separate, dropout included");
    other = run_rows(&s, &r, 1);
    check_close(&base, &other, "4 x 1");
    s.sizes.keep = 1;
    s.sizes.N = 16;             /* the longest */
    plain = run_rows(&s, &r, 1);
    check_same_bits(&other, &plain, "recompute, packs of other lengths after each other");
    s.sizes.keep = -1;
    s.sizes.N = 64;
    free(plain.g);
    free(other.g);
    other = run_rows(&s, &r, 2);
    check_close(&base, &other, "2 x 2");
    free(other.g);
    s.adapters = &b;
    plain = run_rows(&s, &r, MAX_ROWS);
    CHECK(memcmp(plain.losses, base.losses, (size_t)base.T * sizeof *base.losses), "dropout did nothing");
    free(plain.g);
    free(base.g);
    adapter_free(a);
    adapter_free(b);
    tiny_close(&t);
}

/* Two rows with a common beginning: laid down twice, or once with two segments that continue it. */
static inline void test_prefix(const char *backend)
{
    struct config c = tiny_config();
    struct tiny t;
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear");
    struct lora_setup s;
    struct rows r = make_rows(c.V);
    struct lora *l;
    struct pack p;
    double apart[64], shared[64];
    float *g[2];
    struct worst w = { 0, 0, 0, 0, 0 };
    int prefix, seg, i, row;
    size_t n;
    test_begin_with(backend, "", "prefix shared = not");
    tiny_open(&t, &c, 11);
    memset(&p, 0, sizeof p);
    memcpy(r.ids[2], r.ids[0], 6 * sizeof(int));    /* rows 0 and 2 begin alike */
    s = make_setup(&t.model, &a, backend);
    l = must_open(&s);
    n = lora_trained_size(l);
    for (i = 0; i < 2; i++) g[i] = malloc(n * sizeof **g);
    for (row = 0; row < 3; row += 2) {      /* targets: positions 3, 5 .. end of each row */
        CHECK(!pack_segment(&p, r.ids[row], 10, -1, 0, 0, &seg, NULL));
        CHECK(!pack_target(&p, seg, 3, r.ids[row][4], 1, NULL));
        for (i = 5; i < 10; i++) CHECK(!pack_target(&p, seg, i, r.ids[row][i + 1], 1, NULL));
    }
    CHECK(!pack_finish(&p, NULL));
    lora_zero_gradients(l);
    CHECK(!lora_train(l, &p, 0.1, apart, NULL, NULL));
    lora_get(l, LORA_GRADIENTS, g[0]);
    pack_clear(&p);
    CHECK(!pack_segment(&p, r.ids[0], 6, -1, 0, 0, &prefix, NULL));
    CHECK(!pack_target(&p, prefix, 3, r.ids[0][4], 2, NULL));
    for (row = 0; row < 3; row += 2) {
        CHECK(!pack_segment(&p, r.ids[row] + 6, 4, prefix, 0, 0, &seg, NULL));
        CHECK(!pack_target(&p, prefix, 5, r.ids[row][6], 1, NULL));
        for (i = 0; i < 4; i++) CHECK(!pack_target(&p, seg, i, r.ids[row][i + 7], 1, NULL));
    }
    CHECK(!pack_finish(&p, NULL));
    CHECK(p.N == 14 && p.T == 11 && p.U == 10, "N %d T %d U %d", p.N, p.T, p.U);
    lora_zero_gradients(l);
    CHECK(!lora_train(l, &p, 0.1, shared, NULL, NULL));
    lora_get(l, LORA_GRADIENTS, g[1]);
    worst_add(&w, fabs(apart[0] - shared[0]), 1e-5, 0);
    for (i = 0; i < 5; i++) {
        worst_add(&w, fabs(apart[1 + i] - shared[1 + i]), 1e-5, (size_t)i);
        worst_add(&w, fabs(apart[7 + i] - shared[6 + i]), 1e-5, (size_t)i);
    }
    worst_add_gradients(&w, g[0], g[1], n);
    CHECK_WORST(w, "losses and gradients");
    free(g[0]);
    free(g[1]);
    lora_close(l);
    pack_free(&p);
    adapter_free(a);
    tiny_close(&t);
}

/* pack_rows finds what rows begin with: the same sums, fewer tokens. Rows 0 and 2 begin alike, 1 is
 * the beginning of 3, all start with the same token, and two rows are the same. */
static inline void test_sharing(const char *backend)
{
    struct config c = tiny_config();
    struct tiny t;
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear");
    struct lora_setup s;
    struct rows r = make_rows(c.V);
    struct pack_input in[MAX_ROWS + 1];
    struct lora *l;
    struct pack p;
    double losses[64], sum[2] = { 0, 0 };
    float *g[2];
    struct worst w = { 0, 0, 0, 0, 0 };
    int i, share, k, tokens[2], targets = 0;
    size_t n;
    test_begin_with(backend, "", "common beginnings found = rows apart");
    tiny_open(&t, &c, 11);
    memset(&p, 0, sizeof p);
    memcpy(r.ids[2], r.ids[0], 6 * sizeof(int));
    memcpy(r.ids[3], r.ids[1], 2 * sizeof(int));
    r.ids[1][0] = r.ids[3][0] = r.ids[0][0];
    for (i = 0; i <= MAX_ROWS; i++) {
        in[i].ids = r.ids[i % MAX_ROWS];
        in[i].mask = r.mask[i % MAX_ROWS];
        in[i].n = r.len[i % MAX_ROWS];
        in[i].visit = i;
        in[i].labels = NULL;
        for (k = 1; k < in[i].n; k++) targets += in[i].mask[k];
    }
    s = make_setup(&t.model, &a, backend);
    l = must_open(&s);
    n = lora_trained_size(l);
    for (share = 0; share < 2; share++) {
        float weight = 0;
        g[share] = malloc(n * sizeof **g);
        pack_clear(&p);
        CHECK(!pack_rows(&p, in, MAX_ROWS + 1, 0, share, NULL) && !pack_finish(&p, NULL));
        tokens[share] = p.N;
        lora_zero_gradients(l);
        CHECK(!lora_train(l, &p, 1.0 / targets, losses, NULL, NULL));
        lora_get(l, LORA_GRADIENTS, g[share]);
        for (i = 0; i < p.T; i++) sum[share] += losses[i] * (double)p.target_weight[i], weight += p.target_weight[i];
        CHECK(weight == (float)targets, "%g of %d targets", (double)weight, targets);
    }
    /* apart 10 + 4 + 16 + 2 + 10 inputs; shared: the trie has 10 + 3 + (16 - 6) nodes, row 3 and the copy none */
    CHECK(tokens[0] == 42 && tokens[1] == 23, "%d and %d tokens", tokens[0], tokens[1]);
    CHECK(pack_common(&in[4], in, 4) == 10 && pack_common(&in[1], in, 1) == 1);
    worst_add(&w, fabs(sum[0] - sum[1]), 1e-5 * targets, 0);
    worst_add_gradients(&w, g[0], g[1], n);
    CHECK_WORST(w, "loss and gradients");
    free(g[0]);
    free(g[1]);
    lora_close(l);
    pack_free(&p);
    adapter_free(a);
    tiny_close(&t);
}

/* A zero B changes no bit; several adapters in one pack do what each does alone. */
static inline void test_adapters(const char *backend)
{
    struct config c = tiny_config();
    struct tiny t;
    struct rows r = make_rows(c.V);
    struct adapter *list[3];
    struct lora_setup s;
    struct lora *l;
    struct pack p;
    double one[3][64], mixed[64], *next;
    int i, k, turn, n[3];
    size_t j;
    tiny_open(&t, &c, 11);
    list[0] = make_adapter(&c, 3, 0, "all-linear");
    list[1] = make_adapter(&c, 6, 0, "q_proj,down_proj");
    list[2] = make_adapter(&c, 2, 0, "all-linear");
    for (i = 0; i < list[2]->n; i++)
        for (j = 0; j < (size_t)list[2]->modules[i].rows * (size_t)list[2]->modules[i].r; j++)
            list[2]->values[list[2]->modules[i].b + j] = 0;
    CHECK(adapter_is_zero(list[2]) && !adapter_is_zero(list[0]));
    s = make_setup(&t.model, list, backend);
    s.n_adapters = 3;
    s.sizes.backward = 0;
    l = must_open(&s);
    memset(&p, 0, sizeof p);
    test_begin_with(backend, "", "a zero B is the base, bit for bit");
    for (i = 0; i < 2; i++) {
        pack_clear(&p);
        rows_pack(&p, &r, 0, r.n, i ? 2 : -1);
        CHECK(!lora_eval(l, &p, one[i], NULL, NULL));
    }
    CHECK(!memcmp(one[0], one[1], (size_t)p.T * sizeof **one));
    test_begin_with(backend, "", "adapters side by side in one pack, and A, B, A");
    for (i = 0; i < 3; i++) {
        pack_clear(&p);
        rows_pack(&p, &r, 0, 1, i - 1);
        CHECK(!lora_eval(l, &p, one[i], NULL, NULL));
        n[i] = p.T;
    }
    CHECK(memcmp(one[0], one[1], (size_t)n[0] * sizeof **one) && memcmp(one[1], one[2], (size_t)n[0] * sizeof **one));
    for (turn = 0; turn < 2; turn++) {          /* the higher rank after the lower, and before it */
        pack_clear(&p);
        for (i = 0; i < 3; i++)
            CHECK(!pack_row(&p, r.ids[0], r.mask[0], r.len[0], (turn ? 2 - i : i) - 1, 0, NULL));
        CHECK(!pack_finish(&p, NULL) && !lora_eval(l, &p, mixed, NULL, NULL));
        for (next = mixed, i = 0; i < 3; next += n[i++])
            for (k = 0; k < n[i]; k++) {
                double want = one[turn ? 2 - i : i][k];
                CHECK(fabs(next[k] - want) <= 1e-5, "%g %g", next[k], want);
            }
    }
    pack_clear(&p);
    rows_pack(&p, &r, 0, 1, 0);
    CHECK(!lora_eval(l, &p, mixed, NULL, NULL) && !memcmp(mixed, one[1], (size_t)n[1] * sizeof *mixed));
    lora_close(l);
    pack_free(&p);
    for (i = 0; i < 3; i++) adapter_free(list[i]);
    tiny_close(&t);
}

/* Two sequences token by token through the cache, against both at once without one. */
static inline void test_cache(const char *backend)
{
    struct config c = tiny_config();
    struct tiny t;
    struct rows r = make_rows(c.V);
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear");
    struct lora_setup s;
    struct lora *whole, *cached;
    struct pack p;
    float want[2][29], got[2][29];
    struct worst w = { 0, 0, 0, 0, 0 };
    int rows[2], i, v, n, k;
    test_begin_with(backend, "", "generation through the cache = forward");
    tiny_open(&t, &c, 11);
    memset(&p, 0, sizeof p);
    s = make_setup(&t.model, &a, backend);
    s.sizes.backward = 0;
    whole = must_open(&s);
    s.sizes.keys = 40;
    s.sizes.U = 1;              /* and logits of one row at a time */
    cached = must_open(&s);
    for (n = 3; n <= 8; n++) {
        pack_clear(&p);
        for (i = 0; i < 2; i++) CHECK(!pack_segment(&p, r.ids[2 * i], n, -1, 0, 0, NULL, NULL));
        CHECK(!pack_finish(&p, NULL) && !lora_forward(whole, &p, NULL));
        rows[0] = n - 1;
        rows[1] = 2 * n - 1;
        CHECK(!lora_logits(whole, rows, 2, want[0], NULL));
        pack_clear(&p);
        k = n == 3 ? 3 : 1;                 /* the prompt first, then one token each */
        for (i = 0; i < 2; i++)
            CHECK(!pack_cached(&p, r.ids[2 * i] + n - k, k, 20 * i, n, -1, 0, 0, NULL, NULL));
        CHECK(!pack_finish(&p, NULL) && !lora_forward(cached, &p, NULL));
        rows[0] = k - 1;
        rows[1] = 2 * k - 1;
        CHECK(!lora_logits(cached, rows, 2, got[0], NULL));
        for (i = 0; i < 2; i++)
            for (v = 0; v < c.V; v++) worst_add(&w, fabs((double)want[i][v] - (double)got[i][v]), 2e-5, (size_t)v);
    }
    CHECK_WORST(w, "logits");
    lora_close(whole);
    lora_close(cached);
    pack_free(&p);
    adapter_free(a);
    tiny_close(&t);
}

/* ref's own deviation from ref64 measures float; a float table may have ten times that, or what the goldens' README
 * states: 1e-5 of a loss, 1e-4 of the largest gradient. */
static inline void check_against_ref64(const char *backend, const struct model *m, struct adapter *a, const struct rows *r)
{
    static const char *const names[] = { "ref64", "ref" };
    struct lora_setup s;
    struct result exact, ref, other, *made[] = { &exact, &ref, &other };
    struct worst w = { 0, 0, 0, 0, 0 };
    double loss_ref = 0, grad_ref = 0, largest = 0;
    size_t j;
    int i, k;
    for (i = 0; i < 3; i++) {
        s = make_setup(m, &a, i < 2 ? names[i] : backend);
        *made[i] = run_rows(&s, r, MAX_ROWS);
    }
    for (j = 0; j < exact.n; j++) largest = fmax(largest, fabs((double)exact.g[j]));
    for (k = 0; k < exact.T; k++) loss_ref = fmax(loss_ref, fabs(ref.losses[k] - exact.losses[k]));
    for (j = 0; j < exact.n; j++) grad_ref = fmax(grad_ref, fabs((double)ref.g[j] - (double)exact.g[j]));
    for (k = 0; k < exact.T; k++)
        worst_add(&w, fabs(other.losses[k] - exact.losses[k]), fmax(10 * loss_ref, 1e-5), (size_t)k);
    for (j = 0; j < exact.n; j++)
        worst_add(&w, fabs((double)other.g[j] - (double)exact.g[j]), fmax(10 * grad_ref, 1e-4 * largest), j);
    CHECK_WORST(w, "losses and gradients");
    printf("  ref deviates by %.2g (losses), %.2g (gradients, largest %.2g)\n", loss_ref, grad_ref, largest);
    for (i = 0; i < 3; i++) free(made[i]->g);
}

#endif
