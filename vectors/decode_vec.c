/* decode_vec.c - weights to numbers in vectors: the same bits as weight_decode().
 *
 * codes_x86.h gathers 32 numbers of GGUF's types as small integers, a byte each, and put16() makes floats
 * of them. The 4-bit types of bitsandbytes look their numbers up. */
#include "vectors.h"

#ifdef HAVE_AVX2
#include "codes_x86.h"
#include "../nf4.h"

/* ---- integers times a scale ---- */

/* out[16] = q * d + m, unfused as in blocks.h; m is left out where the type has none (-0 + 0 is not -0) */
ALWAYS_INLINE void put16(float *out, __m128i q, float d, const float *m)
{
    int i;
    for (i = 0; i < 16; i += LANES, q = _mm_srli_si128(q, 8)) {
        vec v = vec_mul(bytes_float(q), vec_all(d));
        vec_store(out + i, m ? vec_add(v, vec_all(*m)) : v);
    }
}

/* ---- GGUF's blocks ---- numbers 32 part .. 32 part + 31 of the block at p */

ALWAYS_INLINE void put_codes(float *out, struct codes c, int bias, int added)
{
    __m256i q = bias ? _mm256_sub_epi8(c.q, all(bias)) : c.q;
    put16(out, _mm256_castsi256_si128(q), c.d[0], added ? &c.m[0] : NULL);
    put16(out + 16, _mm256_extracti128_si256(q, 1), c.d[1], added ? &c.m[1] : NULL);
}

ALWAYS_INLINE void decode_q8_0(const unsigned char *p, int part, float *out)
{
    float d = half_at(p);
    (void)part;
    put16(out, _mm_loadu_si128((const __m128i *)(p + 2)), d, NULL);
    put16(out + 16, _mm_loadu_si128((const __m128i *)(p + 18)), d, NULL);
}

ALWAYS_INLINE void decode_q4_0(const unsigned char *p, int part, float *out) { put_codes(out, codes_q4_0(p, part), BIAS_Q4_0, 0); }
ALWAYS_INLINE void decode_q4_1(const unsigned char *p, int part, float *out) { put_codes(out, codes_q4_1(p, part), 0, 1); }
ALWAYS_INLINE void decode_q5_0(const unsigned char *p, int part, float *out) { put_codes(out, codes_q5_0(p, part), BIAS_Q5_0, 0); }
ALWAYS_INLINE void decode_q5_1(const unsigned char *p, int part, float *out) { put_codes(out, codes_q5_1(p, part), 0, 1); }
ALWAYS_INLINE void decode_iq4_nl(const unsigned char *p, int part, float *out) { put_codes(out, codes_iq4_nl(p, part), BIAS_IQ4_NL, 0); }
ALWAYS_INLINE void decode_q2_k(const unsigned char *p, int part, float *out) { put_codes(out, codes_q2_k(p, part), 0, 1); }
ALWAYS_INLINE void decode_q3_k(const unsigned char *p, int part, float *out) { put_codes(out, codes_q3_k(p, part), BIAS_Q3_K, 0); }
ALWAYS_INLINE void decode_q4_k(const unsigned char *p, int part, float *out) { put_codes(out, codes_q4_k(p, part), 0, 1); }
ALWAYS_INLINE void decode_q5_k(const unsigned char *p, int part, float *out) { put_codes(out, codes_q5_k(p, part), 0, 1); }
ALWAYS_INLINE void decode_q6_k(const unsigned char *p, int part, float *out) { put_codes(out, codes_q6_k(p, part), BIAS_Q6_K, 0); }

/* ---- plain types ---- 32 numbers from p on */

ALWAYS_INLINE void decode_f16(const unsigned char *p, int part, float *out)
{
    int i;
    (void)part;
    for (i = 0; i < 32; i += LANES) vec_store(out + i, some_f16(p + 2 * i));
}

ALWAYS_INLINE void decode_bf16(const unsigned char *p, int part, float *out)
{
    int i;
    (void)part;
    for (i = 0; i < 32; i += LANES) vec_store(out + i, some_bf16(p + 2 * i));
}

/* Of `rows` rows n numbers from column col on, in whole runs of 32: how many of each those are. Each type has a loop of its
 * own, the decoder in it, so that a compiler keeps the masks in registers; blocks of 1, 32 or 256 elements,
 * so that divisions are shifts. */
