"""Long work that a session may stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import gradio as gr

from vtviz.errors import VtvizError


class Cancelled(VtvizError):  # noqa: N818 - it is no error
    """Raised by a session's long work once it was cancelled."""


class Stops:
    """What to stop, by session: each has one piece of work at a time."""

    def __init__(self) -> None:
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

        def tell(done: int, total: int) -> None:
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
