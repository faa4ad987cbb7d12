"""Small data sets and a model so small that an epoch takes a second."""

import shutil

import numpy as np
import pytest
from PIL import Image

from vtviz.train.callbacks import SPEED, read_metrics
from vtviz.train.job import TrainingJob
from vtviz.train.recipes import make_recipe
from vtviz.train.run import train

COLOURS = {"red_ball": (200, 40, 40), "green ball": (40, 180, 60), "Blue-Ball": (40, 60, 200)}
OPTIONS = {"num_tokens": 4, "channels": 32, "token_channels": 32, "heads": 2}
"""A narrow stage behind a whole ResNet-18 backbone."""


def ball(colour, seed, side=40) -> np.ndarray:
    """A coloured disc somewhere on noise, (side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 130, (side, side, 3))
    y, x = np.mgrid[:side, :side]
    image[np.hypot(*(np.array([y, x]) - rng.uniform(12, side - 12, (2, 1, 1)))) < 10] = colour
    return image.astype(np.uint8)


def write_folder(root, classes=COLOURS, side=40, **splits):
    """Write an image folder with so many images a class in each split; the split "flat" is the folder itself."""
    for split, count in splits.items():
        for number, (label, colour) in enumerate(classes.items()):
            folder = root / ("" if split == "flat" else split) / label
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = ball(colour, 1000 * number + 100 * len(split) + i, side)
                Image.fromarray(image).save(folder / f"{i:03d}.png")
    return root


def make_job(out, data, recipe=(), **fields) -> TrainingJob:
    """Two short epochs at 32 to 48 pixels in float32."""
    settings = {"epochs": 2, "batch_size": 8, "sizes": "32-48", "eval_size": 48, "precision": "32-true", "lr": 1e-3}
    job = {"model_options": OPTIONS, "accelerator": "cpu", "workers": 0}
    job |= {"model_options": {}} if "start" in fields or fields.get("model", "vt_").startswith("resnet") else {}
    recipe = make_recipe("small", **settings | dict(recipe))
    return TrainingJob(**{"data": str(data), "out": str(out), "recipe": recipe, **job, **fields})


@pytest.fixture
def make_folder(tmp_path):
    """Makes an image folder of one's own: make_folder("data", train=8, val=4) or make_folder(flat=10)."""
    return lambda name="data", **arguments: write_folder(tmp_path / name, **arguments)


@pytest.fixture(scope="session")
def balls(tmp_path_factory):
    """Three classes, 8 training and 4 validation images each; to be read only."""
    return write_folder(tmp_path_factory.mktemp("balls") / "data", train=8, val=4)


@pytest.fixture
def tiny_job(balls, tmp_path):
    """Makes a job; ``out`` is a name below the test's folder, or a path."""
    return lambda out="run", data=balls, **arguments: make_job(tmp_path / out, data, **arguments)


@pytest.fixture(scope="session")
def trained(balls, tmp_path_factory):
    """The folder of a finished run; to be read only."""
    return train(make_job(tmp_path_factory.mktemp("trained") / "run", balls))


@pytest.fixture
def trained_copy(trained, tmp_path):
    """A finished run of one's own."""
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture(scope="session")
def learned():
    """Return a run's metrics without those of the machine, which no two runs share."""
    return lambda run: [{k: v for k, v in row.items() if k not in SPEED} for row in read_metrics(run)]


@pytest.fixture(scope="session")
def quick() -> list[str]:
    """Command-line options of a tiny model on the CPU, for :func:`make_job`'s recipe."""
    settings = {"eval_size": 48, "precision": "32-true"}
    return [
        *("--device", "cpu", "--workers", "0", "--batch-size", "8", "--sizes", "32-48"),
        *(part for name, value in OPTIONS.items() for part in ("--option", f"{name}={value}")),
        *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
    ]
