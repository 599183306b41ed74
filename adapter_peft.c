/* adapter_peft.c - PEFT's directory, read and written: adapter_config.json and adapter_model.safetensors.
 *
 * PEFT 0.21's rules: src/peft/tuners/lora/config.py, src/peft/utils/save_and_load.py. */
#include "adapter_parts.h"
#include "formats/safetensors.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading it ---- */

/* PEFT's settings. standard: the value, as JSON, that changes nothing; NULL: any value is taken
 * (read below, or of no effect on the numbers: the configurations of starts do nothing without init_lora_weights, bias
 * and ensure_weight_tying nothing without tensors of their own). null is always a default. */
static const struct setting {
    const char *key, *standard, *why;
} settings[] = {
    { "peft_type", NULL, NULL }, { "task_type", "\"CAUSAL_LM\"", "the model is a causal language model" },
    { "r", NULL, NULL }, { "lora_alpha", NULL, NULL }, { "lora_dropout", NULL, NULL },
    { "target_modules", NULL, NULL }, { "exclude_modules", NULL, NULL },
    { "layers_to_transform", NULL, NULL }, { "layers_pattern", NULL, NULL },
    { "rank_pattern", NULL, NULL }, { "alpha_pattern", NULL, NULL }, { "use_rslora", NULL, NULL },
    { "inference_mode", NULL, NULL }, { "peft_version", NULL, NULL }, { "auto_mapping", NULL, NULL },
    { "base_model_name_or_path", NULL, NULL }, { "revision", NULL, NULL },
    { "megatron_core", NULL, NULL }, { "qalora_group_size", NULL, NULL }, { "runtime_config", NULL, NULL },
    { "init_lora_weights", NULL, NULL }, { "bias", NULL, NULL }, { "ensure_weight_tying", NULL, NULL },
    { "eva_config", NULL, NULL }, { "corda_config", NULL, NULL }, { "lora_ga_config", NULL, NULL }, { "loftq_config", NULL, NULL },
    { "use_dora", "false", "DoRA is not supported yet" },
    { "lora_bias", "false", "a bias on lora_B is not supported" },
    { "modules_to_save", "[]", "modules saved whole are not supported yet" },
    { "fan_in_fan_out", "false", "it is for layers that store their weight transposed, which these are not" },
    { "layer_replication", "[]", "it changes the model's layers" },
    { "trainable_token_indices", "[]", "trained tokens of the embedding are not supported" },
    { "target_parameters", "[]", "adapters on bare parameters are not supported" },
    { "megatron_config", "{}", "Megatron's layers are not these" },
    { "alora_invocation_tokens", "[]", "activated LoRA is not supported" },
    { "use_qalora", "false", "QALoRA is not supported" }, { "use_bdlora", "false", "BD-LoRA is not supported" },
    { "velora_config", "{}", NULL }, { "monteclora_config", "{}", NULL }, { "arrow_config", "{}", NULL },
    { "kasa_config", "{}", NULL },
};

/* Whether a value is what `standard` says, or, without one, says nothing: null, false, empty. */
static int is_standard(const struct json *v, const char *standard, const char *text)
{
    if (v->type == JSON_NULL) return 1;
    if ((v->type == JSON_OBJECT || v->type == JSON_ARRAY) && !v->n) return 1;
    if (!standard) return v->type == JSON_BOOL && !v->number;
    return !strcmp(text, standard) || (v->type == JSON_BOOL && !v->number && strchr("[{", standard[0]));
}

static int check_setting(const struct json *v, const char *path, struct lora_error *err)
{
    const struct setting *s = NULL;
    struct text t = { 0 };
    size_t i;
    int good;
    for (i = 0; i < sizeof settings / sizeof *settings; i++)
        if (!strcmp(settings[i].key, v->key)) s = &settings[i];
    if (s && !s->standard) return 0;
    json_put(&t, v);
    if (text_check(&t, err)) {
        text_free(&t);
        return -1;
    }
    good = is_standard(v, s ? s->standard : NULL, t.s);
    if (!good) {
        fail(err, "cannot use the adapter", "%s: %s", path, v->key);
        expected(err, "%s", s ? s->standard : "a setting that is known, or at its default");
        found(err, "%s", t.s);
        if (s && s->why) hint(err, "%s", s->why);
    }
    text_free(&t);
    return good ? 0 : -1;
}

