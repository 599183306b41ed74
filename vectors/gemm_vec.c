/* gemm_vec.c - products with weights of any type.
 *
 * All three products are one, C[M,N] = A[M,K] B[K,N], with A read through two strides and B a
 * weight or its transpose:
 *     matmul      rows x outputs, over inputs     B = W^T: strips of NR rows, transposed into the panel
 *     matmul_dx   rows x inputs, over outputs     B = W:   strips of GROUP columns, copied
 *     matmul_dw   outputs x inputs, over rows     B = x
 * Of an adapted linear the low rank is a few more terms: [x | h] times [W | B]^T, or [dout | gh] times
 * [W ; A], and the packing takes what lies behind K from there. So it costs its multiply-adds, and
 * nobody goes over the result again. h = s x A^T itself, or gh = s dout B, is made of x's packed tiles while
 * they are in the nearest cache, so nobody reads x twice either.
 *
 * A thread takes a panel of NR columns, decodes a run's terms of B into its own scratch, which stays in the
 * nearest caches while all rows of A go by, and takes the next run. So decoding is paid once for all rows,
 * whatever the type, and no thread waits for another's panel. A goes by from L2 in the order in which it is
 * read, packed before by all threads when enough columns use it. (Goto and van de Geijn 2008 keep
 * A in L2 and B in L1 likewise; the panel that is private to a thread is what decoding asks for.) What the
 * next panel is made of is fetched meanwhile: weights come from memory, once for each product. */
#include "vectors.h"
#include "bf16.h"

enum {
    UNIT = 32, GROUP = 64,  /* columns that a copied strip fills: whole blocks of 32, of the types that have them */
    MC = 768,               /* rows packed at a time */
    KS = 1600 / KC * KC,    /* terms packed at a time: whole runs */
    PAGE = 1024,            /* numbers: as many as the lines of a way of the L1 hold */
    SHORT = 64,             /* inputs below which a dot product costs more than a panel does */
    STRIP = 128,            /* terms of a panel's rows that are decoded at a time to be transposed: 16 KiB */
    AT_ONCE = 16,           /* rows of a weight that are decoded at a time to be copied: 4 KiB */
    DW_ROWS = 64,           /* rows between which sums of a thin gradient go to memory */
    PACK_FROM = 48,         /* columns that make packing A worth its while */
    FETCH_FROM = 1 << 16    /* numbers of a weight that is not likely to lie in a cache */
};

/* A thread's scratch, in floats: panels of a group, strips on their way there, and sums. */
enum { PANELS = KC * GROUP, STRIPS = STRIP * NR, SUMS = MC * GROUP, OF_THREAD = PANELS + STRIPS + SUMS };

/* The whole panel of a thin product and the strips that it is made of lie there too: pack_thin(). */
typedef char thin_panel_fits[KS * NR + STRIPS <= OF_THREAD ? 1 : -1];

size_t NAMED(gemm_bytes)(const struct kernel_sizes *s)
{
    int rows = smaller(round_up(larger(s->N, s->width), MR), MC);
    int terms = smaller(2 * smaller(larger(larger(s->N, s->width), s->V), KS), KS);     /* of an adapted linear: no more than twice */
    return sizeof(float) * ((size_t)OF_THREAD * (size_t)larger(s->threads, 1) + (size_t)rows * (size_t)terms);
}

static float *thread_scratch(const struct kernel_ctx *c, int thread)
{
    return (float *)c->work + (size_t)thread * OF_THREAD;
}

/* Floats behind the threads' own: for A, packed. */
static size_t spare(const struct kernel_ctx *c)
{
    return c->work_bytes / sizeof(float) - (size_t)OF_THREAD * (size_t)c->threads;
}

/* The terms are cut into runs of nearly equal length, so that none is short, at multiples of 32 (see tile.h:
 * this decides the bits). */
static int run_length(int K)
{
    int runs = larger((K + KC - 1) / KC, 1);
    return round_up((K + runs - 1) / runs, 32);
}

/* ---- packing ---- */

void NAMED(transpose)(float *out, size_t stride, const float *const *rows, int n)
{
    int i = 0, r;
    for (; i + TURNED <= n; i += TURNED) transpose_square(out + (size_t)i * stride, stride, rows, i);
    for (; i < n; i++)
        for (r = 0; r < TURNED; r++) out[(size_t)i * stride + (size_t)r] = rows[r][i];
}

