/* make_text.c - writes text from a grammar: what the embedded model was trained on, and the tickets.
 *
 *     make_text SEED FILE.grammar... RULE:COUNT[h]=OUT.jsonl ...
 *
 * COUNT different rows of RULE go to each OUT; no row is written twice in one call, so files made
 * together do not overlap (compared without case, digits and punctuation). With `h` the held-out
 * alternatives are used too, for a quarter of the draws of a rule that has them: what no other file has
 * seen. The same seed, rule and file name make the same bytes.
 *
 * A grammar is rules at the line's start, each with one alternative per indented line:
 *
 *     animal
 *         dog/dogs/bark               fields, split by '/'
 *         @3 cat/cats/meow            three times as likely
 *         @h fox/foxes/yelp           held out
 *
 * In an alternative:
 *     {animal}   an animal            {animal.2}   its second field
 *     {animal:a} the animal called a in this row, drawn at first use, different from animal:b;
 *                {a} later on, {a.2} its second field, {!animal:a} drawn without being written;
 *                a name lasts until the end of its alternative
 *     {x|y|}     one of these         {#2-20:n}    a number, called n
 *     {=sum n m} a function of names  {^...} {_...} {~...}  sentence case and a/an; lower case; typos
 *     \n         a line break         a => b       turns of a row: user => assistant, label => text */
#include "../formats/json.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct alternative {
    const char *s;
    size_t n;
    int weight, held_out;
};

struct rule {
    const char *name;
    size_t n_name;
    struct alternative *alternatives;
    size_t n, capacity;
};

/* What a name stands for in the row being written. */
struct binding {
    char name[40], rule[40];
    char *value;
};

struct generator {
    struct rule *rules;
    size_t n_rules, rules_capacity;
    struct binding bound[64];
    int n_bound;
    int held_out;               /* held-out alternatives are drawn too */
    uint64_t key, index;        /* the stream of random numbers */
    uint64_t *seen;             /* open addressing; 0 is empty */
    size_t n_seen, seen_size;
};

static void die(const char *what, const char *where, size_t n)
{
    fprintf(stderr, "make_text: %s: %.*s\n", what, (int)n, where);
    exit(1);
}

static void check(int status, const struct lora_error *err)
{
    if (status == 0) return;
    fprintf(stderr, "make_text: %s: %s\n", err->what, err->where);
    exit(1);
}

static unsigned draw(struct generator *g, unsigned n)
{
    return (unsigned)(random_uniform(g->key, g->index++) * n);
}

/* ---- reading ---- */

static void read_alternative(struct rule *r, const char *s, size_t n, struct lora_error *err)
{
    struct alternative a;
    a.weight = 1;
    a.held_out = 0;
    if (n > 2 && s[0] == '@') {
        const char *space = memchr(s, ' ', n);
        if (!space) die("a mark without text", s, n);
        if (s[1] == 'h') a.held_out = 1;
        else a.weight = atoi(s + 1);
        if (a.weight < 1) die("a weight below 1", s, n);
        n -= (size_t)(space + 1 - s);
        s = space + 1;
    }
    a.s = s;
    a.n = n;
    check(grow_array((void **)&r->alternatives, &r->capacity, r->n + 1, sizeof a, err), err);
    r->alternatives[r->n++] = a;
}

/* The rules point into the text, which must outlive them. */
static void read_grammar(struct generator *g, const char *s, size_t size, struct lora_error *err)
{
    const char *end = s + size;
    while (s < end) {
        const char *newline = memchr(s, '\n', (size_t)(end - s)), *stop = newline ? newline : end;
        const char *start = s;
        while (start < stop && *start == ' ') start++;
        while (stop > start && stop[-1] == ' ') stop--;
        if (start < stop && *s != '#') {
            if (start == s) {
                struct rule *r;
                check(grow_array((void **)&g->rules, &g->rules_capacity, g->n_rules + 1, sizeof *r, err), err);
                r = &g->rules[g->n_rules++];
                memset(r, 0, sizeof *r);
                r->name = start;
                r->n_name = (size_t)(stop - start);
            } else if (!g->n_rules) {
                die("an alternative before the first rule", start, (size_t)(stop - start));
            } else {
                read_alternative(&g->rules[g->n_rules - 1], start, (size_t)(stop - start), err);
            }
        }
        if (!newline) break;
        s = newline + 1;
    }
}

