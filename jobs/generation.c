/* generation.c - see generation.h. */
#include "generation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Tokens of a pass: prompts beyond that are fed in parts, so that working memory stays small. */
#define PASS 512

/* ---- the cache and what goes through it ---- */

static void find_stops(struct generator *g)
{
    const struct session *s = g->session;
    const struct config *c = &s->model->config;
    int i, id;
    for (i = 0; i < c->n_eos && i < 8; i++) g->stops[g->n_stops++] = c->eos[i];
    if (!s->tokenizer) return;
    if ((id = tokenizer_eos(s->tokenizer)) >= 0) g->stops[g->n_stops++] = id;
    if (s->chat && (id = tokenizer_id(s->tokenizer, chat_end_of_turn(s->chat))) >= 0) g->stops[g->n_stops++] = id;
}

struct candidate { float p; int id; };

/* What all sequences begin with, in passes; their logits are not wanted. */
static int feed_shared(struct generator *g, const int *ids, int n, struct lora_error *err)
{
    int part;
    for (g->shared = 0; g->shared < n; g->shared += part) {
        part = n - g->shared < g->tokens ? n - g->shared : g->tokens;
        pack_clear(&g->pack);
        if (pack_cached(&g->pack, ids + g->shared, part, g->slots * g->slot_length, g->shared + part, -1, 0,
                        session_adapter(g->session), NULL, err)
            || pack_finish(&g->pack, err) || lora_forward(g->lora, &g->pack, err)) return -1;
        g->computed += part;
    }
    return 0;
}

int generator_open(struct generator *g, const struct session *s, int slots, int slot_length,
                   const int *shared, int n_shared, struct lora_error *err)
{
    struct lora_sizes z;
    size_t V = (size_t)s->model->config.V;
    memset(g, 0, sizeof *g);
    memset(&z, 0, sizeof z);
    g->session = s;
    g->slots = slots;
    g->slot_length = slot_length;
    g->tokens = slot_length < PASS ? slot_length : PASS;
    if (g->tokens < slots) g->tokens = slots;
    find_stops(g);
    z.N = g->tokens;
    z.U = slots;
    z.S = slots + (n_shared > 0);
    z.positions = slot_length + n_shared;
    if (slot_length > (INT32_MAX - n_shared) / slots) return fail(err, "the cache is too large",
                                                                  "%d sequences of %d tokens", slots, slot_length);
    z.keys = slots * slot_length + n_shared;
    g->logits = new_array((size_t)slots, V * sizeof *g->logits, err);
    g->rows = new_array((size_t)slots, sizeof *g->rows, err);
    g->at = new_array((size_t)slots, sizeof *g->at, err);
    g->candidates = new_array(V, sizeof(struct candidate), err);
    if (!g->logits || !g->rows || !g->at || !g->candidates) return -1;
    return session_lora(s, &z, &g->lora, err) || feed_shared(g, shared, n_shared, err) ? -1 : 0;
}

void generator_close(struct generator *g)
{
    lora_close(g->lora);
    pack_free(&g->pack);
    free(g->logits);
    free(g->rows);
    free(g->at);
    free(g->candidates);
    memset(g, 0, sizeof *g);
}

int sequence_append(struct sequence *q, const int *ids, size_t n, struct lora_error *err)
{
    if (grow_array((void **)&q->ids.v, &q->ids.capacity, q->ids.n + n, sizeof *q->ids.v, err)) return -1;
    memcpy(q->ids.v + q->ids.n, ids, n * sizeof *ids);
    q->ids.n += n;
    return 0;
}

/* Lays as much of each sequence as fits into one pass. Those that are whole then get the rows of
 * logits from `first` on; *ready: how many they are, rows: the last row of each in the pack. */
static int lay_pass(struct generator *g, struct sequence *const *list, int n, int first, int *ready,
                    struct lora_error *err)
{
    int i, prefix = -1;
    *ready = 0;
    pack_clear(&g->pack);
    if (g->shared && pack_cached(&g->pack, NULL, 0, g->slots * g->slot_length, g->shared, -1, 0,
                                 session_adapter(g->session), &prefix, err)) return -1;
    for (i = 0; i < n && g->pack.N < g->tokens; i++) {
        struct sequence *q = list[i];
        size_t left = q->ids.n - q->cached, room = (size_t)(g->tokens - g->pack.N);
        int part = (int)(left < room ? left : room);
        if (!part) continue;
        if (pack_cached(&g->pack, q->ids.v + q->cached, part, q->slot * g->slot_length,
                        (int)q->cached - g->shared + part, prefix, g->shared, session_adapter(g->session), NULL, err))
            return -1;
        q->cached += (size_t)part;
        if (q->cached < q->ids.n) continue;
        g->at[q->slot] = first + *ready;
        g->rows[(*ready)++] = g->pack.N - 1;
    }
    return pack_finish(&g->pack, err);
}

