"""The command line as a user meets it: output, exit codes, three-line errors.

Starting a process costs seconds, most of them torch's. So each command runs once as the console script, with one bad
input, and everything else goes through the same entry point in this process.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_ln.benchmarks import norms, timing
from robustbench_ln.cli.app import main
from robustbench_ln.norms import EVAL_MODES, NORMS
from robustbench_ln.reports.summary import CAUTIOUS
from tests.conftest import random_network, toy_arrays

SCRIPT = shutil.which("lnbench", path=str(Path(sys.executable).parent)) or shutil.which("lnbench")


Done = subprocess.CompletedProcess[str]
Here = Callable[..., Done]


def lnbench(*arguments: str, cwd: Path, check: int = 0, **environment: str) -> Done:
    """The console script, in a process of its own."""
    assert SCRIPT, "the console script lnbench is not installed beside this Python"
    done = subprocess.run(
        [SCRIPT, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == check, done.stderr
    return done


@pytest.fixture
def here(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """What the console script calls, in this process and on the desk."""
    monkeypatch.chdir(desk)
    monkeypatch.setenv("LNBENCH_DEBUG", "")
    monkeypatch.setattr(logging.getLogger("robustbench_ln"), "handlers", [])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str, check: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["lnbench", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main()
        done = subprocess.CompletedProcess(arguments, leaving.value.code, *capsys.readouterr())
        assert done.returncode == check, done.stderr
        return done

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def error_of(done: Done) -> str:
    """The three last lines on stderr, which every error ends with."""
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().split("\n")[-3:]
    assert [line.partition(":")[0] for line in lines] == ["error", "found", "try"], done.stderr
    assert all(line.partition(": ")[2] not in ("", "-") for line in lines), done.stderr
    return "\n".join(lines)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and data, as a user has one."""
    folder = tmp_path_factory.mktemp("desk")
    images, labels = toy_arrays(60)
    np.savez(folder / "data.npz", images=images, labels=labels)
    torch.save({"state_dict": random_network().state_dict()}, folder / "bn.pt")
    return folder


QUICK = ("--data", "npz:data.npz", "--noise", "agn=0,1", "--modes", "bn,dynbn-batch:16", "--normalize", "half")


def test_the_main_job_prints_a_table_and_writes_a_folder(here: Here, desk: Path) -> None:
    done = lnbench("eval", "--model", "bn.pt", *QUICK, cwd=desk)
    assert "dynbn-batch" in done.stdout
    assert "agn" in done.stdout
    assert "area" in done.stdout
    assert "runs/bn-npz-data" in done.stderr
    document = json.loads((desk / "runs" / "bn-npz-data" / "results.json").read_text())
    assert len(document["rows"]) == 6
    assert document["run"]["command"].endswith(" ".join(QUICK))
    again = here("eval", "--model", "bn.pt", *QUICK)
    assert again.stdout == done.stdout


def test_what_a_network_prints_is_no_result(here: Here, desk: Path) -> None:
    (desk / "loud_net.py").write_text(
        "from torch import nn\n"
        "class Loud(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        print('forward')\n"
        "        return super().forward(x)\n"
        "def make(): return Loud(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))\n"
    )
    loud = ("--normalize", "half", "--json")
    done = here("eval", "--model", "python:loud_net:make", *QUICK[:4], *loud, "--out", "loud")
    assert json.loads(done.stdout)["rows"]
    assert "forward" in done.stderr
    assert json.loads(here("inspect", "python:loud_net:make", *loud).stdout)["num_classes"] == 10


def test_json_is_one_document_and_nothing_else(here: Here) -> None:
    done = here("eval", "--model", "bn.pt", *QUICK, "--json", "--out", "json")
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    for row in document["rows"]:
        assert row["accuracy"] == row["correct"] / row["n"]
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]


def test_quiet_leaves_stderr_to_warnings(here: Here) -> None:
    done = here("eval", "--model", "bn.pt", *QUICK, "--quiet", "--out", "quiet")
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())


