/* setup.c - the memory of a lora: one arena, carved by carve(). It runs first with no memory behind it
 * and only counts, so the plan is what is taken; then again for real. */
#include "lora_state.h"
#include "nf4.h"
#include "optim.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Logits of at most this many elements at a time (25 MB in float). */
#define LOGITS_CHUNK (6u << 20)

static int max_int(int a, int b) { return a > b ? a : b; }

void lora_sizes_raise(struct lora_sizes *z, const struct pack *p)
{
    int i;
    z->N = max_int(z->N, p->N);
    z->S = max_int(z->S, p->S);
    z->T = max_int(z->T, p->T);
    z->U = max_int(z->U, p->U);
    for (i = 0; i < p->N; i++) z->positions = max_int(z->positions, p->pos[i] + 1);
}

/* ---- the table of trained tensors ---- */

static size_t area(int rows, int cols) { return (size_t)rows * (size_t)cols; }

static int add_trained(struct lora *l, size_t *capacity, const struct trained *t, struct lora_error *err)
{
    if (grow_array((void **)&l->trained, capacity, (size_t)l->n_trained + 1, sizeof *t, err)) return -1;
    l->trained[l->n_trained++] = *t;
    return 0;
}

/* Under `full`: every tensor of the model, one after the other. */
static int table_full(struct lora *l, struct lora_error *err)
{
    size_t capacity = 0;
    int id, layer;
    for (layer = 0; layer < l->c->L; layer++)
        for (id = 0; id < T_COUNT; id++) {
            struct trained t = { .id = id, .layer = layer, .is_b = -1, .offset = l->n_params,
                                 .rows = tensor_rows(l->c, id), .cols = tensor_cols(l->c, id) };
            if (!tensor_present(l->c, id) || (!tensor_layered(id) && layer) || (id == T_HEAD && l->c->tied)) continue;
            tensor_name(t.name, sizeof t.name, id, layer);
            if (add_trained(l, &capacity, &t, err)) return -1;
            l->n_params += area(t.rows, t.cols);
        }
    l->lowest_layer = 0;
    l->lowest_id = T_EMBED;
    return 0;
}

/* A and B of the first adapter, which is the one that trains; the values of others follow it. */
static int table_adapters(struct lora *l, const struct lora_setup *s, struct lora_error *err)
{
    const struct adapter *first = s->n_adapters ? s->adapters[0] : NULL;
    size_t capacity = 0;
    int i, j;
    for (i = 0; i < s->n_adapters; i++) {
        const struct adapter *a = s->adapters[i];
        l->adapter_start[i] = l->n_params;
        l->n_params += a->size;
        for (j = 0; j < a->n; j++) l->max_r = max_int(l->max_r, a->modules[j].r);
    }
    for (i = 0; first && i < first->n; i++) {
        const struct adapted *m = &first->modules[i];
        struct trained a = { .id = m->id, .layer = m->layer, .is_b = 0, .rows = m->r, .cols = m->cols, .offset = m->a };
        struct trained b = { .id = m->id, .layer = m->layer, .is_b = 1, .rows = m->rows, .cols = m->r, .offset = m->b };
        adapter_tensor_name(a.name, sizeof a.name, m, 0);
        adapter_tensor_name(b.name, sizeof b.name, m, 1);
        if (add_trained(l, &capacity, &a, err) || add_trained(l, &capacity, &b, err)) return -1;
    }
    l->lowest_layer = first && first->n ? first->modules[0].layer : l->c->L;
    l->lowest_id = first && first->n ? first->modules[0].id : 0;
    if (first) l->dropout = first->dropout;
    return 0;
}

/* Where each tensor's moments lie: small ones as they are, the others in 8 bits. */
static int table_moments(struct lora *l, struct lora_error *err)
{
    int i;
    l->n_moments = l->sizes.backward ? l->n_params : 0;
    if (!l->n_moments || l->optim != OPTIM_ADAMW8BIT) return 0;
    l->n_moments = 0;
    if (!(l->moments = new_array((size_t)l->n_trained, sizeof *l->moments, err))) return -1;
    for (i = 0; i < l->n_trained; i++) {
        struct moments *m = &l->moments[i];
        size_t n = area(l->trained[i].rows, l->trained[i].cols);
        m->in_8bit = n >= MOMENT_8BIT_LEAST;
        m->first = m->in_8bit ? l->n_codes : l->n_moments;
        m->block = l->n_blocks;
        if (m->in_8bit) {
            l->n_codes += n;
            l->n_blocks += block_count(n, MOMENT_BLOCK);
        } else {
            l->n_moments += n;
        }
    }
    return 0;
}

