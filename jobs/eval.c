/* eval.c - `lora eval`: loss, classification and generated answers over rows. */
#include "evaluation.h"
#include "generation.h"
#include "../formats/json.h"
#include "../metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SCORE_LIKELIHOOD, SCORE_GENERATE };

struct settings {
    struct common common;
    struct data_settings rows;
    struct option_list adapters;
    int task, score, batch_size, max_new_tokens;
    const char *labels, *json, *predictions, *token_losses;
};

static const struct option options[] = {
    DATA_OPTIONS(struct settings, rows),
    { "adapter", NULL, OPTION_LIST, offsetof(struct settings, adapters), NULL, "DIR[=SCALE]",
      "a PEFT directory; may be given several times", 0, 0 },
    { "task", NULL, OPTION_CHOICE, offsetof(struct settings, task), "lm|classify|generate", NULL,
      "loss of the targets; the right label; greedy answers against the completions", 0, 0 },
    { "score", NULL, OPTION_CHOICE, offsetof(struct settings, score), "likelihood|generate", NULL,
      "classify by the labels' probabilities, or by greedy text compared exactly", 0, 0 },
    { "labels", NULL, OPTION_TEXT, offsetof(struct settings, labels), NULL, "FILE",
      "the set of labels, one a line (default: the adapter's, else the data's)", 0, 0 },
    { "batch-size", "per-device-eval-batch-size", OPTION_INT, offsetof(struct settings, batch_size), NULL, "N",
      "most rows at a time (default: 32, where answers are generated 64)", 1, 4096 },
    { "max-new-tokens", NULL, OPTION_INT, offsetof(struct settings, max_new_tokens), NULL, "N",
      "most tokens of a generated answer", 1, 1 << 20 },
    { "json", NULL, OPTION_TEXT, offsetof(struct settings, json), NULL, "FILE",
      "the figures as JSON; - for standard output, in place of the report", 0, 0 },
    { "predictions", NULL, OPTION_TEXT, offsetof(struct settings, predictions), NULL, "FILE",
      "JSONL: each row's label or answer, and the predicted one", 0, 0 },
    { "token-losses", NULL, OPTION_TEXT, offsetof(struct settings, token_losses), NULL, "FILE",
      "lm: JSONL, the loss of each target of each row", 0, 0 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

/* A file that is opened at the start, so that a wrong path is said before hours of work, and written line by line, as
 * rows are done: to standard output for "-", else it appears when all is done. Nothing without a path. */
struct lines {
    const char *path;
    struct writer w;
    int is_open;
};

/* What a run of the job carries. report is for people, json the same figures for programs. */
struct run {
    const struct settings *o;
    struct session s;
    struct data_options rows;
    struct dataset d;
    struct words labels;        /* of --labels, sorted */
    struct text report, json;
    struct lines lines;         /* of --predictions or --token-losses */
    struct lines json_file;
    struct text line;
    long long next;             /* lm: the row of the input whose line comes next */
    struct label_set set;       /* classify */
    struct classification scores;
    double matches, f1;         /* generate: sums */
    double start;
    struct lora_error *err;
};

/* ---- lines of rows ---- */

static const char *lines_path(const struct settings *o)
{
    return o->task == TASK_LM ? o->token_losses : o->predictions;
}

static int lines_open(struct lines *l, const char *path, struct lora_error *err)
{
    l->path = path;
    if (!path || !strcmp(path, "-")) return 0;
    l->is_open = !writer_open(&l->w, path, err);
    return l->is_open ? 0 : -1;
}

/* The text is empty then. */
static int lines_put(struct lines *l, struct text *t, struct lora_error *err)
{
    size_t n = t->n;
    if (text_check(t, err)) return -1;
    t->n = 0;
    if (l->is_open) return writer_put(&l->w, t->s, n, err);
    if (l->path && fwrite(t->s, 1, n, stdout) != n) return stdout_failed(err);
    return 0;
}

static int lines_end(struct lines *l, int keep, struct lora_error *err)
{
    int bad = 0;
    if (l->is_open && keep) bad = writer_commit(&l->w, err);
    else if (l->is_open) writer_abandon(&l->w);
    l->is_open = 0;
    return bad;
}

/* ---- progress and stops ---- */

static int each(void *ctx, int done)
{
    const struct run *r = ctx;
    double seconds = seconds_now() - r->start;
    progress("%d of %d rows, %.1f rows/s", done, r->d.n, done / (seconds > 0 ? seconds : 1));
    return stop_signal();
}

static struct evaluation evaluation_of(struct run *r, const struct label_set *labels)
{
    return (struct evaluation){
        .d = &r->d, .labels = labels, .rows = r->o->batch_size ? r->o->batch_size : EVALUATION_ROWS,
        .adapter = session_adapter(&r->s), .each = each, .ctx = r
    };
}

static int open_lora(struct run *r, const struct evaluation *e, struct lora **l)
{
    struct lora_sizes z = { 0 };
    return evaluation_sizes(e, &z, r->err) || session_lora(&r->s, &z, l, r->err) ? -1 : 0;
}

/* ---- figures, printed and as JSON ---- */

static void put_figure(struct run *r, const char *key, const char *name, double x)
{
    json_put_figure(&r->json, key, x);
    text_printf(&r->report, "%-16s %.4f\n", name, x);
}

static void put_count(struct text *json, const char *key, long long n)
{
    json_put_key(json, key);
    text_printf(json, "%lld", n);
}

/* ---- lm ---- */

/* One line for each row of the input, those that were left out with an empty list. */
static int put_left_out(struct run *r, long long up_to, struct lora_error *err)
{
    for (; r->next < up_to; r->next++) {
        text_puts(&r->line, "{\"losses\":[]}\n");
        if (lines_put(&r->lines, &r->line, err)) return -1;
    }
    return 0;
}

static int put_losses(void *ctx, const struct row *row, const double *losses, struct lora_error *err)
{
    struct run *r = ctx;
    int i;
    if (put_left_out(r, row->source, err)) return -1;
    text_puts(&r->line, "{\"losses\":[");
    for (i = 0; i < row->n_targets; i++) {
        if (i) text_puts(&r->line, ",");
        json_put_number(&r->line, losses[i], 9);
    }
    text_puts(&r->line, "]}\n");
    r->next++;
    return lines_put(&r->lines, &r->line, err);
}

static int run_lm(struct run *r)
{
    struct evaluation e = evaluation_of(r, NULL);
    struct lora *l = NULL;
    struct lm_figures f;
    int code;
    if (r->o->token_losses) e.losses = put_losses;
    code = open_lora(r, &e, &l) ? -1 : evaluate_lm(&e, l, &f, r->err);
    if (!code && !stop_signal()) {
        put_figure(r, "loss", "loss", f.loss);
        put_figure(r, "perplexity", "perplexity", exp(f.loss));
        put_figure(r, "token_accuracy", "token accuracy", f.token_accuracy);
        put_count(&r->json, "target_tokens", f.targets);
        if (r->o->token_losses) code = put_left_out(r, r->d.report.rows, r->err);
    }
    lora_close(l);
    return code;
}

/* ---- classify ---- */

/* One a line. A byte order mark and CRLF are none of them. */
static int add_labels(struct run *r, char *s)
{
    if (!strncmp(s, "\xef\xbb\xbf", 3)) s += 3;
    while (*s) {
        size_t length = strcspn(s, "\n");
        char *next = s + length + (s[length] != 0);
        s[length] = 0;
        if (length && s[length - 1] == '\r') s[length - 1] = 0;
        if (*s && words_add(&r->labels, s, r->err)) return -1;
        s = next;
    }
    words_sort(&r->labels);
    return r->labels.n ? 0 : fail(r->err, "no labels", "%s", r->o->labels);
}

/* They are the set, and what {labels} stands for. */
static int read_labels(struct run *r)
{
    struct file_map f;
    char *text;
    int bad = 1;
    if (!r->o->labels) return 0;
    if (file_open(&f, r->o->labels, r->err)) return -1;
    text = new_string_n((const char *)f.data, f.size, r->err);
    if (text && strlen(text) == f.size) bad = add_labels(r, text);
    else if (text) {
        fail(r->err, "cannot read the labels", "%s", r->o->labels);
        found(r->err, "a NUL byte");
    }
    file_close(&f);
    free(text);
    if (bad) return -1;
    status("labels of %s: %d%s", r->o->labels, r->labels.n, r->s.n_labels ? ", in place of the adapter's" : "");
    r->rows.labels = (const char *const *)r->labels.v;
    r->rows.n_labels = r->labels.n;
    return 0;
}

/* The label whose text the greedy answer is, both trimmed. */
static int label_of_text(const struct label_set *set, const char *text)
{
    int i;
    for (i = 0; i < set->n; i++) if (exact_match(text, set->names[i])) return i;
    return -1;
}

/* Answers are compared without the white space around them: labels must differ in more. */
static int check_trimmed(const struct label_set *set, struct lora_error *err)
{
    int i, k;
    for (i = 1; i < set->n; i++)
        for (k = 0; k < i; k++)
            if (exact_match(set->names[i], set->names[k])) return labels_alike(set->names[k], set->names[i], err);
    return 0;
}

static int answering_rows(const struct run *r) { return r->o->batch_size ? r->o->batch_size : GENERATION_ROWS; }

/* text: the answer; NULL: labels were scored. */
static int take_prediction(struct run *r, const struct row *row, int predicted, double score, const char *text,
                           struct lora_error *err)
{
    const struct label_set *set = &r->set;
    struct text *t = &r->line;
    int truth = label_set_find(set, row_label(row));
    classification_add(&r->scores, truth, predicted);
    text_printf(t, "{\"row\":%d", row->source);
    json_put_pair(t, "label", set->names[truth]);
    json_put_pair(t, "prediction", predicted < 0 ? NULL : set->names[predicted]);
    if (text) json_put_pair(t, "text", text);
    else json_put_figure(t, "log_probability", score);
    text_puts(t, "}\n");
    return lines_put(&r->lines, t, err);
}

static int take_label(void *ctx, const struct row *row, int label, double log_probability, struct lora_error *err)
{
    return take_prediction(ctx, row, label, log_probability, NULL, err);
}

static int take_text(void *ctx, const struct row *row, const char *answer, struct lora_error *err)
{
    return take_prediction(ctx, row, label_of_text(&((struct run *)ctx)->set, answer), 0, answer, err);
}

static int predict_by_likelihood(struct run *r)
{
    struct evaluation e = evaluation_of(r, &r->set);
    struct lora *l = NULL;
    int code;
    e.label = take_label;
    code = open_lora(r, &e, &l) ? -1 : evaluate_labels(&e, l, r->err);
    lora_close(l);
    return code;
}

static int is_inside(char c) { return ((unsigned char)c & 0xc0) == 0x80; }    /* of a character of UTF-8 */

static int characters(const char *s)
{
    int n = 0;
    while (*s) n += !is_inside(*s++);
    return n;
}

/* At most `width` characters on one line, and spaces up to there. */
static void put_name(struct text *t, const char *s, int width)
{
    int n = 0;
    for (; *s && (n < width || is_inside(*s)); s++) {
        n += !is_inside(*s);
        text_add(t, (unsigned char)*s < 32 ? "?" : s, 1);
    }
    text_printf(t, "%*s", width - n, "");
}

static void put_whole_name(struct text *t, const char *s) { put_name(t, s, characters(s)); }

static void put_classes(struct run *r)
{
    const struct label_set *set = &r->set;
    const struct classification *c = &r->scores;
    int i, width = 5;
    for (i = 0; i < set->n; i++) if (characters(set->names[i]) > width) width = characters(set->names[i]);
    if (width > 40) width = 40;
    text_printf(&r->report, "%-*s  precision  recall      F1  support\n", width, "class");
    json_put_key(&r->json, "per_class");
    text_puts(&r->json, "{");
    for (i = 0; i < set->n; i++) {
        const struct class_score *s = &c->classes[i];
        put_name(&r->report, set->names[i], width);
        text_printf(&r->report, "  %9.4f  %6.4f  %6.4f  %7lld\n", s->precision, s->recall, s->f1, s->support);
        json_put_key(&r->json, set->names[i]);
        text_puts(&r->json, "{");
        json_put_figure(&r->json, "precision", s->precision);
        json_put_figure(&r->json, "recall", s->recall);
        json_put_figure(&r->json, "f1", s->f1);
        put_count(&r->json, "support", s->support);
        text_puts(&r->json, "}");
    }
    text_puts(&r->json, "}");
    text_puts(&r->report, "\n");
}

/* Rows whose label is i and whose prediction k, or none where k is c->n. */
static long long cell(const struct classification *c, int i, int k)
{
    return c->confusion[(size_t)i * (size_t)(c->n + 1) + (size_t)k];
}

/* The whole matrix: rows are the truth, columns the predictions, in the order of labels; other:
 * predictions that are no label. */
static void put_confusion_json(struct run *r)
{
    const struct label_set *set = &r->set;
    const struct classification *c = &r->scores;
    int i, k, n = set->n;
    json_put_key(&r->json, "confusion");
    text_puts(&r->json, "{\"labels\":[");
    for (i = 0; i < n; i++) {
        if (i) text_puts(&r->json, ",");
        json_put_text(&r->json, set->names[i]);
    }
    text_puts(&r->json, "],\"matrix\":[");
    for (i = 0; i < n; i++) {
        for (k = 0; k < n; k++) text_printf(&r->json, "%s%lld", k ? "," : i ? ",[" : "[", cell(c, i, k));
        text_puts(&r->json, "]");
    }
    text_puts(&r->json, "],\"other\":[");
    for (i = 0; i < n; i++) text_printf(&r->json, "%s%lld", i ? "," : "", cell(c, i, n));
    text_puts(&r->json, "]}");
}

/* For few classes: the matrix. Columns are numbered as the rows are. */
static void put_matrix(struct run *r)
{
    const struct label_set *set = &r->set;
    const struct classification *c = &r->scores;
    int i, k, n = set->n, others = 0;
    for (i = 0; i < n; i++) others |= cell(c, i, n) != 0;
    text_puts(&r->report, "\nconfusion (rows: truth, columns: predicted)\n     ");
    for (k = 0; k < n; k++) text_printf(&r->report, "%6d", k + 1);
    text_printf(&r->report, "%s\n", others ? "  none" : "");
    for (i = 0; i < n; i++) {
        text_printf(&r->report, "%4d ", i + 1);
        for (k = 0; k < n + others; k++) text_printf(&r->report, "%6lld", cell(c, i, k));
        text_puts(&r->report, "  ");
        put_whole_name(&r->report, set->names[i]);
        text_puts(&r->report, "\n");
    }
}

/* For many: the cells off the diagonal that count most. */
static void put_largest(struct run *r)
{
    const struct label_set *set = &r->set;
    const struct classification *c = &r->scores;
    int n = set->n, lines, i, k;
    long long below = INT64_MAX;
    text_puts(&r->report, "\nmost frequent confusions\n");
    for (lines = 0; lines < 10; ) {
        long long most = 0;
        for (i = 0; i < n; i++)
            for (k = 0; k <= n; k++)
                if (i != k && cell(c, i, k) < below && cell(c, i, k) > most) most = cell(c, i, k);
        if (!most) break;
        for (i = 0; i < n; i++)
            for (k = 0; k <= n && lines < 10; k++)
                if (i != k && cell(c, i, k) == most) {
                    text_printf(&r->report, "%6lld  ", most);
                    put_whole_name(&r->report, set->names[i]);
                    text_puts(&r->report, " taken for ");
                    put_whole_name(&r->report, k < n ? set->names[k] : "no label");
                    text_puts(&r->report, "\n");
                    lines++;
                }
        below = most;
    }
    if (!lines) text_puts(&r->report, "  none\n");
}

static void put_classification(struct run *r)
{
    const struct classification *c = &r->scores;
    classification_score(&r->scores);
    put_classes(r);
    put_figure(r, "accuracy", "accuracy", c->accuracy);
    put_figure(r, "macro_f1", "macro F1", c->macro_f1);
    put_figure(r, "weighted_f1", "weighted F1", c->weighted_f1);
    if (r->o->json) put_confusion_json(r);      /* of 10,000 labels it is 200 MB */
    if (r->set.n <= 12) put_matrix(r);
    else put_largest(r);
}

static int run_classify(struct run *r)
{
    int code;
    if (label_set_make(&r->set, &r->d, NULL, &r->rows, r->rows.labels, r->rows.n_labels, r->err)
        || (r->o->score == SCORE_GENERATE && check_trimmed(&r->set, r->err))
        || classification_open(&r->scores, r->set.n, r->err)) return -1;
    code = r->o->score == SCORE_GENERATE
           ? generate_answers(&r->s, &r->d, answering_rows(r), r->o->max_new_tokens, take_text, each, r, r->err)
           : predict_by_likelihood(r);
    if (!code && !stop_signal()) put_classification(r);
    return code;
}

/* ---- generate ---- */

static int take_answer(void *ctx, const struct row *row, const char *answer, struct lora_error *err)
{
    struct run *r = ctx;
    struct text *t = &r->line;
    double one = token_f1(answer, row->completion);
    int match = exact_match(answer, row->completion);
    if (one < 0) return fail_memory(err, "words of an answer", 0);
    r->matches += match;
    r->f1 += one;
    text_printf(t, "{\"row\":%d", row->source);
    json_put_pair(t, "completion", row->completion);
    json_put_pair(t, "prediction", answer);
    put_count(t, "exact_match", match);
    json_put_figure(t, "token_f1", one);
    text_puts(t, "}\n");
    return lines_put(&r->lines, t, err);
}

static int run_generate(struct run *r)
{
    int code = generate_answers(&r->s, &r->d, answering_rows(r), r->o->max_new_tokens, take_answer, each, r, r->err);
    if (code || stop_signal()) return code;
    put_figure(r, "exact_match", "exact match", r->matches / r->d.n);
    put_figure(r, "token_f1", "token F1", r->f1 / r->d.n);
    return 0;
}

/* ---- the job ---- */

static int write_results(struct run *r)
{
    double seconds = seconds_now() - r->start;
    put_count(&r->json, "rows", r->d.n);
    put_count(&r->json, "tokens", r->d.report.tokens);
    json_put_figure(&r->json, "seconds", seconds);
    text_puts(&r->json, "}\n");
    text_printf(&r->report, "%-16s %d\n%-16s %.1f\n", "rows", r->d.n, "seconds", seconds);
    if (text_check(&r->report, r->err)) return -1;
    if (!r->o->json || strcmp(r->o->json, "-")) fwrite(r->report.s, 1, r->report.n, stdout);
    return lines_end(&r->lines, 1, r->err) || lines_put(&r->json_file, &r->json, r->err)
           || lines_end(&r->json_file, 1, r->err) ? -1 : 0;
}

static int evaluate(struct run *r)
{
    static int (*const tasks[])(struct run *) = { run_lm, run_classify, run_generate };
    int code;
    if (session_open(&r->s, &r->o->common, &r->o->adapters, 0, r->err)) return -1;
    session_data_options(&r->s, &r->o->rows, &r->rows);
    if (read_labels(r) || data_read(&r->d, r->o->rows.data, &r->rows, r->err)) return -1;
    report_rows("data", &r->d.report);
    session_note_prompt(&r->s, &r->d);
    r->start = seconds_now();
    text_puts(&r->json, "{");
    stop_install(NULL);     /* before this a signal ends the program at once: there is nothing to finish */
    if (lines_open(&r->lines, lines_path(r->o), r->err)
        || lines_open(&r->json_file, r->o->json, r->err)) return -1;
    code = tasks[r->o->task](r);
    progress_done();
    return code || stop_signal() ? code : write_results(r);
}

static const struct settings defaults = {
    .common = COMMON_DEFAULTS, .rows = DATA_DEFAULTS, .score = -1, .max_new_tokens = 64
};

/* 0, or the exit status of wrong usage. */
static int check_options(const struct settings *o)
{
    const char *stray = o->token_losses && o->task != TASK_LM ? "token-losses"
                        : o->task == TASK_CLASSIFY ? NULL : o->score >= 0 ? "score" : o->labels ? "labels" : NULL;
    if (!o->common.model) return job_usage_error(&job_eval, "--model is missing");
    if (!o->rows.data) return job_usage_error(&job_eval, "--data is missing");
    if (stray) return job_usage_error(&job_eval, "--%s does not go with this --task", stray);
    if (o->max_new_tokens != defaults.max_new_tokens && (o->task == TASK_LM || (o->task == TASK_CLASSIFY && o->score != SCORE_GENERATE)))
        status("warning: --max-new-tokens changes nothing where no text is generated");
    if (o->task == TASK_LM && o->predictions)
        return job_usage_error(&job_eval, "--predictions goes with --task classify or generate");
    if (o->json && lines_path(o) && strcmp(o->json, "-") && !strcmp(o->json, lines_path(o)))
        return job_usage_error(&job_eval, "--json and --%s name one file: %s",
                               o->task == TASK_LM ? "token-losses" : "predictions", o->json);
    return 0;
}

/* A result must not take the place of what is read. */
static int spare_inputs(const struct settings *o, struct lora_error *err)
{
    const char *const results[] = { o->json, lines_path(o) };
    int i;
    for (i = 0; i < 2; i++)
        if (output_spares(o->common.model, "model", results[i], "file for the results", err)
            || output_spares(o->rows.data, "data", results[i], "file for the results", err)
            || output_spares(o->labels, "labels", results[i], "file for the results", err)
            || output_spares(o->common.config, "configuration", results[i], "file for the results", err)
            || output_spares_models(results[i], NULL, err)) return -1;
    return 0;
}

static int run(void *settings, struct lora_error *err)
{
    struct run r;
    int code = check_options(settings);
    if (code) return code;
    if (spare_inputs(settings, err)) return -1;
    memset(&r, 0, sizeof r);
    r.o = settings;
    r.err = err;
    code = evaluate(&r) < 0 || stop_check(err) ? -1 : EXIT_DONE;
    lines_end(&r.lines, 0, NULL);
    lines_end(&r.json_file, 0, NULL);
    label_set_free(&r.set);
    classification_free(&r.scores);
    data_free(&r.d);
    session_close(&r.s);
    words_free(&r.labels);
    text_free(&r.report);
    text_free(&r.json);
    text_free(&r.line);
    return code;
}

const struct job job_eval = {
    "eval", "measures a model or an adapter on rows: loss, labels, or generated answers",
    "--model M [--adapter DIR] --data FILE [--task lm|classify|generate] [options]", options, common_options,
    sizeof defaults, &defaults, run
};
