"""The command line's ``segment``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtviz.console import Crop, Device, Dtype, Engine, Images, Json, Out, Size, each_image, find_images, open_model

if TYPE_CHECKING:
    from vtviz.segmentation import Segmentation


def segment(
    images: Images,
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="M",
            help="A segmentation model, as [bold]vtviz extract[/bold] takes it."
            " [dim]\\[default: vt_fpn_resnet18_ccp14][/dim]",
        ),
    ] = None,
    size: Size = None,
    crop: Crop = None,
    opacity: Annotated[float, typer.Option(metavar="0-1", help="Of the colours over the photo.")] = 0.6,
    device: Device = None,
    engine: Engine = "torch",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Write which class each pixel of images belongs to.

    Each image gets three files in DIR, named like its file (of a second one of that name: NAME-2), with

    - [bold]NAME.png[/bold], the labels: pixel values are class indices, colours the model's;
    - [bold]NAME_overlay.png[/bold], the colours over the photo;
    - [bold]NAME.json[/bold], every class with its colour, its pixels and its share of the area.

    What an earlier call wrote there is replaced. A bad image gives a line on stderr and exit code 2 at the end; the
    others are done all the same. The token maps of the same model: [bold]vtviz extract[/bold].

    [bold]Examples[/bold]

    vtviz segment people.jpg --out out

    vtviz segment photos/ 'more/**/*.png' --out out --size 448 --json
    """
    from vtviz.export import name_results, segmentation_files, write_segmentation
    from vtviz.files import spare
    from vtviz.predictor import DEFAULT_SEGMENTER
    from vtviz.render_labels import check_opacity

    check_opacity(opacity)
    found, failures = find_images(images)
    names = dict(zip(found, name_results(found, "_overlay"), strict=True))
    spare(found, (out / file for name in names.values() for file in segmentation_files(name)))
    predictor = open_model(DEFAULT_SEGMENTER if model is None else model, device, engine=engine, dtype=dtype)

    def write(path: Path, segmentation: Segmentation) -> dict[str, Any]:
        written = write_segmentation(segmentation, out, names[path], opacity=opacity)
        return segmentation.to_dict() | {"files": {name: str(file) for name, file in written.items()}}

    photos = predictor.stream(found, size=size, crop=crop)
    each_image(
        found, failures, photos, predictor.segment, write, doing="Segmenting", sentence=_sentence, as_json=as_json
    )


def _sentence(result: dict[str, Any]) -> str:
    """The largest classes, on one line."""
    largest = sorted((c for c in result["classes"] if c["pixels"]), key=lambda c: -c["pixels"])[:4]
    answer = ", ".join(f"{c['name']} {c['area']:.1%}" for c in largest)
    return f"{result['image']} -> {next(iter(result['files'].values()))}: {answer}"
