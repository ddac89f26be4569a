"""The histogram of a verdict as an SVG picture."""

from __future__ import annotations

from html import escape
from math import log10
from typing import Final

from cachebus.tools.verify.checker.verdict import EDGES_S, Verdict, nines

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 70, 70
INK, PALE, GOOD, BAD = "#1c2530", "#8a94a0", "#2f7ed8", "#d8442f"


def as_svg(verdict: Verdict) -> str:
    """Stale reads by age, on a logarithmic scale, with the bound and two lines of summary."""
    head = f"{verdict.judged:,} reads, {verdict.writes:,} writes, {sum(verdict.faults.values())} faults on "
    says = (
        f"consistent within D = {verdict.bound_s:g} s: {nines(verdict.within_bound, verdict.judged)}; "
        f"stale at all {verdict.stale:,}, the oldest {verdict.worst_age_s * 1000:.0f} ms"
    )
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    font = f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {HEIGHT}" {font}>',
        f'<rect {size} fill="white"/>',
        _text(LEFT, 26, head + verdict.server, size=16),
        _text(LEFT, 48, says, color=PALE),
        *_bars(verdict),
        *_bound(verdict),
        _text(LEFT, HEIGHT - 12, f"age of stale reads; seed {verdict.seed}", color=PALE),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


_SLOT: Final = (WIDTH - LEFT - RIGHT) / (len(EDGES_S) + 1)
_FLOOR: Final = HEIGHT - BOTTOM


def _bars(verdict: Verdict) -> list[str]:
    most = max(10, *verdict.ages)
    parts = [f'<line x1="{LEFT}" y1="{_FLOOR}" x2="{WIDTH - RIGHT}" y2="{_FLOOR}" stroke="{INK}"/>']
    for place, count in enumerate(verdict.ages):
        x, edge_s = LEFT + place * _SLOT, EDGES_S[place] if place < len(EDGES_S) else None
        name = f"≤ {_age(edge_s)}" if edge_s is not None else f"> {_age(EDGES_S[-1])}"
        parts.append(_text(x + _SLOT / 2, _FLOOR + 18, name, anchor="middle", color=PALE))
        if count:
            height = (_FLOOR - TOP) * (log10(count) + 0.3) / (log10(most) + 0.3)
            color = BAD if edge_s is None or edge_s > verdict.bound_s else GOOD
            parts.append(
                f'<rect x="{x + 4:.1f}" y="{_FLOOR - height:.1f}" width="{_SLOT - 8:.1f}" height="{height:.1f}" '
                f'fill="{color}"/>'
            )
            parts.append(_text(x + _SLOT / 2, _FLOOR - height - 5, f"{count:,}", anchor="middle"))
    return parts


def _bound(verdict: Verdict) -> list[str]:
    place = sum(edge <= verdict.bound_s for edge in EDGES_S)
    x = LEFT + place * _SLOT
    return [
        f'<line x1="{x:.1f}" y1="{TOP - 10}" x2="{x:.1f}" y2="{_FLOOR}" stroke="{BAD}" stroke-dasharray="4 3"/>',
        _text(x + 4, TOP, "D", color=BAD),
    ]


def _age(seconds: float) -> str:
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def _text(x: float, y: float, words: str, *, size: int = 12, color: str = INK, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{escape(words)}</text>'
    )
