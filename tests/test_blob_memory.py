"""Memory that is used again, and never while somebody can still write to it."""

import gc
import threading

import numpy as np
import pytest

from hetero.kv.blob_memory import BlobMemory

MIB = 2**20


def address(array):
    return array.ctypes.data


def test_what_nobody_refers_to_is_given_out_again():
    memory = BlobMemory(keep_bytes=8 * MIB)
    first = memory.take(5 * MIB)
    first[:] = 7
    where = address(first)
    del first
    gc.collect()
    again = memory.take(5 * MIB - 3)
    assert address(again) == where
    assert again.nbytes == 5 * MIB - 3
    assert (again == 7).all()


def test_a_view_keeps_it_from_others():
    """A thread that still copies rows of an ended transfer holds no more than a view."""
    memory = BlobMemory(keep_bytes=8 * MIB)
    first = memory.take(5 * MIB)
    where = address(first)
    row = first[MIB:].reshape(-1, 64)[3:5][1]
    del first
    gc.collect()
    other = memory.take(5 * MIB)
    assert address(other) != where
    row[:] = 1
    assert not (other[: 2 * MIB] == 1).any()
    del row
    gc.collect()
    assert address(memory.take(5 * MIB)) == where


def test_no_more_is_kept_than_was_said_and_no_small_blob_holds_a_large_one():
    memory = BlobMemory(keep_bytes=8 * MIB)
    arrays = [memory.take(6 * MIB) for _ in range(3)]
    del arrays
    gc.collect()
    assert sum(map(len, memory._free)) <= 8 * MIB
    where = address(memory.take(6 * MIB))
    gc.collect()
    assert address(memory.take(100)) != where


def test_what_comes_back_while_others_are_sorted_is_not_waited_for():
    """A finalizer runs wherever garbage is collected: inside this very lock, too."""
    memory = BlobMemory(keep_bytes=8 * MIB)
    first = memory.take(5 * MIB)
    where = address(first)
    with memory._lock:
        del first
        gc.collect()
    assert address(memory.take(5 * MIB)) == where


def test_an_idle_node_keeps_nothing():
    memory = BlobMemory(keep_bytes=8 * MIB)
    memory.take(5 * MIB)
    gc.collect()
    memory.rest(idle_s=60)
    assert memory._free
    memory.rest(idle_s=0)
    assert not memory._free


def test_threads_never_share_a_piece():
    memory = BlobMemory(keep_bytes=64 * MIB)
    wrong = []

    def use(number):
        for _ in range(200):
            mine = memory.take(MIB)
            mine[::4096] = number
            if not (mine[::4096] == number).all():
                wrong.append(number)
            del mine

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_more_than_there_is_is_a_memory_error():
    with pytest.raises(MemoryError):
        BlobMemory(keep_bytes=0).take(2**60)
    with pytest.raises(MemoryError):
        BlobMemory(keep_bytes=0).take(2**70)


def test_arrays_are_plain_bytes():
    array = BlobMemory(keep_bytes=0).take(10)
    assert (array.dtype, array.shape) == (np.uint8, (10,))
    array[3] = 5
