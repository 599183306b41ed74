/* config.c - see config.h: config.json and GGUF's keys read into a configuration, and written again. */
#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nf4.h"
#include "formats/gguf.h"
#include "formats/json.h"

/* ---- families ---- */

static const struct family families[] = {
    { "llama",   "LlamaForCausalLM",   -1, -1, 0, 0, 0, 1e-6, "llama", 1 },
    { "mistral", "MistralForCausalLM",  0,  0, 0, 0, 4096, 1e-6, "llama", 1 },
    { "qwen2",   "Qwen2ForCausalLM",    1,  0, 0, 0, 0, 1e-6, "qwen2", 0 },
    { "qwen3",   "Qwen3ForCausalLM",   -1,  0, 1, 0, 0, 1e-6, "qwen3", 0 },
    { "phi3",    "Phi3ForCausalLM",     0,  0, 0, 1, 1, 1e-5, "phi3",  0 },
};
#define N_FAMILIES (sizeof families / sizeof *families)

static const struct family *find_family(const char *type, int gguf, const char *path, struct lora_error *err)
{
    struct text list = { 0 };
    size_t i;
    for (i = 0; i < N_FAMILIES; i++)
        if (type && !strcmp(gguf ? families[i].gguf : families[i].type, type)) return &families[i];
    for (i = 0; i < N_FAMILIES; i++)
        if (!gguf) text_list(&list, families[i].type);
        else if (!i || strcmp(families[i].gguf, families[i - 1].gguf)) text_list(&list, families[i].gguf);
    fail(err, "unsupported model", "%s: %s", path, gguf ? "general.architecture" : "model_type");
    expected(err, "one of %s", list.s ? list.s : "");
    found(err, "%s", type ? type : "nothing");
    text_free(&list);
    return NULL;
}

const struct family *config_family(const struct config *c, struct lora_error *err)
{
    return find_family(c->model_type, 0, "the configuration", err);
}

/* ---- sizes ---- */

/* The sizes of a model: the key of config.json, that of GGUF files behind their architecture's name, the most that is
 * taken. The least is 1. */
static const struct size {
    const char *key, *gguf;         /* gguf NULL: the shape of a tensor says it */
    size_t offset;
    int most;
} sizes[] = {
    { "hidden_size", "embedding_length", offsetof(struct config, C), 1 << 20 },
    { "vocab_size", NULL, offsetof(struct config, V), 1 << 26 },
    { "num_hidden_layers", "block_count", offsetof(struct config, L), 1 << 12 },
    { "num_attention_heads", "attention.head_count", offsetof(struct config, NH), 1 << 14 },
    { "num_key_value_heads", "attention.head_count_kv", offsetof(struct config, NKV), 1 << 14 },
    { "head_dim", "attention.key_length", offsetof(struct config, HS), 1 << 14 },
    { "intermediate_size", "feed_forward_length", offsetof(struct config, F), 1 << 22 },
    { "max_position_embeddings", "context_length", offsetof(struct config, max_positions), 1 << 28 },
};
#define N_SIZES (sizeof sizes / sizeof *sizes)

static int *size_at(struct config *c, const struct size *size) { return (int *)((char *)c + size->offset); }

static int is_size(const char *key, int gguf)
{
    size_t i;
    for (i = 0; i < N_SIZES; i++) {
        const char *name = gguf ? sizes[i].gguf : sizes[i].key;
        if (name && !strcmp(key, name)) return 1;
    }
    return 0;
}

/* ---- keys ---- */

/* Keys that say nothing about the numbers here: names, files, tokens (the tokenizer has them),
 * settings of training elsewhere or of generation. */
static const char *const inert_keys[] = {
    "_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "initializer_range", "model_type", "_attn_implementation_autoset", "unsloth_version",
    "output_attentions", "output_hidden_states", "return_dict", "is_llama_config", "transformers.js_config",
    "max_window_layers", "unsloth_fixed", "auto_map", "chunk_size_feed_forward", "id2label", "label2id",
    "is_encoder_decoder", "problem_type", "use_mup",
};

