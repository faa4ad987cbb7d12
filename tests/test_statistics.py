import numpy as np
import pytest

from vtviz.statistics import LayerStatistics, map_overlaps, map_statistics, summarize


def test_many_images_are_summed_up_by_means_and_a_token_is_dead_by_its_mean_peak():
    nothing = np.zeros(3)

    def of(peaks, correlation) -> LayerStatistics:
        return LayerStatistics(float(np.mean(peaks)), correlation, 9, np.array(peaks), nothing, nothing, nothing)

    found = summarize([of([1.0, 1.0, 9.0], 0.25), of([1.25, 3.0, 1.0], 0.75)])  # means 1.125, 2 and 5
    assert found == {"peak": pytest.approx(8.125 / 3), "correlation": 0.5, "dead": 1}


def test_maps_of_rounding_errors_are_constant():
    """Two tokens that look everywhere alike have nothing in common but float32's last bit."""
    flat = np.full((2, 3, 10), 1 / 30, np.float32)
    flat[:, 0, 0] = np.nextafter(flat[0, 0, 0], np.float32(1))
    assert map_statistics(flat).correlation == 0


def test_the_top_tenth_of_25_cells_is_two_and_a_half():
    values = np.full((1, 5, 5), 0.01)
    values[0, 2, 2], values[0, 0, 4], values[0, 4, 4] = 0.5, 0.2, 0.08
    assert map_statistics(values).token_top10[0] == pytest.approx(0.5 + 0.2 + 0.08 / 2)


def test_overlap_is_the_mass_that_two_maps_share(chelsea):
    uniform = np.full((2, 2), 0.25)
    corner = np.array([[1.0, 0], [0, 0]])
    half = np.array([[0.5, 0.5], [0, 0]])
    found = map_overlaps(np.stack([uniform, corner]), np.stack([uniform, corner, half, corner[::-1]]))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[1, 0.25, 0.5, 0.25], [0.25, 1, 0.5, 0]])
    photo = chelsea.astype(np.float64).transpose(2, 0, 1)
    maps = photo / photo.sum(axis=(1, 2), keepdims=True)
    found = map_overlaps(maps, maps)
    np.testing.assert_allclose(np.diag(found), 1)
    np.testing.assert_allclose(found, found.T)
    assert found.max() <= 1 + 1e-12
    # 1 - overlap is half the summed distance of two distributions
    assert found[0, 1] == pytest.approx(1 - 0.5 * np.abs(maps[0] - maps[1]).sum())
