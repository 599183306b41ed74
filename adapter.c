/* adapter.c - see adapter.h.
 *
 * PEFT 0.21's rules (src/peft/tuners/lora/config.py, tuners_utils.py, utils/other.py), in three parts:
 * which modules a setting names, adapters in memory, and the directory on disk. */
#include "adapter.h"
#include "formats/json.h"
#include "formats/safetensors.h"

#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODULE_SIZE 128
#define NAME_SIZE 192
#define PATTERN_SIZE 1000       /* bytes of one regular expression */

/* ---- names ---- */

static int adaptable(const struct config *c, int id)
{
    return tensor_layered(id) && tensor_specs[id].linear && tensor_present(c, id);
}

/* "model.layers.0.self_attn.q_proj": PEFT's name of a module is its weight's without the end. */
static char *module_name(char *name, size_t n, int id, int layer)
{
    size_t length;
    tensor_name(name, n, id, layer);
    length = strlen(name);
    if (length > 7 && !strcmp(name + length - 7, ".weight")) name[length - 7] = 0;
    return name;
}

/* "q_proj" */
static const char *short_name(const char *module)
{
    const char *dot = strrchr(module, '.');
    return dot ? dot + 1 : module;
}

char *adapter_tensor_name(char *name, size_t n, const struct adapted *m, int is_b)
{
    char module[MODULE_SIZE];
    snprintf(name, n, "base_model.model.%s.lora_%c.weight",
             module_name(module, sizeof module, m->id, m->layer), is_b ? 'B' : 'A');
    return name;
}

/* An entry of a target_modules list: the whole name, or its end after a dot. */
static int names_module(const char *entry, const char *module)
{
    size_t n = strlen(entry), m = strlen(module);
    return n <= m && !strcmp(module + m - n, entry) && (n == m || (n && module[m - n - 1] == '.'));
}

/* ---- regular expressions ---- */

static int fail_pattern(struct lora_error *err, const char *pattern, const char *found_text)
{
    fail(err, "cannot use the regular expression", "%s", pattern);
    expected(err, "groups, | . * + ? [] ^ $ and \\d \\w \\s");
    return found(err, "%s", found_text);
}

/* What follows a backslash, as POSIX has it; in a bracket the classes stand without their own. */
static int translate_escape(char c, int in_bracket, char out[16])
{
    const char *inside = c == 'd' ? "0-9" : c == 'w' ? "A-Za-z0-9_" : c == 's' ? " \t\r\n" : NULL;
    if (inside) return sprintf(out, in_bracket ? "%s" : "[%s]", inside);
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || !c) return -1;
    if (in_bracket && strchr("]^-\\[", c)) return -1;   /* POSIX gives them a place, not an escape */
    return sprintf(out, !in_bracket && strchr(".[]\\()*+?{}|^$", c) ? "\\%c" : "%c", c);
}

/* Python's expressions as POSIX extended ones; what POSIX lacks, or reads in another way, is refused. */
static int translate_pattern(struct text *out, const char *pattern, struct lora_error *err)
{
    const char *p, *bracket = NULL;     /* the first character in a bracket */
    if (strlen(pattern) > PATTERN_SIZE) return fail_pattern(err, pattern, "a very long one");
    for (p = pattern; *p; p++) {
        char put[16] = { *p };
        if (*p == '\\') {
            if (translate_escape(*++p, bracket != NULL, put) < 0)
                return fail_pattern(err, pattern, "an escape that POSIX does not have");
        } else if (bracket) {
            if (*p == '[') return fail_pattern(err, pattern, "\"[\" in a bracket");
            if (*p == ']' && p > bracket) bracket = NULL;
        } else if (*p == '[') {
            bracket = p + 1 + (p[1] == '^');
        } else if (*p == '(' && p[1] == '?') {
            if (p[2] != ':') return fail_pattern(err, pattern, "(?");
            p += 2;
        } else if (*p == '{' || *p == '}') {
            return fail_pattern(err, pattern, "a counted repetition");
        } else if (strchr("*+?", *p) && (p == pattern || strchr("(|*+?:", p[-1]))) {
            return fail_pattern(err, pattern, "a repetition of nothing, or a lazy one");
        }
        text_puts(out, put);
    }
    return text_check(out, err);
}

