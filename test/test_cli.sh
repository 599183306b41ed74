#!/bin/sh
# The program's words: help, wrong usage, --config, exit codes; eval and generate over a tiny random
# model with a tokenizer of bytes, where every figure can be had in a second way.
LC_ALL=C
export LC_ALL
. test/checks.sh
# run CODE WORDS...: output in $dir/out, messages in $dir/err
run() {
    checked
    want=$1; shift
    $EXE "$LORA" "$@" >"$dir/out" 2>"$dir/err" </dev/null
    code=$?
    [ "$code" = "$want" ] || { wrong "lora $*: exit $code, not $want"; tail -3 "$dir/err"; }
}
out() { checked; grep -q -e "$1" "$dir/out" || { wrong "not on stdout: $1"; head -5 "$dir/out"; }; }
err() { checked; grep -q -e "$1" "$dir/err" || { wrong "not on stderr: $1"; head -5 "$dir/err"; }; }
silent() { checked; [ -s "$dir/$1" ] && { wrong "something on std$1"; head -3 "$dir/$1"; }; }
last() { checked; tail -n 1 "$dir/err" | grep -q -e "$1" || { wrong "not the last line: $1"; tail -n 2 "$dir/err"; }; }
same() { checked; cmp -s "$1" "$2" || { wrong "$1 and $2 differ"; head -c 300 "$1"; echo; head -c 300 "$2"; echo; }; }
# near A B BOUND: numbers
near() { checked; awk -v a="$1" -v b="$2" -v e="$3" 'BEGIN { d = a - b; exit !(d <= e && -d <= e && a != "" && b != "") }' || wrong "$1 and $2"; }
figure() { sed 's/.*"'"$1"'"://; s/[,}].*//' "$2"; }

begin "help and version go to stdout"
run 0 help; out "lora JOB"; out "^  eval "; silent err
run 0 --help; out "^  eval "; silent err
run 0 help help; out "^  eval "; silent err
run 0 --version; out "^lora [0-9]"; silent err
run 0 help eval; out "--max-new-tokens N"; out "(64)"; silent err
cp "$dir/out" "$dir/help"
run 0 eval --help; same "$dir/out" "$dir/help"; silent err
run 0 eval --task nonsense --help; same "$dir/out" "$dir/help"
for job in $($EXE "$LORA" help | sed -n 's/^  \([a-z]*\) .*/\1/p'); do run 0 help "$job"; out "^lora $job"; silent err; done

begin "no job, an unknown one, one of a later version"
run 2; err "^  eval "; last "no job"; silent out
run 2 evil; err "^  eval "; err "unknown job: evil"; last "did you mean eval?"; silent out
run 2 compare; last "does not have yet: compare"; silent out
run 2 help evil; err "unknown job"

begin "wrong options are named, with the nearest known one"
run 2 eval --modle x; err "^lora: unknown option: --modle$"; last "did you mean --model?"
run 2 eval --max_new_tokns 3; err "did you mean --max-new-tokens?"
run 2 eval --batch-size 16x; last '^lora: wrong value: --batch-size: expected a whole number, found "16x"$'
run 2 eval --batch-size=0; last "expected 1 to 4096"
run 2 eval --batch-size=; last '^lora: wrong value: --batch-size: expected a whole number, found ""$'
run 2 eval --batch-size 99999999999999999999; last "a whole number"
run 2 eval --batch-size; err "an option without its value: --batch-size"
run 2 eval --task loss; last 'expected one of lm|classify|generate, found "loss"'
run 2 eval --max-memory 5Q; last "expected a size"
run 2 eval --max-memory 0; last '^lora: wrong value: --max-memory: expected a size such as 500M or 4G, found "0"$'
run 2 generate --temperature nan; last 'expected a number, found "nan"'
run 2 generate --temperature 0x10; last 'expected a number'
run 2 generate --chat=maybe; last "expected true or false"
run 2 train --use-dora; last "does not have yet: --use-dora"
run 2 eval word; err "unexpected word: word"
run 2 eval; err "model is missing"; silent out
run 2 eval --model m --data d --token-losses f --task classify; err "does not go with this --task"
run 2 eval --model m --data d --token-losses f --json f; err "--json and --token-losses name one file: f$"
run 2 eval --model m --data d --predictions f --json f --task classify; err "--json and --predictions name one file: f$"
run 2 generate --model m; err "one of --prompt, --messages and --chat"
run 2 eval --backend nonsense --model m --data d --batch-size -1; last "expected 1 to 4096"

begin "a wrong value of any option of any job is wrong usage, and the option is named"
n=0
for job in $($EXE "$LORA" help | sed -n 's/^  \([a-z]*\) .*/\1/p'); do
    $EXE "$LORA" help "$job" | sed -n 's/^  --\([a-z0-9-]*\)  *\([^ ]*\).*/\1 \2/p' >"$dir/options"
    while read -r option value; do
        case $value in
        N|K) bad_value=1x ;;
        X|F|P) bad_value=zz ;;
        SIZE) bad_value=5Q ;;
        C) bad_value=';;' ;;
        *"|"*) bad_value=nonsense ;;
        TEXT|SCHEDULE) continue ;;
        [A-Z]*) bad_value= ;;
        *) bad_value=maybe ;;      # a flag
        esac
        case $job in
        train) set -- --model m --data d --out o ;;
        plan) set -- --model m ;;
        *) set -- ;;
        esac
        run 2 "$job" "$@" "--$option=$bad_value"
        err "$option"
        n=$((n + 1))
    done <"$dir/options"
done
[ $n -gt 200 ] || wrong "$n options only"
for word in backend chat-template; do run 2 bench "--$word" nonsense; err "^lora: wrong value: --$word: expected .*, found .*nonsense"; done
run 2 eval --prompt-template "no place"; last '^lora: wrong value: --prompt-template: expected {text} or {document} in it, found "no place"$'
run 2 train --lora-alpha 0; last "wrong value: --lora-alpha"
run 2 generate --messages -h; err "model is missing"
run 0 generate -h; out "^lora generate"

