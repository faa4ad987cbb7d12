"""How a ratio is measured, and what is kept of it."""

from __future__ import annotations

import gc
import operator
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

Work = Callable[[], Any]
LEAST_ROUNDS = 5
COMPARE = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the row, as ``suite.what``.
        what: is divided by what, for people.
        ratio: median over the rounds; None where it was not measured.
        interval: its 95 % bootstrap interval; None where there are no rounds.
        control: the same for a piece of work beside itself: what the machine adds of its own.
        spread: the 2.5 and 97.5 % quantiles of the single rounds' controls.
        goal: such as "<= 0.90"; None for a row that is there to be known.
        first: median time of the first piece of work, in ms.
        second: that of the second.
        rounds: how many there were.
        note: what else to know, such as why it was not measured.
    """

    name: str
    what: str
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    control: float | None = None
    spread: tuple[float, float] | None = None
    goal: str | None = None
    first: float | None = None
    second: float | None = None
    rounds: int = 0
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the ratio keeps the goal; None where there is no ratio or no goal."""
        return None if self.ratio is None else self._keeps(self.ratio)

    @property
    def steady(self) -> bool | None:
        """Whether the control's spread holds 1; None of fewer than 5 rounds, which are on one side of it by chance."""
        if self.spread is None or self.rounds < LEAST_ROUNDS:
            return None
        return self.spread[0] <= 1 <= self.spread[1]

    @property
    def certain(self) -> bool | None:
        """Whether ``met`` holds at both ends of the interval, with a steady control; None where one cannot know."""
        if self.met is None or self.interval is None:
            return None
        return self.steady is not False and all(self._keeps(end) == self.met for end in self.interval)

    def _keeps(self, ratio: float) -> bool | None:
        if self.goal is None:
            return None
        sign, bound = re.fullmatch(r"(<=|>=) ([\d.]+)", self.goal).groups()  # type: ignore[union-attr]
        return COMPARE[sign](ratio, float(bound))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, ``met``, ``certain`` and ``steady`` included."""
        return asdict(self) | {"met": self.met, "certain": self.certain, "steady": self.steady}


def clock(work: Work) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(
    name: str, what: str, first: Work, second: Work, *, goal: str | None = None, seconds: float = 6.0, note: str = ""
) -> Row:
    """``first`` divided by ``second``, in rounds of A B B A, each followed by its control A A A A.

    Work that is over in less than 20 ms is repeated within a round until it is not. Warm-up is a call of each, twice.
    Where the control was not 1 all of it is done once more: then something else ran on the machine, or still warmed up.

    Args:
        name: of the row.
        what: of the row.
        first: A.
        second: B.
        goal: of the row.
        seconds: how long to go on; there are at least 5 rounds.
        note: of the row.
    """
    blank = Row(name, what, goal=goal, note=note)
    row = _measured(blank, first, second, seconds)
    return _measured(blank, first, second, seconds) if row.steady is False else row


def _measured(row: Row, first: Work, second: Work, seconds: float) -> Row:
    for work in (first, second) * 2:
        work()
    repeat = {work: max(1, round(0.02 / max(clock(work), 1e-7))) for work in (first, second)}

    def timed(work: Work) -> float:
        return clock(lambda: [work() for _ in range(repeat[work])]) / repeat[work]

    gc.collect()
    gc.disable()
    try:
        ratios: list[float] = []
        controls: list[float] = []
        times: list[tuple[float, float]] = []
        end = time.perf_counter() + seconds
        while len(ratios) < LEAST_ROUNDS or time.perf_counter() < end:
            a, b, c, d = (timed(work) for work in (first, second, second, first))
            ratios.append((a + d) / (b + c))
            times.append(((a + d) / 2, (b + c) / 2))
            a, b, c, d = (timed(first) for _ in range(4))
            controls.append((a + d) / (b + c))
    finally:
        gc.enable()
    medians = 1e3 * np.median(times, axis=0)
    return replace(
        row,
        ratio=float(np.median(ratios)),
        interval=interval_of_median(ratios),
        control=float(np.median(controls)),
        spread=quantiles(controls),
        first=float(medians[0]),
        second=float(medians[1]),
        rounds=len(ratios),
    )


def interval_of_median(values: list[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(seed).choice(values, size=(2000, len(values)))
    return quantiles(np.median(drawn, axis=1))


def quantiles(values: Any) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
