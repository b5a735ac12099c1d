"""The features of `front.py` once more, with SciPy in float64: what the ONNX nodes are compared with. Never used to train."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import scipy.fft
import scipy.signal
import scipy.stats

from .data import Doubles, Floats
from .front import FLOOR, TINY, Bands, Envelope, FrontEnd, Mel, ShortEnvelope, Stats, band_bins, line_bins


def mel_weights(bands: int, dft_length: int, rate_hz: int, low_hz: float, high_hz: float) -> Doubles:
    """Triangles with equal steps on the mel scale, between whole bins: bins × bands."""
    low_mel, high_mel = 2595 * np.log10(1 + low_hz / 700), 2595 * np.log10(1 + high_hz / 700)
    edges = np.linspace(low_mel, high_mel, bands + 2)
    hz = 700 * (10 ** (edges / 2595) - 1)
    bins = ((dft_length + 1) * hz / rate_hz).astype(np.int64)
    weights = np.zeros((dft_length // 2 + 1, bands))
    for i in range(bands):
        low, centre, high = bins[i : i + 3]
        if centre == low:
            weights[centre, i] = 1
        else:
            weights[low : centre + 1, i] = (np.arange(low, centre + 1) - low) / (centre - low)
        if high > centre:
            weights[centre:high, i] = (high - np.arange(centre, high)) / (high - centre)
    return weights


def _relative(values: Doubles, mean: Doubles | float) -> Doubles:
    return np.asarray(np.log10(values / np.maximum(mean, TINY) + FLOOR))


def _envelope(front: FrontEnd, block: Envelope, flat: Doubles) -> Doubles:
    first, count = band_bins(front, block)
    spectrum = scipy.fft.rfft(flat)
    kept = np.zeros_like(spectrum)
    kept[first : first + count] = spectrum[first : first + count]
    square = np.abs(scipy.signal.hilbert(scipy.fft.irfft(kept, len(flat)))) ** 2
    # At the same instants as the short transform has points.
    points = 2 << (count - 1).bit_length()
    square = scipy.signal.resample(square, points)
    size = np.abs(scipy.fft.rfft((square / square.mean() - 1) * scipy.signal.get_window("hann", points)))
    low, high = round(block.mean_from_hz / front.resolution_hz), round(block.mean_to_hz / front.resolution_hz)
    peaks = np.array([size[list(line_bins(front, hz, width))].max() for _, hz, width in block.lines])
    return _relative(peaks, float(size[low : min(high, count)].mean()))


def _short_envelope(front: FrontEnd, block: ShortEnvelope, flat: Doubles) -> Doubles:
    # Each band is moved to 0 Hz first and filtered then, which gives the same envelope as a filter that is moved.
    rate_hz, n = front.channels.rate_hz, len(flat)
    first = block.taps - 1 - (block.taps - block.stride) // 2
    lines, shares = [], []
    for low_hz, high_hz in block.bands_hz:
        moved = flat * np.exp(-2j * np.pi * (low_hz + high_hz) / 2 / rate_hz * np.arange(n))
        low = scipy.signal.firwin(block.taps, (high_hz - low_hz) / 2, fs=rate_hz)
        square = np.abs(scipy.signal.convolve(moved, low, mode="full", method="direct")[first :: block.stride][: n // block.stride]) ** 2
        square = square.reshape(-1, block.pool).mean(axis=1)
        size = np.abs(scipy.fft.rfft((square / square.mean() - 1) * scipy.signal.get_window("hann", len(square))))
        from_bin, to_bin = round(block.mean_from_hz / front.resolution_hz), round(block.mean_to_hz / front.resolution_hz)
        peaks = np.array([size[list(line_bins(front, hz, width))].max() for _, hz, width in block.lines])
        lines.append(_relative(peaks, float(size[from_bin : min(to_bin, len(square) // 2)].mean())))
        shares.append(square.mean())
    return np.concatenate([*lines, _relative(np.array(shares), float(np.mean(flat**2)))])


def features(front: FrontEnd, x: Floats) -> Doubles:
    """Features of windows × steps × channels, by SciPy."""
    out = []
    for window in x.astype(np.float64):
        parts = []
        for block in front.blocks:
            flat = scipy.signal.detrend(window[:, block.channel])
            power = np.abs(scipy.fft.rfft(flat * scipy.signal.get_window("hann", front.steps))) ** 2
            match block:
                case Stats():
                    rms = np.sqrt(np.mean(flat**2))
                    kurtosis = scipy.stats.moment(flat, 4, center=0.0) / rms**4
                    parts.append(np.array([np.log10(rms), np.abs(flat).max() / rms, np.log10(kurtosis)]))
                case Mel():
                    weights = mel_weights(block.bands, front.steps, int(front.channels.rate_hz), block.low_hz, block.high_hz)
                    bands = power @ weights
                    parts.append(_relative(bands, float(bands.mean())))
                case Bands():
                    edges = [round(hz / front.resolution_hz) for hz in block.edges_hz]
                    shares = np.array([power[lo:hi].sum() for lo, hi in pairwise(edges)])
                    parts.append(_relative(shares, float(power.sum())))
                case Envelope():
                    parts.append(_envelope(front, block, flat))
                case ShortEnvelope():
                    parts.append(_short_envelope(front, block, flat))
        out.append(np.concatenate(parts))
    return np.array(out)
