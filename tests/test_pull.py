import fcntl
import hashlib
import json
import re
import shutil
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from tiny_models import write_tiny_model

from hetero.errors import ConfigError, ModelError, PlanError
from hetero.model import pull as pull_module
from hetero.model.gguf_file import GGUFFile
from hetero.model.pull import pull

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """A hub on this machine, with the endpoints huggingface_hub calls, and faults on request."""

    def __init__(self):
        self.files = {}
        self.requests = []  # (method, path, Range)
        self.cut_after = []  # one entry a download: bytes sent before the line breaks
        self.statuses = []  # one entry a download: answered instead of the file
        self.ignore_range = False
        self.gated = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def ranges(self):
        return [wanted for method, _, wanted in self.requests if method == "GET" and wanted]

    def answer(self, request):
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path, request.headers.get("Range")))
        if path == "/api/models/org/repo":
            if self.gated:
                return self.send(request, 403, {"X-Error-Code": "GatedRepo"})
            return self.send(request, 200, {}, json.dumps(self.model_info()).encode())
        match = re.fullmatch(rf"/org/repo/resolve/{COMMIT}/(.+)", path)
        if match is None or match[1] not in self.files:
            return self.send(request, 404, {"X-Error-Code": "RepoNotFound"})
        return self.send_file(request, self.files[match[1]])

    def model_info(self):
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": "0" * 40,
                "lfs": {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 130,
                },
            }
            for name, content in self.files.items()
        ]
        return {"id": "org/repo", "sha": COMMIT, "siblings": siblings}

    def send_file(self, request, content):
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
        }
        if request.command == "HEAD":
            return self.send(request, 200, headers, content)
        if self.statuses:
            return self.send(request, self.statuses.pop(0), {})
        start = 0
        if request.headers.get("Range") and not self.ignore_range:
            start = int(re.fullmatch(r"bytes=(\d+)-", request.headers["Range"])[1])
        cut = self.cut_after.pop(0) if self.cut_after else None
        self.send(request, 206 if start else 200, headers, content[start:], cut)
        return None

    def send(self, request, status, headers, body=b"", cut=None):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body[:cut])
        if cut is not None:
            request.close_connection = True


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(pull_module, "RETRY_AFTER_S", 0.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server = FakeHub()
    yield server
    server.close()


@pytest.fixture
def fetch(hub, tmp_path):
    def fetch(repo_id="org/repo", quant=None, **options):
        return pull(repo_id, quant, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", **options)

    return fetch


CONTENT = bytes(range(256)) * 4096


def test_a_pulled_model_is_the_file_on_the_hub(hub, fetch, tmp_path):
    source = write_tiny_model(tmp_path / "m.gguf", num_layers=1)
    hub.files["m-Q8_0.gguf"] = source.read_bytes()
    path = fetch("org/repo:Q8_0")
    assert path.name == "m-Q8_0.gguf"
    assert path.read_bytes() == source.read_bytes()
    assert GGUFFile.open(path).tensors


def test_a_second_pull_downloads_nothing(hub, fetch):
    hub.files["m-Q4_K_M.gguf"] = CONTENT
    first = fetch()
    hub.requests.clear()
    assert fetch() == first
    assert [path for method, path, _ in hub.requests if method == "GET"] == ["/api/models/org/repo"]


def test_the_file_is_where_the_hub_library_looks(hub, fetch, tmp_path):
    from huggingface_hub import hf_hub_download

    hub.files["m-Q4_K_M.gguf"] = CONTENT
    path = fetch()
    cached = hf_hub_download(
        "org/repo",
        "m-Q4_K_M.gguf",
        revision=COMMIT,
        cache_dir=tmp_path / "cache",
        local_files_only=True,
    )
    assert cached == str(path)


def test_a_broken_line_is_taken_up_where_it_broke(hub, fetch):
    hub.files["m-Q4_K_M.gguf"] = CONTENT
    hub.cut_after = [300_000, 0, 200_000]
    assert fetch().read_bytes() == CONTENT
    assert hub.ranges == [
        "bytes=0-",
        "bytes=300000-",
        "bytes=300000-",
        "bytes=500000-",
    ]


def test_an_interrupted_pull_goes_on_in_the_next_call(hub, fetch):
    hub.files["m-Q4_K_M.gguf"] = CONTENT

    def interrupt(done, _total):
        if done >= 200_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(progress=interrupt)
    hub.requests.clear()
    assert fetch().read_bytes() == CONTENT
    (wanted,) = hub.ranges
    assert int(wanted.removeprefix("bytes=").removesuffix("-")) >= 200_000


def test_giving_up_keeps_what_arrived(hub, fetch):
    hub.files["m-Q4_K_M.gguf"] = CONTENT
    hub.cut_after = [100_000] + [0] * pull_module.MAX_FAILURES
    with pytest.raises(ModelError, match=r"need 1048576 bytes, have 100000: .*; pull again"):
        fetch()
    hub.requests.clear()
    assert fetch().read_bytes() == CONTENT
    assert hub.ranges == ["bytes=100000-"]


def test_a_server_without_ranges_starts_over(hub, fetch):
    hub.files["m-Q4_K_M.gguf"] = CONTENT
    hub.ignore_range = True
    hub.cut_after = [300_000]
    assert fetch().read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(hub, fetch):
    hub.files["m-Q4_K_M.gguf"] = CONTENT
    hub.statuses = [503, 500]
    assert fetch().read_bytes() == CONTENT
    hub.files["m-Q8_0.gguf"] = CONTENT[::-1]
    hub.statuses = [403]
    with pytest.raises(ModelError, match=r"m-Q8_0\.gguf: the hub refuses it with status 403"):
        fetch(quant="Q8_0")


def test_wrong_bytes_are_never_filed(hub, fetch, tmp_path):
    hub.files["m-Q4_K_M.gguf"] = CONTENT
    fault = hub.send_file

    def garble(request, content):
        if request.command == "GET":
            content = content[:1000] + b"x" + content[1001:]
        return fault(request, content)

    hub.send_file = garble
    with pytest.raises(ModelError, match="another checksum: pull it again"):
        fetch()
    assert list((tmp_path / "cache").rglob("blobs/*")) == []
    hub.send_file = fault
    assert fetch().read_bytes() == CONTENT


def test_all_parts_of_a_split_model_come_and_progress_adds_up(hub, fetch, tmp_path):
    first = write_tiny_model(tmp_path / "m.gguf", num_layers=1, split_max_tensors=5)
    for part in GGUFFile.open(first).parts:
        hub.files[f"Q8_0/{part.name}"] = part.read_bytes()
    steps = []
    path = fetch(quant="q8_0", progress=lambda *step: steps.append(step))
    assert path.name == "m-00001-of-00003.gguf"
    assert len(GGUFFile.open(path).parts) == 3
    total = sum(len(content) for content in hub.files.values())
    assert steps == sorted(steps)
    assert steps[-1] == (total, total)


def test_a_missing_part_is_noticed_before_downloading(hub, fetch):
    hub.files = {f"m-Q4_K_M-0000{n}-of-00003.gguf": CONTENT for n in (1, 3)}
    with pytest.raises(ConfigError, match=r"m-Q4_K_M\.gguf: need 3 parts, the hub has 2"):
        fetch()


NAMES = [
    "README.md",
    "mmproj-m-Q4_K_M.gguf",
    "imatrix.gguf",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "m.q8_0.gguf",
    "BF16/m-BF16.gguf",
    "m-IQ4_XS.gguf",
]


@pytest.mark.parametrize(
    ("quant", "name"),
    [
        (None, "m-Q4_K_M.gguf"),
        ("q4_k_s", "m-Q4_K_S.gguf"),
        ("Q8_0", "m.q8_0.gguf"),
        ("bf16", "m-BF16.gguf"),
        ("m-IQ4_XS.gguf", "m-IQ4_XS.gguf"),
    ],
)
def test_the_quant_picks_the_file(hub, fetch, quant, name):
    hub.files = {file: file.encode() for file in NAMES}
    assert fetch(quant=quant).name == name


@pytest.mark.parametrize("quant", ["Q4_K", "Q4_XS", "mmproj", "Q6_K"])
def test_an_absent_quant_lists_what_there_is(hub, fetch, quant):
    hub.files = {file: file.encode() for file in NAMES}
    with pytest.raises(ConfigError, match=rf"no {quant} here, need one of: BF16/m-BF16\.gguf, m-"):
        fetch(quant=quant)


def test_the_only_model_needs_no_quant(hub, fetch):
    hub.files = {"mmproj-F16.gguf": b"x", "only-Q2_K.gguf": CONTENT}
    assert fetch().name == "only-Q2_K.gguf"


def test_two_models_of_one_quant_are_ambiguous(hub, fetch):
    hub.files = {"base-Q8_0.gguf": b"b", "chat-Q8_0.gguf": b"c"}
    with pytest.raises(ConfigError, match=r"several models, .*base-Q8_0\.gguf, chat-Q8_0\.gguf"):
        fetch(quant="Q8_0")
    assert fetch("org/repo:chat-Q8_0.gguf").read_bytes() == b"c"


def test_a_repository_without_models(hub, fetch):
    hub.files = {"model.safetensors": b"x"}
    with pytest.raises(ConfigError, match="no GGUF model in this repository"):
        fetch()


def test_hub_refusals_say_what_to_do(hub, fetch, monkeypatch):
    with pytest.raises(ConfigError, match="org/other: no such repository at"):
        fetch("org/other")
    with pytest.raises(ConfigError, match="not a repository name: need org/repo"):
        fetch("a b/c/d")
    hub.gated = True
    with pytest.raises(ConfigError, match=rf"gated: accept its terms at {hub.endpoint}/org/repo"):
        fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        fetch()


def test_an_unreachable_hub_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"org/repo: http://127\.0\.0\.1:9 can't be reached"):
        pull("org/repo", endpoint="http://127.0.0.1:9", cache_dir=tmp_path)


def test_a_full_disk_is_noticed_before_downloading(hub, fetch, monkeypatch):
    hub.files["m-Q4_K_M.gguf"] = CONTENT
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(PlanError, match=r"need 0\.0 GiB for m-Q4_K_M\.gguf, have 0\.0 GiB free"):
        fetch()
    assert hub.ranges == []


def test_two_pulls_do_not_write_one_file(hub, fetch, tmp_path):
    hub.files["m-Q4_K_M.gguf"] = CONTENT
    blobs = tmp_path / "cache" / "models--org--repo" / "blobs"
    blobs.mkdir(parents=True)
    with open(blobs / f"{hashlib.sha256(CONTENT).hexdigest()}.partial", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another pull is downloading it"):
            fetch()
    assert fetch().read_bytes() == CONTENT
