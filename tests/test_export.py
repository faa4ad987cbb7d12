import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vtviz import render
from vtviz.errors import ConfigError, DataError
from vtviz.export import name_results, segmentation_files, write_extraction, write_segmentation
from vtviz.files import write
from vtviz.predictor import Predictor
from vtviz.token_grid import grid
from vtviz.tokens import TokenMaps


@pytest.fixture(scope="module")
def maps(tiny_model, chelsea):
    return Predictor(tiny_model(num_tokens=4)).extract(chelsea[:150, :200], size=96)


OVERLAYS = [f"overlays/block0_token{t:02d}.png" for t in range(4)] + [
    f"overlays/block1_token{t:02d}.png" for t in range(2)
]
ALL = {"maps.npz", "manifest.json", "panel.png", *OVERLAYS}


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def read(path):
    return np.array(Image.open(path))


def test_everything_is_written_and_reported(maps, tmp_path):
    written = write_extraction(maps, tmp_path / "new" / "cat")
    assert set(written) == files(tmp_path / "new" / "cat") == ALL
    assert all(path == tmp_path / "new" / "cat" / name for name, path in written.items())


def test_arrays_come_back_bit_for_bit(maps, tmp_path):
    write_extraction(maps, tmp_path)
    loaded = TokenMaps.load(tmp_path)
    for ours, theirs in zip(maps.layers, loaded.layers, strict=True):
        assert np.array_equal(ours.coefficients, theirs.coefficients)
    assert np.array_equal(maps.logits, loaded.logits)


@pytest.mark.parametrize(
    "options", [{}, {"align": "resize", "cmap": "viridis", "scale": (0.5, 4.0)}, {"scale": "map"}], ids=str
)
def test_pictures_are_those_that_render_draws(maps, tmp_path, options):
    written = write_extraction(maps, tmp_path, **options)
    assert np.array_equal(read(written["panel.png"]), grid(maps, **options))
    assert np.array_equal(read(written[OVERLAYS[3]]), render.overlay(maps, 0, 3, **options))
    assert np.array_equal(read(written[OVERLAYS[-1]]), render.overlay(maps, 1, 1, **options))
    assert read(written[OVERLAYS[0]]).shape == (150, 200, 3)


def test_an_earlier_extraction_is_replaced_and_other_files_stay(maps, tmp_path, tiny_model, chelsea):
    write_extraction(maps, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "overlays" / "mine.png").write_bytes(b"mine")
    fewer = Predictor(tiny_model(num_tokens=4)).extract(chelsea[:150, :200], size=96, layers=[1])
    write_extraction(fewer, tmp_path)
    mine = {"notes.txt", "overlays/mine.png"}
    assert files(tmp_path) == {"maps.npz", "manifest.json", "panel.png", *OVERLAYS[4:]} | mine
    write_extraction(maps, tmp_path, pictures=False)  # no picture of other maps may stay behind
    assert files(tmp_path) == {"maps.npz", "manifest.json"} | mine


def test_a_strangers_manifest_does_not_make_a_folder_ours(maps, tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "web app"}')
    (tmp_path / "image.png").write_bytes(b"theirs")
    write_extraction(maps, tmp_path, pictures=False)
    assert (tmp_path / "image.png").read_bytes() == b"theirs"


def test_the_photo_is_not_written_over_by_whichever_path_it_is_reached(maps, tmp_path, monkeypatch):
    photo = tmp_path / "photos" / "panel.png"
    photo.parent.mkdir()
    photo.write_bytes(b"mine")
    (tmp_path / "link").symlink_to(photo.parent)
    monkeypatch.chdir(photo.parent)
    for source, folder in ((photo, "."), ("panel.png", photo.parent), (photo, tmp_path / "link"), (photo, "../photos")):
        with pytest.raises(ConfigError, match=r"panel\.png is one of the images and would be lost"):
            write_extraction(replace(maps, source=str(source)), folder)
        assert files(photo.parent) == {"panel.png"}
    assert photo.read_bytes() == b"mine"


