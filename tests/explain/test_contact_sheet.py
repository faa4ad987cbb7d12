import numpy as np
import pytest
from PIL import Image

from vtviz.errors import ConfigError, DataError
from vtviz.explain.contact_sheet import contact_sheet
from vtviz.explain.dissection import dissect
from vtviz.predictor import Predictor

SIZE = 64


@pytest.fixture(scope="module")
def predictor(tiny_model):
    return Predictor(tiny_model())


@pytest.fixture
def folder(tmp_path, chelsea, coffee):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, photo in {"cat": chelsea[40:200, 60:260], "cup": coffee[:160, :100], "sub/cup": coffee[200:]}.items():
        Image.fromarray(np.ascontiguousarray(photo)).save(folder / f"{name}.png")
    return folder


def test_a_sheet_shows_the_photos_with_the_tokens_maps(predictor, folder):
    atlas = dissect(predictor, folder, size=SIZE, photos=3)
    calls = []
    sheet = contact_sheet(atlas, predictor, folder, -1, photos=2, side=64, progress=lambda *call: calls.append(call))
    assert sheet.width > 8 * 64
    assert 2 * 64 < sheet.height < 4 * 64
    assert calls[-1][0] == calls[-1][1] == len({p.file for peaks in atlas.layers[1].photos for p in peaks[:2]})
    colours = np.array(sheet).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 1000


def test_a_sheet_needs_the_photos(predictor, folder, tmp_path):
    atlas = dissect(predictor, folder, size=SIZE)
    with pytest.raises(DataError, match=r"is .* the folder photos that the atlas was made of"):
        contact_sheet(atlas, predictor, tmp_path)
    with pytest.raises(ConfigError, match="no layer 2"):
        contact_sheet(atlas, predictor, folder, 2)
