"""All figures of one method: that they are what their names say, and the page that shows them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from cspine.cases import Case
from cspine.cli.app import app
from cspine.errors import StudyError
from cspine.evaluation.labelled_set import LabelledCases, opened
from cspine.evaluation.network_size import network_size
from cspine.evaluation.pages import evaluation_page
from cspine.evaluation.records import CaseRecord
from cspine.evaluation.running import evaluate_cases
from cspine.evaluation.scores import Figures
from cspine.evaluation.scoring import figures_of
from cspine.training.splits import Splits, write_splits
from fake_predictor import findings_of
from score_factory import cohort, scored
from training_factory import block_case


def test_figures_of_a_hand_made_case() -> None:
    """C1 and C2 broken; C1 and C3 called: one of each but four true silences."""
    broken = (True, True, *(False,) * 5)
    record = scored("a", broken, (0.9, 0.4, 0.8, 0.1, 0.1, 0.1, 0.1), patient=0.7)
    other = scored("b", (False,) * 7, (0.2,) * 7, patient=0.3)
    found = figures_of([record, other], method="m", data="d")
    vertebra = found.vertebra
    assert vertebra.confusion is not None
    assert vertebra.confusion.model_dump() == {
        "true_negative": 11, "false_positive": 1, "false_negative": 1, "true_positive": 1,
    }  # fmt: skip
    assert (vertebra.accuracy, vertebra.precision, vertebra.recall, vertebra.f1) == (
        pytest.approx(12 / 14, abs=1e-4), 0.5, 0.5, 0.5,
    )  # fmt: skip
    # Agreement 12/14 where chance alone agrees on (12 * 12 + 2 * 2) / 14^2.
    chance = 148 / 196
    assert vertebra.kappa == pytest.approx((12 / 14 - chance) / (1 - chance), abs=1e-4)
    assert found.patient.auc is not None and found.patient.auc.value == 1
    assert found.false_alarms is not None and found.false_alarms.value == 0.5
    assert found.levels["C1"].dice == 0.8 and found.levels["C1"].iou == pytest.approx(0.8 / 1.2, abs=1e-4)
    assert found.locating.identified is not None and found.locating.identified.value == 1
    assert found.boxes is not None and found.boxes.map50_95 == 1
    assert found.froc is not None and found.froc.fractures == 2
    assert found.seconds == 2


def test_predictive_values_follow_bayes() -> None:
    found = figures_of(cohort(40, 1.0), method="m", data="d").vertebra
    assert found.sensitivity is not None and found.specificity is not None
    share, kept = found.sensitivity.value, found.specificity.value
    assert share is not None and kept is not None
    for name, prevalence in (("0.04", 0.04), ("0.1", 0.1), ("0.476", 0.476)):
        hits, alarms = share * prevalence, (1 - kept) * (1 - prevalence)
        assert found.predictive_value[name] == pytest.approx(hits / (hits + alarms), abs=1e-3)


def test_silence_is_a_low_score_and_takes_the_base_rate() -> None:
    silent = scored("a", (True, *(False,) * 6), (None,) * 7)
    silent = silent.model_copy(update={"probability": None, "called": False})
    found = figures_of([silent, scored("b", (False,) * 7, (0.1,) * 7)], method="m", data="d")
    assert found.judges and found.vertebra.judged == 7
    # Level with the six that were not judged either, behind the seven that were.
    assert found.vertebra.auc is not None and found.vertebra.auc.value == pytest.approx(3 / 13, abs=1e-4)
    assert found.competition_score is not None and found.competition_score.value is not None


def test_a_method_that_only_locates_has_no_figures_of_fractures() -> None:
    records = [scored("a", (True, *(False,) * 6), (None,) * 7).model_copy(update={"probability": None})]
    found = figures_of(records, method="m", data="d")
    assert not found.judges and found.competition_score is None and found.false_alarms is None
    assert found.images is not None and found.images.macro_f1 is not None and found.images.macro_f1.value == 1
    assert b"it does not judge" in evaluation_page(found)


def test_vertebrae_that_nobody_outlined_count_as_labelled() -> None:
    """RSNA 2022 says of most studies only which levels are broken, not how much of them is in view."""
    record = scored("a", (True, *(False,) * 6), (0.9, *(0.1,) * 6))
    rows = tuple(row.model_copy(update={"visible_fraction": None, "dice": None}) for row in record.levels)
    found = figures_of([record.model_copy(update={"levels": rows})], method="m", data="d")
    assert found.vertebra.count == 7 and found.levels["C1"].in_view == 0 and found.locating.dice is None


def test_figures_survive_json_and_the_page_is_one_safe_file() -> None:
    found = figures_of(cohort(20, 1.0), method="m <b>", data="d", faults={"x": "no <images>"})
    assert Figures.model_validate_json(found.model_dump_json()) == found
    page = evaluation_page(found).decode()
    assert page == evaluation_page(found).decode()
    assert "<script" not in page and "http://" not in page and "m &lt;b&gt;" in page and "no &lt;images&gt;" in page
    for word in ("Cohen", "FROC", "mAP50-95", "coverage error", "exact match", "Brier", "47.6 % prevalence"):
        assert word in page, word
    assert re.search(r"polyline class=\"curve\" points=\"0.0,200.0", page)


def test_records_stay_small(tmp_path: Path) -> None:
    record = scored("a", (True,) * 7, (0.9,) * 7)
    many = record.images.model_copy(  # type: ignore[union-attr]
        update={"visible": ((1, 2),) * 200, "answers": ((0.123,) * 7,) * 200, "broken": (0,) * 200,
                "found": ((100, 1, 0.123, 0.456),) * 2000}
    )  # fmt: skip
    assert len(record.model_copy(update={"images": many}).model_dump_json(indent=1)) < 200_000


def test_records_of_before_are_still_read() -> None:
    old = scored("a", (True,) * 7, (0.9,) * 7).model_dump(mode="json")
    for key in ("images", "marks", "lesions"):
        del old[key]
    assert CaseRecord.model_validate(old).images is None


# Size of networks.


def model(*, dynamic: bool = False) -> bytes:
    """A convolution of 8 kernels 3 x 3 over 4 channels, then a product with 5 rows."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 4, 3, 3)), "b": np.zeros(8), "m": rng.normal(size=(8, 5))}
    stored = [helper.make_tensor(k, TensorProto.FLOAT, v.shape, v.ravel()) for k, v in weights.items()]
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["out"]),
    ]
    shape = ["n", 4, "h", "w_"] if dynamic else [1, 4, 16, 10]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 5])
    graph = helper.make_graph(nodes, "g", [image], [out], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


@pytest.mark.parametrize("dynamic", [False, True])
def test_parameters_and_operations_by_hand(dynamic: bool) -> None:
    found = network_size(model(dynamic=dynamic), (1, 4, 16, 10))
    assert found.parameters == 8 * 4 * 9 + 8 + 8 * 5
    assert found.flops == 2 * (8 * 16 * 10) * (4 * 9) + 2 * 8 * 5
    assert found.unknown == 0


def test_recurrent_layers_count_every_step() -> None:
    shapes = {"x": (24, 2, 6), "w": (2, 4 * 3, 6), "r": (2, 4 * 3, 3)}
    infos = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items() if k == "x"]
    stored = [helper.make_tensor(k, TensorProto.FLOAT, v, np.zeros(v).ravel()) for k, v in shapes.items() if k != "x"]
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=3, direction="bidirectional")
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", infos, [out], stored)
    proto = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    found = network_size(proto.SerializeToString(), (24, 2, 6))
    assert found.flops == 2 * 24 * 2 * (2 * 12 * 6 + 2 * 12 * 3)


