"""``python app.py`` or ``python -m app``: the page on http://127.0.0.1:7860."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

import typer

from app.armour import is_loopback
from vtviz.console import complain, named_path, output_folder
from vtviz.errors import DataError, VtvizError, did_you_mean


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        complain(f"{message}; see python app.py --help")
        self.exit(2)


def some(text: str) -> str:
    """A value that is there; an empty one is what a shell variable that is not set would give."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError("it is empty: give a value, or leave the option out")
    return text


def folder(text: str) -> Path:
    """A folder's path."""
    try:
        return named_path(text)
    except typer.BadParameter as error:
        raise argparse.ArgumentTypeError(error.message) from None


def writable(text: str) -> Path:
    """A folder that can be written to, there or not."""
    try:
        return output_folder(text)
    except typer.BadParameter as error:
        raise argparse.ArgumentTypeError(error.message) from None


def port_number(text: str) -> int:
    """A TCP port."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:6]) < 65536 and len(text) < 6):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no port: give a number from 1 to 65535")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """The options of the page."""
    parser = Parser(prog="app.py", description="See what each visual token looks at, in the browser.")
    parser.add_argument(
        "--host", type=some, default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)"
    )
    parser.add_argument("--port", type=port_number, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--model", type=some, metavar="NAME|PATH", help="a checkpoint, or a run's folder, to open first"
    )
    parser.add_argument(
        "--device", type=some, help="where models run: cpu, cuda, cuda:1 (default: cuda where there is one)"
    )
    parser.add_argument("--engine", type=some, default="torch", help="what runs models: torch, onnxruntime or openvino")
    parser.add_argument("--dtype", type=some, default="float32", help="float32, or bf16: faster, less exact")
    parser.add_argument("--share", action="store_true", help="also serve over a public gradio.live address")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for this name and password")
    parser.add_argument(
        "--public",
        action="store_true",
        help="let others use the page, also behind a proxy, and without --auth whoever reaches it; each has a limit",
    )
    parser.add_argument(
        "--data-root", type=folder, metavar="DIR", help="folder of data sets to train on, dissect and show"
    )
    parser.add_argument(
        "--runs",
        type=writable,
        metavar="DIR",
        default=Path("runs"),
        help="folder of training runs (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-training",
        action="store_true",
        help="training, and photos of the data root, also where other machines reach the page",
    )
    parser.add_argument(
        "--mcp",
        action="store_true",
        help="also serve the endpoints as MCP tools, to this machine only (needs gradio[mcp])",
    )
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with ``reachable``: whether other machines reach the page. Ends the program on a wrong one."""
    parser = make_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]  # noqa: SLF001
        parser.error(f"there is no option {unknown[0][:80]!r}{did_you_mean(unknown[0], known)}")
    try:
        socket.getaddrinfo(options.host, options.port)
    except (OSError, UnicodeError) as error:  # the latter for what cannot be a name, such as a..b
        reason = error.strerror if isinstance(error, OSError) else "it is no host's name"
        parser.error(f"argument --host: {options.host[:80]!r} is no address of this machine ({reason})")
    if options.auth is not None:
        user, _, password = options.auth.partition(":")
        if not (user and password):
            parser.error("--auth must be USER:PASSWORD")
        options.auth = user, password
    options.reachable = options.public or options.share or not is_loopback(options.host)
    if options.reachable and not (options.public or options.auth):
        where = "--share" if options.share else f"--host {options.host}"
        parser.error(f"{where} lets other machines reach the page: add --auth USER:PASSWORD, or --public for everybody")
    if options.mcp and (options.reachable or options.auth):  # Gradio asks for no password there
        parser.error("--mcp serves programs on this machine, without a password: leave out --auth, --public, --share")
    if options.mcp and importlib.util.find_spec("mcp") is None:
        parser.error("--mcp needs a package more: pip install 'gradio[mcp]'")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until interrupted; 2 and one line on a wrong option."""
    options = parse(arguments)
    # Gradio asks itself for the page before it says where it is: that is nothing for a proxy
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", "127.0.0.1", options.host)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads must not starve the server
    from app.datasets import DataRoot  # noqa: PLC0415
    from app.page import PATIENCE, build_page, launch_options  # noqa: PLC0415
    from app.shelf import Shelf  # noqa: PLC0415
    from app.train import Train  # noqa: PLC0415

    allowed = options.allow_training or not options.reachable
    try:
        try:
            shelf = Shelf(options.model, options.device, engine=options.engine, dtype=options.dtype)
            data = DataRoot(options.data_root) if options.data_root is not None else None
            train = Train(shelf, options.runs, data, allowed=allowed)
            page = build_page(shelf, train, data if allowed else None, seconds=PATIENCE if options.reachable else None)
        except OSError as error:  # of a file, and not of the port
            raise DataError(f"{error.filename or 'a file'}: {error.strerror or error}") from None
        page.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            auth=options.auth,
            mcp_server=options.mcp,
            **launch_options(reachable=options.reachable),
        )
    except VtvizError as error:
        complain(str(error))
        return 2
    except OSError:  # Gradio's own text names its own options
        complain(f"cannot listen on {options.host}:{options.port}; try another --port")
        return 2
    except ValueError as error:  # Gradio asks itself for the page first, and is told so in a text about its own options
        if "localhost" not in str(error):
            raise
        complain(
            f"the page does not answer on {options.host}:{options.port}; where a proxy is set, leave this machine out"
            " of it: NO_PROXY=localhost,127.0.0.1"
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
