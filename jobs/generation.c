/* generation.c - see generation.h. */
#include "generation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Tokens of a pass, of all sequences together: what is beyond that is fed in parts, so that working memory stays small. */
#define PASS 512

/* ---- the cache and what goes through it ---- */

/* A file of the name is there only in a directory; a GGUF file has no such settings. */
static int read_generation_config(struct generator *g, struct lora_error *err)
{
    char *path = path_join(g->session->model->path, "generation_config.json", err);
    int n = 0, bad = path ? 0 : -1;
    if (!bad && file_exists(path)) bad = config_read_eos(g->stops + g->n_stops, &n, path, err);
    g->n_stops += n;
    free(path);
    return bad;
}

static int find_stops(struct generator *g, struct lora_error *err)
{
    const struct session *s = g->session;
    const struct config *c = &s->model->config;
    int i, id;
    for (i = 0; i < c->n_eos && i < 8; i++) g->stops[g->n_stops++] = c->eos[i];
    if (read_generation_config(g, err)) return -1;
    if (!s->tokenizer) return 0;
    if ((id = tokenizer_eos(s->tokenizer)) >= 0) g->stops[g->n_stops++] = id;
    if (s->chat && (id = tokenizer_id(s->tokenizer, chat_end_of_turn(s->chat))) >= 0) g->stops[g->n_stops++] = id;
    return 0;
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
    struct lora_sizes z = { .U = slots, .S = slots + (n_shared > 0), .positions = slot_length + n_shared };
    size_t V = (size_t)s->model->config.V;
    *g = (struct generator){ .session = s, .slots = slots, .slot_length = slot_length };
    g->tokens = slot_length < PASS / slots ? slots * slot_length : PASS;
    if (g->tokens < slots) g->tokens = slots;
    if (find_stops(g, err)) return -1;
    z.N = g->tokens;
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
    float most = logits[0];
    int i, best = 0;
    for (i = 1; i < V; i++) if (logits[i] > most) most = logits[best = i];
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

/* A slot of the batch: the row that it answers, number -1: none. */
struct answering { struct sequence sequence; struct row row; int number; };
/* A row that has its answer, and waits for those before it. */
struct answered { struct row row; char *answer; };

struct batch {
    struct generator g;
    const struct session *session;
    const struct dataset *d;
    struct answering *all;
    struct sequence **live;
    struct answered *waiting;   /* [n_waiting] rows `taken` and those after it */
    size_t n_waiting, capacity;
    int next, ended, taken;     /* rows started, rows answered, rows given away */
};

static int start_row(struct batch *b, struct answering *a, struct lora_error *err)
{
    if (data_row(b->d, b->next, &a->row, err)) return -1;
    a->number = b->next++;
    a->sequence.ids.n = 0;
    a->sequence.cached = (size_t)b->g.shared;
    return ids_append(&a->sequence.ids, a->row.ids, (size_t)a->row.prompt_n, err);
}

/* The text of what was generated; a stop id at the end is special and gives nothing, nor does one that only pads the
 * embedding: a model may have more ids than its tokenizer. */
static int end_row(struct batch *b, struct answering *a, struct lora_error *err)
{
    struct text t = { NULL, 0, 0, 0 };
    const struct sequence *q = &a->sequence;
    size_t at = (size_t)(a->number - b->taken), prompt_n = (size_t)a->row.prompt_n, i, n = 0;
    int *ids = q->ids.v + prompt_n, size = tokenizer_size(b->session->tokenizer);
    for (i = 0; i < q->ids.n - prompt_n; i++) if (ids[i] < size) ids[n++] = ids[i];
    text_puts(&t, "");
    if (tokenizer_decode(b->session->tokenizer, ids, n, 1, &t, err) || text_check(&t, err)
        || grow_array((void **)&b->waiting, &b->capacity, at + 1, sizeof *b->waiting, err)) {
        text_free(&t);
        return -1;
    }
    for (i = 0; i < t.n; i++) if (!t.s[i]) t.s[i] = '\xff';     /* no text has a NUL: a byte of none must not end the answer */
    if (at >= b->n_waiting) {
        memset(b->waiting + b->n_waiting, 0, (at + 1 - b->n_waiting) * sizeof *b->waiting);
        b->n_waiting = at + 1;
    }
    b->waiting[at].row = a->row;
    b->waiting[at].answer = t.s;
    memset(&a->row, 0, sizeof a->row);
    a->number = -1;
    b->ended++;
    return 0;
}

static void free_waiting(struct batch *b, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++) {
        row_free(&b->waiting[i].row);
        free(b->waiting[i].answer);
    }
    b->n_waiting -= n;
    if (n) memmove(b->waiting, b->waiting + n, b->n_waiting * sizeof *b->waiting);
    b->taken += (int)n;
}

