/* gemm_amx.c - the tile of products in bf16 on AMX, and the leave to use it: see bf16.h.
 *
 * A tile register holds 16 rows of 64 bytes. TDPBF16PS adds to 16 x 16 sums the products of 16 rows of 32
 * terms by 16 columns of 32. Four tiles of A share each piece of the panel, as a multiplication takes four
 * times as long as it keeps the unit busy. (A test includes this file over an emulation of the intrinsics.) */
#define _DEFAULT_SOURCE         /* syscall() */
#include "bf16.h"

#if defined(HAVE_AMX) || defined(AMX_EMULATED)
#include <string.h>

#ifndef AMX_EMULATED
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux gives the large registers to a process only once it has asked (arch_prctl(2)): their number in XSAVE's
 * mask is 18. Asking again is harmless, and where there is no AMX the answer is no. */
int amx_ready(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    unsigned a, b, c, d;
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) && __get_cpuid_count(7, 0, &a, &b, &c, &d)
           && (d & AMX_BF16) && (d & AMX_TILE);
}
#endif

enum { PART = BF16_ROWS * BF16_TERMS };     /* elements of a tile register */

/* Palette 1; every register has all of its 16 rows of 64 bytes. */
void amx_begin(void)
{
    struct { unsigned char palette, start_row, reserved[14]; uint16_t row_bytes[16]; unsigned char rows[16]; } config;
    int i;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
}

void amx_end(void) { _tile_release(); }

void amx_sums(float *out, const uint16_t *a, size_t tile, const uint16_t *panel, int tiles, int terms)
{
    int k;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (k = 0; k < terms; k += BF16_TERMS, a += PART, panel += PART) {
        _tile_loadd(4, panel, 64);
        _tile_loadd(5, a, 64);
        _tile_dpbf16ps(0, 5, 4);
        if (tiles > 1) {
            _tile_loadd(6, a + tile, 64);
            _tile_dpbf16ps(1, 6, 4);
        }
        if (tiles > 2) {
            _tile_loadd(5, a + 2 * tile, 64);
            _tile_dpbf16ps(2, 5, 4);
        }
        if (tiles > 3) {
            _tile_loadd(6, a + 3 * tile, 64);
            _tile_dpbf16ps(3, 6, 4);
        }
    }
    _tile_stored(0, out, 64);
    if (tiles > 1) _tile_stored(1, out + 256, 64);
    if (tiles > 2) _tile_stored(2, out + 512, 64);
    if (tiles > 3) _tile_stored(3, out + 768, 64);
}

#else

int amx_ready(void) { return 0; }
void amx_begin(void) {}
void amx_end(void) {}
void amx_sums(float *out, const uint16_t *a, size_t tile, const uint16_t *panel, int tiles, int terms)
{
    (void)out, (void)a, (void)tile, (void)panel, (void)tiles, (void)terms;
}

#endif
