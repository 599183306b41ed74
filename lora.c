/* lora.c - the model: forward, loss and backward of a Llama transformer with LoRA, by hand.
 *
 * Read layer_forward() first, then layer_backward(), its mirror image in reverse order. Nothing here
 * looks into a buffer: all arithmetic is in the table of kernels, where each operation's equation
 * stands (kernels.h); all memory is carved in setup.c. lora_state.h says what a linear, a branch (what an
 * adapter adds to it) and a run (rows that use the same adapter) are; docs/math.md derives the backward pass.
 *
 * One layer (Touvron et al. 2023; letters as in config.h):
 *
 *     x --+-- rmsnorm -- q,k,v -- rope -- attention -- o --(+)--+-- rmsnorm -- gate,up -- swiglu -- down --(+)-- next x
 *         |                                                 |   |                                            |
 *         +-------------------------------------------------+   +--------------------------------------------+
 *                                                        = mid
 *
 * An adapted linear (Hu et al. 2021, eq. 3):  y = x W^T + b + s drop(x) A^T B^T,  s = alpha / r
 * (rsLoRA: alpha / sqrt(r)). In training only A and B have gradients, unless `full`, where every tensor has.
 *
 * A fused matrix, as Phi-3's W = [Wq; Wk; Wv], is three linears here, over its rows: h = s drop(x) A^T is made
 * by the first, used by all, and its gradient summed over all before A gets its own. */
#include "lora_state.h"

#include <math.h>
#include <stdlib.h>

/* ---- linears ------------------------------------------------------------------------------- */

static void matmul(struct lora *l, buf *out, const buf *x, const struct weight *w, const buf *bias,
                   double scale, int accumulate, int N)
{
    if (kernels_matmul(l->k, &l->ctx, out, x, w, bias, scale, accumulate, N)) l->unsupported = w->type;
}

static void matmul_dx(struct lora *l, buf *dx, const buf *dout, const struct weight *w, double scale,
                      int accumulate, int N)
{
    if (kernels_matmul_dx(l->k, &l->ctx, dx, dout, w, scale, accumulate, N)) l->unsupported = w->type;
}

static int drops(const struct lora *l) { return l->training && l->dropout > 0; }

static struct low_rank low_rank(const struct branch *b)
{
    return (struct low_rank){ .a = &b->a, .b = &b->b, .scale = b->scale };
}

static void linear(struct lora *l, buf *out, buf *h, const buf *x, const struct linear *lin,
                   const struct low_rank *ab, int accumulate, int N)
{
    if (kernels_linear(l->k, &l->ctx, out, h, x, &lin->w, lin->bias, ab, accumulate, N)) l->unsupported = lin->w.type;
}

/* drop(x) of a run's rows, or x itself where nothing is dropped. */
static const buf *dropped(struct lora *l, const buf *x, const struct branch *b, const struct run *run)
{
    size_t start = (size_t)run->start;
    if (!drops(l)) return x;
    l->k->dropout(&l->ctx, l->drop, x, at_ints(l->on->visit, start), at_ints(l->on->pos, start), run->n, b->a.cols,
                  l->dropout, b->key, 0);
    return l->drop;
}

/* The branch of this linear that the rows of a run go through, or NULL. */
static const struct branch *branch_of(const struct linear *lin, const struct run *run)
{
    const struct branch *b = run->adapter < 0 ? NULL : &lin->branch[run->adapter];
    return b && b->r ? b : NULL;
}

/* Do all rows go through one branch? Then it is computed with W, else after it, run by run. */
static int one_branch(const struct lora *l, const struct linear *lin)
{
    return l->on->n_runs == 1 && branch_of(lin, &l->on->runs[0]);
}

/* out[N,out] = x W^T + b + h B^T, or += when accumulate; h[N,r] = s drop(x) A^T is kept for the backward
 * pass. out NULL: h alone. */
