/* gguf_write.c - see gguf.h: keys and the table of tensors are collected, data follows in a stream. */
#include "gguf.h"

#include <string.h>

#define VERSION 3
#define ALIGNMENT 32            /* the format's default: no key needs to say it */
#define TENSOR_NAME_MOST 63     /* ggml keeps names in 64 bytes, with a NUL */

static void put_little(struct text *t, uint64_t v, int bytes)
{
    char b[8];
    int i;
    for (i = 0; i < bytes; i++) b[i] = (char)(unsigned char)(v >> 8 * i);
    text_add(t, b, (size_t)bytes);
}

static void put_string(struct text *t, const char *s)
{
    put_little(t, strlen(s), 8);
    text_puts(t, s);
}

static void put_key(struct gguf_writer *w, const char *key, int type)
{
    w->n_values++;
    put_string(&w->values, key);
    put_little(&w->values, (uint64_t)type, 4);
}

void gguf_writer_string(struct gguf_writer *w, const char *key, const char *value)
{
    put_key(w, key, GGUF_STRING);
    put_string(&w->values, value);
}

void gguf_writer_f32(struct gguf_writer *w, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(w, key, GGUF_F32);
    put_little(&w->values, bits, 4);
}

static uint64_t padding(uint64_t n) { return (ALIGNMENT - n % ALIGNMENT) % ALIGNMENT; }

int gguf_writer_add(struct gguf_writer *w, const char *name, int type, const size_t *dims, int n_dims,
                    struct lora_error *err)
{
    const struct weight_type_info *info = &weight_types[type];
    size_t count = 1, bytes = 0, n = strlen(name);
    int i, bad = n_dims < 1 || n_dims > 4 || info->gguf < 0 || !n || n > TENSOR_NAME_MOST;
    for (i = 0; i < n_dims && !bad; i++) bad = size_mul(&count, count, dims[i]) != 0;
    if (bad || dims[0] % (size_t)info->block || type_bytes(&bytes, type, count)
        || bytes > UINT64_MAX - ALIGNMENT - w->expected) {
        fail(err, "cannot write GGUF", "tensor %s", name);
        expected(err, "a name of 1 to %d bytes, a type of the format, 1 to 4 dimensions, rows of whole blocks",
                 TENSOR_NAME_MOST);
        return found(err, "%zu bytes, %s, %d dimensions", n, info->name, n_dims);
    }
    put_string(&w->tensors, name);
    put_little(&w->tensors, (uint64_t)n_dims, 4);
    for (i = 0; i < n_dims; i++) put_little(&w->tensors, dims[i], 8);
    put_little(&w->tensors, (uint64_t)info->gguf, 4);
    put_little(&w->tensors, w->expected, 8);
    w->n_tensors++;
    w->expected += bytes + padding(bytes);
    return text_check(&w->tensors, err);
}

static int put_padding(struct gguf_writer *w, struct lora_error *err)
{
    static const unsigned char zeros[ALIGNMENT];
    return writer_put(&w->file, zeros, (size_t)padding(w->file.offset), err);
}

int gguf_writer_begin(struct gguf_writer *w, const char *path, struct lora_error *err)
{
    struct text head = { NULL, 0, 0, 0 };
    int bad;
    text_puts(&head, "GGUF");
    put_little(&head, VERSION, 4);
    put_little(&head, w->n_tensors, 8);
    put_little(&head, w->n_values, 8);
    bad = text_check(&head, err) || text_check(&w->values, err) || text_check(&w->tensors, err)
          || writer_open(&w->file, path, err) || writer_put(&w->file, head.s, head.n, err)
          || (w->values.n && writer_put(&w->file, w->values.s, w->values.n, err))
          || (w->tensors.n && writer_put(&w->file, w->tensors.s, w->tensors.n, err)) || put_padding(w, err);
    text_free(&head);
    w->data_start = w->file.offset;
    return bad ? -1 : 0;
}

int gguf_writer_put(struct gguf_writer *w, const void *data, size_t bytes, struct lora_error *err)
{
    return writer_put(&w->file, data, bytes, err) || put_padding(w, err) ? -1 : 0;
}

int gguf_writer_commit(struct gguf_writer *w, struct lora_error *err)
{
    int bad = writer_commit_data(&w->file, "cannot write GGUF", w->data_start, w->expected, err);
    gguf_writer_abandon(w);
    return bad;
}

void gguf_writer_abandon(struct gguf_writer *w)
{
    if (w->file.path) writer_abandon(&w->file);     /* not begun: no file yet, and fd 0 is not ours */
    text_free(&w->values);
    text_free(&w->tensors);
    memset(w, 0, sizeof *w);
}
