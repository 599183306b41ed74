/* The types of weights and the file formats that hold them. */
#include "test.h"
#include "../weight.h"

#include <stdint.h>

/* ---- half precision ---- */

static double half_value(unsigned h)
{
    int e = h >> 10 & 31, m = h & 1023;
    double v = e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}

/* Nearest half by the definition: a step of 2^(e-10) for numbers of exponent e, at least 2^-24. */
static unsigned half_nearest(float f)
{
    double a = fabs(f), step;
    int e, n;
    unsigned sign = signbit(f) ? 0x8000 : 0;
    if (isinf(f)) return sign | 0x7c00;
    frexp(a, &e);
    step = ldexp(1, e - 1 < -14 ? -24 : e - 1 - 10);
    a = nearbyint(a / step) * step;
    if (a >= 65536) return sign | 0x7c00;
    frexp(a, &e);
    if (a == 0) return sign;
    if (e - 1 < -14) return sign | (unsigned)ldexp(a, 24);
    n = (int)ldexp(a, 10 - (e - 1)) - 1024;
    return sign | (unsigned)(e - 1 + 15) << 10 | (unsigned)n;
}

static float float_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static uint32_t bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static void test_halves(void)
{
    uint32_t u, i;
    int bad = 0;
    test_begin("f16: all 65536 to float, and back");
    for (u = 0; u < 65536; u++) {
        float f = f16_to_f32((uint16_t)u);
        if ((u & 0x7c00) == 0x7c00) {
            int nan = (u & 0x3ff) != 0;
            CHECK(nan ? isnan(f) : isinf(f) && !signbit(f) == !(u & 0x8000), "%x", u);
            if (nan) CHECK(isnan(f16_to_f32(f32_to_f16(f))), "%x", u);
            else CHECK(f32_to_f16(f) == u, "%x", u);
        } else {
            CHECK((double)f == half_value(u) && !signbit(f) == !(u & 0x8000), "%x: %g", u, f);
            CHECK(f32_to_f16(f) == u, "%x", u);
        }
    }
    test_begin("f32 to f16 and bf16: to nearest, ties to even");
    for (i = 0; i < 400000; i++) {
        float f, b;
        u = i * 2654435761u;
        if (i % 4 == 1) u = (u & 0x8fffffff) | 0x30000000;          /* about where halves live */
        if (i % 4 == 2) u = bits(f16_to_f32((uint16_t)i)) + (i >> 16) * 0x1000;    /* at and by the ties */
        if (i % 4 == 3) u = bits(f16_to_f32((uint16_t)i)) + 0xfff + (i >> 16);
        f = float_bits(u);
        if (isnan(f)) {
            if (!isnan(f16_to_f32(f32_to_f16(f))) || !isnan(bf16_to_f32(f32_to_bf16(f)))) bad++;
            continue;
        }
        if (f32_to_f16(f) != half_nearest(f) && bad++ < 5) printf("  %08x f16 %x %x\n", u, f32_to_f16(f), half_nearest(f));
        b = bf16_to_f32(f32_to_bf16(f));
        {   /* neighbours: the one chosen is no further, and even if the other is as far */
            uint32_t down = u & 0xffff0000, up = down + 0x10000, half = u & 0xffff;
            uint32_t want = half > 0x8000 || (half == 0x8000 && (u & 0x10000)) ? up : down;
            if (bits(b) != want && bad++ < 5) printf("  %08x bf16 %08x\n", u, bits(b));
        }
    }
    CHECK(!bad, "%d of %u wrong", bad, i);
    CHECK(f32_to_f16(65519.99f) == 0x7bff && f32_to_f16(65520) == 0x7c00 && f32_to_f16(-1e9f) == 0xfc00, "the edge of infinity");
    CHECK(f32_to_f16(float_bits(0x33000000)) == 0 && f32_to_f16(float_bits(0x33000001)) == 1,
          "half of the least half");
    CHECK(f32_to_bf16(float_bits(0x7f7fffff)) == 0x7f80 && isnan(bf16_to_f32(f32_to_bf16(float_bits(0x7f800001)))),
          "bf16 at the end of its range");
}

/* ---- decoders ---- */

static unsigned char pseudo(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (unsigned char)(*state >> 24);
}

