/* The types of weights and the file formats that hold them. */
#include "test.h"
#include "gguf_parts.h"
#include "../weight.h"
#include "../formats/safetensors.h"
#include "../formats/gguf.h"

#include <stdint.h>
#include <unistd.h>

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
        if (i % 4 == 2) u = bits_of(f16_to_f32((uint16_t)i)) + (i >> 16) * 0x1000;    /* at and by the ties */
        if (i % 4 == 3) u = bits_of(f16_to_f32((uint16_t)i)) + 0xfff + (i >> 16);
        f = float_of(u);
        if (isnan(f)) {
            if (!isnan(f16_to_f32(f32_to_f16(f))) || !isnan(bf16_to_f32(f32_to_bf16(f)))) bad++;
            continue;
        }
        if (f32_to_f16(f) != half_nearest(f) && bad++ < 5) printf("  %08x f16 %x %x\n", u, f32_to_f16(f), half_nearest(f));
        b = bf16_to_f32(f32_to_bf16(f));
        {   /* neighbours: the one chosen is no further, and even if the other is as far */
            uint32_t down = u & 0xffff0000, up = down + 0x10000, half = u & 0xffff;
            uint32_t want = half > 0x8000 || (half == 0x8000 && (u & 0x10000)) ? up : down;
            if (bits_of(b) != want && bad++ < 5) printf("  %08x bf16 %08x\n", u, bits_of(b));
        }
    }
    CHECK(!bad, "%d of %u wrong", bad, i);
    CHECK(f32_to_f16(65519.99f) == 0x7bff && f32_to_f16(65520) == 0x7c00 && f32_to_f16(-1e9f) == 0xfc00, "the edge of infinity");
    CHECK(f32_to_f16(float_of(0x33000000)) == 0 && f32_to_f16(float_of(0x33000001)) == 1,
          "half of the least half");
    CHECK(f32_to_bf16(float_of(0x7f7fffff)) == 0x7f80 && isnan(bf16_to_f32(f32_to_bf16(float_of(0x7f800001)))),
          "bf16 at the end of its range");
}

/* ---- decoders ---- */

static unsigned char pseudo(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (unsigned char)(*state >> 24);
}

/* Element i of a stream of elements, by the definition of its type; of the types that have only goldens,
 * by their whole block. */
