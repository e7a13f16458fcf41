#!/usr/bin/env python3
"""Shows that the tests can fail: breaks the shaders in the ways listed in tests/mutants.txt, one at a
time, and expects the GPU tests to fail each time.

    scripts/mutants.py [WORDS]

WORDS narrows the run to mutants whose line contains them. Fails if one survives. First all tests run
once; then most mutants fall to the first few, and one that survives takes all of them again.

Nothing is built anew for a mutant: the shaders' texts lie word for word in the test binary, and a
broken one of the same length takes the place of the right one in a copy.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Most mutants fall to one of these, the rest to all tests but the long ones, which catch nothing more.
FIRST = [
    "many split",
    "whole columns",
    "agree",
    "rounded",
    "padding",
    "shards",
    "slice",
    "every mode",
    "modes in every",
    "every f16",
]
ALL = ""
LONG = ["65,535", "128 MiB", "no memory"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="?", default="")
    words = parser.parse_args().words
    lines = (ROOT / "tests/mutants.txt").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#") and words in line]
    # All are read before the first is tried: whoever edits a shader meanwhile breaks none.
    mutants = [mutant(line) for line in lines]
    if not mutants:
        sys.exit(f"No mutant has {words!r}.")

    with tempfile.TemporaryDirectory() as folder:
        survived = survivors(lines, mutants, Path(folder) / "gpu")
    print(f"{len(mutants) - survived} caught, {survived} survived")
    sys.exit(survived > 0)


def survivors(lines, mutants, copy):
    """How many survive, each in its turn in a copy of the test binary."""
    program = built().read_bytes()
    started = time.monotonic()
    # A copy with a text that is broken in nothing: so copies run.
    text, _ = mutants[0]
    write_broken(copy, program, text, text)
    if caught_by(copy, [ALL], None) is not None:
        sys.exit("The tests fail without any mutation.")
    # A loop that a mutant makes run on and on fails by this limit.
    limit = 60 + 3 * (time.monotonic() - started)

    filters = FIRST + [ALL]
    survived = 0
    for line, (text, broken) in zip(lines, mutants):
        write_broken(copy, program, text, broken)
        caught = caught_by(copy, filters, limit)
        if caught is None:
            print(f"SURVIVED {line}", flush=True)
            survived += 1
            continue
        print(f"caught   {line}", flush=True)
        if caught != ALL:
            # The next line is often of the same kernel.
            filters.remove(caught)
            filters.insert(0, caught)
    return survived


def mutant(line):
    """A shader's text, and what becomes of it: the same number of bytes."""
    file, old, new = line.split("|", 2)
    old, new = (part.removeprefix(" ").removesuffix(" ").replace("\\n", "\n") for part in (old, new))
    text = (ROOT / f"shaders/{file.strip()}.wgsl").read_text()
    if old not in text:
        sys.exit(f"The text is not there: {line}")
    broken = text.replace(old, new, 1).encode()
    text = text.encode()
    while len(broken) > len(text):
        # What the head says matters to no compiler.
        head, broken = broken.split(b"\n", 1)
        if not head.startswith(b"//"):
            sys.exit(f"There is no room: {line}")
    return text, broken.ljust(len(text))


def built():
    """The binary of the GPU tests."""
    command = ["cargo", "test", "--quiet", "--test", "gpu", "--no-run", "--message-format=json"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    for message in map(json.loads, output.splitlines()):
        if message.get("executable") and message["target"]["name"] == "gpu":
            return Path(message["executable"])
    sys.exit("cargo built no GPU tests.")


def write_broken(copy, program, text, broken):
    """Writes the program with one text for another."""
    if text not in program:
        sys.exit(f"The test binary does not have this text:\n{text.decode()}")
    copy.write_bytes(program.replace(text, broken))
    copy.chmod(0o755)


def caught_by(binary, filters, limit):
    """The first filter with which a test fails; none if all pass."""
    environment = {"WGPU_BACKEND": "vulkan", **os.environ, "WGPU_BATCHNORM_CASES": "100"}
    skips = [argument for name in LONG for argument in ("--skip", name)]
    for words in filters:
        try:
            run = subprocess.run(
                [binary, words, *skips],
                cwd=ROOT,
                env=environment,
                timeout=limit,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except subprocess.TimeoutExpired:
            return words
        # A mutant must fail for what it computes.
        if b"create_shader_module" in run.stdout or run.returncode < 0:
            output = run.stdout.decode(errors="replace")
            sys.exit(f"Not valid WGSL, or a crash ({run.returncode}):\n{output}")
        if run.returncode != 0:
            return words
    return None


if __name__ == "__main__":
    main()
