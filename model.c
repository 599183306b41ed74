/* model.c - see model.h: the table of tensors, and the model directories and GGUF files they lie in. */
#include "model_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/gguf.h"
#include "formats/json.h"

#define LAYER "model.layers.%d."

const struct tensor_spec tensor_specs[T_COUNT] = {
    /* name        Hugging Face                               GGUF                        dims      linear */
    { "embed",     "model.embed_tokens.weight",               "token_embd.weight",         'V', 'C', 0 },
    { "attn_norm", LAYER "input_layernorm.weight",            "blk.%d.attn_norm.weight",   'C', '1', 0 },
    { "wq",        LAYER "self_attn.q_proj.weight",           "blk.%d.attn_q.weight",      'Q', 'C', 1 },
    { "bq",        LAYER "self_attn.q_proj.bias",             "blk.%d.attn_q.bias",        'Q', '1', 0 },
    { "wk",        LAYER "self_attn.k_proj.weight",           "blk.%d.attn_k.weight",      'K', 'C', 1 },
    { "bk",        LAYER "self_attn.k_proj.bias",             "blk.%d.attn_k.bias",        'K', '1', 0 },
    { "wv",        LAYER "self_attn.v_proj.weight",           "blk.%d.attn_v.weight",      'K', 'C', 1 },
    { "bv",        LAYER "self_attn.v_proj.bias",             "blk.%d.attn_v.bias",        'K', '1', 0 },
    { "wqkv",      LAYER "self_attn.qkv_proj.weight",         "blk.%d.attn_qkv.weight",    'A', 'C', 1 },
    { "q_norm",    LAYER "self_attn.q_norm.weight",           "blk.%d.attn_q_norm.weight", 'H', '1', 0 },
    { "k_norm",    LAYER "self_attn.k_norm.weight",           "blk.%d.attn_k_norm.weight", 'H', '1', 0 },
    { "wo",        LAYER "self_attn.o_proj.weight",           "blk.%d.attn_output.weight", 'C', 'Q', 1 },
    { "bo",        LAYER "self_attn.o_proj.bias",             "blk.%d.attn_output.bias",   'C', '1', 0 },
    { "mlp_norm",  LAYER "post_attention_layernorm.weight",   "blk.%d.ffn_norm.weight",    'C', '1', 0 },
    { "wgate",     LAYER "mlp.gate_proj.weight",              "blk.%d.ffn_gate.weight",    'F', 'C', 1 },
    { "bgate",     LAYER "mlp.gate_proj.bias",                "blk.%d.ffn_gate.bias",      'F', '1', 0 },
    { "wup",       LAYER "mlp.up_proj.weight",                "blk.%d.ffn_up.weight",      'F', 'C', 1 },
    { "bup",       LAYER "mlp.up_proj.bias",                  "blk.%d.ffn_up.bias",        'F', '1', 0 },
    { "wgate_up",  LAYER "mlp.gate_up_proj.weight",           "blk.%d.ffn_up.weight",      'G', 'C', 1 },
    { "wdown",     LAYER "mlp.down_proj.weight",              "blk.%d.ffn_down.weight",    'C', 'F', 1 },
    { "bdown",     LAYER "mlp.down_proj.bias",                "blk.%d.ffn_down.bias",      'C', '1', 0 },
    { "norm",      "model.norm.weight",                       "output_norm.weight",        'C', '1', 0 },
    { "head",      "lm_head.weight",                          "output.weight",             'V', 'C', 0 },
};

/* ---- the table ------------------------------------------------------------------------------- */

static int letter(const struct config *c, char l)
{
    switch (l) {
    case 'V': return c->V;
    case 'C': return c->C;
    case 'F': return c->F;
    case 'Q': return c->NH * c->HS;
    case 'K': return c->NKV * c->HS;
    case 'H': return c->HS;
    case 'A': return (c->NH + 2 * c->NKV) * c->HS;
    case 'G': return 2 * c->F;
    default: return 1;
    }
}

int tensor_layered(int id) { return id > T_EMBED && id < T_FINAL_NORM; }
int tensor_rows(const struct config *c, int id) { return letter(c, tensor_specs[id].rows); }
int tensor_cols(const struct config *c, int id) { return letter(c, tensor_specs[id].cols); }

