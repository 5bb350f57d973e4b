"""Which batch norms of a network run in one op with the LIF neurons behind them."""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from realspike_ops import _checks as checks
from realspike_ops.nn import NormLIF, RealSpikeLIF, unfuse
from realspike_ops.nn.neurons.fused_norm import FUSED, REPORT, make_fused
from realspike_ops.nn.neurons.normed_current import AS_RESIDUAL, CHANGED
from realspike_ops.reparam.trace.trace import copied_as_called

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FusionReport:
    """What `fuse` did with the layers of a network, by their names.

    Attributes:
        fused: The LIF layers that run in one op with a batch norm, by the name of the norm.
        left: Why any other batch norm, or LIF layer, is as it was.
    """

    fused: dict[str, tuple[str, ...]]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{norm} -> {', '.join(lifs)}" for norm, lifs in self.fused.items()]
        lines += [f"{name} is left: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def fuse(model: nn.Module, example_input: Tensor) -> nn.Module:
    """Let LIF neurons compute the batch norm before them, and the addition between, in one op.

    Where a batch norm's output goes into a `RealSpikeLIF`, directly or through one addition of a
    tensor of its shape (the shortcut of a residual block), the layers run as
    `realspike_ops.batch_norm_lif`. The model is changed in place: such norms get another class, and
    return a tensor whose values nobody computes unless somebody else than the neurons reads them.
    So ``forward`` stays the user's, whatever it does for other inputs or in another mode;
    parameters, ``state_dict``, hooks, copies and pickles are as before; `reparameterize`, `convert`
    and the like see the layers that were there. `unfuse` takes it back.

    Args:
        model: Any network; a copy of it is run on ``example_input`` to see who reads what.
        example_input: An input of the shape that the network will see.

    Returns:
        ``model``. `fusion_report` says which layers are fused, and why the others are not.

    Warns:
        UserWarning: if nothing could be fused, with the reasons.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the model cannot be copied (lazy layers need to be run once), or run on
            ``example_input``.
    """
    checks.check_module("model", model)
    checks.check_values("example_input", example_input)
    unfuse(model)
    names = {module: name for name, module in model.named_modules()}
    in_norm_lif = {
        m for norm_lif in names if isinstance(norm_lif, NormLIF) for m in norm_lif.modules()
    }
    norms = [m for m in names if isinstance(m, _BatchNorm) and m not in in_norm_lif]
    left = {norm: reason for norm in norms if (reason := _why_never(norm)) is not None}
    while True:
        calls = _calls(model, [norm for norm in norms if norm not in left], example_input)
        failed = {n: why for n in calls if (why := _why_left(calls[n], names)) is not None}
        # A norm that is the residual of one which is left may yet take a residual itself.
        firm = {n: why for n, why in failed.items() if [AS_RESIDUAL] not in calls[n]}
        if not failed:
            break
        left |= firm or failed
    fused = {}
    for norm, found in calls.items():
        lifs = tuple(dict.fromkeys(call[0] for call in found))
        make_fused(norm, lifs)
        fused[names[norm]] = tuple(names[lif] for lif in lifs)
    reached = {call[0] for found in calls.values() for call in found} | in_norm_lif
    left |= {
        lif: "no batch norm, or sum of one and a residual, goes into it alone"
        for lif in names
        if isinstance(lif, RealSpikeLIF) and lif not in reached
    }
    report = FusionReport(fused, {names[module]: reason for module, reason in left.items()})
    setattr(model, REPORT, report)
    _log.info("%s", report)
    if not fused:
        warnings.warn(f"nothing is fused: {report}", stacklevel=2)
    return model


def fusion_report(model: nn.Module) -> FusionReport:
    """Return what `fuse` did with a model, or with the one that it is a copy of.

    Raises:
        ValueError: if it was not fused.
    """
    report = getattr(model, REPORT, None)
    if not isinstance(report, FusionReport):
        raise ValueError("model must be what realspike_ops.fuse returned; it was not fused")
    return report


def _why_never(norm: nn.Module) -> str | None:
    if type(norm) not in FUSED:
        known = ", ".join(kind.__name__ for kind in FUSED)
        return f"it is a {type(norm).__name__}; only {known} themselves are fused"
    return None


def _calls(model: nn.Module, norms: list[nn.Module], example: Tensor) -> dict[nn.Module, list[Any]]:
    """Return who reads what each call of a norm returns, or why the call returned it as always.

    Readers are LIF layers, and functions by name.
    """
    copies, calls, error = {}, {}, None
    # In training a single sample may be too few.
    for training in (model.training, False):
        with torch.inference_mode(False):
            copied, copies = copied_as_called(model)
        calls = {norm: [] for norm in norms}
        if not training:
            copied.eval()
        for norm in norms:
            make_fused(copies[norm], (), calls[norm])
        for module in copied.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.eval()  # the other processes are not here
        try:
            _run(copied, example)
            break
        except Exception as raised:
            error = error or raised
    else:
        raise ValueError(f"the model cannot be run on example_input: {error}") from error
    originals = {copy: module for module, copy in copies.items()}
    return {
        norm: [
            call
            if isinstance(call, str)
            else [originals.get(reader, reader) for reader in call.all_readers()]
            for call in calls[norm]
        ]
        for norm in norms
    }


def _run(copied: nn.Module, example: Tensor) -> None:
    devices = [example.device] if example.is_cuda else []
    # With gradients: where there are some, autograd.Functions have a say.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
        x = example.clone().detach()  # one of inference_mode itself can require no gradient
        copied(x.requires_grad_(x.is_floating_point()).clone())


def _why_left(calls: list[Any], names: dict[nn.Module, str]) -> str | None:
    if not calls:
        return "forward() does not call it on example_input"
    for call in calls:
        if isinstance(call, str):
            return call
        if len(call) == 1 and isinstance(call[0], RealSpikeLIF) and call[0] in names:
            continue
        if CHANGED in call:
            return (
                "what it reads (its input, its parameters, or the residual) is changed in place "
                "before its output is read"
            )
        by = ", ".join(r if isinstance(r, str) else repr(names.get(r, r)) for r in call)
        if len(call) > 1:
            return f"its output is read more than once, by {by}"
        return f"its output is read by {by}, not by neurons" if call else "nobody reads its output"
    return None
