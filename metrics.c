/* metrics.c - see metrics.h. */
#include "metrics.h"

#include <stdlib.h>
#include <string.h>

/* ---- classification ---- */

static double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

int classification_open(struct classification *c, int n, struct lora_error *err)
{
    *c = (struct classification){
        .n = n, .classes = new_array((size_t)n, sizeof *c->classes, err),
        .confusion = new_array((size_t)n, ((size_t)n + 1) * sizeof *c->confusion, err)
    };
    if (c->classes && c->confusion) return 0;
    classification_free(c);
    return -1;
}

void classification_add(struct classification *c, int truth, int predicted)
{
    c->classes[truth].support++;
    c->confusion[(size_t)truth * ((size_t)c->n + 1) + (size_t)(predicted < 0 ? c->n : predicted)]++;
}

void classification_score(struct classification *c)
{
    int n = c->n, i, k;
    long long right = 0, count = 0;
    for (i = 0; i < n; i++) count += c->classes[i].support;
    for (i = 0; i < n; i++) {
        struct class_score *s = &c->classes[i];
        long long hits = c->confusion[(size_t)i * (size_t)(n + 1) + (size_t)i], predicted = 0;
        for (k = 0; k < n; k++) predicted += c->confusion[(size_t)k * (size_t)(n + 1) + (size_t)i];
        s->precision = ratio((double)hits, (double)predicted);
        s->recall = ratio((double)hits, (double)s->support);
        s->f1 = ratio(2.0 * (double)hits, (double)(predicted + s->support));
        c->macro_f1 += s->f1 / n;
        c->weighted_f1 += ratio(s->f1 * (double)s->support, (double)count);
        right += hits;
    }
    c->accuracy = ratio((double)right, (double)count);
}

void classification_free(struct classification *c)
{
    free(c->classes);
    free(c->confusion);
    memset(c, 0, sizeof *c);
}

/* ---- texts ---- */

static int is_white(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

struct text_slice { const char *s; size_t n; };

static struct text_slice trimmed(const char *s)
{
    struct text_slice t;
    while (is_white(*s)) s++;
    t.s = s;
    t.n = strlen(s);
    while (t.n && is_white(s[t.n - 1])) t.n--;
    return t;
}

int exact_match(const char *prediction, const char *reference)
{
    struct text_slice a = trimmed(prediction), b = trimmed(reference);
    return a.n == b.n && !memcmp(a.s, b.s, a.n);
}

static int compare_words(const void *x, const void *y)
{
    const struct text_slice *a = x, *b = y;
    int c = memcmp(a->s, b->s, a->n < b->n ? a->n : b->n);
    return c ? c : (a->n > b->n) - (a->n < b->n);
}

/* The words, sorted. */
static struct text_slice *words_of(const char *s, size_t *count)
{
    size_t capacity = 0;
    struct text_slice *words = NULL;
    *count = 0;
    if (grow_array((void **)&words, &capacity, 1, sizeof *words, NULL)) return NULL;
    for (;;) {
        const char *start;
        while (is_white(*s)) s++;
        if (!*s) break;
        for (start = s; *s && !is_white(*s); s++) continue;
        if (grow_array((void **)&words, &capacity, *count + 1, sizeof *words, NULL)) {
            free(words);
            return NULL;
        }
        words[*count].s = start;
        words[(*count)++].n = (size_t)(s - start);
    }
    qsort(words, *count, sizeof *words, compare_words);
    return words;
}

double token_f1(const char *prediction, const char *reference)
{
    size_t n, m, i = 0, k = 0, common = 0;
    struct text_slice *a = words_of(prediction, &n), *b = words_of(reference, &m);
    double f1 = -1;
    if (a && b) {
        while (i < n && k < m) {
            int c = compare_words(&a[i], &b[k]);
            common += c == 0;
            i += c <= 0;
            k += c >= 0;
        }
        f1 = n + m ? 2.0 * (double)common / (double)(n + m) : 1;
    }
    free(a);
    free(b);
    return f1;
}
