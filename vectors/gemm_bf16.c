/* gemm_bf16.c - products with frozen weights in bf16: see bf16.h.
 *
 * The plan is that of gemm_vec.c: C[M,N] = A[M,K] B[K,N], B a weight or its transpose; a thread takes a
 * panel of B, decodes it into memory of its own, and all rows of A go by. A is packed first, by all
 * threads. Both are packed in the shape that AMX reads and that AVX512-BF16 reads as well:
 *     A   [tile of 16 rows][32 terms][16 rows][32]   a pair of terms of a row is broadcast
 *     B   [pair of terms][16 columns][2]             a vector */
#include "bf16.h"

#include <stdio.h>

#ifdef HAVE_BF16
#define WIDE             /* what it takes from the other files is in 512 bits too */
#include "vectors.h"
#include <cpuid.h>

enum {
    GROUP = 2 * BF16_COLUMNS,           /* columns that a copied strip fills: a block of the quantised types */
    ROWS_PACKED = 768, TERMS_PACKED = 3 * BF16_KC,      /* of A at a time */
    PANEL = BF16_KC * BF16_COLUMNS,
    AT_ONCE = 4,                        /* tiles: AMX has a chain of sums for each, and more than one in flight */
    COPIED = 16                         /* rows of a weight that are decoded at a time to be copied */
};

typedef uint16_t bf16;

/* A thread's memory: a group's panels, the strips of a panel as bf16, one strip as floats, a panel of an adapter's
 * terms, tiles of sums. */
struct scratch {
    bf16 panels[GROUP / BF16_COLUMNS * PANEL];
    bf16 strips[PANEL];
    float floats[BF16_KC];
    float low[BF16_LOW_RANK * BF16_COLUMNS];
    float sums[AT_ONCE * BF16_ROWS * BF16_COLUMNS];
};

size_t bf16_gemm_bytes(const struct kernel_sizes *s)
{
    int rows = smaller(round_up(larger(s->N, 1), BF16_ROWS), ROWS_PACKED);
    int terms = smaller(round_up(larger(s->width, s->V), BF16_TERMS), TERMS_PACKED);
    return sizeof(struct scratch) * (size_t)larger(s->threads, 1) + sizeof(bf16) * (size_t)rows * (size_t)terms;
}

/* ---- packing ---- */

static __m512 load_some(const float *p, int n)
{
    return n >= 16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(n > 0 ? (__mmask16)((1u << n) - 1) : 0, p);
}

/* to[i] = x[i], i < n, and zeros up to a multiple of 32 */
static void to_bf16(bf16 *to, const float *x, int n)
{
    int i;
    for (i = 0; i < n; i += 32)
        _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(load_some(x + i + 16, n - i - 16), load_some(x + i, n - i)));
}

static const bf16 *lies_as_bf16(const struct weight *w)
{
    return w->type == TYPE_BF16 ? (const bf16 *)w->data : NULL;
}

/* panel[i/2][r][i%2] = W[row + r][col + i], i < n, r < 16; rows past the end are 0 */
static void pack_transposed(const struct weight *w, int row, int col, int n, struct scratch *s)
{
    int r, have = smaller(BF16_COLUMNS, w->rows - row), terms = round_up(n, BF16_TERMS);
    const float *rows[BF16_COLUMNS];        /* pairs of terms, moved as if they were floats */
    for (r = 0; r < BF16_COLUMNS; r++) {
        bf16 *strip = s->strips + (size_t)r * BF16_KC;
        rows[r] = (const float *)(const void *)strip;
        if (r >= have) memset(strip, 0, sizeof *strip * (size_t)terms);
        else if (lies_as_bf16(w) && n == terms)
            rows[r] = (const float *)(const void *)(lies_as_bf16(w) + vec_element(w, row + r, col));
        else to_bf16(strip, vec_strip(w, row + r, col, n, s->floats), n);
    }
    avx512_transpose((float *)(void *)s->panels, BF16_COLUMNS, rows, terms / 2);
}

/* Two rows of 16, as pairs: a[0] b[0] a[1] b[1] ... */
static __m512i pairs(__m512i rows)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, rows);
}

