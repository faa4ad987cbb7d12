import copy
import dataclasses
import gc
import hashlib
import json
import weakref

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from PIL import Image

from vtviz import geometry
from vtviz.errors import ConfigError, DataError
from vtviz.hooks import HOOKED, install_hooks, record
from vtviz.images import LIMITS
from vtviz.models.visual_transformer import Tokenizer
from vtviz.predictor import Predictor
from vtviz.tokens import LayerMaps, Prediction, TokenMaps, layer_maps, map_statistics, topk

ARRAYS = ("coefficients", "tokens_in", "tokens_out", "attention", "projector")


@pytest.fixture
def model(tiny_model):
    return tiny_model()


@pytest.fixture
def x():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def maps(tiny_model, chelsea) -> TokenMaps:
    return Predictor(tiny_model(), classes=["cat", "<dog>", "c", "d", "e"]).extract(chelsea)


# hooks


def hooks_of(model) -> list[int]:
    return [len(m._forward_hooks) for m in model.modules() if isinstance(m, HOOKED)]


def test_hooks_are_put_on_once_and_copied_with_the_model(model):
    assert set(hooks_of(model)) == {0}
    for _ in range(3):
        install_hooks(model)
    assert set(hooks_of(model)) == {1}
    twin = copy.deepcopy(model)
    install_hooks(twin)
    assert set(hooks_of(twin)) == {1}


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("vt_resnet18", "counts"),
        ("vt_resnet34", "no_transformer"),
        ("vt_resnet18", "no_dynamic"),
        ("vt_fpn_resnet18", None),
    ],
)
def test_hooks_record_what_the_model_returns_without_them(tiny_model, x, name, preset):
    model = tiny_model(name, preset)
    with torch.no_grad():
        plain = model(x)
        with record(model) as recorder:
            recorded = model(x)
        returned, blocks = model(x, return_maps=True)
    assert torch.equal(plain, recorded)
    assert torch.equal(plain, returned)
    layers = recorder.layers()
    assert len(layers) == len(blocks) == len(model.token_strides)
    for layer, block in zip(layers, blocks, strict=True):
        assert layer.projector is not None or block.projector is None
        for ours, theirs in ((layer.tokenizer, block.tokenizer), (layer.transformer, block.transformer)):
            assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_nothing_is_kept_without_a_recorder(model, x):
    install_hooks(model)
    kept = []
    first = next(m for m in model.modules() if isinstance(m, Tokenizer))
    first.register_forward_hook(lambda _m, _i, out: kept.append(weakref.ref(out.coefficients)))
    with torch.no_grad():
        model(x)
        gc.collect()
        assert kept[0]() is None
        with record(model) as recorder:
            model(x)
        assert kept[1]() is not None
        model(x)  # the recorder no longer listens
    assert recorder.layers()[0].tokenizer.coefficients is kept[1]()
    del recorder
    gc.collect()
    assert kept[1]() is None


def test_a_recorder_hears_its_own_model_only_also_after_an_error(model, tiny_model, x):
    other = tiny_model(num_tokens=8)
    install_hooks(other)
    with torch.no_grad(), record(model) as outer:
        other(x)
        assert outer.layers() == []
        with pytest.raises(RuntimeError), record(other) as inner:
            other(x[:, :2])
        assert inner.layers() == []
        model(x)
        model(x[:1])  # the last forward pass counts
    assert [layer.tokenizer.coefficients.shape[0] for layer in outer.layers()] == [1, 1]


def test_recording_keeps_the_graph_for_training(model, x):
    model.train()
    with record(model) as recorder:
        model(x)
    recorder.layers()[1].tokenizer.coefficients.square().sum().backward()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


# layers


