/* bench.h - what the two files of `lora bench` share. */
#ifndef BENCH_H
#define BENCH_H

#include "job.h"
#include "../lora.h"

enum { MAX_ROUNDS = 1000 };

struct bench {
    struct common common;
    int tokens, targets, row_tokens, rank, rounds, dtype, step, profile;
    const char *json;
};

struct figures {
    const char *backend;
    int threads;
    double share;               /* of the time of its threads that this process got */
    double peaks[MAX_ROUNDS], bandwidths[MAX_ROUNDS];
};

double median(double *x, int n);        /* sorts x */

/* bench_step.c: whole training steps, and with b->profile the time of each operation. */
int bench_step(const struct bench *b, const struct kernels *k, const struct model *m, int threads,
               struct text *json, struct lora_error *err);

#endif
