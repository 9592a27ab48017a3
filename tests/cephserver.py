"""Ceph's RADOS gateway on loopback, a second real S3 server for the tests: a monitor, a storage daemon in memory and the gateway.

From Debian's packages ceph-mon, ceph-osd, radosgw and ceph-common. One copy of everything, gone with its processes.
"""

import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from s3server import KEY, NEXT_KEY, SECRET, S3Server, free_ports

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
KEYS = {  # who may do what in the cluster
    "mon.": ["mon", "allow *"],
    "client.admin": ["mon", "allow *", "osd", "allow *", "mgr", "allow *"],
    "osd.0": ["mon", "allow profile osd", "osd", "allow *"],
    "client.rgw.a": ["mon", "allow rw", "osd", "allow rwx"],
}
CONFIG = """\
[global]
fsid = {fsid}
mon_host = [v1:127.0.0.1:{mon}]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
ms_bind_msgr2 = false
ms_bind_port_min = {low}
ms_bind_port_max = {high}
keyring = {folder}/keyring
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_osd_min_up_ratio = 0
mon_data_avail_warn = 1
mon_data_avail_crit = 1
auth_allow_insecure_global_id_reclaim = false
# a cluster of one agrees at once, and small answers are not held back for 40 ms
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
rgw_frontends = beast endpoint=127.0.0.1:{s3} tcp_nodelay=1
rgw_data = {folder}/rgw
"""


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class CephServer(S3Server):
    """Like `S3Server`; its data is lost when it stops."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(folder, port)
        self.daemons: list[subprocess.Popen[bytes]] = []

    def environment(self) -> dict[str, str]:
        """Also for Arrow, which Ray uses for checkpoints: gateways before 2025 know no checksums after the body."""
        return {**super().environment(), "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}

    def call(self, program: str, *arguments: str) -> bytes:
        """Run one of its programs to the end. Raises RuntimeError with its output if it fails."""
        options = [] if program in ("ceph-authtool", "monmaptool") else ["-c", f"{self.folder}/ceph.conf"]
        done = subprocess.run([program, *options, *arguments], capture_output=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)}:\n{done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout

    def serve(self, program: str, *arguments: str) -> None:
        """Start one of its daemons."""
        with (self.folder / f"{program}.out").open("wb") as output:
            command = [program, "-c", f"{self.folder}/ceph.conf", *arguments, "-f"]
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        self.daemons.append(daemon)

    def start(self) -> None:
        """Start and wait until S3 serves. Raises RuntimeError if it does not within a minute."""
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir(parents=True)
        fsid, (mon, low) = str(uuid.uuid4()), free_ports(2)
        text = CONFIG.format(fsid=fsid, folder=self.folder, mon=mon, low=low, high=low + 100, s3=self.ports["s3"])
        (self.folder / "ceph.conf").write_text(text)
        try:
            self.start_cluster(fsid, mon)
            user = ("--uid", KEY, "--secret-key", SECRET)
            self.call("radosgw-admin", "user", "create", *user, "--display-name", KEY, "--access-key", KEY)
            self.call("radosgw-admin", "key", "create", *user, "--key-type", "s3", "--access-key", NEXT_KEY)
            self.serve("radosgw", "-n", "client.rgw.a")
            self.wait(self.is_ready)
        except BaseException:
            self.kill()
            raise

    def start_cluster(self, fsid: str, mon: int) -> None:
        """Start the monitor and the storage daemon."""
        keyring, monmap = str(self.folder / "keyring"), str(self.folder / "monmap")
        self.call("ceph-authtool", "-C", keyring)
        for name, rights in KEYS.items():
            pairs = [word for kind, what in zip(rights[::2], rights[1::2], strict=True) for word in ("--cap", kind, what)]
            self.call("ceph-authtool", keyring, "-n", name, "--gen-key", *pairs)
        self.call("monmaptool", "--create", "--addv", "a", f"[v1:127.0.0.1:{mon}]", "--fsid", fsid, monmap)
        self.call("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        self.serve("ceph-mon", "-i", "a")
        self.wait(lambda: bool(self.call("ceph", "--connect-timeout", "2", "mon", "stat")))
        osd = str(uuid.uuid4())
        self.call("ceph", "osd", "new", osd)
        self.call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.serve("ceph-osd", "-i", "0")
        self.wait(lambda: b"1 up" in self.call("ceph", "osd", "stat"))

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until it is ready, ignoring errors before."""
        deadline = time.monotonic() + 60
        while True:
            with suppress(RuntimeError):
                if ready():
                    return
            ended = [daemon.args for daemon in self.daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"Ceph did not start; ended: {ended}; its logs are in {self.folder}")
            time.sleep(0.05)

    def end(self, how: signal.Signals) -> None:
        """Send the signal to all, the last started first, and wait for the end."""
        for daemon in reversed(self.daemons):
            daemon.send_signal(how)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons.clear()
