"""The command line on tiny pipelines, with a judge that has learned nothing."""

import pytest
import torch
from typer.testing import CliRunner

import tiny
from viditq.cli import app
from viditq.zoo.judge import Judge, JudgeNet


@pytest.fixture
def viditq():
    """Run a command; the result has ``exit_code``, ``stdout`` and ``stderr``."""

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


class Unlearned(Judge):
    """Features of random weights; sees the same star in everything, of any size."""

    def read(self, samples, batch_size=64):
        return [{"shape": "star"}] * len(samples)


@pytest.fixture(autouse=True)
def _judge(monkeypatch):
    monkeypatch.setattr(Judge, "load", staticmethod(lambda: Unlearned(JudgeNet())))


@pytest.fixture(scope="session")
def float_pipeline(tmp_path_factory):
    torch.manual_seed(0)
    return tiny.saved(tiny.pixart(), tmp_path_factory.mktemp("pixart") / "float")


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("# two\na red star\n\na blue circle\n")
    return file
