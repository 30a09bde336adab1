"""The Triton kernel against attention written out in float64, and against torch's own error."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bf16_interpreter import use_exact_bfloat16
from float64_reference import relative_error
from gpu_or_interpreter import DEVICE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetero.errors import ConfigError, EngineError
from hetero.prefill.kernels.attention import AttentionOptions, TritonAttention
from hetero.prefill.span import Span

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

# The bounds for the 16-bit types; float32 sums in another order.
WORST_ERROR = {BF16: 4e-3, F16: 6e-4, F32: 1e-5}
CAPABILITY = 90


@pytest.fixture(autouse=True)
def exact_bfloat16(monkeypatch):
    if DEVICE == "cpu":
        use_exact_bfloat16(monkeypatch)


def written_out(q, k, v, spans, *, window=None, softcap=None, sinks=None):
    """Every score in memory, float64, a prompt and a head at a time."""
    q, k, v = (x.double().cpu().numpy() for x in (q, k, v))
    outputs, start = [], 0
    for span in spans:
        cells = slice(span.cell, span.cell + span.end)
        new = slice(start, start + span.num_new)
        start += span.num_new
        at = np.arange(span.first, span.end)[:, None]
        key = np.arange(span.end)
        hidden = (key > at) | (key <= at - (window or np.inf))
        out = np.empty((span.num_new, *q.shape[1:]))
        for head in range(q.shape[1]):
            group = head * k.shape[1] // q.shape[1]
            scores = q[new, head] @ k[cells, group].T / np.sqrt(q.shape[2])
            if softcap is not None:
                scores = softcap * np.tanh(scores / softcap)
            scores[hidden] = -np.inf
            peak = scores.max(1, keepdims=True)
            rest = 0.0 if sinks is None else np.exp(float(sinks[head]) - peak)
            odds = np.exp(scores - peak)
            out[:, head] = odds / (odds.sum(1, keepdims=True) + rest) @ v[cells, group]
        outputs.append(out)
    return np.concatenate(outputs)


def random_pool(spans, *, heads, kv_heads, head_dim, dtype=F32, seed=0, spread=1.0):
    """Q of the spans' tokens, and a pool that holds NaN wherever no prompt has a cell."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (spread * torch.randn(shape, generator=generator)).to(dtype)

    q = draw(sum(span.num_new for span in spans), heads, head_dim)
    num_cells = max(span.cell + span.end for span in spans) + 70
    k, v = (torch.full((num_cells, kv_heads, head_dim), torch.nan, dtype=dtype) for _ in "kv")
    for span in spans:
        for pool in (k, v):
            pool[span.cell : span.cell + span.end] = draw(span.end, kv_heads, head_dim)
    return q.to(DEVICE), k.to(DEVICE), v.to(DEVICE)


def attend(q, k, v, spans, *, capability=CAPABILITY, sinks=None, **options):
    attention = TritonAttention(
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=q.shape[2],
        capability=capability,
        options=AttentionOptions(**options),
    )
    return attention(q, k, v, attention.plan(spans, q.device), sinks_H=sinks)


# Prefixes none, odd, longer than a tile; lengths one, odd, a tile and one more.
SPANS = [
    Span(cell=3, first=0, end=77),
    Span(cell=120, first=45, end=110),
    Span(cell=300, first=140, end=141),
    Span(cell=90, first=0, end=1),
]


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_every_head_dim_and_type_over_odd_lengths(head_dim, dtype):
    q, k, v = random_pool(SPANS, heads=4, kv_heads=2, head_dim=head_dim, dtype=dtype)
    have = attend(q, k, v, SPANS)
    assert (have.shape, have.dtype) == (q.shape, dtype)
    assert relative_error(have.float().cpu(), written_out(q, k, v, SPANS)) < WORST_ERROR[dtype]


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 16])
def test_every_ratio_of_heads(group, kv_heads):
    spans = SPANS[:2]
    q, k, v = random_pool(spans, heads=group * kv_heads, kv_heads=kv_heads, head_dim=64)
    assert relative_error(attend(q, k, v, spans).cpu(), written_out(q, k, v, spans)) < 1e-5


