"""A section of a recipe from plain values, with what pydantic finds wrong told in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from learngene.recipe.sections import Section, merge
from learngene.system.errors import LearngeneError, RecipeError

SectionType = TypeVar("SectionType", bound=Section)
MAPPING = "Input should be a mapping of keys to values"
IN_OUR_WORDS = {"missing": "required, but missing", "dict_type": MAPPING, "model_type": MAPPING}
"""What we say for pydantic's kinds of fault, where its own text speaks of Python."""


def validated(kind: type[SectionType], fields: Mapping[str, Any], where: str) -> SectionType:
    """Builds a section from plain values.

    Raises:
        RecipeError: One line that names the place, what is wrong, and what would be right.
    """
    try:
        return kind.model_validate(dict(fields))
    except LearngeneError as error:
        raise RecipeError(f"{where}: {error}") from None
    except ValidationError as error:
        raise RecipeError(f"{where}: {_told(error, fields)}") from None


def changed(section: SectionType, changes: Mapping[str, Any], where: str) -> SectionType:
    """A section with what differs from it; its other entries are as they were said, so that presets still count."""
    return validated(type(section), merge(section.model_dump(exclude_unset=True), changes), where)


def _told(error: ValidationError, given: Mapping[str, Any]) -> str:
    """The first fault that pydantic found, as a line that begins with its place."""
    faults = [(_place(fault, given), fault) for fault in error.errors()]
    first = faults[0][0]
    # Every alternative of a union has faults of its own: those that got furthest into what was given say most.
    same = [fault for fault in faults if fault[0][: len(first)] == first]
    place, fault = max(same, key=lambda fault: len(fault[0]))
    first_text, *others = [_plain(other, place) for there, other in same if there == place]
    message = " or ".join(dict.fromkeys([first_text, *(text.removeprefix("Input should be ") for text in others)]))
    if isinstance(fault["input"], (str, int, float, bool)):
        message += f" (given: {fault['input']!r}){_key_that_was_meant(fault)}"
    elif not isinstance(fault["input"], (type(None), Mapping, list)):  # in Python, where anything can be given
        message += f", not {type(fault['input']).__name__}"
    return ": ".join([".".join(place), message] if place else [message])


def _place(fault: ErrorDetails, given: Any) -> list[str]:
    """The keys that lead to a fault, without the names of types that pydantic puts between them."""
    out = []
    for number, part in enumerate(fault["loc"], start=1):
        keys = given if isinstance(given, Mapping) else range(len(given)) if isinstance(given, list) else ()
        if inside := part in keys:
            given = given[part]
        if inside or (fault["type"] == "missing" and number == len(fault["loc"])):
            out.append(str(part))
    return out


def _key_that_was_meant(fault: ErrorDetails) -> str:
    """For which key of a section a plain value was probably meant, if it stands where a section belongs."""
    for kind in Section.__subclasses__():
        if fault["type"] == "model_type" and fault["ctx"]["class_name"] == kind.__name__:
            keys = [key for key in ("preset", "source", "data") if key in kind.model_fields]
            return f"; did you mean its {keys[0]}?" if keys else ""
    return ""


def _plain(fault: ErrorDetails, place: list[str]) -> str:
    """What pydantic says, without names of Python's and without the place, where that is said anyway."""
    if fault["type"] == "too_short" and not fault["input"]:
        return "empty; give at least one"
    message = IN_OUR_WORDS.get(fault["type"], fault["msg"]).removeprefix("Value error, ")
    message = message.partition(" or instance of ")[0].partition(" for <class")[0].replace("valid tuple", "valid list")
    message = message.replace("Tuple should", "List should").replace(" after validation", "")
    return message.removeprefix(f"{place[-1]}: ") if place else message
