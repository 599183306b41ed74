/* data_forms.c - a row's way: recognise() -> one function of its form, which puts pieces of text, targets or
 * not, behind each other -> ids and mask. See data_parts.h. */
#include "data_parts.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- forms ---- */

static const char *const form_names[] = {
    "one of the known forms", "messages", "prompt and completion of messages", "prompt and completion",
    "instruction and output", "text and label", "document and summary", "input_ids", "text"
};

/* A missing key, or null. */
static const struct json *field(const struct json *record, const char *key)
{
    const struct json *v = json_get(record, key);
    return v && v->type != JSON_NULL ? v : NULL;
}

int reader_fail(const struct reader *r, const char *what)
{
    return fail(r->err, what, "%s, line %d", r->path, r->line);
}

/* An error of the layers below gets the record's place. */
static int place_record(struct reader *r)
{
    char inner[200];
    if (!r->err) return -1;
    snprintf(inner, sizeof inner, "%.180s", r->err->where);
    snprintf(r->err->where, sizeof r->err->where, "%.250s, line %d%s%s", r->path, r->line,
             inner[0] ? ": " : "", inner);
    return -1;
}

static int is_field(const struct json *record, const char *renamed, const char *name)
{
    return field(record, renamed ? renamed : name) != NULL;
}

static enum form recognise(const struct reader *r, const struct json *v)
{
    int is_summary = r->o->label_column && !strcmp(r->o->label_column, "summary");
    if (v->type != JSON_OBJECT) return FORM_NONE;
    if (field(v, "messages")) return FORM_MESSAGES;
    if (field(v, "prompt") && field(v, "completion"))
        return field(v, "prompt")->type == JSON_ARRAY ? FORM_TURNS : FORM_RAW;
    if (!is_summary && is_field(v, r->o->text_column, "text") && is_field(v, r->o->label_column, "label")) return FORM_LABEL;
    if (is_field(v, r->o->text_column, "document") && is_field(v, r->o->label_column, "summary")) return FORM_SUMMARY;
    if (field(v, "instruction") && field(v, "output")) return FORM_INSTRUCTION;
    if (field(v, "input_ids")) return FORM_IDS;
    if (!r->o->label_column && is_field(v, r->o->text_column, "text")) return FORM_TEXT;
    return FORM_NONE;
}

static int wrong_form(struct reader *r, const struct json *v)
{
    struct text keys = { NULL, 0, 0, 0 };
    const struct json *c;
    int seen = r->form != FORM_NONE;
    reader_fail(r, seen ? "a row of another form than the first" : "cannot recognise the rows");
    expected(r->err, "%s%s%s%s%s", form_names[r->form], r->o->text_column ? ", the text in " : "",
             r->o->text_column ? r->o->text_column : "", r->o->label_column ? ", the label in " : "",
             r->o->label_column ? r->o->label_column : "");
    if (v->type == JSON_OBJECT) {
        for (c = v->child; c; c = c->next)
            text_printf(&keys, "%s%s%s", c == v->child ? "" : ", ", c->key, c->type == JSON_NULL ? ": null" : "");
        found(r->err, "keys %s", keys.s && keys.n ? keys.s : "(none)");
    } else {
        found(r->err, "a value that is no object");
    }
    if (!seen && v->type == JSON_OBJECT && v->child && !v->child->next && strpbrk(v->child->key, ";\t|"))
        hint(r->err, "if another character than a comma parts the columns, --csv-delimiter says which");
    else if (!seen) hint(r->err, "messages; prompt, completion; instruction, output; text, label; document, summary; "
                            "text; input_ids; --text-column and --label-column rename");
    text_free(&keys);
    return -1;
}

/* A string without NULs, or NULL with an error. */
static const char *text_of(struct reader *r, const struct json *v, const char *name)
{
    if (v && v->type == JSON_STRING && strlen(v->string) == v->n) return v->string;
    reader_fail(r, "cannot read the row");
    expected(r->err, "%s to be text", name);
    if (!v) found(r->err, "nothing");
    else if (v->type == JSON_STRING) found(r->err, "a NUL in it");
    else found(r->err, "another type");
    return NULL;
}

/* ---- pieces of text to ids ---- */

