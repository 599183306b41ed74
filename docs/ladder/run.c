/* run.c - runs the rungs: each one checked against double, timed, and set beside the multiply-add peak.
 *
 *     run                 a feed-forward layer and the attention of SmolLM2-135M over 512 tokens
 *     run N I O           the product: N tokens, I inputs, O outputs
 *     run attention N     attention over N tokens
 *     run --check         right or wrong only, at sizes that no tile divides
 *
 * Exits with 1 when a rung is wrong. docs/ladder.md is the walk. */
#include "ladder.h"
#include "../../jobs/job.h"
#include "../../jobs/measure.h"
#include "../../nf4.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 9, GUARD = 64 };

/* Of a product, or of attention. */
static const struct {
    const char *name;
    void (*product)(const struct product *p);
    void (*attention)(const struct attention *a);
    int vectors, threads;
} rungs[] = {
    { "01 weights", rung_weights, NULL, 0, 0 }, { "02 rows", rung_rows, NULL, 0, 0 }, { "03 sums", rung_sums, NULL, 0, 0 },
    { "04 vectors", rung_vectors, NULL, 1, 0 }, { "05 tile", rung_tile, NULL, 1, 0 }, { "06 blocks", rung_blocks, NULL, 1, 0 },
    { "07 panels", rung_panels, NULL, 1, 0 }, { "08 decode", rung_decode, NULL, 1, 0 }, { "09 threads", rung_threads, NULL, 1, 1 },
    { "10 library", rung_library, NULL, 0, 1 },
    { "a1 matrix", NULL, rung_matrix, 1, 0 }, { "a2 online", NULL, rung_online, 1, 0 }, { "a3 tiles", NULL, rung_tiles, 1, 0 },
    { "a4 library", NULL, rung_attention, 0, 0 }, { "a5 threads", NULL, rung_attention, 0, 1 },
};
enum { RUNGS = sizeof rungs / sizeof *rungs, FIRST_ATTENTION = 10 };

/* Files 04 to 09 and a1 to a3 are compiled for AVX2 where the compiler can; elsewhere for what every processor has. */
static int can_run(int i, char *why, size_t n)
{
#ifdef __x86_64__
    return !rungs[i].vectors || kernels_avx2.usable(why, n);
#else
    (void)i, (void)why, (void)n;
    return 1;
#endif
}

/* ---- a problem: random numbers, and the result in double ---- */

struct problem {
    char name[96];
    int is_attention, threads;
    double flops;
    struct product p;
    struct attention a;
    struct weight nf4;
    struct library library;
    float *x, *w, *scratch;         /* of attention: q; k and v and one more row */
    float *out;                     /* [n], and a guard */
    size_t n;
    double *want, *bound;           /* [n] */
};

static int random_row(void *ctx, int row, float *out, struct lora_error *err)
{
    int i, I = *(const int *)ctx;
    (void)err;
    for (i = 0; i < I; i++) out[i] = (float)(0.05 * random_normal(2, (uint64_t)row * (uint64_t)I + (uint64_t)i));
    return 0;
}

/* Any order of a float sum of I products lets a term through at most I roundings of 2^-24 each: its own
 * and those of the additions after it. So no result may be off by more than ((1 + 2^-24)^I - 1) times
 * the sum of the terms' magnitudes (Higham 2002, section 3.1). The double's own error is 2^-29 of that. */
static void reference(struct problem *b)
{
    const struct product *p = &b->p;
    int n, o, i;
    double share = exp(p->I * log1p(ldexp(1, -24))) - 1 + p->I * ldexp(1, -52);
    for (n = 0; n < p->N; n++)
        for (o = 0; o < p->O; o++) {
            const float *x = b->x + (size_t)n * (size_t)p->I, *w = b->w + (size_t)o * (size_t)p->I;
            size_t e = (size_t)n * (size_t)p->O + (size_t)o;
            double sum = 0, size = 0;
            for (i = 0; i < p->I; i++) {
                double term = (double)x[i] * (double)w[i];
                sum += term;
                size += fabs(term);
            }
            b->want[e] = sum;
            b->bound[e] = share * size + ldexp(p->I, -149);     /* terms below the normal numbers */
        }
}

