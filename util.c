/* util.c - see util.h. */
#ifdef __APPLE__
#define _DARWIN_C_SOURCE        /* madvise */
#else
#define _DEFAULT_SOURCE
#endif
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- errors ---- */

static void put_field(char *field, size_t size, const char *format, va_list arguments)
{
    int n = vsnprintf(field, size, format, arguments);
    if (n < 0) field[0] = 0;
    if (n >= (int)size) {
        size_t end = size - 4;
        while (end && ((unsigned char)field[end] & 0xc0) == 0x80) end--;    /* not inside a character */
        memcpy(field + end, "...", 4);
    }
    for (; *field; field++)
        if ((unsigned char)*field < 32 || *field == 127) *field = '?';
}

#define PUT_FIELD(field, format) do { \
    va_list arguments; \
    if (!err) return -1; \
    va_start(arguments, format); \
    put_field(err->field, sizeof err->field, format, arguments); \
    va_end(arguments); } while (0)

int fail(struct lora_error *err, const char *what, const char *where, ...)
{
    if (err) {
        memset(err, 0, sizeof *err);
        snprintf(err->what, sizeof err->what, "%s", what);
    }
    PUT_FIELD(where, where);
    return -1;
}

int expected(struct lora_error *err, const char *format, ...) { PUT_FIELD(expected, format); return -1; }
int found(struct lora_error *err, const char *format, ...) { PUT_FIELD(found, format); return -1; }
int hint(struct lora_error *err, const char *format, ...) { PUT_FIELD(hint, format); return -1; }

int fail_memory(struct lora_error *err, const char *what, size_t bytes)
{
    fail(err, "out of memory", "%s", what);
    return expected(err, "%zu bytes", bytes);
}

/* ---- checked sizes and memory ---- */

int size_mul(size_t *out, size_t a, size_t b)
{
    if (b && a > SIZE_MAX / b) return -1;
    *out = a * b;
    return 0;
}

int size_add(size_t *out, size_t a, size_t b)
{
    if (a > SIZE_MAX - b) return -1;
    *out = a + b;
    return 0;
}

void *new_array(size_t count, size_t size, struct lora_error *err)
{
    size_t bytes;
    void *p = NULL;
    if (size_mul(&bytes, count, size)) bytes = SIZE_MAX;
    else p = calloc(count ? count : 1, size ? size : 1);
    if (!p) fail_memory(err, "an array", bytes);
    return p;
}

char *new_string_n(const char *text, size_t n, struct lora_error *err)
{
    char *s = n < SIZE_MAX ? new_array(n + 1, 1, err) : NULL;
    if (s && n) memcpy(s, text, n);
    return s;
}

char *new_string(const char *text, struct lora_error *err) { return new_string_n(text, strlen(text), err); }

int grow_array(void **array, size_t *capacity, size_t needed, size_t size, struct lora_error *err)
{
    size_t n = *capacity < 16 ? 16 : *capacity, bytes;
    void *p;
    if (needed <= *capacity) return 0;
    while (n < needed) n = n > SIZE_MAX / 2 ? needed : n * 2;
    if (size_mul(&bytes, n, size)) return fail_memory(err, "a growing array", SIZE_MAX);
    if (!(p = realloc(*array, bytes))) return fail_memory(err, "a growing array", bytes);
    *array = p;
    *capacity = n;
    return 0;
}

void text_add(struct text *t, const char *s, size_t n)
{
    size_t needed;
    if (t->failed) return;
    if (size_add(&needed, t->n, n) || size_add(&needed, needed, 1)
        || grow_array((void **)&t->s, &t->capacity, needed, 1, NULL)) {
        t->failed = 1;
        return;
    }
    if (n) memcpy(t->s + t->n, s, n);
    t->n += n;
    t->s[t->n] = 0;
}

void text_puts(struct text *t, const char *s) { text_add(t, s, strlen(s)); }

void text_printf(struct text *t, const char *format, ...)
{
    char small[256], *s = small;
    va_list arguments;
    int n;
    va_start(arguments, format);
    n = vsnprintf(small, sizeof small, format, arguments);
    va_end(arguments);
    if (n >= (int)sizeof small && (s = malloc((size_t)n + 1))) {
        va_start(arguments, format);
        vsnprintf(s, (size_t)n + 1, format, arguments);
        va_end(arguments);
    }
    if (n < 0 || !s) t->failed = 1;
    else text_add(t, s, (size_t)n);
    if (s != small) free(s);
}

