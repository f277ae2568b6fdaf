"""`effprof rules`, and the document made from the same list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from effprof.advise.calibration import Trial, remember
from effprof.advise.registry import all_rules
from effprof.analysis.model import Gain
from effprof.cli import recommendations_doc
from effprof.cli.main import main

ROOT = Path(__file__).parents[3]


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main(["rules", "--json", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "effprof.rules/1"
    rules: list[dict[str, object]] = document["rules"]
    return rules


def test_all_rules_with_threshold_reason_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    rules = listed(capsys)
    assert {rule["id"] for rule in rules} == {rule.id for rule in all_rules()}
    for rule in rules:
        assert rule["sources"], rule["id"]
        assert all(limit["reason"] for limit in rule["thresholds"]), rule["id"]  # type: ignore[attr-defined]


def test_one_area_or_one_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert {rule["area"] for rule in listed(capsys, "input")} == {"input"}
    assert [rule["id"] for rule in listed(capsys, "in-workers")] == ["in-workers"]
    assert main(["rules", "in-workers"]) == 0
    out = capsys.readouterr().out
    assert "account.step.input_wait > 0.0500 share of step time: below it" in out
    assert main(["rules", "--markdown", "in-workers"]) == 0
    assert capsys.readouterr().out.startswith("### `in-workers`: ")


def test_calibration_is_this_machine_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EFFPROF_CALIBRATION", str(tmp_path / "trials.jsonl"))
    promised = Gain(low=0.05, likely=0.1, high=0.2, bound=0.3)
    for obtained, verdict in ((0.05, "confirmed"), (0.0, "no difference")):
        remember(Trial(rule="in-workers", predicted=promised, obtained=obtained, ci95=(0.0, 0.1), verdict=verdict))
    (rule,) = listed(capsys, "in-workers")
    assert rule["calibration"] == {"trials": 2, "confirmed": 1, "obtained_per_predicted": pytest.approx(0.25)}
    assert main(["rules", "in-workers"]) == 0
    assert "2 trials on this machine, 1 confirmed" in capsys.readouterr().out
    assert "on this machine, 1 confirmed" not in recommendations_doc.render()


def test_a_name_that_is_neither(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "nonsense"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "nonsense: neither an area nor a rule" in err
    assert len(err.strip().splitlines()) == 2


def test_the_document_is_what_the_rules_say() -> None:
    assert (ROOT / "docs" / "recommendations.md").read_text() == recommendations_doc.render(), (
        "run python -m effprof.cli.recommendations_doc > docs/recommendations.md"
    )
