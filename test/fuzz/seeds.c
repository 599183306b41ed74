/* seeds.c - writes the small files that fuzzing starts from: seeds DIRECTORY. */
#include "../../formats/gguf.h"
#include "../../formats/json.h"
#include "../../formats/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct lora_error err;

static void write_seed(const char *dir, const char *name, const struct text *t)
{
    char *path = path_join(dir, name, &err);
    if (!path || t->failed || file_write(path, t->s, t->n, &err)) {
        fprintf(stderr, "%s: %s\n", err.where, err.found);
        exit(1);
    }
    free(path);
}

/* Texts as PREFIX-1, PREFIX-2 ... */
static void text_seeds(const char *dir, const char *prefix, const char *const *texts)
{
    int i;
    for (i = 0; texts[i]; i++) {
        struct text t = { 0 };
        char name[32];
        text_puts(&t, texts[i]);
        sprintf(name, "%s-%d", prefix, i + 1);
        write_seed(dir, name, &t);
        text_free(&t);
    }
}

static const char *const json_texts[] = {
    "{\"model_type\":\"llama\",\"rope_scaling\":null,\"rms_norm_eps\":1e-05,\"eos\":[1,-2],\"tied\":false,\"s\":{}}",
    "[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\",0,-0.5e+3,[[],{}]]",
    "{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"e\":4,\"f\":5,\"g\":6,\"h\":7,\"i\":8,\"j\":{\"a\":true}}",
    "-1.5e3",
    NULL
};

#define SIZES "\"hidden_size\":8,\"vocab_size\":9,\"num_hidden_layers\":2,\"num_attention_heads\":2,\"intermediate_size\":12," \
    "\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-5,\"bos_token_id\":1,\"eos_token_id\":[2,3]"
static const char *const config_texts[] = {
    "{\"model_type\":\"llama\"," SIZES ",\"num_key_value_heads\":1,\"head_dim\":4,\"attention_bias\":true,\"mlp_bias\":true,"
        "\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
        "\"original_max_position_embeddings\":64},\"tie_word_embeddings\":true,\"torch_dtype\":\"bfloat16\"}",
    "{\"model_type\":\"qwen3\"," SIZES ",\"head_dim\":6,\"use_sliding_window\":false,\"layer_types\":[\"full_attention\","
        "\"full_attention\"],\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":1e4,\"factor\":4,\"attention_factor\":1.2,"
        "\"beta_fast\":32,\"beta_slow\":1,\"original_max_position_embeddings\":32}}",
    "{\"model_type\":\"mistral\"," SIZES ",\"sliding_window\":4,\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}",
    "{\"model_type\":\"phi3\"," SIZES ",\"sliding_window\":null,\"pad_token_id\":3,\"max_position_embeddings\":4096}",
    "{\"model_type\":\"qwen2\"," SIZES ",\"unknown\":{\"a\":[1]}}",
    NULL
};

#define ADDED "\"added_tokens\":[{\"id\":9,\"content\":\"<s>\",\"single_word\":false,\"lstrip\":true,\"rstrip\":true," \
    "\"normalized\":false,\"special\":true},{\"id\":8,\"content\":\"<|x|>\",\"normalized\":true,\"special\":false}]"
#define TEMPLATE "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}}," \
    "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[9],\"tokens\":[\"<s>\"]}}}"
