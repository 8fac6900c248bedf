"""Results appear whole or not at all, and an old one never stands in for a new one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cspine import reports
from cspine.errors import OutputError
from cspine.reports import FORMATS, Format, atomic, html
from report_factory import make_findings, make_volume


def test_folder_holds_exactly_the_result(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    written = reports.write(make_findings(), make_volume(), out)
    assert sorted(path.name for path in out.iterdir()) == ["findings.json", "report.html"]
    assert set(written.values()) == set(out.iterdir())


def test_files_of_an_earlier_result_go(tmp_path: Path) -> None:
    reports.write(make_findings(), make_volume(), tmp_path)
    (tmp_path / "notes.txt").write_text("the user's own")
    reports.write(make_findings(), make_volume(), tmp_path, formats=("json",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["findings.json", "notes.txt"]


def test_clear_removes_only_results(tmp_path: Path) -> None:
    reports.write(make_findings(), None, tmp_path)
    (tmp_path / "summary.csv").write_text("of many studies")
    reports.clear(tmp_path)
    reports.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]


def _full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_full_disk_leaves_nothing_of_either_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    reports.write(make_findings(), None, tmp_path)
    monkeypatch.setattr(os, failing, _full_disk)
    with pytest.raises(OutputError, match=r"no space left.*Free some space") as caught:
        reports.write(make_findings(), None, tmp_path)
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_between_two_files_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., None] = os.replace
    done: list[str] = []

    def once(source: str, target: str) -> None:
        if done:
            _full_disk()
        done.append(str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(OutputError):
        reports.write(make_findings(), None, tmp_path)
    assert [Path(name).name for name in done] == ["report.html"]
    assert list(tmp_path.iterdir()) == []


def test_findings_appear_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., None] = os.replace
    order: list[str] = []

    def spy(source: str, target: str) -> None:
        order.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "replace", spy)
    reports.write(make_findings(), None, tmp_path, formats=("json", "html", "csv"))
    assert order == ["report.html", "findings.csv", "findings.json"]


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not bind root, who runs many test machines; the refusal of the system is played instead.
    def denied(path: object, flags: int, *_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(OutputError, match="read-only disk"):
        reports.write(make_findings(), None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="a file is in the way"):
        reports.write(make_findings(), None, tmp_path / "out")
    with pytest.raises(OutputError, match="a file is in the way"):
        reports.write(make_findings(), None, tmp_path / "out" / "deeper")
    assert (tmp_path / "out").read_text() == "a file"


def test_folder_where_a_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match="a folder is in the way"):
        reports.write(make_findings(), None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_failure_while_drawing_leaves_no_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports.write(make_findings(), None, tmp_path)

    def broken(_: object) -> bytes:
        raise MemoryError

    monkeypatch.setitem(FORMATS, "html", Format("report.html", broken))
    with pytest.raises(MemoryError):
        reports.write(make_findings(), None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reports.write(make_findings(), None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".report.html.0123456789ab.part").write_bytes(b"half")
    reports.write(make_findings(), None, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["findings.json", "report.html"]


def test_one_file_keeps_its_old_content_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.csv"
    atomic.write_file(path, b"old")
    monkeypatch.setattr(os, "replace", _full_disk)
    with pytest.raises(OutputError, match=r"summary\.csv"):
        atomic.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    atomic.write_file(tmp_path / "one", b"1")
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_every_format_has_its_own_file() -> None:
    assert len({form.file for form in FORMATS.values()}) == len(FORMATS)
    assert FORMATS["html"].render is html.render