static const struct rule *find_rule(const struct generator *g, const char *name, size_t n)
{
    size_t i;
    for (i = 0; i < g->n_rules; i++)
        if (g->rules[i].n_name == n && !memcmp(g->rules[i].name, name, n)) return &g->rules[i];
    die("no such rule", name, n);
    return NULL;
}

/* A quarter of the draws of a rule that has held-out alternatives are of those, where they are allowed. */
static const struct alternative *draw_alternative(struct generator *g, const struct rule *r)
{
    size_t i;
    int all[2] = { 0, 0 }, held, x;
    for (i = 0; i < r->n; i++) all[r->alternatives[i].held_out] += r->alternatives[i].weight;
    held = !all[0] || (g->held_out && all[1] && !draw(g, 4));
    if (!all[held]) die("a rule without alternatives", r->name, r->n_name);
    x = (int)draw(g, (unsigned)all[held]);
    for (i = 0; ; i++) {
        if (r->alternatives[i].held_out != held) continue;
        x -= r->alternatives[i].weight;
        if (x < 0) return &r->alternatives[i];
    }
}

/* ---- modifiers ---- */

static int is_vowel_sound(const char *s)
{
    if (!strncmp(s, "hour", 4) || !strncmp(s, "honest", 6)) return 1;
    if (!strncmp(s, "uni", 3) || !strncmp(s, "use", 3) || !strncmp(s, "one", 3) || !strncmp(s, "eu", 2)) return 0;
    return strchr("aeiou", *s) && *s;
}

/* Sentences begin with a capital, "i" is "I", and "a" before a vowel is "an". */
static void polish(struct text *out, const char *s, size_t n)
{
    size_t i;
    int begin = 1;
    for (i = 0; i < n; i++) {
        int word_start = !i || !(isalnum((unsigned char)s[i - 1]) || s[i - 1] == '\'');
        char c = s[i];
        if (isalnum((unsigned char)c) && begin) { c = (char)toupper((unsigned char)c); begin = 0; }
        else if (c == '=') begin = 0;
        else if (c == '\n' || ((c == '.' || c == '!' || c == '?') && i + 1 < n && strchr(" \n", s[i + 1]))) begin = 1;
        if (word_start && c == 'i' && i + 1 < n && strchr(" '", s[i + 1])) c = 'I';
        text_add(out, &c, 1);
        if (word_start && (s[i] | 32) == 'a' && i + 2 < n && s[i + 1] == ' ' && is_vowel_sound(s + i + 2))
            text_add(out, "n", 1);
    }
}

/* One slip in a word s[n] of letters: two swapped, one lost, doubled, or hit on the key beside. */
static void misspell(struct generator *g, struct text *out, const char *s, size_t n)
{
    static const char *const rows[] = { "qwertyuiop", "asdfghjkl", "zxcvbnm" };
    size_t at = 1 + draw(g, (unsigned)(n - 2));
    unsigned kind = draw(g, 4), r;
    text_add(out, s, at);
    if (kind == 0) {
        text_add(out, s + at + 1, 1);
        text_add(out, s + at, 1);
        text_add(out, s + at + 2, n - at - 2);
        return;
    }
    if (kind == 1) text_add(out, s + at, 1);
    if (kind == 3)
        for (r = 0; r < 3; r++) {
            const char *p = strchr(rows[r], s[at]);
            if (p) text_add(out, p[1] ? p + 1 : p - 1, 1);
        }
    if (kind == 1) text_add(out, s + at, n - at);
    else text_add(out, s + at + 1, n - at - 1);
}

