/* test_model.c - configurations and model directories: what is read, what is refused by name, and any
 * byte changed or cut. */
#include "test.h"
#include "tiny.h"

#include "../formats/gguf.h"
#include "../formats/safetensors.h"

#include <unistd.h>

static void put_file(const char *name, const char *text, size_t n)
{
    CHECK(!file_write(in_folder(name), text, n, NULL));
}

static int row_of(void *ctx, int id, int layer, int row, float *out, struct lora_error *err)
{
    const struct weight *w = model_weight(ctx, id, layer);
    (void)err;
    weight_decode(w, row, 0, w->cols, out);
    return 0;
}

static int rows_equal(const struct model *a, const struct model *b, int dtype)
{
    int id, layer, r, k;
    float x[64], y[64];
    for (layer = 0; layer < a->config.L; layer++)
        for (id = 0; id < T_COUNT; id++) {
            const struct weight *w = tensor_present(&a->config, id) ? model_weight(a, id, layer) : NULL;
            for (r = 0; w && r < w->rows; r++) {
                weight_decode(w, r, 0, w->cols, x);
                weight_decode(model_weight(b, id, layer), r, 0, w->cols, y);
                for (k = 0; k < w->cols; k++) {
                    float want = dtype == TYPE_BF16 ? bf16_to_f32(f32_to_bf16(x[k]))
                               : dtype == TYPE_F16 ? f16_to_f32(f32_to_f16(x[k])) : x[k];
                    if (memcmp(&want, &y[k], sizeof want)) return 0;
                }
            }
        }
    return 1;
}

static void test_round_trip(void)
{
    static const int types[] = { TYPE_F32, TYPE_BF16, TYPE_F16 };
    int i, variant;
    test_begin("a model written is the model read, every family, rope and type");
    for (variant = 0; variant < 9; variant++) {
        struct config c = tiny_config();
        struct tiny t;
        struct model *m = NULL;
        struct lora_error err;
        c.tied = variant & 1;
        if (variant == 1) { c.qkv_bias = c.o_bias = c.mlp_bias = 1; }
        if (variant == 2) { strcpy(c.model_type, "qwen2"); c.qkv_bias = 1; }
        if (variant == 3) { strcpy(c.model_type, "qwen3"); c.qk_norm = 1; }
        if (variant == 4) { strcpy(c.model_type, "mistral"); c.window = 7; }
        if (variant == 5) { c.rope.type = ROPE_LLAMA3; c.rope.factor = 8; c.rope.low = 1.5; }
        if (variant == 6) { c.rope.type = ROPE_YARN; c.rope.factor = 4; c.rope.attention_factor = 1.25; c.rope.no_truncate = 1; }
        if (variant == 7) { c.rope.type = ROPE_LINEAR; c.rope.factor = 2; c.n_eos = 2; c.eos[0] = 3; c.eos[1] = 5; c.bos = 1; c.pad = 0; }
        if (variant == 8) { strcpy(c.model_type, "phi3"); c.fused = 1; }
        tiny_open(&t, &c, (uint64_t)variant);
        for (i = 0; i < 3; i++) {
            memset(&err, 0, sizeof err);
            CHECK(!model_write(&c, folder, types[i], row_of, &t.model, &err), "%s", err.what);
            CHECK(!model_open(&m, folder, &err), "%s: %s: %s, %s", err.what, err.where, err.expected, err.found);
            if (!m) continue;
            CHECK(!memcmp(&m->config, &c, sizeof c), "configuration of variant %d", variant);
            CHECK(rows_equal(&t.model, m, types[i]), "variant %d, type %d", variant, i);
            CHECK(!m->ignored.n, "%s", m->ignored.s);
            model_close(m);
            m = NULL;
        }
        tiny_close(&t);
    }
}

/* A row as row_of gives it, but for one number that F16 has no place for. */
static int large_row(void *ctx, int id, int layer, int row, float *out, struct lora_error *err)
{
    if (row_of(ctx, id, layer, row, out, err)) return -1;
    if (id == T_WUP && layer == 1 && row == 2) out[3] = -65520;
    return 0;
}

