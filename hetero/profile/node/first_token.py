"""What each prompt costs beside its steps: a sampler made, and the first token drawn."""

import time
from statistics import median

import numpy as np

from hetero.llama.model import Model
from hetero.llama.sampler import Sampler
from hetero.messages import Sampling

_REPEATS = 5


def first_token_s(model: Model) -> float:
    logits_V = np.random.default_rng(0).standard_normal(model.vocab.num_tokens, np.float32)
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        sampler = Sampler(model.vocab, Sampling(ignore_eos=True), 0)
        sampler.sample(logits_V, 1)
        sampler.close()
        seconds.append(time.perf_counter() - started)
    return median(seconds)
