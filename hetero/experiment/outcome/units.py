"""Numbers with their units, in the size a reader wants: 0.0123 s is 12.3 ms."""

# From the largest down: the first that a number reaches is taken, or the last.
_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "B/s": ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")),
    "bit/s": ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"), (1.0, "bit/s")),
}


def scale_of(largest: float, unit: str) -> tuple[float, str]:
    """What to divide by, and the unit of what comes out."""
    scales = _SCALES.get(unit, ((1.0, unit),))
    if not largest:
        return 1.0, unit
    return next((scale for scale in scales if abs(largest) >= scale[0]), scales[-1])


def number_text(value: float) -> str:
    """Three digits, never as 1e+05; whole numbers as they are."""
    # 999.5 would be 1.00e+03.
    if abs(value) >= 999.5 or value == int(value):
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-3 else _small_text(value)


def tick_text(value: float) -> str:
    """As short as it can be: of a tick, or a bound."""
    if abs(value) >= 1e5:
        return f"{value:.0f}"
    return f"{value:g}" if abs(value) >= 1e-3 or value == 0 else _small_text(value)


def _small_text(value: float) -> str:
    """1.2e-5, where Python writes 1.2e-05."""
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def quantity_text(value: float, unit: str) -> str:
    factor, shown = scale_of(value, unit)
    return f"{number_text(value / factor)} {shown}".rstrip()


def interval_text(value: float, low: float | None, high: float | None, unit: str) -> str:
    """As `12.3 ms (11.9 to 12.8)`."""
    if low is None or high is None or low == high:
        return quantity_text(value, unit)
    factor, shown = scale_of(value, unit)
    ends = f"({number_text(low / factor)} to {number_text(high / factor)})"
    return f"{number_text(value / factor)} {shown}".rstrip() + f" {ends}"
