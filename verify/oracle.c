/* oracle.c - runs one case on two tables and compares: see oracle.h. The cases are in
 * oracle_cases.c and its neighbours. */
#include "oracle.h"

#include "../nf4.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPERANDS = ORACLE_OPERANDS, GUARD_INT = -7654321 };
enum { UNTOUCHED = -1, IGNORED = -2 };          /* in place of a bound */
enum use { IN, OUT, INOUT, SCRATCH };

#define ARENA_BYTES ((size_t)96 << 20)
#define COUNT(array) (sizeof (array) / sizeof *(array))
#define MARK 0x5a17c0de                         /* behind the scratch memory */

/* A buffer of a case. All numbers are doubles here; they are exact in the table's type. */
struct operand {
    enum use use;
    int is_int, absent;         /* absent: NULL is passed */
    size_t n;
    double *start;              /* what it holds before; NaN for OUT */
    double *want;               /* what it holds after the oracle */
    double *bound;              /* for each element: the error allowed, UNTOUCHED or IGNORED */
};

struct trial;
/* What a case needs to be called on one table. */
struct call {
    const struct kernels *k;
    struct kernel_ctx *c;
    buf *b[MAX_OPERANDS];
    struct weight w;
    struct quantised q;         /* w's, in a table's own memory */
    double returned;
    int unread;                 /* the table cannot read w, and what it was asked for was made of others */
};
typedef int caller(struct call *x, const struct trial *t);

/* A case: its operands, and its parameters by the names that kernels.h gives them. */
struct trial {
    struct oracle *o;
    const char *op;
    char label[160];
    caller *call;
    struct operand operand[MAX_OPERANDS];
    int operands;
    uint64_t key;               /* of its random numbers */
    struct weight weight;       /* data: host bytes; TYPE_REAL: operand number `weight_operand` */
    size_t weight_bytes;
    int weight_operand;
    double *dense;              /* the weight's numbers [rows, cols] */
    int N, M, C, V, HS, NH, NKV, S, flag, window;
    int rank;
    size_t n;
    double scale, eps, p;
    struct adamw_step step;
    double returned, returned_bound;
    const char *fault;
    char failure[256];          /* what the table said of it */
    int unread;
};

struct oracle {
    struct kernels test, truth;
    oracle_report *report;
    void *context;
    struct arena arena;         /* of the case at hand */
    double u;                   /* unit roundoff of the table under test */
    int cases_alone;            /* there is no table under test */
    int compute;                /* how it multiplies by frozen weights */
    uint64_t cases, every;      /* every: of so many one; the others are left out */
    int failed, stopped, no_memory;
    const char *not_opened;     /* the table whose open() failed */
};

static double *numbers(struct trial *t, size_t n)
{
    return arena_take(&t->o->arena, n, sizeof(double));
}

static void trial_begin(struct trial *t, struct oracle *o, const char *op, caller *call,
                        const char *format, ...)
{
    va_list arguments;
    memset(t, 0, sizeof *t);
    t->o = o;
    t->op = op;
    t->call = call;
    t->weight_operand = -1;
    t->key = random_key(o->cases++, op);
    o->arena.used = 0;
    o->arena.failed = 0;
    va_start(arguments, format);
    vsnprintf(t->label, sizeof t->label, format, arguments);
    va_end(arguments);
}

/* Is the case at hand not to be run? Then its numbers are not made. */
static int left_out(const struct oracle *o) { return o->stopped || (o->every > 1 && o->cases % o->every); }

static double random_in(struct trial *t, uint64_t index)
{
    return random_uniform(t->key, ((uint64_t)t->operands << 40) + index);
}

static int random_below(struct trial *t, uint64_t index, int n) { return (int)(random_in(t, index) * n); }

static double rounded(double x) { return (double)(float)x; }

/* How operands are filled. */
enum mode { NORMAL, EXACT, WILD, SHORT };       /* SHORT: numbers that bf16 has */

static double draw(struct trial *t, enum mode mode, size_t i)
{
    double x;
    if (mode == EXACT) return random_below(t, i, 7) - 3;
    x = random_normal(t->key, ((uint64_t)t->operands << 40) + i);
    if (mode == WILD) return rounded(ldexp(x, random_below(t, i + ((uint64_t)1 << 39), 25) - 12));
    return mode == SHORT ? bf16_to_f32(f32_to_bf16((float)x)) : rounded(x);
}

