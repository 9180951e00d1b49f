"""Hostile jobs: the code of each for the endpoint `hostile`, and the ends that are correct for it.

If a job ends differently with the two engines, both ends are listed: the process engine allows what the runner's own
user may do. Numbers are bounded, so that all jobs together take seconds: a million files are 20,000 (the limit of the
endpoint is 4,096), a fork bomb is 100 processes, a flood is 16 MiB.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

IMPORTS = "import os, shutil, signal, socket, stat, time\n"
OK = "succeeded"
DISK = "disk_exceeded"
INVALID = "output_invalid"
LARGE = "output_too_large"
MISSING = "output_missing"
INTERNAL = "internal"


class HostileJob(Struct, frozen=True):
    """`ends`: OK or failure codes. `policy`: the policy of the job."""

    code: str
    ends: frozenset[str]
    policy: Mapping[str, Any] = {}


def hostile_job(code: str, *ends: str, **policy: Any) -> HostileJob:
    return HostileJob(IMPORTS + code, frozenset(ends), policy)


LEAVE = "os._exit(0)\n"  # without what jobkit would write on its way out

ATTACKS: Mapping[str, HostileJob] = {
    # Trees that are hard to remove.
    "nests_3000_folders": hostile_job(
        "os.chdir(home / 'tmp')\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')", DISK
    ),
    "nests_90_folders_of_long_names": hostile_job(
        "os.chdir(home / 'tmp')\nfor _ in range(90): os.mkdir('n' * 255); os.chdir('n' * 255)", OK
    ),
    "takes_all_rights_away": hostile_job(
        """
for name in ('a', 'b'):
    (home / 'tmp' / name / 'c' / 'd').mkdir(parents=True)
    (home / 'tmp' / name / 'c' / 'file').write_text('x')
    for folder in ('c/d', 'c', '.'):
        os.chmod(home / 'tmp' / name / folder, 0)
""",
        OK,
    ),
    "names_in_every_encoding": hostile_job(
        r"""
for name in (
    b'\xff\xfe\x80', b'a\nb', b'-rf', b'--', b'\x1b[2J\x07', b'n' * 255, b' ', b'...', b'*', b'\xe2\x80\xae.mp4',
):
    os.mkdir(os.path.join(os.fsencode(home / 'tmp'), name))
    open(os.path.join(os.fsencode(home / 'tmp'), name, name), 'wb').close()
""",
        OK,
    ),
    "links_out_of_its_folder": hostile_job(
        """
for place in ('/', '/etc', '..', '../..', 'loop'):
    os.symlink(place, home / 'tmp' / ('l' + str(len(os.listdir(home / 'tmp')))))
os.symlink('loop', home / 'tmp' / 'loop')
""",
        OK,
    ),
    "times_and_attributes": hostile_job(
        """
(home / 'tmp' / 'a').write_text('x')
os.utime(home / 'tmp' / 'a', (2 ** 33, 2 ** 33))
try: os.setxattr(home / 'tmp' / 'a', 'user.x', b'x' * 1000)
except OSError: pass
""",
        OK,
    ),
    # Disk.
    "writes_without_end": hostile_job(
        "f = open(home / 'tmp' / 'a', 'wb')\nwhile True: f.write(b'x' * (1 << 20))", DISK
    ),
    "hides_bytes_behind_a_folder_without_rights": hostile_job(
        """
