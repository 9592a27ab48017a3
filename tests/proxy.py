"""A fault-injecting proxy on loopback, in front of an S3 server: GETs of objects fail as on real networks and busy servers."""

import asyncio
import multiprocessing
import random
import socket
import struct
from collections import Counter
from dataclasses import astuple, dataclass, fields
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit
from weakref import WeakSet

SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 36\r\n\r\n<Error><Code>SlowDown</Code></Error>"
DENIED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 40\r\n\r\n<Error><Code>AccessDenied</Code></Error>"
EXPIRED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 40\r\n\r\n<Error><Code>ExpiredToken</Code></Error>"
PIECE = 1 << 16


@dataclass(frozen=True)
class Faults:
    """The fraction of GETs, 0 to 1, for each fault. A GET has at most one fault, so the fractions add up to at most 1."""

    slow_down: float = 0.0  # 503 SlowDown
    reset: float = 0.0  # the connection is reset before an answer
    stall: float = 0.0  # no answer comes
    freeze: float = 0.0  # half of the body comes, then nothing more
    truncate: float = 0.0  # half of the body comes, then the connection closes
    corrupt: float = 0.0  # one bit of the body is flipped

    def draw(self, rng: random.Random) -> str:
        """Return the name of the next GET's fault, or an empty string."""
        names = [field.name for field in fields(self)]
        shares = list(astuple(self))
        return rng.choices([*names, ""], [*shares, max(0.0, 1 - sum(shares))])[0]


@dataclass(frozen=True)
class Head:
    """The start line and the headers of one HTTP message."""

    raw: bytes
    start: str
    headers: dict[str, str]  # names in lower case

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> Self:
        raw = await reader.readuntil(b"\r\n\r\n")
        start, *lines = raw.decode("latin-1").strip().split("\r\n")
        return cls(raw, start, {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)})

    @property
    def target(self) -> str:
        """Path and query of a request."""
        return self.start.split(" ")[1]

    @property
    def status(self) -> str:
        """Status of a response."""
        return self.start.split(" ")[1]

    @property
    def is_object_get(self) -> bool:
        """Whether this is a GET of an object (in path style), not a list and not a HEAD."""
        return self.start.startswith("GET ") and "/" in urlsplit(self.target).path.strip("/")


