/* gemm_avx2.c - products with weights of any type.
 *
 * All three products are one, C[M,N] = A[M,K] B[K,N], with A read through two strides and B a
 * weight or its transpose:
 *     matmul      rows x outputs, over inputs     B = W^T: strips of NR rows, transposed into the panel
 *     matmul_dx   rows x inputs, over outputs     B = W:   strips of two panels' columns, copied
 *     matmul_dw   outputs x inputs, over rows     B = x
 * A thread takes a panel of NR columns, decodes KC x NR of B into its own scratch, which stays in L1
 * while all rows of A go by, and takes the next KC. So decoding is paid once for all rows, whatever
 * the type, and no thread waits for another's panel. A goes by from L2 in the order in which it is
 * read, packed before by all threads when enough columns use it. (Goto and van de Geijn 2008 keep
 * A in L2 and B in L1 likewise; the panel that is private to a thread is what decoding asks for.) */
#include "avx2.h"
#include "bf16.h"

#ifdef HAVE_AVX2

enum {
    GROUP = 2 * NR,         /* columns that a copied strip fills: a block of the quantised types */
    MC = 768,               /* rows packed at a time: KC columns of them are 768 KiB */
    KS = 8 * KC,            /* terms packed at a time */
    SHORT = 64,             /* inputs below which a dot product costs more than a panel does */
    PACK_FROM = 48          /* columns that make packing A worth its while */
};

/* A thread's scratch, in floats: panels of a group, and strips on their way there. */
enum { PANELS = KC * GROUP, STRIPS = KC * NR, OF_THREAD = PANELS + STRIPS };

size_t NAMED(gemm_bytes)(const struct kernel_sizes *s)
{
    int rows = smaller(round_up(larger(s->N, s->width), MR), MC);
    int terms = smaller(larger(larger(s->N, s->width), s->V), KS);
    return sizeof(float) * ((size_t)OF_THREAD * (size_t)larger(s->threads, 1) + (size_t)rows * (size_t)terms);
}

static float *thread_scratch(const struct kernel_ctx *c, int thread)
{
    return (float *)c->work + (size_t)thread * OF_THREAD;
}

/* ---- packing ---- */

#ifndef WIDE
/* out[i*stride + r] = rows[r][i], r < 8, i < 8 */
static void transpose8(float *out, size_t stride, const float *const *rows, int i)
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

void avx2_transpose(float *out, size_t stride, const float *const *rows, int n)
{
    int i = 0, r;
    for (; i + 8 <= n; i += 8) transpose8(out + (size_t)i * stride, stride, rows, i);
    for (; i < n; i++)
        for (r = 0; r < 8; r++) out[(size_t)i * stride + (size_t)r] = rows[r][i];
}
#endif

/* panel[i][r] = W[row + r][col + i], i < n, r < NR; rows past the end are 0 */
static void pack_transposed(float *panel, const struct weight *w, int row, int col, int n, float *space)
{
    const float *rows[NR];
    int r, have = smaller(NR, w->rows - row);
    for (r = 0; r < NR; r++) {
        float *s = space + (size_t)r * KC;
        if (r < have) rows[r] = avx2_strip(w, row + r, col, n, s);
        else rows[r] = memset(s, 0, sizeof(float) * (size_t)n);
    }
    for (r = 0; r < NR; r += 8) avx2_transpose(panel + r, NR, rows + r, n);
}

/* panels[p][k][i] = W[row + k][col + NR p + i], k < n, i < NR, p < 2; columns past the end are 0 */
static void pack_copied(float *panels, const struct weight *w, int row, int n, int col, float *space)
{
    int k, have = smaller(GROUP, w->cols - col), direct = have == GROUP && avx2_lies_as_floats(w);
    const float *s = direct ? (const float *)w->data + avx2_element(w, row, col) : space;
    float *low = panels, *high = panels + KC * NR;
    memset(space, 0, sizeof(float) * GROUP);
    for (k = 0; k < n; k++, low += NR, high += NR) {
        if (!direct) avx2_decode(w, row + k, col, have, space);
        vec_store(low, vec_load(s));
        vec_store(low + LANES, vec_load(s + LANES));
        vec_store(high, vec_load(s + NR));
        vec_store(high + LANES, vec_load(s + NR + LANES));
        if (direct) s += w->cols;
    }
}

