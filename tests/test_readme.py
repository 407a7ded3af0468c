"""What the README shows is run as it stands there, in order, in an empty directory."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\((?!http)([^)#]+)", README.read_text("utf-8"))
    assert targets
    for target in targets:
        assert (README.parent / target).is_file(), target


def test_examples_are_python():
    assert blocks()
    for block in blocks():
        compile(block, "README.md", "exec")


@pytest.mark.slow  # some minutes: the bundled pipeline is calibrated, rounded and compared
def test_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks():
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "shapes-w4a8" / "model_index.json").is_file()
    assert (tmp_path / "proof").is_dir()
