/* oracle_products.c - the cases of what reads weights and of products. Part of oracle.c. */

/* ---- weights ---- */

static int is_quantised(int type) { return type == TYPE_NF4 || type == TYPE_FP4 || type == TYPE_INT8; }

static void put16(unsigned char *p, uint16_t h) { memcpy(p, &h, 2); }

/* Where the blocks of GGUF's types hold their scale and, or -1, what is added: half precision both. */
static const struct { int type, scale, added; } halves[] = {
    { TYPE_Q8_0, 0, -1 },   { TYPE_Q4_0, 0, -1 }, { TYPE_Q4_1, 0, 2 }, { TYPE_Q5_0, 0, -1 }, { TYPE_Q5_1, 0, 2 },
    { TYPE_IQ4_NL, 0, -1 }, { TYPE_Q2_K, 80, 82 }, { TYPE_Q3_K, 108, -1 }, { TYPE_Q4_K, 0, 2 }, { TYPE_Q5_K, 0, 2 },
    { TYPE_Q6_K, 208, -1 }
};

/* One block of a GGUF type. EXACT: d = 1 and small integers. */
static void random_block(struct trial *t, unsigned char *p, int type, enum mode mode, size_t index)
{
    int bytes = weight_types[type].bytes, i;
    double d = mode == EXACT ? 1 : 0.01 + random_in(t, index * 256) * 0.02;
    for (i = 0; i < bytes; i++) {
        p[i] = (unsigned char)random_below(t, index * 256 + (size_t)i, 256);
        if (mode == EXACT && type == TYPE_Q8_0) p[i] = (unsigned char)(p[i] % 9 - 4);
    }
    for (i = 0; halves[i].type != type; i++) {}
    put16(p + halves[i].scale, f32_to_f16((float)d));
    if (halves[i].added >= 0) put16(p + halves[i].added, f32_to_f16((float)(mode == EXACT ? -8 : -7.3 * d)));
}

static float *floats(struct trial *t, size_t n, double from, double to, enum mode mode)
{
    float *x = arena_take(&t->o->arena, n, sizeof *x);
    size_t i;
    for (i = 0; x && i < n; i++)
        x[i] = (float)(mode == EXACT ? random_below(t, i, (int)(to - from) + 1) + (int)from : from + random_in(t, i) * (to - from));
    return x;
}

/* The bytes of an NF4, FP4 or INT8 weight of n elements, and its scales: blocks of all sizes, with and without
 * double quantisation. EXACT: all numbers are integers below 60. */
static unsigned char *add_quantised(struct trial *t, size_t n, enum mode mode)
{
    static const float whole[16] = { -8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7 };
    int eight = t->weight.type == TYPE_INT8, which = (int)(t->o->cases % 64);
    struct quantised *q = arena_take(&t->o->arena, 1, sizeof *q);
    size_t bytes = eight ? n : (n + 1) / 2, i;
    unsigned char *p = arena_take(&t->o->arena, bytes, 1), *codes;
    if (!q || !p) return NULL;
    memset(q, 0, sizeof *q);
    q->block = eight ? 0 : 32 << which % 8;
    q->scales = eight ? n / (size_t)t->weight.cols : block_count(n, q->block);
    for (i = 0; i < bytes; i++) p[i] = (unsigned char)(random_below(t, i, 256) % (eight && mode == EXACT ? 8 : 256));
    if (!eight) q->code = mode == EXACT ? whole : t->weight.type == TYPE_NF4 ? nf4_values : fp4_values;
    if (eight || which / 8 % 2) {
        q->absmax = mode != EXACT ? floats(t, q->scales, 0.01, 2, mode) : floats(t, q->scales, eight ? 127 : 1, eight ? 127 : 7, mode);
    } else {
        codes = arena_take(&t->o->arena, q->scales, 1);
        for (i = 0; codes && i < q->scales; i++) codes[i] = (unsigned char)random_below(t, i, 256);
        q->nested_block = which / 16 % 2 ? 4 : NESTED_BLOCK;
        q->codes = codes;
        q->map = floats(t, 256, -1, 1, mode);
        q->nested = floats(t, block_count(q->scales, q->nested_block), 0.01, mode == EXACT ? 3 : 1, mode);
        q->offset = mode == EXACT ? 4 : 1.01f;
    }
    t->weight_bytes = bytes;
    t->weight.q = q;
    return p;
}

