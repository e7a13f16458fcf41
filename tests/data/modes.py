"""Writes modes.json: PyTorch's and Flax's answers for the modes of the layer.

Run:  pip install torch flax
      python tests/data/modes.py

The modes.json kept beside this file was made with the versions that it names, on a CPU.

A case is one training step and an evaluation after it, with any of: an activation, a
residual, frozen statistics, γ or β absent, no running statistics, a cumulative average,
valid positions. PyTorch answers those without valid positions, Flax those with them and
those whose running variance is the population one. A third implementation, by the
formulas in plain NumPy, has to agree with every answer.

All is computed in float64. The input numbers are float32 numbers, printed as float64
with enough digits to be read back exactly. (Settings such as eps and momentum are plain
decimals, not rounded to float32.) No value lies at an edge of its activation: a case
where one does is drawn again.

The fields of a case:
- layout, shape, eps: as the layer takes them. The lists of tensors are in memory order.
- activation: its kind and its numbers.
- frozen: the statistics are running_mean and running_var, constants for the gradients.
- gamma, beta: one value per channel, or null: absent.
- residual: a tensor that is added before the activation, or null.
- valid: one boolean per position (the shape without the channels), or null: all are.
  Only valid positions enter the statistics, but all are normalized, and dy may be
  anything at all of them.
- running_mean, running_var: or null: there are no running statistics.
- momentum: the weight of the new batch, or null: the average of all batches.
- num_batches_tracked: how many batches came before.
- unbiased: whether running_var takes the sample variance (M - 1), or the population's (M).
- x, dy: the inputs of the step.
- y, dx, d_residual, dgamma, dbeta: its answers, null where there is nothing to have them.
- running_mean_after, running_var_after: after it; unchanged where frozen.
- y_eval: evaluation after it, of the same x and residual. Without running statistics it
  normalizes by the batch.
- source: who answered.
"""

import json
import platform
import zlib
from pathlib import Path

import flax
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)  # sums in one order, so the same numbers every time

FIRST, LAST = "channels_first", "channels_last"

IDENTITY = {"kind": "identity"}
RELU = {"kind": "relu"}
LEAKY = {"kind": "leaky_relu", "slope": 0.1}
CLAMP = {"kind": "clamp", "min": -0.5, "max": 1.0}
RELU6 = {"kind": "clamp", "min": 0.0, "max": 6.0}

# How far a value stays from an edge of its activation, at least
APART = 1e-3

TENSORS = ["x", "dy", "residual"]
VECTORS = ["gamma", "beta", "running_mean", "running_var"]
ANSWERS = ["y", "dx", "d_residual", "dgamma", "dbeta"]
ANSWERS += ["running_mean_after", "running_var_after", "y_eval"]


def channel_axis(case):
    return 1 if case["layout"] == FIRST else len(case["shape"]) - 1


def weight(case):
    """What the batch weighs in the running statistics."""
    if case["momentum"] is None:
        return 1.0 / (case["num_batches_tracked"] + 1)
    return case["momentum"]


def edges(activation):
    """Where the derivative jumps."""
    match activation["kind"]:
        case "identity":
            return []
        case "relu" | "leaky_relu":
            return [0.0]
        case "clamp":
            return [activation["min"], activation["max"]]


# --- PyTorch ----------------------------------------------------------------


