/* measure.h - what measurements share: lora bench, and the ladder of docs/. */
#ifndef MEASURE_H
#define MEASURE_H

double median(double *x, int n);        /* sorts x */

/* GFLOP/s of multiply-adds in 256 or 512 bits, whichever is more here, or in 128 of NEON, on so many threads, or 0 where the
 * processor has none or this was built for another family. */
double measure_peak(int threads);
/* The same of AVX512-BF16's; 0 also where AMX takes its place, whose peak is another. */
double measure_peak_bf16(int threads);

#endif
