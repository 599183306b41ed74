/* Adapters: which modules are adapted, PEFT's directory written and read, and what is refused. */
#include "../adapter.h"
#include "../formats/safetensors.h"
#include "test.h"

#include <unistd.h>

static struct config tiny(void)
{
    struct config c = { 0 };
    strcpy(c.model_type, "llama");
    c.C = 16; c.V = 61; c.L = 2; c.NH = 4; c.NKV = 2; c.HS = 8; c.F = 28;
    c.tied = 1;
    return c;
}

static const struct adapter_settings plain = { 4, 8, 0, 0, "all-linear", NULL, NULL, NULL };

static void fill(struct adapter *a, uint64_t seed)
{
    struct lora_error err;
    size_t i;
    adapter_init(a, seed, &err);
    for (i = 0; i < a->size; i++) a->values[i] = (float)random_normal(seed, i);
}

static struct adapter *make(const struct adapter_settings *s)
{
    struct config c = tiny();
    struct lora_error err = { 0 };
    struct adapter *a = NULL;
    CHECK(!adapter_new(&a, &c, s, &err), "%s: %s: %s", err.what, err.where, err.found);
    return a;
}

/* ---- which modules ---- */

static void check_table(void)
{
    struct adapter *a;
    char name[200];
    size_t end = 0;
    int i;
    test_begin("all-linear is every linear of every layer, in the model's order, without gaps");
    a = make(&plain);
    CHECK(a->n == 14, "%d modules", a->n);
    for (i = 0; i < a->n; i++) {
        const struct adapted *m = &a->modules[i];
        CHECK(m->a == end && m->b == end + (size_t)(4 * m->cols), "module %d", i);
        CHECK(m->r == 4 && m->alpha == 8 && m->scale == 2, "module %d", i);
        CHECK(i == 0 || m->layer > m[-1].layer || (m->layer == m[-1].layer && m->id > m[-1].id), "order");
        end = m->b + (size_t)(4 * m->rows);
    }
    CHECK(a->size == end, "%zu, not %zu", a->size, end);
    CHECK(!strcmp(adapter_tensor_name(name, sizeof name, &a->modules[0], 0),
                  "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"), "%s", name);
    CHECK(!strcmp(adapter_tensor_name(name, sizeof name, &a->modules[13], 1),
                  "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"), "%s", name);
    CHECK(adapter_find(a, T_WK, 0)->rows == 16 && adapter_find(a, T_WK, 0)->cols == 16 && adapter_find(a, T_WQ, 0)->rows == 32
          && adapter_find(a, T_WDOWN, 1)->cols == 28, "shapes");
    adapter_free(a);
}

static int count(const char *targets, const char *layers)
{
    struct adapter_settings s = plain;
    struct config c = tiny();
    struct adapter *a = NULL;
    struct lora_error err = { 0 };
    int n = -1;
    s.target_modules = targets;
    s.layers = layers;
    if (!adapter_new(&a, &c, &s, &err)) n = a->n;
    else CHECK(err.what[0], "an error without words");
    adapter_free(a);
    return n;
}

