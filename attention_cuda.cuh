/* attention_cuda.cuh - attention over segments on the device, forward and backward, tile by tile: part of
 * kernels_cuda.cu.
 *
 * A pair of a tile of queries and a tile of keys is scored in registers, 64 x 64 of them a block, and goes as p through
 * shared memory into the next product; nothing of the size N x N exists (Dao et al. 2022; Dao 2023). Forward keeps each
 * row's largest score and sum of exponentials as it goes over the keys (Milakov and Gimelshein 2018), backward makes p
 * again from lse. Exponentials are powers of 2: log2(e) is in the scale that scores get anyway.
 *
 * The query heads of a key head are rows of one tile: row r of a segment is query r / G, head r % G, with G = NH / NKV,
 * so a tile of keys is read once for all of them, and one query in generation is G rows. Tiles of keys begin at a
 * segment's first key and a row's numbers do not mix with others': so its result depends on what it sees alone.
 *
 * Heads of any size: under q.k they go by AT_DEPTH elements at a time, and of out, dq, dk and dv a block sums AT_SLICE
 * columns, which is the whole head up to 128; a larger head has several blocks, and each scores for itself.
 *
 * Every number has one owner, and sums have one order: forward and dq over the chain of prefixes from the segment
 * itself to the root, in it over keys; dk and dv over segments in table order, then queries, then heads. For that
 * dq has a kernel of its own, and scores are made twice on the way back: nobody waits, nobody adds atomically. */

#define LN2 0.693147180559945309

enum {
    AT_THREADS = 256,           /* 16 x 16, each with 4 x 4 of a tile's pairs */
    AT_TILE = 64,               /* rows of a tile, and keys */
    AT_DEPTH = 32,
    AT_LINE = AT_TILE + 4,      /* from line to line in shared memory: whole vectors, and other banks */
    AT_SLICE = 2 * AT_TILE,
    AT_SPACE = AT_TILE * AT_LINE
};

struct attention_operands {
    float *out, *lse, *dq, *dk, *dv, *delta;
    const float *dout, *q, *k, *v;
    const struct segment *segments;
    int S, NH, NKV, HS, window;
    float scale, scale2;        /* of scores: for e^z, for 2^z */
};

/* ---- who sees what ---- */

/* Query i of segment s sees the keys *from .. *to - 1 of segment t, which is s or in its chain of
 * prefixes. Both grow with i. */
static __device__ void seen(const struct attention_operands *a, int s, int t, int i, int *from, int *to)
{
    int own = a->segments[s].k_len - a->segments[s].q_len + i;
    int oldest = a->segments[s].pos + own - a->window + 1;      /* first position in the window */
    *to = t == s ? own + 1 : a->segments[t].k_len;
    *from = a->window > 0 && oldest > a->segments[t].pos ? oldest - a->segments[t].pos : 0;
}

static __device__ int continues(const struct segment *segments, int s, int t)
{
    while (s > t) s = segments[s].prefix;       /* a prefix has a lower index */
    return s == t;
}

static __device__ int rows_of(const struct attention_operands *a, int s)
{
    return a->segments[s].q_len * (a->NH / a->NKV);
}

/* The keys *from .. *to - 1 of segment t are those that any of the rows `first` .. of segment s sees. */
static __device__ void seen_by_tile(const struct attention_operands *a, int s, int t, int first, int *from, int *to)
{
    int G = a->NH / a->NKV, last = first + AT_TILE, rows = rows_of(a, s), unused;
    if (last > rows) last = rows;
    seen(a, s, t, first / G, from, &unused);
    seen(a, s, t, (last - 1) / G, &unused, to);
}

/* For the rows `first` .. of segment s: query[r] is which head of q it is, counted over all, -1 past the last. */
static __device__ void name_queries(int *query, const struct attention_operands *a, int s, int g, int first)
{
    int G = a->NH / a->NKV, i = (int)threadIdx.x, r = first + i;
    if (i < AT_TILE)
        query[i] = r < rows_of(a, s) ? (a->segments[s].q_start + r / G) * a->NH + g * G + r % G : -1;
}

