"""Runs every CPU kernel of an extension that was built with the sanitizers.

    python -m sanitized_sweep EXTENSION sweep|one_beyond|misaligned

torch gives a tensor on the CPU an allocation of its own, of exactly its size, so that an access to
the element after the last, or before the first, is one outside all memory. Sizes are odd: every
loop has whole vectors and a rest. Values are not compared; the other tests do that.
"""

import importlib.util
import itertools
import json
import sys

import torch
from helpers import binary, generator, normal


def load(path: str):
    """Make the extension at `path` the one that realspike_ops uses."""
    spec = importlib.util.spec_from_file_location("realspike_ops._C", path)
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    sys.modules["realspike_ops._C"] = extension
    return extension


FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)


def exactly(tensor):
    """Return a copy in an allocation of its own, in the same memory format."""
    return tensor.clone(memory_format=torch.preserve_format)


def run_lif(rso):
    # (T, shape): fewer neurons than a vector, a rest, more than a tile; every number of timesteps
    # modulo those of a plane of bits and between two saved potentials.
    sizes = ((1, (1,)), (3, (2, 5)), (5, (1, 3, 7, 3)), (9, (2, 3, 5, 5)), (17, (1, 11, 19, 11)))
    forms = (
        {"detach_reset": True},
        {"detach_reset": False, "surrogate": "atan"},
        {"detach_reset": True, "emission": "ternary"},
        {"reset": "soft", "surrogate": "sigmoid", "emission": "ternary"},
        {"reset": "none", "surrogate": "triangle"},
        {"v_init": True, "v_reset": 0.25, "detach_reset": False},
        {"learn": True, "reset": "soft"},
        {"reset": "soft_delayed", "emission": "ternary"},
    )
    for (T, shape), form, dtype in itertools.product(sizes, forms, FLOATS):
        form = dict(form)
        x = normal((T, *shape), 1).to(dtype).requires_grad_()
        follows = tuple(n if d == 0 else 1 for d, n in enumerate(shape[1:])) or (1,)
        granularities = {"layer": (1,), "channel": follows, "element": shape[1:] or (1,)}
        if form.pop("v_init", False):
            form["v_init"] = normal(shape, 2).requires_grad_()
        learn = form.pop("learn", False)
        for size in (None, *dict.fromkeys(granularities.values())):
            amplitude = None if size is None else normal(size, 3).requires_grad_()
            if learn:
                for seed, name in enumerate(("decay", "v_threshold")):
                    form[name] = normal(size or (1,), seed).sigmoid().requires_grad_()
            y, v_last = rso.lif(x, amplitude, return_state=True, **form)
            (y.float().square().sum() + v_last.sum()).backward()
            yield
            with rso.compress_spikes():
                rso.lif(x, amplitude, **form).square().sum().backward()
            yield
        with torch.no_grad():
            rso.lif(x, **form)
            rso.lif(x[:1].expand_as(x), **form)
            yield


def run_batch_norm_lif(rso):
    # Channels: fewer than a vector, more than one, more than a tile; maps of one pixel, of a
    # rest, of more than a run.
    sizes = (
        (1, 3, 1, 1, 1),
        (3, 2, 5, 3, 7),
        (5, 1, 70, 2, 3),
        (2, 2, 3, 65, 64),
        (9, 1, 35, 1, 1),
    )
    sizes += ((2, 2, 2049, 1, 1), (1, 40, 17, 5, 5))
    forms = (
        {"detach_reset": True},
        {"surrogate": "atan"},
        {"emission": "ternary", "detach_reset": True, "reset": "soft"},
    )
    layouts = (lambda x: x, lambda x: x.movedim(2, -1).contiguous().movedim(-1, 2))
    for index, (size, form, dtype, lay_out) in enumerate(
        itertools.product(sizes, forms, FLOATS, layouts)
    ):
        C, bare = size[2], index % 5 == 0
        x, residual = (exactly(lay_out(normal(size, seed).to(dtype))) for seed in (1, 2))
        parameters = [None if bare else normal((C,), seed).requires_grad_() for seed in (3, 4)]
        running = (torch.zeros(C), torch.ones(C))
        shapes = (None, (1,), (C, 1, 1), size[2:])
        shape = shapes[index % 4]
        y, v_last = rso.batch_norm_lif(
            x.requires_grad_(),
            *(*parameters, *running),
            residual=None if bare else residual.requires_grad_(),
            amplitude=None if shape is None else normal(shape, 5).requires_grad_(),
            return_state=True,
            **form,
        )
        (y.float().square().sum() + v_last.sum()).backward()
        yield
        with torch.no_grad():
            still = x[:1].expand_as(x)
            rso.batch_norm_lif(still, *parameters, *running, residual=still, training=False, **form)
            rso.batch_norm_lif(still, *parameters, None, None, **form)
            yield


