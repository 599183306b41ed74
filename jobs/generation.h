/* generation.h - new tokens after old ones, several sequences at a time, over a key/value cache. */
#ifndef GENERATION_H
#define GENERATION_H

#include "session.h"

/* How the next token is chosen from the logits, in Transformers' order. */
struct sampling {
    double repetition_penalty;  /* 1: none. Logits of ids that are there: / penalty, * penalty below 0 */
    double temperature;         /* 0: the largest logit, the first of equals */
    int top_k;                  /* 0: all */
    double top_p;               /* 1: all. The fewest, from the likeliest, that have this share */
    double min_p;               /* 0: all. At least this share of the likeliest one's */
    uint64_t key;               /* of the random numbers; their index is the position */
};
#define SAMPLING_GREEDY { 1, 0, 0, 1, 0, 0 }

/* Its slot is a part of the cache, which holds its first `cached` ids, but for those that all share. */
struct sequence {
    struct ids ids;
    size_t cached;
    int slot;
};

#define GENERATION_ROWS 64

struct generator {
    const struct session *session;
    struct lora *lora;
    struct pack pack;
    int slots, slot_length;     /* sequences at a time, ids of each at most (without the shared ones) */
    int shared;                 /* ids that all sequences begin with: in the cache once, behind the slots */
    int tokens;                 /* of a pass at most */
    float *logits;              /* [slots, V] of the last feed */
    int *at;                    /* [slots]: which row of logits is the slot's */
    int *rows;                  /* [slots] scratch: rows of the pack */
    int stops[18], n_stops;     /* ids that end an answer: EOS of the configuration, of the generation_config.json beside it
                                 * and of the tokenizer, and the template's end of turn */
    void *candidates;           /* [V] scratch of choosing */
    long long computed;         /* tokens fed so far */
};

/* shared[n_shared]: ids that all sequences will begin with, each with more of its own (n_shared 0: none).
 * They are fed here; a sequence starts with them as its cached ids. */
int generator_open(struct generator *g, const struct session *s, int slots, int slot_length,
                   const int *shared, int n_shared, struct lora_error *err);
void generator_close(struct generator *g);

/* Feeds what the n sequences (of different slots) have beyond their cached ids, at least one id each;
 * the logits after each are kept until the next feed. */
int generator_feed(struct generator *g, struct sequence *const *list, int n, struct lora_error *err);
/* The next id of a fed sequence. */
int generator_choose(struct generator *g, const struct sequence *q, const struct sampling *how);
int generator_is_stop(const struct generator *g, int id);

/* Greedy answers to many prompts, rows of `d` up to prompt_n, `slots` at a time (GENERATION_ROWS is a good
 * number). take(ctx, row, answer) is called for each row in order, with a text without special tokens; -1 with
 * an error ends it. each(ctx, done) is called as rows end; when it returns non-zero the call ends with 1. */
int generate_answers(const struct session *s, const struct dataset *d, int slots, int max_new,
                     int (*take)(void *ctx, const struct row *row, const char *answer, struct lora_error *err),
                     int (*each)(void *ctx, int done), void *ctx, struct lora_error *err);

#endif