/* ---- weights ---- */

static buf *take(struct lora *l, struct arena *a, size_t count)
{
    return arena_take(a, count, (size_t)l->k->elem);
}

/* Element `offset` of a buffer; of one that is not there, as when only counting, NULL. */
static buf *part(const struct lora *l, const buf *p, size_t offset) { return p ? at(l->k, p, offset) : NULL; }

/* Where a trained tensor lies, or -1. */
static long long full_offset(const struct lora *l, int id, int layer)
{
    int i;
    for (i = 0; l->full && i < l->n_trained; i++)
        if (l->trained[i].id == id && l->trained[i].layer == layer) return (long long)l->trained[i].offset;
    return -1;
}

static struct weight real_weight(const struct lora *l, size_t offset, int rows, int cols)
{
    return (struct weight){ .type = TYPE_REAL, .rows = rows, .cols = cols, .data = part(l, l->params, offset) };
}

/* A matrix: the trained one under `full`, else the model's own bytes (copied when the backend has its
 * own memory). */
static void carve_matrix(struct lora *l, struct arena *a, int id, int layer, struct weight *w, buf **dw)
{
    const struct weight *m = model_weight(l->model, id, layer);
    long long offset = full_offset(l, id, layer);
    size_t bytes;
    *dw = NULL;
    if (offset >= 0) {
        *w = real_weight(l, (size_t)offset, m->rows, m->cols);
        *dw = part(l, l->grads, (size_t)offset);
        return;
    }
    *w = *m;
    if (weight_bytes(&bytes, m)) a->failed = 1;
    else if (!m->q || m->q->heap < bytes) l->plan.mapped += bytes;      /* else it was made while loading */
    if (l->k->own_memory) kernels_lay_weight(w, &l->copied[l->n_copied++], m, a);
}

/* A vector (norm or bias) is small and always copied as reals. */
static buf *carve_vector(struct lora *l, struct arena *a, int id, int layer, buf **dv)
{
    long long offset = full_offset(l, id, layer);
    *dv = NULL;
    if (!tensor_present(l->c, id)) return NULL;
    if (offset >= 0) {
        *dv = part(l, l->grads, (size_t)offset);
        return part(l, l->params, (size_t)offset);
    }
    return take(l, a, area(tensor_rows(l->c, id), tensor_cols(l->c, id)));
}

static void carve_norm(struct lora *l, struct arena *a, int id, int layer, struct norm *n)
{
    n->w = carve_vector(l, a, id, layer, &n->dw);
}

/* The seven linears of a layer, in the order of lora_state.h's h[7], and the matrix whose rows they are
 * where the model has them fused. */
static const struct { int id, bias, fused; } linear_ids[7] = {
    { T_WQ, T_BQ, T_WQKV }, { T_WK, T_BK, T_WQKV }, { T_WV, T_BV, T_WQKV }, { T_WO, T_BO, T_WO },
    { T_WGATE, T_BGATE, T_WGATE_UP }, { T_WUP, T_BUP, T_WGATE_UP }, { T_WDOWN, T_BDOWN, T_WDOWN },
};

/* The matrix that holds linear i; -1 for an i that there is not. */
static int linear_tensor(const struct config *c, int i)
{
    if (i < 0 || i > 6) return -1;
    return c->fused ? linear_ids[i].fused : linear_ids[i].id;
}

static struct linear *layer_linear(struct layer *y, int i)
{
    struct linear *const all[7] = { &y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down };
    return all[i];
}

static void carve_linear(struct lora *l, struct arena *a, int layer, int i)
{
    struct linear *lin = layer_linear(&l->layers[layer], i);
    int id = linear_tensor(l->c, i);
    lin->followed = linear_tensor(l->c, i + 1) == id;
    if (linear_tensor(l->c, i - 1) == id) {     /* the rows of the fused matrix after those of the linear before */
        const struct linear *before = layer_linear(&l->layers[layer], i - 1);
        size_t skip = area(before->w.rows, before->w.cols);
        lin->first = before->first + before->w.rows;
        lin->w = before->w;
        lin->w.offset += skip;
        lin->dw = part(l, before->dw, skip);
    } else {
        carve_matrix(l, a, id, layer, &lin->w, &lin->dw);
    }
    lin->w.rows = tensor_rows(l->c, linear_ids[i].id);
    lin->bias = carve_vector(l, a, linear_ids[i].bias, layer, &lin->dbias);
    lin->branch = l->branches + ((size_t)layer * 7 + (size_t)i) * (size_t)l->n_adapters;
}

