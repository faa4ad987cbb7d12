"""The data root: what in it cannot be read is passed over or told, and takes nothing else with it."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.datasets import DataRoot, has_photos
from vtviz.errors import DataError


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        folder = tmp_path / "root" / "pets" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "1.png")
    (tmp_path / "root" / "lost+found").mkdir()
    return tmp_path / "root"


@pytest.fixture
def forbid(monkeypatch):
    """Makes a folder one that this process may not look into, also where it is run by root."""

    def make(forbidden: Path) -> None:
        def guarded(function):
            def call(path, *arguments, **options):
                if forbidden in (Path(path), *Path(path).parents)[0 if function is scandir else 1 :]:
                    raise PermissionError(13, "Permission denied", str(path))
                return function(path, *arguments, **options)

            return call

        scandir = os.scandir
        monkeypatch.setattr(os, "scandir", guarded(os.scandir))
        monkeypatch.setattr(os, "stat", guarded(os.stat))  # also of what Path asks
        monkeypatch.setattr(os, "listdir", guarded(os.listdir))

    return make


@pytest.mark.parametrize("suits", [None, has_photos])
def test_a_folder_that_may_not_be_looked_into_hides_no_other(root, forbid, suits):
    forbid(root / "lost+found")
    with pytest.raises(PermissionError):
        (root / "lost+found" / "train").stat()
    assert DataRoot(root).names(suits) == ["pets"]
    assert DataRoot(root).path("pets", suits) == root / "pets"


def test_a_class_that_may_not_be_looked_into_is_told_in_one_line(root, forbid):
    (root / "pets" / "train" / "emu").mkdir()
    forbid(root / "pets" / "train" / "emu")
    with pytest.raises(DataError, match="pets/train/emu cannot be read: Permission denied"):
        DataRoot(root).path("pets")


def test_a_link_to_the_outside_is_found_behind_a_link_that_stays_inside(root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(outside / "secret.png")
    store = root / "store" / "deep" / "er" / "emu"
    store.mkdir(parents=True)
    (store / "1.png").symlink_to(root / "pets" / "train" / "cat" / "1.png")
    (root / "pets" / "train" / "emu").symlink_to(store)
    (root / "pets" / "train" / "again").symlink_to(root / "pets")  # round and round
    assert DataRoot(root).path("pets") == root / "pets"
    (store / "2.png").symlink_to(outside / "secret.png")
    with pytest.raises(DataError, match=r"store/deep/er/emu/2\.png is a link to outside of the data root"):
        DataRoot(root).path("pets")
