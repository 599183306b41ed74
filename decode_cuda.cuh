/* decode_cuda.cuh - weights to numbers on the device: a thread decodes 32 numbers of a row, with the bits of
 * weight_decode(). They go to an array of the thread's own whose indices are all constants once the loops are unrolled,
 * so that it is registers; the caller stores them where its tile wants them.
 *
 * A thread loads its numbers' bytes 16 at a time where they lie so, which they do in every type but those whose blocks
 * are no multiple of 16 bytes. Threads side by side take pieces of a row side by side, or rows one below the other:
 * the lines that one load of a warp leaves half used are in the first cache for its next. */
#ifndef DECODE_CUDA_CUH
#define DECODE_CUDA_CUH

#include "blocks.h"
#include "device.cuh"
#include "nf4.h"

enum { STRIP = 32 };

/* The types that decode_piece() reads. */
static int decodes(const struct weight *w)
{
    switch (w->type) {
    case TYPE_REAL: case TYPE_F32: case TYPE_F16: case TYPE_BF16: case TYPE_INT8: case TYPE_NF4: case TYPE_FP4:
    case TYPE_Q8_0: case TYPE_Q4_0: case TYPE_Q4_1: case TYPE_Q5_0: case TYPE_Q5_1: case TYPE_IQ4_NL:
    case TYPE_Q2_K: case TYPE_Q3_K: case TYPE_Q4_K: case TYPE_Q5_K: case TYPE_Q6_K: return 1;
    default: return 0;
    }
}

/* p[bytes] as words, and zeros up to `count` words: 16 or 4 bytes at a time where p and `bytes` are multiples of them. */
static __device__ void load_words(unsigned *words, int count, const unsigned char *p, int bytes)
{
    int i, b, together = (int)((size_t)p | (size_t)bytes) & 15;
    if (!together) {
        for (i = 0; i < count; i += 4) {
            uint4 v = { 0, 0, 0, 0 };
            if (4 * i < bytes) v = *(const uint4 *)(p + 4 * i);
            words[i] = v.x;
            words[i + 1] = v.y;
            words[i + 2] = v.z;
            words[i + 3] = v.w;
        }
    } else if (!(together & 3)) {
        for (i = 0; i < count; i++) words[i] = 4 * i < bytes ? *(const unsigned *)(p + 4 * i) : 0;
    } else {
        for (i = 0; i < count; i++)
            for (words[i] = 0, b = 0; b < 4; b++)
                if (4 * i + b < bytes) words[i] |= (unsigned)p[4 * i + b] << 8 * b;
    }
}

/* A block of the types of 32 numbers, which is at an even address, to an array of the thread's own. */
static __device__ const unsigned char *load_block(unsigned short *raw, const unsigned char *p, int bytes)
{
    int i;
    for (i = 0; i < bytes / 2; i++) raw[i] = ((const unsigned short *)p)[i];
    return (const unsigned char *)raw;
}

/* NF4 and FP4 (nf4.h): elements e .. e + n - 1, which lie in one block or, as blocks are of 32 elements or more, in two. */
static __device__ void decode_4bit_piece(const struct quantised *q, const unsigned char *p, size_t e, int n, float *out)
{
    size_t block = e / (size_t)q->block;
    int left = (int)((block + 1) * (size_t)q->block - e), odd = (int)(e & 1), j;
    float first = quantised_scale(q, block), second = left < n ? quantised_scale(q, block + 1) : first;
    unsigned words[5];
    p += e / 2;
    words[4] = 0;
    if (!odd) {
        load_words(words, 4, p, (n + 1) / 2);
    } else {        /* n codes and the one before them: 17 bytes at most */
        load_words(words, 4, p, n / 2 + 1 < 16 ? n / 2 + 1 : 16);
        if (n == STRIP) words[4] = p[16];
        for (j = 0; j < 4; j++) {       /* half a byte towards the front */
            unsigned high = words[j] << 4 & 0xf0f0f0f0u, low = words[j] >> 12 & 0x000f0f0fu;
            words[j] = high | low | (words[j + 1] >> 4 & 15) << 24;
        }
    }
    for (j = 0; j < STRIP; j++) {
        unsigned code = words[j / 8] >> (j % 8 / 2 * 8 + (j % 2 ? 0 : 4)) & 15;
        out[j] = j < n ? q->code[code] * (j < left ? first : second) : 0;
    }
}

/* n numbers of row `row` from column col on, 0 <= n <= 32, and zeros up to 32. Of GGUF's blocks n is 32, and col a
 * multiple of it. w.q is the host's, *q what it points at, with arrays on the device. */
static __device__ void decode_piece(const struct weight *w, const struct quantised *q, int row, int col, int n, float *out)
{
    size_t e = weight_element(w, row, col);
    const unsigned char *p = (const unsigned char *)w->data;
    int piece = (int)(e / STRIP % 8), j;        /* of a block of 256 */
    unsigned words[STRIP];
    unsigned short raw[17];
    float scale;
    if (n <= 0) {
        for (j = 0; j < STRIP; j++) out[j] = 0;
        return;
    }
    switch (w->type) {
    case TYPE_REAL: case TYPE_F32:
        load_words(words, STRIP, p + 4 * e, 4 * n);
        for (j = 0; j < STRIP; j++) out[j] = float_of(words[j]);
        break;
    case TYPE_F16:
        load_words(words, STRIP / 2, p + 2 * e, 2 * n);
        for (j = 0; j < STRIP; j++) out[j] = f16_to_f32((uint16_t)(words[j / 2] >> 16 * (j % 2)));
        break;
    case TYPE_BF16:
        load_words(words, STRIP / 2, p + 2 * e, 2 * n);
        for (j = 0; j < STRIP; j++) out[j] = float_of(j % 2 ? words[j / 2] & 0xffff0000u : words[j / 2] << 16);
        break;
    case TYPE_INT8:
        load_words(words, STRIP / 4, p + e, n);
        scale = q->absmax[e / (size_t)w->cols];
        for (j = 0; j < STRIP; j++) out[j] = (float)(signed char)(words[j / 4] >> 8 * (j % 4) & 255) * scale * (1.0f / 127);
        break;
    case TYPE_NF4: case TYPE_FP4: decode_4bit_piece(q, p, e, n, out); break;
    case TYPE_Q8_0:   unpack_q8_0(load_block(raw, p + e / 32 * 34, 34), 0, out); break;
    case TYPE_Q4_0:   unpack_q4_0(load_block(raw, p + e / 32 * 18, 18), 0, out); break;
    case TYPE_Q4_1:   unpack_q4_1(load_block(raw, p + e / 32 * 20, 20), 0, out); break;
    case TYPE_Q5_0:   unpack_q5_0(load_block(raw, p + e / 32 * 22, 22), 0, out); break;
    case TYPE_Q5_1:   unpack_q5_1(load_block(raw, p + e / 32 * 24, 24), 0, out); break;
    case TYPE_IQ4_NL: unpack_iq4_nl(load_block(raw, p + e / 32 * 18, 18), 0, out); break;
    case TYPE_Q2_K:   unpack_q2_k(p + e / 256 * 84, piece, out); break;
    case TYPE_Q3_K:   unpack_q3_k(p + e / 256 * 110, piece, out); break;
    case TYPE_Q4_K:   unpack_q4_k(p + e / 256 * 144, piece, out); break;
    case TYPE_Q5_K:   unpack_q5_k(p + e / 256 * 176, piece, out); break;
    case TYPE_Q6_K:   unpack_q6_k(p + e / 256 * 210, piece, out); break;
    }
}

#endif
