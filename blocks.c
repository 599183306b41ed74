/* blocks.c - see blocks.h. Each function's comment is the layout of its block.
 *
 * All multiply and add in float, unfused, in ggml's order. The types of 32 numbers hold number j in the
 * low half of byte j, number j + 16 in its high half. The K types hold 256 numbers, in 8 or 16 groups
 * with a scale of 4 to 8 bits each, which a half-precision d scales again. */
#include "blocks.h"

#include "weight.h"

#include <string.h>

static float half_at(const unsigned char *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return f16_to_f32(h);
}

/* f16 d, int8 q[32]: d q */
void unpack_q8_0(const unsigned char *p, float *out)
{
    float d = half_at(p);
    const signed char *q = (const signed char *)p + 2;
    int j;
    for (j = 0; j < 32; j++) out[j] = d * (float)q[j];
}

/* f16 d, 16 bytes q: d (q - 8) */
void unpack_q4_0(const unsigned char *p, float *out)
{
    float d = half_at(p);
    int j;
    for (j = 0; j < 16; j++) {
        out[j] = d * (float)((p[2 + j] & 15) - 8);
        out[j + 16] = d * (float)((p[2 + j] >> 4) - 8);
    }
}

/* f16 d, f16 m, 16 bytes q: d q + m */
void unpack_q4_1(const unsigned char *p, float *out)
{
    float d = half_at(p), m = half_at(p + 2);
    int j;
    for (j = 0; j < 16; j++) {
        out[j] = d * (float)(p[4 + j] & 15) + m;
        out[j + 16] = d * (float)(p[4 + j] >> 4) + m;
    }
}

/* Number j of 32: four low bits of q, the fifth is bit j of the 4 bytes h. */
static int five_bits(const unsigned char *q, const unsigned char *h, int j)
{
    int low = j < 16 ? q[j] & 15 : q[j - 16] >> 4;
    return low | (h[j / 8] >> j % 8 & 1) << 4;
}

/* f16 d, 4 bytes h, 16 bytes q: d (q - 16) */
void unpack_q5_0(const unsigned char *p, float *out)
{
    float d = half_at(p);
    int j;
    for (j = 0; j < 32; j++) out[j] = d * (float)(five_bits(p + 6, p + 2, j) - 16);
}

/* f16 d, f16 m, 4 bytes h, 16 bytes q: d q + m */
void unpack_q5_1(const unsigned char *p, float *out)
{
    float d = half_at(p), m = half_at(p + 2);
    int j;
    for (j = 0; j < 32; j++) out[j] = d * (float)five_bits(p + 8, p + 4, j) + m;
}

/* f16 d, 16 bytes q, each half an index into fixed values: d value */
void unpack_iq4_nl(const unsigned char *p, float *out)
{
    static const float values[16] = {       /* ggml-common.h, kvalues_iq4nl */
        -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };
    float d = half_at(p);
    int j;
    for (j = 0; j < 16; j++) {
        out[j] = d * values[p[2 + j] & 15];
        out[j + 16] = d * values[p[2 + j] >> 4];
    }
}

/* In the K types below, 64 bytes q hold pairs of bits: number i of 256 is at byte i/128*32 + i%32,
 * shifted by 2 (i/32 % 4). */
static int two_bits(const unsigned char *q, int i) { return q[i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3; }

/* 16 bytes s, 64 bytes q, f16 d, f16 m; groups of 16: (d low(s)) q - (m high(s)) */
void unpack_q2_k(const unsigned char *p, float *out)
{
    float d = half_at(p + 80), m = half_at(p + 82);
    int i;
    for (i = 0; i < 256; i++) {
        float scale = d * (float)(p[i / 16] & 15), low = m * (float)(p[i / 16] >> 4);
        out[i] = scale * (float)two_bits(p + 16, i) - low;
    }
}

/* 32 bytes h, 64 bytes q, 12 bytes s, f16 d; groups of 16: d (s - 32) (q - 4 where h has no bit). Scale g
 * has its four low bits in half g/8 of byte g%8, its two high bits in byte 8 + g%4, shifted by 2 (g/4). */
void unpack_q3_k(const unsigned char *p, float *out)
{
    const unsigned char *s = p + 96;
    float d = half_at(p + 108);
    int i;
    for (i = 0; i < 256; i++) {
        int g = i / 16, low = s[g % 8] >> 4 * (g / 8) & 15, high = s[8 + g % 4] >> 2 * (g / 4) & 3;
        float scale = d * (float)((low | high << 4) - 32);
        out[i] = scale * (float)(two_bits(p + 32, i) - (p[i % 32] >> i / 32 & 1 ? 0 : 4));
    }
}

/* What Q4_K and Q5_K share: groups of 32, (d scale) q - (m minimum); q has four bits in 128 bytes, group
 * g in half g%2 of bytes g/2*32 on, and in Q5_K a fifth, bit g of the 32 bytes h. */
static void unpack_k4(const unsigned char *p, const unsigned char *h, const unsigned char *q, float *out)
{
    float d = half_at(p), m = half_at(p + 2);
    int g, i;
    for (g = 0; g < 8; g++) {
        int scale, minimum;
        float a, b;
        scales_of_k4(p + 4, g, &scale, &minimum);
        a = d * (float)scale;
        b = m * (float)minimum;
        for (i = 0; i < 32; i++) {
            int v = (q[g / 2 * 32 + i] >> 4 * (g % 2) & 15) + (h ? (h[i] >> g & 1) << 4 : 0);
            out[g * 32 + i] = a * (float)v - b;
        }
    }
}

/* f16 d, f16 m, 12 bytes of scales, 128 bytes q */
void unpack_q4_k(const unsigned char *p, float *out) { unpack_k4(p, NULL, p + 16, out); }

/* f16 d, f16 m, 12 bytes of scales, 32 bytes h, 128 bytes q */
void unpack_q5_k(const unsigned char *p, float *out) { unpack_k4(p, p + 16, p + 48, out); }

/* 128 bytes q, 64 bytes h, int8 s[16], f16 d; groups of 16: (d s) (q - 32). Number i: four bits in half
 * i/64%2 of byte i/128*64 + i%64 of q, two in h as two_bits() finds them. */
void unpack_q6_k(const unsigned char *p, float *out)
{
    const signed char *s = (const signed char *)p + 192;
    float d = half_at(p + 208);
    int i;
    for (i = 0; i < 256; i++) {
        int low = p[i / 128 * 64 + i % 64] >> 4 * (i / 64 % 2) & 15;
        out[i] = d * (float)s[i / 16] * (float)((low | two_bits(p + 128, i) << 4) - 32);
    }
}
