/* kernels.c - which table of kernels, and what is made of its products: see kernels.h. */
#include "kernels.h"

#include <stdio.h>
#include <dlfcn.h>
#include <string.h>

const struct kernels *const kernels_all[] = { &kernels_ref64, &kernels_ref, &kernels_avx2, &kernels_avx512, NULL };

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
}

#define NAME_LETTERS "abcdefghijklmnopqrstuvwxyz0123456789_-"

/* Is this a table that can be called here? `path` is where it was found. */
static int check_table(const struct kernels *k, const char *path, struct lora_error *err)
{
    char why[256] = "";
    if (!k || k->abi != KERNELS_ABI || k->bytes != (int)sizeof *k) {
        fail(err, "not a table of kernels for this version", "%s", path);
        expected(err, "abi %d of %zu bytes", KERNELS_ABI, sizeof *k);
        if (k) found(err, "abi %d of %d bytes", k->abi, k->bytes);
        else found(err, "NULL");
        return hint(err, "it has to be compiled with this version's kernels.h");
    }
    if (k->elem != sizeof(float) || !k->name || !*k->name || k->name[strspn(k->name, NAME_LETTERS)] || k->own_memory) {
        fail(err, "not a table of kernels", "%s", path);
        expected(err, "elements of 4 bytes in the host's memory, and a name of a-z 0-9 _ -");
        return found(err, "elements of %d bytes, own_memory %d, the name \"%s\"", k->elem, k->own_memory, k->name ? k->name : "");
    }
    if (k->usable && !k->usable(why, sizeof why)) {
        fail(err, "cannot use the backend", "%s", path);
        return found(err, "%s", why);
    }
    return 0;
}

static const struct kernels *load(const char *path, struct lora_error *err)
{
    union { void *found; const struct kernels *(*call)(void); } symbol;     /* a function's address as POSIX gives it */
    const struct kernels *k = NULL;
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!object || !(symbol.found = dlsym(object, "lora_kernels"))) {
        fail(err, "cannot use the backend", "%s", path);
        expected(err, "a shared object that exports lora_kernels()");
        found(err, "%s", dlerror());
    } else {
        k = symbol.call();
        if (!check_table(k, path, err)) return k;
    }
    if (object) dlclose(object);
    return NULL;
}

const struct kernels *kernels_find(const char *name, struct lora_error *err)
{
    struct text names = { NULL, 0, 0, 0 };
    char why[256] = "";
    int i;
    if (!strcmp(name, "auto")) return best();
    if (strchr(name, '/')) return load(name, err);
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
    if (compute != COMPUTE_BF16 || (k->has_bf16 && k->has_bf16(why, sizeof why))) return 0;
    other = find_bf16(why, sizeof why);
    fail(err, "cannot multiply in bf16", "backend %s", k->name);
    if (other) found(err, "f32 alone; the backend %s has bf16", other->name);
    else found(err, "f32 alone: %s", why);
    return hint(err, "--compute f32 is there, and the default");
}

/* The functions of a table, one by one, because C has no way to walk the members of a struct. */
void kernels_complete(struct kernels *out, const struct kernels *table)
{
    struct kernels below = kernels_ref64;
    const struct kernels *from = &below;
    *out = *table;
    if (table->own_memory || table == &kernels_ref) return;
    if (table->elem == sizeof(float)) {
        if (!out->below) out->below = best();
        kernels_complete(&below, out->below);
    }
    if (!out->linear && !table->matmul) out->linear = from->linear;
    if (!out->linear_dx && !table->matmul_dx) out->linear_dx = from->linear_dx;
#define FILL(entry) if (!out->entry) out->entry = from->entry
    FILL(usable); FILL(work_bytes); FILL(open); FILL(close);
    FILL(alloc); FILL(release); FILL(up); FILL(up64); FILL(up_ints); FILL(up_bytes);
    FILL(down); FILL(down64); FILL(down_ints); FILL(down_bytes);
    FILL(zero); FILL(copy); FILL(gather); FILL(scatter_add); FILL(add);
    FILL(embed); FILL(embed_backward);
    FILL(matmul); FILL(matmul_dx); FILL(matmul_dw); FILL(bias_backward);
    FILL(rmsnorm); FILL(rmsnorm_backward); FILL(rope); FILL(attention); FILL(attention_backward);
    FILL(swiglu); FILL(swiglu_backward); FILL(dropout); FILL(cross_entropy);
    FILL(adamw); FILL(adamw8bit); FILL(sum_squares); FILL(not_finite);
#undef FILL
}

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
    if (k->linear && c->compute == COMPUTE_F32 && !k->linear(c, out, h, x, w, bias, ab, accumulate, N)) return 0;
    if (out) rc = kernels_matmul(k, c, out, x, w, bias, 1, accumulate, N);              /* out = x W^T + bias */
    if (!rc && ab->a) rc = kernels_matmul(k, c, h, x, ab->a, NULL, ab->scale, 0, N);    /* h = scale x A^T */
    if (!rc && out) rc = kernels_matmul(k, c, out, h, ab->b, NULL, 1, 1, N);            /* out += h B^T */
    return rc;
}

int kernels_linear_dx(const struct kernels *k, struct kernel_ctx *c, buf *dx, buf *gh, const buf *dout,
                      const struct weight *w, const struct low_rank *ab, int accumulate_gh, int accumulate, int N)
{
    int rc = 0;
    if (k->linear_dx && c->compute == COMPUTE_F32 && !k->linear_dx(c, dx, gh, dout, w, ab, accumulate_gh, accumulate, N))
        return 0;
    if (dx) rc = kernels_matmul_dx(k, c, dx, dout, w, 1, accumulate, N);                        /* out = x W^T */
    if (!rc) rc = kernels_matmul_dx(k, c, gh, dout, ab->b, ab->scale, accumulate_gh, N);        /* out += h B^T */
    if (!rc && dx && ab->a) rc = kernels_matmul_dx(k, c, dx, gh, ab->a, 1, 1, N);               /* h = scale x A^T */
    return rc;
}