static float one_element(int type, const unsigned char *data, size_t i)
{
    int block = weight_types[type].block, bytes = weight_types[type].bytes, j = (int)(i % 32), q;
    const unsigned char *p = data + i / 32 * (size_t)bytes;
    float d, m, f;
    switch (type) {
    case TYPE_F32: memcpy(&f, data + 4 * i, 4); return f;
    case TYPE_F16: return (float)half_value(data[2 * i] | (unsigned)data[2 * i + 1] << 8);
    case TYPE_BF16: return float_of((uint32_t)data[2 * i] << 16 | (uint32_t)data[2 * i + 1] << 24);
    case TYPE_Q8_0: return (float)half_value(p[0] | (unsigned)p[1] << 8) * (float)(p[2 + j] < 128 ? p[2 + j] : p[2 + j] - 256);
    }
    if (type > TYPE_Q4_1) {
        float all[32];
        weight_types[type].unpack(data + i / (size_t)block * (size_t)bytes, (int)(i % (size_t)block / 32), all);
        return all[j];
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
    enum { ROWS = 8, COLS = 96, SKIP = 256, TOTAL = SKIP + ROWS * COLS };
    static unsigned char store[TOTAL * 4 + 16];
    unsigned state = 1;
    int type, shift, row, col, n, i;
    for (type = 0; type < TYPE_NF4; type++) {
        char name[64];
        size_t size;
        snprintf(name, sizeof name, "decode %s, any strip, any address", weight_types[type].name);
        test_begin(name);
        CHECK(!type_bytes(&size, type, TOTAL) && size <= TOTAL * 4, "its bytes");
        for (shift = 0; shift < 4; shift++) {
            unsigned char *data = store + shift;
            struct weight w = { 0, ROWS, COLS, 0, SKIP, NULL, NULL };
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
                            bad += bits_of(out[i]) != bits_of(want);
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

/* ---- small files, byte by byte ---- */

static char temporary[64];      /* this program's file */

static void put_file(const void *data, size_t n)
{
    FILE *f;
    remove(temporary);      /* to write over it is slow: the file system flushes what was cut */
    f = fopen(temporary, "wb");
    if (!f || fwrite(data, 1, n, f) != n) CHECK(0, "cannot write %s", temporary);
    if (f) fclose(f);
}

/* ---- safetensors ---- */

static int open_st(struct safetensors *s, const char *header, const void *data, size_t n, struct lora_error *err)
{
    struct text t = { 0 };
    int status;
    put_le(&t, strlen(header), 8);
    text_puts(&t, header);
    text_add(&t, data, n);
    put_file(t.s, t.n);
    text_free(&t);
    memset(err, 0, sizeof *err);
    status = safetensors_open(s, temporary, err);
    if (status) CHECK(strstr(err->where, temporary) && err->what[0], "the error names the file: %s: %s", err->what, err->where);
    return status;
}

static void test_safetensors_read(void)
{
    static const char header[] = "{\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[3,15]},"
        "\"__metadata__\":{\"format\":\"pt\",\"x\":\"\\u00e9\"},"
        "\"a\":{\"data_offsets\":[0,3],\"shape\":[3],\"dtype\":\"U8\"},"
        "\"none\":{\"dtype\":\"F32\",\"shape\":[4,0],\"data_offsets\":[15,15]},"
        "\"one\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[15,23]}}   ";
    static const char types[][5] = { "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL" };
    static const int sizes[] = { 8, 4, 2, 2, 8, 4, 2, 1, 1, 1 };
    struct safetensors s;
    struct lora_error err;
    const struct st_tensor *t;
    char text[200], data[80];
    size_t i;
    for (i = 0; i < sizeof data; i++) data[i] = (char)i;
    test_begin("safetensors: tensors, 0-d, empty, metadata");
    CHECK(!open_st(&s, header, data, 23, &err), "%s: %s: %s, %s", err.what, err.where, err.expected, err.found);
    CHECK(s.n == 4 && !strcmp(s.tensors[0].name, "a") && !strcmp(s.tensors[1].name, "b") && !strcmp(s.tensors[2].name, "none"),
          "by place, %d", s.n);
    t = safetensors_find(&s, "b");
    CHECK(t && t->type == TYPE_BF16 && t->n_dims == 2 && t->dims[0] == 2 && t->dims[1] == 3 && t->count == 6
          && t->bytes == 12 && t->data[0] == 3, "b");
    t = safetensors_find(&s, "one");
    CHECK(t && t->n_dims == 0 && t->count == 1 && t->bytes == 8 && t->data[7] == 22, "one");
    t = safetensors_find(&s, "none");
    CHECK(t && t->count == 0 && t->bytes == 0, "none");
    CHECK(!safetensors_find(&s, "__metadata__") && !safetensors_find(&s, "c"), "absent");
    safetensors_close(&s);
    CHECK(!safetensors_find(&s, "a"), "closed");
    CHECK(!open_st(&s, "{}", data, 0, &err) && s.n == 0, "no tensors");
    safetensors_close(&s);
    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        sprintf(text, "{\"t\":{\"dtype\":\"%s\",\"shape\":[5,2],\"data_offsets\":[0,%d]}}", types[i], 10 * sizes[i]);
        CHECK(!open_st(&s, text, data, 10 * (size_t)sizes[i], &err), "%s", types[i]);
        CHECK(s.n == 1 && !strcmp(weight_types[s.tensors->type].name, types[i]), "%s", types[i]);
        safetensors_close(&s);
    }
}

static void test_safetensors_refused(void)
{
    /* header, bytes of data, what the error must say */
    static const struct { const char *header; size_t n; const char *says; } cases[] = {
        { "", 0, "value" }, { "[]", 0, "object" }, { "1", 0, "object" }, { "{}", 1, "0 bytes of data" },
        { "{\"t\":1}", 0, "dtype" }, { "{\"t\":{}}", 0, "dtype" },
        { "{\"t\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "F8_E4M3" },
        { "{\"t\":{\"dtype\":\"F32\\u0000\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "F32" },
        { "{\"t\":{\"dtype\":\"Q8_0\",\"shape\":[32],\"data_offsets\":[0,34]}}", 34, "Q8_0" },
        { "{\"t\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "f32" },
        { "{\"t\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"extra\":1}}", 4, "extra" },
        { "{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "shape" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "-1" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "1.0" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[\"1\"],\"data_offsets\":[0,4]}}", 4, "shape" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "9" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,2],\"data_offsets\":[0,0]}}", 0, "product" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, "0 bytes" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[18446744073709551617],\"data_offsets\":[0,4]}}", 4, "product" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[40000000000000000000],\"data_offsets\":[0,4]}}", 4, "product" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "data_offsets" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "4 to 0" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 3, "cut off" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,18446744073709551615]}}", 4, "data_offsets" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, "4 bytes of data" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "2 values of F32" },
        { "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "from byte 4" },
        { "{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"u\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
          6, "tensor u" },
        { "{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"u\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[6,10]}}",
          10, "tensor u" },
        { "{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"u\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
          4, "tensor u" },
        { "{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
          8, "again" },
        { "{\"__metadata__\":{\"a\":1}}", 0, "__metadata__" }, { "{\"__metadata__\":[]}", 0, "__metadata__" },
    };
    static const char data[64];
    struct safetensors s;
    struct lora_error err;
    size_t i;
    test_begin("safetensors: what is wrong is refused and named");
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        int status = open_st(&s, cases[i].header, data, cases[i].n, &err);
        const char *says = cases[i].says;
        CHECK(status == -1, "%s", cases[i].header);
        CHECK(strstr(err.where, says) || strstr(err.expected, says) || strstr(err.found, says) || strstr(err.hint, says),
              "%s: %s: %s, %s", cases[i].header, err.where, err.expected, err.found);
        CHECK(!s.path && !s.tensors && !s.map.data, "nothing is kept");
    }
    put_file("\3\0\0\0\0\0\0\0{}", 10);
    CHECK(safetensors_open(&s, temporary, &err) == -1 && strstr(err.found, "10 bytes of file, 3 of header"), "%s", err.found);
    put_file("\377\377\377\377\377\377\377\377{}", 10);
    CHECK(safetensors_open(&s, temporary, &err) == -1 && strstr(err.found, "18446744073709551615"), "%s", err.found);
    CHECK(safetensors_open(&s, "no/such.safetensors", &err) == -1 && strstr(err.where, "no/such"), "%s", err.where);
    CHECK(safetensors_open(&s, ".", &err) == -1 && strstr(err.found, "directory"), "%s", err.found);
}

/* All that an opened file promises; reads every byte. */
static unsigned touch(const unsigned char *p, size_t n)
{
    unsigned sum = 0;
    while (n--) sum += *p++;
    return sum;
}

static void check_st(const struct safetensors *s, const char *label)
{
    size_t total = 0, bytes;
    unsigned sum = 0;
    int i, d;
    for (i = 0; i < s->n; i++) {
        const struct st_tensor *t = &s->tensors[i];
        size_t count = 1;
        for (d = 0; d < t->n_dims; d++) count *= t->dims[d];
        CHECK(count == t->count && !type_bytes(&bytes, t->type, count) && bytes == t->bytes, "%s: %s", label, t->name);
        CHECK(safetensors_find(s, t->name) == t, "%s: %s", label, t->name);
        sum += touch(t->data, t->bytes);
        total += bytes;
    }
    CHECK(total <= s->map.size && sum < 0xffffffffu, "%s: %zu", label, total);
}

static void test_safetensors_damage(void)
{
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F16\",\"shape\":[3,2],"
        "\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[12,20]}}";
    struct text t = { 0 };
    struct safetensors s;
    struct lora_error err;
    char label[64];
    size_t i;
    int v, accepted = 0;
    test_begin("safetensors: cut and damaged files");
    put_le(&t, sizeof header - 1, 8);
    text_puts(&t, header);
    text_add(&t, "01234567890123456789", 20);
    for (i = 0; i < t.n; i++) {
        put_file(t.s, i);
        CHECK(safetensors_open(&s, temporary, &err) == -1 && strstr(err.where, temporary), "cut at %zu", i);
    }
    for (i = 0; i < t.n; i++) {
        unsigned char was = (unsigned char)t.s[i];
        for (v = 0; v < 14; v++) {
            static const char values[] = "\0\1\177\200\377 \"0919";
            t.s[i] = (char)(v < 8 ? was ^ 1 << v : values[v - 8]);
            put_file(t.s, t.n);
            sprintf(label, "byte %zu = %d", i, t.s[i]);
            if (safetensors_open(&s, temporary, &err)) CHECK(strstr(err.where, temporary) != NULL, "%s", label);
            else {
                accepted++;
                check_st(&s, label);
                safetensors_close(&s);
            }
        }
        t.s[i] = (char)was;
    }
    CHECK(accepted > 20 * 14, "%d accepted", accepted);     /* changes of the data and of letters of names */
    text_free(&t);
}

static void test_safetensors_write(void)
{
    static const size_t dims[][2] = { { 2, 3 }, { 5, 0 }, { 0, 5 }, { 7, 1 } };
    static const char name[] = "odd \"name\"\n\xc3\xa9";
    char data[24];
    float f[6] = { 1, 2, 3, 4, 5, 6 };
    struct st_writer w = { 0 };
    struct safetensors s;
    struct lora_error err = { "", "", "", "", "" };
    const struct st_tensor *t;
    memcpy(data, f, sizeof f);
    test_begin("safetensors: written and read back");
    CHECK(!st_writer_add(&w, name, TYPE_F32, dims[0], 2, &err) && !st_writer_add(&w, "scalar", TYPE_F16, NULL, 0, &err)
          && !st_writer_add(&w, "empty", TYPE_BF16, dims[2], 2, &err) && !st_writer_add(&w, "bytes", TYPE_U8, dims[3], 1, &err),
          "%s", err.where);
    CHECK(!st_writer_begin(&w, temporary, &err) && w.data_start % 8 == 0, "%s", err.where);
    CHECK(!st_writer_put(&w, data, 10, &err) && !st_writer_put(&w, data + 10, 14, &err), "%s", err.where);
    CHECK(!st_writer_put(&w, "ab", 2, &err) && !st_writer_put(&w, "1234567", 7, &err), "%s", err.where);
    CHECK(!st_writer_commit(&w, &err) && !w.header.s && !w.file.path, "%s", err.where);
    CHECK(!safetensors_open(&s, temporary, &err), "%s: %s", err.expected, err.found);
    check_st(&s, "written");
    t = safetensors_find(&s, name);
    CHECK(s.n == 4 && t && t->type == TYPE_F32 && t->dims[1] == 3 && !memcmp(t->data, f, sizeof f), "the matrix");
    t = safetensors_find(&s, "scalar");
    CHECK(t && t->n_dims == 0 && !memcmp(t->data, "ab", 2), "the scalar");
    CHECK(!strcmp(json_get(json_get(s.header.root, "__metadata__"), "format")->string, "pt"), "format");
    safetensors_close(&s);

    test_begin("safetensors: a file half written does not appear");
    remove(temporary);
    CHECK(!st_writer_add(&w, "t", TYPE_F32, dims[0], 2, &err) && !st_writer_begin(&w, temporary, &err), "begun");
    CHECK(!st_writer_put(&w, data, 20, &err) && st_writer_commit(&w, &err) == -1 && strstr(err.found, "20"), "%s", err.found);
    CHECK(!file_exists(temporary) && !w.header.s, "no file");
    CHECK(!st_writer_add(&w, "t", TYPE_F32, dims[0], 2, &err) && !st_writer_begin(&w, temporary, &err), "begun");
    CHECK(!st_writer_put(&w, data, 24, &err) && !st_writer_put(&w, "x", 1, &err), "one byte too many");
    CHECK(st_writer_commit(&w, &err) == -1 && strstr(err.found, "25"), "%s", err.found);
    CHECK(!file_exists(temporary) && !w.header.s, "no file");
    CHECK(!st_writer_add(&w, "t", TYPE_F32, dims[0], 2, &err) && !st_writer_begin(&w, temporary, &err), "begun");
    st_writer_abandon(&w);
    CHECK(!file_exists(temporary), "no file");
    CHECK(st_writer_add(&w, "t", TYPE_Q4_0, dims[0], 2, &err) == -1 && strstr(err.found, "Q4_0"), "%s", err.found);
    st_writer_abandon(&w);
    CHECK(!st_writer_begin(&w, temporary, &err) && !st_writer_commit(&w, &err) && !safetensors_open(&s, temporary, &err) && s.n == 0,
          "a file of no tensors");
    safetensors_close(&s);
}

/* ---- GGUF ---- */

static void put_tensor(struct text *t, const char *name, int n_dims, int d0, int d1, int type, int offset)
{
    put_gguf_string(t, name);
    put_le(t, (uint64_t)n_dims, 4);
    if (n_dims > 0) put_le(t, (uint64_t)d0, 8);
    if (n_dims > 1) put_le(t, (uint64_t)d1, 8);
    put_le(t, (uint64_t)type, 4);
    put_le(t, (uint64_t)offset, 8);
}

static uint64_t double_bits(double x)
{
    uint64_t u;
    memcpy(&u, &x, 8);
    return u;
}

/* Every type of value; three tensors, the second first in the data. */
static void make_gguf(struct text *t, int version)
{
    static const char *const words[] = { "a", "", "\xc4\xa0wide" };
    int i;
    text_puts(t, "GGUF");
    put_le(t, (uint64_t)version, 4);
    put_le(t, 3, 8);
    put_le(t, 17, 8);
    put_key(t, "u8", GGUF_U8), put_le(t, 200, 1);
    put_key(t, "i8", GGUF_I8), put_le(t, 200, 1);
    put_key(t, "u16", GGUF_U16), put_le(t, 60000, 2);
    put_key(t, "i16", GGUF_I16), put_le(t, 60000, 2);
    put_key(t, "u32", GGUF_U32), put_le(t, 4000000000u, 4);
    put_key(t, "i32", GGUF_I32), put_le(t, 4000000000u, 4);
    put_key(t, "f32", GGUF_F32), put_le(t, bits_of(1.5f), 4);
    put_key(t, "bool", GGUF_BOOL), put_le(t, 1, 1);
    put_key(t, "string", GGUF_STRING), put_gguf_string(t, "text \xc3\xa9");
    put_key(t, "u64", GGUF_U64), put_le(t, 1234567890123u, 8);
    put_key(t, "i64", GGUF_I64), put_le(t, (uint64_t)-5, 8);
    put_key(t, "f64", GGUF_F64), put_le(t, double_bits(0.1), 8);
    put_key(t, "general.alignment", GGUF_U32), put_le(t, 16, 4);
    put_key(t, "words", GGUF_ARRAY), put_le(t, GGUF_STRING, 4), put_le(t, 3, 8);
    for (i = 0; i < 3; i++) put_gguf_string(t, words[i]);
    put_key(t, "numbers", GGUF_ARRAY), put_le(t, GGUF_I16, 4), put_le(t, 4, 8);
    for (i = 0; i < 4; i++) put_le(t, (uint64_t)(i * 7 - 8), 2);
    put_key(t, "empty", GGUF_ARRAY), put_le(t, GGUF_F32, 4), put_le(t, 0, 8);
    put_key(t, "bools", GGUF_ARRAY), put_le(t, GGUF_BOOL, 4), put_le(t, 2, 8), put_le(t, 1, 2);
    put_tensor(t, "blocks", 2, 32, 2, 2, 32);
    put_tensor(t, "plain", 1, 3, 0, 0, 0);
    put_tensor(t, "half", 2, 2, 1, 1, 80);
    while (t->n % 16) text_add(t, "", 1);
    for (i = 0; i < 84; i++) put_le(t, (uint64_t)(i + 1), 1);
}

static int open_gguf(struct gguf *g, const struct text *t, struct lora_error *err)
{
    int status;
    put_file(t->s, t->n);
    memset(err, 0, sizeof *err);
    status = gguf_open(g, temporary, err);
    if (status) CHECK(strstr(err->where, temporary) && err->what[0], "the error names the file: %s: %s", err->what, err->where);
    return status;
}

static void test_gguf_read(void)
{
    static const struct { const char *key; double value; int integer; } numbers[] = {
        { "u8", 200, 1 }, { "i8", -56, 1 }, { "u16", 60000, 1 }, { "i16", -5536, 1 }, { "u32", 4000000000.0, 0 }, { "i32", -294967296, 1 },
        { "f32", 1.5, 0 }, { "u64", 1234567890123.0, 0 }, { "i64", -5, 1 }, { "f64", 0.1, 0 },
    };
    struct text t = { 0 };
    struct gguf g;
    struct lora_error err;
    const struct gguf_tensor *w;
    const struct gguf_value *v;
    char *s;
    double x = 9;
    size_t i;
    int n, version;
    test_begin("GGUF: versions 2 and 3, every type of value, tensors");
    for (version = 2; version <= 3; version++) {
        text_free(&t);
        make_gguf(&t, version);
        CHECK(!open_gguf(&g, &t, &err), "%s: %s, %s", err.where, err.expected, err.found);
        if (version == 2) gguf_close(&g);
    }
    for (i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        CHECK(!gguf_get_number(&g, numbers[i].key, &x, &err) && x == numbers[i].value, "%s: %g", numbers[i].key, x);
        n = 9;
        CHECK(gguf_get_int(&g, numbers[i].key, &n, &err) == (numbers[i].integer ? 0 : -1), "%s", numbers[i].key);
        CHECK(n == (numbers[i].integer ? (int)numbers[i].value : 9), "%s: %d", numbers[i].key, n);
    }
    CHECK(!gguf_get_bool(&g, "bool", &n, &err) && n == 1, "%d", n);
    CHECK(!gguf_get_string(&g, "string", &s, &err) && !strcmp(s, "text \xc3\xa9"), "%s", s);
    free(s);
    CHECK(!gguf_get_int(&g, "no", &n, &err) && !gguf_get_bool(&g, "no", &n, &err) && !gguf_get_number(&g, "no", &x, &err) && n == 1
          && x == 0.1 && !gguf_get_string(&g, "no", &s, &err) && !s, "absent");
    CHECK(gguf_get_string(&g, "u8", &s, &err) == -1 && !s && strstr(err.where, "key u8") && strstr(err.found, "uint8 200"), "%s", err.found);
    CHECK(gguf_get_int(&g, "string", &n, &err) == -1 && gguf_get_int(&g, "bool", &n, &err) == -1
          && gguf_get_bool(&g, "u8", &n, &err) == -1 && gguf_get_number(&g, "bool", &x, &err) == -1
          && gguf_get_number(&g, "words", &x, &err) == -1, "types");
    v = gguf_get(&g, "words");
    CHECK(v && v->n == 3 && v->element == GGUF_STRING && v->strings[2].n == 6 && !memcmp(v->strings[2].s, "\xc4\xa0wide", 6)
          && v->strings[1].n == 0, "strings");
    v = gguf_get(&g, "numbers");
    for (i = 0; v && i < 4; i++) CHECK(gguf_array_number(v, i) == (double)i * 7 - 8, "%zu: %g", i, gguf_array_number(v, i));
    v = gguf_get(&g, "bools");
    CHECK(v && v->n == 2 && gguf_array_number(v, 0) == 1 && gguf_array_number(v, 1) == 0, "booleans");
    w = gguf_find(&g, "blocks");
    CHECK(w && w->type == TYPE_Q4_0 && w->n_dims == 2 && w->dims[0] == 32 && w->dims[1] == 2 && w->dims[2] == 1 && w->count == 64
          && w->bytes == 36 && w->data[0] == 33, "blocks");
    w = gguf_find(&g, "plain");
    CHECK(w && w->type == TYPE_F32 && w->count == 3 && w->data[11] == 12, "plain");
    w = gguf_find(&g, "half");
    CHECK(w && w->type == TYPE_F16 && w->count == 2 && w->data[3] == 84 && g.alignment == 16, "half");
    CHECK(!gguf_find(&g, "u8") && !gguf_get(&g, "plain") && g.n_values == 17 && g.n_tensors == 3, "absent");
    gguf_close(&g);
    text_free(&t);
}

/* A file of one value or one tensor, which something is wrong with. */
static void check_refused(const struct text *entry, int tensors, const char *says)
{
    struct text t = { 0 };
    struct gguf g;
    struct lora_error err;
    text_puts(&t, "GGUF");
    put_le(&t, 3, 4);
    put_le(&t, (uint64_t)tensors, 8);
    put_le(&t, tensors ? 0 : 1, 8);
    text_add(&t, entry->s, entry->n);
    while (t.n % 32) text_add(&t, "", 1);
    while (t.n < 256) text_add(&t, "", 1);
    CHECK(open_gguf(&g, &t, &err) == -1, "%s", says);
    CHECK(strstr(err.where, says) || strstr(err.expected, says) || strstr(err.found, says), "not %s: %s: %s, %s", says,
          err.where, err.expected, err.found);
    CHECK(!g.path && !g.values && !g.map.data, "nothing is kept");
    text_free(&t);
}

static void test_gguf_refused(void)
{
    static const struct { int n_dims, d0, d1, type, offset; const char *says; } tensors[] = {
        { 2, 32, 1, 23, 0, "type 23 (IQ4_XS)" }, { 2, 32, 1, 12, 0, "32 columns of Q4_K" }, { 2, 32, 1, 4, 0, "type 4" }, { 2, 32, 1, 999, 0, "type 999" }, { 1, 33, 0, 2, 0, "33 columns" },
        { 2, 16, 2, 2, 0, "16 columns" },
        { 0, 0, 0, 8, 0, "1 columns" }, { 5, 1, 1, 0, 0, "at most 4" }, { 1, 4, 0, 0, 8, "multiple of 32" }, { 1, 4, 0, 0, 320, "16 bytes from" },
        { 2, 16, 32, 0, 0, "bytes from" }, { 2, -1, -1, 0, 0, "product" }, { 1, -1, 0, 24, 0, "bytes from byte 0" },
    };
    static const char *const alignments[] = { "0", "24", "-8" };
    struct text t = { 0 }, e = { 0 };
    struct gguf g;
    struct lora_error err;
    size_t i;
    test_begin("GGUF: what is wrong is refused and named");
    for (i = 0; i < sizeof tensors / sizeof *tensors; i++, text_free(&e)) {
        put_tensor(&e, "tensor", tensors[i].n_dims, tensors[i].d0, tensors[i].d1, tensors[i].type, tensors[i].offset);
        check_refused(&e, 1, tensors[i].says);
    }
    put_tensor(&e, "twice", 1, 1, 0, 0, 0), put_tensor(&e, "twice", 1, 1, 0, 0, 32);
    check_refused(&e, 2, "each tensor once"), text_free(&e);
    put_tensor(&e, "first", 1, 9, 0, 0, 0), put_tensor(&e, "second", 1, 1, 0, 0, 32);
    check_refused(&e, 2, "some of those of first"), text_free(&e);
    put_tensor(&e, "", 1, 1, 0, 0, 0);
    check_refused(&e, 1, "1 to 65535"), text_free(&e);
    put_key(&e, "key", 13);
    check_refused(&e, 0, "from 0 to 12"), text_free(&e);
    put_key(&e, "key", GGUF_BOOL), put_le(&e, 2, 1);
    check_refused(&e, 0, "boolean"), text_free(&e);
    put_key(&e, "key", GGUF_ARRAY), put_le(&e, GGUF_ARRAY, 4), put_le(&e, 1, 8), put_le(&e, GGUF_U8, 4), put_le(&e, 0, 8);
    check_refused(&e, 0, "array of arrays"), text_free(&e);
    put_key(&e, "key", GGUF_ARRAY), put_le(&e, GGUF_STRING, 4), put_le(&e, UINT64_MAX / 8, 8);
    check_refused(&e, 0, "end of the file"), text_free(&e);
    put_key(&e, "key", GGUF_ARRAY), put_le(&e, GGUF_U64, 4), put_le(&e, UINT64_MAX / 8 + 2, 8);
    check_refused(&e, 0, "end of the file"), text_free(&e);
    put_key(&e, "key", GGUF_STRING), put_le(&e, UINT64_MAX, 8);
    check_refused(&e, 0, "end of the file"), text_free(&e);
    put_le(&e, 3, 8), text_add(&e, "a\0b", 3), put_le(&e, GGUF_U8, 4), put_le(&e, 1, 1);
    check_refused(&e, 0, "none of them 0"), text_free(&e);
    for (i = 0; i < 3; i++, text_free(&e)) {
        put_key(&e, "general.alignment", GGUF_I32), put_le(&e, (uint64_t)atoi(alignments[i]), 4);
        check_refused(&e, 0, alignments[i]);
    }
    make_gguf(&t, 1);
    CHECK(open_gguf(&g, &t, &err) == -1 && !strcmp(err.found, "version 1"), "%s", err.found);
    memcpy(t.s + 4, "\0\0\0\3", 4);
    CHECK(open_gguf(&g, &t, &err) == -1 && !strcmp(err.found, "a big-endian file"), "%s", err.found);
    memcpy(t.s, "GGML", 4);
    CHECK(open_gguf(&g, &t, &err) == -1 && strstr(err.expected, "a GGUF file"), "%s", err.expected);
    text_free(&t);
    for (i = 0; i < 2; i++, text_free(&t)) {      /* numbers of entries that no file holds */
        text_puts(&t, "GGUF"), put_le(&t, 3, 4), put_le(&t, i ? 0 : UINT64_MAX, 8), put_le(&t, i ? UINT64_MAX / 2 : 0, 8);
        CHECK(open_gguf(&g, &t, &err) == -1 && strstr(err.found, "end of the file"), "%s", err.found);
    }
}

static void check_gguf(const struct gguf *g, const char *label)
{
    unsigned sum = 0;
    int i, bad = 0;
    size_t j, bytes;
    for (i = 0; i < g->n_values; i++) {
        const struct gguf_value *v = &g->values[i];
        struct lora_error err;
        double x = 0;
        int n = 0;
        char *s;
        bad += gguf_get(g, v->key) != v;
        for (j = 0; v->strings && j < v->n; j++) sum += touch((const unsigned char *)v->strings[j].s, v->strings[j].n);
        for (j = 0; !v->strings && j < v->n; j++) sum += gguf_array_number(v, j) > 0;
        gguf_get_number(g, v->key, &x, &err);
        gguf_get_int(g, v->key, &n, &err);
        gguf_get_bool(g, v->key, &n, &err);
        bad += x - x != 0;
        if (!gguf_get_string(g, v->key, &s, &err)) free(s);
    }
    for (i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        bad += gguf_find(g, t->name) != t || type_bytes(&bytes, t->type, t->count) || bytes != t->bytes;
        bad += t->data < g->map.data || t->bytes > g->map.size - (size_t)(t->data - g->map.data);
        if (!bad) sum += touch(t->data, t->bytes);
    }
    CHECK(!bad && sum < 0xffffffffu, "%s", label);
}

static void test_gguf_damage(void)
{
    struct text t = { 0 };
    struct gguf g;
    struct lora_error err;
    char label[64];
    size_t i;
    int v, accepted = 0;
    test_begin("GGUF: cut and damaged files");
    make_gguf(&t, 3);
    for (i = 0; i < t.n; i++) {
        put_file(t.s, i);
        CHECK(gguf_open(&g, temporary, &err) == -1 && strstr(err.where, temporary), "cut at %zu", i);
    }
    for (i = 0; i < t.n; i++) {
        unsigned char was = (unsigned char)t.s[i];
        for (v = 0; v < 12; v++) {
            static const char values[] = "\0\1\177\377";
            t.s[i] = (char)(v < 8 ? was ^ 1 << v : values[v - 8]);
            put_file(t.s, t.n);
            sprintf(label, "byte %zu = %d", i, t.s[i]);
            if (gguf_open(&g, temporary, &err)) CHECK(strstr(err.where, temporary) != NULL, "%s", label);
            else {
                accepted++;
                check_gguf(&g, label);
                gguf_close(&g);
            }
        }
        t.s[i] = (char)was;
    }
    CHECK(accepted > 84 * 12, "%d accepted", accepted);
    text_free(&t);
}

/* ---- others' files ---- */

/* raw [rows, bytes] decodes to want [rows, numbers]. */
static void check_blocks(int type, const struct st_tensor *raw, const struct st_tensor *want)
{
    struct weight w = { 0 };
    const char *name = weight_types[type].name;
    float out[256];
    size_t bytes;
    int row, bad = 0;
    CHECK(raw && want && (want->dims[1] == 32 || want->dims[1] == 256) && want->dims[0] >= 3, "%s", name);
    if (!raw || !want) return;
    bytes = 4 * want->dims[1];
    w.type = type;
    w.rows = (int)want->dims[0];
    w.cols = (int)want->dims[1];
    w.data = raw->data;
    for (row = 0; row < w.rows; row++) {
        weight_decode(&w, row, 0, w.cols, out);
        bad += memcmp(out, want->data + (size_t)row * bytes, bytes) != 0;
    }
    CHECK(!bad, "%s: %d rows of %d differ", name, bad, w.rows);
}

static void test_own_blocks(void)
{
    struct safetensors s;
    struct lora_error err;
    int type;
    test_begin("blocks decoded as gguf-py decodes them, bit for bit");
    CHECK(!safetensors_open(&s, "test/goldens/data/blocks.safetensors", &err), "%s: %s", err.what, err.where);
    for (type = 0; type < TYPE_COUNT; type++) {
        char raw[32], want[32];
        if (!weight_types[type].unpack) continue;
        snprintf(raw, sizeof raw, "%s.raw", weight_types[type].name);
        snprintf(want, sizeof want, "%s.dequant", weight_types[type].name);
        check_blocks(type, safetensors_find(&s, raw), safetensors_find(&s, want));
    }
    safetensors_close(&s);
}

static void test_block_goldens(const char *dir)
{
    int type;
    test_begin("blocks decoded as in the shared goldens, bit for bit");
    for (type = TYPE_F16; type < TYPE_COUNT; type++) {
        char path[1024];
        struct safetensors s;
        struct lora_error err;
        if (!weight_types[type].unpack && type != TYPE_F16 && type != TYPE_BF16) continue;
        snprintf(path, sizeof path, "%s/goldens/gguf/blocks/%s.safetensors", dir, weight_types[type].name);
        if (safetensors_open(&s, path, &err)) {
            CHECK(0, "%s: %s", err.what, err.where);
            continue;
        }
        check_blocks(type, safetensors_find(&s, "raw"), safetensors_find(&s, "dequant"));
        safetensors_close(&s);
    }
}

/* "blk.1.attn_q.weight" -> "model.layers.1.self_attn.q_proj.weight" */
static void hf_name(char *out, const char *gguf)
{
    static const char *const pairs[][2] = {
        { "attn_q", "self_attn.q_proj" }, { "attn_k", "self_attn.k_proj" }, { "attn_v", "self_attn.v_proj" },
        { "attn_output", "self_attn.o_proj" }, { "ffn_gate", "mlp.gate_proj" }, { "ffn_up", "mlp.up_proj" },
        { "ffn_down", "mlp.down_proj" }, { "attn_norm", "input_layernorm" }, { "ffn_norm", "post_attention_layernorm" },
        { "token_embd.weight", "model.embed_tokens.weight" }, { "output_norm.weight", "model.norm.weight" },
        { "output.weight", "lm_head.weight" },
    };
    char part[64];
    int layer;
    size_t i;
    strcpy(out, "");
    for (i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (!strcmp(gguf, pairs[i][0])) strcpy(out, pairs[i][1]);
        else if (sscanf(gguf, "blk.%d.%63[a-z_].weight", &layer, part) == 2 && !strcmp(part, pairs[i][0]))
            sprintf(out, "model.layers.%d.%s.weight", layer, pairs[i][1]);
}

static void test_gguf_golden(const char *dir, const char *name)
{
    char path[1024], hf[128];
    struct gguf g;
    struct safetensors s;
    struct lora_error err;
    int i, row, compared = 0;
    snprintf(path, sizeof path, "%s/goldens/gguf/%s.gguf", dir, name);
    if (gguf_open(&g, path, &err)) {
        CHECK(0, "%s: %s: %s, %s", err.what, err.where, err.expected, err.found);
        return;
    }
    snprintf(path, sizeof path, "%s/goldens/gguf/%s-hf/model.safetensors", dir, name);
    if (safetensors_open(&s, path, &err)) {
        CHECK(0, "%s: %s: %s, %s", err.what, err.where, err.expected, err.found);
        gguf_close(&g);
        return;
    }
    check_gguf(&g, name);
    check_st(&s, name);
    for (i = 0; i < g.n_tensors; i++) {
        const struct gguf_tensor *t = &g.tensors[i];
        const struct st_tensor *want;
        struct weight w = { 0 };
        float out[64];
        int bad = 0;
        hf_name(hf, t->name);
        want = safetensors_find(&s, hf);
        CHECK(want && want->type == TYPE_F32 && want->count == t->count && t->dims[0] <= 64, "%s (%s)", t->name, hf);
        if (!want || t->dims[0] > 64) continue;
        w.type = t->type;
        w.rows = (int)t->dims[1];
        w.cols = (int)t->dims[0];
        w.head_rows = strstr(t->name, "attn_q") || strstr(t->name, "attn_k") ? 8 : 0;
        w.data = t->data;
        for (row = 0; row < w.rows; row++) {
            weight_decode(&w, row, 0, w.cols, out);
            bad += memcmp(out, want->data + (size_t)row * (size_t)w.cols * 4, (size_t)w.cols * 4) != 0;
        }
        CHECK(!bad, "%s: %d rows differ", t->name, bad);
        compared++;
    }
    CHECK(compared >= 20, "%d tensors compared", compared);
    safetensors_close(&s);
    gguf_close(&g);
}

int main(void)
{
    const char *dir = shared_dir();
    sprintf(temporary, "/tmp/lora-test-formats-%ld", (long)getpid());
    test_halves();
    test_decoders();
    test_own_blocks();
    test_safetensors_read();
    test_safetensors_refused();
    test_safetensors_damage();
    test_safetensors_write();
    test_gguf_read();
    test_gguf_refused();
    test_gguf_damage();
    if (dir) {
        test_block_goldens(dir);
        test_begin("a GGUF file and the same model in safetensors");
        test_gguf_golden(dir, "tiny-mix");
        test_gguf_golden(dir, "tiny-f32");
    } else {
        test_skip("blocks decoded as gguf-py decodes them", "no shared folder");
        test_skip("a GGUF file and the same model in safetensors", "no shared folder");
    }
    remove(temporary);
    return test_end();
}