/* The starts that leave the base as it is. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take what they give to the adapter
 * out of the base's weights: PEFT's src/peft/tuners/lora/layer.py. */
static int check_initialisation(const struct json *v, const char *path, struct lora_error *err)
{
    static const char *const starts[] = { "gaussian", "orthogonal", "eva", "mica" };
    size_t i;
    if (!v || v->type == JSON_NULL || v->type == JSON_BOOL) return 0;
    for (i = 0; i < sizeof starts / sizeof *starts; i++)
        if (v->type == JSON_STRING && !strcmp(v->string, starts[i])) return 0;
    fail(err, "cannot use the adapter", "%s: init_lora_weights", path);
    expected(err, "true, false, \"gaussian\", \"orthogonal\", \"eva\" or \"mica\"");
    found(err, "%s", v->type == JSON_STRING ? v->string : "something else");
    return hint(err, "such a start may have changed the base's weights too; PEFT's save_pretrained() converts the adapter to plain "
                "LoRA with path_initial_model_for_weight_conversion");
}

/* target_modules: a list, an expression (kept, not needed: the tensors say what is adapted), or null. */
static int read_targets(struct adapter *a, const struct json *v, const char *path, struct lora_error *err)
{
    const struct json *e;
    if (!v || v->type == JSON_NULL || (v->type == JSON_STRING && !strcmp(v->string, "all-linear"))) return 0;
    if (v->type != JSON_ARRAY && v->type != JSON_STRING) goto bad;
    if (!(a->names = new_array(v->type == JSON_ARRAY ? v->n : 1, sizeof *a->names, err))) return -1;
    a->is_regex = v->type == JSON_STRING;
    for (e = a->is_regex ? v : v->child; e; e = a->is_regex ? NULL : e->next) {
        if (e->type != JSON_STRING) goto bad;
        if (!(a->names[a->n_names] = new_string(e->string, err))) return -1;
        a->n_names++;
        if (a->is_regex) continue;
        if (adapter_names_module(e->string, "model.embed_tokens") || adapter_names_module(e->string, "lm_head")) {
            fail(err, "cannot use the adapter", "%s: target_modules: %s", path, e->string);
            return hint(err, "adapters on the embedding or the head are not supported yet");
        }
    }
    return 0;
bad:
    fail(err, "cannot use the adapter", "%s: target_modules", path);
    return expected(err, "a list of names, or one regular expression");
}

static int read_settings(struct adapter *a, struct adapter_rules *rules, const struct json *root, const char *path,
                         struct lora_error *err)
{
    const struct json *v;
    const char *type = NULL;
    if (root->type != JSON_OBJECT) {
        fail(err, "cannot use the adapter", "%s", path);
        return expected(err, "an object of settings");
    }
    if (json_get_string(root, "peft_type", &type, path, err)) return -1;
    if (!type || strcmp(type, "LORA")) {
        fail(err, "cannot use the adapter", "%s: peft_type", path);
        expected(err, "LORA");
        return found(err, "%s", type ? type : "nothing");
    }
    for (v = root->child; v; v = v->next)
        if (check_setting(v, path, err)) return -1;
    a->r = 8;
    a->alpha = 8;
    if (check_initialisation(json_get(root, "init_lora_weights"), path, err)
        || json_get_int(root, "r", &a->r, path, err)
        || json_get_number(root, "lora_alpha", &a->alpha, path, err)
        || json_get_number(root, "lora_dropout", &a->dropout, path, err)
        || json_get_bool(root, "use_rslora", &a->use_rslora, path, err)
        || adapter_patterns(&rules->ranks, json_get(root, "rank_pattern"), path, "rank_pattern", err)
        || adapter_patterns(&rules->alphas, json_get(root, "alpha_pattern"), path, "alpha_pattern", err))
        return -1;
    if (!(a->dropout >= 0 && a->dropout < 1)) {
        fail(err, "cannot use the adapter", "%s: lora_dropout", path);
        expected(err, "a number from 0 to below 1");
        return found(err, "%g", a->dropout);
    }
    return read_targets(a, json_get(root, "target_modules"), path, err);
}

/* Is this module one of the names that a setting lists? */
static int is_listed(const struct json *list, const char *module)
{
    const struct json *e = list && list->type == JSON_ARRAY ? list->child : NULL;
    while (e && !(e->type == JSON_STRING && adapter_names_module(e->string, module))) e = e->next;
    return e != NULL;
}

