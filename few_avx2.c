/* few_avx2.c - products of few rows, as in generation: each weight is read once, from memory, and no panel pays.
 *
 * What is multiplied are the codes as they lie in a block, and what a block's numbers share is applied to
 * sums of products. With w = q d + m (m = -bias d where codes have a bias),
 *     sum of w x = d * sum of q x + m * sum of x
 * So these sums differ from those of decoded numbers, and have a bound of their own: over K numbers, (K / 32 + 24) 2^-24 times
 * the sum of (|q d| + |m|) |x|. test_few.c says why, and holds them to it.
 *
 * 32 codes are 8 lanes of 4 bytes. To take byte j out of each lane a mask is enough, if what it meets is
 * x 2^-8j: both factors are exact (x above 2^-102), so that their product is the code's with x. x is laid out so once for
 * all rows of the weight. */
#include "codes_avx2.h"

#ifdef HAVE_AVX2
#include "nf4.h"

enum {
    STRIP = 2048,       /* elements decoded at a time where nothing better is known */
    PARTS = 128,        /* runs of 32 whose scales are made at a time */
    AHEAD = 1024        /* bytes that memory is asked for before: over the ends of pages, where the processor's own asking ends */
};

/* Floats for a row of x laid out: the numbers times 2^-8j, and the sums of each 16. */
static size_t spread_floats(int I) { return (size_t)I + (size_t)round_up(I / 16, 8); }

size_t avx2_few_bytes(const struct kernel_sizes *s)
{
    return sizeof(float) * FEW_ROWS * spread_floats(round_up(larger(s->width, 1), 32));
}

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

/* The sums of up to four rows. Written out, as gcc 12 keeps an array of them in memory. */
struct sums { __m256 r0, r1, r2, r3; };

ALWAYS_INLINE struct sums no_sums(void)
{
    const __m256 zero = _mm256_setzero_ps();
    struct sums s = { zero, zero, zero, zero };
    return s;
}

ALWAYS_INLINE void put_sums(float *sum, int rows, const struct sums *s)
{
    sum[0] = sum8(s->r0);
    if (rows > 1) sum[1] = sum8(s->r1);
    if (rows > 2) sum[2] = sum8(s->r2);
    if (rows > 3) sum[3] = sum8(s->r3);
}

/* sum += v[8] * x[8] of each row */
ALWAYS_INLINE void add_eight(struct sums *s, int rows, __m256 v, const float *x, size_t row)
{
    s->r0 = _mm256_fmadd_ps(v, _mm256_loadu_ps(x), s->r0);
    if (rows > 1) s->r1 = _mm256_fmadd_ps(v, _mm256_loadu_ps(x + row), s->r1);
    if (rows > 2) s->r2 = _mm256_fmadd_ps(v, _mm256_loadu_ps(x + 2 * row), s->r2);
    if (rows > 3) s->r3 = _mm256_fmadd_ps(v, _mm256_loadu_ps(x + 3 * row), s->r3);
}

/* sum += part * d of each row */
ALWAYS_INLINE void add_scaled(struct sums *s, const struct sums *part, int rows, __m256 d)
{
    s->r0 = _mm256_fmadd_ps(part->r0, d, s->r0);
    if (rows > 1) s->r1 = _mm256_fmadd_ps(part->r1, d, s->r1);
    if (rows > 2) s->r2 = _mm256_fmadd_ps(part->r2, d, s->r2);
    if (rows > 3) s->r3 = _mm256_fmadd_ps(part->r3, d, s->r3);
}

/* ---- scales of blocks ---- d[i] and, where the type adds something, m[i] of n blocks of `size` bytes */

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

/* ---- codes of GGUF's blocks ---- */

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

