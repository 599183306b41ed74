/* tokenizer_small.h - small vocabularies of our own as tokenizer.json, and what their tests compare. */
#ifndef TOKENIZER_SMALL_H
#define TOKENIZER_SMALL_H

#include "../tokenizer.h"
#include "../formats/json.h"
#include "../formats/unicode.h"
#include "test.h"

#include <unistd.h>

/* Not by the library, which waits for the disk; nor by cutting a file, which some file systems wait for. */
static inline void put_bytes(const char *name, const char *text, size_t n)
{
    const char *path = in_folder(name);
    FILE *f;
    remove(path);
    f = fopen(path, "wb");
    CHECK(f && fwrite(text, 1, n, f) == n, "%s", name);
    if (f) fclose(f);
}

static inline void put_file(const char *name, const char *text) { put_bytes(name, text, strlen(text)); }

static inline struct tokenizer *open_or_fail(const char *path)
{
    struct tokenizer *t = NULL;
    struct lora_error err = { { 0 }, { 0 }, { 0 }, { 0 }, { 0 } };
    int bad = tokenizer_open(&t, path, &err);
    CHECK(!bad, "%s: %s: expected %s, found %s", err.what, err.where, err.expected, err.found);
    return bad ? NULL : t;
}

/* ids of the text as "1 2 3". */
static inline const char *encode(const struct tokenizer *t, const char *text, size_t n, int flags)
{
    static struct text out[2];
    static int which;
    struct ids ids = { 0 };
    struct lora_error err;
    struct text *o = &out[which = !which];
    size_t i;
    o->n = 0;
    text_puts(o, "");
    if (tokenizer_encode(t, text, n, flags, &ids, &err)) text_puts(o, "error");
    for (i = 0; i < ids.n; i++) text_printf(o, "%s%d", i ? " " : "", ids.v[i]);
    ids_free(&ids);
    return o->s;
}

static inline void check_ids(const struct tokenizer *t, const char *text, int flags, const char *wanted)
{
    const char *got = encode(t, text, strlen(text), flags);
    CHECK(!strcmp(got, wanted), "\"%s\": %s, expected %s", text, got, wanted);
}

static inline void check_round_trip(const struct tokenizer *t, const char *text, size_t n)
{
    struct ids ids = { 0 };
    struct text out = { 0 };
    int bad = tokenizer_encode(t, text, n, TOKENIZE_TEXT_ONLY, &ids, NULL)
        || tokenizer_decode(t, ids.v, ids.n, 0, &out, NULL);
    CHECK(!bad && out.n == n && !memcmp(out.s ? out.s : "", text, n), "\"%.*s\"", n > 40 ? 40 : (int)n, text);
    ids_free(&ids);
    text_free(&out);
}

/* ---- small vocabularies of our own ---- */

/* The characters that stand for bytes in a byte-level vocabulary, written down a second time: the
 * printable ones of Latin-1, then U+0100 and on. */
static inline void put_byte(struct text *out, int byte)
{
    char s[4];
    uint32_t c = (uint32_t)byte;
    int b, rest = 0;
    if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174)) {
        for (b = 0; b < byte; b++) rest += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
        c = 256u + (uint32_t)rest;
    }
    text_add(out, s, utf8_put(s, c));
}

#define MOST 400
struct vocabulary {
    int n, n_merges;
    struct { unsigned char bytes[64]; int n; } token[MOST];
    int left[MOST], right[MOST], joined[MOST];
};

static inline int find_token(const struct vocabulary *v, const unsigned char *s, int n)
{
    int i;
    for (i = 0; i < v->n; i++)
        if (v->token[i].n == n && !memcmp(v->token[i].bytes, s, (size_t)n)) return i;
    return -1;
}

/* 256 bytes in a scrambled order, then joins of random tokens made of the letters a to d and space. */
static inline void make_vocabulary(struct vocabulary *v, uint64_t seed, int merges)
{
    static const char letters[] = "abcd ";
    uint64_t i, key = random_key(seed, "vocabulary");
    memset(v, 0, sizeof *v);
    for (i = 0; i < 256; i++) {
        v->token[i].n = 1;
        v->token[i].bytes[0] = (unsigned char)(i * 167 + 13);
    }
    v->n = 256;
    for (i = 0; v->n_merges < merges && i < 100000; i++) {
        uint64_t r = random_bits(key, i), pool = (uint64_t)(v->n - 256) + 5;
        int pair[2], k, old;
        for (k = 0; k < 2; k++, r >>= 24) {
            int at = (int)(r % 65536 % pool);
            pair[k] = at < 5 ? find_token(v, (const unsigned char *)letters + at, 1) : 256 + at - 5;
        }
        if (v->token[pair[0]].n + v->token[pair[1]].n > 12) continue;
        for (old = 0; old < v->n_merges && (v->left[old] != pair[0] || v->right[old] != pair[1]);) old++;
        if (old < v->n_merges) continue;
        memcpy(v->token[v->n].bytes, v->token[pair[0]].bytes, (size_t)v->token[pair[0]].n);
        memcpy(v->token[v->n].bytes + v->token[pair[0]].n, v->token[pair[1]].bytes, (size_t)v->token[pair[1]].n);
        v->token[v->n].n = v->token[pair[0]].n + v->token[pair[1]].n;
        k = find_token(v, v->token[v->n].bytes, v->token[v->n].n);     /* another way to the same token */
        v->left[v->n_merges] = pair[0];
        v->right[v->n_merges] = pair[1];
        v->joined[v->n_merges++] = k < 0 ? v->n : k;
        if (k < 0) v->n++;
    }
}

