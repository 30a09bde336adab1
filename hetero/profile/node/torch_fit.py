"""The torch engine's prefill, where there is a GPU that it runs on."""

from importlib.util import find_spec
from pathlib import Path

from hetero.errors import HeteroError
from hetero.profile.facts.report import Facts
from hetero.profile.node.interval import interval_of
from hetero.profile.node.pilot import PilotLog
from hetero.profile.node.read_survey import ReadSurvey
from hetero.profile.node_profile import EngineFit, Noise


def torch_device(facts: Facts) -> str | None:
    """The first GPU that torch and Triton serve; None without one. AMD's are llama.cpp's."""
    # Without a GPU torch is not even imported: it takes more memory than a small model.
    if not facts.gpus or find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available() or torch.version.hip is not None:
        return None
    from hetero.prefill.triton_support import MIN_CAPABILITY

    return "cuda:0" if torch.cuda.get_device_capability(0) >= MIN_CAPABILITY else None


class TorchFit:
    """Measured first; its interval is known when all of the machine's noise is."""

    def __init__(self, path: Path, types: tuple[str, str], device: str, context_tokens: int):
        """Raises: HeteroError if the engine can't be made of this model here."""
        from hetero.prefill.torch_setup import TorchOptions, make_torch_engine

        options = TorchOptions(device=device, context_tokens=context_tokens)
        self.device = device
        self._engine = make_torch_engine(path, types, options)
        self._survey = ReadSurvey(self._engine, context_tokens)

    @property
    def pilot(self) -> PilotLog:
        return self._survey.pilot

    def measure(self, seconds: float) -> HeteroError | None:
        """The engine is closed after it. The error that ended it early, if one did."""
        try:
            self._survey.run(seconds)
        except HeteroError as error:
            return error
        finally:
            self._engine.close()
        return None

    def fits(self, noise: Noise, request_s: float, threads: int) -> list[EngineFit]:
        """One, or none if there is not a single sample."""
        found = self._survey.survey.fits()
        return [
            EngineFit(
                source="fitted",
                role="prefill",
                engine=self._engine.name,
                attention=self._engine.attention,
                device=self.device,
                unified=cache.unified,
                kv_k=cache.kv_k,
                kv_v=cache.kv_v,
                threads=threads,
                chunk_tokens=self._engine.chunk_tokens,
                cost=cost,
                request_s=request_s,
                interval=interval_of(found.overall, noise),
                error=found.errors[cache],
                samples=self._survey.survey.samples[cache],
            )
            for cache, cost in found.costs.items()
        ]