/* panels[p][k/2][i][k%2] = W[row + k][col + 16 p + i], k < n, i < 16, p < GROUP / 16; columns past the end are 0 */
static void pack_copied(const struct weight *w, int row, int n, int col, struct scratch *s)
{
    int k, i, r, have = smaller(GROUP, w->cols - col), terms = round_up(n, BF16_TERMS);
    bf16 *to = s->panels;
    for (k = 0; k < terms; k += COPIED) {
        int real = smaller(COPIED, n - k), whole = real == COPIED && have == GROUP, direct = whole && vec_lies_as_floats(w);
        const float *from = direct ? (const float *)w->data + vec_element(w, row + k, col) : s->floats;
        size_t apart = direct ? (size_t)w->cols : GROUP;
        if (!whole) memset(s->floats, 0, sizeof *s->floats * COPIED * GROUP);
        if (!direct) avx512_decode_rows(w, row + k, real, col, have, s->floats, GROUP);
        for (r = 0; r < COPIED; r += 2, from += 2 * apart, to += 2 * BF16_COLUMNS)
            for (i = 0; i < GROUP; i += BF16_COLUMNS)
                _mm512_storeu_si512(to + i / BF16_COLUMNS * PANEL,
                                    pairs((__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + apart + i), _mm512_loadu_ps(from + i))));
    }
}

/* A tile of A: to[i/32][r][i%32] = a[r*row + i], i < n, r < mr; the rest of it is 0 */
static void pack_rows(bf16 *to, const float *a, size_t row, int mr, int n)
{
    int i, r;
    for (r = 0; r < BF16_ROWS; r++)
        for (i = 0; i < n; i += BF16_TERMS) {
            bf16 *p = to + (size_t)i * BF16_ROWS + (size_t)r * BF16_TERMS;
            if (r < mr) to_bf16(p, a + (size_t)r * row + (size_t)i, smaller(BF16_TERMS, n - i));
            else _mm512_storeu_si512(p, _mm512_setzero_si512());
        }
}

/* ---- the tile ---- sums of 16 rows by 16 columns; the rows are written out, as in tile.h */

ALWAYS_INLINE __m512 step(__m512 sum, const bf16 *a, __m512i b)
{
    int32_t pair;
    memcpy(&pair, a, sizeof pair);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
}

ALWAYS_INLINE void tile_sums(int mr, int terms, const bf16 *a, const bf16 *b, float *out)
{
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
    __m512 s8 = s0, s9 = s0, s10 = s0, s11 = s0, s12 = s0, s13 = s0, s14 = s0, s15 = s0;
    int k, p;
    for (k = 0; k < terms; k += BF16_TERMS, a += BF16_ROWS * BF16_TERMS - BF16_TERMS)
        for (p = 0; p < BF16_TERMS / 2; p++, a += 2, b += 32) {
            __m512i v = _mm512_loadu_si512(b);
            s0 = step(s0, a, v); s1 = step(s1, a + 32, v);
            s2 = step(s2, a + 64, v); s3 = step(s3, a + 96, v);
            s4 = step(s4, a + 128, v); s5 = step(s5, a + 160, v);
            s6 = step(s6, a + 192, v); s7 = step(s7, a + 224, v);
            if (mr <= 8) continue;
            s8 = step(s8, a + 256, v); s9 = step(s9, a + 288, v);
            s10 = step(s10, a + 320, v); s11 = step(s11, a + 352, v);
            s12 = step(s12, a + 384, v); s13 = step(s13, a + 416, v);
            s14 = step(s14, a + 448, v); s15 = step(s15, a + 480, v);
        }
    _mm512_storeu_ps(out, s0); _mm512_storeu_ps(out + 16, s1);
    _mm512_storeu_ps(out + 32, s2); _mm512_storeu_ps(out + 48, s3);
    _mm512_storeu_ps(out + 64, s4); _mm512_storeu_ps(out + 80, s5);
    _mm512_storeu_ps(out + 96, s6); _mm512_storeu_ps(out + 112, s7);
    if (mr <= 8) return;
    _mm512_storeu_ps(out + 128, s8); _mm512_storeu_ps(out + 144, s9);
    _mm512_storeu_ps(out + 160, s10); _mm512_storeu_ps(out + 176, s11);
    _mm512_storeu_ps(out + 192, s12); _mm512_storeu_ps(out + 208, s13);
    _mm512_storeu_ps(out + 224, s14); _mm512_storeu_ps(out + 240, s15);
}

