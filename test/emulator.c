/* emulator.c - blocks, threads and memory of emulator.h. A thread is a fiber: a stack of its own, entered by
 * makecontext and then left and entered again by _longjmp, which asks nothing of the system (but under
 * AddressSanitizer, which follows swapcontext alone). */
#define _GNU_SOURCE
#include "emulator.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { WARP = 32, MOST_THREADS = 1024, STACK = 1 << 16, GUARD = 256, SHARED_MOST = 48 * 1024 };

dim3 threadIdx, blockIdx, blockDim, gridDim;

/* ---- faults ---- */

static struct {
    int found, told;            /* told: cudaGetLastError has said it */
    cudaError_t error;
    char words[512];
} fault;

const char *emulator_fault(void)
{
    static char words[sizeof fault.words];
    if (!fault.found) return NULL;
    memcpy(words, fault.words, sizeof words);
    memset(&fault, 0, sizeof fault);
    return words;
}

/* ---- threads ---- */

enum state { READY, AT_BARRIER, AT_WARP, ENDED };
enum operation { SHUFFLE, SHUFFLE_XOR, SHUFFLE_DOUBLE, MMA };
static const char *const operation_names[] = { "a shuffle", "an xor shuffle", "an xor shuffle of doubles", "an mma" };

struct fiber {
    int entered;                /* its stack has a thread on it, which waits at `at` */
    jmp_buf at;
    ucontext_t context;
    enum state state;
    enum operation operation;   /* AT_WARP: in which */
    unsigned turn;              /* which of the two slots it uses next */
    const char *file;           /* AT_BARRIER: at which */
    int line;
};

/* What a lane shows to the others. Two slots by turns: when a lane comes to its next operation all have read this one. */
struct slot { float f; int i; double d; unsigned words[6]; };

static struct fiber fibers[MOST_THREADS];
static struct slot slots[2][MOST_THREADS];
static unsigned char *stacks;
#ifdef EMULATOR_SWAPCONTEXT
static ucontext_t scheduler;
#else
static jmp_buf scheduler;
#endif

static struct {
    const char *kernel;
    emulator_thread *thread;
    const void *arguments;
    size_t bytes;
    int threads, current;       /* current: the thread that runs, -1 outside of launches */
    int failed;
    unsigned number;            /* of the launch: decides the order */
} launch = { NULL, NULL, NULL, 0, 0, -1, 0, 0 };

/* Back to the scheduler; comes back when it is this thread's turn again. */
static void leave(void)
{
    struct fiber *f = &fibers[launch.current];
#ifdef EMULATOR_SWAPCONTEXT
    swapcontext(&f->context, &scheduler);
#else
    if (!_setjmp(f->at)) _longjmp(scheduler, 1);
#endif
}

/* A fiber never ends: it waits for the next block. */
static void fiber_main(void)
{
    for (;;) {
        launch.thread(launch.arguments);
        fibers[launch.current].state = ENDED;
        leave();
    }
}

static void enter(int t)
{
    struct fiber *f = &fibers[t];
    int fresh = !f->entered;
    launch.current = t;
    threadIdx.x = (unsigned)t;
    if (fresh) {
        getcontext(&f->context);
        f->context.uc_stack.ss_sp = stacks + (size_t)t * STACK;
        f->context.uc_stack.ss_size = STACK;
        f->context.uc_link = NULL;
        makecontext(&f->context, fiber_main, 0);
        f->entered = 1;
    }
#ifdef EMULATOR_SWAPCONTEXT
    swapcontext(&scheduler, &f->context);
#else
    if (_setjmp(scheduler)) return;
    if (fresh) setcontext(&f->context);
    _longjmp(f->at, 1);
#endif
}

/* The first fault of the launch ends it: a thread that finds one does not come back from here. */
static void fault_here(cudaError_t error, const char *format, ...)
{
    char what[320];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    launch.failed = 1;
    if (!fault.found) {
        fault.found = 1;
        fault.error = error;
        snprintf(fault.words, sizeof fault.words, "%s: block %u,%u,%u of %u,%u,%u: %s",
                 launch.kernel ? launch.kernel : "outside of a kernel", blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x, gridDim.y, gridDim.z, what);
        fprintf(stderr, "emulator: %s\n", fault.words);
    }
    if (launch.current >= 0) leave();
}

void emulator_barrier(const char *file, int line)
{
    struct fiber *f = &fibers[launch.current];
    f->state = AT_BARRIER;
    f->file = file;
    f->line = line;
    leave();
}

/* The slot of this lane, to be filled before meet(). */
static struct slot *show(void)
{
    return &slots[fibers[launch.current].turn][launch.current];
}

