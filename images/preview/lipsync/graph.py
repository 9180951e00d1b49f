"""Read a TFLite file (TensorFlow Lite's schema.fbs, version 3) into constants and steps; `interpreter` runs them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tflite
import torch

_KINDS = {number: name for name, number in vars(tflite.BuiltinOperator).items() if isinstance(number, int)}
_DTYPES = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64}
_OPTIONS = {
    "CONV_2D": tflite.Conv2DOptions,
    "DEPTHWISE_CONV_2D": tflite.DepthwiseConv2DOptions,
    "MAX_POOL_2D": tflite.Pool2DOptions,
    "ADD": tflite.AddOptions,
    "CONCATENATION": tflite.ConcatenationOptions,
}


@dataclass(frozen=True)
class GraphStep:
    """One operator. `options`: its options table, or None. `shape`: the shape of its output, N first."""

    kind: str
    inputs: tuple[int, ...]
    output: int
    shape: tuple[int, ...]
    options: Any


@dataclass(frozen=True)
class Graph:
    """`size`: side of the square RGB input. Constants are in TFLite's layouts (NHWC, OHWI), half floats widened."""

    size: int
    input: int
    outputs: tuple[int, ...]
    constants: Mapping[int, torch.Tensor]
    steps: tuple[GraphStep, ...]


def read(path: Path) -> Graph:
    """Read a float model with one subgraph. Half-precision weights are widened, so no step is DEQUANTIZE."""
    model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    graph = model.Subgraphs(0)
    constants = dict(_constants(model, graph))
    steps = []
    for step in _steps(model, graph):
        if step.kind == "DEQUANTIZE":
            constants[step.output] = constants[step.inputs[0]]
        else:
            steps.append(step)
    entry = int(graph.InputsAsNumpy()[0])
    size = int(graph.Tensors(entry).ShapeAsNumpy()[1])
    return Graph(size, entry, _ints(graph.OutputsAsNumpy()), constants, tuple(steps))


def _constants(model: Any, graph: Any) -> Iterator[tuple[int, torch.Tensor]]:
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        data = model.Buffers(tensor.Buffer()).DataAsNumpy()
        if isinstance(data, int) or not data.size:  # flatbuffers returns 0 for an empty buffer: a step computes it
            continue
        values = np.frombuffer(data.tobytes(), _DTYPES[tensor.Type()]).reshape(tensor.ShapeAsNumpy())
        yield index, torch.from_numpy(values.astype(np.float32) if values.dtype == np.float16 else values.copy())


def _steps(model: Any, graph: Any) -> Iterator[GraphStep]:
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        # older converters store operators numbered below 127 in the older field
        kind = _KINDS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        output = int(operator.OutputsAsNumpy()[0])
        shape = _ints(graph.Tensors(output).ShapeAsNumpy())
        yield GraphStep(kind, _ints(operator.InputsAsNumpy()), output, shape, _options(operator, kind))


def _options(operator: Any, kind: str) -> Any:
    if kind not in _OPTIONS:
        return None
    table = operator.BuiltinOptions()
    options = _OPTIONS[kind]()
    options.Init(table.Bytes, table.Pos)
    return options


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
