/* tokenizer_save.c - a tokenizer's files copied, or written as tokenizer.json. */
#include "tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#include "../formats/json.h"

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

static void put_string(struct text *out, const char *s) { json_put_string(out, s, strlen(s)); }

static void put_normalizer(struct text *out, const struct tokenizer *t)
{
    int i;
    text_puts(out, "\"normalizer\":");
    if (!t->n_normalizers) {
        text_puts(out, "null,\n");
        return;
    }
    text_puts(out, "{\"type\":\"Sequence\",\"normalizers\":[");
    for (i = 0; i < t->n_normalizers; i++) {
        const struct normalizer *z = &t->normalizers[i];
        if (i) text_puts(out, ",");
        switch (z->kind) {
        case NORMALIZE_NFC:
            text_puts(out, "{\"type\":\"NFC\"}");
            break;
        case NORMALIZE_PREPEND:
            text_puts(out, "{\"type\":\"Prepend\",\"prepend\":");
            put_string(out, t->pool.s + z->to);
            text_puts(out, "}");
            break;
        case NORMALIZE_ONE_SPACE:
            text_puts(out, "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"" ONE_SPACE_PATTERN "\"},\"content\":\"\"}");
            break;
        default:
            text_puts(out, "{\"type\":\"Replace\",\"pattern\":{\"String\":");
            put_string(out, t->pool.s + z->from);
            text_puts(out, "},\"content\":");
            put_string(out, t->pool.s + z->to);
            text_puts(out, "}");
        }
    }
    text_puts(out, "]},\n");
}

static void put_cut(struct text *out, const struct split_rule *rule)
{
    if (rule == &split_digits || rule == &split_digit_runs) {
        text_printf(out, "{\"type\":\"Digits\",\"individual_digits\":%s},", truth(rule == &split_digits));
        return;
    }
    text_puts(out, "{\"type\":\"Split\",\"pattern\":{\"Regex\":");
    put_string(out, rule->pattern);
    text_puts(out, "},\"behavior\":\"Isolated\",\"invert\":false},");
}

/* Cuts, and ByteLevel at the end, which cuts by GPT-2's rule where that is the last one. */
static void put_pre_tokenizer(struct text *out, const struct tokenizer *t)
{
    int i, n = t->n_steps, gpt2 = n && t->steps[n - 1].rule == &split_gpt2;
    text_puts(out, "\"pre_tokenizer\":");
    if (!t->byte_level) {
        text_puts(out, "null,\n");
        return;
    }
    text_puts(out, "{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (i = 0; i < n - gpt2; i++)
        if (t->steps[i].rule) put_cut(out, t->steps[i].rule);
    text_printf(out, "{\"type\":\"ByteLevel\",\"add_prefix_space\":%s,\"trim_offsets\":true,\"use_regex\":%s}]},\n",
                truth(n && t->steps[n - 1].prefix), truth(gpt2));
}

static void put_decoder(struct text *out, const struct tokenizer *t)
{
    if (t->byte_level)
        text_puts(out, "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
                       "\"use_regex\":true},\n");
    else
        text_printf(out, "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"
                    "\"" SPACE_MARK "\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
                    "{\"type\":\"Strip\",\"content\":\" \",\"start\":%d,\"stop\":0}]},\n", t->strip == STRIP_SPACE);
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
    for (i = 0, *n = 0; i < t->merge_size; i++)
        if (t->merges[i].pair != NO_PAIR && (size_t)t->merges[i].rank >= *n) *n = (size_t)t->merges[i].rank + 1;
    if (!(list = new_array(*n, sizeof *list, err))) return NULL;
    for (i = 0; i < t->merge_size; i++)
        if (t->merges[i].pair != NO_PAIR) list[t->merges[i].rank] = &t->merges[i];
    return list;
}

static int put_model(struct text *out, const struct tokenizer *t, struct lora_error *err)
{
    const char *comma = "";
    size_t i, n;
    const struct merge **list = merges_by_rank(t, &n, err);
    if (!list) return -1;
    text_puts(out, "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":");
    if (t->unk >= 0) put_token(out, t, t->unk);
    else text_puts(out, "null");
    text_printf(out, ",\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":%s,"
                     "\"byte_fallback\":%s,\"ignore_merges\":%s,\n\"vocab\":{",
                truth(t->fuse_unk), truth(t->byte_fallback), truth(t->ignore_merges));
    for (i = 0; i < t->n; i++) {
        if ((t->tokens[i].flags & (TOKEN_THERE | TOKEN_OUTSIDE)) != TOKEN_THERE) continue;
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

static int write_in(const char *directory, const char *name, const struct text *data, struct lora_error *err)
{
    char *path = path_join(directory, name, err);
    int bad = !path || file_write(path, data->s, data->n, err);
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
    put_normalizer(&out, t);
    put_pre_tokenizer(&out, t);
    put_post_processor(&out, t);
    put_decoder(&out, t);
    bad = put_model(&out, t, err) || text_check(&out, err)
        || write_in(directory, "tokenizer.json", &out, err);
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
    bad = text_check(&out, err) || write_in(directory, "tokenizer_config.json", &out, err);
    text_free(&out);
    return bad ? -1 : 0;
}

int tokenizer_save(const struct tokenizer *t, const char *dir, struct lora_error *err)
{
    static const char *const names[] = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                         "added_tokens.json", "chat_template.jinja", "tokenizer.model" };
    char *json = path_join(t->path, "tokenizer.json", err);
    int write = t->is_gguf || (json && !file_exists(json)), bad = !json;
    size_t i;
    free(json);
    for (i = 0; i < sizeof names / sizeof *names && !bad && !t->is_gguf; i++) bad = file_copy(t->path, dir, names[i], err);
    if (!bad && t->is_gguf) bad = write_config(t, dir, err);
    if (!bad && write) bad = write_tokenizer_json(t, dir, err);
    return bad ? -1 : 0;
}
