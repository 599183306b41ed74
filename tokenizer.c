/* tokenizer.c - byte-level byte pair encoding: bytes become tokens, and neighbours are joined in the
 * order in which the vocabulary's merges were learnt (Sennrich, Haddow, Birch 2016, arXiv 1508.07909).
 *
 * The way of a text: added tokens are cut out, the pre-tokenizer's rules cut what is left into
 * pieces, and each piece is merged by itself. */
#include "tokenizer_parts.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "unicode.h"

/* ---- ids ---- */

void ids_free(struct ids *ids)
{
    free(ids->v);
    memset(ids, 0, sizeof *ids);
}

int ids_add(struct ids *ids, int id, struct lora_error *err)
{
    if (grow_array((void **)&ids->v, &ids->capacity, ids->n + 1, sizeof *ids->v, err)) return -1;
    ids->v[ids->n++] = id;
    return 0;
}

/* ---- strings to ids ---- */

static const char *key_of(const struct tokenizer *t, const struct string_index *index, int id, size_t *n)
{
    const struct token *token = &t->tokens[id];
    int bytes = index == &t->by_bytes;
    *n = bytes ? token->n_bytes : token->n_text;
    return t->pool.s + (bytes ? token->bytes : token->text);
}

/* The slot that holds the string, or the free one where it would go. */
static size_t index_slot(const struct tokenizer *t, const struct string_index *index, const char *s, size_t n)
{
    size_t i = (size_t)hash_bytes(HASH_START, s, n) & index->mask, length;
    for (; index->slots[i] >= 0; i = (i + 1) & index->mask) {
        const char *key = key_of(t, index, index->slots[i], &length);
        if (length == n && !memcmp(key, s, n)) break;
    }
    return i;
}

static int index_find(const struct tokenizer *t, const struct string_index *index, const char *s, size_t n)
{
    return index->slots ? index->slots[index_slot(t, index, s, n)] : -1;
}

/* The first id of a string stays. */
static int index_add(const struct tokenizer *t, struct string_index *index, int id, struct lora_error *err)
{
    size_t length, slot, i, capacity = index->slots ? index->mask + 1 : 0;
    const char *key;
    if (index->n * 2 >= capacity) {
        struct string_index wide = { NULL, capacity ? capacity * 2 - 1 : 1023, 0 };
        if (!(wide.slots = new_array(wide.mask + 1, sizeof *wide.slots, err))) return -1;
        memset(wide.slots, 0xff, (wide.mask + 1) * sizeof *wide.slots);
        for (i = 0; i < capacity; i++) {
            if (index->slots[i] < 0) continue;
            key = key_of(t, index, index->slots[i], &length);
            /* No two keys of the old table are equal: any free slot on the way is right. */
            for (slot = (size_t)hash_bytes(HASH_START, key, length) & wide.mask; wide.slots[slot] >= 0;)
                slot = (slot + 1) & wide.mask;
            wide.slots[slot] = index->slots[i];
        }
        wide.n = index->n;
        free(index->slots);
        *index = wide;
    }
    key = key_of(t, index, id, &length);
    slot = index_slot(t, index, key, length);
    if (index->slots[slot] < 0) {
        index->slots[slot] = id;
        index->n++;
    }
    return 0;
}

int tokenizer_find(const struct tokenizer *t, const char *text, size_t n)
{
    return index_find(t, &t->by_text, text, n);
}

/* ---- building ---- */

struct tokenizer *tokenizer_new(const char *path, struct lora_error *err)
{
    struct tokenizer *t = new_array(1, sizeof *t, err);
    if (!t) return NULL;
    memset(t->byte_ids, 0xff, sizeof t->byte_ids);
    t->unk = t->bos = t->eos = -1;
    t->path = new_string(path, err);
    if (t->path) return t;
    tokenizer_close(t);
    return NULL;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    free(t->path);
    text_free(&t->pool);
    free(t->tokens);
    free(t->by_text.slots);
    free(t->by_bytes.slots);
    free(t->merges);
    free(t->added);
    ids_free(&t->before);
    ids_free(&t->after);
    free(t->chat_template);
    free(t);
}

/* Appends a string with its NUL to the pool; returns where. */
static size_t pool_add(struct tokenizer *t, const char *s, size_t n)
{
    size_t at = t->pool.n;
    text_add(&t->pool, s, n);
    text_add(&t->pool, "", 1);
    return at;
}

