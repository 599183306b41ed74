/* model_quantised.c - models with weights of bitsandbytes: read as Transformers saves them, made of other
 * weights, written.
 *
 * Beside the codes of a linear, X.weight, lie in NF4 and FP4
 *     X.weight.absmax             F32 [blocks], or U8 where it is quantised again
 *     X.weight.quant_map          F32 [16]: the table, which the type says too
 *     X.weight.nested_absmax, X.weight.nested_quant_map      F32 [blocks / 256], [256]: of U8 scales
 *     X.weight.quant_state.bitsandbytes__nf4 (or __fp4)      JSON text: block sizes, shape, offset
 * and in INT8 X.SCB, F32 [rows], and X.weight_format, a byte. Any of them may lie in another shard. */
#include "model_parts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "formats/gguf.h"
#include "formats/json.h"

enum part { CODES = -1, ABSMAX, QUANT_MAP, NESTED_ABSMAX, NESTED_MAP, STATE_NF4, STATE_FP4, SCB, FORMAT, PARTS };

/* What takes the place of ".weight" in X.weight; CODES are X.weight itself. */
static const char *const suffixes[PARTS] = {
    ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map",
    ".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4", ".SCB", ".weight_format",
};
#define WEIGHT ".weight"

static char *part_name(char name[256], const char *weight, int part)
{
    snprintf(name, 256, "%.*s%s", (int)(strlen(weight) - strlen(WEIGHT)), weight, part == CODES ? WEIGHT : suffixes[part]);
    return name;
}

/* A part of X.weight in whatever shard it lies, or NULL. */
static const struct st_tensor *find_part(const struct model *m, const char *weight, int part)
{
    const struct st_tensor *t = NULL;
    char name[256];
    int i;
    part_name(name, weight, part);
    for (i = 0; i < m->n_shards && !t; i++) t = safetensors_find(&m->shards[i], name);
    return t;
}

/* ---- reading ---- */

int quantised_type(const struct model *m, int id, const struct st_tensor *t)
{
    if (!tensor_specs[id].linear && (id != T_HEAD || m->config.tied)) return -1;
    if (t->type == TYPE_I8) return TYPE_INT8;
    if (find_part(m, t->name, STATE_NF4)) return TYPE_NF4;
    return find_part(m, t->name, STATE_FP4) ? TYPE_FP4 : -1;
}

int quantised_part(const struct model *m, const char *name)
{
    size_t n = strlen(name);
    int part, layer, id, type;
    for (part = 0; part < PARTS; part++) {
        size_t k = strlen(suffixes[part]);
        char weight[256];
        const struct st_tensor *t;
        if (n <= k || n + sizeof WEIGHT > sizeof weight || strcmp(name + n - k, suffixes[part])) continue;
        snprintf(weight, sizeof weight, "%.*s" WEIGHT, (int)(n - k), name);
        id = model_find_tensor(&m->config, weight, 0, &layer);
        t = id < 0 ? NULL : find_part(m, weight, CODES);
        type = t ? quantised_type(m, id, t) : -1;
        if (part >= SCB) return type == TYPE_INT8;
        if (part == STATE_NF4 || part == STATE_FP4) return type == (part == STATE_NF4 ? TYPE_NF4 : TYPE_FP4);
        return type == TYPE_NF4 || type == TYPE_FP4;
    }
    return 0;
}

/* A weight being read. */
struct reading {
    const struct model *m;
    const char *file, *weight;      /* for errors, and the name X.weight */
    size_t copy;                    /* floats that lie at odd addresses, in bytes: they are copied */
    struct lora_error *err;
};

static int bad_part(const struct reading *r, int part)
{
    char name[256];
    return fail(r->err, "bad quantised weight", "%s: %s", r->file, part_name(name, r->weight, part));
}

