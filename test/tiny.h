/* tiny.h - a random tiny model in memory, for tests: no files. */
#ifndef TINY_H
#define TINY_H

#include "../lora.h"

#include <stdlib.h>
#include <string.h>

struct tiny {
    struct model model;
    float *values;
};

/* Every weight from a stream named after its tensor; norms near 1. Shapes stand in *c. */
static inline void tiny_open(struct tiny *t, const struct config *c, uint64_t seed)
{
    size_t total = 0, used = 0;
    int pass, id, layer;
    memset(t, 0, sizeof *t);
    t->model.config = *c;
    t->model.weights = calloc((size_t)c->L * T_COUNT, sizeof *t->model.weights);
    for (pass = 0; pass < 2; pass++) {
        if (pass) t->values = malloc(total * sizeof *t->values);
        for (layer = 0; layer < c->L; layer++)
            for (id = 0; id < T_COUNT; id++) {
                struct weight *w = &t->model.weights[(size_t)layer * T_COUNT + (size_t)id];
                size_t n = (size_t)tensor_rows(c, id) * (size_t)tensor_cols(c, id), i;
                char name[128];
                uint64_t key;
                int vector = tensor_specs[id].cols == '1';
                if (!tensor_present(c, id) || (layer && !tensor_layered(id)) || (id == T_HEAD && c->tied)) continue;
                if (!pass) { total += n; continue; }
                key = random_key(seed, tensor_name(name, sizeof name, id, layer));
                w->type = TYPE_F32;
                w->rows = tensor_rows(c, id);
                w->cols = tensor_cols(c, id);
                w->data = t->values + used;
                for (i = 0; i < n; i++) {
                    double z = random_normal(key, i);
                    int norm = strstr(name, "norm") != NULL;
                    t->values[used + i] = (float)(norm ? 1 + 0.1 * z : vector ? 0.1 * z : 0.25 * z);
                }
                used += n;
            }
    }
}

static inline void tiny_close(struct tiny *t)
{
    free(t->model.weights);
    free(t->values);
}

static inline struct config tiny_config(void)
{
    struct config c;
    memset(&c, 0, sizeof c);
    strcpy(c.model_type, "llama");
    c.C = 16; c.V = 29; c.L = 2; c.NH = 4; c.NKV = 2; c.HS = 6; c.F = 20;
    c.max_positions = 64;
    c.norm_eps = 1e-5;
    c.bos = c.pad = -1;
    c.rope.theta = 100;
    c.rope.factor = 1;
    c.rope.low = 1; c.rope.high = 4; c.rope.beta_fast = 32; c.rope.beta_slow = 1;
    c.rope.original = 64;
    return c;
}

#endif
