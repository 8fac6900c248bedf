"""Uploads as a browser or a script sends them: pieces, limits, interruptions, and what a person is told of bad ones."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from cspine.web import job_work
from cspine.web.app import Context
from cspine.web.models import Job, Study, Upload, UploadFile
from cspine.web.store import Store
from dicom_factory import Grid, make_slice, write_series
from web_children import in_process
from web_factory import Browser, browser, person, web_app

MIB = 2**20


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the children do is tried in ``test_web_children``; here they run in this process."""
    monkeypatch.setattr(job_work, "supervise", in_process)


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    made = web_app(tmp_path)
    person(made, "ada@example.org")
    return made


@pytest.fixture
def ada(app: Flask) -> Browser:
    return browser(app, "ada@example.org")


def context(app: Flask) -> Context:
    found = app.extensions["cspine"]
    assert isinstance(found, Context)
    return found


def packed(files: dict[str, bytes]) -> bytes:
    """A zip of these files."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


def ct(folder: Path, count: int = 6, **kinds: Any) -> dict[str, bytes]:
    """A small series, by names of files."""
    paths = write_series(folder, Grid(count=count, rows=16, columns=16), **kinds)
    return {path.name: path.read_bytes() for path in paths}


def announce(person: Browser, files: dict[str, bytes], **more: Any) -> dict[str, Any]:
    listed = [{"name": name, "size": len(data)} for name, data in files.items()]
    answer = person.send_json("/api/uploads", {"files": listed, **more})
    assert answer.status_code == 201, answer.get_data(as_text=True)
    return dict(answer.json or {})


def put(person: Browser, upload: str, file: str, offset: int, data: bytes, **headers: str) -> Any:
    return person.put(
        f"/api/uploads/{upload}/files/{file}?offset={offset}",
        data=data,
        headers={"X-CSRFToken": person.token(), **{name.replace("_", "-"): value for name, value in headers.items()}},
    )


def send(person: Browser, files: dict[str, bytes], **more: Any) -> dict[str, Any]:
    """Send files whole; gives what the upload is in the end."""
    upload = announce(person, files, **more)
    for file in upload["files"]:
        if file["size"]:
            assert put(person, upload["id"], file["id"], 0, files[file["name"]]).status_code == 200
    person.send_json(f"/api/uploads/{upload['id']}/finish")
    return dict(person.get(f"/api/uploads/{upload['id']}").json or {})


def said(person: Browser, upload: dict[str, Any]) -> str:
    """The page of an upload."""
    answer = person.get(f"/uploads/{upload['id']}")
    assert answer.status_code == 200
    return answer.get_data(as_text=True)


# The way of a good upload --------------------------------------------------------------------------------------------


def test_a_zip_is_recognised_shown_and_judged(app: Flask, ada: Browser, tmp_path: Path) -> None:
    upload = send(ada, {"ct.zip": packed(ct(tmp_path / "ct"))})
    assert upload["state"] == "recognised"
    (study,) = upload["studies"]
    assert study["facts"]["slices"] == 6 and study["facts"]["kernel"] == "Br64" and study["state"] == "ready"
    page = said(ada, upload)
    assert "1 study was recognised" in page and "CT, 6 axial slices" in page and "Secret Name" in page
    ran = ada.send_json(f"/api/uploads/{upload['id']}/run", {"studies": {study["id"]: None}})
    assert ran.status_code == 202
    (job,) = (ada.get("/api/jobs").json or {})["jobs"]
    assert (job["state"], job["headline"]) == ("done", "Fracture suspected: C2")
    with context(app).sessions() as session:
        row = session.get_one(Study, study["id"])
        assert (row.state, row.probability, row.positive) == ("done", 0.83, True)
        assert context(app).store.results(row) is not None
    assert not (context(app).store.data / "uploads" / upload["id"]).exists(), "the bytes are kept once"


def test_names_on_disk_are_ours(app: Flask, ada: Browser, tmp_path: Path) -> None:
    files = {f"Secret^Name/{name}": data for name, data in ct(tmp_path / "ct").items()}
    send(ada, files)
    listed = [path.as_posix() for path in context(app).store.data.rglob("*")]
    assert not any("Secret" in path for path in listed)
    assert sum(path.endswith(".dcm") for path in listed) == 6


def test_patient_data_are_removed_where_that_is_ticked(app: Flask, ada: Browser, tmp_path: Path) -> None:
    files = {f"Secret^Name/{name}": data for name, data in ct(tmp_path / "ct").items()}
    upload = send(ada, files | {"Secret^Name.dcm": b""}, deidentify=True)
    (study,) = upload["studies"]
    assert study["patient_label"].startswith("P-") and study["series_uid"].startswith("2.25.")
    page = said(ada, upload)
    assert "Secret" not in page and "Patient data were removed" in page and "can show a face" in page
    assert "File 1.dcm" in page, "what could not be taken is named by its number"
    kept = [path for path in context(app).store.data.rglob("*") if path.is_file() and ".db" not in path.name]
    assert not any(b"SECRET" in path.read_bytes() or b"Secret" in path.read_bytes() for path in kept)
    with context(app).sessions() as session:
        assert session.query(UploadFile).count() == 0, "names of files may name somebody"


def test_a_server_that_always_removes_patient_data_leaves_no_choice(tmp_path: Path) -> None:
    app = web_app(tmp_path, deidentify="always")
    person(app, "ada@example.org")
    ada = browser(app, "ada@example.org")
    page = ada.get("/uploads").get_data(as_text=True)
    assert "removes patient data from every upload" in page and 'name="deidentify"' not in page
    upload = send(ada, {"ct.zip": packed(ct(tmp_path / "ct"))}, deidentify=False)
    assert upload["deidentify"] and upload["studies"][0]["patient_label"].startswith("P-")


def test_pieces_come_one_after_another_and_a_lost_answer_does_no_harm(ada: Browser) -> None:
    data = os.urandom(1000)
    upload = announce(ada, {"a.bin": data})
    file = upload["files"][0]["id"]
    digest = hashlib.sha256(data[:400]).hexdigest()
    assert put(ada, upload["id"], file, 0, data[:400], X_Chunk_SHA256=digest).json == {"received": 400}
    again = put(ada, upload["id"], file, 0, data[:400])
    assert again.status_code == 409 and again.json["received"] == 400
    ahead = put(ada, upload["id"], file, 500, data[500:])
    assert ahead.status_code == 409 and ahead.json["received"] == 400
    now = ada.get(f"/api/uploads/{upload['id']}").json or {}
    assert now["files"][0]["received"] == 400
    assert put(ada, upload["id"], file, 400, data[400:]).json == {"received": 1000}


def test_a_piece_that_was_changed_on_its_way_is_not_taken(ada: Browser) -> None:
    upload = announce(ada, {"a.bin": b"x" * 10})
    answer = put(ada, upload["id"], upload["files"][0]["id"], 0, b"y" * 10, X_Chunk_SHA256="0" * 64)
    assert answer.status_code == 422 and "changed on its way" in answer.json["message"]
    assert (ada.get(f"/api/uploads/{upload['id']}").json or {})["received"] == 0


def test_the_form_without_scripts_takes_a_whole_upload(ada: Browser, tmp_path: Path) -> None:
    data = packed(ct(tmp_path / "ct") | {"filler": os.urandom(9 * MIB)})
    page = ada.get("/uploads").get_data(as_text=True)
    assert 'enctype="multipart/form-data"' in page
    form = {"files": (io.BytesIO(data), "ct.zip"), "csrf_token": ada.token(), "key": str(uuid.uuid4())}
    answer = ada.post("/uploads", data=form)
    assert answer.status_code == 302, answer.get_data(as_text=True)
    shown = ada.get(answer.location).get_data(as_text=True)
    assert "1 study was recognised" in shown
    upload = answer.location.rsplit("/", 1)[1]
    study = (ada.get(f"/api/uploads/{upload}").json or {})["studies"][0]["id"]
    ran = ada.send(f"/uploads/{upload}/run", study=study)
    assert ran.status_code == 302
    assert "Fracture suspected: C2" in ada.get(ran.location).get_data(as_text=True)


# Interruptions -------------------------------------------------------------------------------------------------------


def test_an_ended_session_is_told_apart_and_the_upload_goes_on_after_the_log_in(app: Flask, ada: Browser) -> None:
    upload = announce(ada, {"a.bin": b"0123456789"})
    file = upload["files"][0]["id"]
    put(ada, upload["id"], file, 0, b"01234")
    token = ada.token()
    ada.delete_cookie("cspine")
    lost = ada.put(f"/api/uploads/{upload['id']}/files/{file}?offset=5", data=b"56789", headers={"X-CSRFToken": token})
    assert lost.status_code == 401 and lost.is_json
    ada.log_in("ada@example.org")
    fresh = (ada.get("/api/uploads").json or {})["csrf"]
    went_on = ada.put(
        f"/api/uploads/{upload['id']}/files/{file}?offset=5", data=b"56789", headers={"X-CSRFToken": fresh}
    )
    assert went_on.json == {"received": 10}


def test_a_server_that_starts_again_goes_on_with_the_upload(ada: Browser, tmp_path: Path) -> None:
    upload = announce(ada, {"a.bin": b"0123456789"})
    put(ada, upload["id"], upload["files"][0]["id"], 0, b"01234")
    again = browser(web_app(tmp_path), "ada@example.org")
    now = (again.get("/api/uploads").json or {})["uploads"][0]
    assert (now["id"], now["files"][0]["received"]) == (upload["id"], 5)
    part = put(again, upload["id"], upload["files"][0]["id"], 5, b"56789")
    assert part.json == {"received": 10}
    stored = Store(tmp_path / "data").part(upload["id"], upload["files"][0]["id"])
    assert stored.read_bytes() == b"0123456789"


def test_two_clicks_are_one_upload_one_look_and_one_judgement(
    app: Flask, ada: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, key = packed(ct(tmp_path / "ct")), str(uuid.uuid4())
    first = announce(ada, {"ct.zip": data}, key=key)
    second = announce(ada, {"ct.zip": data}, key=key)
    assert first["id"] == second["id"] and first["files"] == second["files"]
    put(ada, first["id"], first["files"][0]["id"], 0, data)
    for _ in range(2):
        assert ada.send_json(f"/api/uploads/{first['id']}/finish").status_code == 202
    (study,) = (ada.get(f"/api/uploads/{first['id']}").json or {})["studies"]
    monkeypatch.setattr(context(app).jobs, "_inline", False)  # the first waits when the second click comes
    jobs = [ada.send_json(f"/api/uploads/{first['id']}/run", {"studies": {study["id"]: None}}).json for _ in range(2)]
    assert jobs[0]["jobs"][0]["id"] == jobs[1]["jobs"][0]["id"]
    with context(app).sessions() as session:
        assert session.query(Job).count() == session.query(Study).count() == session.query(Upload).count() == 1


def test_what_is_missing_must_come_before_the_end(ada: Browser) -> None:
    upload = announce(ada, {"a.bin": b"0123456789"})
    answer = ada.send_json(f"/api/uploads/{upload['id']}/finish")
    assert answer.status_code == 409 and "1 file has not arrived" in (answer.json or {})["message"]


def test_a_full_disk_is_said_and_what_arrived_stays(app: Flask, ada: Browser) -> None:
    upload = announce(ada, {"a.bin": b"0123456789"})
    file = upload["files"][0]["id"]
    put(ada, upload["id"], file, 0, b"01234")
    part = context(app).store.part(upload["id"], file)
    aside = part.rename(part.with_suffix(".aside"))
    part.symlink_to("/dev/full")  # the kernel's own: every write fails as on a full disk
    full = put(ada, upload["id"], file, 5, b"56789")
    assert full.status_code == 507 and "disk of the server is full" in full.json["message"]
    part.unlink()
    aside.rename(part)
    assert put(ada, upload["id"], file, 5, b"56789").json == {"received": 10}
    assert part.read_bytes() == b"0123456789"


def test_a_full_disk_while_it_is_looked_at_loses_nothing(
    ada: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job_work, "supervise", full)
    upload = send(ada, {"ct.zip": packed(ct(tmp_path / "ct"))})
    assert (upload["state"], upload["again"]) == ("receiving", True)
    assert "Look again" in said(ada, upload) and "are kept" in said(ada, upload)
    monkeypatch.setattr(job_work, "supervise", in_process)
    assert ada.send(f"/uploads/{upload['id']}/finish").status_code == 302
    assert "1 study was recognised" in said(ada, upload)


def test_an_upload_can_be_discarded_at_any_time(app: Flask, ada: Browser, tmp_path: Path) -> None:
    part = announce(ada, {"a.bin": b"0123456789"})
    put(ada, part["id"], part["files"][0]["id"], 0, b"01234")
    whole = send(ada, {"ct.zip": packed(ct(tmp_path / "ct"))})
    for upload in (part, whole):
        for _ in range(2):
            assert ada.send_json(f"/api/uploads/{upload['id']}", method="DELETE").status_code == 204
        assert "Nothing of it is kept" in said(ada, upload)
    left = [p for p in context(app).store.data.rglob("*") if p.is_file() and p.parent.name in ("parts", "files")]
    assert left == []


# Limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "files", "words"),
    [
        ({"file_bytes": MIB}, {"a": MIB + 1}, "A file has 1.0 MB; at most 1.0 MB"),
        ({"upload_bytes": MIB}, {"a": MIB, "b": 1}, "taken at once"),
        ({"files": 1}, {"a": 1, "b": 1}, "These are 2 files"),
        ({"per_user_bytes": MIB}, {"a": MIB + 1}, "Delete studies that you no longer need"),
    ],
)
def test_too_much_is_refused_before_anything_is_sent(
    tmp_path: Path, limits: dict[str, int], files: dict[str, int], words: str
) -> None:
    app = web_app(tmp_path, limits=limits)
    person(app, "ada@example.org")
    ada = browser(app, "ada@example.org")
    listed = [{"name": name, "size": size} for name, size in files.items()]
    answer = ada.send_json("/api/uploads", {"files": listed})
    assert answer.status_code == 413 and words in (answer.json or {})["message"]


def test_a_server_without_room_says_so_before_anything_is_sent(tmp_path: Path) -> None:
    app = web_app(tmp_path, limits={"free_bytes": 2**60})
    person(app, "ada@example.org")
    answer = browser(app, "ada@example.org").send_json("/api/uploads", {"files": [{"name": "a", "size": 1}]})
    assert answer.status_code == 507 and "no room" in (answer.json or {})["message"]


def test_more_bytes_than_announced_are_not_taken(ada: Browser) -> None:
    upload = announce(ada, {"a": b"12"})
    answer = put(ada, upload["id"], upload["files"][0]["id"], 0, b"123")
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "body", [None, [], {}, {"files": "x"}, {"files": [{}]}, {"files": [{"name": "a", "size": -1}]}]
)
def test_nonsense_is_refused(ada: Browser, body: object) -> None:
    assert ada.send_json("/api/uploads", body).status_code == 400


# Bad files: each has its words on the page ---------------------------------------------------------------------------


def damaged_zip(folder: Path) -> bytes:
    data = packed(ct(folder / "ct"))
    return data[: len(data) // 2]


def locked_zip(folder: Path) -> bytes:
    """A zip whose entries say that they are encrypted (APPNOTE.TXT 4.4.4, bit 0)."""
    data = bytearray(packed(ct(folder / "ct", 3)))
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(magic)
        while place >= 0:
            data[place + at] |= 1
            place = data.find(magic, place + 4)
    return bytes(data)


def nested_zip(_: Path) -> bytes:
    data = b"inside"
    for _depth in range(5):
        data = packed({"more.zip": data})
    return data


BAD: dict[str, tuple[str, Any, str]] = {
    "corrupt": ("ct.zip", damaged_zip, "The zip archive cannot be read"),
    "empty": ("a.dcm", lambda _: b"", "All of these files are empty"),
    "password": ("ct.zip", locked_zip, "The zip is protected by a password"),
    "wrong type": ("notes.txt", lambda _: b"hello", "Nothing in this upload is a CT or a picture"),
    "not what it says": ("a.png", lambda _: b"hello", "The file is not what its name says"),
    "7-Zip": ("a.7z", lambda _: b"7z\xbc\xaf\x27\x1c" + bytes(100), "Archives of this kind are not read"),
    "nested": ("a.zip", nested_zip, "Archives lie in each other too deep"),
    "empty zip": ("a.zip", lambda _: packed({}), "The zip holds no file"),
    "bomb": ("a.zip", lambda _: bomb(), "unpacks to"),
    "escape": ("a.zip", lambda _: packed({"../../a.dcm": b"x"}), "points outside the archive"),
    "cut off": ("a.dcm", lambda folder: next(iter(ct(folder / "ct").values()))[:-100], "it was cut off"),
    "MR": ("a.zip", lambda folder: packed(ct(folder / "ct", edit=as_mr)), "MR"),
    "damaged picture": ("a.png", lambda _: b"\x89PNG\r\n\x1a\n" + bytes(50), "picture"),
}


def bomb() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(20 * MIB))
    return sink.getvalue()


def as_mr(_: int, header: Any) -> None:
    header.Modality = "MR"


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_has_its_words_on_the_page(ada: Browser, tmp_path: Path, case: str) -> None:
    name, make, words = BAD[case]
    data = make(tmp_path)
    if not data:
        answer = ada.send_json("/api/uploads", {"files": [{"name": name, "size": 0}]})
        assert words in (answer.json or {})["message"]
        return
    upload = send(ada, {name: data})
    assert upload["state"] == "refused", upload
    page = said(ada, upload)
    assert words in page and "Nothing in this upload can be judged" in page
    assert name in page or case == "wrong type"


def test_bad_files_among_good_ones_are_named_and_the_good_ones_taken(ada: Browser, tmp_path: Path) -> None:
    files = ct(tmp_path / "ct")
    files |= {"empty.dcm": b"", "locked.zip": locked_zip(tmp_path / "z"), "notes.txt": b"x", ".DS_Store": b"x"}
    upload = send(ada, files)
    assert upload["state"] == "recognised" and upload["studies"][0]["facts"]["slices"] == 6
    page = said(ada, upload)
    assert "empty.dcm" in page and "locked.zip" in page and "1 other file was left out" in page


def test_two_patients_are_kept_apart_and_nothing_is_chosen_for_the_person(ada: Browser, tmp_path: Path) -> None:
    def other(_: int, header: Any) -> None:
        header.PatientID, header.PatientName = "OTHER", "Other^Name"
        header.StudyInstanceUID += ".2"

    files = {f"one/{name}": data for name, data in ct(tmp_path / "one").items()}
    files |= {f"two/{name}": data for name, data in ct(tmp_path / "two", series="2", edit=other).items()}
    upload = send(ada, {"both.zip": packed(files)})
    assert len(upload["studies"]) == 2
    assert {study["patient_label"] for study in upload["studies"]} == {"Secret Name · SECRET-ID", "Other Name · OTHER"}
    page = said(ada, upload)
    assert "images of 2 patients" in page and 'name="study"' in page and " checked" not in page


def test_one_series_of_two_patients_is_not_taken(ada: Browser, tmp_path: Path) -> None:
    def mixed(number: int, header: Any) -> None:
        header.PatientID = f"P{number % 2}"

    upload = send(ada, {"a.zip": packed(ct(tmp_path / "ct", edit=mixed))})
    assert upload["state"] == "refused" and "names more than one patient" in said(ada, upload)


def test_the_scanner_of_the_house_is_asked_first(tmp_path: Path) -> None:
    script = tmp_path / "scanner.sh"
    script.write_text('#!/bin/sh\ngrep -q EICAR "$1" && exit 1\n[ -e "$1" ] || exit 2\nexit 0\n')
    script.chmod(0o700)
    app = web_app(tmp_path, antivirus=[str(script), "{file}"])
    person(app, "ada@example.org")
    ada = browser(app, "ada@example.org")
    found = send(ada, {"a.zip": packed({"EICAR.txt": b"EICAR"})})
    assert found["state"] == "refused" and "virus scanner" in said(ada, found) and "a.zip" in said(ada, found)
    clean = send(ada, {"b.zip": packed(ct(tmp_path / "ct"))})
    assert clean["state"] == "recognised"
    script.write_text("#!/bin/sh\nexit 2\n")
    broken = send(ada, {"c.zip": packed(ct(tmp_path / "ct2"))})
    assert broken["state"] == "receiving" and "does not work" in said(ada, broken)


# Others --------------------------------------------------------------------------------------------------------------


def test_nobody_else_sees_or_touches_an_upload(app: Flask, ada: Browser) -> None:
    upload = announce(ada, {"a": b"12"})
    person(app, "eve@example.org")
    person(app, "root@example.org", "administrator")
    eve, root, nobody = browser(app, "eve@example.org"), browser(app, "root@example.org"), browser(app)
    for other, status in ((eve, 404), (root, 403), (nobody, 401)):
        assert other.get(f"/api/uploads/{upload['id']}").status_code == status
        assert put(other, upload["id"], upload["files"][0]["id"], 0, b"12").status_code == status
        assert other.send_json(f"/api/uploads/{upload['id']}", method="DELETE").status_code == status
    assert put(ada, upload["id"], upload["files"][0]["id"], 0, b"12").status_code == 200


def test_another_series_can_be_chosen(ada: Browser, app: Flask, tmp_path: Path) -> None:
    files = {f"1/{n}": d for n, d in ct(tmp_path / "one", 6).items()}
    files |= {f"2/{n}": d for n, d in ct(tmp_path / "two", 5, series="2").items()}
    upload = send(ada, {"a.zip": packed(files)})
    (study,) = upload["studies"]
    assert len(study["series"]) == 2
    other = next(one for one in study["series"] if one["uid"] != study["series_uid"])
    wrong = ada.send_json(f"/api/uploads/{upload['id']}/run", {"studies": {study["id"]: "1.2.3"}})
    assert wrong.status_code == 400
    ada.send_json(f"/api/uploads/{upload['id']}/run", {"studies": {study["id"]: other["uid"]}})
    with context(app).sessions() as session:
        assert session.get_one(Study, study["id"]).series_uid == other["uid"]


def test_a_series_that_came_before_is_said_to_be_there(ada: Browser, tmp_path: Path) -> None:
    data = packed(ct(tmp_path / "ct"))
    send(ada, {"a.zip": data})
    again = send(ada, {"a.zip": data})
    assert "You have uploaded this series before" in said(ada, again)


def test_pictures_and_volumes_of_one_upload_are_studies_of_their_own(ada: Browser, tmp_path: Path) -> None:
    import nibabel
    import numpy as np
    from PIL import Image

    Image.fromarray(np.full((20, 30), 90, np.uint8)).save(tmp_path / "a.png")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), tmp_path / "v.nii.gz")
    one = make_slice(Grid(count=1, rows=16, columns=16), 0, 0)
    one.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    files = {name: (tmp_path / name).read_bytes() for name in ("a.png", "v.nii.gz", "one.dcm")}
    upload = send(ada, files)
    kinds = sorted((study["kind"], study["title"]) for study in upload["studies"])
    assert kinds == [("pictures", "1 CT slice"), ("pictures", "a.png"), ("volume", "v")]
