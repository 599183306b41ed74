# A tokenizer.json with one id for each byte, <|im_start|> 256 and <|im_end|> 257, for tests to take in.
tokenizer() {
    awk 'function put(b,  c) {
        c = b; if (!((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174)) c = 256 + rest++
        if (c == 34 || c == 92) printf "\\"
        if (c < 128) printf "%c", c; else printf "%c%c", 192 + int(c / 64), 128 + c % 64 }
    BEGIN { printf "{\"added_tokens\":[{\"id\":256,\"content\":\"<|im_start|>\",\"special\":true},"
        printf "{\"id\":257,\"content\":\"<|im_end|>\",\"special\":true}],\"normalizer\":null,"
        printf "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
        printf "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{"
        for (i = 0; i < 256; i++) { printf "%s\"", i ? "," : ""; put(i); printf "\":%d", i }
        printf "},\"merges\":[]}}\n" }'
}