/* Keys that are read below, besides sizes. */
static const char *const read_keys[] = {
    "rms_norm_eps", "tie_word_embeddings", "attention_bias",
    "mlp_bias", "rope_theta", "rope_scaling", "rope_parameters", "bos_token_id", "eos_token_id",
    "pad_token_id", "sliding_window", "use_sliding_window", "layer_types", "hidden_act", "original_max_position_embeddings",
};

/* Keys that change the numbers, and the only value that this program computes. */
static const struct { const char *key; double only; } fixed_keys[] = {
    { "pretraining_tp", 1 }, { "rope_interleaved", 0 }, { "partial_rotary_factor", 1 },
    { "attention_dropout", 0 }, { "use_qk_norm", 0 }, { "attn_logit_softcapping", 0 },
    { "final_logit_softcapping", 0 }, { "logit_scale", 1 }, { "embedding_multiplier", 1 },
    { "attention_multiplier", 1 }, { "residual_multiplier", 1 }, { "logits_scaling", 1 },
    { "num_local_experts", 0 }, { "num_experts", 0 }, { "clip_qkv", 0 }, { "alibi", 0 },
    { "no_rope_layers", 0 }, { "hidden_dropout", 0 }, { "embd_pdrop", 0 }, { "resid_pdrop", 0 },
    { "use_sliding_window", 0 },
};

static int in_list(const char *key, const char *const *list, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++) if (!strcmp(key, list[i])) return 1;
    return 0;
}
#define IN_LIST(key, list) in_list(key, list, sizeof list / sizeof *list)

/* bitsandbytes' weights say themselves what they are; no other quantisation is read. */
static int check_quantisation(const struct json *o, const char *path, struct lora_error *err)
{
    const char *method = "nothing";
    if (json_get_string(o, "quant_method", &method, path, err)) return -1;
    if (!strcmp(method, "bitsandbytes")) return 0;
    fail(err, "unsupported configuration", "%s, line %d: quantization_config, quant_method", path, o->line);
    expected(err, "bitsandbytes, or a model in f32, f16 or bf16");
    return found(err, "%s", method);
}

/* Every key is read, inert, at the only value we compute, or shown to the user; other programs'
 * quantisations are refused by name. */
static int check_keys(const struct json *o, const char *path, struct text *ignored, struct lora_error *err)
{
    const struct json *v;
    size_t i;
    for (v = o->child; v; v = v->next) {
        int fixed = 0;
        for (i = 0; i < sizeof fixed_keys / sizeof *fixed_keys; i++) {
            if (strcmp(v->key, fixed_keys[i].key)) continue;
            fixed = 1;
            if (v->type == JSON_NULL) break;
            if ((v->type == JSON_NUMBER || v->type == JSON_BOOL) && v->number == fixed_keys[i].only) break;
            fail(err, "unsupported configuration", "%s, line %d: %s", path, v->line, v->key);
            expected(err, "%g", fixed_keys[i].only);
            if (v->type == JSON_NUMBER || v->type == JSON_BOOL) return found(err, "%g", v->number);
            return found(err, "another kind of value");
        }
        if (fixed || IN_LIST(v->key, inert_keys) || IN_LIST(v->key, read_keys) || is_size(v->key, 0)) continue;
        if (!strcmp(v->key, "quantization_config") && v->type != JSON_NULL) {
            if (check_quantisation(v, path, err)) return -1;
            continue;
        }
        if (ignored) text_list(ignored, v->key);
    }
    return ignored ? text_check(ignored, err) : 0;
}

/* ---- rope ---- */

static const char *const rope_names[] = { "default", "linear", "llama3", "yarn" };

static int rope_type(struct config *c, const char *name, const char *path, struct lora_error *err)
{
    int i;
    for (i = 0; i < 4; i++)
        if (!strcmp(name, rope_names[i])) {
            c->rope.type = i;
            return 0;
        }
    fail(err, "unsupported rope type", "%s: rope_type", path);
    expected(err, "default, linear, llama3 or yarn");
    return found(err, "%s", name);
}

