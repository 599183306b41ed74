/* records.c - see records.h. */
#include "records.h"
#include "unicode.h"
#include "names.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

static int has_ending(const char *path, const char *ending)
{
    size_t n = strlen(path), m = strlen(ending);
    return n >= m && !strcasecmp(path + n - m, ending);
}

static int is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static int is_blank(const char *s, size_t n)
{
    while (n && is_space(*s)) s++, n--;
    return n == 0;
}

/* ---- the window ---- */

#define PART_SOUGHT 4096        /* bytes that are read at a time, twice as many each time, ... */
#define PART_MOST 65536         /* ... up to here, unless one record is longer */
#define RECORD_MOST (1 << 30)   /* bytes of a record: a quote that is never closed must not take all memory */

/* More of the file behind the window, whose bytes before `at` may go. What is kept is a record that does not
 * end in it: at least as much again is read, so that long records are looked through a few times only. */
static int fill(struct records *r, struct lora_error *err)
{
    size_t kept = r->n - r->at, part = kept > r->part ? kept : r->part;
    ssize_t got;
    if (kept > RECORD_MOST) {
        fail(err, "a record is too long", "%s, line %d", r->path, r->next_line);
        expected(err, "at most %d bytes", RECORD_MOST);
        return hint(err, "a quote or a bracket may never be closed");
    }
    if (r->at) memmove(r->window, r->window + r->at, kept);
    r->start += r->at;
    r->at = 0;
    r->n = kept;
    if (grow_array((void **)&r->window, &r->capacity, kept + part, 1, err)) return -1;
    do got = pread(r->fd, r->window + kept, part, (off_t)(r->start + kept));
    while (got < 0 && errno == EINTR);
    if (got < 0) {
        fail(err, "cannot read", "%s", r->path);
        return found(err, "%s", strerror(errno));
    }
    r->n += (size_t)got;
    r->ended = got == 0;
    if (r->part < PART_MOST) r->part *= 2;
    return 0;
}

/* The record that was found begins `at` bytes behind r->at and in that line. */
static void mark_place(struct records *r, size_t at, int line)
{
    r->place = r->start + r->at + at;
    r->line = line;
}

static void count_lines(int *line, const char *s, size_t n)
{
    const char *end = s + n;
    while ((s = memchr(s, '\n', (size_t)(end - s)))) {
        *line += *line < INT_MAX;
        s++;
    }
}

void records_seek(struct records *r, uint64_t place)
{
    r->any = 1;
    r->closed = 0;
    if (place >= r->start && place - r->start <= r->n) {
        r->at = (size_t)(place - r->start);
        return;
    }
    r->start = place;
    r->n = r->at = 0;
    r->ended = 0;
    r->part = PART_SOUGHT;
}

void records_rewind(struct records *r)
{
    records_seek(r, r->first);
    r->any = 0;
    r->next_line = r->first_line;
}

void records_close(struct records *r)
{
    if (r->fd >= 0) close(r->fd);
    csv_close(&r->csv);
    json_free(&r->document);
    text_free(&r->header);
    text_free(&r->cell);
    free(r->cells);
    free(r->window);
}

/* ---- JSONL and text ---- */

/* The next line that is not blank: 1, 0 at the end, or -1. */
static int next_line(struct records *r, const char **line, size_t *n, struct lora_error *err)
{
    for (;;) {
        const char *start = r->window + r->at, *end = memchr(start, '\n', r->n - r->at);
        size_t length = end ? (size_t)(end - start) : r->n - r->at;
        if (!end && !r->ended) {
            if (fill(r, err)) return -1;
            continue;
        }
        if (!end && !length) return 0;
        mark_place(r, 0, r->next_line);
        r->at += length + (end != NULL);
        r->next_line += end && r->next_line < INT_MAX;
        if (length && start[length - 1] == '\r') length--;
        if (is_blank(start, length)) continue;
        *line = start;
        *n = length;
        return 1;
    }
}

static int parse(struct records *r, const char *text, size_t n, const struct json **record, struct lora_error *err)
{
    json_free(&r->document);
    if (json_parse_part(&r->document, text, n, r->path, r->line, err)) return -1;
    *record = r->document.root;
    return 1;
}

