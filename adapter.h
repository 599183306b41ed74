/* adapter.h - which linears are adapted, with what rank and scale; PEFT's directory, read and written. */
#ifndef ADAPTER_H
#define ADAPTER_H

#include "model.h"

/* One adapted linear: y = x W^T + b + s drop(x) A^T B^T  (Hu et al. 2021, eq. 3), A [r,in], B [out,r].
 * s = alpha / r, with rsLoRA alpha / sqrt(r) (Kalajdzievski 2023). */
struct adapted {
    int id, layer;          /* which tensor of the model */
    int r;
    double alpha, scale;
    int rows, cols;         /* out, in */
    size_t a, b;            /* offsets of A and B in the flat buffers */
};

struct adapter {
    /* settings, as in adapter_config.json */
    int r;
    double alpha, dropout;
    int use_rslora;
    int layers;                 /* of the model */
    int n;
    struct adapted *modules;    /* in the order of the model's tensors */
    size_t size;                /* elements of A and B together */
    char **names;               /* target_modules as given: list entries, or one regular expression */
    int n_names, is_regex;
    float *values;              /* [size] what was read, or NULL */
    struct text unmatched;      /* keys of the patterns that were read and match none of the modules, with ", "
                                 * between them: PEFT passes over them, a job says so */
};

struct adapter_settings {
    int r;
    double alpha, dropout;
    int use_rslora;
    const char *target_modules;     /* "all-linear", names with commas, or a regular expression in // */
    const char *rank_pattern, *alpha_pattern;   /* "key=value,key=value" or a JSON object; NULL: none */
    const char *layers;             /* "0,1,4-7" or NULL: all */
};

/* Each that makes an adapter copies what it is given, and leaves *a NULL after an error. */

/* A new adapter for a model of this configuration: table only (values NULL). r, alpha and target_modules must be set. A
 * target that names no linear of the model is an error that lists what it has, a pattern that matches no adapted module
 * too. */
int adapter_new(struct adapter **a, const struct config *c, const struct adapter_settings *s,
                struct lora_error *err);
/* Fills values as PEFT does: A uniform in +-1/sqrt(in), stream named after its tensor; B zero. Those that were there are
 * gone, after an error too. */
int adapter_init(struct adapter *a, uint64_t seed, struct lora_error *err);
/* Reads a PEFT directory, strictly: an unknown key of the file, a missing A or B, a wrong shape, or
 * a setting that is not supported and not at its default is refused by name. Its tensors say which
 * modules are adapted; they are its values. */
int adapter_read(struct adapter **a, const char *dir, const struct config *c, struct lora_error *err);
/* The paths of adapter_config.json and adapter_model.safetensors in dir, both to be freed, after an error too: one that
 * is not there is an error, which says in what folder or form the adapter may be. */
int adapter_paths(char *path[2], const char *dir, struct lora_error *err);
/* adapter_config.json and adapter_model.safetensors (F32) as PEFT loads them, in a directory that is there already.
 * values[a->size]: a->values, or others, as from lora_get(). base_model: the name or path that PEFT is to find; NULL: none. */
int adapter_write(const struct adapter *a, const float *values, const char *dir,
                  const char *base_model, struct lora_error *err);
/* a->values (they must be there) as a GGUF file that llama.cpp loads over a base of this configuration: a new file, F32. Its
 * loader multiplies B A by alpha / rank with one alpha for all; where one does not do, the rest of each
 * module's scale is in its B. Rows of q and k lie as the base's do in GGUF files of its architecture. */
int adapter_write_gguf(const struct adapter *a, const struct config *c, const char *path, struct lora_error *err);
void adapter_free(struct adapter *a);       /* NULL: nothing to do */

const struct adapted *adapter_find(const struct adapter *a, int id, int layer);     /* a's; NULL: it is not adapted */
/* 1 when every B is zero, or there are no values: the adapter changes nothing (yet). */
int adapter_is_zero(const struct adapter *a);
/* "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" into name[n]; returns name. */
char *adapter_tensor_name(char *name, size_t n, const struct adapted *m, int is_b);
/* One adapter that does what list[n], n > 0, of one model do together, each with its own factor[i]: ranks are laid side by
 * side, B_out A_out = sum of factor_i s_i B_i A_i, of scale 1. All must have values; they are not changed. */
int adapter_join(struct adapter **out, const struct adapter *const *list, const double *factor, int n,
                 struct lora_error *err);

#endif
