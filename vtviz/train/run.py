"""One training run: data, model, engine and the run folder that holds everything about it."""

from __future__ import annotations

import csv
import json
import logging
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torchvision
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim.swa_utils import get_ema_multi_avg_fn

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
from vtviz.errors import CheckpointError, TrainingError
from vtviz.models.registry import config_to_dict, model_from_config
from vtviz.models.resnet import Classifier
from vtviz.predictor import Predictor
from vtviz.train.classifier import ClassifierTraining
from vtviz.train.recipes import Recipe
from vtviz.train.teachers import load_teacher

STATE = "state.ckpt"
"""Everything that resuming needs, written after each epoch."""


@dataclass(frozen=True)
class TrainingJob:
    """What to train on what, and where to write it; saved as ``run.json`` in the run folder.

    Attributes:
        data: image folder, with "train" and "val" or to be split by the recipe's seed.
        out: the run folder.
        recipe: how to train.
        model: registry name.
        preset: of the model's configuration.
        start: a vtviz checkpoint or run whose weights training starts from; its model and configuration replace
            ``model`` and ``preset``. Where its classes are others, it gets a fresh last layer.
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
        terms: the training data's terms, for the card.
    """

    data: str
    out: str
    recipe: Recipe
    model: str = "vt_resnet18"
    preset: str | None = None
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
    terms: str = ""


