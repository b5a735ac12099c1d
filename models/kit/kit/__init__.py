"""The laptop's half of a model's life: collect, train, distil, quantise, evaluate, choose and bundle small ONNX models."""
