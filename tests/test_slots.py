"""Receive slots: lent, given back, kept until nobody writes to them; lanes told from UCX's log."""

from hypothesis import given
from hypothesis import strategies as st

from hetero.transport.nixl_lanes import find_lanes, lane_transport
from hetero.transport.slots import BorrowedSlots, SlotBook


def test_whoever_comes_later_gets_some_too():
    for num_slots, num_transfers in ((16, 8), (16, 4), (8, 8), (7, 3), (100, 2)):
        book = SlotBook(num_slots, num_transfers)
        lent = [len(book.lend(str(n), 0.0)) for n in range(num_transfers)]
        assert lent == [min(8, num_slots // num_transfers)] * num_transfers


def test_what_is_given_back_is_lent_again():
    book = SlotBook(1, 1)
    assert book.lend("a", 0.0) == (0,)
    assert book.lend("b", 0.0) == ()
    book.take_back("a")
    book.take_back("a")
    assert not book.is_lent(0, "a")
    assert book.lend("c", 0.0) == (0,)


def test_a_quarantined_slot_is_nobodys_until_its_time_is_over():
    book = SlotBook(2, 2)
    (slot,) = book.lend("a", 0.0)
    book.quarantine("a", until=10.0)
    book.take_back("a")  # too late to say so
    assert not book.is_lent(slot, "a")
    assert book.num_free(9.9) == 1
    assert slot not in book.lend("b", 9.9)
    assert book.lend("c", 10.0) == (slot,)


@given(st.lists(st.tuples(st.sampled_from(["lend", "back", "bad"]), st.integers(0, 5))))
def test_no_slot_is_ever_two_transfers_or_lost(steps):
    book, held = SlotBook(7, 3), {}
    for now, (step, name) in enumerate(steps):
        if step == "lend" and name not in held:
            held[name] = book.lend(name, now)
        elif step == "back":
            held.pop(name, None)
            book.take_back(name)
        elif step == "bad":
            held.pop(name, None)
            book.quarantine(name, until=now + 3)
        lent = [slot for slots in held.values() for slot in slots]
        assert len(lent) == len(set(lent))
    for name in held:
        book.take_back(name)
    assert book.num_free(len(steps) + 3) == 7


def test_a_borrowed_slot_is_used_again_after_its_credit():
    slots = BorrowedSlots((3, 5))
    first, second = slots.take(0), slots.take(1)
    assert {first, second} == {3, 5}
    assert not slots.has_free
    slots.credited(1)
    slots.credited(1)
    slots.credited(7)
    assert slots.take(2) == second
    assert not slots.has_free


UCX_SAYS = """\
[1.0] [vm:1 :0] ucp_worker.c:1997 UCX  INFO    me self cfg#0 rma(self/memory)  am(tcp/lo)
[1.1] [vm:1 :0] ucp_worker.c:1997 UCX  INFO    you intra-node cfg#1 rma(knem/memory)  am(tcp/lo)
[1.2] [vm:1 :0] ucp_worker.c:1997 UCX  INFO    me intra-node cfg#1 rma_am(sysv/memory)  ka(tcp/lo)
[1.3] [vm:1 :0] parser.c:2587 UCX  INFO  UCX_* env variable: UCX_TLS=tcp
[1.4] [vm:1 :0] ucp_worker.c:1997 UCX  INFO    me inter-node cfg#2 rma_bw(rc_mlx5/mlx5_0:1) cm(tcp)
"""


def test_lanes_are_those_between_an_agent_and_others_that_rows_may_take():
    assert find_lanes(UCX_SAYS, "me") == {"sysv/memory", "rc_mlx5/mlx5_0:1"}
    assert find_lanes(UCX_SAYS, "you") == {"knem/memory", "tcp/lo"}
    assert find_lanes("", "me") == set()


def test_a_lane_names_its_transport():
    names = ("tcp/eth0", "cma/memory", "rc_mlx5/mlx5_0:1", "ud_verbs/rxe0:1")
    assert [lane_transport(name) for name in names] == [
        "nixl-tcp",
        "nixl-shm",
        "nixl-rdma",
        "nixl-rdma",
    ]
