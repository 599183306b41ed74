/* tokenizer.c - byte pair encoding: bytes or characters become tokens, and neighbours are joined in the
 * order in which the vocabulary's merges were learnt (Sennrich, Haddow, Birch 2016, arXiv 1508.07909).
 *
 * The way of a text: added tokens are cut out, what is left is normalized, the pre-tokenizer's rules cut
 * it into pieces, and each piece is merged by itself. */
#include "text/tokenizer_parts.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "formats/unicode.h"

/* ---- ids ---- */

void ids_free(struct ids *ids)
{
    free(ids->v);
    memset(ids, 0, sizeof *ids);
}

int ids_append(struct ids *ids, const int *v, size_t n, struct lora_error *err)
{
    if (grow_array((void **)&ids->v, &ids->capacity, ids->n + n, sizeof *ids->v, err)) return -1;
    if (n) memcpy(ids->v + ids->n, v, n * sizeof *v);
    ids->n += n;
    return 0;
}

int ids_add(struct ids *ids, int id, struct lora_error *err) { return ids_append(ids, &id, 1, err); }

/* ---- encoding ---- */

/* A piece being merged is a list of symbols. `joined` is the token that the symbol would make with
 * the next one, -1 without a merge or once the symbol is gone. */
struct symbol {
    int id, previous, next, joined;
};

/* A merge that may be done is a place, the left one of two symbols, in a run: places with one merge, from
 * left to right. It is out of date when the symbol's `joined` is another id by now: a symbol and its
 * successor only grow, so they join to the same text only as the same pair. Merges mostly turn up in this
 * order, so that a text of a million letters without a place to cut it has some hundreds of runs, and the
 * heap that orders them stays in the cache, where one of all places would not. */
struct run {
    int rank, id;               /* of the merge */
    int first, last;            /* blocks; first: -1 when it is empty, and then last is the next that is free */
    int at, end;                /* its first place in the first block; the places in the last one */
};
enum { BLOCK_PLACES = 15 };
struct block {
    int next;                   /* of the run, or of those that are free; -1: none */
    int left[BLOCK_PLACES];
};
struct turn {                   /* a run in the heap, by its first place */
    int rank, left, run;
};

enum { FEW_SYMBOLS = 16, RECENT_RUNS = 1024, MOST_SYMBOLS = INT_MAX / 4 };     /* a symbol is in three places at most */

struct encoder {
    const struct tokenizer *t;
    int text_only, continues;   /* flags of the call */
    int at_start;               /* what is being encoded begins the text */
    struct ids *out;
    struct lora_error *err;
    struct symbol *symbols;
    struct block *blocks;
    struct run *runs;
    struct turn *heap;
    size_t symbols_capacity, n_blocks, blocks_capacity, n_runs, runs_capacity, heap_n, heap_capacity;
    int free_block, free_run;   /* -1: none */
    int recent[RECENT_RUNS];    /* by rank: a run that may have it */
};

