"""Modules by the names that they had before 0.2, for one release: pickles and programs name them.

Imports nothing of the package: `realspike` runs this file where it lies, without torch.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType

_SYNAPSES = (
    "one_to_one piecewise_conv shared_conv spike_conv storage synaptic_current unshared_conv"
)
MOVED = {
    "realspike_ops.spike_functional": "realspike_ops.functional",
    "realspike_ops.conv_lif_functional": "realspike_ops.functional",
    "realspike_ops.nn.lif": "realspike_ops.nn.neurons.lif",
    "realspike_ops.nn.folded_lif": "realspike_ops.nn.neurons.folded_lif",
    "realspike_ops.nn.fold": "realspike_ops.nn.synapses.fold_into_weight",
    "realspike_ops.nn.unshared_conv1d": "realspike_ops.nn.synapses.unshared_conv1d",
    **{f"realspike_ops.nn.{n}": f"realspike_ops.nn.synapses.{n}" for n in _SYNAPSES.split()},
    **{
        f"realspike.{name}": f"realspike.{room}.{name}"
        for room, names in {
            "config": "datasets network_config recipes run_config strict_yaml",
            "data": "digits",
            "inspect": "activity kernels spikes",
            "quickstart": "timing unfold_bmm",
            "report": "plots run_plots run_report",
            "train": "optimizer",
        }.items()
        for name in names.split()
    },
    "realspike.commands": "realspike.cli",
    "realspike.folded": "realspike.inspect.folded_file",
    "realspike.trained": "realspike.inspect.trained_file",
}


class Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module by its old name: the module itself, with a DeprecationWarning."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        warnings.warn(
            f"{spec.name} is {module.__name__} since 0.2", DeprecationWarning, stacklevel=2
        )
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = (
            module.__spec__
        )  # by the old name; importing puts it in the place of the module's own
        module.__spec__ = spec.loader_state if spec else None


if not any(type(finder).__name__ == "Moved" for finder in sys.meta_path):
    sys.meta_path.append(Moved())
