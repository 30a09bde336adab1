"""The command as users run it: a process, its words, and its exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hetero.cli import checks, doctor, main, options
from hetero.errors import ConfigError, EngineError, PlanError

HEAVY = ("numpy", "torch", "llama_cpp", "fastapi", "httpx", "zmq", "rich.table")


def hetero(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "hetero", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "200"}
        | environment,
    )


def test_help_names_every_verb_and_loads_nothing_heavy():
    code = (
        "import sys; from hetero.cli.main import main; status = main(['--help']); "
        f"print([m for m in {HEAVY} if m in sys.modules], status)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *help_lines, last = run.stdout.splitlines()
    assert last == "[] 0"
    for verb in ("demo", "generate", "model", "up", "status", "node", "doctor"):
        assert any(line.split()[:1] == [verb] for line in help_lines), verb


@pytest.mark.parametrize("verb", [*main._VERBS])
def test_every_verb_explains_itself(verb, capsys):
    assert main.main([verb, "--help"]) == 0
    assert f"Usage: hetero {verb}" in capsys.readouterr().out


def commands():
    """(words, command) of all that can be called, the groups too."""
    group = typer.main.get_command(main.app)
    yield [], group
    for verb in main._VERBS:
        _, found, _ = group.resolve_command(typer.Context(group), [verb])
        yield [verb], found
        for name, command in getattr(found, "commands", {}).items():
            yield [verb, name], command


@pytest.mark.parametrize(
    "words", [words for words, _ in commands()], ids=lambda words: " ".join(words) or "hetero"
)
def test_help_says_all_that_an_options_help_says(words, capsys):
    [command] = [command for each, command in commands() if each == words]
    assert main.main([*words, "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    for parameter in command.params:
        said = getattr(parameter, "help", None) or ""
        assert "".join(said.split()) in shown, parameter.name


def test_defaults_in_brackets_are_shown(capsys):
    assert main.main(["profile", "node", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "[default: the best]" in shown
    assert "[default: profiles/HOST_MODEL.yaml]" in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nod"], "No such command 'nod'. Did you mean 'node'?"),
        (["node", "router"], "Missing option '--config'"),
        (["up", "--port", "x"], "--port"),
        (["up"], "up: need --local"),
        (["generate", "-m", "demo"], "prompt: need one of -p TEXT and -f FILE"),
        (["generate", "-m", "demo", "-p", "a", "-n", "8192"], "need a context of 2 + 8192 tokens"),
        (
            ["generate", "-m", "demo", "-p", "a", "--attention", "sdpa", "--prefill", "llama"],
            "attention sdpa: llama.cpp computes its own",
        ),
        (["generate", "-m", "demo", "-p", "a", "--kv-k", "q9"], "KV type 'q9': need one of f16"),
        (["node", "decode", "--config", "/no/such.yaml"], "no such file or directory"),
    ],
)
def test_wrong_arguments_end_with_two(arguments, complaint):
    run = hetero(*arguments, "--json")
    assert run.returncode == 2
    assert run.stderr.startswith("hetero: error: ")
    assert complaint in run.stderr
    error = json.loads(run.stdout.splitlines()[-1])["error"]
    assert complaint in error["message"]
    assert "Traceback" not in run.stderr


def test_no_verb_shows_the_help():
    run = hetero()
    assert run.returncode == 2
    assert "Commands:" in run.stderr


def test_missing_model_is_bad_usage():
    run = hetero("generate", "-m", "/no/such.gguf", "-p", "a")
    assert run.returncode == 2
    assert run.stderr.startswith("hetero: error: /no/such.gguf: ")
    assert run.stdout == ""


def test_what_memory_can_not_hold_is_refused(monkeypatch):
    monkeypatch.setattr("hetero.decode.memory.free_memory_bytes", lambda root: 5 * 2**20)
    _, spec = options.open_model("demo")
    plan = {
        "kv_k": "f16",
        "kv_v": "f16",
        "prefill": options.Engine.AUTO,
        "attention": options.AttentionKernel.AUTO,
        "num_decode": 2,
        "slots": 1,
    }
    options.check_plan(spec, context_tokens=256, **plan)
    # A token's KV is 3 layers of 2 heads of 64 in f16, twice: 1.5 KiB.
    with pytest.raises(PlanError, match=r"need 5\.5\d MiB of memory for 2 node\(s\)"):
        options.check_plan(spec, context_tokens=1024, **plan)


def test_a_context_beyond_the_models_is_refused():
    run = hetero("up", "--local", "--context", "9000")
    assert run.returncode == 2
    assert "need at most the 8192 tokens the model was trained for, have 9000" in run.stderr


@pytest.mark.parametrize(
    ("role", "text", "complaint"),
    [
        ("prefill", "name: p\nmodel: m\nrouter: 10.0.0.1:70\n", "tcp://HOST:PORT"),
        ("prefill", "name: p\nmodel: m\nport: 8080\n", "settings of a prefill node"),
        ("decode", "nonsense", "it has the fields name, model, router"),
        ("router", "", "settings of a router node"),
    ],
)
def test_a_bad_node_file_is_named_with_what_it_needs(tmp_path, role, text, complaint):
    path = tmp_path / "node.yaml"
    path.write_text(text)
    run = hetero("node", role, "--config", str(path))
    assert run.returncode == 2
    assert run.stderr.startswith(f"hetero: error: {path}: ")
    assert complaint in run.stderr


def test_version():
    run = hetero("--version")
    assert (run.returncode, run.stdout.split()[0]) == (0, "hetero")


def test_status_without_a_cluster_says_how_to_start_one(tmp_path):
    run = hetero("status", XDG_RUNTIME_DIR=str(tmp_path))
    assert run.returncode == 1
    assert "no cluster is running here" in run.stderr
    assert "hetero up --local" in run.stderr


def test_status_of_nobody_names_the_address():
    run = hetero("status", "--url", "http://127.0.0.1:1", "--json")
    assert run.returncode == 1
    error = json.loads(run.stdout)["error"]
    assert error["kind"] == "PeerError"
    assert "http://127.0.0.1:1" in error["message"]


@pytest.mark.parametrize(
    ("raised", "status", "words"),
    [
        (ConfigError("port: in use"), 2, "hetero: error: port: in use\n"),
        (EngineError("decode-0: gone"), 1, "hetero: error: decode-0: gone\n"),
        (ZeroDivisionError("oh"), 1, "hetero: error: ZeroDivisionError: oh. This is a bug: please"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_verb_raises_becomes_an_exit_status(monkeypatch, capsys, raised, status, words):
    def fail():
        raise raised

    monkeypatch.setattr(doctor, "app", single_verb(fail))
    assert main.main(["doctor"]) == status
    error = capsys.readouterr().err
    assert error.startswith(words)
    assert "Traceback" not in error


def single_verb(function):
    app = doctor.typer.Typer(add_completion=False)
    app.command()(function)
    return app


def test_debugging_shows_the_traceback(monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "app", single_verb(fail))
    monkeypatch.setenv("HETERO_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main.main(["doctor"])


@pytest.mark.parametrize("arguments", [["--help"], ["model", "info", "demo"]])
def test_a_reader_that_left_is_no_news(arguments):
    run = subprocess.Popen(
        [sys.executable, "-m", "hetero", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    run.stdout.close()
    assert run.stderr.read() == b""
    run.stderr.close()
    assert run.wait() in (0, 1)


def run_doctor(*arguments):
    return CliRunner().invoke(doctor.app, list(arguments))


def test_doctor_finds_this_machine_fit():
    run = run_doctor("--json")
    found = json.loads(run.stdout)["checks"]
    assert run.exit_code == 0, [check for check in found if not check["ok"]]
    names = {check["name"] for check in found}
    assert {"Python", "C++ compiler", "llama-cpp-python", "torch", "memory", "port"} <= names
    for check in found:
        assert set(check) == {"name", "ok", "required", "have", "need", "fix"}


@pytest.fixture
def without_torch(monkeypatch):
    """Loading it takes longer than all the other checks."""
    monkeypatch.setattr(checks, "_TORCH_FACTS", "raise SystemExit(1)")


@pytest.mark.usefixtures("without_torch")
def test_torch_is_optional():
    by_name = {check.name: check for check in checks.all_checks()}
    assert not by_name["torch"].ok
    assert not by_name["torch"].required
    assert run_doctor().exit_code == 0


@pytest.mark.usefixtures("without_torch")
def test_doctor_says_what_to_do_about_another_llama(monkeypatch):
    monkeypatch.setattr(checks, "version", lambda _: "0.3.1")
    run = run_doctor()
    assert run.exit_code == 1
    assert "0.3.1" in run.stdout
    assert f"llama-cpp-python=={checks.LLAMA_VERSION}" in run.stdout


@pytest.mark.usefixtures("without_torch")
def test_doctor_reports_a_library_that_kills_the_process(monkeypatch):
    monkeypatch.setattr(checks, "_LLAMA_FACTS", "import os; os.kill(os.getpid(), 4)")
    monkeypatch.setattr(checks.shutil, "which", lambda _: None)
    by_name = {check.name: check for check in checks.all_checks()}
    assert "killed by signal 4" in by_name["llama-cpp-python"].have
    # Without a library that works, one must be built.
    assert by_name["C++ compiler"].required
    assert not by_name["C++ compiler"].ok


@pytest.mark.usefixtures("without_torch")
def test_doctor_wants_gpu_support_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(checks, "_nvidia_gpu", lambda: "Tesla P40")
    check = {check.name: check for check in checks.all_checks()}["llama.cpp on the GPU"]
    assert "Tesla P40" in check.need
    assert check.ok or "-DGGML_CUDA=on" in check.fix


def test_doctor_says_why_triton_can_not_run_on_a_gpu(monkeypatch):
    facts = {"version": "2.13.0", "cuda": True, "triton_problem": "Triton needs a C compiler"}
    monkeypatch.setattr(checks, "_TORCH_FACTS", f"print({json.dumps(json.dumps(facts))})")
    check = {check.name: check for check in checks.all_checks()}["Triton"]
    assert (check.ok, check.required) == (False, False)
    assert check.have == "Triton needs a C compiler"


def test_doctor_knows_the_pinned_llama():
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    assert f'"llama-cpp-python=={checks.LLAMA_VERSION}"' in pyproject.read_text()


@pytest.mark.slow
@pytest.mark.timeout(3000)  # where pip has no llama.cpp built yet, it builds one
def test_the_installed_package_works_without_torch(tmp_path):
    root = Path(__file__).parent.parent
    python = tmp_path / "venv" / "bin" / "python"

    def call(*command):
        subprocess.run(command, check=True, cwd=tmp_path)

    call(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, root)
    (wheel,) = tmp_path.glob("*.whl")
    call(sys.executable, "-m", "venv", tmp_path / "venv")
    call(python, "-m", "pip", "install", "-q", "-c", root / "constraints.txt", wheel)
    run = subprocess.run(
        [tmp_path / "venv" / "bin" / "hetero", "demo", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["match"] is True
