import numpy as np
import pytest
from PIL import Image

from vtviz.lettering import lettering, line_height, shorten, write


def same(one: str, other: str) -> bool:
    return lettering(one, 13) == lettering(other, 13)


@pytest.mark.parametrize("size", [9, 13, 40])
@pytest.mark.parametrize("text", ["", "0", "vt_resnet18", "6.6×", "× uniform (1 = looks everywhere alike)", "gypqj"])
def test_masks_hold_the_whole_text(text, size):
    mask = np.array(lettering(text, size))
    assert mask.shape[0] == line_height(size)
    assert mask.dtype == np.uint8
    assert (mask.max() > 150) == bool(text)
    assert mask[0].max() == 0  # nothing is cut off above
    assert mask[:, -1].max() < 60
    assert abs(mask.shape[1] - lettering(text * 2, size).width / 2) <= 2


def test_the_cross_is_drawn_and_symmetric():
    cross = np.array(lettering("×", 40))
    rows, columns = np.nonzero(cross > 128)
    box = cross[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert 10 < box.shape[0] < 20
    assert np.abs(box.astype(int) - box[::-1]).mean() < 40
    assert np.abs(box.astype(int) - box[:, ::-1]).mean() < 40
    assert not same("×", "?")


def test_letters_that_the_font_lacks():
    assert same("piñata à la crème", "pinata a la creme")
    assert same("猫", "?")
    assert same("tab\tnew\nline", "tab?new?line")


def test_shorten():
    assert shorten("tabby", 13, 100) == "tabby"
    for width in (20, 50, 80, 120):
        short = shorten("Norwegian elkhound, elkhound", 13, width)
        assert short.endswith("...")
        assert lettering(short, 13).width <= width + 2
    assert shorten("tabby", 13, 0) == "..."


def test_write_changes_only_its_box():
    picture = Image.new("RGB", (60, 40), "white")
    write(picture, (50, 10), "12", 13, (10, 20, 30), right=True)
    pixels = np.array(picture)
    rows, columns = np.nonzero((pixels < 255).any(axis=2))
    assert rows.min() >= 10
    assert rows.max() < 10 + line_height(13)
    assert columns.max() < 50
    np.testing.assert_allclose(pixels.reshape(-1, 3).min(axis=0), [10, 20, 30], atol=9)


def test_middle_is_the_middle_of_the_digits():
    picture = Image.new("L", (60, 61), "white").convert("RGB")
    write(picture, (5, 30), "808", 20, (0, 0, 0), middle=True)
    rows = np.nonzero(np.array(picture)[..., 0] < 128)[0]
    assert abs((rows.min() + rows.max()) / 2 - 30) <= 1
