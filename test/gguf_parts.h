/* gguf_parts.h - what tests write GGUF files from: numbers, strings, and the key and type of a value. */
#ifndef GGUF_PARTS_H
#define GGUF_PARTS_H

#include "../util.h"

#include <string.h>

static void put_le(struct text *t, uint64_t v, int bytes)
{
    for (; bytes-- > 0; v >>= 8) {
        char c = (char)(v & 255);
        text_add(t, &c, 1);
    }
}

static void put_gguf_string(struct text *t, const char *s)
{
    put_le(t, strlen(s), 8);
    text_puts(t, s);
}

static void put_key(struct text *t, const char *key, int type)
{
    put_gguf_string(t, key);
    put_le(t, (uint64_t)type, 4);
}

#endif
