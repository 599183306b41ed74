/* tokenizer_json.c - a tokenizer from a Hugging Face directory: tokenizer.json and what lies beside it.
 * Whatever in them would change ids is either done or refused by name. */
#include "tokenizer_parts.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "../formats/json.h"

/* ---- tokenizer.json ---- */

struct reader {
    struct tokenizer *t;
    const char *file;
    struct lora_error *err;
    int has_post_processor, has_template, decodes_spaces, decodes_bytes, fused;
    int tiktoken;
    int add_bos;                /* where neither a post-processor nor the configuration says */
};

/* "FILE, line N, PLACE: expected WANTED, found WHAT" */
static int refuse(const struct reader *r, const struct json *v, const char *place, const char *wanted, const char *what)
{
    fail(r->err, "tokenizer", "%s, line %d, %s", r->file, v ? v->line : 1, place);
    expected(r->err, "%s", wanted);
    return found(r->err, "%s", what[0] ? what : "none");
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
    if (!model || model->type != JSON_OBJECT || (strcmp(type_of(model), "BPE") && type_of(model)[0]))
        return refuse(r, model, "model.type", "BPE", model ? type_of(model) : "no model");
    if (must_be_empty(r, model, "dropout", "model.dropout")
        || must_be_empty(r, model, "continuing_subword_prefix", "model.continuing_subword_prefix")
        || must_be_empty(r, model, "end_of_word_suffix", "model.end_of_word_suffix")
        || flag(r, model, "byte_fallback", &t->byte_fallback) || flag(r, model, "fuse_unk", &t->fuse_unk)
        || flag(r, model, "ignore_merges", &t->ignore_merges)
        || json_get_string(model, "unk_token", &unk, r->file, r->err)
        || read_vocabulary(r, json_get(model, "vocab")) || read_merges(r, json_get(model, "merges")))
        return -1;
    if (unk && (t->unk = tokenizer_id(t, unk)) < 0)
        return refuse(r, model, "model.unk_token", "a token of the vocabulary", unk);
    return 0;
}

