"""What the project stands on: ranges with both ends, a lock file with hashes, and the licences, all of one mind."""

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from docs import licences

CLONE = Path(__file__).resolve().parents[2]
FILES = sorted(CLONE.glob("requirements*.txt"))
LOCK = (CLONE / "requirements.lock").read_text()
LOCKED = {m[1]: m[2] for m in re.finditer(r"^([a-z0-9-]+)==(\S+)", LOCK, re.MULTILINE)}
DIRECT = {licences.plain(each.name): each for each in licences.direct()}
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
LINUX |= {"python_version": "3.11", "python_full_version": "3.11.0", "implementation_name": "cpython", "extra": ""}
LINUX |= {"platform_python_implementation": "CPython"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_requirement_has_a_floor_and_a_cap(file):
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith(("#", "-r "))]
    assert lines
    for line in lines:
        operators = sorted(each.operator for each in Requirement(line).specifier)
        assert operators == ["<", ">="], line


def test_what_is_installed_lies_within_the_ranges():
    outside = [
        f"{name} {have}" for name, each in DIRECT.items() if (have := distribution(name).version) not in each.specifier
    ]
    assert outside == []


def test_every_locked_package_has_one_version_and_hashes():
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE).strip())
    assert len(entries) == len(LOCKED) > 80
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==[^\s;]+( ;[^\\]+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\\n|$))+", entry), (
            entry
        )


def test_the_lock_satisfies_the_requirements():
    assert DIRECT.keys() <= LOCKED.keys()
    assert [name for name, each in DIRECT.items() if LOCKED[name] not in each.specifier] == []


def test_the_lock_has_all_that_its_packages_need():
    """As far as the packages installed here are the locked ones."""
    same, wanting = 0, []
    for name, package in licences.installed(list(DIRECT.values())).items():
        if package.version != LOCKED.get(name):
            continue
        same += 1
        for line in package.requires or ():
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate(LINUX):
                continue
            have = LOCKED.get(licences.plain(needed.name))
            if have is None or have not in needed.specifier:
                wanting.append(f"{name} needs {line}, the lock has {have}")
    assert wanting == []
    assert same > 40


def test_the_lock_says_how_it_is_made_and_there_is_a_target_for_it():
    assert LOCK.startswith("# ")
    assert "make lock" in LOCK[:300]
    made = (CLONE / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", made, re.MULTILINE) for target in ("lock", "audit", "licences"))
    assert "--generate-hashes" in made
    assert "--strict" in made  # or pip-audit says that all is well where it could ask nobody


# --- licences

PAGE = licences.PAGE.read_text(encoding="utf-8")
VERSIONS, ROWS = (
    dict(re.findall(rf"^\| ([a-z0-9]\S*) \| {columns} \|", PAGE.partition("| --- |")[2], re.MULTILINE))
    for columns in (r"(\S+) \| [^|]+", r"\S+ \| ([^|]+)")
)


def test_every_direct_requirement_is_listed_with_its_licence():
    assert DIRECT.keys() <= ROWS.keys()
    assert [name for name in DIRECT if ROWS[name].strip() == "not stated"] == []


def test_what_the_lock_brings_is_listed_and_nothing_else():
    assert VERSIONS == LOCKED


def test_copyleft_is_named_above_the_table():
    marked = {name for name, text in ROWS.items() if licences.COPYLEFT.search(text)}
    (line,) = re.findall(r"^Copyleft: (.*)\.$", PAGE, re.MULTILINE)
    assert set(line.split(", ")) == marked
    assert not [name for name in marked if re.search(r"\b[AL]?GPL", ROWS[name])]  # such a one is for a person to judge


def test_the_page_is_made_from_what_is_installed():
    new = licences.renewed(PAGE)
    assert new.startswith(PAGE[: PAGE.index(licences.MARKS[0])])
    for name in DIRECT:
        assert (
            f"| {name} | {distribution(name).version} | {licences.licence(distribution(name))} | this project |" in new
        )
    with pytest.raises(licences.VtvizError, match="has lost the lines"):
        licences.renewed("# Licences\n")


def test_a_package_that_is_not_there_is_one_line():
    with pytest.raises(licences.DataError, match=r"no-such-package is not installed: pip install -r requirements.txt"):
        licences.installed([Requirement("no-such-package>=1")])


@pytest.mark.parametrize("asked", [("fsspec", "fsspec[http]"), ("fsspec[http]", "fsspec")])
def test_what_an_extra_brings_is_found_whoever_asks_first(asked):
    assert {"fsspec", "aiohttp", "yarl"} <= licences.installed([Requirement(each) for each in asked]).keys()
