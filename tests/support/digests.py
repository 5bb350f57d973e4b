"""The bits of every CPU kernel's results for fixed inputs; run it to print them as JSON."""

import hashlib
import itertools
import json

import torch
from helpers import binary, normal

import realspike_ops as rso

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SURROGATES = (("rectangular", True), ("rectangular", False), ("atan", False), ("sigmoid", False))
# (emission, reset, detach_reset, decay and threshold are learnable)
FORMS = (
    ("ternary", "hard", True, False),
    ("ternary", "soft", False, False),
    ("binary", "none", True, False),
    ("binary", "hard", False, True),
    ("ternary", "soft", False, True),
    ("binary", "soft_delayed", True, False),
    ("ternary", "soft_delayed", False, True),
)


def results():
    """Yield (name, tensor)."""
    formats = (torch.contiguous_format, torch.channels_last)
    for (Cin, Cout, groups), memory_format in itertools.product(
        ((70, 37, 1), (130, 200, 1), (66, 34, 2), (70, 70, 70)), formats
    ):
        spikes = binary((5, Cin, 6, 7), 1).contiguous(memory_format=memory_format)
        weight = normal((6, 7, groups, 3, 3, Cin // groups, Cout // groups), 2)
        bias = normal((Cout,), 3)
        out = rso.unshared_spike_conv(spikes, weight, bias, padding=1)
        yield f"conv {Cin} {Cout} {groups} {memory_format}", out
    for N, Cin, Cout, groups in ((5, 16, 16, 1), (14, 33, 12, 1), (22, 26, 40, 2)):
        spikes = binary((N, Cin, 6, 7), 1)
        weight = normal((5, 6, groups, 2, 2, Cin // groups, Cout // groups), 2)
        for memory_format in formats:
            out = rso.unshared_spike_conv(spikes.contiguous(memory_format=memory_format), weight)
            yield f"conv few {N} {Cin} {Cout} {groups} {memory_format}", out
    spikes = binary((5, 70, 6, 7), 1)
    for dtype in (*FLOATS, torch.uint8):
        weight = normal((6, 7, 70, 3, 3, 1, 1), 2)
        weight = rso.quantize_weight(weight)[0] if dtype == torch.uint8 else weight.to(dtype)
        yield f"conv depthwise {dtype}", rso.unshared_spike_conv(spikes, weight, padding=1)
    spikes = binary((5, 130, 6, 7), 1)
    for Cout, dtype in itertools.product((37, 200), (*FLOATS, torch.uint8)):
        weight = normal((1, 1, 1, 3, 3, 130, Cout), 2)
        weight = rso.quantize_weight(weight)[0] if dtype == torch.uint8 else weight.to(dtype)
        yield f"conv {Cout} {dtype}", rso.unshared_spike_conv(spikes, weight, padding=1)
        if dtype != torch.uint8:
            out = rso.unshared_spike_conv(spikes, weight, amplitude=normal((130, 6, 7), 3))
            yield f"conv {Cout} {dtype} factored", out
    for dtype, (surrogate, detach_reset) in itertools.product(FLOATS, SURROGATES):
        x = normal((11, 3, 5, 9, 13), 4).to(dtype).requires_grad_()
        amplitude = normal((5, 1, 1), 5).requires_grad_()
        y, v_last = rso.lif(
            *(x, amplitude),
            decay=0.3,
            surrogate=surrogate,
            detach_reset=detach_reset,
            return_state=True,
        )
        (y.float().pow(2).sum() + v_last.sum()).backward()
        for part, tensor in (("y", y), ("v", v_last), ("x", x.grad), ("a", amplitude.grad)):
            yield f"lif {dtype} {surrogate} {detach_reset} {part}", tensor
    for dtype, (emission, reset, detach_reset, learn) in itertools.product(FLOATS, FORMS):
        x = normal((11, 3, 5, 9, 13), 4).to(dtype).requires_grad_()
        parameters = [normal((5, 1, 1), seed).sigmoid().requires_grad_(learn) for seed in (5, 6)]
        form = {"emission": emission, "reset": reset, "detach_reset": detach_reset}
        form |= {"decay": parameters[0], "v_threshold": parameters[1]} if learn else {}
        y, v_last = rso.lif(x, return_state=True, **form)
        (y.float().pow(2).sum() + v_last.sum()).backward()
        packed = rso.lif(x.detach(), packed=True, emission=emission, reset=reset)
        parts = {"y": y, "v": v_last, "x": x.grad, "packed": packed}
        if learn:
            parts |= {"decay": parameters[0].grad, "threshold": parameters[1].grad}
        for part, tensor in parts.items():
            yield f"lif {dtype} {emission} {reset} {detach_reset} {learn} {part}", tensor
    yield from batch_norm_lif_results()
    for dtype, memory_format in itertools.product((*FLOATS, torch.float64, torch.bool), formats):
        spikes = binary((3, 70, 9, 9), 6).to(dtype).contiguous(memory_format=memory_format)
        packed = rso.pack_spikes(spikes)
        yield f"pack {dtype} {memory_format}", packed
        yield f"unpack {dtype} {memory_format}", rso.unpack_spikes(packed, 70)


def batch_norm_lif_results():
    """Yield (name, tensor): maps of one tile and of many, channels that do not fill a vector."""
    forms = (
        {"detach_reset": True},
        {"emission": "ternary", "reset": "soft", "detach_reset": True},
        {"surrogate": "atan"},
    )
    shapes = ((6, 3, 5, 9, 13), (3, 2, 100, 7, 7), (4, 2, 64, 8, 8), (2, 1, 2, 67, 70))
    for shape, channels_last, (form, dtype) in itertools.product(
        shapes, (False, True), zip(forms, FLOATS, strict=True)
    ):

        def laid_out(x, channels_last=channels_last):
            return x.movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else x

        x, residual = (
            laid_out((normal(shape, seed) + 10 * seed).to(dtype)).requires_grad_()
            for seed in (1, 0)
        )
        C = shape[2]
        parameters = [normal((C,), seed).requires_grad_() for seed in (2, 3)]
        running = [torch.zeros(C), torch.ones(C)]
        amplitude = normal(shape[2:], 4).requires_grad_()
        y, v_last = rso.batch_norm_lif(
            x, *parameters, *running, residual=residual, amplitude=amplitude, return_state=True,
            **form,
        )  # fmt: skip
        (y.float().pow(2).sum() + v_last.sum()).backward()
        parts = {"y": y, "v": v_last, "mean": running[0], "var": running[1], "x": x.grad}
        parts |= {"residual": residual.grad, "weight": parameters[0].grad}
        parts |= {"bias": parameters[1].grad, "amplitude": amplitude.grad}
        for part, tensor in parts.items():
            yield f"batch_norm_lif {shape} {channels_last} {dtype} {part}", tensor


def digests() -> dict[str, str]:
    return {
        name: hashlib.sha256(
            tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in results()
    }


if __name__ == "__main__":
    isa = rso.build_info().split("this CPU runs ")[1].split(";")[0]
    print(json.dumps({"isa": isa, "digests": digests()}))
