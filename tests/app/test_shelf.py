import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.shelf import LOADED, Shelf
from vtviz.errors import CheckpointError, ConfigError
from vtviz.predictor import DEFAULT_MODEL


def test_names_are_the_checkpoints_and_the_default_comes_first(models):
    names = Shelf().names
    assert {"own", "blank", "plain"} <= set(names)
    assert names == sorted(names, key=lambda name: (name != DEFAULT_MODEL, name))


def test_a_model_of_ones_own_comes_first_by_name_or_by_path(models, tmp_path):
    assert Shelf("plain").names[0] == "plain"
    run = tmp_path / "tuesday"
    run.mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(models / f"own{suffix}", run / f"best{suffix}")
    shelf = Shelf(str(run), device="cpu")
    assert shelf.names[0] == "tuesday/best"
    assert shelf.get("tuesday/best").name == "own"
    assert "tuesday/best" not in Shelf().names


@pytest.mark.parametrize("path", ["tuesday", "tuesday/best.safetensors"])
def test_a_path_means_the_same_in_every_folder(models, tmp_path, monkeypatch, path):
    """A training job works in another one than the page was started in."""
    (tmp_path / "tuesday").mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(models / f"own{suffix}", tmp_path / "tuesday" / f"best{suffix}")
    monkeypatch.chdir(tmp_path)
    shelf = Shelf(f"./{path}", device="cpu")
    monkeypatch.chdir("/")
    assert shelf.source("tuesday/best") == str(tmp_path / path)
    assert shelf.get("tuesday/best").name == "own"


@pytest.mark.parametrize("name", ["plain", "hf://owner/name"])
def test_a_name_stays_one(models, name):
    assert Shelf(name).source(name) == name


def test_a_model_that_is_not_there_is_told_at_once(models):
    with pytest.raises(CheckpointError, match="no such file"):
        Shelf("./nowhere.safetensors")
    with pytest.raises(ConfigError, match=r"no model 'onw'; did you mean 'own'\?"):
        Shelf("own").get("onw")


def test_only_offered_names_are_opened(models, shelf):
    """A name comes from the browser: it must not be a way to read files."""
    for name in (str(models / "blank.safetensors"), "../own", "hf://owner/name", None):
        with pytest.raises(ConfigError, match="this page has no model"):
            shelf.get(name)


@pytest.fixture
def crowded(models, tmp_path, monkeypatch) -> Shelf:
    """With more models, m0 and so on, than stay loaded."""
    for i in range(LOADED + 2):
        for suffix in (".safetensors", ".json"):
            shutil.copy(models / f"own{suffix}", tmp_path / f"m{i}{suffix}")
    monkeypatch.setenv("VTVIZ_CHECKPOINTS", str(tmp_path))
    return Shelf(device="cpu")


def test_few_models_stay_loaded(crowded):
    first = crowded.get("m0")
    assert crowded.get("m0") is first
    for i in range(1, LOADED + 1):
        crowded.get(f"m{i}")
    assert crowded.get("m0") is not first


def test_the_model_that_was_not_asked_for_longest_goes_first(crowded):
    loaded = [crowded.get(f"m{i}") for i in range(LOADED)]
    assert crowded.get("m0") is loaded[0]  # the oldest, but in use
    crowded.get(f"m{LOADED}")
    assert crowded.get("m0") is loaded[0]
    assert crowded.get("m1") is not loaded[1]


def test_two_callers_get_one_model(models):
    shelf = Shelf("own", device="cpu")
    with ThreadPoolExecutor(4) as pool:
        assert len(set(map(id, pool.map(shelf.get, ["own"] * 8)))) == 1


def test_models_run_on_the_engine_that_the_page_was_started_with(models, chelsea):
    predictor = Shelf("own", device="cpu", dtype="bf16").get("own")
    assert predictor.extract(chelsea, size=64).versions["dtype"] == "bf16"
    with pytest.raises(ConfigError, match="unknown engine 'openvin'; did you mean 'openvino'"):
        Shelf("own", engine="openvin")
