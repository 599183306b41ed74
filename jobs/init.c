/* init.c - `lora init`: a model with random weights, written in a stream. */
#include "session.h"
#include "../formats/json.h"

#include <stdlib.h>
#include <string.h>

struct settings {
    const char *config, *out;
    int dtype, quant_type, threads;
    long long seed;
    struct base_settings base;
};

static const struct option options[] = {
    { "config", NULL, OPTION_TEXT, offsetof(struct settings, config), NULL, "FILE",
      "config.json of the model's shape; a tokenizer beside it is copied", 0, 0 },
    { "out", "output-dir", OPTION_TEXT, offsetof(struct settings, out), NULL, "DIR", "where the model goes", 0, 0 },
    { "dtype", NULL, OPTION_CHOICE, offsetof(struct settings, dtype), DTYPES, NULL, "type of the weights", 0, 0 },
    { "seed", NULL, OPTION_LONG, offsetof(struct settings, seed), NULL, "N", "seed of the weights", 0, 9e18 },
    { "quant-type", "bnb-4bit-quant-type", OPTION_CHOICE, offsetof(struct settings, quant_type), QUANT_TYPES, NULL,
      "the linears of the layers as bitsandbytes has them (default: plain)", 0, 0 },
    { "double-quant", "bnb-4bit-use-double-quant", OPTION_FLAG, offsetof(struct settings, base.double_quant), NULL, NULL,
      "quantise the scales of 4-bit blocks as well", 0, 0 },
    { "block-size", "bnb-4bit-blocksize|bnb-4bit-block-size", OPTION_INT, offsetof(struct settings, base.block_size), NULL, "N",
      "numbers to a scale, a power of two (default: 64)", 1, 1 << 20 },
    { "threads", NULL, OPTION_INT, offsetof(struct settings, threads), NULL, "N",
      "threads (default: the cores this process may use)", 0, 4096 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

struct source {
    const struct config *c;
    uint64_t seed;
    double std;
};

/* Matrices normal with the configuration's initializer_range, norms 1, biases 0: a stream a tensor. */
static int random_row(void *ctx, int id, int layer, int row, float *out, struct lora_error *err)
{
    const struct source *s = ctx;
    int i, cols = tensor_cols(s->c, id);
    char name[128];
    uint64_t key = random_key(s->seed, tensor_name(name, sizeof name, id, layer));
    if (stop_check(err)) return -1;
    for (i = 0; i < cols; i++) {
        uint64_t index = (uint64_t)row * (uint64_t)cols + (uint64_t)i;
        if (tensor_specs[id].linear || id == T_EMBED || id == T_HEAD) out[i] = (float)(s->std * random_normal(key, index));
        else out[i] = id == T_ATTN_NORM || id == T_MLP_NORM || id == T_FINAL_NORM || id == T_Q_NORM || id == T_K_NORM;
    }
    return 0;
}

static int initializer_range(double *std, const char *path, struct lora_error *err)
{
    struct json_document d = { 0 };
    int bad = json_read(&d, path, err) || json_get_number(d.root, "initializer_range", std, path, err);
    json_free(&d);
    return bad;
}

/* The tokenizer of the directory that the configuration lies in, if it has one. */
static int copy_tokenizer(const char *config, const char *out, struct lora_error *err)
{
    const char *slash = strrchr(config, '/');
    char *from = slash ? new_string_n(config, (size_t)(slash - config) + 1, err) : new_string("./", err);
    struct tokenizer *t = NULL;
    int is_there = from ? file_in(from, "tokenizer.json", err) : -1;
    int bad = is_there < 0 || (is_there && (tokenizer_open(&t, from, err) || tokenizer_save(t, out, err)));
    tokenizer_close(t);
    free(from);
    return bad ? -1 : 0;
}

/* The directory may hold the configuration and a tokenizer, but no model, which took more than a moment to make, nor the
 * configuration of another. */
static int check_out(const char *config, const char *out, struct lora_error *err)
{
    static const char *const names[] = { "model.safetensors", "model.safetensors.index.json", "config.json" };
    char *own = path_join(out, names[2], err);
    int i, is_there = own ? 0 : -1;
    for (i = 0; i < 3 && !is_there; i++) is_there = i == 2 && same_file(config, own) ? 0 : file_in(out, names[i], err);
    free(own);
    if (is_there <= 0) return is_there;
    fail(err, "cannot write over a model", "%s", out);
    return expected(err, "a directory without %s for --out", names[i - 1]);
}

static int make(const struct settings *set, struct lora_error *err)
{
    struct config c;
    struct source s = { &c, (uint64_t)set->seed, 0.02 };    /* Transformers' initializer_range, where none is given */
    struct quantise how = { 0 };
    char text[80];
    if (set->quant_type >= 0 && base_quantise(&how, quant_types[set->quant_type], &set->base, err)) return -1;
    stop_install(NULL);
    if (config_read(&c, set->config, NULL, err) || initializer_range(&s.std, set->config, err)
        || check_out(set->config, set->out, err) || make_directory(set->out, err)
        || model_write_quantised(&c, set->out, dtypes[set->dtype], how.type ? &how : NULL, random_row, &s,
                                 usable_threads(set->threads), err)
        || copy_tokenizer(set->config, set->out, err)) return -1;
    status("%s: %lld parameters, normal with deviation %g; linears %s", set->out, config_parameters(&c), s.std,
           base_text(text, sizeof text, &how));
    return 0;
}

static int run(void *settings, struct lora_error *err)
{
    const struct settings *set = settings;
    if (!set->config || !set->out) return job_usage_error(&job_init, "--config and --out are needed");
    if (set->quant_type < 0 && (set->base.double_quant > 0 || set->base.block_size))
        return job_usage_error(&job_init, "--double-quant and --block-size go with --quant-type");
    return make(set, err);
}

static const struct settings defaults = { .quant_type = -1, .base = BASE_DEFAULTS };

const struct job job_init = {
    "init", "a model with random weights", "--config FILE --out DIR [options]", options, NULL,
    sizeof defaults, &defaults, run
};
