"""What docs/adding-a-model.md shows is run as it stands there, in order, in an empty directory."""

import re
from pathlib import Path

from viditq import models
from viditq.plan import ROLES

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-model.md"


def test_a_model_is_added_as_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "_BY_CLASS", dict(models._BY_CLASS))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), namespace)
    layers, quality = capsys.readouterr().out.splitlines()
    assert layers == "21 layers quantized"
    assert float(quality.removesuffix(" dB")) > 30


def test_files_and_roles_that_it_names_exist():
    text = PAGE.read_text("utf-8")
    paths = re.findall(r"`((?:src|tests)/[\w/.]+)`", text)
    assert len(paths) > 3
    for path in paths:
        assert (PAGE.parents[1] / path).exists(), path
    assert set(re.findall(r"`((?:self_attn|cross_attn|temporal_attn|ffn)\.\w+)`", text)) == set(
        ROLES
    )