/* What a float softmax and its sum can be off by, in any order, with u = 2^-24 and B blocks of keys:
 *   a score, HS products and what it is scaled by:                      dz = (HS + 4) u scale sum |q k|
 *   an exponential: z less the largest, in all corrections too, and     u 8 max |z| + u 8 (B + 1)
 *       its own roundings, its own and those of B corrections
 *   a sum of n terms, corrected B times, and the division               u (n + 2 B + 2)
 * This for the numerator and once more for the denominator, so that no out is off by more than
 * e^(2 (the sum of these)) - 1 times sum p |v|. */
static int reference_attention(struct problem *b, struct lora_error *err)
{
    const struct attention *a = &b->a;
    const double u = ldexp(1, -24), scale = 1 / sqrt((double)a->HS);
    double *p = new_array((size_t)a->N, sizeof *p, err);
    int h, n, j, d, HS = a->HS;
    if (!p) return -1;
    for (h = 0; h < a->NH; h++)
        for (n = 0; n < a->N; n++) {
            double *want = b->want + (result(a, n, h) - a->out), *bound = b->bound + (result(a, n, h) - a->out);
            double dz = 0, largest = 0, max = -INFINITY, sum = 0, share;
            for (j = 0; j <= n; j++) {
                double size = 0;
                for (p[j] = 0, d = 0; d < HS; d++) {
                    double term = scale * (double)query(a, n, h)[d] * (double)key(a, a->k, j, h)[d];
                    p[j] += term;
                    size += fabs(term);
                }
                max = fmax(max, p[j]);
                largest = fmax(largest, fabs(p[j]));
                dz = fmax(dz, (HS + 4) * u * size);
            }
            for (j = 0; j <= n; j++) sum += p[j] = exp(p[j] - max);
            share = expm1(2 * (dz + u * (8 * largest + n + 11 + 10 * (n / 64 + 1))));
            for (j = 0; j <= n; j++)
                for (d = 0; d < HS; d++) {
                    double pv = p[j] / sum * (double)key(a, a->v, j, h)[d];
                    want[d] += pv;
                    bound[d] += share * fabs(pv) + ldexp(1, -120);      /* a p that is below the normal numbers */
                }
        }
    free(p);
    return 0;
}

/* Room for `x` and `w` numbers of input, `scratch` and n of output. */
static int make_room(struct problem *b, size_t x, size_t w, size_t scratch, size_t n, struct lora_error *err)
{
    b->n = n;
    return !(b->x = new_array(x, sizeof *b->x, err)) || !(b->w = new_array(w, sizeof *b->w, err))
           || !(b->scratch = new_array(scratch, sizeof *b->scratch, err)) || !(b->out = new_array(n + GUARD, sizeof *b->out, err))
           || !(b->want = new_array(n, sizeof *b->want, err)) || !(b->bound = new_array(n, sizeof *b->bound, err)) ? -1 : 0;
}

static int make_product(struct problem *b, int N, int I, int O, int threads, struct lora_error *err)
{
    const struct quantise how = { TYPE_NF4, 64, 0 };
    const struct kernel_sizes sizes = { .threads = threads, .N = N, .width = I > O ? I : O, .V = 1 };
    size_t x = (size_t)N * (size_t)I, i;
    memset(b, 0, sizeof *b);
    snprintf(b->name, sizeof b->name, "a product: %d tokens, %d inputs, %d outputs", N, I, O);
    if (make_room(b, x, (size_t)O * (size_t)I, packed_floats(N, I), (size_t)N * (size_t)O, err)
        || weight_quantise(&b->nf4, &how, O, I, random_row, &I, threads, "W", err))
        return -1;
    for (i = 0; i < x; i++) b->x[i] = (float)random_normal(1, i);
    for (i = 0; i < (size_t)O; i++) weight_decode(&b->nf4, (int)i, 0, I, b->w + i * (size_t)I);
    b->p = (struct product){ N, O, I, b->x, b->w, &b->nf4, b->out, b->scratch, &b->library, threads };
    b->threads = threads;
    b->flops = 2.0 * N * I * O;
    reference(b);
    return library_open(&b->library, &sizes, err);
}

