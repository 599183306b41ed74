/* oracle_cases.c - the cases of each operation, in the order of kernels.h. A case is: operands
 * (inputs drawn, outputs poisoned), a call, and bounds that follow from the operation's arithmetic.
 * Part of oracle.c. */

#define COUNT(array) (sizeof (array) / sizeof *(array))

static const int flat_sizes[] = { 0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100, 257, 1000, 4099 };

/* Bounds of operand i that are `factor` u times its magnitude: one rounded operation or a few. */
static void bound_relative(struct trial *t, int i, double factor)
{
    struct operand *a = &t->operand[i];
    size_t j;
    for (j = 0; j < a->n; j++) a->bound[j] = factor * t->o->u * fabs(a->want[j]);
}

/* The smallest normal float: what is below may be lost, in a subnormal's rounding or to 0. */
#define TINY 1.2e-38

/* ---- moving ---- */

static int call_zero(struct call *x, const struct trial *t)
{
    x->k->zero(x->c, x->b[0], t->n);
    return 0;
}

static void zero_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        trial_begin(&t, o, "zero", call_zero, "n %d", flat_sizes[i]);
        t.n = (size_t)flat_sizes[i];
        add_operand(&t, OUT, t.n, NORMAL);
        trial_end(&t, NULL);
    }
}

static int call_copy(struct call *x, const struct trial *t)
{
    x->k->copy(x->c, x->b[0], x->b[1], t->n);
    return 0;
}

static void copy_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        trial_begin(&t, o, "copy", call_copy, "n %d", flat_sizes[i]);
        t.n = (size_t)flat_sizes[i];
        add_operand(&t, OUT, t.n, NORMAL);
        add_operand(&t, IN, t.n, WILD);
        trial_end(&t, NULL);
    }
}

static int call_gather(struct call *x, const struct trial *t)
{
    x->k->gather(x->c, x->b[0], x->b[1], (ints *)x->b[2], t->M, t->C);
    return 0;
}

static int call_scatter_add(struct call *x, const struct trial *t)
{
    x->k->scatter_add(x->c, x->b[0], x->b[1], (ints *)x->b[2], t->M, t->C);
    return 0;
}

static const struct { int M, C, rows; } row_shapes[] = {
    { 0, 3, 2 }, { 1, 1, 1 }, { 2, 3, 5 }, { 7, 8, 9 }, { 8, 17, 8 }, { 15, 33, 31 }, { 65, 64, 70 }, { 33, 257, 40 }
};

static void gather_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(row_shapes); i++) {
        int M = row_shapes[i].M, C = row_shapes[i].C, rows = row_shapes[i].rows;
        trial_begin(&t, o, "gather", call_gather, "M %d C %d of %d rows", M, C, rows);
        t.M = M;
        t.C = C;
        add_operand(&t, OUT, (size_t)M * C, NORMAL);
        add_operand(&t, IN, (size_t)rows * C, NORMAL);
        add_ints(&t, IN, (size_t)M, rows);
        trial_end(&t, NULL);
    }
}

/* Rows that are not named must stay, one that is gets one addition. */
static void scatter_add_bounds(struct trial *t)
{
    struct operand *out = t->operand;
    const double *rows = t->operand[2].start;
    size_t j;
    int m;
    for (j = 0; j < out->n; j++) out->bound[j] = UNTOUCHED;
    for (m = 0; m < t->M; m++)
        for (j = (size_t)rows[m] * t->C; j < ((size_t)rows[m] + 1) * t->C; j++)
            out->bound[j] = t->o->u * fabs(out->want[j]);
}

static void scatter_add_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    int m;
    for (i = 0; i < COUNT(row_shapes); i++) {
        int M = row_shapes[i].M, C = row_shapes[i].C, rows = row_shapes[i].rows;
        double *index;
        trial_begin(&t, o, "scatter_add", call_scatter_add, "M %d C %d of %d rows", M, C, rows);
        t.M = M;
        t.C = C;
        add_operand(&t, INOUT, (size_t)rows * C, NORMAL);
        add_operand(&t, IN, (size_t)M * C, NORMAL);
        index = add_ints(&t, IN, (size_t)M, rows);
        for (m = 0; index && m < M; m++) index[m] = (m * 7 + 3) % rows;    /* no row twice: 7 divides no `rows` */
        if (index && rows % 7 == 0) for (m = 0; m < M; m++) index[m] = rows - 1 - m;
        trial_end(&t, scatter_add_bounds);
    }
}

static int call_add(struct call *x, const struct trial *t)
{
    x->k->add(x->c, x->b[0], x->b[1], t->n);
    return 0;
}

static void one_operation(struct trial *t) { bound_relative(t, 0, 1); }

static void add_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        trial_begin(&t, o, "add", call_add, "n %d", flat_sizes[i]);
        t.n = (size_t)flat_sizes[i];
        add_operand(&t, INOUT, t.n, NORMAL);
        add_operand(&t, IN, t.n, WILD);
        trial_end(&t, one_operation);
    }
}

/* ---- weights ---- */

static void put16(unsigned char *p, uint16_t h) { memcpy(p, &h, 2); }

/* One block of a quantised type. EXACT: d = 1 and small integers. */
static void random_block(struct trial *t, unsigned char *p, int type, enum mode mode, size_t index)
{
    int bytes = weight_types[type].bytes, head = type == TYPE_Q4_1 ? 4 : 2, i;
    double d = mode == EXACT ? 1 : 0.01 + random_in(t, index * 64) * 0.02;
    put16(p, f32_to_f16((float)d));
    if (type == TYPE_Q4_1) put16(p + 2, f32_to_f16((float)(mode == EXACT ? -8 : -7.3 * d)));
    for (i = head; i < bytes; i++) {
        p[i] = (unsigned char)random_below(t, index * 64 + (size_t)i, 256);
        if (mode == EXACT && type == TYPE_Q8_0) p[i] = (unsigned char)(p[i] % 9 - 4);
    }
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
    struct weight w = { 0, 0, 0, 0, 0, NULL };
    float *row = arena_take(&t->o->arena, (size_t)cols, sizeof *row);
    unsigned char *bytes;
    int r;
    w.type = type;
    w.rows = rows;
    w.cols = cols;
    w.head_rows = head_rows;
    w.offset = (size_t)skip * cols;
    t->weight = w;
    t->dense = numbers(t, (size_t)rows * cols);
    if (type == TYPE_REAL) {
        const double *x = add_operand(t, IN, n, mode);
        t->weight_operand = t->operands - 1;
        for (i = 0; t->dense && x && i < (size_t)rows * cols; i++) t->dense[i] = x[w.offset + i];
        return;
    }
    if (type_bytes(&t->weight_bytes, type, n)) { t->o->arena.failed = 1; return; }
    bytes = arena_take(&t->o->arena, t->weight_bytes, 1);
    t->weight.data = bytes;
    if (!bytes || !t->dense || !row) return;
    fill_weight(t, bytes, n, mode);
    for (r = 0; r < rows; r++) {
        weight_decode(&t->weight, r, 0, cols, row);
        for (i = 0; i < (size_t)cols; i++) t->dense[(size_t)r * cols + i] = row[i];
    }
}

static const int types[] = { TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_Q8_0, TYPE_Q4_0, TYPE_Q4_1, TYPE_REAL };

