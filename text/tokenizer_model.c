/* tokenizer_model.c - vocabularies that are not tokenizer.json: SentencePiece's protobuf, and tiktoken's
 * text, a line a token: its bytes in base64, a space, its rank. */
#include "tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../formats/unicode.h"

static int refuse(const struct tokenizer *t, const char *place, const char *wanted, const char *what,
                  struct lora_error *err)
{
    fail(err, "tokenizer", "%s, %s", t->path, place);
    expected(err, "%s", wanted);
    return found(err, "%s", what);
}

/* ---- SentencePiece ---- */

/* One field of a protobuf message (protobuf.dev, "Encoding"). */
struct field {
    uint64_t number, value;     /* value: of a varint, of 4 bytes */
    const unsigned char *data;  /* of a string or message, else NULL */
    size_t n;
};
struct message {
    const unsigned char *p, *end;
};

static int read_varint(struct message *m, uint64_t *out)
{
    int shift;
    *out = 0;
    for (shift = 0; shift < 64 && m->p < m->end; shift += 7) {
        *out |= (uint64_t)(*m->p & 0x7f) << shift;
        if (!(*m->p++ & 0x80)) return 0;
    }
    return -1;
}

/* 1: a field; 0: the end; -1: damaged. */
static int read_field(struct message *m, struct field *f)
{
    uint64_t tag, n = 0;
    int i;
    if (m->p == m->end) return 0;
    f->data = NULL;
    f->value = f->n = 0;
    if (read_varint(m, &tag)) return -1;
    f->number = tag >> 3;
    switch (tag & 7) {
    case 0: return read_varint(m, &f->value) ? -1 : 1;
    case 1: n = 8; break;
    case 2: if (read_varint(m, &n)) return -1; break;
    case 5: n = 4; break;
    default: return -1;
    }
    if (n > (uint64_t)(m->end - m->p)) return -1;
    for (i = 3; (tag & 7) == 5 && i >= 0; i--) f->value = f->value << 8 | m->p[i];
    f->data = m->p;
    f->n = (size_t)n;
    m->p += n;
    return 1;
}

static struct message inside(const struct field *f)
{
    struct message m;
    m.p = f->data;
    m.end = f->data ? f->data + f->n : NULL;
    return m;
}

/* Fields of sentencepiece_model.proto that matter, with its defaults. */
struct pieces {
    float *scores;
    size_t n, capacity;
    uint64_t model_type, as_suffix, dummy_prefix, one_space, escape, unk, bos, eos;
    int mapped;                 /* a table of characters is to be applied */
};
enum { PIECE_NORMAL = 1, PIECE_UNKNOWN, PIECE_CONTROL, PIECE_USER, PIECE_UNUSED, PIECE_BYTE };

static int read_piece(struct tokenizer *t, struct pieces *s, const struct field *f, struct lora_error *err)
{
    struct message m = inside(f);
    struct field g, text = { 0, 0, NULL, 0 };
    struct added a = { 0 };
    uint64_t type = PIECE_NORMAL;
    uint32_t bits = 0;
    float score;
    int more;
    while ((more = read_field(&m, &g)) == 1) {
        if (g.number == 1) text = g;
        if (g.number == 2) bits = (uint32_t)g.value;
        if (g.number == 3) type = g.value;
    }
    memcpy(&score, &bits, sizeof score);
    if (more < 0 || !text.data || !(score - score == 0)) return refuse(t, "a piece", "a text, a score, a type", "damage", err);
    if (type == PIECE_USER) {   /* SentencePiece cuts these out without putting a space behind them */
        fail(err, "tokenizer", "%s, piece %.*s", t->path, text.n > 99 ? 99 : (int)text.n, (const char *)text.data);
        expected(err, "a piece that is normal, unknown, control, unused or a byte");
        found(err, "a user-defined one");
        return hint(err, "a tokenizer.json beside it would say what becomes of it");
    }
    if (tokenizer_put(t, s->n, (const char *)text.data, text.n, err)
        || grow_array((void **)&s->scores, &s->capacity, s->n + 1, sizeof *s->scores, err))
        return -1;
    s->scores[s->n] = score;
    a.id = (int)s->n++;
    a.special = type == PIECE_CONTROL || type == PIECE_UNKNOWN;
    return a.special && tokenizer_put_added(t, &a, err) ? -1 : 0;
}

