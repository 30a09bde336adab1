"""RAPL's domains of whole packages: Intel's, and AMD's since Zen under the same names."""

from pathlib import Path

from hetero.machine.files import count, matching, read_text


def package_domains(root: Path) -> list[Path]:
    """Not those of cores and memory within a package, nor of the platform around it."""
    return [
        domain
        for domain in matching(root / "sys/class/powercap", "intel-rapl:*")
        if (read_text(domain / "name") or "").startswith("package")
    ]


def power_limit_watts(root: Path) -> float | None:
    """What one package may draw on and on; the lowest where they differ."""
    limits = [
        microwatts * 1e-6
        for domain in package_domains(root)
        for name in matching(domain, "constraint_*_name")
        if read_text(name) == "long_term"
        if (microwatts := count(name.with_name(name.name.replace("name", "power_limit_uw"))))
    ]
    return min(limits, default=None)
