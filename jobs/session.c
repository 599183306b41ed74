/* session.c - see session.h. */
#include "session.h"

#include "../formats/gguf.h"
#include "../formats/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the adapter's run.json: is this what it was trained with? ---- */

static int is_hash(const char *text, uint64_t hash)
{
    char own[24];
    snprintf(own, sizeof own, "%016llx", (unsigned long long)hash);
    return !strcmp(text, own);
}

/* An adapter belongs to the base it was trained on: another one is allowed, and said. */
static int check_weights(const struct session *s, const struct json *root, const char *path, struct lora_error *err)
{
    const char *hash = NULL, *trained_on = NULL;
    struct quantise was, is;
    char text[2][80];
    if (json_get_string(root, "model_hash", &hash, path, err)
        || json_get_string(root, "model_path", &trained_on, path, err)) return -1;
    if (!hash || is_hash(hash, s->model->hash)) return 0;
    if (base_take(&was, root, path, err)) return -1;
    base_of(&is, s->model);
    if (base_same(&was, &is))
        status("warning: the adapter was trained on other weights%s%s", trained_on ? ": " : "", trained_on ? trained_on : "");
    else
        status("warning: the adapter was trained over another base: %s; this one is %s", base_text(text[0], sizeof text[0], &was),
               base_text(text[1], sizeof text[1], &is));
    return 0;
}

static int check_tokenizer(const struct session *s, const struct json *root, const char *path, struct lora_error *err)
{
    const char *hash = NULL;
    uint64_t own;
    if (json_get_string(root, "tokenizer_hash", &hash, path, err)) return -1;
    if (!hash || !s->tokenizer) return 0;
    if (tokenizer_identity(s->tokenizer, &own, err)) return -1;
    if (!is_hash(hash, own))
        status("warning: another tokenizer than the adapter was trained with: %s: expected %s (%s), found %016llx; "
               "its ids may stand for other text: take the base that the adapter was trained on", s->model->path, hash, path,
               (unsigned long long)own);
    return 0;
}

/* The template in use against the one trained with; and, where that is the same, the model's own against what
 * it was then. */
static int check_chat(const struct session *s, const struct json *root, const char *path, struct lora_error *err)
{
    const struct json *used = json_get(root, "chat_template_hash"), *model = json_get(root, "model_template_hash");
    const char *name = NULL, *used_hash = NULL, *model_hash = NULL;
    const struct chat_template *own = NULL;
    uint64_t hash = 0, own_hash = 0;
    if (json_get_string(root, "chat_template", &name, path, err)
        || json_get_string(root, "chat_template_hash", &used_hash, path, err)
        || json_get_string(root, "model_template_hash", &model_hash, path, err)
        || (s->chat && chat_identity(s->chat, s->tokenizer, &hash, err))
        || (s->tokenizer && template_identity(s->tokenizer, &own, &own_hash, err))) return -1;
    if (used && s->chat && !(used_hash && is_hash(used_hash, hash)))
        status("warning: another chat template than the adapter was trained with: expected %s (%s), found %s%s; "
               "leave out --chat-template, or take the base that the adapter was trained on", name ? name : "none", path,
               chat_name(s->chat), name && !strcmp(name, chat_name(s->chat)) ? " with another BOS or EOS" : "");
    else if (model && s->tokenizer && (model_hash ? !is_hash(model_hash, own_hash) : own_hash != 0))
        status("warning: another chat template in the model than the adapter was trained on: %s: expected %s (%s), "
               "found %s; %s", s->model->path, model_hash ? model_hash : "none", path,
               own ? chat_name(own) : own_hash ? "an unknown one" : "none",
               s->chat ? "the adapter's is used" : "none is used");
    return 0;
}

static int check_run(struct session *s, const struct json *root, const char *path, struct lora_error *err)
{
    return check_weights(s, root, path, err) || check_tokenizer(s, root, path, err) || check_chat(s, root, path, err) ? -1 : 0;
}

/* ---- and what it gives ---- */

static int take_prompt(struct session *s, const struct json *root, const char *path, struct lora_error *err)
{
    const char *text = NULL;
    if (json_get_string(root, "prompt_template", &text, path, err)) return -1;
    if (!text || s->prompt_template) return 0;
    s->prompt_template = s->from_run = new_string(text, err);
    if (!s->from_run) return -1;
    status("prompt template of the adapter: %s", text);
    return 0;
}

