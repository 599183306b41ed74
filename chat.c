/* chat.c - see chat.h. Templates are rows of a table; a model's own template text, which is a program
 * in the Jinja language, is not run but recognised. */
#include "chat.h"

#include <stdlib.h>
#include <string.h>

#include "formats/unicode.h"

/* What stands around the content of a role. */
struct turn {
    const char *before, *after;
};

enum {
    BOS_FIRST = 1,          /* the text starts with BOS */
    BOS_PER_USER = 2,       /* each user turn does */
    EOS_AFTER_ALL = 4,      /* EOS after the content of every role */
    EOS_UNLESS_ASKED = 8,   /* EOS at the end where no answer is asked for */
    TRIM_ALL = 16,          /* contents lose the white space around them */
    TRIM_ANSWERS = 32,      /* the assistant's do */
    ALTERNATES = 64,        /* user and assistant in turn, after a system message that may come first */
    SYSTEM_FIRST = 128,     /* a system message comes first or not at all */
    NO_SYSTEM = 256,
    ALWAYS_ASKS = 512,      /* the text ends with what asks for an answer, asked or not */
    EMPTY_SYSTEM_GONE = 1024,
    SYSTEM_IN_FIRST_USER = 2048,    /* system.before and .after stand around it, inside the user's content */
    SYSTEM_IN_LAST_USER = 4096,     /* the original drops it where an answer comes last: not here, since
                                       generation met it before that answer */
    THINKS = 8192,          /* Qwen3: see put_thought() */
    DATED = 16384           /* Llama 3.1: the first system turn begins with a date */
};

struct chat_template {
    const char *name;
    const char *const *forms;       /* the model's own texts that mean this, in normal form; NULL-ended */
    const uint64_t *hashes;         /* or the hashes of those; 0-ended */
    int flags;
    const char *default_system;     /* the system turn put first where there is none, or NULL */
    struct turn system, user;
    const char *assistant;          /* before the answer, not trained: what asks for it */
    struct turn answer;             /* around the assistant's content, trained */
    const char *end_of_turn;        /* ends an answer, trained; "": EOS */
    const char *after;              /* what follows, not trained */
};

/* ---- the templates ---- */

#define CHATML(role) "<|im_start|>" role "\n"
#define CHATML_ROLES { CHATML("system"), "<|im_end|>\n" }, { CHATML("user"), "<|im_end|>\n" }, CHATML("assistant"), \
    { "", "" }, "<|im_end|>", "\n"
#define LLAMA3(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define LLAMA3_REST { LLAMA3("user"), "<|eot_id|>" }, LLAMA3("assistant"), { "", "" }, "<|eot_id|>", ""
#define LLAMA3_DATE "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
#define TAGS(end) { "<|system|>\n", end }, { "<|user|>\n", end }, "<|assistant|>\n", { "", "" }
#define VICUNA_SYSTEM "A chat between a curious user and an artificial intelligence assistant. The assistant gives " \
    "helpful, detailed, and polite answers to the user's questions."
#define ALPACA_SYSTEM "Below is an instruction that describes a task. Write a response that appropriately completes " \
    "the request."
#define SMOLLM2_SYSTEM "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
#define QWEN2_SYSTEM "You are a helpful assistant."
#define QWEN25_SYSTEM "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

/* Parts of normal forms. */
#define EACH "{%for message in messages%}"
#define CHATML_TURN "{{'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>\n'}}"
#define CHATML_END CHATML_TURN "{%endfor%}{%if add_generation_prompt%}{{'<|im_start|>assistant\n'}}{%endif%}"
#define ASK_IS_DEFINED "{%if not add_generation_prompt is defined%}{%set add_generation_prompt=false%}{%endif%}"
#define IF_NO_SYSTEM "{%if loop.first and messages[0].role!='system'%}"
#define DEFAULT_SYSTEM(text) "{{'<|im_start|>system\n" text "<|im_end|>\n'}}"
#define LLAMA3_TURN "'<|start_header_id|>'+message.role+'<|end_header_id|>\n\n'+message.content|trim+'<|eot_id|>'"
#define LLAMA3_EACH "{%set loop_messages=messages%}{%for message in loop_messages%}{%set content=" LLAMA3_TURN \
    "%}{%if loop.index0==0%}{%set content=bos_token+content%}{%endif%}{{content}}{%endfor%}"
