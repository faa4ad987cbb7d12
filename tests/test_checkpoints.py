import dataclasses
import errno
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import textwrap
from hashlib import sha256
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vtviz import checkpoints
from vtviz.card import Card, Preprocessing
from vtviz.errors import CheckpointError

ROOT = Path(__file__).resolve().parent.parent


def fails(match: str):
    return pytest.raises(CheckpointError, match=match)


def edit_card(path: Path, **fields) -> None:
    """Overwrite fields of the card beside ``path``; None removes one."""
    card = json.loads(path.with_suffix(".json").read_text()) | fields
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


def rewrite(path: Path, **changes) -> None:
    """Replace tensors (None removes one) and give the card the new hash: a well-made file with wrong contents."""
    tensors = safetensors.torch.load_file(path) | changes
    data = safetensors.torch.save({k: v for k, v in tensors.items() if v is not None})
    path.write_bytes(data)
    edit_card(path, sha256=sha256(data).hexdigest())


# saving and loading


def test_round_trip_in_float32_is_exact_and_leaves_the_world_alone(tmp_path, tiny_model, tiny_card):
    model = tiny_model()
    saved = checkpoints.save(tmp_path / "new" / "m.safetensors", model, tiny_card(model, seed=3), half=False)
    state = torch.get_rng_state()
    loaded, card = checkpoints.load(tmp_path / "new" / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert card == saved
    assert card.seed == 3
    assert card.sha256 == sha256((tmp_path / "new" / "m.safetensors").read_bytes()).hexdigest()
    assert not loaded.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    theirs = loaded.state_dict()
    assert list(theirs) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["m.json", "m.safetensors"]


def test_half_precision_halves_the_file_and_hardly_moves_the_logits(tmp_path, tiny_model, tiny_card):
    model = tiny_model().to(memory_format=torch.channels_last)
    for half in (True, False):
        checkpoints.save(tmp_path / f"{half}.safetensors", model, tiny_card(model), half=half)
    small, large = ((tmp_path / f"{half}.safetensors").stat().st_size for half in (True, False))
    assert small < 0.51 * large
    stored = safetensors.torch.load_file(tmp_path / "True.safetensors")
    assert {t.dtype for n, t in stored.items() if t.dim() > 1} == {torch.float16}
    assert {t.dtype for n, t in stored.items() if "running" in n or n.endswith("norm.weight")} == {torch.float32}
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = model(x), checkpoints.load(tmp_path / "True.safetensors")[0](x)
    assert not torch.equal(expected, got)
    assert torch.allclose(expected, got, atol=5e-3 * float(expected.std()))


def test_the_same_model_gives_the_same_bytes(tmp_path, tiny_model, tiny_card):
    cards = [checkpoints.save(tmp_path / f"{i}.safetensors", tiny_model(), tiny_card(tiny_model())) for i in range(2)]
    assert cards[0] == cards[1]


@pytest.mark.parametrize("name", ["resnet18", "vt_fpn_resnet18"])
def test_every_family_is_saved_and_loaded(tmp_path, tiny_model, tiny_card, name):
    model = tiny_model(name)
    task = "segmentation" if "fpn" in name else "classification"
    palette = tuple((i, 0, 255) for i in range(5)) if task == "segmentation" else None
    saved = checkpoints.save(
        tmp_path / "m.safetensors", model, tiny_card(model, model=name, task=task, palette=palette), half=False
    )
    loaded, card = checkpoints.load(tmp_path / "m.safetensors")
    assert card == saved
    x = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))


def test_save_refuses_what_load_would_refuse(tmp_path, tiny_model, tiny_card):
    model = tiny_model()
    card = tiny_card(model)
    with fails("must end in .safetensors"):
        checkpoints.save(tmp_path / "m.pt", model, card)
    with fails("configuration is not the card's"):
        checkpoints.save(tmp_path / "m.safetensors", tiny_model(num_tokens=8), card)
    with fails("not plain JSON"):
        checkpoints.save(tmp_path / "m.safetensors", model, dataclasses.replace(card, accuracy={"top1": float("nan")}))
    with torch.no_grad():
        model.fc.weight[0, 0] = 70_000  # more than float16 holds
    with fails("fc.weight has values too large for torch.float16; half=False may store them"):
        checkpoints.save(tmp_path / "m.safetensors", model, card)
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    with fails("fc.weight has values that are not finite"):
        checkpoints.save(tmp_path / "m.safetensors", model, card)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("files", [0, 1])