/* rope_scaling (older) or rope_parameters (Transformers 5): the same keys inside. */
static int read_rope(struct config *c, const struct json *o, const char *path, struct lora_error *err)
{
    static const char *const known[] = {
        "type", "rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "beta_fast",
        "beta_slow", "attention_factor", "original_max_position_embeddings", "partial_rotary_factor", "truncate",
    };
    const char *name = "default";
    const struct json *v;
    double partial = 1;
    int truncate = !c->rope.no_truncate;
    if (!o || o->type == JSON_NULL) return 0;
    if (o->type != JSON_OBJECT) {
        fail(err, "bad configuration", "%s, line %d: rope settings", path, o->line);
        return expected(err, "an object");
    }
    for (v = o->child; v; v = v->next)
        if (!IN_LIST(v->key, known)) {
            fail(err, "unsupported rope setting", "%s, line %d: %s", path, v->line, v->key);
            return expected(err, "the settings of default, linear, llama3 or yarn");
        }
    if (json_get_string(o, "type", &name, path, err) || json_get_string(o, "rope_type", &name, path, err)
        || rope_type(c, name, path, err)
        || json_get_number(o, "rope_theta", &c->rope.theta, path, err)
        || json_get_number(o, "factor", &c->rope.factor, path, err)
        || json_get_number(o, "low_freq_factor", &c->rope.low, path, err)
        || json_get_number(o, "high_freq_factor", &c->rope.high, path, err)
        || json_get_number(o, "beta_fast", &c->rope.beta_fast, path, err)
        || json_get_number(o, "beta_slow", &c->rope.beta_slow, path, err)
        || json_get_number(o, "attention_factor", &c->rope.attention_factor, path, err)
        || json_get_number(o, "partial_rotary_factor", &partial, path, err)
        || json_get_bool(o, "truncate", &truncate, path, err)
        || json_get_int(o, "original_max_position_embeddings", &c->rope.original, path, err)) return -1;
    c->rope.no_truncate = !truncate;
    if (partial != 1) {
        fail(err, "unsupported rope setting", "%s: partial_rotary_factor", path);
        expected(err, "1");
        return found(err, "%g", partial);
    }
    return 0;
}

void rope_frequencies(const struct config *c, double *f, double *factor)
{
    const double two_pi = 6.283185307179586476925;
    double theta = c->rope.theta, s = c->rope.factor, L = c->rope.original;
    int half = c->HS / 2, i;
    *factor = 1;
    for (i = 0; i < half; i++) {
        f[i] = pow(theta, -2.0 * i / c->HS);
        if (c->rope.divide) f[i] /= (double)c->rope.divide[i];
        if (c->rope.type == ROPE_LINEAR) f[i] /= s;
        if (c->rope.type == ROPE_LLAMA3) {      /* long waves slower, short ones kept, a ramp between */
            double wave = two_pi / f[i];
            double smooth = (L / wave - c->rope.low) / (c->rope.high - c->rope.low);
            if (wave > L / c->rope.low) f[i] /= s;
            else if (!(wave < L / c->rope.high)) f[i] = (1 - smooth) * f[i] / s + smooth * f[i];
        }
    }
    if (c->rope.type == ROPE_YARN) {            /* Peng et al. 2023: a ramp over the dimensions */
        double low = c->HS * log(L / (c->rope.beta_fast * two_pi)) / (2 * log(theta));
        double high = c->HS * log(L / (c->rope.beta_slow * two_pi)) / (2 * log(theta));
        if (!c->rope.no_truncate) low = floor(low), high = ceil(high);
        if (low < 0) low = 0;
        if (high > c->HS - 1) high = c->HS - 1;
        if (low == high) high += 0.001;
        for (i = 0; i < half; i++) {
            double ramp = (i - low) / (high - low);
            if (ramp < 0) ramp = 0;
            if (ramp > 1) ramp = 1;
            f[i] = f[i] / s * ramp + f[i] * (1 - ramp);
        }
        *factor = c->rope.attention_factor > 0 ? c->rope.attention_factor : s > 1 ? 0.1 * log(s) + 1 : 1;
    }
}

static const struct config defaults = {
    .max_positions = 2048, .norm_eps = 1e-6, .bos = -1, .pad = -1,
    .rope = { .theta = 10000, .factor = 1, .low = 1, .high = 4, .beta_fast = 32, .beta_slow = 1 },
};

