"""One training run: data, model, engine and the run folder that holds everything about it."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torchvision
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

import vtviz
from vtviz import checkpoints
from vtviz.card import Card, Preprocessing
from vtviz.data.device import DeviceLoader
from vtviz.data.folder import ClassList, ImageList, open_folder, read_class_names
from vtviz.data.loading import (
    BatchPlan,
    EvaluationSet,
    TrainingSet,
    evaluation_loader,
    parse_sizes,
    training_loader,
)
from vtviz.data.store import PixelStore
from vtviz.errors import ConfigError, DataError, TrainingError, VtvizError, did_you_mean
from vtviz.models.registry import config_to_dict, model_from_config
from vtviz.models.resnet import Classifier
from vtviz.models.vt_resnet import VTResNet
from vtviz.predictor import Predictor
from vtviz.train.callbacks import AtomicCheckpoints, Averaging, Progress, RunFolder
from vtviz.train.classifier import ClassifierTraining
from vtviz.train.evaluation import pick_device
from vtviz.train.recipes import Recipe, recipe_from_dict
from vtviz.train.teachers import Teacher, load_teacher

STATE = "state.ckpt"
"""Everything that resuming needs, written after each epoch."""
JOB = "run.json"
"""The job and the machine that it runs on."""
SHORT_SIDE = 256
"""Decoded images are kept at no more than this: training crops have at most 224 pixels."""
MEMORY = 12 * 2**30
"""Bytes of decoded images that a machine keeps, shared among its processes."""


@dataclass(frozen=True)
class TrainingJob:
    """What to train on what, and where to write it; saved as :data:`JOB` in the run folder.

    Attributes:
        data: image folder, with "train" and "val" or to be split by the recipe's seed.
        out: the run folder.
        recipe: how to train.
        model: registry name.
        preset: of the model's configuration; the model's first by default.
        model_options: fields of the model's configuration, e.g. ``{"num_tokens": 8}``.
        start: a vtviz checkpoint or run whose weights training starts from; its model and configuration replace
            ``model``, ``preset`` and ``model_options``. Where its classes are others, it gets a fresh last layer.
        weights: torchvision weights for the backbone, by name or file; None starts from random weights.
        teacher: see :func:`vtviz.train.teachers.load_teacher`.
        classes_file: "ID name" lines that give class folders their display names.
        limit: at most this many training images (and a quarter of it for validation).
        val_limit: at most this many validation images after each epoch; the run's card says how many.
        micro_batch: images a forward pass; smaller than the recipe's batch size, gradients are accumulated.
        devices: GPUs, or processes on a CPU.
        nodes: machines.
        accelerator: "auto", "cpu", "cuda" or "mps".
        pixels: "host", or "device" to keep all images and crop them there (with the augmentations that it has).
        workers: data-loading processes; by default as many as the machine bears.
        compile: compile the model first, which long runs repay.
        terms: the training data's terms, for the card.
    """

    data: str
    out: str
    recipe: Recipe
    model: str = "vt_resnet18"
    preset: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    weights: str | None = None
    teacher: str | None = None
    classes_file: str | None = None
    limit: int | None = None
    val_limit: int | None = None
    micro_batch: int | None = None
    devices: int = 1
    nodes: int = 1
    accelerator: str = "auto"
    pixels: str = "host"
    workers: int | None = None
    compile: bool = False
    terms: str = ""

    def __post_init__(self) -> None:
        if self.pixels not in {"host", "device"}:
            raise ConfigError(f"pixels must be host or device, got {self.pixels!r}")
        for name in ("limit", "val_limit", "micro_batch", "devices", "nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingJob:
        """A job from :func:`dataclasses.asdict`'s data.

        Raises:
            ConfigError: for an unknown field, or a value that cannot work.
        """
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                raise ConfigError(f"a job has no field {key!r}{did_you_mean(key, known)}")
        return cls(**{**data, "recipe": recipe_from_dict(data["recipe"])})

    def micro_batches(self) -> tuple[int, int]:
        """Images of one forward pass on one device, and how many of them make an optimiser step.

        Raises:
            ConfigError: where the recipe's batch cannot be made of whole ones.
        """
        world, total = self.devices * self.nodes, self.recipe.batch_size
        micro = self.micro_batch or max(1, total // world)
        if total % (micro * world):
            raise ConfigError(f"batch_size {total} is no multiple of {world} device(s) x {micro} images a forward pass")
        return micro, total // (micro * world)


def read_job(folder: str | Path) -> TrainingJob:
    """The job of a run folder.

    Raises:
        TrainingError: where there is none, or it cannot be read.
    """
    file = Path(folder) / JOB
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        data.pop("environment", None)
        return TrainingJob.from_dict(data)
    except FileNotFoundError:
        raise TrainingError(f"nothing to resume: {file} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{file} is no training job: {error}") from None


def train_classifier(job: TrainingJob, *, resume: bool = False) -> Path:
    """Train, writing after each epoch, and return the run folder, which loads like any checkpoint.

    A run that was killed is resumed at the start of the epoch that it was in, and ends with the weights that it would
    have had.

    Raises:
        DataError, ConfigError, CheckpointError, TrainingError: before anything is written, where it can be told then.
    """
    out, recipe = Path(job.out), job.recipe
    state = out / STATE
    if not resume and state.is_file():
        raise TrainingError(f"{out} holds a run already; add --resume to go on with it, or choose another folder")
    if resume and not (out / JOB).is_file():
        raise TrainingError(f"nothing to resume: {out / JOB} does not exist")
    accelerator = _accelerator(job)
    micro, accumulate = job.micro_batches()
    _quieten()
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")

    names = read_class_names(job.classes_file) if job.classes_file else None
    train = open_folder(job.data, "train", names=names, seed=recipe.seed).limit(job.limit, recipe.seed)
    val = open_folder(job.data, "val", classes=train.classes, seed=recipe.seed)
    val = val.limit(job.val_limit or (job.limit and max(1, job.limit // 4)), recipe.seed)
    if state.is_file():
        _check_resumable(out, job, train.classes)
    name, model = _model(job, train.classes)
    teacher = load_teacher(job.teacher, train.classes) if job.teacher else None
    preprocessing = Preprocessing(size=recipe.eval_size)
    module = ClassifierTraining(model, recipe, preprocessing, teacher=teacher)
    module.to(memory_format=torch.channels_last)
    memory = MEMORY / job.devices
    train_store, val_store = _decode(train, "train", memory), _decode(val, "val", memory, check=True)
    card = _card(job, name, model, train.classes, len(train_store), len(val_store), teacher)
    progress = Progress(micro * job.devices * job.nodes)
    folder = RunFolder(out, card, progress, val_store[0].permute(1, 2, 0).contiguous().numpy())
    trainer = _trainer(job, accelerator, accumulate, folder, progress)
    ranks = {"rank": trainer.global_rank, "world": trainer.world_size}
    plan = BatchPlan(
        len(train_store), micro, parse_sizes(recipe.sizes), epochs=recipe.epochs, seed=recipe.seed, **ranks
    )
    workers = job.workers if job.workers is not None else _default_workers(accelerator)
    predictor = Predictor(model, classes=train.classes.names, preprocessing=preprocessing)
    loaders = (
        _batches(job, train_store, train, plan, accelerator, workers),
        evaluation_loader(EvaluationSet(val_store, val.targets, predictor.fit), micro, workers=workers, **ranks),
    )
    if job.compile:
        model.backbone.compile()
        if isinstance(model, VTResNet):
            model.stage.compile()
    path = str(state) if resume and state.is_file() else None
    with _one_line(out), redirect_stdout(sys.stderr):  # the bar
        if trainer.is_global_zero:
            _write_job(out, job, [*train_store.skipped, *val_store.skipped])
        # weights_only=False: this run's own state, optimiser and loops and not only tensors
        trainer.fit(module, *loaders, ckpt_path=path, weights_only=False if path else None)
    return out


@contextmanager
def _one_line(out: Path) -> Iterator[None]:
    """What a disk or a data-loading process has to say, in one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise TrainingError(f"{out}: {reason}; the last whole epoch is kept: --resume goes on from there") from None
    except VtvizError as error:
        if "Original Traceback" not in str(error):
            raise
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from None


