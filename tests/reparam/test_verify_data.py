"""What verify and profile accept as data, and what they make of outputs of every shape."""

import pytest
import torch
from helpers import normal
from torch import nn

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")
T = 2


def network(end: "nn.Module | None" = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), rso.DirectEncoding(T), rso.RealSpikeLIF(T)),
        *(nn.Conv2d(4, 4, 3, padding=1), rso.RealSpikeLIF(T), nn.Flatten(), nn.Linear(64, 5)),
        rso.MeanOverTime(T) if end is None else end,
    ).eval()


X = normal((4, 3, 4, 4), 1)
LABELS = torch.zeros(4, dtype=torch.long)
ACCEPTED = {
    "a batch": X,
    "batches": [X],
    "pairs": [(X, LABELS)],
    "lists": [[X, LABELS]],
    "triples": [(X, LABELS, "names")],
    "a loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, LABELS), 4),
    "a generator": (batch for batch in [X]),
    "an empty batch too": [X, X[:0]],
}
REFUSED = {
    "a number": (3, TypeError, "got int"),
    "a string": ("abc", TypeError, "got str"),
    "a dictionary": ({"image": X}, TypeError, r"got dict with the keys 'image': give the tensors"),
    "dictionaries": (
        [{"image": X, "label": LABELS}], TypeError, "batch 0 is a dict with the keys 'image', 'la"
    ),
    "a dictionary in a pair": ([(X, 0), ({"x": X}, 1)], TypeError, "batch 1 is a dict in a tuple"),
    "an array": (X.numpy(), TypeError, "got ndarray: give torch.as_tensor"),
    "arrays": ([X.numpy()], TypeError, "batch 0 is a ndarray: give torch.as_tensor"),
    "pairs of inputs": ([((X, X), LABELS)], TypeError, "batch 0 is a tuple in a tuple"),
    "nothing in a batch": ([X, []], TypeError, "batch 1 is a list"),
    "images and labels": ((X, LABELS), ValueError, r"batch 1 has shape \[4\].*\[\(images, lab"),
    "a dataset": ([(X[0], 3)], ValueError, r"batch 0 has shape \[3, 4, 4\]"),
    "a scalar": (torch.tensor(1.0), ValueError, r"batch 0 has shape \[\]"),
    "no batch": ([], ValueError, "yielded no batch"),
    "an iterator that was read": (iter([]), ValueError, "yielded no batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_data(name):
    model = network()
    folded = rso.reparameterize(model, X)
    data = ACCEPTED[name]
    data = [X] if name == "a generator" else data
    report = rso.verify(model, folded, data if name != "a generator" else (b for b in data))
    assert (report.samples, report.predictions, report.agreement) == (4, 4, 1.0)
    assert rso.profile(folded, data).samples == 4


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_is_refused(name):
    model = network()
    folded = rso.reparameterize(model, X)
    data, kind, message = REFUSED[name]
    training = [m.training for m in model.train().modules()]
    with pytest.raises(kind, match=message):
        rso.verify(model, folded, data)
    if name != "an iterator that was read":
        with pytest.raises(kind, match="data"):
            rso.profile(folded, data)
    assert [m.training for m in model.modules()] == training


def test_maps_of_another_size_than_the_folded_networks_are_named():
    model = network()
    folded = rso.reparameterize(model, X)
    with pytest.raises(ValueError, match=r"batch 1 has shape \[4, 3, 4, 5\], not \[N, 3, 4, 4\]"):
        rso.verify(model, folded, [X, normal((4, 3, 4, 5), 1)])


class Given(nn.Module):
    """Returns what it is told, for the images that it is told."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x):
        return self.out


def agreement(a, b) -> "tuple[float, int, float]":
    report = rso.verify(Given(a), Given(b), X)
    return report.agreement, report.predictions, report.max_logit_error


def test_predictions_are_classes_along_the_second_dimension():
    a = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]])
    b = torch.tensor([[2.0, 1.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.5]])
    assert agreement(a, b) == (0.75, 4, 1.0)
    # Maps [N, K, H, W]: the class of every pixel. Of 4 * 2 pixels the first is another one.
    maps = torch.stack([a, a], 2)[..., None]  # [4, 2, 2, 1]
    others = maps.clone()
    others[0, :, 0] = others[0, :, 0].flip(0)
    assert agreement(maps, others) == (0.875, 8, 1.0)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1, 1)])
def test_one_value_says_yes_or_no_by_its_sign(shape):
    a = torch.tensor([1.0, -1.0, 0.5, -2.0]).view(shape)
    b = torch.tensor([2.0, -0.5, -0.5, -2.0]).view(shape)
    assert agreement(a, b) == (0.75, 4, 1.0)


def test_all_outputs_of_a_tuple_or_a_dictionary_count():
    a = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert agreement((a, a), (a, a.flip(1))) == (0.5, 4, 3.0)
    assert agreement({"a": a, "b": [a]}, {"a": a, "b": [a + 1]}) == (1.0, 4, 1.0)


def test_outputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"outputs of model, of shapes \[4, 5\]; got \[1, 5\]"):
        agreement(torch.zeros(4, 5), torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"got \[4, 5\], \[4, 5\]"):
        agreement(torch.zeros(4, 5), (torch.zeros(4, 5), torch.zeros(4, 5)))


@pytest.mark.parametrize("end", ["sum", "scores of timesteps", "squeezed"])
def test_outputs_of_networks(end):
    """[T*B, ...], and one value per image [B]."""
    ends = {
        "sum": rso.MeanOverTime(T),
        "scores of timesteps": nn.Identity(),
        "squeezed": nn.Sequential(nn.Linear(5, 1), rso.MeanOverTime(T), nn.Flatten(0)),
    }
    model = network(ends[end])
    folded = rso.reparameterize(model, X) if end != "squeezed" else model
    report = rso.verify(model, folded, X, bounds=end != "squeezed")
    assert report.predictions == (4 * T if end == "scores of timesteps" else 4)
    assert report.agreement == 1.0
    if end != "squeezed":
        assert report.within_bounds


MODEL = network()
FOLDED = rso.reparameterize(MODEL, X)
META = torch.zeros(4, 3, 4, 4, device="meta")
NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
CALLS = {
    "unfuse: no module": (lambda _: rso.unfuse(None), TypeError, "model must be an nn.Module"),
    "profile: a name": (
        lambda _: rso.profile(FOLDED, X, names_of="model"),
        TypeError,
        "names_of must be an nn.Module; got str",
    ),
    "multiplication-free: no module": (
        lambda _: rso.assert_multiplication_free("folded", X),
        TypeError,
        "folded must be an nn.Module; got str",
    ),
    "multiplication-free: no tensor": (
        lambda _: rso.assert_multiplication_free(FOLDED, [1.0]),
        TypeError,
        "x must be a torch.Tensor; got list",
    ),
    "a folded network: no tensor": (lambda _: FOLDED(None), TypeError, "x must be a torch.Tensor"),
    "verify: bounds": (
        lambda _: rso.verify(MODEL, FOLDED, X, bounds="no"),
        TypeError,
        "bounds must be True or False",
    ),
    "verify: nested": (lambda _: rso.verify(MODEL, FOLDED, NESTED), TypeError, "nested tensor"),
    "a file: a number": (lambda _: rso.save_folded(FOLDED, 1), TypeError, "path must be a str"),
    "a file: metadata": (
        lambda path: rso.save_folded(FOLDED, path, {"epochs": 3}),
        TypeError,
        "metadata must map texts to texts",
    ),
    "a file: memory": (
        lambda path: rso.load_folded(path, memory_limit=None),
        TypeError,
        "memory_limit must be an int",
    ),
    "NIR: a tensor": (
        lambda _: rso.export_nir(FOLDED, torch.ones(1)),
        TypeError,
        "path must be a str or a Path; got Tensor",
    ),
    "ONNX: a number": (lambda _: rso.export_onnx(FOLDED, 3), TypeError, "path must be a str"),
    "folding: no values": (
        lambda _: rso.reparameterize(MODEL, META),
        ValueError,
        "example_input must have values; got .* meta",
    ),
    "folding: no weights": (
        lambda _: rso.reparameterize(nn.Sequential(*network()).to("meta"), X),
        rso.ReparameterizationError,
        "'0.weight' is on the meta device",
    ),
    "folding: a type": (
        lambda _: rso.reparameterize(MODEL, X, weight_dtype=torch.ones(3).numpy()),
        TypeError,
        "weight_dtype must be one of",
    ),
    "conversion: no values": (
        lambda _: rso.convert(MODEL, META, timesteps=2),
        ValueError,
        "example_input must have values",
    ),
    "conversion: a text": (
        lambda _: rso.convert(MODEL, X, timesteps=2, encode="False"),
        TypeError,
        "encode must be True or False; got str",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_arguments_of_another_kind_are_named(what, tmp_path):
    call, exception, reason = CALLS[what]
    with pytest.raises(exception, match=reason):
        call(tmp_path / "a")
    assert not [*tmp_path.iterdir()]