begin "a job that fails: one line, exit 1, nothing on stdout"
run 1 eval --model "$dir/none" --data d; last "^lora: .*none"; silent out
run 2 eval --model "$dir" --data d --backend nonsense; err "^lora: wrong value: --backend: expected one of: auto, .*, found \"nonsense\"$"; silent out
run 2 eval --model "$dir" --data d --chat-template nonsense; err "^lora: wrong value: --chat-template: .*nonsense"

begin "backends: each is there with a reason"
run 0 backends; out "^ref64 *usable"; out "^ref *usable"; out "^neon *\(not \)\{0,1\}usable"; out "^avx2 *\(not \)\{0,1\}usable"; out "^avx512 *\(not \)\{0,1\}usable"; out "auto takes this one"

# A tiny model with the tokenizer of bytes.
m=$dir/m
cat >"$dir/config.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "vocab_size": 259,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
 "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
 "hidden_act": "silu", "eos_token_id": 257, "initializer_range": 0.3}
END
. test/bytes.sh
begin "a tiny model"
run 0 init --config "$dir/config.json" --out "$m" --seed 5
tokenizer >"$m/tokenizer.json"
echo '{"eos_token": "<|im_end|>"}' >"$m/tokenizer_config.json"
run 0 tokenize --model "$m" --text 'a"\ é<|im_end|>'; out "^97 34 92 32 195 169 257$"
small="--model $m --chat-template chatml --backend ref --threads 1"

begin "--config: the same options, the command line wins, unknown names are refused"
printf '%s\n' '{"text":"one two"}' >"$dir/t.jsonl"
printf 'model: %s   # the tiny one\n\n# a comment\ndata: "%s"\nbatch_size: 4\nper_device_eval_batch_size: 4\n' "$m" "$dir/t.jsonl" >"$dir/c"
run 2 eval --config "$dir/c"; last "an option given twice: .*line 6: per_device_eval_batch_size"
printf 'model: %s   # the tiny one\n\n# a comment\ndata: "%s"\ntask: generate\nbackend: ref\n' "$m" "$dir/t.jsonl" >"$dir/c"
run 0 eval --config "$dir/c" --task lm; out "^loss "
printf 'modell: x\n' >"$dir/c"
run 2 eval --config "$dir/c"; err "unknown option: .*c, line 1: modell"; last "did you mean --model?"
printf 'model x\n' >"$dir/c"
run 2 eval --config "$dir/c"; last "line 1: .*expected name: value"
printf 'model: x\n : 3\n' >"$dir/c"
run 2 eval --config "$dir/c"; last "cannot read the configuration: .*line 2: : expected name: value"
printf 'batch-size: 2.5\n' >"$dir/c"
run 2 eval --config "$dir/c"; last "line 1: batch-size: expected a whole number"
printf 'config: other\n' >"$dir/c"
run 2 eval --config "$dir/c"; last "cannot name another: .*line 1: config"
run 1 eval --config "$dir/none"; last "^lora: cannot open: $dir/none: found "; silent out       # a bad file, as any other is
run 1 eval --config "$dir"; last "^lora: cannot read: $dir: expected a file, found a directory"
printf 'model: a\0b\n' >"$dir/c"
run 1 eval --config "$dir/c"; last "it is not text"
printf '\357\273\277model: %s\r\ndata: %s\r\nbackend: ref\r\n' "$m" "$dir/t.jsonl" >"$dir/c"
run 0 eval --config "$dir/c"; out "^loss "

begin "words that users of other tools write"
run 0 eval --model_name_or_path "$m" --data "$dir/t.jsonl" --backend ref; out "^loss "
run 2 train --load_best_model_at_end True --use_rslora false; err "--model, --data and --out are needed"
run 2 train --gradient_checkpointing true; err "--model, --data and --out are needed"
run 2 train --gradient_checkpointing maybe; last "one of on|off|auto"
run 2 train --use_rslora maybe; err "unexpected word: maybe"
run 2 generate --prompt --raw; last "written --prompt=VALUE"
run 2 train --adam-beta1 1; last 'expected 0 to 0.9999999, found "1"'
printf 'text\nx\ncaf\351\n' >"$dir/latin.csv"
run 1 eval $small --data "$dir/latin.csv"; err "latin.csv, line 3: expected valid UTF-8, found byte 0xe9$"; last "iconv"
run 2 eval $small --data "$dir/t.jsonl,"; last "wrong value: --data: .*t.jsonl,: expected files with commas"

