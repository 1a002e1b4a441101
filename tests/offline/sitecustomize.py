"""On PYTHONPATH, this makes a Python process refuse connections that leave the machine."""

import ipaddress
import sys


def _audit(event: str, args: tuple) -> None:
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    host = args[1][0] if event == "socket.connect" and isinstance(args[1], tuple) else args[0]
    if host is None or not isinstance(host, (str, bytes)):
        return
    host = host.decode() if isinstance(host, bytes) else host
    try:
        loopback = ipaddress.ip_address(host).is_loopback or host in ("0.0.0.0", "::")
    except ValueError:
        loopback = host in ("", "localhost")
    if not loopback:
        raise OSError(f"no network in a test: {host}")


sys.addaudithook(_audit)
