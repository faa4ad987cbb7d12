from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from vtviz.data.segmentation import IGNORE, open_segmentation
from vtviz.errors import ConfigError, DataError
from vtviz.explain import dissection
from vtviz.explain.dissection import best_token, dissect, token_iou, untrained_twin
from vtviz.explain.tallies import resample_maps
from vtviz.models.registry import build_model
from vtviz.predictor import Predictor
from vtviz.statistics import map_overlaps

SIZE = 64


@pytest.fixture(scope="module")
def predictor(tiny_model):
    return Predictor(tiny_model())


@pytest.fixture(scope="module")
def photos(chelsea, coffee, astronaut) -> dict[str, np.ndarray]:
    return {
        "cat": chelsea[40:200, 60:260],
        "cup": coffee[100:260, 100:300],
        "sub/person": astronaut[:200, 100:260],
        "sub/suit": astronaut[200:380, 100:300],
    }


@pytest.fixture
def folder(tmp_path, photos):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name, photo in photos.items():
        Image.fromarray(photo).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


@pytest.fixture
def outlined(tmp_path, photos, predictor):
    """The same photos; class 1 is the region of token 3, class 2 the middle of the rest, and a rim is ignored."""
    root = tmp_path / "outlined"
    for name in ("images", "masks"):
        (root / "val" / name).mkdir(parents=True)
    (root / "classes.txt").write_text("rest\nthree\nmiddle\nnowhere\n")
    for i, photo in enumerate(map(np.ascontiguousarray, photos.values())):
        mask = (predictor.extract(photo, size=SIZE).at_image_size(0, 3) > 1).astype(np.uint8)
        middle = np.zeros_like(mask)
        middle[60:120, 60:120] = 2
        mask = np.where(mask == 1, mask, middle)
        mask[:5] = IGNORE
        Image.fromarray(photo).save(root / "val" / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "val" / "masks" / f"{i}.png")
    return root


def test_statistics_are_means_over_the_photos(predictor, folder, photos):
    atlas = dissect(predictor, folder, size=SIZE, seed=3)
    assert (atlas.data.name, atlas.data.n, atlas.masks, atlas.skipped, atlas.size) == ("photos", 4, None, 0, SIZE)
    assert [layer.name for layer in atlas.layers] == ["block0", "block1"]
    twin = untrained_twin(predictor, 3)
    for network, which in ((predictor, "trained"), (twin, "untrained")):
        seen = [network.extract(photo, size=SIZE) for photo in photos.values()]
        for index, layer in enumerate(atlas.layers):
            statistics = [maps.layers[index].statistics() for maps in seen]
            found = getattr(layer, which)
            np.testing.assert_allclose(found.peak, np.mean([s.token_peak for s in statistics], axis=0), rtol=1e-5)
            np.testing.assert_allclose(
                found.entropy, np.mean([s.token_entropy_normalized for s in statistics], axis=0), rtol=1e-5
            )
            each = [maps.layers[index].of_head() for maps in seen]
            np.testing.assert_allclose(found.overlap, np.mean([map_overlaps(m, m) for m in each], axis=0), rtol=1e-5)
            others = found.overlap[~np.eye(len(found.overlap), dtype=bool)]
            assert found.redundancy == pytest.approx(others.mean())
            assert set(found.dead) == set(np.flatnonzero(found.peak < 1.5))
    shuffled = atlas.layers[0].shuffled_overlap
    assert shuffled.shape == (16, 16)
    assert shuffled.min() > 0
    assert np.diag(shuffled).max() < 1  # of two photos even a token's own maps differ


def test_the_overlap_by_chance_is_that_with_the_photo_before(predictor, folder, photos):
    atlas = dissect(predictor, folder, size=SIZE, seed=5)
    names = sorted(photos)  # of files in one folder and its subfolder, as paths are sorted
    order = [names[i] for i in np.random.default_rng(5).permutation(4)]
    for index, layer in enumerate(atlas.layers):
        maps = [predictor.extract(photos[name], size=SIZE).layers[index].of_head() for name in order]
        pairs = [map_overlaps(now, resample_maps(before, now.shape[1:])) for before, now in pairwise(maps)]
        np.testing.assert_allclose(layer.shuffled_overlap, np.mean(pairs, axis=0), rtol=1e-5)


