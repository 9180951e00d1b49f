"""Run the float TFLite graphs of MediaPipe's face models with torch, in batches, on any device."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from lipsync.graph import Graph, GraphStep, read

Values = dict[int, torch.Tensor]
Operator = Callable[[Values], torch.Tensor]
_ACTIVATIONS: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
    0: lambda x: x,
    1: F.relu_,
    3: F.relu6,
}  # keys: ActivationFunctionType; only those that the face models use


class Interpreter:
    """A loaded model. Tensors between the steps are N, C, H, W in channels-last memory."""

    def __init__(self, path: Path, device: torch.device) -> None:
        graph = read(path)
        self.size = graph.size
        self._graph = graph
        constants = {index: value.to(device) for index, value in graph.constants.items()}
        self._steps = [(step.output, _OPERATORS[step.kind](step, constants)) for step in graph.steps]
        self._spent = _last_uses(graph)

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Run N, 3, size, size in the model's range. Return its outputs, N, ... in TFLite's order (channels last)."""
        with torch.inference_mode():
            values = {self._graph.input: images.contiguous(memory_format=torch.channels_last)}
            for (output, run), spent in zip(self._steps, self._spent, strict=True):
                values[output] = run(values)
                for index in spent:
                    del values[index]
            return [_nhwc(values[output]) for output in self._graph.outputs]


def _last_uses(graph: Graph) -> list[list[int]]:
    """Return for each step the values that no later step reads, so that their memory can be freed early."""
    seen = {*graph.outputs, *graph.constants}
    spent: list[list[int]] = []
    for step in reversed(graph.steps):
        fresh = [index for index in dict.fromkeys(step.inputs) if index not in seen]
        seen.update(fresh)
        spent.append(fresh)
    return spent[::-1]


def _nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def _same(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TFLite's SAME padding before and after one axis; an odd pixel goes after."""
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def _padder(same: bool, kernel: tuple[int, int], stride: int, fill: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def pad(x: torch.Tensor) -> torch.Tensor:
        top, bottom = _same(x.shape[2], kernel[0], stride)
        left, right = _same(x.shape[3], kernel[1], stride)
        return F.pad(x, (left, right, top, bottom), value=fill) if top or bottom or left or right else x

    return pad if same else lambda x: x


def _convolution(step: GraphStep, constants: Values) -> Operator:
    options, source = step.options, step.inputs[0]
    depthwise = step.kind == "DEPTHWISE_CONV_2D"
    stored = constants[step.inputs[1]]
    weight = stored.permute(3, 0, 1, 2) if depthwise else stored.permute(0, 3, 1, 2)
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias = constants[step.inputs[2]] if len(step.inputs) > 2 else None
    kernel, stride = (weight.shape[2], weight.shape[3]), options.StrideH()
    same = options.Padding() == 0
    # with stride 1 and odd kernels SAME is symmetric, so the convolution can pad without a copy
    inside = (kernel[0] // 2, kernel[1] // 2) if same and stride == 1 and kernel[0] % 2 == 1 else (0, 0)
    pad = _padder(same and inside == (0, 0), kernel, stride, 0.0)
    activate = _ACTIVATIONS[options.FusedActivationFunction()]
    groups = weight.shape[0] if depthwise else 1
    return lambda v: activate(F.conv2d(pad(v[source]), weight, bias, stride, inside, groups=groups))


def _max_pool(step: GraphStep, _: Values) -> Operator:
    options, source = step.options, step.inputs[0]
    kernel, stride = (options.FilterHeight(), options.FilterWidth()), options.StrideH()
    pad = _padder(options.Padding() == 0, kernel, stride, float("-inf"))
    return lambda v: F.max_pool2d(pad(v[source]), kernel, stride)


def _add(step: GraphStep, constants: Values) -> Operator:
    first, second = step.inputs
    activate = _ACTIVATIONS[step.options.FusedActivationFunction()]
    return lambda v: activate(v[first] + (v[second] if second in v else constants[second]))


def _prelu(step: GraphStep, constants: Values) -> Operator:
    source, slope = step.inputs[0], constants[step.inputs[1]].reshape(-1)
    return lambda v: F.prelu(v[source], slope)


def _relu(step: GraphStep, _: Values) -> Operator:
    return lambda v: F.relu(v[step.inputs[0]])


def _pad(step: GraphStep, constants: Values) -> Operator:
    _, rows, columns, channels = constants[step.inputs[1]].tolist()
    return lambda v: F.pad(v[step.inputs[0]], (*columns, *rows, *channels))


def _reshape(step: GraphStep, _: Values) -> Operator:
    def run(v: Values) -> torch.Tensor:
        flat = _nhwc(v[step.inputs[0]])
        shaped = flat.reshape(len(flat), *step.shape[1:])
        return shaped.permute(0, 3, 1, 2) if shaped.dim() == 4 else shaped

    return run


def _concatenation(step: GraphStep, _: Values) -> Operator:
    return lambda v: torch.cat([v[index] for index in step.inputs], step.options.Axis())


_OPERATORS: dict[str, Callable[[GraphStep, Values], Operator]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "MAX_POOL_2D": _max_pool,
    "ADD": _add,
    "PRELU": _prelu,
    "RELU": _relu,
    "PAD": _pad,
    "RESHAPE": _reshape,
    "CONCATENATION": _concatenation,
}
