#!/usr/bin/env bash
# llama-server from the source tree that our llama.cpp comes from; `--help` says how.
set -eu -o pipefail

usage() {
    cat <<END
tools/build_llama_server.sh DIR

Builds DIR/bin/llama-server from the llama.cpp that llama-cpp-python $version pins, so that a
comparison with it compares servers and not kernels. Takes ten minutes of two cores, and half a GB.

As pip builds llama-cpp-python here: Release, GGML_NATIVE=ON, OpenMP, shared libraries; and
without a web page, TLS, tests or examples. CMAKE_ARGS is added, as pip adds it: give it what
llama-cpp-python was installed with. Needs cmake, a C++ compiler, and \$PYTHON (default python3)
with pip; \$JOBS compilers at once (default: one per processor).

Afterwards: export HETERO_LLAMA_SERVER=DIR/bin/llama-server
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
version=$(sed -n 's/^llama_cpp_python==//p' "$root/constraints.txt")
case ${1:-} in
    "" | -*) usage; [ "${1:-}" = --help ] && exit 0 || exit 2 ;;
esac
mkdir -p "$1"
folder=$(cd "$1" && pwd)

# The binary's run path is its libraries' folder, so the build stays where it is.
source=$folder/source
if [ ! -e "$source/CMakeLists.txt" ]; then
    "${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary llama-cpp-python \
        -d "$folder" "llama-cpp-python==$version"
    mkdir -p "$source"
    tar -xzf "$folder/llama_cpp_python-$version.tar.gz" -C "$source" --strip-components=3 \
        "llama_cpp_python-$version/vendor/llama.cpp"
fi
# CMAKE_ARGS is several words.
# shellcheck disable=SC2086
cmake -S "$source" -B "$folder" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF ${CMAKE_ARGS:-} > "$folder/cmake.log"
cmake --build "$folder" --target llama-server -j "${JOBS:-$(nproc)}" > "$folder/build.log"
"$folder/bin/llama-server" --version
