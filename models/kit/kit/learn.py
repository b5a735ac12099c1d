"""Teacher, student and int8 variant: training, distillation, quantisation, and the one ONNX file that comes out.

A model of the kit is: front end (`front.py`) → head (scikit-learn, by skl2onnx) → logits → `probabilities`, `score`. The score is the
log-odds of a fault, ln(P(fault) / P(ok)): it does not saturate, so a threshold and a band around it mean the same everywhere.
"""

from __future__ import annotations

import pathlib
import tempfile
import warnings
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, checker, compose, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import VotingClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from . import checks, run
from .data import Floats, Windows
from .errors import Refused
from .front import IR_VERSION, OPSET, FrontEnd, front_model

SMALLEST = 1e-4
"""Probabilities below it are treated as equal: their logarithm would only teach noise."""
AGREE_MIN = 0.8
"""A student that names another class than its teacher in more than one training window of five is refused."""
DOMAINS = {"": OPSET, "ai.onnx.ml": 3}


@dataclass(frozen=True)
class Head:
    """What stands behind the features: `features` [N, F] to `logits` [N, classes]."""

    model: onnx.ModelProto
    classes: tuple[str, ...]


def features(front: FrontEnd, windows: Windows) -> Floats:
    """The features of windows, by the very nodes that will serve."""
    return run.outputs(front_model(front), windows.x, ["features"])[0]


def logits(head: Head, x: Floats) -> Floats:
    """What a head says to features: the logarithm of a probability for each class, up to a constant."""
    return run.outputs(head.model, x, ["logits"])[0]