/* A name may mean several templates: the one that renders as what was trained with. */
static int take_chat(struct session *s, const struct json *root, const char *path, struct lora_error *err)
{
    const char *name = NULL, *hash = NULL;
    const struct chat_template *t = NULL;
    uint64_t own;
    int i;
    if (json_get_string(root, "chat_template", &name, path, err)
        || json_get_string(root, "chat_template_hash", &hash, path, err)) return -1;
    if (!name || s->chat) return 0;
    for (i = 0; hash && (t = chat_variant(name, i)); i++) {
        if (chat_identity(t, s->tokenizer, &own, err)) return -1;
        if (is_hash(hash, own)) break;
    }
    s->chat = t ? t : chat_find(name, err);
    if (s->chat) status("chat template of the adapter: %s", name);
    return s->chat ? 0 : -1;
}

static int take_labels(struct session *s, const struct json *root, const char *path, struct lora_error *err)
{
    const struct json *list = json_get(root, "labels"), *v;
    int is_list = list && list->type == JSON_ARRAY;
    if (!list || list->type == JSON_NULL) return 0;
    for (v = list->child; v; v = v->next) is_list &= v->type == JSON_STRING;
    if (!is_list) {
        fail(err, "cannot use a setting", "%s, \"labels\"", path);
        return expected(err, "an array of texts");
    }
    s->labels = new_array(list->n, sizeof *s->labels, err);
    if (!s->labels) return -1;
    for (v = list->child; v; v = v->next, s->n_labels++)
        if (!(s->labels[s->n_labels] = new_string(v->string, err))) return -1;
    if (s->n_labels) status("labels of the adapter: %d", s->n_labels);
    return 0;
}

static int take_base(struct session *s, const struct json *root, const char *path, struct lora_error *err)
{
    char text[80];
    if (s->base_given) return 0;
    if (base_take(&s->base, root, path, err)) return -1;
    if (s->base.type) status("base quantisation of the adapter: %s", base_text(text, sizeof text, &s->base));
    return 0;
}

static int take_run(struct session *s, const struct json *root, const char *path, struct lora_error *err)
{
    return take_base(s, root, path, err) || take_prompt(s, root, path, err) || take_chat(s, root, path, err) || take_labels(s, root, path, err) ? -1 : 0;
}

/* DIR/run.json; of the checkpoint of a run, the run's, which lies beside it. To be freed; it need not be there. */
static char *run_path(const char *dir, struct lora_error *err)
{
    int is_checkpoint = file_in(dir, "trainer_state.json", err);
    return is_checkpoint < 0 ? NULL : path_join(dir, is_checkpoint ? "../run.json" : "run.json", err);
}

/* What is done with an adapter's run.json: take_run() or check_run(). */
typedef int run_reader(struct session *s, const struct json *root, const char *path, struct lora_error *err);

static int read_run(struct session *s, run_reader *use, const char *dir, struct lora_error *err)
{
    char *path = run_path(dir, err);
    struct json_document d = { NULL, NULL };
    int bad = !path;
    if (path && file_exists(path)) bad = json_read(&d, path, err) || use(s, d.root, path, err);
    json_free(&d);
    free(path);
    return bad ? -1 : 0;
}

/* ---- adapters ---- */

/* DIR or DIR=SCALE into the directory (allocated) and the factor. A directory's name may end like that. */
static char *split_word(const char *word, double *factor, struct lora_error *err)
{
    const char *equals = strrchr(word, '=');
    char *dir = NULL;
    int is_factor = equals && equals > word && !parse_number(equals + 1, factor);
    if (is_factor && !(dir = new_string_n(word, (size_t)(equals - word), err))) return NULL;
    if (is_factor && !file_exists(word)) return dir;
    *factor = 1;
    if (equals && !file_exists(word)) {
        fail(err, "wrong value", "--adapter");
        expected(err, "DIR or DIR=SCALE, with a number for SCALE");
        found(err, "\"%s\"", word);
        return NULL;
    }
    if (dir && file_exists(dir)) {
        fail(err, "an adapter, or another with a scale?", "--adapter");
        found(err, "%s and %s are both there", word, dir);
        hint(err, "%s/ is the one, %s/%s the other", word, dir, equals);
        free(dir);
        return NULL;
    }
    free(dir);
    return new_string(word, err);
}

void warn_unmatched(const struct adapter *a, const char *dir)
{
    if (!a->unmatched.n) return;
    status("warning: %s/adapter_config.json: keys that match no adapted module, and change nothing: %s", dir, a->unmatched.s);
}

int session_read_adapter(struct session *s, struct adapter **a, const char *dir, struct lora_error *err)
{
    if (read_run(s, check_run, dir, err) || adapter_read(a, dir, &s->model->config, err)) return -1;
    warn_unmatched(*a, dir);
    return 0;
}

