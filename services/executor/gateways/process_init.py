"""Runs in an agent's own namespaces, before the agent: leaves it nothing to write but its own, and then no power.

The machine's files stay in sight, read-only. Covered by empty file systems are the state directory, `/run` (where the
sockets of the machine's services are), and the temporary directories; the agent's own directories are bound into the
covers again, by descriptors that were opened before. `/dev` holds what a program needs and no disk. At last every
capability goes, from the bounding set too: without CAP_SYS_ADMIN nothing can be uncovered, and in a user namespace of
its own the agent finds these mounts locked (mount_namespaces(7)).

Started by path with `python -I -S`. Arguments: most processes, most bytes in each temporary directory (of both 0: no
bound), state directory, workspace, home, command and its arguments.
"""

# pathlib would double the time that every start of an agent waits for this.
# ruff: noqa: PTH102, PTH103, PTH110, PTH112, PTH120, PTH123, PTH211

import ctypes
import os
import resource
import stat
import sys

_libc = ctypes.CDLL(None, use_errno=True)
# <linux/mount.h>, <linux/prctl.h>, <linux/capability.h>
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC = 0x1, 0x2, 0x4, 0x1000, 0x4000
_AT_FDCWD, _AT_RECURSIVE, _SYS_MOUNT_SETATTR, _MOUNT_ATTR_RDONLY = -100, 0x8000, 442, 0x1
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
# Writable for its owner, whatever capabilities it has, and the whole machine's.
_PROC = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/scsi")


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def _done(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _done(
        _libc.mount(
            source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()
        ),
        f"mount {target}",
    )


def _read_only(path: str, wanted: bool, *, deep: bool = False) -> None:
    attributes = _Attributes(set=_MOUNT_ATTR_RDONLY) if wanted else _Attributes(clear=_MOUNT_ATTR_RDONLY)
    _done(
        _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_uint(_AT_RECURSIVE if deep else 0),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        ),
        f"mount_setattr {path}",
    )


def _cover(path: str, mode: int, size: int = 0) -> None:
    os.makedirs(path, exist_ok=True)
    bound = f",size={size}" if size else ""
    _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode={mode:o}{bound}")


def _bind(descriptor: int, path: str) -> None:
    """Binds what a descriptor shows to a path; by its name it would be what covers it."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    _mount(f"/proc/self/fd/{descriptor}", path, "", _MS_BIND)


def _devices() -> None:
    kept = {name: os.open(f"/dev/{name}", os.O_PATH) for name in _DEVICES if os.path.exists(f"/dev/{name}")}
    terminals = os.open("/dev/pts", os.O_PATH) if os.path.isdir("/dev/pts") else -1
    _mount("tmpfs", "/dev", "tmpfs", _MS_NOSUID, "mode=755")
    for name, descriptor in kept.items():
        _bind(descriptor, f"/dev/{name}")
    for name, target in _LINKS.items():
        os.symlink(target, f"/dev/{name}")
    os.mkdir("/dev/pts")
    try:
        _mount("devpts", "/dev/pts", "devpts", _MS_NOSUID, "newinstance,ptmxmode=0666,mode=620")
    except OSError:
        # Terminals of its own need a user 0 (an ordinary user has none here): then they are those of the machine.
        if terminals >= 0:
            _bind(terminals, "/dev/pts")


def _rooms(state: str, own: tuple[str, str], command: str, temporary: int) -> None:
    """Covers, binds, and makes the rest read-only."""
    kept = {path: os.open(path, os.O_PATH) for path in own}
    for path in (command, os.path.realpath(command), os.path.realpath("/etc/resolv.conf")):
        if os.path.exists(path):
            kept[path] = os.open(path, os.O_PATH)
    _devices()
    covers = [path for path in ("/run", *_TEMPORARY) if os.path.realpath(path) == path]
    for path in covers:
        _cover(path, *((0o755,) if path == "/run" else (0o1777, temporary)))
    _cover(state, 0o711)
    for path, descriptor in kept.items():
        if path in own or path.startswith(tuple(f"{cover}/" for cover in (*covers, state))):
            _bind(descriptor, path)
    for descriptor in kept.values():
        os.close(descriptor)
    _read_only("/", True, deep=True)
    for path in (*own, *(path for path in covers if path in _TEMPORARY)):
        _read_only(path, False)
    # Its own limits and name maps a process may set; of the machine nothing.
    _read_only("/proc", False)
    for path in _PROC:
        if os.path.exists(path):
            _mount(path, path, "", _MS_BIND | _MS_REC)
            _read_only(path, True, deep=True)


def _renounce(last: int) -> None:
    """Gives up every capability, for good; user 0 gets none back by starting a program either."""
    _done(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient capabilities")
    for capability in range(last + 1):
        _done(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "bounding set")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _done(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capabilities")
    _done(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")


def main() -> None:
    """Makes the agent's view of the machine, and becomes the agent."""
    processes, temporary = map(int, sys.argv[1:3])
    (state, workspace, home), command = sys.argv[3:6], sys.argv[6:]
    # Nothing is imported or read later: Python itself may lie below a cover.
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        last = int(file.read())
    _rooms(state, (workspace, home), command[0], temporary)
    os.chdir(workspace)
    if processes:
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        bound = processes if hard == resource.RLIM_INFINITY else min(processes, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (bound, bound))
    _renounce(last)
    os.execv(command[0], command)  # noqa: S606


main()