def test_a_config_file_holds_any_option_and_the_command_line_wins(here: Here, desk: Path) -> None:
    (desk / "run.yaml").write_text(
        "model: bn.pt\ndata: npz:data.npz\nnoise: [agn]\nsigma: 0:1:0.5\nmodes: bn\nlimit: 20\n"
    )
    done = here("eval", "--config", "run.yaml", "--limit", "30", "--json", "--out", "config")
    document = json.loads(done.stdout)
    assert document["run"]["limit"] == 30
    assert {row["mode"] for row in document["rows"]} == {"bn"}
    assert [row["condition"]["level"] for row in document["rows"]] == [0, 0, 0.5, 1]


def test_a_list_in_a_config_file_is_a_grid_and_nothing_is_not_given(here: Here, desk: Path) -> None:
    (desk / "list.yaml").write_text(
        "model: [bn.pt]\ndata: npz:data.npz\nnoise: agn\nsigma: [0, 0.5]\nmodes: [bn]\nlimit: null\nsuite: ~\npreset:\n"
    )
    document = json.loads(
        here("eval", "--config", "list.yaml", "--normalize", "half", "--out", "list", "--json").stdout
    )
    assert [row["condition"]["level"] for row in document["rows"]] == [0, 0, 0.5]
    assert document["run"]["limit"] is None


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("sigmas: 1\n", 2, "sigma"),
        ("model: x\nlimit: [1, 2]\n", 2, "--limit"),
        ("sigma: {from: 0}\n", 3, "line 1: sigma"),
        ("model: [[bn.pt]]\n", 3, "line 1: model"),
        ("- model\n", 3, "list"),
    ],
)
def test_a_config_file_that_makes_no_sense_is_refused(here: Here, desk: Path, text: str, code: int, says: str) -> None:
    (desk / "bad.yaml").write_text(text)
    assert says in error_of(here("eval", "--config", "bad.yaml", check=code))


def test_the_demo_runs_offline_and_shows_the_papers_effect(here: Here) -> None:
    done = here(
        "eval",
        "--model",
        "demo:bn",
        "--model",
        "demo:ln",
        "--noise",
        "agn=0,2",
        "--json",
        "--limit",
        "500",
    )
    rows = json.loads(done.stdout)["rows"]
    accuracy = {(row["mode"], row["condition"]["name"], row["condition"]["level"]): row["accuracy"] for row in rows}
    assert 0.85 <= accuracy["bn", "clean", 0] <= 0.97
    assert accuracy["ln-batch", "clean", 0] >= 0.85
    for mode in ("ln-batch", "ln-voting", "dynbn-batch"):
        assert accuracy[mode, "agn", 2] > accuracy["bn", "agn", 2] + 0.1


@pytest.mark.parametrize("model", ["demo:bn", "demo:ln", "bn.pt"])
def test_inspect_tells_what_a_model_is(here: Here, model: str) -> None:
    facts = json.loads(here("inspect", model, "--json").stdout)
    assert facts["arch"] == "demo-net"
    assert facts["num_classes"] == 10
    assert facts["norm_layers"] == 4
    assert facts["norm"] == ("ln" if model == "demo:ln" else "bn")
    prefixes = ("ln-", "native") if model == "demo:ln" else ("bn", "dynbn", "native")
    assert facts["modes"] == [name for name in EVAL_MODES if name.startswith(prefixes)]
    assert "demo-net" in here("inspect", model).stdout


def test_inspect_runs_the_network_on_a_probe(here: Here, desk: Path) -> None:
    images = np.random.default_rng(0).random((3, 3, 16, 16), np.float32)
    np.save(desk / "probe.npy", images)
    here("inspect", "bn.pt", "--normalize", "half", "--probe", "probe.npy", "--logits", "logits.json")
    with torch.no_grad():
        expected = random_network()((torch.from_numpy(images) - 0.5) / 0.5)
    assert np.allclose(json.loads((desk / "logits.json").read_text()), expected.numpy(), atol=1e-5)
    np.save(desk / "bad.npy", images * 255)
    error_of(here("inspect", "bn.pt", "--probe", "bad.npy", "--logits", "x.json", check=3))


