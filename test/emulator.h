/* emulator.h - CUDA in small, for device.cuh without nvcc: blocks one after the other, the threads of a block by turns,
 * each with a stack of its own; barriers, shuffles and mma are where they wait for each other. It is not for speed: it
 * is so that the kernels' logic runs, and is checked, on every machine. What it finds wrong ends the launch:
 *
 *     a barrier or a function of the warp that not all threads come to
 *     and, in a file compiled with -fsanitize=thread, where the compiler has it:
 *     two threads at the same bytes without a barrier between them, at least one writing; the same of two blocks of a launch
 *     shared memory that is read before this block wrote it (without that check it is NaN)
 *     memory outside of the device's allocations (without: what was written around them is seen when they are freed)
 *
 * Host code that looks into the device's memory ends by a signal; where that is larger than 256 KiB, now and then.
 * The launch's results are then not to be trusted, cudaErrorLaunchFailure is the last error and what waits for the device
 * answers it, the words are on stderr and in emulator_fault(). Blocks and threads run in another order
 * from launch to launch, so that a result that depends on it differs.
 *
 * EMULATOR_MEMORY=bytes is the device's memory (default: 1 GiB), EMULATOR_DEVICES=0 takes the device away. */
#ifndef EMULATOR_H
#define EMULATOR_H

#include <math.h>
#include <stddef.h>

/* ---- the language ---- */

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define EMULATOR_SHARED(kernel) static __attribute__((section("shared_" #kernel)))      /* emulate.awk says it */

typedef struct dim3 { unsigned x, y, z; } dim3;
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

typedef struct __align__(8) float2 { float x, y; } float2;
typedef struct __align__(16) float4 { float x, y, z, w; } float4;
typedef struct __align__(16) uint4 { unsigned x, y, z, w; } uint4;

#define __syncthreads() emulator_barrier(__FILE__, __LINE__)
void emulator_barrier(const char *file, int line);

/* As device.cuh says. */
float shuffle_float(float v, int lane);
int shuffle_int(int v, int lane);
float shuffle_xor_float(float v, int mask);
int shuffle_xor_int(int v, int mask);
double shuffle_xor_double(double v, int mask);
unsigned pair_bf16(float low, float high);
void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2]);

/* ---- launches ---- launch_KERNEL is written by emulate.awk. */

#define LAUNCH(kernel, grid, threads, ...) launch_##kernel(grid, (int)(threads), __VA_ARGS__)
typedef void emulator_thread(const void *arguments);
struct emulator_kernel {
    const char *name;
    emulator_thread *thread;        /* calls the kernel with its arguments[bytes] */
    const void *arguments;
    size_t bytes;
    unsigned char *shared, *shared_end;     /* the section that its __shared__ arrays lie in */
};
void emulator_launch(const struct emulator_kernel *kernel, dim3 grid, int threads);
#define EMULATOR_LAUNCH(kernel, a, grid, threads) do { \
    extern unsigned char __start_shared_##kernel[] __attribute__((weak)), __stop_shared_##kernel[] __attribute__((weak)); \
    struct emulator_kernel k = { #kernel, thread_##kernel, a, sizeof *(a), __start_shared_##kernel, __stop_shared_##kernel }; \
    emulator_launch(&k, grid, threads); } while (0)

/* The first fault since the last call, or NULL; it is then forgotten, the runtime's last error too. */
const char *emulator_fault(void);

/* ---- the runtime, as far as it is used ---- */

typedef enum cudaError {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35, cudaErrorNoDevice = 100, cudaErrorInvalidDevice = 101, cudaErrorLaunchFailure = 719
} cudaError_t;
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16, cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76
};

cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind);
cudaError_t cudaMemset(void *p, int byte, size_t n);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr what, int device);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaGetLastError(void);             /* and forgets it */
cudaError_t cudaPeekAtLastError(void);
const char *cudaGetErrorString(cudaError_t error);

#endif
