/* shape.c - a model's shape without its weights, from config.json alone. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

static int is_json(const char *path)
{
    size_t n = strlen(path);
    return n > 5 && !strcmp(path + n - 5, ".json");
}

static int has(const char *directory, const char *name) { return file_in(directory, name, NULL) > 0; }

int shape_alone(const char *path)
{
    return is_json(path) || (has(path, "config.json") && !has(path, "model.safetensors")
                             && !has(path, "model.safetensors.index.json"));
}

/* How its numbers would be made: sizes, and arrays of which only so much is said that they would be there. */
static int shape_scales(struct weight *w, const struct quantise *how, struct lora_error *err)
{
    static const float floats[1];
    static const unsigned char bytes[1];
    size_t n = (size_t)w->rows * (size_t)w->cols, all;
    struct quantised *q = new_array(1, sizeof *q, err);
    if (!(w->q = q)) return -1;
    q->block = how->type == TYPE_INT8 ? 0 : how->block;
    q->scales = how->type == TYPE_INT8 ? (size_t)w->rows : block_count(n, how->block);
    q->code = how->type == TYPE_INT8 ? NULL : floats;
    q->absmax = how->double_quant ? NULL : floats;
    if (how->double_quant) {
        q->codes = bytes;
        q->map = q->nested = floats;
        q->nested_block = NESTED_BLOCK;
    }
    q->heap = weight_bytes(&all, w) ? 0 : all;
    return 0;
}

/* The table of tensors, with no data: BF16, as the hub has most; the linears of the layers as they would be
 * quantised. */
static int shape_weights(struct model *m, const struct quantise *base, struct lora_error *err)
{
    int id = -1, layer = 0;
    if (!(m->weights = new_array((size_t)m->config.L * T_COUNT, sizeof *m->weights, err))) return -1;
    while (tensor_next(&m->config, &id, &layer)) {
        struct weight *w = &m->weights[layer * T_COUNT + id];
        w->type = base && base->type && tensor_specs[id].linear ? base->type : TYPE_BF16;
        w->rows = tensor_rows(&m->config, id);
        w->cols = tensor_cols(&m->config, id);
        if (w->type != TYPE_BF16 && shape_scales(w, base, err)) return -1;
    }
    return 0;
}

int shape_open(struct model **out, const char *path, const struct quantise *base, struct lora_error *err)
{
    struct model *m = new_array(1, sizeof *m, err);
    char *config = is_json(path) ? new_string(path, err) : path_join(path, "config.json", err);
    int bad = !m || !config || config_read(&m->config, config, &m->ignored, err) || !(m->path = new_string(path, err))
              || shape_weights(m, base, err);
    free(config);
    if (bad) model_close(m);
    else *out = m;
    return bad ? -1 : 0;
}
