"""Results of recipes that lie in results/: whole, for strangers, and as the index says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hetero.experiment.outcome.result import is_result, read_result

ROOT = Path(__file__).parent.parent
FOLDERS = [path.parent for path in sorted((ROOT / "results").glob("*/*/result.json"))]
FOLDERS = [folder for folder in FOLDERS if is_result(folder / "result.json")]


@pytest.mark.parametrize(
    "folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}"
)
def test_a_result_is_whole(folder):
    result = read_result(folder)
    report = (folder / "report.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert len(pictures) == len(result.recipe.plots)
    for picture in pictures:
        assert (folder / picture).stat().st_size
        assert (folder / picture).with_suffix(".svg").stat().st_size
    lines = (folder / "requests.jsonl").read_bytes().count(b"\n")
    assert lines == sum(run.num_records for run in [*result.arms, *result.dropped])
    assert not (folder / "journal.jsonl").exists()
    # Of a commit that others can check out.
    assert re.fullmatch(r"[0-9a-f]{40}", result.provenance["commit"])


@pytest.mark.parametrize(
    "folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}"
)
def test_a_result_says_nothing_of_where_its_user_keeps_things(folder):
    for name in ("result.json", "report.md", "requests.jsonl"):
        text = (folder / name).read_text()
        assert not re.search(r"[\"` ]/(home|root|tmp|work|mnt|Users|srv|data)/", text)


def test_the_index_is_up_to_date():
    command = [sys.executable, str(ROOT / "tools" / "index_results.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
