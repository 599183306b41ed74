/* kernels_cuda.cu - the table "cuda": every operation of kernels.h on one NVIDIA GPU, with the names and the order of
 * kernels_ref.c. Products are in gemm_cuda.cuh, what weights are decoded with in decode_cuda.cuh, attention in
 * attention_cuda.cuh: parts of this file.
 *
 * It is C that C++ takes too: nvcc compiles it for GPUs, and everywhere else a C compiler compiles it over
 * test/emulator.h (device.cuh). All launches go to the default stream, one after the other; the host waits only where
 * numbers come back to it.
 *
 * Launch shapes. Most of these operations read and write each number once, so that the memory decides. What matters is
 * then that a warp's 32 threads read 32 neighbours, and that there are enough blocks for all processors:
 *     elements   a thread an element, THREADS of them a block
 *     rows       blockIdx.x is the row, blockIdx.y the piece of THREADS of its columns
 *     a row      the whole block: what sums over a row
 *     columns    a warp's lanes are 32 columns, its block's 32 warps take the rows by turns: what sums over rows
 * There are no vector loads: a table's buffers begin where the model lays them, at any multiple of 4 bytes.
 *
 * Sums have a fixed tree, and every number one owner: no float is added to atomically, and the bits are the same run to
 * run. A thread adds up what it reads, then a tree goes over the threads. Double stands where the reference has it and it
 * costs little: the inverse of a norm, losses and the sums in them, the sum of squares, the optimizer's step. Norms' own
 * sums and what is computed for each element are float.
 *
 * Errors. The runtime keeps a thread's last error until it is asked for and taken, and nothing here takes one, but
 * for too little memory, which alloc() answers itself. So a launch or a copy that failed is seen by failed() however
 * much later, and until then numbers come back as NaN. */
#include "kernels.h"
#include "nf4.h"
#include "device.cuh"

#include <math.h>
#include <stdio.h>

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-parameter"     /* not every operation needs its context */
#endif

enum { THREADS = 256 };

/* Enough blocks for n elements. */
static dim3 elements(size_t n) { return grid3((unsigned)((n + THREADS - 1) / THREADS), 1, 1); }

static dim3 rows_by(int N, int C) { return grid3((unsigned)N, ((unsigned)C + THREADS - 1) / THREADS, 1); }

/* This thread's element. */
static __device__ size_t element(void) { return (size_t)blockIdx.x * THREADS + threadIdx.x; }

static __device__ int column(void) { return (int)(blockIdx.y * THREADS + threadIdx.x); }

/* ---- the table itself ---- */

static int usable(char *why, size_t n)
{
    int devices = 0, driver = 0, major = 0, minor = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error == cudaSuccess && devices) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    if (error == cudaSuccess && devices) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    if (error != cudaSuccess) cudaGetLastError();       /* what is said here is no failure */
    if (cudaDriverGetVersion(&driver) != cudaSuccess || !driver)
        snprintf(why, n, "no NVIDIA driver is installed");
    else if (error == cudaErrorInsufficientDriver)
        snprintf(why, n, "the NVIDIA driver is for CUDA %d.%d, and this was built with a newer one", driver / 1000, driver % 1000 / 10);
    else if (error == cudaErrorNoDevice || (error == cudaSuccess && !devices))
        snprintf(why, n, "there is no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it");
    else if (error != cudaSuccess)
        snprintf(why, n, "the GPU cannot be used: %s", cudaGetErrorString(error));
    else if (major < 8)
        snprintf(why, n, "the GPU has compute capability %d.%d, and 8.0 is the least", major, minor);
    else
        return 1;
    return 0;
}

static int has_bf16(char *why, size_t n)
{
    if (!usable(why, n)) return 0;      /* what it asks for has them */
    snprintf(why, n, "tensor cores (mma)");
    return 1;
}

enum {
    SUM_PARTS = 1024,           /* a sum over all elements has so many parts at most */
    SUM_PART = 4096,            /* of so many elements at least */
    MAP = 256, MAPS = 4 * MAP   /* the signed map, its midpoints, the unsigned map, its midpoints */
};

