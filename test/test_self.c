/* test_self.c - the checkers are checked: wrong kernels, each with one planted fault, must be
 * rejected by the oracle, and right ones of another arithmetic must not. */
#include "test.h"
#include "verify/oracle.c"

/* ---- faults that any operation can have ---- */

enum fault { ZEROS, SIGN, GAIN, ONE_NAN, ROW_MISSING, ADDED, OVERWRITTEN, PAST_END, BEFORE, INPUT, THREADS, MANY_THREADS, SECOND_CALL, FAULTS };
static const char *const fault_names[] = {
    "writes zeros", "turns the sign", "is a thousandth too large", "writes one NaN", "leaves out the last row",
    "adds where it should overwrite", "loses what was there", "writes past the end", "writes before the start",
    "changes an input", "has other bits with more threads", "has other bits with more than three threads",
    "is wrong in the second call"
};
static enum fault fault;

struct spoiler { float *out, *input, *old; size_t n, row; int threads, second; };

/* Remembers what an output [n], rows of `row`, holds before the right kernel runs. */
static struct spoiler spoil_begin(struct kernel_ctx *c, buf *out, size_t n, size_t row, const buf *input)
{
    struct spoiler s;
    s.out = (float *)out;
    s.input = (float *)(void *)(size_t)input;
    s.n = n;
    s.row = row;
    s.threads = c->threads;
    s.second = c->own != NULL;          /* NULL after open() */
    c->own = out;
    s.old = malloc((n + 1) * sizeof *s.old);
    if (!s.old) abort();
    if (n) memcpy(s.old, out, n * sizeof *s.old);
    return s;
}

static void spoil_end(struct spoiler *s)
{
    size_t i, n = s->n;
    for (i = 0; i < n; i++) {
        if (fault == ZEROS) s->out[i] = 0;
        if (fault == SIGN) s->out[i] = -s->out[i];
        if (fault == GAIN) s->out[i] *= 1.001f;
        if (fault == ROW_MISSING && i >= n - s->row) s->out[i] = s->old[i];
        if (fault == ADDED) s->out[i] += s->old[i];
        if (fault == OVERWRITTEN) s->out[i] -= s->old[i];
    }
    if (n && fault == ONE_NAN) s->out[n / 2] = NAN;
    if (n && fault == PAST_END) s->out[n] = 0;
    if (n && fault == BEFORE) s->out[-1] = 0;
    if (n && fault == INPUT) s->input[0] += 1;
    if (n && fault == THREADS && s->threads > 1) s->out[0] = nextafterf(s->out[0], INFINITY);
    if (n && fault == MANY_THREADS && s->threads > 3) s->out[0] = nextafterf(s->out[0], INFINITY);
    if (n && fault == SECOND_CALL && s->second) s->out[n / 2] = NAN;
    free(s->old);
}

/* Each operation with the fault of the moment; the output first, then an input. */

static void wrong_copy(struct kernel_ctx *c, buf *out, const buf *x, size_t n)
{
    struct spoiler s = spoil_begin(c, out, n, 1, x);
    kernels_ref.copy(c, out, x, n);
    spoil_end(&s);
}

static void wrong_gather(struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C)
{
    struct spoiler s = spoil_begin(c, out, (size_t)M * C, (size_t)C, x);
    kernels_ref.gather(c, out, x, rows, M, C);
    spoil_end(&s);
}

static int wrong_embed(struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N)
{
    struct spoiler s = spoil_begin(c, out, (size_t)N * w->cols, (size_t)w->cols, (const buf *)ids);
    int rc = kernels_ref.embed(c, out, w, ids, N);
    spoil_end(&s);
    return rc;
}

static int wrong_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias,
                        double scale, int accumulate, int N)
{
    struct spoiler s = spoil_begin(c, out, (size_t)N * w->rows, (size_t)w->rows, x);
    int rc = kernels_ref.matmul(c, out, x, w, bias, scale, accumulate, N);
    spoil_end(&s);
    return rc;
}

static int wrong_matmul_dx(struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w, double scale,
                           int accumulate, int N)
{
    struct spoiler s = spoil_begin(c, dx, (size_t)N * w->cols, (size_t)w->cols, dout);
    int rc = kernels_ref.matmul_dx(c, dx, dout, w, scale, accumulate, N);
    spoil_end(&s);
    return rc;
}

static void wrong_matmul_dw(struct kernel_ctx *c, buf *dw, const buf *dout, const buf *x, double scale, int N, int O,
                            int I)
{
    struct spoiler s = spoil_begin(c, dw, (size_t)O * I, (size_t)I, x);
    kernels_ref.matmul_dw(c, dw, dout, x, scale, N, O, I);
    spoil_end(&s);
}

static void wrong_bias_backward(struct kernel_ctx *c, buf *db, const buf *dout, int N, int O)
{
    struct spoiler s = spoil_begin(c, db, (size_t)O, 1, dout);
    kernels_ref.bias_backward(c, db, dout, N, O);
    spoil_end(&s);
}