/* Waits for the other lanes. Returns the 32 slots of the warp. */
static const struct slot *meet(enum operation operation)
{
    struct fiber *f = &fibers[launch.current];
    const struct slot *warp = &slots[f->turn][launch.current / WARP * WARP];
    f->turn ^= 1;
    f->state = AT_WARP;
    f->operation = operation;
    leave();
    return warp;
}

float shuffle_float(float v, int lane) { show()->f = v; return meet(SHUFFLE)[lane & 31].f; }
int shuffle_int(int v, int lane) { show()->i = v; return meet(SHUFFLE)[lane & 31].i; }
static int other(int mask) { return (launch.current ^ mask) & 31; }
float shuffle_xor_float(float v, int mask) { show()->f = v; return meet(SHUFFLE_XOR)[other(mask)].f; }
int shuffle_xor_int(int v, int mask) { show()->i = v; return meet(SHUFFLE_XOR)[other(mask)].i; }
double shuffle_xor_double(double v, int mask) { show()->d = v; return meet(SHUFFLE_DOUBLE)[other(mask)].d; }

/* Half k & 1 of a word holds column (of b: row) k. */
static float half_of(unsigned word, int k)
{
    union { unsigned u; float f; } both;
    both.u = k & 1 ? word & 0xffff0000u : word << 16;
    return both.f;
}

/* Each lane makes its own four of d, in the order of k; the layout is in device.cuh. */
void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2])
{
    const struct slot *warp;
    int g = launch.current % WARP / 4, t = launch.current % 4, i, k;
    memcpy(show()->words, a, 4 * sizeof *a);
    memcpy(show()->words + 4, b, 2 * sizeof *b);
    warp = meet(MMA);
    for (i = 0; i < 4; i++)
        for (k = 0; k < 16; k++) {
            const struct slot *of_a = &warp[g * 4 + k % 8 / 2], *of_b = &warp[(2 * t + i % 2) * 4 + k % 8 / 2];
            d[i] += half_of(of_a->words[k / 8 * 2 + i / 2], k) * half_of(of_b->words[4 + k / 8], k);
        }
}

/* ---- a block ---- */

/* The i-th of n in this launch's order: up, down, or by steps that share no factor with n. */
static int in_order(int i, int n)
{
    static const int steps[] = { 7919, 104729, 31, 1 };
    int s = 0;
    if (launch.number % 3 == 0) return i;
    if (launch.number % 3 == 1) return n - 1 - i;
    while (steps[s] != 1 && n % steps[s] == 0) s++;
    return (int)((long long)i * steps[s] % n);
}

/* Runs the threads of a warp until each waits at a barrier or has ended. */
static void run_warp(int first)
{
    int lanes = launch.threads - first < WARP ? launch.threads - first : WARP, i, waiting, odd;
    do {
        for (i = 0; i < lanes && !launch.failed; i++) {
            int t = first + in_order(i, lanes);
            if (fibers[t].state == READY) enter(t);
        }
        launch.current = -1;
        if (launch.failed) return;
        for (i = 0, waiting = 0, odd = 0; i < lanes; i++) {
            waiting += fibers[first + i].state == AT_WARP;
            if (fibers[first + i].state != AT_WARP || fibers[first + i].operation != fibers[first].operation) odd = i;
        }
        if (waiting && (lanes < WARP || odd || waiting < lanes)) {
            for (i = 0; fibers[first + i].state != AT_WARP; i++) {}
            fault_here(cudaErrorLaunchFailure, "thread %d came to %s, thread %d did not (all 32 of a warp have to)", first + i,
                       operation_names[fibers[first + i].operation], lanes < WARP ? first + lanes : first + odd);
            return;
        }
        for (i = 0; waiting && i < lanes; i++) fibers[first + i].state = READY;
    } while (waiting);
}

/* All at the same barrier: 1. All ended: 0. */
static int check_barrier(void)
{
    const struct fiber *first = &fibers[0];
    int t;
    for (t = 1; t < launch.threads; t++) {
        const struct fiber *f = &fibers[t], *at = first->state == AT_BARRIER ? first : f;
        if (f->state != first->state)
            fault_here(cudaErrorLaunchFailure, "thread %d waits at the barrier in %s:%d, thread %d has ended", at == f ? t : 0,
                       at->file, at->line, at == f ? 0 : t);
        else if (f->state == AT_BARRIER && (f->line != first->line || f->file != first->file))
            fault_here(cudaErrorLaunchFailure, "thread 0 waits at the barrier in %s:%d, thread %d at the one in %s:%d", first->file,
                       first->line, t, f->file, f->line);
        if (launch.failed) return 0;
    }
    return first->state == AT_BARRIER;
}