static int is_set(const struct json *v) { return v && v->type != JSON_NULL && !(v->type == JSON_ARRAY && !v->n); }

/* 1: the settings want this module; 0: they do not; -1: they leave it to the tensors. re: of the one expression, NULL where
 * this library of expressions cannot read it; Python's may match more, so one that does not match forbids nothing. */
static int wanted(const struct adapter *a, const struct json *root, const regex_t *re, const char *module, int layer)
{
    const struct json *layers = json_get(root, "layers_to_transform"), *e, *exclude = json_get(root, "exclude_modules");
    const struct json *targets = json_get(root, "target_modules");
    int i;
    if (is_set(json_get(root, "layers_pattern")) || (is_set(exclude) && exclude->type != JSON_ARRAY)) return -1;
    if (a->is_regex && !(re && adapter_is_target(a, re, module, NULL))) return -1;
    if (!a->n_names && !is_set(targets)) return -1;     /* the rest of them without a name is "all-linear" */
    if (is_listed(exclude, module)) return 0;
    for (i = 0; !a->is_regex && i < a->n_names; i++) if (!strcmp(a->names[i], module)) return 1;
    if (!a->is_regex && !adapter_is_target(a, NULL, module, NULL)) return 0;
    if (a->is_regex || !is_set(layers)) return 1;       /* PEFT takes no layers beside an expression */
    if (layers->type == JSON_NUMBER) return layers->number == layer;
    for (e = layers->child; e; e = e->next) if (e->type == JSON_NUMBER && e->number == layer) return 1;
    return 0;
}

static void shape_text(char out[64], const struct st_tensor *t)
{
    int i, n = 0;
    n += snprintf(out, 64, "[");
    for (i = 0; i < t->n_dims && n < 50; i++) n += snprintf(out + n, 64 - (size_t)n, i ? ",%zu" : "%zu", t->dims[i]);
    snprintf(out + n, 64 - (size_t)n, "]");
}

static int read_tensor(float *out, const struct st_tensor *t, const char *path, int rows, int cols,
                       struct lora_error *err)
{
    const struct weight w = { .type = t->type, .rows = rows, .cols = cols, .data = t->data };
    char shape[64];
    int r;
    if (t->type != TYPE_F32 && t->type != TYPE_F16 && t->type != TYPE_BF16) {
        fail(err, "cannot use the adapter", "%s: %s", path, t->name);
        expected(err, "F32, F16 or BF16");
        return found(err, "%s", weight_types[t->type].name);
    }
    if (t->n_dims != 2 || t->dims[0] != (size_t)rows || t->dims[1] != (size_t)cols) {
        shape_text(shape, t);
        fail(err, "cannot use the adapter", "%s: %s", path, t->name);
        expected(err, "the shape [%d,%d]", rows, cols);
        return found(err, "%s", shape);
    }
    for (r = 0; r < rows; r++) weight_decode(&w, r, 0, cols, out + (size_t)r * (size_t)cols);
    return 0;
}

/* A tensor of the file, or NULL. "default", which PEFT calls an adapter by itself, may have been left in its name. */
static const struct st_tensor *find_tensor(const struct safetensors *s, const char *name)
{
    const struct st_tensor *t = safetensors_find(s, name);
    char with_default[ADAPTER_NAME_SIZE + 8];
    snprintf(with_default, sizeof with_default, "%.*s.default.weight", (int)(strlen(name) - strlen(".weight")), name);
    return t ? t : safetensors_find(s, with_default);
}

/* Which modules the file adapts. */
static int find_modules(struct adapter *a, const struct config *c, struct adapter_rules *rules,
                        const struct json *root, const regex_t *re, const struct safetensors *s, struct lora_error *err)
{
    char name[2][ADAPTER_NAME_SIZE], module[ADAPTER_MODULE_SIZE];
    int id = -1, layer = 0, i, want;
    while (tensor_next(c, &id, &layer)) {
        const struct adapted m = { .id = id, .layer = layer };
        const struct st_tensor *t[2];
        if (!tensor_specs[id].linear) continue;
        for (i = 0; i < 2; i++) t[i] = find_tensor(s, adapter_tensor_name(name[i], sizeof name[i], &m, i));
        want = wanted(a, root, re, adapter_module_name(module, sizeof module, id, layer), layer);
        if (!t[0] && !t[1] && want < 1) continue;
        if (!t[0] || !t[1]) {
            fail(err, "cannot use the adapter", "%s: %s", s->path, name[t[0] ? 1 : 0]);
            expected(err, "this tensor");
            return found(err, "none of that name");
        }
        if (!want) {
            fail(err, "cannot use the adapter", "%s: %s", s->path, name[0]);
            expected(err, "a module that target_modules in adapter_config.json names");
            return found(err, "%s", module);
        }
        if (adapter_add_module(a, c, rules, id, layer, err)) return -1;
    }
    return 0;
}

