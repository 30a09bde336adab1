"""Live traffic -> a trace: lengths, times and which prompts began alike. Never what they said.

A trace is sorted by arrival, and answers end in any order. So the recorder is told of an arrival
and of its end: a line is kept back until all that arrived before it have ended, and written then.
"""

import bisect
import contextlib
import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from hetero.errors import ConfigError
from hetero.workload.block_hasher import BlockHasher
from hetero.workload.mooncake import TraceLine, line_bytes

log = logging.getLogger(__name__)

# Lines that one slow answer may keep back: more, and its own line is given up. They are also what
# a killed process loses.
_MAX_HELD = 1024


class TrafficRecorder:
    """One recording into one new file, Mooncake JSONL, each line written as soon as it may be.

    For one thread. Nothing but the constructor raises: what can't be written is counted in
    `num_lost` and logged once. The first request recorded is at 0 ms.

    path: if the file exists, -2, -3 ... is put behind its stem, since a recording is never added
    to another (its ids mean something else); `self.path` says where it went.

    Raises: ConfigError if the file can't be made.
    """

    def __init__(self, path: Path, max_held: int = _MAX_HELD) -> None:
        self.num_recorded = 0
        self.num_lost = 0
        self._max_held = max_held
        self._hasher = BlockHasher()
        self._running: list[float] = []  # when they arrived, sorted
        # Arrival, order of ending, prompt tokens, output tokens, ids; sorted.
        self._held: list[tuple[float, int, int, int, tuple[int, ...]]] = []
        self._counter = itertools.count()
        self._first_s: float | None = None
        self._last_s = float("-inf")
        self._num_bytes = 0
        self.path, self._file = _new_file(path)

    def arrived(self, arrived_s: float) -> None:
        """A request came in. To be followed by `add` or `drop` with the same time (any clock that
        only goes forward)."""
        bisect.insort(self._running, arrived_s)

    def add(self, arrived_s: float, prompt: Sequence[int], output_tokens: int) -> None:
        """Its answer has ended. One without a token, or to an empty prompt, is not recorded."""
        self._ended(arrived_s)
        if len(prompt) and output_tokens > 0:
            held = (arrived_s, next(self._counter), len(prompt), output_tokens)
            bisect.insort(self._held, (*held, self._hasher.ids(prompt)))
            # Whoever holds up too many is given up, the longest waiting first.
            while len(self._held) > self._max_held and self._running:
                self._write_ripe()
                if len(self._held) > self._max_held:
                    del self._running[0]
        self._write_ripe()

    def drop(self, arrived_s: float) -> None:
        """It failed or was cancelled, and is not part of the trace."""
        self._ended(arrived_s)
        self._write_ripe()

    def close(self) -> None:
        """Writes what was kept back; requests that still run are not part of the trace."""
        self._running.clear()
        self._write_ripe()
        self._close_file()

    def _ended(self, arrived_s: float) -> None:
        place = bisect.bisect_left(self._running, arrived_s)
        if place < len(self._running) and self._running[place] == arrived_s:
            del self._running[place]

    def _write_ripe(self) -> None:
        while self._held and (not self._running or self._held[0][0] <= self._running[0]):
            arrived_s, _, prompt_tokens, output_tokens, ids = self._held.pop(0)
            if arrived_s < self._last_s:
                self._lose("it ended when one that had come later was written")
            else:
                self._write(arrived_s, prompt_tokens, output_tokens, ids)

    def _write(
        self, arrived_s: float, prompt_tokens: int, output_tokens: int, ids: tuple[int, ...]
    ) -> None:
        first_s = arrived_s if self._first_s is None else self._first_s
        line = TraceLine(
            timestamp=round((arrived_s - first_s) * 1000),
            input_length=prompt_tokens,
            output_length=output_tokens,
            hash_ids=ids,
        )
        encoded = line_bytes(line)
        if self._file < 0:
            self._lose("the recording was closed")
            return
        try:
            _write_whole(self._file, encoded)
        except OSError as error:
            self._lose(str(error))
            self._cut_back()
            return
        self._first_s, self._last_s = first_s, arrived_s
        self._num_bytes += len(encoded)
        self.num_recorded += 1

    def _cut_back(self) -> None:
        """A full disk may have taken half a line, and the next one must not follow it."""
        try:
            os.ftruncate(self._file, self._num_bytes)
        except OSError:
            self._close_file()

    def _close_file(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1

    def _lose(self, why: str) -> None:
        self.num_lost += 1
        if self.num_lost == 1:
            log.warning("recording %s: lost a request's line: %s", self.path, why)


def _new_file(path: Path) -> tuple[Path, int]:
    """Readable by its owner alone: lengths and times are users' too."""
    names = itertools.chain(
        [path], (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    )
    for name in names:
        try:
            return name, os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f"recording {path}: need a file that can be written, have: {error.strerror}"
            ) from None
    raise AssertionError("numbers do not end")


def _write_whole(file: int, encoded: bytes) -> None:
    while encoded:
        encoded = encoded[os.write(file, encoded) :]
