"""``Predictor``: a volume in, findings out. Locate, name the levels, outline, sample stacks, classify, combine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from cspine import __version__
from cspine.anatomy import LEVELS, Level
from cspine.errors import BundleError, StudyWarning
from cspine.findings import BundleProvenance, Findings, Provenance, WarningItem
from cspine.inference import answers, stacks
from cspine.inference.answers import Opinion
from cspine.inference.bundle import STAGES, Bundle, Precision, StageName
from cspine.inference.chain import ChainSettings
from cspine.inference.combiner import combine
from cspine.inference.conclude import input_provenance, level_finding, patient_finding, status_of
from cspine.inference.evidence import EvidenceMap
from cspine.inference.judge import Verdict, level_warnings, resolution_warning, verdicts
from cspine.inference.levels import LevelMap, LevelSettings, find_levels
from cspine.inference.locate import WINDOW, locate
from cspine.inference.networks import Networks
from cspine.inference.planar_answers import ImageAnswers
from cspine.inference.planar_run import PlanarRun
from cspine.inference.refine import WINDOW as REFINER_WINDOW
from cspine.inference.refine import Refined, refine
from cspine.inference.runtime import Runtime, make_runtime
from cspine.volume import Volume

Progress = Callable[[float, str], None]


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
        images: what was said of each axial image, by methods that look at images one at a time.
    """

    findings: Findings
    labels: NDArray[np.uint8]
    labels_affine: NDArray[np.float64]
    evidence: Mapping[str, EvidenceMap]
    logits: Mapping[str, float]
    images: ImageAnswers | None = None


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

    def part(self, start: float, end: float, note: str) -> Callable[[float], None] | None:
        """Takes shares of a step that reaches from ``start`` to ``end`` of the whole; None when nobody looks."""
        progress = self.progress
        return None if progress is None else lambda share: progress(start + (end - start) * share, note)


class Predictor:
    """Judges volumes with one bundle. Networks are loaded at the first use and kept.

    Args:
        bundle: None for the one that comes with cspine.
        runtime: ``openvino`` or ``onnxruntime``, or any object that is a ``Runtime``.
        threads: processor threads; None for all.
        precision: ``auto`` takes the fastest that the bundle's gate allows and the processor has.

    Raises:
        BundleError: the bundle is not usable, or judges single pictures alone.
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
        if not self.bundle.manifest.judges_volumes:
            raise BundleError(
                "the bundle has no locator: it judges single pictures and no volume",
                where=self.bundle.manifest.name,
                fix="Give it pictures, or take a bundle whose locator was trained too",
            )
        self._runtime = make_runtime(runtime, threads) if isinstance(runtime, str) else runtime
        self._network = Networks(self.bundle, self._runtime, precision)

    def precision_of(self, stage: StageName) -> Precision:
        """The precision that a stage runs in here; stages that share a network share it."""
        return self._network.precision_of(stage)

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
            for stage in self.bundle.manifest.stages:
                self._network(stage)
        planar = PlanarRun(self.bundle.manifest, self._network, volume)
        levels = self._find_levels(volume, planar, clock)
        outlined = self._outline(volume, levels, clock)
        coarse, hopeless = resolution_warning(volume)
        judges = "classifier" in self.bundle.manifest.stages
        judged = verdicts(levels, hopeless, judges=judges)
        opinions = self._classify(volume, levels, judged, planar, clock)
        with clock.step("combine", 0.9, "combining the evidence"):
            combined = combine({level: o.logit for level, o in opinions.items()}, self.bundle.manifest.calibration)
            items = tuple(
                level_finding(level, judged[level], opinions.get(level), combined, volume, self.bundle.manifest)
                for level in LEVELS
            )
        clock.seconds["total"] = round(time.perf_counter() - start, 4)
        warnings = [*volume.warnings, *([coarse] if coarse else []), *level_warnings(levels, judged, judges=judges)]
        findings = Findings(
            status=status_of(opinions),
            patient=patient_finding(combined, self.bundle.manifest.thresholds.patient),
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
            images=planar.images(levels),
        )

    def _find_levels(self, volume: Volume, planar: PlanarRun, clock: _Clock) -> LevelMap:
        """Run the locator and name what it found."""
        if planar.use("locator") is not None:
            with clock.step("locate", 0.15, "finding the spine"):
                planar.progress = clock.part(0.15, 0.5, "finding the spine")
                return planar.levels(self._level_settings())
        locator = self._network("locator")
        with clock.step("locate", 0.15, "finding the spine"):
            located = locate(volume, lambda image: answers.located(locator, image), window=self._window())
        with clock.step("levels", 0.5, "naming the levels"):
            return find_levels(located, self._level_settings())

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
        self, volume: Volume, levels: LevelMap, judged: Mapping[Level, Verdict], planar: PlanarRun, clock: _Clock
    ) -> dict[Level, Opinion]:
        """Ask the classifier about every judged level; stacks go one at a time to bound memory."""
        wanted = [level for level, verdict in judged.items() if verdict.reason is None]
        if not wanted:
            return {}
        if planar.use("classifier") is not None:
            with clock.step("classify", 0.6, "looking for fractures"):
                planar.progress = clock.part(0.6, 0.9, "looking for fractures")
                return planar.opinions(levels, wanted)
        with clock.step("stacks", 0.56, "cutting out the vertebrae"):
            frames = stacks.frames(levels.centers(), levels.labels, levels.affine)
            samples = {
                level: stacks.sample_stack(
                    volume, stacks.mask_volume(levels.labels, levels.affine, level), frames[level], level
                )
                for level in wanted
            }
        network = self._network("classifier")
        with clock.step("classify", 0.6, "looking for fractures"):
            opinions = {}
            for number, level in enumerate(wanted):
                opinions[level] = answers.opinion(network, samples[level], frames[level], level)
                if clock.progress:
                    clock.progress(0.6 + 0.3 * (number + 1) / len(wanted), f"looked at {level.name}")
        return opinions

    def _provenance(self, volume: Volume, seconds: dict[str, float]) -> Provenance:
        manifest = self.bundle.manifest
        precisions = [f"{stage} {self.precision_of(stage)}" for stage in STAGES if stage in manifest.stages]
        return Provenance(
            cspine=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            input=input_provenance(volume),
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


def _unique(warnings: list[StudyWarning]) -> list[StudyWarning]:
    return list(dict.fromkeys(warnings))
