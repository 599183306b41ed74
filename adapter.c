/* adapter.c - see adapter.h: which modules a setting names, by PEFT 0.21's rules
 * (src/peft/tuners/tuners_utils.py, utils/other.py), and adapters in memory. */
#include "adapter_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATTERN_SIZE 1000       /* bytes of one regular expression */
#define PATTERN_WORK 2000       /* the same times its counted repetitions, which C libraries write out: more takes gigabytes */

/* ---- names ---- */

char *adapter_module_name(char *name, size_t n, int id, int layer)
{
    size_t length;
    tensor_name(name, n, id, layer);
    length = strlen(name);
    if (length > 7 && !strcmp(name + length - 7, ".weight")) name[length - 7] = 0;
    return name;
}

const char *adapter_short_name(const char *module)
{
    const char *dot = strrchr(module, '.');
    return dot ? dot + 1 : module;
}

char *adapter_tensor_name(char *name, size_t n, const struct adapted *m, int is_b)
{
    char module[ADAPTER_MODULE_SIZE];
    snprintf(name, n, "base_model.model.%s.lora_%c.weight",
             adapter_module_name(module, sizeof module, m->id, m->layer), is_b ? 'B' : 'A');
    return name;
}

int adapter_names_module(const char *entry, const char *module)
{
    size_t n = strlen(entry), m = strlen(module);
    return n <= m && !strcmp(module + m - n, entry) && (n == m || (n && module[m - n - 1] == '.'));
}

/* ---- regular expressions ---- */

static int fail_pattern(struct lora_error *err, const char *pattern, const char *found_text)
{
    fail(err, "cannot use the regular expression", "%s", pattern);
    expected(err, "groups, | . * + ? {} [] ^ $ and \\d \\w \\s");
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

/* {2}, {1,3}, {2,} or {,3} at p, as POSIX has it; its length, or 0 where it is none. *work grows by the most that it repeats. */
static size_t translate_count(const char *p, double *work, char out[16])
{
    size_t low = strspn(p + 1, "0123456789"), comma = p[1 + low] == ',';
    size_t high = comma ? strspn(p + 2 + low, "0123456789") : 0, n = 2 + low + comma + high;
    int most;
    if (p[n - 1] != '}' || !(low + high) || low > 4 || high > 4) return 0;
    most = high ? atoi(p + 2 + low) : atoi(p + 1) + (int)comma;
    if (most > 1) *work *= most;
    sprintf(out, "{%s%.*s", low ? "" : "0", (int)n - 1, p + 1);
    return n;
}

/* Python's expressions as POSIX extended ones; what POSIX lacks, or reads in another way, is refused. A lazy repetition
 * is written as a greedy one: it finds another match first, but the whole name matches either or neither. */
static int translate_pattern(struct text *out, const char *pattern, struct lora_error *err)
{
    enum { NOTHING, PIECE, REPEATED } before = NOTHING, now;    /* what a repetition would repeat */
    const char *p, *bracket = NULL;     /* the first character in a bracket */
    double work = (double)strlen(pattern);
    if (work > PATTERN_SIZE) return fail_pattern(err, pattern, "a very long one");
    for (p = pattern; *p; p++, before = now) {
        char put[16] = { *p };
        now = !bracket && strchr("(|^$", *p) ? NOTHING : PIECE;
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
        } else if (*p == '?' && before == REPEATED) {
            put[0] = 0;
            now = NOTHING;
        } else if (strchr("*+?{", *p)) {
            if (before != PIECE) return fail_pattern(err, pattern, "a repetition of nothing, or of a repetition");
            if (*p == '{') {
                size_t n = translate_count(p, &work, put);
                if (!n || work > PATTERN_WORK) return fail_pattern(err, pattern, n ? "too many repetitions" : "\"{\" without numbers");
                p += n - 1;
            }
            now = REPEATED;
        } else if (*p == '}') {
            return fail_pattern(err, pattern, "\"}\" that ends nothing");
        }
        text_puts(out, put);
    }
    return text_check(out, err);
}

int adapter_compile_pattern(regex_t *re, const char *prefix, const char *pattern, struct lora_error *err)
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