static void fill_weight(struct trial *t, unsigned char *p, size_t n, enum mode mode)
{
    int type = t->weight.type, block = weight_types[type].block, bytes = weight_types[type].bytes;
    size_t i;
    for (i = 0; i < n / (size_t)block; i++, p += bytes) {
        float f = (float)draw(t, mode, i);
        if (type == TYPE_F32) memcpy(p, &f, 4);
        else if (type == TYPE_F16) put16(p, f32_to_f16(f));
        else if (type == TYPE_BF16) put16(p, f32_to_bf16(f));
        else random_block(t, p, type, mode, i);
    }
}

/* Gives the case a weight [rows, cols] that starts `skip` rows into its data (elements for
 * TYPE_REAL), and its numbers in t->dense. */
static void add_weight(struct trial *t, int type, int rows, int cols, int head_rows, int skip, enum mode mode)
{
    size_t n = ((size_t)rows + skip) * cols, i;
    float *row = arena_take(&t->o->arena, (size_t)cols, sizeof *row);
    unsigned char *bytes;
    int r;
    t->weight = (struct weight){ .type = type, .rows = rows, .cols = cols, .head_rows = head_rows, .offset = (size_t)skip * cols };
    t->dense = numbers(t, (size_t)rows * cols);
    if (left_out(t->o)) return;
    if (type == TYPE_REAL) {
        const double *x = add_operand(t, IN, n, mode);
        t->weight_operand = t->operands - 1;
        for (i = 0; t->dense && x && i < (size_t)rows * cols; i++) t->dense[i] = x[t->weight.offset + i];
        return;
    }
    if (is_quantised(type)) {
        bytes = add_quantised(t, n, mode);
    } else {
        if (type_bytes(&t->weight_bytes, type, n)) { t->o->arena.failed = 1; return; }
        bytes = arena_take(&t->o->arena, t->weight_bytes, 1);
    }
    t->weight.data = bytes;
    if (t->o->arena.failed || !bytes || !t->dense || !row) return;
    if (!is_quantised(type)) fill_weight(t, bytes, n, mode);
    for (r = 0; r < rows; r++) {
        weight_decode(&t->weight, r, 0, cols, row);
        for (i = 0; i < (size_t)cols; i++) t->dense[(size_t)r * cols + i] = row[i];
    }
}

static const int types[] = {
    TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_NF4, TYPE_FP4, TYPE_INT8, TYPE_Q8_0, TYPE_Q4_0, TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1,
    TYPE_IQ4_NL, TYPE_Q2_K, TYPE_Q3_K, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_REAL
};

/* GGUF's blocks do not begin in the middle of rows. */
static int fits(int type, int cols) { return is_quantised(type) || cols % weight_types[type].block == 0; }

/* ---- embedding ---- */

static int call_embed(struct call *x, const struct trial *t)
{
    return x->k->embed(x->c, x->b[0], &x->w, (ints *)x->b[1], t->N);
}

static void embed_bounds(struct trial *t)
{
    int n, i, C = t->C;
    for (n = 0; n < t->N; n++)
        for (i = 0; i < C; i++)
            check_oracle(t, t->operand[0].want[(size_t)n * C + i],
                         t->dense[(size_t)t->operand[1].start[n] * C + i], 0);
}

static void embed_cases(struct oracle *o)
{
    static const int shapes[][3] = { { 0, 4, 32 }, { 1, 1, 1 }, { 3, 2, 5 }, { 8, 5, 32 }, { 17, 31, 64 }, { 33, 70, 33 },
                                     { 9, 12, 576 }, { 5, 7, 288 },
                                     { 6, 11, 512 }, { 12, 9, 1000 }, { 300, 3, 256 }, { 5, 700, 256 }, { 20, 4, 4096 } };
    struct trial t;
    size_t i, k;
    for (i = 0; i < COUNT(shapes); i++) {
        for (k = 0; k < COUNT(types); k++) {
            int N = shapes[i][0], V = shapes[i][1], C = shapes[i][2], skip = (int)(i % 3);
            if (!fits(types[k], C)) continue;
            trial_begin(&t, o, "embed", call_embed, "N %d V %d C %d %s", N, V, C, weight_types[types[k]].name);
            t.N = N;
            t.V = V;
            t.C = C;
            add_operand(&t, OUT, (size_t)N * C, NORMAL);
            add_ints(&t, IN, (size_t)N, V);
            add_weight(&t, types[k], V, C, 0, skip, NORMAL);
            trial_end(&t, embed_bounds);
        }
    }
}

