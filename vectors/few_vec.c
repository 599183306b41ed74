/* few_vec.c - products of few rows, as in generation: each weight is read once, from memory, and no panel pays. In 256
 * bits and in 512.
 *
 * What is multiplied are the codes as they lie in a block, and what a block's numbers share is applied to
 * sums of products. With w = q d + m (m = -bias d where codes have a bias),
 *     sum of w x = d * sum of q x + m * sum of x
 * So these sums differ from those of decoded numbers, and have a bound of their own: over K numbers, (K / 32 + 24) 2^-24 times
 * the sum of (|q d| + |m|) |x|. test_few.c says why, and holds them to it.
 *
 * A lane of 4 bytes has 8 codes of 4 bits, or 4 of bytes. To take one out of each lane a mask is enough, if what it meets is
 * x over the power of 2 that its place stands for: both factors are exact (x above 2^-98), so that their product is the
 * code's with x. Codes that stand for the numbers of a table are looked up. So x is laid out once, for all rows of the
 * weight, in the order in which codes come out of lanes. */
#include "codes_x86.h"
#include "../nf4.h"

enum {
    STRIP = 2048,       /* elements decoded at a time where nothing better is known */
    PARTS = 128,        /* runs of 32 whose scales are made at a time */
    AHEAD = 4096,       /* bytes that memory is asked for before: over the ends of pages, where the processor's own asking ends */
    STEP = 4 * LANES,   /* numbers at a time where they lie in their order */
    SIDE = LANES / 4    /* rows of the weight whose codes of 4 bits lie side by side in a vector */
};

/* Floats for a row of x laid out: its numbers in their new order, and the sums of each 16 or 32. */
static size_t spread_floats(int I) { return (size_t)I + (size_t)round_up(I / 16, 8); }

#ifndef WIDE
size_t avx2_few_bytes(const struct kernel_sizes *s)
{
    return sizeof(float) * FEW_ROWS * spread_floats(round_up(larger(s->width, 1), 32));
}
#endif

/* The row of the model that is row `row` of the file: weight_file_row() the other way. */
static int model_row(const struct weight *w, int row)
{
    int d = w->type == TYPE_REAL ? 0 : w->head_rows, r;
    if (!d) return row;
    r = row % d;
    return row - r + r % 2 * (d / 2) + r / 2;
}

struct few {
    const struct weight *w;
    const float *x;             /* [N,I] */
    const float *spread;        /* [N, spread_floats(I)], or NULL */
    int I;
};

/* ---- sums ---- */

/* Those of up to four rows. Written out, as gcc 12 keeps an array of them in memory. */
struct sums { vec r0, r1, r2, r3; };

ALWAYS_INLINE struct sums no_sums(void)
{
    const vec zero = vec_all(0);
    struct sums s = { zero, zero, zero, zero };
    return s;
}

/* sum += v * x of each row, a vector */
ALWAYS_INLINE void add_products(struct sums *s, int rows, vec v, const float *x, size_t row)
{
    s->r0 = vec_fmadd(v, vec_load(x), s->r0);
    if (rows > 1) s->r1 = vec_fmadd(v, vec_load(x + row), s->r1);
    if (rows > 2) s->r2 = vec_fmadd(v, vec_load(x + 2 * row), s->r2);
    if (rows > 3) s->r3 = vec_fmadd(v, vec_load(x + 3 * row), s->r3);
}

/* sum += part * d of each row */
ALWAYS_INLINE void add_scaled(struct sums *s, const struct sums *part, int rows, vec d)
{
    s->r0 = vec_fmadd(part->r0, d, s->r0);
    if (rows > 1) s->r1 = vec_fmadd(part->r1, d, s->r1);
    if (rows > 2) s->r2 = vec_fmadd(part->r2, d, s->r2);
    if (rows > 3) s->r3 = vec_fmadd(part->r3, d, s->r3);
}

ALWAYS_INLINE void put_sums(float *sum, int rows, const struct sums *s)
{
    sum[0] = vec_sum(s->r0);
    if (rows > 1) sum[1] = vec_sum(s->r1);
    if (rows > 2) sum[2] = vec_sum(s->r2);
    if (rows > 3) sum[3] = vec_sum(s->r3);
}

ALWAYS_INLINE void ask_ahead(const unsigned char *p, int bytes)
{
    int i;
    for (i = 0; i < bytes; i += 64) _mm_prefetch((const char *)p + AHEAD + i, _MM_HINT_T0);
}

/* ---- codes of 4 bits ---- */

/* In which order codes lie in 16 bytes: the low halves first, then the high ones, as GGUF has them; high and low in
 * turn, numbers of a table of 16, as bitsandbytes. */
enum order { HALVES, TURNS };

#ifdef WIDE

ALWAYS_INLINE words words_masked(words a, int mask) { return _mm512_and_si512(a, _mm512_set1_epi32(mask)); }
ALWAYS_INLINE words words_down(words a, int n) { return _mm512_srli_epi32(a, n); }
ALWAYS_INLINE vec words_float(words a) { return _mm512_cvtepi32_ps(a); }