static int fail_unknown_tensor(const char *path, const char *name, struct lora_error *err)
{
    size_t n = strlen(name);
    const char *lora = strstr(name, ".lora_A.");
    if (!lora) lora = strstr(name, ".lora_B.");
    fail(err, "cannot use the adapter", "%s: %s", path, name);
    expected(err, "lora_A and lora_B of the model's linears");
    found(err, "an unknown tensor");
    if (strstr(name, "lora_magnitude_vector")) return hint(err, "DoRA is not supported yet");
    if (strstr(name, "lora_embedding_") || strstr(name, "embed_tokens.") || strstr(name, "lm_head."))
        return hint(err, "adapters on the embedding or the head are not supported yet");
    if (strstr(name, "lora_B.bias")) return hint(err, "a bias on lora_B is not supported");
    if (n > 5 && !strcmp(name + n - 5, ".bias")) return hint(err, "trained biases are not supported: train with bias \"none\"");
    if (strstr(name, ".base_layer."))
        return hint(err, "the base's weights stand in the file too; PEFT's save_pretrained() writes the adapter alone");
    if (!lora && !strstr(name, "lora_")) return hint(err, "modules saved whole are not supported yet");
    if (lora && strchr(lora + strlen(".lora_A."), '.'))
        return hint(err, "a name of the adapter was left in its tensors' names; PEFT's save_pretrained() leaves it out");
    return hint(err, "is it an adapter of this model?");
}

/* Every tensor of the file is one of a linear of the model. Of those that are not, a weight of the base says most. */
static int check_names(const struct config *c, const struct safetensors *s, struct lora_error *err)
{
    char name[ADAPTER_NAME_SIZE];
    unsigned char *known = new_array((size_t)s->n, 1, err);
    int id = -1, layer = 0, i, told = -1, bad = known ? 0 : -1;
    while (!bad && tensor_next(c, &id, &layer))
        for (i = 0; i < 2 && tensor_specs[id].linear; i++) {
            const struct adapted m = { .id = id, .layer = layer };
            const struct st_tensor *t = find_tensor(s, adapter_tensor_name(name, sizeof name, &m, i));
            if (t) known[t - s->tensors] = 1;
        }
    for (i = 0; !bad && i < s->n; i++)
        if (!known[i] && (told < 0 || strstr(s->tensors[i].name, ".base_layer.weight"))) told = i;
    if (told >= 0) bad = fail_unknown_tensor(s->path, s->tensors[told].name, err);
    free(known);
    return bad;
}

static int read_tensors(struct adapter *a, const struct config *c, struct adapter_rules *rules,
                        const struct json *root, const char *path, struct lora_error *err)
{
    struct safetensors s;
    char name[ADAPTER_NAME_SIZE];
    regex_t expression;
    int i, is_b, bad = -1, is_read;
    if (safetensors_open(&s, path, err)) return -1;
    is_read = a->is_regex && !adapter_compile_pattern(&expression, "", a->names[0], NULL);
    if (check_names(c, &s, err) || find_modules(a, c, rules, root, is_read ? &expression : NULL, &s, err)) goto done;
    if (!a->n) {
        fail(err, "cannot use the adapter", "%s", path);
        expected(err, "at least one adapted module");
        found(err, "none");
        goto done;
    }
    if (!(a->values = new_array(a->size, sizeof *a->values, err))) goto done;
    for (i = 0; i < a->n; i++)
        for (is_b = 0; is_b < 2; is_b++) {
            const struct adapted *m = &a->modules[i];
            const struct st_tensor *t = find_tensor(&s, adapter_tensor_name(name, sizeof name, m, is_b));
            if (read_tensor(a->values + (is_b ? m->b : m->a), t, path, is_b ? m->rows : m->r,
                            is_b ? m->r : m->cols, err)) goto done;
        }
    bad = 0;
done:
    if (is_read) regfree(&expression);
    safetensors_close(&s);
    return bad;
}

