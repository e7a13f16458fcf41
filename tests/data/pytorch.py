"""Writes pytorch.json: PyTorch's answers, which the tests compare with.

Run:  pip install torch
      python tests/data/pytorch.py

The pytorch.json kept beside this file was made with Python 3.11.7 and
PyTorch 2.15.0 on a CPU.

PyTorch computes everything in float64. The input numbers are float32 numbers,
printed as float64 with enough digits to be read back exactly. (Settings such
as eps, momentum and lr are plain decimals, not rounded to float32.)
"""

import json
import platform
from pathlib import Path

import torch
import torch.nn.functional as F

generator = torch.Generator().manual_seed(20260101)


def normal(*shape, mean=0.0, sigma=1.0):
    """Normal random float32 numbers, held as float64."""
    x = torch.randn(shape, generator=generator, dtype=torch.float32)
    return (mean + sigma * x).float().double()


def uniform(low, high, *shape):
    """Uniform random float32 numbers, held as float64."""
    x = torch.rand(shape, generator=generator, dtype=torch.float32)
    return (low + (high - low) * x).float().double()


# --- Batch normalization ----------------------------------------------------


def layer(name, layout, shape, eps=1e-5, momentum=0.1, mean=0.0, sigma=1.0):
    """One layer case. `shape` and all lists are in memory order."""
    axis = 1 if layout == "channels_first" else len(shape) - 1
    channels = shape[axis]

    x = normal(*shape, mean=mean, sigma=sigma).requires_grad_()
    dy = normal(*shape) + 0.25  # its mean per channel is not zero ...
    dy = dy.float().double()  # ... and it is float32 again
    sign = normal(channels).sign()
    gamma = (sign * uniform(0.5, 2.0, channels)).requires_grad_()
    beta = normal(channels).requires_grad_()
    running_mean = normal(channels)
    running_var = uniform(0.5, 2.0, channels)

    # F.batch_norm is this call behind a check that refuses eps = 0.
    # PyTorch wants the channels second, so channels_last is moved there and back.
    def batch_norm(mean, var, training):
        y = torch.batch_norm(
            x.movedim(axis, 1), gamma, beta, mean, var, training, momentum, eps, False
        )
        if eps > 0.0:
            same = F.batch_norm(
                x.movedim(axis, 1), mean.clone(), var.clone(), gamma, beta, training, momentum, eps
            )
            assert torch.equal(y, same)
        return y.movedim(1, axis)

    mean_after, var_after = running_mean.clone(), running_var.clone()
    y = batch_norm(mean_after, var_after, training=True)  # updates both in place
    dx, dgamma, dbeta = torch.autograd.grad(y, (x, gamma, beta), dy)
    y_eval = batch_norm(mean_after, var_after, training=False)

    tensors = {
        # Inputs
        "x": x,
        "dy": dy,
        "gamma": gamma,
        "beta": beta,
        "running_mean": running_mean,
        "running_var": running_var,
        # Training, forward and backward
        "y": y,
        "dx": dx,
        "dgamma": dgamma,
        "dbeta": dbeta,
        "running_mean_after": mean_after,
        "running_var_after": var_after,
        # Evaluation on the same x with the running statistics after the update
        "y_eval": y_eval,
    }
    case = {"name": name, "layout": layout, "shape": shape, "eps": eps, "momentum": momentum}
    case.update({key: t.detach().flatten().tolist() for key, t in tensors.items()})
    return case


