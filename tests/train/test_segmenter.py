"""Training, scoring and publishing segmentation models, on pictures of balls with their masks."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import vtviz
from vtviz import checkpoints, scores
from vtviz.backbones import create_model
from vtviz.cli import app
from vtviz.data.segmentation import IGNORE, open_segmentation
from vtviz.errors import CheckpointError, ConfigError, DataError, TrainingError
from vtviz.models.resnet import ResNetBackbone
from vtviz.train import setup
from vtviz.train.callbacks import read_metrics
from vtviz.train.evaluation import evaluate_classifier
from vtviz.train.job import STATE, TrainingJob
from vtviz.train.module import levels
from vtviz.train.publish import publish_segmenter
from vtviz.train.recipes import make_recipe
from vtviz.train.run import train
from vtviz.train.segmenter import SegmenterTraining, class_weights
from vtviz.train.segmenter_evaluation import evaluate_segmenter
from vtviz.train.setup import _take_backbone
from vtviz.train.setup_segmenter import set_up_segmenter

CLASSES = ("background", "red ball", "green ball")
OPTIONS = {"channels": 32, "head_channels": 64, "token_channels": 32, "heads": 2, "groups": 4, "num_tokens": 4}
FPN_OPTIONS = {"channels": 32, "head_channels": 64}
RECIPE = {
    "epochs": 2,
    "batch_size": 4,
    "sizes": "48-64",
    "eval_size": 64,
    "precision": "32-true",
    "lr": 2e-3,
    "warmup_epochs": 0.5,
    "ema": 0.5,
}


def picture(seed, height=56, width=72) -> tuple[np.ndarray, np.ndarray]:
    """A red and a green disc on noise, (H, W, 3) and (H, W) uint8; a strip of the mask is not labelled."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 130, (height, width, 3))
    mask = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    for index, colour in enumerate(((210, 40, 40), (40, 190, 60)), start=1):
        centre = rng.uniform(14, height - 14), rng.uniform(14, width - 14)
        disc = np.hypot(y - centre[0], x - centre[1]) < 13
        image[disc], mask[disc] = colour, index
    mask[:3] = IGNORE
    return image.astype(np.uint8), mask


def write_set(root, classes=CLASSES, **splits):
    """Write a segmentation set with so many images in each split."""
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(classes))
    for split, count in splits.items():
        for name in ("images", "masks"):
            (root / split / name).mkdir(parents=True)
        for i in range(count):
            image, mask = picture(100 * len(split) + i)
            Image.fromarray(image).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    return root


def make_job(out, data, recipe=(), model="vt_fpn_resnet18", **fields) -> TrainingJob:
    options = OPTIONS if model.startswith("vt") else FPN_OPTIONS
    settings = make_recipe("segment_small", **RECIPE | dict(recipe))
    job = {"model_options": options, "accelerator": "cpu", "workers": 0}
    return TrainingJob(**{"data": str(data), "out": str(out), "recipe": settings, "model": model, **job, **fields})


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """12 training and 4 validation pictures; to be read only."""
    return write_set(tmp_path_factory.mktemp("discs") / "discs", train=12, val=4)


@pytest.fixture(scope="module")
def segmenter(discs, tmp_path_factory):
    """The folder of a finished run, long enough that it finds the discs; to be read only."""
    return train(make_job(tmp_path_factory.mktemp("seg") / "run", discs, recipe={"epochs": 12, "sizes": "64"}))


