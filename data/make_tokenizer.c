/* make_tokenizer.c - trains byte-level BPE (Sennrich et al. 2016, over bytes as in GPT-2).
 *
 *     make_tokenizer SIZE OUT-DIRECTORY FILE...
 *
 * Reads {"text"}, {"text","label"} and {"messages"} rows (.jsonl) or plain text, and writes tokenizer.json and
 * tokenizer_config.json with the ChatML template. SIZE counts three special tokens and 256 bytes.
 * Ties between pairs of equal count go to the greater pair of byte strings, so the result depends
 * on the text alone. */
#include "bpe.h"
#include "../formats/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const specials[] = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" };
enum { N_SPECIALS = 3 };

static const char chatml[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

static void check(int status, const struct lora_error *err)
{
    if (status == 0) return;
    fprintf(stderr, "make_tokenizer: %s: %s\n", err->what, err->where);
    exit(1);
}

/* Every string of a row that is text: the value of "text" or "label" or of a turn's "content". */
static int add_row(struct bpe *b, const struct json *v, struct lora_error *err)
{
    const struct json *child;
    if (v->type == JSON_STRING && v->key &&
        (!strcmp(v->key, "text") || !strcmp(v->key, "label") || !strcmp(v->key, "content")))
        return bpe_add(b, v->string, v->n, err);
    for (child = v->child; child; child = child->next)
        if (add_row(b, child, err)) return -1;
    return 0;
}

static int add_file(struct bpe *b, const char *path, struct lora_error *err)
{
    struct file_map f;
    const char *s, *end, *newline, *dot = strrchr(path, '.');
    int status = 0;
    if (file_open(&f, path, err)) return -1;
    s = (const char *)f.data;
    end = s + f.size;
    if (!dot || strcmp(dot, ".jsonl")) {
        status = bpe_add(b, s, f.size, err);
    } else for (; s < end && !status; s = newline + 1) {
        struct json_document d;
        newline = memchr(s, '\n', (size_t)(end - s));
        if (!newline) newline = end;
        status = json_parse(&d, s, (size_t)(newline - s), path, err);
        if (status) break;
        status = add_row(b, d.root, err);
        json_free(&d);
    }
    file_close(&f);
    return status;
}

/* A token as tokenizer.json writes it: each byte by the character that stands for it. */
static void put_token(struct text *t, const struct bpe *b, int id)
{
    struct text shown = { 0 };
    bpe_show(b, id, &shown);
    if (shown.failed) t->failed = 1;
    else json_put_string(t, shown.s, shown.n);
    text_free(&shown);
}

static void put_tokenizer(struct text *t, const struct bpe *b)
{
    static const char level[] = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}";
    int i;
    text_puts(t, "{\n \"version\": \"1.0\", \"truncation\": null, \"padding\": null,\n \"added_tokens\": [");
    for (i = 0; i < N_SPECIALS; i++)
        text_printf(t, "%s\n  {\"id\": %d, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
                       "\"normalized\": false, \"special\": true}", i ? "," : "", i, specials[i]);
    text_printf(t, "\n ],\n \"normalizer\": null,\n \"pre_tokenizer\": %s,\n \"post_processor\": %s,\n \"decoder\": %s,\n",
                level, level, level);
    text_puts(t, " \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"continuing_subword_prefix\": \"\", "
                 "\"end_of_word_suffix\": \"\", \"fuse_unk\": false, \"byte_fallback\": false,\n  \"vocab\": {");
    for (i = 0; i < N_SPECIALS; i++) text_printf(t, "%s\"%s\": %d", i ? ", " : "", specials[i], i);
    for (i = 0; i < b->n_tokens; i++) {
        text_puts(t, i % 8 ? ", " : ",\n   ");
        put_token(t, b, i);
        text_printf(t, ": %d", i + N_SPECIALS);
    }
    text_puts(t, "},\n  \"merges\": [");
    for (i = BPE_BYTES; i < b->n_tokens; i++) {
        text_puts(t, i == BPE_BYTES ? "\n   [" : i % 8 ? ", [" : ",\n   [");
        put_token(t, b, b->left[i]);
        text_puts(t, ", ");
        put_token(t, b, b->right[i]);
        text_puts(t, "]");
    }
    text_puts(t, "]}\n}\n");
}

static void put_config(struct text *t)
{
    text_puts(t, "{\"tokenizer_class\": \"PreTrainedTokenizerFast\", \"bos_token\": \"<|endoftext|>\", \"eos_token\": \"<|im_end|>\", "
                 "\"pad_token\": \"<|endoftext|>\", \"add_bos_token\": false, \"add_eos_token\": false, "
                 "\"clean_up_tokenization_spaces\": false, \"model_max_length\": 512,\n \"chat_template\": ");
    json_put_string(t, chatml, strlen(chatml));
    text_puts(t, "}\n");
}

static void write_text(const char *directory, const char *name, const struct text *t, struct lora_error *err)
{
    char *path = path_join(directory, name, err);
    check(path ? text_check(t, err) : -1, err);
    check(file_write(path, t->s, t->n, err), err);
    free(path);
}

int main(int argc, char **argv)
{
    struct bpe b = { 0 };
    struct text t = { 0 }, config = { 0 };
    struct lora_error err;
    long long size;
    int i;
    if (argc < 4 || parse_integer(argv[1], &size) || size < BPE_BYTES + N_SPECIALS || size > BPE_MOST) {
        fprintf(stderr, "usage: make_tokenizer SIZE OUT-DIRECTORY FILE... (SIZE from %d to %d)\n", BPE_BYTES + N_SPECIALS, BPE_MOST);
        return 2;
    }
    for (i = 3; i < argc; i++) check(add_file(&b, argv[i], &err), &err);
    check(bpe_train(&b, (int)size - N_SPECIALS, &err), &err);
    check(make_directory(argv[2], &err), &err);
    put_tokenizer(&t, &b);
    write_text(argv[2], "tokenizer.json", &t, &err);
    put_config(&config);
    write_text(argv[2], "tokenizer_config.json", &config, &err);
    fprintf(stderr, "%d tokens from %zu different words\n", b.n_tokens + N_SPECIALS, b.n_words);
    text_free(&t);
    text_free(&config);
    bpe_free(&b);
    return 0;
}