struct strips { const struct weight *w; int row, rows, col, n; float *out; size_t apart; };
typedef void decoder32(const unsigned char *p, int part, float *out);
ALWAYS_INLINE int runs(decoder32 *decoder, int block, int bytes, const struct strips *s)
{
    const unsigned char *p = s->w->data;
    int i = 0, r;
    for (r = 0; r < s->rows; r++) {
        size_t e = vec_element(s->w, s->row + r, s->col);
        float *out = s->out + (size_t)r * s->apart;
        if (block > 1 && e % 32) return 0;
        for (i = 0; i + 32 <= s->n; i += 32, e += 32)
            decoder(p + e / (size_t)block * (size_t)bytes, (int)(e / 32 % 8), out + i);
    }
    return i;
}

static int decode_runs(const struct strips *s)
{
    switch (s->w->type) {
    case TYPE_F16:    return runs(decode_f16, 1, 2, s);
    case TYPE_BF16:   return runs(decode_bf16, 1, 2, s);
    case TYPE_Q8_0:   return runs(decode_q8_0, 32, 34, s);
    case TYPE_Q4_0:   return runs(decode_q4_0, 32, 18, s);
    case TYPE_Q4_1:   return runs(decode_q4_1, 32, 20, s);
    case TYPE_Q5_0:   return runs(decode_q5_0, 32, 22, s);
    case TYPE_Q5_1:   return runs(decode_q5_1, 32, 24, s);
    case TYPE_IQ4_NL: return runs(decode_iq4_nl, 32, 18, s);
    case TYPE_Q2_K:   return runs(decode_q2_k, 256, 84, s);
    case TYPE_Q3_K:   return runs(decode_q3_k, 256, 110, s);
    case TYPE_Q4_K:   return runs(decode_q4_k, 256, 144, s);
    case TYPE_Q5_K:   return runs(decode_q5_k, 256, 176, s);
    case TYPE_Q6_K:   return runs(decode_q6_k, 256, 210, s);
    default:          return 0;
    }
}

/* ---- bitsandbytes' types (nf4.h has their layout) ---- */

/* n elements from e on, all of one block. The table is scaled instead of the numbers: the same products,
 * 16 of them in a block. */
static void decode_block4(const unsigned char *p, size_t e, int n, const float *code, float absmax, float *out)
{
    const struct table t = table_times(table_of(code), vec_all(absmax));
    int i = 0, odd = (int)(e % 2);
    p += e / 2;
    if (odd && n > 0) out[i++] = code[*p++ & 15] * absmax;
    for (; i + LANES <= n; i += LANES, p += LANES / 2) vec_store(out + i, look_up(&t, turns(p)));
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
    const unsigned char *p = (const unsigned char *)w->data + e;
    const vec scale = vec_all(w->q->absmax[e / (size_t)w->cols]), part = vec_all(1.0f / 127);
    int i;
    for (i = 0; i + LANES <= n; i += LANES) vec_store(out + i, vec_mul(vec_mul(some_bytes(p + i), scale), part));
    return i;
}

/* How many numbers of each row are decoded here; the others are weight.c's. */
static int decode_start(const struct strips *s)
{
    int done = 0, r;
    if (s->w->type != TYPE_NF4 && s->w->type != TYPE_FP4 && s->w->type != TYPE_INT8) return decode_runs(s);
    for (r = 0; r < s->rows; r++) {
        size_t e = vec_element(s->w, s->row + r, s->col);
        float *out = s->out + (size_t)r * s->apart;
        done = s->n;
        if (s->w->type == TYPE_INT8) done = decode_int8(s->w, e, s->n, out);
        else decode_4bit_blocks(s->w, e, s->n, out);
    }
    return done;
}

#endif

/* ---- weights ---- */

void NAMED(decode_rows)(const struct weight *w, int row, int rows, int col, int n, float *out, size_t apart)
{
    int done = 0, r;
    if (w->type == TYPE_REAL) {
        for (r = 0; r < rows; r++)
            memcpy(out + (size_t)r * apart, (const float *)w->data + vec_element(w, row + r, col), sizeof(float) * (size_t)n);
        return;
    }
#ifdef HAVE_AVX2
    {
        const struct strips s = { w, row, rows, col, n, out, apart };
        done = decode_start(&s);
    }
#endif
    for (r = 0; done < n && r < rows; r++) weight_decode(w, row + r, col + done, n - done, out + (size_t)r * apart + done);
}
