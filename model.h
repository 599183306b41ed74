/* model.h - a model on disk: the table of its tensors, checked, over its configuration (config.h).
 *
 * One table row per tensor says its name in Hugging Face's and in GGUF's files, its dims by letter
 * and what it is; that row finds, checks, allocates, saves and prints it. */
#ifndef MODEL_H
#define MODEL_H

#include "config.h"
#include "kernels.h"
#include "nf4.h"

/* In the order in which forward meets them. Per layer from T_ATTN_NORM to T_BDOWN. */
enum tensor_id {
    T_EMBED,
    T_ATTN_NORM, T_WQ, T_BQ, T_WK, T_BK, T_WV, T_BV, T_WQKV, T_Q_NORM, T_K_NORM, T_WO, T_BO,
    T_MLP_NORM, T_WGATE, T_BGATE, T_WUP, T_BUP, T_WGATE_UP, T_WDOWN, T_BDOWN,
    T_FINAL_NORM, T_HEAD,
    T_COUNT
};

struct tensor_spec {
    const char *name;       /* "wq": as the code calls it */
    const char *hf;         /* "model.layers.%d.self_attn.q_proj.weight" */
    const char *gguf;       /* "blk.%d.attn_q.weight" */
    char rows, cols;        /* letters: V C F, Q = NH*HS, K = NKV*HS, H = HS, A = Q + 2K, G = 2F, 1: a vector */
    unsigned char linear;   /* a matrix of a layer that LoRA can adapt */
};
extern const struct tensor_spec tensor_specs[T_COUNT];

int tensor_layered(int id);                                     /* one per layer? */
int tensor_present(const struct config *c, int id);             /* does this model have it? */
int tensor_rows(const struct config *c, int id);                /* [rows, cols]: outputs, inputs; a vector has 1 column */
int tensor_cols(const struct config *c, int id);
/* The tensors of a model one after the other, in the order in which forward meets them, each once (a tied head is its
 * embedding). Begin with *id = -1, *layer = 0; returns 0 after the last. */
int tensor_next(const struct config *c, int *id, int *layer);
/* The Hugging Face name of one tensor into name[n]; returns name. The module's name, as PEFT has it
 * in target_modules, is that without ".weight". */
char *tensor_name(char *name, size_t n, int id, int layer);
char *tensor_gguf_name(char *name, size_t n, int id, int layer);        /* the same in GGUF files */

struct safetensors;

struct model {
    struct config config;
    struct weight *weights;         /* [L * T_COUNT]: use model_weight */
    struct text ignored;            /* configuration keys and tensors that were passed over, for the
                                     * job to show: "a, b"; s is NULL when there are none */
    char *path;
    /* what keeps the mapped bytes alive */
    struct gguf *gguf;              /* or NULL: a directory */
    struct safetensors *shards;
    int n_shards;
    uint64_t hash;                  /* of the configuration and the numbers at both ends of each tensor, whatever holds them */
};

/* Opens a Hugging Face directory or a .gguf file: configuration and table, every tensor present
 * with the right shape, unknown tensors and configuration keys that would change the numbers
 * refused by name. Maps, copies nothing: the files stay as they are until it is closed, after all that was opened over it.
 * After an error *m is NULL. */
int model_open(struct model **m, const char *path, struct lora_error *err);
void model_close(struct model *m);      /* NULL: nothing to do */

/* NULL when the model does not have that tensor. T_HEAD of a tied model is its T_EMBED. The model's, as its data. */
const struct weight *model_weight(const struct model *m, int id, int layer);

/* The linears of the layers (tensor_specs[].linear, as Transformers with bitsandbytes has it: not
 * embeddings, head, norms, biases) in this type from now on, from whatever type they have, GGUF's rows of
 * q and k in order. One tensor after the other, each tensor's part of the mapped file given back: the
 * peak is the quantised model and one tensor. A model that is quantised by bitsandbytes already is
 * refused. Changes m->hash. Weights that model_weight() returned before are the new ones; after an error
 * close the model. */
int model_quantise(struct model *m, const struct quantise *how, int threads, struct lora_error *err);

/* A model directory, made where there is none: config.json and model.safetensors in `dtype` (TYPE_F32, TYPE_BF16, TYPE_F16).
 * row(ctx, id, layer, r, out) gives row r of a tensor as floats. Tokenizer files are the caller's. */
typedef int model_row_source(void *ctx, int id, int layer, int row, float *out, struct lora_error *err);
int model_write(const struct config *c, const char *dir, int dtype, model_row_source *row, void *ctx,
                struct lora_error *err);
/* The same, with the linears of the layers as Transformers with bitsandbytes saves and loads them;
 * dtype is that of the other tensors and of what they compute with. how NULL: model_write. */
int model_write_quantised(const struct config *c, const char *dir, int dtype, const struct quantise *how,
                          model_row_source *row, void *ctx, int threads, struct lora_error *err);
/* A row source whose ctx is a `struct model`: its own rows. */
model_row_source model_row;

long long config_parameters(const struct config *c);    /* of all tensors; a tied head counts once */

#endif