/* Blocks do not begin in the middle of rows. */
static int fits(int type, int cols) { return cols % weight_types[type].block == 0; }

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
                                     { 9, 12, 576 }, { 5, 7, 288 } };
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

static int call_embed_backward(struct call *x, const struct trial *t)
{
    x->k->embed_backward(x->c, x->b[0], x->b[1], (ints *)x->b[2], t->N, t->C);
    return 0;
}

/* count additions: count * u * (|old| + sum |dout|) */
static void embed_backward_bounds(struct trial *t)
{
    struct operand *dw = t->operand;
    const double *dout = t->operand[1].start, *ids = t->operand[2].start;
    int v, n, i;
    for (v = 0; v < t->V; v++) {
        for (i = 0; i < t->C; i++) {
            size_t at = (size_t)v * t->C + i;
            double sum = fabs(dw->start[at]), count = 0;
            for (n = 0; n < t->N; n++) {
                if (ids[n] != v) continue;
                sum += fabs(dout[(size_t)n * t->C + i]);
                count++;
            }
            dw->bound[at] = count > 0 ? count * t->o->u * sum : UNTOUCHED;
        }
    }
}

static void embed_backward_cases(struct oracle *o)
{
    static const int shapes[][3] = { { 0, 4, 3 }, { 1, 1, 1 }, { 3, 2, 5 }, { 8, 5, 32 }, { 17, 31, 15 }, { 70, 3, 65 }, { 9, 12, 257 } };
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

/* The bound of a sum of K products a_i b_i to which `others` is added (a bias, what was there).
 * Random terms: (2 sqrt(K) + 2) u (|a| |b| + others). WILD: (K + 4) u (sum |a_i b_i| + others).
 * EXACT: every partial sum is an integer or a half below 2^23. */
struct dot_terms { double aa, bb, absolute, sum; };

static void dot_add(struct dot_terms *d, double a, double b)
{
    d->aa += a * a;
    d->bb += b * b;
    d->absolute += fabs(a * b);
    d->sum += a * b;
}

static double dot_bound(const struct dot_terms *d, int K, double scale, double others, enum mode mode, double u)
{
    if (mode == EXACT) return 0;
    if (mode == WILD) return (K + 4) * u * (fabs(scale) * d->absolute + others);
    return (2 * sqrt(K) + 2) * u * (fabs(scale) * sqrt(d->aa * d->bb) + others);
}

/* A product's variant, as t->flag keeps it. */
static int pack_flag(enum mode mode, int bias, int accumulate) { return (int)mode + 4 * bias + 8 * accumulate; }

/* out[n,o], n rows of `out` columns: K terms left(n,k) right(k,o), for all three products. */
static void product_bounds(struct trial *t, int N, int O, int K, size_t left_n, size_t left_k, size_t right_k,
                           size_t right_o, const double *left, const double *right, const double *bias)
{
    struct operand *out = t->operand;
    int n, o, k;
    for (n = 0; n < N; n++) {
        for (o = 0; o < O; o++) {
            struct dot_terms d = { 0, 0, 0, 0 };
            size_t at = (size_t)n * O + o;
            double old = out->use == INOUT ? out->start[at] : 0, b = bias ? bias[o] : 0;
            for (k = 0; k < K; k++) dot_add(&d, left[n * left_n + k * left_k], right[k * right_k + o * right_o]);
            out->bound[at] = dot_bound(&d, K, t->scale, fabs(old) + fabs(b), t->flag & 3, t->o->u);
            check_oracle(t, out->want[at], t->scale * d.sum + b + old,
                         fabs(t->scale) * d.absolute + fabs(old) + fabs(b) + 1);
        }
    }
}

static int call_matmul(struct call *x, const struct trial *t)
{
    return x->k->matmul(x->c, x->b[0], x->b[1], &x->w, x->b[2], t->scale, t->flag >> 3, t->N);
}

static void matmul_bounds(struct trial *t)
{
    int O = t->weight.rows, I = t->weight.cols;
    product_bounds(t, t->N, O, I, (size_t)I, 1, 1, (size_t)I, t->operand[1].start, t->dense,
                   t->operand[2].absent ? NULL : t->operand[2].start);
}

static int call_matmul_dx(struct call *x, const struct trial *t)
{
    return x->k->matmul_dx(x->c, x->b[0], x->b[1], &x->w, t->scale, t->flag >> 3, t->N);
}

static void matmul_dx_bounds(struct trial *t)
{
    int O = t->weight.rows, I = t->weight.cols;
    product_bounds(t, t->N, I, O, (size_t)O, 1, (size_t)I, 1, t->operand[1].start, t->dense, NULL);
}

/* N, O, I: around vectors and tiles, and across the blocks of both dimensions. */
static const int product_shapes[][3] = {
    { 0, 4, 32 }, { 1, 1, 1 }, { 1, 7, 32 }, { 2, 3, 5 }, { 3, 2, 32 }, { 5, 17, 31 }, { 7, 16, 64 }, { 8, 8, 8 }, { 8, 33, 96 },
    { 9, 15, 17 }, { 1, 300, 288 }, { 15, 31, 33 }, { 16, 64, 32 }, { 17, 65, 160 }, { 31, 5, 7 }, { 33, 100, 64 }, { 6, 1, 576 },
    { 65, 48, 96 }, { 13, 16, 1024 }, { 130, 24, 40 }, { 10, 600, 32 }, { 12, 20, 1030 }, { 70, 130, 320 }, { 4, 64, 1536 }
};

/* One case of matmul (backward 0) or matmul_dx (1). */
static void try_product(struct oracle *o, int backward, const int *shape, int type, int head_rows, int skip,
                        enum mode mode, int bias, double scale, int accumulate)
{
    struct trial t;
    int N = shape[0], O = shape[1], I = shape[2];
    static const char *const modes[] = { "", " exact", " wild" };
    if (!fits(type, I)) return;
    trial_begin(&t, o, backward ? "matmul_dx" : "matmul", backward ? call_matmul_dx : call_matmul,
                "N %d O %d I %d %s%s%s%s%s scale %g", N, O, I, weight_types[type].name, head_rows ? " in heads" : "",
                modes[mode], bias ? " bias" : "", accumulate ? " +=" : "", scale);
    t.N = N;
    t.scale = scale;
    t.flag = pack_flag(mode, bias, accumulate);
    add_operand(&t, accumulate ? INOUT : OUT, (size_t)N * (backward ? I : O), mode);
    add_operand(&t, IN, (size_t)N * (backward ? O : I), mode);
    if (bias) add_operand(&t, IN, (size_t)O, mode);
    else add_absent(&t);
    add_weight(&t, type, O, I, head_rows, skip, mode);
    trial_end(&t, backward ? matmul_dx_bounds : matmul_bounds);
}

/* A row's result is the same, to the bit, computed among N rows or among fewer. */
static void try_rows(struct oracle *o, int backward, int type, int N, int O, int I)
{
    struct trial t;
    struct oracle_result r;
    double *all[MAX_OPERANDS], *some[MAX_OPERANDS], returned;
    int out = backward ? I : O, in = backward ? O : I, from, rows, rc;
    trial_begin(&t, o, backward ? "matmul_dx" : "matmul", backward ? call_matmul_dx : call_matmul,
                "rows of N %d O %d I %d %s alone", N, O, I, weight_types[type].name);
    memset(&r, 0, sizeof r);
    t.N = N;
    t.scale = 1;
    add_operand(&t, OUT, (size_t)N * out, NORMAL);
    add_operand(&t, IN, (size_t)N * in, NORMAL);
    add_absent(&t);
    add_weight(&t, type, O, I, 0, 0, NORMAL);
    results_new(&t, all);
    results_new(&t, some);
    if (o->stopped) return;
    rc = o->arena.failed ? -1 : run_on(&t, &o->test, 1, all, &returned);
    if (rc < 0) o->no_memory = 1;
    if (rc) return;             /* a type that is not supported is reported by try_product */
    r.supported = 1;
    for (from = 0, rows = FEW_ROWS; from + rows <= N && !r.fault; from += 3, rows += 2) {
        t.N = rows;
        t.operand[0].n = (size_t)rows * out;
        t.operand[1].n = (size_t)rows * in;
        t.operand[1].start += (size_t)(from ? 3 : 0) * in;
        if (run_on(&t, &o->test, 2, some, &returned)
            || memcmp(some[0], all[0] + (size_t)from * out, t.operand[0].n * sizeof **some))
            r.fault = "a row's result depends on the other rows";
        r.compared += (int)t.operand[0].n;
    }
    trial_report(&t, &r);
}

static void product_cases(struct oracle *o, int backward)
{
    size_t i, k;
    for (i = 0; i < COUNT(product_shapes); i++) {
        const int *shape = product_shapes[i];
        for (k = 0; k < COUNT(types); k++) {
            int type = types[k], odd = (int)(i + k) & 1, d = type == TYPE_REAL || shape[1] % 8 ? 0 : 8;
            int bias = !backward && ((i + k) / 2 & 1), large = shape[1] * shape[2] > 20000;
            if (large && type != TYPE_F32 && (i + k) % 3) continue;         /* time */
            try_product(o, backward, shape, type, 0, odd, NORMAL, bias, odd ? 1 : -0.37, (int)(i + k) / 3 & 1);
            try_product(o, backward, shape, type, d, !odd, EXACT, bias, odd ? 1 : -0.5, (int)(i + k) / 2 & 1);
            if (type == TYPE_F32 || type == TYPE_REAL)
                try_product(o, backward, shape, type, d, 0, WILD, bias, 1, odd);
        }
    }
    for (k = 0; k < COUNT(types); k++) {
        try_rows(o, backward, types[k], 37, 45, 96);
        try_rows(o, backward, types[k], 75, 130, 320);
    }
}

static void matmul_cases(struct oracle *o) { product_cases(o, 0); }

static void matmul_dx_cases(struct oracle *o) { product_cases(o, 1); }

static int call_matmul_dw(struct call *x, const struct trial *t)
{
    x->k->matmul_dw(x->c, x->b[0], x->b[1], x->b[2], t->scale, t->N, t->M, t->C);
    return 0;
}

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

static int call_bias_backward(struct call *x, const struct trial *t)
{
    x->k->bias_backward(x->c, x->b[0], x->b[1], t->N, t->C);
    return 0;
}

/* A dot product with ones: partial sums are sqrt(k) terms large, so the error is (2 sqrt(N) + 2) u |dout|. */
static void bias_backward_bounds(struct trial *t)
{
    struct operand *db = t->operand;
    int i;
    for (i = 0; i < t->C; i++)
        db->bound[i] = (2 * sqrt(t->N) + 2) * t->o->u
                       * (fabs(db->start[i]) + norm(t->operand[1].start + i, t->N, (size_t)t->C));
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

/* ---- RMSNorm ---- */

static int call_rmsnorm(struct call *x, const struct trial *t)
{
    x->k->rmsnorm(x->c, x->b[0], x->b[1], x->b[2], t->N, t->C, t->eps);
    return 0;
}

/* The sum of squares has no cancellation: kept in float it is off by sqrt(C) u at most, in double
 * by nothing; rstd by half of that; then three roundings. */
static double rms_error(const struct trial *t) { return (4 + sqrt(t->C) / 2) * t->o->u; }

static void rmsnorm_bounds(struct trial *t) { bound_relative(t, 0, rms_error(t) / t->o->u); }

static const int norm_shapes[][2] = {
    { 0, 4 }, { 1, 1 }, { 2, 2 }, { 3, 5 }, { 5, 8 }, { 7, 15 }, { 8, 16 }, { 9, 17 }, { 17, 31 }, { 33, 33 }, { 31, 64 },
    { 70, 100 }, { 4, 257 }, { 6, 576 }, { 3, 1030 }
};

static void rmsnorm_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    int wild;
    for (i = 0; i < COUNT(norm_shapes); i++) {
        for (wild = 0; wild < 2; wild++) {
            int N = norm_shapes[i][0], C = norm_shapes[i][1];
            trial_begin(&t, o, "rmsnorm", call_rmsnorm, "N %d C %d%s", N, C, wild ? " wild" : "");
            t.N = N;
            t.C = C;
            t.eps = wild ? 1e-6 : 1e-5;
            add_operand(&t, OUT, (size_t)N * C, NORMAL);
            add_operand(&t, IN, (size_t)N * C, wild ? WILD : NORMAL);
            add_operand(&t, IN, (size_t)C, NORMAL);
            trial_end(&t, rmsnorm_bounds);
        }
    }
}

static int call_rmsnorm_backward(struct call *x, const struct trial *t)
{
    x->k->rmsnorm_backward(x->c, x->b[0], x->b[1], x->b[2], x->b[3], x->b[4], t->N, t->C, t->eps, t->flag);
    return 0;
}

/* dx: with n = x rstd, g = dout w, the mean of g n is a dot product of length C over C:
 *   3 (4 + sqrt(C)) u rstd (|g| + |n| |g||n| / C), and the addition.
 * dw: a dot product of length N of dout and n, whose n are off by rms_error. */
static void rmsnorm_backward_bounds(struct trial *t)
{
    struct operand *dx = t->operand, *dw = t->operand + 1;
    const double *dout = t->operand[2].start, *x = t->operand[3].start, *w = t->operand[4].start;
    int N = t->N, C = t->C, n, i;
    double *squares = numbers(t, 2 * (size_t)C), u = t->o->u;     /* of each column of dout and of n */
    if (!squares) return;
    for (i = 0; i < 2 * C; i++) squares[i] = 0;
    for (n = 0; n < N; n++) {
        const double *x_n = x + (size_t)n * C, *dout_n = dout + (size_t)n * C;
        double rstd = norm(x_n, C, 1), gg = 0;
        double nn = rstd;
        rstd = 1 / sqrt(rstd * rstd / C + t->eps);
        nn *= rstd;
        for (i = 0; i < C; i++) gg += dout_n[i] * w[i] * dout_n[i] * w[i];
        for (i = 0; i < C; i++) {
            size_t at = (size_t)n * C + i;
            double norm_i = x_n[i] * rstd, old = dx->use == INOUT ? fabs(dx->start[at]) : 0;
            dx->bound[at] = 3 * (4 + sqrt(C)) * u * rstd * (fabs(dout_n[i] * w[i]) + fabs(norm_i) * sqrt(gg) * nn / C)
                            + u * (old + fabs(dx->want[at]));
            squares[i] += dout_n[i] * dout_n[i];
            squares[C + i] += norm_i * norm_i;
        }
    }
    for (i = 0; !dw->absent && i < C; i++)
        dw->bound[i] = (2 * sqrt(N) + 2) * u * fabs(dw->start[i])
                       + ((2 * sqrt(N) + 2) * u + rms_error(t)) * sqrt(squares[i] * squares[C + i]);
}

static void rmsnorm_backward_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    int variant;
    for (i = 0; i < COUNT(norm_shapes); i++) {
        for (variant = 0; variant < 4; variant++) {
            int N = norm_shapes[i][0], C = norm_shapes[i][1], accumulate = variant & 1;
            trial_begin(&t, o, "rmsnorm_backward", call_rmsnorm_backward, "N %d C %d%s%s", N, C,
                        accumulate ? " +=" : "", variant & 2 ? " dw" : "");
            t.N = N;
            t.C = C;
            t.eps = 1e-5;
            t.flag = accumulate;
            add_operand(&t, accumulate ? INOUT : OUT, (size_t)N * C, NORMAL);
            if (variant & 2) add_operand(&t, INOUT, (size_t)C, NORMAL);
            else add_absent(&t);
            add_operand(&t, IN, (size_t)N * C, NORMAL);
            add_operand(&t, IN, (size_t)N * C, NORMAL);
            add_operand(&t, IN, (size_t)C, NORMAL);
            trial_end(&t, rmsnorm_backward_bounds);
        }
    }
}