/* trainer_spec and normalizer_spec. */
static int read_spec(struct pieces *s, const struct field *f)
{
    struct message m = inside(f);
    struct field g;
    int more, trainer = f->number == 2;
    while ((more = read_field(&m, &g)) == 1) {
        if (trainer && g.number == 3) s->model_type = g.value;
        if (trainer && g.number == 24) s->as_suffix = g.value;
        if (trainer && g.number == 40) s->unk = g.value;
        if (trainer && g.number == 41) s->bos = g.value;
        if (trainer && g.number == 42) s->eos = g.value;
        if (!trainer && g.number == 2 && g.n) s->mapped = 1;
        if (!trainer && g.number == 3) s->dummy_prefix = g.value;
        if (!trainer && g.number == 4) s->one_space = g.value;
        if (!trainer && g.number == 5) s->escape = g.value;
    }
    return more;
}

static int id_or_none(const struct tokenizer *t, uint64_t id) { return id < t->n ? (int)id : -1; }

static int apply_pieces(struct tokenizer *t, const struct pieces *s, struct lora_error *err)
{
    if (s->model_type != 2) return refuse(t, "model_type", "2 (BPE)", s->model_type == 1 ? "1 (Unigram)" : "another", err);
    if (s->as_suffix || !s->escape) return refuse(t, "white space", "marked in front of words", "another way", err);
    if (s->mapped) return refuse(t, "normalizer", "identity", "a table of characters", err);
    t->byte_fallback = t->fuse_unk = 1;
    t->unk = id_or_none(t, s->unk);
    t->bos = id_or_none(t, s->bos);
    t->eos = id_or_none(t, s->eos);
    t->strip = s->dummy_prefix ? STRIP_SPACE : STRIP_NOTHING;
    if ((s->one_space && tokenizer_put_normalizer(t, NORMALIZE_ONE_SPACE, "", "", err))
        || (s->dummy_prefix && tokenizer_put_normalizer(t, NORMALIZE_PREPEND, "", SPACE_MARK, err))
        || tokenizer_put_normalizer(t, NORMALIZE_REPLACE, " ", SPACE_MARK, err))
        return -1;
    return tokenizer_make_merges(t, s->scores, err);
}

static int read_sentencepiece(struct tokenizer *t, const struct file_map *file, struct lora_error *err)
{
    struct pieces s = { NULL, 0, 0, 1, 0, 1, 1, 1, 0, 1, 2, 0 };
    struct message m;
    struct field f;
    int more, bad = 0;
    m.p = file->data;
    m.end = file->data + file->size;
    while (!bad && (more = read_field(&m, &f)) != 0) {
        if (more < 0) bad = refuse(t, "SentencePiece", "a protobuf message", "damage", err);
        else if (f.number == 1) bad = read_piece(t, &s, &f, err);
        else if ((f.number == 2 || f.number == 3) && read_spec(&s, &f))
            bad = refuse(t, "SentencePiece", "a protobuf message", "damage", err);
    }
    if (!bad) bad = apply_pieces(t, &s, err);
    free(s.scores);
    return bad ? -1 : 0;
}

/* ---- tiktoken ---- */

enum { LLAMA3_TOKENS = 128000, LLAMA3_SPECIAL = 256, QWEN_TOKENS = 151643 };

static int base64_digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* The token's bytes, in base64, as the characters that stand for them; -1 when it is not base64. */
static int base64_text(const char *s, size_t n, struct text *out)
{
    unsigned bits = 0, have = 0;
    size_t i;
    if (n % 4 || !n) return -1;
    while (n && s[n - 1] == '=' && have < 2) n--, have++;
    for (i = 0, have = 0; i < n; i++) {
        int d = base64_digit(s[i]);
        if (d < 0) return -1;
        bits = (bits << 6 | (unsigned)d) & 0xffff;
        if ((have += 6) >= 8) {
            char c[4];
            have -= 8;
            text_add(out, c, utf8_put(c, tokenizer_byte_character((int)(bits >> have & 255))));
        }
    }
    return out->n ? 0 : -1;
}

static int read_tiktoken_line(struct tokenizer *t, const char *s, size_t n, size_t line, struct lora_error *err)
{
    const char *space = memchr(s, ' ', n);
    struct text token = { 0 };
    char number[16] = "", place[32];
    long long id = -1;
    size_t rest = space ? n - (size_t)(space + 1 - s) : 0;
    int bad;
    if (rest && rest < sizeof number) memcpy(number, space + 1, rest);
    bad = !space || parse_integer(number, &id) || id < 0 || base64_text(s, (size_t)(space - s), &token);
    snprintf(place, sizeof place, "line %zu", line);
    if (bad) refuse(t, place, "base64, a space and a rank", "something else", err);
    else bad = text_check(&token, err) || tokenizer_put(t, (size_t)id, token.s, token.n, err);
    text_free(&token);
    return bad ? -1 : 0;
}