/* panel[i][r] = W[row + r][col + i], i < n, r < NR; rows past the end are 0 */
static void pack_transposed(float *panel, const struct weight *w, int row, int col, int n, float *space)
{
    const float *rows[NR];
    int have = smaller(NR, w->rows - row), direct = vec_lies_as_floats(w), i, r, m;
    if (have < NR) memset(space, 0, sizeof(float) * NR * STRIP);
    for (i = 0; i < n; i += m, panel += (size_t)m * NR) {
        m = smaller(STRIP, n - i);
        if (!direct) NAMED(decode_rows)(w, row, have, col + i, m, space, STRIP);
        for (r = 0; r < NR; r++)
            rows[r] = direct && r < have ? (const float *)w->data + vec_element(w, row + r, col + i) : space + r * STRIP;
        for (r = 0; r < (have > LANES ? NR : LANES); r += TURNED) NAMED(transpose)(panel + r, NR, rows + r, m);     /* as many as tiles read */
    }
}

/* panels[p][k][i] = W[row + k][col + NR p + i], k < n, i < NR, NR p < width, the panels `apart`; columns past the end are 0 */
static void pack_copied(float *panels, size_t apart, const struct weight *w, int row, int n, int col, int width, float *space)
{
    int k, i, have = smaller(width, w->cols - col), direct = have == width && vec_lies_as_floats(w);
    const float *s = direct ? (const float *)w->data + vec_element(w, row, col) : space;
    if (NR % UNIT == 0 && !direct && have == width) {       /* whole blocks of the types that have them */
        for (i = 0; i < width; i += NR) NAMED(decode_rows)(w, row, n, col + i, NR, panels + (size_t)(i / NR) * apart, NR);
        return;
    }
    if (have < width) memset(space, 0, sizeof(float) * GROUP * AT_ONCE);
    for (k = 0; k < n; k++, panels += NR, s += direct ? w->cols : GROUP) {
        if (!direct && k % AT_ONCE == 0) {
            NAMED(decode_rows)(w, row + k, smaller(AT_ONCE, n - k), col, have, space, GROUP);
            s = space;
        }
        for (i = 0; i < width; i += NR) {
            vec_store(panels + (size_t)(i / NR) * apart, vec_load(s + i));
            vec_store(panels + (size_t)(i / NR) * apart + LANES, vec_load(s + i + LANES));
        }
    }
}

/* to[k][r] = a[r*row + k*step], r < mr: a tile's rows, MR apart. Fours of rows are taken from the last to the
 * first, so that what one writes too much, where MR is not whole fours, the next makes good. */
static void pack_rows(float *to, const float *a, size_t row, size_t step, int mr, int n)
{
    int k = 0, r, i;
#ifdef WIDE
    const float *lines[MR];
    for (r = 0; r < MR; r++) lines[r] = a + (size_t)smaller(r, mr - 1) * row;
    if (step == 1)
        for (; k + 16 <= n; k += 16) interleave_all(to + (size_t)k * MR, lines, k);
#endif
    if (step == 1)
        for (; k + 8 + (MR % 4 != 0) <= n; k += 8)
            for (r = (mr - 1) / 4 * 4; r >= 0; r -= 4) {
                const float *rows[4];
                for (i = 0; i < 4; i++) rows[i] = a + (size_t)smaller(r + i, mr - 1) * row + k;
                interleave(to + (size_t)k * MR + r, MR, rows);
            }
    for (; k < n; k++)
        for (r = 0; r < mr; r++) to[(size_t)k * MR + (size_t)r] = a[(size_t)r * row + (size_t)k * step];
}

/* ---- the product ---- */

/* Some of the terms: K of them, A[m][k] = a[m*row + k*step] and B = W^T, or W. */
struct part { int K; const float *a; size_t row, step; const struct weight *w; };

struct product {
    int M, N, K;                /* K: of both parts together */
    struct part part[2];        /* the second is an adapter's, or none */
    int run;                    /* the most terms of a run */
    const struct product *thin; /* makes the second part's a of the first's, with as long runs; or NULL: it is there */
    int transposed;
    float *c;                   /* C[m][n] = c[m*c_row + n*c_step]; with c_step > 1 it is added to */
    size_t c_row, c_step;
    float scale;
    const float *bias;          /* [N] or NULL */
    int accumulate;
    int fetch;                  /* B comes from memory: bring the next panel's nearer */
};

/* Of the terms k .. k + n - 1 those of part p: their number, the first in *from, as a term of that part. */
static int terms_of(const struct product *g, int p, int k, int n, int *from)
{
    int start = p ? g->part[0].K : 0;
    *from = larger(k - start, 0);
    return smaller(k + n - start, g->part[p].K) - *from;
}

