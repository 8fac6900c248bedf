"""One door for every layout of labelled studies."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.errors import DamagedFileError, UsageError
from cspine.studies.label_table import class_of, levels_in, safe_name, said
from cspine.studies.labelled import LabelledStudies, is_labelled, open_labelled
from cspine.studies.rsna import RsnaFolder
from labelled_factory import neck, picture, write_nifti_folder, write_phantoms, write_picture
from rsna_factory import studies, write_rsna_folder


def test_layouts_are_told_apart(tmp_path: Path) -> None:
    write_rsna_folder(tmp_path / "rsna", studies(2))
    write_phantoms(tmp_path / "phantoms", 1)
    write_nifti_folder(tmp_path / "nifti", [neck(1)])
    write_picture(tmp_path / "pictures" / "train" / "fractured" / "a.png", picture(1))
    write_picture(tmp_path / "pictures" / "train" / "normal" / "b.png", picture(2))
    for name, kind in (("rsna", "rsna2022"), ("phantoms", "phantoms"), ("nifti", "nifti"), ("pictures", "pictures")):
        opened = open_labelled(tmp_path / name)
        assert isinstance(opened, LabelledStudies)
        assert opened.kind == kind
        assert opened.path == tmp_path / name
        assert set(opened.labels()) == set(opened.studies)
        assert all(opened.files(study) for study in opened.studies)
        assert is_labelled(tmp_path / name)


def test_phantoms_in_the_layout_of_rsna_are_read_as_that(tmp_path: Path) -> None:
    write_phantoms(tmp_path, 2, "rsna2022")
    assert isinstance(open_labelled(tmp_path), RsnaFolder)


@pytest.mark.parametrize("part", ["train.csv", "train_bounding_boxes.csv"])
def test_of_the_rsna_folder_it_is_said_what_is_missing(tmp_path: Path, part: str) -> None:
    write_rsna_folder(tmp_path, studies(2))
    (tmp_path / part).unlink()
    with pytest.raises(UsageError, match=f"expected {part} in a folder of RSNA 2022 data"):
        open_labelled(tmp_path)


def test_an_unknown_layout_says_what_was_found_and_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("")
    write_picture(tmp_path / "b.png", picture(1))
    assert not is_labelled(tmp_path)
    with pytest.raises(UsageError, match=r"found 1 .txt, 1 .png|found 1 .png, 1 .txt") as caught:
        open_labelled(tmp_path)
    assert caught.value.fix is not None
    for known in ("RSNA 2022", "cspine phantom", "NIfTI", "fractured and normal"):
        assert known in caught.value.fix


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        open_labelled(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="found no files"):
        open_labelled(tmp_path)


@pytest.mark.parametrize(
    ("word", "means"),
    [("1", True), ("Fracture", True), ("yes", True), ("0", False), ("not_fractured", False), ("negative_study", False),
     ("Normal", False), ("", None), ("nan", None)],
)  # fmt: skip
def test_words_for_fractured(word: str, means: bool | None) -> None:
    assert said(word, where="row 1") is means


def test_other_words_are_no_labels() -> None:
    with pytest.raises(DamagedFileError, match=r"got 'maybe'.*row 1"):
        said("maybe", where="row 1")
    assert class_of("maybe") is None
    assert class_of("1") is None
    assert class_of("Not Fractured") is False


def test_levels_in_cells() -> None:
    assert levels_in("C5", where="") == (5,)
    assert levels_in("c6, 4", where="") == (4, 6)
    assert levels_in(" ", where="") is None
    with pytest.raises(DamagedFileError, match="C1 to C7"):
        levels_in("T1", where="row 2")


@given(st.text(max_size=120), st.text(max_size=120))
def test_safe_names_are_safe_and_stay_apart(one: str, other: str) -> None:
    names = safe_name(one), safe_name(other)
    for name in names:
        assert 0 < len(name) <= 120
        assert name[0].isalnum()
        assert not set(name) & set("/\\ \0:")
    assert (names[0] == names[1]) is (one == other) or len({one, other}) == 1
