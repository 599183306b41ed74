/* nf4.c - makes each figure of docs/nf4.md and holds the page to it (page.h). `make test` builds and runs it. */
#include "page.h"
#include "nf4.h"

#include <math.h>

#define MANY 16384                      /* blocks of 64: a million numbers */

/* ---- the quantiles of the normal distribution ---- */

/* The x below which a standard normal number lies with probability p: by halving, as erfc has no inverse here. */
static double quantile(double p)
{
    double low = -10, high = 10;
    int i;
    for (i = 0; i < 200; i++) {
        double x = (low + high) / 2;
        if (erfc(-x / sqrt(2)) / 2 < p) low = x; else high = x;
    }
    return low;
}

/* The probability of code i: 7 steps from 1 - q up to a half, 8 from a half up to q. */
static double probability(int i)
{
    double q = (29.0 / 30 + 31.0 / 32) / 2;
    return i < 7 ? 1 - q + i * (q - 0.5) / 7 : 0.5 + (i - 7) * (q - 0.5) / 8;
}

static void put_quantiles(struct text *t)
{
    double most = quantile(probability(15));
    int i;
    text_puts(t, "code  probability  quantile    / largest   in nf4.h\n");
    for (i = 0; i < 16; i++) {
        double z = i == 7 ? 0 : quantile(probability(i));
        text_printf(t, "%4d  %.7f    %9.6f   %9.6f   %9.6f\n", i, probability(i), z, z / most, (double)nf4_values[i]);
        if (!(fabs(z / most - (double)nf4_values[i]) < 2e-7)) text_puts(t, "      not the same\n");
    }
}

static void put_midpoints(struct text *t)
{
    int i;
    for (i = 0; i < 15; i++)
        text_printf(t, "%sbetween %2d and %2d: %9.6f%s", i % 3 ? "   " : "", i, i + 1,
                    ((double)nf4_values[i] + (double)nf4_values[i + 1]) / 2, i % 3 == 2 ? "\n" : "");
}

/* ---- one block ---- */

static void make_numbers(float *x, size_t n)
{
    uint64_t key = random_key(0, "docs/nf4.md");
    size_t i;
    for (i = 0; i < n; i++) x[i] = (float)(0.02 * random_normal(key, i));
}

static void put_block(struct text *t)
{
    float x[64], out[64], absmax;
    unsigned char packed[32];
    int i;
    make_numbers(x, 64);
    encode_4bit(packed, &absmax, x, 64, 64, TYPE_NF4);
    decode_4bit(out, packed, &absmax, 64, 64, nf4_values);
    text_printf(t, "absmax %.6f\n\n  i      number     / absmax  code  byte     decoded       error\n", (double)absmax);
    for (i = 0; i < 8; i++) {
        int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
        char byte[8] = "";
        if (i % 2) sprintf(byte, "0x%02x", (unsigned)packed[i / 2]);
        text_printf(t, "%3d   %9.6f   %9.6f   %2d   %4s   %9.6f   %9.6f\n", i, (double)x[i], (double)(x[i] * (1 / absmax)),
                    code, byte, (double)out[i], (double)(out[i] - x[i]));
    }
}

static void put_bytes(struct text *t)
{
    float x[64], absmax;
    unsigned char packed[32];
    int i;
    make_numbers(x, 64);
    encode_4bit(packed, &absmax, x, 64, 64, TYPE_NF4);
    for (i = 0; i < 32; i++) text_printf(t, "%02x%s", (unsigned)packed[i], i % 16 < 15 ? " " : "\n");
}

static void put_sizes(struct text *t)
{
    text_printf(t, "a float to each 64 numbers        4 + 32/64               = %.3f bits a number\n", 4 + 32.0 / 64);
    text_printf(t, "a byte, and a float to each 256   4 + 8/64 + 32/(64*256)  = %.3f bits a number\n",
                4 + 8.0 / 64 + 32.0 / (64 * 256));
}

/* ---- the scales of many blocks ---- */

/* 256 blocks, their scales in a byte each. */
static void put_scales(struct text *t)
{
    enum { BLOCKS = 256 };
    static float x[BLOCKS * 64], absmax[BLOCKS], map[256];
    static unsigned char packed[BLOCKS * 32], codes[BLOCKS];
    float nested, offset;
    double worst = 0;
    int i;
    make_numbers(x, BLOCKS * 64);
    encode_4bit(packed, absmax, x, BLOCKS * 64, 64, TYPE_NF4);
    if (encode_scales(codes, &nested, &offset, absmax, BLOCKS)) text_puts(t, "not encoded\n");
    dynamic_map(map, 1);
    text_printf(t, "offset %.6f (the mean of the 256), largest distance from it %.6f\n\n", (double)offset, (double)nested);
    text_puts(t, "block    absmax     - offset   / largest   code   map[code]   decoded\n");
    for (i = 0; i < BLOCKS; i++) {
        float d = absmax[i] - offset, back = map[codes[i]] * nested + offset;
        double off = fabs((double)(back - absmax[i]) / (double)absmax[i]);
        if (off > worst) worst = off;
        if (i < 4) text_printf(t, "%5d   %.6f   %9.6f   %9.6f    %3d   %9.6f   %.6f\n", i, (double)absmax[i], (double)d,
                               (double)(d * (1 / nested)), codes[i], (double)map[codes[i]], (double)back);
    }
    text_printf(t, "\nworst of the 256: %.2f %% off\n", 100 * worst);
}

/* ---- errors ---- */

/* What the table of Int4 would be: sixteen steps of the same size but for the lowest, which is left out. */
static void int4_decode(float *out, const float *x)
{
    float absmax = 0;
    int i;
    for (i = 0; i < 64; i++) if (fabsf(x[i]) > absmax) absmax = fabsf(x[i]);
    for (i = 0; i < 64; i++) out[i] = absmax * (float)(floor((double)(7 * x[i] / absmax) + 0.5) / 7);
}

static void put_errors(struct text *t)
{
    static const char *const names[] = { "NF4", "Int4", "FP4" };
    double square[3] = { 0 }, magnitude[3] = { 0 };
    uint64_t key = random_key(1, "docs/nf4.md");
    float x[64], out[64], absmax;
    unsigned char packed[32];
    size_t b, n = (size_t)MANY * 64;
    int i, k;
    for (b = 0; b < MANY; b++) {
        for (i = 0; i < 64; i++) x[i] = (float)random_normal(key, b * 64 + (size_t)i);
        for (k = 0; k < 3; k++) {
            int type = k ? TYPE_FP4 : TYPE_NF4;
            if (k == 1) int4_decode(out, x);
            else encode_4bit(packed, &absmax, x, 64, 64, type);
            if (k != 1) decode_4bit(out, packed, &absmax, 64, 64, k ? fp4_values : nf4_values);
            for (i = 0; i < 64; i++) {
                double e = (double)out[i] - (double)x[i];
                square[k] += e * e;
                magnitude[k] += fabs(e);
            }
        }
    }
    text_puts(t, "      mean of e^2   mean of |e|\n");
    for (k = 0; k < 3; k++)
        text_printf(t, "%-4s    %.5f        %.4f\n", names[k], square[k] / (double)n, magnitude[k] / (double)n);
}

int main(int argc, char **argv)
{
    static const struct page_block blocks[] = {
        { "quantiles", put_quantiles }, { "midpoints", put_midpoints }, { "block", put_block }, { "bytes", put_bytes },
        { "sizes", put_sizes }, { "scales", put_scales }, { "errors", put_errors },
    };
    return page_main(argc, argv, blocks, sizeof blocks / sizeof *blocks, 1);
}
