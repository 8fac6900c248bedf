"""The optional parts of an installation: what each is for, whether it is here, and how to get it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from cspine.errors import MissingExtraError


@dataclass(frozen=True, slots=True)
class Extra:
    """One optional part.

    Attributes:
        name: as in ``pip install "cspine[name]"``.
        purpose: what it adds, for a person.
        modules: top-level modules that must be importable for the part to work.
    """

    name: str
    purpose: str
    modules: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The modules that are not installed. Nothing is imported to find out."""
        return tuple(module for module in self.modules if find_spec(module) is None)

    @property
    def pip(self) -> str:
        """The command that installs it."""
        return f'pip install "cspine[{self.name}]"'


EXTRAS: tuple[Extra, ...] = (
    Extra(
        "train",
        "train, evaluate and export methods",
        ("torch", "lightning", "onnx", "onnxscript", "matplotlib", "sklearn", "pytorch_grad_cam"),
    ),
    Extra("yolo", "YOLO locators (Ultralytics, AGPL-3.0)", ("ultralytics",)),
    Extra("dicom", "results as DICOM, FHIR, HL7 and PDF", ("highdicom", "fhir", "hl7apy", "reportlab")),
    Extra(
        "web",
        "the web application: accounts, upload, worklist and reading room",
        (
            "flask",
            "flask_security",
            "sqlalchemy",
            "alembic",
            "argon2",
            "authlib",
            "dbos",
            "deid",
            "highdicom",
            "waitress",
        ),
    ),
    Extra(
        "node",
        "receive studies over DICOM, judge them and send the results",
        ("pynetdicom", "highdicom", "dbos", "dicomweb_client", "prometheus_client"),
    ),
    Extra("desktop", "libraries of the desktop application, still to be built", ("PySide6", "pyqtgraph")),
    Extra("cluster", "libraries of training on several machines, still to be built", ("ray",)),
    Extra("dev", "work on cspine itself", ("pytest", "hypothesis", "mypy", "ruff", "importlinter")),
)


def require(name: str, *, for_what: str) -> None:
    """Make sure an optional part is installed before a command needs it.

    Args:
        name: of the extra, such as ``train``.
        for_what: the command that needs it, such as ``cspine train``.

    Raises:
        MissingExtraError: with the pip command that installs it.
    """
    extra = next(extra for extra in EXTRAS if extra.name == name)
    if extra.missing:
        raise MissingExtraError(
            f"{for_what} needs the optional part '{name}', which is not installed",
            where=f"missing: {', '.join(extra.missing)}",
            fix=f"Install it with: {extra.pip}",
        )
