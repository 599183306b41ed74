/* 01 - The three loops in an order that sounds thrifty: each weight is read once and used for all tokens.
 *
 * W is the largest of the three matrices, and it is read once, in order. But the inner loop now walks
 * down a column of x and a column of out, whose numbers lie I and O floats apart. So each multiply-add
 * touches two other cache lines: 128 bytes are moved for the 12 that are read and written, and before the
 * loops come back for a line's next numbers, a thousand others have pushed it out of the first cache,
 * which has 512. And no sum is kept anywhere: out[n][o] is loaded and stored for every term.
 *
 * The loops may stand in six orders, and all are right. Try them: the two that end in n walk down x and
 * out and are the slowest; the two that end in o walk down W, which hurts when its rows are long. */
#include "ladder.h"

void rung_weights(const struct product *p)
{
    size_t I = (size_t)p->I, O = (size_t)p->O, n, o, i;
    for (n = 0; n < (size_t)p->N * O; n++) p->out[n] = 0;
    for (o = 0; o < O; o++)
        for (i = 0; i < I; i++)
            for (n = 0; n < (size_t)p->N; n++) p->out[n * O + o] += p->x[n * I + i] * p->w[o * I + i];
}
