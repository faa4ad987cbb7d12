"""The command line's training verbs. Only light imports here: ``vtviz --help`` must not load PyTorch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vtviz.errors import ConfigError

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(32 * 2**30), "MALLOC_TOP_PAD_": str(256 * 2**20)}
"""Settings that keep glibc from giving every large block back to the kernel, which on a CPU can eat most of the time."""

Model = Annotated[str, typer.Option(help="Model to train, e.g. vt_resnet18 or resnet18.")]
Data = Annotated[Path, typer.Option(help="Folder with train/CLASS/* and val/CLASS/*, or CLASS/* (split by the seed).")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Classes = Annotated[Path | None, typer.Option(help="Text file of 'ID name' lines that names class folders.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder: weights, metrics, everything needed to resume.")],
    model: Model = "vt_resnet18",
    preset: Annotated[str | None, typer.Option(help="Configuration of the model; see `vtviz profile`.")] = None,
    recipe: Annotated[str, typer.Option(help="small, in109 or finetune.")] = "small",
    epochs: Annotated[int | None, typer.Option(help="Overrides the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images an optimiser step, over all devices.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Crop sides by progress, e.g. 64-96@0.6,128.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation, order and augmentation.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any other field of the recipe; repeatable.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Start from a vtviz checkpoint or run; a new head for other classes.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Pretrained backbone: torchvision's name (IMAGENET1K_V1) or a file.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Distil from a vtviz model or run, torchvision:NAME, or a file of its weights.")
    ] = None,
    classes: Classes = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many training images.")] = None,
    val_limit: Annotated[int | None, typer.Option(help="Validate on at most this many images.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Images a forward pass; gradients accumulate.")] = None,
    devices: Annotated[int, typer.Option(help="GPUs, or processes on a CPU.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    device: Device = "auto",
    pixels: Annotated[str, typer.Option(help="host, or device: keep the images on the GPU and crop them there.")] = "host",
    workers: Annotated[int | None, typer.Option(help="Data-loading processes.")] = None,
    terms: Annotated[str, typer.Option(help="Terms of the training data, for the model card.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Train a classifier on folders of images.

    Example: vtviz train --data flowers --out runs/flowers --recipe small --epochs 20
    """
    _with_malloc(device)
    from vtviz.train.recipes import make_recipe  # noqa: PLC0415
    from vtviz.train.run import TrainingJob, train_classifier  # noqa: PLC0415

    named = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "sizes": sizes, "seed": seed}
    overrides = {k: v for k, v in named.items() if v is not None} | parse_fields(set_ or [])
    job = TrainingJob(
        data=str(data),
        out=str(out),
        recipe=make_recipe(recipe, **overrides),
        model=model,
        preset=preset,
        start=start,
        weights=weights,
        teacher=teacher,
        classes_file=str(classes) if classes else None,
        limit=limit,
        val_limit=val_limit,
        micro_batch=micro_batch,
        devices=devices,
        nodes=nodes,
        accelerator=device,
        pixels=pixels,
        workers=workers,
        terms=terms,
    )
    typer.echo(train_classifier(job, resume=resume))


def evaluate(
    model: Annotated[str, typer.Option(help="Model name, checkpoint file or run folder.")],
    data: Data,
    split: Annotated[str, typer.Option(help="Folder below --data that is scored.")] = "val",
    size: Annotated[int | None, typer.Option(help="Input size; by default the model's own.")] = None,
    crop: Annotated[str | None, typer.Option(help="'center' for the paper's resize and centre crop.")] = None,
    limit: Annotated[int | None, typer.Option(help="Score a random subset of this many images.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 64,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="Data-loading processes.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score a classifier: top-1, top-5 and each class, on images prepared as the page prepares them."""
    from vtviz.train.evaluation import evaluate_classifier  # noqa: PLC0415

    result = evaluate_classifier(
        model, data, split=split, size=size, crop=crop, limit=limit, batch_size=batch_size, device=device, workers=workers
    )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        typer.echo(result.table())


def parse_fields(pairs: list[str]) -> dict[str, Any]:
    """``["mixup=0.2", "augment=crop"]`` -> ``{"mixup": 0.2, "augment": "crop"}``.

    Raises:
        ConfigError: for a pair without ``=``.
    """
    fields: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes FIELD=VALUE, got {pair!r}")
        try:
            fields[key.strip().replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            fields[key.strip().replace("-", "_")] = value
    return fields


def _with_malloc(device: str) -> None:
    """Start again with :data:`MALLOC` where training runs on a Linux CPU: glibc reads it only when it starts."""
    if sys.platform != "linux" or device not in {"auto", "cpu"} or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    if "pytest" in sys.modules or Path("/dev/nvidiactl").exists():
        return
    os.execve(sys.executable, [sys.executable, "-m", "vtviz", *sys.argv[1:]], {**os.environ, **MALLOC})  # noqa: S606
