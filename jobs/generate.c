/* generate.c - `lora generate`: an answer to a prompt or to messages, or a conversation. */
#include "generation.h"
#include "../formats/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A conversation may grow to this many tokens, if the model has as many positions. */
#define CHAT_LENGTH 4096

struct settings {
    struct common common;
    struct option_list adapters, stop;
    const char *prompt, *messages;
    int chat, raw, ids, max_new_tokens, top_k;
    double temperature, top_p, min_p, repetition_penalty;
};

static const struct option options[] = {
    { "adapter", NULL, OPTION_LIST, offsetof(struct settings, adapters), NULL, "DIR[=SCALE]",
      "a PEFT directory; may be given several times", 0, 0 },
    { "prompt", NULL, OPTION_TEXT, offsetof(struct settings, prompt), NULL, "TEXT",
      "a user turn; an adapter's prompt template is put around it", 0, 0 },
    { "messages", NULL, OPTION_TEXT, offsetof(struct settings, messages), NULL, "FILE",
      "JSON: an array of {\"role\", \"content\"}, or an object with one as \"messages\"", 0, 0 },
    { "chat", NULL, OPTION_FLAG, offsetof(struct settings, chat), NULL, NULL,
      "a conversation: each line of standard input is a user turn", 0, 0 },
    { "raw", NULL, OPTION_FLAG, offsetof(struct settings, raw), NULL, NULL,
      "the prompt as it is, without templates", 0, 0 },
    { "ids", NULL, OPTION_FLAG, offsetof(struct settings, ids), NULL, NULL,
      "print the new ids, the end of turn included, in place of the text", 0, 0 },
    { "max-new-tokens", NULL, OPTION_INT, offsetof(struct settings, max_new_tokens), NULL, "N",
      "most tokens of an answer", 1, 1 << 20 },
    { "temperature", NULL, OPTION_NUMBER, offsetof(struct settings, temperature), NULL, "X",
      "0 takes the likeliest token; above, tokens are drawn", 0, 1000 },
    { "top-k", NULL, OPTION_INT, offsetof(struct settings, top_k), NULL, "N",
      "draw from the N likeliest only; 0: from all", 0, 1 << 30 },
    { "top-p", NULL, OPTION_NUMBER, offsetof(struct settings, top_p), NULL, "P",
      "draw from the fewest that have this probability together", 0, 1 },
    { "min-p", NULL, OPTION_NUMBER, offsetof(struct settings, min_p), NULL, "P",
      "draw from those at least this likely beside the likeliest", 0, 1 },
    { "repetition-penalty", NULL, OPTION_NUMBER, offsetof(struct settings, repetition_penalty), NULL, "X",
      "divides logits of tokens that are there already; 1: none", 0.01, 100 },
    { "stop", NULL, OPTION_LIST, offsetof(struct settings, stop), NULL, "TEXT",
      "end the answer before this text; may be given several times", 0, 0 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

struct run {
    const struct settings *o;
    struct session s;
    struct data_options rows;
    struct generator g;
    struct sequence q;
    struct sampling how;
    struct text pending, answer;    /* bytes of an unfinished character; the answer so far */
    size_t printed;
    struct lora_error *err;
};

/* ---- text as it comes ---- */

/* Ends the answer at the first stop text in it: 1. */
static int cut_at_stop(struct run *r)
{
    int i, is_cut = 0;
    for (i = 0; r->answer.n && i < r->o->stop.n; i++) {
        char *at = strstr(r->answer.s, r->o->stop.v[i]);
        if (!at) continue;
        r->answer.n = (size_t)(at - r->answer.s);
        *at = 0;
        is_cut = 1;
    }
    return is_cut;
}

/* Bytes at the answer's end that may be the beginning of a stop text: they are not printed yet. */
static size_t held_back(const struct run *r)
{
    size_t most = 0, n;
    int i;
    for (i = 0; i < r->o->stop.n; i++)
        for (n = strlen(r->o->stop.v[i]); n > most; n--)
            if (n <= r->answer.n && !strncmp(r->answer.s + r->answer.n - n, r->o->stop.v[i], n)) most = n;
    return most;
}

static void print_answer(struct run *r, size_t held)
{
    size_t end = r->answer.n > held ? r->answer.n - held : 0;
    if (r->o->ids || end <= r->printed) return;
    fwrite(r->answer.s + r->printed, 1, end - r->printed, stdout);
    fflush(stdout);
    r->printed = end;
}

/* ---- an answer ---- */

/* Feeds the sequence and goes on until a stop: *n new ids are in the sequence then. */
static int generate(struct run *r, int *n)
{
    struct sequence *q = &r->q;
    for (*n = 0; *n < r->o->max_new_tokens && !stop_signal(); ) {
        int id;
        if (generator_feed(&r->g, &q, 1, r->err)) return -1;
        id = generator_choose(&r->g, q, &r->how);
        if (ids_add(&q->ids, id, r->err)) return -1;
        ++*n;
        if (generator_is_stop(&r->g, id)) break;
        if (id >= tokenizer_size(r->s.tokenizer)) continue;     /* one that only pads the embedding: no text */
        if (tokenizer_stream(r->s.tokenizer, id, &r->pending, &r->answer, r->err)
            || text_check(&r->answer, r->err)) return -1;
        if (cut_at_stop(r)) break;
        print_answer(r, held_back(r));
    }
    text_add(&r->answer, r->pending.s ? r->pending.s : "", r->pending.n);   /* a character that never ended */
    print_answer(r, 0);
    return text_check(&r->answer, r->err);
}

/* One answer to the ids of the sequence, printed; its speed as a status. */
static int answer(struct run *r)
{
    double start = seconds_now(), seconds;
    long long before = r->g.computed;
    int i, n;
    text_free(&r->pending);        /* all zero: a text begins */
    r->answer.n = r->printed = 0;
    text_puts(&r->answer, "");
    if (generate(r, &n)) return -1;
    for (i = 0; r->o->ids && i < n; i++) printf("%s%d", i ? " " : "", r->q.ids.v[r->q.ids.n - (size_t)(n - i)]);
    putchar('\n');
    fflush(stdout);
    seconds = seconds_now() - start;
    status("%lld tokens read, %d new, %.1f s, %.1f new tokens/s", r->g.computed - before - (n ? n - 1 : 0), n,
           seconds, n / (seconds > 0 ? seconds : 1));
    return 0;
}

/* ---- what is answered ---- */

static int need_tokenizer(struct run *r)
{
    if (r->s.tokenizer) return 0;
    fail(r->err, "no tokenizer", "%s", r->o->common.model);
    return expected(r->err, "tokenizer.json in a directory, or a .gguf file that has one");
}

static int raw_ids(struct run *r, struct ids *ids)
{
    int bos = tokenizer_bos(r->s.tokenizer);
    if (tokenizer_encode(r->s.tokenizer, r->o->prompt, strlen(r->o->prompt), TOKENIZE_SPECIAL, ids, r->err)) return -1;
    if (bos < 0 || ids->n < 2 || ids->v[0] != bos || ids->v[1] != bos) return 0;
    fail(r->err, "two BOS tokens at the start", "--prompt");
    return hint(r->err, "one is put there: take the other out of the text");
}

static int prompt_ids(struct run *r, struct ids *ids)
{
    char *filled = NULL;
    int bad;
    if (r->o->raw) return raw_ids(r, ids);
    if (!r->s.chat) status("no chat template: the prompt in Alpaca's text (--raw gives it as it is)");
    if (r->s.prompt_template
        && !(filled = data_prompt(&r->rows, r->s.prompt_template, r->o->prompt, r->err))) return -1;
    bad = data_prompt_ids(&r->rows, filled ? filled : r->o->prompt, ids, r->err);
    free(filled);
    return bad;
}

/* The messages and what asks for an answer. */
static int chat_ids(struct run *r, const struct message *messages, size_t n, struct ids *ids)
{
    const struct tokenizer *t = r->s.tokenizer;
    struct chat_text c;
    int bad;
    memset(&c, 0, sizeof c);
    if (!r->s.chat) {
        fail(r->err, "no chat template", "%s", r->o->common.model);
        return hint(r->err, "--chat-template NAME picks one");
    }
    bad = chat_render(r->s.chat, messages, n, 1, data_bos_text(t), data_eos_text(t), &c, r->err)
       || tokenizer_encode(t, c.text.s, c.text.n, 0, ids, r->err);
    chat_text_free(&c);
    return bad ? -1 : 0;
}

static int file_ids(struct run *r, struct ids *ids)
{
    struct json_document d = { NULL, NULL };
    struct message *messages = NULL;
    size_t n = 0;
    int bad = json_read(&d, r->o->messages, r->err)
           || chat_read_messages(d.root, r->o->messages, &messages, &n, r->err)
           || chat_ids(r, messages, n, ids);
    free(messages);
    json_free(&d);
    return bad ? -1 : 0;
}

static int run_once(struct run *r)
{
    if (r->o->messages ? file_ids(r, &r->q.ids) : prompt_ids(r, &r->q.ids)) return -1;
    if (!r->q.ids.n) {
        fail(r->err, "nothing to go on from", "--prompt");
        return expected(r->err, "at least one token");
    }
    if ((long long)r->q.ids.n + r->o->max_new_tokens > r->s.model->config.max_positions)
        status("warning: %zu tokens and %d new ones are more than the model's %d positions", r->q.ids.n,
               r->o->max_new_tokens, r->s.model->config.max_positions);
    if (r->q.ids.n > (size_t)(INT32_MAX - r->o->max_new_tokens)) return fail(r->err, "the prompt is too long", "--prompt");
    if (generator_open(&r->g, &r->s, 1, (int)r->q.ids.n + r->o->max_new_tokens, NULL, 0, r->err)) return -1;
    return answer(r);
}

/* ---- a conversation ---- */

struct conversation { struct message *v; size_t n, capacity; };

static int say(struct run *r, struct conversation *c, const char *role, const char *content)
{
    if (grow_array((void **)&c->v, &c->capacity, c->n + 1, sizeof *c->v, r->err)
        || !(c->v[c->n].content = new_string(content, r->err))) return -1;
    c->v[c->n++].role = role;
    return 0;
}

/* The whole conversation again, but what the cache already holds of it is not computed again. */
static int next_turn(struct run *r, struct conversation *c, const char *line)
{
    struct ids ids = { NULL, 0, 0 };
    struct sequence *q = &r->q;
    size_t same = 0;
    int bad = say(r, c, "user", line) || chat_ids(r, c->v, c->n, &ids);
    if (!bad && ids.n + (size_t)r->o->max_new_tokens > (size_t)r->g.slot_length) {
        bad = fail(r->err, "the conversation is too long", "turn %zu", c->n / 2 + 1);
        expected(r->err, "at most %d tokens with the answer", r->g.slot_length);
    }
    if (!bad) {
        while (same < q->cached && same + 1 < ids.n && q->ids.v[same] == ids.v[same]) same++;
        q->cached = same;
        q->ids.n = 0;
        bad = ids_append(&q->ids, ids.v, ids.n, r->err) || answer(r) || say(r, c, "assistant", r->answer.s);
    }
    ids_free(&ids);
    return bad ? -1 : 0;
}

static int run_chat(struct run *r)
{
    struct conversation c = { NULL, 0, 0 };
    int length = r->s.model->config.max_positions, bad, tty = isatty(0) && isatty(2);
    char *line = NULL;
    size_t size = 0, i;
    if (length > CHAT_LENGTH) length = CHAT_LENGTH;
    bad = generator_open(&r->g, &r->s, 1, length, NULL, 0, r->err);
    while (!bad && !stop_signal()) {
        ssize_t n;
        if (tty) fputs("> ", stderr);
        n = getline(&line, &size, stdin);
        if (n < 0) break;
        if (strlen(line) != (size_t)n) {
            fail(r->err, "cannot read a turn", "standard input");
            bad = found(r->err, "a NUL byte");
            break;
        }
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        if (n) bad = next_turn(r, &c, line);
    }
    if (tty) fputc('\n', stderr);
    for (i = 0; i < c.n; i++) free((char *)c.v[i].content);
    free(c.v);
    free(line);
    return bad ? -1 : 0;
}

/* ---- the job ---- */

static int generate_all(struct run *r)
{
    static const struct data_settings none = DATA_DEFAULTS;
    if (session_open(&r->s, &r->o->common, &r->o->adapters, r->o->raw, r->err) || need_tokenizer(r)) return -1;
    session_data_options(&r->s, &none, &r->rows);
    r->how = (struct sampling){
        .repetition_penalty = r->o->repetition_penalty, .temperature = r->o->temperature, .top_k = r->o->top_k,
        .top_p = r->o->top_p, .min_p = r->o->min_p, .key = random_key(r->s.seed, "sampling")
    };
    if (!r->o->prompt && r->s.prompt_template)
        status("the prompt template is for --prompt: the turns of %s are as they stand there",
               r->o->chat ? "a conversation" : r->o->messages);
    stop_install(NULL);
    return r->o->chat ? run_chat(r) : run_once(r);
}

/* 0, or the exit status of wrong usage. */
static int check_options(const struct settings *o)
{
    int i, ways = (o->prompt != NULL) + (o->messages != NULL) + o->chat;
    if (!o->common.model) return job_usage_error(&job_generate, "--model is missing");
    if (ways != 1) return job_usage_error(&job_generate, "one of --prompt, --messages and --chat is needed");
    if (o->raw && !o->prompt) return job_usage_error(&job_generate, "--raw goes with --prompt");
    for (i = 0; i < o->stop.n; i++)
        if (!*o->stop.v[i]) return job_usage_error(&job_generate, "--stop is empty");
    if (o->raw && o->common.prompt_template) status("warning: --prompt-template changes nothing with --raw");
    if (!o->temperature && (o->top_k || o->top_p < 1 || o->min_p > 0))
        status("warning: --top-k, --top-p and --min-p change nothing at --temperature 0");
    return 0;
}

static int run(void *settings, struct lora_error *err)
{
    struct run r;
    int code = check_options(settings);
    if (code) return code;
    memset(&r, 0, sizeof r);
    r.o = settings;
    r.err = err;
    code = generate_all(&r) ? -1 : stop_signal() ? 128 + stop_signal() : EXIT_DONE;
    generator_close(&r.g);
    session_close(&r.s);
    ids_free(&r.q.ids);
    text_free(&r.pending);
    text_free(&r.answer);
    return code;
}

static const struct settings defaults = {
    .common = COMMON_DEFAULTS, .max_new_tokens = 256, .top_p = 1, .repetition_penalty = 1
};

const struct job job_generate = {
    "generate", "answers a prompt or messages, or holds a conversation",
    "--model M [--adapter DIR[=SCALE]...] (--prompt TEXT | --messages FILE | --chat) [options]",
    options, common_options, sizeof defaults, &defaults, run
};
