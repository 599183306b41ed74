/* pack.c - see pack.h. */
#include "pack.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

void pack_clear(struct pack *p) { p->N = p->S = p->T = p->U = p->keys = p->finished = 0; }

static void free_by_row(struct pack *p)
{
    free(p->logit_row); free(p->first); free(p->order); free(p->id_by_row); free(p->weight_by_row);
}

void pack_free(struct pack *p)
{
    free(p->ids); free(p->pos); free(p->visit);
    free(p->segments);
    free(p->target_row); free(p->target_id); free(p->target_weight);
    free_by_row(p);
    memset(p, 0, sizeof *p);
}

/* Several arrays of one length grow together: all capacities follow the last one that grew. */
static int grow_together(void **const *arrays, const size_t *sizes, int n, size_t *capacity,
                         size_t needed, struct lora_error *err)
{
    size_t grown = *capacity;
    int i;
    for (i = 0; i < n; i++) {
        grown = *capacity;
        if (grow_array(arrays[i], &grown, needed, sizes[i], err)) return -1;
    }
    *capacity = grown;
    return 0;
}

/* Room for n more tokens and one more segment. */
static int grow_tokens(struct pack *p, int n, struct lora_error *err)
{
    void **const token[] = { (void **)&p->ids, (void **)&p->pos, (void **)&p->visit };
    static const size_t token_size[] = { sizeof(int), sizeof(int), sizeof(int) };
    if (n < 0 || p->N > INT_MAX - n) {
        fail(err, "pack too large", "%d tokens and %d more", p->N, n);
        return expected(err, "at most %d tokens", INT_MAX);
    }
    if (grow_together(token, token_size, 3, &p->capacity_N, (size_t)p->N + (size_t)n, err)) return -1;
    return grow_array((void **)&p->segments, &p->capacity_S, (size_t)p->S + 1, sizeof *p->segments, err);
}

int pack_cached(struct pack *p, const int *ids, int n, int k_start, int k_len, int prefix, int pos,
                int adapter, int *segment, struct lora_error *err)
{
    int i;
    if (n < 0 || prefix >= p->S || prefix < -1 || k_start < 0 || k_len < n || k_start > INT_MAX - k_len
        || pos < 0 || pos > INT_MAX - k_len || adapter < -1) {
        fail(err, "bad segment", "segment %d", p->S);
        expected(err, "a prefix below it, at least %d keys, and an adapter from 0, or -1: the base", n);
        return found(err, "prefix %d, %d keys at row %d, position %d, adapter %d", prefix, k_len, k_start, pos, adapter);
    }
    if (grow_tokens(p, n, err)) return -1;
    p->segments[p->S] = (struct segment){ .q_start = p->N, .q_len = n, .k_start = k_start, .k_len = k_len,
                                          .prefix = prefix, .pos = pos, .adapter = adapter };
    for (i = 0; i < n; i++) {
        p->ids[p->N + i] = ids[i];
        p->pos[p->N + i] = pos + k_len - n + i;
        p->visit[p->N + i] = 0;
    }
    if (segment) *segment = p->S;
    p->N += n;
    p->S++;
    p->finished = 0;
    return 0;
}

int pack_segment(struct pack *p, const int *ids, int n, int prefix, int adapter, int visit,
                 int *segment, struct lora_error *err)
{
    int i, pos = 0, start = p->N;
    if (prefix >= 0 && prefix < p->S) pos = p->segments[prefix].pos + p->segments[prefix].k_len;
    if (pack_cached(p, ids, n, start, n, prefix, pos, adapter, segment, err)) return -1;
    p->segments[p->S - 1].visit = visit;
    for (i = start; i < p->N; i++) p->visit[i] = visit;
    return 0;
}

