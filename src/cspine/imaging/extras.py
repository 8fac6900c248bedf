"""Libraries of the extra ``train`` that a few steps need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cspine.errors import MissingExtraError


def scikit_image(module: str) -> Any:
    """A module of scikit-image, by name.

    Raises:
        MissingExtraError: it is not installed.
    """
    return _module(f"skimage.{module}", "scikit-image")


def imbalanced_learn(module: str) -> Any:
    """A module of imbalanced-learn, by name.

    Raises:
        MissingExtraError: it is not installed.
    """
    return _module(f"imblearn.{module}", "imbalanced-learn")


def _module(name: str, library: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"this step needs {library}, which is not installed", fix='pip install "cspine[train]"'
        ) from error
