"""Figures `prefill_*`: a whole prompt through the torch engine, wherever the weights lie.

Ceiling: the prompt's operations over the measured rate of matrix products; for streamed weights the
time of copying them, if that is longer. The prompt is read in one step.
"""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from hetero.errors import HeteroError
from hetero.experiment.figures import Figure, at_least, at_most, rounded
from hetero.experiment.kernel_bench.device import free_memory
from hetero.experiment.kernel_bench.physics import (
    prefill_flops,
    stored_layer_bytes,
    streamed_step_s,
)
from hetero.experiment.kernel_bench.race import OURS, Bench, Race
from hetero.experiment.measuring import Measurement
from hetero.experiment.models import model_file, spec_of
from hetero.experiment.turns import flat, ratios, take_turns
from hetero.model.gguf_file import GGUFFile
from hetero.prefill.engine import read_alone
from hetero.prefill.torch_engine import TorchEngine
from hetero.prefill.torch_setup import TorchOptions, make_torch_engine

_KV_TYPE = "q8_0"
_LEAST_SHARES = {"resident": 0.70, "quantized": 0.60, "streamed": 0.90}
_MOST_ROWS_COST = 0.02
_WITHOUT_ROWS = "without_rows"
_SDPA = "sdpa"

_Rounds = dict[str, list[list[float]]]


def measurements(bench: Bench) -> Iterator[tuple[str, Measurement]]:
    for residency in _LEAST_SHARES:
        yield f"prefill_{residency}", partial(_measure, bench, residency)


def _measure(bench: Bench, residency: str) -> list[Figure]:
    settings = bench.settings
    path = model_file(settings.folder, settings.shape, settings.quant, bench.say)
    rounds, peak_bytes = _read_in_turns(
        bench, path, residency, "triton", {OURS: True, _WITHOUT_ROWS: False}
    )
    refused: dict[str, str] = {}
    peer_rounds: _Rounds = {}
    if residency == "resident":
        # By itself, after ours: two engines' weights would not fit most GPUs.
        try:
            peer_rounds, _ = _read_in_turns(bench, path, residency, _SDPA, {_SDPA: True})
        except (HeteroError, torch.OutOfMemoryError) as error:
            refused[_SDPA] = str(error)
    race = Race(rounds={OURS: rounds[OURS]} | peer_rounds, refused=refused)
    figures = [_share_figure(bench, path, residency, race), _rows_figure(residency, rounds)]
    if peak_bytes is not None:
        figures.append(_memory_figure(residency, peak_bytes))
    return figures


def _share_figure(bench: Bench, path: Path, residency: str, race: Race) -> Figure:
    num_tokens = bench.settings.prompt_tokens
    num_flops = prefill_flops(spec_of(path), num_tokens)
    num_bytes = stored_layer_bytes(GGUFFile.open(path))
    is_streamed = residency == "streamed"
    ceilings = bench.ceilings
    least_s = streamed_step_s(
        num_bytes if is_streamed else 0,
        num_flops,
        ceilings.host_to_device_bytes_per_s,
        ceilings.matmul_flops_per_s,
    )
    share = least_s / race.seconds()
    return Figure(
        name=f"prefill_{residency}",
        says="the least a prompt takes at the rate of matrix products"
        f"{' and of copies to the device' if is_streamed else ''}, over what it takes",
        value=share,
        unit="ratio",
        target=at_least(_LEAST_SHARES[residency]),
        arms=race.samples(),
        parameters={
            "rate": rounded(num_tokens / race.seconds()),
            "rate_unit": "tokens/s",
            "share": rounded(share),
            "share_of": "matmul or copies" if is_streamed else "matmul",
            **race.comparison(),
            "least_s": rounded(least_s),
            "flops": num_flops,
            "stored_layer_bytes": num_bytes,
            "model": bench.settings.shape.name,
            "quant": bench.settings.quant,
            "prompt_tokens": num_tokens,
        },
    )


def _rows_figure(residency: str, rounds: _Rounds) -> Figure:
    costs = [ratio - 1 for ratio in ratios(rounds[OURS], rounds[_WITHOUT_ROWS])]
    return Figure(
        name=f"prefill_{residency}_rows",
        says="what packing the rows and copying them to host memory adds to a prompt's time",
        value=median(costs),
        unit="ratio",
        target=at_most(_MOST_ROWS_COST),
        arms={f"{arm}_s": flat(samples) for arm, samples in rounds.items()} | {"round_cost": costs},
        parameters={"kv_type": _KV_TYPE},
    )


def _memory_figure(residency: str, peak_bytes: int) -> Figure:
    return Figure(
        name=f"prefill_{residency}_memory",
        says="the most GPU memory that weights, KV and activations had together",
        value=peak_bytes / 1e9,
        unit="GB",
        target=None,
        arms={"peak_bytes": [peak_bytes]},
    )


def _read_in_turns(
    bench: Bench, path: Path, residency: str, attention: str, want_rows: Mapping[str, bool]
) -> tuple[_Rounds, int | None]:
    """Seconds by arm, and the most GPU memory that the engine had (None on a CPU)."""
    free_memory()
    on_gpu = bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before_bytes = torch.cuda.memory_allocated()
    settings = bench.settings
    engine = make_torch_engine(
        path,
        (_KV_TYPE, _KV_TYPE),
        TorchOptions(
            device=bench.device.type,
            attention=attention,
            residency=residency,
            context_tokens=settings.prompt_tokens,
            chunk_tokens=settings.prompt_tokens,
        ),
    )
    try:
        rounds = take_turns(
            {arm: partial(_read, bench, engine, wanted) for arm, wanted in want_rows.items()},
            settings.num_rounds,
        )
    finally:
        engine.close()
    return rounds, torch.cuda.max_memory_allocated() - before_bytes if on_gpu else None


def _read(bench: Bench, engine: TorchEngine, want_rows: bool) -> list[float]:
    """Seconds from a prompt to its logits in host memory."""
    settings = bench.settings
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, settings.shape.vocab_size, settings.prompt_tokens).tolist()
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run = engine.start(prompt, want_rows=want_rows)
    for _ in read_alone(engine, run):
        pass
    return [time.perf_counter() - started]
