/* bpe.c - see bpe.h. */
#include "bpe.h"
#include "../text/pretoken.h"
#include "../formats/unicode.h"

#include <stdlib.h>
#include <string.h>

/* ---- counting words ---- */

/* Token of a byte: GPT-2's characters for bytes, in order, are the visible Latin-1 ones, then the rest. */
static int is_visible(int byte)
{
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

static int byte_token(int byte)
{
    int i, before = 0, visible = is_visible(byte);
    for (i = 0; i < byte; i++) before += is_visible(i) == visible;
    return visible ? before : 188 + before;
}

static int same_word(const struct bpe *b, const struct word *w, const int *symbols, int n)
{
    return w->n == n && !memcmp(b->symbols + w->start, symbols, (size_t)n * sizeof *symbols);
}

static int grow_table(struct bpe *b, struct lora_error *err)
{
    size_t size = b->table_size ? 2 * b->table_size : 4096, i, at;
    size_t *table = new_array(size, sizeof *table, err);
    if (!table) return -1;
    for (i = 0; i < b->n_words; i++) {
        for (at = b->words[i].hash & (size - 1); table[at]; at = (at + 1) & (size - 1)) {}
        table[at] = i + 1;
    }
    free(b->table);
    b->table = table;
    b->table_size = size;
    return 0;
}

/* The n symbols at the end of b->symbols are a word: a new one, or one more of a known one. */
static int count_word(struct bpe *b, size_t start, int n, struct lora_error *err)
{
    uint64_t hash = hash_bytes(HASH_START, b->symbols + start, (size_t)n * sizeof *b->symbols);
    struct word *w;
    size_t at;
    if (2 * (b->n_words + 1) > b->table_size && grow_table(b, err)) return -1;
    for (at = hash & (b->table_size - 1); b->table[at]; at = (at + 1) & (b->table_size - 1)) {
        w = &b->words[b->table[at] - 1];
        if (w->hash == hash && same_word(b, w, b->symbols + start, n)) {
            w->count++;
            b->n_symbols = start;
            return 0;
        }
    }
    if (grow_array((void **)&b->words, &b->words_capacity, b->n_words + 1, sizeof *b->words, err)) return -1;
    w = &b->words[b->n_words++];
    w->start = start;
    w->n = n;
    w->count = 1;
    w->hash = hash;
    b->table[at] = b->n_words;
    return 0;
}

int bpe_add(struct bpe *b, const char *text, size_t n, struct lora_error *err)
{
    int tokens[BPE_BYTES];
    size_t i, length;
    for (i = 0; i < BPE_BYTES; i++) tokens[i] = byte_token((int)i);
    for (; n; text += length, n -= length) {
        size_t start = b->n_symbols;
        length = split_gpt2.next(text, n);
        if (length > 1000000) return fail(err, "cannot train a tokenizer", "a word of %zu bytes", length);
        if (grow_array((void **)&b->symbols, &b->symbols_capacity, start + length, sizeof *b->symbols, err)) return -1;
        for (i = 0; i < length; i++) b->symbols[start + i] = tokens[(unsigned char)text[i]];
        b->n_symbols += length;
        if (count_word(b, start, (int)length, err)) return -1;
    }
    return 0;
}

/* ---- merging ---- */

/* How often each pair of neighbours occurs, and the pairs that ever did. */
struct pairs {
    long long *count;           /* [size * size] */
    unsigned char *listed;      /* [size * size] */
    int size;
    size_t *list, n, capacity;  /* left * size + right */
};

static int count_pairs(struct pairs *p, const struct bpe *b, const struct word *w, long long sign, struct lora_error *err)
{
    const int *s = b->symbols + w->start;
    int i;
    for (i = 0; i + 1 < w->n; i++) {
        size_t pair = (size_t)s[i] * (size_t)p->size + (size_t)s[i + 1];
        p->count[pair] += sign * w->count;
        if (p->listed[pair]) continue;
        if (grow_array((void **)&p->list, &p->capacity, p->n + 1, sizeof *p->list, err)) return -1;
        p->list[p->n++] = pair;
        p->listed[pair] = 1;
    }
    return 0;
}

static int compare_tokens(const struct bpe *b, int x, int y)
{
    int n = b->n_bytes[x] < b->n_bytes[y] ? b->n_bytes[x] : b->n_bytes[y];
    int order = memcmp(b->bytes[x], b->bytes[y], (size_t)n);
    return order ? order : b->n_bytes[x] - b->n_bytes[y];
}

/* 1 and the pair that is merged next, or 0 when none occurs twice. */
static int best_pair(const struct pairs *p, const struct bpe *b, int *left, int *right)
{
    long long most = 1;
    size_t i;
    for (i = 0; i < p->n; i++) {
        int l = (int)(p->list[i] / (size_t)p->size), r = (int)(p->list[i] % (size_t)p->size), order;
        long long count = p->count[p->list[i]];
        if (count < most || count < 2) continue;
        if (count == most) {
            order = compare_tokens(b, l, *left);
            if (!order) order = compare_tokens(b, r, *right);
            if (order <= 0) continue;
        }
        most = count;
        *left = l;
        *right = r;
    }
    return most > 1;
}

static int add_token(struct bpe *b, int left, int right, struct lora_error *err)
{
    int id = b->n_tokens, n = b->n_bytes[left] + b->n_bytes[right];
    b->bytes[id] = new_array((size_t)n, 1, err);
    if (!b->bytes[id]) return -1;
    memcpy(b->bytes[id], b->bytes[left], (size_t)b->n_bytes[left]);
    memcpy(b->bytes[id] + b->n_bytes[left], b->bytes[right], (size_t)b->n_bytes[right]);
    b->n_bytes[id] = n;
    b->left[id] = left;
    b->right[id] = right;
    b->n_tokens++;
    return 0;
}

static int has_pair(const int *s, int n, int left, int right)
{
    int i;
    for (i = 0; i + 1 < n; i++)
        if (s[i] == left && s[i + 1] == right) return 1;
    return 0;
}

/* Replaces the pair in every word that has it, from left to right, and keeps the counts true. */
static int merge(struct bpe *b, struct pairs *p, int left, int right, int id, struct lora_error *err)
{
    size_t i;
    for (i = 0; i < b->n_words; i++) {
        struct word *w = &b->words[i];
        int *s = b->symbols + w->start, from, to;
        if (!has_pair(s, w->n, left, right)) continue;
        if (count_pairs(p, b, w, -1, err)) return -1;
        for (from = to = 0; from < w->n; from++) {
            if (from + 1 < w->n && s[from] == left && s[from + 1] == right) { s[to++] = id; from++; }
            else s[to++] = s[from];
        }
        w->n = to;
        if (count_pairs(p, b, w, 1, err)) return -1;
    }
    return 0;
}

static int new_tokens(struct bpe *b, int size, struct lora_error *err)
{
    int i;
    b->left = new_array((size_t)size, sizeof *b->left, err);
    b->right = new_array((size_t)size, sizeof *b->right, err);
    b->bytes = new_array((size_t)size, sizeof *b->bytes, err);
    b->n_bytes = new_array((size_t)size, sizeof *b->n_bytes, err);
    if (!b->left || !b->right || !b->bytes || !b->n_bytes) return -1;
    for (i = 0; i < BPE_BYTES; i++) {
        int id = byte_token(i);
        b->bytes[id] = new_array(1, 1, err);
        if (!b->bytes[id]) return -1;
        b->bytes[id][0] = (unsigned char)i;
        b->n_bytes[id] = 1;
    }
    b->n_tokens = BPE_BYTES;
    return 0;
}

int bpe_train(struct bpe *b, int size, struct lora_error *err)
{
    struct pairs p = { 0 };
    int left = 0, right = 0, status;
    size_t i, square = (size_t)size * (size_t)size;
    if (size < BPE_BYTES || size > BPE_MOST) return fail(err, "cannot train a tokenizer", "%d tokens", size);
    p.size = size;
    p.count = new_array(square, sizeof *p.count, err);
    p.listed = new_array(square, 1, err);
    status = p.count && p.listed ? new_tokens(b, size, err) : -1;
    for (i = 0; i < b->n_words && !status; i++) status = count_pairs(&p, b, &b->words[i], 1, err);
    while (!status && b->n_tokens < size && best_pair(&p, b, &left, &right)) {
        status = add_token(b, left, right, err);
        if (!status) status = merge(b, &p, left, right, b->n_tokens - 1, err);
    }
    free(p.count);
    free(p.listed);
    free(p.list);
    return status;
}

void bpe_show(const struct bpe *b, int id, struct text *out)
{
    int i, byte;
    for (i = 0; i < b->n_bytes[id]; i++) {
        char s[4];
        byte = b->bytes[id][i];
        text_add(out, s, utf8_put(s, (uint32_t)(is_visible(byte) ? byte : 256 + byte_token(byte) - 188)));
    }
}

void bpe_free(struct bpe *b)
{
    int i;
    for (i = 0; b->bytes && i < b->n_tokens; i++) free(b->bytes[i]);
    free(b->bytes);
    free(b->n_bytes);
    free(b->left);
    free(b->right);
    free(b->words);
    free(b->symbols);
    free(b->table);
    memset(b, 0, sizeof *b);
}