static void carve_weights(struct lora *l, struct arena *a)
{
    int i, layer;
    l->n_copied = 0;
    carve_matrix(l, a, T_EMBED, 0, &l->embed, &l->d_embed);
    for (layer = 0; layer < l->c->L; layer++) {
        struct layer *y = &l->layers[layer];
        carve_norm(l, a, T_ATTN_NORM, layer, &y->attn_norm);
        carve_norm(l, a, T_Q_NORM, layer, &y->q_norm);
        carve_norm(l, a, T_K_NORM, layer, &y->k_norm);
        carve_norm(l, a, T_MLP_NORM, layer, &y->mlp_norm);
        for (i = 0; i < 7; i++) carve_linear(l, a, layer, i);
    }
    carve_norm(l, a, T_FINAL_NORM, 0, &l->final_norm);
    if (l->c->tied) {
        l->head = l->embed;
        l->d_head = l->d_embed;
    } else {
        carve_matrix(l, a, T_HEAD, 0, &l->head, &l->d_head);
    }
}

static void set_branches(struct lora *l, const struct lora_setup *s)
{
    int i, j, n;
    for (i = 0; i < s->n_adapters; i++)
        for (j = 0; j < s->adapters[i]->n; j++) {
            const struct adapted *m = &s->adapters[i]->modules[j];
            size_t start = l->adapter_start[i];
            char name[128];
            for (n = 0; n < 7; n++) {
                struct linear *lin = layer_linear(&l->layers[m->layer], n);
                struct branch *b = &lin->branch[i];
                size_t b_start = start + m->b + area(lin->first, m->r);
                if (linear_tensor(l->c, n) != m->id) continue;
                b->r = m->r;
                lin->r = max_int(lin->r, m->r);
                b->scale = m->scale;
                b->a = real_weight(l, start + m->a, m->r, m->cols);
                b->b = real_weight(l, b_start, lin->w.rows, m->r);
                b->da = part(l, l->grads, start + m->a);
                b->db = part(l, l->grads, b_start);
                b->key = random_key(s->seed, adapter_tensor_name(name, sizeof name, m, 0));
            }
        }
}

/* ---- activations and working memory ---- */

static void carve_activations(struct lora *l, struct arena *a, struct activations *t, int layer, size_t N)
{
    const struct config *c = l->c;
    size_t Q = N * (size_t)c->NH * (size_t)c->HS, K = N * (size_t)c->NKV * (size_t)c->HS;
    int i;
    t->q = take(l, a, Q);
    t->k = take(l, a, K);
    t->q_raw = c->qk_norm ? take(l, a, Q) : t->q;
    t->k_raw = c->qk_norm ? take(l, a, K) : t->k;
    t->v = take(l, a, K);
    t->att = take(l, a, Q);
    t->lse = take(l, a, N * (size_t)c->NH);
    t->mid = take(l, a, N * (size_t)c->C);
    t->gate = take(l, a, N * (size_t)c->F);
    t->up = take(l, a, N * (size_t)c->F);
    for (i = 0; i < 7; i++) {
        int r = layer < 0 ? l->max_r : layer_linear(&l->layers[layer], i)->r;
        if (linear_tensor(c, i - 1) == linear_tensor(c, i)) t->h[i] = t->h[i - 1];
        else t->h[i] = take(l, a, N * (size_t)r);
    }
}

/* Whose forward values the backward pass finds again: all layers above the lowest trained one, or
 * the topmost `keep`; the others share one set, and one pair of x below the lowest. For N tokens. */
static void carve_kept(struct lora *l, struct arena *a, int N, int keep)
{
    int i, L = l->c->L, kept = l->sizes.backward ? keep : 0;
    int lowest = l->sizes.backward ? l->lowest_layer : L;
    size_t NC = (size_t)N * (size_t)l->c->C;
    struct activations shared = { 0 };
    buf *pair[2];
    int first_kept = kept < 0 ? lowest : max_int(lowest, L - kept);
    if (first_kept > 0) carve_activations(l, a, &shared, -1, (size_t)N);
    for (i = 0; i < 2; i++) pair[i] = take(l, a, lowest > 0 ? NC : 0);
    for (i = 0; i <= L; i++) l->x[i] = i < lowest || lowest == L ? pair[i % 2] : take(l, a, NC);
    for (i = 0; i < L; i++) {
        if (i < first_kept) l->acts[i] = shared;
        else carve_activations(l, a, &l->acts[i], i, (size_t)N);
    }
    l->keep = keep;
    l->laid = N;
}

