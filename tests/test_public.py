"""The public surface: what ``__all__`` lists is what can be imported, late."""

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import viditq


@pytest.mark.parametrize("name", viditq.__all__)
def test_name_can_be_imported(name):
    assert getattr(viditq, name) is not None
    assert name in dir(viditq)


def test_type_checkers_see_what_runs():
    tree = ast.parse(Path(viditq.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: (node.module or "").removeprefix("viditq.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == viditq._HOMES
    assert {*seen, "__version__"} == set(viditq.__all__)


def test_no_name_is_hidden_by_a_submodule():
    folder = Path(viditq.__file__).parent
    submodules = {path.stem for path in folder.iterdir()}
    assert submodules.isdisjoint(viditq._HOMES)


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = viditq.quantise


def test_import_is_light():
    """``import viditq`` and its errors load nothing outside the standard library."""
    code = "import sys, viditq; viditq.ViditqError; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert loaded.isdisjoint({"torch", "diffusers", "transformers", "numpy", "pydantic", "typer"})


def test_version_is_the_installed_one():
    assert metadata.version("viditq") == viditq.__version__
