"""Features as ONNX nodes: what stands before the model in the same file.

So training and serving cannot differ, the bundle's signature covers the features, and the device needs no second signal library.
`reference.py` computes the same with SciPy, written independently; the tests compare both.

Numbers are relative (ratios, logarithms of ratios), so that a machine with another gain gives similar features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import scipy.signal
from onnx import TensorProto, checker, helper, numpy_helper

from .data import Channels, Doubles
from .errors import Refused

OPSET = 18
IR_VERSION = 9
TINY = 1e-12
"""Under a square root or a division: a channel that is dead gives finite features."""
FLOOR = 1e-3
"""Under a logarithm, relative to the mean: 30 dB below it there is nothing that float32 would give twice alike."""


@dataclass(frozen=True)
class Stats:
    """RMS (log10), crest factor and kurtosis (log10) of a channel, after the linear trend is gone."""

    channel: int

    def names(self) -> list[str]:
        return [f"{kind}[{self.channel}]" for kind in ("rms", "crest", "kurtosis")]


@dataclass(frozen=True)
class Mel:
    """Log-mel bands of a channel: log10 of each band's power relative to the mean of all bands. Hann window."""

    channel: int
    bands: int
    low_hz: float
    high_hz: float

    def names(self) -> list[str]:
        return [f"mel{i}[{self.channel}]" for i in range(self.bands)]


@dataclass(frozen=True)
class Bands:
    """log10 of the share of a channel's power in each band; edges in Hz. Hann window."""

    channel: int
    edges_hz: tuple[float, ...]

    def names(self) -> list[str]:
        return [f"band{lo:g}-{hi:g}[{self.channel}]" for lo, hi in pairwise(self.edges_hz)]


@dataclass(frozen=True)
class Envelope:
    """Spectrum of the squared envelope in a frequency band: log10 of the peak near each line, relative to the mean of the spectrum.

    Lines are (name, Hz, ± Hz). The squared envelope is that of the analytic signal of the band (what `scipy.signal.hilbert` gives).
    """

    channel: int
    low_hz: float
    high_hz: float
    lines: tuple[tuple[str, float, float], ...]
    mean_from_hz: float = 6.0
    mean_to_hz: float = 400.0

    def names(self) -> list[str]:
        return [f"{name}@{self.low_hz:g}-{self.high_hz:g}[{self.channel}]" for name, _, _ in self.lines]


@dataclass(frozen=True)
class ShortEnvelope:
    """Almost what `Envelope` gives, for a third of its time: short FIR filters move bands to 0 Hz and keep each `stride`-th value, where
    `Envelope` transforms the whole window and back. Several bands are the channels of the same nodes, so the second costs little.

    One more feature of each band is its share of the channel's power (log10). Half of a band must fit the rate after `stride`. Each `pool`
    values of the squared envelope become their mean: a slower envelope, and a shorter spectrum.
    """

    channel: int
    bands_hz: tuple[tuple[float, float], ...]
    lines: tuple[tuple[str, float, float], ...]
    taps: int = 32
    stride: int = 4
    pool: int = 1
    mean_from_hz: float = 6.0
    mean_to_hz: float = 400.0

    def names(self) -> list[str]:
        bands = [f"{low:g}-{high:g}[{self.channel}]" for low, high in self.bands_hz]
        return [f"{name}@{band}" for band in bands for name, _, _ in self.lines] + [f"share@{band}" for band in bands]


Block = Stats | Mel | Bands | Envelope | ShortEnvelope


def top_hz(block: Block) -> float:
    """The highest frequency that a block looks at; 0 if it has none."""
    match block:
        case Mel() | Envelope():
            return block.high_hz
        case ShortEnvelope():
            return max(high for _, high in block.bands_hz)
        case Bands():
            return max(block.edges_hz)
        case Stats():
            return 0.0


