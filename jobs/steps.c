/* steps.c - rows to steps to packs. */
#include "train.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

int steps_open(struct steps *s, struct lora_error *err)
{
    if (s->per_step > s->data->n) s->per_step = s->data->n;
    s->per_epoch = ((long long)s->data->n + s->per_step - 1) / s->per_step;
    s->epoch = -1;
    if (s->shuffle) s->order = new_array((size_t)s->data->n, sizeof *s->order, err);
    return s->shuffle && !s->order ? -1 : 0;
}

/* The first n of the rows go. */
static void drop_rows(struct steps *s, int n)
{
    int i;
    for (i = 0; i < n; i++) row_free(&s->rows[i]);
    s->have -= n;
    if (!n || !s->have) return;
    memmove(s->rows, s->rows + n, (size_t)s->have * sizeof *s->rows);
    memmove(s->inputs, s->inputs + n, (size_t)s->have * sizeof *s->inputs);
}

void steps_close(struct steps *s)
{
    drop_rows(s, s->have);
    free(s->order);
    free(s->rows);
    free(s->inputs);
    memset(s, 0, sizeof *s);
}

/* Which row stands at place i of the epoch. */
static int row_at(const struct steps *s, int i) { return s->order ? s->order[i] : i; }

void steps_seek(struct steps *s, long long step)
{
    long long epoch = step / s->per_epoch;
    int i;
    if (epoch != s->epoch && s->order) shuffle_rows(s->order, s->data->n, s->seed, epoch);
    drop_rows(s, s->have);
    s->epoch = epoch;
    s->first = (int)(step % s->per_epoch) * s->per_step;
    s->n = s->data->n - s->first < s->per_step ? s->data->n - s->first : s->per_step;
    s->next = s->used = s->longest = 0;
    s->tokens = s->targets = 0;
    for (i = 0; i < s->n; i++) s->targets += data_entry(s->data, row_at(s, s->first + i))->n_targets;
}

/* One row more of the step. */
static int read_row(struct steps *s, struct lora_error *err)
{
    int place = s->first + s->next + s->have;
    struct pack_input *in;
    struct row *row;
    if (grow_array((void **)&s->rows, &s->rows_capacity, (size_t)s->have + 1, sizeof *s->rows, err)
        || grow_array((void **)&s->inputs, &s->inputs_capacity, (size_t)s->have + 1, sizeof *s->inputs, err)) return -1;
    row = &s->rows[s->have];
    in = &s->inputs[s->have++];
    memset(row, 0, sizeof *row);
    if (data_row(s->data, row_at(s, place), row, err)) return -1;
    *in = (struct pack_input){ row->ids, row->mask, row->n, (int)(s->epoch * s->data->n + place), row->labels };
    s->tokens += row->n;
    if (pack_inputs(in) > s->longest) s->longest = pack_inputs(in);
    return 0;
}

int step_pack(struct steps *s, struct pack *p, struct lora_error *err)
{
    long long tokens = 0;
    int n = 0;
    drop_rows(s, s->used);
    for (s->used = 0; s->next + n < s->n; n++) {
        int inputs;
        if (n == s->have && read_row(s, err)) return -1;
        inputs = pack_inputs(&s->inputs[n]);
        if (s->share) inputs -= pack_common(&s->inputs[n], s->inputs, n);
        if (n && tokens + inputs > s->tokens_per_pack) break;
        tokens += inputs;
    }
    if (!n) return 0;
    s->used = n;
    s->next += n;
    pack_clear(p);
    return pack_rows(p, s->inputs, n, s->adapter, s->share, err) || pack_finish(p, err) ? -1 : 1;
}

/* ---- sizes ---- */

/* Tokens that are read to be measured; a step counts as some, whatever it has. Some seconds, of a run of hours. */
#define MEASURED_TOKENS (1LL << 24)
#define STEP_TOKENS 256

/* What any step can need, in whatever order its rows come. */
static void any_step(struct lora_sizes *z, const struct steps *s)
{
    const struct data_report *r = &s->data->report;
    long long longest = r->most_inputs > 1 ? r->most_inputs : 1, tokens, T;
    tokens = longest * s->per_step;
    if (tokens > s->tokens_per_pack) tokens = s->tokens_per_pack > longest ? s->tokens_per_pack : longest;
    T = (long long)r->most_targets * s->per_step;
    z->N = z->U = (int)tokens;
    z->T = (int)(T < 1 << 30 ? T : 1 << 30);
    z->S = 2 * s->per_step;     /* a segment a row, and one at most where two part */
    z->positions = (int)longest;
}

/* The order of rows is known, so every pack of the run is laid once and measured: of a long run the
 * first ones, and then there must be room for any. In file order the epochs are alike. */
int step_sizes(struct lora_sizes *z, struct steps *s, long long total, struct lora_error *err)
{
    struct pack p;
    long long step, seen = 0, different = s->shuffle || total < s->per_epoch ? total : s->per_epoch;
    int got = 0;
    memset(&p, 0, sizeof p);
    s->computed = 0;
    for (step = 0; step < different && got >= 0 && seen < MEASURED_TOKENS; step++, seen += s->tokens + STEP_TOKENS) {
        steps_seek(s, step);
        while ((got = step_pack(s, &p, err)) > 0) {
            lora_sizes_raise(z, &p);
            s->computed += p.N;
        }
    }
    pack_free(&p);
    if (got < 0) return -1;
    if (step < different) any_step(z, s);
    if (step < total) {
        double all = (double)s->computed / (double)step * (double)total;
        s->computed = all < 9e18 ? (long long)all : LLONG_MAX;
    }
    return 0;
}
