/* metrics.h - how good answers are: classification reports, exact match, word overlap. */
#ifndef METRICS_H
#define METRICS_H

#include "util.h"

struct class_score {
    double precision, recall, f1;       /* 0 where nothing was predicted, or nothing is true */
    long long support;                  /* rows whose truth it is */
};

struct classification {
    int n;                              /* classes */
    struct class_score *classes;        /* [n] */
    long long *confusion;               /* [n, n + 1]: row truth, column prediction; the last column
                                         * counts predictions that are none of the classes */
    double accuracy, macro_f1;          /* macro: the plain mean over all n classes */
    double weighted_f1;                 /* by support */
};

/* Nothing counted yet; then a row at a time, truth from 0 to n - 1, predicted too, or -1: no class; then the
 * scores. */
int classification_open(struct classification *c, int n, struct lora_error *err);
void classification_add(struct classification *c, int truth, int predicted);
void classification_score(struct classification *c);
void classification_free(struct classification *c);

/* 1: equal, but for white space (ASCII) around them. */
int exact_match(const char *prediction, const char *reference);

/* F1 of the words (runs between white space, as written), each counted as often as both texts have
 * it: 2 * common / (words of one + words of the other); two texts without words: 1. Negative: out
 * of memory. */
double token_f1(const char *prediction, const char *reference);

#endif
