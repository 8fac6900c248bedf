"""``Predictor``: a volume in, findings out. Locate, name the levels, outline, sample stacks, classify, combine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cspine import __version__
from cspine.anatomy import LEVELS, Level
from cspine.errors import StudyWarning
from cspine.findings import (
    BundleProvenance,
    Evidence,
    Findings,
    InputProvenance,
    LevelFinding,
    LevelName,
    PatientFinding,
    Provenance,
    WarningItem,
)
from cspine.inference import answers, stacks
from cspine.inference.answers import Opinion
from cspine.inference.bundle import STAGES, Bundle, Precision, StageName
from cspine.inference.chain import ChainSettings
from cspine.inference.combiner import Combined, combine
from cspine.inference.evidence import EvidenceMap, boxes
from cspine.inference.judge import Verdict, level_warnings, resolution_warning, verdicts
from cspine.inference.levels import LevelMap, LevelSettings, find_levels
from cspine.inference.locate import WINDOW, locate
from cspine.inference.refine import WINDOW as REFINER_WINDOW
from cspine.inference.refine import Refined, refine
from cspine.inference.runtime import Network, Runtime, make_runtime
from cspine.volume import Volume

Progress = Callable[[float, str], None]
# Below a level's threshold evidence is still shown from this probability on, so that a reader can look for himself.
SHOW_EVIDENCE_FROM = 0.1
# A type less sure than this is not named.
MIN_TYPE_CONFIDENCE = 0.3


@dataclass(frozen=True, slots=True)
class Prediction:
    """Findings together with the pictures they were read from.

    Attributes:
        findings: the result.
        labels: uint8 ``[Z, Y, X]``, values of ``cspine.anatomy``: at 1 mm in a box around the cervical vertebrae when
            the bundle has a refiner, else the locator's mask at 2 mm.
        labels_affine: index ``(x, y, z)`` → LPS mm of ``labels``.
        evidence: map by level name, for the levels that were judged.
        logits: raw vertebra logit by level name, for fitting calibrations.
    """

    findings: Findings
    labels: NDArray[np.uint8]
    labels_affine: NDArray[np.float64]
    evidence: Mapping[str, EvidenceMap]
    logits: Mapping[str, float]


@dataclass(slots=True)
class _Clock:
    """Seconds of each step, and the progress bar."""

    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, fraction: float, note: str) -> Iterator[None]:
        if self.progress:
            self.progress(fraction, note)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 4)


class Predictor:
    """Judges volumes with one bundle. Networks are loaded at the first use and kept.

    Args:
        bundle: None for the one that comes with cspine.
        runtime: ``openvino`` or ``onnxruntime``, or any object that is a ``Runtime``.
        threads: processor threads; None for all.
        precision: ``auto`` takes the fastest that the bundle's gate allows and the processor has.

    Raises:
        BundleError: the bundle is not usable.
        UsageError: unknown runtime or number of threads.
    """

    def __init__(
        self,
        bundle: Bundle | None = None,
        runtime: str | Runtime = "openvino",
        threads: int | None = None,
        *,
        precision: Precision | str = "auto",
    ) -> None:
        self.bundle = Bundle.default() if bundle is None else bundle
        self._runtime = make_runtime(runtime, threads) if isinstance(runtime, str) else runtime
        self._precision = precision
        self._networks: dict[StageName, Network] = {}

    def precision_of(self, stage: StageName) -> Precision:
        """The precision that a stage runs in here."""
        wanted = self._precision
        if wanted == "f32" or not self._runtime.supports("bf16"):
            return "f32"
        return "bf16" if wanted == "bf16" or self.bundle.manifest.tolerates(stage, "bf16") else "f32"

    def predict(self, volume: Volume, progress: Progress | None = None) -> Findings:
        """Findings of a CT volume; see ``predict_full``."""
        return self.predict_full(volume, progress).findings

    def predict_full(self, volume: Volume, progress: Progress | None = None) -> Prediction:
        """Findings of a CT volume, with masks and evidence maps.

        Args:
            volume: HU. Slice indices and pixels in the findings are those of ``volume.reoriented()``, which is what
                ``studies.open_study`` gives.
            progress: called with the share done, 0..1, and what is being done.
        """
        start = time.perf_counter()
        clock = _Clock(progress)
        volume = volume.reoriented()
        with clock.step("load", 0.1, "loading the networks"):
            networks = {stage: self._network(stage) for stage in STAGES if stage in self.bundle.manifest.stages}
            locator, classifier = networks["locator"], networks["classifier"]
        with clock.step("locate", 0.15, "finding the spine"):
            located = locate(volume, lambda image: answers.located(locator, image), window=self._window())
        with clock.step("levels", 0.5, "naming the levels"):
            levels = find_levels(located, self._level_settings())
            del located
        outlined = self._outline(volume, levels, clock)
        coarse, hopeless = resolution_warning(volume)
        judged = verdicts(levels, hopeless)
        opinions = self._classify(volume, levels, judged, classifier, clock)
        with clock.step("combine", 0.9, "combining the evidence"):
            combined = combine({level: o.logit for level, o in opinions.items()}, self.bundle.manifest.calibration)
            items = tuple(
                self._level_finding(level, judged[level], opinions.get(level), combined, volume) for level in LEVELS
            )
        clock.seconds["total"] = round(time.perf_counter() - start, 4)
        warnings = [*volume.warnings, *([coarse] if coarse else []), *level_warnings(levels, judged)]
        findings = Findings(
            status=_status(opinions),
            patient=self._patient(combined),
            levels=items,
            warnings=tuple(WarningItem(code=w.code, message=w.message) for w in _unique(warnings)),
            provenance=self._provenance(volume, clock.seconds),
        )
        return Prediction(
            findings=findings,
            labels=outlined.labels,
            labels_affine=outlined.affine,
            evidence={level.name: opinion.evidence for level, opinion in opinions.items()},
            logits={level.name: opinion.logit for level, opinion in opinions.items()},
        )

    def _network(self, stage: StageName) -> Network:
        """The loaded network of a stage."""
        if stage not in self._networks:
            self._networks[stage] = self._runtime.load(self.bundle.model(stage), self.precision_of(stage))
        return self._networks[stage]

    def _window(self) -> tuple[int, int, int]:
        return self.bundle.manifest.stages["locator"].window or WINDOW

    def _level_settings(self) -> LevelSettings:
        calibration = self.bundle.manifest.calibration
        chain = ChainSettings(temperature=calibration.level_temperature)
        return LevelSettings(chain=chain, confidence=calibration.level_confidence)

    def _outline(self, volume: Volume, levels: LevelMap, clock: _Clock) -> Refined:
        """The mask that is shown; the classifier keeps the locator's, which it was trained with."""
        stage = self.bundle.manifest.stages.get("refiner")
        if stage is None or not levels.cervical():
            return Refined(levels.labels, levels.affine)
        with clock.step("outline", 0.52, "outlining the vertebrae"):
            network = self._network("refiner")
            return refine(
                volume,
                levels.labels,
                levels.affine,
                lambda image: answers.refined(network, image),
                window=stage.window or REFINER_WINDOW,
            )

    def _classify(
        self, volume: Volume, levels: LevelMap, judged: Mapping[Level, Verdict], network: Network, clock: _Clock
    ) -> dict[Level, Opinion]:
        """Sample and classify the stack of every judged level, one at a time to bound memory."""
        wanted = [level for level, verdict in judged.items() if verdict.reason is None]
        if not wanted:
            return {}
        with clock.step("stacks", 0.56, "cutting out the vertebrae"):
            frames = stacks.frames(levels.centers(), levels.labels, levels.affine)
            samples = {
                level: stacks.sample_stack(
                    volume, stacks.mask_volume(levels.labels, levels.affine, level), frames[level], level
                )
                for level in wanted
            }
        with clock.step("classify", 0.6, "looking for fractures"):
            opinions = {}
            for number, level in enumerate(wanted):
                opinions[level] = answers.opinion(network, samples[level], frames[level], level)
                if clock.progress:
                    clock.progress(0.6 + 0.3 * (number + 1) / len(wanted), f"looked at {level.name}")
        return opinions

    def _level_finding(
        self, level: Level, verdict: Verdict, opinion: Opinion | None, combined: Combined, volume: Volume
    ) -> LevelFinding:
        """What findings say of one level."""
        found, probability = verdict.found, combined.levels.get(level)
        shown = None if probability is None else _rounded(probability)
        threshold = self.bundle.manifest.thresholds.of(level)
        fracture = None if shown is None else shown >= threshold
        kind: tuple[str | None, float | None] = (None, None)
        evidence: tuple[Evidence, ...] = ()
        if opinion is not None and shown is not None:
            kind = self._type(level, opinion.types) if fracture else kind
            evidence = boxes(opinion.evidence, volume) if fracture or shown >= SHOW_EVIDENCE_FROM else ()
        return LevelFinding(
            level=_NAMES[level],
            visible=verdict.visible,
            visible_fraction=_rounded(verdict.visible_fraction),
            confidence=0.0 if found is None else _rounded(found.confidence),
            body_center_mm=None if found is None else _point(found.center_mm),
            probability=shown,
            fracture=fracture,
            threshold=None if shown is None else threshold,
            type=kind[0],
            type_confidence=kind[1],
            evidence=evidence,
            not_judged=verdict.reason,
        )

    def _type(self, level: Level, logits: NDArray[np.float32]) -> tuple[str | None, float | None]:
        """Likeliest type that occurs at this level and the sigmoid of its logit; nothing when it is not sure enough."""
        manifest = self.bundle.manifest
        possible = [k for k, name in enumerate(manifest.types) if level.name in manifest.type_levels.get(name, _ANY)]
        possible = [k for k in possible if k < len(logits)]
        if not possible:
            return None, None
        best = max(possible, key=lambda k: float(logits[k]))
        confidence = _rounded(float(0.5 * (1 + np.tanh(0.5 * logits[best]))))
        return (manifest.types[best], confidence) if confidence >= MIN_TYPE_CONFIDENCE else (None, None)

    def _patient(self, combined: Combined) -> PatientFinding:
        threshold = self.bundle.manifest.thresholds.patient
        if combined.patient is None:
            return PatientFinding(probability=None, fracture=None, threshold=threshold)
        probability = _rounded(combined.patient)
        return PatientFinding(probability=probability, fracture=probability >= threshold, threshold=threshold)

    def _provenance(self, volume: Volume, seconds: dict[str, float]) -> Provenance:
        manifest = self.bundle.manifest
        precisions = [f"{stage} {self.precision_of(stage)}" for stage in STAGES if stage in manifest.stages]
        return Provenance(
            cspine=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            input=_input_provenance(volume),
            bundle=BundleProvenance(
                name=manifest.name,
                version=manifest.version,
                sha256=self.bundle.sha256,
                trained_on=manifest.trained_on,
                runtime=self._runtime.name,
                precision=", ".join(precisions),
            ),
            seconds=seconds,
        )