static inline void put_token_text(struct text *out, const struct vocabulary *v, int id)
{
    struct text raw = { 0 };
    int i;
    for (i = 0; i < v->token[id].n; i++) put_byte(&raw, v->token[id].bytes[i]);
    json_put_string(out, raw.s, raw.n);
    text_free(&raw);
}

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}"
#define BYTES_ALONE "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}"
#define SEQUENCE(a, b) "{\"type\":\"Sequence\",\"pretokenizers\":[" a "," b "]}"
#define DIGITS "{\"type\":\"Digits\",\"individual_digits\":true}"

/* Writes DIR/tokenizer.json under the temporary folder and opens it. */
static inline struct tokenizer *make_tokenizer(const struct vocabulary *v, const char *dir, const char *pre, const char *added,
                                        const char *post, const char *model)
{
    struct text s = { 0 };
    char name[128];
    int i;
    text_printf(&s, "{\"version\":\"1.0\",\"added_tokens\":%s,\"normalizer\":null,\"pre_tokenizer\":%s,"
                    "\"post_processor\":%s,\"decoder\":" BYTE_LEVEL ",\"model\":{\"type\":\"BPE\",%s\"vocab\":{",
                added, pre, post, model);
    for (i = 0; i < v->n; i++) {
        if (i) text_puts(&s, ",");
        put_token_text(&s, v, i);
        text_printf(&s, ":%d", i);
    }
    text_puts(&s, "},\"merges\":[");
    for (i = 0; i < v->n_merges; i++) {     /* both spellings of a merge */
        text_puts(&s, i ? "," : "");
        if (i % 2) {
            struct text pair = { 0 };
            int k;
            for (k = 0; k < v->token[v->left[i]].n; k++) put_byte(&pair, v->token[v->left[i]].bytes[k]);
            text_puts(&pair, " ");
            for (k = 0; k < v->token[v->right[i]].n; k++) put_byte(&pair, v->token[v->right[i]].bytes[k]);
            json_put_string(&s, pair.s, pair.n);
            text_free(&pair);
        } else {
            text_puts(&s, "[");
            put_token_text(&s, v, v->left[i]);
            text_puts(&s, ",");
            put_token_text(&s, v, v->right[i]);
            text_puts(&s, "]");
        }
    }
    text_puts(&s, "]}}");
    make_directory(in_folder(dir), NULL);
    snprintf(name, sizeof name, "%s/tokenizer.json", dir);
    put_file(name, s.s);
    text_free(&s);
    return open_or_fail(in_folder(dir));
}

static inline void make_letters(struct vocabulary *v)
{
    int i;
    memset(v, 0, sizeof *v);
    for (i = 0; i < 256; i++) {
        v->token[i].n = 1;
        v->token[i].bytes[0] = (unsigned char)i;
    }
    v->n = 256;
}

#define ADDED(id, content, special, more) "{\"id\":" id ",\"content\":\"" content "\",\"special\":" special more "}"
#define PLAIN ",\"normalized\":false,\"lstrip\":false,\"rstrip\":false,\"single_word\":false"
#define LEFT ",\"normalized\":false,\"lstrip\":true"
#define RIGHT ",\"normalized\":false,\"rstrip\":true"

#define SMALL(added, normalizer, pre, post, decoder, model) "{\"added_tokens\":" added ",\"normalizer\":" normalizer \
    ",\"pre_tokenizer\":" pre ",\"post_processor\":" post ",\"decoder\":" decoder ",\"model\":" model "}"
#define SMALL_MODEL(more) "{\"type\":\"BPE\"" more ",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"

/* Both give the same ids for random texts, and know the same of themselves. */
static inline void check_same(const struct tokenizer *a, const struct tokenizer *b)
{
    const char *x = tokenizer_chat_template(a), *y = tokenizer_chat_template(b);
    uint64_t i;
    CHECK(tokenizer_hash(a) == tokenizer_hash(b));
    CHECK(tokenizer_size(a) == tokenizer_size(b) && tokenizer_bos(a) == tokenizer_bos(b));
    CHECK(tokenizer_eos(a) == tokenizer_eos(b) && tokenizer_adds_bos(a) == tokenizer_adds_bos(b));
    CHECK(!x == !y && (!x || !strcmp(x, y)), "templates");
    for (i = 0; i < 200; i++) {
        struct text text = { 0 };
        uint64_t n = random_bits(11, i) % 40, k;
        for (k = 0; k < n; k++) {
            static const char *const parts[] = { "a", "b", "ca", "d", " ", "1", "12", "<s>", "<u>", "\xc3\xa9", "\n", "'s" };
            text_puts(&text, parts[random_bits(12, i * 64 + k) % 12]);
        }
        CHECK(!strcmp(encode(a, text.s ? text.s : "", text.n, (int)(i % 4)), encode(b, text.s ? text.s : "", text.n, (int)(i % 4))),
              "\"%s\"", text.s);
        text_free(&text);
    }
}

static inline void check_saved(const char *path, const char *dir)
{
    struct tokenizer *t = open_or_fail(path), *again;
    struct lora_error err;
    if (!t) return;
    make_directory(in_folder(dir), NULL);
    CHECK(tokenizer_save(t, in_folder(dir), &err) == 0);
    if ((again = open_or_fail(in_folder(dir)))) check_same(t, again);
    tokenizer_close(again);
    tokenizer_close(t);
}

#endif
