#!/usr/bin/env bash
# Everything that needs a GPU, in one go; `tools/gpu_check.sh --help` says what.
set -u -o pipefail

# What the tests and the command import, and what that needs, without torch and triton.
PACKAGES=(
    annotated-doc annotated-types anyio blake3 certifi click diskcache fastapi gguf h11
    httpcore httpx hypothesis idna iniconfig jinja2 markdown-it-py markupsafe mdurl msgspec
    numpy opentelemetry-api packaging pluggy prometheus-client psutil pydantic pydantic-core
    pygments pytest pytest-timeout pyyaml pyzmq rich shellingham sniffio sortedcontainers
    starlette tqdm typer typing-extensions typing-inspection uvicorn xxhash
)
# Runs on any x86-64 with AVX2, not only on the one that builds it.
PORTABLE="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON"

# Seconds; together with the installation less than ten minutes.
TESTS_LIMIT=280
BENCH_LIMIT=280

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1

usage() {
    cat <<END
tools/gpu_check.sh                       on the machine with the GPU, no network needed
tools/gpu_check.sh try                   the same without a GPU: interpreted, tiny, means nothing
tools/gpu_check.sh wheels DIR VERSION    before, with a network: what to carry there, for Python VERSION

Installs wheels into a folder of its own, runs the tests of kernels and of the torch engine
(tests/test_triton_*.py, tests/test_torch_*.py) and 'hetero bench kernels', in under ten minutes.
Goes on when a part fails, and then ends with 1. Prints a table last.

Needs there: python3 (or \$PYTHON) with pip, torch and triton; a C compiler for Triton; for the
prefill figures 20 GB of GPU memory and 5 GB of disk under \${XDG_CACHE_HOME:-~/.cache}.
Reads wheels from \$WHEELS (default $root/wheels); without that folder, uses what is installed.
Writes results/kernel_bench/GPU.json, and to \$OUT (default $root/build/gpu_check) a copy of it,
gpu_check.log, and summary.txt.

Wheels, in the versions of constraints.txt, of llama-cpp-python and of:
$(echo "${PACKAGES[@]}" | fold -s -w 96)
llama-cpp-python is compiled, which takes minutes and a C++
compiler, and must be portable: CMAKE_ARGS="$PORTABLE".
The C library there must not be older than the one here.
END
}

collect_wheels() {
    local folder=$1 version=$2 platforms=() level
    # pip takes these names as they are: a wheel for 2_17 is not found under 2_28.
    for level in 2_28 2_27 2_24 2_17 2_12 2_5; do
        platforms+=(--platform "manylinux_${level}_x86_64")
    done
    platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
    mkdir -p "$folder"
    "$python" -m pip download --no-deps --only-binary=:all: --python-version "$version" \
        --implementation cp "${platforms[@]}" -c constraints.txt -d "$folder" \
        "${PACKAGES[@]}" || return
    # Not from pip's cache: that one was perhaps built for this machine alone.
    CMAKE_ARGS=$PORTABLE "$python" -m pip wheel --no-deps --no-cache-dir -c constraints.txt \
        -w "$folder" llama-cpp-python || return
    du -sh "$folder"
}

install_wheels() {
    if [ ! -d "$wheels" ]; then
        echo "no folder $wheels: using the packages that are installed"
        return
    fi
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$work/site" "$wheels"/*.whl
}

# A process per file: what takes the time is compiling kernels, each on one core.
run_tests() {
    local file name index line verdict failed=0 pids=() names=()
    local deadline=$((SECONDS + TESTS_LIMIT))
    for file in tests/test_triton_*.py tests/test_torch_*.py; do
        name=$(basename "$file" .py)
        while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
        # Interrupted, so that a file that takes too long still says what passed until then; the
        # shell lets what runs in the background ignore that.
        timeout -s INT -k 15 $((deadline > SECONDS ? deadline - SECONDS : 1)) \
            env --default-signal=INT "$python" -m pytest -q -p pytest_timeout -p no:cacheprovider \
            "$file" >"$work/$name.log" 2>&1 &
        pids+=($!)
        names+=("$name")
    done
    for index in "${!pids[@]}"; do
        name=${names[index]} verdict=
        wait "${pids[index]}" || { failed=1 verdict="FAILED: "; }
        cat "$work/$name.log"
        line=$(grep -E '^[0-9]+ (passed|failed|skipped|error)' "$work/$name.log" | tail -n 1)
        printf '%-28s %s\n' "$name" "$verdict${line:-no test ended in time}" >>"$work/tests.txt"
    done
    return "$failed"
}

run_bench() {
    timeout -s INT -k 15 "$BENCH_LIMIT" "$python" -m hetero bench kernels "${bench_options[@]}" \
        -o "$report" >"$work/figures.txt"
}

part() {
    local name=$1 started=$SECONDS verdict=passed
    shift
    echo "== $name"
    if ! "$@"; then
        verdict=FAILED
    fi
    printf '%-28s %s, %d s\n' "$name" "$verdict" $((SECONDS - started)) >>"$work/parts.txt"
}

check() {
    part install install_wheels
    part tests run_tests
    part bench run_bench
}

python=${PYTHON:-python3}
wheels=${WHEELS:-$root/wheels}
out=${OUT:-$root/build/gpu_check}
bench_options=()
case ${1:-} in
    "") ;;
    try)
        export TRITON_INTERPRET=1
        bench_options=(--quick)
        ;;
    wheels)
        if [ $# -ne 3 ]; then
            usage >&2
            exit 2
        fi
        collect_wheels "$2" "$3"
        exit
        ;;
    *)
        usage
        if [ "$1" = --help ]; then exit 0; else exit 2; fi
        ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
# Plugins that happen to be installed there are none of ours; engines must not spin at barriers.
export PYTHONPATH="$work/site:$root" PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONUNBUFFERED=1
export OMP_WAIT_POLICY=passive OPENBLAS_NUM_THREADS=1
export CI=true # hypothesis then has no deadlines: test files share the cores
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')
gpu=$(echo "${gpu:-interpreter}" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9.-')
report=$out/$gpu.json

check 2>&1 | tee "$out/gpu_check.log"
if [ "$gpu" != interpreter ] && [ -s "$report" ]; then
    mkdir -p results/kernel_bench
    cp "$report" results/kernel_bench/
fi
touch "$work/tests.txt"
if [ ! -s "$work/figures.txt" ]; then # cut off: what it said on the way
    grep -E '^[a-z0-9_]+: (-?[0-9.e+-]+ (ratio|GB)|not measured)' "$out/gpu_check.log" \
        >"$work/figures.txt"
fi
cat "$work/figures.txt" "$work/tests.txt" "$work/parts.txt" | tee "$out/summary.txt"
! grep -q FAILED "$work/parts.txt"