/* Four floats in each quarter; floats i of the quarters of v in theirs. */
ALWAYS_INLINE vec four_each(const float *p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
ALWAYS_INLINE vec one_each(vec v, int i)
{
    switch (i) {
    case 0: return _mm512_permute_ps(v, 0x00);
    case 1: return _mm512_permute_ps(v, 0x55);
    case 2: return _mm512_permute_ps(v, 0xaa);
    default: return _mm512_permute_ps(v, 0xff);
    }
}

/* 16 bytes of each of the rows, a quarter for each. */
ALWAYS_INLINE words sixteen_each(const unsigned char *const *p, size_t at)
{
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(p[0] + at)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p[1] + at)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p[2] + at)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p[3] + at)), 3);
}

ALWAYS_INLINE vec floats_each(float (*p)[PARTS], int at)
{
    return _mm512_castsi512_ps(_mm512_inserti32x4(_mm512_inserti32x4(_mm512_inserti32x4(
        _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(p[0] + at))), _mm_loadu_si128((const __m128i *)(p[1] + at)), 1),
        _mm_loadu_si128((const __m128i *)(p[2] + at)), 2), _mm_loadu_si128((const __m128i *)(p[3] + at)), 3));
}

/* d and m of n blocks of each row, at most four: those of the row's quarter. They lie in 64 bytes. */
ALWAYS_INLINE void heads_d(const unsigned char *const *p, size_t at, int size, int n, vec *d)
{
    const __m512i four = _mm512_set1_epi64(0x0003000200010000), place = _mm512_mullo_epi16(four, _mm512_set1_epi16((short)(size / 2)));
    const __mmask32 read = n < 4 ? (1u << ((n - 1) * size / 2 + 1)) - 1 : ~0u;
    __m512i h = _mm512_setzero_si512();
    int r;
    for (r = 0; r < 4; r++)
        h = _mm512_mask_permutexvar_epi16(h, 15u << 4 * r, place, _mm512_maskz_loadu_epi16(read, p[r] + at));
    *d = _mm512_cvtph_ps(_mm512_castsi512_si256(h));
}

ALWAYS_INLINE void heads_dm(const unsigned char *const *p, size_t at, int size, int n, vec *d, vec *m)
{
    const __m512i four = _mm512_set4_epi32(3, 2, 1, 0), place = _mm512_mullo_epi32(four, _mm512_set1_epi32(size / 4));
    const __mmask16 read = (__mmask16)(n < 4 ? (1 << ((n - 1) * size / 4 + 1)) - 1 : 0xffff);
    __m512i h = _mm512_setzero_si512();
    int r;
    for (r = 0; r < 4; r++)
        h = _mm512_mask_permutexvar_epi32(h, (__mmask16)(15 << 4 * r), place, _mm512_maskz_loadu_epi32(read, p[r] + at));
    *d = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(h));
    *m = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(h, 16)));
}

#else

ALWAYS_INLINE words words_masked(words a, int mask) { return _mm256_and_si256(a, _mm256_set1_epi32(mask)); }
ALWAYS_INLINE words words_down(words a, int n) { return _mm256_srli_epi32(a, n); }
ALWAYS_INLINE vec words_float(words a) { return _mm256_cvtepi32_ps(a); }

ALWAYS_INLINE vec four_each(const float *p) { return _mm256_broadcast_ps((const __m128 *)p); }
ALWAYS_INLINE vec one_each(vec v, int i)
{
    switch (i) {
    case 0: return _mm256_permute_ps(v, 0x00);
    case 1: return _mm256_permute_ps(v, 0x55);
    case 2: return _mm256_permute_ps(v, 0xaa);
    default: return _mm256_permute_ps(v, 0xff);
    }
}

ALWAYS_INLINE words sixteen_each(const unsigned char *const *p, size_t at)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(p[0] + at))),
                                   _mm_loadu_si128((const __m128i *)(p[1] + at)), 1);
}

ALWAYS_INLINE vec floats_each(float (*p)[PARTS], int at) { return _mm256_set_m128(_mm_loadu_ps(p[1] + at), _mm_loadu_ps(p[0] + at)); }

