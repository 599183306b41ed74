/* test_util.c - errors, checked sizes, arena, files that appear whole, random numbers, numbers as text. */
#include "test.h"
#include "util.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char scratch_dir[512];           /* beside the test program */
static char path_space[4][1024];

/* A path in the scratch directory; four live at a time. */
static const char *scratch(int i, const char *name)
{
    snprintf(path_space[i], sizeof path_space[i], "%s/%s", scratch_dir, name);
    return path_space[i];
}

/* ---- errors ---- */

static void test_errors(void)
{
    struct lora_error err;
    char longest[2000];
    size_t n, i;
    test_begin("errors: parts, cuts, control characters, no error wanted");
    memset(&err, 'x', sizeof err);
    CHECK(fail(&err, "cannot read", "%s, tensor %d", "file", 3) == -1);
    CHECK(!strcmp(err.what, "cannot read") && !strcmp(err.where, "file, tensor 3"), "%s %s", err.what, err.where);
    CHECK(!err.expected[0] && !err.found[0] && !err.hint[0], "fail() wipes the parts of an earlier error");
    CHECK(expected(&err, "%d rows", 4) == -1 && found(&err, "%d", 5) == -1 && hint(&err, "look") == -1);
    CHECK(!strcmp(err.expected, "4 rows") && !strcmp(err.found, "5") && !strcmp(err.hint, "look"), "%s", err.expected);
    CHECK(!strcmp(err.what, "cannot read"), "parts keep what is there");
    found(&err, "a\nb\tc\033[31m\177");
    CHECK(!strcmp(err.found, "a?b?c?[31m?"), "%s", err.found);
    CHECK(fail(NULL, "x", "y") == -1 && expected(NULL, "x") == -1 && found(NULL, "x") == -1 && hint(NULL, "x") == -1);

    memset(longest, 'a', sizeof longest);
    longest[sizeof longest - 1] = 0;
    found(&err, "%s", longest);
    n = strlen(err.found);
    CHECK(n < sizeof err.found && !strcmp(err.found + n - 3, "..."), "%zu %s", n, err.found + n - 5);
    for (i = 0; i + 2 < sizeof longest; i += 2) memcpy(longest + i, "\303\251", 2);     /* e acute */
    for (i = 0; i < 2; i++) {       /* a cut falls on a character's edge, at even and at odd places */
        found(&err, "%s%s", i ? "x" : "", longest);
        n = strlen(err.found);
        CHECK(n > 200 && !strcmp(err.found + n - 3, "..."), "%s", err.found);
        CHECK((n - 3 - i) % 2 == 0, "cut inside a character: %zu", n);
    }
    CHECK(fail_memory(&err, "a thing", 123) == -1 && strstr(err.expected, "123") && strstr(err.what, "memory"), "%s", err.what);
}

/* ---- sizes and memory ---- */

static void test_sizes(void)
{
    size_t x = 7, capacity = 0, old;
    struct lora_error err = { "", "", "", "", "" };
    int *array = NULL, *p, i;
    char *s, all[64];
    test_begin("sizes: overflow is seen, arrays grow and keep");
    CHECK(size_mul(&x, 6, 7) == 0 && x == 42, "%zu", x);
    CHECK(size_mul(&x, SIZE_MAX / 2, 2) == 0 && x == SIZE_MAX - 1, "%zu", x);
    CHECK(size_mul(&x, SIZE_MAX / 2 + 1, 2) == -1);
    CHECK(size_mul(&x, SIZE_MAX, 0) == 0 && x == 0, "%zu", x);
    CHECK(size_add(&x, SIZE_MAX - 1, 1) == 0 && x == SIZE_MAX, "%zu", x);
    CHECK(size_add(&x, SIZE_MAX, 1) == -1);
    p = new_array(5, sizeof *p, &err);
    CHECK(p && !p[0] && !p[4]);
    free(p);
    p = new_array(0, 8, &err);
    CHECK(p != NULL, "an empty array is not a failure");
    free(p);
    CHECK(!new_array(SIZE_MAX / 2, 3, &err) && strstr(err.what, "memory"), "%s", err.what);
    for (i = 0; i < 1000; i++) {
        CHECK(grow_array((void **)&array, &capacity, (size_t)i + 1, sizeof *array, &err) == 0 && capacity > (size_t)i);
        array[i] = i;
    }
    for (i = 0; i < 1000 && array[i] == i; i++) ;
    CHECK(i == 1000, "lost element %d", i);
    old = capacity;
    p = array;
    CHECK(grow_array((void **)&array, &capacity, SIZE_MAX / 2, sizeof *array, &err) == -1);
    snprintf(all, sizeof all, "%zu bytes", (size_t)SIZE_MAX);
    CHECK(!strcmp(err.expected, all), "%s", err.expected);
    CHECK(array == p && capacity == old, "unchanged when it fails");
    free(array);
    s = new_string_n("abcdef", 3, &err);
    CHECK(s && !strcmp(s, "abc"), "%s", s);
    free(s);
    s = new_string("", &err);
    CHECK(s && !s[0]);
    free(s);
}