static int mark(struct reader *r, int is_target)
{
    while (!r->mask.failed && r->mask.n < r->ids.n) text_add(&r->mask, is_target ? "\1" : "\0", 1);
    return text_check(&r->mask, r->err);
}

static int encode(struct reader *r, const char *s, size_t n, struct ids *out)
{
    if (!r->o->tokenizer) {
        reader_fail(r, "text rows without a tokenizer");
        return hint(r->err, "give --model with tokenizer.json, or rows of input_ids");
    }
    if (!tokenizer_encode(r->o->tokenizer, s, n, r->begun ? TOKENIZE_CONTINUE : 0, out, r->err)) return 0;
    return place_record(r);
}

/* Text is cut here: the piece is tokenised by itself. */
static int put_piece(struct reader *r, const char *s, size_t n, int is_target)
{
    if (encode(r, s, n, &r->ids)) return -1;
    r->begun |= n > 0;
    return mark(r, is_target);
}

/* id -1: there is none, nothing is put. */
static int put_id(struct reader *r, int id, int is_target)
{
    if (id < 0) return 0;
    return ids_add(&r->ids, id, r->err) ? -1 : mark(r, is_target);
}

/* A target and what follows it, n and `rest` bytes of s: not cut between them unless a token would
 * straddle the edge, since some tokenizers see a beginning there. */
static int put_target(struct reader *r, const char *s, size_t n, size_t rest)
{
    size_t start = r->ids.n, length, i;
    if (!rest) return put_piece(r, s, n, 1);
    r->both.n = 0;
    if (encode(r, s, n + rest, &r->both) || put_piece(r, s, n, 1)) return -1;
    length = r->ids.n - start;
    if (length > r->both.n || (length && memcmp(r->ids.v + start, r->both.v, length * sizeof *r->both.v)))
        return put_piece(r, s + n, rest, 0);
    for (i = length; i < r->both.n; i++) if (put_id(r, r->both.v[i], 0)) return -1;
    return 0;
}

/* Raw text: the tokenizer's BOS rule, and EOS after the answer unless it is written there. prompt
 * may be NULL: all of it is answer, and the row has no completion to compare with. */
static int put_raw(struct reader *r, const char *prompt, const char *answer)
{
    const struct tokenizer *t = r->o->tokenizer;
    if (t && tokenizer_adds_bos(t) && put_id(r, tokenizer_bos(t), 0)) return -1;
    if (prompt && put_piece(r, prompt, strlen(prompt), 0)) return -1;
    r->prompt_n = (int)r->ids.n;
    if (put_piece(r, answer, strlen(answer), 1)) return -1;
    if (prompt && !(r->completion = new_string(answer, r->err))) return -1;
    if (r->ids.n && r->ids.v[r->ids.n - 1] == tokenizer_eos(t)) return 0;
    return put_id(r, tokenizer_eos(t), 1);
}

static const char *token_text(const struct tokenizer *t, int id)
{
    const char *s = id >= 0 ? tokenizer_token(t, id) : NULL;
    return s ? s : "";
}

const char *data_bos_text(const struct tokenizer *t) { return t ? token_text(t, tokenizer_bos(t)) : ""; }
const char *data_eos_text(const struct tokenizer *t) { return t ? token_text(t, tokenizer_eos(t)) : ""; }

/* The messages by the chat template; of its targets the last `answers` are trained. */
static int put_chat(struct reader *r, size_t answers)
{
    const struct tokenizer *t = r->o->tokenizer;
    struct chat_text *c = &r->chat;
    size_t at = 0, i, n, first = 0;
    const char *end;
    if (!r->o->chat) {
        reader_fail(r, "messages without a chat template");
        return hint(r->err, "give --chat-template NAME");
    }
    if (chat_render(r->o->chat, r->messages, r->n_messages, 0, data_bos_text(t), data_eos_text(t), c, r->err))
        return place_record(r);
    if (c->n_targets > answers) first = c->n_targets - answers;
    if (first == c->n_targets) return 0;
    if (put_piece(r, c->text.s, c->targets[first].start, 0)) return -1;
    for (i = first; i < c->n_targets; i++) {
        const struct span *s = &c->targets[i];
        int is_last = i + 1 == c->n_targets;
        r->prompt_n = (int)r->ids.n;
        if (put_target(r, c->text.s + s->start, s->end - s->start, is_last ? 0 : s[1].start - s->end)) return -1;
        at = s->end;
    }
    n = at - c->targets[c->n_targets - 1].start;
    end = chat_end_of_turn(r->o->chat);
    if (!*end) end = data_eos_text(t);
    if (n >= strlen(end) && !memcmp(c->text.s + at - strlen(end), end, strlen(end))) n -= strlen(end);
    r->completion = new_string_n(c->text.s + c->targets[c->n_targets - 1].start, n, r->err);
    return r->completion ? 0 : -1;
}