CALL(embed_backward, x->b[0], x->b[1], (ints *)x->b[2], t->N, t->C)

/* count additions: count * u * (|old| + sum |dout|) */
static void embed_backward_bounds(struct trial *t)
{
    struct operand *dw = t->operand;
    const double *dout = t->operand[1].start, *ids = t->operand[2].start;
    int v, n, i;
    for (v = 0; v < t->V; v++) {
        for (i = 0; i < t->C; i++) {
            size_t at = (size_t)v * t->C + i;
            double sum = fabs(dw->start[at]), count = 0, exact = dw->start[at];
            for (n = 0; n < t->N; n++) {
                if (ids[n] != v) continue;
                sum += fabs(dout[(size_t)n * t->C + i]);
                exact += dout[(size_t)n * t->C + i];
                count++;
            }
            check_oracle(t, dw->want[at], exact, sum);
            dw->bound[at] = count > 0 ? count * t->o->u * sum : UNTOUCHED;
        }
    }
}

static void embed_backward_cases(struct oracle *o)
{
    static const int shapes[][3] = { { 0, 4, 3 }, { 1, 1, 1 }, { 3, 2, 5 }, { 8, 5, 32 }, { 17, 31, 15 }, { 70, 3, 65 }, { 9, 12, 257 },
                                     { 3000, 7, 21 }, { 20, 900, 70 }, { 13, 5, 5001 } };
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(shapes); i++) {
        int N = shapes[i][0], V = shapes[i][1], C = shapes[i][2];
        trial_begin(&t, o, "embed_backward", call_embed_backward, "N %d V %d C %d", N, V, C);
        t.N = N;
        t.V = V;
        t.C = C;
        add_operand(&t, INOUT, (size_t)V * C, NORMAL);
        add_operand(&t, IN, (size_t)N * C, NORMAL);
        add_ints(&t, IN, (size_t)N, V);
        trial_end(&t, embed_backward_bounds);
    }
}

/* ---- products ---- */

/* The bound of a sum of K products a_i b_i to which `others` is added (a bias, what was there); docs/bounds.md derives it.
 * Random terms: (2 sqrt(K) + 2) u (|a| |b| + others). WILD: (K + 4) u (sum |a_i b_i| + others).
 * EXACT: every partial sum is an integer or a half below 2^23. */
struct dot_terms { double aa, bb, absolute, sum, rounding, rounding2; };

static void dot_add(struct dot_terms *d, double a, double b)
{
    d->aa += a * a;
    d->bb += b * b;
    d->absolute += fabs(a * b);
    d->sum += a * b;
}

/* What rounding the operands to bf16 can do to the sum: never more than all of the errors together; and where
 * terms have random signs, so that their errors are independent with mean 0, seven times the root of the sum
 * of their squares is passed with a chance below 2 exp(-49/2) = 5e-11 (Hoeffding 1963). */
static double rounding_bound(const struct dot_terms *d, enum mode mode)
{
    double most = 7 * sqrt(d->rounding2);
    return (mode == NORMAL || mode == SHORT) && most < d->rounding ? most : d->rounding;
}

static double dot_bound(const struct dot_terms *d, int K, double scale, double others, enum mode mode, double u)
{
    double rounding = fabs(scale) * rounding_bound(d, mode);
    if (rounding > 0) u *= 1 + 3.0 / 256;       /* sums are of rounded numbers, which may be larger */
    if (mode == EXACT) return rounding;
    if (mode == WILD) return (K + 4) * u * (fabs(scale) * d->absolute + others) + rounding;
    return (2 * sqrt(K) + 2) * u * (fabs(scale) * sqrt(d->aa * d->bb) + others) + rounding;
}

/* Are the operands of the frozen weight's product rounded? */
static int in_bf16(const struct trial *t)
{
    return t->o->compute == COMPUTE_BF16 && t->dense && t->weight.type != TYPE_REAL && t->N >= FEW_ROWS;
}

/* 2^-8 of a number, or 0 for one that bf16 has */
static double off_in_bf16(double x) { return bf16_to_f32(f32_to_bf16((float)x)) == x ? 0 : 1.0 / 256; }

