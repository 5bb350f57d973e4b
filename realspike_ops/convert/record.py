"""The record of a forward in both modes: where neurons are, which layers depend on the mode."""

import copy

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from realspike_ops.nn import RealSpikeLIF
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.trace.names import describe, function_name, layer_class
from realspike_ops.reparam.trace.sizes import PRIME
from realspike_ops.reparam.trace.trace import copy_in_eval_mode, trace, trace_of_any_batch

_DROPOUTS = {
    "dropout": nn.Dropout,
    "dropout1d": nn.Dropout1d,
    "dropout2d": nn.Dropout2d,
    "dropout3d": nn.Dropout3d,
    "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}
_RELUS = ("relu", "relu_", "relu6")
# Functions of one tensor that class scores go through last: the mean over time is taken before.
AT_THE_END = ("softmax", "log_softmax", "sigmoid", "logsigmoid", "softmin", "tanh")
# Other names of functions, and those of layers.
_ALSO = {"leakyrelu": "leaky_relu", "logsoftmax": "log_softmax", "softmax2d": "softmax"}
_ALSO |= {"special_softmax": "softmax", "special_log_softmax": "log_softmax"}
_ALSO |= {"special_expit": "sigmoid", "log_sigmoid": "logsigmoid", "_threshold": "threshold"}
_OTHERS = frozenset(
    "gelu silu mish leaky_relu leaky_relu_ elu elu_ selu selu_ celu celu_ hardswish hardsigmoid "
    "hardtanh hardtanh_ prelu rrelu rrelu_ softplus glu threshold threshold_ softsign hardshrink "
    "softshrink tanhshrink sigmoid_ tanh_ gumbel_softmax".split()
).union(AT_THE_END)


def activation_name(graph: fx.GraphModule, node: fx.Node) -> str:
    """Return the name of the function that a node computes; a layer's is in small letters."""
    if node.op == "call_module":
        layer = graph.get_submodule(str(node.target))
        kind = layer_class(type(layer)) or type(layer)
        name = kind.__name__.lower()
    else:
        name = function_name(node) if node.op in ("call_function", "call_method") else ""
    return _ALSO.get(name, name)


def is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    name = activation_name(graph, node)
    if name not in ("clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_"):
        return name in _RELUS
    # clamp(min=0) is one too.
    given = dict(zip(("min", "max"), node.args[1:], strict=False)) | dict(node.kwargs)
    return bool(given.get("min") == 0 and given.get("max") is None)


def is_other_activation(graph: fx.GraphModule, node: fx.Node) -> bool:
    return activation_name(graph, node) in _OTHERS


def draws(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is another value at each call: random numbers, in training also dropout."""
    return bool(node.meta.get("draws")) or "drop" in activation_name(graph, node)


def record(
    model: nn.Module, example: Tensor, stand_ins: dict[str, nn.Module], timesteps: int = 1
) -> tuple[fx.GraphModule, int, nn.Module]:
    """Record `model` for any batch, with modules named in `stand_ins` replaced.

    Returns:
        The graph, in which dropout that `forward` switches by its mode is a layer, the rows of its
        input, and the model as it was, in eval mode.

    Raises:
        ReparameterizationError: for what a graph cannot do as `forward` does it, by name.
    """
    copied = copy_in_eval_mode(model)
    replace_modules(copied, stand_ins)
    for name, module in copied.named_modules():
        if isinstance(module, RealSpikeLIF):
            raise ReparameterizationError(f"{name!r} is a RealSpikeLIF: the model is converted")
    example = example.detach().cpu()
    with torch.device("cpu"):
        _refuse_mixed_rows(copied, example, timesteps)
        as_written, in_training = copy.deepcopy(copied), copy.deepcopy(copied).train()
        graph, rows, batch_is_free = trace_of_any_batch(copied, example)
        if not batch_is_free:
            raise ReparameterizationError(
                "forward() says the size of its batch as a number, which timesteps multiply: read "
                "it from the input, x.shape[0]"
            )
        with torch.no_grad():
            for parameter in in_training.parameters():
                if parameter.is_floating_point():
                    parameter.add_(1)
        _honour_modes(graph, trace(in_training, rows, PRIME))
    return graph, len(rows) * PRIME, as_written


def replace_modules(model: nn.Module, by_name: dict[str, nn.Module]) -> None:
    """Replace modules, under every name that they have."""
    by_id = {id(model.get_submodule(name)): module for name, module in by_name.items()}
    for parent in [*model.modules()]:
        for name, child in [*parent._modules.items()]:
            if id(child) in by_id:
                setattr(parent, name, by_id[id(child)])


def _refuse_mixed_rows(model: nn.Module, example: Tensor, timesteps: int) -> None:
    """Refuse a model whose rows read each other: timesteps become rows of the batch."""
    if example.dim() == 0 or len(example) == 0 or not example.is_floating_point():
        return

    def read(image: int) -> list[Tensor]:
        """Return which numbers of the outputs come from one of two images."""
        rows = example[:1].expand(2 * timesteps, *example.shape[1:]).clone()
        rows[image::2] = torch.nan
        outputs = pytree.tree_leaves(copy.deepcopy(model)(rows))
        return [out.isnan() for out in outputs if isinstance(out, Tensor)]

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            both = [first & second for first, second in zip(read(0), read(1), strict=True)]
    except Exception:  # the record refuses a model that takes no batch of two
        return
    if any(met.any() for met in both):
        raise ReparameterizationError(
            "an image's outputs depend on its neighbours in the batch, to which timesteps are "
            "added: reduce over the batch outside of the model"
        )


def _honour_modes(graph: fx.GraphModule, in_training: fx.GraphModule) -> None:
    """Compare the record with one in training mode, of other parameters."""
    nodes, others = ([*g.graph.nodes] for g in (graph, in_training))
    for node, other in zip(nodes, others, strict=False):
        mine, theirs = (str((n.op, n.target, n.args, n.kwargs)) for n in (node, other))
        if mine == theirs:
            continue
        if node.target == other.target and _follows_mode(node, other):
            continue
        raise ReparameterizationError(
            f"{describe(node)}: forward() does something else in training mode, {describe(other)}: "
            "a converted network does the same in both; layers (nn.Dropout, nn.BatchNorm2d) may "
            "depend on the mode, and so may F.dropout(x, p, self.training)"
        )
    if len(nodes) != len(others):
        raise ReparameterizationError(
            "forward() does something else in training mode: auxiliary outputs and the like are "
            "not converted"
        )
    for node in nodes:
        if node.op == "get_attr" and is_made(node.target):
            mine, theirs = (getattr(g, node.target) for g in (graph, in_training))
            if not torch.equal(mine, theirs):
                reader = next(iter(node.users)).name
                raise ReparameterizationError(
                    f"{reader!r} reads a tensor that forward() computes from "
                    "parameters, without the input: it would be a constant and not be trained; "
                    "use torch.nn.utils.parametrize"
                )


def is_made(name: str) -> bool:
    return name.startswith("_constant")


def _follows_mode(node: fx.Node, other: fx.Node) -> bool:
    """Turn dropout whose argument `training` is the mode into a layer, in place."""
    kind = _DROPOUTS.get(function_name(node)) if node.op == "call_function" else None
    if kind is None:
        return False
    given, told = (dropout_arguments(n) for n in (node, other))
    if given | {"training": True} != told or given["training"]:
        return False
    node.meta["dropout"] = kind(given["p"])
    return True


def dropout_arguments(node: fx.Node) -> dict:
    names = ("p", "training", "inplace")
    default = {"p": 0.5, "training": True}
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    return {k: v for k, v in (default | given).items() if k != "inplace"}
