"""Imports point one way, and planning's foundations stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "hetero"

# What each package may import besides itself, `errors`, `messages`, `tickets` and `near`. The
# cache's types and sizes lie in kv by meaning and under everything by weight: they import nothing
# but errors.
LIGHT = {"kv.types", "kv.layout"}
MAY_IMPORT = {
    "errors": set(),
    "tickets": set(),
    "near": set(),
    "messages": LIGHT | {"tickets"},
    "machine": set(),
    "llama": set(),
    "model": {"llama"},
    "kv": {"llama"},
    "prefill": {"llama", "model", "kv"},
    "decode": {"llama", "model", "kv", "machine"},
    "transport": {"kv"},
    "routing": {"model", "kv.layout"},
    "workload": set(),
    "serve": {"llama", "model", "kv", "machine", "prefill", "decode", "transport", "routing"},
    "launch": {"llama", "model", "kv", "prefill", "decode", "transport", "routing", "serve"},
}
MAY_IMPORT["launch"] |= {"machine", "profile.node_profile"}
MAY_IMPORT["profile"] = {"llama", "model", "kv", "prefill", "decode", "transport", "machine"}
# A replay node takes the time that a profile gives; both files are light.
MAY_IMPORT["serve"] |= {"profile.document", "profile.node_profile"}
MAY_IMPORT["serve"].add("workload")  # the router records its traffic as a trace
MAY_IMPORT["experiment"] = MAY_IMPORT["launch"] | {"launch", "profile", "workload"}
MAY_IMPORT["__main__"] = {"cli", "machine"}
MAY_IMPORT["cli"] = MAY_IMPORT["experiment"] | {"experiment"}


def modules():
    return sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def imported(path):
    """hetero modules a file imports, without the leading `hetero.`."""
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.ImportFrom) and statement.module:
            names = [statement.module]
        elif isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        else:
            continue
        yield from (name.removeprefix("hetero.") for name in names if name.startswith("hetero."))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    package = path.relative_to(ROOT).with_suffix("").parts[0]
    light = ".".join(path.relative_to(ROOT).with_suffix("").parts) in LIGHT
    allowed = (
        {"errors"} | LIGHT
        if light
        else MAY_IMPORT[package] | {package, "errors", "messages", "tickets", "near"}
    )
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] in allowed or ".".join(parts[:2]) in allowed, name


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_hetero_llama_calls_the_bindings(path):
    # The benchmark times the bindings, and races a bare loop over them.
    if path.parent.name in ("llama", "engine_bench"):
        return
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.ImportFrom):
            assert not (statement.module or "").startswith("llama_cpp")
        elif isinstance(statement, ast.Import):
            assert not any(alias.name.startswith("llama_cpp") for alias in statement.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_small(path):
    assert len(path.read_text().splitlines()) <= 400


def test_planning_needs_neither_torch_nor_llama():
    code = (
        "import sys; import hetero.messages, hetero.kv.layout, hetero.routing.route, "
        "hetero.model.spec, hetero.profile.presets, hetero.profile.estimate; "
        "print([m for m in ('torch', 'llama_cpp') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
