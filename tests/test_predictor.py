import io
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import vtviz
from vtviz import checkpoints, geometry
from vtviz.card import Preprocessing
from vtviz.data.classes import make_palette
from vtviz.errors import CheckpointError, ConfigError, ImageError
from vtviz.predictor import DEFAULT_SEGMENTER, Predictor
from vtviz.tokens import TokenMaps

ARRAYS = ("coefficients", "tokens_in", "tokens_out", "attention", "projector")


@pytest.fixture(scope="module")
def predictor(tiny_model) -> Predictor:
    return Predictor(tiny_model())


def arrays(maps: TokenMaps) -> list[np.ndarray]:
    parts = [getattr(layer, name) for layer in maps.layers for name in ARRAYS]
    return [maps.logits, *(p for p in parts if p is not None)]


def assert_same(a: TokenMaps, b: TokenMaps) -> None:
    pairs = list(zip(arrays(a), arrays(b), strict=True))
    assert len(pairs) > 8
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)
    assert [layer.error for layer in a.layers] == [layer.error for layer in b.layers]
    assert a.geometry == b.geometry


def test_golden_values(predictor, astronaut):
    """The arithmetic of image, geometry, backbone, blocks and head, frozen on one photo and known weights."""
    maps = predictor.extract(astronaut, size=64)
    static, dynamic = maps.layers
    for got, expected in (
        (maps.logits, [-5.28800, 4.37572, -1.43722, 2.77445, -4.18924]),
        (static.coefficients[0, -1].flat[:4], [0.07407, 0.07144, 0.06845, 0.07157]),
        (dynamic.coefficients[0, 0].flat[:4], [0.21871, 0.02297, 0.04496, 0.00083]),
        (static.tokens_out[3, :3], [4.14302, 5.36559, -0.02601]),
        (static.projector[1, 2, 0, :3], [0.05149, 0.05519, 0.04673]),
        (dynamic.attention[1, 2, :3], [0.08403, 0.06531, 0.08851]),
    ):
        np.testing.assert_allclose(np.array(got), expected, atol=1e-4)


def test_every_kind_of_image_gives_the_same_maps(predictor, coffee, tmp_path):
    picture = Image.fromarray(coffee)
    picture.save(tmp_path / "coffee.png")
    expected = predictor.extract(coffee)
    assert expected.source is None
    assert np.array_equal(expected.image, coffee)
    for source in (
        tmp_path / "coffee.png",
        str(tmp_path / "coffee.png"),
        (tmp_path / "coffee.png").read_bytes(),
        picture,
        torch.from_numpy(coffee.copy()).permute(2, 0, 1),
    ):
        assert_same(predictor.extract(source), expected)
    assert predictor.extract(tmp_path / "coffee.png").source == str(tmp_path / "coffee.png")


def test_the_model_gets_the_normalised_image(predictor, chelsea):
    place = geometry.fit(chelsea.shape[:2], size=224, multiple=16)
    x = Preprocessing().normalize(geometry.to_tensor(chelsea, place))[None]
    with torch.no_grad():
        expected = predictor.model(x.contiguous(memory_format=torch.channels_last))[0].numpy()
        plain = predictor.model(x)[0].numpy()
    maps = predictor.extract(chelsea)
    assert maps.geometry == place
    np.testing.assert_array_equal(maps.logits, expected)
    np.testing.assert_allclose(maps.logits, plain, rtol=1e-4, atol=1e-5)  # the layout is for speed alone
    assert predictor.predict(chelsea, k=2) == maps.topk(2)


@pytest.mark.parametrize("name", ["vt_resnet18", "vt_fpn_resnet18"])
def test_hook_free_extraction_gives_the_same_arrays(tiny_model, chelsea, name):
    predictor = Predictor(tiny_model(name))
    maps = predictor.extract(chelsea, size=96)
    assert_same(maps, predictor.extract(chelsea, size=96, hook_free=True))
    assert [layer.name for layer in maps.layers] == (
        ["p2", "p3", "p4", "p5"] if "fpn" in name else ["block0", "block1"]
    )


def test_lists_keep_their_order_and_share_batches_by_size(predictor, chelsea, coffee, astronaut):
    photos = [chelsea, astronaut, coffee[:200], chelsea[:, ::-1], astronaut[::-1], coffee[:1, :1]]
    sizes = []
    handle = predictor.model.register_forward_pre_hook(lambda _m, args: sizes.append(tuple(args[0].shape)))
    try:
        together = predictor.extract(photos, size=96, batch_size=2)
    finally:
        handle.remove()
    assert sorted(s[0] for s in sizes) == [1, 1, 2, 2]
    for photo, maps in zip(photos, together, strict=True):
        assert np.array_equal(maps.image, photo)
        alone = predictor.extract(photo, size=96)
        assert alone.geometry == maps.geometry
        for a, b in zip(arrays(alone), arrays(maps), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3)
    assert len(predictor.extract([])) == 0
    assert isinstance(predictor.extract((chelsea,), size=64), list)
    assert [p[0].index for p in predictor.predict(photos, size=96)] == [m.topk(1)[0].index for m in together]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (3000, 7)])