#define MARK "\xe2\x96\x81"
#define REPLACE(from, to) "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" from "\"},\"content\":\"" to "\"}"
static const char *const tokenizer_texts[] = {
    "{" ADDED ",\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\","
        "\"individual_digits\":true},{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}]}," TEMPLATE ","
        "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"unk_token\":\"<u>\",\"fuse_unk\":true,\"ignore_merges\":true,"
        "\"vocab\":{\"<u>\":0,\"a\":1,\"b\":2,\"\xc4\xa0\":3,\"aa\":4,\"\xc4\xa0" "a\":5,\"aaaa\":6},\"merges\":[\"a a\",[\"\xc4\xa0\",\"a\"],"
        "\"aa aa\"]}}",
    "{" ADDED ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"" MARK "\"}," REPLACE(" ", MARK)
        "]},\"pre_tokenizer\":null,\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" REPLACE(MARK, " ") ",{\"type\":\"ByteFallback\"},"
        "{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},\"model\":{\"byte_fallback\":true,\"unk_token\":"
        "\"<u>\",\"vocab\":{\"<u>\":0,\"a\":1,\"" MARK "\":2,\"" MARK "a\":3,\"<0x0A>\":4,\"<0xC3>\":5,\"<0xA9>\":6,\"aa\":7},\"merges\":[\""
        MARK " a\",\"a a\"]}}",
    "{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"" MARK "\",\"prepend_scheme\":\"first\",\"split\":false},\"decoder\":"
        "{\"type\":\"Metaspace\",\"replacement\":\"" MARK "\"},\"model\":{\"unk_token\":\"a\",\"vocab\":{\"a\":0,\"" MARK "\":1},\"merges\":[]}}",
    "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}\"},\"behavior\":"
        "\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},\"decoder\":{\"type\":"
        "\"ByteLevel\"},\"model\":{\"unk_token\":\"a\",\"vocab\":{\"a\":0,\"aa\":1,\"aaa\":2},\"merges\":[\"a a\",\"aa a\"]}}",
    NULL
};
static const char *const tokenizer_configs[] = {
    "{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"<|x|>\"},\"add_bos_token\":true,\"chat_template\":\"{{ bos_token }}\"}",
    "{\"added_tokens_decoder\":{\"9\":{\"content\":\"<s>\",\"special\":true}},\"additional_special_tokens\":[\"aa\"],\"unk_token\":\"a\"}",
    "{\"chat_template\":[{\"name\":\"default\",\"template\":\"x\"}]}",
    "{}"
};

/* tokenizer.json, a NUL, tokenizer_config.json. */
static void tokenizer_seeds(const char *dir)
{
    int i;
    for (i = 0; tokenizer_texts[i]; i++) {
        struct text t = { 0 };
        char name[32];
        text_puts(&t, tokenizer_texts[i]);
        text_add(&t, "", 1);
        text_puts(&t, tokenizer_configs[i]);
        sprintf(name, "tokenizer_json-%d", i + 1);
        write_seed(dir, name, &t);
        text_free(&t);
    }
}

static void safetensors_seed(const char *dir)
{
    static const size_t dims[] = { 2, 3 };
    struct st_writer w = { 0 };
    char *path = path_join(dir, "safetensors-1", &err);
    if (!path || st_writer_add(&w, "w", TYPE_F32, dims, 2, &err) || st_writer_add(&w, "b", TYPE_BF16, dims, 1, &err)
        || st_writer_add(&w, "n", TYPE_U8, NULL, 0, &err) || st_writer_begin(&w, path, &err)
        || st_writer_put(&w, "aaaabbbbccccddddeeeeffffgghhi", 29, &err) || st_writer_commit(&w, &err)) {
        fprintf(stderr, "%s: %s\n", err.where, err.found);
        exit(1);
    }
    free(path);
}

static void put_number(struct text *t, uint64_t v, int bytes)
{
    for (; bytes-- > 0; v >>= 8) {
        char c = (char)(v & 255);
        text_add(t, &c, 1);
    }
}

static void put_string(struct text *t, const char *s)
{
    put_number(t, strlen(s), 8);
    text_puts(t, s);
}

