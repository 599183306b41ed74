/* test_few.c - products of few rows against sums in double, on numbers of wildly different size.
 *
 * A weight in blocks is q d + m, where m is what code 0 stands for. A table may sum q x and x, and scale the sums; so
 * with u = 2^-24 the error is at most (K / 32 + 24) u times the sum over k of (|q d| + |m|) |x|: a sum runs over four
 * products in each of eight lanes, and over K / 32 of those sums; 24 holds the roundings of scales, of lanes added up, of
 * the sums of x and of the decoded number compared with. Of other weights it is |w| |x|. */
#include "test.h"
#include "../kernels.h"
#include "../nf4.h"

enum { O = 37, LONGEST = 2304 };

/* Where a block's codes lie, and the halves that scale it; -1: none. */
static const struct { int type, codes, end, scale, added; } layouts[] = {
    { TYPE_F32, 0, 0, -1, -1 },    { TYPE_F16, 0, 0, -1, -1 },   { TYPE_BF16, 0, 0, -1, -1 },  { TYPE_NF4, 0, 0, -1, -1 },
    { TYPE_FP4, 0, 0, -1, -1 },    { TYPE_INT8, 0, 0, -1, -1 },  { TYPE_Q8_0, 2, 34, 0, -1 },  { TYPE_Q4_0, 2, 18, 0, -1 },
    { TYPE_Q4_1, 4, 20, 0, 2 },    { TYPE_Q5_0, 2, 22, 0, -1 },  { TYPE_Q5_1, 4, 24, 0, 2 },   { TYPE_IQ4_NL, 2, 18, 0, -1 },
    { TYPE_Q2_K, 16, 80, 80, 82 }, { TYPE_Q3_K, 0, 96, 108, -1 }, { TYPE_Q4_K, 16, 144, 0, 2 }, { TYPE_Q5_K, 16, 176, 0, 2 },
    { TYPE_Q6_K, 0, 192, 208, -1 }
};

static double draw(uint64_t i) { return random_uniform(7, i); }

/* A number whose size is anything from 2^-10 to 2^10. */
static float wild(uint64_t i) { return (float)ldexp(draw(3 * i) - 0.5, (int)(draw(3 * i + 1) * 20) - 10); }

static int wild_row(void *ctx, int row, float *out, struct lora_error *err)
{
    int cols = *(const int *)ctx, i;
    (void)err;
    for (i = 0; i < cols; i++) out[i] = wild((uint64_t)(row * cols + i) + 1000);
    return 0;
}

static void put_half(unsigned char *p, double v)
{
    uint16_t h = f32_to_f16((float)v);
    memcpy(p, &h, 2);
}

/* The bytes of a weight of blocks or of floats. */
static unsigned char *fill(int which, size_t n)
{
    int type = layouts[which].type, size = weight_types[type].bytes;
    size_t blocks = n / (size_t)weight_types[type].block, b, i;
    unsigned char *bytes = malloc(blocks * (size_t)size), *p = bytes;
    for (b = 0; b < blocks; b++, p += size) {
        double d = ldexp(1 + draw(b), -(int)(draw(b + 77) * 10));
        float f = wild(b);
        for (i = 0; i < (size_t)size; i++) p[i] = (unsigned char)random_bits(9, b * 256 + i);
        if (layouts[which].scale >= 0) put_half(p + layouts[which].scale, d);
        if (layouts[which].added >= 0) put_half(p + layouts[which].added, draw(b + 5) * 12 * (type == TYPE_Q4_1 || type == TYPE_Q5_1 ? -d : d));
        if (type == TYPE_F32) memcpy(p, &f, 4);
        if (type == TYPE_F16) put_half(p, f);
        if (type == TYPE_BF16) { uint16_t h = f32_to_bf16(f); memcpy(p, &h, 2); }
    }
    return bytes;
}

/* What code 0 stands for, of each number: the same weight with all codes 0. */
static struct weight blank(int which, const struct weight *w)
{
    struct weight z = *w;
    size_t size = (size_t)weight_types[w->type].bytes, n = (size_t)O * (size_t)w->cols / (size_t)weight_types[w->type].block, b;
    unsigned char *bytes = malloc(n * size);
    memcpy(bytes, w->data, n * size);
    for (b = 0; b < n; b++) memset(bytes + b * size + layouts[which].codes, 0, (size_t)(layouts[which].end - layouts[which].codes));
    z.data = bytes;
    return z;
}

struct product { const struct kernels *k; const struct weight *w; const float *x, *bias; };

