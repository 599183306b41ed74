/* system.c - what the jobs ask of the system: cores, memory, signals. */
#ifdef __APPLE__
#define _DARWIN_C_SOURCE        /* sysctlbyname */
#include <sys/types.h>
#include <sys/sysctl.h>
#endif
#include "job.h"
#include "../kernels.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* ---- control groups ---- */

/* What follows `key` in the first line that has it (the whole first line if key is ""). */
static int read_entry(const char *path, const char *key, char *line, size_t size)
{
    FILE *f = fopen(path, "r");
    char *at = NULL;
    if (!f) return -1;
    while (!at && fgets(line, (int)size, f)) at = strstr(line, key);
    fclose(f);
    if (!at) return -1;
    at += strlen(key);
    memmove(line, at, strlen(at) + 1);
    line[strcspn(line, "\n")] = 0;
    return 0;
}

/* A number of a file, or `otherwise` if the file is not there or says "max". */
static double read_figure(const char *directory, const char *file, const char *key, double otherwise)
{
    char path[1200], line[256];
    double x;
    snprintf(path, sizeof path, "%s/%s", directory, file);
    if (read_entry(path, key, line, sizeof line)) return otherwise;
    line[strcspn(line, " ")] = 0;
    return parse_number(line, &x) ? otherwise : x;
}

/* The directories of the group this process is in, from the innermost to the mount point: each
 * call cuts the last part off. Within a container the path may belong to the host and be absent;
 * the mount point is the container's own group then. */
struct group { char directory[1024]; size_t root; };

static void group_start(struct group *g, const char *mount, const char *key)
{
    char path[512];
    if (read_entry("/proc/self/cgroup", key, path, sizeof path)) path[0] = 0;
    g->root = strlen(mount);
    snprintf(g->directory, sizeof g->directory, "%s%s", mount, path);
}

static int group_up(struct group *g)
{
    char *slash = strrchr(g->directory, '/');
    if (strlen(g->directory) <= g->root) return 0;
    *slash = 0;
    return 1;
}

/* What the memory controller leaves: limit - used, where pages of files that can be dropped at once
 * do not count as used. */
static double group_memory(const char *mount, const char *key, const char *limit, const char *used,
                           const char *inactive, double most)
{
    struct group g;
    group_start(&g, mount, key);
    do {
        double all = read_figure(g.directory, limit, "", most * 2);
        double left = all - read_figure(g.directory, used, "", 0)
                    + read_figure(g.directory, "memory.stat", inactive, 0);
        if (all < most * 2 && left < most) most = left > 0 ? left : 1;
    } while (group_up(&g));
    return most;
}

/* Bytes; a control group's limit included; 0: unknown. */
static size_t available_memory(void)
{
    double most = 0;
    char line[256];
#ifdef __APPLE__
    uint64_t bytes = 0;
    size_t n = sizeof bytes;
    if (!sysctlbyname("hw.memsize", &bytes, &n, NULL, 0)) most = (double)bytes;
#elif defined(_SC_PHYS_PAGES)
    most = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
#endif
    if (!read_entry("/proc/meminfo", "MemAvailable:", line, sizeof line)) {
        double kib = strtod(line, NULL);
        if (kib > 0) most = kib * 1024;
    }
    if (!(most > 0)) return 0;
    most = group_memory("/sys/fs/cgroup", "0::", "memory.max", "memory.current", "inactive_file ", most);
    most = group_memory("/sys/fs/cgroup/memory", ":memory:", "memory.limit_in_bytes",
                        "memory.usage_in_bytes", "total_inactive_file ", most);
    return (size_t)most;
}

size_t memory_limit(const struct common *c, const struct kernels *k)
{
    if (c->max_memory) return c->max_memory;
    return (!k->own_memory ? available_memory() : k->memory ? k->memory() : 0) / 4 * 3;
}

/* ---- cores ---- */

int usable_threads(int asked)
{
    int n = 1;
#ifdef _OPENMP
    struct group g;
    if (asked > 0) return asked;
    n = omp_get_num_procs();            /* the affinity mask is in it */
    group_start(&g, "/sys/fs/cgroup", "0::");
    do {                                /* cpu.max: "QUOTA PERIOD" in microseconds, or "max PERIOD" */
        char path[1100], line[64];
        double quota, period;
        snprintf(path, sizeof path, "%s/cpu.max", g.directory);
        if (!read_entry(path, "", line, sizeof line) && sscanf(line, "%lf %lf", &quota, &period) == 2
            && period > 0 && quota / period < n) n = (int)(quota / period + 0.999);
    } while (group_up(&g));
#else
    (void)asked;                        /* threads are OpenMP's */
#endif
    return n > 0 ? n : 1;
}

/* ---- signals ---- */

static volatile sig_atomic_t stopped_by, stopped_at;
static const char *stop_note;
static size_t stop_note_bytes;

/* One that comes within two seconds of the first is the same wish: a wrapper may pass on what the terminal sent too. A later
 * one ends the program at once. */
static void on_stop(int number)
{
    static struct timespec now;     /* not on the stack, which QEMU 7.2 hands over unaligned */
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!stopped_by) {
        stopped_by = number;
        stopped_at = (sig_atomic_t)now.tv_sec;
        if (stop_note && write(2, stop_note, stop_note_bytes) < 0) return;
    } else if ((sig_atomic_t)now.tv_sec - stopped_at > 1) {
        signal(number, SIG_DFL);
        raise(number);
    }
}

void stop_install(const char *note)
{
    struct sigaction action, before;
    stop_note = note;
    stop_note_bytes = note ? strlen(note) : 0;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_stop;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (!sigaction(SIGHUP, NULL, &before) && before.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, NULL);    /* not under nohup */
}

int stop_signal(void)
{
    return stopped_by;
}

const char *stop_name(void)
{
    return stopped_by == SIGINT ? "SIGINT" : stopped_by == SIGHUP ? "SIGHUP" : "SIGTERM";
}

int stop_check(struct lora_error *err)
{
    return stopped_by ? fail(err, "stopped", "by %s", stop_name()) : 0;
}