def test_a_run_learns_and_its_folder_is_a_model(segmenter, discs):
    rows = read_metrics(segmenter)
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert rows[-1]["val/miou"] > 0.6 > rows[0]["val/miou"]
    assert {"loss/label", "val/pixel_accuracy", "tokens/p2_peak", "tokens/p5_dead"} <= set(rows[0])
    model = vtviz.load_model(segmenter, "cpu")
    assert (model.card.task, model.classes) == ("segmentation", CLASSES)
    assert model.card.palette == open_segmentation(discs, "val").palette
    assert set(model.card.tokens) == {"p2", "p3", "p4", "p5"}
    assert model.card.data == {"name": "discs", "n_train": 12, "n_val": 4, "terms": ""}
    image, mask = picture(7)
    found = model.segment(image)
    assert scores.pixel_accuracy(scores.confusion(found.labels, mask, 3)) > 0.8
    names = {p.name for p in segmenter.iterdir()}
    assert {"run.json", "metrics.csv", "confusion.csv", "probe", STATE, "best.json", "last.safetensors"} <= names
    with (segmenter / "confusion.csv").open(newline="") as file:
        counts = np.array([row[1:] for row in list(csv.reader(file))[1:]], int)
    assert counts.sum() == 4 * 53 * 72  # every labelled pixel, at the masks' own size
    assert float(scores.mean_iou(counts)) == pytest.approx(max(row["val/miou"] for row in rows), rel=1e-5)


def test_evaluate_scores_what_segment_shows(segmenter, discs):
    """The figure is that of labels made one by one with the public function."""
    result = evaluate_segmenter(str(segmenter), discs, device="cpu")
    counts = np.zeros((3, 3), int)
    for i in range(4):
        labels = vtviz.segment(discs / "val" / "images" / f"{i}.png", model=segmenter, device="cpu").labels
        counts += scores.confusion(labels, np.array(Image.open(discs / "val" / "masks" / f"{i}.png")), 3)
    assert result.miou == scores.mean_iou(counts)
    assert result.pixel_accuracy == scores.pixel_accuracy(counts)
    assert [c.iou for c in result.per_class] == pytest.approx(scores.iou(counts).tolist())
    assert result.interval[0] <= result.miou <= result.interval[1]
    assert 0 < result.boundary_f <= 1
    assert (result.n, result.size, result.scales) == (4, 64, (1.0,))
    assert sum(c.share for c in result.per_class) == pytest.approx(1)
    card = checkpoints.read_card(segmenter / "best.safetensors")
    assert result.miou == pytest.approx(card.accuracy["miou"], abs=0.02)  # float16 weights, and another resampling
    assert f"mIoU {100 * result.miou:.2f} %" in result.table()
    assert "background" in result.table()


def test_flip_and_scales_average_probabilities(segmenter, discs):
    model = vtviz.load_model(segmenter, "cpu")
    several = evaluate_segmenter(model, discs, flip=True, scales=(1, 1.5))
    assert (several.flip, several.scales, several.tokens) == (True, (1.0, 1.5), {})
    assert 0.5 < several.miou <= 1
    counts = np.zeros((3, 3), int)
    for i in range(4):
        image, mask = (np.array(Image.open(discs / "val" / kind / f"{i}.png")) for kind in ("images", "masks"))
        total = sum(
            model.segment(np.ascontiguousarray(image[:, ::-1]) if flip else image, size=size).probabilities()[
                :, :, :: -1 if flip else 1
            ]
            for size, flip in ((64, False), (64, True), (96, False), (96, True))
        )
        counts += scores.confusion(total.argmax(axis=0), mask, 3)
    assert several.miou == pytest.approx(float(scores.mean_iou(counts)), abs=1e-6)
    assert several.miou != evaluate_segmenter(model, discs).miou
    assert "scales 1, 1.5, mirrored too" in several.table()
    with pytest.raises(ConfigError, match=r"scales must be numbers from 0\.1 to 10"):
        evaluate_segmenter(model, discs, scales=(0,))
    with pytest.raises(ConfigError, match=r"scale 0.25 of 64 pixels is 16; a size must be from 32 to 1024"):
        evaluate_segmenter(model, discs, scales=(1, 0.25))
    with pytest.raises(ConfigError, match="size must be a whole number of pixels from 32 to 1024, got 0"):
        evaluate_segmenter(model, discs, size=0)


def test_a_single_scale_is_the_size_that_is_seen(segmenter, discs):
    model = vtviz.load_model(segmenter, "cpu")
    scaled, small = evaluate_segmenter(model, discs, scales=(0.5,)), evaluate_segmenter(model, discs, size=32)
    assert (scaled.miou, scaled.tokens, scaled.per_class) == (small.miou, small.tokens, small.per_class)
    assert scaled.per_class != evaluate_segmenter(model, discs).per_class


