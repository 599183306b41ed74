/* tokenizer_files.c - a tokenizer from the files that hold one, and into files again. Whatever in them
 * would change ids is either done or refused by name. */
#include "tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#include "formats/gguf.h"
#include "formats/json.h"

/* ---- tokenizer.json ---- */

struct reader {
    struct tokenizer *t;
    const char *file;
    struct lora_error *err;
    int byte_level;             /* the pre-tokenizer ends by turning bytes into characters */
    int has_post_processor;
};

/* "FILE, line N, PLACE: expected WANTED, found WHAT" */
static int refuse(const struct reader *r, const struct json *v, const char *place, const char *wanted, const char *what)
{
    fail(r->err, "tokenizer", "%s, line %d, %s", r->file, v ? v->line : 1, place);
    expected(r->err, "%s", wanted);
    return found(r->err, "%s", what);
}

static int is_null(const struct json *v) { return !v || v->type == JSON_NULL; }

/* The "type" of a part, "" when it has none. */
static const char *type_of(const struct json *v)
{
    const struct json *type = json_get(v, "type");
    return type && type->type == JSON_STRING ? type->string : "";
}

static int is_type(const struct json *v, const char *type) { return !strcmp(type_of(v), type); }

static int flag(const struct reader *r, const struct json *o, const char *key, int *out)
{
    return json_get_bool(o, key, out, r->file, r->err);
}

/* An id, or -1. */
static int id_of(const struct json *v)
{
    return v && v->type == JSON_NUMBER && v->number >= 0 && v->number < TOKENIZER_MOST_IDS
        && v->number == (int)v->number ? (int)v->number : -1;
}

static int read_vocabulary(struct reader *r, const struct json *vocab)
{
    const struct json *v;
    if (!vocab || vocab->type != JSON_OBJECT || !vocab->n)
        return refuse(r, vocab, "model.vocab", "a vocabulary: tokens and their ids", vocab ? "something else" : "none");
    for (v = vocab->child; v; v = v->next) {
        int id = id_of(v);
        if (id < 0) return refuse(r, v, "model.vocab", "an id from 0 to 4194303", v->key);
        if (tokenizer_put(r->t, (size_t)id, v->key, strlen(v->key), r->err)) return -1;
    }
    return 0;
}

/* A merge is "left right" or ["left", "right"]. */
static int read_merges(struct reader *r, const struct json *merges)
{
    const struct json *v;
    size_t rank = 0;
    if (!merges || merges->type != JSON_ARRAY)
        return refuse(r, merges, "model.merges", "an array", "something else");
    if (tokenizer_begin_merges(r->t, merges->n, r->err)) return -1;
    for (v = merges->child; v; v = v->next, rank++) {
        const struct json *a = v->child, *b = a ? a->next : NULL;
        const char *space = v->type == JSON_STRING ? strchr(v->string, ' ') : NULL;
        int bad;
        if (v->type == JSON_ARRAY && v->n == 2 && a->type == JSON_STRING && b->type == JSON_STRING)
            bad = tokenizer_put_merge(r->t, a->string, a->n, b->string, b->n, rank, r->err);
        else if (space && !strchr(space + 1, ' '))
            bad = tokenizer_put_merge(r->t, v->string, (size_t)(space - v->string), space + 1, strlen(space + 1),
                                      rank, r->err);
        else
            bad = refuse(r, v, "model.merges", "two tokens with a space between them, or an array of two",
                         v->type == JSON_STRING ? v->string : "something else");
        if (bad) return -1;
    }
    return 0;
}

/* A key that must be absent, null, 0, false or "". */
static int must_be_empty(const struct reader *r, const struct json *o, const char *key, const char *place)
{
    const struct json *v = json_get(o, key);
    if (is_null(v) || (v->type == JSON_STRING && !v->n)
        || ((v->type == JSON_NUMBER || v->type == JSON_BOOL) && v->number == 0))
        return 0;
    return refuse(r, v, place, "none", "one, which is not supported");
}