(home / 'tmp' / 'a').mkdir()
f = open(home / 'tmp' / 'a' / 'f', 'wb')
os.chmod(home / 'tmp' / 'a', 0)
f.write(b'x' * (32 << 20)); f.flush()
""",
        DISK,
    ),
    "makes_20000_files": hostile_job("for n in range(20000): open(home / 'tmp' / str(n), 'w').close()", DISK),
    "makes_20000_names_of_one_file": hostile_job(
        "os.chdir(home / 'tmp'); open('f', 'w').close()\nfor n in range(20000): os.link('f', str(n))",
        DISK,
    ),
    "a_hole_of_a_tebibyte_as_output": hostile_job("open(home / 'out' / 'a', 'wb').truncate(1 << 40)", DISK),
    "a_hole_of_a_tebibyte_as_scratch": hostile_job("open(home / 'tmp' / 'a', 'wb').truncate(1 << 40)", OK),
    # What lies in out/.
    "a_fifo_as_output": hostile_job("os.mkfifo(home / 'out' / 'a')", INVALID),
    "a_socket_as_output": hostile_job("os.chdir(home / 'out'); socket.socket(socket.AF_UNIX).bind('a')", INVALID),
    "a_link_as_output": hostile_job("os.symlink('/etc/passwd', home / 'out' / 'a')", INVALID),
    "a_folder_as_output": hostile_job("(home / 'out' / 'a').mkdir()", INVALID),
    "a_device_as_output": hostile_job(
        "os.mknod(home / 'out' / 'null', stat.S_IFCHR | 0o666, os.makedev(1, 3))", INVALID, INTERNAL
    ),
    "two_names_of_one_output": hostile_job(
        "(home / 'out' / 'a').write_text('x'); os.link(home / 'out' / 'a', home / 'out' / 'b')", OK
    ),
    "an_output_that_is_no_text": hostile_job(r"open(os.fsencode(home / 'out') + b'/\xff\xfe', 'w').close()", INVALID),
    "an_output_of_two_lines": hostile_job(r"(home / 'out' / 'a\nb').write_text('x')", INVALID),
    "an_output_named_as_an_option": hostile_job("(home / 'out' / '-rf').write_text('x')", INVALID, OK),
    "an_output_named_as_a_device": hostile_job(
        "(home / 'out' / 'NUL').write_text('x'); (home / 'out' / 'COM1').touch()", OK, INVALID
    ),
    "a_setuid_output": hostile_job(
        "(home / 'out' / 'a').write_text('x'); os.chmod(home / 'out' / 'a', 0o6777)\n"
        "shutil.copy('/bin/true', home / 'tmp' / 'true'); os.chmod(home / 'tmp' / 'true', 0o6777)",
        OK,
    ),
    "an_output_without_rights": hostile_job(
        "(home / 'out' / 'a').write_text('x'); os.chmod(home / 'out' / 'a', 0)", OK, INVALID
    ),
    "1500_outputs": hostile_job("for n in range(1500): open(home / 'out' / str(n), 'w').close()", LARGE),
    "a_deep_answer": hostile_job(
        "(home / 'out' / 'output.json').write_text('{\"a\":' * 5000 + '1' + '}' * 5000)\n" + LEAVE, INVALID
    ),
    "a_huge_answer": hostile_job(
        "(home / 'out' / 'output.json').write_text('{\"a\":\"' + 'x' * (2 << 20) + '\"}')\n" + LEAVE, LARGE
    ),
    "a_link_as_answer": hostile_job("os.symlink('/etc/passwd', home / 'out' / 'output.json')\n" + LEAVE, INVALID),
    "a_fifo_as_answer": hostile_job("os.mkfifo(home / 'out' / 'output.json')\n" + LEAVE, INVALID),
    # Its own folders.
    "writes_to_its_inputs": hostile_job(
        "(home / 'in' / 'more').write_text('x')\n(home / 'job.json').write_text('{}')", OK, INTERNAL
    ),
    "removes_its_own_folders": hostile_job(
        "for part in ('tmp', 'out', 'in'): shutil.rmtree(home / part, ignore_errors=True)\n" + LEAVE, INVALID, MISSING
    ),
    "puts_a_link_in_the_place_of_its_outputs": hostile_job(
        "os.rename(home / 'out', home / 'was'); os.symlink('/etc', home / 'out')\n" + LEAVE, INVALID, INTERNAL
    ),
    # Processes.
    "forks_100_and_leaves": hostile_job(
        "for _ in range(100):\n    if not os.fork(): time.sleep(600)", OK, "out_of_memory"
    ),
    "leaves_a_deaf_daemon": hostile_job(
        """
if not os.fork():
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
    if os.fork(): os._exit(0)
    while True: (home / 'tmp' / 'alive').write_text(str(time.time())); time.sleep(0.05)
""",
        OK,
    ),
    "kills_its_parent": hostile_job("os.kill(os.getppid(), signal.SIGKILL)", OK, INTERNAL),
    "kills_all_it_may_of_its_group": hostile_job("os.killpg(0, signal.SIGKILL)", INTERNAL),
    "ignores_term": hostile_job(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)", "execution_timeout", execution_timeout_s=2.0
    ),
    "says_nothing": hostile_job("time.sleep(600)", "stalled", stall_timeout_s=2.0),
    "eats_memory": hostile_job("held = []\nwhile True: held.append(bytearray(b'x') * (8 << 20))", "out_of_memory"),
    "opens_all_descriptors": hostile_job(
        """
held = []
try:
    while len(held) < 20000: held.append(open('/dev/null'))
except OSError: held.clear()
""",
        OK,
    ),
    # What it says.
    "floods_its_log": hostile_job(
        "for _ in range(16): os.write(2, b'all work and no play\\n' * (1 << 16))", OK, stall_timeout_s=55.0
    ),
    "says_one_line_of_16_mib": hostile_job("for _ in range(16): os.write(2, b'x' * (1 << 20))", OK),
    "says_control_characters": hostile_job(r"os.write(2, bytes(range(256)) * 64 + b'\x1b[2J\x1b]52;c;eA==\x07\n')", OK),
    "forges_lines": hostile_job(
        r"""
for line in (
    b'{"type":"error","code":"host_lost","message":"the host is gone"}',
    b'{"type":"ready"}', b'{"type":"progress","fraction":1e308}', b'{"type":"progress","fraction":NaN}',
    b'{"type":"progress","done":-1,"total":1e400}', b'{"type":"progress","fraction":' + b'[' * 60000,
    b'{"type":"succeeded","output":{}}', b'{"type":"metric","name":"","value":1}', b'{"type":"error","code":"../x"}',
):
    os.write(job._messages._descriptor, line + b'\n')
os._exit(70)
""",
        "host_lost",
    ),
}
