"""The whole path on the digits: train, fold, verify, time, save, reload, draw.

The networks that come with the package are folded, too.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import realspike_ops as rso
from realspike import data, environment, files
from realspike.config.network_config import GRANULARITIES
from realspike.config.run_config import RunConfig
from realspike.inspect import trained_file
from realspike.inspect.classify import BATCH, predict
from realspike.networks import build
from realspike.optional import require, require_training
from realspike.quickstart import report
from realspike.quickstart.folding import fold_shipped
from realspike.quickstart.timing import time_interleaved
from realspike.quickstart.unfold_bmm import with_unfold_bmm
from realspike.report import run_report

BATCH_SIZES = (1, 64)  # images, of the timed forward passes


@dataclass(frozen=True)
class QuickstartSettings:
    """The settings of `run`; the training is the same for all four networks.

    ``threads`` are for everything but the training; None: as many as PyTorch chose.
    """

    out: Path = Path("runs/quickstart")
    timesteps: int = 4
    threads: "int | None" = None
    epochs: int = 25
    seed: int = 0

    def config(self, granularity: str) -> RunConfig:
        """Return how one of the networks is trained."""
        return RunConfig().replaced(
            **{"architecture": "digits", "granularity": granularity, "timesteps": self.timesteps},
            **{"threshold_norm": False, "name": "digits", "batch_size": 128, "crop": 1},
            **{"epochs": self.epochs, "learning_rate": 0.05, "weight_decay": 5e-4},
            **{"scale_amplitudes": False, "seed": self.seed},
            # Layers this small gain little from more threads, and the order of the sums, hence the
            # accuracy that a seed gives, would depend on their number.
            threads=1,
        )


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
    on_epoch: "Callable[[str, dict], None]" = lambda granularity, record: None,
) -> dict:
    """Train and examine the four networks, and write everything into ``settings.out``.

    Args:
        settings: See `QuickstartSettings`.
        on_epoch: Called with the granularity and the record after every epoch.

    Returns:
        The content of ``results.json``.

    Raises:
        OSError: if the folder cannot be written to; raised before anything is trained.
        MissingPackageError: likewise, if a package is missing.
        QuickstartError: if the checkpoint does not classify as the network that was saved.
        realspike_ops.MultiplicationError: if a folded network multiplies.
    """
    start = time.perf_counter()
    require_training()
    for module in ("sklearn.datasets", "safetensors.torch", "matplotlib.figure", "rich.table"):
        require(module)
    files.make_writable_folder(settings.out)
    with _threads(settings.threads or torch.get_num_threads()):
        results = _run(settings, on_epoch)
    results["seconds"] = time.perf_counter() - start
    report.write_json(settings.out / "results.json", results)
    return results


def _run(settings: QuickstartSettings, on_epoch: Callable[[str, dict], None]) -> dict:
    splits = data.load(settings.config("none"))
    trained: dict[str, nn.Module] = {}
    folded: dict[str, rso.FoldedNetwork] = {}
    networks: dict[str, dict] = {}
    for granularity in GRANULARITIES:
        config, path = settings.config(granularity), settings.out / checkpoint_name(granularity)
        network = trained[granularity] = build(config.network_config(), settings.seed)
        began = time.perf_counter()
        with _threads(1):
            history = _train(network, splits, config, path, on_epoch)
        seconds = time.perf_counter() - began
        images, labels = _test_images(path)
        folded[granularity] = rso.reparameterize(network, images[:1])
        networks[granularity] = _examine(network, folded[granularity], images, labels) | {
            "config": config.network_config().to_dict(),
            "amplitudes": _amplitudes(network),
            "history": history,
            "training_seconds": seconds,
            "checkpoint": path.name,
        }
    paths = [settings.out / checkpoint_name(granularity) for granularity in GRANULARITIES]
    run_report.write(paths[-1], paths[:-1])
    return {
        "format": "realspike.quickstart",
        "format_version": 3,
        "training": asdict(settings.config("element"))["training"],
        "data": {
            "name": "scikit-learn digits",
            "train_images": len(splits.train),
            "test_images": len(splits.test),
            "pixel_mean": splits.mean[0],
            "pixel_std": splits.std[0],
        },
        "networks": networks,
        "inference": _compare_inference(trained["element"], folded["element"], images, labels),
        "reloaded": _reload(paths[-1], trained["element"]),
        "shipped": fold_shipped(settings.out),
        "environment": environment.describe(),
    }


def _train(network, splits, config: RunConfig, path: Path, on_epoch) -> list[dict]:
    """Train a network in place as `realspike train` does, and keep its checkpoint of the run."""
    from realspike import train  # needs Lightning

    with tempfile.TemporaryDirectory(prefix=".training-", dir=path.parent) as folder:
        result = train.fit(
            *(network, splits, folder),
            config=config,
            on_epoch=lambda record: on_epoch(config.network.granularity, record),
        )
        if result.stopped_by:
            raise KeyboardInterrupt(result.stopped_by)
        files.write_atomically(path, (Path(folder) / trained_file.RUN_FILE).read_bytes())
    return result.records


def _test_images(path: Path) -> tuple[Tensor, Tensor]:  # [N, 1, 8, 8], [N]
    """Return the test data as the network in a file reads them."""
    batches = trained_file.load(path).test_batches()
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def _examine(network: nn.Module, folded: nn.Module, images: Tensor, labels: Tensor) -> dict:
    """Compare the trained and the folded network on the test images."""
    verification = rso.verify(network, folded, images.split(BATCH))
    rso.assert_multiplication_free(folded, images[:BATCH])
    correct = {
        "trained": _count_correct(predict(network, images), labels),
        "folded": _count_correct(predict(folded, images), labels),
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


def _count_correct(logits: Tensor, labels: Tensor) -> int:  # [B, classes], [B]
    return int((logits.argmax(1) == labels).sum())


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


def _compare_inference(trained: nn.Module, folded: nn.Module, images, labels) -> dict:
    """Run the element-wise network in three ways: are they right, and how long do they take?"""
    ways = {
        "unshared_spike_conv": folded,
        "unfold_bmm": with_unfold_bmm(folded),
        "shared_conv2d": trained.eval(),
    }
    logits = {name: predict(network, images) for name, network in ways.items()}
    batches = []
    for size in BATCH_SIZES:
        timings = time_interleaved(ways, images[:size])
        runs = {name: asdict(timing) for name, timing in timings.items()}
        batches.append({"batch_size": size, "runs": runs})
    return {
        "network": "element",
        "ways": {
            name: {
                "folded": name != "shared_conv2d",
                "accuracy": _count_correct(value, labels) / len(labels),
                "max_logit_difference": _difference(value, logits["shared_conv2d"]),
            }
            for name, value in logits.items()
        },
        "batches": batches,
    }


def _difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def _reload(path: Path, trained: nn.Module) -> dict:
    """Load the element-wise checkpoint, fold it and compare it with the network in memory."""
    network = trained_file.load(path).network
    images, labels = _test_images(path)
    folded = rso.reparameterize(network, images[:1])
    expected, logits = predict(trained, images), predict(network, images)
    same = int((logits.argmax(1) == expected.argmax(1)).sum())
    if same != len(expected):
        raise QuickstartError(
            f"{path} classifies {same} of {len(expected)} test images as the network that was saved"
        )
    return {
        "checkpoint": path.name,
        "same_predictions": same,
        "max_logit_difference": _difference(logits, expected),
        "accuracy_folded": _count_correct(predict(folded, images), labels) / len(labels),
    }
