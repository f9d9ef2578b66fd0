"""Stages of work: order, overlap, and how many items are at work."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from smile_fast.pipeline import Here, in_order, worker_thread

PATIENCE = 60  # seconds; only a defect takes that long


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_results_come_in_the_order_of_the_items_whichever_is_ready_first(pool):
    second_is_done = threading.Event()

    def work(item):
        if item == 0:
            assert second_is_done.wait(PATIENCE)
        if item == 1:
            second_is_done.set()
        return 10 * item

    assert list(in_order(work, range(9), pool, ahead=3)) == [10 * item for item in range(9)]


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
@pytest.mark.parametrize("at_once", [False, True])
def test_so_many_items_are_at_work_at_most(pool, ahead, at_once):
    asked, taken, most = 0, 0, 0

    def items():
        nonlocal asked, most
        for item in range(12):
            asked += 1
            most = max(most, asked - taken)
            yield item

    for number, result in enumerate(in_order(str, items(), pool, ahead=ahead, at_once=at_once)):
        assert result == str(number)
        taken += 1
    assert most <= ahead + 1
    if not at_once:
        assert most == min(12, ahead + 1)


def test_the_next_item_is_worked_on_while_a_result_is_used():
    begun = {item: threading.Event() for item in range(4)}
    with worker_thread("read") as thread:
        for item in in_order(lambda item: begun[item].set() or item, range(4), thread, ahead=1):
            if item < 3:
                assert begun[item + 1].wait(PATIENCE)
            assert not any(begun[later].is_set() for later in range(item + 2, 4))


def test_stages_run_side_by_side():
    """Two chained stages meet at a barrier: the first at item n + 1, the second at item n."""
    together = threading.Barrier(2, timeout=PATIENCE)

    def first(item):
        if item > 0:
            together.wait()
        return item

    def second(item):
        if item < 3:
            together.wait()
        return item

    with worker_thread("first") as one, worker_thread("second") as two:
        read = in_order(first, range(4), one, ahead=1)
        assert list(in_order(second, read, two, ahead=1)) == [0, 1, 2, 3]


def test_the_last_stage_does_not_wait_for_the_next_item():
    done = []

    def items():
        for item in range(3):
            assert done == list(range(item))
            yield item

    for item in in_order(int, items(), Here(), ahead=5, at_once=True):
        done.append(item)
    assert done == [0, 1, 2]


@pytest.mark.parametrize("where", ["item", "call"])
def test_an_error_comes_in_its_place_and_ends_the_work(pool, where):
    called, asked = [], []

    def items():
        for item in range(9):
            asked.append(item)
            if where == "item" and item == 3:
                raise ZeroDivisionError
            yield item

    def work(item):
        called.append(item)
        if where == "call" and item == 3:
            raise ZeroDivisionError
        return item

    results = in_order(work, items(), pool, ahead=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert max(asked) <= 5
    assert max(called) <= 5


def test_what_was_not_begun_is_dropped_with_the_results():
    called, leave = [], threading.Event()

    def work(item):
        called.append(item)
        if item == 1:
            assert leave.wait(PATIENCE)
        return item

    with ThreadPoolExecutor(1) as thread:  # which would go on
        results = in_order(work, range(9), thread, ahead=4)
        assert next(results) == 0
        results.close()
        leave.set()
    assert set(called) <= {0, 1}


def test_what_was_not_begun_is_dropped_with_the_thread():
    begun, leave = threading.Event(), threading.Event()
    with worker_thread("slow") as thread:
        first = thread.submit(lambda: begun.set() or leave.wait(PATIENCE))
        second = thread.submit(int)
        second.add_done_callback(lambda _: leave.set())
        assert begun.wait(PATIENCE)
    assert first.result()
    assert second.cancelled()


def test_ctrl_c_is_no_result():
    def interrupted(item):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(in_order(interrupted, [0], Here(), ahead=3))


def test_here_is_this_thread():
    assert Here().submit(threading.get_ident).result() == threading.get_ident()
    with worker_thread("other") as thread:
        assert thread.submit(threading.get_ident).result() != threading.get_ident()