static void linear_forward(struct lora *l, const struct linear *lin, buf *out, const buf *x, buf *h,
                           int accumulate)
{
    int together = out && one_branch(l, lin);
    size_t i, O = (size_t)lin->w.rows, I = (size_t)lin->w.cols;
    if (out && !together) matmul(l, out, x, &lin->w, lin->bias, 1, accumulate, l->on->N);
    for (i = 0; i < l->on->n_runs; i++) {
        const struct run *run = &l->on->runs[i];
        const struct branch *b = branch_of(lin, run);
        size_t start = (size_t)run->start;
        struct low_rank ab;
        buf *h_run = at(l->k, h, start * (size_t)lin->r);
        if (!b) continue;
        ab = low_rank(b);
        if (lin->first) ab.a = NULL;
        if (ab.a && (!together || drops(l))) {
            linear(l, NULL, h_run, dropped(l, at(l->k, x, start * I), b, run), lin, &ab, 0, run->n);
            ab.a = NULL;
        }
        if (together) linear(l, out, h, x, lin, &ab, accumulate, l->on->N);
        else if (out) matmul(l, at(l->k, out, start * O), h_run, &b->b, NULL, 1, 1, run->n);
    }
}

/* What the branch adds to dx: gh A, through the mask of drop(x). */
static void branch_dx(struct lora *l, const struct branch *b, buf *dx, const buf *gh, const struct run *run)
{
    size_t start = (size_t)run->start;
    if (!drops(l)) {
        matmul_dx(l, dx, gh, &b->a, 1, 1, run->n);
        return;
    }
    matmul_dx(l, l->drop, gh, &b->a, 1, 0, run->n);
    l->k->dropout(&l->ctx, dx, l->drop, at_ints(l->on->visit, start), at_ints(l->on->pos, start), run->n, b->a.cols,
                  l->dropout, b->key, 1);
}

/* dx (or NULL where nothing below trains) = or += the gradient of the input; adds to the gradients of B,
 * under `full` of b, and leaves l->gh for linear_backward_a(). dout[N,out], h[N,r] as forward kept it. */
static void linear_backward_dx(struct lora *l, const struct linear *lin, buf *dx, const buf *dout, const buf *h,
                               int accumulate)
{
    const struct kernels *k = l->k;
    int together = dx && one_branch(l, lin);
    size_t i, O = (size_t)lin->w.rows, I = (size_t)lin->w.cols;
    /* out = x W^T + b */
    if (dx && !together) matmul_dx(l, dx, dout, &lin->w, 1, accumulate, l->on->N);
    if (lin->dbias) k->bias_backward(&l->ctx, lin->dbias, dout, l->on->N, lin->w.rows);
    for (i = 0; i < l->on->n_runs; i++) {
        const struct run *run = &l->on->runs[i];
        const struct branch *b = branch_of(lin, run);
        size_t start = (size_t)run->start;
        const buf *dout_run = at(k, dout, start * O);
        buf *gh = at(k, l->gh, start * (size_t)lin->r);
        struct low_rank ab;
        if (!b) continue;
        ab = low_rank(b);
        if (lin->first || drops(l)) ab.a = NULL;
        /* out += h B^T, and, together with it, out = x W^T and h = s x A^T */
        k->matmul_dw(&l->ctx, b->db, dout_run, at(k, h, start * (size_t)lin->r), 1, run->n, b->b.rows, b->r);
        if (kernels_linear_dx(k, &l->ctx, together ? dx : NULL, gh, dout_run, &lin->w, &ab, lin->followed, accumulate,
                              run->n)) l->unsupported = lin->w.type;
        if (dx && !lin->first && !(together && ab.a)) branch_dx(l, b, at(k, dx, start * I), gh, run);
    }
}

/* After it: adds to the gradients of A, under `full` of W. x[N,in] the input. */
static void linear_backward_a(struct lora *l, const struct linear *lin, const buf *dout, const buf *x)
{
    const struct kernels *k = l->k;
    size_t i, I = (size_t)lin->w.cols;
    if (lin->dw) k->matmul_dw(&l->ctx, lin->dw, dout, x, 1, l->on->N, lin->w.rows, lin->w.cols);
    for (i = 0; i < l->on->n_runs; i++) {
        const struct run *run = &l->on->runs[i];
        const struct branch *b = branch_of(lin, run);
        size_t start = (size_t)run->start;
        if (!b || lin->first) continue;
        /* h = s drop(x) A^T */
        k->matmul_dw(&l->ctx, b->da, at(k, l->gh, start * (size_t)lin->r), dropped(l, at(k, x, start * I), b, run), 1, run->n,
                     b->r, b->a.cols);
    }
}

static void linear_backward(struct lora *l, const struct linear *lin, buf *dx, const buf *dout, const buf *x,
                            const buf *h, int accumulate)
{
    linear_backward_dx(l, lin, dx, dout, h, accumulate);
    linear_backward_a(l, lin, dout, x);
}

/* ---- one layer ------------------------------------------------------------------------------ */