void lay_activations(struct lora *l, int N)
{
    struct arena counting, a = { .base = l->room, .size = l->plan.activations };
    int keep = l->c->L + 1;
    if (N == l->laid) return;
    do {
        counting = (struct arena){ 0 };
        carve_kept(l, &counting, N, --keep);
    } while (keep > 0 && counting.used > a.size);
    carve_kept(l, &a, N, keep);
}

/* What one layer works with, forward or backward. */
static void carve_layer_work(struct lora *l, struct arena *a)
{
    const struct config *c = l->c;
    size_t N = (size_t)l->sizes.N, C = (size_t)c->C, F = (size_t)c->F;
    size_t Q = (size_t)c->NH * (size_t)c->HS, K = (size_t)c->NKV * (size_t)c->HS;
    size_t wide = F > Q ? F : Q, in = C > wide ? C : wide;
    l->xn = take(l, a, N * C);
    l->act = take(l, a, N * wide);
    if (!l->sizes.backward) return;
    l->drop = take(l, a, l->dropout > 0 ? N * in : 0);
    l->gh = take(l, a, N * (size_t)l->max_r);
    l->dxn = take(l, a, N * C);
    l->dq = take(l, a, N * Q);
    l->dk = take(l, a, N * K);
    l->dv = take(l, a, N * K);
    l->datt = take(l, a, N * Q);
    l->delta = take(l, a, N * (size_t)c->NH);
    l->dact = take(l, a, N * wide);
}

/* The logits lie where layers work: the one is done when the other begins. */
static void carve_work(struct lora *l, struct arena *a)
{
    const struct config *c = l->c;
    size_t C = (size_t)c->C, U = (size_t)max_int(l->sizes.U, 1), chunk, start, end;
    l->dx = l->sizes.backward ? take(l, a, (size_t)l->sizes.N * C) : NULL;
    start = a->used;
    carve_layer_work(l, a);
    end = a->used;
    a->used = start;
    chunk = LOGITS_CHUNK / (size_t)c->V / 16 * 16;
    if (chunk < 16) chunk = 16;
    chunk = (U + (U - 1) / chunk) / ((U - 1) / chunk + 1);      /* U in equal parts, rounded up */
    l->chunk = (int)chunk;
    l->hx = take(l, a, chunk * C);
    l->hn = take(l, a, chunk * C);
    l->dhn = l->sizes.backward ? take(l, a, chunk * C) : NULL;
    l->logits = take(l, a, chunk * (size_t)c->V);
    if (a->used < end) a->used = end;
}

static void carve_tables(struct lora *l, struct arena *a)
{
    const struct lora_sizes *z = &l->sizes;
    size_t N = (size_t)z->N, U = (size_t)max_int(z->U, 1), T = (size_t)z->T, I = sizeof(int);  /* a chunk has a row */
    l->ids = arena_take(a, N, I);
    l->all.pos = arena_take(a, N, I);
    l->all.visit = arena_take(a, N, I);
    l->wanted.pos = arena_take(a, U, I);
    l->wanted.visit = arena_take(a, U, I);
    l->segments = arena_take(a, (size_t)z->S, sizeof(struct segment));
    l->logit_row = arena_take(a, U, I);
    l->first = arena_take(a, U + 1, I);
    l->best = arena_take(a, U, I);
    l->target_id = arena_take(a, T, I);
    l->target_weight = take(l, a, T);
    l->losses = take(l, a, T);
}

static struct kernel_sizes kernel_sizes(const struct lora *l, int threads)
{
    const struct config *c = l->c;
    return (struct kernel_sizes){
        .threads = threads, .N = l->sizes.N, .width = max_int(max_int(c->C, c->F), c->NH * c->HS), .V = c->V,
        .HS = c->HS, .NH = c->NH, .NKV = c->NKV, .keys = l->sizes.positions, .segments = l->sizes.S,
    };
}

static size_t since(const struct arena *a, size_t *mark)
{
    size_t n = a->used - *mark;
    *mark = a->used;
    return n;
}

