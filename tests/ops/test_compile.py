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
    complaints = []
    for line in lines:
        for fact, found in line["facts"].items():
            least, most = line["at_least"].get(fact, 0), line["at_most"].get(fact, found)
            if not least <= found <= most:
                complaints.append(f"{line['name']}: {fact} is {found}, not {least} … {most}")
    assert not complaints, "\n".join(complaints)
