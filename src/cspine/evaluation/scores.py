"""``Figures``: everything that is said of one method on one set of cases, as one frozen value, in JSON and back."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from cspine.evaluation.metrics import Interval
from cspine.evaluation.network_size import NetworkSize

# JSON has no word for a number that does not exist.
Number = Annotated[
    float | None, BeforeValidator(lambda x: None if x is None or not math.isfinite(x) else round(float(x), 5))
]
Curve = tuple[tuple[float, float], ...]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Model):
    """A figure with its 95 % interval; None where it does not exist."""

    value: Number
    low: Number = None
    high: Number = None

    @classmethod
    def of(cls, interval: Interval) -> Estimate:
        """From an interval."""
        return cls(value=interval.value, low=interval.low, high=interval.high)


class Bin(_Model):
    """One bin of a reliability table: bounds, how many, mean prediction, share of positives."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


class Confusion(_Model):
    """Counts of a yes/no answer."""

    true_negative: int
    false_positive: int
    false_negative: int
    true_positive: int


class YesNo(_Model):
    """Figures of one yes/no question: is this vertebra, or this patient, fractured.

    What was asked and not answered counts as "no", with a score below all others; calibration, Brier score and log
    loss are of the answered ones. Those up to ``confusion`` take the answer's own threshold.

    Attributes:
        count: asked.
        positive: truly yes.
        judged: answered.
        accuracy: share that is right.
        sensitivity: share of the positives that are called; the same as recall.
        specificity: share of the negatives that are not called.
        precision: share of the called that are positive.
        recall: the same as sensitivity.
        f1: harmonic mean of precision and recall.
        kappa: Cohen's (1960).
        confusion: the counts.
        auc: area under the ROC curve; the interval resamples patients.
        auc_delong: the same with DeLong's interval.
        average_precision: area under the curve of precision and recall, as a step function.
        sensitivity_at: best sensitivity at a specificity of at least 0.9 and 0.95.
        predictive_value: positive predictive value at a prevalence of 4, 10 and 47.6 %, own threshold.
        predictive_value_at: the same with the threshold that has a specificity of at least 0.95.
        log_loss: mean binary cross-entropy.
        brier: mean squared error of the probability.
        calibration_error: expected calibration error, ten bins of equal width.
        reliability: the bins.
        roc: 1 - specificity and sensitivity, rising.
        precision_recall: recall and precision, rising recall.
    """

    count: int
    positive: int
    judged: int
    accuracy: Number = None
    sensitivity: Estimate | None = None
    specificity: Estimate | None = None
    precision: Number = None
    recall: Number = None
    f1: Number = None
    kappa: Number = None
    confusion: Confusion | None = None
    auc: Estimate | None = None
    auc_delong: Estimate | None = None
    average_precision: Number = None
    sensitivity_at: dict[str, Number] = {}
    predictive_value: dict[str, Number] = {}
    predictive_value_at: dict[str, Number] = {}
    log_loss: Number = None
    brier: Number = None
    calibration_error: Number = None
    reliability: tuple[Bin, ...] = ()
    roc: Curve = ()
    precision_recall: Curve = ()


class Level(_Model):
    """Figures of one level.

    Attributes:
        in_view: vertebrae in view.
        fracture: the yes/no figures of this level alone.
        dice: mean of its mask.
        iou: mean intersection over union of its mask.
        identified: share that is named rightly.
        distance_mm: median error of its centre, of rightly named ones.
    """

    in_view: int
    fracture: YesNo
    dice: Number = None
    iou: Number = None
    identified: Number = None
    distance_mm: Number = None


class Locating(_Model):
    """How well vertebrae are found.

    Attributes:
        identified: share of vertebrae in view that are named rightly; see ``metrics.level_hits``.
        distance_mm: mean error of centres, of all in view that were answered, right or wrong.
        median_mm: median of the same over rightly named ones.
        dice: mean of the masks.
        iou: mean intersection over union of the masks.
        spine_dice: Dice of all seven as one mask.
    """

    identified: Estimate | None = None
    distance_mm: Estimate | None = None
    median_mm: Number = None
    dice: Estimate | None = None
    iou: Estimate | None = None
    spine_dice: Number = None