static void note_unmatched(struct adapter *a, const struct patterns *p, const char *name)
{
    size_t i;
    for (i = 0; i < p->n; i++)
        if (!p->v[i].matched) text_printf(&a->unmatched, "%s%s: %s", a->unmatched.n ? ", " : "", name, p->v[i].key);
}

/* The folders of a directory that hold adapters: PEFT saves one with a name of its own in DIR/NAME. */
static void hint_folders(const char *dir, struct lora_error *err)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    struct text list = { 0 };
    while (d && (e = readdir(d))) {
        char *path = e->d_name[0] == '.' ? NULL : path_join(dir, e->d_name, NULL);
        if (path && file_in(path, "adapter_config.json", NULL) == 1) text_list(&list, path);
        free(path);
    }
    if (d) closedir(d);
    if (list.n && !list.failed) hint(err, "adapters lie in its folders, of which one is to be named: %s", list.s);
    text_free(&list);
}

int adapter_paths(char *path[2], const char *dir, struct lora_error *err)
{
    const char *absent;
    path[0] = path_join(dir, "adapter_config.json", err);
    path[1] = path[0] ? path_join(dir, "adapter_model.safetensors", err) : NULL;
    if (!path[1]) return -1;
    absent = !file_exists(path[0]) ? path[0] : !file_exists(path[1]) ? path[1] : NULL;
    if (!absent) return 0;
    fail(err, "cannot open", "%s", absent);
    expected(err, "this file, as PEFT's save_pretrained() writes it");
    found(err, "none");
    if (absent == path[0]) hint_folders(dir, err);
    else if (file_in(dir, "adapter_model.bin", NULL) == 1)
        hint(err, "adapter_model.bin holds it, which is not read; in its folder, in Python: import torch, safetensors.torch as s; "
             "s.save_file(torch.load(\"adapter_model.bin\", \"cpu\"), \"adapter_model.safetensors\")");
    return -1;
}

int adapter_read(struct adapter **out, const char *dir, const struct config *c, struct lora_error *err)
{
    struct adapter *a = adapter_empty(c->L, err);
    struct adapter_rules rules = { 0 };
    struct json_document d = { 0 };
    char *path[2] = { NULL, NULL };
    int bad = -1;
    *out = NULL;
    if (a && !adapter_paths(path, dir, err) && !json_read(&d, path[0], err) && !read_settings(a, &rules, d.root, path[0], err))
        bad = read_tensors(a, c, &rules, d.root, path[1], err);
    if (!bad) {
        note_unmatched(a, &rules.ranks, "rank_pattern");
        note_unmatched(a, &rules.alphas, "alpha_pattern");
        bad = text_check(&a->unmatched, err);
    }
    json_free(&d);
    adapter_rules_free(&rules);
    free(path[0]);
    free(path[1]);
    if (bad) adapter_free(a);
    else *out = a;
    return bad;
}

/* ---- writing it ---- */

/* One of rank_pattern and alpha_pattern: the values that are not the default, by a kind's short name
 * where all modules of the kind share one, else by the whole name. */
static void put_pattern(struct text *t, const struct adapter *a, const char *key, int is_rank)
{
    char module[ADAPTER_MODULE_SIZE];
    int i, j, n = 0;
    for (i = 0; i < a->n; i++) {
        const struct adapted *m = &a->modules[i];
        double value = is_rank ? m->r : m->alpha;
        int same = 1, first = 1;
        for (j = 0; j < a->n; j++) {
            if (a->modules[j].id != m->id) continue;
            if ((is_rank ? a->modules[j].r : a->modules[j].alpha) != value) same = 0;
            if (j < i) first = 0;
        }
        if (value == (is_rank ? a->r : a->alpha) || (same && !first)) continue;
        adapter_module_name(module, sizeof module, m->id, m->layer);
        text_puts(t, n++ ? ", " : "");
        if (n == 1) text_printf(t, ",\n \"%s\": {", key);
        json_put_text(t, same ? adapter_short_name(module) : module);
        text_puts(t, ": ");
        json_put_number(t, value, 0);
    }
    if (n) text_puts(t, "}");
}

/* 1 when every kind that is adapted is so in every layer that has one: then short names and a list of
 * layers say it all. */