/* ---- rotary positions ---- */

static int call_rope(struct call *x, const struct trial *t)
{
    x->k->rope(x->c, x->b[0], x->b[1], x->b[2], (ints *)x->b[3], t->N, t->NH, t->HS, t->flag);
    return 0;
}

/* Two products and their sum: 2 u (|a cos| + |b sin|). */
static void rope_bounds(struct trial *t)
{
    struct operand *x = t->operand;
    const double *cosine = t->operand[1].start, *sine = t->operand[2].start, *pos = t->operand[3].start;
    int half = t->HS / 2, n, h, i;
    for (n = 0; n < t->N; n++) {
        for (h = 0; h < t->NH; h++) {
            for (i = 0; i < half; i++) {
                size_t a = ((size_t)n * t->NH + h) * t->HS + i, b = a + half;
                double c = cosine[(size_t)pos[n] * half + i], s = sine[(size_t)pos[n] * half + i];
                double xa = x->start[a], xb = x->start[b];
                if (t->flag) s = -s;
                x->bound[a] = 2 * t->o->u * (fabs(xa * c) + fabs(xb * s));
                x->bound[b] = 2 * t->o->u * (fabs(xb * c) + fabs(xa * s));
                check_oracle(t, x->want[a], xa * c - xb * s, fabs(xa * c) + fabs(xb * s));
                check_oracle(t, x->want[b], xb * c + xa * s, fabs(xb * c) + fabs(xa * s));
            }
        }
    }
}