/* A term of a product with the case's weight. */
static void dot_add_weight(const struct trial *t, struct dot_terms *d, double a, double b)
{
    double off_a, off_b, off;
    dot_add(d, a, b);
    if (!in_bf16(t)) return;
    off_a = off_in_bf16(a);
    off_b = off_in_bf16(b);
    off = fabs(a * b) * (off_a + off_b + off_a * off_b);
    d->rounding += off;
    d->rounding2 += off * off;
}

/* A product's variant, in t->flag: its mode, and these. */
enum { MODE = 3, BIAS = 4, ADD = 8 };

/* out[n,o], n rows of `out` columns: K terms left(n,k) right(k,o), for all three products. */
static void product_bounds(struct trial *t, int N, int O, int K, size_t left_n, size_t left_k, size_t right_k,
                           size_t right_o, const double *left, const double *right, const double *bias)
{
    struct operand *out = t->operand;
    int n, o, k;
    for (n = 0; n < N; n++) {
        for (o = 0; o < O; o++) {
            struct dot_terms d = { 0 };
            size_t at = (size_t)n * O + o;
            double old = out->use == INOUT ? out->start[at] : 0, b = bias ? bias[o] : 0;
            for (k = 0; k < K; k++) dot_add_weight(t, &d, left[n * left_n + k * left_k], right[k * right_k + o * right_o]);
            out->bound[at] = dot_bound(&d, K, t->scale, fabs(old) + fabs(b), t->flag & MODE, t->o->u);
            check_oracle(t, out->want[at], t->scale * d.sum + b + old,
                         fabs(t->scale) * d.absolute + fabs(old) + fabs(b) + 1);
        }
    }
}

static int call_matmul(struct call *x, const struct trial *t)
{
    return x->k->matmul(x->c, x->b[0], x->b[1], &x->w, x->b[2], t->scale, !!(t->flag & ADD), t->N);
}

static void matmul_bounds(struct trial *t)
{
    int O = t->weight.rows, I = t->weight.cols;
    product_bounds(t, t->N, O, I, (size_t)I, 1, 1, (size_t)I, t->operand[1].start, t->dense,
                   t->operand[2].absent ? NULL : t->operand[2].start);
}

static int call_matmul_dx(struct call *x, const struct trial *t)
{
    return x->k->matmul_dx(x->c, x->b[0], x->b[1], &x->w, t->scale, !!(t->flag & ADD), t->N);
}

static void matmul_dx_bounds(struct trial *t)
{
    int O = t->weight.rows, I = t->weight.cols;
    product_bounds(t, t->N, I, O, (size_t)O, 1, (size_t)I, 1, t->operand[1].start, t->dense, NULL);
}

/* N, O, I: around vectors and tiles, and across the blocks of both dimensions; the last ones across those of packed operands too. */
static const int product_shapes[][3] = {
    { 0, 4, 32 }, { 1, 1, 1 }, { 1, 7, 32 }, { 2, 3, 5 }, { 3, 2, 32 }, { 5, 17, 31 }, { 7, 16, 64 }, { 8, 8, 8 }, { 8, 33, 96 },
    { 9, 15, 17 }, { 1, 300, 288 }, { 15, 31, 33 }, { 16, 64, 32 }, { 17, 65, 160 }, { 31, 5, 7 }, { 33, 100, 64 }, { 6, 1, 576 },
    { 65, 48, 96 }, { 13, 16, 1024 }, { 130, 24, 40 }, { 10, 600, 32 }, { 12, 20, 1030 }, { 70, 130, 320 }, { 4, 64, 1536 }, { 19, 40, 512 }, { 5, 9, 256 }, { 50, 16, 520 },
    { 9, 50, 2100 }, { 10, 2100, 50 }, { 770, 49, 17 }, { 14, 1024, 330 }, { 14, 330, 1024 },
    { 9, 3, 2560 }, { 136, 5, 256 }, { 3, 5, 2304 }, { 8, 808, 256 }, { 2, 820, 256 }
};

/* More products than these are for few types, for time. */
enum { MUCH_WORK = 1700000 };