/* The same of the keys j .. of segment t among the heads of k and v. */
static __device__ void name_keys(int *key, const struct attention_operands *a, int t, int g, int j)
{
    int i = (int)threadIdx.x;
    if (i < AT_TILE) key[i] = j + i < a->segments[t].k_len ? (a->segments[t].k_start + j + i) * a->NKV + g : -1;
}

/* Of the keys j .. of segment t, row r of the tile sees from[r] .. to[r] - 1. */
static __device__ void name_seen(int *from, int *to, const struct attention_operands *a, int s, int t, int first, int j)
{
    int i = (int)threadIdx.x, r = first + i;
    if (i >= AT_TILE) return;
    from[i] = to[i] = 0;
    if (r >= rows_of(a, s)) return;
    seen(a, s, t, r / (a->NH / a->NKV), &from[i], &to[i]);
    from[i] -= j;
    to[i] -= j;
}

/* ---- products of tiles ---- */

static __device__ int thread_line(void) { return (int)threadIdx.x / 16 * 4; }

static __device__ int thread_column(void) { return (int)threadIdx.x % 16 * 4; }

static __device__ float4 fma4(float a, float4 b, float4 c)
{
    c.x = fmaf(a, b.x, c.x);
    c.y = fmaf(a, b.y, c.y);
    c.z = fmaf(a, b.z, c.z);
    c.w = fmaf(a, b.w, c.w);
    return c;
}

static __device__ float4 load_four(const float *p)
{
    float4 x = { p[0], p[1], p[2], p[3] };
    return x;
}

static __device__ void store_four(float *p, float4 x)
{
    p[0] = x.x;
    p[1] = x.y;
    p[2] = x.z;
    p[3] = x.w;
}

/* The thread's 4 x 4: sum[i,j] += a[k,i] b[k,j], over the lines k in their order: two loads for 16 multiply-adds. */
static __device__ void add_tile(float *sum, const float *a, int lda, const float *b, int ldb, int lines)
{
    float4 s0 = load_four(sum), s1 = load_four(sum + 4), s2 = load_four(sum + 8), s3 = load_four(sum + 12);
    int k;
    a += thread_line();
    b += thread_column();
    for (k = 0; k < lines; k++, a += lda, b += ldb) {
        float4 x = *(const float4 *)a, y = *(const float4 *)b;
        s0 = fma4(x.x, y, s0);
        s1 = fma4(x.y, y, s1);
        s2 = fma4(x.z, y, s2);
        s3 = fma4(x.w, y, s3);
    }
    store_four(sum, s0);
    store_four(sum + 4, s1);
    store_four(sum + 8, s2);
    store_four(sum + 12, s3);
}

/* space[d,r] = x[row[r]][from + d], AT_DEPTH x AT_TILE, turned: 8 elements of 4 rows a warp, which are whole
 * sectors of memory, and 32 banks. What is past the head or the last row is 0. */
static __device__ void stage_turned(float *space, const float *x, const int *row, int HS, int from)
{
    int e;
    for (e = (int)threadIdx.x; e < AT_DEPTH * AT_TILE; e += AT_THREADS) {
        int r = e / 8 % AT_TILE, d = e % 8 + e / (8 * AT_TILE) * 8;
        space[d * AT_LINE + r] = row[r] >= 0 && from + d < HS ? x[(size_t)row[r] * (size_t)HS + (size_t)(from + d)] : 0;
    }
}

/* space[r,d] = x[row[r]][from + d], AT_TILE x AT_TILE, as it lies. */
static __device__ void stage(float *space, const float *x, const int *row, int HS, int from)
{
    int e;
    for (e = (int)threadIdx.x; e < AT_TILE * AT_TILE; e += AT_THREADS) {
        int r = e / AT_TILE, d = e % AT_TILE;
        space[e] = row[r] >= 0 && from + d < HS ? x[(size_t)row[r] * (size_t)HS + (size_t)(from + d)] : 0;
    }
}

