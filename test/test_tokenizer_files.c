/* test_tokenizer_files.c - tokenizers in files: each rule is computed or refused by name; damage; GGUF,
 * SentencePiece, saving. */
#include "tokenizer_small.h"
#include "gguf_parts.h"
#include "../formats/gguf.h"

/* ---- what is refused ---- */

#define TEXT_ALONE "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]}"
#define TO_SPACE "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"}"
#define BYTES_BACK "{\"type\":\"ByteFallback\"}"
#define FUSE "{\"type\":\"Fuse\"}"
#define CUT "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}"
#define METASPACE "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"first\",\"split\":false}"

static void check_refused(const char *json, const char *named)
{
    struct tokenizer *t;
    struct lora_error err;
    char all[2048];
    put_file("refused/tokenizer.json", json);
    memset(&err, 0, sizeof err);
    CHECK(tokenizer_open(&t, in_folder("refused"), &err) == -1 && !t, "%s", json);
    snprintf(all, sizeof all, "%s: %s: %s: %s", err.what, err.where, err.expected, err.found);
    CHECK(strstr(all, named) != NULL, "\"%s\" does not name %s", all, named);
}

/* Every kind of part that Hugging Face's tokenizers know and this program does not compute, by its name. */
static void test_parts_refused(void)
{
    enum { NORMALIZER, PRE, POST, DECODER, MODEL };
    static const struct { int part; const char *json, *named; } cases[] = {
        { NORMALIZER, "{\"type\":\"NFD\"}", "NFD" },
        { NORMALIZER, "{\"type\":\"NFKC\"}", "NFKC" },
        { NORMALIZER, "{\"type\":\"NFKD\"}", "NFKD" },
        { NORMALIZER, "{\"type\":\"Lowercase\"}", "Lowercase" },
        { NORMALIZER, "{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}", "Strip" },
        { NORMALIZER, "{\"type\":\"StripAccents\"}", "StripAccents" },
        { NORMALIZER, "{\"type\":\"Nmt\"}", "Nmt" },
        { NORMALIZER, "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"\"}", "Precompiled" },
        { NORMALIZER, "{\"type\":\"BertNormalizer\",\"lowercase\":true}", "BertNormalizer" },
        { NORMALIZER, "{\"type\":\"ByteLevel\"}", "ByteLevel" },
        { NORMALIZER, "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a+\"},\"content\":\"\"}", "Replace" },
        { NORMALIZER, "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Lowercase\"}]}", "Lowercase" },
        { PRE, "{\"type\":\"BertPreTokenizer\"}", "BertPreTokenizer" },
        { PRE, "{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"x\"}", "CharDelimiterSplit" },
        { PRE, "{\"type\":\"Whitespace\"}", "Whitespace" },
        { PRE, "{\"type\":\"WhitespaceSplit\"}", "WhitespaceSplit" },
        { PRE, "{\"type\":\"Punctuation\",\"behavior\":\"Isolated\"}", "Punctuation" },
        { PRE, "{\"type\":\"UnicodeScripts\"}", "UnicodeScripts" },
        { PRE, "{\"type\":\"FixedLength\",\"length\":5}", "FixedLength" },
        { PRE, "{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"Isolated\",\"invert\":false}", "Split" },
        { PRE, "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[^a]\"},\"behavior\":\"Isolated\",\"invert\":false}", "[^a]" },
        { PRE, "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}\"},\"behavior\":\"Removed\",\"invert\":false}", "Removed" },
        { PRE, "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\",\"split\":false}", "_" },
        { PRE, "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"first\",\"split\":true}", "split" },
        { PRE, "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"last\",\"split\":false}", "last" },
        { PRE, SEQUENCE(BYTE_LEVEL, DIGITS), "Digits" },
        { POST, "{\"type\":\"BertProcessing\",\"sep\":[\"a\",0],\"cls\":[\"a\",0]}", "BertProcessing" },
        { POST, "{\"type\":\"RobertaProcessing\",\"sep\":[\"a\",0],\"cls\":[\"a\",0]}", "RobertaProcessing" },
        { POST, "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"BertProcessing\"}]}", "BertProcessing" },
        { POST, "{\"type\":\"Sequence\",\"processors\":[" TEXT_ALONE "," TEXT_ALONE "]}", "TemplateProcessing once" },
        { POST, "{\"type\":\"TemplateProcessing\",\"single\":[]}", "Sequence" },
        { POST, "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"B\"}}]}", "Sequence A" },
        { POST, "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<q>\"}},{\"Sequence\":{\"id\":\"A\"}}]}",
          "SpecialToken" },
        { DECODER, "{\"type\":\"WordPiece\",\"prefix\":\"##\"}", "WordPiece" },
        { DECODER, "{\"type\":\"BPEDecoder\",\"suffix\":\"</w>\"}", "BPEDecoder" },
        { DECODER, "{\"type\":\"CTC\"}", "CTC" },
        { DECODER, "null", "none" },
        { MODEL, "{\"type\":\"Unigram\",\"vocab\":[[\"a\",0]]}", "Unigram" },
        { MODEL, "{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}", "WordPiece" },
        { MODEL, "{\"type\":\"WordLevel\",\"vocab\":{\"a\":0}}", "WordLevel" },
        { MODEL, "{\"vocab\":{\"a\":0}}", "model.merges" },
        { MODEL, SMALL_MODEL(",\"dropout\":0.1"), "dropout" },
        { MODEL, SMALL_MODEL(",\"continuing_subword_prefix\":\"##\""), "continuing_subword_prefix" },
        { MODEL, SMALL_MODEL(",\"end_of_word_suffix\":\"</w>\""), "end_of_word_suffix" },
        { MODEL, SMALL_MODEL(",\"unk_token\":\"<u>\""), "<u>" },
    };
    /* Decoders of characters: what goes wrong in another order or without its like in the model. */
    static const char *const decoders[][2] = {
        { FUSE "," TO_SPACE "," BYTES_BACK, "ByteFallback" }, { TO_SPACE "," BYTES_BACK "," CUT, "Strip" },
        { FUSE "," BYTES_BACK, "ByteFallback" }, { TO_SPACE "," FUSE, "ByteFallback" }, { BYTES_BACK "," FUSE, "decoder" },
        { TO_SPACE "," BYTES_BACK "," FUSE ",{\"type\":\"Strip\",\"content\":\" \",\"start\":0,\"stop\":1}", "Strip" },
        { "{\"type\":\"ByteLevel\"}", "ByteLevel" }, { "{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},\"content\":\" \"}", "Replace" }
    };
    char json[4096];
    size_t i;
    test_begin("each kind of part of tokenizer.json that is not computed is refused by name");
    make_directory(in_folder("refused"), NULL);
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *part[] = { "null", BYTE_LEVEL, "null", BYTE_LEVEL, SMALL_MODEL("") };
        part[cases[i].part] = cases[i].json;
        snprintf(json, sizeof json, "{\"truncation\":null,\"padding\":null,\"added_tokens\":[],\"normalizer\":%s,\"pre_tokenizer\":%s,"
                 "\"post_processor\":%s,\"decoder\":%s,\"model\":%s}", part[0], part[1], part[2], part[3], part[4]);
        check_refused(json, cases[i].named);
    }
    for (i = 0; i < sizeof decoders / sizeof *decoders; i++) {
        snprintf(json, sizeof json, "{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[%s]},\"model\":%s}", decoders[i][0],
                 SMALL_MODEL(",\"byte_fallback\":true"));
        check_refused(json, decoders[i][1]);
    }
    check_refused(SMALL("[" ADDED("9", "w", "false", ",\"single_word\":true") "]", "null", BYTE_LEVEL, "null", BYTE_LEVEL,
                        SMALL_MODEL("")), "single_word");
}