static size_t gemm_work_bytes(const struct kernel_sizes *s);

static size_t work_bytes(const struct kernel_sizes *s)
{
    const size_t all[] = { SUM_PARTS * sizeof(double), (size_t)s->N * sizeof(float), gemm_work_bytes(s) };
    size_t most = 0, i;
    for (i = 0; i < sizeof all / sizeof *all; i++) if (all[i] > most) most = all[i];
    return most;
}

static void *alloc(struct kernel_ctx *c, size_t bytes);
static void release(struct kernel_ctx *c, void *p);
static void up(struct kernel_ctx *c, buf *dst, const float *src, size_t n);

/* The table's own are the maps of 8-bit moments, in the GPU's memory. */
static int open(struct kernel_ctx *c)
{
    float maps[MAPS];
    int i;
    for (i = 0; i < 2; i++) {
        float *map = maps + i * 2 * MAP;
        dynamic_map(map, !i);
        code_midpoints(map + MAP, map, MAP);
        map[2 * MAP - 1] = 0;           /* there is one less */
    }
    if (!(c->own = alloc(c, sizeof maps))) return -1;
    up(c, (buf *)c->own, maps, MAPS);
    return 0;
}

static void close(struct kernel_ctx *c) { release(c, c->own); }

/* ---- memory ---- */

static void *alloc(struct kernel_ctx *c, size_t bytes)
{
    void *p = NULL;
    cudaError_t error = cudaPeekAtLastError();
    if (error == cudaSuccess) error = cudaMalloc(&p, bytes ? bytes : 1);        /* at a multiple of 256 */
    if (error == cudaErrorMemoryAllocation) cudaGetLastError();
    if (error != cudaSuccess) return NULL;
    cudaMemset(p, 0, bytes);
    return p;
}

static void release(struct kernel_ctx *c, void *p) { cudaFree(p); }

static void up(struct kernel_ctx *c, buf *dst, const float *src, size_t n)
{
    if (n) cudaMemcpy(dst, src, n * sizeof *src, cudaMemcpyHostToDevice);
}

/* Numbers are converted on the way by so many at a time, on the stack. */
enum { PIECE = 4096 };

static void up64(struct kernel_ctx *c, buf *dst_, const double *src, size_t n)
{
    float *dst = (float *)dst_, piece[PIECE];
    size_t at, i, have;
    for (at = 0; at < n; at += have) {
        have = n - at < (size_t)PIECE ? n - at : (size_t)PIECE;
        for (i = 0; i < have; i++) piece[i] = (float)src[at + i];
        up(c, (buf *)(dst + at), piece, have);
    }
}

static void up_ints(struct kernel_ctx *c, ints *dst, const int *src, size_t n)
{
    if (n) cudaMemcpy(dst, src, n * sizeof *src, cudaMemcpyHostToDevice);
}

static int up_bytes(struct kernel_ctx *c, void *dst, const void *src, size_t n)
{
    return n && cudaMemcpy(dst, src, n, cudaMemcpyHostToDevice) != cudaSuccess ? -1 : 0;
}

/* 1: these bytes came down, and nothing before them failed. */
static int came(void *dst, const void *src, size_t n)
{
    return !n || (cudaMemcpy(dst, src, n, cudaMemcpyDeviceToHost) == cudaSuccess && cudaPeekAtLastError() == cudaSuccess);
}

static void down(struct kernel_ctx *c, float *dst, const buf *src, size_t n)
{
    size_t i;
    if (!came(dst, src, n * sizeof *dst)) for (i = 0; i < n; i++) dst[i] = NAN;
}

static void down64(struct kernel_ctx *c, double *dst, const buf *src_, size_t n)
{
    const float *src = (const float *)src_;
    float piece[PIECE];
    size_t at, i, have;
    for (at = 0; at < n; at += have) {
        have = n - at < (size_t)PIECE ? n - at : (size_t)PIECE;
        down(c, piece, (const buf *)(src + at), have);
        for (i = 0; i < have; i++) dst[at + i] = piece[i];
    }
}

