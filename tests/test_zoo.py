"""Names of other libraries' networks: downloads into their caches, whole and checked or not at all, never offline."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_ln.errors import InputError, ResourceError, UsageError
from robustbench_ln.models import load_model
from robustbench_ln.models.downloads import fetch_from_url
from tests.networks import images

CONTENT = bytes(range(256)) * 4000
NAME = f"weights-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Weights(BaseHTTPRequestHandler):
    """Serves CONTENT, but breaks off the first answers; keeps what was asked for."""

    breaks: int
    ranges: bool
    asked: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        body = CONTENT[start:]
        if len(self.asked) <= self.breaks:
            body = body[:300_000]
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def weights_server(*, breaks: int = 0, ranges: bool = True) -> type[Weights]:
    return type("Server", (Weights,), {"breaks": breaks, "ranges": ranges, "asked": []})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub, and a network that may be used."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("LNBENCH_OFFLINE", raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub" / "checkpoints"


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_a_download_is_placed_whole_and_not_repeated(cache: Path) -> None:
    server = weights_server()
    with serving(server) as address:
        for _ in range(2):
            assert fetch_from_url(f"{address}/{NAME}", "it").read_bytes() == CONTENT
    assert len(server.asked) == 1
    assert left(cache) == [NAME]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_was_interrupted(ranges: bool, cache: Path) -> None:
    server = weights_server(breaks=1, ranges=ranges)
    with serving(server) as address:
        with pytest.raises(ResourceError, match="after 300000 of 1024000 bytes"):
            fetch_from_url(f"{address}/{NAME}", "it")
        assert left(cache) == [f"{NAME}.partial"]
        assert fetch_from_url(f"{address}/{NAME}", "it").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]
    assert left(cache) == [NAME]


def test_a_download_that_was_complete_but_not_placed_is_placed(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / f"{NAME}.partial").write_bytes(CONTENT)
    with serving(weights_server()) as address:
        assert fetch_from_url(f"{address}/{NAME}", "it").read_bytes() == CONTENT


def test_a_file_without_a_digest_in_its_name_begins_anew(cache: Path) -> None:
    server = weights_server(breaks=1)
    with serving(server) as address:
        with pytest.raises(ResourceError):
            fetch_from_url(f"{address}/weights.pth", "it")
        assert fetch_from_url(f"{address}/weights.pth", "it").read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_a_download_of_another_digest_is_thrown_away(cache: Path) -> None:
    with serving(weights_server()) as address, pytest.raises(ResourceError, match="SHA-256 begins"):
        fetch_from_url(f"{address}/weights-00000000.pth", "the weights")
    assert left(cache) == []


def test_a_download_that_is_forbidden_says_where_the_file_goes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LNBENCH_OFFLINE", "1")
    server = weights_server()
    with serving(server) as address, pytest.raises(ResourceError, match="LNBENCH_OFFLINE forbids") as caught:
        fetch_from_url(f"{address}/{NAME}", "it")
    assert caught.value.exit_code == 5
    assert str(cache / NAME) in caught.value.found
    assert server.asked == []


# timm


@pytest.mark.parametrize("spec", ["timm:resnet18", "hf-hub:timm/resnet18.a1_in1k"])
def test_a_missing_extra_names_the_command(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ResourceError, match=r"pip install 'robustbench-ln\[timm\]'") as caught:
        load_model(spec)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("spec", "near"),
    [("timm:resnet81", "resnet18"), ("timm:resnet18.a1_in2k", "resnet18.a1_in1k"), ("hf-hub:resnet18", "OWNER/NAME")],
)
def test_an_unknown_name_is_a_usage_error_with_near_matches(spec: str, near: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UsageError) as caught:
        load_model(spec)
    assert near in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_timm_network_without_weights_is_an_input_error() -> None:
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="no pretrained weights of"):
        load_model("timm:vit_base_patch32_plus_256")


HUB = """
import sys, torch
from robustbench_ln.errors import LnbenchError
from robustbench_ln.models import load_model
from tests.networks import images
import json
for spec in sys.argv[1:]:
    torch.manual_seed(0)
    try:
        loaded = load_model(spec)
    except LnbenchError as error:
        print(json.dumps({"code": error.exit_code, "error": str(error)}))
        continue
    with torch.no_grad():
        logits = loaded.network(images(160, n=2))
    geometry = loaded.geometry
    print(json.dumps({
        "arch": loaded.arch, "classes": loaded.num_classes, "form": loaded.form, "sha256": loaded.sha256,
        "geometry": [geometry.resize, geometry.crop, geometry.interpolation], "mean": loaded.mean,
        "drawn": torch.rand(1).item(), "warnings": loaded.warnings, "logits": logits.tolist(),
    }))
