"""How a model's weights come into memory. Apart from `model`: profiles name it without llama.cpp.

llama.cpp repacks quantized weights for the CPU's vector units; with a memory map, the pages of
the file stay resident beside the repacked copy, and a Q4_0 model then takes twice its size. Weights
that are not repacked are shared by processes that map them.
"""

from typing import Literal

LoadMode = Literal["read", "mmap"]
