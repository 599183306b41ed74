/* attention_vec.c - attention over segments, forward and backward, block by block.
 *
 * Scores are never stored but for one block of ROWS x KEYS a thread: forward keeps each row's largest
 * score and sum of exponentials as it goes over the blocks of keys (Milakov and Gimelshein 2018),
 * backward makes p again from lse (Dao et al. 2022). docs/ladder/a3_tiles.c is forward alone, plainly.
 * The query heads of a key head are rows of one block: row r is query r / G, head r % G, so a block of
 * keys is transposed once for all. Exponentials are powers of 2: log2(e) is in the scale that scores
 * get anyway.
 *
 * The blocks of keys begin at a segment's first key, and a row's numbers do not mix with others': so
 * its result depends on what it sees alone. Backward is one go over the pairs of blocks: a thread has
 * a block of keys to itself, and takes the blocks of queries in table order, so dk and dv are its own
 * sums; dq of a block of queries is added to by one block of keys after the other, in their order along
 * the chain of prefixes. Who comes too early waits: see dq_turn(). */
#include "vectors.h"

#include <math.h>
#include <sched.h>

enum { ROWS = 96, KEYS = 64, APART = 16, LDK = KEYS + APART };      /* APART: rows of a block in other sets of the cache */
#define LN2 0.693147180559945309

struct attention {
    float *out, *lse, *dq, *dk, *dv, *delta;
    const float *dout, *q, *k, *v;
    const struct segment *segments;
    int *progress;              /* [N,NKV] at a block's first query: see dq_turn() */
    int S, NH, NKV, HS, window;
    float scale, scale2;        /* of scores: for e^z, for 2^z */
    int G, queries;             /* query heads of a key head; queries of a block */
    int wide, ld;               /* HS in whole vectors; distance of rows in a thread's blocks */
};

/* A thread's blocks. */
struct scratch {
    float *q, *dout, *acc;      /* [rows][ld] */
    float *s, *dp;              /* [rows][LDK]: scores then p, dp then ds */
    float *kt, *vt;             /* [wide][LDK] */
    float *k, *v, *dk, *dv;     /* [KEYS][ld] */
    float *max, *sum;           /* [rows] */
    float *zeros;               /* [ld] */
};

static int block_rows(int G) { return larger(ROWS, G); }

static size_t scratch_floats(int HS, int G)
{
    size_t rows = (size_t)block_rows(G), wide = (size_t)round_up(HS, LANES), ld = wide + APART;
    return 3 * rows * ld + 2 * rows * LDK + 2 * wide * LDK + 4 * KEYS * ld + (2 * rows + ld + 15) / 16 * 16;
}

static size_t all_scratch(int HS, int G, int threads)
{
    return sizeof(float) * scratch_floats(HS, G) * (size_t)larger(threads, 1);
}

/* The threads' blocks, then progress. */
size_t NAMED(attention_bytes)(const struct kernel_sizes *s)
{
    size_t progress = sizeof(int) * (size_t)s->N * (size_t)s->NKV;
    return all_scratch(s->HS, s->NH / larger(s->NKV, 1), s->threads) + (progress + 63) / 64 * 64;
}

static struct scratch scratch_of(const struct kernel_ctx *c, const struct attention *a)
{
    size_t rows = (size_t)block_rows(a->G), ld = (size_t)a->ld, wide = (size_t)a->wide;
    float *p = (float *)c->work + (size_t)thread_number() * scratch_floats(a->HS, a->G);
    struct scratch x;
    x.q = p;
    x.dout = x.q + rows * ld;
    x.acc = x.dout + rows * ld;
    x.s = x.acc + rows * ld;
    x.dp = x.s + rows * LDK;
    x.kt = x.dp + rows * LDK;
    x.vt = x.kt + wide * LDK;
    x.k = x.vt + wide * LDK;
    x.v = x.k + KEYS * ld;
    x.dk = x.v + KEYS * ld;
    x.dv = x.dk + KEYS * ld;
    x.max = x.dv + KEYS * ld;
    x.sum = x.max + rows;
    x.zeros = memset(x.sum + rows, 0, sizeof(float) * ld);
    return x;
}

