import logging
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vtviz
from vtviz import graph
from vtviz.cli import main
from vtviz.engines import ENGINES, TorchEngine, _cached, _GraphEngine, cache_folder, open_engine
from vtviz.errors import ConfigError, ImageError
from vtviz.predictor import Predictor, load_model
from vtviz.tokens import TokenMaps

ROOT = Path(vtviz.__file__).parent.parent
PARTS = ("coefficients", "tokens_in", "tokens_out", "attention", "projector")


@pytest.fixture(scope="session")
def graphs(tmp_path_factory) -> Path:
    """A cache that all tests here share, so that each model's graph is written once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(graphs, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(graphs))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """pytest keeps every log record for its reports, and torch writes thousands while it traces: half the time."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)


def need(engine: str) -> None:
    for package in ENGINES[engine]:
        pytest.importorskip(package, reason=f"engine {engine} needs {package}: pip install -r requirements-engines.txt")


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request) -> str:
    need(request.param)
    return request.param


def assert_close(got: TokenMaps, expected: TokenMaps, tolerance: float) -> None:
    """Maps within ``tolerance`` in x uniform, everything else relative to its largest value; checks still real."""
    assert got.geometry == expected.geometry
    np.testing.assert_allclose(got.logits, expected.logits, atol=tolerance * np.abs(expected.logits).max())
    for one, other in zip(got.layers, expected.layers, strict=True):
        np.testing.assert_allclose(
            one.times_uniform(), other.times_uniform(), atol=tolerance * other.times_uniform().max()
        )
        assert (one.coefficients >= 0).all()
        np.testing.assert_allclose(one.coefficients.sum((-1, -2)), 1, atol=1e-5)
        for part in PARTS:
            a, b = getattr(one, part), getattr(other, part)
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == np.float32
                np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), err_msg=part)


def test_engines_give_torchs_maps_at_any_size(engine, tiny_checkpoint, chelsea, coffee, astronaut):
    plain, other = load_model("tiny", "cpu"), load_model("tiny", engine=engine)
    photos = [chelsea, coffee[:100], astronaut, astronaut[::-1], chelsea[:, :60]]
    for size in (48, 224):
        for got, expected in zip(other.extract(photos, size=size), plain.extract(photos, size=size), strict=True):
            assert_close(got, expected, 1e-4)
            assert got.versions == {**expected.versions, engine: got.versions[engine]}
            assert all(layer.error < 1e-4 for layer in got.layers)
    assert [p.label for p in other.predict(chelsea)] == [p.label for p in plain.predict(chelsea)]
    assert_close(other.extract(chelsea, hook_free=True), plain.extract(chelsea), 1e-4)


def test_the_recomputation_check_reads_what_the_engine_computed(engine, tiny_checkpoint, chelsea):
    """A, V and T come out of the engine: with another A, A^T V would not be T."""
    predictor = load_model("tiny", engine=engine)
    x = torch.rand(1, 3, 64, 96)
    _, layers = predictor.forward(x)
    for tokenizer, _, _ in layers:
        a, v = tokenizer.coefficients.flatten(3), tokenizer.values.flatten(3)
        torch.testing.assert_close(v @ a.transpose(2, 3), tokenizer.gathered, atol=1e-5, rtol=1e-5)
        assert (v @ a.flip(-1).transpose(2, 3) - tokenizer.gathered).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_threads_share_one_predictor(engine, dtype, tiny_checkpoint, chelsea, coffee, astronaut, tally):
    if engine == "onnxruntime" and dtype == "bf16":
        pytest.skip("onnxruntime computes in float32")
    predictor = load_model("tiny", engine=engine, dtype=dtype)
    photos = [chelsea, coffee, astronaut, chelsea[::-1], coffee[:80], astronaut[:, ::-1]]
    alone = [predictor.extract(photo, size=64) for photo in photos]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda i: predictor.extract(photos[i % 6], size=64), range(36)))
    for i, maps in enumerate(together):
        assert np.array_equal(maps.logits, alone[i % 6].logits)
        for got, expected in zip(maps.layers, alone[i % 6].layers, strict=True):
            assert np.array_equal(got.coefficients, expected.coefficients)
            assert np.array_equal(got.tokens_out, expected.tokens_out)
    tally("calls of an engine from several threads", 36)


@pytest.mark.parametrize("engine_name", ["torch", "openvino"])
def test_bfloat16_stays_near_float32_and_maps_still_sum_to_1(engine_name, tiny_checkpoint, chelsea, astronaut):
    need(engine_name)
    plain, half = load_model("tiny", "cpu"), load_model("tiny", "cpu", engine=engine_name, dtype="bf16")
    for photo in (chelsea, astronaut):
        got, expected = half.extract(photo), plain.extract(photo)
        assert_close(got, expected, 0.2)
        assert got.versions["dtype"] == "bf16"
        assert "dtype" not in expected.versions
    if engine_name == "torch":
        assert not np.array_equal(got.logits, expected.logits)  # it did compute in bfloat16


