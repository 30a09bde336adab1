"""llama-server as a candidate: a stand-in that says what it was told, and the real one if there."""

import json
import os
import sys

import pytest
from front_requests import complete

from hetero.errors import EngineError
from hetero.experiment.deploy.deployment import Deployment
from hetero.experiment.deploy.site import FRONT, LocalSite
from hetero.experiment.recipe.recipe import Candidate, Peer, Settings
from hetero.model.demo import DEMO_MODEL_PATH


@pytest.mark.slow
@pytest.mark.skipif("HETERO_LLAMA_SERVER" not in os.environ, reason="needs HETERO_LLAMA_SERVER")
def test_llama_server_says_what_we_say(tmp_path):
    """From the same model, types and chunks, where nothing else is in the batch."""
    texts = []
    for peer in (None, Peer(server="llama-server")):
        candidate = Candidate(decode=[] if peer else ["a"], peer=peer)
        with (
            LocalSite() as site,
            Deployment(
                site, DEMO_MODEL_PATH, candidate, Settings(), tmp_path / "run", print
            ) as deployment,
        ):
            texts.append(complete(site, deployment.url)["choices"][0]["text"])
    assert texts[0] == texts[1]


# Healthy at the second time of asking, and then says what it was started with.
STAND_IN = """#!{python} -S
import http.server, json, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("version: 7 (stand-in)"))
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if options["--cache-type-k"] == "q4_0":
    sys.exit("error: no such cache")
asked = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.path)
        self.send_response(503 if len(asked) == 1 else 200)
        self.end_headers()
        self.wfile.write(json.dumps(sys.argv).encode())
http.server.HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "llama-server"
    path.write_text(STAND_IN.replace("{python}", sys.executable))
    path.chmod(0o755)
    return path


def test_a_peer_gets_our_slots_and_cache_and_is_waited_for(stand_in, tmp_path):
    peer = Peer(server="llama-server", binary=str(stand_in), options=["--kv-unified"])
    candidate = Candidate(peer=peer)
    settings = Settings(kv="q8_0/q4_0", slots=3, context_tokens=500, chunk_tokens=64, threads=2)
    with (
        LocalSite() as site,
        Deployment(
            site, DEMO_MODEL_PATH, candidate, settings, tmp_path / "run", print
        ) as deployment,
    ):
        port = int(deployment.url.rpartition(":")[2])
        _, said = site.get(FRONT, port, "/")
        assert deployment.versions["llama-server"] == "version: 7 (stand-in)"
        assert list(deployment.cpu_seconds()) == ["llama-server"]
    argv = json.loads(said)
    options = dict(zip(argv[1::2], argv[2::2], strict=False))
    assert options["--ctx-size"] == "1500"
    assert options["--parallel"] == "3"
    assert options["--ubatch-size"] == "64"
    assert options["--threads"] == options["--threads-batch"] == "2"
    assert (options["--cache-type-k"], options["--cache-type-v"]) == ("q8_0", "q4_0")
    assert {"--no-cache-prompt", "--no-webui", "--no-kv-unified"} <= set(argv)
    assert argv[-1] == "--kv-unified"  # the last one wins


def test_a_peer_that_dies_says_why(stand_in, tmp_path):
    candidate = Candidate(peer=Peer(server="llama-server", binary=str(stand_in)))
    deployment = Deployment(
        LocalSite(), DEMO_MODEL_PATH, candidate, Settings(kv="q4_0"), tmp_path / "run", print
    )
    with pytest.raises(EngineError, match=r"llama-server: .*it said last: error: no such cache"):
        deployment.__enter__()
