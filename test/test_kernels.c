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
    int i, rc;
    if (!k->usable(why, sizeof why)) {
        test_skip(k->name, why);
        return;
    }
    for (i = 0; oracle_op(i); i++) {
        struct tally t;
        memset(&t, 0, sizeof t);
        snprintf(name, sizeof name, "%s %s", k->name, oracle_op(i));
        test_begin(name);
        rc = oracle_run(k, &kernels_ref64, oracle_op(i), tally_result, &t, &err);
        CHECK(rc == 0, "%d of %d cases failed %s", rc, t.cases, err.what);
        CHECK(rc == t.failed, "reported %d", t.failed);
        CHECK_WORST(t.worst, name);
        if (t.unsupported) printf("  %d cases not supported\n", t.unsupported);
    }
}

int main(void)
{
    int i;
    for (i = 0; kernels_all[i]; i++) if (kernels_all[i] != &kernels_ref64) test_table(kernels_all[i]);
    return test_end();
}
