import numpy as np
import pytest

from vtviz.statistics import map_overlaps


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
