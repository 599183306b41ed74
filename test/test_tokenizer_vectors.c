/* test_tokenizer_vectors.c - the ids that others' programs give, from ../shared. */
#include "tokenizer_small.h"

/* An array of numbers as "1 2 3". */
static const char *numbers(const struct json *v, struct text *out)
{
    const struct json *x;
    out->n = 0;
    text_puts(out, "");
    for (x = v ? v->child : NULL; x; x = x->next) text_printf(out, "%s%.0f", x == v->child ? "" : " ", x->number);
    return out->s;
}

static char *shared_path(const char *name)
{
    static char path[2][1024];
    static int which;
    which = !which;
    snprintf(path[which], sizeof path[which], "%s/%s", shared_dir(), name);
    return path[which];
}

static void check_vector(const struct tokenizer *t, const struct json *text, const char *ids, int flags)
{
    const char *got = encode(t, text->string, text->n, flags);
    CHECK(!strcmp(got, ids), "\"%.60s\": %.80s, expected %.80s", text->string, got, ids);
}

/* Texts that end with a line of their own; ids a line. */
static void check_llamacpp(const struct tokenizer *t, const char *name)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    struct file_map in, out;
    struct lora_error err;
    char path[256], *texts, *ids, *text, *line, *end;
    snprintf(path, sizeof path, "vectors/llamacpp-vocab/%s.inp", name);
    if (file_open(&in, shared_path(path), &err)) { CHECK(0, "%s", path); return; }
    snprintf(path, sizeof path, "vectors/llamacpp-vocab/%s.out", name);
    if (file_open(&out, shared_path(path), &err)) { CHECK(0, "%s", path); return; }
    text = texts = new_string_n((const char *)in.data, in.size, NULL);
    line = ids = new_string_n((const char *)out.data, out.size, NULL);
    for (; (end = strstr(text, mark)); text = end + strlen(mark)) {
        size_t n = strcspn(line, "\n");
        const char *got = encode(t, text, (size_t)(end - text), 0);
        while (*line == ' ') line++, n--;
        CHECK(strlen(got) == n && !memcmp(got, line, n), "\"%.*s\": %s", (int)(end - text), text, got);
        line += n + (line[n] != 0);
    }
    free(texts);
    free(ids);
    file_close(&in);
    file_close(&out);
}

/* 22 texts of inputs.json, and the ids that Transformers gives them. */
static void check_multilingual(const struct tokenizer *t, const char *name)
{
    struct json_document inputs, d;
    struct lora_error err;
    struct text ids = { 0 };
    const struct json *list, *e;
    if (json_read(&inputs, shared_path("vectors/hf-multilingual/inputs.json"), &err)
        || json_read(&d, shared_path(name), &err)) {
        CHECK(0, "%s", err.where);
        return;
    }
    list = json_get(inputs.root, "inputs");
    for (e = list ? list->child : NULL; e; e = e->next) {
        const struct json *id = json_get(e, "id"), *wanted = json_get(json_get(d.root, "entries"), id->string);
        check_vector(t, json_get(e, "text"), numbers(json_get(wanted, "input_ids"), &ids), TOKENIZE_SPECIAL);
    }
    text_free(&ids);
    json_free(&inputs);
    json_free(&d);
}

/* The texts of this model, and the long text whose ids are a file of their own. */
static void check_encoded(const struct tokenizer *t, const char *model, const char *long_text)
{
    struct json_document d, l;
    struct lora_error err;
    struct text ids = { 0 };
    const struct json *list, *e;
    if (json_read(&d, shared_path("vectors/hf-encoded-text/tokenizer_tests.json"), &err)
        || json_read(&l, shared_path(long_text), &err)) {
        CHECK(0, "%s", err.where);
        return;
    }
    list = json_get(d.root, model);
    for (e = list ? list->child : NULL; e; e = e->next)
        check_vector(t, json_get(e, "input"), numbers(json_get(json_get(e, "encoded"), "input_ids"), &ids), TOKENIZE_SPECIAL);
    check_vector(t, json_get(l.root, "text"), numbers(json_get(l.root, "token_ids"), &ids), TOKENIZE_SPECIAL);
    text_free(&ids);
    json_free(&d);
    json_free(&l);
}

/* The texts that a vocabulary was trained on elsewhere: no ids of this tokenizer, but they come back. */
static void check_corpus(const struct tokenizer *t)
{
    static const char *const names[] = { "address.txt", "corpus.en", "german.txt", "tinystories_sample.txt" };
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        struct file_map f;
        char path[128];
        snprintf(path, sizeof path, "vectors/bpe-training/%s", names[i]);
        if (file_open(&f, shared_path(path), NULL)) { CHECK(0, "%s", path); continue; }
        check_round_trip(t, (const char *)f.data, f.size);
        file_close(&f);
    }
}