/* Which of an operation's outputs is spoiled. */
static int spoiled;
static int outputs_of(const char *op)
{
    return !strcmp(op, "attention_backward") ? 3 : !strcmp(op, "linear") || !strcmp(op, "linear_dx") ? 2 : 1;
}

static struct spoiler spoil_linear(struct kernel_ctx *c, buf *out, buf *h, int N, int wide, int r, const buf *input)
{
    if (spoiled || !out) return spoil_begin(c, h, (size_t)N * r, (size_t)r, input);
    return spoil_begin(c, out, (size_t)N * wide, (size_t)wide, input);
}

static int wrong_linear(struct kernel_ctx *c, buf *out, buf *h, const buf *x, const struct weight *w, const buf *bias,
                        const struct low_rank *ab, int accumulate, int N)
{
    struct spoiler s = spoil_linear(c, out, h, N, w->rows, ab->b->cols, x);
    int rc = kernels_linear(&kernels_ref, c, out, h, x, w, bias, ab, accumulate, N);
    spoil_end(&s);
    return rc;
}

static int wrong_linear_dx(struct kernel_ctx *c, buf *dx, buf *gh, const buf *dout, const struct weight *w,
                           const struct low_rank *ab, int accumulate_gh, int accumulate, int N)
{
    struct spoiler s = spoil_linear(c, dx, gh, N, w->cols, ab->b->cols, dout);
    int rc = kernels_linear_dx(&kernels_ref, c, dx, gh, dout, w, ab, accumulate_gh, accumulate, N);
    spoil_end(&s);
    return rc;
}

static void wrong_rmsnorm(struct kernel_ctx *c, buf *out, const buf *x, const buf *w, int N, int C, double eps)
{
    struct spoiler s = spoil_begin(c, out, (size_t)N * C, (size_t)C, x);
    kernels_ref.rmsnorm(c, out, x, w, N, C, eps);
    spoil_end(&s);
}

static void wrong_rmsnorm_backward(struct kernel_ctx *c, buf *dx, buf *dw, const buf *dout, const buf *x, const buf *w,
                                   int N, int C, double eps, int accumulate)
{
    struct spoiler s = spoil_begin(c, dx, (size_t)N * C, (size_t)C, dout);
    kernels_ref.rmsnorm_backward(c, dx, dw, dout, x, w, N, C, eps, accumulate);
    spoil_end(&s);
}

static void wrong_rope(struct kernel_ctx *c, buf *x, const buf *cosine, const buf *sine, const ints *pos, int N,
                       int heads, int HS, int backward)
{
    struct spoiler s = spoil_begin(c, x, (size_t)N * heads * HS, (size_t)heads * HS, sine);
    kernels_ref.rope(c, x, cosine, sine, pos, N, heads, HS, backward);
    spoil_end(&s);
}

/* The last query row of the last segment that has any. */
static size_t last_row(const ints *segments, int S)
{
    const struct segment *s = (const struct segment *)segments;
    int rows = 0, i;
    for (i = 0; i < S; i++) if (s[i].q_len) rows = s[i].q_start + s[i].q_len;
    return (size_t)rows;
}

static void wrong_attention(struct kernel_ctx *c, buf *out, buf *lse, const buf *q, const buf *k, const buf *v,
                            const ints *segments, int S, int NH, int NKV, int HS, double scale, int window)
{
    size_t row = (size_t)NH * HS;
    struct spoiler s = spoil_begin(c, out, last_row(segments, S) * row, row, q);
    kernels_ref.attention(c, out, lse, q, k, v, segments, S, NH, NKV, HS, scale, window);
    spoil_end(&s);
}

static void wrong_attention_backward(struct kernel_ctx *c, buf *dq, buf *dk, buf *dv, buf *delta, const buf *dout,
                                     const buf *out, const buf *lse, const buf *q, const buf *k, const buf *v,
                                     const ints *segments, int S, int N, int NH, int NKV, int HS, double scale, int window)
{
    size_t row = (size_t)(spoiled ? NKV : NH) * HS;
    struct spoiler s = spoil_begin(c, spoiled == 0 ? dq : spoiled == 1 ? dk : dv, S ? (size_t)N * row : 0, row, v);
    kernels_ref.attention_backward(c, dq, dk, dv, delta, dout, out, lse, q, k, v, segments, S, N, NH, NKV, HS, scale,
                                   window);
    spoil_end(&s);
}

static void wrong_swiglu(struct kernel_ctx *c, buf *out, const buf *gate, const buf *up, size_t n)
{
    struct spoiler s = spoil_begin(c, out, n, 1, up);
    kernels_ref.swiglu(c, out, gate, up, n);
    spoil_end(&s);
}