def test_extreme_shapes(predictor, shape):
    maps = predictor.extract(np.full((*shape, 3), 200, np.uint8))
    assert maps.at_image_size(1, 0).shape == shape
    assert all(32 <= side <= 1024 for side in maps.geometry.input)


def test_options(predictor, chelsea):
    both = predictor.extract(chelsea, size=96)
    last = predictor.extract(chelsea, size=96, layers=[-1])
    assert [layer.name for layer in last.layers] == ["block1"]
    np.testing.assert_array_equal(last.layers[0].coefficients, both.layers[1].coefficients)
    assert [layer.name for layer in predictor.extract(chelsea, size=96, layers=(1, 0)).layers] == ["block1", "block0"]
    cropped = predictor.extract(chelsea, size=96, crop="center")
    assert cropped.geometry.input == (96, 96)
    assert np.isnan(cropped.at_image_size(0, 0)[:, 0]).all()
    for options, match in (
        ({"layers": [2]}, "there is no layer 2"),
        ({"size": 0}, "size must be"),
        ({"crop": "left"}, "crop must be"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=match):
            predictor.extract(chelsea, **options)
    with pytest.raises(ImageError):
        predictor.extract(b"not an image")


def test_a_model_without_tokens_predicts_and_says_why_it_extracts_nothing(tiny_model, chelsea):
    predictor = Predictor(tiny_model("resnet18"))
    assert len(predictor.predict(chelsea, k=3)) == 3
    with pytest.raises(ConfigError, match="ResNet is a model without tokens"):
        predictor.extract(chelsea)
    x = predictor.open(chelsea).input[None]
    hooked, asked = (predictor.forward(x, hook_free=hook_free) for hook_free in (False, True))
    assert hooked[1] == asked[1] == []
    assert torch.equal(hooked[0], asked[0])


def test_a_segmentation_model_extracts_and_says_that_it_has_no_topk(tiny_model, chelsea):
    predictor = Predictor(tiny_model("vt_fpn_resnet18"))
    maps = predictor.extract(chelsea, size=64)
    assert maps.logits.shape == (5, *maps.geometry.input)
    assert all(side % 32 == 0 for side in maps.geometry.input)
    with pytest.raises(ConfigError, match="top-k"):
        predictor.predict(chelsea, size=64)
    assert "p5" in maps._repr_html_()


# segmentation


@pytest.fixture(scope="module")
def segmenter(tiny_model) -> Predictor:
    return Predictor(tiny_model("vt_fpn_resnet18"))


def test_golden_segmentation(segmenter, astronaut):
    """The arithmetic of neck, head and resampling, frozen on one photo and known weights."""
    found = segmenter.segment(astronaut, size=64)
    np.testing.assert_allclose(found.logits[:, 20, 30], [0.66117, 1.89124, -2.36761, 3.13185, 1.42089], atol=1e-3)
    np.testing.assert_allclose(found.areas(), [0.0545, 0.1298, 0, 0.6579, 0.1577], atol=1e-3)


def test_segmentations_keep_their_order_and_share_batches_by_size(segmenter, chelsea, coffee, astronaut):
    photos = [chelsea, astronaut, coffee[:200], chelsea[:, ::-1]]
    together = segmenter.segment(photos, size=96, batch_size=2)
    for photo, found in zip(photos, together, strict=True):
        alone = segmenter.segment(photo, size=96)
        assert isinstance(found, vtviz.Segmentation)
        assert np.array_equal(found.image, photo)
        assert found.labels.shape == photo.shape[:2]
        np.testing.assert_allclose(found.logits, alone.logits, atol=1e-3)
        assert (found.labels == alone.labels).mean() > 0.999
    assert segmenter.segment([]) == []


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (4000, 3000)])
def test_extreme_shapes_are_segmented_and_every_level_is_extracted(segmenter, shape):
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    maps = segmenter.extract(photo, size=64)
    assert [(layer.name, layer.stride) for layer in maps.layers] == [("p2", 4), ("p3", 8), ("p4", 16), ("p5", 32)]
    for layer in maps.layers:
        assert layer.coefficients.shape == (1, 8, *(side // layer.stride for side in maps.geometry.input))
        np.testing.assert_allclose(layer.coefficients.sum((2, 3)), 1, atol=1e-5)
        assert layer.attention.shape == (4, 8, 32)  # over the tokens of all levels
        assert layer.error < 1e-4
    assert maps.at_image_size(-1, 7).shape == shape
    found = segmenter.segment(photo, size=64)
    assert found.labels.shape == shape
    assert found.labels.max() < 5
    assert found.areas().sum() == pytest.approx(1)


def test_the_baseline_segments_too(tiny_model, chelsea):
    found = Predictor(tiny_model("panoptic_fpn_resnet18")).segment(chelsea, size=64, crop="center")
    assert found.geometry.input == (64, 64)
    assert found.labels[0, 0] == 255
    assert found.logits.shape == (5, 64, 64)


def test_a_classifier_does_not_segment(predictor, chelsea):
    with pytest.raises(ConfigError, match=r"^VTResNet is a classifier: it does not segment; predict\(\) works$"):
        predictor.segment(chelsea)
    assert predictor.palette is None


def test_the_palette_is_the_cards_or_made_for_the_classes(tiny_model, tiny_card, chelsea):
    model = tiny_model("vt_fpn_resnet18")
    card = tiny_card(model, model="vt_fpn_resnet18", task="segmentation", classes=("background", "a", "b", "c", "d"))
    made = Predictor(model, card).segment(chelsea, size=64).palette
    assert made == make_palette(card.classes)
    assert made[0] == (0, 0, 0)
    colours = tuple((i, 2 * i, 3 * i) for i in range(5))
    assert Predictor(model, replace(card, palette=colours)).segment(chelsea, size=64).palette == colours
    with pytest.raises(ConfigError, match="5 classes need as many colours, got 4"):
        Predictor(model, replace(card, palette=colours[:4]))


def test_segmenters_by_name(tiny_segmenter, chelsea):
    loaded = vtviz.load_model("segmenter", device="cpu")
    found = vtviz.segment(chelsea, "segmenter", size=64, device="cpu")
    assert np.array_equal(found.labels, loaded.segment(chelsea, size=64).labels)
    assert (found.model, found.weights, found.palette) == ("segmenter", loaded.card.sha256, loaded.card.palette)
    assert set(found.versions) >= {"vtviz", "torch"}
    two = vtviz.segment([chelsea, chelsea[:, :300]], loaded, size=64, crop="center")
    assert [s.labels.shape for s in two] == [(300, 451), (300, 300)]
    with pytest.raises(CheckpointError, match="did you mean 'segmenter'"):
        vtviz.segment(chelsea, "segmentor")
    assert DEFAULT_SEGMENTER.startswith("vt_fpn")


def test_the_numbers_of_classes_and_of_channels_are_checked(tiny_model):
    with pytest.raises(ConfigError, match="VTResNet takes images of 1 channels, and photos have 3"):
        Predictor(tiny_model(in_channels=1))
    with pytest.raises(ConfigError, match="VTResNet has 5 classes, got 2 names"):
        Predictor(tiny_model(), classes=["a", "b"])


# the model is left as found


def state_of(model: torch.nn.Module) -> list:
    flags = [(m.training, len(m._forward_pre_hooks)) for m in model.modules()]
    return flags + [(p.requires_grad, p.grad) for p in model.parameters()] + [torch.is_grad_enabled()]


@pytest.mark.parametrize("hook_free", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_mode_gradients_and_buffers_are_left_as_found(tiny_model, chelsea, hook_free, fails):
    model = tiny_model().train()
    model.backbone.bn1.eval()
    model.backbone.conv1.weight.requires_grad_(False)
    predictor = Predictor(model)
    if fails:
        handle = model.fc.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("boom")))
    before, buffers = state_of(model), {n: b.clone() for n, b in model.named_buffers()}
    generator = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="boom"):
            predictor.extract(chelsea, size=64, hook_free=hook_free)
    else:
        maps = predictor.extract(chelsea, size=64, hook_free=hook_free)
        np.testing.assert_array_equal(maps.logits, Predictor(tiny_model()).extract(chelsea, size=64).logits)
    assert state_of(model) == before
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), generator)
    if fails:
        handle.remove()
    # and what follows trains as if nothing had happened
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert model.fc.weight.grad is not None