void text_list(struct text *t, const char *s)
{
    if (t->n) text_puts(t, ", ");
    text_puts(t, s);
}

void text_free(struct text *t)
{
    free(t->s);
    memset(t, 0, sizeof *t);
}

int text_check(const struct text *t, struct lora_error *err)
{
    return t->failed ? fail_memory(err, "a text", t->n) : 0;
}

/* ---- arena ---- */

void *arena_take(struct arena *a, size_t count, size_t size)
{
    size_t bytes, start = a->used, end;
    if (a->failed || size_mul(&bytes, count, size) || bytes > SIZE_MAX - 63
        || size_add(&end, start, (bytes + 63) / 64 * 64) || (a->base && end > a->size)) {
        a->failed = 1;
        return NULL;
    }
    a->used = end;
    return a->base ? a->base + start : NULL;
}

/* ---- files ---- */

static int fail_file(struct lora_error *err, const char *what, const char *path)
{
    int e = errno;
    fail(err, what, "%s", path);
    return found(err, "%s", strerror(e));
}

/* What cannot be mapped, a pipe or a terminal, up to its end. */
static int read_stream(int fd, struct file_map *f, const char *path, struct lora_error *err)
{
    enum { PART = 1 << 16 };
    unsigned char *data = NULL;
    size_t capacity = 0;
    while (!grow_array((void **)&data, &capacity, f->size + PART, 1, err)) {
        ssize_t n = read(fd, data + f->size, PART);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            fail_file(err, "cannot read", path);
            break;
        }
        f->size += (size_t)n;
        if (n) continue;
        f->data = data;
        return 0;
    }
    free(data);
    return -1;
}

/* A descriptor of what is no directory, and what it is; or -1. */
static int open_file(const char *path, struct stat *s, struct lora_error *err)
{
    int fd = open(path, O_RDONLY);
    if (fd < 0) return fail_file(err, "cannot open", path);
    if (fstat(fd, s)) fail_file(err, "cannot read", path);
    else if (!S_ISDIR(s->st_mode)) return fd;
    else {
        fail(err, "cannot read", "%s", path);
        expected(err, "a file");
        found(err, "a directory");
    }
    close(fd);
    return -1;
}

int file_open(struct file_map *f, const char *path, struct lora_error *err)
{
    struct stat s;
    int fd = open_file(path, &s, err), bad = 0;
    memset(f, 0, sizeof *f);
    if (fd < 0) return -1;
    if (S_ISREG(s.st_mode) && s.st_size) {
        void *p = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p != MAP_FAILED) {
            f->data = f->mapping = p;
            f->size = (size_t)s.st_size;
        }
    }
    if (!f->mapping) bad = read_stream(fd, f, path, err);
    close(fd);
    return bad;
}

void file_forget(const struct file_map *f, const void *p, size_t n)
{
#ifdef MADV_DONTNEED        /* posix_madvise() is nothing on Linux: its promise keeps what was written */
    uintptr_t start = (uintptr_t)p, first = (uintptr_t)f->mapping, page = (uintptr_t)sysconf(_SC_PAGESIZE), end = start + n;
    if (!f->mapping || start < first || start > first + f->size || n > f->size - (start - first)) return;
    start = (start + page - 1) / page * page;
    end = end / page * page;
    if (start < end) madvise((void *)start, end - start, MADV_DONTNEED);
#else
    (void)f, (void)p, (void)n;
#endif
}

void file_close(struct file_map *f)
{
    if (f->mapping) munmap(f->mapping, f->size);
    else free((void *)f->data);
    memset(f, 0, sizeof *f);
}

int file_exists(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0;
}