def test_a_failure_leaves_the_earlier_extraction_whole(maps, tmp_path):
    write_extraction(maps, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(ConfigError, match="unknown colour map 'jett'"):
        write_extraction(maps, tmp_path, cmap="jett")
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    assert TokenMaps.load(tmp_path).model == maps.model


def test_pictures_need_the_image_and_arrays_do_not(maps, tmp_path):
    write_extraction(maps, tmp_path / "first")
    without = TokenMaps.load(tmp_path / "first")
    with pytest.raises(ConfigError, match="do not hold their image"):
        write_extraction(without, tmp_path / "second")
    assert not files(tmp_path / "second")
    assert set(write_extraction(without, tmp_path / "third", pictures=False)) == {"maps.npz", "manifest.json"}


def test_a_layer_named_twice_is_written_once(tiny_model, chelsea, tmp_path):
    twice = Predictor(tiny_model(num_tokens=4)).extract(chelsea[:64, :64], size=64, layers=[1, -1])
    assert set(write_extraction(twice, tmp_path)) == files(tmp_path)
    assert np.array_equal(TokenMaps.load(tmp_path).layers[0].coefficients, twice.layers[0].coefficients)


def test_a_file_in_the_way_is_one_line(maps, tmp_path):
    (tmp_path / "cat").write_text("")
    for folder in (tmp_path / "cat", tmp_path / "cat" / "inside"):
        with pytest.raises(DataError, match=r"cat.*: cannot write: ") as error:
            write_extraction(maps, folder)
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def segmentation(tiny_model, chelsea):
    return Predictor(tiny_model("vt_fpn_resnet18")).segment(chelsea[:100, :80], size=64)


def test_a_segmentation_is_three_files_beside_whatever_else_is_there(segmentation, tmp_path):
    (tmp_path / "cat.json").write_text("old")
    (tmp_path / "dog.json").write_text("{}")
    written = write_segmentation(segmentation, tmp_path, "cat")
    assert list(written) == ["cat.png", "cat_overlay.png", "cat.json"]
    assert files(tmp_path) == {*written, "dog.json"}
    assert np.array_equal(read(written["cat.png"]), segmentation.labels)
    assert read(written["cat_overlay.png"]).shape == (100, 80, 3)
    assert json.loads(written["cat.json"].read_text()) == segmentation.to_dict()


def test_a_long_name_leaves_room_for_the_endings_and_the_writers_own(segmentation, tmp_path):
    names = name_results([f"{'猫' * 82}.png"] * 12, "_overlay")
    for ending in segmentation_files(names[-1]):
        write(tmp_path / ending, "")
    assert set(write_segmentation(segmentation, tmp_path, names[-1])) == files(tmp_path)


def test_a_segmentation_that_cannot_be_written_leaves_nothing(segmentation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: cannot write: ") as error:
        write_segmentation(segmentation, tmp_path / "file", "cat")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="opacity"):
        write_segmentation(segmentation, tmp_path / "new", "cat", opacity=-1)
    assert not files(tmp_path / "new")


def test_a_segmentation_is_not_written_over_its_photo(tiny_model, chelsea, tmp_path):
    photo = tmp_path / "cat_overlay.png"
    Image.fromarray(chelsea[:100, :80]).save(photo)
    before = photo.read_bytes()
    segmentation = Predictor(tiny_model("vt_fpn_resnet18")).segment(photo, size=64)
    with pytest.raises(ConfigError, match=r"cat_overlay\.png is one of the images and would be lost"):
        write_segmentation(segmentation, tmp_path, "cat")
    assert files(tmp_path) == {"cat_overlay.png"}
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["a/cat.jpg", "b/cat.png", "CAT.gif", "cat-2.jpg"], ["cat", "cat-2", "CAT-3", "cat-2-2"]),
        (["IMG 1.final.jpg", "köter_ñ.webp", "日本.png"], ["IMG 1.final", "köter_ñ", "日本"]),
        (["..jpg", ".hidden", "a:b*c?.png", "x\ny.png"], ["image", "hidden", "a_b_c_", "x_y"]),
        (["...", " .jpg", "trailing. .png"], ["image", "image-2", "trailing"]),
        ([f"{'long' * 60}.png"], ["long" * 25]),
        ([f"{'猫' * 82}.png", f"é{'猫' * 82}.png"], ["猫" * 66, "é" + "猫" * 66]),
    ],
)
def test_names_are_safe_and_unique(sources, names):
    assert name_results(sources) == names


def test_no_name_is_another_ones_name_with_an_ending():
    sources = ["cat.jpg", "cat_overlay.jpg", "x_overlay.png", "x.png", "cat.png"]
    assert name_results(sources) == ["cat", "cat_overlay", "x_overlay", "x", "cat-2"]
    assert name_results(sources, "_overlay") == ["cat", "cat_overlay-2", "x_overlay", "x-2", "cat-2"]
