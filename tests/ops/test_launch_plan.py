"""A planned launch serves calls of its own signature alone.

A fake compiler writes down what is compiled and launched.
"""

import itertools

import pytest
import torch

from realspike_ops.ops import batch_norm_lif_cuda, launch_plan, lif_cuda
from realspike_ops.ops import lif as lif_op
from realspike_ops.ops.batch_norm_lif import passes_with
from realspike_ops.ops.launch_plan import Launch, Plans
from realspike_ops.ops.lif_contract import Neuron, what_to_save
from realspike_ops.ops.lif_packed import _packed_with

PAPERS = Neuron(0.25, 0.5, 0.0, "hard", True, False, "rectangular", 1.0)
KERNELS = {
    lif_cuda: ("lif_fwd_kernel", "lif_bwd_kernel", "lif_packed_fwd_kernel"),
    batch_norm_lif_cuda: (
        *("batch_norm_moments_kernel", "batch_norm_combine_kernel"),
        *("batch_norm_statistics_kernel", "batch_norm_bwd_kernel"),
    ),
}
PLANS = [
    *(lif_cuda._FORWARD, lif_cuda._BACKWARD, lif_cuda._PACKED),
    *(batch_norm_lif_cuda._MOMENTS, batch_norm_lif_cuda._COMBINE),
    *(batch_norm_lif_cuda._STATISTICS, batch_norm_lif_cuda._NORM_BWD),
]


class Kernel:
    """Takes the place of a kernel, and writes down what is compiled and launched."""

    def __init__(self, arg_names, launched, compiled):
        self.arg_names, self.launched, self.compiled = arg_names, launched, compiled

    def __getitem__(self, grid):
        def compile_and_launch(*args, **options):
            self.compiled.append((grid, args, options))
            self.launched.append((grid[0], [_address(arg) for arg in args]))
            return Compiled(self.launched)

        return compile_and_launch


class Compiled:
    def __init__(self, launched):
        self.launched = launched

    def __getitem__(self, grid):
        return lambda *args: self.launched.append((grid[0], list(args)))


def _address(argument):
    return argument.data_ptr() if isinstance(argument, torch.Tensor) else argument


@pytest.fixture
def fake():
    """A kernel of two tensors and two numbers, and the plans of its launches."""
    launched, compiled = [], []
    return Plans(), Kernel(["x_ptr", "y_ptr", "n", "BLOCK"], launched, compiled)


def plan_of(n, grid=7):
    return lambda: Launch(grid, {"BLOCK": 128, "n": n}, {"num_warps": 4})


def test_a_plan_launches_what_was_compiled_on_the_tensors_of_the_call(fake):
    plans, kernel = fake
    first, second = torch.zeros(8), torch.zeros(8)
    plans.launch(kernel, -1, (first, None), "key", plan_of(5))
    assert kernel.compiled == [((7,), (first, None, 5, 128), {"num_warps": 4})]
    plans.launch(kernel, -1, (second, None), "key", lambda: pytest.fail("planned twice"))
    assert kernel.launched == [(7, [t.data_ptr(), None, 5, 128]) for t in (first, second)]
    assert len(kernel.compiled) == 1


