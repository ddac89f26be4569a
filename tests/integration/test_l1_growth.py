"""`l1_max_bytes` holds for the process, whatever the values are: what they take once they are decoded counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.growth import KINDS, MIB

ROOT = Path(__file__).parents[2]
BOUND_MIB = 16
SLACK_MIB = 3
"""What the interpreter's own tables and arenas may take besides."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_grows_by_no_more_than_the_bound_and_a_half(kind: str) -> None:
    command = [sys.executable, "-m", "tests.support.growth", kind, str(BOUND_MIB)]
    ran = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    grown, held, entries = map(int, ran.stdout.split())
    assert grown <= (1.5 * BOUND_MIB + SLACK_MIB) * MIB, f"{grown} bytes for {entries} entries of {held} bytes"
    assert held > 0.8 * BOUND_MIB * MIB, f"{held} bytes in L1 are no test of its bound"
