/* backend.cu - docs/backend.c for a GPU: one operation, for weights of one type, in a shared object. Its memory is the
 * host's, as that of the tables which fill the rest: so each call carries its operands to the device, and the result
 * back. (A table whose memory is the device's has to be whole: kernels_cuda.cu.)
 *
 *     nvcc -std=c++20 -O2 -Xcompiler -fPIC -shared -I. -o backend.so docs/backend.cu
 *     lora verify --backend ./backend.so --op matmul
 *     lora train --backend ./backend.so ... */
#include "kernels.h"
#include "device.cuh"

enum { THREADS = 128 };

/* A thread to a number of out, blocks of THREADS along its rows: (N, O / THREADS) blocks. The threads of a warp read the
 * same element of x and 32 rows of W, each from memory; gemm_cuda.cuh shows what can be done about that. */
static __global__ void matmul_kernel(float *out, const float *x, const float *w, const float *bias, float scale,
                                     int accumulate, size_t O, size_t I)
{
    size_t n = blockIdx.x, o = (size_t)blockIdx.y * THREADS + threadIdx.x, i;
    float sum = 0;
    if (o >= O) return;
    for (i = 0; i < I; i++) sum = fmaf(x[n * I + i], w[o * I + i], sum);
    sum = fmaf(scale, sum, bias ? bias[o] : 0);
    out[n * O + o] = accumulate ? out[n * O + o] + sum : sum;
}

static int up(float *device, const void *host, size_t n)
{
    return cudaMemcpy(device, host, n * sizeof(float), cudaMemcpyHostToDevice) != cudaSuccess;
}

/* out[N,O] = scale * x[N,I] W^T + bias, or +=. Whatever fails, nothing is written, and the table below does it. */
static int matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias, double scale,
                  int accumulate, int N)
{
    size_t I = (size_t)w->cols, O = (size_t)w->rows, rows = (size_t)N;
    float *y, *x_there, *w_there, *bias_there;
    void *there = NULL;
    int failed;
    (void)c;
    if (w->type != TYPE_F32 || w->head_rows) return KERNEL_UNSUPPORTED;
    if (!rows || !O) return 0;
    if (cudaMalloc(&there, (rows * O + rows * I + O * I + O) * sizeof *y) != cudaSuccess) return KERNEL_UNSUPPORTED;
    y = (float *)there;
    x_there = y + rows * O;
    w_there = x_there + rows * I;
    bias_there = w_there + O * I;
    failed = up(y, out, rows * O) || up(x_there, x, rows * I) || (bias && up(bias_there, bias, O))
        || up(w_there, (const char *)w->data + 4 * w->offset, O * I);
    if (!failed) {
        LAUNCH(matmul_kernel, grid3((unsigned)N, (unsigned)((O + THREADS - 1) / THREADS), 1), THREADS, y, x_there, w_there,
               bias ? bias_there : NULL, (float)scale, accumulate, O, I);
        failed = cudaGetLastError() != cudaSuccess
            || cudaMemcpy(out, y, rows * O * sizeof *y, cudaMemcpyDeviceToHost) != cudaSuccess;     /* waits for the kernel */
    }
    cudaFree(there);
    return failed ? KERNEL_UNSUPPORTED : 0;
}

static const struct kernels table = {
    .abi = KERNELS_ABI, .bytes = sizeof(struct kernels), .name = "example-cuda", .about = "a product, a thread to each number",
    .elem = sizeof(float), .matmul = matmul
};

const struct kernels *lora_kernels(void) { return &table; }
