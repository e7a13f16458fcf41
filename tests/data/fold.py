"""Writes fold.json: layers followed by a batch norm in evaluation, and PyTorch's fused layers.

Run:  pip install torch
      python tests/data/fold.py

The fold.json kept beside this file was made with Python 3.11.7 and
PyTorch 2.15.0 on a CPU.

PyTorch computes everything in float64. The input numbers are float32 numbers,
printed as float64 with enough digits to be read back exactly. (eps is a plain
decimal, not rounded to float32.) All lists are in memory order.
"""

import json
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

generator = torch.Generator().manual_seed(20260102)


def normal(*shape):
    """Normal random float32 numbers, held as float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).double()


def uniform(low, high, *shape):
    """Uniform random float32 numbers, held as float64."""
    x = torch.rand(shape, generator=generator, dtype=torch.float32)
    return (low + (high - low) * x).float().double()


CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def apply(kind, x, weight, bias, groups):
    """The layer before the batch norm: stride 1, no padding."""
    if kind == "linear":
        return F.linear(x, weight, bias)
    functions = CONVOLUTIONS if kind == "convolution" else TRANSPOSED
    return functions[weight.dim() - 2](x, weight, bias, groups=groups)


def fuse(kind, weight, bias, groups, mean, var, eps, gamma, beta):
    """PyTorch's fused weight and bias.

    PyTorch does not fuse a transposed convolution of several groups. But it is
    one transposed convolution per group, side by side, and those it fuses.
    """
    if kind == "linear":
        gamma = torch.ones_like(mean) if gamma is None else gamma
        beta = torch.zeros_like(mean) if beta is None else beta
        return fuse_linear_bn_weights(weight, bias, mean, var, eps, gamma, beta)
    if kind == "convolution":
        return fuse_conv_bn_weights(weight, bias, mean, var, eps, gamma, beta)

    def parts(t):
        return [None] * groups if t is None else t.chunk(groups)

    fused = [
        fuse_conv_bn_weights(w, b, m, v, eps, g, s, transpose=True)
        for w, b, m, v, g, s in zip(*map(parts, (weight, bias, mean, var, gamma, beta)))
    ]
    return tuple(torch.cat([part[i] for part in fused]) for i in (0, 1))


def case(name, kind, x_shape, weight_shape, groups=1, bias=True, affine=True, eps=1e-5):
    """One case: the inputs, the output y of both layers, the fused layer."""
    channels = weight_shape[1] * groups if kind == "transposed" else weight_shape[0]
    x = normal(*x_shape)
    weight = normal(*weight_shape)
    bias = normal(channels) if bias else None
    gamma = normal(channels).sign() * uniform(0.5, 2.0, channels) if affine else None
    beta = normal(channels) if affine else None
    mean = normal(channels)
    var = uniform(0.01, 4.0, channels)

    inner = apply(kind, x, weight, bias, groups)
    y = F.batch_norm(inner, mean, var, gamma, beta, training=False, eps=eps)
    fused_weight, fused_bias = fuse(kind, weight, bias, groups, mean, var, eps, gamma, beta)
    y_fused = apply(kind, x, fused_weight, fused_bias, groups)
    torch.testing.assert_close(y_fused, y, rtol=1e-12, atol=1e-12)

    tensors = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "gamma": gamma,
        "beta": beta,
        "running_mean": mean,
        "running_var": var,
        "y": y,
        "fused_weight": fused_weight,
        "fused_bias": fused_bias,
    }
    fields = {
        "name": name,
        "kind": kind,
        "groups": groups,
        "eps": eps,
        "x_shape": x_shape,
        "weight_shape": weight_shape,
        "y_shape": list(y.shape),
    }
    lists = {k: None if t is None else t.detach().flatten().tolist() for k, t in tensors.items()}
    return fields | lists


CONV, TRANSPOSE = "convolution", "transposed"
cases = [
    case("conv1d", CONV, [2, 3, 6], [4, 3, 3]),
    case("conv1d_no_bias", CONV, [1, 2, 5], [3, 2, 2], bias=False),
    case("conv2d", CONV, [1, 3, 4, 5], [4, 3, 3, 2]),
    case("conv2d_no_bias", CONV, [1, 3, 4, 4], [2, 3, 3, 3], bias=False, eps=1e-3),
    case("conv2d_groups", CONV, [1, 4, 4, 4], [6, 2, 2, 3], groups=2),
    case("conv2d_depthwise", CONV, [1, 4, 4, 4], [4, 1, 3, 3], groups=4, bias=False),
    case("conv2d_depthwise_times_2", CONV, [1, 3, 3, 3], [6, 1, 2, 2], groups=3),
    case("conv2d_pointwise", CONV, [1, 3, 2, 2], [5, 3, 1, 1]),
    case("conv2d_not_affine", CONV, [1, 2, 3, 3], [3, 2, 2, 2], affine=False),
    case("conv3d", CONV, [1, 2, 3, 4, 3], [3, 2, 2, 2, 2]),
    case("conv3d_groups_no_bias", CONV, [1, 4, 2, 3, 3], [4, 2, 1, 2, 2], groups=2, bias=False),
    case("transposed1d", TRANSPOSE, [1, 3, 4], [3, 4, 3]),
    case("transposed2d", TRANSPOSE, [1, 3, 3, 2], [3, 2, 2, 3]),
    case("transposed2d_no_bias", TRANSPOSE, [1, 2, 2, 2], [2, 3, 3, 2], bias=False),
    case("transposed2d_groups", TRANSPOSE, [1, 4, 2, 3], [4, 3, 2, 2], groups=2),
    case("transposed2d_depthwise", TRANSPOSE, [1, 3, 3, 2], [3, 1, 2, 2], groups=3, bias=False),
    case("transposed3d_groups", TRANSPOSE, [1, 4, 2, 2, 2], [4, 2, 2, 1, 2], groups=2),
    case("linear", "linear", [3, 5], [4, 5]),
    case("linear_no_bias", "linear", [2, 3], [5, 3], bias=False, eps=1e-3),
    case("linear_not_affine", "linear", [2, 3], [2, 3], affine=False),
]


# --- Output: one field a line -----------------------------------------------


def lines(case):
    fields = (f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in case.items())
    return "{\n" + ",\n".join(fields) + "\n}"


versions = {"python": platform.python_version(), "torch": torch.__version__}
text = f"""{{
"versions": {json.dumps(versions)},
"cases": [{", ".join(map(lines, cases))}]
}}
"""
Path(__file__).with_suffix(".json").write_text(text)