_NAMES: dict[Level, LevelName] = dict(zip(LEVELS, get_args(LevelName), strict=True))
_ANY = tuple(_NAMES.values())


def _status(opinions: Mapping[Level, Opinion]) -> Literal["ok", "partial", "refused"]:
    if not opinions:
        return "refused"
    return "ok" if len(opinions) == len(LEVELS) else "partial"


def _point(center: tuple[float, float, float]) -> tuple[float, float, float]:
    """LPS mm to a hundredth."""
    x, y, z = (round(value, 2) for value in center)
    return x, y, z


def _rounded(value: float) -> float:
    """Four digits: what is written is what thresholds are compared with."""
    return round(min(max(value, 0.0), 1.0), 4)


def _unique(warnings: list[StudyWarning]) -> list[StudyWarning]:
    return list(dict.fromkeys(warnings))


def _input_provenance(volume: Volume) -> InputProvenance:
    source = volume.source
    return InputProvenance(
        name=source.name,
        kind=source.kind,
        sha256=source.sha256,
        series_uid=source.series_uid,
        study_uid=source.study_uid,
        frame_of_reference_uid=source.frame_of_reference_uid,
        selection=source.selection,
        shape=volume.shape,
        spacing_mm=volume.spacing,
        affine=tuple(tuple(float(value) for value in row) for row in volume.affine),
        acquisition=dict(source.acquisition),
    )
