/* run.c - runs the rungs: each one checked against double, timed, and set beside the multiply-add peak.
 *
 *     run             a feed-forward layer of SmolLM2-135M over 512 tokens
 *     run N I O       N tokens, I inputs, O outputs
 *     run --check     right or wrong only, at sizes that no tile divides
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

static const struct { const char *name; void (*run)(const struct product *p); int vectors, threads; } rungs[] = {
    { "01 weights", rung_weights, 0, 0 }, { "02 rows", rung_rows, 0, 0 }, { "03 sums", rung_sums, 0, 0 },
    { "04 vectors", rung_vectors, 1, 0 }, { "05 tile", rung_tile, 1, 0 }, { "06 blocks", rung_blocks, 1, 0 },
    { "07 panels", rung_panels, 1, 0 }, { "08 decode", rung_decode, 1, 0 }, { "09 threads", rung_threads, 1, 1 },
    { "10 library", rung_library, 0, 1 },
};
enum { RUNGS = sizeof rungs / sizeof *rungs };

/* Files 04 to 09 are compiled for AVX2 where the compiler can; elsewhere for what every processor has. */
static int can_run(int i, char *why, size_t n)
{
#ifdef __x86_64__
    return !rungs[i].vectors || kernels_avx2.usable(why, n);
#else
    (void)i, (void)why, (void)n;
    return 1;
#endif
}

/* ---- a problem: random x, W in NF4 and what it stands for, the result in double ---- */