def test_a_mirrored_view_has_its_left_and_right_classes_changed_back(segmenter):
    """A model of one logit more for "left arm" where the left of the photo is dark must not cancel itself."""
    from vtviz.train.segmenter_evaluation import _average

    class LeftRight:
        classes = ("left arm", "right arm")

        def segment(self, photo, size):
            left = np.broadcast_to(np.where(photo[..., 0] > 0, 0.9, 0.1), photo.shape[:2]).astype(np.float32)

            class Found:
                def probabilities(self):
                    return np.stack([left, 1 - left])

            return Found()

    photo = np.zeros((4, 6, 3), np.uint8)
    photo[:, :3] = 255
    assert _average(LeftRight(), [photo], [(64, False)])[0].tolist() == [[0, 0, 0, 1, 1, 1]] * 4
    both = LeftRight()
    summed = _average(both, [photo], [(64, True)])[0]
    assert summed.tolist() == [[1, 1, 1, 0, 0, 0]] * 4  # seen mirrored, the bright half is the right one


@pytest.mark.slow
def test_a_run_that_broke_off_ends_with_the_same_weights(discs, tmp_path, monkeypatch):
    """It breaks off in the middle of its second epoch, and is resumed at that epoch's start."""
    recipe = {"jitter": 0.4, "class_balance": 0.5}
    whole = train(make_job(tmp_path / "whole", discs, recipe))
    job = make_job(tmp_path / "broken", discs, recipe)
    step = SegmenterTraining.training_step

    def breaking(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 1):
            raise TrainingError("the power went out")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmenterTraining, "training_step", breaking)
    with pytest.raises(TrainingError, match="the power went out"):
        train(job)
    monkeypatch.undo()
    assert len(read_metrics(tmp_path / "broken")) == 1
    with pytest.raises(TrainingError, match="holds a run already"):
        train(job)
    resumed = train(job, resume=True)
    for name in ("last.safetensors", "best.safetensors"):
        one, two = load_file(whole / name), load_file(resumed / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one)


def test_training_starts_from_a_classifiers_backbone(discs, trained, tmp_path):
    """A VT-ResNet has no stage 5: the others come over, frozen here so that they can be compared."""
    run = train(make_job(tmp_path / "run", discs, start=str(trained), recipe={"freeze": 4, "epochs": 1, "ema": 0.0}))
    old, new = (load_file(folder / "last.safetensors") for folder in (trained, run))
    best = load_file(trained / "best.safetensors")
    shared = [k for k in best if k.startswith("backbone.")]
    assert len(shared) > 60
    assert all(torch.equal(best[k], new[k]) for k in shared)
    assert any(k.startswith("backbone.layer4") for k in new)
    assert len(old)
    card = checkpoints.read_card(run / "last.safetensors")
    assert (card.task, card.recipe["started_from"]["name"]) == ("segmentation", "run")


def test_training_goes_on_from_a_segmenter(discs, segmenter, tmp_path):
    """With the same classes all weights come over, with others all but the last layer."""
    recipe = {"epochs": 1, "lr": 1e-9, "ema": 0.0, "freeze": 5}
    same = train(make_job(tmp_path / "same", discs, start=str(segmenter), model_options={}, recipe=recipe))
    before, after = (load_file(f / "best.safetensors") for f in (segmenter, same))
    last = "head.predictor.weight"
    assert torch.allclose(before[last].float(), after[last].float(), atol=1e-3)
    other = write_set(tmp_path / "other", classes=("background", "rot", "gruen"), train=4, val=2)
    fresh = train(make_job(tmp_path / "fresh", other, start=str(segmenter), model_options={}, recipe=recipe))
    after = load_file(fresh / "best.safetensors")
    assert not torch.allclose(before[last].float(), after[last].float(), atol=1e-2)
    neck = "neck.laterals.0.conv.weight"
    neck = neck if neck in before else next(k for k in before if k.startswith("neck.") and before[k].ndim == 4)
    assert torch.allclose(before[neck].float(), after[neck].float(), atol=1e-3)


