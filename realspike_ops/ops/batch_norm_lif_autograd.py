"""The derivative of batch norm and LIF neurons, and their call, with the dispatcher or past it."""

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from realspike_ops.ops import LIBRARY, batch_norm_lif_plan
from realspike_ops.ops.batch_norm_lif import PASSES
from realspike_ops.ops.compress_spikes import (
    Rerun,
    note_spikes,
    save_with_spikes,
    spikes_are_dropped,
)
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.kept import keep, kept
from realspike_ops.ops.layout import as_dense_over_time, is_channels_last
from realspike_ops.ops.lif_contract import SAVE_BITS, SAVE_NOTHING, Neuron, refuse_gradient

# The tensors of batch_norm_lif_fwd, in order: x, residual, mean, inv_std, weight, bias, amplitude,
# decay, v_threshold, v_init.
_X, _RESIDUAL, _MEAN, _INV_STD, _WEIGHT, _BIAS, _AMPLITUDE, _V_INIT = 0, 1, 2, 3, 4, 5, 6, 9


def _keep_for_backward(
    ctx, inputs, y, saved, neuron, save, keep_state, count, saved_as=None, plan=None
):
    if save == SAVE_NOTHING:
        raise refuse_gradient("batch_norm_lif_fwd")
    x, residual, *parameters, v_init = inputs
    if spikes_are_dropped():
        call: Any = batch_norm_lif
        T = None if plan is None else plan.lif.T

        # A mode in backward takes the call to the op, which knows no other T than that of a shape.
        def steps(t) -> Any:
            return t if t is None or T is None else t.unflatten(0, (T, -1))

        def run(x, residual, v_init, *parameters):
            tensors = (steps(x), steps(residual), *parameters, v_init)
            return call(*tensors, neuron, SAVE_NOTHING, False, None, None)

        rerun = functools.partial(Rerun, (x, residual, v_init), parameters, run)
        note_spikes(steps(y), inputs[_AMPLITUDE], saved, neuron, saved_as or save, rerun)
    if save == SAVE_BITS:
        residual = v_init = None
    ctx.neuron, ctx.save, ctx.keep_state = neuron, save, keep_state
    ctx.channels_last = is_channels_last(y) if plan is None else plan.lif.channels_last
    keep(ctx, "realspike::batch_norm_lif_bwd", x, residual, *parameters, v_init, saved, count)
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_y, grad_v_last, group=None, plan=None):
    """Return the gradients of the tensors of batch_norm_lif_fwd."""
    *inputs, saved, count = kept(ctx)
    saved = saved.contiguous()
    if grad_y is None:
        if grad_v_last is None and group is None:
            return (None,) * len(inputs)
        # The other processes of the group wait for the sums of this one.
        grad_y = torch.zeros_like(inputs[_X])
    needs = ctx.needs_input_grad
    # With create_graph=True the dispatcher records the passes, and refuses a second derivative.
    plain = not torch.is_grad_enabled() and is_plain_eager(grad_y, grad_v_last)
    if plan is not None and plain:
        return batch_norm_lif_plan.planned_bwd(plan, grad_y, inputs, saved, count, needs)
    T = None if plan is None else plan.lif.T
    if T is not None:
        # The older vmap of `is_grads_batched=True` knows no unflatten and no flatten.
        grad_y = grad_y.reshape(T, -1, *grad_y.shape[1:])
        for i in (_X, _RESIDUAL):
            inputs[i] = None if inputs[i] is None else inputs[i].reshape(grad_y.shape)
    if is_channels_last(inputs[_X]) != ctx.channels_last:  # a hook on saved tensors has copied it
        inputs[_X] = as_dense_over_time(inputs[_X], ctx.channels_last)
    tensors = (grad_y, grad_v_last, *inputs, saved)
    passes = PASSES.get(grad_y.device.type) if plain else None
    if passes and group is None and inputs[_X].numel() > 0:
        return passes.gradients(*tensors, count, needs[:10], ctx.neuron, ctx.save)
    wanted = list(needs[_AMPLITUDE : _V_INIT + 1])
    if passes:
        bwd = passes.bwd(*tensors, wanted, ctx.neuron, ctx.save)
    else:
        bwd = torch.ops.realspike.batch_norm_lif_bwd(*tensors, wanted, *ctx.neuron, ctx.save)
    grad_current, sums, *grads = bwd
    inv_std, weight = inputs[_INV_STD], inputs[_WEIGHT]
    grad_weight = (sums[1] * inv_std).float() if needs[_WEIGHT] else None
    grad_bias = sums[0].float() if needs[_BIAS] else None
    if group is not None and count is not None:
        sums = sums.contiguous()
        dist.all_reduce(sums, group=group)
    grad_residual = grad_current if needs[_RESIDUAL] else None
    grad_x = None
    if needs[_X]:
        norm = (grad_current, inputs[_X], inputs[_MEAN], inv_std, weight, sums, count)
        if passes:
            grad_x = passes.norm_bwd(*norm, in_place=grad_residual is None)
        else:
            grad_x = torch.ops.realspike.batch_norm_bwd(*norm)
    if T is not None:
        grad_x, grad_residual = (
            None if grad is None else grad.reshape(-1, *grad.shape[2:])
            for grad in (grad_x, grad_residual)
        )
    grads = (grad if want else None for grad, want in zip(grads, wanted, strict=True))
    return grad_x, grad_residual, None, None, grad_weight, grad_bias, *grads


