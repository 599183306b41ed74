/* kernels.c - which table of kernels, and what is made of its products: see kernels.h. */
#include "kernels.h"
#include "nf4.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

const struct kernels *const kernels_all[] = { &kernels_ref64, &kernels_ref, &kernels_neon, &kernels_avx2, &kernels_avx512, NULL };

/* "auto" is the last that is usable: ref always is. */
static const struct kernels *best(void)
{
    const struct kernels *found = &kernels_ref;
    char why[256];
    int i;
    for (i = 0; kernels_all[i]; i++)
        if (kernels_all[i]->elem == 4 && kernels_all[i]->usable(why, sizeof why)) found = kernels_all[i];
    return found;
}

static void list_names(struct text *names)
{
    int i;
    text_puts(names, "auto");
    for (i = 0; kernels_all[i]; i++) text_printf(names, ", %s", kernels_all[i]->name);
    text_puts(names, ", cuda");
}

int kernels_known(const char *name)
{
    int i, known = !strcmp(name, "auto") || !strcmp(name, "cuda") || strchr(name, '/');
    for (i = 0; kernels_all[i]; i++) known |= !strcmp(name, kernels_all[i]->name);
    return known;
}

/* The functions of a table that one below may stand in for, one by one, because C has no way to walk the members of a
 * struct. */
#define ENTRIES(DO) \
    DO(usable) DO(work_bytes) DO(open) DO(close) \
    DO(alloc) DO(release) DO(up) DO(up64) DO(up_ints) DO(up_bytes) DO(down) DO(down64) DO(down_ints) DO(down_bytes) \
    DO(zero) DO(copy) DO(gather) DO(scatter_add) DO(embed) DO(embed_backward) \
    DO(matmul) DO(matmul_dx) DO(matmul_dw) DO(bias_backward) DO(rmsnorm) DO(rmsnorm_backward) DO(rope) \
    DO(attention) DO(attention_backward) DO(swiglu) DO(swiglu_backward) DO(dropout) DO(cross_entropy) \
    DO(adamw) DO(adamw8bit) DO(sum_squares) DO(not_finite)

/* The first entry that a table with its own memory lacks, or NULL. */
static const char *missing(const struct kernels *k)
{
#define LACKS(entry) if (!k->entry) return #entry;
    ENTRIES(LACKS)
    LACKS(memory)
#undef LACKS
    return NULL;
}

/* The first table of those below that has memory of its own, or, below one that has it, any: what they would be given is not
 * where they read. */
static const struct kernels *stranger(const struct kernels *k)
{
    const struct kernels *below;
    for (below = k->below; below && !k->own_memory && !below->own_memory; below = below->below) ;
    return below;
}

#define NAME_LETTERS "abcdefghijklmnopqrstuvwxyz0123456789_-"

/* Is this a table that can be called here? `path` is where it was found. */
static int check_table(const struct kernels *k, const char *path, struct lora_error *err)
{
    char why[256] = "";
    const struct kernels *other;
    const char *lacks;
    if (!k || k->abi != KERNELS_ABI || k->bytes != (int)sizeof *k) {
        fail(err, "not a table of kernels for this version", "%s", path);
        expected(err, "abi %d of %zu bytes", KERNELS_ABI, sizeof *k);
        if (k) found(err, "abi %d of %d bytes", k->abi, k->bytes);
        else found(err, "NULL");
        return hint(err, "it has to be compiled with this version's kernels.h%s", strcmp(path, KERNELS_CUDA) ? "" : ": make cuda");
    }
    if (k->elem != sizeof(float) || !k->name || !*k->name || k->name[strspn(k->name, NAME_LETTERS)]) {
        fail(err, "not a table of kernels", "%s", path);
        expected(err, "elements of 4 bytes, and a name of a-z 0-9 _ -");
        return found(err, "elements of %d bytes, the name \"%s\"", k->elem, k->name ? k->name : "");
    }
    if (k->own_memory && (lacks = missing(k)) != NULL) {
        fail(err, "not a table of kernels", "%s", path);
        expected(err, "every entry in a table with memory of its own");
        return found(err, "no %s", lacks);
    }
    if ((other = stranger(k)) != NULL) {
        fail(err, "not a table of kernels", "%s", path);
        expected(err, k->own_memory ? "no table below one with memory of its own" : "tables over the host's memory below it");
        return found(err, "%s", other->name ? other->name : "one");
    }
    if (k->usable && !k->usable(why, sizeof why)) {
        fail(err, "cannot use the backend", "%s", path);
        return found(err, "%s", why);
    }
    return 0;
}

/* help: what to do where there is no such file, or NULL. */
static const struct kernels *load(const char *path, const char *help, struct lora_error *err)
{
    union { void *found; const struct kernels *(*call)(void); } symbol;     /* a function's address as POSIX gives it */
    const struct kernels *k = NULL;
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!object || !(symbol.found = dlsym(object, "lora_kernels"))) {
        fail(err, "cannot use the backend", "%s", path);
        expected(err, "a shared object that exports lora_kernels()");
        found(err, "%s", dlerror());
        if (help) hint(err, "%s", help);
    } else {
        k = symbol.call();
        if (!check_table(k, path, err)) return k;
    }
    if (object) dlclose(object);
    return NULL;
}