def test_groups_are_trained_on_scored_with_and_kept_in_the_card(tmp_path):
    names = ("null", "jeans", "shorts")
    data = write_set(tmp_path / "clothes", classes=names, train=4, val=2)
    run = train(make_job(tmp_path / "run", data, groups="ccp14", recipe={"epochs": 1}, model="panoptic_fpn_resnet18"))
    card = checkpoints.read_card(run / "last.safetensors")
    assert len(card.classes) == 14
    assert "jeans" in card.groups["trousers"]
    result = evaluate_segmenter(str(run), data)
    assert result.tokens == {}
    assert {c.name for c in result.per_class if c.share > 0} == {"background", "trousers"}
    (data / "classes.txt").write_text("null\njeans\nspacesuit\n")
    with pytest.raises(DataError, match="no place for class 'spacesuit' among the model's 14 classes"):
        evaluate_segmenter(str(run), data)


def test_a_published_card_says_what_evaluate_prints(segmenter, discs, tmp_path):
    said = []
    target = tmp_path / "discs18.safetensors"
    card = publish_segmenter(segmenter, target, discs, licence="mine", terms="toys", notes="n", say=said.append)
    done = CliRunner().invoke(app, ["evaluate", "--model", str(target), "--data", str(discs), "--json"])
    printed = json.loads(done.stdout)
    assert all(printed[name] == card.accuracy[name] for name in ("miou", "n", "boundary_f", "pixel_accuracy"))
    assert card.tokens == printed["tokens"]
    assert (card.name, card.licence, card.notes, card.data["terms"]) == ("discs18", "mine", "n", "toys")
    assert json.loads(target.with_suffix(".json").read_text())["accuracy"]["miou"] == printed["miou"]
    assert said == [f"scoring discs18 on {discs}"]
    assert vtviz.load_model(target, "cpu").card.palette == card.palette