int is_directory(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

int same_file(const char *a, const char *b)
{
    struct stat s, t;
    return stat(a, &s) == 0 && stat(b, &t) == 0 && s.st_dev == t.st_dev && s.st_ino == t.st_ino;
}

char *path_join(const char *directory, const char *name, struct lora_error *err)
{
    size_t n = strlen(directory), m = strlen(name);
    char *path = new_array(n + m + 2, 1, err);
    if (!path) return NULL;
    memcpy(path, directory, n);
    if (n && directory[n - 1] != '/') path[n++] = '/';
    memcpy(path + n, name, m + 1);
    return path;
}

int file_in(const char *directory, const char *name, struct lora_error *err)
{
    char *path = path_join(directory, name, err);
    int is_there = path ? file_exists(path) : -1;
    free(path);
    return is_there;
}

int make_directory(const char *path, struct lora_error *err)
{
    char *copy = new_string(path, err), *p;
    int bad = 0;
    if (!copy) return -1;
    for (p = copy + 1; copy[0] && !bad; p++) {
        char c = *p;
        if (c != '/' && c) continue;
        *p = 0;
        if (mkdir(copy, 0777)) {
            int e = errno;      /* the reason, which looking there would overwrite */
            bad = !is_directory(copy);
            errno = e;
        }
        *p = c;
        if (!c) break;
    }
    if (bad) fail_file(err, "cannot make the directory", path);
    free(copy);
    return bad ? -1 : 0;
}

int remove_tree(const char *path, struct lora_error *err)
{
    struct stat s;
    struct dirent *e;
    DIR *d;
    int bad = 0;
    if (lstat(path, &s)) return errno == ENOENT ? 0 : fail_file(err, "cannot remove", path);
    if (S_ISDIR(s.st_mode)) {
        if (!(d = opendir(path))) return fail_file(err, "cannot remove", path);
        while (!bad && (e = readdir(d))) {
            char *child;
            if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
            child = path_join(path, e->d_name, err);
            bad = !child || remove_tree(child, err);
            free(child);
        }
        closedir(d);
    }
    if (bad) return -1;
    return remove(path) ? fail_file(err, "cannot remove", path) : 0;
}

static int write_all(int fd, const unsigned char *data, size_t n)
{
    while (n) {
        ssize_t put = write(fd, data, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return -1;
        data += put;
        n -= (size_t)put;
    }
    return 0;
}

int file_unnamed(const char *directory, struct lora_error *err)
{
    const char *place = directory ? directory : getenv("TMPDIR");
    char *path = path_join(place && *place ? place : "/tmp", "lora-XXXXXX", err);
    int fd = path ? mkstemp(path) : -1, why = errno;
    if (fd >= 0) unlink(path);
    else if (path) fail_file(err, "cannot make a file", path);
    free(path);
    errno = why;
    return fd;
}

/* All that is left in a stream, into an unnamed file. */
static int copy_stream(int from, const char *path, long long *copied, struct lora_error *err)
{
    enum { PART = 1 << 16 };
    unsigned char *part = new_array(PART, 1, err);
    int to = part ? file_unnamed(NULL, err) : -1, bad = to < 0;
    ssize_t n = 1;
    for (*copied = 0; !bad && n; *copied += n > 0 ? n : 0) {
        n = read(from, part, PART);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) bad = fail_file(err, "cannot read", path);
        if (n > 0 && write_all(to, part, (size_t)n)) {
            bad = fail_file(err, "cannot keep a copy of what can be read only once", path);
            hint(err, "TMPDIR says where there is room, or give a file");
        }
    }
    free(part);
    if (!bad) return to;
    if (to >= 0) close(to);
    return -1;
}

int file_reread(const char *path, long long *copied, struct lora_error *err)
{
    struct stat s;
    int fd = open_file(path, &s, err), copy;
    *copied = -1;
    if (fd < 0 || S_ISREG(s.st_mode)) return fd;
    copy = copy_stream(fd, path, copied, err);
    close(fd);
    return copy;
}

#define WRITER_BUFFER 65536

/* A pipe, a terminal, /dev/null: what is written into, and never replaced by a file of its name. */
static int is_device(const char *path)
{
    struct stat s;
    return !stat(path, &s) && !S_ISREG(s.st_mode) && !S_ISDIR(s.st_mode);
}

int writer_open(struct writer *w, const char *path, struct lora_error *err)
{
    memset(w, 0, sizeof *w);
    w->fd = -1;
    if (is_directory(path)) {           /* said now, not when the work is done */
        fail(err, "cannot write", "%s", path);
        expected(err, "a file");
        return found(err, "a directory");
    }
    w->path = new_string(path, err);
    w->temporary = new_array(strlen(path) + 5, 1, err);
    w->buffer = new_array(WRITER_BUFFER, 1, err);
    if (w->path && w->temporary && w->buffer) {
        const char *to = path;
        if (!is_device(path)) {         /* else there is nothing to replace: temporary stays "" */
            sprintf(w->temporary, "%s.tmp", path);
            to = w->temporary;
        }
        w->fd = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0666);
        if (w->fd >= 0) return 0;
        fail_file(err, "cannot write", path);
    }
    writer_abandon(w);
    return -1;
}

static int writer_flush(struct writer *w, struct lora_error *err)
{
    if (write_all(w->fd, w->buffer, w->filled)) return fail_file(err, "cannot write", w->path);
    w->filled = 0;
    return 0;
}