def test_a_full_disk_leaves_the_old_checkpoint_intact(files, tiny_checkpoint, tiny_model, tiny_card, monkeypatch):
    """Where it is full at once, and where the card goes on it and the weights do not."""
    before = tiny_checkpoint.read_bytes()
    written = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > files:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = tiny_model(num_tokens=8)
    with monkeypatch.context() as patch, fails("cannot write: No space left on device"):
        patch.setattr(os, "fsync", full)
        checkpoints.save(tiny_checkpoint, model, tiny_card(model))
    assert tiny_checkpoint.read_bytes() == before
    assert len(list(tiny_checkpoint.parent.iterdir())) == 2
    checkpoints.load("tiny")


# what the gate turns away


def deep(value, levels):
    """Dicts in each other, or lists."""
    for _ in range(levels):
        value = {"a": value} if isinstance(value, dict) else [value]
    return value


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_bytes(b""), "sha256"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "sha256 is .* its card says"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x01"), "sha256"),
        (lambda p: p.with_suffix(".json").unlink(), "tiny.json: cannot read: No such file"),
        (lambda p: p.with_suffix(".json").write_text("{"), "not a JSON model card"),
        (lambda p: p.with_suffix(".json").write_text("[" * 100_000), "not a JSON model card"),
        (lambda p: p.with_suffix(".json").write_bytes(b"\xff\xfe\xff"), "not a JSON model card"),
        (lambda p: p.with_suffix(".json").write_text(" " * (4 * 2**20 + 1)), "more than the 4,194,304"),
        (lambda p: p.with_suffix(".json").write_text("[]"), "must be a JSON object, got list"),
        (lambda p: edit_card(p, clases=[]), "no field 'clases'; did you mean 'classes'"),
        (lambda p: edit_card(p, classes=None), "lacks the field 'classes'"),
        (lambda p: edit_card(p, classes="abcde"), r"classes must be tuple\[str, ...\], got 'abcde'"),
        (lambda p: edit_card(p, classes=[1, 2, 3, 4, 5]), "classes must be"),
        (lambda p: edit_card(p, classes=["a"]), "1 classes, 5 class_ids and config.num_classes=5 must agree"),
        (lambda p: edit_card(p, class_ids=["a"] * 5), "must be unique"),
        (lambda p: edit_card(p, seed=True), "seed must be int"),
        (lambda p: edit_card(p, task="captioning"), "task must be one of"),
        (lambda p: edit_card(p, preprocessing={"size": 0}), "preprocessing needs a whole size"),
        (lambda p: edit_card(p, preprocessing={"mean": [0.5]}), "3 means"),
        (lambda p: edit_card(p, preprocessing={"sise": 3}), "card: preprocessing has no field 'sise'"),
        (lambda p: edit_card(p, palette=[1]), "palette must be"),
        (lambda p: edit_card(p, recipe=deep({}, 600)), "tiny.json: card: it goes more than 100 levels deep"),
        (lambda p: edit_card(p, recipe={"sizes": deep([], 600)}), "more than 100 levels deep"),
        (lambda p: edit_card(p, model="vt_resnet19"), "unknown model 'vt_resnet19'; did you mean"),
        (lambda p: edit_card(p, model="resnet18"), "resnet18 has no option 'stage'"),
        (lambda p: edit_card(p, config={"num_classes": 5}), "tiny.json: .*incomplete"),
    ],
)  # fmt: skip
def test_damaged_files_and_cards(tiny_checkpoint, damage, match):
    damage(tiny_checkpoint)
    with fails(match) as caught:
        checkpoints.load(tiny_checkpoint)
    assert "\n" not in str(caught.value)


