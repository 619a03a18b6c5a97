"""The line in which every bench program gives a figure that README quotes; `python -m tests.bench` gathers them.

quote("reading a header", *spread(seconds), unit="s")
"""

import math
import statistics

MARK = "quoted: "
TITLES = f"{'':<62}{'n':>7}" + "".join(f"{title:>10}" for title in ("median", "p95", "max"))


def spread(values, factor=1):
    """(n, median, p95, max), each but n times `factor`; p95 is the least value that 95 % do not exceed."""
    ordered = sorted(factor * value for value in values)
    return len(ordered), statistics.median(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1], ordered[-1]


def _shown(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def quote(what, n, median, p95=None, most=None, *, unit=""):
    """Print one line of the table; a figure without a spread stands under median."""
    values = "".join(f"{_shown(value):>10}" for value in (median, p95, most))
    print(f"{MARK}{what:<62}{n:>7,}{values} {unit}".rstrip(), flush=True)