/* What every configuration must fulfil, wherever it came from. */
static int config_check(struct config *c, const char *path, struct lora_error *err)
{
    size_t i;
    if (!c->NKV) c->NKV = c->NH;
    if (!c->HS && c->NH > 0 && c->C % c->NH == 0) c->HS = c->C / c->NH;
    if (!c->rope.original) c->rope.original = c->max_positions;
    if (c->rope.type == ROPE_PLAIN) c->rope.factor = 1;     /* a file may hold one that nothing uses */
    for (i = 0; i < N_SIZES; i++) {
        int v = *size_at(c, &sizes[i]);
        if (v >= 1 && v <= sizes[i].most) continue;
        fail(err, "bad configuration", "%s: %s", path, sizes[i].key);
        expected(err, "1 to %d", sizes[i].most);
        return found(err, "%d", v);
    }
    if (c->NH % c->NKV) {
        fail(err, "bad configuration", "%s: num_attention_heads", path);
        expected(err, "a multiple of num_key_value_heads (%d)", c->NKV);
        return found(err, "%d", c->NH);
    }
    if (c->HS % 2 || (long long)c->NH * c->HS > 1 << 22) {
        fail(err, "bad configuration", "%s: head_dim", path);
        expected(err, "an even number, of all heads together at most %d", 1 << 22);
        return found(err, "%d", c->HS);
    }
    if (!(c->norm_eps > 0 && c->norm_eps < 1) || !(c->rope.theta > 1) || !(c->rope.factor >= 1)
        || (c->rope.type == ROPE_LLAMA3 && !(c->rope.low > 0 && c->rope.high > c->rope.low))
        || (c->rope.type == ROPE_YARN && !(c->rope.beta_fast > 0 && c->rope.beta_slow > 0))
        || c->rope.original < 1 || c->window < 0) {
        fail(err, "bad configuration", "%s: rms_norm_eps, rope settings or sliding_window", path);
        expected(err, "0 < rms_norm_eps < 1, rope_theta > 1, factor >= 1");
        return found(err, "%g, %g, %g", c->norm_eps, c->rope.theta, c->rope.factor);
    }
    return 0;
}

static int read_eos(int eos[8], int *n, const struct json *v, const char *path, struct lora_error *err)
{
    const struct json *e;
    if (!v || v->type == JSON_NULL) return 0;
    for (e = v->type == JSON_ARRAY ? v->child : v; e; e = v->type == JSON_ARRAY ? e->next : NULL) {
        if (e->type != JSON_NUMBER || e->number != floor(e->number) || fabs(e->number) > 1e9 || *n == 8) {
            fail(err, "bad configuration", "%s: eos_token_id", path);
            return expected(err, "a token id, or at most 8 of them");
        }
        eos[(*n)++] = (int)e->number;
    }
    return 0;
}

static int read_family(struct config *c, const struct json *o, const char *path, struct lora_error *err)
{
    const char *type = NULL, *act = "silu";
    const struct family *f;
    const struct json *v;
    int bias = 0, mlp = 0;
    if (json_get_string(o, "model_type", &type, path, err) || !(f = find_family(type, 0, path, err))
        || json_get_string(o, "hidden_act", &act, path, err)
        || json_get_bool(o, "attention_bias", &bias, path, err) || json_get_bool(o, "mlp_bias", &mlp, path, err))
        return -1;
    snprintf(c->model_type, sizeof c->model_type, "%s", f->type);
    c->qkv_bias = f->qkv_bias < 0 ? bias : f->qkv_bias;
    c->o_bias = f->qkv_bias < 0 ? bias : 0;
    c->mlp_bias = f->mlp_bias < 0 ? mlp : f->mlp_bias;
    c->qk_norm = f->qk_norm;
    c->fused = f->fused;
    c->norm_eps = f->norm_eps;
    if (f->window > 1 && !json_get(o, "sliding_window")) c->window = f->window;
    if (f->window && json_get_int(o, "sliding_window", &c->window, path, err)) return -1;
    if (strcmp(act, "silu")) {
        fail(err, "unsupported configuration", "%s: hidden_act", path);
        expected(err, "silu");
        return found(err, "%s", act);
    }
    v = json_get(o, "layer_types");
    for (v = v && v->type == JSON_ARRAY ? v->child : NULL; v; v = v->next)
        if (v->type != JSON_STRING || strcmp(v->string, c->window ? "sliding_attention" : "full_attention")) {
            fail(err, "unsupported configuration", "%s, line %d: layer_types", path, v->line);
            expected(err, "%s in all layers", c->window ? "sliding_attention" : "full_attention");
            return found(err, "%s", v->type == JSON_STRING ? v->string : "another kind of value");
        }
    return 0;
}