@pytest.mark.parametrize("num_new", [1, 2, 31, 33, 128, 129])
@pytest.mark.parametrize("prefix", [0, 1, 63, 64, 65, 200])
def test_every_prefix_length(prefix, num_new):
    spans = [Span(cell=5, first=prefix, end=prefix + num_new)]
    q, k, v = random_pool(spans, heads=2, kv_heads=1, head_dim=64)
    assert relative_error(attend(q, k, v, spans).cpu(), written_out(q, k, v, spans)) < 1e-5


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_every_chips_tiles_give_the_same(capability, head_dim):
    spans = [Span(cell=5, first=61, end=200), Span(cell=250, first=0, end=40)]
    q, k, v = random_pool(spans, heads=4, kv_heads=1, head_dim=head_dim, dtype=F16)
    have = attend(q, k, v, spans, capability=capability)
    assert relative_error(have.float().cpu(), written_out(q, k, v, spans)) < WORST_ERROR[F16]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_no_worse_than_torchs_own(dtype, head_dim):
    span = Span(cell=0, first=0, end=300)
    q, k, v = random_pool([span], heads=4, kv_heads=2, head_dim=head_dim, dtype=dtype)
    exact = written_out(q, k, v, [span])
    q_1HTD, k_1GPD, v_1GPD = (x.transpose(0, 1)[None] for x in (q, k[:300], v[:300]))
    torchs = F.scaled_dot_product_attention(q_1HTD, k_1GPD, v_1GPD, is_causal=True, enable_gqa=True)
    own = relative_error(torchs[0].transpose(0, 1).float().cpu(), exact)
    assert relative_error(attend(q, k, v, [span]).float().cpu(), exact) < 1.2 * own


OPTIONS = [
    {"window": 1},
    {"window": 37},
    {"window": 64},
    {"window": 1000},
    {"softcap": 5.0},
    {"window": 50, "softcap": 3.0},
]


@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_window_softcap_and_sinks_alone_and_together(options, with_sinks):
    q, k, v = random_pool(SPANS, heads=6, kv_heads=2, head_dim=64)
    sinks = torch.linspace(-3, 3, 6, device=DEVICE) if with_sinks else None
    have = attend(q, k, v, SPANS, sinks=sinks, **options)
    want = written_out(q, k, v, SPANS, sinks=sinks, **options)
    assert relative_error(have.cpu(), want) < 1e-5


@pytest.mark.parametrize(("capability", "head_dim"), [(80, 64), (90, 128)])
@pytest.mark.parametrize("window", [40, 128, 170])
def test_a_windows_edge_in_the_diagonals_key_tiles_and_before_them(window, capability, head_dim):
    spans = [Span(cell=5, first=0, end=330), Span(cell=340, first=251, end=389)]
    q, k, v = random_pool(spans, heads=4, kv_heads=1, head_dim=head_dim, dtype=F16)
    have = attend(q, k, v, spans, capability=capability, window=window)
    want = written_out(q, k, v, spans, window=window)
    assert relative_error(have.float().cpu(), want) < WORST_ERROR[F16]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("options", [{}, {"window": 40}, {"softcap": 30.0}], ids=str)
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_scores_of_tens_of_thousands_stay_numbers(dtype, options):
    q, k, v = random_pool(SPANS, heads=4, kv_heads=2, head_dim=64, dtype=dtype, spread=40.0)
    have = attend(q, k, v, SPANS, **options)
    assert torch.isfinite(have).all()
    want = written_out(q, k, v, SPANS, **options)
    assert relative_error(have.float().cpu(), want) < max(WORST_ERROR[dtype], 1e-4)


def test_a_nan_reaches_only_those_who_see_it():
    spans = [Span(cell=0, first=0, end=40), Span(cell=40, first=0, end=40)]
    q, k, v = random_pool(spans, heads=2, kv_heads=1, head_dim=64)
    k[25] = torch.nan
    have = attend(q, k, v, spans)
    assert torch.isfinite(have[:25]).all()
    assert have[25:40].isnan().all()
    assert torch.isfinite(have[40:]).all()


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 90), st.integers(1, 70), st.integers(0, 20)),
        min_size=2,
        max_size=4,
    )
)
def test_prompts_together_are_bit_for_bit_what_they_are_alone(lengths):
    spans, cell = [], 0
    for prefix, num_new, gap in lengths:
        spans.append(Span(cell=cell + gap, first=prefix, end=prefix + num_new))
        cell = spans[-1].cell + spans[-1].end
    q, k, v = random_pool(spans, heads=4, kv_heads=2, head_dim=128, dtype=F16)
    together = attend(q, k, v, spans).split([span.num_new for span in spans])
    queries = q.split([span.num_new for span in spans])
    for span, new, have in zip(spans, queries, together, strict=True):
        assert torch.equal(have, attend(new, k, v, [span]))


