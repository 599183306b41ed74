/* blocks.h - GGUF's block types: one block of a file to its numbers, as ggml decodes it, bit for bit. */
#ifndef BLOCKS_H
#define BLOCKS_H

#define LARGEST_BLOCK 256

/* p: the block's bytes, at any address. out: 32 numbers, of the K types 256. */
void unpack_q8_0(const unsigned char *p, float *out);
void unpack_q4_0(const unsigned char *p, float *out);
void unpack_q4_1(const unsigned char *p, float *out);
void unpack_q5_0(const unsigned char *p, float *out);
void unpack_q5_1(const unsigned char *p, float *out);
void unpack_q2_k(const unsigned char *p, float *out);
void unpack_q3_k(const unsigned char *p, float *out);
void unpack_q4_k(const unsigned char *p, float *out);
void unpack_q5_k(const unsigned char *p, float *out);
void unpack_q6_k(const unsigned char *p, float *out);
void unpack_iq4_nl(const unsigned char *p, float *out);

/* Scale and minimum of group g of 8 of Q4_K and Q5_K: 6 bits each, in the 12 bytes s. The first four of each are the
 * low bits of bytes 0-3 and 4-7; of the others four bits are in bytes 8-11, the two high ones on top of those bytes. */
static inline void scales_of_k4(const unsigned char *s, int g, int *scale, int *minimum)
{
    if (g < 4) {
        *scale = s[g] & 63;
        *minimum = s[g + 4] & 63;
    } else {
        *scale = (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
        *minimum = s[g + 4] >> 4 | s[g] >> 6 << 4;
    }
}

#endif