static int read_model(struct reader *r, const struct json *model)
{
    struct tokenizer *t = r->t;
    const char *unk = NULL;
    int byte_fallback = 0;
    if (!model || model->type != JSON_OBJECT || (strcmp(type_of(model), "BPE") && type_of(model)[0]))
        return refuse(r, model, "model.type", "BPE", model ? type_of(model) : "no model");
    if (must_be_empty(r, model, "dropout", "model.dropout")
        || must_be_empty(r, model, "continuing_subword_prefix", "model.continuing_subword_prefix")
        || must_be_empty(r, model, "end_of_word_suffix", "model.end_of_word_suffix")
        || flag(r, model, "byte_fallback", &byte_fallback) || flag(r, model, "fuse_unk", &t->fuse_unk)
        || flag(r, model, "ignore_merges", &t->ignore_merges)
        || json_get_string(model, "unk_token", &unk, r->file, r->err)
        || read_vocabulary(r, json_get(model, "vocab")) || read_merges(r, json_get(model, "merges")))
        return -1;
    if (byte_fallback) return refuse(r, model, "model.byte_fallback", "false (byte-level BPE)", "true");
    if (unk && (t->unk = tokenizer_id(t, unk)) < 0)
        return refuse(r, model, "model.unk_token", "a token of the vocabulary", unk);
    return 0;
}

/* An entry of added_tokens, or of tokenizer_config.json's added_tokens_decoder. */
static int read_added(struct reader *r, const struct json *v, int id)
{
    const char *content = NULL;
    struct added a = { 0 };
    int single_word = 0;
    a.normalized = 1;
    if (json_get_string(v, "content", &content, r->file, r->err) || flag(r, v, "single_word", &single_word)
        || flag(r, v, "lstrip", &a.lstrip) || flag(r, v, "rstrip", &a.rstrip)
        || flag(r, v, "normalized", &a.normalized) || flag(r, v, "special", &a.special))
        return -1;
    if (!content || !content[0] || id < 0)
        return refuse(r, v, "an added token", "a text and an id from 0 to 4194303", "none");
    if (single_word) return refuse(r, v, "an added token", "single_word false", content);
    a.id = tokenizer_id(r->t, content);
    if (a.id < 0 && tokenizer_put(r->t, (size_t)(a.id = id), content, strlen(content), r->err)) return -1;
    if (a.id != id) return refuse(r, v, "an added token", "the id that model.vocab gives it", content);
    return tokenizer_put_added(r->t, &a, r->err);
}

static int read_added_tokens(struct reader *r, const struct json *list)
{
    const struct json *v;
    if (is_null(list)) return 0;
    if (list->type != JSON_ARRAY) return refuse(r, list, "added_tokens", "an array", "something else");
    for (v = list->child; v; v = v->next)
        if (read_added(r, v, id_of(json_get(v, "id")))) return -1;
    return 0;
}

static int read_split(struct reader *r, const struct json *v)
{
    const struct json *pattern = json_get(v, "pattern"), *regex = json_get(pattern, "Regex");
    const struct split_rule *rule;
    const char *behavior = NULL;
    int invert = 0;
    if (json_get_string(v, "behavior", &behavior, r->file, r->err) || flag(r, v, "invert", &invert)) return -1;
    if (!regex || regex->type != JSON_STRING)
        return refuse(r, v, "pre_tokenizer Split", "a pattern of the form {\"Regex\": text}", "another");
    if (!(rule = split_by_pattern(regex->string)))
        return refuse(r, regex, "pre_tokenizer Split", "a pattern of a known tokenizer", regex->string);
    /* The patterns cover every text, so that pieces kept and gaps removed are the same. */
    if (!behavior || strcmp(behavior, invert ? "Removed" : "Isolated"))
        return refuse(r, v, "pre_tokenizer Split", "behavior Isolated, or Removed with invert",
                      behavior ? behavior : "none");
    return tokenizer_put_step(r->t, rule, 0, r->err);
}