def _trainer(job: TrainingJob, accelerator: str, accumulate: int, folder: RunFolder, progress: Progress) -> L.Trainer:
    recipe, out = job.recipe, Path(job.out)
    callbacks: list[Callback] = [folder]
    if recipe.ema > 0:
        callbacks.append(Averaging(recipe.ema))
    callbacks += [
        ModelCheckpoint(out, filename=Path(STATE).stem, enable_version_counter=False, save_on_train_epoch_end=True),
        progress,
    ]
    return L.Trainer(
        default_root_dir=out,
        accelerator=accelerator,
        devices=job.devices,
        num_nodes=job.nodes,
        max_epochs=recipe.epochs,
        precision=recipe.precision,  # type: ignore[arg-type]
        gradient_clip_val=recipe.clip or None,
        accumulate_grad_batches=accumulate,
        sync_batchnorm=accelerator == "cuda" and job.devices * job.nodes > 1,  # there is none on the CPU
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        benchmark=accelerator == "cuda",
        logger=TensorBoardLogger(out, name=None, version="tensorboard"),
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        log_every_n_steps=10,
    )


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    return {
        "vtviz": vtviz.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": L.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
    }


def _model(job: TrainingJob, classes: ClassList) -> tuple[str, Classifier]:
    """The network to train and its registry name, from its start or from scratch."""
    options = {"num_classes": len(classes), "dropout": job.recipe.dropout, "drop_path": job.recipe.drop_path}
    model: Any
    if job.start is None:
        name = job.model
        model = checkpoints.create_model(name, job.preset, weights=job.weights, **{**job.model_options, **options})
        if not isinstance(model, Classifier):
            raise TrainingError(f"{name} is not a classifier")
        return name, model
    if job.model_options or job.preset or job.weights:
        raise ConfigError("a run that starts from a checkpoint takes its model: no --preset, --option or --weights")
    old, card = checkpoints.load(job.start)
    model = model_from_config(card.model, {**card.config, **options} if card.task == "classification" else card.config)
    if not isinstance(model, Classifier):
        raise TrainingError(f"{card.name} is not a classifier")
    kept = {k: v for k, v in old.state_dict().items() if card.class_ids == classes.ids or not k.startswith("fc.")}
    model.load_state_dict({**model.state_dict(), **kept})
    return card.model, model


