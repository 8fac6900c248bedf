"""What tests of the node's work share: a stand-in for the judge, a runner without DBOS, tiny results in DICOM."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from cspine.node.child import JobOutcome, Order
from cspine.node.deliver import DeliveryError, Parcel, Sender
from cspine.node.ledger import Delivery, Job, Ledger
from cspine.node.privacy import Pseudonym
from cspine.node.settings import NodeSettings
from cspine.node.supervise import judge
from cspine.node.work import Work

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Same length as what takes its place, so that the file needs no writing anew.
PLACEHOLDER = "2.25." + "9" * 30

# A child that does what the file ``say`` in the study's folder says. It imports next to nothing, so that it starts in a
# hundredth of a second. It notes each judgement in ``calls`` of the node's data folder, and its process beside its
# results. As the real one it dies with whoever started it (1: PR_SET_PDEATHSIG, 9: SIGKILL).
FAKE_CHILD = """
import ctypes, os, sys, time
ctypes.CDLL(None).prctl(1, 9)
order = eval(open(sys.argv[1]).read(), {"null": None})
if os.getppid() != order["parent"]:
    os._exit(75)
key, out = order["key"], order["out"]
tried = os.path.dirname(out)
with open(tried + "/pid", "w") as pid:
    pid.write(str(os.getpid()))
say = open(order["study"] + "/say").read() if os.path.exists(order["study"] + "/say") else "judge"
with open(tried + "/../../../calls", "a") as calls:
    calls.write(key + "\\n")
os.mkdir(out + ".part")
if say == "crash":
    os.abort()
if say == "die":
    os._exit(3)
if say == "hang":
    time.sleep(600)
time.sleep(SECONDS)
if say in ("refuse", "skip", "hinder"):
    ending = {"refuse": "refused", "skip": "skipped", "hinder": "hindered"}[say]
    outcome = '{"ending": "%s", "reason": "told-so"}' % ending
else:
    outcome = '{"ending": "judged", "positive": true, "probability": 0.9, "levels": ["C2"], "study_uid": "1.2.3", '
    outcome += '"files": {"seg": ["result.dcm"]}}'
    number = str(int.from_bytes(key.encode(), "big") % 10**29).zfill(29)
    with open(TEMPLATE, "rb") as template, open(out + ".part/result.dcm", "wb") as result:
        result.write(template.read().replace(PLACEHOLDER, b"2.25.1" + number.encode()))
with open(out + ".part/outcome.json", "w") as file:
    file.write(outcome)
os.rename(out + ".part", out)
"""


def write_result(path: Path, *, uid: str = PLACEHOLDER, sop_class: str = SECONDARY_CAPTURE) -> None:
    """A small object that any archive takes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = UID(sop_class), UID(uid)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    ds.PatientID, ds.PatientName, ds.Modality, ds.ConversionType = "SECRET-ID", "Secret^Name", "OT", "WSD"
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.StudyID = ds.PatientBirthDate = ds.PatientSex = ""
    ds.ReferringPhysicianName, ds.SeriesNumber, ds.InstanceNumber = "", "1", "1"
    ds.Rows = ds.Columns = 2
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = b"\0\1\2\3"
    ds.save_as(path, enforce_file_format=True)


def fake_child(folder: Path, *, seconds: float = 0.0) -> tuple[str, ...]:
    """The command line of the stand-in; ``folder`` holds its script and the result it gives after some seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    template, script = folder / "template.dcm", folder / "fake_child.py"
    write_result(template)
    head = f"TEMPLATE, PLACEHOLDER, SECONDS = {str(template)!r}, {PLACEHOLDER.encode()!r}, {seconds!r}\n"
    script.write_text(head + FAKE_CHILD, encoding="utf-8")
    return (sys.executable, "-S", "-E", str(script))


def result_uid(key: str) -> str:
    """The UID of the stand-in's result for a study."""
    return "2.25.1" + str(int.from_bytes(key.encode(), "big") % 10**29).zfill(29)


@dataclass
class Clock:
    """Time that passes when a test says so."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Collects:
    """A destination that keeps what it gets, or fails for a reason."""

    got: list[str] = field(default_factory=list)
    failing: str = ""
    lasting: bool = False
    warning: str = ""

    def wants(self, outcome: JobOutcome) -> bool:
        return True

    def send(self, parcel: Parcel) -> str:
        if self.failing:
            raise DeliveryError(self.failing, lasting=self.lasting)
        self.got.append(parcel.key)
        return self.warning


@dataclass
class AtOnce:
    """Runs every try when it is submitted, each once, as DBOS would; ``lost`` ones are said to have died."""

    work: Work
    ran: set[object] = field(default_factory=set)
    lost: bool = False

    def submit_judgement(self, job: Job) -> None:
        name = (job.key, job.round, job.tries)
        if name not in self.ran:
            self.ran.add(name)
            outcome = self.work.judge_once(job)
            if outcome is not None:
                self.work.record_judgement(job, outcome)

    def submit_delivery(self, job: Job, delivery: Delivery) -> None:
        name = (job.key, job.round, delivery.destination, delivery.round, delivery.tries)
        if name not in self.ran:
            self.ran.add(name)
            attempt = self.work.send_once(job, delivery)
            if attempt is not None:
                self.work.record_delivery(job, delivery, attempt)

    def lost_judgement(self, job: Job) -> bool:
        return self.lost

    def lost_delivery(self, job: Job, delivery: Delivery) -> bool:
        return self.lost


def make_settings(folder: Path, **values: object) -> NodeSettings:
    table: dict[str, object] = {"data": folder / "data", **values}
    settings = NodeSettings.model_validate(table)
    settings.data.mkdir(parents=True, exist_ok=True)
    return settings


def make_work(
    folder: Path, senders: Mapping[str, Sender] | None = None, *, clock: Clock | None = None, **values: object
) -> Work:
    """Work on a ledger of its own, judged by the stand-in."""
    settings = make_settings(folder, **values)
    command = fake_child(folder / "child")

    def run(order: Order, seconds: float) -> JobOutcome:
        return judge(order, seconds, command)

    return Work(
        settings,
        Ledger(f"sqlite:///{settings.data / 'ledger.sqlite'}"),
        senders or {},
        Pseudonym,
        judge=run,
        clock=clock or Clock(),
        chance=random.Random(1),
    )


def add_study(work: Work, key: str, say: str = "judge") -> None:
    """A study in the queue whose judgement ends as told."""
    folder = work.settings.data / "studies" / key
    folder.mkdir(parents=True)
    (folder / "say").write_text(say, encoding="utf-8")
    assert work.accept(key, folder, 3, "digest", work.clock())


def calls(work: Work) -> list[str]:
    """Keys in the order in which they were judged."""
    path = work.settings.data / "calls"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def saved_outcome(folder: Path) -> dict[str, object]:
    told: dict[str, object] = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    return told
