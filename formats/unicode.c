/* unicode.c - see unicode.h. */
#include "unicode.h"

#include <stdlib.h>

#include "unicode_tables.h"

#define COUNT(a) (sizeof (a) / sizeof *(a))

/* The value of c in a table of (first code point << bits | value), 0 before the first. */
static uint32_t range_value(const uint32_t *ranges, size_t n, int bits, uint32_t c)
{
    size_t low = 0, high = n;
    uint32_t mask = (1u << bits) - 1;
    while (low < high) {            /* the number of ranges that start at or before c */
        size_t middle = (low + high) / 2;
        if (ranges[middle] >> bits <= c) low = middle + 1;
        else high = middle;
    }
    return low ? ranges[low - 1] & mask : 0;
}

enum unicode_class unicode_class(uint32_t c)
{
    return (enum unicode_class)(c > 0x10ffff ? 0 : range_value(class_ranges, COUNT(class_ranges), 3, c));
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
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4, i;
    for (i = n - 1; i; i--, c >>= 6) s[i] = (char)(0x80 | (c & 0x3f));
    s[0] = (char)(n == 1 ? c : (0xff00u >> n & 0xff) | c);     /* n ones, then what is left of c */
    return n;
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

size_t unicode_space_at_end(const char *s, size_t n)
{
    while (n) {
        size_t start = n - 1;
        uint32_t c;
        while (start && n - start < 4 && ((unsigned char)s[start] & 0xc0) == 0x80) start--;
        if (utf8_next(s + start, n - start, &c) != n - start || unicode_class(c) != CLASS_SPACE) break;
        n = start;
    }
    return n;
}

size_t unicode_space_at_start(const char *s, size_t n)
{
    size_t i = 0, length;
    uint32_t c;
    for (; i < n; i += length) {
        length = utf8_next(s + i, n - i, &c);
        if (unicode_class(c) != CLASS_SPACE) break;
    }
    return i;
}

/* ---- normalization ---- */

/* Hangul syllables are made of jamo by a formula (the Unicode Standard, 3.12). */
enum { SYLLABLE = 0xac00, LEAD = 0x1100, VOWEL = 0x1161, TAIL = 0x11a7, LEADS = 19, VOWELS = 21, TAILS = 28,
       SYLLABLES = LEADS * VOWELS * TAILS };

#define RAW 0x80000000u             /* a byte that is not UTF-8 */

struct mark { uint32_t c, combining, at; };     /* a character, its combining class, its place */
struct marks {
    struct mark *v;
    size_t n, capacity;
};

static int add_mark(struct marks *m, uint32_t c, struct lora_error *err)
{
    if (grow_array((void **)&m->v, &m->capacity, m->n + 1, sizeof *m->v, err)) return -1;
    m->v[m->n] = (struct mark){ .c = c, .at = (uint32_t)m->n };
    if (c >= 0x300 && !(c & RAW)) m->v[m->n].combining = range_value(combining_ranges, COUNT(combining_ranges), 8, c);
    m->n++;
    return 0;
}

/* Appends what c is made of, down to the last. */
static int decompose(struct marks *m, uint32_t c, struct lora_error *err)
{
    size_t low = 0, high = COUNT(decompositions);
    if (c < 0xc0 || c & RAW) return add_mark(m, c, err);
    if (c >= SYLLABLE && c < SYLLABLE + SYLLABLES) {
        uint32_t i = c - SYLLABLE, tail = i % TAILS;
        if (add_mark(m, LEAD + i / (VOWELS * TAILS), err) || add_mark(m, VOWEL + i / TAILS % VOWELS, err)) return -1;
        return tail ? add_mark(m, TAIL + tail, err) : 0;
    }
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (decompositions[middle][0] < c) low = middle + 1;
        else high = middle;
    }
    if (low == COUNT(decompositions) || decompositions[low][0] != c) return add_mark(m, c, err);
    if (decompose(m, decompositions[low][1], err)) return -1;
    return decompositions[low][2] ? decompose(m, decompositions[low][2], err) : 0;
}

/* What a and b compose to, or 0. */
static uint32_t compose(uint32_t a, uint32_t b)
{
    size_t low = 0, high = COUNT(compositions);
    const uint32_t *row;
    if (a >= LEAD && a < LEAD + LEADS && b >= VOWEL && b < VOWEL + VOWELS)
        return SYLLABLE + ((a - LEAD) * VOWELS + (b - VOWEL)) * TAILS;
    if (a >= SYLLABLE && a < SYLLABLE + SYLLABLES && (a - SYLLABLE) % TAILS == 0 && b > TAIL && b < TAIL + TAILS)
        return a + (b - TAIL);
    while (low < high) {
        size_t middle = (low + high) / 2;
        row = decompositions[compositions[middle]];
        if (row[1] < a || (row[1] == a && row[2] < b)) low = middle + 1;
        else high = middle;
    }
    if (low == COUNT(compositions)) return 0;
    row = decompositions[compositions[low]];
    return row[1] == a && row[2] == b ? row[0] : 0;
}

static int by_combining(const void *x, const void *y)
{
    const struct mark *a = x, *b = y;
    return a->combining != b->combining ? (a->combining > b->combining) - (a->combining < b->combining)
                                        : (a->at > b->at) - (a->at < b->at);
}

/* Runs of marks in the order of their classes, equal ones as they were. */
static void order(struct marks *m)
{
    size_t i, end;
    for (i = 0; i < m->n; i = end + 1) {
        for (end = i; end < m->n && m->v[end].combining; end++) { }
        if (end > i + 1) qsort(m->v + i, end - i, sizeof *m->v, by_combining);
    }
}

/* Joins each mark with the last starter, unless a mark of the same or a higher class stands between. */
static void compose_all(struct marks *m)
{
    size_t i, kept = 0, starter = (size_t)-1;
    for (i = 0; i < m->n; i++) {
        struct mark x = m->v[i];
        uint32_t between = starter != (size_t)-1 && kept > starter + 1 ? m->v[kept - 1].combining : 0, joined = 0;
        int blocked = starter == (size_t)-1 || (kept > starter + 1 && (!x.combining || between >= x.combining));
        if (!blocked && !(x.c & RAW)) joined = compose(m->v[starter].c, x.c);
        if (joined) {
            m->v[starter].c = joined;
            continue;
        }
        if (!x.combining) starter = kept;
        m->v[kept++] = x;
    }
    m->n = kept;
}

int unicode_nfc(struct text *out, const char *s, size_t n, struct lora_error *err)
{
    struct marks m = { NULL, 0, 0 };
    size_t i, length;
    int bad = 0;
    for (i = 0; i < n && (unsigned char)s[i] < 0xcc; i++) { }   /* below U+0300 all text is in form C */
    if (i == n) {
        text_add(out, s, n);
        return text_check(out, err);
    }
    for (i = 0; i < n && !bad; i += length) {
        uint32_t c;
        length = utf8_next(s + i, n - i, &c);
        bad = decompose(&m, c == UTF8_BAD ? RAW | (unsigned char)s[i] : c, err);
    }
    order(&m);
    compose_all(&m);
    for (i = 0; i < m.n && !bad; i++) {
        char bytes[4] = { (char)(m.v[i].c & 0xff), 0, 0, 0 };
        text_add(out, bytes, m.v[i].c & RAW ? 1 : utf8_put(bytes, m.v[i].c));
    }
    free(m.v);
    return bad ? -1 : text_check(out, err);
}
