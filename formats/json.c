/* json.c - see json.h. One pass, one function per rule of RFC 8259's grammar.
 *
 * Every string and literal is at most as long as its text, so all of them fit in one buffer of the
 * text's size; nodes come from chunks that double. */
#include "json.h"
#include "names.h"
#include "unicode.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH 200
#define FEW_KEYS 8              /* objects up to here are searched along the list */
#define CHUNK_MOST 16384        /* nodes */

struct chunk {
    struct chunk *next;
    struct json nodes[];
};

struct table {                  /* of one large object */
    struct table *next;
    struct names *names;
};

struct memory {
    struct chunk *chunks;
    struct table *tables;
    char *strings;
};

struct parser {
    const char *p, *end;
    const char *name;
    struct lora_error *err;
    struct memory *memory;
    size_t left, chunk_nodes;   /* nodes free in the newest chunk; its size */
    char *string;               /* where the next string goes */
    int line, depth;
};

/* ---- errors ---- */

static int bad(struct parser *s, const char *want)
{
    fail(s->err, "cannot read JSON", "%s, line %d", s->name, s->line);
    expected(s->err, "%s", want);
    return -1;
}

/* What stands at the cursor, for the error. */
static int bad_here(struct parser *s, const char *want)
{
    unsigned char c;
    bad(s, want);
    if (s->p >= s->end) return found(s->err, "the end of the text");
    c = (unsigned char)*s->p;
    if (c == 0xef && s->end - s->p >= 3 && !memcmp(s->p, "\xef\xbb\xbf", 3)) return found(s->err, "a byte order mark");
    if (c < 33 || c > 126) return found(s->err, "byte 0x%02x", c);
    return found(s->err, "'%c'", c);
}

/* ---- nodes ---- */

static struct json *new_node(struct parser *s, enum json_type type)
{
    struct json *v;
    if (!s->left) {
        size_t n = s->chunk_nodes ? s->chunk_nodes * 2 : 16;
        struct chunk *c;
        if (n > CHUNK_MOST) n = CHUNK_MOST;
        c = new_array(1, sizeof *c + n * sizeof *v, s->err);
        if (!c) return NULL;
        c->next = s->memory->chunks;
        s->memory->chunks = c;
        s->left = s->chunk_nodes = n;
    }
    v = &s->memory->chunks->nodes[s->chunk_nodes - s->left--];
    v->type = type;
    v->line = s->line;
    return v;
}

/* ---- the grammar ---- */

static void skip_space(struct parser *s)
{
    for (; s->p < s->end; s->p++) {
        if (*s->p == '\n') s->line += s->line < INT_MAX;
        else if (*s->p != ' ' && *s->p != '\t' && *s->p != '\r') return;
    }
}

/* Bytes of the UTF-8 character at p, 0 when it is none. */
static size_t utf8_length(const char *p, const char *end)
{
    uint32_t c;
    size_t n = utf8_next(p, (size_t)(end - p), &c);
    return c == UTF8_BAD ? 0 : n;
}

static int hex4(struct parser *s, unsigned *out)
{
    int i;
    *out = 0;
    for (i = 0; i < 4; i++, s->p++) {
        int c = s->p < s->end ? *s->p : 0;
        if (c >= '0' && c <= '9') c -= '0';
        else if (c >= 'a' && c <= 'f') c -= 'a' - 10;
        else if (c >= 'A' && c <= 'F') c -= 'A' - 10;
        else return bad_here(s, "four hexadecimal digits after \\u");
        *out = *out * 16 + (unsigned)c;
    }
    return 0;
}

/* After the backslash. */
static int parse_escape(struct parser *s)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *e = s->p < s->end && *s->p ? strchr(from, *s->p) : NULL;
    unsigned c, low;
    if (e) {
        *s->string++ = to[e - from];
        s->p++;
        return 0;
    }
    if (s->p >= s->end || *s->p != 'u') return bad_here(s, "an escape: one of \"\\/bfnrtu");
    s->p++;
    if (hex4(s, &c)) return -1;
    if (c >= 0xd800 && c < 0xe000) {
        if (c >= 0xdc00 || s->end - s->p < 2 || s->p[0] != '\\' || s->p[1] != 'u')
            return bad(s, "a pair of surrogates, not one alone");
        s->p += 2;
        if (hex4(s, &low)) return -1;
        if (low < 0xdc00 || low >= 0xe000) return bad(s, "a pair of surrogates, not one alone");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    s->string += utf8_put(s->string, c);
    return 0;
}

