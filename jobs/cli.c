/* cli.c - words into settings, help out of the tables, and what the jobs say on stderr. */
#include "job.h"
#include "../chat.h"
#include "../kernels.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct option common_options[] = {
    { "model", "model-name-or-path", OPTION_TEXT, offsetof(struct common, model), NULL, "PATH",
      "a Hugging Face directory or a .gguf file", 0, 0 },
    { "chat-template", NULL, OPTION_TEXT, offsetof(struct common, chat_template), NULL, "NAME",
      "chat template by name (default: the model's own)", 0, 0 },
    { "prompt-template", NULL, OPTION_TEXT, offsetof(struct common, prompt_template), NULL, "TEXT",
      "user turn of rows with a label or a summary: {text} or {document}, {labels}; \\n is a line break",
      0, 0 },
    { "backend", NULL, OPTION_TEXT, offsetof(struct common, backend), NULL, "NAME",
      "table of kernels: auto, the best for this processor, or one of `lora backends`: cuda is a GPU", 0, 0 },
    { "compute", NULL, OPTION_CHOICE, offsetof(struct common, compute), "f32|bf16", NULL,
      "arithmetic of the products with frozen weights (default: f32); `lora backends` says where bf16 is there", 0, 0 },
    { "threads", NULL, OPTION_INT, offsetof(struct common, threads), NULL, "N",
      "threads (default: the cores this process may use)", 0, 4096 },
    { "seed", NULL, OPTION_LONG, offsetof(struct common, seed), NULL, "N",
      "seed of every random number", 0, 9e18 },
    { "max-memory", NULL, OPTION_SIZE, offsetof(struct common, max_memory), NULL, "SIZE",
      "most memory to take, as 500M or 4G; with a GPU, of its own (default: three quarters of what is available)", 0, 0 },
    { "config", NULL, OPTION_TEXT, offsetof(struct common, config), NULL, "FILE",
      "options from a file, one `name: value` a line; the command line wins", 0, 0 },
    { "load-in-4bit", NULL, OPTION_FLAG, offsetof(struct common, base.in_4bit), NULL, NULL,
      "quantise the frozen base to 4 bits while loading", 0, 0 },
    { "load-in-8bit", NULL, OPTION_FLAG, offsetof(struct common, base.in_8bit), NULL, NULL, "or to 8 bits (LLM.int8)", 0, 0 },
    { "quant-type", "bnb-4bit-quant-type", OPTION_CHOICE, offsetof(struct common, base.quant_type), "nf4|fp4", NULL,
      "the 4-bit type (default: nf4)", 0, 0 },
    { "double-quant", "bnb-4bit-use-double-quant", OPTION_FLAG, offsetof(struct common, base.double_quant), NULL, NULL,
      "quantise the scales of 4-bit blocks as well", 0, 0 },
    { "block-size", "bnb-4bit-blocksize|bnb-4bit-block-size", OPTION_INT, offsetof(struct common, base.block_size), NULL, "N",
      "numbers to a scale, a power of two (default: 64)", 1, 1 << 20 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

/* ---- messages ---- */

/* On a terminal the cursor may stand on a progress line, which a message replaces. */
void progress_done(void)
{
    if (isatty(2)) fputs("\r\033[K", stderr);
}

static int print_error(const struct lora_error *err)
{
    progress_done();
    fprintf(stderr, "lora: %s", err->what);
    if (err->where[0]) fprintf(stderr, ": %s", err->where);
    if (err->expected[0]) fprintf(stderr, ": expected %s", err->expected);
    if (err->found[0]) fprintf(stderr, "%s found %s", err->expected[0] ? "," : ":", err->found);
    fputc('\n', stderr);
    if (err->hint[0]) fprintf(stderr, "hint: %s\n", err->hint);
    return EXIT_USAGE;
}

/* The exit status: wrong usage is also what library code calls a value that cannot be right. */
static int job_error(const struct lora_error *err)
{
    fflush(stdout);
    print_error(err);
    if (!strcmp(err->what, "stopped")) return 128 + stop_signal();
    return strcmp(err->what, "cannot use the option") && strcmp(err->what, "wrong value") ? EXIT_FAILED : EXIT_USAGE;
}

int job_usage_error(const struct job *job, const char *format, ...)
{
    struct lora_error err;
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    fail(&err, job->name, "%s", message);
    hint(&err, "`lora help %s` lists its options", job->name);
    return print_error(&err);
}

void status(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    progress_done();
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

void progress(const char *format, ...)
{
    va_list arguments;
    if (!isatty(2)) return;
    va_start(arguments, format);
    progress_done();
    vfprintf(stderr, format, arguments);
    fflush(stderr);
    va_end(arguments);
}

int stdout_failed(struct lora_error *err)
{
    fail(err, "cannot write", "standard output");
    return found(err, "%s", strerror(errno));
}

int job_write_json(const char *path, const struct text *json, struct lora_error *err)
{
    if (text_check(json, err)) return -1;
    if (strcmp(path, "-")) return output_spares_models(path, NULL, err) || file_write(path, json->s, json->n, err) ? -1 : 0;
    return fwrite(json->s, 1, json->n, stdout) != json->n || fflush(stdout) ? stdout_failed(err) : 0;
}

/* ---- names ---- */

/* Who gave an option. */
enum { NOBODY, WORDS, CONFIG };

/* Words and lines on their way into settings. What is wrong is in err, with its place: "--lora-r", or "FILE, line 3:
 * lora-r". */
struct parser {
    const struct job *job;
    char *settings;
    char *given;                /* a byte an option: who gave it */
    char *config;               /* the text of --config's file, which settings point into */
    int failed;                 /* what is wrong is that file, and not how the program was called */
    struct lora_error err;
};

static int same_letter(char a, char b) { return (a == '_' ? '-' : a) == (b == '_' ? '-' : b); }

/* The next word of *list, which | parts, and its length; NULL: there are no more, or there is no list. */
static const char *next_word(const char **list, size_t *n)
{
    const char *word = *list;
    if (!word) return NULL;
    *n = strcspn(word, "|");
    *list = word[*n] ? word + *n + 1 : NULL;
    return word;
}

/* Which word of the list is name[n]? -1: none. */
static int word_index(const char *list, const char *name, size_t n)
{
    const char *word;
    size_t length, i;
    int index;
    for (index = 0; (word = next_word(&list, &length)); index++) {
        for (i = 0; i < n && i < length && same_letter(word[i], name[i]); i++) ;
        if (i == n && i == length) return index;
    }
    return -1;
}

/* Rows of both tables, numbered as `given` numbers them. NULL after the last. */
static const struct option *option_at(const struct job *job, int i)
{
    int n = 0;
    while (job->options && job->options[n].name) n++;
    if (i < n) return &job->options[i];
    return job->more && job->more[i - n].name ? &job->more[i - n] : NULL;
}

static int option_find(const struct job *job, const char *name, size_t n)
{
    const struct option *o;
    int i;
    for (i = 0; (o = option_at(job, i)); i++)
        if (word_index(o->name, name, n) >= 0 || word_index(o->aliases, name, n) >= 0) return i;
    return -1;
}

/* Edit distance (Levenshtein 1966) of a[n] and b[m]; both are cut at 63. */
static int distance(const char *a, size_t n, const char *b, size_t m)
{
    int row[64], i, j;
    if (n > 63) n = 63;
    if (m > 63) m = 63;
    for (j = 0; j <= (int)m; j++) row[j] = j;
    for (i = 1; i <= (int)n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (j = 1; j <= (int)m; j++) {
            int best = diagonal + !same_letter(a[i - 1], b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

/* The name or alias of the tables that is nearest; "help" when there is nothing nearer. */
static void nearest_option(const struct job *job, const char *name, size_t n, char *out, size_t size)
{
    const struct option *o;
    int i, k, best = distance("help", 4, name, n);
    snprintf(out, size, "help");
    for (i = 0; (o = option_at(job, i)); i++)
        for (k = 0; k < 2; k++) {
            const char *list = k ? o->aliases : o->name, *word;
            size_t length;
            while ((word = next_word(&list, &length))) {
                int d = distance(word, length, name, n);
                if (d >= best) continue;
                best = d;
                snprintf(out, size, "%.*s", (int)length, word);
            }
        }
}

const char *nearest_word(const char *name, const char *const *words, int n)
{
    const char *nearest = NULL;
    int i, best = INT_MAX;
    for (i = 0; i < n; i++) {
        int d = distance(words[i], strlen(words[i]), name, strlen(name));
        if (d < best) {
            best = d;
            nearest = words[i];
        }
    }
    return nearest;
}

/* ---- values ---- */

static int wrong_value(struct parser *p, const char *place, const char *value, const char *what)
{
    fail(&p->err, "wrong value", "%s", place);
    expected(&p->err, "%s", what);
    return found(&p->err, "\"%s\"", value);
}

static int read_flag(const char *value, int *out)
{
    *out = word_index("true|True|on|yes|1", value, strlen(value)) >= 0;
    return *out || word_index("false|False|off|no|0", value, strlen(value)) >= 0 ? 0 : -1;
}

/* 123456, 500M, 1.5GiB: K M G T and KiB ... are powers of 1024, KB ... of 1000. */
static int read_size(const char *value, size_t *out)
{
    static const char units[] = "KMGT";
    size_t n = strspn(value, "0123456789.");
    char number[32];
    double x;
    const char *unit;
    if (!n || n >= sizeof number) return -1;
    memcpy(number, value, n);
    number[n] = 0;
    if (parse_number(number, &x)) return -1;
    value += n;
    if (*value) {
        int power;
        unit = strchr(units, *value);
        if (!unit) return -1;
        if (value[1] && strcmp(value + 1, "B") && strcmp(value + 1, "iB")) return -1;
        for (power = (int)(unit - units); power >= 0; power--) x *= value[1] == 'B' ? 1000 : 1024;
    }
    if (!(x >= 1 && x < (double)(SIZE_MAX / 2))) return -1;      /* 0 is no limit that anything could keep to */
    *out = (size_t)x;
    return 0;
}

const char *option_choice(const struct option *o, int i, size_t *n)
{
    const char *list = i < 0 ? NULL : o->choices, *word;
    while ((word = next_word(&list, n)) && i-- > 0) ;
    return word;
}

/* One that can part columns. */
static int read_character(const char *value, char *out)
{
    int is_tab = !strcmp(value, "tab") || !strcmp(value, "\\t");
    if (!is_tab && (strlen(value) != 1 || strchr("\"\r\n", value[0]))) return -1;
    *out = is_tab ? '\t' : value[0];
    return 0;
}

static int in_range(struct parser *p, const struct option *o, const char *place, const char *value, double x)
{
    char what[96];
    if (!(o->low < o->high) || (x >= o->low && x <= o->high)) return 0;
    if (o->high >= INT_MAX) snprintf(what, sizeof what, "at least %g", o->low);
    else snprintf(what, sizeof what, "%.9g to %.9g", o->low, o->high);
    return wrong_value(p, place, value, what);
}

static int list_add(struct parser *p, struct option_list *list, const char *value)
{
    const char **v = realloc(list->v, ((size_t)list->n + 1) * sizeof *v);
    if (!v) return fail_memory(&p->err, "the options", ((size_t)list->n + 1) * sizeof *v);
    v[list->n++] = value;
    list->v = v;
    return 0;
}

static int set_number(struct parser *p, const struct option *o, const char *place, const char *value)
{
    void *field = p->settings + o->offset;
    long long i;
    double x;
    if (o->type == OPTION_NUMBER) {
        if (parse_number(value, &x)) return wrong_value(p, place, value, "a number");
        if (in_range(p, o, place, value, x)) return -1;
        *(double *)field = x;
        return 0;
    }
    if (parse_integer(value, &i) || (o->type == OPTION_INT && (i > INT_MAX || i < INT_MIN)))
        return wrong_value(p, place, value, "a whole number");
    if (in_range(p, o, place, value, (double)i)) return -1;
    if (o->type == OPTION_INT) *(int *)field = (int)i;
    else *(long long *)field = i;
    return 0;
}

/* Turned off it asks for nothing. */
static int later_option(struct parser *p, const char *place, const char *value)
{
    int flag;
    return value && !read_flag(value, &flag) && !flag ? 0 : fail(&p->err, "an option that this version does not have yet", "%s", place);
}

/* value NULL: none was given. */
static int set_option(struct parser *p, const struct option *o, const char *place, const char *value)
{
    void *field = p->settings + o->offset;
    char what[256];
    int i;
    if (o->type == OPTION_LATER) return later_option(p, place, value);
    if (!value && o->type != OPTION_FLAG) {
        fail(&p->err, "an option without its value", "%s", place);
        expected(&p->err, "%s", o->value ? o->value : o->choices ? o->choices : "a value");
        return strncmp(place, "--", 2) ? -1 : hint(&p->err, "a value that begins with -- is written %s=VALUE", place);
    }
    if (value && !*value && (o->type == OPTION_TEXT || o->type == OPTION_LIST) && strcmp(o->value, "TEXT"))
        return wrong_value(p, place, value, o->value);      /* a text may be empty, a name not */
    switch (o->type) {
    case OPTION_FLAG:
        if (value && read_flag(value, field)) return wrong_value(p, place, value, "true or false");
        if (!value) *(int *)field = 1;
        return 0;
    case OPTION_SIZE:
        if (read_size(value, field)) return wrong_value(p, place, value, "a size such as 500M or 4G");
        return 0;
    case OPTION_CHOICE:
        snprintf(what, sizeof what, "one of %s", o->choices);
        if (!strncmp(o->choices, "on|off", 6) && !read_flag(value, &i)) i = !i;
        else if ((i = word_index(o->choices, value, strlen(value))) < 0) return wrong_value(p, place, value, what);
        *(int *)field = i;
        return 0;
    case OPTION_CHARACTER:
        if (read_character(value, field)) return wrong_value(p, place, value, "one character, or tab");
        return 0;
    case OPTION_TEXT:
        *(const char **)field = value;
        return 0;
    case OPTION_LIST:
        return list_add(p, field, value);
    default:
        return set_number(p, o, place, value);
    }
}

/* ---- the command line ---- */

static int unknown_option(struct parser *p, const char *place, const char *name, size_t n)
{
    char nearest[64];
    nearest_option(p->job, name, n, nearest, sizeof nearest);
    fail(&p->err, "unknown option", "%s", place);
    return hint(&p->err, "did you mean --%s? `lora help %s` lists all", nearest, p->job->name);
}

/* Reads argv[*i] and, if it takes one, the value after it. */
static int read_word(struct parser *p, int argc, char **argv, int *i)
{
    const char *word = argv[*i], *name = word + 2, *value = NULL;
    char place[128];
    size_t n;
    const struct option *o;
    int row, flag;
    if (strncmp(word, "--", 2) || !word[2]) {
        fail(&p->err, "unexpected word", "%s", word);
        return hint(&p->err, "options begin with --; `lora help %s` lists them", p->job->name);
    }
    n = strcspn(name, "=");
    snprintf(place, sizeof place, "--%.*s", (int)n, name);
    row = option_find(p->job, name, n);
    if (row < 0) return unknown_option(p, place, name, n);
    o = option_at(p->job, row);
    if (name[n]) value = name + n + 1;
    else if (*i + 1 < argc && strncmp(argv[*i + 1], "--", 2)
             && ((o->type != OPTION_FLAG && o->type != OPTION_LATER) || !read_flag(argv[*i + 1], &flag))) value = argv[++*i];
    if (p->given[row] == WORDS && o->type == OPTION_TEXT && !strncmp(o->value, "FILE", 4))
        status("warning: %s %s is not used: %s is given again%s", place, *(const char *const *)(p->settings + o->offset), place,
               strchr(o->value, ',') ? ", and several files are parted by commas" : "");
    p->given[row] = WORDS;
    return set_option(p, o, place, value);
}

/* ---- --config ---- */

/* Cuts a line's comment and the white space around s; a value in quotes keeps what is in them. */
static char *trim(char *s, size_t n)
{
    while (n && (*s == ' ' || *s == '\t')) s++, n--;
    if (n && (*s == '"' || *s == '\'')) {
        char *end = memchr(s + 1, *s, n - 1);
        size_t rest = end ? n - (size_t)(end + 1 - s) : 0, k = 0;
        while (k < rest && memchr(" \t\r", end[1 + k], 3)) k++;
        if (end && (k == rest || end[1 + k] == '#')) {
            *end = 0;
            return s + 1;
        }
    } else {
        size_t k;
        for (k = 0; k < n; k++)
            if (s[k] == '#' && (!k || s[k - 1] == ' ' || s[k - 1] == '\t')) n = k;
    }
    while (n && strchr(" \t\r", s[n - 1])) n--;
    s[n] = 0;
    return s;
}

/* One `name: value` line. What the command line gave wins. */
static int read_line(struct parser *p, const char *path, int number, char *line, size_t n)
{
    char place[600], *colon = memchr(line, ':', n), *name, *value;
    const struct option *o;
    int row;
    int nameless = colon && strspn(line, " \t") == (size_t)(colon - line);
    name = trim(line, colon ? (size_t)(colon - line) : n);
    snprintf(place, sizeof place, "%s, line %d: %.64s", path, number, name);
    if (!*name && !nameless) return 0;
    if (!*name || !colon) {
        fail(&p->err, "cannot read the configuration", "%s", place);
        return expected(&p->err, "name: value");
    }
    value = trim(colon + 1, n - (size_t)(colon + 1 - line));
    row = option_find(p->job, name, strlen(name));
    if (row < 0) return unknown_option(p, place, name, strlen(name));
    o = option_at(p->job, row);
    if (!strcmp(o->name, "config")) return fail(&p->err, "a configuration cannot name another", "%s", place);
    if (p->given[row] == WORDS) return 0;
    if (p->given[row] == CONFIG && o->type != OPTION_LIST) return fail(&p->err, "an option given twice", "%s", place);
    p->given[row] = CONFIG;
    return set_option(p, o, place, *value ? value : NULL);
}

static int read_config(struct parser *p, const char *path)
{
    struct file_map file;
    size_t size, i;
    int line = 0, bad = 0;
    p->failed = 1;
    if (file_open(&file, path, &p->err)) return -1;
    size = file.size;
    p->config = new_string_n((const char *)file.data, size, &p->err);
    file_close(&file);
    if (!p->config) return -1;
    if (memchr(p->config, 0, size)) return fail(&p->err, "cannot read the configuration", "%s: it is not text", path);
    p->failed = 0;
    i = strncmp(p->config, "\357\273\277", 3) ? 0 : 3;       /* a byte order mark */
    while (!bad && i < size) {
        size_t n = strcspn(p->config + i, "\n");
        bad = read_line(p, path, ++line, p->config + i, n);
        i += n + 1;
    }
    return bad;
}

/* ---- help ---- */

static void put_default(const struct option *o, const char *settings)
{
    const void *field = settings + o->offset;
    if (o->help && strstr(o->help, "default")) return;
    if (o->type == OPTION_INT) printf(" (%d)", *(const int *)field);
    else if (o->type == OPTION_LONG) printf(" (%lld)", *(const long long *)field);
    else if (o->type == OPTION_NUMBER) printf(" (%g)", *(const double *)field);
    else if (o->type == OPTION_TEXT && *(const char *const *)field) printf(" (%s)", *(const char *const *)field);
    else if (o->type == OPTION_CHOICE) {
        int i = *(const int *)field;
        size_t n;
        const char *word = option_choice(o, i > 0 ? i : 0, &n);
        if (word) printf(" (%.*s)", (int)n, word);
    }
}

static void put_option(const struct option *o, const char *settings)
{
    char left[160];
    const char *value = o->value ? o->value : o->choices ? o->choices : "", *list = o->aliases, *word, *before = "; also --";
    size_t length;
    int n;
    if (o->type == OPTION_LATER) return;
    n = snprintf(left, sizeof left, "  --%s%s%s", o->name, *value ? " " : "", value);
    if (n > 30) printf("%s\n%30s", left, "");
    else printf("%-30s", left);
    printf("  %s", o->help ? o->help : "");
    put_default(o, settings);
    for (; (word = next_word(&list, &length)); before = ", --") printf("%s%.*s", before, (int)length, word);
    fputc('\n', stdout);
}

static void put_help(const struct job *job, const char *settings)
{
    const struct option *o;
    int i, later = 0;
    printf("lora %s%s%s\n\n%s\n", job->name, *job->usage ? " " : "", job->usage, job->summary);
    if (option_at(job, 0)) fputs("\nOptions (defaults in brackets):\n", stdout);
    for (i = 0; (o = option_at(job, i)); i++) {
        if (option_find(job, o->name, strlen(o->name)) != i) continue;      /* the job's own row stands for it */
        put_option(o, settings);
        later += o->type == OPTION_LATER;
    }
    if (!later) return;
    fputs("\nNot in this version yet:", stdout);
    for (i = 0; (o = option_at(job, i)); i++)
        if (o->type == OPTION_LATER) printf(" --%s", o->name);
    fputc('\n', stdout);
}

/* A word behind an option that takes a value is that value. */
static int wants_help(const struct job *job, int argc, char **argv)
{
    int i, row;
    for (i = 0; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return 1;
        row = strncmp(argv[i], "--", 2) ? -1 : option_find(job, argv[i] + 2, strlen(argv[i] + 2));
        if (row >= 0 && option_at(job, row)->type != OPTION_FLAG && i + 1 < argc && strncmp(argv[i + 1], "--", 2)) i++;
    }
    return 0;
}

/* What the library says of a name, as an error of the option that gave it. */
static int wrong_name(struct lora_error *err, const char *option)
{
    snprintf(err->what, sizeof err->what, "wrong value");
    snprintf(err->where, sizeof err->where, "%s", option);
    return -1;
}

int job_check_backend(const char *name, struct lora_error *err)
{
    if (kernels_known(name) || kernels_find(name, err)) return 0;
    found(err, "\"%s\"", name);
    return wrong_name(err, "--backend");
}

/* Names and texts that no file can make right. */
static int check_common(struct parser *p, const struct common *c)
{
    if (job_check_backend(c->backend, &p->err)) return -1;
    if (c->chat_template && !chat_find(c->chat_template, &p->err)) return wrong_name(&p->err, "--chat-template");
    if (c->prompt_template && !strstr(c->prompt_template, "{text}") && !strstr(c->prompt_template, "{document}"))
        return wrong_value(p, "--prompt-template", c->prompt_template, "{text} or {document} in it");
    return 0;
}

/* The words, then the lines of --config: that of common_options, a job may have a --config of its own. */
static int job_options(struct parser *p, int argc, char **argv)
{
    const struct common *c = p->job->more == common_options ? (const void *)p->settings : NULL;
    int i, bad = 0;
    for (i = 0; i < argc && !bad; i++) bad = read_word(p, argc, argv, &i);
    if (!bad && c && c->config) bad = read_config(p, c->config);
    return bad || (c && check_common(p, c));
}

static void free_lists(struct parser *p)
{
    const struct option *o;
    int i;
    for (i = 0; (o = option_at(p->job, i)); i++)
        if (o->type == OPTION_LIST) free(((struct option_list *)(void *)(p->settings + o->offset))->v);
}

int job_run(const struct job *job, int argc, char **argv)
{
    struct parser p = { .job = job };
    int rows = 0, code = EXIT_DONE;
    while (option_at(job, rows)) rows++;
    p.settings = new_array(1, job->size, &p.err);
    p.given = p.settings ? new_array((size_t)rows, 1, &p.err) : NULL;
    if (p.settings && job->size) memcpy(p.settings, job->defaults, job->size);
    if (!p.given) code = job_error(&p.err);
    else if (wants_help(job, argc, argv)) put_help(job, p.settings);
    else if (job_options(&p, argc, argv)) code = p.failed ? job_error(&p.err) : print_error(&p.err);
    else if ((code = job->run(p.settings, &p.err)) < 0) code = job_error(&p.err);
    if (p.settings) free_lists(&p);
    free(p.config);
    free(p.given);
    free(p.settings);
    return code;
}
