/* wrong_backend.c - the example's product with one fault, FAULT, planted: `lora verify` is to reject each. */
#include <math.h>
#include <stdlib.h>
#define lora_kernels right_kernels
#include "../docs/backend.c"
#undef lora_kernels

enum { zeros, sign, row, transposed, nan_, past, added };

static int wrong_matmul(struct kernel_ctx *c, buf *out_, const buf *x_, const struct weight *w, const buf *bias,
                        double scale, int accumulate, int N)
{
    float *out = (float *)out_, *turned;
    size_t n = (size_t)N * (size_t)w->rows, i, j, I = (size_t)w->cols, O = (size_t)w->rows;
    struct weight other = *w;
    int rc;
    if (FAULT == added) accumulate = 1;
    if (FAULT == row && N > 1) N--;
    if (FAULT == transposed && w->type == TYPE_F32 && !w->head_rows) {      /* W read as [I,O] */
        if (!(turned = malloc(I * O * sizeof *turned))) return -1;
        for (i = 0; i < O; i++)
            for (j = 0; j < I; j++) memcpy(&turned[i * I + j], (const char *)w->data + 4 * (w->offset + j * O + i), 4);
        other.data = turned;
        other.offset = 0;
        rc = matmul(c, out_, x_, &other, bias, scale, accumulate, N);
        free(turned);
        return rc;
    }
    rc = matmul(c, out_, x_, w, bias, scale, accumulate, N);
    if (rc || !n) return rc;
    if (FAULT == zeros) memset(out, 0, n * sizeof *out);
    if (FAULT == sign) out[n - 1] = -out[n - 1];
    if (FAULT == nan_) out[n / 2] = NAN;
    if (FAULT == past) out[n - 1] += 0 * ((const float *)x_)[(size_t)N * I];    /* what lies there is nobody's */
    return 0;
}

static struct kernels wrong;

const struct kernels *lora_kernels(void);
const struct kernels *lora_kernels(void)
{
    wrong = *right_kernels();
#ifdef OTHER_ABI
    wrong.abi++;
#endif
    wrong.matmul = wrong_matmul;
    return &wrong;
}
