/* 08 - Decoding while packing: W is read from its 4-bit codes.
 *
 * The panel is filled from NF4 (nf4.h: two codes a byte, a scale for each 64 numbers) and not from floats;
 * nothing else changes. So W stays in memory at 4.5 bits a number instead of 32, all the time, and the
 * unpacked matrix never exists. Each number is decoded once and then multiplied N times from the
 * first cache: with hundreds of tokens the decoder hardly shows, however plain. With one token it would be
 * all there is. That is why one tile serves every type of weight, and a new type is a new packer. */
#include "ladder.h"
#include "../../nf4.h"

void pack_nf4(float *panel, const struct product *p, int o, int i, int n)
{
    const unsigned char *codes = p->nf4->data;
    const struct quantised *q = p->nf4->q;
    int c, k;
    for (c = 0; c < TILE_COLUMNS; c++) {
        size_t e = (size_t)smaller(o + c, p->O - 1) * (size_t)p->I + (size_t)i;     /* blocks go across rows */
        for (k = 0; k < n; k++, e++) {
            int code = e % 2 ? codes[e / 2] & 15 : codes[e / 2] >> 4;
            panel[k * TILE_COLUMNS + c] = nf4_values[code] * q->absmax[e / 64];
        }
    }
}

void rung_decode(const struct product *p)
{
    int t, o;
    for (t = 0; t * TILE_ROWS < p->N; t++) pack_tile(p, t);
    for (o = 0; o < p->O; o += TILE_COLUMNS) panel_product(p, pack_nf4, o);
}
