/* codes_x86.h - the small integers of GGUF's blocks in vectors, and the numbers of 4-bit codes: what
 * decoding (decode_vec.c) and products of few rows (few_vec.c) share. blocks.h has the layouts.
 *
 * The types differ in where the bits of a number lie and agree in what is made of them. So each function
 * codes_TYPE() gathers 32 numbers, part `part` of the block at p, as one vector of bytes without sign, and
 * a number is (q - bias) d, or q d + m; the bias is the type's. */
#ifndef CODES_X86_H
#define CODES_X86_H

#include "vectors.h"
#include "../blocks.h"

/* d and m of the first 16 numbers and of the others; m only where the type adds one. */
struct codes { __m256i q; float d[2], m[2]; };
typedef struct codes codes_function(const unsigned char *p, int part);

ALWAYS_INLINE float half_at(const unsigned char *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}

ALWAYS_INLINE __m256i bytes(const unsigned char *p) { return _mm256_loadu_si256((const __m256i *)p); }
ALWAYS_INLINE __m256i all(int value) { return _mm256_set1_epi8((char)value); }

/* `mask` of each of 32 bytes, shifted. What a shift brings from the byte above, the mask takes away. */
ALWAYS_INLINE __m256i field(const unsigned char *p, int shift, int mask)
{
    return _mm256_and_si256(_mm256_srl_epi16(bytes(p), _mm_cvtsi32_si128(shift)), all(mask));
}

/* The low halves of 16 bytes, then the high ones. */
ALWAYS_INLINE __m256i nibbles(const unsigned char *p)
{
    const __m256i shift = _mm256_setr_epi64x(0, 0, 4, 4);
    __m256i x = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
    return _mm256_and_si256(_mm256_srlv_epi64(x, shift), all(15));
}

/* `value` in byte j where a bit is set, else 0: bit j of 4 bytes ... */
ALWAYS_INLINE __m256i where_bit_j(const unsigned char *p, int value)
{
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                            2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    int32_t h;
    memcpy(&h, p, 4);
    return _mm256_and_si256(all(value), _mm256_cmpeq_epi8(
        _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(h), spread), bit), bit));
}

/* ... and bit n of 32 bytes. */
ALWAYS_INLINE __m256i where_bit(const unsigned char *p, int n, int value)
{
    __m256i bit = all(1 << n);
    return _mm256_and_si256(all(value), _mm256_cmpeq_epi8(_mm256_and_si256(bytes(p), bit), bit));
}

ALWAYS_INLINE struct codes scaled(__m256i q, float d, float m)
{
    struct codes c = { q, { d, d }, { m, m } };
    return c;
}

ALWAYS_INLINE struct codes scaled_twice(__m256i q, float low, float high)
{
    struct codes c = { q, { low, high }, { 0, 0 } };
    return c;
}

enum { BIAS_Q4_0 = 8, BIAS_Q5_0 = 16, BIAS_IQ4_NL = 127, BIAS_Q3_K = 4, BIAS_Q6_K = 32 };

ALWAYS_INLINE struct codes codes_q4_0(const unsigned char *p, int part)
{
    (void)part;
    return scaled(nibbles(p + 2), half_at(p), 0);
}

ALWAYS_INLINE struct codes codes_q4_1(const unsigned char *p, int part)
{
    (void)part;
    return scaled(nibbles(p + 4), half_at(p), half_at(p + 2));
}

ALWAYS_INLINE struct codes codes_q5_0(const unsigned char *p, int part)
{
    (void)part;
    return scaled(_mm256_or_si256(nibbles(p + 6), where_bit_j(p + 2, 16)), half_at(p), 0);
}

ALWAYS_INLINE struct codes codes_q5_1(const unsigned char *p, int part)
{
    (void)part;
    return scaled(_mm256_or_si256(nibbles(p + 8), where_bit_j(p + 4, 16)), half_at(p), half_at(p + 2));
}

ALWAYS_INLINE struct codes codes_iq4_nl(const unsigned char *p, int part)
{
    /* -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113, and 127 */
    const __m256i values = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 23, 44, 62, 78, 92, 105, 117, -128, -116, -104, -91, -76, -60, -40, -16));
    (void)part;
    return scaled(_mm256_shuffle_epi8(values, nibbles(p + 2)), half_at(p), 0);
}

/* Of the K types' pairs of bits, 32 of a part lie side by side. */
ALWAYS_INLINE __m256i two_bits(const unsigned char *q, int part) { return field(q + part / 4 * 32, 2 * (part % 4), 3); }

ALWAYS_INLINE struct codes codes_q2_k(const unsigned char *p, int part)
{
    const unsigned char *s = p + 2 * part;
    float d = half_at(p + 80), m = half_at(p + 82);
    struct codes c = scaled_twice(two_bits(p + 16, part), d * (float)(s[0] & 15), d * (float)(s[1] & 15));
    c.m[0] = -(m * (float)(s[0] >> 4));
    c.m[1] = -(m * (float)(s[1] >> 4));
    return c;
}

