"""Long work that a session may stop, and that stops by itself where a page's patience ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import gradio as gr

from vtviz.errors import VtvizError


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
    """What to stop, by session: each has one piece of work at a time.

    Args:
        seconds: that it may take; by default any time.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._events: dict[str, Event] = {}

    @contextmanager
    def watch(self, request: gr.Request, progress: Any, what: str) -> Iterator[Callable[[int, int], None]]:
        """Within, work may be cancelled: by what it calls with (done, total), which shows how far it is.

        Args:
            request: of the session.
            progress: Gradio's.
            what: is being done, for the progress bar.
        """
        name, stop = str(request.session_hash), Event()
        self._events[name] = stop
        check = deadline(self.seconds)

        def tell(done: int, total: int) -> None:
            check()
            if stop.is_set():
                raise Cancelled("Cancelled; nothing was kept.")
            progress((done, total), desc=what, unit="steps")

        try:
            yield tell
        finally:
            if self._events.get(name) is stop:
                del self._events[name]

    def cancel(self, request: gr.Request) -> None:
        """Stop the session's work, if there is any, at its next step."""
        if stop := self._events.get(str(request.session_hash)):
            stop.set()
