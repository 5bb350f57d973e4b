"""How far a folded network is from the trained one, layer by layer."""

import json
import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops._checks import shape_text
from realspike_ops.nn import RealSpikeLIF
from realspike_ops.nn.time import split_time
from realspike_ops.reparam.check.batch_check import warn_if_images_meet
from realspike_ops.reparam.check.batches import batches_of
from realspike_ops.reparam.check.bound import current_bounds
from realspike_ops.reparam.check.html import table
from realspike_ops.reparam.network import FoldedNetwork


@dataclass
class LayerReport:
    """One LIF layer: trained against folded, over all samples."""

    name: str
    max_current_error: float = 0.0  # largest difference of the input currents
    # Largest current error as a fraction of its bound, over the samples without an earlier flip.
    error_over_bound: float | None = None
    flipped_spikes: int = 0  # neuron-timesteps that fire in one network only
    spikes: int = 0  # of the folded network
    neuron_timesteps: int = 0

    @property
    def firing_rate(self) -> float:
        return self.spikes / max(1, self.neuron_timesteps)


@dataclass
class VerificationReport:
    """The result of `verify`; print it, or store `to_json()`."""

    samples: int = 0  # see `samples_of`
    max_logit_error: float = 0.0  # largest difference of the outputs
    # One per row of the output (sample, or sample and timestep), or per pixel of output maps.
    predictions: int = 0
    agreement: float = 1.0  # fraction of equal predictions
    # The same ratio as that of a layer, for the outputs of the samples without a flip.
    error_over_bound: float | None = None
    layers: list[LayerReport] = field(default_factory=list)

    @property
    def flipped_spikes(self) -> int:
        return sum(layer.flipped_spikes for layer in self.layers)

    @property
    def within_bounds(self) -> bool:
        """Whether float32 rounding explains every difference before the first flip (needs
        ``verify(..., bounds=True)``)."""
        ratios = [self.error_over_bound, *(layer.error_over_bound for layer in self.layers)]
        return all(ratio is not None and ratio <= 1 for ratio in ratios)

    def to_json(self) -> str:
        layers = [asdict(layer) | {"firing_rate": layer.firing_rate} for layer in self.layers]
        content = asdict(self) | {"flipped_spikes": self.flipped_spikes, "layers": layers}
        return json.dumps(content, indent=2)

    def _of_bound(self) -> str:
        ratio = self.error_over_bound
        return "" if ratio is None else f" ({_percent(ratio)} of its bound where none flipped)"

    def _heading(self) -> str:
        return (
            f"{self.samples} samples: same prediction for {self.agreement:.2%}, largest logit "
            f"difference {self.max_logit_error:.3g}{self._of_bound()}, "
            f"{self.flipped_spikes} flipped spikes"
        )

    def _rows(self) -> list[tuple[str, ...]]:
        """Return the titles and the layers, as texts."""
        return [
            ("LIF layer", "current error", "of bound", "flipped", "neuron-steps", "rate"),
            *(
                (
                    layer.name, f"{layer.max_current_error:.3g}", _percent(layer.error_over_bound),
                    str(layer.flipped_spikes), str(layer.neuron_timesteps),
                    f"{layer.firing_rate:.2%}",
                )
                for layer in self.layers
            ),
        ]  # fmt: skip

    def __str__(self) -> str:
        widths = (">14", ">10", ">9", ">14", ">8")
        return "\n".join(
            [self._heading()]
            + [f"{name:<24}" + "".join(map(format, cells, widths)) for name, *cells in self._rows()]
        )

    def _repr_html_(self) -> str:
        titles, *rows = self._rows()
        return table(self._heading(), titles, rows)


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2%}"