int tensor_present(const struct config *c, int id)
{
    switch (id) {
    case T_BQ: case T_BK: case T_BV: return c->qkv_bias;
    case T_BO: return c->o_bias;
    case T_BGATE: case T_BUP: case T_BDOWN: return c->mlp_bias;
    case T_Q_NORM: case T_K_NORM: return c->qk_norm;
    case T_WQKV: case T_WGATE_UP: return c->fused;
    case T_WQ: case T_WK: case T_WV: case T_WGATE: case T_WUP: return !c->fused;
    default: return 1;
    }
}

/* Formats of the table hold at most one %d. */
static char *put_name(char *name, size_t n, const char *format, int layer)
{
    const char *mark = strstr(format, "%d");
    if (mark) snprintf(name, n, "%.*s%d%s", (int)(mark - format), format, layer, mark + 2);
    else snprintf(name, n, "%s", format);
    return name;
}

char *tensor_name(char *name, size_t n, int id, int layer)
{
    return put_name(name, n, tensor_specs[id].hf, layer);
}

char *tensor_gguf_name(char *name, size_t n, int id, int layer)
{
    return put_name(name, n, tensor_specs[id].gguf, layer);
}

int tensor_next(const struct config *c, int *id, int *layer)
{
    do {
        ++*id;
        if (*id == T_FINAL_NORM) {          /* a layer ends */
            ++*layer;
            if (*layer < c->L) *id = T_ATTN_NORM;
            else *layer = 0;
        }
    } while (*id < T_COUNT && (!tensor_present(c, *id) || (*id == T_HEAD && c->tied)));
    return *id < T_COUNT;
}

long long config_parameters(const struct config *c)
{
    long long sum = 0;
    int id = -1, layer = 0;
    while (tensor_next(c, &id, &layer)) sum += (long long)tensor_rows(c, id) * tensor_cols(c, id);
    return sum;
}

struct weight *model_slot(const struct model *m, int id, int layer)
{
    return &m->weights[(size_t)(tensor_layered(id) ? layer : 0) * T_COUNT + (size_t)id];
}

const struct weight *model_weight(const struct model *m, int id, int layer)
{
    const struct weight *w = model_slot(m, id == T_HEAD && m->config.tied ? T_EMBED : id, layer);
    return w->rows ? w : NULL;
}

/* ---- tensors ---------------------------------------------------------------------------------- */

/* dims of a file's tensor against the table: [rows, cols], vectors [rows]; GGUF has them turned. */
static int set_weight(struct model *m, int id, int layer, int type, const size_t *dims, int n_dims,
                      const void *data, const char *file, const char *name, struct lora_error *err)
{
    const struct config *c = &m->config;
    size_t rows = (size_t)tensor_rows(c, id), cols = (size_t)tensor_cols(c, id);
    int vector = tensor_specs[id].cols == '1';
    size_t r = n_dims ? dims[m->gguf && n_dims == 2] : 0, k = n_dims == 2 ? dims[!m->gguf] : 1;
    if (n_dims != (vector ? 1 : 2) || r != rows || k != cols) {
        fail(err, "wrong shape", "%s: %s", file, name);
        if (vector) expected(err, "[%zu]", rows); else expected(err, "[%zu, %zu]", rows, cols);
        if (n_dims == 2) return found(err, "[%zu, %zu]", r, k);
        return found(err, "%d dimensions, the first %zu", n_dims, n_dims ? dims[0] : 0);
    }
    if (!weight_types[type].decode) {
        fail(err, "unsupported tensor type", "%s: %s", file, name);
        expected(err, "F32, F16, BF16 or a supported block type");
        return found(err, "%s", weight_types[type].name);
    }
    *model_slot(m, id, layer) = (struct weight){ .type = type, .rows = (int)rows, .cols = (int)cols, .data = data };
    return 0;
}

/* The numbers at both ends of a tensor; -0 is 0. */
static uint64_t hash_ends(const struct weight *w, uint64_t h)
{
    float part[64];
    int n = w->cols < 64 ? w->cols : 64, end, i;
    for (end = 0; end < 2; end++) {
        weight_decode(w, end ? w->rows - 1 : 0, end ? w->cols - n : 0, n, part);
        for (i = 0; i < n; i++) part[i] += 0.0f;
        h = hash_bytes(h, part, (size_t)n * sizeof *part);
    }
    return h;
}