/* In the arena, or in one of their own over the mapped file of `paged` bytes. Empty buffers are NULL. */
static void carve_moments(struct lora *l, struct arena *a, size_t paged)
{
    struct arena pages = { .base = l->pages, .size = paged }, *in = l->optim == OPTIM_PAGED_ADAMW ? &pages : a;
    l->moment1 = l->n_moments ? take(l, in, l->n_moments) : NULL;
    l->moment2 = l->n_moments ? take(l, in, l->n_moments) : NULL;
    l->absmax1 = l->n_blocks ? take(l, in, l->n_blocks) : NULL;
    l->absmax2 = l->n_blocks ? take(l, in, l->n_blocks) : NULL;
    l->codes1 = l->n_codes ? arena_take(in, l->n_codes, 1) : NULL;
    l->codes2 = l->n_codes ? arena_take(in, l->n_codes, 1) : NULL;
    l->plan.paged = pages.used;
    if (pages.failed) a->failed = 1;
}

static void carve(struct lora *l, const struct lora_setup *s, struct arena *a)
{
    struct kernel_sizes ks = kernel_sizes(l, s->threads);
    size_t mark = 0, half = (size_t)l->c->HS / 2, cache = 0, paged = l->plan.paged;     /* as counted */
    int i;
    memset(&l->plan, 0, sizeof l->plan);
    l->params = take(l, a, l->n_params);
    l->plan.trainable = since(a, &mark);
    l->grads = l->sizes.backward ? take(l, a, l->n_params) : NULL;
    l->plan.gradients = since(a, &mark);
    carve_moments(l, a, paged);
    l->plan.moments = since(a, &mark);
    carve_weights(l, a);
    set_branches(l, s);
    l->cos = take(l, a, (size_t)l->sizes.positions * half);
    l->sin = take(l, a, (size_t)l->sizes.positions * half);
    l->plan.weights = since(a, &mark);
    l->room = a->base ? a->base + mark : NULL;
    carve_kept(l, a, l->sizes.N, l->sizes.keep);
    l->plan.activations = since(a, &mark);
    if (l->sizes.keys > 0) cache = area(l->sizes.keys, l->c->NKV * l->c->HS);
    for (i = 0; i < l->c->L; i++) {
        l->layers[i].k_cache = cache ? take(l, a, cache) : NULL;
        l->layers[i].v_cache = cache ? take(l, a, cache) : NULL;
    }
    l->plan.cache = since(a, &mark);
    carve_work(l, a);
    carve_tables(l, a);
    l->ctx.threads = s->threads;
    l->ctx.work_bytes = kernels_work_bytes(l->k, &ks);
    l->ctx.work = l->ctx.work_bytes ? arena_take(a, l->ctx.work_bytes, 1) : NULL;
    l->plan.workspace = since(a, &mark);
    l->plan.total = a->used;
}

/* ---- filling ---- */

static int load_vector(struct lora *l, int id, int layer, buf *to, struct lora_error *err)
{
    const struct weight *w = model_weight(l->model, id, layer);
    float *v;
    int r;
    if (!to) return 0;
    if (!(v = new_array(area(w->rows, w->cols), sizeof *v, err))) return -1;
    for (r = 0; r < w->rows; r++) weight_decode(w, r, 0, w->cols, v + area(r, w->cols));
    l->k->up(&l->ctx, to, v, area(w->rows, w->cols));
    free(v);
    return 0;
}

static int load_matrix(struct lora *l, const struct weight *from, const struct weight *to, struct lora_error *err)
{
    if (!l->k->own_memory || !kernels_up_weight(l->k, &l->ctx, to, from)) return 0;
    return fail(err, "cannot copy weights to the backend's memory", "%s: %s", l->k->name, weight_types[from->type].name);
}

static int load_layer(struct lora *l, int layer, struct lora_error *err)
{
    struct layer *y = &l->layers[layer];
    int i;
    if (load_vector(l, T_ATTN_NORM, layer, y->attn_norm.w, err) || load_vector(l, T_Q_NORM, layer, y->q_norm.w, err)
        || load_vector(l, T_K_NORM, layer, y->k_norm.w, err) || load_vector(l, T_MLP_NORM, layer, y->mlp_norm.w, err))
        return -1;
    for (i = 0; i < 7; i++) {
        struct linear *lin = layer_linear(y, i);
        if (load_vector(l, linear_ids[i].bias, layer, lin->bias, err)
            || (!lin->first && load_matrix(l, model_weight(l->model, linear_tensor(l->c, i), layer), &lin->w, err)))
            return -1;
    }
    return 0;
}

