/* nf4.h - NF4 and its kin: weights in 4 bits and 8 bits, as bitsandbytes stores them, bit for bit.
 *
 * NF4 and FP4. A matrix [rows, cols] is one flat array, cut into blocks of 64 numbers (or 32, 128 ...
 * 4096), across the ends of rows; the last block may be short. A block is stored as its largest
 * magnitude, absmax, and a code of 4 bits for each number: the index in a table of 16 of what comes
 * nearest to number / absmax. Two codes share a byte, the first in the high half. With the values of
 * NF4, a block that begins
 *
 *     numbers              0.30    -1.20     0.05     0.00  ...      absmax 1.2
 *     number / absmax      0.25    -1.00     0.04167  0.00
 *     nearest in NF4       0.24611 -1.00     0.07958  0.00
 *     code                 10       0        8        7
 *     bytes                0xa0              0x87
 *     decoded              0.29533 -1.20     0.09550  0.00           table[code] * absmax
 *
 * NF4's 16 values are quantiles of the normal distribution, which weights follow, scaled to [-1, 1]
 * and with an exact zero (Dettmers et al. 2023, section 3); FP4's are a sign, two bits of exponent and
 * one of fraction. The bounds between codes are the midpoints of neighbours; a tie goes to the lower.
 *
 * Cost: 4 bits and a float to each 64 numbers, 4.5 bits a number. Double quantisation makes that
 * 4.127: the scales, less their mean `offset`, are stored in a byte each, in blocks of 256 with a
 * float absmax each: 4 + 8/64 + 32/(64*256). The bytes are indices of 256 values that lie dense near
 * zero (the dynamic map, Dettmers et al. 2022); optimizer moments are stored with the same map.
 *
 *     absmax[i] = map[codes[i]] * nested[i / 256] + offset
 *
 * INT8 (LLM.int8's weights): a row's largest magnitude is its scale, code = number * 127 / scale
 * rounded, halves to even; decoded: code * scale * (1/127), two products in float.
 *
 * Everything is float arithmetic, unfused, in the order in which it stands here. */
#ifndef NF4_H
#define NF4_H

#include "weight.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the tables ---- each once, for C, vector and device code: NF4_VALUES(X) is X(number of code 0)
 * X(number of code 1) ... FP4 has zero twice: code 8, minus zero, is what small positive numbers get. */

#define NF4_VALUES(X) \
    X(-1.0f)                 X(-0.6961928009986877f)  X(-0.5250730514526367f)  X(-0.39491748809814453f) \
    X(-0.28444138169288635f) X(-0.18477343022823334f) X(-0.09105003625154495f) X(0.0f) \
    X(0.07958029955625534f)  X(0.16093020141124725f)  X(0.24611230194568634f)  X(0.33791524171829224f) \
    X(0.44070982933044434f)  X(0.5626170039176941f)   X(0.7229568362236023f)   X(1.0f)

#define FP4_VALUES(X) \
    X(0.0f)  X(0.0052083334885537624f)  X(0.6666666865348816f)  X(1.0f) \
    X(0.3333333432674408f)  X(0.5f)  X(0.1666666716337204f)  X(0.25f) \
    X(-0.0f) X(-0.0052083334885537624f) X(-0.6666666865348816f) X(-1.0f) \
    X(-0.3333333432674408f) X(-0.5f) X(-0.1666666716337204f) X(-0.25f)

extern const float nf4_values[16], fp4_values[16];

/* Seven ranges of a factor ten each, [10^e, 10^(e+1)), e = -7 .. -1, with 1, 2, 4 ... 64 numbers (twice
 * that where no sign takes a bit): the midpoints of a row of evenly spaced ones; and 0 and 1. The
 * numbers of the row from 0.1 to 1 are rounded once, as fused multiply-adds do: double holds each. */
static inline float dynamic_spaced(int i, int n)
{
    const float first = 0.1f, step = (1.0f - first) / (float)n;
    if (i < (n + 1) / 2) return (float)((double)first + (double)step * i);
    return (float)(1.0 - (double)step * (n - i));
}

/* The dynamic map of 256 numbers, ascending: from -0.993 to 1, or (is_signed 0) from 0 to 1. */
static inline void dynamic_map(float map[256], int is_signed)
{
    static const float scales[7] = { 1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1 };
    int zero = is_signed ? 127 : 0, at = 1, e, i;
    map[zero] = 0;
    for (e = 0; e < 7; e++) {
        int n = (is_signed ? 1 : 2) << e;
        for (i = 0; i < n; i++, at++) {
            map[zero + at] = scales[e] * ((dynamic_spaced(i, n) + dynamic_spaced(i + 1, n)) / 2);
            if (is_signed) map[zero - at] = -map[zero + at];
        }
    }
    map[255] = 1;
}

/* ---- one number of a block ---- what the encoders do with each, for device code too. */

/* bounds[n - 1]: between values[n], which ascend. */
static inline void code_midpoints(float *bounds, const float *values, int n)
{
    int i;
    for (i = 0; i < n - 1; i++) bounds[i] = (values[i] + values[i + 1]) / 2;
}

