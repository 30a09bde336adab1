"""What is varied as an axis: its label, and where its values lie."""

from collections.abc import Iterable

from hetero.errors import ConfigError
from hetero.experiment.outcome.units import quantity_text
from hetero.experiment.recipe.figures import Value
from hetero.launch.lab.shaping import parse_rate

_LABELS = {
    "candidate": "",
    "kv": "type of the cache",
    "k": "type of K",
    "v": "type of V",
    "context_tokens": "context of a sequence (tokens)",
    "slots": "slots of a decode node",
    "chunk_tokens": "chunk (tokens)",
    "threads": "threads of an engine",
    "prefill_engine": "prefill engine",
    "seal": "security mode",
    "connections": "connections",
    "link_rate": "link rate",
    "wire_ratio": "KV that prefill yields / what the link carries",
    "route": "route",
    "concurrency": "sessions at once",
    "rate": "sessions started (1/s)",
    "requests": "requests",
    "prompt_tokens": "prompt (tokens)",
    "output_tokens": "answer (tokens)",
    "beside_rate": "load beside: sessions started (1/s)",
    "prompts": "prompts",
    "tokens": "tokens of a transfer",
    "mtu": "MTU (B)",
    "frame_bytes": "frame (B)",
    "shape": "shape of the model",
}
_RATES = {"link_rate"}


def axis_label(setting: str) -> str:
    return _LABELS.get(setting, setting.replace("_", " "))


def position(setting: str, value: Value) -> float | None:
    """On an axis of numbers; None of a name, as of a cache's type."""
    if isinstance(value, int | float):
        return float(value)
    if setting in _RATES:
        try:
            return float(parse_rate(setting, value))
        except ConfigError:
            return None
    return None


def value_text(setting: str, value: Value) -> str:
    """A rate reads as its cable would be sold: 10 Gbit/s."""
    place = position(setting, value)
    if place is not None and setting in _RATES:
        return quantity_text(place, "bit/s")
    return f"{value:g}" if isinstance(value, float) else str(value)


def place_text(setting: str, place: float) -> str:
    """Of a place between two values."""
    return quantity_text(place, "bit/s" if setting in _RATES else "")


def in_order(setting: str, values: Iterable[Value]) -> list[Value]:
    """Numbers by size, names as they come; each once."""
    found = list(dict.fromkeys(values))
    places = [position(setting, value) for value in found]
    if any(place is None for place in places):
        return found
    return [found[index] for index in sorted(range(len(found)), key=lambda i: places[i] or 0.0)]