static int add_message(struct reader *r, const char *role, const char *content)
{
    if (grow_array((void **)&r->messages, &r->messages_capacity, r->n_messages + 1, sizeof *r->messages,
                   r->err)) return -1;
    r->messages[r->n_messages].role = role;
    r->messages[r->n_messages++].content = content;
    return 0;
}

/* The text of Taori et al. 2023 (Stanford Alpaca), for models without a chat template. */
static int put_alpaca(struct reader *r, const char *instruction, const char *input, const char *answer)
{
    static const char first[] = "Below is an instruction that describes a task", then[] =
        "Write a response that appropriately completes the request.";
    r->scratch.n = 0;
    if (*input)
        text_printf(&r->scratch, "%s, paired with an input that provides further context. %s\n\n"
                    "### Instruction:\n%s\n\n### Input:\n%s\n\n### Response:\n", first, then, instruction, input);
    else
        text_printf(&r->scratch, "%s. %s\n\n### Instruction:\n%s\n\n### Response:\n", first, then, instruction);
    return text_check(&r->scratch, r->err) ? -1 : put_raw(r, r->scratch.s, answer);
}

/* One user turn and its answer, in the way the model knows. */
static int put_turn(struct reader *r, const char *instruction, const char *input, const char *answer)
{
    if (!r->o->chat) return put_alpaca(r, instruction, input, answer);
    r->scratch.n = 0;
    text_printf(&r->scratch, *input ? "%s\n%s" : "%s%s", instruction, input);
    return text_check(&r->scratch, r->err) || add_message(r, "user", r->scratch.s) || add_message(r, "assistant", answer)
           || put_chat(r, 1) ? -1 : 0;
}

/* ---- one function a form ---- */

/* Appends an array of messages; *answers: how many of them are the assistant's. */
static int read_messages(struct reader *r, const struct json *v, const char *name, size_t *answers)
{
    struct message *list = NULL;
    size_t n = 0, i;
    int bad = 0;
    if (chat_read_messages(v, name, &list, &n, r->err)) return place_record(r);
    for (i = 0; i < n && !bad; i++) {
        bad = add_message(r, list[i].role, list[i].content);
        *answers += !strcmp(list[i].role, "assistant");
    }
    free(list);
    return bad;
}

static int put_messages(struct reader *r, const struct json *v)
{
    const struct json *prompt = field(v, r->form == FORM_TURNS ? "prompt" : "messages");
    const struct json *completion = r->form == FORM_TURNS ? field(v, "completion") : NULL;
    size_t before = 0, answers = 0;
    if (field(v, "tools")) {
        reader_fail(r, "cannot read the row");
        return found(r->err, "tools, which are not supported");
    }
    if (read_messages(r, prompt, r->form == FORM_TURNS ? "prompt" : "messages", &before)) return -1;
    if (!completion) return put_chat(r, before);
    if (completion->type == JSON_STRING) {
        const char *s = text_of(r, completion, "completion");
        return !s || add_message(r, "assistant", s) || put_chat(r, 1) ? -1 : 0;
    }
    if (read_messages(r, completion, "completion", &answers)) return -1;
    return put_chat(r, answers);
}

static int put_prompt(struct reader *r, const struct json *v)
{
    const char *prompt = text_of(r, field(v, "prompt"), "prompt");
    const char *answer = prompt ? text_of(r, field(v, "completion"), "completion") : NULL;
    return answer ? put_raw(r, prompt, answer) : -1;
}

