/* test_differences.c - each backward operation of the double reference against central differences
 * of its forward operation. The loss is sum of out * dout for a random dout. */
#include "test.h"
#include "verify/oracle.c"

static const struct kernels *const K = &kernels_ref64;
static struct kernel_ctx one_thread = { .threads = 1 };

static buf *B(double *x) { return (buf *)x; }

/* What a loss is made of: buffers by number, and parameters. */
struct setting {
    double *x[8], *out, *dout;
    size_t n[8], outs;
    const struct layout *layout;
    struct segment segments[8];
    int ids[64], pos[64], N, I, O, HS, NH, NKV, window, accumulate;
    double scale;
};

static double *random_array(size_t n, const char *name)
{
    double *x = malloc((n + 1) * sizeof *x);
    uint64_t key = random_key(7, name);
    size_t i;
    if (!x) abort();
    for (i = 0; i < n; i++) x[i] = random_normal(key, i);
    return x;
}

static void setting_new(struct setting *s, size_t outs)
{
    memset(s, 0, sizeof *s);
    s->outs = outs;
    s->out = random_array(outs, "out");
    s->dout = random_array(outs, "dout");
}

static void setting_add(struct setting *s, int i, size_t n, const char *name)
{
    s->n[i] = n;
    s->x[i] = random_array(n, name);
}

static void setting_free(struct setting *s)
{
    int i;
    for (i = 0; i < 8; i++) free(s->x[i]);
    free(s->out);
    free(s->dout);
}

typedef void forward(struct setting *s);

static double loss_of(struct setting *s, forward *run)
{
    double loss = 0;
    size_t i;
    run(s);
    for (i = 0; i < s->outs; i++) loss += s->out[i] * s->dout[i];
    return loss;
}

/* Every element of input i: the difference over 2h is off by h^2 of the third derivative and by the
 * loss's rounding over h. With h = 1e-5 both are below 1e-9 of the largest gradient here. */
static void check_gradient(struct setting *s, forward *run, int i, const double *gradient, const char *label)
{
    const double h = 1e-5;
    struct worst w = { 0, 0, 0, 0, 0 };
    double largest = 0;
    size_t j;
    for (j = 0; j < s->n[i]; j++) largest = fmax(largest, fabs(gradient[j]));
    for (j = 0; j < s->n[i]; j++) {
        double x = s->x[i][j], up, down;
        s->x[i][j] = x + h;
        up = loss_of(s, run);
        s->x[i][j] = x - h;
        down = loss_of(s, run);
        s->x[i][j] = x;
        worst_add(&w, fabs((up - down) / (2 * h) - gradient[j]), 1e-8 * (largest + 1), j);
    }
    CHECK(largest > 1e-3, "%s: all gradients are zero", label);
    CHECK_WORST(w, label);
}

/* ---- products ---- */

static struct weight real_weight(const double *data, int rows, int cols)
{
    struct weight w = { TYPE_REAL, 0, 0, 0, 0, NULL, NULL };
    w.rows = rows;
    w.cols = cols;
    w.data = data;
    return w;
}

static void forward_matmul(struct setting *s)
{
    struct weight w = real_weight(s->x[1], s->O, s->I);
    K->matmul(&one_thread, B(s->out), B(s->x[0]), &w, B(s->x[2]), s->scale, 0, s->N);
}

static void test_matmul(void)
{
    struct setting s;
    struct weight w;
    double *dx, *dw, *db;
    test_begin("matmul, its input, weight and bias");
    setting_new(&s, 9 * 5);
    s.N = 9;
    s.O = 5;
    s.I = 7;
    s.scale = -0.6;
    setting_add(&s, 0, 9 * 7, "x");
    setting_add(&s, 1, 5 * 7, "w");
    setting_add(&s, 2, 5, "bias");
    dx = random_array(9 * 7, "poison");
    dw = calloc(5 * 7, sizeof *dw);
    db = calloc(5, sizeof *db);
    if (!dw || !db) abort();
    w = real_weight(s.x[1], 5, 7);
    K->matmul_dx(&one_thread, B(dx), B(s.dout), &w, s.scale, 0, 9);
    K->matmul_dw(&one_thread, B(dw), B(s.dout), B(s.x[0]), s.scale, 9, 5, 7);
    K->bias_backward(&one_thread, B(db), B(s.dout), 9, 5);
    check_gradient(&s, forward_matmul, 0, dx, "matmul_dx");
    check_gradient(&s, forward_matmul, 1, dw, "matmul_dw");
    check_gradient(&s, forward_matmul, 2, db, "bias_backward");
    setting_free(&s);
    free(dx);
    free(dw);
    free(db);
}

