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

/* Scale and minimum, 6 bits each, of group g of 8: s are the 12 bytes of scales of Q4_K and Q5_K. */
void scales_of_k4(const unsigned char *s, int g, int *scale, int *minimum);

#endif
