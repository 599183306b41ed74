/* kernels_cuda.cu - the operations of kernels.h on one NVIDIA GPU, the same names in the same order as kernels_ref.c. */
#include "device.cuh"
#include "kernels.h"

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-parameter"     /* not every operation needs its context */
#endif

enum { THREADS = 256 };

/* Blocks of THREADS that give each of n a thread. */
static dim3 blocks_for(size_t n) { return grid3((unsigned)((n + THREADS - 1) / THREADS), 1, 1); }

/* ---- the table itself ---- */

static int usable(char *why, size_t n) { return 1; }

static size_t work_bytes(const struct kernel_sizes *sizes) { return 0; }

static int open_table(struct kernel_ctx *c) { return 0; }

static void close_table(struct kernel_ctx *c) { }

/* ---- memory ---- */

static void *alloc(struct kernel_ctx *c, size_t bytes)
{
    void *p = NULL;
    if (cudaMalloc(&p, bytes ? bytes : 1)) return NULL;
    cudaMemset(p, 0, bytes);
    return p;
}

static void release(struct kernel_ctx *c, void *p) { cudaFree(p); }

static void up(struct kernel_ctx *c, buf *dst, const float *src, size_t n)
{
    cudaMemcpy(dst, src, n * sizeof *src, cudaMemcpyHostToDevice);
}

static void up64(struct kernel_ctx *c, buf *dst, const double *src, size_t n)
{
    enum { PIECE = 1024 };
    float piece[PIECE];
    size_t i, done;
    for (done = 0; done < n; done += i) {
        for (i = 0; i < PIECE && done + i < n; i++) piece[i] = (float)src[done + i];
        cudaMemcpy((float *)dst + done, piece, i * sizeof *piece, cudaMemcpyHostToDevice);
    }
}

static void up_ints(struct kernel_ctx *c, ints *dst, const int *src, size_t n)
{
    cudaMemcpy(dst, src, n * sizeof *src, cudaMemcpyHostToDevice);
}

static int up_bytes(struct kernel_ctx *c, void *dst, const void *src, size_t n)
{
    return cudaMemcpy(dst, src, n, cudaMemcpyHostToDevice) ? -1 : 0;
}

/* An error of a kernel shows here: what cannot be had is NaN. */
static void down(struct kernel_ctx *c, float *dst, const buf *src, size_t n)
{
    size_t i;
    if (!cudaMemcpy(dst, src, n * sizeof *dst, cudaMemcpyDeviceToHost)) return;
    for (i = 0; i < n; i++) dst[i] = NAN;
}

static void down64(struct kernel_ctx *c, double *dst, const buf *src, size_t n)
{
    enum { PIECE = 1024 };
    float piece[PIECE];
    size_t i, done;
    for (done = 0; done < n; done += i) {
        i = n - done < PIECE ? n - done : PIECE;
        down(c, piece, (const buf *)((const float *)src + done), i);
        for (i = 0; i < PIECE && done + i < n; i++) dst[done + i] = piece[i];
    }
}

static void down_ints(struct kernel_ctx *c, int *dst, const ints *src, size_t n)
{
    cudaMemcpy(dst, src, n * sizeof *dst, cudaMemcpyDeviceToHost);
}

static void down_bytes(struct kernel_ctx *c, void *dst, const void *src, size_t n)
{
    cudaMemcpy(dst, src, n, cudaMemcpyDeviceToHost);
}

/* ---- moving ---- */

/* A thread to each number. */
static __global__ void zero_kernel(float *x, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = 0;
}

static void zero(struct kernel_ctx *c, buf *x, size_t n)
{
    if (n) LAUNCH(zero_kernel, blocks_for(n), THREADS, (float *)x, n);
}

/* A thread to each number. */
static __global__ void copy_kernel(float *out, const float *x, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i];
}

static void copy(struct kernel_ctx *c, buf *out, const buf *x, size_t n)
{
    if (n) LAUNCH(copy_kernel, blocks_for(n), THREADS, (float *)out, (const float *)x, n);
}

/* A block to each row. */
static __global__ void gather_kernel(float *out, const float *x, const int *rows, int C)
{
    const float *row = x + (size_t)rows[blockIdx.x] * C;
    int i;
    for (i = (int)threadIdx.x; i < C; i += (int)blockDim.x) out[(size_t)blockIdx.x * C + i] = row[i];
}

static void gather(struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C)
{
    if (M && C) LAUNCH(gather_kernel, grid3((unsigned)M, 1, 1), THREADS, (float *)out, (const float *)x, (const int *)rows, C);
}

static const struct kernels table = {
    .abi = KERNELS_ABI, .bytes = sizeof(struct kernels), .name = "cuda", .about = "one NVIDIA GPU",
    .elem = sizeof(float), .own_memory = 1, .usable = usable, .work_bytes = work_bytes, .open = open_table, .close = close_table,
    .alloc = alloc, .release = release, .up = up, .up64 = up64, .up_ints = up_ints, .up_bytes = up_bytes,
    .down = down, .down64 = down64, .down_ints = down_ints, .down_bytes = down_bytes,
    .zero = zero, .copy = copy, .gather = gather
};

#ifdef __cplusplus
extern "C"
#endif
const struct kernels *lora_kernels(void);
const struct kernels *lora_kernels(void) { return &table; }
