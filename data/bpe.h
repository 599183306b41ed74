/* bpe.h - learning byte-level BPE merges from text. */
#ifndef BPE_H
#define BPE_H

#include "../util.h"

enum { BPE_BYTES = 256,         /* tokens 0 .. 255 are bytes, in the order of their characters (bpe_show) */
       BPE_MOST = 8192 };       /* pair counts are a square of the tokens: half a gigabyte here */

/* A different piece of the text, between the places where split_gpt2 cuts, and how often it is there. */
struct word {
    size_t start;               /* in symbols */
    int n;                      /* symbols, fewer with every merge */
    long long count;
    uint64_t hash;
};

/* Zero-initialise. */
struct bpe {
    struct word *words;
    size_t n_words, words_capacity;
    int *symbols;               /* all words end to end */
    size_t n_symbols, symbols_capacity;
    size_t *table, table_size;  /* hash -> word + 1 */
    int n_tokens, *left, *right;/* token i >= BPE_BYTES is left[i] then right[i] */
    unsigned char **bytes;      /* of each token, and how many */
    int *n_bytes;
};

/* Counts the words of text[n] (UTF-8; what is not is taken byte by byte). Call before bpe_train. */
int bpe_add(struct bpe *b, const char *text, size_t n, struct lora_error *err);
/* Merges the most frequent pair, the greater pair of byte strings among equals, until there are
 * `size` tokens or no pair occurs twice. */
int bpe_train(struct bpe *b, int size, struct lora_error *err);
/* Appends the token's bytes, each as the printable character that stands for it in tokenizer.json. */
void bpe_show(const struct bpe *b, int id, struct text *out);
void bpe_free(struct bpe *b);

#endif