static int open_adapter(struct session *s, const char *word, struct adapter **a, double *factor,
                        struct lora_error *err)
{
    char *dir = split_word(word, factor, err);
    int bad = !dir || session_read_adapter(s, a, dir, err);
    if (!bad && adapter_is_zero(*a)) status("warning: the adapter %s changes nothing: every B is zero", dir);
    if (!bad && !*factor) status("warning: the adapter %s changes nothing: its scale is 0", dir);
    free(dir);
    return bad ? -1 : 0;
}

/* One with factor 1 is used as it is; else all are joined. */
static int open_adapters(struct session *s, const struct option_list *words, struct lora_error *err)
{
    struct adapter **list = new_array((size_t)words->n, sizeof *list, err);
    double *factor = new_array((size_t)words->n, sizeof *factor, err);
    int i, bad = !list || !factor;
    for (i = 0; !bad && i < words->n; i++) bad = open_adapter(s, words->v[i], &list[i], &factor[i], err);
    if (!bad && words->n == 1 && factor[0] == 1) {
        s->adapter = list[0];
        list[0] = NULL;
    } else if (!bad) {
        bad = adapter_join(&s->adapter, (const struct adapter *const *)list, factor, words->n, err);
    }
    for (i = 0; list && i < words->n; i++) adapter_free(list[i]);
    free(list);
    free(factor);
    return bad ? -1 : 0;
}

/* ---- opening ---- */

int session_tokenizer(struct tokenizer **t, const struct model *m, struct lora_error *err)
{
    int is_there = m->gguf ? gguf_get(m->gguf, "tokenizer.ggml.model") != NULL : tokenizer_is_there(m->path, err);
    *t = NULL;
    return is_there > 0 ? tokenizer_open(t, m->path, err) : is_there;
}

int session_save_beside(const struct model *m, const struct tokenizer *t, const char *dir, struct lora_error *err)
{
    if (t && tokenizer_save(t, dir, err)) return -1;
    return m->gguf ? 0 : file_copy(m->path, dir, "generation_config.json", err);
}

/* The model's own, where no other was named. */
static int open_chat(struct session *s, struct lora_error *err)
{
    const char *template = s->tokenizer ? tokenizer_chat_template(s->tokenizer) : NULL;
    if (s->chat || !template) return 0;
    s->chat = chat_recognise(template, err);
    return s->chat ? 0 : -1;
}

static int open_base(struct session *s, const struct common *c, struct lora_error *err)
{
    struct quantise own;
    base_of(&own, s->model);
    if (base_load(s->model, &s->base, &c->base, s->threads, err)) return -1;
    base_of(&s->base, s->model);
    s->quantised_here = s->base.type && !own.type;
    return 0;
}

/* An end of turn that this tokenizer does not find behind text would be learnt as text. */
static int check_end(const struct session *s, struct lora_error *err)
{
    static const struct message talk[] = { { "user", "x" }, { "assistant", "A" } };
    struct chat_text text = { { 0 }, NULL, 0, 0 };
    struct ids ids = { NULL, 0, 0 };
    const char *end = s->chat && s->tokenizer ? chat_end_of_turn(s->chat) : NULL;
    int id, bad;
    size_t i = 0;
    if (end && !*end) end = data_eos_text(s->tokenizer);
    id = end ? tokenizer_id(s->tokenizer, end) : -1;
    if (id < 0) return 0;
    bad = chat_render(s->chat, talk, 2, 0, data_bos_text(s->tokenizer), data_eos_text(s->tokenizer), &text, err)
          || tokenizer_encode(s->tokenizer, text.text.s, text.text.n, TOKENIZE_SPECIAL, &ids, err);
    for (i = ids.n; !bad && i && ids.v[i - 1] != id; i--) ;
    if (!bad && !i && strstr(text.text.s, end))
        status("warning: the tokenizer does not find %s behind an answer, as %s puts it: the end of a turn is text to the model. "
               "A tokenizer.json in which %s is not \"normalized\" helps", end, chat_name(s->chat), end);
    chat_text_free(&text);
    ids_free(&ids);
    return bad ? -1 : 0;
}

/* What the options say without a model: the kernels, threads, memory, and how a base is to be quantised. */
static int start(struct session *s, const struct common *c, struct lora_error *err)
{
    memset(s, 0, sizeof *s);
    s->threads = usable_threads(c->threads);
    s->seed = (uint64_t)c->seed;
    s->compute = c->compute;
    s->kernels = kernels_find(c->backend, err);
    if (!s->kernels || kernels_check_compute(s->kernels, s->compute, err)) return -1;
    s->max_memory = memory_limit(c, s->kernels);
    s->base_given = c->base.in_4bit >= 0 || c->base.in_8bit >= 0;
    return base_asked(&s->base, &c->base, err);
}

