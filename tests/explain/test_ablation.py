import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vtviz import checkpoints, geometry
from vtviz.card import Card
from vtviz.cli import app
from vtviz.errors import ConfigError
from vtviz.explain import ablation
from vtviz.explain.ablation import MODES, ablate, centred_gaussian, mean_tokens
from vtviz.explain.effects import AreaJudge
from vtviz.models.registry import build_model, config_to_dict
from vtviz.models.visual_transformer import Edit
from vtviz.predictor import Predictor, load_model

SAME = geometry.Geometry((1, 2), (1, 2), (0, 0), (1, 2))
FPN = {"num_tokens": 4, "channels": 32, "head_channels": 64, "token_channels": 32, "heads": 2, "groups": 4}


def wake(model):
    """Zero-initialised branches would make every block the identity."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 0.9)
    return model.eval()


@pytest.fixture(scope="module")
def classifier(tiny_model) -> Predictor:
    return Predictor(wake(tiny_model()))


@pytest.fixture(scope="module")
def segmenter() -> Predictor:
    torch.manual_seed(0)
    model = wake(build_model("vt_fpn_resnet18", num_classes=3, **FPN))
    return Predictor(model, classes=("sky", "cat", "grass"))


def direct(predictor, image, layer, token):
    """Logits with one token absent, and without: one forward pass each."""
    x = predictor.preprocessing.normalize(geometry.to_tensor(image, predictor.fit(image.shape[:2]))[None])
    with torch.no_grad():
        features = predictor.model.backbone(x)
        count = predictor.model.forward_edited(features, [])[1][layer].tokens.shape[2]
        absent = torch.zeros(1, count, dtype=torch.bool)
        absent[0, token] = True
        edits = [None] * layer + [Edit(absent)]
        return predictor.model.forward_edited(features, edits)[0][0], predictor.model(x)[0]


def test_a_classifiers_tokens_one_by_one(classifier, chelsea):
    result = ablate(classifier, chelsea, modes=["absent"])
    assert [(x.name, x.kept) for x in result.layers] == [("block0", 0), ("block1", 8)]
    assert result.target == result.top1
    for number, layer in enumerate(result.layers):
        effects = layer.effects["absent"]
        for token in (0, 5, len(effects.logit) - 1):
            changed, plain = direct(classifier, chelsea, number, token)
            assert effects.logit[token] == pytest.approx(float((changed - plain)[result.target]), abs=1e-4)
            assert effects.probability[token] == pytest.approx(
                float(changed.softmax(0)[result.target]) - result.probability, abs=1e-4
            )
            assert effects.top1[token] == int(changed.argmax())
        assert np.abs(effects.logit).max() > 1e-3


def test_the_class_that_is_watched_can_be_chosen(classifier, chelsea):
    result = ablate(classifier, chelsea, target=2, modes=["absent"])
    assert result.target == 2
    said = {p.index: p.probability for p in classifier.predict(chelsea, k=5)}
    assert result.probability == pytest.approx(said[2], abs=1e-5)
    with pytest.raises(ConfigError, match="there is no class 99"):
        ablate(classifier, chelsea, target=99)


def test_baselines_are_for_tokens_that_a_layer_gathers(classifier, chelsea):
    result = ablate(classifier, chelsea, modes=["random", "gaussian"], draws=2)
    for mode in ("random", "gaussian"):
        first, second = (layer.effects[mode] for layer in result.layers)
        assert np.isfinite(first.logit).all()
        assert np.isnan(second.logit[:8]).all()
        assert (second.top1[:8] == -1).all()
        assert np.isfinite(second.logit[8:]).all()
    again = ablate(classifier, chelsea, modes=["random"], draws=2).layers[0].effects["random"]
    assert np.array_equal(again.logit, result.layers[0].effects["random"].logit)
    other = ablate(classifier, chelsea, modes=["random"], draws=2, seed=1).layers[0].effects["random"]
    assert not np.array_equal(again.logit, other.logit)


def test_a_token_that_looks_everywhere_alike_loses_nothing_by_a_shuffle(classifier):
    """Of a photo of one colour, cells but for the border are alike: shuffling moves next to nothing."""
    flat = np.full((448, 448, 3), 127, np.uint8)
    photo = np.random.default_rng(0).integers(0, 255, (448, 448, 3)).astype(np.uint8)
    moved = [
        np.abs(ablate(classifier, image, modes=["random"], draws=2).layers[0].effects["random"].logit).mean()
        for image in (flat, photo)
    ]
    assert moved[0] < moved[1]


def test_the_mean_of_the_image_itself_changes_nothing(classifier, chelsea, coffee):
    own = mean_tokens(classifier, [chelsea])
    assert [each.shape for each in own] == [layer.tokens_in.shape for layer in classifier.extract(chelsea).layers]
    result = ablate(classifier, chelsea, modes=["mean"], reference=own)
    for layer in result.layers:
        assert np.abs(layer.effects["mean"].logit).max() < 1e-4
    both = mean_tokens(classifier, [chelsea, coffee])
    tokens = [classifier.extract(image).layers[0].tokens_in for image in (chelsea, coffee)]
    assert both[0] == pytest.approx(np.mean(tokens, axis=0), abs=1e-5)
    result = ablate(classifier, chelsea, modes=["mean"], reference=both)
    assert np.abs(result.layers[0].effects["mean"].logit).max() > 1e-4
    with pytest.raises(ConfigError, match="at least one image"):
        mean_tokens(classifier, [])


def test_a_segmenters_areas(segmenter, chelsea):
    seen = []
    result = ablate(segmenter, chelsea, modes=["absent", "gaussian"], size=96, progress=lambda *x: seen.append(x))
    assert [x.name for x in result.layers] == ["p2", "p3", "p4", "p5"]
    assert result.areas.sum() == pytest.approx(1)
    assert (result.target, result.top1) == (None, -1)
    assert math.isnan(result.probability)
    for layer in result.layers:
        for effects in layer.effects.values():
            assert effects.areas.sum(axis=1) == pytest.approx(np.zeros(4), abs=1e-6)
            assert ((effects.changed >= 0) & (effects.changed <= 1)).all()
            assert (np.abs(effects.areas).sum(axis=1) <= 2 * effects.changed + 1e-6).all()
            assert effects.iou is None
    assert max(layer.effects["absent"].changed.max() for layer in result.layers) > 0
    assert seen[-1] == (32, 32)


def test_iou_against_a_mask(segmenter, chelsea):
    found = segmenter.segment(chelsea, size=96).labels
    result = ablate(segmenter, chelsea, modes=["absent"], size=96, truth=found)
    for layer in result.layers:
        iou = layer.effects["absent"].iou
        assert np.nanmax(iou) < 0.05  # what the model says itself can only be missed
    with pytest.raises(ConfigError, match="the mask has"):
        ablate(segmenter, chelsea, truth=found[:-1])


@pytest.mark.parametrize(("size", "stride"), [((224, 224), 16), ((64, 64), 16), ((224, 336), 4), ((96, 192), 32)])
def test_the_gaussian_is_on_the_photo_s_middle(size, stride):
    weights = centred_gaussian(size[0] // stride, size[1] // stride, stride)
    assert float(weights.sum()) == pytest.approx(1)
    for axis, side in enumerate(size):  # where cell i stands, the density is that of its pixel
        at = (stride * np.arange(side // stride) + 0.5) / side - 0.5
        along = weights.sum(dim=1 - axis).double().log().numpy()
        np.testing.assert_allclose(along - along.max(), -8 * at**2 + 8 * (at**2).min(), atol=1e-4)
    drawn = geometry.upsample(weights.numpy(), geometry.Geometry(size, size, (0, 0), size), stride=stride)
    assert np.abs(np.subtract(np.unravel_index(drawn.argmax(), size), np.divide(size, 2))).max() <= stride / 2
    assert centred_gaussian(1, 1, 16).tolist() == [[1.0]]


def test_a_class_that_some_draws_lose_keeps_the_mean_of_the_others():
    """IoU is 0 where a class is predicted and not in the truth, and nothing where it is in neither."""
    judge = AreaJudge(torch.tensor([[[[1.0, 1.0]], [[0.0, 2.0]]]]), np.zeros((1, 2), np.uint8), SAME)
    both, first, second = torch.tensor([[[1.0, 1.0]], [[0.0, 2.0]]]), torch.zeros(2, 1, 2), torch.zeros(2, 1, 2)
    first[0] = second[1] = 1
    iou = judge.collect([(0, judge.judge(first)), (0, judge.judge(both)), (1, judge.judge(first))], 3).iou
    np.testing.assert_allclose(iou, [[0.25, 0], [0.5, np.nan], [np.nan, np.nan]])


def test_large_photos_go_through_in_smaller_steps(classifier, chelsea, monkeypatch):
    steps, forward = [], ablation.Onward.forward
    monkeypatch.setattr(
        ablation.Onward, "forward", lambda self, edits, rows=1: steps.append(rows) or forward(self, edits, rows)
    )
    monkeypatch.setattr(ablation, "ROWS", 2)
    small = ablate(classifier, chelsea, size=96)
    assert max(steps) == 2
    steps.clear()
    ablate(classifier, chelsea, size=448)
    assert max(steps) == 1
    monkeypatch.setattr(ablation, "ROWS", 32)
    for one, other in zip(ablate(classifier, chelsea, size=96).layers, small.layers, strict=True):
        for mode in one.effects:
            np.testing.assert_allclose(one.effects[mode].logit, other.effects[mode].logit, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_precisions(tiny_model, chelsea, classifier, dtype):
    model = wake(tiny_model())
    found, expected = (ablate(p, chelsea, size=64) for p in (Predictor(model.to(dtype)), classifier))
    assert found.probability == pytest.approx(expected.probability, abs=0.02)


def test_references_of_another_size_or_model_are_told(classifier, chelsea):
    large = mean_tokens(classifier, [chelsea], size=96, crop="center")
    maps = classifier.extract(chelsea, size=96, crop="center")
    for own, layer in zip(large, maps.layers, strict=True):
        np.testing.assert_allclose(own, layer.tokens_in, atol=1e-6)
    with pytest.raises(ConfigError, match=r"the reference is of tokens .* \[\(16, 64\)\], .* has \["):
        ablate(classifier, chelsea, modes=["mean"], reference=large[:1])
    for wrong in (large[0][:2], np.concatenate([large[0]] * 2), large[0][:, :7]):
        with pytest.raises(ConfigError, match=r"the reference is of tokens of \(L, C_T\) \[.*\], .* has \["):
            ablate(classifier, chelsea, modes=["mean"], reference=[wrong, large[1]])


def test_rows_are_made_as_they_are_needed(classifier, chelsea, monkeypatch):
    made, waiting = 0, []
    replacements = ablation._replacements

    def counted(*arguments):
        nonlocal made
        for row in replacements(*arguments):
            made += 1
            yield row

    monkeypatch.setattr(ablation, "_replacements", counted)
    ablate(
        classifier, chelsea, modes=["absent", "random"], draws=9, progress=lambda d, t: waiting.append((made - d, t))
    )
    assert {ahead for ahead, _ in waiting} == {0}  # and not all of them in memory from the start
    assert {total for _, total in waiting} == {made}


def test_wrong_use_is_one_line(classifier, chelsea):
    with pytest.raises(ConfigError, match="unknown mode 'absend'; did you mean 'absent'"):
        ablate(classifier, chelsea, modes=["absend"])
    with pytest.raises(ConfigError, match="at least one mode is needed, of absent, mean, random, gaussian"):
        ablate(classifier, chelsea, modes=[])
    with pytest.raises(ConfigError, match="the mode mean needs a reference"):
        ablate(classifier, chelsea, modes=["mean"])
    with pytest.raises(ConfigError, match="draws must be at least 1, got 0"):
        ablate(classifier, chelsea, draws=0)
    with pytest.raises(ConfigError, match="a model without tokens"):
        ablate(Predictor(build_model("resnet18", num_classes=3)), chelsea)


def test_the_model_is_left_as_it_was(classifier, chelsea):
    before = {k: v.clone() for k, v in classifier.model.state_dict().items()}
    classifier.model.train()
    ablate(classifier, chelsea, modes=["absent"])
    assert classifier.model.training
    classifier.model.eval()
    assert all(torch.equal(v, before[k]) for k, v in classifier.model.state_dict().items())


def test_json_has_no_nan(classifier, segmenter, chelsea):
    for predictor, size in ((classifier, None), (segmenter, 64)):
        text = json.dumps(ablate(predictor, chelsea, draws=1, size=size).to_dict(), allow_nan=False)
        data = json.loads(text)
        assert set(data["layers"][0]["effects"]) == set(MODES) - {"mean"}


# --- the verb


def test_ablate_on_the_command_line(tiny_checkpoint, tmp_path, chelsea):
    photo = tmp_path / "cat.png"
    Image.fromarray(chelsea).save(photo)
    base = ["ablate", str(photo), "--model", str(tiny_checkpoint)]
    done = CliRunner().invoke(
        app, [*base, "--class", "CLASS_3", "--json", "--draws", "1", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["target"]["label"] == "class 3"
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == data
    maps = load_model(tiny_checkpoint).extract(photo)
    assert (data["image"], data["model"], data["weights"]) == (str(photo), maps.model, maps.weights)
    assert len(data["weights"]) == 64
    assert (data["size"], data["input"]) == ([300, 451], list(maps.geometry.input))
    table = CliRunner().invoke(app, [*base, "--reference", str(photo), "--draws", "1"])
    assert table.exit_code == 0, table.output
    assert "mean" in table.stdout
    rows = [line.split("  ")[:-1] for line in table.stdout[table.stdout.index("block1") :].splitlines()[2:]]
    named = [next(part.strip() for part in row if part.strip()) for row in rows]
    assert named == [*(f"kept {j}" for j in range(8, 16)), *map(str, range(8))]  # as lineage and the page name them
    assert [layer["tokens"] for layer in data["layers"]] == [[str(j) for j in range(16)], named]
    wrong = CliRunner().invoke(app, [*base, "--class", "clas 3"])
    assert isinstance(wrong.exception, ConfigError)
    assert "the model has no class 'clas 3'; did you mean 'class 3'" in str(wrong.exception)
    by_index = CliRunner().invoke(app, [*base, "--class", "4", "--json", "--draws", "1"])
    assert json.loads(by_index.stdout)["target"]["index"] == 4


def test_ablate_a_segmentation_on_the_command_line(tmp_path, chelsea, segmenter):
    config = config_to_dict(segmenter.model.config)
    card = Card("seg", "vt_fpn_resnet18", config, segmenter.classes, segmenter.classes, task="segmentation")
    checkpoints.save(tmp_path / "seg.safetensors", segmenter.model, card)
    Image.fromarray(chelsea[:96, :96]).save(tmp_path / "cat.png")
    Image.fromarray(np.ones((96, 96), np.uint8)).save(tmp_path / "mask.png")
    base = ["ablate", str(tmp_path / "cat.png"), "--model", str(tmp_path / "seg.safetensors"), "--size", "64"]
    done = CliRunner().invoke(app, [*base, "--mask", str(tmp_path / "mask.png"), "--draws", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["layers"][3]["effects"]["absent"]["iou"][0][1] is not None
    assert "Share of the pixels that get another class" in CliRunner().invoke(app, [*base, "--draws", "1"]).stdout
