"""A prefill engine that computes nothing: recorded rows, at the pace of a device that isn't here.

Its rows are real ones of the served model, so that sealing, the wire, placing, restoring and
decoding meet what they would meet. Their tokens are the recording's, whatever the prompt says. The
answer to the recorded prompt is the real one; to any other it is nonsense: K and V are those of
other words, beyond the recording's end K's rotation by position begins again with it, and the
first token is drawn as after the recorded prompt.

Time passes by sleeping: what a real engine takes of its host (packing, launching) is not there.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from hetero.kv.rows import Kind, RowFrame
from hetero.prefill.engine import PrefillRun, Slice, check_prompt
from hetero.prefill.frame_plan import layer_groups, token_ranges
from hetero.prefill.recording import Recording

_KINDS: tuple[Kind, Kind] = ("k", "v")

# As the torch engine's.
_FRAME_BYTES = 2 * 2**20


class Pace(Protocol):
    """How long the device takes; `EngineFit` of a profile is one."""

    @property
    def engine(self) -> str: ...

    def chunk_s(self, num_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds of a step that reads `num_tokens` after `cached_tokens` of the same prompt."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Monotonic seconds, and waiting for them to pass."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(eq=False, kw_only=True)
class ReplayRun(PrefillRun):
    """late_s: what its last step took longer than it should have, and the next one makes up."""

    late_s: float = 0.0


class ReplayEngine:
    """A `PrefillEngine`, one prompt at a time; a real torch engine reads several in a step.

    Layer by layer, as torch's, or with all rows of a step at its end, as llama.cpp's, which has
    none before.
    """

    attention = "emulated"

    def __init__(
        self,
        recording: Recording,
        pace: Pace,
        *,
        device: str,
        context_tokens: int,
        chunk_tokens: int,
        frame_bytes: int = _FRAME_BYTES,
        clock: Clock | None = None,
    ) -> None:
        self.name = f"emulated {device} ({pace.engine})"
        self.device = device
        self.layout = recording.layout
        self.max_prompt_tokens = context_tokens
        self.chunk_tokens = chunk_tokens
        self.frame_bytes = frame_bytes
        self._recording = recording
        self._pace = pace
        self._clock = clock or Clock()
        self._run: ReplayRun | None = None

    def has_room(self, num_tokens: int) -> bool:
        return self._run is None

    def start(self, tokens: Sequence[int], *, want_rows: bool = True) -> ReplayRun:
        check_prompt(tokens, self.max_prompt_tokens, self._recording.header.vocabulary)
        assert self._run is None, "start() without room"
        self._run = ReplayRun(tokens=tokens, want_rows=want_rows)
        return self._run

    def end(self, run: PrefillRun) -> None:
        self._run = None

    def close(self) -> None: ...

    def read(self, slices: Sequence[Slice]) -> Iterator[tuple[PrefillRun, RowFrame]]:
        (piece,) = slices  # there is room for one run
        run, first = piece.run, piece.run.num_read
        assert isinstance(run, ReplayRun)  # of this engine
        tokens = range(first, first + piece.num_tokens)
        seconds = self._pace.chunk_s(len(tokens), first)
        begun = self._clock.now() - run.late_s
        for layers_at_once in self._bursts(run, len(tokens)):
            # Copied while the device would compute.
            frames = [frame for layers in layers_at_once for frame in self._frames(layers, tokens)]
            share = layers_at_once[-1].stop / self.layout.num_layers
            run.late_s = self._wait_until(begun + share * seconds)
            for frame in frames:
                yield run, frame
        if not run.want_rows:
            run.late_s = self._wait_until(begun + seconds)
        run.num_read = tokens.stop
        run.num_chunks += 1
        if not run.num_unread:
            run.last_logits = self._recording.logits

    def _bursts(self, run: PrefillRun, num_tokens: int) -> list[list[range]]:
        """Layer groups, by what appears together."""
        if not run.want_rows:
            return []
        groups = layer_groups(self.layout, num_tokens, self.frame_bytes)
        return [[group] for group in groups] if self._pace.engine == "torch" else [groups]

    def _frames(self, layers: range, tokens: range) -> Iterator[RowFrame]:
        for kind in _KINDS:
            rows = self._recording.rows(kind, layers, tokens)
            token_bytes = len(layers) * self.layout.row_bytes(kind)
            for part in token_ranges(tokens.start, tokens.stop, token_bytes, self.frame_bytes):
                here = slice(part.start - tokens.start, part.stop - tokens.start)
                yield RowFrame(
                    kind=kind,
                    first_layer=layers.start,
                    end_layer=layers.stop,
                    first_token=part.start,
                    end_token=part.stop,
                    rows=rows[:, here],
                )

    def _wait_until(self, deadline: float) -> float:
        """How late it is then."""
        while (left := deadline - self._clock.now()) > 0:
            self._clock.sleep(left)
        return -left
