"""How far logits are from a reference's, and from the tokens that should follow. float64 inside.

Axes: R rows (scored positions), V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]

# Rows at a time: a vocabulary of 150,000 is then 40 MB in float64, a few times over.
_BLOCK_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One entry for each row.

    kld: D(reference || these), in nats. has_same_top: whether both call the same token most likely.
    nll: of the right token, in nats; reference_nll: the reference's. margin: the right token's
    logit less the highest other one; above 0 greedy decoding draws it.
    """

    kld: _Floats
    has_same_top: npt.NDArray[np.bool_]
    nll: _Floats
    reference_nll: _Floats
    margin: _Floats
    top_tokens: npt.NDArray[np.int64]

    def row(self, index: int) -> "Scores":
        """One of them alone."""
        return Scores(
            kld=self.kld[[index]],
            has_same_top=self.has_same_top[[index]],
            nll=self.nll[[index]],
            reference_nll=self.reference_nll[[index]],
            margin=self.margin[[index]],
            top_tokens=self.top_tokens[[index]],
        )


def score(
    reference_RV: npt.NDArray[np.float32],
    logits_RV: npt.NDArray[np.float32],
    right_tokens: Sequence[int],
) -> Scores:
    blocks = [
        _score_block(
            reference_RV[first : first + _BLOCK_ROWS].astype(np.float64),
            logits_RV[first : first + _BLOCK_ROWS].astype(np.float64),
            np.asarray(right_tokens[first : first + _BLOCK_ROWS]),
        )
        for first in range(0, len(logits_RV), _BLOCK_ROWS)
    ]
    return joined(blocks)


def joined(parts: Sequence[Scores]) -> Scores:
    return Scores(
        kld=np.concatenate([part.kld for part in parts]),
        has_same_top=np.concatenate([part.has_same_top for part in parts]),
        nll=np.concatenate([part.nll for part in parts]),
        reference_nll=np.concatenate([part.reference_nll for part in parts]),
        margin=np.concatenate([part.margin for part in parts]),
        top_tokens=np.concatenate([part.top_tokens for part in parts]),
    )


def _score_block(
    reference_RV: _Floats, logits_RV: _Floats, right_R: npt.NDArray[np.int64]
) -> Scores:
    log_p_RV, log_q_RV = _log_softmax(reference_RV), _log_softmax(logits_RV)
    rows = np.arange(len(right_R))
    kld_R = (np.exp(log_p_RV) * (log_p_RV - log_q_RV)).sum(-1)
    top_R = log_q_RV.argmax(-1)
    others_RV = log_q_RV.copy()
    others_RV[rows, right_R] = -np.inf
    return Scores(
        kld=np.maximum(kld_R, 0.0),  # below it only by rounding (Gibbs' inequality)
        has_same_top=top_R == log_p_RV.argmax(-1),
        nll=-log_q_RV[rows, right_R],
        reference_nll=-log_p_RV[rows, right_R],
        margin=log_q_RV[rows, right_R] - others_RV.max(-1),
        top_tokens=top_R,
    )


def _log_softmax(logits_RV: _Floats) -> _Floats:
    shifted_RV = logits_RV - logits_RV.max(-1, keepdims=True)
    return np.asarray(shifted_RV - np.log(np.exp(shifted_RV).sum(-1, keepdims=True)))
