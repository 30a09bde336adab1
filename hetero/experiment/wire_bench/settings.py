"""What is measured, and for how long."""

from dataclasses import dataclass
from importlib.util import find_spec

from hetero.messages import SealName, TransportName

# What runs without RDMA hardware. Shared memory does not cross the link at all.
_NIXL: tuple[TransportName, ...] = ("nixl-tcp", "nixl-shm")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """seconds: for each figure in each round; iperf3 takes whole ones."""

    rates: tuple[str, ...]
    mtu: int
    seals: tuple[SealName, ...]
    transports: tuple[TransportName, ...]
    shape: str
    kv_type: str
    tokens: int
    seconds: int
    num_rounds: int
    with_mooncake: bool

    def seals_of(self, transport: TransportName) -> tuple[SealName, ...]:
        """What a seal costs is the same wherever rows travel: all of them over TCP only."""
        return self.seals if transport == "tcp" else self.seals[:1]


def full_settings() -> Settings:
    return Settings(
        rates=("1gbit", "10gbit", "25gbit"),
        mtu=1500,
        seals=("aead", "mac", "none"),
        transports=("tcp", *_NIXL) if find_spec("nixl_cu12") else ("tcp",),
        shape="llama-3.1-8b",
        kv_type="q8_0",
        tokens=2048,
        seconds=6,
        num_rounds=3,
        with_mooncake=find_spec("mooncake") is not None,
    )


def quick_settings() -> Settings:
    return Settings(
        rates=("400mbit",),
        mtu=1500,
        seals=("aead",),
        transports=("tcp",),
        shape="qwen3-0.6b",
        kv_type="q8_0",
        tokens=256,
        seconds=1,
        num_rounds=1,
        with_mooncake=False,
    )