/* The thread's 4 x 4 of x[row[i]] . y[column[j]], from d = 0 on. Begins and ends behind a barrier of its own. */
static __device__ void dot_tile(float *sum, float *space, const float *x, const int *row, const float *y,
                                const int *column, int HS)
{
    float *turned = space + AT_DEPTH * AT_LINE;
    int i, d;
    for (i = 0; i < 16; i++) sum[i] = 0;
    for (d = 0; d < HS; d += AT_DEPTH) {
        __syncthreads();
        stage_turned(space, x, row, HS, d);
        stage_turned(turned, y, column, HS, d);
        __syncthreads();
        add_tile(sum, space, AT_LINE, turned, AT_LINE, AT_DEPTH);
    }
}

/* The thread's 4 lines x (4 + 4) columns of a slice: sum[i,j] += p[k,i] x[row[k]][from + j], over the AT_TILE rows k in
 * their order. */
static __device__ void add_slice(float *sum, float *space, const float *p, const float *x, const int *row, int HS, int from)
{
    __syncthreads();
    stage(space, x, row, HS, from);
    __syncthreads();
    add_tile(sum, p, AT_LINE, space, AT_TILE, AT_TILE);
    if (from + AT_TILE >= HS) return;
    __syncthreads();
    stage(space, x, row, HS, from + AT_TILE);
    __syncthreads();
    add_tile(sum + 16, p, AT_LINE, space, AT_TILE, AT_TILE);
}

/* The block's 64 x 64 numbers to shared memory, as they are or turned. */
static __device__ void share(float *p, const float *tile, int turned)
{
    int line = thread_line(), column = thread_column(), i, j;
    __syncthreads();
    for (i = 0; i < 4; i++)
        for (j = 0; j < 4; j++) {
            if (turned) p[(column + i) * AT_LINE + line + j] = tile[4 * j + i];
            else p[(line + i) * AT_LINE + column + j] = tile[4 * i + j];
        }
}

/* x[row[i]][from ..] = scale * the thread's part of a slice. */
static __device__ void write_slice(float *x, const int *row, const float *sum, float scale, int HS, int from)
{
    int i, j;
    for (i = 0; i < 4; i++)
        for (j = 0; j < 8; j++) {
            int r = row[thread_line() + i], d = from + thread_column() + j % 4 + j / 4 * AT_TILE;
            if (r >= 0 && d < HS) x[(size_t)r * (size_t)HS + (size_t)d] = scale * sum[16 * (j / 4) + 4 * i + j % 4];
        }
}

/* Over the 16 threads that have a row: the same bits in all of them. */
static __device__ float row_max(float x)
{
    int step;
    for (step = 8; step; step /= 2) x = fmaxf(x, shuffle_xor_float(x, step));
    return x;
}

static __device__ float row_sum(float x)
{
    int step;
    for (step = 8; step; step /= 2) x += shuffle_xor_float(x, step);
    return x;
}

/* ---- forward ---- */

/* Scores become p relative to the largest of their row so far; what was summed before is brought to the same measure.
 * All in powers of 2. A thread sums its own columns; the sums are added up in the end. */
static __device__ void soften(float *score, const int *from, const int *to, float scale2, float *max, float *sum, float *out)
{
    int i, j;
    for (i = 0; i < 4; i++) {
        int line = thread_line() + i;
        float top = -INFINITY, minus, less;
        for (j = 0; j < 4; j++) {
            int c = thread_column() + j;
            if (c >= from[line] && c < to[line]) top = fmaxf(top, score[4 * i + j] * scale2);
        }
        top = fmaxf(row_max(top), max[i]);
        minus = top > -INFINITY ? -top : 0;             /* nothing seen yet: all p are 0 */
        less = exp2f(max[i] + minus);
        for (j = 0; j < 8; j++) out[16 * (j / 4) + 4 * i + j % 4] *= less;
        sum[i] *= less;
        max[i] = top;
        for (j = 0; j < 4; j++) {
            int c = thread_column() + j, yes = c >= from[line] && c < to[line];
            float p = yes ? exp2f(fmaf(score[4 * i + j], scale2, minus)) : 0;
            score[4 * i + j] = p;
            sum[i] += p;
        }
    }
}