/* The code of y: how many of the ascending bounds[2 * half - 1] lie below it. A NaN is above none. */
static inline HOST_DEVICE int code_of(const float *bounds, int half, float y)
{
    int k = 0;
    for (; half; half /= 2) k += y > bounds[k + half - 1] ? half : 0;
    return k;
}

/* A block's numbers are divided by its absmax, but for one of zeros: then by this. */
#define LEAST_DIVISOR 1e-38f
static inline HOST_DEVICE float block_divisor(float absmax) { return absmax < LEAST_DIVISOR ? LEAST_DIVISOR : absmax; }

/* x / absmax in [-1, 1]; inverse = 1 / divisor. A number of a whole block is multiplied by it, one of a short block
 * divided: so bitsandbytes does, and the last bit may decide a code. */
static inline HOST_DEVICE float block_normalise(float x, float divisor, float inverse, int whole)
{
    float y = whole ? x * inverse : x / divisor;
    return y < -1 ? -1 : y > 1 ? 1 : y;
}

/* ---- arrays ---- x[n] in blocks of `block`, at most BLOCK_MOST. The encoders return 0, or -1 when a
 * number is not finite. They may be called for a part of a tensor that begins where a block does and
 * does not end inside one: the results are the same. */

enum { BLOCK_MOST = 4096, NESTED_BLOCK = 256 };

/* ceil(n / block) */
size_t block_count(size_t n, int block);
/* packed[ceil(n/2)], absmax[block_count]; type: TYPE_NF4 or TYPE_FP4. The last half byte of an odd n
 * is the code of zero. */
int encode_4bit(unsigned char *packed, float *absmax, const float *x, size_t n, int block, int type);
/* code[16]: nf4_values, fp4_values, or a file's own. */
void decode_4bit(float *out, const unsigned char *packed, const float *absmax, size_t n, int block, const float *code);
/* codes[n], absmax[block_count]; map: ascending. */
int encode_8bit(unsigned char *codes, float *absmax, const float *x, size_t n, int block, const float map[256]);
void decode_8bit(float *out, const unsigned char *codes, const float *absmax, size_t n, int block, const float map[256]);
/* Double quantisation of scales: codes[n], nested[block_count(n, NESTED_BLOCK)], with the signed map. */
int encode_scales(unsigned char *codes, float *nested, float *offset, const float *absmax, size_t n);
/* One row of INT8: codes[n] and its scale. */
int encode_int8(signed char *codes, float *scale, const float *x, size_t n);

/* ---- matrices ---- */

/* How to quantise. */
struct quantise {
    int type;               /* TYPE_NF4, TYPE_FP4 or TYPE_INT8 */
    int block;              /* a power of two from 32 to 4096 (bitsandbytes' own is 64); INT8: not used */
    int double_quant;       /* NF4, FP4: the scales in 8 bits too */
};
/* -1 with an error that names the bad part. */
int quantise_check(const struct quantise *how, struct lora_error *err);

/* Row `row` of a matrix as floats: from a file, a merge, a random stream. */
typedef int row_source(void *ctx, int row, float *out, struct lora_error *err);
/* A new weight [rows, cols] of that type, all in one piece of heap memory: free with weight_free().
 * `name` is for errors (a number that is not finite is one). Rows are asked for in order, from one
 * thread; a few at a time are held as floats. Uses `threads` threads; the bytes do not depend on them. */
int weight_quantise(struct weight *out, const struct quantise *how, int rows, int cols, row_source *row, void *ctx,
                    int threads, const char *name, struct lora_error *err);
void weight_free(struct weight *w);     /* what w->q points at, and with it what lies behind it */
/* A row_source: rows of the `struct weight` that ctx points at. */
int weight_row(void *ctx, int row, float *out, struct lora_error *err);

/* How far b lies from a: two weights of one shape. */
struct weight_error {
    double mean_square, largest;    /* of b - a */
    double snr;                     /* 10 log10(sum a^2 / sum (b-a)^2) in dB; infinity when b = a */
};
int weight_difference(struct weight_error *e, const struct weight *a, const struct weight *b, int threads,
                      struct lora_error *err);
/* The same of w and what it would be as `how` says: nothing of it is kept. */
int weight_quantise_error(struct weight_error *e, const struct weight *w, const struct quantise *how, int threads,
                          const char *name, struct lora_error *err);

/* ---- for weight.c's table, and for decoders in vectors and on a device ---- */

/* absmax of block i */
static inline HOST_DEVICE float quantised_scale(const struct quantised *q, size_t i)
{
    float product;
    if (q->absmax) return q->absmax[i];
    product = q->map[q->codes[i]] * q->nested[i / (size_t)q->nested_block];
    return product + q->offset;
}

void decode_4bit_weight(const struct weight *w, int row, int col, int n, float *out);
void decode_int8_weight(const struct weight *w, int row, int col, int n, float *out);

#ifdef __cplusplus
}
#endif
#endif
