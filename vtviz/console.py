"""What the command line's verbs share: images named by patterns, progress, and errors of one line."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from glob import iglob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vtviz.errors import ConfigError, ImageError
from vtviz.suffixes import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from vtviz.predictor import Photo, Predictor

Result = TypeVar("Result")
FAILED = 2
"""Exit code for anything that the user can put right."""
MOST_SEED = 2**63 - 1
"""The largest number that a random generator starts from."""
LONGEST = 600
"""Characters that an error line has at most; of a longer one the middle is left out."""


def named_path(text: str) -> Path:
    """A path as an option takes it. Refuses an empty one, which a shell variable that is not set would give."""
    if not text.strip():
        raise typer.BadParameter("it is empty: name a file or folder")
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.lstat()
    except (OSError, ValueError, RuntimeError) as error:  # a name that no disk takes; a ~user that there is not
        raise typer.BadParameter(f"{text}: {getattr(error, 'strerror', None) or error}") from None
    return path


def folder_name(text: str) -> str:
    """The name of a folder within another, as --split takes it: one word and no way out."""
    if not text.strip() or text in {".", ".."} or set(text) & {"/", os.sep, "\0"} or len(os.fsencode(text)) > 255:
        raise typer.BadParameter(f"{text!r} is not the name of a folder; try val or train")
    return text


def output_folder(text: str) -> Path:
    """A folder as --out takes it: one that files can be written to, which is tried, before any work is done."""
    path = named_path(text)
    try:
        nearest = next(p for p in (path, *path.parents) if os.path.lexists(p))
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=nearest):
            return path
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise typer.BadParameter(f"{path}: cannot write: {reason or error}") from None


def output_file(text: str) -> Path:
    """A file as --out takes it, likewise."""
    path = named_path(text)
    output_folder(str(path.parent))
    if path.exists() and not path.is_file():
        raise typer.BadParameter(f"{path} is no regular file: choose another name")
    return path


Image = Annotated[str, typer.Argument(metavar="IMAGE", help="An image file.")]
Images = Annotated[
    list[str], typer.Argument(metavar="IMAGE", help="Files, folders (the images right in them), or 'patterns*'.")
]
Model = Annotated[
    str | None, typer.Option("--model", "-m", metavar="M", help="As [bold]vtviz extract[/bold] takes it.")
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", parser=output_folder, help="Where the results go.")]
Size = Annotated[
    int | None, typer.Option(metavar="PX", help="The model sees about PX x PX pixels. [dim]\\[the model's own][/dim]")
]
Crop = Annotated[
    str | None, typer.Option(metavar="center", help="The paper's central square. [dim]\\[the whole image][/dim]")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... [dim]\\[CUDA where there is one][/dim]")]
Engine = Annotated[
    str, typer.Option(metavar="E", help="What runs the model: torch; or onnxruntime or openvino, on the CPU.")
]
Dtype = Annotated[
    str, typer.Option(metavar="T", help="float32; or bf16, faster and less exact, of the engines torch and openvino.")
]
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


def open_model(model: str | None, device: str | None, *, engine: str = "torch", dtype: str = "float32") -> Predictor:
    """The model that --model, --device, --engine and --dtype name; without --model the default one.

    Raises:
        CheckpointError: where it is missing or damaged.
        ConfigError: for a device or an engine that is not to be had here.
    """
    from vtviz.engines import check_device
    from vtviz.predictor import DEFAULT_MODEL, load_model

    where = None if device is None else check_device(device)
    return load_model(DEFAULT_MODEL if model is None else model, where, engine=engine, dtype=dtype)


def complain(message: str) -> None:
    """One line on stderr."""
    line = " ".join(message.split())
    if len(line) > LONGEST:  # somebody else's text, which is shown in part
        line = f"{line[: LONGEST - 100]} … {line[-90:]}"
    typer.echo(f"error: {line}", err=True)


def print_json(data: Any) -> None:
    """JSON on stdout: in ASCII, which any encoding holds, with null for what is no finite number, as JSON has none."""
    plain = json.loads(json.dumps(data), parse_constant=lambda _: None)
    typer.echo(json.dumps(plain, indent=1, allow_nan=False))


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
        try:
            path = Path(source).expanduser()
            if not source.strip():
                files, reason = list[Path](), "'' is not a path: name images, a folder or a pattern"
            elif "://" in source:
                files, reason = [], "is a URL; only local files are read: download it and pass its path"
            elif path.is_dir():
                files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
                reason = "no images in this folder"
            elif set(source) & set("*?[") and not path.exists():
                files = sorted(p for p in map(Path, iglob(str(path), recursive=True)) if p.is_file())  # noqa: PTH207 - pathlib refuses **.jpg
                reason = "no file matches this pattern"
            else:
                files, reason = [path], ""
        except (OSError, RuntimeError) as error:  # a name that no disk takes; a ~user that there is not
            files, reason = [], getattr(error, "strerror", None) or str(error)
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
    photos: Iterable[Photo | ImageError],
    run: Callable[[Photo], Result],
    write: Callable[[Path, Result], dict[str, Any]],
    *,
    doing: str,
    sentence: Callable[[dict[str, Any]], str],
    as_json: bool,
) -> None:
    """Do a verb's work on each image and print what came out; a bad image does not keep the others from theirs.

    The model runs in this thread, while threads read the next photos and write the last results.

    Args:
        found: from :func:`find_images`.
        failures: likewise.
        photos: of the same files, from :meth:`vtviz.predictor.Predictor.stream`.
        run: the model: photo -> result.
        write: (path, result) -> what to print as JSON; called in other threads, several at a time.
        doing: what the progress bar says.
        sentence: the same on one line for people.
        as_json: print a list at the end, failures too, in the place of sentences.

    Raises:
        typer.Exit: at the end, where there are failures.
    """
    from rich.console import Console
    from rich.progress import Progress

    from vtviz.pipeline import ahead

    paths, failures, results = list(found), list(failures), []

    def ran() -> Iterator[tuple[Path, Result | ImageError]]:
        for path, photo in zip(paths, photos, strict=True):
            yield path, photo if isinstance(photo, ImageError) else run(photo)

    def written(done: tuple[Path, Result | ImageError]) -> dict[str, Any] | ImageError:
        path, result = done
        return result if isinstance(result, ImageError) else write(path, result)

    console = Console(stderr=True)
    with (
        Progress(
            *Progress.get_default_columns(),
            console=console,
            transient=True,
            disable=len(paths) < 2 or not console.is_terminal,
            redirect_stdout=sys.stdout.isatty(),  # elsewhere it would send the results to stderr
        ) as progress,
        closing(ahead(written, ran())) as finished,  # an error or Ctrl-C ends the threads, each with its result whole
    ):
        for path, future in zip(progress.track(paths, description=doing), finished, strict=True):
            result = future.result()
            if isinstance(result, ImageError):
                failures.append(failed(str(path), str(result)))
            elif as_json:
                results.append(result)
            else:
                typer.echo(sentence(result))
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
