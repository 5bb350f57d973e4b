"""The house's one-way imports (docs/conventions.md), walked in the sources."""

import ast
import re
import sys
from pathlib import Path

import pytest
from helpers import ROOT, run_python

PACKAGE = ROOT / "realspike_ops"
SOURCES = sorted(PACKAGE.rglob("*.py"))
APPLICATION = sorted((ROOT / "python" / "realspike").rglob("*.py"))
SUFFIXES = (".h", ".cpp", ".cu", ".cuh")
KERNEL_SOURCES = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in SUFFIXES)


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, also inside functions."""
    tree = ast.parse(path.read_text())
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def inside(name: str, *parts: str) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def files(folder: str) -> list[Path]:
    path = PACKAGE / folder
    return [path] if path.suffix else sorted(path.rglob("*.py"))


# Lower layers first; a file imports its own layer and those before it.
LAYERS = [
    "_native.py",
    "kernels",
    "ops",
    "functional",
    "nn",
    "reparam",
    "convert",
    "export",
]


def modules_of(layer: str) -> str:
    return f"realspike_ops.{layer.removesuffix('.py').replace('/', '.')}"


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_downwards(layer):
    above = [modules_of(other) for other in LAYERS[LAYERS.index(layer) + 1 :]]
    assert files(layer)
    for path in files(layer):
        upwards = {name for name in imported(path) if inside(name, *above)}
        assert not upwards, f"{path.name} imports {upwards}"


# Of `reparam`, lower floors first.
FLOORS = [
    "reparam/errors.py",
    "reparam/trace",
    "reparam/algebra",
    "reparam/rules",
    "reparam/encoding_call.py",
    "reparam/units.py",
    "reparam/network_text.py",
    "reparam/network.py",
    "reparam/build",
    "reparam/check",
    "reparam/layers_in_json.py",
    "reparam/file.py",
    "reparam/reparameterize.py",
]


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_of_folding_import_downwards(floor):
    above = [modules_of(other) for other in FLOORS[FLOORS.index(floor) + 1 :]]
    assert files(floor)
    for path in files(floor):
        upwards = {name for name in imported(path) if inside(name, *above)}
        assert not upwards, f"{path.name} imports {upwards}"


def source_of(name: str, sources: dict[str, Path]) -> str | None:
    """Return the module that holds an imported name; a package stands for its __init__."""
    found = next((m for m in (name, name.rpartition(".")[0]) if m in sources), None)
    return None if name == "realspike_ops._C" else found


def circle(sources: dict[str, Path]) -> list[str]:
    """Return modules of which each imports the next one and the last one the first, or []."""
    needs = {
        name: {source_of(wanted, sources) for wanted in imported(path)} - {None, name}
        for name, path in sources.items()
    }
    done: set[str] = set()

    def visit(name: str, above: list[str]) -> list[str]:
        if name in above:
            return above[above.index(name) :]
        if name in done:
            return []
        for target in sorted(needs[name]):
            if found := visit(target, [*above, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(sources) if (found := visit(name, []))), [])


@pytest.mark.parametrize("root", ["realspike_ops", "python/realspike"])
def test_no_files_import_each_other_in_a_circle(root):
    package = ROOT / root
    sources = {module_name(path, package.parent): path for path in package.rglob("*.py")}
    assert len(sources) > 40
    assert not circle(sources)


@pytest.mark.parametrize("helper", ["_checks.py", "surrogate.py", "_version.py", "_moved.py"])
def test_helpers_import_nothing_of_the_package(helper):
    assert not {name for name in imported(PACKAGE / helper) if inside(name, "realspike_ops")}


def test_reference_imports_only_torch():
    standard = {"math", "typing", "__future__"}
    for path in files("reference"):
        for name in imported(path):
            allowed = inside(name, "torch", "realspike_ops.reference", *standard)
            assert allowed, f"{path.name} imports {name}"


def test_the_package_never_imports_the_reference():
    importers = [
        module_name(path)
        for path in SOURCES
        if "reference" not in path.relative_to(PACKAGE).parts
        and any(inside(name, "realspike_ops.reference") for name in imported(path))
    ]
    assert importers == ["realspike_ops"]


def test_one_importer_of_the_extension():
    importers = [
        module_name(path)
        for path in SOURCES
        if any(inside(name, "realspike_ops._C") for name in imported(path))
    ]
    assert importers == ["realspike_ops._native"]


def test_objects_are_made_by_their_constructors():
    for path in (*SOURCES, *APPLICATION):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                of_super = isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super"
                assert node.func.attr != "__new__", f"{path.name}:{node.lineno}"
                assert node.func.attr != "__init__" or of_super, f"{path.name}:{node.lineno}"


def test_triton_stays_in_the_kernels_and_their_launches():
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        if any(inside(name, "triton") for name in imported(path))
    }
    assert importers
    assert all(re.fullmatch(r"kernels/.*\.py|ops/.*_cuda\.py", name) for name in importers)


def test_kernels_are_imported_from_ops_alone():
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in SOURCES
        if any(inside(name, "realspike_ops.kernels") for name in imported(path))
    }
    assert importers <= {"ops", "kernels"}
    assert "ops" in importers


def test_kernels_neither_allocate_nor_differentiate():
    for path in files("kernels"):
        assert not {name for name in imported(path) if inside(name, "torch")}, path.name


def test_the_application_uses_public_names_alone():
    public = set(ast.literal_eval(_all_of(PACKAGE / "__init__.py")))
    assert APPLICATION
    for path in APPLICATION:
        for name in imported(path):
            if inside(name, "realspike_ops"):
                rest = name.split(".")[1:]
                assert not rest or rest[0] in public, f"{path.name} imports {name}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.value.id in ("rso", "realspike_ops") and node.attr not in public
                assert not private, f"{path.name} uses {node.value.id}.{node.attr}"


def test_every_package_is_installed():
    declared = re.search(
        r"\npackages = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.DOTALL
    )
    roots = {ROOT: PACKAGE, ROOT / "python": ROOT / "python" / "realspike"}
    found = [
        module_name(path, root)
        for root, package in roots.items()
        for path in package.rglob("__init__.py")
    ]
    found += ["realspike.configs", "realspike.weights"]  # files without code
    assert sorted(found) == sorted(ast.literal_eval(declared.group(1)))


def _all_of(path: Path) -> ast.expr:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return node.value
    raise AssertionError(f"{path} has no __all__")


def test_all_names_exist():
    import realspike_ops

    names = ast.literal_eval(_all_of(PACKAGE / "__init__.py"))
    assert sorted(names) == sorted(set(names))
    for name in names:
        assert hasattr(realspike_ops, name), name


INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def test_kernel_sources_know_neither_python_nor_torch():
    assert len(KERNEL_SOURCES) > 10
    for path in KERNEL_SOURCES:
        includes = INCLUDE.findall(path.read_text())
        foreign = [name for name in includes if re.match(r"Python|pybind11|torch|ATen|c10", name)]
        assert not [n for n in foreign if not n.startswith("pybind11")], path.name
        assert not foreign or path.name == "bindings.cpp", path.name


def test_core_headers_include_no_kernel():
    for path in KERNEL_SOURCES:
        folder = path.relative_to(ROOT / "csrc").parts[0]
        includes = INCLUDE.findall(path.read_text())
        if folder == "core":
            assert not [name for name in includes if name.startswith(("cpu/", "cuda"))], path.name
        if folder == "cpu":
            assert not [name for name in includes if name.startswith("cuda")], path.name
        if folder == "cuda":
            assert not [name for name in includes if name.startswith("cpu/")], path.name


def test_the_package_imports_without_triton_and_without_the_extension():
    # Triton waits for the first CUDA tensor, the extension for the first call.
    program = (
        "import sys, realspike_ops; print([n for n in sys.modules if 'triton' in n or '_C' in n])"
    )
    loaded = ast.literal_eval(run_python("-c", program))
    assert not [name for name in loaded if inside(name, "triton", "realspike_ops._C")]


def test_the_package_imports_and_runs_with_a_torch_without_distributed():
    """Such a torch has an empty torch.distributed, which says that it is not available."""
    program = (
        "import torch, torch.distributed as dist\n"
        "for name in [n for n in vars(dist) if n[0] != '_' and n != 'is_available']:\n"
        "    delattr(dist, name)\n"
        "dist.is_available = lambda: False\n"
        "import realspike_ops as rso\n"
        "x = torch.randn(4, 2, 3, 5, 5).requires_grad_()\n"
        "rso.batch_norm_lif(x, None, None, None, None).sum().backward()\n"
        "norm = torch.nn.SyncBatchNorm(3)\n"
        "y = rso.NormLIF(norm, rso.RealSpikeLIF(4))(x.detach().flatten(0, 1))\n"
        "print(tuple(y.shape), norm.num_batches_tracked.item())"
    )
    assert run_python("-c", program).strip() == "(8, 3, 5, 5) 1"


def test_importing_loads_little_beyond_torch():
    program = (
        "import sys, torch\nbefore = set(sys.modules)\nimport realspike_ops\n"
        "print(sorted(set(sys.modules) - before))"
    )
    loaded = ast.literal_eval(run_python("-c", program))
    others = [
        name for name in loaded if not inside(name, "realspike_ops", *sys.stdlib_module_names)
    ]
    # Compilers, tracers, exporters, and packages beside torch take tenths of seconds.
    assert all(inside(name, "torch") for name in others), others
    slow = ("torch._dynamo", "torch._inductor", "torch.export", "torch.onnx", "torch.testing")
    assert not [name for name in others if inside(name, *slow)], others
    assert len(others) < 20, others
