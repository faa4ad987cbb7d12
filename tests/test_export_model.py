import io
import json
import logging
import zipfile

import numpy as np
import pytest
import torch

from vtviz import export_model as export_model_module
from vtviz import graph
from vtviz.card import Preprocessing
from vtviz.cli import main
from vtviz.engines import ENGINES, import_onnxruntime
from vtviz.errors import ConfigError, DataError
from vtviz.export_model import FORMATS, TOLERANCE, export_model
from vtviz.models.registry import MODELS
from vtviz.predictor import Predictor, load_model

FAMILIES = ("vt_resnet18", "vt_resnet50", "resnet18", "vt_fpn_resnet18", "panoptic_fpn_resnet18")
"""Models that have every kind of node there is; deeper ones have more of them: traced, but not written as ONNX."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """pytest keeps every log record for its reports, and torch writes thousands while it traces: half the time."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)


@pytest.fixture
def needs_onnx():
    for package in ENGINES["onnxruntime"]:
        pytest.importorskip(package, reason=f"ONNX needs {package}: pip install -r requirements-engines.txt")


def test_pt2_has_logits_and_maps_by_name_and_takes_any_size(tiny_checkpoint, tmp_path):
    predictor = load_model("tiny", "cpu")
    done = export_model(predictor, tmp_path / "new" / "tiny.pt2")
    assert (done.format, done.multiple, done.sides) == ("pt2", 16, (32, 4096))
    assert done.outputs[0] == "logits"
    assert set(done.outputs[1:]) == {f"block{i}.{part}" for i in (0, 1) for part in graph.PARTS} - {"block1.projector"}
    extra = {"card.json": ""}
    model = torch.export.load(done.path, extra_files=extra).module()
    card = json.loads(extra["card.json"])
    assert card["sha256"] == predictor.card.sha256
    assert card["preprocessing"]["mean"] == list(predictor.preprocessing.mean)
    for shape in ((1, 32, 48), (3, 224, 224), (2, 320, 96)):  # 224 px are the position encoder's own 14 x 14
        image = torch.rand(shape[0], 3, *shape[1:])
        with torch.no_grad():
            got, (logits, blocks) = model(image), predictor.model(image, return_maps=True)
        torch.testing.assert_close(got["logits"], logits)
        for i, block in enumerate(blocks):
            torch.testing.assert_close(got[f"block{i}.coefficients"], block.tokenizer.coefficients)
            torch.testing.assert_close(got[f"block{i}.tokens_out"], block.transformer.tokens.transpose(1, 2))