static int read_pre_tokenizer(struct reader *r, const struct json *v)
{
    const struct json *part, *list = json_get(v, "pretokenizers");
    if (is_null(v)) return 0;
    if (r->byte_level) return refuse(r, v, "pre_tokenizer", "nothing after ByteLevel", type_of(v));
    if (is_type(v, "Sequence") && list && list->type == JSON_ARRAY) {
        for (part = list->child; part; part = part->next)
            if (read_pre_tokenizer(r, part)) return -1;
        return 0;
    }
    if (is_type(v, "ByteLevel")) {
        int prefix_space = 1, use_regex = 1;
        if (flag(r, v, "add_prefix_space", &prefix_space) || flag(r, v, "use_regex", &use_regex)) return -1;
        r->byte_level = 1;
        return tokenizer_put_step(r->t, use_regex ? &split_gpt2 : NULL, prefix_space, r->err);
    }
    if (is_type(v, "Digits")) {
        int each = 0;
        if (flag(r, v, "individual_digits", &each)) return -1;
        return tokenizer_put_step(r->t, each ? &split_digits : &split_digit_runs, 0, r->err);
    }
    if (is_type(v, "Split")) return read_split(r, v);
    return refuse(r, v, "pre_tokenizer", "ByteLevel, Digits, Split or a Sequence of them", type_of(v));
}

/* The ids of one special token of a template. */
static int read_template_token(struct reader *r, const struct json *v, const struct json *names, struct ids *out)
{
    const struct json *id = json_get(v, "id"), *token, *ids;
    if (!id || id->type != JSON_STRING || !(token = json_get(names, id->string))
        || !(ids = json_get(token, "ids")) || ids->type != JSON_ARRAY)
        return refuse(r, v, "post_processor", "a SpecialToken with ids", "none");
    for (ids = ids->child; ids; ids = ids->next) {
        if (!tokenizer_token(r->t, id_of(ids)))
            return refuse(r, ids, "post_processor", "an id of the vocabulary", "another");
        if (ids_add(out, id_of(ids), r->err)) return -1;
    }
    return 0;
}

static int read_template(struct reader *r, const struct json *v)
{
    const struct json *single = json_get(v, "single"), *part, *names = json_get(v, "special_tokens");
    int text = 0;
    if (!single || single->type != JSON_ARRAY)
        return refuse(r, v, "post_processor.single", "an array", "something else");
    for (part = single->child; part; part = part->next) {
        const struct json *token = json_get(part, "SpecialToken");
        if (token && read_template_token(r, token, names, text ? &r->t->after : &r->t->before)) return -1;
        if (!token && (text++ || !json_get(part, "Sequence")))
            return refuse(r, part, "post_processor.single", "SpecialToken, or Sequence once", "another");
    }
    return text ? 0 : refuse(r, v, "post_processor.single", "a Sequence", "none");
}

static int read_post_processor(struct reader *r, const struct json *v)
{
    const struct json *part, *list = json_get(v, "processors");
    if (is_null(v) || is_type(v, "ByteLevel")) return 0;    /* ByteLevel trims offsets, which changes no id */
    if (is_type(v, "TemplateProcessing")) return read_template(r, v);
    if (!is_type(v, "Sequence") || !list || list->type != JSON_ARRAY)
        return refuse(r, v, "post_processor", "TemplateProcessing, ByteLevel or a Sequence of them", type_of(v));
    for (part = list->child; part; part = part->next)
        if (read_post_processor(r, part)) return -1;
    return 0;
}

static int read_tokenizer_json(struct reader *r, const struct json *root)
{
    const struct json *normalizer = json_get(root, "normalizer"), *decoder = json_get(root, "decoder");
    if (root->type != JSON_OBJECT) return refuse(r, root, "the file", "an object", "something else");
    if (read_model(r, json_get(root, "model")) || read_added_tokens(r, json_get(root, "added_tokens"))
        || read_pre_tokenizer(r, json_get(root, "pre_tokenizer"))
        || read_post_processor(r, json_get(root, "post_processor")))
        return -1;
    r->has_post_processor = !is_null(json_get(root, "post_processor"));
    if (!is_null(normalizer)) return refuse(r, normalizer, "normalizer", "none", type_of(normalizer));
    if (!r->byte_level)
        return refuse(r, json_get(root, "pre_tokenizer"), "pre_tokenizer", "ByteLevel at the end", "none");
    if (!is_type(decoder, "ByteLevel")) return refuse(r, decoder, "decoder", "ByteLevel", type_of(decoder));
    return 0;
}

/* ---- tokenizer_config.json and what else lies beside ---- */

