/* blocks.h - GGUF's block types: 32 numbers of a block of a file, as ggml decodes them, bit for bit.
 *
 * unpack_TYPE(p, piece, out): numbers 32 piece .. 32 piece + 31 of the block at p, which may lie at any address.
 * Blocks hold 32 numbers, piece is 0, or (the K types) 256, piece 0 .. 7. Each function's comment is the layout of its
 * block.
 *
 * All multiply and add in float, unfused, in ggml's order. The types of 32 numbers, but Q8_0, hold number j
 * in the low half of byte j, number j + 16 in its high half. The K types have 8 or 16 groups with a scale of 4 to 8 bits
 * each, which a half-precision d scales again.
 *
 * In a header, so that device code is made of it too. */
#ifndef BLOCKS_H
#define BLOCKS_H

#include "weight.h"

static inline HOST_DEVICE float half_of(const unsigned char *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return f16_to_f32(h);
}

/* f16 d, int8 q[32]: d q */
static inline HOST_DEVICE void unpack_q8_0(const unsigned char *p, int piece, float *out)
{
    float d = half_of(p);
    const signed char *q = (const signed char *)p + 2;
    int j;
    (void)piece;
    for (j = 0; j < 32; j++) out[j] = d * (float)q[j];
}

/* f16 d, 16 bytes q: d (q - 8) */
static inline HOST_DEVICE void unpack_q4_0(const unsigned char *p, int piece, float *out)
{
    float d = half_of(p);
    int j;
    (void)piece;
    for (j = 0; j < 16; j++) {
        out[j] = d * (float)((p[2 + j] & 15) - 8);
        out[j + 16] = d * (float)((p[2 + j] >> 4) - 8);
    }
}

/* f16 d, f16 m, 16 bytes q: d q + m */
static inline HOST_DEVICE void unpack_q4_1(const unsigned char *p, int piece, float *out)
{
    float d = half_of(p), m = half_of(p + 2);
    int j;
    (void)piece;
    for (j = 0; j < 16; j++) {
        out[j] = d * (float)(p[4 + j] & 15) + m;
        out[j + 16] = d * (float)(p[4 + j] >> 4) + m;
    }
}

/* Number j of 32: four low bits of q, the fifth is bit j of the 4 bytes h. */
static inline HOST_DEVICE int five_bits(const unsigned char *q, const unsigned char *h, int j)
{
    int low = j < 16 ? q[j] & 15 : q[j - 16] >> 4;
    return low | (h[j / 8] >> j % 8 & 1) << 4;
}

/* f16 d, 4 bytes h, 16 bytes q: d (q - 16) */
static inline HOST_DEVICE void unpack_q5_0(const unsigned char *p, int piece, float *out)
{
    float d = half_of(p);
    int j;
    (void)piece;
    for (j = 0; j < 32; j++) out[j] = d * (float)(five_bits(p + 6, p + 2, j) - 16);
}

/* f16 d, f16 m, 4 bytes h, 16 bytes q: d q + m */
static inline HOST_DEVICE void unpack_q5_1(const unsigned char *p, int piece, float *out)
{
    float d = half_of(p), m = half_of(p + 2);
    int j;
    (void)piece;
    for (j = 0; j < 32; j++) out[j] = d * (float)five_bits(p + 8, p + 4, j) + m;
}

/* f16 d, 16 bytes q, each half an index into fixed values: d value */
static inline HOST_DEVICE void unpack_iq4_nl(const unsigned char *p, int piece, float *out)
{
    static const float values[16] = {       /* ggml-common.h, kvalues_iq4nl */
        -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };
    float d = half_of(p);
    int j;
    (void)piece;
    for (j = 0; j < 16; j++) {
        out[j] = d * values[p[2 + j] & 15];
        out[j + 16] = d * values[p[2 + j] >> 4];
    }
}

/* 64 bytes of pairs of bits (q of Q2_K and Q3_K, h of Q6_K): those of a piece lie side by side. */
static inline HOST_DEVICE int pair_of_bits(const unsigned char *q, int piece, int j)
{
    return q[piece / 4 * 32 + j] >> 2 * (piece % 4) & 3;
}