int writer_put(struct writer *w, const void *data, size_t n, struct lora_error *err)
{
    w->offset += n;
    if (n >= WRITER_BUFFER) {
        if (writer_flush(w, err)) return -1;
        if (write_all(w->fd, data, n)) return fail_file(err, "cannot write", w->path);
        return 0;
    }
    if (w->filled + n > WRITER_BUFFER && writer_flush(w, err)) return -1;
    if (n) memcpy(w->buffer + w->filled, data, n);
    w->filled += n;
    return 0;
}

int writer_commit(struct writer *w, struct lora_error *err)
{
    int bad = writer_flush(w, err);
    int whole = w->temporary[0] != 0;
    if (!bad && whole && fsync(w->fd)) bad = fail_file(err, "cannot write", w->path);
    if (close(w->fd) && !bad) bad = fail_file(err, "cannot write", w->path);
    w->fd = -1;
    if (!bad && whole && rename(w->temporary, w->path)) bad = fail_file(err, "cannot name", w->path);
    if (!bad) {
        free(w->temporary);
        w->temporary = NULL;
    }
    writer_abandon(w);
    return bad;
}

int writer_commit_data(struct writer *w, const char *what, uint64_t start, uint64_t bytes, struct lora_error *err)
{
    uint64_t written = w->offset - start;
    if (written == bytes) return writer_commit(w, err);
    fail(err, what, "%s", w->path);
    expected(err, "%llu bytes of data", (unsigned long long)bytes);
    found(err, "%llu", (unsigned long long)written);
    writer_abandon(w);
    return -1;
}

void writer_abandon(struct writer *w)
{
    if (w->fd >= 0) close(w->fd);
    if (w->temporary && w->temporary[0]) unlink(w->temporary);
    free(w->path);
    free(w->temporary);
    free(w->buffer);
    memset(w, 0, sizeof *w);
    w->fd = -1;
}

int file_write(const char *path, const void *data, size_t n, struct lora_error *err)
{
    struct writer w;
    if (writer_open(&w, path, err)) return -1;
    if (writer_put(&w, data, n, err)) {
        writer_abandon(&w);
        return -1;
    }
    return writer_commit(&w, err);
}

int file_copy(const char *from, const char *to, const char *name, struct lora_error *err)
{
    char *source = path_join(from, name, err), *target = path_join(to, name, err);
    struct file_map f;
    int bad = !source || !target;
    if (!bad && file_exists(source) && !(bad = file_open(&f, source, err))) {
        bad = file_write(target, f.data, f.size, err);
        file_close(&f);
    }
    free(source);
    free(target);
    return bad ? -1 : 0;
}

int directory_sync(const char *path, struct lora_error *err)
{
    int fd = open(path, O_RDONLY), bad;
    if (fd < 0) return fail_file(err, "cannot open", path);
    bad = fsync(fd) && errno != EINVAL && errno != EBADF;   /* some file systems cannot, and need not */
    close(fd);
    return bad ? fail_file(err, "cannot write", path) : 0;
}

/* ---- hashes and random numbers ---- */

uint64_t hash_bytes(uint64_t h, const void *data, size_t n)
{
    const unsigned char *p = data;
    size_t i;
    for (i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3ull;
    return h;
}

uint64_t hash_string(uint64_t h, const char *s) { return hash_bytes(h, s, strlen(s) + 1); }

uint64_t random_key(uint64_t seed, const char *name)
{
    return random_bits(hash_string(HASH_START, name), seed);
}

double random_normal(uint64_t key, uint64_t index)
{
    double u = 1.0 - random_uniform(key, 2 * index);    /* (0,1]: its logarithm is finite */
    double v = random_uniform(key, 2 * index + 1);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586476925 * v);
}

/* ---- numbers as text ---- */

int parse_integer(const char *s, long long *out)
{
    const char *p = s + (*s == '-' || *s == '+');
    char *end;
    long long v;
    if (*p < '0' || *p > '9') return -1;
    errno = 0;
    v = strtoll(s, &end, 10);
    if (*end || errno) return -1;
    *out = v;
    return 0;
}

/* The locale is never set by this program, so strtod reads a point. Hexadecimal, "inf" and "nan"
 * are kept out by the characters allowed. */
int parse_number(const char *s, double *out)
{
    char *end;
    double v;
    if (!*s || s[strspn(s, "+-0123456789.eE")]) return -1;
    v = strtod(s, &end);
    if (end == s || *end || !(v - v == 0)) return -1;
    *out = v;
    return 0;
}

double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