/* An entry of added_tokens, or of tokenizer_config.json's added_tokens_decoder. */
static int read_added(struct reader *r, const struct json *v, int id)
{
    const char *content = NULL;
    struct added a = { 0 };
    int single_word = 0, in_vocabulary;
    a.normalized = 1;
    if (json_get_string(v, "content", &content, r->file, r->err) || flag(r, v, "single_word", &single_word)
        || flag(r, v, "lstrip", &a.lstrip) || flag(r, v, "rstrip", &a.rstrip)
        || flag(r, v, "normalized", &a.normalized) || flag(r, v, "special", &a.special))
        return -1;
    if (!content || !content[0] || id < 0)
        return refuse(r, v, "an added token", "a text and an id from 0 to 4194303", "none");
    if (single_word) return refuse(r, v, "an added token", "single_word false", content);
    a.id = tokenizer_id(r->t, content);
    in_vocabulary = a.id >= 0 && !(r->t->tokens[a.id].flags & TOKEN_OUTSIDE);
    if (a.id < 0 && tokenizer_put(r->t, (size_t)(a.id = id), content, strlen(content), r->err)) return -1;
    if (a.id != id) return refuse(r, v, "an added token", "the id that model.vocab gives it", content);
    if (!in_vocabulary) r->t->tokens[id].flags |= TOKEN_OUTSIDE;
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

/* The text of {"String": text}, or NULL. */
static const char *string_pattern(const struct json *v)
{
    const struct json *string = json_get(json_get(v, "pattern"), "String");
    return string && string->type == JSON_STRING && string->n && strlen(string->string) == string->n ? string->string : NULL;
}

static int read_normalizer(struct reader *r, const struct json *v)
{
    const struct json *part, *list = json_get(v, "normalizers");
    const struct json *regex = json_get(json_get(v, "pattern"), "Regex");
    const char *to = NULL, *from = string_pattern(v);
    if (is_null(v)) return 0;
    if (is_type(v, "Sequence") && list && list->type == JSON_ARRAY) {
        for (part = list->child; part; part = part->next)
            if (read_normalizer(r, part)) return -1;
        return 0;
    }
    if (json_get_string(v, is_type(v, "Prepend") ? "prepend" : "content", &to, r->file, r->err)) return -1;
    if (is_type(v, "NFC")) return tokenizer_put_normalizer(r->t, NORMALIZE_NFC, "", "", r->err);
    if (is_type(v, "Prepend") && to) return tokenizer_put_normalizer(r->t, NORMALIZE_PREPEND, "", to, r->err);
    if (is_type(v, "Replace") && from && to) return tokenizer_put_normalizer(r->t, NORMALIZE_REPLACE, from, to, r->err);
    if (is_type(v, "Replace") && regex && regex->type == JSON_STRING && !strcmp(regex->string, ONE_SPACE_PATTERN)
        && to && !*to)
        return tokenizer_put_normalizer(r->t, NORMALIZE_ONE_SPACE, "", "", r->err);
    return refuse(r, v, "normalizer", "NFC, Prepend, Replace of a text or a Sequence of them", type_of(v));
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
    return tokenizer_put_step(r->t, STEP_CUT, rule, PREFIX_NEVER, r->err);
}

static int read_metaspace(struct reader *r, const struct json *v)
{
    const char *mark = SPACE_MARK, *scheme = "always";
    int prefix_space = 1, split = 1;
    if (json_get_string(v, "replacement", &mark, r->file, r->err) || flag(r, v, "split", &split)
        || json_get_string(v, "prepend_scheme", &scheme, r->file, r->err)
        || flag(r, v, "add_prefix_space", &prefix_space))
        return -1;
    if (strcmp(mark, SPACE_MARK)) return refuse(r, v, "pre_tokenizer Metaspace", "replacement " SPACE_MARK, mark);
    if (split) return refuse(r, v, "pre_tokenizer Metaspace", "split false", "true");
    if (strcmp(scheme, "always") && strcmp(scheme, "first") && strcmp(scheme, "never"))
        return refuse(r, v, "pre_tokenizer Metaspace", "prepend_scheme always, first or never", scheme);
    return tokenizer_put_step(r->t, STEP_MARK_SPACES, NULL, !prefix_space || scheme[0] == 'n' ? PREFIX_NEVER
                              : scheme[0] == 'f' ? PREFIX_FIRST : PREFIX_ALWAYS, r->err);
}

static int read_pre_tokenizer(struct reader *r, const struct json *v)
{
    const struct json *part, *list = json_get(v, "pretokenizers");
    if (is_null(v)) return 0;
    if (r->t->byte_level) return refuse(r, v, "pre_tokenizer", "nothing after ByteLevel", type_of(v));
    if (is_type(v, "Sequence") && list && list->type == JSON_ARRAY) {
        for (part = list->child; part; part = part->next)
            if (read_pre_tokenizer(r, part)) return -1;
        return 0;
    }
    if (is_type(v, "ByteLevel")) {
        int prefix_space = 1, use_regex = 1;
        if (flag(r, v, "add_prefix_space", &prefix_space) || flag(r, v, "use_regex", &use_regex)) return -1;
        r->t->byte_level = 1;
        if (!use_regex && !prefix_space) return 0;
        return tokenizer_put_step(r->t, STEP_CUT, use_regex ? &split_gpt2 : NULL,
                                  prefix_space ? PREFIX_ALWAYS : PREFIX_NEVER, r->err);
    }
    if (is_type(v, "Digits")) {
        int each = 0;
        if (flag(r, v, "individual_digits", &each)) return -1;
        return tokenizer_put_step(r->t, STEP_CUT, each ? &split_digits : &split_digit_runs, PREFIX_NEVER, r->err);
    }
    if (is_type(v, "Split")) return read_split(r, v);
    if (is_type(v, "Metaspace")) return read_metaspace(r, v);
    return refuse(r, v, "pre_tokenizer", "ByteLevel, Digits, Split, Metaspace or a Sequence of them", type_of(v));
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

/* {"id":"A"}: the text; B is the second of a pair. */
static int is_text(const struct json *sequence)
{
    const struct json *id = json_get(sequence, "id");
    return id && id->type == JSON_STRING && !strcmp(id->string, "A");
}

static int read_template(struct reader *r, const struct json *v)
{
    const struct json *single = json_get(v, "single"), *part, *names = json_get(v, "special_tokens");
    int text = 0;
    if (r->has_template++) return refuse(r, v, "post_processor", "TemplateProcessing once", "another");
    if (!single || single->type != JSON_ARRAY)
        return refuse(r, v, "post_processor.single", "an array", "something else");
    for (part = single->child; part; part = part->next) {
        const struct json *token = json_get(part, "SpecialToken");
        if (token && read_template_token(r, token, names, text ? &r->t->after : &r->t->before)) return -1;
        if (!token && (text++ || !is_text(json_get(part, "Sequence"))))
            return refuse(r, part, "post_processor.single", "SpecialToken, or Sequence A once", "another");
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

/* Decoders of characters with a mark for the space. What they do beyond that mark and the bytes of
 * <0x0A> is to take a space from the front: of each token before Fuse, of the text behind it. */
static int read_decoder(struct reader *r, const struct json *v)
{
    const struct json *part, *list = json_get(v, "decoders");
    const char *content = "";
    int start = 0, stop = 0;
    if (is_type(v, "Sequence") && list && list->type == JSON_ARRAY) {
        for (part = list->child; part; part = part->next)
            if (read_decoder(r, part)) return -1;
        return 0;
    }
    if (r->t->byte_level) return is_type(v, "ByteLevel") ? 0 : refuse(r, v, "decoder", "ByteLevel", type_of(v));
    if (is_type(v, "Fuse")) {
        r->fused = 1;
        return 0;
    }
    if (is_type(v, "ByteFallback") && r->t->byte_fallback && !r->fused) {
        r->decodes_bytes = 1;
        return 0;
    }
    if (json_get_string(v, "content", &content, r->file, r->err)) return -1;
    if (is_type(v, "Replace") && string_pattern(v) && !strcmp(string_pattern(v), SPACE_MARK) && !strcmp(content, " ")) {
        r->decodes_spaces = 1;
        return 0;
    }
    if (is_type(v, "Metaspace") && !r->fused) {
        const struct step *step = r->t->n_steps ? &r->t->steps[r->t->n_steps - 1] : NULL;
        r->decodes_spaces = 1;
        if (!step || step->prefix != PREFIX_NEVER) r->t->strip = STRIP_FIRST_TOKEN;
        return 0;
    }
    if (is_type(v, "Strip") && r->fused) {
        if (json_get_int(v, "start", &start, r->file, r->err) || json_get_int(v, "stop", &stop, r->file, r->err)) return -1;
        if (!strcmp(content, " ") && (start == 0 || start == 1) && !stop) {
            r->t->strip = start ? STRIP_SPACE : STRIP_NOTHING;
            return 0;
        }
    }
    return refuse(r, v, "decoder", "ByteLevel; or Replace of " SPACE_MARK " by a space, ByteFallback with model.byte_fallback, "
                  "Metaspace; Fuse and behind it Strip of one space", type_of(v));
}

/* truncation and padding are passed over, as Transformers does unless a call asks for them. */
static int read_tokenizer_json(struct reader *r, const struct json *root)
{
    if (root->type != JSON_OBJECT) return refuse(r, root, "the file", "an object", "something else");
    r->has_post_processor = !is_null(json_get(root, "post_processor"));
    if (read_model(r, json_get(root, "model")) || read_added_tokens(r, json_get(root, "added_tokens"))
        || read_normalizer(r, json_get(root, "normalizer")) || read_pre_tokenizer(r, json_get(root, "pre_tokenizer"))
        || read_post_processor(r, json_get(root, "post_processor")) || read_decoder(r, json_get(root, "decoder")))
        return -1;
    if (!r->t->byte_level && !r->decodes_spaces)
        return refuse(r, json_get(root, "decoder"), "decoder", "ByteLevel, Metaspace or Replace of " SPACE_MARK, "none of them");
    if (!r->t->byte_level && r->t->byte_fallback && !r->decodes_bytes)
        return refuse(r, json_get(root, "decoder"), "decoder", "ByteFallback, as the model has it", "none");
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
    int add_bos = r->add_bos, add_eos = 0;
    if (root->type != JSON_OBJECT) return refuse(r, root, "the file", "an object", "something else");
    for (v = v ? v->child : NULL; v; v = v->next) {
        long long id;
        if (parse_integer(v->key ? v->key : "", &id) || id < 0 || id >= TOKENIZER_MOST_IDS) id = -1;
        if (read_added(r, v, (int)id)) return -1;
    }
    if (r->tiktoken && tokenizer_fill_tiktoken(t, r->err)) return -1;
    if (read_token_name(r, root, "bos_token", &t->bos) || read_token_name(r, root, "eos_token", &t->eos)
        || make_special(r, t->bos) || make_special(r, t->eos) || read_other_names(r, root) || read_chat_template(r, json_get(root, "chat_template"))
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

/* The first *.tiktoken of the directory, or NULL; owned by the caller. */
static char *find_tiktoken(const char *directory, struct lora_error *err)
{
    DIR *d = opendir(directory);
    struct dirent *e;
    char *path = NULL;
    while (d && !path && (e = readdir(d))) {
        size_t n = strlen(e->d_name);
        if (n > 9 && !strcmp(e->d_name + n - 9, ".tiktoken")) path = path_join(directory, e->d_name, err);
    }
    if (d) closedir(d);
    return path;
}

int tokenizer_is_there(const char *directory, struct lora_error *err)
{
    static const char *const names[] = { "tokenizer.json", "tokenizer.model" };
    struct lora_error failed = { "", "", "", "", "" };
    char *path;
    int i, is_there = 0;
    for (i = 0; i < 2 && !is_there; i++) {
        if (!(path = path_join(directory, names[i], err))) return -1;
        is_there = file_exists(path);
        free(path);
    }
    if (is_there) return 1;
    path = find_tiktoken(directory, &failed);
    is_there = path != NULL;
    free(path);
    if (!failed.what[0]) return is_there;
    if (err) *err = failed;
    return -1;
}

/* Where there is no tokenizer.json: tokenizer.model or *.tiktoken. */
static int read_other_vocabulary(struct reader *r, const char *directory)
{
    struct tokenizer *t = r->t;
    char *path = path_join(directory, "tokenizer.model", r->err);
    int bad;
    if (path && !file_exists(path)) {
        free(path);
        path = find_tiktoken(directory, r->err);
    }
    if (!path) {
        fail(r->err, "tokenizer", "%s", directory);
        expected(r->err, "a directory with tokenizer.json, tokenizer.model or a *.tiktoken file");
        return found(r->err, is_directory(directory) ? "none of them" : "no such directory");
    }
    bad = tokenizer_read_model(t, path, r->err);
    free(path);
    r->tiktoken = t->byte_level;
    r->add_bos = !t->byte_level || t->ignore_merges;    /* Llama's own rule; Qwen adds none */
    return bad;
}

int tokenizer_read_directory(struct tokenizer *t, const char *directory, struct lora_error *err)
{
    struct reader r = { 0 };
    char *config = path_join(directory, "tokenizer_config.json", err);
    int bad = !config, there = config && file_exists(config);
    free(config);
    r.t = t;
    r.err = err;
    bad = bad || read_file(&r, directory, "tokenizer.json", read_tokenizer_json)
        || (!t->n && read_other_vocabulary(&r, directory))
        || read_file(&r, directory, "tokenizer_config.json", read_config)
        || (r.tiktoken && tokenizer_fill_tiktoken(t, err))
        || (!there && r.add_bos && t->bos >= 0 && ids_add(&t->before, t->bos, err))
        || read_file(&r, directory, "special_tokens_map.json", read_names)
        || read_file(&r, directory, "config.json", read_model_config)
        || read_template_file(t, directory, err);
    return bad ? -1 : 0;
}
