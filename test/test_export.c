/* Adapters as llama.cpp's GGUF: the writer of the format, names and shapes, and the product that llama.cpp's
 * loader makes of what was written. What llama.cpp itself says is in test/interop/llama_check.py. */
#include "../adapter.h"
#include "../formats/gguf.h"
#include "test.h"

/* ---- the format ---- */

static void check_writer(void)
{
    static const float numbers[] = { 1, -2, 3.5f, 0, 5, 6, 7, 8, 9 };
    static const size_t odd[] = { 3, 3 }, one[] = { 1 }, blocks[] = { 64, 2 }, halves[] = { 48, 2 };
    static const size_t large[] = { SIZE_MAX / 2, 9 };
    unsigned char q[4 * 34];
    struct gguf_writer w = { 0 };
    struct gguf g;
    struct lora_error err = { 0 };
    const struct gguf_tensor *t;
    char *s = NULL, *name = NULL;
    double x = 0;
    size_t i;
    for (i = 0; i < sizeof q; i++) q[i] = (unsigned char)i;

    test_begin("GGUF: written and read back");
    gguf_writer_string(&w, "a.text", "two\nlines \xc3\xa9");
    gguf_writer_f32(&w, "a.number", -0.1f);
    gguf_writer_string(&w, "a.nothing", "");
    CHECK(!gguf_writer_add(&w, "odd", TYPE_F32, odd, 2, &err) && !gguf_writer_add(&w, "one", TYPE_F32, one, 1, &err)
          && !gguf_writer_add(&w, "blocks", TYPE_Q8_0, blocks, 2, &err), "%s: %s", err.where, err.found);
    CHECK(!gguf_writer_begin(&w, in_folder("a.gguf"), &err) && w.data_start % 32 == 0, "%s", err.where);
    CHECK(!gguf_writer_put(&w, numbers, sizeof numbers, &err) && !gguf_writer_put(&w, numbers + 2, 4, &err)
          && !gguf_writer_put(&w, q, sizeof q, &err), "%s", err.where);
    CHECK(!file_exists(in_folder("a.gguf")), "there before it is whole");
    CHECK(!gguf_writer_commit(&w, &err) && !w.values.s && !w.file.path, "%s", err.found);
    CHECK(!gguf_open(&g, in_folder("a.gguf"), &err), "%s: %s, %s", err.where, err.expected, err.found);
    CHECK(g.n_values == 3 && g.n_tensors == 3 && g.map.size % 32 == 0, "%d, %d", g.n_values, g.n_tensors);
    CHECK(!gguf_get_string(&g, "a.text", &s, &err) && s && !strcmp(s, "two\nlines \xc3\xa9"), "a text");
    free(s);
    CHECK(!gguf_get_string(&g, "a.nothing", &s, &err) && s && !*s, "an empty text");
    free(s);
    CHECK(!gguf_get_number(&g, "a.number", &x, &err) && x == (double)-0.1f
          && gguf_get(&g, "a.number")->type == GGUF_F32, "%g", x);
    t = gguf_find(&g, "odd");
    CHECK(t && t->type == TYPE_F32 && t->n_dims == 2 && t->dims[0] == 3
          && !memcmp(t->data, numbers, sizeof numbers), "a matrix");
    t = gguf_find(&g, "one");
    CHECK(t && t->n_dims == 1 && t->dims[0] == 1 && !memcmp(t->data, numbers + 2, 4), "a number");
    t = gguf_find(&g, "blocks");
    CHECK(t && t->type == TYPE_Q8_0 && t->dims[0] == 64 && t->dims[1] == 2 && !memcmp(t->data, q, sizeof q), "blocks");
    gguf_close(&g);

    test_begin("GGUF: what is not whole does not appear, what the format has not is refused");
    CHECK(!gguf_writer_add(&w, "odd", TYPE_F32, odd, 2, &err) && !gguf_writer_begin(&w, in_folder("b.gguf"), &err), "begun");
    CHECK(gguf_writer_commit(&w, &err) == -1 && !strcmp(err.expected, "64 bytes of data") && !w.tensors.s,
          "%s", err.expected);
    CHECK(!gguf_writer_add(&w, "odd", TYPE_F32, odd, 2, &err) && !gguf_writer_begin(&w, in_folder("b.gguf"), &err), "begun");
    gguf_writer_abandon(&w);
    CHECK(!file_exists(in_folder("b.gguf")) && !file_exists(in_folder("b.gguf.tmp")), "a file of half a tensor");
    name = new_string("123456789012345678901234567890123456789012345678901234567890.123", &err);
    CHECK(gguf_writer_add(&w, name, TYPE_F32, one, 1, &err) == -1 && strstr(err.found, "64 bytes"), "%s", err.found);
    name[63] = 0;
    CHECK(!gguf_writer_add(&w, name, TYPE_F32, one, 1, &err), "63 bytes: %s", err.found);
    free(name);
    CHECK(gguf_writer_add(&w, "", TYPE_F32, one, 1, &err) == -1 && gguf_writer_add(&w, "t", TYPE_U8, one, 1, &err) == -1
          && gguf_writer_add(&w, "t", TYPE_Q8_0, halves, 2, &err) == -1
          && gguf_writer_add(&w, "t", TYPE_F32, one, 0, &err) == -1
          && gguf_writer_add(&w, "t", TYPE_F32, large, 2, &err) == -1, "no name, a type, half blocks, sizes");
    gguf_writer_abandon(&w);
    CHECK(!gguf_writer_begin(&w, in_folder("c.gguf"), &err) && !gguf_writer_commit(&w, &err)
          && !gguf_open(&g, in_folder("c.gguf"), &err) && !g.n_values && !g.n_tensors, "a file of nothing");
    gguf_close(&g);
    CHECK(gguf_writer_begin(&w, in_folder("nowhere/c.gguf"), &err) == -1 && err.where[0], "no directory");
    gguf_writer_abandon(&w);
}

