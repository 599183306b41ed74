/* test_cuda.c - the CUDA kernels, emulated, held against the double reference: each operation of the table in every case of
 * the oracle, in f32 and, where products have it, in bf16. */
#include "../verify/oracle.h"
#include "test.h"

#include <dlfcn.h>

struct figures { int cases, supported; double share; };

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

static void run_op(const struct kernels *k, const char *op, int compute)
{
    struct figures f = { 0, 0, 0 };
    struct lora_error err = { 0 };
    char name[96];
    snprintf(name, sizeof name, "%s%s", op, compute ? " in bf16" : "");
    test_begin(name);
    CHECK(oracle_run_compute(k, compute, &kernels_ref64, op, take, &f, &err) >= 0, "%s", err.what);
    CHECK(f.supported == f.cases, "%d of %d cases were not supported", f.cases - f.supported, f.cases);
    printf("  %d cases, worst %.2f%% of its bound\n", f.cases, 100 * f.share);
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

int main(int argc, char **argv)
{
    union { void *found; const struct kernels *(*call)(void); } symbol;
    char path[1024], *slash;
    const char *op;
    void *object;
    int i;
    snprintf(path, sizeof path - 20, "%s", argv[0]);
    slash = strrchr(path, '/');
    strcpy(slash ? slash + 1 : path, "cuda_emulated.so");
    object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!object || !(symbol.found = dlsym(object, "lora_kernels"))) {
        test_skip("the CUDA kernels, emulated", dlerror());
        return test_end();
    }
    if (argc < 2 && (!symbol.call()->matmul_dw || !symbol.call()->attention_backward)) {
        test_skip("the CUDA kernels, emulated", "the table is not whole");
        return test_end();
    }
    for (i = 0; (op = oracle_op(i)); i++) {
        if (argc > 1 && strcmp(op, argv[1])) continue;
        run_op(symbol.call(), op, COMPUTE_F32);
        if (symbol.call()->has_bf16 && (!strcmp(op, "matmul") || !strcmp(op, "matmul_dx"))) run_op(symbol.call(), op, COMPUTE_BF16);
    }
    if (argc < 2 || !strcmp(argv[1], "errors")) errors(symbol.call());
    return test_end();
}
