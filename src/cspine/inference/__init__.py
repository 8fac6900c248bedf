"""From a volume to findings: bundle, runtime, locator, levels, stacks, classifier, combiner. Never imports torch."""

from cspine.inference.bundle import Bundle
from cspine.inference.predictor import Prediction, Predictor

__all__ = ["Bundle", "Prediction", "Predictor"]