/* out and lse. A block has a segment, a key head, and a tile of its rows, or one after the other, the last first, as
 * they see most; (S, NKV, any) blocks. Each pair of tiles takes q, k and v of AT_TILE heads from memory to shared memory
 * once, each element to a register of 16 threads; scores and sums stay in registers, p goes through shared memory. */
static __global__ void __launch_bounds__(AT_THREADS, 2) attention_forward(struct attention_operands a)
{
    __shared__ __align__(16) float space[AT_SPACE], p[AT_SPACE];
    __shared__ int query[AT_TILE], key[AT_TILE], from[AT_TILE], to[AT_TILE];
    int s = (int)blockIdx.x, g = (int)blockIdx.y, slices = (a.HS + AT_SLICE - 1) / AT_SLICE;
    int tiles = (rows_of(&a, s) + AT_TILE - 1) / AT_TILE, z, i, t, j, end;
    for (z = (int)blockIdx.z; z < tiles * slices; z += (int)gridDim.z) {
        int first = (tiles - 1 - z / slices) * AT_TILE, column = z % slices * AT_SLICE;
        float score[16], out[32], max[4], sum[4];
        for (i = 0; i < 32; i++) out[i] = 0;
        for (i = 0; i < 4; i++) {
            max[i] = -INFINITY;
            sum[i] = 0;
        }
        __syncthreads();
        name_queries(query, &a, s, g, first);
        for (t = s; t >= 0; t = a.segments[t].prefix) {
            seen_by_tile(&a, s, t, first, &j, &end);
            for (j = j / AT_TILE * AT_TILE; j < end; j += AT_TILE) {
                name_keys(key, &a, t, g, j);
                name_seen(from, to, &a, s, t, first, j);
                dot_tile(score, space, a.q, query, a.k, key, a.HS);
                soften(score, from, to, a.scale2, max, sum, out);
                share(p, score, 1);
                add_slice(out, space, p, a.v, key, a.HS, column);
            }
        }
        for (i = 0; i < 4; i++) {
            int n = query[thread_line() + i];
            float whole = row_sum(sum[i]), inverse = 1 / whole;
            for (j = 0; j < 8; j++) out[16 * (j / 4) + 4 * i + j % 4] *= inverse;
            if (n >= 0 && column == 0 && thread_column() == 0) a.lse[n] = fmaf(max[i], (float)LN2, logf(whole));
        }
        write_slice(a.out, query, out, 1, a.HS, column);
    }
}

/* ---- backward ---- */

/* delta[n,h] = dout.out: a warp a head, lanes side by side through it; N * NH warps. */
static __global__ void attention_delta(float *delta, const float *dout, const float *out, size_t heads, int HS)
{
    size_t head = (size_t)blockIdx.x * (AT_THREADS / 32) + threadIdx.x / 32;
    float sum = 0;
    int d;
    if (head < heads)
        for (d = (int)threadIdx.x % 32; d < HS; d += 32)
            sum = fmaf(dout[head * (size_t)HS + (size_t)d], out[head * (size_t)HS + (size_t)d], sum);
    sum = warp_sum(sum);
    if (head < heads && threadIdx.x % 32 == 0) delta[head] = sum;
}

