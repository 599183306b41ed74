/* test_emulator.c - the emulator of CUDA: right kernels give what they should, wrong ones are found. */
#include "test.h"

#ifndef HAVE_EMULATOR
int main(void)
{
    test_skip("the emulator of CUDA", "needs ELF and ucontext.h");
    return test_end();
}
#else
#include "../weight.h"
#include "emulator.h"
#include "emulator_kernels.h"

#include <sys/wait.h>
#include <unistd.h>

enum { MEMORY = 1 << 20 };

/* A copy of x[bytes] on the device; NULL: all 0. */
static void *device(const void *x, size_t bytes)
{
    void *p = NULL;
    CHECK(!cudaMalloc(&p, bytes) && p);
    CHECK(!(x ? cudaMemcpy(p, x, bytes, cudaMemcpyHostToDevice) : cudaMemset(p, 0, bytes)));
    return p;
}

static void host(void *x, const void *p, size_t bytes) { CHECK(!cudaMemcpy(x, p, bytes, cudaMemcpyDeviceToHost)); }

static float number(int i) { return (float)(i * 37 % 101 - 50) / 8; }

static void no_fault(void)
{
    const char *fault = emulator_fault();
    CHECK(!fault, "%s", fault ? fault : "");
}

static void test_sums(int blocks, int threads)
{
    float x[2048], floats[8], most[8];
    double doubles[8];
    int n = blocks * threads - 7, i, b;
    for (i = 0; i < n; i++) x[i] = number(i);
    {
        float *dx = device(x, sizeof x), *df = device(NULL, sizeof floats), *dm = device(NULL, sizeof most);
        double *dd = device(NULL, sizeof doubles);
        run_sums(df, dd, dm, dx, n, blocks, threads);
        host(floats, df, sizeof floats);
        host(doubles, dd, sizeof doubles);
        host(most, dm, sizeof most);
        CHECK(!cudaFree(dx) && !cudaFree(df) && !cudaFree(dd) && !cudaFree(dm));
    }
    for (b = 0; b < blocks; b++) {
        double sum = 0, largest = 0;
        for (i = b * threads; i < (b + 1) * threads && i < n; i++) {
            sum += x[i];
            if (x[i] > largest) largest = x[i];
        }
        CHECK(floats[b] == sum && doubles[b] == sum && most[b] == largest, "block %d: %g %g, not %g; %g, not %g", b, floats[b],
              doubles[b], sum, most[b], largest);
    }
    no_fault();
}

static void test_shuffles(void)
{
    float x[96], turned[96];
    int pairs[96], t;
    for (t = 0; t < 96; t++) x[t] = number(t);
    {
        float *dx = device(x, sizeof x), *dt = device(NULL, sizeof turned);
        int *dp = device(NULL, sizeof pairs);
        run_shuffles(dt, dp, dx, 96);
        host(turned, dt, sizeof turned);
        host(pairs, dp, sizeof pairs);
        CHECK(!cudaFree(dx) && !cudaFree(dt) && !cudaFree(dp));
    }
    for (t = 0; t < 96; t++)
        CHECK(turned[t] == x[t / 32 * 32 + (t + 5) % 32] && pairs[t] == (t ^ 3) + 1000 * (t / 32 * 32), "thread %d", t);
    no_fault();
}

static void test_mma(void)
{
    float a[256], b[128], d[128], want[128];
    unsigned short ha[256], hb[128];
    int i, j, k;
    for (i = 0; i < 256; i++) a[i] = bf16_to_f32(ha[i] = f32_to_bf16(number(i)));
    for (i = 0; i < 128; i++) b[i] = bf16_to_f32(hb[i] = f32_to_bf16(number(3 * i + 1)));
    for (i = 0; i < 128; i++) d[i] = want[i] = number(5 * i);
    for (i = 0; i < 16; i++)
        for (j = 0; j < 8; j++)
            for (k = 0; k < 16; k++) want[i * 8 + j] += a[i * 16 + k] * b[k * 8 + j];
    {
        unsigned short *da = device(ha, sizeof ha), *db = device(hb, sizeof hb);
        float *dd = device(d, sizeof d);
        run_mma(dd, da, db);
        host(d, dd, sizeof d);
        CHECK(!cudaFree(da) && !cudaFree(db) && !cudaFree(dd));
    }
    for (i = 0; i < 128; i++) CHECK(d[i] == want[i], "%d: %g, not %g", i, d[i], want[i]);
    no_fault();
}

static void test_turn(void)
{
    unsigned char x[3 * BYTES], out[3 * BYTES];
    struct pieces p;
    int i;
    for (i = 0; i < 3 * BYTES; i++) x[i] = (unsigned char)(i * 7);
    p.out = device(NULL, sizeof out);
    p.x = device(x, sizeof x);
    p.n = 3;
    run_turn(p);
    host(out, p.out, sizeof out);
    for (i = 0; i < 3 * BYTES; i++) CHECK(out[i] == x[i / BYTES * BYTES + BYTES - 1 - i % BYTES], "byte %d", i);
    CHECK(!cudaFree(p.out) && !cudaFree((void *)(size_t)p.x));
    no_fault();
}

/* Each launch runs each thread once, and the next one in another order. */
static void test_order(void)
{
    int order[2][192], i, j, launch, seen[192];
    int *p = device(NULL, sizeof order[0]);
    memset(order, 0, sizeof order);
    for (launch = 0; launch < 6; launch++) {
        int *now = order[launch % 2], same = 1;
        run_order(p, 2, 96);
        host(now, p, sizeof order[0]);
        memset(seen, 0, sizeof seen);
        for (i = 0; i < 192; i++) if (now[i] >= 0 && now[i] < 192) seen[now[i]]++;
        for (i = j = 0; i < 192; i++) j += seen[i] == 1;
        for (i = 0; i < 192; i++) same &= now[i] == order[1 - launch % 2][i];
        CHECK(j == 192 && !same, "launch %d", launch);
    }
    CHECK(!cudaFree(p));
    no_fault();
}