/* ---- an adapter's terms ---- in f32, on the sums of a tile while they are at hand */

ALWAYS_INLINE __m512 low_step(__m512 sum, const float *h, __m512 v) { return _mm512_fmadd_ps(_mm512_set1_ps(*h), v, sum); }

/* sums[i][c] += h[i*r + k] low[k][c], i < rows, k < r, c < 16. Eight rows at a time; past the end they are the last again. */
static void add_low_rank(float *sums, const float *h, int r, int rows, const float *low)
{
    int i, j, k;
    for (i = 0; i < rows; i += 8, sums += 8 * BF16_COLUMNS) {
        const float *p[8];
        __m512 s0 = _mm512_loadu_ps(sums), s1 = _mm512_loadu_ps(sums + 16), s2 = _mm512_loadu_ps(sums + 32);
        __m512 s3 = _mm512_loadu_ps(sums + 48), s4 = _mm512_loadu_ps(sums + 64), s5 = _mm512_loadu_ps(sums + 80);
        __m512 s6 = _mm512_loadu_ps(sums + 96), s7 = _mm512_loadu_ps(sums + 112);
        for (j = 0; j < 8; j++) p[j] = h + (size_t)smaller(i + j, rows - 1) * (size_t)r;
        for (k = 0; k < r; k++) {
            __m512 v = _mm512_loadu_ps(low + (size_t)k * BF16_COLUMNS);
            s0 = low_step(s0, p[0] + k, v); s1 = low_step(s1, p[1] + k, v);
            s2 = low_step(s2, p[2] + k, v); s3 = low_step(s3, p[3] + k, v);
            s4 = low_step(s4, p[4] + k, v); s5 = low_step(s5, p[5] + k, v);
            s6 = low_step(s6, p[6] + k, v); s7 = low_step(s7, p[7] + k, v);
        }
        _mm512_storeu_ps(sums, s0); _mm512_storeu_ps(sums + 16, s1);
        _mm512_storeu_ps(sums + 32, s2); _mm512_storeu_ps(sums + 48, s3);
        _mm512_storeu_ps(sums + 64, s4); _mm512_storeu_ps(sums + 80, s5);
        _mm512_storeu_ps(sums + 96, s6); _mm512_storeu_ps(sums + 112, s7);
    }
}

/* ---- the product ---- */

struct product {
    int M, N, K;
    const float *a;             /* [M,K] */
    const struct weight *w;     /* B = W^T, or W */
    int transposed;
    float *c;                   /* [M,N] */
    float scale;
    const float *bias;          /* [N] or NULL */
    int accumulate;
    const float *h;             /* [M,r] of an adapter, or NULL; scale is 1 then */
    const float *low;           /* its matrix: [N,r] where transposed, else [r,N] */
    int r;
    int amx;
};

/* panel[k][c] = the adapter's matrix, k < r, of column n + c, c < 16; columns past the end are 0 */
static void pack_low_rank(float *panel, const struct product *g, int n)
{
    size_t row = g->transposed ? 1 : (size_t)g->N, column = g->transposed ? (size_t)g->r : 1;
    int k, c, have = smaller(BF16_COLUMNS, g->N - n);
    for (k = 0; k < g->r; k++, panel += BF16_COLUMNS)
        for (c = 0; c < BF16_COLUMNS; c++) panel[c] = c < have ? g->low[(size_t)k * row + (size_t)(n + c) * column] : 0;
}

/* c = scale * sum + bias, or +=, for `columns` of 16; the first run of terms brings the bias. */
static void put_sums(float *c, const float *sums, const struct product *g, const float *bias, int columns, int add)
{
    __mmask16 have = (__mmask16)((1u << columns) - 1);
    __m512 v = _mm512_mul_ps(_mm512_loadu_ps(sums), _mm512_set1_ps(g->scale));
    if (bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(have, bias));
    if (add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(have, c), v);
    if (columns == BF16_COLUMNS) _mm512_storeu_ps(c, v);
    else _mm512_mask_storeu_ps(c, have, v);
}

