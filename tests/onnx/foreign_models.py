"""Makes the models in tests/onnx/foreign/ as users of other tools would, and what those tools themselves answer.

The models are committed (22 KB together), because what makes them is 350 MB of packages. To make them again:

    pip install --target FOREIGN scikit-learn==1.9.1 skl2onnx==1.20.0 lightgbm==4.7.0 xgboost-cpu==3.2.0 onnxmltools==1.16.0 \\
        onnx==1.23.2 packaging==25.0
    PYTHONPATH=FOREIGN python3 tests/onnx/foreign_models.py

`expected.json`: rows of the channels `temp` and `flow`, and for each model the keys of its pipeline and the scores of the
windows in order: by the tool that trained it, or by the reference evaluator of `onnx` for models that are made here by hand.
"""

import json
import random
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

HERE = Path(__file__).parent / "foreign"
FLOAT, DOUBLE, HALF, BRAIN, INT64 = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.INT64,
)
noise = random.Random(7)
ROWS = [[round(20 + 5 * noise.random(), 2), round(3 + 2 * noise.random(), 2)] for _ in range(24)]
rows = np.array(ROWS, dtype=np.float32)
windows = rows.reshape(6, 4, 2)
models = {}


def save(name, model, keys, scores):
    checker.check_model(model)
    path = HERE / name
    path.write_bytes(model.SerializeToString())
    models[name] = {"keys": keys, "scores": [round(float(x), 6) for x in np.ravel(scores)]}
    print(f"{name}: {path.stat().st_size} bytes; {models[name]['scores'][:3]}")


