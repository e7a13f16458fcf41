#!/usr/bin/env python3
"""Times this crate beside PyTorch on CUDA, on one card and in one run.

    pip install torch numpy
    scripts/cuda_pytorch.py [--bench BINARY] [--record FOLDER] [--only WORD]

It runs the bench `batch_norm` (cargo builds it, unless BINARY is given, for a card's machine without
Rust: `cargo bench --bench batch_norm --no-run` tells where it lies), which checks each case and
records its times on the GPU; in FOLDER, if given. Then it times PyTorch on the same shapes, or on
those with WORD in their name, as `channels-last/f16/32x64x56x56` (always N×C×H×W): eager with cuDNN,
eager without, and `torch.compile`; forward in training, inference and backward; f32, f16 and bf16 in
both layouts. Both take their tensors in turn from so many that few caches hold them (of less than
1 MiB, from 64 sets), and time is the device's own: PyTorch's kernels are captured in a CUDA graph,
so that no launch waits for Python.

It prints Markdown tables: the medians in milliseconds, and ours in units of the fastest of
PyTorch's; then how often ours is as fast as that.
"""

import argparse
import csv
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# All cores compile a case each: none needs helpers of its own.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
try:
    import torch
    import torch._dynamo
    import torch._functorch.config
    import torch._inductor.config
    import torch.nn.functional as F
except ImportError as error:
    sys.exit(f"{error}: this script needs PyTorch; pip install torch numpy")

# Else the compiled forward pass gives its buffers away, and its backward pass runs only once.
torch._functorch.config.donated_buffer = False
# Of a kernel's variants the fastest is found anew where it is timed: what a process finds while
# others use the card is not kept.
torch._inductor.config.autotune_local_cache = False

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FORMATS = {"channels-first": torch.contiguous_format, "channels-last": torch.channels_last}
# The bench's shapes that are not ResNet-50's.
OTHERS = [(64, 64, 128, 128), (2, 8, 4, 4), (32, 123, 7, 7)]
# Bytes that few caches hold, and the most sets of tensors that go round.
ROTATED, SETS_MAX = 128 << 20, 64
REPETITIONS = 10
# A graph cannot be captured on the default stream, nor what autograd would run on it.
STREAM = torch.cuda.Stream() if torch.cuda.is_available() else None
EPS, MOMENTUM = 1e-5, 0.1


def ours(binary, record):
    """Our times: by a case's name, then by operation."""
    command = [binary, "--bench"] if binary else ["cargo", "bench", "--bench", "batch_norm"]
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, WGPU_BATCHNORM_RECORD=folder)
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
        (path,) = Path(folder).glob("*.csv")
        lines = path.read_text().splitlines()
        print(lines[0].removeprefix("# "))
        if "kind: hardware" not in lines[1] or torch.cuda.get_device_name() not in lines[0]:
            sys.exit("the bench ran on another adapter: see WGPU_ADAPTER_NAME")
        if record:
            os.makedirs(record, exist_ok=True)
            shutil.copy(path, record)
    times = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        if row["fused"] == "none":
            name = "{layout}/{dtype}/{n}x{c}x{h}x{w}".format(**row)
            times.setdefault(name, {})[row["operation"]] = float(row["gpu_ms"])
    return times


def parts(name):
    layout, dtype, shape = name.split("/")
    return layout, dtype, tuple(map(int, shape.split("x")))


class Case:
    """The tensors of a case, in as many sets as go round."""

    def __init__(self, name, sets_max=SETS_MAX):
        layout, dtype, shape = parts(name)
        def tensor():
            values = torch.randn(shape, device="cuda", dtype=DTYPES[dtype])
            return values.contiguous(memory_format=FORMATS[layout])
        def vector(value):
            return torch.full((shape[1],), value, device="cuda")
        count = min(-(-ROTATED // (2 * tensor().nbytes)), sets_max)
        self.xs = [tensor() for _ in range(count)]
        self.dys = [tensor() for _ in range(count)]
        self.weight, self.bias = vector(1.0), vector(0.0)
        self.mean, self.var = vector(0.0), vector(1.0)

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, True, MOMENTUM, EPS)

    def inference(self, x):
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, MOMENTUM, EPS)

    def calls(self, function):
        """By operation: what gives a list of calls, one for each set."""
        forward, inference = function(self.forward), function(self.inference)
        return {
            "forward": lambda: [lambda x=x: forward(x) for x in self.xs],
            "inference": lambda: [lambda x=x: inference(x) for x in self.xs],
            "backward": lambda: self.autograd_backward(function),
        }

    def eager_backward(self):
        # cuDNN's own backward pass is taken by autograd only: see `autograd_backward`.
        saved = [torch.ops.aten.native_batch_norm(
            x, self.weight, self.bias, self.mean, self.var, True, MOMENTUM, EPS)[1:] for x in self.xs]
        return [lambda x=x, dy=dy, s=s: torch.ops.aten.native_batch_norm_backward(
            dy, x, self.weight, self.mean, self.var, s[0], s[1], True, EPS, [True] * 3)
            for x, dy, s in zip(self.xs, self.dys, saved)]

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


