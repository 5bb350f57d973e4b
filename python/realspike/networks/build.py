"""From a configuration to a network with its initial weights."""

import dataclasses

import torch
from torch import Tensor, nn

from realspike import own
from realspike.config.network_config import NetworkConfig
from realspike.config.run_config import NetworkSection
from realspike.networks.digits_net import DigitsNet
from realspike.networks.layers import draw_convolutions, initialise_norms
from realspike.networks.resnet import resnet8, resnet19, resnet20
from realspike.networks.sew_resnet import sew_resnet10, sew_resnet18, sew_resnet34
from realspike.networks.vgg import vgg5, vgg16
from realspike_ops import RealSpikeLIF

BUILDERS = {
    "digits": DigitsNet,
    "resnet20": resnet20,
    "resnet19": resnet19,
    "resnet8": resnet8,
    "vgg16": vgg16,
    "vgg5": vgg5,
    "sew_resnet18": sew_resnet18,
    "sew_resnet34": sew_resnet34,
    "sew_resnet10": sew_resnet10,
}


def build(config: NetworkConfig, seed: int) -> nn.Module:
    """Return an initialised network on the CPU; torch's global random state is left as it was.

    Amplitudes start at 1 and draw nothing, so that networks of different granularities start from
    the same weights. A network of the user's own is its class, called with those fields of
    ``config`` that it takes, and starts as the class makes it.

    Raises:
        OwnError: if the class cannot be imported, is no `nn.Module`, or cannot be called so.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if own.is_own(config.architecture):
            return _build_own(config)
        network = BUILDERS[config.architecture](config)
        if config.architecture != "digits":  # whose training was tuned with torch's own weights
            draw_convolutions(network)
        initialise_norms(network, config)
    return network


def _build_own(config: NetworkConfig) -> nn.Module:
    key, name = "network.architecture", config.architecture
    made_by = own.find(key, name)
    if not (isinstance(made_by, type) and issubclass(made_by, nn.Module)):
        raise own.OwnError(f"{key}={name} must be a class of nn.Module; it is {made_by!r:.80}")
    given = config.to_dict()
    del given["architecture"]
    defaults = {field.name: field.default for field in dataclasses.fields(NetworkSection)}
    defaults = {field: value for field, value in defaults.items() if field in given}
    return own.call(key, name, made_by, given, defaults, base=nn.Module, has=_has)


def _has(network: nn.Module, argument: str, value: object) -> bool:
    """Whether neurons have the timesteps that they were not told, as `realspike.fit` notes them."""
    lifs = (module for module in network.modules() if isinstance(module, RealSpikeLIF))
    return argument == "timesteps" and value in {lif.timesteps for lif in lifs}


@torch.no_grad()
def try_out(network: nn.Module, config: NetworkConfig, example: Tensor) -> None:
    """Run a network of the user's own on one sample, and note its ``neurons_per_amplitude``.

    Raises:
        OwnError: if it does not classify the sample.
    """
    what = f"network.architecture={config.architecture}"

    def note(lif, _, output):
        if lif.amplitude is not None:
            lif.neurons_per_amplitude = output[0].numel() // lif.amplitude.numel()

    lifs = [module for module in network.modules() if isinstance(module, RealSpikeLIF)]
    handles = [lif.register_forward_hook(note) for lif in lifs]
    training = {module: module.training for module in network.modules()}
    try:
        logits = network.eval()(example)
    except Exception as error:  # whatever the user's forward raises
        text = " ".join(str(error).split()) or type(error).__name__
        raise own.OwnError(
            f"{what} cannot run on an input of shape {list(example.shape)}: {text:.200}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != [1, config.classes]:
        raise own.OwnError(
            f"{what} must return [B, classes], here [1, {config.classes}]; got {shape}"
        )