def by_hand(name, nodes, inputs, outputs, constants, keys, run):
    value = helper.make_tensor_value_info
    inits = [numpy_helper.from_array(np.array(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, name, [value(*i) for i in inputs], [value(*o) for o in outputs], inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(name, model, keys, run(ReferenceEvaluator(model)))


def node(op, inputs, output, **more):
    return helper.make_node(op, inputs, output if isinstance(output, list) else [output], **more)


STEPS = "window_steps = 4\nhop_steps = 4\n"
ROW = "window_steps = 1\n"


def mean_of(name, kind, back, shape, keys, feed):
    """The mean of the window, by way of another type."""
    nodes = [
        node("Cast", ["x"], "f", to=FLOAT),
        node("ReduceMean", ["f"], "m", axes=list(range(1, len(shape))), keepdims=0),
        node("Cast", ["m"], "y", to=back),
    ]
    run = lambda model: [np.ravel(model.run(None, {"x": feed(w)})[0])[0] for w in windows]
    by_hand(name, nodes, [("x", kind, shape)], [("y", back, [shape[0]])], {}, keys, run)


mean_of("half.onnx", HALF, HALF, [1, 4, 2], STEPS, lambda w: w[None].astype(np.float16))
mean_of("double.onnx", DOUBLE, DOUBLE, ["N", 4, 2], STEPS, lambda w: w[None].astype(np.float64))
mean_of("whole.onnx", INT64, FLOAT, [1, 4, 2], STEPS, lambda w: np.round(w[None]).astype(np.int64))
mean_of("image.onnx", FLOAT, FLOAT, ["N", 2, 4, 1], STEPS, lambda w: w.T[None, ..., None])
mean_of("batch.onnx", FLOAT, FLOAT, [8, 4, 2], STEPS, lambda w: np.stack([w] * 8))

# bfloat16 is not in numpy: what comes out is the mean with 8 bits.
nodes = [node("Cast", ["x"], "f", to=FLOAT), node("ReduceMean", ["f"], "m", keepdims=0), node("Cast", ["m"], "y", to=BRAIN)]


def brain(x):
    bits = np.asarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


by_hand("brain.onnx", nodes, [("x", BRAIN, [1, 4, 2])], [("y", BRAIN, [])], {}, STEPS,
        lambda _: [brain(np.mean(brain(w), dtype=np.float32)) for w in windows])

# A GRU as an exporter writes it: the state goes in as h0 and comes back as hn.
random_weights = np.random.default_rng(7)
weights = {
    "w": random_weights.normal(0, 0.2, (1, 9, 2)).astype(np.float32),
    "r": random_weights.normal(0, 0.5, (1, 9, 3)).astype(np.float32),
}
nodes = [
    node("Transpose", ["x"], "t", perm=[1, 0, 2]),
    node("GRU", ["t", "w", "r", "", "", "h0"], ["all", "hn"], hidden_size=3),
    node("ReduceSum", ["hn"], "y", keepdims=0),
]


def gru(model):
    state, scores = np.zeros((1, 1, 3), dtype=np.float32), []
    for w in windows:
        score, state = model.run(None, {"x": w[None], "h0": state})
        scores.append(score)
    return scores


by_hand("gru.onnx", nodes, [("x", FLOAT, ["N", 4, 2]), ("h0", FLOAT, [1, "N", 3])],
        [("y", FLOAT, []), ("hn", FLOAT, [1, "N", 3])], weights, "window_steps = 4\nstate = { hn = \"h0\" }\n", gru)

# A mean that is carried: h_out = (h_in + mean) / 2. The scores of a stream can be worked out by hand.
nodes = [
    node("ReduceMean", ["x"], "m", axes=[1, 2], keepdims=0),
    node("Add", ["m", "h_in"], "s"),
    node("Mul", ["s", "half"], "h_out"),
    node("Identity", ["h_out"], "score"),
]


def carried(model):
    state, scores = np.zeros(1, dtype=np.float32), []
    for w in windows:
        state, score = model.run(["h_out", "score"], {"x": w[None], "h_in": state})
        scores.append(score)
    return scores


by_hand("carried.onnx", nodes, [("x", FLOAT, [1, 4, 2]), ("h_in", FLOAT, [1])],
        [("score", FLOAT, [1]), ("h_out", FLOAT, [1])], {"half": np.array([0.5], dtype=np.float32)},
        "window_steps = 4\nstate = { h_out = \"h_in\" }\n", carried)

# Other tools.
from lightgbm import LGBMClassifier, LGBMRegressor
from onnxmltools import convert_lightgbm, convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType as Floats
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier

train = np.random.default_rng(7).uniform([20, 3], [25, 5], (400, 2)).astype(np.float32)
target = train[:, 0] * 2 - train[:, 1]
label = (train[:, 0] > 22) * 1 + (train[:, 1] > 4) * 1
CLASSES = 'classes = ["ok", "wear", "leak"]\nscore = "probabilities[2]"\n'
small = {"n_estimators": 5, "random_state": 7}

model = LGBMRegressor(num_leaves=6, verbose=-1, **small).fit(train, target)
save("lightgbm.onnx", convert_lightgbm(model, initial_types=[("input", Floats([None, 2]))], target_opset=15), ROW,
     model.predict(rows))
model = LGBMClassifier(num_leaves=4, verbose=-1, **small).fit(train, label)
onnx = convert_lightgbm(model, initial_types=[("input", Floats([None, 2]))], target_opset=15, zipmap=False)
save("lightgbm_classes.onnx", onnx, ROW + CLASSES, model.predict_proba(rows)[:, 2])
model = XGBClassifier(max_depth=3, **small).fit(train, label)
save("xgboost.onnx", convert_xgboost(model, initial_types=[("input", Floats([None, 2]))], target_opset=15), ROW + CLASSES,
     model.predict_proba(rows)[:, 2])
# Fitted on a data frame: an input for each column.
model = LinearRegression().fit(train, target)
columns = [("Flow", FloatTensorType([None, 1])), ("temp", FloatTensorType([None, 1]))]
scale = ColumnTransformer([("flow", StandardScaler(), [0]), ("temp", StandardScaler(), [1])])
flipped = make_pipeline(scale, LinearRegression()).fit(train[:, ::-1], target)
save("columns.onnx", to_onnx(flipped, initial_types=columns, target_opset={"": 17, "ai.onnx.ml": 3}), ROW,
     model.predict(rows))

(HERE / "expected.json").write_text(json.dumps({"rows": ROWS, "models": models}, indent=1) + "\n")
