/* inspect.c - lora inspect: the tensors of a model or of an adapter, and what quantising would lose of them. */
#include "rounding.h"
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../formats/json.h"
#include "../formats/safetensors.h"

struct settings {
    struct common common;
    const char *adapter, *json;
    int quant_type;
};

static const struct option options[] = {
    { "adapter", NULL, OPTION_TEXT, offsetof(struct settings, adapter), NULL, "DIR",
      "a PEFT directory, in place of a model", 0, 0 },
    { "json", NULL, OPTION_TEXT, offsetof(struct settings, json), NULL, "FILE",
      "the same as one JSON object (-: on stdout, alone)", 0, 0 },
    { "quant-type", "bnb-4bit-quant-type", OPTION_CHOICE, offsetof(struct settings, quant_type), QUANT_TYPES, NULL,
      "what its linears would lose in this type, beside the others; with --load-in-4bit the 4-bit type (default: none)", 0, 0 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

struct sum { long long tensors, parameters, bytes; };

/* The two forms of the result, made side by side. `json` holds the members of one object; the
 * tensors' own are kept apart until all are known. */
struct listing {
    struct text lines, json, tensors, errors;
    struct sum all, types[TYPE_COUNT];
};

static void add_tensor(struct listing *l, const char *name, int type, size_t bytes, const size_t *dims, int n_dims)
{
    struct sum *const sums[] = { &l->all, &l->types[type] };
    size_t count = 1;
    int i;
    text_printf(&l->lines, "%-5s [", weight_types[type].name);
    text_puts(&l->tensors, l->all.tensors ? ",\n {\"name\": " : "\n {\"name\": ");
    json_put_text(&l->tensors, name);
    text_printf(&l->tensors, ", \"type\": \"%s\", \"shape\": [", weight_types[type].name);
    for (i = 0; i < n_dims; i++) {
        text_printf(&l->lines, "%s%zu", i ? ", " : "", dims[i]);
        text_printf(&l->tensors, "%s%zu", i ? ", " : "", dims[i]);
        count *= dims[i];           /* checked when the file was opened */
    }
    text_printf(&l->lines, "]  %zu bytes  %s\n", bytes, name);
    text_printf(&l->tensors, "], \"parameters\": %zu, \"bytes\": %zu}", count, bytes);
    for (i = 0; i < 2; i++) {
        sums[i]->tensors++;
        sums[i]->parameters += (long long)count;
        sums[i]->bytes += (long long)bytes;
    }
}

/* Totals, in both forms. */
static void finish(struct listing *l)
{
    int type, n = 0;
    text_printf(&l->json, ",\n \"parameters\": %lld,\n \"bytes\": %lld,\n \"types\": {", l->all.parameters, l->all.bytes);
    for (type = 0; type < TYPE_COUNT; type++) {
        const struct sum *s = &l->types[type];
        if (!s->tensors) continue;
        text_printf(&l->lines, "%-5s %lld tensors, %lld parameters, %lld bytes\n", weight_types[type].name,
                    s->tensors, s->parameters, s->bytes);
        text_printf(&l->json, "%s\"%s\": {\"tensors\": %lld, \"parameters\": %lld, \"bytes\": %lld}", n++ ? ", " : "",
                    weight_types[type].name, s->tensors, s->parameters, s->bytes);
    }
    text_printf(&l->lines, "all   %lld tensors, %lld parameters, %lld bytes\n", l->all.tensors, l->all.parameters,
                l->all.bytes);
    text_puts(&l->json, "},\n \"tensors\": [");
    text_puts(&l->json, l->tensors.s ? l->tensors.s : "");
    text_puts(&l->json, "]}\n");
    text_puts(&l->lines, l->errors.s ? l->errors.s : "");
    l->lines.failed |= l->tensors.failed | l->errors.failed;
}

/* ---- a model ---- */

static void list_weights(struct listing *l, const struct model *m)
{
    int id = -1, layer = 0;
    char name[128];
    while (tensor_next(&m->config, &id, &layer)) {
        const struct weight *w = model_weight(m, id, layer);
        const size_t dims[] = { (size_t)w->rows, (size_t)w->cols };
        add_tensor(l, tensor_name(name, sizeof name, id, layer), w->type, base_bytes(w), dims,
                   tensor_specs[id].cols == '1' ? 1 : 2);
    }
}

static void put_shape(struct listing *l, const struct model *m, const char *path)
{
    const struct config *c = &m->config;
    text_printf(&l->lines, "%s: %s, %d layers, hidden %d, feed-forward %d, heads %d of %d, key/value heads %d,\n"
                "vocabulary %d, positions %d, head %s\n", path, c->model_type, c->L, c->C, c->F, c->NH, c->HS, c->NKV,
                c->V, c->max_positions, c->tied ? "tied to the embedding" : "of its own");
    text_puts(&l->json, "{\"model\": ");
    json_put_text(&l->json, path);
    text_puts(&l->json, ",\n \"model_type\": ");
    json_put_text(&l->json, c->model_type);
    text_printf(&l->json, ",\n \"num_hidden_layers\": %d, \"hidden_size\": %d, \"intermediate_size\": %d, "
                "\"num_attention_heads\": %d,\n \"num_key_value_heads\": %d, \"head_dim\": %d, \"vocab_size\": %d, "
                "\"max_position_embeddings\": %d, \"tie_word_embeddings\": %s",
                c->L, c->C, c->F, c->NH, c->NKV, c->HS, c->V, c->max_positions, c->tied ? "true" : "false");
    if (shape_alone(path)) {
        text_puts(&l->lines, "no weights: shapes from the configuration, bytes as if in BF16\n");
        text_puts(&l->json, ",\n \"shapes_only\": true");
    }
    if (m->ignored.s) {
        text_printf(&l->lines, "passed over: %s\n", m->ignored.s);
        text_puts(&l->json, ",\n \"passed_over\": ");
        json_put_string(&l->json, m->ignored.s, m->ignored.n);
    }
}

/* The errors of all types; of weights that are quantised already there is no original to compare with. */
static int list_errors(struct listing *l, const struct model *m, const struct settings *s, struct lora_error *err)
{
    struct quantise how;
    char text[80];
    base_of(&how, m);
    if (how.type || shape_alone(s->common.model)) {
        fail(err, "cannot use the option", "--quant-type, %s", s->common.model);
        return expected(err, "a model with its weights, and those not quantised yet");
    }
    if (base_quantise(&how, quant_types[s->quant_type], &s->common.base, err)) return -1;
    text_printf(&l->errors, "what the linears lose as %s, beside the other types:\n", base_text(text, sizeof text, &how));
    text_puts(&l->json, ",\n \"losses\": {\"quantization\": ");
    base_put(&l->json, &how);
    if (rounding_table(&l->errors, &l->json, m, &how, usable_threads(s->common.threads), err)) return -1;
    text_puts(&l->json, "}");
    return 0;
}

/* As the options would have it loaded. */
static int open_model(struct model **m, const struct settings *s, struct quantise *how, struct lora_error *err)
{
    struct base_settings b = s->common.base;
    if (b.in_4bit > 0) b.quant_type = s->quant_type;
    else if (s->quant_type >= 0) b.double_quant = b.block_size = 0;     /* the table's */
    if (b.quant_type > 1) {
        fail(err, "cannot use the option", "--quant-type int8");
        return expected(err, "nf4 or fp4 with --load-in-4bit");
    }
    if (base_asked(how, &b, err)) return -1;
    if (shape_alone(s->common.model)) return shape_open(m, s->common.model, how, err);
    return model_open(m, s->common.model, err) || base_load(*m, how, &b, usable_threads(s->common.threads), err) ? -1 : 0;
}

static int list_model(struct listing *l, const struct settings *s, struct lora_error *err)
{
    struct model *m = NULL;
    struct quantise how;
    int bad = open_model(&m, s, &how, err);
    if (!bad) {
        put_shape(l, m, s->common.model);
        if (s->quant_type >= 0 && s->common.base.in_4bit <= 0) bad = list_errors(l, m, s, err);
        list_weights(l, m);
    }
    model_close(m);
    return bad ? -1 : 0;
}

/* ---- an adapter: without its model, so only as files ---- */

static int list_adapter_tensors(struct listing *l, const char *path, struct lora_error *err)
{
    struct safetensors s;
    int i;
    if (safetensors_open(&s, path, err)) return -1;
    for (i = 0; i < s.n; i++)
        add_tensor(l, s.tensors[i].name, s.tensors[i].type, s.tensors[i].bytes, s.tensors[i].dims, s.tensors[i].n_dims);
    safetensors_close(&s);
    return 0;
}

static int list_adapter_config(struct listing *l, const char *dir, const char *path, struct lora_error *err)
{
    static const char *const shown[] = { "peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout",
                                         "use_rslora", "target_modules", "rank_pattern", "alpha_pattern" };
    struct json_document d;
    size_t i;
    if (json_read(&d, path, err)) return -1;
    text_printf(&l->lines, "%s\n", dir);
    for (i = 0; i < sizeof shown / sizeof *shown; i++) {
        const struct json *v = json_get(d.root, shown[i]);
        if (!v || v->type == JSON_NULL || (v->type == JSON_OBJECT && !v->n)) continue;
        text_printf(&l->lines, "%s: ", shown[i]);
        json_put(&l->lines, v);
        text_puts(&l->lines, "\n");
    }
    text_puts(&l->json, "{\"adapter\": ");
    json_put_text(&l->json, dir);
    text_puts(&l->json, ",\n \"adapter_config\": ");
    json_put(&l->json, d.root);
    json_free(&d);
    return 0;
}

static int list_adapter(struct listing *l, const char *dir, struct lora_error *err)
{
    char *path[2];
    int bad = adapter_paths(path, dir, err) || list_adapter_config(l, dir, path[0], err) || list_adapter_tensors(l, path[1], err);
    free(path[0]);
    free(path[1]);
    return bad ? -1 : 0;
}

static int inspect(const struct settings *s, struct lora_error *err)
{
    struct listing l;
    int bad;
    memset(&l, 0, sizeof l);
    bad = s->adapter ? list_adapter(&l, s->adapter, err) : list_model(&l, s, err);
    if (!bad) finish(&l);
    bad = bad || text_check(&l.lines, err) || text_check(&l.json, err);
    if (!bad && !(s->json && !strcmp(s->json, "-"))) fwrite(l.lines.s, 1, l.lines.n, stdout);
    if (!bad && s->json) bad = job_write_json(s->json, &l.json, err);
    text_free(&l.lines);
    text_free(&l.json);
    text_free(&l.tensors);
    text_free(&l.errors);
    return bad ? -1 : 0;
}

static int run(void *settings, struct lora_error *err)
{
    const struct settings *s = settings;
    if (!s->common.model == !s->adapter)
        return job_usage_error(&job_inspect, "--model PATH or --adapter DIR, one of them, is needed");
    if (s->adapter && (s->quant_type >= 0 || s->common.base.in_4bit > 0 || s->common.base.in_8bit > 0))
        status("warning: the options of quantisation change nothing with --adapter");
    return inspect(s, err);
}

static const struct settings defaults = { .common = COMMON_DEFAULTS, .quant_type = -1 };

const struct job job_inspect = {
    "inspect", "the tensors of a model or an adapter: shapes, types, bytes, parameters",
    "(--model PATH [--quant-type T] | --adapter DIR) [--json FILE]", options, common_options,
    sizeof defaults, &defaults, run
};
