/* optim.h - the learning rate of each step, the order of rows, and pages for moments. */
#ifndef OPTIM_H
#define OPTIM_H

#include "util.h"

enum schedule { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE };

/* The rate of step `step` (from 0) of `total`, `warmup` of them warm-up, as in Transformers: in
 * warm-up lr * step / warmup, so the first step has rate 0. */
double schedule_rate(int schedule, double lr, long long step, long long warmup, long long total);
/* ceil(ratio * total), as Transformers rounds it. */
long long warmup_steps(double ratio, long long total);

/* The order of n rows in an epoch: a Fisher-Yates shuffle from (seed, epoch). order[n]. */
void shuffle_rows(int *order, int n, uint64_t seed, long long epoch);

/* `bytes` zeroed bytes that the system may write out to make room: a shared mapping of a file in
 * `directory` (NULL: $TMPDIR, or /tmp) that loses its name at once, so nothing is left however the run
 * ends. The file is written in full first, so that a full disk is an error here and not a signal in the
 * middle of a step. NULL with an error. */
void *pages_open(const char *directory, size_t bytes, struct lora_error *err);
void pages_close(void *pages, size_t bytes);

#endif