/* Rows m .. m + rows - 1 (at most AT_ONCE tiles) of 16 columns of C, over one run of terms. */
static void put_tiles(const struct product *g, const bf16 *a, const bf16 *panel, int terms, int m, int rows, int n,
                      int first, struct scratch *s)
{
    float *sums = s->sums;
    int r, columns = smaller(BF16_COLUMNS, g->N - n);
    float *c = g->c + (size_t)m * (size_t)g->N + (size_t)n;
    for (r = 0; r < rows; r++) _mm_prefetch((const char *)(c + (size_t)r * (size_t)g->N), _MM_HINT_T0);
    if (g->amx) {
        amx_sums(sums, a, (size_t)terms * BF16_ROWS, panel, (rows + BF16_ROWS - 1) / BF16_ROWS, terms);
    } else {
        for (r = 0; r < rows; r += BF16_ROWS) {
            const bf16 *tile = a + (size_t)r * (size_t)terms;
            if (rows - r > 8) tile_sums(16, terms, tile, panel, sums + r * BF16_COLUMNS);
            else tile_sums(8, terms, tile, panel, sums + r * BF16_COLUMNS);
        }
    }
    if (first && g->h) add_low_rank(sums, g->h + (size_t)m * (size_t)g->r, g->r, rows, s->low);
    for (r = 0; r < rows; r++, c += g->N)
        put_sums(c, sums + r * BF16_COLUMNS, g, first && g->bias ? g->bias + n : NULL, columns, !first || g->accumulate);
}

/* A block of the work: rows m0 .. m1 - 1, terms k0 .. k1 - 1 in runs of `run`, and A packed: [run][tile]. */
struct block { int m0, m1, k0, k1, run; bf16 *packed; };

/* Runs of nearly equal length, so that none is short (bf16.h: this decides the bits). */
static int run_length(int K)
{
    int runs = (K + BF16_KC - 1) / BF16_KC;
    return round_up((K + runs - 1) / runs, BF16_TERMS);
}

/* Where the tile of row m begins, in the run that begins at term k. */
static bf16 *tile_at(const struct block *b, int m, int k)
{
    int terms = round_up(smaller(b->run, b->k1 - k), BF16_TERMS);
    return b->packed + (size_t)(k - b->k0) * (size_t)round_up(b->m1 - b->m0, BF16_ROWS) + (size_t)(m - b->m0) * (size_t)terms;
}

/* Columns n .. of C, rows m0 .. m1 - 1 of the block. */
static void columns(const struct product *g, const struct block *b, int n, int m0, int m1, struct scratch *s)
{
    int width = g->transposed ? BF16_COLUMNS : GROUP, k, p, m;
    for (k = b->k0; k < b->k1; k += b->run) {
        int run = smaller(b->run, b->k1 - k);
        if (g->transposed) pack_transposed(g->w, n, k, run, s);
        else pack_copied(g->w, k, run, n, s);
        for (p = 0; p < width && n + p < g->N; p += BF16_COLUMNS) {
            if (!k && g->h) pack_low_rank(s->low, g, n + p);
            for (m = m0; m < m1; m += AT_ONCE * BF16_ROWS)
                put_tiles(g, tile_at(b, m, k), s->panels + p / BF16_COLUMNS * PANEL, round_up(run, BF16_TERMS), m,
                          smaller(AT_ONCE * BF16_ROWS, m1 - m), n + p, k == 0, s);
        }
    }
}

/* Into how many pieces rows are cut, so that every thread gets several tasks. */
static int row_pieces(int tiles, int groups, int threads)
{
    int pieces = threads == 1 ? 1 : (6 * threads + groups - 1) / groups;
    return larger(1, smaller(pieces, tiles / 8));
}

/* Called by all threads of a team, for one block. */
static void product_block(struct kernel_ctx *c, const struct product *g, const struct block *b)
{
    int width = g->transposed ? BF16_COLUMNS : GROUP, groups = (g->N + width - 1) / width;
    int tiles = (b->m1 - b->m0 + BF16_ROWS - 1) / BF16_ROWS, pieces = row_pieces(tiles, groups, c->threads), i;
#pragma omp for schedule(dynamic)
    for (i = 0; i < tiles; i++) {
        int m = b->m0 + i * BF16_ROWS, k;
        for (k = b->k0; k < b->k1; k += b->run)
            pack_rows(tile_at(b, m, k), g->a + (size_t)m * (size_t)g->K + (size_t)k, (size_t)g->K,
                      smaller(BF16_ROWS, b->m1 - m), smaller(b->run, b->k1 - k));
    }
#pragma omp for schedule(dynamic)
    for (i = 0; i < groups * pieces; i++) {
        int piece = i % pieces, from = tiles * piece / pieces, to = tiles * (piece + 1) / pieces;
        columns(g, b, i / pieces * width, b->m0 + from * BF16_ROWS, smaller(b->m0 + to * BF16_ROWS, b->m1),
                (struct scratch *)c->work + thread_number());
    }
}

