"""The command line's ``ablate``."""

# ruff: noqa: PLC0415 - heavy imports stand where they are needed

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtviz.console import Crop, Device, Json, Size, find_images, print_json
from vtviz.errors import ConfigError, DataError

if TYPE_CHECKING:
    from vtviz.explain.ablation import Ablation

REFERENCE_IMAGES = 64
"""At most so many images make the mean tokens, evenly spread over those given."""


def ablate(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image file.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="M", help="As [bold]vtviz extract[/bold] takes it."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--class", metavar="C", help="Watch this class, by name or index. [dim]\\[the first guess][/dim]"),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGES", help="Also put each token's mean over these images in its place; repeatable."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Segmentation: the right classes, for the change of the IoU.")
    ] = None,
    draws: Annotated[int, typer.Option(metavar="N", help="Shuffled maps a token.")] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the shuffles.")] = 0,
    size: Size = None,
    crop: Crop = None,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Also write DIR/ablation.json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take each token out, one at a time, and see what becomes of the answer.

    Beside it two baselines: the token gathered with its own map shuffled, and with a centred Gaussian. A token matters
    for [italic]where[/italic] it looks only as far as its absence matters more than those do.

    [bold]Examples[/bold]

    vtviz ablate cat.jpg --class "tabby cat"

    vtviz ablate street.png --model vt_fpn_resnet18_camvid --mask street_mask.png --json
    """
    from vtviz.data.segmentation import read_mask
    from vtviz.explain.ablation import ablate as run
    from vtviz.explain.ablation import mean_tokens
    from vtviz.predictor import DEFAULT_MODEL, check_device, load_model

    predictor = load_model(model or DEFAULT_MODEL, None if device is None else check_device(device))
    modes = ["absent", "random", "gaussian"]
    means = None
    if reference:
        files = find_images(reference)[0]
        means = mean_tokens(predictor, [str(f) for f in files[:: max(1, len(files) // REFERENCE_IMAGES)]])
        modes.insert(1, "mean")
    result = run(
        predictor,
        image,
        target=None if target is None else find_class(target, predictor.classes),
        modes=modes,
        reference=means,
        truth=None if mask is None else read_mask(mask),
        draws=draws,
        seed=seed,
        size=size,
        crop=crop,
    )
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "ablation.json").write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{out}: cannot write: {error.strerror or error}") from None
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)


def find_class(text: str, classes: tuple[str, ...]) -> int:
    """A class by its name in any spelling, or by its index.

    Raises:
        ConfigError: for what is neither.
    """
    from vtviz.data.classes import plain_name
    from vtviz.errors import did_you_mean

    names = [plain_name(name) for name in classes]
    if plain_name(text) in names:
        return names.index(plain_name(text))
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    raise ConfigError(f"the model has no class {text!r}{did_you_mean(text, classes)}")


def _print(result: Ablation) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(100, Console().width))
    if result.target is None:
        console.print("Share of the pixels that get another class, in %", highlight=False)
    else:
        console.print(
            f"Change of the probability of {result.classes[result.target]} ({result.probability:.1%}), in points",
            highlight=False,
        )
    for layer in result.layers:
        grid = Table(title=layer.name, title_justify="left", box=None)
        grid.add_column("token", justify="right")
        for mode in layer.effects:
            grid.add_column(mode, justify="right")
        columns = [_column(effects) for effects in layer.effects.values()]
        for token, cells in enumerate(zip(*columns, strict=True)):
            grid.add_row(f"{token}{' (kept)' if token < layer.kept else ''}", *cells)
        console.print(grid)


def _column(effects: Any) -> list[str]:
    values = effects.changed if hasattr(effects, "changed") else effects.probability
    return ["" if value != value else f"{100 * value:+.1f}" for value in values.tolist()]  # noqa: PLR0124 - NaN