def test_a_map_on_another_grid_is_still_a_share(predictor, photos):
    maps = predictor.extract(photos["cat"], size=SIZE).layers[0].of_head()
    for shape in ((3, 5), (9, 4), (1, 1)):
        assert maps.shape[1:] != shape
        drawn = resample_maps(maps, shape)
        assert drawn.shape == (len(maps), *shape)
        np.testing.assert_allclose(drawn.sum(axis=(1, 2)), 1, rtol=1e-5)
    uniform = np.full((1, 4, 6), 1 / 24, np.float32)
    np.testing.assert_allclose(resample_maps(uniform, (2, 3)), 1 / 6, rtol=1e-5)


def test_each_token_has_the_photos_that_it_peaks_on_most(predictor, folder, photos):
    atlas = dissect(predictor, folder, size=SIZE, photos=3)
    seen = {f"{name}.png": predictor.extract(photo, size=SIZE) for name, photo in photos.items()}
    for index, layer in enumerate(atlas.layers):
        for token, peaks in enumerate(layer.photos):
            order = sorted(seen, key=lambda name: -seen[name].times_uniform(index)[token].max())
            assert [peak.file for peak in peaks] == order[:3]
            for peak in peaks:
                maps = seen[peak.file]
                values = maps.times_uniform(index)[token]
                assert peak.peak == pytest.approx(values.max(), rel=1e-5)
                # the place is where the drawn map is brightest
                drawn = maps.at_image_size(index, token)
                height, width = drawn.shape
                y, x = int(peak.y * height - 1e-6), int(peak.x * width - 1e-6)
                assert drawn[y, x] > 0.8 * drawn.max()


def test_a_token_covers_its_own_region_and_nothing_does_so_by_chance(predictor, outlined):
    atlas = dissect(predictor, outlined, masks=outlined, size=SIZE)
    assert atlas.masks.classes == ("rest", "three", "middle", "nowhere")
    assert (atlas.data.n, atlas.masks.n) == (4, 4)
    assert sum(atlas.masks.share) == pytest.approx(1)
    assert atlas.masks.share[3] == 0
    for layer in atlas.layers:
        for measure in (layer.classes.iou, layer.classes.untrained, layer.classes.shuffled):
            assert measure.shape == (len(layer.photos), 4)
            assert measure.min() >= 0
            assert measure.max() <= 1
            assert not measure[:, 3].any()
    classes = atlas.layers[0].classes
    assert classes.iou[3, 1] == 1
    assert classes.shuffled[3, 1] < 0.7
    assert classes.untrained[:, 1].max() < 0.7
    assert atlas.token_names(0)[3] == "three"
    assert set(atlas.token_names(0, margin=1.0)) == {None}
    dataset = open_segmentation(outlined, "val")
    at_own_size = Predictor(predictor.model, preprocessing=replace(predictor.preprocessing, size=SIZE))
    for c in range(4):
        np.testing.assert_allclose(classes.iou[:, c], token_iou(at_own_size, dataset, [c]), atol=1e-6)