ALWAYS_INLINE void heads_d(const unsigned char *const *p, size_t at, int size, int n, vec *d)
{
    uint16_t h[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
    int i;
    for (i = 0; i < n; i++) {
        memcpy(h + i, p[0] + at + i * size, 2);
        memcpy(h + 4 + i, p[1] + at + i * size, 2);
    }
    *d = _mm256_cvtph_ps(_mm_setr_epi16((short)h[0], (short)h[1], (short)h[2], (short)h[3],
                                        (short)h[4], (short)h[5], (short)h[6], (short)h[7]));
}

ALWAYS_INLINE void heads_dm(const unsigned char *const *p, size_t at, int size, int n, vec *d, vec *m)
{
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    int32_t h[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
    __m128i a, b;
    int i;
    for (i = 0; i < n; i++) {
        memcpy(h + i, p[0] + at + i * size, 4);
        memcpy(h + 4 + i, p[1] + at + i * size, 4);
    }
    a = _mm_shuffle_epi8(_mm_setr_epi32(h[0], h[1], h[2], h[3]), order);
    b = _mm_shuffle_epi8(_mm_setr_epi32(h[4], h[5], h[6], h[7]), order);
    *d = _mm256_cvtph_ps(_mm_unpacklo_epi64(a, b));
    *m = _mm256_cvtph_ps(_mm_unpackhi_epi64(a, b));
}

#endif

/* Four rows of four numbers, `row` apart, turned: column c times scale[c] to out[(c ^ swap) * step ..]. */
ALWAYS_INLINE void turn4(float *out, size_t step, size_t swap, const float *x, size_t row, const float *scale)
{
    __m128 a = _mm_loadu_ps(x), b = _mm_loadu_ps(x + row), c = _mm_loadu_ps(x + 2 * row), d = _mm_loadu_ps(x + 3 * row);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out + swap * step, _mm_mul_ps(a, _mm_set1_ps(scale[0])));
    _mm_storeu_ps(out + (1 ^ swap) * step, _mm_mul_ps(b, _mm_set1_ps(scale[1])));
    _mm_storeu_ps(out + (2 ^ swap) * step, _mm_mul_ps(c, _mm_set1_ps(scale[2])));
    _mm_storeu_ps(out + (3 ^ swap) * step, _mm_mul_ps(d, _mm_set1_ps(scale[3])));
}

/* What code k, from the low bits up, of each of four lanes meets, at out[4 k + lane]; the sum of all.
 * HALVES: x[4 lane + k / 2 + 16 (k % 2)] 2^-4k, and 2^0 for the last, which is shifted down; TURNS: x[8 lane + (k ^ 1)]. */
ALWAYS_INLINE float spread_nibbles(enum order order, float *out, const float *x)
{
    static const float even[] = { 1, 0x1p-8f, 0x1p-16f, 0x1p-24f }, odd[] = { 0x1p-4f, 0x1p-12f, 0x1p-20f, 1 }, one[] = { 1, 1, 1, 1 };
    if (order == HALVES) {
        turn4(out, 8, 0, x, 4, even);
        turn4(out + 4, 8, 0, x + 16, 4, odd);
    } else {
        turn4(out, 4, 1, x, 8, one);
        turn4(out + 16, 4, 1, x + 4, 8, one);
    }
    return sum8(_mm256_add_ps(_mm256_add_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)),
                              _mm256_add_ps(_mm256_loadu_ps(x + 16), _mm256_loadu_ps(x + 24))));
}

/* sum += v * x of each row, the same four numbers of x in each quarter */
ALWAYS_INLINE void add_fours(struct sums *s, int rows, vec v, const float *x, size_t row)
{
    s->r0 = vec_fmadd(v, four_each(x), s->r0);
    if (rows > 1) s->r1 = vec_fmadd(v, four_each(x + row), s->r1);
    if (rows > 2) s->r2 = vec_fmadd(v, four_each(x + 2 * row), s->r2);
    if (rows > 3) s->r3 = vec_fmadd(v, four_each(x + 3 * row), s->r3);
}

/* Code k of each lane as a number, times 2^4k where only a mask took it out. */
ALWAYS_INLINE vec number(enum order order, words q, const struct table *t, int k)
{
    if (order == TURNS) return look_up(t, k ? words_down(q, 4 * k) : q);
    return words_float(k == 7 ? words_down(q, 28) : words_masked(q, 15 << 4 * k));
}

/* 32 codes of each row of the weight times 32 numbers of each row of x */
ALWAYS_INLINE struct sums run_sums(enum order order, words q, const struct table *t, int rows, const float *x, size_t row)
{
    struct sums p = no_sums();
    add_fours(&p, rows, number(order, q, t, 0), x, row);
    add_fours(&p, rows, number(order, q, t, 1), x + 4, row);
    add_fours(&p, rows, number(order, q, t, 2), x + 8, row);
    add_fours(&p, rows, number(order, q, t, 3), x + 12, row);
    add_fours(&p, rows, number(order, q, t, 4), x + 16, row);
    add_fours(&p, rows, number(order, q, t, 5), x + 20, row);
    add_fours(&p, rows, number(order, q, t, 6), x + 24, row);
    add_fours(&p, rows, number(order, q, t, 7), x + 28, row);
    return p;
}

/* The scales of blocks one after the other: one division for all. */
struct scales { const struct quantised *q; size_t i, nested; int left; };

ALWAYS_INLINE struct scales scales_from(const struct quantised *q, size_t i)
{
    struct scales s = { q, i, 0, 0 };
    if (!q->absmax) {
        s.nested = i / (size_t)q->nested_block;
        s.left = q->nested_block - (int)(i % (size_t)q->nested_block);
    }
    return s;
}

ALWAYS_INLINE float next_scale(struct scales *s)
{
    const struct quantised *q = s->q;
    size_t i = s->i++;
    float scale;
    if (q->absmax) return q->absmax[i];
    scale = q->map[q->codes[i]] * q->nested[s->nested] + q->offset;
    if (!--s->left) {
        s->left = q->nested_block;
        s->nested++;
    }
    return scale;
}

