"""What the router listens with."""

import asyncio
import socket

import pytest

from hetero.serve.start import _listen


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")),
    ],
)
def test_a_token_does_not_wait_for_the_acknowledgement_of_the_one_before(host):
    async def accepted_option():
        found = asyncio.get_running_loop().create_future()

        def note(reader, writer):
            sock = writer.get_extra_info("socket")
            found.set_result(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(note, sock=_listen(host, 0))
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            try:
                return await found
            finally:
                writer.close()

    assert asyncio.run(accepted_option()) == 1