/* The panel, or the panels of a group KC*NR apart, of `width` columns n .. and the terms k .. k + K - 1. */
static void pack_panels(const struct product *g, int n, int width, int k, int K, float *scratch)
{
    int p, from, terms;
    for (p = 0; p < 2; p++) {
        const struct part *t = &g->part[p];
        float *to;
        if ((terms = terms_of(g, p, k, K, &from)) <= 0) continue;
        to = scratch + (size_t)(p ? from + g->part[0].K - k : 0) * NR;
        if (g->transposed) pack_transposed(to, t->w, n, from, terms, scratch + PANELS);
        else pack_copied(to, KC * NR, t->w, from, terms, n, width, scratch + PANELS);
    }
}

/* ---- fetching ---- */

/* What `width` columns n .. and the terms k .. k + K - 1 of the first part are made of, to be asked for by tiles of `terms`
 * terms together. */
static struct ahead strips_of(const struct product *g, int n, int width, int k, int K, long long terms)
{
    const struct weight *w = g->part[0].w;
    int real = w->type == TYPE_REAL, block = real ? 1 : weight_types[w->type].block;
    int run = smaller(K, g->part[0].K - k);
    size_t bytes = real ? sizeof(float) : (size_t)weight_types[w->type].bytes;
    struct ahead f = { NULL, 0, 0, 0, 0, 1 };
    width = smaller(width, g->N - n);
    if (!g->fetch || run <= 0 || width <= 0) return f;
    f.rows = g->transposed ? width : run;
    f.bytes = ((size_t)(g->transposed ? run : width) + (size_t)block - 1) / (size_t)block * bytes;
    if (f.bytes % 64) f.bytes += 32;        /* rows begin anywhere in a line: most of them end in one more */
    f.apart = (size_t)w->cols / (size_t)block * bytes;
    f.row = (const char *)w->data + vec_element(w, g->transposed ? n : k, g->transposed ? k : n) / (size_t)block * bytes;
    f.every = larger(1, (int)(terms / (f.rows * (long long)(f.bytes / 64 + 1))));
    return f;
}

/* ---- tiles ---- */

/* c[n] += v[n], n <= TURNED: no masked store, which some processors are slow at */
static void add_few(float *c, const float *v, int n)
{
    int i;
    for (i = 0; i + 4 <= n; i += 4) add_four(c + i, v + i);
    for (; i < n; i++) c[i] += v[i];
}

/* Adds a tile to a result that lies the other way: c[i*step + r] += block[r][i]. */
static void add_turned(int mr, int columns, const float *block, float *c, size_t step)
{
    const float *rows[TURNED], none[NR] = { 0 };
    float turned[NR * TURNED];
    int i, r, from;
    for (from = 0; from < mr; from += TURNED) {
        for (r = 0; r < TURNED; r++) rows[r] = from + r < mr ? block + (from + r) * NR : none;
        NAMED(transpose)(turned, TURNED, rows, NR);
        for (i = 0; i < columns; i++) add_few(c + (size_t)i * step + from, turned + TURNED * i, smaller(TURNED, mr - from));
    }
}

/* Where a tile's sums go, and what they are added to; from which column, and whether terms came before. */
struct place { const float *old; size_t old_row; float *c; size_t c_row; int n, later; };

/* What few tiles need: a bias, columns that are not whole vectors, a result that lies the other way. */
NEVER_INLINE static void put_block(int mr, const float *block, const struct product *g, const struct place *to, int columns)
{
    struct put p;
    int r;
    p.scale = vec_all(1);
    p.bias = !to->later && g->bias ? g->bias + to->n : NULL;
    p.columns = columns;
    p.add = to->later || g->accumulate;
    if (g->c_step != 1) add_turned(mr, columns, block, to->c, g->c_step);
    else for (r = 0; r < mr; r++) {
        const struct row sums = { vec_load(block + r * NR), vec_load(block + r * NR + LANES) };
        put_row(to->c + (size_t)r * to->c_row, to->old + (size_t)r * to->old_row, &sums, &p);
    }
}

