/* gguf.c - see gguf.h. A cursor goes over the file once; every read says how many bytes it needs. */
#include "gguf.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MOST 65535             /* bytes of a key or a tensor's name: the format's limit on keys */
#define DEFAULT_ALIGNMENT 32

struct cursor {
    const struct gguf *g;
    size_t at;
    struct lora_error *err;
};

/* ---- errors ---- */

static int bad(const struct gguf *g, const char *kind, const char *name, struct lora_error *err)
{
    if (name) return fail(err, "cannot read GGUF", "%s, %s %s", g->path, kind, name);
    return fail(err, "cannot read GGUF", "%s", g->path);
}

static int cut(const struct cursor *c, uint64_t needed)
{
    fail(c->err, "cannot read GGUF", "%s, byte %zu", c->g->path, c->at);
    expected(c->err, "%llu more bytes", (unsigned long long)needed);
    found(c->err, "the end of the file");
    return hint(c->err, "the file may be cut off: download it again");
}

/* ---- reading numbers and strings ---- */

static size_t left(const struct cursor *c) { return c->g->map.size - c->at; }

/* n bytes of the file, or NULL with an error. */
static const unsigned char *take(struct cursor *c, uint64_t n)
{
    const unsigned char *p = c->g->map.data + c->at;
    if (n > left(c)) {
        cut(c, n);
        return NULL;
    }
    c->at += (size_t)n;
    return p;
}

static uint64_t little_endian(const unsigned char *p, int bytes)
{
    uint64_t v = 0;
    while (bytes-- > 0) v = v << 8 | p[bytes];
    return v;
}

static int take_integer(struct cursor *c, int bytes, uint64_t *out)
{
    const unsigned char *p = take(c, (uint64_t)bytes);
    if (p) *out = little_endian(p, bytes);
    return p ? 0 : -1;
}

static int take_string(struct cursor *c, struct gguf_string *out)
{
    uint64_t n;
    const unsigned char *p;
    if (take_integer(c, 8, &n) || !(p = take(c, n))) return -1;
    out->s = (const char *)p;
    out->n = (size_t)n;
    return 0;
}

/* A copy of a key or a tensor's name. */
static char *take_name(struct cursor *c)
{
    size_t start = c->at;
    struct gguf_string s;
    if (take_string(c, &s)) return NULL;
    if (!s.n || s.n > NAME_MOST || memchr(s.s, 0, s.n)) {
        fail(c->err, "cannot read GGUF", "%s, byte %zu", c->g->path, start);
        expected(c->err, "a name of 1 to %d bytes, none of them 0", NAME_MOST);
        found(c->err, "%zu bytes", s.n);
        return NULL;
    }
    return new_string_n(s.s, s.n, c->err);
}

/* ---- metadata ---- */

static const struct { const char *name; int bytes; } types[] = {
    { "uint8", 1 }, { "int8", 1 }, { "uint16", 2 }, { "int16", 2 }, { "uint32", 4 }, { "int32", 4 }, { "float32", 4 },
    { "bool", 1 }, { "string", 0 }, { "array", 0 }, { "uint64", 8 }, { "int64", 8 }, { "float64", 8 },
};

static int take_type(struct cursor *c, const struct gguf_value *v, int *out)
{
    uint64_t type;
    if (take_integer(c, 4, &type)) return -1;
    if (type > GGUF_F64) {
        bad(c->g, "key", v->key, c->err);
        expected(c->err, "a type from 0 to %d", GGUF_F64);
        return found(c->err, "%lu", (unsigned long)type);
    }
    *out = (int)type;
    return 0;
}

/* n numbers of one type, left where they are. */
static int take_numbers(struct cursor *c, struct gguf_value *v, int type, uint64_t n)
{
    uint64_t i, bytes = (uint64_t)types[type].bytes;
    if (n > left(c) / bytes) return cut(c, n);
    v->data = take(c, n * bytes);
    for (i = 0; type == GGUF_BOOL && i < n; i++)
        if (v->data[i] > 1) {
            bad(c->g, "key", v->key, c->err);
            expected(c->err, "a boolean, 0 or 1");
            return found(c->err, "%d", v->data[i]);
        }
    return 0;
}

