/* emulator_kernels.cu - small kernels for test_emulator.c: right ones, and ones with the fault that their name says. */
#include "device.cuh"
#include "test/emulator_kernels.h"

/* ---- right ---- */

static __global__ void sums_kernel(float *floats, double *doubles, float *largest, const float *x, int n)
{
    __shared__ float partial[WARP];
    __shared__ double partial_double[WARP];
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float v = i < n ? x[i] : 0, whole = block_sum(v, partial), most = block_max(v, partial);
    double exact = block_sum_double(v, partial_double);
    if (threadIdx.x == 0) {
        floats[blockIdx.x] = whole;
        doubles[blockIdx.x] = exact;
        largest[blockIdx.x] = most;
    }
}

void run_sums(float *floats, double *doubles, float *largest, const float *x, int n, int blocks, int threads)
{
    LAUNCH(sums_kernel, grid3((unsigned)blocks, 1, 1), threads, floats, doubles, largest, x, n);
}

static __global__ void
shuffles_kernel(float *turned, int *pairs,      /* over two lines, with a comment */
                const float *x)
{
    int t = (int)threadIdx.x, lane = t % WARP;
    turned[t] = shuffle_float(x[t], (lane + 5) % WARP);
    pairs[t] = shuffle_xor_int(t, 3) + 1000 * shuffle_int(t, 0);
}

void run_shuffles(float *turned, int *pairs, const float *x, int threads)
{
    LAUNCH(shuffles_kernel, grid3(1, 1, 1), threads, turned, pairs, x);
}

