"""Where kernel tests put their tensors: on the GPU if there is one, else for the interpreter."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
