"""Damages data files in many ways and reads them with the real readers: no bare traceback, no row silently changed.

    python tests/faults/fuzz.py --files 10000 --seed 0        # one to two minutes on one core
    python tests/faults/fuzz.py --first 4711 --files 1        # file 4711 of seed 0 alone

File n depends on (seed, n) only. It begins as a valid file (JSONL, CSV or TSV, plain or gzipped; our columns, ESCI's,
preference pairs, scores, a teacher's replies), is damaged by up to three operators (fuzz_damage.py), and is read with
no bad row allowed and with any number. Independent readers that share no code with the package (fuzz_oracle.py) decide
what is right. The verdict of a file is one of

    all rows       every row of the damaged file was read, each equal to the oracle's
    some skipped   the same, except for rows that are named by line; kept + skipped is the number of rows in the file
    refused        a ValueError or OSError that names the file (and, for a bad row, its first bad line)
    FAILURE        another exception, a wrong or a lost row, a good row refused, a wrong count, too much text printed,
                   or over 20 seconds

Failures are saved for reproduction, and the program ends with 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# A checkout runs without being installed.
sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from fuzz_checks import Hang, examine
from fuzz_damage import make
from fuzz_oracle import Wrong


def judge(seed: int, number: int, folder: Path, keep: Path | None) -> tuple[str, list[str], str]:
    """Make and examine one file. Returns (verdict, operators, what failed)."""
    sample, names, original = make(seed, number)
    path = folder / sample.name
    path.write_bytes(sample.data)
    try:
        verdict, problem = examine(sample, path, original), ""
    except Wrong as wrong:
        verdict, problem = "FAILURE", f"file {number} ({sample.kind}, {', '.join(names) or 'undamaged'}): {wrong}"
    if problem and keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"seed{seed}-{number}-{path.name}").write_bytes(sample.data)
        (keep / f"seed{seed}-{number}.txt").write_text(problem + "\n", encoding="utf-8", errors="backslashreplace")
    return verdict, names or ["(undamaged)"], problem


def run(files: int, seed: int, first: int = 0, keep: Path | None = None) -> tuple[dict[str, Counter], list[str]]:
    """Examine files first .. first + files - 1.

    Returns: (verdicts by operator, and under "all files"; descriptions of the failures).
    """
    table: dict[str, Counter] = {"all files": Counter()}
    failures: list[str] = []

    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(first, first + files):
                verdict, names, problem = judge(seed, number, Path(folder), keep)
                failures += [problem] if problem else []
                for name in ("all files", *names):
                    table.setdefault(name, Counter())[verdict] += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    return table, failures


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="how many files (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the files and their damage (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first file (default: 0)")
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path(tempfile.gettempdir()) / "taosr1-fuzz",
        help="folder for the files that failed",
    )
    args = parser.parse_args(argv)
    start = time.perf_counter()
    table, failures = run(args.files, args.seed, args.first, args.keep)
    verdicts = ["all rows", "some skipped", "refused, row", "refused, file", "no rows", "FAILURE"]
    print(f"{'operator':<26}" + "".join(f"{verdict:>15}" for verdict in verdicts))
    for name in sorted(table, key=lambda name: (name == "all files", name)):
        print(f"{name:<26}" + "".join(f"{table[name][verdict]:>15}" for verdict in verdicts))
    print(f"{args.files} files in {time.perf_counter() - start:.0f} s (seed {args.seed}): {len(failures)} failures")
    for problem in failures[:20]:
        print(problem)
    if failures:
        print(f"saved in {args.keep}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
