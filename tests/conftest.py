"""Every test runs offline, on one thread, and finds out at once if it is not so."""

from __future__ import annotations

import os

# before torch, transformers and datasets are imported; every kernel and process a test starts inherits it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it once, at import

import gc
import ipaddress
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
gc.disable()  # what the tests import stays: to look for garbage among it takes a tenth of the time


def pytest_collection_finish() -> None:
    """From here on garbage is collected, but not looked for among what was imported."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes a file at a time, whose fixtures are made once, but of the notebooks one at a time."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "::test_a_notebook_runs_" in nodeid else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that two workers end together."""
    marks = ("notebook", "long", "browser")
    items.sort(key=lambda item: [item.get_closest_marker(mark) is None for mark in marks])


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave this machine in no test."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def local(self: socket.socket, address: Any) -> Any:
        _refuse_remote(self, address)
        return connect(self, address)

    def local_ex(self: socket.socket, address: Any) -> Any:
        _refuse_remote(self, address)
        return connect_ex(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    monkeypatch.setattr(socket.socket, "connect_ex", local_ex)


def _refuse_remote(sock: socket.socket, address: Any) -> None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    host = str(address[0])
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise RuntimeError(f"A test tried to connect to {host}; tests run without a network.")


@pytest.fixture
def offline_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels started in this test are forked and refuse connections that leave the machine.

    What a forked kernel imports is there already (forked.py); offline/sitecustomize.py refuses.
    """
    import forked

    paths = [str(ROOT / "tests" / "offline"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in paths if p))
    if forked.FORKS:
        monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", forked.Kernel)


@pytest.fixture(scope="module")
def by_two_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the module's `in_two_processes` left when two processes ran it."""
    import forked

    folder = tmp_path_factory.mktemp("two")
    ended = forked.two(request.path.stem, folder)
    assert [code for code, _ in ended] == [0, 0], ended
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the repository, which nothing but such tests may need."""
    folder = Path(os.environ.get("XGBLORA_LAB_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data is not at hand: {folder} (set XGBLORA_LAB_SHARED)")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium: the system's, else Playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api")
    flags = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-gpu",
        "--disable-quic",
        "--disable-sync",
        "--no-first-run",
        "--no-sandbox",
    ]
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            instance = playwright.chromium.launch(executable_path=system, args=flags)
        except sync_api.Error:
            if os.environ.get("XGBLORA_LAB_BROWSER") == "required":
                raise
            pytest.skip("no Chromium: install your system's, or run `playwright install chromium`")
        yield instance
        instance.close()