/* The lowest rank first, and of equal ones the leftmost. */
static int before(const struct turn *a, const struct turn *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static int heap_push(struct encoder *e, struct turn x)
{
    size_t i = e->heap_n;
    if (grow_array((void **)&e->heap, &e->heap_capacity, i + 1, sizeof *e->heap, e->err)) return -1;
    for (e->heap_n++; i && before(&x, &e->heap[(i - 1) / 2]); i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = x;
    return 0;
}

/* Puts x in place of the first. */
static void heap_sift(struct encoder *e, struct turn x)
{
    size_t i = 0, child;
    while ((child = 2 * i + 1) < e->heap_n) {
        if (child + 1 < e->heap_n && before(&e->heap[child + 1], &e->heap[child])) child++;
        if (!before(&e->heap[child], &x)) break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    e->heap[i] = x;
}

/* A free block, or -1. */
static int block_take(struct encoder *e)
{
    int k = e->free_block;
    if (k >= 0) e->free_block = e->blocks[k].next;
    else if (grow_array((void **)&e->blocks, &e->blocks_capacity, e->n_blocks + 1, sizeof *e->blocks, e->err)) return -1;
    else k = (int)e->n_blocks++;
    e->blocks[k].next = -1;
    return k;
}

static void block_give(struct encoder *e, int k)
{
    e->blocks[k].next = e->free_block;
    e->free_block = k;
}

/* A new run with this one place. */
static int run_push(struct encoder *e, const struct merge *m, int left)
{
    int k = e->free_run, block = block_take(e);
    if (block < 0) return -1;
    if (k >= 0) e->free_run = e->runs[k].last;
    else if (grow_array((void **)&e->runs, &e->runs_capacity, e->n_runs + 1, sizeof *e->runs, e->err)) return -1;
    else k = (int)e->n_runs++;
    e->runs[k] = (struct run){ .rank = m->rank, .id = m->id, .first = block, .last = block, .at = 0, .end = 1 };
    e->blocks[block].left[0] = left;
    e->recent[(unsigned)m->rank % RECENT_RUNS] = k;
    return heap_push(e, (struct turn){ .rank = m->rank, .left = left, .run = k });
}

static int place_push(struct encoder *e, const struct merge *m, int left)
{
    int k = e->recent[(unsigned)m->rank % RECENT_RUNS], block;
    struct run *run = (size_t)k < e->n_runs ? &e->runs[k] : NULL;
    if (!run || run->rank != m->rank || run->first < 0 || e->blocks[run->last].left[run->end - 1] > left)
        return run_push(e, m, left);
    if (run->end == BLOCK_PLACES) {
        if ((block = block_take(e)) < 0) return -1;
        e->blocks[run->last].next = block;
        run->last = block;
        run->end = 0;
    }
    e->blocks[run->last].left[run->end++] = left;
    return 0;
}

/* The left symbol and the joined id of the first merge of all. There is one. */
static int place_pop(struct encoder *e, int *id)
{
    struct turn turn = e->heap[0];
    struct run *run = &e->runs[turn.run];
    int left = turn.left, block = run->first;
    *id = run->id;
    if (++run->at == (block == run->last ? run->end : BLOCK_PLACES)) {
        run->first = e->blocks[block].next;
        run->at = 0;
        block_give(e, block);
    }
    if (run->first >= 0) {
        turn.left = e->blocks[run->first].left[run->at];
    } else {
        run->last = e->free_run;
        e->free_run = turn.run;
        turn = e->heap[--e->heap_n];
    }
    if (e->heap_n) heap_sift(e, turn);
    return left;
}

/* Looks up what the symbol makes with its successor, and puts it among the merges to do. */
static int consider(struct encoder *e, int left)
{
    struct symbol *s = &e->symbols[left];
    const struct merge *m;
    s->joined = -1;
    if (s->next < 0) return 0;
    if (!(m = tokenizer_merge(e->t, s->id, e->symbols[s->next].id))) return 0;
    s->joined = m->id;
    return place_push(e, m, left);
}

/* The next pair of a few symbols' ids, for merge_few(). */
static void few_pair(const struct encoder *e, const int *ids, int i, int n, int *rank, int *joined)
{
    const struct merge *m;
    if (i < 0) return;
    m = i + 1 < n ? tokenizer_merge(e->t, ids[i], ids[i + 1]) : NULL;
    rank[i] = m ? m->rank : INT_MAX;
    joined[i] = m ? m->id : -1;
}

/* A word: what is below is more work than to look at all pairs each time. */
static int merge_few(struct encoder *e, int n)
{
    int ids[FEW_SYMBOLS], rank[FEW_SYMBOLS], joined[FEW_SYMBOLS], i, best;
    for (i = 0; i < n; i++) ids[i] = e->symbols[i].id;
    for (i = 0; i < n; i++) few_pair(e, ids, i, n, rank, joined);
    for (;;) {
        for (i = 1, best = 0; i < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == INT_MAX) break;
        ids[best] = joined[best];
        for (i = best + 1, n--; i < n; i++) {
            ids[i] = ids[i + 1];
            rank[i] = rank[i + 1];
            joined[i] = joined[i + 1];
        }
        few_pair(e, ids, best, n, rank, joined);
        few_pair(e, ids, best - 1, n, rank, joined);
    }
    return ids_append(e->out, ids, (size_t)n, e->err);
}

/* Joins neighbours until no merge is left. Each join makes at most two places more: n log n. */
static int merge_symbols(struct encoder *e, int n)
{
    int i;
    if (n <= FEW_SYMBOLS) return merge_few(e, n);
    e->heap_n = e->n_blocks = e->n_runs = 0;
    e->free_block = e->free_run = -1;
    for (i = 0; i < n; i++) {
        e->symbols[i].previous = i - 1;
        e->symbols[i].next = i + 1 < n ? i + 1 : -1;
    }
    for (i = 0; i < n; i++)
        if (consider(e, i)) return -1;
    while (e->heap_n) {
        int id, at = place_pop(e, &id);
        struct symbol *left = &e->symbols[at], *right;
        if (left->joined != id) continue;
        right = &e->symbols[left->next];
        right->joined = -1;
        left->id = id;
        left->next = right->next;
        if (left->next >= 0) e->symbols[left->next].previous = at;
        if (consider(e, at) || (left->previous >= 0 && consider(e, left->previous))) return -1;
    }
    for (i = 0; i >= 0; i = e->symbols[i].next)
        if (ids_add(e->out, e->symbols[i].id, e->err)) return -1;
    return 0;
}

/* The tokens of one unit of text, at most 4: itself, or its bytes; none: it is unknown. */
static int tokens_of_unit(const struct tokenizer *t, const char *s, size_t n, int *ids)
{
    size_t i;
    ids[0] = t->byte_level ? t->byte_ids[(unsigned char)s[0]] : tokenizer_find_piece(t, s, n);
    if (ids[0] >= 0) return 1;
    if (t->byte_level || !t->byte_fallback) return 0;
    for (i = 0; i < n; i++)
        if ((ids[i] = t->byte_ids[(unsigned char)s[i]]) < 0) return 0;
    return (int)n;
}

static int refuse_unit(const struct encoder *e, const char *s, size_t n)
{
    if (e->t->byte_level || n == 1) fail(e->err, "cannot tokenize the text", "byte 0x%02x", (unsigned)(unsigned char)s[0]);
    else fail(e->err, "cannot tokenize the text", "the character %.*s", (int)n, s);
    expected(e->err, "text that the vocabulary has tokens for");
    return hint(e->err, "%s has none for this; take it out of the text", e->t->path);
}

static int encode_piece(struct encoder *e, const char *s, size_t n)
{
    const struct tokenizer *t = e->t;
    size_t i, length;
    uint32_t c, last = 0;
    int used = 0, whole, joins = 1, fused = 0;  /* joins: the last unit is of the kind that the joints know */
    if (!n) return 0;
    if (t->ignore_merges && (whole = tokenizer_find_piece(t, s, n)) >= 0) return ids_add(e->out, whole, e->err);
    if (n > MOST_SYMBOLS) {
        fail(e->err, "tokenizer", "a text without a place to cut it");
        expected(e->err, "at most %d bytes", MOST_SYMBOLS);
        return found(e->err, "%zu", n);
    }
    for (i = 0; i < n; i += length, last = c) {
        int ids[4], count, k;
        length = tokenizer_unit(t, s + i, n - i, &c);
        count = tokens_of_unit(t, s + i, length, ids);
        if (used && joins && count == 1 && !tokenizer_can_join(t, last, c)) {
            if (merge_symbols(e, used)) return -1;
            used = 0;
        }
        joins = count == 1;
        if (!count) {
            if (t->unk < 0) return refuse_unit(e, s + i, length);
            if (fused && t->fuse_unk) continue;
            ids[count++] = t->unk;
        }
        fused = ids[0] == t->unk && !joins;
        if (grow_array((void **)&e->symbols, &e->symbols_capacity, (size_t)(used + count), sizeof *e->symbols, e->err))
            return -1;
        for (k = 0; k < count; k++) e->symbols[used++].id = ids[k];
    }
    return merge_symbols(e, used);
}

/* ---- what comes before the merges ---- */

static void replace(const char *s, size_t n, const char *from, size_t n_from, const char *to, size_t n_to,
                    struct text *out)
{
    while (n) {
        const char *at = n_from ? memchr(s, from[0], n) : NULL;
        size_t skip = at ? (size_t)(at - s) : n;
        text_add(out, s, skip);
        s += skip;
        n -= skip;
        if (!n) break;
        if (n >= n_from && !memcmp(s, from, n_from)) {
            text_add(out, to, n_to);
            s += n_from;
            n -= n_from;
        } else {
            text_add(out, s++, 1);
            n--;
        }
    }
}

/* SentencePiece's remove_extra_whitespaces: no space at the ends, one at a time between. At the back a mark
 * that the text has goes as well. */
static void one_space(const char *s, size_t n, struct text *out)
{
    size_t i;
    for (;;) {
        if (n && s[n - 1] == ' ') n--;
        else if (n >= 3 && !memcmp(s + n - 3, SPACE_MARK, 3)) n -= 3;
        else break;
    }
    for (i = 0; i < n; i++)
        if (s[i] != ' ' || (i && s[i - 1] != ' ')) text_add(out, s + i, 1);
}

/* goes_on: nothing is put before the text. */
static int normalize(const struct tokenizer *t, const char *s, size_t n, int goes_on, struct text *out,
                     struct lora_error *err)
{
    struct text next = { 0 };
    int i, bad = 0;
    text_add(out, s, n);
    for (i = 0; i < t->n_normalizers && !bad && out->n; i++) {
        const struct normalizer *z = &t->normalizers[i];
        const char *from = t->pool.s + z->from, *to = t->pool.s + z->to;
        struct text swap = *out;
        next.n = 0;
        if (z->kind == NORMALIZE_NFC) bad = unicode_nfc(&next, out->s, out->n, err);
        if (z->kind == NORMALIZE_ONE_SPACE) one_space(out->s, out->n, &next);
        if (z->kind == NORMALIZE_REPLACE) replace(out->s, out->n, from, z->n_from, to, z->n_to, &next);
        if (z->kind == NORMALIZE_PREPEND) {
            if (!goes_on) text_add(&next, to, z->n_to);
            text_add(&next, out->s, out->n);
        }
        *out = next;
        next = swap;
        bad = bad || text_check(out, err);
    }
    text_free(&next);
    return bad || text_check(out, err) ? -1 : 0;
}

int tokenizer_normalize(const struct tokenizer *t, const char *s, size_t n, struct text *out, struct lora_error *err)
{
    return normalize(t, s, n, 0, out, err);
}

/* Where the encoder is, does the text go on where another ended? */
static int goes_on(const struct encoder *e) { return e->continues && e->at_start; }

static int encode_steps(struct encoder *e, const char *s, size_t n, int k);

/* Metaspace. */
static int mark_spaces(struct encoder *e, const char *s, size_t n, int k)
{
    const struct step *step = &e->t->steps[k];
    struct text text = { 0 };
    int marked = s[0] == ' ' || (n >= 3 && !memcmp(s, SPACE_MARK, 3)), bad;
    if (!marked && !goes_on(e) && (step->prefix == PREFIX_ALWAYS || (step->prefix == PREFIX_FIRST && e->at_start)))
        text_puts(&text, SPACE_MARK);
    replace(s, n, " ", 1, SPACE_MARK, 3, &text);
    bad = text_check(&text, e->err) || encode_steps(e, text.s, text.n, k + 1);
    text_free(&text);
    return bad ? -1 : 0;
}

static int prefix_space(struct encoder *e, const char *s, size_t n, int k)
{
    struct text spaced = { 0 };
    int bad;
    text_add(&spaced, " ", 1);
    text_add(&spaced, s, n);
    bad = text_check(&spaced, e->err) || encode_steps(e, spaced.s, spaced.n, k);
    text_free(&spaced);
    return bad ? -1 : 0;
}

static int encode_steps(struct encoder *e, const char *s, size_t n, int k)
{
    const struct step *step;
    size_t length;
    if (!n) return 0;
    if (k == e->t->n_steps) return encode_piece(e, s, n);
    step = &e->t->steps[k];
    if (step->kind == STEP_MARK_SPACES) return mark_spaces(e, s, n, k);
    if (step->prefix && s[0] != ' ' && !goes_on(e)) return prefix_space(e, s, n, k);
    if (!step->rule) return encode_steps(e, s, n, k + 1);
    for (; n; s += length, n -= length, e->at_start = 0) {
        length = step->rule->next(s, n);
        if (encode_steps(e, s, length, k + 1)) return -1;
    }
    return 0;
}

/* The first of added[low .. high) whose byte at `depth` is c or above. */
static size_t first_added(const struct tokenizer *t, size_t low, size_t high, size_t depth, int c)
{
    while (low < high) {
        size_t middle = (low + high) / 2;
        if ((unsigned char)t->pool.s[t->added[middle].text + depth] < c) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The longest added token of the set that s[n] starts with, or NULL. The sorted set is narrowed byte
 * by byte. */
static const struct added *match_added(const struct tokenizer *t, int set, const char *s, size_t n)
{
    size_t low = set ? t->n_raw : 0, high = set ? t->n_added : t->n_raw, depth;
    const struct added *best = NULL;
    for (depth = 0; depth < n && low < high; depth++) {
        unsigned char c = (unsigned char)s[depth];
        while (low < high && t->added[low].n == depth) low++;   /* the one that ended here comes first */
        low = first_added(t, low, high, depth, c);
        high = first_added(t, low, high, depth, c + 1);
        if (low < high && t->added[low].n == depth + 1) best = &t->added[low];
    }
    return best;
}

static int encode_rest(struct encoder *e, const char *s, size_t n, int set);

/* Cuts out the added tokens of a set, leftmost and longest first: set 0 is looked for in the text as it
 * is, set 1 in what is left once it is normalized. Hugging Face's tokenizers look for the next one behind
 * the token and not behind the white space that it takes along, so that added tokens of white space
 * are found there again: as they do it. */
static int encode_sections(struct encoder *e, const char *s, size_t n, int set)
{
    const struct tokenizer *t = e->t;
    size_t i = 0, done = 0, space = 0;      /* space: where white space that was taken along ends */
    int at_start = e->at_start;
    if (!n) return 0;           /* and s may be NULL */
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
        if (a->lstrip && start > done) start = done + unicode_space_at_end(s + done, start - done);
        if (a->rstrip && end >= space) space = end + unicode_space_at_start(s + end, n - end);
        if (a->rstrip) end = space;
        e->at_start = at_start && !done;
        if ((start > done && encode_rest(e, s + done, start - done, set)) || ids_add(e->out, a->id, e->err)) return -1;
        done = end;
    }
    e->at_start = at_start && !done;
    return encode_rest(e, s + done, n - done, set);
}

/* What lies between added tokens. */
static int encode_rest(struct encoder *e, const char *s, size_t n, int set)
{
    struct text text = { 0 };
    int bad;
    if (!n || set == 1) return n ? encode_steps(e, s, n, 0) : 0;
    if (!e->t->n_normalizers) return encode_sections(e, s, n, 1);
    bad = normalize(e->t, s, n, goes_on(e), &text, e->err) || encode_sections(e, text.s, text.n, 1);
    text_free(&text);
    return bad ? -1 : 0;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, int flags, struct ids *out,
                     struct lora_error *err)
{
    struct encoder e = { .t = t, .text_only = (flags & TOKENIZE_TEXT_ONLY) != 0, .at_start = 1,
                         .continues = (flags & TOKENIZE_CONTINUE) != 0, .out = out, .err = err };
    size_t start = out->n;
    int bad = 0;
    if (flags & TOKENIZE_SPECIAL) bad = ids_append(out, t->before.v, t->before.n, err);
    if (!bad) bad = encode_sections(&e, text, n, 0);
    if (!bad && (flags & TOKENIZE_SPECIAL)) bad = ids_append(out, t->after.v, t->after.n, err);
    free(e.symbols);
    free(e.blocks);
    free(e.runs);
    free(e.heap);
    if (bad) out->n = start;
    return bad ? -1 : 0;
}

/* ---- decoding ---- */

/* strip: as in the tokenizer; a text that goes on where another ended has STRIP_NOTHING. */
static int decode(const struct tokenizer *t, const int *ids, size_t n, int skip_special, int strip, struct text *out,
                  struct lora_error *err)
{
    size_t i, start = out->n;
    int is_byte;
    for (i = 0; i < n; i++) {
        const struct token *token = ids[i] >= 0 && (size_t)ids[i] < t->n ? &t->tokens[ids[i]] : NULL;
        if (!token || !(token->flags & TOKEN_THERE)) {
            fail(err, "cannot turn ids into text", "id %zu", i + 1);
            expected(err, "an id of the vocabulary, below %zu", t->n);
            return found(err, "%d", ids[i]);
        }
        if (skip_special && (token->flags & TOKEN_SPECIAL)) continue;
        is_byte = token->n_bytes == 1 && t->byte_ids[(unsigned char)t->pool.s[token->bytes]] == ids[i];
        if (strip == STRIP_FIRST_TOKEN && !is_byte)    /* of its marks; a space that is written stays */
            replace(t->pool.s + token->text, token->n_text, SPACE_MARK, 3, "", 0, out);
        else
            text_add(out, t->pool.s + token->bytes, token->n_bytes);
        if (strip == STRIP_FIRST_TOKEN) strip = STRIP_NOTHING;
    }
    if (strip == STRIP_SPACE && !out->failed && out->n > start && out->s[start] == ' ')
        memmove(out->s + start, out->s + start + 1, out->n-- - start);
    return text_check(out, err);
}

int tokenizer_decode(const struct tokenizer *t, const int *ids, size_t n, int skip_special, struct text *out,
                     struct lora_error *err)
{
    return decode(t, ids, n, skip_special, t->strip, out, err);
}

int tokenizer_stream(const struct tokenizer *t, int id, struct text *pending, struct text *out,
                     struct lora_error *err)
{
    size_t whole;
    int strip = pending->s ? STRIP_NOTHING : t->strip;
    if (strip == STRIP_SPACE && tokenizer_token(t, id) && !t->tokens[id].n_bytes) return 0;     /* not begun yet */
    text_add(pending, "", 0);           /* from now on it has been used */
    if (decode(t, &id, 1, 0, strip, pending, err)) return -1;
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