begin "values that are wrong for the model are wrong usage too"
printf '%s\n' '{"input_ids":[1,2,3]}' >"$dir/i.jsonl"
wrong_value() { run 2 train --model "$m" --data "$dir/i.jsonl" --out "$dir/no" --max-steps 1 "$@"; [ -e "$dir/no" ] && wrong "$* wrote"; }
wrong_value --layers 1-0; last "^lora: cannot use the option: layers: .*found 1-0"
wrong_value --layers 9; err "from 0 to 1"
wrong_value --target-modules foo; last "^lora: wrong value: .*target-modules: foo: expected q_proj"
wrong_value --target-modules '/x(/'; last "^lora: wrong value: .*x("
wrong_value --rank-pattern q_proj; last "rank-pattern: expected MODULE=NUMBER"
wrong_value --rank-pattern q_proj=0; last "^lora: wrong value: .*rank, .*q_proj"
wrong_value --rank-pattern zz=3; err "rank-pattern: zz"
wrong_value --alpha-pattern q_proj=0; err "^lora: wrong value: .*alpha, .*q_proj"
wrong_value --batch-size 1048576 --gradient-accumulation-steps 2; last "^lora: wrong value: --batch-size x --gradient-accumulation-steps: .*found 2097152"
run 2 generate --model "$m" --adapter o1=x --prompt hi; last '^lora: wrong value: --adapter: expected DIR or DIR=SCALE, with a number for SCALE, found "o1=x"$'
run 1 generate --model "$m" --adapter o1=2 --prompt hi; err "cannot open: o1/"
run 2 tokenize --model "$m" --ids 1,x; last '^lora: wrong value: --ids: expected ids, .*found "x"$'
run 0 tokenize --model "$m" --text -h; out "^45 104$"
run 0 train --model "$m" --data "$dir/i.jsonl" --out "$dir/yes" --max-steps 1 --lora-r 1 --use-dora false --backend ref
printf 'load_in_4bit: no\n' >"$dir/c"
run 0 eval --config "$dir/c" --model "$m" --data "$dir/i.jsonl" --backend ref
printf 'use_dora: true\n' >"$dir/c"
run 2 train --config "$dir/c" --model "$m" --data "$dir/i.jsonl" --out "$dir/no"; last "does not have yet: .*c, line 1: use_dora"
printf 'text;label\na;b\n' >"$dir/semi.csv"
run 0 eval $small --data "$dir/semi.csv" --csv-delimiter ';'; err "rows of text and label"
printf 'text\tlabel\na\tb\n' >"$dir/tab.csv"
run 0 eval $small --data "$dir/tab.csv" --csv-delimiter tab; err "rows of text and label"
run 1 eval $small --data "$dir/semi.csv" --text-column body; err "expected one of the known forms, the text in body, found keys"
printf '{"text":"a","label":"b"}\n{"text":"a","label":null}\n' >"$dir/null.jsonl"
run 1 eval $small --data "$dir/null.jsonl"; err "null.jsonl, line 2: expected text and label, found keys text, label: null$"
run 1 eval $small --data "$dir/semi.csv"; err "found keys text;label$"; last "^hint: .*--csv-delimiter"
cp "$dir/tab.csv" "$dir/tab.tsv"
run 1 eval $small --data "$dir/tab.tsv" --csv-delimiter tab; err "found 't'$"; last "^hint: a table's name ends in .csv"
printf 'text;label\na, b;c\n' >"$dir/semi.csv"
run 1 eval $small --data "$dir/semi.csv"; err "line 2: expected 1 field, as in the header, found 2$"; last "^hint: .*--csv-delimiter"

begin "merge: into a new or an empty directory"
mkdir "$dir/full" "$dir/empty"
echo mine >"$dir/full/notes"
run 1 merge --model "$m" --out "$dir/full"; last "^lora: cannot write over other files: $dir/full: expected a new or an empty directory"
[ "$(ls "$dir/full")" = notes ] || wrong "it wrote: $(ls "$dir/full")"
run 1 merge --model "$m" --out "$dir/full" --data "$dir/t.jsonl" --backend ref; last "cannot write over other files"
grep -q "rows of" "$dir/err" && wrong "it read the rows before it looked at --out"
run 0 merge --model "$m" --out "$dir/empty"
same "$m/tokenizer.json" "$dir/empty/tokenizer.json"

begin "nothing is written over the model that is read"
for words in merge "train --overwrite --backend ref --data $dir/t.jsonl"; do
    run 1 $words --model "$m" --out "$m"; last "^lora: cannot write over what is read: $m: expected another directory for --out, found the model$"
    [ -f "$m/model.safetensors" ] || wrong "$words took the model away"
done

begin "lm: the report is the mean of the token losses, however rows are packed"
printf '%s\n' '{"text":"one two"}' '{"text":""}' '{"text":"three"}' '{"text":"one two three four five six seven"}' '{"text":""}' >"$dir/t.jsonl"
run 0 eval $small --data "$dir/t.jsonl" --token-losses "$dir/l1" --json "$dir/j"
out "^perplexity"; out "^rows *3"
run 0 eval $small --data "$dir/t.jsonl" --token-losses "$dir/l2" --json - --batch-size 1 --threads 2
same "$dir/l1" "$dir/l2"
near "$(figure loss "$dir/j")" "$(figure loss "$dir/out")" 1e-9
[ "$(wc -l <"$dir/l1")" = 5 ] || wrong "not a line for each row"
[ "$(grep -n '^{"losses":\[\]}$' "$dir/l1" | cut -d : -f 1 | tr '\n' ' ')" = "2 5 " ] || wrong "the rows without targets"
near "$(tr -d '{}[]"a-z:' <"$dir/l1" | tr , '\n' | awk 'NF { s += $1; n++ } END { printf "%.9g", s / n }')" "$(figure loss "$dir/j")" 1e-7
near "$(awk -v x="$(figure loss "$dir/j")" 'BEGIN { printf "%.9g", exp(x) }')" "$(figure perplexity "$dir/j")" 1e-4
near "$(figure target_tokens "$dir/j")" 45 0

begin "a file that cannot be written is said before the work, not after it"
run 1 eval $small --data "$dir/t.jsonl" --token-losses "$dir/unborn" --json "$dir/none/j"; last "^lora: cannot write: $dir/none/j"; silent out
[ -e "$dir/unborn" ] && wrong "it worked first"
ls "$dir" | grep -q tmp && wrong "something half-written is left"

begin "labels that are other ids than the row's: the loss of what the logits before are to give"
printf '%s\n' '{"input_ids":[97,98,99],"labels":[-100,120,121]}' '{"input_ids":[97,120]}' '{"input_ids":[97,98,121],"labels":[-100,-100,121]}' >"$dir/o.jsonl"
run 0 eval $small --data "$dir/o.jsonl" --token-losses "$dir/l"
tr -d '{}[]"a-z:' <"$dir/l" | tr , '\n' >"$dir/l3"
near "$(sed -n 1p "$dir/l3")" "$(sed -n 3p "$dir/l3")" 1e-6; near "$(sed -n 2p "$dir/l3")" "$(sed -n 4p "$dir/l3")" 1e-6
[ "$(wc -l <"$dir/l3")" = 4 ] || wrong "not four targets"
head -n 1 "$dir/o.jsonl" >"$dir/o1.jsonl"
run 0 train --model "$m" --backend ref --data "$dir/o1.jsonl" --lora-r 1 --max-steps 1 --out "$dir/o1"
near "$(sed 's/.*"loss"://; s/,.*//' "$dir/o1/metrics.jsonl")" "$(awk 'NR < 3 { s += $1 } END { printf "%.9g", s / 2 }' "$dir/l3")" 1e-6

