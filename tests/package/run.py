"""Installs the Debian package in a bare Debian, runs the daemon there as its
unit says, and removes it again.

Usage (as root): run.py PACKAGE.deb

The bare Debian is made with debootstrap in a temporary directory. The daemon
runs there under the unit's own user, directories, variables and umask, without
capabilities, in a network namespace of its own; systemd is not needed for
that, and the end that the daemon reports to is this program.
"""

from __future__ import annotations

import configparser
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

UNIT = "p2p-node.service"
NAME = "p2p-node"
# Of this machine: what is built here runs there.
RELEASE = platform.freedesktop_os_release()["VERSION_CODENAME"]
DEADLINE = 60.0
# Of commands that users type.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LC_ALL": "C"}
# Not the package's: what the system itself writes while anything is installed.
VOLATILE = (
    "./run",
    "./tmp",
    "./proc",
    "./sys",
    "./dev",
    "./var/log",
    "./var/cache",
    "./var/lib/dpkg",
    "./var/lib/systemd/deb-systemd-helper-",
)


def main(package: Path) -> None:
    root = Path(tempfile.mkdtemp(prefix="p2p-node-debian-"))
    root.chmod(0o755)
    try:
        bootstrap(root)
        before = files(root), entries(root)
        install(root, package)
        check_unit(root)
        with service(root) as (daemon, reports):
            check_ready(reports)
            check_files(root)
            check_access(root)
            check_message(root, daemon)
            check_stop(daemon, reports)
        purge(root)
        check_gone(root, before)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print("package: all is well")


# --- the bare Debian --------------------------------------------------------


def bootstrap(root: Path) -> None:
    """Makes the bare Debian, from where this machine's apt gets its own."""
    sites = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)").split("\n")
    known = (site.split()[0] for site in sites if site.endswith(f" {RELEASE}"))
    mirror = next(known, "http://deb.debian.org/debian")
    # systemd for systemd-analyze, man-db because the unit names a man page.
    include = "--include=systemd,adduser,man-db"
    run("debootstrap", "--variant=minbase", include, RELEASE, str(root), mirror)
    say(f"a bare Debian ({RELEASE})")


def files(root: Path) -> set[str]:
    listed = run("find", ".", "-xdev", cwd=root).split("\n")
    return {path for path in listed if not path.startswith(VOLATILE)}


def entries(root: Path) -> str:
    return inside(root, "getent", "passwd") + inside(root, "getent", "group")


def inside(root: Path, *command: str) -> str:
    """Runs a command in the bare Debian, as root."""
    return run("chroot", str(root), *command)


def run(*command: str, cwd: Path | None = None) -> str:
    """Runs a command and returns what it prints; all of it, if it fails."""
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
        "HOME": "/root",
    }
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def say(what: str) -> None:
    print(f"package: {what}", flush=True)


# --- the package ------------------------------------------------------------


def install(root: Path, package: Path) -> None:
    shutil.copy(package, root / "package.deb")
    inside(root, "dpkg", "--install", "/package.deb")
    (root / "package.deb").unlink()
    say("installs")


def check_unit(root: Path) -> None:
    """`systemd-analyze verify` finds nothing, and says nothing."""
    done = subprocess.run(
        ["chroot", str(root), "systemd-analyze", "verify", UNIT], capture_output=True, text=True, check=False
    )
    expect(
        done.returncode == 0 and not done.stderr.strip(),
        f"systemd-analyze verify: {done.returncode} {done.stderr}",
    )
    enabled = root / "etc/systemd/system/multi-user.target.wants" / UNIT
    expect(enabled.is_symlink(), "the unit is enabled")
    say("systemd-analyze verify is clean, the unit is enabled")


def check_files(root: Path) -> None:
    for path in [
        f"usr/share/man/man1/{NAME}.1.gz",
        f"usr/share/bash-completion/completions/{NAME}",
        f"etc/{NAME}/config.toml",
        f"usr/share/doc/{NAME}/copyright",
    ]:
        expect((root / path).is_file(), f"{path} is there")
    page = inside(root, "man", "--pager=cat", NAME)
    expect("invite" in page or "send" in page, f"the man page is readable: {page[:200]}")
    key = (root / f"var/lib/{NAME}/identity.key").stat()
    expect(key.st_mode & 0o777 == 0o600, f"the key's mode is {key.st_mode & 0o777:o}")
    say("man page, completions, settings and key are in their places")


def purge(root: Path) -> None:
    for user in ("member", "stranger"):
        inside(root, "userdel", user)
    inside(root, "dpkg", "--purge", NAME)


def check_gone(root: Path, before: tuple[set[str], str]) -> None:
    left = sorted(files(root) - before[0])
    expect(not left, f"purge leaves {left}")
    expect(not (root / "run" / NAME).exists(), "purge leaves the runtime directory")
    expect(entries(root) == before[1], "purge leaves a user or a group")
    say("purge leaves nothing")


# --- the daemon, as the unit starts it --------------------------------------


