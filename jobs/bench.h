/* bench.h - what the files of `lora bench` share. */
#ifndef BENCH_H
#define BENCH_H

#include "job.h"
#include "../lora.h"

#include <stdio.h>

enum { MAX_ROUNDS = 1000, MAX_TYPES = 8, BENCH_READ = 1 << 24 /* 64-bit words: 128 MiB */ };

/* A type of weights: "nf4-dq" is TYPE_NF4 with double quantisation. */
struct bench_type { char name[16]; int type, double_quant; };

struct bench {
    struct common common;
    int tokens, targets, row_tokens, rank, rounds, block, step, profile;
    int generate, prompt, new_tokens, batch;
    const char *json, *dtype;
    /* The options end here; what is made of them: */
    FILE *out;                  /* for tables: stdout, or stderr where stdout is the JSON's */
    struct bench_type types[MAX_TYPES];
    int n_types, threads;
    const struct kernels *kernels;
    struct config shape;        /* of the model */
    uint64_t *memory;           /* [BENCH_READ] what no cache holds, for bench_bandwidth() */
    double peak;                /* of f32 multiply-adds, the best round's GFLOP/s, when products have been measured; 0: not known */
};

/* GB/s of the memory that the table works in: of reading, on all threads; of a memory of its own, what copying there
 * reads and writes. */
double bench_bandwidth(const struct bench *b);
/* Waits until a table with its own memory is done with all that it was asked for: a number of p comes back. */
void bench_wait(const struct kernels *k, struct kernel_ctx *c, const buf *p);

/* bench_weights.c: weights on the heap with numbers of no meaning but of ordinary size. */
int bench_types_read(struct bench *b);  /* --dtype into types: 0, or the exit status of the usage error */
int bench_weight(struct weight *w, const struct bench *b, const struct bench_type *t, int rows, int cols, struct lora_error *err);
void bench_weight_free(struct weight *w);
/* A model of b->shape; free it even after -1. NF4, FP4 and INT8 are what its linears are; the embedding
 * and the head are BF16 then. */
int bench_model(struct model **m, const struct bench *b, const struct bench_type *t, struct lora_error *err);
void bench_model_free(struct model *m);

/* bench_step.c: whole training steps over each type of weights, with b->profile the time of each operation,
 * and the products of one token. */
int bench_step(const struct bench *b, struct text *json, struct lora_error *err);

/* bench_generate.c: a prompt, new tokens, and new tokens of several sequences, over the model of a file or, when it
 * is NULL, over each type of weights. */
int bench_generate(const struct bench *b, struct model *file, struct text *json, struct lora_error *err);

#endif
