/* backend.c - a backend in a shared object: one operation, for weights of one type. What is empty or answers
 * KERNEL_UNSUPPORTED is filled from the tables of the program (kernels.h), so it can be tried, and trained with, at once:
 *
 *     cc -std=c99 -O2 -fPIC -shared -I. -o backend.so docs/backend.c
 *     lora verify --backend ./backend.so --op matmul
 *     lora train --backend ./backend.so ... */
#include "kernels.h"

#include <string.h>

/* out[N,O] = scale * x[N,I] W^T + bias, or += */
static int matmul(struct kernel_ctx *c, buf *out_, const buf *x_, const struct weight *w, const buf *bias_,
                  double scale, int accumulate, int N)
{
    float *out = (float *)out_, value;
    const float *x = (const float *)x_, *bias = (const float *)bias_;
    size_t I = (size_t)w->cols, O = (size_t)w->rows, n, o, i;
    (void)c;
    if (w->type != TYPE_F32 || w->head_rows) return KERNEL_UNSUPPORTED;
    for (n = 0; n < (size_t)N; n++)
        for (o = 0; o < O; o++) {
            float sum = 0;
            for (i = 0; i < I; i++) {       /* as it lies in the file: at any address */
                memcpy(&value, (const char *)w->data + 4 * (w->offset + o * I + i), 4);
                sum += x[n * I + i] * value;
            }
            sum = (float)scale * sum + (bias ? bias[o] : 0);
            out[n * O + o] = accumulate ? out[n * O + o] + sum : sum;
        }
    return 0;
}

static const struct kernels table = {
    .abi = KERNELS_ABI, .bytes = sizeof(struct kernels), .name = "example", .about = "a product by its definition",
    .elem = sizeof(float), .matmul = matmul
};

const struct kernels *lora_kernels(void) { return &table; }
