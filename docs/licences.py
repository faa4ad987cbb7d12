"""Write docs/licences.md: the licence of every package in requirements.lock, from the installed packages' own metadata.

python docs/licences.py [--check]
"""

import argparse
import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))  # whether vtviz is installed or not
from docs import enclosed
from vtviz.errors import DataError, VtvizError

PAGE, REQUIREMENTS = CLONE / "docs" / "licences.md", CLONE / "requirements.txt"
MARKS = ("<!-- licences: written by docs/licences.py -->\n", "<!-- end of licences -->\n")
COPYLEFT = re.compile(r"\b[AL]?GPL|\bMPL|\bEPL|\bCDDL|\bEUPL", re.IGNORECASE)
PROPRIETARY = re.compile(r"proprietary|nvidia", re.IGNORECASE)
LONGEST = 80
"""Characters of a licence; a longer text is the licence itself and not its name."""


def direct(path: Path = REQUIREMENTS) -> list[Requirement]:
    """The requirements of a file and of those that it includes."""
    found: list[Requirement] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found += direct(path.parent / line.removeprefix("-r ").strip())
        elif line.strip() and not line.startswith("#"):
            found.append(Requirement(line))
    return found


def installed(requirements: list[Requirement]) -> dict[str, Distribution]:
    """What they bring, by name, sorted: each package once, with what it needs itself.

    Raises:
        DataError: where one that is asked for directly is not installed.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(each, "") for each in requirements]
    while waiting:
        requirement, by = waiting.pop()
        name = plain(requirement.name)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        new = {(name, extra) for extra in ("", *requirement.extras)} - seen
        if not new:
            continue
        seen |= new
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            if not by:
                raise DataError(f"{name} is not installed: pip install -r {REQUIREMENTS.name}") from None
            continue  # of another platform
        for line in found[name].requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for _, extra in new):
                needed.marker = None
                waiting.append((needed, name))
    return dict(sorted(found.items()))


def plain(name: str) -> str:
    """A distribution's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(package: Distribution) -> str:
    """What a package says of its licence: an SPDX expression, else a short text, else its classifiers."""
    said = package.metadata.get_all("License-Expression") or package.metadata.get_all("License") or []
    if said and 0 < len(said[0].strip()) <= LONGEST * 2 and "\n" not in said[0].strip():
        return said[0].strip()
    names = [line for line in package.metadata.get_all("Classifier") or () if line.startswith("License ::")]
    return ", ".join(name.rpartition(" :: ")[2] for name in names) or "not stated"


def table() -> str:
    """The packages as Markdown, after a line on those that ask for more than to be named."""
    wanted = direct()
    packages = installed(wanted)
    names = {plain(each.name) for each in wanted}
    said = {name: licence(package) for name, package in packages.items()}
    marked = {
        "Copyleft": [name for name, text in said.items() if COPYLEFT.search(text)],
        "Proprietary": [name for name, text in said.items() if PROPRIETARY.search(text)],
    }
    lines = [f"{kind}: {', '.join(found) or 'none'}." for kind, found in marked.items()]
    lines += ["", "| package | version | licence | asked for by |", "| --- | --- | --- | --- |"]
    for name, package in packages.items():
        by = "this project" if name in names else "others"
        lines.append(f"| {name} | {package.version} | {said[name]} | {by} |")
    return "\n".join([*lines, ""])


def renewed(page: str) -> str:
    """The page with its table replaced."""
    return enclosed.renewed(page, MARKS, table, PAGE.name)


def main() -> None:
    """Write the page, or with --check only tell whether it is up to date."""
    parser = argparse.ArgumentParser(description="Write the table of docs/licences.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is out of date")
    check = parser.parse_args().check
    new = renewed(PAGE.read_text(encoding="utf-8"))
    enclosed.put(PAGE, new, check=check, hint="docs/licences.md: run python docs/licences.py")


if __name__ == "__main__":
    try:
        main()
    except VtvizError as error:
        sys.exit(f"error: {error}")
