/* tokenizer_parts.h - the inside of a tokenizer, for the files that read one and the one that runs it. */
#ifndef TOKENIZER_PARTS_H
#define TOKENIZER_PARTS_H

#include "pretoken.h"
#include "tokenizer.h"

enum { TOKEN_THERE = 1, TOKEN_ADDED = 2, TOKEN_SPECIAL = 4 };

#define TOKENIZER_MOST_IDS (1 << 22)    /* more is a damaged file, not a vocabulary */

/* Strings are offsets in the pool, NUL-ended there. */
struct token {
    size_t text, n_text;        /* as the vocabulary writes it ("\u0120the") */
    size_t bytes, n_bytes;      /* what it stands for (" the") */
    int flags;
};

/* A token that is cut out of the text before anything else looks at it. */
struct added {
    size_t text, n;             /* in the pool */
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

/* One step of the pre-tokenizer: a space put in front of text that has none, then cuts. */
struct step {
    int prefix_space;
    const struct split_rule *rule;      /* NULL: no cut */
};
#define TOKENIZER_MOST_STEPS 8

struct tokenizer {
    char *path;                 /* what errors name: the file being read */
    int is_gguf;
    struct text pool;
    struct token *tokens;
    size_t n, capacity;
    struct string_index by_text;
    struct string_index by_bytes;       /* only with ignore_merges */
    struct merge *merges;
    size_t merge_mask, n_merges;
    int byte_ids[256];                  /* of the tokens that stand for one byte, or -1 */
    int ignore_merges;                  /* a piece that is a whole token is taken as it is */
    int unk, fuse_unk;                  /* for a byte without a token; -1: such text is an error */
    struct added *added;                /* those looked for before the normalizer first; by bytes */
    size_t n_added, n_raw, added_capacity;
    unsigned char added_start[2][256];  /* whether one of them starts with this byte */
    struct step steps[TOKENIZER_MOST_STEPS];
    int n_steps;
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
int tokenizer_begin_merges(struct tokenizer *t, size_t n, struct lora_error *err);
/* The two texts and their join must be tokens. A pair given twice has its last rank. */
int tokenizer_put_merge(struct tokenizer *t, const char *left, size_t n_left, const char *right, size_t n_right,
                        size_t rank, struct lora_error *err);
int tokenizer_put_step(struct tokenizer *t, const struct split_rule *rule, int prefix_space,
                       struct lora_error *err);
int tokenizer_finish(struct tokenizer *t, struct lora_error *err);  /* checks, sorts, hashes */

/* -1 when it is none. */
int tokenizer_find(const struct tokenizer *t, const char *text, size_t n);
int ids_add(struct ids *ids, int id, struct lora_error *err);

/* ---- files, in tokenizer_files.c ---- */

int tokenizer_read_directory(struct tokenizer *t, const char *directory, struct lora_error *err);
int tokenizer_read_gguf(struct tokenizer *t, const char *path, struct lora_error *err);

#endif
