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
            bad = data_fail(d, i, "a row without a label", err);
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
        if (set->nodes[i].parent == parent && set->ids.v[i] == token) return i;
    if (grow_array((void **)&set->nodes, &set->capacity, (size_t)set->n_nodes + 1, sizeof *set->nodes, err)
        || ids_add(&set->ids, token, err)) return -1;
    set->nodes[set->n_nodes] = (struct label_node){ parent, 0 };
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

static int no_label(const struct label_set *set, const struct dataset *d, int i, const struct row *row, struct lora_error *err)
{
    data_fail(d, i, "a label that is not in the set", err);
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
        if (label < 0) bad = no_label(set, d, i, &row, err);
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
    ids_free(&set->ids);
    free(set->leaf);
    memset(set, 0, sizeof *set);
}

/* ---- rows into packs ---- */

/* What a row's next pack does with a node: leaves it out; has it as an input; and predicts its children besides. */
enum use { LEFT_OUT, PASSED, EXPANDED };

/* A node of the set behind a row's prompt. */
struct branch {
    double loss;                /* of the path from the prompt to here; -1: not known */
    int done;                   /* its children's losses are known */
    enum use use;
    int segment, index;         /* where it stands in the pack */
};

/* What packs are laid with, and what one gave. */
struct laying {
    const struct evaluation *e;
    struct pack pack;
    struct branch *trees;       /* [e->rows, n_nodes]. A row whose node 0 is left out is not in the pack */
    int first, n;               /* rows of the pack */
    int shared;                 /* what they all begin with */
    struct row *rows;           /* [e->rows + 1]: `have` of them from the first on, read ahead of the pack */
    int have;
    double *losses;             /* [T] */
    int *best;                  /* [T] */
    size_t losses_capacity, best_capacity;
};

static int start_laying(struct laying *y, const struct evaluation *e, struct lora_error *err)
{
    size_t n = e->labels ? (size_t)e->labels->n_nodes * (size_t)e->rows : 0, i;
    memset(y, 0, sizeof *y);
    y->e = e;
    y->trees = new_array(n, sizeof *y->trees, err);
    y->rows = new_array((size_t)e->rows + 1, sizeof *y->rows, err);
    if (!y->trees || !y->rows) return -1;
    for (i = 0; i < n; i++) y->trees[i].use = EXPANDED;
    return 0;
}

static void end_laying(struct laying *y)
{
    int i;
    for (i = 0; i < y->have; i++) row_free(&y->rows[i]);
    free(y->rows);
    pack_free(&y->pack);
    free(y->trees);
    free(y->losses);
    free(y->best);
}

