/* own_backend.c - the reference as a table with memory of its own, in a shared object: what the program does for one,
 * seen without a device. LACKS names an entry that it does not have; with OVER it stands over the reference, and with
 * UNDER below a table of the host's: both are to be refused. What the environment asks for:
 *     OWN_MEMORY=BYTES    so much is free
 *     OWN_SHUT            open() fails
 *     OWN_FAILS=N         the N-th product with a frozen weight fails, and it is said afterwards */
#include "../kernels_ref.c"

#include <stdio.h>
#include <stdlib.h>

static struct kernels own;
#ifdef UNDER
static struct kernels over;
#endif
static long products;

static size_t free_memory(void)
{
    const char *bytes = getenv("OWN_MEMORY");
    return bytes ? (size_t)strtoull(bytes, NULL, 10) : (size_t)1 << 30;
}

static int open_own(struct kernel_ctx *c) { return getenv("OWN_SHUT") ? -1 : kernels_ref.open(c); }

static int counted_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias,
                          double scale, int accumulate, int N)
{
    if (w->type != TYPE_REAL) products++;
    if (((uintptr_t)w->data | (w->q ? (uintptr_t)w->q->code | (uintptr_t)w->q->absmax | (uintptr_t)w->q->codes
                                      | (uintptr_t)w->q->map | (uintptr_t)w->q->nested : 0)) % 64 && w->type != TYPE_REAL)
        return KERNEL_UNSUPPORTED;      /* it is said to lie at multiples of 64 */
    return kernels_ref.matmul(c, out, x, w, bias, scale, accumulate, N);
}

static int failed(struct kernel_ctx *c, char *why, size_t n)
{
    const char *at = getenv("OWN_FAILS");
    (void)c;
    if (!at || products < atol(at)) return 0;
    snprintf(why, n, "the launch of product %s", at);
    return 1;
}

const struct kernels *lora_kernels(void)
{
    own = kernels_ref;
    own.name = "own";
    own.about = "the reference, as if its memory were not the host's";
    own.own_memory = 1;
    own.memory = free_memory;
    own.failed = failed;
    own.open = open_own;
    own.matmul = counted_matmul;
#ifdef LACKS
    own.LACKS = NULL;
#endif
#ifdef OVER
    own.below = &kernels_ref;
#endif
#ifdef UNDER
    over = kernels_ref;
    over.below = &own;
    return &over;
#endif
    return &own;
}