/* Element i of a stream of elements, by the definition of its type. */
static float one_element(int type, const unsigned char *data, size_t i)
{
    int bytes = weight_types[type].bytes, j = (int)(i % 32), q;
    const unsigned char *p = data + i / 32 * (size_t)bytes;
    float d, m, f;
    switch (type) {
    case TYPE_F32: memcpy(&f, data + 4 * i, 4); return f;
    case TYPE_F16: return (float)half_value(data[2 * i] | (unsigned)data[2 * i + 1] << 8);
    case TYPE_BF16: return float_bits((uint32_t)data[2 * i] << 16 | (uint32_t)data[2 * i + 1] << 24);
    case TYPE_Q8_0: return (float)half_value(p[0] | (unsigned)p[1] << 8) * (float)(p[2 + j] < 128 ? p[2 + j] : p[2 + j] - 256);
    }
    d = (float)half_value(p[0] | (unsigned)p[1] << 8);
    q = p[bytes - 16 + j % 16];
    q = j < 16 ? q % 16 : q / 16;
    if (type == TYPE_Q4_0) return d * (float)(q - 8);
    m = (float)half_value(p[2] | (unsigned)p[3] << 8);
    f = d * (float)q;
    return f + m;
}

static void test_decoders(void)
{
    enum { ROWS = 8, COLS = 96, SKIP = 64, TOTAL = SKIP + ROWS * COLS };
    static unsigned char store[TOTAL * 4 + 16];
    unsigned state = 1;
    int type, shift, row, col, n, i;
    for (type = 0; type < TYPE_F64; type++) {
        static char names[TYPE_F64][64];        /* test.h keeps the pointer */
        char *name = names[type];
        size_t size;
        snprintf(name, sizeof names[0], "decode %s, any strip, any address", weight_types[type].name);
        test_begin(name);
        CHECK(!type_bytes(&size, type, TOTAL) && size <= TOTAL * 4, "its bytes");
        for (shift = 0; shift < 4; shift++) {
            unsigned char *data = store + shift;
            struct weight w = { 0, ROWS, COLS, 0, SKIP, NULL };
            for (i = 0; i < (int)size; i++) data[i] = pseudo(&state);
            /* No NaN and no infinity: the exponent's top bit away, in halves and in floats. */
            for (i = 0; i < (int)size; i++) {
                int block = weight_types[type].bytes;
                int place = type == TYPE_F32 ? i % 4 == 3 : type == TYPE_F16 || type == TYPE_BF16 ? i % 2
                            : i % block == 1 || (type == TYPE_Q4_1 && i % block == 3);
                if (place) data[i] &= 0xbf;
            }
            w.type = type;
            w.data = data;
            w.head_rows = shift % 2 ? 4 : 0;
            for (row = 0; row < ROWS; row++)
                for (col = 0; col < COLS; col += 1 + row)
                    for (n = 0; col + n <= COLS; n += n < 3 ? 1 : 7) {
                        float out[COLS + 1];
                        int file_row = row, bad = 0;
                        if (w.head_rows) {
                            int h = row / 4, k = row % 4 / 2, j = row % 2;
                            file_row = h * 4 + 2 * j + k;
                        }
                        for (i = 0; i <= COLS; i++) out[i] = 12345;
                        weight_decode(&w, row, col, n, out);
                        for (i = 0; i < n; i++) {
                            float want = one_element(type, data, SKIP + (size_t)file_row * COLS + (size_t)(col + i));
                            bad += bits(out[i]) != bits(want);
                        }
                        bad += out[n] != 12345;
                        CHECK(!bad, "row %d, col %d, n %d", row, col, n);
                    }
        }
    }
    test_begin("types: bytes");
    {
        size_t size = 7;
        CHECK(type_bytes(&size, TYPE_Q4_1, 33) == -1 && type_bytes(&size, TYPE_F64, SIZE_MAX / 4) == -1, "refused");
        CHECK(type_bytes(&size, TYPE_REAL, 1) == -1 && size == 7, "refused");
        CHECK(!type_bytes(&size, TYPE_Q4_1, 64) && size == 40, "two blocks");
        CHECK(!type_bytes(&size, TYPE_BF16, 0) && size == 0, "none");
    }
}

int main(void)
{
    test_halves();
    test_decoders();
    return test_end();
}
