"""From a run folder to a checkpoint for others: float16 weights and a card whose every figure was measured on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vtviz import checkpoints
from vtviz.card import Card
from vtviz.data.folder import ClassList, open_folder
from vtviz.data.segmentation import open_segmentation
from vtviz.errors import CheckpointError, ConfigError
from vtviz.explain.dissection import best_token, untrained_twin
from vtviz.export import staged
from vtviz.predictor import Predictor, load_model
from vtviz.train.evaluation import evaluate_classifier
from vtviz.train.segmenter_evaluation import evaluate_segmenter

CHOOSING_IMAGES = 200
"""Training images with masks on which the token that covers people best is chosen."""


def publish_classifier(
    run: str | Path,
    target: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    sizes: Sequence[int] = (96, 128, 160),
    also: Sequence[str | Path] = (),
    masks: str | Path | None = None,
    licence: str = "",
    terms: str = "",
    notes: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Card:
    """Score a run's weights and write them with their card as ``target``.

    Args:
        run: run folder or checkpoint.
        target: the ``.safetensors`` file to write; its stem becomes the checkpoint's name.
        data: image folder to score on.
        split: its part.
        sizes: further input sizes, beside the model's own, to score at.
        also: further image folders to score on, at the model's own size (for one part of the data alone, say); the
            card tells them by their last names, which must differ.
        masks: segmentation folder (class 0 the background) on which to measure how well one token covers people,
            beside the same model untrained.
        licence: of the weights.
        terms: of the training data; by default what the run says.
        notes: for the card.
        say: told what is going on, a line at a time.

    Raises:
        CheckpointError, DataError, ConfigError: in one line.
    """
    target = Path(target)
    _check_names(also)
    card, predictor = _as_shipped(run, target, licence, terms)
    for folder in (data, *also):  # whatever is wrong with them is told before the work
        open_folder(folder, split, classes=ClassList(card.class_ids, card.classes))
    for size in sizes:
        predictor.fit((size, size), size=size)
    for part in ("train", "val") if masks is not None else ():
        open_segmentation(masks or "", part)
    say(f"scoring {target.stem} on {data}")
    main = evaluate_classifier(predictor, data, split=split)
    accuracy: dict[str, Any] = {
        "top1": main.top1,
        "top5": main.top5,
        "n": main.n,
        "data": main.data,
        "split": split,
        "size": main.size,
        "top1_by_size": {str(main.size): main.top1},
    }
    for size in sizes:
        say(f"at {size} pixels")
        accuracy["top1_by_size"][str(size)] = evaluate_classifier(predictor, data, split=split, size=size).top1
    for folder in also:
        say(f"on {folder}")
        other = evaluate_classifier(predictor, folder, split=split)
        accuracy.setdefault("also", {})[other.data] = {"top1": other.top1, "n": other.n}
    tokens: dict[str, Any] = dict(main.tokens)
    if masks is not None and predictor.strides:
        say(f"tokens against the masks of {masks}")
        tokens["person"] = person_overlap(predictor, masks)
    return checkpoints.save(target, predictor.model, replace(card, accuracy=accuracy, tokens=tokens, notes=notes))


def publish_segmenter(
    run: str | Path,
    target: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    licence: str = "",
    terms: str = "",
    notes: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Card:
    """Score a segmentation run's weights and write them with their card as ``target``; arguments as above.

    Raises:
        CheckpointError, DataError, ConfigError: in one line.
    """
    target = Path(target)
    card, predictor = _as_shipped(run, target, licence, terms)
    open_segmentation(data, split)
    say(f"scoring {target.stem} on {data}")
    scored = evaluate_segmenter(predictor, data, split=split)
    accuracy = scored.to_dict()
    tokens = accuracy.pop("tokens")
    for name in ("model", "flip", "scales"):
        del accuracy[name]
    return checkpoints.save(target, predictor.model, replace(card, accuracy=accuracy, tokens=tokens, notes=notes))


def _check_names(folders: Sequence[str | Path]) -> None:
    """Raise ConfigError where two folders have one name: in the card one's score would replace the other's."""
    seen: dict[str, str | Path] = {}
    for folder in folders:
        name = Path(folder).resolve().name
        if name in seen:
            raise ConfigError(f"also: {seen[name]} and {folder} would both be {name!r} in the card; rename one of them")
        seen[name] = folder


def _as_shipped(run: str | Path, target: Path, licence: str, terms: str) -> tuple[Card, Predictor]:
    """A run's card and its weights as they are shipped: float16, and loaded through the gate. ``target`` stays."""
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target}: a checkpoint's name must end in .safetensors")
    model, card = checkpoints.load(run)
    data = {**card.data, "terms": terms or card.data.get("terms", "")}
    named = replace(card, name=target.stem, licence=licence or card.licence, data=data, accuracy={})
    with staged(target.parent) as stage:
        named = checkpoints.save(stage / target.name, model, named)
        return named, load_model(stage / target.name, "cpu")


def person_overlap(predictor: Predictor, masks: str | Path) -> dict[str, Any]:
    """The static token that covers people best, chosen on "train" and scored on "val", beside an untrained model's.

    The untrained model has the same configuration and random weights, and its token is chosen and scored alike.
    """
    choosing, scoring = open_segmentation(masks, "train"), open_segmentation(masks, "val")
    person = range(1, len(choosing.classes))
    pair = predictor, untrained_twin(predictor)
    trained, untrained = (best_token(p, choosing, scoring, person, limit=CHOOSING_IMAGES) for p in pair)
    return {**asdict(trained), "untrained_iou": untrained.iou, "data": Path(masks).name}
