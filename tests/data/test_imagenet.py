"""ImageNet in small: archives made in the layout of the published ones, and Kaggle's folders."""

import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from vtviz.data import imagenet
from vtviz.data.folder import open_folder
from vtviz.data.imagenet import ARCHIVES, COMMAND, main, read_devkit, unpack
from vtviz.errors import DataError
from vtviz.images import load

io_matlab = pytest.importorskip("scipy.io", reason="SciPy is not installed")

CLASSES = {"n02012849": (2, "crane"), "n01440764": (3, "tench, Tinca tinca"), "n03126707": (1, "crane, derrick")}
"""WNID -> training images and synonyms, in the order of ILSVRC's own numbers, which is not the WNIDs'."""
LABELS = (3, 1, 1, 2)
"""Of the validation images, by ILSVRC's numbers."""
VAL = ["n03126707", "n02012849", "n02012849", "n01440764"]


def jpeg(number: int) -> bytes:
    """A picture whose grey says which it is."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 20,) * 3).save(file, "jpeg")
    return file.getvalue()


def pack(files: dict[str, bytes], mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def train_files(classes=CLASSES) -> dict[str, bytes]:
    """``WNID.tar`` of each class; picture i of class c has grey 20 * (3c + i)."""
    return {
        f"{wnid}.tar": pack({f"{wnid}_{10 * i}.JPEG": jpeg(3 * c + i) for i in range(count)})
        for c, (wnid, (count, _)) in enumerate(classes.items())
    }


def val_files() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(i) for i in (2, 1, 4, 3)}


def devkit_files(labels=LABELS, leave_out="nothing") -> dict[str, bytes]:
    """The kit: a struct array of leaves, and of an inner node that is no class."""
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    rows = [(i, wnid, words, "…", 0.0, n) for i, (wnid, (n, words)) in enumerate(CLASSES.items(), start=1)]
    rows.append((1001, "n00001740", "entity", "…", 3.0, 0))
    synsets = np.array(rows, np.dtype([*kinds, ("num_train_images", "f8")])).reshape(-1, 1)
    file = io.BytesIO()
    io_matlab.savemat(file, {"synsets": synsets}, do_compression=True)
    files = {
        "readme.txt": b"",
        "data/meta.mat": file.getvalue(),
        "data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{n}\n" for n in labels).encode(),
    }
    return {f"ILSVRC2012_devkit_t12/{name}": content for name, content in files.items() if leave_out not in name}


@pytest.fixture
def archives(tmp_path):
    """A folder with the three archives, or with others in their place."""
    folder = tmp_path / "imagenet"
    folder.mkdir()

    def make(train=None, val=None, devkit=None):
        (folder / ARCHIVES["train"]).write_bytes(pack(train_files()) if train is None else train)
        (folder / ARCHIVES["val"]).write_bytes(pack(val_files()) if val is None else val)
        (folder / ARCHIVES["devkit"]).write_bytes(devkit or pack(devkit_files(), "w:gz"))
        return folder

    return make


def grey(path) -> int:
    return round(load(path).mean() / 20)


def test_archives_become_folders_with_the_devkit_s_labels_and_names(archives):
    folder = archives()
    with pytest.raises(DataError, match=f"train is in its archive still; unpack it: {COMMAND} {folder}$"):
        open_folder(folder, "train")
    seen = []
    assert unpack(folder, progress=lambda *values: seen.append(values)) == folder
    train = open_folder(folder, "train")
    assert train.classes.ids == ("n01440764", "n02012849", "n03126707")
    assert train.classes.names == ("tench", "crane", "crane")
    assert [(p.name, grey(p)) for p in train.paths] == [
        *[(f"n01440764_{10 * i}.JPEG", 3 + i) for i in range(3)],
        *[(f"n02012849_{10 * i}.JPEG", i) for i in range(2)],
        ("n03126707_0.JPEG", 6),
    ]
    val = open_folder(folder, "val", classes=train.classes)
    assert {grey(p): p.parent.name for p in val.paths} == dict(enumerate(VAL, start=1))
    assert [val.classes.ids[t] for t in val.targets] == [p.parent.name for p in val.paths]
    assert [split for split, _, _ in seen] == ["train"] * 6 + ["val"] * 4
    assert all(0 < done <= total for _, done, total in seen)
    assert [done for _, done, _ in seen[:6]] == sorted({done for _, done, _ in seen[:6]})


def test_what_was_stopped_goes_on_and_is_no_data_set_before(archives, monkeypatch):
    folder = archives()
    copy, written = imagenet.shutil.copyfileobj, []

    def stop(source, target):
        if len(written) == 4:
            target.write(source.read(10))
            raise KeyboardInterrupt
        written.append(target.name)
        copy(source, target)

    monkeypatch.setattr(imagenet.shutil, "copyfileobj", stop)
    with pytest.raises(KeyboardInterrupt):
        unpack(folder)
    assert not (folder / "train").exists()
    with pytest.raises(DataError, match=f"train is half unpacked; {COMMAND} goes on with it"):
        open_folder(folder, "train")
    again = []
    monkeypatch.setattr(imagenet.shutil, "copyfileobj", lambda a, b: (again.append(b.name), copy(a, b)))
    unpack(folder, splits=["train"])
    assert len(again) == 2  # the one that was cut and the last
    assert not set(again) & set(written)
    assert len(open_folder(folder, "train")) == 6
    assert not list(folder.glob(".*"))
    (folder / ARCHIVES["train"]).unlink()
    unpack(folder)  # what is there needs no archive
    assert len(open_folder(folder, "val")) == 4


def test_archives_may_lie_elsewhere(archives, tmp_path):
    folder = archives()
    before = sorted(folder.iterdir())
    out = unpack(folder, tmp_path / "deep" / "er", splits=["val"])
    assert sorted(p.name for p in out.iterdir()) == ["LOC_synset_mapping.txt", "val"]
    assert sorted(folder.iterdir()) == before
    assert "n01440764 tench, Tinca tinca\n" in (out / "LOC_synset_mapping.txt").read_text()


@pytest.mark.parametrize("name", ["train", "val", "devkit"])
def test_a_missing_archive_is_named(archives, name):
    folder = archives()
    (folder / ARCHIVES[name]).unlink()
    with pytest.raises(DataError, match=f"has no {ARCHIVES[name]}; download it"):
        unpack(folder)
    assert not (folder / "train").exists()


def test_labels_and_devkit_are_checked(archives):
    kit = read_devkit(archives() / ARCHIVES["devkit"])
    assert kit.val == VAL
    assert kit.counts == {wnid: count for wnid, (count, _) in CLASSES.items()}
    folder = archives(devkit=pack(devkit_files((3, 4, 1)), "w:gz"))
    with pytest.raises(DataError, match="label 4 is none of the 3 classes"):
        unpack(folder)
    folder = archives(devkit=pack(devkit_files((3, 1, 1)), "w:gz"))
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000004\.JPEG has no label, there are 3"):
        unpack(folder)
    for lost in ("meta.mat", "ground_truth"):
        folder = archives(devkit=pack(devkit_files(leave_out=lost), "w:gz"))
        with pytest.raises(DataError, match=f"is not ImageNet's development kit: .*{lost}"):
            unpack(folder)
    bad = {"ILSVRC2012_devkit_t12/data/meta.mat": b"MATLAB" * 40}
    with pytest.raises(DataError, match="is not ImageNet's development kit"):
        unpack(archives(devkit=pack(bad, "w:gz")))


def test_wrong_numbers_leave_no_split_behind(archives):
    fewer = {**CLASSES, "n01440764": (2, "")}
    folder = archives(train=pack(train_files(fewer)))
    with pytest.raises(DataError, match=r"1 classes have other numbers .* first n01440764 with 2 of 3"):
        unpack(folder)
    folder = archives(train=pack({k: v for k, v in train_files().items() if "n03126707" not in k}))
    with pytest.raises(DataError, match="first n03126707 with 0 of 1"):
        unpack(folder)
    assert not (folder / "train").exists()
    other = {"n00000001": (1, "")}
    with pytest.raises(DataError, match=r"n00000001\.tar is none of the 3 classes"):
        unpack(archives(train=pack(train_files(other))))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["train", "val", "devkit"])
def test_an_archive_that_is_cut_off_is_no_split(archives, name, share):
    folder = archives()
    whole = (folder / ARCHIVES[name]).read_bytes()
    used = len(whole.rstrip(b"\0")) if name != "devkit" else len(whole)
    (folder / ARCHIVES[name]).write_bytes(whole[: int(share * used)])
    with pytest.raises(DataError, match=r"damaged or cut off|have other numbers"):
        unpack(folder)
    assert not (folder / ("val" if name == "val" else "train")).exists()


def hostile(kind: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        elif kind == "hard link":
            member.type, member.linkname = tarfile.LNKTYPE, "../../x"
        elif kind == "device":
            member.type = tarfile.CHRTYPE
        else:
            member.name = kind
        tar.addfile(member, io.BytesIO())
    return packed.getvalue()


@pytest.mark.parametrize("kind", ["link", "hard link", "device", "../../evil.py", "/tmp/evil.JPEG", "n01440764.tar"])
def test_only_files_of_the_expected_names_are_written(archives, tmp_path, kind):
    folder = archives(val=hostile(kind))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"(ILSVRC2012_val_00000001\.JPEG|evil|n01440764).* does not belong there"):
        unpack(folder, splits=["val"])
    assert [p.name for p in sorted(tmp_path.rglob("*")) if p not in before] == ["LOC_synset_mapping.txt"]


def test_paths_in_an_archive_do_not_count(archives):
    moved = {f"../../up/{name}": content for name, content in val_files().items()}
    folder = archives(val=pack(moved))
    unpack(folder, splits=["val"])
    assert len(open_folder(folder, "val")) == 4
    assert not (folder.parent / "up").exists()


def test_a_disk_that_refuses_is_one_line(archives, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imagenet.shutil, "copyfileobj", full)
    with pytest.raises(DataError, match="No space left on device; the same command goes on from there"):
        unpack(archives())


def test_without_scipy_it_says_what_to_install(archives, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match="pip install scipy"):
        unpack(archives())


def test_the_command(archives, capsys):
    folder = archives()
    main([str(folder), "--split", "val"])
    assert capsys.readouterr().out == (f"unpacked: vtviz train --recipe imagenet_paper --data {folder} --out RUN\n")
    (folder / ARCHIVES["train"]).unlink()
    done = subprocess.run([sys.executable, *COMMAND.split()[1:], folder], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {folder} has no {ARCHIVES['train']}; download it from image-net.org"
    )


@pytest.fixture
def kaggle(tmp_path):
    """Kaggle's copy: a flat val, its labels and the classes' names two folders up."""
    root = tmp_path / "imagenet-object-localization-challenge"
    images = root / imagenet.KAGGLE
    for wnid, (count, _) in CLASSES.items():
        (images / "train" / wnid).mkdir(parents=True)
        for i in range(count):
            (images / "train" / wnid / f"{wnid}_{i}.JPEG").touch()
    (images / "val").mkdir()
    rows = ["ImageId,PredictionString"]
    for number, wnid in enumerate(VAL, start=1):
        (images / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").touch()
        rows.append(f"ILSVRC2012_val_{number:08d},{wnid} 85 1 499 272 {wnid} 1 1 9 9 ")
    (root / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{w} {words}\n" for w, (_, words) in CLASSES.items()))
    return root


@pytest.mark.parametrize("below", ["", "ILSVRC/Data/CLS-LOC"])
def test_kaggle_s_copy_is_read_as_it_lies(kaggle, below, monkeypatch):
    train = open_folder(kaggle / below, "train")
    assert train.classes.names == ("tench", "crane", "crane")
    assert len(train) == 6
    val = open_folder(kaggle / below, "val", classes=train.classes)
    assert {int(p.stem[-8:]): val.classes.ids[t] for p, t in zip(val.paths, val.targets, strict=True)} == dict(
        enumerate(VAL, start=1)
    )
    monkeypatch.chdir(kaggle / imagenet.KAGGLE)
    assert open_folder(".", "val").targets == val.targets


def test_kaggle_s_labels_and_images_must_meet(kaggle):
    val = kaggle / imagenet.KAGGLE / "val"
    (val / "ILSVRC2012_val_00000009.JPEG").touch()
    with pytest.raises(DataError, match=r"00000009\.JPEG has no label in LOC_val_solution\.csv"):
        open_folder(kaggle, "val")
    (val / "ILSVRC2012_val_00000009.JPEG").unlink()
    (val / "ILSVRC2012_val_00000002.JPEG").unlink()
    with pytest.raises(DataError, match="labels 1 images that are not there, first 'ILSVRC2012_val_00000002'"):
        open_folder(kaggle, "val")
    (kaggle / "LOC_val_solution.csv").unlink()
    with pytest.raises(DataError, match="has no class folders"):
        open_folder(kaggle, "val")


@pytest.mark.parametrize(("name", "split"), [("LOC_synset_mapping.txt", "train"), ("LOC_val_solution.csv", "val")])
def test_kaggle_s_lists_in_another_encoding_are_one_line(kaggle, name, split):
    (kaggle / name).write_bytes("a café\n".encode("latin-1"))
    with pytest.raises(DataError, match=f"{name} is not UTF-8 text: .* byte 0xe9") as error:
        open_folder(kaggle, split)
    assert "\n" not in str(error.value)
