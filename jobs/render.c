/* render.c - lora render: the text that a chat template makes of messages. */
#include "job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../data.h"

struct settings {
    struct common common;
    const char *messages;
    int add_generation_prompt, targets;
};

static const struct option options[] = {
    { "messages", NULL, OPTION_TEXT, offsetof(struct settings, messages), NULL, "FILE",
      "JSON: an array of {\"role\", \"content\"}, or an object with one as \"messages\"", 0, 0 },
    { "add-generation-prompt", NULL, OPTION_FLAG, offsetof(struct settings, add_generation_prompt), NULL, NULL,
      "end with what asks for an answer", 0, 0 },
    { "targets", NULL, OPTION_FLAG, offsetof(struct settings, targets), NULL, NULL,
      "put the trained spans between \xc2\xab and \xc2\xbb", 0, 0 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

static void print(const struct chat_text *out, int targets)
{
    size_t i, at = 0;
    for (i = 0; targets && i < out->n_targets; i++) {
        struct span span = out->targets[i];
        fwrite(out->text.s + at, 1, span.start - at, stdout);
        fputs("\xc2\xab", stdout);
        fwrite(out->text.s + span.start, 1, span.end - span.start, stdout);
        fputs("\xc2\xbb", stdout);
        at = span.end;
    }
    fwrite(out->text.s + at, 1, out->text.n - at, stdout);
}

static const struct chat_template *pick(const struct settings *s, const struct tokenizer *t, struct lora_error *err)
{
    const char *own = t ? tokenizer_chat_template(t) : NULL;
    if (s->common.chat_template) return chat_find(s->common.chat_template, err);
    if (own) return chat_recognise(own, err);
    fail(err, "chat template", "%s", s->common.model);
    expected(err, "a model with a chat template");
    found(err, "none");
    hint(err, "--chat-template NAME picks one");
    return NULL;
}

static int render(const struct settings *s, struct lora_error *err)
{
    struct tokenizer *t = NULL;
    struct json_document d = { 0 };
    struct message *messages = NULL;
    struct chat_text out = { { 0 }, NULL, 0, 0 };
    const struct chat_template *chat = NULL;
    size_t n = 0;
    int bad = s->common.model && tokenizer_open(&t, s->common.model, err);
    bad = bad || !(chat = pick(s, t, err)) || json_read(&d, s->messages, err)
        || chat_read_messages(d.root, s->messages, &messages, &n, err)
        || chat_render(chat, messages, n, s->add_generation_prompt, data_bos_text(t), data_eos_text(t), &out, err);
    if (!bad) print(&out, s->targets);
    chat_text_free(&out);
    free(messages);
    json_free(&d);
    tokenizer_close(t);
    return bad ? -1 : 0;
}

static int run(void *settings, struct lora_error *err)
{
    const struct settings *s = settings;
    if (!s->messages) return job_usage_error(&job_render, "--messages FILE is needed");
    if (!s->common.model && !s->common.chat_template)
        return job_usage_error(&job_render, "--model PATH or --chat-template NAME is needed");
    return render(s, err);
}

static const struct settings defaults = { .common = COMMON_DEFAULTS };

const struct job job_render = {
    "render", "the text that a chat template makes of messages",
    "--messages FILE (--model PATH | --chat-template NAME) [--add-generation-prompt] [--targets]",
    options, common_options, sizeof defaults, &defaults, run
};