static void patterns_free(struct patterns *p)
{
    size_t i;
    for (i = 0; i < p->n; i++) {
        regfree(&p->v[i].re);
        free(p->v[i].key);
    }
    free(p->v);
    memset(p, 0, sizeof *p);
}

static int patterns_add(struct patterns *p, const char *key, double value, struct lora_error *err)
{
    struct pattern *new;
    if (grow_array((void **)&p->v, &p->capacity, p->n + 1, sizeof *p->v, err)) return -1;
    new = &p->v[p->n];
    if (!(new->key = new_string(key, err))) return -1;
    if (adapter_compile_pattern(&new->re, "(.*\\.)?", key, err)) {
        free(new->key);
        return -1;
    }
    new->value = value;
    new->matched = 0;
    p->n++;
    return 0;
}

/* The value of the first that matches; all that do are marked. */
static double patterns_find(struct patterns *p, const char *module, double standard)
{
    double value = standard;
    size_t i;
    for (i = p->n; i-- > 0;) {
        if (regexec(&p->v[i].re, module, 0, NULL, 0)) continue;
        p->v[i].matched = 1;
        value = p->v[i].value;
    }
    return value;
}

int adapter_patterns(struct patterns *p, const struct json *o, const char *file, const char *name,
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
                  || adapter_patterns(p, d.root, "the command line", option, err);
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

void adapter_rules_free(struct adapter_rules *r)
{
    patterns_free(&r->ranks);
    patterns_free(&r->alphas);
}

struct adapter *adapter_empty(int layers, struct lora_error *err)
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
    text_free(&a->unmatched);
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

int adapter_add_module(struct adapter *a, const struct config *c, struct adapter_rules *rules, int id,
                       int layer, struct lora_error *err)
{
    char module[ADAPTER_MODULE_SIZE];
    double r, alpha;
    adapter_module_name(module, sizeof module, id, layer);
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
    return place_module(a, (struct adapted){ .id = id, .layer = layer, .r = (int)r, .alpha = alpha,
                                             .rows = tensor_rows(c, id), .cols = tensor_cols(c, id) }, err);
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
    size_t n = s ? strlen(s) : 0, count = 1, i;
    const char *p;
    if (!s) {
        fail(err, "cannot adapt", "target-modules");
        expected(err, "\"all-linear\", names with commas, or a regular expression in //");
        return found(err, "nothing");
    }
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
    char module[ADAPTER_MODULE_SIZE];
    int id = -1, layer = 0;
    while (tensor_next(c, &id, &layer) && !layer)
        if (tensor_specs[id].linear) text_list(&list, adapter_short_name(adapter_module_name(module, sizeof module, id, 0)));
    fail(err, "cannot adapt", "target-modules: %s", entry);
    expected(err, "%s", list.s ? list.s : "");
    text_free(&list);
    if (adapter_names_module(entry, "model.embed_tokens") || adapter_names_module(entry, "lm_head"))
        hint(err, "adapters on the embedding or the head are not supported yet");
    return -1;
}

int adapter_is_target(const struct adapter *a, const regex_t *re, const char *module, int *used)
{
    int i, hit = !a->n_names;
    if (a->is_regex) {
        hit = !regexec(re, module, 0, NULL, 0);
        if (used) used[0] += hit;
        return hit;
    }
    for (i = 0; i < a->n_names; i++)
        if (adapter_names_module(a->names[i], module)) {
            if (used) used[i]++;
            hit = 1;
        }
    return hit;
}

static int choose_modules(struct adapter *a, const struct config *c, struct adapter_rules *rules,
                          const unsigned char *chosen, const regex_t *re, int *used, struct lora_error *err)
{
    char module[ADAPTER_MODULE_SIZE];
    int id = -1, layer = 0, i;
    while (tensor_next(c, &id, &layer)) {
        if (!tensor_specs[id].linear) continue;
        if (!adapter_is_target(a, re, adapter_module_name(module, sizeof module, id, layer), used)) continue;
        if (chosen[layer] && adapter_add_module(a, c, rules, id, layer, err)) return -1;
    }
    for (i = 0; i < a->n_names; i++)
        if (!used[i]) return fail_target(c, a->names[i], err);
    if (!a->n) return fail_target(c, "no module in the chosen layers", err);
    return 0;
}

/* A key that matches nothing is a slip of the user's: PEFT would pass over it. */
static int check_patterns(const struct patterns *p, const struct adapter *a, const char *option, struct lora_error *err)
{
    const struct adapted *last = &a->modules[a->n - 1];
    char module[ADAPTER_MODULE_SIZE];
    size_t i;
    for (i = 0; i < p->n && p->v[i].matched; i++) { }
    if (i == p->n) return 0;
    adapter_module_name(module, sizeof module, last->id, last->layer);
    fail(err, "cannot use the option", "%s: %s", option, p->v[i].key);
    return expected(err, "a name or pattern of adapted modules, as %s or %s", adapter_short_name(module), module);
}

int adapter_new(struct adapter **out, const struct config *c, const struct adapter_settings *s,
                struct lora_error *err)
{
    struct adapter_rules rules = { 0 };
    struct adapter *a;
    unsigned char *chosen = NULL;
    int *used = NULL, bad = -1;
    regex_t re, *compiled = NULL;
    *out = NULL;
    if (!(a = adapter_empty(c->L, err))) return -1;
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
        if (adapter_compile_pattern(&re, "", a->names[0], err)) goto done;
        compiled = &re;
    }
    if (!(chosen = new_array((size_t)c->L, 1, err)) || parse_layers(chosen, c->L, s->layers, err)
        || !(used = new_array((size_t)a->n_names, sizeof *used, err))
        || patterns_from_text(&rules.ranks, s->rank_pattern, "rank-pattern", err)
        || patterns_from_text(&rules.alphas, s->alpha_pattern, "alpha-pattern", err))
        goto done;
    bad = choose_modules(a, c, &rules, chosen, compiled, used, err)
          || check_patterns(&rules.ranks, a, "rank-pattern", err) || check_patterns(&rules.alphas, a, "alpha-pattern", err);
done:
    if (compiled) regfree(compiled);
    adapter_rules_free(&rules);
    free(chosen);
    free(used);
    if (bad) adapter_free(a);
    else *out = a;
    return bad ? -1 : 0;
}