ALWAYS_INLINE struct codes codes_q3_k(const unsigned char *p, int part)
{
    const unsigned char *s = p + 96 + 2 * part % 8, *t = p + 104 + 2 * part % 4;
    int low = 4 * (part / 4), high = 2 * (part / 2);
    float d = half_at(p + 108);
    return scaled_twice(_mm256_or_si256(two_bits(p + 32, part), where_bit(p, part, 4)),
                        d * (float)(((s[0] >> low & 15) | (t[0] >> high & 3) << 4) - 32),
                        d * (float)(((s[1] >> low & 15) | (t[1] >> high & 3) << 4) - 32));
}

/* What Q4_K and Q5_K share. */
ALWAYS_INLINE struct codes codes_k4(const unsigned char *p, int part, __m256i q)
{
    int scale, minimum;
    scales_of_k4(p + 4, part, &scale, &minimum);
    return scaled(q, half_at(p) * (float)scale, -(half_at(p + 2) * (float)minimum));
}

ALWAYS_INLINE struct codes codes_q4_k(const unsigned char *p, int part)
{
    return codes_k4(p, part, field(p + 16 + part / 2 * 32, 4 * (part % 2), 15));
}

ALWAYS_INLINE struct codes codes_q5_k(const unsigned char *p, int part)
{
    __m256i q = field(p + 48 + part / 2 * 32, 4 * (part % 2), 15);
    return codes_k4(p, part, _mm256_or_si256(q, where_bit(p + 16, part, 16)));
}

ALWAYS_INLINE struct codes codes_q6_k(const unsigned char *p, int part)
{
    const signed char *s = (const signed char *)p + 192 + 2 * part;
    float d = half_at(p + 208);
    __m256i q = _mm256_or_si256(field(p + part / 4 * 64 + part % 2 * 32, 4 * (part / 2 % 2), 15),
                                _mm256_slli_epi16(two_bits(p + 128, part), 4));
    return scaled_twice(q, d * (float)s[0], d * (float)s[1]);
}

/* ---- vectors of numbers ---- */

#ifdef WIDE

typedef __m512i words;

ALWAYS_INLINE vec bytes_float(__m128i a) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(a)); }
ALWAYS_INLINE vec some_bytes(const unsigned char *p) { return bytes_float(_mm_loadu_si128((const __m128i *)p)); }
ALWAYS_INLINE vec some_f16(const unsigned char *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
ALWAYS_INLINE vec some_bf16(const unsigned char *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

/* The numbers that the low four bits of lanes stand for. */
struct table { __m512 all; };
ALWAYS_INLINE struct table table_of(const float *code) { return (struct table){ _mm512_loadu_ps(code) }; }
ALWAYS_INLINE struct table table_times(struct table t, vec scale) { return (struct table){ vec_mul(t.all, scale) }; }
ALWAYS_INLINE vec look_up(const struct table *t, words k) { return _mm512_permutexvar_ps(k, t->all); }

#else

typedef __m256i words;

/* The first eight. */
ALWAYS_INLINE vec bytes_float(__m128i a) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(a)); }
ALWAYS_INLINE vec some_bytes(const unsigned char *p) { return bytes_float(_mm_loadl_epi64((const __m128i *)p)); }
ALWAYS_INLINE vec some_f16(const unsigned char *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
ALWAYS_INLINE vec some_bf16(const unsigned char *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

/* vpermps looks at three bits of a lane; the fourth, moved to the sign, chooses between the halves of the table. */
struct table { __m256 low, high; };
ALWAYS_INLINE struct table table_of(const float *code)
{
    return (struct table){ _mm256_loadu_ps(code), _mm256_loadu_ps(code + 8) };
}
ALWAYS_INLINE struct table table_times(struct table t, vec scale)
{
    return (struct table){ vec_mul(t.low, scale), vec_mul(t.high, scale) };
}
ALWAYS_INLINE vec look_up(const struct table *t, words k)
{
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t->low, k), _mm256_permutevar8x32_ps(t->high, k),
                            _mm256_castsi256_ps(_mm256_slli_epi32(k, 28)));
}

#endif

/* bitsandbytes' codes in lanes, to be looked up: each gets 4 bytes and shifts its own code down, the first of a byte from
 * the high half. */
ALWAYS_INLINE words turns(const unsigned char *p)
{
    const __m256i place = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    int32_t codes[LANES / 8];
    memcpy(codes, p, sizeof codes);
#ifdef WIDE
    return _mm512_srlv_epi32(_mm512_inserti64x4(_mm512_set1_epi32(codes[0]), _mm256_set1_epi32(codes[1]), 1),
                             _mm512_broadcast_i64x4(place));
#else
    return _mm256_srlv_epi32(_mm256_set1_epi32(codes[0]), place);
#endif
}

#endif
