"""``python -m benchmarks [NAME ...] [--json] [--out FILE]``: measure, and print or write the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))
from vtviz.train.verbs import MALLOC  # noqa: E402 - brings no torch, which would read the environment

for _name, _value in {
    "OMP_WAIT_POLICY": "PASSIVE",  # as the page sets it
    "OMP_NUM_THREADS": "2",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    **MALLOC,
}.items():
    os.environ.setdefault(_name, _value)
from benchmarks.measure import Row  # noqa: E402 - after the environment
from docs import enclosed  # noqa: E402
from vtviz.files import write  # noqa: E402

Suite = Callable[[], Iterator[Row]]


def suites() -> dict[str, Suite]:
    """Name -> what measures its rows."""
    from benchmarks import networks, pictures, start  # noqa: PLC0415 - they bring torch, which reads the environment

    return {
        "extraction": pictures.extraction,
        "rendering": pictures.rendering,
        "click": pictures.click,
        "folders": pictures.folders,
        "forward": networks.forward,
        "training": networks.training,
        "necks": networks.necks,
        "engines": networks.engines,
        "start": start.start,
        "canvas": start.canvas,
        "gpu": networks.gpu,
    }


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    import torch  # noqa: PLC0415

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy", "opencv-python-headless", "gradio")},
    }


def table(rows: list[Row]) -> str:
    """Markdown."""
    head = ["row", "what", "ratio", "95 %", "control", "its spread", "goal", "met", "ms", "note"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        both = [f"{t:.3g}" for t in (row.first, row.second) if t is not None]
        lines.append(
            [
                row.name,
                row.what,
                _figure(row.ratio),
                _pair(row.interval),
                _figure(row.control),
                _pair(row.spread),
                (row.goal or "").replace("<=", "≤").replace(">=", "≥"),
                _met(row),
                " / ".join(both),
                "; ".join(filter(None, (row.note, UNSTEADY if row.steady is False else ""))),
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _met(row: Row) -> str:
    return {True: "yes", False: "**no**", None: ""}[row.met] + (", not certain" if row.certain is False else "")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _pair(values: tuple[float, float] | None) -> str:
    return "" if values is None else "–".join(map(_figure, values))


UNSTEADY = "the control was not 1: measure again"
MARKS = "<!-- benchmarks: written by python -m benchmarks -->\n", "<!-- end of benchmarks -->\n"


def main(arguments: list[str] | None = None) -> int:
    """Run suites; 2 and one line for a wrong name or page, before anything is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="suites to run; all by default")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="put the table into a Markdown file")
    parser.add_argument("--list", action="store_true", help="name the suites")
    options = parser.parse_args(arguments)
    known = suites()
    if options.list:
        print("\n".join(known))
        return 0
    if wrong := [name for name in options.names if name not in known]:
        parser.error(f"no suite {wrong[0]!r}: there are {', '.join(known)}")
    if options.out is not None:
        if options.names:
            parser.error("--out writes the whole table: name no suites with it")
        try:
            _page(options.out, "")  # now: measuring takes minutes
        except (OSError, ValueError) as error:
            parser.error(f"{options.out}: {getattr(error, 'strerror', None) or error}")
    rows, began = [], time.perf_counter()
    for name in options.names or known:
        for row in known[name]():
            rows.append(row)
            if not options.json:
                print(table([row]).splitlines()[-1], flush=True)
    where = machine() | {"seconds": round(time.perf_counter() - began)}
    if options.json:
        print(json.dumps({"machine": where, "rows": [row.to_dict() for row in rows]}, indent=1, ensure_ascii=False))
    else:
        print(", ".join(f"{key} {value}" for key, value in where.items()))
    if options.out is not None:
        line = ", ".join(f"{key} {value}" for key, value in where.items() if value is not None)
        write(options.out, _page(options.out, f"{table(rows)}\n{line}.\n"))
    return 0


def _page(path: Path, text: str) -> str:
    """The page with this text between its marks. Raises OSError or ValueError where there is no such page."""
    return enclosed.renewed(path.read_text("utf-8"), MARKS, lambda: text, "it")


if __name__ == "__main__":
    sys.exit(main())
