"""Prompts of random tokens, the same ones on every run.

One token again and again would wake the same experts of a mixture each time, and look up one row of
the embedding.
"""

import numpy as np
import numpy.typing as npt

# Below are a vocabulary's control tokens.
_FIRST_TEXT_TOKEN = 3


class RandomText:
    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._random = np.random.default_rng(0)

    def draw(self, num_tokens: int) -> npt.NDArray[np.int64]:
        """The next ones: no two prompts are alike."""
        return self._random.integers(_FIRST_TEXT_TOKEN, self._vocab_size, num_tokens)
