"""Key files: who can read them, what is refused, and the verbs that make and list them."""

import json
import logging
import os
from pathlib import Path

import pytest
import zmq

from hetero.cli.main import main
from hetero.errors import ConfigError
from hetero.serve.config import DecodeConfig, RouterConfig
from hetero.serve.start import run_decode, run_router
from hetero.transport.allow_list import AllowList
from hetero.transport.control_socket import RouterKeys, check_interface
from hetero.transport.keys import (
    check_public_key,
    load_key,
    load_public_key,
    make_key,
    public_file_of,
    secret_file_of,
)


def secret_of(path):
    [line] = [line for line in path.read_text().splitlines() if "secret-key" in line]
    return line.split('"')[1]


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def modes(directory):
    return {path.name: path.stat().st_mode & 0o777 for path in directory.rglob("*")}


@pytest.mark.usefixtures("open_umask")
def test_only_the_owner_can_read_a_secret_whatever_the_umask(tmp_path):
    directory = tmp_path / "keys"
    key = make_key(directory, "xeon")
    AllowList(directory).allow("xeon", key.public)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert modes(directory) == {
        "xeon.key_secret": 0o600,
        "xeon.key": 0o644,
        "allowed": 0o700,
    }
    assert load_key(directory / "xeon.key_secret") == key
    assert load_public_key(directory / "xeon.key") == key.public


def test_a_key_is_never_written_over(tmp_path):
    key = make_key(tmp_path, "xeon")
    with pytest.raises(ConfigError, match=r"xeon\.key_secret: there is a key of that name already"):
        make_key(tmp_path, "xeon")
    assert load_key(secret_file_of(tmp_path, "xeon")) == key
    assert load_public_key(public_file_of(tmp_path, "xeon")) == key.public
    assert {path.name for path in tmp_path.iterdir()} == {"xeon.key", "xeon.key_secret"}


def test_a_secret_is_in_no_representation(tmp_path):
    key = make_key(tmp_path, "xeon")
    secret = secret_of(tmp_path / "xeon.key_secret")
    keys = RouterKeys.load(tmp_path, "xeon")
    for text in (repr(key), str(key), f"{key}", repr(keys), repr([vars(keys)])):
        assert secret not in text
    assert key.public in repr(key)


def test_a_public_key_needs_no_quotes_in_yaml(tmp_path):
    for index in range(50):
        public = make_key(tmp_path, str(index)).public
        assert public[0].isalnum()
        assert public[-1].isalnum()


def test_a_secret_that_others_can_read_is_refused_with_the_command(tmp_path):
    make_key(tmp_path, "xeon")
    path = tmp_path / "xeon.key_secret"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=rf"have mode 640: chmod 600 {path}"):
        load_key(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file or directory; `hetero keys make` makes one"),
        (b"", "need a secret key .*, have another kind of file"),
        (b"\xff\x00 binary", "need a secret key .*, have another kind of file"),
        (b'public-key = "a"\n', "need a secret key .*, have a public one"),
        (b'public-key = "a"\nsecret-key = "hush"\n', "both halves of one key, have a damaged file"),
    ],
)
def test_what_is_no_secret_key_is_refused(tmp_path, content, complaint):
    path = tmp_path / "x.key_secret"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(ConfigError, match=complaint) as refused:
        load_key(path)
    assert "hush" not in str(refused.value)


def test_halves_of_two_keys_are_refused(tmp_path):
    make_key(tmp_path, "a")
    other = make_key(tmp_path, "b").public
    path = tmp_path / "a.key_secret"
    path.write_text(path.read_text().replace(load_key(path).public, other))
    with pytest.raises(ConfigError, match="damaged file"):
        load_key(path)


@pytest.mark.parametrize("text", ["", "hush", "~" * 40, "#" * 40, "a" * 41, "é" * 40, "a" * 45])
def test_a_malformed_public_key_is_refused_and_not_repeated(text):
    with pytest.raises(ConfigError, match=r"^router_key: need a public key, 40") as refused:
        check_public_key(text, "router_key")
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x", "a\nb", "n" * 64])
def test_names_that_name_no_file_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="name"):
        make_key(tmp_path, name)
    with pytest.raises(ConfigError, match="name"):
        AllowList(tmp_path).revoke(name)
    assert list(tmp_path.iterdir()) == []


def test_the_allow_list_follows_its_files(tmp_path):
    ours, theirs = AllowList(tmp_path), AllowList(tmp_path)
    first, second = (make_key(tmp_path / "made", name).public for name in "ab")
    assert first not in theirs
    path = ours.allow("xeon", first)
    assert theirs.permits("xeon", first)
    assert not theirs.permits("other", first)
    assert not theirs.permits("xeon", second)
    ours.revoke("xeon")
    assert first not in theirs
    ours.allow("xeon", second)
    assert theirs.keys() == {"xeon": second}
    # Moved in by hand, as from another machine.
    (tmp_path / "made" / "a.key").rename(path.with_name("desk.key"))
    assert theirs.names_of(first) == ["desk"]
    path.with_name("desk.key").unlink()
    path.unlink()
    path.parent.rmdir()
    assert theirs.keys() == {}


def test_a_name_is_not_given_to_another_key_unasked(tmp_path):
    allowed = AllowList(tmp_path)
    first, second = (make_key(tmp_path, name).public for name in "ab")
    allowed.allow("xeon", first)
    allowed.allow("xeon", first)
    with pytest.raises(ConfigError, match="xeon: is allowed already with the key"):
        allowed.allow("xeon", second)
    assert allowed.keys() == {"xeon": first}


