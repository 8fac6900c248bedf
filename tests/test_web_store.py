"""Where uploads and studies lie: names are ours, moves are whole, and a deletion says what it deleted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.errors import OutputError, UsageError
from cspine.web.models import new_id
from cspine.web.store import DiskFullError, Store, output_error


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


@given(st.text(max_size=40))
def test_a_name_that_is_not_ours_leads_nowhere(name: str) -> None:
    store = Store(Path("nowhere"))
    for place in (store.upload_folder, store.study_folder, store.files):
        with pytest.raises(UsageError):
            place(name)


@pytest.mark.parametrize("run", ["", "../x", "a/b", "A", "x" * 65, "a.b"])
def test_the_name_of_a_run_leads_nowhere_else(store: Store, run: str) -> None:
    with pytest.raises(UsageError):
        store.run_folder(new_id(), run)


def test_pieces_land_where_they_belong(store: Store) -> None:
    upload, file = new_id(), new_id()
    store.begin(upload)
    store.begin(upload)
    store.write_chunk(upload, file, 0, b"01234")
    store.write_chunk(upload, file, 5, b"56789")
    store.write_chunk(upload, file, 5, b"56789")
    assert store.part(upload, file).read_bytes() == b"0123456789"
    assert store.part(upload, file).stat().st_mode & 0o077 == 0, "nobody else on the machine may read it"


def test_sorted_files_become_a_study_once(store: Store) -> None:
    upload, study = new_id(), new_id()
    source = store.sorted_folder(upload) / "0"
    source.mkdir(parents=True)
    (source / "000001.dcm").write_bytes(b"x")
    for _ in range(2):
        store.adopt(upload, 0, study)
    assert (store.files(study) / "000001.dcm").read_bytes() == b"x"
    store.forget_parts(upload)
    store.adopt(upload, 0, study)
    with pytest.raises(OutputError):
        store.adopt(upload, 1, new_id())


def test_results_are_those_of_the_run_that_is_named(store: Store) -> None:
    study = new_id()
    assert store.results(SimpleNamespace(id=study, result=None)) is None
    assert store.results(SimpleNamespace(id=study, result="a-0")) is None
    store.run_folder(study, "a-0").mkdir(parents=True)
    assert store.results(SimpleNamespace(id=study, result="a-0")) == store.run_folder(study, "a-0")
    store.forget_run(study, "a-0")
    assert store.results(SimpleNamespace(id=study, result="a-0")) is None


def test_a_deletion_lists_what_was_there_and_leaves_nothing(store: Store) -> None:
    study = new_id()
    store.files(study).mkdir(parents=True)
    (store.files(study) / "000001.dcm").write_bytes(b"x")
    run = store.run_folder(study, "a-0")
    run.mkdir(parents=True)
    (run / "findings.json").write_bytes(b"{}")
    assert store.delete_study(study) == [
        ("files/000001.dcm", hashlib.sha256(b"x").hexdigest()),
        ("results/a-0/findings.json", hashlib.sha256(b"{}").hexdigest()),
    ]
    assert store.delete_study(study) == []
    assert [path for path in store.data.rglob("*") if path.is_file()] == []


def test_a_deletion_that_was_interrupted_is_finished(store: Store) -> None:
    left = store.data / "trash" / "old"
    left.mkdir(parents=True)
    (left / "a").write_bytes(b"x")
    store.sweep()
    assert not left.exists()


def test_what_a_disk_refuses_has_words() -> None:
    assert isinstance(output_error(OSError(28, "x")), DiskFullError)
    assert "Read-only file system" in output_error(OSError(30, "/secret/path")).message
    assert "secret" not in str(output_error(OSError(30, "/secret/path")))
