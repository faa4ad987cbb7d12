"""The command line: ``vtviz VERB ...``, or ``python -m vtviz VERB ...``.

A verb is one function here. Heavy imports stand inside the functions, so that help appears at once. What a user can
get wrong raises a VtvizError below; :func:`main` prints it as one line. Results go to stdout, all else to stderr.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vtviz
from vtviz.ablate_verb import ablate
from vtviz.attribute_verb import attribute
from vtviz.compare_verb import compare
from vtviz.console import (
    FAILED,
    Crop,
    Device,
    Dtype,
    Engine,
    Images,
    Json,
    Out,
    Size,
    complain,
    each_image,
    find_images,
    open_model,
    parse_scale,
    print_json,
)
from vtviz.dissect_verb import dissect
from vtviz.errors import CheckpointError, ConfigError, VtvizError
from vtviz.export_verb import export
from vtviz.faithfulness_verb import faithfulness
from vtviz.lineage_verb import lineage
from vtviz.query_verb import query
from vtviz.report_verb import report
from vtviz.segment_verb import segment
from vtviz.train import scoring_verbs, verbs
from vtviz.video_verb import video

if TYPE_CHECKING:
    from vtviz.card import Card
    from vtviz.models.complexity import ProfileRow
    from vtviz.predictor import Photo
    from vtviz.tokens import TokenMaps

app = typer.Typer(
    name="vtviz",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


UsageError: Any = typer.BadParameter.__mro__[1]
"""What cannot be parsed, as Click says it: typer has Click, or in newer releases a copy of it."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 if all went well, 2 with one line on stderr for bad input, 130 for Ctrl-C.

    Args:
        args: without the program's name; by default those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    try:
        sys.exit(app(args, prog_name="vtviz", standalone_mode=False) or 0)
    except UsageError as error:
        if said := error.format_message():  # nothing where it was the help
            complain(f"{said.rstrip('.')}; see {error.ctx.command_path if error.ctx else 'vtviz'} --help")
        sys.exit(FAILED)
    except VtvizError as error:
        complain(str(error))
        sys.exit(FAILED)
    except OSError as error:  # of stdout: what verbs write themselves raises a DataError
        complain(f"{error.filename or 'stdout'}: {error.strerror or error}")
        _drop_output()
        sys.exit(FAILED)
    except (KeyboardInterrupt, typer.Abort):  # outside of the verb; inside typer exits likewise
        sys.exit(130)


def _drop_output() -> None:
    """What stdout did not take goes nowhere: Python would try once more as it ends, complain and exit with 120."""
    own = sys.__stdout__
    if own is not None and sys.stdout is own:  # and not what a caller put in its place
        with suppress(OSError, ValueError):  # it may be closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), own.fileno())


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vtviz {vtviz.__version__}")
        raise typer.Exit