static int load_weights(struct lora *l, struct lora_error *err)
{
    int i;
    for (i = 0; l->full && i < l->n_trained; i++)
        if (load_vector(l, l->trained[i].id, l->trained[i].layer, at(l->k, l->params, l->trained[i].offset), err))
            return -1;
    for (i = 0; !l->full && i < l->c->L; i++)
        if (load_layer(l, i, err)) return -1;
    if (l->full) return 0;
    if (load_matrix(l, model_weight(l->model, T_EMBED, 0), &l->embed, err)
        || (!l->c->tied && load_matrix(l, model_weight(l->model, T_HEAD, 0), &l->head, err))) return -1;
    return load_vector(l, T_FINAL_NORM, 0, l->final_norm.w, err);
}

/* cos and sin of every position, computed in double. */
static int load_rope(struct lora *l, struct lora_error *err)
{
    int half = l->c->HS / 2, p, i;
    size_t n = area(l->sizes.positions, half);
    double *f = new_array((size_t)half, sizeof *f, err), *t = new_array(n, sizeof *t, err), factor;
    if (f && t) {
        rope_frequencies(l->c, f, &factor);
        for (p = 0; p < l->sizes.positions; p++)
            for (i = 0; i < half; i++) t[area(p, half) + (size_t)i] = factor * cos(p * f[i]);
        l->k->up64(&l->ctx, l->cos, t, n);
        for (p = 0; p < l->sizes.positions; p++)
            for (i = 0; i < half; i++) t[area(p, half) + (size_t)i] = factor * sin(p * f[i]);
        l->k->up64(&l->ctx, l->sin, t, n);
    }
    free(f);
    free(t);
    return f && t ? 0 : -1;
}

/* ---- open and close ---- */

/* Are its values there, and do its modules fit the model? */
static int check_adapter(const struct config *c, const struct adapter *a, int i, struct lora_error *err)
{
    char name[128];
    int j;
    if (!a || !a->values) {
        fail(err, "bad setup", "adapter %d", i);
        return expected(err, "one with values: adapter_init(), adapter_read()");
    }
    for (j = 0; j < a->n; j++) {
        const struct adapted *m = &a->modules[j];
        if (m->layer < c->L && tensor_present(c, m->id) && m->rows == tensor_rows(c, m->id) && m->cols == tensor_cols(c, m->id))
            continue;
        fail(err, "the adapter does not fit the model", "adapter %d, %s", i, tensor_name(name, sizeof name, m->id, m->layer));
        expected(err, "a module of the model's, of its shape: adapter_new() or adapter_read() with its configuration");
        return found(err, "[%d, %d]", m->rows, m->cols);
    }
    return 0;
}

static int check_setup(const struct lora_setup *s, struct lora_error *err)
{
    const struct lora_sizes *z = &s->sizes;
    int i;
    if (!s->kernels || !s->model || (s->n_adapters > 0 && !s->adapters)) {
        fail(err, "bad setup", !s->kernels ? "kernels" : !s->model ? "model" : "adapters");
        expected(err, "what kernels_find(), model_open(), adapter_new() gave");
        return found(err, "NULL");
    }
    if (s->n_adapters < 0 || (s->full && s->n_adapters) || (z->backward && !s->full && s->n_adapters != 1)) {
        fail(err, "bad setup", "adapters");
        return expected(err, "exactly one adapter to train, or full");
    }
    if (z->N < 1 || z->S < 1 || z->T < 0 || z->U < 0 || z->positions < 1 || z->keys < 0 || s->threads < 1) {
        fail(err, "bad setup", "sizes");
        return expected(err, "positive sizes and threads");
    }
    if (z->backward && z->keys) {       /* the backward pass looks for keys among the pack's own */
        fail(err, "bad setup", "sizes.keys");
        expected(err, "0 in training: keys live in the pack");
        return found(err, "%d", z->keys);
    }
    if (s->optim < OPTIM_ADAMW || s->optim > OPTIM_PAGED_ADAMW) {
        fail(err, "bad setup", "optim");
        expected(err, "a number of enum lora_optim");
        return found(err, "%d", s->optim);
    }
    if (kernels_check_compute(s->kernels, s->compute, err)) return -1;
    if ((long long)z->N * s->model->config.NH > INT_MAX) {     /* the rows of a norm of heads are an int */
        fail(err, "too many tokens in a pack", "%d", z->N);
        return expected(err, "at most %d with this model's %d heads", INT_MAX / s->model->config.NH, s->model->config.NH);
    }
    if (s->optim == OPTIM_PAGED_ADAMW && s->kernels->own_memory) {
        fail(err, "paged_adamw cannot be used with this backend", "%s", s->kernels->name);
        expected(err, "moments in the host's memory");
        return hint(err, "--optim adamw8bit takes a quarter of adamw's memory");
    }
    for (i = 0; i < s->n_adapters; i++)
        if (check_adapter(&s->model->config, s->adapters[i], i, err)) return -1;
    return 0;
}