/* The whole of a module's name must match prefix(pattern). */
static int compile_pattern(regex_t *re, const char *prefix, const char *pattern, struct lora_error *err)
{
    struct text t = { 0 };
    int bad;
    text_printf(&t, "^%s(", prefix);
    bad = translate_pattern(&t, pattern, err);
    text_puts(&t, ")$");
    if (!bad) bad = text_check(&t, err);
    if (!bad) {
        int code = regcomp(re, t.s, REG_EXTENDED | REG_NOSUB);
        if (code) {
            char why[128];
            regerror(code, re, why, sizeof why);
            bad = fail_pattern(err, pattern, why);
        }
    }
    text_free(&t);
    return bad;
}

/* rank_pattern and alpha_pattern: the value of the first key that matches (.*\.)?(KEY)$ */
struct pattern {
    regex_t re;
    double value;
};
struct patterns {
    struct pattern *v;
    size_t n, capacity;
};

static void patterns_free(struct patterns *p)
{
    size_t i;
    for (i = 0; i < p->n; i++) regfree(&p->v[i].re);
    free(p->v);
    memset(p, 0, sizeof *p);
}

static int patterns_add(struct patterns *p, const char *key, double value, struct lora_error *err)
{
    if (grow_array((void **)&p->v, &p->capacity, p->n + 1, sizeof *p->v, err)) return -1;
    if (compile_pattern(&p->v[p->n].re, "(.*\\.)?", key, err)) return -1;
    p->v[p->n++].value = value;
    return 0;
}

static double patterns_find(const struct patterns *p, const char *module, double standard)
{
    size_t i;
    for (i = 0; i < p->n; i++)
        if (!regexec(&p->v[i].re, module, 0, NULL, 0)) return p->v[i].value;
    return standard;
}

static int patterns_from_json(struct patterns *p, const struct json *o, const char *file, const char *name,
                              struct lora_error *err)
{
    const struct json *v;
    if (!o || o->type == JSON_NULL) return 0;
    if (o->type != JSON_OBJECT) {
        fail(err, "cannot use the adapter's settings", "%s: %s", file, name);
        return expected(err, "an object of patterns and numbers");
    }
    for (v = o->child; v; v = v->next) {
        if (v->type != JSON_NUMBER) {
            fail(err, "cannot use the adapter's settings", "%s: %s: %s", file, name, v->key);
            return expected(err, "a number");
        }
        if (patterns_add(p, v->key, v->number, err)) return -1;
    }
    return 0;
}

/* "key=value,key=value" or a JSON object. */
static int patterns_from_text(struct patterns *p, const char *s, const char *option, struct lora_error *err)
{
    if (!s) return 0;
    if (*s == '{') {
        struct json_document d = { 0 };
        int bad = json_parse(&d, s, strlen(s), option, err)
                  || patterns_from_json(p, d.root, "the command line", option, err);
        json_free(&d);
        return bad ? -1 : 0;
    }
    while (*s) {
        size_t n = strcspn(s, ",");
        char *item = new_string_n(s, n, err), *equals;
        double value;
        int bad = !item;
        if (item) {
            equals = strrchr(item, '=');
            if (equals) *equals = 0;
            if (!equals || equals == item || parse_number(equals + 1, &value)) {
                fail(err, "cannot use the option", "%s", option);
                expected(err, "MODULE=NUMBER,MODULE=NUMBER");
                bad = found(err, "%.*s", (int)(n < 200 ? n : 200), s);
            } else {
                bad = patterns_add(p, item, value, err);
            }
        }
        free(item);
        if (bad) return -1;
        s += n + (s[n] == ',');
    }
    return 0;
}

/* ---- the table ---- */

/* What decides r and alpha of each module. */
struct rules {
    struct patterns ranks, alphas;
};

static void rules_free(struct rules *r)
{
    patterns_free(&r->ranks);
    patterns_free(&r->alphas);
}

/* An adapter of a model with so many layers, and no modules yet. */
static struct adapter *new_adapter(int layers, struct lora_error *err)
{
    struct adapter *a = new_array(1, sizeof *a, err);
    if (!a) return NULL;
    a->layers = layers;
    a->modules = new_array((size_t)layers * T_COUNT, sizeof *a->modules, err);
    if (a->modules) return a;
    free(a);
    return NULL;
}

