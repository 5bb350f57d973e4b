"""A source distribution holds what builds and tests the project: every file of the repository."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What setuptools adds.
ADDED = {"PKG-INFO", "setup.cfg"}


def test_the_sdist_is_the_repository(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:  # unpacked from one
        assert (ROOT / "PKG-INFO").exists()
        return
    names = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
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
