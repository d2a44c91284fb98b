"""
Builds the package in the directory that is given, and looks at what comes out: ``nox -s build``.

The wheel has to hold the package and its type marker and nothing else, to be the same from the source distribution and
from the tree, and to work in an empty environment with nothing but what it says it needs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = {"sa-isolated-tasks", "sqlalchemy", "greenlet", "typing-extensions"}
IN_SOURCE = {
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"),
    *("noxfile.py", "conftest.py", "pyproject.toml", "PKG-INFO"),
}
# And all that is in these, but for what programs have left there.
FOLDERS = (".ci", "benchmarks", "docs", "examples", "src", "tests")
LEFT = {"__pycache__", "_build"}


def build(outdir, *options):
    run(sys.executable, "-m", "build", "--installer", "uv", "--outdir", outdir, *options, ROOT)
    (wheel,) = outdir.glob("*.whl")
    return wheel


def run(*command):
    ran = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def expect(what, found, wanted):
    if found != wanted:
        sys.exit(f"{what}: {found}, and not {wanted}")
    print(f"{what}: as it should be")


def main(directory):
    shutil.rmtree(directory, ignore_errors=True)
    # Without options, the wheel is built from the source distribution.
    from_source, from_tree = build(directory / "source"), build(directory / "tree", "--wheel")

    in_wheel = contents(from_tree)
    expect("the wheel of the source distribution", contents(from_source) == in_wheel, True)
    in_tree = {
        str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*") if path.suffix in {".py", ".typed"}
    }
    in_package = {name for name in in_wheel if ".dist-info/" not in name}
    expect("files of the package in the wheel", in_package ^ in_tree, set())
    expect("the type marker", "sa_isolated_tasks/py.typed" in in_package, True)
    with tarfile.open(next((directory / "source").glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = IN_SOURCE | {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not LEFT.intersection(path.parts)
    }
    expect("missing in the source distribution", wanted - names, set())

    empty = directory / "empty"
    venv.create(empty, with_pip=True)
    python = empty / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", from_tree)
    listed = run(python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check").splitlines()
    installed = {line.partition("==")[0].lower().replace("_", "-") for line in listed} - {"pip", "setuptools"}
    expect("installed with it", installed, NEEDED)
    run(python, "-W", "error", "-Ic", "from sa_isolated_tasks import *; TaskScope, isolated_session")
    expect("imported in isolation", True, True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
