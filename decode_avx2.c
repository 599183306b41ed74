/* decode_avx2.c - weights to numbers in vectors: the same bits as weight_decode().
 *
 * GGUF's types (blocks.c has their layout) differ in where the bits of a number lie and agree in what is
 * made of them. So each decoder here gathers 32 numbers as one vector of small integers, a byte each, and
 * put16() makes floats of them. The 4-bit types of bitsandbytes look their numbers up. */
#include "avx2.h"

#ifdef HAVE_AVX2
#include "blocks.h"
#include "nf4.h"

static float half_at(const unsigned char *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}

/* ---- integers times a scale ---- */

/* out[8] = q * d + m, unfused as in blocks.c; m is left out where the type has none (-0 + 0 is not -0) */
ALWAYS_INLINE void put8(float *out, __m128i q, __m256 d, const float *m)
{
    __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), d);
    _mm256_storeu_ps(out, m ? _mm256_add_ps(v, _mm256_set1_ps(*m)) : v);
}

ALWAYS_INLINE void put16(float *out, __m128i q, float d, const float *m)
{
    put8(out, q, _mm256_set1_ps(d), m);
    put8(out + 8, _mm_srli_si128(q, 8), _mm256_set1_ps(d), m);
}

ALWAYS_INLINE void put32(float *out, __m256i q, float d, const float *m)
{
    put16(out, _mm256_castsi256_si128(q), d, m);
    put16(out + 16, _mm256_extracti128_si256(q, 1), d, m);
}

/* ---- 32 integers, a byte each ---- */

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
    __m128i x = _mm_loadu_si128((const __m128i *)p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(x, 4), x), all(15));
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

/* ---- GGUF's blocks ---- numbers 32 part .. 32 part + 31 of the block at p */

ALWAYS_INLINE void decode_q8_0(const unsigned char *p, int part, float *out)
{
    (void)part;
    put32(out, bytes(p + 2), half_at(p), NULL);
}

ALWAYS_INLINE void decode_q4_0(const unsigned char *p, int part, float *out)
{
    (void)part;
    put32(out, _mm256_sub_epi8(nibbles(p + 2), all(8)), half_at(p), NULL);
}

ALWAYS_INLINE void decode_q4_1(const unsigned char *p, int part, float *out)
{
    float m = half_at(p + 2);
    (void)part;
    put32(out, nibbles(p + 4), half_at(p), &m);
}

ALWAYS_INLINE void decode_q5_0(const unsigned char *p, int part, float *out)
{
    __m256i q = _mm256_or_si256(nibbles(p + 6), where_bit_j(p + 2, 16));
    (void)part;
    put32(out, _mm256_sub_epi8(q, all(16)), half_at(p), NULL);
}

ALWAYS_INLINE void decode_q5_1(const unsigned char *p, int part, float *out)
{
    float m = half_at(p + 2);
    (void)part;
    put32(out, _mm256_or_si256(nibbles(p + 8), where_bit_j(p + 4, 16)), half_at(p), &m);
}

ALWAYS_INLINE void decode_iq4_nl(const unsigned char *p, int part, float *out)
{
    const __m256i values = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113));
    (void)part;
    put32(out, _mm256_shuffle_epi8(values, nibbles(p + 2)), half_at(p), NULL);
}

/* Of the K types' pairs of bits, 32 of a part lie side by side. */
ALWAYS_INLINE __m256i two_bits(const unsigned char *q, int part) { return field(q + part / 4 * 32, 2 * (part % 4), 3); }

ALWAYS_INLINE void decode_q2_k(const unsigned char *p, int part, float *out)
{
    const unsigned char *s = p + 2 * part;
    float d = half_at(p + 80), m = half_at(p + 82), low = -(m * (float)(s[0] >> 4)), high = -(m * (float)(s[1] >> 4));
    __m256i q = two_bits(p + 16, part);
    put16(out, _mm256_castsi256_si128(q), d * (float)(s[0] & 15), &low);
    put16(out + 16, _mm256_extracti128_si256(q, 1), d * (float)(s[1] & 15), &high);
}