/* Generation: this pack's keys and values go to their rows of the cache. */
static void fill_cache(struct lora *l, const struct pack *p, const struct layer *y, const struct activations *a)
{
    size_t K = (size_t)l->c->NKV * (size_t)l->c->HS;
    int i;
    for (i = 0; i < p->S; i++) {
        const struct segment *s = &p->segments[i];
        size_t from = (size_t)s->q_start * K, to = (size_t)(s->k_start + s->k_len - s->q_len) * K;
        l->k->copy(&l->ctx, at(l->k, y->k_cache, to), at(l->k, a->k, from), (size_t)s->q_len * K);
        l->k->copy(&l->ctx, at(l->k, y->v_cache, to), at(l->k, a->v, from), (size_t)s->q_len * K);
    }
}

/* Behind the attention of the last layer only rows with a target matter, M of N, as no other row's logits are looked at:
 * the others are left out from there on. In other layers M is N. */
static const struct rows *behind_attention(const struct lora *l, int layer)
{
    return layer == l->c->L - 1 ? l->of_last_layer : &l->all;
}

/* x[N,n] -> [M,n] in `space`; where that is all rows, x itself. */
static const buf *narrow(struct lora *l, const buf *x, buf *space, int n)
{
    if (l->on == &l->all) return x;
    l->k->gather(&l->ctx, space, x, l->logit_row, l->on->N, n);
    return space;
}

/* And back: d[M,n] -> d[N,n], zeros where a row was left out. */
static void spread(struct lora *l, buf *d, buf *space, int n)
{
    if (l->on == &l->all) return;
    l->k->copy(&l->ctx, space, d, (size_t)l->on->N * (size_t)n);
    l->k->zero(&l->ctx, d, (size_t)l->N * (size_t)n);
    l->k->scatter_add(&l->ctx, d, space, l->logit_row, l->on->N, n);
}

/* out [N,C]: the next layer's x, of the last layer [M,C]; NULL: only the activations are wanted again. */
static void layer_forward(struct lora *l, const struct pack *p, int layer, buf *out)
{
    const struct kernels *k = l->k;
    const struct config *c = l->c;
    const struct layer *y = &l->layers[layer];
    const struct activations *a = &l->acts[layer];
    struct kernel_ctx *ctx = &l->ctx;
    int N = l->N, M = behind_attention(l, layer)->N, C = c->C, HS = c->HS;
    buf *x = l->x[layer], *keys = a->k, *values = a->v;
    double scale = 1 / sqrt((double)HS);

    l->on = &l->all;
    k->rmsnorm(ctx, l->xn, x, y->attn_norm.w, N, C, c->norm_eps);
    linear_forward(l, &y->q, a->q_raw, l->xn, a->h[0], 0);
    linear_forward(l, &y->k, a->k_raw, l->xn, a->h[1], 0);
    linear_forward(l, &y->v, a->v, l->xn, a->h[2], 0);
    if (c->qk_norm) {
        k->rmsnorm(ctx, a->q, a->q_raw, y->q_norm.w, N * c->NH, HS, c->norm_eps);
        k->rmsnorm(ctx, a->k, a->k_raw, y->k_norm.w, N * c->NKV, HS, c->norm_eps);
    }
    k->rope(ctx, a->q, l->cos, l->sin, l->all.pos, N, c->NH, HS, 0);
    k->rope(ctx, a->k, l->cos, l->sin, l->all.pos, N, c->NKV, HS, 0);
    if (y->k_cache) {
        fill_cache(l, p, y, a);
        keys = y->k_cache;
        values = y->v_cache;
    }
    k->attention(ctx, a->att, a->lse, a->q, keys, values, l->segments, l->S, c->NH, c->NKV, HS, scale,
                 c->window);
    l->on = behind_attention(l, layer);
    k->copy(ctx, a->mid, narrow(l, x, l->xn, C), (size_t)M * (size_t)C);
    linear_forward(l, &y->o, a->mid, narrow(l, a->att, l->act, c->NH * HS), a->h[3], 1);

    k->rmsnorm(ctx, l->xn, a->mid, y->mlp_norm.w, M, C, c->norm_eps);
    linear_forward(l, &y->gate, a->gate, l->xn, a->h[4], 0);
    linear_forward(l, &y->up, a->up, l->xn, a->h[5], 0);
    k->swiglu(ctx, l->act, a->gate, a->up, (size_t)M * (size_t)c->F);
    if (out) k->copy(ctx, out, a->mid, (size_t)M * (size_t)C);
    linear_forward(l, &y->down, out, l->act, a->h[6], 1);
}