static void test_too_large(void)
{
    struct config c = tiny_config();
    struct tiny t;
    struct lora_error err;
    test_begin("a number that F16 would make infinite is refused, by the tensor's name");
    tiny_open(&t, &c, 1);
    memset(&err, 0, sizeof err);
    CHECK(model_write(&c, folder, TYPE_F16, large_row, &t.model, &err) && strstr(err.where, "layers.1.mlp.up_proj")
          && !strcmp(err.found, "-65520"), "%s: %s: %s", err.what, err.where, err.found);
    CHECK(!model_write(&c, folder, TYPE_BF16, large_row, &t.model, &err));
    tiny_close(&t);
}

/* One configuration with one line put in or changed: opened, or refused with `word` in the error. */
struct edit { const char *find, *put, *word; };

static const char config_text[] =
    "{\n"
    "  \"model_type\": \"llama\",\n"
    "  \"hidden_size\": 16, \"vocab_size\": 29, \"num_hidden_layers\": 2,\n"
    "  \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 6,\n"
    "  \"intermediate_size\": 20, \"max_position_embeddings\": 64,\n"
    "  \"rms_norm_eps\": 1e-5, \"rope_theta\": 100,\n"
    "  \"hidden_act\": \"silu\"\n"
    "}\n";

static char *edited(const struct edit *e)
{
    const char *at = strstr(config_text, e->find);
    char *out = malloc(sizeof config_text + strlen(e->put) + 1);
    size_t n = (size_t)(at - config_text);
    memcpy(out, config_text, n);
    strcpy(out + n, e->put);
    strcat(out, at + strlen(e->find));
    return out;
}

