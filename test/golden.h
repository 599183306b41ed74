/* golden.h - for the tests that compare a whole model with others' figures: reading their files, and
 * driving the library as they were made. */
#ifndef GOLDEN_H
#define GOLDEN_H

#include "test.h"
#include "../formats/json.h"
#include "../formats/safetensors.h"
#include "../lora.h"

/* Bounds in single precision, as the goldens' README states them; in double a millionth of each. */
#define LOGIT_BOUND 1e-4
#define LOSS_BOUND 5e-5         /* of one token */
#define MEAN_LOSS_BOUND 1e-5    /* of a batch */
#define GRADIENT_BOUND 1e-4     /* of the tensor's largest entry */

static struct lora_error err;
static inline double factor(const struct kernels *k)
{
    return k->elem == 8 ? 1e-6 : 1;
}

/* ---- reading the goldens ---- */

/* dir/name, good until a few calls later: for an argument. What is kept goes through join(). */
static inline const char *path_of(const char *dir, const char *name)
{
    static char paths[8][1024];
    static int next;
    char *p = paths[next++ % 8];
    if (snprintf(p, sizeof paths[0], "%s/%s", dir, name) >= (int)sizeof paths[0]) p[0] = '\0';
    return p;
}

static inline void join(char out[1024], const char *root, const char *folder, const char *name)
{
    if (snprintf(out, 1024, "%s/%s/%s", root, folder, name) >= 1024) out[0] = '\0';
}

/* Any number tensor as doubles, to be freed; NULL when absent. */
static inline double *numbers(const struct safetensors *s, const char *name, size_t *n)
{
    const struct st_tensor *t = safetensors_find(s, name);
    double *out = t ? malloc((t->count + 1) * sizeof *out) : NULL;
    size_t i;
    *n = 0;
    if (!out) return NULL;
    *n = t->count;
    for (i = 0; i < t->count; i++) {
        int32_t v;
        float f;
        if (t->type == TYPE_F64) memcpy(&out[i], t->data + 8 * i, 8);
        else if (t->type == TYPE_F32) { memcpy(&f, t->data + 4 * i, 4); out[i] = f; }
        else if (t->type == TYPE_I32) { memcpy(&v, t->data + 4 * i, 4); out[i] = v; }
        else out[i] = NAN;
    }
    return out;
}

static inline double *sequence_numbers(const struct safetensors *s, int sequence, const char *what, size_t *n)
{
    char name[64];
    snprintf(name, sizeof name, "seq%d.%s", sequence, what);
    return numbers(s, name, n);
}

struct golden_row { int n, *ids; unsigned char *mask; };
struct golden_rows { int n; struct golden_row row[64]; };

static inline void free_rows(struct golden_rows *rows)
{
    int i;
    for (i = 0; i < rows->n; i++) {
        free(rows->row[i].ids);
        free(rows->row[i].mask);
    }
    rows->n = 0;
}

static inline struct golden_row *add_row(struct golden_rows *rows, int n)
{
    struct golden_row *r = &rows->row[rows->n++];
    r->n = n;
    r->ids = calloc((size_t)n + 1, sizeof *r->ids);
    r->mask = calloc((size_t)n + 1, 1);
    return r;
}

/* seq0.ids, seq0.mask, seq1.ids ...; without a mask every token is a target. */
static inline void rows_of_tensors(struct golden_rows *rows, const struct safetensors *s)
{
    size_t n, m, i;
    double *ids, *mask;
    while ((ids = sequence_numbers(s, rows->n, "ids", &n))) {
        struct golden_row *r;
        mask = sequence_numbers(s, rows->n, "mask", &m);
        r = add_row(rows, (int)n);
        for (i = 0; i < n; i++) {
            r->ids[i] = (int)ids[i];
            r->mask[i] = mask ? mask[i] != 0 : i > 0;
        }
        free(ids);
        free(mask);
    }
}

static inline int count_targets(const struct golden_rows *rows)
{
    int i, t, n = 0;
    for (i = 0; i < rows->n; i++)
        for (t = 1; t < rows->row[i].n; t++) n += rows->row[i].mask[t];
    return n;
}

static inline double number_at(const struct json *o, const char *key)
{
    const struct json *v = json_get(o, key);
    return v && v->type == JSON_NUMBER ? v->number : NAN;
}

/* ---- driving the library ---- */

/* A whole row with every next token as a target, so that each has its loss. */
static inline void pack_whole(struct pack *p, const struct golden_row *r, int adapter)
{
    int segment, t;
    CHECK_DONE(pack_segment(p, r->ids, r->n, -1, adapter, 0, &segment, &err));
    for (t = 0; t + 1 < r->n; t++) CHECK_DONE(pack_target(p, segment, t, r->ids[t + 1], 1, &err));
}

static inline void pack_masked(struct pack *p, const struct golden_rows *rows, int adapter)
{
    int i;
    pack_clear(p);
    for (i = 0; i < rows->n; i++)
        CHECK_DONE(pack_row(p, rows->row[i].ids, rows->row[i].mask, rows->row[i].n, adapter, i, &err));
    CHECK_DONE(pack_finish(p, &err));
}

static inline struct lora *open_lora(const struct kernels *k, const struct model *m, struct adapter *const *a,
                              int full, int backward, int N)
{
    struct lora_setup setup;
    struct lora *l = NULL;
    memset(&setup, 0, sizeof setup);
    setup.kernels = k;
    setup.threads = 2;
    setup.model = m;
    setup.adapters = a;
    setup.n_adapters = a ? 1 : 0;
    setup.full = full;
    setup.sizes.N = setup.sizes.T = setup.sizes.U = setup.sizes.positions = N;
    setup.sizes.S = 64;
    setup.sizes.backward = backward;
    setup.sizes.keep = -1;
    CHECK_DONE(lora_open(&l, &setup, &err));
    return l;
}

static inline double sum(const double *x, int n)
{
    double s = 0;
    int i;
    for (i = 0; i < n; i++) s += x[i];
    return s;
}

/* The gradients of all trained tensors against `prefix` and their names in ref; returns how many tensors. */
static inline int compare_gradients(struct worst *w, struct lora *l, const struct safetensors *ref, const char *prefix,
                                    double share)
{
    double *gradients = calloc(lora_trained_size(l) + 1, sizeof *gradients);
    const struct trained *trained;
    int n = lora_trained(l, &trained), i;
    lora_get64(l, LORA_GRADIENTS, gradients);
    for (i = 0; i < n; i++) {
        char tensor[256];
        size_t count, j;
        double *want, largest = 0;
        snprintf(tensor, sizeof tensor, "%s%s", prefix, trained[i].name);
        want = numbers(ref, tensor, &count);
        CHECK(want && count == (size_t)trained[i].rows * (size_t)trained[i].cols, "%s", tensor);
        for (j = 0; want && j < count; j++) largest = fmax(largest, fabs(want[j]));
        for (j = 0; want && j < count; j++)
            worst_add(w, fabs(gradients[trained[i].offset + j] - want[j]), GRADIENT_BOUND * share * largest, j);
        free(want);
    }
    free(gradients);
    return n;
}

#endif