@contextmanager
def record_currents(model: nn.Module):
    """Collect (layer name, LIF module, input current) in the order of execution."""
    calls: list[tuple[str, Any, Tensor]] = []  # the module is a RealSpikeLIF
    handles = [
        module.register_forward_pre_hook(
            # A copy: the model may change the current in place behind the neurons.
            lambda module, args, kwargs, name=name: calls.append(
                (name, module, (args[0] if args else kwargs["x"]).detach().clone())
            ),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
        if isinstance(module, RealSpikeLIF)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _folded_ones(calls: list, folded: nn.Module) -> list:
    """Return the calls of LIF layers that are in the folded network: those that something reads."""
    count: Counter[str] = Counter()
    known = set(getattr(folded, "neurons", {}).values())
    kept = []
    for name, lif, current in calls:
        count[name] += 1
        if not known or (name, count[name]) in known:
            kept.append((name, lif, current))
    return kept


def binary_spikes(lif: RealSpikeLIF, current: Tensor) -> Tensor:  # [T*B, ...] -> [T*B, ...]
    """Return the 0/1 spikes that the layer emits for a current, whatever its amplitude."""
    neurons = lif.fitted(current.dim() - 1) | {"amplitude": None}
    return functional.lif(split_time(current, lif.timesteps), **neurons).flatten(0, 1)


def samples_of(batch: Tensor, calls: list[tuple[str, RealSpikeLIF, Tensor]]) -> int:
    """Return B, from the T*B rows that reach the first LIF layer.

    A network may repeat images [B] over time, or read frames [T*B].
    """
    if not calls:
        return batch.shape[0]
    _, lif, current = calls[0]
    return current.shape[0] // lif.timesteps


@contextmanager
def eval_mode(*models: nn.Module):
    were_training = [[m for m in model.modules() if m.training] for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for modules in were_training:
            for module in modules:
                module.training = True


@torch.no_grad()
def verify(
    model: nn.Module, folded: nn.Module, data, *, bounds: bool = False
) -> VerificationReport:
    """Run the trained and the folded network side by side and report where they differ.

    Args:
        model: The trained network; run in eval mode, restored afterwards.
        folded: The network that `reparameterize` made of it.
        data: A batch, or an iterable of batches, or of (batch, labels) pairs such as a DataLoader.
        bounds: Also compute, for every neuron and timestep, the largest difference that rounding
            can make, and report the errors as fractions of it (docs/reparam.md). It costs a pass
            of the trained network in float64, and needs a `FoldedNetwork`.

    A prediction is the largest of the values along the output's second dimension, the classes, or
    the sign where there is one value.

    Warns:
        UserWarning: if the outputs of an image depend on what else is in its batch, with what is
            missing.

    Raises:
        TypeError: if ``model`` or ``folded`` is not a module, or ``data`` holds other than tensors.
        ValueError: if the two do not run the same number of LIF layers or return other shapes, if
            ``data`` yields no batch, or one of another shape.
    """
    for name, network in (("model", model), ("folded", folded)):
        checks.check_module(name, network)
    checks.check_flag("bounds", bounds)
    if bounds and not isinstance(folded, FoldedNetwork):
        raise TypeError(f"folded must be a FoldedNetwork for bounds; got {type(folded).__name__}")
    report = VerificationReport()
    agreeing = 0
    checked = False
    with eval_mode(model, folded):
        for batch, labels in batches_of(data, getattr(folded, "input_shape", None)):
            if not checked:
                warn_if_images_meet(model, batch, labels, stacklevel=3)
                checked = True
            with record_currents(model) as trained_calls:
                trained_outputs = _tensors_in(model(batch))
            with record_currents(folded) as folded_calls:
                folded_outputs = _tensors_in(folded(batch))
            trained_calls = _folded_ones(trained_calls, folded)
            if len(trained_calls) != len(folded_calls):
                raise ValueError(
                    f"folded must have the LIF layers of model: {len(trained_calls)} were run in "
                    f"model, {len(folded_calls)} in folded"
                )
            outputs = [[out.shape for out in o] for o in (trained_outputs, folded_outputs)]
            currents = [[x.shape for *_, x in calls] for calls in (trained_calls, folded_calls)]
            for kind, (own, others) in (("outputs", outputs), ("currents", currents)):
                if own != others:
                    raise ValueError(
                        f"folded must have the {kind} of model, of shapes {_shapes_text(own)}; "
                        f"got {_shapes_text(others)}"
                    )
            if not report.layers:
                report.layers = [LayerReport(name) for name, _, _ in trained_calls]
            pairs = [
                _Pair(
                    current,
                    _in_units(folded_lif, folded_current),
                    *_spikes_of(lif, current, folded_lif, folded_current),
                )
                for (_, lif, current), (_, folded_lif, folded_current) in zip(
                    trained_calls, folded_calls, strict=True
                )
            ]
            for layer, pair in zip(report.layers, pairs, strict=True):
                _compare(layer, pair)
            pairs_of_outputs = list(zip(trained_outputs, folded_outputs, strict=True))
            errors = [(a.double() - b.double()).abs() for a, b in pairs_of_outputs]
            if bounds and isinstance(folded, FoldedNetwork) and batch.shape[0] > 0:
                timesteps = [lif.timesteps for _, lif, _ in trained_calls]
                _compare_with_bounds(
                    report, pairs, timesteps, errors,
                    current_bounds(model, folded, batch, [pair.spikes for pair in pairs]),
                )  # fmt: skip
            for error in errors:
                largest = error.max().item() if error.numel() else 0.0
                report.max_logit_error = _larger(report.max_logit_error, largest)
            for trained_out, folded_out in pairs_of_outputs:
                equal = _predictions(trained_out) == _predictions(folded_out)
                agreeing += equal.sum().item()
                report.predictions += equal.numel()
            report.samples += samples_of(batch, trained_calls)
    report.agreement = agreeing / max(1, report.predictions)
    return report


def _tensors_in(outputs) -> list[Tensor]:
    """Return the one output of a network, or all those in its tuple or dictionary."""
    return [out for out in pytree.tree_leaves(outputs) if isinstance(out, Tensor)]


def _shapes_text(shapes) -> str:
    return ", ".join(map(shape_text, shapes)) or "none"


def _predictions(out: Tensor) -> Tensor:  # [N, ...]
    """Return the class along the second dimension: of [N, K] one per row, of [N, K, H, W] one per
    pixel. One value alone says yes or no by its sign."""
    alone = out.dim() < 2 or out.shape[1] == 1
    return out > 0 if alone else out.argmax(1)


def _larger(a: float, b: float) -> float:
    """Return the larger number, or NaN if `b` is NaN: a network that computes NaN is not right."""
    return b if b > a or math.isnan(b) else a


class _Pair(NamedTuple):
    """The currents and the spikes of one LIF layer in both networks; [T*B, ...]."""

    current: Tensor
    folded_current: Tensor
    spikes: Tensor
    folded_spikes: Tensor


def _in_units(folded_lif: RealSpikeLIF, current: Tensor) -> Tensor:
    """Return the current in the units of the trained network, where it is in steps of a scale."""
    scale = getattr(folded_lif, "current_scale", None)
    return current if scale is None else current * scale


def _spikes_of(lif, current, folded_lif, folded_current) -> tuple[Tensor, Tensor]:
    if current.numel() == 0:
        return current, folded_current
    return binary_spikes(lif, current), binary_spikes(folded_lif, folded_current)


def _compare(layer: LayerReport, pair: _Pair) -> None:
    if pair.current.numel() == 0:
        return
    error = (pair.current - pair.folded_current).abs().max().item()
    layer.max_current_error = _larger(layer.max_current_error, error)
    layer.flipped_spikes += int((pair.spikes != pair.folded_spikes).sum().item())
    layer.spikes += int(pair.folded_spikes.count_nonzero().item())
    layer.neuron_timesteps += pair.folded_spikes.numel()


def _compare_with_bounds(report, pairs, timesteps, output_errors, bounds) -> None:
    """Compare the samples whose spikes were equal so far: a flip is a difference of its own."""
    equal = None  # [B]
    for layer, pair, T, bound in zip(report.layers, pairs, timesteps, bounds, strict=False):
        error = split_time((pair.current - pair.folded_current).abs().cpu(), T)  # [T, B, ...]
        if equal is None:
            equal = torch.ones(error.shape[1], dtype=torch.bool, device=error.device)
        ratio = _largest_ratio(error[:, equal], split_time(bound, T)[:, equal])
        layer.error_over_bound = _larger(layer.error_over_bound or 0.0, ratio)
        flips = split_time((pair.spikes != pair.folded_spikes).cpu(), T)
        equal &= ~flips.transpose(0, 1).flatten(1).any(1)
    for error, bound in zip(output_errors, bounds[len(pairs) :], strict=True):
        assert equal is not None  # there are neurons
        # [T*B, ...], or [B, ...] averages.
        error, bound = (t.cpu().unflatten(0, (-1, len(equal))) for t in (error, bound))
        ratio = _largest_ratio(error[:, equal], bound[:, equal])
        report.error_over_bound = _larger(report.error_over_bound or 0.0, ratio)


def _largest_ratio(error: Tensor, bound: Tensor) -> float:
    if error.numel() == 0:
        return 0.0
    return torch.where(error == 0, 0.0, error.double() / bound).max().item()