void adapter_free(struct adapter *a)
{
    int i;
    if (!a) return;
    for (i = 0; i < a->n_names; i++) free(a->names[i]);
    free(a->names);
    free(a->modules);
    free(a->values);
    free(a);
}

/* Appends a module with its place in the flat buffers: A, then B. */
static int place_module(struct adapter *a, struct adapted m, struct lora_error *err)
{
    size_t size_a, size_b, end;
    if (size_mul(&size_a, (size_t)m.r, (size_t)m.cols) || size_mul(&size_b, (size_t)m.r, (size_t)m.rows)
        || size_add(&end, a->size, size_a) || size_add(&end, end, size_b) || end > SIZE_MAX / 16)
        return fail_memory(err, "the adapter", SIZE_MAX);
    m.scale = m.alpha / (a->use_rslora ? sqrt((double)m.r) : (double)m.r);
    m.a = a->size;
    m.b = a->size + size_a;
    a->size = end;
    a->modules[a->n++] = m;
    return 0;
}

static int add_module(struct adapter *a, const struct config *c, const struct rules *rules, int id, int layer,
                      struct lora_error *err)
{
    char module[MODULE_SIZE];
    struct adapted m = { 0 };
    double r, alpha;
    module_name(module, sizeof module, id, layer);
    r = patterns_find(&rules->ranks, module, a->r);
    alpha = patterns_find(&rules->alphas, module, a->alpha);
    if (!(r >= 1 && r <= 1000000 && r == floor(r))) {
        fail(err, "cannot use the rank", "%s", module);
        expected(err, "a whole number from 1");
        return found(err, "%g", r);
    }
    if (!(fabs(alpha) > 0 && alpha - alpha == 0)) {
        fail(err, "cannot use lora_alpha", "%s", module);
        expected(err, "a number other than 0");
        found(err, "%g", alpha);
        return hint(err, "with alpha 0 the adapter would change nothing");
    }
    m.id = id;
    m.layer = layer;
    m.r = (int)r;
    m.alpha = alpha;
    m.rows = tensor_rows(c, id);
    m.cols = tensor_cols(c, id);
    return place_module(a, m, err);
}

/* ---- a new adapter ---- */

/* "0,1,4-7" -> one byte a layer. */
static int parse_layers(unsigned char *chosen, int L, const char *s, struct lora_error *err)
{
    const char *text = s;
    memset(chosen, !s, (size_t)L);
    while (s && *s) {
        char *end;
        long first = strtol(s, &end, 10), last = first;
        if (end > s && *end == '-') {
            s = end + 1;
            last = strtol(s, &end, 10);
        }
        if (end == s || (*end && *end != ',') || first < 0 || last < first || last >= L) {
            fail(err, "cannot use the option", "layers");
            expected(err, "numbers or ranges from 0 to %d with commas", L - 1);
            return found(err, "%.200s", text);
        }
        memset(chosen + first, 1, (size_t)(last - first + 1));
        s = end + (*end == ',');
    }
    return 0;
}

/* The list's entries, the one expression between slashes, or nothing: all linears. */
static int set_names(struct adapter *a, const char *s, struct lora_error *err)
{
    size_t n = strlen(s), count = 1, i;
    const char *p;
    if (!strcmp(s, "all-linear")) return 0;
    a->is_regex = n > 2 && s[0] == '/' && s[n - 1] == '/';
    for (p = s; *p && !a->is_regex; p++) count += *p == ',';
    if (!(a->names = new_array(count, sizeof *a->names, err))) return -1;
    for (i = 0, p = s; i < count; i++) {
        size_t length = a->is_regex ? n - 2 : strcspn(p, ",");
        if (!(a->names[i] = new_string_n(p + a->is_regex, length, err))) return -1;
        a->n_names++;
        p += length + 1;
    }
    return 0;
}