/* to[k][r] = a[r*row + k*step], r < mr: a tile's rows, MR apart */
static void pack_rows(float *to, const float *a, size_t row, size_t step, int mr, int n)
{
    int k, r;
    if (step == 1)
        for (r = 0; r < mr; r++)
            for (k = 0; k < n; k++) to[(size_t)k * MR + (size_t)r] = a[(size_t)r * row + (size_t)k];
    else
        for (k = 0; k < n; k++)
            for (r = 0; r < mr; r++) to[(size_t)k * MR + (size_t)r] = a[(size_t)r * row + (size_t)k * step];
}

/* ---- the product ---- */

struct product {
    int M, N, K;
    const float *a;             /* A[m][k] = a[m*a_row + k*a_step] */
    size_t a_row, a_step;
    const struct weight *w;     /* B = W^T, or W */
    int transposed;
    float *c;                   /* C[m][n] = c[m*c_row + n*c_step]; with c_step > 1 it is added to */
    size_t c_row, c_step;
    float scale;
    const float *bias;          /* [N] or NULL */
    int accumulate;
};

/* c[n] += v[n], n <= 8: no masked store, which some processors are slow at */
static void add_few(float *c, const float *v, int n)
{
    int i;
    for (i = 0; i + 4 <= n; i += 4) _mm_storeu_ps(c + i, _mm_add_ps(_mm_loadu_ps(c + i), _mm_loadu_ps(v + i)));
    for (; i < n; i++) c[i] += v[i];
}

/* Adds a tile to a result that lies the other way: c[i*step + r] += block[r][i]. */
static void add_turned(int mr, int columns, const float *block, float *c, size_t step)
{
    const float *rows[8], none[NR] = { 0 };
    float turned[NR * 8];
    int i, r, from;
    for (from = 0; from < mr; from += 8) {
        for (r = 0; r < 8; r++) rows[r] = from + r < mr ? block + (from + r) * NR : none;
        avx2_transpose(turned, 8, rows, NR);
        for (i = 0; i < columns; i++) add_few(c + (size_t)i * step + from, turned + 8 * i, smaller(8, mr - from));
    }
}

/* One tile of C over one run of K. */
ALWAYS_INLINE void tile_rows(int mr, int K, const float *a, size_t row, size_t step, const float *panel,
                             const struct product *g, int m, int n, int first)
{
    float *c = g->c + (size_t)m * g->c_row + (size_t)n * g->c_step;
    struct put p;
    struct tile t;
    int r;
    p.scale = vec_all(g->scale);
    p.bias = first && g->bias ? g->bias + n : NULL;
    p.columns = smaller(NR, g->N - n);
    p.add = !first || g->accumulate;
    if (p.add)
        for (r = 0; r < mr; r++) _mm_prefetch((const char *)(c + (size_t)r * g->c_row), _MM_HINT_T0);
    t = tile(mr, K, a, row, step, panel, NR);
    if (g->c_step != 1) {
        struct put plain = { p.scale, NULL, NR, 0 };
        float block[MR * NR];
        put_tile(mr, &t, block, NR, &plain);
        add_turned(mr, p.columns, block, c, g->c_step);
    } else if (p.columns == NR && p.add && !p.bias) {       /* what nearly all tiles are */
        struct put plain = { p.scale, NULL, NR, 1 };
        put_tile(mr, &t, c, g->c_row, &plain);
    } else {
        put_tile(mr, &t, c, g->c_row, &p);
    }
}

static void tile_any(int mr, int K, const float *a, size_t row, size_t step, const float *panel,
                     const struct product *g, int m, int n, int first)
{
    switch (mr) {
#ifdef WIDE
    case 12: tile_rows(12, K, a, row, step, panel, g, m, n, first); break;
    case 11: tile_rows(11, K, a, row, step, panel, g, m, n, first); break;
    case 10: tile_rows(10, K, a, row, step, panel, g, m, n, first); break;
    case 9: tile_rows(9, K, a, row, step, panel, g, m, n, first); break;
    case 8: tile_rows(8, K, a, row, step, panel, g, m, n, first); break;
    case 7: tile_rows(7, K, a, row, step, panel, g, m, n, first); break;
#endif
    case 6: tile_rows(6, K, a, row, step, panel, g, m, n, first); break;
    case 5: tile_rows(5, K, a, row, step, panel, g, m, n, first); break;
    case 4: tile_rows(4, K, a, row, step, panel, g, m, n, first); break;
    case 3: tile_rows(3, K, a, row, step, panel, g, m, n, first); break;
    case 2: tile_rows(2, K, a, row, step, panel, g, m, n, first); break;
    default: tile_rows(1, K, a, row, step, panel, g, m, n, first);
    }
}