def run_lif_packed(rso):
    shapes = ((1, 1), (2, 31), (1, 33, 3), (2, 65, 5, 13), (1, 2, 67), (1, 2050, 1))
    layouts = (lambda x: x, lambda x: x.movedim(2, -1).contiguous().movedim(-1, 2))
    forms = (
        {},
        {"emission": "ternary"},
        {"reset": "soft", "emission": "ternary"},
        {"reset": "none"},
        {"reset": "soft_delayed"},
    )
    for shape, form, lay_out, T in itertools.product(shapes, forms, layouts, (1, 6)):
        for dtype in FLOATS:
            rso.lif(exactly(lay_out(normal((T, *shape), 1).to(dtype))), packed=True, **form)
            yield
        x, v_init = normal((1, *shape), 1).expand(T, *shape), normal(shape, 2)
        rso.lif(x, packed=True, v_init=v_init, return_state=True, **form)
        yield


def run_pack_spikes(rso):
    dtypes = (*FLOATS, torch.float64, torch.bool, torch.uint8, torch.int8)
    for C, size, dtype, memory_format in itertools.product(
        (1, 31, 32, 33, 64, 65, 129), ((1, 1), (3, 5), (9, 8)), dtypes, FORMATS
    ):
        spikes = binary((2, C, *size), C).to(dtype).contiguous(memory_format=memory_format)
        rso.unpack_spikes(exactly(rso.pack_spikes(exactly(spikes))), C)
        yield
    wide = binary((3, 40, 5, 14), 1)
    for view in (wide[..., ::2], wide[:, 1::3], wide.transpose(2, 3), wide[:, :1].expand_as(wide)):
        rso.pack_spikes(view)
        yield


def geometries():
    """Yield (map, kernel, geometry)."""
    yield (1, 1), (1, 1), {}
    yield (4, 5), (3, 3), {"padding": 1}
    yield (5, 7), (2, 3), {"padding": (1, 2), "stride": (2, 1), "dilation": (1, 2)}
    yield (1, 9), (1, 5), {"padding": (0, 2), "stride": 2}


