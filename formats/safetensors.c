/* safetensors.c - see safetensors.h. The tensors' names stay in the header's JSON tree. */
#include "safetensors.h"

#include <stdlib.h>
#include <string.h>

#define HEADER_MOST 100000000       /* the reference implementation's limit */

/* ---- reading ---- */

static int bad(const struct safetensors *s, const char *tensor, struct lora_error *err)
{
    if (tensor) return fail(err, "cannot read safetensors", "%s, tensor %s", s->path, tensor);
    return fail(err, "cannot read safetensors", "%s", s->path);
}

/* A size as JSON writes it: digits alone, so that no double rounds it. */
static int get_size(const struct json *v, size_t *out)
{
    const char *p;
    size_t n = 0;
    if (!v || v->type != JSON_NUMBER) return -1;
    for (p = v->literal; *p; p++)
        if (*p < '0' || *p > '9' || size_mul(&n, n, 10) || size_add(&n, n, (size_t)(*p - '0'))) return -1;
    *out = n;
    return 0;
}

static int find_type(const struct json *dtype)
{
    int type;
    for (type = 0; type < TYPE_COUNT; type++) {
        const char *name = weight_types[type].safetensors;
        if (name && strlen(name) == dtype->n && !strcmp(name, dtype->string)) return type;
    }
    return -1;
}

static int read_shape(const struct safetensors *s, struct st_tensor *t, const struct json *shape,
                      struct lora_error *err)
{
    const struct json *v;
    if (!shape || shape->type != JSON_ARRAY) {
        bad(s, t->name, err);
        return expected(err, "a shape");
    }
    if (shape->n > ST_DIMS) {
        bad(s, t->name, err);
        expected(err, "at most %d dimensions", ST_DIMS);
        return found(err, "%zu", shape->n);
    }
    t->count = 1;
    for (v = shape->child; v; v = v->next) {
        size_t *dim = &t->dims[t->n_dims++];
        if (get_size(v, dim) || size_mul(&t->count, t->count, *dim)) {
            bad(s, t->name, err);
            expected(err, "a shape of whole numbers whose product is a size");
            return v->type == JSON_NUMBER ? found(err, "%s", v->literal) : -1;
        }
    }
    return 0;
}

/* data[size] is what follows the header. */
static int read_place(const struct safetensors *s, struct st_tensor *t, const struct json *offsets,
                      const unsigned char *data, size_t size, struct lora_error *err)
{
    size_t begin, end, bytes;
    if (!offsets || offsets->type != JSON_ARRAY || offsets->n != 2
        || get_size(offsets->child, &begin) || get_size(offsets->child->next, &end)) {
        bad(s, t->name, err);
        return expected(err, "data_offsets of two whole numbers");
    }
    if (begin > end || end > size) {
        bad(s, t->name, err);
        expected(err, "data_offsets within the file's %zu bytes of data", size);
        found(err, "%zu to %zu", begin, end);
        return end > size ? hint(err, "the file may be cut off: download it again") : -1;
    }
    if (type_bytes(&bytes, t->type, t->count) || bytes != end - begin) {
        bad(s, t->name, err);
        expected(err, "%zu values of %s", t->count, weight_types[t->type].name);
        return found(err, "%zu bytes", end - begin);
    }
    t->data = data + begin;
    t->bytes = bytes;
    return 0;
}

static int read_tensor(const struct safetensors *s, struct st_tensor *t, const struct json *entry,
                       const unsigned char *data, size_t size, struct lora_error *err)
{
    const struct json *dtype = json_get(entry, "dtype"), *v;
    t->name = entry->key;
    for (v = entry->type == JSON_OBJECT ? entry->child : NULL; v; v = v->next)
        if (strcmp(v->key, "dtype") && strcmp(v->key, "shape") && strcmp(v->key, "data_offsets")) {
            bad(s, t->name, err);
            expected(err, "dtype, shape and data_offsets");
            return found(err, "%s", v->key);
        }
    if (!dtype || dtype->type != JSON_STRING) {
        bad(s, t->name, err);
        return expected(err, "a dtype");
    }
    t->type = find_type(dtype);
    if (t->type < 0) {
        bad(s, t->name, err);
        expected(err, "F64 F32 F16 BF16 I64 I32 I16 I8 U8 or BOOL");
        return found(err, "dtype %s", dtype->string);
    }
    if (read_shape(s, t, json_get(entry, "shape"), err)) return -1;
    return read_place(s, t, json_get(entry, "data_offsets"), data, size, err);
}

