/* nf4.c - see nf4.h: 4-bit and 8-bit weights, encoded and decoded as bitsandbytes does. */
#include "nf4.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the tables ---- */

#define ITEM(value) value,
const float nf4_values[16] = { NF4_VALUES(ITEM) };
const float fp4_values[16] = { FP4_VALUES(ITEM) };
#undef ITEM

size_t block_count(size_t n, int block) { return n / (size_t)block + (n % (size_t)block != 0); }

/* ---- encoding arrays ---- */

/* The largest magnitude; -1 when a number is not finite. */
static int largest(float *out, const float *x, size_t n)
{
    float most = 0;
    int finite = 1;
    size_t i;
    for (i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        finite &= a <= FLT_MAX;
        most = a > most ? a : most;
    }
    *out = most;
    return finite ? 0 : -1;
}

/* y[n] = x / absmax, of a block. */
static int normalise(float *y, float *absmax, const float *x, int n, int block)
{
    float divisor, inverse;
    int i, bad = largest(absmax, x, (size_t)n);
    divisor = block_divisor(*absmax);
    inverse = 1 / divisor;
    for (i = 0; i < n; i++) y[i] = block_normalise(x[i], divisor, inverse, n == block);
    return bad;
}

static int part_of(size_t n, size_t start, int block) { return n - start < (size_t)block ? (int)(n - start) : block; }

/* FP4's codes in the order of their values. */
static const unsigned char fp4_order[16] = { 11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3 };

int encode_4bit(unsigned char *packed, float *absmax, const float *x, size_t n, int block, int type)
{
    float y[BLOCK_MOST], values[16], bounds[15];
    unsigned char order[16];
    size_t start;
    int i, bad = 0;
    for (i = 0; i < 16; i++) {
        order[i] = type == TYPE_FP4 ? fp4_order[i] : (unsigned char)i;
        values[i] = type == TYPE_FP4 ? fp4_values[fp4_order[i]] : nf4_values[i];
    }
    code_midpoints(bounds, values, 16);
    for (start = 0; start < n; start += (size_t)block, packed += block / 2) {
        int m = part_of(n, start, block);
        bad |= normalise(y, absmax, x + start, m, block);
        if (m < block && *absmax < LEAST_DIVISOR) *absmax = LEAST_DIVISOR;
        absmax++;
        if (m % 2) y[m] = 0;
        for (i = 0; i < m; i += 2)
            packed[i / 2] = (unsigned char)(order[code_of(bounds, 8, y[i])] << 4 | order[code_of(bounds, 8, y[i + 1])]);
    }
    return bad;
}

int encode_8bit(unsigned char *codes, float *absmax, const float *x, size_t n, int block, const float map[256])
{
    float y[BLOCK_MOST], bounds[255];
    size_t start;
    int i, bad = 0;
    code_midpoints(bounds, map, 256);
    for (start = 0; start < n; start += (size_t)block) {
        int m = part_of(n, start, block);
        bad |= normalise(y, absmax++, x + start, m, block);
        for (i = 0; i < m; i++) *codes++ = (unsigned char)code_of(bounds, 128, y[i]);
    }
    return bad;
}

int encode_scales(unsigned char *codes, float *nested, float *offset, const float *absmax, size_t n)
{
    float map[256], x[NESTED_BLOCK];
    double sum = 0;
    size_t start, i;
    int m, k, bad = 0;
    dynamic_map(map, 1);
    for (i = 0; i < n; i++) sum += (double)absmax[i];
    *offset = (float)(sum / (double)n);
    for (start = 0; start < n; start += NESTED_BLOCK) {
        m = part_of(n, start, NESTED_BLOCK);
        for (k = 0; k < m; k++) x[k] = absmax[start + (size_t)k] - *offset;
        bad |= encode_8bit(codes + start, nested++, x, (size_t)m, NESTED_BLOCK, map);
    }
    return bad;
}

int encode_int8(signed char *codes, float *scale, const float *x, size_t n)
{
    float factor;
    size_t i;
    int bad = largest(scale, x, n);
    factor = 1 / *scale * 127;
    for (i = 0; i < n; i++) {
        float v = rintf(x[i] * factor);     /* halves to even */
        codes[i] = (signed char)(v >= -127 && v <= 127 ? v : 0);    /* 0 where 1 / scale is infinite */
    }
    return bad;
}

/* ---- decoding arrays ---- */

void decode_4bit(float *out, const unsigned char *packed, const float *absmax, size_t n, int block, const float *code)
{
    size_t i;
    for (i = 0; i < n; i++)
        out[i] = code[i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4] * absmax[i / (size_t)block];
}

void decode_8bit(float *out, const unsigned char *codes, const float *absmax, size_t n, int block, const float map[256])
{
    size_t i;
    for (i = 0; i < n; i++) out[i] = map[codes[i]] * absmax[i / (size_t)block];
}

/* ---- weights ---- */

