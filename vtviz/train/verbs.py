"""The command line's training verbs. Only light imports here: ``vtviz --help`` must not load PyTorch."""

# ruff: noqa: ARG001, PLC0415 - a verb's options are read from its context; heavy imports stand where they are needed

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vtviz.console import named_path, output_folder
from vtviz.errors import ConfigError

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(32 * 2**30), "MALLOC_TOP_PAD_": str(256 * 2**20)}
"""Keeps glibc from giving large blocks back to the kernel after each step, which on a CPU can eat most of the time."""

Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        parser=named_path,
        help="Folder with train/CLASS/* and val/CLASS/*, or CLASS/* (split by the seed); for a segmentation model "
        "classes.txt, train/images, train/masks and the same of val, or COCO-Stuff or LIP as they are published.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="RUN",
        parser=output_folder,
        help="Run folder: weights, metrics, all that resuming needs.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Classes = Annotated[
    Path | None,
    typer.Option(metavar="FILE", parser=named_path, help="Text file of 'ID name' lines that names class folders."),
]
Groups = Annotated[str | None, typer.Option(metavar="NAME", help="Take classes of a segmentation set together: ccp14.")]
Epochs = Annotated[int | None, typer.Option(metavar="N", help="Passes over the images. [dim]\\[the recipe's][/dim]")]
BatchSize = Annotated[int | None, typer.Option(metavar="N", help="Images an optimiser step, over all devices.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate. [dim]\\[the recipe's][/dim]")]
Sizes = Annotated[str | None, typer.Option(metavar="S", help="Crop sides by progress, e.g. 64-96@0.6,128.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Of initialisation, order and augmentation.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other field of the recipe, e.g. mixup=0.2; repeatable."),
]
Teacher = Annotated[
    str | None,
    typer.Option(metavar="T", help="Distil from a vtviz model or run, torchvision:NAME, or a file of its weights."),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Use at most this many training images.")]
ValLimit = Annotated[int | None, typer.Option(metavar="N", help="Validate on at most this many images.")]
MicroBatch = Annotated[int | None, typer.Option(metavar="N", help="Images a forward pass; gradients accumulate.")]
Devices = Annotated[int, typer.Option(metavar="N", help="GPUs, or processes on a CPU.")]
Nodes = Annotated[int, typer.Option(metavar="N", help="Machines (torchrun or SLURM starts them).")]
Pixels = Annotated[str, typer.Option(help="host, or device: keep the images on the GPU and crop them there.")]
Workers = Annotated[int | None, typer.Option(min=0, max=128, metavar="N", help="Data-loading processes.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the model first: long runs repay it.")]
Terms = Annotated[str, typer.Option(help="Terms of the training data, for the model card.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out, as it was started but for what is given here.")
]

_RENAMED = {"classes": "classes_file", "device": "accelerator", "option": "model_options"}
"""Option -> field of the job that has another name."""
_IN_RECIPE = ("epochs", "batch_size", "lr", "sizes", "seed", "freeze", "layer_decay")


def train(
    context: typer.Context,
    out: Out,
    data: Data = None,
    model: Annotated[str, typer.Option(metavar="M", help="vt_resnet18, resnet18, ...: see `vtviz profile`.")] = (
        "vt_resnet18"
    ),
    preset: Annotated[str | None, typer.Option(help="Configuration of the model. [dim]\\[its first][/dim]")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A field of the model, num_tokens=8; repeatable.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="R",
            help="small, in109, finetune, imagenet_paper, imagenet_ablation; for segmentation segment_small, "
            "coco_stuff_paper, lip_paper. [dim]\\[small or segment_small][/dim]",
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    sizes: Sizes = None,
    seed: Seed = None,
    set_: Settings = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="M", help="Start from a checkpoint or run; see `vtviz finetune`.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="W", help="Pretrained backbone: torchvision's name (IMAGENET1K_V1) or a file.")
    ] = None,
    teacher: Teacher = None,
    classes: Classes = None,
    groups: Groups = None,
    limit: Limit = None,
    val_limit: ValLimit = None,
    micro_batch: MicroBatch = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
    device: Device = "auto",
    pixels: Pixels = "host",
    workers: Workers = None,
    compile_: Compile = False,
    terms: Terms = "",
    resume: Resume = False,
) -> None:
    """Train a classifier on folders of images, or a segmentation model on images with masks.

    RUN gets the best and the last weights with their cards, metrics.csv, the confusion matrix, and after each epoch the
    token maps of one image. It is a model like any other: [bold]vtviz extract PHOTO --model RUN[/bold].

    [bold]Examples[/bold]

    vtviz train --data flowers --out runs/flowers --epochs 20

    vtviz train --data flowers --out runs/small --option num_tokens=8 --set mixup=0.2

    vtviz train --resume --out runs/flowers

    vtviz train --data imagenet --out runs/paper --recipe imagenet_paper --devices 8

    vtviz train --model vt_fpn_resnet18 --from resnet18_in109 --data camvid --out runs/streets
    """
    _run(context)


def finetune(
    context: typer.Context,
    out: Out,
    start: Annotated[
        str,
        typer.Option(
            "--from", metavar="M", help="A checkpoint, a run, or torchvision:IMAGENET1K_V1 for the backbone of --model."
        ),
    ] = "vt_resnet18_in109",
    data: Data = None,
    model: Annotated[
        str, typer.Option(metavar="M", help="What to build on torchvision's backbone, or vt_fpn_… on a classifier's.")
    ] = ("vt_resnet18"),
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    freeze: Annotated[
        int | None,
        typer.Option(metavar="N", help="Stages that stay as they are; 4: the whole backbone. [dim]\\[2][/dim]"),
    ] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="Each stage learns at this share of the next one's rate. [dim]\\[0.7][/dim]")
    ] = None,
    sizes: Sizes = None,
    seed: Seed = None,
    set_: Settings = None,
    teacher: Teacher = None,
    classes: Classes = None,
    groups: Groups = None,
    limit: Limit = None,
    val_limit: ValLimit = None,
    micro_batch: MicroBatch = None,
    devices: Devices = 1,
    device: Device = "auto",
    workers: Workers = None,
    terms: Terms = "",
    resume: Resume = False,
) -> None:
    """Fit a trained model to images of your own.

    The last layer is new where the classes are others. Otherwise as [bold]vtviz train[/bold].

    [bold]Example[/bold]

    vtviz finetune --from vt_resnet18_in109 --data flowers --out runs/flowers
    """
    _run(context, recipe=None)


