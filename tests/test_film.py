import gc
import os
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtviz.errors import ConfigError
from vtviz.film import Sheet, write_webm, write_webp
from vtviz.footage import open_footage
from vtviz.geometry import Geometry


def make_sheet(tokens=range(4), shape=(60, 90), columns=2, limits=(0.0, 4.0), cell=90) -> Sheet:
    return Sheet("model, block0", shape, list(tokens), stride=16, limits=limits, columns=columns, cell=cell)


def draw(sheet: Sheet, image: np.ndarray, tokens: int = 4, at: int | None = None) -> np.ndarray:
    """All maps uniform but that of token ``at``, whose mass is in the first cell."""
    h, w = 4, 6
    maps = np.full((tokens, h, w), 1 / (h * w), np.float32)
    if at is not None:
        maps[at] = 0
        maps[at, 0, 0] = 1
    where = Geometry(image.shape[:2], (64, 96), (0, 0), (64, 96))
    return sheet.draw(image, maps, where, "frame 1")


def test_every_token_has_its_place(chelsea):
    photo = chelsea[:200, :300]
    sheet = make_sheet()
    plain = draw(sheet, photo)
    assert plain.shape == (*sheet.size, 3)
    assert sheet.size[0] % 2 == sheet.size[1] % 2 == 0
    boxes = []
    for token in range(4):
        differs = (draw(sheet, photo, at=token) != plain).any(axis=2)
        rows, columns = np.nonzero(differs)
        assert rows.max() - rows.min() < 60
        assert columns.max() - columns.min() < 90
        boxes.append((rows.min(), columns.min()))
        # the others and the frame at the left stay as they are
        differs[rows.min() - 1 : rows.min() + 60, columns.min() - 1 : columns.min() + 90] = False
        assert not differs.any()
    (y0, x0), (y1, x1), (y2, x2), (y3, x3) = boxes
    assert y0 == y1 < y2 == y3
    assert x0 == x2 < x1 == x3