static int is_grid(const struct adapter *a, unsigned char kinds[T_COUNT], int *layers)
{
    int i, n_kinds = 0, last = -1;
    memset(kinds, 0, T_COUNT);
    *layers = 0;
    for (i = 0; i < a->n; i++) {
        n_kinds += !kinds[a->modules[i].id];
        kinds[a->modules[i].id] = 1;
        *layers += a->modules[i].layer != last;
        last = a->modules[i].layer;
    }
    return a->n == n_kinds * *layers;
}

static void put_targets(struct text *t, const struct adapter *a)
{
    unsigned char kinds[T_COUNT];
    char module[ADAPTER_MODULE_SIZE];
    int layers, grid = is_grid(a, kinds, &layers), i, n = 0, last = -1;
    text_puts(t, ",\n \"target_modules\": [");
    for (i = 0; i < a->n; i++) {
        const struct adapted *m = &a->modules[i];
        const char *name = adapter_module_name(module, sizeof module, m->id, m->layer);
        if (grid && m->layer != a->modules[0].layer) break;
        if (grid) name = adapter_short_name(module);
        text_printf(t, "%s\"%s\"", n++ ? ", " : "", name);
    }
    text_puts(t, "]");
    if (!grid || layers == a->layers) return;
    text_puts(t, ",\n \"layers_to_transform\": [");
    for (i = n = 0; i < a->n; i++) {
        if (a->modules[i].layer != last) text_printf(t, "%s%d", n++ ? ", " : "", a->modules[i].layer);
        last = a->modules[i].layer;
    }
    text_puts(t, "]");
}

static void put_config(struct text *t, const struct adapter *a, const char *base_model)
{
    text_puts(t, "{\n \"peft_type\": \"LORA\",\n \"task_type\": \"CAUSAL_LM\",\n \"base_model_name_or_path\": ");
    json_put_text(t, base_model);
    text_printf(t, ",\n \"inference_mode\": true,\n \"r\": %d,\n \"lora_alpha\": ", a->r);
    json_put_number(t, a->alpha, 0);
    text_puts(t, ",\n \"lora_dropout\": ");
    json_put_number(t, a->dropout, 0);
    text_puts(t, ",\n \"bias\": \"none\",\n \"fan_in_fan_out\": false,\n \"init_lora_weights\": true,"
                 "\n \"modules_to_save\": null");
    put_targets(t, a);
    if (a->use_rslora) text_puts(t, ",\n \"use_rslora\": true");
    put_pattern(t, a, "rank_pattern", 1);
    put_pattern(t, a, "alpha_pattern", 0);
    text_puts(t, "\n}\n");
}

static int write_config(const struct adapter *a, const char *path, const char *base_model, struct lora_error *err)
{
    struct text t = { 0 };
    int bad;
    put_config(&t, a, base_model);
    bad = text_check(&t, err) || file_write(path, t.s, t.n, err);
    text_free(&t);
    return bad ? -1 : 0;
}

static int write_tensors(const struct adapter *a, const float *values, const char *path, struct lora_error *err)
{
    struct st_writer w = { 0 };
    char name[ADAPTER_NAME_SIZE];
    int i, is_b;
    for (i = 0; i < a->n; i++)
        for (is_b = 0; is_b < 2; is_b++) {
            const struct adapted *m = &a->modules[i];
            const size_t dims[2] = { (size_t)(is_b ? m->rows : m->r), (size_t)(is_b ? m->r : m->cols) };
            if (st_writer_add(&w, adapter_tensor_name(name, sizeof name, m, is_b), TYPE_F32, dims, 2, err))
                goto bad;
        }
    /* the flat buffer has the same order, and no gaps */
    if (st_writer_begin(&w, path, err) || st_writer_put(&w, values, a->size * sizeof *values, err)) goto bad;
    return st_writer_commit(&w, err);
bad:
    st_writer_abandon(&w);
    return -1;
}

int adapter_write(const struct adapter *a, const float *values, const char *dir, const char *base_model,
                  struct lora_error *err)
{
    char *config = path_join(dir, "adapter_config.json", err);
    char *tensors = path_join(dir, "adapter_model.safetensors", err);
    int bad = !config || !tensors || write_tensors(a, values, tensors, err)
              || write_config(a, config, base_model, err);
    free(config);
    free(tensors);
    return bad ? -1 : 0;
}
