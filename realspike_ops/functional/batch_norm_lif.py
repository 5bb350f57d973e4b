"""The documented function of batch norm with LIF neurons: it checks, then calls the ops."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

import realspike_ops.ops.batch_norm_lif_autograd as ops
from realspike_ops import _checks as checks
from realspike_ops.functional.lif import check_input, check_neurons, check_parameter
from realspike_ops.ops.batch_norm_lif_contract import inverse_deviation
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.lif_contract import SAVE_NOTHING, Neuron, requires_gradient, what_to_save

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from realspike_ops.functional.settings import BatchNormLifSettings, NeuronForm


@overload
def batch_norm_lif(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    return_state: Literal[False] = False,
    **settings: "Unpack[BatchNormLifSettings]",
) -> Tensor: ...
@overload
def batch_norm_lif(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    return_state: Literal[True],
    **settings: "Unpack[BatchNormLifSettings]",
) -> tuple[Tensor, Tensor]: ...
@overload
def batch_norm_lif(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    return_state: bool,
    **settings: "Unpack[BatchNormLifSettings]",
) -> Tensor | tuple[Tensor, Tensor]: ...


def batch_norm_lif(
    x: Tensor,  # [T, B, C, ...]
    weight: Tensor | None,  # [C]
    bias: Tensor | None,  # [C]
    running_mean: Tensor | None,  # [C]
    running_var: Tensor | None,  # [C]
    *,
    residual: Tensor | None = None,  # [T, B, C, ...]
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    amplitude: Tensor | None = None,  # [1], [C, 1, 1] or [C, H, W]
    decay: float | Tensor = 0.25,  # a tensor: as amplitude
    v_threshold: float | Tensor = 0.5,  # a tensor: as amplitude
    v_reset: float | None = 0.0,
    reset: str | None = None,
    detach_reset: bool = False,
    emission: str = "binary",
    surrogate: str | tuple[str, float] = "rectangular",
    v_init: Tensor | None = None,  # [B, C, ...]
    return_state: bool = False,
    process_group: "dist.ProcessGroup | None" = None,
) -> Tensor | tuple[Tensor, Tensor]:  # [T, B, C, ...] or ([T, B, C, ...], [B, C, ...])
    r"""Normalise currents per channel, add a residual current, and run LIF neurons on the sum.

    .. math::
        x'[t] = \frac{x[t] - mean}{\sqrt{var + eps}} \cdot weight + bias + residual[t]

        y = lif(x', amplitude)

    The result is that of ``torch.nn.functional.batch_norm`` over ``x.flatten(0, 1)``, an addition
    and `realspike_ops.lif`, without the memory in between: the normalised current is never stored.
    Equal to ``realspike_ops.reference.batch_norm_lif``.

    Args:
        x: What a convolution gives, time-major; float32, float16 or bfloat16; contiguous or
            channels_last, each read as it lies. A current that is constant over time may be an
            expanded tensor: it is read once.
        weight, bias: Factor and addend of each channel; None: 1 and 0.
        running_mean, running_var: Running statistics. In training they are changed in place, as
            torch does; otherwise x is normalised by them. Both None: always by its own statistics.
        residual: A current of the shape and dtype of x, added behind the norm (the shortcut of a
            residual block).
        training: Normalise by the mean and the biased variance of x over (T, B, ...).
        momentum: The share of the new value in a running statistic; the variance enters it
            unbiased.
        eps: Added to the variance, at least 0.
        amplitude, decay, v_threshold, v_reset, reset, detach_reset, emission, surrogate: The
            neurons; see `realspike_ops.lif`.
        v_init, return_state: The potential before and behind; see `realspike_ops.lif`.
        process_group: Processes over whose x the statistics of training are taken, as
            ``torch.nn.SyncBatchNorm`` does. All call at the same time, also with empty batches.

    Returns:
        y, in the shape, dtype and memory format of x; with ``return_state``, ``(y, v_last)``, where
        v_last is float32. Differentiable with respect to x, residual, weight, bias, amplitude,
        decay, v_threshold and v_init, through both outputs.

    Raises:
        TypeError: if a tensor is not a floating tensor of an accepted dtype.
        ValueError: if a shape, a device or a number is out of range, or in training if there is one
            value per channel; the message names it.

    Note:
        Deterministic, also in the backward pass, for any number of threads. Statistics, products
        and sums are float32, rounded one by one, and the sums over a channel float64
        (docs/batch_norm_lif.md): with the same statistics all devices emit the same spikes. Kept
        for backward: x, the residual, and two numbers per channel; with ``detach_reset=True`` and
        the rectangular surrogate two bits per neuron and timestep in place of the residual.

    Reference:
        Ioffe and Szegedy, "Batch Normalization", ICML 2015; over timesteps together: Zheng et al.,
        "Going Deeper With Directly-Trained Larger Spiking Neural Networks", AAAI 2021. Neurons: Guo
        et al., "Real Spike", ECCV 2022, equations (5) to (8) and (16) to (18).
    """
    check_input(x, "batch_norm_lif")
    if x.dim() < 3:
        raise ValueError(
            f"x must have at least 3 dimensions [T, B, C, ...]; got {checks.shape_text(x)}"
        )
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must both be tensors, or both None")
    for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        _per_channel(name, statistic, x)
        if statistic is not None and statistic.requires_grad:
            raise ValueError(
                f"{name} must not require a gradient: there is none; got one that does"
            )
    if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(f"process_group must be a ProcessGroup; got {type(process_group).__name__}")
    checks.check_flag("training", training)
    checks.check_flag("return_state", return_state)
    momentum = checks.check_number("momentum", momentum)
    eps = checks.check_number("eps", eps, 0.0)
    if residual is not None:
        checks.check_tensor("residual", residual)
        checks.check_dtype("residual", residual, (x.dtype,), ", the dtype of x")
        checks.check_device("residual", residual, "x", x)
        checks.check_shape("residual", residual, x.shape, "the shape of x")
    weight = _per_channel("weight", weight, x)
    bias = _per_channel("bias", bias, x)
    amplitude = None if amplitude is None else check_parameter("amplitude", amplitude, x)
    decays, thresholds, v_init, neuron = check_neurons(
        x, decay, v_threshold, v_reset, reset, detach_reset, emission, surrogate, v_init
    )
    if forward_ad._current_level >= 0:
        checks.check_no_tangent(
            x=x, residual=residual, weight=weight, bias=bias, amplitude=amplitude, decay=decays,
            v_threshold=thresholds, v_init=v_init,
        )  # fmt: skip
    is_plain = is_plain_eager(
        x, residual, weight, bias, running_mean, running_var, amplitude, decays, thresholds, v_init
    )
    if not is_plain:
        checks.check_not_transformed_by_functorch("batch_norm_lif")
    of_x = training or running_mean is None
    if of_x and not (training and process_group) and 0 < x.numel() == x.shape[2]:
        raise ValueError(
            f"x must have more than 1 value per channel when training; got {checks.shape_text(x)}"
        )
    statistics = batch_norm_statistics(
        x, running_mean, running_var, training, momentum, eps, process_group, is_plain
    )
    return _run(
        x, statistics, residual, weight, bias, (amplitude, decays, thresholds), v_init, neuron,
        return_state, is_plain,
    )  # fmt: skip


class Statistics(NamedTuple):
    """What a batch norm normalises by."""

    mean: Tensor  # [C]
    inv_std: Tensor  # [C], 1 / sqrt(variance + eps)
    n: Tensor | None  # float64 [1], how many values they are of; None: they are constants
    group: "dist.ProcessGroup | None"  # whose processes have the values


def batch_norm_statistics(
    x: Tensor,  # [T, B, C, ...]
    running_mean: Tensor | None,  # [C]; changed in place
    running_var: Tensor | None,  # [C]; changed in place
    training: bool,
    momentum: float,
    eps: float,
    group: "dist.ProcessGroup | None",
    is_plain: bool,
) -> Statistics:
    """Return what `batch_norm_lif` normalises x by; in training, running statistics move.

    The arguments have been checked. ``is_plain``: nothing but autograd would intercept an op.
    """
    if not training and running_mean is not None:
        assert running_var is not None
        inv_std = inverse_deviation(running_var.detach().to(torch.float32), eps)
        return Statistics(running_mean.detach().to(torch.float32), inv_std, None, None)
    group = group if training else None
    # The kernels move float32 numbers that are side by side: others are moved in a copy.
    moved_mean, moved_var = _in_float32(running_mean), _in_float32(running_var)
    running = (moved_mean, moved_var, momentum, eps, is_plain)
    if group is None:
        mean, inv_std, n = ops.norm(x, *running)
    else:
        moments = _combined(ops.moments(x, is_plain), group)
        mean, inv_std = ops.statistics(moments, *running)
        n = moments[-1:]
    for old, new in ((running_mean, moved_mean), (running_var, moved_var)):
        if old is not None and new is not None and old is not new:
            old.detach().copy_(new)
    return Statistics(mean, inv_std, n, group)


def _in_float32(running: Tensor | None) -> Tensor | None:
    if running is None or (running.dtype == torch.float32 and running.is_contiguous()):
        return running
    return running.detach().float().contiguous()


def normed_lif(
    x: Tensor,  # [T*B, C, ...], or [T, B, C, ...]
    statistics: Statistics,
    residual: Tensor | None,  # as x
    weight: Tensor | None,  # [C]
    bias: Tensor | None,  # [C]
    is_plain: bool,
    timesteps: int | None,  # T, which divides x.shape[0]; None: x has its own dimension of time
    amplitude: Tensor | None = None,
    **form: "Unpack[NeuronForm]",
) -> Tensor:  # as x
    """Return what `batch_norm_lif` returns, with the statistics of x.

    The arguments have been checked, but those of the neurons. ``is_plain``: nothing but autograd
    would intercept an op.
    """
    leading = 2 if timesteps is None else 1
    amplitude = None if amplitude is None else check_parameter("amplitude", amplitude, x, leading)
    decay, v_threshold, _, neuron = check_neurons(x, **form, v_init=None, leading=leading)
    weight = None if weight is None else checks.in_float32(weight)
    bias = None if bias is None else checks.in_float32(bias)
    if forward_ad._current_level >= 0:
        checks.check_no_tangent(
            x=x, residual=residual, weight=weight, bias=bias, amplitude=amplitude, decay=decay,
            v_threshold=v_threshold,
        )  # fmt: skip
    parameters = (amplitude, decay, v_threshold)
    return _run(
        x, statistics, residual, weight, bias, parameters, None, neuron, False, is_plain, timesteps
    )


def _run(
    x: Tensor,
    statistics: Statistics,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    parameters: tuple[Tensor | None, Tensor | None, Tensor | None],  # amplitude, decay, v_threshold
    v_init: Tensor | None,
    neuron: Neuron,
    return_state: bool,
    is_plain: bool,
    timesteps: int | None = None,  # of x, if it has no dimension of time
) -> Any:
    amplitude, decay, v_threshold = parameters
    save = SAVE_NOTHING
    if requires_gradient(x, residual, weight, bias, *parameters, v_init):
        save = what_to_save(neuron, decay, v_threshold)
    mean, inv_std, n, group = statistics
    run = ops.batch_norm_lif if group is None else _run_in_group
    return run(
        x, residual, mean, inv_std, weight, bias, amplitude, decay, v_threshold, v_init, neuron,
        save, return_state, n, group, is_plain, timesteps,
    )  # fmt: skip


# Collectives in an autograd function of one's own are not for Dynamo. torch.compiler.disable would
# import it, and Triton, with the package.
_run_in_group: Callable[..., Any] = _disable_dynamo(ops.batch_norm_lif)
_combined: Callable[..., Any] = _disable_dynamo(ops.combined)


_NORM_DTYPES = (*checks.FLOATS, torch.float64)


def _per_channel(name: str, parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """Check a tensor of one value per channel of x; return it in float32."""
    if parameter is None:
        return None
    checks.check_tensor(name, parameter)
    checks.check_dtype(name, parameter, _NORM_DTYPES)
    checks.check_device(name, parameter, "x", x)
    checks.check_shape(name, parameter, x.shape[2:3], "the channels of x, x.shape[2]")
    return checks.in_float32(parameter)