static int make_attention(struct problem *b, int N, int NH, int NKV, int HS, int threads, struct lora_error *err)
{
    const struct kernel_sizes sizes = { .threads = threads, .N = N, .width = NH * HS, .V = 1, .HS = HS, .NH = NH, .NKV = NKV, .keys = N, .segments = 1 };
    size_t q = (size_t)N * (size_t)(NH * HS), row = (size_t)(NKV * HS), k = (size_t)N * row, square = (size_t)N * (size_t)N, i;
    memset(b, 0, sizeof *b);
    snprintf(b->name, sizeof b->name, "attention: %d tokens, %d heads of %d, %d of keys", N, NH, HS, NKV);
    if (make_room(b, q, 2 * k + row, square + (size_t)N * (size_t)NH, q, err)) return -1;
    for (i = 0; i < q; i++) b->x[i] = (float)(2 * random_normal(3, i));
    for (i = 0; i < 2 * k + row; i++) b->w[i] = (float)random_normal(4, i);
    b->a = (struct attention){ N, NH, NKV, HS, b->x, b->w, b->w + k, b->out, b->scratch, b->scratch + square, &b->library, threads };
    b->is_attention = 1;
    b->threads = threads;
    b->flops = 2.0 * N * (N + 1) * NH * HS;     /* two products with half a matrix */
    return reference_attention(b, err) ? -1 : library_open(&b->library, &sizes, err);
}

static void drop(struct problem *b)
{
    library_close(&b->library);
    weight_free(&b->nf4);
    free(b->x);
    free(b->w);
    free(b->scratch);
    free(b->out);
    free(b->want);
    free(b->bound);
}

/* The worst error of out as a share of its bound; infinity where a number is not one, or the guard
 * behind out was written. */
static double worst(const struct problem *b)
{
    unsigned char guard[GUARD * sizeof(float)];
    size_t i;
    double most = 0;
    memset(guard, 0xff, sizeof guard);
    if (memcmp(b->out + b->n, guard, sizeof guard)) return INFINITY;
    for (i = 0; i < b->n; i++) {
        double share = fabs((double)b->out[i] - b->want[i]) / b->bound[i];
        if (!(share <= most)) most = share == share ? share : INFINITY;
    }
    return most;
}

static void run(struct problem *b, int i)
{
    b->a.threads = rungs[i].threads ? b->threads : 1;
    if (rungs[i].product) rungs[i].product(&b->p);
    else rungs[i].attention(&b->a);
}

/* All of out is NaN before: what a rung leaves out, or adds to, shows. */
static double check(struct problem *b, int i)
{
    memset(b->out, 0xff, sizeof(float) * (b->n + GUARD));
    run(b, i);
    return worst(b);
}

/* ---- --check ---- */

/* Does the check find a term left out, a number not written, one too many? */
static int check_finds(struct problem *b)
{
    float *out = b->out, right;
    int i = 0;
    if (!(check(b, 1) <= 1)) return 0;
    right = out[0];
    while (b->w[i] == 0) i++;       /* each row of W has its largest number */
    out[0] -= b->x[i] * b->w[i];
    if (worst(b) <= 1) return 0;
    out[0] = NAN;
    if (worst(b) <= 1) return 0;
    out[0] = right;
    out[b->n] = 0;
    return !(worst(b) <= 1);
}

/* Keys, or values, that are taken one row late? */
static int check_finds_attention(struct problem *b)
{
    const struct attention right = b->a;
    int one = right.N == 1, row = right.NKV * right.HS, finds;      /* of one key p is 1, whatever it is */
    b->a.k = right.k + row;
    finds = one || check(b, FIRST_ATTENTION) > 1;
    b->a.k = right.k;
    b->a.v = right.v + row;
    finds &= check(b, FIRST_ATTENTION) > 1;
    b->a = right;
    return finds && check(b, FIRST_ATTENTION) <= 1;
}

