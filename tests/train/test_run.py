import csv
import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file

import vtviz
from vtviz import checkpoints
from vtviz.errors import CheckpointError, ConfigError, DataError, TrainingError
from vtviz.train import run
from vtviz.train.callbacks import read_metrics
from vtviz.train.classifier import ClassifierTraining
from vtviz.train.evaluation import evaluate_classifier
from vtviz.train.job import STATE, TrainingJob, read_job
from vtviz.train.module import BAD_BATCH
from vtviz.train.run import train


def test_a_run_folder_holds_the_run_and_is_a_model(trained, balls):
    names = {p.name for p in trained.iterdir()}
    assert names == {
        "run.json",
        run.LOCK,
        "metrics.csv",
        "confusion.csv",
        "probe",
        "tensorboard",
        STATE,
        *(f"{which}.{kind}" for which in ("best", "last") for kind in ("safetensors", "json")),
    }
    assert read_job(trained).recipe.sizes == "32-48"
    assert json.loads((trained / "run.json").read_text())["environment"]["torch"] == torch.__version__

    rows = read_metrics(trained)
    assert [row["epoch"] for row in rows] == [1, 2]
    wanted = {"lr", "loss/train", "loss/label", "val/top1", "val/top5", "images_per_s", "data_wait"}
    wanted |= {f"tokens/block{b}_{s}" for b in (0, 1) for s in ("peak", "correlation", "dead")}
    assert wanted <= set(rows[0])
    assert rows[0]["images_per_s"] > 0
    assert 0 <= rows[0]["data_wait"] <= 1

    predictor = vtviz.load_model(trained)
    assert predictor.classes == ("Blue-Ball", "green ball", "red ball")
    assert predictor.card.class_ids == ("Blue-Ball", "green ball", "red_ball")
    assert predictor.card.data == {"name": "data", "n_train": 24, "n_val": 12, "terms": ""}
    assert predictor.card.recipe["epochs"] == 2
    best = max(rows, key=lambda row: row["val/top1"])
    assert predictor.card.epochs == best["epoch"]
    assert predictor.card.tokens["block0"]["peak"] == pytest.approx(best["tokens/block0_peak"], rel=1e-4)
    maps = predictor.extract(balls / "val" / "red_ball" / "000.png")
    assert [layer.num_tokens for layer in maps.layers] == [4, 2]


def test_no_two_processes_train_one_run(tiny_job, monkeypatch):
    monkeypatch.setattr(run, "LOCK_SECONDS", 0.1)
    folder = train(tiny_job(recipe={"epochs": 1}))
    with FileLock(folder / run.LOCK), pytest.raises(TrainingError, match="another process trains this run"):
        train(tiny_job(), resume=True)
    assert read_job(folder).recipe.epochs == 1
    assert len(read_metrics(folder)) == 1
    train(tiny_job(), resume=True)
    assert len(read_metrics(folder)) == 2


def test_a_run_that_ended_while_it_was_waited_for_is_not_overwritten(tiny_job, monkeypatch):
    folder = train(tiny_job(recipe={"epochs": 1}))
    kept = (folder / STATE).rename(folder / "not yet")
    before = kept.read_bytes()
    acquire = FileLock.acquire

    def wait(lock: FileLock, timeout: float) -> None:
        (folder / "not yet").rename(folder / STATE)  # the other run writes it as it ends
        acquire(lock, timeout=timeout)

    monkeypatch.setattr(FileLock, "acquire", wait)
    with pytest.raises(TrainingError, match="holds a run already"):
        train(tiny_job(recipe={"epochs": 2}))
    assert (folder / STATE).read_bytes() == before
    assert read_job(folder).recipe.epochs == 1