#define LLAMA3_ASK "{{'<|start_header_id|>assistant<|end_header_id|>\n\n'}}"
#define PHI3_TURN(role) "{{'<|" role "|>\n'+message.content+'<|end|>\n'}}"
#define PHI3_FORM(system) EACH "{%if message.role=='system'" system "%}" PHI3_TURN("system") "{%elif message.role=='user'%}" \
    PHI3_TURN("user") "{%elif message.role=='assistant'%}" PHI3_TURN("assistant") \
    "{%endif%}{%endfor%}{%if add_generation_prompt%}{{'<|assistant|>\n'}}{%else%}{{eos_token}}{%endif%}"
#define ZEPHYR_TURN(role) "{{'<|" role "|>\n'+message.content+eos_token+'\n'}}"

static const char *const none[] = { NULL };
static const char *const chatml[] = { EACH CHATML_END, ASK_IS_DEFINED EACH CHATML_END, NULL };
static const char *const chatml_bos[] = { "{{bos_token}}" EACH CHATML_END, NULL };
static const char *const smollm2[] = { EACH IF_NO_SYSTEM DEFAULT_SYSTEM(SMOLLM2_SYSTEM) "{%endif%}" CHATML_END, NULL };
static const char *const qwen2[] = { EACH IF_NO_SYSTEM DEFAULT_SYSTEM(QWEN2_SYSTEM) "{%endif%}" CHATML_END, NULL };
static const char *const llama3[] = { LLAMA3_EACH "{%if add_generation_prompt%}" LLAMA3_ASK "{%endif%}", NULL };
static const char *const llama3_asks[] = { LLAMA3_EACH LLAMA3_ASK, NULL };
static const char *const zephyr[] = {
    EACH "{%if message.role=='user'%}" ZEPHYR_TURN("user") "{%elif message.role=='system'%}" ZEPHYR_TURN("system")
    "{%elif message.role=='assistant'%}" ZEPHYR_TURN("assistant")
    "{%endif%}{%if loop.last and add_generation_prompt%}{{'<|assistant|>\n'}}{%endif%}{%endfor%}", NULL
};
static const char *const phi3[] = { PHI3_FORM(""), NULL };
static const char *const phi35[] = { PHI3_FORM("and message.content"), NULL };

/* Of long texts, most of which is about tools, the hash_bytes() of their normal forms; 0 at the end. */
static const uint64_t no_hash[] = { 0 };
static const uint64_t llama2[] = { 0x5aa6f31a72b60947, 0 };     /* Llama-2-13b-chat-hf */
static const uint64_t llama31[] = {
    0x344895ba5e75a6be,                                         /* Llama-3.1-8B-Instruct, 3.3-70B-Instruct */
    0x4b9354705d8e5309, 0                                       /* Llama-3.2-3B-Instruct */
};
static const uint64_t mistral1[] = { 0x7e762149287dbc04, 0 };   /* Mistral-7B-Instruct-v0.2 */
static const uint64_t mistral1_old[] = { 0x212804f97b6a6201, 0 };   /* the same before it had a system role; Mixtral-8x7B */
static const uint64_t mistral3[] = { 0x026d5a70180ffb47, 0 };   /* Mistral-Large-Instruct-2407 */
static const uint64_t tekken[] = { 0xa1d7bb059f1313e5, 0 };     /* Mistral-Nemo-Instruct-2407 */
static const uint64_t qwen25[] = { 0xaf758f986b502bd7, 0 };     /* Qwen2.5-7B-Instruct and the other sizes */
static const uint64_t qwen3[] = { 0x6c21c9a5a0bf58d5, 0x2bd0b89c718dcb52, 0 };  /* Qwen3-0.6B, two editions */

