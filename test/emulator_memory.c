/* emulator_memory.c - the device's memory of emulator.h, the runtime over it, and the check of what kernels touch.
 *
 * The compiler calls a function before each read and write of a file compiled with -fsanitize=thread; its own library is
 * not linked, the functions are here. For each word of the device's memory and of shared memory is kept when, and by which
 * thread, it was last read and written: enough to see two threads at one word with no barrier between them. */
#define _GNU_SOURCE
#include "emulator_parts.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- the device's memory ---- one reserved piece, closed but for launches and copies. Allocations begin at a multiple
 * of GRANULE, and there is at least one granule between them. */

enum { GRANULE = 256, MOST_ALLOCATIONS = 4096, PAGE = 65536 };
static struct {
    unsigned char *base;
    size_t size, reserved;      /* what the device is said to have; room for it in pieces */
    size_t used, high;          /* given out; how far the piece was ever used */
    uint32_t *valid;            /* of each granule, how many bytes from its first one on are of one allocation */
    int asked, opened, n;
    struct allocation { size_t start, bytes; } all[MOST_ALLOCATIONS];       /* ascending */
} memory;

static size_t rounded(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* Zeros, of which only what is touched takes memory. */
static void *reserve(size_t bytes, int protection)
{
    void *p = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void cells_new(size_t bytes);

cudaError_t emulator_begin(void)
{
    const char *size = getenv("EMULATOR_MEMORY"), *devices = getenv("EMULATOR_DEVICES");
    if (!memory.asked && !(devices && !strcmp(devices, "0"))) {
        memory.size = size ? (size_t)strtoull(size, NULL, 10) : (size_t)1 << 30;
        memory.reserved = rounded(memory.size + memory.size / 2 + (1 << 20), PAGE);
        memory.base = reserve(memory.reserved, PROT_NONE);
        memory.valid = reserve(memory.reserved / GRANULE * sizeof *memory.valid, PROT_READ | PROT_WRITE);
        if (!memory.base || !memory.valid) abort();
        cells_new(memory.reserved);
    }
    memory.asked = 1;
    return memory.base ? cudaSuccess : cudaErrorNoDevice;
}

void emulator_open(void)
{
    if (!memory.opened && memory.high) mprotect(memory.base, memory.high, PROT_READ | PROT_WRITE);
    memory.opened = 1;
}

/* That costs time for each page: where there are many, only now and then. */
void emulator_close(void)
{
    static unsigned calls;
    if (memory.high > 1 << 18 && ++calls % 64) return;
    if (memory.high) mprotect(memory.base, memory.high, PROT_NONE);
    memory.opened = 0;
}

/* Are p[n] bytes of one allocation? */
static int allocated(const void *p, size_t n)
{
    size_t offset = (size_t)((uintptr_t)p - (uintptr_t)memory.base);
    return offset < memory.high && offset % GRANULE + n <= memory.valid[offset / GRANULE];
}

static void mark_valid(const struct allocation *a, int there)
{
    size_t i;
    for (i = 0; i < a->bytes; i += GRANULE)
        memory.valid[(a->start + i) / GRANULE] = !there ? 0 : a->bytes - i < 0xffffffffu ? (uint32_t)(a->bytes - i) : 0xffffffffu;
}

/* ---- errors ---- as the runtime has them: the last one stays until cudaGetLastError() takes it. */

static cudaError_t last, unheard;       /* unheard: of a launch; what waits for the device says it */

static cudaError_t said(cudaError_t error)
{
    if (error) last = error;
    return error;
}

void emulator_launch_failed(cudaError_t error) { unheard = said(error); }

cudaError_t cudaPeekAtLastError(void) { return last; }

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last;
    last = unheard = cudaSuccess;
    return error;
}

static const struct { cudaError_t error; const char *words; } errors[] = {
    { cudaSuccess, "no error" },
    { cudaErrorInvalidValue, "invalid argument" },
    { cudaErrorMemoryAllocation, "out of memory" },
    { cudaErrorInvalidConfiguration, "invalid configuration argument" },
    { cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version" },
    { cudaErrorNoDevice, "no CUDA-capable device is detected" },
    { cudaErrorInvalidDevice, "invalid device ordinal" },
    { cudaErrorLaunchFailure, "unspecified launch failure" }
};

const char *cudaGetErrorString(cudaError_t error)
{
    size_t i = sizeof errors / sizeof *errors - 1;
    while (i && errors[i].error != error) i--;
    return errors[i].words;
}

/* ---- memory, as the runtime has it ---- */

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    struct allocation a = { GRANULE, bytes };
    size_t end;
    int i;
    *p = NULL;
    if (emulator_begin()) return said(cudaErrorNoDevice);
    if (!bytes) return cudaSuccess;
    if (bytes > memory.size - memory.used || memory.n == MOST_ALLOCATIONS) return said(cudaErrorMemoryAllocation);
    for (i = 0; i < memory.n && memory.all[i].start < a.start + rounded(bytes, GRANULE) + GRANULE; i++)
        a.start = memory.all[i].start + rounded(memory.all[i].bytes, GRANULE) + GRANULE;
    end = a.start + rounded(bytes, GRANULE) + GRANULE;
    if (end > memory.reserved) return said(cudaErrorMemoryAllocation);
    memmove(&memory.all[i + 1], &memory.all[i], (size_t)(memory.n - i) * sizeof a);
    memory.all[i] = a;
    memory.n++;
    memory.used += bytes;
    if (memory.high < end) {
        memory.high = rounded(end, PAGE);
        memory.opened = 0;
    }
    mark_valid(&a, 1);
    emulator_open();
    memset(memory.base + a.start - GRANULE, 0xff, end - a.start + GRANULE);
    emulator_close();
    *p = memory.base + a.start;
    return cudaSuccess;
}

/* Were the zones around an allocation left alone? */
static void check_guards(const struct allocation *a)
{
    const unsigned char *p = memory.base + a->start;
    size_t end = rounded(a->bytes, GRANULE) + GRANULE, i;
    for (i = 1; i <= GRANULE && p[-(ptrdiff_t)i] == 0xff; i++) {}
    if (i <= GRANULE) emulator_fail(cudaErrorLaunchFailure, "byte %zu before an allocation of %zu bytes was written", i, a->bytes);
    for (i = a->bytes; i < end && p[i] == 0xff; i++) {}
    if (i < end) emulator_fail(cudaErrorLaunchFailure, "byte %zu of an allocation of %zu bytes was written", i, a->bytes);
}

/* What lies behind the last allocation is closed for good. */
static void forget_end(void)
{
    const struct allocation *a = memory.n ? &memory.all[memory.n - 1] : NULL;
    size_t high = a ? rounded(a->start + rounded(a->bytes, GRANULE) + GRANULE, PAGE) : 0;
    if (memory.high > high) mprotect(memory.base + high, memory.high - high, PROT_NONE);
    memory.high = high;
}

cudaError_t cudaFree(void *p)
{
    int i;
    if (!p) return cudaSuccess;
    for (i = 0; i < memory.n && memory.base + memory.all[i].start != p; i++) {}
    if (i == memory.n) return said(cudaErrorInvalidValue);
    emulator_open();
    check_guards(&memory.all[i]);
    memset(p, 0xff, memory.all[i].bytes);
    mark_valid(&memory.all[i], 0);
    memory.used -= memory.all[i].bytes;
    memory.n--;
    memmove(&memory.all[i], &memory.all[i + 1], (size_t)(memory.n - i) * sizeof *memory.all);
    if (i == memory.n) forget_end();
    emulator_close();
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind)
{
    int to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    int from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (emulator_begin()) return said(cudaErrorNoDevice);
    if (unheard || !n) return unheard;
    if (to != allocated(dst, n) || from != allocated(src, n)) return said(cudaErrorInvalidValue);
    emulator_open();
    memmove(dst, src, n);
    emulator_close();
    return cudaSuccess;
}

cudaError_t cudaMemset(void *p, int byte, size_t n)
{
    if (emulator_begin()) return said(cudaErrorNoDevice);
    if (unheard || !n) return unheard;
    if (!allocated(p, n)) return said(cudaErrorInvalidValue);
    emulator_open();
    memset(p, byte, n);
    emulator_close();
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *available = *total = 0;
    if (emulator_begin()) return said(cudaErrorNoDevice);
    *total = memory.size;
    *available = memory.size - memory.used;
    return cudaSuccess;
}

/* ---- the device ---- */

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = emulator_begin() ? 0 : 1;
    return said(*count ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr what, int device)
{
    *value = what == cudaDevAttrMultiProcessorCount ? 2 : what == cudaDevAttrComputeCapabilityMajor ? 8 : 0;
    return said(emulator_begin() ? cudaErrorNoDevice : device ? cudaErrorInvalidDevice : cudaSuccess);
}

cudaError_t cudaDeviceSynchronize(void) { return unheard; }

/* ---- accesses ---- */

/* Of a word, or of a byte of one that was once touched in part. */
struct cell {
    uint32_t written, read;     /* when last */
    uint16_t writer, reader;    /* by which thread of its block */
    uint8_t in_bytes;           /* of a word: look at its four bytes instead */
    uint8_t read_before;        /* in this launch by a block before the one of `read` */
};
enum { MANY = 0xffff };
struct cells { struct cell *words, *bytes; };
static struct cells of_device, of_shared;

static void cells_new(size_t bytes)
{
    of_device.words = reserve(bytes / 4 * sizeof(struct cell), PROT_READ | PROT_WRITE);
    of_device.bytes = reserve(bytes * sizeof(struct cell), PROT_READ | PROT_WRITE);
    of_shared.words = reserve(EMULATOR_SHARED_BYTES / 4 * sizeof(struct cell), PROT_READ | PROT_WRITE);
    of_shared.bytes = reserve(EMULATOR_SHARED_BYTES * sizeof(struct cell), PROT_READ | PROT_WRITE);
    if (!of_device.words || !of_device.bytes || !of_shared.words || !of_shared.bytes) abort();
}

struct access { const unsigned char *at; size_t n; int write; const void *code; };

static void tell(const struct access *a, const char *format, int other)
{
    const struct emulator_running *r = &emulator_running;
    Dl_info info;
    char where[96] = "", what[160], place[128];
    size_t offset = (size_t)(a->at - r->kernel->shared);
    int i;
    snprintf(what, sizeof what, format, other);
    if (dladdr((void *)(uintptr_t)a->code, &info) && info.dli_fname)
        snprintf(where, sizeof where, " (code at %p of the object)", (void *)((uintptr_t)a->code - (uintptr_t)info.dli_fbase));
    if (offset < r->shared) snprintf(place, sizeof place, "byte %zu of shared memory", offset);
    else {
        snprintf(place, sizeof place, "%p", (const void *)a->at);
        for (i = 0; i < memory.n; i++) {
            offset = (size_t)(a->at - memory.base) - memory.all[i].start;
            if (offset < memory.all[i].bytes + GRANULE)
                snprintf(place, sizeof place, "byte %zu of an allocation of %zu", offset, memory.all[i].bytes);
        }
    }
    emulator_fail(cudaErrorLaunchFailure, "thread %d %s %zu bytes, %s%s: %s", r->thread, a->write ? "writes" : "reads", a->n, place,
                  where, what);
}

/* A cell that says that this thread did the same since the last barrier, with no one else's doing between that
 * would have been found: nothing is new. */
static inline int known(const struct cell *c, int write)
{
    const struct emulator_running *r = &emulator_running;
    int reader = c->read == r->now ? c->reader : -1;
    if (write) return c->written == r->now && c->writer == r->thread && (reader == -1 || reader == r->thread);
    return reader == r->thread || reader == MANY;
}

static void touch_read(struct cell *c, const struct access *a, int shared)
{
    const struct emulator_running *r = &emulator_running;
    if (shared && c->written < r->block) tell(a, "this block did not write there before", 0);
    if (c->read != r->now) {
        if (c->read < r->launch) c->read_before = 0;
        else if (c->read < r->block) c->read_before = 1;
        c->read = r->now;
        c->reader = (uint16_t)r->thread;
    } else if (c->reader != r->thread) {
        c->reader = MANY;
    }
}

static void touch_write(struct cell *c, const struct access *a, int shared)
{
    const struct emulator_running *r = &emulator_running;
    if (c->read == r->now && c->reader != r->thread)
        tell(a, c->reader == MANY ? "other threads read there since the last barrier" : "thread %d read there since the last barrier", c->reader);
    if (!shared && c->read >= r->launch && (c->read < r->block || c->read_before)) tell(a, "another block of the launch read there", 0);
    c->written = r->now;
    c->writer = (uint16_t)r->thread;
}

/* Another thread or block did the same without a barrier between, and one of both wrote: a race. */
static void touch(struct cell *c, const struct access *a, int shared)
{
    const struct emulator_running *r = &emulator_running;
    if (known(c, a->write)) return;
    if (c->written == r->now ? c->writer != r->thread : !shared && c->written < r->block && c->written >= r->launch)
        tell(a, c->written == r->now ? "thread %d wrote there since the last barrier" : "another block of the launch wrote there", c->writer);
    if (a->write) touch_write(c, a, shared);
    else touch_read(c, a, shared);
}

static void touch_bytes(const struct cells *cells, size_t offset, const struct access *a, int shared)
{
    static const struct cell split = { 0, 0, 0, 0, 1, 0 };
    size_t end = offset + a->n;
    while (offset < end) {
        struct cell *word = &cells->words[offset / 4], *byte = &cells->bytes[offset / 4 * 4];
        size_t next = offset / 4 * 4 + 4 < end ? offset / 4 * 4 + 4 : end;
        if (!word->in_bytes && next - offset == 4) {
            touch(word, a, shared);
        } else {
            if (!word->in_bytes) {
                byte[0] = byte[1] = byte[2] = byte[3] = *word;
                *word = split;
            }
            for (; offset < next; offset++) touch(&cells->bytes[offset], a, shared);
        }
        offset = next;
    }
}

/* Neither shared nor the device's: the thread's own stack, its arguments, constants and variables of the program's
 * files, or a fault. Pages of files are remembered. */
static void check_elsewhere(const struct access *a)
{
    static uintptr_t pages[64];         /* none is page 0 */
    const struct emulator_running *r = &emulator_running;
    uintptr_t page = (uintptr_t)a->at >> 12;
    Dl_info info;
    if ((size_t)(a->at - r->stack) < EMULATOR_STACK || (page && pages[page % 64] == page)) return;
    if ((size_t)(a->at - (const unsigned char *)r->kernel->arguments) < r->kernel->bytes) return;
    if (!dladdr((void *)(uintptr_t)a->at, &info)) tell(a, "that is not the device's memory", 0);
    pages[page % 64] = page;
}

static void check(const void *p, size_t n, int write, const void *code)
{
    const struct emulator_running *r = &emulator_running;
    struct access a = { (const unsigned char *)p, n, write, code };
    size_t offset;
    if (r->thread < 0) return;
    if ((offset = (size_t)(a.at - r->kernel->shared)) < r->shared) touch_bytes(&of_shared, offset, &a, 1);
    else if ((offset = (size_t)(a.at - memory.base)) >= memory.reserved) check_elsewhere(&a);
    else if (!allocated(p, n)) tell(&a, "that is no allocation's", 0);
    else touch_bytes(&of_device, offset, &a, 0);
}

/* Most accesses are to one word, and to one that this thread had before, or to its own stack. */
static inline void check_word(const void *p, int write, const void *code)
{
    const struct emulator_running *r = &emulator_running;
    const unsigned char *at = (const unsigned char *)p;
    size_t offset;
    if ((size_t)(at - r->stack) < EMULATOR_STACK) return;
    if ((offset = (size_t)(at - r->shared_start)) < r->shared) {
        if (!(offset % 4) && known(&of_shared.words[offset / 4], write)) return;
    } else if ((offset = (size_t)(at - memory.base)) < memory.high) {
        if (!(offset % 4) && known(&of_device.words[offset / 4], write)) return;
    }
    check(p, 4, write, code);
}

/* What compilers call. */
#define HOOK(name, n, write) void name(void *p); void name(void *p) { check(p, n, write, __builtin_return_address(0)); }
#define HOOKS(n) HOOK(__tsan_read##n, n, 0) HOOK(__tsan_write##n, n, 1) \
    HOOK(__tsan_unaligned_read##n, n, 0) HOOK(__tsan_unaligned_write##n, n, 1)
HOOKS(1) HOOKS(2) HOOKS(8) HOOKS(16)
HOOK(__tsan_unaligned_read4, 4, 0) HOOK(__tsan_unaligned_write4, 4, 1)
void __tsan_read4(void *p);
void __tsan_read4(void *p) { check_word(p, 0, __builtin_return_address(0)); }
void __tsan_write4(void *p);
void __tsan_write4(void *p) { check_word(p, 1, __builtin_return_address(0)); }
#define HOOK_RANGE(name, write) void name(void *p, size_t n); \
    void name(void *p, size_t n) { if (n) check(p, n, write, __builtin_return_address(0)); }
HOOK_RANGE(__tsan_read_range, 0) HOOK_RANGE(__tsan_write_range, 1)
void __tsan_init(void);
void __tsan_init(void) {}
void __tsan_func_entry(void *caller);
void __tsan_func_entry(void *caller) { (void)caller; }
void __tsan_func_exit(void *caller);
void __tsan_func_exit(void *caller) { (void)caller; }

/* Copies of structs become calls of these, which the linker leads here (--wrap); newer compilers say the second name. */
void *__real_memset(void *p, int byte, size_t n);
void *__real_memcpy(void *dst, const void *src, size_t n);
void *__real_memmove(void *dst, const void *src, size_t n);

#define HOOK_SET(name) void *name(void *p, int byte, size_t n); \
    void *name(void *p, int byte, size_t n) \
    { \
        if (n) check(p, n, 1, __builtin_return_address(0)); \
        return __real_memset(p, byte, n); \
    }
#define HOOK_COPY(name, real) void *name(void *dst, const void *src, size_t n); \
    void *name(void *dst, const void *src, size_t n) \
    { \
        if (n) check(src, n, 0, __builtin_return_address(0)); \
        if (n) check(dst, n, 1, __builtin_return_address(0)); \
        return real(dst, src, n); \
    }
HOOK_SET(__wrap_memset) HOOK_SET(__tsan_memset)
HOOK_COPY(__wrap_memcpy, __real_memcpy) HOOK_COPY(__tsan_memcpy, __real_memcpy)
HOOK_COPY(__wrap_memmove, __real_memmove) HOOK_COPY(__tsan_memmove, __real_memmove)
