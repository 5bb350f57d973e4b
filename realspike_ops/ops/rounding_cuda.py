"""Whether this Triton rounds as other devices do."""

import functools

import torch


def check_rounds_separately(capability: tuple[int, int], version: str) -> None:
    """Refuse the one Triton whose machine code for newer cards fuses products and sums.

    Its ptxas (12.9) makes FFMA2 of mul.rn.f32x2 and add.rn.f32x2, whatever it is told about fusion;
    a spike would depend on the card. From ptxas 13.1 on, which Triton 3.7 brings, it does not.
    """
    if capability >= (10, 0) and tuple(map(int, version.split(".")[:2])) < (3, 7):
        raise RuntimeError(
            f"realspike_ops: Triton {version} rounds a product and a sum together on compute "
            f"capability {capability[0]}.{capability[1]}, so that spikes would differ from those "
            "of other devices; PyTorch 2.12 and newer bring a Triton that does not"
        )


@functools.cache
def check_devices() -> None:
    """Refuse the devices of this machine, once, before the first launch that rounds.

    Raises:
        RuntimeError: if Triton would round a product and a sum together on one of them.
    """
    import triton  # when the first call arrives, not with the package

    for index in range(torch.cuda.device_count()):
        check_rounds_separately(torch.cuda.get_device_capability(index), triton.__version__)