/* The scales of runs of 32: `left` more have `value`, and run `next` is the next. */
struct runs { struct scales scales; size_t next; int left; float value; };

/* d[0 .. n) of the runs from `first` on, and zeros up to a multiple of four. They mostly go on where the last ones ended,
 * which saves the divisions. */
ALWAYS_INLINE void scales_4bit(struct runs *s, const struct quantised *q, size_t first, int n, float *d)
{
    int each = q->block / 32, i;
    if (first != s->next) {
        s->scales = scales_from(q, first / (size_t)each);
        s->left = each - (int)(first % (size_t)each);
        s->value = next_scale(&s->scales);
    }
    s->next = first + (size_t)n;
    for (i = 0; i < n; i++, s->left--) {
        if (!s->left) {
            s->value = next_scale(&s->scales);
            s->left = each;
        }
        d[i] = s->value;
    }
    for (; i % 4; i++) d[i] = 0;
}

/* Constants all: how blocks of 32 codes lie, `size` bytes with the codes from byte `first` on, and what is added to a
 * number: m of the block, or -bias d. */
struct form { enum order order; int size, first, has_m, bias; };

/* The sums of a quarter each, of the rows of the weight that are there. */
ALWAYS_INLINE void put_quarters(float *sum, vec v, int side)
{
    float s[LANES];
    int r;
    vec_store(s, v);
    for (r = 0; r < side; r++) sum[r * FEW_ROWS] = (s[4 * r] + s[4 * r + 1]) + (s[4 * r + 2] + s[4 * r + 3]);
}

/* Up to SIDE rows of the weight, where `p` are theirs and `run` the first one's place among all runs; the last is there
 * again for those that are not. */
ALWAYS_INLINE void dot_side(struct form c, int rows, const struct few *f, const unsigned char *const *p, size_t run, struct runs *of,
                            const float *x, int side, float *sum)
{
    const size_t stride = spread_floats(f->I);
    const int row = f->I / 32, adds = c.has_m || c.bias;
    struct sums s = no_sums(), added = no_sums();
    struct table t = table_of(c.order == TURNS ? f->w->q->code : f->x);
    float scales[SIDE][PARTS];
    int i, j, r;
    for (i = 0; i < row; i += 4) {
        int n = smaller(4, row - i);
        size_t at = (size_t)i * (size_t)c.size;
        vec d, m;
        ask_ahead(p[0] + SIDE * at, SIDE * 4 * c.size);
        if (c.order == TURNS) {
            if (i % PARTS == 0)
                for (r = 0; r < SIDE; r++)
                    scales_4bit(of, f->w->q, run + (size_t)smaller(r, side - 1) * (size_t)row + (size_t)i, smaller(PARTS, row - i), scales[r]);
            d = floats_each(scales, i % PARTS);
        } else if (c.has_m) heads_dm(p, at, c.size, n, &d, &m);
        else heads_d(p, at, c.size, n, &d);
        if (adds) add_fours(&added, rows, c.has_m ? m : d, x + f->I + i, stride);
        for (j = 0; j < n; j++, at += (size_t)c.size) {
            struct sums q = run_sums(c.order, sixteen_each(p, at + (size_t)c.first), &t, rows, x + 32 * (i + j), stride);
            add_scaled(&s, &q, rows, one_each(d, j));
        }
    }
    if (adds) add_scaled(&s, &added, rows, vec_all(c.bias ? (float)-c.bias : 1));
    put_quarters(sum, s.r0, side);
    if (rows > 1) put_quarters(sum + 1, s.r1, side);
    if (rows > 2) put_quarters(sum + 2, s.r2, side);
    if (rows > 3) put_quarters(sum + 3, s.r3, side);
}

/* `count` rows of the weight, of which p is the first. */
ALWAYS_INLINE void dot_nibbles(struct form c, int rows, const struct few *f, const unsigned char *p, const float *x, int count, float *sum)
{
    const size_t row = (size_t)f->I / 32, bytes = row * (size_t)c.size;
    size_t run = c.order == TURNS ? (size_t)(p - (const unsigned char *)f->w->data) / 16 : 0;
    struct runs of = { { NULL, 0, 0, 0 }, SIZE_MAX, 0, 0 };
    int r, i;
    for (r = 0; r < count; r += SIDE, sum += SIDE * FEW_ROWS, p += SIDE * bytes, run += SIDE * row) {
        const unsigned char *side[SIDE];
        for (i = 0; i < SIDE; i++) side[i] = p + (size_t)smaller(i, count - r - 1) * bytes;
        dot_side(c, rows, f, side, run, &of, x, smaller(SIDE, count - r), sum);
    }
}

/* ---- numbers in their order ---- */

/* How many runs get their scales next, of `left` in a row of `row` and `more` in those after it: whole rows if any fits. */
ALWAYS_INLINE int parts_of_span(int row, int left, int more)
{
    return row < PARTS ? smaller(left + more, PARTS / row * row) : smaller(left, PARTS);
}