/* "bos_token": a text, or an object with it; null and absent are none. */
static int read_token_name(struct reader *r, const struct json *config, const char *key, int *out)
{
    const struct json *v = json_get(config, key);
    if (v && v->type == JSON_OBJECT) v = json_get(v, "content");
    if (is_null(v) || (v->type == JSON_STRING && !v->n)) return 0;
    if (v->type != JSON_STRING) return refuse(r, v, key, "a token's text", "something else");
    if ((*out = tokenizer_id(r->t, v->string)) < 0) return refuse(r, v, key, "a token of the vocabulary", v->string);
    return 0;
}

/* The tokens that a configuration names are special, also where tokenizer.json does not say so. */
static int make_special(struct reader *r, int id)
{
    struct added a = { 0 };
    if (id < 0) return 0;
    a.id = id;
    a.special = 1;
    return tokenizer_put_added(r->t, &a, r->err);
}

/* The template, or of a list of named ones the one called default. */
static int read_chat_template(struct reader *r, const struct json *v)
{
    const struct json *part = NULL;
    if (v && v->type == JSON_ARRAY) {
        for (part = v->child; part; part = part->next) {
            const struct json *name = json_get(part, "name");
            if (name && name->type == JSON_STRING && !strcmp(name->string, "default")) break;
        }
        v = json_get(part, "template");
    }
    if (is_null(v)) return 0;
    if (v->type != JSON_STRING) return refuse(r, v, "chat_template", "a text", "something else");
    free(r->t->chat_template);
    r->t->chat_template = new_string(v->string, r->err);
    return r->t->chat_template ? 0 : -1;
}

/* Tokens that a configuration may name without meaning anything for us but that they are special. */
static int read_other_names(struct reader *r, const struct json *config)
{
    static const char *const keys[] = { "unk_token", "pad_token" };
    const struct json *list = json_get(config, "additional_special_tokens"), *v;
    size_t i;
    for (i = 0; i < sizeof keys / sizeof *keys; i++) {
        v = json_get(config, keys[i]);
        if (v && v->type == JSON_OBJECT) v = json_get(v, "content");
        if (v && v->type == JSON_STRING && make_special(r, tokenizer_id(r->t, v->string))) return -1;
    }
    for (v = list ? list->child : NULL; v; v = v->next)
        if (v->type == JSON_STRING && make_special(r, tokenizer_id(r->t, v->string))) return -1;
    return 0;
}

static int read_config(struct reader *r, const struct json *root)
{
    const struct json *v = json_get(root, "added_tokens_decoder");
    struct tokenizer *t = r->t;
    int add_bos = 0, add_eos = 0;
    if (root->type != JSON_OBJECT) return refuse(r, root, "the file", "an object", "something else");
    for (v = v ? v->child : NULL; v; v = v->next) {
        long long id;
        if (parse_integer(v->key ? v->key : "", &id) || id < 0 || id >= TOKENIZER_MOST_IDS) id = -1;
        if (read_added(r, v, (int)id)) return -1;
    }
    if (read_token_name(r, root, "bos_token", &t->bos) || read_token_name(r, root, "eos_token", &t->eos)
        || read_other_names(r, root) || read_chat_template(r, json_get(root, "chat_template"))
        || flag(r, root, "add_bos_token", &add_bos) || flag(r, root, "add_eos_token", &add_eos))
        return -1;
    if (r->has_post_processor) return 0;        /* which has the last word, as in Transformers 5 */
    if (add_bos && t->bos >= 0 && ids_add(&t->before, t->bos, r->err)) return -1;
    return add_eos && t->eos >= 0 ? ids_add(&t->after, t->eos, r->err) : 0;
}

static int read_names(struct reader *r, const struct json *root)
{
    struct tokenizer *t = r->t;
    if (t->bos < 0 && (read_token_name(r, root, "bos_token", &t->bos) || make_special(r, t->bos))) return -1;
    return t->eos < 0 && (read_token_name(r, root, "eos_token", &t->eos) || make_special(r, t->eos)) ? -1 : 0;
}

/* The model's config.json: an id, or the first of a list. */
static int read_model_config(struct reader *r, const struct json *root)
{
    static const char *const keys[] = { "bos_token_id", "eos_token_id" };
    int *const out[] = { &r->t->bos, &r->t->eos }, i;
    for (i = 0; i < 2; i++) {
        const struct json *v = json_get(root, keys[i]);
        if (v && v->type == JSON_ARRAY) v = v->child;
        if (*out[i] >= 0 || !tokenizer_token(r->t, id_of(v))) continue;
        *out[i] = id_of(v);
        if (make_special(r, *out[i])) return -1;
    }
    return 0;
}

