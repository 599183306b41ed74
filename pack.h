/* pack.h - N tokens laid end to end, with a table of segments: the unit of work.
 *
 * No padding, no pad token, no leak between rows: attention is causal inside a segment and sees all
 * of its prefix, nothing else; positions follow from the table. A segment may continue another one,
 * so a common beginning is computed once, and the gradient of the prefix is the sum over the
 * segments that continue it, which is exact. docs/one-row.md draws one. */
#ifndef PACK_H
#define PACK_H

#include "kernels.h"

/* Zero-initialise; to be read, and changed by the functions below alone, which copy what they are given. */
struct pack {
    int N;                      /* tokens */
    int *ids, *pos, *visit;     /* [N] */
    int S;
    struct segment *segments;   /* [S] */
    /* targets, in the order in which rows were added; `row` is the position whose logits predict it */
    int T;
    int *target_row, *target_id;
    float *target_weight;
    /* made by pack_finish: rows with a target, ascending; row logit_row[u] has the places first[u] .. first[u + 1] - 1
     * of the three lists below */
    int U;
    int *logit_row;             /* [U] */
    int *first;                 /* [U + 1] */
    int *order;                 /* [T]: which target of the list above */
    int *id_by_row;             /* [T] */
    float *weight_by_row;       /* [T] */
    int keys;                   /* rows the key and value buffers need */
    int finished;               /* and nothing was appended since */
    size_t capacity_N, capacity_S, capacity_T;
};

void pack_clear(struct pack *p);        /* empties, keeps the memory */
void pack_free(struct pack *p);

/* After an error of the next three the pack is as before; of those that lay down rows, part of them may be there: clear
 * it. adapter: index in the lora's, -1: the base alone. visit: of dropout masks (kernels.h). Whether ids and adapters are
 * there is seen when a lora takes the pack. */

/* Appends n tokens as a segment that continues `prefix` (-1: none); queries and keys are these
 * rows. Its index in *segment (may be NULL). */
int pack_segment(struct pack *p, const int *ids, int n, int prefix, int adapter, int visit,
                 int *segment, struct lora_error *err);
/* A segment whose keys lie elsewhere (generation: in the cache): n tokens now, the last n of k_len
 * keys that start at key row k_start, position `pos` for the first key. n may be 0. */
int pack_cached(struct pack *p, const int *ids, int n, int k_start, int k_len, int prefix, int pos,
                int adapter, int *segment, struct lora_error *err);
/* Token `id` is to be predicted at position `index` of the segment (its row q_start + index); its loss counts `weight` times
 * in the gradients. */
int pack_target(struct pack *p, int segment, int index, int id, float weight, struct lora_error *err);
/* A training row: ids[n], mask[t] = 1 where the token at t is a target (mask[0] is ignored: nothing
 * predicts it): ids[t], or labels[t] where a row is given other ones to learn than it has. Its inputs are
 * ids[0 .. last target - 1]: what comes after is never an input. */
struct pack_input {
    const int *ids;
    const unsigned char *mask;
    int n, visit;
    const int *labels;          /* NULL: ids */
};
/* How many inputs the row has: 0 without targets. */
int pack_inputs(const struct pack_input *row);
/* How many of its inputs it shares with the one of rows[n] that begins most like it. */
int pack_common(const struct pack_input *row, const struct pack_input *rows, int n);
/* Lays rows down. share: what several rows begin with is laid down once, as a segment that theirs
 * continue, and a target in it counts once for each of its rows; the targets then stand in another
 * order than the rows. Otherwise a segment a row, targets in order. */
int pack_rows(struct pack *p, const struct pack_input *rows, int n, int adapter, int share,
              struct lora_error *err);
/* One row whose first `from` inputs are those that end with segment `prefix` (-1: from is 0); none of
 * their next tokens is a target. */
int pack_row_behind(struct pack *p, const struct pack_input *row, int from, int prefix, int adapter,
                    struct lora_error *err);
/* One row that shares nothing. */
int pack_row(struct pack *p, const int *ids, const unsigned char *mask, int n, int adapter, int visit,
             struct lora_error *err);
/* Sorts the targets by row and checks the table. Call before the pack is used: one that is not finished, or that something was
 * appended to since, is refused. */
int pack_finish(struct pack *p, struct lora_error *err);

#endif
