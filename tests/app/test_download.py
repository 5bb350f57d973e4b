"""Downloads, from a server on this machine: whole, broken off, gone on with, of another file."""

import hashlib
import http.server
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

for package in ("requests", "rich"):
    pytest.importorskip(package)

from realspike import cli
from realspike.config import datasets
from realspike.data import download

CONTENT = bytes(range(256)) * 1000


class _Server(http.server.ThreadingHTTPServer):
    """Serves `CONTENT` from any byte on; the first ``breaks`` answers end before their length."""

    daemon_threads = True

    def __init__(self, breaks=0, content=CONTENT, ranges=True, status=None, hangs=False):
        self.breaks, self.content, self.ranges, self.status = breaks, content, ranges, status
        self.hangs = hangs  # after half of an answer
        self.asked: list[str | None] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/a/cifar-10-python.tar.gz"


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers["Range"]
        server.asked.append(wanted)
        if server.status:
            self.send_error(server.status)
            return
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if begin >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        left = server.content[begin:]
        self.send_header("Content-Length", str(len(left)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            left = left[: len(left) // 2]
        if server.hangs:
            self.wfile.write(left[: len(left) // 2])
            self.rfile.read()  # until the client is gone
            return
        self.wfile.write(left)


@pytest.fixture
def serve(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    known = datasets.Download(
        datasets.DOWNLOADS["cifar10"].url, hashlib.sha256(CONTENT).hexdigest()
    )
    monkeypatch.setitem(datasets.DOWNLOADS, "cifar10", known)
    servers = []

    def start(**options):
        servers.append(_Server(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def command(server, root, code, capsys):
    assert cli.main(["data", "cifar10", "--root", str(root), "--url", server.url]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_a_download_that_broke_off_goes_on_where_it_stopped(serve, tmp_path, capsys):
    server, root = serve(breaks=2), tmp_path / "new" / "data"
    sizes = []
    for _ in range(2):
        said = command(server, root, 1, capsys)
        assert said.count("\n") == 1
        assert "the same command goes on" in said
        [part] = root.iterdir()
        assert part.name == "cifar-10-python.tar.gz.part"
        sizes.append(part.stat().st_size)
    said = command(server, root, 0, capsys)
    assert f"`realspike train data.name=cifar10 data.root={root}`" in said
    assert [path.name for path in root.iterdir()] == ["cifar-10-python.tar.gz"]
    assert (root / "cifar-10-python.tar.gz").read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={sizes[0]}-", f"bytes={sizes[1]}-"]
    assert 0 < sizes[0] < sizes[1] < len(CONTENT)
    command(server, root, 0, capsys)
    assert len(server.asked) == 3, "what is there is checked, not asked for"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_download_that_a_signal_ends_goes_on_and_leaves_nothing_else(
    serve, tmp_path, capsys, number
):
    server, part = serve(hangs=True), tmp_path / "cifar-10-python.tar.gz.part"
    words = ["data", "cifar10", "--root", str(tmp_path), "--url", server.url]
    code = f"import sys; from realspike import cli; sys.exit(cli.main({words!r}))"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    interrupted = number == signal.SIGINT
    assert process.returncode == (130 if interrupted else -number)
    assert said == (b"realspike: interrupted\n" if interrupted else b"")
    assert [*tmp_path.iterdir()] == [part]
    server.hangs, came = False, part.stat().st_size
    command(server, tmp_path, 0, capsys)
    assert server.asked == [None, f"bytes={came}-"]
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


def test_a_server_that_only_begins_anew(serve, tmp_path, capsys):
    server = serve(breaks=1, ranges=False)
    command(server, tmp_path, 1, capsys)
    command(server, tmp_path, 0, capsys)
    assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == CONTENT


def test_what_came_whole_before_it_was_named_is_not_asked_for_again(serve, tmp_path, capsys):
    server = serve()
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(CONTENT)
    command(server, tmp_path, 0, capsys)
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_another_file_is_not_kept(serve, tmp_path, capsys):
    server = serve(content=CONTENT[:-1] + b"?")
    said = command(server, tmp_path, 1, capsys)
    assert "is not the official cifar-10-python.tar.gz: its SHA-256 must be" in said
    assert not [*tmp_path.iterdir()]


def test_a_file_that_is_another_is_replaced(serve, tmp_path, capsys):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"cut")
    command(serve(), tmp_path, 0, capsys)
    assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == CONTENT


def test_the_command_that_reads_it_can_be_pasted(serve, tmp_path, capsys):
    root = tmp_path / "my data"
    said = command(serve(), root, 0, capsys)
    given = shlex.split(said.partition("`")[2].partition("`")[0])
    assert given == ["realspike", "train", "data.name=cifar10", f"data.root={root}"]


def test_what_a_server_does_not_have(serve, tmp_path, capsys):
    said = command(serve(status=404), tmp_path, 1, capsys)
    assert "404" in said
    assert "goes on" not in said
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"cut")
    assert f"{tmp_path}/cifar-10-python.tar.gz, which is there, is not the official one" in command(
        serve(status=404), tmp_path, 1, capsys
    )
    server = serve()
    server.shutdown()
    server.server_close()
    said = command(server, tmp_path, 1, capsys)
    assert "cannot download http://127.0.0.1" in said
    assert "the same command goes on" in said


def test_a_full_disk_is_named_and_the_download_goes_on(serve, tmp_path, capsys):
    server, (_, hard) = serve(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        said = command(server, tmp_path, 1, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    part = tmp_path / "cifar-10-python.tar.gz.part"
    assert said == f"realspike: error: {part}: File too large\n"
    command(server, tmp_path, 0, capsys)
    assert server.asked == [None, "bytes=100000-"]


def test_the_official_archives():
    for name, count in (("cifar10", 10), ("cifar100", 100)):
        known = datasets.DOWNLOADS[name]
        assert known.file == f"cifar-{count}-python.tar.gz"
        assert known.url == f"https://www.cs.toronto.edu/~kriz/{known.file}"
        assert len(bytes.fromhex(known.sha256)) == 32
    assert download.DOWNLOADS is datasets.DOWNLOADS
