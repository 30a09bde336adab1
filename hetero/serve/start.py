"""Starting a node: from its config file's content to the running process. Blocks until stopped."""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
import zmq

from hetero import __version__
from hetero.decode.engine import DecodeConfig as EngineConfig
from hetero.decode.engine import DecodeEngine
from hetero.decode.grammar import GrammarChecker
from hetero.decode.memory import check_memory
from hetero.errors import ConfigError
from hetero.kv.layout import model_layout
from hetero.llama.model import Model
from hetero.machine.interleaving import interleave
from hetero.messages import Fingerprint, NodeInfo
from hetero.model.fingerprint import fingerprint_model
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.prefill.replay_engine import ReplayEngine
from hetero.serve.config import DecodeConfig, PrefillConfig, RouterConfig
from hetero.serve.decode_node import DecodeNode
from hetero.serve.engine_thread import EngineThread
from hetero.serve.http.app import make_app
from hetero.serve.pinning import run_on
from hetero.serve.prefill_node import PrefillNode
from hetero.serve.prefill_setup import make_prefill_engine
from hetero.serve.prefill_worker import PrefillWorker
from hetero.serve.router import Router
from hetero.serve.service import ServedModel
from hetero.transport.connection import split_address
from hetero.transport.control_socket import RouterContact, RouterKeys, check_interface
from hetero.transport.door import Door
from hetero.transport.keys import load_key
from hetero.transport.nixl_sink import SlotReceiver
from hetero.transport.nixl_source import SendBuffers
from hetero.transport.tcp_sink import TcpSink
from hetero.workload.traffic_recorder import TrafficRecorder

logger = logging.getLogger(__name__)

Announce = Callable[[dict[str, Any]], None]

# The node's talking thread must get Python's lock within a fraction of a decode step, and the
# engine's thread back from it; the default is 5 ms.
_SWITCH_INTERVAL_S = 0.0005


def run_router(config: RouterConfig, announce: Announce) -> None:
    check_interface("control", config.control)
    keys = RouterKeys.load(Path(config.keys), config.name)
    file = GGUFFile.open(config.model)
    template = file.metadata.get("tokenizer.chat_template")
    with ExitStack() as opened:
        model = opened.enter_context(Model(config.model, vocab_only=True))
        recorder = None
        if config.record is not None:
            recorder = opened.enter_context(closing(TrafficRecorder(Path(config.record))))
        served = ServedModel(
            name=Path(config.model).stem,
            vocab=model.vocab,
            chat_template=template if isinstance(template, str) else None,
            context_tokens=0,
            created=int(time.time()),
        )
        router = Router(
            config.name,
            served,
            fingerprint_model(config.model),
            keys,
            allow_emulated=config.allow_emulated,
            recorder=recorder,
        )
        record = None if recorder is None else str(recorder.path)
        asyncio.run(_serve(config, router, lambda said: announce(said | {"record": record})))