/* One case of matmul (backward 0) or matmul_dx (1). */
static void try_product(struct oracle *o, int backward, const int *shape, int type, int head_rows, int skip,
                        enum mode mode, int bias, double scale, int accumulate)
{
    struct trial t;
    int N = shape[0], O = shape[1], I = shape[2];
    static const char *const modes[] = { "", " exact", " wild", " of bf16's numbers" };
    if (!fits(type, I)) return;
    trial_begin(&t, o, backward ? "matmul_dx" : "matmul", backward ? call_matmul_dx : call_matmul,
                "N %d O %d I %d %s%s%s%s%s scale %g", N, O, I, weight_types[type].name, head_rows ? " in heads" : "",
                modes[mode], bias ? " bias" : "", accumulate ? " +=" : "", scale);
    t.N = N;
    t.scale = scale;
    t.flag = (int)mode | (bias ? BIAS : 0) | (accumulate ? ADD : 0);
    add_operand(&t, accumulate ? INOUT : OUT, (size_t)N * (backward ? I : O), mode);
    add_operand(&t, IN, (size_t)N * (backward ? O : I), mode);
    if (bias) add_operand(&t, IN, (size_t)O, mode);
    else add_absent(&t);
    add_weight(&t, type, O, I, head_rows, skip, mode);
    trial_end(&t, backward ? matmul_dx_bounds : matmul_bounds);
}

/* A row's results are the same, to the bit, computed among N rows or among fewer. Operand i has N rows of
 * widths[i] numbers, or (0) is no matter of rows. */
static void compare_rows(struct trial *t, const int *widths)
{
    struct oracle *o = t->o;
    struct oracle_result r;
    double *all[MAX_OPERANDS], *some[MAX_OPERANDS], returned;
    int from, rows, i, rc, N = t->N;
    describe(&r, t);
    results_new(t, all);
    results_new(t, some);
    if (left_out(o) || o->cases_alone) return;
    rc = o->arena.failed ? -1 : run_on(t, &o->test, 1, 1, all, &returned);
    if (rc < 0) o->no_memory = 1;
    if (rc) return;             /* a type that is not supported is reported by the cases before */
    for (from = 0, rows = FEW_ROWS; from + rows <= N && !r.fault; from += 3, rows += 2) {
        t->N = rows;
        for (i = 0; i < t->operands; i++) {
            if (!widths[i]) continue;
            t->operand[i].n = (size_t)rows * widths[i];
            t->operand[i].start += (size_t)(from ? 3 : 0) * widths[i];
        }
        rc = run_on(t, &o->test, 2, 1, some, &returned);
        for (i = 0; i < t->operands; i++) {
            if (!widths[i]) continue;
            if (rc || memcmp(some[i], all[i] + (size_t)from * widths[i], t->operand[i].n * sizeof **some))
                r.fault = "a row's result depends on the other rows";
            r.compared += (int)t->operand[i].n;
        }
    }
    trial_report(t, &r);
}

static void try_rows(struct oracle *o, int backward, int type, int N, int O, int I)
{
    struct trial t;
    int out = backward ? I : O, in = backward ? O : I, widths[MAX_OPERANDS] = { 0 };
    trial_begin(&t, o, backward ? "matmul_dx" : "matmul", backward ? call_matmul_dx : call_matmul,
                "rows of N %d O %d I %d %s alone", N, O, I, weight_types[type].name);
    t.N = N;
    t.scale = 1;
    add_operand(&t, OUT, (size_t)N * (widths[0] = out), NORMAL);
    add_operand(&t, IN, (size_t)N * (widths[1] = in), NORMAL);
    add_absent(&t);
    add_weight(&t, type, O, I, 0, 0, NORMAL);
    compare_rows(&t, widths);
}

static void product_cases(struct oracle *o, int backward)
{
    size_t i, k;
    for (i = 0; i < COUNT(product_shapes); i++) {
        const int *shape = product_shapes[i];
        for (k = 0; k < COUNT(types); k++) {
            int type = types[k], odd = (int)(i + k) & 1, d = type == TYPE_REAL || shape[1] % 8 ? 0 : 8;
            int bias = !backward && ((i + k) / 2 & 1);
            if (shape[0] * shape[1] * shape[2] > MUCH_WORK && type != TYPE_F32 && type != TYPE_NF4) continue;
            try_product(o, backward, shape, type, 0, odd, NORMAL, bias, odd ? 1 : -0.37, (int)(i + k) / 3 & 1);
            try_product(o, backward, shape, type, d, !odd, EXACT, bias, odd ? 1 : -0.5, (int)(i + k) / 2 & 1);
            if (type == TYPE_F32 || type == TYPE_REAL)
                try_product(o, backward, shape, type, d, 0, WILD, bias, 1, odd);
            if (o->compute == COMPUTE_BF16 && (type == TYPE_F32 || type == TYPE_BF16))
                try_product(o, backward, shape, type, d, odd, SHORT, bias, 1.7, !odd);
        }
    }
    for (k = 0; k < COUNT(types); k++) {
        int wide = !fits(types[k], 96);         /* blocks of 256 */
        try_rows(o, backward, types[k], 37, 45, wide ? 256 : 96);
        if (!wide) try_rows(o, backward, types[k], 75, 130, 320);
    }
}