/* ---- an adapter ---- */

static struct config shape(const char *type, int tied)
{
    struct config c = { 0 };
    strcpy(c.model_type, type);
    c.C = 16; c.V = 61; c.L = 2; c.NH = 4; c.NKV = 2; c.HS = 6; c.F = 28;
    c.tied = tied;
    c.fused = !strcmp(type, "phi3");
    return c;
}

static struct adapter *make(const struct config *c, const struct adapter_settings *s)
{
    struct lora_error err = { 0 };
    struct adapter *a = NULL;
    size_t i;
    CHECK(!adapter_new(&a, c, s, &err) && !adapter_init(a, 1, &err), "%s: %s: %s", err.what, err.where, err.found);
    for (i = 0; i < a->size; i++) a->values[i] = (float)random_normal(7, i);
    return a;
}

/* llama.cpp's name of a module: written out here, apart from the table of model.c. */
static const char *name_of(int id)
{
    switch (id) {
    case T_WQ: return "attn_q";
    case T_WK: return "attn_k";
    case T_WV: return "attn_v";
    case T_WQKV: return "attn_qkv";
    case T_WO: return "attn_output";
    case T_WGATE: return "ffn_gate";
    case T_WUP: case T_WGATE_UP: return "ffn_up";
    case T_WDOWN: return "ffn_down";
    default: return "?";
    }
}

/* Which row of the model lies at `row` of llama.cpp's file: reshape(heads, 2, half, r).swapaxes(1, 2). */
static int row_at(const struct config *c, int id, int row)
{
    int in_head = row % c->HS;
    if (strcmp(c->model_type, "llama") && strcmp(c->model_type, "mistral")) return row;
    if (id != T_WQ && id != T_WK) return row;
    return row - in_head + in_head % 2 * (c->HS / 2) + in_head / 2;
}

