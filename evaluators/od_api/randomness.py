"""Randomness: which outputs of a traced function are drawn at random, by its graph.

Two evaluations of one checkpoint may differ in such a number; that they were equal once proves
nothing. Faster R-CNN's region proposal losses are such: the OD API samples the anchors they are
computed on, also when it evaluates.
"""

import numpy
import tensorflow as tf

# Operations that draw from a generator's state, besides those with `seed` and `seed2`: a fixed seed
# makes runs of the program alike, not two calls in one. `StatelessRandom...` has its seed as an
# input, and is as random as that.
_DRAWING = ("StatefulUniform", "StatefulStandardNormal", "StatefulTruncatedNormal")
_DRAWING += ("StatefulRandomBinomial", "NonDeterministicInts", "RngReadAndSkip", "RngSkip")
# What is told of a device that gives two results for one batch.
UNSTEADY = (
    "one batch run twice gave different {}: this device is not deterministic, so two evaluations of"
    " one checkpoint may differ a little"
)
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


# AutoGraph converts what a traced function calls; the walk would take minutes.
@tf.autograph.experimental.do_not_convert
def random_outputs(outputs):
    """Returns the names of the outputs whose value depends on a random operation.

    Args:
        outputs: {name: value} of a function that is being traced; all of one graph. What is not
            computed there, such as a constant made before, is not random.
    """
    walk = _Walk()
    # Only what is in a graph has one.
    return {
        name
        for name, value in outputs.items()
        if hasattr(value, "graph") and walk.depends(value)[0]
    }


@tf.autograph.experimental.do_not_convert
def is_constant(tensor):
    """Tells whether a tensor is the same at each call of the function that is being traced."""
    return not hasattr(tensor, "graph") or _Walk().depends(tensor) == (False, frozenset())


def differing(first, second):
    """Returns the names of what two passes of one batch did not find alike, bit for bit.

    Args:
        first: (losses, detections) as `Model.forward` returns them.
        second: the same of the other pass.
    """
    return {
        name
        for one, other in zip(first, second)
        for name in one
        if numpy.asarray(one[name]).tobytes() != numpy.asarray(other[name]).tobytes()
    }


class _Walk:
    """Goes from a tensor back to what it is computed from, into the functions that are called.

    A call's output depends on what that output of the function depends on. A loop, a condition
    and anything else that holds functions counts as random when one of them draws anywhere, and
    so does a function that cannot be looked into. It asks the graph and not its GraphDef, which
    takes seconds to read where protobuf is plain Python.
    """

    def __init__(self):
        self._kinds = {}
        self._steps = {}
        self._found = {}

    def depends(self, tensor):
        """Returns (whether a tensor's value is random, which inputs of its graph it comes from)."""
        places = {one.op: place for place, one in enumerate(tensor.graph.inputs)}
        needed, seen, left = set(), set(), [tensor]
        while left:
            tensor = left.pop()
            op = tensor.op
            if op in places:
                needed.add(places[op])
                continue
            kind, inputs = self._step(op)
            key = (op, tensor.value_index if kind.is_call else 0)
            if key in seen:
                continue
            seen.add(key)
            is_random = kind.draws
            if kind.is_call:
                (graph,) = _held(op, kind)
                is_random, of = self._output(graph, tensor.value_index)
                inputs = [inputs[place] for place in of]
            if is_random or (not kind.is_call and self._draws_inside(op, kind)):
                return True, frozenset()
            left += inputs
        return False, frozenset(needed)

    def _output(self, graph, index):
        """Returns what `depends` does for one output of a function."""
        if graph is None:
            return True, frozenset()
        key = (id(graph), index)
        if key not in self._found:
            self._found[key] = (False, frozenset())  # for a function that calls itself
            self._found[key] = self.depends(graph.outputs[index])
        return self._found[key]

    def _draws_inside(self, op, kind):
        return any(graph is None or self._draws_anywhere(graph) for graph in _held(op, kind))

    def _draws_anywhere(self, graph):
        key = (id(graph), None)
        if key not in self._found:
            self._found[key] = False
            kinds = ((op, self._kind(op)) for op in graph.get_operations())
            self._found[key] = any(kind.draws or self._draws_inside(op, kind) for op, kind in kinds)
        return self._found[key]

    def _step(self, op):
        # Asked for once an operation, since TensorFlow makes both anew each time.
        if op not in self._steps:
            self._steps[op] = self._kind(op), list(op.inputs)
        return self._steps[op]

    def _kind(self, op):
        if op.type not in self._kinds:
            self._kinds[op.type] = _Kind(op)
        return self._kinds[op.type]


class _Kind:
    """What matters of a type of operation; reading it for each operation would take long.

    Attributes:
        draws: whether it is random by itself.
        is_call: whether it is a plain call of a function.
        functions: names of the attributes that hold functions.
    """

    def __init__(self, op):
        attributes = {attribute.name: attribute.type for attribute in op.op_def.attr}
        self.draws = op.type.startswith(_DRAWING) or {"seed", "seed2"} <= attributes.keys()
        self.is_call = op.type in _CALLS
        self.functions = [
            name for name, kind in attributes.items() if kind in ("func", "list(func)")
        ]


def _held(op, kind):
    """Returns the graphs of the functions an operation may run, None for one that is not known."""
    found = []
    for attribute in kind.functions:
        value = op.get_attr(attribute)
        for one in value if isinstance(value, (list, tuple)) else [value]:
            function = op.graph._get_function(one.name)
            found.append(getattr(function, "graph", None))
    return found