/* In byte-level vocabularies every byte is a printable character: those of Latin-1 that print are
 * themselves, the others follow from U+0100 on, in order. */
static int printable(int byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
}

/* The byte that a character stands for, or -1. */
static int byte_of_character(uint32_t c)
{
    int byte;
    if (c < 256) return printable((int)c) ? (int)c : -1;
    for (byte = 0; byte < 256 && c < 256 + 68; byte++)
        if (!printable(byte) && c-- == 256) return byte;
    return -1;
}

/* The bytes a token stands for: its text, unless all of it is characters that stand for bytes. */
static void put_bytes(struct tokenizer *t, struct token *token)
{
    size_t i = 0;
    uint32_t c;
    token->bytes = t->pool.n;
    while (i < token->n_text) {
        char byte;
        int b;
        i += utf8_next(t->pool.s + token->text + i, token->n_text - i, &c);
        b = c == UTF8_BAD ? -1 : byte_of_character(c);
        if (b < 0) break;
        byte = (char)b;
        text_add(&t->pool, &byte, 1);
        if (t->pool.failed) return;
    }
    token->n_bytes = t->pool.n - token->bytes;
    if (i < token->n_text) {
        t->pool.n = token->bytes;
        token->bytes = token->text;
        token->n_bytes = token->n_text;
    } else {
        text_add(&t->pool, "", 1);
        if (token->n_bytes == 1) t->byte_ids[(unsigned char)t->pool.s[token->bytes]] = (int)(token - t->tokens);
    }
}

int tokenizer_put(struct tokenizer *t, size_t id, const char *text, size_t n, struct lora_error *err)
{
    struct token *token;
    if (id >= TOKENIZER_MOST_IDS) {
        fail(err, "tokenizer", "%s, token %.*s", t->path, n > 99 ? 99 : (int)n, text);
        expected(err, "an id below %d", TOKENIZER_MOST_IDS);
        return found(err, "%zu", id);
    }
    if (id >= t->n) {
        if (grow_array((void **)&t->tokens, &t->capacity, id + 1, sizeof *t->tokens, err)) return -1;
        memset(t->tokens + t->n, 0, (id + 1 - t->n) * sizeof *t->tokens);
        t->n = id + 1;
    }
    token = &t->tokens[id];
    if ((token->flags & TOKEN_THERE) || tokenizer_find(t, text, n) >= 0) {
        fail(err, "tokenizer", "%s, token %.*s", t->path, n > 99 ? 99 : (int)n, text);
        expected(err, "each id and each text once");
        return found(err, "id %zu again", id);
    }
    token->text = pool_add(t, text, n);
    token->n_text = n;
    token->flags = TOKEN_THERE;
    if (!t->pool.failed) put_bytes(t, token);
    if (text_check(&t->pool, err)) return -1;
    return index_add(t, &t->by_text, (int)id, err);
}

int tokenizer_put_added(struct tokenizer *t, const struct added *a, struct lora_error *err)
{
    struct token *token = &t->tokens[a->id];
    struct added *new;
    if ((token->flags & TOKEN_ADDED) || !token->n_text) return 0;
    if (grow_array((void **)&t->added, &t->added_capacity, t->n_added + 1, sizeof *t->added, err)) return -1;
    token->flags |= TOKEN_ADDED | (a->special ? TOKEN_SPECIAL : 0);
    new = &t->added[t->n_added++];
    *new = *a;
    new->text = token->text;
    new->n = token->n_text;
    return 0;
}

int tokenizer_begin_merges(struct tokenizer *t, size_t n, struct lora_error *err)
{
    size_t size = 1024, i;
    while (size < n * 2) size *= 2;
    if (!(t->merges = new_array(size, sizeof *t->merges, err))) return -1;
    t->merge_mask = size - 1;
    for (i = 0; i < size; i++) t->merges[i].pair = NO_PAIR;
    return 0;
}

/* The slot of a pair, or the free one where it would go. */
static struct merge *merge_slot(const struct tokenizer *t, int left, int right)
{
    uint64_t pair = (uint64_t)left << 32 | (uint64_t)right;
    size_t i = (size_t)(pair * 0x9e3779b97f4a7c15ull >> 32) & t->merge_mask;
    while (t->merges[i].pair != pair && t->merges[i].pair != NO_PAIR) i = (i + 1) & t->merge_mask;
    return &t->merges[i];
}

