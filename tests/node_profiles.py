"""A node's profile as a dual-socket server would write it, its samples drawn from a known cost."""

import random
from itertools import product

import msgspec

from hetero.messages import ModelFingerprint
from hetero.profile.facts.report import (
    CPU,
    NIC,
    Cache,
    Disk,
    Facts,
    Memory,
    NumaNode,
    Power,
    Usable,
)
from hetero.profile.node_profile import (
    Ceilings,
    CodecRates,
    CoreBandwidth,
    CoRun,
    DiskCeilings,
    EngineFit,
    FitError,
    GPUCeilings,
    MachineProfile,
    ModelShape,
    NodeProfile,
    Noise,
    Provenance,
    RoleSettings,
    Sample,
    Soak,
)
from hetero.profile.step_cost import plain_cost
from hetero.profile.work import chunk_work, step_work

FINGERPRINT = ModelFingerprint(
    hyperparameters="11" * 32, tokenizer="22" * 32, chat_template="33" * 32, tensors="44" * 32
)

# Llama 3.1 8B at Q4_K_M; 58 GB/s read.
MODEL = ModelShape(
    name="llama-3.1-8b-q4_k_m",
    fingerprint=FINGERPRINT,
    architecture="llama",
    quantization="Q4_K_M",
    num_parameters=8_030_000_000,
    weight_bytes=4_920_000_000,
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim_k=128,
    head_dim_v=128,
    vocab_size=128_256,
    tied_embeddings=False,
    num_experts=0,
    num_experts_used=0,
)

DECODE = plain_cost([1, 4, 16], [0.106, 0.13, 0.29], pair_s=2.1e-6, masked_s=1.6e-6)
PREFILL = plain_cost([1, 32, 128, 512], [0.107, 0.42, 1.45, 5.6], pair_s=1.1e-6, masked_s=0.9e-6)

FACTS = Facts(
    system="Linux 6.8.0 x86_64",
    virtual=None,
    product="PowerEdge R730",
    cpu=CPU(
        model="Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz",
        sockets=2,
        cores=28,
        logical_cores=56,
        isa=["avx2", "f16c", "fma"],
        caches=[Cache(level=3, kind="unified", num_bytes=35 * 2**20, shared_by=28)],
        max_mhz=3500.0,
        governor="performance",
        power_limit_watts=135.0,
    ),
    numa=[
        NumaNode(node=node, cpus=list(range(node, 56, 2)), memory_bytes=128 * 2**30)
        for node in (0, 1)
    ],
    usable=Usable(cpus=list(range(56)), cpu_quota=None, memory_bytes=256 * 2**30),
    memory=Memory(
        num_bytes=256 * 2**30,
        channels=8,
        modules=16,
        kind="DDR4",
        mega_transfers=2400,
        huge_pages=0,
        huge_page_bytes=2 * 2**20,
        transparent_huge_pages="madvise",
    ),
    gpus=[],
    nics=[
        NIC(
            name="eno1",
            speed_mbit=10_000,
            mtu=9000,
            is_up=True,
            numa_node=0,
            rdma_device=None,
            driver="ixgbe",
        )
    ],
    disks=[
        Disk(
            name="nvme0n1",
            model="Samsung 970 EVO",
            num_bytes=10**12,
            is_rotational=False,
            kind="nvme",
            numa_node=0,
        )
    ],
    power=Power(on_battery=None, has_rapl=True),
    unseen=["power of the memory: need root, have none"],
)


