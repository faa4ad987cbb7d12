"""What the command line's verbs share: images named by patterns, progress, and errors of one line."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import iglob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtviz.errors import ConfigError, ImageError
from vtviz.suffixes import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from vtviz.predictor import Predictor

FAILED = 2
"""Exit code for anything that the user can put right."""

Image = Annotated[str, typer.Argument(metavar="IMAGE", help="An image file.")]
Images = Annotated[
    list[str], typer.Argument(metavar="IMAGE", help="Files, folders (the images right in them), or 'patterns*'.")
]
Model = Annotated[
    str | None, typer.Option("--model", "-m", metavar="M", help="As [bold]vtviz extract[/bold] takes it.")
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the results go.")]
Size = Annotated[
    int | None, typer.Option(metavar="PX", help="The model sees about PX x PX pixels. [dim]\\[the model's own][/dim]")
]
Crop = Annotated[
    str | None, typer.Option(metavar="center", help="The paper's central square. [dim]\\[the whole image][/dim]")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... [dim]\\[CUDA where there is one][/dim]")]
Json = Annotated[bool, typer.Option("--json", help="Print the result on stdout as JSON.")]


def parse_scale(text: str) -> str | tuple[float, float]:
    """--scale as :data:`vtviz.render.Scale`. Raises ConfigError for a pair that is not of two numbers."""
    if "," not in text:
        return text
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ConfigError(f"--scale must be shared, map, or two numbers such as 0,8, got {text!r}") from None
    return low, high


def open_model(model: str | None, device: str | None) -> Predictor:
    """The model that --model and --device name; without --model the default one.

    Raises:
        CheckpointError: where it is missing or damaged.
        ConfigError: for a device that is not to be had here.
    """
    from vtviz.predictor import DEFAULT_MODEL, check_device, load_model

    return load_model(model or DEFAULT_MODEL, None if device is None else check_device(device))


def find_class(text: str, classes: Sequence[str]) -> int:
    """A class by its name in any spelling, or by its index.

    Raises:
        ConfigError: for what is neither.
    """
    from vtviz.data.classes import plain_name
    from vtviz.errors import did_you_mean

    names = [plain_name(name) for name in classes]
    if plain_name(text) in names:
        return names.index(plain_name(text))
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    raise ConfigError(f"the model has no class {text!r}{did_you_mean(text, classes)}")


def complain(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)


def print_json(data: Any) -> None:
    """JSON on stdout."""
    typer.echo(json.dumps(data, indent=1, ensure_ascii=False))


def name_files(written: Mapping[str, Path]) -> dict[str, Any]:
    """What a result's JSON says of the files that were written; nothing where there are none."""
    return {"files": {name: str(path) for name, path in written.items()}} if written else {}


def find_images(sources: Iterable[str]) -> tuple[list[Path], list[dict[str, str]]]:
    """Files, folders and patterns as files: sorted within each source, each file once.

    Returns:
        The files; and of each source that gave none what :func:`failed` returns.
    """
    found: dict[Path, None] = {}
    failures = []
    for source in sources:
        path = Path(source).expanduser()
        try:
            if path.is_dir():
                files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
                reason = "no images in this folder"
            elif set(source) & set("*?[") and not path.exists():
                files = sorted(p for p in map(Path, iglob(str(path), recursive=True)) if p.is_file())  # noqa: PTH207 - pathlib refuses **.jpg
                reason = "no file matches this pattern"
            else:
                files, reason = [path], ""
        except OSError as error:
            files, reason = [], error.strerror or str(error)
        if not files:
            failures.append(failed(source, f"{source}: {reason}"))
        found |= dict.fromkeys(files)
    return list(found), failures


def failed(image: str, reason: str) -> dict[str, str]:
    """Say now what is wrong with an image, and return it for the JSON at the end."""
    complain(reason)
    return {"image": image, "error": reason}


def each_image(
    found: Iterable[Path],
    failures: Iterable[dict[str, str]],
    work: Callable[[Path], dict[str, Any]],
    *,
    doing: str,
    sentence: Callable[[dict[str, Any]], str],
    as_json: bool,
) -> None:
    """Do a verb's work on each image and print what came out; a bad image does not keep the others from theirs.

    Args:
        found: from :func:`find_images`.
        failures: likewise.
        work: path -> what to print as JSON.
        doing: what the progress bar says.
        sentence: the same on one line for people.
        as_json: print a list at the end, failures too, in the place of sentences.

    Raises:
        typer.Exit: at the end, where there are failures.
    """
    from rich.console import Console
    from rich.progress import Progress

    paths, failures, results = list(found), list(failures), []
    console = Console(stderr=True)
    with Progress(
        *Progress.get_default_columns(),
        console=console,
        transient=True,
        disable=len(paths) < 2 or not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # elsewhere it would send the results to stderr
    ) as progress:
        for path in progress.track(paths, description=doing):
            try:
                results.append(work(path))
            except ImageError as error:
                failures.append(failed(str(path), str(error)))
                continue
            if not as_json:
                typer.echo(sentence(results[-1]))
    if as_json:
        print_json(results + failures)
    if failures:
        raise typer.Exit(FAILED)


@contextmanager
def reporting() -> Iterator[Callable[[str, int, int | None], None]]:
    """Progress bars on stderr, where that is a terminal.

    Yields:
        What to call with (what is done, done, in all or None where nobody knows yet).
    """
    from rich.console import Console
    from rich.progress import Progress, TaskID

    console = Console(stderr=True)
    with Progress(
        *Progress.get_default_columns(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what.capitalize(), total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


@contextmanager
def counting(doing: str) -> Iterator[Callable[[int, int], None]]:
    """One progress bar, for what is called with (done, in all); ``doing`` is what it says."""
    with reporting() as report:
        report(doing, 0, None)
        yield lambda done, total: report(doing, done, total)