def _card(
    job: TrainingJob,
    name: str,
    model: Classifier,
    classes: ClassList,
    n_train: int,
    n_val: int,
    teacher: Teacher | None,
) -> Card:
    recipe = job.recipe
    return Card(
        name=Path(job.out).resolve().name,
        model=name,
        config=config_to_dict(model.config),
        classes=classes.names,
        class_ids=classes.ids,
        preprocessing=Preprocessing(size=recipe.eval_size),
        data={"name": Path(job.data).resolve().name, "n_train": n_train, "n_val": n_val, "terms": job.terms},
        recipe={**asdict(recipe), **started_from(job.start)},
        teacher=teacher.name if teacher else None,
        seed=recipe.seed,
    )


def started_from(start: str | None) -> dict[str, Any]:
    """What a card's recipe says of the run that this one went on from; nothing for a run from scratch."""
    if start is None:
        return {}
    before = checkpoints.read_card(checkpoints.find(start))
    said = {"name": before.name, "data": before.data, "recipe": before.recipe, "teacher": before.teacher}
    return {"started_from": {**said, "epochs": before.epochs}}


def _check_resumable(out: Path, job: TrainingJob, classes: ClassList) -> None:
    """Raise an error where a run that goes on would get other classes or another optimiser than its state is of."""
    recipe = read_job(out).recipe
    for name in ("optimizer", "freeze", "layer_decay"):
        if (was := getattr(recipe, name)) != (now := getattr(job.recipe, name)):
            raise ConfigError(f"a resumed run cannot change its {name}: it has {was}, got {now}")
    old = checkpoints.read_card(out / "last.safetensors").class_ids
    if old != classes.ids:
        differ = sorted(set(old) ^ set(classes.ids))
        raise DataError(
            f"the run in {out} has {len(old)} classes, {job.data} has {len(classes)}; "
            f"they differ in {', '.join(differ[:3]) or 'their order'}"
        )


def _batches(
    job: TrainingJob, store: PixelStore, images: ImageList, plan: BatchPlan, accelerator: str, workers: int
) -> Any:
    recipe = job.recipe
    crop_scale = (recipe.crop_scale_min, 1.0)
    if job.pixels == "device":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if accelerator == "cuda" else accelerator
        return DeviceLoader(
            store, images.targets, plan, augment=recipe.augment, crop_scale=crop_scale, device=torch.device(device)
        )
    data = TrainingSet(store, images.targets, augment=recipe.augment, crop_scale=crop_scale, seed=recipe.seed)
    return training_loader(data, plan, workers=workers, pin=accelerator == "cuda")


def _decode(images: ImageList, what: str, memory: float, *, check: bool = False) -> PixelStore:
    quiet = getattr(rank_zero_only, "rank", 0) != 0
    with tqdm(total=len(images), desc=f"decoding {what}", unit="img", leave=False, disable=quiet) as bar:
        return PixelStore(
            images.paths,
            short_side=SHORT_SIDE,
            memory=memory,
            check=check,
            progress=lambda done, _: bar.update(done - bar.n),
        )


def _accelerator(job: TrainingJob) -> str:
    kind = pick_device(job.accelerator)
    if kind not in {"cpu", "cuda", "mps"}:
        raise ConfigError(f"device must be auto, cpu, cuda or mps, got {job.accelerator!r}")
    if kind == "cuda" and job.devices > torch.cuda.device_count():
        raise ConfigError(f"this machine has {torch.cuda.device_count()} GPUs, got --devices {job.devices}")
    return kind


def _default_workers(accelerator: str) -> int:
    cores = os.cpu_count() or 1
    return max(0, min(15, cores - 1)) if accelerator == "cuda" else min(1, cores - 1)


def _write_job(out: Path, job: TrainingJob, skipped: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f".{JOB}.tmp"
    temporary.write_text(json.dumps({**asdict(job), "environment": environment()}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out / JOB)
    if skipped:
        (out / "skipped.txt").write_text("\n".join(skipped) + "\n", encoding="utf-8")


def _quieten() -> None:
    """Lightning's advice is for those who wrote the loop, not for those who run it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
