"""DICOM images of an upload, sorted by patient and study, with the series that will be judged chosen and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cspine.errors import CspineError
from cspine.reports.dicom_headers import read_header as read_identity
from cspine.studies import tags
from cspine.studies.dicom import without_duplicates
from cspine.studies.geometry import MIN_PLANES, Layout, lay_out, require_geometry
from cspine.studies.instances import Instance
from cspine.studies.series import Stack, choose, info, stacks_of
from cspine.web.deidentify import FACE_WARNING, burned_in_warning, deidentify_file, patient_label
from cspine.web.intake import Desk, size_of
from cspine.web.orders import Note, SeriesFound, StudyFound
from cspine.web.strings import many, t
from cspine.web.unpacking import note, sentence

if TYPE_CHECKING:
    from pydicom import Dataset

# Series that are offered to choose from.
MOST_SERIES = 30


@dataclass(frozen=True, slots=True)
class Patient:
    """Whom an image belongs to, as its file says."""

    id: str
    name: str
    born: str

    @classmethod
    def of(cls, header: Dataset) -> Patient:
        """What a header says; values that cannot be read count as absent."""
        return cls(*(_text(header, keyword) for keyword in ("PatientID", "PatientName", "PatientBirthDate")))

    @property
    def key(self) -> str:
        """The same for all images of one patient: the ID, or what there is without one."""
        return self.id or f"{self.name}/{self.born}"

    @property
    def label(self) -> str:
        """For the one who uploaded it."""
        name = self.name.replace("^", " ").strip()
        return " · ".join(part for part in (name, self.id) if part)[:200]


@dataclass(slots=True)
class Sorted:
    """What became of the DICOM images."""

    studies: list[StudyFound] = field(default_factory=list)
    problems: list[Note] = field(default_factory=list)
    patients: int = 0
    left: int = 0


@dataclass(slots=True)
class _Group:
    """The images of one study of one patient, and the header of one of them."""

    patient: Patient
    header: Dataset
    instances: list[Instance] = field(default_factory=list)


def sort_dicom(instances: Sequence[Instance], desk: Desk, *, damaged: int) -> Sorted:
    """Studies of an upload, one for each patient and StudyInstanceUID.

    Args:
        instances: all images.
        desk: where their files go.
        damaged: files that could not be read; they may be missing in a series.
    """
    out = Sorted()
    groups, mixed = _groups(instances, out)
    out.patients = len({group.patient.key for group in groups})
    for group in groups:
        if any(item.series_uid in mixed for item in group.instances):
            out.problems.append(note("mixed-series", group.instances[0].file.name))
            out.left += len(group.instances)
            continue
        number = len(out.studies)
        try:
            found = _study(group, desk, number, out)
        except CspineError as error:
            out.problems.append(note(error.code, error.where or group.instances[0].file.name, error))
            out.left += len(group.instances)
            continue
        if found is not None:
            extra = [_warning("damaged-files", damaged)] if damaged else []
            extra += [_warning("several-patients", out.patients)] if out.patients > 1 else []
            out.studies.append(found.model_copy(update={"notes": (*extra, *found.notes)}))
    return out


def _groups(instances: Sequence[Instance], out: Sorted) -> tuple[list[_Group], set[str]]:
    """The images by patient and study; and the series that name more than one patient."""
    groups: dict[tuple[str, str], _Group] = {}
    owners: dict[str, set[str]] = {}
    for instance in instances:
        try:
            header = read_identity(instance)
        except CspineError as error:
            out.problems.append(note(error.code, instance.file.name, error))
            continue
        patient = Patient.of(header)
        key = patient.key, instance.header.text(tags.STUDY_UID)
        groups.setdefault(key, _Group(patient, header)).instances.append(instance)
        owners.setdefault(instance.series_uid, set()).add(patient.key)
    return list(groups.values()), {uid for uid, whose in owners.items() if uid and len(whose) > 1}


def _study(group: _Group, desk: Desk, number: int, out: Sorted) -> StudyFound | None:
    """One study with its files in place; None when nothing of it can be judged.

    Raises:
        CspineError: its files cannot be taken.
    """
    stacks = stacks_of(group.instances)
    laid = {id(stack): _laid_out(stack) for stack in stacks}
    usable = [stack for stack in stacks if isinstance(laid[id(stack)], Layout)]
    kept = usable or [stack for stack in stacks if _is_slices(stack)]
    if not kept:
        first = laid[id(stacks[0])]
        error = first if isinstance(first, CspineError) else None
        out.problems.append(note("not-ct", group.instances[0].file.name, error))
        out.left += len(group.instances)
        return None
    # Files of the series that can be judged, and no others: reports, dose sheets and localizers say who it is.
    files = list({id(plane.instance): plane.instance for stack in kept for plane in stack.planes}.values())
    out.left += len(group.instances) - len(files)
    uids, notes = _write(files, group, desk, number)
    best = kept[0]
    label = group.patient.label
    if desk.deidentify:
        label = _pseudonym(group, desk)
    kind = "volume" if usable else "pictures"
    facts = _facts(best, stacks, desk.folder / str(number), usable=bool(usable))
    layout = laid[id(best)]
    notes += [Note(code=w.code, message=w.message) for w in layout.warnings] if isinstance(layout, Layout) else []
    title = t("uploads.title.volume", count=len(best.planes), axis=best.axis) if usable else _slices_title(files)
    return StudyFound(
        kind="volume" if kind == "volume" else "pictures",
        title=title,
        patient_label=label,
        study_uid=uids.get(best.first.instance.header.text(tags.STUDY_UID)),
        series_uid=uids.get(best.series_uid),
        facts=facts,
        series=tuple(_series(stack, laid[id(stack)], uids) for stack in stacks[:MOST_SERIES]),
        notes=tuple(notes),
    )


def _slices_title(files: Sequence[Instance]) -> str:
    return many("uploads.title.slices", len(files))


def _laid_out(stack: Stack) -> Layout | CspineError:
    """Where the slices of a stack lie, or why that is no volume."""
    try:
        choose([stack], None)
        for plane in stack.planes:
            require_geometry(plane)
        return lay_out(without_duplicates(stack.planes)[0])
    except CspineError as error:
        return error


def _is_slices(stack: Stack) -> bool:
    """Whether the images are a few single CT slices, which are judged one by one."""
    if stack.refusal or len(stack.planes) >= MIN_PLANES:
        return False
    return all(p.instance.modality in ("", "CT") and p.instance.format.frames == 1 for p in stack.planes)


def _write(files: Sequence[Instance], group: _Group, desk: Desk, number: int) -> tuple[dict[str, str], list[Note]]:
    """Put the files in place; gives the UIDs that they have there, by the old ones, and what there is to say."""
    place = desk.place(number)
    old = {item.series_uid for item in files} | {item.header.text(tags.STUDY_UID) for item in files}
    old.discard("")
    if not desk.deidentify:
        for count, item in enumerate(files, 1):
            desk.keep(item.file, place / f"{count:06d}.dcm")
        return {uid: uid for uid in old}, []
    label = _pseudonym(group, desk)
    for count, item in enumerate(files, 1):
        if item.file.path is not None:
            deidentify_file(
                item.file.path, place / f"{count:06d}.dcm", label, desk.pseudonyms, where=item.file.name
            )  # fmt: skip
    warnings = [FACE_WARNING, *([burned] if (burned := burned_in_warning(group.header)) else [])]
    uids = {uid: str(desk.pseudonyms.uid("uid", uid)) for uid in old}
    return uids, [Note(code=item.code, message=item.message) for item in warnings]


def _pseudonym(group: _Group, desk: Desk) -> str:
    study = group.instances[0].header.text(tags.STUDY_UID)
    return patient_label(desk.pseudonyms, group.patient.id, group.patient.name, study)


def _facts(best: Stack, stacks: Sequence[Stack], place: Path, *, usable: bool) -> dict[str, object]:
    first = best.first
    count, size = size_of(place)
    facts: dict[str, object] = {
        "slices": len(best.planes),
        "rows": first.instance.format.rows,
        "columns": first.instance.format.columns,
        "spacing": round(best.spacing_mm, 3),
        "coverage": round(best.coverage_mm, 1),
        "thickness": first.thickness,
        "kernel": first.kernel[:32],
        "maker": first.instance.header.text(tags.MANUFACTURER)[:64],
        "orientation": best.axis,
        "files": count,
        "bytes": size,
    }
    if usable:
        facts["selection"] = _why(stacks, best)
    return facts


def _why(stacks: Sequence[Stack], best: Stack) -> str:
    """One sentence: why this series and not another."""
    return choose([best, *(stack for stack in stacks if stack is not best)], None)[1]


def _series(stack: Stack, layout: Layout | CspineError, uids: dict[str, str]) -> SeriesFound:
    told = info(stack)
    reason = sentence(layout.message) if isinstance(layout, CspineError) else ""
    return SeriesFound(
        uid=uids.get(stack.series_uid, ""),
        description=told.description,
        readable=isinstance(layout, Layout),
        reason=reason,
        slices=told.slices,
    )


def _warning(code: str, count: int) -> Note:
    return Note(code=code, message=many(f"uploads.warning.{code}", count))


def _text(header: Dataset, keyword: str) -> str:
    from pydicom.config import disable_value_validation

    try:
        with disable_value_validation():  # pydicom's warning of a bad value would quote it
            return str(header.get(keyword) or "").strip()[:200]
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
