"""`effprof recommend`, and findings inside `analyze` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from effprof.advise.calibration import Trial, remember
from effprof.analysis.model import Gain
from effprof.cli.main import main

STARVED = {"num_workers": 0, "host_cpus": 8}


@pytest.fixture
def starved(tmp_path: Path, hand_made: Any) -> Any:
    """A tenth of each step waits for a loader without workers, on eight processors."""
    return hand_made(tmp_path / "starved", "starved").record(config=STARVED).rank([hand_made.step()] * 60)


def recommended(path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    assert main(["recommend", "--json", str(path)]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_document_says_what_to_change(starved: Any, capsys: pytest.CaptureFixture[str]) -> None:
    document = recommended(starved.path, capsys)
    assert document["schema"] == "effprof.recommend/1"
    assert document["run"] == "starved"
    finding = next(each for each in document["findings"] if each["id"] == "in-workers")
    assert finding["changes"] == {"num_workers": 7, "persistent_workers": True}
    assert finding["gain"]["bound"] == pytest.approx(1 / 0.9 - 1, rel=0.01)
    evaluated = {each["id"] for each in document["findings"]} | set(document["silent"])
    assert not evaluated & {each["rule"] for each in document["not_evaluated"]}


def test_the_terminal_says_how_to_verify_and_what_to_record(starved: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(starved.path)]) == 0
    out = capsys.readouterr().out
    assert "what would change it (predicted, not verified yet)" in out
    assert "DataLoader(num_workers=7, persistent_workers=True)" in out
    assert f"verify: effprof verify {starved.path} --finding in-workers -- python train.py" in out
    assert "https://github.com/pytorch/kineto/pull/1284" in out
    assert "EfficiencyCallback(kernel_window=True)" in out


def test_markdown(starved: Any, tmp_path: Path) -> None:
    target = tmp_path / "found.md"
    assert main(["recommend", "--markdown", "-o", str(target), str(starved.path)]) == 0
    assert target.read_text().startswith("## starved\n")
    assert "in-workers" in target.read_text()


def test_analyze_and_report_hold_the_same_findings(starved: Any, capsys: pytest.CaptureFixture[str]) -> None:
    document = recommended(starved.path, capsys)
    assert main(["analyze", "--json", str(starved.path)]) == 0
    analysis = json.loads(capsys.readouterr().out)
    assert analysis["findings"] == document["findings"]
    assert analysis["not_evaluated"] == document["not_evaluated"]
    assert analysis["timeline"] is None
    assert main(["analyze", str(starved.path)]) == 0
    assert "--finding in-workers" in capsys.readouterr().out
    assert main(["report", str(starved.path)]) == 0
    assert "--finding in-workers" in (starved.path / "report.html").read_text()


def test_trials_of_this_machine_change_the_gain(
    starved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def likely() -> Any:
        return next(each for each in recommended(starved.path, capsys)["findings"] if each["id"] == "in-workers")

    before = likely()
    monkeypatch.setenv("EFFPROF_CALIBRATION", str(tmp_path / "trials.jsonl"))
    promised = Gain(low=0.05, likely=0.1, high=0.1, bound=0.11)
    remember(Trial(rule="in-workers", predicted=promised, obtained=0.0, ci95=(-0.01, 0.01), verdict="no difference"))
    after = likely()
    assert after["trials"] == 1
    assert after["gain"]["likely"] == pytest.approx(before["gain"]["likely"] * 2 / 3)
    assert main(["recommend", str(starved.path)]) == 0
    assert "gain shaped by 1 trial on this machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{run}/nowhere"], "no such file or directory"),
        (["{run}", "--json", "--markdown"], "exclude each other"),
        (["{run}", "--peak-tflops", "-1"], "not a peak"),
        (["{run}", "-o", "{run}/no/such/file"], "give a path that can be written"),
    ],
)
def test_refusals_are_two_lines(
    arguments: list[str], says: str, starved: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", *(each.format(run=starved.path) for each in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.strip().splitlines()) == 2


LOG = "step: {0}/20 | train loss: {1:.4f} | dt: 250.00ms | tok/sec: 4096.00\n"
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    **{"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 4, "vocab_size": 1024},
}


def test_another_tools_log_with_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, config, page = tmp_path / "train.log", tmp_path / "config.json", tmp_path / "page.html"
    log.write_text("".join(LOG.format(step, 9 - step / 10) for step in range(20)))
    config.write_text(json.dumps(LLAMA))
    facts = ["--model", str(config), "--device", "H100 SXM", "--seq", "512", "--devices", "1", "--global-batch", "2"]
    assert main(["recommend", "--json", str(log)]) == 0
    without = json.loads(capsys.readouterr().out)
    missing = {each["missing"]: each["record"] for each in without["not_evaluated"]}
    assert "--model, --device" in missing.pop("the MFU")
    assert set(missing.values()) == {
        "another tool's log does not say: `effprof run -- python train.py` or EfficiencyCallback record it"
    }
    assert main(["recommend", "--json", str(log), *facts]) == 0
    assert "the MFU" not in {each["missing"] for each in json.loads(capsys.readouterr().out)["not_evaluated"]}
    assert main(["report", str(log), *facts, "-o", str(page)]) == 0
    assert "by closed form alone" in page.read_text()
    assert main(["report", str(log), "--seq", "-1", "-o", str(page)]) == 2


def test_facts_of_a_log_are_refused_for_a_run(starved: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(starved.path), "--seq", "512"]) == 2
    assert "--seq: for other tools' logs" in capsys.readouterr().err
