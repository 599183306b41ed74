/* train.c - `lora train`: the loop over steps, evaluation, and how a run ends. */
#include "train.h"
#include "../formats/json.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What one step saw, beside its rows in run.steps. */
struct tally {
    double loss;                /* sum over targets */
    long long computed;
    double norm, rate, start;
    int unread;                 /* a row could not be read again */
};

/* ---- metrics.jsonl ---- */

static void start_line(struct text *t, const struct run *r)
{
    text_puts(t, "{");
    json_put_figure(t, "step", (double)r->state.step);
    json_put_figure(t, "epoch", (double)r->state.step / (double)r->steps.per_epoch);
}

static int end_line(struct run *r, struct text *t, struct lora_error *err)
{
    int bad;
    text_puts(t, "}\n");
    bad = text_check(t, err);
    if (!bad && (fwrite(t->s, 1, t->n, r->metrics) != t->n || fflush(r->metrics)))
        bad = fail(err, "cannot write", "%s/metrics.jsonl", r->set->out);
    text_free(t);
    return bad;
}

static int record_step(struct run *r, const struct tally *y, struct lora_error *err)
{
    double seconds = seconds_now() - y->start;
    struct text t = { 0 };
    start_line(&t, r);
    json_put_figure(&t, "loss", y->loss / (double)r->steps.targets);
    json_put_figure(&t, "grad_norm", y->norm);
    json_put_figure(&t, "learning_rate", y->rate);
    json_put_figure(&t, "tokens", (double)r->steps.tokens);
    json_put_figure(&t, "target_tokens", (double)r->steps.targets);
    json_put_figure(&t, "computed_tokens", (double)y->computed);
    json_put_figure(&t, "tokens_per_second", seconds > 0 ? (double)r->steps.tokens / seconds : 0);
    json_put_figure(&t, "seconds", seconds);
    return end_line(r, &t, err);
}

/* ---- what must not happen ---- */

static int fail_loss(struct run *r, struct lora_error *err)
{
    struct lora_error e = { 0 };
    lora_find_not_finite(r->lora, &r->pack, &e);
    fail(err, "the loss is not finite", "step %lld, %s", r->state.step + 1, e.where);
    found(err, "%s", e.found[0] ? e.found : "NaN or infinity");
    return hint(err, "a lower --learning-rate or --max-grad-norm, or other data; the checkpoints before this step are good");
}

/* What lora_step says, with the step. */
static int fail_step(const struct run *r, struct lora_error *err)
{
    char where[sizeof err->where];
    snprintf(where, sizeof where, "%s", err->where);
    snprintf(err->where, sizeof err->where, "step %lld, %.450s", r->state.step + 1, where);
    return -1;
}

static int is_zero(const float *x, const struct trained *t)
{
    size_t i, n = (size_t)t->rows * (size_t)t->cols;
    for (i = 0; i < n; i++) if (x[t->offset + i] != 0) return 0;
    return 1;
}

/* With one key to see, a query's weight on it is 1 whatever q and k are. */
static int needs_two_keys(int id)
{
    return id == T_WQ || id == T_BQ || id == T_WK || id == T_BK || id == T_Q_NORM || id == T_K_NORM;
}

/* After the first step's backward pass: a trained tensor whose gradient is all zero would never
 * train. A's gradient has B as a factor and B's has A: zero is right for one whose partner is zero,
 * as B is at the start, but not for both. */
static int check_gradients(struct run *r, struct lora_error *err)
{
    const struct trained *list;
    int i, n = lora_trained(r->lora, &list), bad = 0;
    char *zero = new_array((size_t)n, 1, err);
    float *copy = NULL;
    const float *x = zero ? run_floats(r, LORA_GRADIENTS, &copy, err) : NULL;
    for (i = 0; i < n && x; i++) zero[i] = (char)is_zero(x, &list[i]);
    free(copy);
    copy = NULL;
    if (x) x = run_floats(r, LORA_PARAMETERS, &copy, err);
    for (i = 0; i < n && x && !bad; i++) {
        const struct trained *t = &list[i], *partner = t->is_b < 0 ? NULL : t->is_b ? t - 1 : t + 1;
        if (!zero[i] || (r->steps.longest < 2 && needs_two_keys(t->id))) continue;
        if (partner && is_zero(x, partner) && !is_zero(x, t)) continue;
        fail(err, "a trained tensor has no gradient", "step 1, %s", t->name);
        expected(err, "one that is not zero everywhere");
        bad = hint(err, "it would never change; this is a fault of the program or of the start it was given");
    }
    free(copy);
    free(zero);
    return x ? bad : -1;
}