static void run_block(void)
{
    int warps = (launch.threads + WARP - 1) / WARP, i, t;
    for (t = 0; t < launch.threads; t++) {
        fibers[t].state = READY;
        fibers[t].turn = 0;
    }
    for (;;) {
        for (i = 0; i < warps && !launch.failed; i++) run_warp(in_order(i, warps) * WARP);
        if (launch.failed || !check_barrier()) return;
        for (t = 0; t < launch.threads; t++) fibers[t].state = READY;
    }
}

/* ---- the device's memory ---- one reserved piece, closed but for launches and copies. */

enum { MOST_ALLOCATIONS = 4096 };
static struct {
    unsigned char *base;
    size_t size, used, high;    /* what is there, what is given out, how far it was ever used */
    int absent;
    struct allocation { size_t start, bytes; } all[MOST_ALLOCATIONS];       /* ascending */
    int n;
} memory;

static size_t rounded(size_t n, size_t to) { return (n + to - 1) / to * to; }

static cudaError_t begin(void)
{
    const char *size = getenv("EMULATOR_MEMORY"), *devices = getenv("EMULATOR_DEVICES");
    if (!memory.base && !memory.absent) {
        memory.absent = devices && !strcmp(devices, "0");
        memory.size = size ? (size_t)strtoull(size, NULL, 10) : (size_t)1 << 30;
        if (!memory.absent) {
            void *p = mmap(NULL, 2 * memory.size + (1 << 20), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            memory.base = p == MAP_FAILED ? NULL : p;
        }
    }
    return memory.base ? cudaSuccess : cudaErrorNoDevice;
}

/* Pages that threads may touch; and none. */
static void open_memory(void) { if (memory.high) mprotect(memory.base, memory.high, PROT_READ | PROT_WRITE); }
static void close_memory(void) { if (memory.high) mprotect(memory.base, memory.high, PROT_NONE); }

static const struct allocation *allocation_of(const void *p, size_t n)
{
    int i;
    for (i = 0; i < memory.n; i++) {
        const struct allocation *a = &memory.all[i];
        const unsigned char *start = memory.base + a->start;
        if ((const unsigned char *)p >= start && (const unsigned char *)p <= start + a->bytes)
            return n <= a->bytes - (size_t)((const unsigned char *)p - start) ? a : NULL;
    }
    return NULL;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    struct allocation a = { GUARD, bytes };
    size_t end = 0, page = 65536;
    int i;
    *p = NULL;
    if (begin()) return cudaErrorNoDevice;
    if (!bytes) return cudaSuccess;
    if (bytes > memory.size - memory.used || memory.n == MOST_ALLOCATIONS) return cudaErrorMemoryAllocation;
    for (i = 0; i < memory.n && memory.all[i].start < a.start + rounded(bytes, GUARD) + GUARD; i++)
        a.start = memory.all[i].start + rounded(memory.all[i].bytes, GUARD) + GUARD;
    end = a.start + rounded(bytes, GUARD) + GUARD;
    if (end > 2 * memory.size + (1 << 20)) return cudaErrorMemoryAllocation;
    memmove(&memory.all[i + 1], &memory.all[i], (size_t)(memory.n - i) * sizeof a);
    memory.all[i] = a;
    memory.n++;
    memory.used += bytes;
    if (memory.high < end) memory.high = rounded(end, page);
    open_memory();
    memset(memory.base + a.start - GUARD, 0xff, end - a.start + GUARD);
    close_memory();
    *p = memory.base + a.start;
    return cudaSuccess;
}

/* Were the zones around an allocation left alone? */
static void check_guards(const struct allocation *a)
{
    const unsigned char *p = memory.base + a->start;
    size_t end = rounded(a->bytes, GUARD) + GUARD, i;
    for (i = 1; i <= GUARD && p[-(ptrdiff_t)i] == 0xff; i++) {}
    if (i <= GUARD) fault_here(cudaErrorLaunchFailure, "byte %zu before an allocation of %zu bytes was written", i, a->bytes);
    for (i = a->bytes; i < end && p[i] == 0xff; i++) {}
    if (i < end) fault_here(cudaErrorLaunchFailure, "byte %zu of an allocation of %zu bytes was written", i, a->bytes);
}

cudaError_t cudaFree(void *p)
{
    const struct allocation *a = p ? allocation_of(p, 0) : NULL;
    if (!p) return cudaSuccess;
    if (!a || memory.base + a->start != p) return cudaErrorInvalidValue;
    open_memory();
    check_guards(a);
    memset(memory.base + a->start, 0xff, a->bytes);
    close_memory();
    memory.used -= a->bytes;
    memory.n--;
    memmove(&memory.all[a - memory.all], a + 1, (size_t)(&memory.all[memory.n] - a) * sizeof *a);
    return cudaSuccess;
}

/* What a call that waits for the device says. */
static cudaError_t after_launches(void) { return fault.found && !fault.told ? fault.error : cudaSuccess; }

cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind)
{
    int to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    int from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (begin()) return cudaErrorNoDevice;
    if (!n) return after_launches();
    if (to == !allocation_of(dst, n) || from == !allocation_of(src, n)) return cudaErrorInvalidValue;
    open_memory();
    memmove(dst, src, n);
    close_memory();
    return after_launches();
}