void model_hash(struct model *m)
{
    int id, layer;
    m->hash = config_hash(&m->config, HASH_START);
    for (layer = 0; layer < m->config.L; layer++)
        for (id = 0; id < T_COUNT; id++) {
            const struct weight *w = layer && !tensor_layered(id) ? NULL : model_weight(m, id, layer);
            if (w && !(id == T_HEAD && m->config.tied)) m->hash = hash_ends(w, hash_bytes(m->hash, &id, sizeof id));
        }
}

int model_find_tensor(const struct config *c, const char *name, int gguf, int *layer)
{
    char text[128];
    const char *digits = strpbrk(name, "0123456789");
    int id, n = 0, i;
    for (i = 0; digits && i < 6 && digits[i] >= '0' && digits[i] <= '9'; i++) n = n * 10 + digits[i] - '0';
    for (id = 0; id < T_COUNT; id++) {
        const char *format = gguf ? tensor_specs[id].gguf : tensor_specs[id].hf;
        if (!tensor_present(c, id) || (tensor_layered(id) && (!digits || n >= c->L))) continue;
        *layer = tensor_layered(id) ? n : 0;
        if (!strcmp(put_name(text, sizeof text, format, n), name)) return id;
    }
    return -1;
}

/* A file may hold both names of what is tied: the same numbers. */
static int check_tied(const struct model *m, struct lora_error *err)
{
    const struct weight *a = &m->weights[T_EMBED], *b = &m->weights[T_HEAD];
    float x[64], y[64];
    int n = a->cols < 64 ? a->cols : 64, step = a->rows < 64 ? 1 : a->rows / 64, row;
    for (row = 0; a->rows && b->rows && row < a->rows; row += step) {
        weight_decode(a, row, 0, n, x);
        weight_decode(b, row, 0, n, y);
        if (!memcmp(x, y, (size_t)n * sizeof *x)) continue;
        fail(err, "two heads", "%s: lm_head.weight, row %d", m->path, row);
        expected(err, "the embedding's numbers, as tie_word_embeddings says");
        found(err, "others");
        return hint(err, "tie_word_embeddings: false takes the head as it is");
    }
    return 0;
}

/* Every tensor of the table must be there. With tied embeddings either name may be left out. */
static int check_complete(struct model *m, struct lora_error *err)
{
    const struct config *c = &m->config;
    char name[128];
    int id = -1, layer = 0;
    if (c->tied && check_tied(m, err)) return -1;
    if (c->tied && !m->weights[T_EMBED].rows) m->weights[T_EMBED] = m->weights[T_HEAD];
    while (tensor_next(c, &id, &layer)) {
        if (model_weight(m, id, layer)) continue;
        put_name(name, sizeof name, m->gguf ? tensor_specs[id].gguf : tensor_specs[id].hf, layer);
        fail(err, "missing tensor", "%s: %s", m->path, name);
        expected(err, "[%d, %d]", tensor_rows(c, id), tensor_cols(c, id));
        found(err, "nothing of that name");
        if (id == T_HEAD) hint(err, "tie_word_embeddings: true says that the embeddings are the head");
        return -1;
    }
    return 0;
}

static int new_weights(struct model *m, struct lora_error *err)
{
    m->weights = new_array((size_t)m->config.L * T_COUNT, sizeof *m->weights, err);
    return m->weights ? 0 : -1;
}

static int unknown_tensor(const char *file, const char *name, struct lora_error *err)
{
    fail(err, "unknown tensor", "%s: %s", file, name);
    return expected(err, "tensors of the configuration's model");
}

