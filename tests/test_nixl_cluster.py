"""A cluster whose rows travel through NIXL: the answer arrives, and it says what carried it."""

import httpx
import pytest

from hetero.launch.local import LocalCluster, LocalPlan
from hetero.model.demo import DEMO_MODEL_PATH, recall_prompt

pytest.importorskip("nixl_cu12", reason="needs hetero[rdma]", exc_type=ImportError)

WAIT_S = 60


@pytest.mark.parametrize("transport", ["nixl-shm", "nixl-tcp"])
def test_an_answer_that_exists_only_in_the_cache_arrives(tmp_path, monkeypatch, transport):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plan = LocalPlan(
        name="nixl-test",
        model=DEMO_MODEL_PATH,
        context_tokens=3072,
        threads=1,
        prefill="llama",
        transport=transport,
    )
    task = recall_prompt(512, seed=5)
    with LocalCluster(plan, lambda line: None) as cluster:
        answer = httpx.post(
            f"{cluster.url}/v1/chat/completions",
            json={
                "messages": [{"role": "user", "content": task.content}],
                "temperature": 0,
                "route": "split",
            },
            timeout=WAIT_S,
        ).json()
        nodes = httpx.get(f"{cluster.url}/status").json()["nodes"]
        logs = "".join(path.read_text() for path in cluster.run_directory.rglob("*.log"))
    assert answer["choices"][0]["message"]["content"] == task.answer
    assert answer["timings"]["kv_bytes"] > 0
    assert {node.get("transport") for node in nodes if node["role"] != "router"} == {transport}
    assert f"rows travel by {transport} over " in logs
