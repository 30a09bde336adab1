"""`hetero bench engine`: this machine's engines against ceilings measured in the same run.

The physics. A decode step reads every weight once and each sequence's own K and V once, so at batch
1 it is bound by memory bandwidth; weights are shared by the rows of a batch, contexts are not, so
over distinct contexts the KV's share grows with the batch, and on few cores arithmetic takes over.
None of that is ours to improve: llama.cpp computes. What is ours is what we add to it, and that is
what these figures are: our loop against a bare loop, a restore against memcpy, packing against
memcpy, a hand-over against its last frame group, a process against what its parts must take.

Every figure is a ratio, or a budget, whose two sides were measured in turns within one run;
absolute times are of this machine alone. One file per figure; `suite` has the table.
"""