/* ---- who sees what ---- */

/* Query i of segment s sees the keys *from .. *to - 1 of segment t, which is s or in its chain of
 * prefixes. Both grow with i. */
static void seen(const struct attention *a, int s, int t, int i, int *from, int *to)
{
    int own = a->segments[s].k_len - a->segments[s].q_len + i;
    int oldest = a->segments[s].pos + own - a->window + 1;      /* first position in the window */
    *to = t == s ? own + 1 : a->segments[t].k_len;
    *from = a->window > 0 && oldest > a->segments[t].pos ? oldest - a->segments[t].pos : 0;
}

static int continues(const struct segment *segments, int s, int t)
{
    while (s > t) s = segments[s].prefix;       /* a prefix has a lower index */
    return s == t;
}

/* Queries i .. of segment s, key head g, against the keys j .. of segment t: a block. Of its keys the
 * last query sees the first `columns`, in whole vectors. */
struct part { int s, i, n, t, j, keys, columns, g; };

/* Sets columns; 0 when nothing is seen. */
static int any_seen(const struct attention *a, struct part *b)
{
    int from, to, unused;
    seen(a, b->s, b->t, b->i, &from, &unused);
    seen(a, b->s, b->t, b->i + b->n - 1, &unused, &to);
    b->columns = round_up(smaller(to - b->j, b->keys), LANES);
    return to > b->j && from < b->j + b->keys;
}

/* The columns *from .. *to - 1 of the block are what its query `i` sees; none when from >= to. */
static void seen_in_block(const struct attention *a, const struct part *b, int i, int *from, int *to)
{
    seen(a, b->s, b->t, b->i + i, from, to);
    *from -= b->j;
    *to = smaller(*to - b->j, b->keys);
}

/* ---- blocks ---- */

static size_t query_at(const struct attention *a, const struct part *b, int i)
{
    return ((size_t)(a->segments[b->s].q_start + b->i + i) * (size_t)a->NH + (size_t)(b->g * a->G)) * (size_t)a->HS;
}

static size_t key_at(const struct attention *a, const struct part *b, int j)
{
    return ((size_t)(a->segments[b->t].k_start + b->j + j) * (size_t)a->NKV + (size_t)b->g) * (size_t)a->HS;
}

/* A row of HS numbers and zeros up to whole vectors. */
ALWAYS_INLINE void load_row(const struct attention *a, float *to, const float *from)
{
    int d;
    for (d = 0; d < a->wide; d += LANES) vec_store(to + d, vec_load_lanes(from + d, a->HS - d));
}

static void load_queries(const struct attention *a, const struct part *b, float *to, const float *x)
{
    int i, h;
    for (i = 0; i < b->n; i++)
        for (h = 0; h < a->G; h++, to += a->ld) load_row(a, to, x + query_at(a, b, i) + h * a->HS);
}

/* The rows past the last key are 0. */
static void load_keys(const struct attention *a, const struct part *b, const struct scratch *x, float *to, const float *from)
{
    int j;
    for (j = 0; j < b->columns; j++) load_row(a, to + j * a->ld, j < b->keys ? from + key_at(a, b, j) : x->zeros);
}

static void load_keys_turned(const struct attention *a, const struct part *b, const struct scratch *x,
                             float *to, const float *from)
{
    const float *rows[TURNED];
    int j, r;
    for (j = 0; j < b->columns; j += TURNED) {
        for (r = 0; r < TURNED; r++) rows[r] = j + r < b->keys ? from + key_at(a, b, j + r) : x->zeros;
        NAMED(transpose)(to + j, LDK, rows, a->HS);
    }
}