/* ---- a step ---- */

static int train_packs(struct run *r, struct tally *y, struct lora_error *err)
{
    int i, got;
    while ((got = step_pack(&r->steps, &r->pack, err)) > 0) {
        if (lora_train(r->lora, &r->pack, 1.0 / (double)r->steps.targets, r->losses, NULL, err)) return -1;
        for (i = 0; i < r->pack.T; i++) y->loss += r->pack.target_weight[i] * r->losses[i];
        y->computed += r->pack.N;
        if (!(y->loss - y->loss == 0)) return fail_loss(r, err);
    }
    y->unread = got < 0;
    return got;
}

static int train_step(struct run *r, struct tally *y, struct lora_error *err)
{
    const struct train_settings *s = r->set;
    struct lora_hyper h;
    *y = (struct tally){ .start = seconds_now() };
    steps_seek(&r->steps, r->state.step);
    if (train_packs(r, y, err)) return -1;
    if (!r->state.step && y->loss > 0 && check_gradients(r, err)) return -1;
    y->rate = schedule_rate(s->lr_scheduler, s->learning_rate, r->state.step, r->warmup, r->total);
    h = (struct lora_hyper){ y->rate, s->beta1, s->beta2, s->epsilon, s->weight_decay, s->max_grad_norm };
    if (lora_step(r->lora, &h, &y->norm, err)) return fail_step(r, err);
    r->state.step++;
    return record_step(r, y, err);
}

/* On a terminal a line that replaces itself; in a log a line now and then. */
static void show_step(const struct run *r, const struct tally *y, double begun, long long begun_at)
{
    double now = seconds_now(), seconds = now - y->start;
    double left = (now - begun) / (double)(r->state.step - begun_at) * (double)(r->total - r->state.step);
    long long every = r->total / 20 ? r->total / 20 : 1;
    char line[200];
    snprintf(line, sizeof line, "step %lld/%lld  loss %.4f  rate %.3g  %.0f tokens/s  %.0f:%02.0f left", r->state.step,
             r->total, y->loss / (double)r->steps.targets, y->rate, seconds > 0 ? (double)r->steps.tokens / seconds : 0,
             floor(left / 60), floor(left - 60 * floor(left / 60)));
    if (isatty(2)) progress("%s", line);
    else if (r->state.step == 1 || r->state.step == r->total || r->state.step % every == 0) status("%s", line);
}

/* ---- evaluation ---- */

static void note_best(struct run *r, double value)
{
    struct train_state *s = &r->state;
    s->eval_step = s->step;
    if (!s->best_step || value > s->best) {
        s->best = value;
        s->best_step = s->step;
        s->without_better = 0;
    } else {
        s->without_better++;
    }
}

static int each_pack(void *ctx, int rows_done)
{
    const struct run *r = ctx;
    progress("evaluating: %d of %d rows", rows_done, r->eval.n);
    return stop_signal();
}

struct evaluation run_evaluation(struct run *r, const struct label_set *labels)
{
    return (struct evaluation){
        .d = &r->eval, .labels = labels, .rows = EVALUATION_ROWS, .adapter = r->adapter ? 0 : -1, .each = each_pack, .ctx = r
    };
}

static int count_label(void *ctx, const struct row *row, int label, double log_probability, struct lora_error *err)
{
    struct run *r = ctx;
    (void)log_probability, (void)err;
    classification_add(&r->scores, label_set_find(&r->labels, row_label(row)), label);
    return 0;
}