/* d[i] and, where the type adds something, m[i] of n blocks of `size` bytes */
typedef void scales_function(const unsigned char *p, int size, int n, float *d, float *m);

ALWAYS_INLINE void scales_d(const unsigned char *p, int size, int n, float *d, float *m)
{
    int i;
    (void)m;
    for (i = 0; i + 8 <= n; i += 8, p += 8 * size) {
        uint16_t h[8];
        int j;
        for (j = 0; j < 8; j++) memcpy(h + j, p + j * size, 2);
        _mm256_storeu_ps(d + i, _mm256_cvtph_ps(_mm_setr_epi16((short)h[0], (short)h[1], (short)h[2], (short)h[3],
                                                               (short)h[4], (short)h[5], (short)h[6], (short)h[7])));
    }
    for (; i < n; i++, p += size) d[i] = half_at(p);
}

/* A vector of numbers. */
typedef vec some(const unsigned char *p);

ALWAYS_INLINE vec some_f32(const unsigned char *p) { return vec_load((const float *)p); }

/* The sums of n vectors (2 or 4) of numbers of `size` bytes times x. */
ALWAYS_INLINE struct sums plain_sums(some *function, int size, int n, int rows, const unsigned char *p, const float *x, size_t row)
{
    struct sums s = no_sums();
    add_products(&s, rows, function(p), x, row);
    add_products(&s, rows, function(p + LANES * size), x + LANES, row);
    if (n < 4) return s;
    add_products(&s, rows, function(p + 2 * LANES * size), x + 2 * LANES, row);
    add_products(&s, rows, function(p + 3 * LANES * size), x + 3 * LANES, row);
    return s;
}

/* The first f->I / STEP * STEP numbers of `count` rows; each is `size` bytes. */
ALWAYS_INLINE void dot_plain(some *function, int size, int rows, const struct few *f, const unsigned char *p, const float *x,
                             int count, float *sum)
{
    const vec one = vec_all(1);
    int r, i;
    for (r = 0; r < count; r++, sum += FEW_ROWS, p += (f->I - i) * size) {
        struct sums s = no_sums();
        for (i = 0; i + STEP <= f->I; i += STEP, p += STEP * size) {
            struct sums q = plain_sums(function, size, 4, rows, p, x + i, (size_t)f->I);
            ask_ahead(p, STEP * size);
            add_scaled(&s, &q, rows, one);
        }
        put_sums(sum, rows, &s);
    }
}

ALWAYS_INLINE void dot_q8_0(int rows, const struct few *f, const unsigned char *p, const float *x, int count, float *sum)
{
    const int row = f->I / 32;
    float d[PARTS];
    int r, have = 0, at = 0, i;
    for (r = 0; r < count; r++, sum += FEW_ROWS) {
        struct sums s = no_sums();
        for (i = 0; i < row; i++, p += 34, have--) {
            struct sums q = plain_sums(some_bytes, 1, 32 / LANES, rows, p + 2, x + 32 * i, (size_t)f->I);
            ask_ahead(p, 34);
            if (!have) {
                have = parts_of_span(row, row - i, (count - r - 1) * row);
                scales_d(p, 34, have, d, NULL);
                at = 0;
            }
            add_scaled(&s, &q, rows, vec_all(d[at++]));
        }
        put_sums(sum, rows, &s);
    }
}

/* ---- GGUF's other codes, as bytes ---- in 256 bits alone: gathering them takes the time, not multiplying */

#ifndef WIDE

ALWAYS_INLINE void scales_dm(const unsigned char *p, int size, int n, float *d, float *m)
{
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    int i;
    for (i = 0; i + 4 <= n; i += 4, p += 4 * size) {
        int32_t h[4], j;
        __m256 both;
        for (j = 0; j < 4; j++) memcpy(h + j, p + j * size, 4);
        both = _mm256_cvtph_ps(_mm_shuffle_epi8(_mm_setr_epi32(h[0], h[1], h[2], h[3]), order));
        _mm_storeu_ps(d + i, _mm256_castps256_ps128(both));
        _mm_storeu_ps(m + i, _mm256_extractf128_ps(both, 1));
    }
    for (; i < n; i++, p += size) {
        d[i] = half_at(p);
        m[i] = half_at(p + 2);
    }
}