ALWAYS_INLINE void add_any(int mr, int vectors, int K, float *c, size_t ldc, const float *a, size_t row, size_t step,
                           const float *b, size_t ldb, float scale, int add)
{
    const struct put p = { vec_all(scale), NULL, vectors * LANES, add };
    struct tile t;
    switch (mr) {
#if MR > 6
    case 12: t = tile_of(12, vectors, K, a, row, step, b, ldb, NULL); put_tile(12, &t, c, ldc, c, ldc, &p); break;
    case 11: t = tile_of(11, vectors, K, a, row, step, b, ldb, NULL); put_tile(11, &t, c, ldc, c, ldc, &p); break;
    case 10: t = tile_of(10, vectors, K, a, row, step, b, ldb, NULL); put_tile(10, &t, c, ldc, c, ldc, &p); break;
    case 9: t = tile_of(9, vectors, K, a, row, step, b, ldb, NULL); put_tile(9, &t, c, ldc, c, ldc, &p); break;
    case 8: t = tile_of(8, vectors, K, a, row, step, b, ldb, NULL); put_tile(8, &t, c, ldc, c, ldc, &p); break;
    case 7: t = tile_of(7, vectors, K, a, row, step, b, ldb, NULL); put_tile(7, &t, c, ldc, c, ldc, &p); break;
#endif
    case 6: t = tile_of(6, vectors, K, a, row, step, b, ldb, NULL); put_tile(6, &t, c, ldc, c, ldc, &p); break;
    case 5: t = tile_of(5, vectors, K, a, row, step, b, ldb, NULL); put_tile(5, &t, c, ldc, c, ldc, &p); break;
    case 4: t = tile_of(4, vectors, K, a, row, step, b, ldb, NULL); put_tile(4, &t, c, ldc, c, ldc, &p); break;
    case 3: t = tile_of(3, vectors, K, a, row, step, b, ldb, NULL); put_tile(3, &t, c, ldc, c, ldc, &p); break;
    case 2: t = tile_of(2, vectors, K, a, row, step, b, ldb, NULL); put_tile(2, &t, c, ldc, c, ldc, &p); break;
    default: t = tile_of(1, vectors, K, a, row, step, b, ldb, NULL); put_tile(1, &t, c, ldc, c, ldc, &p);
    }
}

static void add_tile(int mr, int K, float *c, size_t ldc, const float *a, size_t row, size_t step,
                     const float *b, size_t ldb, float scale, int add)
{
    add_any(mr, 2, K, c, ldc, a, row, step, b, ldb, scale, add);
}

static void add_half(int mr, int K, float *c, size_t ldc, const float *a, size_t row, size_t step,
                     const float *b, size_t ldb, float scale, int add)
{
    add_any(mr, 1, K, c, ldc, a, row, step, b, ldb, scale, add);
}

/* All of a tile's rows, LDK apart, or their transpose, with steps that the compiler knows: what nearly all tiles are where heads
 * have KEYS numbers. */
static void add_rows(int K, float *c, const float *a, const float *b, float scale, int add, struct ahead *next)
{
    const struct put p = { vec_all(scale), NULL, NR, add };
    struct tile t = tile_of(MR, 2, K, a, LDK, 1, b, LDK, next);
    put_tile(MR, &t, c, LDK, c, LDK, &p);
}

static void add_turned(int K, float *c, const float *a, const float *b, float scale, int add, struct ahead *next)
{
    const struct put p = { vec_all(scale), NULL, NR, add };
    struct tile t = tile_of(MR, 2, K, a, 1, LDK, b, LDK, next);
    put_tile(MR, &t, c, LDK, c, LDK, &p);
}

