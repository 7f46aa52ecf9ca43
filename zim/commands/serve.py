"""``zim serve``: the page and the HTTP interface, on this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
import errno
import os
import re
import secrets
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from zim.commandline import Report, UsageError, apply_runtime, port_number, positive_int
from zim.errors import OutputError
from zim.name_flags import add_models_flag

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: seconds that running requests have after Ctrl+C
_GRACE = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim serve``."""
    group = parser.add_argument_group("where")
    group.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address [127.0.0.1]")
    group.add_argument("--port", type=port_number, default=7860, metavar="N", help="port [7860]")
    group.add_argument(
        "--token",
        metavar="TEXT",
        help="what callers must show; auto makes one; needed for any other host than this machine; "
        "ZIM_SERVE_TOKEN works too and stays out of the list of processes",
    )
    group.add_argument(
        "--name",
        type=_host_name,
        action="append",
        default=[],
        metavar="HOST",
        help="another host name to answer under, that of a proxy in front; repeatable",
    )
    group = parser.add_argument_group("work")
    add_models_flag(group, about="models to offer, see zim models; the first is the default")
    group.add_argument(
        "--workers", type=positive_int, metavar="N", help="model workers [one per device]"
    )
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-upload", type=positive_int, default=32, metavar="MB", help="largest request [32]"
    )
    group.add_argument(
        "--max-megapixels", type=positive_int, default=40, metavar="N", help="largest picture [40]"
    )
    group.add_argument(
        "--queue", type=positive_int, default=32, metavar="N", help="requests that may wait [32]"
    )
    group.add_argument(
        "--timeout", type=positive_int, default=30, metavar="S", help="seconds per preview [30]"
    )
    group.add_argument(
        "--cache", type=positive_int, default=1024, metavar="MB", help="embeddings kept [1024]"
    )


def run(args: argparse.Namespace) -> Report:
    """Serve until interrupted."""
    token = _token(args.token)
    local = args.host in _LOOPBACK
    if not local and not token:
        raise UsageError(
            f"--host {args.host} opens the service to others; give --token auto, or a token"
        )
    from zim._extras import require
    from zim.memory import share_arenas

    share_arenas()
    uvicorn = require("uvicorn", "ui")
    for package in ("fastapi", "prometheus_client", "python_multipart"):
        require(package, "ui")
    apply_runtime(args)
    from zim.api import choose_device
    from zim.serve.app import create_app
    from zim.serve.settings import Settings

    settings = Settings(
        models=args.models,
        device=args.device,
        dtype=args.dtype,
        workers=args.workers or _devices(args.device),
        token=token,
        open_host=not local,
        hosts=tuple(args.name),
        max_bytes=args.max_upload * 2**20,
        max_pixels=args.max_megapixels * 1_000_000,
        queue=args.queue,
        timeout=args.timeout,
        cache_bytes=args.cache * 2**20,
    )
    choose_device(settings.device)  # what can never answer is refused now, not at the first prompt
    for name in settings.models:
        _check_model(name)
    app = create_app(settings)
    listening = _listen(args.host, args.port)
    shown = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{shown}:{args.port}/" + (f"#token={quote(token, safe='')}" if token else "")
    sys.stderr.write(f"zim serve: {address}\n")
    server = _server(uvicorn, _config(uvicorn, app, args))
    with ExitStack() as stack:
        for taken in listening:
            stack.enter_context(taken)
        try:
            server.run(sockets=listening)
        except KeyboardInterrupt:
            _leave(130, "zim serve: interrupted\n")
        except SystemExit:  # SIGTERM, which has said so
            _leave(143)
        if server.told is not None:  # the signal came back to nobody: all was done at that moment
            interrupted = server.told == signal.SIGINT
            _leave(128 + server.told, "zim serve: interrupted\n" if interrupted else "")
    report = Report(model=settings.models[0], extra={"address": address})
    if not server.started:
        report.failed = True
        report.extra["error"] = f"the server at {args.host}:{args.port} did not start"
    return report


def _token(given: str | None) -> str | None:
    """Return what callers must show, from the flag or the environment; None where nothing is set.

    Raises:
        UsageError: no header could carry it.
    """
    token = os.environ.get("ZIM_SERVE_TOKEN") or None if given is None else given
    if token == "auto":
        return secrets.token_urlsafe(24)
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise UsageError(
            "the token is empty or has characters that a header cannot carry; expected letters, "
            "digits and signs of ASCII without spaces, or auto"
        )
    return token


def _check_model(name: str) -> None:
    """Refuse what is certainly no model: an unknown name, weights or a path that are not there.

    Raises:
        CheckpointError: which one.
    """
    from zim.api import locate
    from zim.errors import CheckpointError

    where = str(locate(name))
    hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", where) and not where.endswith((".pt", ".safetensors"))
    if not hub and not Path(where).exists():
        raise CheckpointError(f"{name}: there is no such file or folder; see zim models")


def _server(uvicorn: Any, config: Any) -> Any:
    class Server(uvicorn.Server):
        """Says what it waits for after Ctrl+C, and does not wait after the second one."""

        told: int | None = None

        def handle_exit(self, sig: int, frame: Any) -> None:
            self.told = sig
            if self.should_exit:
                _leave(128 + sig, "zim serve: stopped\n")
            sys.stderr.write(
                f"zim serve: stopping; running requests have {_GRACE} s, Ctrl+C again ends it now\n"
            )
            super().handle_exit(sig, frame)

    return Server(config)


def _leave(code: int, text: str = "") -> NoReturn:
    """End the process now: its threads may compute for a minute, and would be waited for."""
    sys.stderr.write(text)
    sys.stderr.flush()
    os._exit(code)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Take the port of every address of a host, so that it is only told when it answers."""
    flags = socket.AI_PASSIVE
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
            several = len({family for family, *_ in found}) > 1
            listening: list[socket.socket] = []
            for family, kind, proto, _, address in dict.fromkeys(found):
                taken = stack.enter_context(socket.socket(family, kind, proto))
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6 and several:
                    # or it would take the other kind of address, too
                    taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    taken.bind(address)
                except OSError as error:
                    last = address == found[-1][4] and not listening
                    if error.errno != errno.EADDRNOTAVAIL or last:
                        raise
                    continue  # a name of the hosts file for what this machine does not have
                taken.listen()
                listening.append(taken)
        except OSError as error:
            raise OutputError(
                f"port {port} of {host} cannot be used ({error.strerror or error}); "
                "choose another --port or --host"
            ) from error
        stack.pop_all()  # they stay open
        return listening


def _config(uvicorn: Any, app: Any, args: argparse.Namespace) -> Any:
    return uvicorn.Config(
        app,
        host=args.host,
        port=args.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_GRACE,
        limit_concurrency=512,
        h11_max_incomplete_event_size=65536,
    )


def _devices(device: str) -> int:
    if device != "auto":
        return 1
    import torch

    return max(1, torch.cuda.device_count() if torch.cuda.is_available() else 1)


def _host_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no host name; expected one like zim.example.org, without https:// or port"
        )
    return text.lower()
