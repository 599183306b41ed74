/* test_threads.c - attention over segments of several blocks of keys: the same bits at any number of threads,
 * though threads add to the same rows of dq. The tables of test_kernels are run by one thread, and
 * the tiny models of test_lora have rows of one block. */
#include "test.h"
#include "kernels.h"

/* Behind a root of 150 tokens: a branch of 70, which goes on in two of 90 and 33, and another of 200; and a
 * row apart of 65. */
static const struct segment segments[] = {
    { 0, 150, 0, 150, -1, 0, 0, 0 }, { 150, 70, 150, 70, 0, 150, 0, 0 }, { 220, 90, 220, 90, 1, 220, 0, 0 },
    { 310, 33, 310, 33, 1, 220, 0, 0 }, { 343, 200, 343, 200, 0, 150, 0, 0 }, { 543, 65, 543, 65, -1, 0, 0, 0 }
};
enum { S = sizeof segments / sizeof *segments, N = 608, NH = 6, NKV = 2, HS = 32, Q = N * NH * HS, K = N * NKV * HS, H = N * NH };

/* Inputs, then outputs: q k v dout; out lse dq dk dv delta. */
enum { INPUTS = 4, OUTPUTS = 6 };
static const int sizes[INPUTS + OUTPUTS] = { Q, K, K, Q, Q, H, Q, K, K, H };

static int run(const struct kernels *table, int threads, int window, float *b[])
{
    struct kernels k;
    struct kernel_sizes z = { .threads = threads, .N = N, .width = NH * HS, .V = 1, .HS = HS, .NH = NH, .NKV = NKV, .keys = N, .segments = S };
    struct kernel_ctx c = { .threads = threads };
    const double scale = 0.2;
    int opened;
    kernels_complete(&k, table);
    c.work_bytes = k.work_bytes(&z);
    c.work = k.alloc(&c, c.work_bytes + 64);
    opened = c.work && (!k.open || !k.open(&c));
    if (opened) {
        k.attention(&c, (buf *)b[4], (buf *)b[5], (buf *)b[0], (buf *)b[1], (buf *)b[2], (const ints *)segments, S, NH, NKV, HS,
                    scale, window);
        k.attention_backward(&c, (buf *)b[6], (buf *)b[7], (buf *)b[8], (buf *)b[9], (buf *)b[3], (buf *)b[4], (buf *)b[5],
                             (buf *)b[0], (buf *)b[1], (buf *)b[2], (const ints *)segments, S, N, NH, NKV, HS, scale, window);
        if (k.close) k.close(&c);
    }
    if (c.work) k.release(&c, c.work);
    return opened;
}

static void test_table(const struct kernels *table)
{
    static const char *const names[] = { "out", "lse", "dq", "dk", "dv", "D" };
    static const int threads[] = { 2, 3, 8, 16 }, windows[] = { 0, 100 };
    int times = test_emulated() ? 1 : 3;        /* each number of threads once */
    float *b[INPUTS + OUTPUTS], *one[OUTPUTS];
    char name[64];
    int i, j, w, t;
    snprintf(name, sizeof name, "%s: attention, 1 thread = N", table->name);
    test_begin(name);
    for (i = 0; i < INPUTS + OUTPUTS; i++) {
        b[i] = calloc((size_t)sizes[i], sizeof **b);
        for (j = 0; j < sizes[i]; j++) b[i][j] = (float)(4 * random_uniform((uint64_t)i, (uint64_t)j) - 2);
    }
    for (i = 0; i < OUTPUTS; i++) one[i] = calloc((size_t)sizes[INPUTS + i], sizeof **one);
    for (w = 0; w < 2; w++) {
        CHECK(run(table, 1, windows[w], b));
        for (i = 0; i < OUTPUTS; i++) memcpy(one[i], b[INPUTS + i], sizeof(float) * (size_t)sizes[INPUTS + i]);
        for (t = 0; t < 4 * times; t++) {
            CHECK(run(table, threads[t % 4], windows[w], b));
            for (i = 0; i < OUTPUTS; i++)
                CHECK(!memcmp(one[i], b[INPUTS + i], sizeof(float) * (size_t)sizes[INPUTS + i]), "%s, %d threads, window %d",
                      names[i], threads[t % 4], windows[w]);
        }
    }
    for (i = 0; i < INPUTS + OUTPUTS; i++) free(b[i]);
    for (i = 0; i < OUTPUTS; i++) free(one[i]);
}

int main(void)
{
    char why[256] = "";
    int i;
    for (i = 0; kernels_all[i]; i++) {
        const struct kernels *k = kernels_all[i];
        if (k->elem != sizeof(float) || k->own_memory || k == &kernels_ref) continue;
        if (k->usable(why, sizeof why)) test_table(k);
        else test_skip(k->name, why);
    }
    if (!tests_passed && !tests_failed && !tests_skipped && !test_name[0]) test_skip("attention", "no table but ref here");
    return test_end();
}