def _file(header: bytes, tail: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + tail


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x01\x02", "header of"),
        (_file(b"", length=2**63), "header of 9,223,372,036,854,775,808 bytes in 8"),
        (_file(b" " * 17 * 2**20), "header of 17,825,792"),
        (_file(b"{}{}"), "damaged"),
        (_file(b"{}", b"tail"), "damaged"),
        (_file(b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'), "damaged"),
        (_file(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"0000"), "damaged"),
        (_file(b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"0000"), "damaged"),
        (pickle.dumps({"a": 1}), "header of"),
    ],
)
def test_malformed_safetensors(tiny_checkpoint, data, match):
    tiny_checkpoint.write_bytes(data)
    edit_card(tiny_checkpoint, sha256=sha256(data).hexdigest())
    for gate in (checkpoints.load, checkpoints.load_tensors):
        with fails(match) as caught:
            gate(tiny_checkpoint)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fc.weight": None}, "lacks 1 of .* tensors, the first is fc.weight"),
        ({"spare": torch.zeros(1)}, "has 1 tensors that the model has not, the first is spare"),
        ({"fc.weight": torch.zeros(6, 64)}, r"fc.weight: the model has shape \(5, 64\), the file \(6, 64\)"),
        ({"fc.bias": torch.zeros(5, dtype=torch.int64)}, "fc.bias: the model has torch.float32, the file torch.int64"),
        ({"fc.bias": torch.zeros(5, dtype=torch.float64)}, "the file torch.float64"),
        ({"backbone.bn1.num_batches_tracked": torch.tensor(0.5)}, "the model has torch.int64, the file torch.float32"),
        ({"fc.bias": torch.tensor([0, 0, float("nan"), 0, 0])}, "fc.bias has values that are not finite"),
        ({"fc.bias": torch.full((5,), float("inf"), dtype=torch.float16)}, "not finite"),
    ],
)
def test_weights_that_do_not_fit_the_model(tiny_checkpoint, changes, match):
    rewrite(tiny_checkpoint, **changes)
    with fails(match):
        checkpoints.load("tiny")


def test_a_card_cannot_ask_for_memory(tiny_checkpoint):
    """A configuration of a hundred petabytes costs nothing before the shapes are compared."""
    config = json.loads(tiny_checkpoint.with_suffix(".json").read_text())["config"]
    config["stage"]["token_channels"] = 10**9
    edit_card(tiny_checkpoint, config=config)
    with fails("the model has shape"):
        checkpoints.load("tiny")


def test_cards_are_json(tiny_model, tiny_card):
    card = tiny_card(tiny_model(), preprocessing=Preprocessing(96), epochs=2.5, tokens={"block0": {"peak": 4.5}})
    assert Card.from_dict(json.loads(json.dumps(card.to_dict()))) == card


@pytest.mark.parametrize("size", [16, 31, 1025, 224.0, True, "224"])
def test_a_size_that_no_call_would_take_is_refused_in_the_card(size):
    with fails(r"preprocessing needs a whole size of 32 to 1024, .* got "):
        Preprocessing(size=size)


def test_normalize():
    image = torch.tensor([0.485, 0.456, 1.0]).view(3, 1, 1).expand(3, 2, 4)
    out = Preprocessing().normalize(image)
    assert out.shape == (3, 2, 4)
    assert out[:, 0, 0].tolist() == pytest.approx([0, 0, (1 - 0.406) / 0.225])


# finding


def test_names_are_looked_up_in_the_known_folders_only(tiny_checkpoint, tmp_path, monkeypatch):
    assert "tiny" in checkpoints.available()
    assert checkpoints.find("tiny") == tiny_checkpoint
    with fails("no checkpoint named 'tinny' in .*did you mean 'tiny'"):
        checkpoints.find("tinny")
    monkeypatch.setenv("VTVIZ_CHECKPOINTS", os.pathsep.join(["", str(tmp_path / "none")]))
    monkeypatch.chdir(tiny_checkpoint.parent.parent)
    (tmp_path / "tiny").symlink_to(tiny_checkpoint.parent)
    assert "tiny" not in checkpoints.available()
    with fails(r"no checkpoint named 'tiny' .*for a path write ./NAME"):
        checkpoints.find("tiny")
    # a path is a path, however it is given
    (tmp_path / "checkpoints" / "tiny.safetensors").rename(tmp_path / "checkpoints" / "best.safetensors")
    for path in ("./tiny", Path("tiny"), tmp_path / "tiny"):
        assert checkpoints.find(path).name == "best.safetensors"
    monkeypatch.chdir(tmp_path / "tiny")
    assert checkpoints.find("best.safetensors") == Path("best.safetensors")