static int make_size(struct problem *b, int s, int threads, struct lora_error *err)
{
    static const int products[][3] = {      /* N, I, O: about the edges of all tiles and runs */
        { 1, 1, 1 }, { 2, 7, 3 }, { 3, 8, 2 }, { 4, 33, 5 }, { 5, 64, 15 }, { 6, 255, 16 }, { 7, 256, 17 }, { 8, 257, 23 },
        { 13, 31, 49 }, { 25, 300, 24 }, { 11, 513, 35 }
    };
    static const int attentions[][4] = {    /* N, NH, NKV, HS: about those of blocks and panels */
        { 1, 1, 1, 1 }, { 2, 2, 1, 6 }, { 7, 3, 3, 8 }, { 33, 4, 2, 10 }, { 32, 6, 2, 34 }, { 64, 2, 2, 16 }, { 65, 9, 3, 64 },
        { 97, 2, 2, 128 }, { 193, 5, 1, 24 }
    };
    enum { PRODUCTS = sizeof products / sizeof *products, SIZES = PRODUCTS + sizeof attentions / sizeof *attentions };
    const int *z = s < PRODUCTS ? products[s] : attentions[s < SIZES ? s - PRODUCTS : 0];
    if (s >= SIZES) return 1;
    return s < PRODUCTS ? make_product(b, z[0], z[1], z[2], threads, err) : make_attention(b, z[0], z[1], z[2], z[3], threads, err);
}

static int check_all(int threads, struct lora_error *err)
{
    double most[RUNGS] = { 0 };
    char at[RUNGS][sizeof ((struct problem *)0)->name] = { "" }, why[256] = "";
    int s, i, rc, sizes[2] = { 0, 0 }, finds[2] = { 1, 1 }, passed = 0, failed = 0, skipped = 0;
    struct problem b;
    for (s = 0; !(rc = make_size(&b, s, threads, err)); s++) {
        for (i = 0; i < RUNGS; i++) {
            double share = b.is_attention == (i >= FIRST_ATTENTION) && can_run(i, why, sizeof why) ? check(&b, i) : 0;
            if (share > most[i]) most[i] = share, memcpy(at[i], b.name, sizeof b.name);
        }
        finds[b.is_attention] &= b.is_attention ? check_finds_attention(&b) : check_finds(&b);
        sizes[b.is_attention]++;
        drop(&b);
    }
    if (rc < 0) return drop(&b), -1;
    for (i = 0; i < RUNGS; i++) {
        if (!can_run(i, why, sizeof why)) skipped++, printf("skip rung %s: %s\n", rungs[i].name, why);
        else if (most[i] <= 1) passed++, printf("ok   rung %-12s %d sizes, worst error %.1f %% of its bound\n", rungs[i].name,
                                                sizes[i >= FIRST_ATTENTION], 100 * most[i]);
        else failed++, printf("FAIL rung %s: %s: error %.3g times its bound\n", rungs[i].name, at[i], most[i]);
    }
    for (i = 0; i < 2; i++) {
        printf("%s the check finds %s\n", finds[i] ? "ok  " : "FAIL", i ? "keys and values one row late" : "a term left out, a NaN, a number too many");
        finds[i] ? passed++ : failed++;
    }
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed;
}

/* ---- the table ---- */

/* GFLOP/s of rung i; *slow: one run takes a second or more. */
static double rate(struct problem *b, int i, int *slow)
{
    double start = seconds_now(), took;
    int n = 0;
    do {
        run(b, i);
        n++;
        took = seconds_now() - start;
    } while (took < 0.03);
    *slow = took / n >= 1;
    return 1e-9 * b->flops * n / took;
}

