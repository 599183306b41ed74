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
    char **found_at = set->n ? bsearch(&name, set->names, (size_t)set->n, sizeof *set->names, compare_names) : NULL;
    return found_at ? (int)(found_at - set->names) : -1;
}

/* The labels of all rows of d. */
static int add_names(struct label_set *set, const struct dataset *d, struct lora_error *err)
{
    struct row row = { 0 };
    int i, bad = 0;
    if (d->report.labelled == d->n) {       /* it knows them */
        for (i = 0; i < d->n_labels && !bad; i++) bad = words_add(&set->words, d->labels[i], err);
        return bad;
    }
    for (i = 0; i < d->n && !bad; i++) {
        if ((bad = data_row(d, i, &row, err))) break;
        if (row_label(&row)) bad = words_add(&set->words, row_label(&row), err);
        else {
            bad = fail(err, "a row without a label", "row %d", row.source + 1);
            expected(err, "rows of text and label, or with an answer");
        }
    }
    row_free(&row);
    return bad;
}

static int set_names(struct label_set *set, const struct dataset *d, const struct dataset *more,
                     const char *const *names, int n, struct lora_error *err)
{
    int i;
    for (i = 0; names && i < n; i++) if (words_add(&set->words, names[i], err)) return -1;
    if (!names && (add_names(set, d, err) || (more && add_names(set, more, err)))) return -1;
    words_sort(&set->words);
    set->names = set->words.v;
    set->n = set->words.n;
    return 0;
}

