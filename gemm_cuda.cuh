/* gemm_cuda.cuh - embedding and products on the device. Part of kernels_cuda.cu.
 *
 * All three products are C[M,N] = A[M,K] B[K,N], cut into tiles of C, a block of threads to each:
 *     matmul      x W^T           B(k,n) = W[n][k]
 *     matmul_dx   dout W          B(k,n) = W[k][n]
 *     matmul_dw   dout^T x        A(m,k) = dout[k][m], B(k,n) = x[k][n]
 * A block goes along the terms k in steps: it brings the step's part of A and of B to shared memory, where a weight
 * arrives decoded, and each thread (in bf16: each warp) multiplies what its own part of the tile needs of them. So a
 * weight is decoded once for each row of tiles, and nowhere whole.
 *
 * Numbers: an element is one chain of fused multiply-adds over a run of terms in their order (in bf16: of sums of 16 terms).
 * Where C is too small to keep a device busy the terms are cut into up to PARTS runs, whose sums are added in
 * their order by a second kernel. The length of a run follows from K, N and, of matmul_dw, M; neither the shape
 * of a tile nor the device decides a bit, and a row of matmul and matmul_dx depends on that row alone. */
#ifndef GEMM_CUDA_CUH
#define GEMM_CUDA_CUH

#include "decode_cuda.cuh"
#include "kernels.h"

enum {
    GEMM_THREADS = 256,            /* threads */
    STEP = 32,              /* terms of a step: a block of the quantised types */
    PARTS = 8,              /* the most runs of terms */
    LEAST_RUN = 256,        /* terms */
    TILE = 64,              /* columns by which runs are chosen, whatever the tiles are */
    PARTS_MOST = 1 << 19    /* elements of matmul_dw's C times its parts */
};

struct product {
    int M, N, K;
    const float *a;
    int a_columns;          /* A(m,k) is a[m K + k], or, when 1, a[k M + m] */
    struct weight w;        /* B is its transpose, or W */
    struct quantised q;     /* what w.q points at in the host's memory */
    int transposed;
    float *c;
    float scale;
    const float *bias;      /* [N] or NULL */
    int accumulate;
    int run;                /* terms that a block sums */
    float *parts;           /* [runs][M][N], or NULL: one run has all terms */
    const unsigned *pairs;  /* in bf16: A, a row of `words` pairs, filled up with zeros */
    int words;
    int by_four;            /* C may be written in vectors of four */
};

/* What becomes of a sum: c = scale * sum + bias, or +=; one of a part waits for the others. */
static __device__ float result(const struct product *p, int n, float sum, const float *c)
{
    float y = p->scale * sum;
    if (p->parts) return sum;
    if (p->bias) y += p->bias[n];
    return p->accumulate ? *c + y : y;
}

/* Where this block's sum of C[m][n] goes. */
static __device__ float *place_of(const struct product *p, int m, int n)
{
    size_t at = (size_t)m * (size_t)p->N + (size_t)n;
    return p->parts ? p->parts + (size_t)blockIdx.z * (size_t)p->M * (size_t)p->N + at : p->c + at;
}

/* ---- f32 ---- */

/* tile[k * ld + i] = x[(i0 + i) * stride + k0 + k], i < width, k < STEP; zeros past the ends: neighbours read along k. */
static __device__ void load_rows(float *tile, int ld, int width, const float *x, int stride, int i0, int i_end, int k0, int k_end)
{
    int s;
    for (s = (int)threadIdx.x; s < width * STEP; s += GEMM_THREADS) {
        int i = i0 + s / STEP, k = k0 + s % STEP;
        tile[s % STEP * ld + s / STEP] = i < i_end && k < k_end ? x[(size_t)i * (size_t)stride + (size_t)k] : 0;
    }
}

/* tile[k * ld + i] = x[(k0 + k) * stride + i0 + i]: neighbours read, and write, along i. */
static __device__ void load_columns(float *tile, int ld, int width, const float *x, int stride, int i0, int i_end, int k0, int k_end)
{
    int s;
    for (s = (int)threadIdx.x; s < width * STEP; s += GEMM_THREADS) {
        int i = i0 + s % width, k = k0 + s / width;
        tile[s / width * ld + s % width] = i < i_end && k < k_end ? x[(size_t)k * (size_t)stride + (size_t)i] : 0;
    }
}

