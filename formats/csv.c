/* csv.c - see csv.h. */
#include "csv.h"

#include <stdlib.h>
#include <string.h>

void csv_open(struct csv *c, char delimiter, const char *name)
{
    memset(c, 0, sizeof *c);
    c->name = name;
    c->delimiter = delimiter;
}

void csv_text(struct csv *c, const char *text, size_t size, int line)
{
    c->text = text;
    c->size = size;
    c->at = 0;
    c->line = line;
}

void csv_close(struct csv *c)
{
    text_free(&c->cells);
    free(c->start);
    memset(c, 0, sizeof *c);
}

const char *csv_field(const struct csv *c, int i) { return c->cells.s + c->start[i]; }

static int wrong(struct csv *c, const char *expect, struct lora_error *err)
{
    fail(err, "cannot read the table", "%s, line %d", c->name, c->line);
    return expected(err, "%s", expect);
}

/* Bytes of the line break at `at`: 0, 1 (LF) or 2 (CRLF). */
static size_t line_break(const struct csv *c)
{
    if (c->at < c->size && c->text[c->at] == '\n') return 1;
    if (c->at + 1 < c->size && c->text[c->at] == '\r' && c->text[c->at + 1] == '\n') return 2;
    return 0;
}

static int at_end(const struct csv *c)
{
    return c->at == c->size || c->text[c->at] == c->delimiter || line_break(c);
}

static int quoted_field(struct csv *c, struct lora_error *err)
{
    int opened = c->line;
    c->at++;
    for (; c->at < c->size; c->at++) {
        char b = c->text[c->at];
        if (b == '"') {
            if (c->at + 1 == c->size || c->text[c->at + 1] != '"') break;
            c->at++;
        }
        if (b == '\n') c->line++;
        if (!b) return wrong(c, "text, not a NUL byte", err);
        text_add(&c->cells, &b, 1);
    }
    if (c->at == c->size) {
        fail(err, "cannot read the table", "%s, line %d", c->name, opened);
        expected(err, "a closing quote behind the one that opens here");
        return found(err, "the end of the file");
    }
    c->at++;
    return at_end(c) ? 0 : wrong(c, "a delimiter or the end of the line after a closing quote", err);
}

static int plain_field(struct csv *c, struct lora_error *err)
{
    size_t start = c->at;
    while (!at_end(c)) c->at++;
    if (memchr(c->text + start, 0, c->at - start)) return wrong(c, "text, not a NUL byte", err);
    if (memchr(c->text + start, '\r', c->at - start)) {
        wrong(c, "lines that end in LF or CRLF", err);
        found(err, "CR alone");
        return hint(err, "`tr '\\r' '\\n'` turns such a file into lines; within a field CR needs quotes");
    }
    text_add(&c->cells, c->text + start, c->at - start);
    return 0;
}

int csv_next(struct csv *c, struct lora_error *err)
{
    size_t skip;
    while ((skip = line_break(c))) {
        c->at += skip;
        c->line++;
    }
    if (c->at == c->size) return 0;
    c->record_line = c->line;
    c->record_at = c->at;
    c->n = 0;
    c->cells.n = 0;
    for (;;) {
        if (grow_array((void **)&c->start, &c->capacity, (size_t)c->n + 1, sizeof *c->start, err)) return -1;
        c->start[c->n++] = c->cells.n;
        if (c->at < c->size && c->text[c->at] == '"' ? quoted_field(c, err) : plain_field(c, err)) return -1;
        text_add(&c->cells, "", 1);
        if (c->at == c->size || c->text[c->at] != c->delimiter) break;
        c->at++;
    }
    skip = line_break(c);
    c->at += skip;
    c->line += skip != 0;
    return text_check(&c->cells, err) ? -1 : 1;
}
