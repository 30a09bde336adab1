"""Compile every kernel for every GPU generation: results/kernel_bench/compiled.json and .md.

    python tools/compile_kernels.py      # minutes; needs Triton, and no GPU

To be run again when a kernel or Triton's version changes; a slow test notices.
"""

import json
import sys
from pathlib import Path

from hetero.experiment.kernel_bench.compile_table import compile_kernels, markdown

FOLDER = Path(__file__).parent.parent / "results" / "kernel_bench"


def main() -> None:
    report = compile_kernels(lambda line: print(line, file=sys.stderr))
    if report["failures"]:
        sys.exit("some kernels do not compile: nothing written")
    (FOLDER / "compiled.json").write_text(json.dumps(report, indent=1) + "\n")
    (FOLDER / "compiled.md").write_text(markdown(report))


if __name__ == "__main__":
    main()