/* alpha / rank B' A' as llama.cpp's loader has it, against s B A; w: errors in bounds. */
static void check_module(const struct gguf *g, const struct config *c, const struct adapter *a, const struct adapted *m,
                         double alpha, int exact, struct worst *w)
{
    const float *A = a->values + m->a, *B = a->values + m->b, *ga, *gb;
    const struct gguf_tensor *ta, *tb;
    char name[80];
    int row, col, k;
    snprintf(name, sizeof name, "blk.%d.%s.weight.lora_a", m->layer, name_of(m->id));
    ta = gguf_find(g, name);
    name[strlen(name) - 1] = 'b';
    tb = gguf_find(g, name);
    CHECK(ta && tb, "no %s", name);
    if (!ta || !tb) return;
    CHECK(ta->type == TYPE_F32 && tb->type == TYPE_F32 && ta->n_dims == 2 && tb->n_dims == 2, "%s", name);
    CHECK(ta->dims[0] == (size_t)m->cols && ta->dims[1] == (size_t)m->r && tb->dims[0] == (size_t)m->r
          && tb->dims[1] == (size_t)m->rows, "%s: [%zu, %zu]", name, tb->dims[0], tb->dims[1]);
    ga = (const float *)(const void *)ta->data;     /* the writer aligns to 32 */
    gb = (const float *)(const void *)tb->data;
    for (row = 0; row < m->rows; row++) {
        const float *b = B + row_at(c, m->id, row) * m->r;
        if (exact) CHECK(!memcmp(gb + row * m->r, b, (size_t)m->r * sizeof *b), "%s, row %d: other bits", name, row);
        for (col = 0; col < m->cols; col++) {
            double want = 0, got = 0, size = 0;
            for (k = 0; k < m->r; k++) {
                want += m->scale * b[k] * A[k * m->cols + col];
                got += alpha / m->r * gb[row * m->r + k] * ga[k * m->cols + col];
                size += fabs(m->scale * b[k] * A[k * m->cols + col]);
            }
            /* alpha and each B are rounded to float once; the sums in double do not show */
            worst_add(w, fabs(got - want), 2.1 * 0x1p-24 * size, (size_t)(row * m->cols + col));
        }
    }
}

/* exact: B's own bits must be there. */
static void check_export(const char *type, const char *architecture, int tied, const struct adapter_settings *s,
                         double alpha, int exact)
{
    static const char *const texts[][2] = { { "general.architecture", NULL }, { "general.type", "adapter" },
                                            { "adapter.type", "lora" } };
    struct config c = shape(type, tied);
    struct adapter *a = make(&c, s);
    struct lora_error err = { 0 };
    struct worst w = { 0 };
    struct gguf g;
    char *value = NULL;
    double own = 0;
    int i;
    CHECK(!adapter_write_gguf(a, &c, in_folder("adapter.gguf"), &err), "%s: %s", err.what, err.where);
    CHECK(!gguf_open(&g, in_folder("adapter.gguf"), &err), "%s: %s", err.where, err.found);
    for (i = 0; i < 3; i++) {
        CHECK(!gguf_get_string(&g, texts[i][0], &value, &err) && value
              && !strcmp(value, texts[i][1] ? texts[i][1] : architecture), "%s", texts[i][0]);
        free(value);
    }
    CHECK(!gguf_get_number(&g, "adapter.lora.alpha", &own, &err) && gguf_get(&g, "adapter.lora.alpha")->type == GGUF_F32
          && fabs(own - alpha) <= 0x1p-24 * fabs(alpha), "alpha %g, not %g", own, alpha);
    CHECK(g.n_tensors == 2 * a->n && a->n == (c.fused ? 8 : 14), "%d tensors of %d modules", g.n_tensors, a->n);
    for (i = 0; i < a->n; i++) check_module(&g, &c, a, &a->modules[i], own, exact, &w);
    CHECK_WORST(w, type);
    gguf_close(&g);
    adapter_free(a);
}

