"""Drawing tokens with llama.cpp's sampler chain, from a context's logits or from an array of them.

Randomness is a function of (seed, choice, position): a fresh `dist` sampler is made for every
draw, so a hand-over carries no generator state. The grammar is checked after the draw and only
on a miss applied to all candidates, because it costs 12 ms over a 128k vocabulary.
"""

import ctypes
import hashlib
import struct
import time

import llama_cpp
import numpy as np
import numpy.typing as npt

from hetero.errors import EngineError, PeerError
from hetero.llama.context import Context
from hetero.llama.model import Vocab
from hetero.messages import Sampling, TokenLogprob

# llama.cpp draws a random seed for this value.
_RANDOM_SEED = 0xFFFFFFFF

# Penalties look at every generated token up to this many; the ring buffer takes 4 bytes each.
_PENALTY_WINDOW = 4096

# Below this logits overflow when divided by it, and llama.cpp draws nonsense: the best is meant.
_COLDEST = 1e-6

# An ambiguous grammar doubles its work with every token, and everyone waits for it.
_MAX_GRAMMAR_S = 0.25

_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])


class AmbiguousGrammar(EngineError):
    """A grammar whose work grows with every token."""


def draw_seed(seed: int, choice: int, position: int) -> int:
    """A 32-bit seed for one draw, never llama.cpp's "random" marker."""
    digest = hashlib.blake2b(struct.pack("<QII", seed, choice, position), digest_size=4).digest()
    return int.from_bytes(digest, "little") % _RANDOM_SEED


class Sampler:
    """One choice's sampler chain and grammar, with the state they build from accepted tokens."""

    def __init__(self, vocab: Vocab, options: Sampling, choice: int) -> None:
        self._vocab = vocab
        self._options = options
        self._choice = choice
        self._draws = options.temperature >= _COLDEST
        self._grammar = _grammar(vocab, options.grammar) if options.grammar else None
        self._chain = llama_cpp.llama_sampler_chain_init(
            llama_cpp.llama_sampler_chain_default_params()
        )
        for sampler in _filters(vocab, options):
            llama_cpp.llama_sampler_chain_add(self._chain, sampler)
        self._num_filters = llama_cpp.llama_sampler_chain_n(self._chain)
        # Replaced before each draw; in place now, so that there is always one to replace.
        self._add_last(llama_cpp.llama_sampler_init_greedy())

    def close(self) -> None:
        if self._chain:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None
        if self._grammar:
            llama_cpp.llama_sampler_free(self._grammar)
            self._grammar = None

    def sample_row(self, context: Context, row: int, position: int) -> int:
        """Draw from the logits that batch row `row` of the last decode produced, and accept it."""
        if self._grammar:
            return self.sample(context.row_logits(row), position)
        self._reseed(position)
        token: int = llama_cpp.llama_sampler_sample(self._chain, context.pointer, row)
        return token

    def sample(self, logits_V: npt.NDArray[np.float32], position: int) -> int:
        """Draw from an array of logits, and accept the token."""
        self._reseed(position)
        token = self._pick(logits_V, constrained=False)
        if self._grammar and not self._grammar_allows(token):
            token = self._pick(logits_V, constrained=True)
            if not self._grammar_allows(token):
                raise EngineError("grammar: need a token that continues it, have none left")
        self._accept(token)
        return token

    def accept(self, token: int) -> None:
        """Take a token drawn elsewhere into account.

        Raises: PeerError if it is outside the grammar, which would abort the process.
        """
        if self._grammar and not self._grammar_allows(token):
            raise PeerError(f"token {token}: need one that the grammar allows, have another")
        self._accept(token)

    def _accept(self, token: int) -> None:
        llama_cpp.llama_sampler_accept(self._chain, token)
        if not self._grammar:
            return
        started = time.thread_time()
        llama_cpp.llama_sampler_accept(self._grammar, token)
        seconds = time.thread_time() - started
        if seconds > _MAX_GRAMMAR_S:
            raise AmbiguousGrammar(
                f"grammar: need at most {_MAX_GRAMMAR_S:g} s of CPU time for a token, "
                f"have {seconds:.2f} s; make it simpler or less ambiguous"
            )

    def _reseed(self, position: int) -> None:
        if not self._draws:
            return
        last = llama_cpp.llama_sampler_chain_remove(self._chain, self._num_filters)
        llama_cpp.llama_sampler_free(last)
        seed = draw_seed(self._options.seed, self._choice, position)
        self._add_last(llama_cpp.llama_sampler_init_dist(seed))

    def _add_last(self, sampler: object) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def _pick(self, logits_V: npt.NDArray[np.float32], *, constrained: bool) -> int:
        candidates = np.empty(len(logits_V), _CANDIDATE)
        candidates["id"] = np.arange(len(logits_V), dtype=np.int32)
        candidates["logit"] = logits_V
        candidates["p"] = 0
        array = _candidate_array(candidates)
        if constrained:
            llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
            if np.isneginf(candidates["logit"]).all():
                raise EngineError("grammar: need a token that continues it, have none left")
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise EngineError("sampler chain: need a selected token, have none")
        token: int = array.data[array.selected].id
        return token

    def _grammar_allows(self, token: int) -> bool:
        single = np.array([(token, 0.0, 0.0)], _CANDIDATE)
        array = _candidate_array(single)
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return not np.isneginf(single["logit"][0])