def test_evaluate_gives_what_the_card_says(trained, balls):
    card = checkpoints.read_card(trained / "best.safetensors")
    result = evaluate_classifier(str(trained), balls, device="cpu")
    assert (result.top1, result.n) == (pytest.approx(card.accuracy["top1"]), card.accuracy["n"])
    assert result.top5 == card.accuracy["top5"] == 1
    with (trained / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    counts = np.array([row[1:] for row in rows[1:]], int)
    assert [row[0] for row in rows[1:]] == rows[0][1:] == list(card.class_ids)
    assert counts.sum(axis=1).tolist() == [4, 4, 4]
    assert np.trace(counts) / counts.sum() == pytest.approx(result.top1)


def test_the_probe_shows_how_the_tokens_form(trained):
    image = np.array(Image.open(trained / "probe" / "image.png"))
    first, last = (np.load(trained / "probe" / f"epoch000{i}.npz") for i in (1, 2))
    assert set(first) == {"block0", "block1"}
    assert first["block0"].shape == (4, 3, 3)
    assert first["block0"].dtype == np.float16
    assert first["block0"].astype(float).mean(axis=(1, 2)) == pytest.approx(np.ones(4), rel=1e-2)  # in × uniform
    assert not np.array_equal(first["block0"], last["block0"])
    metrics = read_metrics(trained)
    panels = [Image.open(trained / "probe" / f"epoch000{i}.png") for i in (1, 2)]
    film = Image.open(trained / "probe" / "tokens.webp")
    assert film.n_frames == 2
    for i, panel in enumerate(panels):
        film.seek(i)
        assert np.abs(np.array(film.convert("RGB"), int) - np.array(panel, int)).mean() < 4
    epoch = int(max(metrics, key=lambda row: row["val/top1"])["epoch"])
    maps = vtviz.extract_tokens(image, trained, device="cpu")
    shown = maps.layers[0].times_uniform()
    assert (first, last)[epoch - 1]["block0"] == pytest.approx(shown, rel=2e-2, abs=2e-2)  # weights are float16 too


def test_a_run_is_not_overwritten_but_resumed(trained_copy, tiny_job):
    with pytest.raises(TrainingError, match="holds a run already; add --resume"):
        train(tiny_job(trained_copy))
    before = load_file(trained_copy / "last.safetensors")
    longer = tiny_job(trained_copy, recipe={"epochs": 3})
    assert train(longer, resume=True) == trained_copy
    assert [row["epoch"] for row in read_metrics(trained_copy)] == [1, 2, 3]
    after = load_file(trained_copy / "last.safetensors")
    assert any(not torch.equal(before[k], after[k]) for k in before)
    assert read_job(trained_copy) == longer


def test_nothing_to_resume(tiny_job):
    with pytest.raises(TrainingError, match=r"nothing to resume: .*run\.json does not exist"):
        train(tiny_job(), resume=True)


def test_a_set_smaller_than_one_batch_still_trains(tiny_job):
    run = train(tiny_job(recipe={"epochs": 1, "batch_size": 512}, limit=5, val_limit=3))
    card = checkpoints.read_card(run / "last.safetensors")
    assert (card.data["n_train"], card.data["n_val"]) == (5, 3)


def test_gradients_accumulate_to_the_batch_size(tiny_job, make_folder):
    assert tiny_job(micro_batch=2).micro_batches() == (2, 4)
    assert tiny_job(micro_batch=2, devices=2).micro_batches() == (2, 2)
    assert tiny_job(devices=4).micro_batches() == (2, 1)
    with pytest.raises(ConfigError, match=r"batch_size 8 is no multiple of 1 device\(s\) x 3 images"):
        train(tiny_job(micro_batch=3))
    # a step of 8 images whichever way, so as many steps, and none of the last three images
    data = make_folder(train=9, val=4)
    for name, micro in (("whole", None), ("parts", 2)):
        run = train(tiny_job(name, data=data, recipe={"epochs": 1}, micro_batch=micro))
        assert torch.load(run / STATE, weights_only=False)["global_step"] == 3


def test_frozen_stages_stay_as_they_are(tiny_job, trained):
    run = train(tiny_job("tuned", start=str(trained), recipe={"freeze": 3, "epochs": 1}))
    old, new = load_file(trained / "best.safetensors"), load_file(run / "last.safetensors")
    changed = {k.rpartition(".")[0] for k in old if not torch.equal(old[k], new[k])}
    frozen = ("backbone.conv1", "backbone.bn1", "backbone.layer1", "backbone.layer2")
    assert not [name for name in changed if name.startswith(frozen)]  # weights and batch norm's statistics
    assert any(name.startswith("backbone.layer3") for name in changed)
    assert "fc" in changed


def test_a_start_with_other_classes_gets_a_new_head(tiny_job, trained, make_folder):
    two = make_folder("two", train=4, val=2, classes={"cyan": (0, 200, 200), "pink": (240, 120, 180)})
    run = train(tiny_job("tuned", data=two, start=str(trained), recipe={"epochs": 1, "dropout": 0.25}))
    model, card = checkpoints.load(run)
    assert card.class_ids == ("cyan", "pink")
    assert (model.fc.out_features, model.dropout.p) == (2, 0.25)
    assert model.config.stage.num_tokens == 4
    with pytest.raises(ConfigError, match="takes its model"):
        train(tiny_job("other", start=str(trained), model_options={"num_tokens": 2}))


def test_a_resumed_run_keeps_its_classes(trained_copy, tiny_job, make_folder):
    other = make_folder("other", train=2, val=1, classes={"cyan": (0, 200, 200), "pink": (240, 120, 180)})
    with pytest.raises(DataError, match=r"has 3 classes, .* has 2; they differ in Blue-Ball"):
        train(tiny_job(trained_copy, data=other, recipe={"epochs": 3}), resume=True)


@pytest.mark.parametrize(("field", "value"), [("optimizer", "sgd"), ("freeze", 2), ("layer_decay", 0.9)])
def test_a_resumed_run_keeps_its_optimiser(trained, tiny_job, field, value):
    with pytest.raises(ConfigError, match=f"a resumed run cannot change its {field}: it has .*, got {value}"):
        train(tiny_job(trained, recipe={field: value}), resume=True)


def test_a_plain_resnet_with_a_teacher_and_mixup(trained, tiny_job):
    recipe = {"epochs": 1, "mixup": 0.2, "diversity_weight": 0.1}
    run = train(tiny_job("plain", model="resnet18", teacher=str(trained), recipe=recipe))
    (row,) = read_metrics(run)
    assert {"loss/features", "loss/logits"} <= set(row)
    assert "loss/tokens" not in row
    assert not (run / "probe").exists()
    assert checkpoints.read_card(run / "last.safetensors").teacher == "run"


def test_a_teacher_without_anything_to_teach_is_refused(tiny_job, tmp_path):
    save_file(torchvision.models.resnet50(weights=None).state_dict(), tmp_path / "r50.safetensors")
    with pytest.raises(ConfigError, match="r50 has nothing to teach vt_resnet18"):
        train(tiny_job(teacher=str(tmp_path / "r50.safetensors")))


def test_a_student_of_its_teachers_shape_learns_its_tokens(trained, tiny_job):
    run = train(tiny_job("student", teacher=str(trained), recipe={"epochs": 1, "diversity_weight": 0.1}))
    (row,) = read_metrics(run)
    parts = {k: row[f"loss/{k}"] for k in ("label", "logits", "features", "tokens", "diversity")}
    recipe = read_job(run).recipe
    weights = {"label": 1 - recipe.logit_weight, "logits": recipe.logit_weight, "features": recipe.feature_weight}
    weights |= {"tokens": recipe.token_weight, "diversity": 0.1}
    assert row["loss/train"] == pytest.approx(sum(weights[k] * parts[k] for k in parts), rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(tiny_job):
    run = train(tiny_job(recipe={"epochs": 1, "ema": 0.0}))
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) in epoch 2, batch \d, which is in .*bad_batch"):
        train(tiny_job(recipe={"epochs": 4, "lr": 1e30, "ema": 0.0, "clip": 0.0}), resume=True)
    batch = load_file(run / BAD_BATCH)
    assert batch["images"].shape[0] == batch["targets"].shape[0] == 8
    assert vtviz.load_model(run / "last.safetensors").card.epochs == 1


def test_in_the_first_epoch_nothing_is_kept_and_none_is_promised(tiny_job):
    job = tiny_job(recipe={"epochs": 1, "lr": 1e30, "ema": 0.0, "clip": 0.0, "warmup_epochs": 0.0, "mixup": 0.4})
    with pytest.raises(TrainingError, match="the loss became") as caught:
        train(job)
    assert "--resume" not in str(caught.value)
    batch = load_file(Path(job.out) / BAD_BATCH)  # mixed, both images and targets: the loss can be computed from it
    assert batch["targets"].shape == (8, 3)
    assert torch.allclose(batch["targets"].sum(dim=1), torch.ones(8))
    assert (batch["targets"].max(dim=1).values < 1).any()


def test_what_a_data_loading_process_died_of_is_one_line(tmp_path):
    with pytest.raises(TrainingError, match=r"Killed\. Fewer --workers take less memory$"), run._one_line(tmp_path):
        raise RuntimeError("DataLoader worker (pid 27442) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="mat1"), run._one_line(tmp_path):  # a fault of ours is no user's
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_a_single_image_without_extent_has_no_statistics(tiny_job):
    with pytest.raises(TrainingError, match="batch norm cannot train on a single image of so few pixels"):
        train(tiny_job(model="resnet18", recipe={"batch_size": 1, "sizes": "32"}))


def test_a_full_disk_is_one_line_and_the_last_epoch_is_kept(tiny_job):
    run = train(tiny_job(recipe={"epochs": 1}))
    kept = (run / STATE).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # no file may grow beyond a megabyte: as good as a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
        with pytest.raises((TrainingError, CheckpointError), match="File too large") as caught:
            train(tiny_job(), resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert (run / STATE).read_bytes() == kept
    assert vtviz.load_model(run / "last.safetensors").card.epochs == 1
    assert not list(run.glob(".*"))
    train(tiny_job(), resume=True)
    assert len(read_metrics(run)) == 2


def test_unreadable_files_are_named_and_left_out(tiny_job, make_folder):
    data = make_folder(train=8, val=2)
    broken = data / "train" / "red_ball" / "003.png"
    broken.write_bytes(broken.read_bytes()[:200])
    run = train(tiny_job(data=data, recipe={"epochs": 1}))
    assert str(broken) in (run / "skipped.txt").read_text()
    assert checkpoints.read_card(run / "last.safetensors").data["n_train"] == 23


def test_a_set_too_large_for_memory_is_decoded_as_it_is_needed(tiny_job, make_folder, monkeypatch):
    monkeypatch.setattr("vtviz.train.setup.MEMORY", -1)
    data = make_folder(train=8, val=4)
    bad = sorted((data / "train").rglob("*.png"))[::2]
    bad[0].write_bytes(b"nothing")
    run = train(tiny_job(data=data, recipe={"epochs": 1}, workers=1))
    assert len(read_metrics(run)) == 1
    for file in bad:
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="11 of 24 images cannot be read; first: ") as caught:
        train(tiny_job("other", data=data, recipe={"epochs": 1}, workers=1))
    assert "\n" not in str(caught.value)  # though a data-loading process told its whole story
    more = replace(tiny_job(data=data, workers=1), recipe=replace(tiny_job().recipe, epochs=2))
    assert len(read_metrics(train(more, resume=True))) == 2  # what was lost since the first epoch ends no run


def test_layer_wise_rates(tiny_job, tiny_model):
    job = tiny_job(recipe={"layer_decay": 0.5, "lr": 1.0, "freeze": 1})
    module = ClassifierTraining(tiny_model(), job.recipe, checkpoints.Preprocessing())
    rate = {id(p): group["lr"] for group in module._parameter_groups() for p in group["params"]}
    model = module.model
    assert rate[id(model.fc.weight)] == 1
    assert rate[id(model.stage.blocks[1].tokenizer.query.conv.weight)] == 0.5
    assert rate[id(model.stage.blocks[0].tokenizer.value.conv.weight)] == 0.25
    assert rate[id(model.backbone.layer3[0].conv1.weight)] == 0.125
    assert rate[id(model.backbone.layer1[0].bn1.bias)] == 2**-5
    assert id(model.backbone.conv1.weight) not in rate
    assert len(rate) == sum(p.requires_grad for p in model.parameters())
    decayed = {id(p) for g in module._parameter_groups() if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.requires_grad and p.ndim > 1}


def test_freezing_counts_the_papers_stages(tiny_job, tiny_model):
    for freeze, name in ((1, "bn1"), (2, "layer1"), (4, "layer3"), (5, "layer3")):
        recipe = tiny_job(recipe={"freeze": freeze}).recipe
        module = ClassifierTraining(tiny_model(), recipe, checkpoints.Preprocessing())
        assert module.frozen[-1] is getattr(module.model.backbone, name)
        assert module.model.fc.weight.requires_grad


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"accelerator": "tpu"}, ConfigError, "cannot use device 'tpu'"),
        ({"accelerator": "meta"}, ConfigError, "cannot use device 'meta'"),
        ({"model": "vt_resnet19"}, ConfigError, "did you mean 'vt_resnet18'"),
        ({"model": "vt_fpn_resnet18", "model_options": {}}, ConfigError, "is a segmentation model"),
        ({"model_options": {"tokens": 4}}, ConfigError, "no option 'tokens'; did you mean 'num_tokens'"),
        ({"data": "/nowhere"}, DataError, "no data folder at /nowhere"),
        ({"teacher": "no_such_teacher"}, CheckpointError, "no checkpoint named 'no_such_teacher'"),
        ({"start": "no_such_start"}, CheckpointError, "no checkpoint named 'no_such_start'"),
        ({"classes_file": "/nowhere.txt"}, DataError, "no class list"),
        ({"recipe": {"precision": "16-mixed"}}, ConfigError, "precision 16-mixed needs a GPU"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(tiny_job, fields, error, message):
    job = tiny_job(**fields)
    with pytest.raises(error, match=message) as caught:
        train(job)
    assert "\n" not in str(caught.value)
    assert not Path(job.out).exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pixels": "disk"}, "pixels must be host or device, got 'disk'"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
    ],
)
def test_a_job_checks_its_fields(tiny_job, fields, message):
    with pytest.raises(ConfigError, match=message):
        tiny_job(**fields)


