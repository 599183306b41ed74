/* merge.c - `lora merge`: W + sum of s B A as a Hugging Face directory; without an adapter, a conversion. */
#include "session.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

struct settings {
    struct common common;
    struct option_list adapters;
    const char *out;
    int dtype;
};

static const struct option options[] = {
    { "adapter", NULL, OPTION_LIST, offsetof(struct settings, adapters), NULL, "DIR[=SCALE]",
      "adapter to merge; may be given several times, or not at all", 0, 0 },
    { "out", "output-dir", OPTION_TEXT, offsetof(struct settings, out), NULL, "DIR", "where the model goes", 0, 0 },
    { "dtype", NULL, OPTION_CHOICE, offsetof(struct settings, dtype), "f32|bf16|f16", NULL, "type of the weights", 0, 0 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

struct source {
    const struct model *m;
    const struct adapter *a;    /* or NULL */
    double *sum;                /* [the widest row] */
};

static const struct adapted *find(const struct adapter *a, int id, int layer)
{
    int i;
    for (i = 0; a && i < a->n; i++)
        if (a->modules[i].id == id && a->modules[i].layer == layer) return &a->modules[i];
    return NULL;
}

/* Row `row` of W + s B A, summed in double and rounded once. */
static int merged_row(void *ctx, int id, int layer, int row, float *out, struct lora_error *err)
{
    const struct source *s = ctx;
    const struct weight *w = model_weight(s->m, id, layer);
    const struct adapted *m = find(s->a, id, layer);
    int i, k;
    (void)err;
    weight_decode(w, row, 0, w->cols, out);
    if (!m) return 0;
    for (i = 0; i < m->cols; i++) s->sum[i] = out[i];
    for (k = 0; k < m->r; k++) {
        const float *a = s->a->values + m->a + (size_t)k * (size_t)m->cols;
        double b = m->scale * s->a->values[m->b + (size_t)row * (size_t)m->r + (size_t)k];
        for (i = 0; i < m->cols; i++) s->sum[i] += b * a[i];
    }
    for (i = 0; i < m->cols; i++) out[i] = (float)s->sum[i];
    return 0;
}

/* Is the directory new, or without anything in it? */
static int is_empty(const char *path)
{
    DIR *d = opendir(path);
    const struct dirent *e;
    int n = 0;
    if (!d) return !file_exists(path);
    while ((e = readdir(d))) n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    closedir(d);
    return !n;
}

static int merge(const struct settings *set, struct session *s, struct lora_error *err)
{
    static const int types[] = { TYPE_F32, TYPE_BF16, TYPE_F16 };
    const struct config *c;
    struct source source;
    int bad;
    if (session_open(s, &set->common, &set->adapters, 1, err)) return -1;
    if (same_file(set->common.model, set->out)) {   /* it is being read */
        fail(err, "cannot write over the model", "%s", set->out);
        return expected(err, "another directory for --out");
    }
    if (!is_empty(set->out)) {
        fail(err, "cannot write over other files", "%s", set->out);
        return expected(err, "a new or an empty directory for --out");
    }
    c = &s->model->config;
    source.m = s->model;
    source.a = s->adapter;
    source.sum = new_array((size_t)(c->C > c->F ? c->C : c->F) + (size_t)c->NH * (size_t)c->HS, sizeof(double), err);
    if (!source.sum) return -1;
    bad = make_directory(set->out, err) || model_write(c, set->out, types[set->dtype], merged_row, &source, err)
          || (s->tokenizer && tokenizer_save(s->tokenizer, set->out, err)) || directory_sync(set->out, err);
    free(source.sum);
    if (bad) return -1;
    if (s->adapter) status("%s: %d linears merged", set->out, s->adapter->n);
    else status("%s: converted, no adapter", set->out);
    return 0;
}

static int run(int argc, char **argv)
{
    struct settings set = { COMMON_DEFAULTS, { NULL, 0 }, NULL, 0 };
    struct lora_error err = { 0 };
    struct session s;
    char *given;
    int code = job_options(&job_merge, &set, argc, argv, &given);
    if (code >= 0) return code;
    if (!set.common.model || !set.out) {
        code = job_usage_error(&job_merge, "--model and --out are needed");
    } else {
        code = merge(&set, &s, &err) ? job_error(&err) : EXIT_DONE;
        session_close(&s);
    }
    job_free_options(&job_merge, &set, given);
    return code;
}

const struct job job_merge = {
    "merge", "writes the model with adapters merged, or converted", "--model M [--adapter DIR]... --out DIR [options]",
    options, common_options, run
};
