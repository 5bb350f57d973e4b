"""The facts for a report of a bug: versions, build, devices, and whether kernels compute right."""

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

# Named where they are installed: what the package needs, its extras, and whose networks it reads.
_PACKAGES = (
    *("torch", "triton", "numpy", "lightning", "tensorboard", "pillow", "scikit-learn"),
    *("matplotlib", "rich", "safetensors", "nir", "torchvision"),
    *("spikingjelly", "snntorch", "norse"),
)
T = 5


class Check(NamedTuple):
    """One op on one device: what runs there ("" for nothing), and what was wrong with it, or ""."""

    device: str
    op: str
    kernel: str
    error: str


class Report(NamedTuple):
    facts: dict[str, str]
    checks: list[Check]
    seconds: float

    @property
    def healthy(self) -> bool:
        return bool(self.checks) and not any(check.error for check in self.checks)


def examine() -> Report:
    """Return all that can be found out; what cannot be is said in its place, never raised."""
    began = time.perf_counter()
    facts = dict(_facts())
    try:
        checks = list(_checks())
    except Exception as error:  # torch or the extension does not even load
        checks = [Check("cpu", "all", "", _said(error))]
    return Report(facts, checks, time.perf_counter() - began)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _facts() -> Iterator[tuple[str, str]]:
    def attempt(find: Callable[[], str]) -> str:
        try:
            return find()
        except Exception as error:
            return _said(error)

    yield "realspike", attempt(_realspike)
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", f"{platform.platform()}, {' '.join(platform.libc_ver()) or 'no libc named'}"
    yield "torch", attempt(_torch)
    yield "packages", ", ".join(_installed(_PACKAGES))
    yield "build", attempt(_build)
    yield "cpu", attempt(_cpu)
    yield "gpus", attempt(_gpus)
    yield "environment", ", ".join(_variables()) or "nothing that matters here is set"


def _realspike() -> str:
    import realspike_ops
    from realspike import environment

    commit = environment.commit()
    found = find_spec("realspike_ops")
    place = os.path.dirname((found and found.origin) or "")
    return f"{realspike_ops.__version__}{f' at {commit}' if commit else ''} ({place})"


def _torch() -> str:
    import torch

    cuda = torch.version.cuda
    built = f"CUDA {cuda}" if cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"
    return f"{torch.__version__}, built for {built}"


def _installed(names) -> Iterator[str]:
    for name in names:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue


def _build() -> str:
    import realspike_ops

    return realspike_ops.build_info()


def _cpu() -> str:
    import torch

    from realspike import environment

    return f"{environment.cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _gpus() -> str:
    import torch

    found = [
        "{} (compute capability {}.{})".format(
            torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i)
        )
        for i in range(torch.cuda.device_count())
    ]
    return ", ".join(found) or "none that torch sees"


def _variables() -> Iterator[str]:
    begins = ("REALSPIKE_", "OMP_", "MKL_", "TRITON_", "CUDA_VISIBLE", "PYTORCH_")
    for name in sorted(os.environ):
        if name.startswith(begins):
            yield f"{name}={os.environ[name]}"


def _checks() -> Iterator[Check]:
    """Run every op on every device against the reference, whose numbers allow no rounding."""
    import torch

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    for device in devices:
        for op, check in _OPS.items():
            kernel, error = _kernel_of(op, device), ""
            try:
                if kernel:
                    check(device)
            except Exception as raised:
                error = _said(raised)
            yield Check(device, op, kernel, error)


def _kernel_of(op: str, device: str) -> str:
    build = _build()
    if device == "cpu":
        return f"C++, {build.partition('this CPU runs ')[2].partition(';')[0]}"
    if op.startswith("lif"):
        return "".join(_installed(["triton"]))
    return "" if build.startswith("CPU kernels only") else "CUDA"


def _eighths(*shape: int):
    """Random multiples of 1/8 about 0: sums and products are exact, and ties are common."""
    import torch

    generator = torch.Generator().manual_seed(len(shape))
    return torch.randint(-8, 12, shape, generator=generator) / 8


def _equal(actual, expected, what: str) -> None:
    wrong = int((actual.cpu() != expected).sum())
    if wrong:
        raise ArithmeticError(f"{wrong} of {expected.numel()} {what} differ from the reference")


def _lif(device: str) -> None:
    import torch

    import realspike_ops as rso

    # The first current meets the threshold of 0.5, the second leaves 0.25 / 4 to the third.
    by_hand = torch.tensor([0.5, 0.25, 0.4375, 0.4375]).view(4, 1, 1)
    _equal(rso.lif(by_hand.to(device)), torch.tensor([1.0, 0, 1, 0]).view(4, 1, 1), "spikes")
    x, amplitude = _eighths(T, 2, 3, 5, 7), _eighths(3, 5, 7)
    expected = rso.reference.lif(x, amplitude)
    _equal(rso.lif(x.to(device), amplitude.to(device)), expected, "spikes")


def _lif_gradient(device: str) -> None:
    import realspike_ops as rso

    gradients = []
    for function, place in ((rso.reference.lif, "cpu"), (rso.lif, device)):
        x = _eighths(T, 2, 3, 5, 7).to(place).requires_grad_()
        y: Any = function(x, decay=0.5, detach_reset=True)
        y.backward(_eighths(*y.shape).to(place))
        gradients.append(x.grad)
    _equal(gradients[1], gradients[0], "gradients")


def _spikes(*shape: int):
    return (_eighths(*shape) > 0).float()


def _pack_spikes(device: str) -> None:
    import realspike_ops as rso

    spikes = _spikes(3, 70, 5, 7)
    _equal(rso.unpack_spikes(rso.pack_spikes(spikes.to(device)), 70), spikes, "spikes")


def _unshared_spike_conv(device: str) -> None:
    import realspike_ops as rso

    # [N, Cin, H, W]; [OH, OW, G, KH, KW, Cin/G, Cout/G]
    spikes, weight = _spikes(3, 6, 7, 5), _eighths(5, 3, 1, 3, 3, 6, 8)
    expected = rso.reference.unshared_spike_conv(spikes, weight)
    _equal(rso.unshared_spike_conv(spikes.to(device), weight.to(device)), expected, "currents")


_OPS: dict[str, Callable[[str], None]] = {
    "lif": _lif,
    "lif, gradient": _lif_gradient,
    "pack_spikes": _pack_spikes,
    "unshared_spike_conv": _unshared_spike_conv,
}