# A data set of one's own.


@dataclass
class FakeStudies:
    path: Path
    kind: str = "phantoms"
    studies: tuple[str, ...] = ("blocks-0", "blocks-1", "blocks-2", "broken")
    faults: Any = None

    def case(self, name: str, /, *, threads: int | None = None) -> Case:
        if name == "broken":
            raise StudyError("expected a scan, got none", where=name)
        return block_case(int(name[-1]), fractured=name.endswith("1"))


class FakeJudge:
    """Answers with the true mask of nothing; knows no fracture."""

    def __init__(self, bundle: Any = None, *_: object, **__: object) -> None:
        self.bundle = SimpleNamespace(sha256="c" * 64)
        self.asked = 0

    def predict_full(self, volume: Any, progress: Any = None) -> Any:
        self.asked += 1
        findings = findings_of(volume, neck=True)
        made = findings.provenance.model_copy(
            update={
                "bundle": SimpleNamespace(sha256="c" * 64), "seconds": {"total": 1.0},
            }
        )  # fmt: skip
        return SimpleNamespace(
            findings=findings.model_copy(update={"provenance": made}),
            labels=np.zeros((4, 4, 4), np.uint8), labels_affine=np.diag([2.0, 2.0, 2.0, 1.0]), evidence={}, logits={},
        )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    opened.cache_clear()
    monkeypatch.setattr("cspine.evaluation.labelled_set.open_labelled", lambda path: FakeStudies(Path(path)))
    return folder


