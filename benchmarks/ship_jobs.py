"""Ships real image sets and keeps what came out: results/ship/NAME.json and NAME.html, without the images.

    python benchmarks/ship_jobs.py FOLDER [--sets ham10000-64px] [--hours 0.17] [--teacher MODEL] [--work DIR]

FOLDER has image sets as tars or folders of these names. Models and runs are left in ``DIR/NAME``; what is there is not
trained again, so that a new page of old models takes a minute. A job with a teacher is called ``NAME-TEACHER``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from learngene.data.splits import open_splits
from learngene.shipping.judge import judged
from learngene.shipping.page import verdict, write_ship_page
from learngene.shipping.ship import RECIPE, RESULT, load, ship

OUT = Path(__file__).parents[1] / "results" / "ship"
SIZES = [200_000, 600_000, 1_500_000]


def main(
    folder: Path,
    sets: Annotated[str, typer.Option(help="names of tars without .tar, or of folders")] = (
        "ham10000-64px,flowers89-64px,gtsrb-32px"
    ),
    hours: Annotated[float, typer.Option(help="for each")] = 0.17,
    teacher: Annotated[str, typer.Option(help="none, or a folder with a model")] = "none",
    work: Annotated[Path, typer.Option(help="where models and runs are left")] = Path("runs/ship-jobs"),
) -> None:
    """Ships what was not shipped yet, and writes all pages."""
    for name in sets.split(","):
        source = next(path for path in (folder / name, folder / f"{name}.tar") if path.exists())
        job = name if teacher == "none" else f"{name}-{Path(teacher).name}"
        out = work / job
        if not (out / RESULT).exists():
            ship(str(source), out=out, sizes=SIZES, hours=hours, teacher=teacher)
        write(job, out, source)


def write(job: str, out: Path, source: Path) -> None:
    """Writes the page and the record of a job, with the paths that a reader would have."""
    recipe, result = load(out / RECIPE), json.loads((out / RESULT).read_text())
    splits = open_splits(recipe.data)
    said = {name: judged(out / "models" / name, recipe.data, splits.val) for name in recipe.models or {}}
    names = {str(source): source.name, recipe.teacher: Path(recipe.teacher).name}
    shown = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"source": source.name}), "out": Path(f"{job}-models")}
    )
    text = json.dumps(result, indent=1)
    for path, short in names.items():
        text = text.replace(json.dumps(path), json.dumps(short))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{job}.json").write_text(text + "\n")
    write_ship_page(OUT / f"{job}.html", json.loads(text), shown, said, None)
    print(f"{job}: {verdict(result)}")


if __name__ == "__main__":
    typer.run(main)