/* Adds operand number t->operands: returns its numbers, filled by draw() or with NaN for OUT. */
static double *add_operand(struct trial *t, enum use use, size_t n, enum mode mode)
{
    struct operand *a = &t->operand[t->operands];
    size_t i;
    a->use = use;
    a->n = n;
    a->start = numbers(t, n);
    a->want = numbers(t, n);
    a->bound = numbers(t, n);
    for (i = 0; a->bound && !left_out(t->o) && i < n; i++) {
        a->start[i] = use == OUT || use == SCRATCH ? NAN : draw(t, mode, i);
        a->bound[i] = use == IN ? UNTOUCHED : use == SCRATCH ? IGNORED : 0;
    }
    t->operands++;
    return a->start;
}

static double *add_ints(struct trial *t, enum use use, size_t n, int below)
{
    struct operand *a = &t->operand[t->operands];
    size_t i;
    double *start = add_operand(t, use, n, EXACT);
    a->is_int = 1;
    for (i = 0; !t->o->arena.failed && i < n; i++) start[i] = use == IN ? random_below(t, i, below) : -1;
    return start;
}

static void add_absent(struct trial *t) { t->operand[t->operands++].absent = 1; }

/* ---- one table ---- */

/* Elements between a buffer's edge and its guard's: buffers are at multiples of 64 bytes, or not. */
static size_t guard_of(const struct trial *t) { return t->key & 1 ? 16 : 19; }

/* The operand as it is before the call, its reals `times` as large, into p, its guards around it. */
static void place(struct trial *t, const struct kernels *k, struct kernel_ctx *c,
                  const struct operand *a, void *p, double times)
{
    size_t used = t->o->arena.used, guard = guard_of(t), all = a->n + 2 * guard, i;
    double *x = numbers(t, all);
    int *whole = arena_take(&t->o->arena, all, sizeof *whole);
    if (!x || !whole) return;
    for (i = 0; i < all; i++) {
        int inside = i >= guard && i < guard + a->n;
        x[i] = inside ? a->start[i - guard] * times : NAN;
        whole[i] = inside && a->is_int ? (int)a->start[i - guard] : GUARD_INT;
    }
    if (a->is_int) k->up_ints(c, p, whole, all);
    else k->up64(c, p, x, all);
    t->o->arena.used = used;
}

/* What the operand holds now, into got[n]. Says what was written outside. */
static void fetch(struct trial *t, const struct kernels *k, struct kernel_ctx *c,
                  const struct operand *a, const void *p, double *got)
{
    size_t used = t->o->arena.used, guard = guard_of(t), all = a->n + 2 * guard, i;
    double *x = numbers(t, all);
    int *whole = arena_take(&t->o->arena, all, sizeof *whole);
    if (!x || !whole) return;
    if (a->is_int) {
        k->down_ints(c, whole, p, all);
        for (i = 0; i < all; i++) x[i] = whole[i] == GUARD_INT ? NAN : whole[i];
    } else {
        k->down64(c, x, p, all);
    }
    for (i = 0; i < guard; i++)
        if (x[i] == x[i] || x[guard + a->n + i] == x[guard + a->n + i])
            t->fault = "wrote outside its buffers";
    if (a->n) memcpy(got, x + guard, a->n * sizeof *got);
    t->o->arena.used = used;
}

static int larger(int a, int b) { return a > b ? a : b; }

static void sizes_of(struct kernel_sizes *z, const struct trial *t, int threads)
{
    int i;
    *z = (struct kernel_sizes){
        .threads = threads, .N = larger(t->N, t->M), .V = t->V, .HS = t->HS, .NH = t->NH, .NKV = t->NKV, .segments = t->S,
        .width = larger(larger(larger(t->C, t->M), larger(t->weight.rows, t->weight.cols)), t->NH * t->HS)
    };
    for (i = 0; t->S && i < t->operands; i++)       /* no query sees more keys than any operand has rows */
        z->keys = larger(z->keys, (int)t->operand[i].n / (t->NKV * t->HS));
}

/* Scratch memory that starts as NaN and ends in a mark. */
static void *scratch(const struct kernels *k, struct kernel_ctx *c, const struct trial *t)
{
    struct kernel_sizes sizes;
    int mark[4096], i;
    size_t done, ones;
    void *p;
    for (i = 0; i < 4096; i++) mark[i] = -1;
    sizes_of(&sizes, t, c->threads);
    c->work_bytes = kernels_work_bytes(k, &sizes) / 64 * 64;
    p = k->alloc(c, c->work_bytes + 64);
    for (done = 0; p && done < c->work_bytes; done += ones) {   /* all bits set: a NaN of any size */
        ones = c->work_bytes - done < sizeof mark ? c->work_bytes - done : sizeof mark;
        k->up_ints(c, (ints *)((char *)p + done), mark, ones / sizeof *mark);
    }
    for (i = 0; i < 16; i++) mark[i] = MARK;
    if (p) k->up_ints(c, (ints *)((char *)p + c->work_bytes), mark, 16);
    c->work = c->work_bytes ? p : NULL;
    return p;
}

