/* util.h - what every file stands on: errors, checked sizes, memory, files, random numbers.
 *
 * Library code never prints or exits. A function that can fail returns 0 or -1 and fills a
 * struct lora_error; the job that called it prints. */
#ifndef UTIL_H
#define UTIL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __GNUC__
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#else
#define PRINTF_LIKE(f, a)
#endif

/* A function that device code calls too: defined once, in a header, for processors and for GPUs. */
#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

/* ---- errors ------------------------------------------------------------------------------ */

/* One error, in the parts a user needs: WHAT: WHERE: expected EXPECTED, found FOUND / hint: HINT.
 * An empty part is left out when it is printed. Zero-initialise before use. */
struct lora_error {
    char what[256];     /* "cannot read the model" */
    char where[512];    /* file, tensor, line */
    char expected[256];
    char found[256];
    char hint[384];
};

/* Each returns -1, so that `return fail(...)` reads well. fail() starts the error and wipes what
 * was there; the others add a part to it. err may be NULL everywhere. Text that does not fit is
 * cut and ends in "..."; control characters of a file's text are shown as '?'. */
int fail(struct lora_error *err, const char *what, const char *where, ...) PRINTF_LIKE(3, 4);
int expected(struct lora_error *err, const char *format, ...) PRINTF_LIKE(2, 3);
int found(struct lora_error *err, const char *format, ...) PRINTF_LIKE(2, 3);
int hint(struct lora_error *err, const char *format, ...) PRINTF_LIKE(2, 3);

/* The usual one: out of memory while doing `what`, `bytes` asked for. */
int fail_memory(struct lora_error *err, const char *what, size_t bytes);

/* ---- checked sizes and memory ------------------------------------------------------------ */

/* *out = a * b, or -1 when it overflows. */
int size_mul(size_t *out, size_t a, size_t b);
int size_add(size_t *out, size_t a, size_t b);

/* calloc with overflow check and error; never returns NULL for success, also when count is 0. */
void *new_array(size_t count, size_t size, struct lora_error *err);
char *new_string(const char *text, struct lora_error *err);
char *new_string_n(const char *text, size_t n, struct lora_error *err);

/* Grows *array (elements of `size` bytes, *capacity of them) so that `needed` fit; the rest is
 * not cleared. 0 or -1; on failure *array and *capacity are unchanged. */
int grow_array(void **array, size_t *capacity, size_t needed, size_t size, struct lora_error *err);

/* A growing byte string, always ended by a NUL that n does not count. Zero-initialise. After a
 * failed append `failed` is set and later appends do nothing: check once, at the end. */
struct text {
    char *s;
    size_t n, capacity;
    int failed;
};
void text_add(struct text *t, const char *s, size_t n);
void text_puts(struct text *t, const char *s);
void text_printf(struct text *t, const char *format, ...) PRINTF_LIKE(2, 3);
void text_list(struct text *t, const char *s);       /* "a", then "a, b" */
void text_free(struct text *t);
int text_check(const struct text *t, struct lora_error *err);   /* -1 with an error if failed */

/* ---- arena ------------------------------------------------------------------------------- */

/* One piece of memory, carved from the front. With base NULL nothing is handed out but all is
 * counted, so the plan that is printed is what is taken. */
struct arena {
    unsigned char *base;
    size_t used, size;
    int failed;                 /* overflow, or more than size: sticky */
};
/* count elements of `size` bytes, at a multiple of 64. NULL while counting or on failure. */
void *arena_take(struct arena *a, size_t count, size_t size);

/* ---- files ------------------------------------------------------------------------------- */

/* A whole file, read only, mapped where the system can, else read into memory; a pipe up to its end. */
struct file_map {
    const unsigned char *data;
    size_t size;
    void *mapping;              /* what to unmap, or NULL: data is owned heap memory */
};
int file_open(struct file_map *f, const char *path, struct lora_error *err);
void file_close(struct file_map *f);
/* A descriptor by which a file is read anywhere, and again: its own, or, where it can be read only once (a
 * pipe, a terminal), that of a copy in an unnamed file, whose bytes are *copied; else *copied is -1.
 * -1: an error. */