int tokenizer_put_merge(struct tokenizer *t, const char *left, size_t n_left, const char *right, size_t n_right,
                        size_t rank, struct lora_error *err)
{
    struct text joined = { 0 };
    struct merge *m;
    int a = tokenizer_find(t, left, n_left), b = tokenizer_find(t, right, n_right), id;
    text_add(&joined, left, n_left);
    text_add(&joined, right, n_right);
    if (text_check(&joined, err)) return -1;
    id = tokenizer_find(t, joined.s, joined.n);
    if (a < 0 || b < 0 || id < 0) {
        fail(err, "tokenizer", "%s, merge %zu: %s", t->path, rank, joined.s);
        expected(err, "two tokens that join to a token");
        text_free(&joined);
        return found(err, "%s is not in the vocabulary", a < 0 ? "the first" : b < 0 ? "the second" : "the joined one");
    }
    text_free(&joined);
    m = merge_slot(t, a, b);
    t->n_merges += m->pair == NO_PAIR;
    m->pair = (uint64_t)a << 32 | (uint64_t)b;
    m->rank = (int)rank;
    m->id = id;
    return 0;
}

int tokenizer_put_step(struct tokenizer *t, const struct split_rule *rule, int prefix_space, struct lora_error *err)
{
    if (t->n_steps == TOKENIZER_MOST_STEPS) {
        fail(err, "tokenizer", "%s: pre_tokenizer", t->path);
        return expected(err, "at most %d steps", TOKENIZER_MOST_STEPS);
    }
    t->steps[t->n_steps].rule = rule;
    t->steps[t->n_steps++].prefix_space = prefix_space;
    return 0;
}

static int compare_bytes(const char *a, size_t n, const char *b, size_t m)
{
    int order = memcmp(a, b, n < m ? n : m);
    return order ? order : (n > m) - (n < m);
}

/* Sorts the added tokens: those for the raw text first, then by their bytes. Insertion sort: files
 * have them in hundreds, and mostly in order. */
static void sort_added(struct tokenizer *t)
{
    const char *pool = t->pool.s;
    size_t i, j;
    for (i = 1; i < t->n_added; i++) {
        struct added a = t->added[i];
        for (j = i; j; j--) {
            const struct added *b = &t->added[j - 1];
            int order = b->normalized - a.normalized;
            if (!order) order = compare_bytes(pool + b->text, b->n, pool + a.text, a.n);
            if (order <= 0) break;
            t->added[j] = *b;
        }
        t->added[j] = a;
    }
    for (i = 0; i < t->n_added; i++) {
        int set = t->added[i].normalized;
        t->n_raw += !set;
        t->added_start[set][(unsigned char)pool[t->added[i].text]] = 1;
    }
}

/* Of everything that decides ids, so that a tokenizer read from a GGUF and the same one saved as
 * tokenizer.json have one hash. Merges are added up, since their order in the table means nothing. */
static uint64_t hash_of(const struct tokenizer *t)
{
    uint64_t h = HASH_START, merges = 0;
    size_t i;
    for (i = 0; i < t->n; i++) {
        const struct token *token = &t->tokens[i];
        h = hash_bytes(h, &token->flags, sizeof token->flags);
        if (token->flags) h = hash_bytes(h, t->pool.s + token->text, token->n_text + 1);
    }
    for (i = 0; t->merges && i <= t->merge_mask; i++)
        if (t->merges[i].pair != NO_PAIR) merges += random_bits(t->merges[i].pair, (uint64_t)t->merges[i].rank);
    h = hash_bytes(h, &merges, sizeof merges);
    for (i = 0; i < (size_t)t->n_steps; i++) {
        h = hash_bytes(h, &t->steps[i].prefix_space, sizeof t->steps[i].prefix_space);
        h = hash_string(h, t->steps[i].rule ? t->steps[i].rule->name : "");
    }
    for (i = 0; i < t->n_added; i++) h = hash_bytes(h, &t->added[i].lstrip, 3 * sizeof(int));   /* to normalized */
    h = hash_bytes(h, &t->ignore_merges, sizeof t->ignore_merges);
    h = hash_bytes(h, t->before.v, t->before.n * sizeof *t->before.v);
    return hash_bytes(h, t->after.v, t->after.n * sizeof *t->after.v);
}