static void down_ints(struct kernel_ctx *c, int *dst, const ints *src, size_t n)
{
    size_t i;
    if (!came(dst, src, n * sizeof *dst)) for (i = 0; i < n; i++) dst[i] = 0;
}

static void down_bytes(struct kernel_ctx *c, void *dst, const void *src, size_t n)
{
    size_t i;
    if (!came(dst, src, n)) for (i = 0; i < n; i++) ((unsigned char *)dst)[i] = 0;
}

static size_t memory(void)
{
    size_t available = 0, total;
    if (cudaMemGetInfo(&available, &total) == cudaSuccess) return available;
    cudaGetLastError();
    return 0;
}

static int failed(struct kernel_ctx *c, char *why, size_t n)
{
    cudaError_t error = cudaPeekAtLastError();
    if (error == cudaSuccess) return 0;
    snprintf(why, n, "CUDA: %s", cudaGetErrorString(error));
    return 1;
}

/* ---- moving ---- */

static void zero(struct kernel_ctx *c, buf *x, size_t n)
{
    if (n) cudaMemset(x, 0, n * sizeof(float));
}

static void copy(struct kernel_ctx *c, buf *out, const buf *x, size_t n)
{
    if (n) cudaMemcpy(out, x, n * sizeof(float), cudaMemcpyDeviceToDevice);
}

/* rows: all threads of a block read one index, and neighbours of the row it names. */
static __global__ void gather_kernel(float *out, const float *x, const int *rows, int C)
{
    int m = (int)blockIdx.x, i = column();
    if (i < C) out[(size_t)m * C + i] = x[(size_t)rows[m] * C + i];
}

static void gather(struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C)
{
    if (M > 0 && C > 0)
        LAUNCH(gather_kernel, rows_by(M, C), THREADS, (float *)out, (const float *)x, (const int *)rows, C);
}

/* rows */
static __global__ void scatter_add_kernel(float *out, const float *x, const int *rows, int C)
{
    int m = (int)blockIdx.x, i = column();
    if (i < C) out[(size_t)rows[m] * C + i] += x[(size_t)m * C + i];
}

static void scatter_add(struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C)
{
    if (M > 0 && C > 0)
        LAUNCH(scatter_add_kernel, rows_by(M, C), THREADS, (float *)out, (const float *)x, (const int *)rows, C);
}

/* elements */
/* ---- embedding ---- */

#include "gemm_cuda.cuh"        /* embed(), and the products with weights */

/* A block for each row n of dout; of those with one id the first owns that id's row of dw, and walks down the others in
 * their order. That all blocks read all ids before theirs costs little: they lie in the cache. */
static __global__ void embed_backward_kernel(float *dw, const float *dout, const int *ids, int N, int C)
{
    __shared__ int partial[WARP];
    int n = (int)blockIdx.x, id = ids[n], first = n, m, i;
    for (m = (int)threadIdx.x; m < first; m += THREADS) if (ids[m] == id) first = m;
    first = block_min_int(first, partial);
    for (m = n; first == n && m < N; m++) {
        if (ids[m] != id) continue;
        for (i = (int)threadIdx.x; i < C; i += THREADS)
            dw[(size_t)id * C + i] += dout[(size_t)m * C + i];          /* out[n,i] = w[ids[n],i] */
    }
}

static void embed_backward(struct kernel_ctx *c, buf *dw, const buf *dout, const ints *ids, int N, int C)
{
    if (N > 0 && C > 0)
        LAUNCH(embed_backward_kernel, grid3((unsigned)N, 1, 1), THREADS, (float *)dw, (const float *)dout, (const int *)ids, N, C);
}

/* ---- products: what gemm_cuda.cuh leaves ---- */

/* out[C] += the sum over the rows m of dout[m,:], or of dout[m,:] * x[m,:] * rstd[m] where x is not NULL.
 * columns: warp w adds up the rows w, w + 32, ..., reading 32 neighbours of each; then, through shared memory, in which
 * the lines of 33 keep a column's numbers in 32 banks, warp j adds up what the 32 warps have for column j, by a tree. */
