"""The catalogue's table holds together, and the lookup names one chip or refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from effprof.errors import EffprofError
from effprof.hardware.catalog import AmbiguousAccelerator, UnknownAccelerator, load, lookup
from effprof.hardware.names import parse_name

# What the runtime or a person says, and the row it must find. Bytes and units are what drivers report.
FOUND = [
    ("NVIDIA H100 80GB HBM3", {}, "H100 SXM5 80GB"),
    ("NVIDIA H100 80GB HBM3", {"memory_bytes": 85_027_979_264, "compute_units": 132}, "H100 SXM5 80GB"),
    ("NVIDIA H100 80GB HBM3", {"memory_bytes": int(79.6 * 2**30)}, "H100 SXM5 80GB"),
    ("h100 sxm", {}, "H100 SXM5 80GB"),
    ("H100-SXM5-80GB", {}, "H100 SXM5 80GB"),
    ("NVIDIA H100 NVL", {}, "H100 NVL"),
    ("NVIDIA H100 NVL", {"memory_bytes": 95_830 * 2**20}, "H100 NVL"),
    ("h100 nvl 94gb", {}, "H100 NVL"),
    ("H100", {"memory_bytes": 94e9}, "H100 NVL"),
    ("NVIDIA H100", {"memory_bytes": 97_871 * 2**20}, "H100 SXM5 96GB HBM2e (500W)"),
    ("NVIDIA H100 PCIe", {}, "H100 PCIe"),
    ("H100", {"memory_bytes": 80e9, "power_limit_w": 350}, "H100 PCIe"),
    ("H100", {"memory_bytes": 80e9, "compute_units": 132}, "H100 SXM5 80GB"),
    ("NVIDIA H200", {"memory_bytes": 143_771 * 2**20}, "H200 SXM 141GB"),
    ("NVIDIA H200 NVL", {}, "H200 NVL"),
    ("NVIDIA GH200 480GB", {"memory_bytes": 97_871 * 2**20}, "GH200 96GB"),
    ("NVIDIA GH200 144G HBM3e", {"memory_bytes": 146_831 * 2**20}, "GH200 144GB"),
    ("GH200 96GB", {}, "GH200 96GB"),
    ("NVIDIA B200", {"memory_bytes": 183_359 * 2**20, "compute_units": 148}, "B200 SXM"),
    ("NVIDIA GB200", {"memory_bytes": 189_471 * 2**20}, "GB200 (per GPU)"),
    ("NVIDIA B300 SXM6 AC", {"memory_bytes": 275_040 * 2**20}, "B300 SXM"),
    ("NVIDIA A100-SXM4-80GB", {"memory_bytes": 85_097_971_712}, "A100 SXM4 80GB"),
    ("NVIDIA A100 80GB PCIe", {}, "A100 PCIe 80GB"),
    ("A100", {"memory_bytes": 40e9, "power_limit_w": 400}, "A100 SXM4 40GB"),
    ("NVIDIA A800-SXM4-80GB", {}, "A800 SXM4 80GB"),
    ("NVIDIA H800", {}, "H800 SXM5"),
    ("NVIDIA H20", {}, "H20"),
    ("NVIDIA H20-3e", {}, "H20-3e 141GB"),
    ("NVIDIA L4", {"memory_bytes": 23_034 * 2**20}, "L4"),
    ("NVIDIA L40", {}, "L40"),
    ("NVIDIA L40S", {"memory_bytes": 46_068 * 2**20, "compute_units": 142}, "L40S"),
    ("l40s", {}, "L40S"),
    ("NVIDIA L20", {}, "L20"),
    ("NVIDIA A10", {}, "A10"),
    ("NVIDIA A10G", {"memory_bytes": 23_028 * 2**20}, "A10G"),
    ("Tesla T4", {"memory_bytes": 15_655_829_504, "compute_units": 40}, "T4"),
    ("Tesla V100-SXM2-32GB", {}, "V100 SXM2 32GB"),
    ("NVIDIA RTX 6000 Ada Generation", {}, "RTX 6000 Ada"),
    ("NVIDIA RTX A6000", {}, "RTX A6000"),
    ("A6000", {}, "RTX A6000"),
    ("Quadro RTX 6000", {}, "Quadro RTX 6000"),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", {}, "RTX PRO 6000 Blackwell Server"),
    ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", {}, "RTX PRO 6000 Blackwell Max-Q"),
    ("NVIDIA GeForce RTX 4090", {}, "GeForce RTX 4090"),
    ("rtx4090", {}, "GeForce RTX 4090"),
    ("4090", {}, "GeForce RTX 4090"),
    ("NVIDIA GeForce RTX 4090 D", {}, "GeForce RTX 4090 D"),
    # memory soldered on by a third party: the chip is the same, its count of SMs says so
    ("NVIDIA GeForce RTX 4090", {"memory_bytes": 48 * 2**30, "compute_units": 128}, "GeForce RTX 4090"),
    ("NVIDIA GeForce RTX 3080", {}, "GeForce RTX 3080 10GB"),
    ("NVIDIA GeForce RTX 3080", {"memory_bytes": 12_288 * 2**20, "compute_units": 70}, "GeForce RTX 3080 12GB"),
    ("AMD Instinct MI300X", {"memory_bytes": 196_288 * 2**20, "compute_units": 304}, "Instinct MI300X"),
    ("MI-300X", {}, "Instinct MI300X"),
    ("AMD Instinct MI300X OAM", {}, "Instinct MI300X"),
    ("AMD Instinct MI250X/MI250", {"compute_units": 110}, "Instinct MI250X (one GCD)"),
    ("AMD Instinct MI250X / MI250", {"compute_units": 104}, "Instinct MI250 (one GCD)"),
    ("MI250X", {}, "Instinct MI250X (one GCD)"),
    ("AMD Instinct MI60 / MI50", {"compute_units": 64}, "Instinct MI60"),
    ("AMD Instinct MI60 / MI50", {"compute_units": 60, "memory_bytes": 16 * 2**30}, "Instinct MI50 16GB"),
    ("AMD Radeon RX 7900 XTX", {"compute_units": 48}, "Radeon RX 7900 XTX"),
    ("Intel(R) Data Center GPU Max 1550", {"memory_bytes": 64 * 2**30}, "Data Center GPU Max 1550 (one tile)"),
    ("Intel(R) Data Center GPU Max 1550", {"compute_units": 128}, "Data Center GPU Max 1550 (card)"),
    ("Ascend910B2", {}, "Ascend 910B2"),
    ("Ascend910_9372", {}, "Ascend 910C (one die, 20 cores)"),
    ("TPU v5 lite", {}, "TPU v5e (chip)"),
    ("TPU v5", {}, "TPU v5p (chip)"),
    ("Apple M4 Max", {}, "M4 Max"),
    ("Apple M4 Max", {"memory_bytes": 36 * 2**30}, "M4 Max"),  # unified memory comes in many sizes
    ("NVIDIA GH200 480GB", {"memory_bytes": 144e9}, "GH200 144GB"),
    ("BI-V100", {}, "BI-V100 (Tiangai 100)"),
]

AMBIGUOUS = [
    ("H100", {}, {"H100 SXM5 80GB", "H100 PCIe", "H100 NVL"}, "memory size"),
    ("NVIDIA H100", {}, {"H100 SXM5 80GB", "H100 PCIe", "H100 NVL"}, "memory size"),
    ("H100 80GB", {}, {"H100 SXM5 80GB", "H100 PCIe"}, "compute units"),
    ("A100-80GB", {}, {"A100 SXM4 80GB", "A100 PCIe 80GB"}, "power limit"),
    ("GH200", {}, {"GH200 96GB", "GH200 144GB"}, "memory size"),
    ("V100", {}, {"V100 SXM2 16GB", "V100 SXM2 32GB", "V100 PCIe 16GB", "V100 PCIe 32GB"}, "memory size"),
    ("AMD Instinct MI250X/MI250", {}, {"Instinct MI250 (one GCD)", "Instinct MI250X (one GCD)"}, "compute units"),
    ("Orin", {}, {"Jetson AGX Orin 64GB"}, "memory size"),
]

UNKNOWN = [
    ("NVIDIA GeForce RTX 4090 Laptop GPU", {}),
    ("NVIDIA GeForce RTX 3080 Laptop GPU", {"memory_bytes": 16 * 2**30, "compute_units": 48}),
    ("NVIDIA GeForce RTX 2080 with Max-Q Design", {}),
    ("NVIDIA H100 PCIe", {"memory_bytes": 94e9}),
    ("NVIDIA H100 80GB HBM3", {"compute_units": 66}),
    ("NVIDIA GeForce RTX 4090", {"memory_bytes": 48e9}),
    ("NVIDIA", {}),
    ("80GB", {}),
    ("HBM3", {}),
    ("PCIe", {}),
    ("", {}),
    ("Warp Core 9000", {}),
    ("910B", {}),
]


@pytest.mark.parametrize(("name", "facts", "row"), FOUND)
def test_lookup_names_the_one_chip(name: str, facts: dict[str, float], row: str) -> None:
    assert lookup(name, **facts).name == row  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "facts", "candidates", "decider"), AMBIGUOUS)
def test_ambiguous_names_list_candidates_and_what_decides(
    name: str, facts: dict[str, float], candidates: set[str], decider: str
) -> None:
    with pytest.raises(AmbiguousAccelerator) as caught:
        lookup(name, **facts)  # type: ignore[arg-type]
    assert set(caught.value.candidates) == candidates
    assert decider in caught.value.hint
    assert caught.value.exit_code == 2
    assert all(candidate in caught.value.message for candidate in candidates)


@pytest.mark.parametrize(("name", "facts"), UNKNOWN)
def test_unknown_names_are_refused_and_the_remedy_named(name: str, facts: dict[str, float]) -> None:
    with pytest.raises(UnknownAccelerator) as caught:
        lookup(name, **facts)  # type: ignore[arg-type]
    assert "--peak-tflops" in str(caught.value)
    assert "peak_tflops=" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert caught.value.exit_code == 2


def test_unknown_names_come_with_the_nearest_candidates() -> None:
    with pytest.raises(UnknownAccelerator) as caught:
        lookup("910B")
    assert {"Ascend 910B1", "Ascend 910B2", "Ascend 910B3"} <= set(caught.value.candidates)
    with pytest.raises(UnknownAccelerator) as caught:
        lookup("mi300")
    assert "Instinct MI300X" in caught.value.candidates


def test_every_row_answers_to_its_own_name_and_to_what_its_runtime_reports() -> None:
    for row in load():
        assert lookup(row.name, vendor=row.vendor) is row
        facts = {"memory_bytes": row.memory_bytes, "compute_units": row.compute_units, "power_limit_w": row.tdp_w}
        for pattern in row.patterns:
            assert lookup(pattern, vendor=row.vendor, **facts) is row, pattern
            if row.memory_bytes:  # as drivers report it: GiB under the name of GB, less a reserve
                facts["memory_bytes"] = int(row.memory_bytes * 1.0689)
                assert lookup(pattern, vendor=row.vendor, **facts) is row, pattern


def test_a_mig_slice_never_gets_the_whole_chips_peak() -> None:
    name = "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    with pytest.raises(UnknownAccelerator, match="slice"):
        lookup("NVIDIA H100 NVL MIG 1g.12gb")  # no listing of this board's slices is known
    with pytest.raises(UnknownAccelerator, match="slice"):
        lookup(name, compute_units=132)  # that is the whole chip: not a slice's count
    part = lookup(name, compute_units=60, memory_bytes=40 * 2**30)
    whole = lookup("NVIDIA H100 80GB HBM3")
    assert part.peak_tflops["bf16"] == pytest.approx(989.4 * 60 / 132)
    assert part.memory_bandwidth_bytes_per_s == pytest.approx(3350e9 / 2)
    assert part.memory_bytes == 40 * 2**30
    assert "60 of 132" in part.name
    assert part.basis == "scaled"
    assert whole.peak_tflops["bf16"] == 989.4  # the row itself is untouched


def test_an_amd_partition_is_scaled() -> None:
    part = lookup("AMD Instinct MI300X", compute_units=38, memory_bytes=24e9)
    assert part.peak_tflops["bf16"] == pytest.approx(1307.4 / 8)
    assert "1/8" in part.name


def test_the_vendor_restricts_the_search() -> None:
    with pytest.raises(UnknownAccelerator):
        lookup("MI300X", vendor="NVIDIA")
    with pytest.raises(UnknownAccelerator):
        lookup("NVIDIA MI300X")


@pytest.mark.parametrize(
    ("text", "words", "memory_gb"),
    [
        ("NVIDIA A100-SXM4-80GB", ("a100", "sxm", "80gb"), 80.0),
        ("Intel(R) Arc(TM) A770 Graphics", ("arc", "a770"), None),
        ("NVIDIA GH200 144G HBM3e", ("gh200", "144gb", "hbm3e"), 144.0),
        ("H100SXM5", ("h100", "sxm"), None),
        ("RTX4090", ("rtx", "4090"), None),
        ("MI-300X", ("mi300x",), None),
    ],
)
def test_names_come_apart(text: str, words: tuple[str, ...], memory_gb: float | None) -> None:
    name = parse_name(text)
    assert name.words == words
    assert name.memory_gb == memory_gb


def test_rows_are_complete_and_distinct() -> None:
    rows = load()
    assert len(rows) > 150
    assert len({(row.vendor, row.name) for row in rows}) == len(rows)
    for row in rows:
        assert row.source.startswith("https://"), row.name
        assert row.basis in {"datasheet", "derived", "third party", "announced"}, row.name
        assert all(rate > 0 for rate in row.peak_tflops.values()), row.name
        assert row.memory_bytes, row.name


# Ratios that the tensor cores of a family have, with the printed rounding. A sparse figure that was not halved, a
# figure in the wrong column or one of another chip breaks them.
LADDERS = {
    ("7.0", "7.5"): {("fp16", "fp64_tensor"): None},
    ("8.0",): {("bf16", "fp16"): 1, ("bf16", "tf32"): 2, ("int8", "bf16"): 2, ("fp32", "fp64"): 2},
    ("9.0",): {("bf16", "fp16"): 1, ("bf16", "tf32"): 2, ("fp8", "bf16"): 2, ("int8", "fp8"): 1},
    ("10.0",): {("bf16", "tf32"): 2, ("fp8", "bf16"): 2, ("int8", "fp8"): 1, ("fp4", "fp8"): 2},
    ("10.3",): {("bf16", "tf32"): 2, ("fp8", "bf16"): 2, ("fp4", "fp8"): 3},
}
GEFORCE = {("bf16", "fp32"): 2, ("tf32", "fp32"): 1, ("fp8", "bf16"): 2, ("int8", "bf16"): 4, ("fp4", "fp8"): 4}
WORKSTATION = {("bf16", "fp32"): 4, ("tf32", "fp32"): 2, ("fp8", "bf16"): 2, ("int8", "bf16"): 2, ("fp4", "fp8"): 2}


def test_nvidia_peaks_keep_the_ratios_of_their_family() -> None:
    checked = 0
    for row in (row for row in load() if row.vendor == "NVIDIA"):
        ratios: dict[tuple[str, str], float | None] = {}
        for capabilities, ladder in LADDERS.items():
            if row.compute_capability in capabilities:
                ratios |= ladder
        if row.compute_capability in {"8.6", "8.9", "12.0"}:
            # GeForce, and the boards sold at GeForce's tensor rate
            ratios = dict(
                GEFORCE if row.name.startswith("GeForce") or row.name in {"A10G", "L40", "L20"} else WORKSTATION
            )
            if not row.name.startswith("GeForce"):
                ratios[("int8", "bf16")] = 2
        for (upper, lower), expected in ratios.items():
            if expected and upper in row.peak_tflops and lower in row.peak_tflops:
                ratio = row.peak_tflops[upper] / row.peak_tflops[lower]
                assert ratio == pytest.approx(expected, rel=0.045), f"{row.name}: {upper}/{lower}"
                checked += 1
    assert checked > 200


def test_nvidia_peaks_follow_from_sm_count_and_a_possible_clock() -> None:
    """Tensor FLOP per SM and clock is fixed by the architecture, so the peak implies a clock: it must be a real one."""
    per_sm = {"7.0": 1024, "8.0": 2048, "9.0": 4096, "10.0": 8192}
    for row in (row for row in load() if row.vendor == "NVIDIA" and row.compute_capability in per_sm):
        if row.compute_units and not row.name.startswith(("H20-", "H20")):  # the H20's tensor rate is capped
            mhz = row.peak_tflops["fp16"] * 1e6 / row.compute_units / per_sm[row.compute_capability]
            assert 1300 < mhz < 2100, f"{row.name}: {mhz:.0f} MHz"


def test_amd_matrix_rates_follow_from_units_and_clock() -> None:
    per_unit = {"gfx90a": 1024, "gfx942": 2048, "gfx950": 4096}
    for row in (row for row in load() if row.compute_capability in per_unit):
        assert row.compute_units
        mhz = row.peak_tflops["fp16"] * 1e6 / row.compute_units / per_unit[row.compute_capability]
        assert 1400 < mhz < 2500, f"{row.name}: {mhz:.0f} MHz"
        if row.compute_capability in {"gfx90a", "gfx950"}:
            assert "tf32" not in row.peak_tflops, "CDNA2 and CDNA4 have no tf32"


def test_no_bf16_where_the_hardware_has_none() -> None:
    for row in load():
        if row.compute_capability in {"6.0", "7.0", "7.5", "gfx906"}:
            assert "bf16" not in row.peak_tflops, row.name


MEASURED = Path(__file__).resolve().parents[3].parent / "shared" / "hardware" / "achievable_matmul.csv"


@pytest.mark.skipif(not MEASURED.exists(), reason="the public matmul measurements are not beside this checkout")
def test_no_published_measurement_exceeds_a_peak() -> None:
    """Only GeForce boards may: they boost above the reference clock that their peak is defined at, by up to a sixth."""
    compared = 0
    with MEASURED.open(newline="") as file:
        for line in csv.DictReader(file):
            if (line["op"], line["unit"], line["n_devices"]) != ("gemm", "TFLOP/s", "1"):
                continue
            try:
                row = lookup(line["device"], vendor=line["vendor"])
            except EffprofError:
                continue  # a device that the catalogue does not have, or a name of several
            peak = row.peak_tflops.get("fp8" if line["dtype"].startswith("fp8") else line["dtype"])
            # one fp16 figure of a 4060 Ti is a third above the bf16 figure of the same run: not a fp32-accumulate rate
            if peak is None or (row.name, line["dtype"]) == ("GeForce RTX 4060 Ti 16GB", "fp16"):
                continue
            allowed = 1.17 if row.name.startswith("GeForce") else 1.0
            assert float(line["measured"]) <= allowed * peak, (
                f"{row.name} {line['dtype']}: {line['measured']} of {peak}"
            )
            compared += 1
    assert compared > 150