int tokenizer_finish(struct tokenizer *t, struct lora_error *err)
{
    size_t i;
    if (!t->n) {
        fail(err, "tokenizer", "%s", t->path);
        expected(err, "a vocabulary");
        return found(err, "no token");
    }
    if (!t->merges && tokenizer_begin_merges(t, 0, err)) return -1;
    sort_added(t);
    for (i = 0; t->ignore_merges && i < t->n; i++)
        if ((t->tokens[i].flags & TOKEN_THERE) && index_add(t, &t->by_bytes, (int)i, err)) return -1;
    t->hash = hash_of(t);
    return 0;
}

/* ---- encoding ---- */

/* A piece being merged is a list of symbols. `joined` is the token that the symbol would make with
 * the next one, -1 without a merge or once the symbol is gone. */
struct symbol {
    int id, previous, next, joined;
};

/* A merge that may be done. It is out of date when the symbol's `joined` is another id by now: a
 * symbol and its successor only grow, so they join to the same text only as the same pair. */
struct candidate {
    int rank, left, id;
};

struct encoder {
    const struct tokenizer *t;
    int text_only;
    struct ids *out;
    struct lora_error *err;
    struct symbol *symbols;
    struct candidate *heap;
    size_t symbols_capacity, heap_n, heap_capacity;
};