ALWAYS_INLINE void decode_q3_k(const unsigned char *p, int part, float *out)
{
    const unsigned char *s = p + 96 + 2 * part % 8, *t = p + 104 + 2 * part % 4;
    int low = 4 * (part / 4), high = 2 * (part / 2);
    float d = half_at(p + 108);
    __m256i q = _mm256_sub_epi8(_mm256_or_si256(two_bits(p + 32, part), where_bit(p, part, 4)), all(4));
    put16(out, _mm256_castsi256_si128(q), d * (float)(((s[0] >> low & 15) | (t[0] >> high & 3) << 4) - 32), NULL);
    put16(out + 16, _mm256_extracti128_si256(q, 1), d * (float)(((s[1] >> low & 15) | (t[1] >> high & 3) << 4) - 32), NULL);
}

/* What Q4_K and Q5_K share. */
ALWAYS_INLINE void put_k4(float *out, const unsigned char *p, int part, __m256i q)
{
    int scale, minimum;
    float m;
    scales_of_k4(p + 4, part, &scale, &minimum);
    m = -(half_at(p + 2) * (float)minimum);
    put32(out, q, half_at(p) * (float)scale, &m);
}

ALWAYS_INLINE void decode_q4_k(const unsigned char *p, int part, float *out)
{
    put_k4(out, p, part, field(p + 16 + part / 2 * 32, 4 * (part % 2), 15));
}

ALWAYS_INLINE void decode_q5_k(const unsigned char *p, int part, float *out)
{
    __m256i q = field(p + 48 + part / 2 * 32, 4 * (part % 2), 15);
    put_k4(out, p, part, _mm256_or_si256(q, where_bit(p + 16, part, 16)));
}

ALWAYS_INLINE void decode_q6_k(const unsigned char *p, int part, float *out)
{
    const signed char *s = (const signed char *)p + 192 + 2 * part;
    float d = half_at(p + 208);
    __m256i q = _mm256_or_si256(field(p + part / 4 * 64 + part % 2 * 32, 4 * (part / 2 % 2), 15),
                                _mm256_slli_epi16(two_bits(p + 128, part), 4));
    q = _mm256_sub_epi8(q, all(32));
    put16(out, _mm256_castsi256_si128(q), d * (float)s[0], NULL);
    put16(out + 16, _mm256_extracti128_si256(q, 1), d * (float)s[1], NULL);
}

/* ---- plain types ---- 32 numbers from p on */

ALWAYS_INLINE void decode_f16(const unsigned char *p, int part, float *out)
{
    int i;
    (void)part;
    for (i = 0; i < 32; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 2 * i))));
}

ALWAYS_INLINE void decode_bf16(const unsigned char *p, int part, float *out)
{
    int i;
    (void)part;
    for (i = 0; i < 32; i += 8) {
        __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 2 * i)));
        _mm256_storeu_ps(out + i, _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)));
    }
}

/* Whole runs of 32 of n numbers from element e on: how many numbers those are. Each type has a loop of its
 * own, the decoder in it, so that a compiler keeps the masks in registers; blocks of 1, 32 or 256 elements,
 * so that divisions are shifts. */
typedef void decoder32(const unsigned char *p, int part, float *out);
ALWAYS_INLINE int runs(decoder32 *decoder, int block, int bytes, const struct weight *w, size_t e, int n, float *out)
{
    const unsigned char *p = w->data;
    int i;
    if (block > 1 && e % 32) return 0;
    for (i = 0; i + 32 <= n; i += 32, e += 32)
        decoder(p + e / (size_t)block * (size_t)bytes, (int)(e / 32 % 8), out + i);
    return i;
}

static int decode_runs(const struct weight *w, size_t e, int n, float *out)
{
    switch (w->type) {
    case TYPE_F16:    return runs(decode_f16, 1, 2, w, e, n, out);
    case TYPE_BF16:   return runs(decode_bf16, 1, 2, w, e, n, out);
    case TYPE_Q8_0:   return runs(decode_q8_0, 32, 34, w, e, n, out);
    case TYPE_Q4_0:   return runs(decode_q4_0, 32, 18, w, e, n, out);
    case TYPE_Q4_1:   return runs(decode_q4_1, 32, 20, w, e, n, out);
    case TYPE_Q5_0:   return runs(decode_q5_0, 32, 22, w, e, n, out);
    case TYPE_Q5_1:   return runs(decode_q5_1, 32, 24, w, e, n, out);
    case TYPE_IQ4_NL: return runs(decode_iq4_nl, 32, 18, w, e, n, out);
    case TYPE_Q2_K:   return runs(decode_q2_k, 256, 84, w, e, n, out);
    case TYPE_Q3_K:   return runs(decode_q3_k, 256, 110, w, e, n, out);
    case TYPE_Q4_K:   return runs(decode_q4_k, 256, 144, w, e, n, out);
    case TYPE_Q5_K:   return runs(decode_q5_k, 256, 176, w, e, n, out);
    case TYPE_Q6_K:   return runs(decode_q6_k, 256, 210, w, e, n, out);
    default:          return 0;
    }
}

