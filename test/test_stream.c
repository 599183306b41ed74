/* test_stream.c - files of rows that are longer than what memory holds of them: records on the edges of the
 * window, rows read again in any order, files that change meanwhile, and how memory and time grow with rows. */
#include "../data.h"
#include "../formats/records.h"
#include "test.h"

#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int put_file(const char *name, const struct text *t)
{
    FILE *f = fopen(in_folder(name), "wb");
    int good = f && fwrite(t->s, 1, t->n, f) == t->n;
    if (f) fclose(f);
    return good;
}

/* ---- windows ---- */

enum { RECORDS = 3000 };
static const char *const kinds[] = { "w.jsonl", "w.json", "w.csv", "w.txt" };

/* Text i: some are longer than a window's part, all hold what ends records in other places, where the kind
 * allows that. */
static void put_words(struct text *t, int i, int kind)
{
    static const char *const odd[] = { "\\n],{\\\"[", ",\n]\"\",\"\"\n", ",\\]\"{ " };
    int k, n = i % 997 == 5 ? 30000 : i % 11;
    text_printf(t, "row %d ", i);
    for (k = 0; k < n; k++) text_puts(t, kind == 2 ? odd[1] : kind == 3 ? odd[2] : odd[0]);
}

static void put_records(struct text *t, int kind)
{
    int i;
    t->n = 0;
    text_puts(t, kind == 1 ? "\xef\xbb\xbf [" : kind == 2 ? "id,text\r\n" : "");
    for (i = 0; i < RECORDS; i++) {
        if (kind == 1) text_puts(t, i ? ",\n" : "\n");
        if (kind < 2) text_puts(t, "{\"text\":\"");
        if (kind == 2) text_printf(t, "%d,\"", i);
        put_words(t, i, kind);
        if (kind < 2) text_puts(t, "\"}");
        if (kind != 1) text_puts(t, kind == 2 ? "\"\r\n" : "\n");
        if (kind != 1 && i % 7 == 0) text_puts(t, kind == 2 ? "\r\n" : "  \n");
    }
    if (kind == 1) text_puts(t, "\n]\n \n");
}

/* What the record's text must be: escapes undone. */
static int is_record(const struct json *v, int i, int kind)
{
    const struct json *text = json_get(v, "text");
    struct text want = { 0 };
    size_t k, n = 0;
    int same;
    put_words(&want, i, kind);
    for (k = 0; k < want.n; k++) {
        char c = want.s[k];
        if (kind < 2 && c == '\\') c = want.s[++k] == 'n' ? '\n' : want.s[k];
        if (kind == 2 && c == '"') k++;
        want.s[n++] = c;
    }
    same = text && text->n == n && !memcmp(text->string, want.s, n);
    text_free(&want);
    return same;
}

static void test_windows(void)
{
    static uint64_t place[RECORDS];
    static int line[RECORDS];
    struct records r;
    struct text t = { 0 };
    const struct json *v;
    int kind, i, bad;
    for (kind = 0; kind < 4; kind++) {
        struct lora_error err = { "", "", "", "", "" };
        char name[100];
        snprintf(name, sizeof name, "%s: records on the edges of windows, in order and in any other", kinds[kind]);
        test_begin(name);
        put_records(&t, kind);
        CHECK(put_file(kinds[kind], &t) && !records_open(&r, in_folder(kinds[kind]), 0, &err), "%s", err.what);
        for (i = 0; records_next(&r, &v, &err) > 0; i++) {
            place[i % RECORDS] = r.place;
            line[i % RECORDS] = r.line;
            if (!is_record(v, i, kind)) CHECK(0, "record %d", i);
        }
        CHECK(i == RECORDS && !err.what[0], "%d records, %s %s", i, err.what, err.where);
        CHECK(r.capacity < 1 << 20, "a window of %zu bytes", r.capacity);
        for (i = 0, bad = 0; i < RECORDS && !bad; i++) {
            int k = (int)((long long)i * 1777 % RECORDS);
            records_seek(&r, place[k]);
            bad = records_next(&r, &v, &err) != 1 || !is_record(v, k, kind) || r.place != place[k];
            if (!bad && k + 1 < RECORDS) bad = records_next(&r, &v, &err) != 1 || !is_record(v, k + 1, kind);
            CHECK(!bad, "record %d, and the one behind it", k);
        }
        records_rewind(&r);
        for (i = 0; records_next(&r, &v, &err) > 0; i++)
            if (r.line != line[i] || r.place != place[i]) CHECK(0, "record %d: line %d, not %d", i, r.line, line[i]);
        CHECK(i == RECORDS);
        records_close(&r);
    }
    text_free(&t);
}

/* ---- rows that change ---- */

