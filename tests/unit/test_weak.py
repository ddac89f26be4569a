"""Weak collections that one thread looks through while another adds to them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from cachebus.base.providers import Provided, provided, trouble_of
from cachebus.base.tls import FileContext, TlsFiles, tls_troubles
from cachebus.resp.credentials import CredentialSource


@contextmanager
def amid(walk: Callable[..., Any], does: Callable[[], object]) -> Iterator[None]:
    """Do this once, between the first and the second that the walk gives: as another thread may."""
    given = 0

    def look(frame: FrameType, event: str, _arg: object) -> None:
        nonlocal given
        if event == "call" and frame.f_code is walk.__code__:
            given += 1
            if given == 2:
                does()

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert given >= 2


class Told:
    """Has a connection log in anew, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def soon(self, _login: tuple[str, ...] | None) -> None:
        self.times += 1


def test_a_connection_that_begins_keeps_no_other_from_the_new_login() -> None:
    heard: list[Callable[[object], object]] = []
    source = CredentialSource(
        SimpleNamespace(get_credentials=lambda: ("pw",), on_next=heard.append, on_error=lambda _callback: None)
    )
    several, comes = [Told(), Told()], Told()
    source.renewals.update(several)
    with amid(WeakSet.__iter__, lambda: source.renewals.add(comes)):
        heard[0](object())
    assert [told.times for told in several] == [1, 1]


def test_files_of_tls_are_looked_at_while_others_come() -> None:
    contexts = [FileContext(TlsFiles()) for _ in range(2)]
    with amid(WeakSet.__iter__, lambda: contexts.append(FileContext(TlsFiles()))):
        assert tls_troubles() == []


def test_a_provider_is_looked_at_while_others_come() -> None:
    others: list[Provided[Any]] = []

    def one_more() -> Any:
        provider = SimpleNamespace(token=lambda: "t")
        others.append(provided(provider, "token", str))
        return provider

    first = one_more()
    one_more()
    others[0].failed("gave nothing")
    with amid(WeakValueDictionary.keys, one_more):
        assert "gave nothing" in trouble_of(first)