static int fail_target(const struct config *c, const char *entry, struct lora_error *err)
{
    struct text list = { 0 };
    char module[MODULE_SIZE];
    int id;
    for (id = 0; id < T_COUNT; id++)
        if (adaptable(c, id))
            text_printf(&list, "%s%s", list.n ? ", " : "", short_name(module_name(module, sizeof module, id, 0)));
    fail(err, "cannot adapt", "target-modules: %s", entry);
    expected(err, "%s", list.s ? list.s : "");
    text_free(&list);
    if (names_module(entry, "model.embed_tokens") || names_module(entry, "lm_head"))
        hint(err, "adapters on the embedding or the head are not supported yet");
    return -1;
}

/* Which of a's names (0: all of them) name this module; used[] counts what each named. */
static int is_target(const struct adapter *a, const regex_t *re, const char *module, int *used)
{
    int i, hit = !a->n_names;
    if (a->is_regex) {
        hit = !regexec(re, module, 0, NULL, 0);
        if (used) used[0] += hit;
        return hit;
    }
    for (i = 0; i < a->n_names; i++)
        if (names_module(a->names[i], module)) {
            if (used) used[i]++;
            hit = 1;
        }
    return hit;
}

static int choose_modules(struct adapter *a, const struct config *c, const struct rules *rules,
                          const unsigned char *chosen, const regex_t *re, int *used, struct lora_error *err)
{
    char module[MODULE_SIZE];
    int layer, id, i;
    for (layer = 0; layer < c->L; layer++)
        for (id = 0; id < T_COUNT; id++) {
            if (!adaptable(c, id)) continue;
            if (!is_target(a, re, module_name(module, sizeof module, id, layer), used)) continue;
            if (chosen[layer] && add_module(a, c, rules, id, layer, err)) return -1;
        }
    for (i = 0; i < a->n_names; i++)
        if (!used[i]) return fail_target(c, a->names[i], err);
    if (!a->n) return fail_target(c, "no module in the chosen layers", err);
    return 0;
}

int adapter_new(struct adapter **out, const struct config *c, const struct adapter_settings *s,
                struct lora_error *err)
{
    struct rules rules;
    struct adapter *a;
    unsigned char *chosen = NULL;
    int *used = NULL, bad = -1;
    regex_t re, *compiled = NULL;
    memset(&rules, 0, sizeof rules);
    *out = NULL;
    if (!(a = new_adapter(c->L, err))) return -1;
    a->r = s->r;
    a->alpha = s->alpha;
    a->dropout = s->dropout;
    a->use_rslora = s->use_rslora;
    if (!(a->dropout >= 0 && a->dropout < 1)) {
        fail(err, "cannot use the option", "lora-dropout");
        expected(err, "a number from 0 to below 1");
        found(err, "%g", a->dropout);
        goto done;
    }
    if (set_names(a, s->target_modules, err)) goto done;
    if (a->is_regex) {
        if (compile_pattern(&re, "", a->names[0], err)) goto done;
        compiled = &re;
    }
    if (!(chosen = new_array((size_t)c->L, 1, err)) || parse_layers(chosen, c->L, s->layers, err)
        || !(used = new_array((size_t)a->n_names, sizeof *used, err))
        || patterns_from_text(&rules.ranks, s->rank_pattern, "rank-pattern", err)
        || patterns_from_text(&rules.alphas, s->alpha_pattern, "alpha-pattern", err))
        goto done;
    bad = choose_modules(a, c, &rules, chosen, compiled, used, err);
done:
    if (compiled) regfree(compiled);
    rules_free(&rules);
    free(chosen);
    free(used);
    if (bad) adapter_free(a);
    else *out = a;
    return bad;
}

int adapter_init(struct adapter *a, uint64_t seed, struct lora_error *err)
{
    char name[NAME_SIZE];
    int i;
    free(a->values);
    if (!(a->values = new_array(a->size, sizeof *a->values, err))) return -1;
    for (i = 0; i < a->n; i++) {
        const struct adapted *m = &a->modules[i];
        uint64_t key = random_key(seed, adapter_tensor_name(name, sizeof name, m, 0));
        double bound = 1 / sqrt((double)m->cols);   /* kaiming_uniform with a = sqrt(5) */
        size_t j, n = (size_t)m->r * (size_t)m->cols;
        for (j = 0; j < n; j++) a->values[m->a + j] = (float)((2 * random_uniform(key, j) - 1) * bound);
    }
    return 0;
}

