"""The current behind a batch norm, which is not computed before somebody reads it."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from realspike_ops.nn.neurons.batch_norm_call import BatchNormCall, fire, is_followed

if TYPE_CHECKING:
    from realspike_ops.functional.settings import LifArguments


class NormedCurrent(Tensor):
    """batch_norm(x), or batch_norm(x) + residual, without values until somebody reads them.

    A `RealSpikeLIF` takes it as it is, and runs the norm, the addition and the neurons in one op.
    For everything else that PyTorch computes it is the tensor [N, C, ...] that the layers before
    would have returned. It knows its shape, dtype and device without values.
    """

    call: BatchNormCall
    residual: Tensor | None  # [N, C, ...]
    # Who read the current, if somebody wants to know: neurons, functions by name, sums.
    readers: "list[Any] | None"
    _computed: Tensor | None
    _versions: tuple[int, ...]

    def read_by(self, reader: Any) -> Tensor:
        """Return the values."""
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # whoever reads them next may want gradients
                return self.read_by(reader)
        if self.readers is not None:
            self.readers.append(reader)
        if self._computed is None:
            self.check()
            # What was made without gradients has none here either. A checkpoint would miss what the
            # norm saves when it runs again and finds these values, which belong before it.
            hooks = not torch.compiler.is_compiling() and _top_saved_tensors_default_hooks(False)
            as_it_is = saved_tensors_hooks(_itself, _itself) if hooks else nullcontext()
            with torch.enable_grad(), as_it_is:
                values = self.call.values()
                self._computed = values if self.residual is None else values + self.residual
        return self._computed

    def goes_into(self, timesteps: int) -> bool:
        """Whether neurons of that many timesteps can compute the current themselves."""
        return self._computed is None and self.call.times in (1, timesteps)

    def fire(self, lif: Any, timesteps: int, neurons: "LifArguments") -> Tensor:  # [T*B, C, ...]
        """Return the spikes of the neurons of the layer `lif` that the current goes into."""
        if self.readers is not None:
            self.readers.append(lif)
        self.check()
        return fire(self.call, self.residual, timesteps, neurons)

    def all_readers(self) -> Iterator[Any]:
        """Yield who read the current, or the sum that it became."""
        for reader in self.readers or ():
            if isinstance(reader, NormedCurrent):
                yield from reader.all_readers()
            else:
                yield reader

    def check(self) -> None:
        """Refuse to compute the current from other values than those that the norm was given, and
        where autograd has a history of it that nobody here knows."""
        if torch.compiler.is_compiling():
            return
        if not self._versions:  # Dynamo made it, and it left the graph
            if self.call.x.requires_grad and not torch.is_grad_enabled():
                raise RuntimeError(
                    f"it left a compiled graph, and is read without gradients: {_PAST}"
                )
            return
        if any(t is not None and t.data_ptr() == 0 for t in self.call[1:5]):
            raise RuntimeError(
                "the parameters of a fused batch norm were freed before its current was read, as "
                "FSDP frees those of a unit that has run: put the norm and its neurons into one "
                "unit, or use realspike_ops.unfuse(model)"
            )
        if self._versions != _versions(self.call, self.residual):
            if self.readers is not None:
                self.readers.append(CHANGED)  # whoever asks takes no values for real
                return
            raise RuntimeError(
                "what a fused batch norm read (its input, its parameters, or the residual) was "
                "changed in place before its current was read: use realspike_ops.unfuse(model), "
                "or write it without changing it (x = x + y)"
            )
        with torch._C.DisableTorchFunctionSubclass():
            if self.requires_grad and not torch.is_grad_enabled():
                # An autograd.Function may be at it, whose gradient nobody would pass on.
                self.register_hook(_refuse_gradient)
            if self.grad_fn is None:
                return
        if self.readers is None:
            raise RuntimeError(f"an autograd.Function returned it: {_PAST}")
        self.readers.append("autograd.Function")

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        follow = _FOLLOWED.get(func)
        if follow is not None and not kwargs and (current := follow(*args)) is not None:
            return current
        name = getattr(func, "__name__", type(func).__name__)
        name = getattr(func.__self__, "__name__", name) if name == "__get__" else name

        def read(leaf: Any) -> Any:
            return leaf.read_by(name) if isinstance(leaf, NormedCurrent) else leaf

        return func(*pytree.tree_map(read, args), **pytree.tree_map(read, kwargs))


class _WithoutMemory(NormedCurrent):
    """A current outside of Dynamo, which follows no tensors that watch the dispatcher."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise RuntimeError(f"{func}: {_PAST}")


_PAST = (
    "the current behind a fused batch norm goes past PyTorch's functions (in an autograd.Function, "
    "or for a backward hook on a container): use realspike_ops.unfuse(model)"
)
# The reader of a current whose norm was given other values than there are when it is read.
CHANGED = "a change in place of what the norm read"
# The reader of a current that is added to another one.
AS_RESIDUAL = "an addition to the output of another batch norm"
# torch's stub has values in the place of the attributes.
_attributes: Any = Tensor
_KNOWN = frozenset(
    {
        *(
            getattr(_attributes, n).__get__
            for n in "shape dtype device layout is_nested ndim".split()
        ),
        Tensor.dim,
        Tensor.size,
    }
)


