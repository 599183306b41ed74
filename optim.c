/* optim.c - see optim.h. */
#include "optim.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

double schedule_rate(int schedule, double lr, long long step, long long warmup, long long total)
{
    double span = (double)(total - warmup > 1 ? total - warmup : 1);
    double progress = (double)(step - warmup) / span, factor = 1;
    if (step < warmup) return lr * ((double)step / (double)warmup);
    if (schedule == SCHEDULE_LINEAR) factor = (double)(total - step) / span;
    if (schedule == SCHEDULE_COSINE) factor = 0.5 * (1 + cos(3.14159265358979323846 * progress));
    return factor > 0 ? lr * factor : 0;
}

long long warmup_steps(double ratio, long long total) { return (long long)ceil(ratio * (double)total); }

void shuffle_rows(int *order, int n, uint64_t seed, long long epoch)
{
    uint64_t key = random_bits(random_key(seed, "order of rows"), (uint64_t)epoch);
    int i;
    for (i = 0; i < n; i++) order[i] = i;
    for (i = n - 1; i > 0; i--) {
        /* 32 random bits times i + 1: the bias is below n / 2^32 */
        int j = (int)(((random_bits(key, (uint64_t)i) >> 32) * ((uint64_t)i + 1)) >> 32), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

/* ---- pages ---- */

/* 0, or errno. */
static int write_zeros(int fd, size_t bytes)
{
    enum { PIECE = 1 << 18 };
    char *zeros = calloc(PIECE, 1);
    int bad = zeros ? 0 : ENOMEM;
    while (bytes && !bad) {
        ssize_t n = write(fd, zeros, bytes < PIECE ? bytes : PIECE);
        if (n > 0) bytes -= (size_t)n;
        else if (n == 0) bad = ENOSPC;
        else if (errno != EINTR) bad = errno;
    }
    free(zeros);
    return bad;
}

void *pages_open(const char *directory, size_t bytes, struct lora_error *err)
{
    const char *place = directory ? directory : getenv("TMPDIR");
    void *pages = MAP_FAILED;
    int fd = file_unnamed(directory, NULL), why = errno;
    if (fd >= 0) {
        if (!(why = write_zeros(fd, bytes))) {
            pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            why = errno;
        }
        close(fd);
    }
    if (pages != MAP_FAILED) return pages;
    fail(err, "cannot make a file for the optimizer's moments", "%s", place && *place ? place : "/tmp");
    expected(err, "room for %zu bytes", bytes);
    found(err, "%s", strerror(why));
    return NULL;
}

void pages_close(void *pages, size_t bytes) { munmap(pages, bytes); }
