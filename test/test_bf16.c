/* test_bf16.c - --compute bf16: products of frozen weights in bf16 against the oracle and its derived bounds,
 * rounding bit by bit, the whole model beside a reference that rounds the same operands. */
#include "test.h"
#include "../verify/oracle.h"
#include "rounded.h"
#include "tiny.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* ---- operations ---- */

struct tally { struct worst worst; int cases, failed; char first[200]; };

static int tally_result(void *context, const struct oracle_result *r)
{
    struct tally *t = context;
    t->cases++;
    if (r->share > t->worst.share || !t->worst.n) {
        t->worst.share = r->share;
        t->worst.err = r->err;
        t->worst.bound = r->bound;
    }
    t->worst.n += r->compared;
    if (r->fault && !t->failed++)
        snprintf(t->first, sizeof t->first, "%s: %s (error %.3g, bound %.3g at %zu)", r->label, r->fault, r->err, r->bound, r->index);
    return 0;
}

static const char *const products[] = { "matmul", "matmul_dx", "linear", "linear_dx", "matmul_dw" };

/* The first n of the products. */
static void must_pass(const struct kernels *k, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++) {
        struct tally t;
        char name[80];
        memset(&t, 0, sizeof t);
        snprintf(name, sizeof name, "%s, bf16: %s", k->name, products[i]);
        test_begin(name);
        CHECK(!oracle_run_some(k, COMPUTE_BF16, 1, &kernels_ref64, products[i], tally_result, &t, NULL), "%d of %d: %s",
              t.failed, t.cases, t.first);
        CHECK_WORST(t.worst, name);
    }
}

static int count_faults(void *context, const struct oracle_result *r)
{
    *(int *)context += r->fault != NULL;
    return r->fault != NULL;        /* one is enough */
}

static void must_reject(const struct kernels *k, int compute, const char *op, const char *what)
{
    int faults = 0;
    oracle_run_some(k, compute, 1, &kernels_ref64, op, count_faults, &faults, NULL);
    CHECK(faults, "%s that %s passes all of its cases", op, what);
}

static void test_planted_faults(void)
{
    struct kernels wrong = rounding_reference();
    size_t f;
    for (f = 1; f < COUNT(fault_names); f++) {
        char name[80];
        snprintf(name, sizeof name, "a product that %s is rejected", fault_names[f]);
        test_begin(name);
        fault = (enum fault)f;
        must_reject(&wrong, COMPUTE_BF16, "matmul", fault_names[f]);
        must_reject(&wrong, COMPUTE_BF16, "matmul_dx", fault_names[f]);
    }
    fault = NONE;
}

/* The table, in bf16 whatever it is asked for. */
static struct kernels unasked;
static int unasked_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias,
                          double scale, int accumulate, int N)
{
    struct kernel_ctx in_bf16 = *c;
    in_bf16.compute = COMPUTE_BF16;
    return unasked.matmul(&in_bf16, out, x, w, bias, scale, accumulate, N);
}

static int unasked_matmul_dx(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w, double scale,
                             int accumulate, int N)
{
    struct kernel_ctx in_bf16 = *c;
    in_bf16.compute = COMPUTE_BF16;
    return unasked.matmul_dx(&in_bf16, dx, dout, w, scale, accumulate, N);
}

static void test_not_f32(const struct kernels *k)
{
    struct kernels disguised;
    char name[80];
    kernels_complete(&unasked, k);
    disguised = unasked;
    disguised.matmul = unasked_matmul;
    disguised.matmul_dx = unasked_matmul_dx;
    snprintf(name, sizeof name, "%s: bf16 does not pass for f32", k->name);
    test_begin(name);
    must_reject(&disguised, COMPUTE_F32, "matmul", "multiplies in bf16");
    must_reject(&disguised, COMPUTE_F32, "matmul_dx", "multiplies in bf16");
}

/* ---- rounding, bit by bit: by the identity as the other operand each number comes back as bf16 has it ---- */

enum { SIDE = 96 };