int pack_target(struct pack *p, int segment, int index, int id, float weight, struct lora_error *err)
{
    void **const target[] = { (void **)&p->target_row, (void **)&p->target_id, (void **)&p->target_weight };
    static const size_t target_size[] = { sizeof(int), sizeof(int), sizeof(float) };
    if (segment < 0 || segment >= p->S || index < 0 || index >= p->segments[segment].q_len) {
        fail(err, "bad target", "segment %d, index %d", segment, index);
        return expected(err, "an index inside the segment");
    }
    if (grow_together(target, target_size, 3, &p->capacity_T, (size_t)p->T + 1, err)) return -1;
    p->target_row[p->T] = p->segments[segment].q_start + index;
    p->target_id[p->T] = id;
    p->target_weight[p->T] = weight;
    p->T++;
    p->finished = 0;
    return 0;
}

int pack_inputs(const struct pack_input *row)
{
    int last = 0, t;
    for (t = 1; t < row->n; t++) if (row->mask[t]) last = t;
    return last;
}

static int common_inputs(const struct pack_input *a, int a_inputs, const struct pack_input *b, int b_inputs)
{
    int n = a_inputs < b_inputs ? a_inputs : b_inputs, i = 0;
    while (i < n && a->ids[i] == b->ids[i]) i++;
    return i;
}

int pack_common(const struct pack_input *row, const struct pack_input *rows, int n)
{
    int inputs = pack_inputs(row), best = 0, i;
    for (i = 0; i < n; i++) {
        int common = common_inputs(row, inputs, &rows[i], pack_inputs(&rows[i]));
        if (common > best) best = common;
    }
    return best;
}

int pack_row(struct pack *p, const int *ids, const unsigned char *mask, int n, int adapter, int visit,
             struct lora_error *err)
{
    const struct pack_input row = { ids, mask, n, visit, NULL };
    return pack_rows(p, &row, 1, adapter, 0, err);
}

/* A row while it is laid down: its inputs counted once. */
struct laying { const struct pack_input *row; int inputs; };

/* By inputs, a row before those that continue it: rows that begin alike stand together. */
static int compare_rows(const void *a_, const void *b_)
{
    const struct laying *a = a_, *b = b_;
    int i = common_inputs(a->row, a->inputs, b->row, b->inputs);
    if (i < a->inputs && i < b->inputs) return a->row->ids[i] < b->row->ids[i] ? -1 : 1;
    if (a->inputs != b->inputs) return a->inputs < b->inputs ? -1 : 1;
    return a->row < b->row ? -1 : a->row > b->row;
}

static int label_of(const struct pack_input *row, int t) { return row->labels ? row->labels[t] : row->ids[t]; }

/* Inputs from .. to - 1 of n rows that are alike up to `to`, as one segment, with their targets. */
static int lay_segment(struct pack *p, const struct laying *rows, int n, int from, int to, int prefix,
                       int adapter, int *segment, struct lora_error *err)
{
    const struct pack_input *first = rows[0].row;
    int t, i;
    if (pack_segment(p, first->ids + from, to - from, prefix, adapter, first->visit, segment, err)) return -1;
    for (t = from; t + 1 < to; t++) {           /* the next token is the same in all of them */
        int weight = 0;
        for (i = 0; i < n; i++) {
            const struct pack_input *row = rows[i].row;
            if (!row->mask[t + 1]) continue;
            if (label_of(row, t + 1) == first->ids[t + 1]) weight++;
            else if (pack_target(p, *segment, t - from, label_of(row, t + 1), 1, err)) return -1;
        }
        if (weight && pack_target(p, *segment, t - from, first->ids[t + 1], (float)weight, err)) return -1;
    }
    for (i = 0; i < n; i++)
        if (rows[i].row->mask[to] && pack_target(p, *segment, to - 1 - from, label_of(rows[i].row, to), 1, err)) return -1;
    return 0;
}