static int take_shard(struct model *m, const struct safetensors *s, struct lora_error *err)
{
    int i, id, layer, type;
    for (i = 0; i < s->n; i++) {
        const struct st_tensor *t = &s->tensors[i];
        struct weight *w;
        size_t n = strlen(t->name);
        if (n > 20 && !strcmp(t->name + n - 20, ".rotary_emb.inv_freq")) {  /* a buffer of old checkpoints */
            text_list(&m->ignored, t->name);
            continue;
        }
        id = model_find_tensor(&m->config, t->name, 0, &layer);
        if (id < 0 && quantised_part(m, t->name)) continue;
        if (id < 0) return unknown_tensor(s->path, t->name, err);
        w = model_slot(m, id, layer);
        if (w->rows) return fail(err, "the same tensor twice", "%s: %s", s->path, t->name);
        type = quantised_type(m, id, t);
        if (type >= 0 ? quantised_take(m, w, id, type, t, s->path, err)
            : set_weight(m, id, layer, t->type, t->dims, t->n_dims, t->data, s->path, t->name, err)) return -1;
    }
    return text_check(&m->ignored, err);
}

static int open_shard(struct model *m, const char *name, struct lora_error *err)
{
    char *path = path_join(m->path, name, err);
    int bad = !path || safetensors_open(&m->shards[m->n_shards], path, err);
    free(path);
    if (bad) return -1;
    m->n_shards++;
    return 0;
}

static const char *shard_name(const struct safetensors *s)
{
    const char *slash = strrchr(s->path, '/');
    return slash ? slash + 1 : s->path;
}

/* The tensor of an entry of the index lies in the shard that the entry names, or in none: an index may name what the
 * model does not need (check_complete() asks for the rest). In another one, index and shards are not of one model.
 * Transformers reads the shards one after the other and never looks, unless it leaves them on disk. */
static int check_entry(const struct model *m, const struct json *entry, const char *path, struct lora_error *err)
{
    const struct safetensors *other = NULL;
    int i;
    for (i = 0; i < m->n_shards; i++) {
        if (!safetensors_find(&m->shards[i], entry->key)) continue;
        if (!strcmp(shard_name(&m->shards[i]), entry->string)) return 0;
        other = &m->shards[i];
    }
    if (!other) return 0;
    fail(err, "the index and its files do not agree", "%s, line %d: %s", path, entry->line, entry->key);
    expected(err, "this tensor in %s", entry->string);
    found(err, "it in %s", shard_name(other));
    return hint(err, "the files may be of several downloads or versions: get them all again");
}

/* model.safetensors.index.json: every shard it names, once. */
static int open_index(struct model *m, const char *path, struct lora_error *err)
{
    struct json_document d;
    const struct json *map, *v;
    int bad = 0;
    if (json_read(&d, path, err)) return -1;
    map = json_get(d.root, "weight_map");
    if (!map || map->type != JSON_OBJECT || !map->n) {
        fail(err, "bad index", "%s: weight_map", path);
        bad = expected(err, "an object of tensor names and file names");
    } else {
        m->shards = new_array(map->n, sizeof *m->shards, err);
        bad = m->shards ? 0 : -1;
    }
    for (v = bad ? NULL : map->child; v && !bad; v = v->next) {
        int i;
        if (v->type != JSON_STRING || !v->n || strchr(v->string, '/') || strlen(v->string) != v->n) {
            fail(err, "bad index", "%s, line %d: %s", path, v->line, v->key);
            bad = expected(err, "the name of a file in the same directory");
            break;
        }
        for (i = 0; i < m->n_shards && strcmp(shard_name(&m->shards[i]), v->string); i++) { }
        if (i == m->n_shards) bad = open_shard(m, v->string, err);
    }
    for (v = bad ? NULL : map->child; v && !bad; v = v->next) bad = check_entry(m, v, path, err);
    json_free(&d);
    return bad;
}

static int open_directory(struct model *m, struct lora_error *err)
{
    char *config = path_join(m->path, "config.json", err);
    char *whole = path_join(m->path, "model.safetensors", err);
    char *index = path_join(m->path, "model.safetensors.index.json", err);
    int i, bad = !config || !whole || !index || config_read(&m->config, config, &m->ignored, err) || new_weights(m, err);
    if (!bad && file_exists(index) && !file_exists(whole))
        bad = open_index(m, index, err);
    else if (!bad)
        bad = !(m->shards = new_array(1, sizeof *m->shards, err)) || open_shard(m, "model.safetensors", err);
    free(config);
    free(whole);
    free(index);
    /* when all are open: parts of a quantised weight may lie in several */
    for (i = 0; i < m->n_shards && !bad; i++) bad = take_shard(m, &m->shards[i], err);
    return bad ? -1 : check_complete(m, err);
}

