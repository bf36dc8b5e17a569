"""A network of our own on 127.0.0.1: passes bytes on to a port, and cuts a connection where it is told to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

UP, DOWN = 0, 1  # to the collector, to the device


class Proxy:
    """One connection at a time. `cut`: (direction, bytes that pass in it, reset or end); None: passes everything."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.cut: tuple[int, int, bool] | None = None
        self.passed = [0, 0]  # bytes of the last connection
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with near, socket.create_connection(("127.0.0.1", self.target)) as far:
                self._pass(near, far)

    def _pass(self, near: socket.socket, far: socket.socket) -> None:
        self.passed = [0, 0]
        lock = threading.Lock()
        back = threading.Thread(target=self._pump, args=(far, near, DOWN, lock), daemon=True)
        back.start()
        self._pump(near, far, UP, lock)
        back.join(10)

    def _pump(self, source: socket.socket, target: socket.socket, direction: int, lock: threading.Lock) -> None:
        with contextlib.suppress(OSError):
            while True:
                cut = self.cut
                most = 65536
                if cut is not None and cut[0] == direction:
                    most = cut[1] - self.passed[direction]
                    if most <= 0:
                        break
                data = source.recv(most)
                if not data:
                    break
                target.sendall(data)
                self.passed[direction] += len(data)
        with lock:
            for end in (source, target):
                with contextlib.suppress(OSError):
                    if self.cut is not None and self.cut[2]:
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)
