"""Whatever the bytes: opening succeeds or raises one typed error, without patient data, in little time and memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fuzz_mutations as mutations
from cspine.errors import DamagedFileError, GeometryError, StudyError, TooLargeError, UnsafeArchiveError
from cspine.studies import open_study
from cspine.studies.header import MAX_ITEMS, coded, scan, shown
from dicom_factory import Grid, write_series
from fuzz_reader_target import CORPUS, ENDINGS, Case, FindingError, check, samples, spoiled
from hostile_files import ITEM, before_patient, plain_slice, private

# The corpus is opened in a process of its own: what once crashed a decoder must not end the suite.
REPLAY = """
import sys, tempfile
from pathlib import Path
from fuzz_reader_target import CORPUS, Case, FindingError, check
with tempfile.TemporaryDirectory() as folder:
    for name in sys.argv[1:]:
        path = CORPUS / name
        try:
            check(Case(path.parent.name, path.read_bytes()), Path(folder))
            print(name, "fine", flush=True)
        except FindingError as finding:
            print(name, finding, flush=True)
"""
FOUND = sorted(path.relative_to(CORPUS).as_posix() for kind in ENDINGS for path in (CORPUS / kind).glob("*"))


@pytest.fixture(scope="module")
def replayed() -> dict[str, str]:
    """What became of each file of the corpus."""
    environment = {**os.environ, "PYTHONPATH": str(CORPUS.parent)}
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REPLAY, *FOUND],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    ends = dict(line.split(" ", 1) for line in child.stdout.splitlines() if " " in line)
    return {name: ends.get(name, f"the process ended with {child.returncode}") for name in FOUND}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_is_not_found_again(replayed: dict[str, str], name: str) -> None:
    assert replayed[name] == "fine"


@pytest.mark.parametrize("name", FOUND)
def test_a_file_of_the_corpus_is_small_and_has_the_name_of_its_content(name: str) -> None:
    data = (CORPUS / name).read_bytes()
    assert Case(Path(name).parent.name, data).name == Path(name).name
    assert len(data) < 16_384


@pytest.mark.parametrize("kind", ENDINGS)
def test_the_inputs_that_are_spoiled_are_valid(kind: str, tmp_path: Path) -> None:
    for data in samples(kind):
        check(Case(kind, data), tmp_path)


@pytest.mark.parametrize(
    ("kind", "examples"), [("dicom", 250), ("zip", 80), ("nifti", 120), ("packed", 60), ("picture", 80)]
)
def test_a_spoiled_file_opens_or_ends_in_a_typed_error(tmp_path: Path, kind: str, examples: int) -> None:
    samples(kind)

    @settings(max_examples=examples)
    @given(seed=st.integers(0, 2**32))
    def opens_or_not(seed: int) -> None:
        check(spoiled(kind, Random(seed)), tmp_path)

    opens_or_not()


@pytest.mark.parametrize("mutation", sorted(set(mutations.DICOM), key=lambda mutation: mutation.__name__))
def test_each_mutation_of_dicom_is_stood(tmp_path: Path, mutation: mutations.Mutation) -> None:
    for seed, data in enumerate(samples("dicom")):
        check(Case("dicom", mutation(data, Random(seed))), tmp_path)


def test_a_finding_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The property can fail: an error that is not ours, or a name in a message, is told."""
    case = Case("dicom", samples("dicom")[0])
    for error in (ValueError("anything"), StudyError("the patient is Secret^Name")):

        def broken(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("fuzz_reader_target.open_study", broken)
        with pytest.raises(FindingError):
            check(case, tmp_path)
    assert case.save(tmp_path) == Case("dicom", case.data).save(tmp_path)


# Limits, one by one ---------------------------------------------------------------------------------------------------


def test_the_headers_of_many_files_together_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path)
    assert open_study(tmp_path).shape[0] == 12
    monkeypatch.setattr("cspine.studies.dicom.MAX_KEPT_BYTES", 20_000)
    with pytest.raises(TooLargeError, match="headers together"):
        open_study(tmp_path)


def test_the_images_of_an_input_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path)
    monkeypatch.setattr("cspine.studies.series.MAX_PLANES", 11)
    with pytest.raises(TooLargeError, match="11 images"):
        open_study(tmp_path)


def test_the_directions_in_a_series_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspine.studies.series.MAX_DIRECTIONS", 5)

    def edit(index: int, ds: object) -> None:
        ds.PixelSpacing = [str(1 + index), "1"]  # type: ignore[attr-defined]

    write_series(tmp_path, edit=edit)
    with pytest.raises(GeometryError, match="5 directions"):
        open_study(tmp_path)


def test_the_items_and_values_of_a_header_are_limited(tmp_path: Path) -> None:
    data = plain_slice(tmp_path / "a.dcm")
    groups = (ITEM + bytes(4)) * (MAX_ITEMS + 1)
    many = before_patient(data, b"\x00\x52\x29\x92SQ\0\0" + struct.pack("<I", len(groups)) + groups)
    long = before_patient(data, b"\x08\x00\x3e\x10LO" + struct.pack("<H", 60_000) + bytes(60_000))
    for spoilt, said in (
        (many, "500000 items"),
        (long, "at most 4096 bytes"),
        (before_patient(data, private(2**30)), "1073741824"),
    ):
        with pytest.raises(DamagedFileError, match=said):
            scan(spoilt, complete=False, where="x")


@pytest.mark.parametrize("how", ["comment", "zip64"])
def test_an_archive_with_too_long_a_list_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(100):
            archive.writestr(f"{k}.txt", "x")
        archive.comment = b"a comment" if how == "comment" else b""
    if how == "zip64":
        data = path.read_bytes()
        at = data.rindex(b"PK\x05\x06")
        size, start = struct.unpack_from("<II", data, at + 12)
        end = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 100, 100, size, start)
        locator = b"PK\x06\x07" + struct.pack("<IQI", 0, at, 1)
        path.write_bytes(data[:at] + end + locator + data[at : at + 12] + b"\xff" * 8 + b"\0\0")
        assert len(zipfile.ZipFile(path).namelist()) == 100
    monkeypatch.setattr("cspine.studies.files.MAX_DIRECTORY_BYTES", 1000)
    with pytest.raises(UnsafeArchiveError, match="list of entries"):
        open_study(path)


def test_large_slices_are_decoded_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the same when nothing more than one frame may be under way."""
    write_series(tmp_path, Grid(rows=64, columns=64), syntax="1.2.840.10008.1.2.4.70")
    usual = open_study(tmp_path)
    monkeypatch.setattr("cspine.studies.assemble.IN_FLIGHT_BYTES", 1)
    monkeypatch.setattr("cspine.studies.intensity._BLOCK_VOXELS", 64)
    assert (open_study(tmp_path).hu == usual.hu).all()


@pytest.mark.parametrize(
    ("function", "fine", "hidden"),
    [
        (shown, "1.5\\2e3", "Secret^Name"),
        (shown, "nan", "1" * 100),
        (coded, "MR", "Secret^Name"),
        (coded, "1.2.840", "MÜLLER"),
    ],
)
def test_messages_repeat_only_numbers_and_codes(function: Callable[[str], str], fine: str, hidden: str) -> None:
    assert fine.strip("'") in function(fine).replace("\\\\", "\\")
    assert hidden not in function(hidden)