/* Lane i, vector j: x[4 i + j] 2^-8j; the sums of both halves. */
static void spread32(float *out, float *sum, const float *x)
{
    __m256 a[4], b[4], v[4];
    int i;
    for (i = 0; i < 4; i++)
        a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x + 4 * i)), _mm_loadu_ps(x + 16 + 4 * i), 1);
    b[0] = _mm256_unpacklo_ps(a[0], a[1]);
    b[1] = _mm256_unpacklo_ps(a[2], a[3]);
    b[2] = _mm256_unpackhi_ps(a[0], a[1]);
    b[3] = _mm256_unpackhi_ps(a[2], a[3]);
    v[0] = _mm256_shuffle_ps(b[0], b[1], 0x44);
    v[1] = _mm256_shuffle_ps(b[0], b[1], 0xee);
    v[2] = _mm256_shuffle_ps(b[2], b[3], 0x44);
    v[3] = _mm256_shuffle_ps(b[2], b[3], 0xee);
    _mm256_storeu_ps(out, v[0]);
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(v[1], _mm256_set1_ps(0x1p-8f)));
    _mm256_storeu_ps(out + 16, _mm256_mul_ps(v[2], _mm256_set1_ps(0x1p-16f)));
    _mm256_storeu_ps(out + 24, _mm256_mul_ps(v[3], _mm256_set1_ps(0x1p-24f)));
    a[0] = _mm256_add_ps(_mm256_add_ps(v[0], v[1]), _mm256_add_ps(v[2], v[3]));
    a[0] = _mm256_hadd_ps(a[0], a[0]);
    a[0] = _mm256_hadd_ps(a[0], a[0]);
    sum[0] = _mm256_cvtss_f32(a[0]);
    sum[1] = _mm_cvtss_f32(_mm256_extractf128_ps(a[0], 1));
}

/* Eight codes each as floats, times 2^8j. */
struct numbers { __m256 v0, v1, v2, v3; };

ALWAYS_INLINE struct numbers numbers_of(__m256i q)
{
    const __m256i low = _mm256_set1_epi32(255);
    struct numbers n;
    n.v0 = _mm256_cvtepi32_ps(_mm256_and_si256(q, low));
    n.v1 = _mm256_cvtepi32_ps(_mm256_and_si256(q, _mm256_slli_epi32(low, 8)));
    n.v2 = _mm256_cvtepi32_ps(_mm256_and_si256(q, _mm256_slli_epi32(low, 16)));
    n.v3 = _mm256_cvtepi32_ps(_mm256_and_si256(q, _mm256_slli_epi32(low, 24)));
    return n;
}

ALWAYS_INLINE __m256 part_sum(const float *x, const struct numbers *n)
{
    __m256 p = _mm256_mul_ps(n->v0, _mm256_loadu_ps(x));
    p = _mm256_fmadd_ps(n->v1, _mm256_loadu_ps(x + 8), p);
    p = _mm256_fmadd_ps(n->v2, _mm256_loadu_ps(x + 16), p);
    return _mm256_fmadd_ps(n->v3, _mm256_loadu_ps(x + 24), p);
}

/* sum of 32 numbers times 32 of x, of each row */
ALWAYS_INLINE struct sums part_sums(int rows, const float *x, size_t row, const struct numbers *n)
{
    struct sums p = no_sums();
    p.r0 = part_sum(x, n);
    if (rows > 1) p.r1 = part_sum(x + row, n);
    if (rows > 2) p.r2 = part_sum(x + 2 * row, n);
    if (rows > 3) p.r3 = part_sum(x + 3 * row, n);
    return p;
}

/* d[] and m[] of so many parts, 1 or 2 to a part, where no function above makes them. */
ALWAYS_INLINE void make_scales(codes_function *function, scales_function *scales, int block, int size, int group,
                               const unsigned char *p, int parts, float *d, float *m)
{
    int i, part;
    if (scales) scales(p, size, parts, d, m);
    else for (i = 0; i < parts; p += size)
        for (part = 0; part < block / 32; part++, i++) {
            struct codes c = function(p, part);
            if (group == 32) d[i] = c.d[0], m[i] = c.m[0];
            else d[2 * i] = c.d[0], d[2 * i + 1] = c.d[1], m[2 * i] = c.m[0], m[2 * i + 1] = c.m[1];
        }
}

/* `count` rows of blocks of `block` numbers, each scale for `group` (16 or 32) of them. */
ALWAYS_INLINE void dot_codes(codes_function *function, scales_function *scales, int block, int size, int group, int bias,
                             int rows, const struct few *f, const unsigned char *p, const float *x, int count, float *sum)
{
    const size_t stride = spread_floats(f->I);
    const int row = f->I / 32, each = 32 / group;
    float d[2 * PARTS], m[2 * PARTS];
    int r, have = 0, at = 0, done, n, i, part;
    for (r = 0; r < count; r++, sum += FEW_ROWS) {
        struct sums s = no_sums(), added = no_sums();
        for (done = 0; done < row; done += n, at += n, have -= n) {
            const float *sums = x + f->I + done * each, *to = x + 32 * done, *factor = (bias ? d : m);
            if (!have) {
                have = parts_of_span(row, row - done, (count - r - 1) * row);
                make_scales(function, scales, block, size, group, p, have, d, m);
                at = 0;
            }
            n = smaller(row - done, have);
            for (i = at; i < at + n; p += size) {
                ask_ahead(p, size);
                for (part = 0; part < block / 32; part++, i++, to += 32) {
                    struct numbers v = numbers_of(function(p, part).q);
                    struct sums q = part_sums(rows, to, stride, &v);
                    add_scaled(&s, &q, rows, group == 32 ? _mm256_broadcast_ss(d + i)
                               : _mm256_set_m128(_mm_broadcast_ss(d + 2 * i + 1), _mm_broadcast_ss(d + 2 * i)));
                }
            }
            for (i = 0, factor += at * each; i < n * each; i += 8)
                add_products(&added, rows, load_lanes(factor + i, n * each - i), sums + i, stride);
        }
        add_scaled(&s, &added, rows, _mm256_set1_ps(bias ? (float)-bias : 1));
        put_sums(sum, rows, &s);
    }
}