/* What is computed or, as in Transformers, passed over. */
static void test_parts_read(void)
{
    struct tokenizer *t;
    char json[1024];
    test_begin("truncation and padding change no ids; tokens outside the vocabulary are no text");
    make_directory(in_folder("read"), NULL);
    put_file("read/tokenizer.json", "{\"truncation\":{\"direction\":\"Right\",\"max_length\":2,\"strategy\":\"LongestFirst\",\"stride\":0},"
             "\"padding\":{\"strategy\":{\"Fixed\":8},\"direction\":\"Left\",\"pad_id\":0,\"pad_token\":\"a\"},\"added_tokens\":["
             ADDED("9", "aba", "true", PLAIN) "],\"pre_tokenizer\":" BYTE_LEVEL ",\"decoder\":" BYTE_LEVEL ",\"model\":"
             SMALL_MODEL(",\"ignore_merges\":true,\"dropout\":null,\"unk_token\":null,\"end_of_word_suffix\":\"\"") "}");
    if ((t = open_or_fail(in_folder("read")))) {
        check_ids(t, "abab", TOKENIZE_SPECIAL, "9 1");
        check_ids(t, "aba", TOKENIZE_TEXT_ONLY, "2 0");
    }
    tokenizer_close(t);
    test_begin("ignore_merges where characters have marks; added tokens decoded as they are looked for");
    snprintf(json, sizeof json, "{\"added_tokens\":[" ADDED("9", "b b", "false", ",\"normalized\":true") "],\"normalizer\":{\"type\":"
             "\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\xe2\x96\x81\"},{\"type\":\"Replace\",\"pattern\":{\"String\":"
             "\" \"},\"content\":\"\xe2\x96\x81\"}]},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" TO_SPACE "," FUSE "," CUT "]},\"model\":"
             "{\"type\":\"BPE\",\"ignore_merges\":%s,\"vocab\":{\"a\":0,\"b\":1,\"\xe2\x96\x81\":2,\"\xe2\x96\x81" "aa\":3},\"merges\":[]}}", "false");
    put_file("read/tokenizer.json", json);
    if ((t = open_or_fail(in_folder("read")))) check_ids(t, "aa", 0, "2 0 0");      /* no merge makes it */
    tokenizer_close(t);
    memcpy(strstr(json, "false,\"vocab"), "true ", 5);
    put_file("read/tokenizer.json", json);
    if ((t = open_or_fail(in_folder("read")))) {
        struct text out = { 0 };
        check_ids(t, "aa", 0, "3");
        check_ids(t, "aab", 0, "2 0 0 1");
        check_ids(t, "a b b a", 0, "2 0 9 2 0");
        CHECK(!tokenizer_decode(t, (int[]){ 2, 0, 9, 2, 0 }, 5, 0, &out, NULL) && !strcmp(out.s, "a b b a"), "%s", out.s);
        CHECK(!strcmp(tokenizer_token(t, 9), "b b"));
        text_free(&out);
    }
    tokenizer_close(t);
    test_begin("Metaspace decodes the marks of the first token to nothing, and no space that is written");
    put_file("read/tokenizer.json", "{\"added_tokens\":[" ADDED("9", " b", "false", PLAIN) "],\"pre_tokenizer\":" METASPACE ",\"decoder\":"
             "{\"type\":\"Sequence\",\"decoders\":[" BYTES_BACK "," METASPACE "]},\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,"
             "\"vocab\":{\"<0x20>\":0,\"\xe2\x96\x81\":1,\"a\":2,\"<0x61>\":3},\"merges\":[]}}");
    if ((t = open_or_fail(in_folder("read")))) {
        static const struct { int ids[2]; const char *text; } cases[] = {
            { { 1, 2 }, "a" }, { { 2, 1 }, "a " }, { { 0, 1 }, "  " }, { { 9, 1 }, " b " }, { { 3, 2 }, "aa" }
        };
        size_t i;
        for (i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct text out = { 0 };
            CHECK(!tokenizer_decode(t, cases[i].ids, 2, 0, &out, NULL) && !strcmp(out.s, cases[i].text), "%zu: \"%s\"", i, out.s);
            text_free(&out);
        }
    }
    tokenizer_close(t);
}