static void matmul_cases(struct oracle *o) { product_cases(o, 0); }

static void matmul_dx_cases(struct oracle *o) { product_cases(o, 1); }

/* ---- an adapted linear ----
 * Operands of both directions: out or dx; h or gh; x or dout; bias; A; B. t->flag has these besides. */
enum { NO_A = 16, H_ALONE = 32, ADD_H = 64, BACKWARD = 128 };

static struct weight real_operand(const struct call *x, int i, int rows, int cols)
{
    return (struct weight){ .type = TYPE_REAL, .rows = rows, .cols = cols, .data = x->b[i] };
}

/* Where the table has the entry but cannot read w, its products are tried in its place: as not read, all the same. */
static int call_linear(struct call *x, const struct trial *t)
{
    struct weight a = real_operand(x, 4, t->rank, t->weight.cols), b = real_operand(x, 5, t->weight.rows, t->rank);
    const struct kernels *k = x->k;
    const struct low_rank ab = { .a = t->flag & NO_A ? NULL : &a, .b = &b, .scale = t->scale };
    buf *out = t->flag & H_ALONE ? NULL : x->b[0];
    int add = !!(t->flag & ADD), add_h = !!(t->flag & ADD_H);
    if (t->flag & BACKWARD) {
        if (k->linear_dx && !(x->unread = k->linear_dx(x->c, out, x->b[1], x->b[2], &x->w, &ab, add_h, add, t->N))) return 0;
        return kernels_linear_dx(k, x->c, out, x->b[1], x->b[2], &x->w, &ab, add_h, add, t->N);
    }
    if (k->linear && !(x->unread = k->linear(x->c, out, x->b[1], x->b[2], &x->w, x->b[3], &ab, add, t->N))) return 0;
    return kernels_linear(k, x->c, out, x->b[1], x->b[2], &x->w, x->b[3], &ab, add, t->N);
}

/* h[n,j] (or gh): its bound, and the oracle checked. */
static void hidden_bounds(struct trial *t, int K, const double *factor, size_t factor_k, size_t factor_j)
{
    struct operand *h = &t->operand[1], *x = &t->operand[2];
    int n, j, k, r = t->rank;
    for (n = 0; n < t->N; n++)
        for (j = 0; j < r; j++) {
            struct dot_terms d = { 0 };
            size_t at = (size_t)n * r + j;
            double old = h->use == INOUT ? h->start[at] : 0;
            for (k = 0; k < K; k++) dot_add(&d, x->start[(size_t)n * K + k], factor[k * factor_k + j * factor_j]);
            h->bound[at] = dot_bound(&d, K, t->scale, fabs(old), t->flag & MODE, t->o->u);
            check_oracle(t, h->want[at], t->scale * d.sum + old, fabs(t->scale) * d.absolute + fabs(old) + 1);
        }
}

/* Both directions: h from x and one factor; out from x and W, and from h and the other factor: a dot product of
 * all those terms, and what the errors of h, at their bounds, become in it. */
static void linear_bounds(struct trial *t)
{
    struct operand *out = &t->operand[0], *h = &t->operand[1];
    int backward = t->flag & BACKWARD, O = t->weight.rows, I = t->weight.cols, r = t->rank, n, o, k;
    int in = backward ? O : I, wide = backward ? I : O;
    const double *x = t->operand[2].start, *bias = t->operand[3].absent ? NULL : t->operand[3].start;
    const double *first = t->operand[backward ? 5 : 4].start, *second = t->operand[backward ? 4 : 5].start;
    int branch = !backward || !(t->flag & NO_A);        /* backward without A: gh does not reach dx */
    if (h->use != IN) hidden_bounds(t, in, first, backward ? (size_t)r : 1, backward ? 1 : (size_t)I);
    for (n = 0; !(t->flag & H_ALONE) && n < t->N; n++)
        for (o = 0; o < wide; o++) {
            struct dot_terms d = { 0 };
            size_t at = (size_t)n * wide + o;
            double old = out->use == INOUT ? out->start[at] : 0, b = bias ? bias[o] : 0, passed_on = 0;
            for (k = 0; k < in; k++)
                dot_add_weight(t, &d, x[(size_t)n * in + k], t->dense[backward ? (size_t)k * I + o : (size_t)o * I + k]);
            for (k = 0; branch && k < r; k++) {
                double f = second[backward ? (size_t)k * I + o : (size_t)o * r + k];
                dot_add(&d, h->want[(size_t)n * r + k], f);
                if (h->use != IN) passed_on += h->bound[(size_t)n * r + k] * fabs(f);
            }
            out->bound[at] = dot_bound(&d, in + r, 1, fabs(old) + fabs(b), t->flag & MODE, t->o->u) + passed_on;
            check_oracle(t, out->want[at], d.sum + b + old, d.absolute + fabs(old) + fabs(b) + 1);
        }
}