def test_a_bfloat16_predictor_leaves_model_and_callers_as_they_are(tiny_model, chelsea):
    model = tiny_model()
    before = Predictor(model).extract(chelsea, size=64)
    half = Predictor(model, engine=open_engine("torch", model, dtype="bf16"))
    model.train()
    first = half.extract(chelsea, size=64)
    assert model.training
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):  # a caller's own must change nothing
        assert np.array_equal(half.extract(chelsea, size=64).logits, first.logits)
        assert np.array_equal(Predictor(model).extract(chelsea, size=64).logits, before.logits)
    assert not torch.is_autocast_enabled("cpu")
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_an_engine_keeps_the_model_as_it_was_and_torch_follows_it(engine, tiny_model, chelsea):
    model = tiny_model("resnet18")
    still, live = Predictor(model, engine=open_engine(engine, model, weights="tiny resnet18")), Predictor(model)
    before = live.predict(chelsea, size=64)
    with torch.no_grad():
        model.fc.weight.neg_()
    assert [p.label for p in still.predict(chelsea, size=64)] == [p.label for p in before]
    assert live.predict(chelsea, size=64) != before


def test_a_size_that_a_graph_does_not_take_is_one_line(engine, tiny_checkpoint):
    predictor = load_model("tiny", engine=engine)
    with pytest.raises(ConfigError, match="sides of 32 to 4096 pixels, multiples of 16, got 16 x 64; choose"):
        predictor.forward(torch.rand(1, 3, 16, 64))
    with pytest.raises(ConfigError, match="got 60 x 64"):
        predictor.forward(torch.rand(1, 3, 60, 64))


def test_a_sliver_that_a_graph_does_not_take_is_that_photo_s_error(tiny_model, tmp_path, chelsea):
    """Its input would be one cell of the coarsest map high; the photos beside it are done all the same."""
    model = tiny_model("vt_fpn_resnet18")
    predictor = Predictor(model, engine=_GraphEngine(model, [], lambda x: [], {}))  # it takes what a graph takes
    Image.fromarray(np.tile(chelsea[:10, :450], (1, 2, 1))).save(tmp_path / "sliver.png")
    sliver, photo = predictor.stream([tmp_path / "sliver.png", chelsea])
    assert isinstance(sliver, ImageError)
    assert re.fullmatch(r"\S*sliver\.png: an exported model takes sides of 64 .* got 32 x 1024; choose .*", str(sliver))
    assert photo.geometry.input == (192, 288)
    with pytest.raises(ImageError, match=r"^the image: an exported model takes"):
        predictor.segment(chelsea[:10])
    assert Predictor(model).open(tmp_path / "sliver.png").geometry.input == (32, 1024)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "openvin"}, "unknown engine 'openvin'; did you mean 'openvino'"),
        ({"dtype": "bf61"}, "unknown dtype 'bf61'; did you mean 'bf16'"),
        ({"engine": "onnxruntime", "dtype": "bf16"}, "computes in float32, got dtype 'bf16'"),
    ],
)
def test_wrong_engines_are_told_before_a_model_is_read(options, message):
    with pytest.raises(ConfigError, match=message):
        load_model("nowhere", **options)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_missing_packages_are_told_with_what_to_do(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"engine '{name}' needs more packages: pip install onnx onnxscript {name}$"):
        load_model(engine=name)


def test_engines_run_on_the_cpu(engine, tiny_model):
    with pytest.raises(ConfigError, match=f"'{engine}' runs on the CPU, got device 'meta'"):
        open_engine(engine, tiny_model().to("meta"))


