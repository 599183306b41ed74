/* eval.c - `lora eval`: loss, classification and generated answers over rows. */
#include "evaluation.h"
#include "generation.h"
#include "../formats/json.h"
#include "../metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TASK_LM, TASK_CLASSIFY, TASK_GENERATE };
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

/* What a run of the job carries. report is for people, json the same figures for programs. */
struct run {
    struct settings o;
    struct session s;
    struct data_options rows;
    struct dataset d;
    struct file_map label_file;
    char *label_text;
    const char **labels;        /* of --labels */
    int n_labels;
    struct text report, json, predictions;
    double start;
    struct lora_error err;
};

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
    struct evaluation e;
    e.d = &r->d;
    e.labels = labels;
    e.rows = r->o.batch_size ? r->o.batch_size : EVALUATION_ROWS;
    e.adapter = session_adapter(&r->s);
    e.each = each;
    e.ctx = r;
    return e;
}

static int open_lora(struct run *r, const struct evaluation *e, struct lora **l)
{
    struct lora_sizes z;
    memset(&z, 0, sizeof z);
    return evaluation_sizes(e, &z, &r->err) || session_lora(&r->s, &z, l, &r->err) ? -1 : 0;
}

/* ---- figures, printed and as JSON ---- */

static void put_key(struct run *r, const char *key)
{
    if (r->json.n > 1) text_puts(&r->json, ",");
    json_put_string(&r->json, key, strlen(key));
    text_puts(&r->json, ":");
}

static void put_figure(struct run *r, const char *key, const char *name, double x)
{
    put_key(r, key);
    json_put_number(&r->json, x, 9);
    text_printf(&r->report, "%-16s %.4f\n", name, x);
}

static void put_count(struct run *r, const char *key, long long n)
{
    put_key(r, key);
    text_printf(&r->json, "%lld", n);
}

static void put_pair(struct text *t, const char *key, const char *value)
{
    text_printf(t, ",\"%s\":", key);
    if (value) json_put_string(t, value, strlen(value));
    else text_puts(t, "null");
}

/* ---- lm ---- */

/* One line for each row of the input, those that were left out with an empty list. */
static int write_token_losses(struct run *r, const double *losses)
{
    struct text t = { NULL, 0, 0, 0 };
    long long source;
    int i, row = 0, bad;
    for (source = 0; source < r->d.report.rows; source++) {
        text_puts(&t, "{\"losses\":[");
        if (row < r->d.n && r->d.rows[row].source == source) {
            for (i = 0; i < r->d.rows[row].n_targets; i++) {
                if (i) text_puts(&t, ",");
                json_put_number(&t, *losses++, 9);
            }
            row++;
        }
        text_puts(&t, "]}\n");
    }
    bad = job_write_json(r->o.token_losses, &t, &r->err);
    text_free(&t);
    return bad;
}

static int run_lm(struct run *r)
{
    struct evaluation e = evaluation_of(r, NULL);
    struct lora *l = NULL;
    struct lm_figures f;
    double *losses = NULL;
    int code = -1;
    if (!r->o.token_losses || (losses = new_array((size_t)r->d.report.targets, sizeof *losses, &r->err)))
        code = open_lora(r, &e, &l) ? -1 : evaluate_lm(&e, l, &f, losses, &r->err);
    if (!code && !stop_signal()) {
        put_figure(r, "loss", "loss", f.loss);
        put_figure(r, "perplexity", "perplexity", exp(f.loss));
        put_figure(r, "token_accuracy", "token accuracy", f.token_accuracy);
        put_count(r, "target_tokens", f.targets);
        if (r->o.token_losses) code = write_token_losses(r, losses);
    }
    lora_close(l);
    free(losses);
    return code;
}

/* ---- classify ---- */

static int read_labels(struct run *r)
{
    char *s;
    int n = 1;
    size_t i;
    if (file_open(&r->label_file, r->o.labels, &r->err)) return -1;
    r->label_text = new_string_n((const char *)r->label_file.data, r->label_file.size, &r->err);
    if (!r->label_text) return -1;
    for (i = 0; i < r->label_file.size; i++) n += r->label_text[i] == '\n';
    if (!(r->labels = new_array((size_t)n, sizeof *r->labels, &r->err))) return -1;
    for (s = r->label_text; *s; ) {
        size_t length = strcspn(s, "\n");
        int is_last = !s[length];
        s[length] = 0;
        if (length && s[length - 1] == '\r') s[length - 1] = 0;
        if (*s) r->labels[r->n_labels++] = s;
        s += length + !is_last;
    }
    if (r->n_labels) return 0;
    return fail(&r->err, "no labels", "%s", r->o.labels);
}

