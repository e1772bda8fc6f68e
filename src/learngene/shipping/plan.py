"""The plan: from what was asked, the images and what training costs here to every choice, with what each step takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NoReturn

from learngene.data.splits import Splits
from learngene.devices.measure import OnDevice
from learngene.genes.plan import Budget
from learngene.genes.plan_sizes import plan_sizes
from learngene.recipe.one_line_faults import changed
from learngene.recipe.sections import Train, merge
from learngene.recipe.ship import FRESH, ShippedModel, ShipRecipe
from learngene.shipping.evidence import Advice, Job, advise
from learngene.shipping.look import Look, model_size
from learngene.shipping.prices import COUNTED, TRAINING, Prices, measured
from learngene.shipping.teachers import SHARE, FoundTeacher, find_teacher
from learngene.shipping.ways import WAYS, Way, listed, shapes_for
from learngene.system.errors import LearngeneError
from learngene.system.quantities import size_in_words, time_in_words
from learngene.vits.shape import ViTShape

START_SECONDS, MODEL_SECONDS = 10.0, 6.0
"""What everything takes that is no training: once, and for each model's judgement and export."""
SURE = 0.15
"""Share by which times of a machine that does the same from one minute to the next are off all the same."""
GENE, TEACHER = "gene", "teacher"
"""What a gene is called that all models have in common, and the step of a teacher."""
KEPT_IN_MEMORY = 200e6
"""Bytes of decoded images up to which the training process reads them by itself, and keeps them."""


@dataclass(frozen=True)
class Planned:
    """One step of the plan.

    Attributes:
        name: Of what is made.
        what: In words.
        seconds: Expected.
        low: At least, probably.
        high: At most, probably.
        macs: Multiply-adds of its training.
        disk: Bytes.
    """

    name: str
    what: str
    seconds: float
    low: float
    high: float
    macs: float
    disk: int