static void check_targets(void)
{
    static const struct { const char *targets, *layers; int n; } cases[] = {
        { "q_proj,v_proj", NULL, 4 }, { "q_proj", "1", 1 }, { "self_attn.q_proj", NULL, 2 },
        { "model.layers.0.mlp.up_proj", NULL, 1 }, { "q_proj,model.layers.0.mlp.up_proj", NULL, 3 },
        { "all-linear", "0-1", 14 }, { "all-linear", "1,0", 14 }, { "all-linear", "0", 7 },
        { "/.*layers\\.1\\..*\\.(k_proj|gate_proj)/", NULL, 2 }, { "/.*\\.q_proj/", NULL, 2 },
        { "/.*layers\\.\\d+\\.self_attn\\.[qv]_proj/", NULL, 4 }, { "/.*(?:up|down)_proj/", NULL, 4 },
        { "/model.*q_proj|.*nothing/", NULL, 2 }, { "/.*self_attn\\.[^qk]_proj/", NULL, 4 },
        { "/.*\\.[\\w]+_proj/", NULL, 14 },
        /* counted and lazy: as many as Python's re.fullmatch() */
        { "/.*?q_proj/", NULL, 2 }, { "/model.*?(?:layers)??.*?o_proj/", NULL, 2 }, { "/.+?\\.[a-z]+?_proj/", NULL, 14 },
        { "/.*\\.\\d{1,2}\\..*\\.[qv]_proj/", NULL, 4 }, { "/model\\.layers\\.\\d{1}\\.mlp\\.up_proj/", NULL, 2 },
        { "/model\\.layers\\.\\d{2}\\.mlp\\.up_proj/", NULL, -1 }, { "/model\\.layers\\.\\d{2,}\\.mlp\\.up_proj/", NULL, -1 },
        { "/.*\\.\\w{6}/", NULL, 8 }, { "/.*\\.\\w{6,7}/", NULL, 10 }, { "/.*\\.\\w{,7}/", NULL, 10 }, { "/.*\\.\\w{8,}/", NULL, 4 },
        { "/(?:\\w+?\\.){4}\\w{9}?/", NULL, 4 }, { "/(?:\\w+\\.){2,4}?[kv]_proj/", NULL, 4 }, { "/.*\\.q\\+*_proj/", NULL, 2 },
        { "/[*+?{]{0}.*q_proj/", NULL, 2 }, { "/.*q_proj[{}]?/", NULL, 2 }, { "/.*q_proj(?:a{2}|b{3})*/", NULL, 2 },
        /* not the whole name; names of nothing; what is not supported or not POSIX */
        { "/q_proj/", NULL, -1 }, { "proj", NULL, -1 }, { "_proj", NULL, -1 }, { "q_proj,nothing", NULL, -1 },
        { "", NULL, -1 }, { "q_proj,", NULL, -1 }, { "lm_head", NULL, -1 }, { "q_proj,embed_tokens", NULL, -1 },
        { "/(?=q).*/", NULL, -1 }, { "/.*\\bq_proj/", NULL, -1 },
        { "/.*{2}/", NULL, -1 }, { "/(.*q_proj/", NULL, -1 }, { "/*q_proj/", NULL, -1 }, { "/.*[q/", NULL, -1 },
        /* no expressions in Python, or possessive, or braces that Python reads as themselves */
        { "/.*??q_proj/", NULL, -1 }, { "/.*?*q_proj/", NULL, -1 }, { "/.*?{2}q_proj/", NULL, -1 }, { "/.?{2}.*q_proj/", NULL, -1 },
        { "/(.*q_proj)++/", NULL, -1 }, { "/.{3,2}.*/", NULL, -1 }, { "/{2}.*/", NULL, -1 }, { "/^*.*q_proj/", NULL, -1 },
        { "/(|{2}).*q_proj/", NULL, -1 }, { "/.*q_proj{,}/", NULL, -1 }, { "/.*q_proj{x}?/", NULL, -1 }, { "/.*q_proj}*/", NULL, -1 },
        { "/.*(a?){0,99}q_proj/", NULL, 2 }, { "/.*(a?a?a?){0,99}q_proj/", NULL, -1 },    /* much memory */
        { "q_proj", "2", -1 }, { "q_proj", "1-0", -1 }, { "q_proj", "x", -1 }, { "q_proj", "-1", -1 },
    };
    size_t i;
    test_begin("target modules and layers");
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        int n = count(cases[i].targets, cases[i].layers);
        CHECK(n == cases[i].n, "%s: %d modules, not %d", cases[i].targets, n, cases[i].n);
    }
}

static void check_patterns(void)
{
    struct adapter_settings s = plain;
    struct config c = tiny();
    struct lora_error err = { 0 };
    struct adapter *a;
    test_begin("rank and alpha patterns");
    s.rank_pattern = "q_proj=2,layers.1.mlp.down_proj=6";
    s.alpha_pattern = "{\"layers.0.self_attn.o_proj\": 16, \"v_proj\": 3}";
    a = make(&s);
    CHECK(adapter_find(a, T_WQ, 0)->r == 2 && adapter_find(a, T_WQ, 0)->scale == 4, "the scale is of the module's own r");
    CHECK(adapter_find(a, T_WDOWN, 0)->r == 4 && adapter_find(a, T_WDOWN, 1)->r == 6, "one layer's");
    CHECK(adapter_find(a, T_WO, 0)->alpha == 16 && adapter_find(a, T_WO, 1)->alpha == 8 && adapter_find(a, T_WV, 1)->alpha == 3, "alpha");
    adapter_free(a);
    s.use_rslora = 1;
    a = make(&s);
    CHECK(adapter_find(a, T_WQ, 0)->scale == 8 / sqrt(2.0) && adapter_find(a, T_WK, 0)->scale == 4, "rsLoRA");
    adapter_free(a);
    s.rank_pattern = "q_proj=0";
    CHECK(adapter_new(&a, &c, &s, &err), "rank 0");
    s.rank_pattern = "q_proj=1.5";
    CHECK(adapter_new(&a, &c, &s, &err), "rank 1.5");
    s.rank_pattern = "q_proj";
    CHECK(adapter_new(&a, &c, &s, &err), "no number");
    s.rank_pattern = NULL;
    s.alpha_pattern = "v_proj=0";
    CHECK(adapter_new(&a, &c, &s, &err), "alpha 0");

    test_begin("a pattern that matches no adapted module is refused by name");
    s.target_modules = "q_proj,v_proj";
    s.alpha_pattern = NULL;
    s.rank_pattern = "q_proj=2,k_proj=3";
    CHECK(adapter_new(&a, &c, &s, &err) && !strcmp(err.where, "rank-pattern: k_proj") && strstr(err.expected, "v_proj"),
          "%s, %s", err.where, err.expected);
    s.rank_pattern = NULL;
    s.alpha_pattern = "{\"v_proj\": 3, \"layers.2.self_attn.q_proj\": 16}";
    CHECK(adapter_new(&a, &c, &s, &err) && !strcmp(err.where, "alpha-pattern: layers.2.self_attn.q_proj"), "%s", err.where);
    s.layers = "1";
    s.alpha_pattern = "layers.0.self_attn.q_proj=16";
    CHECK(adapter_new(&a, &c, &s, &err) == -1, "of a layer that is left out");
    s.alpha_pattern = ".*self_attn.*=16,q_proj=3";
    CHECK(!adapter_new(&a, &c, &s, &err), "%s", err.where);
    CHECK(adapter_find(a, T_WQ, 1)->alpha == 16, "the first that matches");
    adapter_free(a);
}