static int take_array(struct cursor *c, struct gguf_value *v)
{
    uint64_t n, i;
    if (take_type(c, v, &v->element) || take_integer(c, 8, &n)) return -1;
    if (v->element == GGUF_ARRAY) {
        bad(c->g, "key", v->key, c->err);
        expected(c->err, "an array of numbers or strings");
        return found(c->err, "an array of arrays");
    }
    if (v->element != GGUF_STRING) {
        v->n = (size_t)n;
        return take_numbers(c, v, v->element, n);
    }
    if (n > left(c) / 8) return cut(c, n);
    v->strings = new_array((size_t)n, sizeof *v->strings, c->err);
    if (!v->strings) return -1;
    v->n = (size_t)n;
    for (i = 0; i < n; i++)
        if (take_string(c, &v->strings[i])) return -1;
    return 0;
}

static int take_value(struct cursor *c, struct gguf_value *v)
{
    v->key = take_name(c);
    if (!v->key || take_type(c, v, &v->type)) return -1;
    if (v->type == GGUF_ARRAY) return take_array(c, v);
    if (v->type == GGUF_STRING) return take_string(c, &v->string);
    return take_numbers(c, v, v->type, 1);
}

/* ---- tensors ---- */

/* ggml's name of a type that is not read here, or NULL. */
static const char *other_type(uint64_t type)
{
    static const char *const names[] = {
        [9] = "Q8_1", [15] = "Q8_K", [16] = "IQ2_XXS", [17] = "IQ2_XS", [18] = "IQ3_XXS", [19] = "IQ1_S",
        [21] = "IQ3_S", [22] = "IQ2_S", [23] = "IQ4_XS", [29] = "IQ1_M", [34] = "TQ1_0", [35] = "TQ2_0",
        [39] = "MXFP4", [40] = "NVFP4", [41] = "Q1_0",
    };
    return type < sizeof names / sizeof *names ? names[type] : NULL;
}

static int find_type(const struct gguf *g, const char *tensor, uint64_t number, struct lora_error *err)
{
    const char *name = other_type(number);
    int type;
    for (type = 0; type < TYPE_COUNT; type++)
        if (weight_types[type].gguf >= 0 && (uint64_t)weight_types[type].gguf == number) return type;
    bad(g, "tensor", tensor, err);
    expected(err, "F32, F16, BF16, Q8_0, Q4_0 to Q5_1, Q2_K to Q6_K or IQ4_NL");
    return found(err, "type %lu%s%s%s", (unsigned long)number, name ? " (" : "", name ? name : "", name ? ")" : "");
}

/* data is set later, when the data's start is known: until then its offset is kept in *offset. */
static int take_tensor(struct cursor *c, struct gguf_tensor *t, uint64_t *offset)
{
    uint64_t n_dims, number, dim;
    int i;
    t->name = take_name(c);
    if (!t->name || take_integer(c, 4, &n_dims)) return -1;
    if (n_dims > 4) {
        bad(c->g, "tensor", t->name, c->err);
        expected(c->err, "at most 4 dimensions");
        return found(c->err, "%lu", (unsigned long)n_dims);
    }
    t->n_dims = (int)n_dims;
    t->count = 1;
    for (i = 0; i < 4; i++) {
        dim = 1;
        if (i < t->n_dims && take_integer(c, 8, &dim)) return -1;
        t->dims[i] = (size_t)dim;
        if (dim > SIZE_MAX || size_mul(&t->count, t->count, t->dims[i])) {
            bad(c->g, "tensor", t->name, c->err);
            return expected(c->err, "dimensions whose product is a size");
        }
    }
    if (take_integer(c, 4, &number) || take_integer(c, 8, offset)) return -1;
    t->type = find_type(c->g, t->name, number, c->err);
    if (t->type < 0) return -1;
    if (t->dims[0] % (size_t)weight_types[t->type].block || type_bytes(&t->bytes, t->type, t->count)) {
        bad(c->g, "tensor", t->name, c->err);
        expected(c->err, "rows of whole blocks of %d", weight_types[t->type].block);
        return found(c->err, "%zu columns of %s", t->dims[0], weight_types[t->type].name);
    }
    return 0;
}

