/* model_parts.h - between model.c and model_quantised.c, which knows bitsandbytes' tensors. Not for others. */
#ifndef MODEL_PARTS_H
#define MODEL_PARTS_H

#include "model.h"
#include "formats/safetensors.h"

/* model.c: where a tensor's weight stands, of no rows as long as the model has none. */
struct weight *model_slot(const struct model *m, int id, int layer);
/* Sets m->hash. */
void model_hash(struct model *m);
/* Which row of the table has this name; -1: none. The layer is the number in it. */
int model_find_tensor(const struct config *c, const char *name, int gguf, int *layer);

/* With all shards open. The type that a file's tensor `id` is quantised in, from what lies beside it; -1: plain. */
int quantised_type(const struct model *m, int id, const struct st_tensor *t);
/* Does this belong to a quantised weight: a scale, a table, a state? */
int quantised_part(const struct model *m, const char *name);
/* Makes *w of the tensor t of `file` and its parts, each size checked. */
int quantised_take(const struct model *m, struct weight *w, int id, int type, const struct st_tensor *t, const char *file,
                   struct lora_error *err);

/* The tensors of linear X.weight in a file, in their order there; those of INT8's format byte come apart. */
int quantised_add(struct st_writer *f, const char *name, const struct quantise *how, int rows, int cols, int dtype,
                  struct lora_error *err);
int quantised_put(struct st_writer *f, const struct weight *w, int dtype, struct lora_error *err);
int quantised_add_format(struct st_writer *f, const char *name, struct lora_error *err);
int quantised_put_format(struct st_writer *f, struct lora_error *err);

#endif