static void multiply(const struct product *p, int threads, int N, const float *x, float *out)
{
    struct kernel_ctx c;
    struct kernel_sizes s;
    memset(&c, 0, sizeof c);
    memset(&s, 0, sizeof s);
    c.threads = s.threads = threads;
    s.N = FEW_ROWS;
    s.width = LONGEST;
    CHECK(!p->k->open(&c));
    c.work_bytes = p->k->work_bytes(&s);
    c.work = c.work_bytes ? p->k->alloc(&c, c.work_bytes) : NULL;
    CHECK(!p->k->matmul(&c, (buf *)out, (const buf *)x, p->w, (const buf *)p->bias, 0.75, 0, N));
    if (c.work) p->k->release(&c, c.work);
    p->k->close(&c);
}

/* Each of 7 rows alone, among others, by several threads: the same bits, within the bound. */
static void try_weight(const struct kernels *k, int which, const struct weight *w, const struct weight *zero, struct worst *worst)
{
    static float x[(FEW_ROWS - 1) * LONGEST], bias[O], alone[O], row[LONGEST], base[LONGEST], out[(FEW_ROWS - 1) * O], again[(FEW_ROWS - 1) * O];
    struct product p = { k, w, x, bias };
    int I = w->cols, N = FEW_ROWS - 1, n, o, i;
    for (i = 0; i < N * I; i++) x[i] = wild((uint64_t)i + 12345);
    for (o = 0; o < O; o++) bias[o] = wild((uint64_t)o);
    multiply(&p, 1, N, x, out);
    multiply(&p, 3, N, x, again);
    CHECK(!memcmp(out, again, sizeof out), "threads");
    for (n = 0; n < N; n++) {
        multiply(&p, 2, 1, x + n * I, alone);
        CHECK(!memcmp(alone, out + n * O, sizeof alone), "row %d alone", n);
        multiply(&p, 2, n + 1, x, again);
        CHECK(!memcmp(again, out, sizeof alone * (size_t)(n + 1)), "%d rows", n + 1);
    }
    for (o = 0; o < O; o++) {
        weight_decode(w, o, 0, I, row);
        memset(base, 0, sizeof base);
        if (layouts[which].end) weight_decode(zero, o, 0, I, base);
        for (n = 0; n < N; n++) {
            double sum = 0, size = 0;
            for (i = 0; i < I; i++) {
                sum += (double)row[i] * x[n * I + i];
                size += (fabs((double)row[i] - base[i]) + fabs(base[i])) * fabs(x[n * I + i]);
            }
            worst_add(worst, fabs(out[n * O + o] - (0.75 * sum + bias[o])),
                      (I / 32 + 24) * ldexp(1, -24) * (0.75 * size + fabs(bias[o])), (size_t)(n * O + o));
        }
    }
}

static void try_shape(const struct kernels *k, int which, int I, struct worst *worst)
{
    int type = layouts[which].type, coded = type == TYPE_NF4 || type == TYPE_FP4 || type == TYPE_INT8;
    struct quantise how = { type, 64, I % 64 == 0 && type != TYPE_INT8 };
    struct lora_error err;
    struct weight w, zero;
    if (!coded && I % weight_types[type].block) return;
    memset(&w, 0, sizeof w);
    w.type = type;
    w.rows = O;
    w.cols = I;
    if (coded) CHECK(!weight_quantise(&w, &how, O, I, wild_row, &I, 1, "w", &err), "%s", err.what);
    else w.data = fill(which, (size_t)O * (size_t)I);
    zero = w;
    if (layouts[which].end) zero = blank(which, &w);
    try_weight(k, which, &w, &zero, worst);
    if (layouts[which].end) free((void *)zero.data);
    if (coded) weight_free(&w);
    else free((void *)w.data);
}

static void test_table(const struct kernels *table)
{
    static const int lengths[] = { 96, 100, 256, 576, 1000, 1536, LONGEST };
    struct kernels whole;
    char name[64], why[256] = "";
    size_t which, i;
    if (table->elem != 4) return;
    if (!table->usable(why, sizeof why)) {
        test_skip(table->name, why);
        return;
    }
    kernels_complete(&whole, table);
    for (which = 0; which < sizeof layouts / sizeof *layouts; which++) {
        struct worst worst;
        memset(&worst, 0, sizeof worst);
        snprintf(name, sizeof name, "%s %s", table->name, weight_types[layouts[which].type].name);
        test_begin(name);
        for (i = 0; i < sizeof lengths / sizeof *lengths; i++) try_shape(&whole, (int)which, lengths[i], &worst);
        CHECK_WORST(worst, name);
    }
}

int main(void)
{
    int i;
    for (i = 0; kernels_all[i]; i++) if (!kernels_all[i]->own_memory) test_table(kernels_all[i]);
    return test_end();
}
