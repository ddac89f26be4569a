"""Where Python has less than on Unix, importing works: no promise, but no crash either."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os
import asyncio, concurrent.futures.thread, logging, random, threading  # which ask for it where there is a fork
del os.register_at_fork
import cachebus, cachebus.resp
print(cachebus.__version__)
"""


def test_it_is_imported_where_no_process_can_be_forked() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.1.0"
