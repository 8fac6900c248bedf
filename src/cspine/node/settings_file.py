"""Settings as one TOML file: what node and web application read theirs with."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, ValidationInfo

from cspine.errors import RecipeError

Model = TypeVar("Model", bound=BaseModel)


def beside(value: Path, info: ValidationInfo) -> Path:
    """A path as the file means it, absolute: relative ones lie beside the settings file, or in the working folder."""
    folder = (info.context or {}).get("folder")
    return (Path(folder or ".") / value.expanduser()).absolute()


def read_settings(model: type[Model], path: Path | str, *, described: str, tags: frozenset[str] = frozenset()) -> Model:
    """The settings of a TOML file; relative paths in it lie beside it.

    Args:
        model: what they are.
        path: of the file.
        described: the document that lists all keys, for the error.
        tags: of discriminated unions, which pydantic puts into the place of an error; they are no keys of the file.

    Raises:
        RecipeError: not readable, not TOML, an unknown key or a wrong value; ``where`` names file and key. The value
            itself is not repeated: it may be a password.
    """
    path = Path(path)
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the settings: {error.strerror}", where=path.name, fix="Check path") from error
    except UnicodeDecodeError as error:
        raise RecipeError("expected UTF-8 text", where=path.name, fix="Save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"expected TOML: {error}", where=path.name, fix="Correct the syntax") from error
    try:
        return model.model_validate(table, context={"folder": path.resolve().parent})
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"] if part not in tags) or "top level"
        unknown = first["type"] == "extra_forbidden"
        message = "this key is not known" if unknown else first["msg"].removeprefix("Value error, ")
        fix = "Remove it or correct its spelling" if unknown else f"Correct it as {described} says"
        # Not chained: pydantic's own text repeats the values.
        raise RecipeError(message, where=f"{path.name}: {key}", fix=fix) from None
