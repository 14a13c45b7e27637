"""The report's HTML: a page, its tables and figures, and text that carries no markup.

Whatever comes from a run directory passes `text`.  Nothing here knows what a page says.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

from mnist_cnn.errors import printable

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --paper: #ffffff; --ink: #1a1a1a; --soft: #5b6470; --line: #dde1e6; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #16191d; --ink: #e8eaed; --soft: #a3abb5; --line: #343a42; }}
}}
* {{ box-sizing: border-box; }}
body {{ background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.1rem; color: var(--soft); font-weight: 500; margin: 0; }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .6rem; }}
.result {{ font-size: clamp(2.4rem, 9vw, 3.6rem); font-weight: 650; line-height: 1.15; margin: 0; }}
.said {{ margin: .2rem 0 1.5rem; color: var(--soft); }}
.pictures {{ display: grid; gap: 2.5rem 2rem; margin-top: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }}
figure {{ margin: 0; min-width: 0; }}
figure h2 {{ margin: 0 0 .4rem; }}
img {{ display: block; width: 100%; max-width: 34rem; height: auto; }}
figcaption {{ color: var(--soft); font-size: .92rem; margin-top: .4rem; max-width: 34rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); }}
table:not(.numbers) th:first-child {{ width: 8rem; }}
th {{ font-weight: 500; color: var(--soft); }}
.numbers th:not(:first-child), .numbers td:not(:first-child) {{ text-align: right; padding-right: 0; padding-left: .4rem; }}
pre {{ white-space: pre-wrap; border: 1px solid var(--line); border-radius: 6px; padding: .7rem;
  font-size: .88rem; margin: 0; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""  # noqa: E501


def text(value: Any) -> str:
    """Text from outside: no markup, and nothing that steers."""
    return html.escape(printable(str(value)))


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * float(value):.{digits}f} %"


def points(difference: float) -> str:
    return f"{100 * difference:+.2f}".replace("-", "\N{MINUS SIGN}")


def page(title: str, parts: Sequence[str]) -> str:
    return _PAGE.format(title=text(title), body="\n".join(parts))


def grid(parts: Sequence[str]) -> str:
    return '<div class="pictures">\n' + "\n".join(parts) + "\n</div>"


def figure(title: str, versions: tuple[bytes, bytes], caption: str) -> str:
    light, dark = (
        "data:image/png;base64," + base64.b64encode(version).decode() for version in versions
    )
    return (
        f"<figure>\n<h2>{text(title)}</h2>\n<picture>\n"
        f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">\n'
        f'<img src="{light}" alt="{text(title)}">\n</picture>\n'
        f"<figcaption>{text(caption)}</figcaption>\n</figure>"
    )


def table(rows: Iterable[Sequence[Any]], head: Sequence[str] = (), kind: str = "") -> str:
    lines = ["<tr>" + "".join(f"<th>{text(cell)}</th>" for cell in head) + "</tr>"] if head else []
    for first, *rest in rows:
        cells = "".join(f"<td>{text(cell)}</td>" for cell in rest)
        lines.append(f"<tr><th>{text(first)}</th>{cells}</tr>")
    return f'<table class="{kind}">\n' + "\n".join(lines) + "\n</table>"
