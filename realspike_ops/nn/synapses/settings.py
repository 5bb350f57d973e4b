"""The arguments of layers of synapses as types, each set written once."""

from typing import TypedDict

from torch import Tensor

from realspike_ops.functional.settings import ConvSettings


class Switches(TypedDict, total=False):
    """The keyword arguments of every layer."""

    fold_scale: bool
    check_binary: bool | None
    algorithm: str


class StorageSettings(Switches, total=False):
    """The keyword arguments of an unshared layer."""

    storage: str


class LayerSettings(Switches, total=False):
    """The arguments of a layer beside its tensors."""

    stride: int | tuple[int, int]
    padding: int | tuple[int, int] | str
    dilation: int | tuple[int, int]
    input_size: int | tuple[int, int]


class WeightSettings(LayerSettings, total=False):
    """The keyword arguments of `from_weight`."""

    scale: Tensor | None  # [Cout]
    amplitude: Tensor | None  # [Cin, H, W]


class Reading(TypedDict):
    """How a layer reads its map."""

    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    check_binary: bool | None
    algorithm: str


class ConvArguments(ConvSettings):
    """All that a layer gives to `realspike_ops.unshared_spike_conv`."""

    spikes: Tensor
    weight: Tensor
    bias: Tensor | None
