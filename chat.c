/* chat.c - see chat.h. Templates are rows of a table; a model's own template text, which is a program
 * in the Jinja language, is not run but recognised. */
#include "chat.h"

#include <stdlib.h>
#include <string.h>

/* What stands around the content of a role. */
struct turn {
    const char *before, *after;
};

struct chat_template {
    const char *name;
    const char *const *forms;       /* the model's own texts that mean this, in normal form; NULL-ended */
    int bos;                        /* the text starts with BOS */
    const char *default_system;     /* the system turn put first where there is none, or NULL */
    struct turn system, user, assistant;
    const char *end_of_turn;        /* after the assistant's content, and trained; "": EOS */
    const char *generation;         /* what asks for an answer */
};

/* ---- the templates ---- */

#define CHATML_LOOP "{%formessageinmessages%}"
#define CHATML_TURN "{{'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>\n'}}{%endfor%}"
#define CHATML_ASK "{%ifadd_generation_prompt%}{{'<|im_start|>assistant\n'}}{%endif%}"
#define CHATML_ASK_DEFAULT "{%ifnotadd_generation_promptisdefined%}{%setadd_generation_prompt=false%}{%endif%}"
#define CHATML_ROLES { "<|im_start|>system\n", "<|im_end|>\n" }, { "<|im_start|>user\n", "<|im_end|>\n" }, \
    { "<|im_start|>assistant\n", "\n" }, "<|im_end|>", "<|im_start|>assistant\n"
#define SMOLLM2_SYSTEM "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
#define IF_NO_SYSTEM "{%ifloop.firstandmessages[0].role!='system'%}"

static const char *const chatml_forms[] = {
    CHATML_LOOP CHATML_TURN CHATML_ASK,
    CHATML_ASK_DEFAULT CHATML_LOOP CHATML_TURN CHATML_ASK,
    NULL
};
static const char *const chatml_bos_forms[] = {
    "{{bos_token}}" CHATML_LOOP CHATML_TURN CHATML_ASK,
    NULL
};
static const char *const smollm2_forms[] = {
    CHATML_LOOP IF_NO_SYSTEM "{{'<|im_start|>system\n" SMOLLM2_SYSTEM "<|im_end|>\n'}}{%endif%}" CHATML_TURN CHATML_ASK,
    NULL
};

/* The first row of a name is the one that the name means. */
static const struct chat_template templates[] = {
    { "chatml", chatml_forms, 0, NULL, CHATML_ROLES },
    { "chatml", chatml_bos_forms, 1, NULL, CHATML_ROLES },
    { "smollm2", smollm2_forms, 0, SMOLLM2_SYSTEM, CHATML_ROLES },
};
enum { N_TEMPLATES = sizeof templates / sizeof *templates };

/* ---- recognising ---- */

/* The normal form of a Jinja text, under the settings of Transformers (a block takes the line break
 * after it and the white space of its line before it): what is printed as it stands becomes
 * {{'...'}}, neighbouring {{...}} are joined, comments and white space in the code go, ['key'] becomes
 * .key, "..." becomes '...', and escapes in strings become what they mean. */
struct normal {
    struct text out;
    size_t bracket;             /* where "[" stands when a string follows it, or NONE */
};
#define NONE ((size_t)-1)

static int ends_with(const struct text *t, const char *end)
{
    size_t n = strlen(end);
    return t->n >= n && !memcmp(t->s + t->n - n, end, n);
}

static void drop(struct text *t, size_t n)
{
    t->n -= n;
    t->s[t->n] = 0;
}

static int is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/* Opens a string constant, or goes on with the one that "+" joins it to. */
static void open_string(struct normal *f)
{
    if (ends_with(&f->out, "'+")) drop(&f->out, 2);
    else text_puts(&f->out, "'");
}

static void put_character(struct normal *f, char c)
{
    if (c == '\'') text_puts(&f->out, "\\");
    text_add(&f->out, &c, 1);
}

static void open_expression(struct normal *f)
{
    if (ends_with(&f->out, "}}")) {
        drop(&f->out, 2);
        text_puts(&f->out, "+");
    } else {
        text_puts(&f->out, "{{");
    }
}

/* Text outside of tags, from s to end. */
static void put_outside(struct normal *f, const char *s, const char *end)
{
    if (s == end) return;
    open_expression(f);
    open_string(f);
    for (; s < end; s++) put_character(f, *s);
    text_puts(&f->out, "'}}");
}

/* The string constant at s, which starts with its quote; returns what follows it, NULL if it has no end. */
static const char *put_string(struct normal *f, const char *s, const char *end)
{
    char quote = *s++;
    f->bracket = f->out.n && f->out.s[f->out.n - 1] == '[' ? f->out.n - 1 : NONE;
    open_string(f);
    for (; s < end && *s != quote; s++) {
        char c = *s;
        if (c == '\\' && s + 1 < end) {
            c = *++s;
            c = (char)(c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c);
        }
        put_character(f, c);
    }
    text_puts(&f->out, "'");
    return s < end ? s + 1 : NULL;
}

