"""Prunes the parts of a network that no logit depends on.

A classifier reads its last layer at the first token only. Pruned, everything in that layer but its
keys and values is computed for one token of each text: exact, and about a seventh less computation
for a network of six layers.
"""

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper, numpy_helper

# Each output element depends on the same place of every input, or of one that is broadcast.
_ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Neg", "Where", "Cast", "Identity"),
    *("Erf", "Gelu", "Relu", "Tanh", "Sigmoid"),
}
# Likewise, but they read the whole last axis.
_ALONG_THE_LAST = {"Softmax", "LayerNormalization"}
_INDICES = 1
# For each input, the axis of which a node reads only the first index, or None for all of it.
Needs = Sequence[int | None]


def prune(model: onnx.ModelProto) -> bool:
    """Rewrite a traced network in place; return False, unchanged, if no part can be left out."""
    pruner = _Pruner(model)
    pruner.find()
    if not pruner.partial:
        return False
    pruner.rewrite()
    return True


class _Pruner:
    """``partial`` are the tensors of which only the first index along an axis is needed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self._ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
        self._ranks |= {weight.name: len(weight.dims) for weight in self._graph.initializer}
        self._producers = {name: node for node in self._graph.node for name in node.output}
        self.partial: dict[str, int] = {}

    def find(self) -> None:
        """Walk from the outputs to the inputs, and find the part of each tensor that is needed."""
        needed: dict[str, set[int | None]] = {output.name: {None} for output in self._graph.output}
        for node in reversed(self._graph.node):
            axes = set().union(*(needed.get(name, set()) for name in node.output))
            axis = next(iter(axes)) if len(axes) == 1 else None
            needs = self._needs(node, axis)
            if needs is not None and axis is not None:
                self.partial[node.output[0]] = axis
            for index, name in enumerate(node.input):
                needed.setdefault(name, set()).add(needs[index] if needs else None)

    def rewrite(self) -> None:
        """Slice the tensors where a partial need begins, and drop unneeded nodes."""
        nodes, cut = [], dict[tuple[str, int], str]()
        for node in self._graph.node:
            needs = self._needs(node, self._axis(node)) or [None] * len(node.input)
            for index, (name, axis) in enumerate(zip(list(node.input), needs, strict=True)):
                if axis is None or name in self.partial or self._reads_first(node):
                    continue
                if (name, axis) not in cut:
                    cut[name, axis] = f"{name}_first_{axis}"
                    nodes += _first(name, axis, cut[name, axis])
                node.input[index] = cut[name, axis]
            if node.op_type == "Reshape" and node.output[0] in self.partial:
                shape = f"{node.output[0]}_shape"
                nodes.append(_constant(shape, self._static_shape(node) or []))
                node.input[_INDICES] = shape
            nodes.append(node)
        del self._graph.value_info[:]
        del self._graph.node[:]
        self._graph.node.extend(
            _select_needed(nodes, [output.name for output in self._graph.output])
        )

    def _axis(self, node: onnx.NodeProto) -> int | None:
        return self.partial.get(node.output[0])

    def _needs(self, node: onnx.NodeProto, axis: int | None) -> Needs | None:
        """Return what a node reads for the first index of its output's axis; None if it reads all.

        Without an axis, return what it reads for its whole output.
        """
        if axis is None:
            return [1, None] if self._reads_first(node) else None
        ranks = [self._ranks[name] for name in node.input if name in self._ranks]
        rank = self._ranks.get(node.output[0])
        if rank is None or len(ranks) < len(node.input):
            return None
        needs: Needs | None = None
        last, op = rank - 1, node.op_type
        along_last = op in _ALONG_THE_LAST and _attribute(node, "axis", -1) in {-1, last}
        if op in _ELEMENTWISE or (along_last and axis < last):
            needs = [_align_axis(axis, rank, input_rank) for input_rank in ranks]
        elif op == "MatMul" and axis == last - 1:
            needs = [ranks[0] - 2, None]
        elif op == "Transpose":
            needs = [_attribute(node, "perm")[axis]]
        elif op == "Reshape" and self._keeps(node, axis):
            needs = [axis, None]
        return needs

    def _reads_first(self, node: onnx.NodeProto) -> bool:
        """Return whether it takes the first token of each text: shape (texts, tokens, width)."""
        return (
            node.op_type == "Gather"
            and _attribute(node, "axis") == 1
            and self._ranks.get(node.input[0]) == 3  # noqa: PLR2004
            and self._value(node.input[_INDICES]) == [0]
        )

    def _keeps(self, node: onnx.NodeProto, axis: int) -> bool:
        """Return whether a Reshape visibly leaves all axes up to this one as they are."""
        shape = self._static_shape(node)
        return shape is not None and shape[: axis + 1] == [0] * (axis + 1)

    def _static_shape(self, node: onnx.NodeProto) -> list[int] | None:
        """Return a Reshape's shape, with 0 (as in the input) for each size that is computed."""
        source = self._producers.get(node.input[_INDICES])
        if source is None or source.op_type != "Concat":
            return None
        parts = [self._value(name) for name in source.input]
        return [0 if part is None else part[0] for part in parts]

    def _value(self, name: str) -> list[int] | None:
        """Return the integers of a constant."""
        node = self._producers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        value = numpy_helper.to_array(_attribute(node, "value"))
        return [int(element) for element in value.reshape(-1)]


def _align_axis(axis: int, rank: int, input_rank: int) -> int | None:
    """Return an output's axis in an input of lower rank, which is broadcast from the left."""
    place = axis - (rank - input_rank)
    return place if place >= 0 else None


def _attribute(node: onnx.NodeProto, name: str, default: int = 0) -> Any:  # noqa: ANN401  of many types
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _constant(name: str, values: Sequence[int]) -> onnx.NodeProto:
    tensor = helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], list(values))
    return helper.make_node("Constant", [], [name], value=tensor)


def _first(name: str, axis: int, output: str) -> list[onnx.NodeProto]:
    """Return the nodes that keep the first index along an axis, as an axis of one."""
    bounds = {"starts": 0, "ends": 1, "axes": axis}
    constants = [_constant(f"{output}_{key}", [value]) for key, value in bounds.items()]
    inputs = [name, *(constant.output[0] for constant in constants)]
    return [*constants, helper.make_node("Slice", inputs, [output], name=output)]


def _select_needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs depend on, in order."""
    needed, selected = {*outputs}, list[onnx.NodeProto]()
    for node in reversed(nodes):
        if needed & {*node.output}:
            selected.append(node)
            needed |= {*node.input}
    return selected[::-1]
