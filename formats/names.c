/* names.c - see names.h. Open addressing; at most half of the slots are taken. */
#include "names.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

struct slot { const char *name; const void *item; };
struct names {
    size_t mask;
    struct slot *slots;
};

struct names *names_new(size_t count, struct lora_error *err)
{
    size_t n = 16;
    struct names *t = new_array(1, sizeof *t, err);
    if (!t) return NULL;
    while (n / 2 < count && n <= SIZE_MAX / 2) n *= 2;
    t->mask = n - 1;
    t->slots = new_array(n, sizeof *t->slots, err);
    if (t->slots) return t;
    free(t);
    return NULL;
}

/* The slot that holds the name, or the free one where it belongs. */
static struct slot *find_slot(const struct names *t, const char *name)
{
    uint64_t h = hash_string(HASH_START, name);
    size_t i = (size_t)(h ^ h >> 32) & t->mask;
    while (t->slots[i].name && strcmp(t->slots[i].name, name)) i = (i + 1) & t->mask;
    return &t->slots[i];
}

int names_add(struct names *t, const char *name, const void *item)
{
    struct slot *s = find_slot(t, name);
    if (s->name) return -1;
    s->name = name;
    s->item = item;
    return 0;
}

const void *names_find(const struct names *t, const char *name)
{
    return t ? find_slot(t, name)->item : NULL;
}

void names_free(struct names *t)
{
    if (!t) return;
    free(t->slots);
    free(t);
}

/* Twice as large a table, when the old one is full. */
static int make_room(struct words *w, struct lora_error *err)
{
    struct names *larger;
    int i;
    if (w->names && (size_t)w->n < (w->names->mask + 1) / 2) return 0;
    if (!(larger = names_new((size_t)w->n * 2 + 1, err))) return -1;
    for (i = 0; i < w->n; i++) names_add(larger, w->v[i], w->v[i]);
    names_free(w->names);
    w->names = larger;
    return 0;
}

int words_add(struct words *w, const char *word, struct lora_error *err)
{
    char *copy;
    if (names_find(w->names, word)) return 0;
    if (w->n == INT_MAX) return fail(err, "too many words", "%s", word);
    if (make_room(w, err) || grow_array((void **)&w->v, &w->capacity, (size_t)w->n + 1, sizeof *w->v, err)
        || !(copy = new_string(word, err))) return -1;
    names_add(w->names, copy, copy);
    w->v[w->n++] = copy;
    return 0;
}

static int compare_words(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void words_sort(struct words *w)
{
    if (w->n) qsort(w->v, (size_t)w->n, sizeof *w->v, compare_words);
}

void words_free(struct words *w)
{
    int i;
    for (i = 0; i < w->n; i++) free(w->v[i]);
    free(w->v);
    names_free(w->names);
    memset(w, 0, sizeof *w);
}
