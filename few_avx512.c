/* few_avx512.c - products of few rows in 512 bits: see few_avx2.c, which this is with longer vectors. */
#ifdef HAVE_AVX512
#define WIDE
#include "few_avx2.c"
#else
#include "avx2.h"
#endif
