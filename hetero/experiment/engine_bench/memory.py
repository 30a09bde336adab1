"""Figure `memory`: peak resident memory of a decode node and of a torch prefill node.

Ceiling: the sum of what must be there. Decode: weights once, KV cache, llama.cpp's compute
buffers, the prompt that is arriving. Prefill: weights in their working type, the prompt's KV, one
chunk's activations and two packed ones. The rest, libraries and Python, has a fixed allowance.
"""

import re
from contextlib import ExitStack
from importlib.util import find_spec
from logging import DEBUG

import numpy as np

from hetero.errors import EngineError
from hetero.experiment.child import node_process, peak_rss_bytes, result_from_child
from hetero.experiment.engine_bench.driven_engine import GREEDY
from hetero.experiment.engine_bench.router_seat import RouterSeat
from hetero.experiment.engine_bench.row_source import row_source
from hetero.experiment.engine_bench.settings import Settings
from hetero.experiment.figures import Figure, Say, at_most
from hetero.experiment.models import layout_of, model_file, spec_of
from hetero.kv.layout import KVLayout
from hetero.kv.staging import StateLayout
from hetero.kv.types import kv_type
from hetero.llama.context import Context, ContextConfig
from hetero.llama.library import captured_log
from hetero.llama.model import Model
from hetero.messages import Finished, Joined, Prefill, Sent
from hetero.model.spec import ModelSpec
from hetero.serve.config import DEFAULT_CHUNK_TOKENS, DecodeConfig, PrefillConfig
from hetero.serve.start import run_decode, run_prefill

_KV_TYPE = "q8_0"
_DECODE_NODE, _PREFILL_NODE = "d", "p"
_DECODE_ALLOWANCE_BYTES = 200_000_000
_PREFILL_ALLOWANCE_BYTES = 500_000_000
_NEW_TOKENS = 8

# The second comes while the first one's buffers have just been let go.
_NUM_PREFILLS = 2

_BUFFER_LINE = re.compile(r"(\w+) buffer size = +([\d.]+) MiB")


def measure(settings: Settings, say: Say) -> list[Figure]:
    if find_spec("torch") is None:
        raise EngineError("a torch prefill node: need the torch package, have none")
    path = model_file(settings.folder, settings.shape, settings.quant, say)
    layout = layout_of(path, _KV_TYPE)
    spec = spec_of(path)
    with ExitStack() as stack:
        seat = RouterSeat(_DECODE_NODE, _PREFILL_NODE)
        stack.callback(seat.close)
        decode = DecodeConfig(
            name=_DECODE_NODE,
            model=str(path),
            router=seat.address,
            router_key=seat.keys.router_key,
            key=str(seat.keys.secret_file(_DECODE_NODE)),
            kv_k=_KV_TYPE,
            kv_v=_KV_TYPE,
            context_tokens=settings.context_tokens + settings.headroom_tokens,
            slots=settings.memory_slots,
            threads=settings.num_threads,
        )
        prefill = PrefillConfig(
            name=_PREFILL_NODE,
            model=str(path),
            router=seat.address,
            router_key=seat.keys.router_key,
            key=str(seat.keys.secret_file(_PREFILL_NODE)),
            kv_k=_KV_TYPE,
            kv_v=_KV_TYPE,
            context_tokens=decode.context_tokens,
            engine="torch",
            dtype=settings.prefill_dtype,
            threads=settings.num_threads,
        )
        decode_parts = _decode_parts(settings, spec, layout, decode)
        prefill_parts = _prefill_parts(settings, spec, layout, prefill)
        for name, parts in (("decode", decode_parts), ("prefill", prefill_parts)):
            say(f"memory: a {name} node may take {sum(parts.values()) / 1e6:.0f} MB")
        stack.enter_context(node_process(run_decode, decode))
        with row_source(settings, path, seat.hello(_DECODE_NODE)) as source:
            for slot in range(settings.memory_slots):
                name = f"replayed{slot}"
                max_tokens = settings.headroom_tokens
                ticket = seat.ticket(_DECODE_NODE, name, settings.context_tokens, max_tokens)
                source.hand_over(name, ticket, over_s=0.0)
                seat.wait_for(Joined, name)
            seat.wait_for(Finished, name)
        stack.enter_context(node_process(run_prefill, prefill))
        seat.hello(_PREFILL_NODE)
        for index in range(_NUM_PREFILLS):
            _prefill(settings, seat, f"read{index}")
        peaks = {name: peak_rss_bytes(info.pid) for name, info in seat.nodes.items()}
    return [
        _figure(settings, "decode", peaks[_DECODE_NODE], decode_parts),
        _figure(settings, "prefill_torch", peaks[_PREFILL_NODE], prefill_parts),
    ]


