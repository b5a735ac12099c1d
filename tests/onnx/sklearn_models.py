"""Makes the models in tests/onnx/sklearn/ as a user of scikit-learn would: train, export with skl2onnx, change nothing.

They are committed (86 KB together), because what makes them is 360 MB of packages. To make them again:

    pip install --target SKLEARN scikit-learn==1.7.2 skl2onnx==1.19.1 onnx==1.19.1 protobuf==6.33.1 packaging==25.0
    PYTHONPATH=SKLEARN python3 tests/onnx/sklearn_models.py

The machine: a load u that moves slowly between 8 and 12 (for the forest: stands at 10);
channel `a` is u, channel `b` is 2u, both with some noise. Wear: `a` is twice as large. Leak: `b` is half as large.
Broken: `a` is 3u, `b` is u/2. A window is 4 rows of `a` and `b`, flattened: 8 features.
"""

import math
import random
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPRegressor

STEPS = 4
noise = random.Random(7)


def windows(a, b, swing=2, rows=1000):
    """Windows of a machine whose channels are `a` and `b` times its load."""
    load = [10 + swing * math.sin(i / 7) for i in range(rows)]
    values = np.array([[a * u + noise.gauss(0, 0.1), b * u + noise.gauss(0, 0.1)] for u in load])
    flat = [values[i : i + STEPS].reshape(-1) for i in range(rows - STEPS + 1)]
    return np.array(flat, dtype=np.float32)


def save(name, model, **options):
    inputs = [("X", FloatTensorType([None, 2 * STEPS]))]
    opset = {"": 17, "ai.onnx.ml": 3}
    onnx = to_onnx(model, initial_types=inputs, target_opset=opset, options={id(model): options} if options else None)
    path = Path(__file__).parent / "sklearn" / name
    path.write_bytes(onnx.SerializeToString())
    outputs = ", ".join(f"{o.name}: {o.type.WhichOneof('value')}" for o in onnx.graph.output)
    print(f"{path.name}: {path.stat().st_size} bytes; {outputs}")


ok, wear, leak = windows(1, 2), windows(2, 2), windows(1, 1)

forest = IsolationForest(n_estimators=20, max_samples=32, random_state=7).fit(windows(1, 2, swing=0))
save("forest.onnx", forest)
for name, x in (("ok", windows(1, 2, swing=0)), ("broken", windows(3, 0.5, swing=0))):
    scores = forest.decision_function(x)
    print("forest:", name, scores.min().round(3), scores.mean().round(3), scores.max().round(3))

labels = [0] * len(ok) + [1] * len(wear) + [2] * len(leak)
classifier = LogisticRegression(max_iter=1000, C=0.01).fit(np.vstack([ok, wear, leak]), labels)
save("classes.onnx", classifier, zipmap=False)
save("classes_zipmap.onnx", classifier)
for name, x in (("ok", ok), ("wear", wear), ("leak", leak)):
    print("classes:", name, classifier.predict_proba(x).min(axis=0).round(3), classifier.predict_proba(x).max(axis=0).round(3))

autoencoder = MLPRegressor(hidden_layer_sizes=(2,), activation="identity", solver="lbfgs", random_state=7, max_iter=5000)
autoencoder.fit(ok, ok)
save("autoencoder.onnx", autoencoder)
for name, x in (("ok", ok), ("wear", wear), ("leak", leak)):
    rms = np.sqrt(((autoencoder.predict(x) - x) ** 2).mean(axis=1))
    print("autoencoder:", name, rms.min().round(3), rms.max().round(3))
