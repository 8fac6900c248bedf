"""The house holds: floors import only what is below them, and predicting needs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cspine.findings import Findings
from dicom_factory import Grid, write_series

ROOT = Path(__file__).resolve().parents[1]
# Importing any of these fails, as in the base install.
FORBID = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "lightning", "monai", "timm", "torchmetrics"}:
            raise ImportError(name + " is not part of the base install")
sys.meta_path.insert(0, Forbid())
"""


def in_base_install(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that cannot import torch."""
    return subprocess.run(
        [sys.executable, "-c", FORBID + code, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize(
    "module",
    [
        "cspine",
        "cspine.imaging",
        "cspine.studies",
        "cspine.phantoms",
        "cspine.inference",
        "cspine.reports",
        "cspine.cli.app",
    ],
)
def test_importing_needs_no_torch(module: str) -> None:
    done = in_base_install(f"import importlib; importlib.import_module({module!r})")
    assert done.returncode == 0, done.stderr


def test_importing_cspine_loads_only_cspine() -> None:
    done = in_base_install("import cspine; print({n.partition('.')[0] for n in sys.modules} & {'numpy', 'pydantic'})")
    assert done.stdout.strip() == "set()", done.stderr


def test_import_contracts_hold() -> None:
    pytest.importorskip("importlinter")
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_predicting_needs_no_torch(tmp_path: Path) -> None:
    """The shipped networks judge a study, whatever they make of it, where torch cannot be imported."""
    write_series(tmp_path / "study", Grid())
    code = """
from cspine.cli.app import app
try:
    app()
except SystemExit as end:
    print("ENDED", end.code, *sorted({n.partition(".")[0] for n in sys.modules} & {"torch", "lightning", "openvino"}))
"""
    done = in_base_install(code, "predict", str(tmp_path / "study"), "-o", str(tmp_path / "out"))
    # A ball has no neck, so this is refused (3), unless the networks see one; what counts is that they looked.
    assert done.stdout.splitlines()[-1:] in (["ENDED 3 openvino"], ["ENDED 0 openvino"]), done.stdout + done.stderr
    assert Findings.load(tmp_path / "out" / "findings.json").provenance.bundle is not None