/* One of the parts, of this type and count. */
static const struct st_tensor *get_part(struct reading *r, int part, int type, size_t count)
{
    const struct st_tensor *t = find_part(r->m, r->weight, part);
    char name[256];
    if (!t) {
        fail(r->err, "missing tensor", "%s: %s", r->file, part_name(name, r->weight, part));
        expected(r->err, "%zu values of %s beside %s", count, weight_types[type].name, r->weight);
        found(r->err, "nothing of that name");
        return NULL;
    }
    if (t->type != type || t->count != count) {
        bad_part(r, part);
        expected(r->err, "%zu values of %s", count, weight_types[type].name);
        found(r->err, "%zu of %s", t->count, weight_types[t->type].name);
        return NULL;
    }
    if (type == TYPE_F32 && (uintptr_t)t->data % sizeof(float)) r->copy += t->bytes;
    return t;
}

/* The floats of a part, where they lie or copied to *spare. */
static const float *part_floats(const struct st_tensor *t, unsigned char **spare)
{
    if ((uintptr_t)t->data % sizeof(float) == 0) return (const float *)(const void *)t->data;
    memcpy(*spare, t->data, t->bytes);
    *spare += t->bytes;
    return (const float *)(void *)(*spare - t->bytes);
}

/* The struct with room for the copies. */
static struct quantised *new_quantised(const struct reading *r, unsigned char **spare)
{
    struct quantised *q = new_array(1, sizeof *q + r->copy, r->err);
    if (q) {
        q->heap = r->copy;
        *spare = (unsigned char *)(q + 1);
    }
    return q;
}

/* The numbers of the JSON text. */
struct state { int block, nested_block; double offset; };

static int check_shape(const struct reading *r, const struct json *shape, int part, int rows, int cols)
{
    const struct json *a = shape && shape->type == JSON_ARRAY && shape->n == 2 ? shape->child : NULL;
    if (a && a->type == JSON_NUMBER && a->next->type == JSON_NUMBER && a->number == rows && a->next->number == cols) return 0;
    bad_part(r, part);
    expected(r->err, "shape [%d, %d]", rows, cols);
    return a ? found(r->err, "[%g, %g]", a->number, a->next->number) : -1;
}

static int read_numbers(const struct reading *r, struct state *s, const struct json *o, int part, const char *place,
                        int nested)
{
    const char *kind = "", *wanted = part == STATE_NF4 ? "nf4" : "fp4";
    struct quantise how = { TYPE_NF4, 0, 0 };
    if (json_get_string(o, "quant_type", &kind, place, r->err) || json_get_int(o, "blocksize", &s->block, place, r->err)
        || (nested && (json_get_int(o, "nested_blocksize", &s->nested_block, place, r->err)
                       || json_get_number(o, "nested_offset", &s->offset, place, r->err)))) return -1;
    if (strcmp(kind, wanted)) {
        bad_part(r, part);
        expected(r->err, "quant_type %s", wanted);
        return found(r->err, "%s", *kind ? kind : "nothing");
    }
    how.block = s->block;
    if (!quantise_check(&how, NULL) && (!nested || (s->nested_block > 0 && isfinite(s->offset)))) return 0;
    bad_part(r, part);
    expected(r->err, nested ? "a blocksize that is a power of two from 32 to %d, nested_blocksize and nested_offset"
                            : "a blocksize that is a power of two from 32 to %d", BLOCK_MOST);
    return nested ? found(r->err, "%d, %d, %g", s->block, s->nested_block, s->offset) : found(r->err, "%d", s->block);
}

static int read_state(const struct reading *r, struct state *s, int type, int rows, int cols, int nested)
{
    char name[256], place[768];
    struct json_document d;
    int bad, part = type == TYPE_NF4 ? STATE_NF4 : STATE_FP4;
    const struct st_tensor *t = find_part(r->m, r->weight, part);
    *s = (struct state){ .offset = NAN };
    snprintf(place, sizeof place, "%.400s: %s", r->file, part_name(name, r->weight, part));
    if (json_parse(&d, (const char *)t->data, t->bytes, place, r->err)) return -1;
    bad = read_numbers(r, s, d.root, part, place, nested) || check_shape(r, json_get(d.root, "shape"), part, rows, cols);
    json_free(&d);
    return bad ? -1 : 0;
}

