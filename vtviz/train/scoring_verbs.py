"""The command line's verbs that score models. Only light imports here: ``vtviz --help`` must not load PyTorch."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vtviz.console import folder_name, named_path, output_file, print_json, reporting
from vtviz.errors import ConfigError
from vtviz.train.verbs import Device, restart_for_malloc

AsJson = Annotated[bool, typer.Option("--json", help="Print the result on stdout as JSON.")]


def evaluate(
    model: Annotated[str, typer.Option("--model", "-m", metavar="M", help="Name, .safetensors file or run's folder.")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            parser=named_path,
            help="Folder with SPLIT/CLASS/*, or CLASS/*; or a set of images and masks.",
        ),
    ],
    split: Annotated[
        str, typer.Option(metavar="S", parser=folder_name, help="Folder below DIR that is scored.")
    ] = "val",
    size: Annotated[
        int | None, typer.Option(metavar="PX", help="The model sees about PX x PX pixels. [dim]\\[its own][/dim]")
    ] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="center", help="The paper's central square. [dim]\\[the whole image][/dim]")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Segmentation: look at each image mirrored too, and average.")
    ] = False,
    scales: Annotated[
        str, typer.Option(metavar="S,…", help="Segmentation: look at each image at these scales, and average.")
    ] = "1",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Score a random subset of this many images.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, max=4096, metavar="N", help="Images at once. [dim]\\[64, or 8 for segmentation][/dim]"),
    ] = None,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=0, max=128, metavar="N", help="Classifiers: data-loading processes.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score a model on images prepared as the page prepares them: top-1 and top-5, or the mean IoU, and each class.

    Classes are matched to the model's by id or name, so that any subset of them will do.

    [bold]Examples[/bold]

    vtviz evaluate --model vt_resnet18_in109 --data in109 --split val --json

    vtviz evaluate --model vt_fpn_resnet18_camvid --data camvid --split val --flip --scales 0.75,1,1.25
    """
    restart_for_malloc(device)
    from vtviz.predictor import load_model
    from vtviz.train.evaluation import Evaluation, evaluate_classifier, pick_device
    from vtviz.train.segmenter_evaluation import SegmentationEvaluation, evaluate_segmenter

    try:
        factors = [float(part) for part in scales.split(",")]
    except ValueError:
        raise ConfigError(f"--scales takes numbers, e.g. 0.75,1,1.25, got {scales!r}") from None
    predictor = load_model(model, pick_device(device))
    shared: dict[str, Any] = {"split": split, "size": size, "limit": limit}
    result: Evaluation | SegmentationEvaluation
    with reporting() as report:
        if predictor.palette is not None:
            if crop is not None:
                raise ConfigError("--crop is for classifiers: a mask is scored as a whole")
            if workers:
                raise ConfigError(f"--workers is for classifiers; {predictor.name} is a segmentation model")
            shared |= {"flip": flip, "scales": factors, "batch_size": batch_size or 8, "progress": report}
            result = evaluate_segmenter(predictor, data, **shared)
        else:
            if flip or factors != [1.0]:
                raise ConfigError(f"--flip and --scales are for segmentation; {predictor.name} is a classifier")
            shared |= {"crop": crop, "batch_size": batch_size or 64, "workers": workers, "progress": report}
            result = evaluate_classifier(predictor, data, **shared)
    if as_json:
        print_json(result.to_dict())
    else:
        typer.echo(result.table())


def publish(
    run: Annotated[Path, typer.Option(metavar="RUN", parser=named_path, help="Run folder or .safetensors file.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", parser=output_file, help="NAME.safetensors to write.")
    ],
    data: Annotated[Path, typer.Option(metavar="DIR", parser=named_path, help="Image folder to score on.")],
    split: Annotated[
        str, typer.Option(metavar="S", parser=folder_name, help="Folder below DIR that is scored.")
    ] = "val",
    sizes: Annotated[
        str | None,
        typer.Option(metavar="PX,…", help="Classifiers: further input sizes to score at. [dim]\\[96,128,160][/dim]"),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", parser=named_path, help="Classifiers: score on this one too; repeatable."),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=named_path,
            help="Classifiers: photos of people with masks; does one token cover them?",
        ),
    ] = None,
    licence: Annotated[str, typer.Option(metavar="TEXT", help="Of the weights.")] = "",
    terms: Annotated[str, typer.Option(metavar="TEXT", help="Of the training data.")] = "",
    notes: Annotated[str, typer.Option(metavar="TEXT", help="For the card.")] = "",
) -> None:
    """Write a run as a checkpoint for others: float16 weights, and a card whose figures were measured on them.

    [bold]Example[/bold]

    vtviz publish --run runs/flowers --out checkpoints/flowers.safetensors --data flowers --licence CC0-1.0
    """
    restart_for_malloc("cpu")
    from vtviz.checkpoints import find, read_card
    from vtviz.train.publish import publish_classifier, publish_segmenter

    try:
        pixels = [int(part) for part in ("96,128,160" if sizes is None else sizes).split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"--sizes takes numbers of pixels, e.g. 96,128, got {sizes!r}") from None
    said: dict[str, Any] = {"split": split, "licence": licence, "terms": terms, "notes": notes}
    said["say"] = lambda line: typer.echo(line, err=True)
    if read_card(find(run)).task == "segmentation":
        if sizes is not None or also or masks is not None:
            raise ConfigError(f"--sizes, --also and --masks are for classifiers; {run} is a segmentation model")
        card = publish_segmenter(run, out, data, **said)
    else:
        card = publish_classifier(run, out, data, sizes=pixels, also=also or (), masks=masks, **said)
    print_json({"accuracy": card.accuracy, "tokens": card.tokens})