static int check_object(const struct json *o, const char *path, struct lora_error *err)
{
    if (o && o->type == JSON_OBJECT) return 0;
    fail(err, "bad configuration", "%s", path);
    return expected(err, "an object");
}

static int config_parse(struct config *c, const struct json *o, const char *path, struct text *ignored,
                        struct lora_error *err)
{
    size_t i;
    *c = defaults;
    if (check_object(o, path, err) || read_family(c, o, path, err) || check_keys(o, path, ignored, err)) return -1;
    for (i = 0; i < N_SIZES; i++)
        if (json_get_int(o, sizes[i].key, size_at(c, &sizes[i]), path, err)) return -1;
    if (json_get_number(o, "rms_norm_eps", &c->norm_eps, path, err)
        || json_get_bool(o, "tie_word_embeddings", &c->tied, path, err)
        || json_get_int(o, "bos_token_id", &c->bos, path, err)
        || json_get_int(o, "pad_token_id", &c->pad, path, err)
        || json_get_number(o, "rope_theta", &c->rope.theta, path, err)
        || read_rope(c, json_get(o, "rope_parameters"), path, err)
        || read_rope(c, json_get(o, "rope_scaling"), path, err)     /* added to a newer file it is what is meant */
        || json_get_int(o, "original_max_position_embeddings", &c->rope.original, path, err)
        || read_eos(c->eos, &c->n_eos, json_get(o, "eos_token_id"), path, err)) return -1;
    return config_check(c, path, err);
}

int config_read(struct config *c, const char *path, struct text *ignored, struct lora_error *err)
{
    struct json_document d;
    int bad;
    if (json_read(&d, path, err)) return -1;
    bad = config_parse(c, d.root, path, ignored, err);
    json_free(&d);
    return bad;
}

int config_read_eos(int eos[8], int *n, const char *path, struct lora_error *err)
{
    struct json_document d;
    int bad;
    *n = 0;
    if (json_read(&d, path, err)) return -1;
    bad = check_object(d.root, path, err) || read_eos(eos, n, json_get(d.root, "eos_token_id"), path, err) ? -1 : 0;
    json_free(&d);
    return bad;
}

/* ---- GGUF ---- */

static int gguf_int(const struct gguf *g, const char *arch, const char *name, int *out, struct lora_error *err)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    return gguf_get_int(g, key, out, err);
}

static int gguf_number(const struct gguf *g, const char *arch, const char *name, double *out, struct lora_error *err)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    return gguf_get_number(g, key, out, err);
}

static int gguf_rope(struct config *c, const struct gguf *g, const char *arch, struct lora_error *err)
{
    char key[96], *name = NULL;
    double factor = 1, attention = 1;
    int bad = 0;
    snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
    if (gguf_get_string(g, key, &name, err)) return -1;
    if (name && strcmp(name, "none")) bad = rope_type(c, name, g->path, err);
    if (bad || gguf_number(g, arch, "rope.scaling.factor", &factor, err)
        || gguf_number(g, arch, "rope.scaling.attn_factor", &attention, err)
        || gguf_number(g, arch, "rope.scaling.yarn_beta_fast", &c->rope.beta_fast, err)
        || gguf_number(g, arch, "rope.scaling.yarn_beta_slow", &c->rope.beta_slow, err)
        || gguf_int(g, arch, "rope.scaling.original_context_length", &c->rope.original, err)) bad = -1;
    if (!name && factor > 1) c->rope.type = ROPE_LINEAR;     /* llama.cpp's default */
    if (c->rope.type != ROPE_PLAIN) c->rope.factor = factor;
    free(name);
    if (bad || attention == 1) return bad;
    fail(err, "unsupported rope setting", "%s: %s.rope.scaling.attn_factor", g->path, arch);
    expected(err, "1");
    return found(err, "%g", attention);
}

