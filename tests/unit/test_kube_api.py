"""What JOS says of a cluster that does not answer, or answers with what nobody expects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml

from jos.core.errors import BadRequest, ComputeFailed
from jos.launch.kube_api import RAYJOB, WORKLOAD, Absent, Expired, KubeApi, Refused

Asked = Callable[[KubeApi], Awaitable[object]]


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def write(port: int) -> None:
        content = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "jos"}}],
            "current-context": "c",
        }
        (tmp_path / "config").write_text(yaml.safe_dump(content))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))

    return write


def ask(kubeconfig: Callable[[int], None], answer: bytes | None, what: Asked) -> None:
    """Against a server that gives one answer to everything; None: it says nothing."""

    served: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer if answer is not None else b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if answer is None:
            await reader.read()  # until the other side has had enough
        writer.close()
        await writer.wait_closed()

    async def work() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        kubeconfig(server.sockets[0].getsockname()[1])
        api = KubeApi.connect("jos")
        try:
            await what(api)
        finally:
            await api.close()
            server.close()
            await asyncio.gather(*filter(None, served))

    asyncio.run(work())


def status(code: int, message: str, details: str = "{}") -> bytes:
    body = f'{{"kind": "Status", "code": {code}, "message": {message!r}, "details": {details}}}'.replace(
        "'", '"'
    ).encode()
    head = f"HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def write_login(folder: Path, monkeypatch: pytest.MonkeyPatch, login: dict[str, object]) -> None:
    content = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"exec": login}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    (folder / "config").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(folder / "config"))


async def apply(api: KubeApi) -> None:
    await api.apply(RAYJOB, {"metadata": {"name": "r"}})


async def watch(api: KubeApi) -> list[str]:
    async with api.watch(RAYJOB, {"a": "b"}, "7", 0) as changes:
        return [change.type async for change in changes]


def test_a_server_that_is_silent_for_too_long_is_not_there(
    kubeconfig: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jos.launch.kube_api.SILENCE", 0.2)
    with pytest.raises(ComputeFailed, match="cannot be reached: ReadTimeout"):
        ask(kubeconfig, None, watch)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (status(401, "Unauthorized"), ComputeFailed, "service account token"),
        (status(403, "exceeded quota: team"), ComputeFailed, "Raise the namespace's ResourceQuota"),
        (status(403, "admission webhook denied the request"), Refused, "A policy of the cluster does not let JOS"),
        (status(404, "the server could not find it"), ComputeFailed, "Install KubeRay with its CRDs"),
        (status(404, "gone", '{"name": "r", "kind": "rayjobs"}'), Absent, ""),
        (status(410, "too old"), Expired, ""),
        (status(422, "spec.x: Invalid"), Refused, "Check the profile (JOS_KUBE)"),
        (status(500, ".spec.y: field not declared in schema"), Refused, "a field that is unknown needs KubeRay 1.7"),
        (status(500, "etcd has no leader"), ComputeFailed, "could not patch rayjobs: 500 etcd has no leader"),
        (b"HTTP/1.1 502 X\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<h1>", ComputeFailed, "502 <h1>"),
        (b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n", ComputeFailed, "could not patch rayjobs: 503"),
    ],
)  # fmt: skip
def test_an_answer_is_told_with_what_to_do(
    kubeconfig: Callable[[int], None], answer: bytes, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as told:
        ask(kubeconfig, answer, apply)
    assert words in str(told.value)
    assert type(told.value) is error


def test_a_cluster_without_kueue_is_told(kubeconfig: Callable[[int], None]) -> None:
    with pytest.raises(ComputeFailed, match="no workloads in kueue") as told:
        ask(kubeconfig, status(404, "not found"), lambda api: api.list(WORKLOAD, {}))
    assert "Install Kueue with its CRDs" in str(told.value)


@pytest.mark.parametrize("answer", [status(410, "too old"), b"HTTP/1.1 410 X\r\nContent-Length: 0\r\n\r\n"])
def test_a_watch_from_a_forgotten_version_has_expired(kubeconfig: Callable[[int], None], answer: bytes) -> None:
    with pytest.raises(Expired):
        ask(kubeconfig, answer, watch)


def test_a_watch_that_expires_on_the_way_has_expired_too(kubeconfig: Callable[[int], None]) -> None:
    line = b'{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}\n'
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(line)}\r\n\r\n"
    with pytest.raises(Expired):
        ask(kubeconfig, head.encode() + line, watch)


def test_without_a_way_to_a_cluster_it_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(BadRequest, match="knows no Kubernetes cluster") as told:
        KubeApi.connect("jos")
    assert "KUBECONFIG" in str(told.value)
    (tmp_path / "none").write_text("- a list")
    with pytest.raises(BadRequest, match="knows no Kubernetes cluster"):
        KubeApi.connect("jos")


@pytest.mark.parametrize("command", ["no-such-program", "false"])
def test_a_login_by_another_program_that_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    """As the programs of clouds do, once nobody is logged in any more."""
    login = {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": command}
    write_login(tmp_path, monkeypatch, login)

    async def work() -> None:
        api = KubeApi.connect("jos")
        try:
            for what in (apply, watch, lambda api: api.list(RAYJOB, {}), KubeApi.version):
                with pytest.raises(ComputeFailed, match=command) as told:
                    await what(api)
                assert "Log in again" in str(told.value)
        finally:
            await api.close()

    asyncio.run(work())


def test_a_login_by_another_program_that_gives_certificates_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = '{"status": {"clientCertificateData": "c", "clientKeyData": "k"}}'
    login = {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "echo", "args": [given]}
    write_login(tmp_path, monkeypatch, login)

    async def work() -> None:
        api = KubeApi.connect("jos")
        try:
            with pytest.raises(ComputeFailed, match="gives no token"):
                await apply(api)
        finally:
            await api.close()

    asyncio.run(work())


def test_without_the_extra_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lightkube", None)
    with pytest.raises(BadRequest, match="needs lightkube") as told:
        KubeApi.connect("jos")
    assert "jos[kubernetes]" in str(told.value)