static void wrong_swiglu_backward(struct kernel_ctx *c, buf *dgate, buf *dup, buf *out, const buf *dout, const buf *gate,
                                  const buf *up, size_t n)
{
    struct spoiler s = spoil_begin(c, dgate, n, 1, dout);
    kernels_ref.swiglu_backward(c, dgate, dup, out, dout, gate, up, n);
    spoil_end(&s);
}

static void wrong_dropout(struct kernel_ctx *c, buf *out, const buf *x, const ints *visit, const ints *pos, int N,
                          int C, double p, uint64_t key, int accumulate)
{
    struct spoiler s = spoil_begin(c, out, (size_t)N * C, (size_t)C, x);
    kernels_ref.dropout(c, out, x, visit, pos, N, C, p, key, accumulate);
    spoil_end(&s);
}

static void wrong_cross_entropy(struct kernel_ctx *c, buf *losses, ints *best, buf *logits, const ints *first,
                                const ints *id, const buf *weight, int U, int V, int grad, double grad_scale)
{
    struct spoiler s = spoil_begin(c, logits, (size_t)U * V * grad, (size_t)V, weight);
    kernels_ref.cross_entropy(c, losses, best, logits, first, id, weight, U, V, grad, grad_scale);
    spoil_end(&s);
}

static void wrong_adamw(struct kernel_ctx *c, buf *p, buf *m, buf *v, const buf *g, size_t n,
                        const struct adamw_step *step)
{
    struct spoiler s = spoil_begin(c, v, n, 1, g);
    kernels_ref.adamw(c, p, m, v, g, n, step);
    spoil_end(&s);
}

static void wrong_adamw8bit(struct kernel_ctx *c, buf *p, void *m, buf *mmax, void *v, buf *vmax, const buf *g,
                            size_t n, const struct adamw_step *step)
{
    struct spoiler s = spoil_begin(c, p, n, 1, g);
    kernels_ref.adamw8bit(c, p, m, mmax, v, vmax, g, n, step);
    spoil_end(&s);
}

/* ---- faults of their own ---- */

static void wrong_zero(struct kernel_ctx *c, buf *x, size_t n) { if (n) kernels_ref.zero(c, x, n - 1); }

/* No row may come twice here: harmless there, wrong here. Its own fault: it overwrites. */
static void wrong_scatter_add(struct kernel_ctx *c, buf *out, const buf *x, const ints *rows, int M, int C)
{
    int m;
    for (m = 0; m < M; m++)
        kernels_ref.copy(c, at(&kernels_ref, out, (size_t)((const int *)rows)[m] * C), at(&kernels_ref, x, (size_t)m * C),
                         (size_t)C);
}

/* The last of the same id wins. */
static void wrong_embed_backward(struct kernel_ctx *c, buf *dw, const buf *dout, const ints *ids, int N, int C)
{
    int n, m;
    for (n = 0; n < N; n++) {
        for (m = n + 1; m < N && ((const int *)ids)[m] != ((const int *)ids)[n]; m++) ;
        if (m == N)
            kernels_ref.embed_backward(c, dw, at(&kernels_ref, dout, (size_t)n * C),
                                       (const ints *)((const int *)ids + n), 1, C);
    }
}

static double wrong_sum_squares(struct kernel_ctx *c, const buf *x, size_t n)
{
    return (float)kernels_ref.sum_squares(c, x, n);
}

static long long wrong_not_finite(struct kernel_ctx *c, const buf *x, size_t n)
{
    size_t i;
    (void)c;
    for (i = 0; i < n; i++) if (((const float *)x)[i] != ((const float *)x)[i]) return (long long)i;   /* NaN only */
    return -1;
}

enum product_fault { BF16_INPUTS, BF16_LONG, TRANSPOSED, NO_BIAS, NO_SCALE, ROWS_IN_ORDER, NO_OFFSET, LAST_BIT_BY_N, LAST_INPUT };
static const char *const product_names[] = {
    "rounds its inputs to bf16", "rounds long rows to bf16", "reads the weight transposed", "forgets the bias", "forgets the scale",
    "ignores the order of rows in heads", "ignores the weight's offset", "gives a row other bits in a long matrix",
    "leaves out the last input of long rows"
};
static enum product_fault product_fault;

