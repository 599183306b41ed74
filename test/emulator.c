/* emulator.c - threads, blocks and launches of emulator.h. A thread is a fiber: a stack of its own. Where there are no
 * instructions for it here it is entered by makecontext, and then left and entered again by _longjmp, which asks nothing of
 * the system, but is slower, and many times slower under AddressSanitizer, which looks at each. */
#define _GNU_SOURCE
#include "emulator_parts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#ifdef __x86_64__
typedef void *jump;
#else
typedef jmp_buf jump;
#endif

enum { WARP = 32, MOST_THREADS = EMULATOR_THREADS };

dim3 threadIdx, blockIdx, blockDim, gridDim;
struct emulator_running emulator_running = { .thread = -1 };

/* ---- faults ---- */

static char words[512];        /* of the first one; empty: none */

const char *emulator_fault(void)
{
    static char told[sizeof words];
    if (!words[0]) return NULL;
    memcpy(told, words, sizeof told);
    words[0] = 0;
    cudaGetLastError();
    return told;
}

/* ---- threads ---- */

enum state { READY, AT_BARRIER, AT_WARP, ENDED };
enum operation { SHUFFLE, SHUFFLE_XOR, SHUFFLE_DOUBLE, MMA };
static const char *const operation_names[] = { "a shuffle", "an xor shuffle", "an xor shuffle of doubles", "an mma" };

struct fiber {
    int entered;                /* its stack has a thread on it, which waits at `at` */
    jump at;
    enum state state;
    enum operation operation;   /* AT_WARP: in which */
    unsigned turn;              /* which of the two slots it uses next */
    const char *file;           /* AT_BARRIER: at which */
    int line;
};

/* What a lane shows to the others. Two slots by turns: when a lane comes to its next operation all have read this one. */
struct slot { float f; int i; double d; unsigned words[6]; float sums[4]; };

static struct fiber fibers[MOST_THREADS];
static struct slot slots[2][MOST_THREADS];
static unsigned char *stacks;
static jump scheduler;

static struct {
    int threads, failed;
    unsigned number;            /* of the launch: decides the order */
} launch;

static void fiber_main(void);

