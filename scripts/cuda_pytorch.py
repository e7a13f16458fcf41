#!/usr/bin/env python3
"""Times this crate beside PyTorch on CUDA, on one card and in one run.

    pip install torch
    scripts/cuda_pytorch.py [--bench BINARY]

It runs the bench `batch_norm` (cargo builds it, unless BINARY is given, for a card's machine without
Rust: `cargo bench --bench batch_norm --no-run` tells where it lies), which checks each case and
records its times on the GPU. Then it times PyTorch on the same shapes: eager with cuDNN, eager
without, and `torch.compile`; forward in training, inference and backward; f32, f16 and bf16 in both
layouts. Both take their tensors in turn from so many that no cache holds them, and time is the
device's own: PyTorch's kernels are captured in a CUDA graph, so that no launch waits for Python.

It prints a Markdown table with the medians in milliseconds, and ours in units of the fastest of
PyTorch's.
"""

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import torch
    import torch._dynamo
    import torch._functorch.config
    import torch.nn.functional as F
except ImportError as error:
    sys.exit(f"{error}: this script needs PyTorch; pip install torch")

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FORMATS = {"channels-first": torch.contiguous_format, "channels-last": torch.channels_last}
# Bytes that no cache holds, and the most sets of tensors that go round.
ROTATED, SETS_MAX = 128 << 20, 64
REPETITIONS = 10
# A graph cannot be captured on the default stream, nor what autograd would run on it.
STREAM = torch.cuda.Stream() if torch.cuda.is_available() else None
EPS, MOMENTUM = 1e-5, 0.1


def ours(binary):
    """The rows of the bench's record."""
    command = [binary, "--bench"] if binary else ["cargo", "bench", "--bench", "batch_norm"]
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, WGPU_BATCHNORM_RECORD=folder)
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
        (path,) = Path(folder).glob("*.csv")
        lines = path.read_text().splitlines()
    print(lines[0].removeprefix("# "))
    if "kind: hardware" not in lines[1] or torch.cuda.get_device_name() not in lines[0]:
        sys.exit("the bench ran on another adapter: see WGPU_ADAPTER_NAME")
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


class Case:
    """The tensors of a shape, in as many sets as go round."""

    def __init__(self, shape, layout, dtype):
        def tensor():
            values = torch.randn(shape, device="cuda", dtype=dtype)
            return values.contiguous(memory_format=FORMATS[layout])

        def vector(value):
            return torch.full((shape[1],), value, device="cuda")

        bytes_of_two = 2 * tensor().nbytes
        count = min(-(-ROTATED // bytes_of_two), SETS_MAX)
        self.xs = [tensor() for _ in range(count)]
        self.dys = [tensor() for _ in range(count)]
        self.weight, self.bias = vector(1.0), vector(0.0)
        self.mean, self.var = vector(0.0), vector(1.0)
        self.saved = [torch.ops.aten.native_batch_norm(
            x, self.weight, self.bias, self.mean, self.var, True, MOMENTUM, EPS)[1:] for x in self.xs]

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, True, MOMENTUM, EPS)

    def inference(self, x):
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, MOMENTUM, EPS)

    def operations(self, function):
        """What is done to each set: by name, a list of calls."""
        forward, inference = function(self.forward), function(self.inference)
        yield "forward", [lambda x=x: forward(x) for x in self.xs]
        yield "inference", [lambda x=x: inference(x) for x in self.xs]

    def eager_backward(self):
        # cuDNN's own backward pass is taken by autograd only: see `autograd_backward`.
        return [lambda x=x, dy=dy, s=s: torch.ops.aten.native_batch_norm_backward(
            dy, x, self.weight, self.mean, self.var, s[0], s[1], True, EPS, [True] * 3)
            for x, dy, s in zip(self.xs, self.dys, self.saved)]

    def autograd_backward(self, function):
        """The backward pass alone: the forward pass is done before, its graph is kept."""
        weight, bias = (v.clone().requires_grad_() for v in (self.weight, self.bias))
        def forward(x):
            return F.batch_norm(x, self.mean, self.var, weight, bias, True, MOMENTUM, EPS)
        forward, calls = function(forward), []
        for x, dy in zip(self.xs, self.dys):
            x = x.detach().requires_grad_()
            y = forward(x)
            calls.append(lambda x=x, y=y, dy=dy: torch.autograd.grad(
                y, (x, weight, bias), dy, retain_graph=True))
        return calls


def milliseconds(calls):
    """The median time of one call on the device."""
    for _ in range(2):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=STREAM):
        # All outputs are kept, so that each has memory of its own.
        outputs = [call() for call in calls]
    times = []
    for _ in range(REPETITIONS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / len(calls))
    del outputs
    return statistics.median(times)


def attempt(make_calls):
    """The same, or not a number where PyTorch refuses."""
    try:
        return milliseconds(make_calls())
    except RuntimeError as error:
        print(f"PyTorch: {error}", file=sys.stderr)
        return math.nan


def pytorch(shape, layout, dtype):
    """By operation: the times with cuDNN, without, and compiled."""
    case = Case(shape, layout, dtype)
    times = {"forward": [], "inference": [], "backward": []}
    def same(function):
        return function
    for cudnn in [True, False]:
        with torch.backends.cudnn.flags(enabled=cudnn):
            for name, calls in case.operations(same):
                times[name].append(attempt(lambda: calls))
            backward = (lambda: case.autograd_backward(same)) if cudnn else case.eager_backward
            times["backward"].append(attempt(backward))
    for name, calls in case.operations(torch.compile):
        times[name].append(attempt(lambda: calls))
    times["backward"].append(attempt(lambda: case.autograd_backward(torch.compile)))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", help="the bench's binary, built before")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device here")
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, "
          f"cuDNN {torch.backends.cudnn.version()}; medians in ms")
    # Else the compiled forward pass gives its buffers away, and its backward pass runs only once.
    torch._functorch.config.donated_buffer = False
    cases = {}
    for row in ours(arguments.bench):
        if row["fused"] == "none":
            shape = tuple(int(row[name]) for name in "nchw")
            key = (shape, row["layout"], row["dtype"])
            cases.setdefault(key, {})[row["operation"]] = float(row["gpu_ms"])
    print("| shape | layout | type | operation | ours | cuDNN | no cuDNN | compiled | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (shape, layout, dtype), found in cases.items():
        torch._dynamo.reset()
        with torch.cuda.stream(STREAM):
            theirs = pytorch(shape, layout, DTYPES[dtype])
        for operation, time in found.items():
            name = "×".join(map(str, shape))
            others = " | ".join(f"{other:.4f}" for other in theirs[operation])
            known = [other for other in theirs[operation] if not math.isnan(other)]
            ratio = time / min(known, default=math.nan)
            print(f"| {name} | {layout} | {dtype} | {operation} | {time:.4f} | {others} | {ratio:.2f} |")
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