static void check_init(void)
{
    struct adapter *a = make(&plain), *b = make(&plain);
    struct lora_error err = { 0 };
    struct worst w = { 0 };
    int i, j;
    test_begin("a new adapter: A uniform in 1/sqrt(in), each its own stream, B zero");
    CHECK(!adapter_init(a, 3, &err) && !adapter_init(b, 3, &err), "%s", err.what);
    CHECK(!memcmp(a->values, b->values, a->size * sizeof(float)), "the same seed");
    CHECK(adapter_is_zero(a), "B is not zero");
    for (i = 0; i < a->n; i++) {
        const struct adapted *m = &a->modules[i];
        double bound = 1 / sqrt(m->cols), sum = 0, squares = 0;
        int n = m->r * m->cols;
        for (j = 0; j < n; j++) {
            double x = a->values[m->a + (size_t)j];
            CHECK(fabs(x) <= bound, "%g beyond %g", x, bound);
            sum += x;
            squares += x * x;
        }
        /* mean 0 with deviation bound/sqrt(3n); mean square bound^2/3 with deviation bound^2 sqrt(4/45n) */
        worst_add(&w, fabs(sum / n), 4 * bound / sqrt(3.0 * n), (size_t)i);
        worst_add(&w, fabs(squares / n - bound * bound / 3), 4 * bound * bound * sqrt(4 / (45.0 * n)), (size_t)i);
        for (j = 0; j < i; j++)
            CHECK(memcmp(a->values + m->a, a->values + a->modules[j].a, 64), "A of %d is A of %d", i, j);
    }
    CHECK_WORST(w, "mean and variance of A");
    adapter_init(b, 4, &err);
    CHECK(memcmp(a->values, b->values, 64), "another seed");
    b->values[b->modules[5].b + 1] = 1;
    CHECK(!adapter_is_zero(b), "a B that is not zero");
    adapter_free(a);
    adapter_free(b);
}

/* ---- the directory ---- */

static void check_round_trip(void)
{
    static const struct adapter_settings cases[] = {
        { 4, 8, 0, 0, "all-linear", NULL, NULL, NULL },
        { 3, 16, 0.05, 1, "q_proj,v_proj", NULL, NULL, NULL },
        { 4, 8, 0, 0, "all-linear", "q_proj=2,layers.1.mlp.down_proj=6", "layers.0.self_attn.o_proj=16,v_proj=3", NULL },
        { 2, 1.5, 0, 0, "q_proj,up_proj", NULL, NULL, "1" },
        { 2, 8, 0, 0, "/.*layers\\.(0.*q|1.*up)_proj/", NULL, NULL, NULL },
        { 2, 8, 0, 0, "q_proj", "q_proj=5", "q_proj=7", NULL },
    };
    struct config c = tiny();
    size_t i;
    test_begin("written and read: the same adapter");
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct adapter *a = make(&cases[i]), *b = NULL;
        struct lora_error err = { 0 };
        int j;
        fill(a, i);
        CHECK(!adapter_write(a, a->values, folder, "base \"x\"", &err), "%s: %s", err.what, err.where);
        CHECK(!adapter_read(&b, folder, &c, &err), "%s: %s: %s", err.what, err.where, err.found);
        if (!b) continue;
        CHECK(a->n == b->n && a->size == b->size && a->dropout == b->dropout && a->use_rslora == b->use_rslora,
              "case %zu", i);
        for (j = 0; j < a->n && j < b->n; j++) {
            const struct adapted *x = &a->modules[j], *y = &b->modules[j];
            CHECK(x->id == y->id && x->layer == y->layer && x->r == y->r && x->alpha == y->alpha && x->scale == y->scale
                  && x->rows == y->rows && x->cols == y->cols && x->a == y->a && x->b == y->b, "case %zu, module %d", i, j);
        }
        CHECK(a->size == b->size && !memcmp(a->values, b->values, a->size * sizeof(float)), "case %zu: values", i);
        adapter_free(a);
        adapter_free(b);
    }
}

