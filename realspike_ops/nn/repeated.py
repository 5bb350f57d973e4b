"""A current that is the same at every timestep, kept once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from realspike_ops.ops.eager import is_plain_eager


class RepeatedCurrent(Tensor):
    """``x.repeat(times, 1, ...)``: [B, ...] -> [times*B, ...], without a copy until it is read.

    Layers that split time read x itself, with a stride of 0 over the timesteps. For everything
    else that PyTorch computes it is the tensor that ``repeat`` returns. It knows its shape, dtype
    and device without values, and autograd has it as the result of a repetition, whoever reads it.
    """

    once: Tensor  # [B, ...]
    times: int
    _copied: Tensor | None
    _version_of_once: int

    def read(self) -> Tensor:  # [times*B, ...]
        """Return the repeated tensor, which lies in memory as x does."""
        copied = self._copied
        if copied is None:
            # Whoever reads it next may want gradients; what was made without has none here either.
            with torch.inference_mode(False), torch.enable_grad():
                copied = self._copied = _Values.apply(self)
        return copied

    def over_time(self, timesteps: int) -> Tensor | None:  # [timesteps, B, ...]
        """Return a view of x, if nobody holds values that may have been changed."""
        if timesteps != self.times or self._copied is not None:
            return None
        return _Steps.apply(self)

    def _in_the_graph(self) -> Tensor:
        """Return who has the history: the copy, once it has got one that a repetition has not."""
        copied = self._copied
        if copied is None or self.requires_grad or not copied.requires_grad:
            return self
        return copied

    def unchanged(self) -> Tensor:  # [B, ...]
        """Return x without its history."""
        if self.once._version != self._version_of_once:
            raise RuntimeError(
                "a tensor was changed in place after DirectEncoding had repeated it, and before "
                "what it repeated was read: write the change as x = x + y"
            )
        return self.once.detach()

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WITHOUT_VALUES:
            with torch._C.DisableTorchFunctionSubclass():
                asked: Any = pytree.tree_map_only(cls, cls._in_the_graph, (args, kwargs))
                return func(*asked[0], **asked[1])
        read: Any = pytree.tree_map_only(cls, cls.read, (args, kwargs))
        return func(*read[0], **read[1])

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Below autograd, which has seen the call.
        read: Any = pytree.tree_map_only(
            cls, lambda current: current.read().detach(), (args, kwargs or {})
        )
        return func(*read[0], **read[1])


# What a tensor is asked, and what autograd is told of it.
_ATTRIBUTES = (
    "shape ndim dtype device layout is_nested requires_grad grad_fn is_leaf retains_grad grad"
).split()
_WITHOUT_VALUES = frozenset(
    {
        *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES),
        *(Tensor.dim, Tensor.size, Tensor.retain_grad, Tensor.register_hook, torch.autograd.grad),
    }
)


class _Repeat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, times: int) -> Tensor:
        ctx.shape = (times, *x.shape)
        return Tensor._make_wrapper_subclass(
            RepeatedCurrent,
            (times * x.shape[0], *x.shape[1:]),
            strides=x.stride(),
            dtype=x.dtype,
            device=x.device,
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # The older vmap, of is_grads_batched=True, knows neither unflatten nor flatten.
        return torch.sum(grads[0].reshape(ctx.shape), 0), None


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: RepeatedCurrent) -> Tensor:
        return torch.cat([current.unchanged()] * current.times)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: RepeatedCurrent) -> Tensor:
        x = current.unchanged()
        ctx.shape = (current.times * x.shape[0], *x.shape[1:])
        return x.expand(current.times, *x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].reshape(ctx.shape)


def repeated(x: Tensor, times: int) -> Tensor:  # [B, ...] -> [times*B, ...]
    """Repeat a tensor over time; in eager mode it is copied only if somebody reads the copy."""
    if x.dim() < 1 or not is_plain_eager(x) or forward_ad._current_level >= 0:
        # torch.export cannot follow, over batches, the strides that expand and flatten make, and
        # forward-mode derivatives none of the functions below.
        return x.repeat(times, *(1 for _ in x.shape[1:]))
    if x.is_inference():  # whose changes in place are not counted
        return torch.cat([x] * times)
    current: Any = _Repeat.apply(x, times)
    current.once, current.times = x, times
    current._copied, current._version_of_once = None, x._version
    return current
