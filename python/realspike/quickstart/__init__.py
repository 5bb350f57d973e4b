"""The whole path on the digits: train, fold, verify, time, save, reload, draw."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import realspike_ops as rso
from realspike import checkpoint, environment, files
from realspike.data.digits import Digits, load_digits
from realspike.inspect.spikes import record_spikes
from realspike.networks import GRANULARITIES, NetworkConfig, SpikingNetwork, build
from realspike.optional import require
from realspike.quickstart import report
from realspike.quickstart.timing import time_interleaved
from realspike.quickstart.training import (
    EVALUATION_BATCH,
    EpochRecord,
    TrainingSettings,
    count_correct,
    predict,
    train,
)
from realspike.quickstart.unfold_bmm import with_unfold_bmm
from realspike.report import plots

BATCH_SIZES = (1, 64)  # images, of the timed forward passes
SHOWN_LAYER = "lif2"
SHOWN_DIGIT = 3
SHOWN_CHANNELS = 6


@dataclass(frozen=True)
class QuickstartSettings:
    """What `run` does; the training is the same for all four networks.

    ``threads`` are for everything but the training; None: as many as PyTorch chose.
    """

    out: Path = Path("runs/quickstart")
    timesteps: int = 4
    threads: "int | None" = None
    training: TrainingSettings = field(default_factory=TrainingSettings)


class QuickstartError(RuntimeError):
    """A step did not give what it must."""


def checkpoint_name(granularity: str) -> str:
    return f"{'binary' if granularity == 'none' else granularity}.safetensors"


@contextmanager
def _threads(count: int):
    """Compute with ``count`` CPU threads; the number of before is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(
    settings: QuickstartSettings,
    on_epoch: "Callable[[str, EpochRecord], None]" = lambda granularity, record: None,
) -> dict:
    """Train and examine the four networks, and write everything into ``settings.out``.

    Args:
        settings: See `QuickstartSettings`.
        on_epoch: Called with the granularity and the record after every epoch.

    Returns:
        The content of ``results.json``.

    Raises:
        OSError: if the folder cannot be written to; raised before anything is trained.
        MissingPackageError: likewise, if a package of the ``app`` extra is missing.
        QuickstartError: if the checkpoint does not classify as the network that was saved.
        realspike_ops.MultiplicationError: if a folded network multiplies.
    """
    start = time.perf_counter()
    for module in ("sklearn.datasets", "safetensors.torch", "matplotlib.figure", "rich.table"):
        require(module)
    files.make_writable_folder(settings.out)
    with _threads(settings.threads or torch.get_num_threads()):
        results = _run(settings, on_epoch)
    results["seconds"] = time.perf_counter() - start
    report.write_json(settings.out / "results.json", results)
    return results


def _run(settings: QuickstartSettings, on_epoch: Callable[[str, EpochRecord], None]) -> dict:
    data = load_digits()
    trained: dict[str, SpikingNetwork] = {}
    folded: dict[str, nn.Module] = {}
    histories: dict[str, list[EpochRecord]] = {}
    networks: dict[str, dict] = {}
    for granularity in GRANULARITIES:
        config = NetworkConfig(granularity, timesteps=settings.timesteps)
        network = trained[granularity] = build(config, settings.training.seed)
        began = time.perf_counter()
        histories[granularity] = []
        # Layers this small gain little from more threads, and the order of the sums, hence the
        # accuracy that a seed gives, would depend on their number.
        with _threads(1):
            for record in train(network, data, settings.training):
                histories[granularity].append(record)
                on_epoch(granularity, record)
        seconds = time.perf_counter() - began
        folded[granularity] = rso.reparameterize(network, data.test_images[:1])
        networks[granularity] = _examine(network, folded[granularity], data) | {
            "config": config.to_dict(),
            "amplitudes": _amplitudes(network),
            "history": [asdict(record) for record in histories[granularity]],
            "training_seconds": seconds,
            "checkpoint": checkpoint_name(granularity),
        }
        record_of_training = asdict(settings.training) | {
            "test_accuracy": networks[granularity]["accuracy_trained"],
            "pixel_mean": data.pixel_mean,
            "pixel_std": data.pixel_std,
        }
        checkpoint.save(settings.out / checkpoint_name(granularity), network, record_of_training)
    curves = [plots.Curve(report.NAMES[name], name, records) for name, records in histories.items()]
    spikes = _draw_spikes(trained["element"], folded["element"], data)
    plots.write_png(plots.training_curves(curves), settings.out / "training_curves.png")
    plots.write_png(spikes, settings.out / "spike_maps.png")
    return {
        "format": "realspike.quickstart",
        "format_version": 1,
        "training": asdict(settings.training),
        "data": {
            "name": "scikit-learn digits",
            "train_images": len(data.train_labels),
            "test_images": len(data.test_labels),
            "pixel_mean": data.pixel_mean,
            "pixel_std": data.pixel_std,
        },
        "networks": networks,
        "inference": _compare_inference(trained["element"], folded["element"], data),
        "reloaded": _reload(settings.out, trained["element"], data),
        "environment": environment.describe(),
    }


