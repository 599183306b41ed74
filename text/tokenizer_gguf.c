/* tokenizer_gguf.c - a tokenizer from the metadata of a GGUF file. */
#include "tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#include "../formats/gguf.h"

/* What tokenizer.ggml.pre says of a byte-level vocabulary: the steps, and what goes with them. */
struct gguf_pre {
    const char *name;
    const struct split_rule *steps[4];
    int nfc, ignore_merges, add_bos;
};
static const struct gguf_pre gguf_pres[] = {
    { "gpt-2", { &split_gpt2, NULL, NULL, NULL }, 0, 0, 0 },
    { "smollm", { &split_digits, &split_gpt2, NULL, NULL }, 0, 0, 0 },
    { "llama-bpe", { &split_llama3, NULL, NULL, NULL }, 0, 1, 1 },
    { "qwen2", { &split_qwen2, NULL, NULL, NULL }, 1, 0, 0 },
    { "tekken", { &split_tekken, NULL, NULL, NULL }, 0, 1, 1 },
    /* what llama.cpp does for a vocabulary it does not know */
    { "default", { &split_punctuation, &split_gpt2, &split_digit_runs, &split_triples }, 0, 0, 0 }
};

enum { GGUF_TOKEN_NORMAL = 1, GGUF_TOKEN_UNKNOWN, GGUF_TOKEN_CONTROL, GGUF_TOKEN_USER, GGUF_TOKEN_UNUSED,
       GGUF_TOKEN_BYTE };

static int refuse_key(const struct tokenizer *t, const char *key, const char *wanted, const char *what,
                      struct lora_error *err)
{
    fail(err, "tokenizer", "%s, %s", t->path, key);
    expected(err, "%s", wanted);
    return found(err, "%s", what);
}

static int read_gguf_tokens(struct tokenizer *t, const struct gguf *g, struct lora_error *err)
{
    const struct gguf_value *v = gguf_get(g, "tokenizer.ggml.tokens");
    const struct gguf_value *types = gguf_get(g, "tokenizer.ggml.token_type");
    size_t i;
    if (!v || v->type != GGUF_ARRAY || v->element != GGUF_STRING)
        return refuse_key(t, "tokenizer.ggml.tokens", "an array of texts", v ? "something else" : "none", err);
    if (types && (types->type != GGUF_ARRAY || types->element == GGUF_STRING || types->n != v->n))
        return refuse_key(t, "tokenizer.ggml.token_type", "a number for each token", "something else", err);
    for (i = 0; i < v->n; i++) {
        double type = types ? gguf_array_number(types, i) : GGUF_TOKEN_NORMAL;     /* it may be any number */
        struct added a = { 0 };
        if (tokenizer_put(t, i, v->strings[i].s, v->strings[i].n, err)) return -1;
        a.id = (int)i;
        a.special = type == GGUF_TOKEN_CONTROL || type == GGUF_TOKEN_UNKNOWN;
        if ((a.special || type == GGUF_TOKEN_USER) && tokenizer_put_added(t, &a, err)) return -1;
    }
    return 0;
}

static int read_gguf_merges(struct tokenizer *t, const struct gguf *g, struct lora_error *err)
{
    const struct gguf_value *v = gguf_get(g, "tokenizer.ggml.merges");
    size_t i;
    if (!v || v->type != GGUF_ARRAY || v->element != GGUF_STRING)
        return refuse_key(t, "tokenizer.ggml.merges", "an array of texts", v ? "something else" : "none", err);
    for (i = 0; i < v->n; i++) {
        const char *s = v->strings[i].s, *space = v->strings[i].n ? memchr(s + 1, ' ', v->strings[i].n - 1) : NULL;
        if (!space) return refuse_key(t, "tokenizer.ggml.merges", "two tokens with a space between", "none", err);
        if (tokenizer_put_merge(t, s, (size_t)(space - s), space + 1, (size_t)(s + v->strings[i].n - space - 1),
                                i, err))
            return -1;
    }
    return 0;
}

