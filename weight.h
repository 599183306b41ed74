/* weight.h - a frozen matrix as a value: its type, its shape, and its bytes where they lie.
 *
 * A product never unpacks a weight whole. Whoever needs numbers asks for a strip of one row, and
 * the type's decoder makes them. Adding a type is adding a row to the table in weight.c. */
#ifndef WEIGHT_H
#define WEIGHT_H

#include "util.h"

#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Storage types of files, and of weights. The order is ours; names and sizes are in weight_types. */
enum weight_type {
    TYPE_F32, TYPE_F16, TYPE_BF16,              /* safetensors and GGUF */
    TYPE_Q8_0, TYPE_Q4_0, TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1,      /* GGUF's blocks (blocks.h has their layout) */
    TYPE_Q2_K, TYPE_Q3_K, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_IQ4_NL,
    TYPE_NF4, TYPE_FP4, TYPE_INT8,              /* bitsandbytes (nf4.h has their layout) */
    TYPE_F64, TYPE_I64, TYPE_I32, TYPE_I16, TYPE_I8, TYPE_U8, TYPE_BOOL,  /* in files, not weights */
    TYPE_REAL,                                  /* a buffer of the backend: trained, or made here */
    TYPE_COUNT
};

/* What the numbers of an NF4, FP4 or INT8 weight are made with, besides their codes. A scale belongs
 * to `block` elements of the flattened tensor, which may begin and end inside rows; INT8 has one to a
 * row. The arrays lie aligned, in the mapped file or behind this struct, which is heap memory; of a weight that was
 * copied to a table with its own memory they lie there, and the host reads this struct alone. */
struct quantised {
    int block;                  /* 4-bit types: elements to a scale, even; INT8: 0 */
    size_t scales;              /* how many: ceil(elements / block), of INT8 rows */
    const float *code;          /* [16] the number that each code stands for; INT8: NULL */
    const float *absmax;        /* [scales], or NULL when they are quantised too (double quantisation): */
    const unsigned char *codes; /* [scales] absmax_i = map[codes[i]] * nested[i / nested_block] + offset */
    const float *map;           /* [256] */
    const float *nested;        /* [ceil(scales / nested_block)] */
    int nested_block;
    float offset;
    size_t heap;                /* bytes behind this struct; 0: all of the weight lies in the file */
};

struct weight {
    int type;
    int rows, cols;         /* y = x W^T: rows are outputs, cols are inputs */
    int head_rows;          /* 0: rows lie in order. d > 0: GGUF's order for rotary pairs, in heads of d
                             * rows: row h*d + k*d/2 + j of the model lies at row h*d + 2j + k */
    size_t offset;          /* elements from data to the first row: a slice of a fused matrix */
    const void *data;       /* mapped file, heap, the backend's own memory, or (TYPE_REAL) a buf of the backend */
    const struct quantised *q;  /* NF4, FP4, INT8; else NULL */
};

typedef void decoder(const struct weight *w, int row, int col, int n, float *out);

struct weight_type_info {
    const char *name;           /* "F32", "Q4_1": as GGUF prints it */
    const char *safetensors;    /* "F32", or NULL: not a safetensors type */
    int gguf;                   /* ggml's number, or -1 */
    int block, bytes;           /* elements in a block and its bytes */
    decoder *decode;            /* out[i] = W[row][col + i], i < n; NULL: not a weight */
    /* Numbers 32 piece .. 32 piece + 31 of the block at p; NULL: no blocks */
    void (*unpack)(const unsigned char *p, int piece, float *out);
};
extern const struct weight_type_info weight_types[TYPE_COUNT];

/* Bytes of `count` elements; -1 if count is not whole blocks or the size overflows. */
int type_bytes(size_t *out, int type, size_t count);
/* Bytes of a whole weight: its data and its scales (not the tables of 16 and 256 that codes stand for).
 * -1 for TYPE_REAL, whose bytes are the backend's, or when the size overflows. */
int weight_bytes(size_t *out, const struct weight *w);
/* Any col and n with col + n <= cols: columns need not fall on block edges. TYPE_REAL is not
 * decoded here (only its backend can). */
void weight_decode(const struct weight *w, int row, int col, int n, float *out);
/* Row of the file that holds row `row` of the model (head_rows). */
static inline HOST_DEVICE int weight_file_row(const struct weight *w, int row)
{
    int d = w->head_rows, r;
    if (!d) return row;
    r = row % d;
    return row - r + 2 * (r % (d / 2)) + r / (d / 2);
}

/* Index in the data of W[row][col], in elements. */
static inline HOST_DEVICE size_t weight_element(const struct weight *w, int row, int col)
{
    return w->offset + (size_t)weight_file_row(w, row) * (size_t)w->cols + (size_t)col;
}

/* ---- half precision ---- */

static inline HOST_DEVICE uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline HOST_DEVICE float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* The exponent's bias is 15 in one and 127 in the other: times 2^112, exactly, which makes numbers
 * of the subnormal ones too. Infinity and NaN have all exponent bits set. */
static inline HOST_DEVICE float f16_to_f32(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    uint32_t u = bits_of(float_of(magnitude) * 0x1p112f);
    if (magnitude >= 0x0f800000) u = magnitude | 0x7f800000;
    return float_of(u | (uint32_t)(h & 0x8000) << 16);
}

static inline HOST_DEVICE float bf16_to_f32(uint16_t h) { return float_of((uint32_t)h << 16); }

/* To nearest, ties to even; NaN stays NaN. */
static inline HOST_DEVICE uint16_t f32_to_bf16(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

uint16_t f32_to_f16(float f);           /* to nearest, ties to even; overflow gives infinity */

#ifdef __cplusplus
}
#endif
#endif