static void check_adapters(void)
{
    static const char *const types[][2] = { { "llama", "llama" }, { "mistral", "llama" }, { "qwen2", "qwen2" },
                                            { "qwen3", "qwen3" }, { "phi3", "phi3" } };
    static const struct adapter_settings plain = { 4, 10, 0, 0, "all-linear", NULL, NULL, NULL },
        rslora = { 3, -10, 0, 1, "all-linear", NULL, NULL, NULL },
        patterns = { 3, 7, 0, 0, "all-linear", "o_proj=1,layers.1.mlp.down_proj=5",
                     "down_proj=0.3,layers.1.self_attn.o_proj=100", NULL },
        both = { 2, 7, 0, 1, "all-linear", "o_proj=1,layers.1.mlp.down_proj=5", "down_proj=1e-6", NULL };
    size_t i;
    char name[128];
    for (i = 0; i < sizeof types / sizeof *types; i++) {
        snprintf(name, sizeof name, "%s: the loader's product is s B A; plain, rsLoRA, patterns", types[i][0]);
        test_begin(name);
        check_export(types[i][0], types[i][1], (int)i % 2, &plain, 10, 1);
        check_export(types[i][0], types[i][1], !(i % 2), &plain, 10, 1);
        check_export(types[i][0], types[i][1], 0, &rslora, -10 * sqrt(3), 1);
        check_export(types[i][0], types[i][1], 0, &patterns, 7, 0);
        check_export(types[i][0], types[i][1], 1, &both, 7 * sqrt(2), 0);
    }
}

static void check_refusals(void)
{
    static const char o_proj[] = "model.layers.1.self_attn.o_proj";
    static const struct adapter_settings
        tiny = { 2, 4, 0, 0, "q_proj,o_proj", NULL, "layers.1.self_attn.o_proj=1e-50", NULL },
        huge = { 2, 4, 0, 0, "q_proj", NULL, "q_proj=1e40", NULL };
    struct config c = shape("llama", 0);
    struct adapter *a = make(&c, &tiny);
    struct lora_error err = { 0 };
    test_begin("an alpha that a float cannot hold, and another model, are refused by name; nothing is written");
    remove(in_folder("adapter.gguf"));
    CHECK(adapter_write_gguf(a, &c, in_folder("adapter.gguf"), &err) == -1 && !strcmp(err.where, o_proj), "%s", err.where);
    adapter_free(a);
    a = make(&c, &huge);
    CHECK(adapter_write_gguf(a, &c, in_folder("adapter.gguf"), &err) == -1 && strstr(err.found, "1e+40"), "%s", err.found);
    strcpy(c.model_type, "gpt2");
    CHECK(adapter_write_gguf(a, &c, in_folder("adapter.gguf"), &err) == -1 && strstr(err.found, "gpt2"), "%s", err.found);
    CHECK(!file_exists(in_folder("adapter.gguf")), "a file");
    adapter_free(a);
}

/* The same base as GGUF and as a directory: adapters are in the directory's order, whatever the base. */
static void check_bases(void)
{
    static const char name[] = "an adapter over a GGUF file and over the same model's directory: the same bytes";
    static const struct adapter_settings s = { 4, 10, 0, 0, "all-linear", NULL, NULL, NULL };
    static const char *const bases[] = { "tiny-f32-hf", "tiny-f32.gguf" };
    struct lora_error err = { 0 };
    struct file_map f[2];
    char path[1200];
    int i;
    if (!shared_dir()) {
        test_skip(name, "no shared folder");
        return;
    }
    test_begin(name);
    for (i = 0; i < 2; i++) {
        struct model *m = NULL;
        struct adapter *a = NULL;
        snprintf(path, sizeof path, "%s/goldens/gguf/%s", shared_dir(), bases[i]);
        CHECK(!model_open(&m, path, &err), "%s: %s", err.what, err.where);
        if (m) a = make(&m->config, &s);
        CHECK(a && !adapter_write_gguf(a, &m->config, in_folder(bases[i]), &err), "%s", err.where);
        CHECK(!file_open(&f[i], in_folder(bases[i]), &err), "%s", err.where);
        adapter_free(a);
        model_close(m);
    }
    CHECK(f[0].size == f[1].size && f[0].size > 1000 && !memcmp(f[0].data, f[1].data, f[0].size), "other bytes");
    for (i = 0; i < 2; i++) file_close(&f[i]);
}

int main(void)
{
    if (folder_make()) return 1;
    check_writer();
    check_adapters();
    check_refusals();
    check_bases();
    remove_tree(folder, NULL);
    return test_end();
}
