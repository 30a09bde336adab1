"""Which experts the rows of a batch are routed to, as llama.cpp itself decides it."""

import ctypes

import llama_cpp
import numpy as np
import numpy.typing as npt

from hetero.llama.library import ggml_library

# As llama.cpp names them, with the layer's number after it.
_ROUTING = b"ffn_moe_topk-"


class _Tensor(ctypes.Structure):
    """The beginning of a `struct ggml_tensor`."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("num_elements", ctypes.c_int64 * 4),
        ("stride_bytes", ctypes.c_size_t * 4),
    )


class RoutedExperts:
    """Given to a context, it keeps the routing of every row that is decoded there.

    Every layer with experts then waits until it is read: not for steps that are timed.
    """

    def __init__(self) -> None:
        self._layers: dict[int, list[npt.NDArray[np.int32]]] = {}
        self._ggml = _ggml_base()
        # Named tensors come to `self` as long as this lives.
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._on_tensor)

    def take(self) -> dict[int, npt.NDArray[np.int32]]:
        """Layer -> (rows, experts of a row) of what was decoded since it was last asked. A
        prompt's last layer has only the rows whose logits were wanted."""
        layers = {layer: np.concatenate(parts) for layer, parts in self._layers.items()}
        self._layers.clear()
        return layers

    def _on_tensor(self, tensor: int, is_asked: bool, _user: int | None) -> bool:
        """Asked before a tensor is computed: whether it is wanted. Told after: to go on."""
        name: bytes = self._ggml.ggml_get_name(tensor)
        if not name.startswith(_ROUTING):
            return not is_asked
        if not is_asked:
            layer = int(name.removeprefix(_ROUTING))
            self._layers.setdefault(layer, []).append(self._read(tensor))
        return True

    def _read(self, tensor: int) -> npt.NDArray[np.int32]:
        """A row's experts are the first of all, sorted: the tensor is a view with gaps. Wherever
        it lies, on a GPU, too."""
        head = _Tensor.from_address(tensor)
        num_bytes = self._ggml.ggml_nbytes(tensor)
        spread = np.empty(num_bytes, np.uint8)
        self._ggml.ggml_backend_tensor_get(tensor, spread.ctypes.data, 0, num_bytes)
        shape = (head.num_elements[1], head.num_elements[0])
        strides = (head.stride_bytes[1], head.stride_bytes[0])
        return np.ndarray(shape, np.int32, spread, strides=strides).copy()


def _ggml_base() -> ctypes.CDLL:
    library = ggml_library("ggml-base")
    library.ggml_get_name.argtypes = [ctypes.c_void_p]
    library.ggml_get_name.restype = ctypes.c_char_p
    library.ggml_nbytes.argtypes = [ctypes.c_void_p]
    library.ggml_nbytes.restype = ctypes.c_size_t
    library.ggml_backend_tensor_get.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
    ]
    library.ggml_backend_tensor_get.restype = None
    return library