def test_the_command_line_trains_by_the_models_task(discs, trained, tmp_path):
    quick = ["--device", "cpu", "--workers", "0", "--batch-size", "4", "--sizes", "48", "--epochs", "1"]
    quick += ["--set", "precision=32-true", "--set", "eval_size=64", "--data", str(discs)]
    narrow = [part for k, v in OPTIONS.items() for part in ("--option", f"{k}={v}")]
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    made = ["train", "--model", "vt_fpn_resnet18", "--from", str(trained), "--out", str(run), *quick, *narrow]
    for command in (made, ["finetune", "--from", str(run), "--out", str(tuned), *quick]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    for folder in (run, tuned):
        card = checkpoints.read_card(folder / "last.safetensors")
        assert card.task == "segmentation"
        assert card.recipe["class_balance"] == make_recipe("segment_small").class_balance


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"model": "vt_resnet18", "model_options": {}},
            ConfigError,
            "is a classification model, but the recipe",
        ),
        ({"teacher": "resnet18_in109"}, ConfigError, "are for classifiers"),
        ({"pixels": "device"}, ConfigError, "are for classifiers"),
        ({"groups": "ccp15"}, DataError, "unknown groups 'ccp15'; did you mean 'ccp14'"),
        ({"start": "nowhere"}, CheckpointError, "nowhere"),
        ({"data": "/nowhere"}, DataError, "no data folder at /nowhere"),
        (
            {"model": "vt_fpn_resnet34", "start": "trained"},
            ConfigError,
            "has a ResNet-18 backbone, the model a ResNet-34",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(discs, trained, tmp_path, fields, error, message):
    fields = {**fields, **({"start": str(trained)} if fields.get("start") == "trained" else {})}
    with pytest.raises(error, match=message):
        train(replace(make_job(tmp_path / "run", discs), **fields))
    assert not (tmp_path / "run").exists()


def test_scoring_with_the_wrong_kind_of_model_is_one_line(segmenter, trained, discs, balls):
    with pytest.raises(ConfigError, match="is a classification model; mIoU is for segmentation models"):
        evaluate_segmenter(str(trained), discs)
    with pytest.raises(ConfigError, match="is a segmentation model; top-1 is for classifiers"):
        evaluate_classifier(str(segmenter), balls)
    for model, options, message in (
        (segmenter, ["--crop", "center"], "--crop is for classifiers"),
        (trained, ["--flip"], "--flip and --scales are for segmentation"),
        (segmenter, ["--scales", "big"], "--scales takes numbers"),
    ):
        data = discs if model is segmenter else balls
        done = CliRunner().invoke(app, ["evaluate", "--model", str(model), "--data", str(data), *options])
        assert isinstance(done.exception, ConfigError | SystemExit)
        assert message in f"{done.output}{done.exception}"


def test_class_weights():
    pixels = torch.tensor([900, 100, 0])
    assert class_weights(pixels, 0).tolist() == pytest.approx([1, 1, 1])
    for balance in (0.5, 1.0):
        weights = class_weights(pixels, balance)
        assert float(weights[1] / weights[0]) == pytest.approx(9**balance)
        assert float((weights * pixels / 1000).sum()) == pytest.approx(1)
        assert weights[2] == weights[1]  # it may be in an image that was not counted
    assert class_weights(torch.zeros(2), 0.5).isfinite().all()


def test_a_class_of_images_that_were_not_counted_is_trained_too(tmp_path, monkeypatch):
    data = write_set(tmp_path / "rare", classes=(*CLASSES, "rare"), train=3, val=1)
    alike = set_up_segmenter(make_job(tmp_path / "run", data, recipe={"class_balance": 0.0})).module.class_weights
    assert alike.tolist() == [1, 1, 1, 1]
    weights = set_up_segmenter(make_job(tmp_path / "run", data, recipe={"class_balance": 0.5})).module.class_weights
    assert weights[3] == weights.max() > 1


def test_damaged_files_of_a_set_that_is_not_kept(tmp_path, monkeypatch):
    """One of training is left out, one of validation is told of before an epoch is lost."""
    data = write_set(tmp_path / "data", train=4, val=2)
    monkeypatch.setattr(setup, "image_memory", lambda _: 0.0)
    (data / "train" / "images" / "1.png").write_bytes(b"junk")
    module = set_up_segmenter(make_job(tmp_path / "run", data, recipe={"class_balance": 0.5})).module
    assert (module.class_weights > 0).all()
    (data / "val" / "images" / "1.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"1\.png' is not a JPEG"):
        set_up_segmenter(make_job(tmp_path / "run", data))


def test_a_backbone_of_the_other_stride_placement_is_refused():
    ours, theirs = (
        SimpleNamespace(backbone=ResNetBackbone(50, stages=4, stride_in_1x1=first)) for first in (True, False)
    )
    with pytest.raises(ConfigError, match="plain has a backbone with stride_in_1x1=False, the model one with True"):
        _take_backbone(ours, theirs, "plain")


def test_a_segmenter_takes_its_backbone_from_one_place(discs, trained, tmp_path):
    with pytest.raises(ConfigError, match="from a classifier or from --weights, not from both"):
        train(make_job(tmp_path / "run", discs, start=str(trained), weights="IMAGENET1K_V1"))


def test_a_crop_without_a_labelled_pixel_does_not_break_the_run(tmp_path):
    data = write_set(tmp_path / "blank", train=4, val=2)
    for file in (data / "train" / "masks").iterdir():
        Image.fromarray(np.full((56, 72), IGNORE, np.uint8)).save(file)
    run = train(make_job(tmp_path / "run", data, recipe={"epochs": 1}))
    assert read_metrics(run)[0]["loss/label"] == 0


def test_levels_of_a_segmenter():
    model = create_model("panoptic_fpn_resnet18", num_classes=3, **FPN_OPTIONS)
    parts = levels(model)
    assert len(parts) == 7  # stem, four residual stages, neck, head
    assert parts[-2:] == [[model.neck], [model.head]]
    assert sum(p.numel() for part in parts for m in part for p in m.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