#endif

/* ---- rows of the weight ---- */

static const struct form q4_0 = { HALVES, 18, 2, 0, BIAS_Q4_0 }, q4_1 = { HALVES, 20, 4, 1, 0 }, table4 = { TURNS, 16, 0, 0, 0 };

/* How a type is multiplied: by its codes of 4 bits or of bytes, as numbers in their order, or decoded into strips. */
enum way { BY_NIBBLES, BY_BYTES, BY_NUMBERS, BY_STRIPS };

static enum way way_of(const struct weight *w)
{
    size_t block = w->type == TYPE_REAL ? 1 : (size_t)weight_types[w->type].block;
    if ((size_t)w->cols % block || w->offset % block) return BY_STRIPS;
    switch (w->type) {
    case TYPE_REAL: case TYPE_F32: case TYPE_F16: case TYPE_BF16: case TYPE_INT8: case TYPE_Q8_0: return BY_NUMBERS;
    case TYPE_NF4: case TYPE_FP4:
        return w->cols % 32 == 0 && w->offset % 32 == 0 && w->q->block % 32 == 0 ? BY_NIBBLES : BY_STRIPS;
    case TYPE_Q4_0: case TYPE_Q4_1: return BY_NIBBLES;
    case TYPE_IQ4_NL: return BY_STRIPS;
    default: return BY_BYTES;
    }
}

/* One row laid out for a weight of this type, the sums behind it. */
static void spread_row(int type, enum way way, float *to, const float *x, int I)
{
    float *sum = to + I;
    int i;
    for (i = 0; i < I; i += 32) {
        if (way == BY_BYTES) {
#ifndef WIDE
            float half[2];
            spread32(to + i, half, x + i);
            if (type != TYPE_Q2_K && type != TYPE_Q3_K && type != TYPE_Q6_K) *sum++ = half[0] + half[1];
            else *sum++ = half[0], *sum++ = half[1];
#endif
        } else if (type == TYPE_NF4 || type == TYPE_FP4) *sum++ = spread_nibbles(TURNS, to + i, x + i);
        else *sum++ = spread_nibbles(HALVES, to + i, x + i);
    }
    for (i = (int)(sum - to) - I; i % 8; i++) *sum++ = 0;
}

/* Rows of x into c->work; 0 where there is no room. One thread does it: it is a hundredth of the product. */
static int spread_rows(struct kernel_ctx *c, struct few *f, enum way way, int N)
{
    size_t row = spread_floats(f->I);
    int n;
    if (c->work_bytes / sizeof(float) / row < (size_t)N) return 0;
    f->spread = (float *)c->work;
    for (n = 0; n < N; n++)
        spread_row(f->w->type, way, (float *)c->work + (size_t)n * row, f->x + (size_t)n * (size_t)f->I, f->I);
    return 1;
}

/* sum[r][n ..] of rows n .. n + rows - 1 of x with `count` rows of the weight, which begin at element e. */
ALWAYS_INLINE void dot_span(int rows, const struct few *f, size_t e, int n, int count, float *sum)
{
    const unsigned char *p = f->w->data;
    const float *x = f->spread ? f->spread + (size_t)n * spread_floats(f->I) : f->x + (size_t)n * (size_t)f->I;
    sum += n;
    switch (f->w->type) {
    case TYPE_REAL: case TYPE_F32: dot_plain(some_f32, 4, rows, f, p + 4 * e, x, count, sum); break;
    case TYPE_F16:  dot_plain(some_f16, 2, rows, f, p + 2 * e, x, count, sum); break;
    case TYPE_BF16: dot_plain(some_bf16, 2, rows, f, p + 2 * e, x, count, sum); break;
    case TYPE_INT8: dot_plain(some_bytes, 1, rows, f, p + e, x, count, sum); break;
    case TYPE_Q8_0: dot_q8_0(rows, f, p + e / 32 * 34, x, count, sum); break;
    case TYPE_NF4: case TYPE_FP4: dot_nibbles(table4, rows, f, p + e / 2, x, count, sum); break;
    case TYPE_Q4_0: dot_nibbles(q4_0, rows, f, p + e / 32 * 18, x, count, sum); break;
    case TYPE_Q4_1: dot_nibbles(q4_1, rows, f, p + e / 32 * 20, x, count, sum); break;
#ifndef WIDE
    case TYPE_Q5_0: dot_codes(codes_q5_0, scales_d, 32, 22, 32, BIAS_Q5_0, rows, f, p + e / 32 * 22, x, count, sum); break;
    case TYPE_Q5_1: dot_codes(codes_q5_1, scales_dm, 32, 24, 32, 0, rows, f, p + e / 32 * 24, x, count, sum); break;
    case TYPE_Q2_K: dot_codes(codes_q2_k, NULL, 256, 84, 16, 0, rows, f, p + e / 256 * 84, x, count, sum); break;
    case TYPE_Q3_K: dot_codes(codes_q3_k, NULL, 256, 110, 16, BIAS_Q3_K, rows, f, p + e / 256 * 110, x, count, sum); break;
    case TYPE_Q4_K: dot_codes(codes_q4_k, NULL, 256, 144, 32, 0, rows, f, p + e / 256 * 144, x, count, sum); break;
    case TYPE_Q5_K: dot_codes(codes_q5_k, NULL, 256, 176, 32, 0, rows, f, p + e / 256 * 176, x, count, sum); break;
    case TYPE_Q6_K: dot_codes(codes_q6_k, NULL, 256, 210, 16, BIAS_Q6_K, rows, f, p + e / 256 * 210, x, count, sum); break;
#endif
    }
}