static void rope_cases(struct oracle *o)
{
    static const int shapes[][3] = { { 0, 1, 2 }, { 1, 1, 2 }, { 2, 3, 4 }, { 3, 1, 6 }, { 5, 2, 10 }, { 8, 4, 16 }, { 9, 3, 30 },
                                     { 17, 2, 34 }, { 33, 9, 64 }, { 4, 2, 128 } };
    struct trial t;
    size_t i;
    int backward;
    for (i = 0; i < COUNT(shapes); i++) {
        for (backward = 0; backward < 2; backward++) {
            int N = shapes[i][0], heads = shapes[i][1], HS = shapes[i][2], positions = 40;
            trial_begin(&t, o, "rope", call_rope, "N %d heads %d HS %d%s", N, heads, HS, backward ? " backward" : "");
            t.N = N;
            t.NH = t.NKV = heads;
            t.HS = HS;
            t.flag = backward;
            add_operand(&t, INOUT, (size_t)N * heads * HS, NORMAL);
            add_operand(&t, IN, (size_t)positions * (HS / 2), NORMAL);
            add_operand(&t, IN, (size_t)positions * (HS / 2), NORMAL);
            add_ints(&t, IN, (size_t)N, positions);
            trial_end(&t, rope_bounds);
        }
    }
}

/* ---- attention ---- */

/* q_start, q_len, k_start, k_len, prefix, pos: what a table of segments looks like. */
struct layout {
    const char *name;
    int rows, keys, S;          /* rows of q and of k */
    int segment[5][6];
};
static const struct layout layouts[] = {
    { "nothing", 3, 3, 0, { { 0 } } },
    { "one", 1, 1, 1, { { 0, 1, 0, 1, -1, 0 } } },
    { "seven", 7, 7, 1, { { 0, 7, 0, 7, -1, 0 } } },
    { "three apart, a row of none", 21, 21, 3,
      { { 0, 5, 0, 5, -1, 0 }, { 6, 1, 6, 1, -1, 0 }, { 8, 13, 8, 13, -1, 0 } } },
    { "two continue one, one continues one of them", 26, 26, 5,
      { { 0, 6, 0, 6, -1, 0 }, { 6, 4, 6, 4, 0, 6 }, { 10, 8, 10, 8, 0, 6 }, { 18, 3, 18, 3, 2, 14 },
        { 21, 5, 21, 5, -1, 0 } } },
    { "last rows of a cache", 4, 40, 3,
      { { 0, 1, 20, 9, -1, 0 }, { 1, 2, 0, 17, -1, 3 }, { 3, 1, 33, 1, -1, 0 } } },
    { "prefixes in a cache, without queries", 5, 50, 5,
      { { 0, 0, 8, 12, -1, 0 }, { 0, 0, 30, 5, 0, 12 }, { 0, 3, 20, 7, 0, 12 }, { 3, 2, 40, 2, 1, 17 },
        { 0, 0, 2, 4, -1, 0 } } },
    { "long", 133, 133, 2, { { 0, 70, 0, 70, -1, 0 }, { 70, 63, 70, 63, 0, 70 } } },
    { "33 and 31", 64, 64, 2, { { 0, 33, 0, 33, -1, 0 }, { 33, 31, 33, 31, -1, 0 } } }
};

/* Is key j of segment b seen by query i of segment a? Said by positions, where the kernels walk. */
static int is_seen(const struct layout *l, int a, int i, int b, int j, int window)
{
    int own = l->segment[a][3] - l->segment[a][1] + i, s = a;
    int at_query = l->segment[a][5] + own, at_key = l->segment[b][5] + j;
    if (a == b) return j <= own && (window <= 0 || at_key > at_query - window);
    while (s >= 0 && s != b) s = l->segment[s][4];
    return s == b && (window <= 0 || at_key > at_query - window);
}

/* The keys that a query sees, with softmax: what the bounds are made of. */
struct seen_keys {
    int n, row[256];
    double z[256], p[256];
    double lse, z_error;        /* z_error: how far off a z can be in the table under test */
};

static const struct layout *layout_of(const struct trial *t) { return &layouts[t->flag]; }