def run_unshared_conv(rso):
    from realspike_ops.functional import output_size

    channels = ((1, 1, 1), (33, 17, 1), (66, 34, 2), (3, 6, 3), (130, 257, 1), (65, 64, 1))
    channels += ((35, 35, 35),)
    for (Cin, Cout, groups), (size, kernel, geometry), storage, N in itertools.product(
        channels, geometries(), ("float32", "float16", "bfloat16", "int8", "factored"), (1, 18)
    ):
        wide = Cout > 100
        if wide and (size, N) != ((4, 5), 1):
            continue
        full = {"stride": 1, "padding": 0, "dilation": 1} | geometry
        _, positions = output_size(size, kernel, **full)
        shape = (groups, *kernel, Cin // groups, Cout // groups)
        spikes = binary((N, Cin, *size), N, 0.4)
        options = dict(geometry)
        if storage == "factored":
            weight = normal((1, 1, *shape), 1).requires_grad_()
            options["amplitude"] = normal((Cin, *size), 2).requires_grad_()
        elif storage == "int8":
            weight = torch.randint(
                256, (*positions, *shape), generator=generator(1), dtype=torch.uint8
            )
            options["scale"] = normal((Cout,), 2)
        else:
            weight = normal((*positions, *shape), 1).to(getattr(torch, storage)).requires_grad_()
        element_bias = normal((Cout, *positions), 3)
        given = exactly(rso.pack_spikes(spikes)), weight, element_bias
        rso.unshared_spike_conv(*given, **options)
        if storage == "int8":
            for kernels in (weight, weight[:1, :1].expand_as(weight)):
                by_products = rso.unshared_spike_conv(
                    given[0], kernels, element_bias, algorithm="auto", **options
                )
                expected = rso.unshared_spike_conv(given[0], kernels, element_bias, **options)
                assert torch.equal(by_products, expected)
                yield
        rso.unshared_spike_conv(
            exactly(spikes.contiguous(memory_format=torch.channels_last)), weight, **options
        )
        yield
        if wide and storage != "float32":
            continue
        leaf = exactly(spikes).requires_grad_()
        bias = normal((Cout,), 4).requires_grad_()
        rso.unshared_spike_conv(leaf, weight, bias, **options).square().sum().backward()
        yield


def run_unshared_conv_lif(rso):
    forms = (
        {},
        {"emission": "ternary"},
        {"reset": "soft", "emission": "ternary", "v_init": True},
        {"decay": True, "v_threshold": True},
    )
    channels = ((1, 1, 1), (33, 31, 1), (40, 33, 1), (66, 64, 2), (130, 257, 1))
    for (Cin, Cout, groups), form, (T, B), dtype in itertools.product(
        channels, forms, ((1, 1), (3, 1), (5, 7)), (*FLOATS, torch.uint8)
    ):
        if Cout > 100 and (T, B) != (3, 1):
            continue
        form = dict(form)
        for name in ("decay", "v_threshold"):
            if name in form:
                form[name] = normal((Cout, 4, 5), 1).sigmoid()
        if "v_init" in form:
            form["v_init"] = normal((B, Cout, 4, 5), 2)
        weight = normal((4, 5, groups, 3, 3, Cin // groups, Cout // groups), 3)
        weight = rso.quantize_weight(weight)[0] if dtype == torch.uint8 else weight.to(dtype)
        spikes = binary((T * B, Cin, 4, 5), 4, 0.4)
        for algorithm in ("gather", "auto"):
            rso.unshared_spike_conv_lif(
                spikes, weight, normal((Cout,), 5), timesteps=T, padding=1, return_state=True,
                algorithm=algorithm, **form,
            )  # fmt: skip
            yield


def run_fetched_ahead(rso):
    """More than 8 MiB of weights, whose rows are fetched ahead."""
    for dtype, N in itertools.product((*FLOATS, torch.uint8), (2, 20)):
        weight = torch.ones((6, 6, 1, 3, 3, 66, 400 // dtype.itemsize), dtype=dtype)
        rso.unshared_spike_conv(binary((N, 66, 6, 6), 1, 0.02), weight, padding=1)
        yield


def sweep(rso) -> int:
    runs = (run_lif, run_batch_norm_lif, run_lif_packed, run_pack_spikes, run_unshared_conv)
    runs += (run_unshared_conv_lif, run_fetched_ahead)
    torch.set_num_threads(2)
    return sum(1 for run in runs for _ in run(rso))


def unpack(extension, packed, spikes, N):
    """Unpack N samples of 40 channels and 3 pixels, whatever the tensors hold."""
    params = extension.UnpackSpikesParams(packed, spikes, N, 40, 3, 120, 3, 1)
    extension.unpack_spikes_cpu(params, 1)


def main() -> None:
    path, what = sys.argv[1:]
    extension = load(path)
    import realspike_ops as rso

    if what == "sweep":
        print(json.dumps({"isa": extension.cpu_isa(), "calls": sweep(rso)}))
        return
    packed, spikes = torch.zeros(2, 3, 2, dtype=torch.int32), torch.empty(2, 40, 3)
    unpack(extension, packed.data_ptr(), spikes.data_ptr(), 2)
    if what == "one_beyond":
        unpack(extension, packed.data_ptr(), spikes.data_ptr(), 3)
    elif what == "misaligned":
        unpack(extension, packed.data_ptr() + 1, spikes.data_ptr(), 1)


if __name__ == "__main__":
    main()