static void test_refused(void)
{
    static const struct { const char *json, *named; } cases[] = {
        { SMALL("[" ADDED("9", "a", "false", PLAIN) "]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, SMALL_MODEL("")), "model.vocab" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}"), "once" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{\"a\":0.5},\"merges\":[]}"), "an id" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{\"a\":99999999},\"merges\":[]}"), "an id" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}"), "joined" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}"), "merges" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{},\"merges\":[]}"), "vocabulary" },
        { "[]", "object" },
    };
    struct tokenizer *t;
    struct lora_error err;
    size_t i;
    test_begin("what is wrong is refused by name");
    make_directory(in_folder("refused"), NULL);
    for (i = 0; i < sizeof cases / sizeof *cases; i++) check_refused(cases[i].json, cases[i].named);
    CHECK(tokenizer_open(&t, in_folder("nothing"), &err) == -1 && strstr(err.found, "no such directory"));
    put_file("refused/tokenizer.json", SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, SMALL_MODEL("")));
    put_file("refused/tokenizer_config.json", "{\"bos_token\":\"<q>\"}");
    CHECK(tokenizer_open(&t, in_folder("refused"), &err) == -1 && strstr(err.found, "<q>"), "%s", err.found);
    remove(in_folder("refused/tokenizer_config.json"));
    if (!(t = open_or_fail(in_folder("refused")))) return;
    check_ids(t, "aab", 0, "0 2");
    CHECK(tokenizer_encode(t, "ac", 2, 0, &(struct ids){ 0 }, &err) == -1 && strstr(err.where, "0x63"), "%s", err.where);
    tokenizer_close(t);
    put_file("refused/tokenizer.json", SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL,
                                             SMALL_MODEL(",\"unk_token\":\"b\",\"fuse_unk\":true")));
    if (!(t = open_or_fail(in_folder("refused")))) return;
    check_ids(t, "accccd", 0, "2");     /* unknown ones are one token, which merges like any other */
    tokenizer_close(t);
    put_file("refused/tokenizer.json", SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, SMALL_MODEL(",\"unk_token\":\"b\"")));
    if (!(t = open_or_fail(in_folder("refused")))) return;
    check_ids(t, "accd", 0, "2 1 1");   /* or each is one */
    tokenizer_close(t);
}

