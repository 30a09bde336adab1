"""What a profile found best, as a node's file takes it."""

import msgspec
import pytest
from node_profiles import node_profile
from profile_commands import called, write_profiles

from hetero.launch.node_settings import file_lines, settings_block
from hetero.profile.node_profile import RoleSettings
from hetero.serve.config import DecodeConfig, PrefillConfig, load_config

KINDS = {"decode": DecodeConfig, "prefill": PrefillConfig}
NEEDED = [
    "name: xeon",
    "model: /m.gguf",
    "router: tcp://10.0.0.3:7070",
    "router_key: k",
    "key: /k",
]
BEST = RoleSettings(
    threads=28,
    cpus=list(range(0, 112, 2)),
    numa_node=None,
    interleave=[0, 1],
    load="mmap",
    unified=True,
    chunk_tokens=256,
    tried={},
)
DEFAULT = RoleSettings(
    threads=1,
    cpus=[],
    numa_node=None,
    load="read",
    unified=False,
    chunk_tokens=512,
    tried={},
)


def loaded(tmp_path, role, lines):
    """By what a node itself reads its file with."""
    path = tmp_path / "node.yaml"
    path.write_text("\n".join([*NEEDED, *lines]) + "\n")
    return load_config(path, KINDS[role])


@pytest.mark.parametrize("role", KINDS)
def test_a_node_reads_back_what_was_found_best(tmp_path, role):
    config = loaded(tmp_path, role, file_lines(role, BEST))
    assert (config.threads, config.load) == (28, "mmap")
    assert (config.cpus, config.interleave) == (tuple(range(0, 112, 2)), (0, 1))


def test_decode_takes_cache_and_chunk_too(tmp_path):
    config = loaded(tmp_path, "decode", file_lines("decode", BEST))
    assert (config.unified, config.chunk_tokens) == (True, 256)


def test_a_prefill_file_has_no_cache_mode_and_finds_its_own_chunk():
    keys = [line.partition(":")[0] for line in file_lines("prefill", BEST)]
    assert keys == ["threads", "cpus", "interleave", "load"]


@pytest.mark.parametrize("role", KINDS)
def test_defaults_need_no_line(tmp_path, role):
    assert file_lines(role, DEFAULT) == []
    assert file_lines(role, msgspec.structs.replace(DEFAULT, threads=12)) == ["threads: 12"]
    # So they are what a file without them says.
    config = loaded(tmp_path, role, [])
    assert (config.threads, config.cpus, config.interleave) == (1, (), ())
    assert config.load == "read"


def test_the_block_names_each_role_that_was_measured():
    assert settings_block({}) == []
    _, head, *lines = settings_block({"prefill": BEST, "decode": DEFAULT})
    assert "hetero node" in head
    assert lines[:4] == ["", "# decode.yaml", "# nothing: the defaults were best", ""]
    assert lines[4:] == ["# prefill.yaml", *file_lines("prefill", BEST)]
    assert "# prefill.yaml" not in settings_block({"decode": BEST})


def test_a_profile_that_is_shown_ends_with_the_block(tmp_path, capsys):
    profile = node_profile()
    shown = called(capsys, "show", *write_profiles(tmp_path, profile)).splitlines()
    block = settings_block(profile.settings)
    assert shown[-len(block) :] == block
    assert 'load: "mmap"' in block