static int faulty_product(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w_right, const buf *bias,
                          double scale, int accumulate, int N)
{
    struct weight w = *w_right;
    size_t n = (size_t)N * w.cols, i;
    float *copy = malloc((n + 1) * sizeof *copy);
    int rc;
    if (!copy) abort();
    if (n) memcpy(copy, x, n * sizeof *copy);
    for (i = 0; i < n; i++) {
        if (product_fault == BF16_INPUTS || (product_fault == BF16_LONG && w.cols > 1000)) copy[i] = bf16_to_f32(f32_to_bf16(copy[i]));
        if (product_fault == LAST_INPUT && w.cols > 1000 && i % w.cols == (size_t)w.cols - 1) copy[i] = 0;
    }
    if (product_fault == TRANSPOSED && w.rows == w.cols && w.type == TYPE_REAL && N) {
        struct weight turned = w;
        float *t = malloc((size_t)w.rows * w.cols * sizeof *t);
        if (!t) abort();
        for (i = 0; i < (size_t)w.rows * w.cols; i++)
            t[i % w.rows * w.cols + i / w.rows] = ((const float *)w.data)[w.offset + i];
        turned.data = t;
        turned.offset = 0;
        rc = kernels_ref.matmul(c, out, x, &turned, bias, scale, accumulate, N);
        free(t);
        free(copy);
        return rc;
    }
    if (product_fault == NO_BIAS) bias = NULL;
    if (product_fault == NO_SCALE) scale = 1;
    if (product_fault == ROWS_IN_ORDER) w.head_rows = 0;
    if (product_fault == NO_OFFSET) w.offset = 0;
    rc = kernels_ref.matmul(c, out, (const buf *)copy, &w, bias, scale, accumulate, N);
    if (product_fault == LAST_BIT_BY_N && N > 30 && *(float *)out * 256 != rintf(*(float *)out * 256))
        *(float *)out = nextafterf(*(float *)out, INFINITY);        /* exact results stay exact */
    free(copy);
    return rc;
}

enum attention_fault { NO_PREFIX, WINDOW_ONE_MORE, NO_WINDOW, OTHER_HEADS, FUTURE, NO_LSE, OWN_SCALE };
static const char *const attention_names[] = {
    "does not see prefixes", "sees one key more than the window", "ignores the window", "takes the wrong key head",
    "sees the next key", "does not write lse", "takes 1/sqrt(HS) for the scale"
};
static enum attention_fault attention_fault;

static void faulty_attention(struct kernel_ctx *c, buf *out, buf *lse, const buf *q, const buf *k, const buf *v,
                             const ints *segments, int S, int NH, int NKV, int HS, double scale, int window)
{
    struct segment s[8];
    float skipped[4096];
    int i;
    if (S) memcpy(s, segments, (size_t)S * sizeof *s);
    for (i = 0; i < S; i++) {
        if (attention_fault == NO_PREFIX) s[i].prefix = -1;
        if (attention_fault == FUTURE && s[i].q_len > 1) s[i].q_len--;
    }
    if (attention_fault == WINDOW_ONE_MORE && window) window++;
    if (attention_fault == NO_WINDOW) window = 0;
    if (attention_fault == OWN_SCALE) scale = 1 / sqrt(HS);
    if (attention_fault == OTHER_HEADS && NKV > 1) {
        k = at(&kernels_ref, k, (size_t)HS);
        v = at(&kernels_ref, v, (size_t)HS);
    }
    if (attention_fault == NO_LSE) lse = (buf *)skipped;
    kernels_ref.attention(c, out, lse, q, k, v, (const ints *)s, S, NH, NKV, HS, scale, window);
    if (attention_fault == FUTURE)          /* the last query is at its place, the others one too far */
        for (i = 0; i < S; i++)
            if (((const struct segment *)segments)[i].q_len > 1) {
                s[i] = ((const struct segment *)segments)[i];
                s[i].q_start += s[i].q_len - 1;
                s[i].q_len = 1;
                kernels_ref.attention(c, out, lse, q, k, v, (const ints *)s, i + 1, NH, NKV, HS, scale, window);
            }
}

enum linear_fault { BF16_HIDDEN, ALWAYS_A, NO_SUM, OTHER_BITS_ALONE, FIRST_OF_R };
static const char *const linear_names[] = {
    "rounds h to bf16", "takes A where it is not given", "does not sum gh", "has other bits alone", "uses a row of A only"
};
static enum linear_fault linear_fault;

/* Of both directions: what is given in place of ab, or done to h and out after. */
static int faulty_linear(struct kernel_ctx *c, buf *out, buf *h, const buf *x, const struct weight *w, const buf *bias,
                         const struct low_rank *ab, int accumulate, int N)
{
    int r = ab->b->cols, rc = kernels_linear(&kernels_ref, c, out, h, x, w, bias, ab, accumulate, N);
    float *first = (float *)h;
    size_t i;
    struct weight one;
    if (linear_fault == BF16_HIDDEN && ab->a) for (i = 0; i < (size_t)N * r; i++) first[i] = bf16_to_f32(f32_to_bf16(first[i]));
    if (linear_fault == OTHER_BITS_ALONE && !out && N && *first * 256 != rintf(*first * 256)) *first = nextafterf(*first, INFINITY);
    if (linear_fault != FIRST_OF_R || !ab->a || r < 2 || rc) return rc;
    one = *ab->a;
    one.rows = 1;
    return kernels_ref.matmul(c, h, x, &one, NULL, ab->scale, 0, N);
}

