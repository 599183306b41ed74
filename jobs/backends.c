/* backends.c - `lora backends`: the tables of kernels of this build, and whether they run here. */
#include "job.h"
#include "../kernels.h"

#include <stdio.h>
#include <string.h>

static void put_table(const struct kernels *k, int is_best)
{
    char why[256] = "", bf16[256] = "";
    int usable = k->usable(why, sizeof why);
    printf("%-8s %-10s %s%s%s%s\n", k->name, usable ? "usable" : "not usable", k->about ? k->about : "", why[0] ? ": " : "", why,
           is_best ? " (auto takes this one)" : "");
    if (!k->has_bf16) return;
    usable = k->has_bf16(bf16, sizeof bf16);
    printf("%-8s %-10s --compute bf16: %s\n", "", usable ? "usable" : "not usable", bf16);
}

/* The one that lies in a file of its own, which may not be there. */
static void put_cuda(void)
{
    struct lora_error err = { 0 };
    const struct kernels *k = kernels_find("cuda", &err);
    const char *what = strcmp(err.what, "cannot use the backend") ? err.what : err.hint[0] ? "not built" : "built, but";
    if (k) put_table(k, 0);
    else printf("%-8s %-10s NVIDIA GPUs: %s: %s%s%s\n", "cuda", "not usable", what, err.found, err.hint[0] ? "; " : "", err.hint);
}

static int run(void *settings, struct lora_error *err)
{
    const struct kernels *best = kernels_find("auto", NULL);
    int i;
    (void)settings, (void)err;
    for (i = 0; kernels_all[i]; i++) put_table(kernels_all[i], kernels_all[i] == best);
    put_cuda();
    return EXIT_DONE;
}

const struct job job_backends = {
    "backends", "lists the tables of kernels: which there are, whether they run here, why not",
    "", NULL, NULL, 0, NULL, run
};