/* One tile of C over one run of K. */
ALWAYS_INLINE void tile_rows(int mr, int vectors, int K, const float *a, size_t row, size_t step, const float *b, size_t ldb,
                             const struct product *g, const struct place *to, struct ahead *next)
{
    int columns = smaller(NR, g->N - to->n), r;
    struct put plain = { vec_all(g->scale), NULL, vectors * LANES, 0 };
    struct tile t;
    if (g->c_step == 1)
        for (r = 0; r < mr; r++) {
            bring_l1(to->c + (size_t)r * to->c_row);
            bring_l1(to->c + (size_t)r * to->c_row + columns - 1);
        }
    t = tile_of(mr, vectors, K, a, row, step, b, ldb, next);
    if (columns == vectors * LANES && (to->later || !g->bias) && g->c_step == 1) {       /* what nearly all tiles are */
        if (!to->later && !g->accumulate) {
            put_tile(mr, &t, to->c, to->c_row, to->old, to->old_row, &plain);
        } else {
            plain.add = 1;
            put_tile(mr, &t, to->c, to->c_row, to->old, to->old_row, &plain);
        }
    } else {
        float block[MR * NR];
        plain.columns = NR;
        put_tile(mr, &t, block, NR, block, NR, &plain);
        put_block(mr, block, g, to, columns);
    }
}

ALWAYS_INLINE void tile_any(int mr, int vectors, int K, const float *a, size_t row, size_t step, const float *b, size_t ldb,
                            const struct product *g, const struct place *to, struct ahead *next)
{
    switch (mr) {
#if MR > 6
    case 12: tile_rows(12, vectors, K, a, row, step, b, ldb, g, to, next); break;
    case 11: tile_rows(11, vectors, K, a, row, step, b, ldb, g, to, next); break;
    case 10: tile_rows(10, vectors, K, a, row, step, b, ldb, g, to, next); break;
    case 9: tile_rows(9, vectors, K, a, row, step, b, ldb, g, to, next); break;
    case 8: tile_rows(8, vectors, K, a, row, step, b, ldb, g, to, next); break;
    case 7: tile_rows(7, vectors, K, a, row, step, b, ldb, g, to, next); break;
#endif
    case 6: tile_rows(6, vectors, K, a, row, step, b, ldb, g, to, next); break;
    case 5: tile_rows(5, vectors, K, a, row, step, b, ldb, g, to, next); break;
    case 4: tile_rows(4, vectors, K, a, row, step, b, ldb, g, to, next); break;
    case 3: tile_rows(3, vectors, K, a, row, step, b, ldb, g, to, next); break;
    case 2: tile_rows(2, vectors, K, a, row, step, b, ldb, g, to, next); break;
    default: tile_rows(1, vectors, K, a, row, step, b, ldb, g, to, next);
    }
}

/* All of a packed tile's rows: what nearly all tiles are, with steps that the compiler knows. */
static void tile_packed(int K, const float *a, const float *panel, const struct product *g, const struct place *to,
                        struct ahead *next)
{
    tile_rows(MR, 2, K, a, 1, MR, panel, NR, g, to, next);
}

static void tile_full(int mr, int K, const float *a, size_t row, size_t step, const float *b, size_t ldb,
                      const struct product *g, const struct place *to, struct ahead *next)
{
    tile_any(mr, 2, K, a, row, step, b, ldb, g, to, next);
}

/* Of one vector's columns: thin products, as those of adapters. */
static void tile_half(int mr, int K, const float *a, size_t row, size_t step, const float *b, size_t ldb,
                      const struct product *g, const struct place *to, struct ahead *next)
{
    tile_any(mr, 1, K, a, row, step, b, ldb, g, to, next);
}

/* A block of the work: rows m0 .. m1 - 1, terms k0 .. k1 - 1, and A packed, or NULL. */
struct block { int m0, m1, k0, k1; float *packed; };

/* A run of a tile's rows in the packed block: [run][tile][k][MR] */
static float *packed_at(const struct block *b, int m, int k, int K)
{
    return b->packed + (size_t)(k - b->k0) * (size_t)round_up(b->m1 - b->m0, MR) + (size_t)(m - b->m0) * (size_t)K;
}

static int fits(const struct block *b, size_t have)
{
    return (size_t)round_up(b->m1 - b->m0, MR) * (size_t)(b->k1 - b->k0) <= have;
}

/* Rows of C that are pages apart share few sets of a cache, which does not keep them from run to run: sums are kept in memory
 * of the thread's own then, until the last run. */
static int in_few_sets(const struct product *g) { return g->c_step == 1 && g->c_row % PAGE == 0; }

