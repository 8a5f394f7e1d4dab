"""The fixture `cluster`: a fake Kubernetes cluster of a test's own, with the API server running."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kube.objects import Objects
from kube.server import Server

NAMESPACE = "jos"


@dataclass(frozen=True)
class Cluster:
    """`objects` is the store, to look and write past the API; `kubeconfig` is an administrator's, in namespace jos."""

    objects: Objects
    server: Server
    kubeconfig: Path
    folder: Path

    def as_account(self, account: str, namespace: str = NAMESPACE) -> Path:
        """A kubeconfig for this service account: it may do what the stored roles grant it."""
        token = self.server.guard.token(namespace, account)
        return self.server.kubeconfig(self.folder / f"{account}.kubeconfig", token=token, namespace=namespace)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    objects = Objects(namespaces=("default", "kube-system", NAMESPACE))
    server = Server(objects)
    folder = tmp_path / "kube"
    folder.mkdir()
    yield Cluster(objects, server, server.kubeconfig(folder / "kubeconfig", namespace=NAMESPACE), folder)
    server.close()
