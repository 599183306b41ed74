/* tile.h - the register tile of all products, and the vectors that it is made of, in 256 bits or, where WIDE
 * is defined before this is included, in 512; neon.h has those of 128.
 *
 * Numbers: a product sums runs of up to KC terms with fused multiply-adds, in their order, and adds the
 * runs up in memory. KC is a constant of its table because it decides the bits. Which tile an
 * element lies in, whether operands were packed, and which thread computed it do not. */
#ifndef TILE_H
#define TILE_H

#ifdef WIDE

#define NAMED(name) avx512_##name
#define MR 12               /* of a tile of MR x NR; a macro, as #if asks for it */
typedef __m512 vec;
enum {
    LANES = 16, NR = 32,    /* 24 sums, 2 vectors of B and 1 of A in 32 registers */
    KC = 800,               /* the most terms of a run: a panel of B, KC x NR floats, is 100 KiB and comes from L2 */
    TURNED = 16             /* rows and terms that transpose_square() takes */
};

static inline __mmask16 first_lanes(int n) { return (__mmask16)(n >= 16 ? 0xffff : n > 0 ? (1 << n) - 1 : 0); }
static inline vec vec_all(float x) { return _mm512_set1_ps(x); }
static inline vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
static inline vec vec_load_lanes(const float *p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
static inline void vec_store(float *p, vec v) { _mm512_storeu_ps(p, v); }
static inline void vec_store_lanes(float *p, int n, vec v) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
static inline vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec vec_fmadd(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline float vec_largest(vec v) { return max8(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))); }
static inline float vec_sum(vec v) { return sum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))); }
/* v in the lanes from .. to - 1, `others` in the others */
static inline vec vec_between(vec v, vec others, int from, int to)
{
    return _mm512_mask_blend_ps(first_lanes(to) & ~first_lanes(from), others, v);
}
static inline vec vec_round(vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* p 2^n, n a whole number, straight into the exponent */
static inline vec vec_raised(vec p, vec n)
{
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23)));
}
/* Sixteen terms of four rows from i on: lane l (of 128 bits) of v[c * apart] has the terms 4 l + c of all four. */
ALWAYS_INLINE void four_rows(vec *v, int apart, const float *const *rows, int i)
{
    vec a = vec_load(rows[0] + i), b = vec_load(rows[1] + i), c = vec_load(rows[2] + i), d = vec_load(rows[3] + i);
    vec ab = _mm512_unpacklo_ps(a, b), cd = _mm512_unpacklo_ps(c, d);
    v[0] = _mm512_shuffle_ps(ab, cd, 0x44);
    v[apart] = _mm512_shuffle_ps(ab, cd, 0xee);
    ab = _mm512_unpackhi_ps(a, b);
    cd = _mm512_unpackhi_ps(c, d);
    v[2 * apart] = _mm512_shuffle_ps(ab, cd, 0x44);
    v[3 * apart] = _mm512_shuffle_ps(ab, cd, 0xee);
}
/* Lane l of v[0] to v[3] becomes out[l * apart ..]. */
ALWAYS_INLINE void put_lanes(float *out, size_t apart, const vec *v)
{
    vec a = _mm512_shuffle_f32x4(v[0], v[1], 0x44), b = _mm512_shuffle_f32x4(v[2], v[3], 0x44);
    vec c = _mm512_shuffle_f32x4(v[0], v[1], 0xee), d = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
    vec_store(out, _mm512_shuffle_f32x4(a, b, 0x88));
    vec_store(out + apart, _mm512_shuffle_f32x4(a, b, 0xdd));
    vec_store(out + 2 * apart, _mm512_shuffle_f32x4(c, d, 0x88));
    vec_store(out + 3 * apart, _mm512_shuffle_f32x4(c, d, 0xdd));
}
/* out[k*MR + r] = rows[r][i + k], r < MR, k < 16: each four vectors in turn are a third of what four terms become */
ALWAYS_INLINE void interleave_all(float *out, const float *const *rows, int i)
{
    vec v[12];
    int j;
    for (j = 0; j < 3; j++) four_rows(v + j, 3, rows + 4 * j, i);
    for (j = 0; j < 12; j += 4, out += 16) put_lanes(out, 4 * MR, v + j);
}
/* out[k*stride + r] = rows[r][i + k], r < TURNED, k < TURNED. Inlined, as all of these: a call for each cost a twentieth of
 * a product at half of the addresses where the program may lie. */
