/* test_edges.c - no kernel reads a byte past what it is given: weights, their scales, and rows end where memory ends, which a
 * read beyond it ends the program by. As the last tensor of a mapped file does. */
#define _DEFAULT_SOURCE         /* MAP_ANONYMOUS */
#define _DARWIN_C_SOURCE
#include "test.h"
#include "verify/oracle.c"

#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

/* A copy of p[bytes] that ends where a closed page begins; at most MOST of them are there, until drop_edges(). */
enum { MOST = 16 };
static struct { void *memory; size_t bytes; } edges[MOST];
static int n_edges;

static void *at_edge(const void *p, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    char *memory = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || n_edges == MOST || mprotect(memory + room, page, PROT_NONE)) abort();
    edges[n_edges].memory = memory;
    edges[n_edges++].bytes = room + page;
    if (p) memcpy(memory + room - bytes, p, bytes);
    return memory + room - bytes;
}

static void drop_edges(void)
{
    while (n_edges) {
        n_edges--;
        munmap(edges[n_edges].memory, edges[n_edges].bytes);
    }
}

static void quantised_at_edge(struct quantised *q, const struct quantised *from)
{
    *q = *from;
    if (q->absmax) q->absmax = at_edge(q->absmax, q->scales * sizeof(float));
    if (q->codes) q->codes = at_edge(q->codes, q->scales);
    if (q->nested) q->nested = at_edge(q->nested, block_count(q->scales, q->nested_block) * sizeof(float));
}

static float *numbers_at_edge(size_t n, uint64_t key)
{
    float *x = at_edge(NULL, n * sizeof *x);
    size_t i;
    for (i = 0; i < n; i++) x[i] = (float)random_normal(key, i);
    return x;
}

static int all_finite(const float *x, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++) if (!(x[i] - x[i] == 0)) return 0;
    return 1;
}

static void multiply(const struct kernels *k, int compute, const struct weight *w, int N)
{
    struct kernel_sizes z = { .threads = 1, .N = N, .V = 1, .HS = 1, .NH = 1, .NKV = 1 };
    struct kernel_ctx c = { .threads = 1, .compute = compute };
    size_t out = (size_t)N * (size_t)w->rows, in = (size_t)N * (size_t)w->cols;
    float *x = numbers_at_edge(in, 1), *y = numbers_at_edge(out, 2), *bias = numbers_at_edge((size_t)w->rows, 3), *product;
    int *last = at_edge(&(int){ w->rows - 1 }, sizeof *last);
    z.width = larger(w->rows, w->cols);
    c.work_bytes = k->work_bytes(&z);
    c.work = c.work_bytes ? k->alloc(&c, c.work_bytes) : NULL;
    CHECK(!k->open(&c));
    product = at_edge(NULL, out * sizeof *product);
    CHECK(!kernels_matmul(k, &c, (buf *)product, (const buf *)x, w, (const buf *)bias, 1, 0, N) && all_finite(product, out));
    product = at_edge(NULL, in * sizeof *product);
    CHECK(!kernels_matmul_dx(k, &c, (buf *)product, (const buf *)y, w, 1, 0, N) && all_finite(product, in));
    product = at_edge(NULL, (size_t)w->cols * sizeof *product);
    CHECK(!kernels_embed(k, &c, (buf *)product, w, (const ints *)last, 1) && all_finite(product, (size_t)w->cols));
    k->close(&c);
    if (c.work) k->release(&c, c.work);
}

static void try_weight(const struct kernels *k, struct oracle *o, const int *shape, int type)
{
    static const int rows[] = { 1, 3, 9, 21 };
    struct quantised q;
    struct trial t;
    char why[256];
    int i, compute;
    for (i = 0; i < (int)COUNT(rows); i++)
        for (compute = COMPUTE_F32; compute <= COMPUTE_BF16; compute++) {
            if (compute == COMPUTE_BF16 && (rows[i] < FEW_ROWS || !k->has_bf16 || !k->has_bf16(why, sizeof why))) continue;
            trial_begin(&t, o, "matmul", NULL, "%s %d x %d", weight_types[type].name, shape[0], shape[1]);
            add_weight(&t, type, shape[0], shape[1], 0, 0, NORMAL);
            if (o->arena.failed) abort();
            t.weight.data = at_edge(t.weight.data, t.weight_bytes);
            if (t.weight.q) {
                quantised_at_edge(&q, t.weight.q);
                t.weight.q = &q;
            }
            multiply(k, compute, &t.weight, rows[i]);
            drop_edges();
        }
}

static void test_table(const struct kernels *table)
{
    static const int shapes[][2] = { { 1, 32 }, { 3, 64 }, { 5, 96 }, { 33, 100 }, { 2, 256 }, { 7, 512 }, { 19, 36 }, { 40, 33 }, { 6, 1056 } };
    struct kernels whole;
    struct oracle o;
    char name[64], why[256];
    size_t i, type;
    if (table->elem != 4) return;
    if (!table->usable(why, sizeof why)) {
        test_skip(table->name, why);
        return;
    }
    if (test_emulated() && !strcmp(table->name, "avx2")) {
        test_skip(table->name, "QEMU reads what vmaskmovps leaves out, which the processor does not");
        return;
    }
    kernels_complete(&whole, table);
    memset(&o, 0, sizeof o);
    o.arena.size = (size_t)4 << 20;
    o.arena.base = malloc(o.arena.size);
    for (type = 0; type < COUNT(types); type++) {
        if (types[type] == TYPE_REAL) continue;
        snprintf(name, sizeof name, "%s: %s where memory ends", table->name, weight_types[types[type]].name);
        test_begin(name);
        for (i = 0; i < COUNT(shapes); i++) if (fits(types[type], shapes[i][1])) try_weight(&whole, &o, shapes[i], types[type]);
    }
    free(o.arena.base);
}

int main(void)
{
    int i;
    for (i = 0; kernels_all[i]; i++) test_table(kernels_all[i]);
    return test_end();
}