static int next_jsonl(struct records *r, const struct json **record, struct lora_error *err)
{
    const char *line;
    size_t n;
    int got = next_line(r, &line, &n, err);
    if (got <= 0) return got;
    if (parse(r, line, n, record, err) > 0) return 1;
    return r->line == r->first_line && !memchr(line, '{', n) ? hint(err, "a table's name ends in .csv, plain text's in .txt") : -1;
}

/* A table saved in an older encoding would be trained on as it is: its letters would be bytes of no text. */
static int check_utf8(const struct records *r, const char *p, size_t n, int line, struct lora_error *err)
{
    const char *end = p + n;
    uint32_t c;
    for (; p < end; p += utf8_next(p, (size_t)(end - p), &c)) {
        line += *p == '\n';
        if (utf8_next(p, (size_t)(end - p), &c) == 1 && c == UTF8_BAD) {
            fail(err, "cannot read the text", "%s, line %d", r->path, line);
            expected(err, "valid UTF-8");
            found(err, "byte 0x%02x", (unsigned char)*p);
            return hint(err, "save the file as UTF-8; `iconv -f LATIN1 -t UTF-8` turns an older encoding into it");
        }
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

static int next_text(struct records *r, struct lora_error *err)
{
    const char *line;
    size_t n;
    int got = next_line(r, &line, &n, err);
    if (got <= 0) return got;
    if (check_utf8(r, line, n, r->line, err)) return -1;
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

/* ---- a JSON array ---- */

static int fail_array(const struct records *r, const char *expect, char c, struct lora_error *err)
{
    fail(err, "cannot read JSON", "%s, line %d", r->path, r->next_line);
    expected(err, "%s", expect);
    return c ? found(err, "'%c'", c) : found(err, "the end of the file");
}

/* Passes over white space: 1, or 0 at the end of the file. */
static int skip_space(struct records *r, struct lora_error *err)
{
    for (;;) {
        for (; r->at < r->n && is_space(r->window[r->at]); r->at++) count_lines(&r->next_line, r->window + r->at, 1);
        if (r->at < r->n) return 1;
        if (r->ended) return 0;
        if (fill(r, err)) return -1;
    }
}

/* Where the comma or bracket stands that ends an element of an array; n: it is not there. */
static size_t element_end(const char *s, size_t n)
{
    size_t i, depth = 0;
    for (i = 0; i < n; i++) {
        char c = s[i];
        if (c == '"') {
            for (i++; i < n && s[i] != '"'; i++) i += s[i] == '\\';
            if (i >= n) return n;
        }
        else if ((c == ',' || c == ']') && !depth) return i;
        else if (c == '[' || c == '{') depth++;
        else if ((c == ']' || c == '}') && depth) depth--;
    }
    return n;
}

static int next_element(struct records *r, const struct json **record, struct lora_error *err)
{
    const char *text;
    size_t n;
    int got = skip_space(r, err);
    if (got < 0) return -1;
    if (r->closed) return got ? fail_array(r, "nothing after the array", r->window[r->at], err) : 0;
    while ((n = element_end(r->window + r->at, r->n - r->at)) == r->n - r->at && !r->ended)
        if (fill(r, err)) return -1;
    text = r->window + r->at;
    if (n == r->n - r->at) return fail_array(r, "the rest of the array and its closing bracket", 0, err);
    r->closed = text[n] == ']';
    mark_place(r, 0, r->next_line);
    count_lines(&r->next_line, text, n);
    r->at += n + 1;
    if (!n && r->closed && !r->any) return next_element(r, record, err);
    if (!n) return fail_array(r, "a value", text[n], err);
    r->any = 1;
    return parse(r, text, n, record, err);
}

/* ---- CSV ---- */

/* A record of the table, its columns not looked at. */
static int read_csv(struct records *r, struct lora_error *err)
{
    struct csv *c = &r->csv;
    int got;
    for (;;) {
        csv_text(c, r->window + r->at, r->n - r->at, r->next_line);
        got = csv_next(c, err);
        if (r->ended || c->at + 1 < c->size) break;
        if (got < 0 && err) memset(err, 0, sizeof *err);    /* it goes on behind the window */
        if (fill(r, err)) return -1;
    }
    if (got > 0) {
        mark_place(r, c->record_at, c->record_line);
        if (check_utf8(r, c->text + c->record_at, c->at - c->record_at, c->record_line, err)) return -1;
    }
    r->at += c->at;
    r->next_line = c->line;
    return got;
}

static int next_csv(struct records *r, struct lora_error *err)
{
    int i, got = read_csv(r, err);
    if (got <= 0) return got;
    if (r->csv.n != r->columns) {
        fail(err, "cannot read the table", "%s, line %d", r->path, r->line);
        expected(err, "%d field%s, as in the header", r->columns, r->columns == 1 ? "" : "s");
        found(err, "%d", r->csv.n);
        if (r->columns == 1 && strpbrk(r->header.s, ";\t|"))
            hint(err, "if another character than a comma parts the columns, --csv-delimiter says which");
        return -1;
    }
    for (i = 0; i < r->columns; i++) {
        set_cell(&r->cells[i], r->cells[i].key, csv_field(&r->csv, i));
        r->cells[i].next = i + 1 < r->columns ? &r->cells[i + 1] : NULL;
    }
    return 1;
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
    csv_open(&r->csv, delimiter ? delimiter : ',', r->path);
    if ((got = read_csv(r, err)) < 0) return -1;
    r->columns = got ? r->csv.n : 0;
    r->cells = new_array((size_t)r->columns, sizeof *r->cells, err);
    if (!r->cells) return -1;
    text_add(&r->header, r->csv.cells.s, r->csv.cells.n);
    return text_check(&r->header, err) || name_columns(r, r->header.s, err) ? -1 : 0;
}

/* ---- files ---- */

static int open_kind(struct records *r, char delimiter, struct lora_error *err)
{
    int got;
    if (has_ending(r->path, ".csv")) {
        r->kind = RECORDS_CSV;
        return open_csv(r, delimiter, err);
    }
    if (has_ending(r->path, ".txt")) {
        r->kind = RECORDS_TEXT;
        r->cells = new_array(1, sizeof *r->cells, err);
        return r->cells ? 0 : -1;
    }
    if ((got = skip_space(r, err)) < 0) return -1;
    if (!got || r->window[r->at] != '[') return 0;      /* JSONL may begin with blank lines */
    r->kind = RECORDS_JSON;
    r->at++;
    return 0;
}

int records_open(struct records *r, const char *path, char delimiter, struct lora_error *err)
{
    memset(r, 0, sizeof *r);
    r->path = path;
    r->part = PART_MOST;
    r->next_line = 1;
    r->object.type = JSON_OBJECT;
    if ((r->fd = file_reread(path, &r->copied, err)) < 0) return -1;
    while (r->n < 3 && !r->ended) if (fill(r, err)) return -1;
    if (r->n >= 3 && !memcmp(r->window, "\xef\xbb\xbf", 3)) r->at = 3;     /* byte order mark */
    if (r->n >= 2 && (!memcmp(r->window, "\xff\xfe", 2) || !memcmp(r->window, "\xfe\xff", 2))) {
        fail(err, "cannot read the text", "%s", path);
        expected(err, "UTF-8");
        found(err, "UTF-16");
        return hint(err, "save the file as UTF-8; `iconv -f UTF-16 -t UTF-8` turns it into that");
    }
    if (open_kind(r, delimiter, err)) return -1;
    r->object.child = r->cells;
    r->first = r->start + r->at;
    r->first_line = r->next_line;
    return 0;
}

int records_next(struct records *r, const struct json **record, struct lora_error *err)
{
    *record = &r->object;
    switch (r->kind) {
    case RECORDS_CSV: return next_csv(r, err);
    case RECORDS_TEXT: return next_text(r, err);
    case RECORDS_JSON: return next_element(r, record, err);
    default: return next_jsonl(r, record, err);
    }
}