static void linear_begin(struct trial *t, struct oracle *o, const int *shape, int r, int type, enum mode mode, int flag)
{
    int backward = flag & BACKWARD, N = shape[0], O = shape[1], I = shape[2], d = type == TYPE_REAL || O % 16 ? 0 : 16;
    trial_begin(t, o, backward ? "linear_dx" : "linear", call_linear, "N %d O %d I %d r %d %s%s mode %d%s%s%s%s", N, O, I, r,
                weight_types[type].name, d ? " in heads" : "", mode, flag & ADD ? " +=" : "", flag & NO_A ? " without A" : "",
                flag & H_ALONE ? " h alone" : "", flag & ADD_H ? " h +=" : "");
    t->N = N;
    t->rank = r;
    t->scale = mode == EXACT ? -0.5 : 0.8;
    t->flag = flag | (int)mode;
    if (flag & H_ALONE) add_absent(t);
    else add_operand(t, flag & ADD ? INOUT : OUT, (size_t)N * (backward ? I : O), mode);
    add_operand(t, !backward && flag & NO_A ? IN : flag & ADD_H ? INOUT : OUT, (size_t)N * r, mode);
    add_operand(t, IN, (size_t)N * (backward ? O : I), mode);
    if (flag & BIAS) add_operand(t, IN, (size_t)O, mode);
    else add_absent(t);
    add_operand(t, IN, (size_t)r * I, mode);
    add_operand(t, IN, (size_t)O * r, mode);
    add_weight(t, type, O, I, d, O % 2, mode);
}

/* h alone has the bits that it has beside out. */
static void compare_alone(struct trial *t)
{
    struct oracle_result r;
    double *both[MAX_OPERANDS], *alone[MAX_OPERANDS], returned;
    describe(&r, t);
    if (left_out(t->o) || t->o->cases_alone) return;
    results_new(t, both);
    results_new(t, alone);
    if (t->o->arena.failed || run_on(t, &t->o->test, 1, 1, both, &returned)) return;    /* said by others */
    t->flag |= H_ALONE;
    if (run_on(t, &t->o->test, 2, 1, alone, &returned) || memcmp(both[1], alone[1], t->operand[1].n * sizeof **both))
        r.fault = "h alone has other bits than beside out";
    r.compared = (int)t->operand[1].n;
    trial_report(t, &r);
}