/* 16 bytes s, 64 bytes q, f16 d, f16 m; groups of 16: (d low(s)) q - (m high(s)) */
static inline HOST_DEVICE void unpack_q2_k(const unsigned char *p, int piece, float *out)
{
    float d = half_of(p + 80), m = half_of(p + 82);
    int g, j;
    for (g = 0; g < 2; g++) {
        float scale = d * (float)(p[2 * piece + g] & 15), low = m * (float)(p[2 * piece + g] >> 4);
        for (j = 16 * g; j < 16 * g + 16; j++) out[j] = scale * (float)pair_of_bits(p + 16, piece, j) - low;
    }
}

/* 32 bytes h, 64 bytes q, 12 bytes s, f16 d; groups of 16: d (s - 32) (q - 4 where h has no bit). Scale g
 * has its four low bits in half g/8 of byte g%8, its two high bits in byte 8 + g%4, shifted by 2 (g/4). */
static inline HOST_DEVICE void unpack_q3_k(const unsigned char *p, int piece, float *out)
{
    const unsigned char *s = p + 96;
    float d = half_of(p + 108);
    int g, j;
    for (g = 2 * piece; g < 2 * piece + 2; g++) {
        int low = s[g % 8] >> 4 * (g / 8) & 15, high = s[8 + g % 4] >> 2 * (g / 4) & 3, from = g % 2 * 16;
        float scale = d * (float)((low | high << 4) - 32);
        for (j = from; j < from + 16; j++)
            out[j] = scale * (float)(pair_of_bits(p + 32, piece, j) - (p[j] >> piece & 1 ? 0 : 4));
    }
}

/* Scale and minimum of group g of 8 of Q4_K and Q5_K: 6 bits each, in the 12 bytes s. The first four of each are the
 * low bits of bytes 0-3 and 4-7; of the others four bits are in bytes 8-11, the two high ones on top of those bytes. */
static inline HOST_DEVICE void scales_of_k4(const unsigned char *s, int g, int *scale, int *minimum)
{
    if (g < 4) {
        *scale = s[g] & 63;
        *minimum = s[g + 4] & 63;
    } else {
        *scale = (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
        *minimum = s[g + 4] >> 4 | s[g] >> 6 << 4;
    }
}

/* f16 d, f16 m, 12 bytes of scales, 128 bytes q; groups of 32, (d scale) q - (m minimum); q of group g in half g%2 of
 * bytes g/2*32 on. */
static inline HOST_DEVICE void unpack_q4_k(const unsigned char *p, int piece, float *out)
{
    const unsigned char *q = p + 16 + piece / 2 * 32;
    int scale, minimum, j;
    float a, b;
    scales_of_k4(p + 4, piece, &scale, &minimum);
    a = half_of(p) * (float)scale;
    b = half_of(p + 2) * (float)minimum;
    for (j = 0; j < 32; j++) out[j] = a * (float)(q[j] >> 4 * (piece % 2) & 15) - b;
}

/* The same with 32 bytes h before q: a fifth bit, bit g of h. */
static inline HOST_DEVICE void unpack_q5_k(const unsigned char *p, int piece, float *out)
{
    const unsigned char *h = p + 16, *q = p + 48 + piece / 2 * 32;
    int scale, minimum, j;
    float a, b;
    scales_of_k4(p + 4, piece, &scale, &minimum);
    a = half_of(p) * (float)scale;
    b = half_of(p + 2) * (float)minimum;
    for (j = 0; j < 32; j++)
        out[j] = a * (float)((q[j] >> 4 * (piece % 2) & 15) | (h[j] >> piece & 1) << 4) - b;
}

/* 128 bytes q, 64 bytes h, int8 s[16], f16 d; groups of 16: (d s) (q - 32). Number j of a piece: four bits in half
 * piece/2%2 of q, two in h. */
static inline HOST_DEVICE void unpack_q6_k(const unsigned char *p, int piece, float *out)
{
    const unsigned char *q = p + piece / 4 * 64 + piece % 2 * 32;
    const signed char *s = (const signed char *)p + 192 + 2 * piece;
    float d = half_of(p + 208);
    int j;
    for (j = 0; j < 32; j++) {
        int low = q[j] >> 4 * (piece / 2 % 2) & 15;
        out[j] = d * (float)s[j / 16] * (float)((low | pair_of_bits(p + 128, piece, j) << 4) - 32);
    }
}

#endif
