/* evaluation.h - a model's figures over rows: loss of the targets, likeliest label. */
#ifndef EVALUATION_H
#define EVALUATION_H

#include "session.h"
#include "../formats/names.h"

enum { TASK_LM, TASK_CLASSIFY, TASK_GENERATE };        /* --task, and --eval-task the first two */

/* A set of labels as a tree of tokens behind the prompt: labels that begin alike share what is
 * alike, so each row computes a different token once, and what cannot win not at all. Node 0 is the prompt's last token. */
struct label_node { int parent, children; };
struct label_set {
    struct words words;
    char **names;               /* [n] in order of bytes */
    int n;
    struct label_node *nodes;   /* every node but 0 is a target, predicted where its parent stands */
    struct ids ids;             /* [n_nodes] their tokens */
    int n_nodes;
    int *leaf;                  /* [n] each label's last node */
    int tokens;                 /* nodes that are inputs: tokens that a row adds to its prompt */
    size_t capacity;
};

/* The label of a row: its label, else its answer. NULL: it has none. */
const char *row_label(const struct row *row);
/* names: NULL takes those that occur in the rows of d and of `more` (NULL: none). A row of d whose label is
 * none of the set is an error, and so are two labels of the same tokens. A label's tokens are those of a row
 * of d that has it, else of data_label_ids. */
int label_set_make(struct label_set *set, const struct dataset *d, const struct dataset *more,
                   const struct data_options *o, const char *const *names, int n, struct lora_error *err);
void label_set_free(struct label_set *set);
int label_set_find(const struct label_set *set, const char *name);      /* index, or -1 */
int labels_alike(const char *a, const char *b, struct lora_error *err); /* -1: says that they cannot be told apart */

/* How rows are laid into packs: at most `rows` of them and, beyond one row, EVALUATION_TOKENS tokens.
 * What all rows of a pack begin with, before any target, is laid down once. labels NULL: each row's own
 * targets. */
#define EVALUATION_TOKENS 2048
#define EVALUATION_ROWS 32
struct evaluation {
    const struct dataset *d;
    const struct label_set *labels;
    int rows, adapter;
    /* called after each pack; when it returns non-zero, evaluation ends with 1. May be NULL. */
    int (*each)(void *ctx, int rows_done);
    /* What a row gave, in order: the losses of its n_targets; the label whose tokens and end of turn have the
     * largest sum of log-probabilities, the first of equals, and that sum. -1 with an error ends it. May be NULL. */
    int (*losses)(void *ctx, const struct row *row, const double *losses, struct lora_error *err);
    int (*label)(void *ctx, const struct row *row, int label, double log_probability, struct lora_error *err);
    void *ctx;
};

/* What lora_open must allow for; only raises what is there. */
int evaluation_sizes(const struct evaluation *e, struct lora_sizes *sizes, struct lora_error *err);

struct lm_figures {
    double loss, token_accuracy;        /* means over the targets */
    long long targets;
};
/* A loss that is not finite is an error that names layer and tensor. */
int evaluate_lm(const struct evaluation *e, struct lora *l, struct lm_figures *f, struct lora_error *err);
/* Each row's likeliest label, to e->label. */
int evaluate_labels(const struct evaluation *e, struct lora *l, struct lora_error *err);

#endif
