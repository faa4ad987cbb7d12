"""One training run: data, model, engine and the run folder that holds everything about it."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from vtviz.data.loading import BatchPlan, can_fork, parse_sizes
from vtviz.errors import ConfigError, TrainingError, VtvizError
from vtviz.files import sweep
from vtviz.train.callbacks import AtomicCheckpoints, Averaging, RunFolder
from vtviz.train.evaluation import pick_device
from vtviz.train.job import JOB, STATE, TrainingJob, goes_on, write_job
from vtviz.train.probe import PROBE
from vtviz.train.progress import Progress
from vtviz.train.recipes import SegmentationRecipe
from vtviz.train.setup_classifier import set_up_classifier
from vtviz.train.setup_segmenter import set_up_segmenter

MOST_SIZES = 64
"""Of images, for which a compiled model has a graph each; beyond that it runs as it is."""
LOCK = "run.lock"
LOCK_SECONDS = 15.0
"""For which a run's folder is waited for: the data-loading processes of a killed run take some seconds to see that."""


def train(job: TrainingJob, *, resume: bool = False) -> Path:
    """Train, writing after each epoch, and return the run folder, which loads like any checkpoint.

    A run that was killed is resumed at the start of the epoch that it was in, and ends with the weights that it would
    have had.

    Raises:
        DataError, ConfigError, CheckpointError, TrainingError: before anything is written, where it can be told then.
    """
    out, recipe = Path(job.out), job.recipe
    state = out / STATE
    if not resume:
        _refuse_held(state)
    elif not (out / JOB).is_file():
        raise TrainingError(f"nothing to resume: {out / JOB} does not exist")
    accelerator = _accelerator(job)
    if accelerator == "cpu" and recipe.precision == "16-mixed":
        raise ConfigError("precision 16-mixed needs a GPU; on a CPU take bf16-mixed or 32-true")
    micro, accumulate = job.micro_batches()
    _quieten()
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")

    task = set_up_segmenter(job) if isinstance(recipe, SegmentationRecipe) else set_up_classifier(job)
    task.module.to(memory_format=torch.channels_last)
    progress = Progress()
    trainer = _trainer(job, accelerator, accumulate, RunFolder(out, task.card, progress, task.probe), progress)
    rank, world = trainer.global_rank, trainer.world_size
    plan = BatchPlan(
        task.length,
        micro,
        parse_sizes(recipe.sizes),
        epochs=recipe.epochs,
        seed=recipe.seed,
        rank=rank,
        world=world,
        accumulate=accumulate,
    )
    workers = job.workers if job.workers is not None else _default_workers(accelerator, job.devices)
    loaders = task.training(plan, accelerator, workers), task.validation(micro, workers, rank, world)
    if job.compile:
        torch._dynamo.config.recompile_limit = MOST_SIZES  # noqa: SLF001 - it has no public name
        for part in task.heavy:
            part.compile(dynamic=False)  # a graph for each size: Inductor fails on strided convolutions of any size
    alone = _alone(out) if trainer.is_global_zero else nullcontext()
    with _one_line(out), redirect_stdout(sys.stderr), alone:  # stdout: the bar
        if trainer.is_global_zero:
            if not resume:  # once more: another process may have had the folder until now
                _refuse_held(state)
            for folder in (out, out / PROBE):
                sweep(folder)
            write_job(out, job, task.skipped)
        path = str(state) if resume and state.is_file() else None
        plan.set_epoch(_epochs_done(state) if path else 0)  # Lightning fetches a batch before it says which epoch comes
        # weights_only=False: this run's own state, optimiser and loops and not only tensors
        trainer.fit(task.module, *loaders, ckpt_path=path, weights_only=False if path else None)
    return out


def _epochs_done(state: Path) -> int:
    """Whole epochs that a run's state is of; its metrics may be one ahead, where a kill came between the two."""
    try:
        return int(torch.load(state, map_location="cpu", mmap=True, weights_only=False)["epoch"]) + 1
    except Exception as error:  # noqa: BLE001 - pickle and zip raise nearly anything
        reason = " ".join(str(error).split())[:100]
        raise TrainingError(
            f"{state} is damaged ({reason}); start a new run, whose --from takes this one's weights"
        ) from None


def _refuse_held(state: Path) -> None:
    if state.is_file():
        raise TrainingError(
            f"{state.parent} holds a run already; add --resume to go on with it, or choose another folder"
        )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Nobody else trains in the run folder meanwhile; the system lets go of it when the process dies."""
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise TrainingError(f"{out}: another process trains this run; wait for its end, or stop it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _one_line(out: Path) -> Iterator[None]:
    """What a disk, a data-loading process or a batch that is too small has to say, in one line."""
    try:
        yield
    except VtvizError as error:
        if "Original Traceback" not in str(error):
            raise
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from None
    except OSError as error:
        raise TrainingError(f"{out}: {error.strerror or error}{goes_on(out)}") from None
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        if reason.startswith("DataLoader worker"):
            raise TrainingError(f"{out}: {reason} Fewer --workers take less memory{goes_on(out)}") from None
        if reason.startswith("Expected more than 1 value per channel"):
            raise TrainingError(
                f"{out}: batch norm cannot train on a single image of so few pixels at once; take a larger "
                f"--batch-size, --micro-batch or --sizes{goes_on(out)}"
            ) from None
        raise


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


def _accelerator(job: TrainingJob) -> str:
    kind = pick_device(job.accelerator)
    if kind not in {"cpu", "cuda", "mps"}:
        raise ConfigError(f"device must be auto, cpu, cuda or mps, got {job.accelerator!r}")
    if kind == "cpu" and job.devices > (most := max(4, os.cpu_count() or 1)):
        raise ConfigError(f"on this machine at most {most} processes train on the CPU, got --devices {job.devices}")
    if kind == "cuda" and job.devices > torch.cuda.device_count():
        raise ConfigError(f"this machine has {torch.cuda.device_count()} GPUs, got --devices {job.devices}")
    return kind


def _default_workers(accelerator: str, devices: int) -> int:
    """Data-loading processes of each of a machine's training processes."""
    if not can_fork():
        return 0
    cores = os.cpu_count() or 1
    return min(15, (cores - 1) // devices) if accelerator == "cuda" else min(1, cores - 1)


def _quieten() -> None:
    """Lightning's advice is for those who wrote the loop, not for those who run it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
