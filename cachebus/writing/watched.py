"""Whether a transaction of a write guard's block may have been committed, as its session tells."""

from __future__ import annotations

from functools import partial
from typing import Any

from cachebus.errors import ConfigError


class WatchedSession:
    """A session of SQLAlchemy's, and whether it has tried to commit since it is watched."""

    def __init__(self, session: Any) -> None:
        """`ConfigError` for what is no session."""
        try:
            from sqlalchemy import event
            from sqlalchemy.orm import Session
        except ImportError:
            raise ConfigError("only sessions of SQLAlchemy can be watched, which is not installed") from None
        self._session, self._tried = getattr(session, "sync_session", session), False
        if not isinstance(self._session, Session):
            raise ConfigError(f"a Session or AsyncSession can be watched, not a {type(session).__name__}")
        self._forget = partial(event.remove, self._session, "before_commit", self._note)
        event.listen(self._session, "before_commit", self._note)

    def end(self) -> bool:
        """Watch no longer; gives whether a commit was tried."""
        self._forget()
        return self._tried

    def _note(self, _session: Any) -> None:
        self._tried = True
