/* data.c - see data.h. All rows once, for what is kept of each; then one at a time, again. */
#include "data_parts.h"

#include "formats/names.h"
#include "formats/records.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK 1024              /* entries that are allocated together: doubling would take twice what is used */
#define FILE_SHIFT 48           /* in data_entry.at */
#define PLACE_MASK ((UINT64_C(1) << FILE_SHIFT) - 1)

struct file {
    struct records records;
    char *path;
    int first;                  /* rows of the files before it */
    enum form form;
};

/* What rows are read from and with. */
struct data_files {
    struct data_options o;
    struct reader reader;
    struct words labels;
    struct file *files;
    int n;
};

/* ---- rows ---- */

void row_free(struct row *row)
{
    free(row->ids);
    free(row->mask);
    free(row->labels);
    free(row->label);
    free(row->completion);
    memset(row, 0, sizeof *row);
}

static void *copy_of(const void *p, size_t count, size_t size, struct lora_error *err)
{
    void *copy = new_array(count, size, err);
    if (copy && count) memcpy(copy, p, count * size);
    return copy;
}

/* What the reader has made, as a row. */
static int take_row(struct reader *r, const struct data_entry *e, struct row *row, struct lora_error *err)
{
    size_t n = r->ids.n;
    *row = (struct row){
        .n = (int)n, .n_targets = e->n_targets, .source = e->source, .prompt_n = r->prompt_n,
        .ids = copy_of(r->ids.v, n, sizeof *row->ids, err), .mask = copy_of(r->mask.s, n, 1, err),
        .labels = r->has_labels ? copy_of(r->targets.v, n, sizeof *row->labels, err) : NULL,
        .label = r->label, .completion = r->completion
    };
    r->label = r->completion = NULL;
    return row->ids && row->mask && (row->labels || !r->has_labels) ? 0 : -1;
}

static int blank_row(const struct dataset *d, const struct data_entry *e, struct row *row, struct lora_error *err)
{
    size_t n = (size_t)d->report.longest;
    row->ids = new_array(n, sizeof *row->ids, err);
    row->mask = new_array(n, 1, err);
    if (!row->ids || !row->mask) return -1;
    memset(row->mask, 1, n);
    row->n = row->n_targets = (int)n;
    row->source = e->source;
    return 0;
}

const struct data_entry *data_entry(const struct dataset *d, int i) { return &d->blocks[i / BLOCK][i % BLOCK]; }

/* The record of an entry, rendered: 0, 1 when the file ends before it, or -1. */
static int render_again(struct data_files *files, const struct data_entry *e, struct lora_error *err)
{
    struct file *f = &files->files[e->at >> FILE_SHIFT];
    const struct json *v;
    int got;
    records_seek(&f->records, e->at & PLACE_MASK);
    if ((got = records_next(&f->records, &v, err)) <= 0) return got ? -1 : 1;
    files->reader.err = err;
    files->reader.form = f->form;
    files->reader.path = f->path;
    files->reader.line = 0;
    return reader_render(&files->reader, v) || reader_cut(&files->reader) < 0 ? -1 : 0;
}

/* What went through once can fail for want of memory, or because it is another file by now. */
int data_fail(const struct dataset *d, int i, const char *what, struct lora_error *err)
{
    const struct data_entry *e = data_entry(d, i);
    const struct file *f = d->files ? &d->files->files[e->at >> FILE_SHIFT] : NULL;
    return fail(err, what, "%s%srow %d", f ? f->path : "", f ? ", " : "", e->source - (f ? f->first : 0) + 1);
}

int data_row(const struct dataset *d, int i, struct row *row, struct lora_error *err)
{
    const struct data_entry *e = data_entry(d, i);
    struct lora_error why = { "", "", "", "", "" };
    int bad;
    row_free(row);
    if (!d->files) return blank_row(d, e, row, err);
    bad = render_again(d->files, e, &why);
    if (!bad && reader_hash(&d->files->reader) == e->hash) return take_row(&d->files->reader, e, row, err);
    if (bad < 0 && (!strcmp(why.what, "out of memory") || !strcmp(why.what, "cannot read"))) {
        if (err) *err = why;
        return -1;
    }
    data_fail(d, i, "the data has changed while it was in use", err);
    expected(err, "the row that was read at the start");
    found(err, "%s", bad > 0 ? "the end of the file" : "another one");
    return hint(err, "rows are read again when their step comes: leave the file as it is until the job ends, or give it a copy");
}

/* ---- entries ---- */

static struct data_entry *new_entry(struct dataset *d, struct lora_error *err)
{
    size_t block = (size_t)d->n / BLOCK, i = (size_t)d->n % BLOCK;
    if (!i) {
        if (grow_array((void **)&d->blocks, &d->blocks_capacity, block + 1, sizeof *d->blocks, err)) return NULL;
        if (!(d->blocks[block] = new_array(BLOCK, sizeof **d->blocks, err))) return NULL;
    }
    d->n++;
    return &d->blocks[block][i];
}

