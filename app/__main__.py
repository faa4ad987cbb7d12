"""``python app.py`` or ``python -m app``: the page on http://127.0.0.1:7860."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
import sys

from vtviz.errors import VtvizError


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until interrupted; 2 and one line on a wrong option."""
    parser = argparse.ArgumentParser(prog="app.py", description="See what each visual token looks at, in the browser.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument("--model", metavar="NAME|PATH", help="a checkpoint, or a run's folder, to open first")
    parser.add_argument("--device", help="where models run: cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--share", action="store_true", help="also serve over a public gradio.live address")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for this name and password")
    parser.add_argument("--data-root", metavar="DIR", help="folder of data sets to train on, dissect and show")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="folder of training runs (default: %(default)s)")
    parser.add_argument(
        "--allow-training",
        action="store_true",
        help="training, and photos of the data root, also where other machines reach the page",
    )
    parser.add_argument(
        "--mcp",
        action="store_true",
        help="also serve the endpoints as MCP tools (needs gradio[mcp])",
    )
    options = parser.parse_args(arguments)
    user, _, password = (options.auth or "").partition(":")
    if options.auth is not None and not (user and password):
        parser.error("--auth must be USER:PASSWORD")
    if options.mcp and importlib.util.find_spec("mcp") is None:
        parser.error("--mcp needs a package more: pip install 'gradio[mcp]'")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads must not starve the server
    from app.datasets import DataRoot  # noqa: PLC0415
    from app.page import build_page, launch_options  # noqa: PLC0415
    from app.shelf import Shelf  # noqa: PLC0415
    from app.train import Train  # noqa: PLC0415

    allowed = options.allow_training or (is_loopback(options.host) and not options.share)
    try:
        shelf = Shelf(options.model, options.device)
        data = DataRoot(options.data_root) if options.data_root is not None else None
        page = build_page(shelf, Train(shelf, options.runs, data, allowed=allowed), data if allowed else None)
        page.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            auth=(user, password) if options.auth else None,
            mcp_server=options.mcp,
            **launch_options(),
        )
    except VtvizError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError:  # Gradio's own text names its own options
        print(f"error: cannot listen on {options.host}:{options.port}; try another --port", file=sys.stderr)
        return 2
    return 0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # some other name
        return False


if __name__ == "__main__":
    sys.exit(main())