static void test_text(void)
{
    struct text t = { NULL, 0, 0, 0 };
    struct lora_error err = { "", "", "", "", "" };
    char longest[3000];
    int i;
    test_begin("texts grow, and remember that they failed");
    text_puts(&t, "ab");
    text_add(&t, "c\0d", 3);
    CHECK(t.n == 5 && t.s[3] == 0 && t.s[4] == 'd' && t.s[5] == 0, "%zu", t.n);
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    text_printf(&t, "%s %d", longest, 42);
    CHECK(t.n == 5 + 2999 + 3 && !strcmp(t.s + t.n - 3, " 42"), "%zu", t.n);
    for (i = 0; i < 10000; i++) text_puts(&t, "0123456789");
    CHECK(t.n == 3007 + 100000 && t.s[t.n] == 0, "%zu", t.n);
    CHECK(text_check(&t, &err) == 0);
    text_add(&t, "x", SIZE_MAX - 5);
    CHECK(t.failed && text_check(&t, &err) == -1);
    text_puts(&t, "more");
    CHECK(t.n == 103007, "%zu", t.n);
    text_free(&t);
    CHECK(!t.s && !t.n && !t.failed);
}

static void test_arena(void)
{
    static const size_t counts[] = { 1, 0, 7, 64, 3, 1000, 16 };
    struct arena count = { NULL, 0, 0, 0 }, take = { NULL, 0, 0, 0 };
    unsigned char *base = malloc(20000), *p, *last = NULL;
    size_t i;
    test_begin("arena: what is counted is what is taken");
    if (!base) abort();
    for (i = 0; i < sizeof counts / sizeof *counts; i++) CHECK(arena_take(&count, counts[i], 8) == NULL);
    CHECK(!count.failed && count.used == 64 + 0 + 64 + 512 + 64 + 8000 + 128, "%zu", count.used);
    take.base = base;
    take.size = count.used;
    for (i = 0; i < sizeof counts / sizeof *counts; i++) {
        p = arena_take(&take, counts[i], 8);
        CHECK(p && (size_t)(p - base) % 64 == 0, "a multiple of 64");
        CHECK(!last || p >= last, "overlaps");
        last = p ? p + counts[i] * 8 : last;
    }
    CHECK(take.used == count.used && last <= base + count.used && !take.failed, "%zu", take.used);
    CHECK(!arena_take(&take, 1, 1) && take.failed, "one byte too many");
    CHECK(!arena_take(&take, 0, 1) && take.used == count.used, "sticky, and nothing is taken");
    CHECK(!arena_take(&count, SIZE_MAX / 2, 3) && count.failed, "product overflows");
    count.failed = 0;
    CHECK(!arena_take(&count, SIZE_MAX - 10, 1) && count.failed, "rounding up overflows");
    count.failed = 0;
    CHECK(!arena_take(&count, SIZE_MAX - 4096, 1) && count.failed, "the sum overflows");
    free(base);
}

/* ---- files ---- */

static int holds(const char *path, const void *data, size_t n)
{
    struct file_map f;
    int same = file_open(&f, path, NULL) == 0 && f.size == n && (!n || !memcmp(f.data, data, n));
    file_close(&f);
    return same;
}