static void try_damaged(const char *text, size_t n)
{
    struct tokenizer *t = NULL;
    struct lora_error err;
    memset(&err, 0, sizeof err);
    put_bytes("damaged/tokenizer.json", text, n);
    if (tokenizer_open(&t, in_folder("damaged"), &err)) CHECK(err.what[0] && !t);
    else encode(t, "ab <s>", 6, TOKENIZE_SPECIAL);
    tokenizer_close(t);
}

static void test_damaged(void)
{
    static const char file[] = SMALL("[" ADDED("3", "<s>", "true", PLAIN) "]", "null", SEQUENCE(DIGITS, BYTE_LEVEL),
        "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],"
        "\"special_tokens\":{\"<s>\":{\"ids\":[3]}}}", "{\"type\":\"ByteLevel\"}", SMALL_MODEL(""));
    static const char other[] = { 0, '"', '{', '}', ',', '9', '-', ' ' };
    char damaged[sizeof file];
    size_t i, k, n = sizeof file - 1;
    struct tokenizer *t;
    test_begin("a tokenizer.json cut anywhere or with any byte changed is an error or is read");
    make_directory(in_folder("damaged"), NULL);
    put_file("damaged/tokenizer.json", file);
    if ((t = open_or_fail(in_folder("damaged")))) check_ids(t, "ab<s>", TOKENIZE_SPECIAL, "3 2 3");
    tokenizer_close(t);
    for (i = 0; i < n; i++) try_damaged(file, i);
    for (i = 0; i < n; i++)
        for (k = 0; k < sizeof other; k++) {
            memcpy(damaged, file, n);
            damaged[i] = other[k];
            try_damaged(damaged, n);
        }
    CHECK(1);
}

/* ---- GGUF and saving ---- */