/* x[1] is W, x[2] A and x[3] B; h is kept aside. */
static void forward_linear(struct setting *s)
{
    struct weight w = real_weight(s->x[1], s->O, s->I), a = real_weight(s->x[2], 3, s->I), b = real_weight(s->x[3], s->O, 3);
    struct low_rank ab;
    ab.a = &a;
    ab.b = &b;
    ab.scale = s->scale;
    kernels_linear(K, &one_thread, B(s->out), B(s->x[4]), B(s->x[0]), &w, NULL, &ab, 0, s->N);
}

static void test_linear(void)
{
    struct setting s;
    struct weight w, a, b;
    struct low_rank ab;
    double *dx = random_array(9 * 7, "poison"), *gh = random_array(9 * 3, "poison"), *da = calloc(3 * 7, sizeof *da);
    double *db = calloc(5 * 3, sizeof *db);
    test_begin("an adapted linear, its input, A and B");
    if (!da || !db) abort();
    setting_new(&s, 9 * 5);
    s.N = 9;
    s.O = 5;
    s.I = 7;
    s.scale = -0.6;
    setting_add(&s, 0, 9 * 7, "x");
    setting_add(&s, 1, 5 * 7, "w");
    setting_add(&s, 2, 3 * 7, "A");
    setting_add(&s, 3, 5 * 3, "B");
    setting_add(&s, 4, 9 * 3, "h");
    w = real_weight(s.x[1], 5, 7);
    a = real_weight(s.x[2], 3, 7);
    b = real_weight(s.x[3], 5, 3);
    ab.a = &a;
    ab.b = &b;
    ab.scale = s.scale;
    forward_linear(&s);
    kernels_linear_dx(K, &one_thread, B(dx), B(gh), B(s.dout), &w, &ab, 0, 0, 9);
    K->matmul_dw(&one_thread, B(da), B(gh), B(s.x[0]), 1, 9, 3, 7);
    K->matmul_dw(&one_thread, B(db), B(s.dout), B(s.x[4]), 1, 9, 5, 3);
    check_gradient(&s, forward_linear, 0, dx, "linear_dx");
    check_gradient(&s, forward_linear, 2, da, "the gradient of A");
    check_gradient(&s, forward_linear, 3, db, "the gradient of B");
    setting_free(&s);
    free(dx);
    free(gh);
    free(da);
    free(db);
}

static void forward_embed(struct setting *s)
{
    struct weight w = real_weight(s->x[0], s->O, s->I);
    K->embed(&one_thread, B(s->out), &w, (const ints *)s->ids, s->N);
}

static void test_embed(void)
{
    struct setting s;
    double *dw = calloc(4 * 3, sizeof *dw);
    int n;
    test_begin("embedding");
    if (!dw) abort();
    setting_new(&s, 11 * 3);
    s.N = 11;
    s.O = 4;
    s.I = 3;
    for (n = 0; n < 11; n++) s.ids[n] = n * n % 4;
    setting_add(&s, 0, 4 * 3, "w");
    K->embed_backward(&one_thread, B(dw), B(s.dout), (const ints *)s.ids, 11, 3);
    check_gradient(&s, forward_embed, 0, dw, "embed_backward");
    setting_free(&s);
    free(dw);
}

/* ---- rows ---- */

static void forward_rmsnorm(struct setting *s)
{
    K->rmsnorm(&one_thread, B(s->out), B(s->x[0]), B(s->x[1]), s->N, s->I, 1e-2);
}

