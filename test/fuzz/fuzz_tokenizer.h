/* fuzz_tokenizer.h - what opens gives ids of its vocabulary for any text, and texts for any of its ids,
 * the same at once and one by one. */
#ifndef FUZZ_TOKENIZER_H
#define FUZZ_TOKENIZER_H

#include "fuzz.h"
#include "../../tokenizer.h"
#include "../../formats/unicode.h"

#include <string.h>

static void decode_ids(const struct tokenizer *t, const struct ids *ids)
{
    struct text whole = { 0 }, pending = { 0 }, out = { 0 };
    struct lora_error err = { "", "", "", "", "" };
    size_t i;
    DEMAND(!tokenizer_decode(t, ids->v, ids->n, 0, &whole, &err));
    for (i = 0; i < ids->n; i++) {
        DEMAND(tokenizer_token(t, ids->v[i]));
        DEMAND(!tokenizer_stream(t, ids->v[i], &pending, &out, &err));
        DEMAND(out.n + pending.n <= whole.n && utf8_whole(whole.s ? whole.s : "", out.n + pending.n) == out.n);
    }
    DEMAND(out.n + pending.n == whole.n && (!out.n || !memcmp(out.s, whole.s, out.n)));
    DEMAND(!pending.n || !memcmp(pending.s, whole.s + out.n, pending.n));
    text_free(&whole);
    text_free(&pending);
    text_free(&out);
}

static void fuzz_tokenizer(const char *path)
{
    static const char text[] = "<s> ab  a\n12 it's\xc3\xa9 e\xcc\x81\xff \xe4\xb8\xad\xe6\x96\x87 aaaaaaaaaaaaaaaaaaaaaaaab<|x|>\t ";
    struct lora_error err = { "", "", "", "", "" };
    struct tokenizer *t;
    struct ids ids = { 0 };
    int flags, id;
    if (tokenizer_open(&t, path, &err)) {
        DEMAND(err.what[0] && err.where[0] && !t);
        return;
    }
    for (flags = 0; flags < 8; flags++) {
        ids.n = 0;
        if (tokenizer_encode(t, text, sizeof text - 1, flags, &ids, &err)) DEMAND(err.what[0] && !ids.n);
        decode_ids(t, &ids);
    }
    ids.n = 0;
    for (id = tokenizer_size(t) - 1; id >= 0 && ids.n < 50; id--)
        if (tokenizer_token(t, id)) DEMAND(!grow_array((void **)&ids.v, &ids.capacity, ids.n + 1, sizeof *ids.v, &err) && (ids.v[ids.n++] = id) >= 0);
    decode_ids(t, &ids);
    DEMAND(tokenizer_bos(t) < tokenizer_size(t) && tokenizer_eos(t) < tokenizer_size(t));
    if (tokenizer_chat_template(t)) fuzz_touch(tokenizer_chat_template(t), strlen(tokenizer_chat_template(t)) + 1);
    ids_free(&ids);
    tokenizer_close(t);
}

#endif