def by_pytorch(case):
    axis, channels = channel_axis(case), case["shape"][channel_axis(case)]
    # Channels second, there and back
    there = lambda t: t.movedim(axis, 1)
    back = lambda t: t.movedim(1, axis)
    tensor = lambda key: None if case[key] is None else torch.from_numpy(case[key].copy())
    leaf = lambda key: None if case[key] is None else tensor(key).requires_grad_()

    make = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}
    module = make[len(case["shape"])](
        channels,
        eps=case["eps"],
        momentum=case["momentum"],
        track_running_stats=case["running_mean"] is not None,
        dtype=torch.float64,
    )
    for name, key in {"weight": "gamma", "bias": "beta"}.items():
        value = tensor(key)
        module.register_parameter(name, value if value is None else torch.nn.Parameter(value))
    if module.track_running_stats:
        module.running_mean.copy_(tensor("running_mean"))
        module.running_var.copy_(tensor("running_var"))
        module.num_batches_tracked.fill_(case["num_batches_tracked"])

    x, residual = leaf("x"), leaf("residual")

    def normalize():
        if case["valid"] is None or not module.training:
            return back(module(there(x)))
        # The module sees the rows at valid positions, and is the one that updates the running
        # statistics. What it does to these rows, plain operations do to all.
        valid = torch.from_numpy(case["valid"])
        rows = x.movedim(axis, -1)
        var, mean = torch.var_mean(rows[valid], dim=0, correction=0)
        z = (rows - mean) / torch.sqrt(var + module.eps) * module.weight + module.bias
        torch.testing.assert_close(z[valid], module(rows[valid]), rtol=0, atol=1e-12)
        return z.movedim(-1, axis)

    def layer():
        z = normalize()
        if residual is not None:
            z = z + residual
        activation = case["activation"]
        match activation["kind"]:
            case "identity":
                return z
            case "relu":
                return F.relu(z)
            case "leaky_relu":
                return F.leaky_relu(z, activation["slope"])
            case "clamp":
                return F.hardtanh(z, activation["min"], activation["max"])

    module.train(not case["frozen"])
    y = layer()
    leaves = {"dx": x, "d_residual": residual, "dgamma": module.weight, "dbeta": module.bias}
    leaves = {key: leaf for key, leaf in leaves.items() if leaf is not None}
    gradients = torch.autograd.grad(y, list(leaves.values()), tensor("dy"))
    module.eval()
    answers = {"y": y, **dict(zip(leaves, gradients)), "y_eval": layer()}
    if module.track_running_stats:
        answers["running_mean_after"] = module.running_mean
        answers["running_var_after"] = module.running_var
        batches = case["num_batches_tracked"] + (0 if case["frozen"] else 1)
        assert module.num_batches_tracked == batches
    return {key: answers[key].detach().numpy() if key in answers else None for key in ANSWERS}


# --- Flax -------------------------------------------------------------------


def by_flax(case):
    assert not case["unbiased"]
    axis = channel_axis(case)
    answers = flax_step(case, axis, case, case["valid"])
    # The same with the channels moved to the end and back
    moved = {key: None if case[key] is None else np.moveaxis(case[key], axis, -1) for key in TENSORS}
    again = flax_step(case, -1, moved, case["valid"])
    for key, answer in answers.items():
        if answer is not None:
            tensor = answer.ndim == len(case["shape"])
            same = np.moveaxis(again[key], -1, axis) if tensor else again[key]
            np.testing.assert_allclose(answer, same, rtol=0, atol=1e-12)
    return answers


def flax_step(case, axis, tensors, valid):
    mask = None if valid is None else jnp.asarray(np.expand_dims(valid, axis))
    module = flax.linen.BatchNorm(
        axis=axis,
        momentum=1.0 - weight(case),  # Flax's weighs the old value
        epsilon=case["eps"],
        use_scale=case["gamma"] is not None,
        use_bias=case["beta"] is not None,
        use_fast_variance=False,
        param_dtype=jnp.float64,
    )
    channels = case["shape"][channel_axis(case)]
    tracked = case["running_mean"] is not None
    stats = {
        "mean": case["running_mean"] if tracked else np.zeros(channels),
        "var": case["running_var"] if tracked else np.ones(channels),
    }
    leaves = {"dx": tensors["x"], "d_residual": tensors["residual"]}
    leaves |= {"dgamma": case["gamma"], "dbeta": case["beta"]}
    leaves = {key: jnp.asarray(leaf) for key, leaf in leaves.items() if leaf is not None}

    def layer(leaves, stats, training):
        names = {"scale": "dgamma", "bias": "dbeta"}
        params = {name: leaves[key] for name, key in names.items() if key in leaves}
        z, after = module.apply(
            {"params": params, "batch_stats": jax.tree.map(jnp.asarray, stats)},
            leaves["dx"],
            use_running_average=not training,
            mask=mask,
            mutable=["batch_stats"],
        )
        if "d_residual" in leaves:
            z = z + leaves["d_residual"]
        activation = case["activation"]
        match activation["kind"]:
            case "identity":
                y = z
            case "relu":
                y = flax.linen.relu(z)
            case "leaky_relu":
                y = flax.linen.leaky_relu(z, activation["slope"])
            case "clamp":
                y = jnp.clip(z, activation["min"], activation["max"])
        return y, after["batch_stats"]

    training = not case["frozen"]
    y, pullback, after = jax.vjp(lambda leaves: layer(leaves, stats, training), leaves, has_aux=True)
    (gradients,) = pullback(jnp.asarray(tensors["dy"]))
    y_eval, _ = layer(leaves, after, training=not tracked)
    answers = {"y": y, **gradients, "y_eval": y_eval}
    if tracked:
        answers["running_mean_after"], answers["running_var_after"] = after["mean"], after["var"]
    for answer in answers.values():
        assert answer.dtype == jnp.float64
    return {key: np.asarray(answers[key]) if key in answers else None for key in ANSWERS}


