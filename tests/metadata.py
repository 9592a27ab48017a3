"""An instance metadata service as AWS's, version 2: python tests/metadata.py PORT FILE announces what the file holds."""

import sys
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "planted-token"  # noqa: S105


def announce(notice: Path, seconds: float) -> datetime:
    """Announce that the instance will be ended in so many seconds; returns when."""
    gone = (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)
    notice.write_text(f'{{"action": "terminate", "time": "{gone:%Y-%m-%dT%H:%M:%SZ}"}}')
    return gone


class MetadataServer(ThreadingHTTPServer):
    """Gives a token, and to its bearer the notice in a file, or 404 while there is none."""

    def __init__(self, port: int, notice: Path) -> None:
        self.notice = notice
        super().__init__(("127.0.0.1", port), Answers)


class Answers(BaseHTTPRequestHandler):
    server: MetadataServer

    def do_PUT(self) -> None:
        lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0")
        self.answer(200 if self.path == "/latest/api/token" and int(lifetime) > 0 else 400, TOKEN)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self.answer(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.server.notice.exists():
            self.answer(200, self.server.notice.read_text())
        else:
            self.answer(404, "not found")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words: object) -> None:
        pass


if __name__ == "__main__":
    MetadataServer(int(sys.argv[1]), Path(sys.argv[2])).serve_forever()