static int faulty_linear_dx(struct kernel_ctx *c, buf *dx, buf *gh, const buf *dout, const struct weight *w,
                            const struct low_rank *right, int accumulate_gh, int accumulate, int N)
{
    struct low_rank ab = *right;
    float *a = calloc((size_t)ab.b->cols * w->cols + 1, sizeof *a);
    struct weight ones = *ab.b;
    size_t i;
    int rc;
    if (!a) abort();
    for (i = 0; i < (size_t)ab.b->cols * w->cols; i++) a[i] = 1;
    ones.rows = ab.b->cols;
    ones.cols = w->cols;
    ones.data = a;
    ones.offset = 0;
    if (linear_fault == ALWAYS_A && !ab.a) ab.a = &ones;
    rc = kernels_linear_dx(&kernels_ref, c, dx, gh, dout, w, &ab, accumulate_gh && linear_fault != NO_SUM, accumulate, N);
    free(a);
    return rc;
}

/* Pairs of neighbours instead of halves. */
static void faulty_rope(struct kernel_ctx *c, buf *x, const buf *cosine, const buf *sine, const ints *pos, int N,
                        int heads, int HS, int backward)
{
    float *f = (float *)x, turned[256];
    int r, i, half = HS / 2;
    for (r = 0; r < N * heads; r++, f += HS) {
        for (i = 0; i < HS; i++) turned[i % 2 * half + i / 2] = f[i];
        memcpy(f, turned, (size_t)HS * sizeof *f);
    }
    kernels_ref.rope(c, x, cosine, sine, pos, N, heads, HS, backward);
    for (f = (float *)x, r = 0; r < N * heads; r++, f += HS) {
        for (i = 0; i < HS; i++) turned[i] = f[i % 2 * half + i / 2];
        memcpy(f, turned, (size_t)HS * sizeof *f);
    }
}

/* Reads gate after it has been overwritten. */
static void faulty_swiglu_backward(struct kernel_ctx *c, buf *dgate, buf *dup, buf *out, const buf *dout, const buf *gate,
                                   const buf *up, size_t n)
{
    float *aside = malloc((n + 1) * sizeof *aside);
    if (!aside) abort();
    kernels_ref.swiglu_backward(c, dgate, (buf *)aside, out, dout, gate, up, n);
    kernels_ref.swiglu_backward(c, (buf *)aside, dup, out, dout, gate, up, n);
    free(aside);
}

/* Numbers the masks by row of the pack, not by visit and position. */
static void faulty_dropout(struct kernel_ctx *c, buf *out, const buf *x, const ints *visit, const ints *pos, int N,
                           int C, double p, uint64_t key, int accumulate)
{
    int *row = malloc(((size_t)N + 1) * sizeof *row), n;
    (void)pos;
    if (!row) abort();
    for (n = 0; n < N; n++) row[n] = n;
    kernels_ref.dropout(c, out, x, visit, (const ints *)row, N, C, p, key, accumulate);
    free(row);
}

enum loss_fault { LAST_BEST, NO_WEIGHTS, CHUNK_FROM_ZERO };
static const char *const loss_names[] = {
    "names the last of the largest", "ignores the weights", "takes its targets from the first on"
};
static enum loss_fault loss_fault;

static void faulty_cross_entropy(struct kernel_ctx *c, buf *losses, ints *best, buf *logits, const ints *first,
                                 const ints *id, const buf *weight, int U, int V, int grad, double grad_scale)
{
    int u, v, *top = malloc(((size_t)U + 1) * sizeof *top), moved[1024], targets = ((const int *)first)[U];
    float *ones = malloc(((size_t)targets + 1) * sizeof *ones);
    if (!top || !ones) abort();
    for (u = 0; u < targets; u++) ones[u] = 1;
    for (u = 0; u < U; u++)
        for (top[u] = v = 0; v < V; v++) {
            const float *z = (const float *)logits + (size_t)u * V;
            if (z[v] >= z[top[u]]) top[u] = v;
        }
    for (u = 0; u <= U; u++) moved[u] = ((const int *)first)[u] - (loss_fault == CHUNK_FROM_ZERO ? ((const int *)first)[0] : 0);
    kernels_ref.cross_entropy(c, losses, best, logits, (const ints *)moved, id,
                              loss_fault == NO_WEIGHTS ? (const buf *)ones : weight, U, V, grad, grad_scale);
    if (loss_fault == LAST_BEST && U) memcpy(best, top, (size_t)U * sizeof *top);
    free(top);
    free(ones);
}

enum adamw_fault { COUPLED, NO_CORRECTION, NO_GRAD_SCALE, LARGE_EPS };
static const char *const adamw_names[] = {
    "adds the decay to the gradient", "does not correct the moments", "does not clip", "has its eps inside the root"
};
static enum adamw_fault adamw_fault;