def test_a_study_that_cannot_be_opened_costs_no_other(data: Path, tmp_path: Path) -> None:
    faults: dict[str, Any] = {}
    judge = FakeJudge()
    cases = LabelledCases(data, FakeStudies(data).studies)
    records = evaluate_cases(cases, judge, folder=tmp_path / "cases", faults=faults)  # type: ignore[arg-type]
    assert [record.name for record in records] == ["blocks-0", "blocks-1", "blocks-2"]
    assert list(faults) == ["broken"] and judge.asked == 3
    assert evaluate_cases(cases, judge, folder=tmp_path / "cases", faults=faults) == records  # type: ignore[arg-type]
    assert judge.asked == 3
    with pytest.raises(StudyError, match="expected a scan"):
        evaluate_cases(cases, judge, folder=tmp_path / "cases")  # type: ignore[arg-type]


def test_evaluate_scores_what_a_fold_held_back(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspine.inference.predictor.Predictor", FakeJudge)
    samples, out = tmp_path / "samples", tmp_path / "out"
    write_splits(Splits((("blocks-0", "blocks-1"), ("blocks-2", "broken"))), samples)
    flags = ["evaluate", "--data", str(data), "-o", str(out), "--samples", str(samples)]
    done = CliRunner().invoke(app, [*flags, "--fold", "0"])
    assert done.exit_code == 0, done.output
    found = Figures.model_validate_json((out / "evaluation.json").read_bytes())
    assert found.cases == 2 and found.vertebra.positive == 7 and "fold 0" in found.data
    assert (out / "evaluation.html").is_file() and (out / "cases" / "blocks-1.json").is_file()
    other = CliRunner().invoke(app, [*flags, "--fold", "1"])
    assert other.exit_code == 8 and "1 of 2 studies could not be scored" in other.output
    assert CliRunner().invoke(app, [*flags, "--fold", "2"]).exit_code == 2


def test_evaluate_refuses_what_contradicts_itself(tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "out")]
    both = CliRunner().invoke(app, ["evaluate", "--data", str(tmp_path), "--set", "mesh", *out])
    assert both.exit_code == 2 and "measure different things" in both.output
    lonely = CliRunner().invoke(app, ["evaluate", "--samples", str(tmp_path), *out])
    assert lonely.exit_code == 2
    twice = CliRunner().invoke(app, ["evaluate", str(tmp_path), "--bundle", str(tmp_path), *out])
    assert twice.exit_code == 2 and "twice" in twice.output