static int by_place(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The tensors lie one after the other and fill the data. */
static int check_cover(const struct safetensors *s, const unsigned char *data, size_t size,
                       struct lora_error *err)
{
    const unsigned char *next = data;
    int i;
    for (i = 0; i < s->n; i++) {
        const struct st_tensor *t = &s->tensors[i];
        if (t->data != next) {
            bad(s, t->name, err);
            expected(err, "data from byte %zu on, where the tensor before it ends", (size_t)(next - data));
            return found(err, "from byte %zu on", (size_t)(t->data - data));
        }
        next += t->bytes;
    }
    if (next == data + size) return 0;
    bad(s, NULL, err);
    expected(err, "%zu bytes of data", (size_t)(next - data));
    return found(err, "%zu", size);
}

static int read_metadata(const struct safetensors *s, const struct json *m, struct lora_error *err)
{
    const struct json *v;
    if (m->type == JSON_OBJECT) {
        for (v = m->child; v && v->type == JSON_STRING; v = v->next) {}
        if (!v) return 0;
    }
    bad(s, NULL, err);
    return expected(err, "__metadata__ from names to strings");
}

static int read_all(struct safetensors *s, struct lora_error *err)
{
    const struct json *root, *v;
    const unsigned char *data;
    uint64_t length = 0;
    size_t header, size;
    int i;
    for (i = 7; i >= 0 && s->map.size >= 8; i--) length = length << 8 | s->map.data[i];
    if (s->map.size < 8 || length > s->map.size - 8 || length > HEADER_MOST) {
        bad(s, NULL, err);
        expected(err, "8 bytes of length and a header of that length");
        found(err, "%zu bytes of file, %llu of header", s->map.size, (unsigned long long)length);
        return hint(err, "the file may be cut off, or may be no safetensors file");
    }
    header = (size_t)length;
    if (json_parse(&s->header, (const char *)s->map.data + 8, header, s->path, err)) return -1;
    root = s->header.root;
    if (root->type != JSON_OBJECT) {
        bad(s, NULL, err);
        return expected(err, "a header that is a JSON object");
    }
    s->tensors = new_array(root->n, sizeof *s->tensors, err);
    s->names = names_new(root->n, err);
    if (!s->tensors || !s->names) return -1;
    data = s->map.data + 8 + header;
    size = s->map.size - 8 - header;
    for (v = root->child; v; v = v->next)
        if (!strcmp(v->key, "__metadata__") ? read_metadata(s, v, err)
                                            : read_tensor(s, &s->tensors[s->n++], v, data, size, err))
            return -1;
    if (s->n > 1) qsort(s->tensors, (size_t)s->n, sizeof *s->tensors, by_place);
    for (i = 0; i < s->n; i++) names_add(s->names, s->tensors[i].name, &s->tensors[i]);
    return check_cover(s, data, size, err);
}

int safetensors_open(struct safetensors *s, const char *path, struct lora_error *err)
{
    memset(s, 0, sizeof *s);
    if (file_open(&s->map, path, err)) return -1;
    s->path = new_string(path, err);
    if (s->path && !read_all(s, err)) return 0;
    safetensors_close(s);
    return -1;
}

void safetensors_close(struct safetensors *s)
{
    json_free(&s->header);
    names_free(s->names);
    free(s->tensors);
    free(s->path);
    file_close(&s->map);
    memset(s, 0, sizeof *s);
}

const struct st_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    return names_find(s->names, name);
}

/* ---- writing ---- */

int st_writer_add(struct st_writer *w, const char *name, int type, const size_t *dims, int n_dims,
                  struct lora_error *err)
{
    size_t count = 1, bytes;
    int i, bad = n_dims < 0 || n_dims > ST_DIMS || !weight_types[type].safetensors;
    for (i = 0; i < n_dims && !bad; i++) bad = size_mul(&count, count, dims[i]) != 0;
    if (bad || type_bytes(&bytes, type, count) || bytes > UINT64_MAX - w->expected) {
        fail(err, "cannot write safetensors", "tensor %s", name);
        expected(err, "a type of the format and at most %d dimensions", ST_DIMS);
        return found(err, "%s, %d dimensions", weight_types[type].name, n_dims);
    }
    text_puts(&w->header, ",");
    json_put_text(&w->header, name);
    text_printf(&w->header, ":{\"dtype\":\"%s\",\"shape\":[", weight_types[type].safetensors);
    for (i = 0; i < n_dims; i++) text_printf(&w->header, "%s%zu", i ? "," : "", dims[i]);
    text_printf(&w->header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)w->expected,
                (unsigned long long)(w->expected + bytes));
    w->expected += bytes;
    return text_check(&w->header, err);
}

int st_writer_begin(struct st_writer *w, const char *path, struct lora_error *err)
{
    static const char head[] = "{\"__metadata__\":{\"format\":\"pt\"}";
    unsigned char length[8];
    uint64_t n;
    int i;
    text_puts(&w->header, "}");
    while (!w->header.failed && (strlen(head) + w->header.n) % 8) text_puts(&w->header, " ");   /* data at a multiple of 8 */
    if (text_check(&w->header, err) || writer_open(&w->file, path, err)) return -1;
    n = strlen(head) + w->header.n;
    w->data_start = sizeof length + n;
    for (i = 0; i < 8; i++) length[i] = (unsigned char)(n >> 8 * i);
    return writer_put(&w->file, length, sizeof length, err) || writer_put(&w->file, head, strlen(head), err)
           || writer_put(&w->file, w->header.s, w->header.n, err) ? -1 : 0;
}

int st_writer_put(struct st_writer *w, const void *data, size_t bytes, struct lora_error *err)
{
    return writer_put(&w->file, data, bytes, err);
}

int st_writer_commit(struct st_writer *w, struct lora_error *err)
{
    int bad = writer_commit_data(&w->file, "cannot write safetensors", w->data_start, w->expected, err);
    st_writer_abandon(w);
    return bad;
}

void st_writer_abandon(struct st_writer *w)
{
    if (w->file.path) writer_abandon(&w->file);     /* not begun: no file yet, and fd 0 is not ours */
    text_free(&w->header);
    memset(w, 0, sizeof *w);
}
