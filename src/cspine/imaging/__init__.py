"""Preprocessing and augmentation as pure, named, composable steps on an image, its mask, its boxes and its labels."""

from cspine.imaging.balance import Table
from cspine.imaging.boxes import Boxes, boxes_from_mask, levels_from_boxes, slices_with_boxes
from cspine.imaging.mixing import Batch
from cspine.imaging.pipeline import Pipeline, load_pipeline
from cspine.imaging.sample import Sample, Step

__all__ = [
    "Batch",
    "Boxes",
    "Pipeline",
    "Sample",
    "Step",
    "Table",
    "boxes_from_mask",
    "levels_from_boxes",
    "load_pipeline",
    "slices_with_boxes",
]
