"""Writes onnx_nodes.json: ONNX's own tests of its operator BatchNormalization.

Run:  pip install onnx==1.22.0
      python tests/data/onnx_nodes.py

The onnx_nodes.json kept beside this file was made with Python 3.11.7 and onnx 1.22.0.
The package holds the tests; they are copied, nothing is computed here.

ONNX's conventions (operator set 15):
- `momentum` weighs the old value, so it is 1 minus PyTorch's momentum:
  running = input * momentum + current * (1 - momentum).
- The variance that goes into running_var is the population variance (divided
  by N), the same that normalizes x; PyTorch's is the sample variance (N - 1).

All tensors are float32 and in memory order, channels second. Their numbers are
printed as float64 with enough digits to be read back exactly. The settings
epsilon and momentum are printed as the shortest decimals that name the float32.
"""

import json
import platform
from pathlib import Path

HERE = Path(__file__).resolve().parent

import numpy as np
import onnx
from onnx import helper, numpy_helper

DEFAULTS = {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0}
INPUTS = ["x", "scale", "bias", "input_mean", "input_var"]
OUTPUTS = ["y", "running_mean", "running_var"]  # only y in evaluation


def read_tensor(path):
    array = numpy_helper.to_array(onnx.load_tensor(path))
    assert array.dtype == np.float32
    return array


def read_case(folder, node):
    """One test; `node` is the only one in its model."""
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert settings.keys() <= DEFAULTS.keys()
    settings = DEFAULTS | settings
    outputs = OUTPUTS if settings["training_mode"] else OUTPUTS[:1]
    assert len(node.input) == len(INPUTS) and len(node.output) == len(outputs)

    data = folder / "test_data_set_0"
    tensors = {key: read_tensor(data / f"input_{i}.pb") for i, key in enumerate(INPUTS)}
    tensors |= {key: read_tensor(data / f"output_{i}.pb") for i, key in enumerate(outputs)}
    case = {
        "name": folder.name,
        "shape": tensors["x"].shape,
        "epsilon": float(str(np.float32(settings["epsilon"]))),
        "momentum": float(str(np.float32(settings["momentum"]))),
        "training_mode": bool(settings["training_mode"]),
    }
    case.update({key: array.flatten().tolist() for key, array in tensors.items()})
    return case


cases = []
for path in sorted(Path(onnx.__file__).parent.glob("backend/test/data/node/*/model.onnx")):
    nodes = onnx.load(path).graph.node
    if any(node.op_type == "BatchNormalization" for node in nodes):
        assert len(nodes) == 1
        cases.append(read_case(path.parent, nodes[0]))


# --- Output: one field a line -----------------------------------------------


def lines(case):
    fields = (f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in case.items())
    return "{\n" + ",\n".join(fields) + "\n}"


versions = {"python": platform.python_version(), "onnx": onnx.__version__}
text = f"""{{
"versions": {json.dumps(versions)},
"cases": [{", ".join(map(lines, cases))}]
}}
"""
Path(__file__).with_suffix(".json").write_text(text)
