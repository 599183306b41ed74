/* steps.c - rows to steps to packs. */
#include "train.h"

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

static int larger_first(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x < y) - (x > y);
}

/* The sum of the `count` largest; *most is the largest. */
static long long largest(int *v, int n, int count, int *most)
{
    long long sum = 0;
    int i;
    qsort(v, (size_t)n, sizeof *v, larger_first);
    for (i = 0; i < n && i < count; i++) sum += v[i];
    *most = n ? v[0] : 0;
    return sum;
}

int step_sizes(struct lora_sizes *z, const struct steps *s, int tokens_per_pack, struct lora_error *err)
{
    const struct dataset *d = s->data;
    int *inputs = new_array((size_t)d->n, sizeof *inputs, err), *targets = new_array((size_t)d->n, sizeof *targets, err);
    int i, t, longest, most;
    long long tokens, T;
    for (i = 0; i < d->n && inputs && targets; i++) {
        struct pack_input in = input_of(&d->rows[i], 0);
        inputs[i] = pack_inputs(&in);
        for (t = 1; t <= inputs[i]; t++) targets[i] += in.mask[t] != 0;
    }
    if (inputs && targets) {
        tokens = largest(inputs, d->n, s->per_step, &longest);
        T = largest(targets, d->n, s->per_step, &most);
        if (tokens > tokens_per_pack) tokens = tokens_per_pack;
        if (tokens < longest) tokens = longest;
        z->N = (int)tokens;
        z->U = (int)tokens;
        z->T = (int)(T < 1 << 30 ? T : 1 << 30);
        z->S = 2 * s->per_step;     /* a segment a row, and one at most where two part */
        z->positions = longest;
    }
    free(inputs);
    free(targets);
    return inputs && targets ? 0 : -1;
}
