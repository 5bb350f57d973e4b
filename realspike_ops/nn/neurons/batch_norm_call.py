"""The call of a batch norm whose current goes into LIF neurons, and the op that runs both."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm

from realspike_ops import _checks as checks
from realspike_ops.functional.batch_norm_lif import Statistics, batch_norm_statistics, normed_lif
from realspike_ops.nn.time import split_time
from realspike_ops.ops.eager import is_plain_eager

if TYPE_CHECKING:
    from realspike_ops.functional.settings import LifArguments


class BatchNormCall(NamedTuple):
    """One call of a batch norm, whose statistics have been taken and counted."""

    x: Tensor  # [N, C, ...]
    weight: Tensor | None  # [C]
    bias: Tensor | None  # [C]
    running_mean: Tensor | None  # [C]; None: by the statistics of x
    running_var: Tensor | None  # [C]
    eps: float
    statistics: Statistics
    times: int = 1  # how often x is repeated over time

    def detached(self) -> "BatchNormCall":
        x, weight, bias = (None if t is None else t.detach() for t in self[:3])
        assert x is not None
        return self._replace(x=x, weight=weight, bias=bias)

    def in_time(self, values: Tensor) -> Tensor:  # [N, C, ...] -> [times * N, C, ...]
        return values if self.times == 1 else values.repeat(self.times, *(1,) * (values.dim() - 1))

    def values(self) -> Tensor:  # [times * N, C, ...]
        """Return what the batch norm returns, without a change of its statistics."""
        if self.statistics.group is not None:
            raise RuntimeError(
                "the current behind a fused SyncBatchNorm must reach LIF neurons, directly or "
                "through one addition; here it is read otherwise: use realspike_ops.unfuse(model)"
            )
        running = self.running_mean, self.running_var
        is_of_x = self.running_mean is None
        return self.in_time(
            F.batch_norm(self.x, *running, self.weight, self.bias, is_of_x, 0.0, self.eps)
        )


def is_seen(module: nn.Module) -> bool:
    """Whether a hook, or a forward that replaces its own, sees what a layer reads or returns."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _all_are_seen() -> bool:
    """Whether a hook on all modules sees what they read or return."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


class NormTensors(NamedTuple):
    """The parameters and statistics of a batch norm, each read once."""

    weight: Tensor | None  # [C]
    bias: Tensor | None  # [C]
    running_mean: Tensor | None  # [C]
    running_var: Tensor | None  # [C]


def tensors_of(batch_norm: _BatchNorm) -> NormTensors:
    # Module.__getattr__ looks where these are after it has looked elsewhere.
    parameters, buffers = batch_norm._parameters, batch_norm._buffers
    if not ("weight" in parameters and "bias" in parameters and "running_var" in buffers):
        return NormTensors(
            batch_norm.weight, batch_norm.bias, batch_norm.running_mean, batch_norm.running_var
        )
    return NormTensors(
        parameters["weight"], parameters["bias"], buffers["running_mean"], buffers["running_var"]
    )


def why_not(
    batch_norm: _BatchNorm, tensors: NormTensors, neurons: Iterable[nn.Module], x: object
) -> str | None:
    """Return why the layers must run one by one on x [N, C, ...], None if one op can run them."""
    if not isinstance(x, Tensor):
        return "its input is no tensor"
    if not is_followed(x, *tensors):
        return "tracing, torch.func, function modes and inference_mode run the layers one by one"
    for module in (batch_norm, *neurons):
        if is_seen(module):
            return "it, or its neurons, have hooks or a forward of their own"
    if _all_are_seen():
        return "hooks on all modules see what it returns"
    device, shape, C = x.device, x.shape, batch_norm.num_features
    if x.dtype not in checks.FLOATS or device.type not in ("cpu", "cuda"):
        return f"its input is {x.dtype} on {device}"
    if len(shape) < 2 or shape[1] != C or C == 0:
        return f"its input has shape {checks.shape_text(x)}"
    _, _, mean, var = tensors
    for statistic in (mean, var):
        if (statistic is None) != (mean is None):
            return "it has one running statistic of two"
        if statistic is not None and (statistic.dtype != torch.float32 or statistic.requires_grad):
            return "its running statistics are not float32, or require a gradient"
    for tensor in tensors:
        if tensor is not None and tensor.device != device:
            return "its parameters are on another device than its input"
    uses_batch = batch_norm.training or mean is None
    if x.numel() <= uses_batch * C and _group_of(batch_norm) is None:
        return "its input has no or one value per channel"
    return None


def is_followed(*tensors: Tensor | None) -> bool:
    """Whether a call with these tensors runs the kernels, in eager mode or compiled by Dynamo.

    Changes in place of tensors of ``torch.inference_mode`` are not counted, so that nobody could
    tell whether one was changed before its current was read.
    """
    if torch.compiler.is_dynamo_compiling():
        return not torch.compiler.is_exporting()
    for tensor in tensors:
        if tensor is not None and tensor.is_inference():
            return False
    return is_plain_eager(*tensors)


def call_batch_norm(batch_norm: _BatchNorm, tensors: NormTensors, x: Tensor) -> BatchNormCall:
    """Take and count the statistics of x [N, C, ...] as ``batch_norm(x)`` does."""
    batch_norm._check_input_dim(x)
    weight, bias, mean, var = tensors
    training, momentum = batch_norm.training, batch_norm.momentum
    uses_batch = training or mean is None
    if training and not batch_norm.track_running_stats:
        mean = var = None
    elif training and (count := batch_norm._buffers.get("num_batches_tracked")) is not None:
        count.add_(1)
        if momentum is None:  # a cumulative average
            momentum = 1.0 / float(count)
    statistics = batch_norm_statistics(
        x.detach()[None],
        mean,
        var,
        uses_batch,
        0.0 if momentum is None else momentum,
        batch_norm.eps,
        _group_of(batch_norm),
        is_plain=not torch.compiler.is_compiling(),
    )
    if uses_batch:
        mean = var = None
    return BatchNormCall(x, weight, bias, mean, var, batch_norm.eps, statistics)


def _group_of(batch_norm: _BatchNorm) -> "dist.ProcessGroup | None":
    """Return the processes whose statistics are taken together, None for this one alone."""
    if not isinstance(batch_norm, nn.SyncBatchNorm) or not batch_norm.training:
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = batch_norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def fire(
    call: BatchNormCall, residual: Tensor | None, timesteps: int, neurons: "LifArguments"
) -> Tensor:  # [T*B, C, ...]
    """Run neurons on the current of a batch norm, plus a residual."""
    T, statistics, x = timesteps, call.statistics, call.x
    affine = (call.weight, call.bias, not torch.compiler.is_compiling())
    if call.times == 1 and affine[-1] and x.shape[0] % T == 0:
        return normed_lif(x, statistics, residual, *affine, T, **neurons)
    if call.times == 1:
        x = split_time(x, T)
    else:
        x = x.expand(T, *x.shape)  # read once
        if statistics.n is not None:
            statistics = statistics._replace(n=T * statistics.n)
    residual = None if residual is None else split_time(residual, T, "residual")
    return normed_lif(x, statistics, residual, *affine, None, **neurons).flatten(0, 1)