/* The code of a tag, from s to end; -1 when a string in it has no end. */
static int put_code(struct normal *f, const char *s, const char *end)
{
    f->bracket = NONE;
    while (s && s < end) {
        if (*s == '\'' || *s == '"') {
            s = put_string(f, s, end);
            continue;
        }
        if (*s == ']' && f->bracket != NONE && ends_with(&f->out, "'")) {
            f->out.s[f->bracket] = '.';
            memmove(f->out.s + f->bracket + 1, f->out.s + f->bracket + 2, f->out.n - f->bracket - 2);
            drop(&f->out, 2);
        } else if (!is_space(*s)) {
            text_add(&f->out, s, 1);
        }
        if (!is_space(*s)) f->bracket = NONE;
        s++;
    }
    return s ? 0 : -1;
}

/* The end of the tag that starts at s: its "%}", "}}" or "#}", outside of strings; NULL without one. */
static const char *tag_end(const char *s)
{
    char closing = (char)(s[1] == '{' ? '}' : s[1]), quote = 0;
    for (s += 2; *s; s++) {
        if (quote && *s == '\\' && s[1]) s++;
        else if (quote) quote = (char)(*s == quote ? 0 : quote);
        else if (closing != '#' && (*s == '\'' || *s == '"')) quote = *s;
        else if (*s == closing && s[1] == '}') return s;
    }
    return NULL;
}

static const char *next_tag(const char *s)
{
    for (; *s; s++)
        if (*s == '{' && (s[1] == '{' || s[1] == '%' || s[1] == '#')) break;
    return s;
}

/* Where the text s before a tag (or before the end, tag[0] = 0) ends once its white space is trimmed. */
static const char *trim_before(const char *s, const char *tag, int starts_line)
{
    const char *end = tag;
    if (!tag[0]) return end > s && end[-1] == '\n' ? end - 1 : end;
    if (tag[2] == '-') {
        while (end > s && is_space(end[-1])) end--;
    } else if (tag[1] != '{' && tag[2] != '+') {
        while (end > s && (end[-1] == ' ' || end[-1] == '\t')) end--;
        if (end > s ? end[-1] != '\n' : !starts_line) end = tag;    /* a block is not first in its line */
    }
    return end;
}

/* -1 without an error when the text is not Jinja. */
static int normal_form(struct normal *f, const char *s)
{
    int starts_line = 1;
    while (*s) {
        const char *tag = next_tag(s), *code, *code_end;
        put_outside(f, s, trim_before(s, tag, starts_line));
        if (!*tag) break;
        if (!(code_end = tag_end(tag))) return -1;
        code = tag + 2 + (tag[2] == '-' || tag[2] == '+');
        s = code_end + 2;
        if (tag[1] == '{') open_expression(f);
        if (tag[1] == '%') text_puts(&f->out, "{%");
        if (tag[1] != '#' && put_code(f, code, code_end - (code_end > code && code_end[-1] == '-'))) return -1;
        if (tag[1] != '#') text_puts(&f->out, tag[1] == '{' ? "}}" : "%}");
        starts_line = 0;
        if (code_end[-1] == '-') {
            while (is_space(*s)) s++;
        } else if (tag[1] != '{' && *s == '\n') {
            s++;
            starts_line = 1;
        }
    }
    return 0;
}

static void add_names(struct text *list)
{
    int i;
    for (i = 0; i < N_TEMPLATES; i++)
        if (!i || strcmp(templates[i].name, templates[i - 1].name))
            text_printf(list, "%s%s", i ? " " : "", templates[i].name);
}

/* The error that lists the names. */
static const struct chat_template *unknown(const char *what, const char *name, struct lora_error *err)
{
    struct text list = { 0 };
    add_names(&list);
    fail(err, "chat template", "%s", what);
    expected(err, "one of: %s", list.s ? list.s : "");
    found(err, "%s", name);
    text_free(&list);
    return NULL;
}

const struct chat_template *chat_find(const char *name, struct lora_error *err)
{
    int i;
    for (i = 0; i < N_TEMPLATES; i++)
        if (!strcmp(name, templates[i].name)) return &templates[i];
    return unknown("unknown name", name, err);
}

const struct chat_template *chat_recognise(const char *template_text, struct lora_error *err)
{
    struct normal f = { { 0 }, NONE };
    const struct chat_template *t = NULL;
    int i, k, good = !normal_form(&f, template_text);
    if (f.out.failed) {
        fail_memory(err, "a chat template", strlen(template_text));
        text_free(&f.out);
        return NULL;
    }
    for (i = 0; i < N_TEMPLATES && good && !t; i++)
        for (k = 0; templates[i].forms[k] && !t; k++)
            if (f.out.s && !strcmp(f.out.s, templates[i].forms[k])) t = &templates[i];
    text_free(&f.out);
    if (t) return t;
    unknown("the model's own is not a known one", template_text, err);
    hint(err, "--chat-template NAME takes one of these in its place");
    return NULL;
}