def test_a_callers_autocast_does_not_reach_in_and_is_not_spoilt(tiny_model, chelsea):
    predictor = Predictor(tiny_model())
    expected = predictor.extract(chelsea, size=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(predictor.extract(chelsea, size=64), expected)
        predictor.model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert predictor.model.fc.weight.grad.abs().sum() > 0
    with torch.inference_mode():
        assert_same(predictor.extract(chelsea, size=64), expected)


def hammer(predictor: Predictor, photos: list[np.ndarray], *, threads: int, calls: int, size: int) -> int:
    """Extract from many threads on one model; returns how many results equal the serial ones in every bit."""
    expected = [predictor.extract(photo, size=size) for photo in photos]

    def work(seed: int) -> int:
        order = random.Random(seed).choices(range(len(photos)), k=calls)
        for i in order:
            assert_same(predictor.extract(photos[i], size=size), expected[i])
        return len(order)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads)))


def crops(photo: np.ndarray, count: int) -> list[np.ndarray]:
    """Different photos, most of them of one size so that wrong maps would go unnoticed by their shape."""
    return [photo[8 * i : 8 * i + 128, 5 * i : 5 * i + (128 if i % 4 else 192)] for i in range(count)]


def test_threads_on_one_model_get_their_own_maps(predictor, coffee):
    assert hammer(predictor, crops(coffee, 12), threads=8, calls=12, size=64) == 96


