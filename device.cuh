/* device.cuh - what the kernels of this program need of CUDA, under names that a C compiler can take too.
 *
 * nvcc compiles the .cu and .cuh files for a GPU. Everywhere else a C compiler compiles copies of them over
 * test/emulator.h, in which a block's threads are run by turns: so their logic is tested on every machine. Both
 * meet here, and nowhere else.
 *
 *     LAUNCH(kernel, grid3(x, y, z), threads, arguments...)     blocks are one-dimensional: threadIdx.x
 *
 * Kernels are `static __global__ void NAME(parameters)`, with their braces in the first column: test/emulate.awk finds
 * them by that. All threads of a block come to each __syncthreads(), all 32 of a warp to each of the warp's functions
 * below, and a block of such a kernel has a multiple of 32 threads. */
#ifndef DEVICE_CUH
#define DEVICE_CUH

#ifdef __CUDACC__
#include <cuda_runtime.h>

#define LAUNCH(kernel, grid, threads, ...) kernel<<<grid, (unsigned)(threads)>>>(__VA_ARGS__)
/* Before a loop of a constant number of rounds: each written out, as what it indexes is to be registers. */
#define UNROLL _Pragma("unroll")

/* What lane `lane` of the warp has. */
static inline __device__ float shuffle_float(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
static inline __device__ int shuffle_int(int v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
/* What lane (own number XOR mask) has. */
static inline __device__ float shuffle_xor_float(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
static inline __device__ int shuffle_xor_int(int v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
static inline __device__ double shuffle_xor_double(double v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

/* d += a b by the warp: a [16,16], b [16,8] in bf16, d [16,8] in float. With g = lane / 4 and t = lane % 4 a lane holds,
 * the lower column (of b: row) in the lower half of a word (PTX ISA, mma.m16n8k16):
 *     a[0] a(g, 2t) a(g, 2t+1)          a[1] the same of row g + 8
 *     a[2] a(g, 2t+8) a(g, 2t+9)        a[3] the same of row g + 8
 *     b[0] b(2t, g) b(2t+1, g)          b[1] b(2t+8, g) b(2t+9, g)
 *     d[0] d(g, 2t)  d[1] d(g, 2t+1)    d[2] d[3] the same of row g + 8 */
static inline __device__ void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Two floats to bf16 in a word, as mma_bf16() takes them, to nearest, ties to even; denormals become 0, a NaN stays one.
 * `low` has the lower column. */
static inline __device__ unsigned pair_bf16(float low, float high)
{
    unsigned pair;
    asm("{ .reg .f32 a, b; mul.ftz.f32 a, %1, 0f3F800000; mul.ftz.f32 b, %2, 0f3F800000; cvt.rn.bf16x2.f32 %0, a, b; }"
        : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
#else
#define UNROLL
#include "test/emulator.h"
#endif

#define WARP 32

static inline dim3 grid3(unsigned x, unsigned y, unsigned z)
{
    dim3 grid;
    grid.x = x;
    grid.y = y;
    grid.z = z;
    return grid;
}

/* Of all 32 lanes, in every lane with the same bits: the tree is fixed, and a + b is b + a. */
static inline __device__ float warp_sum(float v)
{
    int i;
    for (i = WARP / 2; i; i /= 2) v += shuffle_xor_float(v, i);
    return v;
}

static inline __device__ double warp_sum_double(double v)
{
    int i;
    for (i = WARP / 2; i; i /= 2) v += shuffle_xor_double(v, i);
    return v;
}

static inline __device__ float warp_max(float v)
{
    int i;
    for (i = WARP / 2; i; i /= 2) v = fmaxf(v, shuffle_xor_float(v, i));
    return v;
}

/* Of all threads of the block, in every thread with the same bits: the warps' in their order, by the same tree.
 * partial[32] lies in shared memory; the barrier at the beginning lets it be used again at once. */
static inline __device__ float block_sum(float v, float *partial)
{
    int lane = (int)threadIdx.x % WARP, warps = (int)blockDim.x / WARP;
    v = warp_sum(v);
    __syncthreads();
    if (!lane) partial[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_sum(lane < warps ? partial[lane] : 0);
}

static inline __device__ double block_sum_double(double v, double *partial)
{
    int lane = (int)threadIdx.x % WARP, warps = (int)blockDim.x / WARP;
    v = warp_sum_double(v);
    __syncthreads();
    if (!lane) partial[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_sum_double(lane < warps ? partial[lane] : 0);
}

/* The same of the largest; NaN is left out (fmaxf). */
static inline __device__ float block_max(float v, float *partial)
{
    int lane = (int)threadIdx.x % WARP, warps = (int)blockDim.x / WARP;
    v = warp_max(v);
    __syncthreads();
    if (!lane) partial[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_max(partial[lane < warps ? lane : 0]);
}

static inline __device__ int warp_min_int(int v)
{
    int i, other;
    for (i = WARP / 2; i; i /= 2) {
        other = shuffle_xor_int(v, i);
        v = other < v ? other : v;
    }
    return v;
}

static inline __device__ int block_min_int(int v, int *partial)
{
    int lane = (int)threadIdx.x % WARP, warps = (int)blockDim.x / WARP;
    v = warp_min_int(v);
    __syncthreads();
    if (!lane) partial[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_min_int(partial[lane < warps ? lane : 0]);
}

#endif
