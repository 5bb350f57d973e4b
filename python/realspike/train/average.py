"""An average of the weights that is kept without waiting for the device."""

import itertools

import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor


class Average(EMAWeightAveraging):
    """average = decay * average + (1 - decay) * weights after every step; the first is the weights.

    Lightning's, which asks a tensor on the device how often it was called, in whole numbers of
    Python and all tensors at once. Whole numbers are not averaged: they are those of now.
    """

    def __init__(self, decay: float):
        super().__init__(decay=decay)
        self.decay = decay

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step <= self._latest_update_step:
            return
        average, aten = self._average_model, torch.ops.aten
        assert average is not None
        kept, now = _tensors(average.module), _tensors(pl_module)
        if self._latest_update_step == 0:
            aten._foreach_copy_.default(kept, now)
        else:
            averaged = [n for n, tensor in enumerate(kept) if not _is_whole(tensor)]
            a, b = [kept[n] for n in averaged], [now[n] for n in averaged]
            aten._foreach_mul_.Scalar(a, self.decay)
            aten._foreach_add_.List(a, aten._foreach_mul.Scalar(b, 1 - self.decay))
            for old, new in zip(kept, now, strict=True):
                # Such as an index: the mean of a number and itself may be rounded to another one.
                if _is_whole(old):
                    old.copy_(new)
        average.n_averaged += 1
        self._latest_update_step = trainer.global_step


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in itertools.chain(module.parameters(), module.buffers())]
