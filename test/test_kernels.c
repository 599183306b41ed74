/* test_kernels.c - every operation of every table against the double reference. */
#include "test.h"
#include "verify/oracle.h"

struct tally { struct worst worst; int cases, unsupported, failed, shown; };

static int tally_result(void *context, const struct oracle_result *r)
{
    struct tally *t = context;
    t->cases++;
    if (!r->supported) t->unsupported++;
    if (r->share > t->worst.share || !t->worst.n) {
        t->worst.share = r->share;
        t->worst.err = r->err;
        t->worst.bound = r->bound;
        t->worst.index = r->index;
    }
    t->worst.n += r->compared;
    if (r->fault) {
        t->failed++;
        if (t->shown++ < 5)
            printf("  %s, %s: %s (worst error %.3g, bound %.3g at %zu)\n", r->op, r->label, r->fault, r->err, r->bound, r->index);
    }
    return 0;
}

static void test_table(const struct kernels *k)
{
    char name[64], why[256] = "";
    struct lora_error err = { "", "", "", "", "" };
    int i, rc, fewer = test_emulated() && k == &kernels_ref;
    if (!k->usable(why, sizeof why)) {
        test_skip(k->name, why);
        return;
    }
    for (i = 0; oracle_op(i); i++) {
        const char *op = oracle_op(i);
        int slow = strstr(op, "matmul") || strstr(op, "linear") || strstr(op, "attention");
        struct tally t;
        memset(&t, 0, sizeof t);
        snprintf(name, sizeof name, "%s %s", k->name, op);
        test_begin(name);
        rc = oracle_run_some(k, COMPUTE_F32, fewer && slow ? 8 : 1, &kernels_ref64, op, tally_result, &t, &err);
        CHECK(rc == 0, "%d of %d cases failed %s", rc, t.cases, err.what);
        CHECK(rc == t.failed, "reported %d", t.failed);
        CHECK_WORST(t.worst, name);
        if (t.unsupported) printf("  %d cases not supported\n", t.unsupported);
    }
    if (fewer) test_skip("seven in eight products and attentions of ref", "too slow under an emulator: it is plain C, on any processor");
}

static int reads_none(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias, double scale,
                      int accumulate, int N)
{
    (void)c, (void)out, (void)x, (void)w, (void)bias, (void)scale, (void)accumulate, (void)N;
    return KERNEL_UNSUPPORTED;
}

/* What a table with memory of its own cannot read, no table of the host's is given in its place. */
static void test_own_memory(void)
{
    static const float one[1] = { 1 };
    struct kernels own = kernels_ref, whole;
    struct kernel_ctx c = { .threads = 1 };
    struct weight w = { .type = TYPE_F32, .rows = 1, .cols = 1, .data = one };
    float out[1] = { 7 };
    test_begin("no other table stands in for one with memory of its own");
    own.own_memory = 1;
    own.below = &kernels_ref;
    own.matmul = reads_none;
    kernels_complete(&whole, &own);
    CHECK(kernels_matmul(&whole, &c, (buf *)out, (const buf *)one, &w, NULL, 1, 0, 1) == KERNEL_UNSUPPORTED && out[0] == 7);
    own.own_memory = 0;
    kernels_complete(&whole, &own);
    CHECK(!kernels_matmul(&whole, &c, (buf *)out, (const buf *)one, &w, NULL, 1, 0, 1) && out[0] == 1);
}

int main(void)
{
    int i;
    test_own_memory();
    for (i = 0; kernels_all[i]; i++) if (kernels_all[i] != &kernels_ref64) test_table(kernels_all[i]);
    return test_end();
}
