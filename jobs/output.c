/* output.c - a directory that appears whole or not at all: written under another name, then renamed. */
#include "job.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int is_empty(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int empty = d != NULL;
    while (d && empty && (e = readdir(d))) empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
    if (d) closedir(d);
    return empty;
}

int output_check(const char *dir, struct lora_error *err)
{
    if (!file_exists(dir) || (is_directory(dir) && is_empty(dir))) return 0;
    fail(err, "cannot write over other files", "%s", dir);
    return expected(err, "a new or an empty directory for --out");
}

int output_begin(struct output *o, const char *dir, struct lora_error *err)
{
    size_t n = strlen(dir);
    memset(o, 0, sizeof *o);
    while (n > 1 && dir[n - 1] == '/') n--;
    if (output_check(dir, err)) return -1;
    if (!(o->path = new_string_n(dir, n, err))
        || !(o->temporary = new_array(n + sizeof UNFINISHED, 1, err))) return -1;
    sprintf(o->temporary, "%s" UNFINISHED, o->path);
    if (file_exists(o->temporary) && remove_tree(o->temporary, err)) return -1;
    return make_directory(o->temporary, err);
}

int output_commit(struct output *o, struct lora_error *err)
{
    const char *slash = strrchr(o->path, '/');
    char *parent = slash ? new_string_n(o->path, (size_t)(slash - o->path) + 1, err) : new_string(".", err);
    int bad = !parent || directory_sync(o->temporary, err);
    if (!bad && rename(o->temporary, o->path)) {
        fail(err, "cannot name", "%s", o->path);
        bad = found(err, "%s", strerror(errno));
    }
    if (!bad) {
        free(o->temporary);
        o->temporary = NULL;
        bad = directory_sync(parent, err);
    }
    free(parent);
    return bad ? -1 : 0;
}

void output_end(struct output *o)
{
    if (o->temporary) remove_tree(o->temporary, NULL);
    free(o->temporary);
    free(o->path);
    memset(o, 0, sizeof *o);
}

int output_spares(const char *input, const char *what, const char *out, const char *instead, struct lora_error *err)
{
    if (!input || !out || !same_file(input, out)) return 0;
    fail(err, "cannot write over what is read", "%s", out);
    expected(err, "another %s", instead);
    return found(err, "the %s", what);
}

/* Does the name end like this? */
static int ends(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

int output_spares_models(const char *out, struct lora_error *err)
{
    static const char *const names[] = { "config.json", "adapter_config.json", "run.json", "metrics.jsonl", "tokenizer.json",
                                         "tokenizer_config.json" };
    const char *slash = out ? strrchr(out, '/') : NULL, *name = slash ? slash + 1 : out;
    size_t i;
    int is_one = name && (ends(name, ".safetensors") || ends(name, ".safetensors.index.json") || ends(name, ".gguf"));
    for (i = 0; name && i < sizeof names / sizeof *names; i++) is_one |= !strcmp(name, names[i]);
    if (!is_one || !file_exists(out)) return 0;
    fail(err, "cannot write over a file of a model, an adapter or a run", "%s", out);
    return expected(err, "another file for the results");
}

int output_spares_weights(const char *model, const char *adapter, const char *out, struct lora_error *err)
{
    static const char instead[] = "file for --out";
    char *weights = path_join(model, "model.safetensors", err), *trained = path_join(adapter, "adapter_model.safetensors", err);
    int bad = !weights || !trained || output_spares(model, "model", out, instead, err)
              || output_spares(weights, "model", out, instead, err) || output_spares(trained, "adapter", out, instead, err);
    free(weights);
    free(trained);
    return bad ? -1 : 0;
}
