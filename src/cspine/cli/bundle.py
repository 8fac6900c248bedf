"""``cspine bundle``: what a model bundle holds, and whether it does here what it did where it was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cspine.cli.console import stderr, stdout
from cspine.errors import BundleError

if TYPE_CHECKING:
    from cspine.inference.bundle import Bundle

app = typer.Typer(
    no_args_is_help=True,
    help="Look at a model bundle, verify it, or give it the phantom that it is verified with.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Folder = Annotated[
    Path | None,
    typer.Argument(
        metavar="[DIR]", help="Folder of a bundle (default: the one that comes with cspine).", show_default=False
    ),
]
_Threads = Annotated[int | None, typer.Option(help="Processor threads (default: all).", min=1)]


@app.command()
def verify(folder: _Folder = None, *, threads: _Threads = None) -> None:
    """Check every digest, then judge the bundle's own phantom in OpenVINO and ONNX Runtime and compare the findings.

    Exit code 0 when all is as recorded, 4 when a file or a finding differs.
    """
    from cspine.inference.verify import expectation_of
    from cspine.inference.verify import verify as runs_of

    bundle = _load(folder)
    console = stdout()
    console.print(f"{len(bundle.files)} files as the manifest says, bundle {bundle.sha256[:12]}", markup=False)
    expected, _ = expectation_of(bundle)
    console.print(f"phantom: {expected.phantom}", markup=False)
    wrong: list[str] = []
    for run in runs_of(bundle, threads=threads):
        verdict = "same findings" if not run.mismatches else "OTHER FINDINGS"
        console.print(
            f"{run.runtime}, {run.precision}: {verdict}, probabilities within {run.largest:.4f}, {run.seconds:.1f} s",
            markup=False,
        )
        wrong += [f"{run.runtime}, {run.precision}: {text}" for text in run.mismatches]
    for text in wrong:
        stderr().print(f"  {text}", markup=False, soft_wrap=True)
    if wrong:
        raise BundleError(
            f"expected the findings that the bundle was recorded with, got {len(wrong)} that differ",
            where=bundle.manifest.name,
            fix="Do not use it on this machine; `cspine doctor` says whether the runtimes work at all",
        )


@app.command()
def info(folder: _Folder = None) -> None:
    """Say what a bundle is and holds: networks, precisions, calibration, thresholds, files."""
    from cspine.inference.verify import VERIFY_FILES

    bundle = _load(folder)
    manifest = bundle.manifest
    lines = [f"{manifest.name} {manifest.version}, recipe {manifest.recipe}", f"identity  {bundle.sha256}"]
    lines.append(f"trained on  {manifest.trained_on}")
    for name, stage in manifest.stages.items():
        records = manifest.precision.get(name, {})
        gates = [f"{key} {'passed' if item.passed else 'refused'} ({item.error:.4f})" for key, item in records.items()]
        size = len(bundle.files[stage.file]) / 1e6
        lines.append(f"{name}  {stage.file}, {size:.1f} MB; f32" + "".join(f", {gate}" for gate in gates))
    lines.append(f"types  {', '.join(manifest.types) or 'none'}")
    thresholds = manifest.thresholds
    lines.append(f"called from  {thresholds.default:.3f} a vertebra, {thresholds.patient:.3f} a patient")
    carries = all(name in bundle.files for name in VERIFY_FILES)
    lines.append(f"phantom to verify with  {'yes' if carries else 'none'}")
    total = sum(len(content) for content in bundle.files.values()) / 1e6
    lines.append(f"files  {total:.1f} MB: {', '.join(sorted(bundle.files))}")
    console = stdout()
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def record(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a bundle.", show_default=False)],
    *,
    seed: Annotated[int | None, typer.Option(help="Of the phantom (default: always the same).", min=0)] = None,
    threads: _Threads = None,
) -> None:
    """Put a small phantom and the findings on it into a bundle, so that it can be verified elsewhere."""
    from cspine.inference.verify import SEED, record_into

    bundle = record_into(folder, SEED if seed is None else seed, threads=threads)
    typer.echo(f"{folder} {bundle.sha256}")


def _load(folder: Path | None) -> Bundle:
    from cspine.inference.bundle import Bundle

    return Bundle.default() if folder is None else Bundle.load(folder)
