/* export.c - `lora export`: an adapter as the GGUF file that llama.cpp loads with --lora. */
#include "session.h"

#include <string.h>

struct settings {
    struct common common;
    struct option_list adapters;
    const char *out;
};

static const struct option options[] = {
    { "adapter", NULL, OPTION_LIST, offsetof(struct settings, adapters), NULL, "DIR", "a PEFT directory", 0, 0 },
    { "out", "output|outfile", OPTION_TEXT, offsetof(struct settings, out), NULL, "FILE.gguf",
      "where the adapter goes; a file that is there is replaced", 0, 0 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

static int export_adapter(const struct settings *set, struct lora_error *err)
{
    const char *dir = set->adapters.v[0];
    struct model *m = NULL;
    struct adapter *a = NULL;
    int bad = -1;
    if (output_spares(set->common.model, "model", set->out, "file for --out", err) || output_spares_models(set->out, ".gguf", err))
        return -1;
    if (!model_open(&m, set->common.model, err) && !adapter_read(&a, dir, &m->config, err)) {
        if (adapter_is_zero(a)) status("warning: the adapter %s changes nothing: every B is zero", dir);
        warn_unmatched(a, dir);
        bad = adapter_write_gguf(a, &m->config, set->out, err);
    }
    if (!bad) status("%s: %d linear%s, for llama.cpp's --lora", set->out, a->n, a->n == 1 ? "" : "s");
    adapter_free(a);
    model_close(m);
    return bad;
}

static int run(void *settings, struct lora_error *err)
{
    const struct settings *set = settings;
    if (!set->common.model || !set->adapters.n || !set->out)
        return job_usage_error(&job_export, "--model, --adapter and --out are needed");
    if (set->adapters.n > 1) return job_usage_error(&job_export, "one --adapter a file; llama.cpp takes several --lora");
    return export_adapter(set, err);
}

static const struct settings defaults = { .common = COMMON_DEFAULTS };

const struct job job_export = {
    "export", "writes an adapter as llama.cpp's GGUF file", "--model M --adapter DIR --out FILE.gguf",
    options, common_options, sizeof defaults, &defaults, run
};