static int make_labels(struct run *r, struct label_set *set)
{
    if (r->labels) return label_set_make(set, &r->d, &r->rows, r->labels, r->n_labels, &r->err);
    return label_set_make(set, &r->d, &r->rows, (const char *const *)r->s.labels, r->s.n_labels, &r->err);
}

/* The label whose text the greedy answer is, both trimmed. */
static int label_of_text(const struct label_set *set, const char *text)
{
    int i;
    for (i = 0; i < set->n; i++) if (exact_match(text, set->names[i])) return i;
    return -1;
}

static int answering_rows(const struct run *r) { return r->o.batch_size ? r->o.batch_size : GENERATION_ROWS; }

static int predict_by_text(struct run *r, const struct label_set *set, int *predicted, char **answers)
{
    int i, code = generate_answers(&r->s, &r->d, answering_rows(r), r->o.max_new_tokens, answers, each, r, &r->err);
    for (i = 0; !code && i < r->d.n; i++) predicted[i] = label_of_text(set, answers[i]);
    return code;
}

static int predict_by_likelihood(struct run *r, const struct label_set *set, int *predicted, double *scores)
{
    struct evaluation e = evaluation_of(r, set);
    struct lora *l = NULL;
    int code = open_lora(r, &e, &l) ? -1 : evaluate_labels(&e, l, predicted, scores, &r->err);
    lora_close(l);
    return code;
}

static void put_classes(struct run *r, const struct label_set *set, const struct classification *c)
{
    int i, width = 5;
    for (i = 0; i < set->n; i++) if ((int)strlen(set->names[i]) > width) width = (int)strlen(set->names[i]);
    if (width > 40) width = 40;
    text_printf(&r->report, "%-*s  precision  recall      F1  support\n", width, "class");
    put_key(r, "per_class");
    text_puts(&r->json, "{");
    for (i = 0; i < set->n; i++) {
        const struct class_score *s = &c->classes[i];
        text_printf(&r->report, "%-*.*s  %9.4f  %6.4f  %6.4f  %7lld\n", width, width, set->names[i], s->precision,
                    s->recall, s->f1, s->support);
        if (i) text_puts(&r->json, ",");
        json_put_string(&r->json, set->names[i], strlen(set->names[i]));
        text_puts(&r->json, ":{\"precision\":");
        json_put_number(&r->json, s->precision, 9);
        text_puts(&r->json, ",\"recall\":");
        json_put_number(&r->json, s->recall, 9);
        text_puts(&r->json, ",\"f1\":");
        json_put_number(&r->json, s->f1, 9);
        text_printf(&r->json, ",\"support\":%lld}", s->support);
    }
    text_puts(&r->json, "}");
    text_puts(&r->report, "\n");
}

/* The whole matrix: rows are the truth, columns the predictions, in the order of labels; other:
 * predictions that are no label. */
static void put_confusion_json(struct run *r, const struct label_set *set, const struct classification *c)
{
    int i, k, n = set->n;
    put_key(r, "confusion");
    text_puts(&r->json, "{\"labels\":[");
    for (i = 0; i < n; i++) {
        if (i) text_puts(&r->json, ",");
        json_put_string(&r->json, set->names[i], strlen(set->names[i]));
    }
    text_puts(&r->json, "],\"matrix\":[");
    for (i = 0; i < n; i++) {
        for (k = 0; k < n; k++)
            text_printf(&r->json, "%s%lld", k ? "," : i ? ",[" : "[", c->confusion[(size_t)i * (size_t)(n + 1) + (size_t)k]);
        text_puts(&r->json, "]");
    }
    text_puts(&r->json, "],\"other\":[");
    for (i = 0; i < n; i++)
        text_printf(&r->json, "%s%lld", i ? "," : "", c->confusion[(size_t)i * (size_t)(n + 1) + (size_t)n]);
    text_puts(&r->json, "]}");
}

/* For few classes: the matrix. Columns are numbered as the rows are. */
static void put_matrix(struct run *r, const struct label_set *set, const struct classification *c)
{
    int i, k, n = set->n, others = 0;
    for (i = 0; i < n; i++) others |= c->confusion[(size_t)i * (size_t)(n + 1) + (size_t)n] != 0;
    text_puts(&r->report, "\nconfusion (rows: truth, columns: predicted)\n     ");
    for (k = 0; k < n; k++) text_printf(&r->report, "%6d", k + 1);
    text_printf(&r->report, "%s\n", others ? "  none" : "");
    for (i = 0; i < n; i++) {
        text_printf(&r->report, "%4d ", i + 1);
        for (k = 0; k < n + others; k++)
            text_printf(&r->report, "%6lld", c->confusion[(size_t)i * (size_t)(n + 1) + (size_t)k]);
        text_printf(&r->report, "  %s\n", set->names[i]);
    }
}