def _prefill(settings: Settings, seat: RouterSeat, name: str) -> None:
    prompt = np.random.default_rng(0).integers(
        3, settings.shape.vocab_size, settings.context_tokens
    )
    seat.send(
        _PREFILL_NODE,
        Prefill(
            request_id=name,
            prompt=tuple(prompt.tolist()),
            num_choices=1,
            sampling=GREEDY,
            ticket=seat.ticket(_DECODE_NODE, name, settings.context_tokens, _NEW_TOKENS),
        ),
    )
    seat.wait_for(Sent, name)


def _decode_parts(
    settings: Settings, spec: ModelSpec, layout: KVLayout, config: DecodeConfig
) -> dict[str, int]:
    # Elsewhere: at this level llama.cpp says some hundred lines more.
    reported = result_from_child(reported_buffers, config)
    # One stream per slot; rows are placed in a blob of the prompt's final size.
    staging = StateLayout(layout, settings.context_tokens, config.slots)
    return {
        "weights": spec.weight_bytes,
        "kv_cache": reported.get("KV", 0),
        "compute_buffers": reported.get("compute", 0) + reported.get("output", 0),
        "staging": staging.num_bytes,
        "allowance": _DECODE_ALLOWANCE_BYTES,
    }


def reported_buffers(config: DecodeConfig) -> dict[str, int]:
    """Bytes by kind (model, KV, compute, output), as llama.cpp logs them while it loads."""
    ggml_type = kv_type(_KV_TYPE).ggml_id
    with captured_log(DEBUG) as lines, Model(config.model) as model:
        context = Context(
            model,
            ContextConfig(
                num_sequences=config.slots,
                tokens_per_sequence=config.context_tokens,
                unified=config.unified,
                k_ggml_type=ggml_type,
                v_ggml_type=ggml_type,
                num_threads=config.threads,
                batch_tokens=max(config.chunk_tokens, config.slots),
            ),
        )
        context.close()
    reported: dict[str, int] = {}
    for line in lines:
        if match := _BUFFER_LINE.search(line):
            kind, mebibytes = match.groups()
            reported[kind] = reported.get(kind, 0) + int(float(mebibytes) * 2**20)
    if "KV" not in reported:
        raise EngineError("llama.cpp: need its buffer sizes in its log, have none")
    return reported


def _prefill_parts(
    settings: Settings, spec: ModelSpec, layout: KVLayout, config: PrefillConfig
) -> dict[str, int]:
    element_bytes = {"float32": 4, "bfloat16": 2}[settings.prefill_dtype]
    kv_values = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim_k
    chunk_tokens = min(config.chunk_tokens or DEFAULT_CHUNK_TOKENS, settings.context_tokens)
    return {
        "weights": spec.num_parameters * element_bytes,
        "prompt_kv": settings.context_tokens * kv_values * element_bytes,
        "activations": chunk_tokens * _activation_values(spec) * element_bytes,
        "packed_chunks": 2 * chunk_tokens * layout.token_bytes,
        "allowance": _PREFILL_ALLOWANCE_BYTES,
    }


def _activation_values(spec: ModelSpec) -> int:
    """Of one token, at a layer's widest moment: residual, its norm, the layer's output, and either
    gate and up of the FFN or queries, attended values, K and V."""
    q_values = spec.num_heads * spec.head_dim_k
    attention = 2 * q_values + 2 * spec.num_kv_heads * spec.head_dim_k
    return 3 * spec.hidden_size + max(2 * spec.ffn_size, attention)


def _figure(settings: Settings, name: str, peak_bytes: int, parts: dict[str, int]) -> Figure:
    budget = sum(parts.values())
    return Figure(
        name=f"memory_{name}",
        says=f"peak resident memory of a {name} node over what its parts may take",
        value=peak_bytes / budget,
        unit="ratio",
        target=at_most(1.0),
        arms={"peak_bytes": [peak_bytes]},
        parameters={
            "model": settings.shape.name,
            "quant": settings.quant,
            "budget_bytes": parts,
            "spare_bytes": budget - peak_bytes,
            "prompt_tokens": settings.context_tokens,
        },
    )