def test_graphs_are_kept_and_a_damaged_one_is_made_anew(tmp_path, monkeypatch, tiny_model):
    need("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, x = tiny_model("resnet18"), torch.rand(1, 3, 64, 64)
    expected, _ = open_engine("onnxruntime", model, weights="w")(x)
    (kept,) = cache_folder().iterdir()
    changed, whole = kept.stat().st_mtime_ns, kept.read_bytes()
    open_engine("onnxruntime", model, weights="w")
    assert kept.stat().st_mtime_ns == changed
    kept.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(open_engine("onnxruntime", model, weights="w")(x)[0], expected)
    assert len(kept.read_bytes()) == len(whole)


def test_a_graph_is_that_of_its_configuration_too(tmp_path, monkeypatch, tiny_model):
    """Which need not show in the weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(graph, "freeze", lambda model: model)
    monkeypatch.setattr(graph, "trace", lambda model: model)
    monkeypatch.setattr(graph, "to_onnx", lambda model: str(model.config).encode())
    models = [tiny_model("vt_resnet18", static_scale=scaled) for scaled in (False, True)]
    for _ in range(2):
        for model in models:
            assert _cached(model, "the same weights") == str(model.config).encode()
    assert len(list(cache_folder().iterdir())) == 2


def test_a_user_without_a_home_has_no_cache_and_an_engine(monkeypatch, tiny_model):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(graph, "freeze", lambda model: model)
    monkeypatch.setattr(graph, "trace", lambda model: model)
    monkeypatch.setattr(graph, "to_onnx", lambda _: b"graph")
    assert _cached(tiny_model("resnet18"), "w") == b"graph"


def test_a_cache_that_cannot_be_written_costs_time_and_no_more(monkeypatch, tmp_path, tiny_model):
    need("onnxruntime")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    logits, layers = open_engine("onnxruntime", tiny_model("resnet18"), weights="w")(torch.rand(2, 3, 64, 64))
    assert (logits.shape, layers) == ((2, 5), [])


def test_openvino_reports_nothing_to_its_makers(graphs, tiny_checkpoint):
    need("openvino")
    load_model("tiny", engine="openvino")  # keeps the graph: what follows only reads it
    code = """
import socket, sys
def refuse(*args, **kwargs):
    print("CALLED HOME", args)
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import vtviz
from vtviz import graph
vtviz.load_model("tiny", engine="openvino")
print("openvino" in sys.modules, sorted(m for m in sys.modules if m.startswith("openvino_telemetry.")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "True []\n", done.stderr


def test_onnxruntime_reports_nothing_to_its_makers(graphs, tiny_checkpoint, tmp_path):
    """It would leave a number of this device in the user's home, whoever imports it first."""
    need("onnxruntime")
    load_model("tiny", engine="onnxruntime")
    engine, export = "vtviz.load_model('tiny', engine='onnxruntime')", "vtviz.export_model._onnx_runner(b'no graph')"
    for name, code in (("engine", engine), ("export", export)):
        cache = tmp_path / name / ".cache"
        cache.mkdir(parents=True)
        (cache / "vtviz").symlink_to(graphs / "vtviz")
        environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        environment |= {"HOME": str(cache.parent), "XDG_CACHE_HOME": str(cache)}
        lines = f"""
import contextlib, sys, vtviz.export_model
with contextlib.suppress(Exception):
    {code}
print("onnxruntime" in sys.modules)
"""
        command = [sys.executable, "-c", lines]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout == "True\n", done.stderr
        assert [path.name for path in cache.iterdir()] == ["vtviz"]


def test_verbs_take_an_engine_and_say_so_in_the_manifest(engine, tiny_checkpoint, tmp_path, chelsea, capsys):
    Image.fromarray(chelsea).save(tmp_path / "cat.png")
    command = ["extract", str(tmp_path / "cat.png"), "--out", str(tmp_path), "--model", "tiny", "--engine", engine]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--no-pictures"])
    assert not stop.value.code
    maps = TokenMaps.load(tmp_path / "cat")
    assert engine in maps.versions
    assert_close(maps, load_model("tiny", "cpu").extract(chelsea), 1e-4)
    for verb in ("segment", "extract"):
        with pytest.raises(SystemExit) as stop:
            main([verb, str(tmp_path / "cat.png"), "--out", str(tmp_path / "out"), "--engine", "tensorrt"])
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith("error: unknown engine 'tensorrt'; choose from onnxruntime, openvino")


def test_the_torch_engine_is_the_default(tiny_model):
    predictor = Predictor(tiny_model())
    assert predictor.engine == TorchEngine(predictor.model)
    assert predictor.engine.versions == {}


@pytest.mark.slow
def test_segmenters_run_on_engines(engine, tiny_segmenter, chelsea, astronaut):
    plain, other = load_model("segmenter", "cpu"), load_model("segmenter", engine=engine)
    for photo in (chelsea, astronaut[:300]):
        assert_close(other.extract(photo, size=160), plain.extract(photo, size=160), 1e-4)
        got, expected = other.segment(photo, size=160), plain.segment(photo, size=160)
        assert (got.labels == expected.labels).mean() > 0.999
        assert got.labels.shape == photo.shape[:2]


@pytest.mark.slow
def test_the_shipped_model_runs_on_every_engine(chelsea, coffee, astronaut):
    plain = load_model(device="cpu")
    for name, dtype, tolerance in (
        ("torch", "bf16", 0.15),
        ("onnxruntime", "float32", 1e-4),
        ("openvino", "float32", 1e-4),
        ("openvino", "bf16", 0.15),
    ):
        need(name)
        other = load_model(device="cpu", engine=name, dtype=dtype)
        for photo in (chelsea, coffee, astronaut):
            got, expected = other.extract(photo, crop="center"), plain.extract(photo, crop="center")
            assert got.topk(1)[0].label == expected.topk(1)[0].label
            assert_close(got, expected, tolerance)