/* The first row of a name is the one that the name means. */
static const struct chat_template templates[] = {
    { "chatml", chatml, no_hash, 0, NULL, CHATML_ROLES },
    { "chatml", chatml_bos, no_hash, BOS_FIRST, NULL, CHATML_ROLES },
    { "smollm2", smollm2, no_hash, 0, SMOLLM2_SYSTEM, CHATML_ROLES },
    { "llama2", none, llama2, BOS_PER_USER | TRIM_ALL | ALTERNATES | SYSTEM_IN_FIRST_USER, NULL,
      { "<<SYS>>\n", "\n<</SYS>>\n\n" }, { "[INST] ", " [/INST]" }, "", { " ", " " }, "", "" },
    { "llama3", llama3, no_hash, BOS_FIRST | TRIM_ALL, NULL, { LLAMA3("system"), "<|eot_id|>" }, LLAMA3_REST },
    { "llama3", llama3_asks, no_hash, BOS_FIRST | TRIM_ALL | ALWAYS_ASKS, NULL, { LLAMA3("system"), "<|eot_id|>" }, LLAMA3_REST },
    { "llama3.1", none, llama31, BOS_FIRST | TRIM_ALL | DATED, "", { LLAMA3("system"), "<|eot_id|>" }, LLAMA3_REST },
    { "mistral-v1", none, mistral1, BOS_FIRST | ALTERNATES | SYSTEM_IN_FIRST_USER, NULL, { "", "\n\n" },
      { " [INST] ", " [/INST]" }, "", { " ", "" }, "", "" },
    { "mistral-v1", none, mistral1_old, BOS_FIRST | ALTERNATES | NO_SYSTEM, NULL, { "", "" },
      { "[INST] ", " [/INST]" }, "", { "", "" }, "", "" },
    { "mistral-v3", none, mistral3, BOS_FIRST | ALTERNATES | SYSTEM_IN_LAST_USER | TRIM_ANSWERS, NULL, { "", "\n\n" },
      { "[INST] ", "[/INST]" }, "", { " ", "" }, "", "" },
    { "mistral-tekken", none, tekken, BOS_FIRST | ALTERNATES | SYSTEM_IN_LAST_USER, NULL, { "", "\n\n" },
      { "[INST]", "[/INST]" }, "", { "", "" }, "", "" },
    { "qwen2", qwen2, no_hash, 0, QWEN2_SYSTEM, CHATML_ROLES },
    { "qwen2.5", none, qwen25, 0, QWEN25_SYSTEM, CHATML_ROLES },
    { "qwen3", none, qwen3, THINKS, NULL, CHATML_ROLES },
    { "zephyr", zephyr, no_hash, EOS_AFTER_ALL, NULL, TAGS("\n"), "", "\n" },
    { "tinyllama", zephyr, no_hash, EOS_AFTER_ALL, NULL, TAGS("\n"), "", "\n" },
    { "phi3", phi3, no_hash, EOS_UNLESS_ASKED, NULL, TAGS("<|end|>\n"), "<|end|>", "\n" },
    { "phi3.5", phi35, no_hash, EOS_UNLESS_ASKED | EMPTY_SYSTEM_GONE, NULL, TAGS("<|end|>\n"), "<|end|>", "\n" },
    { "vicuna", none, no_hash, BOS_FIRST | ALTERNATES | SYSTEM_FIRST, VICUNA_SYSTEM, { "", " " }, { "USER: ", " " }, "ASSISTANT:",
      { " ", "" }, "", "" },
    { "alpaca", none, no_hash, BOS_FIRST | ALTERNATES | SYSTEM_FIRST, ALPACA_SYSTEM, { "", "\n\n" },
      { "### Instruction:\n", "\n\n" }, "### Response:\n", { "", "" }, "", "\n\n" },
};
enum { N_TEMPLATES = sizeof templates / sizeof *templates };

/* ---- recognising ---- */

/* The normal form of a Jinja text, under the settings of Transformers (a block takes the line break
 * after it and the white space of its line before it): what is printed as it stands becomes
 * {{'...'}}, neighbouring {{...}} are joined, comments go, and white space in the code but between words, ['key'] becomes
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
static int is_word(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_'; }

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
    const char *start = s;
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
            if (s > start && is_space(s[-1]) && is_word(*s) && f->out.n && is_word(f->out.s[f->out.n - 1]))
                text_puts(&f->out, " ");
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

const struct chat_template *chat_variant(const char *name, int n)
{
    int i;
    for (i = 0; i < N_TEMPLATES; i++)
        if (!strcmp(name, templates[i].name) && !n--) return &templates[i];
    return NULL;
}

/* Whether the normal form is one of the template's: a text that differs in one place is another template. */
static int means(const struct chat_template *t, const char *form)
{
    int k;
    for (k = 0; t->forms[k]; k++)
        if (!strcmp(form, t->forms[k])) return 1;
    for (k = 0; t->hashes[k]; k++)
        if (hash_bytes(HASH_START, form, strlen(form)) == t->hashes[k]) return 1;
    return 0;
}

