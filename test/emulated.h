/* emulated.h - where the tests find the emulated CUDA kernels: beside themselves. */
#ifndef EMULATED_H
#define EMULATED_H

#include "../kernels.h"
#include "test.h"

/* The path of `file` in the folder of argv[0], or NULL: the build has none, which is told. */
static inline const char *emulated_path(char path[1024], const char *program, const char *file)
{
    snprintf(path, 1000, "%s%s", strchr(program, '/') ? "" : "./", program);
    strcpy(strrchr(path, '/') + 1, file);
    if (file_exists(path)) return path;
    test_skip(file, "this build has no emulator of CUDA");
    return NULL;
}

/* The table there; a failed check when it cannot be had. */
static inline const struct kernels *emulated_table(const char *path)
{
    struct lora_error err = { "", "", "", "", "" };
    const struct kernels *k = kernels_find(path, &err);
    CHECK(k != NULL, "%s: expected %s, found %s", err.what, err.expected, err.found);
    return k;
}

#endif