def normed_current(call: BatchNormCall, calls: list[Any] | None = None) -> NormedCurrent:
    """Return the current of a batch norm; noted in `calls`, it notes its readers."""
    if not torch.is_grad_enabled():
        call = call.detached()
    current = _make(call, None, None if calls is None else [])
    if calls is not None:
        calls.append(current)
    return current


def _make(call: BatchNormCall, residual: Tensor | None, readers: list[Any] | None) -> NormedCurrent:
    x, weight, bias = call[:3]
    shape = x.shape if call.times == 1 else (call.times * x.shape[0], *x.shape[1:])
    current: Any
    if torch.compiler.is_compiling():
        # Dynamo follows Python alone. What leaves its graph has values that nobody takes for real.
        nowhere = torch.full(shape, torch.nan, dtype=x.dtype, device=x.device)
        current = nowhere.as_subclass(NormedCurrent)
    else:
        current = Tensor._make_wrapper_subclass(
            _WithoutMemory,
            shape,
            strides=x.stride(),
            dtype=x.dtype,
            device=x.device,
            requires_grad=x.requires_grad
            or (weight is not None and weight.requires_grad)
            or (bias is not None and bias.requires_grad)
            or (residual is not None and residual.requires_grad),
        )
    current.call, current.residual, current.readers = call, residual, readers
    current._computed, current._versions = None, _versions(call, residual)
    return current


def _itself(saved: Tensor) -> Tensor:
    return saved


def _refuse_gradient(_: Tensor) -> None:
    raise RuntimeError(f"it got a gradient: {_PAST}")


def _versions(call: BatchNormCall, residual: Tensor | None) -> tuple[int, ...]:
    if torch.compiler.is_compiling():
        return ()
    x, weight, bias, mean, var = call[:5]
    return (
        x._version,
        0 if weight is None else weight._version,
        0 if bias is None else bias._version,
        0 if mean is None else mean._version,
        0 if var is None else var._version,
        0 if residual is None else residual._version,
    )


def _sum(a: Any, b: Any, *more: Any) -> Tensor | None:
    """Return the current a + b, if it is one of a batch norm and a residual; None otherwise."""
    first = a if _takes_residual(a) else b
    second = b if first is a else a
    if more or not _takes_residual(first) or first is second:
        return None
    residual = second.read_by(AS_RESIDUAL) if isinstance(second, NormedCurrent) else second
    if not is_residual_of(residual, first.call.x, first.call.times):
        return None
    call = first.call
    if not torch.is_grad_enabled():
        call, residual = call.detached(), residual.detach()
    return _successor(first, call, residual)


def _sum_in_place(current: Any, residual: Any, *more: Any) -> Tensor | None:
    """Let `current` be its sum with a residual, under all of its names."""
    if more or not _takes_residual(current) or current is residual:
        return None
    if isinstance(residual, NormedCurrent):
        residual = residual.read_by(AS_RESIDUAL)
    if not is_residual_of(residual, current.call.x, current.call.times):
        return None
    current.check()
    current.residual = residual if torch.is_grad_enabled() else residual.detach()
    current._versions = _versions(current.call, current.residual)
    return current


def _repeated(current: Any, times: Any = None, *others: Any) -> Tensor | None:
    """Return a current that is repeated over time, [B, C, ...] -> [T*B, C, ...]; None for other
    repetitions."""
    if not _takes_residual(current) or not isinstance(times, int) or times < 1:
        return None
    call = current.call
    if call.times != 1 or others != (1,) * (call.x.dim() - 1):
        return None
    call = call._replace(times=times)
    return _successor(current, call if torch.is_grad_enabled() else call.detached(), None)


def _successor(
    current: NormedCurrent, call: BatchNormCall, residual: Tensor | None
) -> NormedCurrent:
    """Return what `current` becomes, which counts as a reader of it."""
    current.check()
    successor = _make(call, residual, None if current.readers is None else [])
    if current.readers is not None:
        current.readers.append(successor)
    return successor


def _takes_residual(current: Any) -> bool:
    return (
        isinstance(current, NormedCurrent)
        and current._computed is None
        and current.residual is None
    )


def is_residual_of(residual: Any, x: Tensor, times: int = 1) -> bool:
    """Whether the kernels can add a residual to x, repeated so often; they neither broadcast nor
    cast."""
    if not isinstance(residual, Tensor) or residual.dtype != x.dtype:
        return False
    shape = x.shape if times == 1 else (times * x.shape[0], *x.shape[1:])
    return residual.shape == shape and residual.device == x.device and is_followed(residual)


# What makes a current of a current; where it returns None, values are read.
_FOLLOWED: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _sum),
    **dict.fromkeys((Tensor.add_, Tensor.__iadd__), _sum_in_place),
    Tensor.repeat: _repeated,
}