/* At the opening quote. The decoded string, NUL-ended, and its bytes. */
static int parse_string(struct parser *s, const char **out, size_t *n)
{
    char *start = s->string;
    for (s->p++; ; ) {
        const char *p = s->p;
        size_t length;
        while (p < s->end && *p != '"' && *p != '\\' && (unsigned char)*p >= 32 && (unsigned char)*p < 128) p++;
        memcpy(s->string, s->p, (size_t)(p - s->p));
        s->string += p - s->p;
        s->p = p;
        if (p >= s->end || (unsigned char)*p < 32) return bad_here(s, "the rest of a string and its closing quote");
        if (*p == '"') break;
        if (*p == '\\') {
            s->p++;
            if (parse_escape(s)) return -1;
            continue;
        }
        length = utf8_length(p, s->end);
        if (!length) return bad_here(s, "valid UTF-8");
        memcpy(s->string, p, length);
        s->string += length;
        s->p += length;
    }
    s->p++;
    *out = start;
    *n = (size_t)(s->string - start);
    *s->string++ = 0;
    return 0;
}

static const char *digits(const char *p, const char *end)
{
    while (p < end && *p >= '0' && *p <= '9') p++;
    return p;
}

static int parse_digits(struct parser *s)
{
    const char *p = digits(s->p, s->end);
    if (p == s->p) return bad_here(s, "a digit");
    s->p = p;
    return 0;
}

static struct json *parse_json_number(struct parser *s)
{
    const char *start = s->p;
    struct json *v = new_node(s, JSON_NUMBER);
    if (!v) return NULL;
    if (*s->p == '-') s->p++;
    if (s->p < s->end && *s->p == '0') s->p++;
    else if (parse_digits(s)) return NULL;
    if (s->p < s->end && *s->p == '.') {
        s->p++;
        if (parse_digits(s)) return NULL;
    }
    if (s->p < s->end && (*s->p == 'e' || *s->p == 'E')) {
        s->p++;
        if (s->p < s->end && (*s->p == '+' || *s->p == '-')) s->p++;
        if (parse_digits(s)) return NULL;
    }
    memcpy(s->string, start, (size_t)(s->p - start));
    v->literal = s->string;
    s->string += s->p - start;
    *s->string++ = 0;
    if (parse_number(v->literal, &v->number)) {
        bad(s, "a number that fits a double");
        found(s->err, "%s", v->literal);
        return NULL;
    }
    return v;
}

static struct json *parse_word(struct parser *s, const char *word, enum json_type type, double number)
{
    size_t n = strlen(word);
    struct json *v;
    if ((size_t)(s->end - s->p) < n || memcmp(s->p, word, n)) {
        bad_here(s, "a value");
        return NULL;
    }
    v = new_node(s, type);
    if (v) v->number = number;
    s->p += n;
    return v;
}

static int duplicate(struct parser *s, const struct json *v)
{
    fail(s->err, "cannot read JSON", "%s, line %d", s->name, v->line);
    expected(s->err, "each key once");
    return found(s->err, "\"%s\" again", v->key);
}

/* Refuses keys that are there twice; a large object gets its table. */
static int check_keys(struct parser *s, struct json *object)
{
    struct json *a, *b;
    struct table *t;
    if (object->n <= FEW_KEYS) {
        for (a = object->child; a; a = a->next)
            for (b = object->child; b != a; b = b->next)
                if (!strcmp(a->key, b->key)) return duplicate(s, a);
        return 0;
    }
    t = new_array(1, sizeof *t, s->err);
    if (!t) return -1;
    t->next = s->memory->tables;
    s->memory->tables = t;
    t->names = names_new(object->n, s->err);
    if (!t->names) return -1;
    object->names = t->names;
    for (a = object->child; a; a = a->next)
        if (names_add(t->names, a->key, a)) return duplicate(s, a);
    return 0;
}

static struct json *parse_value(struct parser *s);

/* "key" : of an object's member. */
static int parse_key(struct parser *s, const char **key)
{
    size_t n;
    if (s->p >= s->end || *s->p != '"') return bad_here(s, "a key in quotes");
    if (parse_string(s, key, &n)) return -1;
    if (strlen(*key) != n) return bad(s, "a key without NUL characters");
    skip_space(s);
    if (s->p >= s->end || *s->p != ':') return bad_here(s, "':' after a key");
    s->p++;
    skip_space(s);
    return 0;
}