def train(
    windows: Windows, x: Floats, classes: tuple[str, ...], members: int = 4, hidden: int = 32, alpha: float = 1.0, seed: int = 1
) -> Head:
    """Trains a teacher on labelled windows and their features `x`: a committee of perceptrons that vote with their probabilities."""
    checks.finite(windows)
    checks.alive(windows)
    checks.labelled(windows, classes)
    y = np.array([classes.index(label) for label in windows.label.tolist()])
    judges = [
        (
            f"m{i}",
            make_pipeline(
                StandardScaler(),
                MLPClassifier(
                    hidden_layer_sizes=(hidden,), alpha=alpha, early_stopping=True, n_iter_no_change=12, max_iter=200, random_state=seed + i
                ),
            ),
        )
        for i in range(members)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        committee = VotingClassifier(judges, voting="soft", flatten_transform=False).fit(x, y)
        made = to_onnx(
            committee,
            initial_types=[("features", FloatTensorType([None, x.shape[1]]))],
            target_opset=DOMAINS,
            options={id(committee): {"zipmap": False}},
        )
    made.ir_version = IR_VERSION
    keep = [node for node in made.graph.node]
    keep.append(helper.make_node("Max", ["probabilities", "t_smallest"], ["t_kept"]))
    keep.append(helper.make_node("Log", ["t_kept"], ["logits"]))
    made.graph.initializer.append(numpy_helper.from_array(np.array(SMALLEST, np.float32), "t_smallest"))
    return Head(_with_output(made, keep, len(classes)), classes)


def _with_output(made: onnx.ModelProto, nodes: list[onnx.NodeProto], classes: int) -> onnx.ModelProto:
    """The head with `logits` as its only output, and without what then leads nowhere."""
    wanted, kept = {"logits"}, []
    constants = list(made.graph.initializer)
    split = [plain for given in nodes for plain in _plain(given, constants)]
    for node in reversed(split):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    constants = [c for c in constants if c.name in wanted]
    graph = helper.make_graph(
        kept[::-1],
        "head",
        list(made.graph.input),
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        constants,
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in DOMAINS.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="kentledge-kit")


def _plain(node: onnx.NodeProto, constants: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    """scikit-learn's scaler in the standard's own operators: the type of `ai.onnx.ml.Scaler` is not inferred, so nothing behind it would
    be quantised. (`NAME_scale` is taken: the quantiser calls its own so.)"""
    if node.op_type != "Scaler":
        return [node]
    values = {a.name: np.array(a.floats, np.float32) for a in node.attribute}
    name = node.output[0]
    constants += [numpy_helper.from_array(values["offset"], f"{name}_offset"), numpy_helper.from_array(values["scale"], f"{name}_factor")]
    return [
        helper.make_node("Sub", [node.input[0], f"{name}_offset"], [f"{name}_centred"]),
        helper.make_node("Mul", [f"{name}_centred", f"{name}_factor"], [name]),
    ]


def distil(
    windows: Windows,
    x: Floats,
    target: Floats,
    classes: tuple[str, ...],
    hidden: tuple[int, ...] = (64, 32),
    seed: int = 1,
) -> Head:
    """Trains a small student to give the teacher's logits `target` (Ba & Caruana 2014; Hinton et al. 2015). Labels are not needed.

    `x` are the features of the windows by the student's own front end.
    """
    checks.finite(windows)
    checks.alive(windows)
    if not len(windows) == len(x) == len(target):
        raise Refused(
            f"distil: {len(windows)} windows, {len(x)} rows of features and {len(target)} answers of the teacher: not the same set"
        )
    student = make_pipeline(
        StandardScaler(),
        MLPRegressor(hidden_layer_sizes=hidden, alpha=1e-3, early_stopping=True, n_iter_no_change=15, max_iter=300, random_state=seed),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        student.fit(x, target)
        made = to_onnx(student, initial_types=[("features", FloatTensorType([None, x.shape[1]]))], target_opset=DOMAINS)
    made.ir_version = IR_VERSION
    # The converter ends with a reshape to one column, whatever the number of outputs.
    (last,) = [node for node in made.graph.node if "variable" in node.output]
    nodes = [*made.graph.node, helper.make_node("Identity", [last.input[0]], ["logits"])]
    head = Head(_with_output(made, nodes, len(classes)), classes)
    agree(logits(head, x), target)
    return head


def agree(student: Floats, teacher: Floats, least: float = AGREE_MIN) -> float:
    """The share of windows in which both name the same class. Raises Refused below `least`."""
    share = float((student.argmax(axis=1) == teacher.argmax(axis=1)).mean())
    if share < least:
        raise Refused(
            f"the student names the teacher's class in {share:.0%} of {len(student)} windows, fewer than {least:.0%}: other windows, "
            "another order of classes or channels, another scale, or too small a student"
        )
    return share


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: Floats) -> None:
        self.rows = iter(x)

    def get_next(self) -> dict[str, Floats] | None:
        row = next(self.rows, None)
        return None if row is None else {"features": row[None]}


def quantise(head: Head, x: Floats, most: int = 400) -> Head:
    """An int8 variant of the head (QDQ: 8-bit weights and activations), with ranges from the features `x`. The front end stays float."""
    if not len(x) or not np.isfinite(x).all():
        raise Refused(f"quantise: {len(x)} rows of calibration features, and all must be finite")
    x = x[:: max(1, len(x) // most)]
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = (pathlib.Path(folder, name) for name in ("plain.onnx", "ready.onnx", "small.onnx"))
        onnx.save(head.model, str(plain))
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(small),
            _Calibration(x),
            quant_format=QuantFormat.QDQ,
            # A scale for each channel needs biases of one dimension; skl2onnx writes rows.
            per_channel=False,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
        made = onnx.load(str(small))
    if not any(tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2 for tensor in made.graph.initializer):
        raise Refused("quantise: no weights became int8: the types of the model's tensors could not be inferred")
    made.ir_version = IR_VERSION
    del made.opset_import[:]
    made.opset_import.extend([helper.make_opsetid(domain, version) for domain, version in DOMAINS.items()])
    return Head(made, head.classes)


def same_decisions(floating: onnx.ModelProto, small: onnx.ModelProto, windows: Windows, threshold: float, least: float = 0.97) -> float:
    """The share of windows in which both scores lie on the same side of the threshold. Raises Refused below `least`."""
    (a,), (b,) = run.outputs(floating, windows.x, ["score"]), run.outputs(small, windows.x, ["score"])
    share = float(((a > threshold) == (b > threshold)).mean())
    if share < least:
        raise Refused(
            f"int8 decides otherwise than float in {1 - share:.1%} of {len(windows)} windows (at most {1 - least:.0%}): were the "
            "calibration windows of the same machines, channels and scale?"
        )
    return share


def assemble(front: FrontEnd, head: Head, batch: int | str = "N", name: str = "model") -> onnx.ModelProto:
    """Front end, head and the named outputs in one model: `score` [batch], `probabilities` and `logits` [batch, classes].

    A bundle takes `batch=1`.
    """
    before = front_model(front, "N", name)
    # The same imports on both sides: compose refuses anything else.
    before.opset_import.append(helper.make_opsetid("ai.onnx.ml", DOMAINS["ai.onnx.ml"]))
    behind = compose.add_prefix(head.model, "h_", rename_inputs=False, rename_outputs=False, rename_nodes=True)
    merged = compose.merge_models(before, behind, io_map=[("features", _input(behind))])
    classes = len(head.classes)
    nodes = list(merged.graph.node)
    constants = list(merged.graph.initializer)

    def const(name: str, value: list[int]) -> str:
        constants.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    nodes += [
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("Slice", ["logits", const("t_1", [1]), const("t_end", [classes]), "t_1"], ["t_faults"]),
        helper.make_node("ReduceLogSumExp", ["t_faults", "t_1"], ["t_fault"], keepdims=0),
        helper.make_node("Gather", ["logits", "t_ok"], ["t_normal"], axis=1),
        helper.make_node("Sub", ["t_fault", "t_normal"], ["score"]),
    ]
    constants.append(numpy_helper.from_array(np.array(0, np.int64), "t_ok"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        name,
        [value("x", TensorProto.FLOAT, [batch, front.steps, len(front.channels.names)])],
        [
            value("score", TensorProto.FLOAT, [batch]),
            value("probabilities", TensorProto.FLOAT, [batch, classes]),
            value("logits", TensorProto.FLOAT, [batch, classes]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=list(merged.opset_import), ir_version=IR_VERSION, producer_name="kentledge-kit")
    helper.set_model_props(model, {"classes": ",".join(head.classes), "channels": ",".join(front.channels.names)})
    checker.check_model(model)
    return model


def _input(model: onnx.ModelProto) -> str:
    return str(model.graph.input[0].name)
