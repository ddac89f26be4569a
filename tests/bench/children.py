"""Python processes beside this one: what must be measured in a fresh one, or at the other end of a connection."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LINE_BYTES = 1 << 26


async def in_child(module: str, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """What the module prints, run to its end in a process of its own; `RuntimeError` with what it complains of."""
    return await run_python("-m", module, *arguments, environment=environment)


async def run_python(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """The output of a Python run to its end; `RuntimeError` with what it complains of."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complaint = await child.communicate()
    finally:
        await _end(child)
    if child.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{complaint.decode(errors='replace')}")
    return said.decode()


class Talk:
    """A child that is asked by lines of JSON and answers with one each."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def ask(self, **question: Any) -> Any:
        """Ask and wait for the answer."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(question).encode() + b"\n")
        return await self.hear()

    async def hear(self) -> Any:
        """What it says next, unasked."""
        assert self._child.stdout is not None
        line = await self._child.stdout.readline()
        if not line:
            raise RuntimeError("the other process ended; what it complained of stands above")
        return json.loads(line)


@asynccontextmanager
async def talking(module: str, *arguments: str) -> AsyncIterator[Talk]:
    """A child that runs the module; it ends when its input does, as when this process is gone."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=ROOT,
        limit=LINE_BYTES,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Talk(child)
        assert child.stdin is not None
        child.stdin.close()
        async with asyncio.timeout(10):
            await child.wait()
    finally:
        await _end(child)


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.kill()
        await child.wait()
