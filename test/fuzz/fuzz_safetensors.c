/* What opens has each tensor's bytes inside the file, as many as its type and shape say. */
#include "fuzz.h"
#include "../../formats/safetensors.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct safetensors s;
    struct lora_error err = { "", "", "", "", "" };
    size_t bytes, total = 0;
    int i, j;
    if (safetensors_open(&s, fuzz_file("file", data, n), &err)) {
        DEMAND(err.what[0] && err.where[0] && !s.path && !s.tensors);
        return 0;
    }
    for (i = 0; i < s.n; i++) {
        const struct st_tensor *t = &s.tensors[i];
        size_t count = 1;
        for (j = 0; j < t->n_dims; j++) count *= t->dims[j];
        DEMAND(count == t->count && !type_bytes(&bytes, t->type, count) && bytes == t->bytes);
        DEMAND(safetensors_find(&s, t->name) == t);
        DEMAND(t->data == s.tensors[0].data + total);
        fuzz_touch(t->data, t->bytes);
        total += bytes;
    }
    DEMAND(total <= n);
    safetensors_close(&s);
    return 0;
}
