import json
import subprocess
import sys

import pytest
from tiny_models import tiny_shape, write_tiny_model
from typer.testing import CliRunner

from hetero.cli.model import app, model_path
from hetero.errors import ConfigError, ModelError
from hetero.model import pull as pull_module
from hetero.model import shapes
from hetero.model.fingerprint import fingerprint_model
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_info_as_json_is_the_spec_and_its_kv_costs(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", architecture="qwen3", rope_scaling="yarn")
    facts = json.loads(run("info", path, "--json", "--fingerprint"))
    spec = gguf_to_spec(GGUFFile.open(path))
    assert facts["num_parameters"] == spec.num_parameters
    assert facts["rope"]["scaling"] == "yarn"
    # 3 layers, K and V of 2 heads of 64 values: 2 bytes each, or blocks of 32 in 34 and 18 bytes.
    costs = facts["kv_bytes_per_token"]
    assert (costs["f16"], costs["q8_0"], costs["q4_0"]) == (1536, 816, 432)
    assert facts["fingerprint"]["tensors"] == fingerprint_model(path).tensors


def test_info_for_people_names_what_matters(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", architecture="qwen3moe", head_dim=80)
    text = run("info", path)
    for words in ("tiny-qwen3moe", "2 of 4", "2 KV heads of 80", "Q/K norms", "1,920"):
        assert words in text
    # Heads of 80 are not whole blocks of 32.
    assert "not with heads of 80" in text


def test_the_embedded_model_is_called_demo():
    assert json.loads(run("info", "demo", "--json"))["parts"] == 1
    assert str(model_path("./demo")) == "demo"


def test_synth_writes_the_shape_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny_shape())
    out = tmp_path / "m.gguf"
    facts = json.loads(run("synth", "--shape", "tiny-q8_0", "-o", out, "--json"))
    assert facts == {"path": str(out), "parts": 1, "file_bytes": out.stat().st_size}
    assert gguf_to_spec(GGUFFile.open(out)).quantization == "Q8_0"
    with pytest.raises(ConfigError, match="exists already"):
        run("synth", "--shape", "tiny", "-o", out)
    assert run("synth", "--shape", "tiny", "-o", out, "--force", "--seed", 3).strip() == str(out)


def test_pull_prints_where_the_file_is(tmp_path, monkeypatch):
    path = write_tiny_model(tmp_path / "m.gguf", num_layers=1)

    def fetched(repo, *, progress):
        assert repo == "org/repo:Q8_0"
        progress(1, 1)
        return path

    monkeypatch.setattr(pull_module, "pull", fetched)
    assert run("pull", "org/repo:Q8_0") == f"{path}\n"
    assert json.loads(run("pull", "org/repo:Q8_0", "--json"))["path"] == str(path)


def test_errors_are_left_to_the_caller(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        run("info", tmp_path / "none.gguf")


def test_the_verbs_load_nothing_heavy_before_they_run():
    heavy = ["numpy", "gguf", "rich", "torch", "llama_cpp", "huggingface_hub", "msgspec"]
    code = f"import sys, hetero.cli.model; print([m for m in {heavy} if m in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
