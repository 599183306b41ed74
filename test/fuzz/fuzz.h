/* fuzz.h - what the fuzz targets share. A target gets bytes as a file's content; it must come back,
 * and what the readers accept must hold what their headers promise. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Path of the file of this name with these bytes, in a directory of this process alone, whose path
 * fuzz_directory() is. */
const char *fuzz_file(const char *name, const uint8_t *data, size_t n);
const char *fuzz_directory(void);
/* Reads every byte, so that a sanitizer sees those that are not there. */
void fuzz_touch(const void *data, size_t n);

#define DEMAND(condition) do { if (!(condition)) abort(); } while (0)

#endif
