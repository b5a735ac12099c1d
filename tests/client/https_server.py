#!/usr/bin/env python3
"""A server of bundles that can misbehave. Prints its port.

    https_server.py CERT KEY FILE MANNER

Manners: good (with ranges), plain (no ranges), cuts (ends each answer after 40 KiB), endless (streams for ever), liar (says
another length), drips (a byte a second), missing (404), other (bytes of the same length that are not the file's).
"""
import http.server
import ssl
import sys
import time

cert, key, path, manner = sys.argv[1:5]
content = open(path, "rb").read()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if manner == "missing":
            return self.send_error(404)
        start, end = 0, len(content) - 1
        asked = self.headers.get("Range")
        if asked and manner not in ("plain", "endless", "liar"):
            start, end = (int(n) for n in asked.removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start : end + 1]
        if manner == "other":
            body = bytes(len(body))
        if manner == "endless":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            block = b"x" * 65536
            while True:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
        length = len(body) * 1000 if manner == "liar" else len(body)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if manner == "drips":
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(1)
        elif manner == "cuts":
            self.wfile.write(body[: 40 * 1024])
            self.close_connection = True
        else:
            self.wfile.write(body)
            self.close_connection = manner == "liar"


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass


server = Server(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
