"""Makes the models in tests/onnx/torch/ as a user of PyTorch would, with both of its exporters, and what PyTorch itself answers.

The models are committed (52 KB together), because what makes them is 5 GB of packages. To make them again:

    pip install --target TORCH torch==2.15.0 onnx==1.23.2 onnxscript==0.7.2 numpy
    PYTHONPATH=TORCH python3 tests/onnx/torch_models.py

`*_ts.onnx` come from the exporter of TorchScript (`dynamo=False`), the others from the present one. Names of inputs and outputs are
those that the exporter makes, except where a state needs names. The only change behind the export: the folder of the packages in
the exporter's notes becomes `/site`.

`expected.json`: rows of the channels `temp` and `flow`, and for each model the keys of its pipeline and the scores of the windows in
order, by PyTorch.
"""

import json
import random
import sysconfig
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

HERE = Path(__file__).parent / "torch"
SITE = str(Path(torch.__file__).parent.parent)
noise = random.Random(11)
ROWS = [[round(20 + 5 * noise.random(), 2), round(3 + 2 * noise.random(), 2)] for _ in range(24)]
windows = torch.tensor(ROWS, dtype=torch.float32).reshape(6, 4, 2)
torch.manual_seed(11)
HERE.mkdir(exist_ok=True)
STEPS = "window_steps = 4\nhop_steps = 4\n"
models = {}


def clean(model):
    """The notes without the folders of the machine."""
    def notes(message):
        for field, value in message.ListFields():
            if field.message_type is None:
                continue
            for part in value if field.is_repeated else [value]:
                if part.DESCRIPTOR.name == "StringStringEntryProto":
                    for folder in (SITE, sysconfig.get_paths()["stdlib"], str(Path(__file__).parent)):
                        part.value = part.value.replace(folder, "/site")
                notes(part)
    notes(model)


def save(name, model, example, keys, scores, **options):
    model.eval()
    for suffix, dynamo in (("_ts", False), ("", True)):
        path = HERE / f"{name}{suffix}.onnx"
        of = dict(options)
        if dynamo:
            of["external_data"] = False
            shapes = of.pop("dynamic_axes", None)
            if shapes:
                of["dynamic_shapes"] = of.pop("shapes")
        else:
            of.pop("shapes", None)
        torch.onnx.export(model, example, str(path), dynamo=dynamo, **of)
        proto = onnx.load(str(path))
        clean(proto)
        onnx.checker.check_model(proto)
        path.write_bytes(proto.SerializeToString())
        names = lambda values: ", ".join(f"{v.name}{[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]}" for v in values)
        print(f"{path.name}: {path.stat().st_size} bytes, IR {proto.ir_version}, opset {proto.opset_import[0].version}: "
              f"{names(proto.graph.input)} -> {names(proto.graph.output)}")
        output = proto.graph.output[0].name
        models[path.name] = {"keys": keys.replace("OUTPUT", output), "scores": [round(float(x), 6) for x in scores]}


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 8))

    def forward(self, x):
        return self.body(x).reshape(-1, 4, 2)


class Memory(nn.Module):
    """A score, and a state that goes in and comes out."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x, h0, c0):
        out, (hn, cn) = self.lstm(x, (h0, c0))
        return self.head(out[:, -1]), hn, cn


class Gru(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(2, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, x, h0):
        out, hn = self.gru(x, h0)
        return self.head(out[-1]).squeeze(-1), hn


class Classifier(nn.Module):
    """Channels first, as convolutions of PyTorch want them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm1d(2), nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)
        )

    def forward(self, x):
        return self.body(x).softmax(dim=-1)


with torch.no_grad():
    model = Autoencoder().eval()
    scores = [((model(w[None]) - w[None]) ** 2).mean().sqrt() for w in windows]
    batch = {"dynamic_axes": {"x": {0: "batch"}}, "shapes": ({0: torch.export.Dim("batch")},), "input_names": ["x"]}
    save("autoencoder", model, (windows[:2],), STEPS + 'reconstruction = "OUTPUT"\n', scores, **batch)
    # Nothing is named and nothing is dynamic, as in most examples.
    save("plain", model, (windows[:1],), STEPS + 'reconstruction = "OUTPUT"\n', scores)

    model, h, c, scores = Memory().eval(), torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), []
    example = (windows[:1], h, c)
    for w in windows:
        score, h, c = model(w[None], h, c)
        scores.append(score)
    names = {"input_names": ["x", "h0", "c0"], "output_names": ["score", "hn", "cn"]}
    save("lstm", model, example, 'window_steps = 4\nstate = { hn = "h0", cn = "c0" }\n', scores, **names)

    # Steps before batch, as nn.GRU has it unless told otherwise.
    model, h, scores = Gru().eval(), torch.zeros(1, 1, 3), []
    example = (windows[0][:, None], h)
    for w in windows:
        score, h = model(w[:, None], h)
        scores.append(score)
    names = {"input_names": ["x", "h0"], "output_names": ["score", "hn"]}
    save("gru", model, example, 'window_steps = 4\nstate = { hn = "h0" }\n', scores, **names)

    model = Classifier()
    model(windows.transpose(1, 2) + torch.randn(6, 2, 4))  # BatchNorm has seen something
    model.eval()
    scores = [model(w.T[None])[0, 2] for w in windows]
    keys = STEPS + 'classes = ["ok", "wear", "leak"]\nscore = "OUTPUT[2]"\nlayout = "channels_first"\n'
    batch = {"dynamic_axes": {"x": {0: "N"}}, "shapes": ({0: torch.export.Dim("N")},), "input_names": ["x"]}
    save("cnn", model, (windows[:2].transpose(1, 2),), keys, scores, **batch)

(HERE / "expected.json").write_text(json.dumps({"rows": ROWS, "models": models}, indent=1) + "\n")