static int read_tiktoken(struct tokenizer *t, const struct file_map *file, struct lora_error *err)
{
    const char *s = (const char *)file->data, *end = s + file->size, *stop;
    size_t line = 1;
    t->byte_level = 1;
    for (; s < end; s = stop + 1, line++) {
        size_t n;
        stop = memchr(s, '\n', (size_t)(end - s));
        if (!stop) stop = end;
        n = (size_t)(stop - s);
        if (n && s[n - 1] == '\r') n--;
        if (n && read_tiktoken_line(t, s, n, line, err)) return -1;
        if (stop == end) break;
    }
    if (t->n != t->by_text.n || (t->n != LLAMA3_TOKENS && t->n != QWEN_TOKENS)) {
        char count[32];
        snprintf(count, sizeof count, "%zu", t->by_text.n);
        return refuse(t, "tiktoken's text", "128000 tokens (Llama-3) or 151643 (Qwen)", count, err);
    }
    t->ignore_merges = t->n == LLAMA3_TOKENS;
    if (t->n == QWEN_TOKENS && tokenizer_put_normalizer(t, NORMALIZE_NFC, "", "", err)) return -1;
    if (tokenizer_put_step(t, STEP_CUT, t->n == LLAMA3_TOKENS ? &split_llama3 : &split_qwen2, PREFIX_NEVER, err)) return -1;
    return tokenizer_make_merges(t, NULL, err);
}

/* An id that has no token yet, unless another has this name. */
static int fill(struct tokenizer *t, int id, const char *name, struct lora_error *err)
{
    struct added a = { 0 };
    if (tokenizer_token(t, id) || tokenizer_id(t, name) >= 0) return 0;
    a.id = id;
    a.special = 1;
    if (tokenizer_put(t, (size_t)id, name, strlen(name), err)) return -1;
    t->tokens[id].flags |= TOKEN_OUTSIDE;
    return tokenizer_put_added(t, &a, err);
}

/* The names of Llama-3: six of 256, the others are reserved and numbered. */
static int fill_llama3(struct tokenizer *t, struct lora_error *err)
{
    static const struct { int at; const char *name; } names[] = {
        { 0, "<|begin_of_text|>" }, { 1, "<|end_of_text|>" }, { 6, "<|start_header_id|>" },
        { 7, "<|end_header_id|>" }, { 9, "<|eot_id|>" }
    };
    int i, k, reserved = 0;
    for (i = 0; i < LLAMA3_SPECIAL; i++) {
        char name[48] = "";
        for (k = 0; k < (int)(sizeof names / sizeof *names); k++)
            if (names[k].at == i) snprintf(name, sizeof name, "%s", names[k].name);
        if (!name[0]) snprintf(name, sizeof name, "<|reserved_special_token_%d|>", reserved++);
        if (fill(t, LLAMA3_TOKENS + i, name, err)) return -1;
    }
    return 0;
}

int tokenizer_fill_tiktoken(struct tokenizer *t, struct lora_error *err)
{
    static const char *const qwen[] = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" };
    int i;
    if (t->steps[0].rule == &split_llama3) {
        if (fill_llama3(t, err)) return -1;
        if (t->bos < 0) t->bos = LLAMA3_TOKENS;
        if (t->eos < 0) t->eos = LLAMA3_TOKENS + 1;
        return 0;
    }
    for (i = 0; i < 3; i++)
        if (fill(t, QWEN_TOKENS + i, qwen[i], err)) return -1;
    if (t->eos < 0) t->eos = QWEN_TOKENS;
    return 0;
}

int tokenizer_read_model(struct tokenizer *t, const char *path, struct lora_error *err)
{
    struct file_map f;
    int bad;
    if (file_open(&f, path, err)) return -1;
    /* A message starts with the tag of its first piece, which is a line break; no line of text does. */
    bad = f.size && f.data[0] == '\n' ? read_sentencepiece(t, &f, err) : read_tiktoken(t, &f, err);
    file_close(&f);
    return bad ? -1 : 0;
}
