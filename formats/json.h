/* json.h - JSON (RFC 8259), read into a tree and written. Knows nothing about models. */
#ifndef JSON_H
#define JSON_H

#include "../util.h"

enum json_type { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

/* A value. Children of arrays and objects are a linked list in file order. */
struct json {
    enum json_type type;
    const char *key;            /* in an object, else NULL; decoded, NUL-ended */
    const char *string;         /* JSON_STRING: decoded UTF-8, NUL-ended; n bytes (may hold NULs) */
    size_t n;                   /* bytes of string, or number of children */
    double number;              /* JSON_NUMBER, JSON_BOOL (0 or 1) */
    const char *literal;        /* JSON_NUMBER: as written */
    struct json *child, *next;
    const void *names;          /* of an object with many keys: json_get's table, else NULL */
    int line;
};

struct json_document {
    struct json *root;
    void *memory;               /* all nodes and strings */
};

/* Parses text[n]; `name` is for errors ("FILE", line is added). Strict: no comments, no trailing
 * commas, nothing after the value, valid UTF-8, lone surrogates refused, duplicate keys refused,
 * depth at most 200. Linear time; lookup in a large object is by a hash. */
int json_parse(struct json_document *d, const char *text, size_t n, const char *name,
               struct lora_error *err);
/* The same for a part of a file that begins in its line `line`. */
int json_parse_part(struct json_document *d, const char *text, size_t n, const char *name, int line,
                    struct lora_error *err);
int json_read(struct json_document *d, const char *path, struct lora_error *err);
void json_free(struct json_document *d);

const struct json *json_get(const struct json *object, const char *key);   /* NULL: absent or no object */
/* The typed ones: 0 and *out untouched when the key is absent or null; -1 with an error that names
 * file and key when it has another type or is out of range. */
int json_get_int(const struct json *o, const char *key, int *out, const char *file, struct lora_error *err);
int json_get_number(const struct json *o, const char *key, double *out, const char *file, struct lora_error *err);
int json_get_bool(const struct json *o, const char *key, int *out, const char *file, struct lora_error *err);
int json_get_string(const struct json *o, const char *key, const char **out, const char *file, struct lora_error *err);

/* Writing: values appended to a text. A string is escaped; a number has the fewest digits that read
 * back the same up to 17, or `digits` significant ones. NaN and infinities are written as null. */
void json_put_string(struct text *t, const char *s, size_t n);
/* The same of a text that ends in a NUL; NULL is null. */
void json_put_text(struct text *t, const char *s);
/* "key": of a member, with a comma before it unless it is the first of its object. Its value comes next. */
void json_put_key(struct text *t, const char *key);
void json_put_number(struct text *t, double x, int digits);
/* Whole members: a figure of 9 digits, as the contract has them; a text. */
void json_put_figure(struct text *t, const char *key, double x);
void json_put_pair(struct text *t, const char *key, const char *value);
/* The value again as compact JSON text. */
void json_put(struct text *t, const struct json *v);

#endif
