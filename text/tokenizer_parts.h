/* tokenizer_parts.h - the inside of a tokenizer, for the files that read one and the one that runs it. */
#ifndef TOKENIZER_PARTS_H
#define TOKENIZER_PARTS_H

#include "pretoken.h"
#include "../tokenizer.h"

enum { TOKEN_THERE = 1, TOKEN_ADDED = 2, TOKEN_SPECIAL = 4,
       TOKEN_OUTSIDE = 8 };     /* added and not in the vocabulary: merges and single characters never make it */

#define TOKENIZER_MOST_IDS (1 << 22)    /* more is a damaged file, not a vocabulary */

#define TOKENIZER_LONGEST 1024          /* bytes of a token that is cut in two in every way */

/* Strings are offsets in the pool, NUL-ended there. */
struct token {
    size_t text, n_text;        /* as the vocabulary writes it ("\u0120the") */
    size_t bytes, n_bytes;      /* what it stands for (" the") */
    int flags;
};

/* A token that is cut out of the text before anything else looks at it. */
struct added {
    size_t text, n;             /* what is looked for, in the pool */
    int id, special;
    int lstrip, rstrip;         /* takes the white space on that side with it */
    int normalized;             /* looked for after the normalizer, not before */
};

/* Strings to ids: open addressing, -1 is free. */
struct string_index {
    int *slots;
    size_t mask, n;
};

struct merge {
    uint64_t pair;              /* left id << 32 | right id; NO_PAIR is free */
    int rank, id;               /* the lower rank goes first; the id of the joined token */
};
#define NO_PAIR UINT64_MAX

/* SentencePiece's character for a space, U+2581. */
#define SPACE_MARK "\xe2\x96\x81"

/* SentencePiece's remove_extra_whitespaces as a regular expression of what goes. */
#define ONE_SPACE_PATTERN "^ +|[ " SPACE_MARK "]+$| +(?= )"

/* One step of the normalizer. */
enum normalizer_kind { NORMALIZE_NFC, NORMALIZE_PREPEND, NORMALIZE_REPLACE, NORMALIZE_ONE_SPACE };
struct normalizer {
    int kind;
    size_t from, n_from, to, n_to;      /* in the pool: PREPEND has `to`, REPLACE both */
};

/* One step of the pre-tokenizer. */
enum step_kind {
    STEP_CUT,           /* a space put in front of text that has none, then cuts */
    STEP_MARK_SPACES    /* Metaspace: spaces become marks, a mark is put in front */
};
enum { PREFIX_NEVER, PREFIX_ALWAYS, PREFIX_FIRST };     /* FIRST: at the beginning of the text only */
struct step {
    int kind;
    int prefix;
    const struct split_rule *rule;      /* NULL: no cut */
};
#define TOKENIZER_MOST_STEPS 8

/* What goes from the front of a decoded text. */
enum { STRIP_NOTHING, STRIP_SPACE, STRIP_FIRST_TOKEN };

struct tokenizer {
    char *path;                 /* what errors name: the file being read */
    int is_gguf;
    struct text pool;
    struct token *tokens;
    size_t n, capacity;
    struct string_index by_text;
    struct string_index by_bytes;       /* only with byte_level and ignore_merges */
    struct merge *merges;
    size_t merge_size, n_merges;        /* slots: a power of two, or 0 */
    int byte_level;                     /* symbols are bytes, in the vocabulary as printable characters;
                                           else characters, with a mark for the space */
    int byte_fallback;                  /* a character without a token is its bytes, as <0x0A> */
    int byte_ids[256];                  /* of the tokens that stand for one byte, or -1 */
    int ignore_merges;                  /* a piece that is a whole token is taken as it is */
    int unk, fuse_unk;                  /* for what has no token; -1: such text is an error */
    unsigned char *joints;              /* bits: which neighbours a merge may join, see tokenizer_can_join() */
    struct added *added;                /* those looked for before the normalizer first; by bytes */
    size_t n_added, n_raw, added_capacity;
    unsigned char added_start[2][256];  /* whether one of them starts with this byte */
    struct normalizer normalizers[TOKENIZER_MOST_STEPS];
    int n_normalizers;
    struct step steps[TOKENIZER_MOST_STEPS];
    int n_steps;
    int strip;
    int bos, eos;
    struct ids before, after;           /* what TOKENIZE_SPECIAL adds */
    char *chat_template;
    uint64_t hash;
};

/* ---- building one, in this order ---- */

struct tokenizer *tokenizer_new(const char *path, struct lora_error *err);
/* An id or a text that is there already is an error. */
int tokenizer_put(struct tokenizer *t, size_t id, const char *text, size_t n, struct lora_error *err);
/* Makes token a->id, which is there, an added one; does nothing when it is one already. */
int tokenizer_put_added(struct tokenizer *t, const struct added *a, struct lora_error *err);
/* The two texts and their join must be tokens. A pair given twice has its last rank. */
int tokenizer_put_merge(struct tokenizer *t, const char *left, size_t n_left, const char *right, size_t n_right,
                        size_t rank, struct lora_error *err);
/* The merges of a vocabulary that has none written down: every way to cut a token in two tokens, in the
 * order of the joined token's score (the highest first), or with scores NULL of its id. A token of more
 * than TOKENIZER_LONGEST bytes is an error. */
int tokenizer_make_merges(struct tokenizer *t, const float *scores, struct lora_error *err);
int tokenizer_put_normalizer(struct tokenizer *t, int kind, const char *from, const char *to, struct lora_error *err);
int tokenizer_put_step(struct tokenizer *t, int kind, const struct split_rule *rule, int prefix,
                       struct lora_error *err);
int tokenizer_finish(struct tokenizer *t, struct lora_error *err);  /* checks, sorts, hashes */

/* The character that stands for a byte in byte-level vocabularies. */
uint32_t tokenizer_byte_character(int byte);
/* -1 when it is none. */
int tokenizer_find(const struct tokenizer *t, const char *text, size_t n);
/* Of a piece of text that is a token of the vocabulary: by its bytes (byte-level; only with ignore_merges)
 * or its text. */
int tokenizer_find_piece(const struct tokenizer *t, const char *s, size_t n);
const struct merge *tokenizer_merge(const struct tokenizer *t, int left, int right);   /* NULL: none */
/* The first unit of s[n], n > 0, a byte (byte-level) or a character: its length, and its number. */
size_t tokenizer_unit(const struct tokenizer *t, const char *s, size_t n, uint32_t *c);
/* Whether some merge may join what ends with unit a to what starts with unit b. */
int tokenizer_can_join(const struct tokenizer *t, uint32_t a, uint32_t b);
/* Appends s[n], normalized, to out, which is empty. */
int tokenizer_normalize(const struct tokenizer *t, const char *s, size_t n, struct text *out, struct lora_error *err);

/* ---- files ---- */

int tokenizer_read_directory(struct tokenizer *t, const char *directory, struct lora_error *err);   /* tokenizer_json.c */
int tokenizer_read_gguf(struct tokenizer *t, const char *path, struct lora_error *err);     /* tokenizer_gguf.c */
/* tokenizer.model: SentencePiece's, or tiktoken's text; *.tiktoken. In tokenizer_model.c. */
int tokenizer_read_model(struct tokenizer *t, const char *path, struct lora_error *err);
/* Names for the ids that tiktoken's text leaves out: after the configuration had its say. */
int tokenizer_fill_tiktoken(struct tokenizer *t, struct lora_error *err);

#endif