static void test_gpt2(void)
{
    struct tokenizer *t;
    if (!shared_dir()) {
        test_skip("GPT-2's vectors", "no ../shared");
        return;
    }
    test_begin("GPT-2's vectors: llama.cpp's texts, 22 languages, tokenizer.json and GGUF alike");
    if (!(t = open_or_fail(shared_path("tokenizers/gpt2")))) return;
    check_llamacpp(t, "ggml-vocab-gpt-2.gguf");
    check_multilingual(t, "vectors/hf-multilingual/openai-community__gpt2.json");
    check_encoded(t, "distilgpt2", "vectors/hf-encoded-text/gpt2_encoded_tokens.json");
    check_corpus(t);
    tokenizer_close(t);
    if (!(t = open_or_fail(shared_path("vectors/llamacpp-vocab/ggml-vocab-gpt-2.gguf")))) return;
    check_llamacpp(t, "ggml-vocab-gpt-2.gguf");
    tokenizer_close(t);
    check_saved(shared_path("vectors/llamacpp-vocab/ggml-vocab-gpt-2.gguf"), "saved2");
}

/* A folder under the temporary one with copies of these files of the shared one, and a configuration. */
static const char *borrow(const char *dir, const char *from, const char *name, const char *config)
{
    struct file_map f;
    char path[256];
    make_directory(in_folder(dir), NULL);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (file_open(&f, shared_path(from), NULL)) { CHECK(0, "%s", from); return ""; }
    put_bytes(path, (const char *)f.data, f.size);
    file_close(&f);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    if (config) put_file(path, config);
    return in_folder(dir);
}

/* A conversation in Vicuna's form, piece by piece, EOS after each answer: ids and labels (Axolotl). */
static void check_conversation(const struct tokenizer *t)
{
    static const char system[] = "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. ";
    struct json_document d, w;
    struct lora_error err;
    struct ids ids = { 0 };
    struct text piece = { 0 };
    const struct json *m, *id, *label;
    size_t i = 0, answer = 0;
    if (json_read(&d, shared_path("vectors/sft-labels/conversation.json"), &err)
        || json_read(&w, shared_path("vectors/sft-labels/conversation.tokenized.json"), &err)) {
        CHECK(0, "%s", err.where);
        return;
    }
    id = json_get(w.root, "input_ids")->child;
    label = json_get(w.root, "labels")->child;
    CHECK(!tokenizer_encode(t, system, strlen(system), TOKENIZE_SPECIAL, &ids, &err));
    for (m = json_get(d.root, "conversations")->child; m; m = m->next) {
        const char *value = json_get(m, "value")->string;
        int asks = !strcmp(json_get(m, "from")->string, "human");
        piece.n = 0;
        if (asks) text_printf(&piece, "USER: %s ", value);
        else text_puts(&piece, "ASSISTANT:");
        CHECK(!tokenizer_encode(t, piece.s, piece.n, 0, &ids, &err));
        answer = ids.n;
        piece.n = 0;
        text_printf(&piece, "%s</s>", value);      /* this tokenizer takes </s> after a word for text */
        if (!asks) CHECK(!tokenizer_encode(t, piece.s, piece.n, 0, &ids, &err));
        if (!asks && !grow_array((void **)&ids.v, &ids.capacity, ids.n + 1, sizeof *ids.v, &err))
            ids.v[ids.n++] = tokenizer_eos(t);
        for (; i < ids.n && id && label; i++, id = id->next, label = label->next)
            CHECK((int)id->number == ids.v[i] && (int)label->number == (i < answer ? -100 : ids.v[i]), "id %zu", i);
    }
    CHECK(!id && i == ids.n, "%zu ids", i);
    ids_free(&ids);
    text_free(&piece);
    json_free(&d);
    json_free(&w);
}

/* Mistral's: others' ids are not there for it, but its two files must agree but for BOS, which only one adds. */
static void check_mistral(void)
{
    struct tokenizer *json = open_or_fail(shared_path("tokenizers/mistral"));
    struct tokenizer *model = open_or_fail(borrow("mistral", "tokenizers/mistral/tokenizer.model", "tokenizer.model", NULL));
    struct json_document d;
    const struct json *list, *e;
    if (!json || !model || json_read(&d, shared_path("vectors/hf-multilingual/inputs.json"), NULL)) {
        CHECK(0, "Mistral's files");
    } else {
        list = json_get(d.root, "inputs");
        for (e = list ? list->child : NULL; e; e = e->next) {
            const struct json *text = json_get(e, "text");
            check_vector(model, text, encode(json, text->string, text->n, 0), 0);
        }
        check_corpus(json);
        check_corpus(model);
        json_free(&d);
    }
    tokenizer_close(json);
    tokenizer_close(model);
}

