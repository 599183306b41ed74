/* What opens has every value and tensor inside the file, and each can be asked for in every way. */
#include "fuzz.h"
#include "../../formats/gguf.h"

static void ask(const struct gguf *g, const struct gguf_value *v)
{
    struct lora_error err;
    char *s = NULL;
    double x = 0;
    int n = 0;
    size_t i;
    DEMAND(gguf_get(g, v->key) == v);
    if (v->strings) for (i = 0; i < v->n; i++) fuzz_touch(v->strings[i].s, v->strings[i].n);
    else for (i = 0; i < v->n; i++) gguf_array_number(v, i);
    gguf_get_int(g, v->key, &n, &err);
    gguf_get_bool(g, v->key, &n, &err);
    if (!gguf_get_number(g, v->key, &x, &err)) DEMAND(x - x == 0);
    if (!gguf_get_string(g, v->key, &s, &err)) fuzz_touch(s, v->string.n + 1);
    free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct gguf g;
    struct lora_error err = { "", "", "", "", "" };
    size_t bytes, total = 0;
    int i;
    if (gguf_open(&g, fuzz_file("file", data, n), &err)) {
        DEMAND(err.what[0] && err.where[0] && !g.path && !g.values && !g.tensors);
        return 0;
    }
    for (i = 0; i < g.n_values; i++) ask(&g, &g.values[i]);
    for (i = 0; i < g.n_tensors; i++) {
        const struct gguf_tensor *t = &g.tensors[i];
        DEMAND(gguf_find(&g, t->name) == t);
        DEMAND(!type_bytes(&bytes, t->type, t->count) && bytes == t->bytes);
        DEMAND(t->count == t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3]);
        fuzz_touch(t->data, t->bytes);
        total += bytes;
    }
    DEMAND(total <= n);
    gguf_close(&g);
    return 0;
}