const char *chat_name(const struct chat_template *t) { return t->name; }
const char *chat_end_of_turn(const struct chat_template *t) { return t->end_of_turn; }

/* ---- rendering ---- */

void chat_text_free(struct chat_text *t)
{
    text_free(&t->text);
    free(t->targets);
    memset(t, 0, sizeof *t);
}

static const struct turn *turn_of(const struct chat_template *t, const char *role)
{
    return !strcmp(role, "system") ? &t->system : !strcmp(role, "user") ? &t->user
         : !strcmp(role, "assistant") ? &t->assistant : NULL;
}

static int put_turn(const struct chat_template *t, const struct message *m, size_t number, const char *eos,
                    struct chat_text *out, struct lora_error *err)
{
    const struct turn *turn = turn_of(t, m->role);
    struct span span;
    if (!turn) {
        fail(err, "chat template", "%s, message %zu", t->name, number);
        expected(err, "a role of: system user assistant");
        return found(err, "%s", m->role);
    }
    text_puts(&out->text, turn->before);
    span.start = out->text.n;
    text_puts(&out->text, m->content);
    if (turn == &t->assistant) {
        text_puts(&out->text, t->end_of_turn[0] ? t->end_of_turn : eos);
        span.end = out->text.n;
        if (grow_array((void **)&out->targets, &out->capacity, out->n_targets + 1, sizeof span, err)) return -1;
        out->targets[out->n_targets++] = span;
    }
    text_puts(&out->text, turn->after);
    return 0;
}

int chat_render(const struct chat_template *t, const struct message *messages, size_t n, int add_generation_prompt,
                const char *bos, const char *eos, struct chat_text *out, struct lora_error *err)
{
    size_t i;
    out->text.n = out->n_targets = 0;
    if (!n) {
        fail(err, "chat template", "%s", t->name);
        expected(err, "at least one message");
        return found(err, "none");
    }
    if (t->bos) text_puts(&out->text, bos);
    if (t->default_system && strcmp(messages[0].role, "system")) {
        text_puts(&out->text, t->system.before);
        text_puts(&out->text, t->default_system);
        text_puts(&out->text, t->system.after);
    }
    for (i = 0; i < n; i++)
        if (put_turn(t, &messages[i], i + 1, eos, out, err)) return -1;
    if (add_generation_prompt) text_puts(&out->text, t->generation);
    return text_check(&out->text, err);
}

/* ---- messages from JSON ---- */

static int refuse_message(const struct json *v, const char *file, const char *wanted, const char *what,
                          struct lora_error *err)
{
    fail(err, "cannot read messages", "%s, line %d", file, v->line);
    expected(err, "%s", wanted);
    return found(err, "%s", what);
}

/* A text without NUL bytes under the key; NULL with an error otherwise. */
static const char *text_of(const struct json *m, const char *key, const char *file, struct lora_error *err)
{
    const struct json *v = json_get(m, key);
    if (v && v->type == JSON_STRING && strlen(v->string) == v->n) return v->string;
    refuse_message(v ? v : m, file, strcmp(key, "role") ? "\"content\" to be a text" : "\"role\" to be a text",
                   !v ? "none" : v->type == JSON_STRING ? "a NUL character in it" : "something else", err);
    return NULL;
}

static int read_message(const struct json *m, const char *file, struct message *out, struct lora_error *err)
{
    const struct json *v;
    if (m->type != JSON_OBJECT) return refuse_message(m, file, "a message {\"role\", \"content\"}", "something else", err);
    for (v = m->child; v; v = v->next)
        if (strcmp(v->key, "role") && strcmp(v->key, "content") && v->type != JSON_NULL)
            return refuse_message(v, file, "role and content alone in a message", v->key, err);
    out->role = text_of(m, "role", file, err);
    out->content = out->role ? text_of(m, "content", file, err) : NULL;
    return out->content ? 0 : -1;
}

int chat_read_messages(const struct json *v, const char *file, struct message **out, size_t *n,
                       struct lora_error *err)
{
    const struct json *list = v->type == JSON_OBJECT ? json_get(v, "messages") : v, *m;
    if (!list || list->type != JSON_ARRAY || !list->n)
        return refuse_message(list ? list : v, file, "an array of messages, or an object with one as \"messages\"",
                              list && list->type == JSON_ARRAY ? "an empty one" : "something else", err);
    if (!(*out = new_array(list->n, sizeof **out, err))) return -1;
    for (m = list->child, *n = 0; m; m = m->next)
        if (read_message(m, file, &(*out)[(*n)++], err)) {
            free(*out);
            *out = NULL;
            return -1;
        }
    return 0;
}
