import base64
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from vtviz.drawing import Figure, Group, Picture, Shape, Words, box, data_address, to_png, to_svg

SVG = "{http://www.w3.org/2000/svg}"
RED = np.full((2, 3, 3), (200, 0, 0), np.uint8)


def read(address: str) -> tuple[str, np.ndarray]:
    kind, data = address.removeprefix("data:image/").split(";base64,")
    return kind, np.array(Image.open(io.BytesIO(base64.b64decode(data))))


def test_png_puts_everything_in_its_place():
    parts = [
        box(2, 3, 10, 4, (0, 0, 255)),
        Group([Picture(20, 5, 6, 8, RED)], "a", "a picture"),
        Shape(((0, 20), (40, 20), (40, 24), (0, 24)), (0, 0, 0), 0.5),
    ]
    picture = to_png(Figure(40, 30, parts), scale=2)
    assert (picture.dtype, picture.shape) == (np.uint8, (60, 80, 3))
    blue = (picture == (0, 0, 255)).all(axis=2)
    assert np.array_equal(np.argwhere(blue)[[0, -1]], [[6, 4], [13, 23]])
    assert blue.sum() == 20 * 8
    red = (picture == (200, 0, 0)).all(axis=2)
    assert np.array_equal(np.argwhere(red)[[0, -1]], [[10, 40], [25, 51]])
    assert np.abs(picture[40:48].astype(int) - 128).max() <= 1  # half black on white
    assert (picture[50:] == 255).all()


def test_cells_stay_sharp_and_photos_do_not():
    ramp = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    sharp = to_png(Figure(40, 4, [Picture(0, 0, 40, 4, ramp, cells=True)]))
    smooth = to_png(Figure(40, 4, [Picture(0, 0, 40, 4, ramp)]))
    assert set(np.unique(sharp)) == {0, 255}
    assert len(np.unique(smooth)) > 20


@pytest.mark.parametrize(("anchor", "share"), [("start", 0.0), ("middle", 0.5), ("end", 1.0)])
def test_words_stand_at_their_anchor(anchor, share):
    picture = to_png(Figure(200, 40, [Words(100, 20, "0000", 14, anchor)]))
    rows, columns = np.nonzero(picture[..., 0] < 128)
    width = columns.max() - columns.min()
    assert abs(columns.min() - (200 - share * width)) < 6
    assert abs((rows.min() + rows.max()) / 2 - 40) < 3


def test_svg_is_the_same_figure_and_nothing_but_data():
    inner = [Picture(1, 2, 30, 20, RED, cells=True), Words(5, 10, "a < b & c", 12, "end", muted=True)]
    parts = [Group(inner, "x y", 'say "<hi>"'), box(1, 2, 3.25, 4, (10, 20, 30), 0.5)]
    text = to_svg(Figure(100, 50, parts), "<title>", name="vl", style=".x{opacity:1}")
    root = ET.fromstring(text)
    assert (root.get("viewBox"), root.get("class"), root.get("aria-label")) == ("0 0 100 50", "vl", "<title>")
    group = root.find(f"{SVG}g")
    assert (group.get("class"), group.get("tabindex"), group.get("aria-label")) == ("x y", "0", 'say "<hi>"')
    assert group.find(f"{SVG}title").text == 'say "<hi>"'
    image = group.find(f"{SVG}image")
    assert [float(image.get(key)) for key in ("x", "y", "width", "height")] == [1, 2, 30, 20]
    assert np.array_equal(read(image.get("href"))[1], RED)
    words = group.find(f"{SVG}text")
    assert (words.text, words.get("text-anchor")) == ("a < b & c", "end")
    shape = root.find(f"{SVG}polygon")
    assert shape.get("points") == "1,2 4.25,2 4.25,6 1,6"
    assert shape.get("fill") == "rgb(10, 20, 30)"
    # a strict policy forbids all of these
    assert not any(key in element.attrib for element in root.iter() for key in ("style", "onload", "onclick"))
    assert "<script" not in text
    assert text.count("://") == 1  # the name of SVG itself
    assert root.find(f"{SVG}style").text.endswith(".x{opacity:1}")


def test_data_addresses_hold_the_pixels(coffee):
    kind, pixels = read(data_address(coffee, lossless=True))
    assert kind == "png"
    assert np.array_equal(pixels, coffee)
    kind, pixels = read(data_address(coffee))
    assert kind == "jpeg"
    assert np.abs(pixels.astype(int) - coffee).mean() < 4
    assert read(data_address(coffee[..., 0], lossless=True))[1].ndim == 2