/* ---- a directory ---- */

/* Reads one file of the directory with `read`; one that is not there is passed over. */
static int read_file(struct reader *r, const char *directory, const char *name,
                     int (*read)(struct reader *r, const struct json *root))
{
    char *path = path_join(directory, name, r->err);
    struct json_document d = { 0 };
    int bad = 0;
    if (!path) return -1;
    r->file = path;
    if (file_exists(path)) {
        bad = json_read(&d, path, r->err) || read(r, d.root);
        json_free(&d);
    }
    free(path);
    return bad ? -1 : 0;
}

/* chat_template.jinja goes before what tokenizer_config.json has. */
static int read_template_file(struct tokenizer *t, const char *directory, struct lora_error *err)
{
    char *path = path_join(directory, "chat_template.jinja", err);
    struct file_map f;
    int bad = !path;
    if (path && file_exists(path) && !(bad = file_open(&f, path, err))) {
        free(t->chat_template);
        t->chat_template = new_string_n((const char *)f.data, f.size, err);
        bad = !t->chat_template;
        file_close(&f);
    }
    free(path);
    return bad ? -1 : 0;
}

int tokenizer_read_directory(struct tokenizer *t, const char *directory, struct lora_error *err)
{
    struct reader r = { 0 };
    r.t = t;
    r.err = err;
    if (read_file(&r, directory, "tokenizer.json", read_tokenizer_json)) return -1;
    if (!t->n) {
        fail(err, "tokenizer", "%s", directory);
        expected(err, "a directory with a tokenizer.json");
        return found(err, is_directory(directory) ? "none" : "no such directory");
    }
    return read_file(&r, directory, "tokenizer_config.json", read_config)
        || read_file(&r, directory, "special_tokens_map.json", read_names)
        || read_file(&r, directory, "config.json", read_model_config)
        || read_template_file(t, directory, err) ? -1 : 0;
}

/* ---- GGUF ---- */

/* What tokenizer.ggml.pre says: the steps, and what goes with them. */
struct gguf_pre {
    const char *name;
    const struct split_rule *first, *second;
    int ignore_merges, add_bos;
};
static const struct gguf_pre gguf_pres[] = {
    { "gpt-2", &split_gpt2, NULL, 0, 0 },
    { "smollm", &split_digits, &split_gpt2, 0, 0 },
};

enum { GGUF_TOKEN_NORMAL = 1, GGUF_TOKEN_UNKNOWN, GGUF_TOKEN_CONTROL, GGUF_TOKEN_USER, GGUF_TOKEN_UNUSED,
       GGUF_TOKEN_BYTE };

static int refuse_key(const struct tokenizer *t, const char *key, const char *wanted, const char *what,
                      struct lora_error *err)
{
    fail(err, "tokenizer", "%s, %s", t->path, key);
    expected(err, "%s", wanted);
    return found(err, "%s", what);
}

static int read_gguf_tokens(struct tokenizer *t, const struct gguf *g, struct lora_error *err)
{
    const struct gguf_value *v = gguf_get(g, "tokenizer.ggml.tokens");
    const struct gguf_value *types = gguf_get(g, "tokenizer.ggml.token_type");
    size_t i;
    if (!v || v->type != GGUF_ARRAY || v->element != GGUF_STRING)
        return refuse_key(t, "tokenizer.ggml.tokens", "an array of texts", v ? "something else" : "none", err);
    if (types && (types->type != GGUF_ARRAY || types->element == GGUF_STRING || types->n != v->n))
        return refuse_key(t, "tokenizer.ggml.token_type", "a number for each token", "something else", err);
    for (i = 0; i < v->n; i++) {
        int type = types ? (int)gguf_array_number(types, i) : GGUF_TOKEN_NORMAL;
        struct added a = { 0 };
        if (tokenizer_put(t, i, v->strings[i].s, v->strings[i].n, err)) return -1;
        a.id = (int)i;
        a.special = type == GGUF_TOKEN_CONTROL || type == GGUF_TOKEN_UNKNOWN;
        if ((a.special || type == GGUF_TOKEN_USER) && tokenizer_put_added(t, &a, err)) return -1;
    }
    return 0;
}

