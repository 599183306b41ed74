/* nf4.c - see nf4.h: 4-bit and 8-bit weights, encoded and decoded as bitsandbytes does. */
#include "nf4.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the tables ---- */

#define ITEM(value) value,
const float nf4_values[16] = { NF4_VALUES(ITEM) };
const float fp4_values[16] = { FP4_VALUES(ITEM) };
#undef ITEM

/* Seven ranges of a factor ten each, [10^e, 10^(e+1)), e = -7 .. -1, with 1, 2, 4 ... 64 numbers (twice
 * that where no sign takes a bit): the midpoints of a row of evenly spaced ones; and 0 and 1. The
 * numbers of the row from 0.1 to 1 are rounded once, as fused multiply-adds do: double holds each. */
static float spaced(int i, int n)
{
    const float first = 0.1f, step = (1.0f - first) / (float)n;
    if (i < (n + 1) / 2) return (float)((double)first + (double)step * i);
    return (float)(1.0 - (double)step * (n - i));
}

void dynamic_map(float map[256], int is_signed)
{
    static const float scales[7] = { 1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1 };
    int zero = is_signed ? 127 : 0, at = 1, e, i;
    map[zero] = 0;
    for (e = 0; e < 7; e++) {
        int n = (is_signed ? 1 : 2) << e;
        for (i = 0; i < n; i++, at++) {
            map[zero + at] = scales[e] * ((spaced(i, n) + spaced(i + 1, n)) / 2);
            if (is_signed) map[zero - at] = -map[zero + at];
        }
    }
    map[255] = 1;
}

size_t block_count(size_t n, int block) { return n / (size_t)block + (n % (size_t)block != 0); }

/* ---- weights ---- */

float quantised_scale(const struct quantised *q, size_t i)
{
    float product;
    if (q->absmax) return q->absmax[i];
    product = q->map[q->codes[i]] * q->nested[i / (size_t)q->nested_block];
    return product + q->offset;
}

void decode_4bit_weight(const struct weight *w, int row, int col, int n, float *out)
{
    const struct quantised *q = w->q;
    const unsigned char *p = w->data;
    size_t e = weight_element(w, row, col), block = (size_t)q->block, end;
    for (; n > 0; ) {
        float absmax = quantised_scale(q, e / block);
        end = (e / block + 1) * block;
        if (end - e > (size_t)n) end = e + (size_t)n;
        n -= (int)(end - e);
        for (; e < end; e++) *out++ = q->code[e % 2 ? p[e / 2] & 15 : p[e / 2] >> 4] * absmax;
    }
}

void decode_int8_weight(const struct weight *w, int row, int col, int n, float *out)
{
    size_t e = weight_element(w, row, col);
    const signed char *p = (const signed char *)w->data + e;
    float scale = w->q->absmax[e / (size_t)w->cols];
    int i;
    for (i = 0; i < n; i++) out[i] = (float)p[i] * scale * (1.0f / 127);
}
