"""A call of the encoding that is no layer of one tensor: a function, a method, several inputs."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Argument:
    """Stands for an input or a constant of an `EncodingCall`."""

    which: int | str


class EncodingCall(nn.Module):
    """A function, method or layer of the encoding with other arguments than one tensor.

    Args:
        target: A callable, the name of a method of the first argument, or a module.
        args, kwargs: Its arguments; `Argument(n)` stands for the n-th input, `Argument("name")`
            for the constant of that name.
        constants: Tensors of the trained network.
    """

    def __init__(self, target, args: tuple | list, kwargs: dict, constants: dict[str, Tensor]):
        super().__init__()
        if isinstance(target, nn.Module):
            self.module, target = target, "module"
        self.target = target
        self.args, self.kwargs = args, kwargs
        for name, tensor in constants.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs):
        def given(value) -> Any:
            if isinstance(value, Argument):
                which = value.which
                return inputs[which] if isinstance(which, int) else getattr(self, which)
            if isinstance(value, (tuple, list)):
                return type(value)(given(item) for item in value)
            if isinstance(value, slice):
                return slice(given(value.start), given(value.stop), given(value.step))
            if isinstance(value, dict):
                return {key: given(item) for key, item in value.items()}
            return value

        args, kwargs = given(tuple(self.args)), given(self.kwargs)
        if self.target == "module":
            return self.module(*args, **kwargs)
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def extra_repr(self) -> str:
        return self.target if isinstance(self.target, str) else self.target.__name__
