"""Answers for notebooks: self-contained HTML, no scripts, no network. Whatever comes from a store is escaped here."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from actstore._view.text import number, visible

_MONO = "font-family:ui-monospace,monospace;font-size:12px"
_NARROW_SPACE = "&#8239;"
# Okabe and Ito's orange and sky blue, which colour-blind readers can tell apart.
_ABOVE, _BELOW, _STRONG = "230,159,0", "86,180,233", 0.5


def grid(
    columns: Sequence[str], rows: Iterable[Mapping[str, object]], definitions: Mapping[str, str] | None = None
) -> str:
    """A table in HTML. `definitions` says what a column's numbers are; a browser shows it over the column's cells."""
    titles = {name: _title(f"{name}: {says}") for name, says in (definitions or {}).items()}
    head = "".join(f"<th{titles.get(name, '')}>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{titles.get(name, '')}>{escape(number(row[name]))}</td>" for name in columns) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _title(text: str) -> str:
    return f' title="{escape(text, quote=True)}"'


def heading(text: str) -> str:
    return f"<p><b>{escape(text)}</b></p>"


def cell(text: str, says: str) -> str:
    return f"<td{_title(says)}>{escape(text)}</td>"


def warning(text: str) -> str:
    return f'<p style="border-left:4px solid #d55e00;padding-left:8px">{escape(text)}</p>'


def numbers(values: Mapping[str, object], definitions: Mapping[str, str]) -> str:
    """Single numbers side by side, each under its name."""
    cells = "".join(
        f'<span style="display:inline-block;margin:0 18px 6px 0"{_title(f"{name}: {definitions[name]}")}>'
        f'<span style="font-size:11px;opacity:0.7">{escape(name)}</span><br><b>{escape(number(value))}</b></span>'
        for name, value in values.items()
    )
    return f"<p>{cells}</p>"


def folded(title: str, content: str, *, opened: bool) -> str:
    """A section that opens and closes by itself, without a script."""
    summary = f'<summary style="cursor:pointer"><b>{escape(title)}</b></summary>'
    return f'<details{" open" if opened else ""} style="margin:8px 0">{summary}{content}</details>'


def beside(parts: Iterable[str]) -> str:
    """Parts in a row that breaks where the page is narrow."""
    cells = "".join(f'<div style="min-width:220px">{part}</div>' for part in parts if part)
    return f'<div style="display:flex;flex-wrap:wrap;gap:0 32px;align-items:flex-start">{cells}</div>'


def document(title: str, body: str) -> str:
    """A whole page for a browser, in the reader's own light or dark."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><style>'
        "table{border-collapse:collapse;font-size:12px}td,th{padding:2px 8px;text-align:right;vertical-align:top}"
        "</style>"
        f"<title>{escape(title)}</title></head>"
        '<body style="font-family:system-ui,sans-serif;font-size:14px;max-width:1100px;margin:24px auto;'
        'padding:0 16px">'
        f"{body}</body></html>"
    )


def note(text: str) -> str:
    return f'<p style="color:gray;font-size:11px">{escape(text)}</p>'


def tokens(texts: Sequence[str], activations: Sequence[float], positions: Sequence[int], scale: float) -> str:
    """One span for each token, its background as strong as activation / `scale`, with the numbers as its title."""
    spans = [
        _token(text, activation, position, scale)
        for text, activation, position in zip(texts, activations, positions, strict=True)
    ]
    return f'<span style="{_MONO};white-space:pre-wrap;overflow-wrap:anywhere">{"".join(spans)}</span>'


def _token(text: str, activation: float, position: int, scale: float) -> str:
    title = f"{visible(text)} | activation {activation:.4g} | position {position}"
    return _tinted(text, max(activation, 0.0), scale, title)


def strip(texts: Sequence[str], values: Sequence[float | None], titles: Sequence[str], scale: float) -> str:
    """One span a token, tinted by a signed value over `scale`: orange above 0, blue below; None is of no token's."""
    spans = [
        _tinted(text, 0.0 if value is None else value, scale, title)
        for text, value, title in zip(texts, values, titles, strict=True)
    ]
    return f'<span style="{_MONO};white-space:pre-wrap;overflow-wrap:anywhere">{"".join(spans)}</span>'


def _tinted(text: str, value: float, scale: float, title: str) -> str:
    # Transparent for 0 on any theme, so that the page's own background and text colour stay readable; on a strong tint,
    # of which both are light, black is.
    strength = 0.0 if scale <= 0 else min(abs(value) / scale, 1.0)
    tint = _ABOVE if value >= 0 else _BELOW
    ink = ";color:#000" if strength > _STRONG else ""
    # A token whose character ends in a later one has no text, and its tint can be seen and pointed at all the same.
    shown = escape(visible(text)) or _NARROW_SPACE
    return f'<span{_title(title)} style="background-color:rgba({tint},{strength:.2f}){ink}">{shown}</span>' + (
        "<br>" if text.endswith("\n") else ""
    )


def shown(text: str) -> str:
    return escape(visible(text))


def tinted_cell(text: str, share: float, says: str) -> str:
    """A cell of a table, tinted by a share of 1."""
    return f'<td style="{_MONO}">{_tinted(text.rstrip(chr(10)), share, 1.0, says)}</td>'


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
