/* records.h - files of records, one at a time: JSONL, a JSON array, CSV, lines of text. Each record is
 * a JSON value; those of CSV and text files are objects made to look like it. A file is read through a
 * window, so memory holds a record and not the file; any record can be read again from its place. */
#ifndef RECORDS_H
#define RECORDS_H

#include "csv.h"
#include "json.h"

enum records_kind { RECORDS_JSONL, RECORDS_JSON, RECORDS_CSV, RECORDS_TEXT };

struct records {
    const char *path;
    enum records_kind kind;
    long long copied;           /* bytes of the copy that was made of what can be read only once; else -1 */
    uint64_t place;             /* of the record in the file, for records_seek */
    int line;                   /* of the record, unless it was sought */
    /* the rest is records.c's */
    int fd;
    char *window;               /* bytes start .. start + n of the file, of which `at` are done with */
    size_t n, at, capacity, part;
    uint64_t start, first;      /* first: the place of the first record */
    int ended, next_line, first_line;
    int any, closed;            /* of a JSON array: it has an element; its bracket was closed */
    struct json_document document;
    struct csv csv;
    struct text header;         /* names of the columns, each ended by a NUL */
    int columns;
    struct json *cells;         /* CSV and text: a record made to look like an object */
    struct json object;
    struct text cell;
};

/* .csv and .txt by the name (a .txt file's lines are {"text": line}); else a JSON array if the file
 * begins with [, or JSONL. A byte order mark is passed over. delimiter: of CSV, 0: a comma. path is
 * kept. Close it also when this fails. */
int records_open(struct records *r, const char *path, char delimiter, struct lora_error *err);
void records_close(struct records *r);
/* 1 and the record, which lives until the next call; 0 at the end; -1. Lines of white space alone
 * are no records. */
int records_next(struct records *r, const struct json **record, struct lora_error *err);
/* The next record is the one at that place; or the first again, with its line. */
void records_seek(struct records *r, uint64_t place);
void records_rewind(struct records *r);

#endif