/* The same of a weight that is decoded: each of `width` threads makes 32 numbers of a row, which are a column of the
 * tile where B is the transpose, else part of a row of it. */
static __device__ void load_weight(const struct product *p, float *tile, int ld, int width, int n0, int k0)
{
    int t = (int)threadIdx.x, k = p->transposed ? 0 : t / (width / STRIP), i = p->transposed ? t : t % (width / STRIP) * STRIP;
    int row = p->transposed ? n0 + i : k0 + k, col = p->transposed ? k0 : n0 + i, next = p->transposed ? ld : 1, j;
    int n = row < p->w.rows ? p->w.cols - col : 0;
    float numbers[STRIP];
    if (t >= width) return;
    decode_piece(&p->w, &p->q, row, col, n < STRIP ? n : STRIP, numbers);
    for (j = 0; j < STRIP; j++) tile[k * ld + i + j * next] = numbers[j];
}

static __device__ void load_b(const struct product *p, float *tile, int ld, int width, int n0, int k0)
{
    const float *x = (const float *)p->w.data + p->w.offset;
    if (p->w.type != TYPE_REAL) load_weight(p, tile, ld, width, n0, k0);
    else if (p->transposed) load_rows(tile, ld, width, x, p->K, n0, p->N, k0, p->K);
    else load_columns(tile, ld, width, x, p->N, n0, p->N, k0, p->K);
}

static __device__ void multiply_add(float *sum, float a, float4 b)
{
    sum[0] = fmaf(a, b.x, sum[0]);
    sum[1] = fmaf(a, b.y, sum[1]);
    sum[2] = fmaf(a, b.z, sum[2]);
    sum[3] = fmaf(a, b.w, sum[3]);
}

static __device__ void put_four(const struct product *p, int m, int n, const float *sum)
{
    float *c = place_of(p, m, n);
    float4 v;
    int i;
    if (m >= p->M || n >= p->N) return;
    if (p->by_four) {
        v.x = result(p, n, sum[0], c);
        v.y = result(p, n + 1, sum[1], c + 1);
        v.z = result(p, n + 2, sum[2], c + 2);
        v.w = result(p, n + 3, sum[3], c + 3);
        *(float4 *)c = v;
    } else {
        for (i = 0; i < 4; i++) if (n + i < p->N) c[i] = result(p, n + i, sum[i], c + i);
    }
}

/* A tile of 4 `tall` rows and `across` GEMM_THREADS / tall columns: a thread has 4 rows and `across` (4 or 8) columns, in
 * fours, of the columns that are side by side those of its neighbours. For each term it reads a float4 of A, which
 * `tall` threads share, and of B, which half a warp or less has side by side: no bank serves two words at once.
 * A row of the shared tiles has 4 numbers more, so that what is stored down their columns falls into more banks. */
static __device__ void product_tile(const struct product *p, float *a_tile, float *b_tile, int tall, int across)
{
    int rows = 4 * tall, beside = GEMM_THREADS / tall, columns = across * beside, lda = rows + 4, ldb = columns + 4;
    int x = (int)threadIdx.x % beside, y = (int)threadIdx.x / beside, i, j, k, k0;
    int m0 = (int)blockIdx.x * rows, n0 = (int)blockIdx.y * columns;
    int from = (int)blockIdx.z * p->run, to = p->K - from < p->run ? p->K : from + p->run;
    float sum[4 * 8];
    for (i = 0; i < 4 * 8; i++) sum[i] = 0;
    for (k0 = from; k0 < to; k0 += STEP) {
        int terms = to - k0 < STEP ? to - k0 : STEP;
        __syncthreads();
        if (p->a_columns) load_columns(a_tile, lda, rows, p->a, p->M, m0, p->M, k0, p->K);
        else load_rows(a_tile, lda, rows, p->a, p->K, m0, p->M, k0, p->K);
        load_b(p, b_tile, ldb, columns, n0, k0);
        __syncthreads();
        for (k = 0; k < terms; k++) {
            float4 a = *(const float4 *)(a_tile + k * lda + 4 * y);
            for (j = 0; j < across; j += 4) {
                float4 b = *(const float4 *)(b_tile + k * ldb + j * beside + 4 * x);
                multiply_add(sum + j, a.x, b);
                multiply_add(sum + 8 + j, a.y, b);
                multiply_add(sum + 16 + j, a.z, b);
                multiply_add(sum + 24 + j, a.w, b);
            }
        }
    }
    for (i = 0; i < 4; i++)
        for (j = 0; j < across; j += 4) put_four(p, m0 + 4 * y + i, n0 + j * beside + 4 * x, sum + 8 * i + j);
}