begin "lm: what prompts begin with is computed once, and the losses are the same"
for text in "the cat" "the horse" "the cow" "a bird"; do printf '{"text":"%s","label":"%s"}\n' "$text" "${text#* }"; done >"$dir/s.jsonl"
run 0 eval $small --data "$dir/s.jsonl" --token-losses "$dir/l1" --batch-size 1
run 0 eval $small --data "$dir/s.jsonl" --token-losses "$dir/l2"
for l in l1 l2; do tr -d '{}[]"a-z:' <"$dir/$l" | tr , '\n' >"$dir/$l.n"; done
paste "$dir/l1.n" "$dir/l2.n" | awk '{ d = $1 - $2; if (!(d <= 1e-5 && -d <= 1e-5)) bad = 1; n++ } END { exit !(n > 12 && !bad) }' || wrong "other losses"

begin "classify: the tree of labels gives what each label alone gives"
: >"$dir/all.jsonl"
for text in cat horse; do
    for label in aa ab aab bcde; do printf '{"text":"%s","label":"%s"}\n' $text $label; done
done >"$dir/all.jsonl"
run 0 eval $small --data "$dir/all.jsonl" --token-losses "$dir/l"
tr -d '{}[]"a-z:' <"$dir/l" | awk -F, '{ s = 0; for (i = 1; i <= NF; i++) s += $i; print s }' >"$dir/sums"
set -- $(cat "$dir/sums")
printf '{"text":"cat","label":"aa"}\n{"text":"horse","label":"bcde"}\n' >"$dir/two.jsonl"
printf 'bcde\r\naab\naa\n\nab\n' >"$dir/labels"
run 0 eval $small --data "$dir/two.jsonl" --task classify --labels "$dir/labels" --predictions "$dir/p" --json "$dir/j"
best=$(sed -n '1,4p' "$dir/sums" | sort -n | sed -n 1p); near "$(sed -n 1p "$dir/p" | sed 's/.*"log_probability":-//; s/}//')" "$best" 1e-4
at=$(grep -n -e "^$best\$" "$dir/sums" | sed -n 1s/:.*//p)
sed -n 1p "$dir/p" | grep -q "\"prediction\":\"$(echo aa ab aab bcde | cut -d ' ' -f "$at")\"" || wrong "not the likeliest of the first row"
best=$(sed -n '5,8p' "$dir/sums" | sort -n | sed -n 1p); near "$(sed -n 2p "$dir/p" | sed 's/.*"log_probability":-//; s/}//')" "$best" 1e-4
out "^aab  *[0-9.]* *[0-9.]* *[0-9.]* *0$"; out "^accuracy"; out "^macro F1"; out "^weighted F1"; out "confusion"
grep -q '"confusion":{"labels":\["aa","aab","ab","bcde"\],"matrix":\[\[' "$dir/j" || wrong "the confusion matrix"
run 0 eval $small --data "$dir/two.jsonl" --task classify --labels "$dir/labels" --predictions "$dir/p1" --batch-size 1
# rows of a pack share what their prompts begin with: another order of attention's sums
for row in 1 2; do
    near "$(sed -n ${row}p "$dir/p" | sed 's/.*"log_probability"://; s/}//')" "$(sed -n ${row}p "$dir/p1" | sed 's/.*"log_probability"://; s/}//')" 1e-5
done
sed 's/,"log_probability.*//' "$dir/p" >"$dir/names"; sed 's/,"log_probability.*//' "$dir/p1" | cmp -s - "$dir/names" || wrong "other labels one row at a time"
run 0 eval $small --data "$dir/two.jsonl" --task classify; out "^aa "; out "^bcde "
printf '{"text":"horse","label":"bcde"}\n' >"$dir/one.jsonl"
run 0 eval $small --data "$dir/one.jsonl" --task classify --predictions "$dir/p"
near "$(sed 's/.*"log_probability":-//; s/}//' "$dir/p")" "$(sed -n 8p "$dir/sums")" 1e-4
printf '\357\273\277aa\r\nbcde' >"$dir/labels"
run 0 eval $small --data "$dir/one.jsonl" --task classify --labels "$dir/labels"; out "^aa "; out "^bcde "; err "labels: 2$"
printf 'aa\0\nbcde\n' >"$dir/labels"
run 1 eval $small --data "$dir/one.jsonl" --task classify --labels "$dir/labels"; last "cannot read the labels: .*found a NUL byte"
printf 'bcde\naab\naa\nab\n' >"$dir/labels"
run 0 eval $small --data "$dir/two.jsonl" --task classify --labels "$dir/labels" --prompt-template '{labels}? {text}' --json "$dir/j1"
run 0 eval $small --data "$dir/two.jsonl" --prompt-template 'aa, aab, ab, bcde? {text}' --json "$dir/j2"
near "$(figure tokens "$dir/j1")" "$(figure tokens "$dir/j2")" 0
printf '{"text":"cat","label":"aa"}\n{"text":"cat","label":"\303\274\303\261\303\255"}\n' >"$dir/wide.jsonl"
run 0 eval $small --data "$dir/wide.jsonl" --task classify
out "^aa        [01][.]"; out "^$(printf '\303\274\303\261\303\255')       [01][.]"        # columns of characters, not of bytes
printf '{"text":"cat","label":"aa"}\n{"text":"cat","label":"a\\nb"}\n' >"$dir/lines.jsonl"
run 0 eval $small --data "$dir/lines.jsonl" --task classify; out '^a?b   *[01][.]'; out '^   . .*  a?b$'      # a label with a line end takes one line
printf 'aa\n' >"$dir/labels"
run 1 eval $small --data "$dir/two.jsonl" --task classify --labels "$dir/labels"; err "not in the set: .*two.jsonl, row 2: .*found bcde"
printf '{"text":"cat","label":"aa"}\n{"text":"cat","label":" aa"}\n' >"$dir/white.jsonl"
run 0 eval $small --data "$dir/white.jsonl" --task classify; out "^ aa  "; out "^aa  "
run 1 eval $small --data "$dir/white.jsonl" --task classify --chat-template llama3      # it cuts white space: one of them could never win
err '^lora: two labels that no answer can tell apart: " aa" and "aa"$'
cp "$dir/two.jsonl" "$dir/kept.jsonl"
printf 'aa\naab\nab\nbcde\n' | tee "$dir/kept.labels" >"$dir/labels"
for option in json predictions; do
    for what in data=two.jsonl labels=labels; do
        run 1 eval $small --data "$dir/two.jsonl" --labels "$dir/labels" --task classify --$option "$dir/../${dir##*/}/${what#*=}"; silent out
        last "cannot write over what is read: .*/${what#*=}: expected another file for the results, found the ${what%=*}$"
    done
done
run 1 eval $small --data "$dir/two.jsonl" --task classify --json "$m"; last "cannot write over what is read: $m: .*, found the model$"
same "$dir/two.jsonl" "$dir/kept.jsonl"
same "$dir/labels" "$dir/kept.labels"
run 1 eval $small --data "$dir/two.jsonl" --task classify --predictions "$dir"      # said before the work: no report
last "cannot write: $dir: expected a file, found a directory"; silent out
run 1 eval $small --data "$dir/white.jsonl" --task classify --score generate; err 'no answer can tell apart: " aa" and "aa"$'

begin "classify: what cannot win is not computed, and the answer is that of all labels"
for i in a b d f k m p s v y; do printf '%s\n' $i "$i$i" "${i}x${i}y"; done >"$dir/labels"
for text in cat horse "a bird" x "or none of them" 17; do sed "s/.*/{\"text\":\"$text\",\"label\":\"&\"}/" "$dir/labels"; done >"$dir/each.jsonl"
run 0 eval $small --data "$dir/each.jsonl" --token-losses "$dir/l"
run 0 eval $small --data "$dir/each.jsonl" --task classify --labels "$dir/labels" --predictions "$dir/p"
tr -d '{}[]"a-z:' <"$dir/l" | awk -F, '{ s = 0; for (i = 1; i <= NF; i++) s += $i; print s }' >"$dir/sums"
sed 's/.*"prediction":"//; s/"log_probability":-//; s/[",}]/ /g' "$dir/p" | paste -d ' ' "$dir/sums" - | awk -v labels="$dir/labels" '
    BEGIN { while ((getline line <labels) > 0) name[n++] = line }
    { sum[NR - 1] = $1; got[NR - 1] = $2; score[NR - 1] = $3 }
    END {
        for (i = 0; i < NR; i++) {
            first = i - i % n; best = first
            for (k = first; k < first + n; k++) if (sum[k] < sum[best]) best = k
            d = score[i] - sum[best]
            if (got[i] != name[best - first] || !(d < 1e-4 && d > -1e-4)) { print i, got[i], score[i], name[best - first], sum[best]; bad = 1 }
        }
        exit bad || n != 30 || NR != 6 * n
    }' >"$dir/other" || wrong "not the likeliest of all: $(head -n 3 "$dir/other")"

begin "generate: the cache gives what the whole sequence gives"
run 0 generate $small --prompt "hello" --max-new-tokens 12 --ids
new=$(cat "$dir/out")
[ "$(echo "$new" | wc -w)" = 12 ] || case $new in *257) ;; *) wrong "neither 12 ids nor an end: $new" ;; esac
run 0 tokenize --model "$m" --text "<|im_start|>user
hello<|im_end|>
<|im_start|>assistant
"
prompt=$(tr ' ' ',' <"$dir/out")
blank=$(echo "$prompt" | sed 's/[0-9][0-9]*/-100/g')
new=$(echo "$new" | tr ' ' ',')
echo "{\"input_ids\":[$prompt,$new],\"labels\":[$blank,$new]}" >"$dir/g.jsonl"
run 0 eval $small --data "$dir/g.jsonl" --json -; near "$(figure token_accuracy "$dir/out")" 1 0

