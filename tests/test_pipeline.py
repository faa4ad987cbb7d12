import threading
import time
from itertools import count, islice

import pytest

from vtviz.pipeline import ahead


def test_results_come_in_the_order_of_the_items_whatever_takes_how_long():
    def slow_first(i: int) -> int:
        time.sleep(0.02 if i % 4 == 0 else 0)
        return i * i

    assert [done.result() for done in ahead(slow_first, range(40), workers=4)] == [i * i for i in range(40)]


def test_no_more_items_are_taken_than_may_wait():
    taken, given = [], 0

    def items():
        for i in range(60):
            taken.append(i)
            yield i

    for done in ahead(lambda i: i, items(), workers=2, most=3):
        given += 1
        assert len(taken) - given <= 3
        done.result()
    assert given == 60


def test_an_endless_source_is_no_matter():
    assert [done.result() for done in islice(ahead(lambda i: -i, count(), workers=2), 5)] == [0, -1, -2, -3, -4]


def test_work_overlaps():
    """Two workers meet at a barrier: one after the other they would wait for ever."""
    barrier = threading.Barrier(2, timeout=20)
    assert len([done.result() for done in ahead(lambda _: barrier.wait(), range(4), workers=2)]) == 4


def test_an_error_belongs_to_its_item_and_the_others_go_on():
    first, second, third = ahead(lambda i: 6 // i, [3, 0, 2], workers=2)
    assert (first.result(), third.result()) == (2, 3)
    with pytest.raises(ZeroDivisionError):
        second.result()


@pytest.mark.parametrize("how", ["close", "raise"])
def test_stopping_early_ends_what_began_and_begins_nothing_more(how):
    begun, ended = [], []

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.01)
        ended.append(i)
        return i

    before = threading.active_count()
    results = ahead(work, range(1000), workers=2, most=4)
    next(results)
    if how == "close":
        results.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt())
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 10
    assert threading.active_count() == before


def test_an_error_in_the_source_comes_to_the_caller():
    def items():
        yield 1
        raise OSError("the folder is gone")

    results = ahead(lambda i: i, items(), workers=2, most=0)
    assert next(results).result() == 1
    with pytest.raises(OSError, match="gone"):
        next(results)
