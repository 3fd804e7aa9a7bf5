"""Each level that holds on this machine is attacked. A level that does not hold here is skipped with its reason."""

from __future__ import annotations

import json
import os
import socket
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from skilltune.errors import CallConfigError, UsageError
from skilltune.sandbox import Command, Exit, Limits, Policy, Sandbox, confine, describe, probe, trial
from skilltune.sandbox.supervisor import MARK, marked

pytestmark = pytest.mark.anyio
LIMITS = Limits(20, cpu_s=20, memory_mb=500, processes=40, file_mb=20)


@pytest.fixture(params=["landlock", "bwrap"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    try:
        return probe(request.param)
    except UsageError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Place:
    """A workspace, and beside it what it must not reach. `port` is granted, `other` is not."""

    work: Path
    secret: Path
    outside: Path
    port: int
    other: int

    def policy(self, **changed: object) -> Policy:
        base = {
            "write": (self.work,),
            "hidden": (self.secret,),
            "connect": (self.port,),
            "shown": (Path(sys.base_prefix),),
        }
        return Policy(**(base | changed))  # type: ignore[arg-type]

    def python(self, code: str, **env: str) -> Command:
        values = {"secret": str(self.secret / "answer.txt"), "outside": str(self.outside), "port": self.port}
        values |= {"other": self.other, "parent": os.getpid()}
        tried = """
            import ctypes, json, os, signal, socket, struct, sys, time
            libc = ctypes.CDLL(None, use_errno=True)
            def tried(**attempts):
                found = {}
                for name, attempt in attempts.items():
                    try:
                        found[name] = repr(attempt())
                    except Exception as error:
                        found[name] = None
                print(json.dumps(found))
        """
        text = "\n".join([textwrap.dedent(tried), *(f"{k} = {v!r}" for k, v in values.items()), textwrap.dedent(code)])
        program = os.path.realpath(sys.executable)
        return Command((program, "-I", "-S", "-c", text), self.work, {"PATH": os.environ["PATH"], **env})


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    folders = [tmp_path / name for name in ("work", "secret", "outside")]
    for folder in folders:
        folder.mkdir()
    (folders[1] / "answer.txt").write_text("42")
    (folders[2] / "kept.txt").write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        yield Place(folders[0], folders[1], folders[2], one.getsockname()[1], two.getsockname()[1])


def seen(ended: Exit) -> dict[str, str | None]:
    assert ended.code == 0, ended.stderr.decode()
    return json.loads(ended.stdout)


async def test_a_planted_secret_cannot_be_read(sandbox: Sandbox, place: Place) -> None:
    code = """
        def linked():
            os.symlink(secret, "link"); return open("link").read()
        def hard():
            os.link(secret, "hard"); return open("hard").read()
        def moved():
            os.rename(secret, "moved"); return open("moved").read()
        def by_handle():
            handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128), 136)
            assert libc.name_to_handle_at(-100, secret.encode(), handle, ctypes.byref(ctypes.c_int()), 0) == 0
            fd = libc.open_by_handle_at(os.open(outside, os.O_RDONLY), handle, 0)
            assert fd >= 0; return os.read(fd, 9)
        tried(
            plain=lambda: open(secret).read(), listed=lambda: os.listdir(os.path.dirname(secret)),
            linked=linked, hard=hard, moved=moved, by_handle=by_handle,
            through_proc=lambda: open("/proc/self/root" + secret).read(),
            through_parent=lambda: open(f"/proc/{parent}/root{secret}").read(),
            through_first=lambda: open(f"/proc/1/root{secret}").read(),
            executed=lambda: os.posix_spawn(secret, [secret], {}),
        )
    """
    (place.secret / "answer.txt").chmod(0o755)
    found = seen(await sandbox.run(place.python(code), place.policy(), LIMITS))
    assert found.pop("listed") in (None, "[]")
    assert set(found.values()) == {None}, found
    assert (place.secret / "answer.txt").read_text() == "42"


async def test_a_hidden_file_is_hidden_and_its_neighbours_are_not(sandbox: Sandbox, place: Place) -> None:
    code = """
        tried(hidden=lambda: open(outside + "/tests.py").read(1) or None,
              kept=lambda: open(outside + "/kept.txt").read())
    """
    (place.outside / "tests.py").write_text("x")
    policy = place.policy(hidden=(place.outside / "tests.py",))
    found = seen(await sandbox.run(place.python(code), policy, LIMITS))
    assert found["hidden"] in (None, "None")
    assert found["kept"] == "'kept'"


async def test_the_longest_path_decides(sandbox: Sandbox, place: Place) -> None:
    """A workspace and a program may lie below a hidden home, and a hidden path below what is shown."""
    home = place.secret
    for name in ("work", "tool/inner"):
        (home / name).mkdir(parents=True)
    (home / "tool/run").write_text("tool")
    (home / "tool/inner/key").write_text("key")
    code = f"""
        home = {str(home)!r}
        tried(tool=lambda: open(home + "/tool/run").read(), key=lambda: open(home + "/tool/inner/key").read(),
              answer=lambda: open(secret).read(), write=lambda: open(home + "/work/x", "w").write("x"),
              spoil=lambda: open(home + "/tool/run", "w"), plant=lambda: open(home + "/new", "w").write("x"))
    """
    policy = place.policy(
        write=(home / "work",), hidden=(home, home / "tool/inner"), shown=(home / "tool", Path(sys.base_prefix))
    )
    found = seen(await sandbox.run(place.python(code), policy, LIMITS))
    assert found == {"tool": "'tool'", "key": None, "answer": None, "write": "1", "spoil": None, "plant": None}
    assert (home / "work/x").read_text() == "x"
    assert not (home / "new").exists()


@pytest.mark.parametrize(
    "system", [("/usr", "/lib", "/lib64", "/etc"), ("/usr", "/lib", "/lib64", "/dev", "/proc", "/sys", "/run")]
)
async def test_only_listed_paths_are_read_if_there_is_a_list(
    sandbox: Sandbox, place: Place, system: tuple[str, ...]
) -> None:
    code = """
        def disks():
            return [open("/dev/" + name, "rb").read(1) for name in os.listdir("/sys/class/block")][0]
        tried(kept=lambda: open(outside + "/kept.txt").read(), usr=lambda: len(os.listdir("/usr")) > 3, disks=disks,
              secret=lambda: open(secret).read(), parent=lambda: open(f"/proc/{parent}/environ", "rb").read(),
              linked=lambda: open(outside + "/../link/kept.txt").read(),
              kernel=lambda: open("/proc/sys/kernel/core_pattern", "r+b", 0))
    """
    (place.outside.parent / "link").symlink_to(place.outside)
    read = (*map(Path, system), Path(sys.base_prefix))
    found = seen(await sandbox.run(place.python(code), place.policy(read=read), LIMITS))
    assert found == {**dict.fromkeys(found), "usr": "True"}
    read = (*read, place.outside.parent / "link")
    found = seen(await sandbox.run(place.python(code), place.policy(read=read), LIMITS))
    assert (found["kept"], found["linked"], found["secret"]) == ("'kept'", "'kept'", None)


async def test_a_hidden_path_inside_a_writable_one_is_refused(sandbox: Sandbox, place: Place) -> None:
    with pytest.raises(UsageError, match=r"cannot hide .*work/x"):
        sandbox.wrap(place.python(""), place.policy(hidden=(place.work / "x",)), LIMITS)


async def test_nothing_is_written_outside(sandbox: Sandbox, place: Place) -> None:
    code = """
        kept = outside + "/kept.txt"
        def through_link():
            os.symlink(outside, "out"); open("out/new", "w").write("x")
        def moved_out():
            open("mine", "w").write("x"); os.rename("mine", outside + "/mine")
        tried(
            new=lambda: open(outside + "/new", "w"), append=lambda: open(kept, "a"),
            truncated=lambda: os.truncate(kept, 0),
            removed=lambda: os.unlink(kept), renamed=lambda: os.rename(kept, kept + "2"),
            folder=lambda: os.mkdir(outside + "/d"),
            link=lambda: os.symlink("/", outside + "/l"), fifo=lambda: os.mkfifo(outside + "/f"),
            through_link=through_link, moved_out=moved_out, system=lambda: open("/etc/planted", "w"),
            kernel=lambda: open("/proc/sys/kernel/core_pattern", "r+b", 0), cron=lambda: os.mkdir("/var/spool/x"),
            beside=lambda: open(outside + "/../planted", "w"),
            device=lambda: open("/sys/kernel/uevent_seqnum", "r+b", 0),
            groups=lambda: os.mkdir("/sys/fs/cgroup/pids/planted"),
        )
        open("inside", "w").write("ok"); os.mkdir("d"); os.rename("inside", "d/inside")
    """
    found = seen(await sandbox.run(place.python(code), place.policy(), LIMITS))
    assert set(found.values()) == {None}, found
    assert os.listdir(place.outside) == ["kept.txt"]
    assert (place.outside / "kept.txt").read_text() == "kept"
    assert (place.work / "d/inside").read_text() == "ok"


async def test_modes_of_files_outside_are_safe_in_a_view_of_its_own(sandbox: Sandbox, place: Place) -> None:
    code = (
        "tried(mode=lambda: os.chmod(outside + '/kept.txt', 0), time=lambda: os.utime(outside + '/kept.txt', (0, 0)))"
    )
    found = seen(await sandbox.run(place.python(code), place.policy(), LIMITS))
    if sandbox.level == "landlock":
        assert "modes" in sandbox.holds.note  # Landlock has no right for them
    else:
        assert set(found.values()) == {None}


async def test_only_the_granted_port_is_reached(sandbox: Sandbox, place: Place) -> None:
    if not sandbox.holds.network:
        pytest.skip(describe(sandbox))
    code = """
        def connect(port, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0, host="127.0.0.1"):
            with socket.socket(family, kind, protocol) as it:
                it.settimeout(3); it.connect((host, port)); return "connected"
        def fast_open():
            with socket.socket() as it:
                it.settimeout(3); it.sendto(b"x", 0x20000000, ("127.0.0.1", other)); return it.getpeername()
        def ring():
            fd = libc.syscall(425, 8, ctypes.create_string_buffer(120)); assert fd >= 0
        tried(
            granted=lambda: connect(port), other=lambda: connect(other), fast_open=fast_open, ring=ring,
            mptcp=lambda: connect(other, protocol=262), udp=lambda: connect(other, kind=socket.SOCK_DGRAM),
            ping=lambda: connect(other, kind=socket.SOCK_RAW, protocol=1), sctp=lambda: connect(other, protocol=132),
            six=lambda: connect(other, socket.AF_INET6, host="::ffff:127.0.0.1"),
            vsock=lambda: socket.socket(40, socket.SOCK_STREAM),
            packet=lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
            name=lambda: socket.create_connection(("localhost", other), 3),
        )
    """
    found = seen(await sandbox.run(place.python(code), place.policy(), LIMITS))
    assert found.pop("granted") == "'connected'"
    assert set(found.values()) == {None}, found


async def test_no_port_and_any_port(sandbox: Sandbox, place: Place) -> None:
    if not sandbox.holds.network:
        pytest.skip(describe(sandbox))
    code = "tried(one=lambda: socket.create_connection(('127.0.0.1', port), 3))"
    assert seen(await sandbox.run(place.python(code), place.policy(connect=()), LIMITS)) == {"one": None}
    found = seen(await sandbox.run(place.python(code), place.policy(connect=None), LIMITS))
    assert found["one"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes files in /run")
async def test_sockets_of_the_systems_services_are_out_of_sight(place: Place) -> None:
    sandbox = probe("auto")
    if sandbox.level != "bwrap":
        pytest.skip(describe(sandbox))
    path = f"/run/skilltune-test-{os.getpid()}"
    code = f"tried(service=lambda: socket.socket(socket.AF_UNIX).connect({path!r}) or 'connected')"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        try:
            for read in (None, (Path("/usr"), Path("/lib"), Path("/lib64"), Path("/run"))):
                assert seen(await sandbox.run(place.python(code), place.policy(read=read), LIMITS)) == {"service": None}
        finally:
            os.unlink(path)


async def test_sockets_inside_work(sandbox: Sandbox, place: Place) -> None:
    code = """
        def local():
            server = socket.socket(socket.AF_UNIX); server.bind("s"); server.listen()
            client = socket.socket(socket.AF_UNIX); client.connect("s"); return "ok"
        tried(pair=lambda: len(socket.socketpair()), local=local)
    """
    assert seen(await sandbox.run(place.python(code), place.policy(), LIMITS)) == {"pair": "2", "local": "'ok'"}


async def test_processes_outside_are_out_of_reach(sandbox: Sandbox, place: Place) -> None:
    if not sandbox.holds.processes:
        pytest.skip(describe(sandbox))
    code = """
        def traced(pid):
            assert libc.ptrace(16, pid, 0, 0) == 0
        def memory(pid):
            return open(f"/proc/{pid}/mem", "rb").read(1)
        def abstract():
            it = socket.socket(socket.AF_UNIX); it.connect("\\0skilltune-test-" + str(parent)); return "connected"
        own = os.getppid()
        tried(
            signal=lambda: os.kill(parent, 0), environ=lambda: open(f"/proc/{parent}/environ", "rb").read(),
            trace=lambda: traced(parent), memory=lambda: memory(parent), fd=lambda: os.readlink(f"/proc/{parent}/fd/1"),
            abstract=abstract, cwd=lambda: os.readlink(f"/proc/{parent}/cwd"),
        )
    """
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0skilltune-test-{os.getpid()}")
        server.listen()
        found = seen(await sandbox.run(place.python(code), place.policy(), LIMITS))
    if sandbox.level == "bwrap":
        found.pop("abstract")  # the network is shared as long as a port is granted
    assert set(found.values()) == {None}, found


async def test_the_supervisor_cannot_be_killed(sandbox: Sandbox, place: Place) -> None:
    if not sandbox.holds.processes:
        pytest.skip(describe(sandbox))
    code = """
        for number in (9, 19):
            for pid in {os.getppid(), os.getpgrp()} - {os.getpid(), 0}:
                try: os.kill(pid, number)
                except OSError: pass
        print(json.dumps({}))
    """
    ended = await sandbox.run(place.python(code), place.policy(), LIMITS)
    assert (ended.code, ended.limit) == (0, "") or sandbox.level == "bwrap"
    assert not marked(ended.stdout.decode() or "none")


async def test_the_environment_is_complete(sandbox: Sandbox, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    command = place.python("print(json.dumps(dict(os.environ)))", TOKEN="t")
    found = seen(await sandbox.run(command, place.policy(), LIMITS))
    assert found.keys() - {"LC_CTYPE", "PWD", "OLDPWD", "SHLVL", "_"} == {"PATH", "TOKEN", MARK}


@pytest.mark.skipif(os.getuid() != 0, reason="only root reads raw disks")
async def test_root_has_no_way_around(sandbox: Sandbox, place: Place) -> None:
    code = """
        def disks():
            return [open("/dev/" + name, "rb").read(1) for name in os.listdir("/sys/class/block")]
        def device():
            os.mknod("disk", 0o60600, os.makedev(254, 0)); return open("disk", "rb").read(1)
        tried(disks=lambda: disks()[0], device=device, memory=lambda: open("/dev/mem", "rb"),
              mounted=lambda: 1 / (libc.mount(b"tmpfs", b".", b"tmpfs", 0, None) == 0),
              unmounted=lambda: 1 / (libc.umount2(os.path.dirname(secret).encode(), 2) == 0),
              rooted=lambda: os.chroot("."), module=lambda: 1 / (libc.syscall(313, 0, b"", 0) == 0))
    """
    found = seen(await sandbox.run(place.python(code), place.policy(), LIMITS))
    assert set(found.values()) == {None}, found


# -- bounds hold behind each level


async def test_a_fork_bomb_is_bounded(sandbox: Sandbox, place: Place) -> None:
    code = "while True:\n    try: os.fork()\n    except OSError: pass"
    mark = f"bomb-{sandbox.level}-{os.getpid()}"
    ended = await sandbox.run(place.python(code, **{MARK: mark}), place.policy(), LIMITS)
    assert ended.limit == "processes"
    assert not marked(mark)


async def test_a_large_file_is_bounded(sandbox: Sandbox, place: Place) -> None:
    code = "f = open('big', 'wb')\nfor _ in range(10_000): f.write(bytes(1 << 20)); f.flush()"
    ended = await sandbox.run(place.python(code), place.policy(), LIMITS)
    assert ended.code != 0
    assert (place.work / "big").stat().st_size <= 20_000_000


async def test_a_daemonised_grandchild_does_not_outlive_its_parent(sandbox: Sandbox, place: Place) -> None:
    code = """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for fd in (0, 1, 2): os.close(fd)
                open("up", "w"); time.sleep(60)
            os._exit(0)
        os.wait()
        while not os.path.exists("up"): time.sleep(0.01)
    """
    mark = f"daemon-{sandbox.level}-{os.getpid()}"
    ended = await sandbox.run(place.python(code, **{MARK: mark}), place.policy(), LIMITS)
    assert ended.code == 0
    assert not marked(mark)


async def test_a_time_out_gives_the_command_time_to_end(sandbox: Sandbox, place: Place) -> None:
    code = """
        signal.signal(signal.SIGTERM, lambda *_: (print("bye", flush=True), sys.exit(7)))
        print("up", flush=True)
        time.sleep(60)
    """
    ended = await sandbox.run(place.python(code), place.policy(), Limits(3))
    assert (ended.code, ended.stdout, ended.timed_out) == (7, b"up\nbye\n", True)


async def test_exit_codes_signals_and_input_pass_through(sandbox: Sandbox, place: Place) -> None:
    command = place.python("print(sys.stdin.read()); sys.exit(3)")
    ended = await sandbox.run(Command(command.argv, command.cwd, command.env, b"in"), place.policy(), LIMITS)
    assert (ended.code, ended.stdout) == (3, b"in\n")


async def test_a_program_that_cannot_start_is_a_config_error(sandbox: Sandbox, place: Place) -> None:
    with pytest.raises(CallConfigError, match='no command "no-such-agent"'):
        await sandbox.run(Command(("no-such-agent",), place.work, {"PATH": "/bin"}), place.policy(), LIMITS)
    tool = place.secret / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    with pytest.raises(CallConfigError, match=f"{tool}.*(denied|No such file)"):
        await sandbox.run(Command((str(tool),), place.work, {"PATH": "/bin"}), place.policy(), LIMITS)


@pytest.mark.parametrize(("text", "code"), [("skilltune cannot confine the command", 126), ("bwrap: no", 1)])
async def test_a_command_cannot_pass_its_failure_off_as_the_sandboxs(
    sandbox: Sandbox, place: Place, text: str, code: int
) -> None:
    """Else hostile code could stop a run, or take itself out of the mean."""
    command = place.python(f"sys.stderr.write({text!r}); sys.exit({code})")
    ended = await sandbox.run(command, place.policy(), LIMITS)
    assert (ended.code, ended.stderr.decode()) == (code, text)


async def test_a_script_whose_interpreter_is_hidden_is_a_config_error(sandbox: Sandbox, place: Place) -> None:
    (place.secret / "real").write_bytes(Path("/bin/sh").read_bytes())
    (place.secret / "real").chmod(0o755)
    (place.work / "tool").write_text(f"#!{place.secret}/real\necho hi\n")
    (place.work / "tool").chmod(0o755)
    with pytest.raises(CallConfigError, match="cannot confine the command"):
        await sandbox.run(Command(("./tool",), place.work, {"PATH": "/bin"}), place.policy(), LIMITS)


# -- probing


def test_none_is_said_loudly() -> None:
    assert probe("none").wrap(Command(("x",), Path("/"), {}), Policy(), LIMITS).argv == ("x",)
    assert describe(probe("none")).startswith("sandbox none: nothing is confined")


def test_an_unknown_level_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="there are: auto, none, landlock, bwrap"):
        probe("jail")


def test_a_missing_bubblewrap_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt install bubblewrap" in str(trial.try_level("bwrap"))


@pytest.mark.parametrize("level", ["bwrap", "landlock"])
def test_a_level_that_does_not_hold_leads_to_the_best_one_and_not_to_none(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skilltune.sandbox._tried", lambda level: f"{level} is missing")
    with pytest.raises(UsageError, match=f"{level} is missing; or choose sandbox auto") as caught:
        probe(level)
    assert "none" not in str(caught.value)


def test_a_bubblewrap_that_fails_is_no_sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "No permissions" in str(trial.try_level("bwrap"))


def test_a_bubblewrap_that_confines_nothing_is_no_sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A level is believed only after its trial."""
    (tmp_path / "bwrap").write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "not confined as they should be" in str(trial.try_level("bwrap"))


def test_a_kernel_without_landlock_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "abi", lambda: 0)
    assert "Linux 5.13" in str(trial.try_level("landlock"))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_socket_filter_is_well_formed(machine: str) -> None:
    program = confine.socket_filter(machine)
    steps = len(program) // 8
    for at in range(steps):
        code, yes, no = int.from_bytes(program[8 * at : 8 * at + 2], "little"), program[8 * at + 2], program[8 * at + 3]
        assert at + 1 + max(yes, no) < steps or code == 0x06


def test_granting_leaves_out_what_is_hidden(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/d", "e"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "l").symlink_to("a")
    root = str(tmp_path)
    hidden, shown = [f"{root}/a"], [f"{root}/a/b"]
    assert sorted(confine.readable([root], hidden, shown)) == [f"{root}/a/b", f"{root}/e"]
    assert list(confine.readable([f"{root}/a/d"], hidden, shown)) == []
    assert list(confine.readable([f"{root}/a/b/c"], hidden, shown)) == [f"{root}/a/b/c"]
    whole = set(confine.readable(None, [f"{root}/a"], []))
    assert "/dev" not in whole
    assert "/" not in whole
    assert f"{root}/e" in whole
