/* base.c - the quantised base: what the options and the adapter's run.json ask for, and the loading of it. */
#include "session.h"
#include "../formats/json.h"

#include <stdio.h>
#include <string.h>

/* ---- in words ---- */

const int dtypes[] = { TYPE_F32, TYPE_BF16, TYPE_F16 }, quant_types[] = { TYPE_NF4, TYPE_FP4, TYPE_INT8 };
static const char *const quant_names[] = { "nf4", "fp4", "int8" };
enum { KINDS = sizeof quant_types / sizeof *quant_types };

static const char *kind_name(int type)
{
    int i;
    for (i = 0; i < KINDS; i++) if (quant_types[i] == type) return quant_names[i];
    return "none";
}

char *base_text(char *text, size_t n, const struct quantise *how)
{
    if (!how->type) snprintf(text, n, "not quantised");
    else if (how->type == TYPE_INT8) snprintf(text, n, "int8, a scale to each row");
    else snprintf(text, n, "%s in blocks of %d, scales in %s", kind_name(how->type), how->block,
                  how->double_quant ? "8 bits" : "f32");
    return text;
}

void base_put(struct text *t, const struct quantise *how)
{
    if (!how->type) text_puts(t, "null");
    else if (how->type == TYPE_INT8) text_puts(t, "{\"quant_type\": \"int8\"}");
    else text_printf(t, "{\"quant_type\": \"%s\", \"block_size\": %d, \"double_quant\": %s}", kind_name(how->type), how->block,
                     how->double_quant ? "true" : "false");
}

/* ---- what is asked for ---- */

static int contradiction(struct lora_error *err, const char *options, const char *why)
{
    fail(err, "cannot use the option", "%s", options);
    return expected(err, "%s", why);
}

int base_quantise(struct quantise *how, int type, const struct base_settings *b, struct lora_error *err)
{
    memset(how, 0, sizeof *how);
    if (b->in_4bit > 0 && b->in_8bit > 0)
        return contradiction(err, "--load-in-4bit, --load-in-8bit", "one of them");
    if (type == TYPE_INT8 && (b->block_size || b->double_quant > 0))
        return contradiction(err, b->block_size ? "--block-size" : "--double-quant", "a 4-bit type: int8 has a scale to each row");
    how->type = type;
    how->block = type == TYPE_INT8 ? 0 : b->block_size ? b->block_size : 64;
    how->double_quant = b->double_quant > 0;
    if (!quantise_check(how, NULL)) return 0;
    fail(err, "wrong value", "--block-size");
    expected(err, "a power of two from 32 to 4096");
    return found(err, "%d", how->block);
}

int base_asked(struct quantise *how, const struct base_settings *b, struct lora_error *err)
{
    memset(how, 0, sizeof *how);
    if (b->in_4bit > 0) return base_quantise(how, quant_types[b->quant_type < 0 ? 0 : b->quant_type], b, err);
    if (b->quant_type >= 0 || b->double_quant > 0 || b->block_size)
        return contradiction(err, b->quant_type >= 0 ? "--quant-type" : b->block_size ? "--block-size" : "--double-quant",
                             "--load-in-4bit with it");
    return b->in_8bit > 0 ? base_quantise(how, TYPE_INT8, b, err) : 0;
}

/* ---- what a model has ---- */

void base_of(struct quantise *how, const struct model *m)
{
    int id = -1, layer = 0;
    memset(how, 0, sizeof *how);
    while (!how->type && tensor_next(&m->config, &id, &layer)) {    /* some may have been left plain */
        const struct weight *w = model_weight(m, id, layer);
        if (!tensor_specs[id].linear || !w->q) continue;
        how->type = w->type;
        how->block = w->q->block;
        how->double_quant = w->type != TYPE_INT8 && !w->q->absmax;
    }
}

int base_same(const struct quantise *a, const struct quantise *b)
{
    return a->type == b->type && (a->type == TYPE_INT8 || !a->type || (a->block == b->block && a->double_quant == b->double_quant));
}

