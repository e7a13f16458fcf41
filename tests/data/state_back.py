"""Checks that PyTorch loads the states that this crate writes.

Run:  pip install torch safetensors
      cargo test --test state -- --ignored writes_a_file_for_pytorch
      python tests/data/state_back.py out/state_back.safetensors

The file has the states of the batch norms of state.json. PyTorch must find in
it every name that it looks for and no other, in its own types and shapes, and
the batch norms must give the outputs that state.json says.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from state import NORMS, model

data = json.loads(Path(__file__).with_name("state.json").read_text())
cases = {case["prefix"]: case for case in data["cases"]}
loaded = load_file(sys.argv[1])
assert loaded, "the file is empty"

fresh = model().eval()
for name in NORMS:
    case = cases[f"{name}."]
    norm = fresh.get_submodule(name)
    own = norm.state_dict()
    given = {}
    for key in [key for key in loaded if key.startswith(f"{name}.")]:
        given[key.removeprefix(f"{name}.")] = loaded.pop(key)
    for key, tensor in given.items():
        assert tensor.dtype == own[key].dtype, f"{name}.{key}: {tensor.dtype}"
        assert tensor.shape == own[key].shape, f"{name}.{key}: {tensor.shape}"
        assert tensor.tolist() == case["state"][key], f"{name}.{key}"
    norm.load_state_dict(given, strict=True)
    x = torch.tensor(case["x"]).reshape(case["shape"])
    y = torch.tensor(case["y"]).reshape(case["shape"])
    torch.testing.assert_close(norm(x), y)
assert not loaded, f"what nobody asked for: {list(loaded)}"
print(f"PyTorch {torch.__version__} loads all {len(NORMS)} batch norms")