void decode_4bit_weight(const struct weight *w, int row, int col, int n, float *out)
{
    const struct quantised *q = w->q;
    const unsigned char *p = w->data;
    size_t e = weight_element(w, row, col), block = (size_t)q->block, end;
    for (; n > 0; ) {
        float absmax = quantised_scale(q, e / block);
        end = (e / block + 1) * block;
        if (end - e > (size_t)n) end = e + (size_t)n;
        n -= (int)(end - e);
        for (; e < end; e++) *out++ = q->code[e % 2 ? p[e / 2] & 15 : p[e / 2] >> 4] * absmax;
    }
}

void decode_int8_weight(const struct weight *w, int row, int col, int n, float *out)
{
    size_t e = weight_element(w, row, col);
    const signed char *p = (const signed char *)w->data + e;
    float scale = w->q->absmax[e / (size_t)w->cols];
    int i;
    for (i = 0; i < n; i++) out[i] = (float)p[i] * scale * (1.0f / 127);
}

/* ---- quantising a matrix ---- */

int quantise_check(const struct quantise *how, struct lora_error *err)
{
    int block = how->block;
    if (how->type == TYPE_INT8 && !how->double_quant) return 0;
    if (how->type != TYPE_NF4 && how->type != TYPE_FP4) {
        fail(err, "cannot quantise", "%s", how->type == TYPE_INT8 ? "double quantisation" : "type");
        return expected(err, how->type == TYPE_INT8 ? "NF4 or FP4: INT8 has one scale to a row" : "NF4, FP4 or INT8");
    }
    if (block >= 32 && block <= BLOCK_MOST && !(block & (block - 1))) return 0;
    fail(err, "cannot quantise", "block size");
    expected(err, "a power of two from 32 to %d", BLOCK_MOST);
    return found(err, "%d", block);
}

/* A weight in the making. */
struct making {
    const struct quantise *how;
    struct quantised *q;
    unsigned char *data;
    float *absmax;              /* where the scales go as floats */
    float *spare;               /* the same where they are quantised in the end, else NULL */
    unsigned char *codes;
    float *nested;
    size_t count, done;         /* elements of the matrix, and encoded */
    int cols, threads;
};

static size_t round_up(size_t n) { return (n + 63) / 64 * 64; }

/* One piece of memory: the struct, the map, scales as floats, scales as bytes, the codes. */
static int make_room(struct making *z, int rows, struct lora_error *err)
{
    int twice = z->how->double_quant, block = z->how->type == TYPE_INT8 ? z->cols : z->how->block;
    size_t head = round_up(sizeof *z->q), map = twice ? 256 * sizeof(float) : 0, scales, floats, bytes, data;
    if (size_mul(&z->count, (size_t)rows, (size_t)z->cols) || z->count > SIZE_MAX / 8)
        return fail_memory(err, "a quantised weight", SIZE_MAX);
    scales = z->count ? block_count(z->count, block) : 0;
    floats = round_up((twice ? block_count(scales, NESTED_BLOCK) : scales) * sizeof(float));
    bytes = twice ? round_up(scales) : 0;
    data = z->how->type == TYPE_INT8 ? z->count : z->count / 2 + z->count % 2;
    if (twice && !(z->spare = new_array(scales, sizeof(float), err))) return -1;
    if (!(z->q = new_array(1, head + map + floats + bytes + data, err))) return -1;
    z->q->heap = map + floats + bytes + data;
    z->q->scales = scales;
    z->q->block = z->how->type == TYPE_INT8 ? 0 : block;
    z->q->nested_block = twice ? NESTED_BLOCK : 0;
    z->nested = (float *)((unsigned char *)z->q + head + map);
    z->codes = (unsigned char *)z->nested + floats;
    z->data = z->codes + bytes;
    z->absmax = twice ? z->spare : z->nested;
    if (twice) dynamic_map((float *)((unsigned char *)z->q + head), 1);
    return 0;
}

/* The next n elements, which end where a piece does or with the matrix. */
static int encode_part(struct making *z, const float *x, size_t n)
{
    int is_int8 = z->how->type == TYPE_INT8, bad = 0;
    size_t piece = is_int8 ? (size_t)z->cols : BLOCK_MOST;
    int i, pieces = (int)(n / piece + (n % piece != 0));
    #pragma omp parallel for num_threads(z->threads) reduction(|:bad)
    for (i = 0; i < pieces; i++) {
        size_t at = (size_t)i * piece, e = z->done + at, m = n - at < piece ? n - at : piece;
        if (is_int8) bad |= encode_int8((signed char *)z->data + e, z->absmax + e / piece, x + at, m);
        else bad |= encode_4bit(z->data + e / 2, z->absmax + e / (size_t)z->how->block, x + at, m, z->how->block, z->how->type);
    }
    return bad;
}

