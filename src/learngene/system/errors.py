"""The errors a user can cause.

Every one carries a single line that says what is wrong, where, and what would be right. The command
line prints that line and exits with code 2; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator

CLOSE, CLOSE_SHORT = 0.7, 0.6
"""Likeness (difflib's ratio) from which a word is taken for a slip; in one of up to four letters a slip weighs more.

Names of timm's arguments that are no sizes, such as ``norm_layer``, have up to 0.67 to names of sizes.
"""


class LearngeneError(ValueError):
    """Something the caller can put right: a bad shape, file, recipe, ancestry, data set or path."""


class ShapeError(LearngeneError):
    """A shape that no Vision Transformer can have, or that a method cannot make."""


class GeneFileError(LearngeneError):
    """A gene file that is damaged, incomplete or not a gene file."""


class DataError(LearngeneError):
    """Data that cannot be read, or that does not fit the model."""


class NoSplitError(DataError):
    """A split that a data set does not have."""


class NoClassesError(DataError):
    """Images that lie in no folders of classes."""


class CorruptError(DataError):
    """An image or mask that cannot be decoded, which a user may ask to leave out."""


class RecipeError(LearngeneError):
    """A recipe with an unknown key or a value out of range."""


class TrainingDivergedError(LearngeneError):
    """A loss that is no longer finite; the last good state is kept."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the closest known word if it is close, else the list of known words.

    Close is what begins with the word, as ``patch_size`` with ``patch``, or what is a slip away.
    """
    known = sorted(known)
    if not known:
        return "; there are none"
    longer = [name for name in known if name.startswith((f"{word}_", f"{word}-"))]
    cutoff = 0.0 if longer else CLOSE if len(word) > 4 else CLOSE_SHORT
    match = difflib.get_close_matches(word, longer or known, n=1, cutoff=cutoff)
    return f"; did you mean '{match[0]}'?" if match else f"; known: {', '.join(known)}"


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str = "") -> None:
    """Raises ``RecipeError`` for the first given key that is not known, naming the nearest right one.

    Args:
        given: The keys.
        known: The right ones.
        where: What has them, unless whoever catches the error says it.
    """
    known = set(known)
    for key in given:
        if key not in known:
            raise RecipeError(f"{f'{where}: ' if where else ''}unknown key '{key}'{nearest(str(key), known)}")


@contextlib.contextmanager
def told_of(setting: str) -> Iterator[None]:
    """Names the setting in a ``LearngeneError`` of the block, where another of its kind is told of otherwise."""
    try:
        yield
    except LearngeneError as error:
        text = str(error).removeprefix("ancestry ").replace("ancestry.", f"{setting}.")
        raise type(error)(text if text.startswith(setting) else f"{setting}: {text}") from None


class InterruptedRun(Exception):  # noqa: N818 - not an error: the user asked for it
    """Ctrl-C or SIGTERM arrived; the state was saved and the same command continues."""

    def __init__(self, signal_number: int, where: str) -> None:
        super().__init__(signal_number, where)
        self.signal_number, self.where = signal_number, where


class Faults:
    """What is wrong with several things, collected so that all of it is told at once, a line each."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}

    @contextlib.contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Takes note of a ``LearngeneError`` of the block, after ``where`` it was, instead of letting it pass."""
        try:
            yield
        except LearngeneError as error:
            self._lines[f"{where}: {error}"] = None

    def refuse(self) -> None:
        """Raises ``LearngeneError`` with every line, once each, if there is any."""
        if self._lines:
            raise LearngeneError("\n".join(self._lines))