/* c[M,N] = scale * a b, or +=: A through two strides, N in whole vectors. `next` is asked for meanwhile, where steps are known. */
static void block_product(float *c, int ldc, const float *a, int row, int step, const float *b, int ldb,
                          int M, int N, int K, float scale, int add, struct ahead *next)
{
    int known = ldc == LDK && ldb == LDK && row + step == LDK + 1, m, n;
    for (n = 0; n < N; n += NR)
        for (m = 0; m < M; m += MR) {
            float *to = c + (size_t)m * (size_t)ldc + n;
            const float *from = a + (size_t)m * (size_t)row;
            if (known && M - m >= MR && N - n > LANES) (step == 1 ? add_rows : add_turned)(K, to, from, b + n, scale, add, next);
            else (N - n > LANES ? add_tile : add_half)(smaller(MR, M - m), K, to, (size_t)ldc, from, (size_t)row, (size_t)step,
                                                       b + n, (size_t)ldb, scale, add);
        }
}

/* `n` rows of `width` numbers, `apart` numbers, to be asked for in `terms` terms of tiles. */
static struct ahead rows_ahead(const float *row, int n, int width, int apart, int terms)
{
    struct ahead f = { (const char *)row, sizeof(float) * (size_t)width, sizeof(float) * (size_t)apart, 0, n, 1 };
    if (n > 0) f.every = larger(1, terms / (n * (width / 16 + 1)));
    return f;
}

/* The same of q, dout or dq, of a block's queries ... */
static struct ahead queries_ahead(const struct attention *a, const float *x, const struct part *b, int terms)
{
    return rows_ahead(x + query_at(a, b, 0), b->n, a->G * a->HS, a->NH * a->HS, terms);
}

/* ... and of k or v, of its keys. */
static struct ahead keys_ahead(const struct attention *a, const float *x, const struct part *b, int terms)
{
    return rows_ahead(x + key_at(a, b, 0), b->keys, a->HS, a->NKV * a->HS, terms);
}

/* ---- forward ---- */

/* A row of scores becomes p relative to the largest score so far; what was summed before is brought
 * to the same measure. All in powers of 2. */
static void soften(const struct attention *a, float *s, int columns, int from, int to, float *max, float *sum, float *acc)
{
    const vec none = vec_all(-INFINITY), scale = vec_all(a->scale2);
    vec top = none, total = vec_all(0), minus;
    int i, masked = from > 0 || to < columns;
    float m;
    for (i = 0; i < columns; i += LANES) {
        vec z = vec_mul(vec_load(s + i), scale);
        if (masked) z = vec_between(z, none, from - i, to - i);
        top = vec_max(z, top);
    }
    m = vec_largest(top);
    if (!(m > *max)) m = *max;
    if (m == -INFINITY) m = 0;          /* nothing seen yet: all p are 2^-inf = 0 */
    minus = vec_all(-m);
    for (i = 0; i < columns; i += LANES) {
        vec p = vec_exp2(vec_fmadd(vec_load(s + i), scale, minus));
        if (masked) p = vec_between(p, vec_all(0), from - i, to - i);
        vec_store(s + i, p);
        total = vec_add(total, p);
    }
    if (m != *max) {
        vec f = vec_exp2(vec_all(*max - m));
        for (i = 0; i < a->wide; i += LANES) vec_store(acc + i, vec_mul(vec_load(acc + i), f));
        *sum *= vec_largest(f);
        if (from < to) *max = m;
    }
    *sum += vec_sum(total);
}