int adapter_is_zero(const struct adapter *a)
{
    int i;
    for (i = 0; i < a->n; i++) {
        const struct adapted *m = &a->modules[i];
        size_t j, n = (size_t)m->r * (size_t)m->rows;
        for (j = 0; j < n; j++) if (a->values[m->b + j] != 0) return 0;
    }
    return 1;
}

/* ---- several as one ---- */

static const struct adapted *find_module(const struct adapter *a, int id, int layer)
{
    int i;
    for (i = 0; i < a->n; i++)
        if (a->modules[i].id == id && a->modules[i].layer == layer) return &a->modules[i];
    return NULL;
}

/* A's rows lie below each other, B's columns beside each other, times scale * factor: then
 * B A = sum of factor_i s_i B_i A_i, and the joined scale is 1. */
static void join_values(struct adapter *a, const struct adapted *m, const struct adapter *const *list,
                        const double *factor, int n)
{
    int i, first = 0;
    for (i = 0; i < n; i++) {
        const struct adapted *from = find_module(list[i], m->id, m->layer);
        int row, j;
        if (!from) continue;
        memcpy(a->values + m->a + (size_t)first * (size_t)m->cols, list[i]->values + from->a,
               (size_t)from->r * (size_t)from->cols * sizeof(float));
        for (row = 0; row < m->rows; row++)
            for (j = 0; j < from->r; j++)
                a->values[m->b + (size_t)row * (size_t)m->r + (size_t)(first + j)] =
                    (float)(factor[i] * from->scale
                            * list[i]->values[from->b + (size_t)row * (size_t)from->r + (size_t)j]);
        first += from->r;
    }
}

int adapter_join(struct adapter **out, const struct adapter *const *list, const double *factor, int n,
                 struct lora_error *err)
{
    struct adapter *a;
    int layers = 0, layer, id, i;
    *out = NULL;
    for (i = 0; i < n; i++) if (list[i]->layers > layers) layers = list[i]->layers;
    if (!(a = new_adapter(layers, err))) return -1;
    for (layer = 0; layer < layers; layer++)
        for (id = 0; id < T_COUNT; id++) {
            struct adapted m = { 0 };
            for (i = 0; i < n; i++) {
                const struct adapted *from = find_module(list[i], id, layer);
                int r = m.r;
                if (!from) continue;
                m = *from;
                m.r += r;
            }
            m.alpha = m.r;
            if (m.r && place_module(a, m, err)) goto bad;
        }
    a->r = a->n ? a->modules[0].r : 0;
    a->alpha = a->r;
    if (!(a->values = new_array(a->size, sizeof *a->values, err))) goto bad;
    for (i = 0; i < a->n; i++) join_values(a, &a->modules[i], list, factor, n);
    *out = a;
    return 0;
bad:
    adapter_free(a);
    return -1;
}

/* ---- reading PEFT's directory ---- */

/* PEFT's settings. standard: the value, as JSON, that changes nothing; NULL: any value is taken
 * (read below, or of no effect on the numbers). null is always a default. */
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
    { "init_lora_weights", NULL, NULL },
    { "use_dora", "false", "DoRA is not supported yet" },
    { "bias", "\"none\"", "trained biases are not supported" },
    { "lora_bias", "false", "a bias on lora_B is not supported" },
    { "modules_to_save", "[]", "modules saved whole are not supported yet" },
    { "fan_in_fan_out", "false", "it is for layers that store their weight transposed, which these are not" },
    { "layer_replication", "[]", "it changes the model's layers" },
    { "trainable_token_indices", "[]", "trained tokens of the embedding are not supported" },
    { "target_parameters", "[]", "adapters on bare parameters are not supported" },
    { "loftq_config", "{}", "LoftQ changes the base's weights" },
    { "eva_config", "{}", NULL }, { "corda_config", "{}", "CorDA changes the base's weights" },
    { "lora_ga_config", "{}", "LoRA-GA changes the base's weights" },
    { "megatron_config", "{}", "Megatron's layers are not these" },
    { "alora_invocation_tokens", "[]", "activated LoRA is not supported" },
    { "use_qalora", "false", "QALoRA is not supported" }, { "use_bdlora", "false", "BD-LoRA is not supported" },
    { "velora_config", "{}", NULL }, { "monteclora_config", "{}", NULL }, { "arrow_config", "{}", NULL },
    { "kasa_config", "{}", NULL }, { "ensure_weight_tying", "false", NULL },
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