/* Launch: grid [tiles of rows][tiles of columns][runs], GEMM_THREADS threads. Each tile of A and B goes from the device's memory to
 * shared memory once for each block of its row or column, C is written once. */
static __global__ void __launch_bounds__(GEMM_THREADS, 2) product_wide(struct product p)     /* 64 x 128 */
{
    __shared__ __align__(16) float a_tile[STEP * 68];
    __shared__ __align__(16) float b_tile[STEP * 132];
    product_tile(&p, a_tile, b_tile, 16, 8);
}

static __global__ void product_narrow(struct product p)         /* 128 x 32: thin C, h = x A^T, dB */
{
    __shared__ __align__(16) float a_tile[STEP * 132];
    __shared__ __align__(16) float b_tile[STEP * 36];
    product_tile(&p, a_tile, b_tile, 32, 4);
}

static __global__ void product_flat(struct product p)           /* 32 x 128: low C, dA, products of few rows */
{
    __shared__ __align__(16) float a_tile[STEP * 36];
    __shared__ __align__(16) float b_tile[STEP * 132];
    product_tile(&p, a_tile, b_tile, 8, 4);
}

/* Launch: a thread to an element of C. Reads all parts, writes C. */
static __global__ void add_parts(struct product p, const float *parts, int runs)
{
    size_t size = (size_t)p.M * (size_t)p.N, i = (size_t)blockIdx.x * GEMM_THREADS + threadIdx.x;
    float sum;
    int r;
    if (i < size) {
        sum = parts[i];
        for (r = 1; r < runs; r++) sum += parts[(size_t)r * size + i];
        p.c[i] = result(&p, (int)(i % (size_t)p.N), sum, p.c + i);
    }
}

/* ---- few rows, as in generation ---- */

enum { SPAN = WARP * STRIP, SPAN_ROOM = WARP * (STRIP + 1) };

/* C = A W^T, M < FEW_ROWS. Launch: a warp to a column of C (a row of W), GEMM_THREADS / 32 of them to a block. All of A goes by in spans
 * of 1024 columns in shared memory, 33 words to 32 of them, so that the lanes, each with 32 of its own, read other
 * banks. A lane decodes its 32 of the row of W; the lanes' sums are added by warp_sum(). W is read once. */
static __global__ void product_few(struct product p)
{
    __shared__ float a_span[(FEW_ROWS - 1) * SPAN_ROOM];
    int lane = (int)threadIdx.x % WARP, n = (int)blockIdx.x * (GEMM_THREADS / WARP) + (int)threadIdx.x / WARP, i, j, k0, m;
    float sum[FEW_ROWS - 1], numbers[STRIP];
    for (m = 0; m < FEW_ROWS - 1; m++) sum[m] = 0;
    for (k0 = 0; k0 < p.K; k0 += SPAN) {
        int k = k0 + lane * STRIP, left = n < p.N ? p.K - k : 0;
        __syncthreads();
        for (i = (int)threadIdx.x; i < p.M * SPAN; i += GEMM_THREADS) {
            int at = k0 + i % SPAN;
            a_span[i / SPAN * SPAN_ROOM + i % SPAN / STRIP * (STRIP + 1) + i % STRIP] =
                at < p.K ? p.a[(size_t)(i / SPAN) * (size_t)p.K + (size_t)at] : 0;
        }
        __syncthreads();
        decode_piece(&p.w, &p.q, n, k, left < STRIP ? left : STRIP, numbers);
        for (m = 0; m < FEW_ROWS - 1; m++) {
            const float *a = a_span + m * SPAN_ROOM + lane * (STRIP + 1);
            if (m < p.M) for (j = 0; j < STRIP; j++) sum[m] = fmaf(a[j], numbers[j], sum[m]);
        }
    }
    for (m = 0; m < FEW_ROWS - 1; m++) {
        float all = warp_sum(sum[m]), *c = p.c + (size_t)m * (size_t)p.N + (size_t)n;
        if (!lane && m < p.M && n < p.N) *c = result(&p, n, all, c);
    }
}

