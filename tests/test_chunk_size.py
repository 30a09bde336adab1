import pytest

from hetero.errors import EngineError
from hetero.prefill import chunk_size
from hetero.prefill.chunk_size import measure_chunk, smallest_good_chunk
from hetero.prefill.engine import PrefillRun


def test_the_smallest_chunk_near_the_best_rate_is_taken():
    assert smallest_good_chunk({256: 40.0, 512: 80.0, 1024: 96.0, 2048: 100.0}) == 1024
    assert smallest_good_chunk({256: 100.0, 512: 101.0}) == 256
    assert smallest_good_chunk({256: 10.0, 512: 30.0, 1024: 20.0}) == 512


class Engine:
    """Takes `seconds(num_tokens)` a step, by a clock of its own."""

    def __init__(self, monkeypatch, seconds, error=None):
        self.now = 0.0
        self.seconds = seconds
        self.error = error
        self.most_tokens = 10**9
        self.read_sizes, self.num_open = [], 0
        monkeypatch.setattr(chunk_size.time, "perf_counter", lambda: self.now)

    def start(self, tokens):
        self.num_open += 1
        return PrefillRun(tokens=tokens, want_rows=True)

    def read(self, slices):
        (piece,) = slices
        self.read_sizes.append(piece.num_tokens)
        self.now += self.seconds(piece.num_tokens)
        piece.run.error = self.error
        if piece.num_tokens > self.most_tokens:
            piece.run.error = EngineError("no")
        return iter(())

    def end(self, run):
        self.num_open -= 1


def test_sizes_are_doubled_until_the_rate_is_flat(monkeypatch):
    """Loading weights takes 0.1 s a step, computing 0.1 ms a token: 95% at 19,000 of endless."""
    engine = Engine(monkeypatch, lambda tokens: 0.01 + 1e-4 * tokens)
    assert measure_chunk(engine, 4096) == 2048
    assert engine.read_sizes == [n for n in (256, 512, 1024, 2048, 4096) for _ in range(2)]
    assert engine.num_open == 0


def test_a_streamed_model_gets_long_steps_however_long_its_weights_take(monkeypatch):
    engine = Engine(monkeypatch, lambda tokens: 1.6 + 1e-4 * tokens)
    assert measure_chunk(engine, 8192) == 8192


def test_a_size_that_fails_ends_the_search_at_those_that_worked(monkeypatch, caplog):
    engine = Engine(monkeypatch, lambda tokens: 0.01 + 1e-4 * tokens)
    engine.most_tokens = 600
    assert measure_chunk(engine, 4096) == 512
    assert "chunks of 1024 tokens are too many: no" in caplog.text


def test_long_steps_are_not_tried(monkeypatch):
    engine = Engine(monkeypatch, lambda tokens: 0.003 * tokens)
    assert measure_chunk(engine, 8192) == 256
    assert max(engine.read_sizes) == 512


def test_the_largest_there_is_memory_for_is_the_limit(monkeypatch):
    engine = Engine(monkeypatch, lambda tokens: 1.0 / 10**6)
    assert measure_chunk(engine, 200) == 200


def test_a_reading_that_fails_is_not_hidden(monkeypatch):
    engine = Engine(monkeypatch, lambda tokens: 1e-3, error=EngineError("no"))
    with pytest.raises(EngineError, match="no"):
        measure_chunk(engine, 512)
    assert engine.num_open == 0