/* bitsandbytes decodes by the type, not by this: a table that is none of ours would be another format.
 * Older versions wrote FP4's rounded to four digits. */
static int check_map(struct reading *r, const float *code)
{
    const struct st_tensor *t = get_part(r, QUANT_MAP, TYPE_F32, 16);
    int i;
    if (!t) return -1;
    for (i = 0; i < 16; i++) {
        float v;
        memcpy(&v, t->data + 4 * i, sizeof v);
        if (fabsf(v - code[i]) <= 1e-4f) continue;
        bad_part(r, QUANT_MAP);
        expected(r->err, "%g for code %d", code[i], i);
        return found(r->err, "%g", v);
    }
    return 0;
}

/* Bytes are bytes: bnb_4bit_quant_storage may give them any type. */
static int check_codes(const struct reading *r, const struct st_tensor *t, size_t bytes)
{
    if (t->bytes == bytes) return 0;
    bad_part(r, CODES);
    expected(r->err, "%zu bytes of codes", bytes);
    return found(r->err, "%zu", t->bytes);
}

static int take_4bit(struct reading *r, struct weight *w, const struct st_tensor *codes)
{
    size_t count, scales;
    const struct st_tensor *absmax, *nested = NULL, *map = NULL;
    const float *code = w->type == TYPE_NF4 ? nf4_values : fp4_values;
    struct quantised *q;
    struct state s;
    unsigned char *spare;
    int twice;
    absmax = find_part(r->m, r->weight, ABSMAX);
    twice = absmax && absmax->type == TYPE_U8;
    if (size_mul(&count, (size_t)w->rows, (size_t)w->cols) || check_codes(r, codes, count / 2 + count % 2)
        || read_state(r, &s, w->type, w->rows, w->cols, twice)) return -1;
    scales = block_count(count, s.block);
    if (!(absmax = get_part(r, ABSMAX, twice ? TYPE_U8 : TYPE_F32, scales))
        || (twice && (!(nested = get_part(r, NESTED_ABSMAX, TYPE_F32, block_count(scales, s.nested_block)))
                      || !(map = get_part(r, NESTED_MAP, TYPE_F32, 256))))
        || check_map(r, code) || !(q = new_quantised(r, &spare))) return -1;
    q->block = s.block;
    q->scales = scales;
    q->code = code;
    if (twice) {
        q->codes = absmax->data;
        q->map = part_floats(map, &spare);
        q->nested = part_floats(nested, &spare);
        q->nested_block = s.nested_block;
        q->offset = (float)s.offset;
    } else {
        q->absmax = part_floats(absmax, &spare);
    }
    w->q = q;
    return 0;
}

static int take_int8(struct reading *r, struct weight *w, const struct st_tensor *codes)
{
    const struct st_tensor *scb, *format = find_part(r->m, r->weight, FORMAT);
    struct quantised *q;
    unsigned char *spare;
    if (format && (format->bytes != 1 || format->data[0])) {
        bad_part(r, FORMAT);
        expected(r->err, "0, rows in order");
        return found(r->err, "%d", format->bytes ? format->data[0] : -1);
    }
    if (codes->n_dims != 2 || codes->dims[0] != (size_t)w->rows || codes->dims[1] != (size_t)w->cols) {
        bad_part(r, CODES);
        expected(r->err, "[%d, %d]", w->rows, w->cols);
        return found(r->err, "%d dimensions, the first %zu", codes->n_dims, codes->n_dims ? codes->dims[0] : 0);
    }
    if (!(scb = get_part(r, SCB, TYPE_F32, (size_t)w->rows)) || !(q = new_quantised(r, &spare))) return -1;
    q->scales = (size_t)w->rows;
    q->absmax = part_floats(scb, &spare);
    w->q = q;
    return 0;
}

