"""Work done ahead of whoever asks for it, in threads, in order, with a bound on how far ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
WORKERS = max(2, min(8, (os.cpu_count() or 2) // 2))
"""Threads that read or write files beside a model; the rest of the cores is the model's."""


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int = WORKERS, most: int | None = None
) -> Generator[Future[Result], None, None]:
    """``function`` of each item, in the order of the items, computed by threads while the caller does something else.

    Items are taken from their iterator in the caller's thread. Where the caller stops early, what has begun is ended
    and nothing more is begun.

    Args:
        function: called once for each item.
        items: any number of them.
        workers: threads.
        most: items that may be under way or done before the first of them is waited for; twice the workers by default.

    Yields:
        Done futures: ``result()`` is the result, or raises what the function raised.
    """
    most = 2 * workers if most is None else most
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > most:
                waiting[0].exception()  # waits
                yield waiting.popleft()
        while waiting:
            waiting[0].exception()
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