def test_a_job_comes_back_from_its_file_or_says_why_not(tiny_job, tmp_path):
    job = tiny_job()
    assert TrainingJob.from_dict(json.loads(json.dumps(vars(job) | {"recipe": vars(job.recipe)}))) == job
    (tmp_path / "run.json").write_text('{"data": "x"}')
    with pytest.raises(TrainingError, match="is no training job"):
        read_job(tmp_path)
    with pytest.raises(ConfigError, match="a job has no field 'epoch'"):
        TrainingJob.from_dict({"epoch": 1})
    assert replace(job, compile=True) != job


def test_pixels_on_the_device(tiny_job):
    run = train(tiny_job(pixels="device", recipe={"epochs": 1, "augment": "jitter"}))
    assert len(read_metrics(run)) == 1


@pytest.mark.slow
def test_a_compiled_model_trains_and_loads(tiny_job):
    run = train(tiny_job(compile=True, recipe={"epochs": 1, "sizes": "32-64"}))
    assert vtviz.load_model(run).card.epochs == 1


@pytest.mark.parametrize(
    ("name", "kind", "nesterov"), [("sgd", "SGD", False), ("nesterov", "SGD", True), ("rmsprop", "RMSprop", None)]
)
def test_each_optimiser_is_the_one_that_was_asked_for(tiny_job, name, kind, nesterov):
    run = train(tiny_job(name, recipe={"epochs": 1, "optimizer": name, "momentum": 0.8, "rmsprop_decay": 0.7}, limit=8))
    group = torch.load(run / STATE, weights_only=False)["optimizer_states"][0]["param_groups"][0]
    assert group["momentum"] == 0.8
    assert group.get("nesterov") is nesterov
    assert ("alpha" in group) == (kind == "RMSprop")