#ifdef __x86_64__
/* Saves what a called function must keep, and the stack's place in *from; then goes on where `to` was saved. */
void emulator_switch(void **from, void *to);
__asm__(".text\n.hidden emulator_switch\n.globl emulator_switch\nemulator_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void to_scheduler(struct fiber *f) { emulator_switch(&f->at, scheduler); }

static void to_fiber(struct fiber *f, int fresh)
{
    void **top = (void **)(void *)(emulator_running.stack + EMULATOR_STACK) - 4;
    if (fresh) {
        union { void (*call)(void); void *address; } start = { fiber_main };
        *top = start.address;
        f->at = top - 6;
    }
    emulator_switch(&scheduler, f->at);
}
#else
static void to_scheduler(struct fiber *f) { if (!_setjmp(f->at)) _longjmp(scheduler, 1); }

static void to_fiber(struct fiber *f, int fresh)
{
    static ucontext_t context;
    if (fresh) {
        getcontext(&context);
        context.uc_stack.ss_sp = emulator_running.stack;
        context.uc_stack.ss_size = EMULATOR_STACK;
        context.uc_link = NULL;
        makecontext(&context, fiber_main, 0);
    }
    if (_setjmp(scheduler)) return;
    if (fresh) setcontext(&context);
    _longjmp(f->at, 1);
}
#endif

/* Back to the scheduler; comes back when it is this thread's turn again. */
static void leave(void) { to_scheduler(&fibers[emulator_running.thread]); }

/* A fiber never ends: it waits for the next block. */
static void fiber_main(void)
{
    for (;;) {
        emulator_running.kernel->thread(emulator_running.kernel->arguments);
        fibers[emulator_running.thread].state = ENDED;
        leave();
    }
}

static void enter(int t)
{
    int fresh = !fibers[t].entered;
    emulator_running.thread = t;
    emulator_running.stack = stacks + (size_t)t * EMULATOR_STACK;
    threadIdx.x = (unsigned)t;
    fibers[t].entered = 1;
    to_fiber(&fibers[t], fresh);
}

void emulator_fail(cudaError_t error, const char *format, ...)
{
    char what[384];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    launch.failed = 1;
    emulator_launch_failed(error);
    if (!words[0]) {
        if (!emulator_running.kernel) snprintf(words, sizeof words, "%s", what);
        else snprintf(words, sizeof words, "%s, block %u,%u,%u of %u,%u,%u: %s", emulator_running.kernel->name, blockIdx.x, blockIdx.y,
                      blockIdx.z, gridDim.x, gridDim.y, gridDim.z, what);
        fprintf(stderr, "emulator: %s\n", words);
    }
    if (emulator_running.thread >= 0) leave();
}

void emulator_barrier(const char *file, int line)
{
    struct fiber *f = &fibers[emulator_running.thread];
    f->state = AT_BARRIER;
    f->file = file;
    f->line = line;
    leave();
}

/* The slot of this lane, to be filled before meet(). */
static struct slot *show(void)
{
    return &slots[fibers[emulator_running.thread].turn][emulator_running.thread];
}

/* Waits for the other lanes. Returns the 32 slots of the warp. */
static const struct slot *meet(enum operation operation)
{
    struct fiber *f = &fibers[emulator_running.thread];
    const struct slot *warp = &slots[f->turn][emulator_running.thread / WARP * WARP];
    f->turn ^= 1;
    f->state = AT_WARP;
    f->operation = operation;
    leave();
    return warp;
}

float shuffle_float(float v, int lane) { show()->f = v; return meet(SHUFFLE)[lane & 31].f; }
int shuffle_int(int v, int lane) { show()->i = v; return meet(SHUFFLE)[lane & 31].i; }
static int other(int mask) { return (emulator_running.thread ^ mask) & 31; }
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

static unsigned round_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (!(u & 0x7f800000u)) return u >> 16 & 0x8000u;
    if ((u & 0x7fffffffu) > 0x7f800000u) return u >> 16 | 64u;
    return (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}

unsigned pair_bf16(float low, float high) { return round_bf16(low) | round_bf16(high) << 16; }

/* The whole product, from what all lanes show, in the order of k; the layout is in device.cuh. */
static void multiply(struct slot *warp)
{
    float a[16][16], b[16][8], d[16][8];
    int lane, i, j, k;
    for (lane = 0; lane < WARP; lane++) {
        const struct slot *s = &warp[lane];
        int g = lane / 4, t = lane % 4;
        for (i = 0; i < 8; i++) a[g + 8 * (i / 2 % 2)][2 * t + 8 * (i / 4) + i % 2] = half_of(s->words[i / 2], i);
        for (i = 0; i < 4; i++) b[2 * t + 8 * (i / 2) + i % 2][g] = half_of(s->words[4 + i / 2], i);
        for (i = 0; i < 4; i++) d[g + 8 * (i / 2)][2 * t + i % 2] = s->sums[i];
    }
    for (i = 0; i < 16; i++)
        for (k = 0; k < 16; k++)
            for (j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (lane = 0; lane < WARP; lane++)
        for (i = 0; i < 4; i++) warp[lane].sums[i] = d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
}

void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2])
{
    struct slot *mine = show();
    memcpy(mine->words, a, 4 * sizeof *a);
    memcpy(mine->words + 4, b, 2 * sizeof *b);
    memcpy(mine->sums, d, sizeof mine->sums);
    meet(MMA);
    memcpy(d, mine->sums, sizeof mine->sums);
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
        emulator_running.thread = -1;
        if (launch.failed) return;
        for (i = 0, waiting = 0, odd = 0; i < lanes; i++) {
            waiting += fibers[first + i].state == AT_WARP;
            if (fibers[first + i].state != AT_WARP || fibers[first + i].operation != fibers[first].operation) odd = i;
        }
        if (waiting && (lanes < WARP || odd || waiting < lanes)) {
            for (i = 0; fibers[first + i].state != AT_WARP; i++) {}
            emulator_fail(cudaErrorLaunchFailure, "thread %d came to %s, thread %d did not (all 32 of a warp have to)", first + i,
                       operation_names[fibers[first + i].operation], lanes < WARP ? first + lanes : first + odd);
            return;
        }
        if (waiting && fibers[first].operation == MMA) multiply(&slots[fibers[first].turn ^ 1][first]);
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
            emulator_fail(cudaErrorLaunchFailure, "thread %d waits at the barrier in %s:%d, thread %d has ended", at == f ? t : 0,
                       at->file, at->line, at == f ? 0 : t);
        else if (f->state == AT_BARRIER && (f->line != first->line || f->file != first->file))
            emulator_fail(cudaErrorLaunchFailure, "thread 0 waits at the barrier in %s:%d, thread %d at the one in %s:%d", first->file,
                       first->line, t, f->file, f->line);
        if (launch.failed) return 0;
    }
    return first->state == AT_BARRIER;
}