/* Byte-level: merges, and steps by name. */
static int read_gguf_bytes(struct tokenizer *t, const struct gguf *g, int *add_bos, struct lora_error *err)
{
    const struct gguf_pre *p = NULL;
    char *name = NULL;
    size_t i;
    t->byte_level = 1;
    if (gguf_get_string(g, "tokenizer.ggml.pre", &name, err)) return -1;
    for (i = 0; i < sizeof gguf_pres / sizeof *gguf_pres && !p; i++)
        if (name && !strcmp(name, gguf_pres[i].name)) p = &gguf_pres[i];
    if (!p)
        refuse_key(t, "tokenizer.ggml.pre", "gpt-2, smollm, llama-bpe, qwen2, tekken or default", name ? name : "none", err);
    free(name);
    if (!p) return -1;
    *add_bos = p->add_bos;
    t->ignore_merges = p->ignore_merges;
    if (p->nfc && tokenizer_put_normalizer(t, NORMALIZE_NFC, "", "", err)) return -1;
    for (i = 0; i < 4 && p->steps[i]; i++)
        if (tokenizer_put_step(t, STEP_CUT, p->steps[i], PREFIX_NEVER, err)) return -1;
    return read_gguf_merges(t, g, err);
}

/* SentencePiece's: merges by score, a mark for the space. */
static int read_gguf_pieces(struct tokenizer *t, const struct gguf *g, int *add_bos, struct lora_error *err)
{
    const struct gguf_value *v = gguf_get(g, "tokenizer.ggml.scores");
    int add_space = 1, bad;
    float *scores;
    size_t i;
    *add_bos = 1;
    t->byte_fallback = t->fuse_unk = 1;
    t->unk = 0;
    t->strip = STRIP_SPACE;
    if (!v || v->type != GGUF_ARRAY || v->element == GGUF_STRING || v->n != t->n)
        return refuse_key(t, "tokenizer.ggml.scores", "a number for each token", v ? "something else" : "none", err);
    if (gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &add_space, err)
        || (add_space && tokenizer_put_normalizer(t, NORMALIZE_PREPEND, "", SPACE_MARK, err))
        || tokenizer_put_normalizer(t, NORMALIZE_REPLACE, " ", SPACE_MARK, err)
        || !(scores = new_array(v->n, sizeof *scores, err)))
        return -1;
    if (!add_space) t->strip = STRIP_NOTHING;
    for (i = 0; i < v->n; i++) {
        scores[i] = (float)gguf_array_number(v, i);
        if (!(scores[i] - scores[i] == 0)) break;
    }
    bad = i < v->n ? refuse_key(t, "tokenizer.ggml.scores", "finite numbers", "another", err)
                   : tokenizer_make_merges(t, scores, err);
    free(scores);
    return bad;
}

/* An id of the file, checked; absent leaves *out. */
static int read_gguf_id(struct tokenizer *t, const struct gguf *g, const char *key, int *out, struct lora_error *err)
{
    if (gguf_get_int(g, key, out, err)) return -1;
    if (*out == -1 || tokenizer_token(t, *out)) return 0;
    return refuse_key(t, key, "an id of the vocabulary", "another", err);
}

static int read_gguf_kind(struct tokenizer *t, const struct gguf *g, int *add_bos, struct lora_error *err)
{
    char *kind = NULL;
    int bad = gguf_get_string(g, "tokenizer.ggml.model", &kind, err) || read_gguf_tokens(t, g, err);
    if (!bad && kind && !strcmp(kind, "gpt2")) bad = read_gguf_bytes(t, g, add_bos, err);
    else if (!bad && kind && !strcmp(kind, "llama")) bad = read_gguf_pieces(t, g, add_bos, err);
    else if (!bad) bad = refuse_key(t, "tokenizer.ggml.model", "gpt2 or llama", kind ? kind : "none", err);
    free(kind);
    return bad;
}

static int read_gguf(struct tokenizer *t, const struct gguf *g, struct lora_error *err)
{
    int add_bos = 0, add_eos = 0;
    if (read_gguf_kind(t, g, &add_bos, err)
        || read_gguf_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, err)
        || read_gguf_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos, err)
        || gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &add_bos, err)
        || gguf_get_bool(g, "tokenizer.ggml.add_eos_token", &add_eos, err)
        || gguf_get_string(g, "tokenizer.chat_template", &t->chat_template, err))
        return -1;
    if (!t->byte_level && read_gguf_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unk, err)) return -1;
    if (add_bos && t->bos >= 0 && ids_add(&t->before, t->bos, err)) return -1;
    return add_eos && t->eos >= 0 ? ids_add(&t->after, t->eos, err) : 0;
}

int tokenizer_read_gguf(struct tokenizer *t, const char *path, struct lora_error *err)
{
    struct gguf g;
    int bad;
    t->is_gguf = 1;
    if (gguf_open(&g, path, err)) return -1;
    bad = read_gguf(t, &g, err);
    gguf_close(&g);
    return bad ? -1 : 0;
}