/* The tiles of rows m0 .. m1 - 1 with a panel of columns n .. */
static void panel_rows(const struct product *g, const struct block *b, int n, int m0, int m1, int k, int K,
                       const float *panel, float *sums, struct ahead *next)
{
    int m, half = g->N - n <= LANES;
    for (m = m0; m < m1; m += MR) {
        int mr = smaller(MR, m1 - m);
        const float *a = b->packed ? packed_at(b, m, k, K)
                                   : g->part[0].a + (size_t)m * g->part[0].row + (size_t)k * g->part[0].step;
        size_t row = b->packed ? 1 : g->part[0].row, step = b->packed ? MR : g->part[0].step;
        float *c = g->c + (size_t)m * g->c_row + (size_t)n * g->c_step;
        struct place to = { c, g->c_row, c, g->c_row, n, k > 0 };
        if (sums && k > b->k0) {
            to.old = sums + (size_t)(m - m0) * NR;
            to.old_row = NR;
        }
        if (sums && k + K < b->k1) {
            to.c = sums + (size_t)(m - m0) * NR;
            to.c_row = NR;
        }
        if (half) tile_half(mr, K, a, row, step, panel, NR, g, &to, next);
        else if (b->packed && mr == MR) tile_packed(K, a, panel, g, &to, next);
        else tile_full(mr, K, a, row, step, panel, NR, g, &to, next);
    }
}

/* `width` columns n .. of C, rows m0 .. m1 - 1 of the block (multiples of MR from its start). Columns `then` .. are likely
 * to be this thread's next. */
static void columns(const struct product *g, const struct block *b, int n, int width, int then, int m0, int m1, float *scratch)
{
    float *sums = in_few_sets(g) ? scratch + PANELS + STRIPS : NULL;
    int k, p;
    for (k = b->k0; k < b->k1; k += g->run) {
        int K = smaller(g->run, b->k1 - k), more = k + g->run < b->k1;
        struct ahead next = strips_of(g, more ? n : then, width, more ? k + g->run : b->k0, g->run,
                                      (long long)(m1 - m0) / MR * K * ((smaller(width, g->N - n) + NR - 1) / NR));
        pack_panels(g, n, width, k, K, scratch);
        for (p = 0; p < width && n + p < g->N; p += NR)
            panel_rows(g, b, n + p, m0, m1, k, K, scratch + (size_t)p * KC, sums ? sums + (size_t)p * MC : NULL, &next);
    }
}

/* ---- packing A ---- */

/* Of a tile's rows the terms that part p has. */
static void pack_part(const struct product *g, const struct block *b, int m, int p)
{
    const struct part *t = &g->part[p];
    int k, from, terms;
    for (k = b->k0; k < b->k1; k += g->run) {
        int K = smaller(g->run, b->k1 - k);
        if ((terms = terms_of(g, p, k, K, &from)) <= 0) continue;
        pack_rows(packed_at(b, m, k, K) + (size_t)(p ? from + g->part[0].K - k : 0) * MR,
                  t->a + (size_t)m * t->row + (size_t)from * t->step, t->row, t->step, smaller(MR, b->m1 - m), terms);
    }
}

/* The block's terms of the panel of the thin product's columns n .. in one piece. */
static void pack_thin(const struct product *g, const struct block *b, int n, float *scratch)
{
    const struct product *t = g->thin;
    int k, from, terms;
    for (k = b->k0; k < b->k1; k += KC) {
        if ((terms = terms_of(g, 0, k, smaller(KC, b->k1 - k), &from)) <= 0) continue;
        if (t->transposed) pack_transposed(scratch + (size_t)(k - b->k0) * NR, t->part[0].w, n, from, terms, scratch + (size_t)KS * NR);
        else pack_copied(scratch + (size_t)(k - b->k0) * NR, 0, t->part[0].w, from, terms, n, NR, scratch + (size_t)KS * NR);
    }
}

/* The thin product of a packed tile. The rows from `then` on are likely to be this thread's next. */
static void thin_tile(const struct product *g, const struct block *b, int m, int then, int n, const float *panel)
{
    const struct product *t = g->thin;
    int last = smaller(b->k1, g->part[0].K);
    struct ahead next = { (const char *)(g->part[0].a + (size_t)then * g->part[0].row + b->k0), sizeof(float) * (size_t)(last - b->k0),
                          sizeof(float) * g->part[0].row, 0, smaller(MR, b->m1 - then), 1 };
    float *c = t->c + (size_t)m * t->c_row + n;
    int k, from, terms;
    for (k = b->k0; k < b->k1; k += g->run) {
        struct place to = { c, t->c_row, c, t->c_row, n, k > 0 };
        int K = smaller(g->run, b->k1 - k);
        if ((terms = terms_of(g, 0, k, K, &from)) <= 0) continue;
        (t->N - n > LANES ? tile_full : tile_half)(smaller(MR, b->m1 - m), terms, packed_at(b, m, k, K), 1, MR,
                                                   panel + (size_t)(k - b->k0) * NR, NR, t, &to, &next);
    }
}

/* Called by all threads of a team. With a thin product the tiles go by once for each panel of it, and what it makes of them is
 * packed behind the last. */
