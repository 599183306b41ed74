/* kernels.h - the table of kernels and the contract of each operation.
 *
 * lora.c is written once over this table. It looks into no buffer: a buf is opaque, offsets count
 * elements, scalars are double, and only losses and norms come back. So the same model runs over
 *     ref     kernels_ref.c in float, strict C99: read this one
 *     ref64   the same file compiled with real = double: the oracle
 *     avx2    kernels_avx2.c
 *     avx512  kernels_avx512.c: what is faster in 512 bits, over avx2
 *     neon    kernels_neon.c, on AArch64
 *     cuda    kernels_cuda.cu, a shared object of its own (docs/cuda.md)
 * and whatever else fills the table.
 *
 * Contract, for every operation:
 * - Matrices are row-major. x[N,C] has N rows of C elements, without gaps.
 * - "=" overwrites (the old content may be NaN), "+=" adds.
 * - Outputs do not overlap inputs unless the comment says "in place".
 * - A row of a product's result depends on that row alone, not on N or on its place among the
 *   others, so rows may be packed in any way. (A table may use another order of sums for products
 *   of few rows, N < FEW_ROWS.)
 * - The same bits at any number of threads.
 * - N, sizes may be 0: nothing is done. */
#ifndef KERNELS_H
#define KERNELS_H

#include "weight.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KERNELS_ABI 5
#define KERNEL_UNSUPPORTED 1        /* an operation's answer to a weight type it cannot read */
#define FEW_ROWS 8
#define MOMENT_BLOCK 256

typedef struct buf buf;             /* elements of the backend's real type: never completed */
typedef struct ints ints;           /* 32-bit integers in the backend's memory */

/* Arithmetic of the products with frozen weights. */
enum compute { COMPUTE_F32, COMPUTE_BF16 };

/* What a table is told once: threads, its scratch memory, and how to multiply. */
struct kernel_ctx {
    int threads;
    void *work;             /* work_bytes(...) bytes at a multiple of 64, or NULL if that was 0 */
    size_t work_bytes;
    void *own;              /* the table's own, made by open() */
    int compute;            /* enum compute: COMPUTE_BF16 only where has_bf16() says 1 */
};

/* The largest of each size that will be asked for: decides the scratch memory. */
struct kernel_sizes {
    int threads;
    int N;                  /* rows */
    int width;              /* the largest matrix dimension but V: C, F, NH*HS ... */
    int V;
    int HS, NH, NKV;
    int keys;               /* the most keys one query sees */
    int segments;
};

/* A segment of a pack, and whose keys it sees. Eight ints, so a table of them is ints too.
 * Query rows q_start .. q_start + q_len - 1; key rows k_start .. k_start + k_len - 1 of the key and
 * value buffers (the pack's own in training, the cache in generation). The queries are the LAST
 * q_len of its keys: query i sees the keys 0 .. k_len - q_len + i of its own segment, and all keys
 * of its prefix, the segment it continues (an index below its own; -1: none), of the prefix's
 * prefix, and so on. q_len may be 0: keys only. pos is the position of its first key. */
struct segment {
    int q_start, q_len;
    int k_start, k_len;
    int prefix;
    int pos;
    int adapter;            /* index of the adapter that its rows use, -1: the base alone */
    int visit;              /* number of this row's visit in the run: index of its dropout masks */
};

struct adamw_step {
    double lr, beta1, beta2, eps, weight_decay;
    double correction1, correction2;    /* 1 - beta1^t, 1 - beta2^t, t counts from 1 */
    double grad_scale;                  /* clipping: g is multiplied by it first */
};

/* What an adapter adds to a linear, of rank r: A [r,I] and B [O,r], both TYPE_REAL. */
struct low_rank {
    const struct weight *a, *b;
    double scale;           /* alpha / r */
};