async def _serve(config: RouterConfig, router: Router, announce: Announce) -> None:
    http = _listen(config.host, config.port)
    control = router.listen(config.control)
    host, port = http.getsockname()[:2]
    server = _Server(
        uvicorn.Config(
            make_app(
                router,
                GrammarChecker(Path(config.model)),
                keep_alive_s=config.keep_alive_s,
            ),
            log_config=None,
            timeout_graceful_shutdown=2,
            lifespan="off",
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    nodes = asyncio.create_task(router.run())
    host = f"[{host}]" if ":" in host else host
    announce({"role": "router", "http": f"http://{host}:{port}", "control": control})
    serving = asyncio.create_task(server.serve(sockets=[http]))
    done, _ = await asyncio.wait({nodes, serving}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    nodes.cancel()
    for task in done:
        task.result()
    await asyncio.wait({nodes, serving})


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again after its shutdown."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Said to be TCP, for asyncio to set TCP_NODELAY on what it accepts: else a token waits for the
    # acknowledgement of the one before, which clients may delay by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"{host}:{port}: can't listen there: {reason}; choose another port"
        ) from None
    return listener


def run_prefill(config: PrefillConfig, announce: Announce) -> None:
    run_on(config.cpus)
    interleave(config.interleave)
    router = _contact(config)
    spec = gguf_to_spec(GGUFFile.open(config.model))
    layout = model_layout(spec, config.kv_k, config.kv_v)
    fingerprint = Fingerprint(model=fingerprint_model(config.model), layout=layout)
    buffers = None
    if config.transport != "tcp":
        buffers = SendBuffers(
            config.transport,
            allow_tcp=config.allow_tcp,
            interface_of=_address_towards(config.router)
            if config.transport == "nixl-tcp"
            else None,
        )
    engine = make_prefill_engine(config, fingerprint)
    with Model(config.model, vocab_only=True) as model, zmq.Context() as context:
        worker = PrefillWorker(
            engine,
            model.vocab,
            fingerprint,
            weakest_seal=config.seal,
            num_connections=config.connections,
            buffers=buffers,
        )
        info = NodeInfo(
            name=config.name,
            role="prefill",
            host=socket.gethostname(),
            pid=os.getpid(),
            instance=uuid.uuid4().hex,
            model=Path(config.model).stem,
            fingerprint=fingerprint,
            context_tokens=min(config.context_tokens, engine.max_prompt_tokens),
            num_slots=1,
            chunk_tokens=engine.chunk_tokens,
            engine=engine.name,
            attention=engine.attention,
            emulated=engine.device if isinstance(engine, ReplayEngine) else "",
            seal=config.seal,
            transport=config.transport,
            allow_tcp=config.allow_tcp,
            versions=_versions("torch") if engine.name == "torch" else _versions(),
        )
        node = PrefillNode(worker, info, router=router, context=context)
        _run_until_signalled(node, config.name, "prefill", announce)
        worker.close()
        engine.close()
        if buffers is not None:
            buffers.close()


def run_decode(config: DecodeConfig, announce: Announce) -> None:
    run_on(config.cpus)
    interleave(config.interleave)
    router = _contact(config)
    spec = gguf_to_spec(GGUFFile.open(config.model))
    layout = model_layout(spec, config.kv_k, config.kv_v)
    if config.gpu_layers == 0:
        check_memory(
            spec.weight_bytes, layout, slots=config.slots, context_tokens=config.context_tokens
        )
    fingerprint = Fingerprint(model=fingerprint_model(config.model), layout=layout)
    check_interface("listen", config.listen)
    if _is_loopback(config.listen) and not _is_loopback(config.router) and not config.advertise:
        raise ConfigError(
            f"listen: need this machine's address on the network of {config.router}, for prefill "
            f"nodes to dial, have {config.listen}; for prefill nodes on this machine alone, "
            "set `advertise` to the same"
        )
    with zmq.Context() as context:
        receiver = _slot_receiver(config)
        sink = TcpSink(Door(config.listen, config.advertise), receiver)
        engine = DecodeEngine(
            Path(config.model),
            layout,
            EngineConfig(
                num_slots=config.slots,
                context_tokens=config.context_tokens,
                num_threads=config.threads,
                unified=config.unified,
                chunk_tokens=config.chunk_tokens,
                prefill_share=config.prefill_share,
                gpu_layers=config.gpu_layers,
                load=config.load,
            ),
        )
        info = NodeInfo(
            name=config.name,
            role="decode",
            host=socket.gethostname(),
            pid=os.getpid(),
            instance=uuid.uuid4().hex,
            model=Path(config.model).stem,
            fingerprint=fingerprint,
            context_tokens=engine.context.tokens_per_sequence,
            num_slots=config.slots,
            chunk_tokens=config.chunk_tokens,
            engine="llama",
            attention="llama",
            seal=config.seal,
            transport=config.transport,
            allow_tcp=config.allow_tcp,
            versions=_versions(),
        )
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        thread = EngineThread(engine)
        node = DecodeNode(
            thread,
            info,
            router=router,
            sink=sink,
            context=context,
            credit_bytes=config.credit_bytes,
        )
        _run_until_signalled(node, config.name, "decode", announce)
        thread.close()
        engine.close()
        if receiver is not None:
            receiver.close()


def _slot_receiver(config: DecodeConfig) -> SlotReceiver | None:
    """Raises: ConfigError"""
    if config.transport == "tcp":
        return None
    if config.nixl_slots < config.slots:
        raise ConfigError(
            f"nixl_slots: need one for each of {config.slots} slots, have {config.nixl_slots}"
        )
    return SlotReceiver(
        config.transport,
        config.nixl_slots,
        num_transfers=config.slots,
        allow_tcp=config.allow_tcp,
        interface_of=split_address(config.listen)[0],
    )


def _is_loopback(address: str) -> bool:
    host = split_address(address)[0]
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _address_towards(address: str) -> str:
    """This machine's, from where it would dial that one.

    Raises: ConfigError if it can't be found.
    """
    host, port = split_address(address)
    try:
        family, kind, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{address}: no way there: {reason}") from None


def _contact(config: PrefillConfig | DecodeConfig) -> RouterContact:
    return RouterContact(
        address=config.router, router_key=config.router_key, key=load_key(Path(config.key))
    )


def _run_until_signalled(
    node: PrefillNode | DecodeNode, name: str, role: str, announce: Announce
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.stop())
    announce({"role": role, "name": name, "pid": os.getpid()})
    node.run()


def _versions(*packages: str) -> dict[str, str]:
    names = ("llama-cpp-python", *packages)
    return {"hetero": __version__} | {name: version(name) for name in names}