static void pack_block(struct kernel_ctx *c, const struct product *g, const struct block *b, int tiles)
{
    float *scratch = thread_scratch(c, thread_number());
    int n = 0, last, i;
    do {
        last = !g->thin || n + NR >= g->thin->N;
        if (g->thin) pack_thin(g, b, n, scratch);
#pragma omp for schedule(dynamic)
        for (i = 0; i < tiles; i++) {
            int m = b->m0 + i * MR;
            if (!n) pack_part(g, b, m, 0);
            if (g->thin) thin_tile(g, b, m, smaller(m + c->threads * MR, b->m1), n, scratch);
            if (last) pack_part(g, b, m, 1);
        }
        n += NR;
    } while (!last);
}

/* Into how many pieces rows are cut: several tasks for every thread, if the pieces are not too small for a
 * panel, and one for every thread if at all possible. */
static int row_pieces(int tiles, int groups, int threads)
{
    int several = smaller((4 * threads + groups - 1) / groups, tiles / 8);
    int one = smaller((threads + groups - 1) / groups, tiles / 2), pieces = larger(several, one);
    if (threads == 1) return 1;
    if (pieces > threads) pieces -= pieces % threads;
    return larger(1, pieces);
}

/* Where group i of columns begins, of which the first `wide` have GROUP and the others `unit`. */
static int group_start(int i, int wide, int unit) { return smaller(i, wide) * GROUP + larger(i - wide, 0) * unit; }

/* Called by all threads of a team, for one block. */
static void product_block(struct kernel_ctx *c, const struct product *g, const struct block *b)
{
    /* A transpose goes by the panel. Else each thread gets as many whole groups, and what is left goes by smaller ones. */
    int unit = g->transposed ? NR : UNIT, wide = g->transposed ? 0 : g->N / GROUP / c->threads * c->threads;
    int groups = wide + (g->N - wide * GROUP + unit - 1) / unit;
    int tiles = (b->m1 - b->m0 + MR - 1) / MR, pieces = row_pieces(tiles, groups, c->threads), i;
    if (b->packed) pack_block(c, g, b, tiles);
#pragma omp for schedule(dynamic)
    for (i = 0; i < groups * pieces; i++) {
        int piece = i % pieces, from = tiles * piece / pieces, to = tiles * (piece + 1) / pieces;
        int n = group_start(i / pieces, wide, unit), then = group_start((i + c->threads) / pieces, wide, unit);
        columns(g, b, n, i / pieces < wide ? GROUP : unit, then, b->m0 + from * MR, smaller(b->m0 + to * MR, b->m1),
                thread_scratch(c, thread_number()));
    }
}

static void product(struct kernel_ctx *c, const struct product *g)
{
    float *space = thread_scratch(c, c->threads);
    if (g->M <= 0 || g->N <= 0 || g->K <= 0) return;
#pragma omp parallel num_threads(c->threads) if((double)g->M * g->N * g->K > PARALLEL_WORK)
    {
        struct block b;
        for (b.m0 = 0; b.m0 < g->M; b.m0 = b.m1) {
            b.m1 = smaller(b.m0 + MC, g->M);
            for (b.k0 = 0; b.k0 < g->K; b.k0 = b.k1) {
                b.k1 = smaller(b.k0 + KS / g->run * g->run, g->K);
                b.packed = g->part[1].K || g->thin || (g->N >= PACK_FROM && fits(&b, spare(c))) ? space : NULL;
                product_block(c, g, &b);
            }
        }
    }
}

/* ---- the operations ---- */

#ifndef WIDE
int NAMED(embed)(struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N)
{
    int n;
    (void)c;            /* a build without OpenMP has no threads to ask for */
    if (!vec_can_read(w)) return KERNEL_UNSUPPORTED;
#pragma omp parallel for num_threads(c->threads) if((double)N * w->cols > PARALLEL_WORK)
    for (n = 0; n < N; n++)
        vec_decode(w, ((const int *)ids)[n], 0, w->cols, (float *)out + (size_t)n * (size_t)w->cols);
    return 0;
}
#endif

/* rows x outputs, over inputs: out[N,O] = scale * x W^T + bias, or += */
static struct product forward(buf *out, const buf *x, const struct weight *w, const buf *bias, double scale,
                              int accumulate, int N)
{
    struct product g;
    memset(&g, 0, sizeof g);
    g.M = N;
    g.N = w->rows;
    g.K = w->cols;
    g.run = run_length(w->cols);
    g.part[0].K = w->cols;
    g.part[0].a = (const float *)x;
    g.part[0].row = (size_t)w->cols;
    g.part[0].step = 1;
    g.part[0].w = w;
    g.transposed = 1;
    g.c = (float *)out;
    g.c_row = (size_t)w->rows;
    g.c_step = 1;
    g.scale = (float)scale;
    g.bias = (const float *)bias;
    g.accumulate = accumulate;
    g.fetch = (double)w->rows * w->cols > FETCH_FROM;
    return g;
}