static int open_gguf(struct model *m, struct lora_error *err)
{
    const struct family *f;
    int i, id, layer;
    if (!(m->gguf = new_array(1, sizeof *m->gguf, err)) || gguf_open(m->gguf, m->path, err)
        || config_from_gguf(&m->config, m->gguf, &m->ignored, err) || new_weights(m, err)
        || !(f = config_family(&m->config, err))) return -1;
    for (i = 0; i < m->gguf->n_tensors; i++) {
        const struct gguf_tensor *t = &m->gguf->tensors[i];
        if (!strcmp(t->name, "rope_freqs.weight")) continue;
        id = model_find_tensor(&m->config, t->name, 1, &layer);
        if (id < 0) return unknown_tensor(m->path, t->name, err);
        if (set_weight(m, id, layer, t->type, t->dims, t->n_dims, t->data, m->path, t->name, err)) return -1;
        if (f->gguf_permuted && (id == T_WQ || id == T_WK || id == T_BQ || id == T_BK))
            model_slot(m, id, layer)->head_rows = m->config.HS;
    }
    return check_complete(m, err);
}

int model_open(struct model **out, const char *path, struct lora_error *err)
{
    struct model *m = new_array(1, sizeof *m, err);
    *out = NULL;
    if (!m) return -1;
    m->path = new_string(path, err);
    if (!m->path || (is_directory(path) ? open_directory(m, err) : open_gguf(m, err))) {
        model_close(m);
        return -1;
    }
    model_hash(m);
    *out = m;
    return 0;
}

void model_close(struct model *m)
{
    size_t w;
    int i;
    if (!m) return;
    for (w = 0; m->weights && w < (size_t)m->config.L * T_COUNT; w++) weight_free(&m->weights[w]);
    for (i = 0; i < m->n_shards; i++) safetensors_close(&m->shards[i]);
    if (m->gguf) gguf_close(m->gguf);
    free(m->gguf);
    free(m->shards);
    free(m->weights);
    free(m->path);
    text_free(&m->ignored);
    free(m);
}

/* ---- writing ---- */

struct writing {
    const struct config *c;
    const struct quantise *how;     /* of the linears, or NULL */
    struct st_writer w;
    int dtype, threads;
    float *row;
    uint16_t *half;
    model_row_source *source;
    void *source_ctx;
    struct lora_error *err;
};

/* What lies in the file one after the other: quantised linears, which take multiples of 8 bytes; what is plain; the
 * single bytes of INT8. */
enum section { QUANTISED, PLAIN, FORMATS, SECTIONS };

static int in_section(const struct writing *x, int section, int id)
{
    int quantised = x->how && tensor_specs[id].linear;
    if (section == PLAIN) return !quantised;
    return quantised && (section == QUANTISED || x->how->type == TYPE_INT8);
}

/* Names the tensors of the file in its order, or puts them. */
static int each_tensor(struct writing *x, int (*one)(struct writing *x, int section, int id, int layer))
{
    int section, id, layer, n;
    for (section = 0; section < SECTIONS; section++)
        for (id = 0; id < T_COUNT; id++) {
            if (!tensor_present(x->c, id) || (id == T_HEAD && x->c->tied) || !in_section(x, section, id)) continue;
            n = tensor_layered(id) ? x->c->L : 1;
            for (layer = 0; layer < n; layer++) if (one(x, section, id, layer)) return -1;
        }
    return 0;
}

static int name_tensor(struct writing *x, int section, int id, int layer)
{
    char name[128];
    int rows = tensor_rows(x->c, id), cols = tensor_cols(x->c, id);
    size_t dims[2] = { (size_t)rows, (size_t)cols };
    tensor_name(name, sizeof name, id, layer);
    if (section == QUANTISED) return quantised_add(&x->w, name, x->how, rows, cols, x->dtype, x->err);
    if (section == FORMATS) return quantised_add_format(&x->w, name, x->err);
    return st_writer_add(&x->w, name, x->dtype, dims, tensor_specs[id].cols == '1' ? 1 : 2, x->err);
}