static void test_config(void)
{
    static const struct edit edits[] = {
        { "\"llama\"", "\"llama\"", NULL },
        { "\"llama\"", "\"gpt2\"", "model_type" },
        { "\"llama\"", "7", "model_type" },
        { "\"model_type\": \"llama\",", "", "model_type" },
        { "\"silu\"", "\"gelu\"", "hidden_act" },
        { "{\n", "{ \"rope_scaling\": null,", NULL },
        { "{\n", "{ \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2},", "rope" },
        { "{\n", "{ \"rope_scaling\": {\"rope_type\": \"longrope\"},", "rope" },
        { "{\n", "{ \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, \"mscale\": 1},", "mscale" },
        { "{\n", "{ \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, \"truncate\": 1},", "truncate" },
        { "{\n", "{ \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 5.0},", NULL },
        { "{\n", "{ \"rope_scaling\": 3,", "rope" },
        { "{\n", "{ \"pretraining_tp\": 2,", "pretraining_tp" },
        { "{\n", "{ \"pretraining_tp\": 1,", NULL },
        { "{\n", "{ \"partial_rotary_factor\": 0.5,", "partial_rotary_factor" },
        { "{\n", "{ \"attention_dropout\": 0.1,", "attention_dropout" },
        { "{\n", "{ \"num_local_experts\": 8,", "num_local_experts" },
        { "{\n", "{ \"quantization_config\": {\"quant_method\": \"gptq\"},", "quantization_config" },
        { "{\n", "{ \"use_sliding_window\": true,", "use_sliding_window" },
        { "{\n", "{ \"layer_types\": [\"full_attention\", \"sliding_attention\"],", "layer_types" },
        { "\"hidden_size\": 16", "\"hidden_size\": 0", "hidden_size" },
        { "\"hidden_size\": 16", "\"hidden_size\": -16", "hidden_size" },
        { "\"hidden_size\": 16", "\"hidden_size\": 16.5", "hidden_size" },
        { "\"hidden_size\": 16", "\"hidden_size\": 1e18", "hidden_size" },
        { "\"hidden_size\": 16", "\"hidden_size\": \"16\"", "hidden_size" },
        { "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "num_attention_heads" },
        { "\"head_dim\": 6", "\"head_dim\": 7", "head_dim" },
        { "1e-5", "-1", "rms_norm_eps" },
        { "{\n", "{ \"eos_token_id\": [1, \"x\"],", "eos_token_id" },
        { "{\n", "{ \"eos_token_id\": [1, 2],", NULL },
        { "}\n", "", "config" },
    };
    size_t i;
    test_begin("configurations: read, or refused by the key's name");
    for (i = 0; i < sizeof edits / sizeof *edits; i++) {
        char *text = edited(&edits[i]);
        struct config c;
        struct lora_error err;
        int bad;
        memset(&err, 0, sizeof err);
        put_file("config.json", text, strlen(text));
        bad = config_read(&c, in_folder("config.json"), NULL, &err);
        CHECK(bad == (edits[i].word ? -1 : 0), "%s: %s %s", edits[i].put, err.what, err.where);
        if (edits[i].word) CHECK(strstr(err.where, edits[i].word) != NULL, "%s: %s", edits[i].put, err.where);
        if (edits[i].word) CHECK(err.what[0] && !strchr(err.where, '\n'));
        free(text);
    }
}

/* The tiny model again, its tensors renamed, left out, or in two files. */
static void test_directories(void)
{
    struct config c = tiny_config();
    struct tiny t;
    struct model *m = NULL;
    struct lora_error err;
    struct safetensors s;
    struct st_writer w;
    struct text index = { NULL, 0, 0, 0 };
    int part, i, kind;
    memset(&err, 0, sizeof err);
    tiny_open(&t, &c, 5);
    test_begin("sharded directories, missing, unknown and misshapen tensors");
    CHECK(!model_write(&c, folder, TYPE_F32, row_of, &t.model, &err));
    CHECK(!rename(in_folder("model.safetensors"), in_folder("whole")));
    CHECK(!safetensors_open(&s, in_folder("whole"), &err), "%s", err.what);
    text_puts(&index, "{\"metadata\": {}, \"weight_map\": {");
    for (part = 0; part < 2; part++) {
        char name[32];
        snprintf(name, sizeof name, "part-%d.safetensors", part);
        memset(&w, 0, sizeof w);
        for (i = part; i < s.n; i += 2)
            CHECK(!st_writer_add(&w, s.tensors[i].name, s.tensors[i].type, s.tensors[i].dims, s.tensors[i].n_dims, &err));
        CHECK(!st_writer_begin(&w, in_folder(name), &err));
        for (i = part; i < s.n; i += 2) CHECK(!st_writer_put(&w, s.tensors[i].data, s.tensors[i].bytes, &err));
        CHECK(!st_writer_commit(&w, &err));
        for (i = part; i < s.n; i += 2)
            text_printf(&index, "%s\"%s\": \"%s\"", index.n > 40 ? ", " : "", s.tensors[i].name, name);
    }
    text_puts(&index, ", \"of.no.shard\": \"part-0.safetensors\"}}");      /* Transformers passes over it */
    put_file("model.safetensors.index.json", index.s, index.n);
    CHECK(!model_open(&m, folder, &err), "%s: %s", err.what, err.where);
    if (m) CHECK(m->n_shards == 2 && rows_equal(&t.model, m, TYPE_F32));
    model_close(m);
    strstr(strstr(index.s, s.tensors[3].name), "part-1")[5] = '0';
    put_file("model.safetensors.index.json", index.s, index.n);
    CHECK(model_open(&m, folder, &err) && strstr(err.where, s.tensors[3].name), "a wrong shard: %s", err.where);
    CHECK(strstr(err.expected, "part-0.safetensors") && strstr(err.found, "part-1.safetensors"), "%s, %s", err.expected, err.found);
    CHECK(!unlink(in_folder("part-1.safetensors")));
    CHECK(model_open(&m, folder, &err) && strstr(err.where, "part-1.safetensors") != NULL, "%s", err.where);
    put_file("model.safetensors.index.json", "{\"weight_map\": {\"x\": \"../y\"}}", 29);
    CHECK(model_open(&m, folder, &err) && strstr(err.what, "bad index") != NULL, "%s", err.what);
    CHECK(!unlink(in_folder("model.safetensors.index.json")));
    for (kind = 0; kind < 3; kind++) {      /* a tensor left out, one too many, one with turned dims */
        size_t turned[2];
        memset(&w, 0, sizeof w);
        for (i = kind == 0; i < s.n; i++) {
            turned[0] = s.tensors[i].dims[1];
            turned[1] = s.tensors[i].dims[0];
            CHECK(!st_writer_add(&w, s.tensors[i].name, TYPE_F32, kind == 2 && strstr(s.tensors[i].name, "up_proj")
                                 ? turned : s.tensors[i].dims, s.tensors[i].n_dims, &err));
        }
        if (kind == 1) CHECK(!st_writer_add(&w, "model.layers.0.extra", TYPE_F32, turned, 0, &err));
        CHECK(!st_writer_begin(&w, in_folder("model.safetensors"), &err));
        for (i = kind == 0; i < s.n; i++) CHECK(!st_writer_put(&w, s.tensors[i].data, s.tensors[i].bytes, &err));
        if (kind == 1) CHECK(!st_writer_put(&w, "1234", 4, &err));
        CHECK(!st_writer_commit(&w, &err));
        CHECK(model_open(&m, folder, &err) == -1 && !m);
        CHECK(strstr(err.what, kind == 0 ? "missing" : kind == 1 ? "unknown" : "shape") != NULL, "%s", err.what);
        CHECK(strstr(err.where, kind == 0 ? s.tensors[0].name : kind == 1 ? "extra" : "up_proj") != NULL, "%s", err.where);
    }
    safetensors_close(&s);
    text_free(&index);
    tiny_close(&t);
}

/* A tied model whose file has only the head: the head is the embedding. */
static void test_tied(void)
{
    struct config c = tiny_config(), untied;
    struct tiny t;
    struct model *m = NULL;
    struct lora_error err;
    struct safetensors s;
    struct st_writer w;
    int i;
    memset(&err, 0, sizeof err);
    memset(&w, 0, sizeof w);
    test_begin("tied: the embedding stored as lm_head alone");
    untied = c;
    c.tied = 1;
    tiny_open(&t, &untied, 5);
    CHECK(!model_write(&untied, folder, TYPE_F32, row_of, &t.model, &err));
    CHECK(!config_write(&c, in_folder("config.json"), TYPE_F32, NULL, &err));
    CHECK(model_open(&m, folder, &err) == -1 && !strcmp(err.what, "two heads"), "a tied model with two heads: %s", err.what);
    CHECK(!config_write(&untied, in_folder("config.json"), TYPE_F32, NULL, &err));
    CHECK(!safetensors_open(&s, in_folder("model.safetensors"), &err));
    for (i = 0; i < s.n; i++)
        if (!strstr(s.tensors[i].name, "embed"))
            CHECK(!st_writer_add(&w, s.tensors[i].name, TYPE_F32, s.tensors[i].dims, s.tensors[i].n_dims, &err));
    CHECK(!st_writer_begin(&w, in_folder("x"), &err));
    for (i = 0; i < s.n; i++)
        if (!strstr(s.tensors[i].name, "embed")) CHECK(!st_writer_put(&w, s.tensors[i].data, s.tensors[i].bytes, &err));
    CHECK(!st_writer_commit(&w, &err));
    safetensors_close(&s);
    CHECK(!rename(in_folder("x"), in_folder("model.safetensors")));
    CHECK(model_open(&m, folder, &err) == -1, "opened without embeddings");
    CHECK(!config_write(&c, in_folder("config.json"), TYPE_F32, NULL, &err));
    CHECK(!model_open(&m, folder, &err), "%s", err.what);
    if (m) CHECK(model_weight(m, T_EMBED, 0)->data == model_weight(m, T_HEAD, 0)->data);
    model_close(m);
    tiny_close(&t);
}

/* Every byte changed, and every cut: an error, or a model that opens and closes. */
static void test_damage(void)
{
    static const unsigned char values[] = { 0, 0x20, 0x22, 0x39, 0x7f, 0xff };
    static const char *const names[] = { "config.json", "model.safetensors" };
    struct config c = tiny_config();
    struct tiny t;
    struct lora_error err;
    int f;
    size_t refused = 0, opened = 0;
    memset(&err, 0, sizeof err);
    tiny_open(&t, &c, 5);
    test_begin("any byte changed, any cut");
    CHECK(!model_write(&c, folder, TYPE_F32, row_of, &t.model, &err));
    for (f = 0; f < 2; f++) {
        struct file_map map;
        unsigned char *copy;
        size_t n, i, k, end;
        FILE *file;
        CHECK(!file_open(&map, in_folder(names[f]), &err));
        n = map.size;
        copy = malloc(n);
        memcpy(copy, map.data, n);
        file_close(&map);
        end = n < 1500 ? n : 1500;      /* past the header there are only numbers */
        for (i = 0; i < end; i += 3)
            for (k = 0; k <= sizeof values; k++) {
                struct model *m = NULL;
                unsigned char was = copy[i];
                size_t length = k == sizeof values ? i : n;
                if (k < sizeof values) copy[i] = values[k];
                unlink(in_folder(names[f]));       /* a new file: some file systems flush one that is cut */
                file = fopen(in_folder(names[f]), "wb");
                if (length) CHECK(fwrite(copy, 1, length, file) == length);
                fclose(file);
                copy[i] = was;
                memset(&err, 0, sizeof err);
                if (model_open(&m, folder, &err)) refused++, CHECK(err.what[0] != 0);
                else opened++;
                model_close(m);
            }
        put_file(names[f], (const char *)copy, n);
        free(copy);
    }
    printf("  %zu refused, %zu opened\n", refused, opened);
    CHECK(refused > 1000 && opened > 0);
    tiny_close(&t);
}

/* facts.md C.11 by hand: the frequencies of Llama-3.1, and a plain one. */
static void test_rope(void)
{
    struct config c = tiny_config();
    double f[64], plain[64], factor;
    int i;
    test_begin("rope frequencies");
    c.HS = 128;
    c.rope.theta = 500000;
    rope_frequencies(&c, plain, &factor);
    CHECK(plain[0] == 1 && fabs(plain[32] - 1 / sqrt(500000.0)) < 1e-18 && factor == 1);
    c.rope.type = ROPE_LLAMA3;
    c.rope.factor = 8;
    c.rope.original = 8192;
    rope_frequencies(&c, f, &factor);
    for (i = 0; i < 64; i++) {
        double wave = 6.283185307179586 / plain[i];
        CHECK(wave >= 2048 || f[i] == plain[i], "short wave %d", i);
        CHECK(wave <= 8192 || f[i] == plain[i] / 8, "long wave %d", i);
        CHECK(f[i] <= plain[i] && f[i] >= plain[i] / 8 && (!i || f[i] < f[i - 1]));
    }
    c.rope.type = ROPE_YARN;
    c.rope.factor = 4;
    rope_frequencies(&c, f, &factor);
    CHECK(f[0] == plain[0] && fabs(f[63] * 4 / plain[63] - 1) < 1e-12 && fabs(factor - (0.1 * log(4.0) + 1)) < 1e-15);
}

/* Transformers 5.23's _compute_yarn_parameters(), in float: head_dim 16, theta 10000, factor 4, 256 positions. */
static void test_yarn(void)
{
    static const double theirs[2][8] = {
        { 1, 0.25693506, 0.0625, 0.0138349654, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05 },
        { 1, 0.253972292, 0.0553986356, 0.00963994302, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05 } };
    static const char *const settings[] = { "", "\"truncate\": true, ", "\"truncate\": false, " };
    struct config c[3];
    double f[8], factor;
    struct worst w = { 0 };
    int i, j;
    test_begin("YaRN's truncate, as Transformers has it");
    for (i = 0; i < 3; i++) {
        struct edit edit = { "{\n", NULL, NULL };
        struct lora_error err = { 0 };
        char scaling[200], *text;
        snprintf(scaling, sizeof scaling, "{ \"rope_scaling\": {\"type\": \"yarn\", %s\"factor\": 4.0, "
                 "\"original_max_position_embeddings\": 256},", settings[i]);
        edit.put = scaling;
        text = edited(&edit);
        put_file("config.json", text, strlen(text));
        free(text);
        CHECK(!config_read(&c[i], in_folder("config.json"), NULL, &err), "%s: %s, %s", err.what, err.where, err.found);
        c[i].HS = 16;
        c[i].rope.theta = 10000;
        rope_frequencies(&c[i], f, &factor);
        for (j = 0; j < 8; j++) worst_add(&w, fabs(f[j] / theirs[i == 2][j] - 1), 4e-7, (size_t)j);    /* a few roundings to float */
        worst_add(&w, fabs(factor - 1.138629436111989), 1e-15, 8);
    }
    CHECK_WORST(w, "frequencies and factor");
    CHECK(config_hash(&c[0], HASH_START) == config_hash(&c[1], HASH_START)
          && config_hash(&c[1], HASH_START) != config_hash(&c[2], HASH_START), "a model's identity");
}

static void put_number(struct text *t, uint64_t x, int bytes)
{
    for (; bytes; bytes--, x >>= 8) {
        char c = (char)(x & 255);
        text_add(t, &c, 1);
    }
}

static void put_gguf_text(struct text *t, const char *s)
{
    put_number(t, strlen(s), 8);
    text_puts(t, s);
}

static void put_gguf_int(struct text *t, const char *key, uint32_t x)
{
    put_gguf_text(t, key);
    put_number(t, GGUF_U32, 4);
    put_number(t, x, 4);
}

static void put_gguf_float(struct text *t, const char *key, float x)
{
    put_gguf_text(t, key);
    put_number(t, GGUF_F32, 4);
    put_number(t, bits_of(x), 4);
}

/* A configuration alone: the embedding, whose rows are the vocabulary, and divisors of rotary frequencies. */
static int gguf_config(struct config *c, float scaling, float divisor, struct lora_error *err)
{
    struct text t = { 0 };
    struct gguf g;
    int bad, i;
    text_puts(&t, "GGUF");
    put_number(&t, 3, 4);
    put_number(&t, 2, 8);
    put_number(&t, 8, 8);
    put_gguf_text(&t, "general.architecture"), put_number(&t, GGUF_STRING, 4), put_gguf_text(&t, "llama");
    put_gguf_int(&t, "llama.embedding_length", 8);
    put_gguf_int(&t, "llama.block_count", 1);
    put_gguf_int(&t, "llama.attention.head_count", 2);
    put_gguf_int(&t, "llama.feed_forward_length", 8);
    put_gguf_float(&t, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    put_gguf_text(&t, "llama.rope.scaling.type"), put_number(&t, GGUF_STRING, 4), put_gguf_text(&t, "linear");
    put_gguf_float(&t, "llama.rope.scaling.factor", scaling);
    put_gguf_text(&t, "token_embd.weight"), put_number(&t, 2, 4), put_number(&t, 8, 8), put_number(&t, 4, 8);
    put_number(&t, 0, 4), put_number(&t, 0, 8);
    put_gguf_text(&t, "rope_freqs.weight"), put_number(&t, 1, 4), put_number(&t, 2, 8);
    put_number(&t, 0, 4), put_number(&t, 128, 8);
    while (t.n % 32) put_number(&t, 0, 1);
    for (i = 0; i < 34; i++) put_number(&t, bits_of(divisor), 4);
    put_file("config.gguf", t.s, t.n);
    text_free(&t);
    CHECK(!gguf_open(&g, in_folder("config.gguf"), err), "%s, %s, %s", err->where, err->expected, err->found);
    bad = config_from_gguf(c, &g, NULL, err);
    gguf_close(&g);
    return bad;
}

static void test_gguf_keys(int refused)
{
    static const struct { const char *name; int dims[2]; } tensors[] = {
        { "token_embd.weight", { 8, 4 } }, { "output_norm.weight", { 8, 0 } }, { "blk.0.attn_norm.weight", { 8, 0 } },
        { "blk.0.attn_q.weight", { 8, 8 } }, { "blk.0.attn_k.weight", { 8, 8 } }, { "blk.0.attn_v.weight", { 8, 8 } },
        { "blk.0.attn_output.weight", { 8, 8 } }, { "blk.0.ffn_norm.weight", { 8, 0 } },
        { "blk.0.ffn_gate.weight", { 8, 8 } }, { "blk.0.ffn_up.weight", { 8, 8 } }, { "blk.0.ffn_down.weight", { 8, 8 } }
    };
    struct lora_error err = { 0 };
    struct text t = { 0 };
    struct model *m;
    size_t i;
    test_begin(refused ? "keys of rope that nothing reads are refused" : "keys of a GGUF file that nothing reads are shown");
    text_puts(&t, "GGUF");
    put_number(&t, 3, 4), put_number(&t, 11, 8), put_number(&t, 7, 8);
    put_gguf_text(&t, "general.architecture"), put_number(&t, GGUF_STRING, 4), put_gguf_text(&t, "llama");
    put_gguf_int(&t, "llama.embedding_length", 8);
    put_gguf_int(&t, "llama.block_count", 1);
    put_gguf_int(&t, "llama.attention.head_count", 2);
    put_gguf_int(&t, "llama.feed_forward_length", 8);
    put_gguf_float(&t, refused ? "llama.rope.scale_linear" : "llama.attention.logit_gain", 2);
    put_gguf_int(&t, "general.file_type", 0);
    for (i = 0; i < 11; i++) {
        put_gguf_text(&t, tensors[i].name), put_number(&t, tensors[i].dims[1] ? 2 : 1, 4);
        put_number(&t, (uint64_t)tensors[i].dims[0], 8);
        if (tensors[i].dims[1]) put_number(&t, (uint64_t)tensors[i].dims[1], 8);
        put_number(&t, 0, 4), put_number(&t, i * 256, 8);
    }
    while (t.n % 32) put_number(&t, 0, 1);
    for (i = 0; i < 11 * 64; i++) put_number(&t, 0, 4);
    put_file("keys.gguf", t.s, t.n);
    text_free(&t);
    if (refused) {
        CHECK(model_open(&m, in_folder("keys.gguf"), &err) && strstr(err.where, "llama.rope.scale_linear"), "%s", err.where);
        return;
    }
    if (model_open(&m, in_folder("keys.gguf"), &err)) CHECK(0, "%s, %s, %s", err.where, err.expected, err.found);
    else CHECK(m->ignored.s && !strcmp(m->ignored.s, "llama.attention.logit_gain"), "%s", m->ignored.s ? m->ignored.s : "nothing");
    model_close(m);
}

static void test_gguf_rope(void)
{
    struct lora_error err = { 0 };
    struct config c;
    test_begin("rope settings of GGUF are checked as those of config.json are");
    CHECK(!gguf_config(&c, 2, 1, &err) && c.rope.type == ROPE_LINEAR && c.rope.factor == 2 && c.HS == 4, "%s, %s", err.where, err.found);
    CHECK(gguf_config(&c, 0, 1, &err) && strstr(err.expected, "factor >= 1"), "factor 0");
    CHECK(gguf_config(&c, 2, 0, &err) && strstr(err.where, "rope_freqs.weight"), "divisor 0");
    CHECK(gguf_config(&c, 2, NAN, &err) && strstr(err.where, "rope_freqs.weight"), "divisor NaN");
}

/* What a key that is not there means, by family; a newer file's rope with an older key added to it. */
static void test_defaults(void)
{
    static const struct { struct edit edit; int window; double eps; int rope; } cases[] = {
        { { "\"llama\"", "\"mistral\"", NULL }, 4096, 1e-5, ROPE_PLAIN },
        { { "\"llama\"", "\"mistral\", \"sliding_window\": null", NULL }, 0, 1e-5, ROPE_PLAIN },
        { { "\"llama\"", "\"mistral\", \"sliding_window\": 7", NULL }, 7, 1e-5, ROPE_PLAIN },
        { { "  \"rms_norm_eps\": 1e-5,", "", NULL }, 0, 1e-6, ROPE_PLAIN },
        { { "{\n", "{ \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 16},"
                   " \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 100.0},", NULL }, 0, 1e-5, ROPE_YARN },
    };
    struct lora_error err = { 0 };
    struct config c;
    size_t i;
    test_begin("configurations: keys that are not there, and rope settings twice");
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = edited(&cases[i].edit);
        put_file("config.json", text, strlen(text));
        free(text);
        CHECK(!config_read(&c, in_folder("config.json"), NULL, &err), "case %zu: %s, %s", i, err.where, err.expected);
        CHECK(c.window == cases[i].window && c.norm_eps == cases[i].eps && c.rope.type == cases[i].rope,
              "case %zu: window %d, eps %g, rope %d", i, c.window, c.norm_eps, c.rope.type);
    }
}

int main(void)
{
    if (folder_make()) return 1;
    test_round_trip();
    test_too_large();
    test_config();
    test_defaults();
    test_directories();
    test_tied();
    test_damage();
    test_rope();
    test_yarn();
    test_gguf_rope();
    test_gguf_keys(0);
    test_gguf_keys(1);
    remove_tree(folder, NULL);
    return test_end();
}
