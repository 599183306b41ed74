/* record.c - what is said before the first step, and run.json. */
#include "train.h"
#include "../formats/json.h"

#include <stdlib.h>
#include <string.h>

#define ROW_SHOWN 4000      /* bytes of the row that is shown */

/* ---- JSON pieces ---- */

static void put_hash(struct text *t, uint64_t hash) { text_printf(t, "\"%016llx\"", (unsigned long long)hash); }

static void put_named(struct text *t, const char *name, double x)
{
    text_printf(t, ",\n  \"%s\": ", name);
    json_put_number(t, x, 0);
}

static void put_word(struct text *t, const char *word, size_t n)
{
    if (word) json_put_string(t, word, n);
    else text_puts(t, "null");
}

static void put_value(struct text *t, const struct option *o, const char *settings)
{
    const void *field = settings + o->offset;
    const char *word;
    size_t n;
    switch (o->type) {
    case OPTION_FLAG: text_puts(t, *(const int *)field > 0 ? "true" : "false"); break;
    case OPTION_INT: text_printf(t, "%d", *(const int *)field); break;
    case OPTION_LONG: text_printf(t, "%lld", *(const long long *)field); break;
    case OPTION_NUMBER: json_put_number(t, *(const double *)field, 0); break;
    case OPTION_SIZE: text_printf(t, "%zu", *(const size_t *)field); break;
    case OPTION_CHARACTER: put_word(t, *(const char *)field ? field : NULL, 1); break;
    case OPTION_CHOICE:
        word = option_choice(o, *(const int *)field, &n);
        put_word(t, word, n);
        break;
    default: json_put_text(t, *(const char *const *)field);
    }
}

/* Every row of the table with the value it has. */
static void put_options(struct text *t, const struct option *o, const void *settings, int *n)
{
    for (; o->name; o++) {
        if (o->type == OPTION_LATER || o->type == OPTION_LIST) continue;
        text_printf(t, "%s\n    \"%s\": ", (*n)++ ? "," : "", o->name);
        put_value(t, o, settings);
    }
}

/* ---- what decides the numbers ---- */

static void put_key_number(struct text *t, const char *name, double x)
{
    json_put_key(t, name);
    json_put_number(t, x, 0);
}

static uint64_t adapter_hash(const struct adapter *a)
{
    uint64_t h = HASH_START;
    int i;
    for (i = 0; i < a->n; i++) {
        const int v[] = { a->modules[i].id, a->modules[i].layer, a->modules[i].r, 0 };
        h = hash_bytes(h, v, sizeof v);
        h = hash_bytes(h, &a->modules[i].scale, sizeof(double));
    }
    return h;
}

static void put_option(struct text *t, const struct option *o, const void *settings, const char *name)
{
    while (strcmp(o->name, name)) o++;
    json_put_key(t, name);
    put_value(t, o, settings);
}

/* Names are the options'. Values that options are turned into stand for them: 8 rows x 4 are 32. */
void put_fingerprint(struct text *t, const struct run *r)
{
    static const char *const as_given[] = { "weight-decay", "adam-beta1", "adam-beta2", "adam-epsilon",
                                            "max-grad-norm", "tokens-per-pack", "no-shuffle" };
    const struct train_settings *s = r->set;
    size_t i;
    text_printf(t, "{\"method\":\"%s\"", s->method == METHOD_FULL ? "full" : "lora");
    json_put_key(t, "the quantisation of the base");
    base_put(t, &r->session.base);
    json_put_key(t, "model");
    put_hash(t, r->session.model->hash);
    json_put_key(t, "data");
    put_hash(t, r->data.hash);
    json_put_key(t, "eval-data");
    put_hash(t, r->eval.n ? r->eval.hash : 0);
    if (r->adapter) {
        json_put_key(t, "the adapter's modules, ranks and scales");
        put_hash(t, adapter_hash(r->adapter));
        put_key_number(t, "lora-dropout", r->adapter->dropout);
        json_put_key(t, "init-adapter");
        put_hash(t, r->init_hash);
    }
    put_key_number(t, "batch-size x gradient-accumulation-steps", r->steps.per_step);
    json_put_key(t, "optim");        /* paged: the same numbers in another place */
    text_puts(t, optim_of(s) == OPTIM_ADAMW8BIT ? "\"adamw8bit\"" : "\"adamw\"");
    put_option(t, train_options, s, "learning-rate");
    put_option(t, train_options, s, "lr-scheduler");
    put_key_number(t, "warmup-steps", (double)r->warmup);
    if (s->lr_scheduler != SCHEDULE_CONSTANT) put_key_number(t, "steps of the schedule (epochs or max-steps)", (double)r->total);
    for (i = 0; i < sizeof as_given / sizeof *as_given; i++) put_option(t, train_options, s, as_given[i]);
    put_option(t, common_options, &s->common, "seed");
    put_option(t, common_options, &s->common, "compute");
    if (s->patience || s->load_best) {
        put_key_number(t, "early-stopping-patience", s->patience);
        put_key_number(t, "eval-steps", (double)r->eval_every);
        put_key_number(t, "metric-for-best", s->metric);
    }
    text_puts(t, "}");
}

