#!/usr/bin/env python3
"""What stands between a device and its broker at a plant: an HTTP proxy (CONNECT) and a WebSocket server in front of MQTT.

    gate.py PROXY_PORT WEBSOCKET_PORT BROKER_PORT

The proxy demands the user `plant` with the password `gate`. The WebSocket's frames begin anywhere in the stream of MQTT, have
all three forms of length, and pings are between them.
"""
import asyncio, base64, hashlib, itertools, struct, sys

proxy_port, ws_port, broker_port = map(int, sys.argv[1:])
LOGIN = "Basic " + base64.b64encode(b"plant:gate").decode()


async def head(reader):
    text = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = text.split("\r\n")
    return first, {k.strip().lower(): v.strip() for k, v in (line.split(":", 1) for line in lines if ":" in line)}


async def pipe(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    writer.close()


async def proxy(reader, writer):
    try:
        first, fields = await head(reader)
    except asyncio.IncompleteReadError:  # who only looks whether the port is open
        return writer.close()
    verb, target, _ = first.split(" ")
    if verb != "CONNECT" or fields.get("proxy-authorization") != LOGIN:
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return writer.close()
    host, port = target.rsplit(":", 1)
    there, back = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await asyncio.gather(pipe(reader, back), pipe(there, writer))


def frame(opcode, data):
    n = len(data)
    length = bytes([n]) if n < 126 else b"\x7e" + struct.pack("!H", n) if n < 65536 else b"\x7f" + struct.pack("!Q", n)
    return bytes([0x80 | opcode]) + length + data


async def websocket(reader, writer):
    try:
        first, fields = await head(reader)
    except asyncio.IncompleteReadError:
        return writer.close()
    if not first.startswith("GET /mqtt ") or fields.get("sec-websocket-protocol") != "mqtt":
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return writer.close()
    salt = fields["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(salt.encode()).digest()).decode()
    writer.write(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n".encode())
    there, back = await asyncio.open_connection("127.0.0.1", broker_port)

    async def up():
        try:
            while True:
                first, second = await reader.readexactly(2)
                assert second & 0x80, "a client masks"
                n = second & 0x7F
                if n > 125:
                    n = int.from_bytes(await reader.readexactly(2 if n == 126 else 8), "big")
                mask = await reader.readexactly(4)
                data = bytes(b ^ m for b, m in zip(await reader.readexactly(n), itertools.cycle(mask)))
                if first & 15 == 2:
                    back.write(data)
                    await back.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        back.close()

    async def down():
        sizes = itertools.cycle([1, 3, 200, 70000])
        while data := await there.read(next(sizes)):
            writer.write(frame(2, data) + frame(9, b"?"))
            await writer.drain()
        writer.write(frame(8, struct.pack("!H", 1000)))
        writer.close()

    await asyncio.gather(up(), down())


async def main():
    servers = [await asyncio.start_server(proxy, "127.0.0.1", proxy_port),
               await asyncio.start_server(websocket, "127.0.0.1", ws_port)]
    await asyncio.gather(*(server.serve_forever() for server in servers))


asyncio.run(main())