/* ---- bf16 ---- */

enum {
    STEP16 = 64,                    /* terms of a step: half of the threads decode each half of it */
    WORDS16 = STEP16 / 2,           /* pairs of terms */
    LD16 = WORDS16 + 4,             /* words from one row or column to the next: 8 of them, 4 words of each, lie in 32 banks */
    COLUMNS16 = 128,
    ROUNDED = 64 << 20              /* bytes of A rounded at a time */
};

/* Where column n of the shared tile of B begins. Four words more for each 16 columns, so that the lanes of store_copied() hit
 * 32 banks. */
static __device__ int column16(int n) { return n * LD16 + n / 16 * 4; }

/* Numbers of 32 terms of one column, or zeros. */
static __device__ void store_transposed(unsigned *tile, const float *numbers)
{
    int i;
    for (i = 0; i < STRIP / 2; i += 4) {
        uint4 v;
        v.x = pair_bf16(numbers[2 * i], numbers[2 * i + 1]);
        v.y = pair_bf16(numbers[2 * i + 2], numbers[2 * i + 3]);
        v.z = pair_bf16(numbers[2 * i + 4], numbers[2 * i + 5]);
        v.w = pair_bf16(numbers[2 * i + 6], numbers[2 * i + 7]);
        *(uint4 *)(tile + i) = v;
    }
}

/* Term k of 32 columns from n on. Pairs of terms lie in one word: the lanes of an even term and of the next one, which is 4
 * lanes on, give each other 16 of their numbers and store the pairs of 16 columns each. */
static __device__ void store_copied(unsigned *tile, int k, int n, const float *numbers)
{
    int odd = k % 2, i;
    tile += column16(n + 16 * odd) + k / 2;
    for (i = 0; i < STRIP / 2; i++) {
        float other = shuffle_xor_float(odd ? numbers[i] : numbers[i + 16], 4), own = odd ? numbers[i + 16] : numbers[i];
        tile[i * LD16] = odd ? pair_bf16(other, own) : pair_bf16(own, other);
    }
}

/* A step of B: all threads decode 32 numbers each. */
static __device__ void load_b16(const struct product *p, unsigned *tile, int n0, int k0)
{
    int t = (int)threadIdx.x, n = p->transposed ? t / 2 : t % 4 * STRIP, k = p->transposed ? t % 2 * STRIP : t / 4;
    int row = p->transposed ? n0 + n : k0 + k, col = p->transposed ? k0 + k : n0 + n;
    int have = row < p->w.rows ? p->w.cols - col : 0;
    float numbers[STRIP];
    decode_piece(&p->w, &p->q, row, col, have < STRIP ? have : STRIP, numbers);
    if (p->transposed) store_transposed(tile + column16(n) + k / 2, numbers);
    else store_copied(tile, k, n, numbers);
}

/* A step of `rows` rows of A, which lie rounded and filled up: 16 bytes at a time. */
static __device__ void load_a16(const struct product *p, unsigned *tile, int rows, int m0, int k0)
{
    int s;
    for (s = (int)threadIdx.x; s < rows * (WORDS16 / 4); s += GEMM_THREADS) {
        int m = s / (WORDS16 / 4), word = s % (WORDS16 / 4) * 4;
        uint4 v = { 0, 0, 0, 0 };
        if (m0 + m < p->M) v = *(const uint4 *)(p->pairs + (size_t)(m0 + m) * (size_t)p->words + (size_t)(k0 / 2 + word));
        *(uint4 *)(tile + m * LD16 + word) = v;
    }
}

