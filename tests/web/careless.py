"""Web servers that do what they should not: one for each certificate that is given, at the port behind it.

usage: careless.py ADDRESS PORT:CHAIN:KEY...

What is said follows from the path: /status/CODE, /slow, /silent, /endless, /truncated, /chunks, /redirect, and /file/NAME,
which is a file of this program's directory.
"""

import http.server
import ssl
import sys
import threading
import time


class Careless(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "file":
            with open(rest, "rb") as file:
                content = file.read()
            self.head(200, {"Content-Length": len(content)})
            self.wfile.write(content)
        elif kind == "status":
            self.head(int(rest), {"Content-Length": 0})
        elif kind == "redirect":
            self.head(302, {"Content-Length": 0, "Location": "https://elsewhere.example.org/file/good"})
        elif kind == "truncated":
            self.head(200, {"Content-Length": 10000})
            self.wfile.write(b"postmaster:spqr1@hermes.cam.ac.uk\n")
        elif kind == "chunks":
            self.head(200, {"Transfer-Encoding": "chunked"})
            self.wfile.write(b"b\r\npostmaster:\r\n")
        elif kind == "endless":
            self.head(200, {"Connection": "close"})
            while True:
                self.wfile.write(b"fellow:spqr1@hermes.cam.ac.uk\n" * 1000)
        elif kind == "slow":
            self.head(200, {"Content-Length": 10000})
            while True:
                self.wfile.write(b"#")
                self.wfile.flush()
                time.sleep(0.5)
        elif kind == "silent":
            time.sleep(600)
        self.close_connection = True

    def head(self, status, fields):
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        # Clients go away; that is what is tested.
        pass


def main():
    address, *ports = sys.argv[1:]
    for place in ports:
        port, chain, key = place.split(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        server = Server((address, int(port)), Careless)
        # The handshake in the thread of the connection, so that nobody holds up the others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    while True:
        time.sleep(60)


main()