def test_colours_depend_on_the_value_and_not_on_the_frame(chelsea, coffee):
    """The same map on two frames: where the photos are equal, so are the pictures; the scale never moves."""
    sheet = make_sheet([7], columns=1)
    grey = np.full((60, 90, 3), 128, np.uint8)
    calm, busy = draw(sheet, grey, 1), draw(sheet, grey, 1, at=0)
    far = np.s_[sheet.size[0] // 2 + 5 : sheet.size[0] // 2 + 9, 150:160]
    assert (calm[far] != busy[far]).any()  # 1 x uniform is not 0 x
    assert np.array_equal(draw(sheet, grey, 1), calm)
    wider = make_sheet([7], columns=1, limits=(0.0, 8.0))
    assert not np.array_equal(draw(wider, grey, 1)[far], calm[far])


@pytest.mark.parametrize("shape", [(40, 400), (400, 40), (90, 90), (1, 1)])
def test_frames_of_other_shapes_are_fitted_in(shape):
    sheet = make_sheet(range(16), columns=8)
    page = draw(sheet, np.full((*shape, 3), 200, np.uint8), 16)
    assert page.shape == (*sheet.size, 3)
    assert make_sheet(range(3), shape=shape).size[0] % 2 == 0


def test_a_crop_is_dimmed(chelsea):
    sheet = make_sheet([0], columns=1)
    photo = np.full((60, 90, 3), 200, np.uint8)
    maps = np.full((1, 4, 4), 1 / 16, np.float32)
    page = sheet.draw(photo, maps, Geometry((60, 90), (64, 96), (0, 16), (64, 64)), "")
    dim = (page == 70).all(axis=2)
    assert 0.2 < dim.sum() / (60 * 90) < 0.45


def moving(count: int, size=(64, 96)):
    for i in range(count):
        picture = np.zeros((*size, 3), np.uint8)
        picture[:, 8 * i : 8 * i + 16] = (250, 20, 20)
        yield picture


def test_webm_is_what_was_drawn(tmp_path, capfd):
    path = tmp_path / "a.webm"
    write_webm(path, moving(6), (64, 96), 5)
    assert capfd.readouterr().err == ""
    footage = open_footage(path)
    assert (footage.count, footage.fps) == (6, 5)
    for frame, picture in zip(footage.frames(), moving(6), strict=True):
        assert np.abs(frame.image.astype(int) - picture).mean() < 12
        assert abs(int(frame.image[:, :, 0].sum(axis=0).argmax()) - int(picture[:, :, 0].sum(axis=0).argmax())) < 16
    assert path.read_bytes()[:4] == b"\x1a\x45\xdf\xa3"


@pytest.mark.parametrize("name", [b"run:12", b"caf\xe9", b"frame%03d"])
def test_a_webm_goes_into_any_folder(tmp_path, monkeypatch, name):
    """FFmpeg takes "run:" for a protocol, and OpenCV dies of a name that is no UTF-8."""
    folder = os.fsdecode(name)
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    write_webm(Path(folder, "a.webm"), moving(3), (64, 96), 5)
    assert len(list(open_footage(Path(folder, "a.webm")).frames())) == 3
    assert [path.name for path in (tmp_path / folder).iterdir()] == ["a.webm"]


def test_a_webm_that_has_nowhere_to_be_made_is_one_line(tmp_path, monkeypatch):
    odd = tmp_path / "caf\udce9"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    with pytest.raises(ConfigError, match=r"'.*caf\\udce9.*' is not UTF-8, .*; write .* WebP") as error:
        write_webm(odd / "a.webm", moving(1), (64, 96), 5)
    assert "\n" not in str(error.value)
    assert list(odd.iterdir()) == []


def test_webp_is_what_was_drawn_and_goes_round(tmp_path):
    path = tmp_path / "a.webp"
    write_webp(path, moving(6), 6, 5)
    with Image.open(path) as film:
        assert (film.n_frames, film.size, film.info["loop"]) == (6, (96, 64), 0)
        for i, picture in enumerate(moving(6)):
            film.seek(i)
            assert np.abs(np.array(film.convert("RGB")).astype(int) - picture).mean() < 6
        assert film.info["duration"] == 200


def test_a_single_frame_is_a_film_too(tmp_path):
    write_webp(tmp_path / "a.webp", moving(1), 1, 5)
    write_webm(tmp_path / "a.webm", moving(1), (64, 96), 5)
    assert Image.open(tmp_path / "a.webp").size == (96, 64)
    assert len(list(open_footage(tmp_path / "a.webm").frames())) == 1


@pytest.mark.parametrize("kind", ["webm", "webp"])
def test_pictures_are_let_go_once_they_are_written(tmp_path, kind):
    alive: list[weakref.ref] = []
    most = 0

    def watched():
        nonlocal most
        for picture in moving(40):
            copy = picture.copy()
            alive.append(weakref.ref(copy))
            yield copy
            del copy
            if len(alive) % 10 == 0:  # collecting takes a second where much is imported
                gc.collect()
                most = max(most, sum(ref() is not None for ref in alive))

    if kind == "webm":
        write_webm(tmp_path / "a.webm", watched(), (64, 96), 10)
    else:
        write_webp(tmp_path / "a.webp", watched(), 40, 10)
    assert len(alive) == 40
    assert most <= 3


def test_an_error_while_drawing_comes_through(tmp_path):
    def broken():
        yield from moving(2)
        raise ConfigError("enough")

    with pytest.raises(ConfigError, match="enough"):
        write_webm(tmp_path / "a.webm", broken(), (64, 96), 5)
    with pytest.raises(ConfigError, match="enough"):
        write_webp(tmp_path / "a.webp", broken(), 5, 5)
    with pytest.raises(ConfigError, match="cannot write WebM"):
        write_webm(tmp_path / "no" / "folder.webm", moving(1), (64, 96), 5)
