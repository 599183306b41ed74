/* A GGUF model that opens has each tensor of its table whole, and its rows can be decoded. */
#include "fuzz.h"
#include "../../model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct model *m;
    struct lora_error err = { "", "", "", "", "" };
    float row[64];
    int id, layer;
    if (model_open(&m, fuzz_file("file.gguf", data, n), &err)) {
        DEMAND(err.what[0] && err.where[0] && !m);
        return 0;
    }
    for (layer = 0; layer < m->config.L; layer++)
        for (id = 0; id < T_COUNT; id++) {
            const struct weight *w = model_weight(m, id, layer);
            int last;
            if (!w || !tensor_present(&m->config, id)) continue;
            DEMAND(w->rows == tensor_rows(&m->config, id) && w->cols == tensor_cols(&m->config, id));
            last = w->cols < 64 ? 0 : (w->cols - 64) / 256 * 256;
            weight_types[w->type].decode(w, w->rows - 1, last, w->cols - last < 64 ? w->cols - last : 64, row);
            fuzz_touch(row, sizeof row);
        }
    model_close(m);
    return 0;
}
