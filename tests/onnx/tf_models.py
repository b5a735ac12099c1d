"""Makes the models in tests/onnx/tensorflow/ as a user of Keras and TensorFlow would, and what TensorFlow itself answers.

The models are committed (18 KB together), because what makes them is 1.5 GB of packages. To make them again:

    pip install --target TF tensorflow-cpu==2.20.0 tf2onnx==1.17.0 onnx==1.23.2
    PYTHONPATH=TF python3 tests/onnx/tf_models.py

`*_export.onnx` are written by Keras itself (`model.export(…, format="onnx")`), the others by `python -m tf2onnx.convert` from a saved
model, or from TensorFlow Lite (`*_lite.onnx`). All names are those that the tools make.

`expected.json`: rows of the channels `temp` and `flow`, and for each model the keys of its pipeline and the scores of the windows in
order, by TensorFlow.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import keras
import numpy as np
import onnx
import tensorflow as tf
from keras import layers

HERE = Path(__file__).resolve().parent / "tensorflow"
HERE.mkdir(exist_ok=True)
SCRATCH = Path(tempfile.mkdtemp())
noise = random.Random(13)
ROWS = [[round(20 + 5 * noise.random(), 2), round(3 + 2 * noise.random(), 2)] for _ in range(24)]
windows = np.array(ROWS, dtype=np.float32).reshape(6, 4, 2)
keras.utils.set_random_seed(13)
STEPS = "window_steps = 4\nhop_steps = 4\n"
models = {}


def convert(path, *options):
    command = [sys.executable, "-m", "tf2onnx.convert", *options, "--output", str(path)]
    subprocess.run(command, check=True, capture_output=True, cwd=SCRATCH)


def note(path, keys, scores):
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    names = lambda values: [v.name for v in values]
    shape = lambda v: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
    shown = lambda values: ", ".join(f"{v.name}{shape(v)}" for v in values)
    print(f"{path.name}: {path.stat().st_size} bytes, IR {model.ir_version}, opsets {[o.version for o in model.opset_import]}: "
          f"{shown(model.graph.input)} -> {shown(model.graph.output)}")
    for n, name in enumerate(names(model.graph.output)):
        keys = keys.replace(f"OUTPUT{n}", name)
    models[path.name] = {"keys": keys, "scores": [round(float(x), 6) for x in np.ravel(scores)]}


def save(name, model, keys, scores, lite=False):
    saved = str(SCRATCH / name)
    model.export(saved)
    convert(HERE / f"{name}.onnx", "--saved-model", name, "--opset", "17")
    note(HERE / f"{name}.onnx", keys, scores)
    model.export(str(HERE / f"{name}_export.onnx"), format="onnx")
    note(HERE / f"{name}_export.onnx", keys, scores)
    if lite:
        flat = SCRATCH / f"{name}.tflite"
        flat.write_bytes(tf.lite.TFLiteConverter.from_saved_model(saved).convert())
        convert(HERE / f"{name}_lite.onnx", "--tflite", flat.name, "--opset", "17")
        note(HERE / f"{name}_lite.onnx", keys, scores)


def call(model, *inputs):
    out = model([tf.constant(i) for i in inputs] if len(inputs) > 1 else tf.constant(inputs[0]), training=False)
    return [np.array(o) for o in out] if isinstance(out, (list, tuple)) else np.array(out)


model = keras.Sequential([
    keras.Input((4, 2)), layers.Flatten(), layers.Dense(3, "tanh"), layers.Dense(8), layers.Reshape((4, 2)),
])
rms = lambda w: np.sqrt(np.mean((call(model, w[None])[0] - w) ** 2))
save("autoencoder", model, STEPS + 'reconstruction = "OUTPUT0"\n', [rms(w) for w in windows], lite=True)

# Channels last, as convolutions of Keras want them.
model = keras.Sequential([
    keras.Input((4, 2)), layers.Rescaling(0.1), layers.Conv1D(4, 3, padding="same", activation="relu"), layers.BatchNormalization(),
    layers.GlobalAveragePooling1D(), layers.Dense(3, activation="softmax"),
])
keys = STEPS + 'classes = ["ok", "wear", "leak"]\nscore = "OUTPUT0[2]"\n'
save("cnn", model, keys, [call(model, w[None])[0, 2] for w in windows], lite=True)

# The state goes in and comes out.
x, h0, c0 = keras.Input((4, 2), name="x"), keras.Input((4,), name="h0"), keras.Input((4,), name="c0")
out, hn, cn = layers.LSTM(4, return_state=True, name="lstm")(x, initial_state=[h0, c0])
model = keras.Model([x, h0, c0], [layers.Dense(1, name="score")(out), hn, cn])
h, c, scores = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32), []
for w in windows:
    score, h, c = call(model, w[None], h, c)
    scores.append(score)
save("lstm", model, 'window_steps = 4\nscore = "OUTPUT0"\nstate = { "OUTPUT1" = "h0", "OUTPUT2" = "c0" }\n', scores)

(HERE / "expected.json").write_text(json.dumps({"rows": ROWS, "models": models}, indent=1) + "\n")
