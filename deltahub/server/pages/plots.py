"""Coordinates of plot lines; the template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from deltahub.server.pages.norms import ModuleNorm

WIDTH: Final = 460.0
HEIGHT: Final = 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 34.0  # margins for the axis labels
_MOST_TICKS: Final = 12  # on the x axis

Points = Mapping[int, float]  # block to norm


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes:
        name: label.
        style: 0 to 7, for its colour and marker.
        points: ``"x,y x,y"``.
        dots: the same as (x, y, label) triples; the label gives the block and norm.
        dashed: whether it is the second line of a comparison.
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
        y_ticks: position and label.
        said: description of the plot as a sentence.
    """

    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    said: str
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def floor(self) -> float:
        """Position of the x axis."""
        return HEIGHT - _BOTTOM

    @property
    def wall(self) -> float:
        """Position of the y axis."""
        return _LEFT

    @property
    def end(self) -> float:
        """End of the x axis."""
        return WIDTH - _RIGHT


def plot(series: Sequence[tuple[str, Points]], *, compared: bool = False, top: float | None = None) -> Plot:
    """Compute the lines and ticks of a plot.

    Args:
        series: names with their points; norms that are not finite are left out.
        compared: whether the second line is the other side of a comparison, and dashed.
        top: the largest norm of several plots with a common scale.
    """
    finite_series = [
        (name, {at: norm for at, norm in points.items() if math.isfinite(norm)}) for name, points in series
    ]
    blocks = sorted({at for _, points in finite_series for at in points})
    highest = (
        top if top is not None else max((norm for _, points in finite_series for norm in points.values()), default=0.0)
    )
    steps = ticks(highest)
    ceiling = steps[-1] or 1.0

    def x(block: int) -> float:
        span = blocks[-1] - blocks[0]
        share = (block - blocks[0]) / span if span else 0.5
        return round(_LEFT + 10 + share * (WIDTH - _LEFT - _RIGHT - 20), 1)

    def y(norm: float) -> float:
        return round(HEIGHT - _BOTTOM - norm / ceiling * (HEIGHT - _TOP - _BOTTOM), 1)

    lines = []
    for index, (name, points) in enumerate(finite_series):
        dots = tuple((x(at), y(norm), f"block {at}: {brief(norm)}") for at, norm in sorted(points.items()))
        path = " ".join(f"{across},{up}" for across, up, _ in dots)
        lines.append(Line(name, index % 8, path, dots, dashed=compared and index == 1))
    every = max(1, math.ceil(len(blocks) / _MOST_TICKS))
    return Plot(
        tuple(lines),
        tuple((x(at), str(at)) for at in blocks[::every]),
        tuple((y(step), brief(step)) for step in steps),
        _sentence(finite_series, blocks),
    )


def by_series(norms: Iterable[ModuleNorm]) -> dict[str, dict[int, float]]:
    """Return the norms of modules in blocks, grouped by modules that are the same in every block."""
    series: dict[str, dict[int, float]] = {}
    for norm in norms:
        if norm.block is not None:
            series.setdefault(norm.series, {})[norm.block] = norm.norm
    return series


def ticks(highest: float) -> list[float]:
    """Return evenly spaced round numbers from 0 to at least `highest`."""
    if not highest > 0 or not math.isfinite(highest):
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest))
    if power == 0.0:  # subnormal
        return [0.0, highest]
    step = next(power * share for share in (0.2, 0.25, 0.5, 1.0, 2.0) if highest <= power * share * 5)
    count = math.ceil(highest / step - 1e-9)
    return [index * step for index in range(count + 1)]


def brief(number: float) -> str:
    """Return a number with three significant digits."""
    return f"{number:.3g}"


def _sentence(series: Sequence[tuple[str, Points]], blocks: Sequence[int]) -> str:
    if not blocks:
        return "No module is in a numbered block, so there is no plot."
    span = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {blocks[0]} to {blocks[-1]}"
    name, at, norm = max(
        ((name, at, norm) for name, points in series for at, norm in points.items()), key=lambda point: point[2]
    )
    return f"Norms over {span}, {len(series)} lines. The largest is {brief(norm)}, for {name} in block {at}."
