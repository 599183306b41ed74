/* data.c - see data.h. A row's way: records_next() -> recognise() -> one function of its form, which
 * puts pieces of text, targets or not, behind each other -> add_row(). */
#include "data.h"

#include "formats/records.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- forms ---- */

enum form { FORM_NONE, FORM_MESSAGES, FORM_TURNS, FORM_RAW, FORM_INSTRUCTION, FORM_LABEL, FORM_SUMMARY,
            FORM_IDS, FORM_TEXT };

static const char *const form_names[] = {
    "one of the known forms", "messages", "prompt and completion of messages", "prompt and completion",
    "instruction and output", "text and label", "document and summary", "input_ids", "text"
};

/* All that reading needs. */
struct reader {
    const struct data_options *o;
    struct dataset *d;
    struct records records;
    struct lora_error *err;
    const char *text_key, *label_key;   /* names of the columns, or NULL: not renamed */
    enum form form;
    struct text labels;         /* what {labels} stands for */
    /* the row being made */
    struct ids ids, both;       /* both: scratch */
    struct text mask;           /* a byte per id */
    struct ids targets;         /* of rows of input_ids with labels: an id each */
    int has_labels;             /* one of them is another than the row's */
    int begun;                  /* some text was put: the next piece goes on with it */
    struct text scratch;
    struct chat_text chat;
    struct message *messages;
    size_t n_messages, messages_capacity;
    int prompt_n;
    char *label, *completion;
    /* what is there so far */
    size_t rows_capacity, labels_capacity;
};

/* A missing key, or null. */
static const struct json *field(const struct json *record, const char *key)
{
    const struct json *v = json_get(record, key);
    return v && v->type != JSON_NULL ? v : NULL;
}

/* Starts an error about the record. */
static int fail_record(struct reader *r, const char *what)
{
    return fail(r->err, what, "%s, line %d", r->records.path, r->records.line);
}

/* An error of the layers below gets the record's place. */
static int place_record(struct reader *r)
{
    char inner[200];
    if (!r->err) return -1;
    snprintf(inner, sizeof inner, "%.180s", r->err->where);
    snprintf(r->err->where, sizeof r->err->where, "%.250s, line %d%s%s", r->records.path, r->records.line,
             inner[0] ? ": " : "", inner);
    return -1;
}

static int is_field(const struct json *record, const char *renamed, const char *name)
{
    return field(record, renamed ? renamed : name) != NULL;
}

static enum form recognise(const struct reader *r, const struct json *v)
{
    int is_summary = r->label_key && !strcmp(r->label_key, "summary");
    if (v->type != JSON_OBJECT) return FORM_NONE;
    if (field(v, "messages")) return FORM_MESSAGES;
    if (field(v, "prompt") && field(v, "completion"))
        return field(v, "prompt")->type == JSON_ARRAY ? FORM_TURNS : FORM_RAW;
    if (!is_summary && is_field(v, r->text_key, "text") && is_field(v, r->label_key, "label")) return FORM_LABEL;
    if (is_field(v, r->text_key, "document") && is_field(v, r->label_key, "summary")) return FORM_SUMMARY;
    if (field(v, "instruction") && field(v, "output")) return FORM_INSTRUCTION;
    if (field(v, "input_ids")) return FORM_IDS;
    if (!r->label_key && is_field(v, r->text_key, "text")) return FORM_TEXT;
    return FORM_NONE;
}

static int wrong_form(struct reader *r, const struct json *v)
{
    struct text keys = { NULL, 0, 0, 0 };
    const struct json *c;
    int seen = r->form != FORM_NONE;
    fail_record(r, seen ? "a row of another form than the first" : "cannot recognise the rows");
    expected(r->err, "%s%s%s", form_names[r->form], r->label_key ? ", the label in " : "",
             r->label_key ? r->label_key : "");
    if (v->type == JSON_OBJECT) {
        for (c = v->child; c; c = c->next) text_printf(&keys, "%s%s", c == v->child ? "" : ", ", c->key);
        found(r->err, "keys %s", keys.s && keys.n ? keys.s : "(none)");
    } else {
        found(r->err, "a value that is no object");
    }
    if (!seen) hint(r->err, "messages; prompt, completion; instruction, output; text, label; document, summary; "
                            "text; input_ids; --text-column and --label-column rename");
    text_free(&keys);
    return -1;
}