def _setup_context(ctx, inputs, output):
    tensors, (*neuron, save, keep_state, count) = inputs[:10], inputs[10:]
    y, _, saved = output
    _keep_for_backward(ctx, tensors, y, saved, Neuron(*neuron), save, keep_state, count)


def _backward(ctx, grad_y, grad_v_last, _):
    grads = _gradients(ctx, grad_y, grad_v_last if ctx.keep_state else None)
    return *grads, *(None,) * 11


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError(
        "batch_norm_lif has no second derivative: that of a surrogate gradient is not defined"
    )


class _EagerBatchNormLif(torch.autograd.Function):
    """The function that register_autograd makes below, without the dispatcher, or with a group."""

    @staticmethod
    def forward(ctx, *args):
        *tensors, (neuron, save, save_as, keep_state, count, group, plan) = args
        if plan is None:
            fwd = PASSES[tensors[_X].device.type].fwd
            y, v_last, saved = fwd(*tensors, neuron, save_as, keep_state)
        else:
            y, saved = batch_norm_lif_plan.planned_fwd(plan, tensors)
        _keep_for_backward(ctx, tensors, y, saved, neuron, save, keep_state, count, save_as, plan)
        ctx.group, ctx.plan = group, plan
        return (y, v_last) if keep_state else y

    @staticmethod
    def backward(ctx, grad_y, grad_v_last=None):
        return *_gradients(ctx, grad_y, grad_v_last, ctx.group, ctx.plan), None


# Who knows already that nothing but autograd would intercept a call says is_plain=True.


def moments(x: Tensor, is_plain: bool = False) -> Tensor:  # [T, B, C, ...] -> float64 [2 * C + 1]
    """Return the means, biased variances and the number of values of each channel of x."""
    if x.device.type in PASSES and (is_plain or is_plain_eager(x)):
        return PASSES[x.device.type].moments(x.detach())
    return torch.ops.realspike.batch_norm_moments(x.detach())


def combined(moments: Tensor, group: "dist.ProcessGroup") -> Tensor:
    """Return the moments of the values of all processes of a group, in the order of their ranks."""
    size = dist.get_world_size(group)
    gathered = torch.empty((size, moments.numel()), dtype=moments.dtype, device=moments.device)
    dist.all_gather([*gathered.unbind()], moments, group=group)
    counts = gathered[:, -1:]
    means, variances = gathered[:, :-1].chunk(2, 1)
    count = counts.sum(0)
    shares = counts / count.clamp(min=1)
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return torch.cat((mean, variance, count))