/* Llama-3's scaling as a tensor of divisors. */
static int gguf_divisors(struct config *c, const struct gguf *g, struct lora_error *err)
{
    const struct gguf_tensor *t = gguf_find(g, "rope_freqs.weight");
    int i;
    if (!t) return 0;
    if (t->type != TYPE_F32 || t->count != (size_t)c->HS / 2 || ((uintptr_t)t->data & 3)) {
        fail(err, "bad tensor", "%s: rope_freqs.weight", g->path);
        return expected(err, "%d aligned F32 numbers", c->HS / 2);
    }
    c->rope.divide = (const float *)(const void *)t->data;
    for (i = 0; i < c->HS / 2; i++)
        if (!(c->rope.divide[i] > 0)) {
            fail(err, "bad tensor", "%s: rope_freqs.weight", g->path);
            expected(err, "numbers above 0");
            return found(err, "%g", (double)c->rope.divide[i]);
        }
    return 0;
}

static int gguf_shape(struct config *c, const struct gguf *g, const char *arch, struct lora_error *err)
{
    const struct gguf_tensor *embed = gguf_find(g, "token_embd.weight");
    int experts = 0, rotary = 0;
    size_t i;
    for (i = 0; i < N_SIZES; i++)
        if (sizes[i].gguf && gguf_int(g, arch, sizes[i].gguf, size_at(c, &sizes[i]), err)) return -1;
    if (gguf_int(g, arch, "rope.dimension_count", &rotary, err)
        || gguf_int(g, arch, "attention.sliding_window", &c->window, err)
        || gguf_int(g, arch, "expert_count", &experts, err)
        || gguf_number(g, arch, "attention.layer_norm_rms_epsilon", &c->norm_eps, err)
        || gguf_number(g, arch, "rope.freq_base", &c->rope.theta, err)
        || gguf_get_int(g, "tokenizer.ggml.bos_token_id", &c->bos, err)
        || gguf_get_int(g, "tokenizer.ggml.eos_token_id", &c->eos[0], err)) return -1;
    c->n_eos = gguf_get(g, "tokenizer.ggml.eos_token_id") != NULL;
    if (embed && embed->n_dims == 2 && embed->dims[1] <= 1u << 26) c->V = (int)embed->dims[1];
    if (!c->HS) c->HS = rotary;
    if (experts || (rotary && c->HS != rotary)) {
        fail(err, "unsupported configuration", "%s: %s", g->path, experts ? "expert_count" : "rope.dimension_count");
        expected(err, "%d", experts ? 0 : c->HS);
        return found(err, "%d", experts ? experts : rotary);
    }
    return 0;
}

/* Keys of the architecture that nothing reads are shown, as those of config.json are; of rope they are refused. */
static int gguf_ignored(const struct gguf *g, const char *arch, struct text *ignored, struct lora_error *err)
{
    static const char *const known[] = {
        "attention.layer_norm_rms_epsilon", "attention.sliding_window", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
        "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.attn_factor",
        "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.finetuned", "expert_count",
        "attention.value_length", "vocab_size",     /* the tensors' shapes say them */
    };
    size_t n = strlen(arch);
    int i;
    for (i = 0; i < g->n_values; i++) {
        const char *key = g->values[i].key;
        if (strncmp(key, arch, n) || key[n] != '.' || is_size(key + n + 1, 1) || IN_LIST(key + n + 1, known)) continue;
        if (!strncmp(key + n, ".rope.", 6)) {
            fail(err, "unsupported rope setting", "%s: %s", g->path, key);
            return expected(err, "the settings of plain, linear or yarn scaling");
        }
        if (ignored) text_list(ignored, key);
    }
    return ignored ? text_check(ignored, err) : 0;
}

/* llama.cpp's adapters name the architecture of their base. */
static int check_gguf_type(const struct gguf *g, struct lora_error *err)
{
    char *type = NULL;
    int bad = gguf_get_string(g, "general.type", &type, err);
    if (type && !strcmp(type, "adapter")) {
        fail(err, "not a model", "%s: general.type", g->path);
        bad = found(err, "adapter");
    }
    free(type);
    return bad;
}