/* Ties, both neighbours of ties, denormals, the largest, infinity; else any bits but NaN's. */
static float hard_number(size_t i)
{
    static const uint32_t hard[] = {
        0x00000000, 0x80000000, 0x3f808000, 0x3f818000, 0x3f807fff, 0x3f808001, 0x3f818001, 0xbf808000, 0xbf818000,
        0x3fff8000, 0x7f7f7fff, 0x7f7f8000, 0xff7f8000, 0x7f7fffff, 0x7f800000, 0xff800000, 0x00800000, 0x00808000,
        0x00000001, 0x807fffff, 0x007f8000, 0x0080ffff
    };
    uint32_t bits = i < COUNT(hard) ? hard[i] : (uint32_t)random_bits(17, i);
    if (i >= COUNT(hard) && i % 3 == 0) bits = (bits & 0xffff0000) | 0x8000;        /* a tie */
    if ((bits & 0x7f800000) == 0x7f800000 && (bits & 0x7fffff)) bits &= 0xbfffffff;
    return float_of(bits);
}

static float as_bf16(float x)
{
    float y = bf16_to_f32(f32_to_bf16(x));
    return fabsf(x) < 1.17549435e-38f ? 0 : y;      /* denormals count as 0 */
}

/* One element of a product by the identity; an infinity makes a NaN of what is multiplied by 0. */
static void check_rounded(float got, float x, int infinite, size_t i)
{
    float want = as_bf16(x);
    CHECK(infinite ? got != got || got == want : got == want, "element %zu, %a: %a instead of %a", i, x, got, want);
}

static void test_rounding(const struct kernels *table)
{
    static float x[SIDE * SIDE], one[SIDE * SIDE], out[SIDE * SIDE];
    struct kernels k;
    struct kernel_ctx c = { .threads = 2, .compute = COMPUTE_BF16 };
    struct kernel_sizes z = { .threads = 2, .N = SIDE, .width = SIDE, .V = 1, .HS = 1, .NH = 1, .NKV = 1, .keys = 1, .segments = 1 };
    struct weight w = { .type = TYPE_F32, .rows = SIDE, .cols = SIDE };
    char name[80];
    size_t i;
    int infinite[SIDE] = { 0 }, round;
    kernels_complete(&k, table);
    c.work_bytes = k.work_bytes(&z);
    if (!(c.work = k.alloc(&c, c.work_bytes))) abort();
    snprintf(name, sizeof name, "%s: rounds to nearest, ties to even", table->name);
    test_begin(name);
    for (round = 0; round < 4; round++) {
        memset(infinite, 0, sizeof infinite);
        for (i = 0; i < SIDE * SIDE; i++) {
            x[i] = hard_number(i + (size_t)round * SIDE * SIDE);
            one[i] = i / SIDE == i % SIDE;
            infinite[i / SIDE] |= fabsf(as_bf16(x[i])) > 3.4e38f;
        }
        w.data = one;       /* x rounded: row by row */
        CHECK(!k.matmul(&c, (buf *)out, (const buf *)x, &w, NULL, 1, 0, SIDE));
        for (i = 0; i < SIDE * SIDE; i++) check_rounded(out[i], x[i], infinite[i / SIDE], i);
        CHECK(!k.matmul_dx(&c, (buf *)out, (const buf *)x, &w, 1, 0, SIDE));
        for (i = 0; i < SIDE * SIDE; i++) check_rounded(out[i], x[i], infinite[i / SIDE], i);
        w.data = x;         /* W rounded: W^T, then W */
        CHECK(!k.matmul(&c, (buf *)out, (const buf *)one, &w, NULL, 1, 0, SIDE));
        for (i = 0; i < SIDE * SIDE; i++) check_rounded(out[i % SIDE * SIDE + i / SIDE], x[i], infinite[i / SIDE], i);
        memset(infinite, 0, sizeof infinite);
        for (i = 0; i < SIDE * SIDE; i++) infinite[i % SIDE] |= fabsf(as_bf16(x[i])) > 3.4e38f;
        CHECK(!k.matmul_dx(&c, (buf *)out, (const buf *)one, &w, 1, 0, SIDE));
        for (i = 0; i < SIDE * SIDE; i++) check_rounded(out[i], x[i], infinite[i % SIDE], i);
    }
    x[5] = NAN;
    CHECK(!k.matmul_dx(&c, (buf *)out, (const buf *)one, &w, 1, 0, SIDE));
    CHECK(out[5] != out[5], "a NaN was lost: %g", out[5]);
    k.release(&c, c.work);
}