def test_heads_may_be_views_of_a_wider_row():
    spans = [Span(cell=2, first=10, end=60)]
    q, k, v = random_pool(spans, heads=4, kv_heads=2, head_dim=64)
    row = torch.full((len(q), 10, 64), torch.nan, device=DEVICE)
    row[:, :4] = q
    wide = torch.full((len(k), 6, 64), torch.nan, device=DEVICE)
    wide[:, :2], wide[:, 2:4] = k, v
    have = attend(row[:, :4], wide[:, :2], wide[:, 2:4], spans)
    assert torch.equal(have, attend(q, k, v, spans))


def test_cells_beyond_2_31_values_are_reached():
    spans = [Span(cell=32, first=0, end=2)]
    q, k, v = random_pool(spans, heads=2, kv_heads=1, head_dim=64, dtype=F16)
    want = written_out(q, k, v, spans)
    # Of these 4 GiB, two pages are touched.
    values = torch.empty(2**31 + 2**26 + 128, dtype=F16, device=DEVICE)
    far_k, far_v = (values[part:].as_strided((34, 1, 64), (2**26, 64, 1), part) for part in (0, 64))
    far_k[32:], far_v[32:] = k[32:34], v[32:34]
    have = attend(q, far_k, far_v, spans)
    assert relative_error(have.float().cpu(), want) < WORST_ERROR[F16]


def test_a_prompt_too_long_for_int32_within_it_is_refused():
    attention = make()
    plan = attention.plan([Span(cell=0, first=2**24, end=2**24 + 1)], torch.device("meta"))
    q = torch.empty(1, 4, 64, device="meta")
    pool = torch.empty(2**24 + 1, 2, 64, device="meta")
    with pytest.raises(EngineError, match="need prompts below 16777216 tokens, have 16777217"):
        attention(q, pool, pool, plan)


@pytest.mark.parametrize("window", [None, 100])
def test_the_tiles_with_most_keys_start_first(window):
    attention = make(options=AttentionOptions(window=window))
    spans = [Span(cell=0, first=0, end=300), Span(cell=300, first=80, end=140)]
    tiles = attention.plan(spans, torch.device("cpu")).tiles.tolist()
    rows = sorted((token, row) for token, row, *_ in tiles)
    assert rows == [(0, 0), (0, 128), (0, 256), (0, 384), (0, 512), (300, 0)]
    keys = [
        min(first + min(row + 128, num_rows) // 2, 64 + (window or 300))
        for _, row, num_rows, first, _ in tiles
    ]
    assert keys == sorted(keys, reverse=True)


def test_no_tokens_give_no_rows():
    q = torch.empty(0, 4, 64, device=DEVICE)
    pool = torch.empty(10, 2, 64, device=DEVICE)
    assert attend(q, pool, pool, []).shape == (0, 4, 64)


def make(**changes):
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "capability": 90}
    return TritonAttention(**(heads | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 112}, "head_dim"),
        ({"num_heads": 5}, "multiple of KV heads, have 5 and 2"),
        ({"capability": 75}, "capability"),
    ],
)
def test_heads_and_chips_without_a_kernel_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_tensors_that_do_not_fit_the_plan_are_refused():
    attention = make()
    plan = attention.plan([Span(cell=0, first=0, end=5)], torch.device(DEVICE))
    q, pool = torch.zeros(5, 4, 64), torch.zeros(9, 2, 64)
    with pytest.raises(EngineError, match=r"need q of shape \(5, 4, 64\), have \(4, 4, 64\)"):
        attention(q[:4], pool, pool, plan)
    with pytest.raises(EngineError, match="need v of shape"):
        attention(q, pool, pool[:, :1], plan)