static int read_gguf_merges(struct tokenizer *t, const struct gguf *g, struct lora_error *err)
{
    const struct gguf_value *v = gguf_get(g, "tokenizer.ggml.merges");
    size_t i;
    if (!v || v->type != GGUF_ARRAY || v->element != GGUF_STRING)
        return refuse_key(t, "tokenizer.ggml.merges", "an array of texts", v ? "something else" : "none", err);
    if (tokenizer_begin_merges(t, v->n, err)) return -1;
    for (i = 0; i < v->n; i++) {
        const char *s = v->strings[i].s, *space = v->strings[i].n ? memchr(s + 1, ' ', v->strings[i].n - 1) : NULL;
        if (!space) return refuse_key(t, "tokenizer.ggml.merges", "two tokens with a space between", "none", err);
        if (tokenizer_put_merge(t, s, (size_t)(space - s), space + 1, (size_t)(s + v->strings[i].n - space - 1),
                                i, err))
            return -1;
    }
    return 0;
}

static int read_gguf_pre(struct tokenizer *t, const struct gguf *g, int *add_bos, struct lora_error *err)
{
    const struct gguf_pre *p = NULL;
    char *name = NULL;
    size_t i;
    int bad;
    if (gguf_get_string(g, "tokenizer.ggml.pre", &name, err)) return -1;
    for (i = 0; i < sizeof gguf_pres / sizeof *gguf_pres && !p; i++)
        if (name && !strcmp(name, gguf_pres[i].name)) p = &gguf_pres[i];
    if (!p) refuse_key(t, "tokenizer.ggml.pre", "gpt-2 or smollm", name ? name : "none", err);
    free(name);
    if (!p) return -1;
    *add_bos = p->add_bos;
    t->ignore_merges = p->ignore_merges;
    bad = tokenizer_put_step(t, p->first, 0, err);
    return bad || (p->second && tokenizer_put_step(t, p->second, 0, err)) ? -1 : 0;
}

/* An id of the file, checked; absent leaves *out. */
static int read_gguf_id(struct tokenizer *t, const struct gguf *g, const char *key, int *out, struct lora_error *err)
{
    if (gguf_get_int(g, key, out, err)) return -1;
    if (*out == -1 || tokenizer_token(t, *out)) return 0;
    return refuse_key(t, key, "an id of the vocabulary", "another", err);
}

static int read_gguf_kind(struct tokenizer *t, const struct gguf *g, struct lora_error *err)
{
    char *kind = NULL;
    int bad = gguf_get_string(g, "tokenizer.ggml.model", &kind, err);
    if (!bad && (!kind || strcmp(kind, "gpt2")))
        bad = refuse_key(t, "tokenizer.ggml.model", "gpt2", kind ? kind : "none", err);
    free(kind);
    return bad;
}

static int read_gguf(struct tokenizer *t, const struct gguf *g, struct lora_error *err)
{
    int add_bos = 0, add_eos = 0, add_space = 0;
    if (read_gguf_kind(t, g, err) || read_gguf_tokens(t, g, err) || read_gguf_merges(t, g, err)
        || read_gguf_pre(t, g, &add_bos, err)
        || read_gguf_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, err)
        || read_gguf_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos, err)
        || gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &add_bos, err)
        || gguf_get_bool(g, "tokenizer.ggml.add_eos_token", &add_eos, err)
        || gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &add_space, err)
        || gguf_get_string(g, "tokenizer.chat_template", &t->chat_template, err))
        return -1;
    if (add_space) t->steps[0].prefix_space = 1;
    if (add_bos && t->bos >= 0 && ids_add(&t->before, t->bos, err)) return -1;
    return add_eos && t->eos >= 0 ? ids_add(&t->after, t->eos, err) : 0;
}

int tokenizer_read_gguf(struct tokenizer *t, const char *path, struct lora_error *err)
{
    struct gguf g;
    int bad;
    t->is_gguf = 1;
    if (gguf_open(&g, path, err)) return -1;
    bad = read_gguf(t, &g, err);
    gguf_close(&g);
    return bad ? -1 : 0;
}

/* ---- saving ---- */

