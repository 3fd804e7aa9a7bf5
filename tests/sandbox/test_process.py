"""A command is bounded, and nothing that it started lives on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from skilltune.errors import CallConfigError, InfraError
from skilltune.sandbox import process
from skilltune.sandbox.process import Command, Exit, Limits, run_process
from skilltune.sandbox.supervisor import MARK, marked

pytestmark = pytest.mark.anyio
PATH = os.environ["PATH"]

DAEMON = """
    import os, sys, time
    def daemon(seconds):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for stream in (0, 1, 2) if CLOSED else ():
                    os.close(stream)
                os.environ.clear()
                with open("daemon.pid.part", "w") as file:
                    file.write(str(os.getpid()))
                os.rename("daemon.pid.part", "daemon.pid")
                time.sleep(seconds)
            os._exit(0)
        os.wait()
        while not os.path.exists("daemon.pid"):
            time.sleep(0.01)
"""


def python(code: str, cwd: Path, stdin: bytes = b"", mark: str = "", **env: str) -> Command:
    env |= {MARK: mark} if mark else {}
    return Command((sys.executable, "-I", "-S", "-c", textwrap.dedent(code)), cwd, {"PATH": PATH, **env}, stdin)


def daemon(code: str, cwd: Path, *, closed: bool = True) -> Command:
    return python(f"CLOSED = {closed}\n" + textwrap.dedent(DAEMON) + textwrap.dedent(code), cwd)


def lives(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


async def run(command: Command, wall_s: float = 20.0, on_line: Callable[[bytes], None] | None = None) -> Exit:
    return await run_process(command, Limits(wall_s), on_line=on_line)


async def test_a_command_gets_its_input_and_only_its_own_environment(tmp_path: Path) -> None:
    code = "import os, sys; print(sorted(os.environ), sys.stdin.read()); print('e', file=sys.stderr); sys.exit(3)"
    ended = await run(python(code, tmp_path, b"in\n", A="1"))
    assert (ended.code, ended.stderr, ended.timed_out, ended.survivors, ended.limit) == (3, b"e\n", False, 0, "")
    assert eval(ended.stdout.splitlines()[0].rpartition(b" ")[0]) == [
        "A",
        *(["LC_CTYPE"] if b"LC_" in ended.stdout else []),
        "PATH",
        MARK,
    ]
    assert ended.stdout.splitlines()[0].endswith(b"in")
    assert ended.seconds > 0
    assert ended.cpu_s > 0


async def test_a_command_without_input_reads_the_end_at_once(tmp_path: Path) -> None:
    ended = await run(python("import sys; print(repr(sys.stdin.read()))", tmp_path))
    assert ended.stdout == b"''\n"


async def test_ten_megabytes_of_input_arrive(tmp_path: Path) -> None:
    ended = await run(python("import sys; print(len(sys.stdin.buffer.read()))", tmp_path, bytes(10_000_000)))
    assert ended.stdout == b"10000000\n"


@pytest.mark.parametrize("closed", [True, False], ids=["streams closed", "streams open"])
@pytest.mark.parametrize("way", ["ends", "time-out", "fails"])
async def test_a_daemonised_grandchild_is_found_and_ended(tmp_path: Path, way: str, closed: bool) -> None:
    then = {"ends": "", "time-out": "time.sleep(60)", "fails": "sys.exit(4)"}[way]
    ended = await run(daemon(f"daemon(60)\n{then}", tmp_path, closed=closed), wall_s=1.5 if way == "time-out" else 20)
    pid = int((tmp_path / "daemon.pid").read_text())
    assert not lives(pid)
    assert (ended.survivors, ended.timed_out) == (1, way == "time-out")
    assert ended.code == {"ends": 0, "time-out": -signal.SIGTERM, "fails": 4}[way]


async def test_a_child_that_ends_soon_after_its_parent_is_no_survivor(tmp_path: Path) -> None:
    code = "import os, time\nif os.fork() == 0:\n    time.sleep(0.05)\n    print('late', flush=True)\n    os._exit(0)"
    ended = await run(python(code, tmp_path))
    assert (ended.stdout, ended.survivors) == (b"late\n", 0)


@pytest.mark.slow
async def test_sigterm_comes_first_and_sigkill_after_the_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    code = """
        import signal, time
        signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
        print("ready", flush=True)
        while True: time.sleep(1)
    """
    ended = await run(python(code, tmp_path), wall_s=0.7)
    assert (ended.code, ended.stdout, ended.timed_out, ended.limit) == (-9, b"ready\nasked\n", True, "wall_s")
    assert 1.1 < ended.seconds < 4


async def test_a_command_that_ends_cleanly_on_sigterm_keeps_its_output_and_code(tmp_path: Path) -> None:
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: (print('bye'), sys.exit(7)))\ntime.sleep(60)"
    ended = await run(python(code, tmp_path), wall_s=0.7)
    assert (ended.code, ended.stdout, ended.timed_out) == (7, b"bye\n", True)


async def test_a_hundred_megabytes_are_drained_in_bounded_memory(tmp_path: Path) -> None:
    code = "import sys\nfor i in range(1600): sys.stdout.buffer.write((b'%05d' % i) + bytes(65531))"
    tracemalloc.start()
    ended = await run_process(python(code, tmp_path), Limits(60, output_bytes=1_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ended.code == 0
    assert ended.truncated
    assert ended.stdout.startswith(b"00000\0")
    assert b"01599\0" in ended.stdout
    assert len(ended.stdout) < 1_000_100
    assert peak < 8_000_000


async def test_a_line_of_five_megabytes_arrives_whole(tmp_path: Path) -> None:
    lines: list[bytes] = []
    ended = await run(
        python("print('a'); print('x' * 5_000_000); print('b\\r\\nlast', end='')", tmp_path), on_line=lines.append
    )
    assert [len(line) for line in lines] == [1, 5_000_000, 1, 4]
    assert not ended.truncated


async def test_a_line_without_end_is_bounded(tmp_path: Path) -> None:
    lines: list[bytes] = []
    code = "import sys\nfor _ in range(40): sys.stdout.write('x' * 100_000)\nprint('\\nend')"
    ended = await run_process(python(code, tmp_path), Limits(20, output_bytes=200_000), on_line=lines.append)
    assert [len(line) for line in lines] == [200_000, 3]
    assert ended.truncated


async def test_lines_come_while_the_command_runs(tmp_path: Path) -> None:
    seen: list[float] = []
    await run(
        python("import time\nfor i in range(3): print(i, flush=True); time.sleep(0.2)", tmp_path),
        on_line=lambda _: seen.append(time.monotonic()),
    )
    assert seen[-1] - seen[0] > 0.3


async def test_a_reader_that_fails_ends_the_command(tmp_path: Path) -> None:
    def fails(line: bytes) -> None:
        raise ValueError(line.decode())

    began = time.monotonic()
    with pytest.raises(ValueError, match="one"):
        await run(daemon("daemon(60); print('one', flush=True); time.sleep(60)", tmp_path), on_line=fails)
    assert not lives(int((tmp_path / "daemon.pid").read_text()))
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("name", "content", "mode", "message"),
    [
        ("no-such-agent", None, 0, 'no command "no-such-agent" on the PATH .*install it'),
        ("./missing", None, 0, "no such file"),
        ("./plain", b"#!/bin/sh\n", 0o644, "not executable"),
        ("./bad", b"#!/no/such/interpreter\n", 0o755, "interpreter that its first line names"),
        ("./noise", b"\1\2\3\4", 0o755, "no program"),
        ("./folder", "folder", 0o755, "not executable"),
        ("plain/x", b"", 0o644, "no such file"),
    ],
)
async def test_a_command_that_cannot_start_says_why(
    tmp_path: Path, name: str, content: object, mode: int, message: str
) -> None:
    if content == "folder":
        (tmp_path / name).mkdir()
    elif isinstance(content, bytes):
        file = tmp_path / name.split("/x")[0]
        file.write_bytes(content)
        file.chmod(mode)
    with pytest.raises(CallConfigError, match=message):
        await run(Command((name,), tmp_path, {"PATH": PATH}))


async def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CallConfigError, match="gone cannot be entered"):
        await run(python("", tmp_path / "gone"))


async def test_arguments_that_the_system_refuses_are_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(CallConfigError, match="zero byte"):
        await run(Command(("true", "a\0b"), tmp_path, {"PATH": PATH}))
    with pytest.raises(CallConfigError, match="too long"):
        await run(Command(("true", "x" * 3_000_000), tmp_path, {"PATH": PATH}))


async def test_cancelling_the_caller_ends_the_tree(tmp_path: Path) -> None:
    task = asyncio.create_task(run(daemon("daemon(60); time.sleep(60)", tmp_path)))
    while not (tmp_path / "daemon.pid").exists():
        await asyncio.sleep(0.01)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not lives(int((tmp_path / "daemon.pid").read_text()))
    assert time.monotonic() - began < 4


async def test_the_tree_ends_when_its_caller_is_killed(tmp_path: Path) -> None:
    code = f"""
        import asyncio, sys
        from pathlib import Path
        from skilltune.sandbox.process import Command, Limits, run_process
        asyncio.run(run_process(Command(tuple(sys.argv[1:]), Path({str(tmp_path)!r}), {{"PATH": ""}}), Limits(60)))
    """
    inner = daemon("daemon(60); time.sleep(60)", tmp_path)
    caller = await asyncio.create_subprocess_exec(sys.executable, "-c", textwrap.dedent(code), *inner.argv)
    while not (tmp_path / "daemon.pid").exists():
        await asyncio.sleep(0.02)
    caller.kill()
    await caller.wait()
    pid, end = int((tmp_path / "daemon.pid").read_text()), time.monotonic() + 10
    while lives(pid) and time.monotonic() < end:
        await asyncio.sleep(0.05)
    assert not lives(pid)


async def test_a_command_that_kills_its_supervisor_leaves_nothing_and_has_no_result(tmp_path: Path) -> None:
    code = (
        "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)\nos.kill(os.getppid(), 9)\ntime.sleep(60)"
    )
    with pytest.raises(InfraError, match="supervisor was killed"):
        await run(python(code, tmp_path, mark=f"test-{os.getpid()}"))
    assert not marked(f"test-{os.getpid()}")


@pytest.mark.slow
async def test_a_command_that_stops_its_supervisor_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LATE_S", -24.0)  # the supervisor is killed 1 s after the time-out
    code = "import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(60)"
    with pytest.raises(InfraError, match="supervisor was killed"):
        await run(python(code, tmp_path, mark=f"stop-{os.getpid()}"), wall_s=0.5)
    assert not marked(f"stop-{os.getpid()}")


# -- limits


@pytest.mark.slow
async def test_processor_time_is_bounded_over_all_processes(tmp_path: Path) -> None:
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    ended = await run_process(python(code, tmp_path), Limits(60, cpu_s=1))
    assert (ended.limit, ended.timed_out) == ("cpu_s", True)
    assert 1 <= ended.cpu_s < 4


@pytest.mark.parametrize("processes", [1, 4])
async def test_memory_is_bounded_over_all_processes(tmp_path: Path, processes: int) -> None:
    code = f"""
        import os, time
        for _ in range({processes - 1}):
            if os.fork() == 0: break
        held = []
        while True:
            held.append(bytearray(os.urandom(1000)) * 2000)
            time.sleep(0.01)
    """
    ended = await run_process(python(code, tmp_path), Limits(30, memory_mb=150))
    assert (ended.limit, ended.timed_out) == ("memory_mb", False)


async def test_a_fork_bomb_is_bounded_and_ended(tmp_path: Path) -> None:
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    began = time.monotonic()
    ended = await run_process(python(code, tmp_path, mark=f"bomb-{os.getpid()}"), Limits(60, processes=50))
    assert ended.limit == "processes"
    assert time.monotonic() - began < 30
    assert not marked(f"bomb-{os.getpid()}")


async def test_a_large_file_is_bounded(tmp_path: Path) -> None:
    code = (
        "f = open('big', 'wb')\ntry:\n    while True: f.write(bytes(1 << 20)); f.flush()\nexcept OSError as e: print(e)"
    )
    ended = await run_process(python(code, tmp_path), Limits(30, file_mb=20))
    assert (tmp_path / "big").stat().st_size <= 20_000_000
    assert b"File too large" in ended.stdout or ended.code == -signal.SIGXFSZ


async def test_eight_at_once(tmp_path: Path) -> None:
    code = "import os; print(os.getcwd())"
    for number in range(8):
        (tmp_path / str(number)).mkdir()
    ends = await asyncio.gather(*(run(python(code, tmp_path / str(number))) for number in range(8)))
    assert [Path(end.stdout.decode().strip()).name for end in ends] == [str(number) for number in range(8)]


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    await run(python("", tmp_path))
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        await run(python("print(1)", tmp_path, b"x"))
    with pytest.raises(CallConfigError):
        await run(Command(("no-such-agent",), tmp_path, {}))
    await asyncio.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= len(before)
