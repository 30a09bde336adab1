"""What a decode engine is asked to do, and one choice of it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetero.llama.sampler import Sampler, token_logprob
from hetero.messages import Sampling, Token

NO_SLOT = -1


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request as the decode engine sees it. Without a prompt its KV comes over the wire."""

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    num_choices: int
    sampling: Sampling
    prompt: tuple[int, ...] | None = None


@dataclass(kw_only=True)
class Sequence:
    """One choice of a job, on its way to the running batch or in it."""

    job: Job
    choice: int
    sampler: Sampler
    num_generated: int = 0
    slot: int = NO_SLOT  # set by the running batch

    @property
    def next_position(self) -> int:
        """The position of the next token to be drawn."""
        return self.job.num_prompt_tokens + self.num_generated

    @property
    def is_full(self) -> bool:
        return self.num_generated >= self.job.max_tokens

    def draw(self, logits_V: npt.NDArray[np.float32]) -> Token:
        """Draw from an array of logits: the first token, after a prompt was read here."""
        return self.record(self.sampler.sample(logits_V, self.next_position), logits_V)

    def record(self, token: int, logits_V: npt.NDArray[np.float32] | None) -> Token:
        """Count a drawn token; with the logits it was drawn from if its logprob is wanted."""
        num_top = self.job.sampling.top_logprobs
        logprob = None
        if logits_V is not None and num_top is not None:
            logprob = token_logprob(logits_V, token, num_top)
        self.num_generated += 1
        return Token(self.job.request_id, self.choice, self.num_generated - 1, token, logprob)