@pytest.mark.parametrize(
    "kind", ["modes", "noises", "ranges", "presets", "corruptions", "suites", "data", "architectures"]
)
def test_list_names_everything_at_any_width(here: Here, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    table = json.loads(here("list", kind, "--json").stdout)[kind]
    for row in table:
        assert all(row.values())
    for width in (60, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        text = here("list", kind).stdout
        assert max(map(len, text.splitlines())) <= width
        # Whole, in whatever way the lines are broken: every word is there, in its column's order.
        for row in table:
            assert next(iter(row.values())) in text
            assert set(" ".join(row.values()).split()) <= set(text.split())


COMMANDS = [
    *([name] for name in ("eval", "corrupt", "convert", "preview", "inspect", "list", "bench")),
    *(["bench", name] for name in ("corruptions", "norms")),
]


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_help_is_whole_on_narrow_terminals(
    here: Here, monkeypatch: pytest.MonkeyPatch, command: list[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = here(*command, "--help").stdout
    assert "…" not in text
    assert "<bool>" not in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("command", [[], ["eval"], ["inspect"], ["list"]])
def test_help_shows_examples_and_needs_no_torch(desk: Path, command: list[str]) -> None:
    (desk / "poison").mkdir(exist_ok=True)
    (desk / "poison" / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = lnbench(*command, "--help", cwd=desk, PYTHONPATH=str(desk / "poison"))
    assert "Usage" in done.stdout
    if command:
        assert f"lnbench {command[0]}" in done.stdout.partition("Examples")[2]


def test_the_version_names_torch_and_the_device(desk: Path) -> None:
    assert torch.__version__ in lnbench("--version", cwd=desk).stdout


def test_the_module_is_the_command(desk: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "robustbench_ln", "list", "ranges"], cwd=desk, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "rescale" in done.stdout


# ---- Bad input: code, three lines, no traceback, before anything is loaded -----------------------------------------

MODEL = ("eval", "--model", "no-such-model.pt")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*MODEL, "--modes", "bnn"), "bn"),
        ((*MODEL, "--noise", "agm"), "agn"),
        ((*MODEL, "--range", "clap"), "clip"),
        ((*MODEL, "--arch", "resnet21"), "resnet20"),
        ((*MODEL, "--sigma", "-0.5"), "-0.5"),
        ((*MODEL, "--sigma", "nan"), "nan"),
        ((*MODEL, "--sigma", "much"), "much"),
        ((*MODEL, "--sigma", "1_0"), "1_0"),
        ((*MODEL, "--preset", "paper-fig6", "--range", "clip"), "--range clip"),
        ((*MODEL, "--preset", "paper-fig6", "--sigma", "1"), "--sigma"),
        ((*MODEL, "--out", ""), "--out"),
        ((*MODEL, "--noise", "mbn=1.5"), "probability"),
        ((*MODEL, "--preset", "paper-fig7"), "paper-fig6"),
        ((*MODEL, "--limit", "0"), "--limit"),
        ((*MODEL, "--limit", "many"), "found: lnbench eval --model no-such-model.pt --limit many"),
        ((*MODEL, "--device", "gpu"), "--device"),
        (("eval", "--modell", "x"), "--model"),
        (("evalu",), "try: eval;"),
        (("bench", "corruption"), "try: corruptions;"),
        (("eval",), "try: lnbench eval --help"),
        (("eval", "--model"), "found: lnbench eval --model"),
        (("eval", "--model", "demo:bn", "--resize", "0"), "try: lnbench eval --help"),
        (("eval", "--model", "demo:bn", "--data", "bad"), "try: --data imagefolder:bad"),
        (("list", "modes", "extra"), "extra"),
        (("eval", "--model", "demo:bn", "--modes", "ln-batch"), "LocalNorm"),
        (("eval", "--model", "demo:bn", "--data", "cifra10"), "cifar10"),
        (("eval", "--model", "demo:xx"), "demo"),
        (("eval", "--model", "zoo:resnet"), "torchvision"),
        (("list", "moods"), "modes"),
        (("inspect", "demo:bn", "--probe", "x.npy"), "--logits"),
    ],
)
def test_usage_errors_exit_2_and_offer_a_way(
    here: Here, bad_files: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert says in error_of(here(*arguments, check=2))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("eval", "--modell", "x"), 2),
        (("corrupt", "--out", ""), 2),
        (("preview", "--image", "data.npz"), 3),
        (("inspect", "bn.pt", "--probe", "x.npy"), 2),
        (("list", "moods"), 2),
        (("bench", "corruption"), 2),
        (("convert", "demo:ln", "--out", "x.safetensors"), 3),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_every_command_leaves_with_its_code_and_three_lines(desk: Path, arguments: tuple[str, ...], code: int) -> None:
    error_of(lnbench(*arguments, cwd=desk, check=code))


@pytest.mark.parametrize("arguments", [("--debug", "list", "moods"), ("list", "moods", "--debug")])
def test_tracebacks_are_shown_on_request(here: Here, arguments: tuple[str, ...]) -> None:
    assert "Traceback" in here(*arguments, check=2).stderr
    assert "Traceback" not in here("list", "ranges").stderr


def test_what_the_numbers_give_reason_to_say_is_a_warning_like_any_other(here: Here) -> None:
    done = here("eval", "--model", "bn.pt", *QUICK, "--repeats", "2", "--no-predictions", "--json", "--out", "cautious")
    assert f"warning: {CAUTIOUS}\n" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_a_terminal_shows_a_warning_once(desk: Path) -> None:
    assert SCRIPT
    terminal, end = os.openpty()
    arguments = ["eval", "--model", "bn.pt", "--data", "npz:data.npz", "--noise", "agn=0", "--out", "terminal"]
    shown = b""
    with subprocess.Popen([SCRIPT, *arguments], cwd=desk, stdout=end, stderr=end):
        os.close(end)
        while True:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
    os.close(terminal)
    text = " ".join(shown.decode().split())
    assert text.count("preprocessing was found by trial") == 1


@pytest.fixture(scope="module")
def bad_files(desk: Path) -> Path:
    folder = desk / "bad"
    folder.mkdir()
    good = (desk / "bn.pt").read_bytes()
    (folder / "empty.pt").write_bytes(b"")
    (folder / "truncated.pt").write_bytes(good[: len(good) // 2])
    (folder / "page.pt").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    torch.save(nn.Linear(2, 2), folder / "module.pt")
    network = random_network()
    torch.save({"optimizer": torch.optim.SGD(network.parameters(), 0.1).state_dict()}, folder / "optimizer.pt")
    torch.save({f"{key}.strange": value for key, value in network.state_dict().items()}, folder / "strange.pt")
    torch.save(random_network(classes=4).state_dict(), folder / "classes.pt")
    (folder / "no-images").mkdir()
    return folder


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("empty.pt", "empty"),
        ("truncated.pt", ""),
        ("page.pt", "HTML"),
        ("pointer.pt", "LFS"),
        ("module.pt", "--trust"),
        ("optimizer.pt", "optimizer"),
        ("strange.pt", "--arch"),
        ("classes.pt", "4 logits"),
        ("missing.pt", "missing.pt"),
    ],
)
def test_bad_checkpoints_exit_3_and_name_the_cause(here: Here, bad_files: Path, file: str, says: str) -> None:
    assert says in error_of(here("eval", "--model", str(bad_files / file), *QUICK, check=3))


def test_bad_data_exits_3(here: Here, bad_files: Path) -> None:
    for data in (f"imagefolder:{bad_files / 'no-images'}", "imagefolder:missing", "npz:bn.pt"):
        error_of(here("eval", "--model", "demo:bn", "--data", data, check=3))


def test_unreadable_images_are_counted_named_and_left_out_on_request(here: Here, desk: Path) -> None:
    from PIL import Image

    folder = desk / "pictures"
    images, labels = toy_arrays(40)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / f"c{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"c{label}" / f"{i:03}.png")
    victims = sorted(folder.rglob("*.png"))[::5][:7]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:40])
    arguments = ("eval", "--model", "bn.pt", "--data", "imagefolder:pictures", "--noise", "agn=0", "--modes", "bn")
    error = error_of(here(*arguments, check=3))
    assert "7" in error
    assert sum(victim.name in error for victim in victims) == 5
    done = here(*arguments, "--on-bad-image", "skip", "--json")
    document = json.loads(done.stdout)
    assert document["data"]["n"] == 33
    assert any("7" in warning for warning in document["run"]["warnings"])