/* Scores become p, and dout.v becomes ds but for the scale. What is not seen is 0. */
static __device__ void pairs(float *score, float *dp, const int *query, const int *from, const int *to,
                             const struct attention_operands *a)
{
    int i, j;
    for (i = 0; i < 4; i++) {
        int line = thread_line() + i, n = query[line];
        float minus = n >= 0 ? a->lse[n] * (float)(-1 / LN2) : 0, delta = n >= 0 ? a->delta[n] : 0;
        for (j = 0; j < 4; j++) {
            int c = thread_column() + j, yes = c >= from[line] && c < to[line];
            float p = yes ? exp2f(fmaf(score[4 * i + j], a->scale2, minus)) : 0;    /* p = softmax(z) */
            score[4 * i + j] = p;
            dp[4 * i + j] = yes ? p * (dp[4 * i + j] - delta) : 0;                  /* out = sum p v */
        }
    }
}

/* dq. Blocks, and what moves, as in attention_forward; v and dout besides. */
static __global__ void __launch_bounds__(AT_THREADS, 2) attention_dq(struct attention_operands a)
{
    __shared__ __align__(16) float space[AT_SPACE], p[AT_SPACE];
    __shared__ int query[AT_TILE], key[AT_TILE], from[AT_TILE], to[AT_TILE];
    int s = (int)blockIdx.x, g = (int)blockIdx.y, slices = (a.HS + AT_SLICE - 1) / AT_SLICE;
    int tiles = (rows_of(&a, s) + AT_TILE - 1) / AT_TILE, z, i, t, j, end;
    for (z = (int)blockIdx.z; z < tiles * slices; z += (int)gridDim.z) {
        int first = (tiles - 1 - z / slices) * AT_TILE, column = z % slices * AT_SLICE;
        float score[16], ds[16], dq[32];
        for (i = 0; i < 32; i++) dq[i] = 0;
        __syncthreads();
        name_queries(query, &a, s, g, first);
        for (t = s; t >= 0; t = a.segments[t].prefix) {
            seen_by_tile(&a, s, t, first, &j, &end);
            for (j = j / AT_TILE * AT_TILE; j < end; j += AT_TILE) {
                name_keys(key, &a, t, g, j);
                name_seen(from, to, &a, s, t, first, j);
                dot_tile(score, space, a.q, query, a.k, key, a.HS);
                dot_tile(ds, space, a.dout, query, a.v, key, a.HS);
                pairs(score, ds, query, from, to, &a);
                share(p, ds, 1);
                add_slice(dq, space, p, a.k, key, a.HS, column);                    /* z = scale q.k */
            }
        }
        write_slice(a.dq, query, dq, a.scale, a.HS, column);
    }
}

/* dk and dv. A block has a segment, a key head, and a tile of its keys, or one after the other, the first first, as
 * most see them; (S, NKV, any) blocks. It walks all tiles of rows that see its keys: q, k, v and dout of each pair of
 * tiles go to shared memory once for the scores, q and dout once more as they lie for the sums. */
static __global__ void __launch_bounds__(AT_THREADS, 2) attention_dkv(struct attention_operands a)
{
    __shared__ __align__(16) float space[AT_SPACE], p[AT_SPACE];
    __shared__ int query[AT_TILE], key[AT_TILE], from[AT_TILE], to[AT_TILE];
    int t = (int)blockIdx.x, g = (int)blockIdx.y, slices = (a.HS + AT_SLICE - 1) / AT_SLICE;
    int keys = a.segments[t].k_len, tiles = (keys + AT_TILE - 1) / AT_TILE, z, i, s, first, begin, end;
    for (z = (int)blockIdx.z; z < tiles * slices; z += (int)gridDim.z) {
        int j = z / slices * AT_TILE, column = z % slices * AT_SLICE, wanted = a.segments[t].q_len > 0;
        float score[16], ds[16], dk[32], dv[32];
        for (i = 0; i < 32; i++) dk[i] = dv[i] = 0;
        __syncthreads();
        name_keys(key, &a, t, g, j);
        __syncthreads();                /* a tile that a window hides from all rows comes to no other barrier */
        for (s = t; s < a.S; s++) {
            if (!continues(a.segments, s, t)) continue;
            if (s > t) wanted = 1;
            for (first = 0; first < rows_of(&a, s); first += AT_TILE) {
                seen_by_tile(&a, s, t, first, &begin, &end);
                if (begin >= j + AT_TILE || end <= j) continue;
                name_queries(query, &a, s, g, first);
                name_seen(from, to, &a, s, t, first, j);
                dot_tile(score, space, a.q, query, a.k, key, a.HS);
                dot_tile(ds, space, a.dout, query, a.v, key, a.HS);
                pairs(score, ds, query, from, to, &a);
                share(p, score, 0);
                add_slice(dv, space, p, a.dout, query, a.HS, column);               /* out = sum p v */
                share(p, ds, 0);
                add_slice(dk, space, p, a.q, query, a.HS, column);                  /* z = scale q.k */
            }
        }
        if (wanted) write_slice(a.dk, key, dk, a.scale, a.HS, column);
        if (wanted) write_slice(a.dv, key, dv, 1, a.HS, column);
    }
}

