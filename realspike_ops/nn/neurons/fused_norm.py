"""Batch norms whose current LIF neurons normalise: what `fuse` makes of a network's norms."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from realspike_ops import _checks as checks
from realspike_ops.nn.neurons.batch_norm_call import call_batch_norm, tensors_of, why_not
from realspike_ops.nn.neurons.normed_current import normed_current
from realspike_ops.nn.plain import computes_the_same


class _FusedNorm(_BatchNorm):
    """A batch norm that takes its statistics, and leaves the rest to the neurons behind it."""

    # A tuple, whose modules are no submodules: they have their names elsewhere.
    _neurons: tuple[nn.Module, ...] = ()
    _calls: "list[Any] | None" = None  # currents, or why there are none, if `fuse` asks

    @computes_the_same
    def forward(self, input: Tensor) -> Tensor:
        # A parametrization comes with a class of its own, whose parameters are computed when read.
        reason = "its parameters are computed (torch.nn.utils.parametrize)"
        if type(self) in _PLAIN:
            tensors = tensors_of(self)
            reason = why_not(self, tensors, self._neurons, input)
            if reason is None:
                return normed_current(call_batch_norm(self, tensors, input), self._calls)
        if self._calls is not None:
            self._calls.append(reason)
        return super().forward(input)


class FusedBatchNorm1d(_FusedNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` behind which a `RealSpikeLIF` normalises."""


class FusedBatchNorm2d(_FusedNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` behind which a `RealSpikeLIF` normalises."""


class FusedBatchNorm3d(_FusedNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` behind which a `RealSpikeLIF` normalises."""


class FusedSyncBatchNorm(_FusedNorm, nn.SyncBatchNorm):
    """``nn.SyncBatchNorm`` behind which a `RealSpikeLIF` normalises."""


FUSED: dict[type, type] = {
    nn.BatchNorm1d: FusedBatchNorm1d,
    nn.BatchNorm2d: FusedBatchNorm2d,
    nn.BatchNorm3d: FusedBatchNorm3d,
    nn.SyncBatchNorm: FusedSyncBatchNorm,
}
# The attribute of a model that says what was fused.
REPORT = "_realspike_fusion"
_PLAIN = {fused: plain for plain, fused in FUSED.items()}


def make_fused(
    batch_norm: nn.Module, neurons: tuple[nn.Module, ...], calls: list[Any] | None = None
) -> None:
    """Let neurons normalise the current of a batch norm, in place.

    Args:
        neurons: The layers that read the current: with hooks on them, it has values.
        calls: Gets the current of every call, or the reason why it has values.
    """
    batch_norm.__class__ = FUSED[type(batch_norm)]
    assert isinstance(batch_norm, _FusedNorm)
    batch_norm._neurons, batch_norm._calls = neurons, calls


def unfuse(model: nn.Module) -> nn.Module:
    """Make the batch norms of a network what they were before `realspike_ops.fuse`, in place.

    Returns:
        ``model``.

    Raises:
        TypeError: if it is no module.
    """
    checks.check_module("model", model)
    for module in model.modules():
        if isinstance(module, _FusedNorm):
            module.__class__ = _unfused(type(module))
            for name in ("_neurons", "_calls"):
                vars(module).pop(name, None)
    vars(model).pop(REPORT, None)
    return model


def _unfused(kind: type) -> type:
    if kind in _PLAIN:
        return _PLAIN[kind]
    # One that torch.nn.utils.parametrize made of ours; a copy of the module shares it.
    own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    bases = tuple(_PLAIN.get(base, base) for base in kind.__bases__)
    return type(kind.__name__.replace("Fused", ""), bases, own)