static void check_scratch(struct trial *t, const struct kernels *k, struct kernel_ctx *c, const void *p)
{
    int mark[16], i;
    k->down_ints(c, mark, (const ints *)((const char *)p + c->work_bytes), 16);
    for (i = 0; i < 16; i++)
        if (mark[i] != MARK) t->fault = "wrote behind its scratch memory";
}

/* The weight where the table can read it: in the host's memory at an odd address, as in a file. */
static void *place_weight(const struct trial *t, struct call *x)
{
    void *p;
    x->w = t->weight;
    if (t->weight_operand >= 0) {
        x->w.data = x->b[t->weight_operand];
        return NULL;
    }
    if (!t->weight_bytes) return NULL;
    if (x->k->own_memory) return kernels_copy_weight(x->k, x->c, &x->w, &x->q, &t->weight);
    p = x->k->alloc(x->c, t->weight_bytes + 1);
    x->w.data = p ? (char *)p + 1 : NULL;
    if (p) memcpy((char *)p + 1, t->weight.data, t->weight_bytes);
    return p;
}

/* Runs the case on a table; got[i] receives operand i. The operation's answer, or -1 without memory. Of two calls
 * the first has the same buffers, with half of the numbers in them: nothing may be left of it. */
static int run_on(struct trial *t, const struct kernels *k, int threads, int calls, double **got, double *returned)
{
    struct kernel_ctx c = { .threads = threads, .compute = k == &t->o->test ? t->o->compute : COMPUTE_F32 };
    struct call x = { .k = k, .c = &c };
    void *p[MAX_OPERANDS] = { NULL }, *w, *work;
    int i, rc = 0;
    work = scratch(k, &c, t);
    if (work && k->open(&c)) {
        k->release(&c, work);
        t->o->not_opened = k->name;
        return -1;
    }
    if (!work) return -1;
    for (i = 0; i < t->operands; i++) {
        size_t guard = guard_of(t), bytes = (size_t)(t->operand[i].is_int ? 4 : k->elem);
        if (t->operand[i].absent) continue;
        p[i] = k->alloc(&c, (t->operand[i].n + 2 * guard) * bytes);
        if (!p[i]) rc = -1;
        else x.b[i] = (buf *)((char *)p[i] + guard * bytes);
    }
    w = place_weight(t, &x);
    if (t->weight_bytes && !w) rc = -1;
    for (; !rc && calls; calls--) {
        for (i = 0; i < t->operands; i++) if (p[i]) place(t, k, &c, &t->operand[i], p[i], calls > 1 ? 0.5 : 1);
        rc = t->o->arena.failed ? -1 : t->call(&x, t);
    }
    if (!rc) {
        *returned = x.returned;
        t->unread = x.unread;
        for (i = 0; i < t->operands; i++)
            if (!t->operand[i].absent) fetch(t, k, &c, &t->operand[i], p[i], got[i]);
        check_scratch(t, k, &c, work);
    }
    if (k->failed && k->failed(&c, t->failure, sizeof t->failure)) t->fault = t->failure;
    for (i = 0; i < t->operands; i++) if (p[i]) k->release(&c, p[i]);
    if (w) k->release(&c, w);
    k->release(&c, work);
    k->close(&c);
    return rc;
}

/* ---- comparing ---- */

static int same(double a, double b) { return a == b || (a != a && b != b); }

static void compare_one(struct oracle_result *r, const char *operand, double want, double got, double bound, size_t index)
{
    double err = fabs(got - want), share = err == 0 ? 0 : err / bound;
    r->compared++;
    if (share <= r->share) return;      /* NaN goes on */
    r->share = share == share ? share : INFINITY;
    r->err = err;
    r->bound = bound;
    r->operand = operand;
    r->index = index;
    r->expected = want;
    r->found = got;
}

