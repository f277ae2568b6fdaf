"""How long the command line takes to answer: the help pages and `--version`, median of several starts.

    python benchmarks/startup.py

Goals: `effprof --help` under 0.3 s, any command that needs no torch ready in under 0.5 s.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from common import summarise, write_result

COMMANDS = (["--help"], ["--version"], ["analyze", "--help"], ["compare", "--help"], ["flops", "--help"])


def time_command(arguments: list[str]) -> float:
    """Seconds from start to exit of one `effprof` process."""
    effprof = Path(sys.executable).with_name("effprof")
    start = time.perf_counter()
    subprocess.run([effprof, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to write the JSON (default: benchmarks/results)")
    options = parser.parse_args()
    figures = {}
    for arguments in COMMANDS:
        time_command(arguments)  # the first start reads the files from disk
        name = " ".join(["effprof", *arguments])
        figures[name] = summarise([time_command(arguments) for _ in range(options.repeats)])
        print(f"{name:26s} {figures[name]['median']:.3f} s", flush=True)
    print("written to", write_result("startup", {"seconds": figures}, options.out))


if __name__ == "__main__":
    main()