/* About one word of four letters or more in eight, and at least one where there is one. */
static void add_typos(struct generator *g, struct text *out, const char *s, size_t n)
{
    size_t i, j, words = 0, sure;
    int pass;
    for (pass = 0, sure = 0; pass < 2; pass++) {
        size_t word = 0;
        for (i = 0; i < n; i = j) {
            for (j = i; j < n && islower((unsigned char)s[j]); j++) {}
            if (j - i >= 4) {
                int slip = pass && (word == sure || draw(g, 8) == 0);
                word++;
                if (slip) misspell(g, out, s + i, j - i);
                else if (pass) text_add(out, s + i, j - i);
            } else {
                if (j == i) j++;
                if (pass) text_add(out, s + i, j - i);
            }
        }
        words = word;
        if (!pass) sure = words ? draw(g, (unsigned)words) : 0;
    }
}

/* ---- expanding ---- */

static void expand(struct generator *g, struct text *out, const char *s, size_t n, int depth);

/* The latest binding of the name, by that rule unless rule is NULL. */
static struct binding *find_binding(struct generator *g, const char *name, size_t n, const char *rule, size_t n_rule)
{
    int i;
    for (i = g->n_bound - 1; i >= 0; i--) {
        struct binding *b = &g->bound[i];
        if (strlen(b->name) == n && !memcmp(b->name, name, n) &&
            (!rule || (strlen(b->rule) == n_rule && !memcmp(b->rule, rule, n_rule)))) return b;
    }
    return NULL;
}

static void unbind(struct generator *g, int keep)
{
    while (g->n_bound > keep) free(g->bound[--g->n_bound].value);
}

/* Binds name to value; -1 when another name of the same rule has that value already. */
static int bind(struct generator *g, const char *name, size_t n_name, const char *rule, size_t n_rule,
                const char *value, size_t n)
{
    struct binding *b;
    struct lora_error err;
    int i;
    for (i = 0; i < g->n_bound; i++)
        if (strlen(g->bound[i].rule) == n_rule && !memcmp(g->bound[i].rule, rule, n_rule) &&
            strlen(g->bound[i].value) == n && !memcmp(g->bound[i].value, value, n)) return -1;
    if (g->n_bound == 64 || n_name >= sizeof b->name || n_rule >= sizeof b->rule) die("too many or too long names", name, n_name);
    b = &g->bound[g->n_bound++];
    memcpy(b->name, name, n_name);
    b->name[n_name] = 0;
    memcpy(b->rule, rule, n_rule);
    b->rule[n_rule] = 0;
    b->value = new_string_n(value, n, &err);
    if (!b->value) die("out of memory", name, n_name);
    return 0;
}

/* Field `number` (from 1) of a text whose fields are split by '/'. */
static void put_field(struct text *out, const char *s, size_t n, int number)
{
    const char *end = s + n, *slash;
    while (number-- > 1) {
        slash = memchr(s, '/', (size_t)(end - s));
        if (!slash) die("no such field", s, (size_t)(end - s));
        s = slash + 1;
    }
    slash = memchr(s, '/', (size_t)(end - s));
    text_add(out, s, (size_t)((slash ? slash : end) - s));
}

/* "#2-20" -> a number as text. */
static void put_number(struct generator *g, struct text *out, const char *s, size_t n)
{
    int low, high;
    if (sscanf(s, "#%d-%d", &low, &high) != 2 || high < low) die("not a range", s, n);
    text_printf(out, "%d", low + (int)draw(g, (unsigned)(high - low + 1)));
}

