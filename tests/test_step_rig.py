"""What sequences of a rig hold, whatever they held before, in a real llama.cpp cache."""

from functools import partial

import numpy as np
import pytest
from tiny_models import write_tiny_model

from hetero.errors import PlanError
from hetero.kv.layout import model_layout
from hetero.kv.staging import StateLayout
from hetero.llama.context import Context
from hetero.llama.experts import RoutedExperts, _Tensor
from hetero.llama.model import Model
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.profile.node import rig as rig_module
from hetero.profile.node.rig import StepRig

NUM_SEQUENCES = 3
CONTEXT = 512  # a multiple of 256, so that llama.cpp adds none
CHUNK = 64

BY_HAND = [
    (100, 200, 300),
    (100, 200, 250),
    (100, 150, 250),
    (100, 180, 250),
    (40, 180, 250),
    (40, 500, 250),
    (40, 0, 250),
    (0, 0, 250),
    (300, 0, 250),
    (300, 1),
    (),
    (0, 0, 1),
    (CONTEXT, CONTEXT, CONTEXT),
    (1, CONTEXT, 1),
    (CONTEXT, 1, CONTEXT),
]


def drawn(seed):
    """A quarter of the sequences is empty or full."""
    random = np.random.default_rng(seed)
    for _ in range(15):
        cells = random.integers(1, CONTEXT, NUM_SEQUENCES)
        kind = random.random(NUM_SEQUENCES)
        yield tuple(np.where(kind < 0.15, 0, np.where(kind < 0.25, CONTEXT, cells)).tolist())


ONE_AFTER_THE_OTHER = [*BY_HAND, *drawn(1)]


class ScannedCells(RoutedExperts):
    """How many cells llama.cpp's attention scans in a step: a view of them is made for it."""

    def __init__(self):
        super().__init__()
        self.num_cells = None

    def _on_tensor(self, tensor, is_asked, _user):
        if self._ggml.ggml_get_name(tensor) == b"cache_k_l0 (view) (permuted)":
            self.num_cells = _Tensor.from_address(tensor).num_elements[1]
        return not is_asked


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", num_layers=1)


@pytest.fixture(scope="module")
def layout(path):
    return model_layout(gguf_to_spec(GGUFFile.open(path)), "f16", "f16")


def open_rig(model, layout, *, unified):
    return StepRig(
        model,
        layout,
        num_sequences=NUM_SEQUENCES,
        context_tokens=CONTEXT,
        unified=unified,
        num_threads=1,
        chunk_tokens=CHUNK,
    )


@pytest.fixture(params=[False, True], ids=["streams", "pool"])
def rig(request, path, layout):
    with Model(path) as model, open_rig(model, layout, unified=request.param) as rig:
        yield rig


@pytest.fixture
def streams(path, layout):
    with Model(path) as model, open_rig(model, layout, unified=False) as rig:
        yield rig


@pytest.fixture
def pool(path, layout):
    with Model(path) as model, open_rig(model, layout, unified=True) as rig:
        yield rig


@pytest.fixture
def scanned(monkeypatch):
    """Ask for it before the rig whose steps it sees."""
    scanned = ScannedCells()
    monkeypatch.setattr(rig_module, "Context", partial(Context, routed=scanned))
    return scanned


def held(rig):
    """As llama.cpp has it: cells of each sequence, whose positions have no hole."""
    found = []
    for sequence in range(NUM_SEQUENCES):
        last = rig.context.last_position(sequence)
        cells = 0 if last is None else last + 1
        if cells:
            state = StateLayout(rig.layout, cells, rig.context.config.num_streams)
            assert rig.context.export_sequence(sequence).nbytes == state.num_bytes
        found.append(cells)
    return found


def all_of(cells):
    return [*cells, *[0] * (NUM_SEQUENCES - len(cells))]