static void put_token(struct text *out, const struct tokenizer *t, int id)
{
    json_put_string(out, t->pool.s + t->tokens[id].text, t->tokens[id].n_text);
}

static const char *truth(int b) { return b ? "true" : "false"; }

static void put_added_tokens(struct text *out, const struct tokenizer *t)
{
    const char *comma = "";
    size_t id, i;
    text_puts(out, "\"added_tokens\":[");
    for (id = 0; id < t->n; id++)       /* the loader of Hugging Face wants them by id */
        for (i = 0; (t->tokens[id].flags & TOKEN_ADDED) && i < t->n_added; i++) {
            const struct added *a = &t->added[i];
            if (a->id != (int)id) continue;
            text_printf(out, "%s\n{\"id\":%d,\"content\":", comma, a->id);
            put_token(out, t, a->id);
            text_printf(out, ",\"single_word\":false,\"lstrip\":%s,\"rstrip\":%s,\"normalized\":%s,\"special\":%s}",
                        truth(a->lstrip), truth(a->rstrip), truth(a->normalized), truth(a->special));
            comma = ",";
        }
    text_puts(out, "],\n");
}

static void put_pre_tokenizer(struct text *out, const struct tokenizer *t)
{
    int i, last = t->n_steps - 1;
    text_puts(out, "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (i = 0; i < last; i++) {
        const struct split_rule *rule = t->steps[i].rule;
        if (rule == &split_digits || rule == &split_digit_runs) {
            text_printf(out, "{\"type\":\"Digits\",\"individual_digits\":%s},", truth(rule == &split_digits));
        } else {
            text_puts(out, "{\"type\":\"Split\",\"pattern\":{\"Regex\":");
            json_put_string(out, rule->pattern, strlen(rule->pattern));
            text_puts(out, "},\"behavior\":\"Isolated\",\"invert\":false},");
        }
    }
    text_printf(out, "{\"type\":\"ByteLevel\",\"add_prefix_space\":%s,\"trim_offsets\":true,\"use_regex\":%s}]},\n",
                truth(t->steps[last].prefix_space), truth(t->steps[last].rule != NULL));
}

static void put_template_ids(struct text *out, const struct tokenizer *t, const struct ids *ids, int text_after)
{
    size_t i;
    for (i = 0; i < ids->n; i++) {
        if (!text_after) text_puts(out, ",");
        text_puts(out, "{\"SpecialToken\":{\"id\":");
        put_token(out, t, ids->v[i]);
        text_puts(out, ",\"type_id\":0}}");
        if (text_after) text_puts(out, ",");
    }
}

static void put_post_processor(struct text *out, const struct tokenizer *t)
{
    const struct ids *both[] = { &t->before, &t->after };
    const char *comma = "";
    size_t k, i;
    text_puts(out, "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[");
    put_template_ids(out, t, &t->before, 1);
    text_puts(out, "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}");
    put_template_ids(out, t, &t->after, 0);
    text_puts(out, "],\"pair\":[{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},{\"Sequence\":{\"id\":\"B\",\"type_id\":1}}],"
                   "\"special_tokens\":{");
    for (k = 0; k < 2; k++)
        for (i = 0; i < both[k]->n; i++) {
            int id = both[k]->v[i];
            if (k && both[0]->n && id == both[0]->v[0]) continue;   /* one key each */
            text_puts(out, comma);
            put_token(out, t, id);
            text_puts(out, ":{\"id\":");
            put_token(out, t, id);
            text_printf(out, ",\"ids\":[%d],\"tokens\":[", id);
            put_token(out, t, id);
            text_puts(out, "]}");
            comma = ",";
        }
    text_puts(out, "}},\n");
}

/* The merges in the order of their ranks; NULL without memory. */
static const struct merge **merges_by_rank(const struct tokenizer *t, size_t *n, struct lora_error *err)
{
    const struct merge **list;
    size_t i;
    for (i = 0, *n = 0; i <= t->merge_mask; i++)
        if (t->merges[i].pair != NO_PAIR && (size_t)t->merges[i].rank >= *n) *n = (size_t)t->merges[i].rank + 1;
    if (!(list = new_array(*n, sizeof *list, err))) return NULL;
    for (i = 0; i <= t->merge_mask; i++)
        if (t->merges[i].pair != NO_PAIR) list[t->merges[i].rank] = &t->merges[i];
    return list;
}