struct kernels {
    int abi;                /* KERNELS_ABI */
    int bytes;              /* sizeof(struct kernels) */
    const char *name, *about;
    int elem;               /* bytes of one element: 4 or 8 */
    /* 0: buffers are host memory. 1: they lie where only this table reads (a GPU's memory), and all that it is given
     * lies there: buffers, scratch memory, a weight's data and the arrays of its struct quantised, each of these from a
     * multiple of 64 bytes (kernels_lay_weight()); pointers into it are only counted with here. Such a table is
     * complete: no other can stand in for an entry of it. */
    int own_memory;
    /* The host table whose entries stand where this one's are empty, and that is asked where an operation answers
     * KERNEL_UNSUPPORTED. NULL in a shared object: the best one that is usable; under `lora verify` ref. No table
     * that stands below another has memory of its own, and below one that has it there is none: else it is refused. */
    const struct kernels *below;

    /* 1: can run here. 0: cannot, and why is said in `why` (n bytes). */
    int (*usable)(char *why, size_t n);
    /* The same of COMPUTE_BF16; when 1, `why` says by what instructions. NULL: this table has f32 alone. */
    int (*has_bf16)(char *why, size_t n);
    size_t (*work_bytes)(const struct kernel_sizes *sizes);
    int (*open)(struct kernel_ctx *c);      /* 0 or -1; the scratch memory is there by then */
    void (*close)(struct kernel_ctx *c);

    /* Memory. alloc gives zeroed bytes at a multiple of 64, or NULL. up and down convert; up_bytes
     * and down_bytes copy weights and codes as they are. */
    void *(*alloc)(struct kernel_ctx *c, size_t bytes);
    void (*release)(struct kernel_ctx *c, void *p);
    void (*up)(struct kernel_ctx *c, buf *dst, const float *src, size_t n);
    void (*up64)(struct kernel_ctx *c, buf *dst, const double *src, size_t n);
    void (*up_ints)(struct kernel_ctx *c, ints *dst, const int *src, size_t n);
    int (*up_bytes)(struct kernel_ctx *c, void *dst, const void *src, size_t n);
    void (*down)(struct kernel_ctx *c, float *dst, const buf *src, size_t n);
    void (*down64)(struct kernel_ctx *c, double *dst, const buf *src, size_t n);
    void (*down_ints)(struct kernel_ctx *c, int *dst, const ints *src, size_t n);
    void (*down_bytes)(struct kernel_ctx *c, void *dst, const void *src, size_t n);
    /* Bytes that are free in the table's own memory, 0 where that is not known; NULL in a table over the host's. */
    size_t (*memory)(void);
    /* 1: something failed since open() that could not be said at once, as a launch or a copy, and `why` (n bytes) says
     * what: numbers that came back since are not to be used. 0: nothing did. NULL: nothing can. It is asked where losses,
     * norms, logits and tensors come back. */
    int (*failed)(struct kernel_ctx *c, char *why, size_t n);

    /* ---- moving ---- */
    void (*zero)(struct kernel_ctx *c, buf *x, size_t n);                       /* x[n] = 0 */
    void (*copy)(struct kernel_ctx *c, buf *out, const buf *x, size_t n);       /* out[n] = x[n] */
    /* out[M,C] = x[rows[m],:] */
    void (*gather)(struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C);
    /* out[rows[m],:] += x[M,C]; no row twice */
    void (*scatter_add)(struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C);

    /* ---- embedding ---- out[N,C] = W[ids[n],:], W [V,C] */
    int (*embed)(struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N);
    /* dw[ids[n],:] += dout[n,:], in the order of n for each row of dw [V,C] */
    void (*embed_backward)(struct kernel_ctx *c, buf *dw, const buf *dout, const ints *ids,
                           int N, int C);

