"""A rate in words and in bits per second, and the token bucket that makes a veth that slow."""

import re

from hetero.errors import ConfigError

_RATE = re.compile(r"(\d+(?:\.\d+)?)(mbit|gbit)")
_UNITS = {"mbit": 10**6, "gbit": 10**9}
_MIN_RATE, _MAX_RATE = 5 * 10**6, 40 * 10**9

# Tokens for this long may be spent at once. A timer that fires later than that loses rate, and
# beside programs that take all CPUs it fires late: 10 Gbit/s became 2 with 1 ms, and 7 with 2; on
# an idle machine 0.5 ms lost 4%. More would let small messages pass as if there were no limit.
_BURST_S = 0.002

# What a port keeps when more comes in than goes out, as long as a good switch's. A sender's own
# packets wait in its socket instead: the kernel lets a connection keep few of them below.
_QUEUE_S = 0.010

# At slow rates a queue of 10 ms would be a few frames, and drop half of what a sender hands over
# at once: 64 KiB, and less where a connection is slower than some 500 Mbit/s, because TCP hands
# over what it sends in a millisecond. So 128 KiB at most, 21 ms at most, and 32 KiB at least, in
# which connections that begin together find room: 52 ms at 5 Mbit/s, as a slow line's modem.
_SLOW_QUEUE_S = 0.021
_SLOW_QUEUE_BYTES_MIN, _SLOW_QUEUE_BYTES_MAX = 32 * 2**10, 128 * 2**10

# Ethernet's header and a VLAN tag.
_HEADER_BYTES = 18


def parse_rate(field: str, text: str) -> int:
    """In bits per second, of frames without preamble and gap: 10gbit carries 9.57 Gbit/s of TCP
    at an MTU of 1500, and 9.93 at 9000.

    Raises: ConfigError.
    """
    match = _RATE.fullmatch(text)
    rate = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise ConfigError(f"{field}: need a rate from 5mbit to 40gbit, have {text!r}")
    return rate


def rate_text(rate_bits_per_s: int) -> str:
    unit = "gbit" if rate_bits_per_s >= 10**9 else "mbit"
    return f"{rate_bits_per_s / _UNITS[unit]:.10g}{unit}"


def token_bucket(rate_bits_per_s: int, mtu: int) -> str:
    """A qdisc for tc. Changing from one to another keeps what is queued.

    Burst: 2 ms, and two frames at least: a frame larger than the burst never passes. The kernel
    hands over up to 64 KiB at once and cuts it into frames where the burst is smaller, which costs
    time only below 250 Mbit/s, where there is plenty.
    """
    bytes_per_s = rate_bits_per_s / 8
    burst_bytes = max(round(bytes_per_s * _BURST_S), 2 * (mtu + _HEADER_BYTES))
    slow_bytes = max(round(bytes_per_s * _SLOW_QUEUE_S), _SLOW_QUEUE_BYTES_MIN)
    queue_bytes = max(round(bytes_per_s * _QUEUE_S), min(slow_bytes, _SLOW_QUEUE_BYTES_MAX))
    queue_bytes += burst_bytes
    return f"tbf rate {rate_bits_per_s}bit burst {burst_bytes} limit {queue_bytes}"
