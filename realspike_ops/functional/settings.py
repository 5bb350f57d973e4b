"""The keyword arguments of the documented functions as types, each set written once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class NeuronDynamics(TypedDict, total=False):
    """The arguments of `realspike_ops.lif` that matter in inference."""

    decay: float | Tensor  # a tensor: [1], [C, 1, 1] or [C, H, W]
    v_threshold: float | Tensor  # a tensor: as decay
    v_reset: float | None
    reset: str | None
    emission: str


class NeuronForm(NeuronDynamics, total=False):
    """The arguments of `realspike_ops.lif` that make its neurons."""

    detach_reset: bool
    surrogate: str | tuple[str, float]


class BatchNormLifSettings(NeuronForm, total=False):
    """The settings of `realspike_ops.batch_norm_lif` but what it returns."""

    residual: Tensor | None  # [T, B, C, ...]
    training: bool
    momentum: float
    eps: float
    amplitude: Tensor | None  # [1], [C, 1, 1] or [C, H, W]
    v_init: Tensor | None  # [B, C, ...]
    process_group: "ProcessGroup | None"


class ConvSettings(TypedDict, total=False):
    """How `realspike_ops.unshared_spike_conv` reads spikes and weights."""

    stride: int | tuple[int, int]
    padding: int | tuple[int, int] | str
    dilation: int | tuple[int, int]
    amplitude: Tensor | None  # [Cin, H, W]
    scale: Tensor | None  # [Cout]
    check_binary: bool | None
    algorithm: str


class ConvLifSettings(NeuronDynamics, ConvSettings, total=False):
    """The settings of `realspike_ops.unshared_spike_conv_lif`."""

    v_init: Tensor | None  # [B, Cout, OH, OW]
    maps: int
    signed: bool
    added: Sequence[Tensor | tuple[Tensor, Tensor]]


class LifArguments(NeuronForm, total=False):
    """All that a layer of neurons gives to `realspike_ops.lif` beside its input."""

    amplitude: Tensor | None  # [1], [C, 1, 1] or [C, H, W]