int adapter_init(struct adapter *a, uint64_t seed, struct lora_error *err)
{
    char name[ADAPTER_NAME_SIZE];
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
    for (i = 0; i < a->n && a->values; i++) {
        const struct adapted *m = &a->modules[i];
        size_t j, n = (size_t)m->r * (size_t)m->rows;
        for (j = 0; j < n; j++) if (a->values[m->b + j] != 0) return 0;
    }
    return 1;
}

/* ---- several as one ---- */

const struct adapted *adapter_find(const struct adapter *a, int id, int layer)
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
        const struct adapted *from = adapter_find(list[i], m->id, m->layer);
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

static int check_list(const struct adapter *const *list, int n, struct lora_error *err)
{
    int i;
    for (i = 0; i < n && list[i]->values; i++) ;
    if (n > 0 && i == n) return 0;
    fail(err, "cannot join adapters", "number %d of %d", i, n);
    return expected(err, "at least one, each with values: adapter_init(), adapter_read()");
}

int adapter_join(struct adapter **out, const struct adapter *const *list, const double *factor, int n,
                 struct lora_error *err)
{
    struct adapter *a;
    int layers = 0, layer, id, i;
    *out = NULL;
    if (check_list(list, n, err)) return -1;
    for (i = 0; i < n; i++) if (list[i]->layers > layers) layers = list[i]->layers;
    if (!(a = adapter_empty(layers, err))) return -1;
    for (layer = 0; layer < layers; layer++)
        for (id = 0; id < T_COUNT; id++) {
            struct adapted m = { 0 };
            for (i = 0; i < n; i++) {
                const struct adapted *from = adapter_find(list[i], id, layer);
                int r = m.r;
                if (!from) continue;
                if (r && (from->rows != m.rows || from->cols != m.cols)) {
                    fail(err, "cannot join adapters", "number %d: layer %d, %s", i, layer, tensor_specs[id].name);
                    expected(err, "adapters of one model: [%d, %d]", m.rows, m.cols);
                    found(err, "[%d, %d]", from->rows, from->cols);
                    goto bad;
                }
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