/* A block of the work: rows m0 .. m1 - 1, terms k0 .. k1 - 1, and A packed, or NULL. */
struct block { int m0, m1, k0, k1; const float *packed; };

/* Columns n .. of C, rows m0 .. m1 - 1 of the block (multiples of MR from its start). */
static void columns(const struct product *g, const struct block *b, int n, int m0, int m1, float *scratch)
{
    int width = g->transposed ? NR : GROUP, k, p, m;
    for (k = b->k0; k < b->k1; k += KC) {
        int K = smaller(KC, b->k1 - k);
        if (g->transposed) pack_transposed(scratch, g->w, n, k, K, scratch + PANELS);
        else pack_copied(scratch, g->w, k, K, n, scratch + PANELS);
        for (p = 0; p < width && n + p < g->N; p += NR)
            for (m = m0; m < m1; m += MR) {
                int mr = smaller(MR, m1 - m);
                const float *panel = scratch + (size_t)p * KC;
                if (b->packed)
                    tile_any(mr, K, b->packed + (size_t)(k - b->k0) * (size_t)round_up(b->m1 - b->m0, MR)
                                 + (size_t)(m - b->m0) * (size_t)K, 1, MR, panel, g, m, n + p, k == 0);
                else
                    tile_any(mr, K, g->a + (size_t)m * g->a_row + (size_t)k * g->a_step,
                             g->a_row, g->a_step, panel, g, m, n + p, k == 0);
            }
    }
}

/* packed[run of KC][tile][k][MR] */
static void pack_tile(float *packed, const struct product *g, const struct block *b, int m)
{
    int k;
    for (k = b->k0; k < b->k1; k += KC) {
        int K = smaller(KC, b->k1 - k);
        pack_rows(packed + (size_t)(k - b->k0) * (size_t)round_up(b->m1 - b->m0, MR)
                      + (size_t)(m - b->m0) * (size_t)K,
                  g->a + (size_t)m * g->a_row + (size_t)k * g->a_step, g->a_row, g->a_step,
                  smaller(MR, b->m1 - m), K);
    }
}

/* Into how many pieces rows are cut, so that every thread gets several tasks. */
static int row_pieces(int tiles, int groups, int threads)
{
    int pieces = threads == 1 ? 1 : (6 * threads + groups - 1) / groups;
    return larger(1, smaller(pieces, tiles / 8));
}

/* Called by all threads of a team, for one block. */
static void product_block(struct kernel_ctx *c, const struct product *g, const struct block *b, float *space)
{
    int width = g->transposed ? NR : GROUP, groups = (g->N + width - 1) / width;
    int tiles = (b->m1 - b->m0 + MR - 1) / MR, pieces = row_pieces(tiles, groups, c->threads), i;
    if (b->packed) {
#pragma omp for schedule(dynamic)
        for (i = 0; i < tiles; i++) pack_tile(space, g, b, b->m0 + i * MR);
    }
#pragma omp for schedule(dynamic)
    for (i = 0; i < groups * pieces; i++) {
        int piece = i % pieces, from = tiles * piece / pieces, to = tiles * (piece + 1) / pieces;
        columns(g, b, i / pieces * width, b->m0 + from * MR, smaller(b->m0 + to * MR, b->m1),
                thread_scratch(c, thread_number()));
    }
}

