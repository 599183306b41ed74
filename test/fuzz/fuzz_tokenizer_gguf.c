/* A GGUF file's tokenizer. */
#include "fuzz_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    fuzz_tokenizer(fuzz_file("file.gguf", data, n));
    return 0;
}