begin "generate: several rows at a time are the same answers"
i=0
: >"$dir/g.jsonl"; : >"$dir/want"
for text in hello "a longer prompt than that" x yes no maybe; do
    printf '{"messages":[{"role":"user","content":"%s"},{"role":"assistant","content":"%s"}]}\n' "$text" "$i" >>"$dir/g.jsonl"
    run 0 generate $small --prompt "$text" --max-new-tokens 9
    cat "$dir/out" >>"$dir/want"
done
run 0 eval $small --data "$dir/g.jsonl" --task generate --max-new-tokens 9 --batch-size 4 --predictions "$dir/p4"; out "^token F1"; out "^exact match"
run 0 eval $small --data "$dir/g.jsonl" --task generate --max-new-tokens 9 --batch-size 1 --predictions "$dir/p1"
same "$dir/p4" "$dir/p1"
[ "$(wc -l <"$dir/p4")" = 6 ] || wrong "not six answers"
run 0 eval $small --data "$dir/g.jsonl" --task classify --score generate --max-new-tokens 9 --json -; near "$(figure rows "$dir/out")" 6 0

begin "generate: an id that the tokenizer does not have, as of a padded embedding, has no text"
for text in hi there a b c d e f; do
    $EXE "$LORA" generate $small --prompt $text --max-new-tokens 100 --ids 2>"$dir/err" | grep -q -w 258 && break
    text=