@dataclass(frozen=True)
class FrontEnd:
    """The features of a model: blocks in order, over windows of `steps` rows."""

    channels: Channels
    steps: int
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        if self.steps & (self.steps - 1):
            raise Refused(f"front end: {self.steps} steps is no power of two: ONNX Runtime's DFT is slow there. Take 1024, 2048, …")
        for block in self.blocks:
            if not 0 <= block.channel < len(self.channels.names):
                raise Refused(f"front end: no channel {block.channel}: there are {len(self.channels.names)}")
            if top_hz(block) > self.channels.rate_hz / 2:
                raise Refused(f"front end: {top_hz(block):g} Hz is above half the rate of {self.channels.rate_hz:g} Hz")
            if isinstance(block, ShortEnvelope):
                self._fits(block)

    def _fits(self, block: ShortEnvelope) -> None:
        rate_hz = self.channels.rate_hz / block.stride
        every = block.stride * block.pool
        if every & (every - 1):
            raise Refused(f"front end: a stride of {block.stride} × {block.pool} leaves no power of two of values. Take 2, 4, 8, …")
        widest_hz = max(high - low for low, high in block.bands_hz)
        if widest_hz > rate_hz:
            raise Refused(f"front end: a band of {widest_hz:g} Hz does not fit {rate_hz:g} values a second. Take a smaller stride")
        outside = [name for name, hz, width_hz in block.lines if hz + width_hz >= rate_hz / block.pool / 2]
        if outside:
            raise Refused(
                f"front end: line {outside[0]} is above half of {rate_hz / block.pool:g} Hz, the rate of the envelope. Take a smaller stride"
            )

    def names(self) -> list[str]:
        return [name for block in self.blocks for name in block.names()]

    def as_json(self) -> dict[str, object]:
        blocks = [{"kind": type(block).__name__, **asdict(block)} for block in self.blocks]
        return {"channels": self.channels.as_json(), "steps": self.steps, "blocks": blocks}

    @property
    def resolution_hz(self) -> float:
        return self.channels.rate_hz / self.steps


