/* pretoken.h - how a tokenizer cuts text into the pieces inside which its merges work. Each rule is a
 * scanner that finds what the tokenizer's regular expression would match next. */
#ifndef PRETOKEN_H
#define PRETOKEN_H

#include <stddef.h>

/* A rule covers any text: the first piece of s[0 .. n), n > 0, has next(s, n) > 0 bytes. */
struct split_rule {
    const char *name;
    const char *pattern;        /* the regular expression as tokenizer.json has it */
    size_t (*next)(const char *s, size_t n);
};

extern const struct split_rule split_gpt2, split_llama3, split_qwen2, split_tekken;
extern const struct split_rule split_punctuation;   /* runs of punctuation and what lies between */
extern const struct split_rule split_triples;       /* three ASCII digits and what lies between */
extern const struct split_rule split_digit_runs;    /* \p{N}+ and what lies between: Digits */
extern const struct split_rule split_digits;        /* \p{N} and what lies between: Digits, each by itself */

/* The rule with this pattern, or NULL. */
const struct split_rule *split_by_pattern(const char *pattern);

#endif
