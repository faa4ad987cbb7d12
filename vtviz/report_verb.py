"""The command line's ``report``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vtviz.console import Crop, Device, Image, Json, Model, Out, Size, named_path, open_model, print_json
from vtviz.errors import DataError

SILENT = "This file does not say of which photo and model it is."


def report(
    image: Image,
    out: Out,
    model: Model = None,
    add: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="JSON",
            parser=named_path,
            help="A finished analysis such as ablation.json, and the .png of its name; repeatable.",
        ),
    ] = None,
    pack: Annotated[bool, typer.Option("--zip", help="Also write report.zip, which holds all of it.")] = False,
    size: Size = None,
    crop: Crop = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write one page about an image that needs no network: maps to look through, answer, lineage, the model's card.

    DIR gets

    - [bold]report.html[/bold], a single file that any browser opens from disk;
    - [bold]maps.npz[/bold], the arrays, and [bold]manifest.json[/bold], which says what they are.

    What an earlier call wrote there is replaced.

    [bold]Examples[/bold]

    vtviz report cat.jpg --out out/cat

    vtviz report street.png --model vt_fpn_resnet18_camvid --out out/street --zip

    vtviz ablate cat.jpg --out out && vtviz report cat.jpg --out out --add out/ablation.json
    """
    from vtviz.explain.origin import check_origin
    from vtviz.html_report import Section
    from vtviz.html_report import report as write
    from vtviz.images import load

    sections = []
    for path in add or ():
        data = _read(path)  # first: a folder such as "." has no name to take a suffix
        picture = path.with_suffix(".png")
        pictures = [load(picture)] if picture.is_file() else []
        note = "" if {"model", "sides"} & data.keys() else SILENT
        sections.append(Section(path.stem.replace("_", " ").capitalize(), data, note, pictures))
    predictor = open_model(model, device)
    photo = predictor.open(image, size=size, crop=crop)
    weights = predictor.card.sha256 if predictor.card else ""
    for path, section in zip(add or (), sections, strict=True):  # before the model runs, and by the files' names
        check_origin(
            str(path),
            section.data,
            source=photo.source,
            model=predictor.name,
            weights=weights,
            geometry=photo.geometry,
        )
    maps = predictor.extract(photo)
    written = write(maps, out, card=predictor.card, sections=sections, pack=pack)
    if as_json:
        files = {name: str(path) for name, path in written.items()}
        print_json({"image": maps.source, "model": maps.model, "folder": str(out), "files": files})
    else:
        typer.echo(f"{image} -> {written['report.html']}")


def _read(path: Path) -> dict[str, Any]:
    """A finished analysis, as its verb wrote it. Raises DataError in one line for anything else."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):  # no JSON; lists within lists without end
        data = None
    if not isinstance(data, dict):
        raise DataError(f"{path}: not a JSON object such as --out of vtviz ablate writes")
    return data
