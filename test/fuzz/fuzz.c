/* fuzz.c - see fuzz.h. */
#include "fuzz.h"
#include "../../util.h"

#include <stdio.h>
#include <sys/mman.h>
#include <sys/types.h>

/* The library's util.c is built with mmap renamed to this: files are then read into memory of their
 * exact size, whose ends the sanitizer guards, and not into whole pages. */
void *no_mmap(void *p, size_t n, int protection, int flags, int fd, off_t offset);
void *no_mmap(void *p, size_t n, int protection, int flags, int fd, off_t offset)
{
    (void)p, (void)n, (void)protection, (void)flags, (void)fd, (void)offset;
    return MAP_FAILED;
}

static char directory[512];

static void remove_directory(void) { remove_tree(directory, NULL); }

const char *fuzz_directory(void)
{
    if (!directory[0]) {
        const char *dir = getenv("TMPDIR");
        snprintf(directory, sizeof directory, "%s/lora-fuzz-XXXXXX", dir ? dir : "/tmp");
        DEMAND(mkdtemp(directory));
        atexit(remove_directory);
    }
    return directory;
}

const char *fuzz_file(const char *name, const uint8_t *data, size_t n)
{
    static char path[600];
    FILE *f;
    snprintf(path, sizeof path, "%s/%s", fuzz_directory(), name);
    DEMAND((f = fopen(path, "wb")) && fwrite(data, 1, n, f) == n && !fclose(f));
    return path;
}

void fuzz_touch(const void *data, size_t n)
{
    static volatile unsigned char sink;
    const unsigned char *p = data;
    unsigned char sum = 0;
    while (n--) sum ^= *p++;
    sink = sum;
    (void)sink;
}
