"""How a trained slice network scores labelled pictures of real patients: ``python -m cspine.training.slice_scores``."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cspine.errors import CspineError, StudyError
from cspine.evaluation.metrics import Interval, area_under_curve, bootstrap_interval
from cspine.studies.images import open_image
from cspine.training.fit import load_network
from cspine.training.recipe import SliceStage, load_recipe
from cspine.training.slices import picture_tensor


def score_pictures(checkpoint: Path, stage: SliceStage, paths: list[Path]) -> NDArray[np.float64]:
    """Logit of a fracture for each picture, the mean of it and its mirror image."""
    network, _, _ = load_network(checkpoint)
    out = []
    with torch.inference_mode():
        for path in paths:
            x = picture_tensor(open_image(path), stage)
            out.append(float(network(torch.cat([x, x.flip(-1)]))["vertebra"].float().mean()))
    return np.asarray(out)


def read_labels(table: Path) -> list[tuple[str, str, bool]]:
    """File, study and whether it shows a fracture, from a table with ``file``, ``StudyInstanceUID`` and ``label``.

    Raises:
        StudyError: the table cannot be read or lacks a column.
    """
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        return [(row["file"], row["StudyInstanceUID"], row["label"] == "fracture") for row in rows]
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise StudyError(f"expected columns file, StudyInstanceUID and label: {error}", where=table.name) from error


def area_by_study(
    truth: NDArray[np.bool_], scores: NDArray[np.float64], studies: list[str], *, rounds: int = 2000
) -> Interval:
    """Area under the ROC curve of slices, its interval from a bootstrap over whole studies."""
    return bootstrap_interval(lambda rows: area_under_curve(truth[rows], scores[rows]), studies, rounds=rounds)


def main(arguments: list[str] | None = None) -> int:
    """Entry of ``python -m cspine.training.slice_scores``; JSON on standard output."""
    parser = argparse.ArgumentParser(description="Score a slice network on a folder of labelled 8-bit pictures.")
    parser.add_argument("checkpoint", type=Path, help="RUN/slice/last.ckpt")
    parser.add_argument("folder", type=Path, help="pictures, with labels.csv")
    parser.add_argument("--recipe", default="slice")
    options = parser.parse_args(arguments)
    try:
        stage = load_recipe(options.recipe).slice
        if stage is None:
            raise StudyError("expected a recipe with a slice stage", where=options.recipe)
        rows = read_labels(options.folder / "labels.csv")
        scores = score_pictures(options.checkpoint, stage, [options.folder / name for name, _, _ in rows])
    except CspineError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    truth, studies = np.array([row[2] for row in rows]), [row[1] for row in rows]
    area = area_by_study(truth, scores, studies)
    result = {
        "slices": len(rows),
        "fractured": int(truth.sum()),
        "studies": len(set(studies)),
        "auc": round(area.value, 3),
        "low": round(area.low, 3),
        "high": round(area.high, 3),
        "scores": {row[0]: round(float(score), 3) for row, score in zip(rows, scores, strict=True)},
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
