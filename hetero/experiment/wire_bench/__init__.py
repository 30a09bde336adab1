"""`hetero bench wire`: KV over an emulated link against iperf3 on the same link, in turns.

Both ends, the link and iperf3 share this machine's processors, so a figure far above what they can
do says what this machine can do, not what the wire code can.
"""
