/* tokenizer.json, and behind a NUL the tokenizer_config.json beside it. */
#include "fuzz_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const uint8_t *nul = n ? memchr(data, 0, n) : NULL;
    size_t first = nul ? (size_t)(nul - data) : n;
    fuzz_file("tokenizer.json", data, first);
    fuzz_file("tokenizer_config.json", nul ? nul + 1 : (const uint8_t *)"{}", nul ? n - first - 1 : 2);
    fuzz_tokenizer(fuzz_directory());
    return 0;
}
