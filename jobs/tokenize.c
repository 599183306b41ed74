/* tokenize.c - lora tokenize: text to ids, or ids to text. */
#include "job.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tokenizer.h"

struct settings {
    struct common common;
    const char *text, *ids;
    int no_special, text_only;
};

static const struct option options[] = {
    { "text", NULL, OPTION_TEXT, offsetof(struct settings, text), NULL, "TEXT",
      "the text (default: stdin, byte for byte)", 0, 0 },
    { "ids", NULL, OPTION_TEXT, offsetof(struct settings, ids), NULL, "LIST",
      "print the text of these ids, with spaces or commas between them", 0, 0 },
    { "no-special", NULL, OPTION_FLAG, offsetof(struct settings, no_special), NULL, NULL,
      "add no BOS or EOS; special tokens written in the text are still recognised", 0, 0 },
    { "text-only", NULL, OPTION_FLAG, offsetof(struct settings, text_only), NULL, NULL,
      "special tokens written in the text are text", 0, 0 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

static int read_stdin(struct text *text, struct lora_error *err)
{
    char buffer[65536];
    size_t n;
    while ((n = fread(buffer, 1, sizeof buffer, stdin))) text_add(text, buffer, n);
    if (ferror(stdin)) {
        fail(err, "cannot read", "stdin");
        return found(err, "%s", strerror(errno));
    }
    return text_check(text, err);
}

/* Adds the numbers of the list. */
static int read_ids(const char *list, struct ids *ids, struct lora_error *err)
{
    while (*(list += strspn(list, " ,\t\r\n"))) {
        size_t n = strcspn(list, " ,\t\r\n");
        char number[24] = "";
        long long id;
        if (n < sizeof number) memcpy(number, list, n);
        if (parse_integer(number, &id) || id < 0 || id > INT_MAX) {
            fail(err, "wrong value", "--ids");
            expected(err, "ids, with spaces or commas between them");
            return found(err, "\"%.*s\"", n > 99 ? 99 : (int)n, list);
        }
        if (ids_add(ids, (int)id, err)) return -1;
        list += n;
    }
    return 0;
}

static int print_text(const struct tokenizer *t, const struct settings *s, struct lora_error *err)
{
    struct ids ids = { 0 };
    struct text text = { 0 };
    int bad = read_ids(s->ids, &ids, err) || tokenizer_decode(t, ids.v, ids.n, 0, &text, err);
    if (!bad && text.n) fwrite(text.s, 1, text.n, stdout);
    ids_free(&ids);
    text_free(&text);
    return bad ? -1 : 0;
}

static int print_ids(const struct tokenizer *t, const struct settings *s, struct lora_error *err)
{
    struct ids ids = { 0 };
    struct text text = { 0 };
    int flags = (s->no_special ? 0 : TOKENIZE_SPECIAL) | (s->text_only ? TOKENIZE_TEXT_ONLY : 0);
    size_t i;
    int bad = 0;
    if (s->text) text_puts(&text, s->text);
    else bad = read_stdin(&text, err);
    bad = bad || text_check(&text, err) || tokenizer_encode(t, text.s ? text.s : "", text.n, flags, &ids, err);
    for (i = 0; !bad && i < ids.n; i++) printf("%s%d", i ? " " : "", ids.v[i]);
    if (!bad) putchar('\n');
    ids_free(&ids);
    text_free(&text);
    return bad ? -1 : 0;
}

static int run(void *settings, struct lora_error *err)
{
    const struct settings *s = settings;
    struct tokenizer *t = NULL;
    int bad;
    if (!s->common.model) return job_usage_error(&job_tokenize, "--model PATH is needed");
    if (s->text && s->ids) return job_usage_error(&job_tokenize, "--text or --ids, not both");
    if (s->ids && (s->no_special || s->text_only)) status("warning: --no-special and --text-only change nothing with --ids");
    bad = tokenizer_open(&t, s->common.model, err) || (s->ids ? print_text(t, s, err) : print_ids(t, s, err));
    tokenizer_close(t);
    return bad ? -1 : EXIT_DONE;
}

static const struct settings defaults = { .common = COMMON_DEFAULTS };

const struct job job_tokenize = {
    "tokenize", "ids of a text, or the text of ids",
    "--model PATH [--text TEXT | --ids LIST] [--no-special] [--text-only]", options, common_options,
    sizeof defaults, &defaults, run
};
