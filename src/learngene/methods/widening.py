"""LeTs's transformation in numbers: a narrow ViT's tensors at another width, and their sums; see ``lets``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learngene.vits.shape import ViTShape


class Side:
    """One side of a matrix at another size: the old neurons and mixtures of them, or the first of them alone."""

    def __init__(self, old: int, size: int, mix: Tensor | None) -> None:
        """From ``old`` neurons to ``size``; ``mix`` has a row for each new one, and may be one of a batch."""
        self.size, self.mix = size, mix if size > old else None

    def rows(self, value: Tensor) -> Tensor:
        """E value, for the second last dimension."""
        return value[..., : self.size, :] if self.mix is None else torch.cat([value, self.mix @ value], -2)

    def columns(self, value: Tensor) -> Tensor:
        """Value E^T, for the last dimension."""
        return value[..., : self.size] if self.mix is None else torch.cat([value, value @ self.mix.mT], -1)


class Widening:
    """A narrow ViT on its way to a width."""

    def __init__(
        self, tensors: Mapping[str, Tensor], narrow: ViTShape, shape: ViTShape, sources: Sequence[int], selection: str
    ) -> None:
        """Chooses the rows of every width matrix that is needed.

        Args:
            tensors: The gene's.
            narrow: The shape of the narrow ViT.
            shape: What is made.
            sources: The layers that are needed, ascending, in pairs.
            selection: Which rows of F, see ``lets.SELECTIONS``.
        """
        self.tensors, self.narrow, self.shape, self.sources = tensors, narrow, shape, sources
        self.selection, self.old = selection, narrow.embed_dim
        self.new = max(0, shape.embed_dim - self.old)
        self.hidden = max(0, shape.hidden_dim - narrow.hidden_dim)
        self.chosen = self._largest(["embed"], self.new, 1)  # of the channels of the residual stream
        self.embed = self._side(self._matrix("embed", self.new, self.chosen))

    # -- width matrices --------------------------------------------------------------------------------

    def _whole(self, name: str) -> Tensor:
        matrix = self.tensors.get(f"F.{name}")
        return self.tensors[f"F.{name}.A"] @ self.tensors[f"F.{name}.B"] if matrix is None else matrix

    def _matrix(self, name: str, new: int, chosen: Tensor | None) -> Tensor | None:
        """The rows that are used: the first, the chosen, or more than there are, by applying them again."""
        if not new:
            return None
        if chosen is None and f"F.{name}.A" in self.tensors and new <= len(self.tensors[f"F.{name}.A"]):
            return self.tensors[f"F.{name}.A"][:new] @ self.tensors[f"F.{name}.B"]
        whole = self._whole(name)
        return repeated(whole, new) if chosen is None else whole[chosen]

    def _largest(self, names: Sequence[str], new: int, group: int) -> Tensor | None:
        """The rows of largest or smallest norm, in their order, by groups, summed over matrices; None: the first."""
        which, _, norm = self.selection.partition("-")
        if not norm or not new:
            return None
        with torch.no_grad():
            whole = [self._whole(name) for name in names]
            if new >= len(whole[0]):
                return None
            scores = sum(
                torch.linalg.vector_norm(each.unflatten(0, (-1, group)), int(norm[1]), (1, 2)) for each in whole
            )
            assert isinstance(scores, Tensor)
            best = torch.topk(scores, new // group, largest=which == "top").indices.sort().values
            return (best[:, None] * group + torch.arange(group, device=best.device)).flatten()

    def _side(self, mix: Tensor | None) -> Side:
        return Side(self.old, self.shape.embed_dim, mix)

    def _of_sources(self, name: str) -> Tensor:
        return torch.stack([self.tensors[f"layer{k}.{name}"] for k in self.sources])

    # -- everything but the layers ---------------------------------------------------------------------

    def residual(self, value: Tensor) -> Tensor:
        """A tensor whose first dimension is the residual stream."""
        return self.embed.rows(value.flatten(1) if value.ndim > 1 else value[:, None]).view(-1, *value.shape[1:])

    def stem(self, auxiliary: ViTShape) -> dict[str, Tensor]:
        """Patch projection, and the channels of the positions that belong to the chosen rows."""
        out = {name: self.residual(self.tensors[name]) for name in ("patch_embed.proj.weight", "patch_embed.proj.bias")}
        for name in auxiliary.stem_params().keys() - out.keys():
            value, width = self.tensors[name], self.shape.embed_dim
            if self.chosen is not None:
                value = torch.cat([value[..., : self.old], value[..., self.old + self.chosen]], -1)
            elif width > value.shape[-1]:
                value = repeated(value.transpose(1, 2)[0], width, self._whole("embed")).T[None]
            out[name] = value[..., :width]
        return out

    def head(self) -> Tensor:
        """The classifier's weight, whose matrix is its own and whose channels are the residual stream's."""
        return self._side(self._matrix("head", self.new, self.chosen)).columns(self.tensors["head.weight"])

    # -- layers ----------------------------------------------------------------------------------------

    def layers(self, feeds: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Every layer's parameters, from its pair of sources and its row of coefficients; alike for alike layers."""
        distinct = sorted(set(feeds))
        made: list[dict[str, Tensor]] = [{} for _ in distinct]
        for name, modules, wide in self._wide():
            for layer, value in zip(made, self._mixed(wide, modules, name.rpartition(".")[2], distinct), strict=True):
                layer[name] = value
        by_feed = dict(zip(distinct, made, strict=True))
        return [by_feed[feed] for feed in feeds]

    def _mixed(
        self, wide: Tensor, modules: Sequence[str], kind: str, distinct: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Sums of two sources each; ``wide`` is (sources, modules, ...), and the modules of a layer are packed."""
        out: list[Tensor] = []
        for pair in sorted({pair for pair, _ in distinct}):
            rows = [row for p, row in distinct if p == pair]
            place = self.sources.index(2 * pair)
            two = wide[place : place + 2].flatten(2).transpose(0, 1)  # (modules, 2, numbers)
            coefficients = torch.stack(
                [torch.stack([self.tensors[f"G.row{row}.{module}.{kind}"] for row in rows]) for module in modules]
            )
            mixed = (coefficients @ two).unflatten(-1, wide.shape[2:]).unbind(1)
            out += [value.flatten(0, 1) for value in mixed]
        return out

    def _wide(self) -> list[tuple[str, tuple[str, ...], Tensor]]:
        """Name, modules and (sources, modules, ...) of every parameter of the layers at the new width.

        What has a side of hidden neurons is widened there first: the other way takes half as many multiply-adds again.
        """
        count, three = len(self.sources), ("q", "k", "v")
        hidden, mixes = [], []
        for k in self.sources:
            names = [f"layer{k}.{part}" for part in three]
            heads = self._largest(names, self.new, self.shape.head_dim)
            mixes += [self._matrix(name, self.new, heads) for name in names]
            ffn = self._largest([f"layer{k}.ffn"], self.hidden, 1)
            hidden.append(self._matrix(f"layer{k}.ffn", self.hidden, ffn))
        inside = self._side(_stacked(mixes, (count, 3)))
        values = self._side(None if inside.mix is None else inside.mix[:, 2])
        ffn_side = Side(self.narrow.hidden_dim, self.shape.hidden_dim, _stacked(hidden, (count,)))
        residual = self.embed

        qkv = self._of_sources("attn.qkv.weight").view(count, 3, self.old, self.old)
        qkv_bias = self._of_sources("attn.qkv.bias").view(count, 3, self.old, 1)
        proj, fc1, fc2 = (self._of_sources(f"{name}.weight") for name in ("attn.proj", "mlp.fc1", "mlp.fc2"))
        out = [
            ("attn.qkv.weight", three, residual.columns(inside.rows(qkv))),
            ("attn.qkv.bias", three, inside.rows(qkv_bias).squeeze(-1)),
            ("attn.proj.weight", ("proj",), residual.rows(values.columns(proj))[:, None]),
            ("mlp.fc1.weight", ("fc1",), residual.columns(ffn_side.rows(fc1))[:, None]),
            ("mlp.fc1.bias", ("fc1",), ffn_side.rows(self._of_sources("mlp.fc1.bias")[..., None]).mT),
            ("mlp.fc2.weight", ("fc2",), residual.rows(ffn_side.columns(fc2))[:, None]),
        ]
        for name in ("norm1.weight", "norm1.bias", "attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc2.bias"):
            module = name.split(".")[-2]
            out.append((name, (module,), residual.columns(self._of_sources(name))[:, None]))
        return out


def _stacked(mixes: Sequence[Tensor | None], sizes: tuple[int, ...]) -> Tensor | None:
    there = [mix for mix in mixes if mix is not None]
    return torch.stack(there).unflatten(0, sizes) if there else None


def repeated(rows: Tensor, count: int, mix: Tensor | None = None) -> Tensor:
    """The first ``count`` rows, of which those that are missing are mixtures of the last ones before them.

    Args:
        rows: The width matrix F, of which the identity stands before: then the last rows are those of E(F). Or, with
            ``mix``, any tensor of as many rows as E(F).
        count: How many rows.
        mix: The width matrix that is applied to the last rows, F itself by default.
    """
    matrix = rows if mix is None else mix
    old = matrix.shape[1]
    while len(rows) < count:
        before = rows if mix is not None or len(rows) >= old else torch.cat([torch.eye(old).to(rows), rows])
        rows = torch.cat([rows, matrix @ before[-old:]])
    return rows[:count]
