/* kernels_avx512.c - the table "avx512": what is faster in 512 bits, over the table avx2. */
#include "vectors/vectors.h"
#include "vectors/bf16.h"

#include <stdio.h>

#ifdef HAVE_AVX512

static int usable(char *why, size_t n)
{
    if (!kernels_avx2.usable(why, n)) return 0;
    __builtin_cpu_init();       /* asks the system too whether it saves 512-bit registers and masks */
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
        return 1;
    snprintf(why, n, "this processor has no AVX-512 (F, VL, BW and DQ), or the system does not save its registers");
    return 0;
}

static size_t work_bytes(const struct kernel_sizes *s)
{
    const size_t all[] = { avx512_gemm_bytes(s), avx512_attention_bytes(s), kernels_avx2.work_bytes(s) };
    size_t most = 0, i;
    for (i = 0; i < sizeof all / sizeof *all; i++) if (all[i] > most) most = all[i];
    return most;
}

#else

static int usable(char *why, size_t n)
{
    snprintf(why, n, "not built: the compiler makes no AVX-512 code for this family of processors");
    return 0;
}

#endif

const struct kernels kernels_avx512 = {
    .abi = KERNELS_ABI, .bytes = sizeof(struct kernels),
    .name = "avx512", .about = "512-bit vectors and fused multiply-adds, x86-64",
    .elem = sizeof(float), .own_memory = 0, .below = &kernels_avx2, .usable = usable, .has_bf16 = bf16_usable,
#ifdef HAVE_AVX512
    .work_bytes = work_bytes,
    .matmul = avx512_matmul, .matmul_dx = avx512_matmul_dx, .linear = avx512_linear, .linear_dx = avx512_linear_dx, .matmul_dw = avx512_matmul_dw,
    .attention = avx512_attention, .attention_backward = avx512_attention_backward
#endif
};
