"""Why amplitudes move or stay: the gradient of an amplitude beside its noise, and what moved.

    python bench/amplitude_gradients.py RUN [RUN ...] [--batches 100]

For the network of every run, and for its start, the gradients of the amplitudes are taken over
batches of its own training images, augmented as in training. The mean over the batches is the
gradient, the deviation from batch to batch its noise. Steps of a batch each must be added up until
the first exceeds the second: (noise / gradient)^2 of them. The gradient of an amplitude that a
channel or a layer shares is the sum of those of its neurons.

What moved is split where the images are flipped: no amplitude has then a reason to differ from that
of its mirror image, so that what does is noise. The rest is gradient and as much noise again.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from realspike import data
from realspike.data.loader import ResumableLoader
from realspike.data.preprocess import Preprocess
from realspike.inspect import trained_file
from realspike.networks import build
from torch import Tensor, nn

import realspike_ops as rso

SHARED = {"element": (), "channel": (1, 2), "layer": (0, 1, 2)}  # axes of [C, H, W]


class Moments:
    """Sums over batches of the gradients of one layer's amplitudes, and of their squares."""

    def __init__(self):
        self.count, self.sum, self.squares = 0, 0.0, 0.0

    def add(self, gradient: Tensor) -> None:
        self.count += 1
        self.sum = self.sum + gradient
        self.squares = self.squares + gradient**2

    def powers(self) -> Tensor:
        """Return [2]: the sums over the amplitudes of gradient^2, unbiased, and of noise^2."""
        mean = self.sum / self.count
        noise = (self.squares - self.count * mean**2) / (self.count - 1)
        return torch.stack([(mean**2 - noise / self.count).sum(), noise.sum()])


def neurons_of(network: nn.Module) -> dict[str, rso.RealSpikeLIF]:
    return {n: m for n, m in network.named_modules() if isinstance(m, rso.RealSpikeLIF)}


def gradients(network: nn.Module, batches, count: int) -> dict[str, dict[str, Moments]]:
    """Return the moments by what shares an amplitude, and by layer."""
    lifs = neurons_of(network)
    found = {kind: {name: Moments() for name in lifs} for kind in SHARED}
    network.train()
    for _, (images, labels) in zip(range(count), batches, strict=False):
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        for name, lif in lifs.items():
            gradient = lif.amplitude.grad.double()  # [C, H, W]
            for kind, axes in SHARED.items():
                shared = gradient.sum(axes, keepdim=True) if axes else gradient
                found[kind][name].add(shared)
    return found


def training_batches(trained: trained_file.Trained):
    config = trained.config
    splits = data.load(config).hold_out(config.data.held_out)
    splits = splits.share(config.data.fraction, config.training.seed)
    size = config.network_config().image_size
    preprocess = Preprocess(config.data, splits.mean, splits.std, size)
    loader = ResumableLoader(splits.train, config.data.batch_size, config.training.seed)
    for epoch in range(10**6):
        loader.batch_sampler.sampler.set_epoch(epoch)
        for number, (samples, labels) in enumerate(loader):
            yield preprocess(samples, 10**6 * epoch + number), labels


def as_element_wise(trained: trained_file.Trained, weights: dict[str, Tensor]) -> nn.Module:
    """Return the network with an amplitude per element, equal to what it was trained with."""
    config = trained.config.replaced(granularity="element").network_config()
    network = build(config, trained.config.training.seed)
    state = network.state_dict()
    state |= {name: tensor.expand(state[name].shape) for name, tensor in weights.items()}
    network.load_state_dict(state)
    return network


def print_gradients(title: str, found: dict[str, dict[str, Moments]]) -> None:
    print(f"\n{title}\n")
    print("| amplitudes | how many | gradient, rms | noise, rms | noise / gradient | steps |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, by_layer in found.items():
        signal, noise = sum(moments.powers() for moments in by_layer.values()).tolist()
        number = sum(moments.sum.numel() for moments in by_layer.values())
        ratio = (noise / signal) ** 0.5 if signal > 0 else float("inf")
        print(
            f"| {kind} | {number:,} | {(max(signal, 0) / number) ** 0.5:.1e} | "
            f"{(noise / number) ** 0.5:.1e} | {ratio:.1f} | {ratio**2:,.0f} |"
        )


def print_movement(lifs: dict[str, rso.RealSpikeLIF]) -> None:
    """Print how far element-wise amplitudes are from 1, and how much of it a mirror has as well."""
    print("\n| neurons | mean | deviation | of channels | mirrored | gradient, at least noise |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = {"all": [*lifs.values()], **{name: [lif] for name, lif in lifs.items()}}
    for name, chosen in rows.items():
        moved = [lif.amplitude.detach().double() - 1 for lif in chosen]  # [C, H, W]
        inside = [a - a.mean((1, 2), keepdim=True) for a in moved]
        even = torch.cat([((a + a.flip(2)) / 2).flatten() for a in inside]).pow(2).mean()
        odd = torch.cat([((a - a.flip(2)) / 2).flatten() for a in inside]).pow(2).mean()
        channels = torch.cat([a.mean((1, 2)).expand(a.shape[::-1]).flatten() for a in moved])
        every = torch.cat([a.flatten() for a in moved])
        print(
            f"| {name} | {1 + every.mean():.4f} | {every.std(correction=0):.4f} | "
            f"{channels.std(correction=0):.4f} | {even**0.5:.4f} | {odd**0.5:.4f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--batches", type=int, default=100)
    arguments = parser.parse_args()
    for run in arguments.runs:
        trained = trained_file.load(run)
        if arguments.batches:
            for title, weights in (("start", {}), ("end", trained.network.state_dict())):
                network = as_element_wise(trained, weights)
                found = gradients(network, training_batches(trained), arguments.batches)
                print_gradients(f"{run}, {title}, {arguments.batches} batches", found)
        if trained.network_config.granularity == "element":
            print(f"\n{run}, at its end")
            print_movement(neurons_of(trained.network))


if __name__ == "__main__":
    main()
