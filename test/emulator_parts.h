/* emulator_parts.h - what emulator.c (threads, blocks, launches) and emulator_memory.c (the device's memory, the runtime,
 * the check of accesses) know of each other. */
#ifndef EMULATOR_PARTS_H
#define EMULATOR_PARTS_H

#include "emulator.h"

#include <stdint.h>

enum { EMULATOR_STACK = 1 << 16, EMULATOR_THREADS = 1024, EMULATOR_SHARED_BYTES = 48 * 1024 };

/* What runs now. */
struct emulator_running {
    int thread;                 /* -1: none, this is the host's code */
    unsigned char *stack;       /* of the thread */
    const struct emulator_kernel *kernel;
    unsigned char *shared_start;
    size_t shared;              /* bytes of its shared memory */
    /* Time: it goes on by one at each launch, block and barrier. What a block did since its last barrier has the time
     * `now`, what it did at all a time from `block` on, what other blocks of the launch did one from `launch` on. */
    uint32_t now, block, launch;
};
extern struct emulator_running emulator_running;

/* Keeps the first fault's words. In a thread it does not return: the launch is over. */
void emulator_fail(cudaError_t error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Is there a device? */
cudaError_t emulator_begin(void);
/* The device's memory may be touched, by threads and copies; or not. */
void emulator_open(void);
void emulator_close(void);
/* A launch failed: the runtime's calls are to say so. */
void emulator_launch_failed(cudaError_t error);

#endif