def _candidate_array(candidates: npt.NDArray[np.void]) -> llama_cpp.llama_token_data_array:
    return llama_cpp.llama_token_data_array(
        data=candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data)),
        size=len(candidates),
        selected=-1,
        sorted=False,
    )


def _grammar(vocab: Vocab, grammar: str) -> object:
    sampler = llama_cpp.llama_sampler_init_grammar(vocab.pointer, grammar.encode(), b"root")
    if not sampler:
        raise EngineError("grammar: need valid GBNF with a root rule, have one that does not parse")
    return sampler


def _filters(vocab: Vocab, options: Sampling) -> list[object]:
    """The chain in llama.cpp's own order, without the parts that would change nothing."""
    filters = []
    bias = list(options.logit_bias)
    if options.ignore_eos:
        bias += [(token, float("-inf")) for token in sorted(vocab.end_tokens)]
    if bias:
        entries = (llama_cpp.llama_logit_bias * len(bias))(*bias)
        filters.append(
            llama_cpp.llama_sampler_init_logit_bias(vocab.num_tokens, len(bias), entries)
        )
    penalties = (options.repeat_penalty, options.frequency_penalty, options.presence_penalty)
    if penalties != (1.0, 0.0, 0.0):
        filters.append(
            llama_cpp.llama_sampler_init_penalties(vocab.num_tokens, _PENALTY_WINDOW, *penalties)
        )
    if options.temperature < _COLDEST:
        return filters
    if options.top_k > 0:
        filters.append(llama_cpp.llama_sampler_init_top_k(options.top_k))
    if options.top_p < 1:
        filters.append(llama_cpp.llama_sampler_init_top_p(options.top_p, 1))
    if options.min_p > 0:
        filters.append(llama_cpp.llama_sampler_init_min_p(options.min_p, 1))
    filters.append(llama_cpp.llama_sampler_init_temp(options.temperature))
    return filters


def token_logprob(logits_V: npt.NDArray[np.float32], token: int, num_top: int) -> TokenLogprob:
    """Log-probabilities of the model itself, before temperature, bias and filters."""
    shifted = logits_V.astype(np.float64) - float(logits_V.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    top = np.argpartition(-logprobs, num_top)[:num_top] if num_top else ()
    ranked = sorted(((int(t), float(logprobs[t])) for t in top), key=lambda pair: -pair[1])
    return TokenLogprob(token, float(logprobs[token]), tuple(ranked))
