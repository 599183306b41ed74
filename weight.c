/* weight.c - the table of storage types and their decoders.
 *
 * Files are little endian, and so are the machines this runs on. Data in a file lies at any
 * address: every load goes through memcpy, which compiles to a plain one. */
#include "weight.h"

#include <string.h>

/* ---- half precision ---- */

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* The exponent's bias is 15 in one and 127 in the other: times 2^112, exactly, which makes numbers
 * of the subnormal ones too. Infinity and NaN have all exponent bits set. */
float f16_to_f32(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    uint32_t u = bits_of(float_of(magnitude) * 0x1p112f);
    if (magnitude >= 0x0f800000) u = magnitude | 0x7f800000;
    return float_of(u | (uint32_t)(h & 0x8000) << 16);
}

uint16_t f32_to_f16(float f)
{
    uint32_t u = bits_of(f), magnitude = u & 0x7fffffff, sign = u >> 16 & 0x8000, h;
    if (magnitude > 0x7f800000) h = 0x7e00 | (magnitude >> 13 & 0x3ff);        /* NaN, made quiet */
    else if (magnitude >= 0x477ff000) h = 0x7c00;       /* 65520 and more round to infinity */
    else if (magnitude >= 0x38800000)                   /* 2^-14 and more: normal */
        h = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    else    /* subnormal: adding 1/2 puts the last place, 2^-24, where the addition rounds to it */
        h = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
    return (uint16_t)(sign | h);
}

float bf16_to_f32(uint16_t h) { return float_of((uint32_t)h << 16); }

uint16_t f32_to_bf16(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* ---- plain types ---- */

int weight_file_row(const struct weight *w, int row)
{
    int d = w->head_rows, r;
    if (!d) return row;
    r = row % d;
    return row - r + 2 * (r % (d / 2)) + r / (d / 2);
}

/* Index in the data of W[row][col]. */
static size_t element(const struct weight *w, int row, int col)
{
    return w->offset + (size_t)weight_file_row(w, row) * (size_t)w->cols + (size_t)col;
}

static void decode_f32(const struct weight *w, int row, int col, int n, float *out)
{
    memcpy(out, (const char *)w->data + element(w, row, col) * 4, (size_t)n * 4);
}

static void decode_f16(const struct weight *w, int row, int col, int n, float *out)
{
    const char *p = (const char *)w->data + element(w, row, col) * 2;
    int i;
    for (i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = f16_to_f32(h);
    }
}

static void decode_bf16(const struct weight *w, int row, int col, int n, float *out)
{
    const char *p = (const char *)w->data + element(w, row, col) * 2;
    int i;
    for (i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = bf16_to_f32(h);
    }
}

/* ---- GGUF's blocks of 32 ----
 * In ggml's order of operations, in float: a product, then a sum. */

#define BLOCK 32

static float scale_at(const unsigned char *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return f16_to_f32(h);
}

/* f16 d, int8 q[32]: d q */
static void block_q8_0(const unsigned char *p, float *out)
{
    float d = scale_at(p);
    const signed char *q = (const signed char *)p + 2;
    int j;
    for (j = 0; j < BLOCK; j++) out[j] = d * (float)q[j];
}

/* f16 d, 16 bytes: d (q - 8), the low halves first, then the high ones */
static void block_q4_0(const unsigned char *p, float *out)
{
    float d = scale_at(p);
    int j;
    for (j = 0; j < BLOCK / 2; j++) {
        out[j] = d * (float)((p[2 + j] & 15) - 8);
        out[j + BLOCK / 2] = d * (float)((p[2 + j] >> 4) - 8);
    }
}

/* f16 d, f16 m, 16 bytes: d q + m */
static void block_q4_1(const unsigned char *p, float *out)
{
    float d = scale_at(p), m = scale_at(p + 2);
    int j;
    for (j = 0; j < BLOCK / 2; j++) {
        out[j] = d * (float)(p[4 + j] & 15) + m;
        out[j + BLOCK / 2] = d * (float)(p[4 + j] >> 4) + m;
    }
}

/* A strip: what falls on part of a block goes through a block of its own. */
static inline void decode_blocks(const struct weight *w, int row, int col, int n, float *out,
                                 size_t bytes, void (*block)(const unsigned char *p, float *out))
{
    size_t e = element(w, row, col);
    const unsigned char *p = (const unsigned char *)w->data + e / BLOCK * bytes;
    int skip = (int)(e % BLOCK);
    float whole[BLOCK];
    for (; n > 0; p += bytes, skip = 0) {
        int m = BLOCK - skip < n ? BLOCK - skip : n;
        if (m == BLOCK) block(p, out);
        else {
            block(p, whole);
            memcpy(out, whole + skip, (size_t)m * sizeof *out);
        }
        out += m;
        n -= m;
    }
}

static void decode_q8_0(const struct weight *w, int row, int col, int n, float *out)
{
    decode_blocks(w, row, col, n, out, 34, block_q8_0);
}

static void decode_q4_0(const struct weight *w, int row, int col, int n, float *out)
{
    decode_blocks(w, row, col, n, out, 18, block_q4_0);
}

static void decode_q4_1(const struct weight *w, int row, int col, int n, float *out)
{
    decode_blocks(w, row, col, n, out, 20, block_q4_1);
}

/* ---- the table ---- */

const struct weight_type_info weight_types[TYPE_COUNT] = {
    [TYPE_F32]  = { "F32",  "F32",  0,  1,     4,  decode_f32 },
    [TYPE_F16]  = { "F16",  "F16",  1,  1,     2,  decode_f16 },
    [TYPE_BF16] = { "BF16", "BF16", 30, 1,     2,  decode_bf16 },
    [TYPE_Q8_0] = { "Q8_0", NULL,   8,  BLOCK, 34, decode_q8_0 },
    [TYPE_Q4_0] = { "Q4_0", NULL,   2,  BLOCK, 18, decode_q4_0 },
    [TYPE_Q4_1] = { "Q4_1", NULL,   3,  BLOCK, 20, decode_q4_1 },
    [TYPE_F64]  = { "F64",  "F64",  28, 1,     8,  NULL },
    [TYPE_I64]  = { "I64",  "I64",  27, 1,     8,  NULL },
    [TYPE_I32]  = { "I32",  "I32",  26, 1,     4,  NULL },
    [TYPE_I16]  = { "I16",  "I16",  25, 1,     2,  NULL },
    [TYPE_I8]   = { "I8",   "I8",   24, 1,     1,  NULL },
    [TYPE_U8]   = { "U8",   "U8",   -1, 1,     1,  NULL },
    [TYPE_BOOL] = { "BOOL", "BOOL", -1, 1,     1,  NULL },
    [TYPE_REAL] = { "REAL", NULL,   -1, 1,     0,  NULL },      /* its bytes are the backend's */
};

int type_bytes(size_t *out, int type, size_t count)
{
    const struct weight_type_info *t = &weight_types[type];
    if (!t->bytes || count % (size_t)t->block) return -1;
    return size_mul(out, count / (size_t)t->block, (size_t)t->bytes);
}

void weight_decode(const struct weight *w, int row, int col, int n, float *out)
{
    weight_types[w->type].decode(w, row, col, n, out);
}
