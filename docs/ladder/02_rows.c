/* 02 - The same loops in another order: each output is a dot product of two rows.
 *
 * Both are read in the order in which they lie: all 64 bytes of a cache line are used, and the processor
 * sees what comes next and fetches it ahead. The sum stays in a register.
 *
 * What it waits for now is itself. Every addition needs the result of the one before, which takes 3 or 4
 * cycles; meanwhile the adders and multipliers, ready to start two operations each in every cycle, stand
 * idle. And C makes the compiler leave it so: additions of floats in another order give other bits, so it
 * may not split the sum. */
#include "ladder.h"

void rung_rows(const struct product *p)
{
    int n, o, i;
    for (n = 0; n < p->N; n++)
        for (o = 0; o < p->O; o++) {
            const float *x = p->x + (size_t)n * (size_t)p->I, *w = p->w + (size_t)o * (size_t)p->I;
            float sum = 0;
            for (i = 0; i < p->I; i++) sum += x[i] * w[i];
            p->out[(size_t)n * (size_t)p->O + (size_t)o] = sum;
        }
}