int file_reread(const char *path, long long *copied, struct lora_error *err);
/* A new file without a name in `directory` (NULL: TMPDIR's, or /tmp): its descriptor, or -1 with an error
 * and errno. */
int file_unnamed(const char *directory, struct lora_error *err);
/* The pages of p[n] may leave memory, where the system can do that; what is read later is read from the
 * file again. Nothing happens when p is not in the mapped file. */
void file_forget(const struct file_map *f, const void *p, size_t n);

int file_exists(const char *path);          /* 1: is there, whatever it is */
/* Is there something of that name in the directory? 1, 0, or -1: no memory. */
int file_in(const char *directory, const char *name, struct lora_error *err);
int is_directory(const char *path);
int same_file(const char *a, const char *b);        /* 1: both are there, and are one file or directory */
int make_directory(const char *path, struct lora_error *err);    /* its parents too; there already: 0 */
/* "a/b", a new string of the caller's; NULL without memory. */
char *path_join(const char *directory, const char *name, struct lora_error *err);
/* Removes a file, or a directory with all it holds. Absent: 0. */
int remove_tree(const char *path, struct lora_error *err);

/* A file that appears whole or not at all: written under PATH.tmp, then fsync and rename. A PATH that is a pipe or a
 * device is written into. */
struct writer {
    int fd;
    char *path, *temporary;
    unsigned char *buffer;
    size_t filled;
    uint64_t offset;            /* bytes written so far */
};
int writer_open(struct writer *w, const char *path, struct lora_error *err);
int writer_put(struct writer *w, const void *data, size_t n, struct lora_error *err);
int writer_commit(struct writer *w, struct lora_error *err);     /* ends w, also when it fails */
/* The same of a file that holds `bytes` behind `start`, or it is an error that begins with `what`. */
int writer_commit_data(struct writer *w, const char *what, uint64_t start, uint64_t bytes, struct lora_error *err);
void writer_abandon(struct writer *w);                           /* removes the temporary file */
int file_write(const char *path, const void *data, size_t n, struct lora_error *err);
/* The file of that name in a directory, if there is one, into another directory. */
int file_copy(const char *from, const char *to, const char *name, struct lora_error *err);
int directory_sync(const char *path, struct lora_error *err);    /* makes a rename in it durable */

/* ---- hashes and random numbers ----------------------------------------------------------- */

/* FNV-1a of 64 bits: names of random streams, splits, fingerprints of files. Not for secrets. */
#define HASH_START 0xcbf29ce484222325ull
uint64_t hash_bytes(uint64_t h, const void *data, size_t n);
uint64_t hash_string(uint64_t h, const char *s);

/* Counter-based: the number depends on (key, index) and nothing else. random_key() makes the key
 * of a stream from the run's seed and the tensor's or purpose's name. The mixing is SplitMix64's
 * finaliser (Steele, Lea, Flood 2014), applied to key + golden ratio * (index + 1). */
uint64_t random_key(uint64_t seed, const char *name);
static inline HOST_DEVICE uint64_t random_bits(uint64_t key, uint64_t index)
{
    uint64_t z = key + 0x9e3779b97f4a7c15ull * (index + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
static inline HOST_DEVICE double random_uniform(uint64_t key, uint64_t index)       /* in [0,1), 53 bits */
{
    return (double)(random_bits(key, index) >> 11) * (1.0 / 9007199254740992.0);
}
double random_normal(uint64_t key, uint64_t index);     /* Box-Muller of indices 2i and 2i+1 */

/* ---- numbers as text --------------------------------------------------------------------- */

/* Strict: the whole of s, no locale, no white space. 0 or -1. */
int parse_integer(const char *s, long long *out);
int parse_number(const char *s, double *out);           /* finite decimal numbers */

/* Seconds on a clock that only goes forward. */
double seconds_now(void);

#endif