def node_profile(*, seed=1, noise=0.02, slower=1.0, host="r730", unified=False):
    """slower: this run's clock, all of it, pilots too."""
    random_ = random.Random(seed)
    fits = [
        fit(role, kv, scale, random_, noise, slower, unified)
        for role, (kv, scale) in product(("decode", "prefill"), (("q8_0", 1.0), ("f16", 1.4)))
    ]
    return NodeProfile(
        host=host,
        date="2026-11-02T19:30:00+00:00",
        model=MODEL,
        facts=FACTS,
        ceilings=ceilings(slower),
        fits=fits,
        codecs=[
            CodecRates(
                source="measured",
                kv_k=kv,
                kv_v=kv,
                pack_gb_s=rate,
                restore_gb_s=3.1,
                restore_s=4e-4,
            )
            for kv, rate in (("q8_0", 2.4), ("f16", 5.2))
        ],
        co_runs=[
            CoRun(
                source="measured",
                what="decode",
                beside="prefill on the same engine",
                slowdown=3.4,
                beside_slowdown=1.2,
            ),
            CoRun(
                source="estimated",
                what="decode",
                beside="network receive",
                slowdown=1.05,
                beside_slowdown=None,
                note="one core",
            ),
        ],
        settings={
            role: RoleSettings(
                threads=28,
                cpus=list(range(28)),
                numa_node=None,
                load="mmap",
                unified=False,
                chunk_tokens=512,
                tried={"28 threads": 0.11, "56 threads": 0.14},
            )
            for role in ("prefill", "decode")
        },
        noise=Noise(
            is_noisy=False,
            reasons=[],
            pilot_s={"memory": 0.004 * slower, "compute": 0.003 * slower},
            speed=(0.97, 1.02),
            others_cpu_share=0.004,
            steal_share=None,
            throttled=[],
        ),
        soak=Soak(
            seconds=600.0,
            first_rate=7.2,
            last_rate=7.1,
            lowest_rate=6.9,
            mhz=(3200.0, 3100.0),
            watts=212.0,
            meter="RAPL",
            throttled=[],
        ),
        provenance=Provenance(
            commit="0123abc",
            versions={"hetero": "0.1", "torch": None},
            settings={"governor": "performance"},
            seconds=171.0,
            budget_s=180.0,
        ),
    )


def machine_profile():
    profile = node_profile()
    return MachineProfile(
        host=profile.host,
        date=profile.date,
        facts=profile.facts,
        ceilings=profile.ceilings,
        provenance=profile.provenance,
    )


def ceilings(slower=1.0):
    return Ceilings(
        source="measured",
        cores=28,
        read_gb_s=58.0 / slower,
        copy_gb_s=49.0 / slower,
        triad_gb_s=46.0 / slower,
        numa={
            node: CoreBandwidth(cores=14, read_gb_s=29.5, copy_gb_s=25.0, triad_gb_s=23.4)
            for node in (0, 1)
        },
        one_core=CoreBandwidth(cores=1, read_gb_s=9.7, copy_gb_s=8.8, triad_gb_s=8.1),
        tflops={"f32": 1.75 / slower, "f64": 0.87 / slower},
        gpus=[],
        disks=[DiskCeilings(path="/var", read_gb_s=2.9, write_gb_s=1.4, is_direct=True)],
        spread={"read_gb_s": (57.1, 58.6)},
    )


def gpu_ceilings():
    return GPUCeilings(
        name="RTX 3090",
        copy_gb_s=840.0,
        tflops={"f16": 71.0, "f32": 29.0},
        to_device_gb_s=24.0,
        from_device_gb_s=25.0,
    )


def fit(role, kv, scale, random_, noise, slower, unified):
    cost = DECODE if role == "decode" else PREFILL
    cost = plain_cost(
        cost.rows,
        [slower * seconds for seconds in cost.rows_s],
        pair_s=slower * scale * cost.pair_s[0],
        masked_s=slower * scale * cost.masked_s,
    )
    return EngineFit(
        source="fitted",
        role=role,
        engine="llama",
        attention="llama",
        device="cpu",
        unified=unified,
        kv_k=kv,
        kv_v=kv,
        threads=28,
        chunk_tokens=512,
        cost=cost,
        request_s=0.002 * slower,
        interval=(0.955, 1.05),
        error=FitError(num_points=12, median=0.021, p90=0.044, bias=0.003),
        samples=samples(role, cost, random_, noise, unified),
    )


def samples(role, cost, random_, noise, unified):
    if role == "decode":
        grid = [(batch, depth) for batch in (1, 4, 16) for depth in (128, 1024, 4096)]
        drawn = [(random_.randint(1, 16), random_.randint(128, 4096)) for _ in range(5)]
        works = [step_work([depth] * rows, 0, unified) for rows, depth in grid + drawn]
    else:
        grid = [(tokens, cached) for tokens in (1, 32, 128, 512) for cached in (0, 1024, 4096)]
        drawn = [(random_.randint(1, 512), random_.randint(0, 4096)) for _ in range(5)]
        works = [chunk_work(rows, cached, 0, unified) for rows, cached in grid + drawn]
    found = []
    for index, work in enumerate(works):
        speed = random_.uniform(0.97, 1.03)
        seconds = cost.seconds(work) * random_.gauss(1, noise) / speed
        found.append(
            Sample(
                work=work,
                seconds=seconds,
                speed=speed,
                repeats=3,
                drawn=index >= len(grid),
            )
        )
    return found


def with_fits(profile, **changes):
    """Every fit changed alike."""
    return msgspec.structs.replace(
        profile, fits=[msgspec.structs.replace(fit, **changes) for fit in profile.fits]
    )