const struct chat_template *chat_recognise(const char *template_text, struct lora_error *err)
{
    struct normal f = { { 0 }, NONE };
    const struct chat_template *t = NULL;
    int i, good = !normal_form(&f, template_text);
    if (f.out.failed) {
        fail_memory(err, "a chat template", strlen(template_text));
        text_free(&f.out);
        return NULL;
    }
    for (i = 0; i < N_TEMPLATES && good && f.out.s && !t; i++)
        if (means(&templates[i], f.out.s)) t = &templates[i];
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

struct renderer {
    const struct chat_template *t;
    const struct message *messages;
    size_t n;
    const char *bos, *eos;
    size_t last_user;           /* the last message that asks; n without one */
    struct chat_text *out;
    struct lora_error *err;
};

static int is_role(const struct message *m, const char *role) { return !strcmp(m->role, role); }

static int refuse_role(const struct renderer *r, size_t i, const char *wanted)
{
    fail(r->err, "chat template", "%s, message %zu", r->t->name, i + 1);
    expected(r->err, "%s", wanted);
    return found(r->err, "%s", r->messages[i].role);
}

/* Roles that the template has, in an order that it takes. */
static int check_roles(struct renderer *r)
{
    int flags = r->t->flags, folds = flags & (SYSTEM_IN_FIRST_USER | SYSTEM_IN_LAST_USER);
    size_t i, turn = 0;
    r->last_user = r->n;
    for (i = 0; i < r->n; i++) {
        int user = is_role(&r->messages[i], "user"), assistant = is_role(&r->messages[i], "assistant");
        if (user) r->last_user = i;
        if (is_role(&r->messages[i], "system")) {
            if (flags & NO_SYSTEM) return refuse_role(r, i, "a role of: user assistant");
            if (i && (flags & SYSTEM_FIRST || folds)) return refuse_role(r, i, "a system message first or not at all");
            continue;
        }
        if (!user && !assistant) return refuse_role(r, i, "a role of: system user assistant");
        if (flags & ALTERNATES && user != (turn % 2 == 0))
            return refuse_role(r, i, turn % 2 ? "user and assistant in turn: assistant" : "user and assistant in turn: user");
        turn++;
    }
    if (folds && is_role(&r->messages[0], "system") && r->last_user == r->n)
        return refuse_role(r, 0, "a user message to put the system message into");
    return 0;
}

static void put(const struct renderer *r, const char *s) { text_puts(&r->out->text, s); }

static void put_content(const struct renderer *r, const struct message *m)
{
    const char *s = m->content;
    size_t n = strlen(s), start;
    if (!(r->t->flags & TRIM_ALL || (r->t->flags & TRIM_ANSWERS && is_role(m, "assistant")))) {
        put(r, s);
        return;
    }
    start = unicode_space_at_start(s, n);
    n = unicode_space_at_end(s, n);
    if (n > start) text_add(&r->out->text, s + start, n - start);
}

/* The last place of a word in s[n]; NULL without one. */
static const char *last_of(const char *s, size_t n, const char *word)
{
    const char *at, *last = NULL;
    size_t length = strlen(word);
    for (at = s; (at = strstr(at, word)) && at + length <= s + n; at++) last = at;
    return last;
}

/* Qwen3: what an answer has before </think> is its thought. Answers to the last question show theirs, an
 * empty one too if they end the talk; others only what follows it. */
static void put_thought(const struct renderer *r, size_t i)
{
    static const char open[] = "<think>", close[] = "</think>";
    const char *content = r->messages[i].content, *thought = content, *stop = strstr(content, close), *start;
    size_t n = 0;
    int shows = i > (r->last_user < r->n ? r->last_user : r->n - 1);
    if (stop) {
        while (stop > thought && stop[-1] == '\n') stop--;
        if ((start = last_of(thought, (size_t)(stop - thought), open))) thought = start + strlen(open);
        while (thought < stop && *thought == '\n') thought++;
        n = (size_t)(stop - thought);
        content = last_of(content, strlen(content), close) + strlen(close);
        content += strspn(content, "\n");
    }
    if (shows && (i + 1 == r->n || n)) {
        put(r, "<think>\n");
        text_add(&r->out->text, thought, n);
        put(r, "\n</think>\n\n");
        content += strspn(content, "\n");
    }
    put(r, content);
}

static int put_answer(const struct renderer *r, size_t i)
{
    const struct chat_template *t = r->t;
    struct chat_text *out = r->out;
    struct span span;
    put(r, t->assistant);
    span.start = out->text.n;
    put(r, t->answer.before);
    if (t->flags & THINKS) put_thought(r, i);
    else put_content(r, &r->messages[i]);
    put(r, t->answer.after);
    put(r, t->end_of_turn[0] ? t->end_of_turn : r->eos);
    span.end = out->text.n;
    put(r, t->after);
    if (grow_array((void **)&out->targets, &out->capacity, out->n_targets + 1, sizeof span, r->err)) return -1;
    out->targets[out->n_targets++] = span;
    return 0;
}

/* A system message or a question. In a template that has no place for system messages the first one
 * stands in front of a question, and both are trimmed as one. */
static void put_question(const struct renderer *r, size_t i, const struct message *folded)
{
    const struct chat_template *t = r->t;
    const struct message *m = &r->messages[i];
    const struct turn *turn = is_role(m, "system") ? &t->system : &t->user;
    size_t start;
    if (t->flags & BOS_PER_USER) put(r, r->bos);
    put(r, turn->before);
    if (t->flags & DATED && !i && turn == &t->system) put(r, LLAMA3_DATE);
    start = r->out->text.n;
    if (folded) {
        put(r, t->system.before);
        put(r, folded->content);
        put(r, t->system.after);
        put(r, m->content);
        if (t->flags & TRIM_ALL && !r->out->text.failed)
            r->out->text.n = start + unicode_space_at_end(r->out->text.s + start, r->out->text.n - start);
    } else {
        put_content(r, m);
    }
    if (t->flags & EOS_AFTER_ALL) put(r, r->eos);
    put(r, turn->after);
}

static int put_messages(const struct renderer *r)
{
    const struct chat_template *t = r->t;
    const struct message *folded = NULL;
    size_t i, place = r->n;
    if (is_role(&r->messages[0], "system") && t->flags & (SYSTEM_IN_FIRST_USER | SYSTEM_IN_LAST_USER)) {
        folded = &r->messages[0];
        place = t->flags & SYSTEM_IN_FIRST_USER ? 1 : r->last_user;
    }
    for (i = folded != NULL; i < r->n; i++) {
        const struct message *m = &r->messages[i];
        if (t->flags & EMPTY_SYSTEM_GONE && is_role(m, "system") && !m->content[0]) continue;
        if (!is_role(m, "assistant")) put_question(r, i, i == place ? folded : NULL);
        else if (put_answer(r, i)) return -1;
    }
    return 0;
}

int chat_render(const struct chat_template *t, const struct message *messages, size_t n, int add_generation_prompt,
                const char *bos, const char *eos, struct chat_text *out, struct lora_error *err)
{
    struct renderer r = { .t = t, .messages = messages, .n = n, .bos = bos, .eos = eos, .out = out, .err = err };
    out->text.n = out->n_targets = 0;
    if (!n) {
        fail(err, "chat template", "%s", t->name);
        expected(err, "at least one message");
        return found(err, "none");
    }
    if (check_roles(&r)) return -1;
    if (t->flags & BOS_FIRST) put(&r, bos);
    if (t->default_system && !is_role(&messages[0], "system")) {
        put(&r, t->system.before);
        if (t->flags & DATED) put(&r, LLAMA3_DATE);
        put(&r, t->default_system);
        put(&r, t->system.after);
    }
    if (put_messages(&r)) return -1;
    if (add_generation_prompt || t->flags & ALWAYS_ASKS) put(&r, t->assistant);
    else if (t->flags & EOS_UNLESS_ASKED) put(&r, eos);
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
    const struct json *tools = v->type == JSON_OBJECT ? json_get(v, "tools") : NULL;
    if (tools && tools->type != JSON_NULL) return refuse_message(tools, file, "messages alone", "tools, which are not supported", err);
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
