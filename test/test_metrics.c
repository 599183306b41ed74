/* test_metrics.c - reports by hand, and against scikit-learn's. */
#include "../formats/json.h"
#include "../metrics.h"
#include "test.h"

static int classification_make(struct classification *c, const int *truth, const int *predicted, long long count, int n,
                               struct lora_error *err)
{
    long long i;
    if (classification_open(c, n, err)) return -1;
    for (i = 0; i < count; i++) classification_add(c, truth[i], predicted[i]);
    classification_score(c);
    return 0;
}

static void test_by_hand(void)
{
    static const int truth[] = { 0, 0, 0, 1, 1, 2 }, predicted[] = { 0, 0, 1, 1, -1, 0 };
    struct classification c;
    test_begin("a small report by hand: wrong, none, and a class never predicted");
    CHECK(!classification_make(&c, truth, predicted, 6, 4, NULL));
    CHECK(fabs(c.accuracy - 3.0 / 6) < 1e-15);
    CHECK(fabs(c.classes[0].precision - 2.0 / 3) < 1e-15 && fabs(c.classes[0].recall - 2.0 / 3) < 1e-15);
    CHECK(fabs(c.classes[1].precision - 0.5) < 1e-15 && fabs(c.classes[1].recall - 0.5) < 1e-15);
    CHECK(c.classes[2].precision == 0 && c.classes[2].recall == 0 && c.classes[2].f1 == 0 && c.classes[2].support == 1);
    CHECK(c.classes[3].f1 == 0 && c.classes[3].support == 0);
    CHECK(fabs(c.macro_f1 - (2.0 / 3 + 0.5) / 4) < 1e-15, "%.17g", c.macro_f1);
    CHECK(fabs(c.weighted_f1 - (3 * 2.0 / 3 + 2 * 0.5) / 6) < 1e-15, "%.17g", c.weighted_f1);
    CHECK(c.confusion[0] == 2 && c.confusion[1] == 1 && c.confusion[5 + 1] == 1 && c.confusion[5 + 4] == 1);
    classification_free(&c);
    CHECK(!classification_make(&c, truth, predicted, 0, 2, NULL) && c.accuracy == 0 && c.macro_f1 == 0);
    classification_free(&c);
}

static void test_texts(void)
{
    test_begin("exact match and the words in common");
    CHECK(exact_match(" a b\n", "a b") && !exact_match("a b", "a  b") && exact_match("", " \n") && !exact_match("A", "a")
          && !exact_match("a b", "a") && !exact_match("a", "a b"));
    CHECK(token_f1("a b c", "a b c") == 1 && token_f1("", " ") == 1 && token_f1("a", "") == 0 && token_f1("x", "y") == 0);
    CHECK(fabs(token_f1("a a b", "a b b c") - 2.0 * 2 / 7) < 1e-15);
    CHECK(fabs(token_f1("the cat", "cat\nthe dog") - 2.0 * 2 / 5) < 1e-15);
    CHECK(token_f1("ab", "a b") == 0 && token_f1("a ab", "ab a") == 1);
}

static int *numbers(const struct json *list)
{
    int *v = calloc(list->n, sizeof *v), i = 0;
    const struct json *x;
    for (x = list->child; x; x = x->next) v[i++] = (int)x->number;
    return v;
}

static void add(struct worst *w, double x, const struct json *o, const char *key)
{
    worst_add(w, fabs(x - json_get(o, key)->number), 1e-12, 0);
}

static void test_sklearn(void)
{
    const char *dir = shared_dir();
    struct json_document d = { NULL, NULL };
    struct lora_error err;
    struct classification c;
    struct worst w = { 0, 0, 0, 0, 0 };
    const struct json *label, *row, *cell;
    char path[1024];
    int *truth, *predicted, n, i, k;
    if (!dir) {
        test_skip("scikit-learn's report", "needs the shared goldens");
        return;
    }
    test_begin("scikit-learn's report");
    snprintf(path, sizeof path, "%s/goldens/rouge-bleu-cls/classification.json", dir);
    if (json_read(&d, path, &err)) {
        CHECK(0, "%s: %s", err.what, err.where);
        return;
    }
    truth = numbers(json_get(d.root, "truth"));
    predicted = numbers(json_get(d.root, "predicted"));
    n = (int)json_get(d.root, "labels")->n;
    CHECK(!classification_make(&c, truth, predicted, (long long)json_get(d.root, "truth")->n, n, &err));
    for (label = json_get(d.root, "labels")->child, i = 0; label; label = label->next, i++) {
        const struct json *want = json_get(json_get(d.root, "per_class"), label->string);
        add(&w, c.classes[i].precision, want, "precision");
        add(&w, c.classes[i].recall, want, "recall");
        add(&w, c.classes[i].f1, want, "f1");
        CHECK(c.classes[i].support == (long long)json_get(want, "support")->number, "%s", label->string);
    }
    row = json_get(d.root, "confusion_rows_truth_columns_predicted")->child;
    for (i = 0; row; row = row->next, i++)
        for (cell = row->child, k = 0; cell; cell = cell->next, k++)
            CHECK(c.confusion[i * (n + 1) + k] == (long long)cell->number, "%d taken for %d", i, k);
    add(&w, c.accuracy, d.root, "accuracy");
    add(&w, c.macro_f1, json_get(d.root, "macro"), "f1");
    add(&w, c.weighted_f1, json_get(d.root, "weighted"), "f1");
    CHECK_WORST(w, "rates");
    classification_free(&c);
    free(truth);
    free(predicted);
    json_free(&d);
}

int main(void)
{
    test_by_hand();
    test_texts();
    test_sklearn();
    return test_end();
}
