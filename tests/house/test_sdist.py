"""A source distribution holds what builds and tests the project: every file of the repository."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What setuptools adds.
ADDED = {"PKG-INFO", "setup.cfg"}


def copy_of_the_repository(folder) -> set[str]:
    """Copy every file of the repository, and return their names; none if this is an sdist."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        assert (ROOT / "PKG-INFO").exists()
        return set()
    names = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return names


def test_what_is_installed_is_all_of_both_packages(tmp_path):
    names = copy_of_the_repository(tmp_path)
    if not names:
        return
    build = ["setup.py", "-q", "build_py", "--build-lib", "lib"]
    subprocess.run([sys.executable, *build], cwd=tmp_path, check=True, capture_output=True)
    lib = tmp_path / "lib"
    built = {str(path.relative_to(lib)) for path in lib.rglob("*") if path.is_file()}
    packages = ("realspike/", "realspike_ops/")
    own = {name.removeprefix("python/") for name in names}
    own |= {f"realspike/{name}" for name in names if name.startswith(("configs/", "weights/"))}
    assert built == {name for name in own if name.startswith(packages)}
    # Without it a checker passes over the types.
    assert {f"{package}py.typed" for package in packages} <= built


def test_the_sdist_is_the_repository(tmp_path):
    names = copy_of_the_repository(tmp_path)
    if not names:
        return
    # What lies about in a checkout stays out.
    for name in ("realspike_ops/_C.so", "tests/__pycache__/a.pyc", "runs/a/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    build = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        files = [member.name for member in tar if member.isfile()]
    packed = {name.partition("/")[2] for name in files}
    own = {name for name in packed if "egg-info/" not in name} - ADDED
    assert own == names