/* `then`: the thread's likely next block of queries. */
static void forward_keys(const struct attention *a, const struct part *b, const struct part *then, const struct scratch *x)
{
    int R = b->n * a->G, r, from, to, scores = R / MR * 2 * a->HS, sums = R / MR * 2 * b->columns;
    struct part next = *b;
    struct ahead first, second;
    next.j += b->keys;
    next.keys = smaller(KEYS, a->segments[b->t].k_len - next.j);
    first = next.keys > 0 ? keys_ahead(a, a->k, &next, scores) : queries_ahead(a, a->q, then, scores);
    second = next.keys > 0 ? keys_ahead(a, a->v, &next, sums) : keys_ahead(a, a->k, then, sums);
    load_keys_turned(a, b, x, x->kt, a->k);
    load_keys(a, b, x, x->v, a->v);
    block_product(x->s, LDK, x->q, a->ld, 1, x->kt, LDK, R, b->columns, a->HS, 1, 0, &first);
    for (r = 0; r < R; r++) {
        seen_in_block(a, b, r / a->G, &from, &to);
        soften(a, x->s + (size_t)r * LDK, b->columns, from, to, x->max + r, x->sum + r, x->acc + (size_t)r * (size_t)a->ld);
    }
    block_product(x->acc, a->ld, x->s, LDK, 1, x->v, a->ld, R, a->wide, b->columns, 1, 1, &second);
}

static void forward_rows(const struct attention *a, const struct part *b, const struct scratch *x)
{
    int i, h, d, r = 0;
    for (i = 0; i < b->n; i++)
        for (h = 0; h < a->G; h++, r++) {
            float *out = a->out + query_at(a, b, i) + h * a->HS, *acc = x->acc + (size_t)r * (size_t)a->ld;
            size_t row = (size_t)(a->segments[b->s].q_start + b->i + i);
            float inverse = 1 / x->sum[r];
            for (d = 0; d < a->HS; d++) out[d] = acc[d] * inverse;
            a->lse[row * (size_t)a->NH + (size_t)(b->g * a->G + h)] = (float)(LN2 * (x->max[r] + log2(x->sum[r])));
        }
}

static void forward_queries(const struct attention *a, struct part b, const struct part *then, const struct scratch *x)
{
    int r;
    load_queries(a, &b, x->q, a->q);
    memset(x->acc, 0, sizeof(float) * (size_t)(b.n * a->G) * (size_t)a->ld);
    for (r = 0; r < b.n * a->G; r++) {
        x->max[r] = -INFINITY;
        x->sum[r] = 0;
    }
    for (b.t = b.s; b.t >= 0; b.t = a->segments[b.t].prefix)
        for (b.j = 0; b.j < a->segments[b.t].k_len; b.j += KEYS) {
            b.keys = smaller(KEYS, a->segments[b.t].k_len - b.j);
            if (any_seen(a, &b)) forward_keys(a, &b, then, x);
        }
    forward_rows(a, &b, x);
}

/* ---- backward ---- */

/* p and ds of the block, in the place of scores and dp. What no query sees is 0. The keys of `then` are asked for. */
static void pairs(const struct attention *a, const struct part *b, const struct part *then, const struct scratch *x)
{
    const vec scale = vec_all(a->scale2);
    int i, h, c, from, to, R = b->n * a->G, terms = R / MR * 2 * a->HS;
    struct ahead k = keys_ahead(a, a->k, then, terms), v = keys_ahead(a, a->v, then, terms);
    float *s = x->s, *dp = x->dp;
    block_product(s, LDK, x->q, a->ld, 1, x->kt, LDK, R, b->columns, a->HS, 1, 0, &k);
    block_product(dp, LDK, x->dout, a->ld, 1, x->vt, LDK, R, b->columns, a->HS, 1, 0, &v);
    for (i = 0; i < b->n; i++) {
        size_t nh = query_at(a, b, i) / (size_t)a->HS;
        int masked;
        seen_in_block(a, b, i, &from, &to);
        masked = from > 0 || to < b->columns;
        for (h = 0; h < a->G; h++, s += LDK, dp += LDK) {
            vec minus = vec_all((float)(a->lse[nh + (size_t)h] * (-1 / LN2))), delta = vec_all(a->delta[nh + (size_t)h]);
            for (c = 0; c < b->columns; c += LANES) {
                vec p = vec_exp2(vec_fmadd(vec_load(s + c), scale, minus));      /* p = softmax(z) */
                vec ds = vec_mul(p, vec_sub(vec_load(dp + c), delta));           /* out = sum p v */
                if (masked) {
                    p = vec_between(p, vec_all(0), from - c, to - c);
                    ds = vec_between(ds, vec_all(0), from - c, to - c);
                }
                vec_store(s + c, p);
                vec_store(dp + c, ds);
            }
        }
    }
}

