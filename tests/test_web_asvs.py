"""docs/reference/asvs.md: every requirement of level 1 and 2 is in it once, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reference" / "asvs.md"
# ASVS 5.0.0: how many requirements of levels 1 and 2 each section begins with; those of level 3 alone follow them.
SECTIONS = {
    "V1": (2, 9, 11, 3, 2), "V2": (3, 3, 4, 1), "V3": (0, 2, 4, 6, 5, 0, 2), "V4": (3, 1, 2, 4), "V5": (1, 3, 2, 3),
    "V6": (3, 12, 4, 4, 5, 3, 0, 4), "V7": (3, 4, 2, 5, 2, 2), "V8": (2, 3, 1, 1), "V9": (3, 4),
    "V10": (2, 2, 4, 11, 5, 2, 3), "V11": (2, 3, 3, 4, 1, 1), "V12": (3, 2, 4), "V13": (1, 5, 2, 5), "V14": (2, 4, 3),
    "V15": (3, 3, 7, 0), "V16": (1, 5, 4, 3, 3), "V17": (1, 4, 2),
}  # fmt: skip
WORDS = {"holds", "setting", "partly", "**no**", "outside", "none"}


def requirements() -> list[str]:
    return [
        f"{chapter}.{section}.{number}"
        for chapter, counts in SECTIONS.items()
        for section, count in enumerate(counts, 1)
        for number in range(1, count + 1)
    ]


def rows() -> list[list[str]]:
    """The cells of each line of a table that begins with a requirement."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| V\d", line)]


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_requirement_is_there_once() -> None:
    assert len(requirements()) == 253
    tail = DOCUMENT.read_text(encoding="utf-8").partition("## V17")[2]
    listed = [row[0] for row in rows()] + re.findall(r"V17\.\d\.\d", tail)
    assert sorted(listed) == sorted(requirements())


def test_each_is_judged_in_the_words_of_the_document_and_says_why() -> None:
    for number, about, judged, shown in rows():
        assert judged in WORDS and about, number
        assert shown or judged in ("none", "outside"), number


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", DOCUMENT.read_text(encoding="utf-8"))
    assert len(named) > 80
    assert [(file, name) for file, name in named if name not in names_in(file)] == []