static void test_rmsnorm(void)
{
    struct setting s;
    double *dx = random_array(6 * 9, "poison"), *dw = calloc(9, sizeof *dw);
    test_begin("RMSNorm");
    if (!dw) abort();
    setting_new(&s, 6 * 9);
    s.N = 6;
    s.I = 9;
    setting_add(&s, 0, 6 * 9, "x");
    setting_add(&s, 1, 9, "w");
    K->rmsnorm_backward(&one_thread, B(dx), B(dw), B(s.dout), B(s.x[0]), B(s.x[1]), 6, 9, 1e-2, 0);
    check_gradient(&s, forward_rmsnorm, 0, dx, "rmsnorm_backward dx");
    check_gradient(&s, forward_rmsnorm, 1, dw, "rmsnorm_backward dw");
    setting_free(&s);
    free(dx);
    free(dw);
}

static void forward_rope(struct setting *s)
{
    memcpy(s->out, s->x[0], s->outs * sizeof *s->out);
    K->rope(&one_thread, B(s->out), B(s->x[1]), B(s->x[2]), (const ints *)s->pos, s->N, s->NH, s->HS, 0);
}

static void test_rope(void)
{
    struct setting s;
    double *dx;
    int n;
    test_begin("rotary positions");
    setting_new(&s, 5 * 3 * 6);
    s.N = 5;
    s.NH = 3;
    s.HS = 6;
    for (n = 0; n < 5; n++) s.pos[n] = n * 3 % 8;
    setting_add(&s, 0, 5 * 3 * 6, "x");
    setting_add(&s, 1, 8 * 3, "cos");
    setting_add(&s, 2, 8 * 3, "sin");
    dx = random_array(s.outs, "dout");
    K->rope(&one_thread, B(dx), B(s.x[1]), B(s.x[2]), (const ints *)s.pos, 5, 3, 6, 1);
    check_gradient(&s, forward_rope, 0, dx, "rope backward");
    setting_free(&s);
    free(dx);
}

static void forward_swiglu(struct setting *s)
{
    K->swiglu(&one_thread, B(s->out), B(s->x[0]), B(s->x[1]), s->outs);
}

static void test_swiglu(void)
{
    struct setting s;
    double *dgate = random_array(50, "poison"), *dup = random_array(50, "poison"), *out = random_array(50, "poison");
    test_begin("SwiGLU");
    setting_new(&s, 50);
    setting_add(&s, 0, 50, "gate");
    setting_add(&s, 1, 50, "up");
    K->swiglu_backward(&one_thread, B(dgate), B(dup), B(out), B(s.dout), B(s.x[0]), B(s.x[1]), 50);
    check_gradient(&s, forward_swiglu, 0, dgate, "swiglu_backward dgate");
    check_gradient(&s, forward_swiglu, 1, dup, "swiglu_backward dup");
    free(out);
    setting_free(&s);
    free(dgate);
    free(dup);
}

static void forward_dropout(struct setting *s)
{
    K->dropout(&one_thread, B(s->out), B(s->x[0]), (const ints *)s->ids, (const ints *)s->pos, s->N, s->I, 0.4, 99, 0);
}

static void test_dropout(void)
{
    struct setting s;
    double *dx = random_array(6 * 8, "poison");
    int n;
    test_begin("dropout: its own backward");
    setting_new(&s, 6 * 8);
    s.N = 6;
    s.I = 8;
    for (n = 0; n < 6; n++) s.pos[n] = n * 2;
    setting_add(&s, 0, 6 * 8, "x");
    K->dropout(&one_thread, B(dx), B(s.dout), (const ints *)s.ids, (const ints *)s.pos, 6, 8, 0.4, 99, 0);
    check_gradient(&s, forward_dropout, 0, dx, "dropout of dout");
    setting_free(&s);
    free(dx);
}

/* ---- loss ---- */

static void forward_loss(struct setting *s)
{
    int best[8];
    K->cross_entropy(&one_thread, B(s->out), (ints *)best, B(s->x[0]), (const ints *)s->pos, (const ints *)s->ids,
                     B(s->dout), s->N, s->O, 0, 1);
}

static void test_loss(void)
{
    struct setting s;
    int best[8], t;
    double *z;
    size_t i;
    test_begin("cross entropy, several targets in a row, weights");
    setting_new(&s, 7);                         /* seven targets, dout are their weights */
    s.N = 4;
    s.O = 9;
    s.pos[1] = 1;
    s.pos[2] = 4;
    s.pos[3] = 4;
    s.pos[4] = 7;
    for (t = 0; t < 7; t++) s.ids[t] = (t * 4 + 1) % 9;
    s.ids[2] = s.ids[1];
    setting_add(&s, 0, 4 * 9, "logits");
    z = random_array(4 * 9, "logits");
    K->cross_entropy(&one_thread, B(s.out), (ints *)best, B(z), (const ints *)s.pos, (const ints *)s.ids, B(s.dout), 4, 9,
                     1, 2.5);
    for (i = 0; i < 4 * 9; i++) z[i] /= 2.5;    /* grad_scale */
    check_gradient(&s, forward_loss, 0, z, "dlogits");
    setting_free(&s);
    free(z);
}