static int put_instruction(struct reader *r, const struct json *v)
{
    const char *instruction = text_of(r, field(v, "instruction"), "instruction"), *input = "", *output;
    if (!instruction || (field(v, "input") && !(input = text_of(r, field(v, "input"), "input")))) return -1;
    output = text_of(r, field(v, "output"), "output");
    return output ? put_turn(r, instruction, input, output) : -1;
}

/* The template with its places filled, in one pass: what is put in is not looked at again. */
static char *fill_prompt(const char *template, const char *text, const struct text *labels, struct lora_error *err)
{
    struct text out = { NULL, 0, 0, 0 };
    const char *p = template;
    if (!labels->n && strstr(template, "{labels}")) {
        fail(err, "nothing for {labels} to stand for", "the prompt template");
        expected(err, "rows of text and label, or an adapter that was trained on them");
        return NULL;
    }
    text_puts(&out, "");
    while (*p) {
        if (!strncmp(p, "{text}", 6)) text_puts(&out, text), p += 6;
        else if (!strncmp(p, "{document}", 10)) text_puts(&out, text), p += 10;
        else if (!strncmp(p, "{labels}", 8)) text_add(&out, labels->s, labels->n), p += 8;
        else if (!strncmp(p, "\\n", 2)) text_puts(&out, "\n"), p += 2;
        else text_add(&out, p++, 1);
    }
    if (!text_check(&out, err)) return out.s;
    text_free(&out);
    return NULL;
}

void reader_join(struct text *out, const char *const *labels, int n)
{
    int i;
    text_puts(out, "");
    for (i = 0; i < n; i++) text_printf(out, "%s%s", i ? ", " : "", labels[i]);
}

char *data_prompt(const struct data_options *o, const char *prompt_template, const char *text,
                  struct lora_error *err)
{
    struct text labels = { NULL, 0, 0, 0 };
    char *prompt = NULL;
    reader_join(&labels, o->labels, o->n_labels);
    if (!text_check(&labels, err)) prompt = fill_prompt(prompt_template, text, &labels, err);
    text_free(&labels);
    return prompt;
}

/* A label's text: a string, or a number as written. */
static const char *label_of(struct reader *r, const struct json *v)
{
    const struct json *label = field(v, r->o->label_column ? r->o->label_column : "label");
    if (label && label->type == JSON_NUMBER) return label->literal;
    if (label && label->type == JSON_STRING && !label->n) {
        reader_fail(r, "cannot read the row");
        expected(r->err, "a label");
        found(r->err, "an empty one");
        return NULL;
    }
    return text_of(r, label, "the label");
}

static int put_answer(struct reader *r, const struct json *v)
{
    int is_label = r->form == FORM_LABEL, bad;
    const char *text_name = r->o->text_column ? r->o->text_column : is_label ? "text" : "document";
    const char *text = text_of(r, field(v, text_name), text_name), *answer;
    const char *template = r->o->prompt_template ? r->o->prompt_template : is_label
        ? "Classify the following text. Answer with the label alone.\n\nText: {text}"
        : "Summarize the following text.\n\n{document}";
    char *prompt;
    if (!text) return -1;
    r->prompt_template = template;
    answer = is_label ? label_of(r, v) : text_of(r, field(v, r->o->label_column ? r->o->label_column : "summary"), "the summary");
    if (!answer || (is_label && !(r->label = new_string(answer, r->err)))) return -1;
    prompt = fill_prompt(template, text, &r->labels, r->err);
    bad = !prompt || put_turn(r, prompt, "", answer);
    free(prompt);
    return bad ? -1 : 0;
}

static int put_text(struct reader *r, const struct json *v)
{
    const char *name = r->o->text_column ? r->o->text_column : "text", *text = text_of(r, field(v, name), name);
    return text ? put_raw(r, NULL, text) : -1;
}

/* The next id of an array, strictly. */
static int id_of(struct reader *r, const struct json *v, const char *name, int *out)
{
    *out = 0;
    if (v->type == JSON_NUMBER && v->number >= INT_MIN && v->number <= INT_MAX
        && v->number == (int)v->number) {
        *out = (int)v->number;
        return 0;
    }
    reader_fail(r, "cannot read the row");
    return expected(r->err, "%s to hold whole numbers, as many as input_ids", name);
}

