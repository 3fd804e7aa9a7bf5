import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skilltune.files import write_atomic


def test_a_file_in_parts_is_written_as_one(tmp_path: Path) -> None:
    write_atomic(tmp_path / "rows.jsonl", (f"{n}\n" for n in range(3)))
    assert (tmp_path / "rows.jsonl").read_text() == "0\n1\n2\n"


def test_parts_that_end_in_an_error_leave_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def parts():
        yield "new"
        raise RuntimeError("no more")

    write_atomic(tmp_path / "a", "old")
    with pytest.raises(RuntimeError, match="no more"):
        write_atomic(tmp_path / "a", parts())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


@pytest.mark.parametrize("name", ["card.md", "a[1]*.md", "n" * 240])
def test_leftovers_of_the_dead_go_and_files_of_the_living_stay(tmp_path: Path, name: str) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, alive = int(ended.stdout), os.getppid()
    kept = [
        f".{name[:100]}.{alive}-0123abcd.tmp",
        f".other.{dead}-0123abcd.tmp",
        f"{name}.x"[-200:],
        f".{name[:100]}.swp",
    ]
    for left in (f".{name[:100]}.{dead}-0123abcd.tmp", f".{name[:100]}.tmp", *kept):
        (tmp_path / left).touch()
    write_atomic(tmp_path / name, "new")
    assert {path.name for path in tmp_path.iterdir()} == {name, *kept}


def test_two_writers_of_one_path_do_not_disturb_each_other(tmp_path: Path) -> None:
    texts = [str(n) * 100_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_atomic(tmp_path / "report.html", text), texts))
    assert (tmp_path / "report.html").read_text() in texts
    assert len(list(tmp_path.iterdir())) == 1


def test_the_mode_is_the_owners_alone_or_as_stated(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        for mode, found in ((0o600, 0o600), (None, 0o644), (0o666, 0o666)):
            write_atomic(tmp_path / "a", "x", mode=mode)
            assert (tmp_path / "a").stat().st_mode & 0o777 == found
    finally:
        os.umask(before)