/* Sums of the report that need no other row. */
static void count_row(struct dataset *d, const struct reader *r, const struct data_entry *e)
{
    struct data_report *p = &d->report;
    int n = (int)r->ids.n, inputs = n - 1;
    while (!r->mask.s[inputs]) inputs--;        /* there is a target behind the first id */
    p->used++;
    p->tokens += n;
    p->targets += e->n_targets;
    if (n > p->longest) p->longest = n;
    if (inputs > p->most_inputs) p->most_inputs = inputs;
    if (e->n_targets > p->most_targets) p->most_targets = e->n_targets;
    p->labelled += r->label != NULL;
    d->hash = hash_bytes(d->hash, &e->hash, sizeof e->hash);
}

/* Keeps what was rendered in d, or in held by its hash, or counts why not. */
static int add_row(struct data_files *files, int file, struct dataset *d, double f, struct dataset *held, struct lora_error *err)
{
    struct reader *r = &files->reader;
    struct data_entry *e;
    int source = (int)d->report.rows++, cut = reader_cut(r), targets = 0;
    uint64_t hash = reader_hash(r);
    size_t t;
    if (cut < 0) return -1;
    d->report.dropped_overlong += cut == LENGTH_DROPPED;
    d->report.truncated += cut == LENGTH_CUT;
    if (cut == LENGTH_DROPPED) return 0;
    for (t = 1; t < r->mask.n; t++) targets += r->mask.s[t] != 0;
    if (!targets) {
        d->report.without_targets++;
        return 0;
    }
    if (held && random_uniform(hash, 0) < f) d = held;
    if (!(e = new_entry(d, err))) return -1;
    e->at = files->files[file].records.place | (uint64_t)file << FILE_SHIFT;
    e->hash = hash;
    e->n_targets = targets;
    e->source = source;
    count_row(d, r, e);
    return r->label ? words_add(&files->labels, r->label, err) : 0;
}