static void product(struct kernel_ctx *c, const struct product *g)
{
    float *space = thread_scratch(c, c->threads);
    size_t have = c->work_bytes / sizeof(float) - (size_t)OF_THREAD * (size_t)c->threads;
    if (g->M <= 0 || g->N <= 0 || g->K <= 0) return;
#pragma omp parallel num_threads(c->threads) if((double)g->M * g->N * g->K > PARALLEL_WORK)
    {
        struct block b;
        for (b.m0 = 0; b.m0 < g->M; b.m0 = b.m1) {
            b.m1 = smaller(b.m0 + MC, g->M);
            for (b.k0 = 0; b.k0 < g->K; b.k0 = b.k1) {
                b.k1 = smaller(b.k0 + KS, g->K);
                b.packed = g->N >= PACK_FROM && (size_t)round_up(b.m1 - b.m0, MR) * (size_t)(b.k1 - b.k0) <= have
                    ? space : NULL;
                product_block(c, g, &b, space);
            }
        }
    }
}

/* ---- the operations ---- */

#ifndef WIDE
int avx2_embed(struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N)
{
    int n;
    (void)c;            /* a build without OpenMP has no threads to ask for */
    if (!avx2_can_read(w)) return KERNEL_UNSUPPORTED;
#pragma omp parallel for num_threads(c->threads) if((double)N * w->cols > PARALLEL_WORK)
    for (n = 0; n < N; n++)
        avx2_decode(w, ((const int *)ids)[n], 0, w->cols, (float *)out + (size_t)n * (size_t)w->cols);
    return 0;
}
#endif

int NAMED(matmul)(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w,
                const buf *bias, double scale, int accumulate, int N)
{
    struct product g;
    if (bf16_applies(c, w, N)) return bf16_matmul(c, out, x, w, bias, scale, accumulate, N);
    if (!avx2_can_read(w)) return KERNEL_UNSUPPORTED;
    if (N <= 0 || w->cols <= 0 || w->rows <= 0) return 0;
    if (N < FEW_ROWS && w->cols > SHORT) {
        avx2_product_few(c, (float *)out, (const float *)x, w, (const float *)bias, (float)scale, accumulate, N);
        return 0;
    }
    g.M = N;
    g.N = w->rows;
    g.K = w->cols;
    g.a = (const float *)x;
    g.a_row = (size_t)w->cols;
    g.a_step = 1;
    g.w = w;
    g.transposed = 1;
    g.c = (float *)out;
    g.c_row = (size_t)w->rows;
    g.c_step = 1;
    g.scale = (float)scale;
    g.bias = (const float *)bias;
    g.accumulate = accumulate;
    product(c, &g);
    return 0;
}

int NAMED(matmul_dx)(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w,
                   double scale, int accumulate, int N)
{
    struct product g;
    if (bf16_applies(c, w, N)) return bf16_matmul_dx(c, dx, dout, w, scale, accumulate, N);
    if (!avx2_can_read(w)) return KERNEL_UNSUPPORTED;
    g.M = N;
    g.N = w->cols;
    g.K = w->rows;
    g.a = (const float *)dout;
    g.a_row = (size_t)w->rows;
    g.a_step = 1;
    g.w = w;
    g.transposed = 0;
    g.c = (float *)dx;
    g.c_row = (size_t)w->cols;
    g.c_step = 1;
    g.scale = (float)scale;
    g.bias = NULL;
    g.accumulate = accumulate;
    product(c, &g);
    return 0;
}

/* The wider of the two sides goes into panels: a thin one there would leave A, read by columns, to
 * go by for 16 columns only. The same bits either way. */
void NAMED(matmul_dw)(struct kernel_ctx *c, buf *dw, const buf *dout, const buf *x,
                    double scale, int N, int O, int I)
{
    int turned = O > I;
    struct weight w = { 0 };
    struct product g;
    w.type = TYPE_REAL;
    w.rows = N;
    w.cols = turned ? O : I;
    w.data = turned ? dout : x;
    g.M = turned ? I : O;
    g.N = w.cols;
    g.K = N;
    g.a = (const float *)(turned ? x : dout);
    g.a_row = 1;
    g.a_step = (size_t)g.M;
    g.w = &w;
    g.transposed = 0;
    g.c = (float *)dw;
    g.c_row = turned ? 1 : (size_t)I;
    g.c_step = turned ? (size_t)I : 1;
    g.scale = (float)scale;
    g.bias = NULL;
    g.accumulate = 1;
    product(c, &g);
}

#endif