/* Rows of one tensor, for weight_quantise. */
struct source_tensor { struct writing *x; int id, layer; };

static int tensor_row(void *ctx, int row, float *out, struct lora_error *err)
{
    const struct source_tensor *t = ctx;
    return t->x->source(t->x->source_ctx, t->id, t->layer, row, out, err);
}

/* The row of a tensor, rounded to dtype, to the file. A number that only F16 makes infinite would break the model. */
static int put_row(struct writing *x, int id, int layer)
{
    int n = tensor_cols(x->c, id), i;
    char name[128];
    if (x->dtype == TYPE_F32) return st_writer_put(&x->w, x->row, (size_t)n * sizeof *x->row, x->err);
    for (i = 0; i < n; i++) {
        x->half[i] = x->dtype == TYPE_F16 ? f32_to_f16(x->row[i]) : f32_to_bf16(x->row[i]);
        if (x->dtype != TYPE_F16 || (x->half[i] & 0x7fff) != 0x7c00 || x->row[i] - x->row[i] != 0) continue;
        fail(x->err, "a number that F16 does not hold", "%s", tensor_name(name, sizeof name, id, layer));
        expected(x->err, "at most 65504");
        found(x->err, "%g", (double)x->row[i]);
        return hint(x->err, "--dtype bf16 or f32 holds it");
    }
    return st_writer_put(&x->w, x->half, (size_t)n * sizeof *x->half, x->err);
}

static int put_quantised(struct writing *x, int id, int layer)
{
    struct source_tensor tensor = { x, id, layer };
    struct weight w;
    char name[128];
    int bad;
    if (weight_quantise(&w, x->how, tensor_rows(x->c, id), tensor_cols(x->c, id), tensor_row, &tensor, x->threads,
                        tensor_name(name, sizeof name, id, layer), x->err)) return -1;
    bad = quantised_put(&x->w, &w, x->dtype, x->err);
    weight_free(&w);
    return bad;
}

static int put_tensor(struct writing *x, int section, int id, int layer)
{
    int r;
    if (section == QUANTISED) return put_quantised(x, id, layer);
    if (section == FORMATS) return quantised_put_format(&x->w, x->err);
    for (r = 0; r < tensor_rows(x->c, id); r++)
        if (x->source(x->source_ctx, id, layer, r, x->row, x->err) || put_row(x, id, layer)) return -1;
    return 0;
}

static int write_tensors(struct writing *x, const char *file)
{
    if (each_tensor(x, name_tensor) || st_writer_begin(&x->w, file, x->err) || each_tensor(x, put_tensor)) {
        st_writer_abandon(&x->w);
        return -1;
    }
    return st_writer_commit(&x->w, x->err);
}

int model_write_quantised(const struct config *c, const char *dir, int dtype, const struct quantise *how,
                          model_row_source *row, void *ctx, int threads, struct lora_error *err)
{
    struct writing x = { .c = c, .how = how, .dtype = dtype, .threads = threads, .source = row, .source_ctx = ctx, .err = err };
    size_t widest = (size_t)(c->C > c->F ? c->C : c->F);
    char *file = NULL, *config = NULL;
    int bad;
    if (widest < (size_t)c->NH * (size_t)c->HS) widest = (size_t)c->NH * (size_t)c->HS;
    x.row = new_array(widest, sizeof *x.row, err);
    x.half = new_array(widest, sizeof *x.half, err);
    bad = !x.row || !x.half || (how && quantise_check(how, err)) || make_directory(dir, err)
          || !(file = path_join(dir, "model.safetensors", err)) || !(config = path_join(dir, "config.json", err))
          || write_tensors(&x, file) || config_write(c, config, dtype, how, err);
    free(file);
    free(config);
    free(x.row);
    free(x.half);
    return bad ? -1 : 0;
}

int model_write(const struct config *c, const char *dir, int dtype, model_row_source *row, void *ctx,
                struct lora_error *err)
{
    return model_write_quantised(c, dir, dtype, NULL, row, ctx, 1, err);
}

int model_row(void *ctx, int id, int layer, int row, float *out, struct lora_error *err)
{
    const struct model *m = ctx;
    return weight_row((void *)model_weight(m, id, layer), row, out, err);
}
