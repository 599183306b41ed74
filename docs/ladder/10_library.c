/* 10 - The library's own kernel, over the same codes: the table of kernels.h that `--backend auto` takes.
 *
 * On AVX2 it is rung 9 (vectors/gemm_vec.c: tile(), pack_transposed(), columns(), product_block()), and besides:
 * codes are decoded and panels turned by vector instructions; x is packed in blocks of rows and terms, so
 * that the scratch has an end; few panels are cut into several tasks by rows, so that no thread waits
 * long for the last; dX = dY W and dW = dY^T x are the same product, read through other strides; and
 * a few rows, as in generation, go without panels. */
#include "ladder.h"

#include <math.h>

int library_open(struct library *l, const struct kernel_sizes *sizes, struct lora_error *err)
{
    const struct kernels *best = kernels_find("auto", err);
    if (!best) return -1;
    kernels_complete(&l->table, best);
    l->context.threads = sizes->threads;
    l->context.work_bytes = kernels_work_bytes(&l->table, sizes);
    if (l->table.open && l->table.open(&l->context)) return fail(err, "cannot open the backend", "%s", best->name);
    if (!l->context.work_bytes) return 0;
    l->context.work = l->table.alloc(&l->context, l->context.work_bytes);
    return l->context.work ? 0 : fail_memory(err, "the library's kernel", l->context.work_bytes);
}

void library_close(struct library *l)
{
    if (l->context.work) l->table.release(&l->context, l->context.work);
    if (l->table.close) l->table.close(&l->context);
}

void rung_library(const struct product *p)
{
    struct library *l = p->library;
    l->table.matmul(&l->context, (buf *)p->out, (const buf *)p->x, p->nf4, NULL, 1, 0, p->N);
}

/* The last rung of attention: one segment without a prefix, by as many threads as the rung has. */
void rung_attention(const struct attention *a)
{
    const struct segment all = { 0, a->N, 0, a->N, -1, 0, -1, 0 };
    struct library *l = a->library;
    l->context.threads = a->threads;
    l->table.attention(&l->context, (buf *)a->out, (buf *)a->lse, (const buf *)a->q, (const buf *)a->k, (const buf *)a->v,
                       (const ints *)&all, 1, a->NH, a->NKV, a->HS, 1 / sqrt((double)a->HS), 0);
}