/* An array or an object: members between commas. */
static struct json *parse_members(struct parser *s, enum json_type type)
{
    int object = type == JSON_OBJECT;
    char close = object ? '}' : ']';
    struct json *v = new_node(s, type), **last;
    if (!v) return NULL;
    if (++s->depth > DEPTH) {
        bad(s, "at most 200 levels of arrays and objects");
        return NULL;
    }
    last = &v->child;
    s->p++;
    skip_space(s);
    while (v->n || s->p >= s->end || *s->p != close) {
        const char *key = NULL;
        if (object && parse_key(s, &key)) return NULL;
        *last = parse_value(s);
        if (!*last) return NULL;
        (*last)->key = key;
        last = &(*last)->next;
        v->n++;
        skip_space(s);
        if (s->p < s->end && *s->p == close) break;
        if (s->p >= s->end || *s->p != ',') {
            bad_here(s, object ? "',' or '}'" : "',' or ']'");
            return NULL;
        }
        s->p++;
        skip_space(s);
    }
    s->p++;
    s->depth--;
    return object && check_keys(s, v) ? NULL : v;
}

static struct json *parse_value(struct parser *s)
{
    struct json *v;
    switch (s->p < s->end ? *s->p : 0) {
    case '{': return parse_members(s, JSON_OBJECT);
    case '[': return parse_members(s, JSON_ARRAY);
    case '"':
        v = new_node(s, JSON_STRING);
        return v && !parse_string(s, &v->string, &v->n) ? v : NULL;
    case 't': return parse_word(s, "true", JSON_BOOL, 1);
    case 'f': return parse_word(s, "false", JSON_BOOL, 0);
    case 'n': return parse_word(s, "null", JSON_NULL, 0);
    case '-': case '0': case '1': case '2': case '3': case '4':
    case '5': case '6': case '7': case '8': case '9':
        return parse_json_number(s);
    }
    bad_here(s, "a value");
    return NULL;
}

int json_parse_part(struct json_document *d, const char *text, size_t n, const char *name, int line,
                    struct lora_error *err)
{
    struct parser s = { .p = text, .end = text + n, .name = name, .err = err, .line = line };
    size_t strings;
    memset(d, 0, sizeof *d);
    d->memory = s.memory = new_array(1, sizeof *s.memory, err);
    if (!s.memory) return -1;
    /* a number that ends the text needs one more than its own bytes */
    s.string = s.memory->strings = size_add(&strings, n, 1) ? NULL : new_array(strings, 1, err);
    if (s.string) {
        skip_space(&s);
        d->root = parse_value(&s);
        skip_space(&s);
        if (d->root && s.p == s.end) return 0;
        if (d->root) bad_here(&s, "nothing after the value");
    }
    json_free(d);
    return -1;
}

int json_parse(struct json_document *d, const char *text, size_t n, const char *name,
               struct lora_error *err)
{
    return json_parse_part(d, text, n, name, 1, err);
}

int json_read(struct json_document *d, const char *path, struct lora_error *err)
{
    struct file_map f;
    int status;
    memset(d, 0, sizeof *d);
    if (file_open(&f, path, err)) return -1;
    status = json_parse(d, (const char *)f.data, f.size, path, err);
    file_close(&f);
    return status;
}

void json_free(struct json_document *d)
{
    struct memory *m = d->memory;
    while (m && m->chunks) {
        struct chunk *c = m->chunks;
        m->chunks = c->next;
        free(c);
    }
    while (m && m->tables) {
        struct table *t = m->tables;
        m->tables = t->next;
        names_free(t->names);
        free(t);
    }
    if (m) free(m->strings);
    free(m);
    memset(d, 0, sizeof *d);
}

/* ---- lookup ---- */

const struct json *json_get(const struct json *object, const char *key)
{
    const struct json *v;
    if (!object || object->type != JSON_OBJECT) return NULL;
    if (object->names) return names_find(object->names, key);
    for (v = object->child; v; v = v->next)
        if (!strcmp(v->key, key)) return v;
    return NULL;
}

static const char *type_name(const struct json *v)
{
    static const char *const names[] = { "null", "a boolean", "a number", "a string", "an array", "an object" };
    return names[v->type];
}

static int wrong(const struct json *v, const char *want, const char *file, struct lora_error *err)
{
    fail(err, "cannot use a setting", "%s, line %d, \"%s\"", file, v->line, v->key);
    expected(err, "%s", want);
    return found(err, "%s", v->type == JSON_NUMBER ? v->literal : type_name(v));
}