static void test_llama(void)
{
    struct tokenizer *t;
    if (!shared_dir()) {
        test_skip("Llama's and Qwen's vectors", "no ../shared");
        return;
    }
    test_begin("Llama-2's and TinyLlama's vectors: tokenizer.json, tokenizer.model and GGUF alike");
    if ((t = open_or_fail(shared_path("tokenizers/llama2")))) {
        check_conversation(t);
        check_llamacpp(t, "ggml-vocab-llama-spm.gguf");
        check_encoded(t, "coreml-projects/Llama-2-7b-chat-coreml", "vectors/hf-encoded-text/llama_encoded.json");
        check_multilingual(t, "vectors/hf-multilingual/TinyLlama__TinyLlama-1.1B-Chat-v1.0.json");
    }
    tokenizer_close(t);
    if ((t = open_or_fail(shared_path("tokenizers/tinyllama-chat"))))
        check_multilingual(t, "vectors/hf-multilingual/TinyLlama__TinyLlama-1.1B-Chat-v1.0.json");
    tokenizer_close(t);
    if ((t = open_or_fail(borrow("llama2", "tokenizers/llama2/tokenizer.model", "tokenizer.model", NULL)))) {
        check_llamacpp(t, "ggml-vocab-llama-spm.gguf");
        check_encoded(t, "coreml-projects/Llama-2-7b-chat-coreml", "vectors/hf-encoded-text/llama_encoded.json");
        check_multilingual(t, "vectors/hf-multilingual/TinyLlama__TinyLlama-1.1B-Chat-v1.0.json");
    }
    tokenizer_close(t);
    if ((t = open_or_fail(shared_path("vectors/llamacpp-vocab/ggml-vocab-llama-spm.gguf")))) {
        check_llamacpp(t, "ggml-vocab-llama-spm.gguf");
        check_multilingual(t, "vectors/hf-multilingual/TinyLlama__TinyLlama-1.1B-Chat-v1.0.json");
    }
    tokenizer_close(t);
    check_saved(shared_path("vectors/llamacpp-vocab/ggml-vocab-llama-spm.gguf"), "saved4");
    check_mistral();
    test_begin("Qwen's vectors, from tiktoken's text; Llama-3's special tokens");
    if ((t = open_or_fail(borrow("qwen", "tokenizers/qwen/qwen.tiktoken", "qwen.tiktoken", NULL)))) {
        check_multilingual(t, "vectors/hf-multilingual/Qwen__Qwen2.5-0.5B.json");
        CHECK(tokenizer_size(t) == 151646 && tokenizer_id(t, "<|im_start|>") == 151644 && !tokenizer_adds_bos(t));
    }
    tokenizer_close(t);
    if ((t = open_or_fail(borrow("llama3", "tokenizers/llama3/tokenizer.model", "tokenizer.model", NULL)))) {
        CHECK(tokenizer_size(t) == 128256 && tokenizer_bos(t) == 128000 && tokenizer_adds_bos(t));
        check_ids(t, "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", TOKENIZE_SPECIAL,
                  "128000 128006 882 128007 271 13347 128009");
        check_ids(t, "<|reserved_special_token_250|>", 0, "128255");
    }
    tokenizer_close(t);
}

static void test_smollm2(void)
{
    const char *path = getenv("LORA_MODEL");
    struct json_document d;
    struct lora_error err;
    struct text ids = { 0 }, out = { 0 };
    const struct json *list, *e;
    struct tokenizer *t;
    if (!path) path = "model/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (!shared_dir() || !file_exists(path)) {
        test_skip("SmolLM2's ids", shared_dir() ? "no model: `make model` fetches it" : "no ../shared");
        return;
    }
    test_begin("SmolLM2's ids: texts both ways, chats");
    if (json_read(&d, shared_path("goldens/smollm2/tokens.json"), &err)) { CHECK(0, "tokens.json"); return; }
    if (!(t = open_or_fail(path))) return;
    list = json_get(d.root, "strings");
    for (e = list ? list->child : NULL; e; e = e->next) {
        const struct json *text = json_get(e, "text"), *v = json_get(e, "ids_smollm"), *x, *part;
        int k;
        check_vector(t, text, numbers(v, &ids), TOKENIZE_SPECIAL);
        for (k = 0; k < 2; k++) {
            part = json_get(e, k ? "decoded_without_special" : "decoded");
            out.n = 0;
            text_puts(&out, "");
            for (x = v->child; x; x = x->next)
                CHECK(!tokenizer_decode(t, (int[]){ (int)x->number }, 1, k, &out, NULL));
            CHECK(out.n == part->n && !memcmp(out.s, part->string, out.n), "\"%.60s\"", text->string);
        }
    }
    list = json_get(d.root, "chats");
    for (e = list ? list->child : NULL; e; e = e->next)
        check_vector(t, json_get(e, "text"), numbers(json_get(e, "ids"), &ids), 0);
    text_free(&ids);
    text_free(&out);
    json_free(&d);
    tokenizer_close(t);
    check_saved(path, "saved3");
}

int main(void)
{
    if (folder_make()) return 1;
    test_gpt2();
    test_llama();
    test_smollm2();
    remove_tree(folder, NULL);
    return test_end();
}