/* The table of a problem's rungs. How many were wrong. */
static int climb(struct problem *b)
{
    double rates[RUNGS][ROUNDS], peaks[2][ROUNDS], wrong[RUNGS], before = 0, peak[2];
    char why[256] = "", share[16], times_before[16];
    int first = b->is_attention ? FIRST_ATTENTION : 0, end = b->is_attention ? RUNGS : FIRST_ATTENTION, slow[RUNGS], i, round, failed = 0;
    for (i = first; i < end; i++) wrong[i] = can_run(i, why, sizeof why) ? check(b, i) : 0;
    for (round = 0; round < ROUNDS; round++) {      /* all in turn, so that all see the same machine */
        peaks[0][round] = measure_peak(1);
        peaks[1][round] = measure_peak(b->threads);
        for (i = first; i < end; i++)
            if (!can_run(i, why, sizeof why)) rates[i][round] = 0;
            else if (round && slow[i]) rates[i][round] = rates[i][0];       /* seconds each: once is enough */
            else rates[i][round] = rate(b, i, &slow[i]);
    }
    peak[0] = median(peaks[0], ROUNDS);
    peak[1] = median(peaks[1], ROUNDS);
    printf("%s; medians of %d rounds; library: %s\n", b->name, ROUNDS, b->library.table.name);
    if (peak[0] > 0) printf("peak of multiply-adds: %.1f GFLOP/s with one thread, %.1f with %d\n", peak[0], peak[1], b->threads);
    printf("\n%-12s %7s %9s %9s %9s %17s %16s\n", "rung", "threads", "ms", "GFLOP/s", "of peak", "times the before", "error / bound");
    for (i = first; i < end; i++) {
        double r = median(rates[i], ROUNDS), of = peak[rungs[i].threads];
        if (!can_run(i, why, sizeof why)) {
            printf("%-12s skipped: %s\n", rungs[i].name, why);
            continue;
        }
        snprintf(share, sizeof share, of > 0 ? "%.1f %%" : "-", 100 * r / of);
        snprintf(times_before, sizeof times_before, before > 0 ? "%.2f" : "-", r / before);
        printf("%-12s %7d %9.2f %9.2f %9s %17s %16.4f%s\n", rungs[i].name, rungs[i].threads ? b->threads : 1, 1e-6 * b->flops / r, r, share,
               times_before, wrong[i], wrong[i] <= 1 ? "" : "  WRONG");
        failed += !(wrong[i] <= 1);
        before = r;
    }
    printf("\n");
    return failed;
}

int main(int argc, char **argv)
{
    struct lora_error err = { { 0 }, { 0 }, { 0 }, { 0 }, { 0 } };
    long long size[3] = { 512, 576, 1536 };     /* SmolLM2-135M's gate and up */
    int attention = argc == 3 && !strcmp(argv[1], "attention"), threads = usable_threads(0), failed = 0, bad = 0, i;
    struct problem b;
    if (argc == 2 && !strcmp(argv[1], "--check")) {
        if ((failed = check_all(3, &err)) >= 0) return failed != 0;
        bad = 1;
    }
    if (!bad && argc != 1 && argc != 4 && !attention) return fprintf(stderr, "usage: run [--check | N I O | attention N]\n"), 2;
    for (i = 0; i < 3 && (argc == 4 || (attention && i < 1)); i++)
        if (parse_integer(argv[i + 1 + attention], &size[i]) || size[i] < 1 || size[i] > 16384)
            return fprintf(stderr, "run: %s: expected a number from 1 to 16384\n", argv[i + 1 + attention]), 2;
    if (!bad && !attention) {
        if (!(bad = make_product(&b, (int)size[0], (int)size[1], (int)size[2], threads, &err))) failed += climb(&b);
        drop(&b);
    }
    if (!bad && argc != 4) {                    /* its attention */
        if (!(bad = make_attention(&b, (int)size[0], 9, 3, 64, threads, &err))) failed += climb(&b);
        drop(&b);
    }
    if (bad) fprintf(stderr, "run: %s: %s\n", err.what, err.where);
    return bad || failed;
}