/* All that needs no arena: tables on the heap. */
static struct lora *prepare(const struct lora_setup *s, struct lora_error *err)
{
    struct lora *l;
    size_t L;
    if (check_setup(s, err) || !(l = new_array(1, sizeof *l, err))) return NULL;
    L = (size_t)s->model->config.L;
    kernels_complete(&l->table, s->kernels);
    l->k = &l->table;
    l->model = s->model;
    l->c = &s->model->config;
    l->sizes = s->sizes;
    l->ctx.compute = s->compute;
    l->full = s->full;
    l->optim = s->optim;
    l->n_adapters = s->n_adapters;
    if (l->sizes.keep > l->c->L) l->sizes.keep = -1;
    l->layers = new_array(L, sizeof *l->layers, err);
    l->acts = new_array(L, sizeof *l->acts, err);
    l->x = new_array(L + 1, sizeof *l->x, err);
    l->adapter_start = new_array((size_t)s->n_adapters, sizeof(size_t), err);
    l->branches = new_array(L * 7 * (size_t)s->n_adapters, sizeof *l->branches, err);
    l->copied = new_array(s->kernels->own_memory ? L * 7 + 2 : 0, sizeof *l->copied, err);
    if (!l->layers || !l->acts || !l->x || !l->adapter_start || !l->branches || !l->copied
        || (s->full ? table_full(l, err) : table_adapters(l, s, err)) || table_moments(l, err)) {
        lora_close(l);
        return NULL;
    }
    return l;
}

static int count(struct lora *l, const struct lora_setup *s, struct lora_error *err)
{
    struct arena a = { 0 };
    carve(l, s, &a);
    return a.failed ? fail(err, "the plan's sizes overflow", "%d tokens a pack", s->sizes.N) : 0;
}

int lora_plan(struct lora_plan *plan, const struct lora_setup *setup, struct lora_error *err)
{
    struct lora *l = prepare(setup, err);
    int bad;
    if (!l) return -1;
    bad = count(l, setup, err);
    *plan = l->plan;
    lora_close(l);
    return bad;
}

/* What the arena may take: what the caller said, and no more than there is in a memory of the backend's own. */
static size_t arena_limit(const struct lora *l, const struct lora_setup *s)
{
    size_t there = l->k->own_memory && l->k->memory ? l->k->memory() : 0;
    return there && (!s->max_memory || there < s->max_memory) ? there : s->max_memory;
}

static int fail_plan(const struct lora *l, size_t limit, int trains, struct lora_error *err)
{
    int is_own = l->k->own_memory;
    fail(err, "not enough memory for the plan", "%s%sactivations %.1f MB, trained %.1f MB, the rest %.1f MB",
         is_own ? l->k->name : "", is_own ? ": " : "", (double)l->plan.activations / 1e6,
         (double)(l->plan.trainable + l->plan.gradients + l->plan.moments) / 1e6,
         (double)(l->plan.weights + l->plan.workspace + l->plan.cache) / 1e6);
    expected(err, "at most %.3f MB", (double)limit / 1e6);
    found(err, "%.3f MB", (double)l->plan.total / 1e6);
    return hint(err, "%s, %sor a larger %s",
                trains ? "smaller --tokens-per-pack or --max-length, --gradient-checkpointing on, --optim adamw8bit"
                       : "fewer rows at a time, shorter texts and answers",
                is_own ? "--load-in-4bit, " : "", is_own ? "device (or --max-memory)" : "--max-memory");
}