static int compare_hashes(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Rows that are there again, a part of the hashes at a time: sorting all at once would take as much memory
 * again as the entries do. */
static int count_duplicates(struct dataset *d, struct lora_error *err)
{
    enum { PARTS = 16 };
    uint64_t *hashes = NULL;
    size_t capacity = 0, n, k;
    int part, i, bad = 0;
    for (part = 0; part < PARTS && !bad; part++) {
        for (n = 0, i = 0; i < d->n && !bad; i++) {
            uint64_t hash = data_entry(d, i)->hash;
            if (hash % PARTS != (uint64_t)part) continue;
            bad = grow_array((void **)&hashes, &capacity, n + 1, sizeof *hashes, err);
            if (!bad) hashes[n++] = hash;
        }
        if (n) qsort(hashes, n, sizeof *hashes, compare_hashes);
        for (k = 1; k < n; k++) d->report.duplicates += hashes[k] == hashes[k - 1];
    }
    free(hashes);
    return bad;
}

/* ---- files ---- */

static int no_name(const char *list, struct lora_error *err)
{
    fail(err, "wrong value", "--data: %s", list);
    return expected(err, "files with commas between them, a name for each");
}

static int open_files(struct data_files *files, const char *paths, struct lora_error *err)
{
    const char *p;
    int count = 1;
    for (p = paths; *p; p++) count += *p == ',';
    if (count > 1 << (64 - FILE_SHIFT)) return fail(err, "too many files", "--data");
    if (!(files->files = new_array((size_t)count, sizeof *files->files, err))) return -1;
    for (p = paths; files->n < count; p += strcspn(p, ",") + 1) {
        struct file *f = &files->files[files->n];
        size_t n = strcspn(p, ",");
        if (!n) return no_name(paths, err);
        if (!(f->path = new_string_n(p, n, err))) return -1;
        files->n++;
        if (records_open(&f->records, f->path, files->o.csv_delimiter, err)) return -1;
    }
    return 0;
}

static void close_files(struct data_files *files)
{
    int i;
    if (!files) return;
    for (i = 0; i < files->n; i++) {
        records_close(&files->files[i].records);
        free(files->files[i].path);
    }
    reader_free(&files->reader);
    words_free(&files->labels);
    free(files->files);
    free(files);
}

/* What {labels} stands for: the data's own labels take a pass of their own, and those of rows that are left out are among
 * them, as their number of tokens follows from it. They are the labels of the data then. */
static int prepare_prompt(struct data_files *files, struct lora_error *err)
{
    const char *given = files->o.prompt_template, *label;
    struct reader *r = &files->reader;
    const struct json *v;
    int i, got;
    if (!given) return 0;
    if (!strstr(given, "{text}") && !strstr(given, "{document}")) {
        fail(err, "the prompt template", "--prompt-template");
        return expected(err, "{text} or {document} in it");
    }
    if (!strstr(given, "{labels}")) return 0;
    for (i = 0; i < files->n && !files->o.labels; i++) {
        struct records *records = &files->files[i].records;
        r->form = FORM_NONE;
        r->path = records->path;
        while ((got = records_next(records, &v, err)) > 0) {
            r->line = records->line;
            if (!(label = reader_label(r, v)) || (*label && words_add(&files->labels, label, err))) return -1;
        }
        if (got < 0) return -1;
        records_rewind(records);
    }
    words_sort(&files->labels);
    if (files->o.labels) reader_join(&r->labels, files->o.labels, files->o.n_labels);
    else reader_join(&r->labels, (const char *const *)files->labels.v, files->labels.n);
    return text_check(&r->labels, err);
}

static int read_file(struct data_files *files, int file, struct dataset *d, double f, struct dataset *held, struct lora_error *err)
{
    struct reader *r = &files->reader;
    struct file *from = &files->files[file];
    const struct json *v;
    int got, rows = 0;
    r->form = FORM_NONE;
    r->path = from->path;
    from->first = (int)d->report.rows;
    for (; (got = records_next(&from->records, &v, err)) > 0; rows++) {
        r->line = from->records.line;
        if (d->report.rows == INT32_MAX) return reader_fail(r, "too many rows");
        if (reader_render(r, v)) return -1;
        if (!rows) reader_note(r, v, &d->report);
        if (add_row(files, file, d, f, held, err)) return -1;
    }
    from->form = r->form;
    if (from->records.copied > 0) d->report.copied += from->records.copied;
    if (got) return -1;
    return rows ? 0 : fail(err, "no rows", "%s", from->path);
}

/* ---- data sets ---- */

static int read_files(struct dataset *d, double f, struct dataset *held, const char *paths, struct lora_error *err)
{
    int i;
    if (open_files(d->files, paths, err) || prepare_prompt(d->files, err)) return -1;
    for (i = 0; i < d->files->n; i++)
        if (read_file(d->files, i, d, f, held, err)) return -1;
    words_sort(&d->files->labels);
    return count_duplicates(d, err);
}

static int check_rows(const struct dataset *d, const char *paths, struct lora_error *err)
{
    if (d->n) return 0;
    fail(err, "no rows to use", "%s", paths);
    return found(err, "%lld rows: %lld too long, %lld without targets", d->report.rows, d->report.dropped_overlong,
                 d->report.without_targets);
}

static int check_split(const struct dataset *d, const struct dataset *held, struct lora_error *err)
{
    if (d->n && held->n) return 0;
    fail(err, "cannot split the rows", "%d rows", d->n + held->n);
    expected(err, "some rows on either side");
    return found(err, "%d and %d", d->n, held->n);
}

static int start(struct dataset *d, const struct data_options *o, struct lora_error *err)
{
    *d = (struct dataset){ .hash = HASH_START, .files = new_array(1, sizeof *d->files, err) };
    if (!d->files) return -1;
    d->files->o = *o;
    reader_start(&d->files->reader, &d->files->o, err);
    return 0;
}

/* What the files have said of their rows. */
static void name_rows(struct dataset *d)
{
    d->labels = d->files->labels.v;
    d->n_labels = d->files->labels.n;
    d->prompt_template = d->files->reader.prompt_template;
}

int data_read(struct dataset *d, const char *paths, const struct data_options *o, struct lora_error *err)
{
    int bad = start(d, o, err) || read_files(d, 0, NULL, paths, err) || check_rows(d, paths, err);
    if (bad) data_free(d);
    else name_rows(d);
    return bad ? -1 : 0;
}

int data_read_split(struct dataset *d, double f, struct dataset *held, const char *paths,
                    const struct data_options *o, struct lora_error *err)
{
    int bad;
    *held = (struct dataset){ .hash = HASH_START, .borrowed = 1 };
    bad = start(d, o, err) || read_files(d, f, held, paths, err) || count_duplicates(held, err)
          || check_split(d, held, err);
    if (bad) {
        data_free(held);
        data_free(d);
        return -1;
    }
    held->files = d->files;
    held->report.rows = held->n;
    memcpy(held->report.form, d->report.form, sizeof held->report.form);
    name_rows(d);
    name_rows(held);
    return 0;
}

int data_blank(struct dataset *d, int n, int length, struct lora_error *err)
{
    struct data_report *p = &d->report;
    struct data_entry *e;
    memset(d, 0, sizeof *d);
    while (d->n < n) {
        if (!(e = new_entry(d, err))) return -1;
        e->n_targets = length;
        e->source = d->n - 1;
    }
    p->rows = p->used = n;
    p->tokens = p->targets = (long long)n * length;
    p->longest = p->most_targets = length;
    p->most_inputs = length - 1;
    return 0;
}

void data_free(struct dataset *d)
{
    int i;
    for (i = 0; d->blocks && i < d->n; i += BLOCK) free(d->blocks[i / BLOCK]);
    free(d->blocks);
    if (!d->borrowed) close_files(d->files);
    memset(d, 0, sizeof *d);
}

size_t data_memory(const struct dataset *d)
{
    size_t blocks = ((size_t)d->n + BLOCK - 1) / BLOCK, bytes = d->blocks_capacity * sizeof *d->blocks;
    int i;
    bytes += blocks * BLOCK * sizeof **d->blocks;
    if (!d->files || d->borrowed) return bytes;
    for (i = 0; i < d->files->n; i++) bytes += sizeof *d->files->files + d->files->files[i].records.capacity;
    for (i = 0; i < d->n_labels; i++) bytes += 2 * sizeof *d->labels + strlen(d->labels[i]) + 1;
    return bytes;
}
