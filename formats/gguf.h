/* gguf.h - the GGUF format, versions 2 and 3, little endian.
 * https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
#ifndef GGUF_H
#define GGUF_H

#include "names.h"
#include "../weight.h"

enum gguf_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL,
    GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64
};

struct gguf_string { const char *s; size_t n; };    /* in the mapped file: not NUL-ended */

struct gguf_value {
    char *key;                      /* NUL-ended */
    int type, element;              /* element: type of an array's elements */
    size_t n;                       /* elements of an array */
    const unsigned char *data;      /* of a scalar, of a number array: in the file, unaligned */
    struct gguf_string string;      /* of a string */
    struct gguf_string *strings;    /* of an array of strings */
};

struct gguf_tensor {
    char *name;
    int type;                       /* enum weight_type */
    int n_dims;
    size_t dims[4];                 /* ggml's order: dims[0] is the row length */
    size_t count, bytes;
    const unsigned char *data;
};

struct gguf {
    char *path;
    struct file_map map;
    int n_values, n_tensors;
    struct gguf_value *values;
    struct gguf_tensor *tensors;
    size_t alignment;
    struct names *value_names, *tensor_names;
};

/* Opens and checks everything: sizes, strings and tensors inside the file, no overlap, no key or
 * name twice, tensor types of weight.h. */
int gguf_open(struct gguf *g, const char *path, struct lora_error *err);
void gguf_close(struct gguf *g);
const struct gguf_value *gguf_get(const struct gguf *g, const char *key);
const struct gguf_tensor *gguf_find(const struct gguf *g, const char *name);
/* Typed: 0 with *out untouched when absent; -1 when of another type or out of range. */
int gguf_get_int(const struct gguf *g, const char *key, int *out, struct lora_error *err);
int gguf_get_number(const struct gguf *g, const char *key, double *out, struct lora_error *err);
int gguf_get_bool(const struct gguf *g, const char *key, int *out, struct lora_error *err);
/* A copy owned by the caller, or NULL in *out when absent. */
int gguf_get_string(const struct gguf *g, const char *key, char **out, struct lora_error *err);
/* Element i of a number array as double. */
double gguf_array_number(const struct gguf_value *v, size_t i);

/* Writing (version 3), in a stream: set the keys and add all tensors, in any order; begin; put each
 * tensor's bytes, one call a tensor, in the order added; commit. Zero-initialise; when add, begin or put
 * fails, abandon. A key or a name is the caller's to give once. */
struct gguf_writer {
    struct writer file;
    struct text values, tensors;    /* as they stand in the file */
    uint64_t n_values, n_tensors;
    uint64_t expected, data_start;  /* bytes of data, with what pads each tensor; where it begins */
};
void gguf_writer_string(struct gguf_writer *w, const char *key, const char *value);
void gguf_writer_f32(struct gguf_writer *w, const char *key, float value);
/* dims in ggml's order: dims[0] is the row length. */
int gguf_writer_add(struct gguf_writer *w, const char *name, int type, const size_t *dims, int n_dims,
                    struct lora_error *err);
int gguf_writer_begin(struct gguf_writer *w, const char *path, struct lora_error *err);
int gguf_writer_put(struct gguf_writer *w, const void *data, size_t bytes, struct lora_error *err);
int gguf_writer_commit(struct gguf_writer *w, struct lora_error *err);  /* frees w, also when it fails */
void gguf_writer_abandon(struct gguf_writer *w);

#endif