/* Where the tensor's bytes are: start is where all data begins. */
static int place_tensor(const struct gguf *g, struct gguf_tensor *t, size_t start, uint64_t offset,
                        struct lora_error *err)
{
    size_t size = g->map.size - start;
    if (offset % g->alignment) {
        bad(g, "tensor", t->name, err);
        expected(err, "an offset that is a multiple of %zu", g->alignment);
        return found(err, "%llu", (unsigned long long)offset);
    }
    if (offset > size || t->bytes > size - offset) {
        bad(g, "tensor", t->name, err);
        expected(err, "%zu bytes from byte %llu of the data", t->bytes, (unsigned long long)offset);
        found(err, "%zu bytes of data in all", size);
        return hint(err, "the file may be cut off: download it again");
    }
    t->data = g->map.data + start + offset;
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const struct gguf_tensor *x = *(struct gguf_tensor *const *)a, *y = *(struct gguf_tensor *const *)b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int check_overlap(const struct gguf *g, struct lora_error *err)
{
    int i, n = g->n_tensors, status = 0;
    struct gguf_tensor **sorted = new_array((size_t)n, sizeof *sorted, err);
    if (!sorted) return -1;
    for (i = 0; i < n; i++) sorted[i] = &g->tensors[i];
    qsort(sorted, (size_t)n, sizeof *sorted, by_place);
    for (i = 1; i < n && !status; i++)
        if (sorted[i - 1]->data + sorted[i - 1]->bytes > sorted[i]->data) {
            bad(g, "tensor", sorted[i]->name, err);
            expected(err, "bytes of its own");
            status = found(err, "some of those of %s", sorted[i - 1]->name);
        }
    free(sorted);
    return status;
}

/* ---- the file ---- */

static int take_header(struct cursor *c, uint64_t *n_tensors, uint64_t *n_values)
{
    const unsigned char *p = take(c, 4);
    uint64_t version;
    if (!p) return -1;
    if (memcmp(p, "GGUF", 4)) {
        bad(c->g, NULL, NULL, c->err);
        expected(c->err, "a GGUF file (it begins with GGUF)");
        return hint(c->err, "a model of Hugging Face is named by its directory");
    }
    if (take_integer(c, 4, &version)) return -1;
    if (version < 2 || version > 3) {
        bad(c->g, NULL, NULL, c->err);
        expected(c->err, "version 2 or 3, little endian");
        return found(c->err, version && !(version & 0xffffff) ? "a big-endian file" : "version %lu", (unsigned long)version);
    }
    if (take_integer(c, 8, n_tensors) || take_integer(c, 8, n_values)) return -1;
    /* The least that an entry takes bounds their number before memory is asked for. */
    if (*n_tensors > left(c) / 24 || *n_tensors > INT_MAX) return cut(c, *n_tensors);
    if (*n_values > left(c) / 14 || *n_values > INT_MAX) return cut(c, *n_values);
    return 0;
}

static int take_values(struct cursor *c, struct gguf *g, uint64_t n)
{
    g->values = new_array((size_t)n, sizeof *g->values, c->err);
    g->value_names = names_new((size_t)n, c->err);
    if (!g->values || !g->value_names) return -1;
    while (g->n_values < (int)n) {
        struct gguf_value *v = &g->values[g->n_values++];
        if (take_value(c, v)) return -1;
        if (names_add(g->value_names, v->key, v)) {
            bad(g, "key", v->key, c->err);
            return expected(c->err, "each key once");
        }
    }
    return 0;
}

static int take_tensors(struct cursor *c, struct gguf *g, uint64_t *offsets, int n)
{
    size_t rest, start;
    int i;
    g->tensors = new_array((size_t)n, sizeof *g->tensors, c->err);
    g->tensor_names = names_new((size_t)n, c->err);
    if (!g->tensors || !g->tensor_names) return -1;
    while (g->n_tensors < n) {
        struct gguf_tensor *t = &g->tensors[g->n_tensors++];
        if (take_tensor(c, t, &offsets[g->n_tensors - 1])) return -1;
        if (names_add(g->tensor_names, t->name, t)) {
            bad(g, "tensor", t->name, c->err);
            return expected(c->err, "each tensor once");
        }
    }
    rest = c->at % g->alignment;
    rest = rest ? g->alignment - rest : 0;
    if (n && rest > left(c)) return cut(c, rest);
    start = c->at + rest;
    for (i = 0; i < n; i++)
        if (place_tensor(g, &g->tensors[i], start, offsets[i], c->err)) return -1;
    return n ? check_overlap(g, c->err) : 0;
}

static int read_alignment(struct gguf *g, struct lora_error *err)
{
    int alignment = DEFAULT_ALIGNMENT;
    if (gguf_get_int(g, "general.alignment", &alignment, err)) return -1;
    if (alignment < 1 || (alignment & (alignment - 1))) {
        bad(g, "key", "general.alignment", err);
        expected(err, "a power of two");
        return found(err, "%d", alignment);
    }
    g->alignment = (size_t)alignment;
    return 0;
}

static int read_all(struct gguf *g, struct lora_error *err)
{
    struct cursor c = { .g = g, .err = err };
    uint64_t n_tensors = 0, n_values = 0, *offsets;
    int status;
    if (take_header(&c, &n_tensors, &n_values) || take_values(&c, g, n_values)
        || read_alignment(g, err)) return -1;
    offsets = new_array((size_t)n_tensors, sizeof *offsets, err);
    status = offsets ? take_tensors(&c, g, offsets, (int)n_tensors) : -1;
    free(offsets);
    return status;
}

int gguf_open(struct gguf *g, const char *path, struct lora_error *err)
{
    memset(g, 0, sizeof *g);
    if (file_open(&g->map, path, err)) return -1;
    g->path = new_string(path, err);
    if (g->path && !read_all(g, err)) return 0;
    gguf_close(g);
    return -1;
}

void gguf_close(struct gguf *g)
{
    int i;
    for (i = 0; i < g->n_values; i++) {
        free(g->values[i].key);
        free(g->values[i].strings);
    }
    for (i = 0; i < g->n_tensors; i++) free(g->tensors[i].name);
    free(g->values);
    free(g->tensors);
    names_free(g->value_names);
    names_free(g->tensor_names);
    free(g->path);
    file_close(&g->map);
    memset(g, 0, sizeof *g);
}

/* ---- lookup ---- */

const struct gguf_value *gguf_get(const struct gguf *g, const char *key)
{
    return names_find(g->value_names, key);
}

const struct gguf_tensor *gguf_find(const struct gguf *g, const char *name)
{
    return names_find(g->tensor_names, name);
}

/* One number at p as double, and whether it is a whole number's type; -1 when it is none. */
static int number_at(int type, const unsigned char *p, double *out)
{
    uint64_t u;
    float f;
    if (type == GGUF_STRING || type == GGUF_ARRAY) return -1;
    u = little_endian(p, types[type].bytes);
    switch (type) {
    case GGUF_I8:  *out = (double)(int8_t)u; break;
    case GGUF_I16: *out = (double)(int16_t)u; break;
    case GGUF_I32: *out = (double)(int32_t)u; break;
    case GGUF_I64: *out = (double)(int64_t)u; break;
    case GGUF_F32: memcpy(&f, p, 4); *out = (double)f; return 0;
    case GGUF_F64: memcpy(out, p, 8); return 0;
    default: *out = (double)u; break;
    }
    return type != GGUF_BOOL;
}

double gguf_array_number(const struct gguf_value *v, size_t i)
{
    double x = 0;
    if (v->type == GGUF_ARRAY && i < v->n && v->data)
        number_at(v->element, v->data + i * (size_t)types[v->element].bytes, &x);
    return x;
}

static int wrong(const struct gguf *g, const struct gguf_value *v, const char *want, struct lora_error *err)
{
    double x;
    bad(g, "key", v->key, err);
    expected(err, "%s", want);
    if (number_at(v->type, v->data, &x) < 0) return found(err, "%s", types[v->type].name);
    return found(err, "%s %.17g", types[v->type].name, x);
}

int gguf_get_int(const struct gguf *g, const char *key, int *out, struct lora_error *err)
{
    const struct gguf_value *v = gguf_get(g, key);
    double x;
    if (!v) return 0;
    if (number_at(v->type, v->data, &x) != 1 || x > INT_MAX || x < INT_MIN)
        return wrong(g, v, "an integer of 32 bits", err);
    *out = (int)x;
    return 0;
}

int gguf_get_number(const struct gguf *g, const char *key, double *out, struct lora_error *err)
{
    const struct gguf_value *v = gguf_get(g, key);
    double x;
    if (!v) return 0;
    if (v->type == GGUF_BOOL || number_at(v->type, v->data, &x) < 0 || !(x - x == 0))
        return wrong(g, v, "a finite number", err);
    *out = x;
    return 0;
}

int gguf_get_bool(const struct gguf *g, const char *key, int *out, struct lora_error *err)
{
    const struct gguf_value *v = gguf_get(g, key);
    if (!v) return 0;
    if (v->type != GGUF_BOOL) return wrong(g, v, "a boolean", err);
    *out = v->data[0];
    return 0;
}

int gguf_get_string(const struct gguf *g, const char *key, char **out, struct lora_error *err)
{
    const struct gguf_value *v = gguf_get(g, key);
    *out = NULL;
    if (!v) return 0;
    if (v->type != GGUF_STRING) return wrong(g, v, "a string", err);
    if (memchr(v->string.s, 0, v->string.n)) {
        bad(g, "key", key, err);
        return expected(err, "a string without NUL characters");
    }
    *out = new_string_n(v->string.s, v->string.n, err);
    return *out ? 0 : -1;
}
