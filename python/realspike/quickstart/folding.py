"""Folding the trained networks that come with the package, with a picture of what becomes of a
kernel."""

import time
from pathlib import Path

import torch

import realspike_ops as rso
from realspike.inspect import trained_file
from realspike.report import plots, run_report

SAMPLES = 4  # of noise: their data are not at hand


def fold_shipped(out: Path) -> list[dict]:
    """Fold every network that comes with the package; draw a kernel where positions differ.

    Returns:
        For every network its ``name``, ``parameters`` before and after, ``seconds`` of folding,
        ``agreement`` of the classes of noise images, and ``picture``, a file in ``out`` or None.

    Raises:
        realspike_ops.MultiplicationError: if a folded network multiplies.
    """
    found = []
    for name, path in trained_file.networks_by_name().items():
        trained = trained_file.load(path)
        example = trained.example_input()
        began = time.perf_counter()
        folded = rso.reparameterize(trained.network, example)
        seconds = time.perf_counter() - began
        noise = torch.randn(SAMPLES * len(example), *example.shape[1:])
        rso.assert_multiplication_free(folded, noise)
        picture = run_report.draw_kernels(trained)
        if picture is not None:
            plots.write_png(picture, out / f"{name}.png")
        found.append(
            {
                "name": name,
                "parameters": sum(each.numel() for each in trained.network.parameters()),
                "parameters_folded": sum(each.numel() for each in folded.parameters()),
                "seconds": seconds,
                "agreement": rso.verify(trained.network, folded, noise).agreement,
                "picture": None if picture is None else f"{name}.png",
            }
        )
    return found