/* Rows of x into c->work; 0 where there is no room. One thread does it: it is a hundredth of the product. */
static int spread_rows(struct kernel_ctx *c, struct few *f, int group, int N)
{
    size_t row = spread_floats(f->I), sums = (size_t)f->I / (size_t)group;
    int n, i;
    if (c->work_bytes / sizeof(float) / row < (size_t)N) return 0;
    f->spread = (float *)c->work;
    for (n = 0; n < N; n++) {
        float *to = (float *)c->work + (size_t)n * row, *sum = to + f->I;
        for (i = 0; i < f->I; i += 32) {
            float half[2];
            spread32(to + i, half, f->x + (size_t)n * (size_t)f->I + i);
            if (group == 32) *sum++ = half[0] + half[1];
            else *sum++ = half[0], *sum++ = half[1];
        }
        memset(sum, 0, sizeof(float) * ((8 - sums % 8) % 8));
    }
    return 1;
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

/* How many parts get their scales next: whole rows of `row` parts if any fits. */
ALWAYS_INLINE int parts_of_span(int row, int left) { return smaller(left, row < PARTS ? PARTS / row * row : PARTS); }

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
                have = parts_of_span(row, (count - r) * row - done);
                make_scales(function, scales, block, size, group, p, have, d, m);
                at = 0;
            }
            n = smaller(row - done, have);
            for (i = at; i < at + n; p += size) {
                _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
                if (size > 64) _mm_prefetch((const char *)p + AHEAD + 64, _MM_HINT_T0);
                if (size > 128) _mm_prefetch((const char *)p + AHEAD + 128, _MM_HINT_T0);
                for (part = 0; part < block / 32; part++, i++, to += 32) {
                    struct numbers v = numbers_of(function(p, part).q);
                    struct sums q = part_sums(rows, to, stride, &v);
                    add_scaled(&s, &q, rows, group == 32 ? _mm256_broadcast_ss(d + i)
                               : _mm256_set_m128(_mm_broadcast_ss(d + 2 * i + 1), _mm_broadcast_ss(d + 2 * i)));
                }
            }
            for (i = 0, factor += at * each; i < n * each; i += 8)
                add_eight(&added, rows, load_lanes(factor + i, n * each - i), sums + i, stride);
        }
        add_scaled(&s, &added, rows, _mm256_set1_ps(bias ? (float)-bias : 1));
        put_sums(sum, rows, &s);
    }
}

/* ---- numbers in their order ---- */

typedef __m256 eight(const unsigned char *p);