/* An infinite number of W is in its row's and its column's results alone: what a panel is filled up with is not the next row. */
static void test_infinite(const struct kernels *table)
{
    enum { N = 9, O = 35, I = 44, ROW = 7, COLUMN = 3 };
    static const int types[] = { TYPE_F32, TYPE_BF16 };
    float x[N * I], y[N * O], out[N * O], dx[N * I], numbers[O * I];
    uint16_t halves[O * I];
    struct kernels k;
    struct kernel_ctx c = { .threads = 1, .compute = COMPUTE_BF16 };
    struct kernel_sizes z = { .threads = 1, .N = N, .width = I, .V = 1, .HS = 1, .NH = 1, .NKV = 1, .keys = 1, .segments = 1 };
    struct weight w = { .rows = O, .cols = I };
    char name[80];
    int i, type;
    kernels_complete(&k, table);
    c.work_bytes = k.work_bytes(&z);
    if (!(c.work = k.alloc(&c, c.work_bytes))) abort();
    snprintf(name, sizeof name, "%s, bf16: an infinite number stays in its row and column", table->name);
    test_begin(name);
    for (i = 0; i < N * I; i++) x[i] = (float)random_normal(1, (uint64_t)i);
    for (i = 0; i < N * O; i++) y[i] = (float)random_normal(2, (uint64_t)i);
    for (i = 0; i < O * I; i++) numbers[i] = (float)random_normal(3, (uint64_t)i);
    numbers[ROW * I + COLUMN] = INFINITY;
    for (i = 0; i < O * I; i++) halves[i] = f32_to_bf16(numbers[i]);
    for (type = 0; type < 2; type++) {
        w.type = types[type];
        w.data = type ? (const void *)halves : numbers;
        CHECK(!k.matmul(&c, (buf *)out, (const buf *)x, &w, NULL, 1, 0, N) && !k.matmul_dx(&c, (buf *)dx, (const buf *)y, &w, 1, 0, N));
        for (i = 0; i < N * O; i++) CHECK((out[i] - out[i] == 0) == (i % O != ROW), "%s: output %d", weight_types[w.type].name, i % O);
        for (i = 0; i < N * I; i++) CHECK((dx[i] - dx[i] == 0) == (i % I != COLUMN), "%s: input %d", weight_types[w.type].name, i % I);
    }
    k.release(&c, c.work);
}

/* ---- the whole model ---- */

enum { ROWS = 3, STEPS = 12, MAX_TARGETS = 64 };

struct outcome {                /* of one pack and its gradients, then of some steps of training */
    int targets, tensors;
    const struct trained *list;
    double losses[MAX_TARGETS], steps[STEPS];
    double *gradient;
    size_t n;
};

static void make_pack(struct pack *p, int V)
{
    static const int lengths[ROWS] = { 23, 9, 14 };
    unsigned char mask[24];
    int ids[24], i, t;
    for (i = 0; i < ROWS; i++) {
        for (t = 0; t < lengths[i]; t++) {
            ids[t] = (int)(random_bits(91, (uint64_t)(100 * i + t)) % (uint64_t)V);
            mask[t] = (unsigned char)(t > 2);
        }
        CHECK(!pack_row(p, ids, mask, lengths[i], 0, i, NULL));
    }
    CHECK(!pack_finish(p, NULL));
}

