/* pretoken.c - see pretoken.h. The scanners follow the alternatives of their pattern in order. */
#include "pretoken.h"

#include <string.h>

#include "unicode.h"

enum {
    SPACE = 1 << CLASS_SPACE,
    NUMBER = 1 << CLASS_NUMBER,
    LETTER = 1 << CLASS_UPPER | 1 << CLASS_LOWER | 1 << CLASS_LETTER,
    REST = 0xff & ~(SPACE | NUMBER | LETTER)            /* [^\s\p{L}\p{N}] */
};

/* The length of the first character of s[n], 0 when n is 0, and its class as a bit. */
static size_t peek(const char *s, size_t n, int *bit)
{
    unsigned char a;
    uint32_t c;
    size_t length;
    *bit = 0;
    if (!n) return 0;
    a = (unsigned char)s[0];
    if (a < 0x80) {
        *bit = (a | 32) >= 'a' && (a | 32) <= 'z' ? 1 << (a & 32 ? CLASS_LOWER : CLASS_UPPER)
             : a >= '0' && a <= '9' ? NUMBER
             : a == ' ' || (a >= 9 && a <= 13) ? SPACE : 1 << unicode_class(a);
        return 1;
    }
    length = utf8_next(s, n, &c);
    *bit = 1 << unicode_class(c);
    return length;
}

/* Where the run of characters of these classes that starts at i ends; at most `most` characters. */
static size_t run_of(const char *s, size_t n, size_t i, int classes, size_t most)
{
    int bit;
    size_t length;
    while (most-- && (length = peek(s + i, n - i, &bit)) && (bit & classes)) i += length;
    return i;
}

static size_t run(const char *s, size_t n, size_t i, int classes)
{
    return run_of(s, n, i, classes, (size_t)-1);
}

/* 's|'t|'re|'ve|'m|'ll|'d */
static size_t contraction(const char *s, size_t n)
{
    if (n < 2 || s[0] != '\'') return 0;
    if (s[1] == 's' || s[1] == 't' || s[1] == 'm' || s[1] == 'd') return 2;
    if (n < 3) return 0;
    return (s[1] == 'r' && s[2] == 'e') || (s[1] == 'v' && s[2] == 'e') || (s[1] == 'l' && s[2] == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ : a run of white space leaves its last character to what follows, if it can. */
static size_t white_space(const char *s, size_t n)
{
    size_t i = 0, last = 0, length;
    int bit;
    while ((length = peek(s + i, n - i, &bit)) && (bit & SPACE)) {
        last = i;
        i += length;
    }
    return i < n && last ? last : i;
}

static size_t next_gpt2(const char *s, size_t n)
{
    size_t i = contraction(s, n), length;
    int bit;
    if (i) return i;
    i = s[0] == ' ';
    length = peek(s + i, n - i, &bit);
    if (length && !(bit & SPACE))
        return run(s, n, i, bit & LETTER ? LETTER : bit & NUMBER ? NUMBER : REST);
    return white_space(s, n);
}

static size_t next_digits(const char *s, size_t n)
{
    size_t i = run_of(s, n, 0, NUMBER, 1);
    return i ? i : run(s, n, 0, ~NUMBER);
}

static size_t next_digit_runs(const char *s, size_t n)
{
    size_t i = run(s, n, 0, NUMBER);
    return i ? i : run(s, n, 0, ~NUMBER);
}

const struct split_rule split_gpt2 = {
    "gpt-2",
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    next_gpt2
};
const struct split_rule split_digits = { "digits", "\\p{N}", next_digits };
const struct split_rule split_digit_runs = { "digit-runs", "\\p{N}+", next_digit_runs };

const struct split_rule *split_by_pattern(const char *pattern)
{
    static const struct split_rule *const rules[] = { &split_gpt2, &split_digits, &split_digit_runs };
    size_t i;
    for (i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!strcmp(rules[i]->pattern, pattern)) return rules[i];
    return NULL;
}
