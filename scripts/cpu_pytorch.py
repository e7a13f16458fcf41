#!/usr/bin/env python3
"""Times the CPU path beside PyTorch's CPU kernels, both in one run and with the same threads.

    pip install torch numpy
    scripts/cpu_pytorch.py [--threads N] [--dtype float32]

Every case is first checked: both must have the same results but for rounding. Then the two take
turns, a few repetitions each, so that whatever else the machine does meets both. It prints a table
with the medians in milliseconds, and ours in units of PyTorch's.

What is timed, on our side: forward, `statistics`, `update_running` and `normalize`; inference,
`normalize` by running statistics; backward, `backward` with all gradients. On PyTorch's side:
`batch_norm` in training, `batch_norm` in evaluation, `native_batch_norm_backward`. Neither keeps a
copy of x; both make their outputs anew, and free them outside the time taken.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    import numpy as np
    import torch
except ImportError as error:
    sys.exit(f"{error}: this script needs PyTorch; pip install torch numpy")

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [(32, 64, 56, 56), (32, 256, 14, 14), (32, 2048, 7, 7), (8, 64, 112, 112)]
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
OPERATIONS = ["forward", "inference", "backward"]
EPS = 1e-5
WARM_UP = 3


class PyTorch:
    """One case of PyTorch's, and its tensors, which ours reads from the folder."""

    def __init__(self, folder, shape, layout, dtype):
        random = torch.Generator().manual_seed(1)
        channels = shape[1]

        def tensor(mean):
            values = torch.randn(shape, generator=random) + mean
            return values.to(dtype).contiguous(memory_format=LAYOUTS[layout])

        def vector(mean):
            return torch.rand(channels, generator=random) * 0.5 + mean

        self.x, self.dy = tensor(0.5), tensor(0.0)
        self.gamma, self.beta = vector(1.0), vector(0.0)
        self.running_mean, self.running_var = vector(0.0), vector(1.0)
        for name in ["x", "dy"]:
            # As it lies in memory.
            values = getattr(self, name)
            if layout == "channels-last":
                values = values.permute(0, 2, 3, 1)
            assert values.is_contiguous()
            values.view(torch.uint8).numpy().tofile(folder / name)
        for name in ["gamma", "beta", "running_mean", "running_var"]:
            getattr(self, name).numpy().tofile(folder / name)
        self.mean, self.inv_std = torch.native_batch_norm(
            self.x, self.gamma, self.beta, None, None, True, 0.1, EPS
        )[1:]

    def forward(self):
        return torch.nn.functional.batch_norm(
            self.x, self.running_mean, self.running_var, self.gamma, self.beta, True, 0.1, EPS
        )

    def inference(self):
        return torch.nn.functional.batch_norm(
            self.x, self.running_mean, self.running_var, self.gamma, self.beta, False, 0.1, EPS
        )

    def backward(self):
        return torch.ops.aten.native_batch_norm_backward(
            self.dy,
            self.x,
            self.gamma,
            self.running_mean,
            self.running_var,
            self.mean,
            self.inv_std,
            True,
            EPS,
            [True, True, True],
        )[0]

    def time(self, operation, times):
        work = getattr(self, operation)
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            found = work()
            seconds.append(time.perf_counter() - start)
            del found
        return seconds


class Ours:
    def __init__(self, binary, folder, shape, layout, dtype, threads):
        if layout == "channels-last":
            shape = (shape[0], *shape[2:], shape[1])
        dtype = str(dtype).removeprefix("torch.")
        self.process = subprocess.Popen(
            [binary, folder, dtype, layout, ",".join(map(str, shape))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAYON_NUM_THREADS": str(threads)},
        )
        self.result = folder / "result"

    def time(self, operation, times):
        print(operation, times, file=self.process.stdin, flush=True)
        return [float(seconds) for seconds in self.process.stdout.readline().split()]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def check(name, found, expected):
    """Fails unless both are the same, but for PyTorch's roundings in the type of the tensors."""
    expected = expected.double()
    found = found.double()
    unit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
    allowed = unit[ARGUMENTS.dtype] * expected.abs().clamp(min=1)
    worst = ((found - expected).abs() / allowed).max().item()
    if not worst <= 1:
        sys.exit(f"{name}: the results differ, {worst:.1f} times what is allowed")


def measure(binary, shape, layout):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        theirs = PyTorch(folder, shape, layout, ARGUMENTS.dtype)
        ours = Ours(binary, folder, shape, layout, ARGUMENTS.dtype, ARGUMENTS.threads)
        try:
            for operation in OPERATIONS:
                name = "×".join(map(str, shape))
                expected = getattr(theirs, operation)()
                ours.time(operation, 1)
                found = torch.from_numpy(np.fromfile(ours.result, dtype=np.uint8))
                if layout == "channels-last":
                    expected = expected.permute(0, 2, 3, 1)
                found = found.view(ARGUMENTS.dtype).view(expected.shape)
                check(f"{name} {layout} {operation}", found, expected)
                del found, expected
                medians = turns(ours, theirs, operation)
                ratio = medians[0] / medians[1]
                times = " | ".join(f"{1e3 * seconds:.2f}" for seconds in medians)
                print(f"| {name} | {layout} | {operation} | {times} | {ratio:.2f} |", flush=True)
        finally:
            ours.close()


def turns(ours, theirs, operation):
    """Median seconds of both. What a turn begins with finds the other's values in the caches."""
    times = [[], []]
    for _ in range(ARGUMENTS.rounds):
        for side, found in zip([ours, theirs], times):
            found += side.time(operation, WARM_UP + ARGUMENTS.repetitions)[WARM_UP:]
    return [statistics.median(found) for found in times]


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def main():
    subprocess.run(
        ["cargo", "build", "--quiet", "--release", "--example", "cpu_pytorch"],
        cwd=ROOT,
        check=True,
    )
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    torch.set_num_threads(ARGUMENTS.threads)
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True)
    print(
        f"{processor()} ({torch.backends.cpu.get_cpu_capability()}), {ARGUMENTS.threads} threads, "
        f"{str(ARGUMENTS.dtype).removeprefix('torch.')}, PyTorch {torch.__version__}, "
        f"{' '.join(rustc.stdout.split()[:2])}; medians of "
        f"{ARGUMENTS.rounds * ARGUMENTS.repetitions}, in ms\n"
    )
    print("| shape | layout | operation | ours | PyTorch | ratio |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        for layout in LAYOUTS:
            measure(target / "release/examples/cpu_pytorch", shape, layout)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--dtype",
        type=lambda name: getattr(torch, name),
        default=torch.float32,
        help="float32, float16 or bfloat16",
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=20, help="of each side in a round")
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = arguments()
    torch.set_grad_enabled(False)
    main()
