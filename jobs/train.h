/* train.h - a training run in its parts: options, rows to steps, the plan, the loop, what is kept. */
#ifndef TRAIN_H
#define TRAIN_H

#include "evaluation.h"
#include "../metrics.h"
#include "../optim.h"

#include <stdio.h>

/* ---- options ---- */

enum { METHOD_LORA, METHOD_FULL };
enum { CHECKPOINTING_ON, CHECKPOINTING_OFF, CHECKPOINTING_AUTO };
enum { METRIC_LOSS, METRIC_TOKEN_ACCURACY, METRIC_ACCURACY, METRIC_MACRO_F1 };

struct train_settings {
    struct common common;
    struct data_settings data;
    const char *out, *eval_data, *init_adapter, *eval_steps, *save_steps;
    double eval_split;
    int method, dtype;
    int lora_r, use_rslora;
    double lora_alpha, lora_dropout;
    const char *target_modules, *rank_pattern, *alpha_pattern, *layers;
    double learning_rate, warmup_ratio, weight_decay, beta1, beta2, epsilon, max_grad_norm;
    int optim, lr_scheduler, batch_size, accumulation, tokens_per_pack, no_shuffle;
    long long warmup_steps, max_steps;
    double epochs;
    int gradient_checkpointing, save_total_limit, patience, load_best, metric, eval_task;
    int resume, overwrite, dry_run;     /* dry_run: 1 in `lora plan` too */
};
extern const struct option train_options[];
extern const struct train_settings train_defaults;
/* --optim without its other names: an enum lora_optim. */
int optim_of(const struct train_settings *set);
/* What options exclude or need; 0, or the exit status of the usage error that was printed. */
int train_check(const struct job *job, const struct train_settings *set, int needs_data);

/* ---- rows to steps to packs ---- */

/* A step is the next per_step rows of the epoch's order; an epoch's last may have fewer. They are read as packs
 * are laid: memory holds those of one pack. */
struct steps {
    /* said before steps_open(), the rest zero: */
    const struct dataset *data;
    int per_step, tokens_per_pack;
    int adapter;                /* of all rows: 0, or -1: none */
    int share;                  /* what rows begin with in common is computed once */
    int shuffle;
    uint64_t seed;
    /* and what follows from it */
    long long per_epoch;
    int *order;                 /* [data->n] of `epoch`; NULL: as they are */
    long long epoch;
    int first, n;               /* where the step begins in that order, and its rows */
    int next, used;             /* rows of the step that packs have; those of the last pack */
    struct row *rows;           /* [have] the last pack's, and one that came too late for it */
    struct pack_input *inputs;
    int have;
    size_t rows_capacity, inputs_capacity;
    long long targets;          /* of the step */
    long long tokens;           /* of its rows that were read, */
    int longest;                /* and the inputs of the longest of them */
    long long computed;         /* tokens of all packs of the run (step_sizes) */
};
int steps_open(struct steps *s, struct lora_error *err);
void steps_close(struct steps *s);
void steps_seek(struct steps *s, long long step);       /* from 0 */

/* Fills p with the step's next rows, until one would go over tokens_per_pack; a longer row is a pack alone.
 * 1, or 0 when the step has no more rows, or -1. */
int step_pack(struct steps *s, struct pack *p, struct lora_error *err);
/* What the packs of the steps 0 .. total - 1 need, and how many tokens they compute (s->computed):
 * measured, as rows whose beginnings are shared need less than rows apart; of a very long run a part
 * is measured, the sizes are then those that any step can need, and the tokens an estimate. */
int step_sizes(struct lora_sizes *sizes, struct steps *s, long long total, struct lora_error *err);

/* ---- the run ---- */

/* What resuming goes on from, beside weights and moments. */
struct train_state {
    long long step;             /* steps done */
    long long eval_step;        /* of the last evaluation, 0: none */
    long long best_step;        /* 0: none */
    double best;                /* the metric there */
    int without_better;         /* evaluations since */
};

struct run {
    const struct train_settings *set;
    struct session session;
    struct data_options data_options;
    struct dataset data, eval;
    struct data_report report;      /* of the training rows */
    struct adapter *adapter;        /* NULL: full */
    uint64_t init_hash;             /* of --init-adapter's values */
    struct steps steps;
    long long total, warmup;        /* steps */
    long long eval_every, save_every;   /* 0: never */
    struct lora_setup setup;
    struct lora_plan plan;
    struct lora *lora;
    struct train_state state;
    FILE *metrics;
    int lock;                       /* of DIR (output_lock), or -1 */
    struct pack pack;
    double *losses;                 /* of a pack's targets */
    struct label_set labels;        /* of --eval-task classify, */
    struct classification scores;   /* and the answers so far */
};

/* Session, rows, adapter, steps, sizes and the plan; no memory of the arena yet. */
int run_open(struct run *r, const struct train_settings *set, struct lora_error *err);
void run_close(struct run *r);
/* The evaluation rows, for their loss, or for the labels. */
struct evaluation run_evaluation(struct run *r, const struct label_set *labels);

/* ---- plan.c ---- */

/* How many layers to keep, and the plan, into r->setup and r->plan. */
int plan_choose(struct run *r, struct lora_error *err);
void plan_print(FILE *f, const struct run *r, double seconds);     /* seconds < 0: not timed */
/* The time of the whole run, from a short timing of a product. */
double plan_seconds(const struct run *r);

/* ---- checkpoint.c ---- */

/* All of the state under DIR/checkpoint-STEP, whole or not at all; then older ones go. */
int checkpoint_save(struct run *r, struct lora_error *err);
/* The newest whole one under DIR, if there is any: r->state.step says so. Refuses by name what has
 * changed. */
int checkpoint_resume(struct run *r, struct lora_error *err);
/* The weights alone of one step (the best). */
int checkpoint_weights(struct run *r, long long step, struct lora_error *err);
/* What DIR holds: 0, A_RUN, NO_RUN (files of a model or an adapter that no run of this program left), or -1: it cannot be read.
 * Nothing in it is touched. And away with it. */
enum { A_RUN = 1, NO_RUN };
int checkpoint_any(const char *dir, struct lora_error *err);
int checkpoint_clear(const char *dir, struct lora_error *err);
/* All numbers of an enum lora_buffer but codes, as floats: where they lie, or *copy, which is to be freed. NULL: no memory. */
const float *run_floats(const struct run *r, int buffer, float **copy, struct lora_error *err);
/* The adapter, or the model under `full`, into a directory. */
int weights_write(struct run *r, const char *dir, int dtype, struct lora_error *err);
/* Opens DIR/metrics.jsonl to go on after state.step. */
int metrics_open(struct run *r, struct lora_error *err);
/* The options that decide the numbers, as a JSON object. */
void put_fingerprint(struct text *t, const struct run *r);

/* ---- record.c ---- */

int record_run(const struct run *r, struct lora_error *err);       /* run.json */
int announce(const struct run *r, struct lora_error *err);      /* what is adapted, a row with its targets, the data */

#endif