/* A name without a / is for the loader to find, in the program's own directory first (the Makefile's rpath). */
static const struct kernels *load_cuda(struct lora_error *err)
{
    return load(KERNELS_CUDA, "`make cuda` builds it where nvcc is; it lies beside the program, or where the loader looks", err);
}

const struct kernels *kernels_find(const char *name, struct lora_error *err)
{
    struct text names = { NULL, 0, 0, 0 };
    char why[256] = "";
    int i;
    if (!strcmp(name, "auto")) return best();
    if (strchr(name, '/')) return load(name, NULL, err);
    if (!strcmp(name, "cuda")) return load_cuda(err);
    for (i = 0; kernels_all[i] && strcmp(kernels_all[i]->name, name); i++) ;
    if (kernels_all[i] && kernels_all[i]->usable(why, sizeof why)) return kernels_all[i];
    fail(err, "cannot use the backend", "%s", name);
    if (kernels_all[i]) {
        found(err, "%s", why);
        hint(err, "--backend auto takes the best one for this machine");
    } else {
        list_names(&names);
        if (names.s) expected(err, "one of: %s, or the path of a shared object", names.s);
        text_free(&names);
        hint(err, strstr(name, ".so") ? "a path has a / in it: ./%s" : "--backend auto takes the best one for this machine", name);
    }
    return NULL;
}

/* The last table that multiplies in bf16 here, or NULL, and why not if any table could. */
static const struct kernels *find_bf16(char *why, size_t n)
{
    const struct kernels *found = NULL;
    int i;
    snprintf(why, n, "no table of this build multiplies in bf16");
    for (i = 0; kernels_all[i]; i++)
        if (kernels_all[i]->has_bf16 && kernels_all[i]->usable(why, n) && kernels_all[i]->has_bf16(why, n)) found = kernels_all[i];
    return found;
}

int kernels_check_compute(const struct kernels *k, int compute, struct lora_error *err)
{
    char why[256] = "";
    const struct kernels *other;
    if (compute != COMPUTE_F32 && compute != COMPUTE_BF16) {
        fail(err, "cannot compute", "backend %s", k->name);
        expected(err, "a number of enum compute");
        return found(err, "%d", compute);
    }
    if (compute == COMPUTE_F32 || (k->has_bf16 && k->has_bf16(why, sizeof why))) return 0;
    other = find_bf16(why, sizeof why);
    fail(err, "cannot multiply in bf16", "backend %s", k->name);
    if (other) found(err, "f32 alone; the backend %s has bf16", other->name);
    else found(err, "f32 alone: %s", why);
    return hint(err, "--compute f32 is there, and the default");
}

void kernels_complete(struct kernels *out, const struct kernels *table)
{
    struct kernels below = kernels_ref64;
    const struct kernels *from = &below;
    *out = *table;
    if (table->own_memory) out->below = NULL;
    if (table->own_memory || table == &kernels_ref) return;
    if (table->elem == sizeof(float)) {
        if (!out->below) out->below = best();
        kernels_complete(&below, out->below);
    }
    if (!out->linear && !table->matmul) out->linear = from->linear;
    if (!out->linear_dx && !table->matmul_dx) out->linear_dx = from->linear_dx;
#define FILL(entry) if (!out->entry) out->entry = from->entry;
    ENTRIES(FILL)
#undef FILL
}

/* ---- weights in a table's own memory ---- */

/* The parts of a weight: its data, and what q points at. One that is not there has no bytes. */
enum { DATA, CODE, ABSMAX, CODES, MAP, NESTED, PARTS };
struct part { const void *p; size_t bytes; };

static int parts_of(struct part part[PARTS], const struct weight *w)
{
    const struct quantised *q = w->q;
    size_t n;
    memset(part, 0, PARTS * sizeof *part);
    part[DATA].p = w->data;
    if (size_mul(&n, (size_t)w->rows, (size_t)w->cols) || size_add(&n, n, w->offset)) return -1;
    if (type_bytes(&part[DATA].bytes, w->type, n + (q && q->code && n % 2))) return -1;
    if (!q) return 0;
    part[CODE].p = q->code;
    part[ABSMAX].p = q->absmax;
    part[CODES].p = q->codes;
    part[MAP].p = q->map;
    part[NESTED].p = q->nested;
    if (q->code) part[CODE].bytes = 16 * sizeof(float);
    if (q->absmax) part[ABSMAX].bytes = q->scales * sizeof(float);
    if (q->codes) part[CODES].bytes = q->scales;
    if (q->map) part[MAP].bytes = 256 * sizeof(float);
    if (q->nested) part[NESTED].bytes = block_count(q->scales, q->nested_block) * sizeof(float);
    return 0;
}