static void put_rows(struct text *t, int n, int labels)
{
    int i;
    t->n = 0;
    for (i = 0; i < n; i++) {
        text_printf(t, "{\"input_ids\":[%d,%d,%d,7]", 1 + i % 100, 3 + i / 100 % 100, 5 + i / 10000);
        text_puts(t, labels ? ",\"labels\":[-100,-100,3,7]}\n" : "}\n");
    }
}

static const struct data_options plain = { .vocab = 259 };

/* Row i after the file was changed so that it says `want`; err says where. */
static void check_changed(const struct dataset *d, int i, const char *row, const char *want)
{
    struct row again = { 0 };
    struct lora_error err = { "", "", "", "", "" };
    CHECK(data_row(d, i, &again, &err) == -1 && strstr(err.what, "has changed") && strstr(err.where, row)
          && strstr(err.found, want), "row %d: %s | %s | %s", i, err.what, err.where, err.found);
    row_free(&again);
}

static void test_changes(void)
{
    enum { ROWS = 6000 };
    struct text t = { 0 };
    struct dataset d;
    struct row row = { 0 };
    struct lora_error err = { "", "", "", "", "" };
    char two[600], *at;
    FILE *f;
    int i;
    test_begin("a file that was changed or cut since: its name and the row");
    put_rows(&t, ROWS, 0);
    CHECK(put_file("a.jsonl", &t));
    snprintf(two, sizeof two, "%s,", in_folder("a.jsonl"));
    CHECK(put_file("b.jsonl", &t));
    strcat(two, in_folder("b.jsonl"));
    CHECK(!data_read(&d, two, &plain, &err), "%s: %s", err.what, err.where);
    CHECK(d.n == 2 * ROWS && d.report.duplicates == ROWS, "%d rows, %lld duplicates", d.n, d.report.duplicates);
    for (i = 0; i < d.n; i += 97)
        CHECK(!data_row(&d, i, &row, &err) && row.n == 4 && row.ids[0] == 1 + i % ROWS % 100 && row.source == i, "row %d", i);
    at = strstr(t.s + t.n / 2, "7]");           /* one id of a row in the middle of b.jsonl */
    for (i = 0; at && &t.s[i] < at; i++) ;
    f = fopen(in_folder("b.jsonl"), "r+b");
    CHECK(at && f && !fseek(f, i, SEEK_SET) && fputc('8', f) != EOF && !fclose(f));
    for (at = t.s, i = 0; at < strstr(t.s + t.n / 2, "7]"); at++) i += *at == '\n';
    {
        char name[64];
        snprintf(name, sizeof name, "b.jsonl, row %d", i + 1);
        CHECK(!data_row(&d, 0, &row, &err) && !data_row(&d, ROWS, &row, &err));
        check_changed(&d, ROWS + i, name, "another one");
        CHECK(!data_row(&d, i, &row, &err) && !data_row(&d, ROWS + i + 1, &row, &err), "its neighbours");
    }
    f = fopen(in_folder("a.jsonl"), "r+b");
    CHECK(f && !fseek(f, 1000, SEEK_SET) && fputs("no row at all", f) != EOF && !fclose(f));
    CHECK(!data_row(&d, ROWS - 1, &row, &err));
    for (i = 0; i < 100 && !data_row(&d, i, &row, &err); i++) ;
    CHECK(i < 100 && strstr(err.what, "has changed") && strstr(err.where, "a.jsonl, row "), "%d: %s", i, err.what);
    CHECK(!truncate(in_folder("b.jsonl"), 100));
    CHECK(!data_row(&d, 0, &row, &err) && !data_row(&d, ROWS, &row, &err));
    check_changed(&d, 2 * ROWS - 1, "b.jsonl, row 6000", "the end of the file");
    remove(in_folder("a.jsonl"));            /* a file that is replaced is another one: the old is open */
    CHECK(!data_row(&d, ROWS - 1, &row, &err));
    data_free(&d);
    row_free(&row);
    text_free(&t);
}

/* ---- what can be read only once ---- */