/* For many: the cells off the diagonal that count most. */
static void put_largest(struct run *r, const struct label_set *set, const struct classification *c)
{
    int n = set->n, lines, i, k;
    long long below = INT64_MAX;
    text_puts(&r->report, "\nmost frequent confusions\n");
    for (lines = 0; lines < 10; ) {
        long long most = 0;
        for (i = 0; i < n; i++)
            for (k = 0; k <= n; k++) {
                long long x = c->confusion[(size_t)i * (size_t)(n + 1) + (size_t)k];
                if (i != k && x < below && x > most) most = x;
            }
        if (!most) break;
        for (i = 0; i < n; i++)
            for (k = 0; k <= n && lines < 10; k++)
                if (i != k && c->confusion[(size_t)i * (size_t)(n + 1) + (size_t)k] == most) {
                    text_printf(&r->report, "%6lld  %s taken for %s\n", most, set->names[i],
                                k < n ? set->names[k] : "no label");
                    lines++;
                }
        below = most;
    }
    if (!lines) text_puts(&r->report, "  none\n");
}

static int put_classification(struct run *r, const struct label_set *set, const int *truth, const int *predicted)
{
    struct classification c;
    if (classification_make(&c, truth, predicted, r->d.n, set->n, &r->err)) return -1;
    put_classes(r, set, &c);
    put_figure(r, "accuracy", "accuracy", c.accuracy);
    put_figure(r, "macro_f1", "macro F1", c.macro_f1);
    put_figure(r, "weighted_f1", "weighted F1", c.weighted_f1);
    put_confusion_json(r, set, &c);
    if (set->n <= 12) put_matrix(r, set, &c);
    else put_largest(r, set, &c);
    classification_free(&c);
    return 0;
}

static void put_label_predictions(struct run *r, const struct label_set *set, const int *truth, const int *predicted,
                                  const double *scores, char *const *answers)
{
    int i;
    for (i = 0; i < r->d.n; i++) {
        struct text *t = &r->predictions;
        text_printf(t, "{\"row\":%d", r->d.rows[i].source);
        put_pair(t, "label", set->names[truth[i]]);
        put_pair(t, "prediction", predicted[i] < 0 ? NULL : set->names[predicted[i]]);
        if (r->o.score == SCORE_GENERATE) put_pair(t, "text", answers[i]);
        else {
            text_puts(t, ",\"log_probability\":");
            json_put_number(t, scores[i], 9);
        }
        text_puts(t, "}\n");
    }
}

static void free_answers(const struct run *r, char **answers)
{
    int i;
    for (i = 0; answers && i < r->d.n; i++) free(answers[i]);
    free(answers);
}

static int run_classify(struct run *r)
{
    struct label_set set;
    size_t n = (size_t)r->d.n;
    int *truth = new_array(n, sizeof *truth, &r->err), *predicted = new_array(n, sizeof *predicted, &r->err);
    double *scores = new_array(n, sizeof *scores, &r->err);
    char **answers = new_array(n, sizeof *answers, &r->err);
    int i, code = -1;
    memset(&set, 0, sizeof set);
    if (truth && predicted && scores && answers && (!r->o.labels || !read_labels(r)) && !make_labels(r, &set)) {
        for (i = 0; i < r->d.n; i++) truth[i] = label_set_find(&set, row_label(&r->d.rows[i]));
        code = r->o.score == SCORE_GENERATE ? predict_by_text(r, &set, predicted, answers)
                                            : predict_by_likelihood(r, &set, predicted, scores);
        if (!code && !stop_signal()) {
            put_label_predictions(r, &set, truth, predicted, scores, answers);
            code = put_classification(r, &set, truth, predicted);
        }
    }
    free_answers(r, answers);
    label_set_free(&set);
    free(truth);
    free(predicted);
    free(scores);
    return code;
}

/* ---- generate ---- */

static int put_answers(struct run *r, char *const *answers)
{
    double matches = 0, f1 = 0;
    int i;
    for (i = 0; i < r->d.n; i++) {
        struct text *t = &r->predictions;
        double one = token_f1(answers[i], r->d.rows[i].completion);
        int match = exact_match(answers[i], r->d.rows[i].completion);
        if (one < 0) return fail_memory(&r->err, "words of an answer", 0);
        text_printf(t, "{\"row\":%d", r->d.rows[i].source);
        put_pair(t, "completion", r->d.rows[i].completion);
        put_pair(t, "prediction", answers[i]);
        text_printf(t, ",\"exact_match\":%d,\"token_f1\":", match);
        json_put_number(t, one, 9);
        text_puts(t, "}\n");
        matches += match;
        f1 += one;
    }
    put_figure(r, "exact_match", "exact match", matches / r->d.n);
    put_figure(r, "token_f1", "token F1", f1 / r->d.n);
    return 0;
}