ALWAYS_INLINE __m256 eight_bytes(const unsigned char *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

ALWAYS_INLINE __m256 eight_f16(const unsigned char *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }

ALWAYS_INLINE __m256 eight_bf16(const unsigned char *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

ALWAYS_INLINE struct numbers numbers_at(eight *function, int size, const unsigned char *p)
{
    struct numbers n = { function(p), function(p + 8 * size), function(p + 16 * size), function(p + 24 * size) };
    return n;
}

/* The first f->I / 32 * 32 numbers of `count` rows; each is `size` bytes. */
ALWAYS_INLINE void dot_plain(eight *function, int size, int rows, const struct few *f, const unsigned char *p, const float *x,
                             int count, float *sum)
{
    int r, i;
    for (r = 0; r < count; r++, sum += FEW_ROWS, p += (f->I - i) * size) {
        struct sums s = no_sums();
        for (i = 0; i + 32 <= f->I; i += 32, p += 32 * size) {
            struct numbers n = numbers_at(function, size, p);
            struct sums q = part_sums(rows, x + i, (size_t)f->I, &n);
            _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
            add_scaled(&s, &q, rows, _mm256_set1_ps(1));
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
            struct numbers n = numbers_at(eight_bytes, 1, p + 2);
            struct sums q = part_sums(rows, x + 32 * i, (size_t)f->I, &n);
            _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
            if (!have) {
                have = parts_of_span(row, (count - r) * row - i);
                scales_d(p, 34, have, d, NULL);
                at = 0;
            }
            add_scaled(&s, &q, rows, _mm256_broadcast_ss(d + at++));
        }
        put_sums(sum, rows, &s);
    }
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

/* Rows begin at a multiple of 32 elements, blocks too. */
ALWAYS_INLINE void dot_4bit(int rows, const struct few *f, size_t e, const float *x, int count, float *sum)
{
    const struct quantised *q = f->w->q;
    const unsigned char *p = (const unsigned char *)f->w->data + e / 2;
    const __m256 low = _mm256_loadu_ps(q->code), high = _mm256_loadu_ps(q->code + 8);
    struct scales scales = scales_from(q, e / (size_t)q->block);
    int r, i, end, left = q->block - (int)(e % (size_t)q->block);
    float scale = next_scale(&scales);
    for (r = 0; r < count; r++, sum += FEW_ROWS) {
        struct sums s = no_sums();
        for (i = 0; i < f->I; ) {
            __m256 d = _mm256_set1_ps(scale);
            int from = i;
            for (end = smaller(f->I, i + left); i < end; i += 32, p += 16) {
                struct numbers n = { look_up8(p, low, high), look_up8(p + 4, low, high),
                                     look_up8(p + 8, low, high), look_up8(p + 12, low, high) };
                struct sums part = part_sums(rows, x + i, (size_t)f->I, &n);
                _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
                add_scaled(&s, &part, rows, d);
            }
            if (left -= i - from) continue;
            left = q->block;
            if (scales.i < q->scales) scale = next_scale(&scales);
        }
        put_sums(sum, rows, &s);
    }
}

/* ---- a row of the weight ---- */

/* Do the functions above read this weight: rows of whole blocks? */
static int by_codes(const struct weight *w)
{
    size_t block = (size_t)weight_types[w->type].block;
    switch (w->type) {
    case TYPE_F32: case TYPE_REAL: case TYPE_IQ4_NL: return 0;
    case TYPE_NF4: case TYPE_FP4: return w->cols % 32 == 0 && w->offset % 32 == 0 && w->q->block % 32 == 0;
    default: return (size_t)w->cols % block == 0 && w->offset % block == 0;
    }
}

/* Numbers to a sum of x, where the type wants those. */
static int sums_of(int type)
{
    switch (type) {
    case TYPE_Q4_0: case TYPE_Q4_1: case TYPE_Q5_0: case TYPE_Q5_1: case TYPE_Q4_K: case TYPE_Q5_K: return 32;
    case TYPE_Q2_K: case TYPE_Q3_K: case TYPE_Q6_K: return 16;
    default: return 0;
    }
}

/* sum[r][n ..] of rows n .. n + rows - 1 of x with `count` rows of the weight, which begin at element e. */
ALWAYS_INLINE void dot_span(int rows, const struct few *f, size_t e, int n, int count, float *sum)
{
    const unsigned char *p = f->w->data;
    const float *x = f->spread ? f->spread + (size_t)n * spread_floats(f->I) : f->x + (size_t)n * (size_t)f->I;
    sum += n;
    switch (f->w->type) {
    case TYPE_F16:  dot_plain(eight_f16, 2, rows, f, p + 2 * e, x, count, sum); break;
    case TYPE_BF16: dot_plain(eight_bf16, 2, rows, f, p + 2 * e, x, count, sum); break;
    case TYPE_INT8: dot_plain(eight_bytes, 1, rows, f, p + e, x, count, sum); break;
    case TYPE_NF4: case TYPE_FP4: dot_4bit(rows, f, e, x, count, sum); break;
    case TYPE_Q8_0: dot_q8_0(rows, f, p + e / 32 * 34, x, count, sum); break;
    case TYPE_Q4_0: dot_codes(codes_q4_0, scales_d, 32, 18, 32, BIAS_Q4_0, rows, f, p + e / 32 * 18, x, count, sum); break;
    case TYPE_Q4_1: dot_codes(codes_q4_1, scales_dm, 32, 20, 32, 0, rows, f, p + e / 32 * 20, x, count, sum); break;
    case TYPE_Q5_0: dot_codes(codes_q5_0, scales_d, 32, 22, 32, BIAS_Q5_0, rows, f, p + e / 32 * 22, x, count, sum); break;
    case TYPE_Q5_1: dot_codes(codes_q5_1, scales_dm, 32, 24, 32, 0, rows, f, p + e / 32 * 24, x, count, sum); break;
    case TYPE_Q2_K: dot_codes(codes_q2_k, NULL, 256, 84, 16, 0, rows, f, p + e / 256 * 84, x, count, sum); break;
    case TYPE_Q3_K: dot_codes(codes_q3_k, NULL, 256, 110, 16, BIAS_Q3_K, rows, f, p + e / 256 * 110, x, count, sum); break;
    case TYPE_Q4_K: dot_codes(codes_q4_k, NULL, 256, 144, 32, 0, rows, f, p + e / 256 * 144, x, count, sum); break;
    case TYPE_Q5_K: dot_codes(codes_q5_k, NULL, 256, 176, 32, 0, rows, f, p + e / 256 * 176, x, count, sum); break;
    case TYPE_Q6_K: dot_codes(codes_q6_k, NULL, 256, 210, 16, BIAS_Q6_K, rows, f, p + e / 256 * 210, x, count, sum); break;
    }
}

static void dot_span1(const struct few *f, size_t e, int n, int count, float *sum) { dot_span(1, f, e, n, count, sum); }
static void dot_span2(const struct few *f, size_t e, int n, int count, float *sum) { dot_span(2, f, e, n, count, sum); }
static void dot_span3(const struct few *f, size_t e, int n, int count, float *sum) { dot_span(3, f, e, n, count, sum); }
static void dot_span4(const struct few *f, size_t e, int n, int count, float *sum) { dot_span(4, f, e, n, count, sum); }

/* sum[r][n] of all N rows of x with `count` rows of the weight from `row` on, as they lie in the file. */
static void dot_by_codes(const struct few *f, int row, int count, int N, float *sum)
{
    const struct weight *w = f->w;
    size_t e = w->offset + (size_t)row * (size_t)w->cols;
    int n = 0, r, done = f->I / 32 * 32;
    if (N >= 4) dot_span4(f, e, 0, count, sum), n = 4;
    switch (N - n) {
    case 3: dot_span3(f, e, n, count, sum); break;
    case 2: dot_span2(f, e, n, count, sum); break;
    case 1: dot_span1(f, e, n, count, sum);
    }
    for (r = 0; r < count; r++, e += (size_t)w->cols, sum += FEW_ROWS) {
        if (w->type == TYPE_INT8) for (n = 0; n < N; n++) sum[n] = sum[n] * w->q->absmax[e / (size_t)w->cols] * (1.0f / 127);
        if (done < f->I) {
            float rest[32];
            avx2_decode(w, model_row(w, row + r), done, f->I - done, rest);
            for (n = 0; n < N; n++) sum[n] += dot(rest, f->x + (size_t)n * (size_t)f->I + done, f->I - done);
        }
    }
}

/* The same with numbers as they lie, or decoded. */
static void dot_strips(const struct few *f, int row, int count, int N, float *sum)
{
    float space[STRIP];
    int k, n, r;
    for (r = 0; r < count; r++, sum += FEW_ROWS) {
        for (n = 0; n < N; n++) sum[n] = 0;
        for (k = 0; k < f->I; k += STRIP) {
            const float *s = avx2_strip(f->w, model_row(f->w, row + r), k, smaller(STRIP, f->I - k), space);
            for (n = 0; n < N; n++) sum[n] += dot(s, f->x + (size_t)n * (size_t)f->I + k, smaller(STRIP, f->I - k));
        }
    }
}

/* ---- the product ---- */

enum { SPAN = 32 };     /* rows of the weight whose sums are made before they are put where they belong */

void avx2_product_few(struct kernel_ctx *c, float *out, const float *x, const struct weight *w,
                      const float *bias, float scale, int accumulate, int N)
{
    struct few f = { w, x, NULL, w->cols };
    int O = w->rows, spans = (O + SPAN - 1) / SPAN, i;
    int group = sums_of(w->type), codes = by_codes(w) && (!group || spread_rows(c, &f, group, N));
#pragma omp parallel for schedule(dynamic) num_threads(c->threads) if((double)N * O * f.I > PARALLEL_WORK)
    for (i = 0; i < spans; i++) {
        float sum[SPAN * FEW_ROWS];
        int first = i * SPAN, count = smaller(SPAN, O - first), r, n;
        if (codes) dot_by_codes(&f, first, count, N, sum);
        else dot_strips(&f, first, count, N, sum);
        for (r = 0; r < count; r++) {
            int o = model_row(w, first + r);
            for (n = 0; n < N; n++) {
                float *p = out + (size_t)n * (size_t)O + (size_t)o, v = scale * sum[r * FEW_ROWS + n] + (bias ? bias[o] : 0);
                *p = accumulate ? *p + v : v;
            }
        }
    }
}

#endif