/* Does something train below the input of tensor `id` of this layer? Then its dx is needed. lowest_layer and lowest_id
 * are the first trained tensor on the way forward; ids are in that order (model.h). */
static int trains_below(const struct lora *l, int layer, int id)
{
    return l->full || layer > l->lowest_layer || (layer == l->lowest_layer && id > l->lowest_id);
}

/* l->dx [N,C], of the last layer [M,C]: on entry the gradient of the layer's output, on return that of its input [N,C] (if
 * needed). */
static void layer_backward(struct lora *l, int layer)
{
    const struct kernels *k = l->k;
    const struct config *c = l->c;
    const struct layer *y = &l->layers[layer];
    const struct activations *a = &l->acts[layer];
    struct kernel_ctx *ctx = &l->ctx;
    int N = l->N, M = behind_attention(l, layer)->N, C = c->C, HS = c->HS;
    size_t MF = (size_t)M * (size_t)c->F;
    buf *x = l->x[layer], *dq = l->dq, *dk = l->dk;
    double scale = 1 / sqrt((double)HS);
    int below;

    l->on = behind_attention(l, layer);
    /* out = mid + down(act) */
    below = trains_below(l, layer, T_WDOWN);
    linear_backward_dx(l, &y->down, below ? l->dact : NULL, l->dx, a->h[6], 0);
    /* act = silu(gate) * up: made again on the way back, in the place of dact; dgate and dup take that of gate and up */
    if (below) k->swiglu_backward(ctx, a->gate, a->up, l->dact, l->dact, a->gate, a->up, MF);
    else k->swiglu(ctx, l->dact, a->gate, a->up, MF);
    linear_backward_a(l, &y->down, l->dx, l->dact);
    if (!below) return;
    /* gate, up = linears of rmsnorm(mid) */
    below = trains_below(l, layer, T_WGATE);
    k->rmsnorm(ctx, l->xn, a->mid, y->mlp_norm.w, M, C, c->norm_eps);
    linear_backward(l, &y->up, below ? l->dxn : NULL, a->up, l->xn, a->h[5], 0);
    linear_backward(l, &y->gate, below ? l->dxn : NULL, a->gate, l->xn, a->h[4], 1);
    if (!below) return;
    k->rmsnorm_backward(ctx, l->dx, y->mlp_norm.dw, l->dxn, a->mid, y->mlp_norm.w, M, C, c->norm_eps, 1);
    /* mid = narrow(x) + o(narrow(att)) */
    below = trains_below(l, layer, T_WO);
    linear_backward(l, &y->o, below ? l->datt : NULL, l->dx, narrow(l, a->att, l->act, c->NH * HS), a->h[3], 0);
    if (!below) return;
    spread(l, l->datt, dq, c->NH * HS);
    spread(l, l->dx, l->dxn, C);
    l->on = &l->all;
    /* att = attention(q, k, v) */
    k->attention_backward(ctx, dq, dk, l->dv, l->delta, l->datt, a->att, a->lse, a->q, a->k, a->v,
                          l->segments, l->S, N, c->NH, c->NKV, HS, scale, c->window);
    /* q, k = rope(...) */
    k->rope(ctx, dk, l->cos, l->sin, l->all.pos, N, c->NKV, HS, 1);
    k->rope(ctx, dq, l->cos, l->sin, l->all.pos, N, c->NH, HS, 1);
    if (c->qk_norm) {   /* act and dact are free by now */
        k->rmsnorm_backward(ctx, l->act, y->k_norm.dw, dk, a->k_raw, y->k_norm.w, N * c->NKV, HS, c->norm_eps, 0);
        k->rmsnorm_backward(ctx, l->dact, y->q_norm.dw, dq, a->q_raw, y->q_norm.w, N * c->NH, HS, c->norm_eps, 0);
        dk = l->act;
        dq = l->dact;
    }
    /* q, k, v = linears of rmsnorm(x) */
    below = trains_below(l, layer, T_WQ);
    k->rmsnorm(ctx, l->xn, x, y->attn_norm.w, N, C, c->norm_eps);
    linear_backward(l, &y->v, below ? l->dxn : NULL, l->dv, l->xn, a->h[2], 0);
    linear_backward(l, &y->k, below ? l->dxn : NULL, dk, l->xn, a->h[1], 1);
    linear_backward(l, &y->q, below ? l->dxn : NULL, dq, l->xn, a->h[0], 1);
    if (!below) return;
    k->rmsnorm_backward(ctx, l->dx, y->attn_norm.dw, l->dxn, x, y->attn_norm.w, N, C, c->norm_eps, 1);
}

