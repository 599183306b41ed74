/* unicode.h - UTF-8, the classes of characters that tokenizers speak of, and normalization. */
#ifndef UNICODE_H
#define UNICODE_H

#include "../util.h"

/* By general category; white space is the property White_Space, whatever the category. */
enum unicode_class {
    CLASS_OTHER,                /* symbols, controls, unassigned; a byte that is not UTF-8 */
    CLASS_UPPER,                /* Lu Lt */
    CLASS_LOWER,                /* Ll */
    CLASS_LETTER,               /* Lm Lo */
    CLASS_MARK,                 /* M */
    CLASS_NUMBER,               /* N */
    CLASS_PUNCTUATION,          /* P */
    CLASS_SPACE
};
enum unicode_class unicode_class(uint32_t c);

/* The character at s[0 .. n), n > 0: its length in bytes and *c. What is not UTF-8 (a stray byte, an
 * overlong form, a surrogate, a cut sequence) has length 1 and *c = UTF8_BAD. */
#define UTF8_BAD 0xffffffffu
size_t utf8_next(const char *s, size_t n, uint32_t *c);
/* Writes c (at most 0x10ffff) to s[4]; returns its length. */
size_t utf8_put(char *s, uint32_t c);
/* The length of the longest beginning of s[n] that ends with a whole character: what is left is the
 * beginning of a character that more bytes may complete. */
size_t utf8_whole(const char *s, size_t n);

/* Where the white space that ends s[n] starts; where the one that starts it ends. */
size_t unicode_space_at_end(const char *s, size_t n);
size_t unicode_space_at_start(const char *s, size_t n);
/* Appends s[n] in normalization form C (Unicode Standard Annex 15); bytes that are not UTF-8 stay. */
int unicode_nfc(struct text *out, const char *s, size_t n, struct lora_error *err);

#endif