/* Is this block of keys the first of those that the block of queries sees? */
static int sees_none_before(const struct attention *a, const struct part *b)
{
    const struct segment *s = &a->segments[b->s], *t = &a->segments[b->t];
    int root = b->t, oldest = s->pos + s->k_len - s->q_len + b->i - a->window + 1;
    while (a->segments[root].prefix >= 0) root = a->segments[root].prefix;
    if (a->window <= 0 || oldest < a->segments[root].pos) oldest = a->segments[root].pos;
    return oldest >= t->pos + b->j;
}

/* dq of a block of queries is summed over its blocks of keys in the order of their positions, whichever thread has
 * them: progress says up to which position the sum has come, 0 at first. Nobody waits for ever: blocks of keys are
 * begun in the order of prefixes and of positions, so of those not done the first has none to wait for. */
static void dq_turn(const struct attention *a, const struct part *b, const struct scratch *x, int first)
{
    int *progress = a->progress + (size_t)(a->segments[b->s].q_start + b->i) * (size_t)a->NKV + b->g;
    int start = a->segments[b->t].pos + b->j, there, i, h, d;
    const float *from = x->acc;
    for (;;) {
#pragma omp atomic read
        there = *progress;
        if (first || there == start) break;
        sched_yield();
    }
#pragma omp flush
    for (i = 0; i < b->n; i++)
        for (h = 0; h < a->G; h++, from += a->ld) {
            float *dq = a->dq + query_at(a, b, i) + h * a->HS;
            if (first) memcpy(dq, from, sizeof(float) * (size_t)a->HS);
            else for (d = 0; d < a->HS; d++) dq[d] += from[d];
        }
#pragma omp flush
#pragma omp atomic write
    *progress = start + b->keys;
}

/* A block of queries against the block of keys that the thread has. `queries` and `keys` are likely to be its next ones,
 * or none. */
static void backward_queries(const struct attention *a, const struct part *b, const struct part *queries, const struct part *keys,
                             const struct scratch *x)
{
    int R = b->n * a->G, terms = b->columns / MR * 2 * R;
    struct ahead q = queries_ahead(a, a->q, queries, terms), dout = queries_ahead(a, a->dout, queries, terms);
    struct ahead dq = queries_ahead(a, a->dq, b, R / MR * 2 * b->columns);
    load_queries(a, b, x->q, a->q);
    load_queries(a, b, x->dout, a->dout);
    pairs(a, b, keys, x);
    block_product(x->dv, a->ld, x->s, 1, LDK, x->dout, a->ld, b->columns, a->wide, R, 1, 1, &q);
    block_product(x->dk, a->ld, x->dp, 1, LDK, x->q, a->ld, b->columns, a->wide, R, a->scale, 1, &dout);
    block_product(x->acc, a->ld, x->dp, LDK, 1, x->k, a->ld, R, a->wide, b->columns, a->scale, 0, &dq);
    dq_turn(a, b, x, sees_none_before(a, b));
}

/* The next block of queries that sees of the block of keys: in table order, of segment b->t first, where b->n is 0 at
 * first. 0, with b->n, when there is none. */
static int next_queries(const struct attention *a, struct part *b)
{
    for (b->i += b->n; b->s < a->S; b->s++, b->i = 0) {
        if (!continues(a->segments, b->s, b->t)) continue;
        for (; b->i < a->segments[b->s].q_len; b->i += a->queries) {
            b->n = smaller(a->queries, a->segments[b->s].q_len - b->i);
            if (any_seen(a, b)) return 1;
        }
    }
    b->s = b->t;
    b->i = b->n = 0;
    return 0;
}