def test_a_checkpoint_of_ones_own_goes_before_a_shipped_one_and_the_first_folder_before_the_next(tmp_path, monkeypatch):
    for folder, name in (("one", "own"), ("two", "own"), ("two", "vt_resnet18_in109")):
        (tmp_path / folder).mkdir(exist_ok=True)
        for suffix in (".safetensors", ".json"):
            (tmp_path / folder / f"{name}{suffix}").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VTVIZ_CHECKPOINTS", os.pathsep.join(["~/one", str(tmp_path / "two")]))
    assert checkpoints.find("own") == tmp_path / "one" / "own.safetensors"
    assert checkpoints.find("vt_resnet18_in109") == tmp_path / "two" / "vt_resnet18_in109.safetensors"
    (tmp_path / "one" / "bare.safetensors").touch()
    names = checkpoints.available()
    assert names.count("own") == 1
    assert "bare" not in names  # it has no card


def test_a_run_folder_gives_its_best_weights_else_its_last(tmp_path):
    with fails("found none"):
        checkpoints.find(tmp_path)
    for name in ("epoch1", "epoch2"):
        (tmp_path / f"{name}.safetensors").touch()
    with fails("found epoch1.safetensors, epoch2.safetensors"):
        checkpoints.find(tmp_path)
    for name in ("last", "best"):
        (tmp_path / f"{name}.safetensors").touch()
        assert checkpoints.find(str(tmp_path)) == tmp_path / f"{name}.safetensors"
    with fails("not a folder or a .safetensors file"):
        checkpoints.find(tmp_path / "elsewhere")


def test_hugging_face_without_a_network(tiny_checkpoint, tmp_path):
    """A snapshot in the cache is used; anything else fails at once, in one line that says what to do."""
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    for suffix in (".safetensors", ".json"):
        shutil.copy(tiny_checkpoint.with_suffix(suffix), snapshot / f"model{suffix}")
    code = """
        import sys
        from vtviz import checkpoints
        assert "huggingface_hub" not in sys.modules
        print(checkpoints.load("hf://someone/tiny")[1].name)
        for source in ("hf://someone/else", "hf://a--b/c..d", "hf://nobody", "hf://a/b/c"):
            try:
                checkpoints.load(source)
            except checkpoints.CheckpointError as error:
                print(error)
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=True
    )
    first, missing, invalid, *others = done.stdout.splitlines()
    assert first == "tiny"
    assert missing.startswith("hf://someone/else: cannot download (")
    assert missing.endswith("or download the .safetensors and .json elsewhere and give their path")
    assert "cannot download (HFValidationError)" in invalid
    assert [line.endswith("is written hf://owner/name") for line in others] == [True, True]


# plain tensors


class _Malicious:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


def test_pickles_are_read_as_plain_tensors_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(2)}}, "good.pth")
    assert torch.equal(checkpoints.load_tensors("good.pth")["a"], torch.ones(2))
    torch.save({"a": _Malicious()}, "bad.pt")
    Path("garbage.pt").write_bytes(b"garbage")
    Path("empty.pt").touch()
    for name in ("bad.pt", "garbage.pt", "empty.pt"):
        with fails("not plain tensors") as caught:
            checkpoints.load_tensors(name)
        assert "\n" not in str(caught.value)
    assert not Path("owned").exists()
    for value in ([torch.ones(1)], {"a": 1}, {1: torch.ones(1)}):
        torch.save(value, "other.pt")
        with fails("must hold a dict of tensors"):
            checkpoints.load_tensors("other.pt")
    torch.save({"a": torch.tensor(float("nan"))}, "nan.pt")
    with fails("a has values that are not finite"):
        checkpoints.load_tensors("nan.pt")
    with fails("must be .safetensors, .pt or .pth"):
        checkpoints.load_tensors("good.npz")
    with fails("cannot read: No such file"):
        checkpoints.load_tensors("missing.pt")
    with fails("not a folder or a .safetensors file"):
        checkpoints.load("./good.pth")  # models come from safetensors alone


@pytest.mark.skipif(not list((ROOT / "checkpoints").glob("*.safetensors")), reason="no shipped checkpoints")
def test_every_shipped_checkpoint_passes_the_gate():
    for path in sorted((ROOT / "checkpoints").glob("*.safetensors")):
        model, card = checkpoints.load(path)
        assert card.name == path.stem
        assert card.licence
        with torch.no_grad():
            assert torch.isfinite(model(torch.zeros(1, 3, 64, 64))).all()
