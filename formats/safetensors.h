/* safetensors.h - the safetensors format: 8 bytes of header length, a JSON header, tensors.
 * https://github.com/huggingface/safetensors (format section) */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include "json.h"
#include "names.h"
#include "../weight.h"

#define ST_DIMS 8

struct st_tensor {
    const char *name;
    int type;                   /* enum weight_type */
    int n_dims;
    size_t dims[ST_DIMS];
    size_t count;               /* product of dims (1 for 0-d) */
    const unsigned char *data;  /* in the mapped file; NOT aligned to its type */
    size_t bytes;
};

struct safetensors {
    char *path;
    struct file_map map;
    int n;
    struct st_tensor *tensors;  /* by offset in the file */
    struct names *names;
    struct json_document header;
};

/* Opens and checks everything: header length, offsets inside the file, no overlap, no hole, bytes =
 * count * size, no name twice. */
int safetensors_open(struct safetensors *s, const char *path, struct lora_error *err);
void safetensors_close(struct safetensors *s);
const struct st_tensor *safetensors_find(const struct safetensors *s, const char *name);

/* Writing, in a stream: add all tensors, begin, put each one's bytes in the order added, commit.
 * Metadata {"format":"pt"}. Zero-initialise; when add, begin or put fails, abandon. Tensors lie as
 * they are added: add those of wider types first, so that each is aligned. */
struct st_writer {
    struct writer file;
    struct text header;             /* the tensors in it */
    uint64_t expected, data_start;  /* bytes of data; where it begins */
};
int st_writer_add(struct st_writer *w, const char *name, int type, const size_t *dims, int n_dims,
                  struct lora_error *err);
int st_writer_begin(struct st_writer *w, const char *path, struct lora_error *err);
int st_writer_put(struct st_writer *w, const void *data, size_t bytes, struct lora_error *err);
int st_writer_commit(struct st_writer *w, struct lora_error *err);  /* frees w, also when it fails */
void st_writer_abandon(struct st_writer *w);

#endif
