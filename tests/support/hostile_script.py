"""What a hostile script of a task would try; run by the tests of isolation, with nothing but the standard library.

    hostile_script.py TARGETS

TARGETS is a file with JSON: what there is to be found, by the names below. Prints, as JSON, each attempt that
succeeded, with what it got. An attempt that fails in any way is silent.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import socket
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
CLONE_NEWUSER = 0x10000000
SYSV_CREATE = 0o1000 | 0o600

targets = json.load(open(sys.argv[1]))
succeeded: dict[str, object] = {}


def attempt(name):
    """Run it at once; what it returns, unless empty, is a success."""

    def run(work):
        try:
            found = work()
        except Exception:
            return
        if found:
            succeeded[name] = found if isinstance(found, str | int | list) else True

    return run


def readable(pattern):
    found = []
    for path in glob.glob(pattern):
        try:
            open(path, "rb").read(1)
            found.append(path)
        except OSError:
            pass
    return found


@attempt("secret files")
def _():
    return [path for path in targets["secret_files"] if readable(path)]


@attempt("listing our home")
def _():
    names = os.listdir(targets["home"])  # at level 2 the way to our workspace is there, and nothing else
    return names if names != ["workspaces"] else []


@attempt("another task's workspace")
def _():
    return readable(targets["other_file"]) or os.listdir(os.path.dirname(targets["other_file"]))


@attempt("writing outside")
def _():
    written = []
    for folder in targets["foreign_folders"]:
        path = os.path.join(folder, targets["mark"])
        try:
            open(path, "w").close()
            written.append(path)
        except OSError:
            pass
    return written


@attempt("permissions of our files")
def _():
    changed = []
    for path in targets["secret_files"]:
        try:
            os.chmod(path, 0o640)
            changed.append(path)
        except OSError:
            pass
    return changed


@attempt("cutting our files")
def _():
    for path in targets["secret_files"]:
        os.truncate(path, 0)
    return True


@attempt("limits of the worker")
def _():
    import resource

    return resource.prlimit(targets["worker"], resource.RLIMIT_CORE) and True


@attempt("canary in my environment")
def _():
    return [name for name, value in os.environ.items() if targets["canary"] in value]


@attempt("canary in somebody's environment or command line")
def _():
    found = []
    for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if targets["canary"].encode() in open(path, "rb").read():
                found.append(path)
        except OSError:
            pass
    return found


@attempt("memory and files of the worker")
def _():
    found = []
    for name in ("environ", "mem", "maps", "fd", "cwd", "root/etc", "auxv", "io", "stack", "syscall"):
        path = f"/proc/{targets['worker']}/{name}"
        try:
            os.listdir(path) if name in ("fd", "cwd", "root/etc") else open(path, "rb").read(1)
            found.append(name)
        except OSError:
            pass
    return found


@attempt("seeing the worker")
def _():
    return targets["worker_word"] in open(f"/proc/{targets['worker']}/cmdline").read()


@attempt("signalling the worker")
def _():
    os.kill(targets["worker"], 0)
    return True


@attempt("tracing the worker")
def _():
    if LIBC.ptrace(PTRACE_SEIZE, targets["worker"], None, None) == 0:
        LIBC.ptrace(PTRACE_DETACH, targets["worker"], None, None)
        return True
    return False


@attempt("TCP")
def _():
    found = []
    for port in targets["tcp_ports"]:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            found.append(port)
        except OSError:
            pass
    return found


@attempt("UDP")
def _():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.sendto(b"ping", ("127.0.0.1", targets["udp_port"]))
        return sock.recv(100).decode()


@attempt("Unix socket")
def _():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(targets["unix_socket"])
        return True


@attempt("abstract Unix socket")
def _():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + targets["abstract_socket"])
        return True


@attempt("the host's other side of the virtual machine")
def _():
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    return True


@attempt("shared memory of others")
def _():
    return readable(targets["shared_memory"])


@attempt("shared memory by number")
def _():
    return targets["sysv_key"] and LIBC.shmget(targets["sysv_key"], 1, 0o400) >= 0


@attempt("raw disks and memory")
def _():
    names = [line.split()[-1] for line in open("/proc/partitions").read().splitlines()[2:]]
    return [path for name in [*names, "mem", "kmsg", "port"] for path in readable(f"/dev/{name}")]


@attempt("becoming root")
def _():
    os.setuid(0)
    return True


@attempt("a user namespace")
def _():
    pid = os.fork()
    if pid == 0:
        os._exit(0 if LIBC.unshare(CLONE_NEWUSER) == 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@attempt("the kernel's keys")
def _():
    return LIBC.syscall(248 if os.uname().machine == "x86_64" else 217, b"user", b"hostile", b"x", 1, -4) > 0


@attempt("the kernel's log")
def _():
    return LIBC.klogctl(3, ctypes.create_string_buffer(1000), 1000) > 0


@attempt("mounting")
def _():
    return LIBC.mount(b"none", os.environ["TMPDIR"].encode(), b"tmpfs", 0, None) == 0


def outlive():
    """A daemon in a session of its own, without a parent, that no polite signal ends."""
    import signal

    if os.fork():
        return
    os.setsid()
    for number in range(1, 32):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    if os.fork():
        os._exit(0)
    for fd in range(3):
        os.close(fd)
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", targets["mark"]])


print(json.dumps(succeeded), flush=True)
outlive()
time.sleep(0.2)
