"""KV over a shaped cable with nothing at its ends but packed rows and a cache to restore to: what
a seal, a number of connections and a size of frames cost in goodput and processor time."""
