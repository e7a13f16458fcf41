"""Writes pytorch_accuracy.csv: how far PyTorch's float32 is from float64.

Run:  pip install torch
      python tests/data/pytorch_accuracy.py

The pytorch_accuracy.csv kept beside this file was made with Python 3.11.7 and
PyTorch 2.15.0 on a CPU; its first line says with which vector instructions and
how many threads.

Batch normalization in training, of x = offset + sigma * (normal random number),
rounded to float32, with gamma = 1, beta = 0 and eps = 1e-5. PyTorch computes it
in float32 and, from the same rounded numbers, in float64. Layouts: `planes` is
NCHW in memory order, `rows` is the same tensor in PyTorch's channels_last.

Errors, each the largest over all elements or channels:
  y       |y32 - y64| / max(1, |y64|)
  var     |var32 - var64| / (var64 + eps); the sample variances of the batch
  dx      max|dx32 - dx64| / max|dx64|
  dgamma  max|dgamma32 - dgamma64| / max|dgamma64|
Where sigma is far below the spacing of float32 at the offset, all numbers of x
are equal: here with sigma 0.01 at 1e7. That is why eps is in the error of var,
and why the divisors of dx and dgamma are at least TINY. In that case dgamma64
is 0, so the column dgamma holds the error divided by TINY, 0 or very large.

The number of threads is set, because `rows` depends on it: every thread sums a
part of the rows, one after the other, so fewer threads mostly make larger errors.
"""

import platform
from pathlib import Path

import torch
import torch.nn.functional as F

SHAPE = (8, 16, 32, 32)
EPS = 1e-5
TINY = 1e-30
THREADS = 8
LAYOUTS = {"planes": torch.contiguous_format, "rows": torch.channels_last}

torch.set_num_threads(THREADS)
generator = torch.Generator().manual_seed(20260101)
noise = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
dy = torch.randn(SHAPE, generator=generator, dtype=torch.float32)


def batch_norm(x, dy):
    """y, the sample variance of the batch, dx and dgamma, as float64."""
    x = x.requires_grad_()
    mean, var, beta = (torch.zeros(SHAPE[1], dtype=x.dtype) for _ in range(3))
    gamma = torch.ones(SHAPE[1], dtype=x.dtype, requires_grad=True)
    # With momentum 1, var becomes the variance of the batch.
    y = F.batch_norm(x, mean, var, gamma, beta, training=True, momentum=1.0, eps=EPS)
    dx, dgamma = torch.autograd.grad(y, (x, gamma), dy)
    return [t.detach().double() for t in (y, var, dx, dgamma)]


def relative(a, b):
    return (a - b).abs().max() / b.abs().max().clamp(min=TINY)


def errors(layout, sigma, offset):
    x = (offset + sigma * noise).float().contiguous(memory_format=LAYOUTS[layout])
    d = dy.contiguous(memory_format=LAYOUTS[layout])
    y64, var64, dx64, dgamma64 = batch_norm(x.double(), d.double())
    y32, var32, dx32, dgamma32 = batch_norm(x, d)
    return [
        ((y32 - y64).abs() / y64.abs().clamp(min=1.0)).max(),
        ((var32 - var64).abs() / (var64 + EPS)).max(),
        relative(dx32, dx64),
        relative(dgamma32, dgamma64),
    ]


lines = [
    f"# Python {platform.python_version()}, PyTorch {torch.__version__}, CPU with "
    f"{torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}",
    "layout,sigma,offset,y,var,dx,dgamma",
]
for layout in LAYOUTS:
    for sigma in (1e-2, 1.0, 1e3):
        for offset in (0.0, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7):
            numbers = [sigma, offset, *errors(layout, sigma, offset)]
            lines.append(",".join([layout, *(f"{n:.1e}" for n in numbers)]))
Path(__file__).with_suffix(".csv").write_text("\n".join(lines) + "\n")
