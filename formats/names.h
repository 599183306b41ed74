/* names.h - a table from names to things, built once: how the readers of files find duplicates and
 * answer lookups in constant time. */
#ifndef NAMES_H
#define NAMES_H

#include "../util.h"

struct names;

/* For at most `count` names; NULL without memory. */
struct names *names_new(size_t count, struct lora_error *err);
/* Keeps both pointers, copies nothing. 0, or -1 when the name is there already. */
int names_add(struct names *t, const char *name, const void *item);
const void *names_find(const struct names *t, const char *name);    /* NULL: absent, or t is NULL */
void names_free(struct names *t);

/* A set of words that grows, each once. Zero-initialise. */
struct words {
    char **v;                   /* [n] in the order of coming, or sorted by bytes */
    int n;
    size_t capacity;
    struct names *names;        /* of the same strings */
};
int words_add(struct words *w, const char *word, struct lora_error *err);   /* copies it, if it is not there */
void words_sort(struct words *w);
void words_free(struct words *w);

#endif