static void gguf_seed(const char *dir)
{
    static const int sizes[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
    struct text t = { 0 };
    int type;
    char key[8];
    text_puts(&t, "GGUF");
    put_number(&t, 3, 4);
    put_number(&t, 2, 8);
    put_number(&t, 15, 8);
    for (type = 0; type <= GGUF_F64; type++) {      /* one value of each type */
        sprintf(key, "k%d", type);
        put_string(&t, key);
        put_number(&t, (uint64_t)type, 4);
        if (type == GGUF_STRING) put_string(&t, "text");
        else if (type == GGUF_ARRAY) put_number(&t, GGUF_STRING, 4), put_number(&t, 2, 8), put_string(&t, "a"), put_string(&t, "");
        else put_number(&t, 1, sizes[type]);
    }
    put_string(&t, "general.alignment"), put_number(&t, GGUF_U32, 4), put_number(&t, 8, 4);
    put_string(&t, "numbers"), put_number(&t, GGUF_ARRAY, 4), put_number(&t, GGUF_I16, 4), put_number(&t, 2, 8), put_number(&t, 7, 4);
    put_string(&t, "q"), put_number(&t, 2, 4), put_number(&t, 32, 8), put_number(&t, 1, 8), put_number(&t, 3, 4), put_number(&t, 0, 8);
    put_string(&t, "v"), put_number(&t, 1, 4), put_number(&t, 2, 8), put_number(&t, 0, 4), put_number(&t, 24, 8);
    while (t.n % 8) put_number(&t, 0, 1);
    text_puts(&t, "ddmm0123456789abcdef....ffffffff");
    write_seed(dir, "gguf-1", &t);
    text_free(&t);
}

/* ---- SentencePiece's protobuf ---- */

static void put_piece(struct text *t, const char *piece, float score, int type)
{
    size_t n = strlen(piece);
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    put_number(t, 1 << 3 | 2, 1), put_number(t, n + 9, 1);
    put_number(t, 1 << 3 | 2, 1), put_number(t, n, 1), text_puts(t, piece);
    put_number(t, 2 << 3 | 5, 1), put_number(t, bits, 4);
    put_number(t, 3 << 3, 1), put_number(t, (uint64_t)type, 1);
}

static void model_seeds(const char *dir)
{
    static const char *const tiktoken[] = { "YQ== 0\nYg== 1\r\nYWE= 2\nYWFi 3\n", NULL };
    struct text t = { 0 };
    put_piece(&t, "<unk>", 0, 2), put_piece(&t, "<s>", 0, 3), put_piece(&t, "</s>", 0, 3), put_piece(&t, "<0xC3>", 0, 6);
    put_piece(&t, MARK, -4, 1), put_piece(&t, "a", -5, 1), put_piece(&t, "aa", -1, 1), put_piece(&t, MARK "a", -2, 1);
    put_piece(&t, "aaa", -3, 1);
    put_number(&t, 2 << 3 | 2, 1), put_number(&t, 4, 1), put_number(&t, 0x0218, 2), put_number(&t, 0x0120, 2);
    put_number(&t, 3 << 3 | 2, 1), put_number(&t, 6, 1);
    put_number(&t, 0x0118, 2), put_number(&t, 0x0120, 2), put_number(&t, 0x0128, 2);
    write_seed(dir, "tokenizer_model-1", &t);
    text_free(&t);
    text_seeds(dir, "tokenizer_model-t", tiktoken);
}

/* ---- GGUF's metadata and tensors ---- */

static void put_key(struct text *t, const char *key, int type)
{
    put_string(t, key);
    put_number(t, (uint64_t)type, 4);
}

static void put_u32(struct text *t, const char *key, uint64_t v) { put_key(t, key, GGUF_U32), put_number(t, v, 4); }

static void put_array(struct text *t, const char *key, int type, size_t n)
{
    put_key(t, key, GGUF_ARRAY), put_number(t, (uint64_t)type, 4), put_number(t, n, 8);
}

static void put_strings(struct text *t, const char *key, const char *const *list, size_t n)
{
    size_t i;
    put_array(t, key, GGUF_STRING, n);
    for (i = 0; i < n; i++) put_string(t, list[i]);
}

static void gguf_head(struct text *t, int tensors, int values)
{
    text_puts(t, "GGUF");
    put_number(t, 3, 4), put_number(t, (uint64_t)tensors, 8), put_number(t, (uint64_t)values, 8);
}

static void gguf_tokenizer_seeds(const char *dir)
{
    static const char *const bytes[] = { "a", "b", "\xc4\xa0", "aa", ("\xc4\xa0" "a"), "<s>", "<|x|>", "aaaa" };
    static const char *const pieces[] = { "<unk>", "<s>", "</s>", "<0x0A>", MARK, "a", "aa", MARK "a" };
    static const char *const merges[] = { "a a", "\xc4\xa0 a", "aa aa" };
    static const int types[2][8] = { { 1, 1, 1, 1, 1, 3, 4, 1 }, { 2, 3, 3, 6, 1, 1, 1, 1 } };
    static const float scores[8] = { 0, 0, 0, 0, -4, -5, -1, -2 };
    int kind, i;
    for (kind = 0; kind < 2; kind++) {
        struct text t = { 0 };
        gguf_head(&t, 0, kind ? 9 : 8);
        put_key(&t, "tokenizer.ggml.model", GGUF_STRING), put_string(&t, kind ? "llama" : "gpt2");
        put_u32(&t, "tokenizer.ggml.bos_token_id", kind ? 1 : 5);
        put_u32(&t, "tokenizer.ggml.eos_token_id", kind ? 2 : 6);
        put_key(&t, "tokenizer.ggml.add_bos_token", GGUF_BOOL), put_number(&t, 1, 1);
        put_strings(&t, "tokenizer.ggml.tokens", kind ? pieces : bytes, 8);
        put_array(&t, "tokenizer.ggml.token_type", GGUF_I32, 8);
        for (i = 0; i < 8; i++) put_number(&t, (uint64_t)types[kind][i], 4);
        if (kind) {
            put_array(&t, "tokenizer.ggml.scores", GGUF_F32, 8);
            for (i = 0; i < 8; i++) {
                uint32_t bits;
                memcpy(&bits, &scores[i], 4);
                put_number(&t, bits, 4);
            }
            put_key(&t, "tokenizer.ggml.add_space_prefix", GGUF_BOOL), put_number(&t, 1, 1);
            put_u32(&t, "tokenizer.ggml.unknown_token_id", 0);
        } else {
            put_key(&t, "tokenizer.ggml.pre", GGUF_STRING), put_string(&t, "default");
            put_strings(&t, "tokenizer.ggml.merges", merges, 3);
        }
        write_seed(dir, kind ? "tokenizer_gguf-2" : "tokenizer_gguf-1", &t);
        text_free(&t);
    }
}

/* A model of one layer: C 8, V 4, NH 2, NKV 1, HS 4, F 32; F32, F16 and Q4_0. */
static void gguf_model_seed(const char *dir)
{
    static const struct { const char *name; int dims[2], type; size_t bytes; } tensors[] = {
        { "token_embd.weight", { 8, 4 }, 0, 128 }, { "blk.0.attn_norm.weight", { 8, 0 }, 0, 32 },
        { "blk.0.attn_q.weight", { 8, 8 }, 1, 128 }, { "blk.0.attn_k.weight", { 8, 4 }, 1, 64 },
        { "blk.0.attn_v.weight", { 8, 4 }, 1, 64 }, { "blk.0.attn_output.weight", { 8, 8 }, 1, 128 },
        { "blk.0.ffn_norm.weight", { 8, 0 }, 0, 32 }, { "blk.0.ffn_gate.weight", { 8, 32 }, 1, 512 },
        { "blk.0.ffn_up.weight", { 8, 32 }, 1, 512 }, { "blk.0.ffn_down.weight", { 32, 8 }, 2, 144 },
        { "output_norm.weight", { 8, 0 }, 0, 32 }, { "rope_freqs.weight", { 2, 0 }, 0, 8 }
    };
    enum { TENSORS = sizeof tensors / sizeof *tensors };
    struct text t = { 0 };
    size_t offset = 0;
    int i;
    gguf_head(&t, TENSORS, 10);
    put_key(&t, "general.architecture", GGUF_STRING), put_string(&t, "llama");
    put_u32(&t, "general.alignment", 8);
    put_u32(&t, "llama.embedding_length", 8), put_u32(&t, "llama.block_count", 1), put_u32(&t, "llama.feed_forward_length", 32);
    put_u32(&t, "llama.attention.head_count", 2), put_u32(&t, "llama.attention.head_count_kv", 1);
    put_u32(&t, "llama.rope.dimension_count", 4);
    put_key(&t, "llama.attention.layer_norm_rms_epsilon", GGUF_F32), put_number(&t, 0x3727c5ac, 4);
    put_key(&t, "llama.rope.scaling.type", GGUF_STRING), put_string(&t, "none");
    for (i = 0; i < TENSORS; i++) {
        put_string(&t, tensors[i].name);
        put_number(&t, tensors[i].dims[1] ? 2 : 1, 4);
        put_number(&t, (uint64_t)tensors[i].dims[0], 8);
        if (tensors[i].dims[1]) put_number(&t, (uint64_t)tensors[i].dims[1], 8);
        put_number(&t, (uint64_t)tensors[i].type, 4);
        put_number(&t, offset, 8);
        offset += tensors[i].bytes;
    }
    while (t.n % 8) put_number(&t, 0, 1);
    for (i = 0; i < (int)offset; i += 4) put_number(&t, 0x3f800000, 4);     /* ones, also in rope_freqs */
    write_seed(dir, "model-1", &t);
    text_free(&t);
}

int main(int argc, char **argv)
{
    if (argc != 2 || make_directory(argv[1], &err)) return 1;
    text_seeds(argv[1], "json", json_texts);
    text_seeds(argv[1], "config", config_texts);
    tokenizer_seeds(argv[1]);
    model_seeds(argv[1]);
    gguf_tokenizer_seeds(argv[1]);
    gguf_model_seed(argv[1]);
    safetensors_seed(argv[1]);
    gguf_seed(argv[1]);
    return 0;
}