static void test_paths(void)
{
    struct lora_error err = { "", "", "", "", "" };
    struct file_map f;
    char *path;
    test_begin("paths and directories");
    path = path_join("a", "b", &err);
    CHECK(path && !strcmp(path, "a/b"), "%s", path);
    free(path);
    path = path_join("a/", "b", &err);
    CHECK(path && !strcmp(path, "a/b"), "%s", path);
    free(path);
    path = path_join("", "b", &err);
    CHECK(path && !strcmp(path, "b"), "%s", path);
    free(path);
    CHECK(remove_tree(scratch_dir, &err) == 0, "%s", err.found);
    CHECK(!file_exists(scratch_dir) && remove_tree(scratch_dir, &err) == 0, "removing what is absent is no error");
    CHECK(make_directory(scratch(0, "one/two/three"), &err) == 0, "%s", err.found);
    CHECK(is_directory(path_space[0]) && make_directory(path_space[0], &err) == 0);
    CHECK(file_write(scratch(1, "one/two/file"), "x", 1, &err) == 0 && file_exists(path_space[1]), "%s", err.found);
    CHECK(!is_directory(path_space[1]) && !is_directory(scratch(2, "nowhere")) && !file_exists(path_space[2]));
    CHECK(make_directory(path_space[1], &err) == -1 && strstr(err.where, "file"), "a file is in the way: %s", err.where);
    CHECK(symlink("two", scratch(3, "one/link")) == 0);
    CHECK(remove_tree(path_space[3], &err) == 0 && file_exists(path_space[1]), "a link is removed, not what it names");
    CHECK(file_open(&f, path_space[2], &err) == -1 && strstr(err.where, "nowhere"), "%s", err.where);
    CHECK(file_open(&f, path_space[0], &err) == -1 && strstr(err.found, "directory"), "%s", err.found);
    CHECK(file_write(path_space[1], "", 0, &err) == 0 && holds(path_space[1], "", 0), "an empty file");
    CHECK(directory_sync(scratch_dir, &err) == 0, "%s", err.found);
    CHECK(directory_sync(path_space[2], &err) == -1);
}

static void test_writer(void)
{
    struct lora_error err = { "", "", "", "", "" };
    struct writer w;
    const size_t n = 300000;
    unsigned char *data = malloc(n);
    const char *path = scratch(0, "whole");
    size_t i, step;
    test_begin("a file appears whole or not at all");
    scratch(1, "whole.tmp");
    if (!data) abort();
    for (i = 0; i < n; i++) data[i] = (unsigned char)random_bits(1, i);
    CHECK(file_write(path, "old", 3, &err) == 0);
    for (step = 1; step < n; step = step * 9 + 4) {     /* pieces below, at and above the buffer's size */
        CHECK(writer_open(&w, path, &err) == 0, "%s", err.found);
        for (i = 0; i < n; i += step)
            if (writer_put(&w, data + i, n - i < step ? n - i : step, &err)) break;
        CHECK(i >= n && w.offset == n, "%zu of %zu", i, n);
        if (step == 1) CHECK(holds(path, "old", 3) && file_exists(path_space[1]), "the old file stays until the end");
        CHECK(writer_commit(&w, &err) == 0 && holds(path, data, n), "pieces of %zu", step);
        CHECK(!file_exists(path_space[1]), "the temporary file is gone");
    }
    CHECK(writer_open(&w, path, &err) == 0 && writer_put(&w, "new", 3, &err) == 0);
    writer_abandon(&w);
    CHECK(holds(path, data, n) && !file_exists(path_space[1]), "abandoned: as if nothing had been");
    writer_abandon(&w);                                 /* twice is harmless */
    CHECK(writer_open(&w, scratch(2, "no/such/place"), &err) == -1 && strstr(err.where, "no/such/place"), "%s", err.where);
    CHECK(writer_open(&w, scratch(2, "one"), &err) == -1 && !strcmp(err.found, "a directory"), "%s", err.found);
    CHECK(is_directory(path_space[2]) && !file_exists(scratch(3, "one.tmp")), "%s", err.what);
    free(data);
}

