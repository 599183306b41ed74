/* 09 - Threads, over panels.
 *
 * x is packed by all threads together; then each takes a panel of W, decodes it into its own memory and
 * computes all of its outputs, and takes the next. No two threads write the same output, so there is
 * nothing to wait for but the end, and every sum is added up by one thread in one order: the bits do not
 * depend on how many threads there are. (Cutting the sum over i among threads would need a second pass to
 * add their parts, and would change the bits.) `dynamic` lets a thread that other work holds up take fewer. */
#include "ladder.h"

void rung_threads(const struct product *p)
{
    int t, o, tiles = (p->N + TILE_ROWS - 1) / TILE_ROWS;
#pragma omp parallel num_threads(p->threads)
    {
#pragma omp for
        for (t = 0; t < tiles; t++) pack_tile(p, t);
#pragma omp for schedule(dynamic)
        for (o = 0; o < p->O; o += TILE_COLUMNS) panel_product(p, pack_nf4, o);
    }
}