static void run_block(void)
{
    int warps = (launch.threads + WARP - 1) / WARP, i, t;
    emulator_running.block = ++emulator_running.now;
    for (t = 0; t < launch.threads; t++) {
        fibers[t].state = READY;
        fibers[t].turn = 0;
    }
    for (;;) {
        for (i = 0; i < warps && !launch.failed; i++) run_warp(in_order(i, warps) * WARP);
        if (launch.failed || !check_barrier()) return;
        emulator_running.now++;
        for (t = 0; t < launch.threads; t++) fibers[t].state = READY;
    }
}

/* ---- launches ---- */

static int launch_allowed(dim3 grid, int threads)
{
    return threads >= 1 && threads <= MOST_THREADS && grid.x && grid.y && grid.z && grid.x <= 0x7fffffffu && grid.y <= 65535
        && grid.z <= 65535;
}

static void run_blocks(unsigned long long blocks)
{
    unsigned long long i;
    for (i = 0; i < blocks && !launch.failed; i++) {
        unsigned long long b = launch.number % 2 ? blocks - 1 - i : i;
        blockIdx.x = (unsigned)(b % gridDim.x);
        blockIdx.y = (unsigned)(b / gridDim.x % gridDim.y);
        blockIdx.z = (unsigned)(b / gridDim.x / gridDim.y);
        if (emulator_running.shared) memset(emulator_running.kernel->shared, 0xff, emulator_running.shared);
        run_block();
    }
}

static void stacks_new(void)
{
    void *p = mmap(NULL, (size_t)MOST_THREADS * EMULATOR_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    stacks = p;
}

void emulator_launch(const struct emulator_kernel *kernel, dim3 grid, int threads)
{
    struct emulator_running *r = &emulator_running;
    int t;
    if (!stacks) stacks_new();
    r->kernel = kernel;
    r->shared_start = kernel->shared;
    r->shared = (size_t)(kernel->shared_end - kernel->shared);
    r->launch = ++r->now;
    gridDim = grid;
    memset(&blockIdx, 0, sizeof blockIdx);
    blockDim = threadIdx = blockIdx;
    blockDim.x = (unsigned)threads;
    blockDim.y = blockDim.z = 1;
    launch.threads = threads;
    launch.failed = 0;
    if (emulator_begin() || !launch_allowed(grid, threads) || r->shared > EMULATOR_SHARED_BYTES) {
        emulator_fail(cudaErrorInvalidConfiguration, "a launch of %u x %u x %u blocks of %d threads, %zu bytes of shared memory",
                      grid.x, grid.y, grid.z, threads, r->shared);
    } else {
        emulator_open();
        run_blocks((unsigned long long)grid.x * grid.y * grid.z);
        emulator_close();
        for (t = 0; launch.failed && t < MOST_THREADS; t++) fibers[t].entered = 0;      /* what they were in is over */
    }
    r->thread = -1;
    r->kernel = NULL;
    launch.number++;
}
