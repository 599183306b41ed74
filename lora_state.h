/* lora_state.h - what lora.c computes with and setup.c lays out: the model over buffers. */
#ifndef LORA_STATE_H
#define LORA_STATE_H

#include "lora.h"

/* The part of an adapted linear that an adapter adds. */
struct branch {
    int r;                      /* 0: this adapter leaves the linear alone */
    double scale;
    struct weight a, b;         /* [r,in], [out,r] in the parameters */
    buf *da, *db;               /* their gradients, or NULL */
    uint64_t key;               /* of the dropout masks */
};

/* A fused matrix (Phi-3's qkv and gate_up) is several linears that follow each other: each has its rows
 * of the matrix and of B, all have the same A and the same h. */
struct linear {
    struct weight w;            /* [out,in] */
    int first;                  /* its first row in a fused matrix: rows of the parts before it; else 0 */
    int followed;               /* by other parts */
    buf *bias;                  /* [out] or NULL */
    buf *dw, *dbias;            /* under `full`, else NULL */
    struct branch *branch;      /* [n_adapters] */
    int r;                      /* the largest of theirs: the columns of h */
};

struct norm {
    buf *w, *dw;                /* [C] or [HS]; dw under `full` */
};

struct layer {
    struct norm attn_norm, q_norm, k_norm, mlp_norm;
    struct linear q, k, v, o, gate, up, down;
    buf *k_cache, *v_cache;     /* [keys, NKV*HS] in generation */
};

/* What the backward pass of a layer needs of its forward pass. Kept for each layer, or one set that
 * is computed again (gradient checkpointing; Chen et al. 2016). Norms and swiglu are cheap and are
 * always computed again. */
struct activations {
    buf *q_raw, *k_raw;         /* before the norms of q and k, where the model has those */
    buf *q, *k, *v;             /* [N, NH*HS], [N, NKV*HS] x 2, after rope */
    buf *att, *lse;             /* [N, NH*HS], [N, NH] */
    buf *mid;                   /* [N,C] */
    buf *gate, *up;             /* [N,F] */
    buf *h[7];                  /* [N,r] s drop(x) A^T of q k v o gate up down; shared by fused ones */
};

/* Rows next to each other that use the same adapter. */
struct run { int start, n, adapter; };

/* What linears go over: all tokens of a pack, or those with a target alone. */
struct rows {
    int N;
    ints *pos, *visit;          /* [N] */
    struct run *runs;
    size_t n_runs, capacity;
};

/* The moments of a trained tensor: where they begin in moment1 and moment2, or in 8 bits where its codes
 * and its blocks begin. */
struct moments {
    int in_8bit;
    size_t first, block;
};

struct lora {
    const struct kernels *k;        /* &table */
    struct kernels table;           /* the setup's, completed */
    struct kernel_ctx ctx;
    const struct model *model;
    const struct config *c;
    struct lora_sizes sizes;
    int full, n_adapters, lowest_layer, lowest_id, max_r;
    double dropout;
    long long steps;
    void *memory;               /* the arena */
    int opened;
    struct lora_plan plan;

    struct trained *trained;    /* table of the flat buffers; under n_adapters > 1 only adapter 0's */
    int n_trained;
    size_t n_params;
    buf *params, *grads, *moment1, *moment2;
    int optim;
    struct moments *moments;    /* [n_trained] under OPTIM_ADAMW8BIT */
    size_t n_moments, n_codes, n_blocks;    /* numbers of each moment: as they are, as codes; blocks of those */
    void *codes1, *codes2;
    buf *absmax1, *absmax2;
    void *pages;                /* mapping of OPTIM_PAGED_ADAMW */
    size_t *adapter_start;      /* [n_adapters] offset of each adapter's values in params */

    struct quantised *copied;   /* [n_copied] of weights in the backend's own memory: where their scales lie there */
    int n_copied;
    struct weight embed, head;
    buf *d_embed, *d_head;
    struct norm final_norm;
    struct layer *layers;
    struct branch *branches;    /* all of them */
    buf *cos, *sin;             /* [positions, HS/2] */

    /* the pack in work */
    struct rows all, wanted;    /* tokens; those at logit_row */
    const struct rows *of_last_layer, *on;      /* which of them it goes over behind its attention; which linears go over now */
    ints *ids, *segments, *logit_row, *first, *target_id, *best;
    buf *target_weight, *losses;
    int N, S;

    /* working memory */
    buf **x;                    /* [L + 1] the residual stream before each layer; shared where not kept */
    struct activations *acts;   /* [L], shared where not kept */
    unsigned char *room;        /* where x and acts lie: plan.activations bytes, laid out anew for packs of other lengths */
    int laid, keep;             /* for so many tokens; the layers that are kept then, -1: all */
    buf *xn, *act, *drop, *gh;  /* [N,C], [N, the larger of F and NH*HS], [N,max in], [N,max r] */
    buf *dx, *dxn, *dq, *dk, *dv, *datt, *delta, *dact;
    buf *hx, *hn, *dhn, *logits;    /* chunk rows of C, C, C, V */
    int chunk;

    int training;               /* dropout is on */
    int unsupported;            /* a weight type that the table cannot read, or -1 */
};

/* setup.c: x and acts for a pack of N <= sizes.N tokens. A smaller pack leaves room to keep more layers. */
void lay_activations(struct lora *l, int N);

static inline ints *at_ints(const ints *p, size_t n) { return (ints *)((char *)p + n * sizeof(int)); }

#endif