static struct branch *tree_of(const struct laying *y, int row)
{
    return y->e->labels ? y->trees + (size_t)row * (size_t)y->e->labels->n_nodes : NULL;
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

/* How many inputs from node i on are one segment: each but the first is the only child of the one before it. */
static int in_line(const struct label_set *set, const struct branch *tree, int i)
{
    const struct label_node *nodes = set->nodes;
    int n = 0;
    while (i + n < set->n_nodes && tree[i + n].use && nodes[i + n].children
           && (!n || (nodes[i + n].parent == i + n - 1 && nodes[i + n - 1].children == 1))) n++;
    return n;
}

/* The prompt from token `from` on, behind segment `prefix`; then the nodes of the tree that are inputs, behind their
 * parents, which were made before them; then what is predicted. A leaf is never an input. */
static int lay_labels(const struct evaluation *e, const struct row *row, struct branch *tree, int from, int prefix,
                      struct pack *p, struct lora_error *err)
{
    const struct label_set *set = e->labels;
    int i, k, n, segment;
    if (row->prompt_n < 1) return fail(err, "a row without a prompt", "row %d", row->source + 1);
    if (pack_segment(p, row->ids + from, row->prompt_n - from, prefix, e->adapter, 0, &tree->segment, err)) return -1;
    tree->index = row->prompt_n - from - 1;
    for (i = 1; i < set->n_nodes; i += n ? n : 1) {
        if (!(n = in_line(set, tree, i))) continue;
        if (pack_segment(p, set->ids.v + i, n, tree[set->nodes[i].parent].segment, e->adapter, 0, &segment, err)) return -1;
        for (k = 0; k < n; k++) {
            tree[i + k].segment = segment;
            tree[i + k].index = k;
        }
    }
    for (i = 1; i < set->n_nodes; i++) {
        const struct branch *parent = &tree[set->nodes[i].parent];
        if (parent->use == EXPANDED && pack_target(p, parent->segment, parent->index, set->ids.v[i], 1, err)) return -1;
    }
    return 0;
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
        struct branch *tree = tree_of(y, i);
        if (!tree ? lay_row(e, row, y->shared, prefix, &y->pack, err)
            : tree->use && lay_labels(e, row, tree, y->shared, prefix, &y->pack, err)) return -1;
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

/* The rows in a pack, forwards. An infinite loss is a token of probability 0 or a broken model: which is said. */
static int run_rows(struct laying *y, struct lora *l, struct lora_error *err)
{
    int t;
    if (lay_rows(y, err)
        || grow_array((void **)&y->losses, &y->losses_capacity, (size_t)y->pack.T, sizeof *y->losses, err)
        || grow_array((void **)&y->best, &y->best_capacity, (size_t)y->pack.T, sizeof *y->best, err)
        || lora_eval(l, &y->pack, y->losses, y->best, err)) return -1;
    for (t = 0; t < y->pack.T; t++) {
        if (y->losses[t] - y->losses[t] == 0) continue;
        if (!lora_find_not_finite(l, &y->pack, err)) fail(err, "a loss is not finite", "row %d", y->rows[0].source + 1);
        return -1;
    }
    return 0;
}

/* Runs all packs; run() computes one's rows and gives them away. */
static int run_all(const struct evaluation *e, struct lora *l,
                   int (*run)(struct laying *y, struct lora *l, struct lm_figures *f, struct lora_error *err),
                   struct lm_figures *f, struct lora_error *err)
{
    struct laying y;
    int got = start_laying(&y, e, err) ? -1 : 1;
    while (got > 0 && (got = next_rows(&y, err)) > 0) {
        if (run(&y, l, f, err)) got = -1;
        else if (e->each && e->each(e->ctx, y.first + y.n)) break;
    }
    end_laying(&y);
    return got;
}

/* Sums, until all are done. */
static int run_lm(struct laying *y, struct lora *l, struct lm_figures *f, struct lora_error *err)
{
    const struct evaluation *e = y->e;
    const double *losses;
    int t, i;
    if (run_rows(y, l, err)) return -1;
    for (t = 0; t < y->pack.T; t++) {
        f->loss += y->losses[t];
        f->token_accuracy += y->best[t] == y->pack.target_id[t];
    }
    f->targets += y->pack.T;
    for (i = 0, losses = y->losses; i < y->n && e->losses; losses += y->rows[i++].n_targets)
        if (e->losses(e->ctx, &y->rows[i], losses, err)) return -1;
    return 0;
}

int evaluate_lm(const struct evaluation *e, struct lora *l, struct lm_figures *f, struct lora_error *err)
{
    int code;
    memset(f, 0, sizeof *f);
    code = run_all(e, l, run_lm, f, err);
    if (f->targets) {
        f->loss /= (double)f->targets;
        f->token_accuracy /= (double)f->targets;
    }
    return code;
}

/* ---- the likeliest label ----
 * A loss is never negative, so no label behind a node is likelier than the node: what lies behind one that is less likely
 * than a whole label need not be computed. First the path of the row's own label, which is the answer of a good model, then
 * all behind the likeliest node that is left, then behind all that may still win. */

static void start_tree(const struct label_set *set, struct branch *tree, int own)
{
    int i;
    for (i = 0; i < set->n_nodes; i++) tree[i] = (struct branch){ .loss = i ? -1 : 0, .use = LEFT_OUT };
    for (i = set->leaf[own]; i; i = set->nodes[i].parent) tree[set->nodes[i].parent].use = EXPANDED;
}

/* The losses of the targets that lay_labels() made of the tree, in its order; how many they were. */
static int take_losses(const struct label_set *set, struct branch *tree, const double *losses)
{
    int i, n = 0;
    for (i = 1; i < set->n_nodes; i++) {
        struct branch *parent = &tree[set->nodes[i].parent];
        if (parent->use != EXPANDED) continue;
        tree[i].loss = parent->loss + losses[n++];
        parent->done = 1;
    }
    return n;
}

/* The label of the least loss among those that are known, the first of equals; there is one. */
static int likeliest(const struct label_set *set, const struct branch *tree)
{
    int label, best = -1;
    for (label = 0; label < set->n; label++) {
        double loss = tree[set->leaf[label]].loss;
        if (loss >= 0 && (best < 0 || loss < tree[set->leaf[best]].loss)) best = label;
    }
    return best;
}

/* May a label behind the node, whose children are not known, still be the answer? */
static int may_win(const struct label_set *set, const struct branch *tree, int node, double least)
{
    const struct branch *t = &tree[node];
    return set->nodes[node].children && !t->done && t->loss >= 0 && t->loss <= least;
}

/* What the row's next pack has of the tree: what is behind the likeliest node that may win, or behind all of them.
 * 0: the answer is known. */
static int choose_nodes(const struct label_set *set, struct branch *tree, int all)
{
    double least = tree[set->leaf[likeliest(set, tree)]].loss;
    int i, first = 0;
    for (i = 0; i < set->n_nodes; i++) {
        tree[i].use = LEFT_OUT;
        if (i && may_win(set, tree, i, least) && (!first || tree[i].loss < tree[first].loss)) first = i;
    }
    if (!first) return 0;
    for (i = 1; i < set->n_nodes; i++)
        if (i == first || (all && may_win(set, tree, i, least)) || tree[set->nodes[i].parent].use) tree[i].use = EXPANDED;
    for (i = set->n_nodes - 1; i; i--)
        if (tree[i].use && !tree[set->nodes[i].parent].use) tree[set->nodes[i].parent].use = PASSED;
    return 1;
}

static int run_labels(struct laying *y, struct lora *l, struct lm_figures *f, struct lora_error *err)
{
    const struct evaluation *e = y->e;
    const struct label_set *set = e->labels;
    int round, i, left = 1;
    (void)f;
    for (i = 0; i < y->n; i++) start_tree(set, tree_of(y, i), label_set_find(set, row_label(&y->rows[i])));
    for (round = 1; left; round++) {
        const double *losses;
        if (run_rows(y, l, err)) return -1;
        for (left = i = 0, losses = y->losses; i < y->n; i++) {
            losses += take_losses(set, tree_of(y, i), losses);
            left += choose_nodes(set, tree_of(y, i), round > 1);
        }
    }
    for (i = 0; i < y->n; i++) {
        const struct branch *tree = tree_of(y, i);
        int label = likeliest(set, tree);
        if (e->label(e->ctx, &y->rows[i], label, -tree[set->leaf[label]].loss, err)) return -1;
    }
    return 0;
}

int evaluate_labels(const struct evaluation *e, struct lora *l, struct lora_error *err)
{
    return run_all(e, l, run_labels, NULL, err);
}