static int run_generate(struct run *r)
{
    char **answers = new_array((size_t)r->d.n, sizeof *answers, &r->err);
    int code = -1;
    if (answers) code = generate_answers(&r->s, &r->d, answering_rows(r), r->o.max_new_tokens, answers, each, r, &r->err);
    if (!code && !stop_signal()) code = put_answers(r, answers);
    free_answers(r, answers);
    return code;
}

/* ---- the job ---- */

static int write_results(struct run *r)
{
    double seconds = seconds_now() - r->start;
    put_count(r, "rows", r->d.n);
    put_count(r, "tokens", r->d.report.tokens);
    put_key(r, "seconds");
    json_put_number(&r->json, seconds, 9);
    text_puts(&r->json, "}\n");
    text_printf(&r->report, "%-16s %d\n%-16s %.1f\n", "rows", r->d.n, "seconds", seconds);
    if (text_check(&r->report, &r->err) || text_check(&r->predictions, &r->err)) return -1;
    if (r->o.predictions && job_write_json(r->o.predictions, &r->predictions, &r->err)) return -1;
    if (r->o.json && job_write_json(r->o.json, &r->json, &r->err)) return -1;
    if (!r->o.json || strcmp(r->o.json, "-")) fwrite(r->report.s, 1, r->report.n, stdout);
    return 0;
}

static int evaluate(struct run *r)
{
    static int (*const tasks[])(struct run *) = { run_lm, run_classify, run_generate };
    int code;
    if (session_open(&r->s, &r->o.common, &r->o.adapters, 0, &r->err)) return -1;
    session_data_options(&r->s, &r->o.rows, &r->rows);
    if (data_read(&r->d, r->o.rows.data, &r->rows, &r->err)) return -1;
    report_rows("data", &r->d.report);
    r->start = seconds_now();
    text_puts(&r->json, "{");
    text_puts(&r->predictions, "");
    code = tasks[r->o.task](r);
    progress_done();
    return code || stop_signal() ? code : write_results(r);
}

/* Options that go with one task only are refused with another. */
static int check_options(const struct settings *o, const char *given)
{
    static const struct { const char *name; int task; } only[] = {
        { "token-losses", TASK_LM }, { "score", TASK_CLASSIFY }, { "labels", TASK_CLASSIFY }
    };
    size_t i, k;
    if (!o->common.model) return job_usage_error(&job_eval, "--model is missing");
    if (!o->rows.data) return job_usage_error(&job_eval, "--data is missing");
    for (i = 0; i < sizeof only / sizeof *only; i++)
        for (k = 0; options[k].name; k++)
            if (given[k] && !strcmp(options[k].name, only[i].name) && o->task != only[i].task)
                return job_usage_error(&job_eval, "--%s does not go with this --task", only[i].name);
    if (o->task == TASK_LM && o->predictions)
        return job_usage_error(&job_eval, "--predictions goes with --task classify or generate");
    return -1;
}

static int run(int argc, char **argv)
{
    static const struct settings defaults = {
        COMMON_DEFAULTS, DATA_DEFAULTS, { NULL, 0 }, TASK_LM, SCORE_LIKELIHOOD, 0, 64, NULL, NULL, NULL, NULL
    };
    struct run r;
    char *given;
    int code;
    memset(&r, 0, sizeof r);
    r.o = defaults;
    code = job_options(&job_eval, &r.o, argc, argv, &given);
    if (code >= 0) return code;
    code = check_options(&r.o, given);
    if (code < 0) {
        stop_install();
        code = evaluate(&r) < 0 ? job_error(&r.err) : stop_signal() ? 128 + stop_signal() : EXIT_DONE;
    }
    data_free(&r.d);
    session_close(&r.s);
    if (r.label_file.data) file_close(&r.label_file);
    free(r.label_text);
    free(r.labels);
    text_free(&r.report);
    text_free(&r.json);
    text_free(&r.predictions);
    job_free_options(&job_eval, &r.o, given);
    return code;
}

const struct job job_eval = {
    "eval", "measures a model or an adapter on rows: loss, labels, or generated answers",
    "--model M [--adapter DIR] --data FILE [--task lm|classify|generate] [options]", options, common_options, run
};