static struct adapter *make_adapter(const struct config *c)
{
    struct adapter_settings s;
    struct adapter *a = NULL;
    size_t i;
    memset(&s, 0, sizeof s);
    s.r = 4;
    s.alpha = 8;
    s.target_modules = "all-linear";
    if (adapter_new(&a, c, &s, NULL) || adapter_init(a, 1, NULL)) abort();
    for (i = 0; i < a->size; i++) a->values[i] += (float)(0.1 * random_normal(5, i));
    return a;
}

static double mean(const double *x, int n)
{
    double sum = 0;
    int i;
    for (i = 0; i < n; i++) sum += x[i];
    return sum / n;
}

static struct outcome run_model(const struct model *m, const struct kernels *k, int compute, int threads)
{
    static const struct lora_hyper h = { 0.02, 0.9, 0.999, 1e-8, 0, 1 };
    struct outcome o;
    struct adapter *a = make_adapter(&m->config);
    struct pack p = { 0 };
    struct lora_setup s;
    struct lora *l = NULL;
    struct lora_error err = { "", "", "", "", "" };
    double losses[MAX_TARGETS], norm;
    int i;
    memset(&o, 0, sizeof o);
    make_pack(&p, m->config.V);
    memset(&s, 0, sizeof s);
    s.kernels = k;
    s.compute = compute;
    s.threads = threads;
    s.model = m;
    s.adapters = &a;
    s.n_adapters = 1;
    lora_sizes_raise(&s.sizes, &p);
    s.sizes.backward = 1;
    s.sizes.keep = -1;
    if (lora_open(&l, &s, &err)) {
        CHECK(0, "%s: %s: %s", err.what, err.where, err.found);
        exit(1);
    }
    o.targets = p.T;
    o.n = lora_trained_size(l);
    o.gradient = malloc(o.n * sizeof *o.gradient);
    if (!o.gradient || p.T > MAX_TARGETS) abort();
    CHECK(!lora_train(l, &p, 1.0 / p.T, o.losses, NULL, NULL));
    lora_get64(l, LORA_GRADIENTS, o.gradient);
    lora_zero_gradients(l);
    for (i = 0; i < STEPS; i++) {
        CHECK(!lora_train(l, &p, 1.0 / p.T, losses, NULL, NULL));
        o.steps[i] = mean(losses, p.T);
        CHECK(!lora_step(l, &h, &norm, NULL));
    }
    pack_free(&p);
    lora_close(l);
    adapter_free(a);
    return o;
}

