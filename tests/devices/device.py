#!/usr/bin/env python3
"""A field device on a serial port, written with other people's libraries: pyserial, cobs, pynmea2, pymodbus.

    device.py talk KIND PORT [--rows N] [--first N] [--noise SHARE] [--truncate SHARE] [--pause SECONDS] [--seed N]
        row n has a = n / 2 and b = -n; says on standard output which rows left it whole, as JSON
        KIND is one row of three columns, or `wind` (relative and true wind in turns, every fifth relative one invalid), or `block` (eight
        samples of a and b in each frame)
    device.py scale PORT                   a scale with a climate sensor on one line: repeats each question, then answers "SI" and "T"
    device.py answer PORT [--deaf N]       a device that speaks only when asked "?\\n"; every Nth question it does not hear
    device.py modbus-rtu PORT              devices 1 and 2 of a Modbus line
    device.py modbus-tcp TCP-PORT          the same by TCP
    device.py modbus-rtu-over-tcp TCP-PORT the same with RTU frames by TCP, as serial servers pass them
        --writes FILE                      a line for each coil or register that is written: device, address, value
"""

import argparse
import asyncio
import binascii
import json
import random
import struct
import sys
import time
import zlib

import serial


def crc16_modbus(data):
    """Bit by bit, from the Modbus over serial line specification, section 6.2.2."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0xA001 if crc & 1 else crc >> 1
    return crc


def packed(n):
    return struct.pack("<If h".replace(" ", ""), n, n / 2, -n)


def frame(kind, n):
    if kind == "csv":
        return f"{n},{n / 2},{-n}\r\n".encode()
    if kind == "json":
        return json.dumps({"n": n, "a": n / 2, "b": -n}).encode() + b"\n"
    if kind == "nmea":
        import pynmea2

        return (str(pynmea2.MWV("WI", "MWV", (f"{n / 2}", "R", f"{-n}", "N", "A"))) + "\r\n").encode()
    if kind == "wind":
        import pynmea2

        relative = pynmea2.MWV("WI", "MWV", (f"{n / 2}", "R", f"{n * 3.6}", "K", "V" if n % 5 == 4 else "A"))
        true = pynmea2.MWV("WI", "MWV", (f"{300 + n}", "T", "99", "N", "A"))
        return f"{relative}\r\n{true}\r\n".encode()
    if kind == "block":
        from cobs import cobs

        samples = [x for i in range(8 * n, 8 * n + 8) for x in (i, -i)]
        body = struct.pack("<H16h", n, *samples)
        return cobs.encode(body + struct.pack("<H", crc16_modbus(body))) + b"\0"
    body = packed(n)
    if kind == "cobs":
        from cobs import cobs

        return cobs.encode(body + struct.pack("<H", crc16_modbus(body))) + b"\0"
    if kind == "slip":
        inner = body + struct.pack(">I", zlib.crc32(body))
        return inner.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"
    if kind == "fixed":
        whole = b"\xaa\x55" + body
        return whole + struct.pack(">H", binascii.crc_hqx(whole, 0))
    if kind == "length":
        inner = struct.pack(">H", len(body)) + body
        return b"\x7e" + inner + struct.pack("<H", crc16_modbus(inner))
    if kind == "delimited":
        out = bytearray(b"\x02")
        for byte in body + bytes([sum(body) & 0xFF]):
            if byte in (0x02, 0x03, 0x10):
                out.append(0x10)
            out.append(byte)
        return bytes(out) + b"\x03"
    raise SystemExit(f"no such kind: {kind}")


def talk(args):
    noise = random.Random(args.seed)
    port = serial.Serial(args.port, 115200)
    whole, spoilt = [], False
    for n in range(args.first, args.first + args.rows):
        data, clean = bytearray(frame(args.kind, n)), True
        if noise.random() < args.noise:
            for _ in range(noise.randint(1, 3)):
                data[noise.randrange(len(data))] ^= 1 << noise.randrange(8)
            clean = False
        elif noise.random() < args.truncate:
            del data[noise.randrange(len(data)):]
            clean = False
        # The end of a frame is the beginning of the next one: who loses it loses both.
        if clean and not spoilt:
            whole.append(n)
        spoilt = not clean
        port.write(data)
        if args.pause:
            time.sleep(args.pause)
    port.flush()
    print(json.dumps(whole), flush=True)
    sys.stdin.read()


def scale(args):
    port, n = serial.Serial(args.port, 9600), 0
    while True:
        asked = port.read_until(b"\r\n")
        port.write(asked)
        if asked.endswith(b"SI\r\n"):
            port.write(f"{12.5 + n}\r\n".encode())
            n += 1
        elif asked.endswith(b"T\r\n"):
            port.write(b"21.5,40\r\n")


def answer(args):
    port, n = serial.Serial(args.port, 115200), 0
    while True:
        if port.read_until(b"\n").endswith(b"?\n"):
            n += 1
            if not args.deaf or n % args.deaf:
                port.write(f"{n},{n / 2},{-n}\r\n".encode())


async def modbus(args):
    from pymodbus.datastore import ModbusDeviceContext, ModbusSequentialDataBlock, ModbusServerContext
    from pymodbus.framer import FramerType
    from pymodbus.server import StartAsyncSerialServer, StartAsyncTcpServer

    def device(base):
        # Addresses from 0: pymodbus's blocks begin at 1.
        words = [base + i for i in range(100)]
        words[10:12] = struct.unpack(">HH", struct.pack(">f", base + 0.25))
        words[12:14] = reversed(struct.unpack(">HH", struct.pack(">i", -100000 - base)))
        words[20] = 0x10000 - base
        # 230.1 by a scale register, 5 in a mask, its power of ten, BCD digits, "no value".
        words[30:36] = [2301, 0xA53C, 0x10000 - 1, 0x1234, 0x5678, 0x8000]
        return ModbusDeviceContext(
            hr=ModbusSequentialDataBlock(1, words),
            ir=ModbusSequentialDataBlock(1, [2 * word & 0xFFFF for word in words]),
            co=ModbusSequentialDataBlock(1, [i % 3 == 0 for i in range(40)]),
            di=ModbusSequentialDataBlock(1, [i % 2 == 0 for i in range(40)]),
        )

    def note(sending, pdu):
        if args.writes and not sending and pdu.function_code in (5, 6, 15, 16):
            value = int(pdu.bits[0]) if pdu.function_code in (5, 15) else pdu.registers[0]
            with open(args.writes, "a") as file:
                file.write(f"{pdu.dev_id} {pdu.address} {value}\n")
        return pdu

    context = ModbusServerContext(devices={1: device(100), 2: device(200)}, single=False)
    if args.act == "modbus-rtu":
        # A device that does not exist sends no response.
        await StartAsyncSerialServer(
            context,
            framer=FramerType.RTU,
            port=args.port,
            baudrate=115200,
            trace_pdu=note,
            trace_packet=lambda sending, data: b"" if sending and data[:1] == b"\x09" else data,
        )
    else:
        framer = FramerType.RTU if args.act == "modbus-rtu-over-tcp" else FramerType.SOCKET
        await StartAsyncTcpServer(context, framer=framer, trace_pdu=note, address=("127.0.0.1", int(args.port)))


def main():
    parser = argparse.ArgumentParser()
    acts = parser.add_subparsers(dest="act", required=True)
    one = acts.add_parser("talk")
    one.add_argument("kind")
    one.add_argument("port")
    one.add_argument("--rows", type=int, default=100)
    one.add_argument("--first", type=int, default=0)
    one.add_argument("--noise", type=float, default=0)
    one.add_argument("--truncate", type=float, default=0)
    one.add_argument("--pause", type=float, default=0)
    one.add_argument("--seed", type=int, default=1)
    one = acts.add_parser("answer")
    one.add_argument("port")
    one.add_argument("--deaf", type=int, default=0)
    for act in ("modbus-rtu", "modbus-tcp", "modbus-rtu-over-tcp"):
        one = acts.add_parser(act)
        one.add_argument("port")
        one.add_argument("--writes")
    acts.add_parser("scale").add_argument("port")
    args = parser.parse_args()
    if args.act == "talk":
        talk(args)
    elif args.act == "answer":
        answer(args)
    elif args.act == "scale":
        scale(args)
    else:
        asyncio.run(modbus(args))


main()