/* dk and dv of a block of keys: over segments in table order, then queries, then heads. `then` is likely to be this
 * thread's next block. */
static void backward_keys(const struct attention *a, struct part b, struct part then, const struct scratch *x)
{
    const struct part none = { 0 };
    size_t bytes = sizeof(float) * KEYS * (size_t)a->ld;
    int j, more;
    b.columns = round_up(b.keys, LANES);
    load_keys_turned(a, &b, x, x->kt, a->k);
    load_keys_turned(a, &b, x, x->vt, a->v);
    load_keys(a, &b, x, x->k, a->k);
    memset(x->dk, 0, bytes);
    memset(x->dv, 0, bytes);
    if (then.keys > 0) next_queries(a, &then);
    for (more = next_queries(a, &b); more; ) {
        struct part next = b;
        more = next_queries(a, &next);
        backward_queries(a, &b, more ? &next : &then, more ? &none : &then, x);
        b = next;
    }
    for (j = 0; j < b.keys; j++) {
        memcpy(a->dk + key_at(a, &b, j), x->dk + (size_t)j * (size_t)a->ld, sizeof(float) * (size_t)a->HS);
        memcpy(a->dv + key_at(a, &b, j), x->dv + (size_t)j * (size_t)a->ld, sizeof(float) * (size_t)a->HS);
    }
}

/* Does segment t get gradients: has it queries, or does another continue it? */
static int has_gradient(const struct attention *a, int t)
{
    int s, yes = a->segments[t].q_len > 0;
    for (s = t + 1; s < a->S && !yes; s++) yes = continues(a->segments, s, t);
    return yes;
}

/* ---- the operations ---- */

static double work_of(const struct attention *a)
{
    double work = 0;
    int s;
    for (s = 0; s < a->S; s++) work += (double)a->segments[s].q_len * a->segments[s].k_len * a->NH * a->HS;
    return work;
}

/* Number i of the blocks of queries and key heads, of which a segment has `blocks`, the longest rows first: n is 0 where
 * there is none. */
static struct part block_of_queries(const struct attention *a, int blocks, long long i)
{
    struct part b = { 0 };
    if (i >= (long long)blocks * a->S * a->NKV) return b;
    b.g = (int)(i % a->NKV);
    b.s = b.t = (int)(i / a->NKV % a->S);
    b.i = (int)(blocks - 1 - i / a->NKV / a->S) * a->queries;
    b.n = larger(smaller(a->queries, a->segments[b.s].q_len - b.i), 0);
    b.keys = smaller(KEYS, a->segments[b.s].k_len);
    return b;
}

/* Over all blocks of all segments and key heads. Called by one thread. */
static void over_queries(struct kernel_ctx *c, const struct attention *a)
{
    const double work = work_of(a);
    int blocks = 0, s;
    long long i, count;
    (void)work;                 /* without OpenMP nothing reads it */
    for (s = 0; s < a->S; s++) blocks = larger(blocks, (a->segments[s].q_len + a->queries - 1) / a->queries);
    count = (long long)blocks * a->S * a->NKV;
#pragma omp parallel for schedule(dynamic) num_threads(c->threads) if(work > PARALLEL_WORK)
    for (i = 0; i < count; i++) {
        const struct part b = block_of_queries(a, blocks, i), then = block_of_queries(a, blocks, i + c->threads);
        if (b.n > 0) {
            struct scratch x = scratch_of(c, a);
            forward_queries(a, b, &then, &x);
        }
    }
}

/* D = dout.out, and nothing of dq is there yet. */
static void start_backward(const struct attention *a, int n)
{
    int h;
    for (h = 0; h < a->NH; h++) {
        size_t nh = (size_t)n * (size_t)a->NH + (size_t)h, at = nh * (size_t)a->HS;
        a->delta[nh] = dot(a->dout + at, a->out + at, a->HS);
    }
    memset(a->progress + (size_t)n * (size_t)a->NKV, 0, sizeof(int) * (size_t)a->NKV);
}