/* The child of a node with that token, made if it is not there. */
static int child_node(struct label_set *set, int parent, int token, struct lora_error *err)
{
    int i;
    for (i = parent + 1; i < set->n_nodes; i++)
        if (set->nodes[i].parent == parent && set->nodes[i].token == token) return i;
    if (grow_array((void **)&set->nodes, &set->capacity, (size_t)set->n_nodes + 1, sizeof *set->nodes, err)) return -1;
    set->nodes[set->n_nodes] = (struct label_node){ token, parent, 0 };
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

static int no_label(const struct label_set *set, const struct row *row, struct lora_error *err)
{
    fail(err, "a label that is not in the set", "row %d", row->source + 1);
    expected(err, "one of %d labels", set->n);
    found(err, "%s", row_label(row) ? row_label(row) : "none");
    return hint(err, "--labels FILE gives the set, one label a line");
}

/* The tokens of labels from rows that have them; until all have theirs, if the rows' labels are known to be
 * in the set. */
static int take_paths(struct label_set *set, const struct dataset *d, const struct data_options *o, int known,
                      struct lora_error *err)
{
    struct row row = { 0 };
    int i, left = set->n, bad = 0;
    for (i = 0; i < d->n && !bad && (left || !known); i++) {
        int label;
        if ((bad = data_row(d, i, &row, err))) break;
        label = row_label(&row) ? label_set_find(set, row_label(&row)) : -1;
        if (label < 0) bad = no_label(set, &row, err);
        else if (!set->leaf[label] && !(o->max_length && row.n >= o->max_length)) {     /* else it may have been cut */
            bad = add_path(set, row.ids + row.prompt_n, row.n - row.prompt_n, &set->leaf[label], err);
            left--;
        }
    }
    row_free(&row);
    return bad;
}

int labels_alike(const char *a, const char *b, struct lora_error *err)
{
    fail(err, "two labels that no answer can tell apart", "\"%s\" and \"%s\"", a, b);
    hint(err, "the white space around a label may be cut: rename one of them, or make them one");
    return -1;
}

/* Some chat templates cut the white space around an answer. */
static int check_leaves(const struct label_set *set, struct lora_error *err)
{
    int i, k;
    for (i = 1; i < set->n; i++)
        for (k = 0; k < i; k++)
            if (set->leaf[i] == set->leaf[k]) return labels_alike(set->names[k], set->names[i], err);
    return 0;
}

int label_set_make(struct label_set *set, const struct dataset *d, const struct dataset *more,
                   const struct data_options *o, const char *const *names, int n, struct lora_error *err)
{
    struct ids ids = { NULL, 0, 0 };
    int i, bad = 0;
    memset(set, 0, sizeof *set);
    if (set_names(set, d, more, names, n, err) || child_node(set, 0, -1, err) < 0
        || !(set->leaf = new_array((size_t)set->n, sizeof *set->leaf, err))
        || take_paths(set, d, o, !names, err)) return -1;
    for (i = 0; i < set->n && !bad; i++) {
        if (set->leaf[i]) continue;
        ids.n = 0;
        bad = data_label_ids(o, set->names[i], &ids, err) || add_path(set, ids.v, (int)ids.n, &set->leaf[i], err);
    }
    ids_free(&ids);
    return bad ? -1 : check_leaves(set, err);
}

void label_set_free(struct label_set *set)
{
    words_free(&set->words);
    free(set->nodes);
    free(set->leaf);
    memset(set, 0, sizeof *set);
}

/* ---- rows into packs ---- */

/* Where a node stands in the pack: its segment and the index in it. */
struct place { int segment, index; };

/* What a pack does with a node: not in it; an input; one whose children are predicted besides. */
enum { LEFT_OUT, PASSED, EXPANDED };

/* The prompt from token `from` on, behind segment `prefix`; then the nodes of the tree that are to be inputs: one right
 * after its parent that is the only child goes on in the parent's segment, any other begins one behind it. Children are
 * made after their parents, so one pass in order does it. */
static int lay_labels(const struct evaluation *e, const struct row *row, const unsigned char *use, int from, int prefix,
                      struct pack *p, struct place *places, int *run, struct lora_error *err)
{
    const struct label_set *set = e->labels;
    int i, k, n;
    if (row->prompt_n < 1) return fail(err, "a row without a prompt", "row %d", row->source + 1);
    if (pack_segment(p, row->ids + from, row->prompt_n - from, prefix, e->adapter, 0, &places[0].segment, err)) return -1;
    places[0].index = row->prompt_n - from - 1;
    for (i = 1; i < set->n_nodes; i += n) {
        n = 1;
        if (!use[i] || !set->nodes[i].children) continue;
        run[0] = set->nodes[i].token;
        while (set->nodes[i + n - 1].children == 1 && set->nodes[i + n].parent == i + n - 1
               && use[i + n] && set->nodes[i + n].children) {
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
        if (use[set->nodes[i].parent] == EXPANDED
            && pack_target(p, at->segment, at->index, set->nodes[i].token, 1, err)) return -1;
    }
    return 0;
}

/* What packs are laid with. */
struct laying {
    const struct evaluation *e;
    struct pack pack;
    struct place *places;       /* [n_nodes] */
    int *run;                   /* [n_nodes] */
    unsigned char *use;         /* [e->rows, n_nodes]: LEFT_OUT ... A row whose node 0 is left out is not in the pack */
    int first, n;               /* rows of the pack */
    int shared;                 /* what they all begin with */
    struct row *rows;           /* [e->rows + 1]: `have` of them from the first on, read ahead of the pack */
    int have;
};

static int start_laying(struct laying *y, const struct evaluation *e, struct lora_error *err)
{
    size_t n = e->labels ? (size_t)e->labels->n_nodes : 0, uses = n * (size_t)e->rows;
    memset(y, 0, sizeof *y);
    y->e = e;
    y->places = new_array(n, sizeof *y->places, err);
    y->run = new_array(n, sizeof *y->run, err);
    y->use = new_array(uses, 1, err);
    y->rows = new_array((size_t)e->rows + 1, sizeof *y->rows, err);
    if (!y->places || !y->run || !y->use || !y->rows) return -1;
    memset(y->use, EXPANDED, uses);     /* the whole tree */
    return 0;
}

static void end_laying(struct laying *y)
{
    int i;
    for (i = 0; i < y->have; i++) row_free(&y->rows[i]);
    free(y->rows);
    pack_free(&y->pack);
    free(y->places);
    free(y->run);
    free(y->use);
}

/* On to the next pack: the last one's rows go. */
static void drop_rows(struct laying *y)
{
    int i;
    for (i = 0; i < y->n; i++) row_free(&y->rows[i]);
    y->have -= y->n;
    memmove(y->rows, y->rows + y->n, (size_t)y->have * sizeof *y->rows);
    memset(y->rows + y->have, 0, (size_t)y->n * sizeof *y->rows);
    y->first += y->n;
    y->n = 0;
}

static int lay_row(const struct evaluation *e, const struct row *row, int from, int prefix, struct pack *p,
                   struct lora_error *err)
{
    const struct pack_input in = { row->ids, row->mask, row->n, 0, row->labels };
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

/* How many rows go into the next pack, or -1; *shared: what they all begin with. */
static int choose_rows(struct laying *y, int *shared, struct lora_error *err)
{
    const struct evaluation *e = y->e;
    const struct row *first = &y->rows[0];
    long long sum = 0;
    int n;
    *shared = 0;
    for (n = 0; n < e->rows && y->first + n < e->d->n; n++) {
        const struct row *row = &y->rows[n];
        int common;
        if (n == y->have) {
            y->have++;
            if (data_row(e->d, y->first + n, &y->rows[n], err)) return -1;
        }
        if (!n) *shared = first->n;
        common = common_beginning(e, row, first, *shared);
        if (n && sum + tokens_of(e, row) - (long long)n * common > EVALUATION_TOKENS) break;
        sum += tokens_of(e, row);
        *shared = common;
    }
    if (n == 1) *shared = 0;
    return n;
}

/* The next rows: 1, or 0 when all are done. */
static int next_rows(struct laying *y, struct lora_error *err)
{
    drop_rows(y);
    if (y->first == y->e->d->n) return 0;
    y->n = choose_rows(y, &y->shared, err);
    return y->n < 0 ? y->n = 0, -1 : 1;
}

static int lay_rows(struct laying *y, struct lora_error *err)
{
    const struct evaluation *e = y->e;
    int prefix = -1, i;
    pack_clear(&y->pack);
    if (y->shared && pack_segment(&y->pack, y->rows[0].ids, y->shared, -1, e->adapter, 0, &prefix, err)) return -1;
    for (i = 0; i < y->n; i++) {
        const struct row *row = &y->rows[i];
        const unsigned char *use = e->labels ? y->use + (size_t)i * (size_t)e->labels->n_nodes : NULL;
        if (!use ? lay_row(e, row, y->shared, prefix, &y->pack, err)
            : *use && lay_labels(e, row, use, y->shared, prefix, &y->pack, y->places, y->run, err)) return -1;
    }
    return pack_finish(&y->pack, err);
}

int evaluation_sizes(const struct evaluation *e, struct lora_sizes *z, struct lora_error *err)
{
    struct laying y;
    int got = start_laying(&y, e, err) ? -1 : 1;
    while (got > 0 && (got = next_rows(&y, err)) > 0) {
        if (lay_rows(&y, err)) got = -1;
        else lora_sizes_raise(z, &y.pack);
    }
    end_laying(&y);
    return got;
}

/* ---- figures ---- */

/* What a pack gave: [T] */
struct outcome { double *losses; int *best; size_t losses_capacity, best_capacity; };

static void outcome_free(struct outcome *o)
{
    free(o->losses);
    free(o->best);
}

/* The rows in a pack, forwards. An infinite loss is a token of probability 0 or a broken model: which is said. */
static int run_rows(struct laying *y, struct lora *l, struct outcome *o, struct lora_error *err)
{
    int t;
    if (lay_rows(y, err)
        || grow_array((void **)&o->losses, &o->losses_capacity, (size_t)y->pack.T, sizeof *o->losses, err)
        || grow_array((void **)&o->best, &o->best_capacity, (size_t)y->pack.T, sizeof *o->best, err)
        || lora_eval(l, &y->pack, o->losses, o->best, err)) return -1;
    for (t = 0; t < y->pack.T; t++) {
        if (o->losses[t] - o->losses[t] == 0) continue;
        if (!lora_find_not_finite(l, &y->pack, err)) fail(err, "a loss is not finite", "row %d", y->rows[0].source + 1);
        return -1;
    }
    return 0;
}

/* Runs all packs; run() computes one's rows and gives them away. */
static int run_all(const struct evaluation *e, struct lora *l,
                   int (*run)(void *ctx, struct laying *y, struct lora *l, struct outcome *o, struct lora_error *err),
                   void *ctx, struct lora_error *err)
{
    struct laying y;
    struct outcome o = { NULL, NULL, 0, 0 };
    int got = start_laying(&y, e, err) ? -1 : 1;
    while (got > 0 && (got = next_rows(&y, err)) > 0) {
        if (run(ctx, &y, l, &o, err)) got = -1;
        else if (e->each && e->each(e->ctx, y.first + y.n)) break;
    }
    end_laying(&y);
    outcome_free(&o);
    return got;
}

struct lm_sums { struct lm_figures *f; double sum; long long hits; };

static int run_lm(void *ctx, struct laying *y, struct lora *l, struct outcome *o, struct lora_error *err)
{
    const struct evaluation *e = y->e;
    const double *losses;
    struct lm_sums *s = ctx;
    int t, i;
    if (run_rows(y, l, o, err)) return -1;
    losses = o->losses;
    for (t = 0; t < y->pack.T; t++) {
        s->sum += losses[t];
        s->hits += o->best[t] == y->pack.target_id[t];
    }
    s->f->targets += y->pack.T;
    for (i = 0; i < y->n && e->losses; losses += y->rows[i++].n_targets)
        if (e->losses(e->ctx, &y->rows[i], losses, err)) return -1;
    return 0;
}

int evaluate_lm(const struct evaluation *e, struct lora *l, struct lm_figures *f, struct lora_error *err)
{
    struct lm_sums s = { f, 0, 0 };
    int code;
    memset(f, 0, sizeof *f);
    code = run_all(e, l, run_lm, &s, err);
    if (f->targets) {
        f->loss = s.sum / (double)f->targets;
        f->token_accuracy = (double)s.hits / (double)f->targets;
    }
    return code;
}

/* ---- the likeliest label ----
 * A loss is never negative, so no label behind a node is likelier than the node: what lies behind one that is less likely
 * than a whole label need not be computed. First the path of the row's own label, which is the answer of a good model, then
 * all behind the likeliest node that is left, then behind all that may still win. */

/* losses[i]: of node i's path from the prompt on; -1: not known. done[i]: its children's are. */
struct tree { double *losses; unsigned char *done; };

/* The label of the least loss among those that are known, the first of equals, or -1. */
static int likeliest(const struct label_set *set, const double *losses)
{
    int label, best = -1;
    for (label = 0; label < set->n; label++) {
        double loss = losses[set->leaf[label]];
        if (loss >= 0 && (best < 0 || loss < losses[set->leaf[best]])) best = label;
    }
    return best;
}

/* May a label behind the node, whose children are not known, still be the answer? */
static int may_win(const struct label_set *set, const struct tree *t, int node, double least)
{
    return set->nodes[node].children && !t->done[node] && t->losses[node] >= 0 && t->losses[node] <= least;
}

/* What the row's next pack has of the tree. 0: the answer is known. */
static int choose_nodes(const struct label_set *set, const struct tree *t, int own, int round, unsigned char *use)
{
    double least;
    int i, first = 0;
    memset(use, LEFT_OUT, (size_t)set->n_nodes);
    if (!round) {
        for (i = set->leaf[own]; i; i = set->nodes[i].parent) use[set->nodes[i].parent] = EXPANDED;
        return 1;
    }
    least = t->losses[set->leaf[likeliest(set, t->losses)]];
    for (i = 1; i < set->n_nodes; i++)
        if (may_win(set, t, i, least) && (!first || t->losses[i] < t->losses[first])) first = i;
    if (!first) return 0;
    for (i = 1; i < set->n_nodes; i++)
        if (i == first || (round > 1 && may_win(set, t, i, least)) || use[set->nodes[i].parent] == EXPANDED) use[i] = EXPANDED;
    for (i = set->n_nodes - 1; i; i--)
        if (use[i] && !use[set->nodes[i].parent]) use[set->nodes[i].parent] = PASSED;
    return 1;
}

/* The losses of a pack's targets, in the order in which lay_labels() made them, to their nodes; how many they were. */
static int take_losses(const struct label_set *set, const unsigned char *use, const double *losses, struct tree *t)
{
    int i, n = 0;
    for (i = 1; i < set->n_nodes; i++) {
        int parent = set->nodes[i].parent;
        if (use[parent] != EXPANDED) continue;
        t->losses[i] = t->losses[parent] + losses[n++];
        t->done[parent] = 1;
    }
    return n;
}

/* ctx: a tree for each of e->rows rows, one after the other. */
static int run_labels(void *ctx, struct laying *y, struct lora *l, struct outcome *o, struct lora_error *err)
{
    const struct evaluation *e = y->e;
    const struct label_set *set = e->labels;
    const struct tree *trees = ctx;
    size_t n = (size_t)set->n_nodes, i;
    int round, left, t;
    memset(trees->done, 0, n * (size_t)y->n);
    for (i = 0; i < n * (size_t)y->n; i++) trees->losses[i] = i % n ? -1 : 0;
    for (round = 0; ; round++) {
        for (left = 0, i = 0; i < (size_t)y->n; i++) {
            struct tree tree = { trees->losses + i * n, trees->done + i * n };
            left += choose_nodes(set, &tree, label_set_find(set, row_label(&y->rows[i])), round, y->use + i * n);
        }
        if (!left) break;
        if (run_rows(y, l, o, err)) return -1;
        for (t = 0, i = 0; i < (size_t)y->n; i++) {
            struct tree tree = { trees->losses + i * n, trees->done + i * n };
            t += take_losses(set, y->use + i * n, o->losses + t, &tree);
        }
    }
    for (i = 0; i < (size_t)y->n; i++) {
        int label = likeliest(set, trees->losses + i * n);
        if (e->label(e->ctx, &y->rows[i], label, -trees->losses[i * n + (size_t)set->leaf[label]], err)) return -1;
    }
    return 0;
}

int evaluate_labels(const struct evaluation *e, struct lora *l, struct lora_error *err)
{
    size_t n = (size_t)e->labels->n_nodes * (size_t)e->rows;
    struct tree trees;
    int code = -1;
    trees.losses = new_array(n, sizeof *trees.losses, err);
    trees.done = new_array(n, 1, err);
    if (trees.losses && trees.done) code = run_all(e, l, run_labels, &trees, err);
    free(trees.losses);
    free(trees.done);
    return code;
}