/* ---- the whole model ------------------------------------------------------------------------ */

static void forward(struct lora *l, const struct pack *p)
{
    int i;
    if (kernels_embed(l->k, &l->ctx, l->x[0], &l->embed, l->ids, l->N)) l->unsupported = l->embed.type;
    for (i = 0; i < l->c->L; i++) layer_forward(l, p, i, l->x[i + 1]);
}

/* hn[n,C] = the final norm of x[n,C], rows of the last one; logits[n,V] of them. */
static void head_forward(struct lora *l, const buf *x, int n)
{
    l->k->rmsnorm(&l->ctx, l->hn, x, l->final_norm.w, n, l->c->C, l->c->norm_eps);
    matmul(l, l->logits, l->hn, &l->head, NULL, 1, 0, n);
}

/* dx[n,C] = the gradient of what head_forward did; dlogits stand in l->logits. */
static void head_backward(struct lora *l, buf *dx, const buf *x, int n)
{
    const struct config *c = l->c;
    /* logits = hn W^T */
    matmul_dx(l, l->dhn, l->logits, &l->head, 1, 0, n);
    if (l->d_head) l->k->matmul_dw(&l->ctx, l->d_head, l->logits, l->hn, 1, n, c->V, c->C);
    /* hn = rmsnorm(x) */
    l->k->rmsnorm_backward(&l->ctx, dx, l->final_norm.dw, l->dhn, x, l->final_norm.w, n, c->C, c->norm_eps, 0);
}

/* Losses of all targets, by chunks of rows so that the logits are never stored whole; with grad, dx [M,C]
 * is the gradient of the last layer's output after it. */
static void loss(struct lora *l, const struct pack *p, int grad, double grad_scale)
{
    int u, n, chunks = (p->U + l->chunk - 1) / l->chunk;
    for (u = 0; u < p->U; u += n, chunks--) {
        size_t start = (size_t)u * (size_t)l->c->C;
        const buf *x = at(l->k, l->x[l->c->L], start);
        n = (p->U - u + chunks - 1) / chunks;      /* as many in each: few rows are slow */
        head_forward(l, x, n);
        l->k->cross_entropy(&l->ctx, l->losses, at_ints(l->best, (size_t)u), l->logits,
                            at_ints(l->first, (size_t)u), l->target_id, l->target_weight, n, l->c->V, grad,
                            grad_scale);
        if (grad) head_backward(l, at(l->k, l->dx, start), x, n);
    }
}

static void backward(struct lora *l, const struct pack *p)
{
    int i, L = l->c->L;
    for (i = L - 1; i >= l->lowest_layer; i--) {
        /* where activations were not kept, forward once more: the same operations, so the same bits. Those of the
         * topmost of these layers still lie where all of them have theirs */
        if (l->keep >= 0 && i < L - l->keep - 1) layer_forward(l, p, i, NULL);
        layer_backward(l, i);
    }
    /* x = embed[ids] */
    if (l->d_embed) l->k->embed_backward(&l->ctx, l->d_embed, l->dx, l->ids, l->N, l->c->C);
}

/* ---- a pack in the backend's memory --------------------------------------------------------- */

static int too_large(struct lora_error *err, const char *what, int planned, int there)
{
    fail(err, "the pack is larger than the plan", "%s", what);
    expected(err, "at most %d", planned);
    return found(err, "%d", there);
}

static int check_pack(const struct lora *l, const struct pack *p, struct lora_error *err)
{
    const struct lora_sizes *z = &l->sizes;
    int i, bad = 0, keys = z->keys > 0 ? z->keys : p->N;
    if (!p->finished) {
        fail(err, "the pack is not finished", "%d tokens, %d targets", p->N, p->T);
        return expected(err, "pack_finish() behind what was appended last");
    }
    if (p->N > z->N) return too_large(err, "tokens", z->N, p->N);
    if (p->S > z->S) return too_large(err, "segments", z->S, p->S);
    if (p->T > z->T) return too_large(err, "targets", z->T, p->T);
    if (p->U > z->U) return too_large(err, "rows with a target", z->U, p->U);
    if (p->keys > keys) return too_large(err, "keys", keys, p->keys);
    for (i = 0; i < p->N; i++) {
        if (p->pos[i] >= z->positions) return too_large(err, "positions", z->positions, p->pos[i] + 1);
        bad |= p->ids[i] < 0 || p->ids[i] >= l->c->V;
    }
    for (i = 0; i < p->T; i++) bad |= p->target_id[i] < 0 || p->target_id[i] >= l->c->V;
    if (!bad) return 0;
    fail(err, "bad token id", "pack");
    return expected(err, "ids from 0 to %d", l->c->V - 1);
}

