import io
import itertools
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vtviz import checkpoints
from vtviz.errors import CheckpointError, ConfigError, DataError
from vtviz.explain.compare import Side, SideLayer, compare, list_epochs, side_of_epoch, side_of_maps
from vtviz.explain.compare_picture import draw_comparison
from vtviz.explain.origin import origin
from vtviz.geometry import Geometry
from vtviz.panels import GAP
from vtviz.predictor import Predictor
from vtviz.statistics import map_overlaps
from vtviz.train.probe import write_probe

SQUARE = Geometry((64, 64), (64, 64), (0, 0), (64, 64))


def blobs(count: int, cells: int = 8, seed: int = 0) -> np.ndarray:
    """Maps (count, cells, cells) in x uniform, each around another place."""
    y, x = np.indices((cells, cells))
    centres = np.random.default_rng(seed).permutation(cells * cells)[:count]
    maps = np.stack([np.exp(-((y - c // cells) ** 2 + (x - c % cells) ** 2) / 3) + 0.01 for c in centres])
    return (maps / maps.mean(axis=(1, 2), keepdims=True)).astype(np.float32)


def side(values: np.ndarray, label: str = "side", geometry: Geometry = SQUARE) -> Side:
    stride = geometry.input[0] // values.shape[1]
    return Side(label, np.zeros((*geometry.original, 3), np.uint8), geometry, (SideLayer("block0", stride, values),))


def test_a_permutation_is_found_again():
    values, order = blobs(6), np.array([3, 0, 5, 1, 4, 2])
    found = compare(side(values, "a"), side(values[order], "b"))
    assert found.labels == ("a", "b")
    (match,) = found.layers
    assert {(p.first, p.second) for p in match.pairs} == {(int(t), i) for i, t in enumerate(order)}
    assert match.mean == pytest.approx(1)
    assert match.chance < 0.7
    assert match.unmatched == ((), ())
    np.testing.assert_allclose(match.overlap, map_overlaps(values / 64, values[order] / 64), rtol=1e-5)


def test_the_matching_is_the_best_of_all():
    ours, theirs = blobs(4, seed=1), blobs(4, seed=2)
    (match,) = compare(side(ours), side(theirs)).layers
    sums = [sum(match.overlap[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(4))]
    assert sum(p.overlap for p in match.pairs) == pytest.approx(max(sums))
    assert match.mean == pytest.approx(max(sums) / 4)
    assert [p.overlap for p in match.pairs] == sorted((p.overlap for p in match.pairs), reverse=True)


def test_what_has_no_partner_is_left_over():
    values = blobs(5)
    (match,) = compare(side(values), side(values[[4, 1]])).layers
    assert [(p.first, p.second) for p in sorted(match.pairs, key=lambda p: p.second)] == [(4, 0), (1, 1)]
    assert match.unmatched == ((0, 2, 3), ())
    (match,) = compare(side(values[:1]), side(values)).layers
    assert match.unmatched == ((), (1, 2, 3, 4))


def test_maps_without_a_place_share_as_much_by_chance():
    flat = np.ones((3, 8, 8), np.float32)
    (match,) = compare(side(flat), side(flat)).layers
    assert match.mean == match.chance == 1
    again = [compare(side(blobs(4, seed=1)), side(blobs(4, seed=2)), seed=s).layers[0].chance for s in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def test_chance_moves_maps_both_ways():
    stripe = np.full((1, 8, 8), 0.1, np.float32)
    stripe[:, :, 2] = 7.3
    for values in (stripe, stripe.transpose(0, 2, 1).copy()):
        (match,) = compare(side(values), side(values)).layers
        assert match.mean == pytest.approx(1)
        assert match.chance < 0.5  # in its place once in eight times


def test_other_grids_images_and_crops_are_laid_over_each_other():
    fine = blobs(4, 16)
    coarse = fine[:, ::2, ::2]  # a receptive field's centre stays where it was: cell i of stride 8 is cell 2 i of 4
    (match,) = compare(side(fine), side(coarse)).layers
    assert all(p.first == p.second for p in match.pairs)
    assert match.mean > 0.85
    other = Geometry((300, 200), (64, 64), (0, 0), (64, 64))
    (match,) = compare(side(fine), side(fine, geometry=other)).layers
    assert match.mean == pytest.approx(1)
    cropped = Geometry((64, 128), (64, 128), (0, 32), (64, 64))
    (match,) = compare(
        side(fine, geometry=replace(cropped, offset=(0, 0), input=(64, 128))), side(fine, geometry=cropped)
    ).layers
    assert match.mean < 0.9
    assert np.isfinite(match.overlap).all()


def test_two_images_and_two_models(tiny_model, chelsea, coffee):
    predictor = Predictor(tiny_model())
    cat, cup = (
        side_of_maps(predictor.extract(photo, size=96), name) for photo, name in ((chelsea, "cat"), (coffee, "cup"))
    )
    found = compare(cat, cup)
    assert [m.names for m in found.layers] == [("block0", "block0"), ("block1", "block1")]
    assert [len(m.pairs) for m in found.layers] == [16, 8]
    same = compare(cat, cat)
    for match in same.layers:
        assert all(p.first == p.second and p.overlap == pytest.approx(1) for p in match.pairs)
    levels = side_of_maps(Predictor(tiny_model("vt_fpn_resnet18")).extract(chelsea, size=96))
    assert levels.label == "VTFPN"
    found = compare(cat, levels)
    assert [m.names for m in found.layers] == [("block0", "p2"), ("block1", "p3")]
    assert [len(m.pairs) for m in found.layers] == [8, 8]
    assert len(found.layers[0].unmatched[0]) == 8
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.to_dict()["layers"][0]["unmatched"][0] == list(found.layers[0].unmatched[0])


def test_token_maps_are_compared_as_they_are(tiny_model, chelsea, coffee):
    predictor = Predictor(tiny_model())
    maps = [predictor.extract(photo, size=64) for photo in (chelsea, coffee)]
    assert compare(*maps).to_dict() == compare(*map(side_of_maps, maps)).to_dict()
    assert compare(maps[0], side_of_maps(maps[1])).to_dict() == compare(*maps).to_dict()


def test_a_comparison_says_of_what_it_is(tiny_model, tiny_card, chelsea, tmp_path):
    Image.fromarray(chelsea).save(tmp_path / "cat.png")
    model = tiny_model()
    predictors = Predictor(model, tiny_card(model, sha256="ab" * 32)), Predictor(model)
    maps = [each.extract(tmp_path / "cat.png", size=64, crop="center") for each in predictors]
    said = compare(*maps).to_dict()["sides"]
    assert said == [origin(each) for each in maps]
    assert [side["weights"] for side in said] == ["ab" * 32, ""]
    assert [side["model"] for side in said] == ["tiny", "VTResNet"]
    assert said[0]["image"] == str(tmp_path / "cat.png")


def test_what_cannot_be_compared_is_one_line(tiny_model, chelsea):
    maps = Predictor(tiny_model()).extract(chelsea, size=64)
    with pytest.raises(ConfigError, match="do not hold their image"):
        compare(maps, replace(maps, image=None))
    with pytest.raises(ConfigError, match="compare takes token maps or an epoch of a run, got ndarray"):
        compare(maps, chelsea)


# --- epochs of a run


@pytest.fixture
def run(tmp_path, tiny_model, tiny_card, chelsea):
    """A run folder after two epochs, of which the second has the first's weights slightly changed."""
    folder = tmp_path / "run"
    model = tiny_model()
    folder.mkdir()
    photo = np.ascontiguousarray(chelsea[:200, :300])
    for epoch in (1, 12):
        checkpoints.save(folder / "last.safetensors", model, tiny_card(model))
        write_probe(folder, Predictor(model, tiny_card(model)), photo, epoch)
        model.backbone.conv1.weight.data *= 1.05
    return folder


def test_epochs_of_a_run_are_compared_on_its_photo(run, tiny_model, tiny_card, chelsea):
    assert list_epochs(run) == [1, 12]
    first, last = side_of_epoch(run, 1), side_of_epoch(run, 12)
    assert (first.label, last.label) == ("run, epoch 1", "run, epoch 12")
    assert side_of_epoch(run, 1, "before").label == "before"
    (said, _) = compare(first, last).sides
    assert said["image"] == str(run / "probe" / "image.png")
    assert (said["model"], said["weights"], said["size"]) == ("tiny", "", [200, 300])  # an epoch's weights are not kept
    maps = Predictor(tiny_model(), tiny_card(tiny_model())).extract(np.ascontiguousarray(chelsea[:200, :300]))
    direct = side_of_maps(maps)
    assert first.geometry == direct.geometry
    assert np.array_equal(first.image, direct.image)
    for ours, theirs in zip(first.layers, direct.layers, strict=True):
        assert (ours.name, ours.stride) == (theirs.name, theirs.stride)
        np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-3, atol=1e-3)
    for match in compare(first, last).layers:
        assert sum(p.first == p.second for p in match.pairs) > 0.7 * len(match.pairs)
        assert match.mean > match.chance


def test_an_epoch_is_named_by_its_run_wherever_one_stands(run, monkeypatch):
    monkeypatch.chdir(run)
    assert side_of_epoch(".", 1).label == "run, epoch 1"


def test_epochs_that_are_not_there_or_damaged(run, tmp_path):
    with pytest.raises(DataError, match="no token maps of epoch 3; it has 2, 1 to 12"):
        side_of_epoch(run, 3)
    with pytest.raises(DataError, match="no token maps of epoch 1; it has none of any"):
        side_of_epoch(tmp_path, 1)
    whole = (run / "probe" / "epoch0012.npz").read_bytes()
    inflated = bytearray(whole)
    inflated[100] ^= 0xFF  # within what is compressed
    headless = io.BytesIO()  # an array's header lacks its closing bracket
    with zipfile.ZipFile(io.BytesIO(whole)) as stored, zipfile.ZipFile(headless, "w") as archive:
        for name in stored.namelist():
            archive.writestr(name, stored.read(name).replace(b"}", b" "))
    for damaged in (b"nothing", inflated, headless.getvalue()):
        (run / "probe" / "epoch0001.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="epoch 1 is damaged"):
            side_of_epoch(run, 1)
    np.savez(run / "probe" / "epoch0001.npz", block0=np.ones((2, 3, 3)))
    with pytest.raises(DataError, match="does not hold the maps of 2 layers"):
        side_of_epoch(run, 1)
    (run / "last.safetensors").unlink()
    with pytest.raises(CheckpointError, match="found none"):
        side_of_epoch(run, 12)
    for read in (list_epochs, lambda run: side_of_epoch(run, 1)):
        with pytest.raises(CheckpointError, match=r"'~nosuchuser/x': Could not determine home directory"):
            read("~nosuchuser/x")


# --- the picture


def test_pairs_stand_one_above_the_other_on_one_scale(chelsea, coffee):
    values = blobs(3)
    wide = Geometry((300, 451), (64, 64), (0, 0), (64, 64))
    first, second = (
        replace(side(values, "one", wide), image=chelsea),
        replace(side(values[[2, 0]], "two"), image=coffee[:64, :64]),
    )
    comparison = compare(first, second)
    picture = np.array(draw_comparison(comparison, first, second, side=100))
    pitch = 100 + GAP
    assert picture.shape[1] > GAP + 4 * pitch  # photo, two pairs, one left over
    heights = [round(100 * 300 / 451), 100]
    assert sum(heights) < picture.shape[0] < sum(heights) + 4 * 30
    left = GAP + 3 * pitch + GAP  # beyond the photo columns stand a gap apart
    alone = picture[26 : 26 + heights[0], left : left + 100]
    empty = picture[26 + heights[0] + 30 : 26 + sum(heights), left : left + 100]
    assert (empty == 255).all()
    assert len(np.unique(alone.reshape(-1, 3), axis=0)) > 100
    other = np.array(draw_comparison(comparison, first, second, side=100, scale=(0, 50)))
    assert other[26 : 26 + heights[0], left : left + 100].mean() < alone.mean()  # bluer: darker


def test_what_cannot_be_drawn(chelsea):
    one = side(blobs(2))
    comparison = compare(one, one)
    with pytest.raises(ConfigError, match="no layer 1"):
        draw_comparison(comparison, one, one, 1)
    with pytest.raises(ConfigError, match="one scale for both"):
        draw_comparison(comparison, one, one, scale="map")
    with pytest.raises(ConfigError, match="unknown colour map"):
        draw_comparison(comparison, one, one, cmap="jets")