/* Loads the fragments element by element, as device.cuh has their layout. */
static __global__ void mma_kernel(float *d, const unsigned short *a, const unsigned short *b)
{
    int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4, i;
    unsigned fa[4], fb[2];
    float sum[4];
    for (i = 0; i < 4; i++) {
        int row = g + 8 * (i % 2), column = 2 * t + 8 * (i / 2);
        fa[i] = a[row * 16 + column] | (unsigned)a[row * 16 + column + 1] << 16;
        sum[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    }
    for (i = 0; i < 2; i++) fb[i] = b[(2 * t + 8 * i) * 8 + g] | (unsigned)b[(2 * t + 8 * i + 1) * 8 + g] << 16;
    mma_bf16(sum, fa, fb);
    for (i = 0; i < 4; i++) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sum[i];
}

void run_mma(float *d, const unsigned short *a, const unsigned short *b) { LAUNCH(mma_kernel, grid3(1, 1, 1), WARP, d, a, b); }

/* Turns a piece of BYTES bytes around in shared memory, a thread a byte, and goes on to the next piece. */
static __global__ void turn_kernel(struct pieces p)
{
    __shared__ unsigned char piece[BYTES];
    int i, t = (int)threadIdx.x;
    for (i = 0; i < p.n; i++) {
        piece[t] = p.x[i * BYTES + t];
        __syncthreads();
        p.out[i * BYTES + t] = piece[BYTES - 1 - t];
        __syncthreads();
    }
}

void run_turn(struct pieces p) { LAUNCH(turn_kernel, grid3(1, 1, 1), BYTES, p); }

static int visits;

/* In which order threads run: not for a GPU. */
static __global__ void order_kernel(int *order)
{
    order[blockIdx.x * blockDim.x + threadIdx.x] = visits++;
}

void run_order(int *order, int blocks, int threads)
{
    visits = 0;
    LAUNCH(order_kernel, grid3((unsigned)blocks, 1, 1), threads, order);
}

/* ---- wrong ---- */

static __global__ void no_barrier_kernel(float *out, const float *x)
{
    __shared__ float piece[BYTES];
    piece[threadIdx.x] = x[threadIdx.x];
    out[threadIdx.x] = piece[BYTES - 1 - threadIdx.x];
}

static __global__ void no_second_barrier_kernel(float *out, const float *x)
{
    __shared__ float piece[BYTES];
    float sum = 0;
    int i;
    for (i = 0; i < 2; i++) {
        piece[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        sum += piece[BYTES - 1 - threadIdx.x];
    }
    out[threadIdx.x] = sum;
}

static __global__ void one_byte_kernel(float *out, const float *x)
{
    __shared__ unsigned char piece[BYTES];
    piece[threadIdx.x / 2] = (unsigned char)x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = piece[threadIdx.x / 2];
}

static __global__ void some_at_barrier_kernel(float *out, const float *x)
{
    if (threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}

static __global__ void two_barriers_kernel(float *out, const float *x)
{
    if (threadIdx.x % 2) {
        __syncthreads();
        out[threadIdx.x] = x[threadIdx.x];
    } else {
        __syncthreads();
    }
}

static __global__ void half_a_warp_kernel(float *out, const float *x)
{
    float v = x[threadIdx.x];
    if (threadIdx.x % WARP < 16) v = warp_sum(v);
    out[threadIdx.x] = v;
}

static __global__ void past_the_end_kernel(float *out, const float *x)
{
    out[threadIdx.x + 1] = x[threadIdx.x];
}

static __global__ void before_the_start_kernel(float *out, const float *x)
{
    out[threadIdx.x] = x[(int)threadIdx.x - 1];
}

static __global__ void not_written_kernel(float *out, const float *x)
{
    __shared__ float piece[BYTES];
    if (threadIdx.x) piece[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = piece[threadIdx.x];
}

static __global__ void blocks_write_kernel(float *out, const float *x)
{
    out[threadIdx.x] = x[threadIdx.x];
}

static __global__ void blocks_read_kernel(float *out, const float *x)
{
    if (blockIdx.x == 0) out[threadIdx.x] = x[threadIdx.x];
    else if (out[0] > 0) out[BYTES + threadIdx.x] = 1;
}

static __global__ void threads_write_kernel(float *out, const float *x)
{
    out[threadIdx.x / 2] = x[threadIdx.x];
}

static __global__ void no_address_kernel(float *out, const float *x)
{
    const float *nowhere = (const float *)((size_t)x % 4);
    out[threadIdx.x] = nowhere[threadIdx.x];
}

void run_wrong(enum wrong wrong, float *out, const float *x)
{
    dim3 one = grid3(1, 1, 1), two = grid3(2, 1, 1);
    switch (wrong) {
    case NO_BARRIER: LAUNCH(no_barrier_kernel, one, BYTES, out, x); break;
    case NO_SECOND_BARRIER: LAUNCH(no_second_barrier_kernel, one, BYTES, out, x); break;
    case ONE_BYTE: LAUNCH(one_byte_kernel, one, BYTES, out, x); break;
    case SOME_AT_BARRIER: LAUNCH(some_at_barrier_kernel, one, BYTES, out, x); break;
    case TWO_BARRIERS: LAUNCH(two_barriers_kernel, one, BYTES, out, x); break;
    case HALF_A_WARP: LAUNCH(half_a_warp_kernel, one, BYTES, out, x); break;
    case PAST_THE_END: LAUNCH(past_the_end_kernel, one, 2 * BYTES, out, x); break;
    case BEFORE_THE_START: LAUNCH(before_the_start_kernel, one, BYTES, out, x); break;
    case NOT_WRITTEN: LAUNCH(not_written_kernel, one, BYTES, out, x); break;
    case BLOCKS_WRITE: LAUNCH(blocks_write_kernel, two, BYTES, out, x); break;
    case BLOCKS_READ: LAUNCH(blocks_read_kernel, two, BYTES, out, x); break;
    case THREADS_WRITE: LAUNCH(threads_write_kernel, one, BYTES, out, x); break;
    case NO_ADDRESS: LAUNCH(no_address_kernel, one, BYTES, out, x); break;
    case TOO_MANY_THREADS: LAUNCH(blocks_write_kernel, one, 1025, out, x); break;
    }
}
