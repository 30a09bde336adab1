"""`hetero profile ...` called in this process, and files for it."""

from hetero.cli import main
from hetero.profile.document import write_profile


def write_profiles(folder, *profiles):
    """Returns their paths."""
    paths = []
    for number, profile in enumerate(profiles):
        path = folder / f"{number}.yaml"
        write_profile(profile, path)
        paths.append(str(path))
    return paths


def call(capsys, *arguments):
    """Exit status, what was printed, and what was said on the way."""
    status = main.main(["profile", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def called(capsys, *arguments):
    """What was printed."""
    status, out, err = call(capsys, *arguments)
    assert status == 0, err
    return out
