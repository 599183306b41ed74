/* test_bpe.c - the trainer of the embedded tokenizer: ties, and the merges of a reference. */
#include "test.h"
#include "../data/bpe.c"

/* In "aba bab aba" both "ab" and "ba" occur three times: "ba" is merged first. */
static void test_ties(void)
{
    struct bpe b = { 0 };
    struct lora_error err;
    struct text first = { 0 }, second = { 0 };
    test_begin("equal counts: the greater pair of byte strings");
    CHECK(!bpe_add(&b, "aba\nbab\naba\n", 12, &err), "%s: %s", err.what, err.where);
    CHECK(!bpe_train(&b, 258, &err), "%s: %s", err.what, err.where);
    CHECK(b.n_tokens == 258, "%d", b.n_tokens);
    bpe_show(&b, 256, &first);
    bpe_show(&b, 257, &second);
    CHECK(first.s && !strcmp(first.s, "ba"), "%s", first.s);
    CHECK(second.s && !strcmp(second.s, "aba"), "%s", second.s);
    text_free(&first);
    text_free(&second);
    bpe_free(&b);
}

static void test_reference(const char *dir)
{
    static const char name[] = "500 tokens of the reference corpus: the same merges";
    struct bpe b = { 0 };
    struct file_map corpus, merges;
    struct lora_error err;
    struct text mine = { 0 };
    char path[1024];
    int i;
    if (!dir) { test_skip(name, "the shared vectors are not here"); return; }
    test_begin(name);
    snprintf(path, sizeof path, "%s/vectors/bpe-training/corpus.en", dir);
    if (file_open(&corpus, path, &err)) { test_skip(name, "no corpus"); return; }
    snprintf(path, sizeof path, "%s/vectors/bpe-training/train-bpe-reference-merges.txt", dir);
    CHECK(!file_open(&merges, path, &err), "%s: %s", err.what, err.where);
    CHECK(!bpe_add(&b, (const char *)corpus.data, corpus.size, &err), "%s: %s", err.what, err.where);
    CHECK(!bpe_train(&b, 499, &err), "%s: %s", err.what, err.where);       /* and one special token */
    for (i = BPE_BYTES; i < b.n_tokens; i++) {
        bpe_show(&b, b.left[i], &mine);
        text_puts(&mine, " ");
        bpe_show(&b, b.right[i], &mine);
        text_puts(&mine, "\n");
    }
    CHECK(b.n_tokens == 499, "%d", b.n_tokens);
    CHECK(mine.n == merges.size && !memcmp(mine.s, merges.data, mine.n), "%zu bytes, %zu in the reference", mine.n, merges.size);
    text_free(&mine);
    bpe_free(&b);
    file_close(&corpus);
    file_close(&merges);
}

int main(void)
{
    test_ties();
    test_reference(shared_dir());
    return test_end();
}