static __global__ void __launch_bounds__(WARP * WARP) column_sums_kernel(float *out, const float *dout, const float *x,
    const float *rstd, int N, int C)
{
    __shared__ float sums[WARP][WARP + 1];
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, i = (int)blockIdx.x * WARP + lane, m;
    float sum = 0;
    for (m = warp; m < N && i < C; m += WARP) {
        size_t at = (size_t)m * C + i;
        sum += x ? dout[at] * (x[at] * rstd[m]) : dout[at];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    sum = warp_sum(sums[lane][warp]);
    i = (int)blockIdx.x * WARP + warp;
    if (!lane && i < C) out[i] += sum;
}

static void column_sums(float *out, const float *dout, const float *x, const float *rstd, int N, int C)
{
    if (N > 0 && C > 0)
        LAUNCH(column_sums_kernel, grid3(((unsigned)C + WARP - 1) / WARP, 1, 1), WARP * WARP, out, dout, x, rstd, N, C);
}

static void bias_backward(struct kernel_ctx *c, buf *db, const buf *dout, int N, int O)
{
    column_sums((float *)db, (const float *)dout, NULL, NULL, N, O);        /* out[n,o] += bias[o] */
}

/* ---- RMSNorm ---- */

/* 1 / sqrt(mean(x^2) + eps) of a row, in all threads of its block: one computes it in double. partial[33] lies in
 * shared memory. The squares are summed in float, C/256 of them by a thread and then by a tree: they do not cancel. */
static __device__ float rms_inverse(const float *x, int C, double eps, float *partial)
{
    float sum = 0;
    int i;
    for (i = (int)threadIdx.x; i < C; i += THREADS) sum = fmaf(x[i], x[i], sum);
    sum = block_sum(sum, partial);
    if (!threadIdx.x) partial[WARP] = (float)(1 / sqrt((double)sum / C + eps));
    __syncthreads();
    return partial[WARP];
}

/* A row a block, which reads it twice: the second time it lies in the cache. */
static __global__ void rmsnorm_kernel(float *out, const float *x, const float *w, int C, double eps)
{
    __shared__ float partial[WARP + 1];
    const float *x_n = x + (size_t)blockIdx.x * C;
    float *out_n = out + (size_t)blockIdx.x * C, rstd = rms_inverse(x_n, C, eps, partial);
    int i;
    for (i = (int)threadIdx.x; i < C; i += THREADS) out_n[i] = x_n[i] * rstd * w[i];
}

static void rmsnorm(struct kernel_ctx *c, buf *out, const buf *x, const buf *w, int N, int C, double eps)
{
    if (N > 0 && C > 0)
        LAUNCH(rmsnorm_kernel, grid3((unsigned)N, 1, 1), THREADS, (float *)out, (const float *)x, (const float *)w, C, eps);
}

/* A row a block: x and dout are read for the sums, and again, from the cache, for dx. Keeps each row's rstd for dw. */
static __global__ void rmsnorm_backward_kernel(float *dx, float *rstds, const float *dout, const float *x, const float *w,
                                               int C, double eps, int accumulate)
{
    __shared__ float partial[WARP + 1];
    const float *x_n = x + (size_t)blockIdx.x * C, *dout_n = dout + (size_t)blockIdx.x * C;
    float *dx_n = dx + (size_t)blockIdx.x * C, rstd = rms_inverse(x_n, C, eps, partial), mean = 0;
    int i;
    for (i = (int)threadIdx.x; i < C; i += THREADS) mean = fmaf(dout_n[i] * w[i], x_n[i], mean);
    mean = block_sum(mean, partial) * rstd / (float)C;
    for (i = (int)threadIdx.x; i < C; i += THREADS) {
        float g = dout_n[i] * w[i], norm = x_n[i] * rstd;               /* out = norm * w */
        float d = rstd * (g - norm * mean);                             /* norm = x * rstd(x) */
        dx_n[i] = accumulate ? dx_n[i] + d : d;
    }
    if (!threadIdx.x) rstds[blockIdx.x] = rstd;
}

/* dw by column_sums(): a column has one owner. */
static void rmsnorm_backward(struct kernel_ctx *c, buf *dx, buf *dw, const buf *dout, const buf *x, const buf *w,
                             int N, int C, double eps, int accumulate)
{
    float *rstds = (float *)c->work;
    if (N > 0 && C > 0)
        LAUNCH(rmsnorm_backward_kernel, grid3((unsigned)N, 1, 1), THREADS, (float *)dx, rstds, (const float *)dout,
               (const float *)x, (const float *)w, C, eps, accumulate);
    if (dw) column_sums((float *)dw, (const float *)dout, (const float *)x, rstds, N, C);
}

/* ---- rotary positions ---- */

/* rows, of pairs: neighbours in a head's first half, and in its second. */
static __global__ void rope_kernel(float *x, const float *cosines, const float *sines, const int *pos,
                                   int heads, int HS, int backward)
{
    int n = (int)blockIdx.x, pair = column(), half = HS / 2, h = pair / half, i = pair % half;
    if (h < heads) {
        float *x_h = x + ((size_t)n * heads + h) * HS, a = x_h[i], b = x_h[i + half];
        size_t at = (size_t)pos[n] * half + i;
        float co = cosines[at], si = backward ? -sines[at] : sines[at];
        x_h[i] = a * co - b * si;
        x_h[i + half] = b * co + a * si;
    }
}

static void rope(struct kernel_ctx *c, buf *x, const buf *cosines, const buf *sines, const ints *pos,
                 int N, int heads, int HS, int backward)
{
    if (N > 0 && heads > 0 && HS > 1)
        LAUNCH(rope_kernel, rows_by(N, heads * (HS / 2)), THREADS, (float *)x, (const float *)cosines, (const float *)sines,
               (const int *)pos, heads, HS, backward);
}

/* ---- attention ---- */

#include "attention_cuda.cuh"

/* ---- SwiGLU ---- */

/* *s = sigmoid(z) and *rest = 1 - s, each to 4 u: of the two powers of e the one is taken that is at most 1. */
static __device__ void sigmoids(float z, float *s, float *rest)
{
    float e = expf(-fabsf(z)), small = e / (1 + e), large = 1 / (1 + e);
    *s = z < 0 ? small : large;
    *rest = z < 0 ? large : small;
}

/* elements */
static __global__ void swiglu_kernel(float *out, const float *gate, const float *up, size_t n)
{
    size_t i = element();
    if (i < n) {
        float s, rest;
        sigmoids(gate[i], &s, &rest);
        out[i] = gate[i] * s * up[i];
    }
}

static void swiglu(struct kernel_ctx *c, buf *out, const buf *gate, const buf *up, size_t n)
{
    if (n) LAUNCH(swiglu_kernel, elements(n), THREADS, (float *)out, (const float *)gate, (const float *)up, n);
}

/* elements; a thread reads all of its element before it writes, so that results may take the place of inputs */
static __global__ void swiglu_backward_kernel(float *dgate, float *dup, float *out, const float *dout, const float *gate,
                                              const float *up, size_t n)
{
    size_t i = element();
    if (i < n) {
        float d = dout[i], z = gate[i], u = up[i], s, rest;
        sigmoids(z, &s, &rest);                         /* out = z s u, s = sigmoid(z) */
        dgate[i] = d * u * s * (1 + z * rest);          /* ds/dz = s (1 - s) */
        dup[i] = d * z * s;
        out[i] = z * s * u;
    }
}

static void swiglu_backward(struct kernel_ctx *c, buf *dgate, buf *dup, buf *out, const buf *dout, const buf *gate,
                            const buf *up, size_t n)
{
    if (n)
        LAUNCH(swiglu_backward_kernel, elements(n), THREADS, (float *)dgate, (float *)dup, (float *)out, (const float *)dout,
               (const float *)gate, (const float *)up, n);
}

/* ---- dropout ---- */

/* rows. uniform < p is asked of the 53 random bits as an integer, `limit` = p 2^53 rounded up: the same masks. */
static __global__ void dropout_kernel(float *out, const float *x, const int *visit, const int *pos, int C, uint64_t limit,
                                      float keep, uint64_t key, int accumulate)
{
    int n = (int)blockIdx.x, i = column();
    uint64_t index = (((uint64_t)visit[n] << 20) + (uint64_t)pos[n]) << 20;
    if (i < C) {
        size_t ni = (size_t)n * C + i;
        float y = random_bits(key, index + (uint64_t)i) >> 11 >= limit ? x[ni] * keep : 0;
        out[ni] = accumulate ? out[ni] + y : y;
    }
}

static void dropout(struct kernel_ctx *c, buf *out, const buf *x, const ints *visit, const ints *pos, int N, int C, double p,
                    uint64_t key, int accumulate)
{
    uint64_t limit = (uint64_t)ceil(p * 9007199254740992.0);
    if (N > 0 && C > 0)
        LAUNCH(dropout_kernel, rows_by(N, C), THREADS, (float *)out, (const float *)x, (const int *)visit, (const int *)pos, C,
               limit, (float)(1 / (1 - p)), key, accumulate);
}

/* ---- loss ---- */

enum { LOSS_THREADS = 1024 };      /* logits come in few rows at a time, and long ones */

/* The largest of z[V] and the first index that has it, in all threads of the block. */
static __device__ float largest(const float *z, int V, int *index, float *partial, int *partial_int)
{
    float max = -INFINITY, own;
    int v, top = V;
    for (v = (int)threadIdx.x; v < V; v += LOSS_THREADS) {
        if (z[v] > max) {
            max = z[v];
            top = v;
        }
    }
    own = max;
    max = block_max(max, partial);
    top = block_min_int(own == max ? top : V, partial_int);
    *index = top < V ? top : 0;         /* no number is larger than -infinity */
    return max;
}

/* A row a block, which walks over it three times, in steps of LOSS_THREADS neighbours: for the largest, for the sum of
 * exponentials, and for gradients, which take the place of logits; a row of 32,000 is still in the cache then. What the
 * targets need of the logits is put aside in losses; their own gradients, which may be small differences, come
 * last and in double. */
static __global__ void __launch_bounds__(LOSS_THREADS) cross_entropy_kernel(float *losses, int *best, float *logits,
    const int *first, const int *id, const float *weight, int V, int grad, double grad_scale)
{
    __shared__ float partial[WARP];
    __shared__ double partial_double[WARP];
    __shared__ int partial_int[WARP];
    float *z = logits + (size_t)blockIdx.x * V, max, factor;
    int from = first[blockIdx.x], to = first[blockIdx.x + 1], top, v, t, s, again;
    double sum = 0, total = 0, lse, d;
    for (t = from + (int)threadIdx.x; t < to; t += LOSS_THREADS) losses[t] = z[id[t]];
    for (t = from; t < to; t++) total += weight[t];
    max = largest(z, V, &top, partial, partial_int);
    for (v = (int)threadIdx.x; v < V; v += LOSS_THREADS) sum += expf(z[v] - max);
    sum = block_sum_double(sum, partial_double);
    lse = max + log(sum);
    if (grad) {
        factor = (float)(grad_scale * total / sum);
        for (v = (int)threadIdx.x; v < V; v += LOSS_THREADS) z[v] = factor * expf(z[v] - max);
        __syncthreads();
        for (t = from + (int)threadIdx.x; t < to; t += LOSS_THREADS) {
            d = total * exp(losses[t] - lse);           /* d lse / d z[v] = softmax(z)[v] */
            for (s = from, again = 0; s < to; s++) {
                if (id[s] != id[t]) continue;
                if (s < t) again = 1;                   /* the first with this id writes */
                d -= weight[s];
            }
            if (!again) z[id[t]] = (float)(grad_scale * d);
        }
    }
    for (t = from + (int)threadIdx.x; t < to; t += LOSS_THREADS) losses[t] = (float)(lse - losses[t]);
    if (!threadIdx.x) best[blockIdx.x] = top;
}

static void cross_entropy(struct kernel_ctx *c, buf *losses, ints *best, buf *logits, const ints *first, const ints *id,
                          const buf *weight, int U, int V, int grad, double grad_scale)
{
    if (U > 0)
        LAUNCH(cross_entropy_kernel, grid3((unsigned)U, 1, 1), LOSS_THREADS, (float *)losses, (int *)best, (float *)logits,
               (const int *)first, (const int *)id, (const float *)weight, V, grad, grad_scale);
}

/* ---- optimizer ---- */

static __device__ void adamw_one(float *p, float *m, float *v, float g, const struct adamw_step *a)
{
    double g_i = g * a->grad_scale;
    double p_i = *p * (1 - a->lr * a->weight_decay);
    double m_i = a->beta1 * *m + (1 - a->beta1) * g_i;
    double v_i = a->beta2 * *v + (1 - a->beta2) * g_i * g_i;
    *m = (float)m_i;
    *v = (float)v_i;
    *p = (float)(p_i - a->lr / a->correction1 * m_i / (sqrt(v_i / a->correction2) + a->eps));
}

/* elements */
static __global__ void adamw_kernel(float *p, float *m, float *v, const float *g, size_t n, struct adamw_step step)
{
    size_t i = element();
    if (i < n) adamw_one(&p[i], &m[i], &v[i], g[i], &step);
}

static void adamw(struct kernel_ctx *c, buf *p, buf *m, buf *v, const buf *g, size_t n, const struct adamw_step *a)
{
    if (n) LAUNCH(adamw_kernel, elements(n), THREADS, (float *)p, (float *)m, (float *)v, (const float *)g, n, *a);
}

/* A block of `have` moments, of which x is this thread's, 0 where there is none: its code, and the block's largest. */
static __device__ void encode_moments(unsigned char *codes, float *absmax, float x, int have, const float *midpoints,
                                      float *partial)
{
    float most = block_max(fabsf(x), partial), divisor = block_divisor(most);
    int code = code_of(midpoints, MAP / 2, block_normalise(x, divisor, 1 / divisor, have == MOMENT_BLOCK));
    if ((int)threadIdx.x < have) codes[threadIdx.x] = (unsigned char)code;
    if (!threadIdx.x) *absmax = most;
}

/* A block of moments a block, a thread each. The maps come into shared memory first, where the search for the nearest
 * number, 8 reads that wait for each other, is near. */
static __global__ void adamw8bit_kernel(float *p, unsigned char *m, float *mmax, unsigned char *v, float *vmax, const float *g,
                                        size_t n, const float *maps, struct adamw_step step)
{
    __shared__ float map[MAPS], partial[WARP];
    size_t start = (size_t)blockIdx.x * MOMENT_BLOCK, i = start + threadIdx.x;
    int have = n - start < MOMENT_BLOCK ? (int)(n - start) : MOMENT_BLOCK, k;
    float m_i = 0, v_i = 0;
    for (k = (int)threadIdx.x; k < MAPS; k += MOMENT_BLOCK) map[k] = maps[k];
    __syncthreads();
    if ((int)threadIdx.x < have) {
        m_i = map[m[i]] * mmax[blockIdx.x];
        v_i = map[2 * MAP + v[i]] * vmax[blockIdx.x];
        adamw_one(&p[i], &m_i, &v_i, g[i], &step);
    }
    encode_moments(m + start, &mmax[blockIdx.x], m_i, have, map + MAP, partial);
    encode_moments(v + start, &vmax[blockIdx.x], v_i, have, map + 3 * MAP, partial);
}

static void adamw8bit(struct kernel_ctx *c, buf *p, void *m, buf *mmax, void *v, buf *vmax, const buf *g, size_t n,
                      const struct adamw_step *a)
{
    unsigned blocks = (unsigned)((n + MOMENT_BLOCK - 1) / MOMENT_BLOCK);
    if (n)
        LAUNCH(adamw8bit_kernel, grid3(blocks, 1, 1), MOMENT_BLOCK, (float *)p, (unsigned char *)m, (float *)mmax,
               (unsigned char *)v, (float *)vmax, (const float *)g, n, (const float *)c->own, *a);
}

/* Sums over all elements: a block a part, a part to the host, which goes over them in order. The length of a part depends
 * on n alone, and so does the tree. */
static size_t part_length(size_t n)
{
    size_t length = (n + SUM_PARTS - 1) / SUM_PARTS;
    return length > (size_t)SUM_PART ? length : (size_t)SUM_PART;
}

static __global__ void sum_squares_kernel(double *parts, const float *x, size_t n, size_t length)
{
    __shared__ double partial[WARP];
    size_t i = blockIdx.x * length, end = n - i < length ? n : i + length;
    double sum = 0;
    for (i += threadIdx.x; i < end; i += THREADS) sum += (double)x[i] * x[i];
    sum = block_sum_double(sum, partial);
    if (!threadIdx.x) parts[blockIdx.x] = sum;
}

static double sum_squares(struct kernel_ctx *c, const buf *x, size_t n)
{
    double parts[SUM_PARTS], sum = 0;
    size_t length = part_length(n), count = (n + length - 1) / length, k;
    if (n) LAUNCH(sum_squares_kernel, grid3((unsigned)count, 1, 1), THREADS, (double *)c->work, (const float *)x, n, length);
    if (!came(parts, c->work, count * sizeof *parts)) return NAN;
    for (k = 0; k < count; k++) sum += parts[k];
    return sum;
}

/* parts[k]: the place in part k of its first number that is not finite, or its length. */
static __global__ void not_finite_kernel(int *parts, const float *x, size_t n, int length)
{
    __shared__ int partial[WARP];
    const float *part = x + blockIdx.x * (size_t)length;
    size_t left = n - blockIdx.x * (size_t)length;
    int have = left < (size_t)length ? (int)left : length, first = length, i;
    for (i = (int)threadIdx.x; i < have && first == length; i += THREADS) if (!(part[i] - part[i] == 0)) first = i;
    first = block_min_int(first, partial);
    if (!threadIdx.x) parts[blockIdx.x] = first;
}

/* What failed is not finite either. */
static long long not_finite(struct kernel_ctx *c, const buf *x, size_t n)
{
    int parts[SUM_PARTS];
    size_t length = part_length(n), count = (n + length - 1) / length, k;
    if (n) LAUNCH(not_finite_kernel, grid3((unsigned)count, 1, 1), THREADS, (int *)c->work, (const float *)x, n, (int)length);
    if (!came(parts, c->work, count * sizeof *parts)) return 0;
    for (k = 0; k < count; k++) if (parts[k] < (int)length) return (long long)(k * length) + parts[k];
    return -1;
}

static const struct kernels table = {
    .abi = KERNELS_ABI, .bytes = sizeof(struct kernels),
    .name = "cuda", .about = "one NVIDIA GPU, compute capability 8.0 or more",
    .elem = sizeof(float), .own_memory = 1, .below = NULL,
    .usable = usable, .has_bf16 = has_bf16, .work_bytes = work_bytes, .open = open, .close = close,
    .alloc = alloc, .release = release, .up = up, .up64 = up64, .up_ints = up_ints,
    .up_bytes = up_bytes, .down = down, .down64 = down64, .down_ints = down_ints,
    .down_bytes = down_bytes, .memory = memory, .failed = failed,
    .zero = zero, .copy = copy, .gather = gather, .scatter_add = scatter_add,
    .embed = embed, .embed_backward = embed_backward,
    .matmul = matmul, .matmul_dx = matmul_dx, .matmul_dw = matmul_dw, .bias_backward = bias_backward,
    .linear = NULL, .linear_dx = NULL,          /* kernels_linear() makes them of products */
    .rmsnorm = rmsnorm, .rmsnorm_backward = rmsnorm_backward,
    .rope = rope, .attention = attention, .attention_backward = attention_backward,
    .swiglu = swiglu, .swiglu_backward = swiglu_backward, .dropout = dropout,
    .cross_entropy = cross_entropy,
    .adamw = adamw, .adamw8bit = adamw8bit, .sum_squares = sum_squares, .not_finite = not_finite
};

const struct kernels *lora_kernels(void) { return &table; }
