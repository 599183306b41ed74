/* driver.c - a main for the fuzz targets where the compiler has no fuzzer: runs the files named, each
 * as it is, cut off at every byte, and damaged in several thousand ways that repeat. */
#include "fuzz.h"
#include "../../util.h"

#include <stdio.h>
#include <string.h>

#define DAMAGED 4000

static void run(const unsigned char *data, size_t n, uint64_t key)
{
    unsigned char *copy = malloc(n ? n : 1);
    size_t cut;
    int i, j, places;
    DEMAND(copy);
    LLVMFuzzerTestOneInput(data, n);
    for (cut = 0; cut < n; cut++) {
        memcpy(copy, data, cut);
        LLVMFuzzerTestOneInput(copy, cut);
    }
    for (i = 0; i < DAMAGED && n; i++) {
        memcpy(copy, data, n);
        places = 1 + (int)(random_bits(key, (uint64_t)i * 16) % 3);
        for (j = 0; j < places; j++) {
            uint64_t r = random_bits(key, (uint64_t)i * 16 + 1 + (uint64_t)j);
            copy[r % n] = (unsigned char)(r >> 32 & 1 ? r >> 40 : copy[r % n] ^ 1u << (r >> 40 & 7));
        }
        LLVMFuzzerTestOneInput(copy, n);
    }
    free(copy);
}

int main(int argc, char **argv)
{
    int i;
    for (i = 1; i < argc; i++) {
        struct file_map f;
        struct lora_error err;
        if (file_open(&f, argv[i], &err)) {
            fprintf(stderr, "%s: %s\n", argv[i], err.found);
            return 1;
        }
        run(f.data, f.size, random_key(1, argv[i]));
        file_close(&f);
    }
    printf("%d files, whole, cut and damaged\n", argc - 1);
    return argc < 2;
}