/* The lowest rank first, and of equal ones the leftmost. */
static int before(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static int heap_push(struct encoder *e, struct candidate c)
{
    size_t i = e->heap_n;
    if (grow_array((void **)&e->heap, &e->heap_capacity, i + 1, sizeof *e->heap, e->err)) return -1;
    for (e->heap_n++; i && before(&c, &e->heap[(i - 1) / 2]); i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = c;
    return 0;
}

static struct candidate heap_pop(struct encoder *e)
{
    struct candidate top = e->heap[0], last = e->heap[--e->heap_n];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < e->heap_n) {
        if (child + 1 < e->heap_n && before(&e->heap[child + 1], &e->heap[child])) child++;
        if (!before(&e->heap[child], &last)) break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    e->heap[i] = last;
    return top;
}

/* Looks up what the symbol makes with its successor, and puts it among the candidates. */
static int consider(struct encoder *e, int left)
{
    struct symbol *s = &e->symbols[left];
    const struct merge *m;
    struct candidate c;
    s->joined = -1;
    if (s->next < 0) return 0;
    m = merge_slot(e->t, s->id, e->symbols[s->next].id);
    if (m->pair == NO_PAIR) return 0;
    c.rank = m->rank;
    c.left = left;
    c.id = s->joined = m->id;
    return heap_push(e, c);
}

/* Joins neighbours until no merge is left. Each join makes at most two candidates: n log n. */
static int merge_symbols(struct encoder *e, int n)
{
    int i;
    e->heap_n = 0;
    for (i = 0; i < n; i++) {
        e->symbols[i].previous = i - 1;
        e->symbols[i].next = i + 1 < n ? i + 1 : -1;
    }
    for (i = 0; i < n; i++)
        if (consider(e, i)) return -1;
    while (e->heap_n) {
        struct candidate c = heap_pop(e);
        struct symbol *left = &e->symbols[c.left], *right;
        if (left->joined != c.id) continue;
        right = &e->symbols[left->next];
        right->joined = -1;
        left->id = c.id;
        left->next = right->next;
        if (left->next >= 0) e->symbols[left->next].previous = c.left;
        if (consider(e, c.left) || (left->previous >= 0 && consider(e, left->previous))) return -1;
    }
    for (i = 0; i >= 0; i = e->symbols[i].next)
        if (ids_add(e->out, e->symbols[i].id, e->err)) return -1;
    return 0;
}

static int encode_piece(struct encoder *e, const char *s, size_t n)
{
    const struct tokenizer *t = e->t;
    size_t i;
    int whole, used = 0;
    if (!n) return 0;
    if (t->ignore_merges && (whole = index_find(t, &t->by_bytes, s, n)) >= 0) return ids_add(e->out, whole, e->err);
    if (n > INT_MAX) {
        fail(e->err, "tokenizer", "a text without a place to cut it");
        expected(e->err, "at most %d bytes", INT_MAX);
        return found(e->err, "%zu", n);
    }
    if (grow_array((void **)&e->symbols, &e->symbols_capacity, n, sizeof *e->symbols, e->err)) return -1;
    for (i = 0; i < n; i++) {
        int id = t->byte_ids[(unsigned char)s[i]];
        if (id < 0 && t->unk < 0) {
            fail(e->err, "cannot tokenize the text", "byte 0x%02x", (unsigned)(unsigned char)s[i]);
            expected(e->err, "a byte that the vocabulary has a token for");
            return hint(e->err, "%s has none for this byte; take the character out of the text", t->path);
        }
        if (id < 0 && t->fuse_unk && used && e->symbols[used - 1].id == t->unk) continue;
        e->symbols[used++].id = id < 0 ? t->unk : id;
    }
    return merge_symbols(e, used);
}

static int encode_steps(struct encoder *e, const char *s, size_t n, int k)
{
    const struct step *step;
    size_t length;
    if (k == e->t->n_steps) return encode_piece(e, s, n);
    step = &e->t->steps[k];
    if (step->prefix_space && n && s[0] != ' ') {
        struct text spaced = { 0 };
        int bad;
        text_add(&spaced, " ", 1);
        text_add(&spaced, s, n);
        bad = text_check(&spaced, e->err) || encode_steps(e, spaced.s, spaced.n, k);
        text_free(&spaced);
        return bad ? -1 : 0;
    }
    if (!step->rule) return encode_steps(e, s, n, k + 1);
    for (; n; s += length, n -= length) {
        length = step->rule->next(s, n);
        if (encode_steps(e, s, length, k + 1)) return -1;
    }
    return 0;
}

/* The longest added token of the set that s[n] starts with, or NULL. The sorted set is narrowed byte
 * by byte. */
static const struct added *match_added(const struct tokenizer *t, int set, const char *s, size_t n)
{
    size_t low = set ? t->n_raw : 0, high = set ? t->n_added : t->n_raw, depth;
    const char *pool = t->pool.s;
    const struct added *best = NULL;
    for (depth = 0; depth < n && low < high; depth++) {
        unsigned char c = (unsigned char)s[depth];
        size_t from, to, middle;
        while (low < high && t->added[low].n == depth) low++;   /* the one that ended here comes first */
        for (from = low, to = high; from < to;) {
            middle = (from + to) / 2;
            if ((unsigned char)pool[t->added[middle].text + depth] < c) from = middle + 1;
            else to = middle;
        }
        for (low = from, to = high; from < to;) {
            middle = (from + to) / 2;
            if ((unsigned char)pool[t->added[middle].text + depth] <= c) from = middle + 1;
            else to = middle;
        }
        high = from;
        if (low < high && t->added[low].n == depth + 1) best = &t->added[low];
    }
    return best;
}

/* Where the white space that ends s[n] starts; where the one that starts it ends. */
static size_t space_at_end(const char *s, size_t n)
{
    while (n) {
        size_t start = n - 1;
        uint32_t c;
        while (start && n - start < 4 && ((unsigned char)s[start] & 0xc0) == 0x80) start--;
        if (utf8_next(s + start, n - start, &c) != n - start || unicode_class(c) != CLASS_SPACE) break;
        n = start;
    }
    return n;
}

static size_t space_at_start(const char *s, size_t n)
{
    size_t i = 0, length;
    uint32_t c;
    for (; i < n; i += length) {
        length = utf8_next(s + i, n - i, &c);
        if (unicode_class(c) != CLASS_SPACE) break;
    }
    return i;
}

/* Cuts out the added tokens, leftmost and longest first: those looked for in the raw text (set 0),
 * then in what is left those looked for after the normalizer (set 1). */
static int encode_sections(struct encoder *e, const char *s, size_t n, int set)
{
    const struct tokenizer *t = e->t;
    size_t i = 0, done = 0;
    if (set == 2) return encode_steps(e, s, n, 0);
    while (i < n) {
        const struct added *a = NULL;
        size_t start = i, end;
        if (t->added_start[set][(unsigned char)s[i]]) a = match_added(t, set, s + i, n - i);
        if (!a) {
            i++;
            continue;
        }
        i = end = i + a->n;
        if (a->special && e->text_only) continue;
        if (a->lstrip) start = done + space_at_end(s + done, start - done);
        if (a->rstrip) i = end = end + space_at_start(s + end, n - end);
        if (encode_sections(e, s + done, start - done, set + 1) || ids_add(e->out, a->id, e->err)) return -1;
        done = end;
    }
    return encode_sections(e, s + done, n - done, set + 1);
}

static int add_all(struct ids *out, const struct ids *more, struct lora_error *err)
{
    size_t i;
    for (i = 0; i < more->n; i++)
        if (ids_add(out, more->v[i], err)) return -1;
    return 0;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, int flags, struct ids *out,
                     struct lora_error *err)
{
    struct encoder e = { 0 };
    size_t start = out->n;
    int bad = 0;
    e.t = t;
    e.text_only = (flags & TOKENIZE_TEXT_ONLY) != 0;
    e.out = out;
    e.err = err;
    if (flags & TOKENIZE_SPECIAL) bad = add_all(out, &t->before, err);
    if (!bad) bad = encode_sections(&e, text, n, 0);
    if (!bad && (flags & TOKENIZE_SPECIAL)) bad = add_all(out, &t->after, err);
    free(e.symbols);
    free(e.heap);
    if (bad) out->n = start;
    return bad ? -1 : 0;
}

/* ---- decoding ---- */

int tokenizer_decode(const struct tokenizer *t, const int *ids, size_t n, int skip_special, struct text *out,
                     struct lora_error *err)
{
    size_t i;
    for (i = 0; i < n; i++) {
        const struct token *token = ids[i] >= 0 && (size_t)ids[i] < t->n ? &t->tokens[ids[i]] : NULL;
        if (!token || !(token->flags & TOKEN_THERE)) {
            fail(err, "cannot turn ids into text", "id %zu", i + 1);
            expected(err, "an id of the vocabulary, below %zu", t->n);
            return found(err, "%d", ids[i]);
        }
        if (skip_special && (token->flags & TOKEN_SPECIAL)) continue;
        text_add(out, t->pool.s + token->bytes, token->n_bytes);
    }
    return text_check(out, err);
}

int tokenizer_stream(const struct tokenizer *t, int id, struct text *pending, struct text *out,
                     struct lora_error *err)
{
    size_t whole;
    if (tokenizer_decode(t, &id, 1, 0, pending, err)) return -1;
    if (!pending->n) return 0;
    whole = utf8_whole(pending->s, pending->n);
    text_add(out, pending->s, whole);
    if (text_check(out, err)) return -1;
    pending->n -= whole;
    memmove(pending->s, pending->s + whole, pending->n + 1);
    return 0;
}

/* ---- what is known of it ---- */

int tokenizer_size(const struct tokenizer *t) { return (int)t->n; }
int tokenizer_bos(const struct tokenizer *t) { return t->bos; }
int tokenizer_eos(const struct tokenizer *t) { return t->eos; }
int tokenizer_id(const struct tokenizer *t, const char *token) { return tokenizer_find(t, token, strlen(token)); }
const char *tokenizer_chat_template(const struct tokenizer *t) { return t->chat_template; }
uint64_t tokenizer_hash(const struct tokenizer *t) { return t->hash; }

int tokenizer_is_special(const struct tokenizer *t, int id)
{
    return id >= 0 && (size_t)id < t->n && (t->tokens[id].flags & TOKEN_SPECIAL);
}

const char *tokenizer_token(const struct tokenizer *t, int id)
{
    return id >= 0 && (size_t)id < t->n && t->tokens[id].flags ? t->pool.s + t->tokens[id].text : NULL;
}

int tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->bos >= 0 && t->before.n && t->before.v[0] == t->bos;
}

int tokenizer_open(struct tokenizer **t, const char *path, struct lora_error *err)
{
    size_t n = strlen(path);
    int gguf = n > 5 && !strcmp(path + n - 5, ".gguf");
    if (!(*t = tokenizer_new(path, err))) return -1;
    if (!(gguf ? tokenizer_read_gguf(*t, path, err) : tokenizer_read_directory(*t, path, err))
        && !tokenizer_finish(*t, err))
        return 0;
    tokenizer_close(*t);
    *t = NULL;
    return -1;
}
