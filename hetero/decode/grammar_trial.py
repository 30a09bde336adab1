"""The throwaway process: compile one grammar, generate a little with it, say how it went.

Run by `hetero.decode.grammar`: one JSON object on stdin ("model", "cpu_s", and "gbnf" or
"schema"), one on stdout ("gbnf" or "error"). It may crash; that is what it is for.
"""

import json
import resource
import sys
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from hetero.decode.grammar import check_limits
from hetero.errors import ConfigError, EngineError
from hetero.llama.json_schema import schema_to_gbnf
from hetero.llama.library import captured_log
from hetero.llama.model import Model, Vocab
from hetero.llama.sampler import AmbiguousGrammar, Sampler
from hetero.messages import Sampling

# What passes here on 1 MiB has room to spare on an engine's 8 MiB.
_STACK_BYTES = 2**20

# Beyond what the vocabulary takes. Real grammars need a few MiB.
_MEMORY_BYTES = 512 * 2**20

# An engine compiles a grammar between two steps of everyone's batch, for each choice again, and
# advances it once a token. 128k vocabularies take 13 ms a token on a current core.
_MAX_COMPILE_S = 0.25
_MAX_STEP_S = 0.25

# Ambiguity doubles the work with each token: a million of anything shows.
_NUM_STEPS = 20


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    job = json.load(sys.stdin)
    answer: dict[str, str] = {}
    with Model(job["model"], vocab_only=True) as model:
        _limit_resources(job["cpu_s"])
        threading.stack_size(_STACK_BYTES)
        thread = threading.Thread(target=lambda: answer.update(_answer(model.vocab, job)))
        thread.start()
        thread.join()
    if not answer:
        raise EngineError("grammar trial: need an answer, have a thread that died")
    json.dump(answer, sys.stdout)


def _limit_resources(allowed_cpu_s: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = int(used.ru_utime + used.ru_stime) + 1 + allowed_cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    if sys.platform == "linux":  # macOS does not enforce it
        data_bytes = psutil.Process().memory_info().data + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))


def _answer(vocab: Vocab, job: dict[str, Any]) -> dict[str, str]:
    try:
        gbnf = job["gbnf"] if "gbnf" in job else _converted(job["schema"])
        _try(vocab, gbnf)
    except ConfigError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"grammar: need at most {_MEMORY_BYTES} bytes of memory, have more"}
    return {"gbnf": gbnf}


def _converted(schema: str) -> str:
    try:
        gbnf = schema_to_gbnf(json.loads(schema))
    except Exception as error:  # third-party code over a stranger's schema: anything
        raise ConfigError(f"schema: need one that can be converted, have {error!r}") from None
    check_limits(gbnf)
    return gbnf


def _try(vocab: Vocab, gbnf: str) -> None:
    """Generate with it: once always the first token it allows, once random ones."""
    rng = np.random.default_rng(0)
    first_V = -np.arange(vocab.num_tokens, dtype=np.float32)
    walks = ([first_V] * _NUM_STEPS, [_random_logits(rng, vocab) for _ in range(_NUM_STEPS)])
    for walk in walks:
        began_s = time.thread_time()
        sampler = _compiled(vocab, gbnf)
        _check_time("to compile", time.thread_time() - began_s, _MAX_COMPILE_S)
        try:
            _walk(vocab, sampler, walk)
        finally:
            sampler.close()


def _random_logits(rng: np.random.Generator, vocab: Vocab) -> npt.NDArray[np.float32]:
    return rng.standard_normal(vocab.num_tokens, dtype=np.float32)


def _walk(vocab: Vocab, sampler: Sampler, walk: list[npt.NDArray[np.float32]]) -> None:
    for position, logits_V in enumerate(walk):
        began_s = time.thread_time()
        # An end token is taken only where nothing else continues.
        logits_V = logits_V.copy()
        logits_V[list(vocab.end_tokens)] = np.finfo(np.float32).min
        try:
            token = sampler.sample(logits_V, position)
        except AmbiguousGrammar as error:
            raise ConfigError(str(error)) from None
        except EngineError:
            if position > 0:
                return  # half a code point that this vocabulary can't finish: not the grammar's
            raise ConfigError(
                "grammar: need a token of this model that can begin it, have none"
            ) from None
        _check_time("for a token", time.thread_time() - began_s, _MAX_STEP_S)
        if token in vocab.end_tokens:
            return


def _compiled(vocab: Vocab, gbnf: str) -> Sampler:
    with captured_log() as errors:
        try:
            return Sampler(vocab, Sampling(grammar=gbnf, temperature=0.0), 0)
        except EngineError:
            raise ConfigError(f"grammar: need valid GBNF, have: {'; '.join(errors)}") from None


def _check_time(what: str, have_s: float, need_s: float) -> None:
    if have_s > need_s:
        raise ConfigError(
            f"grammar: need at most {need_s} s of CPU time {what}, have {have_s:.2f} s; make it "
            f"simpler or less ambiguous"
        )


if __name__ == "__main__":
    main()