static double dot_of(const double *a, const double *b, int n)
{
    double sum = 0;
    int i;
    for (i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* z is a dot product, scaled; its distance to the maximum or to lse is rounded once more. */
static void see(const struct trial *t, struct seen_keys *y, int a, int i, int h, const double *q, const double *k)
{
    const struct layout *l = layout_of(t);
    int g = h / (t->NH / t->NKV), HS = t->HS, b, j;
    const double *q_n = q + ((size_t)(l->segment[a][0] + i) * t->NH + h) * HS;
    double max = -INFINITY, sum = 0, largest = 0, longest = 0;
    y->n = 0;
    for (b = 0; b < l->S; b++) {
        for (j = 0; j < l->segment[b][3]; j++) {
            const double *k_j = k + ((size_t)(l->segment[b][2] + j) * t->NKV + g) * HS;
            if (!is_seen(l, a, i, b, j, t->window)) continue;
            y->row[y->n] = l->segment[b][2] + j;
            y->z[y->n] = t->scale * dot_of(q_n, k_j, HS);
            max = fmax(max, y->z[y->n]);
            largest = fmax(largest, fabs(y->z[y->n]));
            longest = fmax(longest, norm(k_j, HS, 1));
            y->n++;
        }
    }
    for (j = 0; j < y->n; j++) sum += exp(y->z[j] - max);
    y->lse = max + log(sum);
    for (j = 0; j < y->n; j++) y->p[j] = exp(y->z[j] - y->lse);
    y->z_error = t->o->u * (fabs(t->scale) * (2 * sqrt(HS) + 2) * norm(q_n, HS, 1) * longest + 4 * largest);
}

/* Relative error of a p: of z twice (its own and in the sum), of exp, of the sum, of a rounded lse. */
static double p_error(const struct trial *t, const struct seen_keys *y)
{
    return 2 * y->z_error + t->o->u * (12 + 3 * sqrt(y->n) + fabs(y->lse));
}

static int call_attention(struct call *x, const struct trial *t)
{
    x->k->attention(x->c, x->b[0], x->b[1], x->b[2], x->b[3], x->b[4], (ints *)x->b[5], t->S, t->NH, t->NKV, t->HS,
                    t->scale, t->window);
    return 0;
}

static void untouched(struct operand *a)
{
    size_t j;
    for (j = 0; j < a->n; j++) a->bound[j] = UNTOUCHED;
}

static void attention_bounds(struct trial *t)
{
    struct operand *out = t->operand, *lse = t->operand + 1;
    const double *q = t->operand[2].start, *k = t->operand[3].start, *v = t->operand[4].start;
    const struct layout *l = layout_of(t);
    struct seen_keys y;
    int a, i, h, d, j;
    untouched(out);
    untouched(lse);
    for (a = 0; a < l->S; a++) {
        for (i = 0; i < l->segment[a][1]; i++) {
            for (h = 0; h < t->NH; h++) {
                size_t nh = (size_t)(l->segment[a][0] + i) * t->NH + h;
                see(t, &y, a, i, h, q, k);
                lse->bound[nh] = y.z_error + t->o->u * (fabs(y.lse) + 4 + sqrt(y.n));
                check_oracle(t, lse->want[nh], y.lse, 1 + fabs(y.lse));
                for (d = 0; d < t->HS; d++) {
                    size_t at = nh * t->HS + d;
                    double sum = 0, absolute = 0;
                    for (j = 0; j < y.n; j++) {
                        double pv = y.p[j] * v[((size_t)y.row[j] * t->NKV + h / (t->NH / t->NKV)) * t->HS + d];
                        sum += pv;
                        absolute += fabs(pv);
                    }
                    out->bound[at] = (p_error(t, &y) + (2 * sqrt(y.n) + 2) * t->o->u) * absolute + y.n * 10 * TINY;
                    check_oracle(t, out->want[at], sum, absolute);
                }
            }
        }
    }
}

static const struct { int NH, NKV, HS; } head_shapes[] = {
    { 1, 1, 2 }, { 2, 1, 6 }, { 3, 3, 8 }, { 4, 2, 10 }, { 4, 4, 16 }, { 6, 2, 34 }, { 9, 3, 64 }, { 2, 1, 128 }
};

/* The operands q, k, v and the table itself; queries `gain` times normal. */
static void add_qkv(struct trial *t, double gain)
{
    const struct layout *l = layout_of(t);
    double *q = add_operand(t, IN, (size_t)l->rows * t->NH * t->HS, NORMAL);
    size_t i, n = t->operand[t->operands - 1].n;
    for (i = 0; q && i < n; i++) q[i] = rounded(q[i] * gain);
    add_operand(t, IN, (size_t)l->keys * t->NKV * t->HS, NORMAL);
    add_operand(t, IN, (size_t)l->keys * t->NKV * t->HS, NORMAL);
}

static void add_segments(struct trial *t)
{
    const struct layout *l = layout_of(t);
    double *x = add_ints(t, IN, (size_t)l->S * 8, 1);
    int s, i;
    for (s = 0; x && s < l->S; s++) {
        for (i = 0; i < 6; i++) x[s * 8 + i] = l->segment[s][i];
        x[s * 8 + 6] = -1;
        x[s * 8 + 7] = s;
    }
}

static void attention_trial(struct trial *t, struct oracle *o, const char *op, caller *call, int layout, int shape,
                            int window, double gain)
{
    const struct layout *l = &layouts[layout];
    trial_begin(t, o, op, call, "%s, NH %d NKV %d HS %d window %d gain %g", l->name, head_shapes[shape].NH,
                head_shapes[shape].NKV, head_shapes[shape].HS, window, gain);
    t->flag = layout;
    t->N = l->rows;
    t->S = l->S;
    t->NH = head_shapes[shape].NH;
    t->NKV = head_shapes[shape].NKV;
    t->HS = head_shapes[shape].HS;
    t->window = window;
    t->scale = 1 / sqrt(t->HS);
}

/* Calls try(o, layout, shape, window, gain) for what is worth trying. */
static void attention_variants(struct oracle *o, void (*try)(struct oracle *, int, int, int, double))
{
    static const int windows[] = { 0, 1, 3, 8, 40 };
    size_t layout, shape;
    for (layout = 0; layout < COUNT(layouts); layout++)
        for (shape = 0; shape < COUNT(head_shapes); shape++)
            try(o, (int)layout, (int)shape, windows[(layout + shape) % COUNT(windows)], shape == 4 ? 30 : 1);
    for (layout = 1; layout < COUNT(layouts); layout++)
        for (shape = 0; shape < COUNT(windows); shape++) try(o, (int)layout, 3, windows[shape], 3);
}

static void try_attention(struct oracle *o, int layout, int shape, int window, double gain)
{
    struct trial t;
    attention_trial(&t, o, "attention", call_attention, layout, shape, window, gain);
    add_operand(&t, OUT, (size_t)t.N * t.NH * t.HS, NORMAL);
    add_operand(&t, OUT, (size_t)t.N * t.NH, NORMAL);
    add_qkv(&t, gain);
    add_segments(&t);
    trial_end(&t, attention_bounds);
}

static void attention_cases(struct oracle *o) { attention_variants(o, try_attention); }

static int call_attention_backward(struct call *x, const struct trial *t)
{
    buf **b = x->b;
    x->k->attention_backward(x->c, b[0], b[1], b[2], b[3], b[7], b[8], b[9], b[4], b[5], b[6], (ints *)b[10], t->S,
                             t->N, t->NH, t->NKV, t->HS, t->scale, t->window);
    return 0;
}

/* What one query and head adds to the bounds (and to a second computation) of dq, dk and dv:
 *   e = p (p_error |dout.v - D| + (2 sqrt(HS) + 3) u |dout| (|v| + |out|))    the error of ds,
 *   and (2 sqrt(M) + 4) u of every term of a sum over M of them. */
static void attention_pairs_bounds(struct trial *t, const struct seen_keys *y, int n, int h, double *dq, double *dk,
                                   double *dv)
{
    const double *q = t->operand[4].start, *k = t->operand[5].start, *v = t->operand[6].start;
    int HS = t->HS, j, d;
    size_t nh = (size_t)n * t->NH + h;
    const double *q_n = q + nh * HS, *dout = t->operand[7].start + nh * HS, *out = t->operand[8].start + nh * HS;
    double D = dot_of(dout, out, HS), u = t->o->u, relative = p_error(t, y);
    double sums = (2 * sqrt(t->N * t->NH / t->NKV + y->n) + 4) * u;
    for (j = 0; j < y->n; j++) {
        size_t kv = ((size_t)y->row[j] * t->NKV + h / (t->NH / t->NKV)) * HS;
        double p = exp(y->z[j] - t->operand[9].start[nh]), back = dot_of(dout, v + kv, HS) - D;
        double e = p * (relative * fabs(back)
                        + (2 * sqrt(HS) + 3) * u * norm(dout, HS, 1) * (norm(v + kv, HS, 1) + norm(out, HS, 1)));
        double ds = fabs(t->scale) * (e + sums * p * fabs(back) + TINY * (1 + fabs(back)));
        for (d = 0; d < HS; d++) {
            t->operand[0].bound[nh * HS + d] += ds * fabs(k[kv + d]) + TINY;
            t->operand[1].bound[kv + d] += ds * fabs(q_n[d]) + TINY;
            t->operand[2].bound[kv + d] += ((relative + sums) * p + TINY) * fabs(dout[d]) + TINY;
            dq[nh * HS + d] += t->scale * p * back * k[kv + d];
            dk[kv + d] += t->scale * p * back * q_n[d];
            dv[kv + d] += p * dout[d];
        }
    }
}

static void check_whole(struct trial *t, const struct operand *a, const double *other)
{
    size_t j;
    double largest = 1;
    for (j = 0; j < a->n; j++) largest = fmax(largest, fabs(other[j]));
    for (j = 0; j < a->n; j++) if (a->bound[j] >= 0) check_oracle(t, a->want[j], other[j], 100 * largest);
}

/* Key rows of no segment, or of one without queries that nothing continues, are not touched; dq of
 * rows of no segment is not anybody's. */
static void attention_backward_bounds(struct trial *t)
{
    const struct layout *l = layout_of(t);
    struct seen_keys y;
    double *second[3];
    int a, b, s, i, h, j;
    size_t e;
    for (i = 0; i < 3; i++) {
        second[i] = numbers(t, t->operand[i].n);
        if (!second[i]) return;
        for (e = 0; e < t->operand[i].n; e++) {
            second[i][e] = 0;
            t->operand[i].bound[e] = i ? UNTOUCHED : IGNORED;
        }
    }
    for (a = 0; a < l->S; a++) {
        int named = l->segment[a][1] > 0;
        size_t width = (size_t)t->NKV * t->HS;
        for (b = 0; b < l->S; b++)
            for (s = l->segment[b][4]; s >= 0; s = l->segment[s][4]) named |= s == a;
        for (e = 0; e < (size_t)l->segment[a][1] * t->NH * t->HS; e++)
            t->operand[0].bound[(size_t)l->segment[a][0] * t->NH * t->HS + e] = 0;
        for (j = 0; named && j < l->segment[a][3]; j++)
            for (e = 0; e < width; e++)
                t->operand[1].bound[(l->segment[a][2] + j) * width + e]
                    = t->operand[2].bound[(l->segment[a][2] + j) * width + e] = 0;
    }
    for (a = 0; a < l->S; a++)
        for (i = 0; i < l->segment[a][1]; i++)
            for (h = 0; h < t->NH; h++) {
                see(t, &y, a, i, h, t->operand[4].start, t->operand[5].start);
                attention_pairs_bounds(t, &y, l->segment[a][0] + i, h, second[0], second[1], second[2]);
            }
    for (i = 0; i < 3; i++) check_whole(t, &t->operand[i], second[i]);
}

/* out and lse are those of the oracle's forward pass, rounded. */
static int forward_of(struct trial *t, double *out, double *lse)
{
    struct trial f = *t;
    double *got[MAX_OPERANDS], returned;
    int i;
    f.operands = 6;
    f.operand[0] = t->operand[8];
    f.operand[1] = t->operand[9];
    for (i = 0; i < 3; i++) f.operand[2 + i] = t->operand[4 + i];
    f.operand[5] = t->operand[10];
    f.call = call_attention;
    for (i = 0; i < 6; i++) got[i] = f.operand[i].want;
    if (t->o->arena.failed || run_on(&f, &t->o->truth, 1, got, &returned)) return -1;
    for (i = 0; i < (int)t->operand[8].n; i++) out[i] = rounded(got[0][i]);
    for (i = 0; i < (int)t->operand[9].n; i++) lse[i] = rounded(got[1][i]);
    return 0;
}

static void try_attention_backward(struct oracle *o, int layout, int shape, int window, double gain)
{
    struct trial t;
    const struct layout *l = &layouts[layout];
    double *out, *lse;
    size_t rows, keys;
    attention_trial(&t, o, "attention_backward", call_attention_backward, layout, shape, window, gain);
    rows = (size_t)t.N * t.NH * t.HS;
    keys = (size_t)l->keys * t.NKV * t.HS;
    add_operand(&t, OUT, rows, NORMAL);
    add_operand(&t, OUT, keys, NORMAL);
    add_operand(&t, OUT, keys, NORMAL);
    add_operand(&t, SCRATCH, (size_t)t.N * t.NH, NORMAL);
    add_qkv(&t, gain);
    add_operand(&t, IN, rows, NORMAL);
    out = add_operand(&t, IN, rows, NORMAL);
    lse = add_operand(&t, IN, (size_t)t.N * t.NH, NORMAL);
    add_segments(&t);
    if (o->stopped) return;
    if (forward_of(&t, out, lse)) o->no_memory = 1;
    else trial_end(&t, attention_backward_bounds);
}

static void attention_backward_cases(struct oracle *o) { attention_variants(o, try_attention_backward); }

/* ---- SwiGLU ---- */

static int call_swiglu(struct call *x, const struct trial *t)
{
    x->k->swiglu(x->c, x->b[0], x->b[1], x->b[2], t->n);
    return 0;
}

/* What underflows in a product may be lost: TINY times the other factors. */
static double lost(double a, double b, double c) { return 4 * TINY * (1 + fabs(a)) * (1 + fabs(b)) * (1 + fabs(c)); }

/* exp to 2 u, and five more roundings. */
static void swiglu_bounds(struct trial *t)
{
    size_t i;
    for (i = 0; i < t->n; i++) {
        double z = t->operand[1].start[i], up = t->operand[2].start[i];
        t->operand[0].bound[i] = 8 * t->o->u * fabs(t->operand[0].want[i]) + lost(z, up, 0);
        check_oracle(t, t->operand[0].want[i], z * up / (1 + exp(-z)), fabs(z * up));
    }
}

/* Gates over the whole range, where 1 + e^-z overflows too. */
static void add_gate(struct trial *t, enum use use)
{
    double *gate = add_operand(t, use, t->n, NORMAL);
    size_t i;
    for (i = 0; gate && i < t->n; i++) {
        if (i % 5 == 1) gate[i] = rounded(gate[i] * 10);
        if (i % 17 == 3) gate[i] = rounded(gate[i] * 60);
        if (i % 31 == 7) gate[i] = i % 2 ? -100 : 0;
    }
}

static void swiglu_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        trial_begin(&t, o, "swiglu", call_swiglu, "n %d", flat_sizes[i]);
        t.n = (size_t)flat_sizes[i];
        add_operand(&t, OUT, t.n, NORMAL);
        add_gate(&t, IN);
        add_operand(&t, IN, t.n, NORMAL);
        trial_end(&t, swiglu_bounds);
    }
}

