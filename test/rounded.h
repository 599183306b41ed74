/* rounded.h - what --compute bf16 is held to: kernels_ref with the operands of its products rounded. */
#ifndef ROUNDED_H
#define ROUNDED_H

#include "../kernels.h"

#include <stdlib.h>
#include <string.h>

enum fault { NONE, SUMS_IN_BF16, TRUNCATED, REAL_TOO, FEW_TOO, TENTH_TERM };
static const char *const fault_names[] = {
    "nothing", "keeps its sums in bf16", "cuts instead of rounding", "rounds adapters too",
    "rounds few rows too", "leaves out a term"
};
static enum fault fault;

static float round_one(float x)
{
    return bf16_to_f32(fault == TRUNCATED ? (uint16_t)(bits_of(x) >> 16) : f32_to_bf16(x));
}

/* The weight as numbers [rows, cols], rounded: behind it, where `data` points. */
static float *rounded_weight(struct weight *out, const struct weight *w)
{
    size_t n = (size_t)w->rows * (size_t)w->cols, i;
    float *x = malloc((n + 1) * sizeof *x);
    int r;
    if (!x) abort();
    for (r = 0; r < w->rows; r++) {
        float *row = x + (size_t)r * (size_t)w->cols;
        if (w->type == TYPE_REAL) memcpy(row, (const float *)w->data + weight_element(w, r, 0), (size_t)w->cols * sizeof *row);
        else weight_decode(w, r, 0, w->cols, row);
    }
    for (i = 0; i < n; i++) x[i] = round_one(x[i]);
    if (fault == TENTH_TERM && w->cols > 9) for (r = 0; r < w->rows; r++) x[(size_t)r * (size_t)w->cols + 9] = 0;
    memset(out, 0, sizeof *out);
    out->type = TYPE_REAL;
    out->rows = w->rows;
    out->cols = w->cols;
    out->data = x;
    return x;
}

static int rounded_product(int backward, struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w,
                           const buf *bias, double scale, int accumulate, int N)
{
    size_t in = (size_t)N * (size_t)(backward ? w->rows : w->cols), width = (size_t)(backward ? w->cols : w->rows), i;
    float *copy, *numbers;
    struct weight dense;
    int rc;
    if (c->compute != COMPUTE_BF16 || (w->type == TYPE_REAL && fault != REAL_TOO) || (N < FEW_ROWS && fault != FEW_TOO))
        return backward ? kernels_ref.matmul_dx(c, out, x, w, scale, accumulate, N)
                        : kernels_ref.matmul(c, out, x, w, bias, scale, accumulate, N);
    copy = malloc((in + 1) * sizeof *copy);
    if (!copy) abort();
    for (i = 0; i < in; i++) copy[i] = round_one(((const float *)x)[i]);
    numbers = rounded_weight(&dense, w);
    rc = backward ? kernels_ref.matmul_dx(c, out, (const buf *)copy, &dense, scale, accumulate, N)
                  : kernels_ref.matmul(c, out, (const buf *)copy, &dense, bias, scale, accumulate, N);
    for (i = 0; fault == SUMS_IN_BF16 && i < (size_t)N * width; i++) ((float *)out)[i] = round_one(((float *)out)[i]);
    free(copy);
    free(numbers);
    return rc;
}

static int rounded_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias,
                          double scale, int accumulate, int N)
{
    return rounded_product(0, c, out, x, w, bias, scale, accumulate, N);
}

static int rounded_matmul_dx(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w, double scale,
                             int accumulate, int N)
{
    return rounded_product(1, c, dx, dout, w, NULL, scale, accumulate, N);
}

static int always(char *why, size_t n) { return why && n; }

static inline struct kernels rounding_reference(void)
{
    struct kernels k = kernels_ref;
    k.name = "ref with rounded operands";
    k.has_bf16 = always;
    k.matmul = rounded_matmul;
    k.matmul_dx = rounded_matmul_dx;
    return k;
}

#endif
