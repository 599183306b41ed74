/* test_tickets.c - the committed tickets are what the recipe makes, and fit to measure with. */
#include "test.h"
#define main make_text
#include "../data/make_text.c"
#undef main

static const char *const splits[] = { "train", "validation", "test" };
static const int rows_of[] = { 1050, 150, 300 };

static int same_files(const char *a, const char *b)
{
    struct lora_error err;
    struct file_map x, y;
    int same;
    if (file_open(&x, a, &err)) return 0;
    if (file_open(&y, b, &err)) { file_close(&x); return 0; }
    same = x.size == y.size && !memcmp(x.data, y.data, x.size);
    file_close(&x);
    file_close(&y);
    return same;
}

static void test_repeatable(void)
{
    char dir[] = "/tmp/lora-tickets-XXXXXX", words[3][128], made[128], kept[128];
    char *arguments[] = { "make_text", "1", "data/words.grammar", "data/tickets.grammar", words[0], words[1], words[2], NULL };
    struct lora_error err;
    int i;
    test_begin("the grammar makes the committed tickets, byte for byte");
    CHECK(mkdtemp(dir) != NULL);
    for (i = 0; i < 3; i++)
        snprintf(words[i], sizeof words[i], "ticket:%d%s=%s/%s.jsonl", rows_of[i], i == 2 ? "h" : "", dir, splits[i]);
    CHECK(make_text(7, arguments) == 0);
    for (i = 0; i < 3; i++) {
        snprintf(made, sizeof made, "%s/%s.jsonl", dir, splits[i]);
        snprintf(kept, sizeof kept, "data/tickets/%s.jsonl", splits[i]);
        CHECK(same_files(made, kept), "%s differs", kept);
    }
    remove_tree(dir, &err);
}

/* Letters of a text alone, in lower case. */
static uint64_t letters(const struct json *text)
{
    uint64_t h = HASH_START;
    size_t i;
    for (i = 0; i < text->n; i++) {
        char c = (char)tolower((unsigned char)text->string[i]);
        if (isalpha((unsigned char)c)) h = hash_bytes(h, &c, 1);
    }
    return h;
}

static void test_rows(void)
{
    static uint64_t all[1500];
    struct lora_error err;
    int n = 0, i, j, same = 0, counts[10] = { 0 }, n_labels = 0;
    char labels[10][32];
    test_begin("1,500 different tickets in ten categories");
    for (i = 0; i < 3; i++) {
        struct file_map f;
        char path[64];
        const char *s, *newline;
        int rows = 0;
        snprintf(path, sizeof path, "data/tickets/%s.jsonl", splits[i]);
        CHECK(!file_open(&f, path, &err), "%s", err.where);
        for (s = (const char *)f.data; (newline = memchr(s, '\n', f.size - (size_t)(s - (const char *)f.data))); s = newline + 1) {
            struct json_document d;
            CHECK(!json_parse(&d, s, (size_t)(newline - s), path, &err), "%s", err.where);
            if (n < 1500) all[n++] = letters(json_get(d.root, "text"));
            for (j = 0; j < n_labels && strcmp(labels[j], json_get(d.root, "label")->string); j++) {}
            if (j == n_labels && n_labels < 10) snprintf(labels[n_labels++], sizeof labels[0], "%s", json_get(d.root, "label")->string);
            CHECK(j < 10, "an eleventh category");
            if (j < 10) counts[j]++;
            rows++;
            json_free(&d);
        }
        CHECK(rows == rows_of[i], "%s has %d rows", path, rows);
        file_close(&f);
    }
    for (i = 0; i < n; i++)
        for (j = 0; j < i; j++) same += all[i] == all[j];
    CHECK(!same, "%d pairs of tickets with the same letters", same);
    CHECK(n_labels == 10, "%d categories", n_labels);
    for (i = 0; i < n_labels; i++) CHECK(counts[i] > 75 && counts[i] < 300, "%s: %d rows", labels[i], counts[i]);
}

int main(void)
{
    test_repeatable();
    test_rows();
    return test_end();
}
