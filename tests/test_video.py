import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vtviz.errors import ConfigError, ImageError
from vtviz.film import write_webm
from vtviz.footage import open_footage
from vtviz.geometry import Geometry
from vtviz.images import hushed
from vtviz.predictor import Predictor
from vtviz.render import value_range
from vtviz.video import write_film

SIZE = 64


@pytest.fixture(scope="module")
def predictor(tiny_model):
    return Predictor(tiny_model())


@pytest.fixture
def frames(tmp_path, coffee):
    """A pan over a photo, as a folder of five frames."""
    folder = tmp_path / "pan"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(coffee[100:220, 40 * i : 40 * i + 180]).save(folder / f"{i + 8}.png")
    return folder


def test_arrays_are_those_of_the_api_and_the_film_has_them_all(predictor, frames, tmp_path):
    calls = []
    film = write_film(predictor, frames, tmp_path / "out", "pan", size=SIZE, progress=lambda *call: calls.append(call))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"pan.webm", "pan.npz", "pan.json"}
    assert calls == [(i, 10) for i in range(1, 11)]
    assert (film.layer, film.tokens, film.available, film.fps) == ("block0", tuple(range(16)), 5, 10)
    assert [f.name for f in film.frames] == ["8.png", "9.png", "10.png", "11.png", "12.png"]
    peaks = []
    with np.load(film.files["pan.npz"]) as arrays:
        assert sorted(arrays.files) == [f"frame{i:06d}" for i in range(5)]
        for noted in film.frames:
            maps = predictor.extract(frames / noted.name, size=SIZE)
            array = arrays[noted.array]
            assert array.dtype == np.float32
            assert np.array_equal(array, maps.layers[0].of_head())
            assert noted.geometry == maps.geometry
            peaks.append(maps.times_uniform(0).max(axis=(1, 2)))
    assert film.scale == pytest.approx(value_range(np.concatenate(peaks), "shared"))
    played = list(open_footage(film.files["pan.webm"]).frames())
    assert len(played) == 5
    assert played[0].image.shape[:2] == film.size
    stated = json.loads(film.files["pan.json"].read_text())
    assert stated == json.loads(json.dumps(film.to_dict()))
    assert stated["frames"][2] == {
        "number": 2,
        "name": "10.png",
        "array": "frame000002",
        "geometry": film.frames[2].geometry.to_dict(),
    }
    assert "summing to 1" in stated["unit"]


def test_options_choose_what_is_seen(predictor, frames, tmp_path):
    film = write_film(
        predictor, frames, tmp_path, layer=-1, tokens=[5, -7], every=2, most=2, fps=3, kind="webp",
        scale=(0, 9), cmap="viridis", cell=64, size=SIZE, crop="center",
    )  # fmt: skip
    assert (film.layer, film.stride, film.tokens) == ("block1", predictor.strides[1], (5, 1))
    assert [f.name for f in film.frames] == ["8.png", "10.png"]
    assert (film.scale, film.fps, film.every, film.cmap) == ((0, 9), 3, 2, "viridis")
    maps = predictor.extract(frames / "10.png", size=SIZE, crop="center")
    with np.load(film.files["film.npz"]) as arrays:
        assert np.array_equal(arrays["frame000002"], maps.layers[1].of_head()[[5, 1]])
    with Image.open(film.files["film.webp"]) as shown:
        assert (shown.n_frames, shown.size) == (2, film.size[::-1])


def test_the_scale_is_one_for_all_frames(predictor, tmp_path, coffee):
    """A grey frame between two others: its maps keep the film's colours and are not stretched to their own."""
    folder = tmp_path / "frames"
    folder.mkdir()
    photo, grey = np.ascontiguousarray(coffee[:120, :180]), np.full((120, 180, 3), 128, np.uint8)
    for i, image in enumerate((photo, grey, photo)):
        Image.fromarray(image).save(folder / f"{i}.png")
    film = write_film(predictor, folder, tmp_path, kind="webp", size=SIZE)
    with Image.open(film.files["film.webp"]) as shown:
        pictures = []
        for i in range(3):
            shown.seek(i)
            pictures.append(np.array(shown.convert("RGB")).astype(int))
    bar = np.s_[:, -40:]  # with its numbers
    assert np.abs(pictures[0][bar] - pictures[1][bar]).max() < 40
    same, other = (np.abs(pictures[0] - pictures[i]).mean() for i in (2, 1))
    assert same < 4  # what the compression does
    assert other > 3 * same


