/* adapter_gguf.c - an adapter as llama.cpp loads it.
 *
 * Metadata, names and shapes: llama.cpp's convert_lora_to_gguf.py and src/llama-adapter.cpp; the scale
 * alpha / rank, rank being each lora_b's own: get_scale() of src/llama-adapter.h; the order of rows of q
 * and k: permute() of conversion/llama.py. */
#include "adapter_parts.h"
#include "formats/gguf.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* The alpha with which alpha / r is this module's scale. */
static double own_alpha(const struct adapted *m) { return m->scale * m->r; }

/* One alpha for the file: the first module's, so that most adapters' B stay as they are. An alpha of 0
 * would mean a scale of 1 there. */
static int choose_alpha(const struct adapter *a, float *alpha, struct lora_error *err)
{
    char module[ADAPTER_MODULE_SIZE];
    int i;
    for (i = 0; i < a->n; i++) {
        const struct adapted *m = &a->modules[i];
        double own = own_alpha(m);
        if (fabs(own) >= FLT_MIN && fabs(own) <= FLT_MAX) continue;
        fail(err, "cannot export the adapter", "%s", adapter_module_name(module, sizeof module, m->id, m->layer));
        expected(err, "a scale whose product with the rank is a number of 32 bits");
        return found(err, "%g", own);
    }
    *alpha = (float)own_alpha(&a->modules[0]);
    return 0;
}

static char *lora_name(char *name, size_t n, const struct adapted *m, int is_b)
{
    char base[ADAPTER_NAME_SIZE];
    snprintf(name, n, "%s.lora_%c", tensor_gguf_name(base, sizeof base, m->id, m->layer), is_b ? 'b' : 'a');
    return name;
}

static int add_tensors(struct gguf_writer *w, const struct adapter *a, struct lora_error *err)
{
    char name[ADAPTER_NAME_SIZE + 8];
    int i, is_b;
    for (i = 0; i < a->n; i++)
        for (is_b = 0; is_b < 2; is_b++) {
            const struct adapted *m = &a->modules[i];
            const size_t dims[2] = { (size_t)(is_b ? m->r : m->cols), (size_t)(is_b ? m->rows : m->r) };
            if (gguf_writer_add(w, lora_name(name, sizeof name, m, is_b), TYPE_F32, dims, 2, err)) return -1;
        }
    return 0;
}

/* B's rows into the order of the base's file, times what alpha / r leaves of the scale. */
static void make_b(float *out, const struct adapter *a, const struct adapted *m, float alpha, int head_rows)
{
    const struct weight order = { .head_rows = head_rows };
    double own = own_alpha(m), factor = (float)own == alpha ? 1 : own / (double)alpha;
    int row, j;
    for (row = 0; row < m->rows; row++) {
        const float *from = a->values + m->b + (size_t)row * (size_t)m->r;
        float *to = out + (size_t)weight_file_row(&order, row) * (size_t)m->r;
        for (j = 0; j < m->r; j++) to[j] = (float)(factor * (double)from[j]);
    }
}

static int put_tensors(struct gguf_writer *w, const struct adapter *a, float alpha, int head_rows,
                       struct lora_error *err)
{
    size_t most = 0;
    float *b;
    int i, bad = 0;
    for (i = 0; i < a->n; i++) {
        size_t n = (size_t)a->modules[i].rows * (size_t)a->modules[i].r;
        if (n > most) most = n;
    }
    if (!(b = new_array(most, sizeof *b, err))) return -1;
    for (i = 0; i < a->n && !bad; i++) {
        const struct adapted *m = &a->modules[i];
        make_b(b, a, m, alpha, m->id == T_WQ || m->id == T_WK ? head_rows : 0);
        bad = gguf_writer_put(w, a->values + m->a, (size_t)m->r * (size_t)m->cols * sizeof *b, err)
              || gguf_writer_put(w, b, (size_t)m->rows * (size_t)m->r * sizeof *b, err);
    }
    free(b);
    return bad ? -1 : 0;
}

int adapter_write_gguf(const struct adapter *a, const struct config *c, const char *path, struct lora_error *err)
{
    const struct family *f = config_family(c, err);
    struct gguf_writer w = { 0 };
    float alpha = 0;
    if (!f || choose_alpha(a, &alpha, err)) return -1;
    gguf_writer_string(&w, "general.architecture", f->gguf);
    gguf_writer_string(&w, "general.type", "adapter");
    gguf_writer_string(&w, "adapter.type", "lora");
    gguf_writer_f32(&w, "adapter.lora.alpha", alpha);
    if (add_tensors(&w, a, err) || gguf_writer_begin(&w, path, err)
        || put_tensors(&w, a, alpha, f->gguf_permuted ? c->HS : 0, err)) {
        gguf_writer_abandon(&w);
        return -1;
    }
    return gguf_writer_commit(&w, err);
}
