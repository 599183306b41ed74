/* test_decode.c - what a table decodes of a weight has the bits of weight_decode(): every type, blocks of
 * every size, rows that begin and end anywhere in them, slices of fused matrices. */
#include "test.h"
#include "verify/oracle.c"

/* Rows of the weight through the table's embed(), which reads them whole. */
static int decode_rows(const struct kernels *k, const struct weight *w, float *out)
{
    struct kernel_ctx c = { .threads = 1 };
    int *ids = malloc(sizeof *ids * (size_t)w->rows), r, bad;
    for (r = 0; r < w->rows; r++) ids[r] = r;
    bad = k->open(&c) || k->embed(&c, (buf *)out, w, (const ints *)ids, w->rows);
    k->close(&c);
    free(ids);
    return bad;
}

static void same_bits_as_slow(const struct kernels *k, struct oracle *o, const int *shape, int type, int heads, int skip)
{
    struct trial t;
    int rows = shape[0], cols = shape[1], r;
    size_t n = (size_t)rows * (size_t)cols, i;
    float *fast = malloc((n + 16) * sizeof *fast), *slow = malloc((size_t)cols * sizeof *slow);
    unsigned char *bytes;
    trial_begin(&t, o, "decode", NULL, "%s %d x %d skip %d", weight_types[type].name, rows, cols, skip);
    add_weight(&t, type, rows, cols, heads, skip, NORMAL);
    bytes = malloc(t.weight_bytes + 1);     /* so that reading past it is seen by tools that can; at an odd address */
    memcpy(bytes + 1, t.weight.data, t.weight_bytes);
    t.weight.data = bytes + 1;
    for (i = 0; i < n + 16; i++) fast[i] = -77;
    CHECK(!o->arena.failed && !decode_rows(k, &t.weight, fast), "%s", t.label);
    for (r = 0; r < rows; r++) {
        weight_decode(&t.weight, r, 0, cols, slow);
        CHECK(!memcmp(slow, fast + (size_t)r * (size_t)cols, (size_t)cols * sizeof *slow), "%s row %d", t.label, r);
    }
    for (i = n; i < n + 16; i++) CHECK(fast[i] == -77, "%s: wrote past the end", t.label);
    free(bytes);
    free(fast);
    free(slow);
}

static void test_table(const struct kernels *table)
{
    static const int shapes[][2] = {
        { 3, 1 }, { 5, 7 }, { 8, 8 }, { 7, 31 }, { 9, 32 }, { 8, 33 }, { 5, 96 }, { 3, 100 }, { 11, 101 }, { 4, 256 }, { 6, 512 },
        { 3, 576 }, { 7, 1000 }, { 2, 4096 }, { 3, 4099 }
    };
    struct kernels whole, *k = &whole;
    struct oracle o;
    char name[64], why[256];
    size_t i, type;
    int round;
    kernels_complete(k, table);
    if (!k->usable(why, sizeof why) || k->elem != 4) return;
    memset(&o, 0, sizeof o);
    o.arena.size = (size_t)4 << 20;
    o.arena.base = malloc(o.arena.size);
    for (type = 0; type < COUNT(types); type++) {
        if (types[type] == TYPE_REAL) continue;
        snprintf(name, sizeof name, "%s %s", k->name, weight_types[types[type]].name);
        test_begin(name);
        for (i = 0; i < COUNT(shapes); i++)
            for (round = 0; round < (is_quantised(types[type]) ? 16 : 2) && fits(types[type], shapes[i][1]); round++)
                same_bits_as_slow(k, &o, shapes[i], types[type], shapes[i][0] % 8 ? 0 : 8, round % 3);
    }
    free(o.arena.base);
}

int main(void)
{
    int i;
    for (i = 0; kernels_all[i]; i++) test_table(kernels_all[i]);
    return test_end();
}