/* n more rows, which follow those that are there. */
static int add_run(struct rows *rows, int n, int adapter, struct lora_error *err)
{
    struct run *last = rows->n_runs ? &rows->runs[rows->n_runs - 1] : NULL;
    if (!n) return 0;
    if (!last || last->adapter != adapter) {
        if (grow_array((void **)&rows->runs, &rows->capacity, rows->n_runs + 1, sizeof *rows->runs, err)) return -1;
        last = &rows->runs[rows->n_runs++];
        *last = (struct run){ rows->N, 0, adapter };
    }
    last->n += n;
    rows->N += n;
    return 0;
}

/* The positions and visits of the rows with a target. */
static int load_wanted(struct lora *l, const struct pack *p, struct lora_error *err)
{
    int *pos = new_array((size_t)p->U, sizeof *pos, err), *visit = new_array((size_t)p->U, sizeof *visit, err), u;
    if (pos && visit && p->U) {
        for (u = 0; u < p->U; u++) {
            pos[u] = p->pos[p->logit_row[u]];
            visit[u] = p->visit[p->logit_row[u]];
        }
        l->k->up_ints(&l->ctx, l->wanted.pos, pos, (size_t)p->U);
        l->k->up_ints(&l->ctx, l->wanted.visit, visit, (size_t)p->U);
    }
    free(pos);
    free(visit);
    return pos && visit ? 0 : -1;
}

/* Tables to the backend, and the runs of rows that share an adapter. */
static int load_pack(struct lora *l, const struct pack *p, struct lora_error *err)
{
    const struct kernels *k = l->k;
    struct kernel_ctx *ctx = &l->ctx;
    int i, u = 0, before;
    l->of_last_layer = NULL;            /* no logits of a pack that is refused */
    if (check_pack(l, p, err) || load_wanted(l, p, err)) return -1;
    lay_activations(l, p->N);
    l->N = p->N;
    l->S = p->S;
    l->all.N = l->wanted.N = 0;
    l->all.n_runs = l->wanted.n_runs = 0;
    for (i = 0; i < p->S; i++) {        /* queries follow each other in table order */
        const struct segment *s = &p->segments[i];
        if (s->adapter >= l->n_adapters) return too_large(err, "adapters", l->n_adapters, s->adapter + 1);
        for (before = u; u < p->U && p->logit_row[u] < s->q_start + s->q_len; ) u++;
        if (add_run(&l->all, s->q_len, s->adapter, err) || add_run(&l->wanted, u - before, s->adapter, err)) return -1;
    }
    k->up_ints(ctx, l->ids, p->ids, (size_t)p->N);
    k->up_ints(ctx, l->all.pos, p->pos, (size_t)p->N);
    k->up_ints(ctx, l->all.visit, p->visit, (size_t)p->N);
    k->up_ints(ctx, l->segments, (const int *)p->segments, (size_t)p->S * sizeof *p->segments / sizeof(int));
    if (p->U) {
        k->up_ints(ctx, l->logit_row, p->logit_row, (size_t)p->U);
        k->up_ints(ctx, l->first, p->first, (size_t)p->U + 1);
        k->up_ints(ctx, l->target_id, p->id_by_row, (size_t)p->T);
        k->up(ctx, l->target_weight, p->weight_by_row, (size_t)p->T);
    }
    l->of_last_layer = &l->all;
    l->unsupported = -1;
    return 0;
}

static int check_supported(const struct lora *l, struct lora_error *err)
{
    if (l->unsupported < 0) return 0;
    fail(err, "the backend cannot read a weight type", "%s", l->k->name);
    return found(err, "%s", weight_types[l->unsupported].name);
}

