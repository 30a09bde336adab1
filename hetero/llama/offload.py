"""Whether llama.cpp can put layers on a GPU: if not, it says nothing, and computes on the CPU."""

import llama_cpp

from hetero.errors import ConfigError


def check_offload(gpu_layers: int) -> None:
    """Raises: ConfigError if layers are to be on a GPU, and llama.cpp sees none."""
    if gpu_layers and not llama_cpp.llama_supports_gpu_offload():
        raise ConfigError(
            f"gpu layers {gpu_layers}: need a GPU and a llama.cpp built for it, have a llama.cpp "
            "that sees none: CMAKE_ARGS=-DGGML_CUDA=on (AMD: -DGGML_HIP=on) pip install "
            "--force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python "
            f"llama-cpp-python=={llama_cpp.__version__}; or leave it out"
        )