/* Nothing takes the place of a pipe: the bytes go into it. */
static void test_pipe(void)
{
    const char *path = scratch(0, "pipe");
    char got[8] = "";
    int fd = -1;
    test_begin("a pipe is written into, and stays one");
    CHECK(mkfifo(path, 0600) == 0 && (fd = open(path, O_RDWR | O_NONBLOCK)) >= 0);
    CHECK(file_write(path, "words", 5, NULL) == 0 && read(fd, got, 5) == 5 && !strcmp(got, "words"), "%s", got);
    CHECK(file_exists(path) && !file_exists(scratch(1, "pipe.tmp")));
    close(fd);
    CHECK((fd = open(path, O_RDONLY | O_NONBLOCK)) >= 0 && read(fd, got, 1) == 0, "it is a pipe still");
    close(fd);
}

/* Pages that were given back come again from the file; memory that is no mapping is left alone. */
static void test_forget(void)
{
    enum { N = 300000 };
    struct file_map f;
    unsigned char *data = malloc(N), other[64];
    size_t i;
    test_begin("pages of a file given back are read again");
    for (i = 0; i < N; i++) data[i] = (unsigned char)(i * 7 + (i >> 8));
    memset(other, 5, sizeof other);
    CHECK(!file_write(scratch(0, "pages"), data, N, NULL) && !file_open(&f, scratch(0, "pages"), NULL));
    CHECK(!memcmp(f.data, data, N));
    file_forget(&f, f.data, N);
    CHECK(!memcmp(f.data, data, N), "after the whole was given back");
    file_forget(&f, f.data + 5000, 123457);
    CHECK(!memcmp(f.data, data, N), "after a part was");
    file_forget(&f, other, sizeof other);
    file_forget(&f, f.data + N - 10, 11);
    CHECK(other[0] == 5 && other[63] == 5 && !memcmp(f.data, data, N), "what is not in the mapping is not touched");
    file_close(&f);
    f.data = data;
    f.size = N;
    f.mapping = NULL;
    file_forget(&f, data, N);
    for (i = 0; i < N && data[i] == (unsigned char)(i * 7 + (i >> 8)); i++) {}
    CHECK(i == N, "a file in memory is kept");
    free(data);
}

/* The file system refuses at every possible point: bytes allowed from 0 on. */
static void test_full_disk(void)
{
    struct lora_error err = { "", "", "", "", "" };
    struct rlimit old = { 0, 0 }, limit;
    static char data[200000];
    const char *path = scratch(0, "full");
    rlim_t allowed;
    test_begin("no room: an error, and the old file stays");
    scratch(1, "full.tmp");
    CHECK(file_write(path, "old", 3, &err) == 0 && getrlimit(RLIMIT_FSIZE, &old) == 0);
    signal(SIGXFSZ, SIG_IGN);
    limit = old;
    for (allowed = 0; allowed <= 200000; allowed += 40000) {
        int rc;
        limit.rlim_cur = allowed;
        if (setrlimit(RLIMIT_FSIZE, &limit)) break;
        memset(&err, 0, sizeof err);
        rc = file_write(path, data, sizeof data, &err);
        setrlimit(RLIMIT_FSIZE, &old);
        if (allowed < sizeof data) CHECK(rc == -1 && strstr(err.where, "full") && err.found[0], "%d at %ld", rc, (long)allowed);
        else CHECK(rc == 0, "%s", err.found);
        if (allowed < sizeof data) CHECK(holds(path, "old", 3) && !file_exists(path_space[1]), "at %ld", (long)allowed);
    }
    CHECK(allowed > 200000, "the limit can be set");
    CHECK(holds(path, data, sizeof data));
    signal(SIGXFSZ, SIG_DFL);
}

/* ---- hashes and random numbers ---- */