/* The likeliest label of each row against its own. */
static int classify(struct run *r, struct text *t, double value[4], struct lora_error *err)
{
    struct evaluation e = run_evaluation(r, &r->labels);
    struct classification *c = &r->scores;
    int code;
    if (classification_open(c, r->labels.n, err)) return -1;
    e.label = count_label;
    if (!(code = evaluate_labels(&e, r->lora, err))) {
        classification_score(c);
        value[METRIC_ACCURACY] = c->accuracy;
        value[METRIC_MACRO_F1] = c->macro_f1;
        json_put_figure(t, "eval_accuracy", c->accuracy);
        json_put_figure(t, "eval_macro_f1", c->macro_f1);
        json_put_figure(t, "eval_weighted_f1", c->weighted_f1);
    }
    classification_free(c);
    return code;
}

/* 1: a signal came; the evaluation is done again when the run goes on. */
static int evaluate(struct run *r, struct lora_error *err)
{
    struct evaluation e = run_evaluation(r, NULL);
    struct lm_figures f;
    struct text t = { 0 };
    double value[4] = { 0 }, start = seconds_now();
    int code = evaluate_lm(&e, r->lora, &f, err);
    value[METRIC_LOSS] = -f.loss;
    value[METRIC_TOKEN_ACCURACY] = f.token_accuracy;
    start_line(&t, r);
    json_put_figure(&t, "eval_loss", f.loss);
    json_put_figure(&t, "eval_token_accuracy", f.token_accuracy);
    json_put_figure(&t, "eval_target_tokens", (double)f.targets);
    if (!code && r->labels.n) code = classify(r, &t, value, err);
    json_put_figure(&t, "eval_seconds", seconds_now() - start);
    if (code || end_line(r, &t, err)) {
        text_free(&t);
        return code > 0 ? 1 : -1;
    }
    note_best(r, value[r->set->metric]);
    status("step %lld: eval loss %.4f, token accuracy %.4f%s", r->state.step, f.loss, f.token_accuracy,
           r->state.best_step == r->state.step ? " (best so far)" : "");
    if (r->labels.n)
        status("  labels: accuracy %.4f, macro F1 %.4f", value[METRIC_ACCURACY], value[METRIC_MACRO_F1]);
    return 0;
}

/* ---- the loop ---- */

static int is_due(const struct run *r, long long every)
{
    return every && (r->state.step % every == 0 || r->state.step == r->total);
}

static int is_over(const struct run *r)
{
    return r->state.step >= r->total || (r->set->patience && r->state.without_better >= r->set->patience);
}

/* Rows that can no longer be read end the run; the steps before them are as good as ever. */
static void keep_steps(struct run *r)
{
    if (r->state.step && !checkpoint_save(r, NULL))
        status("the state after step %lld is saved: with the data as they were, --resume goes on from there", r->state.step);
}

/* 0: done; 1: stopped by a signal, state saved; -1. An evaluation that was cut short or never begun
 * is due again when the run is resumed, which is why it stands first. */
static int loop(struct run *r, struct lora_error *err)
{
    long long saved = r->state.step ? r->state.step : -1, begun_at = r->state.step;
    double begun = seconds_now();
    int result;
    for (;;) {
        struct tally y;
        int better = 0;
        if (r->state.step && r->state.eval_step != r->state.step && is_due(r, r->eval_every)) {
            if ((result = evaluate(r, err)) < 0) return -1;
            better = !result && r->state.best_step == r->state.step && r->set->load_best;
        }
        if (saved != r->state.step && (stop_signal() || better || (r->state.step && is_due(r, r->save_every)))) {
            if (checkpoint_save(r, err)) return -1;
            saved = r->state.step;
        }
        if (stop_signal()) return 1;
        if (is_over(r)) return 0;
        if (train_step(r, &y, err)) {
            if (y.unread && saved != r->state.step) keep_steps(r);
            return -1;
        }
        show_step(r, &y, begun, begun_at);
    }
}

/* The final weights go where PEFT looks for them, and what makes ids of text with them. */
static int finish(struct run *r, struct lora_error *err)
{
    if (r->set->load_best && r->state.best_step && r->state.best_step != r->state.step) {
        if (checkpoint_weights(r, r->state.best_step, err)) return -1;
        status("the best weights are those of step %lld", r->state.best_step);
    }
    if (weights_write(r, r->set->out, dtypes[r->set->dtype < 0 ? 0 : r->set->dtype], err)
        || (r->adapter && r->session.tokenizer && tokenizer_save(r->session.tokenizer, r->set->out, err))
        || directory_sync(r->set->out, err)) return -1;
    if (r->state.step < r->total) status("stopped early: %d evaluations without a better one", r->state.without_better);
    status("done: %lld steps; %s is in %s", r->state.step, r->adapter ? "the adapter" : "the model", r->set->out);
    return 0;
}