static void compare(struct oracle_result *r, const struct trial *t, double **got, double returned)
{
    int i;
    size_t j;
    for (i = 0; i < t->operands; i++) {
        const struct operand *a = &t->operand[i];
        const char *name = r->operands[i].name;
        for (j = 0; j < a->n; j++) {
            if (a->bound[j] == IGNORED) continue;
            if (a->bound[j] == UNTOUCHED) {
                if (!same(got[i][j], a->start[j]))
                    r->fault = a->use == IN ? "changed an input" : "wrote what is not its to write";
            } else {
                compare_one(r, name, a->want[j], got[i][j], a->bound[j], j);
            }
        }
    }
    if (t->returned_bound >= 0) compare_one(r, "what it returned", t->returned, returned, t->returned_bound, 0);
    if (!r->fault && !(r->share <= 1)) r->fault = "the error is above its bound";
}

static void results_new(struct trial *t, double **got)
{
    int i;
    for (i = 0; i < t->operands; i++) got[i] = numbers(t, t->operand[i].n);
}

static int same_bits(const struct trial *t, double **a, double **b)
{
    int i;
    for (i = 0; i < t->operands; i++)
        if (t->operand[i].use != SCRATCH && t->operand[i].n
            && memcmp(a[i], b[i], t->operand[i].n * sizeof **a)) return 0;
    return 1;
}

static const char *operand_name(const struct trial *t, int i);

/* What is told of a case whatever comes of it. */
static void describe(struct oracle_result *r, const struct trial *t)
{
    int i;
    *r = (struct oracle_result){ .op = t->op, .label = t->label, .seed = t->key, .supported = 1, .n_operands = t->operands };
    for (i = 0; i < t->operands; i++) {
        const struct operand *a = &t->operand[i];
        r->operands[i] = (struct oracle_operand){ operand_name(t, i), a->use != IN, a->is_int, a->n, a->start, a->want, a->bound };
    }
    if (t->weight_operand < 0 && t->weight_bytes) {
        r->weight = &t->weight;
        r->weight_bytes = t->weight_bytes;
    }
}

static void trial_report(struct trial *t, struct oracle_result *r)
{
    if (r->fault) t->o->failed++;
    t->o->stopped = t->o->report(t->o->context, r);
}

/* The oracle first: it fills `want`. Then bounds(t) fills the bounds, then the table is tried. */
typedef void bounder(struct trial *t);

static int trial_oracle(struct trial *t, bounder *bounds)
{
    double *want[MAX_OPERANDS];
    int i;
    for (i = 0; i < t->operands; i++) want[i] = t->operand[i].want;
    t->returned_bound = UNTOUCHED;
    if (t->o->arena.failed || run_on(t, &t->o->truth, 1, 1, want, &t->returned)) return -1;
    if (bounds) bounds(t);
    return t->o->arena.failed ? -1 : 0;
}

static void trial_end(struct trial *t, bounder *bounds)
{
    struct oracle_result r;
    double *got[MAX_OPERANDS], *again[MAX_OPERANDS], returned = 0, returned_again;
    static const int some[] = { 2, 3, 5 };      /* each of them in three cases on end: in the long ones */
    int threads = some[t->o->cases % COUNT(some)], again_first = (int)(t->o->cases % 2), rc;
    if (left_out(t->o)) return;
    if (trial_oracle(t, bounds)) {
        t->o->no_memory = 1;
        return;
    }
    describe(&r, t);
    if (t->o->cases_alone) {
        trial_report(t, &r);
        return;
    }
    results_new(t, got);
    results_new(t, again);
    rc = run_on(t, &t->o->test, 1, again_first ? 2 : 1, got, &returned);
    if (rc < 0 && !t->failure[0]) t->o->no_memory = 1;
    if (rc == KERNEL_UNSUPPORTED || t->unread) r.supported = 0;
    if (rc < 0) r.fault = t->failure[0] ? t->failure : NULL;
    if (!rc) {
        compare(&r, t, got, returned);
        if (!r.fault && (run_on(t, &t->o->test, threads, again_first ? 1 : 2, again, &returned_again)
                         || !same_bits(t, got, again) || !same(returned, returned_again)))
            r.fault = "other bits with more threads, or in another call";
        if (t->fault) r.fault = t->fault;
    }
    trial_report(t, &r);
}

/* The oracle itself is held against a second way of computing, where a case has one. */
static void check_oracle(struct trial *t, double want, double other, double magnitude)
{
    if (!(fabs(want - other) <= 1e-12 * magnitude)) t->fault = "the oracle is wrong";
}

/* sqrt(sum of squares) of n elements, `stride` apart. */
static double norm(const double *x, int n, size_t stride)
{
    double sum = 0;
    int i;
    for (i = 0; i < n; i++) sum += x[i * stride] * x[i * stride];
    return sqrt(sum);
}

#include "oracle_cases.c"
#include "oracle_products.c"
#include "oracle_attention.c"