/* rule[:name][.field], name[.field] or #low-high[:name]. */
static void put_reference(struct generator *g, struct text *out, const char *s, size_t n, int depth)
{
    const char *colon = memchr(s, ':', n), *dot = memchr(s, '.', n), *end = s + n;
    int field = dot ? atoi(dot + 1) : 1, tries;
    size_t n_rule = (size_t)((colon ? colon : dot ? dot : end) - s);
    size_t n_name = colon ? (size_t)((dot ? dot : end) - colon - 1) : 0;
    struct binding *b = colon ? find_binding(g, colon + 1, n_name, s, n_rule) : find_binding(g, s, n_rule, NULL, 0);
    if (b) { put_field(out, b->value, strlen(b->value), field); return; }
    for (tries = 0; tries < 40; tries++) {
        struct text t = { 0 };
        int taken = 0;
        if (*s == '#') {
            put_number(g, &t, s, n);
        } else {
            const struct alternative *a = draw_alternative(g, find_rule(g, s, n_rule));
            int outside = g->n_bound;
            expand(g, &t, a->s, a->n, depth + 1);
            unbind(g, outside);
        }
        text_add(&t, "", 0);
        if (colon) taken = bind(g, colon + 1, n_name, s, n_rule, t.s ? t.s : "", t.n);
        if (!taken) put_field(out, t.s ? t.s : "", t.n, field);
        text_free(&t);
        if (!taken) return;
    }
    die("no other value left", s, n);
}

static const char *value_of(struct generator *g, const char *name)
{
    struct binding *b = find_binding(g, name, strlen(name), NULL, 0);
    if (!b) die("a function of a name not drawn yet", name, strlen(name));
    return b->value;
}

/* "=function name [name]". */
static void put_function(struct generator *g, struct text *out, const char *s, size_t n)
{
    char function[16], x[40], y[40] = "", line[120];
    const char *v;
    size_t i;
    int words, a = 0, b = 0;
    snprintf(line, sizeof line, "%.*s", (int)n, s);
    words = sscanf(line, "=%15s %39s %39s", function, x, y);
    if (words < 2) die("not a function", s, n);
    v = value_of(g, x);
    if (words == 3) { a = atoi(v); b = atoi(value_of(g, y)); }
    if (!strcmp(function, "sum")) text_printf(out, "%d", a + b);
    else if (!strcmp(function, "minus")) text_printf(out, "%d", a - b);
    else if (!strcmp(function, "times")) text_printf(out, "%d", a * b);
    else if (!strcmp(function, "larger")) text_printf(out, "%d", a > b ? a : b);
    else if (!strcmp(function, "smaller")) text_printf(out, "%d", a < b ? a : b);
    else if (!strcmp(function, "letters")) text_printf(out, "%d", (int)strcspn(v, "/"));
    else if (!strcmp(function, "upper") || !strcmp(function, "spell") || !strcmp(function, "backwards")) {
        size_t length = strcspn(v, "/");
        for (i = 0; i < length; i++) {
            char c = *function == 'b' ? v[length - 1 - i] : v[i];
            if (*function == 'u') c = (char)toupper((unsigned char)c);
            if (*function == 's' && i) text_add(out, "-", 1);
            text_add(out, &c, 1);
        }
    } else die("no such function", s, n);
}

/* The end of the group that begins after the brace at s. */
static const char *closing_brace(const char *s, const char *end)
{
    const char *p;
    int open = 0;
    for (p = s; p < end; p++) {
        if (*p == '{') open++;
        if (*p == '}' && --open == 0) return p;
    }
    die("a brace without its end", s, (size_t)(end - s));
    return NULL;
}

/* Where the alternatives of an inline group part: the next '|' outside braces, or end. */
static const char *next_bar(const char *s, const char *end)
{
    int open = 0;
    for (; s < end; s++) {
        if (*s == '{') open++;
        else if (*s == '}') open--;
        else if (*s == '|' && !open) return s;
    }
    return end;
}

static void put_inline(struct generator *g, struct text *out, const char *s, const char *end, int depth)
{
    const char *p = s, *bar;
    unsigned count = 1, pick;
    while ((bar = next_bar(p, end)) != end) { count++; p = bar + 1; }
    for (pick = draw(g, count), p = s; pick; pick--) p = next_bar(p, end) + 1;
    expand(g, out, p, (size_t)(next_bar(p, end) - p), depth + 1);
}