done
[ -n "$text" ] || wrong "no answer has the id 258"
run 0 generate $small --prompt "$text" --max-new-tokens 100
tr -d '\n' <"$dir/out" >"$dir/said"
printf '{"messages":[{"role":"user","content":"%s"},{"role":"assistant","content":"x"}]}\n' "$text" >"$dir/g.jsonl"
run 0 eval $small --data "$dir/g.jsonl" --task generate --max-new-tokens 100 --predictions "$dir/p"
[ -s "$dir/said" ] && [ -s "$dir/p" ] || wrong "no text"

begin "generate: a NUL does not end an answer"
for text in 32 hi there a b c; do
    before=$($EXE "$LORA" generate $small --prompt $text --max-new-tokens 100 --ids 2>"$dir/err" | tr ' ' '\n' | grep -n '^0$' | sed 's/:.*//' | head -1)
    [ "${before:-1}" -gt 1 ] && break
done
[ "${before:-1}" -gt 1 ] || wrong "no answer has the id 0 behind another"
printf '{"messages":[{"role":"user","content":"%s"},{"role":"assistant","content":"x"}]}\n' "$text" >"$dir/g.jsonl"
run 0 eval $small --data "$dir/g.jsonl" --task generate --max-new-tokens $((before - 1)) --predictions "$dir/p"
run 0 eval $small --data "$dir/g.jsonl" --task generate --max-new-tokens "$before" --predictions "$dir/p1"
differ "$dir/p" "$dir/p1"        # else the answer ends before the NUL

begin "generate: sampling by seed, top-k 1 is greedy, stop texts, --raw"
run 0 generate $small --prompt hello --max-new-tokens 20 --ids; cp "$dir/out" "$dir/greedy"
run 0 generate $small --prompt hello --max-new-tokens 20 --ids --temperature 1.5 --top-k 1; same "$dir/out" "$dir/greedy"
run 0 generate $small --prompt hello --max-new-tokens 20 --ids --temperature 1.5 --top-p 0; same "$dir/out" "$dir/greedy"
run 0 generate $small --prompt hello --max-new-tokens 20 --ids --temperature 1.5 --min-p 1; same "$dir/out" "$dir/greedy"
run 0 generate $small --prompt hello --max-new-tokens 20 --ids --temperature 2 --seed 1; cp "$dir/out" "$dir/one"
run 0 generate $small --prompt hello --max-new-tokens 20 --ids --temperature 2 --seed 1 --threads 3; same "$dir/out" "$dir/one"
run 0 generate $small --prompt hello --max-new-tokens 20 --ids --temperature 2 --seed 2; differ "$dir/out" "$dir/one"
run 0 generate $small --prompt hello --max-new-tokens 40 --ids --repetition-penalty 100
[ "$(tr ' ' '\n' <"$dir/out" | sort | uniq -d | wc -l)" = 0 ] || wrong "an id twice under a penalty of 100"
run 0 generate --model "$m" --backend ref --raw --prompt ab --max-new-tokens 30 --ids; id=$(cut -d ' ' -f 3 "$dir/out")
run 0 tokenize --model "$m" --ids "$id"; stop=$(cat "$dir/out")
run 0 generate --model "$m" --backend ref --raw --prompt ab --max-new-tokens 30; cp "$dir/out" "$dir/whole"
case $stop in
[!-~]|?) run 0 generate --model "$m" --backend ref --raw --prompt ab --max-new-tokens 30 --stop "$stop"
    awk -v s="$stop" 'NR == 1 { i = index($0, s); print i ? substr($0, 1, i - 1) : $0 }' "$dir/whole" >"$dir/cut"
    same "$dir/out" "$dir/cut" ;;
esac
run 0 generate --model "$m" --backend ref --prompt ab --max-new-tokens 2; err "Alpaca"

begin "generate: the EOS of generation_config.json end an answer too"
cp -R "$m" "$dir/ends"
ends() { printf '%s' "$1" >"$dir/ends/generation_config.json"; }
raw="generate --model $dir/ends --backend ref --raw --prompt ab --max-new-tokens 30 --ids"
rm -f "$dir/ends/generation_config.json"; run 0 $raw; cp "$dir/out" "$dir/whole"
tr ' ' '\n' <"$dir/whole" | awk -v s="$id" '{ printf "%s%s", n++ ? " " : "", $0 } $0 == s { exit } END { print "" }' >"$dir/cut"
differ "$dir/whole" "$dir/cut"
ends "{\"eos_token_id\": $id}"; run 0 $raw; same "$dir/out" "$dir/cut"
ends "{\"eos_token_id\": [1, 2, 3, 4, 5, 6, 7, $id]}"; run 0 $raw; same "$dir/out" "$dir/cut"
for ends in '{"temperature": 0.7}' '{"eos_token_id": null}'; do ends "$ends"; run 0 $raw; same "$dir/out" "$dir/whole"; done
ends '{"eos_token_id": "x"}'; run 1 $raw; last "$dir/ends/generation_config.json: eos_token_id: expected a token id"
ends '[2]'; run 1 $raw; last "$dir/ends/generation_config.json: expected an object"
ends '{"eos_token_id": [2'; run 1 $raw; err "$dir/ends/generation_config.json"

