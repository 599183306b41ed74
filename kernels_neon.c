/* kernels_neon.c - the table "neon": the 128-bit vectors that every AArch64 processor has. Products are
 * vectors/gemm_vec.c, attention attention_vec.c, what goes by rows rows_vec.c; here are the products of few rows. Weights in few bits are decoded by
 * weight.c, once for each panel. */
#include "vectors/vectors.h"

#include <stdio.h>

#ifdef HAVE_NEON
#include "vectors/rows_vec.c"

/* Nothing is asked: these vectors are part of the architecture. */
static int usable(char *why, size_t n) { return 1; }

static size_t work_bytes(const struct kernel_sizes *s)
{
    size_t products = neon_gemm_bytes(s), pairs = neon_attention_bytes(s);
    return products > pairs ? products : pairs;
}

/* Each weight is read once, and no panel is made of it. */
void neon_product_few(struct kernel_ctx *c, float *out, const float *x, const struct weight *w,
                      const float *bias, float scale, int accumulate, int N)
{
    enum { STRIP = 1024 };
    int O = w->rows, I = w->cols, o;
#pragma omp parallel for schedule(static) num_threads(c->threads) if((double)N * O * I > PARALLEL_WORK)
    for (o = 0; o < O; o++) {
        float space[STRIP], sum[FEW_ROWS] = { 0 };
        int i, n;
        for (i = 0; i < I; i += STRIP) {
            const float *s = vec_strip(w, o, i, smaller(STRIP, I - i), space);
            for (n = 0; n < N; n++) sum[n] += dot(s, x + (size_t)n * (size_t)I + i, smaller(STRIP, I - i));
        }
        for (n = 0; n < N; n++) {
            float *to = out + (size_t)n * (size_t)O + o, v = scale * sum[n] + (bias ? bias[o] : 0);
            *to = accumulate ? *to + v : v;
        }
    }
}

#else

static int usable(char *why, size_t n)
{
    snprintf(why, n, "not built: the compiler makes no code for AArch64, whose vectors these are");
    return 0;
}

#endif

/* What is missing here is the reference's (kernels_complete). */
const struct kernels kernels_neon = {
    .abi = KERNELS_ABI, .bytes = sizeof(struct kernels),
    .name = "neon", .about = "128-bit vectors and fused multiply-adds, AArch64",
    .elem = sizeof(float), .own_memory = 0, .below = &kernels_ref, .usable = usable,
#ifdef HAVE_NEON
    .work_bytes = work_bytes,
    .zero = zero, .copy = copy, .gather = gather, .scatter_add = scatter_add,
    .embed = neon_embed, .embed_backward = embed_backward,
    .matmul = neon_matmul, .matmul_dx = neon_matmul_dx, .linear = neon_linear, .linear_dx = neon_linear_dx, .matmul_dw = neon_matmul_dw,
    .bias_backward = bias_backward, .rmsnorm = rmsnorm, .rmsnorm_backward = rmsnorm_backward,
    .rope = rope, .attention = neon_attention, .attention_backward = neon_attention_backward,
    .swiglu = swiglu, .swiglu_backward = swiglu_backward, .cross_entropy = cross_entropy, .not_finite = not_finite
#endif
};
