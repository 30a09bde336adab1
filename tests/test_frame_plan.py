from hypothesis import given
from hypothesis import strategies as st

from hetero.kv.layout import kv_layout
from hetero.prefill.frame_plan import layer_groups, token_ranges


def layout(num_layers, k_type="f16", v_type="f16"):
    return kv_layout(
        num_layers=num_layers,
        num_kv_heads=2,
        head_dim_k=64,
        head_dim_v=64,
        k_type=k_type,
        v_type=v_type,
    )


def test_groups_are_as_large_as_a_frame_allows():
    # A row is 2 heads x 64 dims x 2 bytes: 10 tokens of one layer make 2,560 bytes.
    assert layer_groups(layout(5), 10, 2 * 2560) == [range(0, 2), range(2, 4), range(4, 5)]
    assert layer_groups(layout(5), 10, 2 * 2560 - 1) == [range(i, i + 1) for i in range(5)]
    assert layer_groups(layout(5), 10, 100 * 2560) == [range(0, 5)]


def test_wider_of_k_and_v_sizes_the_groups():
    assert layer_groups(layout(4, k_type="q8_0"), 10, 2560) == [range(i, i + 1) for i in range(4)]
    assert layer_groups(layout(4, "q8_0", "q8_0"), 10, 2720) == [range(0, 2), range(2, 4)]


def test_a_layer_that_exceeds_a_frame_is_cut_by_tokens():
    assert layer_groups(layout(2), 10, 600) == [range(0, 1), range(1, 2)]
    assert token_ranges(7, 12, 256, 600) == [range(7, 9), range(9, 11), range(11, 12)]


def test_a_frame_holds_at_least_one_token():
    assert token_ranges(0, 2, 256, 1) == [range(0, 1), range(1, 2)]


@given(
    first=st.integers(0, 1000),
    num_tokens=st.integers(1, 200),
    token_bytes=st.integers(1, 100),
    frame_bytes=st.integers(1, 5000),
)
def test_token_ranges_join_up_and_fit(first, num_tokens, token_bytes, frame_bytes):
    end = first + num_tokens
    ranges = token_ranges(first, end, token_bytes, frame_bytes)
    assert [token for tokens in ranges for token in tokens] == list(range(first, end))
    assert all(len(r) == 1 or len(r) * token_bytes <= frame_bytes for r in ranges)