/* rows x inputs, over outputs: dx[N,I] = scale * dout W, or += */
static struct product backward(buf *dx, const buf *dout, const struct weight *w, double scale, int accumulate, int N)
{
    struct product g = forward(dx, dout, w, NULL, scale, accumulate, N);
    g.N = w->cols;
    g.K = g.part[0].K = w->rows;
    g.run = run_length(w->rows);
    g.part[0].row = (size_t)w->rows;
    g.transposed = 0;
    g.c_row = (size_t)w->cols;
    return g;
}

/* `thin` is made on the way, unless it is NULL; with w, r more terms: h[N,r] and an adapter's matrix. */
static void add_terms(struct product *g, const struct product *thin, const buf *h, const struct weight *w, int r)
{
    g->run = run_length(g->K + r);
    g->thin = thin;
    if (!w) return;
    g->part[1].K = r;
    g->part[1].a = (const float *)h;
    g->part[1].row = (size_t)r;
    g->part[1].step = 1;
    g->part[1].w = w;
    g->K += r;
}

/* `thin` alone, with the bits that it has in a product of K terms and r more. */
static void product_alone(struct kernel_ctx *c, struct product *thin, int r)
{
    thin->run = run_length(thin->K + r);
    product(c, thin);
}

int NAMED(matmul)(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w,
                  const buf *bias, double scale, int accumulate, int N)
{
    struct product g;
    if (bf16_applies(c, w, N)) return bf16_matmul(c, out, x, w, bias, scale, NULL, NULL, accumulate, N);
    if (!vec_can_read(w)) return KERNEL_UNSUPPORTED;
    if (N <= 0 || w->cols <= 0 || w->rows <= 0) return 0;
    if (N < FEW_ROWS && w->cols > SHORT) {
        NAMED(product_few)(c, (float *)out, (const float *)x, w, (const float *)bias, (float)scale, accumulate, N);
        return 0;
    }
    g = forward(out, x, w, bias, scale, accumulate, N);
    product(c, &g);
    return 0;
}

int NAMED(matmul_dx)(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w,
                     double scale, int accumulate, int N)
{
    struct product g;
    if (bf16_applies(c, w, N)) return bf16_matmul_dx(c, dx, dout, w, scale, NULL, NULL, accumulate, N);
    if (!vec_can_read(w)) return KERNEL_UNSUPPORTED;
    g = backward(dx, dout, w, scale, accumulate, N);
    product(c, &g);
    return 0;
}

/* Can a product of [x | h], K terms and r more, be one? That decides bits, so it must not follow from the rows at hand nor from
 * the threads: for a rank up to the weight's larger side there is room for packed rows whatever they are, as twice that many
 * terms are planned for. */
static int together(const struct kernel_ctx *c, const struct weight *w, int K, int r, int N)
{
    struct block b = { 0, 0, 0, 0, NULL };
    if (bf16_applies(c, w, N)) return vec_can_read(w) && r <= BF16_LOW_RANK;
    b.m1 = smaller(N, MC);
    b.k1 = smaller(K + r, KS);
    return vec_can_read(w) && N >= FEW_ROWS && r <= larger(w->rows, w->cols) && fits(&b, spare(c));
}

int NAMED(linear)(struct kernel_ctx *c, buf *out, buf *h, const buf *x, const struct weight *w,
                  const buf *bias, const struct low_rank *ab, int accumulate, int N)
{
    struct product g, thin;
    int r = ab->b->cols;
    if (!together(c, w, w->cols, r, N)) return KERNEL_UNSUPPORTED;
    if (bf16_applies(c, w, N)) {
        if (ab->a) NAMED(matmul)(c, h, x, ab->a, NULL, ab->scale, 0, N);
        return out ? bf16_matmul(c, out, x, w, bias, 1, h, ab->b, accumulate, N) : 0;
    }
    if (ab->a) thin = forward(h, x, ab->a, NULL, ab->scale, 0, N);
    if (!out) {
        if (ab->a) product_alone(c, &thin, r);
        return 0;
    }
    g = forward(out, x, w, bias, 1, accumulate, N);
    add_terms(&g, ab->a ? &thin : NULL, h, ab->b, r);
    product(c, &g);
    return 0;
}