/* As Transformers has it: labels[i] is what the logits at i - 1 are to give, mostly input_ids[i]. */
static int check_label(struct reader *r, int id)
{
    if (id == -100 || (id >= 0 && !(r->o->vocab && id >= r->o->vocab))) return 0;
    reader_fail(r, "a label that the model does not have");
    if (r->o->vocab) expected(r->err, "-100, or an id below %d", r->o->vocab);
    else expected(r->err, "-100, or an id");
    return found(r->err, "%d", id);
}

static int put_ids(struct reader *r, const struct json *v)
{
    const struct json *ids = field(v, "input_ids"), *labels = field(v, "labels"), *id, *label, *mask;
    if (ids->type != JSON_ARRAY || (labels && (labels->type != JSON_ARRAY || labels->n != ids->n))) {
        reader_fail(r, "cannot read the row");
        return expected(r->err, "input_ids to be an array, and labels one of the same length");
    }
    label = labels ? labels->child : NULL;
    for (id = ids->child; id; id = id->next) {
        int token, target;
        if (id_of(r, id, "input_ids", &token)) return -1;
        if (token < 0) return reader_fail(r, "a negative id in input_ids");
        target = token;
        if (label) {
            if (id_of(r, label, "labels", &target) || check_label(r, target)
                || ids_add(&r->targets, target == -100 ? token : target, r->err)) return -1;
            r->has_labels |= target != -100 && target != token;
            label = label->next;
        }
        if (put_id(r, token, target != -100)) return -1;
    }
    mask = field(v, "attention_mask");
    for (mask = mask ? mask->child : NULL; mask; mask = mask->next)
        if (mask->type != JSON_NUMBER || mask->number != 1) {
            reader_fail(r, "cannot read the row");
            return expected(r->err, "no padding: attention_mask all 1");
        }
    return 0;
}

static int put_record(struct reader *r, const struct json *v)
{
    switch (r->form) {
    case FORM_MESSAGES:
    case FORM_TURNS: return put_messages(r, v);
    case FORM_RAW: return put_prompt(r, v);
    case FORM_INSTRUCTION: return put_instruction(r, v);
    case FORM_LABEL:
    case FORM_SUMMARY: return put_answer(r, v);
    case FORM_IDS: return put_ids(r, v);
    default: return put_text(r, v);
    }
}

/* ---- rows ---- */

/* ids below the vocabulary, one BOS. */
static int check_ids(struct reader *r)
{
    const struct tokenizer *t = r->o->tokenizer;
    size_t i;
    for (i = 0; i < r->ids.n; i++)
        if (r->o->vocab && r->ids.v[i] >= r->o->vocab) {
            reader_fail(r, "an id that the model does not have");
            expected(r->err, "ids below %d", r->o->vocab);
            return found(r->err, "%d", r->ids.v[i]);
        }
    if (t && r->form != FORM_IDS && r->ids.n > 1 && tokenizer_bos(t) >= 0 && r->ids.v[0] == tokenizer_bos(t)
        && r->ids.v[1] == r->ids.v[0]) {
        reader_fail(r, "two BOS tokens at the start of a row");
        return hint(r->err, "the text has one already: take it out of the data");
    }
    return 0;
}

int reader_cut(struct reader *r)
{
    int limit = r->o->max_length;
    if (!limit || r->ids.n <= (size_t)limit) return LENGTH_FITS;
    if (r->o->on_overlong == OVERLONG_DROP) return LENGTH_DROPPED;
    if (r->o->on_overlong == OVERLONG_TRUNCATE) {
        r->ids.n = r->mask.n = (size_t)limit;
        if (r->prompt_n > limit) r->prompt_n = limit;
        return LENGTH_CUT;
    }
    reader_fail(r, "a row that is too long");
    expected(r->err, "at most %d tokens (--max-length)", limit);
    found(r->err, "%zu", r->ids.n);
    return hint(r->err, "--on-overlong truncate or drop");
}

