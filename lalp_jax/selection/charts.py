"""Small charts as inline SVG text: numbers in, markup out. Colours are classes that `style` names."""

import dataclasses
import html
import math
from collections.abc import Sequence

import numpy as np

N_SERIES = 8  # colours; further series take them again
_WIDTH = 760


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its standard error, under a label; `series` picks the colour."""

    label: str
    series: int
    mean: float
    stderr: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Points:
    """The points of one series, x and y [n]."""

    series: int
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True, slots=True)
class _Scale:
    """Maps values low..high to places start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within low..high: multiples of 1, 2 or 5 times a power of ten."""
    if not low < high:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def true_minus(number: str) -> str:
    """A written number with a minus sign as wide as its digits."""
    return number.replace("-", "−")


def swatch(series: int) -> str:
    """A small square in the colour of a series."""
    return (
        f'<svg class="swatch c{series % N_SERIES}" width="10" height="10" aria-hidden="true">'
        '<rect width="10" height="10" rx="2"/></svg>'
    )


def share_bar(share: float, series: int) -> str:
    """A bar of a share 0..1."""
    track = '<rect class="track" width="90" height="8" rx="2"/>'
    bar = f'<rect width="{90 * share:.1f}" height="8" rx="2"/>'
    return (
        f'<svg class="share c{series % N_SERIES}" width="90" height="8" aria-hidden="true">{track}{bar}</svg>'
    )


def interval_chart(rows: Sequence[Interval], title: str) -> str:
    """Means with bars of one standard error, one row each, on an axis that need not hold zero."""
    left, right, pitch = 190, _WIDTH - 140, 30
    height = pitch * len(rows)
    ends = [row.mean + side * (row.stderr or 0.0) for row in rows for side in (-1, 1)]
    x = _Scale(*_padded(min(ends), max(ends), 0.08), left, right)
    parts = [_x_axis(x, height, [(tick, true_minus(f"{tick:g}")) for tick in ticks(x.low, x.high)])]
    for i, row in enumerate(rows):
        y = pitch * i + pitch / 2
        at, text = x(row.mean), true_minus(f"{row.mean:.4f}")
        parts.append(f'<g class="c{row.series % N_SERIES}">')
        if row.stderr is not None:
            low, high = x(row.mean - row.stderr), x(row.mean + row.stderr)
            bar = f"M{low:.1f} {y:.1f}H{high:.1f}M{low:.1f} {y - 6:.1f}v12M{high:.1f} {y - 6:.1f}v12"
            parts.append(f'<path class="whisker" d="{bar}"/>')
            text += f" ± {row.stderr:.4f}"
        parts.append(f'<circle cx="{at:.1f}" cy="{y:.1f}" r="5"/></g>')
        parts.append(_text(left - 12, y + 4, row.label, "end", "label"))
        parts.append(_text(right + 12, y + 4, text, "start", "label"))
    return _svg(_WIDTH, height + 26, title, parts)


def histogram(values: Sequence[float], edges: Sequence[float], top: float, series: int, title: str) -> str:
    """Shares of `values` between `edges`; the outermost bars also hold what lies beyond.

    Args:
      top: the share that fills the whole height.
    """
    height, right = 76, 240
    x = _Scale(edges[0], edges[-1], 4, right - 4)
    shares = bin_shares(values, edges)
    bars = [
        f'<rect x="{x(low) + 0.5:.1f}" y="{height - height * share / top:.1f}" '
        f'width="{max(x(high) - x(low) - 1, 0.5):.1f}" height="{height * share / top:.1f}"/>'
        for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)
        if share > 0
    ]
    axis = _x_axis(x, height, [(tick, true_minus(f"{tick:g}")) for tick in ticks(x.low, x.high, 4)])
    return _svg(right, height + 22, title, [axis, f'<g class="c{series % N_SERIES}">', *bars, "</g>"])


def bin_shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """Share of the values in each bin; values beyond the edges count in the outermost bins."""
    counts, _ = np.histogram(np.clip(np.asarray(values, np.float64), edges[0], edges[-1]), edges)
    return (counts / max(len(values), 1)).tolist()


def scatter(series: Sequence[Points], x_label: str, y_label: str, title: str) -> str:
    """Points of several series; x is on a logarithmic scale, and must be positive."""
    left, top, right, bottom = 64, 8, _WIDTH - 12, 300
    xs = [math.log10(value) for points in series for value in points.x]
    ys = [value for points in series for value in points.y]
    x = _Scale(*_padded(min(xs), max(xs), 0.03), left, right)
    y = _Scale(*_padded(min(ys), max(ys), 0.05), bottom, top)
    parts = [_x_axis(x, bottom, _log_ticks(x.low, x.high), top)]
    for tick in ticks(y.low, y.high):
        parts.append(f'<path class="rule" d="M{left} {y(tick):.1f}H{right}"/>')
        parts.append(_text(left - 8, y(tick) + 4, true_minus(f"{tick:g}"), "end"))
    for points in series:
        dots = "".join(
            f"M{x(math.log10(a)):.1f} {y(b):.1f}h0" for a, b in zip(points.x, points.y, strict=True)
        )
        parts.append(f'<path class="dots c{points.series % N_SERIES}" d="{dots}"/>')
    parts.append(_text((left + right) / 2, bottom + 38, x_label, "middle"))
    middle = (top + bottom) / 2
    parts.append(f'<g transform="rotate(-90 14 {middle:.0f})">{_text(14, middle, y_label, "middle")}</g>')
    return _svg(_WIDTH, bottom + 46, title, parts)


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Places (as log10) and names: 1, 2, 5 times powers of ten, or powers alone where there are many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    marks = [m * 10.0**k for k in powers for m in steps]
    return [(math.log10(mark), f"{mark:,.0f}") for mark in marks if low <= math.log10(mark) <= high]


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    """The range, a little wider; a range of nothing gets some width."""
    pad = (high - low) * share or max(abs(low) * share, 1e-6)
    return low - pad, high + pad


def _x_axis(x: _Scale, bottom: float, marks: Sequence[tuple[float, str]], top: float = 0) -> str:
    """Vertical lines from `top` to `bottom`, and their names below."""
    lines = "".join(f"M{x(at):.1f} {top:g}V{bottom:g}" for at, _ in marks)
    names = "".join(_text(x(at), bottom + 17, name, "middle") for at, name in marks)
    return f'<path class="rule" d="{lines}M{x.start:.1f} {bottom:g}H{x.end:.1f}"/>{names}'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "axis") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
