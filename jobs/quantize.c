/* quantize.c - `lora quantize`: a model in bitsandbytes' form, and what that loses. */
#include "rounding.h"
#include "session.h"
#include "../formats/json.h"

#include <stdio.h>
#include <string.h>

struct settings {
    struct common common;
    const char *out, *json;
    int quant_type, dtype;
};

static const struct option options[] = {
    { "out", "output-dir", OPTION_TEXT, offsetof(struct settings, out), NULL, "DIR", "where the checkpoint goes", 0, 0 },
    { "quant-type", "bnb-4bit-quant-type", OPTION_CHOICE, offsetof(struct settings, quant_type), QUANT_TYPES, NULL,
      "what the linears of the layers become (no default)", 0, 0 },
    { "dtype", NULL, OPTION_CHOICE, offsetof(struct settings, dtype), DTYPES, NULL,
      "type of the other tensors (default: what holds them as they are)", 0, 0 },
    { "json", NULL, OPTION_TEXT, offsetof(struct settings, json), NULL, "FILE",
      "the figures as JSON; - for standard output, in place of the table", 0, 0 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

/* The smallest plain type that holds every tensor that is not quantised as it is. */
static int kept_type(const struct model *m)
{
    int id = -1, layer = 0, type = -1;
    while (tensor_next(&m->config, &id, &layer)) {
        const struct weight *w = model_weight(m, id, layer);
        if (tensor_specs[id].linear) continue;
        if ((w->type != TYPE_BF16 && w->type != TYPE_F16) || (type >= 0 && w->type != type)) return TYPE_F32;
        type = w->type;
    }
    return type;
}

static int refuse_quantised(const struct model *m, struct lora_error *err)
{
    struct quantise own;
    char text[80];
    base_of(&own, m);
    if (!own.type) return 0;
    fail(err, "the model is quantised already", "%s", m->path);
    found(err, "%s", base_text(text, sizeof text, &own));
    return hint(err, "take the model it was made from; `lora merge` without an adapter makes it plain");
}

static int save_beside(const struct model *m, const char *dir, struct lora_error *err)
{
    struct tokenizer *t;
    int bad = session_tokenizer(&t, m, err) || session_save_beside(m, t, dir, err);
    tokenizer_close(t);
    return bad ? -1 : 0;
}

static int each_row(void *ctx, int id, int layer, int row, float *out, struct lora_error *err)
{
    return stop_check(err) ? -1 : model_row(ctx, id, layer, row, out, err);
}

/* Bytes of the linears as they were written. */
static int measure(const char *dir, size_t *linears, size_t *elements, size_t *bytes, struct lora_error *err)
{
    struct model *m;
    if (model_open(&m, dir, err)) return -1;
    *linears = base_linears(m, elements, bytes);
    model_close(m);
    return 0;
}

static void put_summary(struct text *lines, struct text *json, const struct settings *set, const struct quantise *how,
                        size_t linears, size_t elements, size_t bytes)
{
    double bits = 8 * (double)bytes / (double)elements;
    char text[80];
    text_printf(lines, "%zu linears, %zu weights: %s, %zu bytes, %.3f bits a weight\n", linears, elements,
                base_text(text, sizeof text, how), bytes, bits);
    text_puts(json, "{\"model\": ");
    json_put_text(json, set->common.model);
    text_puts(json, ",\n \"out\": ");
    json_put_text(json, set->out);
    text_puts(json, ",\n \"quantization\": ");
    base_put(json, how);
    text_printf(json, ",\n \"linears\": %zu, \"weights\": %zu, \"bytes\": %zu, \"bits_per_weight\": ", linears, elements, bytes);
    json_put_number(json, bits, 9);
}

static int write_model(const struct settings *set, struct model *m, const struct quantise *how, const char *dir,
                       struct lora_error *err)
{
    int dtype = set->dtype < 0 ? kept_type(m) : dtypes[set->dtype], threads = usable_threads(set->common.threads);
    char text[80];
    status("quantising %s: %s; the other tensors in %s", m->path, base_text(text, sizeof text, how), weight_types[dtype].name);
    return model_write_quantised(&m->config, dir, dtype, how, each_row, m, threads, err)
           || save_beside(m, dir, err) ? -1 : 0;
}

static int quantise(const struct settings *set, struct model *m, const struct quantise *how, struct output *o,
                    struct text *lines, struct text *json, struct lora_error *err)
{
    size_t linears, elements, bytes;
    double start = seconds_now();
    stop_install(NULL);
    if (write_model(set, m, how, o->temporary, err) || measure(o->temporary, &linears, &elements, &bytes, err)) return -1;
    put_summary(lines, json, set, how, linears, elements, bytes);
    if (rounding_table(lines, json, m, how, usable_threads(set->common.threads), err)) return -1;
    text_puts(json, "}\n");
    if (text_check(json, err) || output_commit(o, err)) return -1;
    status("%s: done in %.1f s", set->out, seconds_now() - start);
    if (!set->json || strcmp(set->json, "-")) fwrite(lines->s, 1, lines->n, stdout);
    return set->json ? job_write_json(set->json, json, err) : 0;
}

static int open_all(const struct settings *set, struct lora_error *err)
{
    struct quantise how;
    struct model *m = NULL;
    struct output o = { NULL, NULL };
    struct text lines = { 0 }, json = { 0 };
    int bad = base_quantise(&how, quant_types[set->quant_type], &set->common.base, err) || model_open(&m, set->common.model, err)
              || refuse_quantised(m, err) || output_begin(&o, set->out, err)
              || quantise(set, m, &how, &o, &lines, &json, err);
    output_end(&o);
    text_free(&lines);
    text_free(&json);
    model_close(m);
    return bad ? -1 : 0;
}

static int run(void *settings, struct lora_error *err)
{
    const struct settings *set = settings;
    if (!set->common.model || !set->out || set->quant_type < 0)
        return job_usage_error(&job_quantize, "--model, --out and --quant-type are needed");
    if (set->common.base.in_4bit >= 0 || set->common.base.in_8bit >= 0)
        return job_usage_error(&job_quantize, "--load-in-4bit and --load-in-8bit: --quant-type says what is written");
    return open_all(set, err);
}

static const struct settings defaults = { .common = COMMON_DEFAULTS, .quant_type = -1, .dtype = -1 };

const struct job job_quantize = {
    "quantize", "writes the model in 4 or 8 bits, as bitsandbytes has it", "--model M --out DIR --quant-type nf4|fp4|int8 [options]",
    options, common_options, sizeof defaults, &defaults, run
};