/* ---- run.json ---- */

static void put_report(struct text *t, const char *name, const struct dataset *d)
{
    const struct data_report *r = &d->report;
    text_printf(t, ",\n  \"%s\": {\"rows\": %lld, \"used\": %lld, \"dropped_overlong\": %lld, \"truncated\": %lld,"
                   " \"without_targets\": %lld, \"duplicates\": %lld, \"tokens\": %lld, \"target_tokens\": %lld,"
                   " \"longest\": %d, \"hash\": ", name, r->rows, r->used, r->dropped_overlong, r->truncated,
                r->without_targets, r->duplicates, r->tokens, r->targets, r->longest);
    put_hash(t, d->hash);
    text_puts(t, "}");
}

static void put_labels(struct text *t, const struct dataset *d)
{
    int i;
    text_puts(t, ",\n  \"labels\": ");
    if (!d->n_labels) {
        text_puts(t, "null");
        return;
    }
    for (i = 0; i < d->n_labels; i++) {
        text_puts(t, i ? ", " : "[");
        json_put_text(t, d->labels[i]);
    }
    text_puts(t, "]");
}

/* The settings with the values that were used where the user left them open. */
static struct train_settings resolved(const struct run *r)
{
    struct train_settings set = *r->set;
    set.optim = optim_of(r->set);
    if (r->adapter) {
        set.lora_r = r->adapter->r;
        set.lora_alpha = r->adapter->alpha;
        set.lora_dropout = r->adapter->dropout;
        set.use_rslora = r->adapter->use_rslora;
    }
    set.warmup_steps = r->warmup;
    if (set.max_steps || set.epochs < 0) set.epochs = (double)r->total / (double)r->steps.per_epoch;
    if (set.warmup_ratio < 0 && r->total) set.warmup_ratio = (double)r->warmup / (double)r->total;
    set.data.max_length = r->data_options.max_length;
    set.common.threads = r->setup.threads;
    set.common.max_memory = r->session.max_memory;
    if (r->session.quantised_here && r->session.base.type != TYPE_INT8) {
        set.common.base.quant_type = r->session.base.type == TYPE_FP4;
        set.common.base.block_size = r->session.base.block;
    }
    return set;
}

/* What the tokenizer, the template and the model's own template do: the warnings of session_open() compare. */
struct identities { uint64_t tokenizer, chat, template; };

static int identify(struct identities *h, const struct session *s, struct lora_error *err)
{
    const struct chat_template *own;
    memset(h, 0, sizeof *h);
    return (s->tokenizer && (tokenizer_identity(s->tokenizer, &h->tokenizer, err)
                             || template_identity(s->tokenizer, &own, &h->template, err)))
           || (s->chat && chat_identity(s->chat, s->tokenizer, &h->chat, err)) ? -1 : 0;
}

static void put_identity(struct text *t, const char *name, int is_there, uint64_t hash)
{
    text_printf(t, ",\n  \"%s\": ", name);
    if (is_there) put_hash(t, hash);
    else text_puts(t, "null");
}

static void put_run(struct text *t, const struct run *r, const struct identities *h)
{
    const struct session *s = &r->session;
    struct train_settings set = resolved(r);
    int n = 0;
    text_puts(t, "{\n  \"version\": \"" LORA_VERSION "\",\n  \"options\": {");
    put_options(t, train_options, &set, &n);
    put_options(t, common_options, &set.common, &n);
    text_puts(t, "\n  },\n  \"model_path\": ");
    json_put_text(t, s->model->path);
    text_puts(t, ",\n  \"model_hash\": ");
    put_hash(t, s->model->hash);
    text_puts(t, ",\n  \"base_quantization\": ");
    base_put(t, &s->base);
    put_identity(t, "tokenizer_hash", s->tokenizer != NULL, h->tokenizer);
    text_puts(t, ",\n  \"chat_template\": ");
    json_put_text(t, s->chat ? chat_name(s->chat) : NULL);
    put_identity(t, "chat_template_hash", s->chat != NULL, h->chat);
    put_identity(t, "model_template_hash", h->template != 0, h->template);
    text_puts(t, ",\n  \"prompt_template\": ");
    json_put_text(t, r->data.prompt_template);
    put_labels(t, &r->data);
    put_report(t, "data", &r->data);
    if (r->eval.n) put_report(t, "eval_data", &r->eval);
    text_puts(t, ",\n  \"backend\": ");
    json_put_text(t, r->setup.kernels->name);
    put_named(t, "threads", r->setup.threads);
    put_named(t, "steps", (double)r->total);
    put_named(t, "steps_per_epoch", (double)r->steps.per_epoch);
    put_named(t, "warmup_steps", (double)r->warmup);
    put_named(t, "parameters", (double)config_parameters(&s->model->config));
    put_named(t, "trained_parameters", (double)lora_trained_size(r->lora));
    put_named(t, "arena_bytes", (double)r->plan.total);
    text_puts(t, "\n}\n");
}