ALWAYS_INLINE void transpose_square(float *out, size_t stride, const float *const *rows, int i)
{
    vec v[16];
    int j;
    for (j = 0; j < 4; j++) four_rows(v + j, 4, rows + 4 * j, i);
    for (j = 0; j < 4; j++) put_lanes(out + (size_t)j * stride, 4 * stride, v + 4 * j);
}
/* v, but 0 where x < least */
static inline vec vec_unless_below(vec v, vec x, vec least) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), v); }

#elif defined HAVE_AVX2

#define NAMED(name) avx2_##name
#define MR 6
typedef __m256 vec;
enum {
    LANES = 8, NR = 16,     /* 12 sums, 2 vectors of B and 1 of A in 16 registers */
    KC = 320,               /* the most terms of a run: a panel of B, KC x NR floats, is 20 KiB */
    TURNED = 8
};

static inline vec vec_all(float x) { return _mm256_set1_ps(x); }
static inline vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
static inline vec vec_load_lanes(const float *p, int n) { return load_lanes(p, n); }
static inline void vec_store(float *p, vec v) { _mm256_storeu_ps(p, v); }
static inline void vec_store_lanes(float *p, int n, vec v) { store_lanes(p, n, v); }
static inline vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec vec_fmadd(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static inline vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline float vec_largest(vec v) { return max8(v); }
static inline float vec_sum(vec v) { return sum8(v); }
static inline vec vec_between(vec v, vec others, int from, int to)
{
    return _mm256_blendv_ps(others, v, _mm256_castsi256_ps(_mm256_andnot_si256(lanes(from), lanes(to))));
}
static inline vec vec_round(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vec vec_raised(vec p, vec n)
{
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
static inline vec vec_unless_below(vec v, vec x, vec least) { return _mm256_and_ps(v, _mm256_cmp_ps(x, least, _CMP_NLT_UQ)); }

ALWAYS_INLINE void transpose_square(float *out, size_t stride, const float *const *rows, int i)
{
    __m256 a[8], b[8];
    int r;
    for (r = 0; r < 4; r++) {       /* halves of rows r and r + 4 side by side: no shuffle crosses lanes after */
        __m256 x = _mm256_castps128_ps256(_mm_loadu_ps(rows[r] + i));
        __m256 y = _mm256_castps128_ps256(_mm_loadu_ps(rows[r] + i + 4));
        a[r] = _mm256_insertf128_ps(x, _mm_loadu_ps(rows[r + 4] + i), 1);
        a[r + 4] = _mm256_insertf128_ps(y, _mm_loadu_ps(rows[r + 4] + i + 4), 1);
    }
    for (r = 0; r < 8; r += 4) {
        b[r] = _mm256_unpacklo_ps(a[r], a[r + 1]);
        b[r + 1] = _mm256_unpackhi_ps(a[r], a[r + 1]);
        b[r + 2] = _mm256_unpacklo_ps(a[r + 2], a[r + 3]);
        b[r + 3] = _mm256_unpackhi_ps(a[r + 2], a[r + 3]);
    }
    for (r = 0; r < 8; r += 4) {
        _mm256_storeu_ps(out + (size_t)r * stride, _mm256_shuffle_ps(b[r], b[r + 2], 0x44));
        _mm256_storeu_ps(out + (size_t)(r + 1) * stride, _mm256_shuffle_ps(b[r], b[r + 2], 0xee));
        _mm256_storeu_ps(out + (size_t)(r + 2) * stride, _mm256_shuffle_ps(b[r + 1], b[r + 3], 0x44));
        _mm256_storeu_ps(out + (size_t)(r + 3) * stride, _mm256_shuffle_ps(b[r + 1], b[r + 3], 0xee));
    }
}

/* What rows_vec.c needs besides. */
static inline vec vec_div(vec a, vec b) { return _mm256_div_ps(a, b); }
static inline vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }
static inline vec vec_fnmadd(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }
static inline int vec_any_equal(vec a, vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
static inline vec vec_minus_size(vec z) { return _mm256_or_ps(z, _mm256_set1_ps(-0.0f)); }
/* a in the lanes where z has a sign, else b */
static inline vec vec_by_sign(vec z, vec a, vec b) { return _mm256_blendv_ps(b, a, z); }
/* p 2^n in two factors, for whole n from -152 to 128 */
static inline vec vec_times_power(vec p, vec n)
{
    __m256i i = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(i, 1);
    i = _mm256_sub_epi32(i, half);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, _mm256_set1_epi32(127)), 23)));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(i, _mm256_set1_epi32(127)), 23)));
}

