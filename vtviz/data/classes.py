"""Class lists of published segmentation sets, groups of classes, and how one list of classes reaches another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vtviz.errors import ConfigError, DataError, did_you_mean

Groups = Mapping[str, Sequence[str]]
"""Group -> names of the classes in it."""
Palette = tuple[tuple[int, int, int], ...]
"""One (r, g, b) of 0-255 per class."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


COCO_STUFF = _names("""
    banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
    ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
    floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other,
    grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin,
    net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock,
    roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
    structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other,
    wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
""")
"""COCO-Stuff's 91 stuff classes (Caesar et al. 2018), in the order of their ids 92 to 182."""

COCO_PANOPTIC_STUFF = _names("""
    things, banner, blanket, bridge, cardboard, counter, curtain, door-stuff, floor-wood, flower, fruit, gravel,
    house, light, mirror-stuff, net, pillow, platform, playingfield, railroad, river, road, roof, sand, sea, shelf,
    snow, stairs, tent, towel, wall-brick, wall-stone, wall-tile, wall-wood, water, window-blind, window, tree, fence,
    ceiling, sky, cabinet, table, floor, pavement, mountain, grass, dirt, paper, food, building, rock, wall, rug
""")
"""The 54 classes that Detectron2 trains semantic FPNs on: all things as one, and COCO panoptic's 53 stuff classes."""

LIP = _names("""
    Background, Hat, Hair, Glove, Sunglasses, UpperClothes, Dress, Coat, Socks, Pants, Jumpsuits, Scarf, Skirt, Face,
    Left-arm, Right-arm, Left-leg, Right-leg, Left-shoe, Right-shoe
""")
"""Look Into Person's 20 classes (Gong et al. 2017), in the order of their indices."""

GROUPS: dict[str, Groups] = {
    "ccp14": {
        "background": _names("null"),
        "hair": _names("hair"),
        "skin": _names("skin"),
        "hat": _names("hat"),
        "glasses": _names("glasses, sunglasses"),
        "upper": _names("""
            blouse, bra, bodysuit, cardigan, hoodie, intimate, jumper, shirt, sweater, sweatshirt, swimwear, t-shirt,
            top, vest
        """),
        "outer": _names("blazer, cape, coat, jacket, suit"),
        "dress": _names("dress, romper"),
        "skirt": _names("skirt"),
        "trousers": _names("jeans, leggings, pants, panties, shorts"),
        "legwear": _names("socks, stockings, tights"),
        "shoes": _names("boots, clogs, flats, heels, loafers, pumps, sandals, shoes, sneakers, wedges"),
        "bag": _names("bag, purse, wallet"),
        "accessory": _names("accessories, belt, bracelet, earrings, gloves, necklace, ring, scarf, tie, watch"),
    },
}
"""Groups by name. ``ccp14``: Clothing Co-Parsing's 59 classes, most of them almost empty, as 14."""

BACKGROUNDS = frozenset({"background", "null"})
"""Classes that stand for everything else, drawn black."""


def plain_name(name: str) -> str:
    """A name without what data sets disagree on: case, and blanks, ``_`` or ``-`` between words."""
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def find_class(text: str, classes: Sequence[str]) -> int:
    """A class by its name in any spelling, or by its index.

    Raises:
        ConfigError: for what is neither.
    """
    names = [plain_name(name) for name in classes]
    if plain_name(text) in names:
        return names.index(plain_name(text))
    if text.isdecimal() and len(text) < 9 and int(text) < len(classes):
        return int(text)
    raise ConfigError(f"the model has no class {text[:80]!r}{did_you_mean(text, classes)}")


def find_groups(groups: Groups | str) -> Groups:
    """The groups themselves, or those of a name in :data:`GROUPS`.

    Raises:
        DataError: for an unknown name, or a class that stands in two groups.
    """
    if isinstance(groups, str):
        if groups not in GROUPS:
            raise DataError(f"unknown groups {groups!r}{did_you_mean(groups, GROUPS)}")
        groups = GROUPS[groups]
    owner: dict[str, str] = {}
    for group, members in groups.items():
        for name in members:
            if (other := owner.setdefault(plain_name(name), group)) != group:
                raise DataError(f"class {name!r} stands in two groups, {other!r} and {group!r}")
    return groups


def match_classes(
    classes: Sequence[str], model_classes: Sequence[str], groups: Groups | str | None = None
) -> tuple[int, ...]:
    """Where each class of a data set goes among a model's classes, by name and never by position.

    A class that is in one of ``groups`` goes to the model's class of the group's name; any other to the model's class
    of its own name (:func:`plain_name` of both).

    Returns:
        For each of ``classes`` an index into ``model_classes``.

    Raises:
        DataError: naming the classes that have no place.
    """
    wanted = {plain_name(name): i for i, name in enumerate(model_classes)}
    owner = {} if groups is None else {plain_name(n): g for g, names in find_groups(groups).items() for n in names}
    places = [wanted.get(plain_name(owner.get(plain_name(name), name))) for name in classes]
    if lost := [name for name, place in zip(classes, places, strict=True) if place is None]:
        shown = ", ".join(map(repr, lost[:5])) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise DataError(
            f"no place for class {shown} among the model's {len(model_classes)} classes"
            f"{did_you_mean(lost[0], model_classes)}; groups may say where it belongs"
        )
    return tuple(place for place in places if place is not None)


def mirror_pairs(classes: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Index pairs of classes that change places in a mirrored image: "Left-arm" and "Right-arm"."""
    index = {plain_name(name): i for i, name in enumerate(classes)}
    pairs = ((i, index.get("right " + name[5:])) for name, i in index.items() if name.startswith("left "))
    return tuple((left, right) for left, right in pairs if right is not None)


def make_palette(classes: Sequence[str]) -> Palette:
    """A colour for each class: the same for the same number of classes, and as unlike each other as can be.

    Each colour is the one, of a grid over mid-bright sRGB, that lies farthest in Oklab from all before it, so that a
    longer list begins with the colours of a shorter one. :data:`BACKGROUNDS` are black.
    """
    levels = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _to_oklab(grid)
    usable = (lab[:, 0] > 0.4) & (lab[:, 0] < 0.93)
    grid, lab = grid[usable], lab[usable]
    distance = np.linalg.norm(lab - _to_oklab(np.zeros((1, 3))), axis=1)
    chosen: list[tuple[int, int, int]] = []
    for _ in classes:
        farthest = int(distance.argmax())
        chosen.append(tuple(grid[farthest].tolist()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=1))
    return tuple((0, 0, 0) if plain_name(c) in BACKGROUNDS else rgb for c, rgb in zip(classes, chosen, strict=True))


def _to_oklab(rgb: np.ndarray) -> np.ndarray:
    """(n, 3) sRGB 0-255 -> Oklab (Ottosson 2020), where equal distances look about equally different."""
    srgb = rgb / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )
