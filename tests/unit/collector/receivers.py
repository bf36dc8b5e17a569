"""Those who are told: a webhook's HTTPS server that keeps what it got, and a real SMTP server (aiosmtpd)."""

import http.server
import ssl
import threading
import time


def server_tls(folder):
    """TLS of a server with the collector's own certificate for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{folder}/server.pem", f"{folder}/server.key")
    return context


class Hook:
    """Answers what `answers` says, one after the other, the last for ever."""

    def __init__(self, folder, *answers, headers=()):
        self.got = []
        answers = list(answers) or [200]
        got = self.got

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                got.append((time.time(), self.path, dict(self.headers), body))
                self.send_response(answers.pop(0) if len(answers) > 1 else answers[0])
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_args):
                pass

        self.server = http.server.ThreadingHTTPServer(("", 0), Handler)
        self.server.socket = server_tls(folder).wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://localhost:{self.server.server_address[1]}/hook?team=a"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Box:
    """aiosmtpd with STARTTLS and AUTH, both required; keeps (when, sender, recipients, text)."""

    def __init__(self, folder, user="edgeguard", password="pass word", *, require=True, refuse=()):
        from aiosmtpd.controller import Controller
        from aiosmtpd.smtp import AuthResult

        self.got = []
        box = self

        class Handler:
            async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802 - its name
                if address in refuse:
                    return "550 no such user"
                envelope.rcpt_tos.append(address)
                return "250 OK"

            async def handle_DATA(self, server, session, envelope):  # noqa: N802 - its name
                box.got.append((time.time(), envelope.mail_from, envelope.rcpt_tos, envelope.content.decode()))
                return "250 OK"

        def check(server, session, envelope, mechanism, data):
            return AuthResult(success=(data.login, data.password) == (user.encode(), password.encode()))

        self.controller = Controller(
            Handler(), hostname="127.0.0.1", port=0, tls_context=server_tls(folder) if require else None,
            require_starttls=require, authenticator=check if require else None, auth_required=require,
        )  # fmt: skip
        # Controller asks itself whether it runs, at the port that it was told: find a free one first
        import socket

        with socket.create_server(("127.0.0.1", 0)) as free:
            self.controller.port = free.getsockname()[1]
        self.controller.start()
        self.port = self.controller.port

    def close(self):
        self.controller.stop()
