"""Writes state.safetensors, a model's state as PyTorch saves it, and state.json, what it holds.

Run:  pip install torch safetensors
      python tests/data/state.py

The files kept beside this one were made with Python 3.11.7, PyTorch 2.15.0 and
safetensors 0.8.0 on a CPU.

The model has a convolution and three batch norms: one of the usual kind, one
with affine=False, one with track_running_stats=False. It is trained for a few
steps in float32. The state of the first batch norm is there again in each of
the types that Module.to knows: float16, bfloat16, float64.
"""

import json
import platform
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import nn


def model():
    """The model. state_back.py builds it too."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.BatchNorm2d(4, affine=False, momentum=0.2),
        nn.BatchNorm2d(4, track_running_stats=False, eps=1e-3),
    )


NORMS = ["1", "3", "4"]


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        x = 3.0 * torch.randn(4, 2, 5, 5) + 1.0
        target = torch.randn(4, 4, 5, 5)
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def evaluate(model):
    """The input and the output of each batch norm in evaluation."""
    seen = {}
    x = torch.randn(2, 2, 3, 3)
    with torch.no_grad():
        for name, module in model.eval().named_children():
            y = module(x)
            seen[name] = (x, y)
            x = y
    return seen


def lines(case):
    """A case with one field a line."""
    fields = (f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in case.items())
    return "{\n" + ",\n".join(fields) + "\n}"


def main():
    torch.manual_seed(20260103)
    trained = model()
    train(trained)
    seen = evaluate(trained)

    state = dict(trained.state_dict())
    cases = []
    for name in NORMS:
        norm = trained.get_submodule(name)
        x, y = seen[name]
        values = {k: v.tolist() for k, v in norm.state_dict().items()}
        cases.append({
            "prefix": f"{name}.",
            "affine": norm.affine,
            "track_running_stats": norm.track_running_stats,
            "eps": norm.eps,
            "state": values,
            "shape": list(x.shape),
            "x": x.flatten().tolist(),
            "y": y.flatten().tolist(),
        })

    # Other types; to() leaves the number of batches as it is. Values are as float32.
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        norm = nn.BatchNorm2d(4)
        norm.load_state_dict(trained.get_submodule("1").state_dict())
        prefix = str(dtype).removeprefix("torch.") + "."
        converted = norm.to(dtype).state_dict()
        state |= {prefix + k: v for k, v in converted.items()}
        x, _ = seen["1"]
        y = norm.float().eval()(x).detach()
        values = {k: v.tolist() for k, v in norm.state_dict().items()}
        cases.append(cases[0] | {"prefix": prefix, "state": values, "y": y.flatten().tolist()})

    here = Path(__file__)
    save_file(state, here.with_suffix(".safetensors"))
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }
    text = f"""{{
"versions": {json.dumps(versions)},
"cases": [{", ".join(map(lines, cases))}]
}}
"""
    here.with_suffix(".json").write_text(text)


if __name__ == "__main__":
    main()