static void dot_span1(const struct few *f, size_t e, int n, int count, float *sum) { dot_span(1, f, e, n, count, sum); }
static void dot_span2(const struct few *f, size_t e, int n, int count, float *sum) { dot_span(2, f, e, n, count, sum); }
static void dot_span3(const struct few *f, size_t e, int n, int count, float *sum) { dot_span(3, f, e, n, count, sum); }
static void dot_span4(const struct few *f, size_t e, int n, int count, float *sum) { dot_span(4, f, e, n, count, sum); }

/* sum[r][n] of all N rows of x with `count` rows of the weight from `row` on, as they lie in the file. */
static void dot_as_it_lies(const struct few *f, enum way way, int row, int count, int N, float *sum)
{
    const struct weight *w = f->w;
    size_t e = w->offset + (size_t)row * (size_t)w->cols;
    int n = 0, r, done = way == BY_NUMBERS && w->type != TYPE_Q8_0 ? f->I / STEP * STEP : f->I;
    if (N >= 4) dot_span4(f, e, 0, count, sum), n = 4;
    switch (N - n) {
    case 3: dot_span3(f, e, n, count, sum); break;
    case 2: dot_span2(f, e, n, count, sum); break;
    case 1: dot_span1(f, e, n, count, sum);
    }
    for (r = 0; r < count && (done < f->I || w->type == TYPE_INT8); r++, e += (size_t)w->cols, sum += FEW_ROWS) {
        if (w->type == TYPE_INT8) for (n = 0; n < N; n++) sum[n] = sum[n] * w->q->absmax[e / (size_t)w->cols] * (1.0f / 127);
        if (done < f->I) {
            float rest[STEP];
            vec_decode(w, model_row(w, row + r), done, f->I - done, rest);
            for (n = 0; n < N; n++) sum[n] += dot(rest, f->x + (size_t)n * (size_t)f->I + done, f->I - done);
        }
    }
}

/* The same with numbers decoded. */
static void dot_strips(const struct few *f, int row, int count, int N, float *sum)
{
    float space[STRIP];
    int k, n, r;
    for (r = 0; r < count; r++, sum += FEW_ROWS) {
        for (n = 0; n < N; n++) sum[n] = 0;
        for (k = 0; k < f->I; k += STRIP) {
            const float *s = vec_strip(f->w, model_row(f->w, row + r), k, smaller(STRIP, f->I - k), space);
            for (n = 0; n < N; n++) sum[n] += dot(s, f->x + (size_t)n * (size_t)f->I + k, smaller(STRIP, f->I - k));
        }
    }
}

/* ---- the product ---- */

enum { SPAN = 32 };     /* rows of the weight whose sums are made before they are put where they belong */

void NAMED(product_few)(struct kernel_ctx *c, float *out, const float *x, const struct weight *w,
                        const float *bias, float scale, int accumulate, int N)
{
    struct few f = { w, x, NULL, w->cols };
    enum way way = way_of(w);
    int O = w->rows, spans = (O + SPAN - 1) / SPAN, i;
#ifdef WIDE
    if (way == BY_BYTES || way == BY_STRIPS) {
        avx2_product_few(c, out, x, w, bias, scale, accumulate, N);
        return;
    }
#endif
    if ((way == BY_NIBBLES || way == BY_BYTES) && !spread_rows(c, &f, way, N)) way = BY_STRIPS;
    /* a thread's spans lie together: memory gives long stretches faster */
#pragma omp parallel for schedule(static) num_threads(c->threads) if((double)N * O * f.I > PARALLEL_WORK)
    for (i = 0; i < spans; i++) {
        float sum[SPAN * FEW_ROWS];
        int first = i * SPAN, count = smaller(SPAN, O - first), r, n;
        if (way == BY_STRIPS) dot_strips(&f, first, count, N, sum);
        else dot_as_it_lies(&f, way, first, count, N, sum);
        for (n = 0; n < N; n++) {
            float *to = out + (size_t)n * (size_t)O;
            for (r = 0; r < count; r++) {
                int o = model_row(w, first + r);
                float v = scale * sum[r * FEW_ROWS + n] + (bias ? bias[o] : 0);
                to[o] = accumulate ? to[o] + v : v;
            }
        }
    }
}
