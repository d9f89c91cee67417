"""Pass TCP connections on with the latency and the rate of a long line.

python tests/bench/slow_link.py PORT TARGET_PORT ROUND_TRIP_MS MB_PER_S
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress

PIECE = 1 << 16
WINDOW = 6 << 20
"""Bytes of a connection that are on their way at most: the largest window of TCP by Linux's defaults."""


class Line:
    """The way back from a server, which all connections share: bytes leave one after the other at its rate."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s, self.free = bytes_per_s, 0.0

    def leaves(self, count: int) -> float:
        """Return when the last of `count` bytes leaves, if they come now."""
        self.free = max(self.free, time.monotonic()) + count / self.bytes_per_s
        return self.free


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line | None, way_s: float) -> None:
    """Pass bytes on, each `way_s` after it left."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    under_way, moved = 0, asyncio.Event()

    async def receive() -> None:
        nonlocal under_way
        while piece := await reader.read(PIECE):
            under_way += len(piece)
            leaves = line.leaves(len(piece)) if line else time.monotonic()
            pieces.put_nowait((leaves + way_s, piece))
            while under_way > WINDOW:
                moved.clear()
                await moved.wait()
        pieces.put_nowait((time.monotonic() + way_s, b""))

    receiving = asyncio.create_task(receive())
    try:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(due - time.monotonic(), 0))
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
            under_way -= len(piece)
            moved.set()
    finally:
        receiving.cancel()
        writer.close()


async def main(port: int, target: int, round_trip_s: float, bytes_per_s: float) -> None:
    line = Line(bytes_per_s)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(round_trip_s)  # the handshake of TCP
        with suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", target)
            ways = (carry(reader, back, None, round_trip_s / 2), carry(there, writer, line, round_trip_s / 2))
            await asyncio.gather(*ways, return_exceptions=True)

    async with await asyncio.start_server(connected, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1e3, float(sys.argv[4]) * 1e6))