int generator_feed(struct generator *g, struct sequence *const *list, int n, struct lora_error *err)
{
    size_t V = (size_t)g->session->model->config.V;
    int i, ready, first = 0;
    for (i = 0; i < n; i++)
        if (list[i]->ids.n > (size_t)g->slot_length + (size_t)g->shared) {
            fail(err, "the text is too long", "sequence %d", i);
            expected(err, "at most %d tokens", g->slot_length + g->shared);
            return found(err, "%zu", list[i]->ids.n);
        }
    for (;; first += ready) {
        if (lay_pass(g, list, n, first, &ready, err)) return -1;
        if (!g->pack.N) return 0;
        g->computed += g->pack.N;
        if (lora_forward(g->lora, &g->pack, err)
            || lora_logits(g->lora, g->rows, ready, g->logits + (size_t)first * V, err)) return -1;
    }
}

int generator_is_stop(const struct generator *g, int id)
{
    int i;
    for (i = 0; i < g->n_stops; i++) if (g->stops[i] == id) return 1;
    return 0;
}

/* ---- choosing ---- */

static int largest(const float *logits, int V)
{
    int i, best = 0;
    for (i = 1; i < V; i++) if (logits[i] > logits[best]) best = i;
    return best;
}

/* Likeliest first; of equals the lower id. */
static int compare_candidates(const void *x, const void *y)
{
    const struct candidate *a = x, *b = y;
    if (a->p != b->p) return a->p < b->p ? 1 : -1;
    return (a->id > b->id) - (a->id < b->id);
}

/* An id that occurs twice is penalised once: its first place counts. */
static void penalise(float *logits, const struct sequence *q, double penalty, unsigned char *seen)
{
    size_t i;
    for (i = 0; i < q->ids.n; i++) {
        int id = q->ids.v[i];
        if (seen[id]) continue;
        seen[id] = 1;
        logits[id] = (float)(logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty);
    }
}

/* How many of the sorted candidates are left to draw from. p becomes exp(logit - largest), unscaled. */
static int keep_candidates(struct candidate *c, int n, const struct sampling *how)
{
    double top = c[0].p, sum = 0, share = 0;
    int i;
    if (how->top_k > 0 && how->top_k < n) n = how->top_k;
    for (i = 0; i < n; i++) sum += c[i].p = (float)exp((c[i].p - top) / how->temperature);
    for (i = 0; how->top_p < 1 && i < n; i++)
        if ((share += c[i].p) >= how->top_p * sum) n = i + 1;
    while (n > 1 && c[n - 1].p < how->min_p) n--;
    return n;
}

int generator_choose(struct generator *g, const struct sequence *q, const struct sampling *how)
{
    int V = g->session->model->config.V, i, n;
    float *logits = g->logits + (size_t)g->at[q->slot] * (size_t)V;
    struct candidate *c = g->candidates;
    double sum = 0, draw;
    if (how->repetition_penalty != 1) {
        memset(c, 0, (size_t)V);
        penalise(logits, q, how->repetition_penalty, (unsigned char *)c);
    }
    if (how->temperature <= 0) return largest(logits, V);
    for (i = 0; i < V; i++) {
        c[i].p = logits[i];
        c[i].id = i;
    }
    qsort(c, (size_t)V, sizeof *c, compare_candidates);
    n = keep_candidates(c, V, how);
    for (i = 0; i < n; i++) sum += c[i].p;
    draw = random_uniform(how->key, q->ids.n) * sum;
    for (i = 0; i < n - 1 && draw >= c[i].p; i++) draw -= c[i].p;
    return c[i].id;
}

/* ---- many prompts ---- */

/* A slot of the batch: which row it answers, or -1. */
struct answering { struct sequence sequence; int row, prompt_n; };

static int start_row(struct answering *a, const struct dataset *d, int row, int shared, struct lora_error *err)
{
    a->row = row;
    a->prompt_n = d->rows[row].prompt_n;
    a->sequence.ids.n = 0;
    a->sequence.cached = (size_t)shared;
    return sequence_append(&a->sequence, d->rows[row].ids, (size_t)a->prompt_n, err);
}