/* Number i of the blocks of keys and key heads, of which a segment has `blocks`: keys is 0 where there is none. */
static struct part block_of_keys(const struct attention *a, int blocks, long long i)
{
    struct part b = { 0 };
    if (i >= (long long)blocks * a->S * a->NKV) return b;
    b.g = (int)(i % a->NKV);
    b.j = (int)(i / a->NKV % blocks) * KEYS;
    b.s = b.t = (int)(i / a->NKV / blocks);
    b.keys = larger(smaller(KEYS, a->segments[b.t].k_len - b.j), 0);
    return b;
}

/* Over all blocks of keys of all segments, in their order, and key heads: see dq_turn(). */
static void over_keys(struct kernel_ctx *c, const struct attention *a, int N)
{
    const double work = work_of(a);
    int blocks = 0, t;
    long long count, next = 0;
    (void)work;                 /* without OpenMP nothing reads it */
    for (t = 0; t < a->S; t++) blocks = larger(blocks, (a->segments[t].k_len + KEYS - 1) / KEYS);
    count = (long long)blocks * a->S * a->NKV;
#pragma omp parallel num_threads(c->threads) if(work > PARALLEL_WORK)
    {
        long long i;
        int n;
#pragma omp for
        for (n = 0; n < N; n++) start_backward(a, n);
        for (;;) {
            struct part b;
#pragma omp atomic capture
            i = next++;
            if (i >= count) break;
            b = block_of_keys(a, blocks, i);
            if (b.keys > 0 && has_gradient(a, b.t)) {
                struct scratch x = scratch_of(c, a);
                backward_keys(a, b, block_of_keys(a, blocks, i + c->threads), &x);
            }
        }
    }
}

static struct attention operands(const buf *q, const buf *k, const buf *v, const ints *segments, int S,
                                 int NH, int NKV, int HS, double scale, int window)
{
    struct attention a;
    memset(&a, 0, sizeof a);
    a.q = (const float *)q;
    a.k = (const float *)k;
    a.v = (const float *)v;
    a.segments = (const struct segment *)segments;
    a.S = S;
    a.NH = NH;
    a.NKV = NKV;
    a.HS = HS;
    a.scale = (float)scale;
    a.scale2 = (float)(scale / LN2);
    a.window = window;
    a.G = NH / NKV;
    a.queries = block_rows(a.G) / a.G;
    a.wide = round_up(HS, LANES);
    a.ld = a.wide + APART;
    return a;
}

void NAMED(attention)(struct kernel_ctx *c, buf *out, buf *lse, const buf *q, const buf *k,
                      const buf *v, const ints *segments, int S, int NH, int NKV, int HS,
                      double scale, int window)
{
    struct attention a = operands(q, k, v, segments, S, NH, NKV, HS, scale, window);
    a.out = (float *)out;
    a.lse = (float *)lse;
    over_queries(c, &a);
}

void NAMED(attention_backward)(struct kernel_ctx *c, buf *dq, buf *dk, buf *dv, buf *delta,
                             const buf *dout, const buf *out, const buf *lse, const buf *q,
                             const buf *k, const buf *v, const ints *segments, int S,
                             int N, int NH, int NKV, int HS, double scale, int window)
{
    struct attention a = operands(q, k, v, segments, S, NH, NKV, HS, scale, window);
    a.dq = (float *)dq;
    a.dk = (float *)dk;
    a.dv = (float *)dv;
    a.delta = (float *)delta;
    a.dout = (const float *)dout;
    a.out = (float *)out;           /* read only here */
    a.lse = (float *)lse;
    a.progress = (int *)((char *)c->work + all_scratch(HS, a.G, c->threads));
    over_keys(c, &a, N);
}