@dataclass(frozen=True)
class Plan:
    """A recipe with every choice made, and what it takes.

    Attributes:
        recipe: With genes and models.
        look: What the images are like.
        steps: In their order.
        advice: What the table says; None if the way was given.
        epochs: That each model could be trained for by itself in all of the budget; 0 if that was not asked.
    """

    recipe: ShipRecipe
    look: Look
    steps: list[Planned]
    advice: Advice | None = None
    epochs: float = 0.0

    def entry(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {
            "recipe": self.recipe.plain(),
            "look": self.look.entry(),
            "plan": [vars(step) for step in self.steps],
            "advice": vars(self.advice) if self.advice else None,
            "epochs": round(self.epochs, 3),
        }

    @classmethod
    def of(cls, recipe: ShipRecipe, entry: Mapping[str, Any]) -> Plan:
        """The plan that ``entry`` was written of."""
        steps = [Planned(**step) for step in entry["plan"]]
        advice = entry["advice"] and Advice(**entry["advice"])
        return cls(recipe, Look(**entry["look"]), steps, advice, entry["epochs"])

    @property
    def seconds(self) -> float:
        """Of everything."""
        return sum(step.seconds for step in self.steps)

    def told(self, there: Collection[str] = ()) -> list[str]:
        """Lines for people.

        Args:
            there: Names of steps that are done already.
        """
        way = str(self.recipe.method)
        out = [*self.look.told(), f"way: {way}: {WAYS[way].text}", f"why: {self.recipe.why}"]
        for step in self.steps:
            time = "there already" if step.name in there else _range(step.low, step.high)
            out.append(f"{step.name:14s} {time:>22s}  {size_in_words(step.disk):>9s}  {step.what}")
        left = [step for step in self.steps if step.name not in there]
        low, high, disk = (sum(getattr(step, key) for step in left) for key in ("low", "high", "disk"))
        return [*out, f"{'in all':14s} {_range(low, high):>22s}  {size_in_words(disk):>9s}"]


def _range(low: float, high: float) -> str:
    return f"{time_in_words(round(low))} to {time_in_words(round(high))}"


def prepared(recipe: ShipRecipe, found: Look, teacher: FoundTeacher) -> ShipRecipe:
    """The recipe with what its data section leaves open: size, normalisation and who reads the images."""
    from learngene.data.preprocessing import fill_preprocessing
    from learngene.vits.descendant_folder import vit_cfg
    from learngene.vits.input_size import image_config

    size = recipe.data.img_size or model_size(found.side)
    small = found.train_images * found.side**2 * 3 < KEPT_IN_MEMORY
    changes: dict[str, Any] = {"img_size": size}
    if "workers" not in recipe.data.model_fields_set and small:
        changes["workers"] = 0
    data = changed(recipe.data, changes, "data")
    shape = ViTShape(embed_dim=16, num_heads=1, img_size=size, patch_size=size, num_classes=found.classes)
    given = image_config(teacher.model) if teacher.kind == "classes" else vit_cfg(shape, "", {})
    return recipe.model_copy(update={"data": fill_preprocessing(data, given)})


def training(recipe: ShipRecipe, found: Look, names: Sequence[str], epochs: int, more: Mapping[str, Any]) -> Train:
    """How models are trained: timm's usual small-image recipe, without flips where classes tell left from right."""
    sided = all(name.strip().isdigit() and len(name.strip()) < 3 for name in names) and len(names) <= 10
    sided = sided or any(word in name.lower() for name in names for word in ("left", "right"))
    batch = min(64, found.train_images // 4 * 2 or 2)
    fields: dict[str, Any] = {
        "preset": "laptop",
        "epochs": epochs,
        "batch_size": batch,
        "eval_every": max(1, epochs // 4),
        "schedule": {"warmup_epochs": round(min(2.0, epochs / 10), 2)},
        "augment": {"preset": "light", "scale": [0.4, 1.0], "hflip": 0.0 if sided else 0.5},
        "seed": recipe.seed,
    }
    return changed(Train(), merge(fields, more), "train")


@dataclass
class _Planner:
    """What a plan is made of, and how its parts are put together."""

    recipe: ShipRecipe
    names: Sequence[str]
    look: Look
    prices: Prices
    teacher: FoundTeacher
    asking: float  # what it costs to ask the teacher about an image; 0 without one
    used: float  # of the budget, by now

    def train(self, epochs: int, more: Mapping[str, Any]) -> Train:
        return training(self.recipe, self.look, self.names, epochs, more)

    def epoch(self, macs: float) -> float:
        """Of a pass over the training images, and a quarter of one over the validation images, at most."""
        return self.look.train_images * self.prices.image(macs) + 0.25 * self.look.val_images * self.prices.seen(macs)

    def rest(self, models: int) -> float:
        """What is no training."""
        return START_SECONDS + models * MODEL_SECONDS if self.prices.unit == "s" else 0.0

    def genes(
        self, way: Way, method: str, shapes: Mapping[str, ViTShape], budget: float
    ) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
        """The genes, by name, and what is left of the budget for every model."""
        share = budget / len(shapes)
        if not way.gene_share:
            return {}, dict.fromkeys(shapes, share)
        asking = self.look.train_images * self.asking
        if way.one_by_one:
            parts = {f"{GENE}-{name}": ({name: shape}, way.gene_share * share) for name, shape in shapes.items()}
        else:
            parts = {GENE: (dict(shapes), way.gene_share * budget)}
        out, left = {}, dict.fromkeys(shapes, share)
        for gene, (mine, allotted) in parts.items():
            epoch = self.epoch(fmean(shape.macs() for shape in mine.values())) + asking
            if (epochs := int(allotted / epoch)) < 1:
                self.refuse(shapes, way)
            out[gene] = {
                "method": method,
                "settings": dict(way.settings),
                "shape": max(mine.values(), key=ViTShape.params).to_dict(),
                **({} if way.one_by_one else {"shapes": listed(list(mine.values()))}),
                **self.teacher.distill,
                "train": self.train(epochs, way.gene).model_dump(mode="json", exclude_unset=True),
            }
            left |= {name: left[name] - epochs * epoch / len(mine) for name in mine}
        return out, left

    def models(
        self, way: Way, shapes: Mapping[str, ViTShape], left: Mapping[str, float], genes: Collection[str]
    ) -> dict[str, ShippedModel]:
        """The models, with as many epochs as each has in its share of what is left."""
        out = {}
        for name, shape in shapes.items():
            epochs = int(left[name] / self.epoch(shape.macs()))
            if epochs < 1:
                self.refuse(shapes, way)
            start = next((gene for gene in (f"{GENE}-{name}", GENE) if gene in genes), FRESH)
            out[name] = ShippedModel(shape=shape, start=start, train=self.train(epochs, way.tune))
        return out

    def least(self, way: Way, shapes: Mapping[str, ViTShape]) -> float:
        """What training takes if every gene and every model has one epoch."""
        epochs = [self.epoch(shape.macs()) for shape in shapes.values()]
        models = len(shapes) * max(epochs) / (1 - way.gene_share)
        if not way.gene_share:
            return models
        asking = self.look.train_images * self.asking
        gene = len(shapes) * max(epochs) if way.one_by_one else fmean(epochs)
        return max(models, (gene + asking * (len(shapes) if way.one_by_one else 1)) / way.gene_share)

    def refuse(self, shapes: Mapping[str, ViTShape], way: Way) -> NoReturn:
        least = 1.05 * (1.1 * self.least(way, shapes) + self.rest(len(shapes)) + self.used)  # two digits may round down
        given = f"hours {self.recipe.hours:g}" if self.recipe.hours else f"budget_macs {self.recipe.budget_macs:g}"
        need = f"hours={least / 3600:.2g}" if self.prices.unit == "s" else f"budget_macs={least:.2g}"
        raise LearngeneError(
            f"{given}: too little for one epoch of each of {len(shapes)} models; {need} would do, or ask for fewer or "
            "smaller models"
        )


def ways_for(
    recipe: ShipRecipe, limits: Mapping[str, float], size: int, classes: int, *, with_teacher: bool
) -> dict[str, dict[str, ViTShape]]:
    """The shapes of every way that can make all models; without a teacher, of those that need none."""
    if recipe.method in WAYS and WAYS[recipe.method].teacher and not with_teacher:
        raise LearngeneError(f"method {recipe.method}: needs a teacher; name a folder or timm model with --teacher")
    out, refusal = {}, None
    for name, way in WAYS.items():
        if recipe.method not in (None, name) or (way.teacher and not with_teacher):
            continue
        if not way.one_by_one and len(limits) == 1 and recipe.method is None:
            continue  # a gene for a single model is training in two parts
        try:
            out[name] = shapes_for(way, limits, size, classes)
        except LearngeneError as error:
            refusal = refusal or error
    if (recipe.method or FRESH) not in out:
        raise refusal or LearngeneError(f"method {recipe.method}: ship knows {', '.join(WAYS)}")
    return out


def make_plan(
    recipe: ShipRecipe,
    splits: Splits,
    found: Look,
    *,
    prices: Prices | None = None,
    clock: Callable[[], float] = time.perf_counter,
    used: float = 0.0,
) -> Plan:
    """Makes every choice that a recipe leaves open.

    Args:
        recipe: What was asked for, with nothing or everything chosen.
        splits: The images, opened.
        found: What they are like.
        prices: What training costs; measured here by default.
        clock: Of that measurement.
        used: Seconds of the budget that are gone by now.

    Raises:
        LearngeneError: If the models cannot be made, or not within the budget.
    """
    teacher = find_teacher(recipe, splits.train) if recipe.models is None else FoundTeacher()
    recipe = prepared(recipe, found, teacher)
    size, names = recipe.data.img_size or 0, splits.train.class_names
    if recipe.models is not None:
        shapes = {name: model.shape for name, model in recipe.models.items()}
        prices = prices or _measured(recipe, splits, found, list(shapes.values()), clock)
        return Plan(recipe, found, _steps(recipe, found, prices))
    found.remarks.extend([teacher.remark] if teacher.remark else [])
    limits = limits_of(recipe, size, len(names))
    ways = ways_for(recipe, limits, size, len(names), with_teacher=teacher.section is not None)
    every = [shape for shapes in ways.values() for shape in shapes.values()]
    prices = prices or _measured(recipe, splits, found, every, clock)
    budget = recipe.budget_macs if recipe.budget_macs else 3600 * (recipe.hours or 0) - used
    unit, used = (COUNTED, 0.0) if recipe.budget_macs else (prices, used)
    planner = _Planner(recipe, names, found, unit, FoundTeacher(), 0.0, used)
    left = max(budget - planner.rest(len(limits)), 0.0)
    alone = ways.get(FRESH) or next(iter(ways.values()))
    if recipe.method is None:
        ways = {name: shapes for name, shapes in ways.items() if planner.least(WAYS[name], shapes) <= left}
        if not ways:
            planner.refuse(alone, WAYS[FRESH])
    epochs = left / sum(planner.epoch(shape.macs()) for shape in alone.values())
    advice = None
    if recipe.method is None:
        job = Job(found.train_images, found.classes, size, "none", len(limits), max(epochs, 1e-3))
        taught = advise(replace(job, teacher=teacher.kind), ways)
        free = [name for name in ways if not WAYS[name].teacher]
        advice = taught if taught.comparisons else advise(job, free)
        chosen, why = advice.method, advice.why
        if teacher.section is not None and not taught.comparisons:
            why += "; no comparison with such a teacher was made yet, so it is not asked (--method distilled asks it)"
        uses_teacher = teacher.section is not None and bool(taught.comparisons) and chosen != FRESH
    else:
        chosen, why = recipe.method, "as was asked for"
        uses_teacher = teacher.section is not None and chosen != FRESH
    ancestry, asking = None, 0.0
    if uses_teacher:
        asking = teacher.price(size, "s", clock)
        counted = asking if planner.prices is prices else teacher.price(size, "macs")
        planner = replace(planner, teacher=teacher, asking=counted)
        ancestry = teacher.section
        if teacher.kind == "trained" and ancestry is not None:
            epoch = TRAINING * found.train_images * planner.asking
            if (rounds := int(SHARE * left / epoch)) < 1:
                planner.refuse(alone, WAYS[chosen])
            ancestry = ancestry.model_copy(update={"train": planner.train(rounds, {})})
            left -= rounds * epoch
    way, shapes = WAYS[chosen], ways[chosen]
    genes, rest = planner.genes(way, chosen, shapes, left)
    models = planner.models(way, shapes, rest, genes)
    changes = {"method": chosen, "why": why, "ancestry": ancestry, "genes": genes, "models": models}
    recipe = recipe.model_copy(update=changes)
    return Plan(recipe, found, _steps(recipe, found, prices, asking), advice, epochs)


def limits_of(recipe: ShipRecipe, size: int, classes: int) -> dict[str, float]:
    """The most parameters of every model that is wanted; of one with a limit on latency, what was timed here."""
    out, on = {}, OnDevice(recipe.runtime) if recipe.runtime else None
    for name, (kind, value) in recipe.wanted.items():
        if kind == "latency":
            budget = Budget(max_latency=value)
            (fast,) = plan_sizes([budget], img_size=size, num_classes=classes, measure=False, on=on)
            value = fast.params
        out[name] = value
    return out


def _measured(
    recipe: ShipRecipe, splits: Splits, found: Look, shapes: Sequence[ViTShape], clock: Callable[[], float]
) -> Prices:
    return measured(splits.train, recipe.data, training(recipe, found, splits.train.class_names, 10, {}), shapes, clock)


def _steps(recipe: ShipRecipe, found: Look, prices: Prices, asking: float = 0.0) -> list[Planned]:
    """What a recipe with every choice made takes, step by step."""
    steps: list[Planned] = []
    images = found.train_images

    def step(name: str, what: str, seconds: float, macs: float, disk: int) -> None:
        sure = SURE + prices.spread
        steps.append(Planned(name, what, seconds, seconds / (1 + sure), seconds * (1 + sure), macs, disk))

    def trained(train: Train, macs: float, asked: float = 0.0) -> tuple[float, float]:
        seen, looks = train.epochs * images, train.epochs // train.eval_every
        seconds = seen * (prices.image(macs) + asked) + looks * found.val_images * prices.seen(macs)
        return seconds, TRAINING * seen * macs

    if recipe.ancestry is not None and recipe.ancestry.train is not None:
        rounds = recipe.ancestry.train.epochs
        seconds = rounds * TRAINING * images * asking
        step(TEACHER, f"{recipe.ancestry.source}, {rounds} epochs", seconds, 0.0, 10**8)

    for name in recipe.genes:
        gene = recipe.gene_recipe(name, recipe.out)
        seconds, macs = trained(gene.train, float(gene.macs), asking)
        what = f"{gene.method}, {gene.train.epochs} epochs of {len(gene.turns()) or 1} sizes"
        step(name, what, seconds, macs, 44 * gene.shape.params())
    for name, model in (recipe.models or {}).items():
        seconds, macs = trained(model.train, model.shape.macs())
        shape = model.shape
        what = f"{shape.size}, {shape.params() / 1e6:.2f} M parameters, {model.train.epochs} epochs from {model.start}"
        step(name, what, seconds, macs, 52 * shape.params())
    count = len(recipe.models or ())
    step(
        "export, page",
        f"{count} ONNX files, timm folders and the page",
        START_SECONDS + MODEL_SECONDS * count,
        0,
        10**6,
    )
    return steps