static void faulty_adamw(struct kernel_ctx *c, buf *p, buf *m, buf *v, const buf *g, size_t n,
                         const struct adamw_step *right)
{
    struct adamw_step s = *right;
    float *gradient = malloc((n + 1) * sizeof *gradient);
    size_t i;
    if (!gradient) abort();
    for (i = 0; i < n; i++) gradient[i] = ((const float *)g)[i];
    if (adamw_fault == COUPLED) {
        for (i = 0; i < n; i++) gradient[i] += (float)(s.weight_decay / s.grad_scale) * ((const float *)p)[i];
        s.weight_decay = 0;
    }
    if (adamw_fault == NO_CORRECTION) s.correction1 = s.correction2 = 1;
    if (adamw_fault == NO_GRAD_SCALE) s.grad_scale = 1;
    if (adamw_fault == LARGE_EPS) s.eps = sqrt(s.eps);
    kernels_ref.adamw(c, p, m, v, (const buf *)gradient, n, &s);
    free(gradient);
}

enum moments_fault { ONE_CODE, OLD_SCALE, FROM_ENCODED };
static const char *const moments_names[] = {
    "has one code next to the right one", "keeps a block's old scale", "steps from the encoded moments"
};
static enum moments_fault moments_fault;

static void faulty_adamw8bit(struct kernel_ctx *c, buf *p_, void *m, buf *mmax_, void *v, buf *vmax_, const buf *g,
                             size_t n, const struct adamw_step *s)
{
    float *p = (float *)p_, *mmax = (float *)mmax_, *vmax = (float *)vmax_, old_scale = n ? mmax[0] : 0, map[2][256];
    float *old = malloc((n + 1) * sizeof *old);
    size_t i;
    if (!old) abort();
    for (i = 0; i < n; i++) old[i] = p[i];
    dynamic_map(map[0], 1);
    dynamic_map(map[1], 0);
    kernels_ref.adamw8bit(c, p_, m, mmax_, v, vmax_, g, n, s);
    if (n && moments_fault == ONE_CODE) ((unsigned char *)m)[n / 2] ^= 1;
    if (n && moments_fault == OLD_SCALE) mmax[0] = old_scale;
    for (i = 0; i < n && moments_fault == FROM_ENCODED; i++) {
        double mi = (double)map[0][((unsigned char *)m)[i]] * mmax[i / MOMENT_BLOCK];
        double vi = (double)map[1][((unsigned char *)v)[i]] * vmax[i / MOMENT_BLOCK];
        p[i] = (float)(old[i] * (1 - s->lr * s->weight_decay)
                       - s->lr / s->correction1 * mi / (sqrt(vi / s->correction2) + s->eps));
    }
    free(old);
}

/* eps left out; and the part of dx that goes through the norm left out. */
static void faulty_rmsnorm(struct kernel_ctx *c, buf *out, const buf *x, const buf *w, int N, int C, double eps)
{
    (void)eps;
    kernels_ref.rmsnorm(c, out, x, w, N, C, 0);
}

static void faulty_rmsnorm_backward(struct kernel_ctx *c, buf *dx, buf *dw, const buf *dout, const buf *x, const buf *w,
                                    int N, int C, double eps, int accumulate)
{
    kernels_ref.rmsnorm_backward(c, dx, dw, dout, x, w, N, C, eps + 1e-3, accumulate);
}

/* Says that it needs 64 bytes, and writes 68. */
static size_t little_work(const struct kernel_sizes *sizes) { return sizes ? 64 : 0; }
static void greedy_zero(struct kernel_ctx *c, buf *x, size_t n)
{
    kernels_ref.zero(c, x, n);
    memset(c->work, 0, c->work_bytes + 4);
}

/* ---- the oracle must say so ---- */

struct seen_faults { int cases, faults; char first[128]; };

static int count_faults(void *context, const struct oracle_result *r)
{
    struct seen_faults *s = context;
    s->cases++;
    if (!r->fault) return 0;
    if (!s->faults++) snprintf(s->first, sizeof s->first, "%s (%s)", r->fault, r->label);
    return 1;           /* one is enough */
}

static void must_reject(const struct kernels *wrong, const struct kernels *oracle, const char *op, const char *what)
{
    struct seen_faults s = { 0, 0, "" };
    int rc = oracle_run(wrong, oracle, op, count_faults, &s, NULL);
    CHECK(rc > 0 && rc == s.faults, "%s that %s passes all of its %d cases", op, what, s.cases);
    if (getenv("VERBOSE")) printf("  %s that %s: %s\n", op, what, s.first);
}