/* Fills empty slots with rows, feeds, chooses: one id more for each sequence. */
static int batch_step(struct batch *b, int max_new, struct lora_error *err)
{
    static const struct sampling greedy = SAMPLING_GREEDY;
    int i, n = 0;
    for (i = 0; i < b->g.slots; i++) {
        struct answering *a = &b->all[i];
        if (a->number < 0 && b->next < b->d->n && start_row(b, a, err)) return -1;
        if (a->number >= 0) b->live[n++] = &a->sequence;
    }
    if (generator_feed(&b->g, b->live, n, err)) return -1;
    for (i = 0; i < b->g.slots; i++) {
        struct answering *a = &b->all[i];
        int id;
        if (a->number < 0) continue;
        id = generator_choose(&b->g, &a->sequence, &greedy);
        if (!generator_is_stop(&b->g, id) && ids_add(&a->sequence.ids, id, err)) return -1;
        if (!generator_is_stop(&b->g, id) && (int)a->sequence.ids.n < a->row.prompt_n + max_new) continue;
        if (end_row(b, a, err)) return -1;
    }
    return 0;
}

/* What is said of all prompts: whether each can be answered, the longest, and how many ids they all begin
 * with when each has one more at least. first: row 0. */
static int look_at_prompts(const struct dataset *d, struct row *first, int *longest, int *shared, struct lora_error *err)
{
    struct row row = { 0 };
    int i, k, bad = data_row(d, 0, first, err);
    *longest = 1;
    *shared = d->n > 1 ? first->prompt_n - 1 : 0;
    for (i = 0; i < d->n && !bad; i++) {
        if ((bad = data_row(d, i, &row, err))) break;
        if (row.prompt_n > *longest) *longest = row.prompt_n;
        if (*shared > row.prompt_n - 1) *shared = row.prompt_n - 1;
        for (k = 0; k < *shared && row.ids[k] == first->ids[k]; k++) ;
        *shared = k;
        if (row.prompt_n > 0 && row.completion) continue;
        bad = fail(err, "nothing to answer", "row %d", row.source + 1);
        expected(err, "rows with a prompt and an answer");
    }
    row_free(&row);
    return bad;
}

static int batch_open(struct batch *b, int slots, int max_new, struct lora_error *err)
{
    const struct session *s = b->session;
    struct row first = { 0 };
    int i, longest, shared, bad;
    if (slots > b->d->n) slots = b->d->n;
    if (!s->tokenizer) return fail(err, "no tokenizer", "%s", s->model->path);
    b->all = new_array((size_t)slots, sizeof *b->all, err);
    b->live = new_array((size_t)slots, sizeof *b->live, err);
    if (!b->all || !b->live) return -1;
    for (i = 0; i < slots; i++) {
        b->all[i].number = -1;
        b->all[i].sequence.slot = i;
    }
    bad = look_at_prompts(b->d, &first, &longest, &shared, err)
          || generator_open(&b->g, s, slots, longest + max_new - shared, first.ids, shared, err);
    row_free(&first);
    return bad ? -1 : 0;
}

static void batch_close(struct batch *b)
{
    int i;
    for (i = 0; b->all && i < b->g.slots; i++) {
        ids_free(&b->all[i].sequence.ids);
        row_free(&b->all[i].row);
    }
    free_waiting(b, b->n_waiting);
    free(b->waiting);
    free(b->all);
    free(b->live);
    generator_close(&b->g);
}

int generate_answers(const struct session *s, const struct dataset *d, int slots, int max_new,
                     int (*take)(void *ctx, const struct row *row, const char *answer, struct lora_error *err),
                     int (*each)(void *ctx, int done), void *ctx, struct lora_error *err)
{
    struct batch b;
    size_t n;
    int code;
    memset(&b, 0, sizeof b);
    b.session = s;
    b.d = d;
    code = batch_open(&b, slots, max_new, err);
    while (!code && b.ended < d->n) {
        code = batch_step(&b, max_new, err);
        for (n = 0; !code && n < b.n_waiting && b.waiting[n].answer; n++)
            code = take(ctx, &b.waiting[n].row, b.waiting[n].answer, err);
        free_waiting(&b, n);
        if (!code && each && each(ctx, b.ended)) code = 1;
    }
    batch_close(&b);
    return code;
}