/* What stands between two braces. */
static void put_group(struct generator *g, struct text *out, const char *s, const char *end, int depth)
{
    if (s < end && strchr("^_~", *s)) {
        struct text t = { 0 };
        size_t i;
        put_group(g, &t, s + 1, end, depth);
        text_add(&t, "", 0);
        if (*s == '^') polish(out, t.s ? t.s : "", t.n);
        else if (*s == '~') add_typos(g, out, t.s ? t.s : "", t.n);
        else for (i = 0; i < t.n; i++) {
            char c = (char)tolower((unsigned char)t.s[i]);
            text_add(out, &c, 1);
        }
        text_free(&t);
    } else if (s < end && *s == '!') {
        struct text unseen = { 0 };
        put_reference(g, &unseen, s + 1, (size_t)(end - s - 1), depth);
        text_free(&unseen);
    } else if (s < end && *s == '=') {
        put_function(g, out, s, (size_t)(end - s));
    } else if (next_bar(s, end) != end || memchr(s, '{', (size_t)(end - s)) || memchr(s, ' ', (size_t)(end - s))) {
        put_inline(g, out, s, end, depth);
    } else {
        put_reference(g, out, s, (size_t)(end - s), depth);
    }
}

static void expand(struct generator *g, struct text *out, const char *s, size_t n, int depth)
{
    const char *end = s + n;
    if (depth > 60) die("a rule that never ends", s, n);
    while (s < end) {
        if (*s == '{') {
            const char *close = closing_brace(s, end);
            put_group(g, out, s + 1, close, depth);
            s = close + 1;
        } else if (*s == '\\' && s + 1 < end && s[1] == 'n') {
            text_add(out, "\n", 1);
            s += 2;
        } else {
            text_add(out, s++, 1);
        }
    }
}

/* ---- rows ---- */

/* 1 when a row with these letters was written before, whatever its label. */
static int seen_before(struct generator *g, const struct text *t, struct lora_error *err)
{
    uint64_t h = HASH_START;
    const char *arrow = strstr(t->s, " => ");
    size_t i = arrow && !strncmp(t->s, "label:", 6) ? (size_t)(arrow - t->s) : 0, at;
    for (; i < t->n; i++) {
        char c = (char)tolower((unsigned char)t->s[i]);
        if (isalpha((unsigned char)c)) h = hash_bytes(h, &c, 1);
    }
    h |= !h;
    if (2 * (g->n_seen + 1) > g->seen_size) {
        size_t size = g->seen_size ? 2 * g->seen_size : 4096, j;
        uint64_t *bigger = new_array(size, sizeof *bigger, err);
        check(bigger ? 0 : -1, err);
        for (i = 0; i < g->seen_size; i++) {
            if (!g->seen[i]) continue;
            for (j = g->seen[i] & (size - 1); bigger[j]; j = (j + 1) & (size - 1)) {}
            bigger[j] = g->seen[i];
        }
        free(g->seen);
        g->seen = bigger;
        g->seen_size = size;
    }
    for (at = h & (g->seen_size - 1); g->seen[at]; at = (at + 1) & (g->seen_size - 1))
        if (g->seen[at] == h) return 1;
    g->seen[at] = h;
    g->n_seen++;
    return 0;
}

/* No double or outer spaces, no "." after "?": what optional parts leave behind. */
static void tidy(struct text *t)
{
    size_t i, n = 0;
    for (i = 0; i < t->n; i++) {
        if (t->s[i] == '.' && n && (t->s[n - 1] == '?' || t->s[n - 1] == '!')) continue;
        if (t->s[i] == ' ' && (!n || t->s[n - 1] == ' ' || t->s[n - 1] == '\n' ||
                               (i + 1 < t->n && strchr("\n,.!?", t->s[i + 1])))) continue;
        t->s[n++] = t->s[i];
    }
    while (n && (t->s[n - 1] == ' ' || t->s[n - 1] == '\n' || t->s[n - 1] == ',')) n--;
    t->n = n;
    t->s[n] = 0;
}