@app.callback()
def _vtviz(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """See what the visual tokens of a Visual Transformer look at (Wu et al. 2020).

    Start with [bold]vtviz extract PHOTO --out DIR[/bold]; each command explains itself with [bold]--help[/bold].
    """


@app.command()
def extract(
    images: Images,
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="M",
            help="A name that [bold]vtviz models[/bold] lists, a .safetensors file, a run's folder, or hf://owner/name."
            " [dim]\\[default: vt_resnet18_in109][/dim]",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="0,1", help="Layers to extract, from 0, negative from the end. [dim]\\[all][/dim]"),
    ] = None,
    size: Size = None,
    crop: Crop = None,
    align: Annotated[
        str,
        typer.Option(metavar="A", help="receptive_field: where the network looked. resize: as other tools draw it."),
    ] = "receptive_field",
    cmap: Annotated[
        str, typer.Option(metavar="NAME", help="jet, turbo, viridis, magma, inferno, plasma, cividis.")
    ] = "jet",
    scale: Annotated[
        str, typer.Option(metavar="S", help="Colours: one scale for all (shared), each map's own (map), or LOW,HIGH.")
    ] = "shared",
    pictures: Annotated[bool, typer.Option(help="Draw overlays and panel, or write the arrays only.")] = True,
    device: Device = None,
    engine: Engine = "torch",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Write what each visual token of a model looks at in images.

    Each image gets a folder DIR/NAME, named like its file (a second one of that name: NAME-2), with

    - [bold]maps.npz[/bold], the arrays, and [bold]manifest.json[/bold], which says what they are;
    - [bold]panel.png[/bold], every map of every layer with its colour bar;
    - [bold]overlays/block0_token03.png[/bold], one map over the image at the image's size.

    Values are in "x uniform": 1 is a token that looks everywhere alike. What an earlier call wrote there is replaced.
    A bad image gives a line on stderr and exit code 2 at the end; the others are done all the same.

    [bold]Examples[/bold]

    vtviz extract cat.jpg --out out

    vtviz extract photos/ 'more/**/*.png' --out out --size 320 --scale 0,8

    vtviz extract cat.jpg --out out --model runs/mine --layers -1 --json
    """
    from vtviz.export import name_results, write_extraction
    from vtviz.render import check_drawing

    limits, wanted = parse_scale(scale), _parse_layers(layers)
    check_drawing(align=align, cmap=cmap, scale=limits)
    found, failures = find_images(images)
    folders = dict(zip(found, map(out.joinpath, name_results(found)), strict=True))
    predictor = open_model(model, device, engine=engine, dtype=dtype)

    def run(photo: Photo) -> TokenMaps:
        return predictor.extract(photo, layers=wanted)

    def write(path: Path, maps: TokenMaps) -> dict[str, Any]:
        folder = folders[path]
        written = write_extraction(maps, folder, pictures=pictures, align=align, cmap=cmap, scale=limits)
        return _describe(maps, folder, written)

    photos = predictor.stream(found, size=size, crop=crop)
    each_image(found, failures, photos, run, write, doing="Extracting", sentence=_sentence, as_json=as_json)


def _parse_layers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--layers must be whole numbers such as 0,1 or -1, got {text!r}") from None


def _describe(maps: TokenMaps, folder: Path, written: dict[str, Path]) -> dict[str, Any]:
    layers = []
    for layer in maps.layers:
        statistics = layer.statistics()
        layers.append(
            {
                "name": layer.name,
                "heads": layer.num_heads,
                "tokens": layer.num_tokens,
                "cells": list(layer.coefficients.shape[2:]),
                "peak": statistics.peak,
                "correlation": statistics.correlation,
                "dead": statistics.dead,
                "error": layer.error,
            }
        )
    return {
        "image": maps.source,
        "model": maps.model,
        "folder": str(folder),
        "files": {name: str(path) for name, path in written.items()},
        "predictions": [asdict(p) for p in maps.topk()] if maps.logits.ndim == 1 else None,
        "input": list(maps.geometry.input),
        "layers": layers,
    }


def _sentence(result: dict[str, Any]) -> str:
    answer = ", ".join(f"{p['label']} {p['probability']:.1%}" for p in (result["predictions"] or [])[:3])
    return f"{result['image']} -> {result['folder']}" + (f": {answer}" if answer else "")


@app.command()
def models(as_json: Json = False) -> None:
    """List the checkpoints that --model finds by name.

    They are looked for in [bold]checkpoints/[/bold] beside the package and in the folders of $VTVIZ_CHECKPOINTS.
    """
    from vtviz import checkpoints

    cards, broken = [], False
    for name in checkpoints.available():
        try:
            path = checkpoints.find(name)
            cards.append((name, path, checkpoints.read_card(path)))
        except CheckpointError as error:
            broken = True
            complain(str(error))
    if as_json:
        print_json([_summary(*found) for found in cards])
    elif not cards:
        typer.echo("no checkpoints in checkpoints/ beside the package or in $VTVIZ_CHECKPOINTS", err=True)
    else:
        for name, _, card in cards:
            typer.echo(f"{name}  {card.model}, {len(card.classes)} classes, {_quality(card)}")
    if broken:
        raise typer.Exit(FAILED)


def _quality(card: Card) -> str:
    if not card.trained:
        return "untrained"
    for field, name in {"top1": "top-1", "miou": "mIoU"}.items():
        if isinstance(value := card.accuracy.get(field), int | float):
            return f"{name} {value:.1%}"
    return "trained"


def _summary(name: str, path: Path, card: Card) -> dict[str, Any]:
    return {
        "name": name,
        "model": card.model,
        "task": card.task,
        "trained": card.trained,
        "top1": card.accuracy.get("top1"),
        "miou": card.accuracy.get("miou"),
        "classes": len(card.classes),
        "data": card.data.get("name"),
        "licence": card.licence,
        "path": str(path),
    }


@app.command()
def profile(
    table: Annotated[int | None, typer.Option(help="Only this table of the paper: 1, 2, 3 or 4.")] = None,
    as_json: Json = False,
) -> None:
    """Compare parameters and MACs with the paper's tables, row by row.

    Every figure is counted now, on models without memory (torch's meta device); nothing is computed.
    """
    from vtviz.models.complexity import profile_rows

    rows = profile_rows(table)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        _print_profile(rows)


QUANTITIES = {"params": "params (M)", "macs": "MACs (G)", "neck_macs": "neck (G)", "ratio": "reduction (x)"}
"""Field of a profile's row that the paper and we have a figure for -> its heading."""


app.command()(segment)
app.command()(ablate)
app.command()(attribute)
app.command()(faithfulness)
app.command()(lineage)
app.command()(query)
app.command()(report)
app.command()(dissect)
app.command()(compare)
app.command()(video)
app.command()(export)
app.command()(verbs.train)
app.command()(verbs.finetune)
app.command()(scoring_verbs.evaluate)
app.command()(scoring_verbs.publish)


def _print_profile(rows: list[ProfileRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(100, Console().width))  # let a narrow terminal wrap the figures, not lose them
    for key in dict.fromkeys(row.table for row in rows):
        here = [row for row in rows if row.table == key]
        grid = Table(title=f"Table {key}" if isinstance(key, int) else key, title_justify="left", box=None)
        grid.add_column("row", no_wrap=True)
        columns: list[Sequence[str]] = [[row.row if row.input is None else f"{row.row}, {row.input}" for row in here]]
        for quantity, unit in QUANTITIES.items():
            figures = zip(*(_compare(getattr(r, f"{quantity}_paper"), getattr(r, quantity)) for r in here), strict=True)
            filled = [
                (name, cells) for name, cells in zip(("paper", "ours", "diff %"), figures, strict=True) if any(cells)
            ]
            for i, (name, cells) in enumerate(filled):
                grid.add_column(f"{'' if i else unit}\n{name}", justify="right", no_wrap=True)
                columns.append(cells)
        for line in zip(*columns, strict=True):
            grid.add_row(*line)
        console.print(grid)
        for row in here:
            if row.note:
                console.print(f"  {row.row}: {row.note}", style="dim", highlight=False, markup=False)
        console.print()


def _compare(paper: float | None, ours: float | None) -> tuple[str, str, str]:
    printed = "" if paper is None else f"{paper:g}"
    counted = "" if ours is None else f"{ours:#.5g}"
    return printed, counted, f"{100 * (ours / paper - 1):+z.2f}" if paper and ours else ""
