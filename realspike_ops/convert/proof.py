"""The proof by execution that a converted network is the one that it was made of at every timestep.

Both run with the functions that neurons took the place of: ReLU, and for neurons of other libraries
the identity times a number for each timestep. What is left of a conversion is where things stand.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.trace.proof import first_difference

Functions = dict[str, Callable[[Tensor], Tensor]]
_ROWS = 2
MOST_TIMESTEPS = 256


class _Reached(Exception):
    """A layer was called, on `value`."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = value


class _Run(fx.Interpreter):
    """Runs a converted network with functions in the place of some layers, by name."""

    def __init__(self, converted: fx.GraphModule, functions: Functions):
        super().__init__(converted)
        self.functions = functions

    def call_module(self, target, args: Any, kwargs):
        function = self.functions.get(str(target))
        return super().call_module(target, args, kwargs) if function is None else function(*args)


def prove(
    model: nn.Module,
    converted: fx.GraphModule,
    example: Tensor,
    timesteps: int,
    neurons: Functions,
    encoding: str | None,
    average: str | None,
    frames: bool,
) -> None:
    """Raise `ReparameterizationError` unless every timestep gives what `model` gives.

    Args:
        model: In eval mode on the CPU, its neurons replaced by what is in `neurons` as well.
        neurons: What stands for neurons in `converted`.
        encoding: The layer that repeats images over time; None: there is none, or `model` has it.
        average: The layer that averages over time; None, as before.
        frames: Whether rows of the input are timesteps, [T*B, ...].
    """
    converted = copy.deepcopy(converted).cpu().eval()
    inputs = _inputs(example, 1 if encoding is None else timesteps, timesteps if frames else 1)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            expected = [_leaves(model(x.clone())) for x in inputs]
            again = [_leaves(model(x.clone())) for x in inputs]
            if _differ(expected, again):  # by chance: there is nothing to compare with
                if average is not None:
                    _refuse_memory(model, inputs[0])
                return
        except ReparameterizationError:
            raise
        except Exception:  # the record has run it on another batch
            return
        functions = neurons if average is None else neurons | {average: _itself}
        try:
            x = inputs[0]
            if encoding is not None:
                x = torch.cat([_up_to(encoding, converted, functions, x.clone()) for x in inputs])
            got = _leaves(_run(converted, functions, inputs[0], encoding, x))
            reason = _difference(expected, got)
            if reason is None and average is not None and x.is_floating_point():
                reason = _misplaced(
                    converted, functions, neurons, inputs[0], encoding, x, timesteps
                )
        except Exception as error:
            text = str(error).partition("\n")[0]
            reason = f"the converted network cannot be run ({text})"
    if reason is not None:
        raise ReparameterizationError(
            f"forward() cannot be followed: {reason}; the usual causes are code that takes the "
            "rows of the batch apart (cat, chunk, flip, transpose), and changes that PyTorch does "
            "not see (numpy, .data)"
        )


def _differ(expected: list, got: list) -> bool:
    return any(first_difference(*pair) for pair in zip(expected, got, strict=True))


def _refuse_memory(model: nn.Module, x: Tensor) -> None:
    """Refuse a model, whose calls are timesteps, if a call changes what the next ones give."""

    def after(calls: int, value: Tensor) -> list[list[tuple[str, Tensor]]]:
        """Return what every layer makes of x behind calls on a value, in the order of layers."""
        for _ in range(calls):
            model(value.clone())
        seen: list[list[tuple[str, Tensor]]] = []
        handles = [
            module.register_forward_hook(
                lambda *call, name=name: seen.append([(name, t) for _, t in _leaves(call[2])])
            )
            for name, module in model.named_modules()
        ]
        torch.manual_seed(0)
        model(x.clone())
        for handle in handles:
            handle.remove()
        return seen

    runs = after(1, x), after(2, torch.zeros_like(x))  # states that alternate differ, too
    for first, second in zip(*runs, strict=False):
        if (name := first_difference(first, second)) is not None:
            kind = type(model.get_submodule(name) if name else model).__name__
            raise ReparameterizationError(
                f"{name or 'the model'!r} ({kind}) reads what an earlier call left: each call is a "
                "timestep of the model, and here one call runs through all of them, with a state "
                "in neurons alone"
            )


def _itself(x: Tensor) -> Tensor:
    return x


def _inputs(example: Tensor, count: int, timesteps: int) -> list[Tensor]:
    """Return different inputs like the example."""
    if len(example) == 0:
        example = example.new_zeros((1, *example.shape[1:]))
    example = example.detach().cpu()
    x = example[torch.arange(timesteps * _ROWS, device="cpu") % len(example)]
    if not x.is_floating_point():
        return [x.roll(t, -1) for t in range(count)]
    g = torch.Generator().manual_seed(0)
    noise = [torch.randn(x.shape, generator=g, device="cpu") for _ in range(count)]
    return [x + n.to(x.dtype) for n in noise]


def _run(converted, functions: Functions, x: Tensor, encoding: str | None, encoded: Tensor):
    """Run on x, or on what the encoding makes of it."""
    if encoding is None:
        return _Run(converted, functions).run(encoded.clone())
    return _Run(converted, functions | {encoding: lambda _: encoded.clone()}).run(x.clone())


def _difference(expected: list, got: list) -> str | None:
    joined = [("the output", torch.cat([t for _, t in p])) for p in zip(*expected, strict=True)]
    name = first_difference(joined, got)
    return name and f"{name} would be another than in the model"


def _misplaced(converted, functions, neurons, x, encoding, encoded, timesteps) -> str | None:
    """Tell whether neurons take rows of one timestep for those of another: every other is NaN."""
    rows = encoded.unflatten(0, (timesteps, -1)).clone()
    rows[1::2] = torch.nan
    found: list[str] = []

    def watched(name: str, function):
        def call(x: Tensor) -> Tensor:
            is_nan = x.isnan().flatten(1).any(1).view(timesteps, -1)
            if is_nan[::2].any() or not is_nan[1::2].all():
                found.append(name)
            return function(x)

        return call

    watching = {name: watched(name, function) for name, function in neurons.items()}
    _run(converted, functions | watching, x, encoding, rows.flatten(0, 1))
    return f"{found[0]!r} would take images for timesteps of one another" if found else None


def _leaves(result) -> list[tuple[str, Tensor]]:
    return [("the output", t) for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]


def _up_to(name: str, converted: fx.GraphModule, functions: Functions, x: Tensor) -> Tensor:
    """Return what the layer reads."""

    def reached(value: Tensor) -> Tensor:
        raise _Reached(value)

    try:
        _Run(converted, functions | {name: reached}).run(x)
    except _Reached as there:
        return there.value
    raise AssertionError(f"{name} is not called")
