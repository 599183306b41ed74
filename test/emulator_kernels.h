/* emulator_kernels.h - what test_emulator.c calls of emulator_kernels.cu. All pointers are the device's. */
#ifndef EMULATOR_KERNELS_H
#define EMULATOR_KERNELS_H

enum { BYTES = 64 };
struct pieces { unsigned char *out; const unsigned char *x; int n; };

/* Of each block's part of x[n]: the sum in float and in double, and the largest. */
void run_sums(float *floats, double *doubles, float *largest, const float *x, int n, int blocks, int threads);
/* turned[t] = x of the lane 5 further on; pairs[t] = (t ^ 3) + 1000 times the warp's first t. */
void run_shuffles(float *turned, int *pairs, const float *x, int threads);
/* d[16,8] += a[16,16] b[16,8] */
void run_mma(float *d, const unsigned short *a, const unsigned short *b);
/* Each of n pieces of BYTES bytes turned around. */
void run_turn(struct pieces p);
/* order[thread] = how many ran before it. */
void run_order(int *order, int blocks, int threads);

/* x[2*BYTES], out[2*BYTES] */
enum wrong {
    NO_BARRIER, NO_SECOND_BARRIER, ONE_BYTE, SOME_AT_BARRIER, TWO_BARRIERS, HALF_A_WARP, PAST_THE_END, BEFORE_THE_START, NOT_WRITTEN,
    BLOCKS_WRITE, BLOCKS_READ, THREADS_WRITE, NO_ADDRESS, TOO_MANY_THREADS
};
void run_wrong(enum wrong wrong, float *out, const float *x);

#endif