/* n sorted rows whose first `from` inputs are alike and lie in `prefix`. */
static int lay_group(struct pack *p, const struct laying *rows, int n, int from, int prefix, int adapter,
                     struct lora_error *err)
{
    int common = common_inputs(rows[0].row, rows[0].inputs, rows[n - 1].row, rows[n - 1].inputs), i, end;
    if (common > from && lay_segment(p, rows, n, from, common, prefix, adapter, &prefix, err)) return -1;
    for (i = 0; i < n; i = end) {
        end = i + 1;
        if (rows[i].inputs == common) continue;
        while (end < n && rows[end].row->ids[common] == rows[i].row->ids[common]) end++;
        if (lay_group(p, rows + i, end - i, common, prefix, adapter, err)) return -1;
    }
    return 0;
}

int pack_row_behind(struct pack *p, const struct pack_input *row, int from, int prefix, int adapter,
                    struct lora_error *err)
{
    const struct laying one = { row, pack_inputs(row) };
    int segment;
    return one.inputs > from ? lay_segment(p, &one, 1, from, one.inputs, prefix, adapter, &segment, err) : 0;
}

int pack_rows(struct pack *p, const struct pack_input *rows, int n, int adapter, int share,
              struct lora_error *err)
{
    struct laying *list;
    int i, m = 0, bad = 0;
    if (!share) {
        for (i = 0; i < n && !bad; i++) bad = pack_row_behind(p, &rows[i], 0, -1, adapter, err);
        return bad;
    }
    if (!(list = new_array((size_t)n, sizeof *list, err))) return -1;
    for (i = 0; i < n; i++) {
        list[m] = (struct laying){ &rows[i], pack_inputs(&rows[i]) };
        if (list[m].inputs) m++;
    }
    if (m) {
        qsort(list, (size_t)m, sizeof *list, compare_rows);
        bad = lay_group(p, list, m, 0, -1, adapter, err);
    }
    free(list);
    return bad;
}

static int check_segments(const struct pack *p, struct lora_error *err)
{
    int i;
    for (i = 0; i < p->S; i++) {
        const struct segment *s = &p->segments[i], *q;
        if (s->prefix < 0) continue;
        q = &p->segments[s->prefix];
        if (s->pos != q->pos + q->k_len) {
            fail(err, "bad segment", "segment %d", i);
            expected(err, "position %d, where its prefix ends", q->pos + q->k_len);
            return found(err, "%d", s->pos);
        }
    }
    return 0;
}

int pack_finish(struct pack *p, struct lora_error *err)
{
    int *count = new_array((size_t)p->N + 1, sizeof *count, err);
    size_t T = (size_t)p->T + 1;
    int t, n, u = 0, next = 0;
    if (!count || check_segments(p, err)) {
        free(count);
        return -1;
    }
    free_by_row(p);
    p->finished = 0;
    p->logit_row = new_array(T, sizeof(int), err);
    p->first = new_array(T + 1, sizeof(int), err);
    p->order = new_array(T, sizeof(int), err);
    p->id_by_row = new_array(T, sizeof(int), err);
    p->weight_by_row = new_array(T, sizeof(float), err);
    if (!p->logit_row || !p->first || !p->order || !p->id_by_row || !p->weight_by_row) {
        free(count);
        return -1;
    }
    /* A counting sort by row keeps the targets of one row in the order they were added. */
    for (t = 0; t < p->T; t++) count[p->target_row[t]]++;
    for (n = 0; n < p->N; n++) {
        int here = count[n];
        count[n] = next;
        if (!here) continue;
        p->logit_row[u] = n;
        p->first[u++] = next;
        next += here;
    }
    p->first[u] = next;
    p->U = u;
    for (t = 0; t < p->T; t++) {
        int slot = count[p->target_row[t]]++;
        p->order[slot] = t;
        p->id_by_row[slot] = p->target_id[t];
        p->weight_by_row[slot] = p->target_weight[t];
    }
    free(count);
    p->keys = 0;
    for (n = 0; n < p->S; n++) {
        int end = p->segments[n].k_start + p->segments[n].k_len;
        if (end > p->keys) p->keys = end;
    }
    p->finished = 1;
    return 0;
}
