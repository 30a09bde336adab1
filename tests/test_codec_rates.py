"""Rates of packing and restoring, on a clock that only the work itself moves."""

from types import SimpleNamespace

import numpy as np
import pytest

from hetero.kv.layout import kv_layout
from hetero.kv.types import kv_type
from hetero.profile.link import packed_prompt as packing
from hetero.profile.node.codecs import measure_codecs

# One layer of one head: 64 values are 68 bytes in q8_0, 36 in q4_0.
LAYOUT = kv_layout(
    num_layers=1, num_kv_heads=1, head_dim_k=64, head_dim_v=64, k_type="q8_0", v_type="q4_0"
)
PACK_S = {"k": 1.0, "v": 3.0}


@pytest.fixture
def clock(monkeypatch):
    """Packing K takes a second, packing V three."""
    now = SimpleNamespace(s=0.0)

    def pack_rows(values, kind, layout):
        now.s += PACK_S[kind]
        row_bytes = kv_type(layout.k_type if kind == "k" else layout.v_type).row_bytes(64)
        return np.zeros((*values.shape[:2], row_bytes), np.uint8)

    monkeypatch.setattr(packing, "pack_rows", pack_rows)
    monkeypatch.setattr(packing, "time", SimpleNamespace(perf_counter=lambda: now.s))
    return now


@pytest.mark.usefixtures("clock")
def test_a_packed_token_is_bytes_of_k_and_v_over_seconds_of_both():
    rates = packing.packed_prompt(LAYOUT, 256).pack_bytes_per_s
    # 256 x 68 and 256 x 36 bytes in 4 s, each time; K alone would be 17,408, V alone 3,072.
    assert rates == pytest.approx([6656.0] * 5)


@pytest.mark.usefixtures("clock")
def test_restores_are_timed_beyond_what_an_empty_one_costs():
    rig = SimpleNamespace(restore_s=lambda num_tokens: {1: 0.002, 1001: 0.012}[num_tokens])
    found = measure_codecs(rig, LAYOUT, 1001)
    assert found.pack_gb_s == pytest.approx(6656e-9)
    assert found.restore_s == pytest.approx(0.002)
    # 1000 tokens of 104 bytes in 10 ms.
    assert found.restore_gb_s == pytest.approx(0.0104)


@pytest.mark.usefixtures("clock")
def test_noise_does_not_make_a_restore_free():
    rig = SimpleNamespace(restore_s=lambda num_tokens: {1: 0.02, 1001: 0.01}[num_tokens])
    # A tenth of the long one's 10 ms at least.
    assert measure_codecs(rig, LAYOUT, 1001).restore_gb_s == pytest.approx(0.104)