static int holds(const char *path, const char *text)
{
    struct file_map f;
    struct lora_error err;
    char *s;
    int yes;
    if (file_open(&f, path, &err)) return 0;
    s = new_string_n((const char *)f.data, f.size, &err);
    yes = s && strstr(s, text) != NULL;
    free(s);
    file_close(&f);
    return yes;
}

static void check_keys(void)
{
    struct adapter_settings s = plain;
    struct lora_error err = { 0 };
    struct adapter *a = make(&s);
    const char *path = in_folder("adapter_config.json");
    test_begin("adapter_config.json has the smallest set of keys");
    fill(a, 1);
    CHECK(!adapter_write(a, a->values, folder, "base", &err), "%s", err.what);
    CHECK(holds(path, "[\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \"up_proj\", \"down_proj\"]"), "targets");
    CHECK(!holds(path, "pattern") && !holds(path, "rslora") && !holds(path, "layers_to"), "keys at their default");
    adapter_free(a);
    s.layers = "1";
    s.rank_pattern = "q_proj=2";
    a = make(&s);
    fill(a, 1);
    CHECK(!adapter_write(a, a->values, folder, "base", &err), "%s", err.what);
    CHECK(holds(path, "\"layers_to_transform\": [1]") && holds(path, "\"rank_pattern\": {\"q_proj\": 2}"), "chosen");
    adapter_free(a);
}

static int read_with(const char *config, struct lora_error *err)
{
    struct config c = tiny();
    struct adapter *a = NULL;
    int bad;
    memset(err, 0, sizeof *err);
    file_write(in_folder("adapter_config.json"), config, strlen(config), err);
    bad = adapter_read(&a, folder, &c, err);
    adapter_free(a);
    return bad;
}

#define ALL_BY_NAME "\"target_modules\": [\"q_proj\",\"k_proj\",\"v_proj\",\"o_proj\",\"gate_proj\",\"up_proj\",\"mlp.down_proj\",\"other\"]"

