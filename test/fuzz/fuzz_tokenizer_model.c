/* tokenizer.model: SentencePiece's protobuf, or tiktoken's text. */
#include "fuzz_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    fuzz_file("tokenizer.model", data, n);
    fuzz_tokenizer(fuzz_directory());
    return 0;
}