/* A string without NULs, or NULL with an error. */
static const char *text_of(struct reader *r, const struct json *v, const char *name)
{
    if (v && v->type == JSON_STRING && strlen(v->string) == v->n) return v->string;
    fail_record(r, "cannot read the row");
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
        fail_record(r, "text rows without a tokenizer");
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
    if (grow_array((void **)&r->ids.v, &r->ids.capacity, r->ids.n + 1, sizeof *r->ids.v, r->err)) return -1;
    r->ids.v[r->ids.n++] = id;
    return mark(r, is_target);
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
 * may be NULL: all of it is answer. */
static int put_raw(struct reader *r, const char *prompt, const char *answer)
{
    const struct tokenizer *t = r->o->tokenizer;
    if (t && tokenizer_adds_bos(t) && put_id(r, tokenizer_bos(t), 0)) return -1;
    if (prompt && put_piece(r, prompt, strlen(prompt), 0)) return -1;
    r->prompt_n = (int)r->ids.n;
    if (put_piece(r, answer, strlen(answer), 1)) return -1;
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
        fail_record(r, "messages without a chat template");
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
    if (text_check(&r->scratch, r->err) || put_raw(r, r->scratch.s, answer)) return -1;
    r->completion = new_string(answer, r->err);
    return r->completion ? 0 : -1;
}

/* One user turn and its answer, in the way the model knows. */
static int put_turn(struct reader *r, const char *instruction, const char *input, const char *answer)
{
    char *both = NULL;
    int bad;
    if (!r->o->chat) return put_alpaca(r, instruction, input, answer);
    if (*input) {
        size_t n = strlen(instruction);
        both = new_array(n + strlen(input) + 2, 1, r->err);
        if (!both) return -1;
        sprintf(both, "%s\n%s", instruction, input);
    }
    bad = add_message(r, "user", both ? both : instruction) || add_message(r, "assistant", answer) || put_chat(r, 1);
    free(both);
    return bad ? -1 : 0;
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
        fail_record(r, "cannot read the row");
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
    if (!answer || put_raw(r, prompt, answer)) return -1;
    r->completion = new_string(answer, r->err);
    return r->completion ? 0 : -1;
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

static void join_labels(struct text *out, const char *const *labels, int n)
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
    join_labels(&labels, o->labels, o->n_labels);
    if (!text_check(&labels, err)) prompt = fill_prompt(prompt_template, text, &labels, err);
    text_free(&labels);
    return prompt;
}

/* A label's text: a string, or a number as written. */
static const char *label_of(struct reader *r, const struct json *v)
{
    const struct json *label = field(v, r->label_key ? r->label_key : "label");
    if (label && label->type == JSON_NUMBER) return label->literal;
    if (label && label->type == JSON_STRING && !label->n) {
        fail_record(r, "cannot read the row");
        expected(r->err, "a label");
        found(r->err, "an empty one");
        return NULL;
    }
    return text_of(r, label, "the label");
}

static int put_answer(struct reader *r, const struct json *v)
{
    int is_label = r->form == FORM_LABEL, bad;
    const char *text_name = r->text_key ? r->text_key : is_label ? "text" : "document";
    const char *text = text_of(r, field(v, text_name), text_name), *answer;
    const char *template = r->o->prompt_template ? r->o->prompt_template : is_label
        ? "Classify the following text. Answer with the label alone.\n\nText: {text}"
        : "Summarize the following text.\n\n{document}";
    char *prompt;
    if (!text) return -1;
    r->d->prompt_template = template;
    answer = is_label ? label_of(r, v) : text_of(r, field(v, r->label_key ? r->label_key : "summary"), "the summary");
    if (!answer || (is_label && !(r->label = new_string(answer, r->err)))) return -1;
    prompt = fill_prompt(template, text, &r->labels, r->err);
    bad = !prompt || put_turn(r, prompt, "", answer);
    free(prompt);
    return bad ? -1 : 0;
}

static int put_text(struct reader *r, const struct json *v)
{
    const char *name = r->text_key ? r->text_key : "text", *text = text_of(r, field(v, name), name);
    return text ? put_raw(r, NULL, text) : -1;
}

/* The next id of an array, strictly. */
static int id_of(struct reader *r, const struct json *v, const char *name, int *out)
{
    *out = 0;
    if (v && v->type == JSON_NUMBER && v->number >= INT_MIN && v->number <= INT_MAX
        && v->number == (int)v->number) {
        *out = (int)v->number;
        return 0;
    }
    fail_record(r, "cannot read the row");
    return expected(r->err, "%s to hold whole numbers, as many as input_ids", name);
}

static int put_label(struct reader *r, int id)
{
    struct ids *to = &r->targets;
    if (grow_array((void **)&to->v, &to->capacity, to->n + 1, sizeof *to->v, r->err)) return -1;
    to->v[to->n++] = id;
    return 0;
}

/* As Transformers has it: labels[i] is what the logits at i - 1 are to give, mostly input_ids[i]. */
static int check_label(struct reader *r, int id)
{
    if (id >= 0 && !(r->o->vocab && id >= r->o->vocab)) return 0;
    fail_record(r, "a label that the model does not have");
    if (r->o->vocab) expected(r->err, "-100, or an id below %d", r->o->vocab);
    else expected(r->err, "-100, or an id");
    return found(r->err, "%d", id);
}

static int put_ids(struct reader *r, const struct json *v)
{
    const struct json *ids = field(v, "input_ids"), *labels = field(v, "labels"), *id, *label = NULL, *mask;
    if (ids->type != JSON_ARRAY || (labels && (labels->type != JSON_ARRAY || labels->n != ids->n))) {
        fail_record(r, "cannot read the row");
        return expected(r->err, "input_ids to be an array, and labels one of the same length");
    }
    if (labels) label = labels->child;
    for (id = ids->child; id; id = id->next) {
        int token, target;
        if (id_of(r, id, "input_ids", &token)) return -1;
        target = token;
        if (labels && id_of(r, label, "labels", &target)) return -1;
        if (token < 0) return fail_record(r, "a negative id in input_ids");
        if (labels && target != -100 && check_label(r, target)) return -1;
        if (put_id(r, token, target != -100)) return -1;
        if (labels && put_label(r, target == -100 ? token : target)) return -1;
        if (target != -100 && target != token) r->has_labels = 1;
        if (labels) label = label->next;
    }
    mask = field(v, "attention_mask");
    for (mask = mask ? mask->child : NULL; mask; mask = mask->next)
        if (mask->type != JSON_NUMBER || mask->number != 1) {
            fail_record(r, "cannot read the row");
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

static void row_free(struct row *row)
{
    free(row->ids);
    free(row->mask);
    free(row->labels);
    free(row->label);
    free(row->completion);
}

/* Adds a label to the sorted set. */
static int add_label(struct reader *r, const char *label)
{
    struct dataset *d = r->d;
    int low = 0, high = d->n_labels, i;
    char *copy;
    while (low < high) {
        int middle = (low + high) / 2, c = strcmp(d->labels[middle], label);
        if (!c) return 0;
        if (c < 0) low = middle + 1;
        else high = middle;
    }
    if (grow_array((void **)&d->labels, &r->labels_capacity, (size_t)d->n_labels + 1, sizeof *d->labels, r->err)
        || !(copy = new_string(label, r->err))) return -1;
    for (i = d->n_labels++; i > low; i--) d->labels[i] = d->labels[i - 1];
    d->labels[low] = copy;
    return 0;
}

/* ids below the vocabulary, one BOS. */
static int check_ids(struct reader *r)
{
    const struct tokenizer *t = r->o->tokenizer;
    size_t i;
    for (i = 0; i < r->ids.n; i++)
        if (r->o->vocab && r->ids.v[i] >= r->o->vocab) {
            fail_record(r, "an id that the model does not have");
            expected(r->err, "ids below %d", r->o->vocab);
            return found(r->err, "%d", r->ids.v[i]);
        }
    if (t && r->form != FORM_IDS && r->ids.n > 1 && tokenizer_bos(t) >= 0 && r->ids.v[0] == tokenizer_bos(t)
        && r->ids.v[1] == r->ids.v[0]) {
        fail_record(r, "two BOS tokens at the start of a row");
        return hint(r->err, "the text has one already: take it out of the data");
    }
    return 0;
}

/* 0: keep it; 1: it was dropped; -1. */
static int check_length(struct reader *r)
{
    int limit = r->o->max_length;
    if (!limit || r->ids.n <= (size_t)limit) return 0;
    if (r->o->on_overlong == OVERLONG_DROP) {
        r->d->report.dropped_overlong++;
        return 1;
    }
    if (r->o->on_overlong == OVERLONG_TRUNCATE) {
        r->d->report.truncated++;
        r->ids.n = r->mask.n = (size_t)limit;
        if (r->prompt_n > limit) r->prompt_n = limit;
        return 0;
    }
    fail_record(r, "a row that is too long");
    expected(r->err, "at most %d tokens (--max-length)", limit);
    found(r->err, "%zu", r->ids.n);
    return hint(r->err, "--on-overlong truncate or drop");
}

/* Moves what was put into a new row, or counts why not. */
static int add_row(struct reader *r)
{
    struct dataset *d = r->d;
    struct row *row;
    int t, targets = 0, dropped, source = (int)d->report.rows++;
    if (check_ids(r) || (dropped = check_length(r)) < 0) return -1;
    if (dropped) return 0;
    for (t = 1; t < (int)r->mask.n; t++) targets += r->mask.s[t] != 0;
    if (!targets) {
        d->report.without_targets++;
        return 0;
    }
    if (grow_array((void **)&d->rows, &r->rows_capacity, (size_t)d->n + 1, sizeof *d->rows, r->err)) return -1;
    row = &d->rows[d->n++];
    memset(row, 0, sizeof *row);
    row->n = (int)r->ids.n;
    row->n_targets = targets;
    row->source = source;
    row->prompt_n = r->prompt_n;
    row->label = r->label;
    row->completion = r->completion;
    r->label = r->completion = NULL;
    row->ids = new_array(r->ids.n, sizeof *row->ids, r->err);
    row->mask = new_array(r->ids.n, 1, r->err);
    if (!row->ids || !row->mask) return -1;
    memcpy(row->ids, r->ids.v, r->ids.n * sizeof *row->ids);
    memcpy(row->mask, r->mask.s, r->mask.n);
    row->hash = hash_bytes(hash_bytes(HASH_START, row->ids, r->ids.n * sizeof *row->ids), row->mask, r->mask.n);
    if (r->has_labels) {
        if (!(row->labels = new_array(r->ids.n, sizeof *row->labels, r->err))) return -1;
        memcpy(row->labels, r->targets.v, r->ids.n * sizeof *row->labels);
        row->hash = hash_bytes(row->hash, row->labels, r->ids.n * sizeof *row->labels);
    }
    return row->label ? add_label(r, row->label) : 0;
}

static void clear_row(struct reader *r)
{
    r->ids.n = r->mask.n = r->targets.n = r->n_messages = 0;
    r->prompt_n = r->begun = r->has_labels = 0;
    free(r->label);
    free(r->completion);
    r->label = r->completion = NULL;
}

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

/* What the report says of a file's first row. */
static void note_form(struct reader *r, const struct json *v, enum form form)
{
    static const char *const keys[] = { "", "messages", "prompt completion", "prompt completion",
        "instruction input output", "", "", "input_ids labels attention_mask", "" };
    struct data_report *report = &r->d->report;
    const char *text = r->text_key ? r->text_key : form == FORM_SUMMARY ? "document" : "text";
    const char *label = r->label_key ? r->label_key : form == FORM_SUMMARY ? "summary" : "label";
    const struct json *c;
    if (!strstr(report->form, form_names[form])) add_word(report->form, sizeof report->form, form_names[form]);
    for (c = v->child; c; c = c->next) {
        int used = is_word(keys[form], c->key);
        if (!*keys[form]) used = !strcmp(c->key, text) || (form != FORM_TEXT && !strcmp(c->key, label));
        if (!used && !is_word(report->unused, c->key)) add_word(report->unused, sizeof report->unused, c->key);
    }
}

static int read_record(struct reader *r, const struct json *v, int labels_only)
{
    enum form form = recognise(r, v);
    if (form == FORM_NONE || (r->form != FORM_NONE && form != r->form)) return wrong_form(r, v);
    if (!labels_only && r->form == FORM_NONE) note_form(r, v, form);
    r->form = form;
    if (labels_only) {
        const char *label = form == FORM_LABEL ? label_of(r, v) : "";
        return !label || (*label && add_label(r, label)) ? -1 : 0;
    }
    clear_row(r);
    if (r->d->report.rows == INT32_MAX) return fail_record(r, "too many rows");
    return put_record(r, v) || add_row(r) ? -1 : 0;
}

static int read_file(struct reader *r, const char *path, int labels_only)
{
    const struct json *v = NULL;
    int got = records_open(&r->records, path, r->o->csv_delimiter, r->err) ? -1 : 1, rows = 0;
    r->form = FORM_NONE;
    while (got > 0) {
        got = records_next(&r->records, &v, r->err);
        if (got > 0 && read_record(r, v, labels_only)) got = -1;
        rows += got > 0;
    }
    if (!got && !rows) {
        fail(r->err, "no rows", "%s", path);
        got = -1;
    }
    records_close(&r->records);
    return got;
}

static int no_name(struct reader *r, const char *list)
{
    fail(r->err, "wrong value", "--data: %s", list);
    return expected(r->err, "files with commas between them, a name for each");
}

static int read_files(struct reader *r, const char *paths, int labels_only)
{
    const char *list = paths;
    while (paths) {
        size_t n = strcspn(paths, ",");
        char *path = n ? new_string_n(paths, n, r->err) : NULL;
        int bad = !n ? no_name(r, list) : !path || read_file(r, path, labels_only);
        free(path);
        if (bad) return -1;
        paths = paths[n] ? paths + n + 1 : NULL;
    }
    return 0;
}

/* Checks the prompt template and makes what {labels} stands for: the data's own labels take a pass
 * of their own. */
static int prepare_prompt(struct reader *r, const char *paths)
{
    const char *given = r->o->prompt_template;
    if (!given) return 0;
    if (!strstr(given, "{text}") && !strstr(given, "{document}")) {
        fail(r->err, "the prompt template", "--prompt-template");
        return expected(r->err, "{text} or {document} in it");
    }
    if (!strstr(given, "{labels}")) return 0;
    if (!r->o->labels && read_files(r, paths, 1)) return -1;
    if (r->o->labels) join_labels(&r->labels, r->o->labels, r->o->n_labels);
    else join_labels(&r->labels, (const char *const *)r->d->labels, r->d->n_labels);
    return text_check(&r->labels, r->err);
}

static void reader_free(struct reader *r)
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

static void reader_start(struct reader *r, struct dataset *d, const struct data_options *o, struct lora_error *err)
{
    memset(r, 0, sizeof *r);
    r->o = o;
    r->d = d;
    r->err = err;
    r->text_key = o->text_column;
    r->label_key = o->label_column;
}

/* ---- datasets ---- */

static int compare_hashes(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Figures over the rows that are there. */
static int sum_up(struct dataset *d, struct lora_error *err)
{
    uint64_t *hashes = new_array((size_t)d->n, sizeof *hashes, err);
    int i;
    if (!hashes) return -1;
    d->report.used = d->n;
    d->report.tokens = d->report.targets = d->report.duplicates = 0;
    d->report.longest = 0;
    d->hash = HASH_START;
    for (i = 0; i < d->n; i++) {
        const struct row *row = &d->rows[i];
        d->report.tokens += row->n;
        d->report.targets += row->n_targets;
        if (row->n > d->report.longest) d->report.longest = row->n;
        hashes[i] = row->hash;
        d->hash = hash_bytes(d->hash, &row->hash, sizeof row->hash);
    }
    qsort(hashes, (size_t)d->n, sizeof *hashes, compare_hashes);
    for (i = 1; i < d->n; i++) d->report.duplicates += hashes[i] == hashes[i - 1];
    free(hashes);
    return 0;
}

int data_read(struct dataset *d, const char *paths, const struct data_options *o, struct lora_error *err)
{
    struct reader r;
    int bad;
    memset(d, 0, sizeof *d);
    reader_start(&r, d, o, err);
    bad = prepare_prompt(&r, paths) || read_files(&r, paths, 0) || sum_up(d, err);
    if (!bad && !d->n) {
        bad = fail(err, "no rows to use", "%s", paths);
        found(err, "%lld rows: %lld too long, %lld without targets", d->report.rows, d->report.dropped_overlong,
              d->report.without_targets);
    }
    reader_free(&r);
    if (bad) data_free(d);
    return bad ? -1 : 0;
}

void data_free(struct dataset *d)
{
    int i;
    for (i = 0; i < d->n; i++) row_free(&d->rows[i]);
    for (i = 0; i < d->n_labels; i++) free(d->labels[i]);
    free(d->rows);
    free(d->labels);
    memset(d, 0, sizeof *d);
}

int data_split(struct dataset *d, double f, struct dataset *out, struct lora_error *err)
{
    int i, kept = 0;
    memset(out, 0, sizeof *out);
    out->rows = new_array((size_t)d->n, sizeof *out->rows, err);
    out->labels = new_array((size_t)d->n_labels, sizeof *out->labels, err);
    if (!out->rows || !out->labels) {
        data_free(out);
        return -1;
    }
    for (; out->n_labels < d->n_labels; out->n_labels++)
        if (!(out->labels[out->n_labels] = new_string(d->labels[out->n_labels], err))) {
            data_free(out);
            return -1;
        }
    for (i = 0; i < d->n; i++) {
        if (random_uniform(d->rows[i].hash, 0) < f) out->rows[out->n++] = d->rows[i];
        else d->rows[kept++] = d->rows[i];
    }
    d->n = kept;
    out->report.rows = out->n;
    memcpy(out->report.form, d->report.form, sizeof out->report.form);
    if (sum_up(d, err) || sum_up(out, err)) return -1;
    if (d->n && out->n) return 0;
    fail(err, "cannot split the rows", "%d rows", d->n + out->n);
    expected(err, "some rows on either side");
    return found(err, "%d and %d", d->n, out->n);
}

/* Of a user turn and its answer, the ids before the answer or those of it, appended to out. */
static int turn_ids(const struct data_options *o, const char *user, const char *answer, int of_answer,
                    struct ids *out, struct lora_error *err)
{
    struct reader r;
    struct dataset unused;
    size_t i, end;
    int bad;
    reader_start(&r, &unused, o, err);
    r.records.path = of_answer ? "label" : "prompt";
    bad = put_turn(&r, user, "", answer);
    end = of_answer ? r.ids.n : (size_t)r.prompt_n;
    for (i = of_answer ? (size_t)r.prompt_n : 0; !bad && i < end; i++) {
        bad = grow_array((void **)&out->v, &out->capacity, out->n + 1, sizeof *out->v, err);
        if (!bad) out->v[out->n++] = r.ids.v[i];
    }
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