FIRST, LAST = "channels_first", "channels_last"
layers = [
    layer("nc", FIRST, [7, 5]),
    layer("nc_two_values", FIRST, [2, 1]),
    layer("nc_3x8", FIRST, [3, 8]),
    layer("ncl", FIRST, [3, 4, 5]),
    layer("ncl_2x8x4", FIRST, [2, 8, 4]),
    layer("nchw", FIRST, [2, 3, 5, 7]),
    layer("nchw_2x4x4x4", FIRST, [2, 4, 4, 4]),
    layer("nchw_one_channel", FIRST, [5, 1, 3, 3]),
    layer("nchw_3x5x7x7", FIRST, [3, 5, 7, 7]),
    layer("nchw_two_values", FIRST, [2, 8, 1, 1]),
    layer("ncdhw", FIRST, [2, 3, 2, 3, 4]),
    layer("nlc", LAST, [3, 5, 4]),
    layer("nhwc_c3", LAST, [2, 5, 4, 3]),
    layer("nhwc_c4", LAST, [2, 3, 5, 4]),
    layer("nhwc_c8", LAST, [2, 3, 3, 8]),
    layer("nhwc_c5", LAST, [2, 4, 3, 5]),
    layer("ndhwc", LAST, [2, 2, 3, 4, 3]),
    # Mean much larger than the standard deviation; small and large deviations
    layer("nchw_mean_1000", FIRST, [3, 4, 5, 3], mean=1e3),
    layer("nhwc_mean_1000", LAST, [3, 5, 3, 4], mean=1e3),
    layer("nchw_sigma_0.01", FIRST, [3, 3, 4, 4], sigma=0.01),
    layer("nchw_sigma_30", FIRST, [3, 3, 4, 4], sigma=30.0),
    # Other settings
    layer("nchw_eps_0.001", FIRST, [2, 3, 4, 4], eps=1e-3),
    layer("nchw_eps_0", FIRST, [2, 3, 4, 4], eps=0.0),
    layer("nchw_momentum_0.3", FIRST, [2, 3, 4, 4], momentum=0.3),
    layer("nhwc_momentum_1", LAST, [2, 4, 4, 3], momentum=1.0),
]


# --- Optimizers -------------------------------------------------------------

# Class and default settings of each algorithm
ALGORITHMS = {
    "sgd": (
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
    ),
    "rmsprop": (
        torch.optim.RMSprop,
        {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0,
         "centered": False},
    ),
    "adam": (
        torch.optim.Adam,
        {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False},
    ),
}

# All optimizers take the same six steps. Gradients grow and shrink, so that
# amsgrad's maximum matters, and one is zero, so that eps does.
initial = normal(5)
scales = torch.tensor([1.0, 4.0, 0.125, 0.5, 2.0, 0.0625], dtype=torch.float64)
gradients = normal(6, 5) * scales[:, None]
gradients[0, 4] = 0.0


def optimizer(name, algorithm, **settings):
    """One optimizer case; `parameters` holds the values after every step."""
    make, defaults = ALGORITHMS[algorithm]
    settings = defaults | settings
    parameter = initial.clone().requires_grad_()
    optimizer = make([parameter], **settings)
    parameters = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        parameters.append(parameter.tolist())
    return {
        "name": name,
        "algorithm": algorithm,
        **settings,
        "initial": initial.tolist(),
        "gradients": gradients.tolist(),
        "parameters": parameters,
    }


optimizers = [
    optimizer("sgd", "sgd"),
    optimizer("sgd_momentum", "sgd", momentum=0.9),
    optimizer("sgd_dampening", "sgd", momentum=0.9, dampening=0.5),
    optimizer("sgd_nesterov", "sgd", momentum=0.9, nesterov=True),
    optimizer("sgd_weight_decay", "sgd", weight_decay=0.1),
    optimizer("sgd_nesterov_weight_decay", "sgd", momentum=0.9, nesterov=True, weight_decay=0.1),
    optimizer("rmsprop", "rmsprop"),
    optimizer("rmsprop_momentum", "rmsprop", momentum=0.9),
    optimizer("rmsprop_centered", "rmsprop", centered=True),
    optimizer("rmsprop_weight_decay", "rmsprop", weight_decay=0.1),
    optimizer("adam", "adam"),
    optimizer("adam_weight_decay", "adam", weight_decay=0.1),
    optimizer("adam_amsgrad", "adam", amsgrad=True, betas=[0.9, 0.9]),
    optimizer("adam_betas_eps", "adam", betas=[0.8, 0.9], eps=1e-3),
]


# --- Output: one field a line -----------------------------------------------


def lines(case):
    fields = (f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in case.items())
    return "{\n" + ",\n".join(fields) + "\n}"


versions = {"python": platform.python_version(), "torch": torch.__version__}
text = f"""{{
"versions": {json.dumps(versions)},
"layers": [{", ".join(map(lines, layers))}],
"optimizers": [{", ".join(map(lines, optimizers))}]
}}
"""
Path(__file__).with_suffix(".json").write_text(text)
