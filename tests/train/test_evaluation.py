import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import vtviz
from vtviz import checkpoints
from vtviz.data.folder import open_folder
from vtviz.data.store import PixelStore
from vtviz.errors import ConfigError, DataError
from vtviz.models.registry import build_model
from vtviz.predictor import Predictor
from vtviz.statistics import summarize
from vtviz.train import evaluation
from vtviz.train.evaluation import evaluate_classifier, pick_device


@pytest.fixture(scope="module")
def predictor(trained):
    return vtviz.load_model(trained, "cpu")


def test_scores_are_those_of_the_predictor(predictor, balls):
    seen = []
    result = evaluate_classifier(predictor, balls, batch_size=5, progress=lambda *call: seen.append(call))
    hits = {}
    for folder in sorted((balls / "val").iterdir()):
        guesses = predictor.predict(sorted(folder.iterdir()), k=1)
        hits[folder.name] = [
            g[0].label == predictor.classes[predictor.card.class_ids.index(folder.name)] for g in guesses
        ]
    assert result.n == 12
    assert result.top1 == np.mean([hit for folder in hits.values() for hit in folder])
    assert result.top5 == 1
    assert {c.id: (c.n, c.top1) for c in result.per_class} == {k: (4, np.mean(v)) for k, v in hits.items()}
    assert (result.model, result.data, result.split, result.size, result.crop) == ("run", "data", "val", 48, None)
    assert seen[-2:] == [("scoring", 10, 12), ("scoring", 12, 12)]
    assert ("decoding", 12, 12) in seen
    assert set(result.tokens) == {"block0", "block1"}
    table = result.table()
    assert f"top-1 {100 * result.top1:.2f} %" in table
    half = "95 % interval ± 13.86"  # 1.96 standard deviations of a share of one half, of 50 images
    assert half in replace(result, top1=0.5, n=50).table()
    assert len(table.splitlines()) == 2 + 2 + 3


def test_a_subset_of_the_classes_keeps_their_places(predictor, balls, tmp_path):
    whole = {c.id: c for c in evaluate_classifier(predictor, balls).per_class}
    for name in ("red_ball", "Blue-Ball"):
        shutil.copytree(balls / "val" / name, tmp_path / "test" / name)
    (tmp_path / "test" / "GREEN_BALL").mkdir()  # empty, and spelt its own way
    result = evaluate_classifier(predictor, tmp_path, split="test")
    assert result.n == 8
    assert {c.id: c for c in result.per_class} == {k: whole[k] for k in ("red_ball", "Blue-Ball")}


def test_options(predictor, balls):
    assert evaluate_classifier(predictor, balls, split="train").n == 24
    assert evaluate_classifier(predictor, balls, limit=5).n == 5
    small = evaluate_classifier(predictor, balls, size=32, crop="center")
    assert (small.size, small.crop) == (32, "center")
    assert evaluate_classifier(predictor, balls, workers=1) == evaluate_classifier(predictor, balls)


def test_photos_that_do_not_fit_into_memory_score_the_same(predictor, balls, monkeypatch):
    stores, whole = [], evaluate_classifier(predictor, balls, batch_size=5)

    def keep(*arguments, **options):
        stores.append(PixelStore(*arguments, **options))
        return stores[-1]

    monkeypatch.setattr(evaluation, "PixelStore", keep)
    assert evaluate_classifier(predictor, balls, batch_size=5) == whole
    monkeypatch.setattr("vtviz.train.setup.MEMORY", 12 * 40 * 40 * 3 - 1)
    assert evaluate_classifier(predictor, balls, batch_size=5) == whole
    assert [store.in_memory for store in stores] == [True, False]


def test_the_images_whose_maps_are_summed_up_lie_evenly_however_they_are_batched(predictor, balls, monkeypatch):
    monkeypatch.setattr(evaluation, "TOKEN_IMAGES", 3)  # every fourth of twelve
    images = [path for folder in sorted((balls / "val").iterdir()) for path in sorted(folder.iterdir())]
    seen = [predictor.extract(images[i]).statistics() for i in (0, 4, 8)]
    for batch_size in (12, 5):
        tokens = evaluate_classifier(predictor, balls, batch_size=batch_size).tokens
        for name, found in tokens.items():
            expected = summarize([statistics[name] for statistics in seen])
            assert found == pytest.approx(expected, rel=1e-4)


def test_unreadable_files_are_named_and_not_counted(predictor, make_folder):
    data = make_folder(val=4)
    (data / "val" / "red_ball" / "000.png").write_bytes(b"nothing")
    result = evaluate_classifier(predictor, data)
    assert result.n == 11
    assert "red_ball/000.png" in result.skipped[0]
    assert "1 files could not be read" in result.table()


def test_images_of_many_shapes(predictor, tmp_path):
    for i, (height, width) in enumerate([(1, 1), (30, 90), (90, 30), (1, 400), (48, 48)]):
        (tmp_path / "val" / "red ball").mkdir(parents=True, exist_ok=True)
        image = np.full((height, width, 3), (200, 40, 40), np.uint8)
        Image.fromarray(image).save(tmp_path / "val" / "red ball" / f"{i}.png")
    assert evaluate_classifier(predictor, tmp_path).n == 5


def test_a_folder_without_splits_is_split_as_training_split_it(trained, make_folder):
    """The seed in the card says which images training kept apart."""
    data = make_folder(flat=20)
    kept_apart = [set(open_folder(data, "val", seed=seed).paths) for seed in (0, 1)]
    bad = min(kept_apart[1] - kept_apart[0])
    bad.write_bytes(b"nothing")
    model, card = checkpoints.load(trained)
    for seed in (0, 1):
        result = evaluate_classifier(Predictor(model, replace(card, seed=seed)), data)
        assert (result.n, len(result.skipped)) == (6 - seed, seed)


def test_models_and_folders_that_do_not_fit(predictor, balls, tmp_path, tiny_card):
    with pytest.raises(DataError, match="has no split 'test'"):
        evaluate_classifier(predictor, balls, split="test")
    (tmp_path / "val" / "yellow").mkdir(parents=True)
    with pytest.raises(DataError, match="'yellow' is not one of the 3 classes"):
        evaluate_classifier(predictor, tmp_path)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        evaluate_classifier(predictor, balls, batch_size=0)
    model = build_model("vt_fpn_resnet18", num_classes=5, token_channels=64, heads=4).eval()
    segmenter = Predictor(model, tiny_card(model, model="vt_fpn_resnet18", task="segmentation"))
    with pytest.raises(ConfigError, match="tiny is a segmentation model; top-1 is for classifiers"):
        evaluate_classifier(segmenter, balls)


def test_a_model_without_tokens_or_card(balls):
    model = build_model("resnet18", num_classes=3).eval()
    result = evaluate_classifier(Predictor(model, classes=["red ball", "green ball", "blue ball"]), balls, size=32)
    assert (result.n, result.tokens) == (12, {})


def test_devices():
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == pick_device(None)
    for name in ("meta", "tpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f"cannot use device '{name}'") as caught:
            pick_device(name)
        assert "\n" not in str(caught.value)
