"""What the Triton kernels compile to, on a machine that need not have the chip."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parent / "compile_kernels.py"


def test_kernels_compile_well():
    """All of them in one process, where nothing is interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", str(SCRIPT)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines
    complaints = [
        f"{line['name']}: {fact} is {line['facts'][fact]}, not {bound} or {better}"
        for line in lines
        for better, bounds in (("less", line["at_most"]), ("more", line["at_least"]))
        for fact, bound in bounds.items()
        if (line["facts"][fact] > bound) == (better == "less") and line["facts"][fact] != bound
    ]
    assert not complaints, "\n".join(complaints)