int quantised_take(const struct model *m, struct weight *w, int id, int type, const struct st_tensor *t, const char *file,
                   struct lora_error *err)
{
    struct reading r = { .m = m, .file = file, .weight = t->name, .err = err };
    struct weight new = { .type = type, .rows = tensor_rows(&m->config, id), .cols = tensor_cols(&m->config, id), .data = t->data };
    if (type == TYPE_INT8 ? take_int8(&r, &new, t) : take_4bit(&r, &new, t)) return -1;
    *w = new;
    return 0;
}

/* ---- making ---- */

/* The pages of the mapped file that held a weight may leave memory. */
static void forget(const struct model *m, const struct weight *w)
{
    size_t bytes;
    int i;
    if (type_bytes(&bytes, w->type, (size_t)w->rows * (size_t)w->cols)) return;
    if (m->gguf) file_forget(&m->gguf->map, w->data, bytes);
    for (i = 0; i < m->n_shards; i++) file_forget(&m->shards[i].map, w->data, bytes);
}

int model_quantise(struct model *m, const struct quantise *how, int threads, struct lora_error *err)
{
    int id = -1, layer = 0;
    char name[128];
    while (tensor_next(&m->config, &id, &layer)) {
        struct weight *w = model_slot(m, id, layer), made;
        if (!tensor_specs[id].linear) continue;
        tensor_name(name, sizeof name, id, layer);
        if (w->q) {
            fail(err, "cannot quantise", "%s: %s", m->path, name);
            expected(err, "a model that is not quantised by bitsandbytes");
            return found(err, "%s", weight_types[w->type].name);
        }
        if (weight_quantise(&made, how, w->rows, w->cols, weight_row, w, threads, name, err)) return -1;
        forget(m, w);
        *w = made;
    }
    model_hash(m);
    return 0;
}

/* ---- writing ---- */

struct piece {
    int part;
    int type, n_dims;
    size_t dims[2];
    const void *data;           /* NULL as long as only sizes are asked for */
};

/* Each is of floats or of bytes. */
static size_t piece_bytes(const struct piece *p)
{
    return p->dims[0] * (p->n_dims == 2 ? p->dims[1] : 1) * (p->type == TYPE_F32 ? sizeof(float) : 1);
}

static void add_piece(struct piece *pieces, int *n, int part, int type, size_t rows, size_t cols, const void *data)
{
    pieces[(*n)++] = (struct piece){ part, type, cols ? 2 : 1, { rows, cols }, data };
}

/* Floats first: the group begins at a multiple of 8. plain_map: FP4's table without a minus zero, as in
 * files of bitsandbytes. The state text has to be written by the caller. Returns the number of pieces. */
static int list_pieces(struct piece pieces[8], const struct quantise *how, int rows, int cols, const struct weight *w,
                       const float *plain_map)
{
    const struct quantised *q = w ? w->q : NULL;
    size_t count = (size_t)rows * (size_t)cols, scales = how->type == TYPE_INT8 ? (size_t)rows : block_count(count, how->block);
    const void *data = w ? w->data : NULL, *absmax = !q ? NULL : q->absmax ? (const void *)q->absmax : (const void *)q->codes;
    int n = 0;
    if (how->type == TYPE_INT8) {
        add_piece(pieces, &n, SCB, TYPE_F32, scales, 0, absmax);
        add_piece(pieces, &n, CODES, TYPE_I8, (size_t)rows, (size_t)cols, data);
        return n;
    }
    if (how->double_quant) {
        add_piece(pieces, &n, NESTED_ABSMAX, TYPE_F32, block_count(scales, NESTED_BLOCK), 0, q ? q->nested : NULL);
        add_piece(pieces, &n, NESTED_MAP, TYPE_F32, 256, 0, q ? q->map : NULL);
    } else {
        add_piece(pieces, &n, ABSMAX, TYPE_F32, scales, 0, absmax);
    }
    add_piece(pieces, &n, QUANT_MAP, TYPE_F32, 16, 0, plain_map);
    add_piece(pieces, &n, CODES, TYPE_U8, count / 2 + count % 2, 1, data);
    if (how->double_quant) add_piece(pieces, &n, ABSMAX, TYPE_U8, scales, 0, absmax);
    return n;
}