/* 1: there; 0: absent or null. */
static int present(const struct json *o, const char *key, const struct json **v)
{
    *v = json_get(o, key);
    return *v && (*v)->type != JSON_NULL;
}

int json_get_int(const struct json *o, const char *key, int *out, const char *file, struct lora_error *err)
{
    const struct json *v;
    if (!present(o, key, &v)) return 0;
    if (v->type != JSON_NUMBER || v->number != floor(v->number) || fabs(v->number) > INT_MAX)
        return wrong(v, "an integer of 32 bits", file, err);
    *out = (int)v->number;
    return 0;
}

int json_get_number(const struct json *o, const char *key, double *out, const char *file, struct lora_error *err)
{
    const struct json *v;
    if (!present(o, key, &v)) return 0;
    if (v->type != JSON_NUMBER) return wrong(v, "a number", file, err);
    *out = v->number;
    return 0;
}

int json_get_bool(const struct json *o, const char *key, int *out, const char *file, struct lora_error *err)
{
    const struct json *v;
    if (!present(o, key, &v)) return 0;
    if (v->type != JSON_BOOL) return wrong(v, "true or false", file, err);
    *out = v->number != 0;
    return 0;
}

int json_get_string(const struct json *o, const char *key, const char **out, const char *file, struct lora_error *err)
{
    const struct json *v;
    if (!present(o, key, &v)) return 0;
    if (v->type != JSON_STRING) return wrong(v, "a string", file, err);
    if (strlen(v->string) != v->n) return wrong(v, "a string without NUL characters", file, err);
    *out = v->string;
    return 0;
}

/* ---- writing ---- */

void json_put_string(struct text *t, const char *s, size_t n)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *end = s + n, *p;
    text_puts(t, "\"");
    while (s < end) {
        size_t length = 1;
        for (p = s; p < end; p += length) {
            length = utf8_length(p, end);
            if (!length || (unsigned char)*p < 32 || *p == '"' || *p == '\\') break;
        }
        text_add(t, s, (size_t)(p - s));
        if (p < end) {
            const char *e = *p ? strchr(from, *p) : NULL;
            if (e) text_printf(t, "\\%c", to[e - from]);
            else if (length) text_printf(t, "\\u%04x", *p);
            else text_puts(t, "\xef\xbf\xbd");      /* not UTF-8: U+FFFD in its place */
            p++;
        }
        s = p;
    }
    text_puts(t, "\"");
}

void json_put_text(struct text *t, const char *s)
{
    if (s) json_put_string(t, s, strlen(s));
    else text_puts(t, "null");
}

void json_put_key(struct text *t, const char *key)
{
    if (t->n && t->s[t->n - 1] != '{') text_puts(t, ",");
    json_put_text(t, key);
    text_puts(t, ":");
}

void json_put_number(struct text *t, double x, int significant)
{
    char s[40];
    double back;
    int d;
    if (!(x - x == 0)) {
        text_puts(t, "null");
        return;
    }
    if (significant > 17) significant = 17;
    if (significant > 0) snprintf(s, sizeof s, "%.*g", significant, x);
    else if (fabs(x) < 1e15 && x == floor(x)) snprintf(s, sizeof s, "%.0f", x);
    else
        for (d = 1; d <= 17; d++) {
            snprintf(s, sizeof s, "%.*g", d, x);
            if (!parse_number(s, &back) && back == x) break;
        }
    text_puts(t, s);
}

void json_put_figure(struct text *t, const char *key, double x)
{
    json_put_key(t, key);
    json_put_number(t, x, 9);
}

void json_put_pair(struct text *t, const char *key, const char *value)
{
    json_put_key(t, key);
    json_put_text(t, value);
}

void json_put(struct text *t, const struct json *v)
{
    const struct json *c;
    int object = v->type == JSON_OBJECT;
    switch (v->type) {
    case JSON_NULL: text_puts(t, "null"); break;
    case JSON_BOOL: text_puts(t, v->number != 0 ? "true" : "false"); break;
    case JSON_NUMBER: text_puts(t, v->literal); break;
    case JSON_STRING: json_put_string(t, v->string, v->n); break;
    case JSON_ARRAY: case JSON_OBJECT:
        text_puts(t, object ? "{" : "[");
        for (c = v->child; c; c = c->next) {
            if (object) json_put_key(t, c->key);
            else if (c != v->child) text_puts(t, ",");
            json_put(t, c);
        }
        text_puts(t, object ? "}" : "]");
        break;
    }
}