static int check_initialisation(const struct json *v, const char *path, struct lora_error *err)
{
    if (!v || v->type == JSON_NULL || v->type == JSON_BOOL) return 0;
    if (v->type == JSON_STRING && !strcmp(v->string, "gaussian")) return 0;
    fail(err, "cannot use the adapter", "%s: init_lora_weights", path);
    expected(err, "true, false or \"gaussian\"");
    found(err, "%s", v->type == JSON_STRING ? v->string : "something else");
    return hint(err, "such a start may have changed the base's weights too; save the adapter converted to plain LoRA");
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
        if (names_module(e->string, "model.embed_tokens") || names_module(e->string, "lm_head")) {
            fail(err, "cannot use the adapter", "%s: target_modules: %s", path, e->string);
            return hint(err, "adapters on the embedding or the head are not supported yet");
        }
    }
    return 0;
bad:
    fail(err, "cannot use the adapter", "%s: target_modules", path);
    return expected(err, "a list of names, or one regular expression");
}

static int read_settings(struct adapter *a, struct rules *rules, const struct json *root, const char *path,
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
        || patterns_from_json(&rules->ranks, json_get(root, "rank_pattern"), path, "rank_pattern", err)
        || patterns_from_json(&rules->alphas, json_get(root, "alpha_pattern"), path, "alpha_pattern", err))
        return -1;
    if (!(a->dropout >= 0 && a->dropout < 1)) {
        fail(err, "cannot use the adapter", "%s: lora_dropout", path);
        expected(err, "a number from 0 to below 1");
        return found(err, "%g", a->dropout);
    }
    return read_targets(a, json_get(root, "target_modules"), path, err);
}

/* 1: the settings want this module; 0: they do not; -1: they leave it to the tensors. */
static int wanted(const struct adapter *a, const struct json *root, const char *module, int layer)
{
    const struct json *layers = json_get(root, "layers_to_transform"), *e, *exclude = json_get(root, "exclude_modules");
    const struct json *pattern = json_get(root, "layers_pattern");
    int i;
    if (!a->n_names || a->is_regex || (exclude && exclude->type != JSON_NULL)
        || (pattern && pattern->type != JSON_NULL)) return -1;
    for (i = 0; i < a->n_names; i++) if (!strcmp(a->names[i], module)) return 1;
    if (!is_target(a, NULL, module, NULL)) return 0;
    if (!layers || layers->type == JSON_NULL || (layers->type == JSON_ARRAY && !layers->n)) return 1;
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
    struct weight w = { 0 };
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
    w.type = t->type;
    w.rows = rows;
    w.cols = cols;
    w.data = t->data;
    for (r = 0; r < rows; r++) weight_decode(&w, r, 0, cols, out + (size_t)r * (size_t)cols);
    return 0;
}

/* Which modules the file adapts; seen[] marks its tensors. */
static int find_modules(struct adapter *a, const struct config *c, const struct rules *rules,
                        const struct json *root, const struct safetensors *s, unsigned char *seen,
                        struct lora_error *err)
{
    char name[2][NAME_SIZE], module[MODULE_SIZE];
    int layer, id, i;
    for (layer = 0; layer < c->L; layer++)
        for (id = 0; id < T_COUNT; id++) {
            const struct st_tensor *t[2];
            struct adapted m = { 0 };
            int want;
            if (!adaptable(c, id)) continue;
            m.id = id;
            m.layer = layer;
            for (i = 0; i < 2; i++) {
                t[i] = safetensors_find(s, adapter_tensor_name(name[i], sizeof name[i], &m, i));
                if (t[i]) seen[t[i] - s->tensors] = 1;
            }
            want = wanted(a, root, module_name(module, sizeof module, id, layer), layer);
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
            if (add_module(a, c, rules, id, layer, err)) return -1;
        }
    return 0;
}