@pytest.mark.slow
def test_eight_threads_times_fifty_images(coffee):
    torch.manual_seed(0)
    predictor = Predictor(vtviz.create_model("vt_resnet18", num_classes=109).eval())
    assert hammer(predictor, crops(coffee, 30), threads=8, calls=50, size=224) == 400


# the public functions


def test_models_by_name(tiny_checkpoint, chelsea, monkeypatch):
    assert "tiny" in vtviz.list_models()
    loaded = vtviz.load_model("tiny", device="cpu")
    assert loaded.device.type == "cpu"
    assert loaded.classes == tuple(f"class {i}" for i in range(5))
    maps = vtviz.extract_tokens(chelsea, "tiny", size=64, device="cpu")
    assert_same(maps, loaded.extract(chelsea, size=64))
    assert_same(maps, vtviz.extract_tokens(chelsea, loaded, size=64))
    assert (maps.model, maps.weights, maps.classes) == ("tiny", loaded.card.sha256, loaded.classes)
    assert set(maps.versions) >= {"vtviz", "torch", "numpy", "python"}
    two = vtviz.extract_tokens([chelsea, chelsea[:, :300]], "tiny", layers=[0], size=64, device="cpu")
    assert [len(m.layers) for m in two] == [1, 1]
    with pytest.raises(CheckpointError, match=r"no checkpoint named 'tinny'.*did you mean 'tiny'"):
        vtviz.extract_tokens(chelsea, "tinny")


def test_loaded_models_are_kept_until_their_file_changes(tiny_checkpoint, tiny_model, tiny_card, chelsea, monkeypatch):
    reads = []
    monkeypatch.setattr(checkpoints, "load", lambda *a, load=checkpoints.load, **k: reads.append(a) or load(*a, **k))
    first = vtviz.extract_tokens(chelsea, "tiny", size=64)
    assert_same(vtviz.extract_tokens(chelsea, tiny_checkpoint, size=64), first)
    assert len(reads) == 1
    model = tiny_model(num_tokens=8)
    checkpoints.save(tiny_checkpoint, model, tiny_card(model))
    os.utime(tiny_checkpoint, ns=(1, 1))  # a file system with coarse times would not have noticed yet
    assert vtviz.extract_tokens(chelsea, "tiny", size=64).layers[0].num_tokens == 8
    assert len(reads) == 2


def test_preprocessing_comes_from_the_card(tmp_path, tiny_model, tiny_card, chelsea):
    model = tiny_model()
    card = tiny_card(model, preprocessing=Preprocessing(96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    maps = Predictor(model, card).extract(chelsea)
    place = geometry.fit(chelsea.shape[:2], size=96, multiple=16)
    assert maps.geometry == place
    with torch.no_grad():
        expected = model(geometry.to_tensor(chelsea, place)[None] * 2 - 1)[0].numpy()
    np.testing.assert_allclose(maps.logits, expected, atol=1e-5)


def test_a_half_precision_model_takes_its_own_dtype(tiny_model, chelsea):
    maps = Predictor(tiny_model().to(torch.bfloat16)).extract(chelsea, size=64)
    assert all(a.dtype == np.float32 for a in arrays(maps))
    np.testing.assert_allclose(maps.layers[0].coefficients.sum((2, 3)), 1, atol=1e-5)


def test_maps_of_one_photo_do_not_keep_its_batch(tiny_model, chelsea):
    for each in Predictor(tiny_model()).extract([chelsea] * 3, size=64, batch_size=3):
        for array in arrays(each):
            assert array.base is None
            assert array.flags.c_contiguous


@pytest.mark.parametrize("device", ["nonsense", "meta", torch.device("meta"), "cpu:banana"])
def test_a_device_that_is_not_there_is_one_line(tiny_checkpoint, tiny_model, device):
    for wrong in (lambda: vtviz.load_model("tiny", device=device), lambda: Predictor(tiny_model(), device=device)):
        with pytest.raises(ConfigError, match=f"cannot use device '{device}'"):
            wrong()


def test_png_bytes_from_memory(predictor, chelsea):
    buffer = io.BytesIO()
    Image.fromarray(chelsea).save(buffer, "PNG")
    assert_same(predictor.extract(buffer.getvalue(), size=64), predictor.extract(chelsea, size=64))
