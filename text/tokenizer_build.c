/* tokenizer_build.c - a tokenizer put together: its vocabulary, its merges, and what is looked up in them. */
#include "tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#include "../formats/unicode.h"

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

int tokenizer_find_piece(const struct tokenizer *t, const char *s, size_t n)
{
    int id = index_find(t, t->byte_level ? &t->by_bytes : &t->by_text, s, n);
    return id >= 0 && (t->tokens[id].flags & TOKEN_OUTSIDE) ? -1 : id;
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
    free(t->joints);
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

uint32_t tokenizer_byte_character(int byte)
{
    uint32_t c = 256;
    int b;
    if (printable(byte)) return (uint32_t)byte;
    for (b = 0; b < byte; b++) c += !printable(b);
    return c;
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

/* The byte of a token like <0x0A>, or -1. */
static int fallback_byte(const char *s, size_t n)
{
    static const char digits[] = "0123456789ABCDEF";
    const char *high, *low;
    if (n != 6 || memcmp(s, "<0x", 3) || s[5] != '>') return -1;
    high = memchr(digits, s[3] >= 'a' ? s[3] - 32 : s[3], 16);
    low = memchr(digits, s[4] >= 'a' ? s[4] - 32 : s[4], 16);
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

/* What the part of a token's text at s stands for: appends it, and returns the part's length, or 0 when
 * it stands for nothing and the whole text has to be taken as it is. */
static size_t put_part(struct tokenizer *t, const char *s, size_t n)
{
    uint32_t c;
    size_t length = utf8_next(s, n, &c);
    int b = fallback_byte(s, n);
    char part[4] = " ";
    if (t->byte_level) {
        if ((b = c == UTF8_BAD ? -1 : byte_of_character(c)) < 0) return 0;
        part[0] = (char)b;
        text_add(&t->pool, part, 1);
    } else if (t->byte_fallback && b >= 0) {
        part[0] = (char)b;
        text_add(&t->pool, part, 1);
        return n;
    } else if (n >= 3 && !memcmp(s, SPACE_MARK, 3)) {
        text_add(&t->pool, part, 1);
    } else {
        memcpy(part, s, length);        /* s may be in the pool, which moves */
        text_add(&t->pool, part, length);
    }
    return length;
}

/* The bytes a token stands for: those of text[n_text], in the pool. */
static void put_bytes(struct tokenizer *t, struct token *token, size_t text, size_t n_text)
{
    size_t i = 0, length = 1;
    token->bytes = t->pool.n;
    for (; i < n_text && length && !t->pool.failed; i += length)
        length = put_part(t, t->pool.s + text + i, n_text - i);
    token->n_bytes = t->pool.n - token->bytes;
    text_add(&t->pool, "", 1);
    if (!length) {
        t->pool.n = token->bytes;
        token->bytes = text;
        token->n_bytes = n_text;
    } else if (token->n_bytes == 1 && !(token->flags & TOKEN_OUTSIDE) && (t->byte_level || fallback_byte(t->pool.s + text, n_text) >= 0)) {
        t->byte_ids[(unsigned char)t->pool.s[token->bytes]] = (int)(token - t->tokens);
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

/* The slot of a pair, or the free one where it would go. There are slots. */
static struct merge *merge_slot(const struct tokenizer *t, uint64_t pair)
{
    size_t mask = t->merge_size - 1, i = (size_t)(pair * 0x9e3779b97f4a7c15ull >> 32) & mask;
    while (t->merges[i].pair != pair && t->merges[i].pair != NO_PAIR) i = (i + 1) & mask;
    return &t->merges[i];
}

const struct merge *tokenizer_merge(const struct tokenizer *t, int left, int right)
{
    const struct merge *m = merge_slot(t, (uint64_t)left << 32 | (uint64_t)right);
    return m->pair == NO_PAIR ? NULL : m;
}

/* Twice the slots, or the first ones. */
static int grow_merges(struct tokenizer *t, struct lora_error *err)
{
    struct merge *old = t->merges;
    size_t i, n = t->merge_size;
    struct merge *wide = new_array(n ? 2 * n : 1024, sizeof *wide, err);
    if (!wide) return -1;
    t->merges = wide;
    t->merge_size = n ? 2 * n : 1024;
    for (i = 0; i < t->merge_size; i++) wide[i].pair = NO_PAIR;
    for (i = 0; i < n; i++)
        if (old[i].pair != NO_PAIR) *merge_slot(t, old[i].pair) = old[i];
    free(old);
    return 0;
}

static int put_merge(struct tokenizer *t, int left, int right, int id, size_t rank, struct lora_error *err)
{
    uint64_t pair = (uint64_t)left << 32 | (uint64_t)right;
    struct merge *m;
    if (t->n_merges * 2 >= t->merge_size && grow_merges(t, err)) return -1;
    m = merge_slot(t, pair);
    t->n_merges += m->pair == NO_PAIR;
    m->pair = pair;
    m->rank = (int)rank;
    m->id = id;
    return 0;
}

int tokenizer_put_merge(struct tokenizer *t, const char *left, size_t n_left, const char *right, size_t n_right,
                        size_t rank, struct lora_error *err)
{
    struct text joined = { 0 };
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
    return put_merge(t, a, b, id, rank, err);
}

/* A way to make a token of two. */
struct way {
    float score;
    size_t n_left, n_right;
    int id, left, right;
};

/* The order in which Hugging Face's converters write them down: by score, then the longer halves first;
 * then by ids. */
static int by_score(const void *x, const void *y)
{
    const struct way *a = x, *b = y;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    if (a->n_left != b->n_left) return a->n_left > b->n_left ? -1 : 1;
    if (a->n_right != b->n_right) return a->n_right > b->n_right ? -1 : 1;
    if (a->id != b->id) return a->id < b->id ? -1 : 1;
    return a->left != b->left ? (a->left < b->left ? -1 : 1) : (a->right > b->right) - (a->right < b->right);
}

static size_t count_characters(const char *s, size_t n)
{
    size_t i, count = 0;
    for (i = 0; i < n; i++) count += ((unsigned char)s[i] & 0xc0) != 0x80;
    return count;
}

int tokenizer_make_merges(struct tokenizer *t, const float *scores, struct lora_error *err)
{
    struct way *ways = NULL;
    size_t n = 0, capacity = 0, id, i;
    int bad = 0;
    for (id = 0; id < t->n && !bad; id++) {
        const char *s = t->pool.s + t->tokens[id].text;
        size_t length = t->tokens[id].n_text;
        if (length > TOKENIZER_LONGEST) {       /* a damaged file, on which the cuts would take hours */
            fail(err, "tokenizer", "%s, token %zu", t->path, id);
            expected(err, "at most %d bytes", TOKENIZER_LONGEST);
            bad = found(err, "%zu", length);
        }
        for (i = 1; i < length && !bad; i++) {
            struct way w = { 0, 0, 0, 0, 0, 0 };
            if (((unsigned char)s[i] & 0xc0) == 0x80) continue;
            if ((w.left = tokenizer_find(t, s, i)) < 0 || (w.right = tokenizer_find(t, s + i, length - i)) < 0) continue;
            w.id = (int)id;
            if (scores) {
                w.score = scores[id];
                w.n_left = count_characters(s, i);
                w.n_right = count_characters(s + i, length - i);
            }
            if (!(bad = grow_array((void **)&ways, &capacity, n + 1, sizeof *ways, err))) ways[n++] = w;
        }
    }
    if (n) qsort(ways, n, sizeof *ways, by_score);
    for (i = 0; i < n && !bad; i++) bad = put_merge(t, ways[i].left, ways[i].right, ways[i].id, i, err);
    free(ways);
    return bad ? -1 : 0;
}

static int too_many(const struct tokenizer *t, const char *part, struct lora_error *err)
{
    fail(err, "tokenizer", "%s: %s", t->path, part);
    return expected(err, "at most %d steps", TOKENIZER_MOST_STEPS);
}

int tokenizer_put_normalizer(struct tokenizer *t, int kind, const char *from, const char *to, struct lora_error *err)
{
    struct normalizer *z = &t->normalizers[t->n_normalizers];
    if (t->n_normalizers == TOKENIZER_MOST_STEPS) return too_many(t, "normalizer", err);
    t->n_normalizers++;
    z->kind = kind;
    z->n_from = strlen(from);
    z->from = pool_add(t, from, z->n_from);
    z->n_to = strlen(to);
    z->to = pool_add(t, to, z->n_to);
    return text_check(&t->pool, err);
}

int tokenizer_put_step(struct tokenizer *t, int kind, const struct split_rule *rule, int prefix, struct lora_error *err)
{
    struct step *step = &t->steps[t->n_steps];
    if (t->n_steps == TOKENIZER_MOST_STEPS) return too_many(t, "pre_tokenizer", err);
    t->n_steps++;
    step->kind = kind;
    step->rule = rule;
    step->prefix = prefix;
    return 0;
}

static int compare_bytes(const char *a, size_t n, const char *b, size_t m)
{
    int order = memcmp(a, b, n < m ? n : m);
    return order ? order : (n > m) - (n < m);
}

/* Those for the raw text first, then by their bytes. */
static int added_before(const struct tokenizer *t, const struct added *a, const struct added *b)
{
    int order = a->normalized - b->normalized;
    if (!order) order = compare_bytes(t->pool.s + a->text, a->n, t->pool.s + b->text, b->n);
    return order ? order < 0 : a->id < b->id;
}

/* Shell's sort, with the gaps (3^k - 1) / 2: files have hundreds in order, but may have a hundred thousand
 * in any. */
static void sort_added(struct tokenizer *t)
{
    size_t i, j, gap = 1;
    while (gap < t->n_added / 3) gap = 3 * gap + 1;
    for (; gap; gap /= 3)
        for (i = gap; i < t->n_added; i++) {
            struct added a = t->added[i];
            for (j = i; j >= gap && added_before(t, &a, &t->added[j - gap]); j -= gap) t->added[j] = t->added[j - gap];
            t->added[j] = a;
        }
    for (i = 0; i < t->n_added; i++) {
        int set = t->added[i].normalized;
        t->n_raw += !set;
        t->added_start[set][(unsigned char)t->pool.s[t->added[i].text]] = 1;
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
    for (i = 0; i < t->merge_size; i++)
        if (t->merges[i].pair != NO_PAIR) merges += random_bits(t->merges[i].pair, (uint64_t)t->merges[i].rank);
    h = hash_bytes(h, &merges, sizeof merges);
    for (i = 0; i < (size_t)t->n_steps; i++) {
        h = hash_bytes(h, &t->steps[i].kind, 2 * sizeof(int));  /* and prefix */
        h = hash_string(h, t->steps[i].rule ? t->steps[i].rule->name : "");
    }
    for (i = 0; i < t->n_added; i++) h = hash_bytes(h, &t->added[i].lstrip, 3 * sizeof(int));   /* to normalized */
    for (i = 0; i < (size_t)t->n_normalizers; i++) {
        const struct normalizer *z = &t->normalizers[i];
        h = hash_bytes(h, &z->kind, sizeof z->kind);
        h = hash_bytes(h, t->pool.s + z->from, z->n_from + 1);
        h = hash_bytes(h, t->pool.s + z->to, z->n_to + 1);
    }
    h = hash_bytes(h, &t->byte_level, 2 * sizeof(int));         /* and byte_fallback */
    h = hash_bytes(h, &t->ignore_merges, sizeof t->ignore_merges);
    h = hash_bytes(h, t->before.v, t->before.n * sizeof *t->before.v);
    return hash_bytes(h, t->after.v, t->after.n * sizeof *t->after.v);
}

/* Added tokens that are looked for in normalized text are themselves normalized first, and are decoded
 * so: "New York" takes along the mark that stands before it. */
static int normalize_added(struct tokenizer *t, struct lora_error *err)
{
    size_t i;
    for (i = 0; t->n_normalizers && i < t->n_added; i++) {
        struct added *a = &t->added[i];
        struct text text = { 0 };
        int bad;
        if (!a->normalized) continue;
        bad = tokenizer_normalize(t, t->pool.s + a->text, a->n, &text, err);
        if (!bad && text.n) {
            a->n = text.n;
            a->text = pool_add(t, text.s, text.n);
            put_bytes(t, &t->tokens[a->id], a->text, a->n);
        }
        text_free(&text);
        if (bad || text_check(&t->pool, err)) return -1;
    }
    return 0;
}

/* ---- where nothing joins ---- */

size_t tokenizer_unit(const struct tokenizer *t, const char *s, size_t n, uint32_t *c)
{
    size_t length;
    if (t->byte_level) {
        *c = (unsigned char)s[0];
        return 1;
    }
    length = utf8_next(s, n, c);
    if (*c == UTF8_BAD) *c = 0x80000000u | (unsigned char)s[0];
    return length;
}

/* Two units of text can end up in one token only where some merge has the first at the end of its left half and
 * the second at the start of its right half. A text is cut everywhere else before it is merged, which
 * changes no id and keeps the heap small. Bytes have a bit for each pair; characters share bits. */
enum { JOINTS = 1 << 18 };

static size_t joint(const struct tokenizer *t, uint32_t a, uint32_t b)
{
    return t->byte_level ? a << 8 | b : (a * 0x9e3779b1u + b * 0x85ebca6bu) >> 14;
}

int tokenizer_can_join(const struct tokenizer *t, uint32_t a, uint32_t b)
{
    size_t i = joint(t, a, b);
    return t->joints[i / 8] >> i % 8 & 1;
}

static void units_of(const struct tokenizer *t, const struct token *token, uint32_t *first, uint32_t *last)
{
    const char *s = t->pool.s + (t->byte_level ? token->bytes : token->text);
    size_t i, length, n = t->byte_level ? token->n_bytes : token->n_text;
    *first = 0;
    for (i = 0; i < n; i += length) {
        length = tokenizer_unit(t, s + i, n - i, last);
        if (!i) *first = *last;
    }
}

static int find_joints(struct tokenizer *t, struct lora_error *err)
{
    size_t i, k;
    if (!(t->joints = new_array(JOINTS / 8, 1, err))) return -1;
    for (i = 0; i < t->merge_size; i++) {
        uint32_t first, last, none;
        if (t->merges[i].pair == NO_PAIR) continue;
        last = first = none = 0;
        units_of(t, &t->tokens[t->merges[i].pair >> 32], &none, &last);
        units_of(t, &t->tokens[t->merges[i].pair & 0xffffffffu], &first, &none);
        k = joint(t, last, first);
        t->joints[k / 8] |= (unsigned char)(1 << k % 8);
    }
    return 0;
}

int tokenizer_finish(struct tokenizer *t, struct lora_error *err)
{
    size_t i;
    if (!t->n) {
        fail(err, "tokenizer", "%s", t->path);
        expected(err, "a vocabulary");
        return found(err, "no token");
    }
    if (!t->merge_size && grow_merges(t, err)) return -1;
    for (i = 0; i < t->n; i++)
        if (t->tokens[i].flags & TOKEN_THERE) put_bytes(t, &t->tokens[i], t->tokens[i].text, t->tokens[i].n_text);
    if (text_check(&t->pool, err) || normalize_added(t, err) || find_joints(t, err)) return -1;
    sort_added(t);
    for (i = 0; t->byte_level && t->ignore_merges && i < t->n; i++)
        if ((t->tokens[i].flags & (TOKEN_THERE | TOKEN_OUTSIDE)) == TOKEN_THERE && index_add(t, &t->by_bytes, (int)i, err)) return -1;
    t->hash = hash_of(t);
    return 0;
}

size_t tokenizer_memory(const struct tokenizer *t)
{
    if (!t) return 0;
    return sizeof *t + t->pool.capacity + t->capacity * sizeof *t->tokens + t->added_capacity * sizeof *t->added
           + (t->by_text.slots ? (t->by_text.mask + 1) * sizeof(int) : 0)
           + (t->by_bytes.slots ? (t->by_bytes.mask + 1) * sizeof(int) : 0)
           + t->merge_size * sizeof *t->merges + (t->joints ? JOINTS / 8 : 0);
}
