"""A run shows itself: a table in a terminal, lines elsewhere."""

from __future__ import annotations

import re
from io import StringIO

from rich.console import Console

from cachebus.tools.demo.board import BoardRow, View
from cachebus.tools.demo.screen import LiveScreen, PlainScreen, screen_on

WELL = BoardRow(1, 1_999.6, 0.853, 0.05, 98.0, 1_234, 0, 1.75, "")
CUT = BoardRow(3, 640.0, 0.51, 0.0, 300.0, 1_034, 200, 0.0, "cut off, from source")


def view(elapsed_s: float, *, coherent: bool = True) -> View:
    return View("the title", coherent, elapsed_s / 15, elapsed_s, [WELL, CUT])


def console(*, terminal: bool, width: int = 100) -> tuple[Console, StringIO]:
    out = StringIO()
    return Console(file=out, force_terminal=terminal, width=width, color_system=None), out


def test_the_screen_suits_its_console() -> None:
    assert isinstance(screen_on(console(terminal=True)[0]), LiveScreen)
    assert isinstance(screen_on(console(terminal=False)[0]), PlainScreen)


def test_plain_lines_come_every_few_seconds() -> None:
    to, out = console(terminal=False)
    with screen_on(to) as screen:
        for quarter in range(4 * 10):
            screen.show(view(quarter / 4))
        screen.say(
            "node 3: [its] network is back, in a line that is by far too long for the width of the console ........"
        )
        screen.rest()
        screen.show(view(3.0))
    lines = out.getvalue().splitlines()
    assert [line for line in lines if "the title" in line] == [
        "   3 s   20%  the title",
        "   6 s   40%  the title",
        "   9 s   60%  the title",
        "   3 s   20%  the title",
    ]
    assert sum("[its] network" in line and line.endswith("....") for line in lines) == 1
    assert "node 1:  2,000 req/s  L1  85%  L2   5%  loads   98/s  applied  1,234  behind    0  lease  1.8 s" in lines[1]
    assert lines[2].endswith("behind  200  lease lapsed  cut off, from source")


def test_without_coherence_there_is_no_lease_to_show() -> None:
    to, out = console(terminal=False)
    with screen_on(to) as screen:
        screen.show(view(3.0, coherent=False))
    assert "lease" not in out.getvalue()
    assert "loads   98/s" in out.getvalue()


def test_a_terminal_gets_a_table_and_keeps_what_was_said() -> None:
    to, out = console(terminal=True)
    with screen_on(to) as screen:
        screen.show(view(3.0))
        screen.say("node 3: its network is back")
        screen.show(view(3.25, coherent=False))
        screen.rest()
    text = out.getvalue()
    for word in ("the title", "applied", "1,234", "1.8 s", "lapsed", "cut off, from source", "network is back", "20%"):
        assert word in text


def test_what_is_said_in_a_terminal_breaks_between_words() -> None:
    to, out = console(terminal=True, width=80)
    line = "  7.2 s  node 3: now its connections hang: they stay open, and nothing comes through"
    assert len(line) > 80
    with screen_on(to) as screen:
        screen.say(line)
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).split("\n")
    assert all(len(part.rstrip()) <= 80 for part in said)
    assert " ".join(" ".join(said).split()) == " ".join(line.split()), "no word is broken"
