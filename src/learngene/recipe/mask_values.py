"""What the values or colours of mask pixels mean, as a recipe says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from learngene.system.errors import RecipeError

MASK_VALUES = 256
"""Values that a pixel of an 8-bit mask can have, and most classes of pixels."""

LARGEST = 65535
"""Of a grey mask."""

HEX = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")


def code_of(key: str) -> int | tuple[int, int, int]:
    """The grey value, or the colour, that a key of ``mask_values`` names.

    Raises:
        RecipeError: If it is neither a value nor a colour.
    """
    if match := HEX.fullmatch(key.strip()):
        red, green, blue = (int(part, 16) for part in match.groups())
        return red, green, blue
    numbers = key.replace(",", " ").split()
    if numbers and all(number.isdecimal() for number in numbers):
        values = [int(number) for number in numbers]
        if len(values) == 1 and values[0] <= LARGEST:
            return values[0]
        if len(values) == 3 and max(values) < MASK_VALUES:
            return values[0], values[1], values[2]
    raise RecipeError(
        f"mask_values: '{key}' is no pixel value; give a number from 0 to {LARGEST}, or a colour such as 128 64 128 or "
        "'#804080'"
    )


def class_names(values: Mapping[str, str | int | None], known: list[str] | int | None) -> list[str]:
    """The classes that a mapping of values names, in the order of their numbers.

    Args:
        values: Value or colour to name, number or None.
        known: Names or number of the classes, if they are given; they decide the order.

    Raises:
        RecipeError: If the mapping names a class that is not known, names some by number and some by name, or has
            fewer than two classes.
    """
    named = list(dict.fromkeys(target for _, target in sorted_items(values) if target is not None))
    if named and all(isinstance(target, int) for target in named):
        numbers = [int(target) for target in named]
        count = max(numbers) + 1 if known is None else known if isinstance(known, int) else len(known)
        if max(numbers) >= count:
            raise RecipeError(f"mask_values: class {max(numbers)} is not one of the {count} classes (0 to {count - 1})")
        names = known if isinstance(known, list) else [str(number) for number in range(count)]
    elif any(isinstance(target, int) for target in named):
        raise RecipeError("mask_values: classes are given by name or by number, not some by one and some by the other")
    elif isinstance(known, list):
        for target in named:
            if target not in known:
                raise RecipeError(f"mask_values: '{target}' is not one of the classes {known}")
        names = known
    else:
        names = [str(target) for target in named]
        if isinstance(known, int) and known != len(names):
            raise RecipeError(f"mask_values names {len(names)} classes, but there are to be {known}")
    if not 2 <= len(names) < MASK_VALUES:
        raise RecipeError(f"mask_values: {len(names)} classes; a segmenter needs 2 to {MASK_VALUES - 1} of them")
    return names


def sorted_items(values: Mapping[str, str | int | None]) -> list[tuple[int | tuple[int, int, int], str | int | None]]:
    """Codes with their classes, greys first, each in ascending order: so classes have one order, however written."""
    items = [(code_of(key), target) for key, target in values.items()]
    return sorted(items, key=lambda item: (1, item[0]) if isinstance(item[0], tuple) else (0, (item[0], 0, 0)))


def _checked(given: Any) -> Any:
    """Keys as text in one form; YAML gives numbers, text, and the truth for unquoted words such as no."""
    if not isinstance(given, Mapping):
        return given
    out: dict[str, str | int | None] = {}
    for key, target in given.items():
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise RecipeError(f"mask_values: {key!r} is no pixel value; give a number, or a colour such as 128 64 128")
        if isinstance(target, bool) or not isinstance(target, (int, str, type(None))):
            raise RecipeError(
                f"mask_values: the class of {key} is {target!r}; give a name, in quotes if YAML takes it for something "
                "else, a number, or null for pixels that are not judged"
            )
        code = code_of(str(key))
        name = " ".join(map(str, code)) if isinstance(code, tuple) else str(code)
        if name in out:
            raise RecipeError(f"mask_values gives '{name}' twice")
        if isinstance(target, int) and target < 0:
            raise RecipeError(f"mask_values: class {target} of {key} is negative")
        out[name] = target
    if not out:
        raise RecipeError("mask_values is empty; say what the values of masks mean, or leave it out")
    return out


MaskValues = Annotated[dict[str, str | int | None], BeforeValidator(_checked)]
"""Value or colour of a mask's pixel to a class, by name or number, or to None if such pixels are not judged."""
