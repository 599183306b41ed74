/* bench.h - what the two files of `lora bench` share. */
#ifndef BENCH_H
#define BENCH_H

#include "job.h"
#include "../lora.h"

enum { MAX_ROUNDS = 1000, MAX_TYPES = 8 };

/* A type of weights: "nf4-dq" is TYPE_NF4 with double quantisation. */
struct bench_type { char name[16]; int type, double_quant; };

struct bench {
    struct common common;
    int tokens, targets, row_tokens, rank, rounds, block, step, profile;
    const char *json, *dtype;
    struct bench_type types[MAX_TYPES];
    int n_types;
};

struct figures {
    const char *backend;
    int threads;
    double share;               /* of the time of its threads that this process got */
    double peaks[MAX_ROUNDS], bandwidths[MAX_ROUNDS];
};

/* bench_weights.c: weights on the heap with numbers of no meaning but of ordinary size. */
int bench_types_read(struct bench *b);  /* --dtype into types: -1, or the exit status of the usage error */
int bench_weight(struct weight *w, const struct bench *b, const struct bench_type *t, int rows, int cols, int threads,
                 struct lora_error *err);
void bench_weight_free(struct weight *w);
/* A model of that shape; free it even after -1. NF4, FP4 and INT8 are what its linears are; the embedding
 * and the head are BF16 then. */
int bench_model(struct model **m, const struct bench *b, const struct bench_type *t, const struct config *c, int threads,
                struct lora_error *err);
void bench_model_free(struct model *m);

/* bench_step.c: whole training steps over each type of weights, with b->profile the time of each operation,
 * and the products of one token. */
int bench_step(const struct bench *b, const struct kernels *k, const struct config *c, int threads,
               struct text *json, struct lora_error *err);

#endif