/* Settings beside what the tensors in the directory (r 4, all linears) need. */
static void check_settings(void)
{
    static const char *const good[] = {
        "\"use_dora\": false", "\"use_dora\": null", "\"bias\": \"none\"", "\"modules_to_save\": []", "\"loftq_config\": {}",
        "\"init_lora_weights\": \"gaussian\"", "\"init_lora_weights\": false", "\"init_lora_weights\": \"orthogonal\"",
        "\"init_lora_weights\": \"mica\"", "\"init_lora_weights\": \"eva\", \"eva_config\": {\"rho\": 2.0}",
        "\"loftq_config\": {\"loftq_bits\": 4}", "\"bias\": \"all\"", "\"bias\": \"lora_only\"", "\"ensure_weight_tying\": true", "\"a_new_setting\": null",
        "\"a_new_setting\": false", "\"a_new_setting\": {}", "\"megatron_core\": \"megatron.core\"",
        "\"target_modules\": null", "\"target_modules\": \"all-linear\"", "\"target_modules\": \"(?P<odd>.*)\"",
        ALL_BY_NAME,
        ALL_BY_NAME ", \"layers_to_transform\": [0, 1]",
    };
    static const struct { const char *setting, *named; } bad[] = {
        { "\"use_dora\": true", "use_dora" }, { "\"lora_bias\": true", "lora_bias" },
        { "\"modules_to_save\": [\"lm_head\"]", "modules_to_save" }, { "\"fan_in_fan_out\": true", "fan_in_fan_out" },
        { "\"layer_replication\": [[0, 1]]", "layer_replication" }, { "\"init_lora_weights\": \"pissa\"", "init_lora_weights" },
        { "\"init_lora_weights\": \"loftq\"", "init_lora_weights" },
        { "\"init_lora_weights\": \"olora\"", "init_lora_weights" }, { "\"init_lora_weights\": \"corda\"", "init_lora_weights" },
        { "\"init_lora_weights\": \"lora_ga\"", "init_lora_weights" }, { "\"init_lora_weights\": \"pissa_niter_16\"", "init_lora_weights" }, { "\"trainable_token_indices\": [3]", "trainable_token" },
        { "\"alora_invocation_tokens\": [1]", "alora_invocation_tokens" }, { "\"a_new_setting\": true", "a_new_setting" },
        { "\"a_new_setting\": 3", "a_new_setting" }, { "\"target_parameters\": [\"x\"]", "target_parameters" },
        { "\"task_type\": \"SEQ_CLS\"", "task_type" }, { "\"target_modules\": [\"q_proj\"]", "k_proj" },
        { "\"target_modules\": [\"lm_head\"]", "lm_head" }, { "\"target_modules\": 3", "target_modules" },
        { ALL_BY_NAME ", \"layers_to_transform\": 0", "layers.1" },
        { "\"rank_pattern\": {\"q_proj\": 3}", "q_proj.lora_A" }, { "\"rank_pattern\": {\"q_proj\": \"3\"}", "rank_pattern" },
        { "\"alpha_pattern\": {\"q_proj\": 0}", "q_proj" }, { "\"lora_dropout\": 1", "lora_dropout" },
        { "\"use_rslora\": \"yes\"", "use_rslora" }, { "\"rank_pattern\": {\"(?=q)\": 3}", "(?=q)" },
    };
    struct adapter *a = make(&plain);
    struct lora_error err = { 0 };
    char config[1000];
    size_t i;
    test_begin("settings that change nothing are taken, others are refused by name");
    fill(a, 2);
    CHECK(!adapter_write(a, a->values, folder, NULL, &err), "%s", err.what);
    for (i = 0; i < sizeof good / sizeof *good; i++) {
        snprintf(config, sizeof config, "{\"peft_type\": \"LORA\", \"r\": 4, %s}", good[i]);
        CHECK(!read_with(config, &err), "%s: %s: %s: %s", good[i], err.what, err.where, err.found);
    }
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(config, sizeof config, "{\"peft_type\": \"LORA\", \"r\": 4, %s}", bad[i].setting);
        CHECK(read_with(config, &err), "%s was taken", bad[i].setting);
        CHECK(strstr(err.where, bad[i].named) || strstr(err.found, bad[i].named), "%s: %s: %s, %s", bad[i].setting,
              err.what, err.where, err.found);
    }
    CHECK(read_with("{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 0}", &err) && strstr(err.what, "alpha"), "alpha 0");
    CHECK(read_with("{\"peft_type\": \"IA3\", \"r\": 4}", &err) && strstr(err.where, "peft_type"), "IA3");
    CHECK(read_with("{\"r\": 4}", &err) && strstr(err.where, "peft_type"), "no type");
    CHECK(read_with("[]", &err), "not an object");
    CHECK(read_with("{\"peft_type\": \"LORA\"}", &err), "r 8 by default, the tensors have 4");
    adapter_free(a);
}

/* The tensors of `a` in some type, with the i-th left out, and perhaps one more of shape [4,16]. */
static void write_tensors(const struct adapter *a, int type, int without, const char *more)
{
    struct st_writer w;
    struct lora_error err = { 0 };
    char name[200];
    int i, pass, bytes = type == TYPE_F32 ? 4 : 2;
    memset(&w, 0, sizeof w);
    for (pass = 0; pass < 2; pass++) {
        for (i = 0; i < 2 * a->n; i++) {
            const struct adapted *m = &a->modules[i / 2];
            size_t dims[2], j;
            dims[0] = (size_t)(i % 2 ? m->rows : m->r);
            dims[1] = (size_t)(i % 2 ? m->r : m->cols);
            if (i == without) continue;
            if (!pass) st_writer_add(&w, adapter_tensor_name(name, sizeof name, m, i % 2), type, dims, 2, &err);
            for (j = 0; pass && j < dims[0] * dims[1]; j++) {
                float x = a->values[((i % 2 ? m->b : m->a) + j) % a->size];      /* check_tensors() changes shapes */
                uint16_t h = type == TYPE_F16 ? f32_to_f16(x) : f32_to_bf16(x);
                st_writer_put(&w, type == TYPE_F32 ? (void *)&x : (void *)&h, (size_t)bytes, &err);
            }
        }
        if (more) {
            size_t dims[2] = { 4, 16 };
            static const char zeros[256];
            if (!pass) st_writer_add(&w, more, type, dims, 2, &err);
            else st_writer_put(&w, zeros, (size_t)(64 * bytes), &err);
        }
        if (!pass) st_writer_begin(&w, in_folder("adapter_model.safetensors"), &err);
    }
    CHECK(!st_writer_commit(&w, &err), "%s: %s", err.what, err.where);
}