static void linears(struct oracle *o, int backward)
{
    static const int ranks[] = { 1, 3, 8, 16, 64, 200 };
    static const int rows_shapes[][3] = { { 37, 45, 96 }, { 75, 130, 320 }, { 40, 33, 17 } };
    /* of the blocks of terms that are packed at a time the last has an adapter's alone, of rank 520: 1608 terms
     * are 6 runs of 288 or 3 of 544, and a block has 1440 or 1088 of them */
    static const int only_low_rank[][3] = { { 13, 20, 1088 }, { 13, 1088, 20 } };
    struct trial t;
    size_t i, k, v;
    for (i = 0; i < COUNT(product_shapes); i++) {
        for (k = 0; k < COUNT(types); k++) {
            const int *shape = product_shapes[i];
            int r = ranks[(i + k) % COUNT(ranks)], real = types[k] == TYPE_REAL || types[k] == TYPE_F32;
            int flag = backward | ((i + k / 2) & 1 ? ADD : 0), way = (int)(i + k / 3) % 4;
            enum mode mode = (enum mode)((i + k / 6) % (real ? 3 : 2));
            if (way == 1) flag |= NO_A;
            if (way == 2) flag |= H_ALONE;
            if (backward && (i + k) / 2 % 2) flag |= ADD_H;
            if (!backward && (i + k) % 2) flag |= BIAS;
            if (!fits(types[k], shape[2]) || (!real && (i + k) % 3)) continue;      /* time */
            if (shape[0] * shape[1] * shape[2] > MUCH_WORK && types[k] != TYPE_F32) continue;
            linear_begin(&t, o, shape, r, types[k], mode, flag);
            trial_end(&t, linear_bounds);
        }
    }
    linear_begin(&t, o, only_low_rank[!!backward], 520, TYPE_F32, NORMAL, backward);
    trial_end(&t, linear_bounds);
    for (i = 0; i < COUNT(rows_shapes); i++) {
        for (k = 0; k < COUNT(ranks); k++) {
            const int *shape = rows_shapes[i], out = backward ? shape[1] : shape[2];
            int widths[MAX_OPERANDS] = { 0 };
            widths[0] = shape[1] + shape[2] - out;
            widths[1] = ranks[k];
            widths[2] = out;
            linear_begin(&t, o, shape, ranks[k], k % 2 && i < 2 ? TYPE_Q8_0 : TYPE_F32, NORMAL, backward);
            compare_rows(&t, widths);
            for (v = 0; v < 2; v++) {
                linear_begin(&t, o, product_shapes[3 * k + 8 * v], ranks[k], TYPE_F32, NORMAL, backward | (backward && i == 1 ? NO_A : 0));
                compare_alone(&t);
            }
        }
    }
}

static void linear_cases(struct oracle *o) { linears(o, 0); }

static void linear_dx_cases(struct oracle *o) { linears(o, BACKWARD); }

CALL(matmul_dw, x->b[0], x->b[1], x->b[2], t->scale, t->N, t->M, t->C)

static void matmul_dw_bounds(struct trial *t)
{
    int O = t->M, I = t->C;
    product_bounds(t, O, I, t->N, 1, (size_t)O, (size_t)I, 1, t->operand[1].start, t->operand[2].start, NULL);
}

static void matmul_dw_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    int mode;
    for (i = 0; i < COUNT(product_shapes); i++) {
        for (mode = NORMAL; mode <= WILD; mode++) {
            int N = product_shapes[i][2], O = product_shapes[i][1], I = product_shapes[i][0];  /* N the long one */
            if (i & 1) { N = product_shapes[i][0]; I = product_shapes[i][2]; }
            trial_begin(&t, o, "matmul_dw", call_matmul_dw, "N %d O %d I %d mode %d", N, O, I, mode);
            t.N = N;
            t.M = O;
            t.C = I;
            t.scale = mode == NORMAL ? 1.7 : mode == EXACT ? 0.5 : 1;
            t.flag = mode;
            add_operand(&t, INOUT, (size_t)O * I, mode);
            add_operand(&t, IN, (size_t)N * O, mode);
            add_operand(&t, IN, (size_t)N * I, mode);
            trial_end(&t, matmul_dw_bounds);
        }
    }
}

CALL(bias_backward, x->b[0], x->b[1], t->N, t->C)

/* A dot product with ones: partial sums are sqrt(k) terms large, so the error is (2 sqrt(N) + 2) u |dout|. */
static void bias_backward_bounds(struct trial *t)
{
    struct operand *db = t->operand;
    int i, n;
    for (i = 0; i < t->C; i++) {
        const double *column = t->operand[1].start + i;
        double length = norm(column, t->N, (size_t)t->C), sum = db->start[i];
        for (n = 0; n < t->N; n++) sum += column[(size_t)n * t->C];
        db->bound[i] = (2 * sqrt(t->N) + 2) * t->o->u * (fabs(db->start[i]) + length);
        check_oracle(t, db->want[i], sum, fabs(db->start[i]) + t->N * length);
    }
}

static void bias_backward_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(row_shapes); i++) {
        int N = row_shapes[i].M, C = row_shapes[i].C;
        trial_begin(&t, o, "bias_backward", call_bias_backward, "N %d O %d", N, C);
        t.N = N;
        t.C = C;
        add_operand(&t, INOUT, (size_t)C, NORMAL);
        add_operand(&t, IN, (size_t)N * C, NORMAL);
        trial_end(&t, bias_backward_bounds);
    }
}
