"""How selective token maps are, in numbers: logged by training, stated by model cards, shown by the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEAD_PEAK = 1.5
"""A token whose map peaks below this many times uniform looks everywhere alike: it is called dead."""


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """How selective the maps of one layer are. Arrays have one value per token.

    Attributes:
        peak: mean over the tokens of ``token_peak``.
        correlation: mean Pearson correlation over all pairs of maps; 0 where there is no pair or a map is constant.
        dead: number of tokens that peak below 1.5 x uniform.
        token_peak: largest value of each map, in x uniform.
        token_entropy: of each map, in nats.
        token_entropy_normalized: the same over its maximum log(cells), 1 for a uniform map.
        token_top10: share of each map's mass in its top 10 % of cells, 0.1 for a uniform map.
    """

    peak: float
    correlation: float
    dead: int
    token_peak: np.ndarray
    token_entropy: np.ndarray
    token_entropy_normalized: np.ndarray
    token_top10: np.ndarray

    def summary(self) -> dict[str, float | int]:
        """The three numbers of the layer as plain JSON data, for logs and model cards."""
        return {"peak": self.peak, "correlation": self.correlation, "dead": self.dead}


def map_statistics(coefficients: np.ndarray) -> LayerStatistics:
    """Statistics of token coefficient maps.

    Args:
        coefficients: (tokens, h, w), each map summing to 1; for a layer of several heads, their mean.
    """
    return stack_statistics(np.asarray(coefficients)[None])[0]


def stack_statistics(coefficients: np.ndarray) -> list[LayerStatistics]:
    """What :func:`map_statistics` says of each of several stacks of maps of one shape, such as a layer's heads.

    Args:
        coefficients: (n, tokens, h, w), each map summing to 1.
    """
    tokens = coefficients.shape[1]
    maps = np.asarray(coefficients, np.float64).reshape(len(coefficients), tokens, -1)
    cells = maps.shape[2]
    peaks = maps.max(axis=2) * cells
    entropy = -np.sum(maps * np.log(np.where(maps > 0, maps, 1)), axis=2)
    centred = maps - maps.mean(axis=2, keepdims=True)
    norms = np.linalg.norm(centred, axis=2, keepdims=True)
    # a constant map has nothing to correlate with but float32's rounding error, 1e-7 of its value
    varies = norms > 1e-6 / np.sqrt(cells)
    directions = np.divide(centred, norms, where=varies, out=np.zeros_like(centred))
    pairs = np.ascontiguousarray((directions @ directions.swapaxes(1, 2))[:, *np.triu_indices(tokens, 1)])
    correlation = pairs.mean(axis=1) if pairs.size else np.zeros(len(maps))
    ordered = np.sort(maps, axis=2)
    whole = int(0.1 * cells)  # a tenth of the cells is that many and a part of the next
    top10 = ordered[..., cells - whole :].sum(axis=2) + (0.1 * cells - whole) * ordered[..., cells - whole - 1]
    normalized = entropy / np.log(cells) if cells > 1 else np.ones_like(entropy)
    return [
        LayerStatistics(
            peak=float(peaks[i].mean()),
            correlation=float(correlation[i]),
            dead=int((peaks[i] < DEAD_PEAK).sum()),
            token_peak=peaks[i],
            token_entropy=entropy[i],
            token_entropy_normalized=normalized[i],
            token_top10=top10[i],
        )
        for i in range(len(maps))
    ]


def summarize(each: Sequence[LayerStatistics]) -> dict[str, float | int]:
    """One layer over many images: mean peak, mean correlation, and the tokens whose mean peak makes them dead."""
    peaks = np.mean([s.token_peak for s in each], axis=0)
    return {
        "peak": float(peaks.mean()),
        "correlation": float(np.mean([s.correlation for s in each])),
        "dead": int((peaks < DEAD_PEAK).sum()),
    }


def map_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How much of its mass each map shares with each other one: the sum over the cells of the smaller of the two.

    Args:
        first: (n, h, w), each map summing to 1.
        second: (m, h, w) likewise.

    Returns:
        (n, m) float64 in [0, 1]: 1 for equal maps, 0 for maps that share no cell.
    """
    ours, theirs = (np.asarray(maps, np.float64).reshape(len(maps), -1) for maps in (first, second))
    return np.stack([np.minimum(one, theirs).sum(axis=1) for one in ours])
