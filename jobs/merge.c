/* merge.c - `lora merge`: W + sum of s B A as a Hugging Face directory, or quantised again; without an adapter, a
 * conversion. Over a quantised base, W is what was trained over (the decoded weights) or the original. */
#include "evaluation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BASE_W16, BASE_DEQUANT };

struct settings {
    struct common common;
    struct data_settings data;
    struct option_list adapters;
    const char *out;
    int dtype, base, out_quant, batch_size;
    double max_loss;
};

static const struct option options[] = {
    { "adapter", NULL, OPTION_LIST, offsetof(struct settings, adapters), NULL, "DIR[=SCALE]",
      "adapter to merge; may be given several times, or not at all", 0, 0 },
    { "out", "output-dir", OPTION_TEXT, offsetof(struct settings, out), NULL, "DIR", "where the model goes", 0, 0 },
    { "dtype", NULL, OPTION_CHOICE, offsetof(struct settings, dtype), DTYPES, NULL, "type of the weights", 0, 0 },
    { "base", NULL, OPTION_CHOICE, offsetof(struct settings, base), "w16|dequant", NULL,
      "over a quantised base: add to the original weights, or to the decoded ones, which were trained over (default: dequant)",
      0, 0 },
    { "out-quant", NULL, OPTION_CHOICE, offsetof(struct settings, out_quant), QUANT_TYPES, NULL,
      "quantise what was merged, with --block-size and --double-quant (default: those of the base)", 0, 0 },
    { "max-loss", NULL, OPTION_NUMBER, offsetof(struct settings, max_loss), NULL, "X",
      "with --data: refuse a merge whose loss is higher by more than this (default: any)", 0, 1e30 },
    { "batch-size", "per-device-eval-batch-size", OPTION_INT, offsetof(struct settings, batch_size), NULL, "N",
      "most rows at a time in evaluation", 1, 4096 },
    DATA_OPTIONS(struct settings, data),
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

struct source {
    const struct model *m;
    const struct adapter *a;    /* or NULL */
    double *sum;                /* [the widest row] */
};

/* Row `row` of W + s B A, summed in double and rounded once. */
static int merged_row(void *ctx, int id, int layer, int row, float *out, struct lora_error *err)
{
    const struct source *s = ctx;
    const struct weight *w = model_weight(s->m, id, layer);
    const struct adapted *m = s->a ? adapter_find(s->a, id, layer) : NULL;
    int i, k;
    if (stop_check(err)) return -1;
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

/* ---- what is merged, and into what ---- */

struct merging {
    const struct settings *set;
    struct session s;
    struct model *original;     /* --base w16: the file that s.model was quantised from */
    struct quantise again;      /* of --out-quant, else of the base */
    struct source source;
    struct output out;
    struct data_options rows;
    struct dataset d;
    struct text report;
    double before;              /* loss of the adapter on the base */
};

/* The session's options: those of --out-quant are not the base's where the base is not quantised by us. */
static int open_session(struct merging *g, struct lora_error *err)
{
    struct common c = g->set->common;
    if (g->set->out_quant >= 0 && c.base.in_4bit <= 0) {
        c.base.double_quant = -1;
        c.base.block_size = 0;
    }
    return session_open(&g->s, &c, &g->set->adapters, !g->set->data.data, err);
}

/* Before a model is loaded and measured, which may take minutes. */
static int check_out(const struct settings *set, struct lora_error *err)
{
    return output_spares(set->common.model, "model", set->out, "directory for --out", err) || output_check(set->out, err) ? -1 : 0;
}

static int choose_base(struct merging *g, struct lora_error *err)
{
    const struct session *s = &g->s;
    int w16 = g->set->base == BASE_W16;
    if (g->set->base >= 0 && !s->base.type) {
        fail(err, "cannot use the option", "--base");
        return expected(err, "a base that is quantised");
    }
    if (w16 && !s->quantised_here) {
        fail(err, "cannot use the option", "--base w16, %s", s->model->path);
        expected(err, "a model that --load-in-4bit or --load-in-8bit quantises");
        found(err, "a quantised one, without its original weights");
        return hint(err, "name the model that it was quantised from, or take --base dequant");
    }
    if (s->base.type && s->adapter)
        status(w16 ? "merging into the original weights, where the adapter was trained over quantised ones"
               : "merging into the decoded weights, which the adapter was trained over%s",
               s->quantised_here ? " (--base w16: into the original ones)" : "");
    return w16 ? model_open(&g->original, g->set->common.model, err) : 0;
}

static int choose_again(struct merging *g, struct lora_error *err)
{
    struct base_settings b = g->set->common.base;
    const struct quantise *base = &g->s.base;
    int is_4bit = base->type && base->type != TYPE_INT8;
    g->again = *base;
    if (g->set->out_quant < 0) return 0;
    b.in_4bit = b.in_8bit = -1;
    if (quant_types[g->set->out_quant] != TYPE_INT8 && is_4bit) {
        if (!b.block_size) b.block_size = base->block;
        if (b.double_quant < 0) b.double_quant = base->double_quant;
    }
    return base_quantise(&g->again, quant_types[g->set->out_quant], &b, err);
}

static int open_source(struct merging *g, struct lora_error *err)
{
    const struct config *c = &g->s.model->config;
    size_t widest = (size_t)(c->C > c->F ? c->C : c->F) + (size_t)c->NH * (size_t)c->HS;
    g->source.m = g->original ? g->original : g->s.model;
    g->source.a = g->s.adapter;
    g->source.sum = new_array(widest, sizeof(double), err);
    return g->source.sum ? 0 : -1;
}

static int open_rows(struct merging *g, struct lora_error *err)
{
    if (!g->set->data.data) return 0;
    session_data_options(&g->s, &g->set->data, &g->rows);
    if (data_read(&g->d, g->set->data.data, &g->rows, err)) return -1;
    report_rows("data", &g->d.report);
    session_note_prompt(&g->s, &g->d);
    return 0;
}

/* ---- losses ---- */

static int each_pack(void *ctx, int rows_done)
{
    (void)ctx, (void)rows_done;
    return stop_signal();
}

static int loss_of(struct merging *g, struct model *m, struct adapter *a, double *loss, struct lora_error *err)
{
    struct session s = g->s;
    struct evaluation e = { .d = &g->d, .rows = g->set->batch_size, .adapter = a ? 0 : -1, .each = each_pack };
    struct lora_sizes z = { 0 };
    struct lm_figures f;
    struct lora *l = NULL;
    int bad;
    s.model = m;
    s.adapter = a;
    bad = evaluation_sizes(&e, &z, err) || session_lora(&s, &z, &l, err) || evaluate_lm(&e, l, &f, err) < 0 || stop_check(err);
    lora_close(l);
    if (!bad) *loss = f.loss;
    return bad ? -1 : 0;
}

/* A line of the report; final: this is what will be left, and --max-loss judges it. */
static int judge(struct merging *g, struct model *m, const char *what, const char *type, int final, struct lora_error *err)
{
    double loss, most = g->set->max_loss;
    if (!g->d.n) return 0;
    if (loss_of(g, m, NULL, &loss, err)) return -1;
    text_printf(&g->report, "%-28s %.6f  %+.6f  %s\n", what, loss, loss - g->before, type);
    if (!final || most < 0 || loss - g->before <= most) return 0;
    fail(err, "the merge loses too much", "%s", g->set->data.data);
    expected(err, "a loss of at most %.6f (%.6f, and --max-loss %g)", g->before + most, g->before, most);
    found(err, "%.6f", loss);
    return hint(err, "%s", g->set->out_quant >= 0 ? "without --out-quant less is lost, and --dtype f32 loses least" :
                g->set->base == BASE_W16 ? "--base dequant adds to what was trained over" : "--dtype f32 loses least");
}

static int judge_base(struct merging *g, struct lora_error *err)
{
    char text[80];
    if (!g->d.n) return 0;
    if (loss_of(g, g->s.model, g->s.adapter, &g->before, err)) return -1;
    text_printf(&g->report, "%-28s %.6f             %s\n", g->s.adapter ? "adapter on the base" : "the base", g->before,
                base_text(text, sizeof text, &g->s.base));
    return 0;
}

/* ---- writing ---- */

/* The plain model in a directory; its loss, and what it would be if it were quantised as `again` says. */
static int write_plain(struct merging *g, const char *dir, int final, struct lora_error *err)
{
    int dtype = dtypes[g->set->dtype], bad;
    struct model *m = NULL;
    char text[80];
    if (model_write(&g->s.model->config, dir, dtype, merged_row, &g->source, err)) return -1;
    if (!g->d.n) return 0;
    bad = model_open(&m, dir, err) || judge(g, m, g->s.adapter ? "merged" : "converted", weight_types[dtype].name, final, err)
          || (final && g->again.type
              && (model_quantise(m, &g->again, g->s.threads, err)
                  || judge(g, m, "quantised again it would be", base_text(text, sizeof text, &g->again), 0, err)));
    model_close(m);
    return bad ? -1 : 0;
}

static int write_quantised(struct merging *g, const char *dir, struct lora_error *err)
{
    char *plain = g->d.n ? path_join(dir, "plain", err) : NULL, text[80];
    struct model *m = NULL;
    int bad = g->d.n && (!plain || write_plain(g, plain, 0, err) || remove_tree(plain, err));
    free(plain);
    bad = bad || model_write_quantised(&g->s.model->config, dir, dtypes[g->set->dtype], &g->again, merged_row, &g->source,
                                       g->s.threads, err)
          || (g->d.n && (model_open(&m, dir, err)
                         || judge(g, m, g->s.adapter ? "merged and quantised again" : "quantised again",
                                  base_text(text, sizeof text, &g->again), 1, err)));
    model_close(m);
    return bad ? -1 : 0;
}

static int write_out(struct merging *g, struct lora_error *err)
{
    const char *dir;
    stop_install(NULL);     /* before this a signal ends the program at once: there is nothing to remove */
    if (output_begin(&g->out, g->set->out, err)) return -1;
    dir = g->out.temporary;
    return (g->set->out_quant >= 0 ? write_quantised(g, dir, err) : write_plain(g, dir, 1, err))
           || session_save_beside(g->s.model, g->s.tokenizer, dir, err) || output_commit(&g->out, err) ? -1 : 0;
}

static int merge(struct merging *g, struct lora_error *err)
{
    int bad = check_out(g->set, err) || open_session(g, err) || choose_base(g, err) || choose_again(g, err) || open_source(g, err) || open_rows(g, err)
              || judge_base(g, err) || write_out(g, err);
    if (g->report.n && !g->report.failed) fwrite(g->report.s, 1, g->report.n, stdout);
    if (bad) return -1;
    if (g->s.adapter) status("%s: %d linear%s merged", g->set->out, g->s.adapter->n, g->s.adapter->n == 1 ? "" : "s");
    else status("%s: converted, no adapter", g->set->out);
    return 0;
}

static void close_all(struct merging *g)
{
    output_end(&g->out);
    data_free(&g->d);
    free(g->source.sum);
    model_close(g->original);
    session_close(&g->s);
    text_free(&g->report);
}

static int run(void *settings, struct lora_error *err)
{
    const struct settings *set = settings;
    struct merging g;
    int bad;
    if (!set->common.model || !set->out) return job_usage_error(&job_merge, "--model and --out are needed");
    if (set->max_loss >= 0 && !set->data.data) return job_usage_error(&job_merge, "--max-loss needs --data to measure on");
    memset(&g, 0, sizeof g);
    g.set = set;
    bad = merge(&g, err);
    close_all(&g);
    return bad;
}

static const struct settings defaults = {
    .common = COMMON_DEFAULTS, .data = DATA_DEFAULTS, .base = -1, .out_quant = -1, .batch_size = 16, .max_loss = -1
};

const struct job job_merge = {
    "merge", "writes the model with adapters merged, or converted", "--model M [--adapter DIR]... --out DIR [options]",
    options, common_options, sizeof defaults, &defaults, run
};
