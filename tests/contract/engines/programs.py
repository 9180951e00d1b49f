"""Programs of the contract suite besides echo: shell programs, and their counterparts for the fake."""

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from runner.engines.port import MIB, ContainerUsage
from tests.support.fake_engine import EndBySignal, FakeContainer, Program
from tests.support.wait import wait_for

LONG = 40_000  # over Docker's piece of 16 KiB, under our line of 64 KiB
LONG_LINES = f"print('a' * {LONG}); print('b'); print('c' * {LONG}, end='')"

# What a job finds around it, as one line of JSON: what a container must not be able to do, tried.
PROBE_PROGRAM = """
import json, os, resource, socket
def can(act):
    try: act(); return True
    except OSError: return False
def status(name): return next(l.split()[1] for l in open('/proc/self/status') if l.startswith(name))
def link():
    with socket.socket() as s: s.settimeout(2); s.connect(('192.0.2.1', 80))
def swap(part): os.rename('/job/' + part, '/job/was')
def execs(folder):
    path = folder + '/x'
    with open(path, 'w') as f: f.write('#!/bin/sh\\n')
    os.chmod(path, 0o755)
    return can(lambda: os.posix_spawn(path, [path], {}))
print(json.dumps({
    'uid': os.getuid(), 'caps': int(status('CapEff'), 16), 'no_new_privs': status('NoNewPrivs'),
    'seccomp': status('Seccomp'), 'interfaces': sorted(os.listdir('/sys/class/net')), 'net': can(link),
    'root': can(lambda: open('/x', 'w')), 'in': can(lambda: open('/job/in/x', 'w')),
    'input': can(lambda: open('/job/in/a.txt', 'a')), 'read': open('/job/in/a.txt').read(),
    'job': can(lambda: open('/job/job.json', 'a')), 'out': can(lambda: open('/job/out/x', 'w')),
    'scratch': can(lambda: open('/job/tmp/x', 'w')), 'tmp': can(lambda: open('/tmp/x', 'w')),
    'swaps': [part for part in ('in', 'out', 'tmp') if can(lambda: swap(part))],
    'exec_tmp': execs('/tmp'), 'exec_cache': execs(os.environ['XDG_CACHE_HOME']),
    'core': resource.getrlimit(resource.RLIMIT_CORE)[0], 'oom': int(open('/proc/self/oom_score_adj').read()),
    'shm': os.statvfs('/dev/shm').f_blocks * os.statvfs('/dev/shm').f_frsize >> 20,
    'pid1': open('/proc/1/comm').read().strip(), 'gpu': os.environ['NVIDIA_VISIBLE_DEVICES'],
}))
"""

# Says `one`. When in/go is there, starts a child with 20 MiB of memory, which says `two` when it has that.
SPAWN_PROGRAM = """
import os, subprocess, sys, time
print('one', flush=True)
while not os.path.exists(os.environ['LAMPLIGHTER_JOB'] + '/in/go'):
    time.sleep(0.02)
code = "held = bytearray(b'x' * (20 << 20)); print('two', flush=True); import time; time.sleep(600)"
subprocess.run([sys.executable, '-c', code])
"""

# What a job may do with the folders that it gets besides its own.
FOLDERS_PROGRAM = """
import json, os
def can(path):
    try: open(path, 'w').close(); return True
    except OSError: return False
volume, cache = os.environ['LAMPLIGHTER_VOLUME_W'], os.environ['LAMPLIGHTER_CACHE_C']
print(json.dumps({
    'same': os.environ['MORE'] == volume, 'read': open(volume + '/model/a.bin').read(), 'added': can(volume + '/x'),
    'changed': can(volume + '/model/a.bin'), 'cached': can(cache + '/x'), 'places': [volume, cache],
}))
"""

# Image name -> argv. `plain` has no handler for SIGTERM, `missing` is not there.
COMMANDS: dict[str, tuple[str, ...]] = {
    "plain": ("sleep", "600"),
    "missing": ("/no/such/program",),
    "long": ("python3", "-c", LONG_LINES),
    "spawn": ("python3", "-c", SPAWN_PROGRAM),
    "look": ("python3", "-c", PROBE_PROGRAM),
    "folders": ("python3", "-c", FOLDERS_PROGRAM),
}


async def _echo(box: FakeContainer) -> int:
    """Run the fake's echo: it reads the same job.json and exits in the same ways."""
    given = json.loads((box.spec.job_dir / "job.json").read_text())["input"]
    box.write(b'{"type":"progress","fraction":0,"stage":"echo"}\n')
    await _BEHAVIOURS[given.get("behave", "ok")](box, given)
    for step in range(1, given.get("steps", 10) + 1):
        await anyio.sleep(given.get("seconds", 0) / given.get("steps", 10))
        box.write(f"step {step}\n".encode(), "stderr")
    (box.spec.job_dir / "out" / "output.json").write_text(json.dumps({"text": given.get("text", "")}))
    return 0


async def _end(code: int, *, oom_killed: bool = False) -> None:
    raise EndBySignal(code, oom_killed=oom_killed)


async def _hang(box: FakeContainer) -> None:
    box.handles_term = True
    await box.term.wait()
    raise EndBySignal(143)


async def _ignore(box: FakeContainer) -> None:
    box.handles_term = True
    await anyio.sleep_forever()


async def _write(box: FakeContainer, data: bytes, times: int) -> None:
    for _ in range(times):
        box.write(data)
        await anyio.lowlevel.checkpoint()


async def _nothing() -> None:
    pass


_BEHAVIOURS: dict[str, Callable[[FakeContainer, dict[str, Any]], Awaitable[None]]] = {
    "ok": lambda box, given: _nothing(),
    "exit": lambda box, given: _end(given.get("exit", 0)),
    "segv": lambda box, given: _end(139),
    "oom": lambda box, given: _end(137, oom_killed=True),
    "child_oom": lambda box, given: _end(given.get("exit", 0), oom_killed=True),
    "hang": lambda box, given: _hang(box),
    "ignore_term": lambda box, given: _ignore(box),
    "flood": lambda box, given: _write(box, b"x" * 1023 + b"\n", 1024),
    "no_newline": lambda box, given: _write(box, b"x" * 65_536, 128),
}


async def _plain(_: FakeContainer) -> int:
    await anyio.sleep_forever()
    return os.EX_SOFTWARE


async def _long(box: FakeContainer) -> int:
    box.write(b"a" * LONG + b"\nb\n" + b"c" * LONG)
    return 0


async def _spawn(box: FakeContainer) -> int:
    box.write(b"one\n")
    await wait_for(anyio.Path(box.spec.job_dir / "in" / "go").exists)
    box.usage = ContainerUsage(processes=2, memory_bytes=20 * MIB)
    box.write(b"two\n")
    await anyio.sleep_forever()
    return os.EX_SOFTWARE


FAKE_PROGRAMS: dict[str, Program] = {"spawn": _spawn, "echo": _echo, "plain": _plain, "long": _long}