"""


def hub_server(folder: Path) -> type[BaseHTTPRequestHandler]:
    """What of the Hugging Face Hub its library asks for: files of repositories, with their digests and a commit."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def answer(self) -> bytes:
            repository, _, rest = self.path.strip("/").partition("/resolve/")
            file = folder / repository / rest.partition("/")[2]
            missing = not file.is_file()
            content = b"" if missing else file.read_bytes()
            self.send_response(404 if missing else 200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", "c0ffee" + "0" * 34)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            if missing:
                known = (folder / repository).is_dir()
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.end_headers()
            return content

        def log_message(self, *_: Any) -> None:
            pass

    return Hub


def test_networks_of_the_hub_load_with_their_preprocessing_and_then_offline_from_the_cache(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=7).eval()
    mine = tmp_path / "site" / "me" / "tiny"
    save_for_hf(network, mine, safe_serialization="both")
    only_pickled = tmp_path / "site" / "me" / "pickled"
    save_for_hf(network, only_pickled, safe_serialization=False)
    zoo = tmp_path / "site" / "timm" / "test_resnet.r160_in1k"
    zoo.mkdir(parents=True)
    torch.save(timm.create_model("test_resnet").state_dict(), zoo / "pytorch_model.bin")
    empty = tmp_path / "site" / "me" / "empty"
    empty.mkdir()
    for folder in (mine, only_pickled):
        assert (folder / "config.json").exists()

    specs = ["hf-hub:me/tiny", "hf-hub:me/pickled", "timm:test_resnet.r160_in1k", "hf-hub:me/empty", "hf-hub:me/absent"]
    home = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    proxies = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "LNBENCH_OFFLINE"}
    environment = {key: value for key, value in os.environ.items() if key.upper() not in proxies} | home

    def load(address: str, **more: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-c", HUB, *specs],
            env={**environment, "HF_ENDPOINT": address, **more},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    with serving(hub_server(tmp_path / "site")) as address:
        tiny, pickled, of_timm, no_config, absent = load(address)
    torch.manual_seed(0)
    undisturbed = torch.rand(1).item()
    with torch.no_grad():
        expected = network(images(160, n=2))
    for one, form in ((tiny, "safetensors"), (pickled, "torch.save")):
        assert torch.allclose(torch.tensor(one["logits"]), expected, atol=1e-6)
        assert (one["classes"], one["form"], one["drawn"]) == (7, form, undisturbed)
    assert tiny["sha256"] == hashlib.sha256((mine / "model.safetensors").read_bytes()).hexdigest()
    assert (tiny["arch"], tiny["geometry"], tiny["mean"]) == ("tiny", [168, 160, "bilinear"], [0.5, 0.5, 0.5])
    assert (of_timm["arch"], of_timm["classes"], of_timm["geometry"][1]) == ("test_resnet.r160_in1k", 1000, 160)
    assert (no_config["code"], absent["code"]) == (3, 3)
    assert "no config.json" in no_config["error"]
    assert "there is no me/absent" in absent["error"]

    # The server is gone, and the cache holds what was loaded.
    offline = load("http://127.0.0.1:9", LNBENCH_OFFLINE="1")
    assert offline[:3] == [tiny, pickled, of_timm]
    assert [one["code"] for one in offline[3:]] == [5, 5]
    assert "LNBENCH_OFFLINE forbids" in offline[4]["error"]


def test_a_hub_that_does_not_answer_is_a_resource_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    hub = pytest.importorskip("huggingface_hub")

    def no_answer(*_: Any, **__: Any) -> str:
        raise ConnectionError("the network is down")

    monkeypatch.delenv("LNBENCH_OFFLINE")
    monkeypatch.setattr(hub, "hf_hub_download", no_answer)  # its own retries take half a minute
    with pytest.raises(ResourceError, match=r"cannot be downloaded\nfound: ConnectionError: the network is down"):
        load_model("timm:resnet18")