/* In place (flag): operand 0 is dgate and gate, operand 1 is dup and up. */
static int call_swiglu_backward(struct call *x, const struct trial *t)
{
    buf **b = x->b;
    x->k->swiglu_backward(x->c, b[0], b[1], b[2], t->flag ? b[0] : b[3], t->flag ? b[1] : b[4], t->n);
    return 0;
}

/* dgate = d up s (1 + z (1 - s)): s to 4 u, so 1 - s to (4 s + 1) u. */
static void swiglu_backward_bounds(struct trial *t)
{
    const double *gate = t->operand[t->flag ? 0 : 3].start, *up = t->operand[t->flag ? 1 : 4].start;
    double u = t->o->u;
    size_t i;
    for (i = 0; i < t->n; i++) {
        double d = t->operand[2].start[i], z = gate[i], s = 1 / (1 + exp(-z)), r = 1 / (1 + exp(z));
        double underflow = lost(d, z, up[i]);
        t->operand[0].bound[i] = u * fabs(d * up[i] * s) * (8 * (1 + fabs(z) * r) + fabs(z) * (4 * s + 1) * (r < u ? 0 : 1))
                                 + underflow;
        t->operand[1].bound[i] = 8 * u * fabs(d * z * s) + underflow;
        check_oracle(t, t->operand[0].want[i], d * up[i] * s * (1 + z * r), fabs(d * up[i]) * (1 + fabs(z)));
        check_oracle(t, t->operand[1].want[i], d * z * s, fabs(d * z));
    }
}

