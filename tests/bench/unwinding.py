"""unwinding.py BINARY: the bytes that unwinding takes in an x86-64 program: its tables, and the code behind the first landing pad of
each function. LLVM puts what only runs while a panic unwinds at a function's end, so that is about the code for it, and rather
more than less. Needs readelf."""
import re
import struct
import subprocess
import sys


def sections(path):
    table = {}
    for line in subprocess.check_output(["readelf", "-WS", path], text=True).splitlines():
        found = re.match(r"\s*\[\s*\d+\]\s+(\S+)\s+\S+\s+([0-9a-f]+)\s+([0-9a-f]+)\s+([0-9a-f]+)", line)
        if found:
            table[found[1]] = [int(number, 16) for number in found.groups()[1:]]
    return table


def leb(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at


def first_pad(data, at):
    """Of a function's table in .gcc_except_table: the offset of its first landing pad, or None."""
    assert data[at] == 255, "landing pads are relative to the function"
    at += 1
    if data[at] != 255:
        _, at = leb(data, at + 1)
    else:
        at += 1
    encoding, (length, at) = data[at], leb(data, at + 1)
    pads, end = [], at + length
    while at < end:
        if encoding == 1:
            _, at = leb(data, at)
            _, at = leb(data, at)
            pad, at = leb(data, at)
        else:
            pad, at = struct.unpack_from("<I", data, at + 8)[0], at + 12
        _, at = leb(data, at)
        pads += [pad] if pad else []
    return min(pads, default=None)


def main():
    data, table = open(sys.argv[1], "rb").read(), sections(sys.argv[1])
    (address, start, size), (except_address, except_start, except_size) = table[".eh_frame"], table[".gcc_except_table"]
    has_table, behind, functions, at = {}, 0, 0, start
    while at < start + size:
        length, = struct.unpack_from("<I", data, at)
        if length == 0:
            break
        back, = struct.unpack_from("<I", data, at + 4)
        if back == 0:
            has_table[at] = b"L" in data[at + 9:data.index(b"\0", at + 9)]
        else:
            functions += 1
            bytes_of_code, = struct.unpack_from("<I", data, at + 12)
            place = at + 17
            offset = struct.unpack_from("<i", data, place)[0] if has_table[at + 4 - back] else 0
            if offset:
                pad = first_pad(data, place - start + address + offset - except_address + except_start)
                behind += bytes_of_code - pad if pad is not None else 0
        at += 4 + length
    print(f"{functions} functions; .eh_frame {size}, .eh_frame_hdr {table['.eh_frame_hdr'][2]}, .gcc_except_table {except_size}; "
          f"behind landing pads {behind}")


main()