/* ---- bitsandbytes' types (nf4.h has their layout) ---- */

/* Eight numbers of a table of 16, from 4 bytes of codes. Each lane gets all 32 bits and shifts its own
 * code down: the first of a byte is the high half. vpermps looks at three bits of it; the fourth, moved
 * to the sign, chooses between the halves of the table. */
ALWAYS_INLINE __m256 look_up8(const unsigned char *p, __m256 low, __m256 high)
{
    const __m256i place = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    int32_t codes;
    __m256i k;
    memcpy(&codes, p, 4);
    k = _mm256_srlv_epi32(_mm256_set1_epi32(codes), place);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, k), _mm256_permutevar8x32_ps(high, k),
                            _mm256_castsi256_ps(_mm256_slli_epi32(k, 28)));
}

/* n elements from e on, all of one block. The table is scaled instead of the numbers: the same products,
 * 16 of them in a block. */
static void decode_block4(const unsigned char *p, size_t e, int n, const float *code, float absmax, float *out)
{
    __m256 scale = _mm256_set1_ps(absmax);
    __m256 low = _mm256_mul_ps(_mm256_loadu_ps(code), scale), high = _mm256_mul_ps(_mm256_loadu_ps(code + 8), scale);
    int i = 0, odd = (int)(e % 2);
    p += e / 2;
    if (odd && n > 0) out[i++] = code[*p++ & 15] * absmax;
    for (; i + 8 <= n; i += 8, p += 4) _mm256_storeu_ps(out + i, look_up8(p, low, high));
    for (; i < n; i++) {
        int second = (i + odd) % 2;
        out[i] = code[second ? *p & 15 : *p >> 4] * absmax;
        p += second;
    }
}

static void decode_4bit_blocks(const struct weight *w, size_t e, int n, float *out)
{
    const struct quantised *q = w->q;
    size_t block = (size_t)q->block, i = e / block, left = block - e % block;
    for (; n > 0; i++, left = block) {
        int m = left < (size_t)n ? (int)left : n;
        decode_block4(w->data, e, m, q->code, quantised_scale(q, i), out);
        e += (size_t)m;
        out += m;
        n -= m;
    }
}

/* out = code * scale * (1/127), one product after the other */
static int decode_int8(const struct weight *w, size_t e, int n, float *out)
{
    const signed char *p = (const signed char *)w->data + e;
    __m256 scale = _mm256_set1_ps(w->q->absmax[e / (size_t)w->cols]), part = _mm256_set1_ps(1.0f / 127);
    int i;
    for (i = 0; i + 8 <= n; i += 8) {
        __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + i))));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(v, scale), part));
    }
    return i;
}

/* ---- weights ---- */

size_t avx2_element(const struct weight *w, int row, int col)
{
    int r = w->type == TYPE_REAL ? row : weight_file_row(w, row);
    return w->offset + (size_t)r * (size_t)w->cols + (size_t)col;
}

void avx2_decode(const struct weight *w, int row, int col, int n, float *out)
{
    size_t e = avx2_element(w, row, col);
    int done;
    switch (w->type) {
    case TYPE_REAL: memcpy(out, (const float *)w->data + e, sizeof(float) * (size_t)n); return;
    case TYPE_NF4: case TYPE_FP4: decode_4bit_blocks(w, e, n, out); return;
    case TYPE_INT8: done = decode_int8(w, e, n, out); break;
    default: done = decode_runs(w, e, n, out);
    }
    if (done < n) weight_decode(w, row, col + done, n - done, out + done);
}

int avx2_lies_as_floats(const struct weight *w)
{
    return w->type == TYPE_REAL || (w->type == TYPE_F32 && !w->head_rows && (uintptr_t)w->data % sizeof(float) == 0);
}

const float *avx2_strip(const struct weight *w, int row, int col, int n, float *space)
{
    if (avx2_lies_as_floats(w)) return (const float *)w->data + avx2_element(w, row, col);
    avx2_decode(w, row, col, n, space);
    return space;
}

int avx2_can_read(const struct weight *w)
{
    return w->type == TYPE_REAL || (w->type >= 0 && w->type < TYPE_COUNT && weight_types[w->type].decode);
}

#endif