int session_open(struct session *s, const struct common *c, const struct option_list *adapters,
                 int how, struct lora_error *err)
{
    double factor;
    char *dir;
    int bad;
    if (start(s, c, err)) return -1;
    s->prompt_template = c->prompt_template;
    if (c->chat_template && !(s->chat = chat_find(c->chat_template, err))) return -1;
    if (how & SESSION_SHAPE ? shape_open(&s->model, c->model, &s->base, err) : model_open(&s->model, c->model, err)) return -1;
    if (session_tokenizer(&s->tokenizer, s->model, err)) return -1;
    if (s->model->ignored.s) status("passed over in the model: %s", s->model->ignored.s);
    if (adapters && adapters->n) {
        if (!(dir = split_word(adapters->v[0], &factor, err))) return -1;
        bad = read_run(s, take_run, dir, err);
        free(dir);
        if (bad) return -1;
    }
    if (!(how & SESSION_SHAPE) && open_base(s, c, err)) return -1;
    if (!(how & SESSION_RAW) && (open_chat(s, err) || check_end(s, err))) return -1;
    return adapters && adapters->n ? open_adapters(s, adapters, err) : 0;
}

void session_close(struct session *s)
{
    int i;
    adapter_free(s->adapter);
    tokenizer_close(s->tokenizer);
    model_close(s->model);
    for (i = 0; i < s->n_labels; i++) free(s->labels[i]);
    free(s->labels);
    free(s->from_run);
    memset(s, 0, sizeof *s);
}

int session_adapter(const struct session *s) { return s->adapter ? 0 : -1; }

struct lora_setup session_setup(const struct session *s, struct adapter *const *adapter)
{
    return (struct lora_setup){
        .kernels = s->kernels, .threads = s->threads, .compute = s->compute, .model = s->model, .adapters = adapter,
        .n_adapters = *adapter != NULL, .seed = s->seed, .max_memory = s->max_memory
    };
}

int session_lora(const struct session *s, const struct lora_sizes *sizes, struct lora **l, struct lora_error *err)
{
    struct lora_setup setup = session_setup(s, &s->adapter);
    setup.sizes = *sizes;
    if (s->max_memory && !s->kernels->own_memory) {     /* the base that was quantised here and the tokenizer lie beside the arena */
        size_t heap = base_heap(s->model) + tokenizer_memory(s->tokenizer);
        setup.max_memory = s->max_memory > heap ? s->max_memory - heap : 1;
    }
    return lora_open(l, &setup, err);
}

/* ---- rows ---- */

void session_data_options(const struct session *s, const struct data_settings *d, struct data_options *o)
{
    int positions = s->model->config.max_positions;
    if (d->max_length > positions)
        status("warning: --max-length %d is beyond the model's %d positions", d->max_length, positions);
    *o = (struct data_options){
        .tokenizer = s->tokenizer, .chat = s->chat, .prompt_template = s->prompt_template, .vocab = s->model->config.V,
        .text_column = d->text_column, .label_column = d->label_column, .csv_delimiter = d->csv_delimiter,
        .max_length = d->max_length ? d->max_length : positions, .on_overlong = d->on_overlong,
        .labels = (const char *const *)s->labels, .n_labels = s->n_labels
    };
}

void session_note_prompt(const struct session *s, const struct dataset *d)
{
    if (s->prompt_template && !d->prompt_template)
        status("the prompt template is not used: it is for text and label or document and summary, these are rows of %s", d->report.form);
}

void report_rows(const char *name, const struct data_report *r)
{
    status("%s: rows of %s%s%s", name, r->form, r->unused[0] ? "; keys not used: " : "", r->unused);
    status("%s: %lld rows, %lld tokens, %lld of them targets (%.1f %%), the longest row %d", name, r->used,
           r->tokens, r->targets, r->tokens ? 100.0 * (double)r->targets / (double)r->tokens : 0.0, r->longest);
    if (r->copied)
        status("%s: what can be read only once is kept in an unnamed file under %s: %lld bytes", name,
               getenv("TMPDIR") && *getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp", r->copied);
    if (r->dropped_overlong || r->truncated || r->without_targets || r->duplicates)
        status("%s: left out %lld too long and %lld without targets; %lld cut to length; %lld duplicates kept",
               name, r->dropped_overlong, r->without_targets, r->truncated, r->duplicates);
}