def band_bins(front: FrontEnd, block: Envelope) -> tuple[int, int]:
    """First bin of the band, and how many: a power of two, so that the short transform is fast."""
    first = max(1, round(block.low_hz / front.resolution_hz))
    wide = max(2, round((block.high_hz - block.low_hz) / front.resolution_hz))
    count = 1 << (wide - 1).bit_length() if wide & (wide - 1) else wide
    return first, min(count, front.steps // 2 - first)


def line_bins(front: FrontEnd, hz: float, width_hz: float) -> range:
    """Bins of the envelope's spectrum that are near a line."""
    low = max(1, int(np.ceil((hz - width_hz) / front.resolution_hz - 0.5)))
    high = int(np.floor((hz + width_hz) / front.resolution_hz + 0.5))
    return range(low, max(high, low) + 1)


class Graph:
    """Nodes and constants, with names of their own."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[str, str, bytes], str] = {}
        self.initializers: list[onnx.TensorProto] = []

    def const(self, value: npt.ArrayLike, kind: type = np.float32) -> str:
        array: npt.NDArray[Any] = np.asarray(value, dtype=kind)
        key = (str(array.dtype), str(array.shape), array.tobytes())
        if key not in self.constants:
            self.constants[key] = f"{self.prefix}c{len(self.constants)}"
            self.initializers.append(numpy_helper.from_array(array, self.constants[key]))
        return self.constants[key]

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{self.prefix}{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def split(self, value: str, axis: int, count: int) -> list[str]:
        names = [f"{self.prefix}Split{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node("Split", [value], names, axis=axis, num_outputs=count))
        return names

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def reduce(self, kind: str, value: str, axis: int, keep: bool = False) -> str:
        return self.op(kind, value, self.ints(axis), keepdims=int(keep))

    def slice(self, value: str, axis: int, start: int, end: int) -> str:
        return self.op("Slice", value, self.ints(start), self.ints(end), self.ints(axis))

    def log10(self, value: str) -> str:
        return self.op("Mul", self.op("Log", value), self.const(1 / np.log(10)))

    def power(self, spectrum: str) -> str:
        """|X|² of a complex tensor whose last axis is (re, im)."""
        return self.reduce("ReduceSumSquare", spectrum, -1)


class _Signals:
    """The channels that a front end looks at, without their linear trend, and their statistics: [N, used, …], made once. Windows are so
    small that a node costs as much as its work, so all channels share the nodes."""

    def __init__(self, graph: Graph, front: FrontEnd, x: str) -> None:
        self.graph, self.used = graph, sorted({block.channel for block in front.blocks})
        g, n = graph, front.steps
        raw = self._columns(x, n, len(front.channels.names))
        # Least squares: the mean and the slope, and what both make of the row.
        ramp = g.op("Sub", g.op("Range", g.const(0.0), g.const(float(n)), g.const(1.0)), g.const((n - 1) / 2))
        ones = g.op("ConstantOfShape", g.ints(n), value=numpy_helper.from_array(np.ones(1, np.float32)))
        both = g.op("Concat", g.op("Unsqueeze", ones, g.ints(0)), g.op("Unsqueeze", ramp, g.ints(0)), axis=0)
        fit = g.op("Div", g.op("Transpose", both, perm=[1, 0]), g.const([n, n * (n * n - 1) / 12]))
        self.flat = g.op("Sub", raw, g.op("MatMul", g.op("MatMul", raw, fit), both))
        self._square: str | None = None
        self._second: str | None = None
        self._stats: str | None = None

    def _columns(self, x: str, steps: int, channels: int) -> str:
        """Columns as rows. ONNX Runtime is slow with `Gather` along the last axis: a product picks one column in a third of the time, and
        `Split` takes all."""
        g = self.graph
        if len(self.used) == 1:
            column = np.eye(channels, dtype=np.float32)[:, self.used]
            return g.op("Reshape", g.op("MatMul", x, g.const(column)), g.ints(0, 1, steps))
        parts = g.split(x, 2, channels)
        return g.op("Reshape", g.op("Concat", *(parts[i] for i in self.used), axis=1), g.ints(0, len(self.used), steps))

    def one(self, value: str, channel: int) -> str:
        """What belongs to one channel."""
        return self.graph.op("Gather", value, self.graph.const(self.used.index(channel), np.int64), axis=1)

    def square(self) -> str:
        if self._square is None:
            self._square = self.graph.op("Mul", self.flat, self.flat)
        return self._square

    def second(self) -> str:
        """The mean square, never 0."""
        if self._second is None:
            g = self.graph
            self._second = g.op("Max", g.reduce("ReduceMean", self.square(), 2, keep=True), g.const(TINY))
        return self._second

    def stats(self) -> str:
        if self._stats is None:
            g, square, second = self.graph, self.square(), self.second()
            fourth = g.reduce("ReduceMean", g.op("Mul", square, square), 2, keep=True)
            rms = g.op("Mul", g.op("Log", second), g.const(0.5 / np.log(10)))
            crest = g.op("Sqrt", g.op("Div", g.reduce("ReduceMax", square, 2, keep=True), second))
            kurtosis = g.op("Max", g.op("Div", fourth, g.op("Mul", second, second)), g.const(FLOOR))
            self._stats = g.op("Concat", rms, crest, g.log10(kurtosis), axis=2)
        return self._stats


class _Channel:
    """What several blocks need of one channel, made once."""

    def __init__(self, signals: _Signals, front: FrontEnd, index: int) -> None:
        self.graph, self.signals, self.front, self.index = signals.graph, signals, front, index
        self._flat: str | None = None
        self._spectrum: str | None = None
        self._hann_power: str | None = None

    def _dft(self, value: str) -> str:
        g = self.graph
        return g.op("DFT", g.op("Unsqueeze", value, g.ints(2)), axis=1, onesided=1)

    @property
    def flat(self) -> str:
        if self._flat is None:
            self._flat = self.signals.one(self.signals.flat, self.index)
        return self._flat

    def second(self) -> str:
        return self.signals.one(self.signals.second(), self.index)

    def stats(self) -> str:
        return self.signals.one(self.signals.stats(), self.index)

    def spectrum(self) -> str:
        if self._spectrum is None:
            self._spectrum = self._dft(self.flat)
        return self._spectrum

    def hann_power(self) -> str:
        if self._hann_power is None:
            g = self.graph
            window = g.op("HannWindow", g.const(self.front.steps, np.int64))
            self._hann_power = g.power(self._dft(g.op("Mul", self.flat, window)))
        return self._hann_power


def _share(g: Graph, values: str, mean: str) -> str:
    """values / mean; both [N, …]."""
    return g.op("Div", values, g.op("Max", mean, g.const(TINY)))


def _log_share(g: Graph, share: str) -> str:
    """log10 of shares, with a floor."""
    return g.log10(g.op("Add", share, g.const(FLOOR)))


def mel_of(hz: float) -> float:
    """The mel scale of HTK and of the ONNX standard."""
    return float(2595 * np.log10(1 + hz / 700))


def _mel(g: Graph, front: FrontEnd, channel: _Channel, block: Mel) -> str:
    # MelWeightMatrix divides the range by bands + 2, so its last triangle ends too low. A higher upper edge makes the usual bank of
    # bands + 1 equal steps, as HTK and librosa have it.
    low, high = mel_of(block.low_hz), mel_of(block.high_hz)
    upper_hz = 700 * (10 ** ((low + (high - low) * (block.bands + 2) / (block.bands + 1)) / 2595) - 1)
    if upper_hz >= front.channels.rate_hz / 2:
        raise Refused(
            f"front end: a mel bank of {block.bands} bands up to {block.high_hz:g} Hz needs more room below half the rate: lower it"
        )
    weights = g.op(
        "MelWeightMatrix",
        g.const(block.bands, np.int64),
        g.const(front.steps, np.int64),
        g.const(int(front.channels.rate_hz), np.int64),
        g.const(block.low_hz),
        g.const(upper_hz),
    )
    bands = g.op("MatMul", channel.hann_power(), weights)
    return _log_share(g, _share(g, bands, g.reduce("ReduceMean", bands, 1, keep=True)))


def _bands(g: Graph, front: FrontEnd, channel: _Channel, block: Bands) -> str:
    power = channel.hann_power()
    edges = [round(hz / front.resolution_hz) for hz in block.edges_hz]
    parts = [g.reduce("ReduceSum", g.slice(power, 1, lo, hi), 1, keep=True) for lo, hi in pairwise(edges)]
    return _log_share(g, _share(g, g.op("Concat", *parts, axis=1), g.reduce("ReduceSum", power, 1, keep=True)))


def _envelope(g: Graph, front: FrontEnd, channel: _Channel, block: Envelope) -> str:
    first, count = band_bins(front, block)
    # The band moved down to 0 Hz is the complex envelope. At twice as many points as bins its square has no aliases.
    points = 2 << (count - 1).bit_length()
    band = g.slice(channel.spectrum(), 1, first, first + count)
    padded = g.op("Pad", band, g.ints(0, 0, 0, 0, points - count, 0))
    envelope = g.power(g.op("DFT", padded, axis=1, inverse=1))
    level = g.reduce("ReduceMean", envelope, 1, keep=True)
    centred = g.op("Div", g.op("Sub", envelope, level), g.op("Max", level, g.const(TINY)))
    window = g.op("HannWindow", g.const(points, np.int64))
    outside = [name for name, hz, width in block.lines if line_bins(front, hz, width)[-1] >= points // 2]
    if outside:
        raise Refused(f"front end: line {outside[0]} is above what a band of {count * front.resolution_hz:g} Hz can show")
    spectrum = g.op("DFT", g.op("Unsqueeze", g.op("Mul", centred, window), g.ints(2)), axis=1, onesided=1)
    return _log_share(g, _lines(g, front, block, g.op("Sqrt", g.power(spectrum)), count, axis=1))


def _lines(g: Graph, front: FrontEnd, block: Envelope | ShortEnvelope, size: str, most: int, axis: int) -> str:
    """The peak near each line of spectra along their last axis, relative to the mean of that spectrum; of `most` bins at most."""
    low, high = _mean_bins(front, block)
    mean = g.reduce("ReduceMean", g.slice(size, axis, low, min(high, most)), axis, keep=True)
    bins = [list(line_bins(front, hz, width)) for _, hz, width in block.lines]
    width = max(len(near) for near in bins)
    table = np.array([near + [near[-1]] * (width - len(near)) for near in bins], dtype=np.int64)
    peaks = g.reduce("ReduceMax", g.op("Gather", size, g.const(table, np.int64), axis=axis), axis + 1)
    return _share(g, peaks, mean)


def _mean_bins(front: FrontEnd, block: Envelope | ShortEnvelope) -> tuple[int, int]:
    return round(block.mean_from_hz / front.resolution_hz), round(block.mean_to_hz / front.resolution_hz)


def band_taps(front: FrontEnd, block: ShortEnvelope) -> Doubles:
    """The filters: cosine and sine of each band's middle under a low pass of half its width; bands × 2 × taps."""
    rate_hz, at = front.channels.rate_hz, np.arange(block.taps) - (block.taps - 1) / 2
    filters = []
    for low_hz, high_hz in block.bands_hz:
        low = scipy.signal.firwin(block.taps, (high_hz - low_hz) / 2, fs=rate_hz)
        turns = 2 * np.pi * (low_hz + high_hz) / 2 / rate_hz * at
        filters.append([low * np.cos(turns), low * np.sin(turns)])
    return np.array(filters)


def _fourier(g: Graph, points: int, bins: int) -> str:
    """A spectrum as a matrix [points, bins × (re, im)]: mean off, Hann window, the first bins. Where few bins are wanted of short rows this
    is faster than `DFT`. ONNX Runtime computes it once, when it loads the model, so the file stays small."""

    def count(to: int) -> str:
        return g.op("Range", g.const(0, np.int64), g.const(to, np.int64), g.const(1, np.int64))

    # The turn is taken modulo in whole numbers: no digit of the angle is lost.
    turns = g.op("Mul", g.op("Unsqueeze", count(points), g.ints(1)), g.op("Unsqueeze", count(bins), g.ints(0)))
    angle = g.op("Mul", g.op("Cast", g.op("Mod", turns, g.const(points, np.int64)), to=TensorProto.FLOAT), g.const(2 * np.pi / points))
    parts = [g.op("Unsqueeze", g.op(kind, angle), g.ints(2)) for kind in ("Cos", "Sin")]
    both = g.op("Reshape", g.op("Concat", *parts, axis=2), g.ints(points, 2 * bins))
    window = g.op("Unsqueeze", g.op("HannWindow", g.const(points, np.int64)), g.ints(1))
    windowed = g.op("Mul", both, window)
    return g.op("Sub", windowed, g.reduce("ReduceMean", windowed, 0, keep=True))


def _short_envelope(g: Graph, front: FrontEnd, channel: _Channel, block: ShortEnvelope) -> str:
    count, points, more = len(block.bands_hz), front.steps // (block.stride * block.pool), block.taps - block.stride
    filters = band_taps(front, block).reshape(2 * count, 1, block.taps) / np.sqrt(block.pool)
    flat = g.op("Unsqueeze", channel.flat, g.ints(1))
    bands = g.op("Conv", flat, g.const(filters), strides=[block.stride], pads=[more // 2, more - more // 2])
    # Cosine and sine of a band make one value of its squared envelope, and the mean of `pool` of them is kept.
    parts = g.op("Reshape", bands, g.ints(0, count, 2, points, block.pool))
    envelope = g.op("ReduceSumSquare", parts, g.ints(2, 4), keepdims=0)
    bins = min(points // 2, max(_mean_bins(front, block)[1], *(line_bins(front, hz, width)[-1] + 1 for _, hz, width in block.lines)))
    spectrum = g.op("Reshape", g.op("MatMul", envelope, _fourier(g, points, bins)), g.ints(0, count, bins, 2))
    lines = _lines(g, front, block, g.op("Sqrt", g.power(spectrum)), points // 2, axis=2)
    shares = g.op("Div", g.reduce("ReduceMean", envelope, 2), channel.second())
    return _log_share(g, g.op("Concat", g.op("Flatten", lines), shares, axis=1))


def front_model(front: FrontEnd, batch: int | str = "N", name: str = "features") -> onnx.ModelProto:
    """The features as a model of their own: `x` [N, steps, channels] to `features` [N, F]."""
    g = Graph("f_")
    signals = _Signals(g, front, "x")
    made: dict[int, _Channel] = {}
    parts = []
    for block in front.blocks:
        if block.channel not in made:
            made[block.channel] = _Channel(signals, front, block.channel)
        channel = made[block.channel]
        match block:
            case Stats():
                parts.append(channel.stats())
            case Mel():
                parts.append(_mel(g, front, channel, block))
            case Bands():
                parts.append(_bands(g, front, channel, block))
            case Envelope():
                parts.append(_envelope(g, front, channel, block))
            case ShortEnvelope():
                parts.append(_short_envelope(g, front, channel, block))
    g.nodes.append(helper.make_node("Concat", parts, ["features"], axis=1))
    graph = helper.make_graph(
        g.nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, front.steps, len(front.channels.names)])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, len(front.names())])],
        g.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="kentledge-kit")
    checker.check_model(model)
    return model