def test_layer_arrays_mean_what_they_say(maps):
    static, dynamic = maps.layers
    h, w = (n // 16 for n in maps.geometry.input)
    assert (static.name, static.stride, dynamic.name) == ("block0", 16, "block1")
    assert static.coefficients.shape == (1, 16, h, w)
    assert dynamic.coefficients.shape == (4, 8, h, w)
    assert (static.num_tokens, static.num_heads, static.kept) == (16, 1, 0)
    assert (dynamic.num_tokens, dynamic.num_heads, dynamic.kept) == (8, 4, 8)
    for layer in maps.layers:
        for name in ARRAYS:
            array = getattr(layer, name)
            assert array is None or (array.dtype == np.float32 and array.flags.c_contiguous)
        assert layer.coefficients.min() >= 0
        np.testing.assert_allclose(layer.coefficients.sum((2, 3)), 1, atol=1e-5)
        assert layer.tokens_in.shape == layer.tokens_out.shape == (16, 64)
        assert layer.attention.shape == (4, 16, 16)
        np.testing.assert_allclose(layer.attention.sum(2), 1, atol=1e-5)
        assert layer.error < 1e-5
    np.testing.assert_allclose(static.projector.sum(1), 1, atol=1e-5)
    assert static.projector.shape == (4, 16, h, w)
    assert dynamic.projector is None
    # Eq. 5: the first half becomes filters, the second half stays in front of the new tokens
    np.testing.assert_array_equal(dynamic.tokens_in[:8], static.tokens_out[8:])


def test_error_compares_the_exported_map_with_what_the_model_gathered(model, x):
    with torch.no_grad():
        _, blocks = model(x, return_maps=True)
    layer = blocks[0][2:5]
    assert layer_maps([layer], ["a"], [16], 1)[0].error < 1e-5
    turned = layer[0]._replace(coefficients=layer[0].coefficients.flip(-1))
    gathered = np.einsum("hcyx,hlyx->hcl", layer[0].values[1].numpy(), turned.coefficients[1].numpy())
    expected = np.abs(gathered - layer[0].gathered[1].numpy()).max()
    assert expected > 1e-2
    assert layer_maps([(turned, *layer[1:])], ["a"], [16], 1)[0].error == pytest.approx(expected, rel=1e-4)
    for sign in (1, -1):  # too much or too little: both are off
        off = layer[0]._replace(gathered=layer[0].gathered + sign)
        assert layer_maps([(off, *layer[1:])], ["a"], [16], 1)[0].error == pytest.approx(1, abs=1e-4)


def test_times_uniform_and_heads(maps):
    layer = maps.layers[1]
    cells = layer.coefficients.shape[2] * layer.coefficients.shape[3]
    assert maps.times_uniform(-1).dtype == np.float32
    np.testing.assert_allclose(maps.times_uniform(1).mean((1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(maps.times_uniform(1, 3), layer.coefficients[3] * cells, rtol=1e-6)
    heads = np.mean([maps.times_uniform(1, head) for head in range(4)], axis=0)
    np.testing.assert_allclose(maps.times_uniform(1), heads, rtol=1e-5)
    assert layer.statistics(2).peak == pytest.approx(maps.times_uniform(1, 2).max((1, 2)).mean(), rel=1e-5)


def test_at_image_size(maps, chelsea):
    drawn = maps.at_image_size(0, -1)
    assert drawn.shape == chelsea.shape[:2]
    assert drawn.dtype == np.float32
    expected = geometry.upsample(maps.times_uniform(0)[15], maps.geometry, stride=16)
    np.testing.assert_array_equal(drawn, expected)
    assert not np.array_equal(drawn, maps.at_image_size(0, 15, align="resize"))
    assert not np.array_equal(maps.at_image_size(1, 0), maps.at_image_size(1, 0, head=0))
    np.testing.assert_array_equal(maps.at_image_size(-2, -16, -1), maps.at_image_size(0, 0, 0))  # the first of all


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((2, 0), "there is no layer 2: this one has 2"),
        ((-3, 0), "no layer -3"),
        ((0, -17), "no token -17"),
        ((0, 16), "no token 16"),
        ((0, 0, 1), "no head 1: this one has 1"),
        ((0.0, 0), "layer must be an integer, got 0.0"),
        ((0, "face"), "token must be an integer, got 'face'"),
        ((0, 0, None, "centre"), "unknown alignment 'centre'"),
    ],
)
def test_indices_are_checked(maps, arguments, match):
    with pytest.raises(ConfigError, match=match):
        maps.at_image_size(*arguments)


def test_topk():
    best = topk(np.log(np.array([0.1, 0.6, 0.3], np.float32)), ["a", "b", "c"], 2)
    assert best == [Prediction(1, "b", pytest.approx(0.6)), Prediction(2, "c", pytest.approx(0.3))]
    assert sum(p.probability for p in topk(np.array([1e4, -1e4, 0], np.float32), "abc", 9)) == pytest.approx(1)
    for logits, k in ((np.zeros(3), 0), (np.zeros((3, 2, 2)), 1)):
        with pytest.raises(ConfigError):
            topk(logits, "abc", k)


# statistics


def test_statistics_of_known_maps():
    uniform = np.full((3, 4, 5), 1 / 20, np.float32)
    s = map_statistics(uniform)
    assert (s.peak, s.correlation, s.dead) == (pytest.approx(1), 0.0, 3)
    np.testing.assert_allclose(s.token_entropy, np.log(20), rtol=1e-6)
    np.testing.assert_allclose(s.token_entropy_normalized, 1, rtol=1e-6)
    np.testing.assert_allclose(s.token_top10, 0.1, rtol=1e-6)

    points = np.zeros((2, 4, 5), np.float32)
    points[0, 1, 1] = points[1, 2, 2] = 1
    s = map_statistics(points)
    assert (s.peak, s.dead) == (20, 0)
    assert s.correlation == pytest.approx(np.corrcoef(points.reshape(2, -1))[0, 1])
    np.testing.assert_allclose(s.token_entropy, 0, atol=1e-12)
    np.testing.assert_allclose(s.token_top10, 1)

    assert map_statistics(points[[0, 0]]).correlation == pytest.approx(1)
    assert map_statistics(points[:1]).correlation == 0.0
    one_cell = map_statistics(np.ones((4, 1, 1), np.float32))
    assert (one_cell.peak, one_cell.dead, one_cell.correlation) == (1, 4, 0)
    assert json.loads(json.dumps(s.summary())) == s.summary()


shapes = st.tuples(st.integers(2, 5), st.integers(1, 9), st.integers(1, 9))


@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
@hypothesis.given(
    shapes.flatmap(lambda s: hypothesis.extra.numpy.arrays(np.float32, s, elements=st.floats(-20, 20, width=32)))
)
def test_statistics_stay_within_their_bounds(logits):
    maps = torch.from_numpy(logits).flatten(1).softmax(1).reshape(logits.shape).numpy()
    s = map_statistics(maps)
    cells = maps[0].size
    eps = 1e-4
    assert 1 - eps <= s.peak <= cells + eps
    assert -1 - eps <= s.correlation <= 1 + eps
    assert 0 <= s.dead <= len(maps)
    assert (s.token_entropy >= -eps).all()
    assert (s.token_entropy_normalized <= 1 + eps).all()
    assert ((s.token_top10 >= 0.1 - eps) & (s.token_top10 <= 1 + eps)).all()
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    if (flat.std(1) > 1e-5).all():
        pairs = np.corrcoef(flat)[np.triu_indices(len(maps), 1)]
        assert s.correlation == pytest.approx(pairs.mean(), abs=1e-6)


# files


def equal(a: LayerMaps, b: LayerMaps) -> bool:
    arrays = (np.array_equal(getattr(a, n), getattr(b, n)) for n in ARRAYS if getattr(a, n) is not None)
    return all(arrays) and (a.name, a.stride, a.error) == (b.name, b.stride, b.error)


def test_saved_maps_come_back_bit_for_bit(maps, tmp_path):
    paths = maps.save(tmp_path / "a" / "b")
    assert (
        sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["manifest.json", "maps.npz"] == sorted(paths)[:2]
    )
    back = TokenMaps.load(tmp_path / "a" / "b")
    assert all(equal(a, b) for a, b in zip(maps.layers, back.layers, strict=True))
    assert back.layers[1].projector is None
    np.testing.assert_array_equal(back.logits, maps.logits)
    assert back.image is None
    for name in ("classes", "geometry", "model", "weights", "source", "versions"):
        assert getattr(back, name) == getattr(maps, name), name
    assert back.topk() == maps.topk()
    with pytest.raises(DataError, match="without their image"):
        back.save(tmp_path, image=True)

    maps.save(tmp_path / "c", image=True)
    np.testing.assert_array_equal(TokenMaps.load(tmp_path / "c").image, maps.image)


def test_maps_of_a_large_photo_come_back_with_it(maps, tmp_path):
    """As PNG it may have more bytes than an image that comes in from elsewhere."""
    photo = np.random.default_rng(0).integers(256, size=(2600, 2600, 3), dtype=np.uint8)
    written = dataclasses.replace(maps, image=photo).save(tmp_path, image=True)
    assert written["image.png"].stat().st_size > LIMITS.bytes
    np.testing.assert_array_equal(TokenMaps.load(tmp_path).image, photo)


def test_the_manifest_describes_every_array(maps, tmp_path):
    maps.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    with np.load(tmp_path / "maps.npz") as stored:
        assert set(stored.files) == set(manifest["arrays"])
        for name, entry in manifest["arrays"].items():
            assert entry["shape"] == list(stored[name].shape)
            assert entry["dtype"] == str(stored[name].dtype) == "float32"
            assert entry["unit"]
    assert {"vtviz", "torch"} <= set(manifest["versions"])


def test_a_source_whose_name_is_no_utf8_comes_back(maps, tmp_path):
    odd = dataclasses.replace(maps, source="caf\udce9.png")
    odd.save(tmp_path)
    assert TokenMaps.load(tmp_path).source == odd.source


def replace_manifest(folder, **changes) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def replace_maps(folder, data: bytes) -> None:
    (folder / "maps.npz").write_bytes(data)
    replace_manifest(folder, sha256={"maps.npz": hashlib.sha256(data).hexdigest()})


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda f: (f / "maps.npz").write_bytes(b"x"), "maps.npz: sha256 is not the manifest's"),
        (lambda f: (f / "maps.npz").unlink(), "no maps.npz"),
        (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "not token maps"),
        (lambda f: (f / "manifest.json").write_text("[]"), "not token maps"),
        (lambda f: replace_manifest(f, format="vtviz token maps 9"), "expected 'vtviz token maps 1'"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "not token maps"),
        (lambda f: replace_manifest(f, arrays={}), "not those of the manifest"),
        (lambda f: replace_manifest(f, arrays=[]), "not token maps"),
        (lambda f: replace_maps(f, b""), "not token maps"),
        (lambda f: replace_manifest(f, layers=[{"name": "block7", "stride": 16, "error": 0}]), "not token maps"),
        (lambda f: replace_manifest(f, geometry={}), "not token maps: a geometry has the fields"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(maps, tmp_path, damage, match):
    maps.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=match) as caught:
        TokenMaps.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_image_beside_the_maps_is_refused(maps, tmp_path):
    """It has the photo's size, so that nothing else would tell."""
    written = maps.save(tmp_path, image=True)
    Image.fromarray(maps.image[::-1]).save(written["image.png"])
    with pytest.raises(DataError, match=r"image\.png: sha256 is not the manifest's"):
        TokenMaps.load(tmp_path)


def test_a_photo_is_not_written_over_by_the_one_that_goes_with_its_maps(maps, tmp_path):
    photo = tmp_path / "image.png"
    photo.write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path)
    mine = dataclasses.replace(maps, source=str(photo))
    with pytest.raises(ConfigError, match=r"image\.png is one of the images and would be lost: choose another folder"):
        mine.save(tmp_path / "link", image=True)
    assert (photo.read_bytes(), len(list(tmp_path.iterdir()))) == (b"mine", 2)
    mine.save(tmp_path)
    assert photo.read_bytes() == b"mine"


def test_a_folder_that_cannot_be_made_is_refused(maps, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        maps.save(tmp_path / "file")


def test_notebooks_get_a_table_with_names_escaped(maps):
    shown = dataclasses.replace(maps, source="<script>.jpg")._repr_html_()
    assert shown.count("<tr>") == 3
    assert "&lt;dog&gt;" in shown
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown
    assert "451 × 300" in shown
