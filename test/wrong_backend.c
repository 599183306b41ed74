/* wrong_backend.c - the example's product with one fault, FAULT, planted: `lora verify` is to reject each. */
#include <math.h>
#include <stdlib.h>
#define lora_kernels right_kernels
#include "../docs/backend.c"
#undef lora_kernels

enum { none, zeros, sign, row, transposed, nan_, past, added };

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

#ifdef OWN
/* No fault: scratch memory of its own, something made by open() that its product needs, and a product that reads no
 * weight, so that the table below has to, in its own scratch memory. */
static size_t own_work_bytes(const struct kernel_sizes *sizes) { return sizes->threads > 0 ? 64 : 0; }
static int own_open(struct kernel_ctx *c) { return c->work && (c->own = malloc(1)) ? 0 : -1; }
static void own_close(struct kernel_ctx *c) { free(c->own); }
static int own_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias,
                      double scale, int accumulate, int N)
{
    *(char *)c->own = 1;
    memset(c->work, 1, 64);
    return wrong_matmul(c, out, x, w, bias, scale, accumulate, N);
}
static int reads_none(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w, double scale,
                      int accumulate, int N)
{
    (void)c, (void)dx, (void)dout, (void)w, (void)scale, (void)accumulate, (void)N;
    return KERNEL_UNSUPPORTED;
}
#endif

const struct kernels *lora_kernels(void);
const struct kernels *lora_kernels(void)
{
    wrong = *right_kernels();
#ifdef OTHER_ABI
    wrong.abi++;
#endif
    wrong.matmul = wrong_matmul;
#ifdef OWN
    wrong.work_bytes = own_work_bytes;
    wrong.open = own_open;
    wrong.close = own_close;
    wrong.matmul = own_matmul;
    wrong.matmul_dx = reads_none;
#endif
    return &wrong;
}