/* However the settings name modules: one of which tensors are missing is not left out in silence. */
static void check_missing(void)
{
    static const struct { const char *setting; int refused; } cases[] = {
        { ALL_BY_NAME, 1 }, { "\"target_modules\": \"all-linear\"", 1 },
        { "\"target_modules\": \".*\\\\.(self_attn|mlp)\\\\..*_proj\"", 1 },
        { "\"target_modules\": \"all-linear\", \"exclude_modules\": [\"k_proj\"]", 1 },
        { "\"target_modules\": \"all-linear\", \"layers_to_transform\": [0]", 0 },
        { "\"target_modules\": \"all-linear\", \"exclude_modules\": [\"layers.1.mlp.down_proj\"]", 0 },
        { "\"target_modules\": \"model.layers.0.*\"", 0 },
        { "\"target_modules\": null", 0 }, { "\"target_modules\": \"(?P<odd>.*)\"", 0 },
    };
    struct adapter *a = make(&plain);
    struct lora_error err = { 0 };
    char config[1000];
    size_t i;
    int n = a->n;
    test_begin("a module without its tensors is refused, if the settings name it");
    fill(a, 2);
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        int bad, excluded = strstr(cases[i].setting, "k_proj\"]") != NULL;
        a->n = strstr(cases[i].setting, "transform") ? n / 2 : n - 1;        /* a layer, or one module */
        write_tensors(a, TYPE_F32, -1, NULL);
        snprintf(config, sizeof config, "{\"peft_type\": \"LORA\", \"r\": 4, %s}", cases[i].setting);
        bad = read_with(config, &err);
        CHECK(!bad == !cases[i].refused, "%s: %s: %s", cases[i].setting, err.what, err.where);
        CHECK(!bad || strstr(err.where, excluded ? "k_proj" : "down_proj"), "%s: %s", cases[i].setting, err.where);
        a->n = n;
    }
    adapter_free(a);
}

#define BASE "base_model.model.model."

static void check_tensors(void)
{
    static const struct { const char *name, *hint; } unknown[] = {
        { BASE "layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA" },
        { BASE "embed_tokens.lora_embedding_A", "embedding" }, { "base_model.model.lm_head.lora_A.weight", "head" },
        { "base_model.model.lm_head.weight", "head" }, { BASE "layers.2.self_attn.q_proj.lora_A.weight", "of this model" },
        { BASE "layers.0.self_attn.q_proj.lora_A.default.weight", "name of the adapter" },    /* beside the one without it */
        { BASE "layers.0.self_attn.q_proj.lora_B.math.weight", "name of the adapter" },
        { BASE "layers.0.self_attn.q_proj.base_layer.weight", "base's weights" },
        { "model.layers.0.self_attn.q_proj.lora_A.weight", "of this model" },
        { BASE "layers.0.mlp.up_proj.lora_B.bias", "lora_B" }, { BASE "norm.weight", "saved whole" },
        { BASE "layers.0.self_attn.q_proj.base_layer.bias", "trained biases" }, { BASE "layers.0.self_attn.k_proj.bias", "trained biases" },
    };
    static const char config[] = "{\"peft_type\": \"LORA\", \"r\": 4}";
    struct adapter *a = make(&plain), *b = NULL;
    struct config c = tiny();
    struct lora_error err = { 0 };
    char name[200];
    size_t j;
    int i, type;
    test_begin("tensors: F32, F16, BF16; a missing, unknown or wrong one is refused by name");
    fill(a, 5);
    for (i = 0; i < 3; i++) {
        static const int types[] = { TYPE_F32, TYPE_F16, TYPE_BF16 };
        type = types[i];
        write_tensors(a, type, -1, NULL);
        CHECK(!read_with(config, &err), "%s: %s: %s", err.what, err.where, err.found);
        if (adapter_read(&b, folder, &c, &err)) continue;
        for (j = 0; j < a->size; j++) {
            float x = a->values[j];
            float want = type == TYPE_F16 ? f16_to_f32(f32_to_f16(x)) : type == TYPE_BF16 ? bf16_to_f32(f32_to_bf16(x)) : x;
            CHECK(b->values[j] == want, "value %zu", j);
        }
        adapter_free(b);
    }
    for (i = 0; i < 28; i += 9) {
        write_tensors(a, TYPE_F32, i, NULL);
        CHECK(read_with(config, &err), "tensor %d is missing", i);
        CHECK(strstr(err.where, adapter_tensor_name(name, sizeof name, &a->modules[i / 2], i % 2)) != NULL, "%s", err.where);
    }
    for (j = 0; j < sizeof unknown / sizeof *unknown; j++) {
        write_tensors(a, TYPE_F32, -1, unknown[j].name);
        CHECK(read_with(config, &err) && strstr(err.where, unknown[j].name) && strstr(err.hint, unknown[j].hint), "%s: %s, %s",
              unknown[j].name, err.where, err.hint);
    }
    c.F = 30;
    write_tensors(a, TYPE_F32, -1, NULL);
    CHECK(!read_with(config, &err), "%s", err.where);
    CHECK(adapter_read(&b, folder, &c, &err) && strstr(err.where, "gate_proj.lora_B") && strstr(err.found, "[28,4]"),
          "%s %s", err.where, err.found);
    for (j = 0; j < (size_t)a->n; j++) {    /* as many numbers, the other way */
        int cols = a->modules[j].cols;
        a->modules[j].cols = a->modules[j].r;
        a->modules[j].r = cols;
    }
    write_tensors(a, TYPE_F32, -1, NULL);
    CHECK(read_with(config, &err) && strstr(err.where, "q_proj.lora_A") && strstr(err.expected, "[4,"), "%s %s", err.where, err.expected);
    adapter_free(a);
}

