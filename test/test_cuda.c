/* test_cuda.c - the CUDA kernels, emulated, held against the double reference: each operation in the cases of the oracle, in
 * f32 and, where products have it, in bf16; and again with all accesses checked (emulator.h). These are some of
 * the cases, for time, of products and attention fewest: with an operation's name it is that one alone, in all of its cases. */
#include "../verify/oracle.h"
#include "emulated.h"

struct figures { int cases, supported; double share, seconds; };

static int take(void *context, const struct oracle_result *r)
{
    struct figures *f = context;
    f->cases++;
    f->supported += r->supported;
    if (r->share > f->share) f->share = r->share;
    CHECK(!r->fault, "%s %s, seed %llu: %s; %s[%zu] expected %.9g, found %.9g, error %.3g of %.3g", r->op, r->label,
          (unsigned long long)r->seed, r->fault, r->operand ? r->operand : "", r->index, r->expected, r->found, r->err, r->bound);
    return 0;
}

static int is_product(const char *op)
{
    return !strcmp(op, "matmul") || !strcmp(op, "matmul_dx") || !strcmp(op, "linear") || !strcmp(op, "linear_dx");
}

/* Every `every`th case. */
static void run_op(const struct kernels *k, const char *label, const char *op, int compute, int every)
{
    struct figures f = { 0, 0, 0, 0 };
    struct lora_error err = { 0 };
    char name[96];
    snprintf(name, sizeof name, "%s%s%s", op, compute ? " in bf16" : "", label);
    test_begin(name);
    f.seconds = seconds_now();
    CHECK(oracle_run_some(k, compute, every, &kernels_ref64, op, take, &f, &err) >= 0, "%s", err.what);
    CHECK(f.supported == f.cases, "%d of %d cases were not supported", f.cases - f.supported, f.cases);
    printf("  %d cases, worst %.2f%% of its bound, %.2f s\n", f.cases, 100 * f.share, seconds_now() - f.seconds);
}

/* What fails is told, however late; but for too little memory, which alloc() answers. Leaves the table failed. */
static void errors(const struct kernels *k)
{
    struct kernel_ctx c = { 0 };
    struct kernel_sizes sizes = { 0 };
    float x[2] = { 1, 2 };
    char why[128] = "";
    buf *p = k->alloc(&c, sizeof x);
    test_begin("errors");
    c.work = k->alloc(&c, k->work_bytes(&sizes));
    CHECK(p && c.work && !k->open(&c), "open");
    CHECK(!k->alloc(&c, (size_t)1 << 50) && !k->failed(&c, why, sizeof why), "too little memory: %s", why);
    k->up(&c, p, x, 2);
    CHECK(k->sum_squares(&c, p, 2) == 5 && k->not_finite(&c, p, 2) == -1, "sound");
    k->zero(&c, (buf *)x, 2);           /* the host's */
    CHECK(k->failed(&c, why, sizeof why) && strlen(why) > strlen("CUDA: ") && x[0] == 1, "a failure is not told: %s", why);
    k->down(&c, x, p, 2);
    CHECK(x[0] != x[0] && x[1] != x[1], "numbers came down: %g %g", x[0], x[1]);
    CHECK(k->sum_squares(&c, p, 2) != 5 && k->not_finite(&c, p, 2) != -1, "a sum after a failure");
    CHECK(!k->alloc(&c, 4) && k->up_bytes(&c, x, x, 4), "memory after a failure");
    k->close(&c);
    k->release(&c, c.work);
    k->release(&c, p);
}

/* A product of few columns and many terms, which are cut into runs: N rows of it, or one row alone, in so much scratch memory. */
enum { ROWS = 13, COLUMNS = 20, TERMS = 1100 };

