/* page.h - holds a page of docs/ to the figures that a program beside it makes.
 *
 *     PROGRAM PAGE            compares: each block of the page, line by line; with `numbers`, its text too
 *     PROGRAM PAGE BLOCK      prints the block of that name, to be put into the page
 *
 * A block of the page begins with a line "```text NAME" and ends with "```". With `numbers`, a number with a
 * decimal point that the text between the blocks names must stand in a block too. */
#ifndef PAGE_H
#define PAGE_H

#include "util.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

struct page_block { const char *name; void (*put)(struct text *t); };

static int find_block(const struct page_block *blocks, int n, const char *name, size_t length)
{
    int i;
    for (i = 0; i < n; i++) if (strlen(blocks[i].name) == length && !strncmp(blocks[i].name, name, length)) return i;
    return -1;
}

/* Each number with a decimal point in this line of text must stand in `figures`. */
static int check_text(const char *line, size_t n, const struct text *figures)
{
    char number[64];
    size_t i = 0;
    int bad = 0;
    while (i < n) {
        size_t digits = strspn(line + i, "0123456789."), used = digits < sizeof number ? digits : sizeof number - 1;
        if (!digits || !isdigit((unsigned char)line[i])) {
            i++;
            continue;
        }
        memcpy(number, line + i, used);
        while (used && number[used - 1] == '.') used--;     /* a full stop */
        number[used] = 0;
        if (strchr(number, '.') && !strstr(figures->s, number)) {
            printf("the text says %s, and no block does\n", number);
            bad = 1;
        }
        i += digits;
    }
    return bad;
}

static int check_page(const char *page, const struct page_block *blocks, const struct text *made, int n, const struct text *figures)
{
    const char *line, *next;
    int bad = 0, seen = 0;
    for (line = page; *line; line = next) {
        size_t length = strcspn(line, "\n");
        int i = strncmp(line, "```text ", 8) ? -1 : find_block(blocks, n, line + 8, length - 8);
        next = line + length + (line[length] == '\n');
        if (i < 0) {
            if (figures) bad |= check_text(line, length, figures);
            continue;
        }
        if (strncmp(next, made[i].s, made[i].n) || strncmp(next + made[i].n, "```", 3)) {
            printf("the block %s is another one; it should be:\n%s", blocks[i].name, made[i].s);
            bad = 1;
        }
        seen++;
        next = strstr(next, "```");
        if (!next) return 1;
        next += 3;
    }
    if (seen != n) printf("%d of %d blocks are there\n", seen, n);
    return bad || seen != n;
}

enum { PAGE_BLOCKS = 16 };

/* The program's main(): n <= PAGE_BLOCKS blocks. */
static int page_main(int argc, char **argv, const struct page_block *blocks, int n, int numbers)
{
    static struct text made[PAGE_BLOCKS], figures, page;
    static struct lora_error err;
    struct file_map f;
    int bad = 0, one, i;
    if (argc < 2 || argc > 3) return fprintf(stderr, "usage: %s PAGE [BLOCK]\n", argv[0]), 2;
    for (i = 0; i < n; i++) {
        blocks[i].put(&made[i]);
        text_puts(&figures, made[i].s ? made[i].s : "");
        bad |= text_check(&made[i], &err);
    }
    bad |= text_check(&figures, &err);
    one = argc == 3 ? find_block(blocks, n, argv[2], strlen(argv[2])) : -1;
    if (one >= 0) printf("%s", made[one].s);
    else if (!bad && !file_open(&f, argv[1], &err)) {
        text_add(&page, (const char *)f.data, f.size);      /* with a 0 at the end */
        file_close(&f);
        bad = text_check(&page, &err) || check_page(page.s, blocks, made, n, numbers ? &figures : NULL);
        if (!bad) printf("%s: %d blocks%s are as made here\n", argv[1], n, numbers ? " and the numbers between them" : "");
    }
    for (i = 0; i < n; i++) text_free(&made[i]);
    text_free(&figures);
    text_free(&page);
    if (err.what[0]) fprintf(stderr, "%s: %s: %s\n", argv[0], err.what, err.where);
    return bad || err.what[0] ? 1 : 0;
}

#endif