static double distance(const double *a, const double *b, size_t n)
{
    double sum = 0;
    size_t i;
    for (i = 0; i < n; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sqrt(sum);
}

/* What is exact, in f32, with a reference's roundings, and what is tried: one vector of each. The bound is ten times the
 * reference's own deviation; f32's, likewise, must be passed; and the same roundings come closer to each other than to none. */
static void check_vector(struct worst *w, const char *what, const double *exact, const double *f32, const double *reference,
                         const double *tried, size_t n, size_t index)
{
    double rounding = distance(reference, exact, n), off = distance(tried, exact, n);
    worst_add(w, off, 10 * rounding, index);
    CHECK(!(off <= 10 * distance(f32, exact, n)), "%s %zu: bf16 passes for f32: %g", what, index, off);
    CHECK(distance(tried, reference, n) <= rounding, "%s %zu: %g from the reference, whose roundings make %g", what, index,
          distance(tried, reference, n), rounding);
}

static void test_model(const char *name, const struct config *c)
{
    static const int threads[] = { 1, 3 };
    struct kernels rounding = rounding_reference();
    const struct kernels *auto_table = kernels_find("auto", NULL);
    struct outcome exact, f32, reference, tried[2];
    struct worst w = { 0, 0, 0, 0, 0 }, g = w, s = w;
    struct tiny t;
    size_t i, part;
    test_begin(name);
    tiny_open(&t, c, 11);
    exact = run_model(&t.model, &kernels_ref64, COMPUTE_F32, 1);
    f32 = run_model(&t.model, &kernels_ref, COMPUTE_F32, 1);
    reference = run_model(&t.model, &rounding, COMPUTE_BF16, 1);
    for (i = 0; i < 2; i++) tried[i] = run_model(&t.model, auto_table, COMPUTE_BF16, threads[i]);
    check_vector(&w, "losses", exact.losses, f32.losses, reference.losses, tried[0].losses, (size_t)exact.targets, 0);
    CHECK_WORST(w, "losses");
    part = exact.n / 8;         /* pieces of the gradient, of all tensors in their order */
    for (i = 0; i < exact.n; i += part) {
        size_t n = exact.n - i < part ? exact.n - i : part;
        check_vector(&g, "gradient", exact.gradient + i, f32.gradient + i, reference.gradient + i, tried[0].gradient + i, n, i);
    }
    CHECK_WORST(g, "gradients");
    worst_add(&s, distance(tried[0].steps, exact.steps, STEPS), 10 * distance(reference.steps, exact.steps, STEPS), 0);
    CHECK_WORST(s, "losses of 12 steps");
    CHECK(tried[0].steps[STEPS - 1] < 0.9 * tried[0].steps[0], "nothing is learnt: %g to %g", tried[0].steps[0], tried[0].steps[STEPS - 1]);
    CHECK(!memcmp(tried[0].losses, tried[1].losses, sizeof tried[0].losses) && !memcmp(tried[0].steps, tried[1].steps, sizeof tried[0].steps)
          && !memcmp(tried[0].gradient, tried[1].gradient, exact.n * sizeof(double)), "other bits with 3 threads");
    for (i = 0; i < 2; i++) free(tried[i].gradient);
    free(exact.gradient);
    free(f32.gradient);
    free(reference.gradient);
    tiny_close(&t);
}

static void test_models(void)
{
    struct config c = tiny_config();
    test_model("the whole model: losses, gradients, 12 steps", &c);
    c.C = 72;
    c.V = 131;
    c.NH = 6;
    c.HS = 12;
    c.F = 100;
    c.tied = 1;
    test_model("the same, wider, head and embedding one", &c);
}

/* ---- where it is not ---- */

static void test_refusal(void)
{
    struct kernels none = kernels_ref;
    struct lora_error err = { "", "", "", "", "" };
    struct lora_setup s;
    struct lora *l = NULL;
    struct config c = tiny_config();
    struct tiny t;
    test_begin("a table without bf16 says so, and that f32 is there");
    tiny_open(&t, &c, 1);
    memset(&s, 0, sizeof s);
    s.kernels = &none;
    s.compute = COMPUTE_BF16;
    s.threads = 1;
    s.model = &t.model;
    s.sizes.N = s.sizes.S = s.sizes.positions = 1;
    CHECK(lora_open(&l, &s, &err) == -1 && !l);
    CHECK(!strcmp(err.what, "cannot multiply in bf16") && strstr(err.where, "ref") && strstr(err.found, "f32 alone")
          && strstr(err.hint, "--compute f32"), "%s: %s: %s (%s)", err.what, err.where, err.found, err.hint);
    s.compute = COMPUTE_F32;
    CHECK(!lora_open(&l, &s, &err), "%s", err.what);
    lora_close(l);
    tiny_close(&t);
}

int main(void)
{
    struct kernels reference = rounding_reference();
    char why[256] = "";
    int i;
    test_refusal();
    must_pass(&reference, 1);
    test_planted_faults();
    for (i = 0; kernels_all[i]; i++) {
        const struct kernels *k = kernels_all[i];
        if (!k->has_bf16) continue;
        if (!k->usable(why, sizeof why) || !k->has_bf16(why, sizeof why)) {
            test_skip(k->name, why);
            continue;
        }
        must_pass(k, k == kernels_find("auto", NULL) ? COUNT(products) : 1);      /* the same code behind all */
        test_not_f32(k);
        test_rounding(k);
        test_infinite(k);
    }
    if (kernels_find("auto", NULL)->has_bf16 && kernels_find("auto", NULL)->has_bf16(why, sizeof why)) test_models();
    else test_skip("the whole model in bf16", why);
    return test_end();
}
