"""Building a model without drawing its start values, for models that are filled right after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS: frozenset[Callable[..., Any]] = frozenset(
    function for name, function in vars(nn.init).items() if name.endswith("_") and callable(function)
) | {Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_}


class SkipInit(TorchFunctionMode):
    """Leaves tensors as they are where torch would initialise them.

    On the meta device there is nothing to initialise, but torch traces every draw, which takes longer than building
    the modules. Elsewhere only parameters are left: what else a model keeps is never filled from outside.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs everything but initialisations."""
        given = dict(kwargs or {})
        if func in DRAWS:
            target = args[0] if args else given["tensor"]
            if target.is_meta or isinstance(target, nn.Parameter):
                return target
        return func(*args, **given)
