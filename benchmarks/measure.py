"""How a ratio is measured, and what is kept of it."""

from __future__ import annotations

import gc
import operator
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
        if self.ratio is None or self.goal is None:
            return None
        sign, bound = re.fullmatch(r"(<=|>=) ([\d.]+)", self.goal).groups()  # type: ignore[union-attr]
        return COMPARE[sign](self.ratio, float(bound))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, ``met`` included."""
        return asdict(self) | {"met": self.met}


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

    Args:
        name: of the row.
        what: of the row.
        first: A.
        second: B.
        goal: of the row.
        seconds: how long to go on; there are at least 5 rounds.
        note: of the row.
    """
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
    return Row(
        name,
        what,
        float(np.median(ratios)),
        interval_of_median(ratios),
        float(np.median(controls)),
        quantiles(controls),
        goal,
        float(medians[0]),
        float(medians[1]),
        len(ratios),
        note,
    )


def interval_of_median(values: list[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(seed).choice(values, size=(2000, len(values)))
    return quantiles(np.median(drawn, axis=1))


def quantiles(values: Any) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