uint64_t reader_hash(const struct reader *r)
{
    uint64_t h = hash_bytes(hash_bytes(HASH_START, r->ids.v, r->ids.n * sizeof *r->ids.v), r->mask.s, r->mask.n);
    return r->has_labels ? hash_bytes(h, r->targets.v, r->ids.n * sizeof *r->targets.v) : h;
}

static void clear_row(struct reader *r)
{
    r->ids.n = r->mask.n = r->targets.n = r->n_messages = 0;
    r->prompt_n = r->begun = r->has_labels = 0;
    free(r->label);
    free(r->completion);
    r->label = r->completion = NULL;
}

/* The record's form is that of the file. */
static int check_form(struct reader *r, const struct json *v)
{
    enum form form = recognise(r, v);
    if (form == FORM_NONE || (r->form != FORM_NONE && form != r->form)) return wrong_form(r, v);
    r->form = form;
    return 0;
}

int reader_render(struct reader *r, const struct json *v)
{
    clear_row(r);
    return check_form(r, v) || put_record(r, v) || check_ids(r) ? -1 : 0;
}

const char *reader_label(struct reader *r, const struct json *v)
{
    if (check_form(r, v)) return NULL;
    return r->form == FORM_LABEL ? label_of(r, v) : "";
}

void reader_free(struct reader *r)
{
    clear_row(r);
    ids_free(&r->ids);
    ids_free(&r->both);
    ids_free(&r->targets);
    text_free(&r->mask);
    text_free(&r->scratch);
    text_free(&r->labels);
    chat_text_free(&r->chat);
    free(r->messages);
}

void reader_start(struct reader *r, const struct data_options *o, struct lora_error *err)
{
    *r = (struct reader){ .o = o, .err = err };
}

/* ---- the report ---- */

/* Appends a word to a list that is as long as its array. */
static void add_word(char *list, size_t size, const char *word)
{
    size_t n = strlen(list);
    if (n + strlen(word) + 3 <= size) snprintf(list + n, size - n, "%s%s", n ? ", " : "", word);
}

static int is_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    const char *at = list;
    while ((at = strstr(at, word)) && !((at == list || at[-1] == ' ') && (!at[n] || at[n] == ' ' || at[n] == ','))) at++;
    return at != NULL;
}

void reader_note(const struct reader *r, const struct json *v, struct data_report *report)
{
    static const char *const keys[] = { "", "messages", "prompt completion", "prompt completion",
        "instruction input output", "", "", "input_ids labels attention_mask", "" };
    enum form form = r->form;
    const char *text = r->o->text_column ? r->o->text_column : form == FORM_SUMMARY ? "document" : "text";
    const char *label = r->o->label_column ? r->o->label_column : form == FORM_SUMMARY ? "summary" : "label";
    const struct json *c;
    if (!strstr(report->form, form_names[form])) add_word(report->form, sizeof report->form, form_names[form]);
    for (c = v->child; c; c = c->next) {
        int used = is_word(keys[form], c->key);
        if (!*keys[form]) used = !strcmp(c->key, text) || (form != FORM_TEXT && !strcmp(c->key, label));
        if (!used && !is_word(report->unused, c->key)) add_word(report->unused, sizeof report->unused, c->key);
    }
}

/* ---- parts of a row ---- */

/* Of a user turn and its answer, the ids before the answer or those of it, appended to out. */
static int turn_ids(const struct data_options *o, const char *user, const char *answer, int of_answer,
                    struct ids *out, struct lora_error *err)
{
    struct reader r;
    size_t from, end;
    int bad;
    reader_start(&r, o, err);
    r.path = of_answer ? "label" : "prompt";
    bad = put_turn(&r, user, "", answer);
    from = of_answer ? (size_t)r.prompt_n : 0;
    end = of_answer ? r.ids.n : (size_t)r.prompt_n;
    bad = bad || ids_append(out, r.ids.v + from, end - from, err);
    reader_free(&r);
    return bad ? -1 : 0;
}

int data_label_ids(const struct data_options *o, const char *label, struct ids *out, struct lora_error *err)
{
    return turn_ids(o, "x", label, 1, out, err);
}

int data_prompt_ids(const struct data_options *o, const char *user, struct ids *out, struct lora_error *err)
{
    return turn_ids(o, user, "x", 0, out, err);
}
