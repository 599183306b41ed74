/* config.h - what a model is made of: sizes, options and rotary settings, from config.json or a GGUF file.
 *
 * A family of models is a row of data: what its code in Transformers does that no key says. */
#ifndef CONFIG_H
#define CONFIG_H

#include "util.h"

/* Letters for shapes, everywhere: N tokens of a pack, C hidden, V vocabulary, L layers, NH query
 * heads, NKV key/value heads, HS head size, F feed-forward, R rank. */

enum rope_type { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };

struct config {
    char model_type[32];            /* "llama" */
    int C, V, L, NH, NKV, HS, F;
    int max_positions;
    double norm_eps;
    int tied;                       /* the head is the embedding */
    int qkv_bias, o_bias, mlp_bias; /* added where the family or the file has them */
    int qk_norm;                    /* Qwen3: RMSNorm of each head's q and k before rope */
    int fused;                      /* Phi-3: q, k and v are the rows of one matrix, gate and up of another */
    int window;                     /* sliding window in positions, 0: none */
    struct {
        int type;
        double theta, factor, low, high, beta_fast, beta_slow, attention_factor;
        int original;               /* original_max_position_embeddings */
        int no_truncate;            /* YaRN's ramp begins and ends where it falls, not at whole dimensions: "truncate": false */
        const float *divide;        /* GGUF rope_freqs [HS/2], or NULL */
    } rope;
    int bos, pad, eos[8], n_eos;    /* -1 / 0 when the configuration names none; pad is only kept */
};

struct family {
    const char *type, *architecture;    /* "llama", "LlamaForCausalLM" */
    int qkv_bias;               /* 1 always, 0 never, -1: the key attention_bias says, o_proj too */
    int mlp_bias;               /* -1: the key mlp_bias says */
    int qk_norm, fused;
    int window;                 /* 0: no key. Else sliding_window holds, and is this where there is no such key (1: none) */
    double norm_eps;            /* rms_norm_eps where there is no such key */
    const char *gguf;           /* general.architecture of its GGUF files; one that several rows have is
                                 * read as the first */
    int gguf_permuted;          /* rows of q and k lie in adjacent rotary pairs there */
};

struct gguf;
struct quantise;

/* config.json, or the keys of a GGUF file. A key that would change the numbers and is not computed is
 * refused by name; one that nobody reads is added to `ignored` (may be NULL): "a, b". */
int config_read(struct config *c, const char *path, struct text *ignored, struct lora_error *err);
int config_from_gguf(struct config *c, const struct gguf *g, struct text *ignored, struct lora_error *err);
/* config.json with this type of weights (TYPE_F32, TYPE_BF16, TYPE_F16); how: the linears of the layers
 * are quantised so, or NULL. */
int config_write(const struct config *c, const char *path, int dtype, const struct quantise *how, struct lora_error *err);
/* The eos_token_id of a generation_config.json, an id or a list of them: *n into eos. */
int config_read_eos(int eos[8], int *n, const char *path, struct lora_error *err);
const char *config_dtype_name(int dtype);       /* "float32", "bfloat16", "float16" */

/* Of a configuration that was read; NULL with an error if its model_type is none. */
const struct family *config_family(const struct config *c, struct lora_error *err);
uint64_t config_hash(const struct config *c, uint64_t h);      /* of all that changes the numbers */

/* Rotary frequencies f[HS/2] in radians a position, with the scaling of the configuration, and the
 * factor on cos and sin (yarn's attention factor, else 1). What each kind is for: docs/math.md, "Rotary positions" */
void rope_frequencies(const struct config *c, double *f, double *factor);

#endif
