/* identity.c - what a tokenizer and a chat template do, as hashes. */
#include "session.h"

#include <stdio.h>
#include <string.h>

/* Text that tokenizers cut differently: digits, contractions, case, white space, line breaks, code, accents
 * joined and apart, other scripts, emoji, punctuation in rows. */
static const char *const hard_texts[] = {
    "Hello world", " It's 12345 o'clock; WE'LL see 3.14159 and 1,000,000!", "  two  three   \t tabs\n\n\n  lines \r\n",
    "for (i = 0; i < n; i++) {\n    x[i] += \"a_b\" / 2;\n}\n", "caf\xc3\xa9 cafe\xcc\x81 na\xc3\xafve \xc3\x85ngstr\xc3\xb6m stra\303\237e",
    "\xe4\xbd\xa0\xe5\xa5\xbd\xef\xbc\x8c\xe4\xb8\x96\xe7\x95\x8c \xe3\x81\x93\xe3\x82\x93\xe3\x81\xab\xe3\x81\xa1\xe3\x81\xaf",
    "\xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82 \xd9\x85\xd8\xb1\xd8\xad\xd8\xa8\xd8\xa7 \xe0\xa4\xa8\xe0\xa4\xae\xe0\xa4\xb8\xe0\xa5\x8d\xe0\xa4\xa4\xe0\xa5\x87",
    "\xf0\x9f\x98\x80\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb \xc2\xa0\xe2\x80\x94\xe2\x80\xa6 \xc2\xbd \xe2\x91\xa0", "...!!!--===###$$$%%%&&&"
};

/* An input that is refused is part of what is hashed; without memory there is no hash. */
static int out_of_memory(const struct lora_error *inner, struct lora_error *err)
{
    if (strcmp(inner->what, "out of memory")) return 0;
    if (err) *err = *inner;
    return -1;
}

static int hash_ids(const struct tokenizer *t, const char *text, uint64_t *h, struct lora_error *err)
{
    struct ids ids = { NULL, 0, 0 };
    struct lora_error inner;
    int bad = tokenizer_encode(t, text, strlen(text), TOKENIZE_SPECIAL, &ids, &inner);
    if (!bad) *h = hash_bytes(*h, ids.v, ids.n * sizeof *ids.v);
    ids_free(&ids);
    if (bad && out_of_memory(&inner, err)) return -1;
    *h = hash_bytes(*h, &bad, sizeof bad);
    return 0;
}

/* GGUF names the ids that the original leaves free. */
static int is_filler(const char *text, int id)
{
    char name[32];
    snprintf(name, sizeof name, "[PAD%d]", id);
    return !strcmp(text, name);
}

int tokenizer_identity(const struct tokenizer *t, uint64_t *hash, struct lora_error *err)
{
    int id, n = tokenizer_size(t), eos = tokenizer_eos(t);
    size_t i;
    *hash = hash_bytes(HASH_START, &eos, sizeof eos);
    for (id = 0; id < n; id++) {
        const char *text = tokenizer_token(t, id);
        if (!text || is_filler(text, id)) continue;
        *hash = hash_bytes(*hash, &id, sizeof id);
        *hash = hash_bytes(*hash, text, strlen(text) + 1);
    }
    for (i = 0; i < sizeof hard_texts / sizeof *hard_texts; i++)
        if (hash_ids(t, hard_texts[i], hash, err)) return -1;
    return 0;
}

int chat_identity(const struct chat_template *chat, const struct tokenizer *t, uint64_t *hash, struct lora_error *err)
{
    static const struct message talk[] = {
        { "system", " Be brief. " }, { "user", " Hi\n" }, { "assistant", " Hello.\n" }, { "user", "2+2?" }, { "assistant", "4" },
        { "system", "" }, { "user", "x" }
    };
    static const struct { int from, n; } parts[] = { { 0, 4 }, { 0, 5 }, { 1, 1 }, { 1, 4 }, { 5, 2 }, { 2, 1 } };
    const char *bos = data_bos_text(t), *eos = data_eos_text(t);
    struct chat_text out = { { 0 }, NULL, 0, 0 };
    size_t i;
    *hash = HASH_START;
    for (i = 0; i < 2 * sizeof parts / sizeof *parts; i++) {
        struct lora_error inner;
        int bad = chat_render(chat, talk + parts[i / 2].from, (size_t)parts[i / 2].n, (int)(i % 2), bos, eos, &out, &inner);
        if (bad && out_of_memory(&inner, err)) {
            chat_text_free(&out);
            return -1;
        }
        if (!bad) *hash = hash_bytes(*hash, out.text.s, out.text.n + 1);
        *hash = hash_bytes(*hash, &bad, sizeof bad);
    }
    chat_text_free(&out);
    return 0;
}

int template_identity(const struct tokenizer *t, const struct chat_template **own, uint64_t *hash,
                      struct lora_error *err)
{
    const char *text = tokenizer_chat_template(t);
    size_t n = text ? strlen(text) : 0;
    struct lora_error inner;
    *own = NULL;
    *hash = 0;
    if (!text) return 0;
    if ((*own = chat_recognise(text, &inner))) return chat_identity(*own, t, hash, err);
    while (n && strchr(" \t\r\n", text[n - 1])) n--;
    *hash = hash_bytes(HASH_START, text, n);
    return out_of_memory(&inner, err);
}
