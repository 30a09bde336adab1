"""A fit's predictions at typical sizes, as tokens per second and as shares of the hardware's."""

from collections.abc import Sequence

import msgspec

from hetero.kv.layout import model_layout
from hetero.profile.node_profile import Ceilings, EngineFit, ModelShape, NodeProfile, Role
from hetero.profile.work import chunk_work

PROMPTS = (512, 2048, 8192)
BATCHES = (1, 4, 16)
CONTEXT = 2048  # of each sequence of a batch
LONG_CONTEXT = 8192


class Roof(msgspec.Struct, frozen=True, kw_only=True):
    """What a device gives to code that does nothing else. flops_per_s: of its fastest type."""

    device: str
    bytes_per_s: float
    flops_per_s: float | None
    flops_type: str | None


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction. share: of the roof's bytes (decode) or flops (prefill); None: not known."""

    what: str
    seconds: float
    tokens_per_s: float
    share: float | None
    is_sampled: bool  # no further out than the fit's samples


def roof(ceilings: Ceilings, device: str) -> Roof | None:
    """A GPU's copies read and write, so their bytes stand for what it can read. None where several
    kinds of devices share the layers."""
    if device == "cpu" and ceilings.read_gb_s is not None:
        return _roof(device, ceilings.read_gb_s, ceilings.tflops)
    index = device.removeprefix("cuda:")
    if device == "gpu" and len({gpu.name for gpu in ceilings.gpus}) == 1:
        index = "0"
    if index.isdigit() and int(index) < len(ceilings.gpus):
        gpu = ceilings.gpus[int(index)]
        return _roof(device, gpu.copy_gb_s, gpu.tflops)
    return None


def rates(profile: NodeProfile, fit: EngineFit) -> list[Rate]:
    if fit.role == "decode":
        depths = [[CONTEXT] * batch for batch in BATCHES] + [[LONG_CONTEXT]]
        return [decode_rate(profile, fit, contexts) for contexts in depths]
    return [prefill_rate(profile, fit, num_tokens) for num_tokens in PROMPTS]


def decode_rate(profile: NodeProfile, fit: EngineFit, contexts: Sequence[int]) -> Rate:
    """A step of sequences of so many cells each."""
    seconds = fit.step_s(contexts)
    above = roof(profile.ceilings, fit.device)
    share = None
    if above is not None and seconds > 0 and has_known_work(profile.model):
        num_bytes = step_bytes(profile.model, fit, len(contexts), sum(contexts))
        share = num_bytes / seconds / above.bytes_per_s
    return Rate(
        what=f"batch {len(contexts)} at {count_text(max(contexts))}",
        seconds=seconds,
        tokens_per_s=_per_second(len(contexts), seconds),
        share=share,
        is_sampled=_is_sampled(fit, len(contexts), max(contexts)),
    )


def prefill_rate(profile: NodeProfile, fit: EngineFit, num_tokens: int) -> Rate:
    """A whole prompt with nothing cached."""
    seconds = fit.prefill_s(num_tokens)
    above = roof(profile.ceilings, fit.device)
    share = None
    if above is not None and above.flops_per_s and seconds > 0 and has_known_work(profile.model):
        share = matrix_flops(profile.model, num_tokens, 1) / seconds / above.flops_per_s
    last = num_tokens % fit.chunk_tokens or min(num_tokens, fit.chunk_tokens)
    visible = chunk_work(last, num_tokens - last, 0, fit.unified).visible
    return Rate(
        what=f"{count_text(num_tokens)} tokens",
        seconds=seconds,
        tokens_per_s=_per_second(num_tokens, seconds),
        share=share,
        is_sampled=_is_sampled(fit, min(num_tokens, fit.chunk_tokens), visible / last),
    )


def first_choice(profile: NodeProfile, role: Role) -> EngineFit | None:
    """The fit to name first: what `hetero up` would run, at the pair of types that was asked for
    first; for prefill a GPU's, if one is quicker. Of an estimate the quickest."""
    fits = measured_first([fit for fit in profile.fits if fit.role == role])
    found = profile.settings.get(role)
    if fits and found is not None:
        types = fits[0].kv_k, fits[0].kv_v
        of_types = [fit for fit in fits if (fit.kv_k, fit.kv_v) == types]
        chosen = [fit for fit in of_types if fit.device != "cpu" or fit.unified == found.unified]
        fits = chosen or fits
    return min(fits, key=lambda fit: typical_rate(profile, fit).seconds, default=None)


def typical_rate(profile: NodeProfile, fit: EngineFit) -> Rate:
    if fit.role == "decode":
        return decode_rate(profile, fit, [CONTEXT])
    return prefill_rate(profile, fit, CONTEXT)


def measured_first(fits: Sequence[EngineFit]) -> list[EngineFit]:
    """Without the estimates, where there is anything else."""
    return [fit for fit in fits if fit.source != "estimated"] or list(fits)


def is_known(fit: EngineFit) -> bool:
    """Whether its predictions were tested on samples, or are not of samples at all."""
    return fit.error is not None or not fit.samples


def has_known_work(model: ModelShape) -> bool:
    """A mixture of experts reads and multiplies what its router chose: no share is claimed."""
    return model.num_experts == 0


def step_bytes(model: ModelShape, fit: EngineFit, num_rows: int, num_cells: float) -> float:
    """Read at least: every layer and the head once, and the cells."""
    cell_bytes = model_layout(model, fit.kv_k, fit.kv_v).token_bytes
    return model.read_bytes(num_rows, with_head=True) + num_cells * cell_bytes


def matrix_flops(model: ModelShape, num_rows: int, num_logits: int) -> float:
    """Each row with every layer, and with the head those rows whose logits are wanted; attention's
    come on top."""
    head_flops = 2 * model.head_parameters
    return num_rows * model.row_flops(with_head=False) + num_logits * head_flops


def fit_name(fit: EngineFit) -> str:
    """What tells it from the profile's other fits of its role."""
    kernels = "" if fit.attention == fit.engine else f"/{fit.attention}"
    cache = "unified" if fit.unified else "streams"
    return f"{fit.engine}{kernels} {fit.device} {fit.kv_k}/{fit.kv_v} {cache}"


def count_text(count: float) -> str:
    """2048 is 2k, as contexts are spoken of."""
    return f"{count / 1024:g}k" if count >= 1024 and count % 512 == 0 else f"{count:g}"


def _roof(device: str, gb_s: float, tflops: dict[str, float]) -> Roof:
    kind = max(tflops, key=lambda name: tflops[name], default=None)
    return Roof(
        device=device,
        bytes_per_s=1e9 * gb_s,
        flops_per_s=None if kind is None else 1e12 * tflops[kind],
        flops_type=kind,
    )


def _is_sampled(fit: EngineFit, rows: int, cells_per_row: float) -> bool:
    return any(sample.work.rows >= rows for sample in fit.samples) and any(
        sample.work.visible >= sample.work.rows * cells_per_row for sample in fit.samples
    )


def _per_second(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
