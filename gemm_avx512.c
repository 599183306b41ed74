/* gemm_avx512.c - the products in 512 bits: see gemm_avx2.c, which this is with longer vectors. */
#ifdef HAVE_AVX512
#define WIDE
#include "gemm_avx2.c"
#else
#include "avx2.h"
#endif
