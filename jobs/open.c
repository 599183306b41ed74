/* open.c - a run's options, and what it needs before the first step. */
#include "train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- options ---- */

#define AT(field) offsetof(struct train_settings, field)

const struct option train_options[] = {
    DATA_OPTIONS(struct train_settings, data),
    { "out", "output-dir", OPTION_TEXT, AT(out), NULL, "DIR", "where the adapter and the run go", 0, 0 },
    { "eval-data", "eval-dataset", OPTION_TEXT, AT(eval_data), NULL, "FILE[,FILE]", "rows for evaluation", 0, 0 },
    { "eval-split", NULL, OPTION_NUMBER, AT(eval_split), NULL, "F",
      "share of the rows to set apart for evaluation instead (default: none)", 0, 0.9 },
    { "method", NULL, OPTION_CHOICE, AT(method), "lora|full", NULL, "what is trained", 0, 0 },
    { "dtype", NULL, OPTION_CHOICE, AT(dtype), DTYPES, NULL,
      "type of the weights that --method full writes (default: f32)", 0, 0 },
    { "lora-r", "r|rank", OPTION_INT, AT(lora_r), NULL, "N", "rank (default: 16)", 1, 65536 },
    { "lora-alpha", "alpha", OPTION_NUMBER, AT(lora_alpha), NULL, "X", "alpha (default: 32)", 1e-9, 1e30 },
    { "lora-dropout", NULL, OPTION_NUMBER, AT(lora_dropout), NULL, "P", "dropout of the branch's input (default: 0)",
      0, 0.999999 },
    { "target-modules", "lora-target-modules", OPTION_TEXT, AT(target_modules), NULL, "NAMES",
      "all-linear, names with commas, or a regular expression between slashes (default: all-linear)", 0, 0 },
    { "use-rslora", NULL, OPTION_FLAG, AT(use_rslora), NULL, NULL, "scale by alpha / sqrt(r)", 0, 0 },
    { "rank-pattern", NULL, OPTION_TEXT, AT(rank_pattern), NULL, "KEY=R,...", "other ranks, by pattern", 0, 0 },
    { "alpha-pattern", NULL, OPTION_TEXT, AT(alpha_pattern), NULL, "KEY=A,...", "other alphas, by pattern", 0, 0 },
    { "layers", "layers-to-transform", OPTION_TEXT, AT(layers), NULL, "LIST", "layers, as 0,1,4-7 (default: all)", 0, 0 },
    { "init-adapter", NULL, OPTION_TEXT, AT(init_adapter), NULL, "DIR", "start from this adapter", 0, 0 },
    { "optim", NULL, OPTION_CHOICE, AT(optim),
      "adamw|adamw8bit|paged_adamw|adamw_torch|adamw_8bit|adamw_bnb_8bit|paged_adamw_32bit", "adamw|adamw8bit|paged_adamw",
      "8bit: moments in a quarter of the memory; paged: in a mapped file in --out, which has no name", 0, 0 },
    { "learning-rate", "lr", OPTION_NUMBER, AT(learning_rate), NULL, "X", "highest rate", 0, 1e6 },
    { "lr-scheduler", "lr-scheduler-type", OPTION_CHOICE, AT(lr_scheduler), "constant|linear|cosine", NULL,
      "how the rate goes on after warm-up", 0, 0 },
    { "warmup-steps", NULL, OPTION_LONG, AT(warmup_steps), NULL, "N", "steps of warm-up (default: by the ratio)", 0, 9e15 },
    { "warmup-ratio", NULL, OPTION_NUMBER, AT(warmup_ratio), NULL, "F",
      "share of the steps, rounded up (default: 0.03; constant: 0)", 0, 1 },
    { "weight-decay", NULL, OPTION_NUMBER, AT(weight_decay), NULL, "X", "AdamW's decay", 0, 1e6 },
    { "adam-beta1", NULL, OPTION_NUMBER, AT(beta1), NULL, "X", "AdamW", 0, 0.9999999 },
    { "adam-beta2", NULL, OPTION_NUMBER, AT(beta2), NULL, "X", "AdamW", 0, 0.9999999 },
    { "adam-epsilon", NULL, OPTION_NUMBER, AT(epsilon), NULL, "X", "AdamW", 0, 1 },
    { "max-grad-norm", NULL, OPTION_NUMBER, AT(max_grad_norm), NULL, "X", "clipping by the global norm; 0: none", 0, 1e30 },
    { "batch-size", "per-device-train-batch-size", OPTION_INT, AT(batch_size), NULL, "N", "rows, of which", 1, 1 << 20 },
    { "gradient-accumulation-steps", NULL, OPTION_INT, AT(accumulation), NULL, "N", "so many times make a step", 1, 1 << 20 },
    { "tokens-per-pack", NULL, OPTION_INT, AT(tokens_per_pack), NULL, "N", "cuts a step's rows into packs", 1, 1 << 28 },
    { "epochs", "num-train-epochs", OPTION_NUMBER, AT(epochs), NULL, "X", "times through the rows (default: 3)", 0, 1e9 },
    { "max-steps", NULL, OPTION_LONG, AT(max_steps), NULL, "N", "steps, instead of epochs (default: by epochs)", 1, 9e15 },
    { "no-shuffle", NULL, OPTION_FLAG, AT(no_shuffle), NULL, NULL, "rows in file order", 0, 0 },
    { "gradient-checkpointing", NULL, OPTION_CHOICE, AT(gradient_checkpointing), "on|off|auto", NULL,
      "compute activations again instead of keeping them; auto: as little as makes the plan fit", 0, 0 },
    { "eval-steps", NULL, OPTION_TEXT, AT(eval_steps), NULL, "N|epoch|no", "how often to evaluate", 0, 0 },
    { "save-steps", NULL, OPTION_TEXT, AT(save_steps), NULL, "N|epoch|no", "how often to write a checkpoint", 0, 0 },
    { "save-total-limit", NULL, OPTION_INT, AT(save_total_limit), NULL, "N", "checkpoints that stay; 0: all", 0, 1 << 30 },
    { "early-stopping-patience", NULL, OPTION_INT, AT(patience), NULL, "N",
      "stop after so many evaluations without a better one; 0: never", 0, 1 << 30 },
    { "load-best", "load-best-model-at-end", OPTION_FLAG, AT(load_best), NULL, NULL, "end with the best weights", 0, 0 },
    { "metric-for-best", "metric-for-best-model", OPTION_CHOICE, AT(metric),
      "eval_loss|token_accuracy|accuracy|macro_f1", NULL, "what is best", 0, 0 },
    { "eval-task", NULL, OPTION_CHOICE, AT(eval_task), "lm|classify", NULL,
      "classify: also accuracy and F1 of labels, by likelihood", 0, 0 },
    { "resume", "resume-from-checkpoint", OPTION_FLAG, AT(resume), NULL, NULL, "go on from the newest checkpoint", 0, 0 },
    { "overwrite", "overwrite-output-dir", OPTION_FLAG, AT(overwrite), NULL, NULL, "replace the run that is in DIR", 0, 0 },
    { "dry-run", NULL, OPTION_FLAG, AT(dry_run), NULL, NULL, "print the plan and stop", 0, 0 },
    { "use-dora", NULL, OPTION_LATER, 0, NULL, NULL, NULL, 0, 0 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

const struct train_settings train_defaults = {
    .common = COMMON_DEFAULTS, .data = DATA_DEFAULTS,
    .eval_steps = "epoch", .save_steps = "epoch",
    .method = METHOD_LORA, .dtype = -1, .lora_dropout = -1,
    .learning_rate = 2e-4, .warmup_ratio = -1, .warmup_steps = -1, .lr_scheduler = SCHEDULE_COSINE,
    .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .max_grad_norm = 1,
    .batch_size = 8, .accumulation = 1, .tokens_per_pack = 2048, .epochs = -1,
    .gradient_checkpointing = CHECKPOINTING_AUTO, .save_total_limit = 3,
};

int optim_of(const struct train_settings *s)
{
    static const int names[] = { OPTIM_ADAMW, OPTIM_ADAMW8BIT, OPTIM_PAGED_ADAMW,    /* Hugging Face's: */
                                 OPTIM_ADAMW, OPTIM_ADAMW8BIT, OPTIM_ADAMW8BIT, OPTIM_PAGED_ADAMW };
    return names[s->optim];
}

/* Do the options say what the adapter is to be? */
static int asks_for_adapter(const struct train_settings *s)
{
    return s->lora_r || s->lora_alpha != 0 || s->target_modules || s->use_rslora || s->rank_pattern || s->alpha_pattern
           || s->layers;
}

/* "epoch" -> per_epoch, "no" -> 0, else a number from 1. */
static int interval(const char *s, long long per_epoch, long long *out)
{
    if (!strcmp(s, "epoch")) *out = per_epoch;
    else if (!strcmp(s, "no") || !strcmp(s, "off")) *out = 0;
    else if (parse_integer(s, out) || *out < 1) return -1;
    return 0;
}

int train_check(const struct job *job, const struct train_settings *s, int needs_data)
{
    int has_eval = s->eval_data || s->eval_split > 0;
    long long unused;
    if (!s->common.model || (needs_data && (!s->data.data || (!s->out && !s->dry_run))))
        return job_usage_error(job, needs_data ? "--model, --data and --out are needed" : "--model is needed");
    if (s->resume && s->overwrite) return job_usage_error(job, "--resume and --overwrite exclude each other");
    if (s->eval_data && s->eval_split > 0) return job_usage_error(job, "--eval-data and --eval-split exclude each other");
    if (s->warmup_steps >= 0 && s->warmup_ratio >= 0)
        return job_usage_error(job, "--warmup-steps and --warmup-ratio exclude each other");
    if (s->method == METHOD_FULL && (asks_for_adapter(s) || s->lora_dropout >= 0 || s->init_adapter))
        return job_usage_error(job, "--method full has no adapter: --lora-*, --target-modules, --init-adapter do not go with it");
    if (s->method == METHOD_FULL && (s->common.base.in_4bit > 0 || s->common.base.in_8bit > 0))
        return job_usage_error(job, "--method full trains the base: --load-in-4bit and --load-in-8bit do not go with it");
    if (s->method == METHOD_FULL && s->common.compute)
        return job_usage_error(job, "--method full has no frozen weights: --compute bf16 multiplies by those alone");
    if (s->method != METHOD_FULL && s->dtype >= 0)
        return job_usage_error(job, "--dtype goes with --method full; an adapter is always f32");
    if (s->epochs == 0) return job_usage_error(job, "--epochs: more than 0 is needed");
    if (interval(s->eval_steps, 1, &unused)) return job_usage_error(job, "--eval-steps: a number from 1, epoch or no");
    if (interval(s->save_steps, 1, &unused)) return job_usage_error(job, "--save-steps: a number from 1, epoch or no");
    if ((s->patience || s->load_best || s->eval_task == TASK_CLASSIFY) && (!has_eval || !strcmp(s->eval_steps, "no")))
        return job_usage_error(job, "--early-stopping-patience, --load-best and --eval-task need --eval-data or --eval-split%s",
                               has_eval ? ", and --eval-steps other than no" : "");
    if (s->metric >= METRIC_ACCURACY && s->eval_task != TASK_CLASSIFY)
        return job_usage_error(job, "--metric-for-best accuracy and macro_f1 need --eval-task classify");
    if (!has_eval && ((s->eval_steps != train_defaults.eval_steps && strcmp(s->eval_steps, "no")) || s->metric))
        status("warning: --eval-steps and --metric-for-best change nothing without --eval-data or --eval-split");
    if (s->eval_split > 0 && !s->data.data) status("warning: --eval-split changes nothing without --data");
    return 0;
}

/* ---- the model ---- */

static int open_session(struct run *r, struct lora_error *err)
{
    const struct common *c = &r->set->common;
    int shape = r->set->dry_run && shape_alone(c->model);
    return session_open(&r->session, c, NULL, (r->set->data.data ? 0 : SESSION_RAW) | (shape ? SESSION_SHAPE : 0), err);
}

/* ---- rows ---- */

static int open_rows(struct run *r, int per_step, struct lora_error *err)
{
    const struct train_settings *s = r->set;
    struct data_options *o = &r->data_options;
    session_data_options(&r->session, &s->data, o);
    /* without data: the rows of one step, each as long as can be, every token a target */
    if (!s->data.data) return data_blank(&r->data, per_step, o->max_length, err);
    if (s->eval_split > 0) {
        if (data_read_split(&r->data, s->eval_split, &r->eval, s->data.data, o, err)) return -1;
    } else if (data_read(&r->data, s->data.data, o, err)) return -1;
    if (r->data.n_labels) {     /* evaluation rows may lack some: their {labels} are what is trained with */
        o->labels = (const char *const *)r->data.labels;
        o->n_labels = r->data.n_labels;
    }
    return s->eval_data ? data_read(&r->eval, s->eval_data, o, err) : 0;
}

/* ---- what is trained ---- */

static int check_full(const struct run *r, struct lora_error *err)
{
    const struct model *m = r->session.model;
    char name[128];
    int id = -1, layer = 0;
    while (tensor_next(&m->config, &id, &layer)) {
        const struct weight *w = model_weight(m, id, layer);
        if (w->type == TYPE_F32 || w->type == TYPE_F16 || w->type == TYPE_BF16) continue;
        fail(err, "cannot train every weight", "%s: %s", m->path, tensor_name(name, sizeof name, id, layer));
        expected(err, "F32, F16 or BF16");
        found(err, "%s", weight_types[w->type].name);
        return hint(err, "a quantised base is for --method lora; `lora merge` without an adapter makes it plain");
    }
    return 0;
}

/* The options that are given beside --init-adapter must ask for the adapter that it is. */
static int agrees(const struct adapter *a, const struct adapter *asked, int same_modules)
{
    int i, j;
    if (same_modules && a->n != asked->n) return 0;
    for (i = 0; i < a->n; i++)
        for (j = 0; j < asked->n; j++) {
            const struct adapted *x = &a->modules[i], *y = &asked->modules[j];
            if (x->id == y->id && x->layer == y->layer && (x->r != y->r || x->scale != y->scale)) return 0;
        }
    return 1;
}

/* What is wrong with the options is wrong usage, as if it were seen when they were read. */
static int new_adapter(struct adapter **a, const struct config *c, const struct adapter_settings *s, struct lora_error *err)
{
    char what[sizeof err->what], where[sizeof err->where];
    if (!adapter_new(a, c, s, err)) return 0;
    if (!strcmp(err->what, "out of memory") || !strcmp(err->what, "cannot use the option")) return -1;
    snprintf(what, sizeof what, "%s", err->what);
    snprintf(where, sizeof where, "%s", err->where);
    snprintf(err->what, sizeof err->what, "wrong value");
    snprintf(err->where, sizeof err->where, "%.100s, %.400s", what, where);
    return -1;
}

static int init_adapter(struct run *r, struct adapter_settings *a, struct lora_error *err)
{
    const struct train_settings *s = r->set;
    const struct config *c = &r->session.model->config;
    struct adapter *asked;
    int good;
    if (session_read_adapter(&r->session, &r->adapter, s->init_adapter, err)) return -1;
    r->init_hash = hash_bytes(HASH_START, r->adapter->values, r->adapter->size * sizeof(float));
    if (s->lora_dropout >= 0) r->adapter->dropout = s->lora_dropout;
    if (!asks_for_adapter(s)) return 0;
    if (!s->lora_r) a->r = r->adapter->r;
    if (s->lora_alpha == 0) a->alpha = r->adapter->alpha;
    if (!s->use_rslora) a->use_rslora = r->adapter->use_rslora;
    if (new_adapter(&asked, c, a, err)) return -1;
    good = agrees(r->adapter, asked, s->target_modules || s->layers);
    adapter_free(asked);
    if (good) return 0;
    fail(err, "the options ask for another adapter", "%s", s->init_adapter);
    expected(err, "the ranks, scales and modules of this adapter");
    return hint(err, "leave out --lora-r, --lora-alpha and --target-modules: --init-adapter brings its own");
}

static int open_adapter(struct run *r, struct lora_error *err)
{
    const struct train_settings *s = r->set;
    struct adapter_settings a = {
        .r = s->lora_r ? s->lora_r : 16, .alpha = s->lora_alpha != 0 ? s->lora_alpha : 32,
        .dropout = s->lora_dropout >= 0 ? s->lora_dropout : 0, .use_rslora = s->use_rslora,
        .target_modules = s->target_modules ? s->target_modules : "all-linear", .rank_pattern = s->rank_pattern,
        .alpha_pattern = s->alpha_pattern, .layers = s->layers
    };
    if (s->method == METHOD_FULL) return check_full(r, err);
    if (s->init_adapter) return init_adapter(r, &a, err);
    if (new_adapter(&r->adapter, &r->session.model->config, &a, err)) return -1;
    return adapter_init(r->adapter, (uint64_t)s->common.seed, err);
}

/* ---- steps and sizes ---- */

static int open_steps(struct run *r, int per_step, struct lora_error *err)
{
    const struct train_settings *s = r->set;
    double ratio = s->warmup_ratio >= 0 ? s->warmup_ratio : s->lr_scheduler == SCHEDULE_CONSTANT ? 0 : 0.03;
    r->steps = (struct steps){
        .data = &r->data, .per_step = per_step, .tokens_per_pack = s->tokens_per_pack, .adapter = r->adapter ? 0 : -1,
        /* rows made up for a plan are all alike, and with dropout each row has masks of its own */
        .share = s->data.data && (!r->adapter || r->adapter->dropout == 0), .shuffle = !s->no_shuffle,
        .seed = (uint64_t)s->common.seed
    };
    if (steps_open(&r->steps, err)) return -1;
    if (s->max_steps && s->epochs > 0)
        status("warning: --epochs %g changes nothing: --max-steps %lld says when the run ends", s->epochs, s->max_steps);
    r->total = s->max_steps ? s->max_steps : (long long)ceil((s->epochs > 0 ? s->epochs : 3) * (double)r->steps.per_epoch);
    r->warmup = s->warmup_steps >= 0 ? s->warmup_steps : warmup_steps(ratio, r->total);
    if (r->total && r->warmup >= r->total)
        status("warning: of %lld step%s all are warm-up: the learning rate never comes to %g", r->total, r->total == 1 ? "" : "s", s->learning_rate);
    interval(s->eval_steps, r->steps.per_epoch, &r->eval_every);
    interval(s->save_steps, r->steps.per_epoch, &r->save_every);
    if (!r->eval.n) r->eval_every = 0;
    return 0;
}

/* Evaluation runs in the memory of training. */
static int open_evaluation(struct run *r, struct lora_error *err)
{
    struct evaluation e = run_evaluation(r, NULL);
    if (!r->eval.n) return 0;
    if (evaluation_sizes(&e, &r->setup.sizes, err)) return -1;
    if (r->set->eval_task != TASK_CLASSIFY) return 0;
    /* the set is that of the training rows too: a label that evaluation lacks is a wrong answer still */
    if (label_set_make(&r->labels, &r->eval, &r->data, &r->data_options, NULL, 0, err)) return -1;
    e.labels = &r->labels;
    return evaluation_sizes(&e, &r->setup.sizes, err);
}

static int open_setup(struct run *r, struct lora_error *err)
{
    struct lora_setup *u = &r->setup;
    *u = session_setup(&r->session, &r->adapter);
    u->full = !r->adapter;
    u->optim = optim_of(r->set);
    u->page_directory = r->set->out;
    u->sizes.backward = 1;
    if (step_sizes(&u->sizes, &r->steps, r->total, err)) return -1;
    if (!(r->losses = new_array((size_t)u->sizes.T, sizeof *r->losses, err)) || open_evaluation(r, err)) return -1;
    return plan_choose(r, err);
}

int run_open(struct run *r, const struct train_settings *set, struct lora_error *err)
{
    long long per_step = (long long)set->batch_size * set->accumulation;
    *r = (struct run){ .set = set, .lock = -1 };
    if (per_step > 1 << 20) {
        fail(err, "wrong value", "--batch-size x --gradient-accumulation-steps");
        expected(err, "at most %d rows a step", 1 << 20);
        return found(err, "%lld", per_step);
    }
    return open_session(r, err) || open_rows(r, (int)per_step, err) || open_adapter(r, err)
           || open_steps(r, (int)per_step, err) || open_setup(r, err) ? -1 : 0;
}

void run_close(struct run *r)
{
    lora_close(r->lora);
    if (r->metrics) fclose(r->metrics);
    if (r->lock >= 0) output_unlock(r->set->out, r->lock);
    pack_free(&r->pack);
    free(r->losses);
    label_set_free(&r->labels);
    steps_close(&r->steps);
    data_free(&r->eval);        /* a split has the files of r->data */
    data_free(&r->data);
    adapter_free(r->adapter);
    session_close(&r->session);
}
