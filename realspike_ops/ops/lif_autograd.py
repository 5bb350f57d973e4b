"""The call of realspike::lif_fwd and its derivative, with the dispatcher or past it."""

import functools
from typing import Any

import torch
from torch import Tensor

from realspike_ops.ops import LIBRARY, lif_plan
from realspike_ops.ops.compress_spikes import (
    Rerun,
    note_spikes,
    save_with_spikes,
    spikes_are_dropped,
)
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.kept import keep, kept
from realspike_ops.ops.layout import is_channels_last
from realspike_ops.ops.lif import BACKWARD, FORWARD
from realspike_ops.ops.lif_contract import SAVE_BITS, SAVE_NOTHING, Neuron, refuse_gradient


def _keep_for_backward(
    ctx, x, parameters, v_init, y, saved, neuron, save, keep_state, saved_as=None, plan=None
):
    if save == SAVE_NOTHING:
        raise refuse_gradient("lif_fwd")
    if spikes_are_dropped():

        def run(x, v_init, amplitude, decay, v_threshold) -> Any:
            inputs = (x, amplitude, decay, v_threshold, v_init)
            return lif(*inputs, neuron, SAVE_NOTHING, False, is_plain_eager(*inputs))

        rerun = functools.partial(Rerun, (x, v_init), parameters, run)
        note_spikes(y, parameters[0], saved, neuron, saved_as or save, rerun)
    ctx.neuron, ctx.save, ctx.keep_state = neuron, save, keep_state
    ctx.channels_last = is_channels_last(y) if plan is None else plan.channels_last
    if save == SAVE_BITS:
        x = v_init = None
    keep(ctx, "realspike::lif_bwd", x, *parameters, v_init, saved)
    ctx.set_materialize_grads(False)
    ctx.shape, ctx.dtype = y.shape, y.dtype


def _gradients(ctx, grad_y, grad_v_last, plan=None):
    """Return the gradients of (x, amplitude, decay, v_threshold, v_init)."""
    if grad_y is None:
        if grad_v_last is None:
            return (None,) * 5
        grad_y = grad_v_last.new_zeros(ctx.shape, dtype=ctx.dtype)
    *inputs, saved = kept(ctx)
    saved = saved.contiguous()
    # With create_graph=True the dispatcher records the pass, and refuses a second derivative.
    # The saved tensors were plain when they were saved.
    plain = not torch.is_grad_enabled() and is_plain_eager(grad_y, grad_v_last)
    wanted = list(ctx.needs_input_grad[1:5])
    if plan is not None and plain:
        x, amplitude, *_ = inputs
        grads = lif_plan.planned_bwd(plan, grad_y, x, amplitude, saved, wanted[0])
        return *grads, None, None, None
    tensors = (grad_y, grad_v_last, *inputs, saved)
    bwd = BACKWARD.get(grad_y.device.type)
    if bwd and plain:
        return bwd(*tensors, ctx.channels_last, wanted, ctx.neuron, ctx.save)
    grad_x, *grads = torch.ops.realspike.lif_bwd(
        *tensors, ctx.channels_last, wanted, *ctx.neuron, ctx.save
    )
    return grad_x, *(grad if want else None for grad, want in zip(grads, wanted, strict=True))


def _setup_context(ctx, inputs, output):
    x, *parameters, v_init = inputs[:5]
    *neuron, save, keep_state = inputs[5:]
    y, _, saved = output
    _keep_for_backward(ctx, x, parameters, v_init, y, saved, Neuron(*neuron), save, keep_state)


def _backward(ctx, grad_y, grad_v_last, _):
    return *_gradients(ctx, grad_y, grad_v_last if ctx.keep_state else None), *(None,) * 10


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("lif has no second derivative: that of a surrogate gradient is not defined")


class _EagerLif(torch.autograd.Function):
    """The function that register_autograd makes below, without the dispatcher."""

    @staticmethod
    def forward(ctx, x, amplitude, decay, v_threshold, v_init, fixed):
        neuron, save, save_as, keep_state, plan = fixed
        parameters, v_last = (amplitude, decay, v_threshold), None
        if plan is None:
            fwd = FORWARD[x.device.type]
            y, v_last, saved = fwd(x, *parameters, v_init, neuron, save_as, keep_state)
        else:
            y, saved = lif_plan.planned_fwd(plan, x, amplitude)
        _keep_for_backward(
            ctx, x, parameters, v_init, y, saved, neuron, save, keep_state, save_as, plan
        )
        ctx.plan = plan
        return (y, v_last) if keep_state else y

    @staticmethod
    def backward(ctx, grad_y, grad_v_last=None):
        return *_gradients(ctx, grad_y, grad_v_last, ctx.plan), None


def lif(
    x: Tensor,
    amplitude: Tensor | None,
    decay: Tensor | None,
    v_threshold: Tensor | None,
    v_init: Tensor | None,
    neuron: Neuron,
    save: int,
    keep_state: bool,
    is_plain: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return y, with `keep_state` (y, v_last).

    Past the dispatcher where only autograd could intercept the call (`is_plain`).
    """
    inputs = (x, amplitude, decay, v_threshold, v_init)
    device = x.device.type
    fwd = FORWARD.get(device)
    if fwd is None or not is_plain:
        y, v_last, _ = torch.ops.realspike.lif_fwd(*inputs, *neuron, save, keep_state)
        return (y, v_last) if keep_state else y
    plan, save_as = None, save
    if save != SAVE_NOTHING:
        save_as = save_with_spikes(save, x.shape[0], device)
    if device == "cpu" and decay is v_threshold is v_init is None and not keep_state:
        plan = lif_plan.plan_of(
            None, neuron, save, save_as, x.shape, x.stride(), x.dtype,
            None if amplitude is None else (amplitude.shape, amplitude.stride()),
        )  # fmt: skip
    if save != SAVE_NOTHING:
        # One argument where it can be: apply looks at each of them.
        return _EagerLif.apply(*inputs, (neuron, save, save_as, keep_state, plan))
    if plan is not None:
        return lif_plan.planned_fwd(plan, x, amplitude)[0]
    y, v_last, _ = fwd(*inputs, neuron, save, keep_state)
    return (y, v_last) if keep_state else y


torch.library.register_autograd(
    "realspike::lif_fwd", _backward, setup_context=_setup_context, lib=LIBRARY
)
torch.library.register_autograd("realspike::lif_bwd", _refuse_second_derivative, lib=LIBRARY)