# --- The formulas -----------------------------------------------------------


def by_formulas(case):
    """The answers, and `z` and `z_eval`, what the activation is applied to."""
    axis = channel_axis(case)
    rows = lambda key: np.moveaxis(case[key], axis, -1)
    x, dy = rows("x"), rows("dy")
    residual = 0.0 if case["residual"] is None else rows("residual")
    gamma = 1.0 if case["gamma"] is None else case["gamma"]
    beta = 0.0 if case["beta"] is None else case["beta"]
    valid = np.ones(x.shape[:-1], bool) if case["valid"] is None else case["valid"]
    every = tuple(range(x.ndim - 1))
    activation = case["activation"]
    low, high, slope = {
        "identity": (-np.inf, np.inf, 0.0),
        "relu": (0.0, np.inf, 0.0),
        "leaky_relu": (0.0, np.inf, activation.get("slope")),
        "clamp": (activation.get("min"), activation.get("max"), 0.0),
    }[activation["kind"]]

    def act(z):
        return np.clip(z, low, high) + (slope * np.minimum(z, 0.0) if slope else 0.0)

    count = valid.sum()
    mean = x[valid].mean(axis=0)
    var = np.square(x[valid] - mean).mean(axis=0)
    running = None if case["running_mean"] is None else (case["running_mean"], case["running_var"])
    used = running if case["frozen"] else (mean, var)
    inv_std = 1.0 / np.sqrt(used[1] + case["eps"])
    x_hat = (x - used[0]) * inv_std
    z = gamma * x_hat + beta + residual
    g = dy * np.where((low < z) & (z < high), 1.0, slope)
    dbeta, dgamma = g.sum(axis=every), (g * x_hat).sum(axis=every)
    taken = np.zeros_like(g) if case["frozen"] else valid[..., None] * (dbeta + x_hat * dgamma)
    dx = gamma * inv_std * (g - taken / count)

    after = running
    if running is not None and not case["frozen"]:
        batch = (mean, var * (count / (count - 1) if case["unbiased"] else 1.0))
        m = weight(case)
        after = tuple((1.0 - m) * old + m * new for old, new in zip(running, batch))
    by = used if after is None else after
    z_eval = gamma * (x - by[0]) / np.sqrt(by[1] + case["eps"]) + beta + residual

    back = lambda t: np.moveaxis(t, -1, axis)
    answers = {
        "y": back(act(z)),
        "dx": back(dx),
        "d_residual": None if case["residual"] is None else back(g),
        "dgamma": None if case["gamma"] is None else dgamma,
        "dbeta": None if case["beta"] is None else dbeta,
        "running_mean_after": None if after is None else after[0],
        "running_var_after": None if after is None else after[1],
        "y_eval": back(act(z_eval)),
    }
    return answers, z, z_eval


# --- Cases ------------------------------------------------------------------


