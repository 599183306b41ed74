/* names.c - see names.h. Open addressing; at most half of the slots are taken. */
#include "names.h"

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
