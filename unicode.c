/* unicode.c - see unicode.h. */
#include "unicode.h"

#include "unicode_tables.h"

enum unicode_class unicode_class(uint32_t c)
{
    size_t low = 0, high = sizeof class_ranges / sizeof *class_ranges;
    uint32_t key;
    if (c > 0x10ffff) return CLASS_OTHER;
    key = c << 3 | 7;
    while (low < high) {            /* the number of ranges that start at or before c */
        size_t middle = (low + high) / 2;
        if (class_ranges[middle] <= key) low = middle + 1;
        else high = middle;
    }
    return low ? (enum unicode_class)(class_ranges[low - 1] & 7) : CLASS_OTHER;
}

/* The bytes that a character starting with this byte has, 0 for one that starts none. */
static size_t utf8_length(unsigned char first)
{
    return first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
}

/* Whether s[n], shorter than or as long as its first byte says, can be (the beginning of) a character. */
static int utf8_valid(const unsigned char *s, size_t n)
{
    size_t i;
    for (i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if (n < 2) return 1;
    return !((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f)     /* overlong; surrogates */
          || (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f));   /* overlong; above 10ffff */
}

size_t utf8_next(const char *s, size_t n, uint32_t *c)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t length = utf8_length(p[0]), i;
    if (!length || length > n || !utf8_valid(p, length)) {
        *c = UTF8_BAD;
        return 1;
    }
    *c = length == 1 ? p[0] : p[0] & (0x7fu >> length);
    for (i = 1; i < length; i++) *c = *c << 6 | (p[i] & 0x3fu);
    return length;
}

size_t utf8_put(char *s, uint32_t c)
{
    if (c < 0x80) {
        s[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        s[0] = (char)(0xc0 | c >> 6);
        s[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        s[0] = (char)(0xe0 | c >> 12);
        s[1] = (char)(0x80 | (c >> 6 & 0x3f));
        s[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    s[0] = (char)(0xf0 | c >> 18);
    s[1] = (char)(0x80 | (c >> 12 & 0x3f));
    s[2] = (char)(0x80 | (c >> 6 & 0x3f));
    s[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

size_t utf8_whole(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t tail;
    for (tail = 1; tail <= 3 && tail <= n; tail++) {
        const unsigned char *start = p + n - tail;
        if ((*start & 0xc0) == 0x80) continue;
        return utf8_length(*start) > tail && utf8_valid(start, tail) ? n - tail : n;
    }
    return n;
}