def draw(random, case, with_, far):
    """Adds the numbers that the step is given."""
    shape, channels = case["shape"], case["shape"][channel_axis(case)]

    def normal(*shape, mean=0.0, sigma=1.0):
        return np.float64(np.float32(random.normal(mean, sigma, shape)))

    def uniform(low, high):
        return np.float64(np.float32(random.uniform(low, high, channels)))

    # RELU6 cuts at 6, so values have to get there.
    wide = case["activation"] == RELU6
    sign = np.where(random.random(channels) < 0.5, -1.0, 1.0)
    numbers = {
        "x": normal(*shape, mean=0.5, sigma=1.5),
        "dy": normal(*shape, mean=0.25),  # its mean per channel is not zero
        "residual": normal(*shape),
        "gamma": sign * (uniform(2.0, 4.0) if wide else uniform(0.5, 2.0)),
        "beta": normal(channels, mean=3.0 if wide else 0.0, sigma=0.5),
        "running_mean": normal(channels, mean=0.5),
        "running_var": uniform(0.5, 4.0),
    }
    if far:
        # What is not valid does not have to look like the rest.
        x = np.moveaxis(numbers["x"], channel_axis(case), -1)
        x[~case["valid"]] = np.float32(x[~case["valid"]] * 100.0 + 300.0)
    for key in TENSORS + VECTORS:
        case[key] = numbers[key] if key in with_ else None


def make(
    by,
    name,
    layout,
    shape,
    activation=IDENTITY,
    *,
    residual=False,
    frozen=False,
    affine=("gamma", "beta"),
    running=True,
    momentum=0.1,
    batches=0,
    eps=1e-5,
    unbiased=True,
    valid=None,
    far=False,
):
    """A case with its answers, drawn until nothing lies at an edge of the activation."""
    with_ = {"x", "dy", *affine}
    with_ |= {"residual"} if residual else set()
    with_ |= {"running_mean", "running_var"} if running else set()
    for attempt in range(1000):
        # A case's numbers depend on its name alone, not on the cases before it.
        random = np.random.default_rng([zlib.crc32(name.encode()), attempt])
        case = {
            "name": name,
            "layout": layout,
            "shape": shape,
            "eps": eps,
            "activation": activation,
            "frozen": frozen,
            "valid": valid,
            "momentum": momentum,
            "num_batches_tracked": batches,
            "unbiased": unbiased,
        }
        draw(random, case, with_, far)
        expected, z, z_eval = by_formulas(case)
        at = edges(activation)
        posed = all(np.abs(values - edge).min() > APART for values in (z, z_eval) for edge in at)
        # Values on all sides of the edges
        regions = len(set(np.digitize(z, at).flat)) == len(at) + 1
        if posed and regions:
            break
    else:
        raise AssertionError(f"{name} cannot be drawn")

    answers = by(case)
    assert answers.keys() == expected.keys()
    for key, answer in answers.items():
        assert (answer is None) == (expected[key] is None), (name, key)
        if answer is not None:
            assert answer.shape == expected[key].shape and answer.dtype == np.float64
            # In units of the largest value; far values enlarge what cancels in dgamma.
            scale = max(1.0, np.abs(expected[key]).max())
            np.testing.assert_allclose(answer, expected[key], rtol=0, atol=1e-12 * scale)
    return {**case, **answers, "source": by.__name__.removeprefix("by_")}


def pytorch(*args, **settings):
    return make(by_pytorch, *args, **settings)


def with_flax(*args, **settings):
    return make(by_flax, *args, unbiased=False, **settings)


def lengths(longest, *lengths):
    """The valid positions of padded sequences."""
    return np.arange(longest) < np.array(lengths)[:, None]


def sizes(height, width, *sizes):
    """The valid positions of padded images."""
    h, w = np.arange(height)[:, None], np.arange(width)
    return np.stack([(h < rows) & (w < columns) for rows, columns in sizes])


def scattered(*shape):
    """About two thirds of the positions."""
    return np.random.default_rng(list(shape)).random(shape) < 2 / 3