/* Losses and best ids from the order of rows back to the order in which targets were added. */
static int bring_losses(struct lora *l, const struct pack *p, double *losses, int *best, struct lora_error *err)
{
    double *sorted = new_array((size_t)p->T, sizeof *sorted, err);
    int *tops = new_array((size_t)p->U, sizeof *tops, err);
    int u, t;
    if (sorted && tops && p->T) {
        l->k->down64(&l->ctx, sorted, l->losses, (size_t)p->T);
        l->k->down_ints(&l->ctx, tops, l->best, (size_t)p->U);
        for (u = 0; u < p->U; u++)
            for (t = p->first[u]; t < p->first[u + 1]; t++) {
                losses[p->order[t]] = sorted[t];
                if (best) best[p->order[t]] = tops[u];
            }
    }
    free(sorted);
    free(tops);
    return sorted && tops ? 0 : -1;
}

/* Forward and the loss, in training the gradients too. */
static int run_pack(struct lora *l, const struct pack *p, int training, double grad_scale, double *losses, int *best,
                    struct lora_error *err)
{
    if (load_pack(l, p, err)) return -1;
    l->of_last_layer = &l->wanted;
    if (!p->U) return 0;
    l->training = training;
    forward(l, p);
    loss(l, p, training, grad_scale);
    if (training) backward(l, p);
    return check_supported(l, err) || bring_losses(l, p, losses, best, err) || lora_check(l, err) ? -1 : 0;
}

int lora_eval(struct lora *l, const struct pack *p, double *losses, int *best, struct lora_error *err)
{
    return run_pack(l, p, 0, 0, losses, best, err);
}

int lora_train(struct lora *l, const struct pack *p, double grad_scale, double *losses, int *best,
               struct lora_error *err)
{
    if (l->sizes.backward && l->n_trained) return run_pack(l, p, 1, grad_scale, losses, best, err);
    fail(err, "cannot train", "lora_train");
    return expected(err, "a setup with an adapter or full, and sizes.backward");
}

int lora_forward(struct lora *l, const struct pack *p, struct lora_error *err)
{
    if (load_pack(l, p, err)) return -1;
    l->training = 0;
    forward(l, p);
    return check_supported(l, err);
}

int lora_logits(struct lora *l, const int *rows, int n, float *logits, struct lora_error *err)
{
    int i, m;
    if (l->of_last_layer != &l->all) {
        fail(err, "no logits", "lora_logits");
        return expected(err, "lora_forward() before it: the others compute rows with a target alone");
    }
    if (n < 0) {
        fail(err, "no logits", "lora_logits");
        expected(err, "rows from 0 on");
        return found(err, "%d rows", n);
    }
    for (i = 0; i < n; i++)
        if (rows[i] < 0 || rows[i] >= l->N) return too_large(err, "row", l->N - 1, rows[i]);
    for (i = 0; i < n; i += m) {
        m = n - i < l->chunk ? n - i : l->chunk;
        l->k->up_ints(&l->ctx, l->logit_row, rows + i, (size_t)m);
        l->k->gather(&l->ctx, l->hx, l->x[l->c->L], l->logit_row, m, l->c->C);
        head_forward(l, l->hx, m);
        l->k->down(&l->ctx, logits + (size_t)i * (size_t)l->c->V, l->logits, (size_t)m * (size_t)l->c->V);
    }
    return check_supported(l, err) || lora_check(l, err) ? -1 : 0;
}

/* ---- the optimizer's step ------------------------------------------------------------------- */

void lora_zero_gradients(struct lora *l) { if (l->grads) l->k->zero(&l->ctx, l->grads, l->n_params); }

static int name_not_finite(struct lora *l, const buf *b, const char *what, struct lora_error *err)
{
    long long i = l->k->not_finite(&l->ctx, b, l->n_params);
    int t;
    for (t = 0; i >= 0 && t < l->n_trained; t++) {
        const struct trained *r = &l->trained[t];
        if ((size_t)i < r->offset || (size_t)i >= r->offset + (size_t)r->rows * (size_t)r->cols) continue;
        fail(err, what, "%s, element %lld", r->name, i - (long long)r->offset);
        expected(err, "finite numbers");
        found(err, "NaN or infinity");
        return hint(err, "a smaller --learning-rate or --max-grad-norm often helps");
    }
    return 0;
}

