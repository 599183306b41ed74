/* tile.h - the register tile of all products, and the vectors that it is made of, in 256 bits or, where WIDE
 * is defined before this is included, in 512.
 *
 * Numbers: a product sums runs of up to KC terms with fused multiply-adds, in their order, and adds the
 * runs up in memory. KC is a constant of its table because it decides the bits. Which tile an
 * element lies in, whether operands were packed, and which thread computed it do not. */
#ifndef TILE_H
#define TILE_H

#ifdef WIDE

#define NAMED(name) avx512_##name
typedef __m512 vec;
enum {
    LANES = 16,
    MR = 12, NR = 32,       /* 24 sums, 2 vectors of B and 1 of A in 32 registers */
    KC = 320                /* the most terms of a run: a panel of B, KC x NR floats, is 40 KiB */
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
/* exp2_8() of vectors.h: the same bits */
static inline vec vec_exp2(vec x)
{
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(EXP2_6);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP2_5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP2_4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP2_3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP2_2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP2_1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23)));
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), p);
}

#else

#define NAMED(name) avx2_##name
typedef __m256 vec;
enum {
    LANES = 8,
    MR = 6, NR = 16,        /* 12 sums, 2 vectors of B and 1 of A in 16 registers */
    KC = 320                /* the most terms of a run: a panel of B, KC x NR floats, is 20 KiB */
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
static inline vec vec_exp2(vec x) { return exp2_8(x); }

#endif

/* Lines of memory that are brought nearer, one in `every` terms, while tiles are multiplied: `rows` rows of `bytes`,
 * `apart`. Asked for all at once they would be waited for. */
struct ahead { const char *row; size_t bytes, apart, at; int rows, every; };

ALWAYS_INLINE void ask(struct ahead *f)
{
    _mm_prefetch(f->row + f->at, _MM_HINT_T1);
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

ALWAYS_INLINE void row_step(struct row *r, int vectors, const float *a, vec low, vec high)
{
    vec x = vec_all(*a);
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
        row_step(&t.r0, vectors, a, low, high);
        if (mr > 1) row_step(&t.r1, vectors, a + row, low, high);
        if (mr > 2) row_step(&t.r2, vectors, a + 2 * row, low, high);
        if (mr > 3) row_step(&t.r3, vectors, a + 3 * row, low, high);
        if (mr > 4) row_step(&t.r4, vectors, a + 4 * row, low, high);
        if (mr > 5) row_step(&t.r5, vectors, a + 5 * row, low, high);
        if (mr > 6) row_step(&t.r6, vectors, a + 6 * row, low, high);
        if (mr > 7) row_step(&t.r7, vectors, a + 7 * row, low, high);
        if (mr > 8) row_step(&t.r8, vectors, a + 8 * row, low, high);
        if (mr > 9) row_step(&t.r9, vectors, a + 9 * row, low, high);
        if (mr > 10) row_step(&t.r10, vectors, a + 10 * row, low, high);
        if (mr > 11) row_step(&t.r11, vectors, a + 11 * row, low, high);
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

ALWAYS_INLINE void put_half(float *c, vec sum, const struct put *p, int from)
{
    int n = p->columns - from;
    vec v = vec_mul(sum, p->scale);
    if (n <= 0) return;
    if (p->bias) v = vec_add(v, vec_load_lanes(p->bias + from, n));
    if (p->add) v = vec_add(vec_load_lanes(c + from, n), v);
    vec_store_lanes(c + from, n, v);
}

ALWAYS_INLINE void put_row(float *c, const struct row *r, const struct put *p)
{
    put_half(c, r->low, p, 0);
    put_half(c, r->high, p, LANES);
}

ALWAYS_INLINE void put_tile(int mr, const struct tile *t, float *c, size_t row, const struct put *p)
{
    put_row(c, &t->r0, p);
    if (mr > 1) put_row(c + row, &t->r1, p);
    if (mr > 2) put_row(c + 2 * row, &t->r2, p);
    if (mr > 3) put_row(c + 3 * row, &t->r3, p);
    if (mr > 4) put_row(c + 4 * row, &t->r4, p);
    if (mr > 5) put_row(c + 5 * row, &t->r5, p);
    if (mr > 6) put_row(c + 6 * row, &t->r6, p);
    if (mr > 7) put_row(c + 7 * row, &t->r7, p);
    if (mr > 8) put_row(c + 8 * row, &t->r8, p);
    if (mr > 9) put_row(c + 9 * row, &t->r9, p);
    if (mr > 10) put_row(c + 10 * row, &t->r10, p);
    if (mr > 11) put_row(c + 11 * row, &t->r11, p);
}

#endif
