/* records.c - see records.h. */
#include "records.h"
#include "unicode.h"
#include "names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int has_ending(const char *path, const char *ending)
{
    size_t n = strlen(path), m = strlen(ending), i;
    if (n < m) return 0;
    for (i = 0; i < m; i++) {
        char c = path[n - m + i];
        if ((c >= 'A' && c <= 'Z' ? c + 32 : c) != ending[i]) return 0;
    }
    return 1;
}

static int is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static int is_blank(const char *s, size_t n)
{
    while (n && is_space(*s)) s++, n--;
    return n == 0;
}

void records_close(struct records *r)
{
    csv_close(&r->csv);
    json_free(&r->document);
    text_free(&r->header);
    text_free(&r->cell);
    free(r->cells);
    file_close(&r->file);
}

/* The names, one behind the other, become the cells' keys. */
static int name_columns(struct records *r, const char *name, struct lora_error *err)
{
    struct names *seen = names_new((size_t)r->columns, err);
    int i, bad = !seen;
    for (i = 0; i < r->columns && !bad; i++, name += strlen(name) + 1) {
        r->cells[i].key = name;
        if (!names_add(seen, name, name)) continue;
        fail(err, "cannot read the table", "%s, line %d", r->path, r->csv.record_line);
        expected(err, "one column of each name");
        bad = found(err, "two columns %s", name);
    }
    names_free(seen);
    return bad ? -1 : 0;
}

static int open_csv(struct records *r, char delimiter, struct lora_error *err)
{
    int got;
    csv_open(&r->csv, (const char *)r->file.data, r->file.size, delimiter ? delimiter : ',', r->path);
    got = csv_next(&r->csv, err);
    if (got < 0) return -1;
    r->columns = got ? r->csv.n : 0;
    r->cells = new_array((size_t)r->columns, sizeof *r->cells, err);
    if (!r->cells) return -1;
    text_add(&r->header, r->csv.cells.s, r->csv.cells.n);
    return text_check(&r->header, err) || name_columns(r, r->header.s, err) ? -1 : 0;
}

/* A table saved in an older encoding would be trained on as it is: its letters would be bytes of no text. */
static int check_utf8(const struct records *r, struct lora_error *err)
{
    const char *p = (const char *)r->file.data, *end = p + r->file.size;
    size_t line = 1;
    uint32_t c;
    for (; p < end; p += utf8_next(p, (size_t)(end - p), &c)) {
        line += *p == '\n';
        if (utf8_next(p, (size_t)(end - p), &c) == 1 && c == UTF8_BAD) {
            fail(err, "cannot read the text", "%s, line %zu", r->path, line);
            expected(err, "valid UTF-8");
            found(err, "byte 0x%02x", (unsigned char)*p);
            return hint(err, "save the file as UTF-8; `iconv -f LATIN1 -t UTF-8` turns an older encoding into it");
        }
    }
    return 0;
}

int records_open(struct records *r, const char *path, char delimiter, struct lora_error *err)
{
    const char *text;
    size_t first;
    memset(r, 0, sizeof *r);
    r->path = path;
    if (file_open(&r->file, path, err)) return -1;
    text = (const char *)r->file.data;
    if (r->file.size >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) r->at = 3;   /* byte order mark */
    if ((has_ending(path, ".csv") || has_ending(path, ".txt")) && check_utf8(r, err)) return -1;
    if (has_ending(path, ".csv")) {
        r->kind = RECORDS_CSV;
        return open_csv(r, delimiter, err);
    }
    if (has_ending(path, ".txt")) {
        r->kind = RECORDS_TEXT;
        r->cells = new_array(1, sizeof *r->cells, err);
        return r->cells ? 0 : -1;
    }
    for (first = r->at; first < r->file.size && is_space(text[first]); first++) continue;
    if (first < r->file.size && text[first] == '[') {
        r->kind = RECORDS_JSON;
        if (json_parse(&r->document, text + r->at, r->file.size - r->at, path, err)) return -1;
        r->next = r->document.root->child;
    }
    return 0;
}

/* The next line that is not blank: 1, or 0 at the end. */
static int next_line(struct records *r, const char **line, size_t *n)
{
    while (r->at < r->file.size) {
        const char *start = (const char *)r->file.data + r->at;
        const char *end = memchr(start, '\n', r->file.size - r->at);
        size_t length = end ? (size_t)(end - start) : r->file.size - r->at;
        r->at += length + (end != NULL);
        r->line++;
        if (length && start[length - 1] == '\r') length--;
        if (is_blank(start, length)) continue;
        *line = start;
        *n = length;
        return 1;
    }
    return 0;
}

static void set_cell(struct json *cell, const char *key, const char *s)
{
    cell->type = JSON_STRING;
    cell->key = key;
    cell->string = s;
    cell->n = strlen(s);
}

static int next_csv(struct records *r, struct lora_error *err)
{
    int i, got = csv_next(&r->csv, err);
    if (got <= 0) return got;
    r->line = r->csv.record_line;
    if (r->csv.n != r->columns) {
        fail(err, "cannot read the table", "%s, line %d", r->path, r->line);
        expected(err, "%d fields, as in the header", r->columns);
        return found(err, "%d", r->csv.n);
    }
    for (i = 0; i < r->columns; i++) {
        set_cell(&r->cells[i], r->cells[i].key, csv_field(&r->csv, i));
        r->cells[i].next = i + 1 < r->columns ? &r->cells[i + 1] : NULL;
    }
    return 1;
}

static int next_text(struct records *r, struct lora_error *err)
{
    const char *line;
    size_t n;
    if (!next_line(r, &line, &n)) return 0;
    r->cell.n = 0;
    text_add(&r->cell, line, n);
    if (text_check(&r->cell, err)) return -1;
    if (memchr(line, 0, n)) {
        fail(err, "cannot read the text", "%s, line %d", r->path, r->line);
        return found(err, "a NUL byte");
    }
    set_cell(&r->cells[0], "text", r->cell.s);
    return 1;
}

static int next_jsonl(struct records *r, const struct json **record, struct lora_error *err)
{
    const char *line;
    size_t n;
    if (!next_line(r, &line, &n)) return 0;
    json_free(&r->document);
    if (json_parse(&r->document, line, n, r->path, err)) {
        if (err) snprintf(err->where, sizeof err->where, "%.400s, line %d", r->path, r->line);
        return -1;
    }
    *record = r->document.root;
    return 1;
}

int records_next(struct records *r, const struct json **record, struct lora_error *err)
{
    int got;
    if (r->kind == RECORDS_JSONL) return next_jsonl(r, record, err);
    if (r->kind == RECORDS_JSON) {
        *record = r->next;
        if (!r->next) return 0;
        r->line = r->next->line;
        r->next = r->next->next;
        return 1;
    }
    got = r->kind == RECORDS_CSV ? next_csv(r, err) : next_text(r, err);
    r->object.type = JSON_OBJECT;
    r->object.child = r->cells;
    *record = &r->object;
    return got;
}
