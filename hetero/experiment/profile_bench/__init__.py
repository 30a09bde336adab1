"""`hetero bench profile`: does `hetero profile node` tell the truth, twice, in time and in memory?

Profiles are made by the command itself. What they predict is then measured at points drawn at
random, decode steps by the engine that nodes run, prompts chunk by chunk; the second run tells how
far two profiles of one machine differ.
"""
