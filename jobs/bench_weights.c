/* bench_weights.c - weights of any type for `lora bench`: numbers of no meaning but of ordinary size. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* "nf4-dq", case aside; 0 when there is no such type. */
static int read_type(struct bench_type *t, const char *word, size_t length)
{
    int i;
    memset(t, 0, sizeof *t);
    if (length >= sizeof t->name) return 0;
    memcpy(t->name, word, length);
    t->double_quant = length > 3 && !strcasecmp(t->name + length - 3, "-dq");
    if (t->double_quant) length -= 3;
    for (i = 0; i < TYPE_COUNT; i++) {
        const struct weight_type_info *info = &weight_types[i];
        if (!info->decode || strlen(info->name) != length || strncasecmp(info->name, word, length)) continue;
        t->type = i;
        return !t->double_quant || i == TYPE_NF4 || i == TYPE_FP4;
    }
    return 0;
}

int bench_types_read(struct bench *b)
{
    const char *p = b->dtype ? b->dtype : "bf16";
    for (b->n_types = 0; ; p++) {
        size_t length = strcspn(p, ",");
        if (b->n_types == MAX_TYPES) return job_usage_error(&job_bench, "--dtype: more than %d types", MAX_TYPES);
        if (!read_type(&b->types[b->n_types++], p, length))
            return job_usage_error(&job_bench, "--dtype: no type of weights is called %.*s", (int)length, p);
        p += length;
        if (!*p) return 0;
    }
}

/* Number i of a matrix, or of a norm's weights, which lie round 1. */
static float number(size_t i, int cols) { return 1e-5f * (float)(int)(random_bits(1, i) % 7001) - 0.035f + (cols == 1); }

static int number_row(void *ctx, int row, float *out, struct lora_error *err)
{
    int cols = *(const int *)ctx, i;
    (void)err;
    for (i = 0; i < cols; i++) out[i] = number((size_t)row * (size_t)cols + (size_t)i, cols);
    return 0;
}

static void fill_bytes(unsigned char *p, int type, size_t n, int cols)
{
    size_t i, bytes = (size_t)weight_types[type].bytes;
    if (weight_types[type].block > 1) {
        /* Whichever two bytes a block has its scale in: 0x1010 to 0x1717 are halves of about 2^-10. */
        for (i = 0; i < n / (size_t)weight_types[type].block * bytes; i++) p[i] = (unsigned char)(0x10 + random_bits(2, i) % 8);
        return;
    }
    for (i = 0; i < n; i++, p += bytes) {
        float f = number(i, cols);
        uint16_t h = type == TYPE_F16 ? f32_to_f16(f) : f32_to_bf16(f);
        if (type == TYPE_F32) memcpy(p, &f, 4);
        else memcpy(p, &h, 2);
    }
}

static int is_quantised(const struct bench_type *t) { return t->type == TYPE_NF4 || t->type == TYPE_FP4 || t->type == TYPE_INT8; }

int bench_weight(struct weight *w, const struct bench *b, const struct bench_type *t, int rows, int cols, struct lora_error *err)
{
    const struct quantise how = { t->type, b->block, t->double_quant };
    void *data;
    size_t bytes;
    memset(w, 0, sizeof *w);
    if (is_quantised(t)) return weight_quantise(w, &how, rows, cols, number_row, &cols, b->threads, "bench", err);
    if (type_bytes(&bytes, t->type, (size_t)rows * (size_t)cols)) {
        fail(err, "bench", "--dtype %s", t->name);
        return expected(err, "matrices of whole blocks of %d", weight_types[t->type].block);
    }
    if (!(data = new_array(bytes, 1, err))) return -1;
    fill_bytes(data, t->type, (size_t)rows * (size_t)cols, cols);
    w->type = t->type;
    w->rows = rows;
    w->cols = cols;
    w->data = data;
    return 0;
}

void bench_weight_free(struct weight *w)
{
    if (!w->q) free((void *)w->data);
    weight_free(w);
}

/* What a model has its vectors, and its embedding and head, in. bitsandbytes leaves these as they are. */
static struct bench_type type_of_tensor(const struct bench_type *t, int id, int cols)
{
    static const struct bench_type f32 = { "f32", TYPE_F32, 0 }, bf16 = { "bf16", TYPE_BF16, 0 };
    return cols == 1 ? f32 : is_quantised(t) && (id == T_EMBED || id == T_HEAD) ? bf16 : *t;
}

int bench_model(struct model **out, const struct bench *b, const struct bench_type *t, struct lora_error *err)
{
    const struct config *c = &b->shape;
    struct model *m = new_array(1, sizeof *m, err);
    int id = -1, layer = 0, bad = 0;
    *out = m;
    if (!m || !(m->weights = new_array((size_t)c->L * T_COUNT, sizeof *m->weights, err))) return -1;
    m->config = *c;
    while (!bad && tensor_next(c, &id, &layer)) {
        int cols = tensor_cols(c, id);
        struct bench_type type = type_of_tensor(t, id, cols);
        bad = bench_weight(&m->weights[layer * T_COUNT + id], b, &type, tensor_rows(c, id), cols, err);
    }
    return bad;
}

void bench_model_free(struct model *m)
{
    size_t i;
    for (i = 0; m && m->weights && i < (size_t)m->config.L * T_COUNT; i++) bench_weight_free(&m->weights[i]);
    model_close(m);
}