def test_shuffled_masks_are_those_of_the_photo_before(predictor, outlined):
    """Recomputed from scratch, in the order that the seed gives."""
    atlas = dissect(predictor, outlined, masks=outlined, size=SIZE, seed=5)
    dataset = open_segmentation(outlined, "val")
    order = [int(i) for i in np.random.default_rng(5).permutation(4)]
    both = either = 0
    for i, before in zip(order, [order[-1], *order], strict=False):
        image, other = dataset[i][0], dataset[before][1].numpy()
        region = predictor.extract(image, size=SIZE).at_image_size(0, 3) > 1
        rows, columns = (np.arange(n) * m // n for n, m in zip(region.shape, other.shape, strict=True))
        other = other[np.ix_(rows, columns)]
        both += ((other == 1) & region).sum()
        either += (((other == 1) | region) & (other != IGNORE)).sum()
    assert atlas.layers[0].classes.shuffled[3, 1] == pytest.approx(both / either, abs=1e-6)


def test_masks_of_another_set_count_for_the_classes_alone(predictor, folder, outlined):
    files = sorted((outlined / "val" / "images").iterdir())
    files[0].unlink()
    (outlined / "val" / "masks" / "0.png").unlink()
    atlas = dissect(predictor, folder, masks=outlined, size=SIZE)
    alone = dissect(predictor, folder, size=SIZE)
    assert (atlas.data.n, atlas.masks.n, atlas.masks.name) == (4, 3, "outlined")
    for ours, other in zip(atlas.layers, alone.layers, strict=True):
        np.testing.assert_allclose(ours.trained.peak, other.trained.peak)
        assert ours.photos == other.photos
    # large masks are sampled down: areas stay
    assert atlas.layers[0].classes.iou[3, 1] == 1


def test_large_masks_are_sampled(predictor, outlined, monkeypatch):
    whole = dissect(predictor, outlined, masks=outlined, size=SIZE)
    monkeypatch.setattr(dissection, "MOST_ROWS", 64)
    sampled = dissect(predictor, outlined, masks=outlined, size=SIZE)
    np.testing.assert_allclose(sampled.layers[0].classes.iou, whole.layers[0].classes.iou, atol=0.03)
    np.testing.assert_allclose(sampled.masks.share, whole.masks.share, atol=0.02)


def test_a_levels_tokens_are_dissected_alike(tiny_model, outlined):
    atlas = dissect(Predictor(tiny_model("vt_fpn_resnet18")), outlined, masks=outlined, size=SIZE, photos=2)
    assert [layer.name for layer in atlas.layers] == ["p2", "p3", "p4", "p5"]
    assert [len(layer.photos) for layer in atlas.layers] == [8] * 4


def test_it_can_be_watched_cancelled_and_done_again(predictor, folder):
    calls = []
    first = dissect(predictor, folder, size=SIZE, limit=3, seed=2, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert dissect(predictor, folder, size=SIZE, limit=3, seed=2).to_dict() == first.to_dict()
    assert dissect(predictor, folder, size=SIZE, limit=3, seed=3).to_dict() != first.to_dict()

    def cancel(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dissect(predictor, folder, size=SIZE, progress=cancel)


def test_photos_that_cannot_be_read_are_counted(predictor, folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xffnothing")
    atlas = dissect(predictor, folder, size=SIZE)
    assert (atlas.data.n, atlas.skipped) == (4, 1)
    for name in ("cat", "cup", "sub/person"):
        (folder / f"{name}.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="4 of 5 photos cannot be read"):
        dissect(predictor, folder, size=SIZE)


def test_what_cannot_be_dissected(predictor, folder, tmp_path, tiny_model):
    with pytest.raises(ConfigError, match="without tokens"):
        dissect(Predictor(tiny_model("resnet18")), folder)
    with pytest.raises(ConfigError, match="photos must be at least 1"):
        dissect(predictor, folder, photos=0)
    with pytest.raises(ConfigError, match="threshold"):
        dissect(predictor, folder, threshold=float("nan"))
    with pytest.raises(DataError, match="at least 2"):
        dissect(predictor, folder, limit=1)
    with pytest.raises(DataError, match="at least 1 photo, got 0"):
        dissect(predictor, folder, limit=0)
    with pytest.raises(DataError, match="no data folder"):
        dissect(predictor, tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no layout"):
        dissect(predictor, folder, masks=folder)


def test_a_twin_has_weights_of_its_own_and_leaves_the_random_numbers_alone(predictor):
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    one, same, other = (untrained_twin(predictor, seed) for seed in (0, 0, 1))
    assert torch.rand(1) == wanted
    states = [twin.model.state_dict() for twin in (one, same, other, predictor)]
    key = "backbone.conv1.weight"
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])
    assert not torch.equal(states[0][key], states[3][key])
    assert not one.model.training


def test_twins_made_at_once_are_those_made_alone(predictor):
    alone = [untrained_twin(predictor, seed).model.state_dict() for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        twins = list(pool.map(lambda seed: untrained_twin(predictor, seed).model.state_dict(), [0, 1, 2, 3] * 3))
    for i, twin in enumerate(twins):
        assert all(torch.equal(twin[key], value) for key, value in alone[i % 4].items())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vt_resnet18", "vt_fpn_resnet18", "panoptic_fpn_resnet18"])
def test_a_twin_has_the_weights_that_its_seed_gives_pytorch(name):
    """Nothing is initialised past the twin's own generator."""
    model = build_model(name, num_classes=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = build_model(name, num_classes=3).state_dict()
    twin = untrained_twin(Predictor(model.eval()), 3).model.state_dict()
    assert all(torch.equal(twin[key], value) for key, value in expected.items())


def test_limits_below_one_are_told(predictor, outlined):
    dataset = open_segmentation(outlined, "val")
    for limit in (0, -1):
        with pytest.raises(ConfigError, match=f"at least 1 image, got {limit}"):
            token_iou(predictor, dataset, [1], limit=limit)


# --- one region, one token


@pytest.fixture
def regions(tmp_path, chelsea, coffee, predictor):
    """Photos whose masks are the region of one token (3) of the tiny model, with a rim that is to be ignored."""
    (tmp_path / "classes.txt").write_text("background\nregion\n")
    for split, photos in (("train", [chelsea, coffee]), ("val", [coffee[:, ::-1]])):
        for name in ("images", "masks"):
            (tmp_path / split / name).mkdir(parents=True)
        for i, whole in enumerate(photos):
            photo = np.ascontiguousarray(whole[:160, :200])
            mask = (predictor.extract(photo).at_image_size(0, 3) > 1).astype(np.uint8)
            mask[:5] = IGNORE
            Image.fromarray(photo).save(tmp_path / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{i}.png")
    return tmp_path


def test_a_token_covers_its_own_region_exactly(predictor, regions):
    train = open_segmentation(regions, "train")
    done = []
    iou = token_iou(predictor, train, [1], progress=lambda *call: done.append(call))
    assert iou.shape == (16,)
    assert iou[3] == 1
    assert (np.delete(iou, 3) < 1).all()
    assert done == [(1, 2), (2, 2)]
    result = best_token(predictor, train, open_segmentation(regions, "val"), [1])
    assert (result.layer, result.token, result.iou, result.chosen_iou, result.n) == ("block0", 3, 1, 1, 1)


def test_a_token_is_chosen_on_one_set_and_scored_on_the_other(predictor, regions):
    train, val = (open_segmentation(regions, split) for split in ("train", "val"))
    chosen, scored = (token_iou(predictor, dataset, [0]) for dataset in (train, val))
    result = best_token(predictor, train, val, [0])
    assert result.token == chosen.argmax()
    assert (result.chosen_iou, result.iou) == (chosen.max(), scored[result.token])
    assert result.chosen_iou != result.iou


def test_iou_is_over_all_pixels_that_are_known(predictor, regions):
    train = open_segmentation(regions, "train")
    both = either = 0
    for image, mask in (train[0], train[1]):
        region = predictor.extract(image).at_image_size(0, 7) > 2
        inside, known = mask.numpy() == 1, mask.numpy() != IGNORE
        both += (region & inside & known).sum()
        either += ((region | inside) & known).sum()
    assert token_iou(predictor, train, [1], threshold=2)[7] == pytest.approx(both / either)
    # background and region together are everything: a token covers just the share of pixels that it is above uniform on
    everything = token_iou(predictor, train, [0, 1], limit=1)
    region = (predictor.extract(train[0][0]).at_image_size(0, 0) > 1)[5:]
    assert everything[0] == pytest.approx(region.mean())


def test_a_later_layer_has_half_as_many(predictor, regions):
    assert token_iou(predictor, open_segmentation(regions, "val"), [1], layer=1).shape == (8,)


def test_what_cannot_be_asked(predictor, regions, tiny_model):
    train = open_segmentation(regions, "train")
    with pytest.raises(ConfigError, match="at least one class"):
        token_iou(predictor, train, [])
    with pytest.raises(ConfigError, match="no layer 5"):
        token_iou(predictor, train, [1], layer=5)