def test_a_damaged_file_allows_nobody_and_stops_nobody(tmp_path, caplog):
    allowed = AllowList(tmp_path)
    public = make_key(tmp_path, "a").public
    path = allowed.allow("xeon", public)
    path.with_name("empty.key").write_bytes(b"")
    path.with_name("secret.key").write_bytes((tmp_path / "a.key_secret").read_bytes())
    with caplog.at_level(logging.ERROR):
        assert allowed.keys() == {"xeon": public}
    assert "empty.key: need a public key (NAME.key), have another kind of file" in caplog.text
    assert "secret.key: need a public key (NAME.key), have a secret one" in caplog.text
    assert secret_of(tmp_path / "a.key_secret") not in caplog.text


def test_a_list_that_cannot_be_read_keeps_who_was_not_revoked(tmp_path, monkeypatch):
    allowed = AllowList(tmp_path)
    first, second = (make_key(tmp_path, name).public for name in "ab")
    paths = [allowed.allow("a", first), allowed.allow("b", second)]
    assert len(allowed.keys()) == 2

    def no_descriptors(path):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("hetero.transport.allow_list.os.scandir", no_descriptors)
        paths[0].unlink()
        assert allowed.keys() == {"b": second}
    paths[1].unlink()
    assert allowed.keys() == {}


def test_a_keys_directory_that_others_can_write_to_is_refused(tmp_path):
    make_key(tmp_path, "router")
    allowed = AllowList(tmp_path)
    allowed.allow("x", make_key(tmp_path, "x").public)
    allowed.directory.chmod(0o777)
    with pytest.raises(ConfigError, match=rf"have mode 777: chmod 700 {allowed.directory}"):
        RouterKeys.load(tmp_path, "router")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "*", "[::]", "::", "0", "0x0", "[0:0::0]", "[::ffff:0.0.0.0]", "00.0"]
)
def test_every_interface_is_refused_in_any_spelling(host):
    with pytest.raises(ConfigError, match="control: need the address of the interface"):
        check_interface("control", f"tcp://{host}:7070")


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.3", "[::1]", "eth0", "[fe80::1%lo]"])
def test_one_interface_is_taken(host):
    check_interface("control", f"tcp://{host}:7070")


def test_nodes_refuse_to_start_without_good_keys(tmp_path):
    router = {"name": "r", "model": "none.gguf", "keys": str(tmp_path)}
    with pytest.raises(
        ConfigError, match=r"r\.key_secret: can't read the key's file: no such file"
    ):
        run_router(RouterConfig(**router), print)
    with pytest.raises(ConfigError, match="control: need the address"):
        run_router(RouterConfig(**router, control="tcp://0.0.0.0:7070"), print)
    node = {"name": "d", "model": "none.gguf", "router": "tcp://127.0.0.1:9"}
    key = make_key(tmp_path, "d")
    with pytest.raises(ConfigError, match=r"e\.key_secret: can't read the key's file"):
        run_decode(
            DecodeConfig(**node, key=str(tmp_path / "e.key_secret"), router_key=key.public), print
        )
    with pytest.raises(ConfigError, match="router_key: need a public key"):
        run_decode(
            DecodeConfig(**node, key=str(tmp_path / "d.key_secret"), router_key="typo"), print
        )


def test_a_libzmq_without_curve_is_refused(tmp_path, monkeypatch):
    make_key(tmp_path, "d")
    monkeypatch.setattr(zmq, "has", lambda feature: False)
    for need in (
        lambda: make_key(tmp_path, "e"),
        lambda: load_key(secret_file_of(tmp_path, "d")),
    ):
        with pytest.raises(ConfigError, match="need one with CURVE"):
            need()


def keys_verb(capsys, *arguments):
    status = main(["keys", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_verbs_make_allow_list_and_revoke(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    directory = tmp_path / "hetero" / "keys"
    status, made = keys_verb(capsys, "make", "xeon")
    assert status == 0
    assert made["secret_file"] == str(directory / "xeon.key_secret")
    public = {"name": "xeon", "public_key": made["public_key"]}
    status, again = keys_verb(capsys, "make", "xeon")
    assert status == 2
    assert "take another name" in again["error"]["message"]

    status, allowed = keys_verb(capsys, "allow", "xeon", made["public_file"])
    assert (status, allowed) == (0, {**public, "file": str(directory / "allowed" / "xeon.key")})
    assert keys_verb(capsys, "allow", "xeon", made["public_key"])[0] == 0
    status, refused = keys_verb(capsys, "allow", "desk", made["secret_file"])
    assert status == 2
    assert "it should not leave the machine" in refused["error"]["message"]

    listed = {"directory": str(directory), "keys": [public], "allowed": [public]}
    assert keys_verb(capsys, "list") == (0, listed)
    assert keys_verb(capsys, "revoke", "xeon") == (0, public)
    assert keys_verb(capsys, "list") == (0, listed | {"allowed": []})
    status, unknown = keys_verb(capsys, "revoke", "xeon")
    assert status == 2
    assert unknown["error"]["message"] == "xeon: need a node that is allowed, have nobody"


def test_no_verb_prints_a_secret(tmp_path, capsys):
    for arguments in (["make", "x"], ["make", "x"], ["allow", "x", f"{tmp_path}/x.key"], ["list"]):
        main(["keys", *arguments, "--dir", str(tmp_path)])
    said = "".join(capsys.readouterr())
    assert load_key(tmp_path / "x.key_secret").public in said
    assert secret_of(tmp_path / "x.key_secret") not in said


def test_a_secret_in_the_place_of_a_files_name_is_not_repeated():
    secret = "x" * 40
    with pytest.raises(ConfigError, match="what stands there") as error:
        load_key(Path(secret))
    assert secret not in str(error.value)