def train_classifier(job: TrainingJob, *, resume: bool = False) -> Path:
    """Train, writing after each epoch, and return the run folder, which loads like any checkpoint.

    Raises:
        DataError, ConfigError, CheckpointError, TrainingError: before anything is written, where it can be told then.
    """
    out = Path(job.out)
    state = out / STATE
    if state.is_file() and not resume:
        raise TrainingError(f"{out} holds a run already; add --resume to go on with it, or choose another folder")
    if resume and not state.is_file():
        raise TrainingError(f"nothing to resume: {state} does not exist")
    recipe = job.recipe
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    _quieten()
    torch.set_float32_matmul_precision("high")

    names = read_class_names(job.classes_file) if job.classes_file else None
    train = open_folder(job.data, "train", names=names, seed=recipe.seed).limit(job.limit, recipe.seed)
    val = open_folder(job.data, "val", classes=train.classes, seed=recipe.seed)
    val = val.limit(job.val_limit or (job.limit and max(1, job.limit // 4)), recipe.seed)
    name, model = _model(job, train.classes)
    teacher = load_teacher(job.teacher, train.classes) if job.teacher else None
    preprocessing = Preprocessing(size=recipe.eval_size)
    module = ClassifierTraining(model, recipe, preprocessing, teacher=teacher)
    module.to(memory_format=torch.channels_last)
    predictor = Predictor(model, classes=train.classes.names, preprocessing=preprocessing)

    accelerator = _accelerator(job.accelerator)
    world = job.devices * job.nodes
    micro = job.micro_batch or max(1, recipe.batch_size // world)
    plan_arguments = {"epochs": recipe.epochs, "seed": recipe.seed, "world": world}
    workers = job.workers if job.workers is not None else _default_workers(accelerator)
    train_store, val_store = _decode(train, "train"), _decode(val, "val")
    plan = BatchPlan(len(train_store), micro, parse_sizes(recipe.sizes), rank=_rank(), **plan_arguments)
    batches = _batches(job, train_store, train.targets, plan, accelerator, workers)
    card = Card(
        name=out.name,
        model=name,
        config=config_to_dict(model.config),
        classes=train.classes.names,
        class_ids=train.classes.ids,
        preprocessing=preprocessing,
        data={"name": Path(job.data).name, "n_train": len(train_store), "n_val": len(val_store), "terms": job.terms},
        recipe=asdict(recipe),
        teacher=teacher.name if teacher else None,
        seed=recipe.seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "run.json", {**asdict(job), "environment": environment()})
    if train_store.skipped or val_store.skipped:
        (out / "skipped.txt").write_text("\n".join([*train_store.skipped, *val_store.skipped]) + "\n", encoding="utf-8")

    callbacks: list[Callback] = [RunFolder(out, card)]
    if recipe.ema > 0:
        callbacks.append(Averaging(recipe.ema))
    callbacks += [
        ModelCheckpoint(out, filename=Path(STATE).stem, enable_version_counter=False, save_on_train_epoch_end=True),
        TQDMProgressBar(refresh_rate=10),
    ]
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=job.devices,
        num_nodes=job.nodes,
        max_epochs=recipe.epochs,
        precision=recipe.precision,  # type: ignore[arg-type]
        gradient_clip_val=recipe.clip or None,
        accumulate_grad_batches=max(1, recipe.batch_size // (micro * world)),
        sync_batchnorm=world > 1 and accelerator == "cuda",
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        benchmark=accelerator == "cuda",
        logger=TensorBoardLogger(out, name=None, version="tensorboard"),
        callbacks=callbacks,
        log_every_n_steps=10,
    )
    trainer.fit(
        module,
        batches,
        evaluation_loader(EvaluationSet(val_store, val.targets, predictor.fit), micro, workers=workers),
        ckpt_path=str(state) if resume else None,
        weights_only=False if resume else None,  # this run's own state: optimiser and loops, not only tensors
    )
    return out


class Averaging(WeightAveraging):
    """Exponential moving average of the weights, whose decay rises from 0.1 so that short runs are not all start."""

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=self._average)
        self.decay = decay

    def _average(self, averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))(averaged, current, count)


class RunFolder(Callback):
    """Writes, after each epoch, metrics.csv and the weights with their card: ``last`` and the ``best`` on "val"."""

    def __init__(self, folder: Path, card: Card) -> None:
        self.folder, self.card = folder, card
        self.best = -1.0
        self._snapshot = model_from_config(card.model, card.config)
        self._weights: dict[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs to know."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the stopped run was."""
        self.best = state_dict["best"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights that were validated: after this hook the averaged ones are swapped out again."""
        if trainer.is_global_zero:
            self._weights = {k: v.detach().cpu().clone() for k, v in pl_module.model.state_dict().items()}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write weights, card and the epoch's metrics."""
        if not trainer.is_global_zero:
            return
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        epoch = trainer.current_epoch + 1
        card = replace(
            self.card,
            epochs=float(epoch),
            accuracy={
                "top1": metrics["val/top1"],
                "top5": metrics["val/top5"],
                "n": self.card.data["n_val"],
                "size": self.card.preprocessing.size,
                "split": "val",
            },
            tokens={f"block{i}": s for i, s in enumerate(pl_module.token_statistics())},
            date=datetime.now(tz=UTC).date().isoformat(),
        )
        self._snapshot.load_state_dict(self._weights)
        checkpoints.save(self.folder / "last.safetensors", self._snapshot, card)
        if metrics["val/top1"] > self.best:
            self.best = metrics["val/top1"]
            checkpoints.save(self.folder / "best.safetensors", self._snapshot, card)
        self._append({"epoch": epoch, "lr": trainer.optimizers[0].param_groups[0]["lr"], **metrics})

    def _append(self, row: Mapping[str, float]) -> None:
        """Add a row to metrics.csv; rows of epochs that a resumed run does again are replaced."""
        file = self.folder / "metrics.csv"
        rows: list[dict[str, Any]] = []
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as handle:
                rows = [r for r in csv.DictReader(handle) if int(r["epoch"]) < row["epoch"]]
        rows.append({k: f"{v:.6g}" for k, v in row.items()})
        names = list(dict.fromkeys(key for r in rows for key in r))
        temporary = file.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, names)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(file)


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
    recipe = job.recipe
    if job.start is None:
        options = {"num_classes": len(classes), "dropout": recipe.dropout, "drop_path": recipe.drop_path}
        model = checkpoints.create_model(job.model, job.preset, weights=job.weights, **options)
        name = job.model
    else:
        model, card = checkpoints.load(job.start)
        name = card.model
        if card.class_ids != classes.ids and isinstance(model, Classifier):
            model.reset_classifier(len(classes))
    if not isinstance(model, Classifier):
        raise TrainingError(f"{name} is not a classifier")
    return name, model


def _batches(
    job: TrainingJob, store: PixelStore, targets: Sequence[int], plan: BatchPlan, accelerator: str, workers: int
) -> Any:
    recipe = job.recipe
    crop_scale = (recipe.crop_scale_min, 1.0)
    if job.pixels == "device":
        device = torch.device(accelerator, int(os.environ.get("LOCAL_RANK", "0")) if accelerator == "cuda" else None)
        return DeviceLoader(store, targets, plan, augment=recipe.augment, crop_scale=crop_scale, device=device)
    if job.pixels != "host":
        raise TrainingError(f"pixels must be host or device, got {job.pixels!r}")
    data = TrainingSet(store, targets, augment=recipe.augment, crop_scale=crop_scale, seed=recipe.seed)
    return training_loader(data, plan, workers=workers, pin=accelerator == "cuda")


def _decode(images: ImageList, what: str) -> PixelStore:
    from tqdm import tqdm  # noqa: PLC0415 - Lightning's own progress bar library

    with tqdm(total=len(images), desc=f"decoding {what}", unit="img", leave=False) as bar:
        return PixelStore(images.paths, short_side=256, progress=lambda done, _: bar.update(done - bar.n))


def _accelerator(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("no CUDA device here; use --device cpu")
    if name not in {"cpu", "cuda", "mps"}:
        raise TrainingError(f"device must be auto, cpu, cuda or mps, got {name!r}")
    return name


def _default_workers(accelerator: str) -> int:
    cores = os.cpu_count() or 1
    return max(0, min(15, cores - 1)) if accelerator == "cuda" else min(1, cores - 1)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _write_json(path: Path, data: Any) -> None:
    try:
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from None


def _quieten() -> None:
    """Lightning's advice is for those who wrote the loop, not for those who run it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
