/* measure.h - what measurements share: lora bench, and the ladder of docs/. */
#ifndef MEASURE_H
#define MEASURE_H

#include "../kernels.h"

double median(double *x, int n);        /* sorts x */

/* A table of kernels at work without a model. What is taken of its memory goes when it is closed. */
struct table {
    struct kernels k;           /* completed */
    struct kernel_ctx ctx;
    int opened, n;
    void *taken[24];
};
/* With scratch memory for these sizes. Close it also after a failure. */
int table_open(struct table *t, const struct kernels *k, const struct kernel_sizes *sizes, int compute,
               struct lora_error *err);
void table_close(struct table *t);
buf *table_buf(struct table *t, size_t n, struct lora_error *err);      /* n elements, zero */
/* *there: w as the table reads it, in a memory of its own a copy, which has *scales. */
int table_weight(struct table *t, struct weight *there, struct quantised *scales, const struct weight *w,
                 struct lora_error *err);

/* GFLOP/s of multiply-adds in 256 or 512 bits, whichever is more here, or in 128 of NEON, on so many threads, or 0 where the
 * processor has none or this was built for another family. */
double measure_peak(int threads);
/* The same of AVX512-BF16's; 0 also where AMX takes its place, whose peak is another. */
double measure_peak_bf16(int threads);

#endif