/* In the order of kernels.h: the operations, their cases, and what a case's operands are called; a weight that is
 * an operand (TYPE_REAL) stands behind the others. */
static const struct { const char *name; void (*cases)(struct oracle *o); const char *operands[ORACLE_OPERANDS]; } ops[] = {
    { "zero", zero_cases, { "x" } },
    { "copy", copy_cases, { "out", "x" } },
    { "gather", gather_cases, { "out", "x", "rows" } },
    { "scatter_add", scatter_add_cases, { "out", "x", "rows" } },
    { "embed", embed_cases, { "out", "ids", "w" } },
    { "embed_backward", embed_backward_cases, { "dw", "dout", "ids" } },
    { "matmul", matmul_cases, { "out", "x", "bias", "w" } },
    { "matmul_dx", matmul_dx_cases, { "dx", "dout", "unused", "w" } },
    { "matmul_dw", matmul_dw_cases, { "dw", "dout", "x" } },
    { "bias_backward", bias_backward_cases, { "db", "dout" } },
    { "linear", linear_cases, { "out", "h", "x", "bias", "a", "b", "w" } },
    { "linear_dx", linear_dx_cases, { "dx", "gh", "dout", "unused", "a", "b", "w" } },
    { "rmsnorm", rmsnorm_cases, { "out", "x", "w" } },
    { "rmsnorm_backward", rmsnorm_backward_cases, { "dx", "dw", "dout", "x", "w" } },
    { "rope", rope_cases, { "x", "cos", "sin", "pos" } },
    { "attention", attention_cases, { "out", "lse", "q", "k", "v", "segments" } },
    { "attention_backward", attention_backward_cases, { "dq", "dk", "dv", "delta", "q", "k", "v", "dout", "out", "lse", "segments" } },
    { "swiglu", swiglu_cases, { "out", "gate", "up" } },
    { "swiglu_backward", swiglu_backward_cases, { "dgate", "dup", "out", "dout", "gate", "up" } },
    { "dropout", dropout_cases, { "out", "x", "visit", "pos" } },
    { "cross_entropy", cross_entropy_cases, { "losses", "best", "logits", "first", "id", "weight" } },
    { "adamw", adamw_cases, { "p", "m", "v", "g" } },
    { "adamw8bit", adamw8bit_cases, { "p", "m", "mmax", "v", "vmax", "g" } },
    { "sum_squares", sum_squares_cases, { "x" } },
    { "not_finite", not_finite_cases, { "x" } }
};

const char *oracle_op(int i) { return i >= 0 && (size_t)i < COUNT(ops) ? ops[i].name : NULL; }

static const char *operand_name(const struct trial *t, int i)
{
    int op;
    for (op = 0; strcmp(ops[op].name, t->op); op++) {}
    return ops[op].operands[i] ? ops[op].operands[i] : "an operand";
}

int oracle_run(const struct kernels *under_test, const struct kernels *oracle, const char *op,
               oracle_report *report, void *context, struct lora_error *err)
{
    return oracle_run_some(under_test, COMPUTE_F32, 1, oracle, op, report, context, err);
}

int oracle_run_some(const struct kernels *under_test, int compute, int every, const struct kernels *oracle, const char *op,
                    oracle_report *report, void *context, struct lora_error *err)
{
    struct oracle o = {
        .test = under_test ? *under_test : kernels_ref, .cases_alone = !under_test, .compute = compute, .every = (uint64_t)every,
        .report = report, .context = context, .arena.size = ARENA_BYTES
    };
    int i, known = 0;
    if (!o.test.below && o.test.elem == sizeof(float)) o.test.below = &kernels_ref;
    kernels_complete(&o.test, &o.test);
    kernels_complete(&o.truth, oracle);
    o.u = o.test.elem == 8 ? ldexp(1, -53) : ldexp(1, -24);
    o.arena.base = malloc(ARENA_BYTES);
    if (!o.arena.base) return fail_memory(err, "the cases of the oracle", ARENA_BYTES);
    for (i = 0; (size_t)i < COUNT(ops); i++) {
        if (op && strcmp(op, ops[i].name)) continue;
        known = 1;
        if (!o.stopped) ops[i].cases(&o);
    }
    free(o.arena.base);
    if (!known) return fail(err, "unknown operation", "%s", op);
    if (o.not_opened) return fail(err, "cannot start the backend", "%s", o.not_opened);
    if (o.no_memory) return fail_memory(err, "a case of the oracle", ARENA_BYTES);
    return o.failed;
}
