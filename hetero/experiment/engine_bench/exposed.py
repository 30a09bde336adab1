"""Figure `exposed`: what the second token waits for because prompt and answer are split.

Ceiling: the last frame group's way over the wire, and one restore. Everything before it travels
while prefill still computes. The cluster is a real one on this machine, the wire is loopback.
"""

from importlib.util import find_spec
from typing import Any

import numpy as np

from hetero.experiment.engine_bench.settings import Settings
from hetero.experiment.figures import Figure, Say, at_most
from hetero.experiment.models import model_file
from hetero.launch.local import LocalCluster, LocalPlan
from hetero.launch.router_client import complete

_KV_TYPE = "q8_0"
_ALLOWANCE_S = 0.010
_NEW_TOKENS = 8
_WARM_UP_TOKENS = 64


def measure(settings: Settings, say: Say) -> list[Figure]:
    num_tokens = settings.context_tokens
    plan = LocalPlan(
        name="bench",
        model=model_file(settings.folder, settings.shape, settings.quant, say),
        context_tokens=num_tokens + settings.headroom_tokens,
        slots=2,
        kv_k=_KV_TYPE,
        kv_v=_KV_TYPE,
        prefill="torch" if find_spec("torch") else "llama",
        threads=settings.num_threads,
        temporary=True,
    )
    rng = np.random.default_rng(0)
    with LocalCluster(plan, say) as cluster:
        # Warms up torch's kernels and opens the connections.
        _timings(cluster.url, _prompt(settings, rng, min(num_tokens, _WARM_UP_TOKENS)))
        say("exposed: the ceiling is last_group_s + restore_s of each request itself")
        answers = [
            _timings(cluster.url, _prompt(settings, rng, num_tokens))
            for _ in range(settings.num_exposed)
        ]
    excess = [t["exposed_s"] - t["last_group_s"] - t["restore_s"] for t in answers]
    stages = ("exposed_s", "last_group_s", "restore_s", "wire_s", "prefill_s", "pack_s", "tpot_s")
    return [
        Figure(
            name="exposed",
            says="exposed_s beyond last_group_s + restore_s, the worst request",
            value=max(excess),
            unit="s",
            target=at_most(_ALLOWANCE_S),
            arms={"excess_s": excess} | {stage: [t[stage] for t in answers] for stage in stages},
            parameters={
                "model": settings.shape.name,
                "quant": settings.quant,
                "kv_type": _KV_TYPE,
                "prompt_tokens": num_tokens,
                "prefill_engine": answers[0]["prefill_engine"],
                "kv_bytes": answers[0]["kv_bytes"],
                "chunks": answers[0]["num_chunks"],
                "ratio_to_budget": [
                    t["exposed_s"] / (t["last_group_s"] + t["restore_s"] + _ALLOWANCE_S)
                    for t in answers
                ],
            },
        )
    ]


def _prompt(settings: Settings, rng: np.random.Generator, num_tokens: int) -> list[int]:
    tokens: list[int] = rng.integers(3, settings.shape.vocab_size, num_tokens).tolist()
    return tokens


def _timings(url: str, prompt: list[int]) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "max_tokens": _NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "route": "split",
    }
    return complete(url, "completions", body, lambda _text: None).timings