def compile_some(names):
    """Compiles these cases for Inductor's cache on the disk."""
    for name in names:
        try:
            torch._dynamo.reset()
            with torch.cuda.stream(STREAM):
                for make_calls in Case(name, sets_max=1).calls(torch.compile).values():
                    for call in make_calls():
                        call()
        except Exception as error:
            print(f"PyTorch, {name}, compiled ahead: {error}", file=sys.stderr)
        torch.cuda.empty_cache()


def compile_all(names):
    """The same on all cores: one after another, that takes longer than all else here.

    Each process runs this script, not a worker of Python's pools: the cache's keys depend on how
    modules are imported.
    """
    count = min(os.cpu_count(), len(names))
    commands = [[sys.executable, __file__, "--compile", *names[first::count]] for first in range(count)]
    processes = [subprocess.Popen(command) for command in commands]
    # Another case, so that this process loads its compiler meanwhile.
    compile_some(["channels-first/f32/2x2x2x2"])
    for process in processes:
        if process.wait() != 0:
            print(f"PyTorch: a process that compiles ended with {process.returncode}", file=sys.stderr)


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


def pytorch(name):
    """By operation: the times with cuDNN, without, and compiled; not a number where PyTorch fails."""
    times = {"forward": [], "inference": [], "backward": []}
    def add(kind, calls):
        for operation, make_calls in calls.items():
            try:
                times[operation].append(milliseconds(make_calls()))
            except Exception as error:
                print(f"PyTorch, {name}, {operation}, {kind}: {error}", file=sys.stderr)
                times[operation].append(math.nan)
    case = Case(name)
    eager = case.calls(lambda function: function)
    with torch.backends.cudnn.flags(enabled=True):
        add("with cuDNN", eager)
    with torch.backends.cudnn.flags(enabled=False):
        add("without cuDNN", eager | {"backward": case.eager_backward})
    add("compiled", case.calls(torch.compile))
    return times


def summarize(ratios):
    """In how many cases ours is as fast, by type: over ResNet-50's shapes, and over all."""
    print("\n| type | shapes | cases | ours as fast or faster | median ratio |")
    print("|---|---|---|---|---|")
    for dtype in DTYPES:
        for shapes, left_out in [("ResNet-50", OTHERS), ("all", [])]:
            found = [ratio for name, ratio in ratios if not math.isnan(ratio)
                     and parts(name)[1] == dtype and parts(name)[2] not in left_out]
            if found:
                fast = sum(ratio <= 1 for ratio in found)
                print(f"| {dtype} | {shapes} | {len(found)} | {fast} | {statistics.median(found):.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", help="the bench's binary, built before")
    parser.add_argument("--record", help="a folder where the bench's record is kept")
    parser.add_argument("--only", default="", help="a word that a case's name must contain")
    parser.add_argument("--compile", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device here")
    if arguments.compile:
        return compile_some(arguments.compile)
    # Whoever stops this keeps what is known by then.
    sys.stdout.reconfigure(line_buffering=True)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, "
          f"cuDNN {torch.backends.cudnn.version()}; medians in ms")

    begin = time.monotonic()
    def tell(what):
        print(f"{what} after {time.monotonic() - begin:.0f} s", file=sys.stderr)
    cases = ours(arguments.bench, arguments.record)
    cases = {name: found for name, found in cases.items() if arguments.only in name}
    if not cases:
        sys.exit(f"no case has {arguments.only!r} in its name")
    tell("bench done")
    compile_all(list(cases))
    tell("PyTorch compiled")

    print("| shape | layout | type | operation | ours | cuDNN | no cuDNN | compiled | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    ratios = []
    for name, found in cases.items():
        torch._dynamo.reset()
        try:
            with torch.cuda.stream(STREAM):
                theirs = pytorch(name)
        except Exception as error:
            print(f"PyTorch, {name}: {error}", file=sys.stderr)
            continue
        layout, dtype, shape = parts(name)
        for operation, mine in found.items():
            known = [other for other in theirs[operation] if not math.isnan(other)]
            ratio = mine / min(known, default=math.nan)
            ratios.append((name, ratio))
            others = " | ".join(f"{other:.4f}" for other in theirs[operation])
            print(f"| {'×'.join(map(str, shape))} | {layout} | {dtype} | {operation} | {mine:.4f} | "
                  f"{others} | {ratio:.2f} |")
        torch.cuda.empty_cache()
    tell("PyTorch timed")
    summarize(ratios)


if __name__ == "__main__":
    main()
