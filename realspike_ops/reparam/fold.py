"""Folding: every run of linear layers between two LIF layers becomes one layer of synapses."""

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops.nn import (
    MeanOverTime,
    RealSpikeLIF,
    SpikeConv2d,
    SpikeLinear,
    SumOverTime,
    UnsharedSpikeConv,
)
from realspike_ops.nn.fold import check_folded_amplitude
from realspike_ops.reparam.graph import Layer, ReparameterizationError, chain_of

_IGNORED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


@torch.no_grad()
def reparameterize(model: nn.Module, example_input: Tensor) -> nn.Sequential:
    """Return a network that emits only 0 and 1 and whose weight layers only add.

    Every amplitude is folded into the weights that read it, every batch norm behind them into the
    same weights; the outputs do not change but for the order of float32 sums (Eq. 11 to 13).
    Layer- and channel-wise amplitudes become `SpikeConv2d`, element-wise ones `UnsharedSpikeConv`,
    the classifier `SpikeLinear`. What lies before the first LIF layer reads real values (the
    encoding) and is left as it is.

    Args:
        model: A trained network: a chain of convolution, batch norm, `RealSpikeLIF`, flatten,
            linear, dropout, `DirectEncoding` and `MeanOverTime`, called as modules or (flatten,
            dropout) as functions. It is not changed; it is folded as in eval mode.
        example_input: An input of the shape that the network will see; the batch size is free.

    Returns:
        An ``nn.Sequential`` in eval mode, on the device of the model. Its layers are named as in
        ``model``, with "." replaced by "_".

    Raises:
        TypeError: if the arguments are not a module and a tensor.
        ReparameterizationError: for anything that it cannot fold exactly, named.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
    checks.check_tensor("example_input", example_input)
    # A copy, so that neither the mode of the model nor its encoding layers are shared.
    model = copy.deepcopy(model).eval()
    folded: list[tuple[str, nn.Module]] = []
    source: RealSpikeLIF | None = None
    pending: list[Layer] = []
    for layer in chain_of(model, example_input):
        if isinstance(layer.module, RealSpikeLIF):
            folded += _fold_run(source, pending)
            folded.append((layer.name, _binary(layer.module)))
            source, pending = layer.module, []
        else:
            pending.append(layer)
    if source is None:
        raise ReparameterizationError("the model has no RealSpikeLIF layer: nothing emits spikes")
    folded += _fold_run(source, pending)
    return nn.Sequential(_unique_names(folded)).eval()


def _unique_names(layers: list[tuple[str, nn.Module]]) -> "OrderedDict[str, nn.Module]":
    """Name the layers as in the model, "." replaced; one that is called again gets a number."""
    named: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in layers:
        unique = name = name.replace(".", "_")
        calls = 1
        while unique in named:
            calls += 1
            unique = f"{name}_call{calls}"
        named[unique] = module
    return named


def _binary(lif: RealSpikeLIF) -> RealSpikeLIF:
    return RealSpikeLIF(lif.timesteps, **lif.form)


def _fold_run(source: RealSpikeLIF | None, layers: list[Layer]) -> list[tuple[str, nn.Module]]:
    """Return what becomes of the layers that read the spikes of `source`."""
    if source is None:
        return [(layer.name, layer.module) for layer in layers]
    run = [layer for layer in layers if not isinstance(layer.module, _IGNORED)]
    if any(isinstance(layer.module, nn.Conv2d) for layer in run):
        return _fold_convolution(source, run)
    if any(isinstance(layer.module, nn.Linear) for layer in run):
        return _fold_linear(source, run)
    if source.amplitude is None:
        return [(layer.name, layer.module) for layer in run]
    last = f"{run[-1].name!r}" if run else "a LIF layer"
    raise ReparameterizationError(
        f"no weights follow {last}: there is nothing to fold the amplitude into"
    )


def _refuse(layer: Layer, reason: str):
    raise ReparameterizationError(
        f"{layer.name!r} ({type(layer.module).__name__}) reads the spikes of a LIF layer and "
        f"cannot be folded: {reason}"
    )


def _fold_convolution(source: RealSpikeLIF, run: list[Layer]) -> list[tuple[str, nn.Module]]:
    """[convolution] or [convolution, batch norm]"""
    conv = run[0]
    if not isinstance(conv.module, nn.Conv2d):
        _refuse(conv, "only a convolution, then a batch norm, can stand between two LIF layers")
    for extra in run[2:] or [
        layer for layer in run[1:] if not isinstance(layer.module, _BATCH_NORMS)
    ]:
        _refuse(extra, "only a batch norm can stand between a convolution and the next LIF layer")
    batch_norm = run[1].module if len(run) == 2 else None
    amplitude, input_size = source.amplitude, conv.input_shape[2:]
    try:
        granularity = (
            "none"
            if amplitude is None
            else check_folded_amplitude(amplitude, conv.module.in_channels, input_size)
        )
        if granularity == "element":
            folded = UnsharedSpikeConv.from_conv2d(conv.module, amplitude, input_size, batch_norm)
        else:
            folded = SpikeConv2d.from_conv2d(conv.module, amplitude, batch_norm)
    except ValueError as error:
        _refuse(conv, str(error))
    return [(conv.name, folded)]


def _fold_linear(source: RealSpikeLIF, run: list[Layer]) -> list[tuple[str, nn.Module]]:
    """flatten, linear, batch norm, mean over time. The mean commutes with all of them, so it may
    stand anywhere; it becomes a sum, its 1/T part of the weights."""
    folded: list[tuple[str, nn.Module]] = []
    linear = batch_norm = mean = None
    for layer in run:
        module = layer.module
        if isinstance(module, nn.Flatten) and linear is None:
            if (module.start_dim, module.end_dim) != (1, -1):
                _refuse(layer, "only flatten(start_dim=1) keeps the samples apart")
            folded.append((layer.name, module))
        elif isinstance(module, nn.Linear) and linear is None:
            linear = layer
        elif isinstance(module, _BATCH_NORMS) and linear is not None and batch_norm is None:
            batch_norm = module
        elif isinstance(module, MeanOverTime) and mean is None:
            mean = layer
        else:
            _refuse(
                layer, "only flatten, one linear layer, a batch norm and the mean over time can"
            )
    if mean is not None and mean.module.timesteps != source.timesteps:
        _refuse(mean, f"it averages {mean.module.timesteps} timesteps of {source.timesteps}")
    if len(linear.input_shape) != 2:
        _refuse(linear, f"it reads {len(linear.input_shape) - 1} dimensions: flatten them first")
    amplitude = source.amplitude
    try:
        if amplitude is not None:
            amplitude = amplitude.expand(run[0].input_shape[1:])
        scale = 1.0 if mean is None else 1.0 / source.timesteps
        layer = SpikeLinear.from_linear(linear.module, amplitude, batch_norm, scale)
    except (ValueError, RuntimeError) as error:
        _refuse(linear, str(error))
    folded.append((linear.name, layer))
    if mean is not None:
        folded.append((mean.name, SumOverTime(source.timesteps)))
    return folded