static void test_pipe(void)
{
    struct text t = { 0 };
    struct dataset d;
    struct row row = { 0 };
    struct lora_error err = { "", "", "", "", "" };
    char path[32];
    int ends[2], i, good;
    pid_t child;
    test_begin("a pipe: an unnamed copy is made of it");
    put_rows(&t, 20000, 0);
    if (pipe(ends) || snprintf(path, sizeof path, "/dev/fd/%d", ends[0]) < 0 || access(path, R_OK) || (child = fork()) < 0) {
        text_free(&t);
        test_skip("a pipe", "no /dev/fd here");
        return;
    }
    if (!child) {
        size_t done = 0;
        ssize_t n = 1;
        close(ends[0]);
        for (; done < t.n && n > 0; done += (size_t)n) n = write(ends[1], t.s + done, t.n - done);
        _exit(done != t.n);
    }
    close(ends[1]);
    good = !data_read(&d, path, &plain, &err);
    close(ends[0]);
    waitpid(child, &i, 0);
    CHECK(good && d.n == 20000 && d.report.copied == (long long)t.n, "%s: %s", err.what, err.where);
    for (i = 19999; good && i > 0; i -= 613)
        CHECK(!data_row(&d, i, &row, &err) && row.ids[0] == 1 + i % 100 && row.ids[2] == 5 + i / 10000, "row %d", i);
    if (good) data_free(&d);
    row_free(&row);
    text_free(&t);
}

/* ---- memory and time ---- */

static long anonymous(void)         /* bytes; 0: this system does not say */
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[128];
    long kib = 0;
    while (f && fgets(line, sizeof line, f)) if (sscanf(line, "RssAnon: %ld", &kib) == 1) break;
    if (f) fclose(f);
    return kib * 1024;
}

/* The processor's, as others may be at work. */
static double processor_seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

struct cost { double seconds, bytes; };

/* Of a process of its own, so that nothing is there before: n rows read, ordered, some read again. */
static int read_rows(int n, struct cost *cost)
{
    int ends[2], status;
    pid_t child;
    ssize_t got;
    if (pipe(ends) || (child = fork()) < 0) return -1;
    if (!child) {
        struct dataset d;
        struct row row = { 0 };
        struct lora_error err = { "", "", "", "", "" };
        struct cost c;
        long before = anonymous();
        char name[32];
        int i, bad;
        snprintf(name, sizeof name, "%d.jsonl", n);
        c.seconds = processor_seconds();
        bad = data_read(&d, in_folder(name), &plain, &err);
        for (i = 0; i < 1000 && !bad; i++) bad = data_row(&d, (int)((long long)i * 7919 % n), &row, &err);
        c.seconds = processor_seconds() - c.seconds;
        c.bytes = (double)(anonymous() - before);
        if (bad) printf("  %s: %s\n", err.what, err.where);
        fflush(stdout);
        _exit(bad || d.n != n || write(ends[1], &c, sizeof c) != (ssize_t)sizeof c);
    }
    close(ends[1]);
    got = read(ends[0], cost, sizeof *cost);
    close(ends[0]);
    return waitpid(child, &status, 0) == child && !status && got == (ssize_t)sizeof *cost ? 0 : -1;
}

/* A quadratic part that took a sixth of the least time would show as 6 times; what remains is for a busy machine. */
static void test_growth(void)
{
    enum { ROWS = 150000, SIZES = 3, TIMES = 3 };
    struct text t = { 0 };
    struct cost cost[SIZES], c;
    char name[32];
    double bytes;
    int i, k;
    for (k = 0; k < SIZES; k++) {
        put_rows(&t, ROWS << k, 1);
        snprintf(name, sizeof name, "%d.jsonl", ROWS << k);
        put_file(name, &t);
    }
    text_free(&t);
    test_begin("four times as many rows take about four times as long");
    for (i = 0; i < TIMES; i++)
        for (k = 0; k < SIZES; k++) {
            CHECK(!read_rows(ROWS << k, &c));
            if (!i || c.seconds < cost[k].seconds) cost[k] = c;
        }
    for (k = 0; k < SIZES; k++) printf("  %d rows: %.3f s, %.2f times the least\n", ROWS << k, cost[k].seconds, cost[k].seconds / cost[0].seconds);
    CHECK(cost[2].seconds <= 6 * cost[0].seconds, "%.2f times", cost[2].seconds / cost[0].seconds);
#if defined(__SANITIZE_ADDRESS__)
    test_skip("at most 32 bytes of memory a row", "sanitizers have memory of their own");
#else
    if (!anonymous()) {
        test_skip("at most 32 bytes of memory a row", "no RssAnon in /proc");
        return;
    }
    test_begin("at most 32 bytes of memory a row, its place in a shuffled order included");
    bytes = (cost[2].bytes - cost[1].bytes) / (2 * ROWS) + sizeof(int);
    printf("  %.1f bytes a row: %.1f MB and %.1f MB in all\n", bytes, cost[1].bytes / 1e6, cost[2].bytes / 1e6);
    CHECK(DATA_ENTRY + (int)sizeof(int) <= 32 && bytes > DATA_ENTRY && bytes <= 32, "%.1f bytes", bytes);
#endif
}

int main(void)
{
    if (folder_make()) return 1;
    test_windows();
    test_changes();
    test_pipe();
    test_growth();
    remove_tree(folder, NULL);
    return test_end();
}