# "planes" have inner > 1, "rows" inner = 1. Channels and inner sizes are multiples of 4 in
# some cases and not in others.
cases = [
    # Activations
    pytorch("identity_planes", FIRST, [3, 4, 5]),
    pytorch("identity_rows", LAST, [2, 5, 4, 3]),
    pytorch("relu_planes", FIRST, [2, 3, 5], RELU),
    pytorch("relu_planes_inner_12", FIRST, [2, 8, 3, 4], RELU),
    pytorch("relu_rows", LAST, [2, 5, 3, 4], RELU),
    pytorch("relu_nc", FIRST, [7, 5], RELU),
    pytorch("leaky_relu_planes", FIRST, [3, 4, 5], LEAKY),
    pytorch("leaky_relu_rows", LAST, [2, 5, 4, 3], LEAKY),
    pytorch("clamp_planes", FIRST, [2, 3, 2, 4], CLAMP),
    pytorch("clamp_rows", LAST, [3, 3, 8], CLAMP),
    pytorch("relu6_planes", FIRST, [2, 4, 3, 3], RELU6),
    pytorch("relu6_rows", FIRST, [7, 5], RELU6),
    # A residual
    pytorch("residual_identity_planes", FIRST, [2, 3, 5], residual=True),
    pytorch("residual_identity_rows", LAST, [3, 4, 4], residual=True),
    pytorch("residual_relu_planes", FIRST, [3, 4, 5, 3], RELU, residual=True),
    pytorch("residual_relu_planes_inner_8", FIRST, [2, 3, 2, 4], RELU, residual=True),
    pytorch("residual_relu_rows", LAST, [2, 5, 4, 3], RELU, residual=True),
    pytorch("residual_relu_nc", FIRST, [5, 8], RELU, residual=True),
    pytorch("residual_leaky_relu_planes", FIRST, [2, 4, 5], LEAKY, residual=True),
    pytorch("residual_leaky_relu_rows", FIRST, [7, 5], LEAKY, residual=True),
    pytorch("residual_clamp_planes", FIRST, [3, 5, 4], CLAMP, residual=True),
    pytorch("residual_clamp_rows", LAST, [3, 4, 4], CLAMP, residual=True),
    # Frozen statistics
    pytorch("frozen_planes", FIRST, [2, 3, 5], frozen=True, batches=3),
    pytorch("frozen_rows", LAST, [3, 4, 4], frozen=True),
    pytorch("frozen_relu_planes", FIRST, [2, 4, 2, 4], RELU, frozen=True),
    pytorch("frozen_relu_rows", FIRST, [7, 5], RELU, frozen=True),
    pytorch("frozen_residual_relu_planes", FIRST, [2, 3, 5], RELU, frozen=True, residual=True),
    pytorch("frozen_residual_relu_rows", LAST, [2, 3, 2, 4], RELU, frozen=True, residual=True),
    pytorch("frozen_no_affine", FIRST, [2, 3, 5], RELU, frozen=True, affine=[]),
    # γ or β absent
    pytorch("no_affine_planes", FIRST, [2, 3, 5], affine=[]),
    pytorch("no_affine_rows", LAST, [3, 4, 4], RELU, affine=[]),
    pytorch("only_gamma_planes", FIRST, [2, 4, 2, 3], RELU, affine=["gamma"]),
    pytorch("only_gamma_rows", FIRST, [7, 5], affine=["gamma"]),
    pytorch("only_beta_planes", FIRST, [2, 3, 5], affine=["beta"]),
    pytorch("only_beta_rows", LAST, [3, 3, 4], RELU, residual=True, affine=["beta"]),
    # No running statistics
    pytorch("no_running_planes", FIRST, [2, 3, 5], running=False),
    pytorch("no_running_rows", LAST, [3, 4, 4], RELU, residual=True, running=False),
    pytorch("no_running_no_affine", FIRST, [7, 5], running=False, affine=[]),
    # The average of all batches
    pytorch("cumulative_first", FIRST, [2, 3, 5], momentum=None),
    pytorch("cumulative_second", LAST, [3, 4, 4], momentum=None, batches=1),
    pytorch("cumulative_seventh", FIRST, [2, 4, 5], RELU, momentum=None, batches=6),
    # Other settings
    pytorch("momentum_0.3", FIRST, [2, 3, 5], momentum=0.3, batches=4, eps=1e-3),
    pytorch("momentum_0", LAST, [3, 3, 4], momentum=0.0),
    with_flax("population_planes", FIRST, [2, 3, 4], RELU, momentum=0.3),
    with_flax("population_rows", LAST, [3, 3, 4], momentum=0.3),
    # Valid positions
    with_flax("valid_nlc", LAST, [3, 6, 4], valid=lengths(6, 6, 3, 1)),
    with_flax("valid_nlc_relu", LAST, [3, 5, 3], RELU, valid=lengths(5, 2, 5, 3)),
    with_flax("valid_nlc_residual_relu", LAST, [3, 4, 8], RELU, residual=True,
              valid=lengths(4, 4, 1, 2)),
    with_flax("valid_nhwc", LAST, [2, 4, 3, 3], valid=sizes(4, 3, (4, 2), (3, 3))),
    with_flax("valid_nhwc_relu", LAST, [2, 3, 4, 4], RELU, valid=sizes(3, 4, (2, 2), (3, 4))),
    with_flax("valid_nhwc_residual_relu", LAST, [2, 3, 3, 5], RELU, residual=True,
              valid=scattered(2, 3, 3)),
    with_flax("valid_ncl", FIRST, [3, 4, 5], valid=lengths(5, 5, 3, 1)),
    with_flax("valid_ncl_relu", FIRST, [2, 3, 8], RELU, valid=lengths(8, 7, 4)),
    with_flax("valid_nchw_residual_relu", FIRST, [2, 3, 3, 4], RELU, residual=True,
              valid=scattered(2, 3, 4)),
    with_flax("valid_nc_relu", FIRST, [9, 5], RELU, valid=scattered(9)),
    with_flax("valid_residual_leaky_relu", FIRST, [2, 4, 5], LEAKY, residual=True,
              valid=scattered(2, 5)),
    with_flax("valid_clamp", LAST, [3, 5, 3], CLAMP, valid=scattered(3, 5)),
    with_flax("valid_empty_sequence", LAST, [3, 4, 4], RELU, valid=lengths(4, 3, 0, 4)),
    with_flax("valid_all", FIRST, [2, 3, 4], RELU, valid=lengths(4, 4, 4)),
    with_flax("valid_far_planes", FIRST, [3, 3, 4], valid=lengths(4, 4, 2, 3), far=True),
    with_flax("valid_far_rows", LAST, [3, 4, 4], valid=lengths(4, 1, 4, 3), far=True),
    with_flax("valid_no_affine", LAST, [3, 4, 3], RELU, affine=[], valid=scattered(3, 4)),
    with_flax("valid_no_running", FIRST, [2, 3, 6], running=False, valid=lengths(6, 4, 5)),
    with_flax("valid_frozen", LAST, [3, 4, 4], RELU, frozen=True, valid=lengths(4, 2, 4, 1)),
    with_flax("valid_cumulative", LAST, [3, 4, 3], momentum=None, batches=2,
              valid=lengths(4, 3, 4, 2)),
    pytorch("valid_unbiased_planes", FIRST, [2, 3, 6], RELU, valid=lengths(6, 4, 5)),
    pytorch("valid_unbiased_rows", LAST, [3, 4, 4], residual=True, valid=lengths(4, 1, 4, 2)),
]
names = [case["name"] for case in cases]
assert len(set(names)) == len(names)


# --- Output: one field a line -----------------------------------------------


def plain(value):
    return value.flatten().tolist() if isinstance(value, np.ndarray) else value


def lines(case):
    order = ["name", "source", "layout", "shape", "eps", "activation", "frozen", "momentum"]
    order += ["num_batches_tracked", "unbiased", "valid", *TENSORS, *VECTORS, *ANSWERS]
    assert set(order) == case.keys()
    values = ((key, json.dumps(plain(case[key]), allow_nan=False)) for key in order)
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {value}" for key, value in values) + "\n}"


versions = {
    "python": platform.python_version(),
    "numpy": np.__version__,
    "torch": torch.__version__,
    "jax": jax.__version__,
    "flax": flax.__version__,
}
text = f"""{{
"versions": {json.dumps(versions)},
"cases": [{", ".join(map(lines, cases))}]
}}
"""
Path(__file__).with_suffix(".json").write_text(text)