static void swiglu_backward_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    int in_place;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        for (in_place = 0; in_place < 2; in_place++) {
            trial_begin(&t, o, "swiglu_backward", call_swiglu_backward, "n %d%s", flat_sizes[i],
                        in_place ? " in place" : "");
            t.n = (size_t)flat_sizes[i];
            t.flag = in_place;
            if (in_place) add_gate(&t, INOUT);
            else add_operand(&t, OUT, t.n, NORMAL);
            add_operand(&t, in_place ? INOUT : OUT, t.n, NORMAL);
            add_operand(&t, IN, t.n, NORMAL);
            if (!in_place) {
                add_gate(&t, IN);
                add_operand(&t, IN, t.n, NORMAL);
            }
            trial_end(&t, swiglu_backward_bounds);
        }
    }
}

/* ---- dropout ---- */

static int call_dropout(struct call *x, const struct trial *t)
{
    x->k->dropout(x->c, x->b[0], x->b[1], (ints *)x->b[2], (ints *)x->b[3], t->N, t->C, t->p, t->key, t->flag);
    return 0;
}

/* The mask is exact: what is dropped is 0, or stays as it was. */
static void dropout_bounds(struct trial *t)
{
    struct operand *out = t->operand;
    const double *visit = t->operand[2].start, *pos = t->operand[3].start;
    int n, i;
    for (n = 0; n < t->N; n++) {
        for (i = 0; i < t->C; i++) {
            size_t at = (size_t)n * t->C + i;
            uint64_t index = ((uint64_t)visit[n] * 1048576 + (uint64_t)pos[n]) * 1048576 + (uint64_t)i;
            double old = t->flag ? out->start[at] : 0;
            double y = random_uniform(t->key, index) < t->p ? 0 : t->operand[1].start[at] / (1 - t->p);
            out->bound[at] = y != 0 ? 4 * t->o->u * (fabs(y) + fabs(old)) : 0;
            check_oracle(t, out->want[at], old + y, fabs(old) + fabs(y));
        }
    }
}

static void dropout_cases(struct oracle *o)
{
    static const double rates[] = { 0, 0.05, 0.5, 0.9 };
    struct trial t;
    size_t i, k;
    double *visit, *pos;
    int n;
    for (i = 0; i < COUNT(row_shapes); i++) {
        for (k = 0; k < 2 * COUNT(rates); k++) {
            int N = row_shapes[i].M, C = row_shapes[i].C, accumulate = k >= COUNT(rates);
            trial_begin(&t, o, "dropout", call_dropout, "N %d C %d p %g%s", N, C, rates[k % COUNT(rates)],
                        accumulate ? " +=" : "");
            t.N = N;
            t.C = C;
            t.p = rates[k % COUNT(rates)];
            t.flag = accumulate;
            add_operand(&t, accumulate ? INOUT : OUT, (size_t)N * C, NORMAL);
            add_operand(&t, IN, (size_t)N * C, NORMAL);
            visit = add_ints(&t, IN, (size_t)N, 100);
            pos = add_ints(&t, IN, (size_t)N, 1 << 20);
            for (n = 0; visit && pos && n < N; n += 3) visit[n] = 8000000 + n;      /* beyond 32 bits of index */
            trial_end(&t, dropout_bounds);
        }
    }
}

/* ---- loss ---- */

static int call_cross_entropy(struct call *x, const struct trial *t)
{
    x->k->cross_entropy(x->c, x->b[0], (ints *)x->b[1], x->b[2], (ints *)x->b[3], (ints *)x->b[4], x->b[5], t->N,
                        t->V, t->flag, t->scale);
    return 0;
}

/* One row: losses to u (8 + 2 max|z| + |loss|), as z - max may be rounded before exp; a gradient to
 * u (12 + 4 max|z|) of its softmax, and two roundings of what is subtracted. */
static void cross_entropy_row(struct trial *t, int row)
{
    struct operand *losses = t->operand, *logits = t->operand + 2;
    const double *z = logits->start + (size_t)row * t->V, *first = t->operand[3].start, *id = t->operand[4].start;
    const double *weight = t->operand[5].start;
    double max = z[0], sum = 0, largest = 0, total = 0, absolute = 0, u = t->o->u, lse;
    int v, i, best = 0;
    for (v = 0; v < t->V; v++) {
        if (z[v] > max) { max = z[v]; best = v; }
        largest = fmax(largest, fabs(z[v]));
    }
    for (v = 0; v < t->V; v++) sum += exp(z[v] - max);
    lse = max + log(sum);
    check_oracle(t, t->operand[1].want[row], best, 0);
    for (i = (int)first[row]; i < (int)first[row + 1]; i++) {
        double loss = lse - z[(int)id[i]];
        losses->bound[i] = u * (8 + 2 * largest + fabs(loss));
        check_oracle(t, losses->want[i], loss, 1 + largest);
        total += weight[i];
        absolute += fabs(weight[i]);
    }
    for (v = 0; t->flag && v < t->V; v++) {
        double p = exp(z[v] - lse), d = total * p, at_id = 0;
        for (i = (int)first[row]; i < (int)first[row + 1]; i++)
            if (id[i] == v) {
                d -= weight[i];
                at_id += fabs(weight[i]);
            }
        logits->bound[(size_t)row * t->V + v]
            = fabs(t->scale) * (absolute * (p * u * (12 + 4 * largest) + TINY) + 4 * u * at_id);
        check_oracle(t, logits->want[(size_t)row * t->V + v], t->scale * d, fabs(t->scale) * absolute + 1e-300);
    }
}

