/* weight.c - the table of storage types, and the decoders of plain ones.
 *
 * Files are little endian, and so are the machines this runs on. Data in a file lies at any
 * address: every load goes through memcpy, which compiles to a plain one. */
#include "weight.h"

#include "blocks.h"
#include "nf4.h"

#include <string.h>

/* ---- half precision ---- */

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

/* ---- plain types ---- */

static void decode_f32(const struct weight *w, int row, int col, int n, float *out)
{
    memcpy(out, (const char *)w->data + weight_element(w, row, col) * 4, (size_t)n * 4);
}

static void decode_f16(const struct weight *w, int row, int col, int n, float *out)
{
    const char *p = (const char *)w->data + weight_element(w, row, col) * 2;
    int i;
    for (i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = f16_to_f32(h);
    }
}

static void decode_bf16(const struct weight *w, int row, int col, int n, float *out)
{
    const char *p = (const char *)w->data + weight_element(w, row, col) * 2;
    int i;
    for (i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = bf16_to_f32(h);
    }
}

/* ---- GGUF's blocks: blocks.h unpacks them ---- */

/* A strip: what falls on part of a piece of 32 goes through a piece of its own. */
static void decode_blocks(const struct weight *w, int row, int col, int n, float *out)
{
    const struct weight_type_info *t = &weight_types[w->type];
    size_t e = weight_element(w, row, col);
    const unsigned char *p = (const unsigned char *)w->data + e / (size_t)t->block * (size_t)t->bytes;
    int at = (int)(e % (size_t)t->block), skip = at % 32, piece = at / 32;
    float whole[32];
    for (; n > 0; skip = 0) {
        int m = 32 - skip < n ? 32 - skip : n;
        if (m == 32) {
            t->unpack(p, piece, out);
        } else {
            t->unpack(p, piece, whole);
            memcpy(out, whole + skip, (size_t)m * sizeof *out);
        }
        out += m;
        n -= m;
        if (++piece * 32 < t->block) continue;
        piece = 0;
        p += t->bytes;
    }
}

/* ---- the table ---- */

const struct weight_type_info weight_types[TYPE_COUNT] = {
    [TYPE_F32]    = { "F32",    "F32",  0,  1,   4,   decode_f32,    NULL },
    [TYPE_F16]    = { "F16",    "F16",  1,  1,   2,   decode_f16,    NULL },
    [TYPE_BF16]   = { "BF16",   "BF16", 30, 1,   2,   decode_bf16,   NULL },
    [TYPE_Q8_0]   = { "Q8_0",   NULL,   8,  32,  34,  decode_blocks, unpack_q8_0 },
    [TYPE_Q4_0]   = { "Q4_0",   NULL,   2,  32,  18,  decode_blocks, unpack_q4_0 },
    [TYPE_Q4_1]   = { "Q4_1",   NULL,   3,  32,  20,  decode_blocks, unpack_q4_1 },
    [TYPE_Q5_0]   = { "Q5_0",   NULL,   6,  32,  22,  decode_blocks, unpack_q5_0 },
    [TYPE_Q5_1]   = { "Q5_1",   NULL,   7,  32,  24,  decode_blocks, unpack_q5_1 },
    [TYPE_Q2_K]   = { "Q2_K",   NULL,   10, 256, 84,  decode_blocks, unpack_q2_k },
    [TYPE_Q3_K]   = { "Q3_K",   NULL,   11, 256, 110, decode_blocks, unpack_q3_k },
    [TYPE_Q4_K]   = { "Q4_K",   NULL,   12, 256, 144, decode_blocks, unpack_q4_k },
    [TYPE_Q5_K]   = { "Q5_K",   NULL,   13, 256, 176, decode_blocks, unpack_q5_k },
    [TYPE_Q6_K]   = { "Q6_K",   NULL,   14, 256, 210, decode_blocks, unpack_q6_k },
    [TYPE_IQ4_NL] = { "IQ4_NL", NULL,   20, 32,  18,  decode_blocks, unpack_iq4_nl },
    [TYPE_NF4]    = { "NF4",    NULL,   -1, 2,   1,   decode_4bit_weight, NULL },   /* and scales: weight_bytes */
    [TYPE_FP4]    = { "FP4",    NULL,   -1, 2,   1,   decode_4bit_weight, NULL },
    [TYPE_INT8]   = { "INT8",   NULL,   -1, 1,   1,   decode_int8_weight, NULL },
    [TYPE_F64]    = { "F64",    "F64",  28, 1,   8,   NULL,          NULL },
    [TYPE_I64]    = { "I64",    "I64",  27, 1,   8,   NULL,          NULL },
    [TYPE_I32]    = { "I32",    "I32",  26, 1,   4,   NULL,          NULL },
    [TYPE_I16]    = { "I16",    "I16",  25, 1,   2,   NULL,          NULL },
    [TYPE_I8]     = { "I8",     "I8",   24, 1,   1,   NULL,          NULL },
    [TYPE_U8]     = { "U8",     "U8",   -1, 1,   1,   NULL,          NULL },
    [TYPE_BOOL]   = { "BOOL",   "BOOL", -1, 1,   1,   NULL,          NULL },
    [TYPE_REAL]   = { "REAL",   NULL,   -1, 1,   0,   NULL,          NULL },    /* its bytes are the backend's */
};

int type_bytes(size_t *out, int type, size_t count)
{
    const struct weight_type_info *t = &weight_types[type];
    if (!t->bytes || count % (size_t)t->block) return -1;
    return size_mul(out, count / (size_t)t->block, (size_t)t->bytes);
}

int weight_bytes(size_t *out, const struct weight *w)
{
    const struct quantised *q = w->q;
    size_t count, scales;
    if (size_mul(&count, (size_t)w->rows, (size_t)w->cols)) return -1;
    if (!q) return type_bytes(out, w->type, count);
    scales = q->absmax ? q->scales * sizeof(float) : q->scales + block_count(q->scales, q->nested_block) * sizeof(float);
    return type_bytes(out, w->type, count + (q->code && count % 2)) || size_add(out, *out, scales) ? -1 : 0;
}

void weight_decode(const struct weight *w, int row, int col, int n, float *out)
{
    weight_types[w->type].decode(w, row, col, n, out);
}