class Reports:
    """Where the daemon reports to: the socket of `sd_notify(3)`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        path.chmod(0o777)
        self.seen: list[str] = []

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while line not in self.seen:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self.seen += self.socket.recv(4096).decode().splitlines()
            except TimeoutError:
                raise SystemExit(f"no {line} within {DEADLINE} s; heard {self.seen}") from None


@contextmanager
def service(root: Path) -> Iterator[tuple[subprocess.Popen[bytes], Reports]]:
    """Starts the daemon as the installed unit says, and ends it."""
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(root / "lib/systemd/system" / UNIT)
    settings = unit["Service"]
    expect(settings["Type"] == "notify", "the unit waits for a report")
    reports = Reports(root / "run/systemd/notify")
    user = settings["User"]
    state = directory(root, "var/lib", settings, "StateDirectory", user)
    runtime = directory(root, "run", settings, "RuntimeDirectory", user)
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "STATE_DIRECTORY": state,
        "RUNTIME_DIRECTORY": runtime,
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": str(int(settings["WatchdogSec"].removesuffix("s")) * 1_000_000),
    }
    command = in_namespace(root, user, settings["Group"], settings["ExecStart"].split())
    old = os.umask(int(settings["UMask"], 8))
    daemon = subprocess.Popen(command, env=environment, start_new_session=True)
    os.umask(old)
    try:
        yield daemon, reports
    finally:
        end(daemon)
        # The manager removes it when the service is stopped.
        shutil.rmtree(root / runtime.lstrip("/"), ignore_errors=True)


def directory(root: Path, base: str, settings: configparser.SectionProxy, key: str, user: str) -> str:
    """A directory of the service, as the manager makes it."""
    path = root / base / settings[key]
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(int(settings[key + "Mode"], 8))
    owner = inside(root, "id", "-u", user).strip(), inside(root, "id", "-g", user).strip()
    os.chown(path, int(owner[0]), int(owner[1]))
    return f"/{base}/{settings[key]}"


def in_namespace(root: Path, user: str, group: str, command: list[str]) -> list[str]:
    """The command line that runs a command as the user, without capabilities,
    in a network namespace of its own."""
    drop = [
        "setpriv",
        f"--reuid={user}",
        f"--regid={group}",
        "--init-groups",
        "--no-new-privs",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]
    enter = 'ip link set lo up && mount -t proc proc "$1/proc" && exec chroot "$@"'
    # The chroot's own setpriv knows the chroot's users.
    return ["unshare", "--net", "--mount", "sh", "-c", enter, "sh", str(root), *drop, *command]


def check_ready(reports: Reports) -> None:
    reports.wait_for("READY=1")
    reports.wait_for("WATCHDOG=1")
    say("the daemon reports READY=1, and WATCHDOG=1")


def check_access(root: Path) -> None:
    """The socket is for the group."""
    inside(root, "useradd", "--system", "--groups", NAME, "member")
    inside(root, "useradd", "--system", "stranger")
    status = as_user(root, "member", NAME, "status")
    expect(status.returncode == 0 and "listening" in status.stdout, f"a member reads the status: {status}")
    status = as_user(root, "stranger", NAME, "status")
    expect(status.returncode == 77 and NAME in status.stderr, f"a stranger is refused: {status}")
    say("the socket is open to the group, and to nobody else")


def as_user(root: Path, user: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of a user; the socket is a file, so any network does."""
    drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
    line = ["chroot", str(root), *drop, *command]
    return subprocess.run(
        line, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE, check=False
    )


def check_message(root: Path, daemon: subprocess.Popen[bytes]) -> None:
    """A second node, of a user, and the service write to each other."""
    beside = [
        "nsenter",
        f"--target={daemon.pid}",
        "--net",
        "--mount",
        "chroot",
        str(root),
        "setpriv",
        "--reuid=member",
        "--regid=member",
        "--init-groups",
    ]
    second = [
        NAME,
        "--socket",
        "/tmp/second.sock",
        "run",
        "--state-dir",
        "/tmp/second",
        "--listen",
        "/ip4/127.0.0.1/udp/4002/quic-v1",
    ]
    other = subprocess.Popen([*beside, *second], env=ENVIRONMENT, start_new_session=True)
    try:
        mine, theirs = ["member", NAME], ["member", NAME, "--socket", "/tmp/second.sock"]
        poll(lambda: as_user(root, *theirs, "status").returncode == 0, "the second node serves")
        ids = [peer_id(as_user(root, *node, "--json", "status").stdout) for node in (mine, theirs)]
        address = "/ip4/127.0.0.1/udp/4002/quic-v1"
        done(as_user(root, *mine, "peer", "add", ids[1], "--alias", "second", "--address", address))
        done(as_user(root, *theirs, "peer", "add", ids[0], "--alias", "service"))
        for sender, recipient, node in ((mine, "second", theirs), (theirs, "service", mine)):
            sent = done(
                as_user(root, *sender, "send", recipient, "hello from the package", "--timeout", "60s")
            )
            expect(sent.startswith("stored"), f"it is stored: {sent}")
            heard = done(as_user(root, *node, "listen", "--max", "1"))
            expect("hello from the package" in heard, f"it is heard: {heard}")
    finally:
        end(other)
        shutil.rmtree(root / "tmp/second", ignore_errors=True)
    say("it carries messages, both ways")


def peer_id(status: str) -> str:
    return str(json.loads(status)["peer_id"])


def done(process: subprocess.CompletedProcess[str]) -> str:
    expect(process.returncode == 0, f"{process}")
    return process.stdout


def poll(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        expect(time.monotonic() < deadline, what)
        time.sleep(0.05)


def check_stop(daemon: subprocess.Popen[bytes], reports: Reports) -> None:
    daemon.send_signal(signal.SIGTERM)
    reports.wait_for("STOPPING=1")
    expect(daemon.wait(DEADLINE) == 0, f"it ends with status {daemon.returncode}")
    say("it reports STOPPING=1 and ends with status 0")


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(f"package: NOT SO: {what}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or os.geteuid() != 0:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
