from pathlib import Path

import numpy as np

import app
from app import examples


def test_examples_are_photos_with_a_licence():
    found = examples.load_examples()
    assert list(found) == ["cat", "rocket", "astronaut", "coffee"]
    for key, example in found.items():
        assert example.key == key
        assert example.image.shape[2] == 3
        assert example.image.dtype == np.uint8
        assert max(example.image.shape) <= 512
        assert example.image.std() > 20  # a photo, not a blank
        assert example.credit.endswith(("CC0", "public domain"))


def test_every_photo_is_credited():
    folder = Path(app.__file__).parent / "photos"
    text = (folder / "LICENCES.txt").read_text(encoding="utf-8")
    for photo in folder.glob("*.jpg"):
        assert f"{photo.name} " in text
        assert photo.stem in examples.load_examples()


def test_the_cat_is_scikit_images(chelsea):
    assert examples.load_examples()["cat"].image.shape == chelsea.shape
    difference = np.abs(examples.load_examples()["cat"].image.astype(int) - chelsea)
    assert difference.mean() < 4  # but for JPEG