static struct kernels wrong_table(void)
{
    struct kernels w = kernels_ref;
    w.copy = wrong_copy;
    w.gather = wrong_gather;
    w.embed = wrong_embed;
    w.matmul = wrong_matmul;
    w.matmul_dx = wrong_matmul_dx;
    w.matmul_dw = wrong_matmul_dw;
    w.bias_backward = wrong_bias_backward;
    w.linear = wrong_linear;
    w.linear_dx = wrong_linear_dx;
    w.rmsnorm = wrong_rmsnorm;
    w.rmsnorm_backward = wrong_rmsnorm_backward;
    w.rope = wrong_rope;
    w.attention = wrong_attention;
    w.attention_backward = wrong_attention_backward;
    w.swiglu = wrong_swiglu;
    w.swiglu_backward = wrong_swiglu_backward;
    w.dropout = wrong_dropout;
    w.cross_entropy = wrong_cross_entropy;
    w.adamw = wrong_adamw;
    w.adamw8bit = wrong_adamw8bit;
    w.zero = wrong_zero;
    w.scatter_add = wrong_scatter_add;
    w.embed_backward = wrong_embed_backward;
    w.sum_squares = wrong_sum_squares;
    w.not_finite = wrong_not_finite;
    return w;
}

/* Operations whose one fault does not come from spoil_end(). */
static int has_own_fault(const char *op)
{
    static const char *const names[] = { "zero", "scatter_add", "embed_backward", "sum_squares", "not_finite" };
    size_t i;
    for (i = 0; i < COUNT(names); i++) if (!strcmp(op, names[i])) return 1;
    return 0;
}

static void test_common_faults(void)
{
    struct kernels wrong = wrong_table();
    int f, i;
    for (f = 0; f < FAULTS; f++) {
        char name[80];
        snprintf(name, sizeof name, "every operation that %s is rejected", fault_names[f]);
        test_begin(name);
        fault = (enum fault)f;
        for (i = 0; oracle_op(i); i++) {
            if (has_own_fault(oracle_op(i))) continue;
            for (spoiled = 0; spoiled < outputs_of(oracle_op(i)); spoiled++)
                must_reject(&wrong, &kernels_ref64, oracle_op(i), fault_names[f]);
        }
    }
}

static void test_own_faults(void)
{
    struct kernels wrong = wrong_table();
    size_t f;
    test_begin("faults of one operation are rejected");
    must_reject(&wrong, &kernels_ref64, "zero", "stops one before the end");
    must_reject(&wrong, &kernels_ref64, "scatter_add", "overwrites");
    must_reject(&wrong, &kernels_ref64, "embed_backward", "keeps the last of an id");
    must_reject(&wrong, &kernels_ref64, "sum_squares", "is rounded to float");
    must_reject(&wrong, &kernels_ref64, "not_finite", "takes infinity for finite");
    wrong.matmul = faulty_product;
    for (f = 0; f < COUNT(product_names); f++) {
        product_fault = (enum product_fault)f;
        must_reject(&wrong, &kernels_ref64, "matmul", product_names[f]);
    }
    wrong.linear = faulty_linear;
    wrong.linear_dx = faulty_linear_dx;
    for (f = 0; f < COUNT(linear_names); f++) {
        int backward = f == ALWAYS_A || f == NO_SUM;
        linear_fault = (enum linear_fault)f;
        must_reject(&wrong, &kernels_ref64, backward ? "linear_dx" : "linear", linear_names[f]);
    }
    wrong.attention = faulty_attention;
    for (f = 0; f < COUNT(attention_names); f++) {
        attention_fault = (enum attention_fault)f;
        must_reject(&wrong, &kernels_ref64, "attention", attention_names[f]);
    }
    wrong.cross_entropy = faulty_cross_entropy;
    for (f = 0; f < COUNT(loss_names); f++) {
        loss_fault = (enum loss_fault)f;
        must_reject(&wrong, &kernels_ref64, "cross_entropy", loss_names[f]);
    }
    wrong.adamw = faulty_adamw;
    for (f = 0; f < COUNT(adamw_names); f++) {
        adamw_fault = (enum adamw_fault)f;
        must_reject(&wrong, &kernels_ref64, "adamw", adamw_names[f]);
    }
    wrong.adamw8bit = faulty_adamw8bit;
    for (f = 0; f < COUNT(moments_names); f++) {
        moments_fault = (enum moments_fault)f;
        must_reject(&wrong, &kernels_ref64, "adamw8bit", moments_names[f]);
    }
    wrong.rope = faulty_rope;
    wrong.swiglu_backward = faulty_swiglu_backward;
    wrong.dropout = faulty_dropout;
    wrong.rmsnorm = faulty_rmsnorm;
    wrong.rmsnorm_backward = faulty_rmsnorm_backward;
    wrong.zero = greedy_zero;
    wrong.work_bytes = little_work;
    must_reject(&wrong, &kernels_ref64, "rope", "turns neighbours");
    must_reject(&wrong, &kernels_ref64, "swiglu_backward", "cannot work in place");
    must_reject(&wrong, &kernels_ref64, "dropout", "numbers its masks by row");
    must_reject(&wrong, &kernels_ref64, "rmsnorm", "leaves eps out");
    must_reject(&wrong, &kernels_ref64, "rmsnorm_backward", "has another eps");
    must_reject(&wrong, &kernels_ref64, "zero", "writes behind its scratch memory");
}