static void test_random(void)
{
    /* SplitMix64 with the seed 1234567 (its state after n steps is seed + n golden). */
    static const uint64_t known[] = { 6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                                      4593380528125082431u, 16408922859458223821u };
    const int n = 200000;
    double sum = 0, squares = 0, cubes = 0, low = 1, high = 0;
    int i, tenths[10] = { 0 };
    test_begin("hashes and random numbers");
    CHECK(hash_bytes(HASH_START, "", 0) == 0xcbf29ce484222325u && hash_bytes(HASH_START, "a", 1) == 0xaf63dc4c8601ec8cu);
    CHECK(hash_bytes(HASH_START, "foobar", 6) == 0x85944171f73967e8u);
    CHECK(hash_string(hash_string(HASH_START, "ab"), "c") != hash_string(hash_string(HASH_START, "a"), "bc"),
          "names do not run together");
    for (i = 0; i < 5; i++) CHECK(random_bits(1234567, (uint64_t)i) == known[i], "number %d", i);
    CHECK(random_key(1, "a") != random_key(2, "a") && random_key(1, "a") != random_key(1, "b"));
    CHECK(random_key(1, "a") == random_key(1, "a"));
    for (i = 0; i < n; i++) {
        double u = random_uniform(42, (uint64_t)i);
        if (u < low) low = u;
        if (u > high) high = u;
        if (u >= 0 && u < 1) tenths[(int)(u * 10)]++;
        sum += u;
    }
    CHECK(low >= 0 && high < 1, "%g %g", low, high);
    CHECK(fabs(sum / n - 0.5) < 5 * sqrt(1.0 / 12 / n), "mean %g", sum / n);
    for (i = 0; i < 10; i++)
        CHECK(fabs(tenths[i] - n * 0.1) < 5 * sqrt(n * 0.09), "%d of %d in tenth %d", tenths[i], n, i);
    for (sum = 0, i = 0; i < n; i++) {
        double x = random_normal(7, (uint64_t)i);
        sum += x;
        squares += x * x;
        cubes += x * x * x;
    }
    CHECK(fabs(sum / n) < 5 / sqrt(n), "mean %g", sum / n);
    CHECK(fabs(squares / n - 1) < 5 * sqrt(2.0 / n), "variance %g", squares / n);
    CHECK(fabs(cubes / n) < 5 * sqrt(15.0 / n), "skew %g", cubes / n);
}

/* ---- numbers as text ---- */

static void test_numbers(void)
{
    static const struct { const char *text; double value; } good[] = {
        { "0", 0 }, { "-0.5", -0.5 }, { "1e-4", 1e-4 }, { "2E3", 2000 }, { "+7", 7 }, { ".5", 0.5 }, { "3.", 3 },
        { "1e-400", 0 }, { "123456789012", 123456789012.0 }
    };
    static const char *const bad[] = { "", " 1", "1 ", "0x10", "inf", "nan", "-", ".", "e5", "1e", "1e999", "1,5", "1.2.3",
                                       "--1", "1-", "infinity", "1e5x", "+" };
    static const char *const bad_integers[] = { "", " 1", "1 ", "1.0", "0x10", "9223372036854775808", "-", "+", "1e3", "--1",
                                                "\t1" };
    double x;
    long long n;
    size_t i;
    test_begin("numbers as text: the whole of it, or nothing");
    for (i = 0; i < sizeof good / sizeof *good; i++)
        CHECK(parse_number(good[i].text, &x) == 0 && x == good[i].value, "%s", good[i].text);
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        x = -7;
        CHECK(parse_number(bad[i], &x) == -1 && x == -7, "'%s'", bad[i]);
    }
    for (i = 0; i < sizeof bad_integers / sizeof *bad_integers; i++) {
        n = -7;
        CHECK(parse_integer(bad_integers[i], &n) == -1 && n == -7, "'%s'", bad_integers[i]);
    }
    CHECK(parse_integer("-9223372036854775808", &n) == 0 && n == -9223372036854775807LL - 1, "%lld", n);
    CHECK(parse_integer("+42", &n) == 0 && n == 42, "%lld", n);
    CHECK(parse_integer("007", &n) == 0 && n == 7, "%lld", n);
}

static void test_clock(void)
{
    double a = seconds_now(), b = a;
    test_begin("the clock goes forward");
    while (b == a) b = seconds_now();
    CHECK(b > a && b - a < 10, "%g", b - a);
}

int main(int argc, char **argv)
{
    (void)argc;
    snprintf(scratch_dir, sizeof scratch_dir, "%.500s_scratch", argv[0]);
    test_errors();
    test_sizes();
    test_text();
    test_arena();
    test_paths();
    test_writer();
    test_pipe();
    test_forget();
    test_full_disk();
    test_random();
    test_numbers();
    test_clock();
    remove_tree(scratch_dir, NULL);
    return test_end();
}
