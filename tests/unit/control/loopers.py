"""A small real epoll loop that serves while a test does something else, and clients of every bad kind."""

import select
import socket
import threading
import time


class Handle:
    def __init__(self, callback):
        self.callback = callback

    def cancel(self):
        self.callback = None


class MiniLoop:
    """The Watcher of the server, real epoll and real time; run by `serving` in a thread of the test."""

    def __init__(self):
        self.epoll = select.epoll()
        self.callbacks = {}
        self.timers = []
        self.turns = 0
        self.stopped = False

    def watch(self, fd, callback, *, write=False):
        mask = select.EPOLLOUT if write else select.EPOLLIN
        (self.epoll.modify if fd in self.callbacks else self.epoll.register)(fd, mask)
        self.callbacks[fd] = callback

    def unwatch(self, fd):
        if self.callbacks.pop(fd, None):
            self.epoll.unregister(fd)

    def later(self, seconds, callback):
        handle = Handle(callback)
        self.timers.append((time.monotonic() + seconds, handle))
        return handle

    def run(self):
        while not self.stopped:
            for fd, _ in self.epoll.poll(0.02):
                if fd in self.callbacks:
                    self.callbacks[fd]()
            self.turns += 1
            now = time.monotonic()
            due = [handle for at, handle in self.timers if at <= now]
            self.timers = [(at, handle) for at, handle in self.timers if at > now]
            for handle in due:
                if handle.callback:
                    handle.callback()


class Serving:
    """`with Serving(make_server) as server:` the loop turns in a thread until the block ends; its errors are raised."""

    def __init__(self, make):
        self.loop = MiniLoop()
        self.server = make(self.loop)
        self.error = None
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            self.loop.run()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self.server

    def __exit__(self, *_):
        self.loop.stopped = True
        self.thread.join(10)
        self.server.close()
        self.loop.epoll.close()
        if self.error:
            raise self.error


def connect(path, timeout=5):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    connection.settimeout(timeout)
    return connection


def read_all(connection):
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def until(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