/* ---- attention ---- */

static void attention_of(struct setting *s, double *lse)
{
    K->attention(&one_thread, B(s->out), B(lse), B(s->x[0]), B(s->x[1]), B(s->x[2]), (const ints *)s->segments,
                 s->layout->S, s->NH, s->NKV, s->HS, s->scale, s->window);
}

static void forward_attention(struct setting *s) { attention_of(s, s->x[3]); }

/* Rows of no segment have no output and no gradient, in either. */
static void clear_idle_rows(struct setting *s)
{
    const struct layout *l = s->layout;
    size_t width = (size_t)s->NH * s->HS;
    int n, a, used;
    for (n = 0; n < l->rows; n++) {
        for (used = a = 0; a < l->S; a++)
            used |= n >= l->segment[a][0] && n < l->segment[a][0] + l->segment[a][1];
        if (!used) memset(s->dout + n * width, 0, width * sizeof *s->dout);
    }
}

static void test_attention(const struct layout *l, int window)
{
    struct setting s;
    double *dq, *dk, *dv, *delta;
    size_t rows = (size_t)l->rows * 4 * 3, keys = (size_t)l->keys * 2 * 3, i;
    int a;
    char name[160];
    snprintf(name, sizeof name, "attention: %s, window %d", l->name, window);
    test_begin(name);
    setting_new(&s, rows);
    s.layout = l;
    s.NH = 4;
    s.NKV = 2;
    s.HS = 3;
    s.scale = 0.8;
    s.window = window;
    for (a = 0; a < l->S; a++) {
        const int *x = l->segment[a];
        struct segment segment = { 0, 0, 0, 0, 0, 0, -1, 0 };
        segment.q_start = x[0];
        segment.q_len = x[1];
        segment.k_start = x[2];
        segment.k_len = x[3];
        segment.prefix = x[4];
        segment.pos = x[5];
        s.segments[a] = segment;
    }
    setting_add(&s, 0, rows, "q");
    setting_add(&s, 1, keys, "k");
    setting_add(&s, 2, keys, "v");
    setting_add(&s, 3, (size_t)l->rows * 4, "lse");
    clear_idle_rows(&s);
    dq = calloc(rows, sizeof *dq);
    dk = calloc(keys, sizeof *dk);      /* keys that nobody sees are not written: their gradient is zero */
    dv = calloc(keys, sizeof *dv);
    delta = malloc((size_t)l->rows * 4 * sizeof *delta);
    if (!dq || !dk || !dv || !delta) abort();
    for (i = 0; i < rows; i++) s.out[i] = 0;
    attention_of(&s, s.x[3]);
    K->attention_backward(&one_thread, B(dq), B(dk), B(dv), B(delta), B(s.dout), B(s.out), B(s.x[3]), B(s.x[0]),
                          B(s.x[1]), B(s.x[2]), (const ints *)s.segments, l->S, l->rows, 4, 2, 3, s.scale, window);
    check_gradient(&s, forward_attention, 0, dq, "attention_backward dq");
    check_gradient(&s, forward_attention, 1, dk, "attention_backward dk");
    check_gradient(&s, forward_attention, 2, dv, "attention_backward dv");
    setting_free(&s);
    free(dq);
    free(dk);
    free(dv);
    free(delta);
}

int main(void)
{
    size_t i;
    test_matmul();
    test_linear();
    test_embed();
    test_rmsnorm();
    test_rope();
    test_swiglu();
    test_dropout();
    test_loss();
    for (i = 0; i < COUNT(layouts); i++) {
        if (layouts[i].rows < 4 || layouts[i].rows > 30) continue;      /* one key has dq = 0; long ones take long */
        test_attention(&layouts[i], 0);
        test_attention(&layouts[i], 5);
    }
    return test_end();
}
