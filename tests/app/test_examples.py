import numpy as np
import pytest

from app import examples


@pytest.fixture
def fresh():
    """Examples are found once a process; look again."""
    examples.load_examples.cache_clear()
    yield
    examples.load_examples.cache_clear()


def test_examples_are_photos_with_a_licence(fresh):
    found = examples.load_examples()
    assert list(found) == ["cat", "rocket", "astronaut", "coffee"]
    for key, example in found.items():
        assert example.key == key
        assert example.image.shape[2] == 3
        assert example.image.dtype == np.uint8
        assert example.credit.endswith(("CC0", "public domain"))


def test_without_scikit_image_matplotlib_has_one(fresh, monkeypatch):
    real = examples.find_spec
    monkeypatch.setattr(examples, "find_spec", lambda name: None if name == "skimage" else real(name))
    assert list(examples.load_examples()) == ["hopper", "shapes"]


def test_with_neither_a_drawing_serves_and_says_so(fresh, monkeypatch):
    monkeypatch.setattr(examples, "find_spec", lambda _: None)
    found = examples.load_examples()
    assert [e.title for e in found.values()] == ["Drawn shapes"]
    assert "not a photo" in found["shapes"].credit
    assert len(np.unique(found["shapes"].image.reshape(-1, 3), axis=0)) > 1000  # a gradient and shapes, not a blank


@pytest.mark.parametrize("size", [(360, 480), (64, 200)])
def test_the_drawing_has_the_size_asked_for(size):
    assert examples.draw_shapes(*size).shape == (*size, 3)