int config_from_gguf(struct config *c, const struct gguf *g, struct text *ignored, struct lora_error *err)
{
    char *arch = NULL;
    const struct family *f;
    int bad = -1;
    *c = defaults;
    if (check_gguf_type(g, err) || gguf_get_string(g, "general.architecture", &arch, err)) return -1;
    if ((f = find_family(arch, 1, g->path, err)) && !gguf_shape(c, g, arch, err)) {
        snprintf(c->model_type, sizeof c->model_type, "%s", f->type);
        c->tied = !gguf_find(g, "output.weight");
        c->qkv_bias = gguf_find(g, "blk.0.attn_q.bias") != NULL;
        c->o_bias = gguf_find(g, "blk.0.attn_output.bias") != NULL;
        c->mlp_bias = gguf_find(g, "blk.0.ffn_gate.bias") != NULL;
        c->qk_norm = gguf_find(g, "blk.0.attn_q_norm.weight") != NULL;
        c->fused = f->fused;
        bad = gguf_rope(c, g, arch, err) || config_check(c, g->path, err) || gguf_divisors(c, g, err)
              || gguf_ignored(g, arch, ignored, err) ? -1 : 0;
    }
    free(arch);
    return bad;
}

/* As floats, which GGUF files have; of rope what its type uses. */
uint64_t config_hash(const struct config *c, uint64_t h)
{
    int type = c->rope.type, llama3 = type == ROPE_LLAMA3, yarn = type == ROPE_YARN;
    const int whole[] = { c->C, c->V, c->L, c->NH, c->NKV, c->HS, c->F, c->tied, c->qk_norm, c->window, type,
                          llama3 || yarn ? c->rope.original : 0, c->fused };
    const float real[] = { (float)c->norm_eps, (float)c->rope.theta, (float)c->rope.factor,
                           llama3 ? (float)c->rope.low : 0, llama3 ? (float)c->rope.high : 0,
                           yarn ? (float)c->rope.beta_fast : 0, yarn ? (float)c->rope.beta_slow : 0,
                           yarn ? (float)c->rope.attention_factor : 0 };
    h = hash_bytes(hash_bytes(h, whole, sizeof whole), real, sizeof real);
    return yarn && c->rope.no_truncate ? hash_string(h, "no truncate") : h;
}

/* ---- writing ---- */

/* GGUF files hold llama3's scaling as divisors: find the parameters that give them back. */
static int llama3_of_divisors(const struct config *c, struct config *out)
{
    double plain[1 << 13], f[1 << 13], factor;
    int i, half = c->HS / 2;
    if (half > 1 << 13) return -1;
    *out = *c;
    out->rope.divide = NULL;
    rope_frequencies(out, plain, &factor);
    out->rope.type = ROPE_LLAMA3;
    out->rope.factor = (double)c->rope.divide[half - 1];
    out->rope.low = 1;
    out->rope.high = 4;
    out->rope.original = 8192;
    rope_frequencies(out, f, &factor);
    for (i = 0; i < half; i++)
        if (!(fabs(plain[i] / f[i] - (double)c->rope.divide[i]) <= 1e-5 * (double)c->rope.divide[i])) return -1;
    return 0;
}

static void put_pair(struct text *t, const char *key, double value)
{
    text_printf(t, "  \"%s\": ", key);
    json_put_number(t, value, 0);
    text_puts(t, ",\n");
}

static void put_rope(struct text *t, const struct config *c)
{
    put_pair(t, "rope_theta", c->rope.theta);
    if (c->rope.type == ROPE_PLAIN) return;
    text_printf(t, "  \"rope_scaling\": {\n    \"rope_type\": \"%s\",\n", rope_names[c->rope.type]);
    if (c->rope.type == ROPE_LLAMA3) {
        text_puts(t, "  "), put_pair(t, "low_freq_factor", c->rope.low);
        text_puts(t, "  "), put_pair(t, "high_freq_factor", c->rope.high);
    }
    if (c->rope.type == ROPE_YARN) {
        text_puts(t, "  "), put_pair(t, "beta_fast", c->rope.beta_fast);
        text_puts(t, "  "), put_pair(t, "beta_slow", c->rope.beta_slow);
        if (c->rope.attention_factor > 0)
            text_puts(t, "  "), put_pair(t, "attention_factor", c->rope.attention_factor);
        if (c->rope.no_truncate) text_puts(t, "    \"truncate\": false,\n");
    }
    if (c->rope.type != ROPE_LINEAR)
        text_puts(t, "  "), put_pair(t, "original_max_position_embeddings", c->rope.original);
    text_puts(t, "    \"factor\": ");
    json_put_number(t, c->rope.factor, 0);
    text_puts(t, "\n  },\n");
}

