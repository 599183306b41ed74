/* adapter_parts.h - the inside of an adapter, for the files that read one and the one that makes it. */
#ifndef ADAPTER_PARTS_H
#define ADAPTER_PARTS_H

#include "adapter.h"
#include "formats/json.h"

#include <regex.h>

#define ADAPTER_MODULE_SIZE 128     /* bytes of a module's name, and of its tensors' */
#define ADAPTER_NAME_SIZE 192

/* "model.layers.0.self_attn.q_proj": PEFT's name of a module is its weight's without the end. */
char *adapter_module_name(char *name, size_t n, int id, int layer);
/* "q_proj" */
const char *adapter_short_name(const char *module);
/* An entry of a target_modules list: the whole name, or its end after a dot. */
int adapter_names_module(const char *entry, const char *module);
/* The whole of a module's name must match prefix(pattern), a Python expression; -1 where POSIX's cannot say it. */
int adapter_compile_pattern(regex_t *re, const char *prefix, const char *pattern, struct lora_error *err);
/* Which of a's names (0: all of them) name this module; used[] counts what each named. re: of a's
 * one expression; used may be NULL. */
int adapter_is_target(const struct adapter *a, const regex_t *re, const char *module, int *used);

/* rank_pattern and alpha_pattern: the value of the first key that matches (.*\.)?(KEY)$ */
struct pattern {
    char *key;
    regex_t re;
    double value;
    int matched;                /* by a module that was added */
};
struct patterns {
    struct pattern *v;
    size_t n, capacity;
};

/* What decides r and alpha of each module. Zero-initialise. */
struct adapter_rules {
    struct patterns ranks, alphas;
};
void adapter_rules_free(struct adapter_rules *r);
/* From an object of patterns and numbers; o NULL or null: none. file and name are for errors. */
int adapter_patterns(struct patterns *p, const struct json *o, const char *file, const char *name,
                     struct lora_error *err);

/* An adapter of a model with so many layers, and no modules yet. */
struct adapter *adapter_empty(int layers, struct lora_error *err);
/* Appends a module with r and alpha by the rules, and its place in the flat buffers. */
int adapter_add_module(struct adapter *a, const struct config *c, struct adapter_rules *rules, int id,
                       int layer, struct lora_error *err);

#endif