/* The vocabulary with <s> (control) and <u> (user defined) behind it, as a GGUF without tensors. */
static void put_gguf(const struct vocabulary *v, const char *name, const char *pre, int add_bos)
{
    struct text t = { 0 };
    int i, k;
    text_puts(&t, "GGUF");
    put_le(&t, 3, 4);
    put_le(&t, 0, 8);
    put_le(&t, 9, 8);
    put_key(&t, "general.architecture", GGUF_STRING), put_gguf_string(&t, "llama");
    put_key(&t, "tokenizer.ggml.model", GGUF_STRING), put_gguf_string(&t, "gpt2");
    put_key(&t, "tokenizer.ggml.pre", GGUF_STRING), put_gguf_string(&t, pre);
    put_key(&t, "tokenizer.ggml.bos_token_id", GGUF_U32), put_le(&t, (uint64_t)v->n, 4);
    put_key(&t, "tokenizer.ggml.add_bos_token", GGUF_BOOL), put_le(&t, (uint64_t)add_bos, 1);
    put_key(&t, "tokenizer.chat_template", GGUF_STRING), put_gguf_string(&t, "{{ \"x\" }}\n");
    put_key(&t, "tokenizer.ggml.tokens", GGUF_ARRAY), put_le(&t, GGUF_STRING, 4), put_le(&t, (uint64_t)v->n + 2, 8);
    for (i = 0; i < v->n; i++) {
        struct text raw = { 0 };
        for (k = 0; k < v->token[i].n; k++) put_byte(&raw, v->token[i].bytes[k]);
        put_gguf_string(&t, raw.s);
        text_free(&raw);
    }
    put_gguf_string(&t, "<s>"), put_gguf_string(&t, "<u>");
    put_key(&t, "tokenizer.ggml.token_type", GGUF_ARRAY), put_le(&t, GGUF_I32, 4), put_le(&t, (uint64_t)v->n + 2, 8);
    for (i = 0; i < v->n + 2; i++) put_le(&t, i < v->n ? 1 : i == v->n ? 3 : 4, 4);
    put_key(&t, "tokenizer.ggml.merges", GGUF_ARRAY), put_le(&t, GGUF_STRING, 4), put_le(&t, (uint64_t)v->n_merges, 8);
    for (i = 0; i < v->n_merges; i++) {
        struct text raw = { 0 };
        for (k = 0; k < v->token[v->left[i]].n; k++) put_byte(&raw, v->token[v->left[i]].bytes[k]);
        text_puts(&raw, " ");
        for (k = 0; k < v->token[v->right[i]].n; k++) put_byte(&raw, v->token[v->right[i]].bytes[k]);
        put_gguf_string(&t, raw.s);
        text_free(&raw);
    }
    put_bytes(name, t.s, t.n);
    text_free(&t);
}

static void test_gguf(void)
{
    static struct vocabulary v;
    struct tokenizer *t;
    struct text out = { 0 };
    struct lora_error err;
    int add_bos;
    test_begin("a GGUF's tokenizer: pre rules, special tokens, BOS; saved and read again it is the same");
    make_vocabulary(&v, 8, 40);
    for (add_bos = 0; add_bos < 2; add_bos++) {
        put_gguf(&v, "t.gguf", add_bos ? "smollm" : "gpt-2", add_bos);
        if (!(t = open_or_fail(in_folder("t.gguf")))) return;
        CHECK(tokenizer_bos(t) == v.n && tokenizer_eos(t) == -1 && tokenizer_adds_bos(t) == add_bos);
        out.n = 0;
        CHECK(!tokenizer_decode(t, (int[]){ v.n, v.n + 1 }, 2, 1, &out, &err)
              && !strcmp(out.s, tokenizer_token(t, v.n + 1)), "the special one is left out: %s", out.s);
        CHECK(!strcmp(tokenizer_chat_template(t), "{{ \"x\" }}\n"));
        tokenizer_close(t);
        check_saved(in_folder("t.gguf"), add_bos ? "saved1" : "saved0");
        check_saved(in_folder(add_bos ? "saved1" : "saved0"), "copied");
    }
    text_free(&out);
    put_gguf(&v, "t.gguf", "deepseek", 0);
    CHECK(tokenizer_open(&t, in_folder("t.gguf"), &err) == -1 && strstr(err.found, "deepseek"), "%s", err.found);
}

/* ---- SentencePiece ---- */

static void put_varint(struct text *t, uint64_t v)
{
    for (; v > 127; v >>= 7) put_le(t, (v & 127) | 128, 1);
    put_le(t, v, 1);
}

static void put_field(struct text *t, int number, const char *data, size_t n)
{
    put_varint(t, (uint64_t)number << 3 | 2);
    put_varint(t, n);
    text_add(t, data, n);
}

static void put_piece(struct text *t, const char *piece, float score, int type)
{
    struct text m = { 0 };
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    put_field(&m, 1, piece, strlen(piece));
    put_le(&m, 2 << 3 | 5, 1);
    put_le(&m, bits, 4);
    put_le(&m, 3 << 3, 1);
    put_varint(&m, (uint64_t)type);
    put_field(t, 1, m.s, m.n);
    text_free(&m);
}