void kernels_lay_weight(struct weight *to, struct quantised *q, const struct weight *from, struct arena *a)
{
    struct part part[PARTS];
    int i;
    *to = *from;
    if (parts_of(part, from)) a->failed = 1;
    for (i = 0; i < PARTS && !a->failed; i++) part[i].p = part[i].bytes ? arena_take(a, part[i].bytes, 1) : NULL;
    to->data = part[DATA].p;
    if (!from->q) return;
    *q = *from->q;
    q->code = (const float *)part[CODE].p;
    q->absmax = (const float *)part[ABSMAX].p;
    q->codes = (const unsigned char *)part[CODES].p;
    q->map = (const float *)part[MAP].p;
    q->nested = (const float *)part[NESTED].p;
    q->heap = 0;
    to->q = q;
}

int kernels_up_weight(const struct kernels *k, struct kernel_ctx *c, const struct weight *to, const struct weight *from)
{
    struct part there[PARTS], here[PARTS];
    int i;
    if (parts_of(there, to) || parts_of(here, from)) return -1;
    for (i = 0; i < PARTS; i++)
        if (here[i].bytes && k->up_bytes(c, (void *)there[i].p, here[i].p, here[i].bytes)) return -1;
    return 0;
}

void *kernels_copy_weight(const struct kernels *k, struct kernel_ctx *c, struct weight *to, struct quantised *q,
                          const struct weight *from)
{
    struct arena a = { NULL, 0, 0, 0 };
    void *memory;
    kernels_lay_weight(to, q, from, &a);
    if (a.failed || !(memory = k->alloc(c, a.used ? a.used : 1))) return NULL;
    a.base = (unsigned char *)memory;
    a.size = a.used;
    a.used = 0;
    kernels_lay_weight(to, q, from, &a);
    if (!kernels_up_weight(k, c, to, from)) return memory;
    k->release(c, memory);
    return NULL;
}

int kernels_check(const struct kernels *k, struct kernel_ctx *c, struct lora_error *err)
{
    char why[256] = "";
    if (!k->failed || !k->failed(c, why, sizeof why)) return 0;
    fail(err, "the backend failed", "%s", k->name);
    return found(err, "%s", why);
}

/* ---- operations that read weights ---- */

size_t kernels_work_bytes(const struct kernels *k, const struct kernel_sizes *sizes)
{
    size_t most = 0, bytes;
    for (; k; k = k->below) {
        bytes = k->work_bytes ? k->work_bytes(sizes) : 0;
        if (bytes > most) most = bytes;
    }
    return most;
}

int kernels_embed(const struct kernels *k, struct kernel_ctx *c, buf *out, const struct weight *w, const ints *ids, int N)
{
    int rc = KERNEL_UNSUPPORTED;
    for (; rc && k; k = k->below) if (k->embed) rc = k->embed(c, out, w, ids, N);
    return rc;
}

int kernels_matmul(const struct kernels *k, struct kernel_ctx *c, buf *out, const buf *x, const struct weight *w,
                   const buf *bias, double scale, int accumulate, int N)
{
    int rc = KERNEL_UNSUPPORTED;
    for (; rc && k; k = k->below) if (k->matmul) rc = k->matmul(c, out, x, w, bias, scale, accumulate, N);
    return rc;
}

int kernels_matmul_dx(const struct kernels *k, struct kernel_ctx *c, buf *dx, const buf *dout, const struct weight *w,
                      double scale, int accumulate, int N)
{
    int rc = KERNEL_UNSUPPORTED;
    for (; rc && k; k = k->below) if (k->matmul_dx) rc = k->matmul_dx(c, dx, dout, w, scale, accumulate, N);
    return rc;
}

int kernels_linear(const struct kernels *k, struct kernel_ctx *c, buf *out, buf *h, const buf *x,
                   const struct weight *w, const buf *bias, const struct low_rank *ab, int accumulate, int N)
{
    int rc = 0;
    if (k->linear && !k->linear(c, out, h, x, w, bias, ab, accumulate, N)) return 0;
    if (out) rc = kernels_matmul(k, c, out, x, w, bias, 1, accumulate, N);              /* out = x W^T + bias */
    if (!rc && ab->a) rc = kernels_matmul(k, c, h, x, ab->a, NULL, ab->scale, 0, N);    /* h = scale x A^T */
    if (!rc && out) rc = kernels_matmul(k, c, out, h, ab->b, NULL, 1, 1, N);            /* out += h B^T */
    return rc;
}

int kernels_linear_dx(const struct kernels *k, struct kernel_ctx *c, buf *dx, buf *gh, const buf *dout,
                      const struct weight *w, const struct low_rank *ab, int accumulate_gh, int accumulate, int N)
{
    int rc = 0;
    if (k->linear_dx && !k->linear_dx(c, dx, gh, dout, w, ab, accumulate_gh, accumulate, N)) return 0;
    if (dx) rc = kernels_matmul_dx(k, c, dx, dout, w, 1, accumulate, N);                        /* out = x W^T */
    if (!rc) rc = kernels_matmul_dx(k, c, gh, dout, ab->b, ab->scale, accumulate_gh, N);        /* out += h B^T */
    if (!rc && dx && ab->a) rc = kernels_matmul_dx(k, c, dx, gh, ab->a, 1, 1, N);               /* h = scale x A^T */
    return rc;
}
