"""Grammars from strangers: limited, then compiled and tried in a throwaway process.

llama.cpp segfaults on deep nesting, takes hours on some short grammars and aborts on others, and
what it aborts is the process that everyone's requests live in. A grammar that has come through
here has been compiled and walked by the same code, on a smaller stack than an engine's.
"""

import json
import os
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from hetero.errors import ConfigError, EngineError
from hetero.llama.json_schema import checked_schema

# The largest that people write (a programming language, a big API) are near 20 kB.
MAX_GRAMMAR_BYTES = 128 * 2**10
MAX_SCHEMA_BYTES = 64 * 2**10

# llama.cpp's parser recurses once a level and dies at some 2,500 on a stack of 1 MiB.
MAX_NESTING = 1024

# Twice what a slow server takes for a trial's steps with the largest vocabularies.
MAX_CPU_S = 4

# The limit on CPU time is tighter; this one is for a machine that swaps.
_TIMEOUT_S = 60.0

# Checks take half a second and front ends repeat a few grammars.
_NUM_REMEMBERED = 128

# All that a Python process with native libraries needs of ours.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


class GrammarChecker:
    """Checks grammars for one vocabulary and remembers the good ones. Thread-safe; calls block."""

    def __init__(self, model_path: Path | str, *, max_cpu_s: int = MAX_CPU_S) -> None:
        self._model_path = str(Path(model_path).absolute())
        self._max_cpu_s = max_cpu_s
        self._compiled = lru_cache(_NUM_REMEMBERED)(self._compile)

    def gbnf(self, grammar: str) -> str:
        """The grammar itself, once it is known to be safe for an engine.

        Raises: ConfigError saying what is wrong with it.
        """
        check_limits(grammar)
        return self._compiled("gbnf", grammar)

    def json_schema(self, schema: object) -> str:
        """GBNF for the JSON values that the schema describes.

        Raises: ConfigError, also for keywords that would not be enforced.
        """
        num_bytes = len(json.dumps(schema))
        if num_bytes > MAX_SCHEMA_BYTES:
            raise ConfigError(f"schema: need at most {MAX_SCHEMA_BYTES} bytes, have {num_bytes}")
        return self._compiled("schema", json.dumps(checked_schema(schema)))

    def _compile(self, kind: str, text: str) -> str:
        job = {"model": self._model_path, "cpu_s": self._max_cpu_s, kind: text}
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            # A vocabulary needs no GPU, and waking one takes seconds.
            "CUDA_VISIBLE_DEVICES": "",
        }
        try:
            child = subprocess.run(
                [sys.executable, "-P", "-m", "hetero.decode.grammar_trial"],
                input=json.dumps(job).encode(),
                capture_output=True,
                timeout=_TIMEOUT_S,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(_too_costly("more time than that")) from None
        log = child.stderr.decode("utf-8", "replace")
        if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise ConfigError(_too_costly("more CPU time than that"))
        if child.returncode < 0:
            name = signal.Signals(-child.returncode).name
            raise ConfigError(
                f"grammar: need one that llama.cpp survives, have one that crashes it ({name}); "
                f"make it smaller or nest it less"
            )
        if child.returncode > 0:
            last = log.strip().rpartition("\n")[2]
            raise EngineError(
                f"grammar trial: need an answer, have exit {child.returncode}: {last}"
            )
        answer = json.loads(child.stdout)
        if "error" in answer:
            raise ConfigError(_parser_reason(log) or answer["error"])
        gbnf: str = answer["gbnf"]
        return gbnf


def check_limits(grammar: str) -> None:
    """Size and nesting, cheaply and with a clear message; the trial process decides the rest."""
    if "\0" in grammar:
        raise ConfigError("grammar: need text without NUL characters, have one")
    num_bytes = len(grammar.encode())
    if num_bytes > MAX_GRAMMAR_BYTES:
        raise ConfigError(f"grammar: need at most {MAX_GRAMMAR_BYTES} bytes, have {num_bytes}")
    deepest = nesting(grammar)
    if deepest > MAX_NESTING:
        raise ConfigError(
            f"grammar: need at most {MAX_NESTING} levels of parentheses, have {deepest}"
        )


def nesting(grammar: str) -> int:
    """How deep the parentheses go, outside literals, character classes and comments."""
    deepest = level = 0
    until = ""  # what ends the literal, class or comment we are in
    escaped = False
    for char in grammar:
        if until:
            if escaped:
                escaped = False
            elif char == "\\" and until != "\n":
                escaped = True
            elif char == until:
                until = ""
        elif char in '"[#':
            until = {'"': '"', "[": "]", "#": "\n"}[char]
        elif char == "(":
            level += 1
            deepest = max(deepest, level)
        elif char == ")":
            level -= 1
    return deepest


def _parser_reason(log: str) -> str | None:
    """llama.cpp's parser says what is wrong on stderr alone."""
    marker = "error parsing grammar: "
    for line in log.splitlines():
        if marker in line:
            return f"grammar: need valid GBNF, have: {line.partition(marker)[2][:200]}"
    return None


def _too_costly(have: str) -> str:
    return (
        f"grammar: need one that compiles and advances in a few seconds, have one that takes "
        f"{have}; make it simpler or less ambiguous"
    )