int record_run(const struct run *r, struct lora_error *err)
{
    char *path = path_join(r->set->out, "run.json", err);
    struct text t = { 0 };
    struct identities h;
    int bad = !path || identify(&h, &r->session, err);
    if (!bad) {
        put_run(&t, r, &h);
        bad = text_check(&t, err) || file_write(path, t.s, t.n, err);
    }
    text_free(&t);
    free(path);
    return bad ? -1 : 0;
}

/* ---- before the first step ---- */

static void announce_kind(const struct adapter *a, int id)
{
    const struct adapted *one = NULL;
    int i, layers = 0, same = 1;
    const char *number;
    char name[128];
    for (i = 0; i < a->n; i++) {
        const struct adapted *m = &a->modules[i];
        if (m->id != id) continue;
        if (one && (m->r != one->r || m->alpha != one->alpha)) same = 0;
        one = m;
        layers++;
    }
    if (!one) return;
    tensor_name(name, sizeof name, id, one->layer);
    if (layers == 1) {
        status("  %s [%d,%d]: r %d, alpha %g", name, one->rows, one->cols, one->r, one->alpha);
        return;
    }
    number = strstr(tensor_specs[id].hf, "%d");         /* one line for all layers: their number is N */
    snprintf(name, sizeof name, "%.*sN%s", (int)(number - tensor_specs[id].hf), tensor_specs[id].hf, number + 2);
    if (same) status("  %s [%d,%d] in %d layers: r %d, alpha %g", name, one->rows, one->cols, layers, one->r, one->alpha);
    else status("  %s [%d,%d] in %d layers: r and alpha by pattern", name, one->rows, one->cols, layers);
}

static void announce_trained(const struct run *r)
{
    double all = (double)config_parameters(&r->session.model->config);
    int id;
    if (!r->adapter) {
        status("training every weight: %.0f parameters", all);
        return;
    }
    status("adapting %d linears, %zu parameters to train (%.2f %% of %.0f)%s:", r->adapter->n, r->adapter->size,
           100 * (double)r->adapter->size / all, all, r->adapter->use_rslora ? ", rank-stabilised" : "");
    for (id = 0; id < T_COUNT; id++) announce_kind(r->adapter, id);
    if (r->adapter->dropout > 0) status("  dropout %g: rows that begin alike are not shared", r->adapter->dropout);
}

/* A row as the model sees it, its targets between marks of quotation. */
static void show_row(const struct run *r, const struct row *row)
{
    struct text t = { 0 };
    int i, j;
    for (i = 0; i < row->n; i = j) {
        int target = i > 0 && row->mask[i];
        for (j = i + 1; j < row->n && (row->mask[j] != 0) == target; j++) ;
        if (target) text_puts(&t, "\xc2\xab");
        if (r->session.tokenizer) tokenizer_decode(r->session.tokenizer, row->ids + i, (size_t)(j - i), 0, &t, NULL);
        else for (; i < j; i++) text_printf(&t, i + 1 < j ? "%d " : "%d", row->ids[i]);
        if (target) text_puts(&t, "\xc2\xbb");
        else if (!r->session.tokenizer) text_puts(&t, " ");
    }
    if (t.s && !t.failed) {
        int shown = (int)(t.n < ROW_SHOWN ? t.n : ROW_SHOWN);
        status("a row, its targets between \xc2\xab and \xc2\xbb:\n%.*s%s", shown, t.s, shown < (int)t.n ? "..." : "");
    } else {
        status("no memory to show a row");
    }
    text_free(&t);
}

int announce(const struct run *r, struct lora_error *err)
{
    struct row row = { 0 };
    int bad = data_row(&r->data, 0, &row, err);
    announce_trained(r);
    if (!bad) show_row(r, &row);
    row_free(&row);
    if (bad) return -1;
    report_rows("data", &r->data.report);
    session_note_prompt(&r->session, &r->data);
    if (r->eval.n) report_rows("eval data", &r->eval.report);
    plan_print(stderr, r, -1);
    return 0;
}
