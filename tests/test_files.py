"""Files are replaced whole, whoever else writes them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from vtviz.files import replacing, write


def test_threads_that_write_one_file_leave_one_of_theirs_whole(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([number]) * 100_000 for number in range(4)]

    def rewrite(content: bytes) -> None:
        for _ in range(25):
            write(path, content)
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rewrite, contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    write(path, "old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.write("no bytes")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
