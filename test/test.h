/* test.h - a test program in three lines: CHECK, skip, test_end. Nothing here needs the library. */
#ifndef TEST_H
#define TEST_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int tests_passed, tests_failed, tests_skipped, test_checks;
static char test_name[160];

/* One named test: everything checked until the next test_begin belongs to it. */
static int test_bad;
static void test_close(void)
{
    if (!test_name[0]) return;
    if (test_bad) { tests_failed++; printf("FAIL %s\n", test_name); }
    else if (!test_checks) { tests_failed++; printf("FAIL %s: compared nothing\n", test_name); }
    else { tests_passed++; printf("ok   %s (%d checks)\n", test_name, test_checks); }
    test_name[0] = 0;
    test_bad = test_checks = 0;
}
static inline void test_begin(const char *name)
{
    test_close();
    snprintf(test_name, sizeof test_name, "%s", name);
    fflush(stdout);
}
static inline void test_skip(const char *name, const char *why)
{
    test_close();
    tests_skipped++;
    printf("skip %s: %s\n", name, why);
}
/* CHECK(condition) or CHECK(condition, "what was found %d", i). The condition is an int. */
#define CHECK(...) test_check(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__, NULL)
static inline void test_check(const char *file, int line, const char *text, int ok, const char *format, ...)
{
    va_list arguments;
    test_checks++;
    if (ok || test_bad++ >= 10) return;
    printf("  %s:%d: %.120s: ", file, line, text);
    va_start(arguments, format);
    if (format) vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
}

/* A call of the library that must end with 0; `err` is a struct lora_error. */
#define CHECK_DONE(call) do { memset(&err, 0, sizeof err); \
    CHECK((call) == 0, "%s: %s: expected %s, found %s", err.what, err.where, err.expected, err.found); } while (0)

/* A folder of the program's own, which remove_tree() takes away at the end, and a path in it, good until eight calls later. */
static char folder[64];
static inline int folder_make(void)
{
    snprintf(folder, sizeof folder, "/tmp/lora-test-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}
static inline const char *in_folder(const char *name)
{
    static char paths[8][256];
    static int next;
    char *p = paths[next++ % 8];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

/* The worst error as a share of its bound; NaN fails (the comparison is !(err <= bound)). */
struct worst { double share; double err, bound; size_t index; int n; };
static inline void worst_add(struct worst *w, double err, double bound, size_t index)
{
    double share = err == 0 ? 0 : err / bound;
    w->n++;
    if (w->share == w->share && !(share <= w->share)) { w->share = share; w->err = err; w->bound = bound; w->index = index; }
}
#define CHECK_WORST(w, label) do { \
    CHECK((w).n > 0, "%s compared nothing", label); \
    CHECK((w).share <= 1, "%s: error %.3g, bound %.3g at %zu", label, (w).err, (w).bound, (w).index); \
    printf("  %-44s %8.2f%% of its bound (%d values)\n", label, 100 * (w).share, (w).n); } while (0)

static int test_end(void)
{
    test_close();
    printf("%d passed, %d failed, %d skipped\n", tests_passed, tests_failed, tests_skipped);
    return tests_failed != 0;
}

/* Below another processor's emulator, which is tens of times slower: EXE names it. */
static inline int test_emulated(void)
{
    const char *exe = getenv("EXE");
    return exe && *exe;
}

/* The shared material's folder, or NULL: tests that need it skip by name. */
static inline const char *shared_dir(void)
{
    const char *dir = getenv("LORA_SHARED");
    char path[1024];
    FILE *f;
    if (!dir) dir = "../shared";
    snprintf(path, sizeof path, "%s/facts.md", dir);
    if (!(f = fopen(path, "r"))) return NULL;
    fclose(f);
    return dir;
}
#endif