class Images(_Model):
    """Which vertebrae does an axial image show: seven yes/no answers an image.

    Attributes:
        count: images.
        macro_f1: mean over levels of F1 at 0.5.
        exact_match: share of images with all seven right.
        coverage_error: how far down the ranked answers one has to go to cover what an image shows, over images that
            show a vertebra; the best possible value is the mean number shown.
        shown: mean number shown by these.
        f1: at 0.5, a level.
        fracture_auc: of "this image shows a fracture", for methods that say so.
    """

    count: int
    macro_f1: Estimate | None = None
    exact_match: Estimate | None = None
    coverage_error: Number = None
    shown: Number = None
    f1: dict[str, Number] = {}
    fracture_auc: Estimate | None = None


class Boxes(_Model):
    """Vertebra boxes in axial images; see ``detection.BoxScores``. ``source`` says who drew the answered ones."""

    count: int
    source: str
    map50: Number
    map50_95: Number
    iou: Number
    ap50: dict[str, Number]


class EvidenceFroc(_Model):
    """Do marks lie on fractures; see ``detection.Froc``. ``curve`` has false marks a study and sensitivity."""

    fractures: int
    studies: int
    score: Number
    at: dict[str, Number]
    iou: Number
    curve: Curve


class Figures(_Model):
    """All figures of one method on one set of cases.

    Attributes:
        method: what was scored.
        data: on what, in words.
        cases: how many.
        bundle: SHA-256 of the bundles that answered.
        judges: the method answers whether vertebrae are fractured; False for one that only locates.
        vertebra: over all vertebrae.
        patient: over patients.
        levels: a level.
        false_alarms: vertebrae without a fracture that were called, a study.
        competition_score: of RSNA 2022, the lower the better; ``competition_variant`` says which.
        competition_variant: how it was computed.
        locating: how well vertebrae are found.
        images: of axial images; None without true masks.
        boxes: of vertebra boxes; None without true masks.
        froc: of evidence; None without fractures of known place, or without a verdict.
        networks: size of each network.
        parameters: of all networks together.
        flops: of one run of each network, together.
        seconds: median time a study.
        threads: processor threads that ``seconds`` was measured with; None for all.
        not_scored: cases that could not be opened, by name, and why.
    """

    method: str
    data: str
    cases: int
    bundle: tuple[str, ...] = ()
    judges: bool = True
    vertebra: YesNo
    patient: YesNo
    levels: dict[str, Level]
    false_alarms: Estimate | None = None
    competition_score: Estimate | None = None
    competition_variant: str = ""
    locating: Locating = Locating()
    images: Images | None = None
    boxes: Boxes | None = None
    froc: EvidenceFroc | None = None
    networks: tuple[NetworkSize, ...] = ()
    parameters: int | None = None
    flops: int | None = None
    seconds: Number = None
    threads: int | None = None
    not_scored: dict[str, str] = {}


class PictureFigures(_Model):
    """All figures of one method on single pictures.

    Attributes:
        method: what was scored.
        data: on what, in words.
        pictures: how many.
        patients: that they are of, as far as anything says so; intervals resample these.
        bundle: SHA-256 of the bundle.
        judges: the method answers whether a picture shows a fracture.
        fracture: the yes/no figures of that, on pictures where it is known; called from ``threshold`` on.
        threshold: probability.
        levels: figures of "which vertebrae does it show", on pictures where that is known; None without such.
        networks: size of each network.
        seconds: mean time a picture.
        not_scored: studies that could not be opened, by name, and why.
    """

    method: str
    data: str
    pictures: int
    patients: int
    bundle: str
    judges: bool
    fracture: YesNo
    threshold: float
    levels: Images | None = None
    networks: tuple[NetworkSize, ...] = ()
    seconds: Number = None
    not_scored: dict[str, str] = {}