static void put_member(struct text *line, const char *before, const char *s, size_t n)
{
    text_puts(line, before);
    json_put_string(line, s, n);
}

/* One turn is {"text"}; a first turn of the form "label:X" makes {"text","label"}; else messages. */
static void put_row(struct text *line, const char *s, size_t n)
{
    const char *arrow = strstr(s, " => ");
    int turn;
    if (!arrow) {
        put_member(line, "{\"text\": ", s, n);
        text_puts(line, "}\n");
    } else if (!strncmp(s, "label:", 6)) {
        put_member(line, "{\"text\": ", arrow + 4, strlen(arrow + 4));
        put_member(line, ", \"label\": ", s + 6, (size_t)(arrow - s - 6));
        text_puts(line, "}\n");
    } else {
        text_puts(line, "{\"messages\": [");
        for (turn = 0; s; turn++) {
            arrow = strstr(s, " => ");
            text_puts(line, turn ? ", " : "");
            put_member(line, "{\"role\": ", turn % 2 ? "assistant" : "user", turn % 2 ? 9 : 4);
            put_member(line, ", \"content\": ", s, arrow ? (size_t)(arrow - s) : strlen(s));
            text_puts(line, "}");
            s = arrow ? arrow + 4 : NULL;
        }
        text_puts(line, "]}\n");
    }
}

static void write_rows(struct generator *g, const char *word, long long seed, struct lora_error *err)
{
    const char *colon = strchr(word, ':'), *equals = strchr(word, '='), *slash = strrchr(word, '/');
    struct writer w;
    long count, i, failures = 0;
    if (!colon || !equals || equals < colon) die("expected RULE:COUNT=FILE", word, strlen(word));
    count = atol(colon + 1);
    g->held_out = equals[-1] == 'h';
    g->key = random_key(hash_bytes((uint64_t)seed, word, (size_t)(colon - word)), slash ? slash + 1 : equals + 1);
    g->index = 0;
    check(writer_open(&w, equals + 1, err), err);
    for (i = 0; i < count; ) {
        struct text row = { 0 }, line = { 0 };
        const struct alternative *a = draw_alternative(g, find_rule(g, word, (size_t)(colon - word)));
        expand(g, &row, a->s, a->n, 0);
        check(text_check(&row, err), err);
        unbind(g, 0);
        tidy(&row);
        if (!seen_before(g, &row, err)) {
            put_row(&line, row.s, row.n);
            check(text_check(&line, err), err);
            check(writer_put(&w, line.s, line.n, err), err);
            failures = 0;
            i++;
        } else if (++failures == 10000) {
            die("too few different rows", word, strlen(word));
        }
        text_free(&row);
        text_free(&line);
    }
    check(writer_commit(&w, err), err);
}

/* The whole of a grammar file, kept for as long as its rules. */
static void add_grammar(struct generator *g, struct file_map *file, const char *path, struct lora_error *err)
{
    check(file_open(file, path, err), err);
    read_grammar(g, (const char *)file->data, file->size, err);
}

int main(int argc, char **argv)
{
    struct generator *g;
    struct file_map *files;
    struct lora_error err;
    long long seed;
    size_t i;
    int a, n_files = 0;
    if (argc < 4 || parse_integer(argv[1], &seed)) {
        fprintf(stderr, "usage: make_text SEED FILE.grammar... RULE:COUNT[h]=OUT.jsonl...\n");
        return 2;
    }
    g = new_array(1, sizeof *g, &err);
    files = new_array((size_t)argc, sizeof *files, &err);
    check(g && files ? 0 : -1, &err);
    for (a = 2; a < argc; a++) {
        if (strchr(argv[a], '=')) write_rows(g, argv[a], seed, &err);
        else add_grammar(g, &files[n_files++], argv[a], &err);
    }
    while (n_files) file_close(&files[--n_files]);
    for (i = 0; i < g->n_rules; i++) free(g->rules[i].alternatives);
    free(g->rules);
    free(g->seen);
    free(g);
    free(files);
    return 0;
}