begin "an option that changes nothing where it stands is said to"
nothing() {     # WARNING JOB WORDS: said, and not without the last two words
    text=$1; shift
    run 0 "$@"; err "^warning: $text\$"
    words=; while [ $# -gt 2 ]; do words="$words $1"; shift; done
    run 0 $words; ! grep -q "change.* nothing" "$dir/err" || wrong "said without it: $words"
}
echo '{"input_ids":[5,6,7]}' >"$dir/three.jsonl"
nothing "--prompt-template changes nothing with --raw" generate --model "$m" --backend ref --raw --prompt ab --max-new-tokens 2 --prompt-template {text}
nothing "--no-special and --text-only change nothing with --ids" tokenize --ids 5,6 --model "$m" --no-special --text-only
nothing "the options of quantisation change nothing with --adapter" inspect --adapter test/goldens/data/train/adapter/initial_adapter --quant-type nf4
nothing "--max-new-tokens changes nothing where no text is generated" eval --model "$m" --backend ref --data "$dir/three.jsonl" --max-new-tokens 3
plan="plan --model $m --backend ref --batch-size 1 --max-length 8"
nothing "--eval-split changes nothing without --data" $plan --eval-split 0.5
nothing "--eval-steps and --metric-for-best change nothing without --eval-data or --eval-split" $plan --eval-steps 5
nothing "--eval-steps and --metric-for-best change nothing without --eval-data or --eval-split" $plan --metric-for-best token_accuracy
run 0 $plan --eval-steps no; ! grep -q nothing "$dir/err" || wrong "no evaluation is what was asked for"
run 0 $plan --max-steps 3 --warmup-steps 3; err "^warning: of 3 steps all are warm-up: the learning rate never comes to 0.0002\$"
run 0 $plan --max-steps 4 --warmup-steps 3; ! grep -q "all are warm-up" "$dir/err" || wrong "one is left"

begin "a file may be a pipe"
echo '[{"role":"user","content":"hi"}]' >"$dir/talk"
run 0 render --chat-template chatml --messages "$dir/talk"; cp "$dir/out" "$dir/want"
cat "$dir/talk" | $EXE "$LORA" render --chat-template chatml --messages /dev/stdin >"$dir/out" 2>"$dir/err" || wrong "exit $?"
[ -s "$dir/want" ] || wrong "nothing rendered"
same "$dir/out" "$dir/want"

begin "render: tools are refused"
echo '{"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function"}]}' >"$dir/talk"
run 1 render --chat-template chatml --messages "$dir/talk"; err "tools, which are not supported"; silent out

begin "a conversation: each turn is what the messages alone give"
printf 'hi\nand then?\n' >"$dir/lines"
$EXE "$LORA" generate $small --chat --max-new-tokens 1 <"$dir/lines" >"$dir/chat" 2>"$dir/err" || wrong "exit $?"
run 0 generate $small --prompt hi --max-new-tokens 1; said=$(cat "$dir/out")
run 0 generate --model "$m" --backend ref --threads 1 --max-new-tokens 1 --raw --prompt "<|im_start|>user
hi<|im_end|>
<|im_start|>assistant
$said<|im_end|>
<|im_start|>user
and then?<|im_end|>
<|im_start|>assistant
"
{ printf '%s\n' "$said"; cat "$dir/out"; } >"$dir/want"
same "$dir/chat" "$dir/want"
printf 'hi\0there\n' | $EXE "$LORA" generate $small --chat --max-new-tokens 1 >"$dir/out" 2>"$dir/err"
[ $? = 1 ] || wrong "a NUL byte in a turn"
last "^lora: cannot read a turn: standard input: found a NUL byte$"; silent out

begin "an adapter: run.json gives what was left open, and what was taken is said"
run 0 train --model "$m" --chat-template chatml --data "$dir/all.jsonl" --prompt-template 'Say {text}:\n' --out "$dir/a" --max-steps 2 --lora-r 2 --batch-size 4 --save-steps 100 --backend ref --learning-rate 0.01 --warmup-steps 0
run 0 eval --model "$m" --backend ref --adapter "$dir/a" --data "$dir/two.jsonl" --task classify --predictions "$dir/p"
err "chat template of the adapter: chatml"; err "prompt template of the adapter: Say {text}"; err "labels of the adapter: 4"; out "^aab "
run 0 eval --model "$m" --backend ref --adapter "$dir/a" --data "$dir/two.jsonl" --json -; cp "$dir/out" "$dir/j1"
program=$LORA; case $LORA in /*) ;; *) program=$(pwd)/$LORA ;; esac
(cd "$dir/a/checkpoint-2" && $EXE "$program" eval --model "$m" --backend ref --adapter . --data "$dir/two.jsonl" --json - 2>/dev/null >"$dir/jc") || wrong "exit $?"
near "$(figure loss "$dir/j1")" "$(figure loss "$dir/jc")" 0
run 0 eval --model "$m" --backend ref --adapter "$dir/a/checkpoint-2/" --data "$dir/two.jsonl" --json -; err "prompt template of the adapter: Say"
near "$(figure loss "$dir/j1")" "$(figure loss "$dir/out")" 0
echo '[{"role":"user","content":"hi"}]' >"$dir/talk"
run 0 generate --model "$m" --backend ref --adapter "$dir/a" --messages "$dir/talk" --max-new-tokens 1; err "the prompt template is for --prompt: the turns of $dir/talk are as they stand"
run 0 generate --model "$m" --backend ref --adapter "$dir/a" --prompt hi --max-new-tokens 1; grep -q "is for --prompt" "$dir/err" && wrong "a note of nothing"
run 0 eval $small --prompt-template 'Say {text}:\n' --adapter "$dir/a=1" --data "$dir/two.jsonl" --json -
near "$(figure loss "$dir/j1")" "$(figure loss "$dir/out")" 0
run 0 eval $small --prompt-template 'Say {text}:\n' --adapter "$dir/a=0.5" --adapter "$dir/a=0.5" --data "$dir/two.jsonl" --json -
near "$(figure loss "$dir/j1")" "$(figure loss "$dir/out")" 1e-5
run 0 eval $small --prompt-template 'Say {text}:\n' --adapter "$dir/a=0" --data "$dir/two.jsonl" --json "$dir/j0"; err "warning: .*changes nothing"
run 0 eval $small --prompt-template 'Say {text}:\n' --data "$dir/two.jsonl" --json "$dir/jb"
grep -q "is not used" "$dir/err" && wrong "a note of nothing"
run 0 eval $small --prompt-template 'Say {text}:\n' --data "$dir/g.jsonl"; err "the prompt template is not used: .* these are rows of messages$"
near "$(figure loss "$dir/j0")" "$(figure loss "$dir/jb")" 1e-6
cp -R "$dir/a" "$dir/unmatched"
sed 's/"r": 2,/"r": 2, "rank_pattern": {"zz": 3, "q_proj": 2}, "alpha_pattern": {"layers.9.q_proj": 3},/' "$dir/a/adapter_config.json" \
    >"$dir/unmatched/adapter_config.json"
unmatched="^warning: $dir/unmatched/adapter_config.json: keys that match no adapted module, and change nothing: rank_pattern: zz, alpha_pattern: layers.9.q_proj\$"
run 0 eval --model "$m" --backend ref --adapter "$dir/unmatched" --data "$dir/two.jsonl"; err "$unmatched"
run 0 train --model "$m" --backend ref --init-adapter "$dir/unmatched" --data "$dir/two.jsonl" --out "$dir/from" --max-steps 1; err "$unmatched"
run 0 export --model "$m" --adapter "$dir/unmatched" --out "$dir/unmatched.gguf"; err "$unmatched"
run 0 eval --model "$m" --backend ref --adapter "$dir/a" --data "$dir/two.jsonl"; grep -q "match no adapted" "$dir/err" && wrong "a warning of no keys"

begin "an adapter whose name ends like a scale is that adapter"
cp -r "$dir/a" "$dir/n=0.5"
value() { sed -n 's/.*"loss": *\([^,}]*\).*/\1/p' "$dir/out"; }
run 0 eval --model "$m" --backend ref --data "$dir/two.jsonl" --adapter "$dir/a" --json -; whole=$(value)
run 0 eval --model "$m" --backend ref --data "$dir/two.jsonl" --adapter "$dir/n=0.5" --json -
[ "$(value)" = "$whole" ] || wrong "a scale was read: $(value), not $whole"
cp -r "$dir/a" "$dir/n"
run 1 eval --model "$m" --backend ref --data "$dir/two.jsonl" --adapter "$dir/n=0.5"
err "^lora: an adapter, or another with a scale?: --adapter: found $dir/n=0.5 and $dir/n are both there$"; last "^hint: $dir/n=0.5/ is the one, $dir/n/=0.5 the other$"
run 0 eval --model "$m" --backend ref --data "$dir/two.jsonl" --adapter "$dir/n=0.5/" --json -; one=$(value)
run 0 eval --model "$m" --backend ref --data "$dir/two.jsonl" --adapter "$dir/n/=0.5" --json -; half=$(value)
[ "$one" = "$whole" ] && [ "$half" != "$whole" ] || wrong "the hint does not help: $one, $half, $whole"
rm -r "$dir/n" "$dir/n=0.5"

begin "a file that is named twice, one of a model for results, and a full disk are said"
run 0 eval $small --data "$dir/two.jsonl" --data "$dir/two.jsonl"; err "^warning: --data .* is not used: --data is given again, and several files are parted by commas$"
run 1 eval --model "$m" --backend ref --adapter "$dir/a" --data "$dir/two.jsonl" --json "$dir/a/adapter_model.safetensors"
last "cannot write over a file of a model, an adapter or a run: .*adapter_model.safetensors"
run 1 inspect --model "$m" --json "$m/config.json"; last "cannot write over a file of a model"
cp "$dir/two.jsonl" "$dir/kept.jsonl"
both="--data $dir/a/none.jsonl,$dir/two.jsonl"; cp "$dir/two.jsonl" "$dir/a/none.jsonl"
for option in json token-losses; do
    run 1 eval --model "$m" --backend ref $both --$option "$dir/two.jsonl"; last "cannot write over what is read: .*found the data$"
done
cp "$dir/two.jsonl" "$dir/a/model-00001-of-00001.safetensors"
printf 'seed: 1\n' >"$dir/c"
run 1 eval --model "$m" --backend ref --config "$dir/c" $both --json "$dir/c"; last "cannot write over what is read: .*found the configuration$"
run 1 gradients --model "$m" --adapter "$dir/a" $both --out "$dir/two.jsonl"; last "cannot write over what is read: .*found the data$"
for what in a/model-00001-of-00001.safetensors a/adapter_model.safetensors a/adapter_config.json; do
    run 1 gradients --model "$m" --adapter "$dir/a" $both --out "$dir/$what"; last "cannot write over a file of a model"
    run 1 export --model "$m" --adapter "$dir/a" --out "$dir/$what"; last "cannot write over a file of a model"
done
for name in tokenizer.model trainer_state.json; do
    cp "$dir/c" "$dir/$name"
    run 1 eval --model "$m" --backend ref --data "$dir/two.jsonl" --json "$dir/$name"; last "cannot write over a file of a model"
    rm "$dir/$name"
done
rm "$dir/a/none.jsonl" "$dir/a/model-00001-of-00001.safetensors"
for i in 1 2; do        # what a job wrote itself is replaced
    run 0 gradients --model "$m" --adapter "$dir/a" --data "$dir/two.jsonl" --out "$dir/g.safetensors"
    run 0 export --model "$m" --adapter "$dir/a" --out "$dir/g.gguf"
done
same "$dir/two.jsonl" "$dir/kept.jsonl"
printf 'prompt-template: "a # {text}"\r\n' >"$dir/c"
run 0 train --model "$m" --backend ref --config "$dir/c" --data "$dir/two.jsonl" --out "$dir/crlf" --max-steps 1
grep -q '"prompt_template": "a # {text}"' "$dir/crlf/run.json" || wrong "quotes of a line that ends in CRLF stay"
if [ -c /dev/full ]; then
    $EXE "$LORA" eval $small --data "$dir/two.jsonl" >/dev/full 2>"$dir/err" && wrong "a full disk is no error"
    last "cannot write: standard output"
fi

finish
