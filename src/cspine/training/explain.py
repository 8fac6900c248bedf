"""Where the network of a run looks when it judges: heat over each vertebra of a study, for any recipe.

A bundle finds the levels; the run's own network judges them. What is explained is the network's verdict: the logit of
a vertebra's stack, or of the images that show it, or the mean of the fracture map over it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import nn

from cspine.anatomy import LEVELS, Level
from cspine.errors import RecipeError, StudyError, UsageError
from cspine.evaluation.evidence_hits import peak_mm
from cspine.inference.bundle import StageName
from cspine.inference.evidence import EvidenceMap
from cspine.inference.predictor import Prediction
from cspine.training.fit import CHECKPOINT, load_network
from cspine.training.heat import Layer, Method, Verdict, block_heat, explained_layer
from cspine.training.heat_questions import HEADS, PlanarQuestions, Question, StackQuestions, centers
from cspine.training.recipe import ClassifierStage, PlanarStage, Recipe
from cspine.training.recipe_networks import DETECTORS
from cspine.volume import Volume

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LevelHeat:
    """Where the verdict on one vertebra comes from.

    Attributes:
        level: which.
        probability: the network's own, not calibrated, 0..1.
        heat: Grad-CAM, 0..1 with 1 at its strongest; all zeros when nothing spoke for it.
        evidence: what the method itself says of where the fracture is, 0..1; None when it says nothing.
        images: what the network was shown, float32 ``[N, H, W]``, -1 black to 1 white; the maps' cells divide the same
            field evenly.
        affine: index ``(x, y, z)`` of ``images`` → LPS mm.
        layer: name of the layer in the network that the heat was read from.
        sagittal: the images are sagittal, not axial.
    """

    level: Level
    probability: float
    heat: EvidenceMap
    evidence: EvidenceMap | None
    images: NDArray[np.float32]
    affine: Float
    layer: str = ""
    sagittal: bool = False

    @property
    def peak_mm(self) -> tuple[float, float, float] | None:
        """LPS mm of the strongest cell of the heat; None when there is no heat."""
        if not self.heat.values.any():
            return None
        x, y, z = peak_mm(self.heat).tolist()
        return x, y, z

    @property
    def picture(self) -> str:
        """File name of its picture."""
        return f"{self.level.name}.png"


@dataclass(frozen=True, slots=True)
class Explainer:
    """A trained network that can be asked where its verdicts come from.

    Attributes:
        recipe: name of its recipe.
        stage_name: which stage of it judges.
        stage: that stage.
        network: with averaged weights, in evaluation mode.
        method: how heat is computed.
        digest: SHA-256 of the checkpoint; empty for a network that comes from none.
    """

    recipe: str
    stage_name: StageName
    stage: ClassifierStage | PlanarStage
    network: nn.Module
    method: Method = "gradcam"
    digest: str = ""

    @classmethod
    def of_run(cls, run: Path, method: Method = "gradcam") -> Explainer:
        """The network of a run that judges.

        Args:
            run: folder with ``recipe.json`` and checkpoints.
            method: how heat is computed.

        Raises:
            UsageError: no such run, its judging network is not trained yet, or it is of a kind without heat.
            RecipeError: ``recipe.json`` cannot be read.
        """
        recipe = _recipe_of(run)
        name = judging_stage(recipe)
        checkpoint = run / name / CHECKPOINT
        if not checkpoint.is_file():
            raise UsageError(f"the run has no trained {name}", where=str(checkpoint), fix="Train it first")
        network, stage, _ = load_network(checkpoint)
        if not isinstance(stage, (ClassifierStage, PlanarStage)):
            raise RecipeError(f"expected a {name} that judges, got {type(stage).__name__}", where=str(checkpoint))
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        return cls(recipe.name, name, stage, network, method, digest)

    @property
    def of_fractures(self) -> bool:
        """Whether the verdict is about a fracture; else the network only says which levels an image shows."""
        heads = self.stage.network.heads if isinstance(self.stage, PlanarStage) else HEADS
        return any(head in heads for head in HEADS[:-1])

    def explain(self, volume: Volume, prediction: Prediction, wanted: Sequence[Level] = ()) -> tuple[LevelHeat, ...]:
        """Heat over levels of a study, from C1 down.

        Args:
            volume: the CT that was judged.
            prediction: says where the levels are.
            wanted: only these; all in view when empty.

        Raises:
            StudyError: a wanted level, or every one, is not in view.
        """
        found = centers(prediction)
        missing = [level.name for level in wanted if level not in found]
        if missing or not found:
            names = ", ".join(missing) or "C1 to C7"
            raise StudyError(f"not in view in this scan: {names}", fix="Choose levels that cspine predict finds")
        volume = volume.reoriented()
        asked = (
            PlanarQuestions(volume, prediction, self.stage, self.network)
            if isinstance(self.stage, PlanarStage)
            else StackQuestions(volume, prediction)
        )
        layer: Layer | None = None
        heats = []
        for level in sorted(wanted or found):
            question = asked(level)
            verdict = Verdict(self.network, question.read, stacked=isinstance(self.stage, ClassifierStage))
            layer = layer or explained_layer(verdict, question.block)
            heats.append(_answered(level, question, verdict, layer, self.method))
        return tuple(heats)


def _answered(level: Level, question: Question, verdict: Verdict, layer: Layer, method: Method) -> LevelHeat:
    """Compute the heat, and read what the network said while it was computed."""
    heat = block_heat(verdict, question.block, layer, method)
    own = question.evidence(verdict.answers)
    shown = question.block[0, question.shown].numpy()
    return LevelHeat(
        level=level,
        probability=float(question.probability(verdict.answers)),
        heat=EvidenceMap(heat, question.affine(_shape(heat))),
        evidence=None if own is None else _as_evidence(own, question),
        images=shown,
        affine=question.affine(_shape(shown)),
        layer=layer.name,
        sagittal=question.sagittal,
    )


def _as_evidence(own: torch.Tensor, question: Question) -> EvidenceMap:
    values = own.float().numpy()
    return EvidenceMap(values, question.affine(_shape(values)))


def _shape(values: NDArray[np.float32]) -> tuple[int, int, int]:
    z, y, x = values.shape
    return z, y, x


def chosen_levels(names: Iterable[str]) -> tuple[Level, ...]:
    """Levels by name.

    Raises:
        UsageError: there is no such level.
    """
    known = {level.name: level for level in LEVELS}
    wrong = [name for name in names if name.upper() not in known]
    if wrong:
        raise UsageError(f"expected C1 to C7, got {wrong[0]!r}", where="--level")
    return tuple(dict.fromkeys(known[name.upper()] for name in names))


def judging_stage(recipe: Recipe) -> StageName:
    """The stage of a recipe whose network judges vertebrae; of a method that only locates, the one that locates.

    Raises:
        UsageError: it has none that heat can be computed for.
    """
    name: StageName = "locator" if recipe.classifier is None else "classifier"
    stage = recipe.stages()[name]
    if isinstance(stage, ClassifierStage):
        return name
    if isinstance(stage, PlanarStage):
        if stage.network.body in DETECTORS:
            raise UsageError(
                f"a detector ({stage.network.body}) has no Grad-CAM: its verdicts are boxes, which say themselves "
                "where they look",
                where=f"{recipe.name}, {name}",
                fix="See the boxes in its findings, or explain another recipe",
            )
        if any(head in HEADS for head in stage.network.heads):
            return name
    raise UsageError("the recipe has no network that judges", where=recipe.name, fix="Explain another recipe")


def _recipe_of(run: Path) -> Recipe:
    path = run / "recipe.json"
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"expected the folder of a run: {error.strerror}", where=str(path), fix="Give what cspine train --out named"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{first['msg']}: the run is of another version of cspine", where=f"{path}: {key}") from error