int NAMED(linear_dx)(struct kernel_ctx *c, buf *dx, buf *gh, const buf *dout, const struct weight *w,
                     const struct low_rank *ab, int accumulate_gh, int accumulate, int N)
{
    struct product g, thin;
    int r = ab->b->cols;
    if (!together(c, w, w->rows, r, N)) return KERNEL_UNSUPPORTED;
    if (bf16_applies(c, w, N)) {
        NAMED(matmul_dx)(c, gh, dout, ab->b, ab->scale, accumulate_gh, N);
        return dx ? bf16_matmul_dx(c, dx, dout, w, 1, ab->a ? gh : NULL, ab->a, accumulate, N) : 0;
    }
    thin = backward(gh, dout, ab->b, ab->scale, accumulate_gh, N);
    if (!dx) {
        product_alone(c, &thin, r);
        return 0;
    }
    g = backward(dx, dout, w, 1, accumulate, N);
    add_terms(&g, &thin, gh, ab->a, r);
    product(c, &g);
    return 0;
}

/* The rows k .. k + K - 1 of both sides, times each other where they lie: C rows m0 .. m1 - 1, columns n0 .. n1 - 1. */
static void dw_block(const struct product *g, int k, int K, int m0, int m1, int n0, int n1, struct ahead *next)
{
    const float *a = g->part[0].a + (size_t)k * (size_t)g->M, *b = (const float *)g->part[0].w->data + (size_t)k * (size_t)g->N;
    int tiles = (m1 - m0 + MR - 1) / MR, mr = (m1 - m0 + tiles - 1) / tiles, m, n;      /* tiles of nearly equal height */
    for (n = n0; n < n1; n += NR)
        for (m = m0; m < m1; m += mr) {
            float *c = g->c + (size_t)m * g->c_row + (size_t)n * g->c_step;
            struct place to = { c, g->c_row, c, g->c_row, n, 1 };
            (n1 - n > LANES ? tile_full : tile_half)(smaller(mr, m1 - m), K, a + m, 1, (size_t)g->M, b + n, (size_t)g->N, g, &to, next);
        }
}

/* With a thin side, as adapters have, a panel would be copied for few multiplications. So the other side is read once, where
 * and in the order in which it lies, a piece of each row by each thread; sums go to memory after each DW_ROWS rows. */
static void dw_in_place(struct kernel_ctx *c, const struct product *g)
{
    int turned = g->M > g->N, unit = turned ? MR : NR, wide = turned ? g->M : g->N, t;
    int piece = round_up((wide + c->threads - 1) / c->threads, unit);
#pragma omp parallel for schedule(static) num_threads(c->threads) if((double)g->M * g->N * g->K > PARALLEL_WORK)
    for (t = 0; t < c->threads; t++) {
        int from = smaller(t * piece, wide), to = smaller(from + piece, wide), k;
        const float *side = (turned ? g->part[0].a : (const float *)g->part[0].w->data) + from;
        for (k = 0; from < to && k < g->K; k += DW_ROWS) {
            struct ahead next = { (const char *)(side + (size_t)(k + DW_ROWS) * (size_t)wide), sizeof(float) * (size_t)(to - from),
                                  sizeof(float) * (size_t)wide, 0, smaller(DW_ROWS, g->K - k - DW_ROWS), 1 };
            dw_block(g, k, smaller(DW_ROWS, g->K - k), turned ? from : 0, turned ? to : g->M, turned ? 0 : from,
                     turned ? g->N : to, &next);
        }
    }
}

/* The wider of the two sides goes into panels: a thin one there would leave A, read by columns, to
 * go by for NR columns only. The same bits either way. */
void NAMED(matmul_dw)(struct kernel_ctx *c, buf *dw, const buf *dout, const buf *x,
                      double scale, int N, int O, int I)
{
    int turned = O > I;
    struct weight w = { 0 };
    struct product g;
    w.type = TYPE_REAL;
    w.rows = N;
    if (smaller(O, I) <= 2 * NR && I % LANES == 0) {        /* rows of x are read by whole vectors */
        w.cols = I;
        w.data = x;
        g = backward(dw, dout, &w, scale, 1, O);
        dw_in_place(c, &g);
        return;
    }
    w.cols = turned ? O : I;
    w.data = turned ? dout : x;
    g = backward(dw, turned ? x : dout, &w, scale, 1, turned ? I : O);
    g.part[0].row = 1;
    g.part[0].step = (size_t)g.M;
    g.c_row = turned ? 1 : (size_t)I;
    g.c_step = turned ? (size_t)I : 1;
    g.fetch = 0;
    product(c, &g);
}