/* a's tensors with a name of the adapter in theirs. */
static void write_named(const struct adapter *a, const char *word)
{
    struct st_writer w;
    struct lora_error err = { 0 };
    char name[200], with_word[200];
    int i;
    memset(&w, 0, sizeof w);
    for (i = 0; i < 2 * a->n; i++) {
        const struct adapted *m = &a->modules[i / 2];
        const size_t dims[2] = { (size_t)(i % 2 ? m->rows : m->r), (size_t)(i % 2 ? m->r : m->cols) };
        adapter_tensor_name(name, sizeof name, m, i % 2);
        snprintf(with_word, sizeof with_word, "%.*s%s.weight", (int)strlen(name) - 6, name, word);
        st_writer_add(&w, with_word, TYPE_F32, dims, 2, &err);
    }
    st_writer_begin(&w, in_folder("adapter_model.safetensors"), &err);
    st_writer_put(&w, a->values, a->size * sizeof *a->values, &err);
    CHECK(!st_writer_commit(&w, &err), "%s: %s", err.what, err.where);
}

static void check_forms(void)
{
    static const char config[] = "{\"peft_type\": \"LORA\", \"r\": 4, " ALL_BY_NAME "}";
    struct adapter *a = make(&plain), *b = NULL;
    struct config c = tiny();
    struct lora_error err = { 0 };
    test_begin("an adapter's name in the tensors': PEFT's own is read, another is refused");
    fill(a, 7);
    write_named(a, "default");
    CHECK(!read_with(config, &err), "%s: %s: %s", err.what, err.where, err.found);
    CHECK(!adapter_read(&b, folder, &c, &err) && b->size == a->size && !memcmp(a->values, b->values, a->size * sizeof(float)),
          "the values");
    adapter_free(b);
    write_named(a, "math");
    CHECK(read_with(config, &err) && strstr(err.where, ".lora_A.math.weight") && strstr(err.hint, "name of the adapter"), "%s: %s",
          err.where, err.hint);
    adapter_free(a);

    test_begin("an adapter in another form or folder is found, and said how to take it");
    remove(in_folder("adapter_model.safetensors"));
    CHECK(read_with(config, &err) && strstr(err.where, "adapter_model.safetensors") && !err.hint[0], "%s: %s", err.where, err.hint);
    file_write(in_folder("adapter_model.bin"), "PK", 2, &err);
    CHECK(read_with(config, &err) && strstr(err.where, "adapter_model.safetensors") && strstr(err.hint, "torch.load"), "%s: %s",
          err.where, err.hint);
    remove(in_folder("adapter_config.json"));
    CHECK(adapter_read(&b, folder, &c, &err) && strstr(err.where, "adapter_config.json") && !err.hint[0], "%s: %s", err.where, err.hint);
    CHECK(!make_directory(in_folder("math"), &err) && !make_directory(in_folder("empty"), &err)
          && !file_write(in_folder("math/adapter_config.json"), "{}", 2, &err), "%s: %s", err.what, err.where);
    CHECK(adapter_read(&b, folder, &c, &err) && strstr(err.hint, in_folder("math")) && !strstr(err.hint, "empty"), "%s", err.hint);
}

/* ---- several as one ---- */

static double product(const struct adapter *a, const struct adapted *m, int row, int col)
{
    double sum = 0;
    int k;
    for (k = 0; m && k < m->r; k++)
        sum += (double)a->values[m->b + (size_t)(row * m->r + k)] * a->values[m->a + (size_t)(k * m->cols + col)];
    return m ? sum * m->scale : 0;
}

