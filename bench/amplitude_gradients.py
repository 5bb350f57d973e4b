"""Why amplitudes move or stay: the gradient of an amplitude beside its noise, and what moved.

    python bench/amplitude_gradients.py RUN [RUN ...] [--batches 100] [--worth]

For the network of every run, and for its start, the gradients of the amplitudes are taken over
batches of its own training images, augmented as in training. The mean over the batches is the
gradient, the deviation from batch to batch its noise. Steps of a batch each must be added up until
the first exceeds the second: (noise / gradient)^2 of them. The gradient of an amplitude that a
channel or a layer shares is the sum of those of its neurons.

With --worth, amplitudes that are all 1 are moved along the mean gradient, and along parts of it, by
several root mean squares, and the loss on the held-out images is compared with that before.

What moved is compared between runs that began with the same weights and saw other batches: what two
of them have in common is gradient, the rest noise. The correlation is that of the amplitudes less
1, once of the means of the channels and once within them.
"""

import argparse
import itertools
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

MOVES = (0.003, 0.01, 0.03, 0.1)
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
            draws = preprocess.draw(len(labels), 10**6 * epoch + number)
            yield preprocess(samples, draws), labels


def directions(found: dict[str, Moments]) -> dict[str, dict[str, Tensor]]:
    """Return ways down the loss by name, each of root mean square 1 over all amplitudes."""
    down = {name: -moments.sum / moments.count for name, moments in found.items()}  # [C, H, W]
    ways = {}
    for kind, axes in SHARED.items():
        shared = {n: (g.mean(axes, keepdim=True) if axes else g) for n, g in down.items()}
        for title, part in (
            (f"gradient by {kind}", lambda g: g),
            (f"its sign by {kind}", torch.sign),
        ):
            way = {name: part(g).expand(down[name].shape) for name, g in shared.items()}
            size = torch.cat([each.flatten() for each in way.values()]).square().mean().sqrt()
            ways[title] = {name: each / size for name, each in way.items()}
    return ways


@torch.no_grad()
def losses_of(network: nn.Module, batches: list) -> Tensor:
    """Return the loss of every image with the statistics of its batch, which fit whatever the
    amplitudes are."""
    found = [F.cross_entropy(network(x), labels, reduction="none") for x, labels in batches]
    return torch.cat(found).double()


def print_worth(network: nn.Module, found: dict[str, Moments], batches: list) -> None:
    lifs = neurons_of(network)
    before = losses_of(network, batches)
    print(f"\nLoss {before.mean():.4f} on {len(before)} held-out images; what moving adds to it\n")
    print("| moved by, rms | " + " | ".join(map(str, MOVES)) + " |")
    print("| --- |" + " --- |" * len(MOVES))
    for title, way in directions(found).items():
        changes = []
        for size in MOVES:
            for name, lif in lifs.items():
                lif.amplitude.data.copy_(1 + size * way[name])
            more = losses_of(network, batches) - before
            error = more.std() / len(more) ** 0.5
            changes.append(f"{more.mean():+.4f} ± {error:.4f}")
        print(f"| {title} | {' | '.join(changes)} |", flush=True)
    for lif in lifs.values():
        lif.amplitude.data.fill_(1.0)


def held_out_batches(trained: trained_file.Trained, images: int) -> list:
    count = -(-images // trained_file.BATCH)
    return [batch for _, batch in zip(range(count), trained.test_batches(), strict=False)]


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
    rows = {kind: [*by_layer.values()] for kind, by_layer in found.items()}
    rows |= {f"element, {name}": [moments] for name, moments in found["element"].items()}
    for kind, layers in rows.items():
        signal, noise = sum(moments.powers() for moments in layers).tolist()
        number = sum(moments.sum.numel() for moments in layers)
        ratio = (noise / signal) ** 0.5 if signal > 0 else float("inf")
        print(
            f"| {kind} | {number:,} | {(max(signal, 0) / number) ** 0.5:.1e} | "
            f"{(noise / number) ** 0.5:.1e} | {ratio:.1f} | {ratio**2:,.0f} |"
        )


def moved(trained: trained_file.Trained) -> dict[str, Tensor]:
    """Return the amplitudes less 1 by layer, [C, H, W] or what is shared of it."""
    lifs = neurons_of(trained.network)
    return {name: lif.amplitude.detach().double() - 1 for name, lif in lifs.items()}


def print_movement(by_layer: dict[str, Tensor]) -> None:
    print("\n| neurons | mean | deviation | deviation of channels | within channels |")
    print("| --- | --- | --- | --- | --- |")
    rows = {"all": [*by_layer.values()], **{name: [a] for name, a in by_layer.items()}}
    for name, chosen in rows.items():
        channels, within = parts_of(chosen)
        every = torch.cat([a.flatten() for a in chosen])
        deviations = (part.std(correction=0) for part in (every, channels, within))
        print(
            f"| {name} | {1 + every.mean():.4f} | "
            + " | ".join(f"{d:.4f}" for d in deviations)
            + " |"
        )


def parts_of(chosen: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the means of the channels, once per element, and what elements differ from them by."""
    means = [a.mean((1, 2), keepdim=True).expand(a.shape) for a in chosen]
    within = [a - mean for a, mean in zip(chosen, means, strict=True)]
    return tuple(torch.cat([a.flatten() for a in part]) for part in (means, within))


def print_agreement(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    print("| neurons | correlation of channels | within channels |")
    print("| --- | --- | --- |")
    for name in ("all", *one):
        pair = [[*each.values()] if name == "all" else [each[name]] for each in (one, other)]
        pairs = zip(*map(parts_of, pair), strict=True)
        found = [torch.corrcoef(torch.stack(both))[0, 1].item() for both in pairs]
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in found) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--worth", action="store_true")
    parser.add_argument("--end", action="store_true", help="leave the start out")
    arguments = parser.parse_args()
    ends: dict[Path, dict[str, Tensor]] = {}
    for run in arguments.runs:
        trained = trained_file.load(run)
        if arguments.batches:
            states = {"start": {}, "end": trained.network.state_dict()}
            for title in ("end",) if arguments.end else states:
                network = as_element_wise(trained, states[title])
                found = gradients(network, training_batches(trained), arguments.batches)
                print_gradients(f"{run}, {title}, {arguments.batches} batches", found)
            if arguments.worth:
                print_worth(network, found["element"], held_out_batches(trained, 2560))
        if trained.network_config.granularity == "element":
            ends[run] = moved(trained)
            print(f"\n{run}, at its end")
            print_movement(ends[run])
    for (run, one), (other, two) in itertools.combinations(ends.items(), 2):
        print(f"\n{run} and {other}\n")
        print_agreement(one, two)


if __name__ == "__main__":
    main()