struct problem {
    struct product p;
    struct weight nf4;
    struct library library;
    float *x, *w;
    double *want, *bound;           /* [N,O] */
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

static int make(struct problem *b, int N, int I, int O, int threads, struct lora_error *err)
{
    const struct quantise how = { TYPE_NF4, 64, 0 };
    size_t x = (size_t)N * (size_t)I, w = (size_t)O * (size_t)I, out = (size_t)N * (size_t)O, i;
    memset(b, 0, sizeof *b);
    b->p.N = N;
    b->p.I = I;
    b->p.O = O;
    b->p.threads = threads;
    b->p.nf4 = &b->nf4;
    b->p.library = &b->library;
    if (!(b->p.x = b->x = new_array(x, sizeof *b->x, err)) || !(b->p.w = b->w = new_array(w, sizeof *b->w, err))
        || !(b->p.out = new_array(out + GUARD, sizeof *b->p.out, err))
        || !(b->p.packed = new_array(packed_floats(N, I), sizeof *b->p.packed, err))
        || !(b->want = new_array(out, sizeof *b->want, err)) || !(b->bound = new_array(out, sizeof *b->bound, err))
        || weight_quantise(&b->nf4, &how, O, I, random_row, &I, threads, "W", err))
        return -1;
    for (i = 0; i < x; i++) b->x[i] = (float)random_normal(1, i);
    for (i = 0; i < (size_t)O; i++) weight_decode(&b->nf4, (int)i, 0, I, b->w + i * (size_t)I);
    reference(b);
    return library_open(&b->p, err);
}

static void drop(struct problem *b)
{
    library_close(&b->p);
    weight_free(&b->nf4);
    free(b->x);
    free(b->w);
    free(b->p.out);
    free(b->p.packed);
    free(b->want);
    free(b->bound);
}

/* The worst error of out as a share of its bound; infinity where a number is not one, or the guard
 * behind out was written. */
static double worst(const struct problem *b)
{
    unsigned char guard[GUARD * sizeof(float)];
    size_t n = (size_t)b->p.N * (size_t)b->p.O, i;
    double most = 0;
    memset(guard, 0xff, sizeof guard);
    if (memcmp(b->p.out + n, guard, sizeof guard)) return INFINITY;
    for (i = 0; i < n; i++) {
        double share = fabs((double)b->p.out[i] - b->want[i]) / b->bound[i];
        if (!(share <= most)) most = share == share ? share : INFINITY;
    }
    return most;
}

/* All of out is NaN before: what a rung leaves out, or adds to, shows. */
static double check(const struct problem *b, int i)
{
    memset(b->p.out, 0xff, sizeof(float) * ((size_t)b->p.N * (size_t)b->p.O + GUARD));
    rungs[i].run(&b->p);
    return worst(b);
}

/* ---- --check ---- */

/* Does the check find a term left out, a number not written, one too many? */
static int check_finds(const struct problem *b)
{
    float *out = b->p.out, right;
    int i = 0;
    if (!(check(b, 1) <= 1)) return 0;
    right = out[0];
    while (b->w[i] == 0) i++;       /* each row of W has its largest number */
    out[0] -= b->x[i] * b->w[i];
    if (worst(b) <= 1) return 0;
    out[0] = NAN;
    if (worst(b) <= 1) return 0;
    out[0] = right;
    out[(size_t)b->p.N * (size_t)b->p.O] = 0;
    return !(worst(b) <= 1);
}

static int check_all(int threads, struct lora_error *err)
{
    static const int sizes[][3] = {         /* N, I, O: about the edges of all tiles and runs */
        { 1, 1, 1 }, { 2, 7, 3 }, { 3, 8, 2 }, { 4, 33, 5 }, { 5, 64, 15 }, { 6, 255, 16 }, { 7, 256, 17 }, { 8, 257, 23 },
        { 13, 31, 49 }, { 25, 300, 24 }, { 11, 513, 35 }
    };
    enum { SIZES = sizeof sizes / sizeof *sizes };
    double most[RUNGS] = { 0 };
    int at[RUNGS] = { 0 }, s, i, finds = 1, passed = 0, failed = 0, skipped = 0;
    char why[256] = "";
    for (s = 0; s < SIZES; s++) {
        struct problem b;
        int bad = make(&b, sizes[s][0], sizes[s][1], sizes[s][2], threads, err);
        for (i = 0; i < RUNGS && !bad; i++) {
            double share = can_run(i, why, sizeof why) ? check(&b, i) : 0;
            if (share > most[i]) most[i] = share, at[i] = s;
        }
        if (!bad) finds &= check_finds(&b);
        drop(&b);
        if (bad) return -1;
    }
    for (i = 0; i < RUNGS; i++) {
        if (!can_run(i, why, sizeof why)) skipped++, printf("skip rung %s: %s\n", rungs[i].name, why);
        else if (most[i] <= 1) passed++, printf("ok   rung %-12s %d sizes, worst error %.1f %% of its bound\n", rungs[i].name, SIZES, 100 * most[i]);
        else failed++, printf("FAIL rung %s: N %d, I %d, O %d: error %.3g times its bound\n", rungs[i].name,
                              sizes[at[i]][0], sizes[at[i]][1], sizes[at[i]][2], most[i]);
    }
    printf("%s the check finds a term left out, a NaN, a number too many\n", finds ? "ok  " : "FAIL");
    finds ? passed++ : failed++;
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed;
}

/* ---- the table ---- */

/* GFLOP/s of rung i; *slow: one run takes a second or more. */
static double rate(const struct problem *b, int i, int *slow)
{
    double flops = 2.0 * b->p.N * b->p.I * b->p.O, start = seconds_now(), took;
    int n = 0;
    do {
        rungs[i].run(&b->p);
        n++;
        took = seconds_now() - start;
    } while (took < 0.03);
    *slow = took / n >= 1;
    return 1e-9 * flops * n / took;
}

static int climb(int N, int I, int O, int threads, struct lora_error *err)
{
    double rates[RUNGS][ROUNDS], peaks[2][ROUNDS], wrong[RUNGS], before = 0, peak[2];
    struct problem b;
    char why[256] = "", share[16], times[16];
    int slow[RUNGS], i, round, bad = make(&b, N, I, O, threads, err), failed = 0;
    for (i = 0; i < RUNGS && !bad; i++) wrong[i] = can_run(i, why, sizeof why) ? check(&b, i) : 0;
    for (round = 0; round < ROUNDS && !bad; round++) {      /* all in turn, so that all see the same machine */
        peaks[0][round] = measure_peak(1);
        peaks[1][round] = measure_peak(threads);
        for (i = 0; i < RUNGS; i++)
            if (!can_run(i, why, sizeof why)) rates[i][round] = 0;
            else if (round && slow[i]) rates[i][round] = rates[i][0];       /* seconds each: once is enough */
            else rates[i][round] = rate(&b, i, &slow[i]);
    }
    if (bad) return drop(&b), -1;
    peak[0] = median(peaks[0], ROUNDS);
    peak[1] = median(peaks[1], ROUNDS);
    printf("%d tokens, %d inputs, %d outputs; medians of %d rounds; library: %s\n", N, I, O, ROUNDS, b.library.table.name);
    if (peak[0] > 0) printf("peak of multiply-adds: %.1f GFLOP/s with one thread, %.1f with %d\n", peak[0], peak[1], threads);
    printf("\n%-12s %7s %9s %9s %17s %16s\n", "rung", "threads", "GFLOP/s", "of peak", "times the before", "error / bound");
    for (i = 0; i < RUNGS; i++) {
        double r = median(rates[i], ROUNDS), of = peak[rungs[i].threads];
        if (!can_run(i, why, sizeof why)) {
            printf("%-12s skipped: %s\n", rungs[i].name, why);
            continue;
        }
        snprintf(share, sizeof share, of > 0 ? "%.1f %%" : "-", 100 * r / of);
        snprintf(times, sizeof times, before > 0 ? "%.2f" : "-", r / before);
        printf("%-12s %7d %9.2f %9s %17s %16.4f%s\n", rungs[i].name, rungs[i].threads ? threads : 1, r, share, times, wrong[i],
               wrong[i] <= 1 ? "" : "  WRONG");
        failed += !(wrong[i] <= 1);
        before = r;
    }
    drop(&b);
    return failed;
}

int main(int argc, char **argv)
{
    struct lora_error err = { { 0 }, { 0 }, { 0 }, { 0 }, { 0 } };
    long long size[3] = { 512, 576, 1536 };     /* SmolLM2-135M's gate and up */
    int only_check = argc == 2 && !strcmp(argv[1], "--check"), failed, i;
    if (!only_check && argc != 1 && argc != 4) return fprintf(stderr, "usage: run [--check | N I O]\n"), 2;
    for (i = 0; i < 3 && argc == 4; i++)
        if (parse_integer(argv[i + 1], &size[i]) || size[i] < 1 || size[i] > 16384)
            return fprintf(stderr, "run: %s: expected a number from 1 to 16384\n", argv[i + 1]), 2;
    failed = only_check ? check_all(3, &err) : climb((int)size[0], (int)size[1], (int)size[2], usable_threads(0), &err);
    if (failed < 0) fprintf(stderr, "run: %s: %s\n", err.what, err.where);
    return failed != 0;
}
