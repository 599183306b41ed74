/* backends.c - `lora backends`: the tables of kernels of this build, and whether they run here. */
#include "job.h"
#include "../kernels.h"

#include <stdio.h>

static const struct option options[] = { { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 } };

static int run(int argc, char **argv)
{
    char *given;
    int i, unused, code = job_options(&job_backends, &unused, argc, argv, &given);
    const struct kernels *best = kernels_find("auto", NULL);
    if (code >= 0) return code;
    for (i = 0; kernels_all[i]; i++) {
        const struct kernels *k = kernels_all[i];
        char why[256] = "", bf16[256] = "";
        int usable = k->usable(why, sizeof why);
        printf("%-8s %-10s %s%s%s%s\n", k->name, usable ? "usable" : "not usable", k->about,
               why[0] ? ": " : "", why, k == best ? " (auto takes this one)" : "");
        if (k->has_bf16) {
            usable = k->has_bf16(bf16, sizeof bf16);
            printf("%-8s %-10s --compute bf16: %s\n", "", usable ? "usable" : "not usable", bf16);
        }
    }
    job_free_options(&job_backends, &unused, given);
    return EXIT_DONE;
}

const struct job job_backends = {
    "backends", "lists the tables of kernels: which there are, whether they run here, why not",
    "", options, NULL, run
};