def _examine(network: SpikingNetwork, folded: nn.Module, data: Digits) -> dict:
    """Compare the trained and the folded network on the test images."""
    images, labels = data.test_images, data.test_labels
    verification = rso.verify(network, folded, images.split(EVALUATION_BATCH))
    rso.assert_multiplication_free(folded, images[:EVALUATION_BATCH])
    correct = {
        "trained": count_correct(predict(network, images), labels),
        "folded": count_correct(predict(folded, images), labels),
    }
    return {
        "correct_trained": correct["trained"],
        "correct_folded": correct["folded"],
        "accuracy_trained": correct["trained"] / len(labels),
        "accuracy_folded": correct["folded"] / len(labels),
        "max_logit_difference": verification.max_logit_error,
        "agreement": verification.agreement,
        "flipped_spikes": verification.flipped_spikes,
        "multiplication_free": True,
        "layers": [
            asdict(layer) | {"firing_rate": layer.firing_rate} for layer in verification.layers
        ],
    }


def _amplitudes(network: nn.Module) -> dict[str, dict[str, float]]:
    return {
        name: {
            "mean": module.amplitude.mean().item(),
            "std": module.amplitude.std(correction=0).item(),
            "min": module.amplitude.min().item(),
            "max": module.amplitude.max().item(),
        }
        for name, module in network.named_modules()
        if isinstance(module, rso.RealSpikeLIF) and module.amplitude is not None
    }


def _compare_inference(trained: SpikingNetwork, folded: nn.Module, data: Digits) -> dict:
    """Run the element-wise network in three ways: are they right, and how long do they take?"""
    ways = {
        "unshared_spike_conv": folded,
        "unfold_bmm": with_unfold_bmm(folded),
        "shared_conv2d": trained.eval(),
    }
    logits = {name: predict(network, data.test_images) for name, network in ways.items()}
    batches = []
    for size in BATCH_SIZES:
        timings = time_interleaved(ways, data.test_images[:size])
        runs = {name: asdict(timing) for name, timing in timings.items()}
        batches.append({"batch_size": size, "runs": runs})
    return {
        "network": "element",
        "ways": {
            name: {
                "folded": name != "shared_conv2d",
                "accuracy": count_correct(value, data.test_labels) / len(data.test_labels),
                "max_logit_difference": _difference(value, logits["shared_conv2d"]),
            }
            for name, value in logits.items()
        },
        "batches": batches,
    }


def _difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def _reload(out: Path, trained: SpikingNetwork, data: Digits) -> dict:
    """Load the element-wise checkpoint, fold it and compare it with the network in memory."""
    name = checkpoint_name("element")
    network = checkpoint.load(out / name).network
    folded = rso.reparameterize(network, data.test_images[:1])
    expected = predict(trained, data.test_images)
    logits = predict(network, data.test_images)
    same = int((logits.argmax(1) == expected.argmax(1)).sum())
    if same != len(expected):
        raise QuickstartError(
            f"{out / name} classifies {same} of {len(expected)} test images as the network that "
            "was saved"
        )
    return {
        "checkpoint": name,
        "same_predictions": same,
        "max_logit_difference": _difference(logits, expected),
        "accuracy_folded": count_correct(predict(folded, data.test_images), data.test_labels)
        / len(data.test_labels),
    }


def _draw_spikes(trained: SpikingNetwork, folded: nn.Module, data: Digits):
    image = data.test_images[data.test_labels == SHOWN_DIGIT][:1]
    timestep = trained.config.timesteps - 1
    binary = record_spikes(folded, image)[SHOWN_LAYER][timestep, 0]  # [C, H, W]
    real = record_spikes(trained, image)[SHOWN_LAYER][timestep, 0]
    # The channels with most to see: neither silent nor firing everywhere.
    busiest = binary.flatten(1).var(1).topk(min(SHOWN_CHANNELS, len(binary))).indices
    return plots.spike_maps(
        image[0, 0].numpy(),
        binary.numpy(),
        real.numpy(),
        sorted(busiest.tolist()),
        f"Element-wise Real Spike: layer {SHOWN_LAYER} on a test image of a {SHOWN_DIGIT}, "
        f"timestep {timestep + 1} of {trained.config.timesteps} (grey: silent)",
    )
