"""Answers for notebooks: self-contained HTML, no scripts, no network. Whatever comes from a store is escaped here."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from actstore._text import number, visible

_MONO = "font-family:ui-monospace,monospace;font-size:12px"


def grid(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(number(row[name]))}</td>" for name in columns) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def heading(text: str) -> str:
    return f"<p><b>{escape(text)}</b></p>"


def note(text: str) -> str:
    return f'<p style="color:gray;font-size:11px">{escape(text)}</p>'


def tokens(texts: Sequence[str], activations: Sequence[float], positions: Sequence[int], scale: float) -> str:
    """One span a token, its background as strong as its activation over `scale`; the numbers are its title."""
    spans = [
        _token(text, activation, position, scale)
        for text, activation, position in zip(texts, activations, positions, strict=True)
    ]
    return f'<span style="{_MONO};white-space:pre-wrap">{"".join(spans)}</span>'


def _token(text: str, activation: float, position: int, scale: float) -> str:
    # Orange on any theme: transparent for 0, so that the page's own background and text colour stay readable.
    strength = 0.0 if scale <= 0 else min(max(activation / scale, 0.0), 1.0)
    title = escape(f"{visible(text)} | activation {activation:.4g} | position {position}", quote=True)
    return (
        f'<span title="{title}" style="background-color:rgba(230,159,0,{strength:.2f})">{escape(visible(text))}</span>'
        + ("<br>" if text.endswith("\n") else "")
    )


def histogram(counts: Sequence[int], lows: Sequence[float], highs: Sequence[float]) -> str:
    """Bars of equal width as an SVG; heights on a square-root scale so that rare strong activations stay visible."""
    top, bar, height = max(counts, default=0), 10, 80
    shapes = []
    for i, (count, low, high) in enumerate(zip(counts, lows, highs, strict=True)):
        tall = height * (count / top) ** 0.5
        title = f"<title>{low:.4g} to {high:.4g}: {count:,} tokens</title>"
        shapes.append(
            f'<rect x="{i * bar}" y="{height - tall:.1f}" width="{bar - 1}" height="{tall:.1f}" fill="#0072b2">'
            f"{title}</rect>"
        )
    width = bar * len(counts)
    return f'<svg width="{width}" height="{height}" role="img">{"".join(shapes)}</svg>'
