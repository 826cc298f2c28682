"""The lines of a plot as coordinates; the template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from deltahub.server.pages.norms import ModuleNorm

WIDTH: Final = 460.0
HEIGHT: Final = 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 34.0  # room for the numbers at the axes
_MOST_TICKS: Final = 12  # at the x axis

Points = Mapping[int, float]  # block to norm


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        name: what it shows.
        style: 0 to 7: its colour and mark.
        points: ``"x,y x,y"``.
        dots: the same as pairs, with the norm in words.
        dashed: whether it is the second of two that are compared.
    """

    name: str
    style: int
    points: str
    dots: tuple[tuple[float, float, str], ...]
    dashed: bool = False


@dataclass(frozen=True)
class Plot:
    """Norms over blocks.

    Attributes:
        lines: in the order of the legend.
        x_ticks: position and label.
        y_ticks: the same.
        said: what it shows, in a sentence.
    """

    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    said: str
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def floor(self) -> float:
        """Where the x axis lies."""
        return HEIGHT - _BOTTOM

    @property
    def wall(self) -> float:
        """Where the y axis lies."""
        return _LEFT

    @property
    def end(self) -> float:
        """Where the x axis ends."""
        return WIDTH - _RIGHT


def plot(series: Sequence[tuple[str, Points]], *, compared: bool = False, top: float | None = None) -> Plot:
    """Draw lines over one pair of axes.

    Args:
        series: names with their points; a norm that is not finite is left out.
        compared: whether the second line is the other side of a comparison, and dashed.
        top: the largest norm of several plots that share their scale.
    """
    shown = [(name, {at: norm for at, norm in points.items() if math.isfinite(norm)}) for name, points in series]
    blocks = sorted({at for _, points in shown for at in points})
    highest = top if top is not None else max((norm for _, points in shown for norm in points.values()), default=0.0)
    steps = ticks(highest)
    ceiling = steps[-1] or 1.0

    def x(block: int) -> float:
        span = blocks[-1] - blocks[0]
        share = (block - blocks[0]) / span if span else 0.5
        return round(_LEFT + 10 + share * (WIDTH - _LEFT - _RIGHT - 20), 1)

    def y(norm: float) -> float:
        return round(HEIGHT - _BOTTOM - norm / ceiling * (HEIGHT - _TOP - _BOTTOM), 1)

    lines = []
    for index, (name, points) in enumerate(shown):
        dots = tuple((x(at), y(norm), f"block {at}: {brief(norm)}") for at, norm in sorted(points.items()))
        path = " ".join(f"{across},{up}" for across, up, _ in dots)
        lines.append(Line(name, index % 8, path, dots, dashed=compared and index == 1))
    every = max(1, math.ceil(len(blocks) / _MOST_TICKS))
    return Plot(
        tuple(lines),
        tuple((x(at), str(at)) for at in blocks[::every]),
        tuple((y(step), brief(step)) for step in steps),
        _sentence(shown, blocks),
    )


def by_series(norms: Iterable[ModuleNorm]) -> dict[str, dict[int, float]]:
    """The norms of modules in blocks, by what is the same module in every block."""
    found: dict[str, dict[int, float]] = {}
    for norm in norms:
        if norm.block is not None:
            found.setdefault(norm.series, {})[norm.block] = norm.norm
    return found


def ticks(highest: float) -> list[float]:
    """Round numbers from 0 to at least `highest`, four to seven of them."""
    if not highest > 0 or not math.isfinite(highest):
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest))
    if power == 0.0:  # denormal
        return [0.0, highest]
    step = next(power * share for share in (0.2, 0.25, 0.5, 1.0, 2.0) if highest <= power * share * 5)
    count = math.ceil(highest / step - 1e-9)
    return [index * step for index in range(count + 1)]


def brief(number: float) -> str:
    """A number with three digits that matter."""
    return f"{number:.3g}"


def _sentence(series: Sequence[tuple[str, Points]], blocks: Sequence[int]) -> str:
    if not blocks:
        return "No module lies in a numbered block, so there is nothing to draw."
    where = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {blocks[0]} to {blocks[-1]}"
    name, at, norm = max(
        ((name, at, norm) for name, points in series for at, norm in points.items()), key=lambda found: found[2]
    )
    return f"Norms over {where}, {len(series)} lines. The largest is {brief(norm)}, of {name} in block {at}."
