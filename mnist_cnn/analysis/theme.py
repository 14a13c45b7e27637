"""The colours of a report, page and plots, light and dark.

The series are those of Okabe and Ito, which colour-blind readers can distinguish.
"""

from typing import NamedTuple


class Theme(NamedTuple):
    """One version; the defaults are the light one."""

    background: str = "#ffffff"
    text: str = "#1a1a1a"
    caption: str = "#5b6470"  # of the page
    line: str = "#dde1e6"  # of the page's tables
    grid: str = "#c9ced6"
    series: tuple[str, ...] = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a37c00")
    digits: str = "gray_r"  # a colormap whose 0 is close to the background
    filters: str = "RdBu_r"  # a colormap
    counts: tuple[str, str] = ("#eef4fa", "#08519c")  # from few to many


LIGHT = Theme()
DARK = Theme(
    background="#16191d",
    text="#e8eaed",
    caption="#a3abb5",
    line="#343a42",
    grid="#4a515a",
    series=("#56b4e9", "#ff8c42", "#2fc79a", "#e39cc4", "#e6c229"),
    digits="gray",
    filters="berlin",
    counts=("#1d2732", "#7cc4f4"),
)
