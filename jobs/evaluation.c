/* evaluation.c - see evaluation.h. */
#include "evaluation.h"

#include <stdlib.h>
#include <string.h>

/* ---- labels ---- */

const char *row_label(const struct row *row) { return row->label ? row->label : row->completion; }

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int label_set_find(const struct label_set *set, const char *name)
{
    const char **found_at = bsearch(&name, set->names, (size_t)set->n, sizeof *set->names, compare_names);
    return found_at ? (int)(found_at - set->names) : -1;
}

/* Sorts the names and leaves each once. */
static int set_names(struct label_set *set, const struct dataset *d, const char *const *names, int n,
                     struct lora_error *err)
{
    int i, kept = 0, count = names ? n : d->n;
    set->names = new_array((size_t)count, sizeof *set->names, err);
    if (!set->names) return -1;
    for (i = 0; i < count; i++) {
        const char *name = names ? names[i] : row_label(&d->rows[i]);
        if (!name) {
            fail(err, "a row without a label", "row %d", d->rows[i].source + 1);
            return expected(err, "rows of text and label, or with an answer");
        }
        set->names[i] = name;
    }
    qsort(set->names, (size_t)count, sizeof *set->names, compare_names);
    for (i = 0; i < count; i++)
        if (!i || strcmp(set->names[i], set->names[kept - 1])) set->names[kept++] = set->names[i];
    set->n = kept;
    for (i = 0; i < d->n; i++)
        if (!row_label(&d->rows[i]) || label_set_find(set, row_label(&d->rows[i])) < 0) {
            fail(err, "a label that is not in the set", "row %d", d->rows[i].source + 1);
            expected(err, "one of %d labels", kept);
            found(err, "%s", row_label(&d->rows[i]) ? row_label(&d->rows[i]) : "none");
            return hint(err, "--labels FILE gives the set, one label a line");
        }
    return 0;
}

/* The child of a node with that token, made if it is not there. */
static int child_node(struct label_set *set, int parent, int token, struct lora_error *err)
{
    struct label_node *node;
    int i;
    for (i = parent + 1; i < set->n_nodes; i++)
        if (set->nodes[i].parent == parent && set->nodes[i].token == token) return i;
    if (grow_array((void **)&set->nodes, &set->capacity, (size_t)set->n_nodes + 1, sizeof *set->nodes, err)) return -1;
    node = &set->nodes[set->n_nodes];
    node->token = token;
    node->parent = parent;
    node->children = 0;
    if (set->n_nodes) {
        set->nodes[parent].children++;
        if (parent && set->nodes[parent].children == 1) set->tokens++;
    }
    return set->n_nodes++;
}

static int add_path(struct label_set *set, const int *ids, int n, int *leaf, struct lora_error *err)
{
    int i, at = 0;
    for (i = 0; i < n; i++)
        if ((at = child_node(set, at, ids[i], err)) < 0) return -1;
    *leaf = at;
    return 0;
}

int label_set_make(struct label_set *set, const struct dataset *d, const struct data_options *o,
                   const char *const *names, int n, struct lora_error *err)
{
    struct ids ids = { NULL, 0, 0 };
    int i, bad = 0;
    memset(set, 0, sizeof *set);
    if (set_names(set, d, names, n, err) || child_node(set, 0, -1, err) < 0
        || !(set->leaf = new_array((size_t)set->n, sizeof *set->leaf, err))) return -1;
    for (i = 0; i < d->n && !bad; i++) {
        const struct row *row = &d->rows[i];
        int label = label_set_find(set, row_label(row));
        if (o->max_length && row->n >= o->max_length) continue;     /* its label may have been cut */
        if (!set->leaf[label]) bad = add_path(set, row->ids + row->prompt_n, row->n - row->prompt_n, &set->leaf[label], err);
    }
    for (i = 0; i < set->n && !bad; i++) {
        if (set->leaf[i]) continue;
        ids.n = 0;
        bad = data_label_ids(o, set->names[i], &ids, err) || add_path(set, ids.v, (int)ids.n, &set->leaf[i], err);
    }
    ids_free(&ids);
    return bad ? -1 : 0;
}

void label_set_free(struct label_set *set)
{
    free(set->names);
    free(set->nodes);
    free(set->leaf);
    memset(set, 0, sizeof *set);
}

/* ---- rows into packs ---- */

/* Where a node stands in the pack: its segment and the index in it. */
struct place { int segment, index; };

/* The prompt from token `from` on, behind segment `prefix`; then the tree: a node right after its parent
 * that is the only child goes on in the parent's segment, any other begins one behind it. Children are
 * made after their parents, so one pass in order does it. */