/* ---- the operations ---- */

/* Blocks in z, so that few segments fill the device too, some blocks for each of its processors. A long segment among
 * many short ones has four at the least; how many there are changes no number. */
static int blocks_in_z(int S, int NKV)
{
    int processors = 1;
    long long z;
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0);
    z = 16LL * processors / ((long long)S * NKV);
    return (int)(z < 4 ? 4 : z > 65535 ? 65535 : z);
}

static struct attention_operands operands(const buf *q, const buf *k, const buf *v, const ints *segments, int S, int NH,
                                          int NKV, int HS, double scale, int window)
{
    struct attention_operands a;
    memset(&a, 0, sizeof a);
    a.q = (const float *)q;
    a.k = (const float *)k;
    a.v = (const float *)v;
    a.segments = (const struct segment *)segments;
    a.S = S;
    a.NH = NH;
    a.NKV = NKV;
    a.HS = HS;
    a.window = window;
    a.scale = (float)scale;
    a.scale2 = (float)(scale / LN2);
    return a;
}

static void attention(struct kernel_ctx *c, buf *out, buf *lse, const buf *q, const buf *k, const buf *v,
                      const ints *segments, int S, int NH, int NKV, int HS, double scale, int window)
{
    struct attention_operands a = operands(q, k, v, segments, S, NH, NKV, HS, scale, window);
    (void)c;
    if (!S || !NH || !HS) return;
    a.out = (float *)out;
    a.lse = (float *)lse;
    LAUNCH(attention_forward, grid3(S, NKV, blocks_in_z(S, NKV)), AT_THREADS, a);
}

static void attention_backward(struct kernel_ctx *c, buf *dq, buf *dk, buf *dv, buf *delta, const buf *dout,
                               const buf *out, const buf *lse, const buf *q, const buf *k, const buf *v,
                               const ints *segments, int S, int N, int NH, int NKV, int HS, double scale, int window)
{
    struct attention_operands a = operands(q, k, v, segments, S, NH, NKV, HS, scale, window);
    size_t heads = (size_t)N * (size_t)NH;
    int warps = AT_THREADS / 32;
    (void)c;
    if (!S || !NH || !HS) return;
    a.dq = (float *)dq;
    a.dk = (float *)dk;
    a.dv = (float *)dv;
    a.delta = (float *)delta;
    a.lse = (float *)lse;
    a.dout = (const float *)dout;
    if (N) LAUNCH(attention_delta, grid3((int)((heads + warps - 1) / warps), 1, 1), AT_THREADS, a.delta, a.dout, (const float *)out, heads, HS);
    LAUNCH(attention_dq, grid3(S, NKV, blocks_in_z(S, NKV)), AT_THREADS, a);
    LAUNCH(attention_dkv, grid3(S, NKV, blocks_in_z(S, NKV)), AT_THREADS, a);
}