def statistics(
    moments: Tensor,
    running_mean: Tensor | None,  # [C], float32; changed in place
    running_var: Tensor | None,  # [C], float32; changed in place
    momentum: float,
    eps: float,
    is_plain: bool = False,
) -> tuple[Tensor, Tensor]:  # [C], [C]
    """Return the mean and 1 / sqrt(variance + eps), and move the running statistics."""
    arguments = (moments, running_mean, running_var, momentum, eps)
    is_plain = is_plain or is_plain_eager(moments, running_mean, running_var)
    if moments.device.type not in PASSES or not is_plain:
        return torch.ops.realspike.batch_norm_statistics(*arguments)
    _note_change(running_mean, running_var)
    return PASSES[moments.device.type].statistics(*arguments)


def _note_change(*tensors: Tensor | None) -> None:
    """Do what the dispatcher does for arguments that an op changes."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if tensor is not None])


def norm(
    x: Tensor,  # [T, B, C, ...]
    running_mean: Tensor | None,  # [C], float32; changed in place
    running_var: Tensor | None,  # [C], float32; changed in place
    momentum: float,
    eps: float,
    is_plain: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # [C], [C], float64 [1]
    """Return `statistics` of the `moments` of x, and how many values these are of."""
    running = (running_mean, running_var)
    if x.device.type not in PASSES or not (is_plain or is_plain_eager(x, *running)):
        of_x = moments(x)
        return *statistics(of_x, *running, momentum, eps), of_x[-1:]
    _note_change(*running)
    return PASSES[x.device.type].norm(x, *running, momentum, eps)


def batch_norm_lif(
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    amplitude: Tensor | None,
    decay: Tensor | None,
    v_threshold: Tensor | None,
    v_init: Tensor | None,
    neuron: Neuron,
    save: int,
    keep_state: bool,
    count: Tensor | None,  # float64 [1], where mean and inv_std are moments of x
    group: "dist.ProcessGroup | None",  # of the processes whose values they are moments of
    is_plain: bool = False,
    timesteps: int | None = None,
) -> Any:
    """Return y, with `keep_state` (y, v_last).

    Past the dispatcher where only autograd could intercept the call; then x may be [T*B, C, ...],
    of so many timesteps T, and so are the residual and y.
    """
    tensors = (
        x, residual, mean, inv_std, weight, bias, amplitude, decay, v_threshold, v_init,
    )  # fmt: skip
    device = x.device.type
    if device not in PASSES or not (is_plain or group is not None or is_plain_eager(*tensors)):
        out = torch.ops.realspike.batch_norm_lif_fwd(*tensors, *neuron, save, keep_state, count)
        return out[:2] if keep_state else out[0]
    plan, save_as = None, save
    if save != SAVE_NOTHING:
        save_as = save_with_spikes(save, timesteps or x.shape[0], device)
    if (
        device == "cpu"
        and decay is v_threshold is v_init is group is None
        and not keep_state
        and mean.is_contiguous()
        and inv_std.is_contiguous()
        and (weight is None or weight.is_contiguous())
        and (bias is None or bias.is_contiguous())
    ):
        plan = batch_norm_lif_plan.norm_plan_of(
            timesteps, neuron, save, save_as, x.shape, x.stride(), x.dtype,
            None if amplitude is None else (amplitude.shape, amplitude.stride()),
            None if residual is None else residual.stride(),
        )  # fmt: skip
    if plan is None and timesteps is not None:
        steps = (timesteps, x.shape[0] // timesteps)
        both = (None if t is None else t.unflatten(0, steps) for t in tensors[:_MEAN])
        tensors = (*both, *tensors[_MEAN:])
    out: Any
    if save != SAVE_NOTHING:
        # One argument where it can be: apply looks at each of them.
        fixed = (neuron, save, save_as, keep_state, count, group, plan)
        out = _EagerBatchNormLif.apply(*tensors, fixed)
    elif plan is not None:
        out, _ = batch_norm_lif_plan.planned_fwd(plan, tensors)
    else:
        y, v_last, _ = PASSES[device].fwd(*tensors, neuron, save, keep_state)
        out = (y, v_last) if keep_state else y
    return out.flatten(0, 1) if plan is None and timesteps is not None else out


torch.library.register_autograd(
    "realspike::batch_norm_lif_fwd", _backward, setup_context=_setup_context, lib=LIBRARY
)
for name in ("batch_norm_lif_bwd", "batch_norm_bwd"):
    torch.library.register_autograd(f"realspike::{name}", _refuse_second_derivative, lib=LIBRARY)