static int fail_unknown_tensor(const char *path, const char *name, struct lora_error *err)
{
    fail(err, "cannot use the adapter", "%s: %s", path, name);
    expected(err, "lora_A and lora_B of the model's linears");
    found(err, "an unknown tensor");
    if (strstr(name, "lora_magnitude_vector")) return hint(err, "DoRA is not supported yet");
    if (strstr(name, "lora_embedding_") || strstr(name, "embed_tokens.") || strstr(name, "lm_head."))
        return hint(err, "adapters on the embedding or the head are not supported yet");
    if (strstr(name, "lora_B.bias")) return hint(err, "a bias on lora_B is not supported");
    if (!strstr(name, "lora_")) return hint(err, "modules saved whole are not supported yet");
    return hint(err, "is it an adapter of this model?");
}

static int read_tensors(struct adapter *a, const struct config *c, const struct rules *rules,
                        const struct json *root, const char *path, struct lora_error *err)
{
    struct safetensors s;
    unsigned char *seen = NULL;
    char name[NAME_SIZE];
    int i, is_b, bad = -1;
    if (safetensors_open(&s, path, err)) return -1;
    if (!(seen = new_array((size_t)s.n, 1, err)) || find_modules(a, c, rules, root, &s, seen, err)) goto done;
    for (i = 0; i < s.n; i++)
        if (!seen[i]) {
            fail_unknown_tensor(path, s.tensors[i].name, err);
            goto done;
        }
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
            const struct st_tensor *t = safetensors_find(&s, adapter_tensor_name(name, sizeof name, m, is_b));
            if (read_tensor(a->values + (is_b ? m->b : m->a), t, path, is_b ? m->rows : m->r,
                            is_b ? m->r : m->cols, err)) goto done;
        }
    bad = 0;
done:
    free(seen);
    safetensors_close(&s);
    return bad;
}

int adapter_read(struct adapter **out, const char *dir, const struct config *c, struct lora_error *err)
{
    struct adapter *a = new_adapter(c->L, err);
    struct rules rules;
    struct json_document d = { 0 };
    char *config = path_join(dir, "adapter_config.json", err);
    char *tensors = path_join(dir, "adapter_model.safetensors", err);
    int bad = -1;
    memset(&rules, 0, sizeof rules);
    *out = NULL;
    if (a && config && tensors && !json_read(&d, config, err) && !read_settings(a, &rules, d.root, config, err))
        bad = read_tensors(a, c, &rules, d.root, tensors, err);
    json_free(&d);
    rules_free(&rules);
    free(config);
    free(tensors);
    if (bad) adapter_free(a);
    else *out = a;
    return bad;
}

/* ---- writing it ---- */

/* One of rank_pattern and alpha_pattern: the values that are not the default, by a kind's short name
 * where all modules of the kind share one, else by the whole name. */
static void put_pattern(struct text *t, const struct adapter *a, const char *key, int is_rank)
{
    char module[MODULE_SIZE];
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
        module_name(module, sizeof module, m->id, m->layer);
        text_puts(t, n++ ? ", " : "");
        if (n == 1) text_printf(t, ",\n \"%s\": {", key);
        json_put_string(t, same ? short_name(module) : module, strlen(same ? short_name(module) : module));
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
    char module[MODULE_SIZE];
    int layers, grid = is_grid(a, kinds, &layers), i, n = 0, last = -1;
    text_puts(t, ",\n \"target_modules\": [");
    for (i = 0; i < a->n; i++) {
        const struct adapted *m = &a->modules[i];
        const char *name = module_name(module, sizeof module, m->id, m->layer);
        if (grid && m->layer != a->modules[0].layer) break;
        if (grid) name = short_name(module);
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
    if (base_model) json_put_string(t, base_model, strlen(base_model));
    else text_puts(t, "null");
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
    struct st_writer w;
    char name[NAME_SIZE];
    int i, is_b;
    memset(&w, 0, sizeof w);
    for (i = 0; i < a->n; i++)
        for (is_b = 0; is_b < 2; is_b++) {
            const struct adapted *m = &a->modules[i];
            size_t dims[2];
            dims[0] = (size_t)(is_b ? m->rows : m->r);
            dims[1] = (size_t)(is_b ? m->r : m->cols);
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