cudaError_t cudaMemset(void *p, int byte, size_t n)
{
    if (begin()) return cudaErrorNoDevice;
    if (n && !allocation_of(p, n)) return cudaErrorInvalidValue;
    open_memory();
    memset(p, byte, n);
    close_memory();
    return after_launches();
}

/* ---- launches ---- */

extern unsigned char __start_emulator_shared[] __attribute__((weak)), __stop_emulator_shared[] __attribute__((weak));

static int launch_check(dim3 grid, int threads)
{
    return threads < 1 || threads > MOST_THREADS || grid.x < 1 || grid.y < 1 || grid.z < 1
        || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ? -1 : 0;
}

void emulator_launch(const char *kernel, emulator_thread *thread, const void *arguments, size_t bytes, dim3 grid, int threads)
{
    size_t shared = (size_t)(__stop_emulator_shared - __start_emulator_shared);
    unsigned long long blocks = (unsigned long long)grid.x * grid.y * grid.z, i;
    int t;
    launch.kernel = kernel;
    gridDim = grid;
    memset(&blockIdx, 0, sizeof blockIdx);
    if (begin() || launch_check(grid, threads)) {
        fault_here(cudaErrorInvalidConfiguration, "a launch of %u x %u x %u blocks of %d threads", grid.x, grid.y, grid.z, threads);
        launch.kernel = NULL;
        launch.failed = 0;
        return;
    }
    if (!stacks) {
        void *p = mmap(NULL, (size_t)MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) abort();
        stacks = p;
    }
    launch.thread = thread;
    launch.arguments = arguments;
    launch.bytes = bytes;
    launch.threads = threads;
    launch.failed = 0;
    blockDim.x = (unsigned)threads;
    blockDim.y = blockDim.z = 1;
    open_memory();
    for (i = 0; i < blocks && !launch.failed; i++) {
        unsigned long long b = launch.number % 2 ? blocks - 1 - i : i;
        blockIdx.x = (unsigned)(b % grid.x);
        blockIdx.y = (unsigned)(b / grid.x % grid.y);
        blockIdx.z = (unsigned)(b / grid.x / grid.y);
        if (shared) memset(__start_emulator_shared, 0xff, shared);
        run_block();
    }
    close_memory();
    for (t = 0; launch.failed && t < MOST_THREADS; t++) fibers[t].entered = 0;      /* what they were in is over */
    launch.current = -1;
    launch.failed = 0;
    launch.kernel = NULL;
    launch.number++;
}

/* ---- the rest of the runtime ---- */

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    if (begin()) return cudaErrorNoDevice;
    *total = memory.size;
    *available = memory.size - memory.used;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = begin() ? 0 : 1;
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaSetDevice(int device) { return begin() ? cudaErrorNoDevice : device ? cudaErrorInvalidDevice : cudaSuccess; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    cudaError_t error = cudaSetDevice(device);
    memset(p, 0, sizeof *p);
    if (error) return error;
    snprintf(p->name, sizeof p->name, "emulator");
    p->totalGlobalMem = memory.size;
    p->sharedMemPerBlock = SHARED_MOST;
    p->major = 8;
    p->multiProcessorCount = 2;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr what, int device)
{
    *value = what == cudaDevAttrMultiProcessorCount ? 2 : what == cudaDevAttrComputeCapabilityMajor ? 8 : 0;
    return cudaSetDevice(device);
}

cudaError_t cudaDeviceSynchronize(void) { return after_launches(); }
cudaError_t cudaPeekAtLastError(void) { return after_launches(); }

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = after_launches();
    fault.told = fault.found;
    return error;
}

const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaSuccess ? "cudaSuccess" : error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
        : error == cudaErrorNoDevice ? "cudaErrorNoDevice" : error == cudaErrorInvalidDevice ? "cudaErrorInvalidDevice"
        : error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
        : error == cudaErrorLaunchFailure ? "cudaErrorLaunchFailure" : "cudaErrorInvalidValue";
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : error == cudaErrorMemoryAllocation ? "out of memory"
        : error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : error == cudaErrorInvalidDevice ? "invalid device ordinal"
        : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
        : error == cudaErrorLaunchFailure ? "unspecified launch failure" : "invalid argument";
}
