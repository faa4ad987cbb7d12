"""Long work that a session may stop, and that stops by itself where a page's patience ends."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import gradio as gr

from vtviz.errors import VtvizError

MOST_WAITING = 1000
"""Sessions whose work is expected. The queue holds fewer: what is more are names that somebody made up."""


class Cancelled(VtvizError):  # noqa: N818 - it is no error
    """Raised by a session's long work once it was cancelled."""


class TooLong(VtvizError):  # noqa: N818 - nor is this
    """Raised by work that takes longer than the page has patience for."""


def deadline(seconds: float | None) -> Callable[[], None]:
    """What raises :class:`TooLong` when it is called later than ``seconds`` from now; never for None."""
    end = math.inf if seconds is None else time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > end:
            raise TooLong(f"Stopped: this page works {seconds:g} s on one call at most; ask for less.")

    return check


class Stops:
    """What to stop, by session: each has one piece of work at a time, which waits its turn and then runs.

    Args:
        seconds: that it may take once it runs; by default any time.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._waiting: OrderedDict[str, Event] = OrderedDict()
        self._running: dict[str, Event] = {}

    def expect(self, request: gr.Request) -> None:
        """The session has asked for work: from now on it can be cancelled, also before its turn comes."""
        name = str(request.session_hash)
        self._waiting.pop(name, None)  # or else it would stay as old as it was
        self._waiting[name] = Event()
        if len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)

    @contextmanager
    def watch(self, request: gr.Request, progress: Any, what: str) -> Iterator[Callable[[int, int], None]]:
        """Within, work may be cancelled: by what it calls with (done, total), which shows how far it is.

        Args:
            request: of the session.
            progress: Gradio's.
            what: is being done, for the progress bar.

        Raises:
            Cancelled: within, and at once where that came before the work's turn.
        """
        name = str(request.session_hash)
        self._running[name] = stop = self._waiting.pop(name, None) or Event()
        check = deadline(self.seconds)

        def heed() -> None:
            if stop.is_set():
                raise Cancelled("Cancelled; nothing was kept.")

        def tell(done: int, total: int) -> None:
            check()
            heed()
            progress((done, total), desc=what, unit="steps")

        try:
            heed()
            yield tell
        finally:
            if self._running.get(name) is stop:
                del self._running[name]

    def cancel(self, request: gr.Request) -> None:
        """Stop the session's work, if there is any: at its next step, or when its turn comes."""
        for kind in (self._running, self._waiting):
            if stop := kind.get(str(request.session_hash)):
                stop.set()

    def leave(self, request: gr.Request) -> None:
        """The session is gone: stop what runs. What waited will not come, for Gradio takes it out of the queue."""
        self.cancel(request)
        self._waiting.pop(str(request.session_hash), None)
