"""Options that several verbs take, and what they mean together: a plan for processes here."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.model.spec import ModelSpec


class Engine(StrEnum):
    AUTO = "auto"
    TORCH = "torch"
    LLAMA = "llama"


class AttentionKernel(StrEnum):
    AUTO = "auto"
    TRITON = "triton"
    SDPA = "sdpa"


class Wish(StrEnum):
    AUTO = "auto"
    LOCAL = "local"
    SPLIT = "split"


ModelName = Annotated[
    str, typer.Option("--model", "-m", "-M", help="A GGUF file, or `demo`: the embedded model.")
]
KType = Annotated[
    str,
    typer.Option(
        "--kv-k",
        help="Type of the cached keys: f16, q8_0, q4_0 ...",
        parser=str.lower,
        metavar="TYPE",
    ),
]
VType = Annotated[
    str,
    typer.Option("--kv-v", help="Type of the cached values.", parser=str.lower, metavar="TYPE"),
]
Prefill = Annotated[Engine, typer.Option("--prefill", help="What reads prompts.")]
Attention = Annotated[AttentionKernel, typer.Option("--attention", help="The torch engine's.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Of each node.  [default: shares the physical cores]"),
]


def _check_triton() -> None:
    """Raises: ConfigError if Triton can't run here, with the reason."""
    try:
        import torch

        from hetero.prefill.triton_support import triton_problem
    except ImportError as error:
        raise ConfigError(
            f"attention triton: need the torch package, have none ({error}): "
            "pip install 'hetero[torch]'"
        ) from None
    problem = triton_problem(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if problem is not None:
        raise ConfigError(f"attention triton: {problem}; or use --attention sdpa")


def open_model(name: str) -> "tuple[Path, ModelSpec]":
    """The model's file, the first part of a split one, and what it is.

    Raises: ModelError before anything is started with it.
    """
    from hetero.cli.model import model_path
    from hetero.model.gguf_file import GGUFFile
    from hetero.model.spec import gguf_to_spec

    file = GGUFFile.open(model_path(name))
    return file.parts[0].resolve(), gguf_to_spec(file)


def check_plan(
    spec: "ModelSpec",
    *,
    kv_k: str,
    kv_v: str,
    prefill: Engine,
    attention: AttentionKernel,
    num_decode: int,
    slots: int,
    context_tokens: int,
) -> None:
    """What the nodes would refuse, or die of, is refused before they start.

    Raises: ConfigError or ModelError for types, PlanError for memory.
    """
    from hetero.decode.memory import check_memory
    from hetero.kv.layout import model_layout

    if attention is not AttentionKernel.AUTO and prefill is Engine.LLAMA:
        raise ConfigError(
            f"attention {attention}: llama.cpp computes its own; use --prefill torch, or leave it"
        )
    if attention is AttentionKernel.TRITON:
        _check_triton()
    if context_tokens > spec.context_length:
        raise ConfigError(
            f"context: need at most the {spec.context_length} tokens the model was trained for, "
            f"have {context_tokens}"
        )
    layout = model_layout(spec, kv_k, kv_v)
    # The decode nodes alone: prefill nodes may keep theirs on a GPU.
    check_memory(
        spec.weight_bytes,
        layout,
        slots=slots,
        context_tokens=context_tokens,
        num_nodes=num_decode,
    )
