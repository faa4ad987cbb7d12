"""Writes results to a folder: arrays, facts, pictures. It receives finished results and computes nothing."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from vtviz import render
from vtviz.errors import DataError
from vtviz.files import spare
from vtviz.render_labels import label_overlay, palette_image
from vtviz.segmentation import Segmentation
from vtviz.token_grid import grid
from vtviz.tokens import TokenMaps

OVERLAYS = "overlays"
"""Subfolder of the pictures of single tokens."""


def write_extraction(
    maps: TokenMaps,
    folder: str | os.PathLike[str],
    *,
    pictures: bool = True,
    align: str = "receptive_field",
    cmap: str = "jet",
    scale: render.Scale = "shared",
) -> dict[str, Path]:
    """Write ``maps.npz``, ``manifest.json``, ``panel.png`` and ``overlays/<layer>_token<nn>.png`` into ``folder``.

    The files are made elsewhere first and moved in at the end, the manifest last, so that a folder with a manifest is
    complete. An extraction that was there before is replaced; other files in the folder stay.

    Args:
        maps: with their image, unless ``pictures`` is off.
        folder: made if it is not there.
        pictures: off writes the arrays and the manifest only.
        align: as :func:`vtviz.render.overlay` takes it.
        cmap: likewise.
        scale: likewise.

    Returns:
        File name, relative to the folder -> path of each file written.

    Raises:
        ConfigError: for an option that cannot work, or where a file would replace the image.
        DataError: where the disk refuses.
    """
    folder = Path(folder)
    with staged(folder) as stage:
        names = list(maps.save(stage))
        if pictures:
            names += _write_pictures(maps, stage, align, cmap, scale)
        names = sorted(set(names), key=lambda name: (name == "manifest.json", name))
        spare([maps.source], [folder / name for name in names])
        clear_extraction(folder, maps.source)
        return publish(stage, folder, names)


def write_segmentation(
    segmentation: Segmentation, folder: str | os.PathLike[str], name: str, *, opacity: float = 0.6
) -> dict[str, Path]:
    """Write ``<name>.png`` (the labels, a palette image), ``<name>_overlay.png`` and ``<name>.json`` into ``folder``.

    The files are made elsewhere first and moved in at the end, the JSON last. Those of these names are replaced.

    Args:
        segmentation: with its image.
        folder: made if it is not there.
        name: of the files.
        opacity: of the colours in the overlay, 0 to 1.

    Returns:
        File name -> path of each file written.

    Raises:
        ConfigError: for an option that cannot work, or where a file would replace the image.
        DataError: where the disk refuses.
    """
    folder = Path(folder)
    files = segmentation_files(name)
    labels, overlay, facts = files
    with staged(folder) as stage:
        palette_image(segmentation).save(stage / labels)
        _write_png(stage / overlay, label_overlay(segmentation, opacity=opacity))
        text = json.dumps(segmentation.to_dict(), indent=1, ensure_ascii=False)
        (stage / facts).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        return publish(stage, folder, files, images=[segmentation.source])


def segmentation_files(name: str) -> tuple[str, str, str]:
    """What :func:`write_segmentation` calls its files: labels, overlay, facts."""
    return f"{name}.png", f"{name}_overlay.png", f"{name}.json"


@contextmanager
def staged(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder within ``folder``, where files are made before :func:`publish` moves them in; what stays is removed.

    Raises:
        DataError: where the disk refuses, also what is done within.
    """
    made: list[Path] = []
    try:
        made += [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as stage:
            yield Path(stage)
    except OSError as error:
        raise DataError(f"{folder}: cannot write: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # where nothing came of it, no empty folders stay
            for path in made:
                path.rmdir()


def publish(
    stage: Path,
    folder: str | os.PathLike[str],
    names: Iterable[str],
    *,
    images: Iterable[str | os.PathLike[str] | None] = (),
) -> dict[str, Path]:
    """Move finished files from a stage into its folder, in this order; those of these names are replaced.

    Args:
        stage: where they are.
        folder: where they belong.
        names: of the files, relative to both.
        images: what was looked at, as :func:`vtviz.files.spare` takes it, which is never replaced.

    Returns:
        File name, relative to the folder -> path of each file.

    Raises:
        ConfigError: where one of the files is one of the images; then none is moved.
    """
    paths = {name: Path(folder) / name for name in names}
    spare(images, paths.values())
    for name, path in paths.items():
        path.parent.mkdir(exist_ok=True)
        (stage / name).replace(path)
    return paths


def _write_pictures(maps: TokenMaps, folder: Path, align: str, cmap: str, scale: render.Scale) -> list[str]:
    (folder / OVERLAYS).mkdir()
    _write_png(folder / "panel.png", grid(maps, align=align, cmap=cmap, scale=scale))
    names = ["panel.png"]
    for i, layer in enumerate(maps.layers):
        for token in range(layer.num_tokens):
            names.append(f"{OVERLAYS}/{layer.name}_token{token:02d}.png")
            _write_png(folder / names[-1], render.overlay(maps, i, token, align=align, cmap=cmap, scale=scale))
    return names


def _write_png(path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(path, compress_level=1)  # the default level takes six times as long


def clear_extraction(folder: Path, image: str | None) -> None:
    """Remove an earlier extraction, its manifest first; nothing from a folder that is none of ours.

    Raises:
        ConfigError: where ``image``, which was looked at, is part of it.
    """
    manifest = folder / "manifest.json"
    if not manifest.is_file() or b"vtviz token maps" not in manifest.read_bytes():
        return
    others = [folder / name for name in ("maps.npz", "image.png", "panel.png")]
    others += (folder / OVERLAYS).glob("*_token*.png")
    spare([image], others)
    for path in (manifest, *others):
        path.unlink(missing_ok=True)


def name_results(sources: Iterable[str | os.PathLike[str]], *endings: str) -> list[str]:
    """A name for each image's results: its file name without the suffix, safe on any disk, made unique by ``-2``, ....

    Args:
        sources: the images.
        endings: results are also called a name and one of these; no other image gets such a name.
    """
    taken: set[str] = set()
    names = []
    for source in sources:
        stem = re.sub(r"[^\w.+=@ -]+", "_", Path(source).stem)[:100]
        # a file's name has 255 bytes: the rest is for what is added, here, by the verbs and by vtviz.files
        stem = stem.encode()[:200].decode(errors="ignore").strip(" .") or "image"
        for name in (stem if i == 1 else f"{stem}-{i}" for i in count(1)):
            called = {(name + ending).casefold() for ending in ("", *endings)}
            if not called & taken:
                break
        taken |= called
        names.append(name)
    return names