def to_256(num_cells):
    """llama.cpp scans in so many."""
    return -(-num_cells // 256) * 256


def restored(rig, monkeypatch):
    """Sequences that are restored from now on, in order, and the cells of each."""
    told = []
    restore = rig.context.restore_sequence
    num_bytes = {
        StateLayout(rig.layout, cells, rig.context.config.num_streams).num_bytes: cells
        for cells in range(1, CONTEXT + 1)
    }

    def restoring(sequence, blob):
        told.append((sequence, num_bytes[blob.nbytes]))
        restore(sequence, blob)

    monkeypatch.setattr(rig.context, "restore_sequence", restoring)
    return told


def test_each_sequence_holds_what_was_asked_whatever_it_held_before(rig):
    for cells in ONE_AFTER_THE_OTHER:
        rig.hold(cells)
        assert held(rig) == all_of(cells), cells


def test_steps_and_chunks_leave_what_sequences_hold(rig):
    for cells in [(100, 200, 300), (100, 0, CONTEXT - CHUNK), (40, 180)]:
        rig.hold(cells)
        rig.time_step(2)
        rig.time_step(1)
        rig.time_chunk(CHUNK, 2)
        assert held(rig) == all_of(cells)


def test_a_pool_that_has_changed_has_no_gaps(scanned, pool):
    for cells in ONE_AFTER_THE_OTHER:
        if sum(cells) < NUM_SEQUENCES * CONTEXT:
            pool.hold(cells)
            pool.time_step(1)
            assert scanned.num_cells == to_256(sum(cells) + 1), cells


def test_a_gap_would_be_scanned(scanned, pool):
    """Else the test above could not fail."""
    pool.hold((300, 300, 300))
    pool.context.remove_sequence(1)
    pool.time_step(1)
    assert scanned.num_cells == to_256(300 + 300 + 300)


def test_a_stream_is_restored_in_full_where_it_grows_and_only_there(streams, monkeypatch):
    told = restored(streams, monkeypatch)
    streams.hold((100, 200, 300))
    assert told == [(0, CONTEXT), (1, CONTEXT), (2, CONTEXT)]
    told.clear()
    for cells in ((50, 200, 300), (50, 199, 1), (50, 10), (), ()):
        streams.hold(cells)
    assert told == []
    streams.hold((0, 1))
    assert told == [(1, CONTEXT)]


@pytest.mark.parametrize(
    ("after", "restores"),
    [
        ((100, 200, 300), []),
        ((100, 200, 50), []),
        ((100, 200), []),
        ((100, 200, 301), [(2, 301)]),
        ((100, 150, 300), [(2, 300)]),
        ((100, 150), []),
        ((100, 0, 300), [(2, 300)]),
        ((100, 201, 300), [(1, 201), (2, 300)]),
        ((50, 200, 300), [(1, 200), (2, 300)]),
        ((101, 200, 300), [(0, 101), (1, 200), (2, 300)]),
        ((), []),
    ],
)
def test_in_a_pool_all_behind_the_first_change_are_put_back(pool, monkeypatch, after, restores):
    pool.hold((100, 200, 300))
    told = restored(pool, monkeypatch)
    pool.hold(after)
    assert told == restores
    assert held(pool) == all_of(after)


def test_full_but_for_a_cell_each_there_is_room_for_one_step(rig):
    almost = [CONTEXT - 1] * NUM_SEQUENCES
    rig.hold((CONTEXT - 1, 20, CONTEXT))  # fragments would leave no room
    rig.hold(almost)
    assert rig.time_step(NUM_SEQUENCES) > 0
    assert rig.time_step(NUM_SEQUENCES) > 0  # what it appended is gone
    assert held(rig) == almost


def test_a_full_cache_has_no_room_for_a_step(rig):
    rig.hold([CONTEXT] * NUM_SEQUENCES)
    with pytest.raises(PlanError, match="need 3 free cells"):
        rig.time_step(NUM_SEQUENCES)
    assert held(rig) == [CONTEXT] * NUM_SEQUENCES


def test_a_chunk_may_fill_the_last_of_a_pool_and_its_rows_are_exported(pool, monkeypatch):
    exported = []
    copy = pool.context.copy_sequence

    def copying(source, target, first, end):
        exported.append((source, first, end))
        copy(source, target, first, end)

    monkeypatch.setattr(pool.context, "copy_sequence", copying)
    cells = [CONTEXT, CONTEXT, CONTEXT - CHUNK]
    pool.hold(cells)
    assert pool.time_chunk(CHUNK, 2) > 0
    assert exported == [(2, CONTEXT - CHUNK, CONTEXT)]
    assert held(pool) == cells
    assert pool.context.last_position(NUM_SEQUENCES) is None  # the scratch sequence