/* ---- an adapter's run.json: "base_quantization" ---- */

int base_take(struct quantise *how, const struct json *root, const char *path, struct lora_error *err)
{
    const struct json *base = json_get(root, "base_quantization");
    const char *kind = NULL;
    int i;
    memset(how, 0, sizeof *how);
    if (!base || base->type == JSON_NULL) return 0;
    how->block = 64;
    if (base->type != JSON_OBJECT || json_get_string(base, "quant_type", &kind, path, err)
        || json_get_int(base, "block_size", &how->block, path, err)
        || json_get_bool(base, "double_quant", &how->double_quant, path, err)) return -1;
    for (i = 0; kind && i < KINDS; i++) if (!strcmp(quant_names[i], kind)) how->type = quant_types[i];
    if (how->type && !quantise_check(how, NULL)) return 0;
    fail(err, "cannot use a setting", "%s, \"base_quantization\"", path);
    return expected(err, "nf4, fp4 or int8 and a block size");
}

/* ---- loading ---- */

/* A checkpoint that is quantised already is what it is. Options that ask for something else are wrong; an adapter
 * that was trained over something else is warned of when it is read. */
static int check_own(const struct model *m, const struct quantise *own, const struct quantise *asked,
                     const struct base_settings *b, struct lora_error *err)
{
    char text[2][80];
    struct quantise want = *asked;
    base_text(text[0], sizeof text[0], own);
    if ((b->in_4bit < 0 && b->in_8bit < 0) || !asked->type) return 0;  /* not asked for; or false: nothing is to be quantised, nothing is */
    if (b->quant_type < 0 && asked->type != TYPE_INT8 && own->type != TYPE_INT8) want.type = own->type;
    if (!b->block_size && own->block) want.block = own->block;
    if (b->double_quant < 0) want.double_quant = own->double_quant;
    if (base_same(own, &want)) return 0;
    fail(err, "cannot use the option", "--load-in-%s, %s", asked->type == TYPE_INT8 ? "8bit" : "4bit", m->path);
    expected(err, "a base that is not quantised, or as %s", base_text(text[1], sizeof text[1], &want));
    found(err, "%s", text[0]);
    return hint(err, "leave the option out, or name the model that this one was quantised from");
}

size_t base_bytes(const struct weight *w)
{
    size_t bytes;
    return weight_bytes(&bytes, w) ? 0 : bytes;
}

size_t base_linears(const struct model *m, size_t *elements, size_t *bytes)
{
    size_t n = 0;
    int id = -1, layer = 0;
    *elements = *bytes = 0;
    while (tensor_next(&m->config, &id, &layer)) {
        const struct weight *w = model_weight(m, id, layer);
        if (!tensor_specs[id].linear) continue;
        n++;
        *elements += (size_t)w->rows * (size_t)w->cols;
        *bytes += base_bytes(w);
    }
    return n;
}

size_t base_heap(const struct model *m)
{
    size_t bytes = 0;
    int id = -1, layer = 0;
    while (tensor_next(&m->config, &id, &layer)) {
        const struct weight *w = model_weight(m, id, layer);
        if (w->q) bytes += w->q->heap;
    }
    return bytes;
}

int base_load(struct model *m, const struct quantise *asked, const struct base_settings *b, int threads, struct lora_error *err)
{
    struct quantise own;
    size_t elements, bytes, n;
    double start = seconds_now();
    char text[80];
    base_of(&own, m);
    if (own.type) return check_own(m, &own, asked, b, err);
    if (!asked->type) return 0;
    n = base_linears(m, &elements, &bytes);
    status("quantising %zu linears: %s", n, base_text(text, sizeof text, asked));
    if (model_quantise(m, asked, threads, err)) return -1;
    base_linears(m, &elements, &bytes);
    status("quantised: %.1f MB, %.3f bits a weight, in %.1f s", (double)bytes / 1e6, 8 * (double)bytes / (double)elements,
           seconds_now() - start);
    return 0;
}