    /* ---- products ----
     * Under COMPUTE_BF16, where W is frozen (not TYPE_REAL) and N >= FEW_ROWS, matmul and matmul_dx round
     * x or dout, and W, to bf16 first: to nearest, ties to even, denormals to 0. Sums are floats all the same.
     * out[N,O] = scale * x[N,I] W^T + bias, or += when accumulate; W [O,I]; bias [O] or NULL */
    int (*matmul)(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w,
                  const buf *bias, double scale, int accumulate, int N);
    /* dx[N,I] = scale * dout[N,O] W, or += when accumulate */
    int (*matmul_dx)(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w,
                     double scale, int accumulate, int N);
    /* dw[O,I] += scale * dout[N,O]^T x[N,I]: sums over the rows in their order */
    void (*matmul_dw)(struct kernel_ctx *c, buf *dw, const buf *dout, const buf *x,
                      double scale, int N, int O, int I);
    /* db[O] += sum over n of dout[n,:] */
    void (*bias_backward)(struct kernel_ctx *c, buf *db, const buf *dout, int N, int O);

    /* ---- an adapted linear ---- (Hu et al. 2021, eq. 3) with h already scaled:
     *   h[N,r] = scale * x[N,I] A^T;  out[N,O] = x W^T + bias + h B^T, or += when accumulate
     * ab->a NULL: h is an input. out NULL: h alone, with the same bits; x is all that is read besides A.
     * Under COMPUTE_BF16 x W^T and dout W are as in matmul, and what is A's and B's is in f32. This entry and the
     * next may be empty, in any table: call them through kernels_linear(), below. */
    int (*linear)(struct kernel_ctx *c, buf *out, buf *h, const buf *x, const struct weight *w,
                  const buf *bias, const struct low_rank *ab, int accumulate, int N);
    /* gh[N,r] = scale * dout[N,O] B, or += when accumulate_gh;  dx[N,I] = dout W + gh A, or += when
     * accumulate. ab->a NULL: dx without gh A. dx NULL: gh alone, with the same bits. The gradients of A
     * and B are then matmul_dw of gh and x, and of dout and h, both with scale 1. */
    int (*linear_dx)(struct kernel_ctx *c, buf *dx, buf *gh, const buf *dout, const struct weight *w,
                     const struct low_rank *ab, int accumulate_gh, int accumulate, int N);

    /* ---- RMSNorm ---- out[N,C] = x / sqrt(mean(x^2) + eps) * w[C]  (Zhang & Sennrich 2019, eq. 4) */
    void (*rmsnorm)(struct kernel_ctx *c, buf *out, const buf *x, const buf *w,
                    int N, int C, double eps);
    /* dx[N,C] = (or += when accumulate); dw[C] += unless NULL. With n = x * rstd and g = dout * w:
     * dx = rstd * (g - n * mean(g * n)),  dw = sum over rows of dout * n. */
    void (*rmsnorm_backward)(struct kernel_ctx *c, buf *dx, buf *dw, const buf *dout, const buf *x,
                             const buf *w, int N, int C, double eps, int accumulate);

    /* ---- rotary positions ---- in place on x[N, heads*HS]; cos and sin are [positions, HS/2]; pos[N].
     * For the pair (a, b) = (x[i], x[i + HS/2]) of a head:
     *   forward  a' = a cos - b sin,  b' = b cos + a sin
     *   backward the transpose: sin with its sign turned  (Su et al. 2021; halves as in Hugging Face) */
    void (*rope)(struct kernel_ctx *c, buf *x, const buf *cos, const buf *sin, const ints *pos,
                 int N, int heads, int HS, int backward);

    /* ---- attention ---- over S segments; q and out [N, NH*HS], k and v [keys, NKV*HS]; query head h
     * uses key head h / (NH / NKV). For query row n and head h, over the keys j it sees:
     *   p_j = softmax_j(scale * q.k_j),  out = sum p_j v_j,  lse[n,NH] = log sum exp(scale * q.k_j)
     * window w > 0: of those only the keys with position(n) - w < position(j). Rows of no segment
     * are left as they are. N x N is never stored. */
    void (*attention)(struct kernel_ctx *c, buf *out, buf *lse, const buf *q, const buf *k,
                      const buf *v, const ints *segments, int S, int NH, int NKV, int HS,
                      double scale, int window);
    /* dq[N,..] =, dk and dv [keys,..] = (all segments whose q_len > 0 or that a prefix chain names).
     * delta is scratch of N*NH. With s = scale * q.k_j and D = dout.out:
     *   dv_j += p_j dout;  ds_j = p_j (dout.v_j - D);  dq += scale ds_j k_j;  dk_j += scale ds_j q
     * One owner sums dk and dv of a key row: over segments in table order, then queries, then heads. */
    void (*attention_backward)(struct kernel_ctx *c, buf *dq, buf *dk, buf *dv, buf *delta,
                               const buf *dout, const buf *out, const buf *lse, const buf *q,
                               const buf *k, const buf *v, const ints *segments, int S,
                               int N, int NH, int NKV, int HS, double scale, int window);

