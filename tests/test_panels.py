import numpy as np
import pytest

from vtviz.errors import ConfigError
from vtviz.panels import GAP, panel
from vtviz.render import colorbar

RED, BLUE = (200, 0, 0), (0, 0, 200)


def picture(colour: tuple[int, int, int], shape: tuple[int, int] = (30, 60)) -> np.ndarray:
    return np.full((*shape, 3), colour, np.uint8)


def boxes(figure, colour) -> tuple[np.ndarray, np.ndarray]:
    """First and last row and column of a colour."""
    rows, columns = np.nonzero((np.array(figure) == colour).all(axis=2))
    return np.array([rows.min(), rows.max()]), np.array([columns.min(), columns.max()])


def test_pictures_stand_in_rows_of_their_own_height():
    figure = panel([[picture(RED)] * 3, [picture(BLUE, (60, 60))] * 3], ["a", "b", "c"], width=50, text=10)
    red, columns = boxes(figure, RED)
    assert red.tolist() == [20, 20 + 24]
    assert columns.tolist() == [GAP, GAP + 2 * (50 + GAP) + GAP + 49]  # those after the first stand apart
    assert boxes(figure, BLUE)[0].tolist() == [20 + 25 + GAP, 20 + 25 + GAP + 49]
    assert figure.size == (GAP + 3 * (50 + GAP) + GAP, 20 + 25 + 50 + 2 * GAP)
    together = panel([[picture(RED)] * 3], ["a", "b", "c"], width=50, apart=3)
    assert boxes(together, RED)[1][1] == columns[1] - GAP


def test_captions_bar_and_key_take_room_of_their_own():
    rows, headings = [[picture(RED)] * 2] * 6, ["photo", "map"]
    plain = panel(rows, headings)
    captioned = panel(rows, headings, captions=[["", "a name that is much too long to fit"]] * 6)
    assert captioned.width == plain.width
    assert captioned.height - plain.height == 6 * 17
    ink = (np.array(captioned) < 80).all(axis=2)[26 + 54 : 26 + 54 + 17]  # what is written under the first row
    assert ink.any()
    assert np.flatnonzero(ink.any(axis=0)).min() > GAP + 108  # none under the photo
    scaled = panel(rows, headings, scale=(0, 8))
    bar = colorbar("jet", (0, 8), height=3 * 108)
    assert np.array_equal(np.array(scaled)[13 : 13 + bar.shape[0], -bar.shape[1] - GAP : -GAP], bar)
    keyed = panel(rows, headings, key=picture(BLUE, (20, 80)))
    assert boxes(keyed, BLUE)[0].tolist() == [plain.height + GAP, plain.height + GAP + 19]


def test_a_bar_is_no_higher_than_the_rows_where_they_are_few():
    assert panel([[picture(RED, (90, 90))]], ["a"], scale=(0, 1)).height < 200


@pytest.mark.parametrize(
    ("rows", "captions"), [([], None), ([[picture(RED)]], None), ([[picture(RED)] * 2], [["only one"]])]
)
def test_gaps_in_a_row_are_one_line(rows, captions):
    with pytest.raises(ConfigError, match="rows of 2 pictures and captions"):
        panel(rows, ["a", "b"], captions=captions)