/* <unk> 0, <s> 1, </s> 2, <0x00> 3 to 258, U+2581 259, a 260, b 261, ab 262, U+2581 a 263, two marks 264. */
static void put_sentencepiece(struct text *t, const char *trainer, const char *normalizer, size_t n)
{
    char byte[8];
    int i;
    put_piece(t, "<unk>", 0, 2);
    put_piece(t, "<s>", 0, 3);
    put_piece(t, "</s>", 0, 3);
    for (i = 0; i < 256; i++) {
        sprintf(byte, "<0x%02X>", (unsigned)i);
        put_piece(t, byte, 0, 6);
    }
    put_piece(t, "\xe2\x96\x81", -9, 1);
    put_piece(t, "a", -9, 1);
    put_piece(t, "b", -9, 1);
    put_piece(t, "ab", -1, 1);
    put_piece(t, "\xe2\x96\x81" "a", -2, 1);
    put_piece(t, "\xe2\x96\x81\xe2\x96\x81", -3, 1);
    put_field(t, 2, trainer, strlen(trainer));
    put_field(t, 3, normalizer, n);
}

static void test_sentencepiece(void)
{
    static const char keep[] = "\x20\x00";      /* remove_extra_whitespaces: 0 */
    static const char *const wrong[] = { "\x18\x01", "\x18\x02\xc0\x01\x01", NULL };
    static const int ids[] = { 1, 263, 260, 3 + 0xc3, 3 + 0xa9 };
    struct text t = { 0 }, out = { 0 }, pending = { 0 };
    struct lora_error err;
    struct tokenizer *k, *again;
    char piece[1026] = "";
    size_t i, n;
    test_begin("tokenizer.model: merges by score, the mark for spaces, bytes of unknown characters");
    make_directory(in_folder("spm"), NULL);
    put_sentencepiece(&t, "\x18\x02", keep, 2);
    put_bytes("spm/tokenizer.model", t.s, t.n);
    if ((k = open_or_fail(in_folder("spm")))) {
        check_ids(k, "a", TOKENIZE_SPECIAL, "1 263");
        check_ids(k, "ab", 0, "259 262");              /* ab before the mark and a */
        check_ids(k, "aab a", 0, "263 262 263");
        check_ids(k, " a  b", 0, "259 263 264 261");
        check_ids(k, "a\xc3\xa9\n", 0, "263 198 172 13");
        check_ids(k, "a<s>a", 0, "263 1 263");
        check_ids(k, "ab<s>a", TOKENIZE_CONTINUE, "262 1 263");
        check_ids(k, " a", TOKENIZE_CONTINUE, "263");
        check_ids(k, "", TOKENIZE_SPECIAL, "1");
        check_ids(k, "<s>", TOKENIZE_TEXT_ONLY, "259 63 118 65");
        CHECK(tokenizer_bos(k) == 1 && tokenizer_eos(k) == 2 && tokenizer_adds_bos(k));
        CHECK(!tokenizer_decode(k, ids, 5, 0, &out, NULL) && !strcmp(out.s, "<s> aa\xc3\xa9"), "%s", out.s);
        out.n = 0;
        CHECK(!tokenizer_decode(k, ids, 5, 1, &out, NULL) && !strcmp(out.s, "aa\xc3\xa9"), "%s", out.s);
        for (i = 1, out.n = 0; i < 5; i++) CHECK(!tokenizer_stream(k, ids[i], &pending, &out, NULL));
        CHECK(!strcmp(out.s, "aa\xc3\xa9") && !pending.n, "%s", out.s);
        make_directory(in_folder("spm2"), NULL);
        CHECK(!tokenizer_save(k, in_folder("spm2"), &err));
        remove(in_folder("spm2/tokenizer.model"));
        put_file("spm2/tokenizer_config.json", "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}");
        if ((again = open_or_fail(in_folder("spm2")))) check_same(k, again);
        tokenizer_close(again);
    }
    tokenizer_close(k);
    t.n = 0;
    put_sentencepiece(&t, "\x18\x02", "", 0);
    put_bytes("spm/tokenizer.model", t.s, t.n);
    if ((k = open_or_fail(in_folder("spm")))) check_ids(k, "  a   b \xe2\x96\x81 ", 0, "263 259 261");
    tokenizer_close(k);
    for (i = 0; wrong[i]; i++) {
        t.n = 0;
        put_sentencepiece(&t, wrong[i], "", 0);
        put_bytes("spm/tokenizer.model", t.s, t.n);
        CHECK(tokenizer_open(&k, in_folder("spm"), &err) == -1, "case %zu", i);
    }
    t.n = 0;
    memset(piece, 'a', sizeof piece - 1);
    put_sentencepiece(&t, "\x18\x02", "", 0);
    put_piece(&t, piece, -1, 1);
    put_bytes("spm/tokenizer.model", t.s, t.n);
    CHECK(tokenizer_open(&k, in_folder("spm"), &err) == -1 && strstr(err.expected, "at most 1024 bytes"), "%s", err.expected);
    t.n = 0;
    put_sentencepiece(&t, "\x18\x02", "\x12\x01x", 3);
    put_bytes("spm/tokenizer.model", t.s, t.n);
    CHECK(tokenizer_open(&k, in_folder("spm"), &err) == -1 && strstr(err.found, "table of characters"), "%s", err.found);
    t.n = 0;
    put_sentencepiece(&t, "\x18\x02", "", 0);
    put_piece(&t, "<x>", -1, 4);
    put_bytes("spm/tokenizer.model", t.s, t.n);
    CHECK(tokenizer_open(&k, in_folder("spm"), &err) == -1 && strstr(err.found, "user-defined"), "%s", err.found);
    test_begin("a tokenizer.model cut anywhere or with any byte changed is an error or is read");
    t.n = 0;
    put_sentencepiece(&t, "\x18\x02", keep, 2);
    for (i = 0, n = t.n; i < n; i += i < n - 150 && i > 100 ? 37 : 1) {
        put_bytes("spm/tokenizer.model", t.s, i);
        if (!tokenizer_open(&k, in_folder("spm"), &err)) encode(k, "a b", 3, 0);
        else CHECK(err.what[0] != 0);
        tokenizer_close(k);
        t.s[i] ^= 0x5a;
        put_bytes("spm/tokenizer.model", t.s, n);
        t.s[i] ^= 0x5a;
        if (!tokenizer_open(&k, in_folder("spm"), &err)) encode(k, "a b", 3, 0);
        else CHECK(err.what[0] != 0);
        tokenizer_close(k);
    }
    put_file("spm/tokenizer.model", "IQ== 0\nIg== 1\n");
    CHECK(tokenizer_open(&k, in_folder("spm"), &err) == -1 && !strcmp(err.found, "2"), "%s", err.found);
    put_file("spm/tokenizer.model", "IQ== 0\nIg= 1\n");
    CHECK(tokenizer_open(&k, in_folder("spm"), &err) == -1 && strstr(err.where, "line 2"), "%s", err.where);
    text_free(&t);
    text_free(&out);
    text_free(&pending);
}