int lora_open(struct lora **out, const struct lora_setup *s, struct lora_error *err)
{
    struct lora *l = prepare(s, err);
    struct arena a = { 0 };
    size_t limit;
    int i;
    *out = NULL;
    if (!l) return -1;
    if (count(l, s, err)) goto bad;
    limit = arena_limit(l, s);
    if (limit && l->plan.total > limit) {
        fail_plan(l, limit, s->sizes.backward, err);
        goto bad;
    }
    a.size = l->plan.total;
    a.base = l->memory = l->k->alloc(&l->ctx, l->plan.total ? l->plan.total : 1);
    if (!l->memory) {
        fail_memory(err, "the plan's arena", l->plan.total);
        goto bad;
    }
    if (l->plan.paged && !(l->pages = pages_open(s->page_directory, l->plan.paged, err))) goto bad;
    carve(l, s, &a);
    if (l->k->open && l->k->open(&l->ctx)) {
        fail(err, "cannot start the backend", "%s", l->k->name);
        goto bad;
    }
    l->opened = 1;
    if (load_weights(l, err) || load_rope(l, err)) goto bad;
    for (i = 0; i < s->n_adapters; i++)
        l->k->up(&l->ctx, at(l->k, l->params, l->adapter_start[i]), s->adapters[i]->values, s->adapters[i]->size);
    if (lora_check(l, err)) goto bad;
    *out = l;
    return 0;
bad:
    lora_close(l);
    return -1;
}

void lora_close(struct lora *l)
{
    if (!l) return;
    if (l->opened && l->k->close) l->k->close(&l->ctx);
    if (l->memory) l->k->release(&l->ctx, l->memory);
    if (l->pages) pages_close(l->pages, l->plan.paged);
    free(l->layers);
    free(l->acts);
    free(l->x);
    free(l->adapter_start);
    free(l->branches);
    free(l->copied);
    free(l->trained);
    free(l->moments);
    free(l->all.runs);
    free(l->wanted.runs);
    free(l);
}

/* ---- buffers ---- */

/* By enum lora_buffer. NULL: there is none. */
static void *flat(const struct lora *l, int buffer)
{
    void *const all[] = { l->params, l->grads, l->moment1, l->moment2, l->absmax1, l->absmax2, l->codes1, l->codes2 };
    return lora_buffer_size(l, buffer) ? all[buffer] : NULL;
}

size_t lora_buffer_size(const struct lora *l, int buffer)
{
    const size_t all[] = { l->n_params, l->grads ? l->n_params : 0, l->n_moments, l->n_moments, l->n_blocks, l->n_blocks,
                           l->n_codes, l->n_codes };
    return buffer < LORA_PARAMETERS || buffer > LORA_CODES2 ? 0 : all[buffer];
}

int lora_trained(const struct lora *l, const struct trained **list)
{
    *list = l->trained;
    return l->n_trained;
}

size_t lora_trained_size(const struct lora *l) { return l->n_params; }
long long lora_steps(const struct lora *l) { return l->steps; }
void lora_set_steps(struct lora *l, long long steps) { l->steps = steps; }

void lora_get(const struct lora *l, int buffer, float *out)
{
    struct kernel_ctx c = l->ctx;
    l->k->down(&c, out, flat(l, buffer), lora_buffer_size(l, buffer));
}

int lora_check(const struct lora *l, struct lora_error *err)
{
    struct kernel_ctx c = l->ctx;
    return kernels_check(l->k, &c, err);
}

const float *lora_floats(const struct lora *l, int buffer)
{
    return l->k->own_memory || l->k->elem != sizeof(float) ? NULL : flat(l, buffer);
}

void lora_get64(const struct lora *l, int buffer, double *out)
{
    struct kernel_ctx c = l->ctx;
    l->k->down64(&c, out, flat(l, buffer), lora_buffer_size(l, buffer));
}

void lora_get_codes(const struct lora *l, int buffer, unsigned char *out)
{
    struct kernel_ctx c = l->ctx;
    l->k->down_bytes(&c, out, flat(l, buffer), lora_buffer_size(l, buffer));
}

void lora_set(struct lora *l, int buffer, const float *values)
{
    l->k->up(&l->ctx, flat(l, buffer), values, lora_buffer_size(l, buffer));
}

void lora_set64(struct lora *l, int buffer, const double *values)
{
    l->k->up64(&l->ctx, flat(l, buffer), values, lora_buffer_size(l, buffer));
}

int lora_set_codes(struct lora *l, int buffer, const unsigned char *codes)
{
    return l->k->up_bytes(&l->ctx, flat(l, buffer), codes, lora_buffer_size(l, buffer)) ? -1 : 0;
}