def _run(context: typer.Context, **fixed: Any) -> None:
    """Make a job of the options and do it. With --resume the run's own job holds, but for the options given."""
    options = {name.rstrip("_"): value for name, value in context.params.items()} | fixed
    resume = options.pop("resume")
    restart_for_malloc(str(options["device"]))
    if options["data"] is None and not resume:
        raise ConfigError("--data is missing: the folder of images to train on")
    from vtviz.train.job import read_job
    from vtviz.train.run import train

    given = {
        name.rstrip("_")
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
    if resume:
        job = make_job({k: v for k, v in options.items() if k in given}, read_job(options["out"]))
    else:
        if options["recipe"] is None:
            options["recipe"] = _usual_recipe(options, tune=context.info_name == "finetune")
        job = make_job(options)
    if "model" in given:
        _check_model(job.model, job.start)
    typer.echo(train(job, resume=resume))


def _check_model(model: str, start: str | None) -> None:
    """Raise ConfigError where --from is another model than --model, but for a segmenter on a classifier's backbone."""
    from vtviz import checkpoints
    from vtviz.train.setup import model_task

    if start is None:
        return
    card = checkpoints.read_card(checkpoints.find(start))
    built_on = card.task == "classification" and model_task(model) == "segmentation"
    if card.model != model and not built_on:
        raise ConfigError(f"--from {start} is a {card.model}, but --model asks for a {model}: leave --model out")


def _usual_recipe(options: Mapping[str, Any], *, tune: bool) -> str:
    """The recipe where none is named: by the task of the model, or of the checkpoint that training starts from."""
    from vtviz import checkpoints
    from vtviz.train.setup import model_task

    task, start = model_task(options["model"]), options["start"]
    if start is not None and not start.startswith("torchvision:") and task == "classification":
        task = checkpoints.read_card(checkpoints.find(start)).task
    return "segment_small" if task == "segmentation" else "finetune" if tune else "small"


def make_job(options: Mapping[str, Any], old: Any = None) -> Any:
    """The :class:`~vtviz.train.job.TrainingJob` that command-line options ask for.

    Args:
        options: by name; None is "not given".
        old: the job that they change; None for a new one, which needs ``data``, ``out`` and ``recipe``.

    Raises:
        ConfigError: for a field that is none, or a value that cannot work.
    """
    from dataclasses import fields, replace

    from vtviz.train.job import TrainingJob
    from vtviz.train.recipes import make_recipe

    values = {_RENAMED.get(k, k): v for k, v in options.items() if v is not None}
    recipe = make_recipe(values.pop("recipe") if "recipe" in values else old.recipe)
    words = {f.name for f in fields(recipe) if isinstance(f.default, str)}
    changed = {k: values.pop(k) for k in _IN_RECIPE if k in values}
    recipe = make_recipe(recipe, **changed | parse_fields(values.pop("set", []), "--set", words=words))
    if "model_options" in values:
        values["model_options"] = parse_fields(values["model_options"], "--option")
    if str(values.get("start", "")).startswith("torchvision:"):
        values["weights"] = values.pop("start").removeprefix("torchvision:")
    values |= {k: str(v) for k, v in values.items() if isinstance(v, Path)}
    return TrainingJob(recipe=recipe, **values) if old is None else replace(old, recipe=recipe, **values)


def parse_fields(pairs: Sequence[str], option: str = "--set", *, words: Collection[str] = ()) -> dict[str, Any]:
    """``["mixup=0.2", "augment=crop"]`` -> ``{"mixup": 0.2, "augment": "crop"}``.

    Args:
        pairs: as they were typed.
        option: that took them.
        words: fields that stay as they were typed where JSON would make a number of them: ``sizes=48``.

    Raises:
        ConfigError: for a pair without ``=``.
    """
    fields: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{option} takes NAME=VALUE, got {pair!r}")
        name = key.strip().replace("-", "_")
        try:
            read = json.loads(value)
        except json.JSONDecodeError:
            read = value
        fields[name] = value if name in words and not isinstance(read, str) else read
    return fields


def wants_malloc(device: str, program: str, environment: Mapping[str, str], *, platform: str, gpu: bool) -> bool:
    """Whether a long run should start again with :data:`MALLOC`, which glibc reads only when a process starts.

    Args:
        device: as asked for.
        program: ``sys.argv[0]``: only a process that is vtviz's own command line may be started again.
        environment: of the process; where it has one of the settings they were chosen already.
        platform: ``sys.platform``.
        gpu: whether the machine has an NVIDIA GPU.
    """
    path = Path(program)
    own = path.stem == "vtviz" or (path.name == "__main__.py" and path.parent.name == "vtviz")
    on_cpu = device == "cpu" or (device == "auto" and not gpu)
    return own and on_cpu and platform == "linux" and not set(MALLOC) & set(environment)


def restart_for_malloc(device: str) -> None:
    """Replace this process by the same command line with :data:`MALLOC`, where that helps; it keeps its process id."""
    gpu = Path("/dev/nvidiactl").exists()
    if wants_malloc(device, sys.argv[0], os.environ, platform=sys.platform, gpu=gpu):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **MALLOC})  # noqa: S606
