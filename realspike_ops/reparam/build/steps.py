"""The units of a current, and the numbers that its weights are rounded to."""

from dataclasses import dataclass

from torch import Tensor

from realspike_ops.functional.quantize_weight import in_steps, int8_steps

# Below it float32 holds every integer, so that sums of integers are exact in any order.
EXACT_SUMS = 2**24


@dataclass(frozen=True)
class Steps:
    """The units of a current.

    Attributes:
        scale: [C], the size of a step: weights are stored as int8 steps, and all that is added to
            them is in steps too; None: the units of the trained network.
        finest: All numbers, but for int8, are multiples of it, in steps; None: they are as exact as
            their type.
    """

    scale: Tensor | None = None
    finest: float | None = None

    def own(self, channels: range) -> "Steps":
        """Return those of some of the channels."""
        scale = None if self.scale is None else self.scale[channels.start : channels.stop]
        return Steps(scale, self.finest)

    def of(self, numbers: Tensor) -> Tensor:  # [C, ...] float64 -> the same
        """Return numbers of the trained network in these units."""
        if self.scale is not None:
            numbers = in_steps(numbers, self.scale.view(-1, *(1,) * (numbers.dim() - 1)))
        return numbers if self.finest is None else (numbers / self.finest).round() * self.finest

    def of_weights(self, row: Tensor) -> Tensor:  # [OW, G, KH, KW, Cin/G, Cout/G] float64
        """Return weights as they are stored: int8 ones are uint8, 128 added."""
        if self.scale is None:
            return self.of(row)
        return int8_steps(row, self.scale.view(row.shape[1], -1))
