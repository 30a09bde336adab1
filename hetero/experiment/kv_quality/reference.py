"""Logits of an unquantized cache (f16), once for all that is compared with it. On disk: a window's
are half a gigabyte where the vocabulary is large."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hetero.errors import EngineError
from hetero.experiment.kv_quality.passages import Passage
from hetero.experiment.kv_quality.reading import branch_logits, open_context, read_context
from hetero.kv.types import kv_type
from hetero.llama.model import Model

REFERENCE_TYPE = "f16"


def write_reference(
    model: Model, passages: Sequence[Passage], num_threads: int, path: Path
) -> npt.NDArray[np.float32]:
    """(scored rows of all passages in turn, vocabulary), mapped from the file.

    Raises: EngineError if there is no room for it.
    """
    try:
        with path.open("wb") as file:
            for rows in _all_rows(model, passages, num_threads):
                file.write(rows.data)
    except OSError as error:
        num_rows = sum(len(branch.right_tokens) for one in passages for branch in one.branches)
        num_bytes = num_rows * model.vocab.num_tokens * 4
        raise EngineError(
            f"{path.parent}: need {num_bytes / 1e6:.0f} MB for the logits to compare with: "
            f"{(error.strerror or str(error)).lower()}; set TMPDIR, or use fewer prompts"
        ) from None
    return np.memmap(path, np.float32, "r").reshape(-1, model.vocab.num_tokens)


def _all_rows(
    model: Model, passages: Sequence[Passage], num_threads: int
) -> Iterator[npt.NDArray[np.float32]]:
    ggml_type = kv_type(REFERENCE_TYPE).ggml_id
    with open_context(
        model,
        passages,
        k_ggml_type=ggml_type,
        v_ggml_type=ggml_type,
        num_threads=num_threads,
    ) as context:
        for passage in passages:
            read_context(context, passage)
            for branch in passage.branches:
                yield from branch_logits(context, passage, branch)
