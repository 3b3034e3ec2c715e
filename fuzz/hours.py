#!/usr/bin/env python3
"""hours.py [--jobs N] [--slice SECONDS] [--for SECONDS] [--want SECONDS] [TARGET...]: fuzzes with libFuzzer and keeps account of the time.

Builds the targets of fuzz/libfuzzer (needs the nightly toolchain and cargo-fuzz), then gives each in turn a slice until it has the wanted CPU time (default: an
hour) or the time is over, and adds to fuzz/hours.tsv how much CPU time each has had, how many inputs it has run, the commit that was built last, and how many
findings there were. A finding sets the time of its target back to zero. What libFuzzer finds worth keeping stays in the user's cache directory
(VMI_FUZZ_CACHE). `--table` prints the account.
"""

import argparse
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ACCOUNT = HERE / "hours.tsv"
CACHE = pathlib.Path(os.environ.get("VMI_FUZZ_CACHE", pathlib.Path.home() / ".cache/vmi-fuzz"))
COLUMNS = ["target", "cpu_seconds", "runs", "commit", "findings"]


def targets():
    return sorted(path.stem for path in (HERE / "libfuzzer/fuzz_targets").glob("*.rs"))


def account():
    rows = {name: dict(zip(COLUMNS, [name, 0, 0, "", 0])) for name in targets()}
    if ACCOUNT.exists():
        for line in ACCOUNT.read_text().splitlines()[1:]:
            name, seconds, runs, commit, findings = line.split("\t")
            if name in rows:
                rows[name] = dict(zip(COLUMNS, [name, int(seconds), int(runs), commit, int(findings)]))
    return rows


def save(rows):
    lines = ["\t".join(COLUMNS)] + ["\t".join(str(row[column]) for column in COLUMNS) for row in rows.values()]
    temporary = ACCOUNT.with_suffix(".new")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(ACCOUNT)


def table(rows, want):
    for row in rows.values():
        print(f"{row['target']:22} {row['cpu_seconds']:6} s {row['runs']:12} inputs {row['findings']:3} findings  {row['commit']}")
    done = sum(row["cpu_seconds"] >= want for row in rows.values())
    print(f"{done} of {len(rows)} targets have had {want} seconds of CPU time")


def build():
    directory = CACHE / "target"
    command = ["cargo", "+nightly", "fuzz", "build", "-s", "none", "--fuzz-dir", str(HERE / "libfuzzer")]
    subprocess.run(command, cwd=HERE.parent, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(directory)})
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=10"], cwd=HERE, check=True, capture_output=True, text=True)
    # Copies, as the next build would replace what runs.
    programs = pathlib.Path(tempfile.mkdtemp(prefix="vmi-fuzz."))
    for name in targets():
        built = next(directory.glob(f"*/release/{name}"))
        shutil.copy2(built, programs / name)
    return programs, commit.stdout.strip()


def cpu_of(pid):
    """CPU time of a process that has ended and is not waited for yet: fields 14 and 15 of proc(5)'s stat."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fuzz(program, name, seconds):
    """One slice: CPU seconds, inputs, whether it ended well, and what it printed last."""
    own, found = CACHE / "corpus" / name, CACHE / "findings" / name
    own.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    command = [program, f"-max_total_time={seconds}", "-timeout=600", "-rss_limit_mb=3000", "-print_final_stats=1"]
    command += [f"-artifact_prefix={found}/", own, HERE / "corpus" / name]
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=HERE.parent)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        cpu = cpu_of(child.pid)
        child.wait()
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - 20000))
        text = output.read().decode(errors="replace")
    runs = re.findall(r"stat::number_of_executed_units: (\d+)", text)
    return cpu, int(runs[-1]) if runs else 0, child.returncode == 0, text[-2000:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--slice", type=int, default=300)
    parser.add_argument("--for", type=int, default=3600, dest="limit")
    parser.add_argument("--want", type=int, default=3600)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    rows = account()
    unknown = sorted(set(options.targets) - set(rows))
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}")
    if options.table:
        return table(rows, options.want)
    programs, commit = build()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    end, lock, busy, bad = time.monotonic() + options.limit, threading.Lock(), set(), set()

    def work():
        while (left := int(end - time.monotonic())) > 5:
            with lock:
                open_ones = [name for name in options.targets or rows if name not in busy | bad and rows[name]["cpu_seconds"] < options.want]
                if not open_ones:
                    return
                name = open_ones[0]
                busy.add(name)
            rest = max(10, options.want - rows[name]["cpu_seconds"] + 10)
            cpu, runs, good, text = fuzz(programs / name, name, min(options.slice, left, rest))
            with lock:
                busy.discard(name)
                row = rows[name]
                row["runs"], row["commit"] = row["runs"] + runs, commit
                row["cpu_seconds"] = row["cpu_seconds"] + int(cpu) if good else 0
                if not good:
                    row["findings"] += 1
                    bad.add(name)
                    print(f"{name}: a finding\n{text}", flush=True)
                save(rows)
                print(f"{name}: {row['cpu_seconds']} s, {row['runs']} inputs", flush=True)

    workers = [threading.Thread(target=work) for _ in range(options.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    shutil.rmtree(programs)
    table(rows, options.want)
    return 1 if bad else None


if __name__ == "__main__":
    sys.exit(main())
