"""What a run is asked to do, as its folder keeps it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torchvision

import vtviz
from vtviz.errors import ConfigError, TrainingError, did_you_mean
from vtviz.files import write
from vtviz.train.recipes import Recipe, recipe_from_dict

STATE = "state.ckpt"
"""Everything that resuming needs, written after each epoch."""
JOB = "run.json"
"""The job and the machine that it runs on."""


@dataclass(frozen=True)
class TrainingJob:
    """What to train on what, and where to write it; saved as :data:`JOB` in the run folder.

    Attributes:
        data: image folder, with "train" and "val" or to be split by the recipe's seed; for a segmentation model, a
            set of images and masks, see :mod:`vtviz.data.segmentation`.
        out: the run folder.
        recipe: how to train.
        model: registry name.
        preset: of the model's configuration; the model's first by default.
        model_options: fields of the model's configuration, e.g. ``{"num_tokens": 8}``.
        start: a vtviz checkpoint or run whose weights training starts from; its model and configuration replace
            ``model``, ``preset`` and ``model_options``. Where its classes are others, it gets a fresh last layer. A
            segmentation ``model`` may start from a classifier: it takes the backbone's weights.
        weights: torchvision weights for the backbone, by name or file; None starts from random weights.
        teacher: see :func:`vtviz.train.teachers.load_teacher`.
        classes_file: "ID name" lines that give class folders their display names.
        groups: of a segmentation set's classes, taken together; a name in :data:`vtviz.data.classes.GROUPS`.
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
    groups: str | None = None
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


def goes_on(out: Path) -> str:
    """How a message ends that says why a run ended."""
    return "; the last whole epoch is kept: --resume goes on from there" if (out / STATE).is_file() else ""


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


def write_job(out: Path, job: TrainingJob, skipped: list[str]) -> None:
    """Write the job, and the files that could not be read. Raises OSError where the disk refuses."""
    out.mkdir(parents=True, exist_ok=True)
    write(out / JOB, json.dumps({**asdict(job), "environment": environment()}, indent=2) + "\n")
    if skipped:
        write(out / "skipped.txt", "\n".join(skipped) + "\n")
