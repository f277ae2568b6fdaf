"""Ceilings kept per machine: a busy moment never lowers one, a quiet one is not repeated, nobody has to keep any."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch

from effprof.hardware import ceiling
from effprof.hardware.ceiling import known_ceilings, measure_gemm
from effprof.hardware.ceiling_cache import KeptCeiling, better, cache_path, device_key, find, keep, load, new_entry
from effprof.hardware.identity import DeviceIdentity, core_count, identify_host
from effprof.hardware.peak import Peak, resolve_peak

HOST = identify_host()


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, on disk and in the process."""
    path = tmp_path / "cache" / "ceilings.json"
    monkeypatch.setenv("EFFPROF_CEILINGS", str(path))
    monkeypatch.setattr(ceiling, "_cache", {})
    return path


def entry(dtype: str = "fp32", rate: float = 1e12, *, is_provisional: bool = False) -> KeptCeiling:
    return new_entry(
        HOST, dtype, torch.get_num_threads(), flops_per_s=rate, shape=(8, 8, 8), layout="nt", repeats=5,
        measured_s=1.76e9, is_provisional=is_provisional,
    )  # fmt: skip


def test_what_is_kept_is_found_by_device_dtype_threads_and_torch(file: Path) -> None:
    for each in (entry(), entry("bf16", 2e12), entry(rate=3e12)):
        keep(each)
    assert {each.dtype: each.flops_per_s for each in load(HOST)} == {"fp32": 3e12, "bf16": 2e12}
    assert find(HOST, "fp32", torch.get_num_threads() + 1) is None
    assert load(DeviceIdentity("cpu", 0, "another processor")) == []
    text = json.loads(file.read_bytes())
    assert text["schema"] == "effprof.ceilings/1"
    text["ceilings"][0]["torch"] = "1.0"
    file.write_text(json.dumps(text))
    assert len(load(HOST)) == 1
    assert [each.name for each in file.parent.iterdir()] == ["ceilings.json"]


def test_a_broken_file_holds_nothing_and_is_written_anew(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("{")
    assert load(HOST) == []
    keep(entry())
    assert len(load(HOST)) == 1


def test_a_place_that_can_t_be_written_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFFPROF_CEILINGS", str(tmp_path / "file" / "ceilings.json"))
    keep(entry())
    assert load(HOST) == []


def test_the_place_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFPROF_CEILINGS", "off")
    assert cache_path() is None
    keep(entry())
    assert load(HOST) == []
    monkeypatch.delenv("EFFPROF_CEILINGS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_path() == Path("/somewhere/effprof/ceilings.json")


def test_the_higher_rate_stands_and_a_quiet_measurement_settles_it() -> None:
    low, high = entry(rate=1e12), entry(rate=2e12, is_provisional=True)
    assert better(high, low) is high
    settled = better(low, high)
    assert (settled.flops_per_s, settled.is_provisional) == (2e12, False)
    assert better(msgspec.structs.replace(low, is_provisional=True), high).is_provisional
    assert better(low, None) is low


def test_a_quiet_ceiling_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(entry(rate=5e15))
    monkeypatch.setattr(ceiling, "_search_gemm", pytest.fail)
    found = measure_gemm("cpu", "fp32")
    assert (found.flops_per_s, found.is_cached, found.seconds) == (5e15, True, 0.0)
    peak = resolve_peak(HOST, {"fp32": 1.0})
    assert isinstance(peak, Peak)
    assert peak.is_cached
    assert "on 2025-10-09" in peak.source


def test_a_provisional_ceiling_is_measured_again_and_never_lowered() -> None:
    keep(entry(rate=5e15, is_provisional=True))
    found = measure_gemm("cpu", "fp32", budget_s=0.1)
    assert (found.flops_per_s, found.is_cached) == (5e15, True)
    kept = find(HOST, "fp32", torch.get_num_threads())
    assert kept is not None
    assert kept.flops_per_s == 5e15
    assert kept.is_provisional  # a search this short settles nothing
    keep(entry(rate=1.0, is_provisional=True))
    monkey = measure_gemm("cpu", "fp32", budget_s=0.1, refresh=True)
    assert not monkey.is_cached
    assert (find(HOST, "fp32", torch.get_num_threads()) or entry()).flops_per_s == monkey.flops_per_s


def test_the_precision_beside_the_training_s_own_is_known_too() -> None:
    keep(entry("fp16", 7e11))
    keep(entry("fp32", 9e11))
    found = known_ceilings(HOST)
    assert found.keys() == {"fp16", "fp32", "bf16"}
    assert (found["fp16"], found["fp32"]) == (7e11, 9e11)
    assert find(HOST, "bf16", torch.get_num_threads()) is not None
    assert known_ceilings(DeviceIdentity("cuda", 0, "NVIDIA H100 80GB HBM3", compute_units=132)) == {}


def test_devices_of_one_name_are_told_apart() -> None:
    whole = DeviceIdentity("cuda", 0, "NVIDIA H100", compute_units=132)
    sliced = DeviceIdentity("cuda", 0, "NVIDIA H100", compute_units=60)
    assert device_key(whole) != device_key(sliced)
    assert HOST.name in device_key(HOST)


def test_reading_needs_no_torch(file: Path) -> None:
    keep(entry())
    code = (
        "import sys; from effprof.cli.main import main; main(['device', '--json']); assert 'torch' not in sys.modules"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    report = json.loads(answer.stdout)
    if report["kind"] == "measured_ceiling":  # a machine without an accelerator
        assert report["peak_tflops"]["fp32"] == 1.0
        assert str(file) in report["sources"][0]
        assert report["warnings"][0]["code"] == "not_measured"


def test_other_work_is_noticed() -> None:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(1 + core_count() // 4)]
    try:
        others = ceiling._OtherWork()
        time.sleep(0.5)
        share = others.share()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert share > ceiling._QUIET_SHARE


def test_own_work_is_not_other_work() -> None:
    others = ceiling._OtherWork()
    own_s = time.process_time()
    while time.process_time() - own_s < 0.3:
        pass
    total, idle, own = others._read()
    assert own - others._before[2] >= 0.28  # the clock ticks in hundredths
    assert 0.0 <= others.share() <= 1.0
    assert total > idle
