"""Long work of a session: cancelled while it runs, while it waits its turn, and by nobody else."""

from types import SimpleNamespace

import pytest

from app.page import build_page
from app.stops import MOST_WAITING, Cancelled, Stops, TooLong

ME, ANOTHER = (SimpleNamespace(session_hash=name) for name in ("me", "another"))


def silent(*_: object, **__: object) -> None:
    """A progress bar that nobody looks at."""


def test_what_runs_stops_at_its_next_step():
    stops = Stops()
    with stops.watch(ME, silent, "Steps") as tell:
        tell(1, 3)
        stops.cancel(ANOTHER)
        tell(2, 3)
        stops.cancel(ME)
        with pytest.raises(Cancelled):
            tell(3, 3)


def test_what_waits_its_turn_never_begins():
    stops = Stops()
    stops.expect(ME)
    stops.expect(ANOTHER)
    stops.cancel(ME)
    begun = []
    with pytest.raises(Cancelled), stops.watch(ME, silent, "Steps"):
        begun.append("mine")
    with stops.watch(ANOTHER, silent, "Steps") as tell:
        tell(1, 1)
        begun.append("another's")
    assert begun == ["another's"]


def test_a_cancel_is_for_what_was_asked_before_it():
    stops = Stops()
    stops.cancel(ME)  # there is nothing
    stops.expect(ME)
    stops.cancel(ME)
    stops.expect(ME)  # asked anew
    with stops.watch(ME, silent, "Steps") as tell:
        stops.expect(ME)  # pressed twice: the second waits for the first
        tell(1, 2)
        stops.cancel(ME)  # both
        with pytest.raises(Cancelled):
            tell(2, 2)
    with pytest.raises(Cancelled), stops.watch(ME, silent, "Steps"):
        pass
    with stops.watch(ME, silent, "Steps") as tell:
        tell(1, 1)


def test_patience_begins_with_the_work():
    stops = Stops(seconds=-1)
    stops.expect(ME)
    with pytest.raises(TooLong, match="at most"), stops.watch(ME, silent, "Steps") as tell:
        tell(1, 2)


def someone(number: int) -> SimpleNamespace:
    return SimpleNamespace(session_hash=f"made up {number}")


def test_sessions_that_leave_are_forgotten():
    stops = Stops()
    with stops.watch(ME, silent, "Steps") as tell:
        for number in range(20_000):
            stops.expect(someone(number))
            stops.leave(someone(number))
        assert not stops._waiting
        tell(1, 2)
        stops.leave(ME)
        with pytest.raises(Cancelled):
            tell(2, 2)
    assert not stops._running
    with stops.watch(ME, silent, "Steps") as tell:  # who comes back is not held to it
        tell(1, 1)


def test_names_that_somebody_made_up_do_not_pile_up():
    """They are expected and never come, nor leave. Of the others the latest can still be cancelled."""
    stops = Stops()
    for number in range(20_000):
        stops.expect(someone(number))
        stops.cancel(someone(number))
    assert len(stops._waiting) == MOST_WAITING
    stops.expect(ME)
    for number in range(MOST_WAITING - 1):
        stops.expect(someone(number))
    stops.cancel(ME)
    with pytest.raises(Cancelled), stops.watch(ME, silent, "Steps"):
        pass


def test_a_session_that_asks_again_is_the_latest():
    stops = Stops()
    stops.expect(ME)
    for number in range(MOST_WAITING - 1):
        stops.expect(someone(number))
    stops.expect(ME)
    stops.expect(ANOTHER)
    assert set(stops._waiting) >= {"me", "another"}


def test_the_page_forgets_who_leaves(shelf):
    page = build_page(shelf)
    gone = [f.fn for f in page.fns.values() if any(event == "unload" for _, event in f.targets)]
    assert len(gone) == 3
    assert {fn.__name__ for fn in gone} == {"leave"}
    assert all(isinstance(fn.__self__, Stops) for fn in gone)