static int cut_product(const struct kernels *k, int backward, int compute, int from, int N, size_t bytes, float *out)
{
    static float x[ROWS * TERMS], w[COLUMNS * TERMS];
    struct kernel_ctx c = { .threads = 1, .compute = compute, .work_bytes = bytes };
    struct weight there = { .type = TYPE_F32, .rows = backward ? TERMS : COLUMNS, .cols = backward ? COLUMNS : TERMS };
    buf *dx = k->alloc(&c, sizeof x), *dw = k->alloc(&c, sizeof w), *dout = k->alloc(&c, ROWS * COLUMNS * sizeof *out);
    int i, bad;
    for (i = 0; i < ROWS * TERMS; i++) x[i] = (float)random_normal(1, (uint64_t)i);
    for (i = 0; i < COLUMNS * TERMS; i++) w[i] = (float)random_normal(2, (uint64_t)i);
    there.data = dw;
    c.work = k->alloc(&c, bytes);
    bad = !dx || !dw || !dout || !c.work || k->open(&c);
    if (!bad) {
        k->up(&c, dx, x + from * TERMS, (size_t)N * TERMS);
        k->up(&c, dw, w, COLUMNS * TERMS);
        bad = backward ? k->matmul_dx(&c, dout, dx, &there, 1, 0, N) : k->matmul(&c, dout, dx, &there, NULL, 1, 0, N);
        k->down(&c, out, dout, (size_t)N * COLUMNS);
        k->close(&c);
    }
    k->release(&c, dx);
    k->release(&c, dw);
    k->release(&c, dout);
    k->release(&c, c.work);
    return bad;
}

/* With less scratch memory a product takes fewer rows at a time, to the same bits. */
static void pieces(const struct kernels *k, int backward, int compute)
{
    const struct kernel_sizes sizes = { .threads = 1, .N = ROWS, .width = TERMS, .V = 1, .HS = 1, .NH = 1, .NKV = 1 };
    const size_t row = 5 * COLUMNS * sizeof(float) + (compute ? 1152 * 2 : 0);      /* five runs, whole steps of 64 terms */
    float whole[ROWS * COLUMNS], some[ROWS * COLUMNS];
    char name[80];
    int rows, from;
    snprintf(name, sizeof name, "%s%s: rows in less scratch memory", backward ? "matmul_dx" : "matmul", compute ? " in bf16" : "");
    test_begin(name);
    CHECK(!cut_product(k, backward, compute, 0, ROWS, k->work_bytes(&sizes), whole));
    for (rows = 1; rows <= 9; rows += 4) {
        memset(some, 0, sizeof some);
        CHECK(!cut_product(k, backward, compute, 0, ROWS, (size_t)rows * row, some) && !memcmp(some, whole, sizeof whole), "room for %d rows", rows);
    }
    for (from = 0; from + FEW_ROWS <= ROWS; from += 5)
        CHECK(!cut_product(k, backward, compute, from, FEW_ROWS, FEW_ROWS * row, some)
              && !memcmp(some, whole + from * COLUMNS, FEW_ROWS * COLUMNS * sizeof *some), "rows from %d on alone", from);
}

/* Both computes of operation `only`, or of all; of the slow ones every `every`th case, of the others ten times as many. */
static void run_table(const char *path, const char *label, const char *only, int every)
{
    const struct kernels *k;
    const char *op;
    int i;
    if (!path) return;
    test_begin("the table is found and whole");
    k = emulated_table(path);
    for (i = 0; k && (op = oracle_op(i)); i++) {
        int slow = is_product(op) || strstr(op, "attention") || !strcmp(op, "embed");
        if (only && strcmp(op, only)) continue;
        run_op(k, label, op, COMPUTE_F32, slow ? every : (every + 9) / 10);
        if (is_product(op) && k->has_bf16) run_op(k, label, op, COMPUTE_BF16, every);
    }
    for (i = 0; k && !only && i < 4; i++) pieces(k, i % 2, i < 2 ? COMPUTE_F32 : COMPUTE_BF16);
    if (k && !only) errors(k);
}

int main(int argc, char **argv)
{
    const char *only = argc > 1 ? argv[1] : NULL;
    int fewer = test_emulated() ? 40 : 1;   /* an emulator over an emulator */
    char path[1024];
    run_table(emulated_path(path, argv[0], "cuda_emulated.so"), "", only, only ? 1 : 5 * fewer);
#ifdef HAVE_ACCESSES
    run_table(emulated_path(path, argv[0], "cuda_checked.so"), ", accesses checked", only, only ? 1 : 31 * fewer);
#else
    test_skip("accesses checked", "the compiler has no -fsanitize=thread");
#endif
    return test_end();
}
