"""Published claims: what a paper says, how it is tested here, and the rule, fixed beforehand, that gives the verdict.

One YAML file per table or figure lies in ``claims/``. It names the runs of a comparison and, for every sentence of
the paper that can be true or false, a statistic with a threshold. Nothing here trains; ``reproduce`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from learngene.comparing.claims.exact import EXACT_TESTS
from learngene.comparing.results import ResultRow
from learngene.recipe.compare import CompareRecipe
from learngene.recipe.loading import apply_overrides, read_fields, with_data
from learngene.recipe.one_line_faults import validated
from learngene.recipe.sections import Section, merge
from learngene.system.errors import LearngeneError, RecipeError, nearest
from learngene.system.files import find_folder

SCALES = ("laptop", "gpu", "paper")
PAPERS = ("TLEG", "SWS", "Learngene Pool", "LSAMD", "TAL", "LeTs", "WAVE", "SWEET", "any-size")
"""In the order in which lists show them; the last is the library's own method."""
METRICS = tuple(name for name, kind in ResultRow.__annotations__.items() if kind in ("float", "int"))


class Filter(Section):
    """Which rows: those that agree with every field that is given."""

    contender: str | list[str] | None = None
    shape: str | list[str] | None = None
    task: str | list[str] | None = None
    budget: str | list[str] | None = None

    def keeps(self, row: ResultRow) -> bool:
        """Whether a row agrees."""
        for name in type(self).model_fields:
            wanted = getattr(self, name)
            if wanted is not None and getattr(row, name) not in ([wanted] if isinstance(wanted, str) else wanted):
                return False
        return True


class Statistic(Section):
    """One number per seed, made of rows, and the threshold that decides.

    The number is the mean of ``metric`` over the rows ``of``, less that over ``minus``; with ``slope`` it is the
    least-squares slope of the metric over depth instead of the mean, with ``best`` the highest value. With
    ``agreement`` it is how far two searches took the same blocks: 1 if always, 0 if no more often than by chance.
    """

    metric: str = "last_top1"
    minus_metric: str | None = Field(None, description="of what is subtracted, if it is another metric")
    of: Filter
    minus: list[Filter] = Field([], description="one comparison each, all of which must hold; none: the value itself")
    slope: bool = Field(False, description="per layer of depth, or per million parameters")
    over: Literal["depth", "params"] = Field("depth", description="what the slope is over")
    best: bool = Field(False, description="the highest of the rows instead of their mean")
    each: bool = Field(False, description="a comparison for every shape by itself, all of which must hold")
    agreement: bool = Field(False, description="Cohen's kappa of the paths that the two sides' searches found, instead")
    relative: bool = Field(False, description="the difference as a share of what is subtracted")
    at_least: float | None = Field(None, description="the claim holds if the number is certainly no less")
    at_most: float | None = Field(None, description="the claim holds if the number is certainly no more")

    @model_validator(mode="after")
    def _one_threshold(self) -> Statistic:
        for metric in (self.metric, self.minus_metric or self.metric):
            if metric not in METRICS:
                raise RecipeError(f"statistic: unknown metric '{metric}'{nearest(metric, METRICS)}")
        if (self.at_least is None) == (self.at_most is None):
            raise RecipeError("statistic: give at_least or at_most")
        if self.agreement and not self.minus:
            raise RecipeError("statistic: agreement is between two sides; give minus")
        return self

    @property
    def limit(self) -> float:
        """The threshold."""
        return next(limit for limit in (self.at_least, self.at_most) if limit is not None)


class Claim(Section):
    """One sentence that can be true or false, tested on results by a statistic or without any by an exact test.

    A claim that nothing here can test says why.
    """

    text: str
    printed: str = Field("", description="the paper's figures behind it")
    statistic: Statistic | None = None
    exact: str | None = Field(None, description="name of an exact test")
    untested: str = Field("", description="instead of a test: why there is none")
    finding: dict[Literal["laptop", "gpu", "paper"], str] = Field(
        {}, description="what was found out about a claim that does not hold, or about its test, by scale"
    )

    @model_validator(mode="after")
    def _one_test(self) -> Claim:
        if sum(map(bool, (self.statistic, self.exact, self.untested))) != 1:
            raise RecipeError("claim: give statistic or exact, or say in untested why there is no test")
        if self.exact is not None and self.exact not in EXACT_TESTS:
            raise RecipeError(f"claim: unknown exact test '{self.exact}'{nearest(self.exact, EXACT_TESTS)}")
        return self


