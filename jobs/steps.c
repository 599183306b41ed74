/* steps.c - rows to steps to packs. */
#include "train.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

int steps_open(struct steps *s, const struct dataset *d, int per_step, int shuffle, uint64_t seed,
               struct lora_error *err)
{
    memset(s, 0, sizeof *s);
    s->data = d;
    s->per_step = per_step < d->n ? per_step : d->n;
    s->shuffle = shuffle;
    s->seed = seed;
    s->per_epoch = ((long long)d->n + s->per_step - 1) / s->per_step;
    s->epoch = -1;
    s->order = new_array((size_t)d->n, sizeof *s->order, err);
    s->rows = new_array((size_t)s->per_step, sizeof *s->rows, err);
    return s->order && s->rows ? 0 : -1;
}

void steps_close(struct steps *s)
{
    free(s->order);
    free(s->rows);
    memset(s, 0, sizeof *s);
}

static struct pack_input input_of(const struct row *row, long long visit)
{
    struct pack_input in;
    in.ids = row->ids;
    in.mask = row->mask;
    in.n = row->n;
    in.visit = (int)visit;
    in.labels = row->labels;
    return in;
}

void steps_seek(struct steps *s, long long step)
{
    long long epoch = step / s->per_epoch;
    int first = (int)(step % s->per_epoch) * s->per_step, i;
    if (epoch != s->epoch) {
        if (s->shuffle) shuffle_rows(s->order, s->data->n, s->seed, epoch);
        else for (i = 0; i < s->data->n; i++) s->order[i] = i;
        s->epoch = epoch;
    }
    s->n = s->data->n - first < s->per_step ? s->data->n - first : s->per_step;
    for (i = 0; i < s->n; i++)
        s->rows[i] = input_of(&s->data->rows[s->order[first + i]], epoch * s->data->n + first + i);
}

int step_pack(struct pack *p, const struct pack_input *rows, int n, int *next, int adapter, int share,
              int tokens_per_pack, struct lora_error *err)
{
    int first = *next;
    long long tokens = 0;
    for (; *next < n; ++*next) {
        int inputs = pack_inputs(&rows[*next]);
        if (share) inputs -= pack_common(&rows[*next], rows + first, *next - first);
        if (*next > first && tokens + inputs > tokens_per_pack) break;
        tokens += inputs;
    }
    pack_clear(p);
    return pack_rows(p, rows + first, *next - first, adapter, share, err) || pack_finish(p, err) ? -1 : 0;
}

/* ---- sizes ---- */

/* Tokens that are laid to be measured; a step counts as some, whatever it has. A second or so. */
#define MEASURED_TOKENS (1LL << 25)
#define STEP_TOKENS 256

/* What any step can need, in whatever order its rows come. */
static void any_step(struct lora_sizes *z, const struct steps *s, int tokens_per_pack)
{
    long long longest = 1, most = 0, tokens, T;
    int i, t;
    for (i = 0; i < s->data->n; i++) {
        struct pack_input in = input_of(&s->data->rows[i], 0);
        int inputs = pack_inputs(&in), targets = 0;
        for (t = 1; t <= inputs; t++) targets += in.mask[t] != 0;
        if (inputs > longest) longest = inputs;
        if (targets > most) most = targets;
    }
    tokens = longest * s->per_step;
    if (tokens > tokens_per_pack) tokens = tokens_per_pack > longest ? tokens_per_pack : longest;
    T = most * s->per_step;
    z->N = z->U = (int)tokens;
    z->T = (int)(T < 1 << 30 ? T : 1 << 30);
    z->S = 2 * s->per_step;     /* a segment a row, and one at most where two part */
    z->positions = (int)longest;
}

/* The order of rows is known, so every pack of the run is laid once and measured: of a long run the
 * first ones, and then there must be room for any. In file order the epochs are alike. */
int step_sizes(struct lora_sizes *z, struct steps *s, long long total, int share, int tokens_per_pack,
               struct lora_error *err)
{
    struct pack p;
    long long step, different = s->shuffle || total < s->per_epoch ? total : s->per_epoch;
    int bad = 0, next;
    memset(&p, 0, sizeof p);
    s->computed = 0;
    for (step = 0; step < different && !bad && s->computed + STEP_TOKENS * step < MEASURED_TOKENS; step++) {
        steps_seek(s, step);
        for (next = 0; next < s->n && !bad; s->computed += p.N) {
            if ((bad = step_pack(&p, s->rows, s->n, &next, -1, share, tokens_per_pack, err))) break;
            lora_sizes_raise(z, &p);
        }
    }
    pack_free(&p);
    if (!bad && step < different) any_step(z, s, tokens_per_pack);
    if (!bad && step < total) {
        double all = (double)s->computed / (double)step * (double)total;
        s->computed = all < 9e18 ? (long long)all : LLONG_MAX;
    }
    return bad;
}
