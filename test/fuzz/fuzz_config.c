/* A configuration that is read has sizes within their limits and finite frequencies, and is the same model when
 * it is written and read again. */
#include "fuzz.h"
#include "../../config.h"
#include "../../weight.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct config c, again;
    struct lora_error err = { "", "", "", "", "" };
    struct text ignored = { 0 };
    static double f[1 << 13], g[1 << 13];
    double factor, factor_again;
    const char *path = fuzz_file("config.json", data, n);
    int i;
    if (config_read(&c, path, &ignored, &err)) {
        DEMAND(err.what[0] && err.where[0]);
        text_free(&ignored);
        return 0;
    }
    DEMAND(c.C > 0 && c.V > 0 && c.L > 0 && c.F > 0 && c.NKV > 0 && c.NH % c.NKV == 0 && c.HS > 1 && c.HS % 2 == 0);
    DEMAND(config_family(&c, &err) && c.HS <= 1 << 14);
    rope_frequencies(&c, f, &factor);
    for (i = 0; i < c.HS / 2; i++) DEMAND(f[i] - f[i] == 0 && f[i] >= 0);
    DEMAND(factor - factor == 0 && factor > 0);
    DEMAND(!config_write(&c, path, TYPE_F32, NULL, &err) && !config_read(&again, path, NULL, &err));
    DEMAND(!memcmp(&c.C, &again.C, offsetof(struct config, rope) - offsetof(struct config, C)));
    rope_frequencies(&again, g, &factor_again);
    DEMAND(factor == factor_again && !memcmp(f, g, (size_t)c.HS / 2 * sizeof *f));
    text_free(&ignored);
    return 0;
}
