/* fuzz.c - see fuzz.h. */
#include "fuzz.h"

#include <stdio.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

/* The library's util.c is built with mmap renamed to this: files are then read into memory of their
 * exact size, whose ends the sanitizer guards, and not into whole pages. */
void *no_mmap(void *p, size_t n, int protection, int flags, int fd, off_t offset);
void *no_mmap(void *p, size_t n, int protection, int flags, int fd, off_t offset)
{
    (void)p, (void)n, (void)protection, (void)flags, (void)fd, (void)offset;
    return MAP_FAILED;
}

static char path[512];

static void remove_file(void) { unlink(path); }

const char *fuzz_file(const uint8_t *data, size_t n)
{
    static int fd = -1;
    if (fd < 0) {
        const char *dir = getenv("TMPDIR");
        snprintf(path, sizeof path, "%s/lora-fuzz-XXXXXX", dir ? dir : "/tmp");
        fd = mkstemp(path);
        DEMAND(fd >= 0);
        atexit(remove_file);
    }
    DEMAND(!ftruncate(fd, 0) && pwrite(fd, data, n, 0) == (ssize_t)n);
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
