"""What a worker says of itself: to its own process, and over HTTP."""

from __future__ import annotations

import urllib.error
import urllib.request

from cachebus.consumers.worker.worker import Worker


def why(worker: Worker, part: str) -> str:
    """What its health says of a part."""
    return str(worker.health.as_dict()["parts"][part]["why"])


def health(port: int, path: str = "/health/ready") -> tuple[int, str]:
    """Status and body; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""
