"""A batch norm and LIF neurons as one layer, which runs both in one op."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from realspike_ops.nn.neurons.batch_norm_call import call_batch_norm, fire, tensors_of, why_not
from realspike_ops.nn.neurons.lif import RealSpikeLIF
from realspike_ops.nn.neurons.normed_current import is_residual_of

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_FORWARDS = tuple(kind.forward for kind in BATCH_NORMS)


class NormLIF(nn.Module):
    """Batch norm, a residual current and LIF neurons, in half the passes over memory.

    ``NormLIF(batch_norm, lif)(x, residual)`` is ``lif(batch_norm(x) + residual)``, with the
    statistics, the modes and the parameters of both layers, which it holds and shares: whatever
    changes them changes this layer. See `realspike_ops.batch_norm_lif` for what it computes, and
    `realspike_ops.fuse` for a network that is written with both layers.

    Args:
        batch_norm: ``nn.BatchNorm1d``, ``2d`` or ``3d``, or ``nn.SyncBatchNorm``, which works on
            CPUs too here.
        lif: A `RealSpikeLIF`.

    Attributes:
        batch_norm, lif: The two layers.

    Shape: x [T*B, C, H, W], timestep outermost; residual as x, or None -> as x.

    Raises:
        TypeError: if a layer is of another class.

    Note:
        It calls one layer after the other, with the same result, where it must: with hooks on a
        layer or a forward of its own, parametrized norms, neurons that are still lazy, dtypes that
        the kernels do not take, residuals of another shape or dtype, and inside of what follows
        layer by layer (tracing, torch.func, function modes, ``torch.inference_mode``).
    """

    batch_norm: _BatchNorm
    lif: RealSpikeLIF

    def __init__(self, batch_norm: _BatchNorm, lif: RealSpikeLIF):
        super().__init__()
        for name, layer, kinds in (
            ("batch_norm", batch_norm, BATCH_NORMS),
            ("lif", lif, (RealSpikeLIF,)),
        ):
            if not isinstance(layer, kinds):
                wanted = " or ".join(kind.__name__ for kind in kinds)
                raise TypeError(f"{name} must be a {wanted}; got {type(layer).__name__}")
        self.batch_norm, self.lif = batch_norm, lif

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        batch_norm, lif = self.batch_norm, self.lif
        if (
            (residual is None or is_residual_of(residual, x))
            and type(batch_norm).forward in _FORWARDS
            and type(lif).forward is RealSpikeLIF.forward
            and not parametrize.is_parametrized(batch_norm)
        ):
            tensors = tensors_of(batch_norm)
            if why_not(batch_norm, tensors, (lif,), x) is None:
                call = call_batch_norm(batch_norm, tensors, x)
                return fire(call, residual, lif.timesteps, lif.fitted(x.dim() - 1))
        current = batch_norm(x)
        return lif(current if residual is None else current + residual)
