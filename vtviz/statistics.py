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
    maps = np.asarray(coefficients, np.float64).reshape(len(coefficients), -1)
    cells = maps.shape[1]
    peaks = maps.max(axis=1) * cells
    entropy = -np.sum(maps * np.log(maps, where=maps > 0, out=np.zeros_like(maps)), axis=1)
    centred = maps - maps.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    # a constant map has nothing to correlate with but float32's rounding error, 1e-7 of its value
    varies = norms[:, None] > 1e-6 / np.sqrt(cells)
    directions = np.divide(centred, norms[:, None], where=varies, out=np.zeros_like(centred))
    pairs = (directions @ directions.T)[np.triu_indices(len(maps), 1)]
    mass = np.cumsum(np.pad(np.sort(maps, axis=1)[:, ::-1], ((0, 0), (1, 1))), axis=1)
    whole = int(0.1 * cells)  # a tenth of the cells is that many and a part of the next
    return LayerStatistics(
        peak=float(peaks.mean()),
        correlation=float(pairs.mean()) if len(pairs) else 0.0,
        dead=int((peaks < DEAD_PEAK).sum()),
        token_peak=peaks,
        token_entropy=entropy,
        token_entropy_normalized=entropy / np.log(cells) if cells > 1 else np.ones_like(entropy),
        token_top10=mass[:, whole] + (0.1 * cells - whole) * (mass[:, whole + 1] - mass[:, whole]),
    )


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