/* All in one where the moments lie as the parameters do, else tensor by tensor. */
static void step_all(struct lora *l, const struct adamw_step *s)
{
    const struct kernels *k = l->k;
    struct kernel_ctx *ctx = &l->ctx;
    int i;
    if (!l->moments) {
        k->adamw(ctx, l->params, l->moment1, l->moment2, l->grads, l->n_params, s);
        return;
    }
    for (i = 0; i < l->n_trained; i++) {
        const struct trained *t = &l->trained[i];
        const struct moments *m = &l->moments[i];
        size_t n = (size_t)t->rows * (size_t)t->cols;
        buf *p = at(k, l->params, t->offset), *g = at(k, l->grads, t->offset);
        if (m->in_8bit)
            k->adamw8bit(ctx, p, (char *)l->codes1 + m->first, at(k, l->absmax1, m->block),
                         (char *)l->codes2 + m->first, at(k, l->absmax2, m->block), g, n, s);
        else k->adamw(ctx, p, at(k, l->moment1, m->first), at(k, l->moment2, m->first), g, n, s);
    }
}

int lora_step(struct lora *l, const struct lora_hyper *h, double *norm, struct lora_error *err)
{
    struct adamw_step s = { .lr = h->learning_rate, .beta1 = h->beta1, .beta2 = h->beta2, .eps = h->eps,
                            .weight_decay = h->weight_decay, .grad_scale = 1 };
    double sum;
    if (!l->grads) {
        fail(err, "cannot step", "lora_step");
        return expected(err, "a setup with sizes.backward");
    }
    sum = l->k->sum_squares(&l->ctx, l->grads, l->n_params);
    *norm = sqrt(sum);
    if (lora_check(l, err)) return -1;
    if (!(sum - sum == 0)) {
        if (name_not_finite(l, l->grads, "a gradient is not finite", err)) return -1;
        fail(err, "the gradient's norm is not finite", "all trained tensors");
        return found(err, "%g", sum);
    }
    l->steps++;
    s.correction1 = 1 - pow(h->beta1, (double)l->steps);
    s.correction2 = 1 - pow(h->beta2, (double)l->steps);
    if (h->max_grad_norm > 0 && h->max_grad_norm < *norm + 1e-6)    /* as torch.nn.utils.clip_grad_norm_ */
        s.grad_scale = h->max_grad_norm / (*norm + 1e-6);
    step_all(l, &s);
    lora_zero_gradients(l);
    return 0;
}

/* ---- where did it break ------------------------------------------------------------------------ */

static int name_broken(struct lora *l, const buf *b, size_t n, int layer, const char *name,
                       struct lora_error *err)
{
    long long i = l->k->not_finite(&l->ctx, b, n);
    size_t width = l->N > 0 ? n / (size_t)l->N : 0;
    if (i < 0) return 0;
    if (layer < 0) fail(err, "the loss is not finite", "%s, token %zu of the pack", name, width ? (size_t)i / width : 0);
    else fail(err, "the loss is not finite", "layer %d, %s, token %zu of the pack", layer, name, width ? (size_t)i / width : 0);
    expected(err, "finite numbers");
    return found(err, "NaN or infinity");
}

int lora_find_not_finite(struct lora *l, const struct pack *p, struct lora_error *err)
{
    const struct config *c = l->c;
    size_t N, Q = (size_t)c->NH * (size_t)c->HS, K = (size_t)c->NKV * (size_t)c->HS;
    int i;
    if (l->params && name_not_finite(l, l->params, "a trained tensor is not finite", err)) return -1;
    if (load_pack(l, p, err)) return -1;
    N = (size_t)l->N;
    if (kernels_embed(l->k, &l->ctx, l->x[0], &l->embed, l->ids, l->N)) return check_supported(l, err);
    if (name_broken(l, l->x[0], N * (size_t)c->C, -1, "embed_tokens", err)) return -1;
    for (i = 0; i < c->L; i++) {
        const struct activations *a = &l->acts[i];
        layer_forward(l, p, i, l->x[i + 1]);
        if (name_broken(l, a->q, N * Q, i, "q_proj", err) || name_broken(l, a->k, N * K, i, "k_proj", err)
            || name_broken(l, a->v, N * K, i, "v_proj", err) || name_broken(l, a->att, N * Q, i, "attention", err)
            || name_broken(l, a->mid, N * (size_t)c->C, i, "o_proj", err)
            || name_broken(l, a->gate, N * (size_t)c->F, i, "gate_proj", err)
            || name_broken(l, a->up, N * (size_t)c->F, i, "up_proj", err)
            || name_broken(l, l->x[i + 1], N * (size_t)c->C, i, "down_proj", err)) return -1;
    }
    fail(err, "the loss is not finite", "lm_head");
    expected(err, "finite logits");
    return found(err, "NaN or infinity");
}