static int not_finite(const struct making *z, const float *x, const char *name, struct lora_error *err)
{
    size_t i = 0, e;
    while (fabsf(x[i]) <= FLT_MAX) i++;
    e = z->done + i;
    fail(err, "cannot quantise", "%s, row %zu, column %zu", name, e / (size_t)z->cols, e % (size_t)z->cols);
    expected(err, "a finite number");
    return found(err, "%g", x[i]);
}

/* Rows are gathered until they fill a chunk; what is not a whole piece stays for the next. */
static int encode_rows(struct making *z, int rows, row_source *source, void *ctx, const char *name, struct lora_error *err)
{
    enum { CHUNK = 1 << 18 };
    size_t cols = (size_t)z->cols, filled = 0, n;
    size_t room = z->count < CHUNK + cols ? z->count : CHUNK + cols;
    float *x = new_array(room, sizeof *x, err);
    int row, bad = x ? 0 : -1;
    for (row = 0; row < rows && !bad; row++) {
        if ((bad = source(ctx, row, x + filled, err))) break;
        filled += cols;
        if (row + 1 < rows && filled < CHUNK) continue;
        n = row + 1 < rows && z->how->type != TYPE_INT8 ? filled - filled % BLOCK_MOST : filled;
        if (encode_part(z, x, n)) bad = not_finite(z, x, name, err);
        z->done += n;
        filled -= n;
        memmove(x, x + n, filled * sizeof *x);
    }
    free(x);
    return bad ? -1 : 0;
}

int weight_quantise(struct weight *out, const struct quantise *how, int rows, int cols, row_source *row, void *ctx,
                    int threads, const char *name, struct lora_error *err)
{
    struct making z = { .how = how, .cols = cols, .threads = threads };
    struct quantised *q;
    if (quantise_check(how, err) || make_room(&z, rows, err) || encode_rows(&z, rows, row, ctx, name, err)) {
        free(z.spare);
        free(z.q);
        return -1;
    }
    q = z.q;
    if (how->type != TYPE_INT8) q->code = how->type == TYPE_NF4 ? nf4_values : fp4_values;
    if (how->double_quant) {
        encode_scales(z.codes, z.nested, &q->offset, z.absmax, q->scales);
        q->map = z.nested - 256;
        q->nested = z.nested;
        q->codes = z.codes;
    } else {
        q->absmax = z.absmax;
    }
    free(z.spare);
    *out = (struct weight){ .type = how->type, .rows = rows, .cols = cols, .data = z.data, .q = q };
    return 0;
}

void weight_free(struct weight *w)
{
    free((void *)w->q);
    memset(w, 0, sizeof *w);
}

int weight_row(void *ctx, int row, float *out, struct lora_error *err)
{
    const struct weight *w = ctx;
    (void)err;
    weight_decode(w, row, 0, w->cols, out);
    return 0;
}

/* ---- errors ---- */

struct row_error { double error, signal, largest; };

/* NaN stays. */
static double larger(double most, double x) { return most != most || x <= most ? most : x; }

static struct row_error row_difference(const struct weight *a, const struct weight *b, int row)
{
    enum { STRIP = 256 };
    struct row_error r = { 0, 0, 0 };
    float x[STRIP], y[STRIP];
    int col, n, i;
    for (col = 0; col < a->cols; col += n) {
        n = a->cols - col < STRIP ? a->cols - col : STRIP;
        weight_decode(a, row, col, n, x);
        weight_decode(b, row, col, n, y);
        for (i = 0; i < n; i++) {
            double d = (double)y[i] - (double)x[i];
            r.error += d * d;
            r.signal += (double)x[i] * (double)x[i];
            r.largest = larger(r.largest, fabs(d));
        }
    }
    return r;
}

int weight_difference(struct weight_error *e, const struct weight *a, const struct weight *b, int threads,
                      struct lora_error *err)
{
    struct row_error *rows = new_array((size_t)a->rows, sizeof *rows, err), sum = { 0, 0, 0 };
    int i;
    (void)threads;      /* without OpenMP */
    if (!rows) return -1;
    #pragma omp parallel for num_threads(threads)
    for (i = 0; i < a->rows; i++) rows[i] = row_difference(a, b, i);
    for (i = 0; i < a->rows; i++) {
        sum.error += rows[i].error;
        sum.signal += rows[i].signal;
        sum.largest = larger(sum.largest, rows[i].largest);
    }
    free(rows);
    e->mean_square = sum.error / ((double)a->rows * a->cols);
    e->largest = sum.largest;
    e->snr = sum.error > 0 ? 10 * log10(sum.signal / sum.error) : HUGE_VAL;
    return 0;
}

int weight_quantise_error(struct weight_error *e, const struct weight *w, const struct quantise *how, int threads,
                          const char *name, struct lora_error *err)
{
    struct weight copy;
    int bad;
    if (weight_quantise(&copy, how, w->rows, w->cols, weight_row, (void *)w, threads, name, err)) return -1;
    bad = weight_difference(e, w, &copy, threads, err);
    weight_free(&copy);
    return bad;
}