static int put_model(struct text *out, const struct tokenizer *t, struct lora_error *err)
{
    const char *comma = "";
    size_t i, n;
    const struct merge **list = merges_by_rank(t, &n, err);
    if (!list) return -1;
    text_printf(out, "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
                     "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":%s,\n"
                     "\"vocab\":{", truth(t->ignore_merges));
    for (i = 0; i < t->n; i++) {
        if (!t->tokens[i].flags) continue;
        text_puts(out, comma);
        put_token(out, t, (int)i);
        text_printf(out, ":%zu", i);
        comma = ",\n";
    }
    text_puts(out, "},\n\"merges\":[");
    for (i = 0, comma = ""; i < n; i++) {
        struct text pair = { 0 };
        if (!list[i]) continue;         /* given twice: the last rank is the one that counts */
        text_puts(&pair, tokenizer_token(t, (int)(list[i]->pair >> 32)));
        text_puts(&pair, " ");
        text_puts(&pair, tokenizer_token(t, (int)(list[i]->pair & 0xffffffffu)));
        text_puts(out, comma);
        json_put_string(out, pair.s ? pair.s : "", pair.n);
        if (pair.failed) out->failed = 1;
        text_free(&pair);
        comma = ",\n";
    }
    text_puts(out, "]}}\n");
    free(list);
    return 0;
}

static int write_in(const char *directory, const char *name, const void *data, size_t n, struct lora_error *err)
{
    char *path = path_join(directory, name, err);
    int bad = !path || file_write(path, data, n, err);
    free(path);
    return bad ? -1 : 0;
}

/* A tokenizer that did not come from a directory, as tokenizer.json. */
static int write_tokenizer_json(const struct tokenizer *t, const char *directory, struct lora_error *err)
{
    struct text out = { 0 };
    int bad;
    text_puts(&out, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\n");
    put_added_tokens(&out, t);
    text_puts(&out, "\"normalizer\":null,\n");
    put_pre_tokenizer(&out, t);
    put_post_processor(&out, t);
    text_puts(&out, "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
                    "\"use_regex\":true},\n");
    bad = put_model(&out, t, err) || text_check(&out, err)
        || write_in(directory, "tokenizer.json", out.s, out.n, err);
    text_free(&out);
    return bad ? -1 : 0;
}

static void put_config_token(struct text *out, const struct tokenizer *t, const char *key, int id)
{
    if (id < 0) return;
    text_printf(out, " \"%s\": ", key);
    put_token(out, t, id);
    text_puts(out, ",\n");
}

static int write_config(const struct tokenizer *t, const char *directory, struct lora_error *err)
{
    struct text out = { 0 };
    int bad;
    text_puts(&out, "{\n");
    put_config_token(&out, t, "bos_token", t->bos);
    put_config_token(&out, t, "eos_token", t->eos);
    if (t->chat_template) {
        text_puts(&out, " \"chat_template\": ");
        json_put_string(&out, t->chat_template, strlen(t->chat_template));
        text_puts(&out, ",\n");
    }
    /* The class that takes tokenizer.json as it stands. */
    text_puts(&out, " \"clean_up_tokenization_spaces\": false,\n \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n");
    bad = text_check(&out, err) || write_in(directory, "tokenizer_config.json", out.s, out.n, err);
    text_free(&out);
    return bad ? -1 : 0;
}

static int copy_file(const char *from, const char *to, const char *name, struct lora_error *err)
{
    char *path = path_join(from, name, err);
    struct file_map f;
    int bad = !path;
    if (path && file_exists(path) && !(bad = file_open(&f, path, err))) {
        bad = write_in(to, name, f.data, f.size, err);
        file_close(&f);
    }
    free(path);
    return bad ? -1 : 0;
}

int tokenizer_save(const struct tokenizer *t, const char *dir, struct lora_error *err)
{
    static const char *const names[] = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                         "added_tokens.json", "chat_template.jinja" };
    size_t i;
    if (t->is_gguf) return write_tokenizer_json(t, dir, err) || write_config(t, dir, err) ? -1 : 0;
    for (i = 0; i < sizeof names / sizeof *names; i++)
        if (copy_file(t->path, dir, names[i], err)) return -1;
    return 0;
}