static __device__ void put_two(const struct product *p, int m, int n, const float *sum)
{
    float *c = place_of(p, m, n);
    float2 v;
    if (m >= p->M || n >= p->N) return;
    if (p->by_four) {
        v.x = result(p, n, sum[0], c);
        v.y = result(p, n + 1, sum[1], c + 1);
        *(float2 *)c = v;
    } else {
        c[0] = result(p, n, sum[0], c);
        if (n + 1 < p->N) c[1] = result(p, n + 1, sum[1], c + 1);
    }
}

/* A tile of 32 `down` rows and 128 columns: eight warps, two down and four across, of which each has `down` times 4 tiles of mma,
 * 16 x 8 (device.cuh has the places of their numbers in lanes). */
static __device__ void product_tile16(const struct product *p, unsigned *a_tile, unsigned *b_tile, int down)
{
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, g = lane / 4, l = lane % 4, i, j, k, k0;
    int m0 = (int)blockIdx.x * 32 * down, n0 = (int)blockIdx.y * COLUMNS16, m = warp / 4 * 16 * down, n = warp % 4 * 32;
    int from = (int)blockIdx.z * p->run, to = p->K - from < p->run ? p->K : from + p->run;
    float sum[4][4][4];
    unsigned a[4], b[4][2];
    for (i = 0; i < 4; i++)
        for (j = 0; j < 4; j++) sum[i][j][0] = sum[i][j][1] = sum[i][j][2] = sum[i][j][3] = 0;
    for (k0 = from; k0 < to; k0 += STEP16) {
        __syncthreads();
        load_a16(p, a_tile, 32 * down, m0, k0);
        load_b16(p, b_tile, n0, k0);
        __syncthreads();
        for (k = l; k < WORDS16; k += 8) {
            for (j = 0; j < 4; j++) {
                const unsigned *column = b_tile + column16(n + 8 * j + g) + k;
                b[j][0] = column[0];
                b[j][1] = column[4];
            }
            UNROLL
            for (i = 0; i < down; i++) {
                const unsigned *row = a_tile + (m + 16 * i + g) * LD16 + k;
                a[0] = row[0];
                a[1] = row[8 * LD16];
                a[2] = row[4];
                a[3] = row[8 * LD16 + 4];
                for (j = 0; j < 4; j++) mma_bf16(sum[i][j], a, b[j]);
            }
        }
    }
    UNROLL
    for (i = 0; i < down; i++)
        for (j = 0; j < 4; j++) {
            put_two(p, m0 + m + 16 * i + g, n0 + n + 8 * j + 2 * l, sum[i][j]);
            put_two(p, m0 + m + 16 * i + g + 8, n0 + n + 8 * j + 2 * l, sum[i][j] + 2);
        }
}

/* Launch: grid [tiles of rows][tiles of columns][runs], GEMM_THREADS threads. Two blocks share a processor, so that one decodes
 * while the other multiplies. */
static __global__ void __launch_bounds__(GEMM_THREADS, 2) product_bf16(struct product p)        /* 128 x 128 */
{
    __shared__ __align__(16) unsigned a_tile[128 * LD16];
    __shared__ __align__(16) unsigned b_tile[COLUMNS16 * LD16 + COLUMNS16 / 16 * 4];
    product_tile16(&p, a_tile, b_tile, 4);
}

static __global__ void __launch_bounds__(GEMM_THREADS, 2) product_bf16_low(struct product p)    /* 64 x 128: more blocks of smaller products */
{
    __shared__ __align__(16) unsigned a_tile[64 * LD16];
    __shared__ __align__(16) unsigned b_tile[COLUMNS16 * LD16 + COLUMNS16 / 16 * 4];
    product_tile16(&p, a_tile, b_tile, 2);
}

/* pairs[M][words] from a[M][K]. Launch: a thread to a word. Reads A once, so that the tiles read half of its bytes, many
 * times. */
static __global__ void round_rows(unsigned *pairs, const float *a, int M, int K, int words)
{
    size_t i = (size_t)blockIdx.x * GEMM_THREADS + threadIdx.x, m = i / (size_t)words;
    int k = 2 * (int)(i % (size_t)words);
    const float *at = a + m * (size_t)K + (size_t)k;
    if (m < (size_t)M) pairs[i] = pair_bf16(k < K ? at[0] : 0, k + 1 < K ? at[1] : 0);
}

/* ---- launches ---- */

