/* attention_avx512.c - attention in 512 bits: see attention_avx2.c, which this is with longer vectors. */
#ifdef HAVE_AVX512
#define WIDE
#include "attention_avx2.c"
#else
#include "avx2.h"
#endif