/* The text of what was generated; a stop id at the end is special and gives nothing. */
static int end_row(struct answering *a, const struct session *s, char **answers, struct lora_error *err)
{
    struct text t = { NULL, 0, 0, 0 };
    text_puts(&t, "");
    if (tokenizer_decode(s->tokenizer, a->sequence.ids.v + a->prompt_n, a->sequence.ids.n - (size_t)a->prompt_n, 1,
                         &t, err) || text_check(&t, err)) {
        text_free(&t);
        return -1;
    }
    answers[a->row] = t.s;
    a->row = -1;
    return 0;
}

struct batch {
    struct generator g;
    struct answering *all;
    struct sequence **live;
    int next, ended;            /* rows started, rows answered */
};

/* Fills empty slots with rows, feeds, chooses: one id more for each sequence. */
static int batch_step(struct batch *b, const struct session *s, const struct dataset *d, int max_new,
                      char **answers, struct lora_error *err)
{
    static const struct sampling greedy = SAMPLING_GREEDY;
    int i, n = 0;
    for (i = 0; i < b->g.slots; i++) {
        struct answering *a = &b->all[i];
        if (a->row < 0 && b->next < d->n && start_row(a, d, b->next++, b->g.shared, err)) return -1;
        if (a->row >= 0) b->live[n++] = &a->sequence;
    }
    if (generator_feed(&b->g, b->live, n, err)) return -1;
    for (i = 0; i < b->g.slots; i++) {
        struct answering *a = &b->all[i];
        int id;
        if (a->row < 0) continue;
        id = generator_choose(&b->g, &a->sequence, &greedy);
        if (!generator_is_stop(&b->g, id) && sequence_append(&a->sequence, &id, 1, err)) return -1;
        if (!generator_is_stop(&b->g, id) && (int)a->sequence.ids.n < a->prompt_n + max_new) continue;
        if (end_row(a, s, answers, err)) return -1;
        b->ended++;
    }
    return 0;
}

/* How many ids all prompts begin with, when each has one more at least. */
static int common_beginning(const struct dataset *d)
{
    int common = d->rows[0].prompt_n - 1, i, k;
    for (i = 1; i < d->n; i++) {
        const struct row *row = &d->rows[i];
        if (common > row->prompt_n - 1) common = row->prompt_n - 1;
        for (k = 0; k < common && row->ids[k] == d->rows[0].ids[k]; k++) ;
        common = k;
    }
    return common;
}

static int batch_open(struct batch *b, const struct session *s, const struct dataset *d, int slots, int max_new,
                      struct lora_error *err)
{
    int i, longest = 1, shared;
    if (slots > d->n) slots = d->n;
    for (i = 0; i < d->n; i++) {
        if (d->rows[i].prompt_n > longest) longest = d->rows[i].prompt_n;
        if (d->rows[i].prompt_n > 0 && d->rows[i].completion) continue;
        fail(err, "nothing to answer", "row %d", d->rows[i].source + 1);
        return expected(err, "rows with a prompt and an answer");
    }
    if (!s->tokenizer) return fail(err, "no tokenizer", "%s", s->model->path);
    b->all = new_array((size_t)slots, sizeof *b->all, err);
    b->live = new_array((size_t)slots, sizeof *b->live, err);
    if (!b->all || !b->live) return -1;
    for (i = 0; i < slots; i++) {
        b->all[i].row = -1;
        b->all[i].sequence.slot = i;
    }
    shared = d->n > 1 ? common_beginning(d) : 0;
    return generator_open(&b->g, s, slots, longest + max_new - shared, shared ? d->rows[0].ids : NULL, shared, err);
}

int generate_answers(const struct session *s, const struct dataset *d, int slots, int max_new, char **answers,
                     int (*each)(void *ctx, int done), void *ctx, struct lora_error *err)
{
    struct batch b;
    int i, code;
    memset(&b, 0, sizeof b);
    code = batch_open(&b, s, d, slots, max_new, err);
    while (!code && b.ended < d->n) {
        code = batch_step(&b, s, d, max_new, answers, err);
        if (!code && each && each(ctx, b.ended)) code = 1;
    }
    for (i = 0; b.all && i < b.g.slots; i++) ids_free(&b.all[i].sequence.ids);
    generator_close(&b.g);
    free(b.all);
    free(b.live);
    return code;
}