class ClaimGroup(Section):
    """A table or figure of a paper with its claims."""

    id: str = Field(description="PAPER.TABLE, as on the command line")
    paper: str = Field(description="one of PAPERS")
    source: str = Field(description="table or figure")
    title: str
    protocol: str = Field("protocol", description="recipe in recipes/SCALE/compare that the comparison starts from")
    run: dict[str, Any] = Field({}, description="what is run at every scale; names of the scale's protocol")
    contenders: dict[str, Any] = Field({}, description="contenders that only this group has")
    scales: dict[Literal["laptop", "gpu", "paper"], dict[str, Any]] = Field(
        {}, description="what differs at a scale: fields of a comparison"
    )
    claims: list[Claim] = Field(min_length=1)

    @property
    def needs_runs(self) -> bool:
        """Whether any claim is tested on results."""
        return any(claim.statistic for claim in self.claims)

    @property
    def tested_at(self) -> list[str]:
        """The scales that have the protocol it starts from."""
        recipes = find_folder("recipes")
        return [scale for scale in SCALES if (recipes / scale / "compare" / f"{self.protocol}.yaml").exists()]


def load_claims(folder: Path | None = None) -> dict[str, ClaimGroup]:
    """All groups of claims by id, paper by paper in the order of the papers.

    Args:
        folder: ``claims`` in the working folder or beside the sources by default.
    """
    folder = folder or find_folder("claims")
    groups: dict[str, ClaimGroup] = {}
    for path in sorted(folder.glob("*/*.yaml")):
        group = validated(ClaimGroup, read_fields(path), str(path))
        if group.id in groups:
            raise RecipeError(f"{path}: another file has the id '{group.id}' already")
        groups[group.id] = group
    if not groups:
        raise LearngeneError(f"{folder}: holds no claims (claims/PAPER/GROUP.yaml)")

    def order(group: ClaimGroup) -> tuple[Any, ...]:
        return *paper_order(group.paper), not group.id.partition(".")[2].startswith("fig"), group.id

    return {group.id: group for group in sorted(groups.values(), key=order)}


def paper_order(paper: str) -> tuple[int, str]:
    """Where a paper's claims stand in lists."""
    return (PAPERS.index(paper) if paper in PAPERS else len(PAPERS)), paper


def find_group(name: str) -> ClaimGroup:
    """One group by its id; ``LearngeneError`` with the nearest id if there is none."""
    groups = load_claims()
    if name not in groups:
        raise LearngeneError(f"no claims '{name}'{nearest(name, groups)}")
    return groups[name]


def comparison_of(
    group: ClaimGroup, scale: str, data: Path | None = None, overrides: Sequence[str] = (), *, declared: bool = False
) -> CompareRecipe:
    """The comparison that tests a group at a scale: the scale's protocol with the group's runs.

    Args:
        group: The group.
        scale: ``laptop``, ``gpu`` or ``paper``.
        data: Folder of image sets, for protocols that need one.
        overrides: ``key.sub=value`` assignments, for example ``out=...``.
        declared: The data will not be opened, only its declared sizes used, so that no folder is needed.

    Raises:
        LearngeneError: If the scale is unknown or has no such protocol, or a name is not in its protocol.
    """
    if scale not in SCALES:
        raise LearngeneError(f"unknown scale '{scale}'{nearest(scale, SCALES)}")
    if scale not in group.tested_at:
        tested = " and ".join(group.tested_at) or "no"
        raise LearngeneError(f"{group.id}: is tested at {tested} scale, not at {scale} scale; give that with --scale")
    protocol = read_fields(find_folder("recipes") / scale / "compare" / f"{group.protocol}.yaml")
    given = merge({"run": group.run, "contenders": group.contenders}, group.scales.get(scale, {}))  # type: ignore[call-overload]
    fields = with_data(apply_overrides(merge(protocol, given), overrides), Path() if declared else data)
    return validated(CompareRecipe, fields, f"{group.id} at {scale} scale")