/* The JSON text, padded with spaces: its length is promised before the offset is known, and the whole
 * group takes a multiple of 8 bytes, so that the floats of the next are aligned. */
static void state_text(struct text *t, const struct quantise *how, int rows, int cols, int dtype, float offset)
{
    enum { OFFSET_MOST = 32 };
    struct piece pieces[8];
    size_t total = 0, length;
    int i, n = list_pieces(pieces, how, rows, cols, NULL, NULL);
    for (i = 0; i < n; i++) total += piece_bytes(&pieces[i]);
    text_printf(t, "{\"quant_type\": \"%s\", \"blocksize\": %d, \"dtype\": \"%s\", \"shape\": [%d, %d]",
                how->type == TYPE_NF4 ? "nf4" : "fp4", how->block, config_dtype_name(dtype), rows, cols);
    if (how->double_quant)
        text_printf(t, ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", \"nested_offset\": ", NESTED_BLOCK);
    length = t->n + OFFSET_MOST;
    length += (8 - (total + length) % 8) % 8;
    if (how->double_quant) json_put_number(t, (double)offset, 0);
    text_puts(t, "}");
    while (!t->failed && t->n < length) text_puts(t, " ");
}

static int add_name(struct st_writer *f, const char *weight, int part, int type, const size_t *dims, int n_dims,
                    struct lora_error *err)
{
    char name[256];
    return st_writer_add(f, part_name(name, weight, part), type, dims, n_dims, err);
}

int quantised_add(struct st_writer *f, const char *name, const struct quantise *how, int rows, int cols, int dtype,
                  struct lora_error *err)
{
    struct piece pieces[8];
    struct text state = { NULL, 0, 0, 0 };
    int i, bad = 0, n = list_pieces(pieces, how, rows, cols, NULL, NULL);
    for (i = 0; i < n && !bad; i++) bad = add_name(f, name, pieces[i].part, pieces[i].type, pieces[i].dims, pieces[i].n_dims, err);
    if (how->type == TYPE_INT8 || bad) return bad;
    state_text(&state, how, rows, cols, dtype, 0);
    bad = text_check(&state, err)
          || add_name(f, name, how->type == TYPE_NF4 ? STATE_NF4 : STATE_FP4, TYPE_U8, &state.n, 1, err);
    text_free(&state);
    return bad ? -1 : 0;
}

int quantised_put(struct st_writer *f, const struct weight *w, int dtype, struct lora_error *err)
{
    const struct quantise how = { w->type, w->q->block, w->type != TYPE_INT8 && !w->q->absmax };
    struct piece pieces[8];
    struct text state = { NULL, 0, 0, 0 };
    float map[16];
    int i, n, bad = 0;
    for (i = 0; w->q->code && i < 16; i++) map[i] = w->q->code[i] + 0.0f;
    n = list_pieces(pieces, &how, w->rows, w->cols, w, map);
    for (i = 0; i < n && !bad; i++) bad = st_writer_put(f, pieces[i].data, piece_bytes(&pieces[i]), err);
    if (bad || w->type == TYPE_INT8) return bad;
    state_text(&state, &how, w->rows, w->cols, dtype, w->q->offset);
    bad = text_check(&state, err) || st_writer_put(f, state.s, state.n, err);
    text_free(&state);
    return bad ? -1 : 0;
}

int quantised_add_format(struct st_writer *f, const char *name, struct lora_error *err)
{
    return add_name(f, name, FORMAT, TYPE_U8, NULL, 0, err);
}

int quantised_put_format(struct st_writer *f, struct lora_error *err)
{
    const unsigned char rows_in_order = 0;
    return st_writer_put(f, &rows_in_order, 1, err);
}
