"""Settings files: YAML in, and errors that name file, key, value and what is allowed."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedglioma.errors import ConfigError

LONGEST_VALUE = 80
KINDS = {
    "string_type": "write text",
    "tuple_type": "write a list",
    "list_type": "write a list",
    "dict_type": "write a table of 'key: value' lines",
    "model_type": "write a table of 'key: value' lines",
}
"""What is wanted, by pydantic's word for a value of another kind."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises
    ------
    ConfigError
        The file is absent, unreadable, not UTF-8, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such settings file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark is not None else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ConfigError(f"{path}:{place} not valid YAML: {problem}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: a settings file holds 'key: value' lines, this one holds {type(content).__name__}"
        )
    return content


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], table: Mapping[str, Any], place: str) -> Model:
    """Return settings out of a mapping; ``place`` is what an error names.

    Raises
    ------
    ConfigError
        A key is unknown or a value is not allowed.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise ConfigError(_explain(error, model, place)) from None


def _explain(error: ValidationError, model: type[BaseModel], place: str) -> str:
    """Return what is wrong in one line: place, key, value, what is allowed."""
    parts = []
    found = error.errors()
    for problem in found:
        if problem["type"] == "too_short" and any(_is_below(other["loc"], problem["loc"]) for other in found):
            continue  # it counts as short because what stands in it is wrong
        key = ".".join(str(step) for step in problem["loc"])
        message = _words(problem)
        if problem["type"] == "extra_forbidden":
            near = get_close_matches(key.rsplit(".", maxsplit=1)[-1], model.model_fields, n=1, cutoff=0.8)
            hint = f", did you mean {near[0]}?" if near else ""
            parts.append(f"{key}: unknown setting{hint}")
        elif problem["type"] == "missing" or (problem["input"] is None and problem["type"] in KINDS):
            parts.append(f"{key}: is needed and not set")
        elif not key:
            parts.append(message)
        else:
            value = repr(problem["input"])
            value = value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]}..."
            parts.append(f"{key}: {value} is not allowed ({message[0].lower()}{message[1:]})")
    return f"{place}: " + "; ".join(parts)


def _words(problem: ErrorDetails) -> str:
    """Return what is allowed where a problem is, without the names of Python's types."""
    if problem["type"] == "too_short":
        return f"give {problem['ctx']['min_length']} or more"
    return KINDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))


def _is_below(place: tuple[int | str, ...], above: tuple[int | str, ...]) -> bool:
    return len(place) > len(above) and place[: len(above)] == above