/* Nothing that is read may be among what is written, or cleared. */
static int spare_inputs(const struct train_settings *s, struct lora_error *err)
{
    return output_spares_run(s->common.model, "model", s->out, err) || output_spares_run(s->init_adapter, "initial adapter", s->out, err)
           || output_spares_run(s->data.data, "data", s->out, err)
           || output_spares_run(s->eval_data, "evaluation data", s->out, err)
           || output_spares_run(s->common.config, "configuration", s->out, err) ? -1 : 0;
}

/* A finished run without a checkpoint is not trained again, perhaps with other options, unless that is asked for. */
static int nothing_finished(const char *out, struct lora_error *err)
{
    int any = file_in(out, "adapter_model.safetensors", err);
    if (!any) any = file_in(out, "model.safetensors", err);
    if (any <= 0) return any;
    fail(err, "nothing to go on from", "%s", out);
    expected(err, "a checkpoint");
    found(err, "a finished run without one");
    return hint(err, "--overwrite in place of --resume trains it again from the start");
}

/* DIR is new, or holds a run to go on with, or may be overwritten. */
static int prepare_out(struct run *r, struct lora_error *err)
{
    const char *out = r->set->out;
    int any;
    if (spare_inputs(r->set, err) || (any = checkpoint_any(out, err)) < 0) return -1;
    if (any == NO_RUN) {
        fail(err, "cannot write over what no run left", "%s", out);
        expected(err, "a directory that is new, or that a run wrote, for --out");
        return found(err, "files of a model or an adapter without run.json or metrics.jsonl");
    }
    if (any && !r->set->resume && !r->set->overwrite) {
        fail(err, "there is a run already", "%s", out);
        return hint(err, "--resume goes on with it, --overwrite replaces it");
    }
    if (make_directory(out, err) || (r->lock = output_lock(out, err)) < 0) return -1;
    if (r->set->overwrite && checkpoint_clear(out, err)) return -1;
    if (!r->set->resume) return 0;
    if (checkpoint_resume(r, err)) return -1;
    if (r->state.step) status("going on after step %lld of %lld", r->state.step, r->total);
    else if (nothing_finished(out, err)) return -1;
    else status("no checkpoint in %s: beginning at the start", out);
    return 0;
}

static int train(struct run *r, struct lora_error *err)
{
    int result;
    if (r->plan.paged && make_directory(r->set->out, err)) return -1;
    if (lora_open(&r->lora, &r->setup, err)) return -1;
    if (r->adapter) {       /* what it began with lies in the arena now */
        free(r->adapter->values);
        r->adapter->values = NULL;
    }
    if (prepare_out(r, err) || record_run(r, err) || metrics_open(r, err) || announce(r, err)) return -1;
    /* before this a signal ends the program at once: there is nothing to save */
    stop_install("stopping: this step is finished and a checkpoint written; from two seconds on a second signal ends it at once, without one\n");
    result = loop(r, err);
    progress_done();
    if (result < 0 || (!result && finish(r, err))) return -1;
    if (!result) return EXIT_DONE;
    status("stopped by %s after step %lld of %lld; the same command with --resume%s goes on from there",
           stop_name(), r->state.step, r->total, r->set->overwrite ? " in place of --overwrite" : "");
    return 128 + stop_signal();
}

static int run(void *settings, struct lora_error *err)
{
    const struct train_settings *set = settings;
    struct run r;
    int code = train_check(&job_train, set, 1);
    if (code) return code;
    if (!(code = run_open(&r, set, err))) {
        if (set->dry_run) plan_print(stdout, &r, plan_seconds(&r));
        else code = train(&r, err);
    }
    run_close(&r);
    return code;
}

const struct job job_train = {
    "train", "fine-tunes a model on rows of text", "--model M --data D --out DIR [options]", train_options,
    common_options, sizeof train_defaults, &train_defaults, run
};