/* Sums of vectors in double. */
struct doubles { __m256d low, high; };
static inline void add_doubles(struct doubles *s, vec v)
{
    s->low = _mm256_add_pd(s->low, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
    s->high = _mm256_add_pd(s->high, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
}
static inline double doubles_sum(const struct doubles *s) { return sum4d(_mm256_add_pd(s->low, s->high)); }

#else
#include "neon.h"
#endif

#ifndef HAVE_NEON
/* a[i*row] in all lanes, for row i of mr */
ALWAYS_INLINE vec vec_of_row(const float *a, size_t row, int i, int mr)
{
    (void)mr;
    return vec_all(a[(size_t)i * row]);
}
#endif

/* 2^x for x <= 127, 0 below -126: what a softmax needs, where a number that small does not count. The
 * polynomial is the best of degree 6 (2e-9 of the result); n goes straight into the exponent. Error
 * below 1.1 ulp. NaN gives NaN. */
static inline vec vec_exp2(vec x)
{
    vec n = vec_round(x), r = vec_sub(x, n), p = vec_all(0.00015345812f);
    p = vec_fmadd(p, r, vec_all(0.0013399931f));
    p = vec_fmadd(p, r, vec_all(0.009618489f));
    p = vec_fmadd(p, r, vec_all(0.055503286f));
    p = vec_fmadd(p, r, vec_all(0.24022646f));
    p = vec_fmadd(p, r, vec_all(0.6931472f));
    p = vec_fmadd(p, r, vec_all(1));
    return vec_unless_below(vec_raised(p, n), x, vec_all(-126));
}

ALWAYS_INLINE void bring_l1(const void *p) { __builtin_prefetch(p, 0, 3); }
ALWAYS_INLINE void bring_l2(const void *p) { __builtin_prefetch(p, 0, 2); }

/* Lines of memory that are brought nearer, one in `every` terms, while tiles are multiplied: `rows` rows of `bytes`,
 * `apart`. Asked for all at once they would be waited for. */
struct ahead { const char *row; size_t bytes, apart, at; int rows, every; };

ALWAYS_INLINE void ask(struct ahead *f)
{
    bring_l2(f->row + f->at);
    f->at += 64;
    if (f->at < f->bytes) return;
    f->at = 0;
    f->row += f->apart;
    f->rows--;
}

/* ---- the register tile ----
 * Row r's sums over k < K of a[r*row + k*step] * b[k*ldb + c], c < NR (or LANES, of one vector), r < mr (a constant where this
 * is called, so that what is past it goes away): each element by one chain of fused multiply-adds.
 * The rows are written out: gcc 12 keeps an array of sums in memory, at 2.5 times the time. */
struct row { vec low, high; };
struct tile { struct row r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11; };

ALWAYS_INLINE void row_step(struct row *r, int vectors, vec x, vec low, vec high)
{
    r->low = vec_fmadd(x, low, r->low);
    if (vectors > 1) r->high = vec_fmadd(x, high, r->high);
}

ALWAYS_INLINE struct tile tile_of(int mr, int vectors, int K, const float *a, size_t row, size_t step,
                                  const float *b, size_t ldb, struct ahead *next)
{
    const struct row none = { vec_all(0), vec_all(0) };
    struct tile t = { none, none, none, none, none, none, none, none, none, none, none, none };
    struct ahead f = { NULL, 0, 0, 0, 0, 0 };
    int k, turn = 1;
    if (next) f = *next;
    for (k = 0; k < K; k++, a += step, b += ldb) {
        vec low = vec_load(b), high = vectors > 1 ? vec_load(b + LANES) : low;
        row_step(&t.r0, vectors, vec_of_row(a, row, 0, mr), low, high);
        if (mr > 1) row_step(&t.r1, vectors, vec_of_row(a, row, 1, mr), low, high);
        if (mr > 2) row_step(&t.r2, vectors, vec_of_row(a, row, 2, mr), low, high);
        if (mr > 3) row_step(&t.r3, vectors, vec_of_row(a, row, 3, mr), low, high);
        if (mr > 4) row_step(&t.r4, vectors, vec_of_row(a, row, 4, mr), low, high);
        if (mr > 5) row_step(&t.r5, vectors, vec_of_row(a, row, 5, mr), low, high);
        if (mr > 6) row_step(&t.r6, vectors, vec_of_row(a, row, 6, mr), low, high);
        if (mr > 7) row_step(&t.r7, vectors, vec_of_row(a, row, 7, mr), low, high);
        if (mr > 8) row_step(&t.r8, vectors, vec_of_row(a, row, 8, mr), low, high);
        if (mr > 9) row_step(&t.r9, vectors, vec_of_row(a, row, 9, mr), low, high);
        if (mr > 10) row_step(&t.r10, vectors, vec_of_row(a, row, 10, mr), low, high);
        if (mr > 11) row_step(&t.r11, vectors, vec_of_row(a, row, 11, mr), low, high);
        if (next && --turn == 0) {
            turn = f.every;
            if (f.rows > 0) ask(&f);
        }
    }
    if (next) *next = f;
    return t;
}

ALWAYS_INLINE struct tile tile(int mr, int K, const float *a, size_t row, size_t step, const float *b, size_t ldb)
{
    return tile_of(mr, 2, K, a, row, step, b, ldb, NULL);
}

/* What becomes of a tile's sums: c = scale * sum + bias, or +=, for `columns` of NR. */
struct put { vec scale; const float *bias; int columns, add; };

ALWAYS_INLINE void put_half(float *c, const float *old, vec sum, const struct put *p, int from)
{
    int n = p->columns - from;
    vec v = vec_mul(sum, p->scale);
    if (n <= 0) return;
    if (p->bias) v = vec_add(v, vec_load_lanes(p->bias + from, n));
    if (p->add) v = vec_add(vec_load_lanes(old + from, n), v);
    vec_store_lanes(c + from, n, v);
}

ALWAYS_INLINE void put_row(float *c, const float *old, const struct row *r, const struct put *p)
{
    put_half(c, old, r->low, p, 0);
    put_half(c, old, r->high, p, LANES);
}

ALWAYS_INLINE void put_tile(int mr, const struct tile *t, float *c, size_t row, const float *old, size_t old_row, const struct put *p)
{
    put_row(c, old, &t->r0, p);
    if (mr > 1) put_row(c + row, old + old_row, &t->r1, p);
    if (mr > 2) put_row(c + 2 * row, old + 2 * old_row, &t->r2, p);
    if (mr > 3) put_row(c + 3 * row, old + 3 * old_row, &t->r3, p);
    if (mr > 4) put_row(c + 4 * row, old + 4 * old_row, &t->r4, p);
    if (mr > 5) put_row(c + 5 * row, old + 5 * old_row, &t->r5, p);
    if (mr > 6) put_row(c + 6 * row, old + 6 * old_row, &t->r6, p);
    if (mr > 7) put_row(c + 7 * row, old + 7 * old_row, &t->r7, p);
    if (mr > 8) put_row(c + 8 * row, old + 8 * old_row, &t->r8, p);
    if (mr > 9) put_row(c + 9 * row, old + 9 * old_row, &t->r9, p);
    if (mr > 10) put_row(c + 10 * row, old + 10 * old_row, &t->r10, p);
    if (mr > 11) put_row(c + 11 * row, old + 11 * old_row, &t->r11, p);
}

#endif
