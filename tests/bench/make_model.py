"""Fixed model: float32 [1,8,64] -> conv autoencoder -> recon [1,8,64] + score [1] (MSE in the graph). Also int8 (QDQ, static).
Also writes values.csv (4096 rows x 8 channels: what the sensor plays) and expected_{f32,int8}.npy (score of the window ending at row r, hop 1)."""

import os, numpy as np, onnx, onnxruntime as ort
from onnx import helper as h, TensorProto as T, numpy_helper as nh

D = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")
os.makedirs(D, exist_ok=True)
rng = np.random.default_rng(7)
K = 4096
init, nodes, npar = [], [], 0


def conv(x, y, ci, co, k, s, act):
    global npar
    w = (rng.standard_normal((co, ci, k)) * np.sqrt((2 if act else 1) / (ci * k))).astype(np.float32)
    b = (rng.standard_normal(co) * 0.01).astype(np.float32)
    npar += w.size + b.size
    init.extend([nh.from_array(w, y + "_w"), nh.from_array(b, y + "_b")])
    nodes.append(
        h.make_node(
            "Conv",
            [x, y + "_w", y + "_b"],
            [y + ("_c" if act else "")],
            name=y,
            kernel_shape=[k],
            strides=[s],
            pads=[k // 2, k // 2],
        )
    )
    if act:
        nodes.append(h.make_node("Relu", [y + "_c"], [y], name=y + "_relu"))


def up(x, y):
    nodes.append(
        h.make_node(
            "Resize",
            [x, "", "scales"],
            [y],
            name=y,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    )


init.append(nh.from_array(np.array([1, 1, 2], np.float32), "scales"))
conv("x", "e1", 8, 32, 5, 2, 1)
conv("e1", "e2", 32, 48, 5, 2, 1)
conv("e2", "e3", 48, 24, 3, 2, 1)
up("e3", "u1")
conv("u1", "d1", 24, 48, 3, 1, 1)
up("d1", "u2")
conv("u2", "d2", 48, 32, 5, 1, 1)
up("d2", "u3")
conv("u3", "recon", 32, 8, 5, 1, 0)
nodes += [
    h.make_node("Sub", ["x", "recon"], ["err"], name="err"),
    h.make_node("Mul", ["err", "err"], ["err2"], name="err2"),
]
init.append(nh.from_array(np.array([1, 2], np.int64), "axes"))
nodes.append(h.make_node("ReduceMean", ["err2", "axes"], ["score"], name="score_mean", keepdims=0))
g = h.make_graph(
    nodes,
    "ae32",
    [h.make_tensor_value_info("x", T.FLOAT, [1, 8, 64])],
    [h.make_tensor_value_info("recon", T.FLOAT, [1, 8, 64]), h.make_tensor_value_info("score", T.FLOAT, [1])],
    init,
)
m = h.make_model(g, opset_imports=[h.make_opsetid("", 18)], ir_version=9, producer_name="kentledge-bench")
onnx.checker.check_model(m)
onnx.save(m, f"{D}/ae_f32.onnx")
print("params", npar)
t = np.arange(K)[:, None]
c = np.arange(8)[None, :]
v = (
    np.sin(2 * np.pi * t * (c + 1) * 8 / K)
    + 0.3 * np.sin(2 * np.pi * t * (37 + 5 * c) / K)
    + 0.15 * rng.standard_normal((K, 8))
)
v[1000:1040, 2] += 3
txt = [",".join(f"{x:.5f}" for x in r) for r in v]
open(f"{D}/values.csv", "w").write("\n".join(txt) + "\n")
v = np.array([[float(x) for x in r.split(",")] for r in txt], np.float32)


def win(r):
    return np.ascontiguousarray(v[(np.arange(r - 63, r + 1)) % K].T)[None]


from onnxruntime.quantization import quantize_static, CalibrationDataReader, QuantType, QuantFormat
from onnxruntime.quantization.shape_inference import quant_pre_process


class R(CalibrationDataReader):
    def __init__(s):
        s.i = iter(range(63, K, 16))

    def get_next(s):
        r = next(s.i, None)
        return None if r is None else {"x": win(r)}


quant_pre_process(f"{D}/ae_f32.onnx", f"{D}/pre.onnx", skip_symbolic_shape=True)
quantize_static(
    f"{D}/pre.onnx",
    f"{D}/ae_int8.onnx",
    R(),
    quant_format=QuantFormat.QDQ,
    activation_type=QuantType.QUInt8,
    weight_type=QuantType.QInt8,
    per_channel=True,
    nodes_to_exclude=["err", "err2", "score_mean"],
)
os.remove(f"{D}/pre.onnx")
for n in ("f32", "int8"):
    o = ort.SessionOptions()
    o.intra_op_num_threads = 1
    s = ort.InferenceSession(f"{D}/ae_{n}.onnx", o, providers=["CPUExecutionProvider"])
    e = np.array([s.run(["score"], {"x": win(r)})[0][0] for r in range(K)], np.float32)
    np.save(f"{D}/expected_{n}.npy", e)
    import time

    x = win(100)
    ts = []
    for _ in range(3000):
        a = time.perf_counter()
        s.run(["score"], {"x": x})
        ts.append(time.perf_counter() - a)
    print(n, "score range", e.min(), e.max(), "py run p50 us", np.median(ts) * 1e6, os.path.getsize(f"{D}/ae_{n}.onnx"))
