"""Synthetic models, written once and shared by all experiments, and their cache layouts."""

import os
from pathlib import Path

from hetero.experiment.figures import Say
from hetero.kv.layout import KVLayout, model_layout
from hetero.model.gguf_file import GGUFFile
from hetero.model.shapes import Shape
from hetero.model.spec import ModelSpec, gguf_to_spec
from hetero.model.synth import write_synthetic


def cache_folder() -> Path:
    """Where they are kept: some gigabytes that any cache cleaner may take."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hetero" / "bench"


def model_file(folder: Path, shape: Shape, quant: str, say: Say, *, seed: int = 0) -> Path:
    """The shape's random GGUF in `folder`, made if it isn't there."""
    path = folder / f"{shape.name}-{quant}-s{seed}.gguf"
    if not path.exists():
        say(f"writing {path}")
        folder.mkdir(parents=True, exist_ok=True)
        write_synthetic(shape, quant, path, seed=seed)
    return path


def spec_of(path: Path) -> ModelSpec:
    return gguf_to_spec(GGUFFile.open(path))


def layout_of(path: Path, kv_type: str) -> KVLayout:
    spec = spec_of(path)
    return model_layout(spec, kv_type, kv_type)
