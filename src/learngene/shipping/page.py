"""The page of what was shipped: one HTML file that needs no other."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learngene.comparing.html import write_page
from learngene.data.images import ImageSet
from learngene.recipe.ship import ShipRecipe
from learngene.shipping.figure import Point, panel, parts
from learngene.shipping.judge import Judged
from learngene.shipping.ways import WAYS
from learngene.system.quantities import short, time_in_words

SHOWN, THUMBNAIL = 8, 96
"""Right and wrong examples each, and the side of their pictures in pixels."""


@dataclass(frozen=True)
class Example:
    """An image with what is on it and what the model says."""

    source: str
    truth: str
    guess: str
    percent: float


def write_ship_page(
    path: Path, result: Mapping[str, Any], recipe: ShipRecipe, judged: Mapping[str, Judged], images: ImageSet | None
) -> None:
    """Writes the page.

    Args:
        path: Of the page.
        result: What ``result.json`` has.
        recipe: With every choice.
        judged: What every model says of the validation images.
        images: Those; None leaves examples out.
    """
    models = result["models"]
    best = max(models, key=lambda model: model["top1"])
    majority = result["look"]["majority"]

    def points(key: str) -> list[Point]:
        return [Point(each["name"], each[key], each["top1"], *each["interval"]) for each in models]

    folder = recipe.out / "models" / best["name"]
    spent = [(name, seconds, time_in_words(seconds)) for name, seconds in result["spent"]["steps"].items()]
    rest = sum(result["spent"]["sessions"]) - sum(seconds for _, seconds, _ in spent)
    spent.append(("rest", max(rest, 0.0), time_in_words(max(rest, 0.0))))
    said = judged[best["name"]]
    right, wrong = examples(said, images) if images is not None else ([], [])
    write_page(
        path,
        "ship.html",
        verdict=verdict(result),
        result=result,
        recipe=recipe,
        way=WAYS[str(recipe.method)].text,
        best=best,
        panels=[
            panel("parameters, millions", points("params"), majority, "most common class", 1e6),
            panel("milliseconds per image", points("latency_ms"), majority, "most common class"),
        ],
        bar=parts(spent),
        total=time_in_words(round(sum(result["spent"]["sessions"]))),
        expected=time_in_words(round(sum(step["seconds"] for step in result["plan"]))),
        classes=class_rows(said),
        right=right,
        wrong=wrong,
        rerun=shlex.join(["learngene", "ship", str(recipe.out / "ship.yaml")]),
        check=shlex.join(["learngene", "eval", str(folder), "--data", *recipe.data.sources]),
        alone=shlex.join(["learngene", "ship", *recipe.data.sources, *_alone(recipe)]),
        folder=folder,
    )


def _alone(recipe: ShipRecipe) -> list[str]:
    """What was asked for, as the command takes it, with every model trained by itself."""
    asked = {"--sizes": recipe.sizes, "--max-latency": recipe.max_latency, "--max-size": recipe.max_size}
    out = [part for flag, values in asked.items() if values for part in (flag, ",".join(map(short, values)))]
    out += ["--runtime", recipe.runtime] if recipe.runtime else []
    out += ["--hours", f"{recipe.hours:g}"] if recipe.hours else ["--budget-macs", short(recipe.budget_macs or 0)]
    return [*out, "--method", "scratch", "--out", f"{recipe.out}-scratch"]


def verdict(result: Mapping[str, Any]) -> str:
    """What came out, in a line that needs no other."""
    models, found = result["models"], result["look"]
    best = max(models, key=lambda model: model["top1"])
    level = max(found["majority"], 100 / found["classes"])
    if best["interval"][0] <= level:
        count = f"{len(models)} model{'s' * (len(models) != 1)}"
        return (
            f"Not usable: the best of {count} has {best['top1']:.1f} %, no better than always guessing the most common "
            f"class ({level:.1f} %)"
        )
    pick = min(
        (each for each in models if each["behind"][1] <= 0 and each["interval"][0] > level),
        key=lambda each: each["params"],
    )
    low, high = pick["interval"]
    text = f"{'Take ' * (len(models) > 1)}{pick['name']}: {pick['top1']:.1f} % top-1 ({low:.1f} to {high:.1f})"
    told = f"as far as {found['val_images']} images can tell"
    if pick is not best:
        text += f", as good as {best['name']} with {best['top1']:.1f} % {told}"
    elif level_with := [each["name"] for each in models if each["params"] > pick["params"] and each["behind"][1] <= 0]:
        text += f"; {_are(level_with)} larger and no better {told}"
    if smaller := [each for each in models if each["params"] < pick["params"]]:
        loss = sorted(pick["top1"] - each["top1"] for each in smaller)
        text += f"; smaller costs {' to '.join(f'{value:.1f}' for value in dict.fromkeys((loss[0], loss[-1])))} points"
    if worse := [each["name"] for each in models if each["params"] > pick["params"] and each["behind"][1] > 0]:
        text += f"; {_are(worse)} larger and worse, a sign of too little time"
    if found["neighbours"] > max(best["interval"]):
        text += f"; copying the class of the most similar training image does better, {found['neighbours']:.0f} %"
    return text


def _are(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"


def class_rows(said: Judged) -> list[dict[str, Any]]:
    """Every class, worst first: how many images are found, how many guesses are right, what it is taken for."""
    guesses, classes, out = said.probabilities.argmax(1), said.report.classes, []
    for number, each in enumerate(classes):
        wrong = np.bincount(guesses[(said.labels == number) & (guesses != number)], minlength=len(classes))
        taken_for = f"{classes[int(wrong.argmax())].name} ({wrong.max()})" if wrong.any() else ""
        out.append({**vars(each), "taken_for": taken_for})
    return sorted(out, key=lambda row: (row["recall"] is None, row["recall"]))


def examples(said: Judged, images: ImageSet) -> tuple[list[Example], list[Example]]:
    """Images that the model is surest of, right and wrong, of as many classes as there are."""
    sure, guesses, names = said.probabilities.max(1), said.probabilities.argmax(1), images.class_names

    def some(wanted: np.ndarray) -> list[Example]:
        surest = [int(index) for index in np.argsort(-sure) if wanted[index]]
        firsts = {said.labels[index]: index for index in reversed(surest)}  # the surest of each class
        order = sorted(surest, key=lambda index: firsts[said.labels[index]] != index)
        return [
            Example(_jpeg(images, index), names[said.labels[index]], names[guesses[index]], 100 * float(sure[index]))
            for index in order[:SHOWN]
        ]

    return some(said.right), some(~said.right)


def _jpeg(images: ImageSet, index: int) -> str:
    image = images.image(index)
    image.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