    /* ---- SwiGLU ---- out[n] = silu(gate) * up, silu(z) = z / (1 + e^-z)  (Shazeer 2020, eq. 6) */
    void (*swiglu)(struct kernel_ctx *c, buf *out, const buf *gate, const buf *up, size_t n);
    /* dgate = dout * up * s (1 + gate (1 - s)), dup = dout * gate * s, s = sigmoid(gate); and once more what
     * swiglu() gave, out = gate * s * up. In place allowed: dgate may be gate, dup may be up, out may be dout. */
    void (*swiglu_backward)(struct kernel_ctx *c, buf *dgate, buf *dup, buf *out, const buf *dout,
                            const buf *gate, const buf *up, size_t n);

    /* ---- dropout ---- inverted: out[N,C] = x * m / (1 - p), or += when accumulate; m = 0 where
     * random_uniform(key, (visit[n] * 2^20 + pos[n]) * 2^20 + channel) < p, else 1. 0 <= p < 1. */
    void (*dropout)(struct kernel_ctx *c, buf *out, const buf *x, const ints *visit, const ints *pos,
                    int N, int C, double p, uint64_t key, int accumulate);

    /* ---- loss ---- Row u of logits[U,V] has the targets first[u] .. first[u+1] - 1 (first[U+1]), each
     * an id and a weight. losses[t] = log sum exp(logits[u]) - logits[u, id[t]], unweighted;
     * best[u] = index of the largest logit (the first of equals). When grad, logits becomes
     *   dlogits[u,v] = grad_scale * sum over t of weight[t] * (softmax(logits[u])_v - [v = id[t]]) */
    void (*cross_entropy)(struct kernel_ctx *c, buf *losses, ints *best, buf *logits,
                          const ints *first, const ints *id, const buf *weight, int U, int V,
                          int grad, double grad_scale);

    /* ---- optimizer ---- AdamW (Loshchilov & Hutter 2019) as PyTorch has it, elementwise:
     *   g *= grad_scale;  p *= 1 - lr weight_decay;  m = beta1 m + (1 - beta1) g;
     *   v = beta2 v + (1 - beta2) g^2;  p -= lr / correction1 * m / (sqrt(v / correction2) + eps) */
    void (*adamw)(struct kernel_ctx *c, buf *p, buf *m, buf *v, const buf *g, size_t n,
                  const struct adamw_step *step);
    /* The same with moments in 8 bits (Dettmers et al. 2022), as bitsandbytes' AdamW8bit: in blocks of
     * MOMENT_BLOCK numbers, the last may be short, as encode_8bit() and decode_8bit() of nf4.h. m[n] and
     * v[n] are codes, a byte each; mmax and vmax [block_count(n, MOMENT_BLOCK)] hold floats; m has the
     * signed map, v the unsigned.
     *   m = decode(m), v = decode(v) in float;  the step of adamw, p from m and v as computed;
     *   m and v are rounded to float and encoded again */
    void (*adamw8bit)(struct kernel_ctx *c, buf *p, void *m, buf *mmax, void *v, buf *vmax, const buf *g,
                      size_t n, const struct adamw_step *step);
    /* sum of x^2 in double, by a fixed tree */
    double (*sum_squares)(struct kernel_ctx *c, const buf *x, size_t n);
    /* index of the first NaN or infinity, or -1 */
    long long (*not_finite)(struct kernel_ctx *c, const buf *x, size_t n);
};

/* ---- kernels.c: which table ---- */

extern const struct kernels kernels_ref, kernels_ref64, kernels_neon, kernels_avx2, kernels_avx512;

