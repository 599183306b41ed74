/* 06 - The same tile, its outer loop in blocks: a piece of W stays near while all tokens go by.
 *
 * 48 rows of W are 108 KiB at 576 inputs: they stay in the second cache, and the four rows of x that
 * sixteen tiles share, in the first. So W is fetched from far away once for all tokens, instead of once for
 * every four; x instead goes by once for each block, 32 times in all, not 512 / 4 = 128 times as W did.
 *
 * Blocks of the inputs would be the next thing, so that long rows fit the first cache, but this tile
 * would lose by it: wherever a sum ends, the eight lanes of twelve vectors have to be added up, and that
 * takes as long as the tile's loop over two hundred terms. */
#include "ladder.h"

enum { OUTPUTS = 48 };

void rung_blocks(const struct product *p)
{
    int o0, n, o;
    for (o0 = 0; o0 < p->O; o0 += OUTPUTS)
        for (n = 0; n < p->N; n += 4)
            for (o = o0; o < smaller(o0 + OUTPUTS, p->O); o += 3) dot_tile(p, n, o);
}