@pytest.mark.slow
def test_onnx_runs_without_vtviz_and_says_what_it_is(needs_onnx, tiny_checkpoint, tmp_path, capsys, chelsea):
    with pytest.raises(SystemExit) as stop:
        main(["export", "--model", "tiny", "--format", "onnx", "--out", str(tmp_path / "tiny.onnx"), "--json"])
    assert not stop.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["outputs"] == list(told["differences"])
    assert max(told["differences"].values()) <= TOLERANCE
    session = import_onnxruntime().InferenceSession(told["path"], providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["card.json"])["name"] == "tiny"
    assert [i.name for i in session.get_inputs()] == ["image"]
    predictor = load_model("tiny", "cpu")
    expected = predictor.extract(chelsea, size=96)
    image = predictor.preprocessing.normalize(_input(predictor, chelsea)).numpy()
    for name, value in zip(told["outputs"], session.run(told["outputs"], {"image": image}), strict=True):
        layer, _, part = name.partition(".")
        if part in {"coefficients", "tokens_in", "tokens_out", "attention", "projector"}:
            wanted = getattr(expected.layers[int(layer[-1])], part)
            np.testing.assert_allclose(value[0], wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


def _input(predictor: Predictor, photo: np.ndarray) -> torch.Tensor:
    from vtviz import geometry

    return geometry.to_tensor(photo, predictor.fit(photo.shape[:2], size=96))[None]


def test_a_file_that_is_not_the_model_is_not_kept(tiny_model, tmp_path, monkeypatch):
    """As if the exporter had made a mistake: the traced model has other weights."""
    trace = graph.trace

    def mistaken(frozen: graph.Graph):
        other = graph.freeze(frozen.model)
        with torch.no_grad():
            other.model.fc.weight[0] += 0.01
        return trace(other)

    monkeypatch.setattr(graph, "trace", mistaken)
    with pytest.raises(DataError, match=r"not written: output logits differs by .* of its largest value, 1e-03"):
        export_model(Predictor(tiny_model("resnet18")), tmp_path / "wrong.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_file_that_gives_no_numbers_is_not_kept(tiny_model, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(
        export_model_module,
        "_pt2_runner",
        lambda _: lambda x: {"logits": torch.full((len(x), 5), wrong)},
    )
    with pytest.raises(DataError, match="not written: output logits differs by inf"):
        export_model(Predictor(tiny_model("resnet18")), tmp_path / "wrong.pt2")
    monkeypatch.setattr(export_model_module, "_pt2_runner", lambda _: lambda x: {"logits": torch.zeros(len(x), 1)})
    with pytest.raises(DataError, match="the file's logits is"):
        export_model(Predictor(tiny_model("resnet18")), tmp_path / "wrong.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_card_says_how_it_wants_its_images(tiny_model, tmp_path):
    wanted = Preprocessing(size=96, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    done = export_model(Predictor(tiny_model(), preprocessing=wanted), tmp_path / "own.pt2")
    extra = {"card.json": ""}
    torch.export.load(done.path, extra_files=extra)
    assert json.loads(extra["card.json"])["preprocessing"] == {
        "size": 96,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.5, 1.0],
    }


def test_a_model_is_left_as_it_was(tiny_model, tmp_path):
    model = tiny_model("resnet18").train()
    export_model(Predictor(model), tmp_path / "plain.pt2")
    assert model.training
    with zipfile.ZipFile(tmp_path / "plain.pt2") as file:
        card = next(name for name in file.namelist() if name.endswith("card.json"))
        assert json.load(io.BytesIO(file.read(card)))["name"] == "ResNet"


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("m.pth", None, "format must be onnx or pt2, got 'pth'"),
        ("m", None, "format must be onnx or pt2, got ''"),
        ("m.pt2", "onnx", "a file of format onnx must end in .onnx"),
        ("m.pt2", "tflite", "format must be onnx or pt2, got 'tflite'"),
    ],
)
def test_wrong_formats_are_told_before_any_work(name, form, message, tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export_model(Predictor(tiny_model()), tmp_path / name, form)


def test_a_disk_that_refuses_is_one_line(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        export_model(Predictor(tiny_model("resnet18")), tmp_path / "file" / "m.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_exported(name, form, tiny_model, tmp_path, request):
    if form == "onnx":
        request.getfixturevalue("needs_onnx")
    done = export_model(Predictor(tiny_model(name)), tmp_path / f"m{FORMATS[form]}")
    assert max(done.differences.values()) <= TOLERANCE
    assert len(done.outputs) > 8 or not name.startswith("vt_")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name not in FAMILIES])
def test_every_depth_is_exported(name, tiny_model, tmp_path):
    done = export_model(Predictor(tiny_model(name)), tmp_path / "m.pt2")
    assert max(done.differences.values()) <= TOLERANCE
    assert len(done.outputs) > 8 or not name.startswith("vt_")


@pytest.mark.slow
@pytest.mark.parametrize("preset", [preset for preset in MODELS["vt_resnet18"].presets if preset != "counts"])
def test_the_presets_are_exported(preset, tiny_model, tmp_path):
    done = export_model(Predictor(tiny_model("vt_resnet18", preset)), tmp_path / "m.pt2")
    assert ("block0.attention" in done.outputs) == (preset != "no_transformer")


@pytest.mark.slow
def test_the_shipped_model_is_exported(needs_onnx, tmp_path):
    done = export_model(load_model(device="cpu"), tmp_path / "shipped.onnx")
    assert done.differences["logits"] < 1e-4
