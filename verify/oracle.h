/* oracle.h - holds a table of kernels against the double reference, operation by operation.
 *
 * Every operation runs at sizes that hurt, in all its variants, on the table under test and on the
 * oracle from the same inputs, and must stay within a bound that is derived from the arithmetic,
 * not tuned (u is the unit roundoff, 2^-24 for float; docs/bounds.md derives them and follows one number):
 *   copies, decoding, products of small integers      equal
 *   elementwise                                       a few u, times the magnitudes that are added
 *   dot products of length K, random                  (2 sqrt(K) + 2) u |a| |b|
 *   the same, of wild magnitudes that cancel          (K + 4) u sum |a_i b_i|
 *   products in bf16 (rounding_bound())               that, and what rounding the operands can do
 * Beyond numbers: outputs start as NaN and must be overwritten or, where the contract says so, left
 * alone; zones of NaN around every buffer and a pattern behind the scratch memory must survive;
 * inputs must not change; 2, 3 or 5 threads, by turns, must give the same bits as 1; and either these or that one
 * thread, by turns, are called with other numbers in the same buffers before, of which nothing may be left.
 *
 * Nothing is printed here: each case is reported to a callback. */
#ifndef ORACLE_H
#define ORACLE_H

#include "../kernels.h"

/* A buffer of a case, as the operation is given it. */
struct oracle_operand {
    const char *name;           /* as kernels.h calls it: "out" */
    int output, is_int;
    size_t n;
    const double *before;       /* what it holds when the operation begins: NaN where it only writes */
    const double *expected;     /* what the oracle left there */
    const double *bound;        /* of the error of each number; below 0: not compared */
};
#define ORACLE_OPERANDS 13

struct oracle_result {
    const char *op, *label;     /* "matmul", "N 17 O 33 I 5 Q4_1 +=" */
    uint64_t seed;              /* the key of its random numbers */
    const char *fault;          /* NULL, or what is wrong */
    int supported;              /* 0: the table answered KERNEL_UNSUPPORTED: nothing was compared, or, of a linear, what is
                                 * made of its products in place of it */
    int compared;               /* numbers */
    double share, err, bound;   /* the worst, as a share of its bound */
    const char *operand;        /* where that is: "out", or what the operation returned */
    size_t index;
    double expected, found;     /* there */
    struct oracle_operand operands[ORACLE_OPERANDS];    /* until the report returns */
    int n_operands;
    const struct weight *weight;    /* NULL: there is none, or it is an operand */
    size_t weight_bytes;            /* of its data */
};
/* Called for each case; when it answers other than 0 the rest is left out. */
typedef int oracle_report(void *context, const struct oracle_result *result);

/* Runs the cases of operation `op`, or of all (NULL). Empty entries of the tables are completed.
 * Without a table under test (NULL) each case is only reported: its inputs, what the oracle makes of them, bounds.
 * Returns how many cases failed, or -1 (no memory, or no such operation). */
int oracle_run(const struct kernels *under_test, const struct kernels *oracle, const char *op,
               oracle_report *report, void *context, struct lora_error *err);

/* The same with products of frozen weights as `compute` says, and every `every`th case alone, for a table that is slow. */
int oracle_run_some(const struct kernels *under_test, int compute, int every, const struct kernels *oracle, const char *op,
                    oracle_report *report, void *context, struct lora_error *err);

const char *oracle_op(int i);       /* the name of operation i, NULL past the last */

#endif