static const struct { enum wrong wrong; const char *name, *words; int accesses; } faults[] = {
    { NO_BARRIER, "a barrier left out", "this block did not write there", 1 },
    { NO_SECOND_BARRIER, "a barrier after reading left out", "there since the last barrier", 1 },
    { ONE_BYTE, "two threads write one byte", "wrote there since the last barrier", 1 },
    { SOME_AT_BARRIER, "a barrier that some threads reach", "waits at the barrier", 0 },
    { TWO_BARRIERS, "threads at two barriers", "thread 1 at the one in", 0 },
    { HALF_A_WARP, "a shuffle that half a warp reaches", "came to an xor shuffle, thread", 0 },
    { PAST_THE_END, "a tail without its guard", "that is no allocation's", 1 },
    { BEFORE_THE_START, "an index of -1", "that is no allocation's", 1 },
    { NOT_WRITTEN, "shared memory read before it is written", "this block did not write there", 1 },
    { BLOCKS_WRITE, "two blocks write the same", "another block of the launch wrote there", 1 },
    { BLOCKS_READ, "a block reads what another writes", "another block of the launch", 1 },
    { THREADS_WRITE, "two threads write the same", "wrote there since the last barrier", 1 },
    { NO_ADDRESS, "memory that is not the device's", "that is not the device's memory", 1 },
    { TOO_MANY_THREADS, "more threads than a block can have", "blocks of 1025 threads", 0 }
};

/* The first fault's words, an error that stays until it is asked for, and a device that then goes on. */
static void test_fault(int i)
{
    float x[2 * BYTES] = { 0 }, *dx, *out;
    const char *words;
    int again;
#ifndef HAVE_ACCESSES
    if (faults[i].accesses) {
        test_skip(faults[i].name, "the compiler has no -fsanitize=thread");
        return;
    }
#endif
    test_begin(faults[i].name);
    for (again = 0; again < 3; again++) {       /* in each order */
        dx = device(x, sizeof x);
        out = device(NULL, sizeof x);
        run_wrong(faults[i].wrong, out, dx);
        CHECK(cudaPeekAtLastError() && cudaMemcpy(x, out, sizeof x, cudaMemcpyDeviceToHost) && cudaDeviceSynchronize());
        words = emulator_fault();
        CHECK(words && strstr(words, faults[i].words), "%s", words ? words : "nothing was found");
        CHECK(!cudaPeekAtLastError() && !cudaDeviceSynchronize());
        CHECK(!cudaFree(dx) && !cudaFree(out));
        no_fault();
    }
}

static void test_memory(void)
{
    void *p = NULL, *q = NULL, *all = NULL;
    size_t available, total;
    float x = 1;
    CHECK(!cudaMemGetInfo(&available, &total) && total == MEMORY && available == MEMORY);
    CHECK(cudaMalloc(&p, MEMORY + 1) == cudaErrorMemoryAllocation && !p);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
    CHECK(!cudaMalloc(&p, 1000) && !cudaMalloc(&q, 1000));
    CHECK(cudaMalloc(&all, MEMORY - 1000) == cudaErrorMemoryAllocation && cudaGetLastError());
    CHECK(cudaMemcpy((char *)p + 999, &x, sizeof x, cudaMemcpyHostToDevice) == cudaErrorInvalidValue && cudaGetLastError());
    CHECK(cudaMemcpy(&x, &x, sizeof x, cudaMemcpyHostToDevice) == cudaErrorInvalidValue && cudaGetLastError());
    CHECK(cudaMemset((char *)q + 1, 0, 1000) == cudaErrorInvalidValue && cudaGetLastError());
    CHECK(!cudaFree(p) && cudaFree(p) == cudaErrorInvalidValue && cudaGetLastError());
    CHECK(!cudaFree(q) && !cudaMalloc(&all, MEMORY) && !cudaFree(all));
    no_fault();
}

/* How a child that does that ends: 0, or its signal. */
static int in_child(void (*act)(void))
{
    int status = 0;
    pid_t child = fork();
    if (!child) {
        act();
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

static volatile float taken;

static void look(void)
{
    const float *p = device(NULL, 4);
    taken = *p;
}

static void without(void)
{
    int n = 1;
    void *p;
    setenv("EMULATOR_DEVICES", "0", 1);
    if (cudaGetDeviceCount(&n) != cudaErrorNoDevice || n || cudaMalloc(&p, 4) != cudaErrorNoDevice) _exit(1);
}

int main(void)
{
    size_t i;
    char size[32];
    snprintf(size, sizeof size, "%d", MEMORY);
    setenv("EMULATOR_MEMORY", size, 1);
    test_begin("a machine without a device");
    CHECK(!in_child(without));
    test_begin("sums and the largest of blocks");
    test_sums(1, 32);
    test_sums(8, 256);
    test_sums(2, 1024);
    test_begin("shuffles");
    test_shuffles();
    test_begin("mma against loops");
    test_mma();
    test_begin("bytes through shared memory, with barriers");
    test_turn();
    test_begin("another order in each launch");
    test_order();
    for (i = 0; i < sizeof faults / sizeof *faults; i++) test_fault((int)i);
    test_begin("the device's memory and the runtime's errors");
    test_memory();
    test_begin("host code that looks into the device's memory");
    CHECK(in_child(look));
    return test_end();
}
#endif