static int lay_labels(const struct evaluation *e, const struct row *row, int from, int prefix, struct pack *p,
                      struct place *places, int *run, struct lora_error *err)
{
    const struct label_set *set = e->labels;
    int i, k, n;
    if (row->prompt_n < 1) return fail(err, "a row without a prompt", "row %d", row->source + 1);
    if (pack_segment(p, row->ids + from, row->prompt_n - from, prefix, e->adapter, 0, &places[0].segment, err)) return -1;
    places[0].index = row->prompt_n - from - 1;
    for (i = 1; i < set->n_nodes; i += n) {
        n = 1;
        if (!set->nodes[i].children) continue;
        run[0] = set->nodes[i].token;
        while (set->nodes[i + n - 1].children == 1 && set->nodes[i + n].parent == i + n - 1
               && set->nodes[i + n].children) {
            run[n] = set->nodes[i + n].token;
            n++;
        }
        if (pack_segment(p, run, n, places[set->nodes[i].parent].segment, e->adapter, 0, &places[i].segment, err)) return -1;
        for (k = 0; k < n; k++) {
            places[i + k].segment = places[i].segment;
            places[i + k].index = k;
        }
    }
    for (i = 1; i < set->n_nodes; i++) {
        const struct place *at = &places[set->nodes[i].parent];
        if (pack_target(p, at->segment, at->index, set->nodes[i].token, 1, err)) return -1;
    }
    return 0;
}

/* What packs are laid with. */
struct laying {
    const struct evaluation *e;
    struct pack pack;
    struct place *places;       /* [n_nodes] */
    int *run;                   /* [n_nodes] */
    int next;                   /* the first row that is not laid yet */
};

static int start_laying(struct laying *y, const struct evaluation *e, struct lora_error *err)
{
    size_t n = e->labels ? (size_t)e->labels->n_nodes : 0;
    memset(y, 0, sizeof *y);
    y->e = e;
    y->places = new_array(n, sizeof *y->places, err);
    y->run = new_array(n, sizeof *y->run, err);
    return y->places && y->run ? 0 : -1;
}

static void end_laying(struct laying *y)
{
    pack_free(&y->pack);
    free(y->places);
    free(y->run);
}

static int lay_row(const struct evaluation *e, const struct row *row, int from, int prefix, struct pack *p,
                   struct lora_error *err)
{
    struct pack_input in;
    in.ids = row->ids;
    in.mask = row->mask;
    in.n = row->n;
    in.visit = 0;
    in.labels = row->labels;
    return pack_row_behind(p, &in, from, prefix, e->adapter, err);
}

static int tokens_of(const struct evaluation *e, const struct row *row)
{
    return e->labels ? row->prompt_n + e->labels->tokens : row->n;
}

/* How many of two rows' first tokens are the same, of at most `most` and those before the one that predicts
 * the first target: a row has that one to itself. */
static int common_beginning(const struct evaluation *e, const struct row *a, const struct row *b, int most)
{
    int n = e->labels ? a->prompt_n - 1 : a->n, i;
    if (n > most) n = most;
    for (i = 0; i < n && a->ids[i] == b->ids[i] && (e->labels || i + 1 >= a->n || !a->mask[i + 1]); i++) ;
    return i;
}

/* How many rows go into the next pack; *shared: what they all begin with. */
static int choose_rows(const struct laying *y, int *shared)
{
    const struct evaluation *e = y->e;
    const struct row *first = &e->d->rows[y->next];
    long long sum = tokens_of(e, first);
    int rows;
    *shared = common_beginning(e, first, first, first->n);
    for (rows = 1; rows < e->rows && y->next + rows < e->d->n; rows++) {
        const struct row *row = &e->d->rows[y->next + rows];
        int common = common_beginning(e, row, first, *shared);
        if (sum + tokens_of(e, row) - (long long)rows * common > EVALUATION_TOKENS) break;
        sum += tokens_of(e, row);
        *shared = common;
    }
    if (rows == 1) *shared = 0;
    return rows;
}

/* The next pack: 1, or 0 when all rows are done. */
static int lay_pack(struct laying *y, struct lora_error *err)
{
    const struct evaluation *e = y->e;
    int shared, prefix = -1, end;
    pack_clear(&y->pack);
    if (y->next == e->d->n) return 0;
    end = y->next + choose_rows(y, &shared);
    if (shared && pack_segment(&y->pack, e->d->rows[y->next].ids, shared, -1, e->adapter, 0, &prefix, err)) return -1;
    for (; y->next < end; y->next++) {
        const struct row *row = &e->d->rows[y->next];
        if (e->labels ? lay_labels(e, row, shared, prefix, &y->pack, y->places, y->run, err)
                      : lay_row(e, row, shared, prefix, &y->pack, err)) return -1;
    }
    return pack_finish(&y->pack, err) ? -1 : 1;
}