static void check_join(void)
{
    struct adapter_settings s = plain;
    struct adapter *list[2], *joined = NULL;
    struct lora_error err = { 0 };
    double factor[2] = { 0.5, -2 };
    struct worst w = { 0 };
    int i, row, col;
    test_begin("adapters joined: the sum of what each does");
    s.target_modules = "q_proj,up_proj";
    s.rank_pattern = "up_proj=7";
    list[0] = make(&s);
    s.target_modules = "q_proj,down_proj";
    s.rank_pattern = NULL;
    s.layers = "1";
    s.use_rslora = 1;
    list[1] = make(&s);
    fill(list[0], 1);
    fill(list[1], 2);
    CHECK(!adapter_join(&joined, (const struct adapter *const *)list, factor, 2, &err), "%s", err.what);
    CHECK(joined->n == 5 && adapter_find(joined, T_WQ, 1)->r == 8 && adapter_find(joined, T_WQ, 0)->r == 4, "%d", joined->n);
    for (i = 0; i < joined->n; i++) {
        const struct adapted *m = &joined->modules[i];
        for (row = 0; row < m->rows; row += 3)
            for (col = 0; col < m->cols; col++) {
                double want = factor[0] * product(list[0], adapter_find(list[0], m->id, m->layer), row, col)
                            + factor[1] * product(list[1], adapter_find(list[1], m->id, m->layer), row, col);
                worst_add(&w, fabs(product(joined, m, row, col) - want), 1e-5, (size_t)i);  /* B is rounded once */
            }
    }
    CHECK_WORST(w, "joined against the sum");
    adapter_free(joined);
    adapter_free(list[0]);
    adapter_free(list[1]);
}

/* What a program may pass by mistake. */
static void check_wrong_arguments(void)
{
    static const double factor[2] = { 1, 1 };
    struct lora_error err = { 0 };
    struct adapter_settings s = plain;
    struct config c = tiny();
    struct adapter *list[2], *out = NULL;
    test_begin("no targets, no values, adapters of two models");
    s.target_modules = NULL;
    CHECK(adapter_new(&out, &c, &s, &err) == -1 && !out && !strcmp(err.where, "target-modules") && err.expected[0], "%s", err.where);
    list[0] = make(&plain);
    c.F = 30;
    CHECK(!adapter_new(&list[1], &c, &plain, NULL) && adapter_is_zero(list[1]), "without values it changes nothing");
    fill(list[0], 1);
    CHECK(adapter_join(&out, (const struct adapter *const *)list, factor, 2, &err) == -1 && !out && !strcmp(err.where, "number 1 of 2"), "%s", err.where);
    CHECK(adapter_join(&out, (const struct adapter *const *)list, factor, 0, &err) == -1 && !out, "none joined");
    fill(list[1], 2);
    CHECK(adapter_join(&out, (const struct adapter *const *)list, factor, 2, &err) == -1 && !out && strstr(err.expected, "[28, 16]")
          && !strcmp(err.found, "[30, 16]"), "%s: %s, %s", err.where, err.expected, err.found);
    adapter_free(list[0]);
    adapter_free(list[1]);
}

/* PEFT's own directories, kept with the goldens. */
static void check_peft(void)
{
    static const struct { const char *path; int n; } cases[] = {
        { "all-linear", 14 }, { "patterns", 8 }, { "qv-rslora", 4 }, { "regex", 2 } };
    struct lora_error err = { 0 };
    struct config c;
    size_t i;
    test_begin("directories that PEFT wrote");
    CHECK(!config_read(&c, "test/goldens/data/lora-grad/llama/model/config.json", NULL, &err), "%s: %s", err.what, err.where);
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct adapter *a = NULL;
        char path[200];
        snprintf(path, sizeof path, "test/goldens/data/lora-grad/llama/%s/adapter", cases[i].path);
        CHECK(!adapter_read(&a, path, &c, &err), "%s: %s: %s", err.what, err.where, err.found);
        CHECK(a && a->n == cases[i].n, "%s: %d modules", path, a ? a->n : -1);
        adapter_free(a);
    }
}

int main(void)
{
    struct lora_error err = { 0 };
    if (folder_make()) return 1;
    check_table();
    check_targets();
    check_patterns();
    check_init();
    check_round_trip();
    check_keys();
    check_settings();
    check_missing();
    check_tensors();
    check_forms();
    check_join();
    check_wrong_arguments();
    check_peft();
    remove_tree(folder, &err);
    return test_end();
}