/* ---- a wrong oracle, and the way it is asked ---- */

static int scaled_matmul(struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w, const buf *bias,
                         double scale, int accumulate, int N)
{
    return kernels_ref64.matmul(c, out, x, w, bias, scale * (1 + 1e-9), accumulate, N);
}

static void scaled_attention(struct kernel_ctx *c, buf *out, buf *lse, const buf *q, const buf *k, const buf *v,
                             const ints *segments, int S, int NH, int NKV, int HS, double scale, int window)
{
    kernels_ref64.attention(c, out, lse, q, k, v, segments, S, NH, NKV, HS, scale * (1 + 1e-9), window);
}

static int is_unsupported(void *context, const struct oracle_result *r)
{
    *(int *)context += !r->supported;
    return 0;
}

static int count_all(void *context, const struct oracle_result *r)
{
    ++*(int *)context;
    return r->fault != NULL;
}

static int no_embed(struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N)
{
    (void)c, (void)out, (void)w, (void)ids, (void)N;
    return KERNEL_UNSUPPORTED;
}

static int no_linear(struct kernel_ctx *c, buf *out, buf *h, const buf *x, const struct weight *w, const buf *bias,
                     const struct low_rank *ab, int accumulate, int N)
{
    (void)c, (void)out, (void)h, (void)x, (void)w, (void)bias, (void)ab, (void)accumulate, (void)N;
    return KERNEL_UNSUPPORTED;
}

static int no_open(struct kernel_ctx *c) { return c ? -1 : 0; }

static void test_oracle_itself(void)
{
    struct kernels wrong = kernels_ref64, part = kernels_ref;
    struct seen_faults s = { 0, 0, "" };
    struct lora_error err = { "", "", "", "", "" };
    int unsupported = 0, all = 0;
    test_begin("a wrong oracle is found out");
    wrong.matmul = scaled_matmul;
    wrong.attention = scaled_attention;
    must_reject(&kernels_ref, &wrong, "matmul", "is held against a wrong oracle");
    must_reject(&kernels_ref, &wrong, "attention", "is held against a wrong oracle");
    test_begin("what the oracle is asked");
    CHECK(oracle_run(&kernels_ref, &kernels_ref64, "matmull", count_faults, &s, &err) == -1);
    CHECK(!strcmp(err.where, "matmull"), "%s", err.where);
    CHECK(s.cases == 0, "%d", s.cases);
    part.embed = no_embed;
    CHECK(oracle_run(&part, &kernels_ref64, "embed", is_unsupported, &unsupported, &err) == 0);
    CHECK(unsupported > 10, "%d", unsupported);
    part.linear = no_linear;    /* what is made of products in its place is not read by it */
    unsupported = 0;
    CHECK(oracle_run(&part, &kernels_ref64, "linear", is_unsupported, &unsupported, &err) == 0);
    part.linear = NULL;
    CHECK(oracle_run(&part, &kernels_ref64, "linear", count_all, &all, &err) == 0);
    CHECK(unsupported > 10 && unsupported < all, "%d of %d", unsupported, all);     /* rows compared with each other read nothing new */
    part.open = no_open;
    CHECK(oracle_run(&part, &kernels_ref64, "rope", count_faults, &s, &err) == -1 && !strcmp(err.what, "cannot start the backend"), "%s", err.what);
    part.open = kernels_ref.open;
    s.cases = 0;
    part.rope = NULL;           /* an empty entry is the reference's */
    CHECK(oracle_run(&part, &kernels_ref64, "rope", count_faults, &s, &err) == 0);
    CHECK(s.cases > 10, "%d", s.cases);
}

/* ---- test.h ---- */

static void test_worst(void)
{
    struct worst w = { 0, 0, 0, 0, 0 };
    test_begin("the worst error: NaN and a zero bound are worse than any number");
    worst_add(&w, 0, 0, 1);
    CHECK(w.share == 0, "%g", w.share);
    worst_add(&w, 0.5, 1, 2);
    CHECK(w.share == 0.5 && w.index == 2, "%g", w.share);
    worst_add(&w, 0.25, 1, 3);
    CHECK(w.share == 0.5 && w.n == 3, "%g", w.share);
    worst_add(&w, 1e-30, 0, 4);
    CHECK(!(w.share <= 1) && w.index == 4, "%g", w.share);
    w.share = 0;
    worst_add(&w, NAN, 1, 5);
    CHECK(!(w.share <= 1), "%g", w.share);
    worst_add(&w, 0.5, 1, 6);
    CHECK(!(w.share <= 1) && w.n == 6, "a later number hides a NaN: %g", w.share);
}

int main(void)
{
    test_common_faults();
    test_own_faults();
    test_oracle_itself();
    test_worst();
    return test_end();
}
