/* seeds.c - writes the small files that fuzzing starts from: seeds DIRECTORY. */
#include "../../formats/gguf.h"
#include "../../formats/json.h"
#include "../../formats/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct lora_error err;

static void write_seed(const char *dir, const char *name, const struct text *t)
{
    char *path = path_join(dir, name, &err);
    if (!path || t->failed || file_write(path, t->s, t->n, &err)) {
        fprintf(stderr, "%s: %s\n", err.where, err.found);
        exit(1);
    }
    free(path);
}

static void json_seeds(const char *dir)
{
    static const char *const texts[] = {
        "{\"model_type\":\"llama\",\"rope_scaling\":null,\"rms_norm_eps\":1e-05,\"eos\":[1,-2],\"tied\":false,\"s\":{}}",
        "[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\",0,-0.5e+3,[[],{}]]",
        "{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"e\":4,\"f\":5,\"g\":6,\"h\":7,\"i\":8,\"j\":{\"a\":true}}",
        "-1.5e3",
    };
    size_t i;
    for (i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct text t = { 0 };
        char name[16];
        text_puts(&t, texts[i]);
        sprintf(name, "json-%d", (int)i + 1);
        write_seed(dir, name, &t);
        text_free(&t);
    }
}

static void safetensors_seed(const char *dir)
{
    static const size_t dims[] = { 2, 3 };
    struct st_writer w = { 0 };
    char *path = path_join(dir, "safetensors-1", &err);
    if (!path || st_writer_add(&w, "w", TYPE_F32, dims, 2, &err) || st_writer_add(&w, "b", TYPE_BF16, dims, 1, &err)
        || st_writer_add(&w, "n", TYPE_U8, NULL, 0, &err) || st_writer_begin(&w, path, &err)
        || st_writer_put(&w, "aaaabbbbccccddddeeeeffffgghhi", 29, &err) || st_writer_commit(&w, &err)) {
        fprintf(stderr, "%s: %s\n", err.where, err.found);
        exit(1);
    }
    free(path);
}

static void put_number(struct text *t, uint64_t v, int bytes)
{
    for (; bytes-- > 0; v >>= 8) {
        char c = (char)(v & 255);
        text_add(t, &c, 1);
    }
}

static void put_string(struct text *t, const char *s)
{
    put_number(t, strlen(s), 8);
    text_puts(t, s);
}

static void gguf_seed(const char *dir)
{
    static const int sizes[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
    struct text t = { 0 };
    int type;
    char key[8];
    text_puts(&t, "GGUF");
    put_number(&t, 3, 4);
    put_number(&t, 2, 8);
    put_number(&t, 15, 8);
    for (type = 0; type <= GGUF_F64; type++) {      /* one value of each type */
        sprintf(key, "k%d", type);
        put_string(&t, key);
        put_number(&t, (uint64_t)type, 4);
        if (type == GGUF_STRING) put_string(&t, "text");
        else if (type == GGUF_ARRAY) put_number(&t, GGUF_STRING, 4), put_number(&t, 2, 8), put_string(&t, "a"), put_string(&t, "");
        else put_number(&t, 1, sizes[type]);
    }
    put_string(&t, "general.alignment"), put_number(&t, GGUF_U32, 4), put_number(&t, 8, 4);
    put_string(&t, "numbers"), put_number(&t, GGUF_ARRAY, 4), put_number(&t, GGUF_I16, 4), put_number(&t, 2, 8), put_number(&t, 7, 4);
    put_string(&t, "q"), put_number(&t, 2, 4), put_number(&t, 32, 8), put_number(&t, 1, 8), put_number(&t, 3, 4), put_number(&t, 0, 8);
    put_string(&t, "v"), put_number(&t, 1, 4), put_number(&t, 2, 8), put_number(&t, 0, 4), put_number(&t, 24, 8);
    while (t.n % 8) put_number(&t, 0, 1);
    text_puts(&t, "ddmm0123456789abcdef....ffffffff");
    write_seed(dir, "gguf-1", &t);
    text_free(&t);
}

int main(int argc, char **argv)
{
    if (argc != 2 || make_directory(argv[1], &err)) return 1;
    json_seeds(argv[1]);
    safetensors_seed(argv[1]);
    gguf_seed(argv[1]);
    return 0;
}
