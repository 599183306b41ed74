/* What parses is written as text that parses to the same text, and its lookups find each key. */
#include "fuzz.h"
#include "../../formats/json.h"

#include <string.h>

static void walk(const struct json *v)
{
    const struct json *c;
    size_t n = 0;
    if (v->type == JSON_STRING) {
        fuzz_touch(v->string, v->n);
        DEMAND(!v->string[v->n]);
    }
    if (v->type == JSON_NUMBER) DEMAND(v->number - v->number == 0 && v->literal[0]);
    for (c = v->child; c; c = c->next, n++) {
        walk(c);
        DEMAND(!c->key == (v->type != JSON_OBJECT));
        if (c->key) DEMAND(json_get(v, c->key) == c);
    }
    if (v->type >= JSON_ARRAY) DEMAND(n == v->n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct json_document d, again;
    struct text first = { 0 }, second = { 0 };
    struct lora_error err = { "", "", "", "", "" };
    if (json_parse(&d, (const char *)data, n, "FILE", &err)) {
        DEMAND(err.what[0] && err.where[0] && !d.root && !d.memory);
        return 0;
    }
    walk(d.root);
    json_put(&first, d.root);
    DEMAND(!json_parse(&again, first.s, first.n, "FILE", &err));
    json_put(&second, again.root);
    DEMAND(first.n == second.n && !memcmp(first.s, second.s, first.n));
    text_free(&first);
    text_free(&second);
    json_free(&again);
    json_free(&d);
    return 0;
}