def test_a_folder_of_other_settings_exits_2_and_keeps_what_is_there(here: Here, desk: Path) -> None:
    arguments = ("eval", "--model", "bn.pt", *QUICK, "--out", "kept")
    here(*arguments)
    before = (desk / "kept" / "results.json").read_bytes()
    assert "seed" in error_of(here(*arguments, "--seed", "1", check=2))
    assert (desk / "kept" / "results.json").read_bytes() == before
    (desk / "file").write_text("")
    error_of(here(*arguments[:-1], "file", check=2))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_saves_and_says_how_to_go_on(desk: Path, number: signal.Signals, code: int) -> None:
    out = desk / f"interrupted-{code}"
    arguments = [
        "eval", "--model", "bn.pt", "--data", "npz:data.npz", "--noise", "agn=0:60:0.1", "--modes", "bn", "--normalize",
        "half", "--threads", "1", "--out", str(out),
    ]  # fmt: skip
    assert SCRIPT
    process = subprocess.Popen(
        [SCRIPT, *arguments], cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("rows/*.row"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stdout == ""
    assert "go on with: lnbench eval" in stderr
    assert "Traceback" not in stderr
    kept = len(list(out.glob("rows/*.row")))
    assert f"interrupted: {kept} of 602 rows are kept in {out}\n" in stderr
    assert len(json.loads((out / "results.json").read_text())["rows"]) == kept
    assert not list(out.rglob("*.tmp"))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_while_loading_says_that_nothing_was_evaluated(desk: Path) -> None:
    assert SCRIPT
    arguments = ["eval", "--model", "bn.pt", *QUICK, "--out", "never"]
    process = subprocess.Popen([SCRIPT, *arguments], cwd=desk, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert process.stderr.readline() == "loading ...\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == f"interrupted: nothing was done yet\ngo on with: lnbench {' '.join(arguments)}\n"
    assert not (desk / "never").exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
@pytest.mark.parametrize(
    "arguments",
    [("eval", "--model", "bn.pt", *QUICK), ("list", "noises")],
    ids=["eval", "list"],
)
def test_a_reader_that_leaves_is_no_error(desk: Path, arguments: tuple[str, ...]) -> None:
    assert SCRIPT
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([SCRIPT, *arguments], cwd=desk, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_names_from_files_are_shown_inert(here: Here, desk: Path) -> None:
    hostile = desk / "\x1b[31m[bold]evil\nname.pt"
    hostile.write_bytes((desk / "bn.pt").read_bytes())
    done = here("eval", "--model", hostile.name, *QUICK, "--out", "hostile")
    assert "\x1b[31m" not in done.stdout + done.stderr


# ---- The real thing -----------------------------------------------------------------------------------------------


def test_a_real_checkpoint_is_recognised_with_its_preprocessing(here: Here, shared: Path, cifar_test: Path) -> None:
    done = here(
        *("eval", "--model", str(shared / "checkpoints" / "resnet20-12fca82f.th")),
        *("--data", f"imagefolder:{cifar_test}", "--noise", "agn=0", "--modes", "bn", "--limit", "300", "--json"),
    )
    document = json.loads(done.stdout)
    assert document["models"][0]["arch"] == "resnet20"
    assert document["models"][0]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert abs(document["rows"][0]["accuracy"] - 0.81) < 0.07


def test_corruptions_are_evaluated_written_and_drawn(here: Here, desk: Path) -> None:
    done = here(
        *("eval", "--model", "bn.pt", "--data", "npz:data.npz", "--corruption", "fog,contrast", "--severity", "1,3"),
        *("--limit", "20", "--modes", "bn", "--out", "corrupted", "--json"),
    )
    rows = json.loads(done.stdout)["rows"]
    assert [(row["condition"]["name"], row["condition"]["level"]) for row in rows] == [
        ("clean", 0),
        ("fog", 1),
        ("fog", 3),
        ("contrast", 1),
        ("contrast", 3),
    ]
    assert all(row["condition"]["suite"] == "cifar10-c" for row in rows[1:])
    lnbench("corrupt", "--data", "npz:data.npz", "--corruption", "fog", "--out", "fog.npz", cwd=desk)
    with np.load(desk / "fog.npz") as archive:
        assert archive["fog/5"].shape == (60, 16, 16, 3)
    lnbench("preview", "--corruption", "fog,contrast", "--out", "sheet.png", cwd=desk)
    assert (desk / "sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("eval", "--model", "missing.pt", "--corruption", "glas_blur"), 2, "glass_blur"),
        (("eval", "--model", "missing.pt", "--corruption", "all", "--severity", "0:5"), 2, "1:5"),
        (("eval", "--model", "demo:bn", "--corruption", "all", "--suite", "bad.yaml"), 3, "line 4"),
        (("eval", "--model", "demo:bn", "--corruption", "frost", "--frost-textures", "."), 3, "frost1.png"),
        (("corrupt", "--corruption", "fog", "--out", "data.npz"), 3, "another --out"),
        (("corrupt", "--corruption", "fog", "--layout", "zip", "--out", "x"), 2, "npz"),
        (("corrupt", "--data", "npz:grey.npz", "--out", "x.npz"), 3, "RGB"),
        (("preview", "--image", "data.npz"), 3, "not an image"),
        (("preview", "--out", "sheet.bmp"), 2, ".png"),
        (("bench", "corruptions", "--repeats", "1"), 2, "3 or more"),
        (("bench", "corruptions", "--peer", "/no/such/python"), 5, "--peer"),
        (("bench", "norms", "--repeats", "2"), 2, "3 or more"),
        (("bench", "norms", "--network", "resnet18"), 2, "resnet20"),
        (("bench", "norms", "--norm", "ln,batchnorm"), 2, "layernorm"),
    ],
)
def test_what_is_wrong_with_corruptions_is_said_in_three_lines(
    here: Here, desk: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    (desk / "bad.yaml").write_text(
        "description: x\nsize: 32\ncorruptions:\n  soft: {kernel: blur.gaussian_blur, family: blur, sigmas: 1}\n"
    )
    np.savez(desk / "grey.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.zeros(4, np.int64))
    assert says in error_of(here(*arguments, check=code))


def test_the_benchmark_prints_its_rows_as_json(desk: Path) -> None:
    done = lnbench(
        "bench", "corruptions", "--corruption", "contrast,pixelate", "--size", "32", "--no-share", "--json", cwd=desk
    )
    document = json.loads(done.stdout)
    assert [row["corruption"] for row in document["rows"]] == ["contrast", "pixelate"]
    assert all(row["images_per_second"] > 0 and row["peer"] is None for row in document["rows"])
    assert document["geometric_means"][0]["corruptions"] == 2


def test_the_benchmark_of_norms_has_every_norm_and_every_mode(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(norms.NETWORKS, "demo-net", norms.Setting(16, 8, 2, 10))
    monkeypatch.setattr(timing, "_SHORTEST", 0)
    arguments = ("bench", "norms", "--network", "demo-net", "--repeats", "3")
    document = json.loads(here(*arguments, "--json").stdout)
    rows = {(row["pass"], row["norm"], row["mode"], row["images"]): row for row in document["rows"]}
    trained = {norm for which, norm, *_ in rows if which == "train"}
    assert trained == set(NORMS) - {"dynbn"}
    for n in (1, 8):
        modes = {mode for which, _, mode, images in rows if (which, images) == ("eval", n)}
        # The groups of ln-batch want several images.
        assert modes == {*EVAL_MODES, "bn-adapt:16"} - {"bn-adapt"} - ({"ln-batch"} if n == 1 else set())
    assert all(row["seconds"] > 0 for row in document["rows"])
    local, live = rows["eval", "ln", "ln-batch", 8], rows["eval", "bn", "dynbn-batch", 8]
    assert local["ratio_dynbn"] == pytest.approx(local["seconds"] / live["seconds"])
    assert local["ratio"] == pytest.approx(local["seconds"] / rows["eval", "bn", "bn", 8]["seconds"])
    step, plain = rows["train", "ln", None, 8], rows["train", "bn", None, 8]
    assert (step["ratio"], plain["ratio"]) == (pytest.approx(step["seconds"] / plain["seconds"]), 1)
    shown = here(*arguments, "--norm", "ln", "--no-all-cores").stdout
    assert "layernorm" not in shown
    assert len([line for line in shown.splitlines() if "training step" in line]) == 2