static void cross_entropy_bounds(struct trial *t)
{
    int row;
    untouched(&t->operand[0]);
    for (row = 0; row < t->N; row++) cross_entropy_row(t, row);
}

/* Rows with no target, one, several of the same; ties of the largest logit; huge logits. */
static void cross_entropy_cases(struct oracle *o)
{
    static const int shapes[][2] = { { 0, 5 }, { 1, 1 }, { 1, 2 }, { 2, 3 }, { 3, 7 }, { 5, 8 }, { 8, 17 }, { 9, 33 }, { 17, 100 },
                                     { 4, 1030 }, { 3, 5003 } };
    struct trial t;
    size_t i, j;
    int variant, u;
    for (i = 0; i < COUNT(shapes); i++) {
        for (variant = 0; variant < 6; variant++) {
            int U = shapes[i][0], V = shapes[i][1], grad = variant & 1;
            double *z, *first;
            trial_begin(&t, o, "cross_entropy", call_cross_entropy, "U %d V %d variant %d", U, V, variant);
            t.N = U;
            t.V = V;
            t.C = 1;
            t.flag = grad;
            t.scale = 0.125 + 0.3 * variant;
            add_operand(&t, OUT, 3 * (size_t)U + 2, NORMAL);
            add_ints(&t, OUT, (size_t)U, 0);
            z = add_operand(&t, grad ? INOUT : IN, (size_t)U * V, NORMAL);
            first = add_ints(&t, IN, (size_t)U + 1, 1);
            add_ints(&t, IN, 3 * (size_t)U + 2, V);
            add_operand(&t, IN, 3 * (size_t)U + 2, NORMAL);
            if (o->arena.failed) { o->no_memory = 1; return; }
            for (j = 0; j < (size_t)U * V; j++) {
                if (variant / 2 == 1) z[j] = floor(z[j] * 2);               /* ties */
                if (variant / 2 == 2) z[j] = rounded(z[j] * (j % 3 ? 40 : 400));
            }
            first[0] = 2;                                   /* a chunk of a longer list */
            for (u = 0; u < U; u++) first[u + 1] = first[u] + (u * 5 + variant) % 4 % 4;
            for (u = 0; u < U; u++) if (first[u + 1] > 3 * U + 2) first[u + 1] = first[u];
            trial_end(&t, cross_entropy_bounds);
        }
    }
}

/* ---- optimizer ---- */

static int call_adamw(struct call *x, const struct trial *t)
{
    x->k->adamw(x->c, x->b[0], x->b[1], x->b[2], x->b[3], t->n, &t->step);
    return 0;
}

static void adamw_bounds(struct trial *t)
{
    const struct adamw_step *s = &t->step;
    struct operand *p = t->operand, *m = p + 1, *v = p + 2, *g = p + 3;
    double u = t->o->u;
    size_t i;
    for (i = 0; i < t->n; i++) {
        double gradient = g->start[i] * s->grad_scale, root = sqrt(v->want[i] / s->correction2) + s->eps;
        double step = s->lr / s->correction1 / root;
        m->bound[i] = 6 * u * (fabs(s->beta1 * m->start[i]) + fabs((1 - s->beta1) * gradient));
        v->bound[i] = 8 * u * v->want[i] + TINY;
        p->bound[i] = 3 * u * (fabs(p->start[i]) + fabs(p->want[i]))
                      + step * (m->bound[i] + 16 * u * fabs(m->want[i]));
        check_oracle(t, m->want[i], s->beta1 * m->start[i] + (1 - s->beta1) * gradient, 10);
        check_oracle(t, v->want[i], s->beta2 * v->start[i] + (1 - s->beta2) * gradient * gradient, 10);
        check_oracle(t, p->want[i], p->start[i] * (1 - s->lr * s->weight_decay) - step * m->want[i],
                     fabs(p->start[i]) + step * fabs(m->want[i]));
    }
}

static void adamw_cases(struct oracle *o)
{
    static const struct adamw_step steps[] = {
        { 1e-3, 0.9, 0.999, 1e-8, 0, 0.1, 0.001, 1 },
        { 2e-2, 0.9, 0.95, 1e-8, 0.1, 1 - 0.9 * 0.9 * 0.9, 1 - 0.95 * 0.95 * 0.95, 0.37 }
    };
    struct trial t;
    size_t i, j, k;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        for (k = 0; k < COUNT(steps); k++) {
            double *m, *v;
            trial_begin(&t, o, "adamw", call_adamw, "n %d, step of kind %d", flat_sizes[i], (int)k);
            t.n = (size_t)flat_sizes[i];
            t.step = steps[k];
            add_operand(&t, INOUT, t.n, NORMAL);
            m = add_operand(&t, INOUT, t.n, NORMAL);
            v = add_operand(&t, INOUT, t.n, NORMAL);
            for (j = 0; m && v && j < t.n; j++) {           /* the first step starts from zeros */
                v[j] = k ? rounded(v[j] * v[j]) : 0;
                if (!k) m[j] = 0;
            }
            add_operand(&t, IN, t.n, NORMAL);
            trial_end(&t, adamw_bounds);
        }
    }
}

static int call_sum_squares(struct call *x, const struct trial *t)
{
    x->returned = x->k->sum_squares(x->c, x->b[0], t->n);
    return 0;
}

/* Squares of floats are exact in double: n additions of 2^-53 at most. */
static void sum_squares_bounds(struct trial *t)
{
    double length = norm(t->operand[0].start, (int)t->n, 1);
    t->returned_bound = (double)t->n * ldexp(1, -52) * length * length;
    check_oracle(t, t->returned, length * length, length * length);
}

static void sum_squares_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        trial_begin(&t, o, "sum_squares", call_sum_squares, "n %d", flat_sizes[i]);
        t.n = (size_t)flat_sizes[i];
        add_operand(&t, IN, t.n, i & 1 ? WILD : NORMAL);
        trial_end(&t, sum_squares_bounds);
    }
}

static int call_not_finite(struct call *x, const struct trial *t)
{
    x->returned = (double)x->k->not_finite(x->c, x->b[0], t->n);
    return 0;
}

/* t->M: where the first of them lies, -1: nowhere. */
static void not_finite_bounds(struct trial *t)
{
    t->returned_bound = 0;
    check_oracle(t, t->returned, t->M, 0);
}

static void not_finite_cases(struct oracle *o)
{
    static const double bad[] = { NAN, INFINITY, -INFINITY };
    struct trial t;
    size_t i, k;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        for (k = 0; k < 4; k++) {
            int n = flat_sizes[i], first = k == 0 ? 0 : k == 1 ? n - 1 : k == 2 ? n / 2 : n;
            double *x;
            trial_begin(&t, o, "not_finite", call_not_finite, "n %d, at %d", n, first);
            t.n = (size_t)n;
            x = add_operand(&t, IN, t.n, WILD);
            if (x && n) x[n / 3] = 3.4e38;                              /* large, and finite */
            if (x && n) x[n / 3] = rounded(x[n / 3]);
            if (x && first >= 0 && first < n) x[first] = bad[(i + k) % 3];
            if (x && k == 2 && first + 1 < n) x[n - 1] = NAN;           /* not the first */
            t.M = first < n ? first : -1;
            trial_end(&t, not_finite_bounds);
        }
    }
}