/* All tables of this build, NULL-ended, the best last. A table that could not be built for this
 * machine's family is there too and says so in usable(). */
extern const struct kernels *const kernels_all[];

/* "auto", a name, or the path (with a / in it) of a shared object -> the table, or NULL with an error that lists
 * the names and why it is not usable. "cuda" is not one of kernels_all, and auto never takes it: it is the shared object
 * KERNELS_CUDA, looked for beside the program and then where the loader looks.
 *
 * A shared object exports one function, lora_kernels(): a table with abi = KERNELS_ABI, bytes = sizeof(struct kernels),
 * elem = 4, a name, and whatever operations it has, be it one, for one weight type: entries may be empty (see below), but
 * for one with memory of its own, where only has_bf16, linear, linear_dx and failed may be. It is never unloaded.
 * docs/backend.c is a whole one. */
const struct kernels *kernels_find(const char *name, struct lora_error *err);
const struct kernels *lora_kernels(void);
#define KERNELS_CUDA "liblora_cuda.so"
/* 1: "auto", the name of a table, whether it is usable here or not, or something with a / in it. */
int kernels_known(const char *name);

/* Can the table multiply like this here? 0, or -1 with an error that says what is missing. */
int kernels_check_compute(const struct kernels *k, int compute, struct lora_error *err);

/* *out is the table with its empty entries taken from the one below it, that one's from the one below it, and in the
 * end from ref (ref64 where elements are doubles); linear and linear_dx only where it has no matmul, as they are to
 * be made of its own. Those of ref need no scratch memory. Whoever calls through a table calls through its completed
 * copy, with kernels_work_bytes() of scratch memory. */
void kernels_complete(struct kernels *out, const struct kernels *table);

/* A frozen weight in a table's own memory. `to` becomes what `from` is, with its data and the arrays of from->q in
 * `a`, and to->q = q, a struct of the caller's in the host's memory that says where they are (from->q NULL: q is not
 * used). With no memory behind `a` it only counts. Nothing is copied. */
void kernels_lay_weight(struct weight *to, struct quantised *q, const struct weight *from, struct arena *a);
/* Copies what it laid. -1: the table could not. */
int kernels_up_weight(const struct kernels *k, struct kernel_ctx *c, const struct weight *to, const struct weight *from);
/* Both, in memory that is allocated for it: for the table to release, or NULL. */
void *kernels_copy_weight(const struct kernels *k, struct kernel_ctx *c, struct weight *to, struct quantised *q,
                          const struct weight *from);
/* -1 with an error when the table says that something failed. */
int kernels_check(const struct kernels *k, struct kernel_ctx *c, struct lora_error *err);

/* The scratch memory of a completed table and of all below it. */
size_t kernels_work_bytes(const struct kernels *k, const struct kernel_sizes *sizes);

/* Operations that read weights, of a completed table, or of the tables below it where it answers
 * KERNEL_UNSUPPORTED, which it does before it has written anything. */
int kernels_embed(const struct kernels *k, struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N);
int kernels_matmul(const struct kernels *k, struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w,
                   const buf *bias, double scale, int accumulate, int N);
int kernels_matmul_dx(const struct kernels *k, struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w,
                      double scale, int accumulate, int N);
/* linear and linear_dx of a completed table, or, where it has none, made of its products. */
int kernels_linear(const struct kernels *k, struct kernel_ctx *c, buf *out, buf *h, const buf *x,
                   const struct weight *w, const buf *bias, const struct low_rank *ab, int accumulate, int N);
int kernels_linear_dx(const struct kernels *k, struct kernel_ctx *c, buf *dx, buf *gh, const buf *dout,
                      const struct weight *w, const struct low_rank *ab, int accumulate_gh, int accumulate, int N);

/* p + n elements of the table's size. */
static inline buf *at(const struct kernels *k, const buf *p, size_t n)
{
    return (buf *)((char *)p + n * (size_t)k->elem);
}

#ifdef __cplusplus
}
#endif
#endif
