/* csv.h - comma separated values (RFC 4180), one record at a time. */
#ifndef CSV_H
#define CSV_H

#include "../util.h"

struct csv {
    const char *text, *name;    /* a part of the file that begins with a record, and its name for errors:
                                 * the caller's */
    size_t size, at;
    char delimiter;
    int line;                   /* of the next record, from 1 */
    int record_line;            /* of the record that was read last */
    size_t record_at;           /* where it begins in text */
    struct text cells;          /* the record's fields, each ended by a NUL */
    size_t *start;              /* [n]: where field i begins in cells */
    int n;
    size_t capacity;
};

void csv_open(struct csv *c, char delimiter, const char *name);
void csv_close(struct csv *c);
/* What is read from now on, the first of it standing in `line`. The end of text may be that of a window:
 * when csv_next has come to its last byte or the end (at + 1 >= size), a record or an error is right only
 * if the file ends there. */
void csv_text(struct csv *c, const char *text, size_t size, int line);

/* Reads the next record into n, start, cells: 1; at the end 0; -1 with an error that names the line.
 * Lines end in LF or CRLF; empty ones are passed over. A field that begins with a quote goes on to
 * the closing quote, over line breaks, "" standing for one quote; in other fields a quote is an
 * ordinary character, as spreadsheets write it. A NUL byte is refused. */
int csv_next(struct csv *c, struct lora_error *err);
const char *csv_field(const struct csv *c, int i);

#endif
