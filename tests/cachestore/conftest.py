"""Real servers for the remote tiers: each on a free port, with a folder of its own, ended by whoever started it."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest


class ValkeyServer:
    """valkey-server or redis-server, whichever is here. It forgets everything when it is stopped."""

    def __init__(self, binary: str, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"valkey://127.0.0.1:{self.port}/0"
        self._command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "no", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(7) == b"+PONG\r\n":
                        return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"{self._command[0]} does not answer on port {self.port}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def valkey_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ValkeyServer]]:
    """Starts one with these further options; all are ended with the session."""
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    pytest.importorskip("valkey", reason="the client is not installed (flowserve[valkey])")
    if binary is None:
        pytest.skip("neither valkey-server nor redis-server is installed (apt-get install redis-server)")
    with ExitStack() as started:

        def start(*options: str) -> ValkeyServer:
            server = ValkeyServer(binary, tmp_path_factory.mktemp("valkey"), *options)
            started.callback(server.stop)
            server.start()
            return server

        yield start


@pytest.fixture(scope="session")
def valkey_url(valkey_servers: Callable[..., ValkeyServer]) -> str:
    """One for all tests that keep to a namespace of their own."""
    return valkey_servers().url


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """A bucket of a server that speaks S3 over HTTP (moto) and keeps objects in memory."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed (flowserve[s3])")
    moto = pytest.importorskip("moto.server", reason="moto is not installed (the group dev)")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        server.start()
        address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="records")
        yield f"s3://records/kv?endpoint={address}&region=us-east-1"
        server.stop()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
