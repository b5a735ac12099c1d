"""Rows, windows, files: gaps are never hidden, and what is read is what was written."""

import json
import pathlib
import struct
import tempfile
import unittest
import zlib
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kit import collect
from kit.data import Channels, Rows, Windows, joined
from kit.errors import Refused

from . import common

TWO = Channels(("a", "b"), ("", ""), 1.0)


def rows(n: int = 40, gap_at: int | None = None, bad_at: int | None = None) -> Rows:
    t = np.arange(n, dtype=np.int64) * 1_000_000_000
    if gap_at is not None:
        t[gap_at:] += 10_000_000_000
    values = np.arange(2.0 * n).reshape(n, 2)
    if bad_at is not None:
        values[bad_at, 1] = np.nan
    return Rows(TWO, "m", "r", t, values, np.full(n, "ok"))


def record(header: dict[str, Any], body: bytes = b"") -> bytes:
    head = json.dumps(header).encode()
    return b"KLS1" + struct.pack("<III", len(head), len(body), zlib.crc32(head + body)) + head + body


def window(x: np.ndarray[Any, Any], **more: Any) -> tuple[str, bytes]:
    body = x.astype("<f4").tobytes()
    import hashlib

    win = "sha256:" + hashlib.sha256(body).hexdigest()
    header = {
        "kind": "window", "win": win, "class": "alarm", "device": "plant/p", "pipeline": "x", "channels": ["a", "b"],
        "units": ["g", "g"], "steps": len(x), "boot": "b", "in_seq": [0, len(x) - 1], "coverage": 1,
    }  # fmt: skip
    return win, record(header | more, body)


class Gaps(unittest.TestCase):
    def test_recording_with_a_gap_is_refused_with_its_place(self) -> None:
        with self.assertRaisesRegex(Refused, "1 gaps longer than 2500 ms .the first before row 17"):
            rows(gap_at=17).windows(8, 1, 2500)

    def test_recording_with_a_missing_value_is_refused(self) -> None:
        with self.assertRaisesRegex(Refused, "1 rows with a bad or missing value .the first is row 5"):
            rows(bad_at=5).windows(8, 1, 2500)

    def test_windows_end_before_a_gap_where_that_is_asked_for(self) -> None:
        cut = rows(gap_at=17, bad_at=30).windows(8, 1, 2500, cut_gaps=True)
        for first in cut.first_row.tolist():
            self.assertFalse(first < 17 <= first + 7, f"window at {first} crosses the gap")
            self.assertFalse(first <= 30 <= first + 7, f"window at {first} holds the bad row")
        self.assertEqual(len(cut), 10 + 6 + 2)

    def test_time_that_goes_back_is_a_gap(self) -> None:
        back = rows()
        back.t_ns[20:] -= 30_000_000_000
        self.assertEqual(back.gaps(2500).tolist(), [20])


class Files(unittest.TestCase):
    def test_windows_are_read_as_they_were_written(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "w.parquet")
            some = common.small().take(np.arange(20))
            some.save(path)
            read = Windows.load(path)
            self.assertTrue(np.array_equal(read.x, some.x))
            self.assertEqual(read.digests(), some.digests())
            self.assertEqual(read.label.tolist(), some.label.tolist())
            self.assertEqual(read.channels, some.channels)

    def test_edited_file_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "w.parquet")
            common.small().take(np.arange(5)).save(path)
            table = pq.read_table(path)
            wrong = table["digest"].to_pylist()[::-1]
            pq.write_table(table.set_column(5, "digest", [wrong]), path)
            with self.assertRaisesRegex(Refused, "damaged, or edited"):
                Windows.load(path)

    def test_windows_of_other_channels_are_not_joined(self) -> None:
        a = rows().windows(8, 8, 2500)
        b = Rows(Channels(("b", "a"), ("", ""), 1.0), "m", "r", rows().t_ns, rows().values, rows().label).windows(8, 8, 2500)
        with self.assertRaisesRegex(Refused, "channels differ"):
            joined([a, b])


class Collect(unittest.TestCase):
    def test_csv_keeps_gaps_labels_and_missing_cells(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "x.csv")
            path.write_text("time;A;B;y\n2026-01-01 00:00:00;1;2;0\n2026-01-01 00:00:01;n/a;3;0\n2026-01-01 00:00:09;4;5;1\n")
            read = collect.from_csv(path, TWO, ("A", "B"), "time", "y", {"0": "ok", "1": "bad"})
        self.assertEqual(read.label.tolist(), ["ok", "ok", "bad"])
        self.assertTrue(np.isnan(read.values[1, 0]))
        self.assertEqual(read.gaps(2500).tolist(), [2])

    def test_csv_without_the_column_is_refused_with_what_it_has(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "x.csv")
            path.write_text("time,A\n1,2\n")
            with self.assertRaisesRegex(Refused, "no column B; it has time, A"):
                collect.from_csv(path, TWO, ("A", "B"), "time")

    def test_stream_of_means_is_refused(self) -> None:
        record = {"v": {"a": {"min": 1, "mean": 1, "max": 1, "n": 1}, "b": 2}, "in_t_ns": [0, 0]}
        with self.assertRaisesRegex(Refused, "mode raw"):
            collect.from_records([record], TWO, "m", "r")

    def test_pulled_samples_carry_their_labels(self) -> None:
        x = common.repeated(1, (3, 4, 2))
        parts = [window(w) for w in x]
        label = {"kind": "label", "label": False, "wins": [parts[0][0]]}
        later = {"kind": "label", "label": "outer", "wins": [parts[1][0]]}
        blob = b"".join(p for _, p in parts) + record(label) + record(later)
        read = collect.from_samples(blob, 10.0)
        self.assertEqual(read.label.tolist(), ["ok", "outer", ""])
        self.assertTrue(np.array_equal(read.x, x))

    def test_damaged_cut_and_holed_samples_are_refused(self) -> None:
        _, whole = window(common.repeated(1, (4, 2)))
        for blob, why in (
            (whole[:-3], "damaged or cut"),
            (whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], "damaged or cut"),
            (b"XXXX" + whole, "no record at byte 0"),
            (window(common.repeated(1, (4, 2)), coverage=0.9)[1], "missing samples"),
            (window(common.repeated(1, (4, 2)), win="sha256:" + "0" * 64)[1], "not what their digest says"),
        ):
            with self.assertRaisesRegex(Refused, why):
                collect.from_samples(blob, 10.0)