static void test_normalizers(void)
{
    static struct vocabulary v;
    struct tokenizer *t;
    test_begin("normalizers and Metaspace of a tokenizer.json");
    make_letters(&v);
    make_directory(in_folder("meta"), NULL);
    put_file("meta/tokenizer.json", SMALL("[" ADDED("9", "<s>", "true", PLAIN) "]", "null",
             "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"first\",\"split\":false}", "null",
             "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"first\",\"split\":false}",
             "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"\xe2\x96\x81\":2,\"\xe2\x96\x81" "a\":3},\"merges\":[\"\xe2\x96\x81 a\"]}"));
    if ((t = open_or_fail(in_folder("meta")))) {
        struct text out = { 0 };
        check_ids(t, "a b<s>a", 0, "3 2 1 9 0");
        check_ids(t, " a", 0, "3");
        check_ids(t, "<s>a", 0, "9 0");
        CHECK(!tokenizer_decode(t, (int[]){ 3, 2, 1 }, 3, 0, &out, NULL) && !strcmp(out.s, "a b"), "%s", out.s);
        text_free(&out);
    }
    tokenizer_close(t);
    put_file("meta/tokenizer.json", SMALL("[" ADDED("9", "<s>", "true", ",\"normalized\":true") "]",
             "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"b\"},{\"type\":\"Replace\","
             "\"pattern\":{\"String\":\"bb\"},\"content\":\"a\"},{\"type\":\"NFC\"}]}", BYTES_ALONE, "null",
             "{\"type\":\"ByteLevel\"}", SMALL_MODEL("")));
    if ((t = open_or_fail(in_folder("meta")))) {
        check_ids(t, "aa", 0, "1 0 0");
        check_ids(t, "bbb", 0, "0 0");
        check_ids(t, "<s>a", 0, "9 0");     /* looked for as b<s> */
    }
    tokenizer_close(t);
}

int main(void)
{
    if (folder_make()) return 1;
    test_refused();
    test_parts_refused();
    test_parts_read();
    test_damaged();
    test_gguf();
    test_sentencepiece();
    test_normalizers();
    remove_tree(folder, NULL);
    return test_end();
}