const char *config_dtype_name(int dtype)
{
    return dtype == TYPE_F16 ? "float16" : dtype == TYPE_BF16 ? "bfloat16" : "float32";
}

/* What Transformers' save_pretrained writes: it loads nothing without it. */
static void put_quantisation(struct text *t, const struct quantise *how, int dtype)
{
    const char *in_4bit = how->type == TYPE_INT8 ? "false" : "true", *in_8bit = how->type == TYPE_INT8 ? "true" : "false";
    text_printf(t, "  \"quantization_config\": {\n    \"_load_in_4bit\": %s,\n    \"_load_in_8bit\": %s,\n", in_4bit, in_8bit);
    text_printf(t, "    \"bnb_4bit_compute_dtype\": \"%s\",\n    \"bnb_4bit_quant_storage\": \"uint8\",\n", config_dtype_name(dtype));
    text_printf(t, "    \"bnb_4bit_quant_type\": \"%s\",\n    \"bnb_4bit_use_double_quant\": %s,\n",
                how->type == TYPE_NF4 ? "nf4" : "fp4", how->double_quant ? "true" : "false");
    text_puts(t, "    \"llm_int8_enable_fp32_cpu_offload\": false,\n    \"llm_int8_has_fp16_weight\": false,\n"
                 "    \"llm_int8_skip_modules\": null,\n    \"llm_int8_threshold\": 6.0,\n");
    text_printf(t, "    \"load_in_4bit\": %s,\n    \"load_in_8bit\": %s,\n    \"quant_method\": \"bitsandbytes\"\n  },\n",
                in_4bit, in_8bit);
}

/* The older form (rope_theta, rope_scaling, torch_dtype), which old and new Transformers read. */
int config_write(const struct config *c, const char *path, int dtype, const struct quantise *how, struct lora_error *err)
{
    struct text t = { NULL, 0, 0, 0 };
    struct config copy = *c;
    const struct family *f = config_family(c, err);
    int i, bad;
    if (!f) return -1;
    if (c->rope.divide && llama3_of_divisors(c, &copy)) {
        fail(err, "cannot write the configuration", "%s: rope_freqs.weight", path);
        return expected(err, "divisors of llama3 rope scaling, which config.json can say");
    }
    text_printf(&t, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n", f->architecture, f->type);
    for (i = 0; i < (int)N_SIZES; i++) put_pair(&t, sizes[i].key, *size_at(&copy, &sizes[i]));
    put_pair(&t, "rms_norm_eps", c->norm_eps);
    put_rope(&t, &copy);
    if (f->qkv_bias < 0) text_printf(&t, "  \"attention_bias\": %s,\n", c->qkv_bias ? "true" : "false");
    if (f->mlp_bias < 0) text_printf(&t, "  \"mlp_bias\": %s,\n", c->mlp_bias ? "true" : "false");
    if (f->window && c->window) put_pair(&t, "sliding_window", c->window);
    else if (f->window) text_puts(&t, "  \"sliding_window\": null,\n");
    if (c->bos >= 0) put_pair(&t, "bos_token_id", c->bos);
    if (c->pad >= 0) put_pair(&t, "pad_token_id", c->pad);
    else text_puts(&t, "  \"pad_token_id\": null,\n");      /* some families have one by default */
    for (i = 0; i < c->n_eos; i++)
        text_printf(&t, i ? ", %d" : c->n_eos > 1 ? "  \"eos_token_id\": [%d" : "  \"eos_token_id\": %d", c->eos[i]);
    if (c->n_eos) text_puts(&t, c->n_eos > 1 ? "],\n" : ",\n");
    if (how) put_quantisation(&t, how, dtype);
    text_printf(&t, "  \"hidden_act\": \"silu\",\n  \"tie_word_embeddings\": %s,\n  \"torch_dtype\": \"%s\"\n}\n",
                c->tied ? "true" : "false", config_dtype_name(dtype));
    bad = text_check(&t, err) || file_write(path, t.s, t.n, err) ? -1 : 0;
    text_free(&t);
    return bad;
}
