"""Each family's parser on output that its tool printed elsewhere; broken, partial and localised output costs a value.

The recordings are other people's and lie beside the repository; without them these tests are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from effprof.hardware.probes import (
    amd,
    apple,
    ascend,
    cambricon,
    enflame,
    gaudi,
    hygon,
    iluvatar,
    intel_xpu,
    kunlun,
    metax,
    moore_threads,
    neuron,
    rocm_json,
    tpu,
)  # fmt: skip
from effprof.hardware.probes.tool import Sample

SAMPLES = Path(__file__).resolve().parents[4].parent / "shared" / "hardware" / "samples"
MIB = 1 << 20
GIB = 1 << 30
Parse = Callable[[str], Sequence[Sample]]

# file, parser, devices, index of one, its name, its bus address, its values
CASES: list[tuple[str, Parse, int, int, str, str | None, dict[str, float | None]]] = [
    ("mx-smi_2.1.12_c500.txt", metax.COLUMNS.samples, 2, 1, "MetaX C500", "0000:0f:00.0",
     {"power_w": 45, "power_limit_w": 350, "memory_used_bytes": 826 * MIB, "memory_total_bytes": 65536 * MIB,
      "utilization_percent": 0, "temperature_c": 36}),
    ("ixsmi_3.1.1_bi-v100.txt", iluvatar.COLUMNS.samples, 1, 0, "Iluvatar BI-V100", "0000:98:00.0",
     {"power_w": 40, "power_limit_w": 250, "memory_used_bytes": 257 * MIB, "memory_total_bytes": 32768 * MIB,
      "utilization_percent": 0, "temperature_c": 30, "sm_clock_mhz": 1500, "memory_clock_mhz": 1200}),
    ("cnmon_mlu370-x8.txt", cambricon.COLUMNS.samples, 2, 1, "MLU370-X8", "0000:3d:00.0",
     {"power_w": 106, "power_limit_w": 250, "memory_used_bytes": 0, "memory_total_bytes": 23374 * MIB,
      "utilization_percent": 0, "temperature_c": 39}),
    ("mthreads-gmi_2.3.2_s5000.txt", moore_threads.COLUMNS.samples, 2, 0, "MTT S5000", "0000:2a:00.0",
     {"memory_used_bytes": 66641 * MIB, "memory_total_bytes": 81920 * MIB, "utilization_percent": 0,
      "temperature_c": 52}),
    ("mthreads-gmi_1.12.2_s4000_iommu-off.txt", moore_threads.COLUMNS.samples, 1, 0, "MTT S4000", "0000:08:00.0",
     {"memory_used_bytes": None, "memory_total_bytes": None, "utilization_percent": 88, "temperature_c": 65}),
    ("efsmi_enflame-s60.txt", enflame.samples, 2, 1, "S60", "0000:09:00.0",
     {"power_w": 128, "power_limit_w": 300, "memory_used_bytes": 0, "memory_total_bytes": 42976 * MIB,
      "temperature_c": 46}),
    ("hl-smi_1.22.1_gaudi2.txt", gaudi.COLUMNS.samples, 8, 3, "HL-225", "0000:4d:00.0",
     {"power_w": 80, "power_limit_w": 600, "memory_used_bytes": 768 * MIB, "memory_total_bytes": 98304 * MIB,
      "utilization_percent": 0, "temperature_c": 24}),
    ("hl-smi_1.22.1_gaudi3_csv.txt", lambda text: gaudi.listed(text, gaudi.OLDER_QUERY), 2, 1, "HL-325L", None,
     {"power_w": 230, "power_limit_w": 850, "memory_used_bytes": 672 * MIB, "memory_total_bytes": 131072 * MIB,
      "utilization_percent": 0, "temperature_c": 39}),
    ("npu-smi_23.0.3_910b2c.txt", ascend.samples, 2, 0, "910B2C", "0000:5a:00.0",
     {"power_w": 89.9, "memory_used_bytes": 3317 * MIB, "memory_total_bytes": 65536 * MIB, "utilization_percent": 0,
      "temperature_c": 53}),
    ("npu-smi_26.0.rc2_910c-a3.txt", ascend.samples, 2, 1, "Ascend910", "0000:9f:00.0",
     {"power_w": None, "memory_used_bytes": 2874 * MIB, "memory_total_bytes": 65536 * MIB, "temperature_c": 34}),
    ("npu-smi_24.1.rc3.7_910c-a3.txt", ascend.samples, 2, 0, "Ascend910", "0000:9d:00.0",
     {"power_w": 178.8, "memory_used_bytes": 3397 * MIB}),
    ("npu-smi_25.5.1_310p3.txt", ascend.samples, 2, 1, "310P3", "0000:85:00.0",
     {"power_w": None, "memory_used_bytes": 1849 * MIB, "memory_total_bytes": 21525 * MIB, "temperature_c": 40}),
    ("npu-smi_25.5.1_310p3_hami-slice.txt", ascend.samples, 1, 0, "310P3", "0000:81:00.0",
     {"power_w": None, "memory_used_bytes": 0, "memory_total_bytes": 8192 * MIB}),
    ("npu-smi_24.1.rc2_910a.txt", ascend.samples, 8, 3, "xxx", "0000:01:00.0",
     {"power_w": 206.9, "memory_used_bytes": 0, "memory_total_bytes": 32768 * MIB}),
    ("npu-smi_6.0.rc1_910a.txt", ascend.samples, 8, 0, "910A", "0000:61:00.0",
     {"power_w": 67.2, "memory_used_bytes": 0, "memory_total_bytes": 32768 * MIB}),
    ("npu-smi_21.0.4_310.txt", ascend.samples, 4, 3, "310", "0000:8c:00.0",
     {"power_w": 12.8, "memory_used_bytes": 2867 * MIB, "memory_total_bytes": 8192 * MIB}),
    ("npu-smi_old_310.txt", ascend.samples, 4, 2, "310", "0000:dd:00.0",
     {"power_w": 12.8, "memory_used_bytes": 2703 * MIB, "temperature_c": 57}),
    ("npu-smi_23.0.7_910b3.txt", ascend.samples, 2, 1, "910B3", "0000:c2:00.0",
     {"power_w": 97.6, "memory_used_bytes": 3337 * MIB}),
    ("xpu_smi_kunlun-r300.txt", kunlun.table, 2, 1, "R300", "0000:56:00.0",
     {"memory_used_bytes": 0, "memory_total_bytes": 32768 * MIB, "utilization_percent": 0}),
    ("rocm-smi_mi100_rocm571.json", rocm_json.samples, 6, 0, "Arcturus GL-XL [Instinct MI100]", "0000:1e:00.0",
     {"power_w": 39, "power_limit_w": 290, "memory_used_bytes": 6782976, "memory_total_bytes": 34342961152,
      "utilization_percent": 0, "temperature_c": 34, "memory_temperature_c": 30, "sm_clock_mhz": 300,
      "memory_clock_mhz": 1200}),
    ("rocm-smi_mi100_rocm602.json", rocm_json.samples, 4, 0, "Arcturus GL-XL [Instinct MI100]", "0000:83:00.0",
     {"power_w": 36, "memory_used_bytes": 6750208, "temperature_c": 55, "memory_temperature_c": 53}),
    ("rocm-smi_rx6700xt_rocm612.json", rocm_json.samples, 1, 0, "Navi 22 [Radeon RX 6700/6700 XT / 6800M]",
     "0000:07:00.0", {"power_w": 6, "memory_used_bytes": 1572745216, "memory_total_bytes": 12868124672}),
    ("rocm-smi_rx7800xt_rocm624.json", rocm_json.samples, 1, 0, "Navi 32 [Radeon RX 7700 XT / 7800 XT]", None,
     {"power_w": 53, "utilization_percent": 100, "memory_used_bytes": 11615076352}),
    ("rocm-smi_vega20-ws_json.json", rocm_json.samples, 1, 0, "Radeon Instinct MI50 32GB", "0000:63:00.0",
     {"power_w": 26, "power_limit_w": 225, "sm_clock_mhz": 1725, "memory_clock_mhz": 1000}),
    ("amd-smi_monitor_mi300x.txt", amd.monitor, 8, 1, "AMD GPU", None,
     {"power_w": 143, "temperature_c": 40, "memory_temperature_c": 39, "utilization_percent": 13,
      "sm_clock_mhz": 358, "memory_clock_mhz": 1173}),
    ("rocm-smi_hygon-dtk24.04.3.json", hygon.listed, 1, 0, "K100_AI", None,
     {"power_w": 80, "temperature_c": 39, "memory_temperature_c": 44, "utilization_percent": 0,
      "memory_used_bytes": 2 * MIB, "memory_total_bytes": 65520 * MIB}),
    ("rocm-smi_hygon-dcu_table.txt", hygon.table, 4, 1, "DCU", None,
     {"power_w": 41, "power_limit_w": 280, "temperature_c": 30, "utilization_percent": 0}),
    ("xpu-smi_1.2.39_max1550_dump.txt", intel_xpu.dumped, 6, 1, "Intel GPU", None,
     {"power_w": 287.05, "sm_clock_mhz": 1600, "temperature_c": 38.5, "memory_temperature_c": 35,
      "utilization_percent": None}),
    ("xpu-smi_arc-a770_dump.txt", intel_xpu.dumped, 4, 2, "Intel GPU", None,
     {"memory_used_bytes": 49.21 * MIB, "utilization_percent": None}),
    ("neuron-monitor_trn1_idle.json", neuron.reported, 1, 0, "trn1", None,
     {"memory_total_bytes": 32 * GIB, "utilization_percent": None, "memory_used_bytes": None, "flops_per_s": None}),
    ("tpu-info_v6e.txt", tpu.samples, 4, 1, "TPU v6e", None,
     {"memory_used_bytes": 10.40 * GIB, "memory_total_bytes": 31.25 * GIB, "utilization_percent": 100,
      "tensorcore_utilization_percent": 14.81}),
    ("tpu-info_v4.txt", tpu.samples, 4, 3, "TPU v4", None,
     {"memory_used_bytes": 0, "memory_total_bytes": 31.75 * GIB, "utilization_percent": 0,
      "tensorcore_utilization_percent": None}),
    ("powermetrics_m1.txt", apple.samples, 1, 0, "Apple GPU", None,
     {"power_w": 0.153, "package_power_w": 1.473}),
]  # fmt: skip


def recorded(name: str) -> str:
    path = SAMPLES / name
    if not path.exists():
        pytest.skip(f"{path} is not there: other people's recordings are kept beside the repository")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "parse", "count", "index", "name", "bus", "values"), CASES, ids=[case[0] for case in CASES]
)
def test_recorded_output(
    file: str, parse: Parse, count: int, index: int, name: str, bus: str | None, values: dict[str, float | None]
) -> None:
    samples = parse(recorded(file))
    assert len(samples) == count
    sample = samples[index]
    assert (sample.name, sample.pci_bus_id) == (name, bus)
    assert dict(sample.values) | values == pytest.approx(dict(sample.values))
    assert len({(each.uuid, each.pci_bus_id, each.index) for each in samples}) == count


@pytest.mark.parametrize(("file", "parse"), [case[:2] for case in CASES], ids=[case[0] for case in CASES])
def test_output_cut_anywhere_is_a_value_less_and_no_error(file: str, parse: Parse) -> None:
    text = recorded(file)
    whole = {(each.index, name): value for each in parse(text) for name, value in each.values.items()}
    for end in range(0, len(text), max(1, len(text) // 60)):
        try:
            samples = parse(text[:end])
        except ValueError:  # what a probe takes for no sample; any other error would reach its user
            continue
        for sample in samples:
            for name, value in sample.values.items():
                # the last cell may be cut inside its number; the others are what they were, but in tables by column
                if value is not None and sample is not samples[-1] and not file.startswith(("tpu", "xpu-smi")):
                    assert value == whole[sample.index, name]


@pytest.mark.parametrize(("file", "parse"), [case[:2] for case in CASES], ids=[case[0] for case in CASES])
def test_lines_of_a_log_before_the_output_change_nothing(file: str, parse: Parse) -> None:
    text = recorded(file)
    if parse is neuron.reported:
        pytest.skip("a stream's line is the document")
    noise = "DrvMngGetConsoleLogLevel failed\n[INFO supervisor] won | manager election\nWarning: 3 | x\n"
    assert list(parse(noise + text)) == list(parse(text))


def test_reasons_tell_why_a_value_is_missing() -> None:
    (cut_out,) = ascend.samples(recorded("npu-smi_25.5.1_310p3_hami-slice.txt"))
    assert cut_out.reasons["power_w"] == "sliced"
    second_die = ascend.samples(recorded("npu-smi_26.0.rc2_910c-a3.txt"))[1]
    assert second_die.reasons["power_w"] == "not_supported"
    (wrong,) = moore_threads.COLUMNS.samples(recorded("mthreads-gmi_1.12.2_s4000_iommu-off.txt"))
    assert wrong.reasons["memory_used_bytes"] == "error"
    (idle,) = neuron.reported(recorded("neuron-monitor_trn1_idle.json"))
    assert idle.reasons["utilization_percent"] == "not_sampled_yet"


def test_a_localised_column_costs_no_other() -> None:
    text = recorded("npu-smi_23.0.3_910b2c.txt").replace("| OK            |", "| 正常          |")
    assert [each.values["power_w"] for each in ascend.samples(text)] == [89.9, 93.8]


def test_columns_of_another_release_are_found_by_name() -> None:
    text = recorded("mx-smi_2.1.12_c500.txt")
    moved = "\n".join(
        "|".join(["", *line.strip("|").split("|")[::-1], ""]) if line.startswith("|") and line.count("|") == 4 else line
        for line in text.splitlines()
    )
    assert moved != text
    assert [dict(each.values) for each in metax.COLUMNS.samples(moved)] == [
        dict(each.values) for each in metax.COLUMNS.samples(text)
    ]


def test_kunlun_rows_are_told_by_address_and_model() -> None:
    """Made after descriptions of `xpu_smi -m`: no recording is public."""
    row = (
        "0000:{bus}:00.0 1 {dev} 02K00Y 41 0 0 0 {power} 1450 1450 1450 1450 1450 1450 0 63 1024 98304 37 4.31 {model}"
    )
    text = "\n".join(
        [
            "some banner",
            row.format(bus="53", dev=0, power=86, model='"P800 OAM"') + " 0" * 10,
            row.format(bus="56", dev=1, power=31250, model="K200"),
            "0000:57:00.0 short",
        ]
    )
    first, second = kunlun.rows(text)
    assert (first.name, first.pci_bus_id, first.values["power_w"]) == ("P800 OAM", "0000:53:00.0", 86)
    assert (second.name, second.values["power_w"]) == ("K200", 31.25)  # milliwatts there
    assert first.values["memory_total_bytes"] == 98304 * MIB
    assert first.values["utilization_percent"] == 37


def test_intel_devices_are_joined_to_who_they_are() -> None:
    known = intel_xpu.discovered(recorded("xpu-smi_1.2.39_max1550_discovery.txt"))
    assert len(known) == 6
    sample = intel_xpu.dumped(recorded("xpu-smi_1.2.39_max1550_dump.txt"))[1]
    joined = intel_xpu.identified(sample, known["1"])
    assert joined.name == "Intel Data Center GPU Max 1550"
    assert joined.pci_bus_id == "0000:42:00.0"
    assert joined.values == sample.values


def test_a_temperature_of_zero_is_missing_rights() -> None:
    text = "Timestamp, DeviceId, GPU Core Temperature (Celsius Degree), GPU Energy Consumed (J)\n0:0:0, 0, 0.00, 12.5\n"
    (sample,) = intel_xpu.dumped(text)
    assert sample.values == {"temperature_c": None, "energy_j": 12.5}


def test_a_neuron_runtime_is_shared_out_to_its_devices() -> None:
    """Made after neuron-monitor's guide: a report under load."""
    core = {"constants": 1, "model_code": 2, "tensors": 4}
    report = {
        "neuron_runtime_data": [
            {
                "pid": 1,
                "report": {
                    "neuroncore_counters": {
                        "neuroncores_in_use": {
                            "2": {"neuroncore_utilization": 80.0, "flops": 5e12},
                            "3": {"neuroncore_utilization": 40.0, "flops": 1e12},
                        },
                        "error": "",
                    },
                    "memory_used": {
                        "neuron_runtime_used_bytes": {
                            "usage_breakdown": {"neuroncore_memory_usage": {"2": core, "3": core}}
                        }
                    },
                },
            }
        ],
        "instance_info": {"instance_type": ""},
        "neuron_hardware_info": {
            "neuron_device_type": "trainium",
            "neuron_device_count": 2,
            "neuron_device_memory_size": 100,
            "neuroncore_per_device_count": 2,
        },
    }
    idle, busy = neuron.reported(json.dumps(report))
    assert idle.values["utilization_percent"] is None
    assert dict(busy.values) == {
        "utilization_percent": 60.0, "flops_per_s": 6e12, "memory_used_bytes": 14.0, "memory_total_bytes": 100.0,
    }  # fmt: skip
    assert neuron.listed(recorded("neuron-ls-j_trn1.json")) == {"0": "0000:00:1e.0"}
    assert neuron.listed(recorded("neuron-ls-j_trn2.json")) == {}  # torn


def test_a_tpu_without_a_workload_has_chips_and_no_figures() -> None:
    text = recorded("tpu-info_v6e.txt")
    chips = tpu.samples(text[: text.index("TPU Runtime")])
    assert [each.name for each in chips] == ["TPU v6e"] * 4
    assert {reason for each in chips for reason in each.reasons.values()} == {"not_sampled_yet"}