static void product(struct kernel_ctx *c, const struct product *g)
{
    if (g->M <= 0 || g->N <= 0 || g->K <= 0) return;
#pragma omp parallel num_threads(c->threads) if((double)g->M * g->N * g->K > PARALLEL_WORK)
    {
        struct block b;
        b.packed = (bf16 *)(void *)((struct scratch *)c->work + c->threads);
        b.run = run_length(g->K);
        if (g->amx) amx_begin();
        for (b.m0 = 0; b.m0 < g->M; b.m0 = b.m1) {
            b.m1 = smaller(b.m0 + ROWS_PACKED, g->M);
            for (b.k0 = 0; b.k0 < g->K; b.k0 = b.k1) {
                b.k1 = smaller(b.k0 + TERMS_PACKED / b.run * b.run, g->K);
                product_block(c, g, &b);
            }
        }
        if (g->amx) amx_end();
    }
}

/* ---- the operations ---- */

/* C of M rows and a frozen weight's N columns, over its K others. */
static int frozen_product(struct kernel_ctx *c, struct product *g, const struct weight *w, int transposed)
{
    if (!vec_can_read(w)) return KERNEL_UNSUPPORTED;
    g->N = transposed ? w->rows : w->cols;
    g->K = transposed ? w->cols : w->rows;
    g->w = w;
    g->transposed = transposed;
    g->amx = amx_ready();
    product(c, g);
    return 0;
}

int bf16_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias, double scale,
                const buf *h, const struct weight *b, int accumulate, int N)
{
    struct product g = { 0 };
    g.M = N;
    g.a = (const float *)x;
    g.c = (float *)out;
    g.scale = (float)scale;
    g.bias = (const float *)bias;
    g.accumulate = accumulate;
    if (h) {
        g.h = (const float *)h;
        g.low = (const float *)b->data + vec_element(b, 0, 0);
        g.r = b->cols;
    }
    return frozen_product(c, &g, w, 1);
}

int bf16_matmul_dx(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w, double scale,
                   const buf *gh, const struct weight *a, int accumulate, int N)
{
    struct product g = { 0 };
    g.M = N;
    g.a = (const float *)dout;
    g.c = (float *)dx;
    g.scale = (float)scale;
    g.accumulate = accumulate;
    if (gh) {
        g.h = (const float *)gh;
        g.low = (const float *)a->data + vec_element(a, 0, 0);
        g.r = a->rows;
    }
    return frozen_product(c, &g, w, 0);
}

int bf16_usable(char *why, size_t n)
{
    unsigned a, b, c, d;
    __builtin_cpu_init();       /* asks the system too whether it saves 512-bit registers */
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512dq") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVX512BF16)) {
        snprintf(why, n, "%s", amx_ready() ? "AMX-BF16" : "AVX512-BF16");
        return 1;
    }
    snprintf(why, n, "this processor has no AVX512-BF16");
    return 0;
}

#else

int bf16_usable(char *why, size_t n)
{
    snprintf(why, n, "not built: the compiler makes no AVX512-BF16 code");
    return 0;
}

/* Where bf16_usable() says 0 nobody comes here. */
size_t bf16_gemm_bytes(const struct kernel_sizes *s) { return s ? 0 : 0; }

int bf16_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias, double scale,
                const buf *h, const struct weight *b, int accumulate, int N)
{
    (void)c, (void)out, (void)x, (void)w, (void)bias, (void)scale, (void)h, (void)b, (void)accumulate, (void)N;
    return KERNEL_UNSUPPORTED;
}

int bf16_matmul_dx(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w, double scale,
                   const buf *gh, const struct weight *a, int accumulate, int N)
{
    return bf16_matmul(c, dx, dout, w, NULL, scale, gh, a, accumulate, N);
}

#endif