static int ceil_div(int n, int by) { return n / by + (n % by != 0); }

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Terms of a run when the tiles of C ask for `parts` of them. */
static int run_length(int K, size_t parts)
{
    int run = ceil_div(ceil_div(K, parts < 1 ? 1 : parts > PARTS ? PARTS : (int)parts), STEP16) * STEP16;
    return run < LEAST_RUN ? LEAST_RUN : run;
}

/* Of matmul and matmul_dx, whatever M is. */
static int run_by_columns(int N, int K) { return run_length(K, (size_t)(PARTS / (N > 0 ? ceil_div(N, TILE) : 1))); }

/* Of matmul_dw: a small C has many. */
static int run_by_size(int M, int N, int K) { return run_length(K, PARTS_MOST / most((size_t)M * (size_t)N, 1)); }

static size_t row_bytes16(int K) { return (size_t)ceil_div(K, STEP16) * STEP16 * 2; }

/* Scratch memory: the parts of a product (matmul's have PARTS * TILE columns or fewer), and room for rows of A, rounded.
 * A fused matrix may be wider than what is asked for; fewer of its rows are taken at a time. */
static size_t gemm_work_bytes(const struct kernel_sizes *s)
{
    size_t rows = (size_t)s->N, width = (size_t)(s->width > s->V ? s->width : s->V), row = row_bytes16((int)width);
    size_t columns = PARTS * least(width, TILE), edge = least(width, TILE * TILE), size = least(PARTS_MOST, PARTS * edge * edge);
    return (most(rows * columns, size) * sizeof(float) + 63) / 64 * 64 + most(least(rows * row, ROUNDED), least(rows, 128) * row);
}

static dim3 tiles(const struct product *p, int rows, int columns)
{
    return grid3((unsigned)ceil_div(p->M, rows), (unsigned)ceil_div(p->N, columns), (unsigned)ceil_div(p->K, p->run));
}

static dim3 threads_for(size_t n) { return grid3((unsigned)((n + GEMM_THREADS - 1) / GEMM_THREADS), 1, 1); }

static void launch_f32(const struct product *p)
{
    if (p->N <= 64) LAUNCH(product_narrow, tiles(p, 128, 32), GEMM_THREADS, *p);
    else if (p->M <= 64) LAUNCH(product_flat, tiles(p, 32, 128), GEMM_THREADS, *p);
    else LAUNCH(product_wide, tiles(p, 64, 128), GEMM_THREADS, *p);
}

static void launch_bf16(const struct product *p, unsigned *pairs)
{
    dim3 large = tiles(p, 128, COLUMNS16);
    LAUNCH(round_rows, threads_for((size_t)p->M * (size_t)p->words), GEMM_THREADS, pairs, p->a, p->M, p->K, p->words);
    if ((size_t)large.x * large.y * large.z >= 256) LAUNCH(product_bf16, large, GEMM_THREADS, *p);
    else LAUNCH(product_bf16_low, tiles(p, 64, COLUMNS16), GEMM_THREADS, *p);
}

/* A product, so many rows at a time as there is scratch memory for: in bf16 for their numbers, rounded, and behind them for the
 * parts of their sums. How the terms are cut follows from one row alone, or rows would have other bits among more of them.
 * What there is no such room for is one run: parts of matmul_dw, whose rows stay together, where an adapter's rank is larger
 * than any width. */
static void multiply(struct kernel_ctx *c, const struct product *whole, int bf16)
{
    struct product p = *whole;
    size_t runs = p.K > 0 ? (size_t)ceil_div(p.K, p.run) : 0, row = bf16 ? row_bytes16(p.K) : 0;
    size_t part = runs > 1 ? runs * (size_t)p.N * sizeof(float) : 0;
    int rows = p.M, done;
    if (row + part * (p.a_columns ? (size_t)p.M : 1) > c->work_bytes) {
        p.run = p.K;
        runs = 1;
        part = 0;
    }
    if (!p.a_columns && row + part > 0) rows = (int)least(most(c->work_bytes / (row + part), 1), (size_t)p.M);
    p.words = (int)(row / 4);
    p.pairs = (const unsigned *)c->work;
    for (done = 0; runs && p.N > 0 && done < whole->M; done += rows) {
        float *parts = runs > 1 ? (float *)((char *)c->work + (size_t)rows * row) : NULL;
        p.M = whole->M - done < rows ? whole->M - done : rows;
        p.parts = parts;
        p.by_four = p.N % 4 == 0 && (parts || (size_t)p.c % 16 == 0);
        if (bf16) launch_bf16(&p, (unsigned *)c->work);
        else launch_f32(&p);
        p.parts = NULL;
        if (parts) LAUNCH(add_parts, threads_for((size_t)p.M * (size_t)p.N), GEMM_THREADS, p, (const float *)parts, (int)runs);
        p.a += (size_t)p.M * (size_t)p.K;
        p.c += (size_t)p.M * (size_t)p.N;
    }
}

