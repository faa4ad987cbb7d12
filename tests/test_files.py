"""Files are replaced whole, whoever else writes them."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from vtviz.files import replacing, sweep, write


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


DIES = """
import os, pathlib, sys
from vtviz.files import replacing
with replacing(pathlib.Path(sys.argv[1])):
    os._exit(9)
"""
"""Ends as a killed process does, with a file half written."""


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    path = tmp_path / "last.safetensors"
    others = {path, tmp_path / ".mine.tmp", tmp_path / ".a.1-z.tmp", tmp_path / "b.1-a.tmp"}
    for other in others:
        write(other, "kept")
    assert subprocess.run([sys.executable, "-c", DIES, str(path)], check=False).returncode == 9
    assert set(tmp_path.iterdir()) > others
    sweep(tmp_path / "absent")
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == others
    assert path.read_text() == "kept"
