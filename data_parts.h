/* data_parts.h - a record rendered, for the files of data.h: forms to ids and targets (data_forms.c), rows
 * to data sets (data.c). */
#ifndef DATA_PARTS_H
#define DATA_PARTS_H

#include "data.h"
#include "formats/json.h"

enum form { FORM_NONE, FORM_MESSAGES, FORM_TURNS, FORM_RAW, FORM_INSTRUCTION, FORM_LABEL, FORM_SUMMARY,
            FORM_IDS, FORM_TEXT };

/* All that rendering needs, and the row that it made. */
struct reader {
    const struct data_options *o;
    struct lora_error *err;
    const char *path;           /* where the record stands, for errors */
    int line;
    enum form form;             /* of the file's rows; FORM_NONE before the first */
    struct text labels;         /* what {labels} stands for */
    const char *prompt_template;    /* of label and summary rows; NULL: there were none */
    /* the row */
    struct ids ids, both;       /* both: scratch */
    struct text mask;           /* a byte per id */
    struct ids targets;         /* of rows of input_ids with labels: an id each */
    int has_labels;             /* one of them is another than the row's */
    int begun;                  /* some text was put: the next piece goes on with it */
    struct text scratch;
    struct chat_text chat;
    struct message *messages;
    size_t n_messages, messages_capacity;
    int prompt_n;
    char *label, *completion;
};

void reader_start(struct reader *r, const struct data_options *o, struct lora_error *err);
void reader_free(struct reader *r);
/* Recognises the record's form, which must be that of the file's first, and makes the row of it. */
int reader_render(struct reader *r, const struct json *v);
/* The label of such a row, not rendered: "" where rows have none, NULL with an error. */
const char *reader_label(struct reader *r, const struct json *v);
enum length { LENGTH_FITS, LENGTH_CUT, LENGTH_DROPPED };
/* What the options say of a row that is longer than they allow, done to the row; -1: it is refused. */
int reader_cut(struct reader *r);
uint64_t reader_hash(const struct reader *r);
/* What the report says of a file's first row, which was rendered. */
void reader_note(const struct reader *r, const struct json *v, struct data_report *report);
/* Starts an error about the record. */
int reader_fail(const struct reader *r, const char *what);
/* "a, b" */
void reader_join(struct text *out, const char *const *labels, int n);

#endif