/* ---- the operations ---- */

/* Launch: a block to a row of out, a thread to 32 numbers of it at a time. Reads what it decodes, writes out once. */
static __global__ void embed_kernel(float *out, struct weight w, struct quantised q, const int *ids)
{
    float numbers[STRIP], *out_n = out + (size_t)blockIdx.x * (size_t)w.cols;
    int row = ids[blockIdx.x], col, i;
    for (col = (int)threadIdx.x * STRIP; col < w.cols; col += (int)blockDim.x * STRIP) {
        int n = w.cols - col < STRIP ? w.cols - col : STRIP;
        decode_piece(&w, &q, row, col, n, numbers);
        for (i = 0; i < STRIP; i++) if (i < n) out_n[col + i] = numbers[i];
    }
}

static int embed(struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N)
{
    struct quantised q;
    if (!decodes(w)) return KERNEL_UNSUPPORTED;
    memset(&q, 0, sizeof q);
    if (w->q) q = *w->q;
    if (N > 0 && w->cols > 0) LAUNCH(embed_kernel, grid3((unsigned)N, 1, 1), 128, (float *)out, *w, q, (const int *)ids);
    return 0;
}

static struct product product_with(const struct weight *w, buf *out, const buf *in, double scale, int accumulate, int M)
{
    struct product p;
    memset(&p, 0, sizeof p);
    p.M = M;
    p.a = (const float *)in;
    p.w = *w;
    if (w->q) p.q = *w->q;
    p.c = (float *)out;
    p.scale = (float)scale;
    p.accumulate = accumulate;
    return p;
}

static int in_bf16(const struct kernel_ctx *c, const struct weight *w, int N)
{
    return c->compute == COMPUTE_BF16 && w->type != TYPE_REAL && N >= FEW_ROWS;
}

static int matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias, double scale,
                  int accumulate, int N)
{
    struct product p = product_with(w, out, x, scale, accumulate, N);
    if (!decodes(w)) return KERNEL_UNSUPPORTED;
    p.N = w->rows;
    p.K = w->cols;
    p.transposed = 1;
    p.bias = (const float *)bias;
    p.run = run_by_columns(p.N, p.K);
    if (N >= FEW_ROWS) multiply(c, &p, in_bf16(c, w, N));
    else if (N > 0 && p.N > 0 && p.K > 0)
        LAUNCH(product_few, grid3((unsigned)ceil_div(p.N, GEMM_THREADS / WARP), 1, 1), GEMM_THREADS, p);
    return 0;
}

static int matmul_dx(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w, double scale, int accumulate,
                     int N)
{
    struct product p = product_with(w, dx, dout, scale, accumulate, N);
    if (!decodes(w)) return KERNEL_UNSUPPORTED;
    p.N = w->cols;
    p.K = w->rows;
    p.run = run_by_columns(p.N, p.K);
    multiply(c, &p, in_bf16(c, w, N));
    return 0;
}

static void matmul_dw(struct kernel_ctx *c, buf *dw, const buf *dout, const buf *x, double scale, int N, int O, int I)
{
    struct weight rows;
    struct product p;
    memset(&rows, 0, sizeof rows);
    rows.type = TYPE_REAL;
    rows.rows = N;
    rows.cols = I;
    rows.data = x;
    p = product_with(&rows, dw, dout, scale, 1, O);
    p.a_columns = 1;
    p.N = I;
    p.K = N;
    p.run = run_by_size(O, I, N);
    multiply(c, &p, 0);
}

#endif
