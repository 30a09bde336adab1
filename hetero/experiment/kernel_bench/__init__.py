"""`hetero bench kernels`: what a prefill node's GPU kernels reach of what the GPU can do.

The physics. Causal attention multiplies each query with every key and value it sees: 4 operations
per head, dimension and visible pair of tokens, on values read from memory once; from a few hundred
tokens on it is bound by arithmetic. Packing and dequantization compute little: bytes in and bytes
out over the bandwidth of a copy, as do the operations between matrix products. A prefill step takes
2 operations per weight and token, and its attention: bound by arithmetic where weights lie in GPU
memory. Streamed weights cross PCIe once a step, so the step takes at least their stored bytes over
PCIe's rate, or its arithmetic, whichever is more.

Those rates are measured first, in the same run: a copy on the device, a large matrix product,
copies between the device and pinned host memory. Each figure then has its time, its share of the
rate that bounds it, and how many times faster it is than what a user would otherwise run. Arms take
turns, calls alternate over more memory than any L2 cache holds, and times are the GPU's own.

`physics` counts operations and bytes; each `*_speed` file measures some figures; `suite` has the
table. `compiling` and `compile_table` need no GPU: they say what kernels take of chips that are not
there.
"""