def test_a_video_keeps_its_time(predictor, tmp_path, chelsea):
    with hushed():
        writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 24, (120, 80))
    for i in range(7):
        writer.write(np.ascontiguousarray(chelsea[20:100, 10 * i : 10 * i + 120, ::-1]))
    writer.release()
    film = write_film(predictor, tmp_path / "clip.mp4", tmp_path / "out", every=3, size=SIZE)
    assert (film.available, film.fps) == (7, pytest.approx(8))
    assert [(f.number, f.name, f.array) for f in film.frames] == [
        (0, "", "frame000000"), (3, "", "frame000003"), (6, "", "frame000006"),
    ]  # fmt: skip
    frame = next(open_footage(tmp_path / "clip.mp4").frames())
    with np.load(film.files["film.npz"]) as arrays:
        assert np.array_equal(arrays["frame000000"], predictor.extract(frame.image, size=SIZE).layers[0].of_head())


def test_what_is_filmed_is_never_written_over(predictor, tmp_path, chelsea, monkeypatch):
    """Neither a video nor a folder's frame, by whichever path it is reached; told before any frame is looked at."""
    clip = tmp_path / "clip.webm"
    write_webm(clip, (np.ascontiguousarray(chelsea[20:100, 10 * i : 10 * i + 120]) for i in range(2)), (80, 120), 5)
    frame = tmp_path / "pan" / "film.webp"
    frame.parent.mkdir()
    Image.fromarray(chelsea[:80, :120]).save(frame)
    (tmp_path / "link").symlink_to(frame.parent)
    before = clip.read_bytes(), frame.read_bytes()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    steps = []
    for source, folder, name, kind in (
        (clip, tmp_path, "clip", "webm"),
        ("~/clip.webm", ".", "clip", "webm"),
        (frame.parent, tmp_path / "link", "film", "webp"),
    ):
        with pytest.raises(ConfigError, match=rf"{name}\.{kind} is one of the images and would be lost"):
            write_film(predictor, source, folder, name, kind=kind, size=SIZE, progress=lambda *step: steps.append(step))
    assert (clip.read_bytes(), frame.read_bytes()) == before
    assert steps == []


def test_photos_of_different_shapes_make_a_film(predictor, tmp_path, chelsea, coffee):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(chelsea[:100, :160]).save(folder / "a.png")
    Image.fromarray(coffee[:200, :90]).save(folder / "b.png")
    film = write_film(predictor, folder, tmp_path, size=SIZE)
    assert film.frames[0].geometry == Geometry((100, 160), (48, 80), (0, 0), (48, 80))
    with np.load(film.files["film.npz"]) as arrays:
        shapes = [arrays[f.array].shape[1:] for f in film.frames]
    assert shapes[0] != shapes[1]
    assert len(list(open_footage(film.files["film.webm"]).frames())) == 2


def test_any_folder_and_frame_s_name_will_do(predictor, tmp_path, chelsea, monkeypatch):
    """Names that are no UTF-8, or look like an address."""
    odd = tmp_path / "caf\udce9"
    odd.mkdir()
    Image.fromarray(chelsea[:80, :120]).save(odd / "a\udce9.png")
    monkeypatch.chdir(tmp_path)
    for folder in (odd, "run:12"):
        film = write_film(predictor, odd, folder, size=SIZE)
        assert len(list(open_footage(film.files["film.webm"]).frames())) == 1
        assert {path.name for path in film.files.values()} <= {path.name for path in Path(folder).iterdir()}


def test_what_fails_leaves_nothing_behind(predictor, frames, tmp_path):
    out = tmp_path / "out"

    def cancel(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_film(predictor, frames, out, size=SIZE, progress=cancel)
    (frames / "9.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"9\.png"):
        write_film(predictor, frames, out, size=SIZE)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kind": "gif"}, "unknown kind of film 'gif'"),
        ({"every": 0}, "must be at least 1"),
        ({"most": 0}, "must be at least 1"),
        ({"cell": 9}, "cell from 32 to 512"),
        ({"fps": 0}, r"fps must be from 0\.1 to 60, got 0"),
        ({"fps": float("nan")}, "fps must be"),
        ({"scale": "map"}, "one scale for all"),
        ({"scale": (3, 1)}, "two finite ends"),
        ({"cmap": "jets"}, "unknown colour map 'jets'"),
        ({"layer": 2}, "no layer 2"),
        ({"tokens": [16]}, "no token 16"),
        ({"tokens": [1, -15]}, "different ones"),
        ({"tokens": []}, "one or more"),
    ],
)
def test_options_that_cannot_work_are_one_line(predictor, frames, tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason):
        write_film(predictor, frames, tmp_path / "out", size=SIZE, **options)
    assert not any((tmp_path / "out").glob("*"))
