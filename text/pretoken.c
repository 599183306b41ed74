/* pretoken.c - see pretoken.h. The scanners follow the alternatives of their pattern in order. */
#include "pretoken.h"

#include <string.h>

#include "../formats/unicode.h"

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

/* 's|'t|'re|'ve|'m|'ll|'d, or with ignore_case (?i:...), where the long s U+017F is an s too. */
static size_t contraction(const char *s, size_t n, int ignore_case)
{
    int bit = ignore_case ? 32 : 0;
    char a, b;
    if (n < 2 || s[0] != '\'') return 0;
    a = (char)(s[1] | bit);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (n < 3) return 0;
    b = (char)(s[2] | bit);
    if (ignore_case && (unsigned char)s[1] == 0xc5 && (unsigned char)s[2] == 0xbf) return 3;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
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
    size_t i = contraction(s, n, 0), length;
    int bit;
    if (i) return i;
    i = s[0] == ' ';
    length = peek(s + i, n - i, &bit);
    if (length && !(bit & SPACE))
        return run(s, n, i, bit & LETTER ? LETTER : bit & NUMBER ? NUMBER : REST);
    return white_space(s, n);
}

static int is_newline(char c) { return c == '\r' || c == '\n'; }

/* \s*[\r\n]+ : through the last line break of the white space at the start, 0 without one. */
static size_t through_newline(const char *s, size_t n)
{
    size_t end = run(s, n, 0, SPACE);
    while (end && !is_newline(s[end - 1])) end--;
    return end;
}

/* ` ?[^\s\p{L}\p{N}]+` and then any of the characters `more`; 0 without a match. */
static size_t symbols(const char *s, size_t n, const char *more)
{
    size_t start = s[0] == ' ', i = run(s, n, start, REST);
    if (i == start) return 0;
    while (i < n && s[i] && strchr(more, s[i])) i++;
    return i;
}

/* The pattern of Llama-3 and Qwen: \p{N}{1,digits}. */
static size_t next_llama3_qwen(const char *s, size_t n, size_t digits)
{
    size_t i = contraction(s, n, 1), first, second;
    int bit, next;
    if (i) return i;
    first = peek(s, n, &bit);
    second = peek(s + first, n - first, &next);
    if (bit & LETTER) return run(s, n, 0, LETTER);
    if (second && (next & LETTER) && !(bit & NUMBER) && !is_newline(s[0])) return run(s, n, first, LETTER);
    if (bit & NUMBER) return run_of(s, n, 0, NUMBER, digits);
    if ((i = symbols(s, n, "\r\n")) || (i = through_newline(s, n))) return i;
    return white_space(s, n);
}

static size_t next_llama3(const char *s, size_t n) { return next_llama3_qwen(s, n, 3); }
static size_t next_qwen2(const char *s, size_t n) { return next_llama3_qwen(s, n, 1); }

enum {
    HIGH = 1 << CLASS_UPPER | 1 << CLASS_LETTER | 1 << CLASS_MARK,      /* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] */
    LOW = 1 << CLASS_LOWER | 1 << CLASS_LETTER | 1 << CLASS_MARK        /* [\p{Ll}\p{Lm}\p{Lo}\p{M}] */
};

/* HIGH*LOW+ from i on; 0 without a match. Where nothing low follows, HIGH* gives back down to its last
 * character that is low as well. */
static size_t high_low(const char *s, size_t n, size_t i)
{
    size_t end = run(s, n, i, HIGH), low = run(s, n, end, LOW), length, last = 0;
    int bit;
    if (low > end) return low;
    for (; i < end; i += length) {
        length = peek(s + i, n - i, &bit);
        if (bit & LOW) last = i + length;
    }
    return last;
}

static size_t next_tekken(const char *s, size_t n)
{
    size_t i, end, first;
    int bit, take;
    first = peek(s, n, &bit);
    take = !(bit & (LETTER | NUMBER)) && !is_newline(s[0]);     /* [^\r\n\p{L}\p{N}]? may have this one */
    if (take && (end = high_low(s, n, first))) return end;
    if ((end = high_low(s, n, 0))) return end;
    for (i = take ? first : 0; ; i = 0) {                       /* ...?HIGH+LOW* */
        end = run(s, n, i, HIGH);
        if (end > i) return run(s, n, end, LOW);
        if (!i) break;
    }
    if (bit & NUMBER) return first;
    if ((i = symbols(s, n, "\r\n/")) || (i = through_newline(s, n))) return i;
    return white_space(s, n);
}

/* [\p{P}\$\+<=>\^~\|]+ and what lies between. */
static size_t next_punctuation(const char *s, size_t n)
{
    size_t i = 0, length;
    int bit, inside = 0, one;
    for (; (length = peek(s + i, n - i, &bit)); i += length) {
        one = bit == 1 << CLASS_PUNCTUATION || (s[i] && strchr("$+<=>^~|", s[i]));
        if (!i) inside = one;
        else if (one != inside) break;
    }
    return i;
}

/* [0-9][0-9][0-9] and what lies between. */
static size_t next_triple(const char *s, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++) {
        size_t k = 0;
        while (k < 3 && i + k < n && s[i + k] >= '0' && s[i + k] <= '9') k++;
        if (k == 3) break;
    }
    return i ? i : 3;
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

#define END "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define SYMBOLS "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n"
#define WORDS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define CAPITALS "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define SMALLS "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"

const struct split_rule split_gpt2 = {
    "gpt-2",
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    next_gpt2
};
const struct split_rule split_llama3 = { "llama-bpe", WORDS "\\p{N}{1,3}" SYMBOLS "]*" END, next_llama3 };
const struct split_rule split_qwen2 = { "qwen2", WORDS "\\p{N}" SYMBOLS "]*" END, next_qwen2 };
const struct split_rule split_tekken = {
    "tekken",
    "[^\\r\\n\\p{L}\\p{N}]?" CAPITALS "*" SMALLS "+|[^\\r\\n\\p{L}\\p{N}]?" CAPITALS "+" SMALLS "*|\\p{N}"
    SYMBOLS "/]*" END,
    next_tekken
};
const struct split_rule split_punctuation = { "punctuation", "[\\p{P}\\$\\+<=>\\^~\\|]+", next_punctuation };
const struct split_rule split_triples = { "triples", "[0-9][0-9][0-9]", next_triple };
const struct split_rule split_digits = { "digits", "\\p{N}", next_digits };
const struct split_rule split_digit_runs = { "digit-runs", "\\p{N}+", next_digit_runs };

const struct split_rule *split_by_pattern(const char *pattern)
{
    static const struct split_rule *const rules[] = { &split_gpt2, &split_llama3, &split_qwen2, &split_tekken,
                                                      &split_punctuation, &split_triples, &split_digits,
                                                      &split_digit_runs };
    size_t i;
    for (i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!strcmp(rules[i]->pattern, pattern)) return rules[i];
    return NULL;
}
