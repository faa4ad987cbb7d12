"""What stands between the network and the page: who may ask for what, how often, and what browsers are told to refuse.

Gradio serves more routes than this page needs: one fetches any address (``/file=http://…``), others proxy, record or
keep sessions. Only those of :data:`DOORS` are open.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BURST, PER_SECOND = 300, 5.0
"""Requests that a client may send at once, and that it regains a second. Opening the page takes about 10."""
CLIENTS = 10_000
"""Clients whose requests are counted; of more, those that were quiet longest are forgotten."""
ASSETS = ("/assets/", "/static/", "/svelte/", "/favicon.ico")
"""The page's own files: so many, and so cheap, that they are not counted."""
DOORS = re.compile(
    r"/(?:config|login|logout|theme\.css|robots\.txt|manifest\.json|pwa_icon|favicon\.ico)?/?"
    r"|/(?:assets|static|svelte|pwa_icon)/.*"
    r"|/gradio_api/(?:info|openapi\.json|startup-events|app_id|user|token|login_check|theme\.css|reset|cancel)/?"
    r"|/gradio_api/(?:upload|upload_progress|heartbeat/[^/]+|queue/(?:join|data|status)|(?:run|call)/.+|mcp(?:/.*)?)/?"
    r"|/gradio_api/file=(?![a-z][a-z0-9+.-]*:).+",
    re.IGNORECASE | re.DOTALL,
)
"""The routes that the page and its clients use. A file is a path; an address to fetch is none."""
PORT = re.compile(r":\d*$")
POLICY = {
    "default-src": "'self'",
    # Gradio writes its configuration into the page, and makes functions of the components' scripts
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'self'",  # whoever is to show it in a frame, as Hugging Face does, has to be named here
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",  # a link tells what is looked at
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Armour:
    """ASGI middleware: closed doors, bounded calls, safe headers.

    Args:
        app: what is behind it.
        reachable: whether other machines can reach the page. Then each client has a limit; otherwise only requests for
            this machine's own names are answered, so that no web site can make a name of its own point here.
        clock: seconds, for the limit.
    """

    def __init__(self, app: ASGIApp, *, reachable: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.reachable = app, reachable
        self.limit = RateLimit(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refuse(scope)
        await (self.app if refusal is None else refusal)(scope, receive, guarded)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        path, headers = scope["path"], Headers(scope=scope)
        if not self.reachable and not is_loopback(PORT.sub("", headers.get("host", "")).strip("[]")):
            line = "This page is for this machine only; behind a proxy, start it with --public, best with --auth."
            return _answer(403, line)
        if not DOORS.fullmatch(path):
            return _answer(404, "Not Found")
        if scope["method"] not in {"GET", "HEAD"} and headers.get("sec-fetch-site") == "cross-site":
            return _answer(403, "Another web site may not use this page in a visitor's name.")
        if self.reachable and not path.startswith(ASSETS):
            wait = self.limit.take((scope.get("client") or ("",))[0])
            if wait > 0:
                line = f"Too many requests from your address; try again in {wait:.0f} s."
                return _answer(429, line, {"Retry-After": f"{wait:.0f}"})
        return None


class RateLimit:
    """How many requests each client may still send: :data:`BURST` at first, :data:`PER_SECOND` more every second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> float:
        """Count a request: 0 if it may pass, otherwise the seconds, 1 at least, until the next one may."""
        client, now = _network(address), self._clock()
        left, then = self._left.get(client, (float(BURST), now))
        left = min(BURST, left + (now - then) * PER_SECOND)
        passes = left >= 1
        self._left[client] = left - passes, now
        self._left.move_to_end(client)
        if len(self._left) > CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if passes else max(1.0, (1 - left) / PER_SECOND)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # some other name
        return False


def _network(address: str) -> str:
    """Whom an address belongs to: of IPv6 everybody has 2^64 of them."""
    try:
        host = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((host, 64), strict=False)) if host.version == 6 else address


def _answer(status: int, line: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """As Gradio's own refusals, which its page and clients know how to show."""
    return JSONResponse({"detail": line}, status, headers)