class FaultProxy:
    """Serves ``endpoint``, forwards everything to ``upstream`` with the client's Host (it is signed), and injects ``faults``.

    Faults, latency and counts concern GETs of objects whose path holds ``match``, nothing else; such GETs by the access key
    ``expired`` are refused. ``all_late``: the latency concerns every request; ``read_only``: whatever would write is refused.
    All of them may be set while the proxy runs. ``counts`` holds the GETs ("gets"), the body bytes sent ("bytes") and each fault
    by its name; ``ranges`` the path and the Range header of each GET in order of arrival.
    """

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        address = urlsplit(upstream)
        self.upstream = (address.hostname or "127.0.0.1", address.port or 80)
        self.rng = random.Random(seed)  # noqa: S311
        self.faults = Faults()
        self.latency_ms = 0.0
        self.all_late = False
        self.match = ""
        self.expired = ""
        self.read_only = False
        self.forget()

    def forget(self) -> None:
        """Reset the counts."""
        self.counts: Counter[str] = Counter()
        self.ranges: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        # asyncio does it for sockets whose protocol is named, and this one's is 0: each answer would wait 40 ms for an ACK.
        self.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.loop = asyncio.new_event_loop()
        self.over = asyncio.Event()
        self.clients = WeakSet[asyncio.StreamWriter]()
        self.thread = Thread(target=self.run, name="fault-proxy", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()

    def run(self) -> None:
        """The proxy's thread."""
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:  # ends what still runs, stalls among it
            runner.run(self.serve())

    async def serve(self) -> None:
        """Accept connections until the end."""
        server = await asyncio.start_server(self.connection, sock=self.listener)
        await self.over.wait()
        asyncio.get_running_loop().remove_reader(self.listener)  # first: a closed server forgets whom it is just letting in
        await asyncio.sleep(0.01)
        server.close()
        for client in self.clients:
            client.transport.abort()  # closed is not enough: that waits for a client that reads no more

    async def connection(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Handle one client's connection with its own connection to the server, one request after the other."""
        self.clients.add(to_client)
        try:
            server, to_server = await asyncio.open_connection(*self.upstream)
            try:
                await self.exchange(client, to_client, server, to_server)
            finally:
                to_server.transport.abort()
        except (asyncio.IncompleteReadError, OSError):
            pass  # either side has left, or the server is down
        except asyncio.CancelledError:
            pass  # the proxy ends
        finally:
            to_client.close()

    async def exchange(
        self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter, server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        """Forward requests and responses until either side closes."""
        while True:
            request = await Head.read(client)
            if request.headers.get("expect"):  # unsigned: answered here, so that bodies pass in one direction
                to_client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request = without_expect(request)
            if self.read_only and request.start.split(" ")[0] in ("PUT", "POST", "DELETE"):
                await copy_body(client, None, request)
                to_client.write(DENIED)
                await to_client.drain()
                continue
            to_server.write(request.raw)
            await copy_body(client, to_server, request)
            if request.is_object_get and self.match in request.target:
                await self.answer(request, client, server, to_client)
            else:
                answer = await Head.read(server)
                await asyncio.sleep(self.latency_ms / 1000 * self.all_late)
                await pass_answer(request, answer, server, to_client)
            await to_client.drain()

    async def answer(
        self, request: Head, client: asyncio.StreamReader, server: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        """Forward the response to a GET of an object, after the latency and with the fault drawn for it."""
        self.ranges.append((request.target, request.headers.get("range", "")))
        self.counts["gets"] += 1
        answer = await Head.read(server)
        await asyncio.sleep(self.latency_ms / 1000)
        fault = self.faults.draw(self.rng) if answer.status in ("200", "206") else ""
        if self.expired and f"Credential={self.expired}/" in request.headers.get("authorization", ""):
            fault = "expired"
        if not fault:
            self.counts["bytes"] += int(answer.headers["content-length"])  # before the client can have them
            await pass_answer(request, answer, server, to_client)
            return
        self.counts[fault] += 1
        body = bytearray(await server.readexactly(int(answer.headers["content-length"])))
        if fault in ("slow_down", "expired"):
            to_client.write(SLOW_DOWN if fault == "slow_down" else EXPIRED)
            return
        if fault == "reset":
            reset(to_client)
        if fault == "stall":
            await left(client)
        if fault == "corrupt" and body:
            body[self.rng.randrange(len(body))] ^= 1
        sent = body[: len(body) // 2] if fault in ("freeze", "truncate") else body
        self.counts["bytes"] += len(sent)
        to_client.write(answer.raw + sent)
        await to_client.drain()
        if fault == "freeze":
            await left(client)
        if fault == "truncate":
            raise ConnectionAbortedError


class ProxyProcess:
    """A `FaultProxy` in a separate process, for tests that fork or measure time."""

    def __init__(self, upstream: str, **attributes: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there, upstream), daemon=True)
        self.process.start()
        self.endpoint: str = self.pipe.recv()
        self.set(**attributes)

    def set(self, **attributes: Any) -> dict[str, int]:
        """Set attributes of the proxy; returns its counts."""
        self.pipe.send(attributes)
        counts: dict[str, int] = self.pipe.recv()
        return counts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.join()


def serve(pipe: Connection, upstream: str) -> None:
    """The main function of that process."""
    with FaultProxy(upstream) as proxy:
        pipe.send(proxy.endpoint)
        while True:
            for name, value in pipe.recv().items():
                setattr(proxy, name, value)
            pipe.send(dict(proxy.counts))


def without_expect(request: Head) -> Head:
    """Return the request without its Expect header."""
    lines = [line for line in request.raw.split(b"\r\n") if not line.lower().startswith(b"expect:")]
    return Head(b"\r\n".join(lines), request.start, request.headers)


def reset(writer: asyncio.StreamWriter) -> NoReturn:
    """End the connection with an RST, as a crashed peer does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    raise ConnectionResetError


async def left(client: asyncio.StreamReader) -> NoReturn:
    """Wait until the client closes the connection."""
    await client.read()
    raise ConnectionAbortedError


async def pass_answer(request: Head, answer: Head, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
    """Forward one response unchanged."""
    to_client.write(answer.raw)
    if request.start.startswith("HEAD ") or answer.status in ("204", "304"):
        return
    await copy_body(server, to_client, answer)


async def copy_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None, head: Head) -> None:
    """Forward the body as the headers say: by length, in chunks, or none. Without a writer it is read and dropped."""
    if "chunked" not in head.headers.get("transfer-encoding", ""):
        await copy(reader, writer, int(head.headers.get("content-length", 0)))
        return
    size = -1
    while size != 0:
        line = await reader.readline()
        size = int(line.split(b";")[0], 16)
        if writer:
            writer.write(line)
        await copy(reader, writer, size + 2)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None, size: int) -> None:
    """Forward exactly ``size`` bytes."""
    for start in range(0, size, PIECE):
        piece = await reader.readexactly(min(size - start, PIECE))
        if writer:
            writer.write(piece)
            await writer.drain()
