/* test_cuda_model.c - the whole model over the emulated CUDA kernels: loss and gradients of every family's tiny model, in f32
 * and NF4, against ref64, and everything that must be equal. */
#include "emulated.h"
#include "model_cases.h"
#include "../nf4.h"

/* The matrices of the layers as `how` says. */
static void quantise(struct tiny *t, const struct quantise *how)
{
    struct lora_error err = { "", "", "", "", "" };
    int layer, id;
    for (layer = 0; layer < t->model.config.L; layer++)
        for (id = 0; id < T_COUNT; id++) {
            struct weight *w = &t->model.weights[(size_t)layer * T_COUNT + (size_t)id], made;
            if (!w->data || !tensor_layered(id) || tensor_specs[id].cols == '1') continue;
            CHECK(!weight_quantise(&made, how, w->rows, w->cols, weight_row, w, 1, "w", &err), "%s: %s", err.what, err.found);
            *w = made;
        }
}

static void free_quantised(struct tiny *t)
{
    int i;
    for (i = 0; i < t->model.config.L * T_COUNT; i++) if (t->model.weights[i].q) weight_free(&t->model.weights[i]);
}

static void test_family(const char *backend, int variant)
{
    static const struct { const char *name; struct quantise how; } kinds[] = {
        { "f32", { 0, 0, 0 } }, { "NF4", { TYPE_NF4, 64, 0 } }, { "NF4, double", { TYPE_NF4, 64, 1 } }
    };
    struct config c = variant_config(variant);
    struct rows r = make_rows(c.V);
    struct adapter *a = make_adapter(&c, 3, 0, "all-linear");
    size_t i;
    for (i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct tiny t;
        char name[96];
        snprintf(name, sizeof name, "emulated CUDA against ref64: %s, %s", variant_names[variant], kinds[i].name);
        test_begin(name);
        tiny_open(&t, &c, 11);
        if (kinds[i].how.type) quantise(&t, &kinds[i].how);
        check_against_ref64(backend, &t.model, a, &r);
        free_quantised(&t);
        tiny_close(&t);
    }
    adapter_free(a);
}

int main(int argc, char **argv)
{
    char path[1024];
    const char *backend = emulated_path(path, argc ? argv[0] : "", "cuda_emulated.so");
    int i, step = test_emulated() ? 4 : 1;      /* an emulator over an emulator: fewer */
    if (!backend) return test_end();
    test_begin("the table is found and whole");
    if (!emulated_table(backend)) return test_end();
    for (i = 0; i < VARIANTS; i += step) test_family(backend, i);
    if (step == 1) test_equal(backend, 0);
    test_equal(backend, 1);
    test_prefix(backend);
    test_sharing(backend);
    test_adapters(backend);
    test_cache(backend);
    return test_end();
}