OTHERS = {
    "key": (-1, torch.zeros(8), None, "another"),
    "dtype": (-1, torch.zeros(8, dtype=torch.float16), None, "key"),
    "alignment": (-1, torch.zeros(8)[1:], None, "key"),
    "presence": (-1, torch.zeros(8), torch.zeros(8), "key"),
    "device": (-2, torch.zeros(8), None, "key"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_signature_is_planned_anew(fake, what):
    plans, kernel = fake
    plans.launch(kernel, -1, (torch.zeros(8), None), "key", plan_of(5))
    device, x, y, key = OTHERS[what]
    plans.launch(kernel, device, (x, y), key, plan_of(6, grid=3))
    assert len(plans) == len(kernel.compiled) == 2
    assert kernel.launched[-1] == (3, [x.data_ptr(), _address(y), 6, 128])


def test_numbers_are_those_of_the_call(fake):
    plans, _ = fake
    kernel = Kernel(["x_ptr", "momentum", "n", "BLOCK"], [], [])
    x = torch.zeros(8)
    for momentum in (1.0, 0.5):
        plans.launch(kernel, -1, (x,), "key", plan_of(5), (momentum,))
    assert kernel.launched == [(7, [x.data_ptr(), m, 5, 128]) for m in (1.0, 0.5)]
    assert len(plans) == len(kernel.compiled) == 1


def test_plans_make_room_for_new_ones(fake, monkeypatch):
    plans, kernel = fake
    monkeypatch.setattr(launch_plan, "MOST_PLANS", 2)
    for n in (1, 2, 3, 3, 1):
        plans.launch(kernel, -1, (torch.zeros(8), None), n, plan_of(n))
    assert len(plans) == 2
    assert [args[2] for _, args, _ in kernel.compiled] == [1, 2, 3, 1]


def test_an_interpreted_kernel_is_launched_from_its_tensors_every_time(fake):
    plans, kernel = fake
    launched = []

    class Interpreted(Kernel):
        def __getitem__(self, grid):
            return lambda *args, **options: launched.append((grid, args, options))

    kernel = Interpreted(kernel.arg_names, [], [])
    x = torch.zeros(8)
    for _ in range(2):
        plans.launch(kernel, -1, (x, None), "key", plan_of(5))
    assert launched == [((7,), (x, None, 5, 128), {"num_warps": 4})] * 2
    assert len(plans) == 0


def test_a_launch_is_on_the_device_of_its_tensors(fake, monkeypatch):
    plans, kernel = fake
    current = [0]

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            self.before, current[0] = current[0], self.index

        def __exit__(self, *_):
            current[0] = self.before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", Device)
    on = []
    x = torch.zeros(8)

    def noting(device):
        plans.launch(
            kernel, device, (x, None), "key", lambda: on.append(current[0]) or plan_of(5)()
        )

    for device in (1, 0, 1):
        noting(device)
    assert on == [1, 0]
    assert current == [0]
    assert len(plans) == 2


# What may differ between two calls of the same op: (T, B, C, H, W), dtype, channels_last, expanded,
# amplitude, decay that is a tensor, state, whether memory begins at a multiple of 16 bytes.
BASE = {
    "shape": (4, 2, 4, 4, 4),
    "dtype": torch.float32,
    "channels_last": False,
    "expanded": False,
    "amplitude": None,
    "decay": None,
    "state": False,
    "aligned": True,
    "residual": True,
    "affine": True,
}
CHANGES = [
    {},
    {"shape": (4, 4, 4, 4, 2)},
    {"shape": (4, 2, 2, 8, 4)},
    {"shape": (8, 2, 4, 4, 4)},
    {"shape": (1, 2, 4, 4, 4)},
    {"dtype": torch.float16},
    {"channels_last": True},
    {"expanded": True},
    {"amplitude": (1,)},
    {"amplitude": (4, 1, 1)},
    {"amplitude": (4, 4, 4)},
    {"amplitude": (4, 4, 4), "channels_last": True},
    {"decay": (1,)},
    {"decay": (4, 1, 1)},
    {"state": True},
    {"aligned": False},
    {"residual": False},
    {"affine": False},
]
FORMS = [
    PAPERS,
    *(PAPERS._replace(**{name: 0.125}) for name in ("decay", "v_threshold", "v_reset")),
    *(PAPERS._replace(reset=reset) for reset in ("soft", "none", "soft_delayed")),
    *(PAPERS._replace(detach_reset=False), PAPERS._replace(ternary=True)),
    *(PAPERS._replace(surrogate="atan"), PAPERS._replace(surrogate_scale=2.0)),
]


def run_all(neuron, call):
    """Run every op once."""
    T, *shape = call["shape"]

    def tensor(*size):
        size = size or (T, *shape)
        start = 0 if call["aligned"] else 1
        flat = torch.zeros(torch.Size(size).numel() + start, dtype=call["dtype"])[start:]
        if call["channels_last"]:
            t, b, c, h, w = size
            return flat.view(t, b, h, w, c).permute(0, 1, 4, 2, 3)
        return flat.view(size)

    x = tensor(1, *shape).expand(T, -1, -1, -1, -1) if call["expanded"] else tensor()
    amplitude = None if call["amplitude"] is None else torch.ones(call["amplitude"])
    decay = None if call["decay"] is None else torch.ones(call["decay"], requires_grad=True)
    v_init = torch.zeros(shape) if call["state"] else None
    save = what_to_save(neuron, decay)
    parameters = (amplitude, decay, None, v_init)
    wanted = [amplitude is not None, decay is not None, False, call["state"]]
    channels = [torch.zeros(shape[1]) for _ in range(4)]
    if not call["affine"]:
        channels[2:] = None, None
    residual = tensor() if call["residual"] else None
    grad_y = tensor()
    with torch.no_grad():
        forward = lif_op.forward_with(lif_cuda.launch_fwd)
        backward = lif_op.backward_with(lif_cuda.launch_bwd, lif_cuda.partial_shapes)
        _, _, saved = forward(x, *parameters, neuron, save, call["state"])
        forward(x, *parameters, neuron, 0, call["state"])
        backward(grad_y, v_init, x, *parameters, saved, call["channels_last"], wanted, neuron, save)
        _packed_with(lif_cuda.launch_packed)(x, decay, None, v_init, neuron, call["state"])
        passes = passes_with(lambda: batch_norm_lif_cuda)
        moments = passes.moments(x)
        passes.statistics(moments, *channels[:2], 0.5, 1e-5)
        inputs = (x, residual, *channels, *parameters)
        _, _, saved = passes.fwd(*inputs, neuron, save, call["state"])
        passes.bwd(grad_y, v_init, *inputs, saved, wanted, neuron, save)
        sums = torch.zeros(2, shape[1], dtype=torch.float64)
        passes.norm_bwd(grad_y, x, *channels[:3], sums, moments[-1:])
        passes.norm_bwd(grad_y, x, *channels[:3], sums, None)


def test_no_launch_of_an_op_is_served_by_the_plan_of_another(monkeypatch):
    """Whatever differs between two calls, both launch what they would launch if they were alone."""
    launched = []
    for module, names in KERNELS.items():
        for name in names:
            arg_names = getattr(module, name).arg_names
            monkeypatch.setattr(module, name, Kernel(arg_names, launched, []))

    def launches(neuron, call):
        launched.clear()
        run_all(neuron, call)
        # But for the addresses of tensors, which differ from call to call.
        return [
            (grid, [arg if type(arg) is not int or arg < 2**20 else "address" for arg in args])
            for grid, args in launched
        ]

    def forget():
        for plans in PLANS:
            plans.clear()

    calls = [(PAPERS, {**BASE, **change}) for change in CHANGES]
    calls += [(neuron, BASE) for neuron in FORMS]
    alone = []
    for call in calls:
        forget()
        alone.append(launches(*call))
    forget()
    for order in (range(len(calls)), reversed(range(len(calls)))):
        for i in order:
            assert launches(*calls[i]) == alone[i], calls[i]
    planned = [len(plans) for plans in PLANS]
    for call in calls:
        launches(*call)
    assert planned == [len(plans) for plans in PLANS]
    forget()
    # The calls differ indeed, but for those that only a compiler tells apart.
    texts = [str(launch) for launch in alone]
    different = sum(a != b for a, b in itertools.combinations(texts, 2))
    assert different >= 0.95 * len(texts) * (len(texts) - 1) / 2