int evaluation_sizes(const struct evaluation *e, struct lora_sizes *z, struct lora_error *err)
{
    struct laying y;
    int got = start_laying(&y, e, err) ? -1 : 1;
    while (got > 0 && (got = lay_pack(&y, err)) > 0) lora_sizes_raise(z, &y.pack);
    end_laying(&y);
    return got;
}

/* ---- figures ---- */

/* One pack forwards. An infinite loss is a token of probability 0 or a broken model: which is said. */
static int run_pack(struct laying *y, struct lora *l, double *losses, int *best, struct lora_error *err)
{
    int t;
    if (lora_eval(l, &y->pack, losses, best, err)) return -1;
    for (t = 0; t < y->pack.T; t++) {
        if (losses[t] - losses[t] == 0) continue;
        if (!lora_find_not_finite(l, &y->pack, err)) fail(err, "a loss is not finite", "row %d", y->next);
        return -1;
    }
    return 0;
}

/* Runs all packs; take() gets each one's losses and best ids. */
static int run_all(const struct evaluation *e, struct lora *l,
                   void (*take)(void *ctx, const struct laying *y, int first_row, const double *losses,
                                const int *best), void *ctx, struct lora_error *err)
{
    struct laying y;
    size_t losses_capacity = 0, best_capacity = 0;
    double *losses = NULL;
    int *best = NULL, first = 0, got = start_laying(&y, e, err) ? -1 : 1;
    while (got > 0 && (got = lay_pack(&y, err)) > 0) {
        if (grow_array((void **)&losses, &losses_capacity, (size_t)y.pack.T, sizeof *losses, err)
            || grow_array((void **)&best, &best_capacity, (size_t)y.pack.T, sizeof *best, err)
            || run_pack(&y, l, losses, best, err)) got = -1;
        else take(ctx, &y, first, losses, best);
        first = y.next;
        if (got > 0 && e->each && e->each(e->ctx, first)) break;
    }
    end_laying(&y);
    free(losses);
    free(best);
    return got;
}

struct lm_sums { struct lm_figures *f; double *losses, sum; long long hits; };

static void take_lm(void *ctx, const struct laying *y, int first_row, const double *losses, const int *best)
{
    struct lm_sums *s = ctx;
    int t;
    (void)first_row;
    for (t = 0; t < y->pack.T; t++) {
        s->sum += losses[t];
        s->hits += best[t] == y->pack.target_id[t];
        if (s->losses) *s->losses++ = losses[t];
    }
    s->f->targets += y->pack.T;
}

int evaluate_lm(const struct evaluation *e, struct lora *l, struct lm_figures *f, double *losses,
                struct lora_error *err)
{
    struct lm_sums s;
    int code;
    memset(f, 0, sizeof *f);
    s.f = f;
    s.losses = losses;
    s.sum = 0;
    s.hits = 0;
    code = run_all(e, l, take_lm, &s, err);
    if (f->targets) {
        f->loss = s.sum / (double)f->targets;
        f->token_accuracy = (double)s.hits / (double)f->targets;
    }
    return code;
}

struct label_sums { int *predicted; double *log_probability; };

/* The loss of a label is the sum over its path; node i of a row is its target i - 1. */
static void take_labels(void *ctx, const struct laying *y, int first_row, const double *losses, const int *best)
{
    struct label_sums *s = ctx;
    const struct label_set *set = y->e->labels;
    int row, label;
    (void)best;
    for (row = first_row; row < y->next; row++, losses += set->n_nodes - 1) {
        double least = 0;
        s->predicted[row] = -1;
        for (label = 0; label < set->n; label++) {
            double sum = 0;
            int node;
            for (node = set->leaf[label]; node; node = set->nodes[node].parent) sum += losses[node - 1];
            if (s->predicted[row] >= 0 && !(sum < least)) continue;
            least = sum;
            s->predicted[row] = label;
        }
        if (s->log_probability) s->log_probability[row] = -least;
    }
}

int evaluate_labels(const struct evaluation *e, struct lora *l, int *predicted, double *log_probability,
                    struct lora_error *err)
{
    struct label_sums s;
    s.predicted = predicted;
    s.log_probability = log_probability;
    return run_all(e, l, take_labels, &s, err);
}
