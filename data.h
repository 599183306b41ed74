/* data.h - files of rows: every form of the contract, rendered, tokenised, with their targets marked.
 *
 * Files may be longer than memory. data_read() goes through all rows once: it checks them, counts, and keeps
 * DATA_ENTRY bytes of each, none of its text. data_row() then reads one again from its place in the file,
 * and renders it as before. */
#ifndef DATA_H
#define DATA_H

#include "chat.h"
#include "tokenizer.h"

/* One row, ready for pack_rows: mask[t] = 1 where ids[t] is a target. Zero-initialise; all of it is the row's own. */
struct row {
    int n, n_targets;
    int *ids;
    unsigned char *mask;
    int *labels;                /* [n] what is to be predicted there; NULL: the ids themselves */
    int source;                 /* row number in the input, from 0 */
    char *label;                /* {"text","label"} rows: the label as written, else NULL */
    char *completion;           /* what `eval --task generate` compares with: the last target span's
                                 * text without its end-of-turn token; NULL for raw text rows */
    int prompt_n;               /* ids before the last target span begins: what generation is given */
};
void row_free(struct row *row);

struct data_options {
    const struct tokenizer *tokenizer;      /* may be NULL when all rows are input_ids */
    const struct chat_template *chat;       /* NULL: none (raw and Alpaca forms only) */
    const char *prompt_template;            /* NULL: the default below */
    const char *text_column, *label_column; /* NULL: "text", "label" */
    char csv_delimiter;                     /* 0: ',' */
    int max_length;                         /* 0: no limit */
    enum { OVERLONG_ERROR, OVERLONG_TRUNCATE, OVERLONG_DROP } on_overlong;
    int vocab;                              /* ids must be below this */
    const char *const *labels;              /* for {labels} in the prompt template; NULL: the data's own */
    int n_labels;
};

/* What the forms leave open:
 * - A file is CSV or text by its name (.csv, .txt); else a JSON array if it begins with [, or JSONL.
 *   Lines of white space alone are not rows. Each other line of a .txt file is one row.
 * - Keys that a form does not use are passed over and named in the report, but `tools` beside messages, and message keys
 *   other than role and content, are refused: they would change the text.
 * - A label may be a string or a number; it is rendered as written.
 * - instruction and input make one user turn, a line break between them.
 * - In a prompt template \n is a line break; {labels} are the labels sorted, with ", " between them.
 *   The default has no {labels}, since a long list in each row costs more than it gives:
 *       Classify the following text. Answer with the label alone.\n\nText: {text}
 *       Summarize the following text.\n\n{document}
 * - Without a chat template instructions, labels and summaries are in Alpaca's text.
 * - A row's ids end with its last target: what comes after is never an input. Rows of input_ids stay
 *   as they are; a label there is -100 or any id. */

/* Nothing is dropped in silence. */
struct data_report {
    long long rows, used, dropped_overlong, truncated, without_targets, duplicates;
    long long tokens, targets;
    long long labelled;             /* rows with a label */
    int longest;
    int most_inputs, most_targets;  /* of a row; its inputs end before its last target */
    long long copied;               /* bytes of what could be read only once: an unnamed copy was made of it */
    char form[96], unused[160];     /* "text and label"; keys of the first rows that the form does not
                                     * use, with ", " between them */
};

/* What stays of a row. */
struct data_entry {
    uint64_t at;                /* its file (the upper 16 bits) and place there */
    uint64_t hash;              /* of ids, mask and labels: splits keep duplicates together; and if another row comes
                                 * from there, that is said */
    int n_targets, source;
};
enum { DATA_ENTRY = sizeof(struct data_entry) };

struct dataset {
    struct data_files *files;   /* NULL: rows that were made up (data_blank) */
    int borrowed;               /* files and labels are another's */
    struct data_entry **blocks; /* the entries (data_entry) */
    size_t blocks_capacity;
    int n;
    char **labels;              /* the labels of its rows, or all that {labels} stood for in their prompts; sorted by bytes */
    int n_labels;
    const char *prompt_template;    /* what label and summary rows were put in: the options' or the
                                     * default; NULL: there were none. What run.json keeps */
    struct data_report report;
    uint64_t hash;              /* of all rows' ids, masks and labels, in order */
};

/* paths: one or more files, separated by commas. Rows without targets are counted and left out; without any row to use it
 * is an error, after which d holds nothing. What o points to must live as long as d. */
int data_read(struct dataset *d, const char *paths, const struct data_options *o, struct lora_error *err);
/* The same, with a share of the rows (0 < f < 1), chosen by their hash, in `held` instead. d has the files
 * of both, and must be freed last. */
int data_read_split(struct dataset *d, double f, struct dataset *held, const char *paths,
                    const struct data_options *o, struct lora_error *err);
/* n rows of `length` ids 0, all targets, without a file: for plans. Free it also when this fails. */
int data_blank(struct dataset *d, int n, int length, struct lora_error *err);
void data_free(struct dataset *d);
/* An error with the place of row i: its file, and its number there. -1. */
int data_fail(const struct dataset *d, int i, const char *what, struct lora_error *err);
/* Row i (0 .. n - 1) again, into *row, whose memory is freed first. A file that was changed or cut since is
 * an error. Not for several threads at once. */
int data_row(const struct dataset *d, int i, struct row *row, struct lora_error *err);
const struct data_entry *data_entry(const struct dataset *d, int i);        /* of row i; d's */
/* Bytes of memory that d takes, windows of its files and the labels included. */
size_t data_memory(const struct dataset *d);

/* The prompt template with text, and the options' labels, in its places; to be freed, or NULL: {labels} without any is an error. */
char *data_prompt(const struct data_options *o, const char *prompt_template, const char *text,
                  struct lora_error *err);

/* The ids of "prompt + answer" for classification: the prompt's ids are row->ids[0 .. prompt_n); a
 * label's ids with its end of turn, as the same rendering gives them. */
int data_label_ids(const struct data_options *o, const char *label, struct ids *out, struct lora_error *err);
/* The ids of a user turn up to its answer, as rows of instructions and labels have them: what
 * generation is given. Appended to out. */
int data_prompt_ids(const struct data_options *o, const char *user, struct ids *out, struct lora_error *err);

/* BOS and EOS as templates write them; "" without one, or without a tokenizer. */
const char *data_bos_text(const struct tokenizer *t);
const char *data_eos_text(const struct tokenizer *t);

#endif
